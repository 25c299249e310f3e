"""Which hyperparameters matter: permutation importance in a random forest."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.words import capitalised
from jaxexp.report.figures.style import wants_log
from jaxexp.results import select
from jaxexp.results.select import number

LEAST = 12  # finished trials: with fewer, a forest is of no use
TRUSTED = 0.5  # out-of-bag R²: with less, the forest explains too little
TREES = 200


@dataclass(frozen=True)
class Importance:
    """How much each hyperparameter matters for a metric.

    Attributes:
        table: columns `name` and `drop`, the most important first; `drop` is how much the forest's
            R² drops when the values of this hyperparameter are permuted.
        r2: the forest's out-of-bag R².
        trials: how many trials it was fitted to.
        metric: what it predicts, in words.
    """

    table: pd.DataFrame
    r2: float
    trials: int
    metric: str

    @property
    def trusted(self) -> bool:
        """Whether the forest explains enough to be believed."""
        return self.r2 >= TRUSTED

    def __str__(self) -> str:
        """The method and its result, in two sentences."""
        method = (
            f"Permutation importance (Breiman 2001) in a random forest of {TREES} trees, fitted to "
            f"{number(self.trials)} finished trials, for {self.metric}; its out-of-bag R² is "
            f"{number(self.r2, 2)}."
        )
        if not self.trusted:
            return f"{method} The forest explains too little to be trusted."
        return (
            f"{method} {capitalised(select.words(str(self.table['name'].iloc[0])))} matters most."
        )


def importance(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> Importance | None:
    """How important each hyperparameter except seed and fold is for `metric` after the last epoch.

    This is permutation importance over the trials that each tree has not seen: L. Breiman, "Random
    Forests", Machine Learning 45 (2001), section 10. If lower is better and the metric spans
    decades, its logarithm is used. Returns None for fewer than 12 finished trials, for fewer than
    two hyperparameters, and if all trials end alike.
    """
    ranked = select.rank(ds, metric, split)
    ranked = ranked[(ranked["status"] == "finished") & np.isfinite(ranked["value"])].sort_index()
    several = [n for n in select.hyperparameters(ds) if ranked[n].nunique() > 1]
    names = [n for n in several if n not in select.REPLICATES]
    y_N = ranked["value"].to_numpy(float)
    if len(y_N) < LEAST or len(names) < 2 or np.ptp(y_N) == 0:
        return None
    logarithmic = wants_log(y_N) and select.direction(ds, metric) == "lower"
    y_N = np.log10(y_N) if logarithmic else y_N
    x_NxF = np.stack([_coded(ds, name, ranked[name]) for name in names], axis=1)
    there_NxF = np.stack([select.applies(ds, name)[ranked.index] for name in names], axis=1)
    r2, drops_F = _forest(x_NxF, y_N, there_NxF)
    made = pd.DataFrame({"name": names, "drop": drops_F})
    measured = select.metric_words(metric, split or select.default_split(ds))
    return Importance(
        table=made.sort_values("drop", ascending=False, kind="stable", ignore_index=True),
        r2=r2,
        trials=len(y_N),
        metric=f"the logarithm of the {measured}" if logarithmic else f"the {measured}",
    )


def _coded(ds: xr.Dataset, name: str, values: pd.Series) -> np.ndarray:
    """Numbers as they are, other values by their place in order, which is enough for trees."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(float)
    place = {value: i for i, value in enumerate(select.distinct(ds, name))}
    return values.map(place).to_numpy(float)


def _forest(x_NxF: np.ndarray, y_N: np.ndarray, there_NxF: np.ndarray) -> tuple[float, np.ndarray]:
    """The out-of-bag R² of a forest, and how much it drops when each column is permuted.

    Where a hyperparameter does nothing, its value is drawn from the trials where it does something:
    a common value would reveal its condition to the trees.
    """
    from sklearn.ensemble import RandomForestRegressor  # takes a second to import

    rng = np.random.default_rng(0)
    x_NxF = x_NxF.copy()
    for x_N, there_N in zip(x_NxF.T, there_NxF.T, strict=True):
        if not there_N.all() and there_N.any():
            x_N[~there_N] = rng.choice(x_N[there_N], int((~there_N).sum()))
    # Trees treat an impurity below an absolute threshold as zero.
    y_N = (y_N - y_N.mean()) / y_N.std()
    forest = RandomForestRegressor(TREES, bootstrap=True, min_samples_leaf=2, random_state=0)
    forest.fit(x_NxF, y_N)
    n, f = x_NxF.shape
    # Sums of the trees' predictions for trials that they have not seen: unchanged, and with each
    # column permuted.
    total_VxN, seen_N = np.zeros((f + 1, n)), np.zeros(n)
    for tree, sample in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        out = np.setdiff1d(np.arange(n), sample)
        if not out.size:
            continue
        x_VxMxF = np.repeat(x_NxF[None, out], f + 1, axis=0)
        for j in range(f):
            x_VxMxF[j + 1, :, j] = rng.permutation(x_NxF[out, j])
        total_VxN[:, out] += tree.predict(x_VxMxF.reshape(-1, f)).reshape(f + 1, -1)
        seen_N[out] += 1
    kept = seen_N > 0
    mean_VxN = total_VxN[:, kept] / seen_N[kept]
    error_V = ((mean_VxN - y_N[kept]) ** 2).mean(axis=1) / y_N[kept].var()
    return float(1 - error_V[0]), error_V[1:] - error_V[0]
