"""From a sweep, a task and data to results: what users call, and the command line too.

One run flows from here through `jaxexp.spec` (what is asked), `jaxexp.planning` (which trials share
a program), `jaxexp.execution` (which drives `jaxexp.training`, compiled) to `jaxexp.results`.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar, Unpack, cast, overload

import jax
import numpy as np
from rich.console import Console

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest, write_whole
from jaxexp.base.numbers import checked_int
from jaxexp.base.versions import version
from jaxexp.base.words import did_you_mean
from jaxexp.execution import claims, driver, targets
from jaxexp.execution.checkpoints import EVERY_SECONDS, Checkpoints
from jaxexp.execution.control import Control, Curves, Search, Stopping
from jaxexp.execution.devices import check_compiles, chosen, device_memory, host_memory
from jaxexp.execution.devices import devices as all_devices
from jaxexp.execution.progress import Ranking, TerminalProgress
from jaxexp.execution.records import TrialRecord
from jaxexp.execution.stores import store
from jaxexp.execution.targets import Compilations, Target
from jaxexp.execution.trainer import Checkpointer, Progress, Silent
from jaxexp.nn.classification import MLPClassification
from jaxexp.planning import plan as planning
from jaxexp.planning.cost import Cost, Workload
from jaxexp.planning.nodes import forecast
from jaxexp.planning.programs import Plan
from jaxexp.results.facts import facts
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Kind, MLPTrial, Trial, with_values
from jaxexp.spec.values import text
from jaxexp.training import flags, step
from jaxexp.training.data import Data
from jaxexp.training.masks import COMPARES, FILLING, SIZED, mixing
from jaxexp.training.task import Inspection, Task, Variables, directions
from jaxexp.training.tracing import fingerprint, inspection, is_plain_value, traced_shapes
from jaxexp.training.updates import padded_sizes, same_when_padded

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from jaxexp.cluster.nodes import Cluster
    from jaxexp.results.results import Results

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])
LIBRARIES = ("jaxexp", "jax", "jaxlib", "flax", "optax", "numpy")  # which decide numbers
MOST_TRACED = 8  # trials that differ in sizes alone, to tell a task from another
ALWAYS_READ = {"epochs", "batch_size", "seed", "matmul_precision"}  # by the engine
# Variables and dimensions of every dataset of results; see `to_dataset`.
RESERVED = {"loss", "step_loss", "steps_per_epoch", "epochs_trained", "diverged_epoch"}
RESERVED |= {"diverged_step", "trial_id", "seconds", "gradient_norm", "best_epoch", "parent"}
RESERVED |= {"epoch", "split", "step", "layer", "seeds", "diverged_seeds"}


def _named(function: FunctionT) -> FunctionT:
    """Refuse arguments of unknown names with a hint, where Python raises a TypeError."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: object, **named: object) -> object:
        for name in named:
            if name in known:
                continue
            hint = did_you_mean(name, known)
            if name in MLPTrial.fields():
                hint = f"it is a hyperparameter, as in jaxexp.Sweep(jaxexp.Trial({name}=…)) "
            raise UserError(
                f"jaxexp.{function.__name__}: unknown argument {name!r}: {hint}"
                f"(there are: {', '.join(known)})"
            )
        return function(*args, **named)

    return cast(FunctionT, checked)


