"""Whether the examples of a batch affect one another: proven, or else tried out.

A batch may be filled up with examples that do not count, and examples of several splits may be
evaluated in one batch. If a model normalises by its batch, or if a loss compares its examples with
each other, as a contrastive one does, then the filling must not change any number, and splits must
not share a batch.

The task is traced. Most programs show that the task treats each example by itself, or heeds the
mask, or does neither (see `independence`). If a program shows none of these, the task is tried out
beside different rows, and evaluated split by split.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jax_core

from jaxexp.planning.kinds import static_key
from jaxexp.planning.loads import MICROBATCHES
from jaxexp.spec.trial import Trial
from jaxexp.training import evaluation, independence, jaxprs, tracing
from jaxexp.training.data import Data
from jaxexp.training.examples import Programs
from jaxexp.training.experiments import Experiments
from jaxexp.training.independence import CLEAN, EXAMPLES, MASK, UNKNOWN, Reach, Spread
from jaxexp.training.task import Task

MANY, MORE = 1009, 1013  # sizes of traced batches: primes, which no other axis has
MOST_SIZES = 16  # how many other batch sizes are tried: the extremes, and some between
FILLING = (
    "what fills it up would change the losses of its examples, their gradients or the model's "
    "state: heed the `mask` (B,) of a batch, where its examples have to do with one another, or "
    "how many they are (give the module, `apply` or `loss` a parameter `mask`), with a `where` "
    "before roots and quotients, of which a product with the mask has no finite gradients"
)
COMPARES = (
    "what fills it up would change the values of metrics[{!r}], which have to do with other "
    "examples of the batch: expected a jaxexp.Metric with `sums` over examples, and their `value`"
)
SIZED = (
    "what is computed of an example depends on how many there are in the array: count them by the "
    "`mask` (B,), and draw what is random of each with B as the first axis"
)


class Mixing(NamedTuple):
    """What affects the results of an example of a batch, apart from the example itself."""

    filling: bool  # examples that do not count, in training
    evaluated_filling: bool  # the same in evaluation
    evaluated: bool  # other examples, in evaluation
    sized: bool  # how many examples there are in all, in training
    evaluated_sized: bool = False  # perhaps the same in evaluation, if `evaluated`
    metric: str = ""  # one that is affected, if nothing but metrics is
    whole: bool = True  # False if a batch may be computed in parts


APART = Mixing(filling=False, evaluated_filling=False, evaluated=False, sized=False)
_found: dict[tuple[object, ...], Mixing] = {}


def mixing(
    task: Task, data: Data, trials: Sequence[Trial], read: Callable[[Trial], Collection[str]]
) -> Callable[[Trial], Mixing]:
    """A function that tells the mixing of each trial of a run, for a task that has been checked.

    It is found out once for trials whose static values agree, with the traced values of them all;
    `read` returns the hyperparameters that the task reads from a trial.
    """
    if tracing.is_plain_value(task):  # jaxexp's own tasks heed the mask
        return lambda trial: APART
    alike: dict[object, list[Trial]] = {}

    def key(trial: Trial) -> object:
        own = static_key(trial)
        size = "batch_size", trial.batch_size
        return own if "batch_size" in read(trial) else tuple(part for part in own if part != size)

    for trial in trials:
        alike.setdefault(key(trial), []).append(trial)
    sizes = {trial.batch_size for trial in trials}
    parts = [n for n in MICROBATCHES if sizes and min(sizes) < max(sizes) > n]

    found: dict[object, Mixing] = {}

    def of(trial: Trial) -> Mixing:
        own = key(trial)
        if own not in found:
            found[own] = _Kind(task, data, alike.get(own, [trial]), parts).found()
        return found[own]

    return of


class _Kind:
    """Trials whose static values agree, and their task."""

    def __init__(
        self, task: Task, data: Data, trials: Sequence[Trial], parts: Sequence[int]
    ) -> None:
        """`parts` are the sizes of the parts in which a batch may be computed."""
        self.programs, self.trials, self.parts = Programs(task, data, trials[0]), trials, parts
        self.steps = max(map(data.steps_of, trials))
        of_trials = sorted({trial.batch_size for trial in trials})
        folds = range(data.n_folds or 1)
        rests = {data.counts_of(fold)["train"] % size for fold in folds for size in of_trials}
        counts = [n for fold in folds for n in evaluation.evaluated_counts(data, fold).values()]
        # Batches of several splits, or of one at a time: see `Data.apart`.
        evaluated = evaluation.evaluated_at_once(task, data)
        apart = min(max(counts), task.evaluation_batch_size), task.evaluation_batch_size
        lasts = {n % size for n in counts for size in (evaluated, *apart)} - {0}
        # The sizes of batches in training and in evaluation,
        self.batches = {True: _some(of_trials), False: [evaluated]}
        # and how many examples count: not all in a last batch, or in one of several splits.
        self.sizes = {
            True: sorted({*of_trials, *rests} - {0}),
            False: sorted({evaluated, *lasts, *(min(evaluated, count) for count in counts)}),
        }
        self.filled = len(self.sizes[True]) > 1 or data.folds is not None
        self.several = len(data.splits) > 1 or data.folds is not None

    @tracing.one_at_a_time
    def found(self) -> Mixing:
        """Try out what cannot be proven, once in a process for all that computes the same."""
        made = {train: self.lengths(train=train) for train in (True, False)}
        lengths = {train: own for train, own in made.items() if own is not None}
        filling, blamed = self.spread(lengths, MASK, train=True)
        evaluated_filling, blamed_too = self.spread(lengths, MASK, train=False)
        evaluated, _ = self.spread(lengths, EXAMPLES, train=False)
        if evaluated is Spread.NO and self.several and not self.anywhere():
            evaluated = Spread.UNKNOWN
        metrics = {*blamed, *blamed_too}
        known = Mixing(
            filling=filling is Spread.YES,
            evaluated_filling=evaluated_filling is Spread.YES,
            evaluated=evaluated is not Spread.NO,
            sized=False,
            evaluated_sized=evaluated is not Spread.NO and made[False] is not None,
            metric="" if "" in metrics else next(iter(sorted(metrics)), ""),
        )
        proven = {True: filling, False: evaluated_filling}
        unknown = [train for train, spread in proven.items() if spread is Spread.UNKNOWN]
        lengths = {t: own for t, own in lengths.items() if proven[t] is not Spread.YES}
        if not unknown and not lengths:
            apart = evaluated_filling is filling is Spread.NO and not known.evaluated
            return known._replace(whole=not (apart and self.in_parts()))
        by_size = {train: own.programs for train, own in lengths.items()}
        experiments = Experiments(self.programs, self.trials, self.steps, unknown, by_size)
        key = experiments.identity, known
        if key not in _found:
            tells = experiments.filling()
            found = known._replace(
                filling=tells.get(True, known.filling),
                evaluated_filling=tells.get(False, known.evaluated_filling),
            )
            for train, own in lengths.items():
                if experiments.sizes(train=train):
                    by_draws = own.draws and proven[train] is Spread.NO
                    found = _sized(found, train=train, by_draws=by_draws)
            _found[key] = found
        return _found[key]

    def lengths(self, *, train: bool) -> "_Lengths | None":
        """How results depend on the number of examples; None if they are proven not to."""
        sizes, draws = _some(self.sizes[train]), False
        if len(sizes) == 1 and not (train and self.filled):
            return None
        if self.same(sizes, train=train):
            mask = MASK._replace(axes=EXAMPLES.axes)
            if self.reach(MANY, mask, train=train, size=MANY)[0] is Spread.NO:
                return None
            own = self.reach(MANY, mask, train=train, size=MANY, own_draws=True)
            draws = own[0] is Spread.NO
        programs = {}
        for n in {sizes[0], *sizes[-3:], max(1, sizes[-1] // 2)}:
            with contextlib.suppress(Exception):  # as in `same`
                programs[n] = (
                    self.programs.traced(self.programs.gradients, n)
                    if train
                    else self.programs.traced_examples(n, train=False)[0]
                )
        return _Lengths(programs, draws)

    def same(self, sizes: Sequence[int], *, train: bool) -> bool:
        """Whether batches of these sizes run the same computation, except for their size."""
        try:
            many, _ = self.programs.traced_examples(MANY, train=train)
            same = all(
                jaxprs.same_but_for_size(
                    self.programs.traced_examples(n, train=train)[0], n, many, MANY
                )
                for n in (MORE, *sizes)
            )
            if same and train and _derivatives(many, *jaxprs.DERIVATIVES):
                gradients = self.programs.traced(self.programs.gradients, MANY)
                same = all(
                    jaxprs.same_but_for_size(
                        self.programs.traced(self.programs.gradients, n), n, gradients, MANY
                    )
                    for n in (sizes[0], sizes[-1])
                )
        except Exception:  # the functions may raise anything for batches of other sizes
            return False
        return same

    def spread(
        self, lengths: Mapping[bool, "_Lengths"], mask: Reach, *, train: bool
    ) -> tuple[Spread, set[str]]:
        """How far others reach in batches of the sizes that occur, and in which results."""
        batches = self.batches[train]
        found = [  # one size will do if all are proven to compute the same
            self.reach(max(n, 2), mask, train=train)
            for n in (batches if train in lengths else batches[-1:])
        ]
        return max(spread for spread, _ in found), set().union(*(names for _, names in found))

    def reach(
        self, n: int, mask: Reach, *, train: bool, size: int | None = None,
        drawn: Reach = CLEAN, anywhere: bool = False, own_draws: bool = False,
    ) -> tuple[Spread, set[str]]:  # fmt: skip
        """Whether others among n examples change more than their own results, and which results.

        These are given as names of metrics, "" for all else. `drawn` is the reach of the batch's
        key.
        """
        shapes = self.programs.sized(self.programs.shapes, n)
        given = [
            reach
            for part, reach in zip(shapes, (CLEAN, CLEAN, EXAMPLES, mask, drawn), strict=True)
            for _ in jax.tree.leaves(part)
        ]
        prove = functools.partial(
            independence.reaches, differentiated=train, size=size, anywhere=anywhere,
            own_draws=own_draws,
        )  # fmt: skip
        program, names = self.programs.traced_examples(n, train=train)
        reached = prove(program, given)
        found = [
            (name, own.spread or Spread(not own.axes <= EXAMPLES.axes))
            for name, own in zip(names, reached, strict=False)
        ]
        of_state = reached[len(names) :]
        found += [("", own.spread or Spread(bool(own.axes))) for own in of_state]
        # Derivatives may be custom, so they have to be proven, too.
        if train and _derivatives(program, "custom_jvp_call"):
            tangents = self.programs.traced_tangents(n)
            towards = [CLEAN] * len(jax.tree.leaves(self.programs.shapes.variables.params))
            [own] = [UNKNOWN] if tangents is None else prove(tangents, given + towards)
            found.append(("", own.spread or Spread(not own.axes <= EXAMPLES.axes)))
        worst = max(spread for _, spread in found)
        return worst, {name for name, spread in found if spread}

    def anywhere(self) -> bool:
        """Whether an example of one split may stand anywhere, such as behind those of others."""
        try:
            spread, _ = self.reach(
                MANY, EXAMPLES, train=False, size=MANY, drawn=UNKNOWN, anywhere=True
            )
        except Exception:  # the functions may raise anything for batches of another size
            return False
        return spread is Spread.NO

    def in_parts(self) -> bool:
        """Whether a batch may be computed in parts, if the task treats each example by itself.

        Nothing may depend on the place of an example in its batch, as random numbers drawn for each
        example do, on a state passed from step to step, or on the loss at other parameters.
        Gradients have to add up: custom backward passes need not be linear, and 16-bit floats would
        be rounded in each part.
        """
        state = jax.tree.leaves(self.programs.shapes.variables.state)
        if state or not self.filled or self.programs.asks_for_losses(self.steps):
            return False
        program, _ = self.programs.traced_examples(MANY, train=True)
        floats = (t for t in jaxprs.dtypes(program) if jnp.issubdtype(t, jnp.floating))
        if _derivatives(program, "custom_vjp_call") or any(t.itemsize < 4 for t in floats):
            return False
        spread, _ = self.reach(MANY, EXAMPLES, train=True, size=MANY, drawn=UNKNOWN, anywhere=True)
        return spread is Spread.NO and (not self.parts or self.same(self.parts, train=True))


def _derivatives(program: jax_core.ClosedJaxpr, *of: str) -> bool:
    """Whether a program has derivative rules of these kinds, the user's or JAX's own."""
    return any(name.startswith(of) for name in jaxprs.operations(program))


class _Lengths(NamedTuple):
    """What is known about a task that may depend on how many examples a batch has."""

    programs: Mapping[int, jax_core.ClosedJaxpr]  # by that number; in training, with gradients
    draws: bool  # nothing but random numbers may differ in a larger batch


def _some(sizes: Sequence[int]) -> list[int]:
    """A few of many sizes, including the extremes."""
    places = np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_SIZES)).astype(int)
    return [sizes[i] for i in places]


def _sized(found: Mixing, *, train: bool, by_draws: bool) -> Mixing:
    """Add what follows if the results of examples depend on the size of the array.

    With `by_draws`, nothing but their random numbers may differ.
    """
    if train:
        return found._replace(sized=True, filling=found.filling or not by_draws)
    filling = found.evaluated_filling or not by_draws
    return found._replace(evaluated=True, evaluated_filling=filling, evaluated_sized=True)
