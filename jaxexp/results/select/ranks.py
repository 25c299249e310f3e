"""Choosing and ranking the trials of a sweep, and the table of them."""

import json
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_number
from jaxexp.results.select.fields import (
    Plain,
    applies,
    averaged_over,
    by_trial,
    changed,
    check_metric,
    default_split,
    direction,
    final,
    hyperparameters,
    in_the_end,
    last_epoch,
    metrics,
    replicate,
    seed_counts,
    splits,
    spread,
    undefined,
    units,
    values_by_trial,
)
from jaxexp.results.select.labels import applying_by_trial, named, point, statuses, trial_in_words
from jaxexp.results.select.wording import metric_words
from jaxexp.spec.values import parts, text, to_float
from jaxexp.spec.written import number, setting

# Relative to them: by how much equal means over seeds may differ. Values and means are in float32,
# each rounded by at most 2**-24 of itself, and there are two of both.
ROUNDING = 2.0**-21


def same(value: object, wanted: object) -> bool:
    """Whether two values are equal, as float32 has them where they are floats, in tuples too."""
    if isinstance(value, tuple) and isinstance(wanted, tuple) and len(value) == len(wanted):
        return all(map(same, value, wanted))
    if value == wanted or not (isinstance(value, float) and isinstance(wanted, float)):
        return bool(value == wanted)
    return bool(np.float32(value) == np.float32(wanted))


def matches(values: Sequence[object], wanted: object, *, traced: bool = False) -> list[bool]:
    """Which of all values of a hyperparameter are this one; where none is, which are `same`.

    Of a traced one, those that are the `same`: programs have it in float32.
    """
    exact = [bool(value == wanted) for value in values]
    return exact if any(exact) and not traced else [same(value, wanted) for value in values]


def where(ds: xr.Dataset, **values: object) -> xr.Dataset:
    """The trials whose hyperparameters have these values `in_the_end`: `where(ds, width=16)`.

    Works on an axis of its own and on one zipped with others; the axis stays, made shorter. Floats
    that are traced, and others of which none is equal, are compared as float32, as `results.trial`
    does; where none is equal then, one may be given as it is shown, rounded, unless another is
    shown alike. A tuple of widths is written as in Python or as it is labelled: (64, 32, 16) or
    "64-32-16".
    Raises UserError for a hyperparameter that does not vary, and for a value that no trial has.
    """
    traced = json.loads(ds.attrs.get("traced", "[]"))
    left: dict[Hashable, np.ndarray] = {}  # no value depends on those before it
    for name, value in values.items():
        if name not in hyperparameters(ds):
            raise UserError(_not_varying(ds, name))
        values_P = in_the_end(ds, name).values
        if values_P.dtype.kind in "UO":  # text, also of numbers among tuples
            keep = np.array(matching_texts(values_P.astype(str).tolist(), value))
        else:
            keep = np.array(matches(values_P.tolist(), value, traced=name in traced))
            keep = keep if keep.any() else _shown_as(name, values_P, value)
        dim = ds[name].dims[0]
        before = left.get(dim, np.ones(len(values_P), bool))
        left[dim] = keep & before
        if not left[dim].any():
            there = ", ".join(dict.fromkeys(setting(own) for own in values_P[before]))
            has = "ends with" if changed(ds, name) else "has"
            text_of = isinstance(value, str) and values_P.dtype.kind not in "UO"
            given = f"{value!r}, which is text" if text_of else text(value)
            raise UserError(f"no trial {has} {name} = {given}; there are {there}")
    return ds.isel({dim: np.flatnonzero(keep) for dim, keep in left.items()})


def _not_varying(ds: xr.Dataset, name: str) -> str:
    """Why trials cannot be selected by this name."""
    own = name.removeprefix("final_").removeprefix("initial_")
    if own != name and changed(ds, own):
        return f"{name}: expected {own}, which selects by the values that trials end with"
    varying = ", ".join(hyperparameters(ds)) or "none"
    return f"{name} does not vary here; the hyperparameters that do: {varying}"


def _shown_as(name: str, own: np.ndarray, value: object) -> np.ndarray:
    """Which floats `setting` rounds to `value`; raises UserError where they differ."""
    if own.dtype.kind != "f" or not is_number(value):
        return np.zeros(len(own), bool)
    shown = [setting(v).replace("−", "-").replace(",", "") for v in own]
    keep = np.array([s != "–" and float(s) == value for s in shown])
    if len(found := dict.fromkeys(own[keep].tolist())) > 1:
        raise UserError(
            f"{name} = {value}: expected one of {', '.join(map(text, found))}, shown alike"
        )
    return keep


