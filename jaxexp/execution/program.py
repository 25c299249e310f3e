"""A program on its devices: its trials in the lanes of a batch, and their state between calls."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxexp.base.batches import steps_per_epoch, turns_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.execution.compiling import SHARED, TRIALS, compile_program, stack
from jaxexp.execution.records import End, Snapshot
from jaxexp.execution.rules import Change, values_in
from jaxexp.planning.programs import Program
from jaxexp.training import batching, evaluation
from jaxexp.training.carry import EpochRecord
from jaxexp.training.task import Arrays, Task, Variables
from jaxexp.training.trees import PyTree


def place(arrays: Arrays, mesh: Mesh) -> Arrays:
    """The arrays of a run, on each of the devices, as the compiled functions take them."""
    return joined([jax.device_put(arrays, device) for device in mesh.devices.flat], mesh)


def joined(copies: Sequence[Arrays], mesh: Mesh) -> Arrays:
    """Copies that lie on each device of a mesh, as arrays that all of them share."""
    shared = NamedSharding(mesh, SHARED)

    def join(*own: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(own[0].shape, shared, list(own))

    made: Arrays = jax.tree.map(join, *copies)
    return made


class Call(NamedTuple):
    """Some steps, or batches evaluated, of an epoch; they may still be under way."""

    record: EpochRecord
    training: bool
    amount: int  # of steps or batches
    epochs: float  # trained when it is done
    ends_epoch: bool


class RunningProgram:
    """Trials of one program on its devices: their state, and how far they are.

    They lie in the lanes of a batch, an equal part of them at the beginning of each device's. The
    rest is filled up with copies of the last one, whose results are dropped, and which are not
    trained where they fill whole chunks.
    """

    def __init__(self, program: Program, task: Task, mesh: Mesh, data: Arrays) -> None:
        """Nothing is compiled yet; `data` is what `place` returns."""
        self.program, self.task, self.mesh, self.data = program, task, mesh, data
        sizes = {
            (batching.training_examples(data, trial), trial.batch_size) for trial in program.trials
        }
        self.steps = max(turns_per_epoch(n, size, program.microbatch) for n, size in sizes)
        evaluated = evaluation.evaluated_examples(data)
        size = evaluation.evaluated_by_program(task, data)
        self.batches = steps_per_epoch(evaluated, size)
        self.epoch = self.step = self.batch = 0  # epochs finished, and how far the next one is
        self.places = np.arange(len(program.trials))  # in the program, of the trials in the lanes
        self.lanes = program.filled()
        self.best: Variables | None = None  # the best so far of each lane, where they are kept
        # Of which epoch they are, (T,): 0 of a trial that has none yet, -1 where none are kept.
        self.best_epoch = np.full(len(program.trials), -1)
        self.begun_with = stack(program, task, data)  # what differs between trials, (T,) each
        self.values = dict(self.begun_with)  # as it is now
        self.leaves: Mapping[str, jax.Array] = {}  # the same in the lanes, once compiled

    def start(self, snapshot: Snapshot | None = None) -> None:
        """Compile, and initialise every trial or take over the state of a snapshot."""
        if snapshot is not None:
            self.places, self.lanes = snapshot.places, snapshot.lanes
            self.values |= snapshot.values
            self.best_epoch = snapshot.best_epoch.copy()
        self.compile()
        if snapshot is None:
            self.state, self.record = self.compiled.init(self.leaves, self.data)
            return
        self._take_over(snapshot)
        self.epoch, self.step = snapshot.epoch, snapshot.step
        self.batch = min(snapshot.batch, self.batches - 1)  # the data may be others, by force

    def compile(self) -> None:
        """Compile for the trials in the lanes, and place what differs between them."""
        self._fill()
        try:
            self.compiled = compile_program(
                self.program, self.task, self.mesh, self.data, self.lanes,
                chunk_of(self.program, self.lanes),
            )  # fmt: skip
        except TypeError as error:  # JAX's own among them
            spec = self.program.spec
            padded = [name for name, _, _ in spec.sizes] + [name for name, _ in spec.choices]
            if not padded and not isinstance(error, jax.errors.JAXTypeError):
                raise
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{type(self.task).__name__}: {reason} (in a program of trials that differ in "
                f"{' and '.join(padded) or 'what is traced'}, their values are not known to "
                "Python; run with programs='exact')"
            ) from error

    @property
    def begun(self) -> bool:
        """Whether an epoch is under way, not finished."""
        return self.step + self.batch > 0

    @property
    def training(self) -> bool:
        """Whether the next call trains; otherwise it evaluates."""
        return self.step < self.steps

    def call(self, most: int) -> Call:
        """Up to `most` steps, or batches evaluated, of one epoch."""
        training = self.training
        if training:
            done = min(most, self.steps - self.step)
            epoch, first, last = self._numbers(self.epoch, self.step, self.step + done)
            self.state, self.record = self.compiled.steps(
                self.leaves, self.state, self.record, epoch, first, last, self.data, self.chunks
            )
            self.step += done
        else:
            done = min(most, self.batches - self.batch)
            first, last = self._numbers(self.batch, self.batch + done)
            self.record = self.compiled.evaluate(
                self.leaves, self.state, self.record, first, last, self.data, self.chunks
            )
            self.batch += done
        if ends := self.batch == self.batches:
            self.epoch, self.step, self.batch = self.epoch + 1, 0, 0
        part = (self.step + self.batch) / (self.steps + self.batches)
        return Call(self.record, training, done, self.epoch + part, ends)

    def rest(self) -> EpochRecord:
        """All that is left of this epoch; its record may still be under way."""
        while not (call := self.call(max(self.steps, self.batches))).ends_epoch:
            pass
        return call.record

    def end(
        self, places: np.ndarray, prefixes: Sequence[int], changes: Mapping[int, Change]
    ) -> End:
        """Trials as they are, or as they were best where that is kept, on the host.

        With their predictions where recorded: of those at `prefixes` that of a trial which is so
        long. `changes` are all those so far, by the epochs after which they were made.
        """
        assert np.isin(places, self.places).all()
        kept = self.evaluated() if self.best is None else self.best
        if (self.best_epoch[self.places] == 0).any():
            # Of these nothing was best.
            none = self._put(self.best_epoch[self._lanes_of()] == 0, TRIALS)
            kept = self._put(_replace(none, self.evaluated(), kept), TRIALS)
        predictions = {}
        if self.compiled.predict:
            epochs_T = np.array([trial.epochs for trial in self.program.trials], np.int32)
            epochs_T[prefixes] = self.epoch
            kept_T = np.where(self.best_epoch > 0, self.best_epoch, self.epoch)
            values = values_in(kept_T, self.begun_with, changes)
            leaves = {
                **self._placed(values),
                "epochs": self._put(epochs_T[self._lanes_of()], TRIALS),
            }
            state = self.state._replace(variables=kept)
            predictions = self.compiled.predict(leaves, state, self.data)
        own = np.searchsorted(self.places, places)
        predictions, kept = jax.tree.map(lambda a: a[own], self.to_host((predictions, kept)))
        return End(places, predictions, kept, self.best_epoch[places])

    def evaluated(self) -> Variables:
        """The variables at which the trials are evaluated; not copied, if they are the trained."""
        if self.compiled.variables is None:
            return self.state.variables
        return self.compiled.variables(self.leaves, self.state)

    def keep_best(self, places: np.ndarray) -> None:
        """Keep the parameters that these trials have now, until they are better once more."""
        if self.best is None:
            self.best_epoch[:] = 0
            self.best = self._put(jax.tree.map(jnp.copy, self.evaluated()), TRIALS)
        else:
            better = self._put(np.isin(self._lanes_of(), places), TRIALS)
            # Left to XLA, they might lie elsewhere than what is compiled expects.
            self.best = self._put(_replace(better, self.evaluated(), self.best), TRIALS)
        self.best_epoch[places] = self.epoch

    def compact(self, snapshot: Snapshot) -> None:
        """Go on with the trials of a snapshot of now alone, in its lanes, between two epochs.

        Nothing is compiled where there are as many lanes as before.
        """
        compiled = snapshot.lanes == self.lanes
        self.places, self.lanes = snapshot.places, snapshot.lanes
        del self.state, self.record, self.best  # their memory first
        if compiled:
            self._fill()
        else:
            self.compile()
        self._take_over(snapshot)

    def _take_over(self, snapshot: Snapshot) -> None:
        """Put its state into the lanes."""
        kept = snapshot.state, snapshot.record, snapshot.best
        self.state, self.record, self.best = self._put(self._in_lanes(kept), TRIALS)

    def change(self, change: Change) -> None:
        """Go on with other states and hyperparameters; `change` is of the program's trials, (T,).

        States are copied on the devices.
        """
        values = {n: v.astype(self.values[n].dtype) for n, v in change.values.items()}
        values = self.values | values
        source = self._lane_of[np.searchsorted(self.places, change.source[self.places])]
        source = self._put(self._in_lanes(source), TRIALS)
        state = self._put(_take(self.state, source), TRIALS)
        self.leaves = self._placed(values)
        # Only now: memory may have been short.
        self.state, self.values = state, values

    def to_host(self, tree: PyTree) -> PyTree:
        """Copies on the host, without the lanes that fill up: later calls reuse the memory."""

        def copy(array: jax.Array) -> np.ndarray:
            # Shard by shard: of the whole array, JAX would keep a copy of its own.
            shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            counts = zip(shards, self._trials_of, strict=True)
            return np.concatenate([np.asarray(shard.data)[:trials] for shard, trials in counts])

        return jax.tree.map(copy, tree)

    def _fill(self) -> None:
        """Say which trial is in which lane, and place what differs between them."""
        trials, devices = len(self.places), len(self.program.devices)
        of_device, own = math.ceil(trials / devices), self.lanes // devices
        row = np.arange(trials)
        self._trials_of = np.bincount(row // of_device, minlength=devices)  # of each device
        self._lane_of = row // of_device * own + row % of_device  # of each trial
        self._row_of = np.full(self.lanes, trials - 1)  # of the trials, in each lane
        self._row_of[self._lane_of] = row
        (self.chunks,) = self._numbers(chunks_of(self.program, self.lanes, trials))
        self.leaves = self._placed(self.values)

    def _placed(self, values: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
        """What differs between trials, (T,) each, in the lanes."""
        own = {name: value_T[self.places] for name, value_T in values.items()}
        placed: Mapping[str, jax.Array] = self._put(self._in_lanes(own), TRIALS)
        return placed

    def _lanes_of(self) -> np.ndarray:
        """The place of the trial in each lane, (lanes,)."""
        own: np.ndarray = self._in_lanes(self.places)
        return own

    def _in_lanes(self, tree: PyTree) -> PyTree:
        """Arrays of the trials as they lie in the lanes."""
        return jax.tree.map(lambda a: a[self._row_of], tree)

    def _numbers(self, *numbers: int) -> list[jax.Array]:
        return [self._put(np.int32(number), SHARED) for number in numbers]

    def _put(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        return jax.device_put(tree, NamedSharding(self.mesh, spec))


@jax.jit
def _replace(better: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """By lane, `new` where it is better, or has to do."""

    def replace(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(replace, new, old)


@jax.jit
def _take(tree: PyTree, source: jax.Array) -> PyTree:
    """By lane, the state of another."""
    return jax.tree.map(lambda a: a[source], tree)


def filled(program: Program, trials: int) -> int:
    """The lanes for so many of a program's trials: every device has as many, every chunk is full.

    There are few numbers of lanes, since each is compiled: those of all its trials, and halves.
    """
    devices, lanes = len(program.devices), program.filled()
    while True:
        half = -(-lanes // 2 // devices) * devices
        if half > devices * program.chunk:
            half = -(-half // (devices * program.chunk)) * devices * program.chunk
        if half < trials or half >= lanes:
            return lanes
        lanes = half


def chunk_of(program: Program, lanes: int) -> int:
    """How many of so many lanes a device trains side by side."""
    return min(program.chunk, lanes // len(program.devices))


def chunks_of(program: Program, lanes: int, trials: int) -> int:
    """How many chunks of a device's lanes, of so many in all, so many trials fill."""
    return math.ceil(math.ceil(trials / len(program.devices)) / chunk_of(program, lanes))


def lanes_computed(program: Program, lanes: int, trials: int) -> int:
    """In how many of so many lanes something is computed, where they hold so many trials."""
    chunks = chunks_of(program, lanes, trials)
    return chunks * chunk_of(program, lanes) * len(program.devices)
