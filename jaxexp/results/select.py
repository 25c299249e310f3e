"""Choosing, naming and ranking the trials of a sweep's results, whatever their task measures.

A *metric* is a name in `metrics(ds)`; each knows its direction and its unit. Where a function takes
a metric, the default is the loss; where it takes a split, the default is "validation" if the
results have it, and else "train" (`default_split`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_number
from jaxexp.spec.values import text

# A hyperparameter's value in a dataset: numbers that can be compared, or text.
Plain: TypeAlias = Any
# Coordinates that are never hyperparameters.
INDEXES = frozenset(("epoch", "split", "step", "layer"))
# Hyperparameters that repeat a setting, which is judged by its mean over them.
REPLICATES = ("seed", "fold")


def axes(ds: xr.Dataset) -> tuple[str, ...]:
    """The dimensions of `ds` that are axes of the sweep, in order.

    Those that `ds.attrs["axes"]` names and that have not been selected away; without the
    attribute, the dimensions of the loss but for epoch and split.
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

    None of a population: its members have a seed each, and copy one another.
    """
    order = () if is_population(ds) else axes(ds)
    return [n for n in REPLICATES if n in ds.coords and set(ds[n].dims) & set(order)]


def is_population(ds: xr.Dataset) -> bool:
    """Whether trials went on as copies of others, with hyperparameters that changed."""
    return "parent" in ds


def changed(ds: xr.Dataset, name: str) -> bool:
    """Whether hyperparameter `name` changed while the trials of a population trained."""
    return f"own_{name}" in ds


def named(ds: xr.Dataset, name: str) -> str:
    """Hyperparameter `name` in words, as `in_the_end` has it: "width", "final learning rate"."""
    return f"final {words(name)}" if changed(ds, name) else words(name)


def in_the_end(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Hyperparameter `name` of the trials; one that `changed`, as in the epoch of `last_epoch`.

    The coordinate `ds[name]` has the value with which a trial began.
    """
    return _at_last_epoch(ds, ds[f"own_{name}"]) if changed(ds, name) else ds[name]


def averaged_over(ds: xr.Dataset) -> dict[str, list[int]]:
    """The seeds and folds that means are over, by "seed" and "fold"; empty of single trials."""
    found = {name: ds.attrs.get(f"averaged_{name}s") for name in REPLICATES}
    return {name: json.loads(values) for name, values in found.items() if values is not None}


def what(ds: xr.Dataset) -> str:
    """What a point of these results is: a "setting" of means over seeds, or else a "trial"."""
    return "setting" if averaged_over(ds) else "trial"


def replicate(ds: xr.Dataset) -> str:
    """What repeats a setting, of results or of their means: "seed", "fold" or "seed-fold pair"."""
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
    """The split by which trials are ranked: "validation" if there is one, else "train"."""
    return "validation" if "validation" in splits(ds) else splits(ds)[0]


def ranked_by(ds: xr.Dataset) -> str:
    """The metric by which pages and tables call a trial the best.

    That of a search, or the one that a run has written down; or else the loss.
    """
    metric = str(ds.attrs.get("ranked_by", "loss"))
    return metric if metric in metrics(ds) else "loss"


def metrics_by_rank(ds: xr.Dataset) -> list[str]:
    """The `metrics`, but first the one that trials are `ranked_by`."""
    return sorted(metrics(ds), key=lambda metric: metric != ranked_by(ds))


def direction(ds: xr.Dataset, metric: str = "loss") -> str:
    """Which values of `metric` are better: "higher" or "lower".

    Raises UserError for an unknown metric.
    """
    _check(ds, metric)
    # Files of an earlier jaxexp do not say it: they hold a loss and an accuracy.
    earlier = "higher" if metric == "accuracy" else "lower"
    return str(ds[metric].attrs.get("direction", earlier))


def units(ds: xr.Dataset, metric: str = "loss") -> str:
    """The unit of `metric`, such as "nats", or ""."""
    return str(ds[metric].attrs.get("units", ""))


def _check_dataset(ds: xr.Dataset) -> None:
    if not isinstance(ds, xr.Dataset):
        hint = ": give results.dataset" if hasattr(ds, "dataset") else ""
        raise UserError(f"a {type(ds).__name__}, expected the dataset of results{hint}")