class Problem(NamedTuple):
    """What a sweep is run on: what a sweep file's `problem(inputs)` returns.

    >>> import jaxexp as jx
    >>> def problem(inputs):
    ...     return Problem(jx.MLPClassification(), jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4))
    >>> problem(None).data.counts
    {'train': 6, 'validation': 2}
    """

    task: Task
    data: Data


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """Sweeps, the task and the data that they are run on, and how: `print` it to see.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
    >>> planned = plan(jx.Sweep(jx.MLPTrial(batch_size=2), {"seed": range(3)}), data=data)
    >>> print(str(planned).partition(" on ")[0])
    3 trials in 1 program
    """

    sweeps: tuple[Sweep, ...]
    task: Task
    data: Data
    plan: Plan
    devices: tuple[jax.Device, ...]
    target: Target | None = None  # hardware that is not here
    cluster: "Cluster | None" = None  # whose nodes train, in place of devices of this machine

    def compiled(self) -> Compilations:
        """Compile every program for the target, and return what its compiler says: `print` it.

        Compiling takes seconds for each program. Nothing runs.

        Raises UserError of a plan for the devices that are here.

        >>> import jaxexp as jx
        >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
        >>> try:
        ...     plan(jx.Sweep(jx.MLPTrial(batch_size=2)), data=data).compiled()
        ... except jx.UserError as error:
        ...     print(error)
        this plan has no target: expected one of jaxexp.plan(…, target="tpu-v5e-4")
        """
        if self.target is None:
            raise UserError(
                'this plan has no target: expected one of jaxexp.plan(…, target="tpu-v5e-4")'
            )
        if not self.devices:
            raise UserError(f"a plan for nodes of {self.target.name} is not compiled: plan without")
        arrays = step.with_evaluation(self.data)
        return targets.compile_plan(self.plan, self.task, arrays, self.target)

    def tradeoff(self) -> "pd.DataFrame":
        """What more or fewer programs would take, as estimated: padding against compilations.

        Programs of different sizes are merged pair by pair, from one for each size on, until no
        two can be merged; each row is a grouping on the way, of so many `programs`.
        `train_seconds` (padding included), `compile_seconds` and `seconds`, their sum, are those
        of one device. `padding` is the share of the arithmetic that no trial needs. `chosen` is
        True for the grouping of this plan: of programs that may be merged, the fewest that take at
        most 15 % more than the best. Programs that are cut into parts, for want of memory or for
        several nodes, count once. `jaxexp.figures.tradeoff` draws it.

        >>> import jaxexp as jx
        >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
        >>> planned = plan(jx.Sweep(jx.MLPTrial(batch_size=2), {"width": [4, 8]}), data=data)
        >>> planned.tradeoff()[["programs", "chosen"]].values.tolist()
        [[2, False], [1, True]]
        """
        import pandas as pd

        trials = [trial for sweep in self.sweeps for trial in sweep.trials()]
        groupings, chosen = planning.tradeoff(
            self.sweeps,
            _Inspector(self.task, self.data, trials).workload(trials),
            mode=self.plan.mode,
            backend=self.plan.backend,
        )
        made = pd.DataFrame([vars(grouping) for grouping in groupings])
        made.insert(3, "seconds", made["train_seconds"] + made["compile_seconds"])
        made["chosen"] = [i == chosen for i in range(len(made))]
        return made

    def __str__(self) -> str:
        """Programs, padding, devices, memory and time, as estimated; of nodes, a forecast."""
        if self.plan.nodes == 1:
            return str(self.plan)
        return f"{self.plan}\n{forecast(self.plan).text(self.plan.nodes)}"

    @property
    def identity(self) -> dict[str, str]:
        """What decides the numbers, in words and digests."""
        named = {f"sweep {sweep.name}": sweep.id for sweep in self.sweeps}
        return {**surroundings(), **named, **self.trained}

    @property
    def trained(self) -> dict[str, str]:
        """What is trained, whatever the trials: digests of the task and of the data."""
        task = task_fingerprint(self.task, self.data, self.sweeps)
        return {"task": task, "data": data_fingerprint(self.data)}


def surroundings() -> dict[str, str]:
    """What decides the numbers beside sweep, task and data: versions, and options of JAX."""
    return {**versions(), **flags.of_numbers()}


def versions() -> dict[str, str]:
    """Of the libraries on which numbers depend."""
    return {name: version(name) for name in LIBRARIES}


