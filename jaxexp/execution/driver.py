"""The driver: compiles the programs of a plan, trains them call by call, and collects results.

It is the only part that knows time. What happens within a call, some steps of an epoch, is compiled
and pure (`jaxexp.training.step`); between calls it records, reports progress, saves, and can stop.
"""

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.base.words import count
from jaxexp.execution.program import Call, RunningProgram, joined, state_like
from jaxexp.execution.records import End, Snapshot, TrialRecord, make_records
from jaxexp.planning.programs import Plan, Program
from jaxexp.spec.trial import Trial
from jaxexp.training import step
from jaxexp.training.data import Data
from jaxexp.training.step import EpochRecord
from jaxexp.training.task import Arrays, Task
from jaxexp.training.trees import PyTree

CALL_SECONDS = 1.0  # of one call: a run can stop, and save, between two of them
POLL_SECONDS = 0.02
FIRST_CALL = 4  # steps, or batches, when nobody knows yet how long they take


class Progress(Protocol):
    """Shows how a run proceeds; called from several threads."""

    def compiling(self, program: Program) -> None:
        """A program is being compiled."""

    def moved(self, program: Program, epochs: float) -> None:
        """A program has trained so many epochs, from 0, the last perhaps in part."""

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """A program has finished this epoch, from 1.

        `value(metric, split)` computes what was measured of its trials then, (T,). Objects without
        this method will do.
        """

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """No progress shown."""

    def compiling(self, program: Program) -> None:
        """Say nothing."""

    def moved(self, program: Program, epochs: float) -> None:
        """Say nothing."""

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class Checkpointer(Protocol):
    """Keeps snapshots, so that an interrupted run can resume; called from several threads."""

    def due(self, program: Program) -> bool:
        """Whether it is time for a snapshot of this program."""
        ...

    def save(self, program: Program, snapshot: Snapshot) -> None:
        """Keep a snapshot; it raises nothing."""
        ...

    def load(
        self, program: Program, like: Callable[[], tuple[PyTree, PyTree, PyTree]]
    ) -> Snapshot | None:
        """The newest intact snapshot of this program, if there is one.

        `like` makes, if needed, state, record and predictions, as `state_like` does.
        """
        ...


def check(trials: Sequence[Trial], task: Task, data: Data) -> None:
    """Raise UserError for trials that cannot be trained on the data."""
    examples = data.counts["train"]
    for trial in trials:
        if trial.batch_size > examples:
            raise UserError(
                f"batch_size={trial.batch_size}: larger than the {examples} training examples"
            )
        if examples % trial.batch_size and not task.uses_mask(trial, data):
            raise UserError(
                f"batch_size={trial.batch_size}: the last of the batches of {examples} examples "
                "would be partial, and the model keeps statistics of its batches without a mask; "
                "give its __call__ a parameter `mask` (B,), or choose a batch size that divides "
                f"{examples}"
            )
        task.check(trial, data)


def stream(
    plan: Plan, task: Task, data: Data, devices: Sequence[jax.Device],
    progress: Progress | None = None, *, checkpointer: Checkpointer | None = None,
    stop: threading.Event | None = None,
) -> Generator[list[TrialRecord]]:  # fmt: skip
    """Train every trial of the plan, yielding each program's records as soon as it has finished.

    The plan's streams run side by side, in a thread each, the programs of a stream one after
    another; then those that run alone. With a `checkpointer`, programs resume from their snapshots,
    and leave new ones.

    An exception in one of them, or in the caller, stops the others at their next call and is
    raised. So does `stop`, as InterruptedRunError, when every stream has left a last snapshot; a
    stream that is still compiling has nothing to leave and is not waited for.
    """
    check([trial for program in plan.programs for trial, _ in program.members], task, data)
    shared = _Shared(task, data, devices)
    for streams in (plan.streams, [plan.alone]):
        if any(streams):
            yield from _stream(streams, shared, progress or Silent(), checkpointer, stop)


def _stream(
    plan: list[list[Program]], shared: "_Shared", progress: Progress,
    checkpointer: Checkpointer | None, stop: threading.Event | None,
) -> Generator[list[TrialRecord]]:  # fmt: skip
    asked, over = stop or threading.Event(), threading.Event()
    finished: queue.SimpleQueue[list[TrialRecord] | BaseException] = queue.SimpleQueue()

    def stopped() -> bool:
        return asked.is_set() or over.is_set()

    def run_stream(programs: Sequence[Program]) -> None:
        try:
            for program in programs:
                finished.put(_train(program, shared, progress, stopped, checkpointer))
        except BaseException as error:
            finished.put(error)

    # All at once: while one compiles or waits for its slowest device, the others use the cores.
    # No daemons: Python cannot end while one of them compiles, but would try, and crash.
    streams = [threading.Thread(target=run_stream, args=(own,)) for own in plan]
    for stream in streams:
        stream.start()
    try:
        for _ in [program for own in plan for program in own]:
            while finished.empty():  # a stream that compiles hears of nothing
                if asked.is_set() and not shared.busy(streams):
                    raise InterruptedRunError
                time.sleep(POLL_SECONDS)
            result = finished.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        over.set()
        while shared.busy(streams):
            time.sleep(POLL_SECONDS)


