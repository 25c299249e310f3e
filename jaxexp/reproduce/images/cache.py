"""A cache of arrays on disk, of limited size: computed once, memory-mapped afterwards."""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

import jaxexp as jx

CACHE_BYTES = 10 << 30  # beyond this, the least recently used arrays are deleted
_ROWS = 64  # hashed together by one thread

Note = dict[str, str]
Write = Callable[[BinaryIO], tuple[int, Note]]


class ArrayCache:
    """Arrays of uint8 rows, each in a .npy file, with a note in a .json file beside it.

    An array exists complete or not at all: a truncated or damaged one is computed again. If two
    processes want the same array, only one computes it. Deleting the folder is always safe.
    """

    def __init__(self, folder: Path) -> None:
        """Store the path; nothing is read or written yet."""
        self.folder = folder

    def get(self, key: str, shape: tuple[int, ...], write: Write) -> tuple[np.ndarray, Note, bytes]:
        """The array named `key`, memory-mapped, its note, and the SHA-256 of its rows.

        Args:
            key: a name that differs for different arrays.
            shape: of the array, the number of rows first; `write` may leave some rows out.
            write: writes the rows to an open file, and returns their number and the note.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        if found := self._load(key, shape):
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                if found := self._load(key, shape):  # another process was faster
                    return found
                self._tidy(needed=math.prod(shape))
                return self._make(key, shape, write)
        except OSError as error:
            raise jx.UserError(
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
            sha256 = _sha256(rows)
            if saved["digest"] != jx.digest(sha256, json.dumps(saved["note"])):
                return None
            os.utime(path)  # now the most recently used
            return rows, saved["note"], sha256
        except Exception:  # missing, or damaged in any way: it is computed again
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
                _write_header(file, (n_rows, *shape[1:]))  # NumPy pads both to one length
            sha256 = _sha256(np.load(partial, mmap_mode="r"))
            content = jx.digest(sha256, json.dumps(note))
            saved = {"rows": n_rows, "digest": content, "note": note}
            path.with_suffix(".json").write_text(json.dumps(saved))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r"), note, sha256

    def _tidy(self, needed: int) -> None:
        """Make room. The lock is held: a partial file is one that no process is writing."""
        for left in self.folder.glob("*.partial"):
            left.unlink()
        files = sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        total = needed + sum(path.stat().st_size for path in files)
        for path in files:
            if total <= CACHE_BYTES:
                break
            total -= path.stat().st_size
            with contextlib.suppress(OSError):  # Windows cannot delete mapped files
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _sha256(rows: np.ndarray) -> bytes:
    """SHA-256 of the SHA-256 of every 64 rows, computed on all cores."""

    def one(start: int) -> bytes:
        return hashlib.sha256(rows[start : start + _ROWS].data).digest()

    with ThreadPoolExecutor() as pool:
        parts: Iterable[bytes] = pool.map(one, range(0, len(rows), _ROWS))
        return hashlib.sha256(b"".join(parts)).digest()


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
