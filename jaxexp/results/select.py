"""Choosing, naming and ranking the trials of a sweep's results."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.spec.trial import text

# Every other dimension of a results dataset is an axis of the sweep.
DATA_DIMS = frozenset(
    ("epoch", "split", "step", "layer", "latitude", "longitude", "point", "image")
)


def axes(ds: xr.Dataset) -> tuple[str, ...]:
    """The dimensions of `ds` that are axes of the sweep, in order."""
    return tuple(str(dim) for dim in ds["loss"].dims if dim not in DATA_DIMS)


def hyperparameters(ds: xr.Dataset) -> tuple[str, ...]:
    """The hyperparameters that vary along the axes of `ds`, in the order of the axes."""
    order = axes(ds)
    varying = [str(name) for name, coord in ds.coords.items() if set(coord.dims) & set(order)]
    return tuple(sorted(varying, key=lambda name: order.index(str(ds[name].dims[0]))))


def number(value: Any, digits: int = 4) -> str:
    """`value` as a person writes it: 1, 0.001, 1e-5, 106,897; on and off for booleans.

    Fractions are rounded to `digits` significant digits.
    """
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    if isinstance(value, int | np.integer):
        return f"{value:,}" if abs(int(value)) >= 10_000 else str(value)
    if not isinstance(value, float | np.floating):
        return str(value)
    size = abs(float(value))
    if np.isnan(size):
        return "–"
    if 1_000 <= size < 1e7:
        return number(round(float(value)))
    mantissa, exponential, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponential else mantissa


def label(point: xr.Dataset, names: tuple[str, ...] = ()) -> str:
    """One trial in words: "learning rate 0.001", "depth 2, width 16".

    Names its hyperparameters `names`, or else every one that has been chosen by selection.
    """
    chosen = names or tuple(
        str(name)
        for name, coord in point.coords.items()
        if not coord.dims and name not in DATA_DIMS
    )
    words = [f"{name.replace('_', ' ')} {number(point[name].item())}" for name in chosen]
    return ", ".join(words) or "single trial"


def status(point: xr.Dataset) -> str:
    """How one trial ended: "finished" or "diverged in epoch 3, step 712" (of the whole run)."""
    epoch = int(point["diverged_epoch"])
    if not epoch:
        return "finished"
    step = f", step {number(int(point['diverged_step']))}" if "diverged_step" in point else ""
    return f"diverged in epoch {epoch}{step}"  # files of an earlier jaxexp do not hold the step


def full_label(point: xr.Dataset, names: tuple[str, ...] = ()) -> str:
    """The `label` of one trial, with its `status` in brackets if it diverged."""
    suffix = "" if status(point) == "finished" else f" ({status(point)})"
    return label(point, names) + suffix


def points(ds: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Each trial of `ds`, last axis fastest, as its `full_label` and its own dataset."""
    names = hyperparameters(ds)
    for index in np.ndindex(*(ds.sizes[axis] for axis in axes(ds))):
        point = ds.isel(dict(zip(axes(ds), index, strict=True)))
        yield full_label(point, names), point


def where(ds: xr.Dataset, **values: object) -> xr.Dataset:
    """The trials whose hyperparameters have these values: `where(ds, width=16)`.

    Works on an axis of its own and on one zipped with others; the axis stays, made shorter. A
    tuple of widths is written as in Python or as it is labelled: (64, 32, 16) or "64-32-16".
    """
    for name, value in values.items():
        if name not in hyperparameters(ds):
            raise ValueError(f"{name} does not vary here; {hyperparameters(ds)} do")
        if ds[name].dtype.kind in "UO":  # text, also of numbers among tuples
            value = text(value)
        keep = np.flatnonzero(ds[name].values == value)
        if not keep.size:
            raise ValueError(f"no trial has {name} = {value}; there are {ds[name].values}")
        ds = ds.isel({ds[name].dims[0]: keep})
    return ds


def final(ds: xr.Dataset, quantity: str = "loss") -> xr.DataArray:
    """`quantity` at each trial's own last epoch, (axes, split); NaN where it diverged."""
    last = ds["epochs_trained"].clip(min=1)
    return ds[quantity].sel(epoch=last).where(ds["diverged_epoch"] == 0).drop_vars("epoch")


def sound(ds: xr.Dataset, quantity: str) -> xr.DataArray:
    """`quantity` by epoch as it is, but NaN from the epoch in which a trial diverged.

    A network of NaN has no loss, but it has an accuracy: that of always naming the first class.
    """
    diverged = ds["diverged_epoch"]
    return ds[quantity].where((diverged == 0) | (ds["epoch"] < diverged))


def outcome(point: xr.Dataset, quantity: str, split: str = "validation", digits: int = 3) -> str:
    """`quantity` of one trial after its last epoch, in words: "0.913", or else its `status`."""
    if status(point) != "finished":
        return status(point)
    value = float(final(point, quantity).sel(split=split))
    return f"{value:.{digits}f}" + (" nats" if quantity == "loss" else "")


def rank(ds: xr.Dataset, quantity: str = "loss", split: str = "validation") -> pd.DataFrame:
    """The trials of `ds`, best first, by `quantity` at each one's own last epoch.

    Losses rank upwards, accuracies downwards; diverged trials come last, the earliest very last.
    Columns: `trial` (its label), `value`, `epoch` (the last one trained), `status`. The index is
    the trial's place in `points(ds)`.
    """
    trials = list(points(ds))
    names = hyperparameters(ds)
    table = pd.DataFrame(
        {
            "trial": [label(point, names) for _, point in trials],
            "value": [float(final(point, quantity).sel(split=split)) for _, point in trials],
            "epoch": [int(point["epochs_trained"]) for _, point in trials],
            "status": [status(point) for _, point in trials],
        }
    )
    key = -table["value"] if quantity == "accuracy" else table["value"]
    late = [-int(point["diverged_epoch"]) for _, point in trials]
    order = pd.DataFrame({"key": key, "late": late}).sort_values(["key", "late"], kind="stable")
    return table.loc[order.index]


def best(
    ds: xr.Dataset, quantity: str = "loss", split: str = "validation"
) -> tuple[str, xr.Dataset]:
    """The first trial of `rank`, as its `full_label` (which says so if all diverged) and data."""
    return list(points(ds))[rank(ds, quantity, split).index[0]]


def worst(
    ds: xr.Dataset, quantity: str = "loss", split: str = "validation"
) -> tuple[str, xr.Dataset]:
    """The last trial of `rank`, a diverged one if there is any, as its `full_label` and data."""
    return list(points(ds))[rank(ds, quantity, split).index[-1]]


def divergences(ds: xr.Dataset) -> list[str]:
    """One sentence for each diverged trial: "learning rate 1 diverged in epoch 3, step 712"."""
    names = hyperparameters(ds)
    ended = [(label(point, names), status(point)) for _, point in points(ds)]
    return [f"{name} {how}" for name, how in ended if how != "finished"]


def divergence_note(datasets: Mapping[str, xr.Dataset]) -> str:
    """How many trials of named results diverged, and which; "" if none did.

    "3 of 15 trials diverged: …". A name, if it is not empty, stands before its trials.
    """
    found = [
        f"{name}, {sentence}" if name else sentence
        for name, ds in datasets.items()
        for sentence in divergences(ds)
    ]
    total = sum(ds["diverged_epoch"].size for ds in datasets.values())
    return f"{len(found)} of {total} trials diverged: {'; '.join(found)}." if found else ""
