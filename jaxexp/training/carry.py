"""What a trial carries from step to step, and what is recorded of an epoch."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxexp.base.batches import steps_per_epoch
from jaxexp.training.metric import Metric
from jaxexp.training.task import Outputs, Task, Variables
from jaxexp.training.trees import PyTree

Sums: TypeAlias = dict[str, PyTree]  # by metric, including the loss

LOSS = Metric("lower")


class Gathered(NamedTuple):
    """Sums over the examples of a batch in the microbatches computed so far."""

    grads: PyTree
    loss: Array
    weight: Array


class TrainState(NamedTuple):
    """All that changes while a trial trains."""

    variables: Variables
    optimizer: PyTree
    gathered: Gathered | tuple[()] = ()  # if batches are computed in microbatches


class EpochRecord(NamedTuple):
    """What an epoch has recorded so far."""

    step_loss_S: Array
    step_weight_S: Array | None  # the summed weights of each batch, if examples have weights
    running: Sums  # of the metrics in training mode, without the loss
    norms_L: Array | None  # the mean squared norm of each layer's gradient
    splits: dict[str, Sums]  # at the end of the epoch, in evaluation mode


def values(task: Task, sums: Sums) -> dict[str, np.ndarray]:
    """Compute metrics, (T, E), on the host from their sums, whose leading axes are (T, E)."""
    made = {}
    for name, own in sums.items():
        metric = LOSS if name == "loss" else task.metrics[name]
        if metric.value is None:
            with np.errstate(invalid="ignore", divide="ignore"):
                made[name] = np.asarray(own["total"] / own["weight"], np.float32)
        else:
            compute = jax.jit(jax.vmap(jax.vmap(metric.compute)))
            made[name] = np.asarray(compute(own), np.float32)
    return made


def running_loss(
    batch_size: int, step_loss_ExS: np.ndarray, step_weight_ExS: np.ndarray | None, n: int
) -> np.ndarray:
    """Compute on the host the mean step loss of each epoch, (E,), weighted as examples are.

    The epochs may be those of several trials: each is summed by itself, so that its bits are the
    same beside any others.
    """
    steps = steps_per_epoch(n, batch_size)
    if step_weight_ExS is not None:
        weight_ExS = step_weight_ExS[:, :steps].astype(np.float64)
        total_E = (step_loss_ExS[:, :steps] * weight_ExS).sum(1)
        mean_E: np.ndarray = total_E / weight_ExS.sum(1)
    else:
        starts_S = np.arange(steps) * batch_size
        share_S = np.minimum(n - starts_S, batch_size) / n  # float64: a sum of many steps
        mean_E = (step_loss_ExS[:, :steps] * share_S).sum(1)
    return mean_E.astype(np.float32)


def sums_of_batch(task: Task, outputs: Outputs, weight_B: Array) -> Sums:
    """The sums of the loss and of each metric over the examples of a batch, weighted."""
    sums = {"loss": LOSS.sums_of(outputs.loss, None, None, weight_B)}
    for name, metric in task.metrics.items():
        own_B = outputs.metrics.get(name)
        sums[name] = metric.sums_of(own_B, outputs.prediction, outputs.target, weight_B)
    return sums


def add(i: Array, old: PyTree, new: PyTree) -> PyTree:
    """Add the sums of step or batch `i` to those before it in an epoch, starting anew at 0."""
    return jax.tree.map(lambda a, b: jnp.where(i == 0, 0, a) + b, old, new)
