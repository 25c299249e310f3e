"""Numbers, names and counts as a person writes them."""

import math

import numpy as np

from jaxexp.spec.written import minus, number


def decimals(value: float, digits: int = 4) -> str:
    """`value` to a fixed number of decimals: "0.5000".

    Numbers far below 1, and from 1,000, are written as `number` writes them.
    """
    if value == 0 or 10.0 ** (1 - digits) <= abs(value) < 1_000:
        return minus(f"{value:.{digits}f}")
    return number(float(value), digits)


def within(value: float, span: float, digits: int = 0) -> str:
    """`value` with enough digits to show its place in a range as wide as `span`.

    Rounding moves it by at most a fortieth of the range. `digits` is the least number of decimals,
    as in `decimals`; without it, trailing zeros are dropped.
    """
    size = abs(float(value))
    if not (math.isfinite(size) and 0 < span < math.inf):
        return decimals(value, digits or 4)
    needed = math.ceil(-math.log10(span / 20))
    places = max(needed, 0, digits if size < 1_000 else 0)
    significant = math.floor(math.log10(size or 1)) + 1 + needed
    if size >= 1e7:
        mantissa, _, exponent = f"{value:.{max(significant - 1, 0)}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return minus(f"{mantissa}e{int(exponent)}")
    hidden = places > 6 or (digits > 0 and size < 10.0 ** (1 - places))
    if 0 < size < 1_000 and hidden:
        return number(float(value), max(significant, digits, 1))
    shown = f"{value:,.{places}f}" if size >= 10_000 else f"{value:.{places}f}"
    return minus(shown if digits or "." not in shown else shown.rstrip("0").rstrip("."))


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: "+0.012", "−0.004"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def count(n: int, noun: str) -> str:
    """A number of things: "1 program", "12 programs"."""
    return f"{number(int(n))} {noun}{'' if n == 1 else 's'}"


def all_of(n: int, noun: str) -> str:
    """All of a number of things: "both trials", "all 12 trials"."""
    return f"both {noun}s" if n == 2 else f"all {count(n, noun)}"


def mean_over(seeds: str) -> str:
    """What explains numbers with a "±": " (mean ± standard deviation over 6 seeds)"."""
    return f" (mean ± standard deviation over {seeds})"


def words(name: str) -> str:
    """The name of a hyperparameter, metric or sweep as it stands in a sentence.

    A name that is not a Python identifier is prose already: "a$x_1$".
    """
    return name.replace("_", " ") if name.isidentifier() else name


def metric_words(metric: str, split: str) -> str:
    """A metric of a split as it stands in a sentence: "validation loss", "training r2"."""
    return f"{'training' if split == 'train' else split} {words(metric)}"


def plus_minus(value: float, std: object = None, digits: int = 4) -> str:
    """A value and its standard deviation: "0.9130 ± 0.0040"; the value alone without one."""
    width = float("nan") if std is None else float(std)  # type: ignore[arg-type]
    if not np.isfinite(width):
        return decimals(value, digits)
    # With as many decimals as the value, unless that would hide it.
    alike = (width == 0 or width >= 0.5 * 10.0**-digits) and abs(value) < 1_000
    shown = f"{width:.{digits}f}" if alike else number(width, 2)
    return f"{decimals(value, digits)} ± {shown}"
