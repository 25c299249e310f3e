"""The final metrics of trials against a hyperparameter."""

import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from jaxexp.base.errors import UserError
from jaxexp.base.words import capitalised
from jaxexp.report.figures.figure import ReportFigure, Style
from jaxexp.report.figures.interactive import attach
from jaxexp.report.figures.style import (
    FEW,
    RING,
    SPLITS,
    STYLE,
    Ticks,
    add_legend,
    applying_note,
    averaged,
    axis_label,
    grid_shape,
    headed,
    label_y,
    log_spreads,
    make_panels,
    say_which,
    scale_y,
    seeds_note,
    want_even,
)
from jaxexp.report.figures.traces import NO_HEIGHT
from jaxexp.results import select
from jaxexp.results.select import number, setting

# Of a tick label, in inches: the width of a letter, the height of a line and of each further one.
LETTER, LINE, FURTHER = 0.08, 0.15, 0.17
MEANS = 30  # numbers with more values have no means: each would be of very few trials


@rc_context(STYLE)
def final_by(
    ds: xr.Dataset, axis: str, metric: str | Sequence[str] = "loss", split: str | None = None
) -> ReportFigure:
    """`metric` (or several, a panel each) after the last epoch against hyperparameter `axis`.

    If the seed is an axis, each point is the mean over the seeds, with the standard deviation as
    error bars. If nothing else varies, every split is shown, as a line if `axis` is a number.
    Otherwise each trial is a grey point on `split` (`select.default_split` if not given), and each
    value of `axis` has the mean and the best of its trials. The best trial is ringed; diverged
    trials are counted below their value, or in the legend.

    Raises UserError for a metric, a split or a hyperparameter that the results do not have.
    """
    split = split or select.default_split(ds)
    metrics = [metric] if isinstance(metric, str) else list(metric)
    if not metrics:
        raise UserError("metric=[]: expected at least one")
    if axis not in select.hyperparameters(ds):
        varying = ", ".join(select.hyperparameters(ds)) or "none"
        raise UserError(f"axis={axis!r}: the hyperparameters that vary are {varying}")
    every = ds if axis in select.REPLICATES else averaged(ds)
    ds = select.applying(every, axis)
    rows, cols = grid_shape(len(metrics), 3)
    width = 5.2 if len(metrics) == 1 else 4.2
    fig, panels = make_panels(rows, cols, width, 3.8, count=len(metrics))
    taller = 0.0
    for ax, own in zip(panels.flat, metrics, strict=False):
        against = _Against(ds, axis, own, split)
        against.draw(fig, ax)
        taller = max(taller, against.below)
        even = "\n(values at equal distances)" if against.even else ""
        ax.set_xlabel(select.named(ds, axis) + even)
    fig.set_figheight(fig.get_figheight() + rows * taller)
    note = headed(seeds_note(ds), applying_note(every, axis))
    say_which(fig, note)
    add_legend(fig, panels.flat[: len(metrics)])
    fig.alt = (
        f"{capitalised(' and '.join(map(select.words, metrics)))} {select.measured_when(ds)} "
        f"against {select.named(ds, axis)}, {select.count(select.size(ds), select.what(ds))}. "
        f"{select.best_in_words(every, metrics[0], split)}"
    )
    return attach(fig, list(panels.flat[: len(metrics)]), cols, note)


