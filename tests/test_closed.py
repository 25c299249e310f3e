"""What is easily typed wrong is refused by name, or gives the numbers that it says.

Each case trained to wrong numbers without a word, or ended in a traceback from inside jaxexp.
"""

import dataclasses
import functools
import subprocess
import sys
import types
import typing
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from alone import TaskFunctions, train_alone
from flax import linen, nnx

import jaxexp as jx
from jaxexp.execution import checkpoints
from jaxexp.execution.rules import Change
from jaxexp.results.results import like_training
from jaxexp.training import jaxprs
from jaxexp.training.models import NnxModel, call_arguments
from jaxexp.training.shuffle import permutation

RNG = np.random.default_rng(0)
X_Nx3 = RNG.normal(size=(40, 3)).astype(np.float32)
Y_N = X_Nx3 @ np.array([1.0, -2.0, 0.5], np.float32)
DATA = jx.arrays(X_Nx3, Y_N, validation=8)
LABELS = jx.arrays(X_Nx3, (Y_N > 0).astype(int), validation=8)
TRIAL = jx.Trial(epochs=2, batch_size=8)


def line(**parts):
    return jx.supervised(**{
        "init": lambda trial, rng, x: {"w": jnp.zeros(x.shape[-1])},
        "apply": lambda trial, params, x: x @ params["w"],
        "loss": optax.squared_error,
    } | parts)  # fmt: skip


def classify(module, **parts):
    return jx.supervised(
        module=module, loss=optax.softmax_cross_entropy_with_integer_labels, **parts
    )


def run(sweep, task, data=DATA, **options):
    sweep = sweep if isinstance(sweep, jx.Sweep) else jx.Sweep(sweep)
    return jx.run(sweep, task, data, progress=False, **{"devices": 1} | options)


def losses(*arguments, **options):
    """Of each trial and split, after the last epoch."""
    return run(*arguments, **options)["loss"].isel(epoch=-1).values


class Line(jx.Task):
    """By hand, with a scale that may change."""

    scale = 1.0

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.zeros(3)})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        prediction_B = self.scale * (batch.x @ variables.params["w"])
        return jx.Outputs((prediction_B - batch.y) ** 2, state=variables.state)


def by_hand(init=None, apply=None, **attributes):
    """A `Line` with other parts: `apply` maps its outputs, and whether it trains, to others."""

    def changed(self, trial, variables, batch, *, rng, mask, train):
        made = Line.apply(self, trial, variables, batch, rng=rng, mask=mask, train=train)
        return apply(made, train)

    if init is not None:
        attributes["init"] = lambda self, trial, rng, data: init(rng)
    if apply is not None:
        attributes["apply"] = changed
    return type("Line", (Line,), attributes)()


# Trials


def trial_class(**fields):
    """A subclass of Trial with these fields: name -> (type, default)."""
    made = type("Own", (jx.Trial,), {
        "__annotations__": {name: hint for name, (hint, _) in fields.items()},
        **{name: default for name, (_, default) in fields.items()},
    })  # fmt: skip
    return dataclass(frozen=True, kw_only=True)(made)


@pytest.mark.parametrize("name", ["replace", "values", "check", "fields", "id", "convert"])
def test_a_hyperparameter_cannot_take_the_place_of_a_method(name):
    with pytest.raises(jx.UserError, match=rf"Own.{name}: this name stands for something else"):
        jx.Sweep(trial_class(**{name: (float, 1.0)})())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": (float, 2.0)}, "Own.epochs: float, declared as length"),
        ({"batch_size": (int, jx.traced(8))}, "Own.batch_size: int, declared as traced"),
        ({"seed": (float, 0.0)}, "Own.seed: float, declared as traced"),
        ({"seed": (int, jx.choice(0, (0, 1)))}, "Own.seed: int, declared as choice"),
        ({"learning_rate": (float, jx.choice(0.1))}, "learning_rate: declared as choice"),
        ({"p": (int | float, 1)}, "Own.p: of int and float, some values are equal"),
        ({"p": (bool | int | None, 1)}, "Own.p: of bool and int, some values are equal"),
        ({"p": (tuple[int | bool, ...], (1,))}, "Own.p: of int and bool"),
        ({"p": (typing.Literal["1", 1], 1)}, "Own.p: options of a Literal"),
        ({"p": (float, dataclasses.field(default=0.0, compare=False))}, "Own.p: expected a plain"),
        ({"p": (float, dataclasses.field(default=0.0, init=False))}, "Own.p: expected a plain"),
    ],
)
def test_fields_that_would_merge_trials_or_break_the_engine_are_refused(fields, message):
    with pytest.raises(jx.UserError, match=message):
        jx.Sweep(trial_class(**fields)())


@pytest.mark.parametrize("option", [{"eq": False}, {"slots": True}])
def test_a_trial_compares_its_fields(option):
    made = type("Own", (jx.Trial,), {"__annotations__": {"p": float}, "p": 0.0})
    with pytest.raises(jx.UserError, match=r"Own: expected a frozen dataclass.*without eq or"):
        jx.Sweep(dataclass(frozen=True, kw_only=True, **option)(made)())


def test_minus_zero_is_zero():
    assert str(trial_class(p=(float, 1.0))().replace(p=-0.0).p) == "0.0"


@dataclass(frozen=True, kw_only=True)
class Penalised(jx.Trial):
    l2: float = jx.traced(0.0)

    @functools.cached_property
    def penalty(self):
        return 10 * self.l2

    def check(self):
        super().check()
        assert self.penalty >= 0  # kept by the trial from now on


@dataclass(frozen=True, kw_only=True)
class Derived(jx.Trial):
    l2: float = jx.traced(0.0)

    def __post_init__(self):
        object.__setattr__(self, "penalty", 10 * self.l2)


def with_penalty(trial, prediction, target):
    return (prediction - target) ** 2 + trial.penalty + 0 * trial.l2


def test_what_a_trial_derives_is_its_own_inside_a_program():
    sweep = jx.Sweep(Penalised(epochs=1, batch_size=8), {"l2": [0.0, 1.0, 2.0]})
    found = losses(sweep, line(loss=with_penalty))
    np.testing.assert_allclose(found[1:] - found[0], [[10, 10], [20, 20]], rtol=1e-5)


def test_what_a_trial_is_given_beside_its_hyperparameters_is_refused():
    sweep = jx.Sweep(Derived(epochs=1, batch_size=8), {"l2": [0.0, 1.0]})
    with pytest.raises(jx.UserError, match=r"Derived.penalty is set.*make it a property"):
        run(sweep, line(loss=with_penalty))


# Sweeps


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        (
            {"learning_rate": [0.1, 0.1 + 1e-12]},
            {},
            "learning_rate: 0.1 and .* the same in float32",
        ),
        ({("learning_rate", "seed"): [(0.1, 1), (0.1 + 1e-12, 1)]}, {}, "the same in float32"),
        ({("learning_rate", "seed"): [(0.3, 0), (0.1 + 0.2, 1)]}, {}, "the same in float32"),
        ({}, {"name": ""}, "name='': expected a line of text"),
        ({}, {"name": 3}, "name=3: expected a line of text"),
        ({}, {"timed": "no"}, "timed='no': expected True or False"),
        ({}, {"questions": "all"}, "questions='all': expected a tuple"),
        ({}, {"record": ("losses",)}, "record='losses': expected some of"),
    ],
)
def test_arguments_of_a_sweep(axes, options, message):
    with pytest.raises(jx.UserError, match=message):
        jx.Sweep(TRIAL, axes, **options)


def test_two_axes_cannot_be_one_dimension():
    base = trial_class(a_b=(int, 0), a=(int, 0), b=(int, 0))()
    with pytest.raises(jx.UserError, match=r"more than one dimension .* named 'a_b'"):
        jx.Sweep(base, {"a_b": [1, 2], ("a", "b"): [(1, 2), (3, 4)]})


@pytest.mark.parametrize("settings", [{"seed": 1}, {"optimizer": "sgd"}])
def test_settings_are_lists(settings):
    with pytest.raises(jx.UserError, match="expected a list of values"):
        jx.Sweep(TRIAL).set(settings)


@pytest.mark.parametrize("epochs", [0, "few", 1.5])
def test_a_sweep_is_shortened_to_an_epoch_at_least(epochs):
    with pytest.raises(jx.UserError, match="epochs="):
        jx.Sweep(TRIAL).shorten(epochs)


# What is compiled is what the task computes now


def test_a_task_that_has_changed_is_compiled_anew():
    task = Line()
    before = losses(TRIAL, task)
    task.scale = 2.0
    np.testing.assert_array_equal(losses(TRIAL, task), losses(TRIAL, by_hand(scale=2.0)))
    assert not np.array_equal(before, losses(TRIAL, task))


