"""Distributions of a hyperparameter's values: frozen values with a quantile function.

Random and quasi-random samplers draw numbers in [0, 1) and share `ppf`, the quantile function (the
inverse of the cumulative distribution), as frozen distributions of `scipy.stats` have it.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int, is_number
from jaxexp.spec.values import Value, float32, listed, text

Conditions: TypeAlias = tuple[tuple[str, tuple[object, ...]], ...]  # a name, and its values
EDGE = 2.0**-32  # quantiles of SciPy's distributions lie within this distance of 0 and 1


@runtime_checkable
class Frozen(Protocol):
    """A frozen distribution of `scipy.stats`, as far as it is needed."""

    args: tuple[object, ...]
    kwds: dict[str, object]

    def ppf(self, q: float) -> float:
        """The quantile function."""
        ...

    def cdf(self, x: float) -> float:
        """The cumulative distribution function."""
        ...

    def support(self) -> tuple[float, float]:
        """The ends of the interval in which its values lie."""
        ...


class Distribution(abc.ABC):
    """The distribution of one hyperparameter; `when` makes it conditional."""

    @abc.abstractmethod
    def ppf(self, u: float) -> object:
        """The value at quantile `u` in [0, 1)."""

    @property
    def count(self) -> float:
        """The number of values; infinite for a continuous distribution."""
        return math.inf

    @property
    def step(self) -> int:
        """The distance between neighbouring whole numbers; 0 for others."""
        return 0

    def values(self) -> Sequence[object]:
        """Values that represent all in checks of ranges: both ends, or every choice."""
        return self.ppf(EDGE), self.ppf(1 - EDGE)

    def grid(self, points: int) -> list[object]:
        """This many values, equally spaced in probability, including both ends."""
        if self.count <= points:
            return list(self.values())
        return [self.ppf(0.5 if points == 1 else i / (points - 1)) for i in range(points)]

    def has(self, value: object) -> bool:
        """Whether the value has a probability above 0, which a continuous distribution has not."""
        return False

    def when(self, **conditions: object) -> "Conditional":
        """This distribution, if other hyperparameters have these values (a list means any of them).

        Otherwise, the hyperparameter keeps the value of the base trial.

        >>> print(uniform(0, 0.99).when(optimizer="sgd"))
        uniform(0, 0.99) when optimizer=sgd
        """
        if not conditions:
            raise UserError("when(): expected a condition, such as when(optimizer='sgd')")
        made = []
        for name, values in conditions.items():
            if isinstance(values, set | frozenset):  # whose order is another in every process
                values = sorted(values, key=repr)
            values = listed(values)
            any_of = isinstance(values, list | range)
            several = tuple(values) if any_of else (values,)  # type: ignore[arg-type]
            if not several:
                raise UserError(f"when({name}=[]): expected at least one value")
            made.append((name, several))
        return Conditional(self, tuple(made))


@dataclass(frozen=True)
class Uniform(Distribution):
    """Numbers in [low, high), uniformly distributed; see `uniform`."""

    low: float
    high: float

    def ppf(self, u: float) -> float:
        """The value at quantile `u`."""
        return _within(self, self.low + u * (self.high - self.low))

    def values(self) -> Sequence[float]:
        """Both ends."""
        return self.low, self.high

    def __str__(self) -> str:
        """As it is written."""
        return f"uniform({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class LogUniform(Distribution):
    """Numbers in [low, high) whose logarithm is uniform; see `loguniform`."""

    low: float
    high: float

    def ppf(self, u: float) -> float:
        """The value at quantile `u`."""
        low, high = math.log(self.low), math.log(self.high)
        return _within(self, math.exp(low + u * (high - low)))

    def values(self) -> Sequence[float]:
        """Both ends."""
        return self.low, self.high

    def __str__(self) -> str:
        """As it is written."""
        return f"loguniform({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Integers(Distribution):
    """The whole numbers low, low + step … high; see `integers`."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def ppf(self, u: float) -> int:
        """The value at quantile `u`."""
        if self.log:  # the whole number n stands for [n - 1/2, n + 1/2)
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(self.low, math.floor(math.exp(low + u * (high - low)) + 0.5)), self.high)
        return self.low + self.step * min(int(u * self.count), int(self.count) - 1)

    @property
    def count(self) -> float:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def values(self) -> Sequence[int]:
        """All values if there are few, otherwise both ends."""
        if self.count <= 1000:
            return range(self.low, self.high + 1, self.step)
        return self.low, self.high

    def grid(self, points: int) -> list[object]:
        """This many values, equally spaced (in the logarithm, with log=True) and rounded.

        There are fewer if several round to the same whole number.
        """
        if self.count <= points:
            return list(range(self.low, self.high + 1, self.step))
        shares = [0.5] if points == 1 else [i / (points - 1) for i in range(points)]
        if self.log:
            made = [round(self.low * (self.high / self.low) ** share) for share in shares]
        else:
            steps = int(self.count) - 1
            made = [self.low + self.step * round(share * steps) for share in shares]
        return list(dict.fromkeys(made))

    def has(self, value: object) -> bool:
        """Whether the value, which may be a float, is one of the numbers."""
        return (
            isinstance(value, int | float)
            and self.low <= value <= self.high
            and (value - self.low) % self.step == 0
        )

    def __str__(self) -> str:
        """As it is written."""
        options = (", log=True" if self.log else "") + (
            f", step={self.step}" if self.step > 1 else ""
        )
        return f"integers({self.low}, {self.high}{options})"