class _Against:
    """One metric of all trials against one hyperparameter."""

    def __init__(self, ds: xr.Dataset, axis: str, metric: str, split: str) -> None:
        self.ds, self.metric, self.split = ds, metric, split
        by_rank = select.rank(ds, metric, split)
        self.order = by_rank.index[np.isfinite(by_rank["value"])].to_numpy()  # best first
        ranked = by_rank.sort_index()
        given = ranked[axis].tolist()
        self.numeric = ds[axis].dtype.kind in "iuf" and axis not in select.REPLICATES
        self.values = select.distinct(ds, axis)
        self.group = np.array([self.values.index(value) for value in given])
        at = np.array(self.values, float) if self.numeric else np.arange(len(self.values))
        # A few values that would crowd together are evenly spaced.
        self.even = self.numeric and want_even(at)
        at = np.arange(len(at)) if self.even else at
        self.at, self.x = at, at[self.group]
        self.ringed = self.x  # where points are drawn: the best is ringed
        self.below = 0.0  # inches that tick labels take if they are turned
        self.diverged = (ranked["status"] != "finished").to_numpy()
        self.status = ranked["status"].tolist()
        last = select.final(ds, metric)
        y = {s: select.by_trial(ds, last.sel(split=s)).astype(float) for s in select.splits(ds)}
        self.y = {s: np.where(np.isfinite(own), own, np.nan) for s, own in y.items()}
        wide = select.spread(ds, metric)
        self.std = {} if wide is None else {
            s: np.nan_to_num(select.by_trial(ds, wide.sel(split=s)).astype(float)) for s in self.y
        }  # fmt: skip
        self.trials = ranked["trial"].tolist()
        alone = len(self.values) == len(given)
        varying = len(select.hyperparameters(ds))
        # Points of a random search are not joined: other values change between them.
        self.line = alone and (varying == 1 or (len(select.axes(ds)) == 1 and len(given) <= 8))
        beside = [n for n in select.hyperparameters(ds) if ds[n].dims == ds[axis].dims]
        self.random = len(beside) > 1

    def draw(self, fig: ReportFigure, ax: Axes) -> None:
        self.width = fig.get_figwidth()
        if self.line:
            order = np.argsort(self.x)
            for split, own in self.y.items():
                style = SPLITS.get(split, {}) | ({} if self.numeric else {"linestyle": "none"})
                if split in self.std:
                    std = self.std[split][order]
                    ax.errorbar(
                        self.x[order], own[order], std, label=split, elinewidth=1.2, **style
                    )
                else:
                    ax.plot(self.x[order], own[order], label=split, **style)
        else:
            fig.hover[self._points(ax)] = self.trials
        self._ring(ax)
        if self.numeric and not self.even and log_spreads(self.at):
            ax.set_xscale("log")
        if self.diverged.any():  # they set no limits
            _show_all(ax, self.at)
        self._ticks(ax)
        if not self.order.size:
            ax.set_yticks([])
            ax.text(0.5, 0.5, "every trial diverged", transform=ax.transAxes, ha="center")
        shown = list(self.y.values()) if self.line else [self.y[self.split]]
        scale_y(ax, self.ds, self.metric, np.concatenate(shown))
        label = axis_label(self.ds, self.metric, None if self.line else self.split)
        label_y(ax, f"{label}\n{select.measured_when(self.ds)}")

    def _points(self, ax: Axes) -> Line2D:
        y = self.y[self.split]
        groups = [y[(self.group == g) & np.isfinite(y)] for g in range(len(self.values))]
        few = not self.numeric or len(self.values) <= MEANS
        most = min if self.numeric and self.random else max  # a random number may repeat by chance
        several = few and most(own.size for own in groups) > 1
        x = self.x
        if not self.numeric:  # side by side, so that they do not cover one another
            for g in range(len(self.values)):
                own = np.flatnonzero(self.group == g)
                x = x.astype(float)
                x[own] += np.linspace(-0.18, 0.18, own.size) if own.size > 1 else 0
        colour = "0.7" if several else SPLITS["train"]["color"]
        style: Style = {
            "color": colour,
            "ms": 6,
            "alpha": 0.8,
            "zorder": 1.8,
            "ls": "none",
            "marker": ".",
        }
        if self.std:
            bars = ax.errorbar(x, y, self.std[self.split], elinewidth=0.8, label="each setting",
                               **style)  # fmt: skip
            points = bars.lines[0]
        else:
            [points] = ax.plot(x, y, label="each trial", **style)
        self.ringed = x
        if not several:
            return points
        self.ringed = self.x  # where the triangles of the best are
        mean = [own.mean() if own.size else np.nan for own in groups]
        firsts = [self.order[self.group[self.order] == g][:1] for g in range(len(self.values))]
        best = [float(y[own[0]]) if own.size else np.nan for own in firsts]
        joined = {"lw": 1.5} if self.numeric and not self.random else {"ls": "none"}
        shape = {"marker": "o"} if self.numeric else {"marker": "_", "ms": 26, "mew": 2.2}
        count = [own.size for own in groups]
        of = f" of {min(count)}" if min(count) == max(count) else ""
        line = {"color": "#0072B2", "label": f"mean{of}"}
        ax.plot(self.at, mean, **(line | joined | shape))
        line = {"color": "#009E73", "label": f"best{of}", "ls": "--"}
        ax.plot(self.at, best, **(line | joined | shape | {"marker": "^", "ms": 5}))
        return points

    def _ring(self, ax: Axes) -> None:
        if not self.order.size:
            return
        y, at = self.y[self.split], int(self.order[0])
        best = f"best {select.metric_words(self.metric, self.split)}: {number(y[at])}"
        ax.plot(self.ringed[at], y[at], **RING, ms=11, label=best)

    def _ticks(self, ax: Axes) -> None:
        few = len(self.values) <= FEW and not (self.random and self._crowded(ax))
        counted = few
        if few or not self.numeric:
            kept = self._apart(ax)
            counted = few and len(kept) == len(self.values)
            names = [setting(self.values[g]) for g in kept]
            below = [self._below(g) if counted else "" for g in kept]
            texts = [textwrap.fill(a, 14) + b for a, b in zip(names, below, strict=True)]
            at = self.at[kept]
            if (room := self._room(ax, at)) < _longest(texts):
                lines = 1 + max(0, int((room * LETTER - LINE) / FURTHER))
                names = _in_lines(names, lines)
                below = [b.replace("\n", ": ", 1).replace("\n", " ") for b in below]
                texts = [a + b for a, b in zip(names, below, strict=True)]
                self._turn(ax, texts)
            ax.set_xticks(at, texts)
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            if ax.get_xscale() == "linear":
                ax.xaxis.set_major_locator(MaxNLocator(6))
            elif self.at[-1] < 1e3 * self.at[0]:  # few decades, which may get only one tick each
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(Ticks())
            ax.xaxis.set_minor_formatter(NullFormatter())
            if ax.get_xscale() == "log":
                low, high = ax.get_xlim()
                ticks = [x for x in ax.get_xticks() if low <= x <= high]
                texts = ax.xaxis.get_major_formatter().format_ticks(ticks)
                if self._room(ax, np.array(ticks)) < _longest(texts):
                    self._turn(ax, texts)
        if not counted and self.diverged.any():
            bottom = ax.get_xaxis_transform()
            where = self.x[self.diverged]
            lost = select.count(where.size, select.what(self.ds))
            ax.plot(where, np.full(where.size, 0.03), "X", color="#CC0000", ms=6,
                    transform=bottom, gid=NO_HEIGHT, label=f"diverged: {lost}")  # fmt: skip

    def _room(self, ax: Axes, at: np.ndarray) -> float:
        """How many letters fit between the two closest of these ticks."""
        apart = np.diff(self._inches(ax, at))
        return float(apart.min(initial=ax.get_position().width * self.width) / LETTER)

    def _inches(self, ax: Axes, at: np.ndarray) -> np.ndarray:
        low, high = ax.get_xlim()
        if ax.get_xscale() == "log":
            low, high, at = np.log(low), np.log(high), np.log(at)
        share: np.ndarray = (at - low) / (high - low)
        return share * ax.get_position().width * self.width

    def _apart(self, ax: Axes) -> list[int]:
        """Those values whose ticks, of one line each, do not cover one another when turned."""
        inches, kept = self._inches(ax, self.at), [0]
        for g in range(1, len(inches)):
            if inches[g] - inches[kept[-1]] >= LINE:
                kept.append(g)
        return kept

    def _turn(self, ax: Axes, texts: Sequence[str]) -> None:
        ax.tick_params(axis="x", labelrotation=90)
        self.below = LETTER * _longest(texts)

    def _crowded(self, ax: Axes) -> bool:
        """Whether ticks at all values would cover one another."""
        if not self.numeric or len(self.at) < 3:
            return False
        at = np.log(self.at) if ax.get_xscale() == "log" else self.at
        return bool(np.diff(at).min() < 0.1 * np.ptp(at))

    def _below(self, group: int) -> str:
        """How many trials with one value diverged, in short lines below its tick."""
        own = self.group == group
        lost = int(self.diverged[own].sum())
        if not lost:
            return ""
        if self.line:
            how: str = self.status[int(np.flatnonzero(own)[0])]
            return "\n" + how.replace(" in", "\nin").replace(", ", "\n")
        return f"\n{lost} of {int(own.sum())}\ndiverged"


def _in_lines(names: Sequence[str], lines: int) -> list[str]:
    """Names, wrapped into `lines` of up to 40 letters; of longer ones the start and the end."""
    fits = (n for n in range(14, 40) if all(len(textwrap.wrap(own, n)) <= lines for own in names))
    letters = next(fits, 40)
    made = []
    for name in names:
        wrapped = textwrap.wrap(name, letters)
        if len(wrapped) > lines:
            wrapped[lines - 1 :] = [f"{wrapped[lines - 1][:28]}…{name[-11:]}"]
        made.append("\n".join(wrapped))
    return made


def _longest(texts: Sequence[str]) -> int:
    return max((len(line) for text in texts for line in text.split("\n")), default=0)


def _show_all(ax: Axes, x: np.ndarray) -> None:
    """Set the limits of the x axis around sorted `x`."""
    if ax.get_xscale() == "log":
        room = (x[-1] / x[0]) ** 0.1 if x[-1] > x[0] else 2.0
        ax.set_xlim(x[0] / room, x[-1] * room)
    else:
        room = 0.1 * (float(np.ptp(x)) or 5.0)
        ax.set_xlim(x[0] - room, x[-1] + room)
