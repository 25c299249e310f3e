"""Figures of a sweep's results, each a pure function from a dataset to a matplotlib `Figure`.

They use matplotlib's objects alone, never pyplot, so nothing depends on a backend or piles up.
"""

import io
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from jaxexp.select import axes, final, hyperparameters, number, points, status

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "figure.labelsize": 9.5,
    "axes.edgecolor": "0.3",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "agg.path.chunksize": 10_000,  # 100,000 steps in one line are too much for Agg at once
}
# Okabe and Ito's colours, which the colour-blind tell apart.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Validation and test often coincide, so the test curve is dashed to show the other through it.
SPLITS: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "validation": {"color": "#E69F00", "linestyle": "-", "marker": "o"},
    "test": {"color": "#222222", "linestyle": (0, (3, 2)), "marker": "^"},
}
# Colours of the map: fewer than countries, but any two of them are easily told apart.
MAP_COLOURS = (
    "#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#00b8d9", "#f2c500", "#f032e6",
    "#9a6324", "#7cb800", "#800000", "#469990", "#f48fb1", "#808000", "#8c8c8c",
)  # fmt: skip
UNITS = {"loss": " (nats)", "accuracy": ""}
LOG_DECADES = 1.0  # positive numbers that span more are drawn on a log scale
DIVERGED: dict[str, Any] = {"marker": "X", "markersize": 8, "markeredgecolor": "white"}
RING: dict[str, Any] = {"marker": "o", "mfc": "none", "mec": "black", "ls": "none"}


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
    fig, [[ax]] = _panels(1, 1, 5.2, 4.0)
    for (name, point), colour in zip(points(ds), _colours(ds), strict=True):
        _curve(ax, point, quantity, split, color=colour, label=name)
    if reference:
        height, text = reference
        ax.axhline(height, color="0.35", lw=1, ls=":", label=f"{text}, {number(height)}")
    _by_epoch(ax, ds)
    ax.set_ylabel(f"{split} {quantity}{UNITS[quantity]}")
    if quantity == "loss":
        _scale_y(ax, ds["loss"].sel(split=split))
    _legend(fig, [ax])
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
        fig, panels = _panels(1, len(quantities), 5.2 if len(quantities) == 1 else 3.7, 3.6)
        panels = panels.T
    else:
        fig, panels = _panels(len(quantities), len(trials), 3.7, 2.8, sharex=True, sharey="row")
    for row, quantity in zip(panels, quantities, strict=True):
        for ax, (_, point) in zip(row, trials, strict=True):
            _splits_panel(ax, point, quantity, mark_best)
        row[0].set_ylabel(f"{quantity}{UNITS[quantity]}")
        if quantity == "loss":
            _scale_y(row[0], ds["loss"])
    for ax, (name, point) in zip(panels[0], trials, strict=True):
        ax.set_title(name if len(trials) > 1 or status(point) != "finished" else "")
    for ax in panels[:-1].flat if len(trials) > 1 else ():
        ax.set_xlabel("")
    _legend(fig, panels.flat)
    return fig


def _splits_panel(ax: Axes, point: xr.Dataset, quantity: str, mark_best: bool) -> None:
    for split, style in SPLITS.items():
        line = {key: value for key, value in style.items() if key != "marker"}
        _curve(ax, point, quantity, split, label=split, **line)
    _by_epoch(ax, point)
    values = point[quantity].sel(split="validation")
    if not mark_best or not np.isfinite(values).any():
        return
    where = values.idxmax("epoch") if quantity == "accuracy" else values.idxmin("epoch")
    height = float(values.sel(epoch=where))
    label = f"best validation {quantity}: {number(height)} in epoch {int(where)}"
    ax.plot([where], [height], **RING, ms=9, clip_on=False, label=label)


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
    fig, [[ax]] = _panels(1, 1, 5.2, 3.8)
    for split, style in SPLITS.items():
        ax.plot(x, last.sel(split=split), label=split, **style)
    _mark_best(ax, x, last.sel(split="validation"), quantity)
    if numeric and _log_spreads(x):
        ax.set_xscale("log", base=2)
    names = [
        number(point[axis].item())
        + ("" if status(point) == "finished" else "\n" + status(point).replace(" in", "\nin"))
        for _, point in points(ds)
    ]
    ax.set_xticks(x, names)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(axis.replace("_", " "))
    ax.set_ylabel(f"{quantity}{UNITS[quantity]} after the last epoch")
    if quantity == "loss":
        _scale_y(ax, last)
    _legend(fig, [ax])
    return fig


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


