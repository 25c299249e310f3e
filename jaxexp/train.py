"""Training one trial, as pure functions of the trial and the data.

Nothing here knows of grids, devices, files or progress: `jax.vmap` of these functions is a batch of
trials, and the same functions called alone are what that batch is tested against.

Shapes: N examples of a split, B examples of a batch, S = ceil(N / B) steps of an epoch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxexp.lift import Choice, Size, choose, largest, smallest, value
from jaxexp.shuffle import mix, permutation
from jaxexp.trial import Trial

PyTree = Any
Examples = PyTree  # arrays whose first axis is the example
# "train", "validation", "test", and whatever a task's `predictions` reads
Data = Mapping[str, Examples]
Metrics = dict[str, Array]

EVALUATION_BATCH = 1024  # examples at once in evaluation: activations stay in a core's cache


class Task(Protocol):
    """What a researcher writes: a model and its loss. It must be hashable (a frozen dataclass)."""

    def init(self, trial: Trial, key: Array) -> tuple[PyTree, PyTree]:
        """Initial parameters, and state that is not trained (batch statistics; may be empty)."""
        ...

    def apply(
        self, trial: Trial, params: PyTree, state: PyTree, batch: Examples, weight_B: Array,
        *, train: bool, noise: Any = 0,
    ) -> tuple[Metrics, PyTree]:  # fmt: skip
        """The metrics of each example, (B,) each, and the new state.

        `metrics["loss"]` is what training minimises. Examples of weight 0 fill up the last batch:
        statistics over the batch must leave them out. `noise` is a random uint32, new in every
        step, for whatever is random in training.
        """
        ...

    def predictions(self, trial: Trial, params: PyTree, state: PyTree, data: Data) -> Metrics:
        """What to keep of the trained model's output, where a sweep records "predictions"."""
        ...

    def gradient_norms(self, grads: PyTree) -> Array:
        """The squared L2 norm of each layer's weight gradient, from first to last, (layers,)."""
        ...

    def crop(
        self, trial: Trial, params: PyTree, state: PyTree, norms_ExL: np.ndarray | None
    ) -> tuple[PyTree, PyTree, np.ndarray | None]:
        """The trial's own part of parameters and state, as if it had trained alone.

        Called where hyperparameters of the model are lifted (see `lift.py`).
        """
        ...


class TrialState(NamedTuple):
    """All that changes while a trial trains."""

    params: PyTree
    state: PyTree
    optimizer: optax.OptState


class EpochRecord(NamedTuple):
    """What one epoch of one trial leaves behind."""

    metrics: dict[str, Metrics]  # by split, then by metric: means over the split's examples
    step_loss_S: Array  # mean loss of each training step
    gradient_norms_L: Array | None  # mean over the steps, where recorded


def optimizer(trial: Trial) -> optax.GradientTransformation:
    """The trial's optimizer; its hyperparameters may be traced. Updates follow PyTorch's."""
    if not isinstance(trial.optimizer, Choice):
        return _optimizer(trial.optimizer, trial)
    made = {name: _optimizer(name, trial) for name in trial.optimizer.options}

    def init(params: PyTree) -> dict[str, PyTree]:
        return {name: each.init(params) for name, each in made.items()}

    def update(grads: PyTree, states: dict[str, PyTree], params: PyTree = None):
        results = {name: each.update(grads, states[name], params) for name, each in made.items()}
        updates = choose(trial.optimizer, lambda name: results[name][0])
        return updates, {name: state for name, (_, state) in results.items()}

    return optax.GradientTransformation(init, update)


def _optimizer(name: str, trial: Trial) -> optax.GradientTransformation:
    if name == "sgd":
        # PyTorch's momentum buffer is optax's trace; with momentum 0 it is the gradient itself.
        return optax.sgd(trial.learning_rate, momentum=trial.momentum)
    if name == "adamw":
        return optax.adamw(trial.learning_rate, weight_decay=trial.weight_decay)
    return optax.adam(trial.learning_rate)


def init(task: Task, trial: Trial) -> TrialState:
    """The state before the first step, decided by the trial's seed."""
    params, state = task.init(trial, jax.random.key(trial.seed))
    return TrialState(params, state, optimizer(trial).init(params))


