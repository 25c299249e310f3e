"""JAX's devices, their memory, and the compilation cache: set up once, before JAX starts."""

import contextlib
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
import psutil
from platformdirs import user_cache_path

from jaxexp.base.errors import UserError

FORCED = "xla_force_host_platform_device_count"  # of XLA_FLAGS: how many devices a CPU has
CACHE_BYTES = 1 << 30  # the least recently used programs leave the cache beyond this


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def devices() -> tuple[jax.Device, ...]:
    """All devices: the accelerators if there are any, otherwise one CPU device per core.

    Compiled programs are kept in the user's cache directory. Choices made by a program or by an
    environment variable (`JAX_NUM_CPU_DEVICES`,
    `XLA_FLAGS=--xla_force_host_platform_device_count=N`, `JAX_COMPILATION_CACHE_DIR`,
    `JAX_ENABLE_COMPILATION_CACHE`) are respected, and so are the devices of a JAX that has already
    started.

    Raises UserError if JAX cannot provide the platform that `JAX_PLATFORMS` asks for.

    >>> len(devices()) >= 1
    True
    """
    forced = FORCED in os.environ.get("XLA_FLAGS", "")
    if not forced and getattr(jax.config, "jax_num_cpu_devices", -1) < 0:  # nobody has chosen
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


def check_compiles() -> None:
    """Refuse to train where JAX compiles nothing: each operation would be one call."""
    if getattr(jax.config, "jax_disable_jit", False):
        raise UserError(
            "JAX_DISABLE_JIT=1 or jax.disable_jit(): expected neither, as trials are trained by "
            "compiled programs"
        )


def chosen(asked: int | Sequence[jax.Device] | None = None) -> tuple[jax.Device, ...]:
    """The devices to use: all, the first so many, or those given.

    Raises UserError for more than there are, or none.
    """
    if asked is None:
        return devices()
    if isinstance(asked, int | np.integer) and not isinstance(asked, bool):
        found = devices()
        if not 1 <= asked <= len(found):
            platform = found[0].platform
            more = " (set JAX_NUM_CPU_DEVICES to have more)" if platform == "cpu" else ""
            raise UserError(
                f"devices={asked}: expected 1 to {len(found)}, the {platform} devices of this "
                f"machine{more}"
            )
        return found[:asked]
    given = tuple(asked) if isinstance(asked, Sequence | np.ndarray) else ()
    if not given or not all(isinstance(device, jax.Device) for device in given):
        raise UserError(f"devices={asked!r}: expected a number, or a list of JAX devices")
    if len(set(given)) < len(given):
        raise UserError(f"devices={asked!r}: one stands there twice, expected devices that differ")
    return given


def host_memory() -> float:
    """Bytes that can be taken on the host."""
    return float(psutil.virtual_memory().available)


def device_memory(devices: Sequence[jax.Device]) -> tuple[float, ...]:
    """Bytes that can be taken on each device; () on a CPU, whose devices share the host's."""
    free = []
    for device in devices if devices[0].platform != "cpu" else ():
        stats = device.memory_stats() or {}
        limit, used = stats.get("bytes_limit", float("inf")), stats.get("bytes_in_use", 0)
        free.append(float(limit - used))
    return tuple(free)
