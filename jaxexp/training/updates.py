"""Whether an optimizer updates a padded model as it does the model alone.

It does where it works coordinate by coordinate, or sums over arrays to which zeros add nothing
(docs/internals/padding.md). One that takes means over arrays or heeds their shapes, as Adafactor
and Muon do, does not. The built-in ones do; others are tried out, at first steps and at later ones.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import DTypeLike

from jaxexp.spec.padding import ProgramSpec, each_layer
from jaxexp.spec.trial import Trial, with_values
from jaxexp.training import keys, precision, tracing
from jaxexp.training.optimizing import optimizer_of
from jaxexp.training.supervised import Supervised
from jaxexp.training.task import Arrays, Task, Variables, update
from jaxexp.training.trees import PyTree

# Of gradients, step by step. What clips them may begin anywhere, and a schedule at 0. Those that
# grow steadily are divided by their root mean square to more than 1, whatever Adam's decay rates.
GROWING = (1.0, 1.08, 1.17, 1.26, 1.36)  # in one direction
SCALES = (*GROWING, 1e-3, 0.1, 1e4)
# Of steps, as the optimizer counts them, before the first. The 32nd is tried, the 64th, the 128th.
COUNTS = (0, 8, 24, 56, 120, 1000)
FAR = 30.0  # parameters, of which a decay of 1e-5 is seen beside an update by Adam
RELATIVE = 1e-4  # of the largest update of an array: sums in another order differ by less
ROUNDING = 5e-7  # of the largest parameter at the start: some updates are differences of those
MOST_KINDS = 3  # of sizes to try
MOST_ENDS = 8  # of what is traced
ALL_COUNTS = 2  # of these ends, in grids the least and the most of all; others at first and last
LARGE = 1e5  # parameters, of which updates take longer to compute than to compile
# What is said of an optimizer, or of `evaluation_params`, of a task.
DIFFERS = (
    "the optimizer of {} would not update them as alone (it may take means over whole arrays, "
    "or heed their shapes, as Adafactor and Muon do)"
)
EVALUATED = (
    "evaluation_params of {} would not return what it does alone (it may take means over whole "
    "arrays, or heed their shapes)"
)
MOVES = (
    "the optimizer of {} moves weights whose gradient is 0, as Yogi does, so that padding "
    "would not stay 0"
)
STILL = (
    "it could not be tried whether the optimizer of {} would update them as alone: it made no "
    "update in the steps tried"
)
CROPPED = "`crop` of {} does not return the arrays of a trial alone"
RAISED = "to try out whether the optimizer of {} would update them as alone raised {}"

Kind: TypeAlias = tuple[tuple[int, ...], ...]  # the sizes of a trial, then the numbers of options
Two: TypeAlias = tuple[tuple[int, float], tuple[int, float]]  # numbers of names, and their values
Forms: TypeAlias = tuple[jax.tree_util.PyTreeDef, list[tuple[int, ...]]]


def padded_names(trials: Sequence[Trial]) -> list[str]:
    """The sizes and options of the model in which trials that may share a program differ."""
    spec = ProgramSpec.of(trials)
    names = *(name for name, *_ in spec.sizes), *(name for name, _ in spec.choices)
    return [name for name in names if name not in Trial.fields()]


@tracing.one_at_a_time
def why_not_padded(task: Task, trials: Sequence[Trial], arrays: Arrays, steps: int) -> str:
    """Why trials might not take the steps in one program, padded, that they take alone; or "".

    Tried with some of their sizes, every option, and the ends of what is traced, and optimizers of
    so many steps.
    """
    own = type(task).optimizer, type(task).evaluation_params
    built_in = all(function.__module__.startswith("jaxexp.") for function in own)
    if not padded_names(trials) or (built_in and not isinstance(task, Supervised)):
        return ""
    padded = _Model(task, ProgramSpec.of(trials), trials[0], arrays, steps)
    try:
        ends = _ends(trials, padded.read())
        why = next(filter(None, (_why(own, ends, padded) for own in _models(trials, padded))), "")
    except Exception as error:  # whatever the task's functions raise, given padded sizes
        why = RAISED.format("{}", type(error).__name__)
    return why.format(type(task).__name__)


def _ends(trials: Sequence[Trial], names: Sequence[str]) -> list[dict[str, float]]:
    """Of what is traced: the least and the most of each, then both of any two, in a few trials."""
    rows = sorted({tuple(getattr(trial, name) for name in names) for trial in trials})
    ends = [{min(own), max(own)} for own in zip(*rows, strict=True)]
    kinds = dict[frozenset[Two], tuple[float, ...]]()
    for row in rows:
        own = [(i, value) for i, value in enumerate(row) if value in ends[i]]
        kinds.setdefault(frozenset(itertools.combinations_with_replacement(own, 2)), row)
    left, found = frozenset[Two]().union(*kinds), list[dict[str, float]]()
    while not found or (left and len(found) < MOST_ENDS):
        most = max(kinds, key=lambda own: (sum(a == b for a, b in own & left), len(own & left)))
        left -= most
        found.append(dict(zip(names, kinds[most], strict=True)))
    return found


def _models(trials: Sequence[Trial], padded: "_Model") -> "list[_Model]":
    """Trials alone, of which some are padded: a few, and one of each structure and each option."""
    spec, kinds = padded.spec, dict[Kind, Trial]()
    sizes = {name: (high,) for name, _, high in spec.sizes if name not in Trial.fields()}
    for trial in trials:
        own = [each_layer(getattr(trial, name)) for name in sizes]
        own += [(options.index(getattr(trial, name)),) for name, options in spec.choices]
        kinds.setdefault(tuple(own), trial)
    alike, firsts = dict[object, list[Kind]](), dict[object, Kind]()
    for kind in sorted(kinds):
        types = tuple(type(getattr(kinds[kind], name)) for name in sizes)
        alike.setdefault(types, []).append(kind)
        for option in enumerate(kind[len(sizes) :]):
            firsts.setdefault(option, kind)
    some = {*firsts.values()}  # structures depend on sizes: the smallest, the largest, one between
    for own_kinds, i in itertools.product(alike.values(), range(len(sizes))):
        some.update(_spread(sorted(own_kinds, key=lambda kind: (kind[i], kind))))
    models = dict[Kind, _Model]()
    for kind in sorted(some):
        model = padded.alone(kinds[kind])
        if model.forms == padded.forms and kind[: len(sizes)] == (*sizes.values(),):
            continue  # not padded
        models[kind] = model
        structure, shapes = model.forms
        firsts.setdefault((structure, *map(len, shapes)), kind)
    tried = dict.fromkeys([*firsts.values(), *_spread([*models])])
    return [models[kind] for kind in tried if kind in models]


def _spread(kinds: Sequence[Kind]) -> list[Kind]:
    """The first, the last, and some between."""
    places = np.linspace(0, len(kinds) - 1, min(MOST_KINDS, len(kinds))).astype(int)
    return [kinds[i] for i in places]


def _why(alone: "_Model", ends: Sequence[Mapping[str, float]], padded: "_Model") -> str:
    """Why updates of its own parameters are not those alone, or zeros in the padding do not stay.

    From where each trial starts, and from large parameters, which decays show in.
    """
    trials = [with_values(alone.like, **values) for values in ends]
    start, shapes = padded.start(trials[0]), alone.shapes
    place = _own_places(padded.task, trials[0], start)
    if _forms(place) != alone.forms:
        return CROPPED
    place_Q, rng = _flat(place), np.random.default_rng(0)
    own_KxQ = rng.standard_normal((len(SCALES), len(place_Q)))
    own_KxQ[: len(GROWING)] = own_KxQ[0]
    grads_KxP = np.zeros((len(SCALES), _flat(start.params).size))
    grads_KxP[:, place_Q] = own_KxQ * np.array(SCALES)[:, None]
    own_grads, grads = _cut(grads_KxP[:, place_Q], shapes), _cut(grads_KxP, start.params)
    far_Q = FAR * rng.standard_normal(len(place_Q))
    counts, moved = _counts(padded.steps), False
    for i, trial in enumerate(trials):
        start = padded.start(trial)
        start_P = _flat(start.params)
        zero_P = start_P == 0
        zero_P[place_Q] = False
        tried = counts if i < ALL_COUNTS else counts[-1:]
        for far, count in zip(itertools.cycle((False, True)), [counts[0], *tried]):
            begin_P = start_P.copy()
            begin_P[place_Q] += far * far_Q
            own = _cut(begin_P[place_Q], shapes)
            slack = 0.0 if far else ROUNDING * abs(start_P).max(initial=0)
            both = alone.updates(trial, own, own_grads, count)
            both_padded = padded.updates(trial, _cut(begin_P, start.params), grads, count)
            for why, expected, found in zip((DIFFERS, EVALUATED), both, both_padded, strict=True):
                found_KxP = _flat(found, len(SCALES))
                own_found = _cut(found_KxP[:, place_Q], shapes)
                alike = jax.tree.map(functools.partial(_close, slack), expected, own_found)
                if not all(jax.tree.leaves(alike)):
                    return why
                if found_KxP[:, zero_P].any():
                    return MOVES
            moved |= bool(_flat(both[0]).any())
    return "" if moved else STILL


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

    def __init__(
        self, task: Task, spec: ProgramSpec, like: Trial, arrays: Arrays, steps: int
    ) -> None:
        self.task, self.spec, self.arrays, self.steps = task, spec, arrays, steps
        self.like = like  # one of the trials
        self._read: set[str] = set()  # of the trial, by what has been traced
        self._compiled: dict[Callable[..., PyTree], jax.stages.Compiled] = {}

    def alone(self, trial: Trial) -> "_Model":
        """Of this trial; what is traced is traced there, too."""
        spec = dataclasses.replace(ProgramSpec.of([trial]), traced=self.spec.traced)
        return _Model(self.task, spec, trial, self.arrays, self.steps)

    @functools.cached_property
    def shapes(self) -> PyTree:
        """Of the parameters."""
        leaves = self._leaves(self.like)
        return jax.eval_shape(self._init, leaves, keys.like(), self.arrays).params

    @property
    def forms(self) -> Forms:
        """The structure of the parameters, and their shapes."""
        return _forms(self.shapes)

    def read(self) -> list[str]:
        """What is traced of a trial and read by its start or its updates."""
        grads = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), self.shapes)
        jax.eval_shape(self._updates, self._leaves(self.like), self.shapes, grads, np.int32(0))
        return [name for name in self.spec.traced if name in self._read]

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
        made = self.task.init(self._trial(leaves), rng, data)
        arrays: Variables = jax.tree.map(jnp.asarray, made)
        return arrays

    def _updates(
        self, leaves: Mapping[str, Array], params: PyTree, grads: PyTree, count: Array
    ) -> PyTree:
        trial = self._trial(leaves)
        optimizer = optimizer_of(self.task, trial, self.steps)

        def step(carry: tuple[PyTree, PyTree], grads: PyTree) -> tuple[PyTree, PyTree]:
            params, state = carry

            def value_fn(own: PyTree) -> Array:
                """A loss whose gradients at the parameters are these."""
                terms = jax.tree.map(
                    lambda a, p, g: (a**2 + (g - 2 * p) * (a - p)).sum(), own, params, grads
                )
                return sum(jax.tree.leaves(terms), jnp.zeros(()))

            made, state = update(optimizer, grads, state, params, value_fn(params), value_fn)
            params = optax.apply_updates(params, made)
            evaluated = self.task.evaluation_params(trial, params, state)
            return (params, state), (made, evaluated)

        state = jax.tree.map(lambda leaf: _counted_on(leaf, count), optimizer.init(params))
        return jax.lax.scan(step, (params, state), grads)[1]

    def _trial(self, leaves: Mapping[str, Array]) -> Trial:
        return tracing.watch(self.spec.trial(leaves), self._read)

    def _leaves(self, trial: Trial) -> dict[str, np.ndarray]:
        return {name: own[0] for name, own in self.spec.leaves([trial]).items()}

    def _run(self, function: Callable[..., PyTree], trial: Trial, *given: PyTree) -> PyTree:
        leaves = self._leaves(trial)
        if function not in self._compiled:
            large = sum(math.prod(a.shape) for a in jax.tree.leaves(self.shapes)) > LARGE
            with precision.asked():
                self._compiled[function] = tracing.compiled_quickly(
                    function, leaves, *given, level=int(large)
                )
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


def _forms(tree: PyTree) -> Forms:
    return jax.tree.structure(tree), [a.shape for a in jax.tree.leaves(tree)]


def _close(slack: float, expected: Array, found: np.ndarray) -> bool:
    """Whether an array's updates, (K, ...), are those; not where they are no numbers."""
    a, b = (np.asarray(own, np.float64).reshape(len(SCALES), -1) for own in (expected, found))
    largest_K = abs(a).max(1, initial=0)
    return bool((abs(a - b).max(1, initial=0) <= RELATIVE * largest_K + slack).all())
