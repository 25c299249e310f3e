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

# By how much equal means over seeds may differ, relative to them. Values and means are in float32:
# each is rounded by at most 2**-24 of itself, and two of both are compared.
ROUNDING = 2.0**-21


def same(value: object, wanted: object) -> bool:
    """Whether two values are equal; floats, also in tuples, are compared in float32."""
    if isinstance(value, tuple) and isinstance(wanted, tuple) and len(value) == len(wanted):
        return all(map(same, value, wanted))
    if value == wanted or not (isinstance(value, float) and isinstance(wanted, float)):
        return bool(value == wanted)
    return bool(np.float32(value) == np.float32(wanted))


def matches(values: Sequence[object], wanted: object, *, traced: bool = False) -> list[bool]:
    """Which values of a hyperparameter equal `wanted`; if none does, which are the `same`.

    Values of a traced hyperparameter need only be the `same`: programs have it in float32.
    """
    exact = [bool(value == wanted) for value in values]
    return exact if any(exact) and not traced else [same(value, wanted) for value in values]


def where(ds: xr.Dataset, **values: object) -> xr.Dataset:
    """The trials whose hyperparameters have these values in the end: `where(ds, width=16)`.

    The hyperparameter may have an axis of its own or be zipped with others; the axis is kept, but
    shorter. Traced floats, and floats that equal no value exactly, are compared in float32, as by
    `results.trial`; if none is equal then, a value may be given as it is shown, rounded, unless two
    are shown alike. A tuple of widths is written as in Python or as in labels:
    (64, 32, 16) or "64-32-16".
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
    """Say why trials cannot be selected by this name."""
    own = name.removeprefix("final_").removeprefix("initial_")
    if own != name and changed(ds, own):
        return f"{name}: expected {own}, which selects by the values that trials end with"
    varying = ", ".join(hyperparameters(ds)) or "none"
    return f"{name} does not vary here; the hyperparameters that do: {varying}"


def _shown_as(name: str, own: np.ndarray, value: object) -> np.ndarray:
    """Which floats are shown as `value`; raises UserError if they differ."""
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
    """The trials of `ds`, best first, by `metric` at the end of training.

    The metric's `direction` decides what is better. Ties are broken by the loss on
    `default_split(ds)`, then by position. Trials without a finite value come after those with one;
    diverged trials come last, those that diverged earliest at the very end.

    Means over seeds are ordered first by how many of their seeds diverged, then by for how many the
    metric is undefined, fewer first: the seeds that are left may be the easier ones. Means that
    differ by no more than the rounding of float32 tie.

    Columns: `trial` (its label), each hyperparameter as it is in the end, `value`, `epoch` (the one
    whose parameters the trial has in the end: the last one trained, or the best; for means, the
    last that any of the seeds trained) and `status`. The index is the trial's place in
    `points(ds)`.
    Raises UserError for an unknown metric or split.
    """
    return with_places(ds, metric, split).drop(columns="place")


def with_places(ds: xr.Dataset, metric: str, split: str | None) -> pd.DataFrame:
    """`rank` with a column `place`: from 1, equal for ties, missing without a finite value."""
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
    """Keys to order by that put values that are not finite last."""
    return np.where(np.isfinite(values), values, np.inf)


def as_compared(ds: xr.Dataset, values: ArrayLike) -> np.ndarray:
    """Values of trials as they are; means as `told_apart`."""
    return told_apart(values) if averaged_over(ds) else np.asarray(values)


def told_apart(means: ArrayLike) -> np.ndarray:
    """Means over seeds, made equal if they differ by no more than the rounding of float32.

    40 + 40 + 46 of 50 and 40 + 41 + 45 of 50 have the same mean up to the last bits.
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
    """By how much a mean is larger than the other; 0 if they are not `told_apart`."""
    same = np.ptp(told_apart([mean, other])) == 0
    return 0.0 if same else mean - other


def distinct(ds: xr.Dataset, name: str) -> list[Plain]:
    """The distinct values that hyperparameter `name` has in the end.

    Numbers are sorted by size, others by their text after them. Numbers and tuples of numbers are
    recognised also as text, which they are beside None.
    """
    values = in_the_end(ds, name).values
    numeric = values.dtype.kind in "biuf"
    return sorted(set(values.tolist()), key=None if numeric else _text_order)


def _text_order(value: object) -> tuple[bool, int, tuple[float, ...], str]:
    own = numbers(value)
    return not own, len(own), own, number(value)


def numbers(value: object) -> tuple[float, ...]:
    """The numbers in a value, or in its text, such as "64-32-16"; none if there are others."""
    written = text(value)
    for each in ([written], parts(written)):
        try:
            return tuple(map(to_float, each))
        except ValueError:
            continue
    return ()


def written_numbers(own: str) -> tuple[float, ...]:
    """The numbers in a text, if they are written like that: "007" and "2024-01" are only text."""
    found = numbers(own)
    pairs = zip(parts(own), found, strict=False)
    return found if all(part in (str(n), f"{n:.0f}") for part, n in pairs) else ()


def matching_texts(texts: Sequence[str], value: object) -> list[bool]:
    """Which texts are this value, as `matches` compares them: "10.0" is the number 10."""
    exact = [own == text(value) for own in texts]
    wanted = () if any(exact) or isinstance(value, str) else numbers(value)
    return matches([written_numbers(own) for own in texts], wanted) if wanted else exact


def best(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> tuple[str, xr.Dataset]:
    """The first trial of `rank`: its `full_label`, which says if it diverged, and its data.

    Other trials may have the same value: see `ties`.
    """
    return point(ds, int(rank(ds, metric, split).index[0]))


def worst(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> tuple[str, xr.Dataset]:
    """The last trial of `rank`, which has diverged if any has: its `full_label` and its data."""
    return point(ds, int(rank(ds, metric, split).index[-1]))


def ties(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> list[str]:
    """The labels of all trials that have the best `metric`, in the order of `rank`.

    One label if nothing ties, and none if no trial has a finite value.
    """
    return first_placed(with_places(ds, metric, split))


def first_placed(ranked: pd.DataFrame) -> list[str]:
    """The labels of the trials at place 1 of `with_places`."""
    return ranked.loc[(ranked["place"] == 1).fillna(False), "trial"].tolist()


def table(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, most: int | None = None
) -> pd.DataFrame:
    """The best `most` trials in the order of `rank`, with every metric on every split.

    Columns: `rank` (from 1; equal for ties, missing without a value), the hyperparameters and the
    metrics at the end of training ("validation loss (nats)"), and `status` if a trial diverged.
    For means over seeds there are also "± validation loss (nats)", the standard deviation;
    "seeds without validation auc", if it is undefined for any; `seeds`, their number, if it is not
    the same for all; and `diverged`, the number of seeds that did, if any.
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
