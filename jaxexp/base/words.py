"""Counts and durations in words, and suggestions for misspelt names."""

import difflib
import math
from collections.abc import Iterable


def count(n: int, one: str, many: str = "") -> str:
    """A count with its noun, singular or plural.

    >>> count(1, "program"), count(2, "program"), count(2, "class", "classes")
    ('1 program', '2 programs', '2 classes')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def capitalised(text: str) -> str:
    """Text with an initial capital; unchanged if the first word already contains capitals.

    >>> capitalised("loss of ResNet18 by epoch"), capitalised("mAP by epoch")
    ('Loss of ResNet18 by epoch', 'mAP by epoch')
    """
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.islower() else text


def type_of(value: object) -> str:
    """The name of a value's type, with an article.

    >>> type_of(3), type_of([])
    ('an int', 'a list')
    """
    name = type(value).__name__
    return f"{'an' if name.lower().startswith(('a', 'e', 'i', 'o', 'nd')) else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question for messages that suggests names similar to `name`; "" if there are none.

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
    """Seconds as people say them.

    >>> duration(0.3), duration(42), duration(75), duration(3 * 3600 + 60)
    ('1 s', '42 s', '1 min 15 s', '3 h 1 min')
    """
    whole = max(1, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