@pytest.mark.parametrize("of_array", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_what_a_function_closes_over_may_change(of_array):
    factor = {"now": np.ones(3, np.float32)} if of_array else {"now": 1.0}

    def apply(trial, params, x):
        return (x * factor["now"]) @ params["w"]

    task = line(apply=apply)
    before = run(TRIAL, task)
    predicted = before.predict(X_Nx3[:2])
    factor["now"] = factor["now"] * 3
    after = run(TRIAL, task)
    assert not np.array_equal(before["loss"], after["loss"])
    again = line(apply=lambda trial, params, x: 3 * x @ params["w"])
    np.testing.assert_allclose(after["loss"], run(TRIAL, again)["loss"], rtol=1e-5)
    own = after.params()["w"]
    np.testing.assert_allclose(after.predict(X_Nx3[:2]), 3 * X_Nx3[:2] @ own, rtol=1e-5)
    np.testing.assert_array_equal(before.predict(X_Nx3[:2]), predicted)


def test_equal_tasks_that_behave_otherwise():
    @dataclass(frozen=True)
    class Careless(Line):
        scale: float = dataclasses.field(default=1.0, compare=False)

    assert Careless(1.0) == Careless(2.0)
    assert not np.array_equal(losses(TRIAL, Careless(1.0)), losses(TRIAL, Careless(2.0)))


def scaled_gradient(factor):
    @jax.custom_vjp
    def scale(x):
        return x * 1.0

    scale.defvjp(lambda x: (scale(x), None), lambda _, g: (g * factor,))
    return line(apply=lambda trial, params, x: scale(x @ params["w"]))


def surrogate(factor):
    @jax.custom_jvp
    def step(x):
        return (x > 0).astype(x.dtype)

    step.defjvp(lambda x, dx: (step(x[0]), dx[0] * factor))
    return line(apply=lambda trial, params, x: step(x @ params["w"]))


def called_back(factor):
    def apply(trial, params, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(
            lambda x: np.asarray(x) * np.float32(factor), shape, x, vmap_method="sequential"
        ) @ params["w"]  # fmt: skip

    return line(apply=apply)


@pytest.mark.parametrize(
    "task",
    [
        scaled_gradient,
        *(pytest.param(own, marks=pytest.mark.nightly) for own in (surrogate, called_back)),
    ],
)
def test_what_differs_in_python_alone_is_compiled_anew(task):
    """A rule of a derivative, and a function on the host, are no part of a program's text."""
    one, other, again = (run(TRIAL, task(k)).params()["w"] for k in (1.0, -3.0, 1.0))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.nightly
def test_parameters_and_metrics_by_other_names():
    """No part of a program's text either: one compiled before returned those of its own task."""
    absolute, squared = (
        jx.Metric("lower", example=lambda p, y, k=k: jnp.abs(p - y) ** k) for k in (1, 2)
    )
    first, second, third = (
        run(TRIAL, line(metrics=metrics))
        for metrics in (
            {"a": absolute, "b": squared}, {"b": absolute, "a": squared}, {"c": absolute}
        )
    )  # fmt: skip
    np.testing.assert_array_equal(first["a"], second["b"])
    np.testing.assert_array_equal(first["a"], third["c"])
    for name in ("v", "w"):
        task = line(
            init=lambda trial, rng, x, name=name: {name: jnp.zeros(3)},
            apply=lambda trial, params, x, name=name: x @ params[name],
        )
        assert list(run(TRIAL, task).params()) == [name]


@pytest.mark.nightly
def test_another_number_of_examples_is_evaluated_at_once():
    @dataclass(frozen=True)
    class Spread(Line):
        """Its metric is one of a whole batch."""

        evaluation_batch_size: int = 1024
        metrics = types.MappingProxyType({"spread": jx.Metric("lower")})

        def apply(self, trial, variables, batch, *, rng, mask, train):
            p_B, n = batch.x @ variables.params["w"], mask.sum()
            away_B = p_B - jnp.where(mask, p_B, 0).sum() / n
            spread = jnp.where(mask, away_B**2, 0).sum() / n
            loss_B = (p_B - batch.y) ** 2
            return jx.Outputs(loss_B, metrics={"spread": jnp.full(p_B.shape, spread)})

    n = DATA.counts["train"]
    whole, halves, larger = (run(TRIAL, Spread(evaluation_batch_size=k)) for k in (n, n // 2, 1024))
    expected = np.var(DATA.train.x @ whole.params()["w"])
    for results in (whole, larger):
        found = results["spread"].sel(split="train")[-1]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not np.isclose(halves["spread"].sel(split="train")[-1], expected, rtol=1e-4)


def nearest(neighbours):
    """A loss by the distances to the nearest other predictions: as many as there are, at most."""

    def loss(p, y, mask):
        distance = jnp.where(mask & ~jnp.eye(len(p), dtype=bool), jnp.abs(p[:, None] - p), 1e3)
        return (p - y) ** 2 + jnp.sort(distance)[:, : min(neighbours, len(p) - 1)].mean(1)

    return line(loss=loss)


def of_more_than_two(factor):
    """Another loss of so many examples as there are in any batch that is computed."""
    return line(loss=lambda p, y: (p - y) ** 2 * (factor if len(p) > 2 else 1))


def penalised(factor):
    return line(
        loss=lambda trial, p, y: (p - y) ** 2 + trial.penalty * factor * p,
        optimizer=lambda trial: optax.sgd(0.1),
    )


def decayed(factor):
    return line(
        optimizer=lambda trial: optax.chain(
            optax.add_decayed_weights(trial.penalty * factor), optax.sgd(0.1)
        )
    )


def of_state(init, update):
    return line(optimizer=lambda trial: optax.GradientTransformation(init, update))


def heavy_ball(factor, start=0.0):
    """Its state begins as an array of NumPy, with which Python computes at once."""

    def update(grads, state, params=None):
        moved = jax.tree.map(lambda m, g: factor * 0.1 * m + g, state, grads)
        return jax.tree.map(lambda m: -0.01 * m, moved), moved

    return of_state(lambda params: {"w": np.full(3, start, np.float32)}, update)


def started(factor):
    return heavy_ball(1, start=factor)


def counting(factor):
    def update(grads, count, params=None):
        return jax.tree.map(lambda g: -0.01 * g * (1 + factor * count), grads), count + 1

    return of_state(lambda params: 0, update)


def of_one_state(factor):
    """Two arrays of the model's state begin as one and the same."""

    def init(rng):
        return jx.Variables({"w": jnp.zeros(3)}, dict.fromkeys("ab", jnp.zeros(())))

    def apply(made, train):
        state = made.state
        loss_B = made.loss * (1 + state["a" if factor == 1 else "b"])
        new = {"a": state["a"] + 1, "b": state["b"] + 2}
        return made._replace(loss=loss_B, state=new if train else state)

    return by_hand(init, apply)


PENALISED = jx.Sweep(
    trial_class(penalty=(float, jx.traced(0.0)))(epochs=2, batch_size=8), {"penalty": [0.1, 0.0]}
)


@pytest.mark.parametrize(
    ("sweep", "task"),
    [
        (PENALISED, penalised),
        (TRIAL, heavy_ball),
        pytest.param(PENALISED, decayed, marks=pytest.mark.nightly),
        *(
            pytest.param(TRIAL, task, marks=pytest.mark.nightly)
            for task in (nearest, of_more_than_two, counting, of_one_state, started)
        ),
    ],
)
def test_what_shows_at_a_size_or_at_a_value_alone_counts(tmp_path, sweep, task):
    """Of batches of two, of 0 times a factor, and of a state as it begins, they are the same."""
    one, other = (losses(sweep, task(k), checkpoint_dir=tmp_path / str(k)) for k in (1, 5))
    assert not np.allclose(one, other)
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(sweep, task(5), checkpoint_dir=tmp_path / "1")


def test_a_task_is_compiled_once_however_often_it_is_made(compilations):
    for task in (scaled_gradient, surrogate, lambda k: line(loss=lambda p, y: k * jnp.abs(p - y))):
        run(TRIAL, task(2.0))
        before = len(compilations)
        run(TRIAL, task(2.0))
        assert len(compilations) == before


@pytest.mark.parametrize("task", [scaled_gradient, surrogate])
def test_checkpoints_of_another_gradient_are_refused(tmp_path, task):
    run(TRIAL, task(1.0), checkpoint_dir=tmp_path)
    run(TRIAL, task(1.0), checkpoint_dir=tmp_path)
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(TRIAL, task(2.0), checkpoint_dir=tmp_path)


@pytest.mark.nightly
def test_one_kind_among_many_that_computes_otherwise():
    """It makes another task, by whose identity checkpoints are refused."""

    @dataclass(frozen=True)
    class Kinds(jx.Trial):
        power: int = jx.static(1)

    def task(odd):
        def apply(trial, params, x):
            return x @ params["w"] * trial.power * (odd if trial.power == 4 else 1)

        return line(apply=apply)

    sweep = jx.Sweep(Kinds(epochs=1, batch_size=8), {"power": range(1, 13)})
    one, again, other = (jx.plan(sweep, task(odd), DATA, devices=1).trained for odd in (1, 1, 5))
    assert one == again
    assert one["task"] != other["task"]


@pytest.mark.nightly
def test_a_table_by_batch_size_of_which_one_entry_is_another():
    def task(odd):
        rates = {size: 0.1 if size != 6 else odd for size in range(1, 13)}
        return line(optimizer=lambda trial, steps: optax.sgd(rates[trial.batch_size]))

    sweep = jx.Sweep(TRIAL, {"batch_size": range(1, 13)})
    one, again, other = (jx.plan(sweep, task(k), DATA, devices=1).trained for k in (0.1, 0.1, 0.2))
    assert one == again
    assert one["task"] != other["task"]


LONG = pytest.mark.nightly


@pytest.mark.parametrize(
    "epochs", [[2], *(pytest.param(own, marks=LONG) for own in ([4, 2], [2, 4])), [4, 2, 3]]
)
def test_checkpoints_of_another_schedule_are_refused(tmp_path, epochs):
    def task(share):
        def rate(trial, steps):  # another for 8 steps alone
            return optax.sgd(0.1 * (share if steps == 8 else 1))

        return line(optimizer=rate)

    sweep = jx.Sweep(TRIAL, {"epochs": epochs})
    run(sweep, task(1), checkpoint_dir=tmp_path)
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(sweep, task(2), checkpoint_dir=tmp_path)


def test_checkpoints_of_other_predictions_are_refused_where_they_are_kept(tmp_path):
    def task(factor):
        return by_hand(
            prediction_dims={"p": ("weight",)},
            predictions=lambda self, trial, variables, data: {"p": factor * variables.params["w"]},
        )

    data = dataclasses.replace(DATA, coords={"weight": ("weight", np.arange(3))})
    kept = jx.Sweep(TRIAL, record=("predictions",))
    for sweep, folder in ((kept, tmp_path / "kept"), (jx.Sweep(TRIAL), tmp_path / "not")):
        run(sweep, task(1), data, checkpoint_dir=folder)
    run(jx.Sweep(TRIAL), task(2), data, checkpoint_dir=tmp_path / "not")
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(kept, task(2), data, checkpoint_dir=tmp_path / "kept")


class EndsAfter:
    """It may be of any form: all that counts is what it says."""

    def __init__(self, epoch, best=1, rungs=()):
        self.ends, self.best = (lambda now: now >= epoch), best
        if rungs:
            self.rungs = rungs

    def stop(self, epoch, trials, curves):
        return np.full(len(trials), self.ends(epoch)) & (curves.costs()[:, -1] > 0)

    def improved(self, epoch, trials, curves):
        return np.full(len(trials), epoch == self.best)


@pytest.mark.parametrize("rungs", [(), (2, 3, 4)])
def test_a_rule_of_ones_own_has_to_decide_as_it_did(tmp_path, rungs):
    """Also where the run it was of is complete; what it would have done later does not matter."""
    sweep = jx.Sweep(TRIAL.replace(epochs=6), {"learning_rate": [0.1, 0.01]})

    def go(*rule):
        return run(sweep, line(), stopping=EndsAfter(*rule, rungs=rungs), checkpoint_dir=tmp_path)

    first = go(4, 1)
    assert first["loss"].identical(go(4, 1)["loss"])
    assert first["epochs_trained"].values.tolist() == [4, 4]
    assert go(4, 1)["best_epoch"].values.tolist() == [1, 1]
    with pytest.raises(jx.UserError, match="EndsAfter: ends 2 trials after epoch 3, and ended 0"):
        go(3, 1)
    with pytest.raises(jx.UserError, match=r"says that epoch 2 is the best of .*, and said 1"):
        go(4, 2)
    with pytest.raises(jx.UserError, match="checkpoints of another run: stopping was"):
        run(sweep, line(), checkpoint_dir=tmp_path)
    if rungs:  # the last is asked about anew
        assert go(5, 1)["epochs_trained"].values.tolist() == [6, 6]
        return
    with pytest.raises(jx.UserError, match="EndsAfter: ends 0 trials after epoch 4, and ended 2"):
        go(5, 1)


class Copies:
    """After an epoch, all go on as the first trial, at this rate."""

    def __init__(self, after, rate):
        self.after, self.rate = after, rate

    def stop(self, epoch, trials, curves):
        return np.zeros(len(trials), bool)

    def change(self, epoch, trials, curves, values):
        if epoch not in self.after:
            return None
        rates = np.full(len(trials), self.rate * values["learning_rate"][0])
        return Change(np.zeros(len(trials), int), {"learning_rate": rates})


def test_a_rule_of_ones_own_has_to_change_as_it_did(tmp_path):
    sweep = jx.Sweep(TRIAL.replace(epochs=4), {"learning_rate": [0.1, 0.01]})

    def go(*rule):
        return run(sweep, line(), stopping=Copies(*rule), checkpoint_dir=tmp_path)

    assert go([1, 2], 1.1)["loss"].identical(go([1, 2], 1.1)["loss"])
    for rule, message in (
        (([1], 1.1), "changes 0 trials after epoch 2, and changed 2"),
        (([2], 1.1), "changes 0 trials after epoch 1, and changed 2"),
        (([1, 2, 3], 1.1), "changes 2 trials after epoch 3, and changed 0"),
        (([1, 2], 1.2), "changes 2 trials after epoch 1, and changed them otherwise"),
    ):
        with pytest.raises(jx.UserError, match=f"Copies: {message}; expected a rule that"):
            go(*rule)


def test_trials_that_end_at_a_rung_by_another_rule_end_there():
    sweep = jx.Sweep(TRIAL.replace(epochs=6), {"learning_rate": [0.1, 0.01, 0.001]})
    rules = [jx.Budget(steps=4), jx.search.Halving("loss", factor=2, first=1)]
    assert run(sweep, line(), stopping=rules)["epochs_trained"].values.tolist() == [1, 1, 1]


def test_another_rule_is_refused_where_a_program_waits_at_a_rung(tmp_path):
    class EndsOne:
        def __init__(self, rate):
            self.rate = rate

        def stop(self, epoch, trials, curves):
            return np.array([epoch == 2 and t.learning_rate == self.rate for t in trials])

    class Halting(jx.search.Halving):
        def stop(self, epoch, trials, curves):
            raise KeyboardInterrupt

    Halting.__qualname__, Halting.__module__ = "Halving", jx.search.Halving.__module__
    sweep = jx.Sweep(TRIAL.replace(epochs=6), {"learning_rate": [0.1, 0.01, 0.001]})

    def go(rate, halving=jx.search.Halving):
        rules = [EndsOne(rate), halving("loss", factor=2, first=2)]
        return run(sweep, line(), stopping=rules, checkpoint_dir=tmp_path)

    with pytest.raises(KeyboardInterrupt):
        go(0.1, Halting)
    for rate in (0.01, 5.0):
        with pytest.raises(jx.UserError, match=r"after epoch 2, and ended (others|1|2)"):
            go(rate)
    assert go(0.1)["epochs_trained"].values.tolist()[0] == 2


def test_an_interrupted_run_goes_on_with_a_rule_that_agrees_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)  # of the time, in which they are written

    class Interrupting(EndsAfter):
        def stop(self, epoch, trials, curves):
            if epoch == 5:
                raise KeyboardInterrupt
            return super().stop(epoch, trials, curves)

    Interrupting.__qualname__ = EndsAfter.__qualname__
    sweep = jx.Sweep(TRIAL.replace(epochs=6), {"learning_rate": [0.1, 0.01]})
    every = {"checkpoint_dir": tmp_path, "checkpoint_every": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        run(sweep, line(), stopping=Interrupting(6), **every)
    with pytest.raises(jx.UserError, match="EndsAfter: ends 2 trials after epoch 1, and ended 0"):
        run(sweep, line(), stopping=EndsAfter(1), checkpoint_dir=tmp_path)
    resumed = run(sweep, line(), stopping=EndsAfter(5), checkpoint_dir=tmp_path)
    whole = run(sweep, line(), stopping=EndsAfter(5))
    assert resumed["loss"].identical(whole["loss"])


@pytest.mark.parametrize("rule", [jx.EarlyStopping("off"), jx.search.Halving("off", factor=2)])
def test_checkpoints_of_another_direction_are_refused_where_a_rule_may_compare(tmp_path, rule):
    def off(direction):
        return line(metrics={"off": jx.Metric(direction, example=lambda p, t: jnp.abs(p - t))})

    sweep = jx.Sweep(TRIAL, {"learning_rate": [0.1, 0.01]})
    run(sweep, off("lower"), stopping=rule, checkpoint_dir=tmp_path)
    with pytest.raises(jx.UserError, match="direction of off was lower, is higher"):
        run(sweep, off("higher"), stopping=rule, checkpoint_dir=tmp_path)


def test_the_direction_of_a_metric_is_no_part_of_what_is_trained(tmp_path):
    for direction in ("lower", "higher"):
        task = line(metrics={"off": jx.Metric(direction, example=lambda p, t: jnp.abs(p - t))})
        found = run(TRIAL, task, checkpoint_dir=tmp_path)
        assert found["off"].attrs["direction"] == direction


@pytest.mark.nightly
def test_an_optimizer_with_a_key_is_saved_and_goes_on(tmp_path):
    task = line(optimizer=lambda trial: optax.noisy_sgd(trial.learning_rate, key=1))
    sweep = jx.Sweep(TRIAL.replace(epochs=4), {"learning_rate": [0.1, 0.01, 0.001]})
    whole = run(sweep, task)
    rule = jx.search.Halving("loss", factor=2)
    halved = run(sweep, task, stopping=rule, checkpoint_dir=tmp_path, checkpoint_every=1e-6)
    ran = np.isfinite(halved["loss"].values)
    assert 0 < ran.mean() < 1
    np.testing.assert_array_equal(halved["loss"].values[ran], whole["loss"].values[ran])
    own = TaskFunctions(
        lambda trial, params, x: x @ params["w"],
        lambda trial, p, y: optax.squared_error(p, y),
        lambda trial, steps: optax.noisy_sgd(trial.learning_rate, key=1),
    )
    params, _ = train_alone(own, sweep.trials()[2], DATA, {"w": jnp.zeros(3)})
    np.testing.assert_allclose(whole.params(learning_rate=0.001)["w"], params["w"], rtol=1e-5)


def test_checkpoints_of_another_task_are_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    first = losses(TRIAL, line(), checkpoint_dir=folder)
    np.testing.assert_array_equal(losses(TRIAL, line(), checkpoint_dir=folder), first)
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(TRIAL, line(loss=lambda p, y: jnp.abs(p - y)), checkpoint_dir=folder)
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(TRIAL, line(optimizer=lambda trial: optax.sgd(0.1)), checkpoint_dir=folder)


IDENTITY = """
import jax, jaxexp as jx, numpy as np, optax
from flax import linen
task = jx.supervised(module=lambda trial: linen.Sequential([linen.Dense(4), linen.gelu,
    linen.Dense(2)]), loss=optax.softmax_cross_entropy_with_integer_labels)
data = jx.arrays(np.eye(4), [0, 1, 0, 1], validation=None)
print(jx.plan(jx.Sweep(jx.Trial(batch_size=2)), task, data, devices=1).identity["task"])
"""


def test_a_task_is_the_same_in_another_process(capsys):
    command = [sys.executable, "-c", IDENTITY]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exec(IDENTITY, {})
    assert capsys.readouterr().out == there


# Tasks


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: by_hand(init=lambda rng: jx.Variables({"w": jnp.zeros(3, int)})),
         r"init: params\['w'\] is int32, expected floats"),
        (lambda: by_hand(init=lambda rng: jx.Variables({"w": "a"})), r"\['w'\] is a str"),
        (lambda: by_hand(init=lambda rng: jx.Variables({"w": jnp.zeros(3, complex)})),
         r"is complex64, expected floats"),
        (lambda: by_hand(init=lambda rng: jx.Variables({"w": jnp.zeros(3)}, {"k": rng})),
         r"state\['k'\] is a key"),
        (lambda: by_hand(init=lambda rng: jx.Variables({"w": jnp.zeros(3)}, {"n": jnp.int32(0)}),
                         apply=lambda out, train: out._replace(state={"n": out.state["n"] + 1.0})),
         r"new state\['n'\] is float32 of the shape \(\), expected int32"),
        (lambda: by_hand(init=lambda rng: jx.Variables({"w": jnp.zeros(3)}, {"n": jnp.zeros(())}),
                         apply=lambda out, train: out._replace(state={"n": jnp.zeros(2)})),
         r"new state\['n'\] is float32 of the shape \(2,\), expected float32 of \(\)"),
        (lambda: by_hand(apply=lambda out, train: out if train else out.loss),
         "apply returned .*, expected jaxexp.Outputs"),
        (lambda: by_hand(apply=lambda out, train: out if train else jx.Outputs(out.loss[:, None])),
         r"loss has the shape \(7, 1\)"),
        (lambda: by_hand(apply=lambda out, train: out._replace(metrics={"m": out.loss})),
         "Outputs.metrics has 'm', which .* do not declare"),
        (lambda: by_hand(apply=lambda out, train: jx.Outputs([0.0, 0.0])), "loss has no shape"),
        (lambda: by_hand(metrics=["m"]), r"metrics=\['m'\]: expected a dict"),
        (lambda: by_hand(evaluation_batch_size=2.5), "evaluation_batch_size=2.5"),
        (lambda: by_hand(saved_fields=("mean",)), "saved_fields: 'mean', expected a field of a"),
        (lambda: by_hand(evaluation_batch_size=0), "evaluation_batch_size=0"),
        (lambda: by_hand(optimizer=lambda self, trial, steps: None), "optimizer returned NoneType"),
        (lambda: by_hand(gradient_norms=lambda self, grads: 0.0), "gradient_norms returned"),
        (lambda: by_hand(optimizer=lambda self, trial, steps: optax.sgd(
            optax.cosine_decay_schedule(0.1, trial.epochs * 4))),
         "value of epochs is not known to Python.*given the number of its steps"),
        (lambda: by_hand(optimizer=lambda self, trial, steps: optax.sgd(jnp.ones(trial.epochs)[0])),
         r"^Line: Shapes must be .*value of epochs is not known to Python.* with jax.numpy; what"),
        (lambda: by_hand(optimizer=lambda self, trial, steps: optax.sgd(jnp.ones(1 + trial.seed))),
         "value of seed is .*or declare it in the trial with jaxexp.static"),
        (lambda: by_hand(apply=lambda out, train: out if out.loss.sum() > 0 else None),
         r"value of what is computed is not known to Python.*compute with jax.numpy\)$"),
    ],
)  # fmt: skip
def test_tasks_by_hand_are_refused_before_anything_is_compiled(task, message):
    with pytest.raises(jx.UserError, match=message):
        jx.plan(jx.Sweep(TRIAL), task(), DATA, devices=1)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "prediction_dims is empty"),
        ({"prediction_dims": {"p": ("row",)}}, r"\['p'\] has 'row', expected .* Data.coords"),
        ({"prediction_dims": {"p": ("place",)}}, r"has an .* \(40,\) for 'p', expected .* \(2,\)"),
        ({"prediction_dims": {"q": ("place",)}}, r"has none for 'q', expected the shape \(2,\)"),
    ],
)
def test_predictions_to_record_have_their_dimensions(attributes, message):
    def predictions(self, trial, variables, data):
        return {"p": data["train"].x @ variables.params["w"]}

    task = by_hand(predictions=predictions, **attributes)
    data = jx.Data(jx.Examples(X_Nx3, Y_N), coords={"place": (("place",), np.arange(2))})
    with pytest.raises(jx.UserError, match=message):
        jx.plan(jx.Sweep(TRIAL, record=("predictions",)), task, data, devices=1)