@rc_context(STYLE)
def step_noise(ds: xr.Dataset) -> Figure:
    """Training loss (nats) of every step and its running mean, one panel per trial.

    The mean runs over one hundredth of a trial's steps. The panels share their loss axis, which
    is logarithmic and cut a decade below the lowest mean; each states its `noise`.
    """
    trials = list(points(ds))
    rows, cols = _layout(len(trials), 2)
    fig, panels = _panels(rows, cols, 3.7, 2.5, sharey=True, count=len(trials))
    heights = []
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        losses = _finite(point["step_loss"].values)
        mean = running_mean(losses)
        steps = np.arange(1, losses.size + 1)
        ax.plot(steps, losses, color="#8fbfdf", lw=0.5)
        ax.plot(steps, mean, color="black", lw=1.2)
        ax.set_title(f"{name}\nnoise ±{number(noise(losses), 2)} nats")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: number(int(step))))
        if losses.size:
            heights.append((max(mean.min(), 1e-6), np.percentile(losses, 99.9)))
    lows, highs = zip(*heights, strict=True) if heights else ((1.0,), (1.0,))
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylim(min(lows) / 10, max(highs) * 2)
    panels[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda loss, _: number(float(loss))))
    for ax in panels[:, 0]:
        ax.set_ylabel("training loss (nats)")
    fig.supxlabel("step (each panel its own length; black: running mean)")
    return fig


def noise(losses: np.ndarray) -> float:
    """The standard deviation of step losses (steps,) about their running mean."""
    return float(np.std(losses - running_mean(losses))) if losses.size else float("nan")


