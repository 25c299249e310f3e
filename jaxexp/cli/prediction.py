"""Predictions of the best model of a run, for images or the rows of CSV files."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import pandas as pd
import xarray as xr
from jax.tree_util import keystr

from jaxexp.base.errors import UserError
from jaxexp.base.words import count, type_of
from jaxexp.cli import library
from jaxexp.cli.command import Command, plan_stage, stages
from jaxexp.cli.library import Source
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.session import made_with, names_of
from jaxexp.reproduce.cells import Cells, normal
from jaxexp.results import models, select
from jaxexp.results.models import Model, Prediction
from jaxexp.results.results import apply, input_dtype, like_training, trial_in_the_end
from jaxexp.results.select import number
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Written, text
from jaxexp.training import keys
from jaxexp.training.checks import first_twice, some_names
from jaxexp.training.task import Task
from jaxexp.training.trees import PyTree

if TYPE_CHECKING:
    from jaxexp.api import PlannedRun
    from jaxexp.training.data import Data

# The words for bools, as pandas reads them.
BOOLS = {"True": 1, "TRUE": 1, "true": 1, "False": 0, "FALSE": 0, "false": 0}
SHOWN = 20  # of many names, in a message
FAR = 3  # of many columns with values far outside of those trained on
NARROW = 1e-3  # a range, by the size of its values: from there on four digits tell them apart


def predict_files(
    directory: RunDirectory, command: Command, files: Sequence[Path], sweep: str | None,
    export: Path | None, note: Callable[[str], None], *, force: bool = False,
) -> tuple[Sequence[Prediction], str]:  # fmt: skip
    """Predictions for files by the best model, of a sweep or of all, and a line that says which.

    `note` is called with what has changed since it was trained, and need not change predictions.
    Raises UserError for files that cannot be read or are of another kind, runs without models, and,
    unless `force`, where the file of the sweep has changed, or the names of classes or features;
    and where the probabilities of an example's classes are NaN.
    """
    results = directory.load()
    if sweep is not None and sweep not in dict(results):
        names = ", ".join(name for name, _ in results)
        raise UserError(f"--sweep {sweep!r}: expected one of {names}")
    sources = {source.sweep.name: source for source in command.sources()}
    tables = [file for file in files if file.suffix.lower() == ".csv"]
    if tables and len(tables) < len(files):
        other = next(file for file in files if file not in tables)
        raise UserError(f"{other}: expected a name in .csv, as {tables[0]}, or images alone")

    def serves(source: Source) -> bool:
        """Whether its models predict such files, and are exported, if that is asked for."""
        predicts = not files or (source.predict is None) == bool(tables)
        return predicts and not (export and source.export is None)

    serving = [name for name, _ in results if serves(sources[name])]
    own = [(name, ds) for name, ds in results if name in serving and sweep in (None, name)]
    if not own:
        raise UserError(
            f"{files[0] if files else f'--export {export}'}: expected models of a sweep whose file "
            f"defines {_needed(files, tables, export)}; this run has {_those(directory, serving)}"
        )
    # The page of a sweep without questions ranks its trials by loss.
    asked = any(sources[name].sweep.questions for name, _ in own)
    metric = command.search.metric if command.search else None if asked else "loss"
    model, why = models.best(directory.models, own, metric)
    source = sources[model.about["sweep"]]
    file = {f"file of sweep {source.sweep.name}": source.digest}
    if not force:
        _refuse(directory, directory.differences(file))
    initial = _trial(_trials(source, model), model)
    point = _point(dict(own)[source.sweep.name], initial)
    _check_trained(model, point)
    if export and source.export:
        with library.calling(source.sweep, "export(model, path)", source.export):
            source.export(model, export)
    trial = trial_in_the_end(initial, point)
    predicted: Sequence[Prediction] = []
    if files and source.predict:
        with library.calling(source.sweep, "predict(model, files)", source.predict):
            predicted = [*source.predict(model, files)]
            for one in predicted:
                if not isinstance(one, Prediction):
                    raise UserError(
                        f"{source.sweep.name}: predict(model, files) gives {one!r}, expected a "
                        "jx.Prediction for each file"
                    )
    elif files:
        planned = plan_stage([source], command)
        if not force:
            _refuse(directory, _renamed(model, planned.data))
        [stage] = [own for own in stages(sources.values()) if source in own]
        data = {"data": planned.data.fingerprint}
        changed = directory.differences(made_with(stage, data))
        for each in changed:
            note(f"{each}; if the sweep's file scales by its data, it now does so by others")
        seen = "in the data as they are now" if changed else "in training"
        predicted = _of_tables(model, trial, planned, files, note, seen)
    classified = [own for own in predicted if own.probability is not None]
    probability_N = np.array([own.probability for own in classified], float)
    models.check_defined(lambda row: classified[row].example, probability_N)
    described = _described(trial, source.sweep, point)
    return predicted, f"model: {source.sweep.name}, {described}, {why}"


def _needed(files: Sequence[Path], tables: Sequence[Path], export: Path | None) -> str:
    """The functions of a sweep's file that predict such files and export models."""
    needed = []
    if files:
        kinds = "CSV files" if tables else "files other than tables, whose names end in .csv"
        no = "no " if tables else ""
        needed.append(f"{no}`predict(model, files)`, for {kinds}")
    if export:
        needed.append("`export(model, path)`, for --export")
    return " and ".join(needed)


