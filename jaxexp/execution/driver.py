"""The driver: compiles each program of a plan, trains it call by call, and takes results home.

It is the only part that knows time. What happens within a call, some steps of an epoch, is compiled
and pure (`train.py`); between calls it records, reports progress, saves, and can stop.
"""

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.execution.program import Call, Run, place, state_like
from jaxexp.execution.records import End, Snapshot, TrialRecord, make_records
from jaxexp.planning.plan import Plan, Program, check
from jaxexp.spec.trial import Trial
from jaxexp.training import step as train
from jaxexp.training.step import Data, Gathered, PyTree, Task

CALL_SECONDS = 1.0  # of one call: a run can stop, and save, between two of them
POLL_SECONDS = 0.02
FIRST_CALL = 4  # steps, or batches, when nobody knows yet how long they take


@dataclass(frozen=True)
class Problem:
    """What a sweep is run on: a task, its data, and how to label what is recorded.

    `data` maps "train", "validation", "test" (and what the task's `predictions` reads) to pytrees
    of arrays whose first axis is the example. `prediction_dims` names the dimensions of each
    prediction (a flat array is reshaped to their sizes), `coords` gives coordinates and other
    arrays for the results as (dims, values), and `attrs` says what the data are. `check` raises
    UserError for a trial that the data cannot serve.
    """

    task: Task
    data: Data
    prediction_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coords: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Trial], None] = lambda trial: None

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {split: train.count(self.data[split]) for split in ("train", *train.HELD_OUT)}

    @property
    def examples(self) -> int:
        """The number of training examples."""
        return self.counts["train"]