def task_fingerprint(task: Task, data: Data, sweeps: Sequence[Sweep]) -> str:
    """Of what the task computes, in any process.

    Traced is a trial of every kind that never shares a program with another, and some of their
    sizes. What a program would trace is no number of Python here, either: 0 times what a task
    closes over would be 0.
    """
    trials = {planning.static_key(trial): trial for sweep in sweeps for trial in sweep.trials()}
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), data.arrays())
    kinds = {(planning.unpadded(trial), *traced_shapes(trial)): trial for trial in trials.values()}
    sizes = list(trials.values())[:: -(-len(trials) // MOST_TRACED)]
    some = list(dict.fromkeys([*kinds.values(), *sizes]))
    evaluated = step.evaluated_at_once(task, data)

    def found(trial: Trial) -> str:
        return fingerprint(
            task, lambda leaves: with_values(trial, **leaves), traced_shapes(trial),
            (data.steps_of(trial),), arrays, sizes=(trial.batch_size, evaluated), processes=True,
        )  # fmt: skip

    every = map(found, some[:1] if is_plain_value(task) else some)
    return digest(json.dumps([type(task).__name__, task.evaluation_batch_size, *every]))


def data_fingerprint(data: Data) -> str:
    """Of the data; one that stands in their attributes saves reading them all."""
    return str(data.attrs.get("data_fingerprint") or data.fingerprint)


@_named
def plan(
    sweep: Sweep | Sequence[Sweep],
    task: Task | None = None,
    data: Data | None = None,
    *,
    devices: int | Sequence[jax.Device] | None = None,
    programs: str = "auto",
    memory: float | None = None,
    target: str | None = None,
    cluster: str | None = None,
    nodes: int | None = None,
) -> PlannedRun:
    """How one or several sweeps would run: which trials share a program, where, at what cost.

    Args:
        sweep: a sweep, or several that run as one plan; a trial of more than one trains once.
        task: what is trained; `MLPClassification()` for sweeps of `MLPTrial`, if not given.
        data: what it is trained on, made by `jaxexp.arrays` or by hand.
        devices: how many to use, or which; all, if not given.
        programs: "auto" pads trials of other sizes into one program where that costs less than
            compiling another, "exact" pads nothing, "one" forces one program.
        memory: how many bytes the run may take on the host; what is free now, if not given.
        target: hardware that is not here, to plan for (`tpu-v5e-4` and the like): see
            `PlannedRun.compiled`.
        cluster: a Ray cluster whose nodes train: "auto" for the one that this machine is part of,
            HOST:PORT, or ray://HOST:PORT. `devices` are then a number, of each node.
        nodes: how many machines with these devices to plan for; those of the cluster, if not given.
            With a `target`, `devices` are then the chips of each, and nothing can be compiled.

    Raises:
        UnavailableError: the compiler of the target, or Ray, is not installed.
        UserError: trials that cannot be trained on the data, a hyperparameter that varies though
            the task never reads it, or too little memory.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1], validation=None)
    >>> planned = jx.plan(jx.Sweep(jx.MLPTrial(epochs=2, batch_size=4)), data=data)
    >>> planned.plan.trials
    1
    """
    check_compiles()
    flags.check_threads()
    sweeps = tuple(sweep) if isinstance(sweep, list | tuple) else (sweep,)
    for each in sweeps:
        if not isinstance(each, Sweep):
            hint = ", as jaxexp.Sweep(trial) is for one trial" if isinstance(each, Trial) else ""
            raise UserError(f"sweep={each!r}: expected a jaxexp.Sweep{hint}")
    if not sweeps:
        raise UserError("expected at least one sweep")
    if not isinstance(data, Data):
        raise UserError(
            f"data={_short(data)}: expected jaxexp.Data; jaxexp.arrays(X, y) makes them of arrays"
        )
    number = isinstance(memory, int | float) and not isinstance(memory, bool)
    if memory is not None and not (number and memory >= 0):
        raise UserError(f"memory={memory!r}: expected a number of bytes")
    trials = [trial for each in sweeps for trial in each.trials()]
    all_devices()  # sets JAX up, before anything that is traced asks it for its backend
    task = _task(task, trials)
    _check_task(task)
    _check_metric_names(task, trials)
    if programs != "exact":
        _check_pads(task, trials)
    bound = task.bind(data)
    driver.check(trials, bound, data)
    inspector = _Inspector(bound, data, trials)
    for each in sweeps:
        _check_read(each, inspector)
        _check_records(each, bound, inspector)
    _check_filling(inspector, trials, programs)
    if programs == "one":
        _check_updates(inspector, [t for each in sweeps if not each.timed for t in each.trials()])
    mixing = list(map(inspector.mixes, trials))
    if any(own.evaluated for own in mixing):
        at_once = bound.evaluation_batch_size
        if not any(own.evaluated_sized for own in mixing):  # noise may be drawn by their number
            at_once = min(at_once, max(step.evaluated_counts(data).values()))
        data = data.apart(at_once)
    hardware = _hardware(devices, target, cluster, nodes)
    made = planning.plan(
        sweeps,
        hardware.devices,
        inspector.workload(trials),
        mode=programs,
        backend=hardware.backend,
        host_memory=host_memory() if memory is None else memory,
        device_memory=hardware.limits,
        nodes=hardware.nodes,
    )
    return PlannedRun(sweeps, bound, data, made, hardware.used, hardware.target, hardware.cluster)


class _Hardware(NamedTuple):
    """What a plan is made for."""

    backend: str
    devices: int  # of a node
    limits: tuple[float, ...]  # bytes that may be used on each of them; () if they share the host's
    nodes: int = 1
    used: tuple[jax.Device, ...] = ()
    target: Target | None = None
    cluster: "Cluster | None" = None


def _hardware(
    devices: int | Sequence[jax.Device] | None, target: str | None, cluster: str | None,
    nodes: int | None,
) -> _Hardware:  # fmt: skip
    if nodes is not None:
        checked_int("nodes", nodes, least=1)
    if cluster is not None:
        if target is not None:
            raise UserError(f"target={target!r}: expected only one of target and cluster")
        from jaxexp.cluster import nodes as cluster_nodes

        own = cluster_nodes.joined(cluster)
        limits = own.memory_of(devices)
        return _Hardware(own.platform, len(limits), limits, int(nodes or own.size), cluster=own)
    if target is None:
        used = chosen(devices)
        return _Hardware(used[0].platform, len(used), device_memory(used), int(nodes or 1), used)
    absent = targets.find(target)
    memory = targets.MAY_BE_USED * absent.memory
    if nodes is not None:  # nothing is compiled
        each = absent.chips if devices is None else devices
        checked_int("devices", each, least=1)
        number = int(cast(int, each))
        return _Hardware(absent.backend, number, (memory,) * number, int(nodes), target=absent)
    if devices is not None:
        raise UserError(
            f"devices={devices!r}: {target} has its own, expected only one of both, or nodes, too"
        )
    used = targets.devices(absent)
    return _Hardware(absent.backend, len(used), (memory,) * len(used), 1, used, absent)


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
@_named
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
        progress: a bar in terminals and notebooks, if not given; True for lines elsewhere too,
            False for none, or an object with the methods of `jaxexp.execution.trainer.Progress`.
        checkpoint_dir: a folder for checkpoints, or a URL such as s3://bucket/run. The same call
            resumes an interrupted run from it.
        checkpoint_every: seconds between them.
        keep_params: whether results hold the trained parameters of every trial, on the host.
        stopping: which trials end early: `jaxexp.EarlyStopping`, `StopDiverged`, `Budget`, another
            `jaxexp.StoppingRule`, or a list of them. The others go on in smaller batches.

    Returns:
        `Results`; of several sweeps (or their plan) a dict of them by the sweeps' names.

    Raises:
        UserError: as for `jaxexp.plan`, before anything is trained, and for a `checkpoint_dir`
            that holds the checkpoints of another run.

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
            nodes=nodes,
        )  # fmt: skip
    seconds = isinstance(checkpoint_every, int | float) and not isinstance(checkpoint_every, bool)
    if not seconds or not checkpoint_every > 0:
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
        _checkpoints(checkpoint_dir, checkpoint_every, planned, control, shown) as checkpointer,
    ):
        finished = train(
            planned, progress=shown, checkpointer=checkpointer, finished=keep, control=control
        )
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
) -> "Generator[tuple[Sweep, xr.Dataset]]":
    """Train what is planned, and yield each sweep with its results as soon as it is complete.

    Of `sweeps`, if only some of the plan's are left to train, programs that none of them needs do
    not run. `finished` is given each trial's record, in which alone its parameters are. See
    `driver.stream` for `checkpointer`, `stop` and `control`.
    """
    flags.check_threads()
    made, task, data = planned.plan, planned.task, planned.data
    left = planned.sweeps if sweeps is None else sweeps
    where, environment = _where(planned)
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
        return devices, facts(planned.plan, devices[0].device_kind, len(devices))
    from jaxexp.cluster.engine import Engine

    kind = f"{planned.cluster.platform} of a cluster"
    found = facts(planned.plan, kind, planned.plan.devices)
    return Engine(planned.cluster, versions()), found | {"nodes": planned.plan.nodes}


