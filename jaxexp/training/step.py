"""Training one trial, as pure functions of the trial and the data.

Nothing here knows of grids, devices, files or progress: `jax.vmap` of these functions is a batch of
trials, and the same functions called alone are what that batch is tested against.

Shapes: N examples of a split, B examples of a batch, S = ceil(N / B) steps of an epoch, E epochs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxexp.base.batches import steps_per_epoch, turns_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.spec.padding import Choice, Size, Traced, choose, largest, smallest, value
from jaxexp.spec.trial import Trial
from jaxexp.training import keys
from jaxexp.training.data import Data
from jaxexp.training.folds import table
from jaxexp.training.metrics import Metric
from jaxexp.training.shuffle import mix, one_of, permutation
from jaxexp.training.task import (
    Arrays,
    Batch,
    Outputs,
    Task,
    Variables,
    check_outputs,
    evaluation_variables,
    extended_update,
    update,
)
from jaxexp.training.trees import PyTree

Sums: TypeAlias = dict[str, PyTree]  # of each metric, the loss among them
Steps: TypeAlias = int | Choice[int]  # of a trial in all; a choice where they differ

LOSS = Metric("lower")
TRAIN_SAMPLE = (512, 0.3, 10_000)  # examples evaluated: at least; a share of all; at most


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of examples in a run's arrays, which a program knows: each fold's, or a batch's."""

    n: tuple[int, ...]


class Gathered(NamedTuple):
    """Sums over the examples of a batch, as far as its microbatches are computed."""

    grads: PyTree
    loss: Array
    weight: Array


class TrainState(NamedTuple):
    """All that changes while a trial trains."""

    variables: Variables
    optimizer: PyTree
    gathered: Gathered | tuple[()] = ()  # where batches are computed in microbatches


class EpochRecord(NamedTuple):
    """What an epoch has recorded so far."""

    step_loss_S: Array
    step_weight_S: Array | None  # the weights of each batch, summed, where examples have weights
    running: Sums  # of the metrics in training mode, without the loss
    norms_L: Array | None  # the mean squared norm of each layer's gradient
    splits: dict[str, Sums]  # at the end of the epoch, in evaluation mode


def init(
    task: Task, trial: Trial, run_steps: Steps, data: Arrays, *, gradient_norms: bool = False,
    microbatch: int | None = None,
) -> tuple[TrainState, EpochRecord]:  # fmt: skip
    """The state before the first step, decided by the trial's seed, and an empty record.

    `data` is what `with_evaluation` returns; `microbatch` as for `train_steps`.
    """
    variables = task.init(trial, keys.key(trial.seed), data)
    optimizer = _optimizer(task, trial, run_steps)
    started = TrainState(variables, optimizer.init(variables.params))
    if microbatch is not None:
        zeros = jax.tree.map(jnp.zeros_like, variables.params)
        started = started._replace(gathered=Gathered(zeros, jnp.zeros(()), jnp.zeros(())))
    steps = steps_per_epoch(training_examples(data), smallest(trial.batch_size))

    def sums_and_norms(variables: Variables, examples: Batch) -> tuple[Sums, Array, Array | None]:
        size = largest(trial.batch_size)
        batch, mask_B = _take(examples, size, jnp.uint32(0), size, size, _same)
        rng = keys.key(0)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=True)
        check_outputs(task, outputs, size, variables.state)
        weight_B = task.weights(batch)
        norms = task.gradient_norms(variables.params) if gradient_norms else jnp.zeros(0)
        return _sums(task, outputs, weights_of(task, batch, mask_B)), norms, weight_B

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
    """One step on the examples of the mask: new state, outputs, loss, and gradients.

    The loss is the mean over the batch, weighted where examples have weights.
    """
    weight_B = weights_of(task, batch, mask_B)

    def loss(params: PyTree) -> tuple[Array, Outputs]:
        variables = Variables(params, state.variables.state)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=True)
        return weighted_mean(outputs.loss, weight_B), outputs

    (mean, outputs), grads = jax.value_and_grad(loss, has_aux=True)(state.variables.params)
    optimizer = _optimizer(task, trial, run_steps)
    updates, opt_state = update(
        optimizer, grads, state.optimizer, state.variables.params, mean, lambda p: loss(p)[0]
    )
    params = optax.apply_updates(state.variables.params, updates)
    return TrainState(Variables(params, outputs.state), opt_state), outputs, mean, grads