def mean_error(prediction, target, weight_B):
    return {"error": jnp.abs(prediction - target).mean()}


def unweighted(prediction, target, weight_B):
    return {"error": jnp.abs(prediction - target).sum(), "n": weight_B.sum()}


def about_the_mean(prediction, target, weight_B):
    """Of all rows there are, which others of weight 0 change."""
    return {"error": jnp.where(weight_B > 0, (target - target.mean()) ** 2, 0) @ weight_B}


def of_the_rest(prediction, target, weight_B):
    """As many rows of weight 0 as there are, which count."""
    return {"error": jnp.where(weight_B > 0, 0, abs(target)).sum()}


@pytest.mark.parametrize(
    "sums",
    [mean_error, unweighted, functools.partial(mean_error), about_the_mean, of_the_rest],
)
def test_sums_of_a_metric_add_up(sums):
    metric = jx.Metric("lower", sums=sums, value=lambda sums: sums["error"])
    with pytest.raises(jx.UserError, match=r"metrics\['error'\]: `sums` .* do not add up"):
        jx.plan(jx.Sweep(TRIAL), line(metrics={"error": metric}), DATA, devices=1)


def test_sums_of_ones_own_that_add_up_pass():
    def sums(prediction, target, weight_B):
        return (weight_B * jnp.abs(prediction - target)).sum(), weight_B.sum()

    own = jx.Metric("lower", sums=sums, value=lambda sums: sums[0] / sums[1])
    metrics = {"own": own, "error": jx.metrics.mean_absolute_error}
    results = run(TRIAL, line(metrics=metrics))
    np.testing.assert_allclose(results["own"], results["error"], rtol=1e-5)


