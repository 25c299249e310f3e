"""Timing a grid beside its peers: the same work, in one run, compilation and warm-up apart."""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from jaxexp.base.errors import UserError
from jaxexp.execution.devices import cores, devices
from jaxexp.execution.program import Run, place
from jaxexp.planning.plan import plan
from jaxexp.reproduce.places import problem as places_problem
from jaxexp.reproduce.tables import Places, load_places
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial

OURS = "jaxexp"


def compare(
    folder: Path | None, *, trials: int, seeds: int, epochs: int, width: int, peers: bool
) -> None:
    """Time a grid of learning rates × seeds and print a table of ratios.

    Raises UserError if the trials are not a multiple of the seeds, or PyTorch is asked for and
    missing.
    """
    if trials % seeds:
        raise UserError(f"--trials {trials}: expected a multiple of --seeds {seeds}")
    rates = [float(rate) for rate in np.logspace(-4, -2, trials // seeds)]
    others = _peers() if peers else {}
    places = load_places(folder)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        f"{trials} trials ({len(rates)} learning rates × {seeds} seeds), depth 6, width {width}, "
        f"batch 256, {len(places.train.y_N):,} examples; {cores()} cores ({_processor()}), "
        f"JAX {jax.__version__}, {devices()[0].device_kind}",
        highlight=False,
    )
    rows = {OURS: time_grid(places, rates, seeds, epochs, width)}
    with console.status("") as status:
        for name, peer in others.items():
            status.update(name)
            rows[name] = _time_peer(peer, places, rates, seeds, width)
    console.print(_table(rows))


def time_grid(
    places: Places, rates: list[float], seeds: int, epochs: int, width: int
) -> tuple[float, list[float], str]:
    """Seconds of compilation and first call, seconds per trial of each later epoch, and a note.

    An epoch is what users get: training, and evaluation on the two other splits.
    """
    problem = places_problem(places)
    sweep = Sweep(
        base=MLPTrial(width=width, epochs=epochs + 1),
        axes={"learning_rate": rates, "seed": list(range(seeds))},
    )
    made = plan([sweep], len(devices()), problem.examples)
    [program] = made.programs
    started = time.perf_counter()
    mesh = Mesh([devices()[i] for i in program.devices], "trials")
    run = Run(program, problem.task, mesh, place(problem.data, mesh))
    run.start()
    jax.block_until_ready(run.rest())
    setup = time.perf_counter() - started
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        jax.block_until_ready(run.rest())
        seconds.append((time.perf_counter() - started) / len(program.trials))
    return setup, seconds, "as users run it: evaluation on two more splits included"


def _peers() -> dict[str, Callable]:
    try:
        from benchmarks.peers import PEERS
    except ImportError as error:
        raise UserError(
            f"PyTorch cannot be imported ({error}): pip install 'jaxexp[torch]', or --no-peers"
        ) from error
    return PEERS


def _time_peer(
    peer: Callable, places: Places, rates: list[float], seeds: int, width: int
) -> tuple[float, list[float], str]:
    from benchmarks.peers import Workload

    work = Workload(
        places.train.x_Nx2,
        places.train.y_N,
        len(places.classes),
        learning_rates=tuple(rate for rate in rates for _ in range(seeds)),
        seeds=tuple(range(seeds)) * len(rates),
        width=width,
    )
    try:
        timing = peer(work)
    except RuntimeError as error:  # no compiler, say: the others are worth showing
        return float("nan"), [float("nan")], f"not available: {error}"
    return timing.setup_s, list(timing.epoch_s), timing.note


def _table(rows: dict[str, tuple[float, list[float], str]]) -> Table:
    table = Table("", "s per trial and epoch", "ratio", "set-up, s", "", box=None)
    ours = statistics.median(rows[OURS][1])
    for name, (setup, seconds, note) in rows.items():
        median = statistics.median(seconds)
        spread = f"{median:.4f} ({min(seconds):.4f} to {max(seconds):.4f})"
        table.add_row(name, spread, f"{median / ours:.1f}", f"{setup:.1f}", note)
    return table


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
