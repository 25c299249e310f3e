"""Numbers of things and durations in words, and names that were meant."""

import difflib
import math
from collections.abc import Iterable


def count(n: int, one: str, many: str = "") -> str:
    """A number of things.

    >>> count(1, "program"), count(2, "program"), count(2, "class", "classes")
    ('1 program', '2 programs', '2 classes')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def capitalised(text: str) -> str:
    """With a capital first, the rest as it is; unchanged where the first word has capitals inside.

    >>> capitalised("loss of ResNet18 by epoch"), capitalised("mAP by epoch")
    ('Loss of ResNet18 by epoch', 'mAP by epoch')
    """
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.islower() else text


def type_of(value: object) -> str:
    """The name of its type, with an article.

    >>> type_of(3), type_of([])
    ('an int', 'a list')
    """
    name = type(value).__name__
    return f"{'an' if name.lower().startswith(('a', 'e', 'i', 'o', 'nd')) else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question with the near matches of a name, to stand in a message; "" without any.

    >>> did_you_mean("device", ["devices", "memory"])
    'did you mean devices? '
    >>> did_you_mean("node", ["nodes", "mode", "modes"])
    'did you mean nodes, mode or modes? '
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    if not near:
        return ""
    *others, last = near
    before = f"{', '.join(others)} or " if others else ""
    return f"did you mean {before}{last}? "


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(0.3), duration(42), duration(75), duration(3 * 3600 + 60)
    ('1 s', '42 s', '1 min 15 s', '3 h 1 min')
    """
    whole = max(1, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
