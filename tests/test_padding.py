"""Trials of different shapes in one program: each equals the same trial trained alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rings import WAYS, force, planned
from rings import train as train_sweeps

from jaxexp.api import Problem
from jaxexp.base.errors import UserError
from jaxexp.execution.program import RunningProgram, place
from jaxexp.execution.records import TrialRecord
from jaxexp.nn.classification import MLPClassification
from jaxexp.nn.mlp import ACTIVATIONS, dropout
from jaxexp.spec.padding import ProgramSpec
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import ACTIVATIONS as ACTIVATION_NAMES
from jaxexp.spec.trial import FEATURES, MLPTrial
from jaxexp.training.data import Examples
from jaxexp.training.evaluation import with_evaluation

BASE = MLPTrial(epochs=2, batch_size=32, depth=2, width=5, learning_rate=1e-2)
# What may differ within a grid. Batch norm stands with SGD: before a batch norm the bias of an
# affine layer has a gradient of rounding noise alone, which Adam would blow up to full steps.
AXES = {
    "width": [3, 5, 8, "each"],  # a width of its own for each layer
    "depth": [1, 2, 4],
    "batch_size": [16, 32, 203],
    "epochs": [1, 2, 3],
    "activation": list(ACTIVATION_NAMES),
    "residual": [False, True],
    "features": list(FEATURES),
    "dropout": [0.0, 0.4],
    "label_smoothing": [0.0, 0.1],
    "seed": [0, 1],
    ("optimizer", "momentum", "weight_decay", "batch_norm"): [
        ("adam", 0.0, 0.0, False),
        ("adamw", 0.0, 0.1, False),
        ("sgd", 0.9, 0.0, False),
        ("sgd", 0.9, 0.0, True),
    ],
}


def train(trials, problem, devices, mode) -> dict[MLPTrial, TrialRecord]:
    return train_sweeps(sweeps(trials), problem, devices, mode)


def sweeps(trials) -> list[Sweep]:
    return [Sweep(trial, record=("gradient_norms",)) for trial in trials]


def assert_equal(one: TrialRecord, alone: TrialRecord) -> None:
    """Equal but for rounding, which some ten steps amplify to 1e-5 at most in 300 random grids."""
    for name in ("metrics", "running", "step_loss", "gradient_norms", "variables"):
        ours, theirs = getattr(one, name), getattr(alone, name)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs), name
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs
        )


@st.composite
def grids(draw) -> list[MLPTrial]:
    trials = set()
    for _ in range(draw(st.integers(2, 4))):
        values: dict = {}
        for axis, options in AXES.items():
            value = draw(st.sampled_from(options))
            values |= (
                dict(zip(axis, value, strict=True)) if isinstance(axis, tuple) else {axis: value}
            )
        if values["width"] == "each":
            depth, widths = values["depth"], st.sampled_from([2, 3, 8])
            values["width"] = draw(st.lists(widths, min_size=depth, max_size=depth).map(tuple))
            values["residual"] &= len(set(values["width"])) == 1
        trials.add(BASE.replace(**values))
    return sorted(trials, key=lambda trial: trial.id)


def assert_grid_equals_its_trials_alone(problem, devices, trials):
    for trial in trials:
        trial.check()
    assert len(planned(sweeps(trials), problem, devices, "one").programs) == 1
    together = train(trials, problem, devices, "one")
    for trial in trials:
        assert_equal(together[trial], train([trial], problem, devices[:1], "exact")[trial])


DAILY = ("side by side",)


@pytest.fixture(
    params=[pytest.param(n, marks=[pytest.mark.nightly] * (n not in DAILY)) for n in WAYS]
)
def way(request, monkeypatch):
    force(monkeypatch, request.param)
    return request.param


def test_a_grid_in_one_program_equals_its_trials_alone(problem, devices, way):
    """Trials that differ in everything at once; in microbatches, in what they can be."""
    parts = "microbatches" in way
    trials = [
        BASE,
        BASE.replace(width=3, depth=1, batch_size=16, epochs=3, features="sines",
                     dropout=0.0 if parts else 0.4),
        BASE.replace(width=(8, 2), activation="gelu", features="standardised", seed=1)
        .replace(optimizer="adamw", weight_decay=0.1, label_smoothing=0.1),
        BASE.replace(width=8, depth=4, batch_size=203, activation="sigmoid", residual=True)
        .replace(optimizer="sgd", momentum=0.9, batch_norm=not parts),
    ]  # fmt: skip
    [program] = planned(sweeps(trials), problem, devices, "one").programs
    assert (program.one_by_one, program.microbatch) == WAYS[way]
    assert_grid_equals_its_trials_alone(problem, devices, trials)


@pytest.mark.nightly
@settings(max_examples=settings.default.max_examples // 10, derandomize=True)
@given(grids(), st.sampled_from([*WAYS]), st.booleans())
def test_any_grid_in_one_program_equals_its_trials_alone(problem, devices, trials, way, parts):
    if parts:
        trials = list({trial.replace(batch_norm=False, dropout=0.0): None for trial in trials})
    with pytest.MonkeyPatch.context() as patch:
        force(patch, way)
        assert_grid_equals_its_trials_alone(problem, devices, trials)


SIZES = {
    "width": [{"width": width} for width in (3, 5, 8)],
    "depth": [{"depth": depth} for depth in (1, 2, 4)],
    "batch_size": [{"batch_size": batch_size} for batch_size in (16, 32, 203)],
    "widths": [{"width": (3, 8)}, {"width": (8, 2)}, {"width": 5}],
    "widths and depths": [
        {"width": (3, 8, 2), "depth": 3}, {"width": (8, 3)}, {"width": 5, "depth": 4},
    ],
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("sizes", SIZES)
def test_padded_sizes(problem, devices, sizes, way):
    """One size at a time, so that a failure says which; sigmoid, as it does not map 0 to 0."""
    trials = [BASE.replace(activation="sigmoid", **size) for size in SIZES[sizes]]
    together, alone = (train(trials, problem, devices, mode) for mode in ("one", "exact"))
    for trial in trials:
        assert_equal(together[trial], alone[trial])


def test_a_prefix_is_what_its_trial_would_have_been(problem, devices):
    trials = [BASE.replace(epochs=epochs) for epochs in (1, 2, 3)]
    [program] = planned(sweeps(trials), problem, devices, "auto").programs
    assert [t.epochs for t in program.trials] == [3]
    together = train(trials, problem, devices, "auto")
    for trial in trials:
        assert_equal(together[trial], train([trial], problem, devices[:1], "exact")[trial])


@pytest.mark.nightly
def test_widths_of_one_number_and_of_each_layer_start_from_the_same_weights(devices):
    """Those that the two have in common: the first units of each layer, not their inputs."""
    task, key = MLPClassification(5), jax.random.key(3)
    data = {"train": Examples(np.zeros((1, 2), np.float32), np.zeros(1, np.int32))}
    ragged, even = (
        jax.jit(lambda key, width=width: task.init(BASE.replace(width=width), key, data)[0])(key)
        for width in ((5, 3), 5)
    )
    np.testing.assert_array_equal(
        ragged["first"]["affine"]["kernel"], even["first"]["affine"]["kernel"]
    )
    # As many inputs, 5, for the second layer: the same bound, the same draws.
    np.testing.assert_array_equal(
        ragged["hidden_1"]["affine"]["kernel"], even["hidden"]["affine"]["kernel"][0, :3]
    )
    bound = 1 / np.sqrt(3)  # of the last layer: 3 inputs, not the 5 of the widest
    assert 1 / np.sqrt(5) < np.abs(ragged["last"]["kernel"]).max() <= bound


def test_what_python_cannot_know_is_refused():
    trials = [BASE, BASE.replace(depth=1, batch_norm=True)]
    spec = ProgramSpec.of(trials)
    shared = spec.trial({name: own[0] for name, own in spec.leaves(trials).items()})
    asks = [
        lambda size: size == 1, lambda size: size in (1, 2), lambda size: size > 1,
        lambda size: max(1, size), lambda size: {size}, lambda size: f"{size}",
        range, int, float, str,
    ]  # fmt: skip
    for ask in asks:
        with pytest.raises(UserError, match=r"^depth: .*programs='exact'"):
            ask(shared.depth)
    options = lambda own: own != "on", bool, lambda own: {True: 1}[own], lambda own: f"{own}"
    for ask in options:
        with pytest.raises(UserError, match=r"^batch_norm: .*programs='exact'"):
            ask(shared.batch_norm)
    assert "depth" in repr(shared.depth)


def test_sizes_are_true_where_none_is_0():
    trials = [BASE, BASE.replace(depth=1)]
    spec = ProgramSpec.of(trials)
    depth = spec.trial({name: own[0] for name, own in spec.leaves(trials).items()}).depth
    assert (depth or 16) is depth
    assert dataclasses.replace(depth, smallest=-2, largest=-1)
    with pytest.raises(UserError, match=r"^depth: .*programs='exact'"):
        bool(dataclasses.replace(depth, smallest=0))


def test_padding_is_zero_at_the_start(problem):
    """All but a trial's own parameters, whatever it and others of the program have."""
    trials = [
        BASE.replace(width=3, depth=1),
        BASE.replace(depth=3, features="sines"),
        BASE.replace(width=(8, 2), batch_norm=True),
    ]
    spec, arrays = ProgramSpec.of(trials), problem.data.arrays()
    start = jax.jit(lambda leaves: problem.task.init(spec.trial(leaves), jax.random.key(0), arrays))
    for i, trial in enumerate(trials):
        made = start({name: own[i] for name, own in spec.leaves(trials).items()})
        own, _ = problem.task.crop(trial, jax.device_get(made), None)
        every, owned = (
            sum(map(np.count_nonzero, jax.tree.leaves(each.params))) for each in (made, own)
        )
        assert every == owned > 0


