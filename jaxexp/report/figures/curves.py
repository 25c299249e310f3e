"""Any metric of a sweep: by epoch, and after the last one."""

import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from jaxexp.base.errors import UserError
from jaxexp.base.words import capitalised
from jaxexp.report.figures.interactive import NO_HEIGHT, Keyword, ReportFigure, Style, attach
from jaxexp.report.figures.style import (
    CATEGORIES,
    DIVERGED,
    OTHERS,
    RING,
    SPLITS,
    STOPPED,
    STYLE,
    add_legend,
    applying_note,
    averaged,
    axis_label,
    band,
    best_of,
    by_epoch,
    grid_shape,
    headed,
    label_y,
    make_panels,
    say_which,
    scale_y,
    seeds_note,
    set_titles,
    stopped_note,
    trial_colours,
)
from jaxexp.results import select
from jaxexp.results.select import number, status, until_divergence

PANELS = 4  # trials side by side
HIGHLIGHTED = 8  # curves that have a colour and a name
FEW = 10  # values each of which has its tick
MEANS = 30  # values of a number that have a mean: of more, each would be of very few trials
FAR = 20  # times the range of all others, beyond which values of diverged trials are left out
BANDS = 3  # of more than five curves, how many have bands: more would hide one another


@rc_context(STYLE)
def curves(
    ds: xr.Dataset,
    metric: str = "loss",
    split: str | None = None,
    reference: tuple[float, str] | None = None,
) -> ReportFigure:
    """`metric` of `split` (`select.default_split` if not given) by epoch, one curve per trial.

    Where the seed is an axis, the curves are means over the seeds, in bands of ± standard
    deviation; a sweep over seeds alone shows each of them in grey as well. Of more than eight
    trials, the best eight by the metric stand out; the others are grey. The curve of a diverged
    trial ends with a cross, and the legend names the epoch. `reference` is a height and its name,
    drawn as a horizontal line.
    Raises UserError for a metric or a split that the results do not have.
    """
    split = split or select.default_split(ds)
    means = averaged(ds)
    ranked = select.rank(means, metric, split)
    fig, [[ax]] = make_panels(1, 1, 6.0, 4.0)
    trials, _ = best_of(means, HIGHLIGHTED, metric, split)
    all_shown = len(trials) == select.size(means)
    colours = trial_colours(means) if all_shown else CATEGORIES
    others = ""
    if not all_shown:
        others = _cloud(fig, ax, means, metric, split, ranked.index[HIGHLIGHTED:].to_numpy())
    elif means is not ds and select.size(means) == 1:  # seeds alone
        others = _cloud(fig, ax, ds, metric, split, np.arange(select.size(ds)), "each seed")
    best = set(ranked["trial"].iloc[:BANDS]) if len(trials) > 5 else set(ranked["trial"])
    for (name, point), colour in zip(trials, colours, strict=True):
        banded = select.label(point, select.hyperparameters(means)) in best
        name = "mean" if others == "each seed" else name
        _curve(ax, point, metric, split, banded, color=colour, label=name)
    if others:  # behind the curves, but last in the legend
        ax.plot([], [], color=OTHERS, lw=1, label=others)
    if reference:
        height, text = reference
        ax.axhline(height, color="0.35", lw=1, ls=":", label=f"{text}, {number(height)}")
    by_epoch(ax, ds)
    scale_y(ax, ds, metric, until_divergence(means, metric).sel(split=split))
    cut = _leave_out_diverged(ax, means, metric, split)
    label_y(ax, axis_label(ds, metric, split))
    note = seeds_note(means)
    if note and len(best) < len(trials):
        note += f" (the best {BANDS} with bands)"
    note = headed(note, stopped_note(means), cut)
    say_which(fig, note)
    add_legend(fig, [ax])
    fig.alt = (
        f"{capitalised(select.metric_words(metric, split))} by epoch, "
        f"{_curves_in_words(len(trials), others)}. {select.best_in_words(means, metric, split)}"
    )
    return attach(fig, [ax], note=note)


