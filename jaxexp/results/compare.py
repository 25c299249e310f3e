"""Comparing sweeps: rankings, means over seeds, and images on which two runs disagree.

`results` maps the name of each baseline to its dataset. All were measured on the same examples.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.results import select
from jaxexp.results.select import by_trial, final, hyperparameters, points, status
from jaxexp.results.select.ranks import finite_first, told_apart

Results = Mapping[str, xr.Dataset]


def settings(results: Results) -> list[str]:
    """The hyperparameters that vary in any of the results, in order."""
    return list(dict.fromkeys(name for ds in results.values() for name in hyperparameters(ds)))


def metric_and_split(
    results: Results, metric: str | None = None, split: str | None = None
) -> tuple[str, str]:
    """The metric and split to rank runs by: those given, or defaults that all of the results have.

    The default metric is the first one other than the loss, or else the loss; the default split is
    "test", or else "validation", or else "train". Raises UserError if some of the results lack the
    metric or split that is given, or disagree on whether higher is better.
    """
    if not isinstance(results, Mapping):
        raise UserError(f"results: {type_of(results)}, expected a dict from names to datasets")
    if not results:
        raise UserError("results: expected those of at least one sweep, got none")
    for name, ds in results.items():
        for what, given, there in (
            ("metric", metric, select.metrics(ds)),
            ("split", split, select.splits(ds)),
        ):
            if given is not None and given not in there:
                raise UserError(f"{what}={given!r}: the results of {name} have {', '.join(there)}")
    first, *others = results.values()
    shared = [m for m in select.metrics(first) if all(m in select.metrics(ds) for ds in others)]
    beyond = next((name for name in shared if name != "loss"), "loss")
    preferred = (
        s for s in ("test", "validation") if all(s in select.splits(ds) for ds in results.values())
    )
    metric, split = metric or beyond, split or next(preferred, "train")
    if len({select.direction(ds, metric) for ds in results.values()}) > 1:
        raise UserError(f"metric={metric!r}: higher is better in some of the results only")
    return metric, split


def runs(results: Results, metric: str | None = None, split: str | None = None) -> pd.DataFrame:
    """Every run of every baseline, best first by `metric` on `split`; the loss there breaks ties.

    The defaults are those of `metric_and_split`; the metric's direction decides what is better.
    Columns: `baseline`; `run` (in words); each of `settings` (NaN for a baseline without it); the
    metric on each split, under the split's name, and the `loss` on `split`, both after the last
    epoch; `seconds`; `status`; and `place`, the run's place in `points(results[baseline])`. A
    diverged run has no metric and no loss, and comes after all that finished; a run without a
    finite metric comes after those with one. The index is the rank, from 1.
    """
    metric, split = metric_and_split(results, metric, split)
    names = settings(results)
    made = [_runs(name, ds, names, metric, split) for name, ds in results.items()]
    order = ["baseline", "run", *names, *_splits(results), "loss", "seconds", "status", "place"]
    table = pd.concat(made, ignore_index=True)[order]
    sign = -1 if _higher(results, metric) else 1
    keys = pd.DataFrame({"value": finite_first(sign * table[split]), "loss": table["loss"]})
    table = table.loc[keys.sort_values(["value", "loss"], kind="stable").index]
    table.index = pd.RangeIndex(1, len(table) + 1, name="rank")
    kinds = {n: {ds[n].dtype.kind for ds in results.values() if n in ds.coords} for n in names}
    whole = [name for name in names if kinds[name] <= {"i", "u"}]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _splits(results: Results) -> list[str]:
    """The splits that any of the results has."""
    return list(dict.fromkeys(s for ds in results.values() for s in select.splits(ds)))


def _higher(results: Results, metric: str) -> bool:
    return select.direction(next(iter(results.values())), metric) == "higher"


def _runs(baseline: str, ds: xr.Dataset, names: list[str], metric: str, split: str) -> pd.DataFrame:
    own = tuple(name for name in names if name in hyperparameters(ds))
    trials, values = [point for _, point in points(ds)], select.values_by_trial(ds)
    words = [select.label(point, own) for point in trials]
    measured, loss = final(ds, metric), final(ds, "loss").sel(split=split)
    return pd.DataFrame(
        {
            "baseline": baseline,
            "run": [f"{baseline}, {label}" if own else baseline for label in words],
            **{n: values[n].tolist() for n in own},
            **{s: by_trial(ds, measured.sel(split=s)).astype(float) for s in select.splits(ds)},
            "loss": by_trial(ds, loss).astype(float),
            "seconds": by_trial(ds, ds["seconds"]).astype(float),
            "status": [status(point) for point in trials],
            "place": range(len(trials)),
        }
    )


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The `runs` that did not diverge, best first."""
    return table[table["status"] == "finished"]


