"""What functions are traced for: they may be written otherwise for a CPU than for accelerators."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_traced_for: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """While functions are traced for devices of a platform, which may be absent."""
    before = _traced_for.set(platform)
    try:
        yield
    finally:
        _traced_for.reset(before)


def platform() -> str:
    """As JAX names it: of what is being traced for; otherwise that of its default backend."""
    return _traced_for.get() or jax.default_backend()
