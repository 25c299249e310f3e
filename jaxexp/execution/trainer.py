"""One program, trained from its start, or its last snapshot, to its end or a rung on the way.

This is the only part that knows time. What happens within a call, some steps of an epoch, is
compiled and pure (`jaxexp.training.step`); between calls it records, reports progress, saves, ends
trials, and can stop.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.base.words import count
from jaxexp.execution.calls import CallLength
from jaxexp.execution.compiling import stack, state_like
from jaxexp.execution.control import Control
from jaxexp.execution.history import History
from jaxexp.execution.listeners import Checkpointer, Progress, Shared
from jaxexp.execution.program import Call, RunningProgram, filled, lanes_computed
from jaxexp.execution.records import End, Snapshot, TrialRecord, make_records
from jaxexp.execution.rules import Change, Curves
from jaxexp.planning.programs import Program
from jaxexp.training.carry import EpochRecord
from jaxexp.training.task import directions

ENOUGH_LESS = 7 / 8  # of what is computed: states are not moved for trials that save less
SAME_RULE = (
    "expected a rule that decides by the curves alone, and the one with which the checkpoints were "
    "written, or another folder for them"
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a program stands that has been trained in another process."""

    records: list[TrialRecord]  # of all its members, once all trials have ended
    snapshot: Snapshot | None  # to go on from, before that
    history: list[EpochRecord]  # where other programs are still compared with it
    stopped: np.ndarray  # (T,) the epoch after which each trial was, 0 for none


