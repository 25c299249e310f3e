"""Steps: the noise of their losses, their number and time, and their gradients."""

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxexp.report.figures.style import (
    STYLE,
    add_legend,
    by_epoch,
    grid_shape,
    make_panels,
    trial_colours,
    wants_log,
)
from jaxexp.results.select import number, points, sound


@rc_context(STYLE)
def step_noise(ds: xr.Dataset) -> Figure:
    """Training loss (nats) of every step and its running mean, one panel per trial.

    The mean runs over one hundredth of a trial's steps. The panels share their loss axis, which
    is logarithmic and cut a decade below the lowest mean; each states its `noise`.
    """
    trials = list(points(ds))
    rows, cols = grid_shape(len(trials), 2)
    fig, panels = make_panels(rows, cols, 3.7, 2.5, sharey=True, count=len(trials))
    heights = []
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        losses = before_divergence(point["step_loss"].values)
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


def before_divergence(losses: np.ndarray) -> np.ndarray:
    """Those of step losses (steps,) that come before the first that is not finite."""
    return losses[: np.append(~np.isfinite(losses), True).argmax()]


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
    fig, [panels] = make_panels(1, len(quantities), 3.7, 0.9 + 0.33 * len(trials), sharey=True)
    for ax, quantity in zip(panels, quantities, strict=True):
        values = np.array([float(point[quantity]) for _, point in trials])
        drawn = ax.barh([name for name, _ in trials], values, color=trial_colours(ds), height=0.65)
        ax.bar_label(drawn, [number(value) for value in values], padding=3)
        if wants_log(values):
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
    norms = sound(ds, "gradient_norm").sel(layer=shown)
    trials = list(points(ds))
    rows, cols = grid_shape(len(trials), 3)
    size = (5.2, 4.2) if len(trials) == 1 else (3.4, 3.2)
    fig, panels = make_panels(rows, cols, *size, sharey=True, count=len(trials))
    zero_rows = _norm_axis(panels, norms, shown)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        for layer, colour in zip(shown, colours, strict=True):
            values = sound(point, "gradient_norm").sel(layer=layer)
            values = values.where(np.isfinite(values))
            line = {"color": colour, "label": f"layer {layer}", "marker": "."}
            ax.plot(values["epoch"], values.where(values > 0), **line)
            zero = values["epoch"][(values == 0).values]
            ax.plot(zero, np.full(zero.size, zero_rows.get(layer, 1.0)), "v", color=colour)
        ax.set_title(name)
        by_epoch(ax, point)
    if zero_rows:
        panels[0, 0].plot([], [], "v", color="0.4", label="exactly zero (below the scale)")
    add_legend(fig, panels.flat)
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


def _spread(count: int, at_most: int) -> list[int]:
    """Up to `at_most` whole numbers, evenly spread from 0 to `count` - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).astype(int)).tolist()
