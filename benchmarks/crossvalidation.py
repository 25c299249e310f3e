"""A cross-validated search of a perceptron: `VectorizedSearchCV` beside scikit-learn's own.

The same candidates, folds, network, initial weights, solver, epochs and batch size; scikit-learn
in as many processes as there are cores.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sklearn
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.preprocessing import StandardScaler

from jaxexp.execution.devices import cores
from jaxexp.reproduce.tables import load_places
from jaxexp.sklearn import MLPClassifier, VectorizedSearchCV

from .cold import nothing_compiled

CANDIDATES, FOLDS = 16, 5


@dataclass(frozen=True)
class Case:
    """Data, and the network that is trained on them."""

    name: str
    X_NxF: np.ndarray
    y_N: np.ndarray
    sizes: tuple[int, ...]
    batch_size: int
    epochs: int

    @property
    def options(self) -> dict[str, Any]:
        """Of both estimators: every epoch is trained."""
        return {
            "hidden_layer_sizes": self.sizes, "batch_size": self.batch_size,
            "max_iter": self.epochs, "tol": 0.0, "n_iter_no_change": 10**6, "random_state": 0,
        }  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, of the first with compilation, and the best mean score found."""

    rounds: tuple[float, ...]
    first: float | None
    best: float


def compare(data: Path | None = None, *, quick: bool = False) -> None:
    """Time both on each of the data and print a table of seconds, ratios and scores."""
    rounds, candidates = (1, 2) if quick else (3, CANDIDATES)
    rates = np.geomspace(1e-4, 1e-1, candidates).tolist()
    folds = 2 if quick else FOLDS
    cv = StratifiedKFold(folds, shuffle=True, random_state=0)
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(
        f"{candidates} learning rates × {folds} folds, Adam; {cores()} cores, "
        f"JAX {jax.__version__}, scikit-learn {sklearn.__version__} (n_jobs=-1)",
        highlight=False,
    )
    made = Table()
    for title in ("data", "network", "jaxexp, s", "scikit-learn, s", "×", "with compilation, s",
                  "×", "best", "best"):  # fmt: skip
        made.add_column(title, justify="left" if title in ("data", "network") else "right")
    with console.status("") as status, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of epochs that are over
        for case in cases(data, quick):
            status.update(case.name)
            ours, theirs = timed(case, {"learning_rate_init": rates}, cv, rounds)
            made.add_row(*row(case, ours, theirs))
    console.print(made)


def cases(data: Path | None, quick: bool) -> list[Case]:
    """The data: two of scikit-learn's, and places."""
    digits, cancer = load_digits(), load_breast_cancer()
    scaled = StandardScaler().fit_transform(cancer.data)
    own = load_places(data).train
    n = 2000 if quick else len(own.y_N)
    epochs = (2, 2, 2) if quick else (50, 100, 5)
    return [
        Case("digits", digits.data / 16, digits.target, (32, 32), 64, epochs[0]),
        Case("breast cancer", scaled, cancer.target, (32, 32), 64, epochs[1]),
        Case("places", own.x_Nx2[:n], own.y_N[:n], (16,) * 6, 256, epochs[2]),
    ]


def timed(
    case: Case, grid: dict[str, list[float]], cv: StratifiedKFold, rounds: int
) -> tuple[Timing, Timing]:
    """Both, in turn; ours once more before, with compilation, and theirs with its processes up."""

    def once(make: Callable[[], BaseEstimator]) -> tuple[float, float]:
        started = time.perf_counter()
        found = make().fit(case.X_NxF, case.y_N).cv_results_["mean_test_score"]
        return time.perf_counter() - started, float(found.max())

    def ours() -> BaseEstimator:
        return VectorizedSearchCV(MLPClassifier(**case.options), grid, cv=cv, refit=False)

    def theirs() -> BaseEstimator:
        return GridSearchCV(TheirClassifier(**case.options), grid, cv=cv, refit=False, n_jobs=-1)

    few = TheirClassifier(**case.options | {"max_iter": 1})
    GridSearchCV(few, {"alpha": [0.1, 0.2]}, cv=cv, n_jobs=-1).fit(case.X_NxF, case.y_N)
    with nothing_compiled():
        first, _ = once(ours)
        found = [(once(ours), once(theirs)) for _ in range(rounds)]
    mine, own = zip(*found, strict=True)
    return (
        Timing(tuple(s for s, _ in mine), first, max(best for _, best in mine)),
        Timing(tuple(s for s, _ in own), None, max(best for _, best in own)),
    )


def row(case: Case, ours: Timing, theirs: Timing) -> tuple[str, ...]:
    """Medians with their ranges; ratios of medians, theirs over ours."""
    mine, own = statistics.median(ours.rounds), statistics.median(theirs.rounds)
    assert ours.first is not None

    def seconds(timing: Timing) -> str:
        low, high = min(timing.rounds), max(timing.rounds)
        return f"{statistics.median(timing.rounds):.2f} ({low:.2f}–{high:.2f})"

    network = (
        f"{'-'.join(map(str, case.sizes))}, {case.epochs} epochs, batches of {case.batch_size}"
    )
    return (
        f"{case.name}, {len(case.y_N):,} × {case.X_NxF.shape[1]}", network, seconds(ours),
        seconds(theirs), f"{own / mine:.1f}", f"{ours.first:.1f}", f"{own / ours.first:.1f}",
        f"{ours.best:.4f}", f"{theirs.best:.4f}",
    )  # fmt: skip
