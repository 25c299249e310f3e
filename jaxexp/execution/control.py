"""What becomes of trials between epochs: which end early, and which go on as copies of others.

Rules are asked after epochs, with the curves so far. Those here are functions of the curves alone,
so that a run which resumes decides as the one that was interrupted.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from jaxexp.base.batches import steps_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int, is_number
from jaxexp.base.words import did_you_mean
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.training.data import Data

RUNNING = "running_"  # how the names of means taken during the epochs begin


class Curves:
    """What has been measured of some trials until now: `curves("accuracy")` is (T, epoch).

    Of the validation split, where no other is named and there is one, or else of the training
    split; "running_loss" and the like, the means taken during the epochs, have no splits.

    >>> curves = Curves(lambda metric, split: np.ones((3, 2)), {"loss": "lower"}, ("train",))
    >>> curves("loss").shape
    (3, 2)
    """

    def __init__(
        self, values: Callable[[str, str], np.ndarray], directions: Mapping[str, str],
        splits: Sequence[str],
    ) -> None:  # fmt: skip
        """`directions` says of each metric, the loss among them, whether "lower" is better."""
        self._values, self.directions, self.splits = values, directions, tuple(splits)

    def __call__(self, metric: str = "loss", split: str | None = None) -> np.ndarray:
        """Of each trial and epoch, (T, epoch); raises UserError where there is no such metric."""
        self.check(metric, split)
        return self._values(metric, split or self.default_split)

    @property
    def default_split(self) -> str:
        """That by which trials are ranked."""
        return "validation" if "validation" in self.splits else "train"

    def costs(self, metric: str = "loss", split: str | None = None) -> np.ndarray:
        """The same so that lower is better, (T, epoch): infinite where it is not finite."""
        values_TxE = self(metric, split)
        sign = 1 if self.directions[metric.removeprefix(RUNNING)] == "lower" else -1
        return np.where(np.isfinite(values_TxE), sign * values_TxE, np.inf)

    def check(self, metric: str, split: str | None) -> None:
        """Raise UserError for a metric or a split that there is not."""
        name = metric.removeprefix(RUNNING) if isinstance(metric, str) else metric
        if name not in self.directions:
            there, meant = ", ".join(self.directions), did_you_mean(str(name), self.directions)
            raise UserError(
                f"metric={metric!r}: {meant}expected one of {there}, or {RUNNING} before its name"
            )
        if name != metric and split is not None:
            raise UserError(f"split={split!r}: {metric} is taken in training, expected none")
        if split is not None and split not in self.splits:
            raise UserError(f"split={split!r}: expected one of {', '.join(self.splits)}")


@runtime_checkable
class StoppingRule(Protocol):
    """Says which trials end early: what `jaxexp.run` takes as `stopping`.

    Three more members are optional. `improved(epoch, trials, curves)` returns a (T,) bool, too: in
    the end a trial has the parameters that it had when it last was True. `rungs` are epochs at
    which all programs of a run wait for each other: `stop` is then asked there alone, and of all
    their trials at once. `check(trials, curves, steps)` may refuse a run before it begins; its
    curves have no epochs yet, and `steps` are those of an epoch of each trial, (T,).

    >>> class BestOfEach:
    ...     def stop(self, epoch, trials, curves):
    ...         "After the third epoch, nothing but the best trial of each program."
    ...         cost_T = curves.costs("accuracy")[:, -1]
    ...         return (cost_T > cost_T.min()) & (epoch == 3)
    >>> isinstance(BestOfEach(), StoppingRule)
    True
    """

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Which of the trials, (T,) bool, end after this epoch (from 1).

        May be called from several threads.
        """
        ...


@runtime_checkable
class Search(StoppingRule, Protocol):
    """A rule that brings its own sweep, as `jaxexp.search.Hyperband` does."""

    @property
    def sweep(self) -> Sweep:
        """Of the trials that it is about."""
        ...


Stopping: TypeAlias = "StoppingRule | Sequence[StoppingRule] | None"


class Change(NamedTuple):
    """Trials go on as copies of others, with other hyperparameters: (T,) each."""

    source: np.ndarray  # the place of the trial whose state each has from now on
    values: dict[str, np.ndarray]  # of hyperparameters


