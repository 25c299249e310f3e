"""The optimizer of a trial, as a program keeps its state."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxexp.base.errors import UserError
from jaxexp.spec.padding import Choice, choose
from jaxexp.spec.trial import Trial
from jaxexp.training.task import Task, extended_update
from jaxexp.training.trees import PyTree

Steps: TypeAlias = int | Choice[int]  # of a trial in all; a choice if trials differ


def optimizer_of(task: Task, trial: Trial, run_steps: Steps) -> optax.GradientTransformation:
    """The optimizer of a trial, even if trials of its program take different numbers of steps."""
    return _without_keys(of_kept_types(_as_made(task, trial, run_steps)))


def of_kept_types(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with a state that keeps its initial types, as parameters do in optax.

    Traced hyperparameters are float32, and would turn the state of bfloat16 parameters into
    float32. Its update raises UserError if integers become floats, say.
    """

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        updates, new = extended_update(optimizer, grads, state, params, extra)
        was, now = (str(jax.tree.structure(own)) for own in (state, new))
        if was == now:  # otherwise JAX says what differs
            new = jax.tree_util.tree_map_with_path(_kept, state, new)
        return updates, new

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _kept(path: tuple[object, ...], old: ArrayLike, new: ArrayLike) -> ArrayLike:
    was, now = jnp.result_type(old), jnp.result_type(new)
    if was == now:
        return new
    for kind in (jnp.floating, jnp.integer, jnp.complexfloating):
        if jnp.issubdtype(was, kind) and jnp.issubdtype(now, kind):
            return jnp.asarray(new, was)
    raise UserError(
        f"optimizer: state{jax.tree_util.keystr(path)} is {was} at first and {now} after an "
        f"update: expected {was} again"
    )


def _without_keys(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with a state that holds keys as their data, which are saved like any array."""

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
