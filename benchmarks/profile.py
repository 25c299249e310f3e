"""What a training step is made of: operations of its compiled program, timed by JAX's profiler."""

import collections
import gzip
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from jaxexp.api import PlannedRun
from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.execution.devices import cores
from jaxexp.execution.hlo import computations
from jaxexp.execution.program import RunningProgram, place
from jaxexp.training.evaluation import with_evaluation

SHOWN = 24  # rows; the others are one
SECONDS = 2.0  # of training that is traced, about
PEAK_SIZE, PEAK_ROUNDS = 1024, 5


@dataclass
class Operation:
    """Instructions of a compiled program that do the same for the same line of the model."""

    what: str  # "dot", "fusion" …
    source: str  # what JAX calls it, shortened
    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0  # of all calls, those of products
    names: set[str] = field(default_factory=set)


def profile(planned: PlannedRun) -> None:
    """Trace steps of the largest program of a plan for one device: print what they are made of.

    Raises UserError for a plan without a program of more than one step.
    """
    program = max(planned.plan.programs, key=lambda p: p.estimate.seconds)
    [device] = planned.devices
    mesh = Mesh([device], "trials")
    run = RunningProgram(program, planned.task, mesh, place(with_evaluation(planned.data), mesh))
    started = time.perf_counter()
    run.start()
    compiling = time.perf_counter() - started
    steps, seconds, events = _traced(run)
    compiled = cast(jax.stages.Compiled, run.compiled.steps)
    text = compiled.as_text() or ""
    found = summed(events, operations(text))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        f"{count(len(program.trials), 'trial')}, {program.why()}; {count(steps, 'step')} of one "
        f"epoch on one {device.device_kind} device, {1e6 * seconds / steps:.0f} µs a step, "
        f"{1e6 * seconds / steps / len(program.trials):.1f} µs a step and trial; compiled in "
        f"{compiling:.1f} s; JAX {jax.__version__}",
        highlight=False,
    )
    console.print(table(found, steps, seconds, peak(device)))


