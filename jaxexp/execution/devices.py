"""JAX's devices and its compilation cache: set up once, before JAX starts."""

import contextlib
import functools
import os

import jax
from platformdirs import user_cache_path

from jaxexp.base.errors import UserError
from jaxexp.execution.machine import cores

CACHE_BYTES = 1 << 30  # the least recently used programs leave the cache beyond this


@functools.cache
def devices() -> tuple[jax.Device, ...]:
    """All devices: the accelerators where there are any, else one CPU device per core.

    Compiled programs are kept in the user's cache directory. What a program or an environment
    variable (`JAX_NUM_CPU_DEVICES`, `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`)
    has chosen stays as it is, and so do the devices of a JAX that runs already.

    Raises UserError if JAX cannot provide the platform that `JAX_PLATFORMS` asks for.
    """
    if getattr(jax.config, "jax_num_cpu_devices", -1) < 0:  # nobody has chosen
        with contextlib.suppress(RuntimeError):  # JAX runs already
            jax.config.update("jax_num_cpu_devices", cores())
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        cache = user_cache_path("jaxexp") / "programs"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    try:
        return tuple(jax.devices())
    except (RuntimeError, AssertionError) as error:  # the latter for cuda without a GPU
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["no such device"])[0]
        raise UserError(
            f"JAX_PLATFORMS={asked!r}: expected a platform that JAX finds here ({reason})"
        ) from error
