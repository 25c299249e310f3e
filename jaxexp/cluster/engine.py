"""Programs on the nodes of a cluster: given out, watched, and given out again where a node dies."""

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.base.words import count
from jaxexp.cluster.nodes import Cluster, Node, by_value, own_modules
from jaxexp.cluster.worker import Event, Work
from jaxexp.execution.checkpoints import Checkpoints
from jaxexp.execution.control import Control
from jaxexp.execution.driver import Machine
from jaxexp.execution.listeners import Checkpointer, Progress
from jaxexp.execution.records import TrialRecord
from jaxexp.execution.stores import SHARED, Folder
from jaxexp.execution.trainer import Training
from jaxexp.planning.nodes import Queue, needed
from jaxexp.planning.programs import Program
from jaxexp.training import flags
from jaxexp.training.data import Data
from jaxexp.training.task import Task

LOOK_SECONDS = 2.0  # between two looks for nodes that have joined
WAIT_SECONDS = 0.5  # for something to happen
BUSY_SECONDS = 30.0  # after which it is told that a node does not start
STOP_SECONDS = 120.0  # that programs may take to leave a last snapshot
MOST_DEATHS = 3  # of workers under a program that comes no further: it is the reason, then


@dataclass
class _Station:
    """A node with its worker, and what it is doing."""

    node: Node
    actor: Any
    free: list[int]  # its devices that train nothing
    question: Any  # the answer that is awaited
    late: bool = False  # that it has joined a run under way, which goes on where it is not fit
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    told: bool = False  # that it keeps us waiting
    leaving: bool = False
    running: dict[str, tuple[Training, list[int]]] = field(default_factory=dict)


