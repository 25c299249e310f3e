"""Whether the examples of a batch have to do with one another, found out by computing a small one.

A batch may be filled up with examples that do not count, and examples of several splits may be
evaluated in one. Where a model normalises by its batch, or a loss compares its examples with each
other, as a contrastive one does, the first must change no number, and the second must not be.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.extend import core as jax_core

from jaxexp.planning.plan import static_key
from jaxexp.spec.trial import Trial
from jaxexp.training import jaxprs, tracing
from jaxexp.training.data import Data
from jaxexp.training.task import Batch, Task, Variables
from jaxexp.training.trees import PyTree

HALF = 4  # examples of the batch that is computed, beside as many others:
OTHERS = (4, 5, 6, 7)  # these, or one of them again and again
QUICK: dict[str, Any] = {  # to compile: each program runs a few times
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
FILLING = (
    "what fills it up would change the losses of its examples, or the model's state: heed the "
    "`mask` (B,) of a batch, where its examples have to do with one another (give the module, "
    "`apply` or `loss` a parameter `mask`)"
)


class Mixing(NamedTuple):
    """What changes the numbers of an example of a batch, beside the example itself."""

    filling: bool  # examples that do not count, in training
    evaluated_filling: bool  # the same in evaluation
    evaluated: bool  # other examples, in evaluation


APART = Mixing(filling=False, evaluated_filling=False, evaluated=False)
_found: dict[tuple[str, ...], Mixing] = {}


def mixing(task: Task, data: Data) -> Callable[[Trial], Mixing]:
    """Of a task that has been checked; once for trials that agree in what is static."""
    if tracing.is_plain_value(task):  # jaxexp's own heed the mask
        return lambda trial: APART
    found: dict[object, Mixing] = {}

    def of(trial: Trial) -> Mixing:
        key = static_key(trial)
        if key not in found:
            found[key] = _of(task, trial, data)
        return found[key]

    return of


@tracing.one_at_a_time
def _of(task: Task, trial: Trial, data: Data) -> Mixing:
    """Computed once in a process for tasks that compute the same."""
    arrays, rng = data.arrays(), jax.random.key(0)

    def losses(
        variables: Variables, batch: Batch, mask: Array, *, train: bool
    ) -> tuple[Sequence[Array], PyTree]:
        made = task.apply(trial, variables, batch, rng=rng, mask=mask, train=train)
        own = [a[:HALF] for a in (made.loss, *made.metrics.values())]
        return own, made.state if train else ()

    half = np.arange(2 * HALF) < HALF
    variables = jax.eval_shape(functools.partial(task.init, trial), rng, arrays)
    given = variables, _batch(arrays["train"], OTHERS), half
    traced = [
        jax.make_jaxpr(functools.partial(losses, train=train))(*given) for train in (True, False)
    ]
    key = tuple(jaxprs.digest(each) for each in traced)
    if key not in _found:
        drawn = _drawn(task, trial, variables, rng, arrays)
        _found[key] = _computed(traced, drawn, arrays["train"], half)
    return _found[key]


def _computed(
    traced: Sequence[jax_core.ClosedJaxpr], variables: Variables, examples: Batch, half: np.ndarray
) -> Mixing:
    """By what stands beside the same examples: other ones must not change a bit."""
    batches = [_batch(examples, others) for others in (OTHERS, OTHERS[:1] * HALF)]

    def changes(program: jax_core.ClosedJaxpr, *masks: np.ndarray) -> list[bool]:
        leaves = [[jax.tree.leaves((variables, batch, m)) for batch in batches] for m in masks]
        compiled = _compiled(jax_core.jaxpr_as_fun(program), *leaves[0][0])
        made = [[compiled(*own) for own in pair] for pair in leaves]
        return [any(map(_differ, one, other)) for one, other in made]

    training, evaluation = traced
    return Mixing(*changes(training, half), *changes(evaluation, half, np.ones_like(half)))


def _drawn(task: Task, trial: Trial, shapes: Variables, *given: PyTree) -> Variables:
    """Variables for which what depends on a parameter shows: many begin at zero."""
    rng = np.random.default_rng(0)

    def noise(a: jax.ShapeDtypeStruct) -> np.ndarray:
        drawn: np.ndarray = (0.3 * rng.standard_normal(a.shape)).astype(a.dtype)
        return drawn

    noises = jax.tree.map(noise, shapes.params)
    if not jax.tree.leaves(shapes.state):
        return shapes._replace(params=noises)
    variables: Variables = _compiled(functools.partial(task.init, trial), *given)(*given)
    params = jax.tree.map(lambda a, own: np.asarray(a) + own, variables.params, noises)
    return variables._replace(params=params)


def _compiled(function: Callable[..., PyTree], *given: PyTree) -> jax.stages.Compiled:
    return jax.jit(function).lower(*given).compile(QUICK)


def _batch(examples: Batch, others: Sequence[int]) -> Batch:
    """The first examples, and others; of few, the first ones again."""
    places = np.array([*range(HALF), *others])
    return jax.tree.map(lambda a: np.asarray(a)[places % len(a)], examples)


def _differ(a: Array, b: Array) -> bool:
    """Whether their bits do."""
    return np.asarray(a).tobytes() != np.asarray(b).tobytes()