def _those(directory: RunDirectory, sweeps: Sequence[str]) -> str:
    """Those of sweeps that have models, in words."""
    there = [name for name in sweeps if any((directory.models / name).glob("*.npz"))]
    return f"those of {', '.join(there)}" if there else "none"


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
    base, own = source.sweep.base, model.about["initial"]
    searched = {*source.space.names, "seed"}  # all else is as in the base
    searched -= {n for n in source.space.conditions if own[n] == text(getattr(base, n))}
    return Sweep(base).set({n: [Written(v)] for n, v in own.items() if n in searched}).trials()


def _trial(trials: Sequence[Trial], model: Model) -> Trial:
    """The one whose name the model's file has; raises UserError where it is another's model."""
    for trial in trials:
        if trial.id == model.path.stem:
            its, own = model.about["initial"], trial.values()
            if differs := {name: its[name] for name in its if its[name] != text(own.get(name))}:
                has = ", ".join(f"{name} {value}" for name, value in differs.items())
                asked = ", ".join(f"{name} {text(own.get(name))}" for name in differs)
                raise UserError(
                    f"{model.path}: the model of another trial, with {has}, not {asked}"
                )
            return trial
    raise UserError(f"{model.path}: the model of a trial that the sweep does not have any more")


def _point(ds: xr.Dataset, trial: Trial) -> xr.Dataset:
    ids = select.by_trial(ds, ds["trial_id"]).tolist()
    return select.point(ds, ids.index(trial.id))[1]


def _check_trained(model: Model, point: xr.Dataset) -> None:
    """Raise UserError for a model of another run, which has measured another number in the end."""
    last, measured = point.sel(epoch=int(point["epochs_trained"])), model.about["metrics"]
    for name, split in itertools.product(select.metrics(point), select.splits(point)):
        its, own = measured.get(name, {}).get(split), float(last[name].sel(split=split))
        if repr(its) != repr(own):  # NaN is NaN's equal
            raise UserError(
                f"{model.path}: the model of another run of this trial, with {split} {name} {its}, "
                f"not {own} as in the results"
            )


def _described(trial: Trial, sweep: Sweep, point: xr.Dataset) -> str:
    names = [name for axis in sweep.axes for name in axis]
    names += [] if "seed" in names else ["seed"]
    return ", ".join(f"{select.named(point, name)} {text(getattr(trial, name))}" for name in names)


def _of_tables(
    model: Model, trial: Trial, planned: "PlannedRun", files: Sequence[Path],
    note: Callable[[str], None], seen: str = "in training",
) -> list[Prediction]:  # fmt: skip
    """Of every row of CSV files whose columns are the features; the data's were `seen` there."""
    task, data, trained = model.bound(planned.task), planned.data, model.about["attrs"]
    features = trained.get("features", data.features)
    read = [_read(file, features, task, data.train.x, note, seen) for file in files]
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), data.arrays())
    like = jax.eval_shape(lambda rng, data: task.init(trial, rng, data), keys.like(), arrays)
    x_NxF = like_training(task, data, np.concatenate([x for x, _ in read]))
    prediction, probability_NxC = apply(task, trial, model.variables(like), x_NxF)
    if not isinstance(prediction, np.ndarray):
        paths = [path for path, _ in jax.tree.leaves_with_path(prediction)]
        parts = ", ".join(keystr(path, simple=True, separator=".") for path in paths)
        raise UserError(
            f"{files[0]}: the model predicts {type_of(prediction)} ({parts}), "
            "expected an array of one row for each example; in Python, `results.predict` returns it"
        )
    rows = [
        f"{file}:{line}" for file, (_, lines) in zip(files, read, strict=True) for line in lines
    ]
    if probability_NxC is None:
        if n := np.count_nonzero(~np.isfinite(prediction).reshape(len(rows), -1).all(1)):
            note(f"{n:,} of {count(len(rows), 'prediction')} are no finite numbers")
        values = [" ".join(f"{v:.6g}" for v in np.ravel(value)) for value in prediction]
        return [Prediction(row, value, None) for row, value in zip(rows, values, strict=True)]
    best_N = probability_NxC.argmax(1)
    names = trained.get("classes") or tuple(map(str, range(probability_NxC.shape[1])))
    return [
        Prediction(row, names[label], float(probability_C[label]))
        for row, label, probability_C in zip(rows, best_N, probability_NxC, strict=True)
    ]


