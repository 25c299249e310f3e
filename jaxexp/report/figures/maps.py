"""Decision regions over the map, in colours that tell neighbouring countries apart."""

import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from jaxexp.report.figures.style import (
    STYLE,
    best_of,
    grid_shape,
    make_panels,
    say_which,
    set_titles,
)
from jaxexp.results.select import default_split, number

# Colours of the map: fewer than countries, but any two of them are easily distinguished.
MAP_COLOURS = (
    "#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#00b8d9", "#f2c500", "#f032e6",
    "#9a6324", "#7cb800", "#800000", "#469990", "#f48fb1", "#808000", "#8c8c8c",
)  # fmt: skip


@rc_context(STYLE)
def regions(ds: xr.Dataset, colours: np.ndarray | None = None) -> Figure:
    """The predicted class over the map (degrees), and the test places, one panel per trial.

    Areas and places have their class's colour, areas paler; places in an area of another class
    (by the nearest cell of the grid) are outlined. Of more than four trials, the best four by
    loss. `colours`, (classes, 3), are `class_colours` if not given: the same on every map that
    shows the same test places.
    """
    colours = class_colours(ds) if colours is None else colours
    trials, note = best_of(ds, 4, "loss", default_split(ds))
    middle = np.deg2rad(float(ds["latitude"].mean()))
    aspect = 1 / np.cos(middle)
    width = 6.6 if len(trials) == 1 else 5.2
    tall = float(np.ptp(ds["latitude"].values) / np.ptp(ds["longitude"].values))
    height = (width - 0.6) * aspect * tall + 0.7  # the rest is for the axes
    rows, cols = grid_shape(len(trials), 2)
    fig, panels = make_panels(rows, cols, width, height, count=len(trials))
    titles = []
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        ax.set_aspect(aspect)
        wrong = _map_panel(ax, point, colours)
        of = f"{number(wrong)} of {number(ds.sizes['point'])} test places"
        titles.append(f"{name}: {of} outlined as wrong")
    set_titles(panels, titles, width)
    say_which(fig, note)
    _write_names(fig, panels.flat[: len(trials)], ds)
    return fig


def _map_panel(ax: Axes, point: xr.Dataset, colours: np.ndarray) -> int:
    """Draw areas, borders and places of one trial; return how many places are wrong."""
    grid = point["region"].transpose("latitude", "longitude").sortby(["latitude", "longitude"])
    longitude, latitude = grid["longitude"].values, grid["latitude"].values
    x, y = _edges(longitude), _edges(latitude)
    ax.pcolormesh(x, y, 0.5 + 0.5 * colours[grid.values], rasterized=True)
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
    return int(wrong.sum())


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


def _write_names(fig: Figure, panels: Any, ds: xr.Dataset) -> None:
    """Write each class's name at the median of its places, where it covers no other.

    Large classes come first. Whether names meet is measured as they are drawn.
    """
    names = json.loads(ds.attrs["classes"])
    label = ds["test_label"].values
    places = np.stack([ds["test_longitude"].values, ds["test_latitude"].values], axis=1)
    size = np.bincount(label, minlength=len(names))
    order = [k for k in np.argsort(-size, kind="stable") if size[k]]
    fig.draw_without_rendering()  # which decides where the panels are
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


def _halo() -> list[Any]:
    return [withStroke(linewidth=2.5, foreground="white")]


def class_colours(ds: xr.Dataset) -> np.ndarray:
    """An RGB colour (0 to 1) per class, (classes, 3): those of neighbours are easily distinguished.

    It depends on the test places alone, so that a class has the same colour on every map of a run,
    whatever a trial predicts. Greedy: classes with near neighbours choose first, each the colour
    that is least like those of the classes around it.
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
    return palette[chosen]


def class_distances(ds: xr.Dataset) -> np.ndarray:
    """How far apart the nearest test places of two classes are, in degrees, (classes, classes).

    To about half a degree of latitude; infinite for a class without test places.
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