def _check(ds: xr.Dataset, metric: str, split: str | None = None) -> None:
    if metric not in metrics(ds):
        raise UserError(f"metric={metric!r}: these results have {', '.join(metrics(ds))}")
    if split is not None and split not in splits(ds):
        raise UserError(f"split={split!r}: these results have {', '.join(splits(ds))}")


def number(value: object, digits: int = 4) -> str:
    """`value` as a person writes it: 1, 0.001, 1e-5, 106,897; on and off for booleans.

    Fractions are rounded to `digits` significant digits, larger numbers to whole ones. A negative
    number has a minus sign (−); an exponent is written as it is typed (1e-5).
    """
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    if isinstance(value, int | np.integer):
        return _minus(f"{value:,}" if abs(int(value)) >= 10_000 else str(value))
    if not isinstance(value, float | np.floating):
        return text(value)
    size = abs(float(value))
    if np.isnan(size):
        return "–"
    # Whole digits stay: 603 of two digits is 603, not 6e2.
    if size < 1e7 and (size >= 1_000 or round(size) >= 10**digits):
        return number(round(float(value)))
    mantissa, exponential, exponent = f"{value:.{digits}g}".partition("e")
    return _minus(f"{mantissa}e{int(exponent)}" if exponential else mantissa)


def decimals(value: float, digits: int = 4) -> str:
    """`value` to a fixed number of decimals: "0.5000".

    As `number` writes it where those would hide it: far below 1, or 1,000 and above.
    """
    if value == 0 or 10.0 ** (1 - digits) <= abs(value) < 1_000:
        return _minus(f"{value:.{digits}f}")
    return number(float(value), digits)


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: "+0.012", "−0.004"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def count(n: int, noun: str) -> str:
    """A number of things: "1 program", "12 programs"."""
    return f"{number(int(n))} {noun}{'' if n == 1 else 's'}"


def mean_over(seeds: str) -> str:
    """What is said of numbers with a "±": " (mean ± standard deviation over 6 seeds)"."""
    return f" (mean ± standard deviation over {seeds})"


def _minus(digits: str) -> str:
    """The sign of a number as a minus sign, and none before 0."""
    if not digits.startswith("-"):
        return digits
    return f"−{digits[1:]}" if any(digit in digits for digit in "123456789i") else digits[1:]


def words(name: str) -> str:
    """The name of a hyperparameter, metric or sweep as it stands in a sentence.

    One that is no name of Python's is prose already: "a$x_1$".
    """
    return name.replace("_", " ") if name.isidentifier() else name


def metric_words(metric: str, split: str) -> str:
    """A metric of a split as it stands in a sentence: "validation loss", "training r2"."""
    return f"{'training' if split == 'train' else split} {words(metric)}"


def with_unit(ds: xr.Dataset, metric: str, value: str) -> str:
    """`value`, already text, and the unit of `metric`: "0.243 nats"."""
    return f"{value} {units(ds, metric)}".rstrip()


def label(point: xr.Dataset, names: Iterable[str] = ()) -> str:
    """One trial in words: "learning rate 0.001", "depth 2, width 16".

    Names its hyperparameters `names`, or else every one that has been chosen by selection; those
    that changed while it trained `in_the_end`: "final learning rate 0.02".
    """
    chosen = tuple(names)
    if not chosen:
        scalar = [str(n) for n, c in point.coords.items() if not c.dims and n not in INDEXES]
        declared = json.loads(point.attrs.get("base", "{}"))
        chosen = tuple(name for name in scalar if name in declared or not declared)
    applying = (name for name in chosen if applies(point, name).all())
    return _label({named(point, name): in_the_end(point, name).item() for name in applying})


def _label(values: Mapping[str, object]) -> str:
    """Of values by their names in words."""
    return ", ".join(f"{name} {number(value)}" for name, value in values.items()) or "single trial"


