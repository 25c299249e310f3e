"""Three or more hyperparameters: parallel coordinates, and which of them matter."""

import textwrap

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import colormaps, rc_context
from matplotlib.collections import LineCollection

from jaxexp.report.figures.figure import ReportFigure, Spec, Style
from jaxexp.report.figures.interactive import VIRIDIS, attach, meta
from jaxexp.report.figures.packing import MOST, rounded
from jaxexp.report.figures.style import (
    STYLE,
    averaged,
    axis_label,
    log_spreads,
    make_panels,
    want_even,
    wants_log,
)
from jaxexp.results import select
from jaxexp.results.select import number, setting, within


@rc_context(STYLE)
def parallel(ds: xr.Dataset, metric: str = "loss", split: str | None = None) -> ReportFigure:
    """Parallel coordinates: each trial a line through its hyperparameters to `metric`.

    Better trials have brighter lines, which lie on top. If the seed is an axis, values are means
    over it. Diverged trials have no value and are left out; of more than 2,000 trials, the best
    2,000 are drawn.

    Raises UserError for a metric or a split that the results do not have.
    """
    split = split or select.default_split(ds)
    ds = averaged(ds)
    ranked = select.rank(ds, metric, split)
    ranked = ranked[np.isfinite(ranked["value"])]
    known, ranked = len(ranked), ranked.iloc[:MOST]
    higher = select.direction(ds, metric) == "higher"
    names = [n for n in select.hyperparameters(ds) if len(select.distinct(ds, n)) > 1]
    label = axis_label(ds, metric, split)
    axes = [
        _Axis(ds, name, ranked[name], there=select.applies(ds, name)[ranked.index])
        for name in names
    ]
    value = ranked["value"].to_numpy(float)
    axes.append(_Axis(ds, "", ranked["value"], log=not higher and wants_log(value), label=label))

    fig, [[ax]] = make_panels(1, 1, max(6.4, 1.5 * len(axes) + 1), 4.2)
    shares_AxN = np.stack([axis.shares for axis in axes]) if len(value) else np.zeros((0, 0))
    if len(value):
        order = np.arange(len(value))[::-1]  # reversed rank: the best last
        points = np.stack([np.tile(np.arange(len(axes)), (len(value), 1)), shares_AxN.T], axis=-1)
        colours = colormaps["viridis"]((shares_AxN[-1] if higher else 1 - shares_AxN[-1])[order])
        alpha = min(0.9, max(0.15, 60 / len(value)))
        lines = LineCollection(list(points[order]), colors=colours, alpha=alpha, lw=1)
        ax.add_collection(lines)
    ax.set(xlim=(-0.1, len(axes) - 0.9), ylim=(-0.04, 1.04), yticks=[])
    ax.set_xticks(range(len(axes)), [textwrap.fill(axis.label, 16) for axis in axes])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    for at, axis in enumerate(axes):
        ax.axvline(at, color="0.3", lw=0.8)
        for share, text in axis.ticks():
            text = textwrap.fill(text, 14, max_lines=3, placeholder="…")
            ax.text(at + 0.02, share, text, fontsize=8, va="center", bbox=_BOX)
    shown, bad = select.count(known, select.what(ds)), select.size(ds) - known
    if known > MOST:
        shown = f"the best {number(MOST)} of {shown}"
    fig.alt = (
        f"Parallel coordinates of {shown} through "
        f"{', '.join(select.named(ds, name) for name in names)} to {label}. "
        f"{select.best_in_words(ds, metric, split)}"
    )
    note = f"Brighter is better{f'; {shown}' if known > MOST else ''}"
    note += f"; without {number(bad)} that have no value" if bad else ""
    ax.set_title(textwrap.fill(note, int(fig.get_figwidth() * 12)), color="0.35")
    if len(value):
        fig.interactive = _twin(axes, shares_AxN[-1], fig, higher=higher, note=note)
    return fig


_BOX: Style = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}


