"""One `Results` of several runs of trials of one kind, as a search leaves them batch by batch."""

import json
from collections.abc import Sequence

import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.results.dataset import coordinates
from jaxexp.results.results import Results
from jaxexp.spec.sweep import Axis, Sweep, Values
from jaxexp.spec.trial import Trial

POINT = "point of a join"


def join(runs: Sequence[Results], name: str, seeds: Sequence[int] = ()) -> Results:
    """All trials of the runs, as results of one sweep over the points that they trained.

    Each of their sweeps has one axis of points, and another of these seeds, if there are any. Of a
    point that was trained more than once, the results are those of the longest. Points are in the
    order of their first training; seconds, and what else adds up, are summed.

    Raises UserError for no runs at all.
    """
    if not runs:
        raise UserError("runs: expected the results of at least one")
    tables = [_by_point(run, seeds) for run in runs]
    found: dict[Trial, tuple[int, int]] = {}  # where a point's results are: run and place
    for at, run in enumerate(runs):
        for place, trial in enumerate(run.sweep.trials()[:: max(1, len(seeds))]):
            before = found.get(trial)
            if before is None or _epochs(tables[at], place) > _epochs(tables[before[0]], before[1]):
                found[trial] = (at, place)
    sweep = _sweep(runs, list(found), seeds, name)
    joined = xr.concat(
        [tables[at].isel({POINT: [place]}) for at, place in found.values()],
        POINT, data_vars="minimal", coords="minimal", compat="override", join="outer",
        combine_attrs="override",
    )  # fmt: skip
    dims = list(sweep.dims)
    points = len(dims) > bool(seeds)  # else all that was trained is one point
    joined = joined.rename({POINT: dims[0]}) if points else joined.isel({POINT: 0})
    joined = joined.transpose(*dims, ...)
    joined = joined.assign_coords(coordinates(sweep, joined, runs[0].data))
    joined = joined.assign_attrs(_attributes(runs, sweep))
    variables = {k: v for run in runs for k, v in run.kept().items()}
    return Results(joined, sweep, runs[0].task, runs[0].data, variables)


def _by_point(run: Results, seeds: Sequence[int]) -> xr.Dataset:
    """The dataset with one dimension of points, without what says which they are."""
    dims = list(run.sweep.dims)[:-1] if seeds else list(run.sweep.dims)
    dropped = [name for dim in dims for name in run.sweep.dims[dim][0]]
    dataset = run.dataset.drop_vars(dropped, errors="ignore")
    return dataset.rename({dims[0]: POINT}) if dims else dataset.expand_dims(POINT)


def _epochs(table: xr.Dataset, place: int) -> int:
    return int(table["epochs_trained"].isel({POINT: place}).min())


def _sweep(runs: Sequence[Results], points: list[Trial], seeds: Sequence[int], name: str) -> Sweep:
    """Over the points, by what is an axis of any of the runs and what they differ in."""
    names = varying(points)
    axes = [run.sweep.axes for run in runs]
    names |= {
        own for each in axes for axis in list(each)[: len(each) - bool(seeds)] for own in axis
    }
    axis = tuple(own for own in points[0].fields() if own in names)
    return sweep_over(runs[0].sweep.base, axis, points, seeds, name)


def varying(points: Sequence[Trial]) -> set[str]:
    """The hyperparameters in which some of the points differ."""
    first = points[0].values()
    return {name for name in first for own in points if getattr(own, name) != first[name]}


def sweep_over(
    base: Trial, names: Sequence[str], points: Sequence[Trial], seeds: Sequence[int], name: str
) -> Sweep:
    """Over points that differ in the named hyperparameters, and over seeds, if there are any."""
    values = [tuple(getattr(point, own) for own in names) for point in points]
    axes: dict[str | Axis, Values] = {}
    if names:
        axes[tuple(names)] = values
    if seeds:
        axes["seed"] = list(seeds)
    return Sweep(base, axes, name=name)


def _attributes(runs: Sequence[Results], sweep: Sweep) -> dict[str, object]:
    """What is not as in the first of the runs."""
    every = [run.dataset.attrs for run in runs]
    added = ("programs", "plan_trials", "compile_seconds", "train_seconds", "wall_seconds")
    plans = list(dict.fromkeys(str(attrs["plan"]) for attrs in every))
    trials = sweep.trials()
    return {
        **{name: sum(attrs[name] for attrs in every) for name in added},
        "sweep": sweep.name,
        "sweep_id": sweep.id,
        "axes": json.dumps(list(sweep.dims)),
        "seeds": json.dumps(sorted({trial.seed for trial in trials})),
        "trials": len(trials),
        "plan": "\n\n".join([f"{count(len(runs), 'batch', 'batches')}, one after another", *plans]),
    }