def train_microbatch(
    task: Task, trial: Trial, run_steps: Steps, state: TrainState, batch: Batch, mask_B: Array,
    rng: Array, begins: Array, ends: Array,
) -> tuple[TrainState, Outputs, Array, PyTree, Array]:  # fmt: skip
    """Some examples of a batch: new state, outputs; loss, gradients and weight of it so far.

    Gradients are summed from the microbatch that `begins` the batch to the one that `ends` it with
    a step. That is `train_step` of the whole batch, but for the order of its sums, where the loss
    of each example depends on no other: where `Cost.microbatches` says so.
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
    mean, grads = gathered.loss / weight, jax.tree.map(lambda a: a / weight, gathered.grads)
    params, optimizer = state.variables.params, _optimizer(task, trial, run_steps)

    def stepped(params: PyTree, old: PyTree) -> tuple[PyTree, PyTree]:
        updates, new = update(optimizer, grads, old, params, mean)
        return optax.apply_updates(params, updates), new

    params, new = jax.lax.cond(ends, stepped, lambda *same: same, params, state.optimizer)
    variables = Variables(params, state.variables.state)
    return TrainState(variables, new, gathered), outputs, mean, grads, gathered.weight


class Turn(NamedTuple):
    """Which examples a turn of the loop over an epoch is about."""

    step: Array  # that they belong to
    start: Array  # the place of the first of them in the shuffled order, uint32
    length: int | Array  # of them; more than the array holds, where the rest is another turn's
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
    done = part * microbatch  # of the examples of the batch
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

    An epoch is one pass over the reshuffled examples, the last partial batch trained too. However
    it is cut into calls, the results have the same bits. Where the program pads the batch size, or
    folds differ in size, a trial of few steps stands still once they are over.

    With a `block`, so many steps at a time are a loop with a fixed end: for devices that ask their
    host after each turn of any other.

    With a `microbatch`, so many examples are computed at once, and `first` and `last` count these
    microbatches: trials of other batch sizes then do an equal amount of work in each turn. Where
    trials train `one_by_one`, each does no more than its own.
    """
    examples, (n, order) = data["train"], _shuffled(trial, epoch, data)
    batch_size, size = value(trial.batch_size), microbatch or largest(trial.batch_size)
    steps = steps_per_epoch(n, batch_size)
    waits = isinstance(trial.batch_size, Size) or not isinstance(n, int)
    word = mix(jnp.asarray(epoch, jnp.uint32) ^ mix(jnp.asarray(trial.seed, jnp.uint32)))

    def step(i: Array, carry: tuple[TrainState, EpochRecord]) -> tuple[TrainState, EpochRecord]:
        state, record = carry
        at = turn_of(i, n, batch_size, microbatch)
        active, place, ends = at.active, at.step, at.active & at.ends
        batch, mask_B = _take(examples, n, at.start, at.length, size, order)
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
        sums = _sums(task, outputs, counted_B)
        weights = record.step_weight_S
        if weights is not None:
            weights = weights.at[place].set(weight)
        return new, record._replace(
            step_loss_S=record.step_loss_S.at[place].set(loss),
            step_weight_S=weights,
            running={name: _add(i, own, sums[name]) for name, own in record.running.items()},
            norms_L=norms,
        )

    trained = state, record
    if one_by_one:
        last = jnp.minimum(last, turns_per_epoch(n, batch_size, microbatch))
    if block > 1:
        begin = jnp.asarray(first)
        blocks = (last - begin) // block

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


def first_example(i: Array, n: int | Array, batch_size: int | Array) -> Array:
    """The place in the shuffled order of the first example of step `i`, uint32.

    Past a trial's last step it stays there: `i * batch_size` would leave 32 bits where a program
    has batches of 1 and of many. Sums with positions below the batch size stay below 2 n < 2**32.
    """
    last = jnp.asarray(steps_per_epoch(n, batch_size) - 1).astype(jnp.uint32)
    return jnp.minimum(i.astype(jnp.uint32), last) * jnp.asarray(batch_size).astype(jnp.uint32)


