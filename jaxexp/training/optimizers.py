"""The optimizers that have a name. Any other is a function of the trial: see `Task.optimizer`."""

from typing import Any

import optax

from jaxexp.base.errors import UserError
from jaxexp.spec.padding import Choice, choose
from jaxexp.spec.trial import Trial

PyTree = Any
NAMES = ("adam", "adamw", "sgd")


def built_in(trial: Trial) -> optax.GradientTransformation:
    """Of a name, or of several in one program: every option keeps a state, one updates."""
    if not isinstance(trial.optimizer, Choice):
        return _named(trial.optimizer, trial)
    options = trial.optimizer.options
    made = {name: _named(name, trial) for name in options}

    def init(params: PyTree) -> dict[str, PyTree]:
        return {name: each.init(params) for name, each in made.items()}

    def update(grads: PyTree, states: dict[str, PyTree], params: PyTree = None) -> Any:
        results = {name: each.update(grads, states[name], params) for name, each in made.items()}
        updates = choose(trial.optimizer, lambda name: results[name][0])
        return updates, {name: state for name, (_, state) in results.items()}

    return optax.GradientTransformation(init, update)


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
