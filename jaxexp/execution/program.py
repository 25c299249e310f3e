"""A program on its devices: training compiled as a batch of trials, and its state between calls."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxexp.base import memory
from jaxexp.base.batches import steps_per_epoch, turns_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.execution.control import Change
from jaxexp.execution.records import End, Snapshot
from jaxexp.planning.programs import Program
from jaxexp.spec.padding import Choice
from jaxexp.spec.trial import Trial
from jaxexp.training import draws, precision, step
from jaxexp.training.platform import traced_for
from jaxexp.training.step import EpochRecord, Steps, TrainState
from jaxexp.training.task import Arrays, Task, Variables
from jaxexp.training.tracing import fingerprint, multiplications, one_at_a_time
from jaxexp.training.trees import PyTree

TRIALS = PartitionSpec("trials")  # the leading axis of everything that a trial owns
SHARED = PartitionSpec()
# Random bits take LLVM long to optimise, for weights that are drawn only once. (Level 0 would round
# otherwise.)
FAST_TO_COMPILE: dict[str, str | bool | int] = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,  # not of jaxlib 0.12
}
# A forward pass alone is as fast without them, and takes a quarter less to compile.
FORWARD: dict[str, str | bool | int] = {"xla_cpu_use_fusion_emitters": False}
# Of steps that update two moments, as Adam's do. LLVM's highest level unrolls the innermost loop of
# an update, over the 16 inputs of a unit, and vectorizes the one around it, with a load of its own
# for each number; that takes a third of a step of one example.
FOR_UPDATES: dict[str, str | bool | int] = {"xla_backend_optimization_level": 2}
BLOCK = 16  # steps after which a GPU asks its host whether to go on
Leaves: TypeAlias = Mapping[str, jax.Array]  # what differs between trials
Number: TypeAlias = jax.Array  # of an epoch, a step or a batch
Trained: TypeAlias = tuple[TrainState, EpochRecord]
RUN_STEPS = "run_steps"  # the leaf that says which of the lengths is a trial's own


@dataclass(frozen=True)
class Compiled:
    """Functions of (leaves, state, ...); what a trial owns has a leading axis of trials.

    The last argument of `steps` and `evaluate` is how many chunks of each device they are of, the
    first of them: lanes of the others keep what they have.
    """

    init: Callable[[Leaves, Arrays], Trained]
    steps: Callable[
        [Leaves, TrainState, EpochRecord, Number, Number, Number, Arrays, Number], Trained
    ]
    evaluate: Callable[
        [Leaves, TrainState, EpochRecord, Number, Number, Arrays, Number], EpochRecord
    ]
    predict: Callable[[Leaves, TrainState, Arrays], PyTree] | None


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


_compiled: dict[tuple[object, ...], Compiled] = {}


def compile_program(program: Program, task: Task, mesh: Mesh, data: Arrays, lanes: int) -> Compiled:
    """Compile a batch of `lanes` trials of a program, or find it compiled by this process before.

    `data` is placed on the program's devices.
    """
    chunk = chunk_of(program, lanes)
    batch = lanes, chunk
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), data)
    lengths = run_steps(program, task, data)
    devices = tuple(mesh.devices.flat)
    # The task's text, not its identity: what its functions close over may have changed since.
    leaves = {name: own[0] for name, own in stack(program, task, data).items()}
    predictions = "predictions" in program.record
    computes = fingerprint(task, program.spec.trial, leaves, lengths, data, predictions=predictions)
    ways = program.microbatch, program.one_by_one
    decided = program.spec, program.record, ways, batch, lengths, devices
    key = (type(task), computes, *decided, str(shapes))
    if key not in _compiled:
        parts = lowered_in_turn(program, task, mesh, data, lanes, chunk)
        _compiled[key] = _compile(parts, devices[0].platform)
        memory.give_back()
    return _compiled[key]


def compile_with(
    options: Mapping[str, str | bool | int], lowered: jax.stages.Lowered
) -> jax.stages.Compiled:
    """Compile with the options: those that `XLA_FLAGS` does not set, and that this XLA knows."""
    flags = {flag.partition("=")[0] for flag in os.environ.get("XLA_FLAGS", "").split()}
    own = {name: value for name, value in options.items() if f"--{name}" not in flags}
    options = cast("dict[str, str | bool]", own)  # JAX takes numbers, too
    while True:
        try:
            return lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            unknown = [
                name for name in options if f"No such compile option: '{name}'" in str(error)
            ]
            if not unknown:
                raise
            del options[unknown[0]]


def run_steps(program: Program, task: Task, data: Arrays) -> tuple[int, ...]:
    """How many steps its trials take in all, each number once; (1,) where nobody asks."""
    if not task.optimizer_uses_steps(program.trials[0]):
        return (1,)
    examples = step.training_examples(data)
    return tuple(sorted({_run_steps(trial, examples) for trial in program.trials}))


def _run_steps(trial: Trial, examples: int) -> int:
    return trial.epochs * steps_per_epoch(examples, trial.batch_size)


class _Traced:
    """The functions of one trial of a program, of its leaves."""

    def __init__(self, program: Program, task: Task, data: Arrays, block: int = 1) -> None:
        self.program, self.task, self.block = program, task, block
        self.lengths = run_steps(program, task, data)

    def _own(self, leaves: Leaves) -> tuple[Trial, Steps]:
        trial = self.program.spec.trial(leaves, branches=self.program.one_by_one)
        if len(self.lengths) == 1:
            return trial, self.lengths[0]
        return trial, Choice(leaves[RUN_STEPS], self.lengths)

    def init(self, leaves: Leaves, data: Arrays) -> Trained:
        norms, microbatch = "gradient_norms" in self.program.record, self.program.microbatch
        return step.init(
            self.task, *self._own(leaves), data, gradient_norms=norms, microbatch=microbatch
        )

    def steps(
        self, leaves: Leaves, state: TrainState, record: EpochRecord, epoch: Number,
        first: Number, last: Number, data: Arrays,
    ) -> Trained:  # fmt: skip
        return step.train_steps(
            self.task, *self._own(leaves), state, record, epoch, first, last, data,
            block=self.block, microbatch=self.program.microbatch,
            one_by_one=self.program.one_by_one,
        )  # fmt: skip

    def evaluate(
        self, leaves: Leaves, state: TrainState, record: EpochRecord, first: Number, last: Number,
        data: Arrays,
    ) -> EpochRecord:  # fmt: skip
        trial, _ = self._own(leaves)
        return step.evaluate(self.task, trial, state, record, first, last, data)

    def predict(self, leaves: Leaves, state: TrainState, data: Arrays) -> PyTree:
        trial, _ = self._own(leaves)
        return self.task.predictions(trial, state.variables, data)


@one_at_a_time
def state_like(program: Program, task: Task, data: Arrays) -> tuple[PyTree, PyTree, PyTree]:
    """Shapes and types, (T, ...), of the state, of an epoch's record, and of predictions."""
    leaves, traced = stack(program, task, data), _Traced(program, task, data)
    state, record = jax.eval_shape(jax.vmap(traced.init, (0, None)), leaves, data)
    predictions: PyTree = {}
    if "predictions" in program.record:
        predict = jax.vmap(traced.predict, (0, 0, None))
        predictions = jax.eval_shape(predict, leaves, state, data)
    return state, record, predictions


