"""What a dataset of results holds: axes, metrics, splits, and how each trial ended."""

import json
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.results.select.wording import count
from jaxexp.spec.names import REPLICATES
from jaxexp.spec.values import text

# A hyperparameter's value in a dataset: numbers that can be compared, or text.
Plain: TypeAlias = Any
# Coordinates that are never hyperparameters.
INDEXES = frozenset(("epoch", "split", "step", "layer"))


def axes(ds: xr.Dataset) -> tuple[str, ...]:
    """The dimensions of `ds` that are axes of the sweep, in order.

    They are those named by `ds.attrs["axes"]` that have not been selected away; without this
    attribute, the dimensions of the loss except for epoch and split.
    """
    _check_dataset(ds)
    if "axes" in ds.attrs:
        return tuple(dim for dim in json.loads(ds.attrs["axes"]) if dim in ds.dims)
    return tuple(str(dim) for dim in ds["loss"].dims if dim not in INDEXES)


def hyperparameters(ds: xr.Dataset) -> tuple[str, ...]:
    """The hyperparameters that vary along the axes of `ds`, in the order of the axes."""
    order = axes(ds)
    varying = [str(n) for n, c in ds.coords.items() if c.ndim == 1 and c.dims[0] in order]
    declared = json.loads(ds.attrs.get("base", "{}"))
    varying = [name for name in varying if name in declared] or varying
    return tuple(sorted(varying, key=lambda name: order.index(str(ds[name].dims[0]))))


def replicates(ds: xr.Dataset) -> list[str]:
    """The hyperparameters along the axes of `ds` that repeat a setting: "seed", "fold".

    A population has none: each member has a seed of its own, and members copy one another.
    """
    order = () if is_population(ds) else axes(ds)
    return [n for n in REPLICATES if n in ds.coords and set(ds[n].dims) & set(order)]


def is_population(ds: xr.Dataset) -> bool:
    """Whether trials continued as copies of others, with hyperparameters that changed."""
    return "parent" in ds


def changed(ds: xr.Dataset, name: str) -> bool:
    """Whether hyperparameter `name` changed while the trials of a population trained."""
    return f"own_{name}" in ds


