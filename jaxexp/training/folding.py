"""Constant folding: what an operation makes of values that are known."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

Constant: TypeAlias = np.ndarray | np.generic
Maybe: TypeAlias = Constant | None  # None where it is not known


def folded(
    name: str, known: Sequence[Maybe], dtypes: Sequence[np.dtype], plain: Sequence[bool]
) -> Maybe:
    """The result of an operation on values, some of which may not be known; None if it is not.

    Only what NumPy and XLA compute alike in every bit is folded. `dtypes` are those of the values
    and of the result. Values that are `plain` are made of data alone: they are taken to be finite,
    and not 0 where they divide.
    """
    values: list[Maybe] = [
        value if value is None else np.asarray(value).astype(dtype)[()]
        for value, dtype in zip(known, dtypes, strict=False)
    ]
    if name == "select_n":
        return None if values[0] is None else values[1 + int(values[0])]
    if any(value is None for value in values):
        return _absorbed(name, values, plain)
    if name in EXACT and values[0] not in (0, np.inf, -np.inf):
        return None
    if name == "convert_element_type" and dtypes[-1].kind in "iu" and dtypes[0].kind not in "biu":
        return None  # not all floats are whole numbers
    with np.errstate(all="ignore"):
        made = VALUES[name](*values)
    if made is None or made != made:
        return None
    return np.asarray(made).astype(dtypes[-1])[()]


def _absorbed(name: str, values: Sequence[Maybe], plain: Sequence[bool]) -> Maybe:
    """The result, if one value alone decides it, whatever the unknown other one is."""
    for i, value in enumerate(values):
        if value is None:
            continue
        if name in ("and", "or") and value.dtype == bool and value == (name == "or"):
            return value
        if name == "mul" and value == 0 and (plain[1 - i] or value.dtype.kind in "iu"):
            return value
        if value.dtype.kind != "f" or not plain[1 - i]:
            continue
        if name == "div" and i == 0 and value == 0:
            return value
        if name in ("add", "sub") and np.isinf(value):
            return np.negative(value) if name == "sub" and i == 1 else value
    return None


EXACT: dict[str, Callable[..., object]] = {  # at 0 and infinities
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "sqrt": np.sqrt,
    "tanh": np.tanh,
}  # fmt: skip
VALUES: dict[str, Callable[..., object]] = EXACT | {
    "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and,
    "convert_element_type": np.asarray, "copy": lambda a: a,
    "div": lambda a, b: a / b if a == 0 and a.dtype.kind == "f" else None, "eq": np.equal,
    "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
    "max": np.maximum, "min": np.minimum, "mul": np.multiply, "ne": np.not_equal,
    "neg": np.negative, "not": np.invert, "or": np.bitwise_or, "select_n": np.asarray,
    "sign": np.sign, "square": np.square, "stop_gradient": lambda a: a, "sub": np.subtract,
}  # fmt: skip
