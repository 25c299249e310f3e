"""Figures of steps: the noise of their losses, their number and time, and their gradients."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import xarray as xr
from matplotlib import colormaps, rc_context
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from jaxexp.report.figures.figure import ReportFigure
from jaxexp.report.figures.interactive import attach
from jaxexp.report.figures.style import (
    STYLE,
    Ticks,
    add_legend,
    averaged,
    axis_label,
    band,
    best_of,
    by_epoch,
    grid_shape,
    headed,
    make_panels,
    say_which,
    seeds_note,
    set_titles,
    trial_colours,
    wants_log,
)
from jaxexp.report.figures.traces import NO_HEIGHT
from jaxexp.results import seeds, select
from jaxexp.results.select import number, until_divergence, with_unit

LayerT = TypeVar("LayerT")  # an index, or any other name of a layer


@rc_context(STYLE)
def step_noise(ds: xr.Dataset) -> ReportFigure:
    """Training loss of every step and its running mean, one panel per trial.

    Of more than eight trials, the best eight by loss are shown. If the seed is an axis, a setting
    is shown by the seed with the median loss, and its noise is the mean and spread over the seeds.
    The running mean is over one hundredth of a trial's steps, but at least over 11. Each panel
    states its `noise`. The panels share their loss axis, which is logarithmic if all running means
    are positive, and then ends a decade below the lowest. Losses that are not finite are left out.
    """
    every = ds if seeds.several(ds) else None
    ds = ds if every is None else seeds.typical(ds)
    trials, note = best_of(ds, 8, "loss", select.default_split(ds))
    if every is not None:
        which = f"of each setting the {select.replicate(every)} with the median loss"
        note = headed(note, f"{which}; noise: mean ± standard deviation of {seeds.in_words(every)}")
    rows, cols = grid_shape(len(trials), 2)
    fig, panels = make_panels(rows, cols, 3.7, 2.5, sharey=True, count=len(trials))
    heights, titles = [], []
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        losses = point["step_loss"].values
        steps = 1 + np.flatnonzero(np.isfinite(losses))
        losses = losses[steps - 1]
        mean = running_mean(losses)
        ax.plot(steps, losses, color="#8fbfdf", lw=0.5, label="each step")
        ax.plot(steps, mean, color="black", lw=1.2, label="running mean")
        titles.append(f"{name}\n{_noise_in_words(every, point, losses)}")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: number(int(step))))
        if losses.size:
            heights.append((mean.min(), np.percentile(losses, 99.9)))
    set_titles(panels, titles, 3.7)
    lows, highs = zip(*heights, strict=True) if heights else ((1.0,), (1.0,))
    if min(lows) > 0:
        panels[0, 0].set_yscale("log")
        panels[0, 0].set_ylim(max(min(lows), 1e-6) / 10, max(highs) * 2)
    panels[0, 0].yaxis.set_major_formatter(Ticks())
    panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
    for ax in panels[:, 0]:
        ax.set_ylabel(axis_label(ds, "loss", "train"))
    fig.supxlabel("step (each panel its own length; black: running mean)")
    note = headed(note)
    say_which(fig, note)
    fig.alt = (
        f"Training loss by step and its running mean, {select.count(len(trials), 'trial')}. "
        f"{'; '.join(title.replace(chr(10), ': ') for title in titles)}."
    )
    attach(fig, list(panels.flat[: len(trials)]), cols, note)
    for k in range(len(trials)):
        axis = fig.interactive["layout"][f"xaxis{k + 1 if k else ''}"] if fig.interactive else {}
        axis["title"] = {"text": "step"}
    return fig


def _noise_in_words(every: xr.Dataset | None, point: xr.Dataset, losses: np.ndarray) -> str:
    """The noise of one trial, or its mean and spread over the seeds of `every`."""
    if every is None:
        return f"noise ±{with_unit(point, 'loss', number(noise(losses), 2))}"
    names = [name for name in select.hyperparameters(every) if name not in select.REPLICATES]
    own = [trial for _, trial in select.points(every) if _same(trial, point, names)]
    losses_of = [trial["step_loss"].values for trial in own]
    found = [noise(each[np.isfinite(each)]) for each in losses_of]
    found = [value for value in found if np.isfinite(value)] or [float("nan")]
    mean, std = (
        number(float(np.mean(found)), 2),
        number(float(np.std(found, ddof=1)) if len(found) > 1 else float("nan"), 2),
    )
    return f"noise {with_unit(point, 'loss', f'{mean} ± {std}')}"


def noise(losses: np.ndarray) -> float:
    """The standard deviation of step losses (steps,) about a mean that changes slowly.

    For independent noise, the mean square of successive differences is twice its variance, however
    many steps there are (von Neumann, Kent, Bellinson and Hart, The mean square successive
    difference, Annals of Mathematical Statistics 12, 1941). NaN for fewer than two steps.
    """
    changes = np.diff(losses.astype(np.float64))
    return float(np.sqrt(np.mean(changes**2) / 2)) if changes.size else float("nan")


def running_mean(values: np.ndarray, share: float = 0.01, least: int = 11) -> np.ndarray:
    """The centred mean over a `share` of the `values`, or at least `least`; fewer at the ends."""
    half = max(int(values.size * share / 2), least // 2)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.longdouble)])
    index = np.arange(values.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    mean: np.ndarray = ((total[high] - total[low]) / (high - low)).astype(np.float64)
    return mean


def _same(trial: xr.Dataset, other: xr.Dataset, names: Sequence[str]) -> bool:
    return all(trial[name].item() == other[name].item() for name in names)


@rc_context(STYLE)
def bars(
    ds: xr.Dataset, quantities: Sequence[str] = ("steps_per_epoch", "seconds")
) -> ReportFigure:
    """One number per trial and quantity as labelled bars, on a log scale if they span decades.

    A quantity is a variable with one value per trial, such as "seconds", or a metric, taken after
    the last epoch on `select.default_split`. If the seed is an axis, bars are means, with the
    standard deviation as error bars. Of more than twenty trials, the best twenty by loss are shown.
    """
    ds = averaged(ds)
    trials, note = best_of(ds, 20, "loss", select.default_split(ds))
    names = [textwrap.fill(name, 46) for name, _ in trials]
    lines = sum(name.count("\n") + 1 for name in names)
    fig, [panels] = make_panels(
        1, len(quantities), 3.7, 0.9 + 0.15 * lines + 0.18 * len(trials), sharey=True
    )
    fig.set_figwidth(fig.get_figwidth() + 0.06 * max(0, max(map(len, names)) - 16))
    colours = "#0072B2" if note else trial_colours(ds)
    for ax, quantity in zip(panels, quantities, strict=True):
        values = np.array([_of_trial(point, quantity) for _, point in trials])
        spreads = np.array([_spread_of(point, quantity) for _, point in trials])
        error = np.nan_to_num(spreads) if np.isfinite(spreads).any() else None
        ax.barh(
            np.arange(len(names)), values, xerr=error, color=colours, height=0.65, ecolor="0.25"
        )
        ax.set_yticks(np.arange(len(names)), names)
        texts = [
            f"{number(value)} ± {number(std, 2)}" if np.isfinite(std) else number(value)
            for value, std in zip(values, spreads, strict=True)
        ]
        for at, (value, std, text) in enumerate(zip(values, spreads, texts, strict=True)):
            end = value + (std if np.isfinite(std) else 0) if np.isfinite(value) else 0
            ax.annotate(text, (max(end, 0), at), xytext=(3, 0), textcoords="offset points",
                        va="center")  # fmt: skip
        finite = values[np.isfinite(values)]
        if wants_log(values):
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(Ticks())
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_xlim(
                finite.min() / 3, finite.max() * (8 if error is None else 25)
            )  # for the labels
        else:
            low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
            ax.set_xlim(
                min(0.0, low * 1.3), max(0.0, high * (1.3 if error is None else 1.7)) or 1.0
            )
        measured = quantity in select.metrics(ds)
        split = select.default_split(ds)
        ax.set_xlabel(axis_label(ds, quantity, split) if measured else select.words(quantity))
        ax.grid(False, axis="y")
    panels[0].set_ylim(len(trials) - 0.4, -0.6)
    note = headed(note, seeds_note(ds))
    say_which(fig, note)
    fig.alt = (
        f"Bars of {' and '.join(map(select.words, quantities))}, "
        f"{select.count(len(trials), select.what(ds))}: "
        f"{'; '.join(name for name, _ in trials[:3])}"
        f"{' and others' if len(trials) > 3 else ''}."
    )
    return attach(fig, list(panels), len(panels), note)


def _spread_of(point: xr.Dataset, quantity: str) -> float:
    """The standard deviation over the seeds; NaN for a single seed, or if there is none."""
    if quantity in select.metrics(point):
        std = select.spread(point, quantity)
        return float("nan") if std is None else float(std.sel(split=select.default_split(point)))
    return float(point.get(f"{quantity}_std", float("nan")))


def _of_trial(point: xr.Dataset, quantity: str) -> float:
    if quantity in select.metrics(point):
        return float(select.final(point, quantity).sel(split=select.default_split(point)))
    return float(point[quantity])


@rc_context(STYLE)
def gradient_norms(ds: xr.Dataset, layers: Iterable[int] | None = None) -> ReportFigure:
    """Squared L2 norm of the weight gradients by epoch (log scale), one panel per trial.

    Each of `layers` (by default six, evenly spread) has a curve. If the seed is an axis, curves are
    means over the seeds, with bands of ± standard deviation. Of more than nine trials, the best
    nine by loss are shown. A log scale cannot show a gradient of exactly zero: such epochs are
    triangles below the scale, in one row per layer.
    """
    known = ds["layer"].values.tolist()
    shown = [known[i] for i in _spread(len(known), 6)] if layers is None else list(layers)
    ds = averaged(ds)
    trials, note = best_of(ds, 9, "loss", select.default_split(ds))
    rows, cols = grid_shape(len(trials), 3)
    size = (5.2, 4.2) if len(trials) == 1 else (3.4, 3.2)
    fig, panels = make_panels(rows, cols, *size, sharey=True, count=len(trials))
    # Stacked in NumPy, as scalar coordinates may differ between trials.
    norms = [until_divergence(point, "gradient_norm").sel(layer=shown) for _, point in trials]
    zero_rows = _norm_axis(
        panels, np.stack([own.transpose("layer", "epoch") for own in norms]), shown
    )
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    for ax, (_, point), own in zip(panels.flat, trials, norms, strict=False):
        for layer, colour in zip(shown, colours, strict=True):
            values = own.sel(layer=layer)
            values = values.where(np.isfinite(values))
            positive = values.where(values > 0)
            name = f"layer {layer}" if isinstance(layer, int) else str(layer)
            line = {"color": colour, "label": name, "marker": "."}
            if "gradient_norm_std" in point:
                std = point["gradient_norm_std"].sel(layer=layer)
                band(ax, values["epoch"], positive, std, colour, name)
            ax.plot(values["epoch"], positive, **line)
            zero = values["epoch"][(values == 0).values]
            ax.plot(
                zero,
                np.full(zero.size, zero_rows.get(layer, 1.0)),
                "v",
                color=colour,
                gid=NO_HEIGHT,
            )
        by_epoch(ax, point)
    set_titles(panels, [name for name, _ in trials], size[0])
    if zero_rows:
        panels[0, 0].plot([], [], "v", color="0.4", label="exactly zero (below the scale)")
    note = headed(note, seeds_note(ds))
    say_which(fig, note)
    add_legend(fig, panels.flat)
    fig.alt = (
        f"Squared gradient norm by epoch on a log scale, {select.count(len(trials), 'trial')}, "
        f"{select.count(len(shown), 'layer')} each"
        + (f", from {_range_in_words(norms)}." if _range_in_words(norms) else ".")
    )
    return attach(fig, list(panels.flat[: len(trials)]), cols, note)


def _range_in_words(norms: Sequence[xr.DataArray]) -> str:
    """The least and the largest positive finite number; "" if there are none."""
    values = np.concatenate([own.values.ravel() for own in norms])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return ""
    return f"{number(float(values.min()), 2)} to {number(float(values.max()), 2)}"


def _norm_axis(
    panels: np.ndarray, norms: np.ndarray, shown: Sequence[LayerT]
) -> dict[LayerT, float]:
    """Give the panels a log scale that shows norms (trials, layers, epochs).

    Returns the heights below the scale for the layers that have zeros.
    """
    positive = norms[np.isfinite(norms) & (norms > 0)].astype(np.float64)  # room above float32
    low, high = (positive.min(), positive.max()) if positive.size else (1e-3, 1.0)
    step = max(high / low, 10.0) ** 0.05
    layers = [layer for layer, zero in zip(shown, (norms == 0).any((0, 2)), strict=True) if zero]
    bottom = low / step ** (len(layers) + 1)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylim(bottom, high * step)
    power = FuncFormatter(lambda v, _: _power(round(np.log10(v))) if v >= low else "")
    panels[0, 0].yaxis.set_major_formatter(power)
    panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
    for ax in panels[:, 0]:
        ax.set_ylabel("squared gradient norm")
    for ax in panels.flat if layers else ():
        ax.axhspan(bottom, low / step**0.5, color="0.93", lw=0)
    return {layer: float(low / step ** (i + 1)) for i, layer in enumerate(layers)}


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _spread(count: int, at_most: int) -> list[int]:
    """Up to `at_most` whole numbers, evenly spread from 0 to `count` - 1."""
    spread: list[int] = np.unique(
        np.linspace(0, count - 1, min(count, at_most)).astype(int)
    ).tolist()
    return spread