def _traced(run: RunningProgram) -> tuple[int, float, list[dict[str, Any]]]:
    """Steps, their seconds, and the events of their trace; a first call warms up."""
    if run.steps < 2:
        raise UserError("--profile: expected trials of two steps an epoch at least")
    few = max(1, min(4, run.steps // 2))
    jax.block_until_ready(run.call(few).record)
    started = time.perf_counter()
    if run.step + few < run.steps:
        jax.block_until_ready(run.call(few).record)
    each = max(1e-6, (time.perf_counter() - started) / few)
    steps = max(1, min(run.steps - run.step, int(SECONDS / each)))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            jax.block_until_ready(run.call(steps).record)
            seconds = time.perf_counter() - started
        [file] = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return steps, seconds, events


def operations(text: str) -> dict[str, Operation]:
    """The instructions of a compiled module's text, by name, with the arithmetic of their products.

    >>> made = operations('''
    ... %f (p: f32[4,8], q: f32[8,2]) -> f32[4,2] {
    ...   %p = f32[4,8]{1,0} parameter(0)
    ...   %q = f32[8,2]{1,0} parameter(1)
    ...   ROOT %d = f32[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
    ... }''')
    >>> made["d"].what, made["d"].flops
    ('dot', 128)
    >>> made = operations('''
    ... %f (p: f32[2,6,6,3], q: f32[3,3,3,8]) -> f32[2,4,4,8] {
    ...   %p = f32[2,6,6,3]{3,2,1,0} parameter(0)
    ...   %q = f32[3,3,3,8]{3,2,1,0} parameter(1)
    ...   ROOT %c = f32[2,4,4,8]{3,2,1,0} convolution(%p, %q), dim_labels=b01f_01io->b01f
    ... }''')
    >>> made["c"].flops == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)
    True
    """
    found: dict[str, Operation] = {}
    called: dict[str, list[str]] = {}
    flops: dict[str, float] = collections.defaultdict(float)
    for computation, lines in computations(text).items():
        shapes = {m[1]: _sizes(m[2]) for line in lines if (m := _INSTRUCTION.match(line))}
        for line in lines:
            named = _INSTRUCTION.match(line)
            if named is None:
                continue
            what = named[3]
            own = 2 * math.prod(_sizes(named[2])) * _summed_over(line, what, shapes)
            source = re.search(r'op_name="([^"]*)"', line)
            found[named[1]] = Operation(what, _shortened(source[1] if source else ""), flops=own)
            flops[computation] += own
            called[named[1]] = re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
    for name, inside in called.items():
        if found[name].what in ("fusion", "call", "custom-call"):
            found[name].flops += sum(flops[computation] for computation in inside)
    return found


def _summed_over(line: str, what: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many products each number of the result is a sum of; 0 for what is no product.

    Of a convolution, those with the zeros of padding and dilation are among them.
    """
    operands = re.findall(r"%([\w.\-]+)", line.partition(f" {what}(")[2].partition(")")[0])
    if what == "dot" and (contracted := re.search(r"lhs_contracting_dims={([\d,]*)}", line)):
        left = shapes[operands[0]]
        return math.prod(left[int(i)] for i in contracted[1].split(",") if i)
    if what == "convolution" and (labels := re.search(r"dim_labels=\w+_(\w+)->", line)):
        kernel = zip(shapes[operands[1]], labels[1], strict=True)  # o: the features of the result
        return math.prod(size for size, label in kernel if label != "o")
    return 0


_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = \(?(\w+\[[\d,]*\]).*? ([\w\-]+)\(")


def _sizes(written: str) -> list[int]:
    return [int(size) for size in written.partition("[")[2].rstrip("]").split(",") if size]


def _shortened(source: str) -> str:
    """Without what stands before the loss or the optimizer: "jvp(Net)/dot_general" and the like."""
    parts = [
        part for part in source.split("/") if not re.match(r"(jit|vmap|while|body|closed)", part)
    ]
    return "/".join(parts[-3:])


def summed(events: Iterable[Mapping[str, Any]], known: Mapping[str, Operation]) -> list[Operation]:
    """The time of each operation without those inside it, the longest first.

    `events` are those of a trace: with their thread, begin and duration in µs.
    """
    threads: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for event in events:
        if "hlo_op" in event.get("args", {}) and "dur" in event:
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    made: dict[tuple[str, str], Operation] = {}
    for own in threads.values():
        own.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_events: list[tuple[float, Operation]] = []  # when each ends
        for event in own:
            name = event["args"]["hlo_op"]
            operation = known.get(name, Operation(name.partition(".")[0], ""))
            key = operation.what, operation.source
            entry = made.setdefault(key, Operation(*key))
            while open_events and open_events[-1][0] <= event["ts"]:
                open_events.pop()
            if open_events:
                open_events[-1][1].seconds -= event["dur"] / 1e6
            open_events.append((event["ts"] + event["dur"], entry))
            entry.calls += 1
            entry.seconds += event["dur"] / 1e6
            entry.flops += operation.flops
            entry.names.add(name)
    return sorted(made.values(), key=lambda entry: -entry.seconds)


def table(found: Sequence[Operation], steps: int, seconds: float, peak_flops: float) -> Table:
    """A row for each kind of operation, for what no operation took, and for all."""
    made = Table(
        caption=f"GFLOP/s of products alone; a product of {PEAK_SIZE} × {PEAK_SIZE} here: "
        f"{peak_flops / 1e9:.0f} GFLOP/s a device. Where operations overlap, less than nothing is "
        "between them."
    )
    numbers = ("instructions", "calls a step", "µs a step", "share", "GFLOP/s")
    for title in ("operation", "of", *numbers):
        made.add_column(title, justify="right" if title in numbers else "left")

    def row(what: str, source: str, names: str, calls: str, own: float, flops: float) -> None:
        rate = f"{flops / own / 1e9:.0f}" if flops and own > 0 else ""
        made.add_row(
            what, source, names, calls, f"{1e6 * own / steps:.1f}", f"{own / seconds:.1%}", rate
        )

    for entry in found[:SHOWN]:
        calls = f"{entry.calls / steps:.3g}"
        row(entry.what, entry.source, str(len(entry.names)), calls, entry.seconds, entry.flops)

    def total(what: str, entries: Sequence[Operation]) -> None:
        own, flops = (sum(getattr(e, name) for e in entries) for name in ("seconds", "flops"))
        row(what, "", "", "", own, flops)

    if rest := found[SHOWN:]:
        total(f"{len(rest)} others", rest)
    made.add_section()
    total("products", [entry for entry in found if entry.flops])
    total("no product", [entry for entry in found if not entry.flops])
    row("between operations", "", "", "", seconds - sum(entry.seconds for entry in found), 0)
    row("a step", "", "", "", seconds, sum(entry.flops for entry in found))
    return made


def peak(device: jax.Device) -> float:
    """FLOP/s of a large product in float32 on one device: the best of some rounds.

    On a CPU, whose devices are cores, a large product takes all of them: it is shared among them.
    """
    with jax.default_device(device):
        rng = np.random.default_rng(0)
        left = jnp.asarray(rng.normal(size=(PEAK_SIZE, PEAK_SIZE)), jnp.float32)
        product = jax.jit(lambda a: a @ a)
        product(left).block_until_ready()
        times = []
        for _ in range(PEAK_ROUNDS):
            started = time.perf_counter()
            product(left).block_until_ready()
            times.append(time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / min(times) / (cores() if device.platform == "cpu" else 1)
