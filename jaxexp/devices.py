"""The devices that JAX sees: set up once, before JAX starts."""

import contextlib
import os

import jax


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[jax.Device]:
    """All devices: the accelerators where there are any, else one CPU device per core.

    A program that has already used JAX keeps the devices that it has, and so does one that sets
    `JAX_NUM_CPU_DEVICES` itself.
    """
    if getattr(jax.config, "jax_num_cpu_devices", -1) < 0:  # nobody has chosen
        with contextlib.suppress(RuntimeError):  # JAX runs already
            jax.config.update("jax_num_cpu_devices", cores())
    return jax.devices()