def _searched(
    sweep: Sweep | Sequence[Sweep] | PlannedRun | Search, stopping: Stopping
) -> tuple[Sweep | Sequence[Sweep] | PlannedRun, Stopping]:
    """What a search brings: its sweep, and itself as the first of the rules."""
    if isinstance(sweep, PlannedRun | Sweep | list | tuple) or not isinstance(sweep, Search):
        return sweep, stopping
    several = stopping if isinstance(stopping, list | tuple) else [stopping] if stopping else []
    return sweep.sweep, [sweep, *several]


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
    if control.changes and len(planned.plan.programs) > 1:
        raise UserError(
            f"{control.words}: trials become copies of others within one program, and the plan "
            f"has {len(planned.plan.programs)}: expected fewer trials, or ones that differ in less"
        )
    return control


def deciding(control: Control | None, task: Task, what: str = "stopping") -> dict[str, str]:
    """What decides what becomes of trials between epochs; {} where they all go on.

    Rules compare by what is better of a metric, which nothing else of a run depends on.
    """
    if not control:
        return {}
    better = {f"direction of {name}": str(own.direction) for name, own in task.metrics.items()}
    return {what: control.identity, **better}


class _Inspector:
    """What a task costs and reads, found out once for trials that differ in numbers alone."""

    def __init__(self, task: Task, data: Data, trials: Sequence[Trial]) -> None:
        self.task, self.data = task, data
        arrays = data.arrays()
        self._shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
        self._found: dict[tuple[object, ...], Inspection] = {}
        self._costs: dict[tuple[object, ...], Cost] = {}
        self.mixes = mixing(task, data, trials, lambda trial: self(trial).reads)

    def __call__(self, trial: Trial) -> Inspection:
        key = planning.static_key(trial)
        if key not in self._found:
            rest = tuple(part for part in key if part != ("batch_size", trial.batch_size))
            if rest not in self._found:
                self._found[rest] = inspection(self.task, trial, self._shapes)
            self._found[key] = self._found[rest]
        return self._found[key]

    def cost(self, trial: Trial) -> Cost:
        """What it costs; microbatches may be possible though a task says nothing of them."""
        key = planning.static_key(trial)
        if key not in self._costs:
            own = self(trial).cost
            parts = own.microbatches or not self.mixes(trial).whole
            self._costs[key] = dataclasses.replace(own, microbatches=parts)
        return self._costs[key]

    def workload(self, trials: Sequence[Trial]) -> Workload:
        data, counts = self.data, self.data.counts
        each = step.evaluated_counts(data)
        sample, evaluated = each["train"], sum(each.values())
        train_bytes = sum(a.nbytes for a in jax.tree.leaves(data.train))
        # What is evaluated of the training examples is a copy, or rows of each fold.
        if data.folds is None:
            copied = train_bytes * sample / counts["train"]
        else:
            copied = 4 * evaluated * data.n_folds
        return Workload(
            examples=counts["train"],
            cost=self.cost,
            evaluated=evaluated,
            splits=len(counts),
            metrics=1 + len(self.task.metrics),
            data_bytes=data.nbytes + evaluated * len(counts) + copied,
            run_length_matters=self._run_length_matters,
            # Where the batch size is read, that of a program of several would be traced.
            pads_batches=all(
                not (self.mixes(trial).filling or self.mixes(trial).sized)
                and "batch_size" not in self(trial).reads
                for trial in trials
            ),
            pads_sizes=self.pads_sizes,
        )

    def pads_sizes(self, trials: Sequence[Trial]) -> bool:
        """Whether their optimizer updates trials that are padded to one size as it does alone."""
        steps = max(map(self.data.steps_of, trials))
        return same_when_padded(self.task, trials, self.data.arrays(), steps)

    def _run_length_matters(self, trial: Trial) -> bool:
        return self.task.optimizer_uses_steps(trial) or "epochs" in self(trial).reads


