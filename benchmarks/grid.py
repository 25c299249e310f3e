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

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.execution.devices import cores, devices
from jaxexp.execution.program import RunningProgram, place
from jaxexp.reproduce.places import of as places_problem
from jaxexp.reproduce.tables import Places, load_places
from jaxexp.training.evaluation import with_evaluation

OURS, TRAINING = "jaxexp", "jaxexp, training alone"
Row = tuple[float, list[float], str]  # seconds of set-up, of epochs per trial, and a note


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
    rows = time_grid(places, rates, seeds, epochs, width)
    with console.status("") as status:
        for name, peer in others.items():
            status.update(name)
            rows[name] = _time_peer(peer, places, rates, seeds, width)
    console.print(_table(rows))


def time_grid(
    places: Places, rates: list[float], seeds: int, epochs: int, width: int
) -> dict[str, Row]:
    """Time epochs as users get them, and what of each the peers do too: the training.

    The rest is evaluation, of a sample of the training examples and of the two other splits.
    """
    sweep = jx.Sweep(
        jx.MLPTrial(width=width, epochs=epochs + 1),
        {"learning_rate": rates, "seed": range(seeds)},
    )
    planned = jx.plan(sweep, *places_problem(places), programs="one")
    [program] = planned.plan.programs
    started = time.perf_counter()
    mesh = Mesh([planned.devices[i] for i in program.devices], "trials")
    arrays = place(with_evaluation(planned.data), mesh)
    own = RunningProgram(program, planned.task, mesh, arrays)
    own.start()
    jax.block_until_ready(own.rest())
    setup = time.perf_counter() - started
    whole, training = [], []
    for _ in range(epochs):
        started = time.perf_counter()
        jax.block_until_ready(own.call(own.steps).record)
        training.append((time.perf_counter() - started) / len(program.trials))
        jax.block_until_ready(own.rest())
        whole.append((time.perf_counter() - started) / len(program.trials))
    return {
        OURS: (setup, whole, "as users run it: evaluated on every split after each epoch"),
        TRAINING: (setup, training, "the part of it that the others are timed for"),
    }


def _peers() -> dict[str, Callable]:
    try:
        from .peers import PEERS
    except ImportError as error:
        raise UserError(
            f"PyTorch cannot be imported ({error}): pip install 'jaxexp[torch]', or --no-peers"
        ) from error
    return PEERS


def _time_peer(peer: Callable, places: Places, rates: list[float], seeds: int, width: int) -> Row:
    from .peers import Workload

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


def _table(rows: dict[str, Row]) -> Table:
    table = Table("", "s per trial and epoch", "ratio", "set-up, s", "", box=None)
    ours = statistics.median(rows[TRAINING][1])
    for name, (setup, seconds, note) in rows.items():
        median = statistics.median(seconds)
        spread = f"{median:.4f} ({min(seconds):.4f} to {max(seconds):.4f})"
        table.add_row(name, spread, f"{median / ours:.2f}", f"{setup:.1f}", note)
    return table


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
