"""How a command ends: what it says, and its exit status."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console

from jaxexp.base.errors import UnavailableError, UserError

console = Console(stderr=True, highlight=False, markup=False)  # names of files may hold [ ]


def _open_streams() -> None:
    """What is written to a stream that was closed (`>&-`), which nobody wants to see, is dropped.

    Python has None in its place, and no file that is opened later must get its number.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _flushed(command: Callable[[], object]) -> None:
    """Run a command, and write all that it has printed."""
    try:
        command()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _is_full() -> bool:
    """Whether it is standard output that cannot be written, not even an empty line."""
    try:
        print(flush=True)  # what has failed may have left the buffer
    except OSError:
        return True
    return False


def say_error(error: str) -> None:
    """On the error output."""
    console.print(f"error: {error}", style="red", soft_wrap=True)


def _leave(reason: str = "") -> NoReturn:
    """Exit where standard output cannot be written, so that Python does not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if reason:
        say_error(f"standard output cannot be written ({reason})")
    sys.exit(1)


def guarded(command: Callable[[], object]) -> NoReturn:
    """Run a command and exit, without a traceback for what users can mend."""
    _open_streams()
    try:
        _flushed(command)
    except UserError as error:
        say_error(str(error))
        sys.exit(3 if isinstance(error, UnavailableError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        _leave()
    except OSError as error:
        if not _is_full():
            raise
        _leave(error.strerror or str(error))
    except UnicodeEncodeError as error:
        if error.encoding != sys.stdout.encoding:
            raise
        lacking = error.object[error.start : error.end].encode("ascii", "backslashreplace").decode()
        _leave(f"{error.encoding} lacks {lacking}; PYTHONIOENCODING=utf-8 has it")
    sys.exit(0)
