"""A folder that one process uses at a time."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from jaxexp.base.errors import UserError

LOCK, HOLDER = ".lock", ".holder"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and hold it; the lock goes with the process that holds it.

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
        raise UserError(f"{folder}: in use by {holder(folder)}") from None
    try:
        (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> str:
    """Who holds a folder, in words."""
    try:
        return (folder / HOLDER).read_text(errors="replace")
    except OSError:
        return "another process"


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder; looking at one that nobody uses writes nothing."""
    if not (folder / HOLDER).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True
