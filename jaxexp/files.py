"""Files that are whole or not there, and say so when something has changed them since."""

import hashlib
import types
import typing
from pathlib import Path
from typing import Any

SEAL = b"\nsha256 of all before: "


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sealed(content: bytes) -> bytes:
    """The content with its digest at the end, where HDF5 does not look."""
    return content + SEAL + _digest(content)


def check_sealed(path: Path) -> None:
    """Raise ValueError unless a file is what `sealed` has made, OSError if it cannot be read."""
    content, _, digest = path.read_bytes().rpartition(SEAL)
    if digest != _digest(content):
        raise ValueError("it is not as it was written")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def matches(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: a class, a union, or a dict, list or tuple of some.

    >>> matches({"depth": ["1", "2"]}, dict[str, list[str]]), matches(True, int | None)
    (True, False)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(matches(value, each) for each in inner)
    if origin is dict:
        pairs = isinstance(value, dict) and value.items()
        return pairs is not False and all(
            matches(k, inner[0]) and matches(v, inner[1]) for k, v in pairs
        )
    if origin in (list, tuple):
        return isinstance(value, origin) and all(matches(each, inner[0]) for each in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
