"""The driver: trains the programs of a plan side by side, and collects what they leave behind."""

import collections
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.execution.control import Control
from jaxexp.execution.listeners import Checkpointer, Progress, Silent
from jaxexp.execution.program import joined
from jaxexp.execution.records import TrialRecord
from jaxexp.execution.trainer import Training
from jaxexp.planning.programs import Plan, Program
from jaxexp.spec.trial import Trial
from jaxexp.training import evaluation
from jaxexp.training.data import Data
from jaxexp.training.task import Arrays, Task

POLL_SECONDS = 0.02


def check(trials: Sequence[Trial], task: Task, data: Data) -> None:
    """Raise UserError for trials that cannot be trained on the data."""
    for trial in trials:
        if data.folds is not None and not trial.fold < data.n_folds:
            raise UserError(
                f"fold={trial.fold}: expected a number below {data.n_folds}, as the data have folds"
            )
        examples = data.counts_of(trial.fold)["train"]
        if trial.batch_size > examples:
            of = f" of fold {trial.fold}" if data.folds is not None else ""
            raise UserError(
                f"batch_size={trial.batch_size}: larger than the {examples} training examples{of}"
            )
        task.check(trial, data)


class Engine(Protocol):
    """Trains programs: in threads of this process, or elsewhere."""

    def prepared(
        self, task: Task, data: Data, control: Control, progress: Progress,
        checkpointer: Checkpointer | None,
    ) -> AbstractContextManager["Machine"]:  # fmt: skip
        """While programs of this task are trained on these data: what they share here."""
        ...

    def train(
        self, streams: Sequence[Sequence[Training]], ahead: Sequence[Training], until: int,
        stop: threading.Event | None,
    ) -> Generator[list[TrialRecord]]:  # fmt: skip
        """Train every program so far, yielding records as programs end, as `stream` does.

        Those `ahead` have their turn later, here or in another call, and may be compiled before.
        """
        ...


def stream(
    plan: Plan, task: Task, data: Data, where: Sequence[jax.Device] | Engine,
    progress: Progress | None = None, *, checkpointer: Checkpointer | None = None,
    stop: threading.Event | None = None, control: Control | None = None,
) -> Generator[list[TrialRecord]]:  # fmt: skip
    """Train every trial of the plan, yielding each program's records as soon as it has finished.

    On devices of this process, the plan's streams run side by side, in a thread each, the programs
    of a stream one after another; then those that run alone. Meanwhile the programs whose turn has
    not come are compiled, though nothing while one runs alone. An engine gives programs to other
    machines. With a `checkpointer`, programs resume from their snapshots, and leave new ones.
    `control` says which trials end early; at its rungs, all programs wait for each other.

    An exception in one of them, or in the caller, stops the others at their next call and is
    raised. So does `stop`, as InterruptedRunError, when every stream has left a last snapshot; a
    stream that is compiling has left it before, if it has trained, and is not waited for.
    """
    check([trial for program in plan.programs for trial, _ in program.members], task, data)
    control, progress = control or Control(), progress or Silent()
    engine = Threads(where) if isinstance(where, Sequence) else where
    with engine.prepared(task, data, control, progress, checkpointer) as shared:

        def training(program: Program) -> Training:
            return Training(program, shared, progress, control, checkpointer)

        kinds = [
            [[training(p) for p in own] for own in kind] for kind in (plan.streams, [plan.alone])
        ]
        every = [one for streams in kinds for own in streams for one in own]
        longest = max((program.epochs for program in plan.programs), default=0)
        for until in [*(rung for rung in control.rungs if rung < longest), longest]:
            together, alone = map(_unfinished, kinds)
            turns = itertools.zip_longest(*(own[1:] for own in together))
            ahead = [one for turn in turns for one in turn if one]
            ahead += [one for own in alone for one in own]
            yield from engine.train(together, ahead, until, stop)
            yield from engine.train(alone, [], until, stop)
            if until < longest:
                _decide(every, until, control)


def _unfinished(streams: Sequence[Sequence[Training]]) -> list[list[Training]]:
    """What is left of each stream; of some, nothing is."""
    left = [[one for one in own if not one.finished] for own in streams]
    return [own for own in left if own]