def applies(ds: xr.Dataset, name: str) -> np.ndarray:
    """Whether hyperparameter `name` does anything in each trial, in the order of `points`.

    A search space may say so: momentum only where the optimizer is SGD.
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
    """The trials in which all of these hyperparameters do something; all where that is none."""
    there = np.logical_and.reduce([applies(ds, name) for name in names])
    dims = {str(ds[name].dims[0]) for name in names}
    if there.all() or not there.any() or dims != set(axes(ds)):
        return ds
    return ds.isel({dims.pop(): np.flatnonzero(there)})


def status(point: xr.Dataset) -> str:
    """How one trial ended: "finished" or "diverged in epoch 3, step 712" (of the whole run)."""
    step = int(point["diverged_step"]) if "diverged_step" in point else 0
    return _status(int(point["diverged_epoch"]), step)


def _status(epoch: int, step: int) -> str:
    if not epoch:
        return "finished"
    # Files of an earlier jaxexp do not hold the step.
    return f"diverged in epoch {epoch}" + (f", step {number(step)}" if step else "")


def full_label(point: xr.Dataset, names: Iterable[str] = ()) -> str:
    """The `label` of one trial, with its `status` in brackets if it diverged.

    Of a mean over seeds some of which diverged, the brackets say how many.
    """
    how = "" if status(point) == "finished" else status(point)
    if not how and "diverged_seeds" in point and (lost := int(point["diverged_seeds"])):
        how = f"{lost} of {count(lost + int(point['seeds']), replicate(point))} diverged"
    return label(point, names) + (f" ({how})" if how else "")


def points(ds: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Each trial of `ds`, last axis fastest, as its `full_label` and its own dataset."""
    for place in range(size(ds)):
        yield point(ds, place)


def point(ds: xr.Dataset, place: int) -> tuple[str, xr.Dataset]:
    """The trial at `place` of `points(ds)`, as its `full_label` and its own dataset."""
    index = np.unravel_index(place, [ds.sizes[axis] for axis in axes(ds)]) if axes(ds) else ()
    own = ds.isel({axis: int(i) for axis, i in zip(axes(ds), index, strict=True)})
    return full_label(own, hyperparameters(ds)), own


def size(ds: xr.Dataset) -> int:
    """The number of trials of `ds`."""
    return int(np.prod([ds.sizes[axis] for axis in axes(ds)], dtype=int))


def same(value: object, wanted: object) -> bool:
    """Whether two values are equal, as float32 has them where they are floats."""
    if value == wanted or not (isinstance(value, float) and isinstance(wanted, float)):
        return bool(value == wanted)
    return bool(np.float32(value) == np.float32(wanted))


def where(ds: xr.Dataset, **values: object) -> xr.Dataset:
    """The trials whose hyperparameters have these values `in_the_end`: `where(ds, width=16)`.

    Works on an axis of its own and on one zipped with others; the axis stays, made shorter. Floats
    are compared as float32, as `results.trial` does; where none is equal, one may be given as it is
    shown, rounded, unless another is shown alike. A tuple of widths is written as in Python or
    as it is labelled: (64, 32, 16) or "64-32-16".
    Raises UserError for a hyperparameter that does not vary, and for a value that no trial has.
    """
    for name, value in values.items():
        if name not in hyperparameters(ds):
            raise UserError(_not_varying(ds, name))
        values_P = in_the_end(ds, name).values
        if values_P.dtype.kind in "UO":  # text, also of numbers among tuples
            keep = np.array([_same_text(str(own), value) for own in values_P])
        else:
            keep = np.array([same(own, value) for own in values_P.tolist()])
            keep = keep if keep.any() else _shown_as(name, values_P, value)
        if not keep.any():
            there = ", ".join(dict.fromkeys(number(own) for own in values_P))
            has = "ends with" if changed(ds, name) else "has"
            raise UserError(f"no trial {has} {name} = {value}; there are {there}")
        ds = ds.isel({ds[name].dims[0]: np.flatnonzero(keep)})
    return ds


def _not_varying(ds: xr.Dataset, name: str) -> str:
    """Why trials cannot be selected by this name."""
    own = name.removeprefix("final_").removeprefix("initial_")
    if own != name and changed(ds, own):
        return f"{name}: expected {own}, which selects by the values that trials end with"
    varying = ", ".join(hyperparameters(ds)) or "none"
    return f"{name} does not vary here; the hyperparameters that do: {varying}"


def _shown_as(name: str, own: np.ndarray, value: object) -> np.ndarray:
    """Which floats `number` rounds to `value`; raises UserError where they differ."""
    if own.dtype.kind != "f" or not is_number(value):
        return np.zeros(len(own), bool)
    shown = [number(v).replace("−", "-").replace(",", "") for v in own]
    keep = np.array([s != "–" and float(s) == value for s in shown])
    if len(found := dict.fromkeys(own[keep].tolist())) > 1:
        raise UserError(
            f"{name} = {value}: expected one of {', '.join(map(text, found))}, shown alike"
        )
    return keep


