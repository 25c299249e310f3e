"""Training one trial, as pure functions of the trial and the data.

Nothing here knows of grids, devices, files or progress: `jax.vmap` of these functions is a batch of
trials, and the same functions called alone are what that batch is tested against.

Shapes: N examples of a split, B examples of a batch, S = ceil(N / B) steps of an epoch, E epochs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxexp.base.batches import steps_per_epoch, turns_per_epoch
from jaxexp.spec.padding import Size, Traced, largest, smallest, value
from jaxexp.spec.trial import Trial
from jaxexp.training import keys
from jaxexp.training.batching import (
    as_they_lie,
    first_example,
    shuffled,
    take,
    training_examples,
    weighted_mean,
    weights_of,
)
from jaxexp.training.carry import EpochRecord, Gathered, Sums, TrainState, add, sums_of_batch
from jaxexp.training.optimizing import Steps, optimizer_of
from jaxexp.training.shuffle import mix
from jaxexp.training.task import Arrays, Batch, Outputs, Task, Variables, check_outputs, update
from jaxexp.training.trees import PyTree


def init(
    task: Task, trial: Trial, run_steps: Steps, data: Arrays, *, gradient_norms: bool = False,
    microbatch: int | None = None,
) -> tuple[TrainState, EpochRecord]:  # fmt: skip
    """The state before the first step, decided by the trial's seed, and an empty record.

    `data` is what `with_evaluation` returns; `microbatch` as for `train_steps`.
    """
    variables = task.init(trial, keys.key(trial.seed), data)
    optimizer = optimizer_of(task, trial, run_steps)
    started = TrainState(variables, optimizer.init(variables.params))
    if microbatch is not None:
        zeros = jax.tree.map(jnp.zeros_like, variables.params)
        started = started._replace(gathered=Gathered(zeros, jnp.zeros(()), jnp.zeros(())))
    steps = steps_per_epoch(training_examples(data), smallest(trial.batch_size))

    def sums_and_norms(variables: Variables, examples: Batch) -> tuple[Sums, Array, Array | None]:
        size = largest(trial.batch_size)
        batch, mask_B = take(examples, size, jnp.uint32(0), size, size, as_they_lie)
        rng = keys.key(0)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=True)
        check_outputs(task, outputs, size, variables.state)
        weight_B = task.weights(batch)
        norms = task.gradient_norms(variables.params) if gradient_norms else jnp.zeros(0)
        return sums_of_batch(task, outputs, weights_of(task, batch, mask_B)), norms, weight_B

    sums, norms_L, weight_B = jax.eval_shape(sums_and_norms, variables, data["train"])
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), sums)
    return started, EpochRecord(
        step_loss_S=jnp.zeros(steps),
        step_weight_S=None if weight_B is None else jnp.zeros(steps),
        running={name: own for name, own in empty.items() if name != "loss"},
        norms_L=jnp.zeros(norms_L.shape) if gradient_norms else None,
        splits=dict.fromkeys(data["evaluation"]["members"], empty),
    )


def train_step(
    task: Task, trial: Trial, run_steps: Steps, state: TrainState, batch: Batch, mask_B: Array,
    rng: Array,
) -> tuple[TrainState, Outputs, Array, PyTree]:  # fmt: skip
    """One step on the examples in the mask: new state, outputs, loss, and gradients.

    The loss is the mean over the batch, weighted if examples have weights.
    """
    weight_B = weights_of(task, batch, mask_B)

    def loss(params: PyTree) -> tuple[Array, Outputs]:
        variables = Variables(params, state.variables.state)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=True)
        return weighted_mean(outputs.loss, weight_B), outputs

    (mean, outputs), grads = jax.value_and_grad(loss, has_aux=True)(state.variables.params)
    optimizer = optimizer_of(task, trial, run_steps)
    updates, opt_state = update(
        optimizer, grads, state.optimizer, state.variables.params, mean, lambda p: loss(p)[0]
    )
    params = optax.apply_updates(state.variables.params, updates)
    return TrainState(Variables(params, outputs.state), opt_state), outputs, mean, grads


def train_microbatch(
    task: Task, trial: Trial, run_steps: Steps, state: TrainState, batch: Batch, mask_B: Array,
    rng: Array, begins: Array, ends: Array,
) -> tuple[TrainState, Outputs, Array, PyTree, Array]:  # fmt: skip
    """Some examples of a batch: new state, outputs, and its loss, gradients, weight so far.

    Gradients are summed from the microbatch that `begins` the batch to the one that `ends` it,
    which takes the step. If no example's loss depends on another example, as `Cost.microbatches`
    says, the result is that of `train_step` on the whole batch, except for the order of sums.
    """
    assert isinstance(state.gathered, Gathered)
    weight_B = weights_of(task, batch, mask_B)

    def loss(params: PyTree) -> tuple[Array, Outputs]:
        variables = Variables(params, state.variables.state)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=True)
        return jnp.where(weight_B > 0, outputs.loss * weight_B, 0).sum(), outputs

    (total, outputs), grads = jax.value_and_grad(loss, has_aux=True)(state.variables.params)
    gathered: Gathered = jax.tree.map(
        lambda old, new: jnp.where(begins, 0, old) + new,
        state.gathered,
        Gathered(grads, total, weight_B.sum()),
    )
    weight = jnp.where(gathered.weight > 0, gathered.weight, 1)
    mean = gathered.loss / weight
    grads = jax.tree.map(lambda a: (a / weight).astype(a.dtype), gathered.grads)
    params, optimizer = state.variables.params, optimizer_of(task, trial, run_steps)

    def stepped(params: PyTree, old: PyTree) -> tuple[PyTree, PyTree]:
        updates, new = update(optimizer, grads, old, params, mean)
        return optax.apply_updates(params, updates), new

    params, new = jax.lax.cond(ends, stepped, lambda *same: same, params, state.optimizer)
    variables = Variables(params, state.variables.state)
    return TrainState(variables, new, gathered), outputs, mean, grads, gathered.weight


class Turn(NamedTuple):
    """The examples that a turn of the loop over an epoch computes."""

    step: Array  # the one that they belong to
    start: Array  # the place of the first of them in the shuffled order, uint32
    length: int | Array  # how many; more than the array holds if other turns do the rest
    begins: Array  # whether they are the first of their batch,
    ends: Array  # or the last
    active: Array  # False once the trial's epoch is over


def turn_of(i: Array, n: int | Array, batch_size: int | Array, microbatch: int | None) -> Turn:
    """Turn `i` (from 0) of an epoch of n examples."""
    active = i < turns_per_epoch(n, batch_size, microbatch)
    if microbatch is None:
        start = first_example(i, n, batch_size)
        whole = jnp.bool_(True)
        return Turn(i, start, batch_size, whole, whole, active)
    each = steps_per_epoch(jnp.asarray(batch_size), microbatch)
    step, part = i // each, i % each
    done = part * microbatch  # how many examples of the batch
    first = first_example(step, n, batch_size)
    left = jnp.minimum(batch_size, n - first.astype(jnp.int32)) - done
    start = first + done.astype(jnp.uint32)
    return Turn(step, start, jnp.maximum(left, 0), part == 0, left <= microbatch, active)


def train_steps(
    task: Task, trial: Trial, run_steps: Steps, state: TrainState, record: EpochRecord,
    epoch: int | Array, first: Traced, last: Traced, data: Arrays, *, block: int = 1,
    microbatch: int | None = None, one_by_one: bool = False,
) -> tuple[TrainState, EpochRecord]:  # fmt: skip
    """Steps `first` to `last` (from 0, `last` not included) of an epoch (from 0).

    An epoch is one pass over the reshuffled examples, including the last partial batch. However it
    is divided into calls, the results have the same bits. If the program pads the batch size, or if
    folds differ in size, a trial with fewer steps than others stands still once its own are done.

    With a `block`, that many steps at a time form a loop with a fixed end, for devices that ask
    their host after each turn of any other loop.

    With a `microbatch`, that many examples are computed at once, and `first` and `last` count these
    microbatches: trials with different batch sizes then do an equal amount of work in each turn. If
    trials train `one_by_one`, each does no turns beyond its own.
    """
    examples, (n, order) = data["train"], shuffled(trial, epoch, data)
    batch_size, size = value(trial.batch_size), microbatch or largest(trial.batch_size)
    steps = steps_per_epoch(n, batch_size)
    waits = isinstance(trial.batch_size, Size) or not isinstance(n, int)
    word = mix(jnp.asarray(epoch, jnp.uint32) ^ mix(jnp.asarray(trial.seed, jnp.uint32)))

    def step(i: Array, carry: tuple[TrainState, EpochRecord]) -> tuple[TrainState, EpochRecord]:
        state, record = carry
        at = turn_of(i, n, batch_size, microbatch)
        active, place, ends = at.active, at.step, at.active & at.ends
        batch, mask_B = take(examples, n, at.start, at.length, size, order)
        rng, weight_B = step_key(word, at.step), weights_of(task, batch, mask_B)
        given = task, trial, run_steps, state, batch, mask_B, rng
        if microbatch is None:
            new, outputs, loss, grads = train_step(*given)
            weight = weight_B.sum()
            if waits:
                new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        else:
            new, outputs, loss, grads, weight = train_microbatch(*given, at.begins, ends)
            place = jnp.where(active, place, len(record.step_loss_S))  # past the end: not written
        norms = record.norms_L
        if norms is not None:
            share = jnp.where(ends, 1 / steps, 0)
            norms = jnp.where(i == 0, 0, norms) + task.gradient_norms(grads) * share
        counted_B = jnp.where(active, weight_B, 0) if waits or microbatch else weight_B
        sums = sums_of_batch(task, outputs, counted_B)
        weights = record.step_weight_S
        if weights is not None:
            weights = weights.at[place].set(weight)
        return new, record._replace(
            step_loss_S=record.step_loss_S.at[place].set(loss),
            step_weight_S=weights,
            running={name: add(i, own, sums[name]) for name, own in record.running.items()},
            norms_L=norms,
        )

    trained = state, record
    if one_by_one:
        last = jnp.minimum(last, turns_per_epoch(n, batch_size, microbatch))
    if block > 1:
        begin = jnp.asarray(first)
        blocks = jnp.maximum(last - begin, 0) // block

        def steps_of(
            i: Array, carry: tuple[TrainState, EpochRecord]
        ) -> tuple[TrainState, EpochRecord]:
            at = begin + i * block
            own: tuple[TrainState, EpochRecord]
            own = jax.lax.fori_loop(0, block, lambda j, own: step(at + j, own), carry)
            return own

        trained = jax.lax.fori_loop(0, blocks, steps_of, trained)
        first = begin + blocks * block
    rest: tuple[TrainState, EpochRecord] = jax.lax.fori_loop(first, last, step, trained)
    return rest


def step_key(word: Array, i: Array) -> Array:
    """A key for step `i` of an epoch whose seed is `word` (uint32), made by arithmetic alone."""
    first = mix(word ^ i.astype(jnp.uint32))
    words = jnp.stack([first, mix(~first)])
    key: Array = jax.random.wrap_key_data(words, impl=keys.THREEFRY)
    return key
