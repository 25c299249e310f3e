"""What runs on each node: one process that owns the node's devices and trains what it is given."""

import contextlib
import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.execution.checkpoints import Checkpoints
from jaxexp.execution.control import Control
from jaxexp.execution.devices import devices
from jaxexp.execution.driver import Machine
from jaxexp.execution.records import Snapshot
from jaxexp.execution.trainer import Training
from jaxexp.planning.programs import Program
from jaxexp.training import flags
from jaxexp.training.data import Data
from jaxexp.training.task import Task, directions

EVENTS_SECONDS = 0.2  # that a question for events waits at most
MEASURED_SECONDS = 0.5  # between two looks at a program's metrics, as progress shows them


@dataclass(frozen=True)
class Work:
    """What all programs of a run have in common."""

    task: Task
    data: Data
    control: Control
    # Where all nodes can read and write; seconds between; of what: see `Checkpoints`.
    checkpoints: tuple[str, float, dict[str, str]] | None
    marker: str = ""  # a file that lies there, where this is a folder
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # options of JAX


@dataclass(frozen=True)
class Event:
    """Something that has become of a program, or a note of the worker."""

    program: str  # its id
    kind: str  # a method of `Progress`, or "done" or "interrupted" (with an Outcome), or "failed"
    arguments: tuple[Any, ...] = ()


class Worker:
    """Trains programs, each in a thread of its own, and tells what becomes of them."""

    def __init__(self) -> None:
        """Nothing is prepared yet."""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._checkpoints: Checkpoints | None = None

    def prepare(self, work: Work) -> dict[str, Any]:
        """Place the data of a run; returns what the devices are.

        Raises UserError where the folder of the checkpoints is not seen here.
        """
        if work.marker and not Path(work.marker).exists():
            raise UserError(
                f"does not see {Path(work.marker).parent}, where checkpoints are kept; expected a "
                "folder that all nodes share, or a URL"
            )
        self._end()
        flags.take_over(work.flags)
        self._stop = threading.Event()
        self._work = work
        self._machine = Machine(work.task, work.data, devices())
        if work.checkpoints is not None:
            where, every, of = work.checkpoints
            self._checkpoints = Checkpoints(
                where,
                lambda text: self._tell("", "note", text),
                every,
                of,
            )
        return {"platform": devices()[0].platform, "devices": len(devices())}

    def begin(
        self, program: Program, places: Sequence[int], until: int, snapshot: Snapshot | None,
        again: bool,
    ) -> None:  # fmt: skip
        """Train a program on some of the devices, from a snapshot or as its checkpoint says.

        `again`: a worker that was lost may have saved more than the snapshot.
        """
        own = dataclasses.replace(program, devices=tuple(places))
        threading.Thread(
            target=self._train, args=(own, until, snapshot, again), daemon=True
        ).start()

    def events(self) -> list[Event]:
        """What has become of the programs since the last question; waits a little for something."""
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=EVENTS_SECONDS))
            while True:
                found.append(self._events.get_nowait())
        return found

    def stop(self) -> None:
        """Have all programs leave a last snapshot and end."""
        self._stop.set()

    def _end(self) -> None:
        """Write what is still to be written."""
        if self._checkpoints is not None:
            self._checkpoints.close()
            self._checkpoints = None

    def _train(self, program: Program, until: int, snapshot: Snapshot | None, again: bool) -> None:
        work = self._work
        try:
            progress = _Told(program.id, self._tell, work)
            own = Training(program, self._machine, progress, work.control, self._checkpoints)
            if snapshot is not None:
                own.go_on_from(snapshot, again=again)
            made = own.run(until, self._stop.is_set)
            if self._checkpoints is not None:
                self._checkpoints.wait()
            self._tell(program.id, "done", own.outcome(made))
        except InterruptedRunError:
            if self._checkpoints is not None:
                self._checkpoints.wait()
            self._tell(program.id, "interrupted", own.interrupted())
        except UserError as error:
            self._tell(program.id, "failed", error)
        except BaseException:  # which may not travel as it is
            self._tell(program.id, "failed", RuntimeError(traceback.format_exc()))

    def _tell(self, program: str, kind: str, *arguments: Any) -> None:
        self._events.put(Event(program, kind, arguments))


class _Told:
    """Progress of one program, as events."""

    def __init__(self, program: str, tell: Callable[..., None], work: Work) -> None:
        self._program, self._tell = program, tell
        self._metrics, self._splits = [*directions(work.task)], [*work.data.counts]
        self._looked = 0.0

    def compiling(self, program: Program) -> None:
        self._tell(self._program, "compiling")

    def moved(self, program: Program, epochs: float) -> None:
        self._tell(self._program, "moved", epochs)

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """Every metric of every split, now and then: here, nobody knows which of them is shown."""
        ends = any(trial.epochs == epoch for trial in program.trials)
        if ends or time.monotonic() - self._looked >= MEASURED_SECONDS:
            self._looked = time.monotonic()
            found = {(m, split): value(m, split) for m in self._metrics for split in self._splits}
            self._tell(self._program, "measured", epoch, jax.tree.map(np.asarray, found))

    def changed(self, program: Program, values: Mapping[str, np.ndarray]) -> None:
        self._tell(self._program, "changed", values)

    def stopped(self, program: Program, epoch: int, places: np.ndarray) -> None:
        self._tell(self._program, "stopped", epoch, places)

    def note(self, text: str) -> None:
        self._tell(self._program, "note", text)