def _leave_out_diverged(ax: Axes, ds: xr.Dataset, metric: str, split: str) -> str:
    """Cut a linear axis off before values of diverged trials that would flatten all other curves.

    Returns what to say of that, or "".
    """
    values = until_divergence(ds, metric).sel(split=split)
    finished = values.where(ds["diverged_epoch"] == 0).values
    finished, every = (own[np.isfinite(own)] for own in (finished, values.values))
    if ax.get_yscale() == "log" or not finished.size:
        return ""
    low, high = float(finished.min()), float(finished.max())
    span = high - low or max(abs(high), 1.0)
    if float(np.ptp(every)) <= FAR * span:
        return ""
    ax.set_ylim(low - 0.1 * span, high + 0.1 * span)
    return "values of diverged trials lie beyond this axis"


def _curves_in_words(shown: int, others: str) -> str:
    drawn = select.count(shown, "curve")
    return f"{drawn} in colour and {others} in grey" if others else drawn


def _cloud(
    fig: ReportFigure, ax: Axes, ds: xr.Dataset, metric: str, split: str, places: np.ndarray,
    name: str = "",
) -> str:  # fmt: skip
    """Draw the trials at `places` as one grey line with gaps; returns what to call them."""
    values = until_divergence(ds, metric).sel(split=split).transpose(..., "epoch").values
    values_TxE = values.reshape(-1, ds.sizes["epoch"])[places]
    values_TxE = np.where(np.isfinite(values_TxE), values_TxE, np.nan)
    gap_Tx1 = np.full((len(places), 1), np.nan)
    x_TxE = np.tile(np.append(ds["epoch"].values, 0), (len(places), 1))
    marker = "." if (np.isfinite(values_TxE).sum(axis=1) <= 1).all() else ""
    diverged = int((ds["diverged_epoch"].values.ravel()[places] > 0).sum())
    y_TxE = np.concatenate([values_TxE, gap_Tx1], axis=1)
    [line] = ax.plot(x_TxE.ravel(), y_TxE.ravel(), color=OTHERS, lw=0.8, marker=marker, zorder=1.5)
    name = name or f"{number(len(places))} other{'' if len(places) == 1 else 's'}" + (
        f" ({diverged} diverged)" if diverged else ""
    )
    trials = select.rank(ds)["trial"]
    fig.clouds[line] = [trials[place] for place in places.tolist()]
    fig.hover[line] = [name]
    return name


@rc_context(STYLE)
def splits(
    ds: xr.Dataset,
    metrics: Sequence[str] = ("loss",),
    *,
    mark_best: bool = True,
    running: bool = False,
) -> ReportFigure:
    """Every split by epoch; the best epoch by `select.default_split` is ringed if `mark_best`.

    Where the seed is an axis: means over the seeds, in bands of ± standard deviation. One trial: a
    panel per metric, side by side. Several: a column per trial, a row per metric;
    of more than four, the best four by the first metric. `running` adds the mean during the epoch,
    in training mode, of the metrics that have one: it is not the metric of the training split,
    which is measured at the epoch's end.
    Raises UserError for a metric that the results do not have.
    """
    split = select.default_split(ds)
    if not metrics:
        raise UserError("metrics=(): expected at least one")
    for metric in metrics:
        select.direction(ds, metric)  # which refuses an unknown one
        if running and f"running_{metric}" not in ds:
            raise UserError(f"running=True: these results have no running_{metric}")
    ds = averaged(ds)
    trials, note = best_of(ds, PANELS, metrics[0], split)
    if len(trials) == 1:
        fig, panels = make_panels(1, len(metrics), 5.2 if len(metrics) == 1 else 3.7, 3.6)
        panels = panels.T
    else:
        fig, panels = make_panels(len(metrics), len(trials), 3.7, 2.8, sharex=True, sharey="row")
    for row, metric in zip(panels, metrics, strict=True):
        for ax, (_, point) in zip(row, trials, strict=True):
            _splits_panel(ax, point, metric, running)
            if mark_best:
                _ring_best_epoch(ax, point, metric, named=len(trials) == 1)
        drawn = [until_divergence(point, metric).values.ravel() for _, point in trials]
        scale_y(row[0], ds, metric, np.concatenate(drawn))
        label_y(row[0], axis_label(ds, metric))
    titled = len(trials) > 1 or status(trials[0][1]) != "finished"
    set_titles(panels[:1], [name if titled else "" for name, _ in trials], 3.7)
    for ax in panels[:-1].flat if len(trials) > 1 else ():
        ax.set_xlabel("")
    note = headed(note, seeds_note(ds), stopped_note(ds))
    say_which(fig, note)
    add_legend(fig, panels.flat)
    fig.alt = (
        f"{capitalised(' and '.join(map(select.words, metrics)))} of "
        f"{' and '.join(select.splits(ds))} by epoch, "
        f"{select.count(len(trials), select.what(ds))}. "
        f"{select.best_in_words(ds, metrics[0], split)}"
    )
    flat = list(panels.T.flat if len(trials) == 1 else panels.flat)
    return attach(fig, flat, panels.shape[1] if len(trials) > 1 else len(flat), note)