def rank(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> pd.DataFrame:
    """The trials of `ds`, best first, by `metric` at the end of each one's own last epoch.

    The metric's `direction` decides what is better. Ties are broken by the loss on
    `default_split(ds)`, then by position. A trial without a finite value comes after those with
    one; diverged trials come last, the earliest very last. Of means over seeds, those of which more
    seeds diverged come after those of which fewer did, and then those for which the metric is
    undefined for more seeds after those for fewer: what is left may be the easier ones. Means that
    differ by no more than the rounding of float32 tie.
    Columns: `trial` (its label), each of its hyperparameters `in_the_end`, `value`, `epoch` (whose
    parameters it has in the end: the last one trained, or the best; of means, the last one that any
    of its seeds trained), `status`. The index is the trial's place in `points(ds)`.
    Raises UserError for an unknown metric or split.
    """
    return with_places(ds, metric, split).drop(columns="place")


def with_places(ds: xr.Dataset, metric: str, split: str | None) -> pd.DataFrame:
    """See `rank`; and `place`, from 1, the same where trials tie, none without a finite value."""
    split = split or default_split(ds)
    check_metric(ds, metric, split)
    value = by_trial(ds, final(ds, metric).sel(split=split))
    loss = by_trial(ds, final(ds, "loss").sel(split=default_split(ds)))
    diverged = by_trial(ds, ds["diverged_epoch"])
    given = values_by_trial(ds)
    table = pd.DataFrame(
        {
            "trial": [trial_in_words(row) for row in applying_by_trial(ds)],
            **given,
            "value": value,
            "epoch": by_trial(ds, last_epoch(ds)),
            "status": statuses(ds),
        }
    )
    sign = -1 if direction(ds, metric) == "higher" else 1
    compared, loss = as_compared(ds, value), as_compared(ds, loss)
    late = np.where(diverged == 0, -np.inf, -diverged)
    lost = by_trial(ds, ds["diverged_seeds"]) if "diverged_seeds" in ds else diverged > 0
    missing = by_trial(ds, undefined(ds, metric).sel(split=split))
    keys = pd.DataFrame(
        {0: ~np.isfinite(value), 1: lost, 2: missing, 3: finite_first(sign * compared)}
    )
    tied = keys.groupby([*keys]).ngroup()
    place = tied.where(np.isfinite(value)).rank(method="min")
    order = np.lexsort((late, finite_first(loss), tied))
    return table.assign(place=place.astype("Int64")).loc[order]


def finite_first(values: ArrayLike) -> np.ndarray:
    """To order by: what is no number stands last."""
    return np.where(np.isfinite(values), values, np.inf)


def as_compared(ds: xr.Dataset, values: ArrayLike) -> np.ndarray:
    """Values of trials as they are, and of means what is `told_apart`."""
    return told_apart(values) if averaged_over(ds) else np.asarray(values)


def told_apart(means: ArrayLike) -> np.ndarray:
    """Means over seeds, those equal that differ by no more than the rounding of float32.

    40 + 40 + 46 of 50 and 40 + 41 + 45 of 50 have the same mean, but for the last bits.
    """
    mean_N = np.asarray(means, float)
    order_N = np.argsort(mean_N, axis=None)
    sorted_N = mean_N.ravel()[order_N]
    with np.errstate(invalid="ignore"):  # infinity less infinity
        near = np.diff(sorted_N) <= ROUNDING * np.abs(sorted_N[1:])
    first_N = np.maximum.accumulate(np.where(np.append(False, near), 0, np.arange(len(sorted_N))))
    made = np.empty_like(sorted_N)
    made[order_N] = sorted_N[first_N]
    return made.reshape(mean_N.shape)


def mean_difference(mean: float, other: float) -> float:
    """By how much a mean is larger; 0 where they are not `told_apart`."""
    same = np.ptp(told_apart([mean, other])) == 0
    return 0.0 if same else mean - other


def distinct(ds: xr.Dataset, name: str) -> list[Plain]:
    """The values `in_the_end` of hyperparameter `name`, each once.

    Numbers by size, then others by their text. Numbers and tuples of them are known also where they
    are text, as beside None.
    """
    values = in_the_end(ds, name).values
    numeric = values.dtype.kind in "biuf"
    return sorted(set(values.tolist()), key=None if numeric else _text_order)


def _text_order(value: object) -> tuple[bool, int, tuple[float, ...], str]:
    own = numbers(value)
    return not own, len(own), own, number(value)


def numbers(value: object) -> tuple[float, ...]:
    """The numbers of a value, or of the text of one, such as "64-32-16"; none of any other."""
    written = text(value)
    for each in ([written], parts(written)):
        try:
            return tuple(map(to_float, each))
        except ValueError:
            continue
    return ()


def written_numbers(own: str) -> tuple[float, ...]:
    """The numbers of a value as text, if `text` writes them so: "007" and "2024-01" are text."""
    found = numbers(own)
    pairs = zip(parts(own), found, strict=False)
    return found if all(part in (str(n), f"{n:.0f}") for part, n in pairs) else ()


def matching_texts(texts: Sequence[str], value: object) -> list[bool]:
    """Which of the texts of values are this one: "10.0" is the number 10; see `matches`."""
    exact = [own == text(value) for own in texts]
    wanted = () if any(exact) or isinstance(value, str) else numbers(value)
    return matches([written_numbers(own) for own in texts], wanted) if wanted else exact


def best(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> tuple[str, xr.Dataset]:
    """The first trial of `rank`, as its `full_label` (which says so if all diverged) and data.

    Others may have the same value: see `ties`.
    """
    return point(ds, int(rank(ds, metric, split).index[0]))


def worst(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> tuple[str, xr.Dataset]:
    """The last trial of `rank`, a diverged one if there is any, as its `full_label` and data."""
    return point(ds, int(rank(ds, metric, split).index[-1]))


def ties(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> list[str]:
    """The labels of all trials whose `metric` is the best one, in the order of `rank`.

    One label where nothing ties, none where no trial has a finite value.
    """
    return first_placed(with_places(ds, metric, split))


def first_placed(ranked: pd.DataFrame) -> list[str]:
    """The labels of the trials at place 1 of `with_places`."""
    return ranked.loc[(ranked["place"] == 1).fillna(False), "trial"].tolist()


def table(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, most: int | None = None
) -> pd.DataFrame:
    """The best `most` trials in the order of `rank`, with every metric on every split.

    Columns: `rank` (from 1 in that order, the same where trials tie, none without a value), the
    hyperparameters, "validation loss (nats)" and the like, in the end, and `status` if a trial
    diverged. Of means over seeds, "± validation loss (nats)" is the standard deviation,
    "seeds without validation auc" counts those for which it is undefined, if any, `seeds` is their
    number where it is not the same for all, and `diverged` counts the seeds that did, if any.
    """
    ranked = with_places(ds, metric, split).iloc[:most]
    finished = ranked["status"] == "finished"
    made = pd.DataFrame({"rank": ranked["place"]}, index=ranked.index)
    for name in hyperparameters(ds):
        shown, there = ranked[name], applies(ds, name)[ranked.index]
        if not there.all():  # empty cells
            shown = (shown.astype("Int64") if shown.dtype.kind in "iu" else shown).where(there)
        made[named(ds, name)] = shown
    counts = seed_counts(ds)
    if counts is not None and counts.min() < counts.max():
        made["seeds"] = counts[ranked.index]
    for own in metrics(ds):
        values = final(ds, own)
        unit = f" ({units(ds, own)})" if units(ds, own) else ""
        for s in splits(ds):
            column = f"{metric_words(own, s)}{unit}"
            made[column] = by_trial(ds, values.sel(split=s))[ranked.index].astype(float)
            if (std := spread(ds, own)) is not None:
                made[f"± {column}"] = by_trial(ds, std.sel(split=s))[ranked.index].astype(float)
            if (missing := by_trial(ds, undefined(ds, own).sel(split=s))).any():
                made[f"{replicate(ds)}s without {metric_words(own, s)}"] = missing[ranked.index]
    if not finished.all():
        made["status"] = ranked["status"]
    if "diverged_seeds" in ds and (lost := by_trial(ds, ds["diverged_seeds"])).any():
        made["diverged"] = lost[ranked.index].astype(int)
    made.attrs["hyperparameters"] = [named(ds, name) for name in hyperparameters(ds)]
    return made.reset_index(drop=True)
