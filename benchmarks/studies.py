"""One Optuna study three ways: by `jx.search.optuna`, and by Optuna's own loop with two libraries.

The same sampler with the same seed, space, network, optimizer, epochs and batch size, on
scikit-learn's digits. The peers report no epochs to the study, which spares them evaluating.
"""

import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import jaxexp as jx
from jaxexp.execution.devices import cores

RATES, WIDTHS, DEPTH, BATCH_SIZE = (1e-4, 1e-1), range(16, 65, 16), 2, 64
Fit = Callable[[float, int], float]  # of a learning rate and a width, the validation accuracy


@dataclass(frozen=True)
class Timing:
    """Trials per second of each round, the best value found, and how it was run."""

    rounds: tuple[float, ...]
    best: float
    note: str
    first: float | None = None  # trials per second with compilation


def compare(*, quick: bool = False) -> None:
    """Time the three and print a table of trials per second and ratios."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    epochs, batch, rounds, probes, trials = (3, 8, 1, 2, 4) if quick else (20, 64, 3, 8, 32)
    digits = load_digits()
    data = jx.arrays(digits.data / 16, digits.target, validation=0.2)
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(
        f"TPE over a learning rate and a width (16, 32, 48, 64), depth {DEPTH}, {epochs} epochs, "
        f"batches of {BATCH_SIZE} of {data.counts['train']:,} digits; {cores()} cores, "
        f"JAX {jax.__version__}, "
        f"PyTorch {torch.__version__}, Optuna {optuna.__version__}",
        highlight=False,
    )
    with console.status("") as status, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # all train for as many epochs
        status.update("jaxexp")
        found = {f"jaxexp, {batch} at once": ours(data, epochs, batch, rounds)}
        for name, peer in (("PyTorch", pytorch), ("scikit-learn", sklearn)):
            status.update(name)
            found[f"Optuna, {name}"] = theirs(peer(data, epochs), probes, trials, rounds)
    console.print(table(found))


def study() -> optuna.Study:
    """The same for all."""
    return optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )


def ours(data: jx.Data, epochs: int, batch: int, rounds: int) -> Timing:
    """The first batch compiles; each of the rounds is the next of the same study."""
    base = jx.MLPTrial(depth=DEPTH, epochs=epochs, batch_size=BATCH_SIZE)
    axes: dict[str | tuple[str, ...], object] = {
        "learning_rate": jx.search.loguniform(*RATES),
        "width": jx.search.integers(WIDTHS[0], WIDTHS[-1], step=WIDTHS.step),
    }
    space, own = jx.search.Space(base, axes), study()
    speeds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        jx.search.optuna(
            own, space, data=data, trials=batch, batch=batch, metric="accuracy", progress=False
        )
        speeds.append(batch / (time.perf_counter() - started))
    first, *rest = speeds
    return Timing(tuple(rest), own.best_value, f"{batch} trials a round", first)


def theirs(fit: tuple[Fit, list[int]], probes: int, trials: int, rounds: int) -> Timing:
    """`Study.optimize`, with as many jobs (threads) as are fastest, each round a study anew."""
    train, threads = fit

    def speed(count: int, jobs: int) -> tuple[float, float]:
        own, started = study(), time.perf_counter()
        own.optimize(
            lambda trial: train(
                trial.suggest_float("learning_rate", *RATES, log=True),
                trial.suggest_int("width", WIDTHS[0], WIDTHS[-1], step=WIDTHS.step),
            ),
            n_trials=count,
            n_jobs=jobs,
        )
        return count / (time.perf_counter() - started), own.best_value

    before = torch.get_num_threads()
    found = {}
    try:
        for jobs, own in itertools.product(sorted({1, cores()}), threads):
            torch.set_num_threads(own)
            found[jobs, own] = speed(probes, jobs)[0]
        jobs, own = max(found, key=found.__getitem__)
        torch.set_num_threads(own)
        made = [speed(trials, jobs) for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    note = f"{trials} trials a round, n_jobs={jobs}, the faster of {sorted({1, cores()})}"
    if len(threads) > 1:
        note += f", {own} thread(s)"
    return Timing(tuple(one for one, _ in made), max(best for _, best in made), note)


def sklearn(data: jx.Data, epochs: int) -> tuple[Fit, list[int]]:
    """`MLPClassifier`: Adam, without a penalty, for all epochs."""
    assert data.validation is not None
    train, validation = data.train, data.validation

    def fit(rate: float, width: int) -> float:
        model = MLPClassifier(
            (width,) * DEPTH, alpha=0.0, batch_size=BATCH_SIZE, learning_rate_init=rate,
            max_iter=epochs, tol=0.0, n_iter_no_change=epochs + 1, random_state=0,
        )  # fmt: skip
        model.fit(train.x, train.y)
        return float(model.score(validation.x, validation.y))

    return fit, [1]


def pytorch(data: jx.Data, epochs: int) -> tuple[Fit, list[int]]:
    """Eager, with resident tensors and a fused Adam; its own threads are chosen, too."""
    assert data.validation is not None
    x, y = (torch.tensor(np.asarray(a)) for a in (data.train.x, data.train.y))
    held, labels = (torch.tensor(np.asarray(a)) for a in (data.validation.x, data.validation.y))
    y, labels = y.long(), labels.long()

    def fit(rate: float, width: int) -> float:
        sizes = [x.shape[1], *[width] * DEPTH]
        layers: list[torch.nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
        adam = torch.optim.Adam(model.parameters(), rate, fused=True)
        for _ in range(epochs):
            for rows in torch.randperm(len(y)).split(BATCH_SIZE):
                adam.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                adam.step()
        with torch.no_grad():
            return float((model(held).argmax(1) == labels).float().mean())

    return fit, sorted({1, cores()})


def table(found: dict[str, Timing]) -> Table:
    """A row for each, ratios of medians: ours over theirs."""
    made = Table()
    for title in ("", "trials/s", "spread", "×", "with compilation", "×", "best", "how"):
        made.add_column(title, justify="left" if title in ("", "how") else "right")
    reference = next(iter(found.values()))
    ours = statistics.median(reference.rounds)
    for name, own in found.items():
        median = statistics.median(own.rounds)
        itself = own is reference
        made.add_row(
            name, f"{median:.1f}", f"{min(own.rounds):.1f}–{max(own.rounds):.1f}",
            "" if itself else f"{ours / median:.1f}",
            f"{own.first:.1f}" if own.first else "",
            "" if itself else f"{(reference.first or ours) / median:.1f}",
            f"{own.best:.3f}", own.note,
        )  # fmt: skip
    return made
