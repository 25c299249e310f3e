"""The examples of a batch: which they are, in which order, and what each counts."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxexp.base.batches import steps_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.spec.trial import Trial
from jaxexp.training.shuffle import one_of, permutation
from jaxexp.training.task import Arrays, Batch, Task


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of examples in a run's arrays, which a program knows: each fold's, or a batch's."""

    n: tuple[int, ...]


def first_example(i: Array, n: int | Array, batch_size: int | Array) -> Array:
    """The place in the shuffled order of the first example of step `i`, uint32.

    Past a trial's last step it stays there: `i * batch_size` would leave 32 bits where a program
    has batches of 1 and of many. Sums with positions below the batch size stay below 2 n < 2**32.
    """
    last = jnp.asarray(steps_per_epoch(n, batch_size) - 1).astype(jnp.uint32)
    return jnp.minimum(i.astype(jnp.uint32), last) * jnp.asarray(batch_size).astype(jnp.uint32)


def training_examples(data: Arrays, trial: Trial | None = None) -> int:
    """How many examples an epoch of a trial goes through: all, or those of its fold.

    With folds and no trial, those of the longest.
    """
    if "folds" not in data:
        return count(data["train"])
    n_F: tuple[int, ...] = data["folds"]["sizes"].n
    return max(n_F) if trial is None else n_F[trial.fold]


def shuffled(
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


def count(examples: Batch) -> int:
    """The number of examples N."""
    n: int = jax.tree.leaves(examples)[0].shape[0]
    return n


def as_they_lie(index: Array) -> Array:
    """The order in which examples lie."""
    return index


def weights_of(task: Task, batch: Batch, mask_B: Array) -> Array:
    """What each example of a batch counts, (B,): 0 outside the mask, else 1 or its weight."""
    weight_B = task.weights(batch)
    if weight_B is not None and jnp.shape(weight_B) != mask_B.shape:
        raise UserError(
            f"{type(task).__name__}.weights returned the shape {jnp.shape(weight_B)} for a batch "
            f"of {len(mask_B)} examples, expected {mask_B.shape}: one number for each example"
        )
    return jnp.where(mask_B, 1.0 if weight_B is None else weight_B, 0.0)


def take(
    examples: Batch, n: int | Array, start: Array, length: int | Array, size: int,
    order: Callable[[Array], Array], *, holes: bool = False,
) -> tuple[Batch, Array]:  # fmt: skip
    """`size` examples of an order of n, and their mask: False past `length` or the last.

    What follows in the order, from its beginning again, fills them up: no example is there twice
    where there are as many. With `holes`, the order may lead to no row, -1, where the mask is
    False, too.
    """
    offset_B = jnp.arange(size, dtype=jnp.uint32)
    position_B = start + offset_B
    row_B = order(position_B % jnp.uint32(n))
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