def padded_run(
    problem: Problem, devices, larger=None, **options
) -> tuple[RunningProgram, MLPTrial, int]:
    """A program of widths up to 8 and depths 2 and 4; the smaller trial, and its lane."""
    small = BASE.replace(**{"width": 3, "depth": 2} | options)
    large = small.replace(width=8, depth=4, **larger or {})
    [program] = planned([Sweep(small), Sweep(large)], problem, devices[:1], mode="one").programs
    mesh = jax.sharding.Mesh(devices[:1], "trials")
    arrays = place(with_evaluation(problem.data), mesh)
    run = RunningProgram(program, problem.task, mesh, arrays)
    run.start()
    return run, small, program.trials.index(small)


def padding(trial: MLPTrial, tree):
    """Of parameters, moments or statistics (T, ...): where the small trial's are padding."""

    def mark(path, array_T):
        names = [getattr(part, "key", getattr(part, "name", None)) for part in path]
        array = np.asarray(array_T[0])
        own = np.zeros(array.shape, bool)
        if "norm" in names and not trial.batch_norm:
            return ~own
        layers = {"first": own[None], "hidden": own, "last": own[None]}
        start = {"first": 0, "hidden": 1, "last": trial.depth}
        [name] = set(names) & set(layers) or [None]
        if name is None:  # a count of steps
            return own
        sizes = (2, *trial.widths, array.shape[0])
        last = 1 if name != "hidden" else trial.depth - 1
        for i, layer in enumerate(layers[name][:last], start[name]):
            inputs, units = sizes[i : i + 2]
            layer[:units, *([slice(inputs)] if names[-1] == "kernel" else [])] = True
        return ~own

    return jax.tree.map_with_path(mark, tree)


