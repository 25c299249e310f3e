"""What matplotlib has drawn on axes, as Plotly traces."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator

from jaxexp.report.figures.figure import ReportFigure, Spec
from jaxexp.report.figures.packing import plain, rounded, thinned

CLOUD = 20_000  # points of all background curves together
NO_HEIGHT = "no height"  # the id of lines whose height means nothing
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "X": "x",
           "D": "diamond", "|": "line-ns-open", "_": "line-ew-open", ".": "circle"}  # fmt: skip


def traces_of(fig: ReportFigure, ax: Axes) -> list[Spec]:
    """The traces of a panel: bands first, behind the others; then bars, curves and points."""
    errors = {c.lines[0]: c for c in ax.containers if isinstance(c, ErrorbarContainer)}
    made = [_band(ax, band) for band in ax.collections if isinstance(band, PolyCollection)]
    made += [_bars(ax, c) for c in ax.containers if isinstance(c, BarContainer)]
    for line in sorted(ax.lines, key=lambda line: line.get_zorder()):
        named = errors.get(line, line)  # error bars have the label of their curve
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
            "type": "scatter", "mode": "text",
            "x": rounded([float(x) for (x, _), _ in found], ax.get_xlim()),
            "y": rounded([float(y) for (_, y), _ in found], ax.get_ylim()),
            "text": [f" {plain(text)}" for _, text in found], "textposition": "middle right",
            "hoverinfo": "skip", "cliponaxis": False, "legendgroup": "", "name": "",
        }
    ]  # fmt: skip


def _band(ax: Axes, band: PolyCollection) -> Spec:
    red, green, blue, alpha = np.asarray(band.get_facecolor(), float)[0]
    colour = to_hex((red, green, blue))
    x: list[float | None] = []
    y: list[float | None] = []
    for path in band.get_paths():
        vertices = np.asarray(path.vertices)
        x += [*rounded(vertices[:, 0], ax.get_xlim()), None]
        y += [*rounded(vertices[:, 1], ax.get_ylim()), None]
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
    names = [plain(text.get_text()).replace("<br>", " ") for text in axis]
    along, across = ("x", "y") if sideways else ("y", "x")
    limits = {"x": ax.get_xlim(), "y": ax.get_ylim()}
    trace: Spec = {
        "type": "bar", "orientation": "h" if sideways else "v",
        along: rounded(size, limits[along]), across: rounded(middle, limits[across]),
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
    if not x.size:  # only there for the legend
        x = y = np.array([np.nan])
    kept = thinned(y)
    dash, marker = str(line.get_linestyle()), str(line.get_marker())
    joined, marked = dash not in ("None", "none", ""), marker in MARKERS
    colour = to_hex(line.get_color())
    every = line.get_markevery()
    shown = np.zeros(x.size, bool)
    shown[[at for at in every if at < x.size] if isinstance(every, list) else slice(None)] = marked
    trace: Spec = {
        "type": "scatter", "x": rounded(x[kept], ax.get_xlim()),
        "y": rounded(y[kept], ax.get_ylim()),
        "mode": "lines" * joined + "+" * (joined and marked) + "markers" * marked or "none",
        "name": plain(name), "legendgroup": name,
        "opacity": line.get_alpha() or 1, "hovertemplate": _hover(ax, plain(name)),
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
        trace["text"] = [plain(fig.hover[line][i]).replace("<br>", " ") for i in kept]
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
    """A hover template: the name, then both numbers with the labels of their axes."""
    x, y = (plain(text).split("<br>")[0] for text in (ax.get_xlabel(), ax.get_ylabel()))
    fixed = isinstance(ax.xaxis.get_major_locator(), FixedLocator)
    head = f"<b>{name}</b><br>" if name else ""
    along = "" if fixed and not ax.xaxis.get_majorticklocs().size else f"{x or 'x'} %{{x}}<br>"
    return f"{head}{along}{y or 'value'} %{{y}}<extra></extra>"


def _places(ax: Axes, line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    """The line in the units of the axes, even if it is drawn in fractions of their length."""
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
    """Many curves as one trace, which the page's script unpacks from `meta`."""
    names = fig.clouds[line]
    x_TxE = np.asarray(line.get_xdata(), float).reshape(len(names), -1)[:, :-1]
    y_TxE = np.asarray(line.get_ydata(), float).reshape(len(names), -1)[:, :-1]
    epochs = y_TxE.shape[1]
    most = max(8, CLOUD // len(names))
    kept = np.arange(epochs)
    if epochs > most:  # more of the early ones, where curves bend
        kept = np.unique(np.geomspace(1, epochs, most).astype(int)) - 1
    points = line.get_marker() == "."
    colour = to_hex(line.get_color())
    name = fig.hover.get(line, [""])[0]
    return {
        "type": "scatter", "mode": "markers" if points else "lines",
        "meta": {
            "names": [plain(own) for own in names],
            "x": rounded(x_TxE[0, kept], ax.get_xlim()),
            "y": [rounded(y_E, ax.get_ylim()) for y_E in y_TxE[:, kept]],
        },
        "line": {"color": colour, "width": 1 if len(names) < 100 else 0.6},
        "marker": {"color": colour, "size": 5},
        "name": plain(name), "legendgroup": name, "hovertemplate": _hover(ax, "%{text}"),
    }  # fmt: skip
