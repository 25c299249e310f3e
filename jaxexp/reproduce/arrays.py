"""Arrays on disk that are made once and mapped afterwards: a cache of limited size."""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from jaxexp.base.errors import UserError

CACHE_BYTES = 10 << 30  # the least recently used arrays leave the cache beyond this
_ROWS = 64  # whose bytes have a digest of their own

Note = dict[str, Any]
Write = Callable[[BinaryIO], tuple[int, Note]]


class ArrayCache:
    """Arrays of rows of uint8, each a .npy file beside a .json file with a note on it.

    An array is there wholly or not at all: what is cut off or damaged is made again, and of two
    processes that want the same one makes it. Deleting the folder is always safe.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        self.folder = folder

    def get(self, key: str, shape: tuple[int, ...], write: Write) -> tuple[np.ndarray, Note, bytes]:
        """The array that `key` names, mapped from disk, its note and its digest.

        Args:
            key: a name that is new wherever the array would be.
            shape: of the array, the number of rows first: `write` may leave some out.
            write: writes the rows to a file that is open, and returns their number and the note.

        Raises:
            UserError: the folder cannot be written, or has no room.
        """
        if found := self._load(key, shape):
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                if found := self._load(key, shape):  # made by another process meanwhile
                    return found
                self._tidy(needed=math.prod(shape))
                return self._make(key, shape, write)
        except OSError as error:
            raise UserError(
                f"{self.folder}: the cache for images cannot be written "
                f"({error.strerror or error}), expected a folder with room for them"
            ) from error

    def _load(self, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, Note, bytes] | None:
        path = self.folder / f"{key}.npy"
        try:
            saved = json.loads(path.with_suffix(".json").read_bytes())
            rows = np.load(path, mmap_mode="r")
            if (rows.dtype, rows.shape) != (np.uint8, (saved["rows"], *shape[1:])):
                return None
            sha256 = digest(rows)
            if saved["sha256"] != _seal(sha256, saved["note"]):
                return None
            os.utime(path)  # used just now
            return rows, saved["note"], sha256
        except Exception:  # not there, or damaged in any way: it is made again
            return None

    def _make(
        self, key: str, shape: tuple[int, ...], write: Write
    ) -> tuple[np.ndarray, Note, bytes]:
        partial, path = self.folder / f"{key}.partial", self.folder / f"{key}.npy"
        try:
            with partial.open("w+b") as file:
                _write_header(file, shape)
                n_rows, note = write(file)
                file.seek(0)
                _write_header(file, (n_rows, *shape[1:]))  # as long as the first: numpy leaves room
            sha256 = digest(np.load(partial, mmap_mode="r"))
            saved = {"rows": n_rows, "sha256": _seal(sha256, note), "note": note}
            path.with_suffix(".json").write_text(json.dumps(saved))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r"), note, sha256

    def _tidy(self, needed: int) -> None:
        """Make room; under the lock, so that half an array is one that nobody is making."""
        for left in self.folder.glob("*.partial"):
            left.unlink()
        files = sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        total = needed + sum(path.stat().st_size for path in files)
        for path in files:
            if total <= CACHE_BYTES:
                break
            total -= path.stat().st_size
            with contextlib.suppress(OSError):  # Windows keeps what somebody has mapped
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free")


def digest(rows: np.ndarray) -> bytes:
    """SHA-256 over the digests of every 64 rows, which all cores share."""

    def one(start: int) -> bytes:
        return hashlib.sha256(rows[start : start + _ROWS].data).digest()

    with ThreadPoolExecutor() as pool:
        parts: Iterable[bytes] = pool.map(one, range(0, len(rows), _ROWS))
        return hashlib.sha256(b"".join(parts)).digest()


def _seal(sha256: bytes, note: Note) -> str:
    """Of the rows and the note together."""
    return hashlib.sha256(sha256 + json.dumps(note).encode()).hexdigest()


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
