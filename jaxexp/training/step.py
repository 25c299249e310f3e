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

from jaxexp.spec.padding import Choice, Size, choose, largest, smallest, value
from jaxexp.spec.trial import Trial
from jaxexp.training.shuffle import mix, permutation

PyTree = Any
Examples = PyTree  # arrays whose first axis is the example
# "train", "validation", "test", and whatever a task's `predictions` reads
Data = Mapping[str, Examples]
Metrics = dict[str, Array]

HELD_OUT = ("validation", "test")


class Task(Protocol):
    """What a researcher writes: a model and its loss. It must be hashable (a frozen dataclass)."""

    @property
    def evaluation_batch(self) -> int:
        """How many examples are evaluated at once."""
        ...

    def init(self, trial: Trial, key: Array, data: Data) -> tuple[PyTree, PyTree]:
        """Initial parameters, and state that is not trained (batch statistics; may be empty).

        `data` is the problem's, which may hold weights to start from.
        """
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


class Gathered(NamedTuple):
    """What an epoch of one trial leaves behind, gathered step by step."""

    steps: Metrics  # (S,) each: means over the examples of each training step
    norms_L: Array | None  # mean over the steps, where recorded
    held_out: dict[str, Metrics]  # by split: sums over its examples


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


def init(
    task: Task, trial: Trial, data: Data, *, gradient_norms: bool = False
) -> tuple[TrialState, Gathered]:
    """The state before the first step, decided by the trial's seed, and nothing gathered yet."""
    params, state = task.init(trial, jax.random.key(trial.seed), data)
    started = TrialState(params, state, optimizer(trial).init(params))
    steps = steps_per_epoch(count(data["train"]), smallest(trial.batch_size))

    def metrics_and_norms(params: PyTree, examples: Examples) -> tuple[Metrics, Array]:
        batch, weight_B = _take(examples, 0, 1, largest(trial.batch_size), lambda index: index)
        metrics_B, _ = task.apply(trial, params, state, batch, weight_B, train=True)
        return metrics_B, task.gradient_norms(params) if gradient_norms else jnp.zeros(0)

    metrics_B, norms_L = jax.eval_shape(metrics_and_norms, params, data["train"])
    return started, Gathered(
        steps={name: jnp.zeros(steps) for name in metrics_B},
        norms_L=jnp.zeros(norms_L.shape) if gradient_norms else None,
        held_out={split: {name: jnp.zeros(()) for name in metrics_B} for split in HELD_OUT},
    )


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


def train_steps(
    task: Task, trial: Trial, state: TrialState, gathered: Gathered, epoch: Any, first: Any,
    last: Any, examples: Examples,
) -> tuple[TrialState, Gathered]:  # fmt: skip
    """Steps `first` to `last` (from 0, `last` not included) of an epoch (from 0).

    An epoch is one pass over the reshuffled examples, the last partial batch trained too. However
    it is cut into calls, the results have the same bits. Where the batch size is lifted, a trial
    of few steps stands still once they are over.
    """
    n, batch_size, size = count(examples), value(trial.batch_size), largest(trial.batch_size)
    order = permutation(n, trial.seed, epoch)
    words = mix(jnp.asarray(epoch, jnp.uint32) ^ mix(jnp.asarray(trial.seed, jnp.uint32)))

    def step(i: Array, carry: tuple[TrialState, Gathered]) -> tuple[TrialState, Gathered]:
        state, gathered = carry
        batch, weight_B = _take(examples, i * batch_size, batch_size, size, order)
        noise = mix(words ^ i.astype(jnp.uint32))
        new, metrics, grads = train_step(task, trial, state, batch, weight_B, noise)
        active = i * batch_size < n
        norms = gathered.norms_L
        if norms is not None:
            share = jnp.where(active, 1 / steps_per_epoch(n, batch_size), 0)
            norms = jnp.where(i == 0, 0, norms) + task.gradient_norms(grads) * share
        if isinstance(trial.batch_size, Size):
            new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        steps = {name: old.at[i].set(metrics[name]) for name, old in gathered.steps.items()}
        return new, gathered._replace(steps=steps, norms_L=norms)

    return jax.lax.fori_loop(first, last, step, (state, gathered))


def evaluate(
    task: Task, trial: Trial, state: TrialState, gathered: Gathered, first: Any, last: Any,
    data: Data,
) -> Gathered:  # fmt: skip
    """Batches `first` to `last` (not included) of the held-out examples, in evaluation mode."""
    examples, members = data["held_out"], data["members"]
    size = evaluation_batch(task, count(examples))

    def batch_sums(i: Array, held_out: dict[str, Metrics]) -> dict[str, Metrics]:
        (batch, member_B), weight_B = _take(
            (examples, members), i * size, size, size, lambda index: index
        )
        metrics_B, _ = task.apply(trial, state.params, state.state, batch, weight_B, train=False)
        sums: dict[str, Metrics] = {}
        for split, old in held_out.items():
            own_B = member_B[split] & (weight_B > 0)  # selected: NaN elsewhere must not leak
            sums[split] = {
                name: jnp.where(i == 0, 0, old[name]) + jnp.where(own_B, value_B, 0).sum()
                for name, value_B in metrics_B.items()
            }
        return sums

    held_out = jax.lax.fori_loop(first, last, batch_sums, gathered.held_out)
    return gathered._replace(held_out=held_out)


def evaluation_batch(task: Task, n: int) -> int:
    """How many of n held-out examples are evaluated at once."""
    return min(n, task.evaluation_batch)


def join_held_out(data: Data) -> Data:
    """Validation and test as one array, (N, ...), and which example belongs to which, (N,) each.

    Evaluation is then one loop.
    """
    splits = [data[split] for split in HELD_OUT]
    ends = np.cumsum([count(examples) for examples in splits])
    index_N = np.arange(ends[-1])
    return {name: examples for name, examples in data.items() if name not in HELD_OUT} | {
        "held_out": jax.tree.map(lambda *arrays: np.concatenate(arrays), *splits),
        "members": {
            split: (index_N >= end - count(examples)) & (index_N < end)
            for split, examples, end in zip(HELD_OUT, splits, ends, strict=True)
        },
    }


def means(trial: Trial, gathered: Any, counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """On the host, of E epochs: by split, then by metric, means over the split's examples, (E,).

    `gathered` has a leading axis of epochs, `counts` says how many examples each split has.
    """
    n = counts["train"]
    starts_S = np.arange(steps_per_epoch(n, trial.batch_size)) * trial.batch_size
    share_S = np.minimum(n - starts_S, trial.batch_size) / n  # float64: a sum of many steps
    train = {
        name: (value_ExS[:, : len(share_S)] @ share_S).astype(np.float32)
        for name, value_ExS in gathered.steps.items()
    }
    held_out = {
        split: {name: (sum_E / np.float32(counts[split])) for name, sum_E in metrics.items()}
        for split, metrics in gathered.held_out.items()
    }
    return {"train": train, **held_out}


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
