"""As in a process that has never compiled anything."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxexp.execution import compiling
from jaxexp.execution.devices import devices


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Without the programs that this process or the user's cache holds, until it ends."""
    devices()  # sets up the user's cache
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as empty:
        try:
            _cache_in(empty)
            yield
        finally:
            _cache_in(before)


def _cache_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()
    compiling._compiled.clear()
    jax.clear_caches()