def _check_read(sweep: Sweep, inspector: _Inspector) -> None:
    """Raise UserError for a hyperparameter that was set, or varies, and that nothing reads."""
    trials = sweep.trials()
    read = ALWAYS_READ.union(*(inspector(trial).reads for trial in trials))
    read |= {"fold"} if inspector.data.folds is not None else set()
    for name, declared in sweep.base.fields().items():
        values = {getattr(trial, name) for trial in trials}
        if name not in read and values != {declared.default}:
            raise UserError(
                f"{name} is set to {' or '.join(sorted(map(str, values)))}, but "
                f"{type(inspector.task).__name__} never reads it: the numbers would be those of "
                "trials without it"
            )


def _check_records(sweep: Sweep, task: Task, inspector: _Inspector) -> None:
    if "predictions" in sweep.record and type(task).predictions is Task.predictions:
        raise UserError(
            f"record='predictions' of sweep {sweep.name!r}: {type(task).__name__} defines none"
        )
    if "predictions" in sweep.record:
        _check_predictions(sweep, task, inspector)
    if "gradient_norms" in sweep.record and not all(
        inspector(trial).cost.layers for trial in sweep.trials()
    ):
        raise UserError(
            f"record='gradient_norms' of sweep {sweep.name!r}: no array of parameters has two axes "
            "or more, and so there are no layers"
        )


