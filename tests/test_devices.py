"""So many devices are used as are asked for, and what is not there is told."""

import os
import shutil
import subprocess
import sys

import pytest

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.execution.devices import chosen, device_memory
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial

TELL = """
from jaxexp.execution.devices import cores, devices
from jaxexp.base.errors import UserError
try:
    print(len(devices()), devices()[0].platform, cores())
except UserError as error:
    print(f"error: {error}")
"""
ASKED = """
from jaxexp.execution import devices
devices.cores = lambda: 3
import jax, jax.numpy as jnp, jaxexp as jx

def init(trial, rng, x):
    return {"w": jnp.zeros(2, jax.default_backend() and jnp.float32)}

def apply(trial, params, x):
    return x @ params["w"]

data = jx.arrays([[0.0, 1.0], [1.0, 0.0]] * 4, [0.0, 1.0] * 4)
task = jx.supervised(init=init, apply=apply, loss=lambda made_B, y_B: (made_B - y_B) ** 2)
print(len(jx.plan(jx.Sweep(jx.Trial(batch_size=2)), task, data).devices))
"""


def told(code: str = TELL, **environment: str) -> str:
    """By a process of its own that inherits nothing of what decides JAX's devices."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PJRT_"))}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env=own | environment, timeout=600)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_a_cpu_has_a_device_for_each_core():
    count, platform, cores = told(JAX_PLATFORMS="cpu").split()
    assert (count, platform) == (cores, "cpu")


def test_a_number_that_was_chosen_stays():
    assert told(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="7").startswith("7 cpu")


@pytest.mark.nightly
def test_a_number_that_was_chosen_for_xla_stays():
    flags = "--xla_force_host_platform_device_count=7"
    assert told(JAX_PLATFORMS="cpu", XLA_FLAGS=flags).startswith("7 cpu")


@pytest.mark.nightly
def test_a_task_that_asks_for_the_backend_when_it_is_traced_leaves_all_devices():
    """Of one that is asked before the devices are set up, JAX would have made one."""
    assert told(ASKED, JAX_PLATFORMS="cpu") == "3"


@pytest.mark.parametrize("platform", ["abacus", pytest.param("cuda", marks=pytest.mark.nightly)])
def test_a_platform_that_is_not_there_is_told(platform):
    if platform == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    expected = f"error: JAX_PLATFORMS='{platform}': expected a platform that JAX finds here"
    assert told(JAX_PLATFORMS=platform).startswith(expected)


def test_plan_driver_and_results_agree_on_the_devices(problem):
    sweep = Sweep(MLPTrial(epochs=1, batch_size=64, depth=1, width=2), {"seed": range(4)})
    made = jx.plan(sweep, *problem, devices=2)
    assert len(made.devices) == made.plan.devices == 2
    assert {device for program in made.plan.programs for device in program.devices} == {0, 1}
    results = jx.run(made, progress=False)
    assert results.dataset.attrs["devices"] == 2
    assert "4 trials in 1 program on 2 cpu devices" in results.dataset.attrs["plan"]


def test_some_devices_or_so_many(devices):
    assert chosen() == tuple(devices)
    assert chosen(2) == tuple(devices[:2])
    assert chosen(devices[1:3]) == tuple(devices[1:3])


@pytest.mark.parametrize("asked", [0, -1, 5])
def test_more_devices_than_there_are_or_none(problem, asked):
    message = (
        rf"devices={asked}: expected 1 to 4, the cpu devices of this machine "
        r"\(set JAX_NUM_CPU_DEVICES to have more\)"
    )
    with pytest.raises(UserError, match=message):
        jx.plan(Sweep(MLPTrial(batch_size=64)), *problem, devices=asked)


@pytest.mark.parametrize("asked", [True, "2", [], [0, 1], 1.5])
def test_what_is_no_number_and_no_device(problem, asked):
    with pytest.raises(UserError, match="expected a number, or a list of JAX devices"):
        jx.plan(Sweep(MLPTrial(batch_size=64)), *problem, devices=asked)


class Accelerator:
    platform = "gpu"

    def __init__(self, limit: float, used: float):
        self.stats = {"bytes_limit": limit, "bytes_in_use": used}

    def memory_stats(self):
        return self.stats


def test_each_device_has_what_it_has_left(devices):
    assert device_memory(devices) == ()  # of a CPU they share the host's
    assert device_memory([Accelerator(8e9, 1e9), Accelerator(8e9, 5e9)]) == (7e9, 3e9)
