"""Whether the examples of a batch have to do with one another: proven, or else tried out.

A batch may be filled up with examples that do not count, and examples of several splits may be
evaluated in one. Where a model normalises by its batch, or a loss compares its examples with each
other, as a contrastive one does, the first must change no number, and the second must not be.

What a task computes is traced, and most often it is plain from the program that it takes each
example by itself, or heeds the mask, or that it does neither (see `independence`). What is plain of
none is computed beside different rows, and evaluated split by split.
"""

import contextlib
import functools
import hashlib
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jax_core

from jaxexp.base.batches import steps_per_epoch
from jaxexp.planning.plan import static_key
from jaxexp.spec.trial import Trial, with_values
from jaxexp.training import flags, independence, jaxprs, keys, step, tracing
from jaxexp.training.data import Data
from jaxexp.training.independence import CLEAN, EXAMPLES, MASK, UNKNOWN, Reach, Spread
from jaxexp.training.task import Batch, Outputs, Task, Variables, update
from jaxexp.training.trees import PyTree

MANY, MORE = 1009, 1013  # examples of batches that are traced: primes, which no other axis has
MOST_SIZES = 16  # of batches, besides: the extremes, and some between
HALF = 16  # examples of the batch that is computed, beside as many others
DRAWS = 8  # of examples, others, variables and a trial's hyperparameters
NOISE = 0.3  # of parameters, in their own scale: many begin at zero, where nothing shows
FAR = (1.0, 1e3)  # what others' numbers are multiplied by: some things show in large ones alone
ROUNDING = 1e-5  # of gradients, whose sums some devices take in any order
FILLING = (
    "what fills it up would change the losses of its examples, or the model's state: heed the "
    "`mask` (B,) of a batch, where its examples have to do with one another, or how many they are "
    "(give the module, `apply` or `loss` a parameter `mask`)"
)
COMPARES = (
    "what fills it up would change the values of metrics[{!r}], which have to do with other "
    "examples of the batch: expected a jaxexp.Metric with `sums` over examples, and their `value`"
)
SIZED = (
    "what is computed of an example depends on how many there are in the array: count them by the "
    "`mask` (B,), and draw what is random of each with B as the first axis"
)
Leaves: TypeAlias = Mapping[str, Any]  # the hyperparameters that are traced, by name


class Mixing(NamedTuple):
    """What changes the numbers of an example of a batch, beside the example itself."""

    filling: bool  # examples that do not count, in training
    evaluated_filling: bool  # the same in evaluation
    evaluated: bool  # other examples, in evaluation
    sized: bool  # how many examples there are in all, in training
    metric: str = ""  # whose values are all that is changed, if it is a metric alone
    whole: bool = True  # unless a batch may be computed in parts


APART = Mixing(filling=False, evaluated_filling=False, evaluated=False, sized=False)
_found: dict[tuple[object, ...], Mixing] = {}


def mixing(
    task: Task, data: Data, trials: Sequence[Trial], read: Callable[[Trial], Collection[str]]
) -> Callable[[Trial], Mixing]:
    """Of a task that has been checked, and each of the trials of a run.

    Found out once for trials that agree in what is static, with the traced values of them all;
    `read` are the hyperparameters that the task reads of one.
    """
    if tracing.is_plain_value(task):  # jaxexp's own heed the mask
        return lambda trial: APART
    alike: dict[object, list[Trial]] = {}

    def key(trial: Trial) -> object:
        own = static_key(trial)
        size = "batch_size", trial.batch_size
        return own if "batch_size" in read(trial) else tuple(part for part in own if part != size)

    for trial in trials:
        alike.setdefault(key(trial), []).append(trial)

    found: dict[object, Mixing] = {}

    def of(trial: Trial) -> Mixing:
        own = key(trial)
        if own not in found:
            found[own] = _Probe(task, data, alike.get(own, [trial])).found()
        return found[own]

    return of


class _Given(NamedTuple):
    """What a task's functions are given; of shapes, or of arrays."""

    leaves: Leaves
    variables: Variables
    batch: Batch
    mask: Any
    rng: Any