class Engine:
    """Trains programs on every node of a cluster; see `jaxexp.execution.driver.Engine`."""

    def __init__(
        self, cluster: Cluster, versions: dict[str, str], programs: Sequence[Program] = ()
    ) -> None:
        """`versions` are those that every node must have, `programs` all that will be trained."""
        self.cluster, self._versions = cluster, versions
        self._least = min((len(program.devices) for program in programs), default=1)
        self._stations: dict[str, _Station] = {}
        self._asked: dict[str, tuple[Node, Any]] = {}  # nodes that have not answered yet
        self._refused: set[str] = set()  # ids of nodes that are not fit to train,
        self._left: set[str] = set()  # and of those whose worker has died
        self._unready: dict[str, int] = {}  # by id: how often one has before it was ready
        self._looked = 0.0

    @contextlib.contextmanager
    def prepared(
        self, task: Task, data: Data, control: Control, progress: Progress,
        checkpointer: Checkpointer | None,
    ) -> Iterator[Machine]:  # fmt: skip
        """While programs of this task are trained on these data."""
        self._progress, self._ray = progress, self.cluster.ray
        if checkpointer is not None and not isinstance(checkpointer, Checkpoints):
            raise UserError("on a cluster, expected the checkpoints of jaxexp")
        kept = None
        if checkpointer is not None:
            kept = (checkpointer.store.location, checkpointer.every, checkpointer.of)
        with _marker(checkpointer) as marker:
            leaving = self.cluster.leaving()
            nodes = [
                node
                for node in self.cluster.nodes()
                if node.id not in leaving and not self._is_small(node)
            ]
            new = [node for node in nodes if node.id not in self.cluster.fit]
            asked = [self.cluster.ask(node, [*self._versions]) for node in new]
            for node, answer in zip(new, asked, strict=True):
                self.cluster.check(node, answer, self._versions)
            self._own_modules = own_modules()
            with by_value(self._own_modules):
                work = Work(task, data, control, kept, marker, flags.values())
                self._work = self._ray.put(work)
            # Of programs whose worker has died: how often, since they last came further.
            self._deaths: dict[str, int] = {}
            self._furthest: dict[str, float] = {}  # epochs
            for node in nodes:
                self._take_on(node)
            kinds = {self.cluster.processors[node.id] for node in nodes}
            if len(kinds) > 1:
                progress.note(
                    f"the nodes have different processors ({', '.join(sorted(kinds))}): which of "
                    "them trains a program decides its last bits"
                )
            try:
                yield Machine(task, data, ())
            finally:
                self._dismiss()

    def train(
        self, streams: Sequence[Sequence[Training]], ahead: Sequence[Training], until: int,
        stop: threading.Event | None,
    ) -> Generator[list[TrialRecord]]:  # fmt: skip
        """Train every program so far, whatever its stream, yielding records as programs end.

        Nothing is compiled ahead: nodes compile side by side.
        """
        self._trainings = {one.program.id: one for own in streams for one in own}
        self._queue, told = Queue(one.program for own in streams for one in own), False
        while self._queue or any(own.running for own in self._stations.values()):
            if stop is not None and stop.is_set():
                self._interrupt()
            self._look_for_nodes()
            self._give_out(until)
            most = self._queue.devices
            lacking = all(own.node.devices < most for own in self._stations.values())
            if lacking and not told:
                large = f"node with {count(most, 'device')}"
                self._progress.note(f"no {large} is left: waiting for one to join the cluster")
            told = lacking
            for station, events in self._answers():
                if events is None:
                    self._lose(station)
                for event in events or ():
                    records = self._hear(station, event)
                    if records:
                        yield records

    # Nodes

    def _take_on(self, node: Node, *, late: bool = False) -> None:
        actor = self.cluster.worker(node)
        self._stations[node.id] = _Station(node, actor, [], actor.prepare.remote(self._work), late)

    def _refuse(self, node: Node, reason: object) -> None:
        """Leave a node alone from now on, with a note."""
        self._refused.add(node.id)
        self._stations.pop(node.id, None)
        self.cluster.lose(node)
        self._progress.note(f"{reason}; it is not used")

    def _is_small(self, node: Node) -> bool:
        """Whether a node has fewer devices than any program needs: it is refused, then."""
        if node.devices >= self._least:
            return False
        has = count(node.devices, "device")
        self._refuse(node, f"node {node.name}: has {has} of the {self._least} that a program needs")
        return True

    def _look_for_nodes(self) -> None:
        """Give a worker to those that have joined."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        leaving = self.cluster.leaving()
        for station in [own for own in self._stations.values() if own.node.id in leaving]:
            self._hand_back(station)
        for node in self.cluster.nodes():
            known = self._stations.keys() | self._refused | self._asked.keys() | leaving
            if node.id not in known and not self._is_small(node):
                answer = self.cluster.ask(node, [*self._versions])
                self._asked[node.id] = node, answer
        for node, answer in list(self._asked.values()):
            if not self._ray.wait([answer], timeout=0)[0]:
                continue
            del self._asked[node.id]
            try:
                self.cluster.check(node, answer, self._versions)
            except UserError as error:
                # One that has just died is still among the nodes for a while.
                if node.id not in self._left:
                    self._refuse(node, error)
                continue
            again = "is there again" if node.id in self._left else "has joined"
            self._progress.note(f"node {node.name} {again}")
            self._take_on(node, late=True)

    def _check_devices(self, node: Node, found: dict[str, Any]) -> None:
        """Raise UserError where JAX does not find on a node what Ray says of it."""
        if (found["platform"], found["devices"]) != (node.platform, node.devices):
            raise UserError(
                f"node {node.name}: JAX finds {count(found['devices'], 'device')} of the platform "
                f"{found['platform']}, where Ray has {count(node.devices, node.platform)}; is JAX "
                "installed for this hardware?"
            )

    def _hand_back(self, station: _Station) -> None:
        """Have the programs of a node that is about to be taken away go on elsewhere."""
        if not station.leaving:
            station.leaving = True
            what = f": {count(len(station.running), 'program')} of it will go on elsewhere"
            self._progress.note(f"node {station.node.name} is about to be taken away{what}")
            self._queue.lose(station.node.id)
            station.actor.stop.remote()
        if not station.running:
            self._stations.pop(station.node.id)
            self.cluster.lose(station.node)

    def _lose(self, station: _Station) -> None:
        """Take back what a node was training when it died."""
        self._stations.pop(station.node.id)
        self.cluster.lose(station.node)
        self._left.add(station.node.id)
        self._queue.lose(station.node.id)
        if not station.ready:  # it may be one of an earlier run, that was leaving
            node = station.node
            self._unready[node.id] = self._unready.get(node.id, 0) + 1
            if self._unready[node.id] == MOST_DEATHS:
                dies = f"its worker has died {MOST_DEATHS} times before it was ready"
                self._refuse(node, f"node {node.name}: {dies}")
            return
        left = [one for one, _ in station.running.values()]
        for one in left:
            self._queue.end(one.program)
            self._queue.put(one.program)
            own = one.program.id
            self._deaths[own] = self._deaths.get(own, 0) + 1
            if self._deaths[own] == MOST_DEATHS:
                raise UserError(
                    f"{count(len(one.program.trials), 'trial')} ({one.program.why()}) ended the "
                    f"workers of {MOST_DEATHS} nodes, the last of them {station.node.name}: "
                    "expected a program that a node's memory holds"
                )
        what = (
            f"{count(len(left), 'program')} of it will go on elsewhere" if left else "it was idle"
        )
        self._progress.note(f"the worker on node {station.node.name} is lost: {what}")

    def _dismiss(self) -> None:
        """Whatever still runs is not wanted any more; the other workers may be wanted again."""
        for station in self._stations.values():
            if station.running or not station.ready:
                self.cluster.lose(station.node)
        self._stations = {}
        self.cluster.rest()

    # Work

    def _give_out(self, until: int) -> None:
        """Begin on each node what its free devices have room for."""
        for station in self._stations.values():
            devices = station.node.devices
            while (
                station.ready
                and not station.leaving
                and (program := self._queue.take(station.node.id, len(station.free), devices))
            ):
                used = station.free[: needed(program, devices)]
                station.free = station.free[len(used) :]
                one = self._trainings[program.id]
                station.running[program.id] = one, used
                places, again = used[: len(program.devices)], program.id in self._deaths
                with by_value(self._own_modules):
                    station.actor.begin.remote(program, places, until, one.snapshot, again)

    def _answers(self) -> Iterator[tuple[_Station, list[Event] | None]]:
        """What workers have told by now; None of one that is dead."""
        asked = {own.question: own for own in self._stations.values()}
        for own in asked.values():
            if not (own.ready or own.told) and time.monotonic() - own.since > BUSY_SECONDS:
                own.told = True
                self._progress.note(f"node {own.node.name} is busy with other work: waiting for it")
        if not asked:
            time.sleep(WAIT_SECONDS)
            return
        self._ray.wait([*asked], num_returns=1, timeout=WAIT_SECONDS)
        answered, _ = self._ray.wait([*asked], num_returns=len(asked), timeout=0)
        for question in answered:
            station = asked[question]
            try:
                answer = self._answer(station)
            except UserError as error:
                if station.ready or not station.late:
                    raise
                self._refuse(station.node, error)
                continue
            yield station, answer

    def _answer(self, station: _Station) -> list[Event] | None:
        """What a worker has told; None of one that is dead, UserError of one that is not fit."""
        try:
            answer = self._ray.get(station.question)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"node {station.node.name}: {error.cause}") from error
            raise
        except self._ray.exceptions.RayError as error:
            if not station.ready and "creation task" in str(error):
                reason = str(error).strip().rpartition("\n")[2]
                raise UserError(
                    f"node {station.node.name}: its worker does not start ({reason})"
                ) from error
            return None
        if not station.ready:
            self._check_devices(station.node, answer)
            station.ready, station.free = True, [*range(answer["devices"])]
            answer = []
        station.question = station.actor.events.remote()
        made: list[Event] = answer
        return made

    def _hear(self, station: _Station, event: Event) -> list[TrialRecord]:
        """Tell progress what has become of a program; returns the records of one that has ended."""
        if event.kind == "note":
            self._progress.note(f"node {station.node.name}: {event.arguments[0]}")
            return []
        if event.program not in station.running:
            return []
        one, places = station.running[event.program]
        if event.kind in ("done", "interrupted", "failed"):
            del station.running[event.program]
            self._queue.end(one.program)
            station.free = sorted([*station.free, *places])
        if event.kind == "failed":
            [error] = event.arguments
            raise error
        if event.kind == "interrupted":
            [outcome] = event.arguments
            if outcome is not None:
                one.arrived(outcome)
            self._queue.put(one.program)
            return []
        if event.kind == "done":
            return one.arrived(event.arguments[0])
        if event.kind == "measured":
            epoch, values = event.arguments
            if hasattr(self._progress, "measured"):
                self._progress.measured(one.program, epoch, lambda *key: values[key])
            return []
        if event.kind == "moved" and event.arguments[0] > self._furthest.get(event.program, 0.0):
            [self._furthest[event.program]] = event.arguments
            if event.program in self._deaths:
                self._deaths[event.program] = 0
        if hasattr(self._progress, event.kind):
            getattr(self._progress, event.kind)(one.program, *event.arguments)
        return []

    def _interrupt(self) -> None:
        """Have every program leave a last snapshot, and end the run."""
        for station in self._stations.values():
            station.actor.stop.remote()
        deadline = time.monotonic() + STOP_SECONDS
        while any(s.running for s in self._stations.values()) and time.monotonic() < deadline:
            for station, events in self._answers():
                if events is None:
                    self._lose(station)
                for event in events or ():
                    self._hear(station, event)
        raise InterruptedRunError


@contextlib.contextmanager
def _marker(checkpointer: Checkpoints | None) -> Iterator[str]:
    """A file where checkpoints are kept, by which nodes find out whether they see the folder."""
    if checkpointer is None or not isinstance(checkpointer.store, Folder):
        yield ""
        return
    file = checkpointer.store.path / SHARED
    checkpointer.store.put(file.name, b"")
    try:
        yield str(file)
    finally:
        file.unlink(missing_ok=True)
