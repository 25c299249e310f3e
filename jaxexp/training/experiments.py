"""What is not proven of a task is tried out: computed of examples beside different others."""

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jax_core

from jaxexp.spec.trial import Trial
from jaxexp.training import batching, flags, jaxprs, keys, tracing
from jaxexp.training.examples import ANY, Given, Leaves, Programs
from jaxexp.training.task import Batch, Variables

HALF = ANY // 2  # examples of the batch that is computed, beside as many others
DRAWS = 8  # of examples, others, variables and a trial's hyperparameters
NOISE = 0.3  # of parameters, in their own scale: many begin at zero, where nothing shows
FAR = (1.0, 1e3)  # what others' numbers are multiplied by: some things show in large ones alone
ROUNDING = 1e-5  # of gradients, whose sums some devices take in any order


class Experiments:
    """With trials that agree in what is static, at some points of their training."""

    def __init__(
        self, programs: Programs, trials: Sequence[Trial], steps: int, of: Collection[bool],
        by_size: Mapping[bool, Mapping[int, jax_core.ClosedJaxpr]],
    ) -> None:  # fmt: skip
        """`of` training, evaluation or both; and the same of batches of several sizes."""
        self.programs, self.trials, self.steps = programs, trials, steps
        self.arrays, self.shapes = programs.arrays, programs.shapes
        self.small = {train: self.program(train=train) for train in of}
        self.by_size = by_size
        init = jax.make_jaxpr(programs.init)(self.shapes.leaves, self.shapes.rng, self.arrays)
        traced = [init, *(each.closed for each in self.small.values())]
        for own in by_size.values():
            traced += own.values()
        read = sorted(set().union(*map(self.read, traced)))
        values = _spread([tuple(getattr(t, name) for name in read) for t in trials])
        self.leaves = [self.leaves_of(dict(zip(read, own, strict=True))) for own in values]
        self.turns = max(2, math.ceil(DRAWS / len(values)))  # of each trial's hyperparameters
        # All that the answers depend on.
        self.identity: tuple[object, ...] = (
            tuple(self.small),
            tuple((train, *own) for train, own in by_size.items()),
            tuple(map(jaxprs.digest, traced)),
            (*read, *values, steps),
            self.data_digest(init.jaxpr),
            tuple(flags.of_numbers().items()),
        )

    def sizes(self, *, train: bool) -> bool:
        """Whether examples differ by themselves, and in the largest batch, which is filled up.

        Where nothing can be computed, it is not known, and said to differ.
        """
        run = {
            n: _runnable(program, jax.tree.leaves(self.programs.sized(self.shapes, n)))
            for n, program in sorted(self.by_size[train].items())
        }
        *small, large = run or [0]
        grads, state = (len(jax.tree.leaves(p)) if train else 0 for p in self.shapes.variables)
        found: dict[int, list[list[tuple[float, float]]]] = {}
        for i, (given, _) in enumerate(self.draws() if small else ()):
            rows = self.drawn(i, large)
            for n in small:
                filled, alone = (
                    run[size](
                        given._replace(
                            batch=_rows(self.arrays["train"], rows[:size]),
                            mask=np.arange(size) < n,
                        )
                    )
                    for size in (large, n)
                )
                if filled is None or alone is None:
                    continue
                # The loss and what metrics read have scales of their own.
                each = len(alone) - state - grads
                parts = [*(slice(j, j + 1) for j in range(each)), slice(each, each + state),
                         slice(each + state, None)]  # fmt: skip
                measured = [_difference(filled[part], alone[part]) for part in parts]
                found.setdefault(i // self.turns, []).append(measured)
        for of_leaves in found.values():
            difference_DxG, scale_DxG = np.moveaxis(np.array(of_leaves), 2, 0)
            # In some draws, terms of a gradient cancel out, and what is left is their rounding.
            scale_DxG = np.maximum(scale_DxG, np.median(scale_DxG, axis=0))
            if (difference_DxG > 10 * ROUNDING * scale_DxG).any():
                return True
        return not found

    def drawn(self, i: int, n: int) -> np.ndarray:
        """Rows of a batch."""
        return _distinct(i, batching.count(self.arrays["train"]), n)

    def program(self, *, train: bool) -> "_Program":
        """What is computed where nothing is proven."""
        if not train:
            closed, names = self.programs.traced_examples(2 * HALF, train=False)
            return _Program(closed, len(names), 0)
        closed, (each, _, grads) = jax.make_jaxpr(self.programs.gradients, return_shape=True)(
            self.shapes
        )
        return _Program(closed, len(jax.tree.leaves(each)), len(jax.tree.leaves(grads)))

    def read(self, program: jax_core.ClosedJaxpr) -> set[str]:
        """The hyperparameters among what a program uses; they are the first of its inputs."""
        used, names = _used(program.jaxpr), sorted(self.shapes.leaves)
        return {name for name, v in zip(names, program.jaxpr.invars, strict=False) if v in used}

    def data_digest(self, init: jax_core.Jaxpr) -> str:
        """Of what the answer depends on: rows that are drawn, and arrays that `init` uses."""
        train, used = self.arrays["train"], _used(init)
        leaves = jax.tree.leaves(self.arrays)
        inputs = init.invars[len(init.invars) - len(leaves) :]
        parts = [leaf for leaf, v in zip(leaves, inputs, strict=True) if v in used]
        largest = max((n for own in self.by_size.values() for n in own), default=0)
        for i in range(self.turns * len(self.leaves)):
            parts += jax.tree.leaves(_rows(train, _drawn(i, batching.count(train))))
            parts += jax.tree.leaves(_rows(train, self.drawn(i, largest)))
        sha256 = hashlib.sha256()
        for part in parts:
            sha256.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return sha256.hexdigest()

    def leaves_of(self, values: Mapping[str, Any]) -> Leaves:
        """Hyperparameters as a program has them; those that nothing reads are of any trial."""
        return {
            name: np.asarray(values.get(name, getattr(self.trials[0], name)), shape.dtype)
            for name, shape in self.shapes.leaves.items()
        }

    def filling(self) -> dict[bool, bool]:
        """Whether what fills a batch changes what there is of the same examples.

        Where nothing can be computed, it is not known, and said to change.
        """
        mask, shapes = np.arange(2 * HALF) < HALF, jax.tree.leaves(self.shapes)
        run = {train: _runnable(program.closed, shapes) for train, program in self.small.items()}
        changed, unknown = set[bool](), set(self.small)
        for pair in self.draws() if self.small else ():
            for train in self.small.keys() - changed:
                one, other = (run[train](each._replace(mask=mask)) for each in pair)
                if one is None or other is None:
                    continue
                if self.small[train].differ(one, other):
                    changed.add(train)
                if np.isfinite(one[0][:HALF]).any():
                    unknown.discard(train)
        return {train: train in changed | unknown for train in self.small}

    @functools.cached_property
    def compiled_init(self) -> jax.stages.Compiled:
        """Once for all that is tried."""
        return tracing.compiled_quickly(
            self.programs.init, self.shapes.leaves, self.shapes.rng, self.arrays
        )

    def draws(self) -> Iterator[tuple[Given, Given]]:
        """The same examples twice, beside different ones, at some point of a trial's training."""
        counts = [min(count, self.steps) for count in (0, 1000, 1, self.steps, 10)]
        train, key = self.arrays["train"], keys.key(0)
        n = batching.count(train)
        for i in range(self.turns * len(self.leaves)):
            place, turn = divmod(i, self.turns)
            rng = np.random.default_rng(i)
            if turn == 0:
                started = jax.tree.map(
                    np.asarray, self.compiled_init(self.leaves[place], key, self.arrays)
                )
            count = counts[(place + turn) % len(counts)]
            variables = _moved(started, count, rng) if i else started
            own, others = (_rows(train, part) for part in np.split(_drawn(i, n), 2))
            crossed = functools.partial(_crossed, rng=rng)
            again = jax.tree.map(crossed, own, others) if i % 2 else own
            again = jax.tree.map(functools.partial(_times, FAR[i // 2 % 2]), again)
            one, other = (
                jax.tree.map(lambda *parts: np.concatenate(parts), own, beside)
                for beside in (others, again)
            )
            given = Given(self.leaves[place], variables, one, None, keys.key(i))
            yield given, given._replace(batch=other)


def _both_finite(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is finite in both, as floats of 64 bits: also of bools and bfloat16."""
    a, b = a + np.float64(0), b + np.float64(0)
    finite = np.isfinite(a) & np.isfinite(b)
    return a[finite], b[finite]


def _difference(filled: Sequence[np.ndarray], alone: Sequence[np.ndarray]) -> tuple[float, float]:
    """The largest difference, infinite where some are finite alone only; and the largest number.

    The largest of all counts: a gradient that should be 0 is rounding alone.
    """
    difference = scale = 0.0
    for a, b in zip(filled, alone, strict=True):
        a = a[: len(b)] if b.ndim else a
        finite, (a, b) = np.isfinite(b + np.float64(0)).sum(), _both_finite(a, b)
        difference = max(difference, np.inf if b.size < finite else abs(a - b).max(initial=0.0))
        scale = max(scale, abs(b).max(initial=0.0))
    return difference, scale


class _Program(NamedTuple):
    """What is computed of a small batch."""

    closed: jax_core.ClosedJaxpr
    each: int  # of its results, those that there are of each example: the first ones
    grads: int  # those that are gradients: the last ones

    def differ(self, one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
        """Whether results do that do not have to: those that are finite, in any bit.

        What is not finite anywhere in a batch may spread over it, and is another matter.
        """
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if i < self.each:
                a, b = a[:HALF], b[:HALF]
            a, b = _both_finite(a, b)
            rounding = ROUNDING if i >= len(one) - self.grads else 0.0
            if (abs(a - b) > rounding * abs(a).max(initial=0.0)).any():
                return True
        return False


def _drawn(i: int, n: int) -> np.ndarray:
    """Rows of a batch, of n; every second time neighbours, which may share what sorts them."""
    rows = _distinct(i, n, 2 * HALF)
    return (rows[0] + np.arange(2 * HALF)) % n if i % 2 else rows


def _distinct(i: int, n: int, size: int) -> np.ndarray:
    """Rows of n, none again before all were drawn: the ranks of equal ones depend on rounding."""
    rng, (whole, rest) = np.random.default_rng(i), divmod(size, n)
    parts = [rng.permutation(n) for _ in range(whole)]  # no period, which reversal would keep
    return np.concatenate([*parts, rng.choice(n, rest, replace=False)])


def _used(jaxpr: jax_core.Jaxpr) -> set[jax_core.Var]:
    return jaxprs.variables([*jaxpr.outvars, *(v for eqn in jaxpr.eqns for v in eqn.invars)])


def _rows(examples: Batch, rows: np.ndarray) -> Batch:
    return jax.tree.map(lambda a: np.asarray(a[rows]), examples)


def _crossed(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each number of one or the other, so that some of what examples may share is shared."""
    return np.where(rng.random(a.shape) < 0.5, a, b)


def _times(factor: float, a: np.ndarray) -> np.ndarray:
    """Of what is no floats, the same."""
    made: np.ndarray = a * a.dtype.type(factor) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return made


def _moved(variables: Variables, count: int, rng: np.random.Generator) -> Variables:
    """As if trained for some steps, on which a state may count."""

    def param(leaf: Array) -> np.ndarray:
        own = np.asarray(leaf)
        scale = NOISE * (float(own.astype(np.float32).std()) or 1.0)
        moved: np.ndarray = own + (scale * rng.standard_normal(own.shape)).astype(own.dtype)
        return moved

    def state(leaf: Array) -> np.ndarray:
        own = np.asarray(leaf)
        if own.dtype == bool:
            return own ^ (rng.random(own.shape) < 0.5)
        moved: np.ndarray
        if jnp.issubdtype(own.dtype, jnp.floating):  # upwards: it may be a variance
            moved = own + (count + NOISE * abs(rng.standard_normal(own.shape))).astype(own.dtype)
        elif jnp.issubdtype(own.dtype, jnp.integer):
            moved = (own.astype(np.int64) + count).astype(own.dtype)
        else:
            moved = own + own.dtype.type(count)
        return moved

    return Variables(jax.tree.map(param, variables.params), jax.tree.map(state, variables.state))


def _runnable(
    program: jax_core.ClosedJaxpr, shapes: Sequence[jax.ShapeDtypeStruct]
) -> Callable[[Given], list[np.ndarray] | None]:
    """A program of a small batch, compiled; it returns None where it cannot be computed."""

    @functools.cache
    def compiled() -> jax.stages.Compiled:
        return tracing.compiled_quickly(jax_core.jaxpr_as_fun(program), *shapes)

    def run(given: Given) -> list[np.ndarray] | None:
        try:
            return [np.asarray(a) for a in compiled()(*jax.tree.leaves(given))]
        except Exception:  # whatever functions raise that it calls on the host, or another device
            return None

    return run


def _spread(values: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """All that differ of a few; of many the extremes, and some of the others."""
    distinct = sorted(set(values))
    if len(distinct) <= DRAWS:
        return distinct
    columns = [operator.itemgetter(i) for i in range(len(distinct[0]))]
    chosen = {bound(distinct, key=column) for column in columns for bound in (min, max)}
    rest = [each for each in distinct if each not in chosen]
    size = min(len(rest), max(DRAWS - len(chosen), HALF))
    places = np.random.default_rng(0).choice(len(rest), size, replace=False)
    return sorted(chosen | {rest[i] for i in places})
