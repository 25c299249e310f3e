"""The functions of a program, traced and compiled: training as a batch of trials on its devices."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxexp.base import memory
from jaxexp.base.batches import steps_per_epoch
from jaxexp.planning.programs import Program
from jaxexp.spec.padding import Choice
from jaxexp.spec.trial import Trial
from jaxexp.training import batching, draws, evaluation, flags, precision, step
from jaxexp.training.carry import EpochRecord, TrainState
from jaxexp.training.optimizing import Steps
from jaxexp.training.platform import traced_for
from jaxexp.training.task import Arrays, Task, Variables, evaluation_variables
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
class CompiledProgram:
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
    # To those that are evaluated, unless they are those that are trained.
    variables: Callable[[Leaves, TrainState], Variables] | None


_compiled: dict[tuple[object, ...], CompiledProgram] = {}


def compile_program(
    program: Program, task: Task, mesh: Mesh, data: Arrays, lanes: int, chunk: int
) -> CompiledProgram:
    """Compile a batch of `lanes` trials of a program, or find it compiled by this process before.

    Each device trains `chunk` of them at a time. `data` is placed on the program's devices.
    """
    batch = lanes, chunk
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), data)
    lengths = run_steps(program, task, data)
    devices = tuple(mesh.devices.flat)
    # The task's text, not its identity: what its functions close over may have changed since.
    leaves = {name: own[0] for name, own in stack(program, task, data).items()}
    predictions = "predictions" in program.record
    trial = functools.partial(program.spec.trial, branches=program.one_by_one)
    evaluated = evaluation.evaluated_by_program(task, data)
    computes = fingerprint(
        task, trial, leaves, lengths, data, sizes=(program.rows, evaluated), predictions=predictions
    )
    ways = program.microbatch, program.one_by_one
    decided = program.spec, program.record, ways, batch, lengths, devices
    key = (type(task), computes, evaluated, *decided, str(shapes), *flags.of_numbers().items())
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
    if not any(map(task.optimizer_uses_steps, program.trials)):
        return (1,)
    return tuple(sorted({_run_steps(trial, data) for trial in program.trials}))


def _run_steps(trial: Trial, data: Arrays) -> int:
    return trial.epochs * steps_per_epoch(batching.training_examples(data, trial), trial.batch_size)


def stack(program: Program, task: Task, data: Arrays) -> dict[str, np.ndarray]:
    """What differs between the trials of a program, (T,) each."""
    leaves = program.spec.leaves(program.trials)
    lengths = run_steps(program, task, data)
    if len(lengths) > 1:
        own = [lengths.index(_run_steps(trial, data)) for trial in program.trials]
        leaves[RUN_STEPS] = np.array(own, np.int32)
    return leaves


class _Traced:
    """The functions of one trial of a program, of its leaves."""

    def __init__(self, program: Program, task: Task, data: Arrays, block: int = 1) -> None:
        self.program, self.task, self.block = program, task, block
        self.lengths = run_steps(program, task, data)

    def _own(self, leaves: Leaves) -> tuple[Trial, Steps]:
        trial = self.program.spec.trial(leaves, branches=self.program.one_by_one)
        if len(self.lengths) == 1:
            return trial, self.lengths[0]
        return trial, Choice("steps", leaves[RUN_STEPS], self.lengths)

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
        return evaluation.evaluate(self.task, trial, state, record, first, last, data)

    def variables(self, leaves: Leaves, state: TrainState) -> Variables:
        trial, _ = self._own(leaves)
        return evaluation_variables(self.task, trial, state.variables, state.optimizer)

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


class LoweredProgram(NamedTuple):
    """The functions of a program, traced, before a compiler has seen them."""

    init: jax.stages.Lowered
    steps: jax.stages.Lowered
    evaluate: jax.stages.Lowered
    predict: jax.stages.Lowered | None
    variables: jax.stages.Lowered | None


def _compile(parts: Iterator[tuple[str, jax.stages.Lowered]], platform: str) -> CompiledProgram:
    """Each function while the next is being traced: JAX traces in Python, and XLA needs none."""
    options: dict[str, Mapping[str, str | bool | int]] = {"init": FAST_TO_COMPILE}
    if platform == "cpu":
        options |= {"evaluate": FORWARD, "predict": FORWARD}
    compiling: dict[str, Future[jax.stages.Compiled]] = {}
    with ThreadPoolExecutor(len(LoweredProgram._fields), "compile") as pool:
        for name, own in parts:
            if name == "steps" and platform == "cpu" and keeps_two_moments(own.args_info[0][1]):
                options["steps"] = FOR_UPDATES
            compiling[name] = pool.submit(compile_with, options.get(name, {}), own)
        made = {name: one.result() for name, one in compiling.items()}
    return CompiledProgram(
        made["init"], made["steps"], made["evaluate"], made.get("predict"), made.get("variables")
    )


def lowered(
    program: Program, task: Task, mesh: Mesh, data: Arrays, lanes: int, chunk: int
) -> LoweredProgram:
    """All functions of a program; see `lowered_in_turn`."""
    made = dict(lowered_in_turn(program, task, mesh, data, lanes, chunk))
    return LoweredProgram(
        made["init"], made["steps"], made["evaluate"], made.get("predict"), made.get("variables")
    )


def lowered_in_turn(
    program: Program, task: Task, mesh: Mesh, data: Arrays, lanes: int, chunk: int
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Trace a batch of `lanes` trials of a program, `chunk` at a time on each device of the mesh.

    One function after another, by name, as of `LoweredProgram`. Of `data`, only shapes and types
    are used.
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

    @one_at_a_time
    def shapes_of(function: jax.stages.Wrapped, *arguments: PyTree) -> PyTree:
        with precision.asked(precision.FLOAT32), traced_for(platform):
            made = function.trace(*arguments).out_info  # which JAX keeps for lowering it
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), made)

    state, record = shapes_of(init_jit, leaves, data)
    # What takes longest to compile comes first.
    stepped = leaves, state, record, number, number, number, data, number
    yield "steps", lower(steps_jit, *stepped, products=products)
    yield "init", lower(init_jit, leaves, data)
    left: dict[str, tuple[jax.stages.Wrapped, tuple[PyTree, ...]]] = {
        "evaluate": (evaluate_jit, (leaves, state, record, number, number, data, number))
    }
    if "predictions" in program.record:
        left["predict"] = predict_jit, (leaves, state, data)
    if _averages(traced, leaves, state):
        left["variables"] = batched(traced.variables, TRIALS, TRIALS), (leaves, state)
    for name, (function, arguments) in left.items():
        yield name, lower(function, *arguments, products=products)


@one_at_a_time
def _averages(traced: _Traced, leaves: PyTree, state: TrainState) -> bool:
    """Whether trials are evaluated at other parameters than those that are trained."""
    own = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (leaves, state))
    made = jax.make_jaxpr(traced.variables)(*own).jaxpr
    trained = made.invars[len(leaves) :]  # and the optimizer's state behind them
    return bool(made.outvars != trained[: len(made.outvars)])


def _without_axis(
    function: Callable[[dict[int, PyTree]], PyTree],
) -> Callable[[dict[int, PyTree]], PyTree]:
    """The function of one trial, for a leading axis of one."""

    def only(own: dict[int, PyTree]) -> PyTree:
        made = function(jax.tree.map(lambda a: a[0], own))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], made)  # or a number of Python

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
