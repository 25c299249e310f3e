"""Accelerators that are not here: their compilers, and what these say of the programs of a plan.

A TPU's compiler needs no TPU. It says how much memory a program takes there and what its steps are
made of; nothing here is measured on a device.
"""

import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding

from jaxexp.base.errors import UnavailableError, UserError
from jaxexp.base.words import count, did_you_mean
from jaxexp.execution.program import SHARED, lowered
from jaxexp.planning.programs import Plan, Program, size_text
from jaxexp.training.task import Arrays, Task

MAY_BE_USED = 0.9  # of a chip's memory: the rest is for what the runtime keeps
NO_WORK = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all", "iota"}
ASKS_HOST = ("infeed", "outfeed", "send", "recv", "send-to-host", "recv-from-host")


@dataclass(frozen=True)
class Target:
    """A kind of accelerator, and how many chips of it: the maker's figures, per chip."""

    name: str
    chips: int
    topology: str
    accelerator: str  # as its compiler wants to be told
    memory: float  # bytes
    bandwidth: float  # bytes per second, to and from this memory
    flops: float  # floating-point operations per second, factors in bfloat16

    @property
    def backend(self) -> str:
        """As JAX names it."""
        return "tpu" if self.topology else "gpu"

    @property
    def host_bounds(self) -> tuple[int, int, int]:
        """The chips of a host, along three axes."""
        across, along = self.topology.partition(":")[2].split("x")
        return int(across), int(along), 1


# Google's pages of TPU v5e and v6e: 16 and 32 GB of HBM, 819 and 1,640 GB/s, 197 and 918 TFLOP/s.
TARGETS = {
    target.name: target
    for target in (
        Target("tpu-v5e-1", 1, "v5e:1x1", "v5litepod-1", 16e9, 819e9, 197e12),
        Target("tpu-v5e-4", 4, "v5e:2x2", "v5litepod-4", 16e9, 819e9, 197e12),
        Target("tpu-v6e-1", 1, "v6e:1x1", "v6e-1", 32e9, 1640e9, 918e12),
        Target("tpu-v6e-4", 4, "v6e:2x2", "v6e-4", 32e9, 1640e9, 918e12),
        # NVIDIA's data sheets of the SXM forms, without sparsity. For these, nothing is compiled.
        Target("a100", 1, "", "", 80e9, 2039e9, 312e12),
        Target("h100", 1, "", "", 80e9, 3350e9, 989e12),
    )
}


def find(name: str) -> Target:
    """The target of this name.

    Raises UserError for a name that is not one of `TARGETS`.

    >>> find("tpu-v5e-4").chips
    4
    """
    if name not in TARGETS:
        raise UserError(
            f"target={name!r}: {did_you_mean(str(name), TARGETS)}expected one of "
            f"{', '.join(TARGETS)}"
        )
    return TARGETS[name]


@contextlib.contextmanager
def _told(target: Target) -> Iterator[None]:
    """While the compiler starts, it is told by the environment which machine it compiles for."""
    told = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask
        "TPU_ACCELERATOR_TYPE": target.accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache
def devices(target: Target) -> tuple[jax.Device, ...]:
    """Its chips, for which one can compile, and on which nothing runs.

    Raises UnavailableError where its compiler is not installed or does not start.
    """
    if not target.topology:
        raise UnavailableError(
            f"target={target.name!r}: nothing is compiled for GPUs that are not here; expected "
            "`nodes`, too, for a plan of which nothing is compiled"
        )
    try:
        with _told(target):
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=target.topology,
                chips_per_host_bounds=target.host_bounds,
            )
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"target={target.name!r}: its compiler cannot be used here ({reason}); it comes with "
            "pip install 'jaxexp[tpu]'"
        ) from error
    return tuple(found.devices)


@dataclass(frozen=True)
class Steps:
    """What a compiled function does in each turn of its loop, read off the compiler's text."""

    operations: int  # of one turn of the outermost loop: kernels, copies, and what else takes time
    inner_loops: int
    data_dependent: int  # loops within a turn whose end only the data decide
    asks_host: bool


