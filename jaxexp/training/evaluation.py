"""Evaluating a trial after an epoch, and the examples that are evaluated."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxexp.spec.padding import Traced
from jaxexp.spec.trial import Trial
from jaxexp.training import keys
from jaxexp.training.batching import Sizes, as_they_lie, count, take, weights_of
from jaxexp.training.carry import EpochRecord, Sums, TrainState, add, sums_of_batch
from jaxexp.training.data import Data, Examples
from jaxexp.training.folds import table
from jaxexp.training.task import Arrays, Task, check_outputs, evaluation_variables
from jaxexp.training.trees import PyTree

TRAIN_SAMPLE = (512, 0.3, 10_000)  # examples evaluated: at least; a share of all; at most


def evaluate(
    task: Task, trial: Trial, state: TrainState, record: EpochRecord, first: Traced, last: Traced,
    data: Arrays,
) -> EpochRecord:  # fmt: skip
    """Evaluate batches `first` to `last` (`last` not included), in evaluation mode."""
    examples, members = data["evaluation"]["examples"], data["evaluation"]["members"]
    n = evaluated_examples(data)
    size = evaluated_by_program(task, data)
    examples = data["train"] if examples is None else examples
    variables = evaluation_variables(task, trial, state.variables, state.optimizer)
    order, by_rows = as_they_lie, "rows" in data["evaluation"]
    if by_rows:
        fold = trial.fold if "folds" in data else 0
        rows_M = data["evaluation"]["rows"][fold]
        members = {split: member_FxM[fold] for split, member_FxM in members.items()}
        order = rows_M.__getitem__

    def batch_sums(i: Array, splits: dict[str, Sums]) -> dict[str, Sums]:
        start = i.astype(jnp.uint32) * jnp.uint32(size)
        batch, mask_B = take(examples, n, start, size, size, order, holes=by_rows)
        member_B, _ = take(members, n, start, size, size, as_they_lie)
        rng = keys.key(0)
        outputs = task.apply(trial, variables, batch, rng=rng, mask=mask_B, train=False)
        check_outputs(task, outputs, size)
        weight_B = weights_of(task, batch, mask_B)
        made = {}
        for split, old in splits.items():
            # Selected, not multiplied: NaN elsewhere must not leak.
            sums = sums_of_batch(task, outputs, jnp.where(member_B[split], weight_B, 0))
            made[split] = {name: add(i, old[name], sums[name]) for name in old}
        return made

    return record._replace(splits=jax.lax.fori_loop(first, last, batch_sums, record.splits))


def evaluated_at_once(task: Task, data: Data) -> int:
    """How many examples are evaluated at once."""
    n = data.evaluated_apart or sum(evaluated_counts(data).values())
    return min(n, task.evaluation_batch_size)


def evaluated_by_program(task: Task, data: Arrays) -> int:
    """The same, given the arrays of a run."""
    apart: Sizes | None = data["evaluation"].get("apart")
    return (
        min(evaluated_examples(data), task.evaluation_batch_size) if apart is None else apart.n[0]
    )


def with_evaluation(data: Data) -> dict[str, PyTree]:
    """The arrays of a run: those of the data, and the examples to evaluate, arranged for one loop.

    These are a sample of the training examples, fixed once for all, and every other split;
    "members" says for each split which of the examples belong to it, (N,). If trials train on one
    of F folds, each fold's examples are given by M "rows", (F, M), and the "members" have this
    shape, too. The same holds, with F = 1, if each batch is of one split.
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
    """The same for data with folds, which are rows of the training examples."""
    assert data.folds is not None
    sampled = [rows[train_sample(data, fold)] for fold, rows in enumerate(data.folds["train"])]
    parts = {**data.folds, "train": table(sampled)}
    examples, n = None, count(data.train)
    for split, own in data.splits.items():
        if split != "train":  # a split of its own, the same for all folds
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
    """Rows of all splits, (F, M), and their members; with `apart`, each split in whole batches."""
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


def evaluated_examples(data: Arrays) -> int:
    """How many examples are evaluated for each trial."""
    evaluation = data["evaluation"]
    n: int = evaluation["rows"].shape[1] if "rows" in evaluation else count(evaluation["examples"])
    return n


def evaluated_counts(data: Data, fold: int | None = None) -> dict[str, int]:
    """How many examples of each split are evaluated; with folds, in this one or in the largest."""
    counts = data.counts if fold is None else data.counts_of(fold)
    return {**counts, "train": _sample_size(counts["train"], data.train_sample)}


def train_sample(data: Data, fold: int = 0) -> np.ndarray:
    """The places of the training examples that are evaluated at the end of every epoch, sorted.

    With folds, the places in this one.
    """
    n = data.counts_of(fold)["train"]
    order_N, size = _shuffled(n), _sample_size(n, data.train_sample)
    weight_N = data.train.weight if isinstance(data.train, Examples) else None
    if weight_N is not None:  # those that count come first
        weight_N = weight_N if data.folds is None else weight_N[data.folds["train"][fold][:n]]
        order_N = order_N[np.argsort(weight_N[order_N] == 0, kind="stable")]
    return np.sort(order_N[:size])


def _sample_size(n: int, asked: int | None) -> int:
    """How many of n training examples to evaluate: as many as `asked`, or else all up to 512.

    Of more than 512, it is 30 %, which takes about a tenth of the time of an epoch, but at least
    512 and at most 10,000.
    """
    least, share, most = TRAIN_SAMPLE
    return min(n, max(least, min(int(share * n), most)) if asked is None else asked)


@functools.lru_cache(4)  # folds have few sizes
def _shuffled(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)
