"""Numbers of things in words, and names that were meant."""

import difflib
from collections.abc import Iterable


def count(n: int, one: str, many: str = "") -> str:
    """A number of things.

    >>> count(1, "program"), count(2, "program"), count(2, "class", "classes")
    ('1 program', '2 programs', '2 classes')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question with the near matches of a name, to stand in a message; "" without any.

    >>> did_you_mean("device", ["devices", "memory"])
    'did you mean devices? '
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}? " if near else ""