@dataclass(frozen=True)
class Compilation:
    """What the compiler of a target says of one program; bytes are those of one chip."""

    program: Program  # trials at a time as its memory allows
    seconds: float  # to compile, on this machine
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int  # the larger of training and evaluating; arguments and results included
    step_flops: float  # of one chip and step
    step_bytes: float  # that a chip moves in a step, as its compiler counts them
    steps: Steps

    def fits(self, target: Target) -> bool:
        """Whether a chip has the memory that it takes."""
        return self.peak_bytes <= MAY_BE_USED * target.memory

    def bound(self, target: Target) -> str:
        """What limits a step at best, by the maker's figures: an estimate."""
        seconds = self.step_bytes / target.bandwidth, self.step_flops / target.flops
        limit = "memory" if seconds[0] >= seconds[1] else "arithmetic"
        return f"{max(seconds) * 1e6:.0f} µs by {limit}"


@dataclass(frozen=True)
class Compilations:
    """What the compiler of a target says of all programs of a plan: `print` it to see."""

    target: Target
    programs: tuple[Compilation, ...]

    def __str__(self) -> str:
        """One line per program."""
        target = self.target
        lines = [
            f"Compiled for {target.name} ({count(target.chips, 'chip')} of "
            f"{size_text(target.memory)}), which is not here: memory and operations are the "
            "compiler's word, the bound is an estimate from the maker's figures"
        ]
        return "\n".join([*lines, *map(self._line, self.programs)])

    def _line(self, made: Compilation) -> str:
        program = made.program
        share = made.peak_bytes / self.target.memory
        loops = "no loop that only the data end"
        if made.steps.data_dependent:
            loops = f"{count(made.steps.data_dependent, 'loop')} that only the data end"
        return (
            f"{count(len(program.trials), 'trial'):>12}, {program.chunk} at a time on each of "
            f"{count(len(program.devices), 'chip')}: compiled in {made.seconds:.1f} s; "
            f"{size_text(made.peak_bytes)} of a chip ({share:.0%}"
            f"{'' if made.fits(self.target) else ', TOO MUCH'}), "
            f"{size_text(made.argument_bytes)} of it arguments and "
            f"{size_text(made.temporary_bytes)} temporary; a step is {made.steps.operations} "
            f"operations, {'asks the host' if made.steps.asks_host else 'never asks the host'}, "
            f"{loops}, {made.bound(self.target)} at best"
        )


def compile_plan(plan: Plan, task: Task, arrays: Arrays, target: Target) -> Compilations:
    """Compile all programs of a plan for hardware that is not here.

    Of each program, the most trials at a time that the plan allows and a chip's memory holds:
    halved until the compiler's own figures fit. `arrays` are those of the data, of which only
    shapes and types are used.

    Raises UnavailableError where the compiler of the target is not installed.
    """
    chips = devices(target)
    made = [_compile(program, task, arrays, target, chips) for program in plan.programs]
    return Compilations(target, tuple(made))