def step_key(word: Array, i: Array) -> Array:
    """A key for step `i` of an epoch, of which `word` (uint32) is the seed; arithmetic alone."""
    first = mix(word ^ i.astype(jnp.uint32))
    words = jnp.stack([first, mix(~first)])
    key: Array = jax.random.wrap_key_data(words, impl=keys.THREEFRY)
    return key


def evaluate(
    task: Task, trial: Trial, state: TrainState, record: EpochRecord, first: Traced, last: Traced,
    data: Arrays,
) -> EpochRecord:  # fmt: skip
    """Batches `first` to `last` (not included) of the examples to evaluate, in evaluation mode."""
    examples, members = data["evaluation"]["examples"], data["evaluation"]["members"]
    n = evaluated_examples(data)
    size = evaluated_by_program(task, data)
    examples = data["train"] if examples is None else examples
    variables = evaluation_variables(task, trial, state.variables, state.optimizer)
    order, by_rows = _same, "rows" in data["evaluation"]
    if by_rows:
        fold = trial.fold if "folds" in data else 0
        rows_M = data["evaluation"]["rows"][fold]
        members = {split: member_FxM[fold] for split, member_FxM in members.items()}
        order = rows_M.__getitem__

    def batch_sums(i: Array, splits: dict[str, Sums]) -> dict[str, Sums]:
        start = i.astype(jnp.uint32) * jnp.uint32(size)
        batch, mask_B = _take(examples, n, start, size, size, order, holes=by_rows)
        member_B, _ = _take(members, n, start, size, size, _same)
        rng = keys.key(0)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=False)
        check_outputs(task, outputs, size)
        weight_B = weights_of(task, batch, mask_B)
        made = {}
        for split, old in splits.items():
            # Selected, not multiplied: NaN elsewhere must not leak.
            sums = _sums(task, outputs, jnp.where(member_B[split], weight_B, 0))
            made[split] = {name: _add(i, old[name], sums[name]) for name in old}
        return made

    return record._replace(splits=jax.lax.fori_loop(first, last, batch_sums, record.splits))


def evaluated_at_once(task: Task, data: Data) -> int:
    """How many examples are evaluated at once."""
    n = data.evaluated_apart or sum(evaluated_counts(data).values())
    return min(n, task.evaluation_batch_size)


def evaluated_by_program(task: Task, data: Arrays) -> int:
    """The same of the arrays of a run."""
    apart: Sizes | None = data["evaluation"].get("apart")
    return (
        min(evaluated_examples(data), task.evaluation_batch_size) if apart is None else apart.n[0]
    )


def with_evaluation(data: Data) -> dict[str, PyTree]:
    """The arrays of a run: those of the data, and as one loop wants them, the examples to evaluate.

    They are a sample of the training examples, fixed once for all, and every other split;
    "members" says of each split which of the examples belong to it, (N,). Where a trial trains on
    one of F folds, they are M "rows" of it, (F, M), and so are the "members"; and where batches are
    of one split each, with F = 1.
    """
    if data.folds is not None:
        return _with_folds(data)
    index_K = train_sample(data)
    parts = {**data.splits, "train": jax.tree.map(lambda a: np.asarray(a)[index_K], data.train)}
    ends = dict(zip(parts, np.cumsum([count(part) for part in parts.values()]), strict=True))
    index_N = np.arange(ends[list(ends)[-1]])
    members = {
        name: (index_N >= ends[name] - count(part)) & (index_N < ends[name])
        for name, part in parts.items()
    }
    whose: dict[str, PyTree] = {"members": members}
    if data.evaluated_apart:
        rows = {name: np.flatnonzero(own)[None].astype(np.int32) for name, own in members.items()}
        whose = _by_rows(rows, data.evaluated_apart)
    examples = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts.values())
    return {"train": data.train, **data.extra, "evaluation": {"examples": examples, **whose}}