# The parts of `supervised`


class Mode(linen.Module):
    """Told whether it trains under a name that nobody knows."""

    @linen.compact
    def __call__(self, x, is_train: bool = True):
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not is_train)(x))


class Evaluates(linen.Module):
    @linen.compact
    def __call__(self, x, eval_mode: bool = False):
        return linen.Dense(2)(x)


class Unlike(linen.Module):
    """Names in which such words are parts of others."""

    @linen.compact
    def __call__(self, x, constrained: bool = True, return_latest: bool = False):
        return linen.Dense(2)(x)


def test_parameters_that_merely_contain_such_a_word_are_a_modules_own():
    jx.plan(jx.Sweep(TRIAL), classify(Unlike()), LABELS, devices=1)


def test_functions_hear_whether_they_train_as_modules_do():
    told = line(apply=lambda t, p, x, training=False, deterministic=True: (training, deterministic))
    for train in (True, False):
        arguments = None, jx.Variables({}), X_Nx3
        made, _ = told.model.apply(*arguments, rng=None, mask=None, train=train)
        assert made == (train, not train)
    with pytest.raises(jx.UserError, match=r"^apply: it has the parameter is_train=False, which"):
        jx.plan(jx.Sweep(TRIAL), line(apply=lambda t, p, x, is_train=False: x @ p["w"]), DATA)


