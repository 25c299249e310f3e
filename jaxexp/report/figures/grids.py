"""Two hyperparameters at once: a metric over their grid."""

import textwrap

import numpy as np
import xarray as xr
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import NullFormatter

from jaxexp.base.errors import UserError
from jaxexp.report.figures.figure import ReportFigure
from jaxexp.report.figures.interactive import heat_spec
from jaxexp.report.figures.style import (
    STYLE,
    Ticks,
    applying_note,
    averaged,
    axis_label,
    headed,
    make_panels,
    say_which,
    wants_log,
)
from jaxexp.results import select
from jaxexp.results.select import setting, within
from jaxexp.results.select.ranks import finite_first, told_apart

NUMBERED = 12  # up to this many cells in a row have room for numbers


@rc_context(STYLE)
def heat_map(
    ds: xr.Dataset, x: str, y: str, metric: str = "loss", split: str | None = None
) -> ReportFigure:
    """`metric` after the last epoch over hyperparameters `x` and `y`; brighter is better.

    `split` defaults to `select.default_split`. A cell shows the mean over the finished trials with
    its two values, their standard deviation if they differ only in seed and fold, and how many
    diverged, if any. The best cell is framed: the cell of the best setting by `select.rank`, or, if
    cells are means over other hyperparameters, the one with the best mean.

    Raises UserError for a metric, a split or a hyperparameter that the results do not have.
    """
    split = split or select.default_split(ds)
    ranked = select.rank(ds, metric, split)
    for name in (x, y):
        if name not in select.hyperparameters(ds):
            varying = ", ".join(select.hyperparameters(ds)) or "none"
            raise UserError(f"{name} does not vary; the hyperparameters that do: {varying}")
    every, ds = ds, select.applying(ds, x, y)
    ranked = ranked if every is ds else select.rank(ds, metric, split)
    lost = (ranked["status"] != "finished").to_numpy()
    value = ranked["value"].where(np.isfinite(ranked["value"]))
    values = {name: select.distinct(ds, name) for name in (x, y)}
    at = [[values[name].index(v) for v in ranked[name].tolist()] for name in (y, x)]
    shape = (len(values[y]), len(values[x]))
    total, found, diverged = np.zeros(shape), np.zeros(shape), np.zeros(shape, int)
    undefined = np.zeros(shape, int)
    np.add.at(total, tuple(at), value.fillna(0).to_numpy())
    np.add.at(found, tuple(at), value.notna().to_numpy())
    np.add.at(diverged, tuple(at), lost)
    np.add.at(undefined, tuple(at), ~lost & value.isna().to_numpy())
    mean = np.divide(total, found, out=np.full(shape, np.nan), where=found > 0)
    std = np.full(shape, np.nan)
    alone = set(select.hyperparameters(ds)) <= {x, y, *select.replicates(ds)}
    if alone and select.replicates(ds):
        squares = np.zeros(shape)
        np.add.at(squares, tuple(at), ((value - mean[tuple(at)]) ** 2).fillna(0).to_numpy())
        std = np.sqrt(np.divide(squares, found - 1, out=std, where=found > 1))

    higher = select.direction(ds, metric) == "higher"
    width, height = (
        min(2.4 + 0.62 * max(shape[1], 4), 9.8),
        min(1.5 + (0.42 if np.isnan(std).all() else 0.5) * max(shape[0], 3), 8),
    )
    fig, [[ax]] = make_panels(1, 1, width, height)
    colours = colormaps["viridis" if higher else "viridis_r"].with_extremes(bad="0.9")
    known = mean[np.isfinite(mean)]
    logarithmic = not higher and wants_log(known)
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    norm = (LogNorm if logarithmic else Normalize)(low, high)
    image = ax.imshow(mean, cmap=colours, norm=norm, aspect="auto", origin="lower")
    ax.grid(False)
    for name, ticks in ((x, ax.set_xticks), (y, ax.set_yticks)):
        step = -(-len(values[name]) // 20)
        kept = range(0, len(values[name]), step)
        ticks(list(kept), [textwrap.fill(setting(values[name][i]), 14) for i in kept])
    if shape[1] > 8:
        ax.tick_params(axis="x", labelrotation=60)
    explained = "\n(div. or ×: trials that diverged)" if lost.any() else ""
    note = headed(applying_note(every, x, y))
    in_words = {name: select.named(ds, name) for name in (x, y)}
    ax.set(xlabel=in_words[x] + explained, ylabel=in_words[y])
    span = float(high - low)
    written = _write_cells(ax, mean, std, diverged, image, span)
    order = finite_first(told_apart(-mean if higher else mean))
    row, column = (int(at) for at in np.unravel_index(int(order.argmin()), shape))
    if alone:
        first = select.rank(averaged(ds), metric, split).iloc[0]
        row, column = values[y].index(first[y]), values[x].index(first[x])
    framed = bool(np.isfinite(mean[row, column]))
    if framed:
        frame = [column - 0.5, column + 0.5], [row - 0.5, row + 0.5]
        (a, b), (c, d) = frame
        ax.plot([a, b, b, a, a], [c, c, d, d, c], color="#D55E00", lw=2.5, clip_on=False)
    of = "" if found.max() <= 1 else "mean "
    bar = fig.colorbar(image, label=of + axis_label(ds, metric, split))
    bar.ax.yaxis.set_major_formatter(Ticks())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    say_which(fig, note)
    best = ""
    if framed:
        best = f"; the best cell is {within(float(mean[row, column]), span, 4)}"
    fig.alt = (
        f"Map of {axis_label(ds, metric, split)} over {in_words[x]} and {in_words[y]}, "
        f"{shape[1]} by {shape[0]} cells{best}."
    ) + (f" {note}." if note else "")
    names = {key: [setting(v) for v in values[name]] for key, name in (("x", x), ("y", y))}
    hovers = [
        [
            f"{in_words[x]} {names['x'][j]}\n{in_words[y]} {names['y'][i]}\n"
            + _in_words(
                mean[i, j],
                std[i, j],
                span,
                int(found[i, j]),
                int(diverged[i, j]),
                int(undefined[i, j]),
            )
            for j in range(shape[1])
        ]
        for i in range(shape[0])
    ]
    fig.interactive = heat_spec(
        mean, names, hovers, written, (row, column) if framed else None,
        higher=higher, log=logarithmic,
        labels={"x": in_words[x], "y": in_words[y],
                "bar": of + axis_label(ds, metric, split)},
        size=(max(width, 5.6), height), note=note,
    )  # fmt: skip
    return fig


def _in_words(
    mean: float, std: float, span: float, found: int, diverged: int, undefined: int
) -> str:
    """What a cell says when the pointer is on it."""
    none = "no value" if undefined else "no finished trial"
    numbers = [within(own, span, 4) for own in (mean, std) if np.isfinite(own)]
    said = " ± ".join(numbers) or none
    over = f", mean of {select.count(found, 'trial')}" if found > 1 else ""
    others = [f"{n} {how}" for n, how in ((diverged, "diverged"), (undefined, "undefined")) if n]
    return ", ".join([f"{said}{over}", *others])


def _write_cells(
    ax: Axes, mean: np.ndarray, std: np.ndarray, diverged: np.ndarray, image: AxesImage,
    span: float,
) -> list[tuple[int, int, str, bool]]:  # fmt: skip
    """Write into each cell its number, its spread, and how many of its trials diverged.

    `span` is the range of values. Returns row, column, text, and whether the cell is dark.
    """
    written = []
    numbered = max(mean.shape) <= NUMBERED
    for (row, column), value in np.ndenumerate(mean):
        lines = [within(float(value), span, 3)] if numbered and np.isfinite(value) else []
        if lines and np.isfinite(std[row, column]):
            lines.append(f"±{within(float(std[row, column]), span, 3)}")
        lost = int(diverged[row, column])
        lines += [f"{lost} div." if numbered else "×"] if lost else []
        red, green, blue, _ = image.cmap(image.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        ax.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=8,
                color="white" if dark else "black")  # fmt: skip
        if lines:
            written.append((row, column, "\n".join(lines), bool(dark)))
    return written
