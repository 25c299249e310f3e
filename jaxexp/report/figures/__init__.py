"""Figures of a sweep's results, each a pure function from a dataset to a matplotlib `Figure`.

They use only matplotlib's objects, never pyplot, so nothing depends on a backend or piles up.
"""

from jaxexp.report.figures.against import final_by
from jaxexp.report.figures.baselines import accuracy_by, pictures, ranking
from jaxexp.report.figures.curves import curves, splits
from jaxexp.report.figures.figure import ReportFigure
from jaxexp.report.figures.grids import heat_map
from jaxexp.report.figures.lineage import descent, lineage
from jaxexp.report.figures.many import importances, parallel
from jaxexp.report.figures.maps import MAP_COLOURS, class_colours, class_distances, regions
from jaxexp.report.figures.steps import bars, gradient_norms, noise, running_mean, step_noise
from jaxexp.report.figures.style import CATEGORIES, SPLITS, axis_label, to_png, to_svg
from jaxexp.report.figures.tradeoff import tradeoff

__all__ = [
    "CATEGORIES",
    "MAP_COLOURS",
    "SPLITS",
    "ReportFigure",
    "accuracy_by",
    "axis_label",
    "bars",
    "class_colours",
    "class_distances",
    "curves",
    "descent",
    "final_by",
    "gradient_norms",
    "heat_map",
    "importances",
    "lineage",
    "noise",
    "parallel",
    "pictures",
    "ranking",
    "regions",
    "running_mean",
    "splits",
    "step_noise",
    "to_png",
    "to_svg",
    "tradeoff",
]