def _with_folds(data: Data) -> dict[str, PyTree]:
    """The same, where rows of the training examples are those of folds."""
    assert data.folds is not None
    sampled = [rows[train_sample(data, fold)] for fold, rows in enumerate(data.folds["train"])]
    parts = {**data.folds, "train": table(sampled)}
    examples, n = None, count(data.train)
    for split, own in data.splits.items():
        if split != "train":  # a part of their own, the same for all folds
            rows_N = n + np.arange(count(own))
            parts[split] = np.tile(rows_N.astype(np.int32), (data.n_folds, 1))
            examples = jax.tree.map(
                lambda *a: np.concatenate(a), data.train if examples is None else examples, own
            )
            n += count(own)
    return {
        "train": data.train,
        "folds": {**data.folds, "sizes": _sizes(data)},
        **data.extra,
        "evaluation": {"examples": examples, **_by_rows(parts, data.evaluated_apart)},
    }


def _by_rows(parts: Mapping[str, np.ndarray], apart: int) -> dict[str, PyTree]:
    """Rows of all splits, (F, M), and which are whose; each part is filled up to whole batches."""
    if apart:
        parts = {
            split: np.pad(rows, ((0, 0), (0, -rows.shape[1] % apart)), constant_values=-1)
            for split, rows in parts.items()
        }
    of_M = np.concatenate([[split] * rows.shape[1] for split, rows in parts.items()])
    rows_FxM = np.concatenate(list(parts.values()), axis=1)
    members = {split: (of_M == split) & (rows_FxM >= 0) for split in parts}
    known = {"apart": Sizes((apart,))} if apart else {}
    return {"rows": rows_FxM, "members": members, **known}


def _sizes(data: Data) -> Sizes:
    return Sizes(tuple(data.counts_of(fold)["train"] for fold in range(data.n_folds)))


def training_examples(data: Arrays, trial: Trial | None = None) -> int:
    """How many examples an epoch of a trial goes through: all, or those of its fold.

    With folds and no trial, those of the longest.
    """
    if "folds" not in data:
        return count(data["train"])
    n_F: tuple[int, ...] = data["folds"]["sizes"].n
    return max(n_F) if trial is None else n_F[trial.fold]


def evaluated_examples(data: Arrays) -> int:
    """How many examples are evaluated of each trial."""
    evaluation = data["evaluation"]
    n: int = evaluation["rows"].shape[1] if "rows" in evaluation else count(evaluation["examples"])
    return n


def _shuffled(
    trial: Trial, epoch: int | Array, data: Arrays
) -> tuple[int | Array, Callable[[Array], Array]]:
    """How many examples an epoch has, and from the places in its order to the rows.

    Of a fold, both are those of a run on its rows alone.
    """
    if "folds" not in data:
        n = training_examples(data)
        return n, permutation(n, trial.seed, epoch)
    grid, rows_FxN = one_of(data["folds"]["sizes"].n, trial.fold), data["folds"]["train"]
    order = permutation(grid, trial.seed, epoch)
    return grid.n, lambda index: jnp.asarray(rows_FxN)[trial.fold, order(index)]


def evaluated_counts(data: Data, fold: int | None = None) -> dict[str, int]:
    """How many examples of each split are evaluated; with folds, of this one or the longest."""
    counts = data.counts if fold is None else data.counts_of(fold)
    return {**counts, "train": _sample_size(counts["train"], data.train_sample)}


def train_sample(data: Data, fold: int = 0) -> np.ndarray:
    """The places of the training examples that are evaluated at the end of every epoch, sorted.

    With folds, the places in this one.
    """
    n = data.counts_of(fold)["train"]
    return _sample(n, _sample_size(n, data.train_sample))


def _sample_size(n: int, asked: int | None) -> int:
    """As many as the data say, or else all of up to 512.

    Of more, 30 %, which takes about a tenth of the time of an epoch, but at least 512 and at most
    10,000.
    """
    least, share, most = TRAIN_SAMPLE
    return min(n, max(least, min(int(share * n), most)) if asked is None else asked)


@functools.lru_cache(4)  # folds of few sizes
def _sample(n: int, size: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(n)[:size])


def values(task: Task, sums: Sums) -> dict[str, np.ndarray]:
    """On the host, metrics from their sums, which have two leading axes (T, E): (T, E) each."""
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
    """On the host, the mean of the step losses of each epoch, (E,), as examples are weighted.

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


def count(examples: Batch) -> int:
    """The number of examples N."""
    n: int = jax.tree.leaves(examples)[0].shape[0]
    return n


def _optimizer(task: Task, trial: Trial, run_steps: Steps) -> optax.GradientTransformation:
    """Of one trial; where the program's trials take other numbers of steps, of each of them."""
    return _without_keys(_as_made(task, trial, run_steps))


