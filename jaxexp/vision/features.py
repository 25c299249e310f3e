"""A frozen network run once over all images: every device takes its share of each batch.

In evaluation mode, so that nothing in the network changes and no image sees another.

Shapes: N images of H x W pixels, B of a batch, F features.
"""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxexp.devices import devices
from jaxexp.progress import counting
from jaxexp.resnet import resnet
from jaxexp.train import PyTree
from jaxexp.vision.tasks import normalise

Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of the channels
BATCH = 32  # images, of one device
UNDER_WAY = 2  # batches: one is placed while another runs


def extract(
    weights: tuple[PyTree, PyTree], x_by_split: Mapping[str, np.ndarray], scale: Scale, route: str
) -> tuple[dict[str, np.ndarray], float]:
    """The pooled features, float32 (N, F), of the uint8 images (N, H, W, 3) of each split.

    Returns them with the seconds that it took, compilation left out. Progress is shown.
    """
    mesh = Mesh(devices(), "images")
    split, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("images",), ()))
    size = BATCH * mesh.size
    params, stats = jax.device_put(weights, whole)
    shape = next(iter(x_by_split.values())).shape[1:]
    images = jax.ShapeDtypeStruct((size, *shape), np.uint8, sharding=split)
    run = jax.jit(_network(mesh, scale, route)).lower(params, stats, images).compile()
    started = time.perf_counter()
    with counting("features of images") as progress:
        total = sum(map(len, x_by_split.values()))
        done, made = 0, {}
        for name, x_NxHxWx3 in x_by_split.items():
            parts = []
            for x_BxHxWx3 in _batches(x_NxHxWx3, size):
                parts.append(run(params, stats, jax.device_put(x_BxHxWx3, split)))
                if len(parts) > UNDER_WAY:
                    jax.block_until_ready(parts[-UNDER_WAY])
                progress(min(done + size * len(parts), done + len(x_NxHxWx3)), total)
            made[name] = np.concatenate(jax.device_get(parts))[: len(x_NxHxWx3)]
            done += len(x_NxHxWx3)
    return made, time.perf_counter() - started


def _network(mesh: Mesh, scale: Scale, route: str) -> Callable[[PyTree, PyTree, Array], Array]:
    """Weights and images (B, H, W, 3) to features (B, F), each device taking its share."""
    model = resnet(18, outputs=1, route=route)

    def share(params: PyTree, stats: PyTree, x_BxHxWx3: Array) -> Array:
        features_BxF: Array = model.apply(
            {"params": params, "batch_stats": stats},
            normalise(x_BxHxWx3, *scale),
            jnp.ones(len(x_BxHxWx3)),
            method="features",
        )  # type: ignore[assignment]
        return features_BxF

    images = PartitionSpec("images")
    specs = (PartitionSpec(), PartitionSpec(), images)
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=images, check_vma=False)


def _batches(x_NxHxWx3: np.ndarray, size: int):
    """All images, so many at a time; the last ones are repeated to fill up."""
    for start in range(0, len(x_NxHxWx3), size):
        index_B = np.minimum(np.arange(start, start + size), len(x_NxHxWx3) - 1)
        yield x_NxHxWx3[index_B]