@one_at_a_time
def step_flops(program: Program, task: Task, data: Arrays) -> float:
    """Floating-point operations of one trial in the products of a step, padding included."""
    own, traced = stack(program, task, data), _Traced(program, task, data)
    leaves = {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in own.items()}
    state, record = jax.eval_shape(traced.init, leaves, data)
    numbers = (jax.ShapeDtypeStruct((), np.int32),) * 3
    # A step is counted once, as nobody knows how many there will be.
    steps = jax.make_jaxpr(traced.steps)(leaves, state, record, *numbers, data)
    return 2 * multiplications(steps.jaxpr)


class Lowered(NamedTuple):
    """The functions of a program, traced, before a compiler has seen them."""

    init: jax.stages.Lowered
    steps: jax.stages.Lowered
    evaluate: jax.stages.Lowered
    predict: jax.stages.Lowered | None


def _compile(parts: Iterator[tuple[str, jax.stages.Lowered]], platform: str) -> Compiled:
    """Each function while the next is being traced: JAX traces in Python, and XLA needs none."""
    options: dict[str, Mapping[str, str | bool | int]] = {"init": FAST_TO_COMPILE}
    if platform == "cpu":
        options |= {"evaluate": FORWARD, "predict": FORWARD}
    compiling: dict[str, Future[jax.stages.Compiled]] = {}
    with ThreadPoolExecutor(len(Lowered._fields), "compile") as pool:
        for name, own in parts:
            if name == "init" and platform == "cpu" and keeps_two_moments(own.out_info[0]):
                options["steps"] = FOR_UPDATES
            compiling[name] = pool.submit(compile_with, options.get(name, {}), own)
        made = {name: one.result() for name, one in compiling.items()}
    return Compiled(made["init"], made["steps"], made["evaluate"], made.get("predict"))


