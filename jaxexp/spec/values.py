"""The types of values that hyperparameters can have, and their conversion from and to text."""

import enum
import math
import re
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsInt, TypeAlias

from jaxexp.base.errors import UserError

# A hyperparameter's value, and its annotation, which is not always a class.
Value: TypeAlias = bool | int | float | str | enum.Enum | tuple["Value", ...] | None
Hint: TypeAlias = object


class Written(str):
    """Text from a command line, which is kept as text only if it can be nothing else."""


def text(value: object) -> str:
    """The value of a hyperparameter as text: a tuple of widths as "64-32-16"."""
    if isinstance(value, enum.Enum):
        return value.name or str(value.value)  # an empty flag has no name
    return "-".join(map(text, value)) if isinstance(value, tuple) and value else str(value)


def stored(value: Value) -> bool | int | float | str:
    """A value as JSON and netCDF store it: plain numbers and text as they are, others as text."""
    return value if type(value) in (bool, int, float, str) else text(value)  # type: ignore[return-value]


def check_texts(found: dict[tuple[str, str], Value], values: Mapping[str, Value]) -> None:
    """Raise UserError for a value that differs from one found before but has the same text.

    Results tell values apart by their text, so both would be one setting. Accepted values are
    added to `found`.
    """
    for name, value in values.items():
        before = found.setdefault((name, text(value)), value)
        if before != value:
            raise UserError(
                f"{name}: {before!r} and {value!r} are both written {text(value)!r}, by which "
                "results tell values apart; expected values that are written differently"
            )


def plain(value: Value) -> object:
    """A value as it is represented in JSON."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def float32(value: float) -> float:
    """A value rounded to float32; one beyond its range, refused elsewhere, stays as it is."""
    try:
        number: float = struct.unpack("f", struct.pack("f", value))[0]
        return number
    except OverflowError:
        return value


def short(value: float) -> float:
    """The number with the fewest digits that is the same in float32.

    >>> short(0.8467394709590972)
    0.8467395
    """
    value = float32(value)
    written = (float(f"{value:.{digits}g}") for digits in range(1, 10))  # nine are always enough
    return next((number for number in written if float32(number) == value), value)


def convert(hint: Hint, value: object) -> Value:
    """A value, or its text, converted to the type of an annotation.

    Raises ValueError, TypeError, OverflowError or KeyError if it cannot be converted.
    """
    if isinstance(value, str) and not isinstance(value, Written | enum.Enum):
        value = str(value)  # NumPy's strings are not exactly `str`
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _to_one_of(typing.get_args(hint), value)
    if origin is typing.Literal:
        options: tuple[Value, ...] = typing.get_args(hint)
        named = {str(option): option for option in options}
        named |= {text(option): option for option in options}
        if None in options and text(value) not in named:
            return convert(type(None), value)
        return named[text(value)]
    if origin is tuple:
        return _to_tuple(typing.get_args(hint), value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value if isinstance(value, hint) else _to_enum(hint, value)
    return _CONVERTERS[hint](value)


def _to_one_of(options: Sequence[Hint], value: object) -> Value:
    exact = [t for t in options if _is_exact(t, value)]
    for option in (*exact, *sorted(options, key=_breadth)):
        try:
            return convert(option, value)
        except (ValueError, TypeError, OverflowError, KeyError):
            continue
    raise ValueError


def _breadth(hint: Hint) -> tuple[bool, bool]:
    """A sort key: text is tried as one value, then as a tuple, and last as plain text."""
    return str in _leaf_types(hint), typing.get_origin(hint) is tuple


def _is_exact(hint: Hint, value: object) -> bool:
    """Whether a value is exactly of this type; text from a command line never is."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return any(type(own) is type(value) and own == value for own in typing.get_args(hint))
    return type(value) is (origin or hint)


def _to_tuple(hints: Sequence[Hint], value: object) -> tuple[Value, ...]:
    if isinstance(value, str):
        if value != "()" and _hold_tuples(hints):
            raise ValueError
        value = parts(value) if value != "()" else ()
    value = listed(value)
    if not isinstance(value, tuple | list):
        raise ValueError
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = [hints[0]] * len(value)
    return tuple(convert(hint, each) for hint, each in zip(hints, value, strict=True))


def _hold_tuples(hints: Sequence[Hint]) -> bool:
    """Whether a tuple of these types holds tuples: its text does not say which parts are theirs."""
    inner = [t for hint in hints for t in (hint, *typing.get_args(hint))]
    return any(typing.get_origin(t) is tuple for t in inner)


