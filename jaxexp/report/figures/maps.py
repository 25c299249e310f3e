"""Decision regions on a map, in colours that tell neighbouring countries apart."""

import json

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.transforms import Bbox

from jaxexp.report.figures.figure import ReportFigure, Spec
from jaxexp.report.figures.interactive import meta
from jaxexp.report.figures.packing import MOST, packed, rounded
from jaxexp.report.figures.style import (
    STYLE,
    best_of,
    drawing,
    grid_shape,
    headed,
    make_panels,
    say_which,
    set_titles,
)
from jaxexp.results import seeds, select
from jaxexp.results.select import count, default_split, number

# Colours of the map: fewer than there are countries, but any two are easily distinguished.
MAP_COLOURS = (
    "#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#00b8d9", "#f2c500", "#f032e6",
    "#9a6324", "#7cb800", "#800000", "#469990", "#f48fb1", "#808000", "#8c8c8c",
)  # fmt: skip


FAR = 1.5  # degrees of latitude; further than this from any test place, a map is pale


@rc_context(STYLE)
def regions(ds: xr.Dataset, colours: np.ndarray | None = None) -> ReportFigure:
    """A map (in degrees) of predicted classes and of the test places, one panel per trial.

    Areas and places have the colour of their class. Areas are lighter, and very pale if they are
    more than 1.5° from any test place, as nothing is known there. Places in an area of another
    class (by the nearest cell of the grid) are outlined. Of more than four trials, the best four by
    loss are shown; if the seed is an axis, a setting is shown by the seed with the median loss.
    `colours`, (classes, 3), defaults to `class_colours`, which is the same on every map that shows
    the same test places.
    """
    colours = class_colours(ds) if colours is None else colours
    several = seeds.several(ds)
    repeated = select.replicate(ds)
    ds = seeds.typical(ds) if several else ds
    trials, note = best_of(ds, 4, "loss", default_split(ds))
    note = headed(
        note, f"of each setting the {repeated} with the median loss" if several else "",
        f"pale: no test place within {number(FAR)}°",
    )  # fmt: skip
    middle = np.deg2rad(float(ds["latitude"].mean()))
    aspect = 1 / np.cos(middle)
    width = 6.6 if len(trials) == 1 else 5.2
    tall = float(np.ptp(ds["latitude"].values) / np.ptp(ds["longitude"].values))
    height = (width - 0.6) * aspect * tall + 0.7  # the rest is for the axes
    rows, cols = grid_shape(len(trials), 2)
    fig, panels = make_panels(rows, cols, width, height, count=len(trials))
    titles, layers = [], []
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        ax.set_aspect(aspect)
        wrong, layer = _map_panel(ax, point, colours)
        layers.append(layer)
        of = f"{number(wrong)} of {number(ds.sizes['point'])} test places"
        titles.append(f"{name}: {of} outlined as wrong")
    set_titles(panels, titles, width)
    say_which(fig, note)
    _write_names(fig, panels.flat[: len(trials)], ds)
    fig.alt = f"Map of predicted classes and of {count(ds.sizes['point'], 'test place')}. " + (
        f"{'; '.join(titles)}."
    )
    fig.interactive = _twin(fig, panels.flat[: len(trials)], layers, titles, cols, note)
    fig.interactive["layout"]["meta"]["aspect"] = round(aspect * tall, 4)
    return fig