OPTIONS = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "activation": "sigmoid"},
    "batch norm": {"optimizer": "sgd", "momentum": 0.9, "batch_norm": True, "residual": True},
    "widths": {"optimizer": "sgd", "batch_norm": True, "activation": "sigmoid", "depth": 3}
    | {"width": (2, 8, 3)},
    "options": {"optimizer": "sgd", "momentum": 0.9}
    | {"larger": {"batch_norm": True, "features": "sines"}},
}


LONG = pytest.mark.nightly
CASES = [
    pytest.param(OPTIONS[k], id=k, marks=[LONG] * (k in ("adamw", "options"))) for k in OPTIONS
]
# What widths of each layer leave in the padding shows more sharply where NaN is planted in it.
ZERO = [pytest.param(OPTIONS[k], id=k, marks=[LONG] * (k != "batch norm")) for k in OPTIONS]


# The first of them on every day.
BOTH = ["side by side", pytest.param("one by one", marks=LONG)]
OTHER = ["one by one", pytest.param("side by side", marks=LONG)]


@pytest.mark.parametrize("options", ZERO)
@pytest.mark.parametrize("way", BOTH, indirect=True)
def test_padding_stays_exactly_zero(problem, devices, options, way):
    """Weights and moments of units past the width, after two epochs of every kind of update."""
    run, small, lane = padded_run(problem, devices, **options)
    assert run.program.one_by_one == ("one" in way)
    for _ in range(2):
        run.rest()
    checked = 0
    for tree in (run.state.variables.params, run.state.optimizer):
        pads = jax.tree.leaves(padding(small, tree))
        paths = jax.tree.leaves_with_path(tree)
        for (path, array_T), pad in zip(paths, pads, strict=True):
            name = jax.tree_util.keystr(path)
            values = np.asarray(array_T[lane])[pad]
            np.testing.assert_array_equal(values, 0, err_msg=name)
            checked += values.size
    assert checked > 100


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("way", OTHER, indirect=True)
def test_nan_planted_in_the_padding_never_leaks(problem, devices, options, way):
    run, small, lane = padded_run(problem, devices, **options)
    clean, *_ = padded_run(problem, devices, **options)

    def plant(array_T, pad):
        planted = np.array(array_T)
        planted[lane][pad] = np.nan
        return planted

    pads = padding(small, run.state.variables.params)
    assert sum(pad.sum() for pad in jax.tree.leaves(pads)) > 100
    planted = jax.tree.map(plant, jax.device_get(run.state.variables.params), pads)
    sharding = jax.tree.leaves(run.state.variables.params)[0].sharding
    variables = run.state.variables._replace(params=jax.device_put(planted, sharding))
    run.state = run.state._replace(variables=variables)
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, run.rest(), clean.rest())
    own = [
        problem.task.crop(
            small, jax.tree.map(lambda a: np.asarray(a[lane]), each.state.variables), None
        )
        for each in (run, clean)
    ]
    jax.tree.map(np.testing.assert_array_equal, *own)


