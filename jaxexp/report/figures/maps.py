"""Decision regions over the map, in colours that tell neighbouring countries apart."""

import itertools
import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from jaxexp.report.figures.style import STYLE, grid_shape, make_panels
from jaxexp.results.select import number, points

# Colours of the map: fewer than countries, but any two of them are easily told apart.
MAP_COLOURS = (
    "#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#00b8d9", "#f2c500", "#f032e6",
    "#9a6324", "#7cb800", "#800000", "#469990", "#f48fb1", "#808000", "#8c8c8c",
)  # fmt: skip


@rc_context(STYLE)
def regions(ds: xr.Dataset, colours: np.ndarray | None = None) -> Figure:
    """The predicted class over the map (degrees), and the test places, one panel per trial.

    Areas and places have their class's colour, areas paler; places in an area of another class
    (by the nearest cell of the grid) are outlined. `colours`, (classes, 3), made by
    `class_colours` from all trials at once, keeps the colours equal across figures.
    """
    colours = class_colours(ds) if colours is None else colours
    trials = list(points(ds))
    middle = np.deg2rad(float(ds["latitude"].mean()))
    aspect = 1 / np.cos(middle)
    width = 6.6 if len(trials) == 1 else 5.2
    tall = float(np.ptp(ds["latitude"].values) / np.ptp(ds["longitude"].values))
    height = (width - 0.6) * aspect * tall + 0.7  # the rest is for the axes
    rows, cols = grid_shape(len(trials), 2)
    fig, panels = make_panels(rows, cols, width, height, count=len(trials))
    for ax, (name, point) in zip(panels.flat, trials, strict=False):
        ax.set_aspect(aspect)
        wrong = _map_panel(ax, point, colours)
        total = ds.sizes["point"]
        ax.set_title(f"{name}: {number(wrong)} of {number(total)} test places outlined as wrong")
        _write_names(ax, point, width)
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


def _write_names(ax: Axes, point: xr.Dataset, width: float) -> None:
    """Write each class's name at the median of its places, large classes first, none over another.

    `width` is that of the panel in inches, from which follows how many degrees a letter takes.
    """
    names = json.loads(point.attrs["classes"])
    label = point["test_label"].values
    places = np.stack([point["test_longitude"].values, point["test_latitude"].values], axis=1)
    size = 7.5
    degree = width * 72 / np.ptp(ax.get_xlim())  # points of text per degree of longitude
    aspect = float(ax.get_aspect())
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for k in np.argsort(-np.bincount(label, minlength=len(names)), kind="stable"):
        if not (label == k).any():
            continue
        centre = np.median(places[label == k], axis=0)
        half = np.array([0.33 * len(str(names[k])), 0.6 / aspect]) * size / degree
        if all((abs(centre - c) > half + h).any() for c, h in taken):
            text = ax.text(centre[0], centre[1], str(names[k]), fontsize=size, weight="bold")
            text.set(ha="center", va="center", path_effects=_halo())
            taken.append((centre, half))


def _halo() -> list[Any]:
    return [withStroke(linewidth=2.5, foreground="white")]


def class_colours(ds: xr.Dataset) -> np.ndarray:
    """An RGB colour (0 to 1) per class, (classes, 3): neighbours on any map of `ds` differ.

    Greedy: classes with many neighbours choose first, each the least used of the colours that
    none of its neighbours has (or that the fewest have, where they have them all).
    """
    near = neighbours(ds)
    chosen = np.full(len(near), -1)
    for k in np.argsort(-near.sum(axis=1), kind="stable"):
        around = np.bincount(chosen[near[k] & (chosen >= 0)], minlength=len(MAP_COLOURS))
        used = np.bincount(chosen[chosen >= 0], minlength=len(MAP_COLOURS))
        chosen[k] = np.lexsort([used, around])[0]
    return np.array([to_rgb(colour) for colour in MAP_COLOURS])[chosen]


def neighbours(ds: xr.Dataset) -> np.ndarray:
    """Which classes border on one another, boolean (classes, classes), symmetric.

    Two classes are neighbours if areas (of any trial of `ds`) or test places of theirs lie in the
    same or in adjoining squares of one degree, or of one cell of the grid if that is coarser.
    """
    latitude, longitude, region = xr.broadcast(ds["latitude"], ds["longitude"], ds["region"])
    x = np.concatenate([longitude.values.ravel(), ds["test_longitude"].values])
    y = np.concatenate([latitude.values.ravel(), ds["test_latitude"].values])
    label = np.concatenate([region.values.ravel(), ds["test_label"].values])
    steps = [np.abs(np.diff(ds[axis])).max() for axis in ("latitude", "longitude")]
    side = max(1.0, *steps)
    row, column = (((v - v.min()) / side).astype(int) + 1 for v in (y, x))
    classes = len(json.loads(ds.attrs["classes"]))
    present = np.zeros((classes, row.max() + 2, column.max() + 2), np.float32)
    present[label, row, column] = 1
    shifts = itertools.product((-1, 0, 1), repeat=2)
    around = sum(np.roll(present, shift, axis=(1, 2)) for shift in shifts)
    near = np.tensordot(present, around, axes=([1, 2], [1, 2])) > 0
    return near & ~np.eye(classes, dtype=bool)