def _twin(
    fig: Figure, panels: np.ndarray, layers: list[list[Spec]], titles: list[str], cols: int,
    note: str,
) -> Spec:  # fmt: skip
    """The interactive maps, which show the class and the place under the pointer."""
    width, height = fig.get_size_inches()
    known = meta(cols, width, height / -(-len(layers) // cols), note)
    layout: Spec = {"meta": known | {"titles": titles}}
    data = []
    for k, (ax, own) in enumerate(zip(panels, layers, strict=True), 1):
        suffix = "" if k == 1 else str(k)
        for axis, limits in (("x", ax.get_xlim()), ("y", ax.get_ylim())):
            name = "longitude (°E)" if axis == "x" else "latitude (°N)"
            layout[f"{axis}axis{suffix}"] = {
                "range": rounded(limits), "title": {"text": name}, "showgrid": False,
                "anchor": f"{'y' if axis == 'x' else 'x'}{suffix}",
            }  # fmt: skip
        names = [(text.get_position(), text.get_text()) for text in ax.texts]
        labels: Spec = {
            "type": "scatter", "mode": "text", "text": [name for _, name in names],
            "x": rounded([x for (x, _), _ in names], ax.get_xlim()),
            "y": rounded([y for (_, y), _ in names], ax.get_ylim()),
            "textfont": {"size": 11, "shadow": "auto", "weight": 700}, "hoverinfo": "skip",
            "meta": {"declutter": True}, "legendgroup": "", "showlegend": False,
        }  # fmt: skip
        data += [trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"} for trace in [*own, labels]]
    for trace in data[len(layers[0]) + 1 :]:
        trace["showlegend"] = False
    return {"data": data, "layout": layout}


def _far(ds: xr.Dataset, longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Which cells of a grid, (latitudes, longitudes), have no test place within `FAR`.

    Distances are measured to the centre of the cell that a place lies in.
    """
    if min(len(longitude), len(latitude)) < 2:
        return np.zeros((len(latitude), len(longitude)), bool)
    step_x, step_y = (float(np.diff(own).mean()) for own in (longitude, latitude))
    shrink = np.cos(np.deg2rad(latitude.mean()))
    column = np.round((ds["test_longitude"].values - longitude[0]) / step_x).astype(int)
    row = np.round((ds["test_latitude"].values - latitude[0]) / step_y).astype(int)
    reach_y, reach_x = int(FAR / step_y), int(FAR / (step_x * shrink))
    shape = (len(latitude) + 2 * reach_y, len(longitude) + 2 * reach_x)
    inside = (row >= 0) & (row < len(latitude)) & (column >= 0) & (column < len(longitude))
    there = np.zeros(shape, bool)
    there[row[inside] + reach_y, column[inside] + reach_x] = True
    near = np.zeros((len(latitude), len(longitude)), bool)
    for dy in range(-reach_y, reach_y + 1):
        for dx in range(-reach_x, reach_x + 1):
            if (dy * step_y) ** 2 + (dx * step_x * shrink) ** 2 <= FAR**2:
                y, x = reach_y + dy, reach_x + dx
                near |= there[y : y + len(latitude), x : x + len(longitude)]
    return ~near


def _map_panel(ax: Axes, point: xr.Dataset, colours: np.ndarray) -> tuple[int, list[Spec]]:
    """Draw the areas, borders and places of one trial.

    Returns how many places are wrong, and the same areas and places as Plotly traces.
    """
    grid = point["region"].transpose("latitude", "longitude").sortby(["latitude", "longitude"])
    longitude, latitude = grid["longitude"].values, grid["latitude"].values
    x, y = _edges(longitude), _edges(latitude)
    far = _far(point, longitude, latitude)
    strength = np.where(far, 0.1, 0.5)[..., None]
    ax.pcolormesh(x, y, 1 - strength * (1 - colours[grid.values]), rasterized=True)
    ax.add_collection(LineCollection(list(_borders(grid.values, x, y)), colors="white", lw=0.6))
    places = {"longitude": point["test_longitude"], "latitude": point["test_latitude"]}
    label = point["test_label"].values
    wrong = (grid.sel(places, method="nearest") != point["test_label"]).values
    x, y = point["test_longitude"].values, point["test_latitude"].values
    ax.scatter(x[~wrong], y[~wrong], s=1.2, c=0.85 * colours[label[~wrong]], lw=0)
    ax.scatter(x[wrong], y[wrong], s=7, c=colours[label[wrong]], lw=0.4, edgecolors="black")
    ax.grid(False)
    ax.set_xlabel("longitude (°E)")
    ax.set_ylabel("latitude (°N)")
    names = [str(name) for name in json.loads(point.attrs["classes"])]
    areas = _areas(grid.values, far, longitude, latitude, colours, names)
    predicted = grid.sel(places, method="nearest").values
    shown = np.zeros(wrong.size, bool)  # the same share of right and wrong
    shown[np.linspace(0, wrong.size - 1, min(wrong.size, MOST)).astype(int)] = True
    dots = [
        _dots(point, np.flatnonzero(own & shown), predicted, colours, names, wrong=outlined)
        for own, outlined in ((~wrong, False), (wrong, True))
    ]
    return int(wrong.sum()), [areas, *dots]


def _areas(
    grid: np.ndarray, far: np.ndarray, longitude: np.ndarray, latitude: np.ndarray,
    colours: np.ndarray, names: list[str],
) -> Spec:  # fmt: skip
    """The classes of the cells; cells far from all places have a paler colour of their own."""
    k = len(names)
    scale = []
    for i in range(2 * k):
        red, green, blue = (round(255 * float(part)) for part in colours[i % k])
        colour = f"rgba({red},{green},{blue},{0.1 if i >= k else 0.5})"
        scale += [[i / (2 * k), colour], [(i + 1) / (2 * k), colour]]
    return {
        "type": "heatmap", "z": packed(grid + k * far), "x": rounded(longitude),
        "y": rounded(latitude), "colorscale": scale, "zmin": -0.5, "zmax": 2 * k - 0.5,
        "showscale": False,
        "meta": {"classes": [*names, *(f"{name} (no places near)" for name in names)]},
        "hovertemplate": "predicted: <b>%{text}</b><br>%{y}° N, %{x}° E<extra></extra>",
        "legendgroup": "", "showlegend": False,
    }  # fmt: skip


def _dots(
    point: xr.Dataset, chosen: np.ndarray, predicted: np.ndarray, colours: np.ndarray,
    names: list[str], *, wrong: bool,
) -> Spec:  # fmt: skip
    """The `chosen` test places with their class, and with the predicted one if `wrong`."""
    label = point["test_label"].values[chosen]
    texts = [names[k] for k in label]
    if wrong:
        texts = [
            f"{text}, predicted {names[k]}"
            for text, k in zip(texts, predicted[chosen], strict=True)
        ]
    group = "wrong" if wrong else "right"
    thinned = point.sizes["point"] > MOST
    name = f"test places, {group}" + (f" (a sample of {number(MOST)} in all)" if thinned else "")
    shade = colours[label] * (1 if wrong else 0.85)
    trace: Spec = {
        "type": "scatter", "mode": "markers", "name": name, "legendgroup": group,
        "x": rounded(point["test_longitude"].values[chosen]),
        "y": rounded(point["test_latitude"].values[chosen]), "text": texts,
        "hovertemplate": "<b>%{text}</b><br>%{y}° N, %{x}° E<extra></extra>", "showlegend": True,
        "marker": {"size": 5 if wrong else 2.5, "color": [to_hex(rgb) for rgb in shade]},
    }  # fmt: skip
    if wrong:
        trace["marker"]["line"] = {"width": 1, "color": "#000000"}
    return trace


def _edges(centres: np.ndarray) -> np.ndarray:
    """The n + 1 edges of n cells with these `centres`."""
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _borders(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cell edges between different classes, as segments (n, 2 ends, xy) in degrees."""
    row, column = np.nonzero(grid[:, 1:] != grid[:, :-1])
    upright = [[x[column + 1], y[row]], [x[column + 1], y[row + 1]]]
    row, column = np.nonzero(grid[1:] != grid[:-1])
    level = [[x[column], y[row + 1]], [x[column + 1], y[row + 1]]]
    return np.concatenate([upright, level], axis=2).transpose(2, 0, 1)


def _write_names(fig: Figure, panels: np.ndarray, ds: xr.Dataset) -> None:
    """Write each class's name at the median of its places, unless it would cover another name.

    Large classes come first. Overlap is measured on the names as drawn.
    """
    names = json.loads(ds.attrs["classes"])
    label = ds["test_label"].values
    places = np.stack([ds["test_longitude"].values, ds["test_latitude"].values], axis=1)
    size = np.bincount(label, minlength=len(names))
    order = [k for k in np.argsort(-size, kind="stable") if size[k]]
    with drawing():
        fig.draw_without_rendering()  # this places the panels
    renderer = FigureCanvasAgg(fig).get_renderer()
    for ax in panels:
        taken: list[Bbox] = []
        for k in order:
            x, y = np.median(places[label == k], axis=0)
            text = ax.text(x, y, str(names[k]), fontsize=7.5, weight="bold")
            text.set(ha="center", va="center", path_effects=_halo(), clip_on=True)
            text.set_in_layout(False)
            box = text.get_window_extent(renderer).padded(1.5)
            frame = ax.get_window_extent(renderer)
            inward = max(frame.x0 - box.x0, 0) - max(box.x1 - frame.x1, 0)
            if inward:  # a name at the edge is moved into the map
                at = ax.transData.transform((x, y)) + np.array([inward, 0])
                text.set_position(ax.transData.inverted().transform(at))
                box = box.translated(inward, 0)
            if any(box.overlaps(other) for other in taken):
                text.remove()
            else:
                taken.append(box)


def _halo() -> list[AbstractPathEffect]:
    return [withStroke(linewidth=2.5, foreground="white")]


def class_colours(ds: xr.Dataset) -> np.ndarray:
    """An RGB colour (0 to 1) per class, (classes, 3), which differs clearly between neighbours.

    Colours depend only on the test places, so that a class has the same colour on every map of a
    run, whatever a trial predicts. The choice is greedy: classes with many near neighbours choose
    first, and each takes the colour that is least like those of the classes around it.
    """
    palette = np.array([to_rgb(colour) for colour in MAP_COLOURS])
    apart = np.linalg.norm(palette[:, None] - palette, axis=-1)
    alike = np.exp(-((apart / 0.4) ** 2))  # (colours, colours)
    near = np.exp(-((class_distances(ds) / 4) ** 2))  # (classes, classes), within some degrees
    np.fill_diagonal(near, 0)
    chosen = np.full(len(near), -1)
    for k in np.argsort(-near.sum(axis=1), kind="stable"):
        done = chosen >= 0
        around = near[k, done] @ alike[chosen[done]]
        used = np.bincount(chosen[done], minlength=len(palette))
        chosen[k] = np.argmin(around + 1e-3 * used)
    colours: np.ndarray = palette[chosen]
    return colours


def class_distances(ds: xr.Dataset) -> np.ndarray:
    """How far apart the nearest test places of two classes are, in degrees, (classes, classes).

    Accurate to about half a degree of latitude; infinite for a class without test places.
    """
    latitude = ds["test_latitude"].values.astype(float)
    shrink = np.cos(np.deg2rad(latitude.mean())) if latitude.size else 1.0
    places = np.stack([ds["test_longitude"].values * shrink, latitude], axis=1)
    cells = np.unique(
        np.column_stack([ds["test_label"].values, np.round(places * 2)]).astype(int), axis=0
    )
    classes = len(json.loads(ds.attrs["classes"]))
    distances = np.full((classes, classes), np.inf)
    own = [cells[cells[:, 0] == k, 1:] / 2 for k in range(classes)]
    for i in range(classes):
        for j in range(i):
            if len(own[i]) and len(own[j]):
                between = np.linalg.norm(own[i][:, None] - own[j], axis=-1).min()
                distances[i, j] = distances[j, i] = between
    return distances