class _Shared:
    """What the streams share: task, data on their devices, and which of them compile."""

    def __init__(self, task: Task, data: Data, devices: Sequence[jax.Device]) -> None:
        self.task, self.devices = task, devices
        self.examples = data.counts["train"]
        self.arrays = step.with_evaluation(data)
        self.compiling_streams: set[threading.Thread] = set()
        self._placed: dict[jax.Device, Arrays] = {}
        self._lock = threading.Lock()

    def mesh(self, program: Program) -> Mesh:
        """The devices of a program."""
        return Mesh([self.devices[i] for i in program.devices], "trials")

    def on(self, mesh: Mesh) -> Arrays:
        """The data, on each device of a mesh; no device holds them twice."""
        with self._lock:
            for device in mesh.devices.flat:
                if device not in self._placed:
                    self._placed[device] = jax.device_put(self.arrays, device)
            return joined([self._placed[device] for device in mesh.devices.flat], mesh)

    def busy(self, streams: Sequence[threading.Thread]) -> bool:
        """Whether a stream is running that does not compile."""
        return any(stream.is_alive() and stream not in self.compiling_streams for stream in streams)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """While this stream compiles."""
        stream = threading.current_thread()
        self.compiling_streams.add(stream)
        try:
            yield
        finally:
            self.compiling_streams.discard(stream)


def _train(
    program: Program, shared: _Shared, progress: Progress, stopped: Callable[[], bool],
    checkpointer: Checkpointer | None,
) -> list[TrialRecord]:  # fmt: skip
    """Train one program to its end, with fewer trials at once where the device refuses."""
    training = _Training(program, shared, progress, stopped, checkpointer)
    while True:
        try:
            return training.run()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            training.halve(error)


class _Training:
    """One program from its start, or its last snapshot, to its end."""

    def __init__(
        self, program: Program, shared: _Shared, progress: Progress, stopped: Callable[[], bool],
        checkpointer: Checkpointer | None,
    ) -> None:  # fmt: skip
        self.asked, self.shared, self.progress = program, shared, progress
        self.stopped, self.checkpointer = stopped, checkpointer
        self.chunk = program.chunk
        self._ends = {trial.epochs for trial, _ in program.members}
        self.snapshot = self._load()  # to resume from; kept no longer than it is needed
        if self.snapshot:
            self.chunk = min(self.chunk, self.snapshot.chunk)  # it may have been halved

    def run(self) -> list[TrialRecord]:
        """Train to the end, from the last snapshot if there is one."""
        program = dataclasses.replace(self.asked, chunk=self.chunk)
        mesh = self.shared.mesh(program)
        self.own = RunningProgram(program, self.shared.task, mesh, self.shared.on(mesh))
        self.history: list[EpochRecord] = []  # (T, ...) each
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
        return make_records(
            program, self.shared.task, self.shared.examples, history, self.ends, self.seconds,
            self.compile_seconds,
        )  # fmt: skip

    def halve(self, error: Exception) -> None:
        """From now on, half as many trials at once."""
        if self.chunk == 1:
            reason = str(error).partition("\n")[0]
            raise UserError(f"a device's memory does not hold one trial: {reason}") from error
        self.chunk = -(-self.chunk // 2)
        # What the failed call has left as it was need not be trained again; what it was given to
        # write over, or did not bring home, is lost.
        if len(self.history) == self.own.epoch:
            with contextlib.suppress(RuntimeError, AttributeError):
                self.snapshot = self._snapshot()
        self.snapshot = self.snapshot or self._load()
        self.progress.note(
            f"a device is out of memory: continuing with {count(self.chunk, 'trial')} at a time"
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
        own, length = self.own, _CallLength()
        before, started = self.seconds, time.perf_counter()
        under_way: collections.deque[Call] = collections.deque()

        def wait(most: int = 0) -> None:
            """Until no more calls than that are under way."""
            while len(under_way) > most:
                call = under_way.popleft()
                jax.block_until_ready(call.record)
                length.arrived(call)
                if call.ends_epoch:
                    self.history.append(own.to_host(call.record))
                    self._tell_measured()
                self.progress.moved(self.asked, call.epochs)
            self.seconds = before + time.perf_counter() - started

        while True:
            if not own.begun and own.epoch in self._ends - self.ends.keys():
                wait()
                self.ends[own.epoch] = own.end()
            if own.epoch == own.program.epochs:
                return
            stopped = self.stopped()
            if stopped or (self.checkpointer and self.checkpointer.due(self.asked)):
                wait()
                self._save()
            if stopped:
                raise InterruptedRunError
            call = own.call(length.most(own.training))
            under_way.append(call)
            wait(0 if length.slow else 1)  # one waits on the device while another runs

    def _tell_measured(self) -> None:
        record, epoch = self.history[-1], len(self.history)

        def value(metric: str, split: str) -> np.ndarray:
            sums = jax.tree.map(lambda a: a[:, None], {metric: record.splits[split][metric]})
            return step.values(self.shared.task, sums)[metric][:, 0]

        if hasattr(self.progress, "measured"):
            self.progress.measured(self.asked, epoch, value)

    def _save(self) -> None:
        if self.checkpointer:
            self.checkpointer.save(self.asked, self._snapshot())

    def _load(self) -> Snapshot | None:
        if not self.checkpointer:
            return None
        task, arrays = self.shared.task, self.shared.arrays
        return self.checkpointer.load(self.asked, lambda: state_like(self.asked, task, arrays))

    def _snapshot(self) -> Snapshot:
        own = self.own
        history = None
        if self.history:
            history = jax.tree.map(lambda *a: np.stack(a, axis=1), *self.history)
        state = record = None
        if own.program.epochs not in self.ends:  # else nothing is left to resume
            state, record = own.to_host((own.state, own.record))
        return Snapshot(
            own.epoch, own.step, own.batch, self.chunk, self.seconds, self.compile_seconds,
            state, record, history, dict(self.ends),
        )  # fmt: skip


class _CallLength:
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
