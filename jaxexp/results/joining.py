"""Join several runs of one kind of trial, such as the batches of a search, into one `Results`."""

import json
from collections.abc import Iterable, Sequence

import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.results.dataset import coordinates
from jaxexp.results.facts import plan_id
from jaxexp.results.results import Results
from jaxexp.spec.samplers import DIM
from jaxexp.spec.sweep import Axis, Sweep, Values
from jaxexp.spec.trial import Trial


def join(runs: Sequence[Results], name: str, seeds: Sequence[int] = ()) -> Results:
    """All trials of the runs, as results of one sweep over the points that they trained.

    Each run's sweep must come from `sweep_over`, with these seeds. If a point was trained more than
    once, its longest training counts. Points are in the order in which they were first trained;
    seconds, and everything else that adds up, are summed.

    Raises UserError if there are no runs.
    """
    if not runs:
        raise UserError("runs: expected the results of at least one")
    tables, several = [_by_point(run) for run in runs], max(1, len(seeds))
    found: dict[Trial, tuple[int, int]] = {}  # where a point's results are: run and place
    for at, run in enumerate(runs):
        for place, trial in enumerate(run.sweep.trials()[::several]):
            before = found.get(trial)
            if before is None or _epochs(tables[at], place) > _epochs(tables[before[0]], before[1]):
                found[trial] = (at, place)
    sweep = _sweep(runs, list(found), seeds, name)
    joined = xr.concat(
        [tables[at].isel({DIM: [place]}) for at, place in found.values()],
        DIM, data_vars="minimal", coords="minimal", compat="override", join="outer",
        combine_attrs="override",
    )  # fmt: skip
    joined = joined.transpose(*sweep.dims, ...)
    joined = joined.assign_coords(coordinates(sweep, joined, runs[0].data))
    joined = joined.assign_attrs(_attributes(runs, sweep))
    variables = {
        trial.id: runs[at].kept()[trial.id]
        for at, place in found.values()
        for trial in runs[at].sweep.trials()[place * several : (place + 1) * several]
        if trial.id in runs[at].kept()
    }
    return Results(joined, sweep, runs[0].task, runs[0].data, variables)


def _by_point(run: Results) -> xr.Dataset:
    """The dataset without the hyperparameters of its points."""
    names, _ = run.sweep.dims[DIM]
    return run.dataset.drop_vars(names)


def _epochs(table: xr.Dataset, place: int) -> int:
    return int(table["epochs_trained"].isel({DIM: place}).min())


def _sweep(runs: Sequence[Results], points: list[Trial], seeds: Sequence[int], name: str) -> Sweep:
    """A sweep over the points, along what varied in any run and what the points differ in."""
    names = varying(points).union(*(run.sweep.dims[DIM][0] for run in runs))
    return sweep_over(runs[0].sweep.base, names, points, seeds, name)


def varying(points: Sequence[Trial]) -> set[str]:
    """The hyperparameters in which some of the points differ."""
    first = points[0].values()
    return {name for name in first for own in points if getattr(own, name) != first[name]}


def sweep_over(
    base: Trial, names: Iterable[str], points: Sequence[Trial], seeds: Sequence[int], name: str
) -> Sweep:
    """A sweep over points that differ in the named hyperparameters, and over seeds if any.

    The points lie along the dimension "sample", like those of `jaxexp.search.random`.
    """
    known = {*names} or {"learning_rate"}  # a single point: any will do
    axis = tuple(own for own in base.fields() if own in known)
    axes: dict[str | Axis, Values] = {
        axis: [tuple(getattr(point, own) for own in axis) for point in points]
    }
    if seeds:
        axes["seed"] = list(seeds)
    return Sweep(base, axes, name=name, dim_names={axis: DIM})


def _attributes(runs: Sequence[Results], sweep: Sweep) -> dict[str, object]:
    """The attributes that differ from those of the first run."""
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
        "plan_id": plan_id([sweep]),
        "plan": "\n\n".join([f"{count(len(runs), 'batch', 'batches')}, one after another", *plans]),
    }
