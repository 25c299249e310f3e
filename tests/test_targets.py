"""Plans for hardware that is not here: what is read off a compiler's text, and real compilations.

These skip where the compiler is not installed: pip install 'jaxexp[tpu]'.
"""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxexp as jx
from jaxexp.cli.main import app
from jaxexp.cli.session import Command, plan_stage, stages
from jaxexp.execution import targets
from jaxexp.execution.targets import TARGETS, Compilation, Steps, read_steps

HAVE_COMPILER = importlib.util.find_spec("libtpu") is not None
needs_compiler = pytest.mark.skipif(not HAVE_COMPILER, reason="libtpu is not installed")


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_loop_with_a_fixed_end_does_not_wait_for_data():
    def fixed(x):
        return jax.lax.fori_loop(0, 9, lambda i, y: jnp.sin(y) @ y, x)

    found = read_steps(text_of(fixed, jnp.eye(4)))
    assert found.operations > 0
    assert (found.inner_loops, found.data_dependent, found.asks_host) == (0, 0, False)


def test_a_loop_inside_a_step_that_ends_when_the_data_say_so_is_found():
    def walk(x):
        return jax.lax.while_loop(lambda y: y.sum() < 5, lambda y: y * 1.5, x)

    def steps(x, last):
        return jax.lax.fori_loop(0, last, lambda i, y: walk(y) + 1, x)

    def fixed(x, last):
        def inner(y):
            return jax.lax.fori_loop(0, 7, lambda i, z: jnp.sin(z) @ z, y)

        return jax.lax.fori_loop(0, last, lambda i, y: inner(y), x)

    found = read_steps(text_of(steps, jnp.eye(4), 3))
    assert (found.inner_loops, found.data_dependent) == (1, 1)
    found = read_steps(text_of(fixed, jnp.eye(4), 3))
    assert (found.inner_loops, found.data_dependent) == (1, 0)


def test_a_step_that_asks_the_host_is_found():
    text = """
%body (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p = (s32[], f32[2]{0}) parameter(0)
  %t = token[] after-all()
  %in = ((f32[2]{0}), token[]) infeed(%t)
  ROOT %out = (s32[], f32[2]{0}) tuple(%p, %in)
}
%condition (p: (s32[], f32[2])) -> pred[] {
  %p.1 = (s32[], f32[2]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %nine = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %nine), direction=LT
}
ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  ROOT %loop = (s32[], f32[2]{0}) while(%x), condition=%condition, body=%body
}
"""
    assert read_steps(text) == Steps(1, 0, 0, True)


def test_text_without_a_loop_has_no_steps():
    assert read_steps("") == Steps(0, 0, 0, False)


def data_of(n=600):
    rng = np.random.default_rng(0)
    return jx.arrays(rng.normal(size=(n, 3)).astype(np.float32), np.arange(n) % 3)


def test_unknown_targets_and_devices_beside_one_are_refused():
    sweep = jx.Sweep(jx.MLPTrial(epochs=2))
    with pytest.raises(jx.UserError, match=r"target='tpu-v5e4': did you mean tpu-v5e-4 .*expected"):
        jx.plan(sweep, data=data_of(), target="tpu-v5e4")
    with pytest.raises(jx.UserError, match="devices=1: tpu-v5e-4 has its own"):
        jx.plan(sweep, data=data_of(), target="tpu-v5e-4", devices=1)


@pytest.mark.skipif(HAVE_COMPILER, reason="libtpu is installed")
def test_without_the_compiler_the_message_names_what_brings_it():
    result = CliRunner().invoke(app, ["plan", "learning_rate", "--target", "tpu-v5e-1"])
    assert result.exit_code
    assert "jaxexp[tpu]" in str(result.exception)


@pytest.mark.integration
@needs_compiler
@pytest.mark.parametrize(
    "name", [pytest.param("tpu-v5e-1", marks=pytest.mark.nightly), "tpu-v5e-4"]
)
def test_a_padded_program_compiles_for_a_tpu(name):
    sweep = jx.Sweep(
        jx.MLPTrial(epochs=2), {"width": [4, 8], "depth": [1, 2], "batch_size": [16, 32]}
    )
    planned = jx.plan(sweep, data=data_of(), target=name, programs="one")
    made = planned.compiled()
    assert len(made.programs) == 1
    check(made)
    assert name in str(made)
    assert f"on each of {TARGETS[name].chips} chip" in str(made)
    with pytest.raises(jx.UserError, match=f"a plan for {name}, which is not here"):
        jx.run(planned)


@pytest.mark.nightly
@needs_compiler
def test_batch_norm_and_many_layers_compile_for_a_tpu():
    sweeps = [
        jx.Sweep(jx.MLPTrial(epochs=2, batch_norm=True), name="norm"),
        jx.Sweep(jx.MLPTrial(epochs=2, depth=20), {"seed": range(2)}, name="deep"),
    ]
    made = jx.plan(sweeps, data=data_of(), target="tpu-v5e-1").compiled()
    assert len(made.programs) == 2
    check(made)


def check(made):
    """No step asks the host or waits for data, and all of it fits."""
    for own in made.programs:
        assert own.fits(made.target)
        assert own.steps.operations > 10
        assert not own.steps.asks_host
        assert own.steps.data_dependent == 0
        assert own.step_flops > 0


@pytest.mark.parametrize(("memory", "chunk"), [(20e6, 16), (9e6, 8), (5e6, 4), (1, 1)])
def test_trials_at_a_time_are_halved_until_the_compiler_says_that_they_fit(
    memory, chunk, monkeypatch
):
    sweep = jx.Sweep(jx.MLPTrial(epochs=1), {"seed": range(16)})
    planned = jx.plan(sweep, data=data_of(), devices=1)
    program = dataclasses.replace(planned.plan.programs[0], chunk=16)
    plan = dataclasses.replace(planned.plan, programs=(program,))
    target = dataclasses.replace(TARGETS["tpu-v5e-1"], memory=memory)

    def compiled(program, *others):
        steps = Steps(9, 0, 0, False)
        return Compilation(program, 1.0, 1, 1, program.chunk * 1_000_000, 1.0, 1.0, steps)

    monkeypatch.setattr(targets, "_compile_as_it_is", compiled)
    monkeypatch.setattr(targets, "devices", lambda target: ())
    made = targets.compile_plan(plan, planned.task, {}, target)
    assert made.programs[0].program.chunk == chunk
    assert ("TOO MUCH" in str(made)) == (memory == 1)


@pytest.mark.nightly
@needs_compiler
@pytest.mark.parametrize("name", ["tpu-v5e-1", "tpu-v5e-4"])
@pytest.mark.parametrize(
    "sweep",
    ["batch_norm", "batch_size", "depth_width", "epochs", "gradients", "learning_rate", "sines"],
)
def test_every_sweep_of_networks_on_places_compiles_for_a_tpu(sweep, name):
    command = Command(sweeps=(sweep,), title="")
    for stage in stages(command.sources()):
        check(plan_stage(stage, command, name).compiled())
