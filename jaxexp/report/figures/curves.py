"""Any metric of a sweep: by epoch, and after the last one."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes

from jaxexp.base.errors import UserError
from jaxexp.base.words import capitalised
from jaxexp.report.figures.figure import Keyword, ReportFigure
from jaxexp.report.figures.interactive import attach
from jaxexp.report.figures.style import (
    CATEGORIES,
    DIVERGED,
    OTHERS,
    RING,
    SPLITS,
    STOPPED,
    STYLE,
    add_legend,
    averaged,
    axis_label,
    band,
    best_of,
    by_epoch,
    by_epoch_and_split,
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
FAR = 20  # times the range of the others: diverged trials beyond it are cut off
BANDS = 3  # how many of more than five curves have bands: more would hide one another


@rc_context(STYLE)
def curves(
    ds: xr.Dataset,
    metric: str = "loss",
    split: str | None = None,
    reference: tuple[float, str] | None = None,
) -> ReportFigure:
    """`metric` of `split` (`select.default_split` if not given) by epoch, one curve per trial.

    If the seed is an axis, the curves are means over the seeds, with bands of ± standard deviation;
    a sweep over seeds alone also shows each of them in grey. Of more than eight trials, the best
    eight by the metric have colours; the others are grey. The curve of a diverged trial ends with a
    cross, and the legend names the epoch. `reference` is a height and its name, drawn as a
    horizontal line.

    Raises UserError for a metric or a split that the results do not have.
    """
    ds, split = by_epoch_and_split(ds), split or select.default_split(ds)
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
    coloured = list(zip(trials, colours, strict=True))
    # Trials that diverged at once, and so have no curve, come last in the legend.
    coloured.sort(key=lambda own: not _known(own[0][1], metric, split))
    bands = 0
    for (name, point), colour in coloured:
        banded = select.label(point, select.hyperparameters(means)) in best
        bands += banded and _known(point, metric, split)
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
    curved = sum(_known(point, metric, split) for _, point in trials)
    if note and bands < curved:
        note += f" (the best {bands} with bands)"
    note = headed(note, stopped_note(means), cut)
    say_which(fig, note)
    add_legend(fig, [ax])
    fig.alt = (
        f"{capitalised(select.metric_words(metric, split))} by epoch, "
        f"{_curves_in_words(len(trials), others)}. {select.best_in_words(means, metric, split)}"
    )
    return attach(fig, [ax], note=note)


def _known(point: xr.Dataset, metric: str, split: str) -> bool:
    """Whether a trial has any value to draw."""
    return bool(np.isfinite(until_divergence(point, metric).sel(split=split)).any())


def _leave_out_diverged(ax: Axes, ds: xr.Dataset, metric: str, split: str) -> str:
    """Cut off a linear axis before values of diverged trials that would flatten all other curves.

    Returns a note on this, or "".
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
    """Every split by epoch; the best epoch on `select.default_split` is ringed if `mark_best`.

    If the seed is an axis, curves are means over the seeds, with bands of ± standard deviation. One
    trial has a panel per metric, side by side. Several trials have a column each, with a row per
    metric; of more than four, the best four by the first metric are shown. `running` adds the mean
    during the epoch, in training mode, which differs from the training split's metric at the end of
    the epoch.

    Raises UserError for a metric that the results do not have, and for one without a running mean
    if `running`.
    """
    ds, split = by_epoch_and_split(ds), select.default_split(ds)
    if not metrics:
        raise UserError("metrics=(): expected at least one")
    for metric in metrics:
        select.direction(ds, metric)  # this refuses an unknown one
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
    """Ring the best epoch; if `named`, the legend gives the value and the epoch."""
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
    """One curve by epoch, with a mark where it diverged or stopped early, or if it is one point."""
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
