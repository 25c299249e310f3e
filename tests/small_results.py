"""Results without training: curves that tests know, in the layout and the folders of real runs."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import jaxexp as jx
from jaxexp.cli import main as cli
from jaxexp.cli.command import Command
from jaxexp.cli.rundir import RunDirectory
from jaxexp.execution.records import TrialRecord
from jaxexp.results.dataset import to_dataset
from jaxexp.results.facts import host_facts

SWEEP = jx.Sweep(
    jx.MLPTrial(epochs=3, depth=1, batch_size=4),
    {"learning_rate": [1.0, 1e-2, 1e-5], "batch_norm": [True, False]},
    name="rates",
)
DATA = jx.arrays(np.arange(16.0).reshape(-1, 1), [0, 1] * 8, validation=0.25)


def loss(trial: jx.Trial, epoch: int, split: str) -> float:
    """Best at a rate of 0.01 with batch norm: 0.04 in the third epoch on the validation split."""
    gap = {1.0: 1.0, 1e-2: 0.0, 1e-5: 0.5}[trial.learning_rate] + 0.02 * (not trial.batch_norm)
    return gap + 0.12 / epoch + 0.01 * (split == "train")


def accuracy(trial: jx.Trial, epoch: int, split: str) -> float:
    """The other way round: of all, 1e-5 is the most accurate."""
    return {1.0: 0.5, 1e-2: 0.75, 1e-5: 0.875}[trial.learning_rate] + epoch / 100


def results(
    sweep: jx.Sweep = SWEEP, *, diverging: float | None = 1.0, better: float = 0.0, **attrs: Any
) -> xr.Dataset:
    """Trials at a rate of `diverging` have no finite loss from the second epoch on."""
    task = jx.MLPClassification().bind(DATA)
    records = {}
    for trial in sweep.trials():
        epochs = range(1, trial.epochs + 1)
        nan = trial.learning_rate == diverging
        metrics = {
            split: {
                "loss": np.array(
                    [np.nan if nan and e > 1 else loss(trial, e, split) - better for e in epochs]
                ),
                "accuracy": np.array([accuracy(trial, e, split) for e in epochs]),
            }
            for split in DATA.splits
        }
        records[trial] = TrialRecord(
            trial=trial,
            metrics=metrics,
            running={name: np.ones(trial.epochs) for name in ("loss", "accuracy")},
            step_loss=np.repeat(metrics["train"]["loss"], 3),
            gradient_norms=None,
            predictions={},
            variables=None,
            seconds=1.0,
            compile_seconds=0.0,
        )
    facts = {**host_facts("made by a test", sweep), **attrs}
    return to_dataset(sweep, records, task, DATA, facts)


def write_run(path: Path, *made: xr.Dataset, finished: bool = True, **changed: Any) -> Path:
    """A run directory that holds these results."""
    names = tuple(ds.attrs["sweep"] for ds in made) or ("rates",)
    command = Command(sweeps=names, title="Made", **changed)
    with RunDirectory.create(path, command.as_json(), force=False) as directory:
        for ds in made:
            directory.save(jx.Sweep(jx.MLPTrial(), name=ds.attrs["sweep"]), ds)
        if finished:
            directory.finish()
    return path


ESTIMATE = """
import jaxexp as jx
import small_results

sweep = jx.Sweep(small_results.SWEEP.base, small_results.SWEEP.axes)

def estimate(sweep, inputs):
    return small_results.results(sweep)
"""


def write_sweep(path: Path, more: str = "") -> Path:
    """A sweep file whose results are there at once."""
    path.write_text(ESTIMATE + more)
    return path


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """The command line in this process: exit status, standard output and error."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.main(list(map(str, arguments)))
    assert "Traceback" not in err.getvalue()
    return int(stopped.value.code or 0), out.getvalue(), err.getvalue()


def words(text: str) -> str:
    """One space between words, whatever the lines."""
    return " ".join(text.split())


def lines_with(text: str, *all_of: str) -> list[str]:
    """The lines of a table that hold all of these words."""
    return [line for line in text.splitlines() if all(word in line for word in all_of)]


def forget(path: Path, **changed: Any) -> None:
    """Change what `run.json` says."""
    file = path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