class Training:
    """One program: its state on the devices, and all that its trials have left behind so far."""

    def __init__(
        self, program: Program, shared: Shared, progress: Progress, control: Control,
        checkpointer: Checkpointer | None,
    ) -> None:  # fmt: skip
        """Nothing happens yet."""
        self.program, self.shared, self.progress = program, shared, progress
        self.control, self.checkpointer = control, checkpointer
        self.finished = False
        self.chunk = program.chunk
        self.own: RunningProgram | None = None  # on the devices, while it trains
        self.snapshot: Snapshot | None = None  # to go on from; kept no longer than it is needed
        self._epochs_T = np.array([trial.epochs for trial in program.trials])
        self._lengths = sorted({(trial.epochs, place) for trial, place in program.members})
        self._begun = False
        self.compiled = False  # whether it has trained, or is about to
        self._compiling = threading.Lock()
        self._ahead_seconds = 0.0  # of compiling, before it was this program's turn
        self.history = History(program, shared.task, shared.arrays)
        self.ends: dict[int, End] = {}
        self._take_up(None)

    def run(self, until: int, interrupted: Callable[[], bool]) -> list[TrialRecord]:
        """Train for so many epochs in all; returns the records once all trials have ended.

        With fewer trials at once where the device refuses. Raises InterruptedRunError, having
        saved, when `interrupted` says so.
        """
        if not self._begun:
            self._begun = True
            self._take_up(self._load())
            if self.snapshot:
                if self.control.asked_again:
                    self._ask_again(self.snapshot)
                for epoch in np.unique(self.stopped[self.stopped > 0]).tolist():
                    self._tell_stopped(epoch, np.flatnonzero(self.stopped == epoch))
                self.progress.moved(self.program, self.snapshot.epoch)
        while True:
            try:
                return self._run(until, interrupted)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self._halve(error)

    def compile_ahead(self) -> None:
        """Compile what `run` will begin with; what cannot be compiled, `run` says.

        May be called by another thread than `run`, which waits for it.
        """
        with self._compiling:
            if self._begun:
                return
            started = time.perf_counter()
            with contextlib.suppress(Exception), self.shared.compiling():
                self._running().compile()
            self._ahead_seconds = time.perf_counter() - started

    def go_on_from(self, snapshot: Snapshot, *, again: bool) -> None:
        """Take over what another process has trained; `again`: or what it saved after that."""
        self._begun = True
        saved = self._load() if again else None
        if saved and (saved.epoch, saved.settled) >= (snapshot.epoch + 1, snapshot.settled):
            snapshot = saved
        self._take_up(snapshot)

    def interrupted(self) -> Outcome | None:
        """Where an interrupted program stands, for another process; None if it has not begun."""
        snapshot = self.snapshot
        if self.own is not None and len(self.history.epochs) == self.own.epoch:
            snapshot = self._snapshot(self.own)
        return None if snapshot is None else Outcome([], snapshot, [], self.stopped)

    def outcome(self, records: list[TrialRecord]) -> Outcome:
        """Where the program stands, for another process; `records` are what `run` returned."""
        return Outcome(records, self.snapshot, self.history.epochs if records else [], self.stopped)

    def arrived(self, outcome: Outcome) -> list[TrialRecord]:
        """Stand where another process has brought the program; returns its records."""
        self._begun = True
        if not outcome.records:
            assert outcome.snapshot
            self._take_up(outcome.snapshot)
            return []
        self.finished, self.snapshot, self.ends = True, None, {}
        self.history.epochs, self.stopped = outcome.history, outcome.stopped
        # The trials are those of this process, whatever has become of their class on the way.
        own = {trial.id: trial for trial, _ in self.program.members}
        return [
            dataclasses.replace(
                record,
                trial=own[record.trial.id],
                changes={
                    epoch: (own[source.id], values)
                    for epoch, (source, values) in record.changes.items()
                },
            )
            for record in outcome.records
        ]

    def trained_at(self, epoch: int) -> np.ndarray:
        """The places of the trials that have trained so far, and wanted to go on."""
        wanted_T = (self._epochs_T > epoch) & ((self.stopped == 0) | (self.stopped >= epoch))
        places: np.ndarray = np.flatnonzero(wanted_T)
        return places

    def curves(self, values: Callable[[str, str], np.ndarray]) -> Curves:
        """As rules want them, of these values."""
        return Curves(values, directions(self.shared.task), self.shared.splits)

    def _curves(self, places: np.ndarray, epochs: int | None = None) -> Curves:
        """Of the trials at these places, in their first epochs."""
        return self.curves(
            lambda metric, split: self.history.values(metric, split)[places, :epochs]
        )

    def stop(self, epoch: int, places: np.ndarray) -> None:
        """End trials after a rung: where the program waits there, or did before it was resumed."""
        new = places[self.stopped[places] == 0]
        waits = self.snapshot is not None and self.snapshot.epoch == epoch
        if epoch in self._ended_alone:
            self._compare(epoch, np.union1d(self._ended_alone.pop(epoch), places))
        elif not waits:
            self._compare(epoch, np.union1d(np.flatnonzero(self.stopped == epoch), new))
        self._stop(epoch, new)
        if waits and self.snapshot:
            # What the others were here is not needed.
            self.ends[epoch] = _of_places(self.ends[epoch], np.flatnonzero(self._ended(epoch)))
            self.snapshot = self._without(self.snapshot)

    def _ask_again(self, snapshot: Snapshot) -> None:
        """Refuse a snapshot where the rules, asked of its curves, decide otherwise than they did.

        Nothing else could tell whether a rule of the user's own is the same.
        """
        trials = len(self.program.trials)
        best_T = np.full(trials, -1)
        values = stack(self.program, self.shared.task, self.shared.arrays)
        for epoch in range(1, snapshot.settled + 1):
            asked = np.flatnonzero(
                ((self.stopped == 0) | (self.stopped >= epoch)) & (self._epochs_T >= epoch)
            )
            if not len(asked):
                break
            own = [self.program.trials[place] for place in asked]
            curves = self._curves(asked, epoch)
            improved = self.control.improved(epoch, own, curves)
            if improved is not None:
                best_T = np.maximum(best_T, 0)
                best_T[asked[improved]] = epoch
            stopped = self.control.stop(epoch, own, curves, again=True)
            ends = asked[stopped & (self._epochs_T[asked] > epoch)]
            ended = np.flatnonzero(self.stopped == epoch)
            behind = snapshot.epoch > epoch or snapshot.step + snapshot.batch > 0
            if epoch not in self.control.rungs or not np.isin(ends, ended).all():
                self._compare(epoch, ends)
            # At a rung others may have ended, too. Where none has, it may be yet to decide.
            elif behind or len(ended) > len(ends):
                self._ended_alone[epoch] = ends
            if behind or epoch in self.changes:  # else they may be yet to change
                values |= self._changed_again(epoch, np.setdiff1d(asked, ended), values)
        if not np.array_equal(best_T, snapshot.best_epoch):
            place = int(np.flatnonzero(best_T != snapshot.best_epoch)[0])
            raise UserError(
                f"{self.control.words}: says that epoch {max(best_T[place], 0)} is the best of "
                f"{self.program.trials[place]}, and said {max(snapshot.best_epoch[place], 0)}; "
                f"{SAME_RULE}"
            )

    def _changed_again(
        self, epoch: int, asked: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What was changed after an epoch; refuse a rule that now changes these trials otherwise.

        `values` are the hyperparameters that all had, (T,) each.
        """
        left = asked[self._epochs_T[asked] > epoch]
        now = self._change_of(epoch, left, values) if self.control.changes and len(left) else None
        then = self.changes.get(epoch)
        same = str(jax.tree.structure(now)) == str(jax.tree.structure(then))
        if not (same and all(map(np.array_equal, *map(jax.tree.leaves, (now, then))))):
            changes, changed = (_number_changed(change, values) for change in (now, then))
            raise UserError(
                f"{self.control.words}: changes {count(changes, 'trial')} after epoch {epoch}, and "
                f"changed {'them otherwise' if changes == changed else changed}; {SAME_RULE}"
            )
        return {} if then is None else then.values

    def _compare(self, epoch: int, ends: np.ndarray) -> None:
        """Refuse a rule that now ends these trials after an epoch, and ended others.

        Where trials may have ended by the clock, it need not have ended all of them.
        """
        ended = np.flatnonzero(self.stopped == epoch)
        if self.control.by_clock:
            ended = np.intersect1d(ended, ends)
        if not np.array_equal(ended, ends):
            raise UserError(
                f"{self.control.words}: ends {count(len(ends), 'trial')} after epoch {epoch}, "
                f"and ended {'others' if len(ends) == len(ended) else len(ended)}; {SAME_RULE}"
            )

    @property
    def _alive(self) -> np.ndarray:
        """Of each trial, (T,), whether it trains on after the epochs that are settled."""
        alive: np.ndarray = (self.stopped == 0) & (self._epochs_T > self.settled)
        return alive

    def _ended(self, epoch: int) -> np.ndarray:
        """Of each trial, (T,), whether it, or a prefix of it, has this epoch as its last."""
        ended: np.ndarray = self.stopped == epoch
        for length, place in self._lengths:
            if length == epoch and (self.stopped[place] == 0 or self.stopped[place] >= epoch):
                ended[place] = True
        return ended

    def _take_up(self, snapshot: Snapshot | None) -> None:
        """Be where a snapshot was taken, on other devices perhaps, or at the start."""
        trials = len(self.program.trials)
        self.ends = {}
        self.changes: dict[int, Change] = {}
        # Of rungs that are behind, those that ended without being compared with other programs.
        self._ended_alone: dict[int, np.ndarray] = {}
        self.stopped = np.zeros(trials, int)  # the epoch after which each was, 0 for none
        self.seconds = self.compile_seconds = 0.0
        self.settled = 0
        self.history.begin()
        if snapshot:
            self.history.begin(snapshot.history, snapshot.epoch)
            self.chunk = min(self.chunk, snapshot.chunk)  # it may have been halved
            lanes = filled(self._in_chunks, max(len(snapshot.places), snapshot.lanes))
            snapshot = dataclasses.replace(snapshot, lanes=lanes)
            self.ends, self.changes = dict(snapshot.ends), dict(snapshot.changes)
            self.stopped, self.settled = snapshot.stopped.copy(), snapshot.settled
            self.seconds, self.compile_seconds = snapshot.seconds, snapshot.compile_seconds
        self.snapshot = snapshot

    def _run(self, until: int, interrupted: Callable[[], bool]) -> list[TrialRecord]:
        at = self.snapshot
        waits = at is not None and (at.epoch, at.settled) >= (until, until)
        if self._alive.any() and not waits:
            self.own = self._running()
            self._compile(self.own)
            if not self.control.rungs:
                self.snapshot = None
            if interrupted():
                raise InterruptedRunError
            self._train(self.own, until, interrupted)
            if self.checkpointer or self.control.rungs:
                self.snapshot = self._saved(self.own)
            self.own = None  # it is the next program's turn
        if self._alive.any():
            return []
        history = self.history.stacked()
        assert history is not None
        made = make_records(
            self.program, self.shared.task, self.shared.arrays, history, self.ends, self.stopped,
            self.changes, self.seconds, self.compile_seconds,
        )  # fmt: skip
        self.finished, self.snapshot, self.ends = True, None, {}
        if not self.control.rungs:  # where other programs may still be compared with it
            self.history.begin()
        return made

    @property
    def _in_chunks(self) -> Program:
        """The program, with as many trials at once as the devices have memory for."""
        return dataclasses.replace(self.program, chunk=self.chunk)

    def _running(self) -> RunningProgram:
        program = self._in_chunks
        mesh = self.shared.mesh(program)
        return RunningProgram(program, self.shared.task, mesh, self.shared.on(mesh))

    def _halve(self, error: Exception) -> None:
        """From now on, half as many trials at once."""
        if self.chunk == 1:
            reason = str(error).partition("\n")[0]
            raise UserError(f"a device's memory does not hold one trial: {reason}") from error
        self.chunk = -(-self.chunk // 2)
        # What the failed call has left as it was need not be trained again; what it was given to
        # write over, or did not bring home, is lost.
        if self.own and len(self.history.epochs) == self.own.epoch:
            with contextlib.suppress(RuntimeError, AttributeError):
                self.snapshot = self._saved(self.own)
        self.own, before = None, len(self.history.epochs)
        self._take_up(self.snapshot or self._load())
        epoch = len(self.history.epochs)
        again = f", from epoch {epoch + 1} again" if epoch < before else ""
        self.progress.note(
            f"a device is out of memory: continuing with {count(self.chunk, 'trial')} at a time"
            f"{again}"
        )

    def _compile(self, own: RunningProgram) -> None:
        self.progress.compiling(self.program)
        with self.shared.compiling(), self._compiling:
            started = time.perf_counter()
            own.start(self.snapshot)
            self.compile_seconds += time.perf_counter() - started + self._ahead_seconds
            self._ahead_seconds, self.compiled = 0.0, True

    def _train(self, own: RunningProgram, until: int, interrupted: Callable[[], bool]) -> None:
        length, under_way = CallLength(), collections.deque[Call]()
        before, started = self.seconds, time.perf_counter()

        def wait(most: int = 0) -> None:
            """Until no more calls than that are under way."""
            while len(under_way) > most:
                call = under_way.popleft()
                jax.block_until_ready(call.record)
                length.arrived(call)
                if call.ends_epoch:
                    self._remember(own, call.record)
                self.progress.moved(self.program, call.epochs)
            self.seconds = before + time.perf_counter() - started

        while True:
            if not own.begun and self._decides(own.epoch, until):
                wait()
                self._settle(own)
                if own.epoch == until or not self._alive.any():
                    return
            if not own.begun:  # after a rung, it is now known who is left
                self._change(own)
            stopped = interrupted()
            if stopped or (self.checkpointer and self.checkpointer.due(self.program)):
                wait()
                if self.checkpointer:
                    self._saved(own)
            if stopped:
                raise InterruptedRunError
            call = own.call(length.most(own.training))
            under_way.append(call)
            wait(0 if length.slow else 1)  # one waits on the device while another runs

    def _decides(self, epoch: int, until: int) -> bool:
        """Whether something becomes of the trials after this epoch."""
        if epoch <= self.settled:
            return False
        lengths = (length for length, _ in self._lengths)
        return bool(self.control) or epoch == until or epoch in lengths

    def _settle(self, own: RunningProgram) -> None:
        """End trials, and go on with the others, between two epochs."""
        epoch = own.epoch
        asked = np.flatnonzero(self._alive)
        trials = [self.program.trials[place] for place in asked]
        curves = self._curves(asked)
        stops = asked[:0]
        if self.control:
            improved = self.control.improved(epoch, trials, curves)
            if improved is not None:
                own.keep_best(asked[improved])
            stopped = self.control.stop(epoch, trials, curves)
            # Those that end anyway, do.
            stops = asked[stopped & (self._epochs_T[asked] > epoch)]
        ends = np.union1d(np.flatnonzero(self._ended(epoch)), stops)
        at_a_rung = epoch in self.control.rungs
        if at_a_rung:  # which of them end here is not yet known
            ends = np.union1d(ends, asked)
        if len(ends):
            prefixes = [place for length, place in self._lengths if length == epoch]
            self.ends[epoch] = own.end(ends, prefixes, self.changes)
        # Only now: memory may have been short, and all of this is done again.
        self._stop(epoch, stops)
        self.settled = epoch
        left = np.flatnonzero(self._alive)
        if len(left) and not at_a_rung:
            self._compact(own, left, epoch)

    def _change(self, own: RunningProgram) -> None:
        """Between two epochs, let those that are left go on as copies of others, by the rules."""
        epoch = own.epoch
        if epoch == 0 or epoch in self.changes or not self.control.changes:
            return
        change = self._change_of(epoch, np.flatnonzero(self._alive), own.values)
        if change is not None:
            own.change(change)
            self.changes[epoch] = change

    def _compact(self, own: RunningProgram, left: np.ndarray, epoch: int) -> None:
        """Go on with these trials alone, where that saves something."""
        lanes = self._lanes(own.lanes, len(left), epoch)
        now, then = (
            lanes_computed(own.program, lanes, len(places)) for places in (own.places, left)
        )
        # Kept until all of it is on the devices again: memory may be short.
        if lanes < own.lanes:
            # Saved, too: who compiles is not waited for when the run is stopped.
            self.snapshot = self._saved(own, lanes)
            started = time.perf_counter()
            self.progress.compiling(self.program)
            with self.shared.compiling():
                own.compact(self.snapshot)
            self.compile_seconds += time.perf_counter() - started
            self.progress.moved(self.program, epoch)
        elif then <= ENOUGH_LESS * now:
            self.snapshot = self._snapshot(own)
            own.compact(self.snapshot)
        if not self.control.rungs:
            self.snapshot = None

    def _stop(self, epoch: int, places: np.ndarray) -> None:
        self.stopped[places] = epoch
        self._tell_stopped(epoch, places)

    def _tell_stopped(self, epoch: int, places: np.ndarray) -> None:
        if len(places) and hasattr(self.progress, "stopped"):
            self.progress.stopped(self.program, epoch, places)

    def _lanes(self, lanes: int, trials: int, epoch: int) -> int:
        """The lanes for so many trials: fewer where that saves more than compiling takes.

        Whole chunks that no trial needs cost nothing as it is.

        As estimated, not as measured, and whatever this process has compiled before: it would not
        be the same in every run. Programs that share compiled functions have a share of it each.
        """
        program = self._in_chunks
        fewer = filled(program, trials)
        estimate = program.estimate
        lane_epoch = estimate.seconds / len(program.trials) / program.epochs
        now, then = (lanes_computed(program, each, trials) for each in (lanes, fewer))
        saved = (now - then) * lane_epoch * (program.epochs - epoch) / len(program.devices)
        return fewer if saved > estimate.shared_compile_seconds else lanes

    def _change_of(
        self, epoch: int, left: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> Change | None:
        """How the rules change these trials after an epoch, as a change of all, (T,)."""
        trials = [self.program.trials[place] for place in left]
        own = {name: value_T[left] for name, value_T in values.items()}
        change = self.control.change(epoch, trials, self._curves(left, epoch), own)
        if change is None:
            return None
        source_T = np.arange(len(self.program.trials))
        source_T[left] = left[change.source]
        made = {}
        for name, value_A in change.values.items():
            made[name] = values[name].copy()
            made[name][left] = value_A
        return Change(source_T, made)

    def _remember(self, own: RunningProgram, record: EpochRecord) -> None:
        """Add an epoch to the history, and tell it."""
        made, places, alive = own.to_host(record), own.places, self._alive[own.places]
        if not alive.all():  # the others may go on in their lanes
            made, places = jax.tree.map(lambda a: a[alive], made), places[alive]
        self.history.add(made, places)
        if self.changes and hasattr(self.progress, "changed"):
            self.progress.changed(self.program, self._changed(own))
        if hasattr(self.progress, "measured"):
            epoch = len(self.history.epochs)

            def value(metric: str, split: str) -> np.ndarray:
                return self.history.values(metric, split)[:, epoch - 1]

            self.progress.measured(self.program, epoch, value)

    def _changed(self, own: RunningProgram) -> dict[str, np.ndarray]:
        """The hyperparameters that trials have changed, (T,) each, as they are now."""
        return {n: own.values[n] for change in self.changes.values() for n in change.values}

    def _load(self) -> Snapshot | None:
        if not self.checkpointer:
            return None
        task, arrays = self.shared.task, self.shared.arrays
        return self.checkpointer.load(self.program, lambda: state_like(self.program, task, arrays))

    def _saved(self, own: RunningProgram, lanes: int = 0) -> Snapshot:
        """A snapshot, also kept where there is a checkpointer."""
        started = time.perf_counter()
        snapshot = self._snapshot(own, lanes)
        if self.checkpointer:
            self.checkpointer.save(self.program, snapshot, time.perf_counter() - started)
        return snapshot

    def _snapshot(self, own: RunningProgram, lanes: int = 0) -> Snapshot:
        """On the host, of those that go on: in so many lanes, or in as many as now."""
        alive = self._alive
        state = record = best = None
        if alive.any():  # else nothing is left to resume
            rows = np.searchsorted(own.places, np.flatnonzero(alive))
            kept = own.to_host((own.state, own.record, own.best))
            state, record, best = jax.tree.map(lambda a: a[rows], kept)
        return Snapshot(
            epoch=own.epoch, step=own.step, batch=own.batch, chunk=self.chunk,
            seconds=self.seconds, compile_seconds=self.compile_seconds, settled=self.settled,
            lanes=lanes or own.lanes, places=np.flatnonzero(alive), stopped=self.stopped.copy(),
            state=state, record=record, best=best, best_epoch=own.best_epoch.copy(),
            history=self.history.stacked(), ends=dict(self.ends), values=self._changed(own),
            changes=dict(self.changes),
        )  # fmt: skip

    def _without(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot at a rung, without the trials that do not go on from there."""
        left = np.flatnonzero(self._alive)
        rows = np.searchsorted(snapshot.places, left)
        state, record, best = snapshot.state, snapshot.record, snapshot.best
        if len(left):
            state, record, best = jax.tree.map(lambda a: a[rows], (state, record, best))
        else:
            state = record = best = None
        return dataclasses.replace(
            snapshot,
            lanes=self._lanes(snapshot.lanes, len(left), snapshot.epoch),
            places=left,
            stopped=self.stopped.copy(),
            state=state,
            record=record,
            best=best,
            ends=dict(self.ends),
        )


def _of_places(end: End, places: np.ndarray) -> End:
    rows = np.flatnonzero(np.isin(end.places, places))
    predictions, variables = jax.tree.map(lambda a: a[rows], (end.predictions, end.variables))
    return End(end.places[rows], predictions, variables, end.best_epoch[rows])


def _number_changed(change: Change | None, values: Mapping[str, np.ndarray]) -> int:
    """Of how many trials the state or a hyperparameter is another."""
    if change is None:
        return 0
    changed_T = change.source != np.arange(len(change.source))
    for name, value_T in change.values.items():
        changed_T |= value_T != values[name]
    return int(changed_T.sum())
