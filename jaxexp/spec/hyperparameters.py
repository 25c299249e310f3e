"""How the hyperparameters of a trial are declared, and which values they may have."""

import dataclasses
import enum
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from jaxexp.base.errors import UserError
from jaxexp.spec.values import Hint, Value, float32, text

T = TypeVar("T")
Number = TypeVar("Number", bound=float)
SMALLEST, LARGEST = 2.0**-126, 2.0**128 - 2.0**104  # of float32, without subnormal numbers


class Kind(enum.Enum):
    """How trials that differ in a hyperparameter can share a compiled program."""

    TRACED = "traced"  # it is a number inside the program
    SIZE = "size"  # smaller trials are padded to the largest
    CHOICE = "choice"  # all options are computed and one is taken
    STATIC = "static"  # they cannot: each value needs a program of its own
    LENGTH = "length"  # it says how long a trial trains: `epochs`, and nothing else


def traced(
    default: Number,
    *,
    off: float | None = None,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Number:
    """A number inside the compiled program: trials with different values share one program.

    `off` is the value at which its computation can be left out (such as a rate of 0): trials with
    that value do not have to compute it just because others do. The other arguments bound the
    value.

    >>> import jaxexp as jx
    >>> @dataclass(frozen=True, kw_only=True)
    ... class NetTrial(jx.Trial):
    ...     l2: float = jx.traced(0.0, at_least=0)
    >>> NetTrial().replace(l2=-1).check()
    Traceback (most recent call last):
        ...
    jaxexp.base.errors.UserError: l2=-1.0: expected a number at least 0
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return declare(default, Kind.TRACED, None, off=off, **bounds)


def static(
    default: T,
    *,
    choices: Sequence[T] | None = None,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> T:
    """A value that the program is compiled for: each value gets its own program.

    A field without a declaration behaves the same; this adds bounds, or the allowed `choices`.

    >>> import jaxexp as jx
    >>> @dataclass(frozen=True, kw_only=True)
    ... class NetTrial(jx.Trial):
    ...     pooling: str = jx.static("max", choices=("max", "mean"))
    >>> NetTrial.fields()["pooling"].kind
    <Kind.STATIC: 'static'>
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return declare(default, Kind.STATIC, choices, **bounds)


def size(default: T, *, at_least: int = 1, at_most: int | None = None, skipped: bool = False) -> T:
    """A whole number that a model can pad: smaller trials may share a program with larger ones.

    Inside a shared program it is a `jaxexp.spec.padding.Size`; the model must know what to do.
    `skipped` says that the model skips what lies past a trial's size when trials train one after
    another (`Size.branches`).

    >>> import jaxexp as jx
    >>> @dataclass(frozen=True, kw_only=True)
    ... class NetTrial(jx.Trial):
    ...     units: int = jx.size(16)
    >>> NetTrial().replace(units=0).check()
    Traceback (most recent call last):
        ...
    jaxexp.base.errors.UserError: units=0: expected a number at least 1
    """
    return declare(default, Kind.SIZE, at_least=at_least, at_most=at_most, skipped=skipped)


def choice(default: T, choices: Sequence[T] | None = None) -> T:
    """One of several options: a shared program can compute all of them and select one.

    Inside a shared program it is a `jaxexp.spec.padding.Choice`; the model must know what to do.

    >>> import jaxexp as jx
    >>> @dataclass(frozen=True, kw_only=True)
    ... class NetTrial(jx.Trial):
    ...     activation: str = jx.choice("relu", ("relu", "tanh"))
    >>> NetTrial().replace(activation="tanh").activation
    'tanh'
    """
    return declare(default, Kind.CHOICE, choices)


def declare(
    default: T, kind: Kind, choices: Sequence[T] | None = None, **bounds: float | None
) -> T:
    """A dataclass field that declares a hyperparameter."""
    metadata: dict[str, object] = {"kind": kind, **bounds}
    if choices is not None:
        metadata["choices"] = tuple(choices)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Hyperparameter:
    """What is declared about one field of a trial."""

    name: str
    hint: Hint
    default: Value
    kind: Kind
    off: float | None = None
    choices: tuple[Value, ...] | None = None
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    skipped: bool = False  # of a size: whether a model skips what lies past a trial's

    @functools.cached_property
    def on(self) -> Value:
        """For a rate that can be off, a value at which it is on: the default, or one near `off`."""
        if self.off is None or self.default != self.off:
            return self.default
        scale = max(1.0, abs(self.off))
        near = (self.off + sign * scale / 2**k for k in range(127) for sign in (1, -1))
        values = (int(value) if self.hint is int else value for value in near)
        on = (value for value in values if value != self.off and self._allows(value))
        return next(on, self.default)

    def _allows(self, value: Value) -> bool:
        try:
            check_range(self, value)
        except UserError:
            return False
        return True

    def in_program(self, value: Value) -> Value:
        """A value as it is inside a program: traced floats as float32, others unchanged."""
        traced = self.kind is Kind.TRACED and self.hint is float
        return float32(cast(float, value)) if traced else value


@functools.lru_cache(maxsize=1 << 16, typed=True)  # a grid has few values, in many trials
def check_range(declared: Hyperparameter, value: Value) -> None:
    """Raise UserError for a value outside the declared range of its hyperparameter."""
    name, choices = declared.name, declared.choices
    if choices is not None and value not in choices:
        raise UserError(f"{name}={text(value)!r}: expected one of {', '.join(map(text, choices))}")
    tests: dict[str, tuple[Callable[[float, float], bool], str]] = {
        "above": (operator.gt, "above"),
        "at_least": (operator.ge, "at least"),
        "below": (operator.lt, "below"),
        "at_most": (operator.le, "at most"),
    }
    bounds = {key: getattr(declared, key) for key in tests}
    wanted = [(t, words, bounds[k]) for k, (t, words) in tests.items() if bounds[k] is not None]
    each = [v for v in (value if isinstance(value, tuple) else (value,)) if v is not None]
    expected = " and ".join(f"{words} {bound:g}" for _, words, bound in wanted)
    if not all(test(cast(float, v), bound) for v in each for test, _, bound in wanted):
        number = "numbers" if isinstance(value, tuple) else "a number"
        raise UserError(f"{name}={text(value)}: expected {number} {expected}")
    if declared.kind is Kind.SIZE and not each:
        raise UserError(f"{name}={text(value)}: expected at least one number")
    if declared.kind in (Kind.TRACED, Kind.SIZE, Kind.LENGTH):
        _check_32_bits(name, each)
    held = [float32(v) for v in each if isinstance(v, float)]  # 0.99999999 becomes 1
    traced = declared.kind is Kind.TRACED
    if traced and not all(test(v, float32(bound)) for v in held for test, _, bound in wanted):
        raise UserError(f"{name}={value}: expected a number {expected}, as float32 has it")


def _check_32_bits(name: str, values: Sequence[Value]) -> None:
    """Refuse numbers that 32 bits cannot hold: they would wrap around, or become 0 or infinite."""
    for value in values:
        if isinstance(value, int) and abs(value) >= 2**31:
            raise UserError(f"{name}={value}: expected a whole number below {2**31} in magnitude")
        if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
            raise UserError(
                f"{name}={value}: expected a number that is 0 or between {SMALLEST:.1g} and "
                f"{LARGEST:.1g} in magnitude, as float32 has it"
            )
