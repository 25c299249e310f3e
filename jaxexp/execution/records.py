"""What a trial leaves behind, cut out of what its program has recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxexp.planning.plan import Program
from jaxexp.spec.trial import Trial
from jaxexp.training import step as train
from jaxexp.training.step import PyTree, Task


@dataclass
class TrialRecord:
    """What one trial leaves behind: E epochs, S steps each, L layers."""

    trial: Trial
    metrics: dict[str, dict[str, np.ndarray]]  # by split, by metric: (E,)
    step_loss: np.ndarray  # (E * S,)
    gradient_norms: np.ndarray | None  # (E, L)
    predictions: dict[str, np.ndarray]
    params: PyTree
    state: PyTree
    seconds: float  # its share of its program's training time (wall clock)
    compile_seconds: float  # its share of its program's compilation

    @property
    def diverged_step(self) -> int:
        """The step, from 1, after which a loss was not finite any more; 0 if none was.

        Where all losses of the steps of an epoch are finite, and one of its evaluation is not, it
        is the last step of that epoch.
        """
        epochs = len(self.metrics["train"]["loss"])
        steps = len(self.step_loss) // epochs
        broken = ~np.isfinite(self.step_loss.reshape(epochs, steps))
        for metrics in self.metrics.values():
            broken[:, -1] |= ~np.isfinite(metrics["loss"])
        return int(broken.argmax()) + 1 if broken.any() else 0

    @property
    def diverged_epoch(self) -> int:
        """The epoch, from 1, of that step; 0 if no loss left the finite numbers."""
        epochs = len(self.metrics["train"]["loss"])
        return -(-self.diverged_step // (len(self.step_loss) // epochs))


@dataclass
class End:
    """A program's trials at the end of an epoch that is the last of some: (T, ...) each."""

    predictions: dict[str, np.ndarray]
    params: PyTree
    state: PyTree


@dataclass(frozen=True)
class Snapshot:
    """All that a program needs to go on, on the host.

    Arrays are (T, ...), without the trials that fill up the batch.
    """

    epoch: int  # epochs finished
    step: int  # steps done of the next one
    batch: int  # batches evaluated of it
    at_once: int
    seconds: float
    compile_seconds: float
    state: PyTree | None  # None when all epochs are finished
    gathered: PyTree | None  # of the epoch under way
    history: PyTree | None  # what the finished epochs have gathered, (T, E, ...)
    ends: dict[int, End]


def make_records(
    program: Program, task: Task, counts: Mapping[str, int], history: Any,
    ends: Mapping[int, End], seconds: float, compile_seconds: float,
) -> list[TrialRecord]:  # fmt: skip
    """Of every member of a program.

    `history` is (T, E, ...), `ends` is by epochs trained, `counts` the examples of each split.
    """
    share = 1 / len(program.members)
    return [
        _record(
            program, task, counts, trial,
            jax.tree.map(lambda a: a[place, : trial.epochs], history),  # noqa: B023
            jax.tree.map(lambda a: a[place], vars(ends[trial.epochs])),  # noqa: B023
            (seconds * share, compile_seconds * share),
        )
        for trial, place in program.members
    ]  # fmt: skip


def _record(
    program: Program, task: Task, counts: Mapping[str, int], trial: Trial, own: Any,
    end: dict[str, PyTree], times: tuple[float, float],
) -> TrialRecord:  # fmt: skip
    """Of one trial, padding left out."""
    steps = train.steps_per_epoch(counts["train"], trial.batch_size)
    params, state, norms = end["params"], end["state"], own.norms_L
    if program.shape.pads_model:
        params, state, norms = task.crop(trial, params, state, norms)
    return TrialRecord(
        trial, train.means(trial, own, counts), own.steps["loss"][:, :steps].reshape(-1), norms,
        end["predictions"], params, state, *times,
    )  # fmt: skip
