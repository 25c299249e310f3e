"""Predictions of the best model of a run, for images or the rows of CSV files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import pandas as pd

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.cli import library
from jaxexp.cli.library import Source
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.session import Command, made_with_data, names_of, plan_stage, stages
from jaxexp.results import models
from jaxexp.results.models import Model, Prediction
from jaxexp.results.results import apply, like_training
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import text
from jaxexp.training import keys
from jaxexp.training.trees import PyTree

if TYPE_CHECKING:
    from jaxexp.api import PlannedRun
    from jaxexp.training.data import Data

SHOWN = 20  # of many names, in a message


def predict_files(
    directory: RunDirectory, command: Command, files: Sequence[Path], sweep: str | None,
    export: Path | None, note: Callable[[str], None], *, force: bool = False,
) -> tuple[Sequence[Prediction], str]:  # fmt: skip
    """Predictions for files by the best model, of a sweep or of all, and a line that says which.

    `note` is called with what has changed since it was trained, and need not change predictions.
    Raises UserError for files that cannot be read or are of another kind, runs without models, and,
    unless `force`, where the file of the sweep has changed, or the names of classes or features.
    """
    results = directory.load()
    if sweep is not None and sweep not in dict(results):
        names = ", ".join(name for name, _ in results)
        raise UserError(f"--sweep {sweep!r}: expected one of {names}")
    sources = {source.sweep.name: source for source in command.sources()}
    tables = [file for file in files if file.suffix.lower() == ".csv"]
    if tables and len(tables) < len(files):
        other = next(file for file in files if file not in tables)
        raise UserError(f"{other}: expected a CSV file as {tables[0]}, or images alone")

    def serves(source: Source) -> bool:
        """Whether its models predict such files, and are exported, if that is asked for."""
        predicts = not files or (source.predict is None) == bool(tables)
        return predicts and not (export and source.export is None)

    own = [(name, ds) for name, ds in results if sweep in (None, name) and serves(sources[name])]
    if not own:
        what = f"--export {export}" if export else str(files[0])
        raise UserError(f"{what}: no sweep of this run has models for that")
    # The page of a sweep without questions ranks its trials by loss.
    asked = any(sources[name].sweep.questions for name, _ in own)
    metric = command.search.metric if command.search else None if asked else "loss"
    model, why = models.best(directory.models, own, metric)
    source = sources[model.about["sweep"]]
    file = {f"file of sweep {source.sweep.name}": source.digest}
    if not force:
        _refuse(directory, directory.differences(file))
    if export and source.export:
        with library.calling(source.sweep, "export(model, path)", source.export):
            source.export(model, export)
    trial = _trial(_trials(source, model), model)
    predicted: Sequence[Prediction] = []
    if files and source.predict:
        with library.calling(source.sweep, "predict(model, files)", source.predict):
            predicted = source.predict(model, files)
    elif files:
        planned = plan_stage([source], command)
        if not force:
            _refuse(directory, _renamed(model, planned.data))
        [stage] = [own for own in stages(sources.values()) if source in own]
        for changed in directory.differences(made_with_data(stage, planned.data)):
            note(f"{changed}; if the sweep's file scales by its data, it now does so by others")
        predicted = _of_tables(model, trial, planned, files)
    return predicted, f"model: {source.sweep.name}, {_described(trial, source.sweep)}, {why}"


def _refuse(directory: RunDirectory, differs: Sequence[str]) -> None:
    """Raise UserError for what differs."""
    if differs:
        raise UserError(
            f"{directory.path}: not what the model was trained with: {'; '.join(differs)}; --force "
            "predicts all the same, with the names that it was trained with"
        )


def _renamed(model: Model, data: "Data") -> list[str]:
    """In words, which names are not those that the model was trained with."""
    now, before = names_of(data), model.about["attrs"]
    return [
        f"its {what} were {_listed(before[what])}, are {_listed(now.get(what, ()))}"
        for what in ("classes", "features")
        if what in before and before[what] != now.get(what)
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "") or "without names"


def _trials(source: Source, model: Model) -> Sequence[Trial]:
    """Those of the sweep; of a study, whose are only known in the end, that of the model alone."""
    if source.space is None:
        return source.sweep.trials()
    return Sweep(source.sweep.base).set({k: [v] for k, v in model.about["trial"].items()}).trials()


def _trial(trials: Sequence[Trial], model: Model) -> Trial:
    for trial in trials:
        if trial.id == model.path.stem:
            return trial
    raise UserError(f"{model.path}: the model of a trial that the sweep does not have any more")


def _described(trial: Trial, sweep: Sweep) -> str:
    names = [name for axis in sweep.axes for name in axis]
    names += [] if "seed" in names else ["seed"]
    return ", ".join(f"{name.replace('_', ' ')} {text(getattr(trial, name))}" for name in names)


def _of_tables(
    model: Model, trial: Trial, planned: "PlannedRun", files: Sequence[Path]
) -> list[Prediction]:
    """Of every row of CSV files whose columns are the features."""
    task, data, trained = planned.task, planned.data, model.about["attrs"]
    features = trained.get("features", data.features)
    tables = [_read(file, features, data.train.x) for file in files]
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), data.arrays())
    like = jax.eval_shape(lambda rng, data: task.init(trial, rng, data), keys.like(), arrays)
    x_NxF = like_training(data, np.concatenate(tables))
    prediction, probability_NxC = apply(task, trial, model.variables(like), x_NxF)
    rows = [
        f"{file}:{row}"
        for file, x in zip(files, tables, strict=True)
        for row in range(2, len(x) + 2)
    ]
    if probability_NxC is None:
        values = [" ".join(f"{v:.6g}" for v in np.ravel(value)) for value in prediction]
        return [Prediction(row, value, None) for row, value in zip(rows, values, strict=True)]
    best_N = probability_NxC.argmax(1)
    names = trained.get("classes") or tuple(map(str, range(probability_NxC.shape[1])))
    return [
        Prediction(row, names[label], float(probability_C[label]))
        for row, label, probability_C in zip(rows, best_N, probability_NxC, strict=True)
    ]


def _check_header(file: Path, width: int) -> None:
    """Refuse a first row of numbers: an example of a file without a header would be left out."""
    header = pd.read_csv(file, header=None, nrows=1, skipinitialspace=True, dtype=str).iloc[0]
    named = header.dropna()
    if len(named) and pd.to_numeric(named, errors="coerce").notna().all():
        found = ", ".join(named[:SHOWN])
        raise UserError(
            f"{file}, line 1: the header is numbers alone ({found}), expected the names of "
            f"{count(width, 'column')}, with the first example in the row below"
        )


def _read(file: Path, features: Sequence[str] | None, like: PyTree) -> np.ndarray:
    """The features of every row, (N, F), from the columns of their names, or all there are."""
    try:
        table = pd.read_csv(file, skipinitialspace=True)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: cannot be read as CSV ({reason})") from error
    width = np.shape(like)[1] if np.ndim(like) == 2 else None
    if width is None:
        raise UserError(f"{file}: this model does not predict rows of a table")
    if not features:
        _check_header(file, width)
    names = list(features) if features else list(table.columns)
    missing = [name for name in names if name not in table.columns]
    if missing or len(names) != width:
        wanted = ", ".join(features) if features else f"{width} columns of numbers"
        found = ", ".join(map(str, table.columns[:SHOWN]))
        raise UserError(f"{file}: the columns are {found}, expected {wanted}")
    if table.empty:
        raise UserError(f"{file}: no rows after the header, expected one or more")
    made = np.empty((len(table), width))
    for i, name in enumerate(names):
        column = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
        wrong = np.flatnonzero(~np.isfinite(column))
        if wrong.size:
            row = int(wrong[0])
            raise UserError(
                f"{file}, line {row + 2}: {name} is {table[name].iloc[row]!r}, expected a number"
            )
        made[:, i] = column
    return made
