"""A sweep's results as runs of TensorBoard, MLflow or Weights & Biases, one for each trial.

Every run has the trial's hyperparameters, its metrics by epoch and split up to where it diverged,
and its final metrics. A library is needed only if its runs are asked for, and nothing leaves this
machine.
"""

import importlib.util
import json
import logging
import math
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest
from jaxexp.results import select

INSTALL = "pip install 'jaxexp[log]'"
BATCH = 1000  # metrics that MLflow takes in one call
PARAMETERS = 100  # hyperparameters that it takes in one call
T = TypeVar("T")


@dataclass(frozen=True)
class LoggedTrial:
    """What is logged for one trial.

    Attributes:
        name: its label, "learning rate 0.01, seed 3".
        id: sixteen hexadecimal digits.
        hyperparameters: all of them, by name. If a population changed one, this is its final
            value, and its first one is under a name such as "initial_learning_rate".
        curves: the epochs (from 1) and values, by names such as "validation/loss".
        final: the final values, by the same names; empty if the trial diverged.
        status: "finished", or when it diverged.
    """

    name: str
    id: str
    hyperparameters: dict[str, bool | int | float | str]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    final: dict[str, float]
    status: str


def trials(ds: xr.Dataset) -> Iterator[LoggedTrial]:
    """Every trial of a sweep's results."""
    base, names = json.loads(ds.attrs.get("base", "{}")), select.hyperparameters(ds)
    values = select.values_by_trial(ds) | select.initial_by_trial(ds)
    for place in range(select.size(ds)):
        _, point = select.point(ds, place)
        status, curves, final = select.status(point), {}, {}
        for metric in select.metrics(ds):
            values_ExS = select.until_divergence(point, metric).transpose("epoch", "split").values
            for split, values_E in zip(select.splits(ds), values_ExS.T, strict=True):
                there = np.isfinite(values_E)
                curves[f"{split}/{metric}"] = (ds["epoch"].values[there], values_E[there])
                last = float(select.final(point, metric).sel(split=split))
                if status == "finished" and math.isfinite(last):
                    final[f"{split}/{metric}"] = last
        yield LoggedTrial(
            name=select.label(point, names),
            id=str(point["trial_id"].item()),
            hyperparameters=base | {name: own[place].item() for name, own in values.items()},
            curves=curves,
            final=final,
            status=status,
        )


def check(kinds: Sequence[str]) -> None:
    """Raise UserError for an unknown kind, or one whose library is not installed."""
    for kind in kinds:
        if kind not in WRITERS:
            raise UserError(f"--log {kind!r}: expected one of {', '.join(WRITERS)}")
        library = LIBRARIES[kind]
        if importlib.util.find_spec(library) is None:
            raise UserError(f"--log {kind}: needs {library}, which is not installed: {INSTALL}")


def write(kind: str, ds: xr.Dataset, folder: Path) -> None:
    """Write a sweep's trials into a folder of this kind; a repeated call does nothing.

    Raises UserError if the library cannot be used, or the files cannot be written.

    >>> write("paper", xr.Dataset(), Path("logs"))
    Traceback (most recent call last):
        ...
    jaxexp.base.errors.UserError: --log 'paper': expected one of tensorboard, mlflow, wandb
    """
    check([kind])
    sweep = str(ds.attrs.get("sweep", "sweep"))
    done = folder / f".written-{_sweep_name(sweep)}"
    content = f"{ds.attrs.get('sweep_id', '')} {ds.attrs.get('started', '')}"
    try:
        if done.is_file() and done.read_text() == content:
            return
        folder.mkdir(parents=True, exist_ok=True)
        WRITERS[kind](sweep, list(trials(ds)), folder)
        done.write_text(content)
    except Exception as error:  # whatever the library raises: the results themselves are saved
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder}: {sweep} could not be written for {kind} ({reason})") from error


def how_to_open(kind: str, folder: Path) -> str:
    """The command that opens what `write` has written into a folder of this kind.

    >>> how_to_open("tensorboard", Path("runs/rates/logs/tensorboard"))
    'tensorboard --logdir runs/rates/logs/tensorboard'
    """
    commands = {
        "tensorboard": f"tensorboard --logdir {shlex.quote(str(folder))}",
        "mlflow": f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{folder}/mlflow.db')}",
        "wandb": f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*",
    }
    return commands[kind]


