"""A plan before anything is trained: fewer programs compile faster, but pad more."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.report.figures.figure import ReportFigure, Style
from jaxexp.report.figures.interactive import attach
from jaxexp.report.figures.style import (
    STYLE,
    add_legend,
    headed,
    log_y,
    make_panels,
    say_which,
    wants_log,
)
from jaxexp.results.select import number

if TYPE_CHECKING:
    import pandas as pd

FEW = 40  # up to this many groupings have a mark each
# By the columns of the table.
LINES: dict[str, tuple[str, Style]] = {
    "seconds": ("in all", {"color": "black", "linewidth": 2.2}),
    "train_seconds": ("training, with padding", {"color": "#0072B2"}),
    "compile_seconds": ("compiling", {"color": "#E69F00", "linestyle": (0, (4, 2))}),
}
PADDING, CHOSEN = "#009E73", "#D55E00"


@rc_context(STYLE)
def tradeoff(table: "pd.DataFrame") -> ReportFigure:
    """Estimated seconds and padding by the number of programs; the plan's choice is marked.

    `table` is what `jaxexp.PlannedRun.tradeoff` returns.
    Raises UserError for a plan whose programs cannot be merged, as there is no trade-off.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
    >>> planned = jx.plan(jx.Sweep(jx.MLPTrial(batch_size=2), {"width": [4, 8]}), data=data)
    >>> figure = tradeoff(planned.tradeoff())
    """
    if len(table) < 2:
        raise UserError(
            f"the plan has {count(int(table['programs'].iloc[0]), 'program')}, of which no two can "
            "be merged: there is nothing to trade; expected trials of several sizes (width, depth, "
            "batch_size …)"
        )
    fig, panels = make_panels(2, 1, 6.4, 2.6, sharex=True)
    above, below = panels[:, 0]
    programs = table["programs"].to_numpy()
    gap = 1 + np.flatnonzero(np.diff(programs) < -1)  # between two groupings, or nowhere
    few = len(table) <= FEW
    mark: Style = {"marker": "o", "markersize": 3, "markevery": 1 if few else [0]}
    mark = mark if few or len(gap) else {}

    def line(ax: Axes, column: str, label: str, style: Style) -> None:
        heights = np.insert(table[column].to_numpy(float), gap, np.nan)
        ax.plot(np.insert(programs, gap, 1), heights, label=label, **style, **mark)

    for column, (label, style) in LINES.items():
        line(above, column, label, style)
    line(below, "padding", "", {"color": PADDING})
    if wants_log(table[[*LINES]].to_numpy()):
        log_y(above, table[[*LINES]].to_numpy())
    else:
        above.set_ylim(bottom=0)
    above.set_ylabel("seconds on one device")
    below.set_ylim(0, 1)
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.set_ylabel("share of padding")
    below.set_xlabel("programs")
    _count_programs(below, int(programs.min()), int(programs.max()))
    chosen = table[table["chosen"]]
    if len(chosen):
        _mark(above, below, chosen.iloc[0])
    add_legend(fig, [above])
    fig.align_ylabels()
    note = headed("estimates", *_planned(table), *_unknown(programs[gap - 1], programs[gap]))
    say_which(fig, note)
    fig.alt = _in_words(table)
    return attach(fig, [above, below], note=note)


def _count_programs(ax: Axes, fewest: int, most: int) -> None:
    """Whole numbers along the x axis, on a log scale if they span more than a decade."""
    if most > 10 * fewest:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: number(int(n))))


def _mark(above: Axes, below: Axes, chosen: "pd.Series") -> None:
    """Mark in both panels what the plan has chosen."""
    for ax, column in ((above, "seconds"), (below, "padding")):
        place = chosen["programs"]
        ax.axvline(place, color=CHOSEN, linewidth=1, linestyle=":", zorder=1.5)
        ax.plot(
            [place], [chosen[column]], label="as planned", linestyle="none", marker="o",
            markersize=9, markerfacecolor="none", markeredgecolor=CHOSEN, markeredgewidth=2,
            clip_on=False,
        )  # fmt: skip


def _planned(table: "pd.DataFrame") -> list[str]:
    """What the plan has chosen, in words; none if the table does not have it."""
    return [f"as planned: {_said(row)}" for _, row in table[table["chosen"]].iterrows()]


def _unknown(before: np.ndarray, after: np.ndarray) -> list[str]:
    """Which numbers of programs have no estimate, as there are too many sizes to try all pairs."""
    return [
        f"none for {number(low + 1)} to {number(high - 1)} programs"
        for high, low in zip(before.tolist(), after.tolist(), strict=True)
    ]


def _said(row: "pd.Series") -> str:
    programs, seconds = count(int(row["programs"]), "program"), float(row["seconds"])
    digits = f"{seconds:,.0f}" if seconds >= 10 else number(seconds, 2)
    return f"{programs}, {digits} s, {row['padding']:.0%} padding"


def _in_words(table: "pd.DataFrame") -> str:
    first, last = table.iloc[0], table.iloc[-1]
    best = table.iloc[int(table["seconds"].argmin())]
    planned = "".join(f"{said[0].upper()}{said[1:]}. " for said in _planned(table))
    return (
        "Estimated seconds on one device, of training, of compiling and in all, and the share of "
        f"padding, by the number of programs. {planned}The least: {_said(best)}. One for each "
        f"size: {_said(first)}. Merged as far as can be: {_said(last)}."
    )