def arguments_of(function):
    return call_arguments(function, None, None, train=True)


def test_what_a_partial_has_bound_stays_as_it_is():
    def apply(trial, params, x, training=False, deterministic=True, inference=False):
        return x

    bound = functools.partial(apply, deterministic=True, inference=True)
    assert arguments_of(bound) == {"training": True}


MODES = "isTraining istrain trainmode evalMode test_time do_eval train_flag for_training"
MODES += " not_training enable_training enabled_test use_eval_mode eval_only"
MODES += " train_or_eval"


@pytest.mark.parametrize("name", MODES.split())
def test_names_made_of_nothing_but_words_for_modes_are_refused(name):
    with pytest.raises(jx.UserError, match=rf"^apply: it has the parameter {name}=False, which"):
        arguments_of(eval(f"lambda {name}=False: 0"))


def test_other_names_with_such_words_are_a_functions_own():
    assert not arguments_of(lambda train_bias=True, trainable=False, pretraining=True: 0)
    assert not arguments_of(lambda train_bn=True, use_bias=False, test_format=True: 0)
    assert not arguments_of(lambda mode=True, inference=None: 0)
    assert not arguments_of(lambda train_set=True, use_test_set=False: 0)


@pytest.mark.parametrize("module", [Mode(), Evaluates()])
def test_a_module_that_would_never_hear_whether_it_trains_is_refused(module):
    with pytest.raises(jx.UserError, match=r"which would never change.*expected one of train"):
        jx.plan(jx.Sweep(TRIAL), classify(module), LABELS, devices=1)


def test_an_nnx_module_made_once_is_refused():
    made = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(jx.UserError, match="the same module in every call"):
        jx.plan(jx.Sweep(TRIAL), classify(lambda trial, rngs: made), LABELS, devices=1)


class Kept(nnx.Module):
    """Keeps plain arrays, sets modes in its call, and has its parameters back from transforms."""

    def __init__(self, rngs):
        self.table, self.calls = jax.random.normal(rngs.params(), (3,)), jnp.zeros(())
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.layers = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs))(rngs.fork(split=2))

    def __call__(self, x):
        self.calls += 1
        self.dropout.eval()
        x = nnx.remat(lambda layer, x: layer(x))(self.first, self.dropout(x * self.table))
        scan = nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        turns = scan(lambda x, layer: jnp.tanh(layer(x)))
        return nnx.jit(turns)(x, self.layers) + self.calls


@pytest.mark.filterwarnings("ignore:The 'split' argument:DeprecationWarning")
def test_plain_arrays_of_an_nnx_module_are_state_and_what_it_does_not_write_is_no_write():
    key, x_BxF = jax.random.key(0), jnp.ones((2, 3))
    model = NnxModel(lambda trial, rngs: Kept(rngs))

    @jax.jit
    def call():
        variables = model.init(TRIAL, key, x_BxF)
        return model.apply(TRIAL, variables, x_BxF, rng=key, mask=jnp.ones(2, bool), train=True)

    prediction, state = call()
    made = Kept(nnx.Rngs(key))
    np.testing.assert_allclose(prediction, made(x_BxF), rtol=1e-5)
    np.testing.assert_array_equal(state["calls"], 1)
    np.testing.assert_array_equal(state["table"], made.table)


class OfItsTrial(nnx.Linear):
    def __init__(self, trial, rngs):
        super().__init__(3, 2, rngs=rngs)
        self.trial = trial


def test_an_nnx_module_may_keep_its_trial():
    jx.plan(
        jx.Sweep(TRIAL), classify(lambda trial, rngs: OfItsTrial(trial, rngs)), LABELS, devices=1
    )


def test_what_a_program_passes_on_is_certain():
    def function(a, b, c):
        swapped = jax.lax.scan(lambda carry, _: (carry[::-1], None), (a, b), None, length=3)[0]
        kept, stacked = jax.lax.scan(lambda carry, row: (carry, row), a, c)
        one, both = (
            jax.lax.cond(a.sum() > 0, lambda a, b: (a, b), other, a, b)
            for other in (lambda a, b: (b, b), lambda a, b: (a, b))
        )
        return (*swapped, kept, stacked, *one, *both, a + 0)

    program = jax.make_jaxpr(function)(jnp.ones(2), jnp.ones(2), jnp.ones(3))
    assert jaxprs.passed_on(program) == [None, None, 0, 2, None, 1, 0, 1, None]


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        norm = linen.BatchNorm(use_running_average=not train)
        return linen.Dense(2)(norm(linen.Dense(4)(x)))


def centred(prediction, target, mask=None):
    """Compares the examples of a batch, as contrastive losses do."""
    error = prediction - target
    mask = jnp.ones(len(error)) if mask is None else mask
    return (error - (error * mask).sum() / mask.sum()) ** 2


def deaf(prediction, target):
    """Counts what fills up a batch."""
    return centred(prediction, target)


def normed(trial, params, x):
    h = x @ params["w"]
    return h - h.mean()


@pytest.mark.parametrize("parts", [{"loss": deaf}, {"apply": normed}])
def test_examples_that_have_to_do_with_one_another_are_refused_without_a_mask(parts):
    for trial, message in (
        (jx.Trial(batch_size=12), "batch_size=12: the last of the batches of 32 examples would be"),
        (TRIAL, "evaluation_batch_size=1024: the last of the batches of 8 validation examples"),
    ):
        with pytest.raises(jx.UserError, match=f"{message}.* heed the `mask`"):
            jx.plan(jx.Sweep(trial), line(**parts), DATA, devices=1)


@pytest.mark.nightly
def test_a_loss_that_compares_the_examples_of_a_batch_equals_a_plain_loop():
    """Also where batches are padded; and each split is evaluated alone."""
    sweep = jx.Sweep(TRIAL.replace(learning_rate=0.1), {"batch_size": [8, 12]})
    results = run(sweep, line(loss=centred), programs="one")
    own = TaskFunctions(
        lambda trial, params, x: x @ params["w"],
        lambda trial, prediction, y: centred(prediction, y),
        lambda trial, steps: optax.adam(trial.learning_rate),
    )
    for trial in sweep.trials():
        params, expected = train_alone(own, trial, DATA, {"w": jnp.zeros(3)})
        found = results["loss"].sel(batch_size=trial.batch_size).isel(epoch=-1)
        for split, loss in expected.items():
            np.testing.assert_allclose(found.sel(split=split), loss, rtol=1e-5)
        trained = results.params(batch_size=trial.batch_size)
        np.testing.assert_allclose(trained["w"], params["w"], rtol=1e-5, atol=1e-6)