def _check_predictions(sweep: Sweep, task: Task, inspector: _Inspector) -> None:
    said = f"record='predictions' of sweep {sweep.name!r}: {type(task).__name__}"
    if not task.prediction_dims:
        raise UserError(f"{said}.prediction_dims is empty, expected the dimensions of each")
    found, coords = inspector(sweep.trials()[0]).predicted, inspector.data.coords
    for name, dims in task.prediction_dims.items():
        if missing := [dim for dim in dims if dim not in coords]:
            raise UserError(
                f"{said}.prediction_dims[{name!r}] has {missing[0]!r}, expected dimensions of "
                f"Data.coords ({', '.join(coords) or 'there are none'})"
            )
        size = math.prod(len(coords[dim][1]) for dim in dims)
        if found and found.get(name) != size:
            raise UserError(
                f"{said}.predictions has {found.get(name, 'none')} numbers for {name!r}, expected "
                f"{size}, as many as {' × '.join(dims)}"
            )


def _check_filling(inspector: _Inspector, trials: Sequence[Trial], programs: str) -> None:
    """Raise UserError for a batch to fill up, where that would change what is computed of it."""
    task, data = inspector.task, inspector.data
    sizes = sorted({trial.batch_size for trial in trials})
    size = task.evaluation_batch_size
    for trial in trials:
        mixes, examples = inspector.mixes(trial), data.counts_of(trial.fold)["train"]
        why = COMPARES.format(mixes.metric) if mixes.metric else FILLING
        of = f" of fold {trial.fold}" if data.folds is not None else ""
        counts = step.evaluated_counts(data, trial.fold)
        evaluated = [(n, split) for split, n in counts.items() if n % size]
        if mixes.filling and examples % trial.batch_size:
            raise UserError(
                f"batch_size={trial.batch_size}: the last of the batches of {examples} examples"
                f"{of} would be partial, and {why}, or choose a batch size that divides {examples}"
            )
        if mixes.filling and programs == "one" and len(sizes) > 1:
            raise UserError(
                f"programs='one': a batch of {sizes[0]} would be padded to {sizes[-1]}, and "
                f"{why}, or run with programs='exact'"
            )
        if mixes.sized and programs == "one" and len(sizes) > 1:
            raise UserError(
                f"programs='one': a batch of {sizes[0]} would be padded to {sizes[-1]}, and "
                f"{SIZED}, or run with programs='exact'"
            )
        if mixes.evaluated_filling and evaluated:
            n, split = evaluated[-1]
            raise UserError(
                f"evaluation_batch_size={size}: the last of the batches of {n} {split} examples "
                f"would be partial, and {why}, or choose an evaluation_batch_size that divides "
                f"{' and '.join(str(n) for n in dict.fromkeys(counts.values()))}"
            )