@dataclass(frozen=True)
class EarlyStopping:
    """A trial ends when a metric has not improved for some epochs.

    Args:
        metric: "loss", a metric of the task, or a mean taken during the epochs ("running_loss").
        patience: so many epochs without improvement end a trial.
        min_delta: an improvement is by more than this.
        split: the validation split where there is one, or else the training split.
        restore_best: whether a trial has the parameters of its best epoch in the end, and
            otherwise those of its last one.

    A value that is not finite is no improvement, so that a diverged trial ends, too.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> sweep = jx.Sweep(jx.MLPTrial(epochs=9, depth=1, batch_size=8), {"learning_rate": [1e-9]})
    >>> rule = EarlyStopping(patience=2, min_delta=0.01)
    >>> int(jx.run(sweep, data=data, progress=False, stopping=rule)["epochs_trained"].item())
    3
    """

    metric: str = "loss"
    patience: int = 5
    min_delta: float = 0.0
    split: str | None = None
    restore_best: bool = True

    def __post_init__(self) -> None:
        """Raise UserError for arguments that cannot be."""
        checked_int("patience", self.patience, least=1)
        if not is_number(self.min_delta) or not 0 <= self.min_delta < math.inf:
            raise UserError(f"min_delta={self.min_delta!r}: expected a number at least 0")
        if not isinstance(self.restore_best, bool):
            raise UserError(f"restore_best={self.restore_best!r}: expected True or False")

    def check(self, trials: Sequence[Trial], curves: Curves, steps: np.ndarray) -> None:
        """Raise UserError for a metric or a split that there is not."""
        curves.check(self.metric, self.split)

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Those without an improvement for `patience` epochs."""
        stopped: np.ndarray = epoch - self._best_epoch(curves) >= self.patience
        return stopped

    def improved(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray | None:
        """Those whose best epoch this one is."""
        return self._best_epoch(curves) == epoch if self.restore_best else None

    def _best_epoch(self, curves: Curves) -> np.ndarray:
        """Of each trial, (T,), the epoch of its last improvement; 0 if nothing was finite."""
        cost_TxE = curves.costs(self.metric, self.split)
        best_T, epoch_T = np.full(len(cost_TxE), np.inf), np.zeros(len(cost_TxE), int)
        for epoch, cost_T in enumerate(cost_TxE.T, 1):
            better_T = cost_T < np.where(np.isinf(best_T), best_T, best_T - self.min_delta)
            best_T, epoch_T = np.where(better_T, cost_T, best_T), np.where(better_T, epoch, epoch_T)
        return epoch_T


@dataclass(frozen=True)
class StopDiverged:
    """A trial ends after the epoch in which its loss stops being finite.

    >>> curves = Curves(lambda m, s: np.array([[1.0], [np.nan]]), {"loss": "lower"}, ("train",))
    >>> StopDiverged().stop(1, [], curves).tolist()
    [False, True]
    """

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Those whose loss is not finite."""
        running_T = curves(f"{RUNNING}loss")[:, -1]
        lost: np.ndarray = ~np.isfinite(running_T)
        for split in curves.splits:
            lost = lost | ~np.isfinite(curves("loss", split)[:, -1])
        return lost