class _Axis:
    """One vertical axis: a hyperparameter or the metric, over all trials."""

    def __init__(
        self, ds: xr.Dataset, name: str, column: pd.Series, log: bool | None = None,
        label: str = "", there: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """`there` says in which trials the hyperparameter does something."""
        there = np.ones(len(column), bool) if there is None else there
        self.label = label or select.named(ds, name)
        self.names: list[str] = []
        numeric = pd.api.types.is_numeric_dtype(column) and column.dtype.kind != "b"
        distinct = select.distinct(select.applying(ds, name), name) if name else []
        known = np.array(distinct if numeric else [], float)  # scaled as in `final_by`
        self.log = log_spreads(known) if log is None else log
        if numeric and not want_even(known):
            values = column.to_numpy(float)
            with np.errstate(divide="ignore", invalid="ignore"):  # for values that do nothing
                self.at = np.log10(values) if self.log else values
        else:
            places = {value: place for place, value in enumerate(distinct)}
            self.names = [setting(value) for value in distinct]
            self.at = np.array([places.get(value, 0) for value in column.tolist()], float)
            self.log = False
        few = np.unique(self.at[there])
        if self.names:
            self.few = few[:: -(-len(few) // 20) or 1]
        else:
            self.few = few if len(few) <= 8 else np.array([])
        low, high = (few.min(), few.max()) if few.size else (0.0, 1.0)
        self.first, self.high = float(low), float(high if high > low else low + 1)
        # The other trials are placed below, at a dash.
        self.low = self.first if there.all() else self.first - 0.15 * (self.high - self.first)
        self.at = np.where(there, self.at, self.low)

    @property
    def shares(self) -> np.ndarray:
        """Where the trials are, from 0 to 1."""
        return (self.at - self.low) / (self.high - self.low)

    @property
    def places(self) -> np.ndarray:
        """The places of ticks: each of a few values, or five along the axis."""
        places = self.few if self.few.size else np.linspace(self.first, self.high, 5)
        return places if self.low == self.first else np.append(self.low, places)

    def ticks(self) -> list[tuple[float, str]]:
        """The height of each tick, from 0 to 1, and its label."""
        span = self.high - self.low
        return [((float(at) - self.low) / span, self.text(float(at))) for at in self.places]

    def text(self, at: float) -> str:
        """The value at a place of the axis."""
        if at < self.first:
            return "–"
        if self.names:
            return self.names[round(at)]
        value = float(10**at) if self.log else at
        if self.few.size:  # ticks are at values of trials
            return setting(value)
        if self.log:
            return number(value, 3)
        return within(at, 0.05 * (self.high - self.first))


def _short(text: str) -> str:
    """The text, or both its ends if it does not fit in one line between two axes."""
    return text if len(text) <= 20 else f"{text[:12]}…{text[-7:]}"


def _twin(
    axes: list[_Axis], colour_N: np.ndarray, fig: ReportFigure, *, higher: bool, note: str
) -> Spec:
    dimensions = []
    for axis in axes:
        dimensions.append(
            {
                "label": axis.label,
                "values": rounded(axis.at, [axis.low, axis.high]),
                "range": rounded([axis.low, axis.high]),
                "tickvals": rounded(axis.places, [axis.low, axis.high]),
                "ticktext": [_short(axis.text(float(at))) for at in axis.places],
            }
        )
    width, height = fig.get_size_inches()
    return {
        "data": [
            {
                "type": "parcoords", "dimensions": dimensions,
                "line": {"color": rounded(colour_N), "colorscale": VIRIDIS, "cmin": 0, "cmax": 1,
                         "reversescale": not higher},
                "labelside": "top",
            }
        ],
        "layout": {
            "meta": meta(1, width, height, f"{note}; drag along an axis to choose lines")
        },
    }  # fmt: skip


@rc_context(STYLE)
def importances(table: pd.DataFrame, method: str) -> ReportFigure:
    """Bars of what `importance.importance` found, the most important hyperparameter on top."""
    fig, [[ax]] = make_panels(1, 1, 5.6, 1.2 + 0.34 * len(table))
    names = [select.words(name) for name in table["name"]]
    drops = table["drop"].to_numpy(float)
    y = np.arange(len(table))
    ax.barh(y, drops, color="#0072B2", height=0.6)
    ax.set_yticks(y, names)
    for at, drop in zip(y, drops, strict=True):
        ax.annotate(number(float(drop), 2), (max(drop, 0), at), xytext=(3, 0),
                    textcoords="offset points", va="center")  # fmt: skip
    ax.set_xlim(min(0.0, drops.min() * 1.2), max(drops.max(), 1e-3) * 1.2)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel("importance (drop in the forest's R² when permuted)")
    told = "; ".join(f"{n} {number(float(d), 2)}" for n, d in zip(names, drops, strict=True))
    fig.alt = f"Importance of hyperparameters: {told}. {method}"
    return attach(fig, [ax])
