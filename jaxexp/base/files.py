"""Files that are written whole or not at all, and that reveal later changes."""

import contextlib
import hashlib
import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SEAL = b"\nsha256 of all before: "


def digest(*parts: str | bytes) -> str:
    """Sixteen hexadecimal digits that identify contents: the start of their SHA-256.

    >>> digest("a", b"b") == digest("a", "b") != digest("ab")
    True
    """
    content = b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def whole_file(path: Path, *, seal: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which appears at the end of the `with` block, or not at all.

    With `seal`, a digest is added at the end, where HDF5 and zip ignore it.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w+b") as file:
            yield file
            if seal:
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                file.write(SEAL + sha256.encode())
        with contextlib.suppress(FileNotFoundError):  # a file that is there keeps its permissions
            shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, content: bytes | memoryview, *, seal: bool = False) -> None:
    """Write a file whole or not at all; raises OSError if it cannot be written."""
    with whole_file(path, seal=seal) as file:
        file.write(content)


def read_sealed(path: Path) -> bytes:
    """The content of a sealed file, without the seal.

    Raises ValueError if the file has changed since, and OSError if it cannot be read.
    """
    content, _, sha256 = path.read_bytes().rpartition(SEAL)
    if sha256 != hashlib.sha256(content).hexdigest().encode():
        raise ValueError("it is not as it was written")
    return content


def matches(value: object, hint: type | types.UnionType) -> bool:
    """Whether a value is of a type: a class, a union, or a dict, list or tuple of such types.

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
    if hint is float and isinstance(value, int):
        return abs(value) < 2**63  # larger ones are refused
    return isinstance(value, hint)
