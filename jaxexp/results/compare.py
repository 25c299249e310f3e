"""Comparing the runs of several sweeps: their ranking, the mean over seeds, and telling images.

`results` maps the name of each baseline to its dataset, on the same test images throughout.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.results.select import final, hyperparameters, label, points, status

Results = Mapping[str, xr.Dataset]
MEASURED = ["train", "validation", "test", "loss", "seconds"]


def settings(results: Results) -> list[str]:
    """The hyperparameters that vary in any of the results, in order."""
    return list(dict.fromkeys(name for ds in results.values() for name in hyperparameters(ds)))


def runs(results: Results) -> pd.DataFrame:
    """Every run of every baseline, ranked by test accuracy, ties by test loss.

    Columns: `baseline`, `run` (in words), each of `settings` (NaN where a baseline does not have
    it), the accuracies `train`, `validation` and `test` and the test `loss` (nats) after the last
    epoch, `seconds`, `status`, and `place` in `points(results[baseline])`. A diverged run has no
    accuracies and no loss, and stands below all that finished. The index is the rank, from 1.
    """
    names = settings(results)
    table = pd.DataFrame(
        [
            _run(baseline, place, point, names)
            for baseline, ds in results.items()
            for place, (_, point) in enumerate(points(ds))
        ]
    )
    order = table.assign(test=-table["test"]).sort_values(["test", "loss"], kind="stable").index
    table = table.loc[order]
    table.index = pd.RangeIndex(1, len(table) + 1, name="rank")
    kinds = {n: {ds[n].dtype.kind for ds in results.values() if n in ds.coords} for n in names}
    whole = [name for name in names if kinds[name] <= {"i", "u"}]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _run(baseline: str, place: int, point: xr.Dataset, names: list[str]) -> dict[str, object]:
    accuracy = final(point, "accuracy")
    own = tuple(name for name in names if name in point.coords)
    return {
        "baseline": baseline,
        "run": f"{baseline}, {label(point, own)}" if own else baseline,
        **{name: point[name].item() if name in own else None for name in names},
        **{split: float(accuracy.sel(split=split)) for split in accuracy["split"].values},
        "loss": float(final(point, "loss").sel(split="test")),
        "seconds": float(point["seconds"]),
        "status": status(point),
        "place": place,
    }


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """Those of the `runs` that did not diverge, best first."""
    return table[table["status"] == "finished"]


def baselines(results: Results) -> pd.DataFrame:
    """The best setting of each baseline by test accuracy, averaged over its seeds, best first.

    Columns: `baseline`, each of `settings` but the seed, `seeds` (their number), the means of what
    `runs` measures, `spread` (standard deviation of the test accuracy over the seeds, n - 1), and
    `diverged` ("3 of 15", all settings counted). A setting of which a seed diverged has no mean,
    and is never the best; where each has one, the accuracies are NaN.
    """
    table = runs(results)
    names = [name for name in settings(results) if name != "seed"]
    rows = [_baseline(own, names) for _, own in table.groupby("baseline", sort=False)]
    order = ["baseline", *names, "seeds", "train", "validation", "test", "spread", "loss"]
    best = pd.DataFrame(rows)[[*order, "seconds", "diverged"]]
    return best.sort_values("test", ascending=False, kind="stable", ignore_index=True)


def _baseline(own: pd.DataFrame, names: list[str]) -> dict[Hashable, object]:
    groups = [seeds for _, seeds in own.groupby(names or "baseline", dropna=False, sort=False)]
    whole = [seeds for seeds in groups if (seeds["status"] == "finished").all()]
    diverged = int((own["status"] != "finished").sum())
    told: dict[Hashable, object] = {
        "baseline": own["baseline"].iloc[0],
        "diverged": f"{diverged} of {len(own)}",
    }
    if not whole:
        return told | dict.fromkeys([*names, *MEASURED, "spread"], np.nan) | {"seeds": 0}
    best = max(whole, key=lambda seeds: (seeds["test"].mean(), -seeds["loss"].mean()))
    return (
        told
        | best.iloc[0][names].to_dict()
        | best[MEASURED].mean().to_dict()
        | {"seeds": len(best), "spread": best["test"].std()}
    )


@dataclass(frozen=True)
class Telling:
    """Test images that one run gets right and another wrong.

    Attributes:
        images: those that tell most, first the largest gain; the index is `file`, the columns
            `label` (the true class, an index) and the probabilities `right` and `wrong` that
            either run gives to it.
        found: how many there are in all.
        total: how many test images the two runs have in common.
    """

    images: pd.DataFrame
    found: int
    total: int


def telling(right: xr.Dataset, wrong: xr.Dataset, count: int = 5) -> Telling:
    """The images that trial `right` gets right and `wrong` does not, by the probabilities' gain.

    At most `count`: those whose true class has the most probability by `right` beyond that by
    `wrong`; equal gains stand in the order of the files. Class 1 is predicted above 1/2.
    """
    both = _of_truth(right), _of_truth(wrong)
    pair = pd.merge(*both, left_index=True, right_index=True, suffixes=("_right", "_wrong"))
    chosen = pair[pair["correct_right"] & ~pair["correct_wrong"]]
    images = chosen.rename(
        columns={"label_right": "label", "given_right": "right", "given_wrong": "wrong"}
    )
    gain = images["right"] - images["wrong"]
    by_gain = gain.sort_index().sort_values(ascending=False, kind="stable").index[:count]
    return Telling(images.loc[by_gain, ["label", "right", "wrong"]], len(chosen), len(pair))


def _of_truth(trial: xr.Dataset) -> pd.DataFrame:
    """By file: the true label, the probability given to it, and whether it is predicted."""
    truth, probability = trial["test_label"].values, trial["probability"].values.astype(np.float64)
    return pd.DataFrame(
        {
            "label": truth,
            "given": np.where(truth == 1, probability, 1 - probability),
            "correct": (probability > 0.5) == (truth == 1),
        },
        index=pd.Index(trial["test_file"].values.astype(str), name="file"),
    )
