"""Trials that differ in their seed alone: means, spreads, and which differences exceed them.

A *setting* is a point along all axes but the seed's. Results in which the seed is no axis of its
own have one seed for each setting: they are their own means.

>>> import jaxexp as jx
>>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, ["a", "a", "b", "b"] * 8, validation=0.25)
>>> axes = {"learning_rate": [1e-1, 1e-5], "seed": range(3)}
>>> results = jx.run(
...     jx.Sweep(jx.MLPTrial(epochs=3, depth=1, batch_size=8), axes), data=data, progress=False
... )
>>> average(results.dataset)["loss_std"].dims
('learning_rate', 'epoch', 'split')
>>> lead(results.dataset).wins
3
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxexp.results import select
from jaxexp.results.select import count, number

RESAMPLES = 10_000
LEVEL = 95  # per cent, of an interval


def several(ds: xr.Dataset) -> bool:
    """Whether the seed is an axis of its own with more than one value."""
    return "seed" in select.axes(ds) and ds.sizes["seed"] > 1


def average(ds: xr.Dataset) -> xr.Dataset:
    """The means over the seeds of each setting, each beside its spread: `loss` and `loss_std`.

    The result has the layout of any other without the axis of seeds, so that `select` and the
    figures take it. Means and standard deviations (n - 1; NaN of one seed) are over the seeds that
    finished, `seeds` in number; `diverged_seeds` counts the others. Where no seed of a setting
    finished, they are over those not yet diverged, epoch by epoch. Integers that are no numbers to
    average, such as predicted classes, are left out. Results without an axis of seeds are returned
    as they are.
    """
    if "seed" not in select.axes(ds):
        return ds
    ds = _same_length(ds)
    finished = ds["diverged_epoch"] == 0
    lost = ~finished.any("seed")  # settings without a seed that finished
    made: dict[str, xr.DataArray] = {}
    for key, values in ds.data_vars.items():
        name = str(key)
        if "seed" not in values.dims:
            made[name] = values
        elif name in ("epochs_trained", "steps_per_epoch"):
            made[name] = values.isel(seed=0, drop=True)
        elif values.dtype.kind == "f":
            if not bool(finished.all()):
                kept = finished | lost
                if "epoch" in values.dims:
                    kept = finished | (lost & (ds["epoch"] < ds["diverged_epoch"]))
                values = values.where(kept)
            mean, std = _mean_and_std(values)
            made[name] = mean.assign_attrs(ds[key].attrs)
            if name != "seconds":  # shares of what was measured for all seeds at once
                made[f"{name}_std"] = std.assign_attrs(units=values.attrs.get("units", ""))
    last = ds["diverged_epoch"].argmax("seed")  # of a setting without one that finished
    for name in ("diverged_epoch", "diverged_step"):
        if name in ds:
            made[name] = ds[name].isel(seed=last).drop_vars("seed").where(lost, 0).astype(int)
    made["seeds"] = finished.sum("seed")
    made["diverged_seeds"] = (~finished).sum("seed")
    axes = [axis for axis in select.axes(ds) if axis != "seed"]
    settings = int(np.prod([ds.sizes[axis] for axis in axes], dtype=int))
    return xr.Dataset(
        made,
        {name: own for name, own in ds.coords.items() if "seed" not in own.dims},
        {
            **ds.attrs,
            "axes": json.dumps(axes),
            "averaged_seeds": json.dumps(ds["seed"].values.tolist()),
            "settings": settings,
        },
    )


def _same_length(ds: xr.Dataset) -> xr.Dataset:
    """With curves of equal length over the seeds of each setting."""
    last = ds["epochs_trained"]
    alike = "best_epoch" not in ds and bool((last == last.isel(seed=0)).all())
    return ds if alike else select.carried_on(ds)


def _mean_and_std(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Over the seeds, without those that are NaN; NaN of none of them, and the deviation of one."""
    axis = values.get_axis_num("seed")
    there = ~np.isnan(values.values)
    n = there.sum(axis)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        total = np.where(there, values.values, 0).sum(axis, dtype=float)
        mean = total / np.where(n > 0, n, np.nan)
        off = np.where(there, values.values - np.expand_dims(mean, axis), 0)
        std = np.sqrt((off**2).sum(axis) / np.where(n > 1, n - 1, np.nan))
    like = values.isel(seed=0, drop=True)
    return like.copy(data=mean), like.copy(data=std)


