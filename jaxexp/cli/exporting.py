"""Results as tables for other programs: a row for each trial, or for each epoch and split."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.files import whole_file
from jaxexp.results import select
from jaxexp.spec.values import text


def rows(results: Mapping[str, xr.Dataset], *, final: bool) -> pd.DataFrame:
    """The results as rows: of each trial, epoch and split; or of each trial, if `final`.

    Both begin with `sweep`, `trial_id` and every hyperparameter: one that a population changed as
    it was in that epoch, or in the end, and as `initial_learning_rate` what the trial began with.
    Then come `epoch`, `split` and each metric; or `epochs_trained`, `diverged_epoch` and
    `diverged_step` (0: never), `seconds` and each metric after the last epoch, as
    `validation_loss`. Epochs that a trial did not train have no row; a metric is missing from the
    epoch on in which its trial diverged.
    """
    trials = [_trials(ds) for ds in results.values()]
    first = {name for own in trials for name in own}
    made = _final_rows if final else _rows
    parts = [made(ds, own) for ds, own in zip(results.values(), trials, strict=True)]
    table = pd.concat(parts, ignore_index=True)
    return table[sorted(table, key=lambda name: name not in first)]


def _trials(ds: xr.Dataset) -> pd.DataFrame:
    own = select.values_by_trial(ds)
    began = select.initial_by_trial(ds)
    base = json.loads(ds.attrs.get("base", "{}"))
    ids = select.by_trial(ds, ds["trial_id"]).astype(str)
    columns: dict[str, object] = {"sweep": ds.attrs.get("sweep", "sweep"), "trial_id": ids}
    taken = {"sweep", "epoch", "split", *select.metrics(ds), *began} & {*base, *own}
    if taken:
        raise UserError(f"hyperparameter {min(taken)!r}: an exported column has this name already")
    for name, value in {**base, **own, **began}.items():
        columns[name] = value
    return pd.DataFrame(columns, index=pd.RangeIndex(select.size(ds)))


def _rows(ds: xr.Dataset, trials: pd.DataFrame) -> pd.DataFrame:
    epochs = select.by_trial(ds, ds["epochs_trained"]).astype(int)
    order, splits = select.axes(ds), select.splits(ds)
    repeat = epochs * len(splits)
    made = trials.loc[np.repeat(trials.index, repeat)].reset_index(drop=True)
    made["epoch"] = np.concatenate([np.repeat(np.arange(1, e + 1), len(splits)) for e in epochs])
    made["split"] = np.concatenate([np.tile(np.array(splits, object), e) for e in epochs])

    def by_row(values: xr.DataArray) -> np.ndarray:
        laid = values.broadcast_like(ds["loss"]).transpose(*order, "epoch", "split").values
        by_trial = laid.reshape(len(trials), ds.sizes["epoch"], len(splits))
        return np.concatenate([v[:e].reshape(-1) for v, e in zip(by_trial, epochs, strict=True)])

    for name in select.hyperparameters(ds):
        if select.changed(ds, name):
            made[name] = by_row(ds[f"own_{name}"])
    for metric in select.metrics(ds):
        made[metric] = by_row(select.until_divergence(ds, metric)).astype(float)
    return made


def _final_rows(ds: xr.Dataset, trials: pd.DataFrame) -> pd.DataFrame:
    made = trials.copy()
    for name in ("epochs_trained", "diverged_epoch", "diverged_step"):
        if name in ds:
            made[name] = select.by_trial(ds, ds[name]).astype(int)
    made["seconds"] = select.by_trial(ds, ds["seconds"]).astype(float)
    for metric in select.metrics(ds):
        values = select.final(ds, metric)
        for split in select.splits(ds):
            own = select.by_trial(ds, values.sel(split=split))
            made[f"{split}_{metric}"] = own.astype(float)
    return made


def export(table: pd.DataFrame, file: Path, kind: str) -> None:
    """Write rows as "csv", "parquet" or "json" (a list of objects): a file whole or not at all.

    Raises UserError if the file cannot be written, or for Parquet if pyarrow is not installed.
    """
    if not file.parent.is_dir():
        raise UserError(f"{file}: cannot be written (there is no folder {file.parent})")
    try:
        with _opened(file) as out:
            _write(table, out, kind)
    except ImportError as error:
        raise UserError(
            "--parquet: needs pyarrow, which is not installed: pip install 'jaxexp[export]'"
        ) from error
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error


def is_standard_output(file: Path) -> bool:
    """Whether a file, such as /dev/stdout, is where this process prints."""
    try:
        return os.path.samestat(file.stat(), os.fstat(1))
    except OSError:
        return False


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """Standard output and pipes are written as they are, files whole or not at all."""
    if is_standard_output(file):  # opening it anew would begin at its start
        with os.fdopen(os.dup(1), "wb") as out:
            yield out
    elif file.exists() and not file.is_file():
        with file.open("wb") as out:
            yield out
    else:
        with whole_file(file.resolve()) as out:
            yield out


def _write(table: pd.DataFrame, out: BinaryIO, kind: str) -> None:
    if kind == "csv":
        table.to_csv(out, index=False)
    elif kind == "json":
        finite = table.replace([np.inf, -np.inf], np.nan)  # JSON has no other numbers
        rows = finite.astype(object).where(finite.notna(), None).to_dict("records")
        out.write((json.dumps(rows, indent=1) + "\n").encode())
    else:
        _uniform(table).to_parquet(out, index=False, engine="pyarrow")


def _uniform(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each: widths of one sweep may be numbers, of another text."""
    made = table.copy()
    for name in made.columns:
        types = {type(value) for value in made[name].dropna()} if made[name].dtype == "O" else set()
        if len(types) > 1:
            made[name] = [None if pd.isna(v) else text(v) for v in made[name]]
    return made
