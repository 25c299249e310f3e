"""Whether an optimizer updates a padded model as it does the model alone.

It does where it works coordinate by coordinate, or sums over arrays to which zeros add nothing
(docs/internals/padding.md). One that takes means over arrays or heeds their shapes, as Adafactor
and Muon do, does not. The built-in ones do; others are tried out, at first steps and at later ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import DTypeLike

from jaxexp.spec.padding import ProgramSpec, each_layer
from jaxexp.spec.trial import Trial
from jaxexp.training import keys, precision, tracing
from jaxexp.training.optimizing import optimizer_of
from jaxexp.training.supervised import Supervised
from jaxexp.training.task import Arrays, Task, Variables, update
from jaxexp.training.trees import PyTree

# Of gradients, step by step: what clips them may begin anywhere, and a schedule at 0.
SCALES = (1.0, 1e-3, 0.1, 1e4, 1.0)
COUNTS = (0, 5, 10, 50, 100, 1000)  # of steps, as the optimizer counts them, before the first
RELATIVE = 1e-4  # of the largest update of an array: sums in another order differ by less
MOST_KINDS = 3  # of sizes to try


def padded_sizes(trials: Sequence[Trial]) -> list[str]:
    """The sizes of the model in which trials that may share a program differ."""
    spec = ProgramSpec.of(trials)
    return [name for name, *_ in spec.sizes if name not in Trial.fields()]


@tracing.one_at_a_time
def same_when_padded(task: Task, trials: Sequence[Trial], arrays: Arrays, steps: int) -> bool:
    """Whether trials take the steps in one program, padded, that they take alone.

    Tried with some of their sizes, and optimizers of so many steps. Where nothing can be computed,
    it is not known, and said to differ.
    """
    sizes, built_in = padded_sizes(trials), type(task).optimizer.__module__.startswith("jaxexp.")
    if not sizes or (built_in and not isinstance(task, Supervised)):
        return True
    spec = ProgramSpec.of(trials)
    kinds = {tuple(each_layer(getattr(t, name)) for name in sizes): t for t in trials}
    kinds.pop(tuple((high,) for name, _, high in spec.sizes if name in sizes), None)  # not padded
    ordered, padded = [kinds[kind] for kind in sorted(kinds)], _Model(task, spec, arrays, steps)
    places = np.linspace(0, len(ordered) - 1, min(MOST_KINDS, len(ordered))).astype(int)
    try:
        return all(_same(ordered[i], padded) for i in places)
    except Exception:  # whatever the task's functions raise, given padded sizes
        return False


def _same(trial: Trial, padded: "_Model") -> bool:
    """Whether updates of its own parameters are those alone, and zeros in the padding stay."""
    alone = _Model(padded.task, ProgramSpec.of([trial]), padded.arrays, padded.steps)
    start, shapes = padded.start(trial), alone.shapes(trial)
    place, start_P = _own_places(padded.task, trial, start), _flat(start.params)
    if _forms(place) != _forms(shapes):
        return False
    place_Q, rng = _flat(place), np.random.default_rng(0)
    grads_KxP = np.zeros((len(SCALES), len(start_P)))
    grads_KxP[:, place_Q] = rng.standard_normal((len(SCALES), len(place_Q)))
    grads_KxP *= np.array(SCALES)[:, None]
    own = _cut(start_P[place_Q], shapes), _cut(grads_KxP[:, place_Q], shapes)
    zero_P = start_P == 0
    zero_P[place_Q] = False
    grads, moved = _cut(grads_KxP, start.params), False
    for count in _counts(padded.steps):
        both = alone.updates(trial, *own, count)
        both_padded = padded.updates(trial, start.params, grads, count)
        for expected, found in zip(both, both_padded, strict=True):
            found_KxP = _flat(found, len(SCALES))
            if found_KxP[:, zero_P].any():
                return False
            alike = jax.tree.map(_close, expected, _cut(found_KxP[:, place_Q], shapes))
            if not all(jax.tree.leaves(alike)):
                return False
        moved |= bool(_flat(both[0]).any())
    return moved


def _counts(steps: int) -> list[np.int32]:
    """How many steps an optimizer is told that it has taken: none, some, half and nearly all."""
    last = max(0, steps - len(SCALES))
    return [*map(np.int32, sorted({0, last // 2, last, *(c for c in COUNTS if c <= last)}))]


def _own_places(task: Task, trial: Trial, padded: Variables) -> PyTree:
    """Of a trial's own parameters, as its task cuts them out, the places among all."""
    numbers = np.arange(_flat(padded.params).size)
    given = Variables(_cut(numbers, padded.params, np.int32), padded.state)
    return jax.tree.map(np.asarray, task.crop(trial, given, None)[0].params)


