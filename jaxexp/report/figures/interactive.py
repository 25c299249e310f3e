"""The interactive twin of a figure: Plotly's JSON, made from what the panels of the figure hold.

Positions, colours, dashes, scales and labels are read from matplotlib's artists, so that both show
the same. The page's script knows the page's width, so it places the panels, and it adapts colours
to a dark page. `layout.meta` says how many columns there are, and how large a panel is.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator

from jaxexp.report.figures.figure import EpochLocator, ReportFigure, Spec
from jaxexp.report.figures.packing import plain, rounded
from jaxexp.report.figures.traces import traces_of
from jaxexp.results.select import number, within

PIXELS = 100  # of the page for an inch of the figure
VIRIDIS = [[round(float(at), 2), to_hex(colormaps["viridis"](at))] for at in np.linspace(0, 1, 11)]


def attach(
    fig: ReportFigure, panels: Sequence[Axes], columns: int = 1, note: str = ""
) -> ReportFigure:
    """Give `fig` the twin of its `panels`, arranged in `columns` below a `note`."""
    width, height = fig.get_size_inches()
    rows = -(-len(panels) // columns)
    data: list[Spec] = []
    layout: Spec = {"meta": meta(columns, width, height / rows, note)}
    layout["meta"]["titles"] = [plain(ax.get_title()) for ax in panels]
    for k, ax in enumerate(panels, 1):
        for which, other in (("x", "y"), ("y", "x")):
            axis = _axis(ax, which) | {"anchor": f"{other}{_suffix(k)}"}
            layout[f"{which}axis{_suffix(k)}"] = axis | _shared(ax, which, panels, layout)
        for trace in traces_of(fig, ax):
            data.append(trace | {"xaxis": f"x{_suffix(k)}", "yaxis": f"y{_suffix(k)}"})
    named: set[str] = set()
    for trace in data:
        name = trace["legendgroup"]
        trace["showlegend"] = bool(name) and name not in named and "fill" not in trace
        if trace["showlegend"]:
            named.add(name)
    fig.interactive = {"data": data, "layout": layout}
    return fig


def meta(columns: int, width: float, height: float, note: str = "") -> Spec:
    """What the page's script needs: `width` of the figure and `height` of one row, in inches."""
    return {
        "columns": columns,
        "width": round(width * PIXELS),
        "height": round(max(height, 2.4) * PIXELS),
        "note": note,
        "titles": [],
    }


def _suffix(k: int) -> str:
    return "" if k == 1 else str(k)


def _axis(ax: Axes, which: str) -> Spec:
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    log = axis.get_scale() == "log"
    spec: Spec = {"title": {"text": plain(axis.get_label_text())}, "type": "linear"}
    spec["range"] = rounded(np.log10([low, high]) if log else [low, high])
    locator = axis.get_major_locator()
    if isinstance(locator, EpochLocator) and high - low < 8:
        spec["dtick"] = 1
    if log:
        spec |= {"type": "log", **_log_ticks(*sorted([low, high]))}
    elif not isinstance(locator, EpochLocator) and not 1e-3 < max(abs(low), abs(high)) < 1e6:
        # As `number` writes them: Plotly would write 1×10³⁰ instead of 1e30.
        ends = sorted([low, high])
        shown = [float(at) for at in axis.get_majorticklocs() if ends[0] <= at <= ends[1]]
        spec |= {"tickmode": "array", "tickvals": rounded(shown, [low, high])}
        apart = shown[1] - shown[0] if len(shown) > 1 else high - low
        spec["ticktext"] = [within(at, abs(apart)) for at in shown]
    if isinstance(locator, FixedLocator):
        places = axis.get_majorticklocs()
        texts = [tick.get_text() for tick in axis.get_majorticklabels()]
        texts = texts if any(texts) else [number(float(at)) for at in places]
        spec |= {"tickmode": "array", "tickvals": rounded(places, [low, high])}
        spec["ticktext"] = ["<br>".join(textwrap.wrap(plain(t), 40)) or t for t in texts]
    return spec