def parts(written: str) -> list[str]:
    """The parts of a tuple's text.

    >>> parts("64-32"), parts("-0.5--1e-05")
    (['64', '32'], ['-0.5', '-1e-05'])
    """
    found = re.split(r"(?<=[^-])-(?<![\d.][eE]-(?=\d))", written)  # but not at signs
    return list(map(Written if isinstance(written, Written) else str, found))


def listed(value: object) -> object:
    """A NumPy or JAX array as a list; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "ndim") else value


def _to_enum(hint: type[enum.Enum], value: object) -> enum.Enum:
    return hint[value] if isinstance(value, str) and value in hint.__members__ else hint(value)


def _is_other_text(value: object) -> bool:
    """Whether it is text that Python reads as a number, but nobody writes that way: "1_0"."""
    return isinstance(value, str) and ("_" in value or not value.isascii())


def to_float(value: SupportsFloat | str) -> float:
    """`value` as a finite number; raises ValueError if it is not one."""
    if isinstance(value, bool) or _is_other_text(value):
        raise ValueError
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number + 0.0  # makes -0.0, which equals 0.0 but is not the same, 0.0


def _to_int(value: SupportsInt | str) -> int:
    if isinstance(value, bool) or _is_other_text(value):
        raise ValueError
    if not isinstance(value, str) and value != int(value):
        raise ValueError
    return int(value)


def _to_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return str(value)


def _to_none(value: object) -> None:
    if value is not None and str(value).lower() != "none":
        raise ValueError


_BOOLEANS = {"true": True, "on": True, "yes": True, "1": True} | {
    "false": False, "off": False, "no": False, "0": False,
}  # fmt: skip
_CONVERTERS: dict[Hint, Callable[[Any], Value]] = {  # each refuses what it cannot convert
    float: to_float,
    int: _to_int,
    bool: lambda value: _BOOLEANS[str(value).lower()],
    str: _to_text,
    type(None): _to_none,
}
_IN_WORDS: dict[Hint, str] = {
    float: "a finite number",
    int: "a whole number",
    bool: "on or off",
    str: "text",
    type(None): "none",
    tuple[int, ...]: "whole numbers as in 64-32-16",
}


def expected(hint: Hint) -> str:
    """What an annotation stands for, in words."""
    origin = typing.get_origin(hint)
    if hint in _IN_WORDS:
        return _IN_WORDS[hint]
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(expected, typing.get_args(hint)))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(hint.__members__)}"
    if origin is tuple and _hold_tuples(typing.get_args(hint)):
        return f"{name_of(hint)}, in Python: text does not say which parts belong together"
    return name_of(hint)


def name_of(hint: Hint) -> str:
    """An annotation as it is written in code."""
    return hint.__name__ if isinstance(hint, type) else str(hint)


def check_hint(where: str, hint: Hint) -> None:
    """Raise UserError for an annotation that no hyperparameter can have; `where` names it."""
    _check_unlike(where, hint)
    unknown = [t for t in _leaf_types(hint) if not _supported(t)]
    if unknown:
        wanted = "int, float, bool, str, None, an Enum, a Literal, or a tuple or union of them"
        if unknown[0] is tuple:
            wanted = "the type of what it holds as well, as in tuple[int, ...]"
        raise UserError(
            f"{where}: a hyperparameter of type {name_of(unknown[0])} is not supported; expected "
            f"{wanted}"
        )


def _check_unlike(where: str, hint: Hint) -> None:
    """Refuse types with values that differ but compare equal: 1, 1.0 and True."""
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    different = min(len(set(options)), len(set(map(str, options))))
    if origin is typing.Literal and different < len(options):
        raise UserError(f"{where}: options of a Literal that are equal, or written alike")
    numbers = [t for t in options if t in (int, float, bool)]
    if origin in (types.UnionType, typing.Union) and len(numbers) > 1:
        names = " and ".join(map(name_of, numbers))
        raise UserError(
            f"{where}: of {names}, some values are equal (1 == 1.0 == True), expected one of them"
        )
    for each in options if origin is not typing.Literal else ():
        _check_unlike(where, each)


def _leaf_types(hint: Hint) -> list[Hint]:
    """The types that an annotation is made of."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union, tuple):
        inner = [t for t in typing.get_args(hint) if t is not Ellipsis]
        return [leaf for t in inner for leaf in _leaf_types(t)]
    return [hint]


def _supported(hint: Hint) -> bool:
    if typing.get_origin(hint) is typing.Literal or hint in (int, float, bool, str, type(None)):
        return True
    return isinstance(hint, type) and issubclass(hint, enum.Enum)
