"""Four CPU devices, whatever the machine has, and a problem small enough to train in a test."""

import atexit
import functools
import gc
import importlib.util
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # One cache for the session: its workers and the processes that tests start compile a program
    # once for all of them.
    _cache = tempfile.mkdtemp(prefix="jaxexp-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import jax
import numpy as np
import pytest
from rings import RegionTask

from jaxexp.api import Problem
from jaxexp.base.errors import UserError
from jaxexp.nn.torchvision import import_torchvision
from jaxexp.report import figures
from jaxexp.training import tracing
from jaxexp.training.data import Data, Examples

jax.config.update("jax_num_cpu_devices", 4)
# Tracing makes many objects and few cycles: looking for these takes a tenth of the time.
gc.set_threshold(200_000, 20, 50)
# No deadlines: machines are busy.
hypothesis.settings.register_profile("daily", deadline=None, max_examples=20)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=200)
hypothesis.settings.load_profile("daily")


# Most of the time goes into compiling. Code that LLVM has not optimised is compiled in half of it
# and computes the same but for rounding.
COMPILED_FAST = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# Later versions, and the compiler of TPUs, do not know it, and end the process.
if jax.__version_info__ < (0, 11, 1) and importlib.util.find_spec("libtpu") is None:
    COMPILED_FAST += " --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    """`-m nightly` runs what users run, and tests of random examples, too, on ten times as many."""
    if config.option.markexpr == "nightly":
        hypothesis.settings.load_profile("nightly")
    elif "XLA_FLAGS" not in os.environ:  # workers and the processes of tests inherit it
        os.environ["XLA_FLAGS"] = COMPILED_FAST


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.option.markexpr == "integration":  # of a file that is marked, without its long forms
        long = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    if config.option.markexpr == "nightly":
        for item in items:
            if getattr(item.obj, "is_hypothesis_test", False):
                item.add_marker(pytest.mark.nightly)


@pytest.fixture(scope="session", autouse=True)
def small_pictures():
    """Pages of tests have small pictures, which are drawn faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "to_png", functools.partial(figures.to_png, dpi=40))
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """On pages that the command line writes in this process, and nobody looks at."""
    monkeypatch.setattr("jaxexp.cli.pages.draw", lambda *_: [])


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, but no pictures of them, which other tests draw."""
    monkeypatch.setattr(figures, "to_png", lambda fig, **_: b"")


@pytest.fixture(scope="session", autouse=True)
def rings_are_a_plain_value():
    """Their task computes what its fields say, as jaxexp's own do: no program need trace that."""
    plain = tracing.is_plain_value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "is_plain_value", lambda t: type(t) is RegionTask or plain(t))
        yield


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    return jax.devices("cpu")[:4]


@pytest.fixture(scope="session")
def problem() -> Problem:
    """Five classes: rings around the origin. 203 examples fill no batch size up evenly."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Examples:
        x_Nx2 = rng.uniform(-2, 2, (n, 2)).astype(np.float32)
        return Examples(x_Nx2, (np.abs(x_Nx2).sum(1) * 1.25).astype(np.int32))

    data = Data(
        train=split(203),
        validation=split(57),
        test=split(61),
        classes=("inmost", "inner", "middle", "outer", "outmost"),
        extra={"map": split(6).x},
        coords={
            "longitude": (("longitude",), np.linspace(-2, 2, 3)),
            "latitude": (("latitude",), np.linspace(-2, 2, 2)),
        },
        attrs={"data": "rings"},
    )
    return Problem(RegionTask().bind(data), data)


@pytest.fixture(scope="session")
def torchvision():
    try:
        return import_torchvision()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def compilations():
    """The seconds of each compilation by XLA while the test runs."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    jax.monitoring.clear_event_listeners()