def _shared(ax: Axes, which: str, panels: Sequence[Axes], layout: Spec) -> Spec:
    """What an axis takes from the earlier panel it is linked to: ticks, and a y axis's title.

    Matplotlib writes these once, but on a narrow page the panels are stacked.
    """
    joined = ax.get_shared_x_axes() if which == "x" else ax.get_shared_y_axes()
    k = next(k for k, panel in enumerate(panels, 1) if panel is ax or joined.joined(panel, ax))
    if panels[k - 1] is ax:
        return {}
    earlier = layout[f"{which}axis{_suffix(k)}"]
    kept = {"tickmode", "tickvals", "ticktext"} | ({"title"} if which == "y" else set())
    return {"matches": f"{which}{_suffix(k)}"} | {n: v for n, v in earlier.items() if n in kept}


def _log_ticks(low: float, high: float) -> Spec:
    """Ticks at 1, 2 and 5 of each decade, or only 1 if many: Plotly would write a bare "2"."""
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    many = np.log10(high / low)
    digits = (1,) if many > 2.5 else (1, 2, 5)
    every = max(1, int(many // 8))
    places = [m * 10.0**d for d in decades[::every] for m in digits]
    return {
        "tickmode": "array",
        "tickvals": rounded(places),
        "ticktext": [number(float(f"{p:.3g}")) for p in places],
    }


def heat_spec(
    mean: np.ndarray, names: Mapping[str, Sequence[str]], hovers: list[list[str]],
    written: Sequence[tuple[int, int, str, bool]], frame: tuple[int, int] | None, *, higher: bool,
    log: bool, labels: Mapping[str, str], size: tuple[float, float], note: str = "",
) -> Spec:  # fmt: skip
    """A map of one metric over two hyperparameters.

    `names` holds the values along `x` and `y`, and `labels` the labels of `x`, `y` and the colour
    `bar`. `written` holds rows, columns, texts, and whether the cell is dark; `frame` is the best
    cell.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.log10(mean) if log else mean
    known = z[np.isfinite(z)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    ticks = np.linspace(low, high, 5)
    shown = 10**ticks if log else ticks
    cells: Spec = {
        "type": "heatmap", "z": [rounded(row, known) for row in z],
        "hovertext": [[plain(own) for own in row] for row in hovers],
        "hovertemplate": "%{hovertext}<extra></extra>", "legendgroup": "",
        "colorscale": VIRIDIS, "reversescale": not higher, "zmin": low, "zmax": high,
        "xgap": 1, "ygap": 1, "hoverongaps": True,
        "colorbar": {"title": {"text": plain(labels["bar"]), "side": "right"}, "thickness": 14,
                     "outlinewidth": 0, "tickmode": "array", "tickvals": rounded(ticks),
                     "ticktext": [number(float(v), 3) if log else within(v, ticks[1] - ticks[0])
                                  for v in shown]},
    }  # fmt: skip
    texts: Spec = {
        "type": "scatter", "mode": "text", "x": [column for _, column, _, _ in written],
        "y": [row for row, _, _, _ in written], "text": [plain(t) for _, _, t, _ in written],
        "textfont": {"size": 11, "color": ["#ffffff" if d else "#000000" for *_, d in written]},
        "hoverinfo": "skip", "legendgroup": "", "showlegend": False, "meta": {"fixed": True},
    }  # fmt: skip
    layout: Spec = {"meta": meta(1, *size, note), "plot_bgcolor": "#e5e5e5"}
    for which in ("x", "y"):
        layout[f"{which}axis"] = {
            "title": {"text": plain(labels[which])}, "tickmode": "array", "showgrid": False,
            "tickvals": list(range(len(names[which]))), "ticktext": list(map(plain, names[which])),
            "range": [-0.5, len(names[which]) - 0.5],
        }  # fmt: skip
    if frame is not None:
        row, column = frame
        layout["shapes"] = [
            {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5,
             "y1": row + 0.5, "line": {"color": "#D55E00", "width": 3}}
        ]  # fmt: skip
    return {"data": [cells, texts], "layout": layout}