class Progress(Protocol):
    """Told how the run goes, from several threads."""

    def compiling(self, program: Program) -> None:
        """A program is being compiled."""

    def moved(self, program: Program, epochs: float) -> None:
        """A program has trained so many epochs, from 0, the last perhaps in part."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """No progress shown."""

    def compiling(self, program: Program) -> None:
        """Say nothing."""

    def moved(self, program: Program, epochs: float) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class Keeper(Protocol):
    """Keeps snapshots, so that an interrupted run can go on; called from several threads."""

    def due(self, program: Program) -> bool:
        """Whether it is time for a snapshot of this program."""
        ...

    def save(self, program: Program, snapshot: Snapshot) -> None:
        """Keep a snapshot; it raises nothing."""
        ...

    def load(
        self, program: Program, like: Callable[[], tuple[PyTree, PyTree, PyTree]]
    ) -> Snapshot | None:
        """The newest sound snapshot of this program, if there is one.

        `like` makes, if needed, state, what is gathered and predictions, as `state_like` does.
        """
        ...


def execute(
    plan: Plan, problem: Problem, devices: Sequence[jax.Device], progress: Progress | None = None
) -> dict[Trial, TrialRecord]:
    """Train every trial of the plan and return all records; see `stream`."""
    with contextlib.closing(stream(plan, problem, devices, progress)) as batches:
        return {record.trial: record for records in batches for record in records}


def stream(
    plan: Plan, problem: Problem, devices: Sequence[jax.Device], progress: Progress | None = None,
    *, keeper: Keeper | None = None, stop: threading.Event | None = None,
) -> Generator[list[TrialRecord]]:  # fmt: skip
    """Train every trial of the plan, yielding each program's records as soon as it has finished.

    The plan's lanes run side by side, in a thread each, the programs of a lane one after another.
    With a `keeper`, programs go on from their snapshots, and leave new ones.

    An exception in one of them, or in the caller, stops the others at their next call and is
    raised. So does `stop`, as InterruptedRunError, when every lane has left a last snapshot; a
    lane that is still compiling has nothing to leave and is not waited for.
    """
    check((trial for program in plan.programs for trial in program.trials), problem.examples)
    asked, over = stop or threading.Event(), threading.Event()
    shared = _Shared(problem, devices)
    finished: queue.SimpleQueue[list[TrialRecord] | BaseException] = queue.SimpleQueue()

    def stopped() -> bool:
        return asked.is_set() or over.is_set()

    def run_lane(programs: Sequence[Program]) -> None:
        try:
            for program in programs:
                finished.put(_train(program, shared, progress or Silent(), stopped, keeper))
        except BaseException as error:
            finished.put(error)

    # All at once: while one compiles or waits for its slowest device, the others use the cores.
    # No daemons: Python cannot end while one of them compiles, but would try, and crash.
    lanes = [threading.Thread(target=run_lane, args=(own,)) for own in plan.lanes]
    for lane in lanes:
        lane.start()
    try:
        for _ in plan.programs:
            while finished.empty():  # a lane that compiles hears of nothing
                if asked.is_set() and not shared.busy(lanes):
                    raise InterruptedRunError
                time.sleep(POLL_SECONDS)
            result = finished.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        over.set()
        while shared.busy(lanes):
            time.sleep(POLL_SECONDS)


class _Shared:
    """What the lanes share: the problem, its data on their devices, and which of them compile."""

    def __init__(self, problem: Problem, devices: Sequence[jax.Device]) -> None:
        self.problem, self.devices = problem, devices
        self.compiling_lanes: set[threading.Thread] = set()
        self._placed: dict[Mesh, Data] = {}
        self._lock = threading.Lock()

    def mesh(self, program: Program) -> Mesh:
        """The devices of a program."""
        return Mesh([self.devices[i] for i in program.devices], "trials")

    def on(self, mesh: Mesh) -> Data:
        """The data, on each device of a mesh: placed once."""
        with self._lock:
            if mesh not in self._placed:
                self._placed[mesh] = place(self.problem.data, mesh)
            return self._placed[mesh]

    def busy(self, lanes: Sequence[threading.Thread]) -> bool:
        """Whether a lane is running that does not compile."""
        return any(lane.is_alive() and lane not in self.compiling_lanes for lane in lanes)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """While this lane compiles."""
        lane = threading.current_thread()
        self.compiling_lanes.add(lane)
        try:
            yield
        finally:
            self.compiling_lanes.discard(lane)


def _train(
    program: Program, shared: _Shared, progress: Progress, stopped: Callable[[], bool],
    keeper: Keeper | None,
) -> list[TrialRecord]:  # fmt: skip
    """Train one program to its end, with fewer trials at once where the device refuses."""
    course = _Course(program, shared, progress, stopped, keeper)
    while True:
        try:
            return course.run()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            course.halve(error)


class _Course:
    """One program from its start, or its last snapshot, to its end."""

    def __init__(
        self, program: Program, shared: _Shared, progress: Progress, stopped: Callable[[], bool],
        keeper: Keeper | None,
    ) -> None:  # fmt: skip
        self.asked, self.shared, self.progress = program, shared, progress
        self.stopped, self.keeper = stopped, keeper
        self.at_once = program.at_once
        self._ends = {trial.epochs for trial, _ in program.members}
        self.snapshot = self._load()  # to go on from; kept no longer than it is needed
        if self.snapshot:
            self.at_once = min(self.at_once, self.snapshot.at_once)  # it may have been halved

    def run(self) -> list[TrialRecord]:
        """Train to the end, from the last snapshot if there is one."""
        program = dataclasses.replace(self.asked, at_once=self.at_once)
        mesh = self.shared.mesh(program)
        self.own = Run(program, self.shared.problem.task, mesh, self.shared.on(mesh))
        self.history: list[Gathered] = []  # (T, ...) each
        self.ends: dict[int, End] = {}
        self.seconds = self.compile_seconds = 0.0
        if self.snapshot:
            self._restore(self.snapshot)
            self.progress.moved(self.asked, self.snapshot.epoch)
        if not self.ends.keys() >= self._ends:
            self._compile()
            self.snapshot = None
            if self.stopped():
                raise InterruptedRunError
            self._train()
            self._save()
        history = jax.tree.map(lambda *a: np.stack(a, axis=1), *self.history)
        problem = self.shared.problem
        return make_records(
            program, problem.task, problem.counts, history, self.ends,
            self.seconds, self.compile_seconds,
        )  # fmt: skip

    def halve(self, error: Exception) -> None:
        """From now on, half as many trials at once."""
        if self.at_once == 1:
            reason = str(error).partition("\n")[0]
            raise UserError(f"a device's memory does not hold one trial: {reason}") from error
        self.at_once = -(-self.at_once // 2)
        # What the failed call has left as it was need not be trained again; what it was given to
        # write over, or did not bring home, is lost.
        if len(self.history) == self.own.epoch:
            with contextlib.suppress(RuntimeError, AttributeError):
                self.snapshot = self._snapshot()
        self.snapshot = self.snapshot or self._load()
        self.progress.note(
            f"a device is out of memory: going on with {self.at_once} trials at a time"
        )

    def _restore(self, snapshot: Snapshot) -> None:
        self.history = [
            jax.tree.map(lambda a: a[:, epoch], snapshot.history)  # noqa: B023
            for epoch in range(snapshot.epoch)
        ]
        self.ends = dict(snapshot.ends)
        self.seconds, self.compile_seconds = snapshot.seconds, snapshot.compile_seconds

    def _compile(self) -> None:
        self.progress.compiling(self.asked)
        started = time.perf_counter()
        with self.shared.compiling():
            self.own.start(self.snapshot)
        self.compile_seconds += time.perf_counter() - started

    def _train(self) -> None:
        own, pace = self.own, _Pace()
        before, started = self.seconds, time.perf_counter()
        under_way: collections.deque[Call] = collections.deque()

        def wait(most: int = 0) -> None:
            """Until no more calls than that are under way."""
            while len(under_way) > most:
                call = under_way.popleft()
                jax.block_until_ready(call.gathered)
                pace.arrived(call)
                if call.ends_epoch:
                    self.history.append(own.home(call.gathered))
                self.progress.moved(self.asked, call.epochs)
            self.seconds = before + time.perf_counter() - started

        while True:
            if not own.begun and own.epoch in self._ends - self.ends.keys():
                wait()
                self.ends[own.epoch] = own.end()
            if own.epoch == own.program.epochs:
                return
            stopped = self.stopped()
            if stopped or (self.keeper and self.keeper.due(self.asked)):
                wait()
                self._save()
            if stopped:
                raise InterruptedRunError
            call = own.call(pace.most(own.training))
            under_way.append(call)
            wait(0 if pace.slow else 1)  # one waits on the device while another runs

    def _save(self) -> None:
        if self.keeper:
            self.keeper.save(self.asked, self._snapshot())

    def _load(self) -> Snapshot | None:
        if not self.keeper:
            return None
        task, data = self.shared.problem.task, self.shared.problem.data
        return self.keeper.load(self.asked, lambda: state_like(self.asked, task, data))

    def _snapshot(self) -> Snapshot:
        own = self.own
        history = None
        if self.history:
            history = jax.tree.map(lambda *a: np.stack(a, axis=1), *self.history)
        state = gathered = None
        if own.program.epochs not in self.ends:  # else nothing is left to go on with
            state, gathered = own.home((own.state, own.gathered))
        return Snapshot(
            own.epoch, own.step, own.batch, self.at_once, self.seconds, self.compile_seconds,
            state, gathered, history, dict(self.ends),
        )  # fmt: skip


class _Pace:
    """How much to do in one call, so that it takes about CALL_SECONDS."""

    def __init__(self) -> None:
        self.seconds = {True: 0.0, False: 0.0}  # of a training step; of a batch evaluated
        self.last = time.perf_counter()

    @property
    def slow(self) -> bool:
        """Whether calls take so long that none should wait while another runs."""
        return max(self.seconds.values()) > CALL_SECONDS / 2

    def most(self, training: bool) -> int:
        """So many steps, or batches: few at first, to measure."""
        seconds = self.seconds[training]
        return max(1, int(CALL_SECONDS / seconds)) if seconds else FIRST_CALL

    def arrived(self, call: Call) -> None:
        """Learn from a call that has just finished."""
        now = time.perf_counter()
        self.seconds[call.training] = (now - self.last) / call.amount
        self.last = now
