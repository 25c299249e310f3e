"""JAX's devices and its compilation cache: set up once, before JAX starts."""

import contextlib
import functools
import os

import jax
import psutil
from platformdirs import user_cache_path

CACHE_BYTES = 1 << 30  # the least recently used programs leave the cache beyond this


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> float:
    """Bytes that can be taken: where results are gathered, and on the smallest device."""
    free = float(psutil.virtual_memory().available)
    for device in devices():
        stats = device.memory_stats() or {}  # a CPU device has none of its own
        if "bytes_limit" in stats:
            free = min(free, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free


@functools.cache
def devices() -> tuple[jax.Device, ...]:
    """All devices: the accelerators where there are any, else one CPU device per core.

    Compiled programs are kept in the user's cache directory. What a program or an environment
    variable (`JAX_NUM_CPU_DEVICES`, `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`)
    has chosen stays as it is, and so do the devices of a JAX that runs already.
    """
    if getattr(jax.config, "jax_num_cpu_devices", -1) < 0:  # nobody has chosen
        with contextlib.suppress(RuntimeError):  # JAX runs already
            jax.config.update("jax_num_cpu_devices", cores())
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        cache = user_cache_path("jaxexp") / "programs"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return tuple(jax.devices())
