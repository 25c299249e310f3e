"""A trial: one training run, described by its hyperparameters alone.

Each hyperparameter is either *traced*, a number that may differ between trials of one compiled
program, or *static*, something that XLA must know to compile. Trials with equal static values can
be stacked and trained as one program. Nothing here imports JAX: describing and planning start at
once.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from jaxexp.errors import UserError


def hyperparameter(
    default: Any,
    *,
    traced: bool = False,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a trial with its kind and its range (bounds are checked by `Trial.check`)."""
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    metadata = {"traced": traced, "choices": choices, **bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What every training run has: its length, its batches, its optimizer, its seed.

    Subclass it to add the hyperparameters of a model, each made with `hyperparameter`.
    """

    epochs: int = hyperparameter(50, at_least=1)
    batch_size: int = hyperparameter(256, at_least=1)
    optimizer: str = hyperparameter("adam", choices=("adam", "adamw", "sgd"))
    learning_rate: float = hyperparameter(1e-3, traced=True, above=0)
    momentum: float = hyperparameter(0.0, traced=True, at_least=0, below=1)  # of sgd
    weight_decay: float = hyperparameter(0.0, traced=True, at_least=0)  # of adamw
    seed: int = hyperparameter(0, traced=True, at_least=0, below=2**31)

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field]:
        """The hyperparameters by name, in the order of definition."""
        return {f.name: f for f in dataclasses.fields(cls)}

    def values(self) -> dict[str, Any]:
        """The value of every hyperparameter, by name."""
        return {name: getattr(self, name) for name in self.fields()}

    def static(self) -> tuple[tuple[str, Any], ...]:
        """The values that XLA must know: trials that agree here can share a compiled program."""
        values = self.values()
        return tuple((n, values[n]) for n, f in self.fields().items() if not f.metadata["traced"])

    def traced(self) -> dict[str, float | int]:
        """The numbers that may differ between the trials of one program."""
        values = self.values()
        return {n: values[n] for n, f in self.fields().items() if f.metadata["traced"]}

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name the content: equal trials have equal ids."""
        content = json.dumps([type(self).__name__, self.values()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def replace(self, **values: Any) -> Self:
        """A copy with other values, each checked for its name and its type."""
        return dataclasses.replace(self, **{k: self.convert(k, v) for k, v in values.items()})

    @classmethod
    def convert(cls, name: str, value: Any) -> Any:
        """`value` (text is parsed) as the type of hyperparameter `name`.

        Raises UserError for a name that does not exist or a value of another type.
        """
        cls.check_name(name)
        kind = typing.get_type_hints(cls)[name]
        try:
            return _CONVERTERS[kind](value)
        except (ValueError, TypeError, OverflowError, KeyError):
            raise UserError(f"{name}={value!r}: expected {_EXPECTED[kind]}") from None

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raise UserError, with the near matches, unless `name` is a hyperparameter."""
        if name not in cls.fields():
            near = difflib.get_close_matches(name, cls.fields(), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            known = ", ".join(cls.fields())
            raise UserError(f"unknown hyperparameter {name!r}: {hint}(there are: {known})")

    def work(self, examples: int) -> float:
        """Estimated core-seconds of the training; only ratios matter (order, progress)."""
        return self.epochs * examples

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        for name, field in self.fields().items():
            _check_range(name, getattr(self, name), field.metadata)
        if self.momentum and self.optimizer != "sgd":
            raise UserError(f"momentum={self.momentum} needs optimizer=sgd, not {self.optimizer}")
        if self.weight_decay and self.optimizer != "adamw":
            raise UserError(
                f"weight_decay={self.weight_decay} needs optimizer=adamw, not {self.optimizer}"
            )


ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
FEATURES = ("raw", "sines")  # inputs as they are, or the sines of their multiples


@dataclass(frozen=True, kw_only=True)
class MLPTrial(Trial):
    """One training run of a multi-layer perceptron; the defaults are the report's."""

    depth: int = hyperparameter(6, at_least=1, at_most=10_000)  # hidden layers
    width: int = hyperparameter(16, at_least=1, at_most=100_000)  # units of each hidden layer
    activation: str = hyperparameter("relu", choices=ACTIVATIONS)
    batch_norm: bool = hyperparameter(False)
    residual: bool = hyperparameter(False)
    features: str = hyperparameter("raw", choices=FEATURES)

    def work(self, examples: int) -> float:
        """Estimated core-seconds of the whole training, from its arithmetic and its launches."""
        multiplications = 2 * self.width + (self.depth - 1) * self.width**2 + 33 * self.width
        example = 6 * multiplications / 40e9 * (2 if self.batch_norm else 1)
        step = 2e-6 * (self.depth + 1)
        return self.epochs * (examples * example + math.ceil(examples / self.batch_size) * step)

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        super().check()
        if self.batch_norm and self.batch_size == 1:
            raise UserError("batch_size=1: batch norm needs at least 2 examples in a batch")


def _check_range(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if bounds["choices"] is not None and value not in bounds["choices"]:
        raise UserError(f"{name}={value!r}: expected one of {', '.join(bounds['choices'])}")
    tests = {
        "above": (lambda v, b: v > b, "above"),
        "at_least": (lambda v, b: v >= b, "at least"),
        "below": (lambda v, b: v < b, "below"),
        "at_most": (lambda v, b: v <= b, "at most"),
    }
    wanted = [(t, words, bounds[k]) for k, (t, words) in tests.items() if bounds[k] is not None]
    if not all(test(value, bound) for test, _, bound in wanted):
        expected = " and ".join(f"{words} {bound:g}" for _, words, bound in wanted)
        raise UserError(f"{name}={value!r}: expected a number {expected}")


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError
    return number


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
        raise ValueError
    return int(value)


_BOOLEANS = {"true": True, "on": True, "yes": True, "1": True} | {
    "false": False, "off": False, "no": False, "0": False,
}  # fmt: skip
_CONVERTERS = {
    float: _to_float,
    int: _to_int,
    bool: lambda value: _BOOLEANS[str(value).lower()],
    str: lambda value: str(value),
}
_EXPECTED = {float: "a finite number", int: "a whole number", bool: "on or off", str: "text"}