def running_mean(values: np.ndarray, share: float = 0.01) -> np.ndarray:
    """The centred mean of `values` over `share` of their number, over fewer at the two ends."""
    half = int(values.size * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(values.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    return (total[high] - total[low]) / (high - low)


@rc_context(STYLE)
def bars(ds: xr.Dataset, quantities: Sequence[str] = ("steps_per_epoch", "seconds")) -> Figure:
    """One number per trial and quantity as labelled bars, on a log scale where they span much."""
    trials = list(points(ds))
    fig, [panels] = _panels(1, len(quantities), 3.7, 0.9 + 0.33 * len(trials), sharey=True)
    for ax, quantity in zip(panels, quantities, strict=True):
        values = np.array([float(point[quantity]) for _, point in trials])
        drawn = ax.barh([name for name, _ in trials], values, color=_colours(ds), height=0.65)
        ax.bar_label(drawn, [number(value) for value in values], padding=3)
        if _wants_log(values):
            ax.set_xscale("log")
            ax.set_xlim(values.min() / 3, values.max() * 8)  # room for the labels
        else:
            ax.set_xlim(0, np.nanmax(values) * 1.2)
        ax.set_xlabel(quantity.replace("_", " "))
        ax.grid(False, axis="y")
    panels[0].invert_yaxis()
    return fig


@rc_context(STYLE)
def gradient_norms(ds: xr.Dataset, layers: Iterable[int] | None = None) -> Figure:
    """Squared L2 norm of the weight gradients by epoch (log scale), one panel per trial.

    One curve per layer of `layers` (six, evenly spread, if not given). A log scale has no place
    for a gradient of exactly zero: such epochs stand as triangles below all others, in one row
    per layer.
    """
    shown = _spread(ds.sizes["layer"], 6) if layers is None else list(layers)
    norms = ds["gradient_norm"].sel(layer=shown)
    trials = list(points(ds))
    rows, cols = _layout(len(trials), 3)
    size = (5.2, 4.2) if len(trials) == 1 else (3.4, 3.2)
    fig, panels = _panels(rows, cols, *size, sharey=True, count=len(trials))
    zero_rows = _norm_axis(panels, norms, shown)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        for layer, colour in zip(shown, colours, strict=True):
            values = point["gradient_norm"].sel(layer=layer)
            values = values.where(np.isfinite(values))
            line = {"color": colour, "label": f"layer {layer}", "marker": "."}
            ax.plot(values["epoch"], values.where(values > 0), **line)
            zero = values["epoch"][(values == 0).values]
            ax.plot(zero, np.full(zero.size, zero_rows.get(layer, 1.0)), "v", color=colour)
        ax.set_title(name)
        _by_epoch(ax, point)
    if zero_rows:
        panels[0, 0].plot([], [], "v", color="0.4", label="exactly zero (below the scale)")
    _legend(fig, panels.flat)
    return fig


def _norm_axis(panels: np.ndarray, norms: xr.DataArray, shown: list[int]) -> dict[int, float]:
    """Give the panels a log scale; return the heights, below it, for the layers that have zeros."""
    finite = norms.values[np.isfinite(norms) & (norms > 0)]
    positive = finite.astype(np.float64)  # norms may fill float32: leave room above them
    low, high = (positive.min(), positive.max()) if positive.size else (1e-3, 1.0)
    step = max(high / low, 10.0) ** 0.05
    vanished = (norms == 0).any([dim for dim in norms.dims if dim != "layer"])
    layers = [layer for layer, zero in zip(shown, vanished.values, strict=True) if zero]
    bottom = low / step ** (len(layers) + 1)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylim(bottom, high * step)
    power = FuncFormatter(lambda v, _: f"$10^{{{np.log10(v):.0f}}}$" if v >= low else "")
    panels[0, 0].yaxis.set_major_formatter(power)
    for ax in panels[:, 0]:
        ax.set_ylabel("squared gradient norm")
    for ax in panels.flat if layers else ():
        ax.axhspan(bottom, low / step**0.5, color="0.93", lw=0)
    return {layer: float(low / step ** (i + 1)) for i, layer in enumerate(layers)}


@rc_context(STYLE)
def regions(ds: xr.Dataset, colours: np.ndarray | None = None) -> Figure:
    """The predicted class over the map (degrees), and the test places, one panel per trial.

    Areas and places have their class's colour, areas paler; places in an area of another class
    (by the nearest cell of the grid) are outlined. `colours`, (classes, 3), made by
    `class_colours` from all trials at once, keeps the colours equal across figures.
    """
    colours = class_colours(ds) if colours is None else colours
    trials = list(points(ds))
    middle = np.deg2rad(float(ds["latitude"].mean()))
    aspect = 1 / np.cos(middle)
    width = 6.6 if len(trials) == 1 else 5.2
    tall = float(np.ptp(ds["latitude"].values) / np.ptp(ds["longitude"].values))
    height = (width - 0.6) * aspect * tall + 0.7  # the rest is for the axes
    rows, cols = _layout(len(trials), 2)
    fig, panels = _panels(rows, cols, width, height, count=len(trials))
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        ax.set_aspect(aspect)
        wrong = _map_panel(ax, point, colours)
        total = ds.sizes["point"]
        ax.set_title(f"{name}: {number(wrong)} of {number(total)} test places outlined as wrong")
        _write_names(ax, point, width)
    return fig


def _map_panel(ax: Axes, point: xr.Dataset, colours: np.ndarray) -> int:
    """Draw areas, borders and places of one trial; return how many places are wrong."""
    grid = point["region"].transpose("latitude", "longitude").sortby(["latitude", "longitude"])
    longitude, latitude = grid["longitude"].values, grid["latitude"].values
    x, y = _edges(longitude), _edges(latitude)
    ax.pcolormesh(x, y, 0.5 + 0.5 * colours[grid.values], rasterized=True)
    ax.add_collection(LineCollection(list(_borders(grid.values, x, y)), colors="white", lw=0.6))
    places = {"longitude": point["test_longitude"], "latitude": point["test_latitude"]}
    label = point["test_label"].values
    wrong = (grid.sel(places, method="nearest") != point["test_label"]).values
    x, y = point["test_longitude"].values, point["test_latitude"].values
    ax.scatter(x[~wrong], y[~wrong], s=1.2, c=0.85 * colours[label[~wrong]], lw=0)
    ax.scatter(x[wrong], y[wrong], s=7, c=colours[label[wrong]], lw=0.4, edgecolors="black")
    ax.grid(False)
    ax.set_xlabel("longitude (°E)")
    ax.set_ylabel("latitude (°N)")
    return int(wrong.sum())


def _edges(centres: np.ndarray) -> np.ndarray:
    """The n + 1 edges of n cells with these `centres`."""
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _borders(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cell edges between different classes, as segments (n, 2 ends, xy) in degrees."""
    row, column = np.nonzero(grid[:, 1:] != grid[:, :-1])
    upright = [[x[column + 1], y[row]], [x[column + 1], y[row + 1]]]
    row, column = np.nonzero(grid[1:] != grid[:-1])
    level = [[x[column], y[row + 1]], [x[column + 1], y[row + 1]]]
    return np.concatenate([upright, level], axis=2).transpose(2, 0, 1)


def _write_names(ax: Axes, point: xr.Dataset, width: float) -> None:
    """Write each class's name at the median of its places, large classes first, none over another.

    `width` is that of the panel in inches, from which follows how many degrees a letter takes.
    """
    names = json.loads(point.attrs["classes"])
    label = point["test_label"].values
    places = np.stack([point["test_longitude"].values, point["test_latitude"].values], axis=1)
    size = 7.5
    degree = width * 72 / np.ptp(ax.get_xlim())  # points of text per degree of longitude
    aspect = float(ax.get_aspect())
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for k in np.argsort(-np.bincount(label, minlength=len(names)), kind="stable"):
        if not (label == k).any():
            continue
        centre = np.median(places[label == k], axis=0)
        half = np.array([0.33 * len(str(names[k])), 0.6 / aspect]) * size / degree
        if all((abs(centre - c) > half + h).any() for c, h in taken):
            text = ax.text(centre[0], centre[1], str(names[k]), fontsize=size, weight="bold")
            text.set(ha="center", va="center", path_effects=_halo())
            taken.append((centre, half))


def class_colours(ds: xr.Dataset) -> np.ndarray:
    """An RGB colour (0 to 1) per class, (classes, 3): neighbours on any map of `ds` differ.

    Greedy: classes with many neighbours choose first, each the least used of the colours that
    none of its neighbours has (or that the fewest have, where they have them all).
    """
    near = neighbours(ds)
    chosen = np.full(len(near), -1)
    for k in np.argsort(-near.sum(axis=1), kind="stable"):
        around = np.bincount(chosen[near[k] & (chosen >= 0)], minlength=len(MAP_COLOURS))
        used = np.bincount(chosen[chosen >= 0], minlength=len(MAP_COLOURS))
        chosen[k] = np.lexsort([used, around])[0]
    return np.array([to_rgb(colour) for colour in MAP_COLOURS])[chosen]


def neighbours(ds: xr.Dataset) -> np.ndarray:
    """Which classes border on one another, boolean (classes, classes), symmetric.

    Two classes are neighbours if areas (of any trial of `ds`) or test places of theirs lie in the
    same or in adjoining squares of one degree, or of one cell of the grid if that is coarser.
    """
    latitude, longitude, region = xr.broadcast(ds["latitude"], ds["longitude"], ds["region"])
    x = np.concatenate([longitude.values.ravel(), ds["test_longitude"].values])
    y = np.concatenate([latitude.values.ravel(), ds["test_latitude"].values])
    label = np.concatenate([region.values.ravel(), ds["test_label"].values])
    steps = [np.abs(np.diff(ds[axis])).max() for axis in ("latitude", "longitude")]
    side = max(1.0, *steps)
    row, column = (((v - v.min()) / side).astype(int) + 1 for v in (y, x))
    classes = len(json.loads(ds.attrs["classes"]))
    present = np.zeros((classes, row.max() + 2, column.max() + 2), np.float32)
    present[label, row, column] = 1
    shifts = itertools.product((-1, 0, 1), repeat=2)
    around = sum(np.roll(present, shift, axis=(1, 2)) for shift in shifts)
    near = np.tensordot(present, around, axes=([1, 2], [1, 2])) > 0
    return near & ~np.eye(classes, dtype=bool)


def to_png(fig: Figure, dpi: int = 150) -> bytes:
    """`fig` as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _panels(
    rows: int, cols: int, width: float, height: float, count: int | None = None, **share: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, cols) panels, each of this size in inches, `count` of them shown."""
    fig = Figure(figsize=(width * cols, height * rows), layout="constrained")
    panels = fig.subplots(rows, cols, squeeze=False, **share)
    for ax in panels.flat:
        ax.grid(True, color="0.9", linewidth=0.6)
        ax.tick_params(color="0.3", length=3, width=0.7, labelsize=9)
    for ax in panels.flat[count or panels.size :]:
        ax.remove()
    return fig, panels


def _layout(count: int, widest: int) -> tuple[int, int]:
    """The rows and columns for `count` panels, at most `widest` side by side."""
    cols = min(count, widest)
    return -(-count // cols), cols


def _curve(ax: Axes, point: xr.Dataset, quantity: str, split: str, **style: Any) -> None:
    """One curve by epoch up to its last finite value, marked if it diverged or is one point."""
    values = point[quantity].sel(split=split)
    values = values[np.isfinite(values.values)]
    if status(point) != "finished":
        style |= DIVERGED | {"markevery": [values.size - 1] if values.size else None}
    elif values.size == 1:
        style |= {"marker": "o"}
    ax.plot(values["epoch"], values, **style)


def _colours(ds: xr.Dataset) -> list[Any]:
    """A colour for each trial: sequential along ordered numbers, else as distinct as can be."""
    count = int(np.prod([ds.sizes[axis] for axis in axes(ds)], dtype=int))
    if count <= len(CATEGORIES) and not (len(axes(ds)) == 1 and _ordered(ds)):
        return list(CATEGORIES[:count])
    return list(colormaps["viridis"](np.linspace(0, 0.85, count)))


def _ordered(ds: xr.Dataset) -> bool:
    """Whether all hyperparameters along the one axis are numbers that only rise or only fall."""
    values = [ds[name].values for name in hyperparameters(ds)]
    if len(values[0]) < 3 or any(v.dtype.kind not in "iuf" for v in values):
        return False
    steps = [np.diff(v.astype(float)) for v in values]
    return all((step >= 0).all() or (step <= 0).all() for step in steps)


def _by_epoch(ax: Axes, ds: xr.Dataset) -> None:
    ax.set_xlabel("epoch")
    ax.set_xlim(0.5 if ds.sizes["epoch"] < 20 else 0, float(ds["epoch"].max()) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _wants_log(values: Any) -> bool:
    """Whether the finite `values` are positive and span more than `LOG_DECADES` decades."""
    finite = _finite(np.asarray(values, dtype=float))
    if not finite.size or finite.min() <= 0:
        return False
    return bool(np.log10(finite.max() / finite.min()) > LOG_DECADES)


def _scale_y(ax: Axes, values: xr.DataArray) -> None:
    """Make the height of `ax` logarithmic, with plain numbers, if `values` ask for it."""
    if not _wants_log(values):
        return
    ax.set_yscale("log")
    finite = _finite(values.values)
    decades = np.log10(finite.max() / finite.min())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _legend(fig: Figure, panels: Iterable[Axes]) -> None:
    """One legend below the panels, each label once, in as many columns as fit."""
    found = [ax.get_legend_handles_labels() for ax in panels if ax.figure]
    handles = {name: h for hs, names in found for h, name in zip(hs, names, strict=True)}
    letters = fig.get_figwidth() * 12.5
    columns = int(letters / (max(map(len, handles)) + 5))
    if sum(len(name) + 5 for name in handles) <= letters:
        columns = len(handles)
    columns = max(1, min(columns, len(handles)))
    fig.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.5,
    )


def _spread(count: int, at_most: int) -> list[int]:
    """Up to `at_most` whole numbers, evenly spread from 0 to `count` - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).astype(int)).tolist()


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _halo() -> list[Any]:
    return [withStroke(linewidth=2.5, foreground="white")]