def _compile(
    program: Program, task: Task, arrays: Arrays, target: Target, chips: Sequence[jax.Device]
) -> Compilation:
    while True:
        made = _compile_as_it_is(program, task, arrays, chips)
        if program.chunk == 1 or made.fits(target):
            return made
        program = dataclasses.replace(program, chunk=-(-program.chunk // 2))


def _compile_as_it_is(
    program: Program, task: Task, arrays: Arrays, chips: Sequence[jax.Device]
) -> Compilation:
    mesh = Mesh(np.array([chips[i] for i in program.devices]), ("trials",))
    shared = NamedSharding(mesh, SHARED)
    data = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=shared), arrays
    )
    started = time.perf_counter()
    traced = lowered(program, task, mesh, data, program.filled(), program.chunk)
    with _without_cache():
        traced.init.compile()
        steps, evaluate = traced.steps.compile(), traced.evaluate.compile()
    seconds = time.perf_counter() - started
    memory = [_memory(compiled) for compiled in (steps, evaluate)]
    costs = steps.cost_analysis() or {}
    largest = max(memory, key=lambda m: m["peak"])
    return Compilation(
        program=program,
        seconds=seconds,
        argument_bytes=largest["arguments"],
        temporary_bytes=largest["temporary"],
        peak_bytes=largest["peak"],
        step_flops=float(costs.get("flops", 0.0)),
        step_bytes=float(costs.get("bytes accessed", 0.0)),
        steps=read_steps(steps.as_text() or ""),
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Programs for absent hardware can be written to the compilation cache, but not be read."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    found = compiled.memory_analysis()
    if found is None:
        raise UnavailableError("the compiler does not say how much memory a program takes")
    arguments, temporary = found.argument_size_in_bytes, found.temp_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    peak = arguments + results + temporary + found.generated_code_size_in_bytes
    return {"arguments": int(arguments), "temporary": int(temporary), "peak": int(peak)}


def computations(text: str) -> dict[str, list[str]]:
    """The computations of a compiled module's text: the lines of each, by its name.

    >>> computations("%add (x: f32[]) -> f32[] {\\n  ROOT %y = f32[] negate(x)\\n}")
    {'add': ['ROOT %y = f32[] negate(x)']}
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif " = " in line:
            lines.append(line.strip())
    return found


def _operation(line: str) -> str:
    """What an instruction does: `add` of `%a.1 = f32[2]{0} add(…)`."""
    result = line.partition(" = ")[2]
    depth = 0
    for i, letter in enumerate(result):  # the type of a tuple has blanks and brackets of its own
        depth += (letter in "({[") - (letter in ")}]")
        if letter == " " and depth == 0:
            return re.split(r"[( ]", result[i + 1 :], maxsplit=1)[0]
    return ""


def read_steps(text: str) -> Steps:
    """What a turn of the outermost loop does; of several, of the one that does most.

    A loop inside a turn has a fixed end where its condition compares a number with a constant.
    """
    found = computations(text)

    def lines_of(name: str) -> Iterator[str]:
        """Of a computation, and of those that it calls."""
        for line in found.get(name, []):
            yield line
            if _operation(line) == "call" and (called := _named(line, "to_apply")):
                yield from lines_of(called)

    def loops(name: str) -> Iterator[tuple[str, str]]:
        """Conditions and bodies of the loops of a computation, and of the loops in these."""
        for line in lines_of(name):
            if _operation(line) == "while":
                condition, body = _named(line, "condition"), _named(line, "body")
                yield condition, body
                yield from loops(body)

    def steps(body: str) -> Steps:
        inner = list(loops(body))
        waits = sum(not _is_fixed(found, condition) for condition, _ in inner)
        lines = [line for name in (body, *(b for _, b in inner)) for line in lines_of(name)]
        asks = any(_operation(line).startswith(ASKS_HOST) for line in lines)
        work = sum(_operation(line) not in NO_WORK for line in lines_of(body))
        return Steps(work, len(inner), waits, asks)

    every = {body for name in found for _, body in loops(name)}
    inner = {body for name in every for _, body in loops(name)}
    made = [steps(body) for body in sorted(every - inner)]
    return max(made, key=lambda own: own.operations, default=Steps(0, 0, 0, False))


def _named(line: str, what: str) -> str:
    """The computation that an instruction names: `body=%this`."""
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _is_fixed(found: Mapping[str, Sequence[str]], condition: str) -> bool:
    """Whether a condition compares with a constant, so that no datum decides a loop's end."""
    lines = list(found.get(condition, []))
    called = [name for line in lines for name in re.findall(r"calls=%?([\w.\-]+)", line)]
    lines += [line for name in called for line in found.get(name, [])]
    constants = any(_operation(line) == "constant" for line in lines)
    reads = {
        match[1]
        for line in found.get(condition, [])
        if (match := re.search(r"get-tuple-element\(.*index=(\d+)", line))
    }
    return constants and len(reads) == 1