def baselines(
    results: Results, metric: str | None = None, split: str | None = None
) -> pd.DataFrame:
    """The best setting of each baseline by `metric` on `split`, averaged over its seeds and folds.

    The best baseline comes first. Each member of a population counts as a setting. Columns:

    - `baseline`, and each of `settings` except `select.replicates`.
    - `seeds`: how many runs the means are over.
    - The means of what `runs` measures.
    - `spread`: the standard deviation (n - 1) of the metric over these runs.
    - `undefined`: how many more runs of the setting have no metric on `split`, such as the AUC of a
      fold without positives; this column is missing if it would be 0 everywhere.
    - `diverged`: how many runs of all settings diverged, as in "3 of 15".

    A setting with a diverged run has no mean and is never the best; if every setting has one, the
    means are NaN. As in `select.rank`, settings and baselines with more undefined runs come after
    those with fewer.
    """
    metric, split = metric_and_split(results, metric, split)
    table = runs(results, metric, split)
    own_names: dict[Hashable, list[str]] = {
        baseline: [name for name in hyperparameters(ds) if name not in select.replicates(ds)]
        for baseline, ds in results.items()
    }
    names = [name for name in settings(results) if any(name in own for own in own_names.values())]
    measured = [*_splits(results), "loss", "seconds"]
    higher = _higher(results, metric)
    rows = [
        _baseline(own, own_names[baseline], measured, split, higher)
        for baseline, own in table.groupby("baseline", sort=False)
    ]
    order = ["baseline", *names, "seeds", *measured[:-2], "spread", "loss", "seconds"]
    best = pd.DataFrame(rows)[[*order, "undefined", "diverged"]]
    sign = -1 if higher else 1
    alike = told_apart if best["seeds"].max() > 1 else np.asarray
    keys = pd.DataFrame(
        {
            0: ~np.isfinite(best[split]),
            1: best["undefined"],
            2: finite_first(sign * alike(best[split])),
            3: alike(best["loss"]),
        }
    )
    best = best.loc[keys.sort_values([*keys], kind="stable").index].reset_index(drop=True)
    return best if best["undefined"].any() else best.drop(columns="undefined")


def _baseline(
    own: pd.DataFrame, names: list[str], measured: list[str], split: str, higher: bool
) -> dict[Hashable, object]:
    groups = [seeds for _, seeds in own.groupby(names or "baseline", dropna=False, sort=False)]
    whole = [seeds for seeds in groups if (seeds["status"] == "finished").all()]
    diverged = int((own["status"] != "finished").sum())
    found: dict[Hashable, object] = {
        "baseline": own["baseline"].iloc[0],
        "diverged": f"{diverged} of {len(own)}",
    }
    if not whole:
        nothing = dict.fromkeys([*names, *measured, "spread"], np.nan)
        return found | nothing | {"seeds": 0, "undefined": 0}
    alike = told_apart if max(map(len, whole)) > 1 else np.asarray
    value, loss = (alike([seeds[name].mean() for seeds in whole]) for name in (split, "loss"))
    undefined = np.array([seeds[split].isna().sum() for seeds in whole])
    first = finite_first(-value if higher else value)
    order = np.lexsort((finite_first(loss), first, undefined, ~np.isfinite(value)))
    best = whole[int(order[0])]
    known = best[best[split].notna()]
    with np.errstate(invalid="ignore"):  # infinity less infinity
        spread = known[split].std()
    return (
        found
        | best.iloc[0][names].to_dict()
        | known[measured].mean(skipna=False).to_dict()
        | {"seeds": len(known), "spread": spread, "undefined": len(best) - len(known)}
    )


@dataclass(frozen=True)
class Disagreements:
    """Test images that one run gets right and another wrong.

    Attributes:
        images: the most telling ones, largest gain first. The index is `file`; the columns are
            `label` (the index of the true class), and `right` and `wrong`, the probabilities that
            the two runs give to this class.
        found: how many such images there are in all.
        total: how many test images the two runs have in common.
    """

    images: pd.DataFrame
    found: int
    total: int


def disagreements(right: xr.Dataset, wrong: xr.Dataset, count: int = 5) -> Disagreements:
    """The images that trial `right` gets right and `wrong` gets wrong, largest gain first.

    The gain is how much more probability `right` gives to the true class than `wrong` does; equal
    gains are ordered by file. At most `count` images are returned. Class 1 is predicted if its
    probability is above 1/2.
    """
    both = _of_truth(right), _of_truth(wrong)
    pair = pd.merge(*both, left_index=True, right_index=True, suffixes=("_right", "_wrong"))
    chosen = pair[pair["correct_right"] & ~pair["correct_wrong"]]
    images = chosen.rename(
        columns={"label_right": "label", "given_right": "right", "given_wrong": "wrong"}
    )
    gain = images["right"] - images["wrong"]
    by_gain = gain.sort_index().sort_values(ascending=False, kind="stable").index[:count]
    return Disagreements(images.loc[by_gain, ["label", "right", "wrong"]], len(chosen), len(pair))


def _of_truth(trial: xr.Dataset) -> pd.DataFrame:
    """By file: the true label, the probability given to it, and whether it was predicted."""
    truth, probability = trial["test_label"].values, trial["probability"].values.astype(np.float64)
    return pd.DataFrame(
        {
            "label": truth,
            "given": np.where(truth == 1, probability, 1 - probability),
            "correct": (probability > 0.5) == (truth == 1),
        },
        index=pd.Index(trial["test_file"].values.astype(str), name="file"),
    )
