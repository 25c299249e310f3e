"""What the trials of one program have measured so far, epoch by epoch."""

import jax
import numpy as np

from jaxexp.execution.rules import RUNNING
from jaxexp.planning.programs import Program
from jaxexp.training import batching, carry
from jaxexp.training.carry import EpochRecord
from jaxexp.training.task import Arrays, Task


class History:
    """The records of the finished epochs, (T, ...) each; of a stopped trial, its last repeated."""

    def __init__(self, program: Program, task: Task, arrays: Arrays) -> None:
        """No epoch is finished yet."""
        self.epochs: list[EpochRecord] = []
        self._task, self._trials = task, len(program.trials)
        n_and_size = [
            (batching.training_examples(arrays, trial), trial.batch_size)
            for trial in program.trials
        ]
        self._n_and_size_Tx2 = np.array(n_and_size)
        self._values: dict[tuple[str, str], list[np.ndarray]] = {}  # (T,) by epoch, once asked for

    def begin(self, stacked: EpochRecord | None = None, epochs: int = 0) -> None:
        """Hold so many epochs, `stacked` as (T, epochs, ...), and no others."""
        self.epochs, self._values = [], {}
        for epoch in range(epochs):
            self.epochs.append(jax.tree.map(lambda a: a[:, epoch], stacked))  # noqa: B023

    def add(self, record: EpochRecord, places: np.ndarray) -> None:
        """Add an epoch, of the trials at these places alone, (A, ...)."""
        if len(places) < self._trials:
            last = self.epochs[-1]
            record = jax.tree.map(lambda old, rows: _with_rows(old, places, rows), last, record)
        self.epochs.append(record)

    def stacked(self) -> EpochRecord | None:
        """All epochs as one record, (T, E, ...); None where there is none."""
        if not self.epochs:
            return None
        made: EpochRecord = jax.tree.map(lambda *a: np.stack(a, axis=1), *self.epochs)
        return made

    def values(self, metric: str, split: str) -> np.ndarray:
        """What was measured, (T, epochs)."""
        key = metric, "" if metric.startswith(RUNNING) else split
        own = self._values.setdefault(key, [])
        own += [self._measured(metric, split, record) for record in self.epochs[len(own) :]]
        return np.stack(own, axis=1) if own else np.zeros((self._trials, 0))

    def _measured(self, metric: str, split: str, record: EpochRecord) -> np.ndarray:
        """What was measured at the end of, or during, an epoch, (T,)."""
        name = metric.removeprefix(RUNNING)
        if metric == f"{RUNNING}loss":
            return self._running_loss(record)
        sums = record.running if name != metric else record.splits[split]
        own = jax.tree.map(lambda a: a[:, None], {name: sums[name]})
        return carry.values(self._task, own)[name][:, 0]

    def _running_loss(self, record: EpochRecord) -> np.ndarray:
        """The mean loss of an epoch's steps, (T,): by examples and batch size of each trial."""
        loss, weight = record.step_loss_S, record.step_weight_S
        loss_T = np.zeros(self._trials, np.float32)
        for n, size in np.unique(self._n_and_size_Tx2, axis=0).tolist():
            own = (self._n_and_size_Tx2 == (n, size)).all(1)
            weight_S = None if weight is None else np.asarray(weight)[own]
            loss_T[own] = carry.running_loss(size, np.asarray(loss)[own], weight_S, n)
        return loss_T


def _with_rows(old: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    made = old.copy()
    made[places] = rows
    return made
