"""Plans for hardware that is not here: what is read off a compiler's text, and real compilations.

These skip where the compiler is not installed: pip install 'jaxexp[tpu]' or 'jaxexp[gpu]'.
"""

import dataclasses
import functools
import importlib.util
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rings import force
from typer.testing import CliRunner

import jaxexp as jx
from jaxexp.cli.command import Command, plan_stage, stages
from jaxexp.cli.main import app
from jaxexp.execution import compiling, targets
from jaxexp.execution.hlo import Steps, read_steps
from jaxexp.execution.targets import TARGETS, Compilation
from jaxexp.reproduce.tasks import ImageTask, ImageTrial
from jaxexp.training import evaluation, step

HAVE_COMPILER = importlib.util.find_spec("libtpu") is not None
HAVE_GPU_COMPILER = bool(
    importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda12")
)
needs_compiler = pytest.mark.skipif(not HAVE_COMPILER, reason="libtpu is not installed")
needs_gpu_compiler = pytest.mark.skipif(
    not HAVE_GPU_COMPILER, reason="jax-cuda12-plugin is not installed"
)


def targets_of(*names):
    """Each where its compiler is, otherwise skipped with the reason."""
    return [
        pytest.param(name, marks=needs_compiler if name.startswith("tpu") else needs_gpu_compiler)
        for name in names
    ]


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

    def halve(x):
        """Of what it carries, the condition reads one number, as that of a count does."""
        begun = x.sum(), x
        return jax.lax.while_loop(lambda c: c[0] > 1e-3, lambda c: (c[0] / 2, c[1] + 1), begun)[1]

    def collatz(x):
        def turn(c):
            return jnp.where(c[0] % 2 == 0, c[0] // 2, 3 * c[0] + 1), c[1] + 1

        return jax.lax.while_loop(lambda c: c[0] > 1, turn, (x.sum().astype(int), x))[1]

    def steps(own, x, last):
        return jax.lax.fori_loop(0, last, lambda i, y: own(y) + 1, x)

    def fixed(x, last):
        def inner(y):
            return jax.lax.fori_loop(0, 7, lambda i, z: jnp.sin(z) @ z, y)

        return jax.lax.fori_loop(0, last, lambda i, y: inner(y), x)

    for own in (walk, halve, collatz):
        found = read_steps(text_of(functools.partial(steps, own), jnp.eye(4), 3))
        assert (found.inner_loops, found.data_dependent) == (1, 1)
    found = read_steps(text_of(fixed, jnp.eye(4), 3))
    assert (found.inner_loops, found.data_dependent) == (1, 0)


def test_a_step_of_chunks_is_a_turn_of_the_loop_inside_theirs():
    def steps(x, last, chunks):
        def chunk(i, y):
            return jax.lax.fori_loop(0, last, lambda i, z: jnp.sin(z) @ z, y + 1)

        return jax.lax.fori_loop(0, chunks, chunk, x)

    found = read_steps(text_of(steps, jnp.eye(4), 3, 2), chunked=True)
    assert (found.inner_loops, found.data_dependent) == (0, 0)
    assert found.operations > 0


IN_PLACE = """
%stack (param_0: f32[100,8], param_1: f32[8], param_2: s32[]) -> f32[100,8] {
  %param_0 = f32[100,8]{1,0} parameter(0)
  %param_1 = f32[8]{0} parameter(1)
  %param_2 = s32[] parameter(2)
  %row = f32[1,8]{1,0} bitcast(%param_1)
  ROOT %stacked = f32[100,8]{1,0} dynamic-update-slice(%param_0, %row, %param_2)
}
%body (p: (f32[100,8], f32[8], s32[])) -> (f32[100,8], f32[8], s32[]) {
  %p = (f32[100,8]{1,0}, f32[8]{0:S(1)}, s32[]) parameter(0)
  %all = f32[100,8]{1,0} get-tuple-element(%p), index=0
  %own = f32[8]{0:S(1)} get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=2
  %start = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]{:S(2)}) copy-start(%all)
  %here = f32[100,8]{1,0:S(1)} copy-done(%start)
  %twice = f32[8]{0:S(1)} multiply(%own, %own)
  %next = f32[100,8]{1,0} fusion(%all, %twice, %i), kind=kLoop, calls=%stack
  %one = s32[]{:S(6)} constant(1)
  %later = s32[]{:S(6)} add(%i, %one)
  ROOT %out = (f32[100,8]{1,0}, f32[8]{0:S(1)}, s32[]) tuple(%next, %twice, %later)
}
ENTRY %main (p: (f32[100,8], f32[8], s32[])) -> (f32[100,8], f32[8], s32[]) {
  %p = (f32[100,8]{1,0}, f32[8]{0:S(1)}, s32[]) parameter(0)
  ROOT %loop = (f32[100,8]{1,0}, f32[8]{0}, s32[]) while(%p), condition=%c, body=%body
}
"""


PLUS = """
%plus (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%b, %a)
}
"""
BELOW = """
%below (m: s32[], n: s32[]) -> pred[] {
  %m = s32[] parameter(0)
  %n = s32[] parameter(1)
  ROOT %less.1 = pred[] compare(%m, %n), direction=LT
}
"""


def test_bytes_are_those_that_cross_to_the_memory_of_the_device():
    """A copy to the chip reads all once; a row is written in place, at a place that is read.

    So is the count, which becomes one more.
    """
    once = 4 * (100 * 8 + 8 + 1 + 1)
    assert read_steps(IN_PLACE).bytes == once
    for kind, size in {"c64": 8, "f64": 8, "f8e4m3fn": 1, "u4": 0.5}.items():
        assert read_steps(IN_PLACE.replace("f32[", f"{kind}[")).bytes == size * 808 + 8
    layers = IN_PLACE.replace("ENTRY %main", "%step")
    text = (
        layers
        + """
%c (p: (f32[100,8], f32[8], s32[])) -> pred[] {
  %p = (f32[100,8]{1,0}, f32[8]{0}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=2
  %layers = s32[]{:T(128)} constant(23)
  ROOT %less = pred[]{:T(512)} compare(%i, %layers), direction=LT
}
ENTRY %main (p: (f32[100,8], f32[8], s32[])) -> (f32[100,8], f32[8], s32[]) {
  %p = (f32[100,8]{1,0}, f32[8]{0}, s32[]) parameter(0)
  ROOT %steps = (f32[100,8]{1,0}, f32[8]{0}, s32[]) while(%p), condition=%data, body=%step
}
"""
    )
    assert (made := read_steps(text)).bytes == 23 * once
    assert (made.inner_loops, made.data_dependent) == (1, 0)
    other = read_steps(text.replace("add(%i, %one)", "add(%i, %i)"))
    assert (other.inner_loops, other.data_dependent) == (1, 1)
    added, compared = "add(%i, %one)", "compare(%i, %layers), direction=LT"
    fused = text.replace(added, "fusion(%one, %i), calls=%plus")
    fused = fused.replace(compared, "fusion(%i, %layers), calls=%below")
    fused = f"{PLUS}{BELOW}{fused}"
    assert read_steps(fused) == made
    other = read_steps(fused.replace("add(%b, %a)", "add(%b, %b)"))
    assert (other.inner_loops, other.data_dependent) == (1, 1)


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
    assert read_steps(text) == Steps(1, 0, 0, True, 8.0)


def test_text_without_a_loop_has_no_steps():
    assert read_steps("") == Steps(0, 0, 0, False)


def data_of(n=600):
    rng = np.random.default_rng(0)
    return jx.arrays(rng.normal(size=(n, 3)).astype(np.float32), np.arange(n) % 3)


def test_unknown_targets_and_devices_beside_one_are_refused():
    sweep = jx.Sweep(jx.MLPTrial(epochs=2))
    with pytest.raises(jx.UserError, match=r"target='tpu-v5e4': did you mean tpu-v5e-4, .*expect"):
        jx.plan(sweep, data=data_of(), target="tpu-v5e4")
    with pytest.raises(jx.UserError, match=r"target=\['h100'\]: did you mean h100"):
        jx.plan(sweep, data=data_of(), target=["h100"])
    with pytest.raises(jx.UserError, match="devices=1: expected none beside target='tpu-v5e-4'"):
        jx.plan(sweep, data=data_of(), target="tpu-v5e-4", devices=1)


@pytest.mark.parametrize(
    ("name", "extra", "have"),
    [("tpu-v5e-1", "tpu", HAVE_COMPILER), ("h100", "gpu", HAVE_GPU_COMPILER)],
)
def test_without_the_compiler_the_message_names_what_brings_it(name, extra, have):
    if have:
        pytest.skip(f"the compiler of {name} is installed")
    result = CliRunner().invoke(app, ["plan", "learning_rate", "--target", name])
    assert result.exit_code
    assert f"jaxexp[{extra}]" in str(result.exception)


BLOCKS = """
%fused (param_0: f32[1000,2], param_1: s32[8,1]) -> f32[8,2] {
  %param_0 = f32[1000,2]{1,0} parameter(0)
  %param_1 = s32[8,1]{1,0} parameter(1)
  ROOT %taken = f32[8,2]{1,0} gather(%param_0, %param_1), offset_dims={1}
}

%round (p: (s32[], u32[8])) -> (s32[], u32[8]) {
  %p = (s32[], u32[8]{0}) parameter(0)
  %u = u32[8]{0} get-tuple-element(%p), index=1
  %mixed = u32[8]{0} add(%u, %u)
}

%step (p: (s32[], f32[1000,2])) -> (s32[], f32[1000,2]) {
  %p = (s32[], f32[1000,2]{1,0}) parameter(0)
  %x = f32[1000,2]{1,0} get-tuple-element(%p), index=1
  %i = s32[8,1]{1,0} get-tuple-element(%p), index=2
  %rounds = (s32[], u32[8]{0}) while(%p), condition=%c, body=%round, ROUNDS
  %batch = f32[8,2]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  ROOT %next = (s32[], f32[1000,2]{1,0}) tuple(%i, %batch)
}

%block (p: (s32[], f32[1000,2])) -> (s32[], f32[1000,2]) {
  %p = (s32[], f32[1000,2]{1,0}) parameter(0)
  ROOT %steps = (s32[], f32[1000,2]{1,0}) while(%p), condition=%c, body=%step, KNOWN
}

%rest (p: (s32[], f32[1000,2])) -> (s32[], f32[1000,2]) {
  %p = (s32[], f32[1000,2]{1,0}) parameter(0)
  %one = f32[8,2]{1,0} copy(%p)
  %two = f32[8,2]{1,0} copy(%p)
  %three = f32[8,2]{1,0} copy(%p)
  ROOT %next = (s32[], f32[1000,2]{1,0}) tuple(%one)
}

ENTRY %main (p: (s32[], f32[1000,2])) -> (s32[], f32[1000,2]) {
  %p = (s32[], f32[1000,2]{1,0}) parameter(0)
  %blocks = (s32[], f32[1000,2]{1,0}) while(%p), condition=%c, body=%block
  ROOT %all = (s32[], f32[1000,2]{1,0}) while(%blocks), condition=%c, body=%rest
}
"""


def test_a_step_of_a_gpu_is_one_of_a_block():
    """Of a known number of steps, after which alone the host is asked."""

    def known(turns):
        return f'backend_config={{"known_trip_count":{{"n":"{turns}"}}}}'

    text = BLOCKS.replace("ROUNDS", known(4))
    made = read_steps(text.replace("KNOWN", known(compiling.BLOCK)), "gpu")
    assert (made.operations, made.inner_loops, made.asks_host) == (2, 1, False)
    # The rounds read and write 8 numbers each; the gather reads 8 rows and indices, and writes.
    assert made.bytes == 4 * (4 * (8 + 8)) + 4 * (16 + 8 + 16)
    other = read_steps(text.replace(", KNOWN", ""), "gpu")
    assert other.asks_host


def test_steps_in_blocks_are_the_same_steps(problem):
    trial = jx.MLPTrial(epochs=1, depth=1, width=4, batch_size=16)
    data = evaluation.with_evaluation(problem.data)
    start = step.init(problem.task, trial, 1, data)

    def run(block, *cuts):
        state, record = start
        for first, last in itertools.pairwise(cuts):
            state, record = jax.jit(
                lambda s, r, f, l: step.train_steps(  # noqa: E741
                    problem.task, trial, 1, s, r, 0, f, l, data, block=block
                )
            )(state, record, first, last)
        return jax.tree.leaves((state, record))

    one = run(1, 0, 13)
    for other in (run(4, 0, 3, 13), run(16, 0, 13)):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_arithmetic_of_a_step_is_counted():
    """As by hand: 3 products of a 3 x 8 kernel and an 8 x 3 one, less the inputs' gradient."""
    sweep = jx.Sweep(jx.MLPTrial(epochs=1, depth=1, width=8, batch_size=16))
    planned = jx.plan(sweep, data=data_of(), devices=1)
    arrays = evaluation.with_evaluation(planned.data)
    made = compiling.step_flops(planned.plan.programs[0], planned.task, arrays)
    assert made == 2 * 16 * (2 * 3 * 8 + 3 * 8 * 3)


@pytest.mark.integration
@pytest.mark.parametrize("name", targets_of("tpu-v5e-4", "h100", "h100-8"))
@pytest.mark.parametrize("way", ["side by side", "in microbatches"])
def test_a_padded_program_compiles(name, way, monkeypatch):
    force(monkeypatch, way)
    sweep = jx.Sweep(
        jx.MLPTrial(epochs=2), {"width": [4, 8], "depth": [1, 2], "batch_size": [16, 32]}
    )
    planned = jx.plan(sweep, data=data_of(), target=name, programs="one")
    made = planned.compiled()
    assert len(made.programs) == 1
    check(made)
    assert name in str(made)
    where = f"a {TARGETS[name].unit}"
    if TARGETS[name].chips > 1:
        where = f"each of {TARGETS[name].chips} {TARGETS[name].unit}s"
    assert f"at a time on {where}: compiled in" in str(made)
    with pytest.raises(jx.UserError, match=f"a plan for {name}, which is not here"):
        jx.run(planned)


@pytest.mark.nightly
@pytest.mark.parametrize("name", targets_of("tpu-v5e-1", "a100", "h100"))
def test_batch_norm_many_layers_and_precisions_compile(name):
    sweeps = [
        jx.Sweep(jx.MLPTrial(epochs=2, batch_norm=True), name="norm"),
        jx.Sweep(jx.MLPTrial(epochs=2, depth=100, width=4), {"seed": range(2)}, name="deep"),
        jx.Sweep(jx.MLPTrial(epochs=2, matmul_precision="bfloat16"), name="coarse"),
    ]
    made = jx.plan(sweeps, data=data_of(), target=name).compiled()
    assert len(made.programs) == 3
    check(made)


@pytest.mark.nightly
@pytest.mark.parametrize("name", targets_of("tpu-v5e-1", "h100"))
def test_a_resnet_of_224_pixels_compiles(name):
    """The compiler of TPUs takes minutes for it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
    data = jx.Data(jx.Examples(images, (np.arange(64) % 2).astype(np.int32)))
    sweep = jx.Sweep(ImageTrial(epochs=1, batch_size=32, image_size=224))
    check(jx.plan(sweep, ImageTask(), data, target=name).compiled())


def check(made):
    """No step asks the host or waits for data, and all of it fits, into what was planned too."""
    for own in made.programs:
        assert own.fits(made.target)
        planned = own.program.estimate.device_bytes / len(own.program.devices)
        assert own.temporary_bytes <= 1.25 * planned + 1.5e6  # constants, of the smallest programs
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
    whole = dataclasses.replace(planned.plan.programs[0], chunk=16)
    plan = dataclasses.replace(planned.plan, programs=(whole,))
    target = dataclasses.replace(TARGETS["tpu-v5e-1"], memory=memory)

    def compiled(program, *others):
        steps = Steps(9, 0, 0, False)
        return Compilation(program, 1.0, 1, 1, 1, program.chunk * 1_000_000, 1.0, steps)

    monkeypatch.setattr(targets, "_compile_as_it_is", compiled)
    monkeypatch.setattr(targets, "devices", lambda target: ())
    made = targets.compile_plan(plan, planned.task, {}, target)
    assert made.programs[0].program.chunk == chunk
    for seconds, text in {1.23: "1,200,000", 4.56e-11: "0.000046"}.items():
        flops = seconds * target.flops_of("float32")
        own = dataclasses.replace(made.programs[0], step_flops=flops)
        assert own.bound(target) == f"{text} µs by arithmetic"
    assert ("TOO MUCH" in str(made)) == (memory == 1)


@pytest.mark.nightly
def test_predictions_of_all_trials_count_among_the_memory():
    class Predicting(jx.MLPClassification):
        prediction_dims = types.MappingProxyType({"drawn": ("point",)})

        def predictions(self, trial, variables, data):
            return {"drawn": jax.random.normal(jax.random.key(trial.seed), (500_000,))}

    sweep = jx.Sweep(
        jx.MLPTrial(epochs=1, depth=1, width=2), {"seed": range(3)}, record=("predictions",)
    )
    data = dataclasses.replace(data_of(), coords={"point": (("point",), np.arange(500_000))})
    planned = jx.plan(sweep, Predicting(), data, devices=1)
    [program] = planned.plan.programs
    arrays = evaluation.with_evaluation(planned.data)
    made = targets._compile_as_it_is(program, planned.task, arrays, planned.devices)
    own = compiling.state_like(program, planned.task, arrays)[2]
    predicted = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(own))
    assert made.peak_bytes >= made.argument_bytes + predicted
    assert made.step_flops > 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", targets_of("tpu-v5e-1", "tpu-v5e-4", "h100"))
@pytest.mark.parametrize(
    "sweep",
    ["batch_norm", "batch_size", "depth_width", "epochs", "gradients", "learning_rate", "sines"],
)
def test_every_sweep_of_networks_on_places_compiles(sweep, name):
    command = Command(sweeps=(sweep,), title="")
    for stage in stages(command.sources()):
        check(plan_stage(stage, command, name).compiled())
