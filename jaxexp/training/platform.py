"""The platform that functions are traced for: they may differ between CPUs and accelerators."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_traced_for: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """A context for tracing functions for the devices of a platform, which may be absent."""
    before = _traced_for.set(platform)
    try:
        yield
    finally:
        _traced_for.reset(before)


def platform() -> str:
    """JAX's name of the platform that is being traced for, or else of its default backend."""
    return _traced_for.get() or jax.default_backend()
