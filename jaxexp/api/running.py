"""From a plan to results: what users call, and the command line too."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import jax
import numpy as np
from rich.console import Console

from jaxexp.api.checks import short
from jaxexp.api.planned import PlannedRun, plan, versions
from jaxexp.base.errors import UserError
from jaxexp.base.files import write_whole
from jaxexp.base.numbers import is_number
from jaxexp.execution import claims, driver
from jaxexp.execution.checkpoints import EVERY_SECONDS, Checkpoints
from jaxexp.execution.control import Control, Stopping, listed
from jaxexp.execution.devices import check_compiles
from jaxexp.execution.listeners import Checkpointer, Progress, Silent
from jaxexp.execution.progress import Ranking, TerminalProgress
from jaxexp.execution.records import TrialRecord
from jaxexp.execution.rules import Curves, Search
from jaxexp.execution.stores import store
from jaxexp.results.facts import facts
from jaxexp.spec.arguments import refuses_unknown_arguments
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.training import flags, tracing
from jaxexp.training.data import Data
from jaxexp.training.task import Task, Variables, directions

if TYPE_CHECKING:
    import xarray as xr

    from jaxexp.results.results import Results


class RunOptions(TypedDict, total=False):
    """The options of `run`, for its types alone; see there."""

    devices: int | Sequence[jax.Device] | None
    programs: str
    memory: float | None
    cluster: str | None
    nodes: int | None
    progress: bool | Progress | None
    checkpoint_dir: str | Path | None
    checkpoint_every: float
    keep_params: bool
    stopping: Stopping


@overload
def run(
    sweep: Sweep | Search, task: Task | None = None, data: Data | None = None,
    **options: Unpack[RunOptions],
) -> "Results": ...  # fmt: skip


@overload
def run(
    sweep: Sequence[Sweep], task: Task | None = None, data: Data | None = None,
    **options: Unpack[RunOptions],
) -> "dict[str, Results]": ...  # fmt: skip


@overload
def run(sweep: PlannedRun, **options: Unpack[RunOptions]) -> Any: ...


@refuses_unknown_arguments
def run(
    sweep: Sweep | Sequence[Sweep] | PlannedRun | Search,
    task: Task | None = None,
    data: Data | None = None,
    *,
    devices: int | Sequence[jax.Device] | None = None,
    programs: str = "auto",
    memory: float | None = None,
    cluster: str | None = None,
    nodes: int | None = None,
    progress: bool | Progress | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: float = EVERY_SECONDS,
    keep_params: bool = True,
    stopping: Stopping = None,
) -> "Results | dict[str, Results]":
    """Train every trial of a sweep, vectorized over all devices, and return the results.

    Args:
        sweep: a sweep, several (a list), what `jaxexp.plan` returned for them, or a search that
            brings its own sweep: `jaxexp.search.Hyperband` or `jaxexp.search.PBT`.
        task: as for `jaxexp.plan`, and so are `data`, `devices`, `programs`, `memory`, `cluster`
            and `nodes`.
        data: see there.
        devices: see there.
        programs: see there.
        memory: see there.
        cluster: see there.
        nodes: see there.
        progress: by default a bar in terminals and notebooks; True for lines elsewhere too, False
            for none, or an object with the methods of `jaxexp.execution.listeners.Progress`.
        checkpoint_dir: a folder for checkpoints, or a URL such as s3://bucket/run. The same call
            resumes an interrupted run from it.
        checkpoint_every: seconds between them, or more: training waits for them no more than 2 %
            of the time.
        keep_params: whether results hold the trained parameters of every trial, on the host.
        stopping: which trials end early: `jaxexp.EarlyStopping`, `StopDiverged`, `Budget`, another
            `jaxexp.StoppingRule`, or a list of them. The others go on in smaller batches.

    Returns:
        `Results`, or for several sweeps (or their plan) a dict of them by the sweeps' names.

    Raises:
        UserError: as for `jaxexp.plan`, before training starts, and for a `checkpoint_dir` with
            the checkpoints of another run.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> base = jx.MLPTrial(epochs=2, depth=1, batch_size=8)
    >>> sweep = jx.Sweep(base, {"learning_rate": [0.1, 0.01], "seed": range(2)})
    >>> results = jx.run(sweep, data=data, progress=False)
    >>> results["loss"].dims
    ('learning_rate', 'seed', 'epoch', 'split')
    """
    check_compiles()
    sweep, rules = _searched(sweep, stopping)
    if isinstance(sweep, PlannedRun):
        given = (task, data, devices, memory, cluster, nodes)
        if any(value is not None for value in given) or programs != "auto":
            raise UserError(
                "a plan has its task, data, devices, programs, memory, cluster and nodes already"
            )
        planned = sweep
        if planned.target is not None:
            raise UserError(f"this is a plan for {planned.target.name}, which is not here")
    else:
        planned = plan(
            sweep, task, data, devices=devices, programs=programs, memory=memory, cluster=cluster,
            nodes=nodes, stopping=rules,
        )  # fmt: skip
    if not is_number(checkpoint_every) or not checkpoint_every > 0:
        raise UserError(f"checkpoint_every={checkpoint_every!r}: expected seconds above 0")
    if not isinstance(keep_params, bool):
        raise UserError(f"keep_params={keep_params!r}: expected True or False")
    if not isinstance(checkpoint_dir, str | Path | None):
        raise UserError(f"checkpoint_dir={checkpoint_dir!r}: expected the path of a folder")
    methods = ("compiling", "moved", "note")
    if not isinstance(progress, bool | None) and not all(hasattr(progress, m) for m in methods):
        raise UserError(
            f"progress={progress!r}: expected True, False, None or an object with the methods "
            f"{', '.join(methods)}"
        )
    control = controlled(planned, rules)
    kept: dict[str, Variables] = {}

    def keep(record: TrialRecord) -> None:
        if keep_params and record.variables is not None:
            kept[record.trial.id] = record.variables

    made: dict[str, Results] = {}
    with (
        _shown(progress, planned) as shown,
        _checkpoints(checkpoint_dir, checkpoint_every, planned, control, shown) as (kept_at, again),
    ):
        finished = train(
            planned, progress=shown, checkpointer=kept_at, finished=keep, control=control,
            resumed=again,
        )  # fmt: skip
        with contextlib.closing(finished):
            for own, dataset in finished:
                made[own.name] = _results(dataset, own, planned, kept)
    several = not isinstance(sweep, Sweep) and not (
        isinstance(sweep, PlannedRun) and len(sweep.sweeps) == 1
    )
    return (
        {own.name: made[own.name] for own in planned.sweeps}
        if several
        else next(iter(made.values()))
    )


def _results(
    dataset: "xr.Dataset", sweep: Sweep, planned: PlannedRun, kept: dict[str, Variables]
) -> "Results":
    # Imported where training has ended: xarray and pandas take a third of a second.
    from jaxexp.results.results import Results

    return Results(dataset, sweep, planned.task, planned.data, kept)


def train(
    planned: PlannedRun,
    *,
    sweeps: Sequence[Sweep] | None = None,
    progress: Progress | None = None,
    checkpointer: Checkpointer | None = None,
    stop: threading.Event | None = None,
    finished: Callable[[TrialRecord], None] | None = None,
    control: Control | None = None,
    resumed: bool = False,
) -> "Generator[tuple[Sweep, xr.Dataset]]":
    """Train what is planned, and yield each sweep with its results as soon as it is complete.

    Of `sweeps`, if only some of the plan's are left to train, programs that none of them needs do
    not run. `finished` is given each trial's record, in which alone its parameters are. See
    `driver.stream` for `checkpointer`, `stop` and `control`. Results of what goes on where an
    earlier process ended, `resumed`, say so: `wall_seconds` are those of this one alone.
    """
    flags.check()
    made, task, data = planned.plan, planned.task, planned.data
    left = planned.sweeps if sweeps is None else sweeps
    where, environment = _where(planned)
    if resumed:
        environment["resumed"] = 1
    if control:
        environment["stopping"] = control.words
        if control.metric is not None:
            environment["ranked_by"] = control.metric
    waiting = {sweep.name: set(sweep.trials()) for sweep in left}
    needed = set().union(*waiting.values())
    programs = [p for p in made.programs if any(trial in needed for trial, _ in p.members)]
    todo = dataclasses.replace(made, programs=tuple(programs))
    records: dict[Trial, TrialRecord] = {}
    started = time.perf_counter()
    batches = driver.stream(
        todo, task, data, where, progress, checkpointer=checkpointer, stop=stop,
        control=control,
    )  # fmt: skip
    with contextlib.closing(batches):  # the streams stop before whoever stops listening continues
        for batch in batches:
            for record in batch:
                if finished:
                    finished(record)
                # Trained weights of large models would fill the memory.
                records[record.trial] = dataclasses.replace(record, variables=None)
            del batch, record
            for sweep in left:
                if sweep.name in waiting and records.keys() >= waiting[sweep.name]:
                    del waiting[sweep.name]
                    from jaxexp.results.dataset import to_dataset

                    seconds = {"wall_seconds": time.perf_counter() - started}
                    yield sweep, to_dataset(sweep, records, task, data, environment | seconds)


def _where(planned: PlannedRun) -> tuple[Sequence[jax.Device] | driver.Engine, dict[str, Any]]:
    """Where the plan runs, and what results say of it."""
    if planned.cluster is None:
        devices = planned.devices
        return devices, facts(planned.plan, planned.sweeps, devices[0].device_kind, len(devices))
    from jaxexp.cluster.engine import Engine

    kind = f"{planned.cluster.platform} of a cluster"
    found = facts(planned.plan, planned.sweeps, kind, planned.plan.devices)
    engine = Engine(planned.cluster, versions(), planned.plan.programs)
    return engine, found | {"nodes": planned.plan.nodes}


def _searched(
    sweep: Sweep | Sequence[Sweep] | PlannedRun | Search, stopping: Stopping
) -> tuple[Sweep | Sequence[Sweep] | PlannedRun, Stopping]:
    """What a search brings: its sweep, and itself as the first of the rules."""
    if not isinstance(sweep, Search):
        return sweep, stopping
    return sweep.sweep, [sweep, *listed(stopping)]


def controlled(planned: PlannedRun, stopping: Stopping) -> Control:
    """What is to become of trials between epochs.

    Raises UserError for what is no stopping rule, and where a rule refuses what is planned.
    """
    control = Control(stopping)
    trials = [trial for program in planned.plan.programs for trial in program.trials]
    curves = Curves(
        lambda metric, split: np.zeros((len(trials), 0)),
        directions(planned.task),
        tuple(planned.data.counts),
    )
    control.check(trials, curves, planned.data)
    if control.of_every_trial and any(program.prefixes for program in planned.plan.programs):
        raise UserError(
            f"{control.words}: would not be asked about trials that the plan trains as the first "
            "epochs of longer ones; expected jaxexp.plan(…, stopping=…), or the sweep"
        )
    if control.changes and len(planned.plan.programs) > 1:
        raise UserError(
            f"{control.words}: trials become copies of others within one program, and the plan "
            f"has {len(planned.plan.programs)}: expected fewer trials, or ones that differ in less"
        )
    if control.changed:
        [program] = planned.plan.programs
        spec, data, trial = program.spec, planned.data, program.trials[0]
        tracing.check_changed(
            planned.task, spec.trial, {name: own[0] for name, own in spec.leaves([trial]).items()},
            [name for name in control.changed if name in spec.traced], data.steps_of(trial),
            data.arrays(), trial.batch_size,
        )  # fmt: skip
    return control


def deciding(control: Control | None, task: Task, what: str = "stopping") -> dict[str, str]:
    """What decides what becomes of trials between epochs; {} where they all go on.

    Rules compare by what is better of a metric, which nothing else of a run depends on.
    """
    if not control:
        return {}
    better = {f"direction of {name}": str(own.direction) for name, own in task.metrics.items()}
    return {what: control.identity, **better}


@contextlib.contextmanager
def _shown(progress: bool | Progress | None, planned: PlannedRun) -> Iterator[Progress]:
    console = Console(stderr=True, highlight=False)
    if progress is None:
        progress = console.is_terminal or console.is_jupyter
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield Silent()
    else:
        with terminal_progress(planned, console) as shown:
            yield shown


def terminal_progress(
    planned: PlannedRun, console: Console, sweeps: Sequence[Sweep] = (), metric: str = "loss",
    best: int = 1,
) -> TerminalProgress:  # fmt: skip
    """Progress of what is planned, or of some of its sweeps, with the best trials by `metric`."""
    split = "validation" if "validation" in planned.data.counts else "train"
    if metric == "loss":
        ranking = Ranking(metric, split, unit=planned.task.loss_unit)
    else:
        own = planned.task.metrics[metric]
        ranking = Ranking(metric, split, str(own.direction) == "higher", own.unit)
    return TerminalProgress(planned.plan, console, sweeps or planned.sweeps, ranking, best=best)


@contextlib.contextmanager
def _checkpoints(
    folder: str | Path | None,
    every: float,
    planned: PlannedRun,
    control: Control,
    progress: Progress,
) -> Iterator[tuple[Checkpoints | None, bool]]:
    """Those of a folder, if one is given, and whether an earlier call has begun there."""
    if folder is None:
        yield None, False
        return
    rules = deciding(control, planned.task)
    identity, place = planned.identity | rules, store(folder)
    of = {name: identity[name] for name in ("task", "data")} | rules
    with claims.held(place, identity):
        begun = bool(claims.written(place))
        claims.claim(place, identity)
        with contextlib.closing(Checkpoints(folder, progress.note, float(every), of)) as made:
            yield made, begun


def write_report(results: "Results | Mapping[str, Results]", path: str | Path) -> Path:
    """Write a page of the results of any sweep: curves, best trials, a figure for each axis.

    Trials are ranked by the metric by which a search has compared them, or else by the loss.

    Args:
        results: what `jaxexp.run` returned; or results of several runs in a dict, whose keys become
            the headings of their sections.
        path: of the HTML file, which is self-contained.

    Raises:
        UserError: the file cannot be written.

    >>> import jaxexp as jx, tempfile
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> base = jx.MLPTrial(epochs=2, depth=1, batch_size=8)
    >>> sweep = jx.Sweep(base, {"learning_rate": [0.1, 0.01], "seed": range(2)})
    >>> results = jx.run(sweep, data=data, progress=False)
    >>> write_report(results, tempfile.mkdtemp() + "/report.html").name
    'report.html'
    """
    from jaxexp.report import page, sections
    from jaxexp.results import select
    from jaxexp.results.results import Results

    made = {results.sweep.name: results} if isinstance(results, Results) else results
    if not isinstance(made, dict) or not all(
        isinstance(name, str) and isinstance(own, Results) for name, own in made.items()
    ):
        raise UserError(
            f"results={short(results)}: expected jaxexp.Results, or a dict of them by name, as "
            "jaxexp.run returns"
        )
    if not made:
        raise UserError("results={}: expected the results of at least one sweep")
    drawn = [
        section
        for name, own in made.items()
        for section in sections.of_sweep(own.sweep, own.dataset, lambda name, png: None, name)
    ]
    datasets = [own.dataset for own in made.values()]
    meta = page.Meta(
        title=" · ".join(map(select.words, made)),
        summary="",
        facts=page.run_facts(datasets),
        plan="\n\n".join(dict.fromkeys(ds.attrs["plan"] for ds in datasets)),
    )
    file = Path(path)
    try:
        write_whole(file, page.render(drawn, meta).encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
    return file