def _splits_panel(ax: Axes, point: xr.Dataset, metric: str, running: bool) -> None:
    for split in select.splits(point):
        line = {key: value for key, value in SPLITS.get(split, {}).items() if key != "marker"}
        _curve(ax, point, metric, split, label=split, **line)
    if running:
        during = until_divergence(point, f"running_{metric}")
        label = "during the epoch (training mode)"
        ax.plot(during["epoch"], during, color=SPLITS["train"]["color"], lw=1, ls=":", label=label)
    by_epoch(ax, point)


def _ring_best_epoch(ax: Axes, point: xr.Dataset, metric: str, *, named: bool) -> None:
    """Ring the best epoch; the legend has its numbers if `named`."""
    split = select.default_split(point)
    values = until_divergence(point, metric).sel(split=split)
    values = values.where(np.isfinite(values))
    if not values.notnull().any():
        return
    higher = select.direction(point, metric) == "higher"
    where = values.idxmax("epoch") if higher else values.idxmin("epoch")
    height = float(values.sel(epoch=where))
    name = select.metric_words(metric, split)
    best = f"best {name}: {number(height)} in epoch {int(where)}"
    label = best if named else f"best epoch by {name.split()[0]}"
    ax.plot([where], [height], **RING, ms=9, clip_on=False, label=label)


def _curve(
    ax: Axes, point: xr.Dataset, metric: str, split: str, banded: bool = True, **style: Keyword
) -> None:
    """One curve by epoch up to its divergence, which is marked, as are an early end and a point."""
    values = until_divergence(point, metric).sel(split=split)
    if banded and f"{metric}_std" in point:
        std = point[f"{metric}_std"].sel(split=split)
        band(ax, values["epoch"], values, std, style.get("color"), style.get("label", ""))
    values = values[np.isfinite(values.values)]
    if status(point) != "finished":
        style |= DIVERGED | {"markevery": [values.size - 1] if values.size else None}
    elif values.size == 1:
        style |= {"marker": "o"}
    elif bool(select.stopped(point)):
        style |= STOPPED | {"markevery": [values.size - 1]}
    ax.plot(values["epoch"], values, **style)