def _tensorboard(sweep: str, own: Sequence[LoggedTrial], folder: Path) -> None:
    """Event files, in one folder for each trial; the HPARAMS tab shows hyperparameters."""
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    root = folder / _sweep_name(sweep)
    shutil.rmtree(root, ignore_errors=True)
    for trial in own:
        # Two labels may give one folder name; ids tell them apart.
        with SummaryWriter(str(root / f"{_file_name(trial.name)}-{trial.id[:6]}")) as writer:
            for summary in hparams(trial.hyperparameters, trial.final):
                writer.file_writer.add_summary(summary)
            writer.add_text("status", trial.status)
            for name, (epochs, values) in trial.curves.items():
                for epoch, value in zip(epochs.tolist(), values.tolist(), strict=True):
                    writer.add_scalar(name, value, epoch)
            for name, value in trial.final.items():
                writer.add_scalar(f"final/{name}", value, 0)


def _mlflow(sweep: str, own: Sequence[LoggedTrial], folder: Path) -> None:
    """Runs of an experiment named after the sweep, in `mlflow.db`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    for told in ("mlflow", "mlflow.store.db.utils", "alembic"):  # they report every table
        logging.getLogger(told).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name(sweep)
    if experiment is None:
        artifacts = (folder / "artifacts" / _sweep_name(sweep)).resolve().as_uri()
        number = client.create_experiment(sweep, artifact_location=artifacts)
    else:
        number = experiment.experiment_id
        for earlier in client.search_runs([number], max_results=50_000):
            client.delete_run(earlier.info.run_id)
    now = int(time.time() * 1000)
    for trial in own:
        run = client.create_run(number, run_name=trial.name).info.run_id
        parameters = [Param(name, str(v)) for name, v in trial.hyperparameters.items()]
        for part in _parts(parameters, PARAMETERS):
            client.log_batch(run, params=part)
        tags = [RunTag("trial_id", trial.id), RunTag("status", trial.status)]
        client.log_batch(run, tags=tags)
        metrics = [
            Metric(name, value, now, epoch)
            for name, (epochs, values) in trial.curves.items()
            for epoch, value in zip(epochs.tolist(), values.tolist(), strict=True)
        ]
        for batch in _parts(metrics, BATCH):
            client.log_batch(run, metrics=batch)
        finished = "FINISHED" if trial.status == "finished" else "FAILED"
        client.set_terminated(run, status=finished)


def _wandb(sweep: str, own: Sequence[LoggedTrial], folder: Path) -> None:
    """Offline runs in a project named after the sweep; `wandb sync` uploads them if you wish."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    for earlier in (folder / "wandb").glob("offline-run-*"):  # replaced if of this sweep
        if (earlier / "sweep.txt").is_file() and (earlier / "sweep.txt").read_text() == sweep:
            shutil.rmtree(earlier)
    settings = wandb.Settings(
        silent=True, console="off", save_code=False, disable_git=True, disable_code=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
    )  # fmt: skip
    try:
        for trial in own:
            run = wandb.init(
                project=sweep, name=trial.name, config=trial.hyperparameters, mode="offline",
                dir=str(folder), reinit="create_new", settings=settings,
            )  # fmt: skip
            (Path(run.dir).parent / "sweep.txt").write_text(sweep)
            for epoch in sorted({e for es, _ in trial.curves.values() for e in es.tolist()}):
                row = {
                    name: values[epochs == epoch].item()
                    for name, (epochs, values) in trial.curves.items()
                    if epoch in epochs
                }
                run.log(row, step=epoch)
            run.summary.update({**trial.final, "trial_id": trial.id, "status": trial.status})
            run.finish()
    finally:
        wandb.teardown()


def _parts(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _file_name(text: str) -> str:
    """A label as a folder name: "learning_rate_0.01,seed_3"."""
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "_", text.replace(", ", ","))[:120].lstrip(".") or "_"


def _sweep_name(sweep: str) -> str:
    """A sweep's name as a folder name; a digest tells apart names that would become equal."""
    name = _file_name(sweep)
    return name if name == sweep else f"{name}-{digest(sweep)[:6]}"


WRITERS: dict[str, Callable[[str, Sequence[LoggedTrial], Path], None]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
LIBRARIES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
