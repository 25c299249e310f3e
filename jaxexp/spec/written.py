"""Values as people write them."""

import enum
import math

import numpy as np

from jaxexp.spec.values import float32, text


def number(value: object, digits: int = 4) -> str:
    """`value` as people write it: 1, 0.001, 1e-5, 106,897; on and off for booleans.

    Fractions are rounded to `digits` significant digits, larger numbers to whole ones. A negative
    number has a minus sign (−); an exponent is written as it is typed (1e-5).
    """
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):  # which may also be a number or text
        return text(value)
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    if isinstance(value, int | np.integer):
        return minus(f"{value:,}" if abs(int(value)) >= 10_000 else str(value))
    if not isinstance(value, float | np.floating):
        return text(value)
    size = abs(float(value))
    if np.isnan(size):
        return "–"
    # Whole digits are kept: with two digits, 603 is written 603, not 6e2.
    if size < 1e7 and (size >= 1_000 or round(size) >= 10**digits):
        return number(round(float(value)))
    mantissa, exponential, exponent = f"{value:.{digits}g}".partition("e")
    return minus(f"{mantissa}e{int(exponent)}" if exponential else mantissa)


def setting(value: object) -> str:
    """The value of a hyperparameter as `number` writes it, or as it was given if that is short.

    A float of up to six digits keeps them (0.99999, not 1); a longer one, such as a random draw, is
    rounded to four.
    """
    if not (isinstance(value, float | np.floating) and is_short(float(value))):
        return number(value)
    given = float(f"{value:.6g}")
    if 1_000 <= abs(given) < 1e6 and not given.is_integer():
        return minus(f"{given:,}" if abs(given) >= 10_000 else str(given))
    return number(given, 6)


def is_short(value: float) -> bool:
    """Whether six significant digits are enough to write `value` exactly in float32."""
    return math.isfinite(value) and float32(float(f"{value:.6g}")) == float32(value)


def minus(digits: str) -> str:
    """`digits` with a leading hyphen as a minus sign (−), or without it if the number is 0."""
    if not digits.startswith("-"):
        return digits
    return f"−{digits[1:]}" if any(digit in digits for digit in "123456789i") else digits[1:]
