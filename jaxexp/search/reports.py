"""What an Optuna study is told: every epoch's value while trials train, and how they ended."""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
import xarray as xr

from jaxexp.base.errors import UserError, in_one_line
from jaxexp.execution.rules import StopDiverged
from jaxexp.results import select
from jaxexp.spec.trial import Trial

if TYPE_CHECKING:
    import optuna


class Curves(Protocol):
    """What has been measured so far of some trials: of each, (T,), by epoch, (T, epochs)."""

    splits: tuple[str, ...]

    def __call__(self, metric: str = "loss", split: str | None = None) -> np.ndarray:
        """A metric on a split."""
        ...


class Replayed:
    """Curves of trials that were trained before, until an epoch (from 1)."""

    def __init__(self, curves: Mapping[Trial, xr.Dataset]) -> None:
        """`curves` are the results of each."""
        self._curves = curves
        self._read: dict[tuple[Trial, str, str | None], np.ndarray] = {}
        self.splits = tuple(next(iter(curves.values()))["split"].values.tolist())

    def until(self, epoch: int, trials: Sequence[Trial]) -> Self:
        """Of some of the trials."""
        self._epoch, self._trials = epoch, trials
        return self

    def __call__(self, metric: str = "loss", split: str | None = None) -> np.ndarray:
        """A metric on a split, (T, epoch)."""
        return np.stack([self._of(own, metric, split)[: self._epoch] for own in self._trials])

    def _of(self, trial: Trial, metric: str, split: str | None) -> np.ndarray:
        key = trial, metric, split
        if key not in self._read:
            self._read[key] = self._curves[trial][metric].sel(split=split).values
        return self._read[key]


@dataclass
class Asked:
    """A trial of a study and what is trained for it: T trials, one for each seed.

    `own` is None of one that had ended before this search began. Of one that was `pruned` as it
    was asked, by the function that suggests, nothing is trained.
    """

    number: int
    own: "optuna.Trial | None"
    trials: tuple[Trial, ...]
    reported: int = 0  # epochs, the last one that the study knows
    ended: bool = False  # whether the study was told
    pruned: bool = False

    @property
    def trial(self) -> Trial:
        """The first of them."""
        return self.trials[0]


@dataclass(repr=False)
class Reports:
    """Reports the epochs of a batch to its study, and ends what the pruner prunes.

    It is a rule for `stopping` of `jaxexp.run`. Several trials of a study may be one configuration,
    which trains once, until none of them needs it any more.

    Args:
        study: the study; what is done with it is done under a lock.
        asked: its trials in the order in which they were asked, in which the pruner judges them.
        metric: what is reported, and on which `split`; with several seeds, its mean.
        prune: whether the pruner is asked.
        every: epochs from one report to the next.
        report: whether anything is reported; a study of several objectives takes no reports.
    """

    study: "optuna.Study"
    asked: Sequence[Asked]
    metric: str
    split: str
    prune: bool = True
    every: int = 1
    report: bool = True
    of_every_trial: ClassVar[bool] = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Nothing is measured yet."""
        self._by_trial: dict[Trial, list[Asked]] = {}
        for asked in self.asked:
            for trial in asked.trials:
                self._by_trial.setdefault(trial, []).append(asked)
        self._values: dict[Trial, dict[int, float]] = {trial: {} for trial in self._by_trial}
        self._lost: set[Trial] = set()

    def __repr__(self) -> str:
        """What decides the numbers: checkpoints of a run know it by this."""
        if not self.prune:
            return repr(StopDiverged())
        told = f"metric={self.metric!r}, split={self.split!r}, every={self.every}"
        return f"Reports({self.study.study_name!r}, {told}, prune=True)"

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Those that the study needs no more: pruned, or diverged."""
        value_T = np.asarray(curves(self.metric, self.split), float)[:, -1]
        lost_T = ~np.isfinite(np.stack([curves("loss", s)[:, -1] for s in curves.splits])).all(0)
        with self._lock:
            for trial, value, lost in zip(trials, value_T, lost_T, strict=True):
                self._values[trial][epoch] = np.nan if lost else float(value)
                if lost:
                    self._lost.add(trial)
            if self.report and epoch % self.every == 0:
                with of_study(self.study):
                    self._report(epoch, set(trials))
            return np.array([self._over(trial, epoch) for trial in trials])

    def _report(self, epoch: int, trials: set[Trial]) -> None:
        """What is known of all seeds at this epoch: reported first, then judged."""
        known = [
            asked
            for asked in self.asked
            if not asked.ended
            and not trials.isdisjoint(asked.trials)
            and all(epoch in self._values[trial] for trial in asked.trials)
        ]
        for asked in known:
            if asked.own and epoch > asked.reported:
                values = [self._values[trial][epoch] for trial in asked.trials]
                with unless_finished(self.study, asked):
                    asked.own.report(float(np.mean(values)), epoch)
                asked.reported = epoch
        for asked in known if self.prune else ():
            # At its last epoch a trial is complete. What a search that was killed had reported
            # beyond this epoch, it had judged here already.
            judged = epoch == asked.reported and epoch < asked.trial.epochs
            lost = not self._lost.isdisjoint(asked.trials)
            if asked.own and judged and not (lost or asked.ended):
                with unless_finished(self.study, asked):
                    if asked.own.should_prune():
                        tell(self.study, asked, "PRUNED")

    def _over(self, trial: Trial, epoch: int) -> bool:
        """Whether no trial of the study needs this one after the epoch."""
        if not self.prune:
            return trial in self._lost
        return all(
            (asked.ended and epoch >= asked.reported) or not self._lost.isdisjoint(asked.trials)
            for asked in self._by_trial[trial]
        )


