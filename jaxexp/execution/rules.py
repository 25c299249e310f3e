"""Rules that end trials early, and what they see of them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int, is_number
from jaxexp.base.words import did_you_mean
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial

RUNNING = "running_"  # how the names of means taken during the epochs begin


class Curves:
    """What has been measured for some trials so far: `curves("accuracy")` is (T, epoch).

    By default on the validation split if there is one, otherwise on the training split.
    "running_loss" and the like, the means taken during the epochs, have no splits.

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

    Three more members are optional. `improved(epoch, trials, curves)` also returns a (T,) bool: a
    trial ends with the parameters that it had when this was last True. `rungs` are epochs, from 1,
    at which all programs of a run wait for each other: `stop` is then asked only there, about all
    their trials at once. `check(trials, curves, steps)` may refuse a run before it begins; its
    curves have no epochs yet, and `steps` is the number of steps per epoch of each trial, (T,). A
    method `change` is as in `jaxexp.search.PBT`.

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


class Change(NamedTuple):
    """Trials go on as copies of others, with other hyperparameters: (T,) each."""

    source: np.ndarray  # the place of the trial whose state each has from now on
    values: dict[str, np.ndarray]  # of hyperparameters


def values_in(
    epoch_T: np.ndarray, begun: Mapping[str, np.ndarray], changes: Mapping[int, Change]
) -> dict[str, np.ndarray]:
    """The hyperparameters that each trial had in an epoch of its own, (T,) each.

    Those that it began with, and what was changed, after which epochs.

    >>> change = Change(np.array([0, 0]), {"power": np.array([1.0, 8.0])})
    >>> values_in(np.array([2, 3]), {"power": np.array([1.0, 2.0])}, {2: change})["power"].tolist()
    [1.0, 8.0]
    """
    made = dict(begun)
    for epoch, change in sorted(changes.items()):
        for name, value_T in change.values.items():
            changed_T = np.where(epoch < epoch_T, value_T, made[name])
            made[name] = changed_T.astype(begun[name].dtype)
    return made


@dataclass(frozen=True)
class EarlyStopping:
    """A trial ends when a metric has not improved for some epochs.

    Args:
        metric: "loss", a metric of the task, or a mean taken during the epochs ("running_loss").
        patience: the number of epochs without improvement after which a trial ends.
        min_delta: a change counts as an improvement if it is larger than this.
        split: by default the validation split if there is one, otherwise the training split.
        restore_best: whether a trial ends with the parameters of its best epoch or, if False, with
            those of its last one.

    A value that is not finite is no improvement, so diverged trials end, too.

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
    """A trial ends after an epoch at whose end its loss is not finite on one of the splits.

    Losses of single steps do not count: an optimizer may skip those that are not finite.

    >>> curves = Curves(lambda m, s: np.array([[1.0], [np.nan]]), {"loss": "lower"}, ("train",))
    >>> StopDiverged().stop(1, [], curves).tolist()
    [False, True]
    """

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Those whose loss is not finite."""
        losses = np.stack([curves("loss", split)[:, -1] for split in curves.splits])
        lost: np.ndarray = ~np.isfinite(losses).all(0)
        return lost


@dataclass(frozen=True)
class Budget:
    """Trials end when a number of steps, or of seconds, is used up.

    Args:
        steps: each trial ends with the last epoch that fits into this number of its own steps.
        seconds: all trials end with the first epoch that ends this many seconds after the run
            began (on the wall clock, restarted when the run resumes). Which epoch that is depends
            on the machine. Every trial trains for at least one epoch.

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
        self._begun[:] = [time.time()]  # which nodes of a cluster have in common
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
            over |= time.time() - self._begun[0] >= self.seconds
        return over
