"""Results as labelled arrays, with a dimension for each axis, then epoch, split and step."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.files import read_sealed, write_whole
from jaxexp.base.words import count
from jaxexp.execution.records import TrialRecord, short_form
from jaxexp.spec.hyperparameters import Kind
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import stored, text
from jaxexp.training.checks import is_laid_out
from jaxexp.training.data import Attributes, Data
from jaxexp.training.evaluation import evaluated_counts
from jaxexp.training.task import Task

SPLITS = ("train", "validation", "test")
# Dimensions, array and attributes, as xarray takes them.
Variable: TypeAlias = tuple[tuple[str, ...], np.ndarray, Mapping[str, str]]


def to_dataset(
    sweep: Sweep, records: Mapping[Trial, TrialRecord], task: Task, data: Data,
    facts: Attributes,
) -> xr.Dataset:  # fmt: skip
    """The results of one sweep, taken from the records of its trials.

    Dimensions: one for each axis of the sweep (zipped hyperparameters share one, named after all of
    them), `epoch` and `step` from 1, `split` (those of the data), `layer` from 0. Variables:

    - `loss` and each metric of the task by epoch and split, all measured in the same way: at the
      end of the epoch, in evaluation mode. `attrs["train_evaluation"]` says on which training
      examples. The variables' attributes give their `units` and which `direction` is better.
    - `running_loss` and the other metrics' running means by epoch, over all training examples,
      taken during the epoch in training mode.
    - `step_loss`, `steps_per_epoch`, `epochs_trained`, `diverged_epoch` and `diverged_step` (both
      from 1, over the whole run; 0: never), `trial_id`.
    - `best_epoch`, if a stopping rule restores the best epoch: the one whose parameters the trial
      has in the end (0: the last one trained, as no epoch had a finite value).
    - For a population, `parent` by epoch: the place of the trial whose state this one took over
      after that epoch (-1: none); and `own_learning_rate` and the like by epoch.
    - `seconds`: device-seconds of training, the trial's share of its program's by its work.
    - If recorded, `gradient_norm` by epoch and layer, and predictions.

    Shorter trials are padded with NaN.
    """
    own = [records[trial] for trial in sweep.trials()]
    axes = tuple(sweep.dims)

    def variable(values: Sequence[object], *dims: str, **attrs: str) -> Variable:
        stacked = _pad([np.asarray(value) for value in values])
        return (*axes, *dims), stacked.reshape(sweep.shape + stacked.shape[1:]), attrs

    epochs = [len(record.running["loss"]) for record in own]
    splits = list(data.counts)
    described = {"loss": {"direction": "lower", "units": task.loss_unit}} | {
        name: {"direction": str(metric.direction), "units": metric.unit}
        for name, metric in task.metrics.items()
    }
    variables: dict[str, Variable] = {}
    for metric, attrs in described.items():
        by_split = [np.stack([r.metrics[s][metric] for s in splits], axis=1) for r in own]
        variables[metric] = variable(by_split, "epoch", "split", **attrs)
    for metric, attrs in described.items():
        variables[f"running_{metric}"] = variable(
            [r.running[metric] for r in own], "epoch", **attrs
        )
    variables |= {
        "step_loss": variable([r.step_loss for r in own], "step", units=task.loss_unit),
        "steps_per_epoch": variable(
            [len(r.step_loss) // n for r, n in zip(own, epochs, strict=True)]
        ),
        "epochs_trained": variable(epochs),
        "diverged_epoch": variable([r.diverged_epoch for r in own]),
        "diverged_step": variable([r.diverged_step for r in own]),
        "trial_id": variable([r.trial.id for r in own]),
        "seconds": variable(
            [r.seconds for r in own],
            units="device-seconds",
            long_name="timed alone, one trial after another; seeds share a program"
            if sweep.timed
            else "share, by its work, of a program that trained others beside it",
        ),
    }
    if any(r.best_epoch >= 0 for r in own):
        variables["best_epoch"] = variable([max(r.best_epoch, 0) for r in own])
    if any(r.changes for r in own):
        for name, values in _lineage(own).items():
            variables[name] = variable(values, "epoch")
    if "gradient_norms" in sweep.record:
        variables["gradient_norm"] = variable([r.gradient_norms for r in own], "epoch", "layer")
    if "predictions" in sweep.record:
        for name, dims in task.prediction_dims.items():
            shape = [len(data.coords[dim][1]) for dim in dims]
            made = [r.predictions[name] for r in own]
            # Only one trial's shapes were checked before: they may depend on hyperparameters.
            if wrong := [array.shape for array in made if not is_laid_out(array.shape, shape)]:
                raise UserError(f"predictions: {name!r} has the shape {wrong[0]}, expected {shape}")
            variables[name] = variable([array.reshape(shape) for array in made], *dims)
    dataset = xr.Dataset(variables, attrs=_attributes(sweep, own, list(described), data, facts))
    return dataset.assign_coords(coordinates(sweep, dataset, data))


def _lineage(own: Sequence[TrialRecord]) -> dict[str, list[np.ndarray]]:
    """For each trial and epoch, (E,): the trial that it became a copy of, and its values."""
    place = {record.trial: i for i, record in enumerate(own)}
    names = {name for record in own for _, values in record.changes.values() for name in values}
    made: dict[str, list[np.ndarray]] = {n: [] for n in ["parent", *(f"own_{n}" for n in names)]}
    for record in own:
        epochs = len(record.running["loss"])
        parent = np.full(epochs, -1)
        values = {name: np.full(epochs, short_form(getattr(record.trial, name))) for name in names}
        for epoch, (source, changed) in sorted(record.changes.items()):
            parent[epoch - 1] = -1 if source == record.trial else place[source]
            for name, value in changed.items():
                values[name][epoch:] = value
        made["parent"].append(parent)
        for name in names:
            made[f"own_{name}"].append(values[name])
    return made


def _pad(values: list[np.ndarray]) -> np.ndarray:
    """Stack arrays of different sizes, the smaller ones padded with NaN."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    largest = np.max([value.shape for value in values], axis=0)
    padded = np.full((len(values), *largest), np.nan, np.result_type(np.float32, *values))
    for row, value in zip(padded, values, strict=True):
        row[tuple(map(slice, value.shape))] = value
    return padded