@dataclass(frozen=True)
class Choice(Distribution):
    """Several values with equal probability; see `choice`."""

    options: tuple[object, ...]

    def ppf(self, u: float) -> object:
        """The value at quantile `u`."""
        return self.options[min(int(u * len(self.options)), len(self.options) - 1)]

    @property
    def count(self) -> float:
        """How many values there are."""
        return len(self.options)

    def values(self) -> Sequence[object]:
        """Each."""
        return self.options

    def grid(self, points: int) -> list[object]:
        """All options, whatever the number of points: they have no order."""
        return list(self.options)

    def has(self, value: object) -> bool:
        """Whether it is one of them."""
        return value in self.options

    def __str__(self) -> str:
        """As it is written."""
        return f"choice([{', '.join(map(text, self.options))}])"


@dataclass(frozen=True, eq=False)
class Scipy(Distribution):
    """A frozen distribution of `scipy.stats`; equal if name, parameters and tables are."""

    distribution: Frozen

    def ppf(self, u: float) -> float:
        """The value at quantile `u`, which is kept at least 2**-32 away from 0 and 1."""
        return float(self.distribution.ppf(min(max(u, EDGE), 1 - EDGE)))

    def has(self, value: object) -> bool:
        """Whether it is one of the values of a discrete distribution."""
        pmf = getattr(self.distribution, "pmf", None)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return bool(number and pmf is not None and pmf(value) > 0)

    @property
    def count(self) -> float:
        """How many values there are."""
        low, high = self.distribution.support()
        return high - low + 1 if self.step else math.inf

    @property
    def step(self) -> int:
        """1 for a discrete distribution."""
        return int(hasattr(self.distribution, "pmf"))

    def values(self) -> Sequence[object]:
        """Both ends, without tails of a probability below 2**-32."""
        return self.ppf(0), self.ppf(1)

    def away(self, value: float, share: float, *, up: bool) -> float:
        """For a discrete distribution, the nearest value at least this share away, or an end."""
        far = max(abs(value) * share * (1 - 1e-6), 1e-9) * (1 if up else -1)
        return self.ppf(self.distribution.cdf(value + far) + (EDGE if up else -EDGE))

    def grid(self, points: int) -> list[object]:
        """The medians of this many equally probable parts: there may be no ends."""
        return [self.ppf((i + 0.5) / points) for i in range(points)]

    def _content(self) -> tuple[object, ...]:
        """Name and parameters, and the tables of one made from values or from a histogram."""
        own = self.distribution
        made = getattr(own, "dist", own)
        tables = [(k, *v.ravel().tolist()) for k, v in vars(made).items() if hasattr(v, "ravel")]
        name = getattr(made, "name", type(own).__name__)
        return name, tuple(own.args), tuple(sorted(own.kwds.items())), tuple(sorted(tables))

    def __eq__(self, other: object) -> bool:
        """Whether the contents are equal."""
        return isinstance(other, Scipy) and self._content() == other._content()

    def __hash__(self) -> int:
        """The hash of the content."""
        return hash(self._content())

    def __repr__(self) -> str:
        """The same in every process: checkpoints identify a search by it."""
        return f"Scipy{self._content()}"

    def __str__(self) -> str:
        """As it is written."""
        name, args, kwds, _ = self._content()
        written = [*map(str, args), *(f"{k}={v}" for k, v in kwds)]  # type: ignore[call-overload, attr-defined]
        return f"scipy.stats.{name}({', '.join(written)})"


