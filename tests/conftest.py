"""Four CPU devices, whatever the machine has, and a problem small enough to train in a test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

from jaxexp.engine import Problem
from jaxexp.mlp import Classification

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
    """torchvision, whose wheel beside a PyTorch for CPUs lacks the operators that it registers."""
    torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `torch`")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    pytest.importorskip("torchvision", reason="torchvision comes with the extra `test`")
    import torchvision.datasets
    import torchvision.transforms

    yield torchvision
    del library  # the operators live as long as it does
