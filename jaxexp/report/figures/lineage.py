"""A population: metrics and hyperparameters of its members by epoch, and who copied whom.

Shapes: T members, E epochs, C copies.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes

from jaxexp.base.errors import UserError
from jaxexp.base.words import capitalised
from jaxexp.report.figures.figure import ReportFigure, Style
from jaxexp.report.figures.interactive import attach
from jaxexp.report.figures.style import (
    CATEGORIES,
    OTHERS,
    STYLE,
    add_legend,
    axis_label,
    by_epoch,
    label_y,
    log_y,
    make_panels,
    scale_y,
    wants_log,
)
from jaxexp.results import select
from jaxexp.results.select import count, number, words

COLOURED = 6  # members that have a colour and a name
MANY = 24  # with more members, lines are faint
METRICS, VALUES = 2, 3  # panels, at most
COPY, ANCESTRY = "#D55E00", "#0072B2"
COPIES = 500  # in one line: the interactive twin would thin longer ones


@rc_context(STYLE)
def lineage(
    ds: xr.Dataset, metric: str | Sequence[str] | None = None, split: str | None = None
) -> ReportFigure:
    """Population-based training: metrics and hyperparameters of each member by epoch.

    A member's line ends where it gave up its state; an orange line leads from the member whose
    state it took over to where it went on. A wide line shows the ancestry of the best member by the
    first metric: the epochs that its parameters were trained in. The metrics default to the first
    two of `select.metrics_by_rank`, and `split` to `select.default_split`. The hyperparameters are
    those that members changed, at most three.

    Raises UserError for results that are not of a population, and for an unknown metric or split.
    """
    split = split or select.default_split(ds)
    first = select.metrics_by_rank(ds)[:METRICS]
    metrics = [metric] if isinstance(metric, str) else list(metric or first)
    copies = _Copies(ds)
    best = int(select.rank(ds, metrics[0], split).index[0])
    ancestry_E = copies.ancestry(best)
    varied = _varied(ds)
    fig, panels = make_panels(len(metrics) + len(varied), 1, 6.4, 2.5, sharex=True)
    alive_TxE = np.isfinite(_by_member(ds["loss"].sel(split=split)))
    for ax, own in zip(panels[:, 0], [*metrics, *varied], strict=True):
        if own in metrics:
            values_TxE = np.where(alive_TxE, _by_member(ds[own].sel(split=split)), np.nan)
        else:
            values_TxE = _by_member(ds[own])
        values_TxE = np.where(np.isfinite(values_TxE), values_TxE, np.nan)
        _members(fig, ax, ds, values_TxE, copies)
        _ancestry(ax, copies.epoch_E, values_TxE, ancestry_E)
        _copied(ax, values_TxE, copies)
        by_epoch(ax, ds)
        if own in metrics:
            scale_y(ax, ds, own, values_TxE)
            label_y(ax, axis_label(ds, own, split))
        else:
            if wants_log(values_TxE):
                log_y(ax, values_TxE)
            ax.set_ylabel(words(own.removeprefix("own_")))
    for ax in panels[:-1, 0]:
        ax.set_xlabel("")
    fig.align_ylabels()
    add_legend(fig, panels[:, 0])
    shown = [words(own.removeprefix("own_")) for own in [*metrics, *varied]]
    told = capitalised(f"{', '.join(shown[:-1])} and {shown[-1]}")
    fig.alt = (
        f"{told} of {count(len(alive_TxE), 'member')} of a population by epoch, with lines from "
        f"members to their copies. {descent(ds, metrics[0], split)}"
    )
    return attach(fig, list(panels[:, 0]))


def descent(ds: xr.Dataset, metric: str | None = None, split: str | None = None) -> str:
    """In words: how many copies there were, and whom the final members descend from.

    `metric` (`select.ranked_by` if not given) decides which member is the best.

    Raises UserError as `lineage` does.
    """
    metric, split = metric or select.ranked_by(ds), split or select.default_split(ds)
    copies = _Copies(ds)
    ranked = select.rank(ds, metric, split)
    best = int(ranked.index[0])
    members = len(copies.parent_TxE)
    founders = {int(copies.ancestry(member)[0]) for member in range(members)}
    first = int(copies.ancestry(best)[0])
    names = select.hyperparameters(ds)
    own = [f"own_{name}" for name in names if select.changed(ds, name)]
    began = select.label(select.point(ds, first)[1].drop_vars(own), names)
    through = int((np.diff(copies.ancestry(best)) != 0).sum())
    return (
        f"{_copies_in_words(len(copies.epoch_C))}. The {number(members)} members at the end "
        f"descend from {number(len(founders))} of the first ones; the best by "
        f"{select.metric_words(metric, split)} began as member {first} ({began}) and "
        f"{f'went through {_copies_in_words(through)}' if through else 'is no copy'}."
    )


def _copies_in_words(n: int) -> str:
    return "1 copy" if n == 1 else f"{number(n)} copies"


class _Copies:
    """Which members became copies of which, and after which epoch."""

    def __init__(self, ds: xr.Dataset) -> None:
        if not select.is_population(ds):
            raise UserError("these results have no parent: expected those of a population")
        self.parent_TxE = _by_member(ds["parent"]).astype(int)
        if self.parent_TxE.max() >= len(self.parent_TxE):
            raise UserError(
                f"parent: member {self.parent_TxE.max()} of {len(self.parent_TxE)}: expected the "
                "results of a whole population"
            )
        self.epoch_E = ds["epoch"].values
        # A copy that trained for no epoch has no curve.
        self.child_C, self.at_C = np.nonzero(self.parent_TxE[:, :-1] >= 0)
        self.parent_C = self.parent_TxE[self.child_C, self.at_C]
        self.epoch_C = self.epoch_E[self.at_C]

    def ancestry(self, member: int) -> np.ndarray:
        """By epoch, which member trained the state that this one has in the end, (E,)."""
        line_E = np.full(len(self.epoch_E), member)
        for at in range(len(line_E) - 2, -1, -1):
            parent = self.parent_TxE[line_E[at + 1], at]
            line_E[at] = parent if parent >= 0 else line_E[at + 1]
        return line_E


def _by_member(values: xr.DataArray) -> np.ndarray:
    """The values by member and epoch, (T, E)."""
    found: np.ndarray = values.transpose(..., "epoch").values
    return found.reshape(-1, found.shape[-1])


def _varied(ds: xr.Dataset) -> list[str]:
    """The variables of the hyperparameters that members changed, at most `VALUES`."""
    own = [str(name) for name in ds.data_vars if str(name).startswith("own_")]
    return sorted(own, key=lambda name: (name != "own_learning_rate", name))[:VALUES]


def _members(
    fig: ReportFigure, ax: Axes, ds: xr.Dataset, values_TxE: np.ndarray, copies: _Copies
) -> None:
    """The members' lines: each epoch occurs twice, as a gap the second time if copied then."""
    members, epochs = values_TxE.shape
    gaps_TxE = np.where(copies.parent_TxE >= 0, np.nan, values_TxE)
    y_Tx2E = np.stack([values_TxE, gaps_TxE], axis=-1).reshape(members, 2 * epochs)
    x_2E = np.repeat(copies.epoch_E, 2)
    names = [f"member {i} ({name})" for i, (name, _) in enumerate(select.points(ds))]
    if members <= COLOURED:
        for i, (y_2E, colour) in enumerate(zip(y_Tx2E, _COLOURS, strict=False)):
            [line] = ax.plot(x_2E, y_2E, color=colour, label=f"member {i}", zorder=2.2)
            fig.hover[line] = [names[i]] * len(y_2E)
        return
    gap_Tx1 = np.full((members, 1), np.nan)
    x_TxN = np.tile(np.append(x_2E, 0), (members, 1))
    y_TxN = np.concatenate([y_Tx2E, gap_Tx1], axis=1)
    label = f"{number(members)} members"
    [line] = ax.plot(x_TxN.ravel(), y_TxN.ravel(), color="0.6", lw=0.8, label=label, zorder=1.5)
    fig.clouds[line] = names
    fig.hover[line] = [label]


