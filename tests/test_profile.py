"""The profile of a step: how a compiled text and a trace are read, and one of a small sweep."""

import jax
import jax.numpy as jnp
import pytest

from jaxexp.cli.benchmarks import benchmark
from jaxexp.cli.main import main

profile = benchmark("profile")

# ruff: noqa: E501
TEXT = """
%inside (p: f32[3,4,8], q: f32[3,8,2]) -> f32[3,4,2] {
  %p = f32[3,4,8]{2,1,0} parameter(0)
  %q = f32[3,8,2]{2,1,0} parameter(1)
  ROOT %d = f32[3,4,2]{2,1,0} dot(%p, %q), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}

ENTRY %main (a: f32[3,4,8], b: f32[3,8,2]) -> f32[3,4,2] {
  %a = f32[3,4,8]{2,1,0} parameter(0)
  %b = f32[3,8,2]{2,1,0} parameter(1)
  %f.1 = f32[3,4,2]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%inside, metadata={op_name="jit(steps)/while/body/jvp(MLP)/hidden/dot_general" id=3}
  ROOT %e.2 = f32[3,4,2]{2,1,0} exponential(%f.1), metadata={op_name="jit(steps)/exp"}
}
"""


def event(name, start, length, thread=1):
    return {"pid": 1, "tid": thread, "ts": start, "dur": length, "args": {"hlo_op": name}}


def test_a_fusion_has_the_arithmetic_of_the_products_inside_it():
    found = profile.operations(TEXT)
    assert found["f.1"].flops == found["d"].flops == 2 * 3 * 4 * 2 * 8
    assert (found["f.1"].what, found["f.1"].source) == ("fusion", "jvp(MLP)/hidden/dot_general")
    assert (found["e.2"].what, found["e.2"].source, found["e.2"].flops) == ("exponential", "exp", 0)


@pytest.mark.parametrize(
    ("shape", "groups", "inputs"), [((3, 3, 4, 8), 1, 4), ((3, 3, 1, 8), 4, 1)]
)
def test_convolutions_are_products_of_each_output_with_its_window(shape, groups, inputs):
    images, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones(shape)

    def convolved(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    made = jax.jit(convolved).lower(images, kernel).compile().as_text()
    found = profile.operations(made).values()
    flops = sum(own.flops for own in found if own.what == "convolution")
    assert flops == 2 * (2 * 6 * 6 * 8) * (3 * 3 * inputs)


def test_the_time_of_an_operation_is_without_those_inside_it():
    events = [
        event("while.7", 0, 100), event("f.1", 10, 30), event("e.2", 50, 20),
        event("f.1", 5, 40, thread=2), {"pid": 1, "tid": 1, "ts": 0, "dur": 900, "args": {}},
    ]  # fmt: skip
    found = {entry.what: entry for entry in profile.summed(events, profile.operations(TEXT))}
    assert found["while"].seconds == pytest.approx(50e-6)
    assert found["fusion"].seconds == pytest.approx(70e-6)
    assert found["exponential"].seconds == pytest.approx(20e-6)
    assert (found["fusion"].calls, found["fusion"].flops) == (2, 2 * 384)


@pytest.mark.nightly
def test_the_profile_of_a_sweep_adds_up(capsys):
    with pytest.raises(SystemExit) as status:
        main(["bench", "--profile", "learning_rate", "--set", "depth=1", "--set", "epochs=1"])
    assert not status.value.code
    said = capsys.readouterr().out
    assert "4 trials" in said
    for row in ("products", "no product", "between operations", "a step", "dot_general"):
        assert row in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "depth=1"], "--set: expected with --profile"),
        (["--profile", "learning_rate", "--quick"], "--quick: expected without --profile"),
        (["--profile", "learning_rate", "--optuna"], "expected without"),
        (["--profile", "nothing"], "nothing"),
        (["--profile", "learning_rate", "--set", "batch_size=100000"], "batch_size=100000"),
    ],
)
def test_wrong_profiles_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as status:
        main(["bench", *arguments])
    assert status.value.code == 2
    assert message in capsys.readouterr().err
