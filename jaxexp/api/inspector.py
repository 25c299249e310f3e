"""What a task costs and reads, as planning asks it."""

import contextlib
import dataclasses
from collections.abc import Sequence

import jax

from jaxexp.planning import kinds
from jaxexp.planning.cost import Cost, Workload
from jaxexp.spec.trial import Trial
from jaxexp.training import evaluation
from jaxexp.training.data import Data
from jaxexp.training.masks import mixing
from jaxexp.training.task import Inspection, Task
from jaxexp.training.tracing import inspection, predicted_shapes
from jaxexp.training.updates import why_not_padded


class Inspector:
    """What a task costs and reads, found out once for trials that differ in numbers alone."""

    def __init__(self, task: Task, data: Data, trials: Sequence[Trial]) -> None:
        """Nothing is traced until it is asked for."""
        self.task, self.data = task, data
        arrays = data.arrays()
        self._shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
        self._found: dict[tuple[object, ...], Inspection] = {}
        self._costs: dict[tuple[object, ...], Cost] = {}
        self.mixes = mixing(task, data, trials, lambda trial: self(trial).reads)

    def __call__(self, trial: Trial) -> Inspection:
        """What the task costs and reads in this trial."""
        key = kinds.static_key(trial)
        if key not in self._found:
            rest = tuple(part for part in key if part != ("batch_size", trial.batch_size))
            if rest not in self._found:
                self._found[rest] = inspection(self.task, trial, self._shapes)
            self._found[key] = self._found[rest]
        return self._found[key]

    def cost(self, trial: Trial) -> Cost:
        """What it costs; microbatches may be possible though a task says nothing of them."""
        key = kinds.static_key(trial)
        if key not in self._costs:
            own = self(trial).cost
            parts = own.microbatches or not self.mixes(trial).whole
            self._costs[key] = dataclasses.replace(own, microbatches=parts)
        return self._costs[key]

    def predicted(self, trial: Trial) -> dict[str, tuple[int, ...]]:
        """The shape of each of the predictions that it records; empty where they cannot be traced.

        What keeps them from it is told when the program is compiled.
        """
        with contextlib.suppress(Exception):
            return predicted_shapes(self.task, trial, self._shapes)
        return {}

    def workload(self, trials: Sequence[Trial], *, prefixes: bool = True) -> Workload:
        """What training these trials takes, for `planning.plan`; or without any prefixes."""
        data, counts = self.data, self.data.counts
        each = evaluation.evaluated_counts(data)
        sample, evaluated = each["train"], sum(each.values())
        train_bytes = sum(a.nbytes for a in jax.tree.leaves(data.train))
        # What is evaluated of the training examples is a copy, or rows of each fold.
        if data.folds is None:
            copied = train_bytes * sample / counts["train"]
        else:
            copied = 4 * evaluated * data.n_folds
        return Workload(
            examples=counts["train"],
            cost=self.cost,
            evaluated=evaluated,
            splits=len(counts),
            metrics=1 + len(self.task.metrics),
            data_bytes=data.nbytes + evaluated * len(counts) + copied,
            run_length_matters=self._run_length_matters if prefixes else lambda trial: True,
            # Where the batch size is read, that of a program of several would be traced.
            pads_batches=all(
                not (self.mixes(trial).filling or self.mixes(trial).sized)
                and "batch_size" not in self(trial).reads
                for trial in trials
            ),
            pads_sizes=lambda trials: not self.why_not_padded(trials),
        )

    def why_not_padded(self, trials: Sequence[Trial]) -> str:
        """Why trials that are padded to one size might not be updated as alone, or ""."""
        steps = max(map(self.data.steps_of, trials))
        return why_not_padded(self.task, trials, self.data.arrays(), steps)

    def _run_length_matters(self, trial: Trial) -> bool:
        return self.task.optimizer_uses_steps(trial) or "epochs" in self(trial).reads
