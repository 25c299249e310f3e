"""Pretrained weights of a ResNet 18, and the features that it makes of images while frozen.

Shapes: N images of H x W pixels, B of a batch, F = 512 features.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxexp as jx
from jaxexp.reproduce.tasks import PyTree, normalise

IMAGENET = "imagenet"  # weights that torchvision downloads once
MEAN = (0.485, 0.456, 0.406)  # red, green, blue: what torchvision's weights expect
STD = (0.229, 0.224, 0.225)
BATCH = 32  # images per device
UNDER_WAY = 2  # batches: one is placed while another runs


@dataclass(frozen=True, eq=False)
class Backbone:
    """Parameters and batch statistics, and a digest of them."""

    tree: tuple[PyTree, PyTree]
    digest: str


@functools.lru_cache(maxsize=1)
def load(source: str) -> Backbone:
    """The weights "imagenet" or those of a .pth file; their last layer is not used.

    Raises UnavailableError if ImageNet's cannot be had, UserError if a file cannot be used.
    """
    try:
        found = jx.nn.weights.load(source)
    except jx.UserError as error:
        raise (jx.UnavailableError(str(error)) if source == IMAGENET else error) from None
    if jx.nn.weights.depth_of(found) != 18:
        raise jx.UserError(f"{source}: the weights of a ResNet 34, expected those of a ResNet 18")
    content = b"".join(name.encode() + found[name].tobytes() for name in sorted(found))
    return Backbone(jx.nn.weights.to_flax(found), jx.digest(content))


Splits = Mapping[str, np.ndarray]


def features(backbone: Backbone, x_by_split: Splits, route: str) -> tuple[Splits, float]:
    """The pooled features, float32 (N, F), of the uint8 images (N, H, W, 3) of each split.

    The network is in evaluation mode, so that it does not change and images do not affect one
    another; every device takes its share of each batch. Also returns the seconds that this took,
    without compilation. Progress is shown.
    """
    mesh = Mesh(jx.devices(), "images")
    split, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("images",), ()))
    params, stats = jax.device_put(backbone.tree, whole)
    shape = (BATCH * mesh.size, *next(iter(x_by_split.values())).shape[1:])
    images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=split)
    with jax.default_matmul_precision("float32"):
        run = jax.jit(_network(mesh, route)).lower(params, stats, images).compile()
    started, done, made = time.perf_counter(), 0, {}
    with jx.counting("features of images") as progress:
        for name, x_NxHxWx3 in x_by_split.items():
            parts: list[Array] = []
            for x_BxHxWx3 in _batches(x_NxHxWx3, shape[0]):
                parts.append(run(params, stats, jax.device_put(x_BxHxWx3, split)))
                if len(parts) > UNDER_WAY:
                    jax.block_until_ready(parts[-UNDER_WAY])
                now = done + min(shape[0] * len(parts), len(x_NxHxWx3))
                progress(now, sum(map(len, x_by_split.values())))
            made[name] = np.concatenate(jax.device_get(parts))[: len(x_NxHxWx3)]
            done += len(x_NxHxWx3)
    return made, time.perf_counter() - started


def _network(mesh: Mesh, route: str) -> Callable[[PyTree, PyTree, Array], Array]:
    """A function from weights and images (B, H, W, 3) to features (B, F), over all devices."""
    model = jx.nn.resnet(18, outputs=1, route=route)

    def share(params: PyTree, stats: PyTree, x_BxHxWx3: Array) -> PyTree:
        return model.apply(
            {"params": params, "batch_stats": stats},
            normalise(x_BxHxWx3, MEAN, STD),
            jnp.ones(len(x_BxHxWx3)),
            method="features",
        )

    images = PartitionSpec("images")
    specs = (PartitionSpec(), PartitionSpec(), images)
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=images, check_vma=False)


def _batches(x_NxHxWx3: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """All images in batches of `size`; the last one is repeated to fill the last batch."""
    for start in range(0, len(x_NxHxWx3), size):
        index_B = np.minimum(np.arange(start, start + size), len(x_NxHxWx3) - 1)
        yield x_NxHxWx3[index_B]