def _check_updates(inspector: _Inspector, trials: Sequence[Trial]) -> None:
    """Raise UserError for models to pad, where the optimizer would update them otherwise."""
    for kind in dict.fromkeys(map(type, trials)):
        own = [trial for trial in trials if type(trial) is kind]
        if not inspector.pads_sizes(own):
            raise UserError(
                f"programs='one': models that differ in {' and '.join(padded_sizes(own))} would "
                f"be padded, and the optimizer of {type(inspector.task).__name__} would not update "
                "them as alone (it may take means over whole arrays, or heed their shapes, as "
                "Adafactor and Muon do): run with programs='auto' or 'exact'"
            )


def _check_task(task: Task) -> None:
    """Raise UserError for attributes of a task that are not what they should be."""
    checked_int("evaluation_batch_size", task.evaluation_batch_size, least=1)
    for name in ("metrics", "prediction_dims"):
        value = getattr(task, name)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{name}={value!r}: expected a dict whose keys are names")


def _check_metric_names(task: Task, trials: Sequence[Trial]) -> None:
    """Raise UserError for a metric that would take the place of something else in the results."""
    for name in task.metrics:
        taken = next((type(trial) for trial in trials if name in trial.fields()), None)
        if taken is not None:
            raise UserError(
                f"metrics[{name!r}]: {taken.__name__} has a hyperparameter of this name"
            )
        of = name.removesuffix("_std")  # what means over seeds have beside them
        spread = of != name and (of in RESERVED or of in task.metrics)
        taken_too = name in RESERVED or spread or name in task.prediction_dims
        if taken_too or name.startswith("running_"):
            raise UserError(f"metrics[{name!r}]: results have something else of this name")


def _check_pads(task: Task, trials: Sequence[Trial]) -> None:
    """Raise UserError for hyperparameters to pad, where the task does not pad its model."""
    if type(task).crop is not Task.crop:
        return
    for name, declared in {n: d for t in trials for n, d in t.fields().items()}.items():
        padded = declared.kind in (Kind.SIZE, Kind.CHOICE) and name not in Trial.fields()
        values = {getattr(trial, name) for trial in trials if name in trial.fields()}
        if padded and len(values) > 1:
            raise UserError(
                f"{name} is declared with jaxexp.{declared.kind.value}, so that trials with "
                f"{' and '.join(sorted(map(text, values)))} may share a program, but "
                f"{type(task).__name__} pads no model (it defines no `crop`): declare it with "
                "jaxexp.static, or run with programs='exact'"
            )


def _task(task: Task | None, trials: Sequence[Trial]) -> Task:
    if task is None and all(isinstance(trial, MLPTrial) for trial in trials):
        return MLPClassification()
    if not isinstance(task, Task):
        names = ", ".join(sorted({type(trial).__name__ for trial in trials}))
        raise UserError(
            f"task={_short(task)}: expected a jaxexp.Task that trains {names}; "
            "jaxexp.supervised(module=…, loss=…) makes the usual one"
        )
    return task


def _short(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


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
) -> Iterator[Checkpoints | None]:
    if folder is None:
        yield None
        return
    rules = deciding(control, planned.task)
    identity, place = planned.identity | rules, store(folder)
    of = {name: identity[name] for name in ("task", "data")} | rules
    with claims.held(place, identity):
        claims.claim(place, identity)
        with contextlib.closing(Checkpoints(folder, progress.note, every, of)) as made:
            yield made


def write_report(results: "Results | Mapping[str, Results]", path: str | Path) -> Path:
    """Write a page of the results of any sweep: curves, best trials, a figure for each axis.

    Trials are ranked by the metric by which a search has compared them, or else by the loss.

    Args:
        results: what `jaxexp.run` returned.
        path: of the HTML file, which needs no other.

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
    if not isinstance(made, dict) or not all(isinstance(own, Results) for own in made.values()):
        raise UserError(
            f"results={_short(results)}: expected jaxexp.Results, or a dict of them, as "
            "jaxexp.run returns"
        )
    if not made:
        raise UserError("results={}: expected the results of at least one sweep")
    drawn = [
        section
        for own in made.values()
        for section in sections.of_sweep(own.sweep, own.dataset, lambda name, png: None)
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