@dataclass(frozen=True)
class Budget:
    """Trials end when a number of steps, or of seconds, is used up.

    Args:
        steps: a trial ends with the last epoch that fits into so many steps of its own.
        seconds: all trials end with the first epoch that ends so many seconds after the run began
            (on the wall clock; where it resumes, it begins anew). Which that is depends on the
            machine. Every trial trains for at least one epoch.

    >>> Budget(steps=1_000)
    Budget(steps=1000, seconds=None)
    """

    steps: int | None = None
    seconds: float | None = None
    _begun: list[float] = field(default_factory=list, repr=False, compare=False)
    _steps: dict[Trial, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError for arguments that cannot be."""
        if self.steps is None and self.seconds is None:
            raise UserError("Budget(): expected steps=, seconds=, or both")
        if self.steps is not None:
            checked_int("steps", self.steps, least=1)
        if self.seconds is not None and not (is_number(self.seconds) and self.seconds > 0):
            raise UserError(f"seconds={self.seconds!r}: expected a number above 0")

    def check(self, trials: Sequence[Trial], curves: Curves, steps: np.ndarray) -> None:
        """Raise UserError for trials of which not even one epoch fits; the clock starts."""
        self._begun[:] = [time.monotonic()]
        self._steps.update(zip(trials, map(int, steps), strict=True))
        if self.steps is not None and self.steps < max(steps):
            raise UserError(
                f"steps={self.steps}: expected at least {max(steps)}, those of an epoch of "
                f"batch_size={trials[int(np.argmax(steps))].batch_size}"
            )

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Those whose next epoch would not fit."""
        over = np.zeros(len(trials), bool)
        if self.steps is not None:
            over |= np.array([(epoch + 1) * self._steps[t] > self.steps for t in trials])
        if self.seconds is not None:
            over |= time.monotonic() - self._begun[0] >= self.seconds
        return over


class Control:
    """All rules of a run as one, their answers checked."""

    def __init__(self, stopping: Stopping = None) -> None:
        """Raise UserError for what is no rule, or for two that keep parameters."""
        several = stopping if isinstance(stopping, list | tuple) else [stopping]
        rules: list[StoppingRule] = []
        for rule in [] if stopping is None else several:
            if not isinstance(rule, StoppingRule) or isinstance(rule, type):
                raise UserError(
                    f"stopping={rule!r}: expected jaxexp.EarlyStopping(…) or another object with "
                    "a method `stop`"
                )
            rules.append(rule)
        self.rules = tuple(rules)
        self.rungs = tuple(sorted({int(r) for rule in rules for r in getattr(rule, "rungs", ())}))
        for what in ("improved", "change"):
            own = [rule for rule in rules if hasattr(rule, what)]
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
        return any(hasattr(rule, "change") for rule in self.rules)

    @property
    def metric(self) -> str | None:
        """By which a search compares trials with one another, if there is one that says so."""
        for rule in self.rules:
            own = getattr(rule, "metric", None)
            if isinstance(own, str) and (hasattr(rule, "rungs") or hasattr(rule, "change")):
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
        """Whether a run that resumes has to see that the rules decide as they did."""
        return any(map(_is_own, self.rules))

    def check(self, trials: Sequence[Trial], curves: Curves, data: Data) -> None:
        """Raise UserError where a rule refuses the run."""
        examples = [data.counts_of(trial.fold)["train"] for trial in trials]
        sizes = [trial.batch_size for trial in trials]
        steps = np.array(list(map(steps_per_epoch, examples, sizes)))
        for rule in self.rules:
            if hasattr(rule, "check"):
                rule.check(trials, curves, steps)

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Which trials of a program end, (T,) bool, by the rules that are asked of each alone."""
        return self._any([r for r in self.rules if not hasattr(r, "rungs")], epoch, trials, curves)

    def stop_together(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Which of all trials end, (T,) bool, by the rules that have this epoch as a rung."""
        own = [rule for rule in self.rules if epoch in getattr(rule, "rungs", ())]
        return self._any(own, epoch, trials, curves)

    def improved(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray | None:
        """Of which trials the parameters are the best so far, (T,) bool; None if nobody says."""
        for rule in self.rules:
            if hasattr(rule, "improved"):
                answer = rule.improved(epoch, trials, curves)
                return None if answer is None else _answer(rule, "improved", answer, trials)
        return None

    def change(
        self, epoch: int, trials: Sequence[Trial], curves: Curves, values: Mapping[str, np.ndarray]
    ) -> Change | None:
        """Which trials go on as copies of others; None if all go on as they are.

        `values` are the hyperparameters inside the program that they have now, (T,) each.
        """
        for rule in self.rules:
            if hasattr(rule, "change"):
                made: Change | None = rule.change(epoch, trials, curves, values)
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


def _name(rule: StoppingRule) -> str:
    return repr(rule) if _has_repr(rule) else type(rule).__qualname__


def _has_repr(rule: StoppingRule) -> bool:
    return type(rule).__repr__ is not object.__repr__


def _is_own(rule: StoppingRule) -> bool:
    """Whether it is of the user's own."""
    return not type(rule).__module__.startswith("jaxexp.")