@rc_context(STYLE)
def final_by(
    ds: xr.Dataset, axis: str, metric: str | Sequence[str] = "loss", split: str | None = None
) -> ReportFigure:
    """`metric` (or several, a panel each) after the last epoch against hyperparameter `axis`.

    Where the seed is an axis, a trial stands for the mean over the seeds, and error bars for their
    standard deviation.
    Where nothing else varies: every split, a line where `axis` is a number. Else: each trial of
    `split` (`select.default_split` if not given) as a grey point, and by value of `axis` their
    mean and their best. The best trial is ringed; diverged trials are counted below their value.
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
    for ax, own in zip(panels.flat, metrics, strict=False):
        against = _Against(ds, axis, own, split)
        against.draw(fig, ax)
        even = "\n(values at equal distances)" if against.even else ""
        ax.set_xlabel(select.named(ds, axis) + even)
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
        # A few values most of which would share one place stand at equal distances.
        self.even = self.numeric and len(at) <= FEW and not _apart(at)
        at = np.arange(len(at)) if self.even else at
        self.at, self.x = at, at[self.group]
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
        # Points of a random search are not joined: other things change from one to the next.
        self.line = alone and (varying == 1 or (len(select.axes(ds)) == 1 and len(given) <= 8))
        beside = [n for n in select.hyperparameters(ds) if ds[n].dims == ds[axis].dims]
        self.random = len(beside) > 1

    def draw(self, fig: ReportFigure, ax: Axes) -> None:
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
        if self.numeric and not self.even and _log_spreads(self.at):
            ax.set_xscale("log")
        self._ticks(ax)
        if self.diverged.any():  # which set no limits
            _show_all(ax, self.at)
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
        most = min if self.numeric and self.random else max  # numbers that came twice by chance
        several = few and most(own.size for own in groups) > 1
        x = self.x
        if not self.numeric:  # side by side, where they would cover one another
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
        if not several:
            return points
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
        if self.line or self.numeric:  # on a strip, the triangle says it
            best = f"best {select.metric_words(self.metric, self.split)}: {number(y[at])}"
            ax.plot(self.x[at], y[at], **RING, ms=11, label=best)

    def _ticks(self, ax: Axes) -> None:
        few = len(self.values) <= FEW
        if few or not self.numeric:
            kept = range(0, len(self.values), -(-len(self.values) // 20))
            names = [textwrap.fill(number(self.values[g]), 14) for g in kept]
            below = [self._below(g) if few else "" for g in kept]
            ax.set_xticks(
                self.at[list(kept)], [a + b for a, b in zip(names, below, strict=True)],
            )  # fmt: skip
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            if ax.get_xscale() == "linear":
                ax.xaxis.set_major_locator(MaxNLocator(6))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(float(x))))
            ax.xaxis.set_minor_formatter(NullFormatter())
        if not few and self.diverged.any():
            bottom = ax.get_xaxis_transform()
            where = self.x[self.diverged]
            ax.plot(where, np.full(where.size, 0.03), "X", color="#CC0000", ms=6,
                    transform=bottom, gid=NO_HEIGHT,
                    label=f"diverged: {select.count(where.size, 'trial')}")  # fmt: skip

    def _below(self, group: int) -> str:
        """How many trials of one value diverged, in short lines below its tick."""
        own = self.group == group
        lost = int(self.diverged[own].sum())
        if not lost:
            return ""
        if self.line:
            how: str = self.status[int(np.flatnonzero(own)[0])]
            return "\n" + how.replace(" in", "\nin").replace(", ", "\n")
        return f"\n{lost} of {int(own.sum())}\ndiverged"


def _apart(x: np.ndarray) -> bool:
    """Whether the ticks of sorted `x` have room beside one another on one of the scales."""
    shown = np.log(x) if _log_spreads(x) else x
    return len(x) < 3 or bool(np.diff(shown).min() >= 0.02 * np.ptp(shown))


def _show_all(ax: Axes, x: np.ndarray) -> None:
    """Limits around sorted `x`."""
    if ax.get_xscale() == "log":
        room = (x[-1] / x[0]) ** 0.1 if x[-1] > x[0] else 2.0
        ax.set_xlim(x[0] / room, x[-1] * room)
    else:
        room = 0.1 * (float(np.ptp(x)) or 5.0)
        ax.set_xlim(x[0] - room, x[-1] + room)


def _log_spreads(x: np.ndarray) -> bool:
    """Whether sorted `x` has its closest values further apart on a log scale than on a linear."""
    if x.min() <= 0 or x.min() == x.max():
        return False
    linear, log = np.diff(x) / np.ptp(x), np.diff(np.log(x)) / np.ptp(np.log(x))
    return bool(log.min() > linear.min())
