"""Timing a ResNet 18 beside torchvision's: the same work in one run, compilation apart."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxexp.base.errors import UserError
from jaxexp.execution.devices import cores, devices
from jaxexp.nn.residual import resnet
from jaxexp.nn.torchvision import import_torchvision

from .grid import _processor

REPEATS = 7
OUTPUTS = 1000
Passes = tuple[Callable[[], Any], Callable[[], Any]]  # forward, and forward and backward


def compare_resnet(sizes: Sequence[int] = (64, 224), batch: int = 32) -> None:
    """Time ResNet 18 forward (evaluation) and forward and backward (training), print a table.

    PyTorch runs channels last on all cores. Ours runs one network on one device, and one on each
    device side by side, as trials are trained: seconds are per network and batch. Raises UserError
    for sizes or batches below 1, and without torchvision.
    """
    for name, value in [("batch", batch), *(("sizes", size) for size in sizes)]:
        if value < 1:
            raise UserError(f"{name}={value}: expected a number at least 1")
    torch_name = f"PyTorch {import_torchvision() and _torch().__version__}, channels last"
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        f"ResNet 18, batch {batch}, float32; {cores()} cores ({_processor()}), "
        f"JAX {jax.__version__}, {len(devices())} × {devices()[0].device_kind}",
        highlight=False,
    )
    table = Table("", "pixels", "forward, s", "ratio", "with backward, s", "ratio", box=None)
    for size in sizes:
        rng = np.random.default_rng(0)
        x_BxHxWx3 = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
        made = {torch_name: (_torch_passes(x_BxHxWx3), 1)}
        for count in sorted({1, len(devices())}):
            made[f"jaxexp, {count} side by side"] = (_our_passes(x_BxHxWx3, count), count)
        with console.status(f"{size} pixels"):
            _add_rows(table, size, made)
    console.print(table)


def _add_rows(table: Table, size: int, made: dict[str, tuple[Passes, int]]) -> None:
    """Time every way in turn, again and again, so that a busy moment strikes them all."""
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in made}
    for repeat in range(REPEATS + 1):
        for name, (passes, count) in made.items():
            for run, taken in zip(passes, seconds[name], strict=True):
                run()  # PyTorch's threads spin for a while after their last work
                started = time.perf_counter()
                run()
                if repeat:  # the first warms up
                    taken.append((time.perf_counter() - started) / count)
    theirs = [statistics.median(taken) for taken in next(iter(seconds.values()))]
    for name, pair in seconds.items():
        cells = [name, str(size)]
        for taken, their in zip(pair, theirs, strict=True):
            median = statistics.median(taken)
            cells += [f"{median:.3f} ({min(taken):.3f} to {max(taken):.3f})"]
            cells += [f"{median / their:.2f}"]
        table.add_row(*cells)


def _torch() -> Any:
    import torch

    return torch


def _torch_passes(x_BxHxWx3: np.ndarray) -> Passes:
    torch = _torch()
    torch.set_num_threads(cores())
    model = import_torchvision().models.resnet18(num_classes=OUTPUTS)
    model = model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(x_BxHxWx3.transpose(0, 3, 1, 2))  # channels last as it is
    y = torch.arange(len(x)) % OUTPUTS

    def forward() -> Any:
        with torch.inference_mode():
            return model.eval()(x)

    def both() -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(x), y).backward()

    return forward, both


def _our_passes(x_BxHxWx3: np.ndarray, count: int) -> Passes:
    """`count` networks on a device each."""
    model, y_B = resnet(18, OUTPUTS), jnp.arange(len(x_BxHxWx3)) % OUTPUTS
    weight_B = jnp.ones(len(x_BxHxWx3))

    def loss(params: Any, stats: Any, x_BxHxWx3: Any) -> Any:
        variables = {"params": params, "batch_stats": stats}
        logits, new = model.apply(
            variables, x_BxHxWx3, weight_B, train=True, mutable=["batch_stats"]
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y_B)), y_B]), new

    init = jax.jit(model.init)(jax.random.key(0), x_BxHxWx3[:1], weight_B[:1])
    mesh = jax.sharding.Mesh(np.array(devices()[:count]), "trials")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("trials"))
    stacked = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), (init, x_BxHxWx3))
    variables, x = jax.device_put(stacked, sharding)

    def spread(function: Callable) -> Callable:
        spec = sharding.spec
        each = jax.shard_map(
            lambda *a: jax.lax.map(lambda own: function(*own), a),
            mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False,
        )  # fmt: skip
        return jax.jit(each)

    forward = spread(lambda v, x: model.apply(v, x, weight_B))
    both = spread(jax.value_and_grad(loss, has_aux=True))
    return (
        lambda: jax.block_until_ready(forward(variables, x)),
        lambda: jax.block_until_ready(both(variables["params"], variables["batch_stats"], x)),
    )