def typical(ds: xr.Dataset) -> xr.Dataset:
    """Of each setting the one trial whose loss is the median of its seeds, for what has no mean.

    The loss is that on `select.default_split` after the last epoch; of an even number of seeds,
    the better one in the middle. Diverged seeds count as worse than any other. Results without an
    axis of seeds are returned as they are.
    """
    if "seed" not in select.axes(ds):
        return ds
    loss = select.final(ds, "loss").sel(split=select.default_split(ds), drop=True)
    order = loss.fillna(np.inf).argsort(loss.get_axis_num("seed"))
    middle = order.isel(seed=(ds.sizes["seed"] - 1) // 2, drop=True)
    axes = [axis for axis in select.axes(ds) if axis != "seed"]
    return ds.isel(seed=middle).assign_attrs(axes=json.dumps(axes))


@dataclass(frozen=True)
class Lead:
    """By how much the best setting leads the next, seed by seed.

    Attributes:
        best: the setting with the best mean, in words.
        second: the next.
        settings: how many there are.
        seeds: how many finished with both.
        wins: with how many of them the best is better than every other setting.
        difference: by which its mean is better, at least 0, in the unit of the metric.
        low: of the 95 % interval of the difference, by a paired bootstrap over the seeds: Efron and
            Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, percentiles. With
            five seeds or so it is somewhat too narrow.
        high: of the same.
    """

    best: str
    second: str
    settings: int
    seeds: int
    wins: int
    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the difference is larger than the spread: its interval does not reach 0."""
        return self.low > 0

    @property
    def interval(self) -> str:
        """The difference and how well it is known, in words."""
        return (
            f"{number(self.difference, 3)} ({LEVEL} % interval {number(self.low, 2)} to "
            f"{number(self.high, 2)}, paired bootstrap over the seeds)"
        )

    def __str__(self) -> str:
        """Two sentences."""
        won = f"It is the best with {number(self.wins)} of {count(self.seeds, 'seed')}."
        if not np.isfinite(self.low):
            return f"{won} The next is {self.second}."
        interval = self.interval
        if self.clear:
            return f"{won} It leads {self.second} by {interval}."
        return f"{won} Its lead over {self.second} is within the spread of the seeds: {interval}."


def lead(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, over: Mapping[str, object] = {}
) -> Lead | None:
    """The `Lead` of the best setting by the mean of `metric` after the last epoch.

    It is that over the next, or over the first that has the values of `over`: `{"width": 32}`.
    None without an axis of seeds, and where fewer than two settings have a finite mean.
    Raises UserError for an unknown metric or split, and for values that no setting has.
    """
    split = split or select.default_split(ds)
    means = average(ds)
    ranked = select.rank(means, metric, split)
    if "seed" not in select.axes(ds):
        return None
    ranked = ranked[np.isfinite(ranked["value"])]
    if over:
        there = set(select.rank(select.where(means, **over))["trial"])
        ranked = ranked[ranked["trial"].isin(there) | (ranked.index == ranked.index[0])]
    if len(ranked) < 2:
        return None
    values = select.final(ds, metric).sel(split=split)
    values_SxK = values.transpose(*select.axes(means), "seed").values.reshape(-1, ds.sizes["seed"])
    sign = 1 if select.direction(ds, metric) == "higher" else -1
    signed_SxK = sign * values_SxK.astype(float)
    first, second = (int(place) for place in ranked.index[:2])
    both = np.isfinite(signed_SxK[first]) & np.isfinite(signed_SxK[second])
    gain_K = (signed_SxK[first] - signed_SxK[second])[both]
    others_SxK = np.delete(signed_SxK, first, axis=0)[:, both]
    best_other_K = np.where(np.isfinite(others_SxK), others_SxK, -np.inf).max(
        axis=0, initial=-np.inf
    )
    low = high = float("nan")
    if len(gain_K) > 1:
        drawn = np.random.default_rng(0).integers(len(gain_K), size=(RESAMPLES, len(gain_K)))
        tails = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)
        low, high = (float(end) for end in np.percentile(gain_K[drawn].mean(axis=1), tails))
    return Lead(
        best=str(ranked["trial"].iloc[0]),
        second=str(ranked["trial"].iloc[1]),
        settings=len(values_SxK),
        seeds=len(gain_K),
        wins=int((signed_SxK[first, both] > best_other_K).sum()),
        difference=float(gain_K.mean()) if len(gain_K) else float("nan"),
        low=low,
        high=high,
    )


def best_in_words(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, digits: int = 3
) -> str:
    """The best setting by its mean, and how clearly it leads: one to three sentences.

    As `select.best_in_words`, which says it of single trials.
    """
    leading = lead(ds, metric, split)
    sentence = select.best_in_words(average(ds), metric, split, digits)
    return sentence if leading is None else f"{sentence} {leading}"
