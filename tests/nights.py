"""Which cases of a test are its long form."""

from collections.abc import Iterable

import pytest


def at_night(names: Iterable[str], *long: str) -> list:
    """All of the names, of which those after them are tested by night alone."""
    names = list(names)
    assert {*long} <= {*names}
    return [pytest.param(n, marks=[pytest.mark.nightly] * (n in long), id=n) for n in names]
