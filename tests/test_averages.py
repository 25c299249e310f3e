"""Trials are evaluated, ranked and returned at the parameters that their optimizer means."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import TaskFunctions, train_alone
from nights import at_night
from optax import contrib

import jaxexp as jx

RNG = np.random.default_rng(0)
X_Nx3 = RNG.normal(size=(40, 3)).astype(np.float32)
DATA = jx.arrays(X_Nx3, X_Nx3 @ np.array([1.0, -2.0, 0.5], np.float32), validation=8)
TRIAL = jx.Trial(epochs=3, batch_size=8, learning_rate=0.1)
START = {"w": jnp.zeros(3)}


def averaging(optimizer, decay=0.9):
    """Keeps a moving average of the parameters in its state."""

    def init(params):
        return optimizer.init(params), params

    def update(grads, state, params):
        updates, inner = optimizer.update(grads, state[0], params)
        moved = optax.apply_updates(params, updates)
        return updates, (inner, optax.incremental_update(moved, state[1], 1 - decay))

    return optax.GradientTransformation(init, update)


def average(params, optimizer_state):
    return optimizer_state[1]


def schedule_free(params, optimizer_state):
    return contrib.schedule_free_eval_params(optimizer_state, params)


WAYS = {
    "average": (lambda trial: averaging(optax.adam(trial.learning_rate)), average, average),
    "schedule-free": (
        lambda trial: contrib.schedule_free_adamw(trial.learning_rate), schedule_free, None),
    "clipped before": (
        lambda trial: optax.chain(
            optax.clip(0.5), contrib.schedule_free_sgd(trial.learning_rate)),
        lambda params, state: schedule_free(params, state[1]), None),
}  # fmt: skip


def line(**parts):
    return jx.supervised(**{
        "init": lambda trial, rng, x: START,
        "apply": lambda trial, params, x: x @ params["w"],
        "loss": optax.squared_error,
    } | parts)  # fmt: skip


def run(sweep, task, **options):
    return jx.run(sweep, task, DATA, progress=False, **{"devices": 1} | options)


@pytest.mark.parametrize("name", at_night(WAYS, "average", "clipped before"))
def test_trials_are_evaluated_and_returned_as_by_a_plain_loop(name):
    """Also those that end earlier, and whose batches are padded or computed in parts."""
    optimizer, evaluated, given = WAYS[name]
    sweep = jx.Sweep(TRIAL, {"batch_size": [8, 12], "epochs": [2, 3], "learning_rate": [0.1, 0.2]})
    results = run(sweep, line(optimizer=optimizer, evaluation_params=given), programs="one")
    own = TaskFunctions(
        lambda trial, params, x: x @ params["w"],
        lambda trial, prediction, y: optax.squared_error(prediction, y),
        lambda trial, steps: optimizer(trial),
        evaluated,
    )
    for trial in sweep.trials()[::3]:
        names = ("batch_size", "epochs", "learning_rate")
        chosen = {name: getattr(trial, name) for name in names}
        params, expected = train_alone(own, trial, DATA, START)
        found = results["loss"].sel(chosen).isel(epoch=trial.epochs - 1)
        for split, loss in expected.items():
            np.testing.assert_allclose(found.sel(split=split), loss, rtol=2e-5)
        np.testing.assert_allclose(results.params(**chosen)["w"], params["w"], rtol=2e-5)


def test_the_best_epochs_parameters_are_those_that_were_evaluated():
    optimizer, _, given = WAYS["average"]
    base = TRIAL.replace(learning_rate=1.9, epochs=6)
    rule = jx.EarlyStopping("loss", patience=2)
    task = line(optimizer=optimizer, evaluation_params=given)
    results = run(jx.Sweep(base), task, stopping=rule)
    losses = results["loss"].sel(split="validation").values.ravel()
    prediction = DATA.validation.x @ results.params()["w"]
    found = np.square(prediction - DATA.validation.y).mean()
    np.testing.assert_allclose(found, np.nanmin(losses), rtol=1e-5)


@dataclass(frozen=True, kw_only=True)
class FreeTrial(jx.Trial):
    optimizer: str = jx.choice("adam", ("adam", "free"))


@pytest.mark.nightly
def test_each_optimizer_of_a_program_has_its_own():
    made = {"adam": optax.adam, "free": contrib.schedule_free_adamw}
    task = line(optimizer=lambda trial: made[trial.optimizer](trial.learning_rate))
    base = FreeTrial(epochs=2, batch_size=8, learning_rate=0.1)
    results = run(jx.Sweep(base, {"optimizer": [*made]}), task, programs="one")
    for name in made:
        alone = run(jx.Sweep(base.replace(optimizer=name)), task)
        np.testing.assert_allclose(
            results.params(optimizer=name)["w"], alone.params()["w"], rtol=1e-6
        )


@pytest.mark.nightly
def test_functions_of_the_trial_are_asked_for_each_optimizer_of_a_program():
    def evaluated(trial, params, optimizer_state):
        return optimizer_state[1] if trial.optimizer == "sgd" else params

    def made(trial):
        names = {"adam": optax.adam, "sgd": optax.sgd}
        return averaging(names[trial.optimizer](trial.learning_rate))

    task = line(optimizer=made, evaluation_params=evaluated)
    sweep = jx.Sweep(TRIAL.replace(epochs=1), {"optimizer": ["adam", "sgd"]})
    together, apart = (run(sweep, task, programs=mode) for mode in ("one", "exact"))
    for name in ("adam", "sgd"):
        w, own = (each.params(optimizer=name)["w"] for each in (together, apart))
        np.testing.assert_allclose(w, own, rtol=1e-6)


def test_functions_of_the_trial_and_other_types_of_numbers():
    sweep = jx.Sweep(TRIAL, {"learning_rate": [0.1, 0.2]})
    task = line(evaluation_params=lambda trial, params, optimizer_state: jax.tree.map(
        lambda p: np.float64(2) * p / trial.learning_rate, params))  # fmt: skip
    plain, scaled = run(sweep, line()), run(sweep, task)
    for rate in (0.1, 0.2):
        w, own = (each.params(learning_rate=rate)["w"] for each in (plain, scaled))
        np.testing.assert_allclose(own, w * 2 / rate, rtol=1e-6)
        assert own.dtype == w.dtype


def test_they_are_part_of_what_a_task_is():
    digests = [
        jx.plan(jx.Sweep(TRIAL), line(evaluation_params=given), DATA).trained["task"]
        for given in (None, lambda params, optimizer_state: jax.tree.map(jnp.abs, params))
    ]
    assert digests[0] != digests[1]


def two_averages(trial):
    """Both begin as the parameters, as those of `averaging` do."""
    return averaging(averaging(optax.sgd(trial.learning_rate), 0.5), 0.99)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, average),
        (average, None),
        (average, lambda params, optimizer_state: optimizer_state[0][1]),
    ],
)
def test_an_average_that_begins_as_the_parameters_is_none_of_them(tmp_path, one, other):
    """Neither is it taken for another average, whichever is compiled first."""
    tasks = [line(optimizer=two_averages, evaluation_params=given) for given in (one, other)]
    found = [run(jx.Sweep(TRIAL), task, checkpoint_dir=tmp_path / str(i))
             for i, task in enumerate(tasks)]  # fmt: skip
    for name in ("loss", "running_loss"):  # trained is the same, evaluated is not
        same = np.array_equal(*(results[name] for results in found))
        assert same == (name == "running_loss")
    assert not np.allclose(*(results.params()["w"] for results in found))
    with pytest.raises(jx.UserError, match=r"checkpoints of another run: task was"):
        run(jx.Sweep(TRIAL), tasks[1], checkpoint_dir=tmp_path / "0")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"evaluation_params": "best"}, "evaluation_params: 'best', expected a function"),
        ({"evaluation_params": lambda params: params}, r"expected one of \(params, optimizer_st"),
        ({"evaluation_params": lambda params, optimizer_state: params["w"]}, "shapes.*expected"),
        (
            {"evaluation_params": lambda params, optimizer_state: {"w": params["w"][:2]}},
            r"shapes \{'w': '\(2,\)'\}, expected those of the parameters, \{'w': '\(3,\)'\}",
        ),
        (
            {"evaluation_params": lambda params, optimizer_state: {"w": None}},
            "shapes.*expected",
        ),
        (
            {
                "init": lambda trial, rng, x: {"w": jnp.zeros(3), "b": jnp.zeros(3)},
                "optimizer": optax.masked(
                    contrib.schedule_free_sgd(0.1), {"w": True, "b": False}),
            },
            "schedule-free for a part of the parameters: expected one for all, or `evaluation_par",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(parts, message):
    with pytest.raises(jx.UserError, match=message):
        jx.plan(jx.Sweep(TRIAL), line(**parts), DATA)
