"""The one kind of error that a user can mend."""


class UserError(Exception):
    """Bad input: the message names the file, row or argument, its value, and what was expected.

    The command line prints the message and exits with status 2, without a traceback.
    """
