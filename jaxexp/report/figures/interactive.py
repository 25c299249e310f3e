"""The interactive twin of a figure: Plotly's JSON, made of what the panels of the figure hold.

Positions, colours, dashes, scales and labels are read from matplotlib's artists, so that the two
show the same. Where the panels stand, and colours on a dark page, is left to the page's script: it
knows the width. `layout.meta` says how many columns there are, and how large a panel is.
"""

import base64
import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike

from jaxexp.results.select import number

MOST = 2_000  # points of a curve
CLOUD = 20_000  # points of all the curves in the background together
NO_HEIGHT = "no height"  # the id of lines whose height is no value
PIXELS = 100  # of the page, an inch
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "X": "x",
           "D": "diamond", "|": "line-ns-open", "_": "line-ew-open", ".": "circle"}  # fmt: skip
VIRIDIS = [[round(float(at), 2), to_hex(colormaps["viridis"](at))] for at in np.linspace(0, 1, 11)]

Spec: TypeAlias = dict[str, Any]  # a part of Plotly's JSON
Keyword: TypeAlias = Any  # of matplotlib's functions, which have too many to list
Style: TypeAlias = dict[str, Keyword]


class EpochLocator(MaxNLocator):
    """Ticks at whole epochs."""

    def __init__(self) -> None:
        """At most six of them."""
        super().__init__(integer=True, nbins=6)


class ReportFigure(Figure):
    """A figure with words for those who cannot see it, and an interactive twin.

    Attributes:
        alt: what it shows, in words.
        interactive: the twin as Plotly's JSON, `data` and `layout`; None where there is none.
        hover: for lines, texts to show at their points.
        clouds: for lines that hold several curves, one after another, the name of each curve.
    """

    def __init__(self, *args: Keyword, **kwargs: Keyword) -> None:
        """As matplotlib's."""
        super().__init__(*args, **kwargs)
        self.alt = ""
        self.interactive: Spec | None = None
        self.hover: dict[Line2D, Sequence[str]] = {}
        self.clouds: dict[Line2D, Sequence[str]] = {}


