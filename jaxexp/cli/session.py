"""One run of the command line, from what was asked for to results and page; started or resumed."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxexp.base.errors import InterruptedRunError, UnavailableError, UserError
from jaxexp.base.files import digest
from jaxexp.base.words import count
from jaxexp.cli import library, pages
from jaxexp.cli.command import QUICK_EPOCHS, Command, plan_options, plan_stage, stages
from jaxexp.cli.inputs import Inputs, check_read
from jaxexp.cli.library import Source
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.searching import Search
from jaxexp.cli.signals import Signals
from jaxexp.execution import claims
from jaxexp.spec.sweep import Sweep

if TYPE_CHECKING:
    import xarray as xr

    from jaxexp.api import PlannedRun
    from jaxexp.execution.control import Control, Stopping
    from jaxexp.execution.records import TrialRecord
    from jaxexp.execution.stores import Store
    from jaxexp.report.page import Section
    from jaxexp.training.data import Data

SHOWN = 5  # of the best trials, while a search trains


def made_with(stage: list[Source], trained: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of the task and the data of a stage, under their names in `run.json`."""
    return {f"{what} of {stage[0].sweep.name}": own for what, own in trained.items()}


def names_of(data: "Data") -> dict[str, list[str]]:
    """What a model's classes and features are called, where they have names."""
    names = {"classes": data.classes, "features": data.features}
    return {what: list(own) for what, own in names.items() if own is not None}


def ranked_by(sweep: Sweep, metrics: Iterable[str], search: Search | None = None) -> str:
    """The metric by which the page and the terminal call a trial of a sweep the best."""
    if search is not None:
        return search.metric
    return "accuracy" if sweep.questions and "accuracy" in metrics else "loss"


