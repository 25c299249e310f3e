"""The driver: compiles each program of a plan, trains it epoch by epoch, and takes results home.

It is the only part that knows time. What happens within an epoch is compiled and pure (`train.py`);
between epochs it records, reports progress, and can stop.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def check(plan: Plan, problem: Problem) -> None:
    """Raise UserError, before anything is compiled, for trials that the data cannot serve."""
    for program in plan.programs:
        batch_size = program.trials[0].batch_size
        if batch_size > problem.examples:
            raise UserError(
                f"batch_size={batch_size}: larger than the {problem.examples} training examples"
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

    The programs that are spread over all devices run one after another, and beside them the lanes,
    in a thread each. An exception in one of them, or in the caller, stops the others at their next
    epoch and is raised.
    """
    check(plan, problem)
    stop = threading.Event()
    placed: dict[Mesh, Data] = {}  # programs on the same devices share the data

    def run(program: Program) -> list[TrialRecord]:
        own = Run(program, problem.task, Mesh([devices[i] for i in program.devices], "trials"))
        if own.mesh not in placed:
            placed[own.mesh] = own.place(problem.data)
        return _train(own, placed[own.mesh], progress or Silent(), stop)

    finished: queue.SimpleQueue[list[TrialRecord] | BaseException] = queue.SimpleQueue()

    def run_lane(programs: Sequence[Program]) -> None:
        try:
            for program in programs:
                finished.put(run(program))
        except BaseException as error:
            finished.put(error)

    # All at once: while one compiles or waits for its slowest device, the others use the cores.
    lanes = [lane for lane in (plan.spread, *plan.lanes) if lane]
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
        leaves = stack(self.program.trials, self.mesh.size)
        self.leaves = jax.device_put(leaves, NamedSharding(self.mesh, TRIALS))
        self.data = data
        self.compiled = compile_program(self.program, self.task, self.mesh, data)
        self.state = self.compiled.init(self.leaves)

    def epoch(self, number: int) -> train.EpochRecord:
        """Train epoch `number`, from 0, of every trial; the record may still be on its way."""
        epoch = jax.device_put(np.int32(number), NamedSharding(self.mesh, SHARED))
        self.state, record = self.compiled.epoch(self.leaves, self.state, epoch, self.data)
        return record

    def end(self) -> tuple[dict[str, np.ndarray], train.TrialState]:
        """Predictions, where recorded, and the final state, both (T, ...) on the host."""
        predictions = {}
        if self.compiled.predict:
            predictions = self.compiled.predict(self.leaves, self.state, self.data)
        return jax.device_get((predictions, self.state))


def _train(run: Run, data: Data, progress: Progress, stop: threading.Event) -> list[TrialRecord]:
    progress.compiling(run.program)
    started = time.perf_counter()
    run.start(data)
    compile_seconds = time.perf_counter() - started

    started = time.perf_counter()
    history: list[train.EpochRecord] = []
    running = None
    for epoch in range(run.program.epochs):
        if stop.is_set():
            raise InterruptedRunError
        record = run.epoch(epoch)
        if running is not None:  # take the last epoch home while this one runs
            history.append(jax.device_get(running))
            progress.epoch(run.program, epoch)
        running = record
    history.append(jax.device_get(running))
    progress.epoch(run.program, run.program.epochs)
    predictions, state = run.end()
    seconds = time.perf_counter() - started
    return _unstack(run.program, history, predictions, state, seconds, compile_seconds)


@dataclass(frozen=True)
class Compiled:
    """The compiled functions of a program; all but the epoch number and the data are batched."""

    init: Callable[..., Any]
    epoch: Callable[..., Any]
    predict: Callable[..., Any] | None


_compiled: dict[tuple, Compiled] = {}


def compile_program(program: Program, task: Task, mesh: Mesh, data: Data) -> Compiled:
    """Compile a program for its devices, or find it compiled by this process before."""
    per_device = -(-len(program.trials) // mesh.size)
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), data)
    like = program.trials[0]
    key = (
        task, type(like), like.static(), program.record, per_device, tuple(mesh.devices.flat),
        str(shapes),
    )  # fmt: skip
    if key not in _compiled:
        _compiled[key] = _compile(program, task, mesh, data)
    return _compiled[key]


def _compile(program: Program, task: Task, mesh: Mesh, data: Data) -> Compiled:
    like = program.trials[0]
    norms = "gradient_norms" in program.record

    def init(leaves: PyTree) -> train.TrialState:
        return train.init(task, dataclasses.replace(like, **leaves))

    def epoch(leaves: PyTree, state: train.TrialState, number: jax.Array, data: Data):
        trial = dataclasses.replace(like, **leaves)
        return train.run_epoch(task, trial, state, number, data, gradient_norms=norms)

    def predict(leaves: PyTree, state: train.TrialState, data: Data):
        trial = dataclasses.replace(like, **leaves)
        return task.predictions(trial, state.params, state.state, data)

    def batched(function, *specs: PartitionSpec, donate: tuple[int, ...] = ()):
        axes = [0 if spec == TRIALS else None for spec in specs]
        # Trials never communicate, so there is nothing for shard_map to check.
        spread = jax.shard_map(
            jax.vmap(function, in_axes=axes),
            mesh=mesh, in_specs=specs, out_specs=TRIALS, check_vma=False,
        )  # fmt: skip
        # Shardings are fixed, so that no later call finds its arguments elsewhere and recompiles.
        return jax.jit(
            spread,
            in_shardings=[NamedSharding(mesh, spec) for spec in specs],
            out_shardings=NamedSharding(mesh, TRIALS),
            donate_argnums=donate,
        )

    leaves = stack(program.trials, mesh.size)
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


def stack(trials: Sequence[Trial], devices: int) -> dict[str, np.ndarray]:
    """The traced hyperparameters of a batch of trials, (T,) each.

    T is filled up to a multiple of the devices with copies of the last trial, whose results are
    dropped.
    """
    filled = [*trials, *[trials[-1]] * (-len(trials) % devices)]
    kinds = {float: np.float32, int: np.int32}
    return {
        name: np.array([getattr(trial, name) for trial in filled], kinds[type(value)])
        for name, value in trials[0].traced().items()
    }


def _unstack(
    program: Program, history: list[train.EpochRecord], predictions: dict[str, np.ndarray],
    state: train.TrialState, seconds: float, compile_seconds: float,
) -> list[TrialRecord]:  # fmt: skip
    epochs = jax.tree.map(lambda *a: np.stack(a, axis=1), *history)  # (T, E, ...)
    share = len(program.trials)

    def record(i: int, trial: Trial) -> TrialRecord:
        own, trained, predicted = jax.tree.map(lambda a: a[i], (epochs, state, predictions))
        return TrialRecord(
            trial, own.metrics, own.step_loss_S.reshape(-1), own.gradient_norms_L, predicted,
            trained.params, trained.state, seconds / share, compile_seconds / share,
        )  # fmt: skip

    return [record(i, trial) for i, trial in enumerate(program.trials)]
