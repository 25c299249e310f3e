"""Results of models from other libraries, in the layout of a sweep's own results."""

import json
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_number
from jaxexp.base.words import count, type_of
from jaxexp.execution.records import TrialRecord
from jaxexp.results.dataset import to_dataset
from jaxexp.results.facts import host_facts
from jaxexp.spec.arguments import refuses_unknown_arguments
from jaxexp.spec.hyperparameters import LARGEST
from jaxexp.spec.names import check_names
from jaxexp.spec.sweep import Sweep
from jaxexp.training.checks import checked_notes, is_laid_out
from jaxexp.training.data import Attributes, Data
from jaxexp.training.task import Task


@refuses_unknown_arguments
def external_results(
    sweep: Sweep, problem: tuple[Task, Data], *, model: str,
    metrics: Mapping[str, Mapping[str, float]], seconds: float,
    predictions: Mapping[str, np.ndarray] | None = None, notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> xr.Dataset:  # fmt: skip
    """Results of a model that another library has fitted, in the layout of a sweep's own results.

    Args:
        sweep: its trials all get these same results, as seeds do not reach the model.
        problem: a task, which defines the metrics, and the data.
        model: the model in words, for the plan.
        metrics: by split, a dict of the loss and each of the task's metrics.
        seconds: how long fitting the model took.
        predictions: what the task would record, in the shape of its dimensions or flat.
        notes: what to know before believing the results, such as the library's warnings.
        versions: those of libraries, by name.

    Raises:
        UserError: for values that are not numbers, a loss that is not finite, splits that the data
            do not have, metrics or predictions that are missing or that the task does not have,
            predictions of another shape, and versions under names that results already use.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4, validation=None)
    >>> measured = {"train": {"loss": 0.1, "accuracy": 1.0}}
    >>> results = external_results(
    ...     jx.Sweep(jx.Trial(epochs=1)),
    ...     (jx.MLPClassification(), data),
    ...     model="DecisionTreeClassifier()",
    ...     metrics=measured,
    ...     seconds=0.5,
    ... )
    >>> float(results["accuracy"].sel(split="train").item())
    1.0
    """
    if not isinstance(sweep, Sweep):
        raise UserError(f"sweep={sweep!r}: expected a jaxexp.Sweep")
    task, data = _checked_problem(problem)
    check_names([sweep], task.metrics, (*task.prediction_dims, *data.coords), data.counts)
    if not isinstance(model, str):
        raise UserError(f"model={model!r}: expected text")
    _check_metrics(metrics, task, data)
    if not is_number(seconds) or not 0 <= seconds < math.inf:
        raise UserError(f"seconds={seconds!r}: expected a number, at least 0")
    predictions = _checked_predictions(sweep, predictions, task, data)
    notes = (*data.notes, *checked_notes(notes))
    nothing = np.full(1, np.nan, np.float32)
    trials = sweep.trials()
    records = {
        trial: TrialRecord(
            trial=trial,
            metrics={
                split: {name: np.array([value], np.float32) for name, value in own.items()}
                for split, own in metrics.items()
            },
            running=dict.fromkeys(("loss", *task.metrics), nothing),
            step_loss=np.array([metrics["train"]["loss"]], np.float32),
            gradient_norms=None,
            predictions=predictions,
            variables=None,
            seconds=seconds / len(trials),
            compile_seconds=0.0,
        )
        for trial in trials
    }
    facts: dict[str, object] = dict(host_facts(f"1 fit of {model} on the host", sweep))
    facts |= {"wall_seconds": seconds, "notes": json.dumps(notes)}
    dataset = to_dataset(sweep, records, task, data, facts)
    dataset = dataset.assign_attrs(
        train_evaluation=f"all {count(data.counts['train'], 'training example')}"
    )
    return dataset.assign_attrs(_checked_versions(versions, dataset.attrs))


def _checked_problem(problem: tuple[Task, Data]) -> tuple[Task, Data]:
    if not isinstance(problem, tuple) or len(problem) != 2:
        raise UserError(f"problem={problem!r}: expected a task and data, (task, data)")
    for value, kind in zip(problem, (Task, Data), strict=True):
        if not isinstance(value, kind):
            what = "None" if value is None else type_of(value)
            raise UserError(f"problem: {what}, expected a jaxexp.{kind.__name__}: (task, data)")
    return problem


def _check_metrics(metrics: Mapping[str, Mapping[str, float]], task: Task, data: Data) -> None:
    """Raise UserError unless each metric has a number on each split, and nothing else is given."""
    names = ("loss", *task.metrics)
    if not isinstance(metrics, Mapping) or not all(
        isinstance(own, Mapping) for own in metrics.values()
    ):
        raise UserError(f"metrics={metrics!r}: expected a dict by split of dicts by metric")
    for split in data.counts:
        for name in names:
            if name not in metrics.get(split, {}):
                raise UserError(f"metrics: no {name!r} of {split!r}, expected one number for it")
    for split, own in metrics.items():
        if split not in data.counts:
            raise UserError(
                f"metrics: {split!r}: expected the splits of the data, {', '.join(data.counts)}"
            )
        for name, value in own.items():
            if name not in names:
                raise UserError(
                    f"metrics: {name!r} of {split!r}: expected those of the task: "
                    f"{', '.join(names)}"
                )
            # A loss that is not finite would mean that the trial has diverged.
            if not _is_one_number(value) or (name == "loss" and not abs(value) <= LARGEST):
                wanted = "a finite number" if name == "loss" else "a number"
                raise UserError(f"metrics: {name}={value!r} of {split!r}: expected {wanted}")


def _is_one_number(value: object) -> bool:
    """Whether it is a number, or an array of one without dimensions."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0:
        value = value.item()
    return is_number(value)


def _checked_predictions(
    sweep: Sweep, predictions: Mapping[str, np.ndarray] | None, task: Task, data: Data
) -> dict[str, np.ndarray]:
    """The predictions as arrays, with the task's sizes if the sweep records them."""
    if "gradient_norms" in sweep.record:
        raise UserError(f"sweep: it records {sweep.record}, expected no gradient norms")
    predictions = {} if predictions is None else predictions
    if not isinstance(predictions, Mapping):
        raise UserError(f"predictions={predictions!r}: expected a dict of arrays")
    for name in predictions:
        if name not in task.prediction_dims:
            known = ", ".join(task.prediction_dims) or "none"
            raise UserError(f"predictions: {name!r}: expected those of the task: {known}")
    arrays = {name: np.asarray(values) for name, values in predictions.items()}
    for name, dims in task.prediction_dims.items() if "predictions" in sweep.record else ():
        if name not in arrays:
            raise UserError(f"predictions: no {name!r}, which the sweep records")
        shape = tuple(len(data.coords[dim][1]) for dim in dims)
        numbers = arrays[name].dtype.kind in "biuf"
        if not numbers or not is_laid_out(arrays[name].shape, shape):
            raise UserError(
                f"predictions: {name!r} is an array of {arrays[name].dtype} of the shape "
                f"{arrays[name].shape}, expected numbers of the shape {shape}, "
                f"{' × '.join(dims)}, or all of them flat"
            )
    return arrays


def _checked_versions(versions: Mapping[str, str] | None, attrs: Attributes) -> Mapping[str, str]:
    versions = {} if versions is None else versions
    if not isinstance(versions, Mapping):
        raise UserError(f"versions={versions!r}: expected a dict of text by the names of libraries")
    for name, version in versions.items():
        if not isinstance(name, str) or not isinstance(version, str):
            raise UserError(f"versions: {name!r}={version!r}: expected text")
        if attrs.get(name, version) != version:
            raise UserError(
                f"versions: {name}={version!r}: results hold {name}={attrs[name]!r}; expected the "
                "names of other libraries"
            )
    return versions
