"""A task for the rings of `conftest`, and what trials leave behind, to be compared."""

import contextlib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxexp.api import Inspector, Problem
from jaxexp.execution.driver import stream
from jaxexp.execution.listeners import Progress
from jaxexp.execution.records import TrialRecord
from jaxexp.nn.classification import MLPClassification
from jaxexp.planning import loads
from jaxexp.planning.cost import Workload
from jaxexp.planning.plan import plan
from jaxexp.planning.programs import Plan
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.training.data import Data
from jaxexp.training.task import Task


def execute(
    plan: Plan, task: Task, data: Data, devices: Sequence[jax.Device],
    progress: Progress | None = None,
) -> dict[Trial, TrialRecord]:  # fmt: skip
    """Train every trial of the plan and return all records; see `stream`."""
    with contextlib.closing(stream(plan, task, data, devices, progress)) as batches:
        return {record.trial: record for records in batches for record in records}


@dataclass(frozen=True)
class RegionTask(MLPClassification):
    """Keeps the class of each point of a map."""

    prediction_dims = types.MappingProxyType({"region": ("latitude", "longitude")})

    def predictions(self, trial, variables, data):
        logits_NxC = self.predict(trial, variables, data["map"])
        return {"region": logits_NxC.argmax(1).astype(jnp.int16)}


def workload(task: Task, data: Data) -> Workload:
    """As `jaxexp.plan` makes it, whatever the trials."""
    return Inspector(task, data, []).workload([])


# How trials of one program may train: one after another or not, and in which microbatches.
WAYS = {
    "side by side": (False, None),
    "one by one": (True, None),
    "in microbatches": (False, 24),
    "one by one in microbatches": (True, 24),
}


def force(patch: pytest.MonkeyPatch, way: str) -> None:
    """Have planners choose a way wherever it is possible, whatever it costs."""
    one_by_one, microbatch = WAYS[way]

    def chosen(load: loads.Load, *arguments: Any, **options: Any) -> loads.Best:
        found = loads.best(load, *arguments, **options)
        parts = bool(load.apart) and load.smallest < load.largest
        return found._replace(
            way=np.asarray(loads.WAYS.index(microbatch if parts else None)),
            one_by_one=np.asarray(one_by_one and bool(load.differs)),
        )

    patch.setattr("jaxexp.planning.plan.best", chosen)


def planned(sweeps: list[Sweep], problem: Problem, devices, mode: str = "exact") -> Plan:
    """A plan for so many devices; of sweeps that need no names."""
    named = [Sweep(s.base, s.axes, record=s.record, timed=s.timed, name=str(i))
             for i, s in enumerate(sweeps)]  # fmt: skip
    return plan(named, len(devices), workload(*problem), mode=mode)


def train(
    sweeps: list[Sweep], problem: Problem, devices, mode: str = "exact",
    progress: Progress | None = None,
) -> dict[Trial, TrialRecord]:  # fmt: skip
    return execute(planned(sweeps, problem, devices, mode), *problem, devices, progress)


def results(record: TrialRecord):
    """All that a trial leaves behind but its times."""
    return {
        "metrics": record.metrics,
        "running": record.running,
        "step_loss": record.step_loss,
        "gradient_norms": record.gradient_norms,
        "predictions": record.predictions,
        "variables": record.variables,
    }


def assert_close(record: TrialRecord, expected: TrialRecord, rtol=1e-5, atol=5e-6) -> None:
    """Equal but for rounding.

    Not bit for bit: XLA vectorizes a batch of 10 otherwise than one of 3 or 1, with other sums of
    products, and the last bit of a loss differs (2e-7). In 21 steps that grows to no more than
    4e-7. Two trials of a sweep differ by 1e-3 and more.
    """
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        ),
        results(record),
        results(expected),
    )


def assert_same_bits(record: TrialRecord, expected: TrialRecord) -> None:
    jax.tree.map(np.testing.assert_array_equal, results(record), results(expected))
