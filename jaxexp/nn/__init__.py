"""Networks in Flax, and torchvision's weights for them.

Imports `training` and the packages below it. Public names, imported when first used:

- `MLP`, `ResNet`, `resnet`, `BatchNorm`: Flax modules with PyTorch's semantics.
- `uniform_rows`: PyTorch's default initialisation of `torch.nn.Linear`.
- `default_route`: how convolutions are computed on JAX's backend.
- `weights`: reading and writing torchvision's ResNet weights.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxexp.nn import weights
    from jaxexp.nn.conv import default_route
    from jaxexp.nn.mlp import MLP, uniform_rows
    from jaxexp.nn.norm import BatchNorm
    from jaxexp.nn.residual import ResNet, resnet

_LAZY = {
    "MLP": "jaxexp.nn.mlp",
    "BatchNorm": "jaxexp.nn.norm",
    "ResNet": "jaxexp.nn.residual",
    "default_route": "jaxexp.nn.conv",
    "resnet": "jaxexp.nn.residual",
    "uniform_rows": "jaxexp.nn.mlp",
}
__all__ = ["MLP", "BatchNorm", "ResNet", "default_route", "resnet", "uniform_rows", "weights"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "weights":
        return importlib.import_module("jaxexp.nn.weights")
    raise AttributeError(f"module 'jaxexp.nn' has no attribute {name!r}")