def in_the_end(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Hyperparameter `name` of each trial; one that `changed` is that of `last_epoch`.

    The coordinate `ds[name]` holds the value with which a trial began.
    """
    return _at_last_epoch(ds, ds[f"own_{name}"]) if changed(ds, name) else ds[name]


def averaged_over(ds: xr.Dataset) -> dict[str, list[int]]:
    """The seeds and folds over which means are taken, by "seed" and "fold"; empty for trials."""
    found = {name: ds.attrs.get(f"averaged_{name}s") for name in REPLICATES}
    return {name: json.loads(values) for name, values in found.items() if values is not None}


def what(ds: xr.Dataset) -> str:
    """What each point of these results is: a "setting" if they are means, otherwise a "trial"."""
    return "setting" if averaged_over(ds) else "trial"


def replicate(ds: xr.Dataset) -> str:
    """What repeats a setting, in results or their means: "seed", "fold" or "seed-fold pair"."""
    names = list(averaged_over(ds)) or replicates(ds)
    return "seed-fold pair" if len(names) > 1 else "".join(names) or "seed"


def count_replicates(ds: xr.Dataset, n: int) -> str:
    """How often a setting is repeated: "3 seeds", "5 folds", "2 seeds × 5 folds"."""
    each = averaged_over(ds) or {
        name: np.unique(ds[name].values).tolist() for name in replicates(ds)
    }
    if len(each) > 1 and n == np.prod([len(values) for values in each.values()]):
        return " × ".join(count(len(values), name) for name, values in each.items())
    return count(n, replicate(ds))


def plan_of(ds: xr.Dataset) -> str:
    """What identifies the plan that a sweep is of: of results of 0.2.0, how it reads."""
    attrs = ds.attrs
    return str(attrs.get("plan_id") or attrs.get("plan") or attrs.get("sweep", ""))


def metrics(ds: xr.Dataset) -> tuple[str, ...]:
    """The names of what was measured by epoch and split, the loss first."""
    _check_dataset(ds)
    if "metrics" in ds.attrs:
        return tuple(json.loads(ds.attrs["metrics"]))
    found = [str(name) for name, v in ds.data_vars.items() if {"epoch", "split"} <= set(v.dims)]
    return tuple(sorted(found, key=lambda name: name != "loss"))


def splits(ds: xr.Dataset) -> tuple[str, ...]:
    """The splits that the results have, "train" first."""
    return tuple(str(split) for split in np.atleast_1d(ds["split"].values))


def default_split(ds: xr.Dataset) -> str:
    """The split by which trials are ranked: "validation" if there is one, otherwise "train"."""
    return "validation" if "validation" in splits(ds) else splits(ds)[0]


def ranked_by(ds: xr.Dataset) -> str:
    """The metric by which pages and tables choose the best trial.

    It is the metric of the search, or the one recorded by the run, and otherwise the loss.
    """
    metric = str(ds.attrs.get("ranked_by", "loss"))
    return metric if metric in metrics(ds) else "loss"


def metrics_by_rank(ds: xr.Dataset) -> list[str]:
    """The `metrics`, with the one that trials are `ranked_by` first."""
    return sorted(metrics(ds), key=lambda metric: metric != ranked_by(ds))


def direction(ds: xr.Dataset, metric: str = "loss") -> str:
    """Which values of `metric` are better: "higher" or "lower".

    Raises UserError for an unknown metric.
    """
    check_metric(ds, metric)
    # Files of an earlier jaxexp do not say it: they hold a loss and an accuracy.
    earlier = "higher" if metric == "accuracy" else "lower"
    return str(ds[metric].attrs.get("direction", earlier))


def units(ds: xr.Dataset, metric: str = "loss") -> str:
    """The unit of `metric`, such as "nats", or ""."""
    return str(ds[metric].attrs.get("units", ""))


def _check_dataset(ds: xr.Dataset) -> None:
    if not isinstance(ds, xr.Dataset):
        hint = ": give results.dataset" if hasattr(ds, "dataset") else ""
        raise UserError(f"{type_of(ds)}, expected the dataset of results{hint}")


def check_metric(ds: xr.Dataset, metric: str, split: str | None = None) -> None:
    """Raise UserError for a metric or a split that the results do not have."""
    if metric not in metrics(ds):
        raise UserError(f"metric={metric!r}: these results have {', '.join(metrics(ds))}")
    if split is not None and split not in splits(ds):
        raise UserError(f"split={split!r}: these results have {', '.join(splits(ds))}")


def applies(ds: xr.Dataset, name: str) -> np.ndarray:
    """Whether hyperparameter `name` has any effect in each trial, in the order of `points`.

    A search space may say that it has not: momentum, say, where the optimizer is not SGD.
    """
    wanted = json.loads(ds.attrs.get("conditions", "{}")).get(name, {})
    given = values_by_trial(ds) if wanted else {}
    there = np.ones(size(ds), bool)
    for other, values in wanted.items():
        if other in ds.coords:
            own = given.get(other, ds[other].values.reshape(-1))
            there &= np.array([text(value) in values for value in own])
    return there


def applying(ds: xr.Dataset, *names: str) -> xr.Dataset:
    """The trials in which all of these hyperparameters have an effect; all trials if none is."""
    there = np.logical_and.reduce([applies(ds, name) for name in names])
    dims = {str(ds[name].dims[0]) for name in names}
    if there.all() or not there.any() or dims != set(axes(ds)):
        return ds
    return ds.isel({dims.pop(): np.flatnonzero(there)})


def size(ds: xr.Dataset) -> int:
    """The number of trials of `ds`."""
    return int(np.prod([ds.sizes[axis] for axis in axes(ds)], dtype=int))


def final(ds: xr.Dataset, metric: str = "loss") -> xr.DataArray:
    """`metric` of each trial at the end of training, (axes, split); NaN if it diverged.

    That is after the trial's own last epoch, or after its best one if a stopping rule kept those
    parameters. Raises UserError for an unknown metric.
    """
    check_metric(ds, metric)
    found = _at_the_end(ds, metric)
    assert found is not None
    return found


def _at_the_end(ds: xr.Dataset, metric: str, beside: str = "") -> xr.DataArray | None:
    """A metric, or what means have `beside` it ("_std"), at the end, (axes, split), if there is.

    Means over trials at their best epochs, which differ, are stored as `final_loss` and the like.
    """
    name, of_means = f"{metric}{beside}", f"final_{metric}"
    name = f"final_{name}" if of_means in ds.data_vars and _is_whole(ds, metric) else name
    if name not in ds.data_vars:
        return None
    values = ds[name] if "split" in ds[name].dims else ds[name].expand_dims("split")
    values = values if name.startswith(of_means) else _at_last_epoch(ds, values)
    when = ds["diverged_epoch"].drop_vars(("epoch", "split"), errors="ignore")
    return values.where(when == 0).transpose(..., "split")


def _is_whole(ds: xr.Dataset, metric: str) -> bool:
    """Whether the selected epochs contain the last one of every mean."""
    return "epoch" in ds[metric].dims and bool((last_epoch(ds) == ds["epochs_trained"]).all())


def kept_best(ds: xr.Dataset) -> np.ndarray:
    """For trials that keep the parameters of their best epochs, whether `final` is of that epoch.

    It is of an earlier one if the best epoch was not selected. Means have one answer for all.
    """
    if "best_epoch" in ds:
        best, last = (np.atleast_1d(own.values) for own in (ds["best_epoch"], last_epoch(ds)))
        kept: np.ndarray = (last == best)[best > 0]
        return kept
    return np.array([bool(ds.attrs.get("best_epochs")) and _is_whole(ds, "loss")])


def _at_last_epoch(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """`values`, by epoch or of a single selected one, at `last_epoch`."""
    if "epoch" not in values.dims:
        values = values.expand_dims("epoch")
    last = last_epoch(ds).drop_vars(("epoch", "split"), errors="ignore")
    return values.sel(epoch=last).drop_vars("epoch")


def last_epoch(ds: xr.Dataset) -> xr.DataArray:
    """The epoch, (axes), whose parameters a trial has in the end, or the last one selected."""
    last = ds["epochs_trained"]
    if "best_epoch" in ds:
        last = last.where(ds["best_epoch"] == 0, ds["best_epoch"])
    there_E = np.atleast_1d(ds["epoch"].values)
    place = np.searchsorted(there_E, last.values, side="right") - 1
    return last.copy(data=there_E[np.maximum(place, 0)].astype(int))


def stopped(ds: xr.Dataset) -> xr.DataArray:
    """Whether a rule ended a trial early, (axes), not counting divergence; for means, all seeds."""
    trained = ds["epochs_trained"]
    own = json.loads(ds.attrs.get("base", "{}")).get("epochs", 0) if "stopping" in ds.attrs else 0
    planned = ds["epochs"] if own and "epochs" in ds.coords else own
    early: xr.DataArray = (trained < planned) & (ds["diverged_epoch"] == 0)
    return early


def carried_on(ds: xr.Dataset, until: xr.DataArray) -> xr.Dataset:
    """Curves in which stopped trials keep their final values, so that they can be averaged.

    After its last epoch, a trial has the values of `final`, up to the epoch `until`, (axes).
    """
    made = {}
    names = [f"{of}{metric}" for metric in metrics(ds) for of in ("", "running_")]
    for name in (name for name in names if name in ds):
        end = ds[name].sel(epoch=last_epoch(ds)).drop_vars("epoch")
        own = ds[name].where(ds["epoch"] <= ds["epochs_trained"], end)
        made[name] = own.where(ds["epoch"] <= until)
    trained = ds["epochs_trained"]
    kept = ds.assign(made).assign(epochs_trained=until.transpose(*trained.dims).astype(int))
    if "best_epoch" in ds and bool((ds["best_epoch"] > 0).any()):
        kept = kept.assign_attrs(best_epochs=1)  # what is left of them: `measured_when`
    return kept.drop_vars("best_epoch", errors="ignore")


def until_divergence(ds: xr.Dataset, variable: str = "loss") -> xr.DataArray:
    """A `variable` by epoch that is NaN from the epoch in which a trial diverged.

    A network of NaN has no loss, but it has an accuracy: that of always naming the first class.
    """
    diverged = ds["diverged_epoch"]
    return ds[variable].where((diverged == 0) | (ds["epoch"] < diverged))


def spread(ds: xr.Dataset, metric: str = "loss") -> xr.DataArray | None:
    """The standard deviation of `final` over the seeds, (axes, split); None for single trials."""
    return _at_the_end(ds, metric, "_std")


def undefined(ds: xr.Dataset, metric: str = "loss") -> xr.DataArray:
    """For means, how many seeds finished with a `final` of NaN, (axes, split); otherwise 0."""
    missing = _at_the_end(ds, metric, "_undefined")
    if missing is None:
        return xr.zeros_like(final(ds, metric), dtype=int)
    return missing.fillna(0).astype(int)


def seed_counts(ds: xr.Dataset) -> np.ndarray | None:
    """How many seeds each setting has, in the order of `points`; None for single trials."""
    if "diverged_seeds" not in ds:
        return None
    return by_trial(ds, ds["seeds"] + ds["diverged_seeds"]).astype(int)


def by_trial(ds: xr.Dataset, values: xr.DataArray) -> np.ndarray:
    """`values` along some of the axes, as one value for each trial in the order of `points`."""
    sizes = {axis: ds.sizes[axis] for axis in axes(ds)}
    laid = values.variable.set_dims(sizes)  # type: ignore[no-untyped-call]
    made: np.ndarray = laid.transpose(*sizes).values.reshape(-1)
    return made


def values_by_trial(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """By name, the value that each trial has in the end, in the order of `points`."""
    return {name: by_trial(ds, in_the_end(ds, name)) for name in hyperparameters(ds)}


def initial_by_trial(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Initial values of hyperparameters that `changed`: "initial_learning_rate" and the like."""
    own = [name for name in hyperparameters(ds) if changed(ds, name)]
    return {f"initial_{name}": by_trial(ds, ds[name]) for name in own}