def final(ds: xr.Dataset, metric: str = "loss") -> xr.DataArray:
    """`metric` of each trial as it is in the end, (axes, split); NaN where it diverged.

    That is after its own last epoch, or after the best one where a stopping rule has kept its
    parameters. Raises UserError for an unknown metric.
    """
    _check(ds, metric)
    return _at_the_end(ds, ds[metric])


def _at_the_end(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """`values` (axes, epoch, split) of the epoch that counts, (axes, split), also of one split."""
    if "split" not in values.dims:
        values = values.expand_dims("split")
    when = ds["diverged_epoch"].drop_vars(("epoch", "split"), errors="ignore")
    return _at_last_epoch(ds, values).where(when == 0).transpose(..., "split")


def _at_last_epoch(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """`values` by epoch, or of one that was selected, as of `last_epoch`."""
    if "epoch" not in values.dims:
        values = values.expand_dims("epoch")
    last = last_epoch(ds).drop_vars(("epoch", "split"), errors="ignore")
    return values.sel(epoch=last).drop_vars("epoch")


def last_epoch(ds: xr.Dataset) -> xr.DataArray:
    """The epoch, (axes), whose parameters each trial has in the end, or the last one selected."""
    last = ds["epochs_trained"]
    if "best_epoch" in ds:
        last = last.where(ds["best_epoch"] == 0, ds["best_epoch"])
    there_E = np.atleast_1d(ds["epoch"].values)
    place = np.searchsorted(there_E, last.values, side="right") - 1
    return last.copy(data=there_E[np.maximum(place, 0)].astype(int))


def measured_when(ds: xr.Dataset) -> str:
    """What `final` is of, in words: "after the last epoch", "at each trial's best epoch"."""
    best = ds["best_epoch"] if "best_epoch" in ds else ds.attrs.get("best_epochs", 0)
    if not np.any(best):
        return "after the last epoch"
    alone = size(ds) == 1 and not averaged_over(ds)
    return "at its best epoch" if alone else "at each trial's best epoch"


def stopped(ds: xr.Dataset) -> xr.DataArray:
    """Whether a rule ended each trial early, (axes), but for divergence; of means, all seeds."""
    trained = ds["epochs_trained"]
    own = json.loads(ds.attrs.get("base", "{}")).get("epochs", 0) if "stopping" in ds.attrs else 0
    planned = ds["epochs"] if own and "epochs" in ds.coords else own
    early: xr.DataArray = (trained < planned) & (ds["diverged_epoch"] == 0)
    return early


def stopping_note(ds: xr.Dataset) -> str:
    """How many trials were stopped early, and when; "" if none was."""
    early = by_trial(ds, stopped(ds))
    if not early.any():
        return ""
    when = by_trial(ds, ds["epochs_trained"])[early].astype(int)
    first, last = int(when.min()), int(when.max())
    after = count(last, "epoch") if first == last else f"{first} to {count(last, 'epoch')}"
    kept = ""
    if "best epoch" in measured_when(ds):
        kept = ", and the results are those of each trial's best epoch"
    how_many = f"{number(int(early.sum()))} of {count(size(ds), 'trial')}"
    return f"{how_many} stopped early, after {after}{kept}."


def carried_on(ds: xr.Dataset, until: xr.DataArray) -> xr.Dataset:
    """Curves of trials that were stopped, as if they had stayed as they are in the end.

    From its last epoch on, a trial has the values of `final`, up to the epoch `until`, (axes); so
    that trials stopped at different times have a mean.
    """
    made = {}
    for metric in metrics(ds):
        end = ds[metric].sel(epoch=last_epoch(ds)).drop_vars("epoch")
        own = ds[metric].where(ds["epoch"] < ds["epochs_trained"], end)
        made[metric] = own.where(ds["epoch"] <= until)
    trained = ds["epochs_trained"]
    kept = ds.assign(made).assign(epochs_trained=until.transpose(*trained.dims).astype(int))
    if "best_epoch" in ds and bool((ds["best_epoch"] > 0).any()):
        kept = kept.assign_attrs(best_epochs=1)  # what is left of them: `measured_when`
    return kept.drop_vars("best_epoch", errors="ignore")


def until_divergence(ds: xr.Dataset, variable: str = "loss") -> xr.DataArray:
    """A `variable` by epoch as it is, but NaN from the epoch in which a trial diverged.

    A network of NaN has no loss, but it has an accuracy: that of always naming the first class.
    """
    diverged = ds["diverged_epoch"]
    return ds[variable].where((diverged == 0) | (ds["epoch"] < diverged))


def outcome(
    point: xr.Dataset, metric: str = "loss", split: str | None = None, digits: int = 3
) -> str:
    """`metric` of one trial after its last epoch: "0.913", "0.243 nats", or else its `status`.

    Of a mean over seeds, with the standard deviation: "0.913 ± 0.004"; and with how many it is
    over, where the metric is undefined for others.
    Raises UserError for an unknown metric or split.
    """
    split = split or default_split(point)
    _check(point, metric, split)
    if status(point) != "finished":
        return status(point)
    value = float(final(point, metric).sel(split=split))
    std = spread(point, metric)
    shown = plus_minus(value, None if std is None else std.sel(split=split), digits)
    return with_unit(point, metric, shown) + missing_in_words(point, metric, split)


def spread(ds: xr.Dataset, metric: str = "loss") -> xr.DataArray | None:
    """The standard deviation over the seeds of `final`, (axes, split); None of single seeds."""
    name = f"{metric}_std"
    if name not in ds:
        return None
    return _at_the_end(ds, ds[name])


def undefined(ds: xr.Dataset, metric: str = "loss") -> xr.DataArray:
    """Of how many seeds that finished `final` is NaN, (axes, split), of means; else 0."""
    name = f"{metric}_undefined"
    if name not in ds:
        return xr.zeros_like(final(ds, metric), dtype=int)
    return _at_the_end(ds, ds[name]).fillna(0).astype(int)


def averaged_in_words(setting: xr.Dataset, metric: str, split: str) -> str:
    """What the mean of one setting is over: "5 folds", or "3 of 5 folds, undefined in 2"."""
    n, missing = int(setting["seeds"]), int(undefined(setting, metric).sel(split=split))
    if not missing:
        return count_replicates(setting, n)
    of = count(n, replicate(setting))
    return f"{number(n - missing)} of {of}, undefined in {number(missing)}"


def missing_in_words(point: xr.Dataset, metric: str, split: str) -> str:
    """Of a mean that misses seeds " (over 3 of 5 folds, undefined in 2)", and else ""."""
    if not int(undefined(point, metric).sel(split=split)):
        return ""
    return f" (over {averaged_in_words(point, metric, split)})"


def seed_counts(ds: xr.Dataset) -> np.ndarray | None:
    """How many seeds each setting of means has, in the order of `points`; None of single trials."""
    if "diverged_seeds" not in ds:
        return None
    return by_trial(ds, ds["seeds"] + ds["diverged_seeds"]).astype(int)


def plus_minus(value: float, std: object = None, digits: int = 4) -> str:
    """A value and its standard deviation: "0.9130 ± 0.0040"; the value alone without one."""
    width = float("nan") if std is None else float(std)  # type: ignore[arg-type]
    if not np.isfinite(width):
        return decimals(value, digits)
    # To as many decimals as the value, unless they would hide it.
    alike = width >= 0.5 * 10.0**-digits and abs(value) < 1_000
    shown = f"{width:.{digits}f}" if alike else number(width, 2)
    return f"{decimals(value, digits)} ± {shown}"


def rank(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> pd.DataFrame:
    """The trials of `ds`, best first, by `metric` at the end of each one's own last epoch.

    The metric's `direction` decides what is better. Ties are broken by the loss on
    `default_split(ds)`, then by position. A trial without a finite value comes after those with
    one; diverged trials come last, the earliest very last. Of means over seeds, those of which a
    seed diverged come after those of which none did, and then those for which the metric is
    undefined for more seeds after those for fewer: what is left may be the easier ones.
    Columns: `trial` (its label), each of its hyperparameters `in_the_end`, `value`, `epoch` (whose
    parameters it has in the end: the last one trained, or the best), `status`. The index is the
    trial's place in `points(ds)`.
    Raises UserError for an unknown metric or split.
    """
    return _ranked(ds, metric, split).drop(columns="place")


def _ranked(ds: xr.Dataset, metric: str, split: str | None) -> pd.DataFrame:
    """See `rank`; and `place`, from 1, the same where trials tie, none without a finite value."""
    split = split or default_split(ds)
    _check(ds, metric, split)
    value = by_trial(ds, final(ds, metric).sel(split=split))
    loss = by_trial(ds, final(ds, "loss").sel(split=default_split(ds)))
    diverged = by_trial(ds, ds["diverged_epoch"])
    given = values_by_trial(ds)
    table = pd.DataFrame(
        {
            "trial": [_label(row) for row in _rows(ds)],
            **given,
            "value": value,
            "epoch": by_trial(ds, last_epoch(ds)),
            "status": _statuses(ds),
        }
    )
    sign = -1 if direction(ds, metric) == "higher" else 1
    late = np.where(diverged == 0, -np.inf, -diverged)
    lost = by_trial(ds, ds["diverged_seeds"]) > 0 if "diverged_seeds" in ds else diverged > 0
    missing = by_trial(ds, undefined(ds, metric).sel(split=split))
    keys = pd.DataFrame(
        {0: ~np.isfinite(value), 1: lost, 2: missing, 3: _finite_first(sign * value)}
    )
    tied = keys.groupby([*keys]).ngroup()
    place = tied.where(np.isfinite(value)).rank(method="min")
    order = np.lexsort((late, _finite_first(loss), tied))
    return table.assign(place=place.astype("Int64")).loc[order]


def _statuses(ds: xr.Dataset) -> list[str]:
    """The `status` of each trial, in the order of `points`."""
    epochs = by_trial(ds, ds["diverged_epoch"])
    steps = by_trial(ds, ds["diverged_step"]) if "diverged_step" in ds else np.zeros(len(epochs))
    return [_status(int(epoch), int(step)) for epoch, step in zip(epochs, steps, strict=True)]


def _finite_first(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.inf)


def by_trial(ds: xr.Dataset, values: xr.DataArray) -> np.ndarray:
    """`values` along some of the axes as one for each trial, in the order of `points`."""
    sizes = {axis: ds.sizes[axis] for axis in axes(ds)}
    laid = values.variable.set_dims(sizes)  # type: ignore[no-untyped-call]
    made: np.ndarray = laid.transpose(*sizes).values.reshape(-1)
    return made


def values_by_trial(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """By name, the value that each trial has `in_the_end`, in the order of `points`."""
    return {name: by_trial(ds, in_the_end(ds, name)) for name in hyperparameters(ds)}


def initial_by_trial(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Of those that `changed` what each trial began with: "initial_learning_rate" and the like."""
    own = [name for name in hyperparameters(ds) if changed(ds, name)]
    return {f"initial_{name}": by_trial(ds, ds[name]) for name in own}


def distinct(ds: xr.Dataset, name: str) -> list[Plain]:
    """The values `in_the_end` of hyperparameter `name`, each once.

    Numbers by size, then others by their text. Numbers and tuples of them are known also where they
    are text, as beside None.
    """
    values = in_the_end(ds, name).values
    numeric = values.dtype.kind in "biuf"
    return sorted(set(values.tolist()), key=None if numeric else _text_order)


def _text_order(value: object) -> tuple[bool, int, tuple[float, ...], str]:
    numbers = _numbers(value)
    return not numbers, len(numbers), numbers, number(value)


def _numbers(value: object) -> tuple[float, ...]:
    """The numbers of a value, or of the text of one, such as "64-32-16"; none of any other."""
    written = text(value)
    for parts in ([written], written.split("-")):
        try:
            made = tuple(map(float, parts))
        except ValueError:
            continue
        return made if np.isfinite(made).all() else ()
    return ()


def _same_text(own: str, value: object) -> bool:
    """Whether `own`, a value as text, is this one: "10.0" is the number 10."""
    if own == text(value) or isinstance(value, str | bool | None):
        return own == text(value)
    there, wanted = _numbers(own), _numbers(value)
    return bool(wanted) and len(there) == len(wanted) and all(map(same, there, wanted))


def _rows(ds: xr.Dataset) -> list[dict[str, object]]:
    """The hyperparameters of each trial that do something there, by their names in words."""
    columns = [
        (named(ds, name), values, applies(ds, name)) for name, values in values_by_trial(ds).items()
    ]
    return [{name: v[i] for name, v, there in columns if there[i]} for i in range(size(ds))]


def best(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> tuple[str, xr.Dataset]:
    """The first trial of `rank`, as its `full_label` (which says so if all diverged) and data.

    Others may have the same value: see `ties`.
    """
    return point(ds, int(rank(ds, metric, split).index[0]))


def worst(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> tuple[str, xr.Dataset]:
    """The last trial of `rank`, a diverged one if there is any, as its `full_label` and data."""
    return point(ds, int(rank(ds, metric, split).index[-1]))


def ties(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> list[str]:
    """The labels of all trials whose `metric` is exactly the best one, in the order of `rank`.

    One label where nothing ties, none where no trial has a finite value.
    """
    return _ties(_ranked(ds, metric, split))


def _ties(ranked: pd.DataFrame) -> list[str]:
    return ranked.loc[(ranked["place"] == 1).fillna(False), "trial"].tolist()


def best_in_words(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, digits: int = 4
) -> str:
    """A sentence on the best trial by `metric`, or on those that tie.

    "The lowest validation loss after the last epoch is 0.2430 nats: width 64."
    "3 of 5 trials tie at the highest test accuracy after the last epoch, 0.5000: …"
    """
    split = split or default_split(ds)
    ranked, trials = _ranked(ds, metric, split), size(ds)
    tied = _ties(ranked)
    measured = f"{metric_words(metric, split)} {measured_when(ds)}"
    if not tied:
        if bool((ds["diverged_epoch"] > 0).all()):
            several = trials > 1 or averaged_over(ds)
            return "Every trial diverged." if several else "The trial diverged."
        return f"No {what(ds)} has a finite {measured}."
    first, std = float(ranked["value"].iloc[0]), spread(ds, metric)
    if std is not None:
        std = by_trial(ds, std.sel(split=split))[int(ranked.index[0])]
    value = with_unit(ds, metric, plus_minus(first, std, digits))
    best = point(ds, int(ranked.index[0]))[1]
    if std is not None and np.isfinite(std):
        value += mean_over(averaged_in_words(best, metric, split))
    else:
        value += missing_in_words(best, metric, split)
    if trials == 1:
        return f"The {measured} is {value}."
    if len(tied) == trials:
        all_of_them = "Both" if trials == 2 else f"All {number(trials)}"
        return f"{all_of_them} {what(ds)}s have the same {measured}: {value}."
    higher = direction(ds, metric) == "higher"
    extreme = "highest" if higher else "lowest"
    better = ranked[ranked["value"] > first if higher else ranked["value"] < first]
    passed = _passed_over(ds, metric, better, digits)
    if passed:
        measured += f" of settings without a diverged {replicate(ds)}"
    among = (
        ""
        if passed or better.empty
        else f", of the settings that miss the fewest {replicate(ds)}s,"
    )
    if len(tied) == 1:
        return f"The {extreme} {measured}{among} is {value}: {tied[0]}.{passed}"
    more = f"; and {len(tied) - 3} more" if len(tied) > 3 else ""
    return (
        f"{len(tied)} of {number(trials)} {what(ds)}s tie at the {extreme} "
        f"{measured}{among or ','} {value}: {'; '.join(tied[:3])}{more}.{passed}"
    )


def _passed_over(ds: xr.Dataset, metric: str, better: pd.DataFrame, digits: int) -> str:
    """A sentence on settings that would be best, but for a seed that diverged; "" if not of all."""
    lost = by_trial(ds, ds["diverged_seeds"]) if "diverged_seeds" in ds else np.zeros(size(ds), int)
    if better.empty or not lost[better.index].all():
        return ""
    place = int(better.index[0])
    diverged, finished = int(lost[place]), int(by_trial(ds, ds["seeds"])[place])
    which = direction(ds, metric)
    value = with_unit(ds, metric, decimals(float(better["value"].iloc[0]), digits))
    others = f", and {count(len(better) - 1, 'more setting')} likewise" if len(better) > 1 else ""
    return (
        f" The mean of {better['trial'].iloc[0]} is {which}, {value}, but {diverged} of "
        f"{count(diverged + finished, replicate(ds))} diverged, and it is over the rest{others}."
    )


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
    ranked = _ranked(ds, metric, split).iloc[:most]
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
    return made.reset_index(drop=True)


def divergences(ds: xr.Dataset) -> list[str]:
    """One sentence for each diverged trial: "learning rate 1 diverged in epoch 3, step 712"."""
    named = zip(_rows(ds), _statuses(ds), strict=True)
    return [f"{_label(values)} {how}" for values, how in named if how != "finished"]


def divergence_note(datasets: Mapping[str, xr.Dataset]) -> str:
    """How many trials of named results diverged; "" if none did.

    Up to three are named: "2 of 15 trials diverged: …". Of more, the epochs are given: "7 of 48
    trials diverged, in epochs 1 to 5." A name, if it is not empty, stands before its trials.
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
