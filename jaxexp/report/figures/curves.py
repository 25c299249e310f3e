"""Losses and accuracies: by epoch, and after the last one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxexp.report.figures.style import (
    DIVERGED,
    RING,
    SPLITS,
    STYLE,
    UNITS,
    add_legend,
    by_epoch,
    make_panels,
    scale_y,
    trial_colours,
)
from jaxexp.results.select import axes, final, hyperparameters, number, points, sound, status


@rc_context(STYLE)
def curves(
    ds: xr.Dataset,
    quantity: str = "loss",
    split: str = "validation",
    reference: tuple[float, str] | None = None,
) -> Figure:
    """`quantity` ("loss" or "accuracy") of `split` by epoch, one curve per trial.

    The curve of a diverged trial ends with a cross, and the legend names the epoch. `reference`
    is a height and its name, drawn as a horizontal line.
    """
    fig, [[ax]] = make_panels(1, 1, 5.2, 4.0)
    for (name, point), colour in zip(points(ds), trial_colours(ds), strict=True):
        _curve(ax, point, quantity, split, color=colour, label=name)
    if reference:
        height, text = reference
        ax.axhline(height, color="0.35", lw=1, ls=":", label=f"{text}, {number(height)}")
    by_epoch(ax, ds)
    ax.set_ylabel(f"{split} {quantity}{UNITS[quantity]}")
    if quantity == "loss":
        scale_y(ax, sound(ds, "loss").sel(split=split))
    add_legend(fig, [ax])
    return fig


@rc_context(STYLE)
def splits(
    ds: xr.Dataset, quantities: Sequence[str] = ("loss",), *, mark_best: bool = True
) -> Figure:
    """Train, validation and test by epoch; the best validation epoch is ringed if `mark_best`.

    One trial: a panel per quantity, side by side. Several: a column per trial, a row per quantity.
    """
    trials = list(points(ds))
    if len(trials) == 1:
        fig, panels = make_panels(1, len(quantities), 5.2 if len(quantities) == 1 else 3.7, 3.6)
        panels = panels.T
    else:
        fig, panels = make_panels(len(quantities), len(trials), 3.7, 2.8, sharex=True, sharey="row")
    for row, quantity in zip(panels, quantities, strict=True):
        for ax, (_, point) in zip(row, trials, strict=True):
            _splits_panel(ax, point, quantity, mark_best)
        row[0].set_ylabel(f"{quantity}{UNITS[quantity]}")
        if quantity == "loss":
            scale_y(row[0], sound(ds, "loss"))
    for ax, (name, point) in zip(panels[0], trials, strict=True):
        ax.set_title(name if len(trials) > 1 or status(point) != "finished" else "")
    for ax in panels[:-1].flat if len(trials) > 1 else ():
        ax.set_xlabel("")
    add_legend(fig, panels.flat)
    return fig


def _splits_panel(ax: Axes, point: xr.Dataset, quantity: str, mark_best: bool) -> None:
    for split, style in SPLITS.items():
        line = {key: value for key, value in style.items() if key != "marker"}
        _curve(ax, point, quantity, split, label=split, **line)
    by_epoch(ax, point)
    values = sound(point, quantity).sel(split="validation")
    if not mark_best or not np.isfinite(values).any():
        return
    where = values.idxmax("epoch") if quantity == "accuracy" else values.idxmin("epoch")
    height = float(values.sel(epoch=where))
    label = f"best validation {quantity}: {number(height)} in epoch {int(where)}"
    ax.plot([where], [height], **RING, ms=9, clip_on=False, label=label)


def _curve(ax: Axes, point: xr.Dataset, quantity: str, split: str, **style: Any) -> None:
    """One curve by epoch up to its divergence, which is marked, as is a curve of one point."""
    values = sound(point, quantity).sel(split=split)
    values = values[np.isfinite(values.values)]
    if status(point) != "finished":
        style |= DIVERGED | {"markevery": [values.size - 1] if values.size else None}
    elif values.size == 1:
        style |= {"marker": "o"}
    ax.plot(values["epoch"], values, **style)


@rc_context(STYLE)
def final_by(ds: xr.Dataset, axis: str, quantity: str = "accuracy") -> Figure:
    """`quantity` of the three splits after the last epoch, against hyperparameter `axis`.

    `axis` has to be the only thing that varies along the one axis of `ds` (choose with
    `select.where`). The best by validation is marked; diverged trials stand as bare tick labels.
    """
    if axis not in hyperparameters(ds) or len(axes(ds)) != 1:
        raise ValueError(f"expected {axis} to vary along the only axis, there are {axes(ds)}")
    if np.unique(ds[axis]).size < ds[axis].size:
        raise ValueError(f"{axis} has values twice: {ds[axis].values}")
    ds = ds.sortby(axis)
    last = final(ds, quantity)
    numeric = ds[axis].dtype.kind in "iuf"
    x = ds[axis].values if numeric else np.arange(ds[axis].size)
    fig, [[ax]] = make_panels(1, 1, 5.2, 3.8)
    for split, style in SPLITS.items():
        ax.plot(x, last.sel(split=split), label=split, **style)
    _mark_best(ax, x, last.sel(split="validation"), quantity)
    if numeric and _log_spreads(x):
        ax.set_xscale("log", base=2)
    names = [number(point[axis].item()) + _told_below(point) for _, point in points(ds)]
    ax.set_xticks(x, names)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(axis.replace("_", " "))
    ax.set_ylabel(f"{quantity}{UNITS[quantity]} after the last epoch")
    if quantity == "loss":
        scale_y(ax, last)
    add_legend(fig, [ax])
    return fig


def _told_below(point: xr.Dataset) -> str:
    """That a trial diverged, in short lines below its tick."""
    if status(point) == "finished":
        return ""
    return "\n" + status(point).replace(" in", "\nin").replace(", ", "\n")


def _mark_best(ax: Axes, x: np.ndarray, values: xr.DataArray, quantity: str) -> None:
    if not np.isfinite(values).any():
        return
    at = int(np.nanargmax(values) if quantity == "accuracy" else np.nanargmin(values))
    best = number(float(values[at]))
    ax.plot(x[at], values[at], **RING, ms=11, label=f"best by validation: {best}")


def _log_spreads(x: np.ndarray) -> bool:
    """Whether sorted `x` has its closest values further apart on a log scale than on a linear."""
    if x.min() <= 0 or x.min() == x.max():
        return False
    linear, log = np.diff(x) / np.ptp(x), np.diff(np.log(x)) / np.ptp(np.log(x))
    return bool(log.min() > linear.min())