def train_step(
    task: Task, trial: Trial, state: TrialState, batch: Examples, weight_B: Array, noise: Any = 0
) -> tuple[TrialState, Metrics, PyTree]:
    """One step on the examples of weight 1: the new state, the metrics' means, the gradients."""

    def loss(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        metrics_B, new = task.apply(
            trial, params, state.state, batch, weight_B, train=True, noise=noise
        )
        means = {name: _mean(value_B, weight_B) for name, value_B in metrics_B.items()}
        return means["loss"], (means, new)

    (_, (metrics, new)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(trial).update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrialState(params, new, opt_state), metrics, grads


def steps_per_epoch(n: int, batch_size: Any) -> Any:
    """The number of batches of n examples, the last one partial: ceil(n / batch_size)."""
    return -(-n // batch_size)


def train_epoch(
    task: Task, trial: Trial, state: TrialState, epoch: Array, examples: Examples,
    *, gradient_norms: bool = False,
) -> tuple[TrialState, Metrics, Array, Array | None]:  # fmt: skip
    """One pass over the reshuffled examples, the last partial batch trained too.

    Returns the new state, the metrics accumulated while training (means over the N examples), the
    loss of each step (S,) and, where asked, the mean squared norm of each layer's gradient (L,).
    Where the batch size is lifted, a trial of few steps stands still once they are over.
    """
    n, batch_size, size = count(examples), value(trial.batch_size), largest(trial.batch_size)
    order = permutation(n, trial.seed, epoch)
    words = mix(jnp.asarray(epoch, jnp.uint32) ^ mix(jnp.asarray(trial.seed, jnp.uint32)))

    def step(carry: tuple[TrialState, Array | None], i: Array):
        state, norms = carry
        batch, weight_B = _take(examples, i * batch_size, batch_size, size, order)
        noise = mix(words ^ i.astype(jnp.uint32))
        new, metrics, grads = train_step(task, trial, state, batch, weight_B, noise)
        active = i * batch_size < n
        if norms is not None:
            share = jnp.where(active, 1 / steps_per_epoch(n, batch_size), 0)
            norms += task.gradient_norms(grads) * share
        if isinstance(trial.batch_size, Size):
            new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        return (new, norms), (metrics, weight_B.sum())

    norms = None
    if gradient_norms:
        norms = jnp.zeros(jax.eval_shape(task.gradient_norms, state.params).shape)
    steps = steps_per_epoch(n, smallest(trial.batch_size))
    (state, norms), (metrics_S, weight_S) = jax.lax.scan(step, (state, norms), jnp.arange(steps))
    means = {name: _mean(value_S, weight_S) for name, value_S in metrics_S.items()}
    return state, means, metrics_S["loss"], norms


def evaluate(task: Task, trial: Trial, state: TrialState, examples: Examples) -> Metrics:
    """The metrics' means over the examples, in evaluation mode."""
    n = count(examples)
    size = min(n, EVALUATION_BATCH)

    def batch_sums(i: Array) -> Metrics:
        batch, weight_B = _take(examples, i * size, size, size, lambda index: index)
        metrics_B, _ = task.apply(trial, state.params, state.state, batch, weight_B, train=False)
        return {name: (value_B * weight_B).sum() for name, value_B in metrics_B.items()}

    sums = jax.lax.map(batch_sums, jnp.arange(steps_per_epoch(n, size)))
    return {name: value.sum() / n for name, value in sums.items()}


def run_epoch(
    task: Task, trial: Trial, state: TrialState, epoch: Array, data: Data,
    *, gradient_norms: bool = False,
) -> tuple[TrialState, EpochRecord]:  # fmt: skip
    """Train one epoch (counted from 0), then evaluate on the other splits."""
    state, train, step_loss_S, norms_L = train_epoch(
        task, trial, state, epoch, data["train"], gradient_norms=gradient_norms
    )
    held_out = {s: evaluate(task, trial, state, data[s]) for s in ("validation", "test")}
    return state, EpochRecord({"train": train, **held_out}, step_loss_S, norms_L)


def count(examples: Examples) -> int:
    """The number of examples N."""
    return jax.tree.leaves(examples)[0].shape[0]


def _take(
    examples: Examples, start: Any, length: Any, size: int, order: Callable[[Array], Array]
) -> tuple[Examples, Array]:
    """`size` examples of an order, and the weight of each: 0 past `length` or the last."""
    n = count(examples)
    offset_B = jnp.arange(size)
    position_B = start + offset_B
    index_B = order(jnp.minimum(position_B, n - 1))
    batch = jax.tree.map(lambda a: a.at[index_B].get(mode="promise_in_bounds"), examples)
    return batch, ((position_B < n) & (offset_B < length)).astype(jnp.float32)


def _mean(value_B: Array, weight_B: Array) -> Array:
    return (value_B * weight_B).sum() / jnp.maximum(weight_B.sum(), 1)