def test_folds_and_splits_are_evaluated_apart():
    data = jx.folds(jx.arrays(X_Nx3, Y_N, validation=None, test=8), 3, seed=0)
    found = run(jx.Sweep(TRIAL, {"fold": range(3)}), line(loss=centred), data)
    for fold in range(3):
        w = found.params(fold=fold)["w"]
        rows = data.folds["validation"][fold]
        x, y = (a[rows[rows >= 0]] for a in (data.train.x, data.train.y))
        loss = found["loss"].sel(fold=fold, split="validation").isel(epoch=-1)
        np.testing.assert_allclose(loss, centred(x @ w, y).mean(), rtol=1e-5)
        loss = found["loss"].sel(fold=fold, split="test").isel(epoch=-1)
        expected = centred(data.test.x @ w, data.test.y).mean()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_last_batch_to_evaluate_counts_as_one_of_its_size():
    def by_length(prediction, target):
        return optax.squared_error(prediction, target) / len(target)

    with pytest.raises(jx.UserError, match=r"evaluation_batch_size=6: the last .* 8 validation"):
        run(TRIAL, line(loss=by_length, evaluation_batch_size=6))


@pytest.mark.nightly
def test_noise_in_evaluation_depends_on_no_other_split():
    def noisy(trial, params, x, train, rng):
        return x @ params["w"] + (0 if train else jax.random.normal(rng, (3, len(x)))[1])

    found = [
        run(TRIAL, line(apply=noisy), jx.arrays(X_Nx3[:20], Y_N[:20], validation=4, test=test))
        for test in (None, (X_Nx3, Y_N))
    ]
    one, other = (own["loss"].sel(split=["train", "validation"]) for own in found)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_place_is_that_among_the_examples_of_a_split():
    def placed(prediction, target):
        return optax.squared_error(prediction, target) * jnp.linspace(1, 2, 2000)[: len(target)]

    results = run(TRIAL, line(loss=placed))
    w = results.params()["w"]
    for split, examples in DATA.splits.items():
        found = results["loss"].sel(split=split).isel(epoch=-1)
        expected = placed(examples.x @ w, examples.y).mean()
        np.testing.assert_allclose(np.squeeze(found), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "apply",
    [
        lambda trial, params, x, train: x @ params["w"] * (1.0 if train else 2.0),
        lambda trial, params, x, *, train: x @ params["w"] * (1.0 if train else 2.0),
        lambda trial, params, x, train=True: x @ params["w"] * (1.0 if train else 2.0),
    ],
)
def test_functions_are_given_what_they_take_by_name(apply):
    results = run(jx.Sweep(TRIAL), line(apply=apply))
    w = results.params()["w"]
    loss = np.square(2.0 * DATA.validation.x @ w - DATA.validation.y).mean()
    found = results["loss"].sel(split="validation").isel(epoch=-1)
    np.testing.assert_allclose(np.squeeze(found), loss, rtol=1e-5)


def test_numbers_of_python_are_parameters_of_a_single_trial():
    """Given back as they are, they are no arrays yet."""
    task = line(
        init=lambda trial, rng, x: {"w": jnp.zeros(x.shape[-1]), "b": 0.0},
        apply=lambda trial, params, x: x @ params["w"] + params["b"],
    )
    one, two = (run(jx.Sweep(TRIAL, {"seed": range(n)}), task) for n in (1, 2))
    np.testing.assert_allclose(one.params(seed=0)["b"], two.params(seed=0)["b"], rtol=1e-6)
    assert one.params(seed=0)["b"] != 0


def test_batches_are_not_padded_into_statistics_that_know_no_mask():
    sweep = jx.Sweep(TRIAL, {"batch_size": [8, 16]})
    with pytest.raises(jx.UserError, match=r"programs='one': a batch of 8 would be padded to 16"):
        jx.plan(sweep, classify(Normed()), LABELS, programs="one")
    assert len(jx.plan(sweep, classify(Normed()), LABELS, devices=1).plan.programs) == 2


def test_steps_are_given_where_they_have_a_default():
    def optimizer(trial, steps=1000):
        return optax.sgd(optax.linear_schedule(0.1, 0.0, steps))

    needed = line(optimizer=lambda trial, steps: optimizer(trial, steps))
    np.testing.assert_array_equal(losses(TRIAL, line(optimizer=optimizer)), losses(TRIAL, needed))


def test_a_loss_is_given_the_trial_by_its_name():
    def loss(prediction, target, trial=None):
        return (prediction - target) ** 2 * trial.learning_rate

    wanted = line(loss=lambda trial, p, y: (p - y) ** 2 * trial.learning_rate)
    np.testing.assert_array_equal(losses(TRIAL, line(loss=loss)), losses(TRIAL, wanted))


def test_a_batch_size_that_the_task_reads_is_its_own():
    def loss(trial, prediction, target):
        return (prediction - target) ** 2 * (2.0 if trial.batch_size == 8 else 1.0)

    sweep = jx.Sweep(TRIAL, {"batch_size": [8, 16]})
    exact, auto = (losses(sweep, line(loss=loss), programs=p) for p in ("exact", "auto"))
    np.testing.assert_array_equal(exact, auto)
    with pytest.raises(jx.UserError, match=r"differ in batch_size, .* programs='exact'"):
        run(sweep, line(loss=loss), programs="one")
    sized = line(loss=lambda trial, p, y: (p - y) ** 2 * jnp.ones(trial.batch_size).mean())
    with pytest.raises(jx.UserError, match=r"Shapes must .* differ in batch_size, .* programs='e"):
        run(sweep, sized, programs="one")


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(
            lambda trial, steps: optax.lbfgs(
                linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=4)
            ),
            marks=pytest.mark.nightly,
        ),
        lambda trial, steps: optax.chain(
            optax.sgd(trial.learning_rate),
            optax.contrib.reduce_on_plateau(factor=0.5, patience=1),
        ),
        pytest.param(
            lambda trial, steps: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
            marks=pytest.mark.nightly,
        ),
        lambda trial, steps: optax.inject_hyperparams(optax.adam)(
            optax.linear_schedule(0.1, 0.0, steps)
        ),
        lambda trial, steps: optax.masked(optax.adam(trial.learning_rate), {"w": True}),
    ],
    ids=["lbfgs", "plateau", "multisteps", "inject", "masked"],
)
def test_optimizers_with_a_state_or_a_loss_equal_a_plain_loop(optimizer):
    sweep = jx.Sweep(TRIAL, {"epochs": [1, 2]})
    results = run(sweep, line(optimizer=optimizer), programs="one")
    x_Nx3, y_N = DATA.train.x, DATA.train.y
    for epochs in (1, 2):
        own = optax.with_extra_args_support(optimizer(TRIAL, epochs * 4))
        params = {"w": jnp.zeros(3)}
        state = own.init(params)

        @jax.jit
        def step(params, state, x_B, y_B, own=own):
            def loss(params):
                return optax.squared_error(x_B @ params["w"], y_B).mean()

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = own.update(
                grads, state, params, value=value, grad=grads, value_fn=loss
            )
            return optax.apply_updates(params, updates), state

        for epoch in range(epochs):
            order = np.asarray(permutation(32, 0, epoch)(jnp.arange(32)))
            for rows in order.reshape(4, 8):
                params, state = step(params, state, x_Nx3[rows], y_N[rows])
        np.testing.assert_allclose(
            results.params(epochs=epochs)["w"], params["w"], rtol=1e-4, atol=1e-5
        )


def test_an_optimizer_that_takes_no_loss_is_given_none():
    def optimizer(trial, steps):
        return optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)

    own = TaskFunctions(
        lambda trial, params, x: x @ params["w"],
        lambda trial, prediction, y: optax.squared_error(prediction, y),
        optimizer,
    )
    sweep = jx.Sweep(TRIAL, {"epochs": [1, 2]})
    results = run(sweep, line(optimizer=optimizer), programs="one")
    for trial in sweep.trials():
        params, _ = train_alone(own, trial, DATA, {"w": jnp.zeros(3)})
        trained = results.params(epochs=trial.epochs)
        np.testing.assert_allclose(trained["w"], params["w"], rtol=1e-4, atol=1e-5)


def test_an_optimizer_of_another_structure_for_each_length_is_refused():
    def optimizer(trial, steps):
        return optax.sgd(0.1) if steps < 6 else optax.adam(0.1)

    sweep = jx.Sweep(TRIAL, {"epochs": [1, 2]})
    with pytest.raises(jx.UserError, match=r"4 and 8 steps .*another structure.*'exact'"):
        run(sweep, line(optimizer=optimizer), programs="one")
    run(sweep, line(optimizer=optimizer), programs="exact")


# Results


