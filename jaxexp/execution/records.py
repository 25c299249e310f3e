"""What a trial leaves behind, cut out of what its program has recorded."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import numpy as np

from jaxexp.base.batches import steps_per_epoch
from jaxexp.execution.rules import Change
from jaxexp.planning.programs import Program
from jaxexp.spec.trial import Trial, with_values
from jaxexp.spec.values import short
from jaxexp.training import batching, carry
from jaxexp.training.carry import EpochRecord, TrainState
from jaxexp.training.task import Arrays, Task, Variables
from jaxexp.training.trees import PyTree

Number: TypeAlias = bool | int | float | np.generic


@dataclass
class TrialRecord:
    """What one trial leaves behind: E epochs, S steps each, L layers."""

    trial: Trial
    metrics: dict[str, dict[str, np.ndarray]]  # by split, by metric: (E,), at the epochs' ends
    running: dict[str, np.ndarray]  # by metric: (E,), during the epochs, in training mode
    step_loss: np.ndarray  # (E * S,)
    gradient_norms: np.ndarray | None  # (E, L)
    predictions: dict[str, np.ndarray]
    variables: Variables | None
    seconds: float  # its share, by its work, of the device-seconds of its program's training
    compile_seconds: float  # its share of its program's compilation
    # After which these are its variables; 0: after the last one, as none was better than another;
    # -1: after the last one, as no rule keeps the best.
    best_epoch: int = -1
    # After which epochs it went on as a copy of which trial, with which hyperparameters.
    changes: dict[int, tuple[Trial, dict[str, Number]]] = field(default_factory=dict)

    @property
    def final(self) -> Trial:
        """The trial with the hyperparameters of the epoch after which these are its variables."""
        last = self.best_epoch if self.best_epoch > 0 else len(self.running["loss"])
        values: dict[str, Number] = {}
        for epoch, (_, changed) in sorted(self.changes.items()):
            values |= changed if epoch < last else {}
        own = self.trial
        return with_values(own, **{name: own.convert(name, v) for name, v in values.items()})

    @property
    def diverged_step(self) -> int:
        """The step, from 1, after which the loss was not finite any more; 0 if it is in the end.

        It is where an epoch has a step with a finite loss, and ends with one on every split. Where
        the last step of an epoch has one, and its evaluation has not, it is that step.
        """
        epochs = len(self.running["loss"])
        finite_ExS = np.isfinite(self.step_loss).reshape(epochs, -1)
        losses = [metrics["loss"] for metrics in self.metrics.values()]
        finite_E = finite_ExS.any(1) & np.isfinite(losses).all(0)
        first = _finite_until(finite_E)
        if first == epochs:
            return 0
        steps = len(finite_ExS[first])
        return first * steps + min(_finite_until(finite_ExS[first]) + 1, steps)

    @property
    def diverged_epoch(self) -> int:
        """The epoch, from 1, of that step; 0 if the loss is finite in the end."""
        epochs = len(self.running["loss"])
        return -(-self.diverged_step // (len(self.step_loss) // epochs))


def _finite_until(finite: np.ndarray) -> int:
    """The number of places up to the last that is True."""
    return int(np.flatnonzero(finite)[-1]) + 1 if finite.any() else 0


@dataclass
class End:
    """Trials of a program after the epoch that is their last: (k, ...) each."""

    places: np.ndarray  # (k,) in the program, ascending
    predictions: dict[str, np.ndarray]
    variables: Variables
    best_epoch: np.ndarray  # (k,) as of `TrialRecord`


@dataclass(frozen=True)
class Snapshot:
    """All that a program needs to resume, on the host.

    A of its T trials still train. Arrays are without the lanes that fill up the batch.
    """

    epoch: int  # epochs finished
    step: int  # steps done of the next one
    batch: int  # batches evaluated of it
    chunk: int
    seconds: float
    compile_seconds: float
    settled: int  # the epoch after which it was last decided what becomes of the trials
    lanes: int  # of the batch
    places: np.ndarray  # (A,) of those that still train, ascending
    stopped: np.ndarray  # (T,) the epoch after which each was stopped, 0 for none
    state: TrainState | None  # (A, ...); None when no trial is left
    record: EpochRecord | None  # (A, ...) of the epoch under way
    best: Variables | None  # (A, ...) where the best are kept
    best_epoch: np.ndarray  # (T,) of which they are; 0 where there is none yet, -1 if none is kept
    history: EpochRecord | None  # of the finished epochs, (T, E, ...); once stopped, repeated
    ends: dict[int, End]
    values: dict[str, np.ndarray]  # (T,) of hyperparameters that were changed
    changes: dict[int, Change]  # by epoch, (T,) each


def make_records(
    program: Program, task: Task, data: Arrays, history: EpochRecord, ends: Mapping[int, End],
    stopped_T: np.ndarray, changes: Mapping[int, Change], seconds: float, compile_seconds: float,
) -> list[TrialRecord]:  # fmt: skip
    """Of every member of a program.

    `history` is (T, E, ...), `ends` is by epochs trained, `data` are the arrays of the run,
    `stopped_T` the epoch after which a trial was stopped, or 0.
    """
    running = carry.values(task, history.running)
    metrics = {split: carry.values(task, sums) for split, sums in history.splits.items()}
    lengths = [
        min(trial.epochs, int(stopped_T[place]) or trial.epochs) for trial, place in program.members
    ]
    works = [
        share * length / trial.epochs
        for (trial, _), share, length in zip(
            program.members, program.estimate.shares, lengths, strict=True
        )
    ]
    device_seconds = seconds * len(program.devices)
    made = []
    for (trial, place), length, work in zip(program.members, lengths, works, strict=True):
        own = jax.tree.map(lambda a: a[place, :length], (history, running, metrics))  # noqa: B023
        end = ends[length]
        row = int(np.searchsorted(end.places, place))
        variables, predictions = jax.tree.map(
            lambda a: a[row],  # noqa: B023
            (end.variables, end.predictions),
        )
        record = _record(program, task, data, trial, own, variables)
        made.append(
            dataclasses.replace(
                record,
                predictions=predictions,
                seconds=device_seconds * work / (sum(works) or 1),
                compile_seconds=compile_seconds / len(program.members),
                best_epoch=int(end.best_epoch[row]),
                changes={
                    epoch: (
                        program.trials[change.source[place]],
                        {name: short_form(own_T[place]) for name, own_T in change.values.items()},
                    )
                    for epoch, change in changes.items()
                    if epoch < length
                },
            )
        )
    return made


def short_form(value: Number) -> Number:
    """One form of the numbers of spaces, in few digits, and of those that trained, in float32."""
    return short(float(value)) if isinstance(value, float | np.floating) else value


def _record(
    program: Program, task: Task, data: Arrays, trial: Trial, own: PyTree, variables: PyTree
) -> TrialRecord:
    """Of one trial, padding left out."""
    history, running, metrics = own
    examples = batching.training_examples(data, trial)
    steps = steps_per_epoch(examples, trial.batch_size)
    norms = history.norms_L
    if program.spec.pads_model:
        variables, norms = task.crop(trial, variables, norms)
    loss = carry.running_loss(
        trial.batch_size, history.step_loss_S, history.step_weight_S, examples
    )
    return TrialRecord(
        trial=trial,
        metrics={split: metrics[split] for split in metrics},
        running={"loss": loss, **running},
        step_loss=history.step_loss_S[:, :steps].reshape(-1),
        gradient_norms=norms,
        predictions={},
        variables=variables,
        seconds=0.0,
        compile_seconds=0.0,
    )
