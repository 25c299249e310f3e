"""Searches compared: what each finds and takes, beside random search with as many epochs.

On scikit-learn's digits, and on the report's places where their files are given. Every search is
repeated with several seeds, which decide its points, its weights and its shuffles. A search chooses
the trial with the highest validation accuracy after the last epoch that the trial trained; the test
split is told, and decides nothing.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import jaxexp as jx
from jaxexp.execution.devices import cores
from jaxexp.reproduce.places import problem as places_problem

from .cold import nothing_compiled

AXES: dict[str | tuple[str, ...], object] = {
    "learning_rate": jx.search.loguniform(1e-4, 1e-1),
    "dropout": jx.search.uniform(0, 0.5),
}
METRIC, FACTOR = "accuracy", 3
Make = Callable[[int], jx.Results]  # a search, by its seed


@dataclass(frozen=True)
class Place:
    """Data, what is trained on them, and the trials that all points are drawn as."""

    name: str
    task: jx.Task | None
    data: jx.Data
    base: jx.MLPTrial
    trials: int

    def __str__(self) -> str:
        """What is compared, in a line."""
        base, counts = self.base, self.data.counts
        return (
            f"{self.name}: {counts['train']:,} examples, {counts['validation']:,} to choose by, "
            f"{counts['test']:,} to test; depth {base.depth}, width {base.width}, batches of "
            f"{base.batch_size}, {base.epochs} epochs"
        )

    def space(self, seed: int) -> jx.search.Space:
        """Learning rate and dropout: a population can change no others."""
        return jx.search.Space(self.base.replace(seed=1000 * seed), AXES)


@dataclass(frozen=True)
class Search:
    """How to run it by a seed, in words, and the name of the random search with as many epochs."""

    name: str
    words: str
    run: Make
    against: str = ""


@dataclass(frozen=True)
class Found:
    """By seed: seconds, those of all cores' work, epochs of all trials, and what was chosen.

    `first` are seconds with compilation.
    """

    search: Search
    first: float
    seconds: tuple[float, ...]
    busy: tuple[float, ...]
    epochs: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]


def compare(folder: Path | None, *, quick: bool = False) -> None:
    """Run every search with each seed, and print a table for each of the data.

    Raises UserError for a folder whose files cannot be read.
    """
    seeds = range(2 if quick else 5)
    given = list(places(folder, quick=quick))
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(
        f"Learning rate 1e-4 to 1e-1 (log) and dropout 0 to 0.5, {len(seeds)} seeds of each "
        f"search; {cores()} cores, JAX {jax.__version__}\n"
        "Chosen: the highest validation accuracy after a trial's last epoch",
        highlight=False,
    )
    if folder is None:
        console.print("Without the places, whose files are not given (--data)", highlight=False)
    for place in given:
        console.print(f"\n{place}", highlight=False)
        found = []
        with console.status("") as status:
            for search in searches(place):
                status.update(f"{place.name}: {search.name}")
                found.append(measure(search, seeds))
        console.print(table(found))


def places(folder: Path | None, *, quick: bool = False) -> Iterator[Place]:
    """The digits, and the places in the CSV files of `folder` if there is one."""
    given = None if folder is None else places_problem(jx.Inputs(data=folder))
    x_NxF, y_N = load_digits(return_X_y=True)
    digits = jx.arrays(x_NxF / 16, y_N, validation=0.2, test=0.2)
    base = jx.MLPTrial(depth=2, width=32, batch_size=64, epochs=3 if quick else 27)
    yield Place("digits", None, digits, base, 9 if quick else 81)
    if given is not None:
        base = jx.MLPTrial(depth=3, width=16, batch_size=256, epochs=3 if quick else 9)
        yield Place("places", given.task, given.data, base, 9 if quick else 27)


def searches(place: Place) -> list[Search]:
    """All points to the end, three searches that save epochs, and random ones that save as many."""
    epochs, trials = place.base.epochs, place.trials
    hyperband = jx.search.Hyperband(place.space(0), METRIC, factor=FACTOR)
    brackets = sum(size for size, _ in hyperband.brackets)
    few = round(_halved(trials, epochs) / epochs)
    more = round(sum(_bracket(size, rungs, epochs) for size, rungs in hyperband.brackets) / epochs)

    def random(trials: int) -> Make:
        return lambda seed: run(place, jx.search.random(place.space(seed), trials, seed=seed))

    def halving(seed: int) -> jx.Results:
        sweep = jx.search.random(place.space(seed), trials, seed=seed)
        return run(place, sweep, jx.search.Halving(METRIC, factor=FACTOR))

    def banded(seed: int) -> jx.Results:
        return run(place, jx.search.Hyperband(place.space(seed), METRIC, factor=FACTOR, seed=seed))

    def population(seed: int) -> jx.Results:
        return run(place, jx.search.PBT(place.space(seed), few, METRIC, seed=seed))

    each = f"× {epochs}"
    small, large = f"random, {few} points", f"random, {more} points"
    made = [
        Search("random, all points", f"{trials} {each}", random(trials), small),
        Search("halving", f"{trials} × 1 to {epochs}", halving, small),
        Search("population", f"{few} {each}", population, small),
        Search(small, f"{few} {each}", random(few)),
        Search("Hyperband", f"{brackets} × 1 to {epochs}", banded, large),
    ]
    return made if more == few else [*made, Search(large, f"{more} {each}", random(more))]


def run(
    place: Place, sweep: jx.Sweep | jx.search.Hyperband | jx.search.PBT,
    stopping: jx.search.Halving | None = None,
) -> jx.Results:  # fmt: skip
    """Without what a comparison does not need."""
    return jx.run(
        sweep, place.task, place.data, stopping=stopping, progress=False, keep_params=False
    )


def _halved(trials: int, epochs: int) -> int:
    """The epochs of all trials of a successive halving."""
    rungs = [rung for rung in jx.search.Halving(factor=FACTOR).rungs if rung < epochs]
    return _bracket(trials, tuple(rungs), epochs)


def _bracket(trials: int, rungs: tuple[int, ...], epochs: int) -> int:
    ends = itertools.pairwise([0, *rungs, epochs])
    return sum(max(1, trials // FACTOR**i) * (end - start) for i, (start, end) in enumerate(ends))


def measure(search: Search, seeds: range) -> Found:
    """Of each seed; the first is run once before, to compile."""
    rows = []
    with nothing_compiled():
        first, *_ = _timed(search, seeds[0])
        for seed in seeds:
            seconds, busy, results = _timed(search, seed)
            best = results.best(METRIC).curves
            ends = jx.select.final(best, METRIC)
            validation, test = (float(ends.sel(split=split)) for split in ("validation", "test"))
            rows.append((seconds, busy, int(results["epochs_trained"].sum()), validation, test))
    return Found(search, first, *zip(*rows, strict=True))


def _timed(search: Search, seed: int) -> tuple[float, float, jx.Results]:
    started, busy = time.perf_counter(), time.process_time()
    results = search.run(seed)
    return time.perf_counter() - started, time.process_time() - busy, results


def table(found: list[Found]) -> Table:
    """A row for each search; regret is what the best of all these runs has more."""
    made = Table(
        caption="Accuracies: mean ± standard deviation over the seeds. In brackets: from the least "
        "to the most. Regret: what the best of all these runs has more. Gain: over random points "
        "with as many epochs, seed by seed. Core s: the processor's work, whatever else it "
        "does beside."
    )
    titles = (
        "search", "trials × epochs", "epochs", "s", "core s", "s, compiling", "validation accuracy",
        "regret", "gain", "test accuracy",
    )  # fmt: skip
    for title in titles:
        made.add_column(title, justify="left" if title == "search" else "right")
    by_name = {own.search.name: np.array(own.validation) for own in found}
    known = max(float(values.max()) for values in by_name.values())
    for own in found:
        here, peer = by_name[own.search.name], by_name.get(own.search.against)
        made.add_row(
            own.search.name, own.search.words, f"{statistics.median(own.epochs):,.0f}",
            f"{statistics.median(own.seconds):.2f} ({min(own.seconds):.2f}–{max(own.seconds):.2f})",
            f"{statistics.median(own.busy):.2f}", f"{own.first:.1f}", _spread(here),
            _range(known - here),
            "" if peer is None else _range(here - peer, "+", " to "), _spread(np.array(own.test)),
        )  # fmt: skip
    return made


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _range(values: np.ndarray, sign: str = "", to: str = "–") -> str:
    low, mean, high = values.min(), values.mean(), values.max()
    return f"{mean:{sign}.3f} ({low:{sign}.3f}{to}{high:{sign}.3f})"