@pytest.mark.parametrize("targets", [np.arange(40) % 7, np.where(Y_N > 0, 1, -1), Y_N > 0])
def test_whole_numbers_that_are_no_classes_are_predicted_as_numbers(targets):
    data = jx.arrays(X_Nx3, targets.astype(int), validation=8)
    results = run(TRIAL, line(), data)
    wanted = X_Nx3[:5] @ results.params()["w"]
    np.testing.assert_allclose(results.predict(X_Nx3[:5]), wanted, rtol=1e-5)
    with pytest.raises(jx.UserError, match="no probabilities"):
        results.predict_proba(X_Nx3)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({}, True),
        ({"metrics": {"right": jx.metrics.accuracy}}, False),
        ({"loss": optax.sigmoid_binary_cross_entropy}, False),
    ],
)
def test_one_number_is_a_logit_where_names_a_metric_or_the_loss_say_so(parts, named):
    data = jx.arrays(X_Nx3, (Y_N > 0) if named else (Y_N > 0).astype(int), validation=8)
    found = line(**parts).bind(data).probabilities(jnp.zeros(2))
    np.testing.assert_array_equal(found, np.full((2, 2), 0.5))


def test_predictions_of_three_axes_beside_labels_are_predicted_as_they_are():
    assert line().bind(LABELS).probabilities(jnp.zeros((4, 2, 3))) is None


def test_labels_of_two_classes_are_0_and_1_for_any_metric_of_labels():
    data = jx.arrays(X_Nx3, np.where(Y_N > 0, 1, -1), validation=8)
    task = line(metrics={"right": jx.metrics.accuracy})
    with pytest.raises(jx.UserError, match="the label is -1, expected 0 to 1"):
        jx.plan(jx.Sweep(TRIAL), task, data, devices=1)


@pytest.fixture(scope="module")
def results():
    frame = pd.DataFrame(X_Nx3, columns=["a", "b", "c"])
    sweep = jx.Sweep(TRIAL, {"learning_rate": [0.1, 0.01]})
    return run(sweep, line(), jx.arrays(frame, Y_N, validation=8))


def test_columns_are_those_trained_on(results):
    frame = pd.DataFrame(X_Nx3[:3], columns=["a", "b", "c"])
    np.testing.assert_array_equal(results.predict(frame), results.predict(X_Nx3[:3]))
    with pytest.raises(jx.UserError, match="X: not those trained on: the order is another"):
        results.predict(frame[["c", "b", "a"]])
    with pytest.raises(jx.UserError, match="'a' missing; 'z' too many"):
        results.predict(frame.rename(columns={"a": "z"}))


@pytest.mark.parametrize("wrap", [lambda frame: frame, lambda frame: {"table": frame}])
def test_columns_of_frames_given_by_hand_are_those_trained_on(wrap):
    frame = pd.DataFrame(X_Nx3, columns=["a", "b", "c"])
    swapped = wrap(frame[["c", "b", "a"]])
    train = jx.Examples(wrap(frame), Y_N)
    with pytest.raises(jx.UserError, match=r"^validation.x.*: not the columns of train.x.* order"):
        jx.Data(train, validation=jx.Examples(swapped, Y_N))
    data = jx.Data(train)
    for given in (data, jx.folds(data, 2), dataclasses.replace(data, train_sample=9)):
        made = like_training(line(), given, wrap(frame[:3]))
        np.testing.assert_array_equal(jax.tree.leaves(made)[0], X_Nx3[:3])
        with pytest.raises(jx.UserError, match=r"^X.*: not those trained on: the order is another"):
            like_training(line(), given, swapped)


def test_columns_are_compared_whatever_the_frame_is_called():
    frame = pd.DataFrame(X_Nx3, columns=["a", "b", "c"])
    with pytest.raises(jx.UserError, match=r"^test.train_x: not the columns of train.train_x: the"):
        jx.Data({"train_x": frame}, test={"train_x": frame[["c", "b", "a"]]})


def test_copies_have_the_columns_of_frames_unless_others_are_given():
    def examples(table):
        return jx.Examples({"table": table}, Y_N)

    frame = pd.DataFrame(X_Nx3, columns=["a", "b", "c"])
    data = jx.Data(examples(frame), validation=examples(frame))
    assert dataclasses.replace(data, train=examples(X_Nx3)).columns == data.columns
    other = examples(frame[["c", "b", "a"]])
    for given in (data, jx.folds(jx.Data(examples(frame)), 2)):  # validation is an array by now
        with pytest.raises(jx.UserError, match=r"^train.x.table: not the .*columns={}.*order"):
            dataclasses.replace(given, train=other)
    made = dataclasses.replace(data, train=other, validation=other, columns={})
    assert made.columns == {"x.table": ("c", "b", "a")}
    with pytest.raises(jx.UserError, match=r"^validation.x.table: not the columns of train.x.ta"):
        dataclasses.replace(data, train=other, validation=examples(frame), columns={})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "columns: None, expected a dict"),
        ({"x.table": "abc"}, r"columns\['x.table'\]: 'abc', expected a list of names"),
        ({"x.table": ["a", "b"]}, r"columns\['x.table'\]: 2 names, .* train.x.table, .*\(N, 3\)"),
        ({"x.other": ["a", "b"]}, "columns: 'x.other', expected one of 'x.table', 'y'"),
    ],
)
def test_columns_are_those_of_arrays(columns, message):
    with pytest.raises(jx.UserError, match=f"^{message}"):
        jx.Data(jx.Examples({"table": X_Nx3}, Y_N), columns=columns)


def test_names_of_the_columns_of_x_are_features():
    with pytest.raises(jx.UserError, match=r"^columns: 'x' is .*'c'\), expected it as `features`"):
        jx.Data(jx.Examples(X_Nx3, Y_N), columns={"x": ("a", "b", "c")})


def test_columns_of_a_frame_are_the_features_of_data_made_by_hand():
    train = jx.Examples(pd.DataFrame(X_Nx3, columns=["a", "b", "c"]), Y_N)
    assert jx.Data(train).features == ("a", "b", "c")
    with pytest.raises(jx.UserError, match=r"^train.x: not `features`: the order is another"):
        jx.Data(train, features=("c", "b", "a"))


def test_copies_have_the_columns_of_arrays_that_are_there_still():
    frame = pd.DataFrame(X_Nx3, columns=["a", "b", "c"])
    data = jx.Data({"old": frame, "kept": frame})
    made = dataclasses.replace(data, train={"kept": X_Nx3, "new": X_Nx3})
    assert made.columns == dataclasses.replace(made).columns == {"kept": ("a", "b", "c")}
    assert dataclasses.replace(data, train=jx.Examples(X_Nx3, Y_N)).columns == {}
    with pytest.raises(jx.UserError, match=r"^columns\['kept'\]: 3 names, .*give columns={}, or"):
        dataclasses.replace(data, train={"kept": X_Nx3[:, :2]})
    with pytest.raises(jx.UserError, match=r"^columns: 'kep', expected one of 'kept'$"):
        dataclasses.replace(made, train={"kept": X_Nx3}, columns={"kep": ("a", "b", "c")})


def test_copies_have_names_of_columns_that_are_empty():
    data = jx.Data({"table": pd.DataFrame(X_Nx3, columns=["", "b", "c"])})
    assert dataclasses.replace(data).columns == {"table": ("", "b", "c")}


def test_points_close_together_are_predicted(results):
    near = np.array([[1000.0001, 0, 0], [1000.0002, 0, 0]])
    assert results.predict(near).shape == (2,)


@pytest.mark.parametrize("trial", [0, TRIAL, "best"])
def test_predictions_are_of_a_trial_of_the_results(results, trial):
    with pytest.raises(jx.UserError, match=r"trial is an? .*, expected a trial of these results"):
        results.predict(X_Nx3, trial)


def test_a_trial_of_another_run_is_refused_though_its_hyperparameters_are_equal(results):
    other = run(results.sweep, line(), DATA)
    with pytest.raises(jx.UserError, match="trial is a TrialResult, expected a trial of these"):
        results.predict(X_Nx3, other.trial(learning_rate=0.1))
    own = results.trial(learning_rate=0.1)
    assert results.predict(X_Nx3[:3], own).shape == (3,)


def test_a_trial_is_found_by_the_float_that_it_was_trained_with(results):
    assert results.trial(learning_rate=np.float32(0.1)).trial.learning_rate == 0.1


def test_rankings_are_of_datasets(results):
    assert len(jx.select.rank(results.dataset)) == 2
    with pytest.raises(jx.UserError, match=r"a Results, expected .*: give results.dataset"):
        jx.select.rank(results)


@pytest.mark.parametrize("given", [None, 3, [], [1]])
def test_a_report_is_of_results(given, tmp_path):
    with pytest.raises(jx.UserError, match="results="):
        jx.write_report(given, tmp_path / "report.html")


class Scored(jx.MLPClassification):
    """With predictions of the validation examples."""

    prediction_dims: typing.ClassVar = {"probability": ("point",)}


SCORES = {split: {"loss": 0.5, "accuracy": 1.0} for split in ("train", "validation")}
POINTS = dataclasses.replace(LABELS, coords={"point": ("point", np.arange(8))})


