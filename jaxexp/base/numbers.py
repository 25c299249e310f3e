"""What counts as a number: Python's and NumPy's, and no bool."""

import sys
from typing import TypeGuard

import numpy as np

from jaxexp.base.errors import UserError


def is_int(value: object) -> "TypeGuard[int | np.integer]":
    """Whether it is a whole number, which a bool is not.

    >>> is_int(np.int64(3)), is_int(3.0), is_int(True)
    (True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> "TypeGuard[float | np.number]":
    """Whether it is a number, which a bool is not, nor a whole one beyond every float.

    >>> is_number(np.float32(0.5)), is_number(3), is_number("3"), is_number(10**400)
    (True, True, False, False)
    """
    if is_int(value):
        return abs(int(value)) <= sys.float_info.max
    return isinstance(value, (float, np.floating))


def checked_int(name: str, value: object, least: int = 1) -> int:
    """A whole number as Python's; UserError, which names the argument, for what is none.

    >>> checked_int("trials", np.int64(3))
    3
    """
    if not is_int(value) or value < least:
        raise UserError(f"{name}={value!r}: expected a whole number, at least {least}")
    return int(value)
