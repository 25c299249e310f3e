"""Versions of installed packages."""

import functools
import importlib.metadata


@functools.cache
def version(name: str) -> str:
    """The version of an installed package; cached, as reading it takes milliseconds."""
    return importlib.metadata.version(name)