def external(**arguments):
    arguments = {
        "sweep": jx.Sweep(TRIAL, {"seed": [0, 1]}, record=("predictions",)),
        "problem": (Scored(), POINTS), "model": "m", "metrics": SCORES, "seconds": 1.0,
        "predictions": {"probability": np.ones(8)},
    } | arguments  # fmt: skip
    sweep, problem = arguments.pop("sweep"), arguments.pop("problem")
    return jx.external_results(sweep, problem, **arguments)


def scores(split="validation", **changed):
    return SCORES | {split: SCORES["train"] | changed}


def test_external_results_hold_what_is_given():
    metrics = scores(loss=np.float32(0.25), accuracy=jnp.float32(0.75))
    results = external(metrics=metrics, versions={"sklearn": "1.7"}, notes=["a note"])
    assert results["loss"].sel(split="validation").values.tolist() == [[0.25]] * 2
    assert results["accuracy"].sel(split="validation").values.tolist() == [[0.75]] * 2
    assert results["probability"].shape == (2, 8)
    assert results.attrs["sklearn"] == "1.7"
    assert results["diverged_epoch"].values.tolist() == [0, 0]
    without = external(sweep=jx.Sweep(TRIAL), predictions=None, metrics=scores(accuracy=np.nan))
    assert "probability" not in without


class Mapped(jx.MLPClassification):
    """With predictions of a map, as tall as it is told."""

    prediction_dims: typing.ClassVar = {"map": ("lat", "lon")}
    shape = 2, 3

    def predictions(self, trial, variables, data):
        return {"map": jnp.zeros(self.shape)}


MAP = dataclasses.replace(
    LABELS, coords={"lat": ("lat", np.arange(2)), "lon": ("lon", np.arange(3))}
)


@pytest.mark.parametrize("shape", [(2, 3), (6,), (3, 2), (1, 6), (6, 1)])
def test_predictions_have_the_shape_of_their_dimensions_or_are_flat(shape):
    """Others of as many numbers would be scrambled."""

    class Own(Mapped):
        pass

    Own.shape = shape
    sweep = jx.Sweep(jx.MLPTrial(epochs=1, batch_size=8), record=("predictions",))
    of_map = np.arange(6).reshape(shape)
    given = {"sweep": sweep, "problem": (Own(), MAP), "predictions": {"map": of_map}}
    if shape in ((2, 3), (6,)):
        jx.plan(sweep, Own(), MAP, devices=1)
        assert external(**given)["map"].values.tolist() == [[0, 1, 2], [3, 4, 5]]
        return
    message = rf"'map'.* \({shape[0]}, {shape[1]}\)|\({shape[0]}, {shape[1]}\) for 'map'"
    for refused in (lambda: jx.plan(sweep, Own(), MAP, devices=1), lambda: external(**given)):
        with pytest.raises(jx.UserError, match=message) as raised:
            refused()
        assert "expected" in str(raised.value)
        assert "the shape (2, 3), lat × lon, or all of them flat" in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sweep": TRIAL}, r"sweep=Trial\(.*: expected a jaxexp.Sweep"),
        ({"sweep": jx.Sweep(TRIAL, record=("gradient_norms",))}, "expected no gradient norms"),
        ({"problem": None}, "problem=None: expected a task and data"),
        ({"problem": (None, POINTS)}, r"problem: None, expected a jaxexp\.Task"),
        ({"problem": (Scored(), X_Nx3)}, r"problem: an ndarray, expected a jaxexp\.Data"),
        ({"model": None}, "model=None: expected text"),
        ({"metrics": None}, "metrics=None: expected a dict by split of dicts by metric"),
        ({"metrics": {"train": 1.0}}, "metrics=.*: expected a dict by split"),
        ({"metrics": {}}, "metrics: no 'loss' of 'train'"),
        ({"metrics": {"train": SCORES["train"]}}, "metrics: no 'loss' of 'validation'"),
        ({"metrics": scores("test")}, "metrics: 'test': expected the splits of the data, train, v"),
        (
            {"metrics": scores(f1=1.0)},
            "'f1' of 'validation': expected those of the task: loss, acc",
        ),
        ({"metrics": scores(loss=np.ones(3))}, "loss=array.* of 'validation': expected a finite"),
        ({"metrics": scores(loss="x")}, "loss='x' of 'validation': expected a finite number"),
        ({"metrics": scores(loss=np.nan)}, "loss=nan of 'validation': expected a finite number"),
        ({"metrics": scores(loss=1e39)}, r"loss=1e\+39 of 'validation': expected a finite number"),
        ({"metrics": scores(accuracy=True)}, "accuracy=True of 'validation': expected a number"),
        ({"metrics": scores(accuracy=None)}, "accuracy=None of 'validation': expected a number"),
        ({"seconds": "1"}, "seconds='1': expected a number, at least 0"),
        ({"seconds": np.nan}, "seconds=nan: expected a number, at least 0"),
        ({"predictions": np.ones(8)}, "predictions=array.*: expected a dict of arrays"),
        ({"predictions": {"nope": np.ones(8)}}, "'nope': expected those of the task: probability"),
        ({"predictions": None}, "predictions: no 'probability', which the sweep records"),
        ({"predictions": {"probability": np.ones(3)}}, r"the shape \(3,\), .* the shape \(8,\)"),
        ({"notes": "a note"}, "notes='a note': expected a list of text"),
        ({"versions": "1.7"}, "versions='1.7': expected a dict of text"),
        ({"versions": {"sklearn": 1.7}}, "versions: 'sklearn'=1.7: expected text"),
        ({"versions": {"axes": "boo"}}, "versions: axes='boo': results hold axes="),
    ],
)
def test_arguments_of_external_results(arguments, message):
    with pytest.raises(jx.UserError, match=message):
        external(**arguments)


# Runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": [jax.devices("cpu")[0]] * 2}, "devices=.* twice"),
        ({"checkpoint_every": "1"}, "checkpoint_every='1': expected seconds"),
        ({"checkpoint_every": True}, "checkpoint_every=True: expected seconds"),
        ({"checkpoint_every": 10**400}, "checkpoint_every=10*: expected seconds"),
        ({"memory": float("nan")}, "memory=nan: expected"),
        ({"keep_params": "no"}, "keep_params='no': expected True or False"),
    ],
)
def test_arguments_of_a_run(options, message):
    with pytest.raises(jx.UserError, match=message):
        run(TRIAL, line(), **options)


# Data


@pytest.mark.parametrize(
    ("weight", "message"),
    [(1e38, "weights: 4e\\+39 in all"), (1e-44, r"weights: row 0 is 9\.8.*e-45")],
)
def test_weights_whose_sums_are_beyond_float32(weight, message):
    with pytest.raises(jx.UserError, match=message):
        jx.arrays(X_Nx3, Y_N, weights=np.full(40, weight))


@pytest.mark.parametrize(
    ("weight", "message"),
    [(1e38, r"train.weight: 4e\+39 in all"), (1e-44, r"train.weight: row 0 is 9\.8.*e-45")],
)
def test_weights_by_hand_whose_sums_are_beyond_float32(weight, message):
    with pytest.raises(jx.UserError, match=message):
        jx.Data(jx.Examples(X_Nx3, Y_N, np.full(40, weight, np.float32)))


def test_data_by_hand_that_have_changed_are_other_data(tmp_path):
    y_N = Y_N.copy()
    planned = jx.plan(jx.Sweep(TRIAL), line(), jx.Data(jx.Examples(X_Nx3, y_N)), devices=1)
    jx.run(planned, progress=False, checkpoint_dir=tmp_path / "checkpoints")
    y_N[:] = 0
    with pytest.raises(jx.UserError, match="checkpoints of another run: data was"):
        jx.run(planned, progress=False, checkpoint_dir=tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "fields",
    [{"classes": "2"}, {"classes": 0}, {"classes": 2.0}, {"std": (0.0,) * 3}, {"mean": (0.0,)},
     {"std": [1.0] * 3}, {"mean": (np.nan,) * 3}],
)  # fmt: skip
def test_fields_of_the_built_in_task(fields):
    trial = jx.MLPTrial(epochs=1, batch_size=8)
    with pytest.raises(jx.UserError, match=f"{next(iter(fields))}="):
        jx.plan(jx.Sweep(trial), jx.MLPClassification(**fields), LABELS, devices=1)


def test_labels_that_differ_in_spaces_alone():
    labels = ["a", "a ", "b", "b"] * 10
    with pytest.raises(jx.UserError, match="'a' and 'a ' differ in spaces alone"):
        jx.arrays(X_Nx3, labels)
    assert jx.arrays(X_Nx3, labels, classes=["a", "a ", "b"]).classes == ("a", "a ", "b")
