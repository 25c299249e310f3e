"""Folders that only one process uses at a time."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from jaxexp.base.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows, whose locks are different
    fcntl = None  # type: ignore[assignment]

LOCK, HOLDER = ".lock", ".holder"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and lock it; the lock ends with the block, or with the process.

    Raises UserError if it is in use, and OSError if it cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with held(folder):
    ...     print(is_held(folder))
    True
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise in_use(folder) from None
    try:
        (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def in_use(folder: Path) -> UserError:
    """The error for a folder in use: by whom, and what to do if its lock may outlive them."""
    remedy = f"; if it has ended, delete {folder / LOCK}" if _outlives(folder / LOCK) else ""
    return UserError(f"{folder}: in use by {holder(folder)}{remedy}")


def _outlives(lock: Path) -> bool:
    """Whether a lock is just a file, left behind because the file system supports no locks."""
    if fcntl is None:
        return False
    try:
        with lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.ENOSYS
    return False


def holder(folder: Path) -> str:
    """Who holds a folder, in words."""
    try:
        return (folder / HOLDER).read_text(errors="replace")
    except OSError:
        return "another process"


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder; nothing is written if nobody uses it."""
    if not (folder / HOLDER).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True
