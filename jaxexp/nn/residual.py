"""Residual networks 18 and 34 in Flax (He et al., 2016), with torchvision's names and semantics.

Names mirror torchvision's: `layer2_0/downsample_0` is its `layer2.0.downsample.0`, so that a table
is enough to convert weights (see `weights.py`). Images are float32, normalised as the weights
expect.

Shapes: B examples, H x W pixels, C channels, F = 512 pooled features.
"""

from flax import linen as nn
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.nn.conv import ROUTES, conv, default_route, max_pool
from jaxexp.nn.mlp import uniform_rows
from jaxexp.nn.norm import BatchNorm
from jaxexp.nn.parameters import parameter

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # the number of blocks in each stage
CHANNELS = (64, 128, 256, 512)


def resnet(depth: int = 18, outputs: int = 1000, route: str | None = None) -> "ResNet":
    """A network of 18 or 34 layers; `route` is how it convolves, by default the backend's best way.

    Raises UserError for another depth, fewer than one output, or an unknown route.
    """
    if depth not in BLOCKS:
        raise UserError(f"depth={depth!r}: expected one of {', '.join(map(str, BLOCKS))}")
    if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
        raise UserError(f"outputs={outputs!r}: expected a whole number at least 1")
    if route not in (None, *ROUTES):
        raise UserError(f"route={route!r}: expected one of {', '.join(ROUTES)}")
    return ResNet(BLOCKS[depth], outputs, route or default_route())


class Conv(nn.Module):
    """A convolution without bias, initialised as torchvision does (He et al., 2015, fan out)."""

    channels: int
    size: int
    stride: int
    route: str

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), channels)."""
        draw = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (self.size, self.size, x_BxHxWxC.shape[-1], self.channels)
        return conv(x_BxHxWxC, parameter(self, "kernel", draw, shape), self.stride, self.route)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a 1x1 convolution if the shapes differ."""

    channels: int
    stride: int
    route: str

    @nn.compact
    def __call__(self, x_BxHxWxC: Array, mask_B: Array, *, train: bool) -> Array:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), channels)."""

        def normed(x: Array, size: int, stride: int, names: tuple[str, str]) -> Array:
            x = Conv(self.channels, size, stride, self.route, name=names[0])(x)
            return BatchNorm(name=names[1])(x, mask_B, train=train)

        h = nn.relu(normed(x_BxHxWxC, 3, self.stride, ("conv1", "bn1")))
        h = normed(h, 3, 1, ("conv2", "bn2"))
        if self.stride > 1 or x_BxHxWxC.shape[-1] != self.channels:
            x_BxHxWxC = normed(x_BxHxWxC, 1, self.stride, ("downsample_0", "downsample_1"))
        return nn.relu(x_BxHxWxC + h)


class Head(nn.Module):
    """`torch.nn.Linear` with its default initialisation; kernels are (out, in), as in PyTorch."""

    outputs: int

    @nn.compact
    def __call__(self, x_BxF: Array) -> Array:
        """(B, F) to (B, outputs)."""
        features = x_BxF.shape[-1]
        shape = (self.outputs, features)
        kernel = parameter(self, "kernel", uniform_rows, shape, features, self.outputs)
        bias = parameter(self, "bias", uniform_rows, shape[:1], features, self.outputs)
        return x_BxF @ kernel.T + bias


class ResNet(nn.Module):
    """The network that `resnet` makes. Its parts are methods too, so that a backbone can run once.

    `model.apply(variables, images, mask_B, method="features")` gives the pooled features and
    `model.apply(variables, features, method="head")` the logits; calling the model does both.
    """

    blocks: tuple[int, ...]
    outputs: int
    route: str

    def setup(self) -> None:
        """Name the layers as torchvision does."""
        self.conv1 = Conv(CHANNELS[0], 7, 2, self.route)
        self.bn1 = BatchNorm()
        for stage, (count, channels) in enumerate(zip(self.blocks, CHANNELS, strict=False), 1):
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                setattr(self, f"layer{stage}_{i}", Block(channels, stride, self.route))
        self.fc = Head(self.outputs)

    def __call__(self, x_BxHxWx3: Array, mask_B: Array, *, train: bool = False) -> Array:
        """The logits (B, outputs) of images (B, H, W, 3), given the weight of each, 0 or 1.

        With `train`, it normalises by the batch's statistics and updates "batch_stats", which must
        then be mutable. Raises UserError unless the images have three channels in the last axis.
        """
        return self.head(self.features(x_BxHxWx3, mask_B, train=train))

    def features(self, x_BxHxWx3: Array, mask_B: Array, *, train: bool = False) -> Array:
        """Images to the average over the last stage's pixels, (B, 512)."""
        if x_BxHxWx3.ndim != 4 or x_BxHxWx3.shape[-1] != 3:
            raise UserError(
                f"images of shape {x_BxHxWx3.shape}: expected (batch, height, width, 3)"
            )
        h = max_pool(nn.relu(self.bn1(self.conv1(x_BxHxWx3), mask_B, train=train)))
        for stage, count in enumerate(self.blocks, 1):
            for i in range(count):
                h = getattr(self, f"layer{stage}_{i}")(h, mask_B, train=train)
        return h.mean((1, 2))

    def head(self, features_BxF: Array) -> Array:
        """Pooled features (B, 512) to logits (B, outputs)."""
        return self.fc(features_BxF)
