"""The memory that a plan predicts, against the arrays that are there."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxexp.execution import driver as engine
from jaxexp.execution.driver import Problem, execute
from jaxexp.execution.program import Run, place
from jaxexp.planning.plan import Program, plan
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial

KINDS = {
    "batch norm, norms": {"batch_norm": True, "optimizer": "adamw", "width": 24},
    "a width for each layer": {"width": (48, 32, 16)},
}
CLASSES = 33  # as `cost` assumes


@pytest.fixture(scope="module")
def places(problem) -> Problem:
    from jaxexp.nn.mlp import Classification

    return Problem(task=Classification(CLASSES), data=problem.data)


def programs(problem: Problem, options: dict, *counts: int) -> list[Program]:
    base = MLPTrial(**{"epochs": 2, "depth": 3, "batch_size": 128} | options)
    record = ("gradient_norms",) if base.batch_norm else ()
    made = [
        plan([Sweep(base=base, axes={"seed": range(n)}, record=record)], 2, problem.examples)
        for n in counts
    ]
    return [program for each in made for program in each.programs]


def size(tree) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_on_the_devices(places, devices, kind):
    """What more trials add is, within a fifth, what XLA says that a call takes."""
    few, many = programs(places, KINDS[kind], 160, 1600)
    assert few.filled() > 2 * few.at_once  # large grids, which are taken in turns

    def takes(program: Program) -> tuple[int, int]:
        mesh = Mesh(devices[:2], "trials")
        run = Run(program, places.task, mesh, place(places.data, mesh))
        run.start()
        told = run.compiled.steps.memory_analysis()
        given = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
        return 2 * (given + told.temp_size_in_bytes), size(run.state)

    (few_bytes, few_state), (many_bytes, many_state) = takes(few), takes(many)
    predicted = many.device_memory(places.examples) - few.device_memory(places.examples)
    np.testing.assert_allclose(predicted, many_bytes - few_bytes, rtol=0.2)
    parameters = many.shape.bound().cost().parameters * (many.filled() - few.filled())
    np.testing.assert_allclose(3 * 4 * parameters, many_state - few_state, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_the_records(places, devices, monkeypatch, kind):
    """As many copies as there are of the arrays that an execution brings home."""
    brought = {}
    make = engine.make_records

    def spy(program, task, counts, history, ends, *times):
        brought["history"], brought["ends"] = size(history), size([e.params for e in ends.values()])
        return make(program, task, counts, history, ends, *times)

    monkeypatch.setattr(engine, "make_records", spy)
    many_steps = {"epochs": 20, "batch_size": 8}  # so that their records outweigh the parameters
    [program] = programs(places, KINDS[kind] | many_steps, 5)
    made = plan([Sweep(base=t, record=program.record) for t in program.trials], 2, places.examples)
    execute(made, places, devices[:2])
    expected = 3 * brought["history"] + brought["ends"]
    np.testing.assert_allclose(program.record_memory(places.examples), expected, rtol=0.05)