def _decide(every: Sequence[Training], rung: int, control: Control) -> None:
    """End the trials, of all programs, that do not go on from this epoch."""
    places = [one.trained_at(rung) for one in every]
    asked = [(one, own) for one, own in zip(every, places, strict=True) if len(own)]
    trials = [one.program.trials[place] for one, own in asked for place in own]
    if not trials:
        return

    def values(metric: str, split: str) -> np.ndarray:
        return np.concatenate([one.history.values(metric, split)[own, :rung] for one, own in asked])

    curves = asked[0][0].curves(values)
    stopped = control.stop_together(rung, trials, curves)
    for one, own in asked:
        one.stop(rung, own[stopped[: len(own)]])
        stopped = stopped[len(own) :]


class Threads:
    """The devices of this process: a thread for each stream."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        """Nothing is placed yet."""
        self._devices = devices

    @contextlib.contextmanager
    def prepared(
        self, task: Task, data: Data, control: Control, progress: Progress,
        checkpointer: Checkpointer | None,
    ) -> Iterator["Machine"]:  # fmt: skip
        """See `Engine`."""
        self._machine = Machine(task, data, self._devices)
        yield self._machine

    def train(
        self, streams: Sequence[Sequence[Training]], ahead: Sequence[Training], until: int,
        stop: threading.Event | None,
    ) -> Generator[list[TrialRecord]]:  # fmt: skip
        """See `Engine`."""
        yield from _stream(streams, ahead, until, self._machine, stop)


def _stream(
    streams: Sequence[Sequence[Training]], ahead: Sequence[Training], until: int,
    shared: "Machine", stop: threading.Event | None,
) -> Generator[list[TrialRecord]]:  # fmt: skip
    asked, over = stop or threading.Event(), threading.Event()
    finished: queue.SimpleQueue[list[TrialRecord] | BaseException] = queue.SimpleQueue()

    def stopped() -> bool:
        return asked.is_set() or over.is_set()

    def run_stream(own: Sequence[Training]) -> None:
        try:
            for one in own:
                finished.put(one.run(until, stopped))
        except BaseException as error:
            finished.put(error)
        compile_ahead()  # its devices have nothing else to do

    def compile_ahead() -> None:
        while left and not stopped():
            with contextlib.suppress(IndexError):  # another thread has taken the last one
                left.popleft().compile_ahead()

    def compile_beside() -> None:
        def first() -> bool:
            """Whether a stream has yet to compile what it begins with."""
            pairs = zip(threads, streams, strict=False)
            return any(thread.is_alive() and not own[0].compiled for thread, own in pairs)

        while first() and not stopped():
            time.sleep(POLL_SECONDS)
        compile_ahead()

    # All at once: while one compiles or waits for its slowest device, the others use the cores.
    # No daemons: Python cannot end while one of them compiles, but would try, and crash.
    left = collections.deque(ahead)
    threads = [threading.Thread(target=run_stream, args=(own,)) for own in streams]
    beside = max(1, len(shared.devices) - len(streams)) if ahead else 0
    threads += [threading.Thread(target=compile_beside) for _ in range(beside)]
    for thread in threads:
        thread.start()
    try:
        for _ in [one for own in streams for one in own]:
            result = None
            while result is None:
                try:
                    result = finished.get(timeout=POLL_SECONDS)
                except queue.Empty:  # a stream that compiles hears of nothing
                    if asked.is_set() and not shared.busy(threads):
                        raise InterruptedRunError from None
            if isinstance(result, BaseException):
                raise result
            if result:
                yield result
        while (alive := [t for t in threads if t.is_alive()]) and not asked.is_set():
            alive[0].join(POLL_SECONDS)
    finally:
        over.set()
        while busy := shared.busy(threads):
            busy[0].join(POLL_SECONDS)


class Machine:
    """What the programs of a process share: task, data on the devices, and what compiles."""

    def __init__(self, task: Task, data: Data, devices: Sequence[jax.Device]) -> None:
        """Nothing is placed yet."""
        self.task, self.devices = task, devices
        self.splits = tuple(data.counts)
        self.arrays = evaluation.with_evaluation(data)
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

    def busy(self, streams: Sequence[threading.Thread]) -> list[threading.Thread]:
        """The streams that are running, and do not compile."""
        return [each for each in streams if each.is_alive() and each not in self.compiling_streams]

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """While this stream compiles."""
        stream = threading.current_thread()
        self.compiling_streams.add(stream)
        try:
            yield
        finally:
            self.compiling_streams.discard(stream)
