"""A program on its devices: training compiled as a batch of trials, and its state between calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxexp.base import memory
from jaxexp.execution.records import End, Snapshot
from jaxexp.planning.plan import Program
from jaxexp.training import step as train
from jaxexp.training.step import Data, Gathered, PyTree, Task

TRIALS = PartitionSpec("trials")  # the leading axis of everything that a trial owns
SHARED = PartitionSpec()
# Random bits take LLVM long to optimise, for weights that are drawn only once.
FAST_TO_COMPILE = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Compiled:
    """Functions of (leaves, state, ...); what a trial owns has a leading axis of trials."""

    init: Callable[..., Any]
    steps: Callable[..., Any]
    evaluate: Callable[..., Any]
    predict: Callable[..., Any] | None


def place(data: Data, mesh: Mesh) -> Data:
    """A problem's data, on each of the devices, as the compiled functions take them."""
    return jax.device_put(train.join_held_out(data), NamedSharding(mesh, SHARED))


_compiled: dict[tuple, Compiled] = {}


def compile_program(program: Program, task: Task, mesh: Mesh, data: Data) -> Compiled:
    """Compile a program for its devices, or find it compiled by this process before.

    `data` is placed there.
    """
    batch = program.filled(), program.at_once
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), data)
    key = (task, program.shape, program.record, batch, tuple(mesh.devices.flat), str(shapes))
    if key not in _compiled:
        _compiled[key] = _compile(program, task, mesh, data)
        memory.give_back()
    return _compiled[key]


def state_like(program: Program, task: Task, data: Data) -> tuple[PyTree, PyTree, PyTree]:
    """Shapes and types, (T, ...), of the state, of what is gathered, and of predictions."""
    leaves = stack(program)
    init = jax.vmap(_init(program, task), (0, None))
    state, gathered = jax.eval_shape(init, leaves, data)
    predictions: PyTree = {}
    if "predictions" in program.record:

        def predict(leaves: PyTree, state: train.TrialState, data: Data) -> PyTree:
            trial = program.shape.trial(leaves)
            return task.predictions(trial, state.params, state.state, data)

        predictions = jax.eval_shape(jax.vmap(predict, (0, 0, None)), leaves, state, data)
    return state, gathered, predictions


def _init(program: Program, task: Task) -> Callable[[PyTree, Data], tuple[PyTree, PyTree]]:
    def init(leaves: PyTree, data: Data) -> tuple[train.TrialState, train.Gathered]:
        norms = "gradient_norms" in program.record
        return train.init(task, program.shape.trial(leaves), data, gradient_norms=norms)

    return init


