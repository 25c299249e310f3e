"""The optimizers that have a name. Any other is a function of the trial: see `Task.optimizer`."""

from collections.abc import Callable
from typing import TypeVar

import jax
import optax
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from jaxexp.base.errors import UserError
from jaxexp.spec.padding import Choice, choose
from jaxexp.spec.trial import Trial, with_values
from jaxexp.training.trees import PyTree

T = TypeVar("T")
NAMES = ("adam", "adamw", "sgd")


def built_in(trial: Trial) -> optax.GradientTransformation:
    """The optimizer that the trial names, or several of them in one program."""
    if not isinstance(trial.optimizer, Choice):
        return _named(trial.optimizer, trial)
    return one_of(trial.optimizer, lambda name: _named(name, trial))


def one_of(
    choice: Choice[T], make: Callable[[T], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Several optimizers in one program: each keeps its state, the chosen one makes the update."""
    made = {o: optax.with_extra_args_support(make(o)) for o in choice.options}

    def init(params: PyTree) -> dict[T, PyTree]:
        return {option: each.init(params) for option, each in made.items()}

    def update(
        grads: PyTree, states: dict[T, PyTree], params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, dict[T, PyTree]]:
        results = {o: each.update(grads, states[o], params, **extra) for o, each in made.items()}

        def updates(option: T) -> PyTree:
            return results[option][0]

        return choose(choice, updates), {option: state for option, (_, state) in results.items()}

    return optax.GradientTransformationExtraArgs(init, update)


def evaluated(
    trial: Trial, params: PyTree, state: PyTree,
    of: Callable[[Trial, PyTree, PyTree], PyTree],
) -> PyTree:  # fmt: skip
    """The parameters to evaluate: what `of` makes of a trial, its parameters and optimizer state.

    With several optimizers in one program, it is called for each, with a trial that names this one.
    """
    choice = trial.optimizer
    if not isinstance(choice, Choice) or not isinstance(state, dict):
        return of(trial, params, state)
    made = {o: of(with_values(trial, optimizer=o), params, own) for o, own in state.items()}
    same = all(each is params for each in made.values())
    return params if same else choose(choice, made.__getitem__)


def schedule_free(trial: Trial, params: PyTree, state: PyTree) -> PyTree:
    """The average that a schedule-free optimizer keeps; for others, the parameters themselves.

    Raises UserError if such an optimizer trains only some of the parameters.

    Source: Defazio et al., The Road Less Scheduled, 2024; `optax.contrib.schedule_free`.
    """
    states = jax.tree.leaves(state, is_leaf=lambda each: isinstance(each, ScheduleFreeState))
    found = [each for each in states if isinstance(each, ScheduleFreeState)]
    if not found:
        return params
    if len(found) > 1 or len({*map(jax.tree.structure, (found[0].z, params))}) > 1:
        raise UserError(
            "the optimizer is schedule-free for a part of the parameters: expected one for all, or "
            "`evaluation_params`, which says at which parameters a trial is evaluated"
        )
    return schedule_free_eval_params(found[0], params)


def check(trial: Trial) -> None:
    """Raise UserError unless the trial's optimizer is built in, and reads what is set for it."""
    if trial.optimizer not in NAMES:
        raise UserError(
            f"optimizer={trial.optimizer!r}: expected one of {', '.join(NAMES)}, or a task that "
            "makes its own optimizer"
        )
    if trial.momentum and trial.optimizer != "sgd":
        raise UserError(f"momentum={trial.momentum} needs optimizer=sgd, not {trial.optimizer}")
    if trial.weight_decay and trial.optimizer != "adamw":
        raise UserError(
            f"weight_decay={trial.weight_decay} needs optimizer=adamw, not {trial.optimizer}"
        )


def _named(name: str, trial: Trial) -> optax.GradientTransformation:
    if name == "adam":
        return optax.adam(trial.learning_rate)
    if name == "adamw":
        return optax.adamw(trial.learning_rate, weight_decay=trial.weight_decay)
    if name == "sgd":
        # PyTorch's momentum buffer is optax's trace; with momentum 0 it is the gradient itself.
        return optax.sgd(trial.learning_rate, momentum=trial.momentum)
    raise UserError(f"optimizer={name!r}: expected one of {', '.join(NAMES)}")
