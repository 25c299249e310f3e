"""A metric: a mean over examples, or a function of sums over them, measured batch by batch."""

import enum
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxexp.base.errors import UserError
from jaxexp.training.trees import PyTree


class Direction(enum.StrEnum):
    """Whether higher or lower values of a metric are better.

    >>> Direction("higher") is Direction.HIGHER
    True
    """

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Metric:
    """One number about predictions: which way is better, its unit, and how to compute it.

    Give one of the following:

    - `example`: the metric is the weighted mean over examples of `example(prediction, target)`,
      which has shape (B,).
    - `sums` and `value`: `sums(prediction, target, weight_B)` is a tree of sums over examples,
      which are added up over batches, and `value(sums)` is a scalar. Filler rows have weight 0 and
      may contain NaN: select with `jnp.where(weight_B > 0, ..., 0)`.
    - neither: the metric is the weighted mean of the task's own value of that name, in
      `Outputs.metrics`, of shape (B,).

    Args:
        direction: "higher" or "lower", whichever is better.
        unit: the unit of the value, "" for none.
        example: see above.
        sums: see above.
        value: see above.
        centered: a function of the training targets, (N, ...), that returns the same metric with
            its sums taken about a center, for more precision; see `for_target`.

    Raises:
        UserError: an unknown direction, or another combination of functions.

    >>> error = Metric("lower", unit="m", example=lambda predicted, true: abs(predicted - true))
    >>> sums = error.sums_of(None, jnp.array([1.0, 3.0]), jnp.array([2.0, 5.0]), jnp.ones(2))
    >>> float(error.compute(sums))
    1.5
    """

    direction: str
    unit: str = ""
    example: Callable[[PyTree, PyTree], Array] | None = None
    sums: Callable[[PyTree, PyTree, Array], PyTree] | None = None
    value: Callable[[PyTree], Array] | None = None
    centered: "Callable[[PyTree], Metric] | None" = None

    def __post_init__(self) -> None:
        """Check the fields, and take over the docstring of the function."""
        choices = [str(direction) for direction in Direction]
        if self.direction not in choices:
            raise UserError(f"direction: {self.direction!r}, expected one of {', '.join(choices)}")
        object.__setattr__(self, "direction", Direction(self.direction))
        if not isinstance(self.unit, str):
            raise UserError(f"unit: {self.unit!r}, expected a string, '' for none")
        for name in ("example", "sums", "value", "centered"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise UserError(f"{name}: {function!r}, expected a function")
        given = [name for name in ("example", "sums", "value") if getattr(self, name) is not None]
        if given not in ([], ["example"], ["sums", "value"]):
            raise UserError(
                f"Metric: {' and '.join(given)} given, expected either `example`, or `sums` and "
                "`value`, or none of the three for a value of the task's own"
            )
        if given:
            object.__setattr__(self, "__doc__", getattr(self, given[0]).__doc__)

    def for_target(self, target: PyTree) -> "Metric":
        """The same metric for a data set, given the targets to train on, (N, ...), or None.

        That is the metric itself, unless its sums would lose digits without a center, as those of
        R² do. The targets are those that the task's `Outputs` give, in the same unit and shape.

        >>> from jaxexp.training.metrics import accuracy
        >>> accuracy.for_target(jnp.zeros(3)) is accuracy
        True
        """
        return self if self.centered is None or target is None else self.centered(target)

    def sums_of(
        self, own_B: Array | None, prediction: PyTree, target: PyTree, weight_B: Array, *,
        name: str = "",
    ) -> PyTree:  # fmt: skip
        """The sums over a batch, which add up to those of all batches.

        Args:
            own_B: the task's own value per example, or None.
            prediction: the task's prediction, any tree, or None.
            target: the task's target, any tree, or None.
            weight_B: the weight of each example; 0 for padding, whose values may be NaN.
            name: the name of the metric, for messages.

        Returns:
            A tree of arrays, of float32 unless values are wider.

        Raises:
            UserError: something needed is missing, or has an unexpected shape.
        """
        said = f"metric {name!r}" if name else "metric"
        if own_B is not None and (self.example or self.sums):
            raise UserError(
                f"{said}: the task reports a value of its own, and the metric has a function: "
                "expected one of the two"
            )
        try:
            if self.sums is not None:
                return jax.tree.map(as_float, self.sums(prediction, target, weight_B))
            value_B = own_B if self.example is None else self.example(prediction, target)
        except UserError as error:
            raise UserError(f"{said}: {error}") from error
        if value_B is None:
            raise UserError(
                f"{said}: no value, expected one of shape (B,) in the metrics of the task's "
                "Outputs, or a Metric with a function"
            )
        shape = jnp.shape(value_B)
        if shape != jnp.shape(weight_B) or len(shape) != 1:
            raise UserError(
                f"{said}: a value of shape {shape}, expected {jnp.shape(weight_B)}, "
                "one number for each example"
            )
        return _mean_sums(value_B, weight_B)

    def compute(self, sums: PyTree, *, name: str = "") -> Array:
        """The metric, a scalar, from the added sums; NaN if it is not defined.

        Raises:
            UserError: the function of sums does not return a scalar.
        """
        if self.value is None:
            mean: Array = sums["total"] / sums["weight"]
            return mean
        value = jnp.asarray(self.value(sums))
        if value.shape != ():
            said = f"metric {name!r}" if name else "metric"
            raise UserError(f"{said}: a value of shape {value.shape}, expected one number")
        return value


def as_float(value: ArrayLike) -> Array:
    """The value as float32, or unchanged if its type is wider."""
    value = jnp.asarray(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _mean_sums(value_B: ArrayLike, weight_B: ArrayLike) -> dict[str, Array]:
    value_B, weight_B = as_float(value_B), as_float(weight_B)
    return {"total": weighted(value_B, weight_B).sum(), "weight": weight_B.sum()}


def weighted(value: Array, weight_B: Array) -> Array:
    """Values times weights; 0 where the weight is 0, whatever the value."""
    weight = weight_B.reshape(weight_B.shape + (1,) * (value.ndim - 1))
    return jnp.where(weight > 0, value, 0) * weight