@dataclass(frozen=True)
class Conditional(Distribution):
    """A distribution that applies under conditions; see `Distribution.when`."""

    distribution: Distribution
    conditions: Conditions

    def ppf(self, u: float) -> object:
        """The value at quantile `u`, if the conditions hold."""
        return self.distribution.ppf(u)

    @property
    def count(self) -> float:
        """The number of values if the conditions hold."""
        return self.distribution.count

    @property
    def step(self) -> int:
        """Of the distribution."""
        return self.distribution.step

    def values(self) -> Sequence[object]:
        """Of the distribution."""
        return self.distribution.values()

    def grid(self, points: int) -> list[object]:
        """Of the distribution."""
        return self.distribution.grid(points)

    def has(self, value: object) -> bool:
        """Whether the value can be drawn if the conditions hold."""
        return self.distribution.has(value)

    def when(self, **conditions: object) -> "Conditional":
        """The same with further conditions, all of which must hold."""
        more = self.distribution.when(**conditions)
        if twice := dict(self.conditions).keys() & dict(more.conditions).keys():
            raise UserError(f"when({min(twice)}=…) is given twice: give a list of values once")
        return dataclasses.replace(more, conditions=self.conditions + more.conditions)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether the conditions hold for these values."""
        return all(values[name] in wanted for name, wanted in self.conditions)

    def __str__(self) -> str:
        """As it is written."""
        wanted = [f"{n}={'|'.join(map(text, values))}" for n, values in self.conditions]
        return f"{self.distribution} when {', '.join(wanted)}"


def uniform(low: float, high: float) -> Uniform:
    """A number between `low` and `high`, uniformly distributed.

    Args:
        low: the smallest value.
        high: no value lies above.

    Raises:
        UserError: for bounds that are not finite, reversed, or equal in float32.

    >>> uniform(0, 0.5).ppf(0.5)
    0.25
    """
    return Uniform(*_bounds("uniform", low, high))


def loguniform(low: float, high: float) -> LogUniform:
    """A number between `low` and `high` whose logarithm is uniformly distributed.

    Args:
        low: the smallest value, above 0.
        high: no value lies above.

    Raises:
        UserError: as for `uniform`, and for a `low` that is not above 0.

    >>> round(loguniform(1e-4, 1).ppf(0.5), 6)
    0.01
    """
    low, high = _bounds("loguniform", low, high)
    if low <= 0:
        raise UserError(f"loguniform({low:g}, {high:g}): expected low above 0, for its logarithm")
    return LogUniform(low, high)


def integers(low: int, high: int, *, log: bool = False, step: int = 1) -> Integers:
    """One of the whole numbers `low`, `low + step` … `high`, both included, equally probable.

    Args:
        low: the smallest.
        high: the largest; it is included.
        log: give n the probability log((n + ½) / (n - ½)), up to a constant, so that equal factors
            are equally probable.
        step: the distance between neighbours; 1 with `log`.

    Raises:
        UserError: for bounds that are not whole numbers, reversed, equal or (with `log`) below 1,
            and for a range that `step` does not divide.

    >>> [integers(1, 3).ppf(u) for u in (0, 0.34, 0.99)]
    [1, 2, 3]
    """
    written = f"integers({low}, {high})"
    for name, value in (("low", low), ("high", high), ("step", step)):
        if not is_int(value):
            raise UserError(f"{written}: {name}={value!r}: expected a whole number")
    low, high, step = int(low), int(high), int(step)  # also of NumPy's
    if not low < high:
        raise UserError(f"{written}: expected low below high")
    if step < 1 or (high - low) % step:
        raise UserError(f"{written}: step={step}: expected a step that divides {high - low}")
    if not isinstance(log, bool):
        raise UserError(f"{written}: log={log!r}: expected True or False")
    if log and (low < 1 or step != 1):
        raise UserError(f"{written}: with log=True, expected low at least 1 and step=1")
    return Integers(low, high, log, step)


def choice(options: Sequence[object]) -> Choice:
    """One of several values, all equally probable; a plain list of values means the same.

    Args:
        options: the values, of any type that the hyperparameter accepts.

    Raises:
        UserError: for anything but a list of values, and for an empty one.

    >>> choice(["adam", "sgd"]).ppf(0.7)
    'sgd'
    """
    if isinstance(options, str | bytes | Mapping) or not hasattr(options, "__iter__"):
        raise UserError(f"choice({options!r}): expected a list of values")
    made = tuple(tuple(v) if isinstance(v, list) else v for v in map(listed, options))
    if not made:
        raise UserError("choice([]): expected at least one value")
    return Choice(made)


def distribution(values: object) -> Distribution:
    """A `Distribution` of a frozen `scipy.stats` distribution or of a list of values.

    Spaces accept both directly; use this for the methods of a `Distribution`, above all `when`.

    >>> import scipy.stats
    >>> print(distribution(scipy.stats.beta(2, 5)).when(optimizer="sgd"))
    scipy.stats.beta(2, 5) when optimizer=sgd
    """
    if isinstance(values, Distribution):
        return values
    if isinstance(values, Frozen):
        return Scipy(values)
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not hasattr(
        values, "__iter__"
    ):
        raise UserError(
            f"{values!r}: expected a distribution, such as jaxexp.search.uniform(0, 1) or a frozen "
            "one of scipy.stats, or a list of values"
        )
    return choice(list(values))


def _bounds(name: str, low: float, high: float) -> tuple[float, float]:
    for each in (low, high):
        if not is_number(each) or not math.isfinite(each):
            raise UserError(f"{name}({low!r}, {high!r}): expected two finite numbers")
    low, high = float(low), float(high)  # also of NumPy's
    if not low < high:
        raise UserError(f"{name}({low:g}, {high:g}): expected low below high")
    if float32(low) == float32(high):
        raise UserError(
            f"{name}({low!r}, {high!r}): the bounds are the same in float32, in which trials are "
            "trained"
        )
    return low, high


def _within(own: Uniform | LogUniform, value: float) -> float:
    return min(max(value, own.low), own.high)
