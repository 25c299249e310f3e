"""Four CPU devices, whatever the machine has, and a problem small enough to train in a test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

from jaxexp.base.errors import UserError
from jaxexp.execution.driver import Problem
from jaxexp.nn.mlp import Classification
from jaxexp.nn.torchvision import import_torchvision

jax.config.update("jax_num_cpu_devices", 4)
hypothesis.settings.register_profile("no deadline", deadline=None)  # machines are busy
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    return jax.devices("cpu")[:4]


@pytest.fixture(scope="session")
def problem() -> Problem:
    """Five classes: rings around the origin. 203 examples fill no batch size up evenly."""
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        x_Nx2 = rng.uniform(-2, 2, (n, 2)).astype(np.float32)
        return x_Nx2, (np.abs(x_Nx2).sum(1) * 1.25).astype(np.int32)

    return Problem(
        task=Classification(5),
        data={"train": split(203), "validation": split(57), "test": split(61)}
        | {"map": split(6)[0]},
        prediction_dims={"region": ("latitude", "longitude")},
        coords={
            "longitude": (("longitude",), np.linspace(-2, 2, 3)),
            "latitude": (("latitude",), np.linspace(-2, 2, 2)),
        },
    )


@pytest.fixture(scope="session")
def torchvision():
    try:
        return import_torchvision()
    except UserError as error:
        pytest.skip(str(error))