def _without_keys(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, whose state has the data of keys in their place: they are saved as other arrays."""

    def is_key(a: ArrayLike) -> bool:
        return jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)

    def data(state: PyTree) -> PyTree:
        return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, state)

    def keys(state: PyTree, params: PyTree) -> PyTree:
        if not any(jnp.result_type(a) == jnp.uint32 for a in jax.tree.leaves(state)):
            return state
        return jax.tree.map(
            lambda a, like: (
                jax.random.wrap_key_data(a, impl=jax.random.key_impl(like)) if is_key(like) else a
            ),
            state, optimizer.init(params),
        )  # fmt: skip

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        updates, new = extended_update(optimizer, grads, keys(state, params), params, extra)
        return updates, data(new)

    return optax.GradientTransformationExtraArgs(
        lambda params: data(optimizer.init(params)), update
    )


def _as_made(task: Task, trial: Trial, run_steps: Steps) -> optax.GradientTransformation:
    if not isinstance(run_steps, Choice):
        return task.optimizer(trial, run_steps)
    made = {steps: task.optimizer(trial, steps) for steps in run_steps.options}

    def init(params: PyTree) -> PyTree:
        states = [each.init(params) for each in made.values()]
        if len({str(jax.tree.structure(state)) for state in states}) > 1:
            raise UserError(
                f"the optimizer of {' and '.join(map(str, made))} steps keeps a state of another "
                "structure, so that trials of these lengths share no program: run with "
                "programs='exact', and folds of other sizes one by one"
            )
        return choose(run_steps, lambda steps: states[run_steps.options.index(steps)])

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        return choose(
            run_steps, lambda steps: extended_update(made[steps], grads, state, params, extra)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _sums(task: Task, outputs: Outputs, weight_B: Array) -> Sums:
    sums = {"loss": LOSS.sums_of(outputs.loss, None, None, weight_B)}
    for name, metric in task.metrics.items():
        own_B = outputs.metrics.get(name)
        sums[name] = metric.sums_of(own_B, outputs.prediction, outputs.target, weight_B)
    return sums


def _add(i: Array, old: PyTree, new: PyTree) -> PyTree:
    """Sums of an epoch: those before step or batch `i`, which starts anew at 0, and its own."""
    return jax.tree.map(lambda a, b: jnp.where(i == 0, 0, a) + b, old, new)


def _same(index: Array) -> Array:
    """The order in which examples lie."""
    return index


def weights_of(task: Task, batch: Batch, mask_B: Array) -> Array:
    """What each example of a batch counts, (B,): 0 outside the mask, else 1 or its weight."""
    weight_B = task.weights(batch)
    return jnp.where(mask_B, 1.0 if weight_B is None else weight_B, 0.0)


def _take(
    examples: Batch, n: int | Array, start: Array, length: int | Array, size: int,
    order: Callable[[Array], Array], *, holes: bool = False,
) -> tuple[Batch, Array]:  # fmt: skip
    """`size` examples of an order of n, and their mask: False past `length` or the last.

    With `holes`, the order may lead to no row, -1, where it is False, too.
    """
    offset_B = jnp.arange(size, dtype=jnp.uint32)
    position_B = start + offset_B
    row_B = order(jnp.minimum(position_B, jnp.uint32(n - 1)))
    index_B = jnp.maximum(row_B, 0) if holes else row_B

    def rows(a: ArrayLike) -> Array:
        return jnp.asarray(a).at[index_B].get(mode="promise_in_bounds")

    length = jnp.asarray(length).astype(jnp.uint32)
    mask_B = (position_B < jnp.uint32(n)) & (offset_B < length)
    if holes:
        mask_B &= row_B >= 0
    return jax.tree.map(rows, examples), mask_B


def weighted_mean(value_B: Array, weight_B: Array) -> Array:
    """The mean of the values of positive weight; 0 where there is none."""
    total = weight_B.sum()
    return jnp.where(weight_B > 0, value_B * weight_B, 0).sum() / jnp.where(total > 0, total, 1)
