"""Sentences about trials: the best ones, and those that diverged or were stopped early."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.words import capitalised
from jaxexp.results.select.fields import (
    averaged_over,
    by_trial,
    check_metric,
    default_split,
    direction,
    final,
    replicate,
    size,
    spread,
    stopped,
    what,
)
from jaxexp.results.select.labels import (
    applying_by_trial,
    averaged_in_words,
    measured_when,
    missing_in_words,
    point,
    status,
    statuses,
    trial_in_words,
    with_unit,
)
from jaxexp.results.select.ranks import as_compared, first_placed, with_places
from jaxexp.results.select.wording import (
    all_of,
    count,
    decimals,
    mean_over,
    metric_words,
    plus_minus,
)
from jaxexp.spec.written import number


def stopping_note(ds: xr.Dataset) -> str:
    """How many trials were stopped early, and when; "" if none was."""
    early = by_trial(ds, stopped(ds))
    if not early.any():
        return ""
    when = by_trial(ds, ds["epochs_trained"])[early].astype(int)
    first, last = int(when.min()), int(when.max())
    after = count(last, "epoch") if first == last else f"{first} to {count(last, 'epoch')}"
    kept = ""
    if measured_when(ds).endswith("best epoch"):
        kept = ", and the results are those of each trial's best epoch"
    how_many = f"{number(int(early.sum()))} of {count(size(ds), 'trial')}"
    return f"{how_many} stopped early, after {after}{kept}."


def outcome(
    point: xr.Dataset, metric: str = "loss", split: str | None = None, digits: int = 3
) -> str:
    """`metric` of one trial at the end of training: "0.913", "0.243 nats"; or its `status`.

    A mean over seeds has its standard deviation: "0.913 ± 0.004". If the metric is undefined for
    some seeds, the text says over how many the mean is.
    Raises UserError for an unknown metric or split.
    """
    split = split or default_split(point)
    check_metric(point, metric, split)
    if status(point) != "finished":
        return status(point)
    value = float(final(point, metric).sel(split=split))
    std = spread(point, metric)
    shown = plus_minus(value, None if std is None else std.sel(split=split), digits)
    return with_unit(point, metric, shown) + missing_in_words(point, metric, split)


def best_in_words(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, digits: int = 4
) -> str:
    """A sentence about the best trial by `metric`, or about those that tie.

    "The lowest validation loss after the last epoch is 0.2430 nats: width 64."
    "3 of 5 trials tie at the highest test accuracy after the last epoch, 0.5000: …"
    """
    split = split or default_split(ds)
    ranked, trials = with_places(ds, metric, split), size(ds)
    tied = first_placed(ranked)
    measured = f"{metric_words(metric, split)} {measured_when(ds)}"
    if not tied:
        if bool((ds["diverged_epoch"] > 0).all()):
            several = trials > 1 or averaged_over(ds)
            return "Every trial diverged." if several else "The trial diverged."
        return f"No {what(ds)} has a finite {measured}."
    first, std = float(ranked["value"].iloc[0]), spread(ds, metric)
    if std is not None:
        std = by_trial(ds, std.sel(split=split))[int(ranked.index[0])]
    one = len(tied) == 1  # those that tie by their mean have spreads of their own
    value = with_unit(ds, metric, plus_minus(first, std if one else None, digits))
    best = point(ds, int(ranked.index[0]))[1]
    if std is not None and np.isfinite(std):
        over = averaged_in_words(best, metric, split)
        value += mean_over(over) if one else f" (mean over {over})"
    else:
        value += missing_in_words(best, metric, split)
    if trials == 1:
        return f"The {measured} is {value}."
    if len(tied) == trials:
        return f"{capitalised(all_of(trials, what(ds)))} have the same {measured}: {value}."
    higher = direction(ds, metric) == "higher"
    extreme = "highest" if higher else "lowest"
    compared = as_compared(ds, ranked["value"]) * (1 if higher else -1)
    beyond = ranked[compared > compared[0]]
    better = beyond[np.isfinite(beyond["value"])]
    extreme += "" if len(better) == len(beyond) else " finite"
    lost = by_trial(ds, ds["diverged_seeds"]) if "diverged_seeds" in ds else np.zeros(trials, int)
    fewest, passed, among = lost[ranked.index[0]], "", ""
    if not better.empty and (lost[better.index] > fewest).all():
        passed = _passed_over(ds, metric, better, digits)
        measured += f" of settings without a diverged {replicate(ds)}" if not fewest else (
            f" of the settings of which the fewest {replicate(ds)}s diverged"
        )  # fmt: skip
    elif not better.empty:
        among = f", of the settings that miss the fewest {replicate(ds)}s,"
    if one:
        return f"The {extreme} {measured}{among} is {value}: {tied[0]}.{passed}"
    more = f"; and {len(tied) - 3} more" if len(tied) > 3 else ""
    return (
        f"{len(tied)} of {number(trials)} {what(ds)}s tie at the {extreme} "
        f"{measured}{among or ','} {value}: {'; '.join(tied[:3])}{more}.{passed}"
    )


def _passed_over(ds: xr.Dataset, metric: str, better: pd.DataFrame, digits: int) -> str:
    """A sentence about settings that would be best if none of their seeds had diverged."""
    place = int(better.index[0])
    diverged, finished = (int(by_trial(ds, ds[n])[place]) for n in ("diverged_seeds", "seeds"))
    which = direction(ds, metric)
    value = with_unit(ds, metric, decimals(float(better["value"].iloc[0]), digits))
    others = f", and {count(len(better) - 1, 'more setting')} likewise" if len(better) > 1 else ""
    return (
        f" The mean of {better['trial'].iloc[0]} is {which}, {value}, but {diverged} of "
        f"{count(diverged + finished, replicate(ds))} diverged, and it is over the rest{others}."
    )


def divergences(ds: xr.Dataset) -> list[str]:
    """One sentence for each diverged trial: "learning rate 1 diverged in epoch 3, step 712"."""
    named = zip(applying_by_trial(ds), statuses(ds), strict=True)
    return [f"{trial_in_words(values)} {how}" for values, how in named if how != "finished"]


def divergence_note(datasets: Mapping[str, xr.Dataset]) -> str:
    """How many trials of named results diverged; "" if none did.

    Up to three are named: "2 of 15 trials diverged: …". For more, the epochs are given: "7 of 48
    trials diverged, in epochs 1 to 5." A name that is not empty comes before its trials.
    """
    total = sum(size(ds) for ds in datasets.values())
    when = np.concatenate([ds["diverged_epoch"].values.ravel() for ds in datasets.values()])
    when = when[when > 0].astype(int)
    if not when.size:
        return ""
    counted = f"{number(int(when.size))} of {count(total, 'trial')} diverged"
    if when.size > 3:
        first, last = when.min(), when.max()
        return (
            f"{counted}, in {f'epoch {first}' if first == last else f'epochs {first} to {last}'}."
        )
    found = [
        f"{name}, {sentence}" if name else sentence
        for name, ds in datasets.items()
        for sentence in divergences(ds)
    ]
    return f"{counted}: {'; '.join(found)}."
