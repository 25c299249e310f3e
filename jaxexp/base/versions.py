"""Versions of installed packages."""

import functools
import importlib.metadata


@functools.cache
def version(name: str) -> str:
    """Of an installed package; read once in a process, as that takes milliseconds."""
    return importlib.metadata.version(name)
