"""The driver: compiles each program of a plan, trains it epoch by epoch, and takes results home.

It is the only part that knows time. What happens within an epoch is compiled and pure (`train.py`);
between epochs it records, reports progress, and can stop.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxexp import train
from jaxexp.errors import UserError
from jaxexp.plan import Plan, Program
from jaxexp.train import Data, PyTree, Task
from jaxexp.trial import Trial

TRIALS = PartitionSpec("trials")  # the leading axis of everything that a trial owns
SHARED = PartitionSpec()
# Random bits take LLVM long to optimise, for weights that are drawn only once.
FAST_TO_COMPILE = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Problem:
    """What a sweep is run on: a task, its data, and how to label what is recorded.

    `data` maps "train", "validation", "test" (and what the task's `predictions` reads) to pytrees
    of arrays whose first axis is the example. `prediction_dims` names the dimensions of each
    prediction (a flat array is reshaped to their sizes), `coords` gives coordinates and other
    arrays for the results as (dims, values), and `attrs` says what the data are.
    """

    task: Task
    data: Data
    prediction_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coords: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """The number of training examples."""
        return train.count(self.data["train"])


@dataclass
class TrialRecord:
    """What one trial leaves behind: E epochs, S steps each, L layers."""

    trial: Trial
    metrics: dict[str, dict[str, np.ndarray]]  # by split, by metric: (E,)
    step_loss: np.ndarray  # (E * S,)
    gradient_norms: np.ndarray | None  # (E, L)
    predictions: dict[str, np.ndarray]
    params: PyTree
    state: PyTree
    seconds: float  # its share of its program's training time (wall clock)
    compile_seconds: float  # its share of its program's compilation

    @property
    def diverged_epoch(self) -> int:
        """The epoch, from 1, in which a loss left the finite numbers; 0 if none did."""
        epochs = len(self.metrics["train"]["loss"])
        losses = [metrics["loss"][:, None] for metrics in self.metrics.values()]
        losses.append(self.step_loss.reshape(epochs, -1))
        broken = ~np.isfinite(np.concatenate(losses, axis=1)).all(axis=1)
        return int(broken.argmax()) + 1 if broken.any() else 0


class Progress(Protocol):
    """Told how the run goes, from several threads."""

    def compiling(self, program: Program) -> None:
        """A program is being compiled."""

    def epoch(self, program: Program, epoch: int) -> None:
        """A program has finished an epoch, counted from 1."""


class Silent:
    """No progress shown."""

    def compiling(self, program: Program) -> None:
        """Say nothing."""

    def epoch(self, program: Program, epoch: int) -> None:
        """Say nothing."""


class InterruptedRunError(Exception):
    """The run was asked to stop between two epochs."""


def check(trials: Iterable[Trial], problem: Problem) -> None:
    """Raise UserError, before anything is compiled, for trials that the data cannot serve."""
    for trial in trials:
        if trial.batch_size > problem.examples:
            raise UserError(
                f"batch_size={trial.batch_size}: larger than the {problem.examples} training "
                "examples"
            )


def execute(
    plan: Plan, problem: Problem, devices: Sequence[jax.Device], progress: Progress | None = None
) -> dict[Trial, TrialRecord]:
    """Train every trial of the plan and return all records; see `stream`."""
    batches = stream(plan, problem, devices, progress)
    return {record.trial: record for records in batches for record in records}


def stream(
    plan: Plan, problem: Problem, devices: Sequence[jax.Device], progress: Progress | None = None
) -> Iterator[list[TrialRecord]]:
    """Train every trial of the plan, yielding each program's records as soon as it has finished.

    The plan's lanes run side by side, in a thread each, the programs of a lane one after another.
    An exception in one of them, or in the caller, stops the others at their next epoch and is
    raised.
    """
    check((trial for program in plan.programs for trial in program.trials), problem)
    stop = threading.Event()
    placed: dict[Mesh, Data] = {}  # programs on the same devices share the data

    def run(program: Program) -> list[TrialRecord]:
        own = Run(program, problem.task, Mesh([devices[i] for i in program.devices], "trials"))
        if own.mesh not in placed:
            placed[own.mesh] = own.place(problem.data)
        return _train(own, placed[own.mesh], problem.examples, progress or Silent(), stop)

    finished: queue.SimpleQueue[list[TrialRecord] | BaseException] = queue.SimpleQueue()

    def run_lane(programs: Sequence[Program]) -> None:
        try:
            for program in programs:
                finished.put(run(program))
        except BaseException as error:
            finished.put(error)

    # All at once: while one compiles or waits for its slowest device, the others use the cores.
    lanes = plan.lanes
    with ThreadPoolExecutor(max(1, len(lanes))) as pool:
        try:
            for lane in lanes:
                pool.submit(run_lane, lane)
            for _ in range(sum(map(len, lanes))):
                result = finished.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            stop.set()


class Run:
    """One program on its devices: its state between the epochs."""

    def __init__(self, program: Program, task: Task, mesh: Mesh) -> None:
        """Nothing is placed or compiled yet."""
        self.program, self.task, self.mesh = program, task, mesh

    def place(self, data: Data) -> Data:
        """The data, on each of the devices."""
        return jax.device_put(data, NamedSharding(self.mesh, SHARED))

    def start(self, data: Data) -> None:
        """Compile, and initialise every trial."""
        leaves = stack(self.program)
        self.leaves = jax.device_put(leaves, NamedSharding(self.mesh, TRIALS))
        self.data = data
        self.compiled = compile_program(self.program, self.task, self.mesh, data)
        self.state = self.compiled.init(self.leaves)

    def epoch(self, number: int) -> train.EpochRecord:
        """Train epoch `number`, from 0, of every trial; the record may still be on its way."""
        epoch = jax.device_put(np.int32(number), NamedSharding(self.mesh, SHARED))
        self.state, record = self.compiled.epoch(self.leaves, self.state, epoch, self.data)
        return record

    def now(self) -> tuple[dict[str, np.ndarray], train.TrialState]:
        """Predictions, where recorded, and the state, both (T, ...) on the host."""
        predictions = {}
        if self.compiled.predict:
            predictions = self.compiled.predict(self.leaves, self.state, self.data)
        return jax.device_get((predictions, self.state))


def _train(
    run: Run, data: Data, examples: int, progress: Progress, stop: threading.Event
) -> list[TrialRecord]:
    progress.compiling(run.program)
    started = time.perf_counter()
    run.start(data)
    compile_seconds = time.perf_counter() - started

    started = time.perf_counter()
    history: list[train.EpochRecord] = []
    running = None
    ends = {trial.epochs for trial, _ in run.program.members}
    ended = {}
    for epoch in range(run.program.epochs):
        if stop.is_set():
            raise InterruptedRunError
        record = run.epoch(epoch)
        if running is not None:  # take the last epoch home while this one runs
            history.append(jax.device_get(running))
            progress.epoch(run.program, epoch)
        running = record
        if epoch + 1 in ends:
            ended[epoch + 1] = run.now()
    history.append(jax.device_get(running))
    progress.epoch(run.program, run.program.epochs)
    seconds = time.perf_counter() - started

    epochs = jax.tree.map(lambda *a: np.stack(a, axis=1), *history)  # (T, E, ...)
    members = run.program.members
    times = seconds / len(members), compile_seconds / len(members)
    return [_record(run, trial, i, examples, epochs, ended, times) for trial, i in members]


def _record(
    run: Run, trial: Trial, place: int, examples: int, epochs: train.EpochRecord,
    ended: Mapping[int, tuple[dict[str, np.ndarray], train.TrialState]],
    times: tuple[float, float],
) -> TrialRecord:  # fmt: skip
    """What one trial leaves behind, cut out of what its program recorded, padding left out."""
    own = jax.tree.map(lambda a: a[place, : trial.epochs], epochs)
    predictions, state = jax.tree.map(lambda a: a[place], ended[trial.epochs])
    steps = train.steps_per_epoch(examples, trial.batch_size)
    params, statistics, norms = state.params, state.state, own.gradient_norms_L
    if run.program.shape.pads_model:
        params, statistics, norms = run.task.crop(trial, params, statistics, norms)
    return TrialRecord(
        trial, own.metrics, own.step_loss_S[:, :steps].reshape(-1), norms, predictions,
        params, statistics, *times,
    )  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """The compiled functions of a program; all but the epoch number and the data are batched."""

    init: Callable[..., Any]
    epoch: Callable[..., Any]
    predict: Callable[..., Any] | None


_compiled: dict[tuple, Compiled] = {}


def compile_program(program: Program, task: Task, mesh: Mesh, data: Data) -> Compiled:
    """Compile a program for its devices, or find it compiled by this process before."""
    batch = program.filled(), program.at_once
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), data)
    key = (task, program.shape, program.record, batch, tuple(mesh.devices.flat), str(shapes))
    if key not in _compiled:
        _compiled[key] = _compile(program, task, mesh, data)
    return _compiled[key]


def _compile(program: Program, task: Task, mesh: Mesh, data: Data) -> Compiled:
    trial = program.shape.trial
    norms = "gradient_norms" in program.record

    def init(leaves: PyTree) -> train.TrialState:
        return train.init(task, trial(leaves))

    def epoch(leaves: PyTree, state: train.TrialState, number: jax.Array, data: Data):
        return train.run_epoch(task, trial(leaves), state, number, data, gradient_norms=norms)

    def predict(leaves: PyTree, state: train.TrialState, data: Data):
        return task.predictions(trial(leaves), state.params, state.state, data)

    def batched(function, *specs: PartitionSpec, donate: tuple[int, ...] = ()):
        def turns(*arguments: PyTree) -> PyTree:
            """Apply the function to the trials of one device, so many at a time."""
            own = {i: a for i, a in enumerate(arguments) if specs[i] == TRIALS}

            def one(own: dict[int, PyTree]) -> PyTree:
                return function(*(own.get(i, a) for i, a in enumerate(arguments)))

            return jax.lax.map(one, own, batch_size=program.at_once)

        # Trials never communicate, so there is nothing for shard_map to check.
        spread = jax.shard_map(turns, mesh=mesh, in_specs=specs, out_specs=TRIALS, check_vma=False)
        # Shardings are fixed, so that no later call finds its arguments elsewhere and recompiles.
        return jax.jit(
            spread,
            in_shardings=[NamedSharding(mesh, spec) for spec in specs],
            out_shardings=NamedSharding(mesh, TRIALS),
            donate_argnums=donate,
        )

    leaves = stack(program)
    init_jit = batched(init, TRIALS)
    state = jax.eval_shape(init_jit, leaves)
    epoch_jit = batched(epoch, TRIALS, TRIALS, SHARED, SHARED, donate=(1,))
    predict_jit = batched(predict, TRIALS, TRIALS, SHARED)
    return Compiled(
        init=init_jit.lower(leaves).compile(FAST_TO_COMPILE),
        epoch=epoch_jit.lower(leaves, state, np.int32(0), data).compile(),
        predict=predict_jit.lower(leaves, state, data).compile()
        if "predictions" in program.record
        else None,
    )


def stack(program: Program) -> dict[str, np.ndarray]:
    """What differs between the trials of a program, (T,) each.

    T is filled up with copies of the last trial, whose results are dropped.
    """
    copies = program.filled() - len(program.trials)
    return program.shape.leaves([*program.trials, *[program.trials[-1]] * copies])
