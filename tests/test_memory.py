"""The memory that a plan predicts, against the arrays that are there."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from rings import execute, planned

from jaxexp.api import Problem
from jaxexp.execution import trainer
from jaxexp.execution.program import RunningProgram, place
from jaxexp.nn.classification import MLPClassification
from jaxexp.planning.programs import Program
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial
from jaxexp.training.evaluation import with_evaluation

KINDS = {
    "batch norm, norms": {"batch_norm": True, "optimizer": "adamw", "width": 24},
    "a width for each layer": {"width": (48, 32, 16)},
}

LONG = "a width for each layer"
PARAMETERS = [pytest.param(k, marks=[pytest.mark.nightly] * (k == LONG)) for k in KINDS]


@pytest.fixture(scope="module")
def rings(problem) -> Problem:
    """Without a map to predict."""
    return Problem(MLPClassification().bind(problem.data), problem.data)


def programs(problem: Problem, options: dict, *counts: int) -> list[Program]:
    base = MLPTrial(**{"epochs": 2, "depth": 3, "batch_size": 128} | options)
    record = ("gradient_norms",) if base.batch_norm else ()
    made = [
        planned([Sweep(base, {"seed": range(n)}, record=record)], problem, (0, 1), "auto")
        for n in counts
    ]
    return [program for each in made for program in each.programs]


def size(tree) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(tree))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_memory_on_the_devices(rings, devices, kind):
    """What more trials add is, within a fifth, what XLA says that a call takes."""
    few, many = programs(rings, KINDS[kind], 160, 1600)
    assert few.filled() > 2 * few.chunk  # large grids, which are trained in chunks

    def takes(program: Program) -> tuple[int, int]:
        mesh = Mesh(devices[:2], "trials")
        arrays = place(with_evaluation(rings.data), mesh)
        run = RunningProgram(program, rings.task, mesh, arrays)
        run.start()
        told = run.compiled.steps.memory_analysis()
        given = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
        return 2 * (given + told.temp_size_in_bytes), size(run.state)

    (few_bytes, few_state), (many_bytes, many_state) = takes(few), takes(many)
    predicted = many.estimate.device_bytes - few.estimate.device_bytes
    np.testing.assert_allclose(predicted, many_bytes - few_bytes, rtol=0.2)
    state = (many.estimate.state_bytes - few.estimate.state_bytes) / 2  # one, not two in a call
    np.testing.assert_allclose(state, many_state - few_state, rtol=0.05)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_memory_of_the_records(rings, devices, monkeypatch, kind):
    """As many copies as there are of the arrays that an execution brings home."""
    brought = {}
    make = trainer.make_records

    def spy(program, task, examples, history, ends, *times):
        brought["history"] = size(history)
        brought["ends"] = size([end.variables.params for end in ends.values()])
        return make(program, task, examples, history, ends, *times)

    monkeypatch.setattr(trainer, "make_records", spy)
    many_steps = {"epochs": 20, "batch_size": 8}  # so that their records outweigh the parameters
    [program] = programs(rings, KINDS[kind] | many_steps, 5)
    sweeps = [Sweep(trial, record=program.record) for trial in program.trials]
    made = planned(sweeps, rings, devices[:2], "auto")
    execute(made, *rings, devices[:2])
    expected = 3 * brought["history"] + brought["ends"]
    np.testing.assert_allclose(program.estimate.record_bytes, expected, rtol=0.05)


@pytest.mark.nightly
def test_the_data_are_placed_once_on_each_device(rings, devices, monkeypatch):
    """However many programs and streams there are, and on several devices at once."""
    placed, put = [], jax.device_put

    def spy(tree, device=None, **options):
        if isinstance(tree, dict) and "evaluation" in tree:
            placed.append(device)
        return put(tree, device, **options)

    monkeypatch.setattr(jax, "device_put", spy)
    base = MLPTrial(epochs=1, depth=1, width=2, batch_size=203)
    sweeps = [
        Sweep(base, {"seed": range(3)}),  # on all devices
        Sweep(base, {"learning_rate": [0.1, 0.2, 0.3], "depth": [2]}),
        Sweep(base.replace(batch_norm=True)),  # on one
    ]
    made = planned(sweeps, rings, devices[:2])
    assert len(made.programs) == 3
    assert len(execute(made, *rings, devices[:2])) == 7
    assert sorted(placed, key=str) == sorted(devices[:2], key=str)