_COLOURS = [colour for colour in CATEGORIES if colour not in (COPY, ANCESTRY)]


def _ancestry(
    ax: Axes, epoch_E: np.ndarray, values_TxE: np.ndarray, ancestry_E: np.ndarray
) -> None:
    """Draw the best member's ancestry: behind the lines if members are few, else in front."""
    y_E = values_TxE[ancestry_E, np.arange(len(ancestry_E))]
    few = len(values_TxE) <= COLOURED
    style: Style = {"color": OTHERS, "lw": 6, "zorder": 1.4}
    if not few:
        style = {"color": ANCESTRY, "lw": 2.2, "zorder": 2.4}
    ax.plot(epoch_E, y_E, label="ancestry of the best", solid_capstyle="round", **style)


def _copied(ax: Axes, values_TxE: np.ndarray, copies: _Copies) -> None:
    """Draw a line from each parent to its copy one epoch later."""
    after_C = copies.at_C + 1
    x_Cx3 = np.stack(
        [copies.epoch_C, copies.epoch_E[after_C], np.full(len(after_C), np.nan)], axis=1
    )
    y_Cx3 = np.stack(
        [
            values_TxE[copies.parent_C, copies.at_C],
            values_TxE[copies.child_C, after_C],
            np.full(len(after_C), np.nan),
        ],
        axis=1,
    )
    members = len(values_TxE)
    style: Style = {"ls": "--", "lw": 1.2} if members <= COLOURED else {
        "lw": 0.8, "alpha": 0.8 if members <= MANY else 0.5
    }  # fmt: skip
    for start in range(0, max(1, len(after_C)), COPIES):
        part = slice(start, start + COPIES)
        ax.plot(
            x_Cx3[part].ravel(), y_Cx3[part].ravel(), color=COPY, label="from a member to its copy",
            zorder=2.3, **style,
        )  # fmt: skip
