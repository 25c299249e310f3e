"""A search over a study, batch by batch: asked, trained as one plan, told."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias, TypedDict, cast

import jax
import xarray as xr

from jaxexp.api import PlannedRun, plan
from jaxexp.api.planned import task_fingerprint
from jaxexp.base.errors import UserError, in_one_line
from jaxexp.base.files import digest
from jaxexp.base.words import count
from jaxexp.execution import driver
from jaxexp.execution.control import Stopping
from jaxexp.execution.rules import StopDiverged
from jaxexp.results import select
from jaxexp.results.joining import join, sweep_over, varying
from jaxexp.results.results import Results
from jaxexp.search.reports import (
    Asked,
    Replayed,
    Reports,
    Together,
    ending,
    of_study,
    tell,
    unless_finished,
)
from jaxexp.search.resuming import Folder, abandoned, again, alone, ask, take, under_way
from jaxexp.search.suggestions import Suggestions
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Value, check_texts
from jaxexp.training.data import Data
from jaxexp.training.task import Task

if TYPE_CHECKING:
    import optuna as op
    from optuna.trial import FrozenTrial

NAME = "study"  # of the sweep of all that was trained
SEEDS_TWICE = "seeds={}: the seed is suggested already, by the space"
# Trains a batch, with the checkpoints of the batch of this name, if it is to be resumed, and rules.
Train: TypeAlias = Callable[[PlannedRun, str | None, Stopping], Results]


class Training(TypedDict):
    """Options of `jaxexp.plan` that every batch has."""

    devices: int | Sequence[jax.Device] | None
    programs: str
    memory: float | None
    cluster: str | None
    nodes: int | None


@dataclass
class Search:
    """A search over a study under way; see `jaxexp.search.optuna` for what it is given."""

    study: "op.Study"
    suggestions: Suggestions
    task: Task
    data: Data
    batch: int
    metrics: tuple[str, ...]
    split: str
    seeds: int
    prune: bool
    every: int
    training: Training
    train: Train
    name: str = NAME
    record: tuple[str, ...] = ()  # as of a sweep
    # Whether a batch whose training has raised an error can be resumed, or has failed for good.
    retried: bool = False
    folder: Folder | None = None
    owner: str = ""  # what its trials say while it is under way
    batches: int = 0
    pruned: int = 0  # trials, as they were asked
    runs: list[Results] = field(default_factory=list)
    # Of each configuration, as float32 has it: the trial that stands for it, and its results.
    known: dict[tuple[Value, ...], Trial] = field(default_factory=dict)
    curves: dict[Trial, xr.Dataset] = field(default_factory=dict)
    written: dict[tuple[str, str], Value] = field(default_factory=dict)  # see `check_texts`

    @property
    def identity(self) -> dict[str, object]:
        """What decides which trials are trained, and what the study is told."""
        return {
            "study": self.study.study_name,
            "batch": self.batch,
            "metric": list(self.metrics),
            "split": self.split,
            "seeds": self.seeds,
            "prune": self.prune,
            "report_every": self.every,
        }

    @property
    def alike(self) -> str:
        """A digest of what a trial that is trained in part is: others may go on with it alike."""
        sweeps = [Sweep(trial) for trial in self.suggestions.examples()[:1]]
        trained = task_fingerprint(self.task, self.data, sweeps), self.data.fingerprint
        fixed = self.identity | {"batch": None}  # the others of its batch are nothing to it
        return digest(json.dumps([fixed, [sweep.id for sweep in sweeps], trained]))

    def run(self, trials: int) -> Results:
        """Train so many trials, or until the sampler has no more to suggest."""
        left, more = trials, True
        with under_way(self.study, self.alike) as self.owner:
            if self.folder:
                with of_study(self.study):
                    self.folder.restore_sampler(self.study)
                for asked in self._listed(self.folder.batches):
                    more = self._train(asked)
                    left -= len(asked)
            while left > 0 and more and (asked := self._ask(min(self.batch, left))):
                left -= len(asked)
                more = self._train(asked)
        failed = self.folder.failed_trials if self.folder else []
        if not self.runs:
            why = "its sampler has suggested all that it has"
            if self.pruned:
                why = f"the function that suggests has pruned {count(self.pruned, 'trial')}"
            if failed:
                why = f"the training of {count(len(failed), 'trial')} has raised an error"
            raise UserError(f"study={self.study.study_name!r}: nothing is left to train; {why}")
        made = join(self.runs, self.name, self._seeds(self.runs[0].sweep.base))
        if len(self.metrics) == 1:
            made.dataset.attrs["ranked_by"] = self.metrics[0]
        if failed:
            made.dataset.attrs["failed_trials"] = failed
        return made

    def _ask(self, most: int) -> list[Asked]:
        """The next batch: trials that are abandoned, then new ones."""
        from optuna import TrialPruned
        from optuna.exceptions import StorageInternalError

        asked: list[Asked] = []
        try:
            while len(asked) < most and (each := self._next()):
                asked.append(each)
                assert each.own is not None
                try:
                    with of_study(self.study, StorageInternalError):
                        each.trials = self._trials(self.suggestions.suggest(each.own))
                except TrialPruned:
                    each.pruned = True
                except Exception as error:  # called again, the search goes on with the next one
                    if self.folder and not _of_storage(error):
                        self._keep_sampler(each)
                        self._fail(asked)
                    raise
                self._keep_sampler(each)
            if self.folder and asked:
                pruned = [each.number for each in asked if each.pruned]
                self.folder.add([each.number for each in asked], pruned)
        except BaseException:
            if not self.folder:  # else they are abandoned
                self._fail(asked)
            raise
        return asked

    def _next(self) -> Asked | None:
        """A trial that is abandoned, or else a new one; None where the sampler has no more."""
        with of_study(self.study):
            with alone(self.study):
                there = abandoned(self.study, self.owner)
                left = next((own for own in there if take(self.study, own, self.owner)), None)
            if left:
                if self.folder:
                    self.folder.advance_sampler(self.study, left, self.suggestions.suggest)
                own = again(self.study, left._trial_id)
                return Asked(left.number, own, (), left.last_step or 0)
            if _exhausted(self.study):
                return None
            own = ask(self.study, self.owner)
            return Asked(own.number, own, ())

    def _keep_sampler(self, each: Asked) -> None:
        if self.folder:
            with of_study(self.study):
                self.folder.keep_sampler(self.study, each.number)

    def _listed(self, batches: list[list[int]]) -> list[list[Asked]]:
        """Batches that were asked before this search began; it takes all that run at once."""
        numbers = [number for batch in batches for number in batch]
        with of_study(self.study):
            with alone(self.study):
                there = self.study.get_trials(deepcopy=False)
                if (last := max(numbers, default=-1)) >= len(there):
                    raise UserError(
                        f"study={self.study.study_name!r}: it has no trial {last}, expected "
                        "the study and the storage that the search has begun with"
                    )
                taken = [each for each in numbers if take(self.study, there[each], self.owner)]
            owns = {each: again(self.study, there[each]._trial_id) for each in taken}
        return [[self._asked(there[each], owns.get(each)) for each in batch] for batch in batches]

    def _asked(self, trial: "FrozenTrial", own: "op.Trial | None") -> Asked:
        """A trial of a batch that was asked before this search began."""
        from optuna import TrialPruned
        from optuna.trial import TrialState

        each = Asked(trial.number, own, (), trial.last_step or 0, own is None)
        if self.folder and trial.number in self.folder.pruned:
            each.pruned = True
            return each
        try:
            each.trials = self._trials(self.suggestions.suggest(self._fixed(trial)))
        except TrialPruned:
            raise UserError(
                f"study={self.study.study_name!r}: its trial {trial.number} is pruned by the "
                "function that suggests, and was not when the search began: expected the same "
                "for the same values"
            ) from None
        except Exception as error:  # as of a parameter that it has not
            raise UserError(
                f"study={self.study.study_name!r}: its trial {trial.number} cannot be "
                f"suggested again ({in_one_line(error)}): expected the same for the same values"
            ) from error
        if each.ended and trial.state != TrialState.PRUNED:
            each.reported = each.trial.epochs
        return each

    def _fixed(self, trial: "FrozenTrial") -> "op.Trial":
        """A trial as a function that suggests may read it, for which nothing is drawn any more."""
        from optuna.trial import FixedTrial

        fixed = cast("op.Trial", FixedTrial(trial.params, trial.number))
        fixed.study = self.study
        for key, value in trial.user_attrs.items():
            fixed.set_user_attr(key, value)
        return fixed

    def _trials(self, suggested: Trial) -> tuple[Trial, ...]:
        """What is trained for a suggestion: the first like it that there was, with each seed."""
        suggested.check()
        driver.check([suggested], self.task, self.data)
        check_texts(self.written, suggested.values())
        before = next(iter(self.known.values()), suggested)
        if self.seeds > 1 and suggested.seed != before.seed:
            raise UserError(SEEDS_TWICE.format(self.seeds))
        first = self.known.setdefault(_as_float32(suggested), suggested)
        seeds = self._seeds(first)
        return tuple(first.replace(seed=seed) for seed in seeds) if seeds else (first,)

    def _seeds(self, trial: Trial) -> list[int]:
        """Those of the axis of seeds; none where there is none."""
        return [trial.seed + i for i in range(self.seeds)] if self.seeds > 1 else []

    def _train(self, asked: list[Asked]) -> bool:
        """Train a batch, those that are not known, and tell all; whether there may be another."""
        at, self.batches = self.batches, self.batches + 1
        if self.folder and at in self.folder.failed:
            self._fail(asked)  # as far as it was not
            return True
        under_way = not all(each.ended for each in asked)
        pruned = [each for each in asked if each.pruned]
        self.pruned += len(pruned)
        trained = [each for each in asked if not each.pruned]
        old = [each for each in trained if self._known(each)]
        new = [each for each in trained if not self._known(each)]
        try:
            with of_study(self.study):
                told = [tell(self.study, each, "PRUNED") for each in pruned if not each.ended]
            self._replay([each for each in old if not each.ended], self.prune)
            if new:
                self._run(at, new)
            with of_study(self.study):
                told += [self._tell(each) for each in trained if not each.ended]
        except BaseException as error:
            failed = under_way and not self.retried and _of_training(error)
            if self.folder and failed:
                self.folder.fail(at)
            if not self.folder or failed:  # else it can be resumed
                self._fail(asked)
            raise
        return all(told)

    def _known(self, each: Asked) -> bool:
        """Whether all of it is: to its end, or until it diverged, and not until it was pruned."""
        if each.trial not in self.curves:
            return False
        own = [(trial, self.curves[trial]) for trial in each.trials]
        return any(int(curves["diverged_epoch"]) for _, curves in own) or all(
            int(curves["epochs_trained"]) == trial.epochs for trial, curves in own
        )

    def _run(self, at: int, asked: list[Asked]) -> None:
        """Train one batch as one plan."""
        points = list(dict.fromkeys(each.trial for each in asked))
        base = self.suggestions.base or points[0]
        names = {*self.suggestions.names} | varying([base, *points])
        names -= {"seed"} if self.seeds > 1 else set()
        sweep = sweep_over(base, names, points, self._seeds(points[0]), f"{self.name} {at + 1}")
        sweep = replace(sweep, record=self.record, conditions=self.suggestions.conditions)
        rules = self._rules(asked)
        planned = plan(sweep, self.task, self.data, stopping=rules, **self.training)
        with of_study(self.study):
            self._describe(asked, planned, at)
        kept = self.folder.name(at) if self.folder else None
        made = self.train(planned, kept, rules)
        self.runs.append(made)
        for place, trial in enumerate(sweep.trials()):
            self.curves[trial] = select.point(made.dataset, place)[1]
        if not isinstance(rules, Reports):  # which has told everything
            self._replay([each for each in asked if not each.ended], prune=False)

    def _rules(self, asked: list[Asked]) -> Stopping:
        """What tells the study while a batch trains, as far as it has to be told by then."""
        from optuna.pruners import NopPruner

        longest = max(trial.epochs for each in asked for trial in each.trials)
        judged = self.prune and not isinstance(self.study.pruner, NopPruner)
        reports = self._reports(asked, judged)
        if self.training["cluster"] is None:
            return reports if self.every < longest else StopDiverged()
        rungs = range(self.every, longest, self.every) if judged else ()
        return [StopDiverged(), *([Together(reports, rungs)] if rungs else [])]

    def _reports(self, asked: list[Asked], prune: bool) -> Reports:
        return Reports(
            self.study, asked, self.metrics[0], self.split, prune, self.every,
            report=len(self.metrics) == 1,
        )  # fmt: skip

    def _describe(self, asked: list[Asked], planned: PlannedRun, at: int) -> None:
        """What the study's pages show of each trial before it has trained."""
        programs = {
            trial: number
            for number, program in enumerate(planned.plan.programs, 1)
            for trial, _ in program.members
        }
        for each in asked:
            if each.own and not each.ended:
                with unless_finished(self.study, each):
                    each.own.set_user_attr("trial_id", each.trial.id)
                    each.own.set_user_attr("batch", at + 1)
                    each.own.set_user_attr("program", programs[each.trial])

    def _replay(self, asked: list[Asked], prune: bool) -> None:
        """Report what was trained before, epoch by epoch, and let the pruner judge it."""
        if not asked:
            return
        reports = self._reports(asked, prune)
        own = {trial: self.curves[trial] for each in asked for trial in each.trials}
        trained = {trial: int(curves["epochs_trained"]) for trial, curves in own.items()}
        replayed = Replayed(own)
        for epoch in range(self.every, max(trained.values()) + 1, self.every):
            left = [trial for trial, epochs in trained.items() if epochs >= epoch]
            stopped = reports.stop(epoch, left, replayed.until(epoch, left))
            for trial, over in zip(left, stopped, strict=True):
                if over:
                    del trained[trial]
            if not trained:
                break

    def _tell(self, each: Asked) -> bool:
        """How a trial has ended, that was not pruned; whether there may be others."""
        assert each.own is not None
        curves = [self.curves[trial] for trial in each.trials]
        values = ending(curves, self.metrics, self.split)
        seconds = round(sum(float(own["seconds"]) for own in curves), 4)
        with unless_finished(self.study, each):
            each.own.set_user_attr("seconds", seconds)
            diverged = [epoch for own in curves if (epoch := int(own["diverged_epoch"]))]
            if values is None and diverged:  # else a metric is not finite, and the loss is
                each.own.set_user_attr("diverged_epoch", min(diverged))
        return tell(self.study, each, "FAIL" if values is None else "COMPLETE", values)

    def _fail(self, asked: list[Asked]) -> None:
        with of_study(self.study):
            for each in asked:
                if not each.ended:
                    tell(self.study, each, "PRUNED" if each.pruned else "FAIL")