class Session:
    """A command being run in its directory."""

    def __init__(self, command: Command, console: Console, signals: Signals) -> None:
        """Check all that can be checked before anything is written or trained."""
        self.command, self.console, self.signals = command, console, signals
        if command.log:
            from jaxexp.results import logs

            logs.check(command.log)
        self.stages = stages(command.sources())
        self.results: dict[str, xr.Dataset] = {}
        self.sections: list[Section] = []
        self.missing: dict[str, str] = {}
        self.log_errors: list[str] = []
        self.resumed = False
        # What is wrong with the data, or cannot be had, is said at once.
        for source in self._sources:
            if source.check:
                try:
                    with library.calling(source.sweep, "check(inputs)", source.check):
                        source.check(command.inputs)
                except UnavailableError as error:
                    self._not_run([source], str(error))
        if self.missing.keys() >= {source.sweep.name for source in self._sources}:
            raise UnavailableError(next(iter(self.missing.values())))
        self.first = None
        if not self.stages[0][0].estimate:
            with contextlib.suppress(*[UnavailableError] * (len(self.stages) > 1)):
                self.first = plan_stage(self.stages[0], command)
        self.control = self._controlled()
        self.kept: Store | None = None
        self.replaced: str | None = None  # the claim, on that place, of a run that is replaced
        if command.checkpoints is not None:
            from jaxexp.execution import stores

            self.kept = stores.store(command.checkpoints)

    def run(self, directory: RunDirectory, *, force: bool = False) -> Path:
        """Train what the directory does not hold yet, and write the page; returns its path.

        Raises UserError if the directory's run was begun otherwise (unless `force`), and
        `InterruptedRunError`.
        """
        self._take_over(directory, force)  # first: what is written down is of all that is kept
        directory.check_same(self._known(), force=force)
        for number, stage in enumerate(self.stages):
            known = self.results.keys() | self.missing.keys()
            todo = [source for source in stage if source.sweep.name not in known]
            if todo:
                if len(self.stages) > 1:  # each is 100 % done before the next begins
                    names = ", ".join(source.sweep.name for source in todo)
                    part = f"part {number + 1} of {len(self.stages)}: {names}"
                    self.console.print(part, soft_wrap=True)
                try:
                    self._run_stage(directory, number, stage, todo, force)
                except UnavailableError as error:
                    self._not_run(todo, str(error))
        self.sections += pages.compare(directory, self.results)
        directory.say_missing(self.missing)
        page = pages.write(directory, self.sections, list(self.results.values()))
        directory.finish()
        if self.kept is not None:
            claims.remove(self.kept, directory.claimed)
        return page

    @contextlib.contextmanager
    def held(self, directory: RunDirectory, *, begun: bool, force: bool) -> Iterator[None]:
        """Hold the place that was asked for checkpoints, in which nobody else's may lie.

        Raises UserError, and leaves no run directory behind if the run had not begun before.
        """
        self.resumed = begun
        with contextlib.ExitStack() as stack:
            try:
                if begun:
                    directory.check_resumes(self._known(), force=force)
                if self.kept is not None:
                    stack.enter_context(self._held(self.kept, directory, begun, force))
                    directory.say_claimed(claims.claim(self.kept, self._identity()))
            except Exception:
                if not begun:
                    directory.withdraw()
                raise
            yield

    def _held(
        self, kept: "Store", directory: RunDirectory, begun: bool, force: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Whether a run may go on with other code, its directory says; with `force`, it may."""
        if not begun:
            if free := self._replaced(kept):
                claims.clear(kept)
            return claims.held(kept, self._identity(), free)
        claimed = directory.claimed is not None and not directory.command().get("finished")
        if claimed and not claims.written(kept) and not force:
            raise UserError(
                f"{kept.location}: the checkpoints of this run are gone; put them back, or resume "
                "it with --force, and its trials start afresh"
            )
        free = {*self._made_by()}
        remedy = "delete them, or start this one anew with other --checkpoints"
        if claims.is_last(kept, directory.claimed):
            free |= claims.written(kept) | {*self._identity()} if force else set()
            remedy = "--force resumes this one all the same, and its trials start afresh"
        return claims.held(kept, self._identity(), free, remedy)

    def _replaced(self, kept: "Store") -> set[str]:
        """What may differ there: all, of the run that this one replaces, if it was the last."""
        if not claims.is_last(kept, self.replaced):
            return set()
        return claims.written(kept) | {*self._identity()}

    def check_begins(self, directory: RunDirectory, *, replace: bool) -> None:
        """Raise UserError for a file, a folder or checkpoints that a new run does not read.

        Checkpoints of the run that the directory holds may be there, if it is to `replace` that.
        Not of several stages, and not of what another library fits: it reads later.
        """
        if self.kept is not None:
            if self.kept.path is not None:
                directory.check_kept(self.kept.path)
            if replace:
                with contextlib.suppress(UserError):  # where no run is, or a damaged one
                    self.replaced = directory.claimed
            claims.check_begins(self.kept, self._identity(), self._replaced(self.kept))
        if len(self.stages) == 1 and self.first is not None:
            check_read(self.command.inputs, self.stages[0][0].sweep.name)

    def _controlled(self) -> "Control | None":
        """What becomes of the trials of a search between epochs; it has one stage."""
        if self.first is None or self.command.search is None:
            return None
        from jaxexp import api

        self.command.search.check_metric(self.first.task.metrics)
        return api.controlled(self.first, self.stages[0][0].stopping)

    @property
    def errors(self) -> list[str]:
        """What went wrong in questions of the sweeps, or in logs; everything else is there."""
        drawn = [error for section in self.sections for error in section.errors]
        return list(dict.fromkeys([*drawn, *self.log_errors]))

    def _take_over(self, directory: RunDirectory, force: bool) -> None:
        """The sweeps that were complete already, and are what would be trained now.

        Later stages are planned for that only with `force`: without it, nothing that decides their
        task has changed. Raises UnavailableError where one cannot be planned.
        """
        for number, stage in enumerate(self.stages):
            there = [source for source in stage if directory.has_results(source.sweep)]
            decides: Mapping[str, str] = {}
            if stage[0].estimate:
                decides = self._estimated(stage[0])
            elif number == 0 and self.first:
                decides = self._decides(self.first, self._trained_first)
            elif there and force:
                decides = self._decided(stage, directory)
            for source in stage:
                own = {"sweep": source.sweep.id, **decides}
                if source.space is not None:
                    trained = made_with(stage, self._trained_first)
                    named = {f"sweep {source.sweep.name}": source.sweep.id, **trained}
                    directory.forget_study(named, self._say)
                dataset = directory.finished(source.sweep, own, self._say)
                # The batches of a study are read from their checkpoints.
                if dataset is not None and source.space is None:
                    self.missing.pop(source.sweep.name, None)
                    self._show(directory, source.sweep, dataset)

    def _decided(self, stage: list[Source], directory: RunDirectory) -> dict[str, str]:
        """What would decide the results of a later stage, some of whose results are there."""
        names = ", ".join(source.sweep.name for source in stage)
        try:
            planned = plan_stage(stage, self.command)
        except UnavailableError as error:
            raise UnavailableError(
                f"{directory.results}: results of {names} cannot be compared with what would be "
                f"trained now: {error}"
            ) from error
        return self._decides(planned, planned.trained)

    def _decides(self, planned: "PlannedRun", trained: Mapping[str, str]) -> dict[str, str]:
        """What decides results beside their trials: as of checkpoints, task, data and search."""
        from jaxexp import api

        return {**trained, **api.deciding(self.control, planned.task)}

    def _estimated(self, source: Source) -> dict[str, str]:
        """The same of what another library fits, of which nothing is known but its code."""
        return {"code": code_digest(), "file": source.digest}

    def _run_stage(
        self, directory: RunDirectory, number: int, stage: list[Source], todo: list[Source],
        force: bool,
    ) -> None:  # fmt: skip
        if estimate := stage[0].estimate:
            for source in todo:
                self._estimate(directory, source, estimate)
            return
        planned = self.first if number == 0 and self.first else plan_stage(stage, self.command)
        trained = self._trained_first if planned is self.first else planned.trained
        directory.check_same(made_with(stage, trained), force=force)
        if stage[0].space is not None:
            self._run_study(directory, stage[0], planned, trained)
            return
        search = self.command.search
        ranked = {ranked_by(source.sweep, planned.task.metrics, search) for source in todo}
        metric = ranked.pop() if len(ranked) == 1 else "loss"
        own = [source.sweep for source in todo]
        best = 1 if search is None else SHOWN
        with (
            self.signals.deferred() as stop,
            self._training(
                planned,
                own,
                self.command.checkpoints or directory.checkpoints,
                trained,
                metric,
                best,
                stop=stop,
                finished=self._model_saver(directory, own, planned),
                control=self.control,
            ) as finished,
        ):
            for sweep, dataset in finished:
                identity = {"sweep": sweep.id, **self._decides(planned, trained)}
                self._keep(directory, sweep, dataset, identity)  # while the others train

    @contextlib.contextmanager
    def _training(
        self, planned: "PlannedRun", sweeps: list[Sweep], location: Path | str,
        trained: Mapping[str, str], metric: str, best: int, control: "Control | None",
        **options: Any,
    ) -> "Iterator[Iterator[tuple[Sweep, xr.Dataset]]]":  # fmt: skip
        """Train sweeps of a plan, shown, with checkpoints: each with its results once complete."""
        from jaxexp import api
        from jaxexp.execution.checkpoints import Checkpoints

        with api.terminal_progress(planned, self.console, sweeps, metric, best) as progress:
            of = {**trained, **api.deciding(control, planned.task)}
            checkpoints = Checkpoints(location, progress.note, self.command.checkpoint_every, of)
            with closing(checkpoints):
                training = api.train(
                    planned, sweeps=sweeps, progress=progress, checkpointer=checkpoints,
                    control=control, resumed=self.resumed, **options,
                )  # fmt: skip
                with closing(training) as finished:
                    yield finished

    def _run_study(
        self, directory: RunDirectory, source: Source, planned: "PlannedRun",
        trained: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Train what a study suggests, batch by batch, and keep all as one sweep."""
        from jaxexp import api
        from jaxexp.cli import studying
        from jaxexp.execution.stores import within
        from jaxexp.results.results import Results

        search = self.command.search
        assert search is not None

        with self.signals.deferred() as stop:

            def train(batch: "PlannedRun", kept: str | None, stopping: "Stopping") -> Results:
                if stop.is_set():
                    raise InterruptedRunError
                assert kept is not None
                named = [dataclasses.replace(own, name=source.sweep.name) for own in batch.sweeps]
                with self._training(
                    batch,
                    [*batch.sweeps],
                    within(self.command.checkpoints or directory.checkpoints, kept),
                    trained,
                    search.metric,
                    SHOWN,
                    stop=stop,
                    finished=self._model_saver(directory, named, batch),
                    control=api.controlled(batch, stopping),
                ) as finished:
                    [(sweep, dataset)] = finished
                return Results(dataset, sweep, batch.task, batch.data, {})

            options = plan_options(self.command)
            made = studying.run(search, source, planned, directory, train, options)
            sweep = dataclasses.replace(made.sweep, record=source.sweep.record)
            identity = {"sweep": source.sweep.id, **self._decides(planned, trained)}
            self._keep(directory, sweep, made.dataset, identity)

    def _model_saver(
        self, directory: RunDirectory, sweeps: list[Sweep], planned: "PlannedRun"
    ) -> "Callable[[TrialRecord], None]":
        """Saves the models of the sweeps, as their trials finish."""
        trials = {sweep.name: set(sweep.trials()) for sweep in sweeps}
        attrs = {**planned.data.attrs, **names_of(planned.data)}

        def save(record: "TrialRecord") -> None:
            from jaxexp.results import models  # with xarray and pandas, which take their time

            for name, own in trials.items():
                if record.trial in own:
                    models.save(directory.models, name, record, attrs, planned.task)

        return save

    def _estimate(
        self, directory: RunDirectory, source: Source,
        estimate: "Callable[[Sweep, Inputs], xr.Dataset]",
    ) -> None:  # fmt: skip
        """Have another library fit a model, which does not tell how far it is."""
        from jaxexp.execution.progress import going_on

        sweep = source.sweep
        trials = count(len(sweep.trials()), "trial")
        with (
            going_on(f"fitting {sweep.name}, {trials}, on the host", self.console),
            library.calling(sweep, "estimate(sweep, inputs)", estimate),
        ):
            dataset = estimate(sweep, self.command.inputs)
        self._keep(directory, sweep, dataset, {"sweep": sweep.id, **self._estimated(source)})

    def _keep(
        self, directory: RunDirectory, sweep: Sweep, dataset: "xr.Dataset",
        identity: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Save the results of a sweep, with what decides them, and show them."""
        from jaxexp.results import select

        ranked = ranked_by(sweep, select.metrics(dataset), self.command.search)
        dataset = dataset.assign_attrs(ranked_by=ranked)
        if self.command.quick:
            dataset = dataset.assign_attrs(quick=QUICK_EPOCHS)
        directory.save(sweep, dataset, identity)
        self._show(directory, sweep, dataset)

    def _show(self, directory: RunDirectory, sweep: Sweep, dataset: "xr.Dataset") -> None:
        """Draw, and log, results that the directory holds."""
        self.results[sweep.name] = dataset
        known = self.results.keys() | self.missing.keys()
        if known >= {source.sweep.name for source in self._sources}:
            self.signals.end_budget()
        if self.command.log:
            self.log_errors += pages.log(directory, self.command.log, dataset)
        self.sections += pages.draw(directory, sweep, dataset)

    def _not_run(self, todo: list[Source], reason: str) -> None:
        for source in todo:
            self.missing[source.sweep.name] = reason
        names = ", ".join(source.sweep.name for source in todo)
        self._say(f"not run: {names}: {reason}")

    def _say(self, text: str) -> None:
        self.console.print(text, style="yellow", soft_wrap=True)

    @functools.cached_property
    def _sources(self) -> list[Source]:
        return [source for stage in self.stages for source in stage]

    def _known(self) -> dict[str, str]:
        """What the run directory writes down, as far as it is known before anything trains."""
        own = self._made_by() | self._asked()
        if self.first is None:
            return own
        return own | made_with(self.stages[0], self._trained_first)

    def _identity(self) -> dict[str, str]:
        """What decides the numbers, in words and digests; the data of later stages do so later."""
        return self._made_by() | self._asked() | self._trained_first

    @functools.cached_property
    def _trained_first(self) -> dict[str, str]:
        """By the first stage, if it is planned already; reading all data may take a while."""
        return self.first.trained if self.first else {}

    def _made_by(self) -> dict[str, str]:
        """The code that makes the numbers."""
        from jaxexp.api import surroundings

        files = {f"file of sweep {own.sweep.name}": own.digest for own in self._sources}
        return {**surroundings(), "code": code_digest(), **files}

    def _asked(self) -> dict[str, str]:
        """What it is to train."""
        sweeps = {f"sweep {own.sweep.name}": own.sweep.id for own in self._sources}
        rule: dict[str, str] = {}
        if self.first is not None:
            from jaxexp.api import deciding

            rule = deciding(self.control, self.first.task, "search")
        if any(source.space is not None for source in self._sources):
            rule["optuna"] = metadata.version("optuna")  # which decides what is suggested
        return sweeps | rule


def code_digest() -> str:
    """Of the files of this package."""
    files = sorted(Path(__file__).parents[1].glob("**/*.py"))
    return digest(*(file.read_bytes() for file in files))