def _check_header(cells: Cells, width: int) -> None:
    """Refuse numbers in the first row: an example of a file without a header would be left out."""
    names = pd.Series(cells.names, dtype=str)
    if len(numbers := names[pd.to_numeric(names, errors="coerce").notna()]):
        found = f"there are numbers in the header ({', '.join(numbers[:SHOWN])})"
        expected = f"the names of {count(width, 'column')}, with the first example in the row below"
        cells.refuse(0, found, expected)


def _columns(cells: Cells, features: Sequence[str] | None, width: int) -> list[str]:
    """Those of the features; of a model without names for them, all there are."""
    if not features:
        _check_header(cells, width)
    names = [normal(name) for name in features] if features else list(cells.names)
    if features and (twice := first_twice(names)) is not None:
        alike = some_names([name for name in features if normal(name) == twice])
        raise UserError(
            f"{cells.path}: the features {alike} are one name in a CSV file, expected names that "
            "differ in more than spaces around them, or in how a character is written"
        )
    if len(names) != width or not set(names) <= set(cells.names):
        cells.refuse(0, f"the columns are {', '.join(cells.names[:SHOWN])}", cells.wanted)
    return names


def _numbers(cells: Cells, column: pd.Series, dtype: np.dtype) -> np.ndarray:
    """Text as numbers of a type."""
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    if dtype.kind not in "iu":
        numbers = numbers.fillna(column.map(BOOLS))
    cells.check(column, pd.Series(np.isfinite(numbers), column.index), "a number")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        made = numbers.to_numpy().astype(dtype)
        held = np.isfinite(made) if dtype.kind == "f" else made == numbers
    what = "a whole number" if dtype.kind in "iu" else "a number"
    cells.check(column, pd.Series(held, column.index), f"{what} that {dtype} holds, as trained on")
    return made


def _read(
    file: Path, features: Sequence[str] | None, task: Task, like: PyTree,
    note: Callable[[str], None], seen: str = "in training",
) -> tuple[np.ndarray, list[int]]:  # fmt: skip
    """The features of every row, (N, F), from the columns of their names, or all; and its line."""
    if np.ndim(like) != 2:
        raise UserError(f"{file}: this model does not predict rows of a table")
    width = np.shape(like)[1]
    by_name = f"the columns {', '.join(features)}, each once" if features else ""
    cells = Cells(file, by_name or f"{count(width, 'column')} of numbers")
    names = _columns(cells, features, width)
    table = cells.table(names)
    if not features:
        note(f"{file}: the model knows no names: its inputs are {', '.join(names)}, in this order")
    dtype = input_dtype(task, np.dtype(like.dtype))
    made = np.stack([_numbers(cells, table[name], dtype) for name in names], axis=1)
    if far := _far_outside(names, made, like, seen):
        note(
            f"{file}: values far outside of those {seen}: {far}; if the sweep's file scales "
            "its examples, scale rows likewise"
        )
    return made, cells.lines[1:]


def _far_outside(
    names: Sequence[str], x_NxF: np.ndarray, seen_MxF: np.ndarray, seen: str = "in training"
) -> str:
    """In which columns rows lie outside of the range seen by more than its width; or "".

    Of a narrow range, such as that of a constant, by more than a thousandth of its values, too.
    """
    low_F, high_F = seen_MxF.min(0).astype(float), seen_MxF.max(0).astype(float)
    largest_F = np.maximum(np.abs(low_F), np.abs(high_F))
    width_F = np.maximum(high_F - low_F, NARROW * largest_F)
    far_NxF = (x_NxF < low_F - width_F) | (x_NxF > high_F + width_F)
    said = [
        f"{names[i]} in {far_NxF[:, i].sum():,} of {count(len(x_NxF), 'row')} ("
        f"{_range(x_NxF[:, i])}, {seen} {_range(seen_MxF[:, i])})"
        for i in np.flatnonzero(far_NxF.any(0)).tolist()
    ]
    more = f"; and {count(len(said) - FAR, 'more column')}" if len(said) > FAR else ""
    return "; ".join(said[:FAR]) + more


def _range(values: np.ndarray) -> str:
    low, high = number(float(values.min())), number(float(values.max()))
    return low if low == high else f"{low} to {high}"
