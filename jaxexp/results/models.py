"""Trained models of a run: one Orbax checkpoint each, which says what the model is.

They lie under `models/SWEEP/TRIAL_ID/`; each appears whole or not at all.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jaxexp.base.errors import UserError
from jaxexp.execution.records import TrialRecord
from jaxexp.training.step import PyTree


@dataclass(frozen=True)
class Model:
    """A saved model, its arrays not yet read.

    `about` holds "sweep", "trial" (its hyperparameters), "accuracy" by split after the last epoch,
    "diverged", and the attributes of the problem that it was trained on, "problem".
    """

    path: Path
    about: Mapping[str, Any]

    def load(self) -> tuple[PyTree, PyTree]:
        """Parameters and state; raises UserError if they cannot be read."""
        try:
            with _checkpointer() as checkpointer:
                found = checkpointer.restore(
                    self.path,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(), state=ocp.args.StandardRestore()
                    ),
                )
        except Exception as error:  # whatever a damaged file makes Orbax raise
            raise _broken(self.path, error) from error
        return found["params"], found["state"]


def save(folder: Path, sweep: str, record: TrialRecord, attrs: Mapping[str, Any]) -> None:
    """Save one trial's parameters and state, with what they are, below `folder`.

    Raises UserError if they cannot be written.
    """
    last = {split: metrics["accuracy"][-1] for split, metrics in record.metrics.items()}
    about = {
        "sweep": sweep,
        "trial": record.trial.values(),
        "accuracy": {split: float(accuracy) for split, accuracy in last.items()},
        "diverged": record.diverged_epoch > 0,
        "problem": json.loads(json.dumps(dict(attrs), default=float)),
    }
    path = folder.absolute() / sweep / record.trial.id
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(
                path,
                force=True,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(record.params),
                    state=ocp.args.StandardSave(record.state),
                    about=ocp.args.JsonSave(about),
                ),
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: the model could not be written ({reason})") from error


def best(folder: Path, sweep: str | None = None) -> Model:
    """The saved model of the highest validation accuracy, of one sweep or of all.

    Raises UserError if there is none.
    """
    found = [_describe(path) for path in sorted(folder.glob(f"{sweep or '*'}/*")) if path.is_dir()]
    sweeps = sorted({path.name for path in folder.glob("*") if any(path.iterdir())})
    if not found:
        there = f"there are models of {', '.join(sweeps)}" if sweeps else "the run has kept none"
        raise UserError(f"{folder}: no models{f' of sweep {sweep!r}' if sweep else ''}; {there}")
    sound = [model for model in found if not model.about["diverged"]]
    if not sound:
        raise UserError(f"{folder}: every model in it diverged while it was trained")
    return max(sound, key=lambda model: model.about["accuracy"]["validation"])


def _describe(path: Path) -> Model:
    try:
        with _checkpointer() as checkpointer:
            args = ocp.args.Composite(about=ocp.args.JsonRestore())
            about = checkpointer.restore(path, args=args)["about"]
        float(about["accuracy"]["validation"]), bool(about["diverged"]), dict(about["problem"])
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise _broken(path, error) from error
    return Model(path, about)


def _checkpointer() -> ocp.Checkpointer:
    logging.getLogger("absl").setLevel(logging.ERROR)  # failures are raised
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _broken(path: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(f"{path}: not a model that jaxexp has saved, or damaged ({reason})")
