"""Errors that a user can mend, and interruption."""


class UserError(Exception):
    """Bad input: the message names the file, row or argument, its value, and what was expected.

    The command line prints the message and exits with status 2, without a traceback.

    >>> raise UserError("train.csv, line 3: lat is 'x', expected a number")
    Traceback (most recent call last):
        ...
    jaxexp.base.errors.UserError: train.csv, line 3: lat is 'x', expected a number
    """


class UnavailableError(UserError):
    """Something that a part of a run needs cannot be had here, weights offline for example.

    The other parts run, the page says what is missing and why, and the exit status is 3.

    >>> issubclass(UnavailableError, UserError)
    True
    """


class InterruptedRunError(BaseException):
    """The run was asked to stop, and has saved what it had.

    Like KeyboardInterrupt it is no `Exception`: code that mends errors must not swallow it.
    """