def _of_training(error: BaseException) -> bool:
    """Whether training raises it, and would again: nothing that is refused, no disk."""
    if isinstance(error, UserError):
        return isinstance(error.__cause__, jax.errors.JaxRuntimeError)  # of too little memory
    return isinstance(error, Exception) and not isinstance(error, OSError)


def _of_storage(error: Exception) -> bool:
    """Whether a disk or the database of the study raises it: no suggestion has failed."""
    from optuna.exceptions import StorageInternalError

    lost = OSError | StorageInternalError
    return isinstance(error, lost) or isinstance(error.__cause__, lost)


def _exhausted(study: "op.Study") -> bool:
    """Whether a sampler of finitely many points has suggested all of them, and none is enqueued.

    Asked on, it would suggest again those that there are.
    """
    from optuna.samplers import BruteForceSampler, GridSampler
    from optuna.trial import TrialState

    sampler = study.sampler
    if not isinstance(sampler, BruteForceSampler | GridSampler):
        return False
    trials = study.get_trials(deepcopy=False)
    if any(trial.state == TrialState.WAITING for trial in trials):
        return False
    if isinstance(sampler, BruteForceSampler):
        last = next((trial for trial in reversed(trials) if trial.params), None)
        try:
            if last:
                sampler.after_trial(study, last, last.state, last.values)
        except RuntimeError:  # it asks `Study.optimize` to stop, as in `tell`
            return True
        return False
    own = [trial.system_attrs for trial in trials if "grid_id" in trial.system_attrs]
    points = math.prod(len(values) for values in own[-1]["search_space"].values()) if own else 1
    return len({each["grid_id"] for each in own}) >= points


def _as_float32(trial: Trial) -> tuple[Value, ...]:
    """Its values, in which trials differ that are not one and the same inside a program."""
    fields = trial.fields()
    return tuple(fields[name].in_program(value) for name, value in trial.values().items())
