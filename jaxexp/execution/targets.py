"""Accelerators that are not here: their compilers, and what these say of the programs of a plan.

The compilers of TPUs and of NVIDIA's GPUs need neither. They say how much memory a program takes
there and what its steps are made of; nothing here is measured on a device. For a GPU that is not
here, kernels are not chosen by timing them, as they are on one.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding

from jaxexp.base.errors import UnavailableError, UserError
from jaxexp.base.words import count, did_you_mean
from jaxexp.execution.compiling import SHARED, lowered, step_flops
from jaxexp.execution.hlo import Steps, read_steps
from jaxexp.planning.programs import Plan, Program, size_text
from jaxexp.spec.trial import PRECISIONS
from jaxexp.training.platform import traced_for
from jaxexp.training.task import Arrays, Task

MAY_BE_USED = 0.9  # of a chip's memory: the rest is for what the runtime keeps


@dataclass(frozen=True)
class Gpu:
    """What the compiler of NVIDIA's GPUs wants to know of one: the maker's figures."""

    description: str
    compute_capability: int
    multiprocessors: int
    lanes: int  # float32 units of each
    clock: float  # GHz
    shared: int  # bytes of shared memory of each
    cache: int  # bytes of the second level, of all

    def config(self, memory: float, bandwidth: float) -> str:
        """As XLA's `GpuTargetConfigProto` has it, in text, for CUDA 12.8 and cuDNN 9.7."""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.shared - 1024}
              threads_per_core_limit: 2048
              core_count: {self.multiprocessors}
              fpus_per_core: {self.lanes}
              block_dim_limit_x: {2**31 - 1}
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {int(bandwidth)}
              l2_cache_size: {self.cache}
              clock_rate_ghz: {self.clock}
              device_memory_size: {int(memory)}
              cuda_compute_capability {{ major: {self.compute_capability} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 7 }}
            runtime_version {{ major: 12 minor: 8 }}
            device_description_str: "{self.description}"
        """


@dataclass(frozen=True)
class Target:
    """A kind of accelerator, and how many chips of it: the maker's figures, per chip."""

    name: str
    chips: int
    topology: str
    accelerator: str | Gpu  # what its compiler wants to be told
    memory: float  # bytes
    bandwidth: float  # bytes per second, to and from this memory
    flops: tuple[float, float, float]  # a second; products in float32, tf32 and bfloat16

    @property
    def backend(self) -> str:
        """As JAX names it."""
        return "gpu" if isinstance(self.accelerator, Gpu) else "tpu"

    @property
    def unit(self) -> str:
        """One of its devices, in words."""
        return "GPU" if self.backend == "gpu" else "chip"

    def flops_of(self, precision: str) -> float:
        """Floating-point operations a second in products of a precision."""
        return self.flops[PRECISIONS.index(precision)]

    @property
    def host_bounds(self) -> tuple[int, int, int]:
        """The chips of a host, along three axes."""
        across, along = self.topology.partition(":")[2].split("x")
        return int(across), int(along), 1


# Google's pages of TPU v5e and v6e: 16 and 32 GB of HBM, 819 and 1,640 GB/s, 197 and 918 TFLOP/s in
# bfloat16, of which three products make one of finer factors, and six one of float32.
_V5E = 16e9, 819e9, (197e12 / 6, 197e12 / 3, 197e12)
_V6E = 32e9, 1640e9, (918e12 / 6, 918e12 / 3, 918e12)
# NVIDIA's data sheets of the SXM forms with 80 GB, without sparsity.
_A100 = Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 167_936, 40 << 20)
_H100 = Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 233_472, 50 << 20)
_OF_A100 = 80e9, 2039e9, (19.5e12, 156e12, 312e12)
_OF_H100 = 80e9, 3350e9, (67e12, 494e12, 989e12)
TARGETS = {
    target.name: target
    for target in (
        Target("tpu-v5e-1", 1, "v5e:1x1", "v5litepod-1", *_V5E),
        Target("tpu-v5e-4", 4, "v5e:2x2", "v5litepod-4", *_V5E),
        Target("tpu-v6e-1", 1, "v6e:1x1", "v6e-1", *_V6E),
        Target("tpu-v6e-4", 4, "v6e:2x2", "v6e-4", *_V6E),
        Target("a100", 1, "1x1x1", _A100, *_OF_A100),
        Target("a100-8", 8, "1x1x8", _A100, *_OF_A100),
        Target("h100", 1, "1x1x1", _H100, *_OF_H100),
        Target("h100-8", 8, "1x1x8", _H100, *_OF_H100),
    )
}


def find(name: str) -> Target:
    """The target of this name.

    Raises UserError for what is not one of the names of `TARGETS`.

    >>> find("tpu-v5e-4").chips
    4
    """
    if not isinstance(name, str) or name not in TARGETS:
        raise UserError(
            f"target={name!r}: {did_you_mean(str(name), TARGETS)}expected one of "
            f"{', '.join(TARGETS)}"
        )
    return TARGETS[name]