def test_choices_name_what_the_model_knows():
    assert tuple(ACTIVATIONS) == ACTIVATION_NAMES


def test_dropout_drops_its_share_and_keeps_the_mean(devices):
    ones_WxB = jnp.ones((64, 1000))
    for rate in (0.1, 0.5):
        dropped_WxB = np.asarray(dropout(ones_WxB, rate, jnp.uint32(7)))
        # Standard error of the share over 64,000 draws: 0.002 at most.
        assert abs((dropped_WxB == 0).mean() - rate) < 0.01
        np.testing.assert_allclose(dropped_WxB[dropped_WxB > 0], 1 / (1 - rate), rtol=1e-6)
        assert abs(dropped_WxB.mean() - 1) < 0.02
    other_WxB = np.asarray(dropout(ones_WxB, 0.5, jnp.uint32(8)))
    assert 0.4 < (other_WxB != dropped_WxB).mean() < 0.6


@pytest.mark.nightly
def test_standardised_inputs():
    task = MLPClassification(3, mean=(10.0, -4.0), std=(2.0, 8.0))
    standardised = BASE.replace(features="standardised")
    data = {"train": Examples(np.zeros((1, 2), np.float32), np.zeros(1, np.int32))}
    variables = jax.jit(lambda key: task.init(standardised, key, data))(jax.random.key(0))
    x_Bx2 = np.array([[12.0, 4.0], [10.0, -4.0]], np.float32)
    logits = [
        jax.jit(lambda x, trial=trial: task.predict(trial, variables, x))(x)
        for trial, x in ((standardised, x_Bx2), (BASE, np.array([[1, 1], [0, 0]], np.float32)))
    ]
    np.testing.assert_allclose(*logits, rtol=1e-6)