class Together:
    """The same rule where others train: at each of its rungs, all programs wait for the study.

    It is asked in this process alone; what goes to the nodes of a cluster is the rungs.
    """

    of_every_trial = True

    def __init__(self, reports: Reports | None, rungs: Sequence[int]) -> None:
        """`rungs` are the epochs at which it is asked."""
        self._reports, self.rungs = reports, tuple(rungs)

    def __repr__(self) -> str:
        """See `Reports`."""
        return f"Together({self._reports!r})"

    def __reduce__(self) -> tuple[type["Together"], tuple[None, tuple[int, ...]]]:
        """Without the study, which stays here."""
        return Together, (None, self.rungs)

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """See `Reports`."""
        assert self._reports is not None
        return self._reports.stop(epoch, trials, curves)


def ending(curves: Sequence[xr.Dataset], metrics: Sequence[str], split: str) -> list[float] | None:
    """The mean over seeds of each metric at the end; None where one has diverged."""
    values = [
        float(np.mean([float(select.final(own, name).sel(split=split)) for own in curves]))
        for name in metrics
    ]
    return values if np.isfinite(values).all() else None


def tell(
    study: "optuna.Study", asked: Asked, state: str, values: Sequence[float] | None = None
) -> bool:
    """End a trial of a study; whether its sampler has more to suggest.

    Some samplers of finitely many points ask `Study.optimize` to stop, which is not running here.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    more = True
    with unless_finished(study, asked):
        try:
            study.tell(asked.number, values, TrialState[state], skip_if_finished=True)
        except RuntimeError as error:
            more = isinstance(error, UpdateFinishedTrialError)  # others have ended it meanwhile
            raise
    asked.ended = True
    return more


@contextlib.contextmanager
def of_study(study: "optuna.Study", raised: type[Exception] = Exception) -> Iterator[None]:
    """Raise UserError for what a study raises as it is asked or told, such as a lost database's."""
    try:
        yield
    except UserError:
        raise
    except raised as error:  # there are storages, samplers and pruners of one's own
        raise UserError(
            f"study={study.study_name!r}: cannot be asked or told: {in_one_line(error)}"
        ) from error


@contextlib.contextmanager
def unless_finished(study: "optuna.Study", asked: Asked) -> Iterator[None]:
    """While something is written of a trial that others, too, may have ended by now."""
    try:
        yield
    except RuntimeError:
        if not study.get_trials(deepcopy=False)[asked.number].state.is_finished():
            raise
        asked.ended = True


@contextlib.contextmanager
def no_experimental_warnings() -> Iterator[None]:
    """Without Optuna's word on what it calls experimental, which the user has not chosen."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