class _Model:
    """Of the trials of a program: its start and its updates, each compiled once."""

    def __init__(self, task: Task, spec: ProgramSpec, arrays: Arrays, steps: int) -> None:
        self.task, self.spec, self.arrays, self.steps = task, spec, arrays, steps
        self._compiled: dict[Callable[..., PyTree], jax.stages.Compiled] = {}

    def shapes(self, trial: Trial) -> PyTree:
        """Of the parameters."""
        return jax.eval_shape(self._init, self._leaves(trial), keys.like(), self.arrays).params

    def start(self, trial: Trial) -> Variables:
        """Before the first step."""
        made: Variables = self._run(self._init, trial, keys.key(0), self.arrays)
        return made

    def updates(
        self, trial: Trial, params: PyTree, grads: PyTree, count: np.int32
    ) -> tuple[PyTree, PyTree]:
        """Of the parameters, (K, ...) each, by gradients (K, ...); and those to evaluate then.

        So many steps after the first, as the optimizer counts them.
        """
        made: tuple[PyTree, PyTree] = self._run(self._updates, trial, params, grads, count)
        return made

    def _init(self, leaves: Mapping[str, Array], rng: Array, data: Arrays) -> Variables:
        made = self.task.init(self.spec.trial(leaves), rng, data)
        arrays: Variables = jax.tree.map(jnp.asarray, made)
        return arrays

    def _updates(
        self, leaves: Mapping[str, Array], params: PyTree, grads: PyTree, count: Array
    ) -> PyTree:
        trial = self.spec.trial(leaves)
        optimizer = optimizer_of(self.task, trial, self.steps)

        def value_fn(params: PyTree) -> Array:
            return sum((jnp.square(a).sum() for a in jax.tree.leaves(params)), jnp.zeros(()))

        def step(carry: tuple[PyTree, PyTree], grads: PyTree) -> tuple[PyTree, PyTree]:
            params, state = carry
            made, state = update(optimizer, grads, state, params, value_fn(params), value_fn)
            params = optax.apply_updates(params, made)
            evaluated = self.task.evaluation_params(trial, params, state)
            return (params, state), (made, evaluated)

        state = jax.tree.map(lambda leaf: _counted_on(leaf, count), optimizer.init(params))
        return jax.lax.scan(step, (params, state), grads)[1]

    def _leaves(self, trial: Trial) -> dict[str, np.ndarray]:
        return {name: own[0] for name, own in self.spec.leaves([trial]).items()}

    def _run(self, function: Callable[..., PyTree], trial: Trial, *given: PyTree) -> PyTree:
        leaves = self._leaves(trial)
        if function not in self._compiled:
            with precision.asked():
                self._compiled[function] = tracing.compiled_quickly(function, leaves, *given)
        return jax.tree.map(np.asarray, self._compiled[function](leaves, *given))


def _counted_on(leaf: ArrayLike, count: Array) -> ArrayLike:
    """What an optimizer counts in is an integer of its state, a scalar."""
    dtype = jnp.result_type(leaf)
    counts = jnp.ndim(leaf) == 0 and jnp.issubdtype(dtype, jnp.integer)
    return leaf + count.astype(dtype) if counts else leaf


def _flat(tree: PyTree, *leading: int) -> np.ndarray:
    """All numbers of a tree, of which each has the same leading axes."""
    leaves = [np.asarray(a).reshape(*leading, -1) for a in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=-1)


def _cut(flat: np.ndarray, like: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """A tree of such arrays, with leading axes, of its numbers."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([math.prod(a.shape) for a in leaves])[:-1]
    parts = zip(np.split(flat, ends, axis=-1), leaves, strict=True)
    made = [part.reshape(*flat.shape[:-1], *a.shape).astype(dtype or a.dtype) for part, a in parts]
    return jax.tree.unflatten(structure, made)


def _forms(tree: PyTree) -> object:
    return jax.tree.structure(tree), [a.shape for a in jax.tree.leaves(tree)]


def _close(expected: Array, found: np.ndarray) -> bool:
    """Whether an array's updates, (K, ...), are those; not where they are no numbers."""
    a, b = (np.asarray(own, np.float64).reshape(len(SCALES), -1) for own in (expected, found))
    largest_K = abs(a).max(1, initial=0)
    return bool((abs(a - b).max(1, initial=0) <= RELATIVE * largest_K).all())
