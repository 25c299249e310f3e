"""Planning on this machine: how many devices it has, and how much memory, before JAX starts."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence

import psutil

from jaxexp.base.errors import UserError
from jaxexp.planning.plan import Plan, check, plan
from jaxexp.spec.sweep import Sweep


def plan_here(
    sweeps: Sequence[Sweep],
    examples: int,
    *,
    programs: str = "auto",
    memory: float | None = None,
    devices: int | None = None,
) -> Plan:
    """One plan for several sweeps over so many training examples, on this machine.

    See `jaxexp.api.make_plan`. JAX, which takes a second to start, is started only where it
    alone can tell which devices there are.
    """
    check((trial for sweep in sweeps for trial in sweep.trials()), examples)
    count, platform = available()
    if devices is not None and not 1 <= devices <= count:
        raise UserError(f"--devices {devices}: this machine has {count} {platform} devices")
    if memory is None:
        memory = free_memory(platform)
    return plan(sweeps, devices or count, examples, mode=programs, backend=platform, memory=memory)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(platform: str) -> float:
    """Bytes that can be taken: where results are gathered, and on the smallest device."""
    free = float(psutil.virtual_memory().available)
    if platform == "cpu":  # its devices have no memory of their own
        return free
    from jaxexp.execution.devices import devices

    for device in devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free = min(free, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free


def available() -> tuple[int, str]:
    """The number of `jaxexp.execution.devices.devices()` and their platform: "cpu", "gpu" or "tpu".

    Raises UserError if JAX cannot provide the platform that JAX_PLATFORMS asks for.
    """
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES", str(cores()))
    if "jax" not in sys.modules and chosen.isdecimal() and int(chosen) and _only_cpus():
        return int(chosen), "cpu"
    from jaxexp.execution.devices import devices

    found = devices()
    return len(found), found[0].platform


def _only_cpus() -> bool:
    """Whether JAX is sure to find CPU devices alone, as many as it is told to make.

    After `jax._src.xla_bridge`: accelerators come by plugins, in a namespace package, as entry
    points or from the environment, and by libtpu.
    """
    for name in ("JAX_PLATFORM_NAME", "JAX_BACKEND_TARGET", "JAX_XLA_BACKEND", "XLA_FLAGS"):
        if os.environ.get(name):
            return False
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    if os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS") or os.environ.get("TPU_LIBRARY_PATH"):
        return False
    if any(importlib.util.find_spec(module) for module in ("jax_plugins", "libtpu")):
        return False
    if importlib.metadata.entry_points(group="jax_plugins"):
        return False
    try:
        ctypes.CDLL("libtpu.so")
    except OSError:
        return True
    return False