def attach(
    fig: ReportFigure, panels: Sequence[Axes], columns: int = 1, note: str = ""
) -> ReportFigure:
    """Give `fig` the twin of its `panels`, which stand in so many columns; `note` heads them."""
    width, height = fig.get_size_inches()
    rows = -(-len(panels) // columns)
    data: list[Spec] = []
    layout: Spec = {"meta": meta(columns, width, height / rows, note)}
    layout["meta"]["titles"] = [_plain(ax.get_title()) for ax in panels]
    for k, ax in enumerate(panels, 1):
        for which, other in (("x", "y"), ("y", "x")):
            axis = _axis(ax, which) | {"anchor": f"{other}{_suffix(k)}"}
            layout[f"{which}axis{_suffix(k)}"] = axis | _shared(ax, which, panels, layout)
        for trace in _traces(fig, ax):
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
    """What the page's script has to know: sizes are in inches, of all and of one row."""
    return {
        "columns": columns,
        "width": round(width * PIXELS),
        "height": round(max(height, 2.4) * PIXELS),
        "note": note,
        "titles": [],
    }


def _suffix(k: int) -> str:
    return "" if k == 1 else str(k)


def _plain(text: str) -> str:
    """Text for Plotly, which takes some marks for HTML."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def rounded(values: ArrayLike) -> list[float | None]:
    """Five significant digits, which is more than a screen shows; None for what is no number."""
    flat = np.asarray(values, dtype=float).ravel()
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in flat]


def packed(values: np.ndarray) -> Spec:
    """Small whole numbers in Plotly's binary form."""
    small = values.astype("<i2" if values.size and values.max() > 127 else "i1")
    kind = f"i{small.dtype.itemsize}"
    data = base64.b64encode(np.ascontiguousarray(small).tobytes()).decode()
    return {"dtype": kind, "bdata": data, "shape": ", ".join(map(str, small.shape))}


def thinned(y: np.ndarray, most: int = MOST) -> np.ndarray:
    """The places of at most `most` of `y`: the least and the largest of each stretch."""
    if y.size <= most:
        return np.arange(y.size)
    parts = np.array_split(np.arange(y.size), most // 2)
    low, high = np.where(np.isfinite(y), y, np.inf), np.where(np.isfinite(y), y, -np.inf)
    ends = [[part[low[part].argmin()], part[high[part].argmax()]] for part in parts]
    return np.unique(ends)


def _axis(ax: Axes, which: str) -> Spec:
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    log = axis.get_scale() == "log"
    spec: Spec = {"title": {"text": _plain(axis.get_label_text())}, "type": "linear"}
    spec["range"] = rounded(np.log10([low, high]) if log else [low, high])
    locator = axis.get_major_locator()
    if isinstance(locator, EpochLocator) and high - low < 8:
        spec["dtick"] = 1
    if log:
        spec |= {"type": "log", **_log_ticks(*sorted([low, high]))}
    elif not isinstance(locator, EpochLocator) and not 1e-3 < max(abs(low), abs(high)) < 1e6:
        # As `number` has them: Plotly would write 1×10³⁰ where all else says 1e30.
        ends = sorted([low, high])
        shown = [float(at) for at in axis.get_majorticklocs() if ends[0] <= at <= ends[1]]
        spec |= {"tickmode": "array", "tickvals": rounded(shown)}
        spec["ticktext"] = [number(float(f"{at:.3g}")) for at in shown]
    if isinstance(locator, FixedLocator):
        places = axis.get_majorticklocs()
        texts = [tick.get_text() for tick in axis.get_majorticklabels()]
        texts = texts if any(texts) else [number(float(at)) for at in places]
        spec |= {"tickmode": "array", "tickvals": rounded(places)}
        spec["ticktext"] = ["<br>".join(textwrap.wrap(_plain(t), 40)) or t for t in texts]
    return spec


def _shared(ax: Axes, which: str, panels: Sequence[Axes], layout: Spec) -> Spec:
    """What an axis takes from an earlier panel's that it moves with: ticks, and a height's title.

    Matplotlib writes them once, but on a narrow page the panels stand below one another.
    """
    joined = ax.get_shared_x_axes() if which == "x" else ax.get_shared_y_axes()
    k = next(k for k, panel in enumerate(panels, 1) if panel is ax or joined.joined(panel, ax))
    if panels[k - 1] is ax:
        return {}
    earlier = layout[f"{which}axis{_suffix(k)}"]
    kept = {"tickmode", "tickvals", "ticktext"} | ({"title"} if which == "y" else set())
    return {"matches": f"{which}{_suffix(k)}"} | {n: v for n, v in earlier.items() if n in kept}


def _log_ticks(low: float, high: float) -> Spec:
    """1, 2 and 5 of each decade, or 1 alone of many: Plotly would write a bare "2"."""
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


def _traces(fig: ReportFigure, ax: Axes) -> list[Spec]:
    """Bands first, which stand behind; then bars, and curves and points."""
    errors = {c.lines[0]: c for c in ax.containers if isinstance(c, ErrorbarContainer)}
    made = [_band(band) for band in ax.collections if isinstance(band, PolyCollection)]
    made += [_bars(ax, c) for c in ax.containers if isinstance(c, BarContainer)]
    for line in sorted(ax.lines, key=lambda line: line.get_zorder()):
        named = errors.get(line, line)  # error bars bear the label of their curve
        name = str(named.get_label())
        name = "" if name.startswith("_") else name.replace("\n", " ")
        trace = _cloud(fig, ax, line) if line in fig.clouds else _line(fig, ax, line, name)
        if trace and line in errors:
            trace |= _spread(errors[line])
        made += [trace] if trace else []
    if any(isinstance(container, BarContainer) for container in ax.containers):
        made += _written(ax)
    return made


def _written(ax: Axes) -> list[Spec]:
    """Texts beside bars."""
    found = [
        (text.xy if isinstance(text, Annotation) else text.get_position(), text.get_text())
        for text in ax.texts
        if text.get_text()
    ]
    if not found:
        return []
    return [
        {
            "type": "scatter", "mode": "text", "x": rounded([float(x) for (x, _), _ in found]),
            "y": rounded([float(y) for (_, y), _ in found]),
            "text": [f" {_plain(text)}" for _, text in found], "textposition": "middle right",
            "hoverinfo": "skip", "cliponaxis": False, "legendgroup": "", "name": "",
        }
    ]  # fmt: skip


def _band(band: PolyCollection) -> Spec:
    red, green, blue, alpha = np.asarray(band.get_facecolor(), float)[0]
    colour = to_hex((red, green, blue))
    x: list[float | None] = []
    y: list[float | None] = []
    for path in band.get_paths():
        vertices = np.asarray(path.vertices)
        x += [*rounded(vertices[:, 0]), None]
        y += [*rounded(vertices[:, 1]), None]
    return {
        "type": "scatter", "x": x, "y": y, "mode": "lines", "fill": "toself",
        "fillcolor": _rgba(colour, float(alpha)), "line": {"width": 0, "color": colour},
        "hoverinfo": "skip", "legendgroup": band.get_gid() or "", "name": band.get_gid() or "",
    }  # fmt: skip


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue, _ = (round(255 * part) for part in to_rgba(colour))
    return f"rgba({red},{green},{blue},{alpha:.2g})"


def _bars(ax: Axes, bars: BarContainer) -> Spec:
    patches = list(bars.patches)
    sideways = bars.orientation == "horizontal"
    size = [p.get_width() if sideways else p.get_height() for p in patches]
    middle = [
        p.get_y() + p.get_height() / 2 if sideways else p.get_x() + p.get_width() / 2
        for p in patches
    ]
    axis = ax.get_yticklabels() if sideways else ax.get_xticklabels()
    names = [_plain(text.get_text()).replace("<br>", " ") for text in axis]
    along, across = ("x", "y") if sideways else ("y", "x")
    trace: Spec = {
        "type": "bar", "orientation": "h" if sideways else "v",
        along: rounded(size), across: rounded(middle),
        "width": round(float(patches[0].get_height() if sideways else patches[0].get_width()), 3)
        if patches else 0.6,
        "marker": {"color": [to_hex(p.get_facecolor()) for p in patches]},
        "text": names if len(names) == len(patches) else [""] * len(patches),
        "textposition": "none", "hovertemplate": f"%{{text}}<br>%{{{along}}}<extra></extra>",
        "legendgroup": "", "name": "",
    }  # fmt: skip
    if bars.errorbar is not None:
        trace |= _spread(bars.errorbar)
    return trace


def _spread(container: ErrorbarContainer) -> Spec:
    """The half lengths of error bars."""
    made: Spec = {}
    bars = list(container.lines[2])
    kinds = [kind for kind, has in (("x", container.has_xerr), ("y", container.has_yerr)) if has]
    for kind, own in zip(kinds, bars, strict=True):
        assert isinstance(own, LineCollection)
        at = 0 if kind == "x" else 1
        ends = [np.asarray(segment) for segment in own.get_segments()]  # empty where NaN
        half = [float(np.ptp(end[:, at])) / 2 if len(end) == 2 else 0.0 for end in ends]
        if not half:
            continue
        colour = to_hex(np.asarray(own.get_color(), float)[0])
        made[f"error_{kind}"] = {"type": "data", "array": rounded(half), "thickness": 1.5,
                                 "width": 3, "color": colour}  # fmt: skip
    return made


def _line(fig: ReportFigure, ax: Axes, line: Line2D, name: str) -> Spec | None:
    x, y = _places(ax, line)
    if not x.size and not name:
        return None
    if not x.size:  # there for the legend alone
        x = y = np.array([np.nan])
    kept = thinned(y)
    dash, marker = str(line.get_linestyle()), str(line.get_marker())
    joined, marked = dash not in ("None", "none", ""), marker in MARKERS
    colour = to_hex(line.get_color())
    every = line.get_markevery()
    shown = np.zeros(x.size, bool)
    shown[[at for at in every if at < x.size] if isinstance(every, list) else slice(None)] = marked
    trace: Spec = {
        "type": "scatter", "x": rounded(x[kept]), "y": rounded(y[kept]),
        "mode": "lines" * joined + "+" * (joined and marked) + "markers" * marked or "none",
        "name": _plain(name), "legendgroup": name,
        "opacity": line.get_alpha() or 1, "hovertemplate": _hover(ax, _plain(name)),
    }  # fmt: skip
    if joined:
        kind = DASHES.get(dash, "dash")
        kind = "dash" if line.is_dashed() and kind == "solid" else kind
        width = round(line.get_linewidth() * 1.2, 2)
        trace["line"] = {"color": colour, "width": width, "dash": kind}
    if marked:
        trace["marker"] = _marker(line, MARKERS[marker], shown[kept])
    if line.get_gid() == NO_HEIGHT:
        trace["hovertemplate"] = trace["hovertemplate"].rpartition("<br>")[0] + "<extra></extra>"
    if line in fig.hover:
        trace["text"] = [_plain(fig.hover[line][i]).replace("<br>", " ") for i in kept]
        trace["hovertemplate"] = _hover(ax, "%{text}")
    return trace


def _marker(line: Line2D, symbol: str, shown: np.ndarray) -> Spec:
    face, edge = line.get_markerfacecolor(), line.get_markeredgecolor()
    size = round(float(line.get_markersize()) * (0.7 if line.get_marker() == "." else 1.25), 1)
    hollow = isinstance(face, str) and face == "none"
    made: Spec = {
        "symbol": f"{symbol}-open" if hollow and not symbol.endswith("open") else symbol,
        "color": to_hex(edge if hollow or symbol.endswith("open") else face),
        "size": size if shown.all() else [size if own else 0 for own in shown.tolist()],
    }
    if not hollow and not symbol.endswith("open"):
        made["line"] = {"color": to_hex(edge), "width": 0.5}
    return made


def _hover(ax: Axes, name: str) -> str:
    """A template: the name, then both numbers, by what their axes are called."""
    x, y = (_plain(text).split("<br>")[0] for text in (ax.get_xlabel(), ax.get_ylabel()))
    fixed = isinstance(ax.xaxis.get_major_locator(), FixedLocator)
    head = f"<b>{name}</b><br>" if name else ""
    along = "" if fixed and not ax.xaxis.get_majorticklocs().size else f"{x or 'x'} %{{x}}<br>"
    return f"{head}{along}{y or 'value'} %{{y}}<extra></extra>"


def _places(ax: Axes, line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    """The line in the units of the axes, also where it is drawn in shares of their length."""
    xy = [np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)]
    in_units = line.get_transform().contains_branch_seperately(ax.transData)
    for i, (own, axis, limits) in enumerate(
        zip(in_units, (ax.xaxis, ax.yaxis), (ax.get_xlim(), ax.get_ylim()), strict=True)
    ):
        if not own:
            low, high = np.log10(limits) if axis.get_scale() == "log" else limits
            at = low + xy[i] * (high - low)
            xy[i] = 10**at if axis.get_scale() == "log" else at
    return xy[0], xy[1]


def _cloud(fig: ReportFigure, ax: Axes, line: Line2D) -> Spec:
    """Many curves as one trace; the page's script writes them out, from `meta`."""
    names = fig.clouds[line]
    x_TxE = np.asarray(line.get_xdata(), float).reshape(len(names), -1)[:, :-1]
    y_TxE = np.asarray(line.get_ydata(), float).reshape(len(names), -1)[:, :-1]
    epochs = y_TxE.shape[1]
    most = max(8, CLOUD // len(names))
    kept = np.arange(epochs)
    if epochs > most:  # more of the first, where curves bend
        kept = np.unique(np.geomspace(1, epochs, most).astype(int)) - 1
    points = line.get_marker() == "."
    colour = to_hex(line.get_color())
    name = fig.hover.get(line, [""])[0]
    return {
        "type": "scatter", "mode": "markers" if points else "lines",
        "meta": {
            "names": [_plain(own) for own in names],
            "x": rounded(x_TxE[0, kept]),
            "y": [rounded(y_E) for y_E in y_TxE[:, kept]],
        },
        "line": {"color": colour, "width": 1 if len(names) < 100 else 0.6},
        "marker": {"color": colour, "size": 5},
        "name": _plain(name), "legendgroup": name, "hovertemplate": _hover(ax, "%{text}"),
    }  # fmt: skip


def heat_spec(
    mean: np.ndarray, names: Mapping[str, Sequence[str]], hovers: list[list[str]],
    written: Sequence[tuple[int, int, str, bool]], frame: tuple[int, int] | None, *, higher: bool,
    log: bool, labels: Mapping[str, str], size: tuple[float, float], note: str = "",
) -> Spec:  # fmt: skip
    """A map of one metric over two hyperparameters.

    `names` are the values along `x` and `y`, `labels` what these and the `bar` are called,
    `written` the row and column of a text and whether its cell is dark, `frame` the best cell.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.log10(mean) if log else mean
    known = z[np.isfinite(z)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    ticks = np.linspace(low, high, 5)
    shown = 10**ticks if log else ticks
    cells: Spec = {
        "type": "heatmap", "z": [rounded(row) for row in z],
        "hovertext": [[_plain(own) for own in row] for row in hovers],
        "hovertemplate": "%{hovertext}<extra></extra>", "legendgroup": "",
        "colorscale": VIRIDIS, "reversescale": not higher, "zmin": low, "zmax": high,
        "xgap": 1, "ygap": 1, "hoverongaps": True,
        "colorbar": {"title": {"text": _plain(labels["bar"]), "side": "right"}, "thickness": 14,
                     "outlinewidth": 0, "tickmode": "array", "tickvals": rounded(ticks),
                     "ticktext": [number(float(v), 3) for v in shown]},
    }  # fmt: skip
    texts: Spec = {
        "type": "scatter", "mode": "text", "x": [column for _, column, _, _ in written],
        "y": [row for row, _, _, _ in written], "text": [_plain(t) for _, _, t, _ in written],
        "textfont": {"size": 11, "color": ["#ffffff" if d else "#000000" for *_, d in written]},
        "hoverinfo": "skip", "legendgroup": "", "showlegend": False, "meta": {"fixed": True},
    }  # fmt: skip
    layout: Spec = {"meta": meta(1, *size, note), "plot_bgcolor": "#e5e5e5"}
    for which in ("x", "y"):
        layout[f"{which}axis"] = {
            "title": {"text": _plain(labels[which])}, "tickmode": "array", "showgrid": False,
            "tickvals": list(range(len(names[which]))), "ticktext": list(map(_plain, names[which])),
            "range": [-0.5, len(names[which]) - 0.5],
        }  # fmt: skip
    if frame is not None:
        row, column = frame
        layout["shapes"] = [
            {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5,
             "y1": row + 0.5, "line": {"color": "#D55E00", "width": 3}}
        ]  # fmt: skip
    return {"data": [cells, texts], "layout": layout}
