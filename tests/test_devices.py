"""What this machine has, told without JAX, is what JAX says; and so many devices are used."""

import os
import shutil
import subprocess
import sys

import pytest

from jaxexp.api import make_plan, run_plan
from jaxexp.base.errors import UserError
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial

COUNT = """
import sys
from jaxexp.execution.machine import available
told, started = available(), "jax" in sys.modules
from jaxexp.execution.devices import devices
print(started, told == (len(devices()), devices()[0].platform), *told)
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own that inherits nothing of what decides JAX's devices."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PJRT_"))}
    line = [sys.executable, *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=own | environment, timeout=600)


@pytest.mark.parametrize(
    ("environment", "started", "count"),
    [
        ({}, None, None),  # whatever this machine has
        ({"JAX_PLATFORMS": "cpu"}, False, None),
        ({"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "7"}, False, 7),
        ({"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "-1"}, True, None),
        ({"JAX_PLATFORMS": "cpu", "JAX_PLATFORM_NAME": "cpu"}, True, None),
        ({"JAX_PLATFORMS": "cuda,cpu", "JAX_NUM_CPU_DEVICES": "3"}, True, None),
        (
            {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "JAX_NUM_CPU_DEVICES": "3",
            },
            True,
            None,
        ),
    ],
    ids=str,
)
def test_devices_are_counted_as_jax_counts_them(environment, started, count):
    done = python("-c", COUNT, **environment)
    assert not done.returncode, done.stderr
    told = done.stdout.split()
    assert told[1] == "True"
    assert started in (None, told[0] == "True")
    assert count in (None, int(told[2]))


def test_a_plugin_for_an_accelerator_is_left_to_jax(tmp_path):
    plugin = tmp_path / "jax_plugins" / "abacus"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize(): print('asked')\n")
    done = python("-c", COUNT, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert not done.returncode, done.stderr
    assert done.stdout.splitlines()[0] == "asked"
    assert done.stdout.splitlines()[1].startswith("True True ")


def test_planning_starts_no_jax():
    code = "import sys, jaxexp.cli.main as c\ntry: c.main(['plan', 'epochs'])\n"
    code += "except SystemExit: pass\n"
    slow = "{'jax', 'flax', 'optax', 'pandas', 'xarray', 'matplotlib'}"
    done = python("-c", f"{code}print(*{slow} & set(sys.modules))", JAX_PLATFORMS="cpu")
    assert done.stdout.startswith("1 trials in 1 programs on "), done.stderr
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("platform", ["abacus", "cuda"])
def test_a_platform_that_is_not_there_is_told(command, platform, tmp_path):
    if platform == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    out = ["--out", str(tmp_path / "out")] if command == "run" else []
    done = python("-m", "jaxexp", command, "epochs", *out, JAX_PLATFORMS=platform)
    assert done.returncode == 2
    assert f"error: JAX_PLATFORMS='{platform}': expected a platform that JAX finds" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_plan_engine_and_results_agree_on_the_devices(problem):
    sweep = Sweep(base=MLPTrial(epochs=1, batch_size=64, depth=1, width=2), axes={"seed": range(4)})
    made = make_plan([sweep], problem, devices=2)
    assert made.devices == 2
    assert {device for program in made.programs for device in program.devices} == {0, 1}
    [(_, results)] = run_plan(made, [sweep], problem)
    assert results.attrs["devices"] == 2
    assert "4 trials in 1 programs on 2 cpu devices" in results.attrs["plan"]


@pytest.mark.parametrize("devices", [0, -1, 5])
def test_devices_that_are_not_there_are_told(problem, devices):
    with pytest.raises(UserError, match=f"--devices {devices}: this machine has 4 cpu devices"):
        make_plan([Sweep(base=MLPTrial(batch_size=64))], problem, devices=devices)
