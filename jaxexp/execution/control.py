"""What becomes of trials between epochs: which end early, and which go on as copies of others.

Rules are asked after epochs, with the curves so far. Those here are functions of the curves alone,
so that a run which resumes decides as the one that was interrupted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np

from jaxexp.base.batches import steps_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int
from jaxexp.execution.rules import Budget, Change, Curves, StoppingRule
from jaxexp.spec.trial import Trial
from jaxexp.training.data import Data

Stopping: TypeAlias = "StoppingRule | Sequence[StoppingRule] | None"


def listed(stopping: Stopping) -> list[StoppingRule]:
    """The rules that are given as one, as several, or not at all; one may be a tuple itself."""
    if stopping is None:
        return []
    several = isinstance(stopping, list | tuple) and not isinstance(stopping, StoppingRule)
    return [*cast(Sequence[StoppingRule], stopping if several else [stopping])]


class Control:
    """All rules of a run as one, their answers checked."""

    def __init__(self, stopping: Stopping = None) -> None:
        """Raise UserError for what is no rule, or for two that keep parameters."""
        rules = listed(stopping)
        for rule in rules:
            if not isinstance(rule, StoppingRule) or isinstance(rule, type):
                raise UserError(
                    f"stopping={rule!r}: expected jaxexp.EarlyStopping(…) or another object with "
                    "a method `stop`"
                )
        self.rules = tuple(rules)
        self._rungs = tuple(map(_rungs, rules))  # of each; None of those asked after every epoch
        self.rungs = tuple(sorted({rung for own in self._rungs for rung in own or ()}))
        for what in ("improved", "change"):
            own = [rule for rule in rules if _method(rule, what)]
            if len(own) > 1:
                raise UserError(
                    f"stopping: {_name(own[0])} and {_name(own[1])} both say which parameters "
                    "trials have in the end; expected one that does"
                )

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.rules)

    @property
    def changes(self) -> bool:
        """Whether trials may go on as copies of others."""
        return any(_method(rule, "change") for rule in self.rules)

    @property
    def changed(self) -> list[str]:
        """The hyperparameters that they then have others of, as far as rules say so."""
        ours = filter(_extends_ours, self.rules)
        return [name for rule in ours for name in getattr(rule, "changed", ())]

    @property
    def metric(self) -> str | None:
        """By which a search compares trials with one another, if there is one that says so."""
        for rule in filter(_extends_ours, self.rules):
            own = getattr(rule, "metric", None)
            if isinstance(own, str) and (hasattr(rule, "rungs") or _method(rule, "change")):
                return own
        return None

    @property
    def words(self) -> str:
        """What the rules are."""
        return ", ".join(_name(rule) for rule in self.rules)

    @property
    def identity(self) -> str:
        """The same in every process for rules that decide alike.

        Of the user's own, all that is known is what they are called: they are asked again.
        """
        return ", ".join(
            type(rule).__qualname__ if _is_own(rule) else _name(rule) for rule in self.rules
        )

    @property
    def asked_again(self) -> bool:
        """Whether a run that resumes has to see that the rules decide as they did.

        What the user's own decide by is not known.
        """
        return any(map(_is_own, self.rules))

    @property
    def of_every_trial(self) -> bool:
        """Whether every trial is asked for itself, also one that is the prefix of another.

        Searches compare or report it; what the user's own rules do is not known.
        """
        ours = filter(_extends_ours, self.rules)
        return self.asked_again or any(getattr(rule, "of_every_trial", False) for rule in ours)

    @property
    def by_clock(self) -> bool:
        """Whether a rule decides by when it is asked, and may have ended trials that others end."""
        return any(map(_by_clock, self.rules))

    def check(self, trials: Sequence[Trial], curves: Curves, data: Data) -> None:
        """Raise UserError where a rule refuses the run."""
        examples = [data.counts_of(trial.fold)["train"] for trial in trials]
        sizes = [trial.batch_size for trial in trials]
        steps = np.array(list(map(steps_per_epoch, examples, sizes)))
        for rule in self.rules:
            if check := _method(rule, "check"):
                check(trials, curves, steps)

    def stop(
        self, epoch: int, trials: Sequence[Trial], curves: Curves, *, again: bool = False
    ) -> np.ndarray:
        """Which trials of a program end, (T,) bool, by the rules that are asked of each alone.

        Of those that are asked `again`, none is of the clock.
        """
        own = [rule for rule, rungs in zip(self.rules, self._rungs, strict=True) if rungs is None]
        own = [rule for rule in own if not (again and _by_clock(rule))]
        return self._any(own, epoch, trials, curves)

    def stop_together(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Which of all trials end, (T,) bool, by the rules that have this epoch as a rung."""
        pairs = zip(self.rules, self._rungs, strict=True)
        own = [rule for rule, rungs in pairs if epoch in (rungs or ())]
        return self._any(own, epoch, trials, curves)

    def improved(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray | None:
        """Of which trials the parameters are the best so far, (T,) bool; None if nobody says."""
        for rule in self.rules:
            if improved := _method(rule, "improved"):
                answer = improved(epoch, trials, curves)
                return None if answer is None else _answer(rule, "improved", answer, trials)
        return None

    def change(
        self, epoch: int, trials: Sequence[Trial], curves: Curves, values: Mapping[str, np.ndarray]
    ) -> Change | None:
        """Which trials go on as copies of others; None if all go on as they are.

        `values` are the hyperparameters inside the program that they have now, (T,) each.
        """
        for rule in self.rules:
            if change := _method(rule, "change"):
                made: Change | None = change(epoch, trials, curves, values)
                return made
        return None

    def _any(
        self, rules: Sequence[StoppingRule], epoch: int, trials: Sequence[Trial], curves: Curves
    ) -> np.ndarray:
        stopped = np.zeros(len(trials), bool)
        for rule in rules:
            stopped |= _answer(rule, "stop", rule.stop(epoch, trials, curves), trials)
        return stopped


def _answer(rule: StoppingRule, method: str, answer: object, trials: Sequence[Trial]) -> np.ndarray:
    made = np.asarray(answer)
    if made.shape != (len(trials),) or made.dtype != bool:
        raise UserError(
            f"{type(rule).__name__}.{method} returned {made.dtype} of shape {made.shape}, expected "
            f"bool of shape ({len(trials)},), one for each trial"
        )
    return made


def _method(rule: StoppingRule, name: str) -> Callable[..., Any] | None:
    """An optional one; what a rule of the user's own calls by its name may be something else."""
    own = getattr(rule, name, None)
    return own if callable(own) else None


def _rungs(rule: StoppingRule) -> tuple[int, ...] | None:
    """Its rungs, checked; None where it has none of its own."""
    if not hasattr(rule, "rungs"):
        return None
    given = rule.rungs
    several = isinstance(given, Collection) and not isinstance(given, str)
    if not several or not all(is_int(rung) and rung >= 1 for rung in given):
        raise UserError(
            f"{_name(rule)}: rungs={given!r}, expected a list of epochs, whole numbers from 1 on"
        )
    return tuple(map(int, given))


def _by_clock(rule: StoppingRule) -> bool:
    return isinstance(rule, Budget) and rule.seconds is not None


def _name(rule: StoppingRule) -> str:
    return repr(rule) if _has_repr(rule) else type(rule).__qualname__


def _has_repr(rule: StoppingRule) -> bool:
    return type(rule).__repr__ is not object.__repr__


def _is_own(rule: StoppingRule) -> bool:
    """Whether it is of the user's own."""
    return not _is_ours(type(rule))


def _extends_ours(rule: StoppingRule) -> bool:
    """Whether its attributes are what jaxexp takes them for."""
    return any(_is_ours(cls) for cls in type(rule).__mro__)


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("jaxexp.") and not getattr(cls, "_is_protocol", False)