def lowered(
    program: Program, task: Task, mesh: Mesh, data: Arrays, lanes: int, chunk: int
) -> Lowered:
    """All functions of a program; see `lowered_in_turn`."""
    made = dict(lowered_in_turn(program, task, mesh, data, lanes, chunk))
    return Lowered(made["init"], made["steps"], made["evaluate"], made.get("predict"))


def lowered_in_turn(
    program: Program, task: Task, mesh: Mesh, data: Arrays, lanes: int, chunk: int
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Trace a batch of `lanes` trials of a program, `chunk` at a time on each device of the mesh.

    One function after another, by name, as of `Lowered`. Of `data`, only shapes and types are used.
    """
    platform = mesh.devices.flat[0].platform
    traced = _Traced(program, task, data, BLOCK if platform == "gpu" else 1)

    def batched(
        function: Callable[..., PyTree], *specs: PartitionSpec, changes: tuple[int, ...] = (),
        donate: tuple[int, ...] = (),
    ) -> jax.stages.Wrapped:  # fmt: skip
        """`changes`: the arguments that the function returns anew, as a tuple or the only one.

        Such a function has one more argument: how many chunks of each device it is of.
        """

        def chunks(*arguments: PyTree) -> PyTree:
            """Apply the function to the trials of one device, a chunk at a time."""
            given = arguments[: len(specs)]
            own = {i: a for i, a in enumerate(given) if specs[i] == TRIALS}

            def one(own: dict[int, PyTree]) -> PyTree:
                return function(*(own.get(i, a) for i, a in enumerate(given)))

            # A batch of one takes a CPU up to three times as long as the trial itself.
            several = jax.vmap(one) if chunk > 1 else _without_axis(one)
            if lanes == chunk * len(program.devices):
                return several(own)  # quicker to trace than a loop of one chunk
            if changes:
                return _changed(several, own, changes, arguments[-1], chunk)
            return jax.lax.map(one, own, batch_size=chunk if chunk > 1 else None)

        specs_of_all = (*specs, SHARED) if changes else specs
        # Trials never communicate, so there is nothing for shard_map to check.
        spread = jax.shard_map(
            chunks, mesh=mesh, in_specs=specs_of_all, out_specs=TRIALS, check_vma=False
        )
        # Shardings are fixed, so that no later call finds its arguments elsewhere and recompiles.
        return jax.jit(
            spread,
            in_shardings=[NamedSharding(mesh, spec) for spec in specs_of_all],
            out_shardings=NamedSharding(mesh, TRIALS),
            donate_argnums=donate,
        )

    own, number = stack(program, task, data), np.int32(0)
    leaves = {n: jax.ShapeDtypeStruct((lanes, *a.shape[1:]), a.dtype) for n, a in own.items()}
    products = program.trials[0].matmul_precision  # of them all

    def of_products(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return precision.rounded(function, products)

    # The same start for every precision.
    init_jit = batched(draws.together(traced.init), TRIALS, SHARED)
    owned = (TRIALS,) * 3
    steps_jit = batched(
        of_products(traced.steps), *owned, *(SHARED,) * 4, changes=(1, 2), donate=(1,)
    )
    evaluate_jit = batched(of_products(traced.evaluate), *owned, *(SHARED,) * 3, changes=(2,))
    predict_jit = batched(of_products(traced.predict), TRIALS, TRIALS, SHARED)

    @one_at_a_time
    def lower(
        function: jax.stages.Wrapped, *arguments: PyTree, products: str = precision.FLOAT32
    ) -> jax.stages.Lowered:
        with precision.asked(products), traced_for(platform):
            return function.lower(*arguments)

    init = lower(init_jit, leaves, data)
    yield "init", init
    state, record = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), init.out_info)
    left = {
        "steps": (steps_jit, (leaves, state, record, number, number, number, data, number)),
        "evaluate": (evaluate_jit, (leaves, state, record, number, number, data, number)),
    }
    if "predictions" in program.record:
        left["predict"] = predict_jit, (leaves, state, data)
    for name, (function, arguments) in left.items():
        yield name, lower(function, *arguments, products=products)


def _without_axis(
    function: Callable[[dict[int, PyTree]], PyTree],
) -> Callable[[dict[int, PyTree]], PyTree]:
    """The function of one trial, for a leading axis of one."""

    def only(own: dict[int, PyTree]) -> PyTree:
        made = function(jax.tree.map(lambda a: a[0], own))
        return jax.tree.map(lambda a: a[None], made)

    return only


def _changed(
    function: Callable[[dict[int, PyTree]], PyTree], own: dict[int, PyTree],
    changes: tuple[int, ...], chunks: Number, chunk: int,
) -> PyTree:  # fmt: skip
    """The arguments that the function of a chunk changes, for the first so many chunks of trials.

    `own` are its arguments, by their places, with a leading axis of trials. How many chunks there
    are is known when it is called, so that nothing is compiled again when trials have ended.
    """

    def turn(i: Number, changed: dict[int, PyTree]) -> dict[int, PyTree]:
        first = i * chunk
        part = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, first, chunk), {**own, **changed}
        )
        made = function(part)
        made = dict(zip(changes, made if len(changes) > 1 else (made,), strict=True))
        written: dict[int, PyTree] = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, first, 0), changed, made
        )
        return written

    changed = jax.lax.fori_loop(0, chunks, turn, {i: own[i] for i in changes})
    made = tuple(changed[i] for i in changes)
    return made if len(changes) > 1 else made[0]


def keeps_two_moments(state: TrainState) -> bool:
    """Whether the optimizer keeps two moments of every parameter; of shapes and types alone."""
    parameters, moments = (
        sum(
            math.prod(a.shape)
            for a in jax.tree.leaves(tree)
            if jnp.issubdtype(a.dtype, jnp.floating)
        )
        for tree in (state.variables.params, state.optimizer)
    )
    return bool(moments >= 2 * parameters)


def stack(program: Program, task: Task, data: Arrays) -> dict[str, np.ndarray]:
    """What differs between the trials of a program, (T,) each."""
    leaves = program.spec.leaves(program.trials)
    lengths = run_steps(program, task, data)
    if len(lengths) > 1:
        examples = step.training_examples(data)
        own = [lengths.index(_run_steps(trial, examples)) for trial in program.trials]
        leaves[RUN_STEPS] = np.array(own, np.int32)
    return leaves


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
        examples = step.training_examples(data)
        self.steps = max(
            turns_per_epoch(examples, size, program.microbatch) for size in program.batch_sizes
        )
        evaluated = step.evaluated_examples(data)
        size = step.evaluation_batch_size(task, evaluated)
        self.batches = steps_per_epoch(evaluated, size)
        self.epoch = self.step = self.batch = 0  # epochs finished, and how far the next one is
        self.places = np.arange(len(program.trials))  # in the program, of the trials in the lanes
        self.lanes = program.filled()
        self.best: Variables | None = None  # the best so far of each lane, where they are kept
        self.best_epoch = np.zeros(len(program.trials), int)  # (T,) of which they are
        self.values = stack(program, task, data)  # what differs between trials, (T,) each

    def start(self, snapshot: Snapshot | None = None) -> None:
        """Compile, and initialise every trial or take over the state of a snapshot."""
        if snapshot is not None:
            self.places = snapshot.places
            self.lanes = filled(self.program, max(len(self.places), snapshot.lanes))
            self.values |= snapshot.values
            self.best_epoch = snapshot.best_epoch.copy()
        self.compile()
        if snapshot is None:
            self.state, self.record = self.compiled.init(self.leaves, self.data)
            return
        self.state, self.record, self.best = self._put(
            self._in_lanes((snapshot.state, snapshot.record, snapshot.best)), TRIALS
        )
        self.epoch, self.step = snapshot.epoch, snapshot.step
        self.batch = min(snapshot.batch, self.batches - 1)  # the data may be others, by force

    def compile(self) -> None:
        """Compile for the trials in the lanes, and place what differs between them."""
        self._fill()
        try:
            self.compiled = compile_program(
                self.program, self.task, self.mesh, self.data, self.lanes
            )
        except jax.errors.JAXTypeError as error:
            spec = self.program.spec
            padded = [name for name, _, _ in spec.sizes] + [name for name, _ in spec.choices]
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

    def end(self, places: np.ndarray | None = None) -> End:
        """Trials as they are, or as they were best where that is kept, on the host.

        With their predictions where recorded. Of all trials, if no places are given.
        """
        places = self.places if places is None else places
        kept = self.state.variables if self.best is None else self.best
        predictions = {}
        if self.compiled.predict:
            # Asked of those trials alone that end here, of which some are prefixes.
            epochs = np.full(self.lanes, self.epoch, np.int32)
            leaves = {**self.leaves, "epochs": self._put(epochs, TRIALS)}
            state = self.state._replace(variables=kept)
            predictions = self.compiled.predict(leaves, state, self.data)
        own = np.searchsorted(self.places, places)
        predictions, kept = jax.tree.map(lambda a: a[own], self.to_host((predictions, kept)))
        return End(places, predictions, kept, self.best_epoch[places])

    def keep_best(self, places: np.ndarray) -> None:
        """Keep the parameters that these trials have now, until they are better once more."""
        self.best_epoch[places] = self.epoch
        if self.best is None:
            self.best = self._put(jax.tree.map(jnp.copy, self.state.variables), TRIALS)
            return
        better = self._put(np.isin(self._lanes_of(), places), TRIALS)
        # Left to XLA, they might lie elsewhere than what is compiled expects.
        self.best = self._put(_replace(better, self.state.variables, self.best), TRIALS)

    def compact(self, places: np.ndarray, lanes: int) -> None:
        """Go on with these trials alone, in a batch of so many lanes, between two epochs.

        Nothing is compiled where there are as many lanes as before.
        """
        own = np.searchsorted(self.places, places)
        kept = self.to_host((self.state, self.record, self.best))
        compiled = lanes == self.lanes
        self.places, self.lanes = places, lanes
        del self.state, self.record, self.best  # their memory first
        if compiled:
            self._fill()
        else:
            self.compile()
        self.state, self.record, self.best = self._put(
            self._in_lanes(jax.tree.map(lambda a: a[own], kept)), TRIALS
        )

    def change(self, change: Change) -> None:
        """Go on with other states and hyperparameters; `change` is of the program's trials, (T,).

        States are copied on the devices.
        """
        self.values |= {n: v.astype(self.values[n].dtype) for n, v in change.values.items()}
        source = self._lane_of[np.searchsorted(self.places, change.source[self.places])]
        source = self._put(self._in_lanes(source), TRIALS)
        self.state = self._put(_take(self.state, source), TRIALS)
        self._place_values()

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
        self._place_values()

    def _place_values(self) -> None:
        own = jax.tree.map(lambda a: a[self.places], self.values)
        self.leaves = self._put(self._in_lanes(own), TRIALS)

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
    """By lane, `new` where it is better."""

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
