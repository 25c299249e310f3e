"""Errors that users can fix, interruptions, and errors of users' own code in one line."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


class UserError(Exception):
    """Bad input: the message names the file, row or argument, its value, and what was expected.

    The command line prints the message and exits with status 2, without a traceback.

    >>> raise UserError("train.csv, line 3: lat is 'x', expected a number")
    Traceback (most recent call last):
        ...
    jaxexp.base.errors.UserError: train.csv, line 3: lat is 'x', expected a number
    """


class UnavailableError(UserError):
    """Something that a part of a run needs is unavailable here, such as weights while offline.

    The other parts run, the page says what is missing and why, and the exit status is 3.

    >>> issubclass(UnavailableError, UserError)
    True
    """


class InterruptedRunError(BaseException):
    """The run was asked to stop, and has saved what it had.

    Like KeyboardInterrupt it is not an `Exception`: code that handles errors must not swallow it.
    """


def in_one_line(error: Exception, function: Callable[..., object] | None = None) -> str:
    """An error from a user's function in one line, with the file and line of the user's code.

    >>> in_one_line(ZeroDivisionError("division by zero"), print)
    'ZeroDivisionError: division by zero'
    """
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    message = " ".join(message.split()).removesuffix(":")
    frames = traceback.extract_tb(error.__traceback__)
    home = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [f for f in frames if f.filename == home] or [f for f in frames if _is_own(f.filename)]
    if not own:
        return message
    return f"{message} ({Path(own[-1].filename).name}, line {own[-1].lineno})"


def _is_own(filename: str) -> bool:
    """Whether a file belongs neither to this package nor to Python or its installed libraries."""
    return not any(Path(filename).is_relative_to(p) for p in (PACKAGE, sys.prefix, sys.base_prefix))