def _compile(program: Program, task: Task, mesh: Mesh, data: Data) -> Compiled:
    trial = program.shape.trial

    def steps(leaves, state, gathered, epoch, first, last, examples):
        return train.train_steps(task, trial(leaves), state, gathered, epoch, first, last, examples)

    def evaluate(leaves, state, gathered, first, last, data):
        return train.evaluate(task, trial(leaves), state, gathered, first, last, data)

    def predict(leaves, state, data):
        return task.predictions(trial(leaves), state.params, state.state, data)

    def batched(function: Callable, *specs: PartitionSpec, donate: tuple[int, ...] = ()):
        def turns(*arguments: PyTree) -> PyTree:
            """Apply the function to the trials of one device, so many at a time."""
            own = {i: a for i, a in enumerate(arguments) if specs[i] == TRIALS}

            def one(own: dict[int, PyTree]) -> PyTree:
                return function(*(own.get(i, a) for i, a in enumerate(arguments)))

            if program.filled() == program.at_once * len(program.devices):
                return jax.vmap(one)(own)  # quicker to trace than a loop of one turn
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

    leaves, number = stack(program), np.int32(0)
    init_jit = batched(_init(program, task), TRIALS, SHARED)
    state, gathered = jax.eval_shape(init_jit, leaves, data)
    steps_jit = batched(steps, *(TRIALS,) * 3, *(SHARED,) * 4, donate=(1,))
    evaluate_jit = batched(evaluate, *(TRIALS,) * 3, *(SHARED,) * 3)
    predict_jit = batched(predict, TRIALS, TRIALS, SHARED)
    examples = data["train"]
    return Compiled(
        init=init_jit.lower(leaves, data).compile(FAST_TO_COMPILE),
        steps=steps_jit.lower(leaves, state, gathered, number, number, number, examples).compile(),
        evaluate=evaluate_jit.lower(leaves, state, gathered, number, number, data).compile(),
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


class Call(NamedTuple):
    """Some steps, or batches evaluated, of an epoch; they may still be on their way."""

    gathered: Gathered
    training: bool
    amount: int  # of steps or batches
    epochs: float  # trained when it is done
    ends_epoch: bool


class Run:
    """One program on its devices: its state, and how far it is."""

    def __init__(self, program: Program, task: Task, mesh: Mesh, data: Data) -> None:
        """Nothing is compiled yet; `data` is what `place` returns."""
        self.program, self.task, self.mesh, self.data = program, task, mesh, data
        smallest = min(trial.batch_size for trial in program.trials)
        self.steps = train.steps_per_epoch(train.count(data["train"]), smallest)
        held_out = train.count(data["held_out"])
        self.batches = train.steps_per_epoch(held_out, train.evaluation_batch(task, held_out))
        self.epoch = self.step = self.batch = 0  # epochs finished, and how far the next one is

    def start(self, snapshot: Snapshot | None = None) -> None:
        """Compile, and initialise every trial or take over the state of a snapshot."""
        self.leaves = self._put(stack(self.program), TRIALS)
        self.compiled = compile_program(self.program, self.task, self.mesh, self.data)
        if snapshot is None:
            self.state, self.gathered = self.compiled.init(self.leaves, self.data)
        else:
            arrays = self._filled((snapshot.state, snapshot.gathered))
            self.state, self.gathered = self._put(arrays, TRIALS)
            self.epoch, self.step = snapshot.epoch, snapshot.step
            self.batch = min(snapshot.batch, self.batches - 1)  # the data may be others, by force

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
            numbers = self._numbers(self.epoch, self.step, self.step + done)
            self.state, self.gathered = self.compiled.steps(
                self.leaves, self.state, self.gathered, *numbers, self.data["train"]
            )
            self.step += done
        else:
            done = min(most, self.batches - self.batch)
            numbers = self._numbers(self.batch, self.batch + done)
            self.gathered = self.compiled.evaluate(
                self.leaves, self.state, self.gathered, *numbers, self.data
            )
            self.batch += done
        if ends := self.batch == self.batches:
            self.epoch, self.step, self.batch = self.epoch + 1, 0, 0
        part = (self.step + self.batch) / (self.steps + self.batches)
        return Call(self.gathered, training, done, self.epoch + part, ends)

    def rest(self) -> Gathered:
        """All that is left of this epoch; what it has gathered may still be on its way."""
        while not (call := self.call(max(self.steps, self.batches))).ends_epoch:
            pass
        return call.gathered

    def end(self) -> End:
        """The trials as they are, on the host, with their predictions where recorded."""
        predictions = {}
        if self.compiled.predict:
            predictions = self.compiled.predict(self.leaves, self.state, self.data)
        return End(*self.home((predictions, self.state.params, self.state.state)))

    def home(self, tree: PyTree) -> PyTree:
        """Copies on the host, without the trials that fill up: later calls reuse the memory."""
        trials = len(self.program.trials)

        def copy(array: jax.Array) -> np.ndarray:
            # Shard by shard: of the whole array, JAX would keep a copy of its own.
            shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            return np.concatenate([np.asarray(shard.data) for shard in shards])[:trials]

        return jax.tree.map(copy, tree)

    def _filled(self, tree: PyTree) -> PyTree:
        copies = self.program.filled() - len(self.program.trials)
        return jax.tree.map(lambda a: np.concatenate([a, *[a[-1:]] * copies]), tree)

    def _numbers(self, *numbers: int) -> list[jax.Array]:
        return [self._put(np.int32(number), SHARED) for number in numbers]

    def _put(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        return jax.device_put(tree, NamedSharding(self.mesh, spec))
