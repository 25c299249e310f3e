"""What a hyperparameter can be: its types, text turned into values of them, and back."""

import enum
import math
import re
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsInt, TypeAlias

from jaxexp.base.errors import UserError

# What a hyperparameter can be, and its annotation, of which not every one is a class.
Value: TypeAlias = bool | int | float | str | enum.Enum | tuple["Value", ...] | None
Hint: TypeAlias = object


class Written(str):
    """What stands on a command line, where text is only what can be nothing else."""


def text(value: object) -> str:
    """The value of a hyperparameter as it is written: a tuple of widths as "64-32-16"."""
    if isinstance(value, enum.Enum):
        return value.name or str(value.value)  # a flag of nothing has no name
    return "-".join(map(text, value)) if isinstance(value, tuple) and value else str(value)


def stored(value: Value) -> bool | int | float | str:
    """As JSON and netCDF store it: what is no bare number or text, as it is written."""
    return value if type(value) in (bool, int, float, str) else text(value)  # type: ignore[return-value]


def check_texts(found: dict[tuple[str, str], Value], values: Mapping[str, Value]) -> None:
    """Raise UserError for a value that differs from one found before, and is written alike.

    Results hold values as they are written, so that both would be one setting. Those that are
    accepted are `found` from then on.
    """
    for name, value in values.items():
        before = found.setdefault((name, text(value)), value)
        if before != value:
            raise UserError(
                f"{name}: {before!r} and {value!r} are both written {text(value)!r}, by which "
                "results tell values apart; expected values that are written differently"
            )


def plain(value: Value) -> object:
    """A value as JSON has it."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def float32(value: float) -> float:
    """As float32 has it; what is beyond it is refused elsewhere."""
    try:
        number: float = struct.unpack("f", struct.pack("f", value))[0]
        return number
    except OverflowError:
        return value


def short(value: float) -> float:
    """The number of the fewest digits that is the same in float32.

    >>> short(0.8467394709590972)
    0.8467395
    """
    value = float32(value)
    written = (float(f"{value:.{digits}g}") for digits in range(1, 10))  # nine are always enough
    return next((number for number in written if float32(number) == value), value)


def convert(hint: Hint, value: object) -> Value:
    """A value, or the text of one, as the type of an annotation.

    Raises ValueError, TypeError, OverflowError or KeyError for what is none.
    """
    if isinstance(value, str) and not isinstance(value, Written | enum.Enum):
        value = str(value)  # NumPy's is none of `str` exactly
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
    """Text is tried as one value before a tuple, and last as what any text can be."""
    return str in _leaf_types(hint), typing.get_origin(hint) is tuple


def _is_exact(hint: Hint, value: object) -> bool:
    """Whether a value is one of this type as it is; of what is typed, none is."""
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
    """Whether a tuple of these types holds others: its text does not say which parts are theirs."""
    inner = [t for hint in hints for t in (hint, *typing.get_args(hint))]
    return any(typing.get_origin(t) is tuple for t in inner)


def parts(written: str) -> list[str]:
    """Those of the text of a tuple.

    >>> parts("64-32"), parts("-0.5--1e-05")
    (['64', '32'], ['-0.5', '-1e-05'])
    """
    found = re.split(r"(?<=[^-])-(?<![\d.][eE]-(?=\d))", written)  # no sign, nor an exponent's
    return list(map(Written if isinstance(written, Written) else str, found))


def listed(value: object) -> object:
    """An array, NumPy's or JAX's, as a list; what is none as it is."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "ndim") else value


def _to_enum(hint: type[enum.Enum], value: object) -> enum.Enum:
    return hint[value] if isinstance(value, str) and value in hint.__members__ else hint(value)


def _is_other_text(value: object) -> bool:
    """Whether it is text that Python reads as a number, and nobody writes so: "1_0"."""
    return isinstance(value, str) and ("_" in value or not value.isascii())


def to_float(value: SupportsFloat | str) -> float:
    """A finite number; raises ValueError for what is none."""
    if isinstance(value, bool) or _is_other_text(value):
        raise ValueError
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number + 0.0  # -0.0 equals 0.0, and is not the same


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
_CONVERTERS: dict[Hint, Callable[[Any], Value]] = {  # what each does not take, it refuses
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
    """An annotation as it is written."""
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
    """Refuse types with values that differ and are equal: 1, 1.0 and True."""
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
