"""A trial: one training run, described by its hyperparameters alone.

Each hyperparameter has a kind, which says how trials that differ in it can share a program:

- "traced": it is a number inside the compiled program;
- "size": smaller trials are padded to the largest (width, depth, batch size);
- "choice": all the options are computed and one is taken (activation, batch norm ...);
- "length": it says how often the program is called (epochs).

Trials that differ in traced values alone share a program exactly; what else may be shared is for
the plan to decide. Nothing here imports JAX: describing and planning start at once.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from jaxexp.base.errors import UserError


def hyperparameter(
    default: Any,
    *,
    kind: str = "choice",
    off: float | None = None,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a trial: its kind, and its range (bounds are checked by `Trial.check`).

    `off` is the value of a traced hyperparameter that makes no difference to a program without it
    (a rate of 0): trials in which it is on do not make the others compute it.
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    metadata = {"kind": kind, "off": off, "choices": choices, **bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What every training run has: its length, its batches, its optimizer, its seed.

    Subclass it to add the hyperparameters of a model, each made with `hyperparameter`.
    """

    epochs: int = hyperparameter(50, kind="length", at_least=1)
    batch_size: int = hyperparameter(256, kind="size", at_least=1)
    optimizer: str = hyperparameter("adam", choices=("adam", "adamw", "sgd"))
    learning_rate: float = hyperparameter(1e-3, kind="traced", above=0)
    momentum: float = hyperparameter(0.0, kind="traced", at_least=0, below=1)  # of sgd
    weight_decay: float = hyperparameter(0.0, kind="traced", at_least=0)  # of adamw
    seed: int = hyperparameter(0, kind="traced", at_least=0, below=2**31)

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field]:
        """The hyperparameters by name, in the order of definition."""
        return {f.name: f for f in dataclasses.fields(cls)}

    def values(self) -> dict[str, Any]:
        """The value of every hyperparameter, by name."""
        return {name: getattr(self, name) for name in self.fields()}

    def static(self) -> tuple[tuple[str, Any], ...]:
        """The values that XLA would have to know: trials that agree here share a program as it is.

        Of a traced value that can be off, whether it is on.
        """
        static = []
        for name, field in self.fields().items():
            value, off = getattr(self, name), field.metadata["off"]
            if field.metadata["kind"] != "traced":
                static.append((name, value))
            elif off is not None:
                static.append((name, value != off))
        return tuple(static)

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

    def cost(self) -> "Cost":
        """What one step costs; a subclass says what its model needs."""
        return Cost(multiplications=1, launches=1, parameters=1, activations=1)

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


@dataclass(frozen=True)
class Cost:
    """What a model costs to train, for plans: estimates of the right size, not measurements."""

    multiplications: float  # of a forward pass, per example
    launches: float  # operations that a step calls, each with an overhead of its own
    parameters: int
    activations: int  # floats per example that the forward pass keeps for the backward pass
    compilation: float = 1.0  # how long it compiles, in MLPs of a few layers


ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
FEATURES = ("raw", "standardised", "sines")  # inputs as they are, at unit scale, as sines


@dataclass(frozen=True, kw_only=True)
class MLPTrial(Trial):
    """One training run of a multi-layer perceptron; the defaults are the report's.

    `width` is the units of every hidden layer, or a tuple with those of each, from first to last:
    (64, 32, 16) with depth=3, "64-32-16" as text. Widths that are all equal become the one number,
    so that both ways to write a network are the same trial.
    """

    depth: int = hyperparameter(6, kind="size", at_least=1, at_most=10_000)  # hidden layers
    width: int | tuple[int, ...] = hyperparameter(16, kind="size", at_least=1, at_most=100_000)
    activation: str = hyperparameter("relu", choices=ACTIVATIONS)
    batch_norm: bool = hyperparameter(False)
    residual: bool = hyperparameter(False)
    features: str = hyperparameter("raw", choices=FEATURES)
    dropout: float = hyperparameter(0.0, kind="traced", off=0.0, at_least=0, below=1)
    label_smoothing: float = hyperparameter(0.0, kind="traced", off=0.0, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """One number for widths that are all equal."""
        if isinstance(self.width, tuple) and self.width == self.width[:1] * self.depth:
            object.__setattr__(self, "width", self.width[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """The units of each hidden layer, from first to last."""
        return self.width if isinstance(self.width, tuple) else (self.width,) * self.depth

    def cost(self) -> Cost:
        """Of a network to about thirty classes."""
        inputs = 20 if self.features == "sines" else 2
        units = sum(self.widths)
        shapes = sum(a * b for a, b in itertools.pairwise((inputs, *self.widths, 33)))
        norm = 2 if self.batch_norm else 1
        looped = self.depth > 16 and isinstance(self.width, int)  # layers are a loop of their own
        return Cost(
            multiplications=shapes * (1.5 if self.batch_norm else 1),
            launches=(self.depth + 1) * norm * (4 if looped else 1),
            parameters=shapes + units * (2 * norm - 1) + 33,
            activations=inputs + norm * 2 * units + 2 * 33,
        )

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        super().check()
        if isinstance(self.width, tuple):
            written = f"width={text(self.width)}"
            if len(self.width) != self.depth:
                raise UserError(f"{written}: {len(self.width)} widths for depth={self.depth}")
            if self.residual:
                raise UserError(f"{written}: a residual connection needs layers of equal width")
        if self.batch_norm and self.batch_size == 1:
            raise UserError("batch_size=1: batch norm needs at least 2 examples in a batch")


def text(value: Any) -> str:
    """The value of a hyperparameter as it is written: a tuple of widths as "64-32-16"."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
    each = value if isinstance(value, tuple) else (value,)
    if not all(test(v, bound) for v in each for test, _, bound in wanted):
        expected = " and ".join(f"{words} {bound:g}" for _, words, bound in wanted)
        number = "numbers" if isinstance(value, tuple) else "a number"
        raise UserError(f"{name}={text(value)}: expected {number} {expected}")


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError
    return number


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
        raise ValueError
    return int(value)


def _to_ints(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, str) and "-" in value:
        value = value.split("-")
    if not isinstance(value, tuple | list):
        return _to_int(value)
    if not value:
        raise ValueError
    return tuple(map(_to_int, value))


_BOOLEANS = {"true": True, "on": True, "yes": True, "1": True} | {
    "false": False, "off": False, "no": False, "0": False,
}  # fmt: skip
_CONVERTERS = {
    float: _to_float,
    int: _to_int,
    int | tuple[int, ...]: _to_ints,
    bool: lambda value: _BOOLEANS[str(value).lower()],
    str: lambda value: str(value),
}
_EXPECTED = {
    float: "a finite number",
    int: "a whole number",
    int | tuple[int, ...]: "a whole number, or one for each layer as in 64-32-16",
    bool: "on or off",
    str: "text",
}
