"""torchvision's ResNets with random statistics, and the same weights in Flax, for the tests."""

import contextlib
import importlib.util

import jax
import numpy as np
import pytest

from jaxexp.nn.residual import BLOCKS
from jaxexp.nn.torchvision import import_torchvision
from jaxexp.nn.weights import to_flax
from jaxexp.reproduce import backbone

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("could not import 'torchvision'", allow_module_level=True)
torchvision = import_torchvision()


SMALL = (1, 1)  # blocks: every kind of layer that ResNet 18 has, in a fifth of its time to compile
FEATURES = 128  # of it


@contextlib.contextmanager
def small_networks():
    """Meanwhile, in this process, a ResNet 18 has `SMALL` blocks, on the route that compiles fast.

    `test_resnet` shows that both routes compute the same. A convolution is a loop that has to be
    optimised, unlike other programs of the tests.
    """
    compile_lowered = jax.stages.Lowered.compile

    def compile_optimised(lowered, options=None):
        return compile_lowered(lowered, options or {"xla_backend_optimization_level": 1})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compile_optimised)
        patch.setattr("jaxexp.nn.conv.default_route", lambda: "lax")
        patch.setitem(BLOCKS, 18, SMALL)
        backbone.load.cache_clear()
        yield
    backbone.load.cache_clear()


def make(blocks: tuple[int, ...], outputs: int, seed: int = 0):
    """torchvision's network, its initial weights, and statistics as if it had been trained.

    Stages that `blocks` leaves out at the end are not there.
    """
    torch.manual_seed(seed)
    resnet = torchvision.models.resnet
    stages = [*blocks, 1, 1, 1][:4]
    model = resnet.ResNet(resnet.BasicBlock, stages, num_classes=outputs)
    for stage in range(len(blocks) + 1, 5):
        setattr(model, f"layer{stage}", torch.nn.Identity())
    if len(blocks) < 4:
        model.fc = torch.nn.Linear(32 << len(blocks), outputs)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def variables(model) -> dict:
    """The same weights in Flax."""
    state = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    params, stats = to_flax(state)
    return jax.tree.map(np.asarray, {"params": params, "batch_stats": stats})


def images(size: int, batch: int = 3, seed: int = 1, width: int | None = None) -> np.ndarray:
    """Noise of unit variance, (batch, size, width or size, 3) float32."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, size, width or size, 3)).astype(np.float32)


def as_torch(x_BxHxWxC: np.ndarray):
    """The same images, (B, C, H, W), for PyTorch."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x_BxHxWxC).transpose(0, 3, 1, 2)))


def compiled(function, **options):
    """`jax.jit` for what runs once: light on the compiler, which takes most of a test's time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)