class _Probe:
    """Of a task, and trials that agree in what is static."""

    def __init__(self, task: Task, data: Data, trials: Sequence[Trial]) -> None:
        self.task, self.trials = task, trials
        self.arrays, n = data.arrays(), data.counts["train"]
        self.steps = max(t.epochs * steps_per_epoch(n, t.batch_size) for t in trials)
        of_trials = sorted({trial.batch_size for trial in trials})
        folds = range(data.n_folds or 1)
        rests = {data.counts_of(fold)["train"] % size for fold in folds for size in of_trials}
        evaluated = step.evaluated_at_once(task, data)
        counts = [n for fold in folds for n in step.evaluated_counts(data, fold).values()]
        # In training and in evaluation, the batches that there are,
        self.batches = {True: _some(of_trials), False: [evaluated]}
        # and how many examples count in them: not all of a last batch, or of one of several splits.
        self.sizes = {
            True: sorted({*of_trials, *rests} - {0}),
            False: sorted({evaluated, *(min(evaluated, count) for count in counts)}),
        }
        self.filled = len(self.sizes[True]) > 1 or data.folds is not None
        leaves, key = tracing.traced_shapes(trials[0]), keys.like()
        variables = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
            jax.eval_shape(self.init, leaves, key, self.arrays),
        )
        self.shapes = self.sized(_Given(leaves, variables, None, None, key), 2 * HALF)
        self._examples: dict[tuple[int, bool], tuple[jax_core.ClosedJaxpr, list[str]]] = {}
        self._tangents: dict[int, jax_core.ClosedJaxpr | None] = {}

    def sized(self, given: _Given, n: int) -> _Given:
        """Shapes of a batch of n."""
        batch, mask = tracing.batch_of(self.arrays, n)
        return given._replace(batch=batch, mask=mask)

    def trial(self, leaves: Leaves) -> Trial:
        return with_values(self.trials[0], **leaves)

    def init(self, leaves: Leaves, rng: Array, data: PyTree) -> Variables:
        return self.task.init(self.trial(leaves), rng, data)

    def examples(self, given: _Given, *, train: bool) -> tuple[dict[str, PyTree], PyTree]:
        """What there is of each example, (B, ...), the loss first; in training the new state."""
        leaves, variables, batch, mask, rng = given
        made: Outputs = self.task.apply(
            self.trial(leaves), variables, batch, rng=rng, mask=mask, train=train
        )
        each: dict[str, PyTree] = {"": made.loss, **made.metrics}
        for name, metric in self.task.metrics.items():
            if metric.example is not None:
                each[name] = metric.example(made.prediction, made.target)
            elif metric.sums is not None:
                both = jax.tree.leaves((made.prediction, made.target))
                each[name] = [a for a in both if jnp.shape(a)[:1] == jnp.shape(made.loss)]
        return each | {" weights": self.task.weights(batch)}, made.state if train else ()

    def gradients(self, given: _Given) -> tuple[dict[str, PyTree], PyTree, PyTree]:
        """The same in training, and the gradients of the loss that is minimised."""

        def loss(params: PyTree) -> tuple[Array, tuple[dict[str, PyTree], PyTree]]:
            own = given._replace(variables=given.variables._replace(params=params))
            each, state = self.examples(own, train=True)
            weight_B = step.weights_of(self.task, given.batch, given.mask)
            return step.weighted_mean(each[""], weight_B), (each, state)

        grads, (each, state) = jax.grad(loss, has_aux=True)(given.variables.params)
        return each, state, grads

    def tangents(self, given: _Given, towards: PyTree) -> Array:
        """Of the loss of each example, (B,), for parameters that move."""

        def loss(params: PyTree) -> Array:
            own = given._replace(variables=given.variables._replace(params=params))
            each: Array = self.examples(own, train=True)[0][""]
            return each

        _, tangent_B = jax.jvp(loss, (given.variables.params,), (towards,))
        made: Array = tangent_B
        return made

    @tracing.one_at_a_time
    def found(self) -> Mixing:
        """What is not proven is computed once in a process for all that computes the same."""
        made = {train: self.lengths(train=train) for train in (True, False)}
        lengths = {train: own for train, own in made.items() if own is not None}
        filling, blamed = self.spread(lengths, MASK, train=True)
        evaluated_filling, blamed_too = self.spread(lengths, MASK, train=False)
        evaluated, _ = self.spread(lengths, EXAMPLES, train=False)
        metrics = {*blamed, *blamed_too}
        known = Mixing(
            filling=filling is Spread.YES,
            evaluated_filling=evaluated_filling is Spread.YES,
            evaluated=evaluated is not Spread.NO,
            sized=False,
            metric="" if "" in metrics else next(iter(sorted(metrics)), ""),
        )
        tried = {True: filling, False: evaluated_filling}
        programs = {
            train: self.program(train=train)
            for train, spread in tried.items()
            if spread is Spread.UNKNOWN
        }
        lengths = {t: own for t, own in lengths.items() if tried[t] is not Spread.YES}
        if not programs and not lengths:
            apart = evaluated_filling is filling is Spread.NO and not known.evaluated
            return known._replace(whole=not (apart and self.in_parts()))
        init = jax.make_jaxpr(self.init)(self.shapes.leaves, self.shapes.rng, self.arrays)
        traced = [init, *(each.closed for each in programs.values())]
        for own in lengths.values():
            traced += own.programs.values()
        read = sorted(set().union(*map(self.read, traced)))
        values = _spread([tuple(getattr(t, name) for name in read) for t in self.trials])
        digests = tuple(map(jaxprs.digest, traced))
        largest = max((n for own in lengths.values() for n in own.programs), default=0)
        data = self.data_digest(init.jaxpr, _turns(len(values)) * len(values), largest)
        sizes = tuple((train, *own.programs) for train, own in lengths.items())
        computes = *digests, *read, *values, self.steps, data, *flags.of_numbers().items()
        key = *programs, *sizes, *computes, known
        if key not in _found:
            leaves = [self.leaves(dict(zip(read, own, strict=True))) for own in values]
            tells = self.tried(programs, leaves)
            found = known._replace(
                filling=tells.get(True, known.filling),
                evaluated_filling=tells.get(False, known.evaluated_filling),
            )
            for train, own in lengths.items():
                if self.differs(own, leaves, train=train):
                    by_draws = own.draws and tried[train] is Spread.NO
                    found = _sized(found, train=train, by_draws=by_draws)
            _found[key] = found
        return _found[key]

    def lengths(self, *, train: bool) -> "_Lengths | None":
        """How results depend on the number of examples; None if they are proven not to."""
        sizes, draws = _some(self.sizes[train]), False
        if len(sizes) == 1 and not (train and self.filled):
            return None
        try:
            many, _ = self.traced_examples(MANY, train=train)
            same = all(
                jaxprs.same_but_for_size(self.traced_examples(n, train=train)[0], n, many, MANY)
                for n in (MORE, *sizes)
            )
            if same and train and _derivatives(many, *jaxprs.DERIVATIVES):
                gradients = self.traced(self.gradients, MANY)
                same = all(
                    jaxprs.same_but_for_size(self.traced(self.gradients, n), n, gradients, MANY)
                    for n in (sizes[0], sizes[-1])
                )
        except Exception:  # whatever the functions raise for batches of other sizes
            same = False
        if same:
            mask = MASK._replace(axes=EXAMPLES.axes)
            spread, _ = self.reach(MANY, mask, train=train, size=MANY)
            if spread is Spread.NO:
                return None
            draws = self.reach(MANY, mask, train=train, drawn=UNKNOWN)[0] is not Spread.NO
        programs = {}
        for n in {sizes[0], *sizes[-3:], max(1, sizes[-1] // 2)}:
            with contextlib.suppress(Exception):  # as above
                programs[n] = (
                    self.traced(self.gradients, n)
                    if train
                    else self.traced_examples(n, train=False)[0]
                )
        return _Lengths(programs, draws)

    def spread(
        self, lengths: Mapping[bool, "_Lengths"], mask: Reach, *, train: bool
    ) -> tuple[Spread, set[str]]:
        """How far others reach in batches as they are, and of what."""
        batches = self.batches[train]
        found = [  # those of other sizes compute the same, if it is proven
            self.reach(max(n, 2), mask, train=train)
            for n in (batches if train in lengths else batches[-1:])
        ]
        return max(spread for spread, _ in found), set().union(*(names for _, names in found))

    def reach(
        self, n: int, mask: Reach, *, train: bool, size: int | None = None,
        drawn: Reach = CLEAN, anywhere: bool = False,
    ) -> tuple[Spread, set[str]]:  # fmt: skip
        """Whether others among n examples change more than what there is of them, and of what.

        That is of metrics by their names, "" for all else. `drawn` is the reach of the batch's key.
        """
        shapes = self.sized(self.shapes, n)
        given = [
            reach
            for part, reach in zip(shapes, (CLEAN, CLEAN, EXAMPLES, mask, drawn), strict=True)
            for _ in jax.tree.leaves(part)
        ]
        prove = functools.partial(
            independence.reaches, differentiated=train, size=size, anywhere=anywhere
        )
        program, names = self.traced_examples(n, train=train)
        reached = prove(program, given)
        found = [
            (name, own.spread or Spread(not own.axes <= EXAMPLES.axes))
            for name, own in zip(names, reached, strict=False)
        ]
        of_state = reached[len(names) :]
        found += [("", own.spread or Spread(bool(own.axes))) for own in of_state]
        # Derivatives may be the user's own, and are proven, too.
        if train and _derivatives(program, "custom_jvp_call"):
            tangents = self.traced_tangents(n)
            towards = [CLEAN] * len(jax.tree.leaves(self.shapes.variables.params))
            [own] = [UNKNOWN] if tangents is None else prove(tangents, given + towards)
            found.append(("", own.spread or Spread(not own.axes <= EXAMPLES.axes)))
        worst = max(spread for _, spread in found)
        return worst, {name for name, spread in found if spread}

    def in_parts(self) -> bool:
        """Whether a batch may be computed in parts, of a task that takes each example by itself.

        Nothing may depend on the place of an example in its batch, as what is drawn for each does,
        on a state that goes from step to step, or on the loss of other parameters. Gradients have
        to add up: backward passes of the user's own need not be linear, and floats of 16 bits are
        rounded in each part.
        """
        state = jax.tree.leaves(self.shapes.variables.state)
        if state or not self.filled or self.asks_for_losses():
            return False
        program, _ = self.traced_examples(MANY, train=True)
        floats = (t for t in jaxprs.dtypes(program) if jnp.issubdtype(t, jnp.floating))
        if _derivatives(program, "custom_vjp_call") or any(t.itemsize < 4 for t in floats):
            return False
        spread, _ = self.reach(MANY, EXAMPLES, train=True, size=MANY, drawn=UNKNOWN, anywhere=True)
        return spread is Spread.NO

    def asks_for_losses(self) -> bool:
        """Whether the optimizer computes the loss of other parameters, as a line search does."""
        asked = False

        def value_fn(params: PyTree) -> Array:
            nonlocal asked
            asked = True
            return jnp.zeros(())

        def one(leaves: Leaves, params: PyTree) -> PyTree:
            optimizer = self.task.optimizer(self.trial(leaves), self.steps)
            return update(optimizer, params, optimizer.init(params), params, 0.0, value_fn)

        jax.eval_shape(one, self.shapes.leaves, self.shapes.variables.params)
        return asked

    def traced_examples(self, n: int, *, train: bool) -> tuple[jax_core.ClosedJaxpr, list[str]]:
        """Of so many, once; and of which metric each of its first results is, "" for the others."""
        if (n, train) not in self._examples:
            function = functools.partial(self.examples, train=train)
            shapes = self.sized(self.shapes, n)
            program, (each, _) = jax.make_jaxpr(function, return_shape=True)(shapes)
            names = [
                name if name in self.task.metrics else ""
                for name, own in each.items()
                for _ in jax.tree.leaves(own)
            ]
            self._examples[n, train] = program, names
        return self._examples[n, train]

    def traced_tangents(self, n: int) -> jax_core.ClosedJaxpr | None:
        """Of so many examples, once; None where a backward pass of the user's own forbids it."""
        if n not in self._tangents:
            given = self.sized(self.shapes, n), self.shapes.variables.params
            try:
                self._tangents[n] = jax.make_jaxpr(self.tangents)(*given)
            except (TypeError, NotImplementedError):
                self._tangents[n] = None
        return self._tangents[n]

    def traced(self, function: Callable[[_Given], PyTree], n: int) -> jax_core.ClosedJaxpr:
        """A function of so many examples."""
        return jax.make_jaxpr(function)(self.sized(self.shapes, n))

    def differs(self, lengths: "_Lengths", leaves: Sequence[Leaves], *, train: bool) -> bool:
        """Whether examples differ by themselves, and in the largest batch, which is filled up.

        Where nothing can be computed, it is not known, and said to differ.
        """
        run = {
            n: _runnable(program, jax.tree.leaves(self.sized(self.shapes, n)))
            for n, program in sorted(lengths.programs.items())
        }
        grads, (*small, large) = len(jax.tree.leaves(self.shapes.variables.params)), run or [0]
        grads = grads if train else 0
        computed = False
        for i, (given, _) in enumerate(self.draws(leaves) if small else ()):
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
                computed = True
                if _unlike(filled, alone, grads):
                    return True
        return not computed

    def drawn(self, i: int, n: int) -> np.ndarray:
        """Rows of a batch."""
        return np.random.default_rng(i).integers(step.count(self.arrays["train"]), size=n)

    def program(self, *, train: bool) -> "_Program":
        """What is computed where nothing is proven."""
        if not train:
            closed, names = self.traced_examples(2 * HALF, train=False)
            return _Program(closed, len(names), 0)
        closed, (each, _, grads) = jax.make_jaxpr(self.gradients, return_shape=True)(self.shapes)
        return _Program(closed, len(jax.tree.leaves(each)), len(jax.tree.leaves(grads)))

    def read(self, program: jax_core.ClosedJaxpr) -> set[str]:
        """The hyperparameters among what a program uses; they are the first of its inputs."""
        used, names = _used(program.jaxpr), sorted(self.shapes.leaves)
        return {name for name, v in zip(names, program.jaxpr.invars, strict=False) if v in used}

    def data_digest(self, init: jax_core.Jaxpr, draws: int, largest: int) -> str:
        """Of what the answer depends on: rows that are drawn, and arrays that `init` uses."""
        train, used = self.arrays["train"], _used(init)
        leaves = jax.tree.leaves(self.arrays)
        inputs = init.invars[len(init.invars) - len(leaves) :]
        parts = [leaf for leaf, v in zip(leaves, inputs, strict=True) if v in used]
        for i in range(draws):
            parts += jax.tree.leaves(_rows(train, _drawn(i, step.count(train))))
            parts += jax.tree.leaves(_rows(train, self.drawn(i, largest)))
        sha256 = hashlib.sha256()
        for part in parts:
            sha256.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return sha256.hexdigest()

    def leaves(self, values: Mapping[str, Any]) -> Leaves:
        """Hyperparameters as a program has them; those that nothing reads are of any trial."""
        return {
            name: np.asarray(values.get(name, getattr(self.trials[0], name)), shape.dtype)
            for name, shape in self.shapes.leaves.items()
        }

    def tried(
        self, programs: Mapping[bool, "_Program"], leaves: Sequence[Leaves]
    ) -> dict[bool, bool]:
        """Whether what fills a batch changes what there is of the same examples.

        Where nothing can be computed, it is not known, and said to change.
        """
        mask, shapes = np.arange(2 * HALF) < HALF, jax.tree.leaves(self.shapes)
        run = {train: _runnable(program.closed, shapes) for train, program in programs.items()}
        changed, unknown = set[bool](), set(programs)
        for pair in self.draws(leaves) if programs else ():
            for train in programs.keys() - changed:
                one, other = (run[train](each._replace(mask=mask)) for each in pair)
                if one is None or other is None:
                    continue
                if programs[train].differ(one, other):
                    changed.add(train)
                if np.isfinite(one[0][:HALF]).any():
                    unknown.discard(train)
        return {train: train in changed | unknown for train in programs}

    @functools.cached_property
    def compiled_init(self) -> jax.stages.Compiled:
        """Once for all that is tried."""
        return tracing.compiled_quickly(self.init, self.shapes.leaves, self.shapes.rng, self.arrays)

    def draws(self, leaves: Sequence[Leaves]) -> Iterator[tuple[_Given, _Given]]:
        """The same examples twice, beside different ones, at some point of a trial's training."""
        counts = [min(count, self.steps) for count in (0, 1000, 1, self.steps, 10)]
        train, key = self.arrays["train"], keys.key(0)
        n, turns = step.count(train), _turns(len(leaves))
        for i in range(turns * len(leaves)):
            place, turn = divmod(i, turns)
            rng = np.random.default_rng(i)
            if turn == 0:
                started = jax.tree.map(
                    np.asarray, self.compiled_init(leaves[place], key, self.arrays)
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
            given = _Given(leaves[place], variables, one, None, keys.key(i))
            yield given, given._replace(batch=other)


def _derivatives(program: jax_core.ClosedJaxpr, *of: str) -> bool:
    """Whether it has rules of derivatives, the user's or JAX's own."""
    return any(name.startswith(of) for name in jaxprs.operations(program))


class _Lengths(NamedTuple):
    """What is known of a task that may depend on how many examples a batch has."""

    programs: Mapping[int, jax_core.ClosedJaxpr]  # for so many, with gradients
    draws: bool  # what may differ in a larger one are random numbers alone


def _both_finite(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is finite in both, as floats of 64 bits: also of bools and bfloat16."""
    a, b = a + np.float64(0), b + np.float64(0)
    finite = np.isfinite(a) & np.isfinite(b)
    return a[finite], b[finite]


def _unlike(filled: Sequence[np.ndarray], alone: Sequence[np.ndarray], grads: int) -> bool:
    """Whether results differ by more than rounding, where both are finite.

    Of gradients, the last ones, the largest counts: one that should be 0 is rounding alone.
    """
    pairs, scale = [], [0.0, 0.0]
    for i, (a, b) in enumerate(zip(filled, alone, strict=True)):
        a, b = _both_finite(a[: len(b)] if b.ndim else a, b)
        group = int(i >= len(alone) - grads)
        pairs.append((group, a, b))
        scale[group] = max(scale[group], abs(b).max(initial=0.0))
    return any((abs(a - b) > 10 * ROUNDING * scale[group]).any() for group, a, b in pairs)


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


def _turns(leaves: int) -> int:
    """How often each trial's hyperparameters are tried."""
    return max(2, math.ceil(DRAWS / leaves))


def _drawn(i: int, n: int) -> np.ndarray:
    """Rows of a batch, of n; every second time neighbours, which may share what sorts them."""
    rows = np.random.default_rng(i).integers(n, size=2 * HALF)
    return (rows[0] + np.arange(2 * HALF)) % n if i % 2 else rows


def _used(jaxpr: jax_core.Jaxpr) -> set[jax_core.Var]:
    values = [*jaxpr.outvars, *(v for eqn in jaxpr.eqns for v in eqn.invars)]
    return {v for v in values if isinstance(v, jax_core.Var)}


def _rows(examples: Batch, rows: np.ndarray) -> Batch:
    return jax.tree.map(lambda a: np.asarray(a[rows]), examples)


def _crossed(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each number of one or the other, so that some of what examples may share is shared."""
    return np.where(rng.random(a.shape) < 0.5, a, b)


def _times(factor: float, a: np.ndarray) -> np.ndarray:
    """Of what is no floats, the same."""
    made: np.ndarray = a * a.dtype.type(factor) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return made


def _some(sizes: Sequence[int]) -> list[int]:
    """A few of many, the extremes among them."""
    places = np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_SIZES)).astype(int)
    return [sizes[i] for i in places]


def _sized(found: Mixing, *, train: bool, by_draws: bool) -> Mixing:
    """What follows from examples being others in an array of another size.

    In a last batch, or beside another split, they may be drawn for otherwise, but no more.
    """
    if train:
        return found._replace(sized=True, filling=found.filling or not by_draws)
    filling = found.evaluated_filling or not by_draws
    return found._replace(evaluated=True, evaluated_filling=filling)


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
) -> Callable[[_Given], list[np.ndarray] | None]:
    """A program of a small batch, compiled; it returns None where it cannot be computed."""

    @functools.cache
    def compiled() -> jax.stages.Compiled:
        return tracing.compiled_quickly(jax_core.jaxpr_as_fun(program), *shapes)

    def run(given: _Given) -> list[np.ndarray] | None:
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