def coordinates(sweep: Sweep, dataset: xr.Dataset, data: Data) -> dict[str, object]:
    """The coordinates of every dimension: values of hyperparameters, epochs, splits and so on."""
    coordinates: dict[str, object] = {"split": list(data.counts)}
    for dim, (names, points) in sweep.dims.items():
        for name, values in zip(names, zip(*points, strict=True), strict=True):
            own = [stored(value) for value in values]
            alike = len(set(map(type, own))) == 1  # NumPy would turn False beside 2 into 0
            coordinates[name] = (dim, np.array(own if alike else [text(v) for v in values]))
    for dim, first in (("epoch", 1), ("step", 1), ("layer", 0)):
        if dim in dataset.sizes:
            coordinates[dim] = np.arange(first, first + dataset.sizes[dim])
    if "predictions" in sweep.record:
        coordinates |= data.coords
    return coordinates


def _attributes(
    sweep: Sweep, own: list[TrialRecord], metrics: list[str], data: Data, facts: Attributes
) -> dict[str, object]:
    base = {name: stored(value) for name, value in sweep.base.values().items()}
    traced = [n for n, field in sweep.base.fields().items() if field.kind is Kind.TRACED]
    classes = {} if data.classes is None else {"classes": json.dumps(data.classes)}
    conditions = {
        name: {other: [text(value) for value in values] for other, values in wanted.items()}
        for name, wanted in sweep.conditions.items()
    }
    n = data.counts["train"]
    sample = evaluated_counts(data)["train"]
    several = len({data.counts_of(fold)["train"] for fold in range(data.n_folds)}) > 1
    examples = count(n, "training example") + (" of the longest fold" if several else "")
    return {
        "data": "arrays",
        "examples": json.dumps(data.counts),
        **classes,
        **({"conditions": json.dumps(conditions)} if conditions else {}),
        **({"notes": json.dumps(data.notes)} if data.notes else {}),
        **data.attrs,
        "data_fingerprint": data.fingerprint,
        "sweep": sweep.name,
        "sweep_id": sweep.id,
        "axes": json.dumps(list(sweep.dims)),
        "metrics": json.dumps(metrics),
        "base": json.dumps(base),
        "traced": json.dumps(traced),
        "trials": len(own),
        "seeds": json.dumps(sorted({record.trial.seed for record in own})),
        "train_evaluation": f"all {examples}"
        if sample == n
        else f"a fixed sample of {sample:,} of the {examples}",
        "compile_seconds": sum(record.compile_seconds for record in own),
        "train_seconds": sum(record.seconds for record in own),
        **facts,
    }


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write one file that `xarray.open_dataset` opens; it appears whole or not at all.

    Raises OSError if it cannot be written. (HDF5 writes to memory only: on a full disk it crashes.)
    """
    packed = {name: {"zlib": True, "complevel": 4} for name in dataset.data_vars}
    content = dataset.to_netcdf(None, engine="h5netcdf", encoding=packed)
    write_whole(path, content, seal=True)


def load(path: Path) -> xr.Dataset:
    """Read a results file into memory.

    Raises UserError if it cannot be read.
    """
    try:
        # Unsealed first: HDF5 can crash on a damaged file, or read other numbers.
        with xr.open_dataset(io.BytesIO(read_sealed(path)), engine="h5netcdf") as dataset:
            return dataset.load()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a results file ({error})") from error
