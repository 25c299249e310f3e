"""Numbers of things in words."""


def count(n: int, one: str, many: str = "") -> str:
    """A number of things.

    >>> count(1, "program"), count(2, "program"), count(2, "class", "classes")
    ('1 program', '2 programs', '2 classes')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"
