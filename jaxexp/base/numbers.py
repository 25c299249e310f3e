"""What counts as a number: Python's and NumPy's numbers, but not bools."""

import sys
from typing import TypeGuard

import numpy as np

from jaxexp.base.errors import UserError


def is_int(value: object) -> "TypeGuard[int | np.integer]":
    """Whether it is a whole number; bools are not.

    >>> is_int(np.int64(3)), is_int(3.0), is_int(True)
    (True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> "TypeGuard[float | np.number]":
    """Whether it is a number; bools, and whole numbers too large for a float, are not.

    >>> is_number(np.float32(0.5)), is_number(3), is_number("3"), is_number(10**400)
    (True, True, False, False)
    """
    if is_int(value):
        return abs(int(value)) <= sys.float_info.max
    return isinstance(value, (float, np.floating))


def checked_int(name: str, value: object, least: int = 1) -> int:
    """A Python int; raises UserError, naming the argument, unless it is an int of at least `least`.

    >>> checked_int("trials", np.int64(3))
    3
    """
    if not is_int(value) or value < least:
        raise UserError(f"{name}={value!r}: expected a whole number, at least {least}")
    return int(value)