@contextlib.contextmanager
def _told(target: Target) -> Iterator[None]:
    """While the compiler starts, it is told by the environment which machine it compiles for."""
    if isinstance(target.accelerator, Gpu):
        told = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # libraries of CUDA need not be here
    else:
        told = {
            "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask
            "TPU_ACCELERATOR_TYPE": target.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # one process at a time may use chips, but compile
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
    try:
        with _told(target):
            if isinstance(target.accelerator, Gpu):
                config = target.accelerator.config(target.memory, target.bandwidth)
                found = topologies.get_topology_desc(
                    platform="cuda", topology=target.topology, target_config=config
                )
            else:
                found = topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=target.topology,
                    chips_per_host_bounds=target.host_bounds,
                )
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"target={target.name!r}: its compiler cannot be used here ({reason}); it comes with "
            f"pip install 'jaxexp[{target.backend}]'"
        ) from error
    return tuple(found.devices)


@dataclass(frozen=True)
class Compilation:
    """What the compiler of a target says of one program; bytes are those of one chip."""

    program: Program  # trials at a time as its memory allows
    seconds: float  # to compile, on this machine
    argument_bytes: int
    temporary_bytes: int
    code_bytes: int
    peak_bytes: int  # of all these and results, of the function that takes most
    step_flops: float  # of one chip, in the products of a step
    steps: Steps

    def fits(self, target: Target) -> bool:
        """Whether a chip has the memory that it takes."""
        return self.peak_bytes <= MAY_BE_USED * target.memory

    def bound(self, target: Target) -> str:
        """What limits a step at best, by its text and the maker's figures: an estimate."""
        flops = target.flops_of(self.program.trials[0].matmul_precision)
        seconds = self.steps.bytes / target.bandwidth, self.step_flops / flops
        limit = "memory" if seconds[0] >= seconds[1] else "arithmetic"
        micros = Decimal(f"{max(seconds) * 1e6:.2g}")  # two digits, written without an exponent
        return f"{micros:,f} µs by {limit}"


@dataclass(frozen=True)
class Compilations:
    """What the compiler of a target says of all programs of a plan: `print` it to see."""

    target: Target
    programs: tuple[Compilation, ...]

    def __str__(self) -> str:
        """One line per program."""
        target = self.target
        lines = [
            f"Compiled for {target.name} ({count(target.chips, target.unit)} of "
            f"{size_text(target.memory)}), which is not here: memory and operations are the "
            "compiler's word, the bound is an estimate from the maker's figures"
        ]
        return "\n".join([*lines, *map(self._line, self.programs)])

    def _line(self, made: Compilation) -> str:
        program = made.program
        share = made.peak_bytes / self.target.memory
        where = f"a {self.target.unit}"
        if len(program.devices) > 1:
            where = f"each of {len(program.devices)} {self.target.unit}s"
        loops = "no loop that only the data end"
        if made.steps.data_dependent:
            loops = f"{count(made.steps.data_dependent, 'loop')} that only the data end"
        return (
            f"{count(len(program.trials), 'trial'):>12}, {program.chunk} at a time on {where}: "
            f"compiled in {made.seconds:.1f} s; "
            f"{size_text(made.peak_bytes)} of a {self.target.unit} ({share:.0%}"
            f"{'' if made.fits(self.target) else ', TOO MUCH'}), "
            f"{size_text(made.argument_bytes)} of it arguments, "
            f"{size_text(made.temporary_bytes)} temporary and {size_text(made.code_bytes)} code; "
            f"a step is {made.steps.operations} operations, "
            f"{'asks the host' if made.steps.asks_host else 'never asks the host'}, {loops}, "
            f"{made.bound(self.target)} at best"
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
        made = {name: own.compile() for name, own in traced._asdict().items() if own is not None}
    seconds = time.perf_counter() - started
    largest = max(map(_memory, made.values()), key=lambda memory: memory["peak_bytes"])
    with traced_for(chips[0].platform):
        flops = step_flops(program, task, data) * program.chunk
    chunked = program.filled() > program.chunk * len(program.devices)
    steps = read_steps(made["steps"].as_text() or "", chips[0].platform, chunked=chunked)
    return Compilation(program, seconds, **largest, step_flops=flops, steps=steps)


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
    own = {
        "argument_bytes": int(found.argument_size_in_bytes),
        "temporary_bytes": int(found.temp_size_in_bytes),
        "code_bytes": int(found.generated_code_size_in_bytes),
    }
    results = int(found.output_size_in_bytes - found.alias_size_in_bytes)
    return {**own, "peak_bytes": sum(own.values()) + results}
