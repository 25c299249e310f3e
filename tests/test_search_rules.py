"""Successive halving, Hyperband and population-based training: their rules, and small runs."""

import contextlib
import dataclasses
import types
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx
from optax import contrib

import jaxexp as jx
from jaxexp import api
from jaxexp.execution.listeners import Silent
from jaxexp.execution.rules import Curves
from jaxexp.search.halving import Halving, Hyperband
from jaxexp.search.population import PBT
from jaxexp.training import jaxprs

BASE = jx.MLPTrial(epochs=9, batch_size=64, depth=1, width=8)
RATES = {"learning_rate": jx.search.loguniform(1e-4, 1e-1)}
SPACE = jx.search.Space(BASE, RATES)


def curves(loss_TxE) -> Curves:
    made = np.array(loss_TxE, float)
    return Curves(lambda metric, split: made, {"loss": "lower"}, ("train", "validation"))


def trials(n: int, seeds: int = 1) -> list[jx.Trial]:
    axes = {"learning_rate": [10.0**-i for i in range(n)], "seed": range(seeds)}
    return jx.Sweep(BASE, axes).trials()


def test_one_of_three_goes_on():
    loss = [[3.0], [1.0], [2.0], [np.nan], [5.0], [0.5], [7.0]]
    stopped = Halving(factor=3).stop(1, trials(7), curves(loss))
    assert np.flatnonzero(~stopped).tolist() == [1, 5]


def test_settings_are_compared_by_the_mean_over_their_seeds():
    """The second setting has the best trial, the first the best mean; both of its seeds go on."""
    loss = [[1.0], [1.2], [0.1], [9.0], [3.0], [3.0]]
    stopped = Halving(factor=3).stop(1, trials(3, seeds=2), curves(loss))
    assert stopped.tolist() == [False, False, True, True, True, True]


def test_a_diverged_setting_does_not_go_on_and_one_of_many_always_does():
    loss = [[np.nan], [np.inf], [2.0], [np.nan]]
    assert Halving(factor=2).stop(1, trials(4), curves(loss)).tolist() == [True, True, False, True]
    assert Halving(factor=4).stop(1, trials(2), curves([[2.0], [1.0]])).tolist() == [True, False]
    assert (~Halving().stop(1, trials(4), curves([[np.nan]] * 4))).sum() == 1


@pytest.mark.parametrize("hyperband", [False, True])
def test_a_setting_that_has_lost_a_trial_goes_on_only_if_all_have(hyperband):
    """The first, whose other seed has ended before the rung; what it has left is the best."""
    search = Hyperband(SPACE, seeds=2)
    rule, members = (search, search.sweep.trials()[:18]) if hyperband else (Halving(), trials(9, 2))
    loss = np.arange(9.0).repeat(2)[:, None]
    rule.check(members, curves(loss), np.ones(18))
    assert np.flatnonzero(~rule.stop(1, members[1:], curves(loss[1:]))).tolist() == [*range(1, 7)]
    assert np.flatnonzero(~rule.stop(1, members[::2], curves(loss[::2]))).tolist() == [0]


def test_rungs():
    assert Halving(factor=3, first=2).rungs[:4] == (2, 6, 18, 54)
    assert Halving(factor=10).rungs[-1] == 10**6


def test_brackets_are_those_of_the_paper():
    """Table 1 of Li et al. (2018): R = 81, eta = 3."""
    search = Hyperband(jx.search.Space(BASE.replace(epochs=81), RATES))
    sizes = [
        (size, [size // 3**i for i in range(len(rungs) + 1)]) for size, rungs in search.brackets
    ]
    assert sizes == [
        (81, [81, 27, 9, 3, 1]), (34, [34, 11, 3, 1]), (15, [15, 5, 1]), (8, [8, 2]), (5, [5]),
    ]  # fmt: skip
    assert [rungs for _, rungs in search.brackets] == [
        (1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), (),
    ]  # fmt: skip


def test_hyperband_trains_what_its_brackets_say(problem):
    search = Hyperband(SPACE, seeds=2)
    results = jx.run(search, *problem, progress=False)
    epochs = results["epochs_trained"].values.ravel()
    # 9 begin, 3 go on after 1 epoch, 1 after 3; 5 begin, 1 goes on after 3; 3 train to the end.
    expected = [1] * 6 + [3] * 2 + [9] + [3] * 4 + [9] + [9] * 3
    assert sorted(epochs) == sorted(expected * 2)
    loss = results["loss"].sel(split="validation", epoch=1).mean("seed").values[:9]
    on = results["epochs_trained"].values[:9, 0] > 1
    assert loss[on].max() <= loss[~on].min()


@pytest.mark.nightly
def test_halving_keeps_the_best_of_a_sweep(problem):
    sweep = jx.Sweep(BASE, {"learning_rate": [1e-5, 1e-3, 1e-2], "width": [4, 8, 16]})
    results = jx.run(sweep, *problem, stopping=Halving("accuracy"), progress=False)
    ds = results.dataset.stack(trial=("learning_rate", "width"))
    first = ds["accuracy"].sel(split="validation", epoch=1).values
    assert sorted(ds["epochs_trained"].values) == [1] * 6 + [3] * 2 + [9]
    assert first[ds["epochs_trained"] > 1].min() >= first[ds["epochs_trained"] == 1].max()


@pytest.mark.nightly
def test_halving_compares_settings_that_differ_in_their_epochs_alone(problem):
    """The shorter of two that begin alike is no part of the longer one."""
    sweep, rule = jx.Sweep(BASE, {"epochs": [2, 3]}), Halving(factor=2)
    assert jx.plan(sweep, *problem).plan.programs[0].prefixes
    results = jx.run(sweep, *problem, stopping=rule, progress=False)
    assert results["epochs_trained"].values.tolist() in ([1, 3], [2, 1])
    with pytest.raises(jx.UserError, match=r"Halving.*: would not be asked .*stopping=…"):
        jx.run(jx.plan(sweep, *problem), stopping=rule, progress=False)


def values(members, **own):
    return {"learning_rate": np.array([t.learning_rate for t in members], np.float32), **own}


def test_the_worst_copy_the_best_and_explore():
    pbt = PBT(SPACE, population=8, quantile=0.25, resample=0.0)
    members = pbt.sweep.trials()
    assert len({trial.seed for trial in members}) == 8
    loss = [[float(i)] for i in range(8)]
    now = values(members)
    change = pbt.change(1, members, curves(loss), now)
    assert (change.source[:6] == np.arange(6)).all()
    assert set(change.source[6:]) <= {0, 1}
    np.testing.assert_array_equal(change.values["learning_rate"][:6], now["learning_rate"][:6])
    ratio = change.values["learning_rate"][6:] / now["learning_rate"][change.source[6:]]
    assert all(np.isclose(r, 0.8) or np.isclose(r, 1.2) for r in ratio)
    again = pbt.change(1, members, curves(loss), values(members))
    np.testing.assert_array_equal(again.values["learning_rate"], change.values["learning_rate"])


def test_values_stay_in_the_space():
    space = jx.search.Space(BASE, {"learning_rate": [0.1, 0.2, 0.3],
                                   "weight_decay": jx.search.uniform(0.9, 1.0)})  # fmt: skip
    for resample in (0.0, 1.0):
        pbt = PBT(space, population=64, quantile=0.5, resample=resample)
        members = pbt.sweep.trials()
        own = values(members, weight_decay=np.array([t.weight_decay for t in members]))
        made = pbt.change(1, members, curves(np.zeros((64, 1))), own).values
        assert set(made["learning_rate"]) <= set(np.float32([0.1, 0.2, 0.3]))
        assert (made["weight_decay"] >= 0.9).all()
        assert (made["weight_decay"] <= 1.0).all()


@pytest.mark.nightly
def test_a_population_is_larger_than_its_space(problem):
    """Members that begin at one point differ in their seeds; some points are never drawn."""
    space = jx.search.Space(BASE, {"learning_rate": [0.001, 0.01, 0.1]})
    members = PBT(space, population=8).sweep.trials()
    assert len(set(members)) == 8
    assert sorted(Counter(t.learning_rate for t in members).values()) == [2, 3, 3]
    results = jx.run(PBT(space, population=8), *problem, progress=False)
    assert set(results["own_learning_rate"].values.ravel().round(6)) <= {0.001, 0.01, 0.1}
    rare = jx.search.Space(Counting(epochs=9), {"k": scipy.stats.binom(9, 1e-9)})
    assert {trial.k for trial in PBT(rare, population=8).sweep.trials()} == {0}


@dataclass(frozen=True, kw_only=True)
class Counting(jx.Trial):
    """With a whole number inside its program."""

    k: int = jx.traced(8)


def explored(own, now, draws=200):
    """What the worst half goes on with, of a population whose members all have this value."""
    space = jx.search.Space(Counting(epochs=9), {"k": own})
    pbt = PBT(space, population=8, quantile=0.5, resample=0.0)
    members = pbt.sweep.trials()
    loss, values = curves(np.arange(8.0)[:, None]), {"k": np.full(8, now, np.int32)}
    changes = [pbt.change(epoch, members, loss, values) for epoch in range(1, draws)]
    return {int(k) for change in changes for k in change.values["k"][4:]}


@pytest.mark.parametrize(
    ("own", "now", "expected"),
    [
        (jx.search.integers(8, 64, step=8), 8, {8, 16}),
        (jx.search.integers(8, 64, step=8), 48, {40, 56}),
        (jx.search.integers(8, 64, step=8), 64, {48, 64}),
        (jx.search.integers(3, 33, step=10), 13, {3, 23}),
        (jx.search.integers(1, 64), 4, {3, 5}),
        (jx.search.integers(1, 64, log=True), 40, {32, 48}),
        (jx.search.integers(-9, 9), 0, {-1, 1}),
        (jx.search.integers(1, 5000, step=1), 4000, {3200, 4800}),
        (scipy.stats.randint(1, 10), 2, {1, 3}),
        (scipy.stats.randint(-5, 6), 0, {-1, 1}),
        (scipy.stats.randint(1, 99), 40, {32, 48}),
        (scipy.stats.rv_discrete(values=([1, 8, 64], [0.5, 0.25, 0.25]))(), 8, {1, 64}),
        (scipy.stats.rv_discrete(values=([1, 8, 64], [0.5, 0.25, 0.25]))(), 64, {8, 64}),
    ],
)
def test_whole_numbers_move_by_steps_up_and_down_within_the_space(own, now, expected):
    assert explored(own, now) == expected


class Told(Silent):
    """What the display of the progress is told last."""

    def changed(self, program, values):
        self.values = values


def test_a_population_trains_and_its_lineage_is_recorded(problem):
    pbt = PBT(SPACE, population=8, interval=2, metric="accuracy")
    told = Told()
    results = jx.run(pbt, *problem, progress=told)
    parent = results["parent"].values  # (8, 9)
    copied = [(m, e) for m, e in zip(*np.nonzero(parent >= 0), strict=True)]
    assert {e + 1 for _, e in copied} <= {2, 4, 6, 8}
    assert len(copied) == 2 * 4
    rates = results["own_learning_rate"].values
    for member, epoch in copied:
        at = results["accuracy"].sel(split="validation").values[:, epoch]
        assert at[parent[member, epoch]] >= np.median(at)
        assert 1e-4 <= rates[member, epoch + 1] <= 0.1
    np.testing.assert_array_equal(rates[:, 0], results["learning_rate"].values)
    best = results.best("accuracy")
    first = jx.select.number(best.initial.learning_rate)
    assert f"learning_rate={best.curves['own_learning_rate'][-1]:g}" in repr(best)
    assert f", began with learning rate {first}, loss" in repr(best)
    assert told.values["learning_rate"] == pytest.approx(rates[:, -1])


class EndAt5:
    """Ends every other trial."""

    def stop(self, epoch, trials, curves):
        return (np.arange(len(trials)) % 2 == 0) & (epoch == 5)


@pytest.mark.parametrize("rules", [[], [EndAt5()]])
def test_values_that_are_one_number_in_a_program_are_one_in_the_results(problem, rules):
    """Those that a population began with, those that it copied, also where some end early."""
    pbt = PBT(SPACE, population=8, quantile=0.5, resample=0.0)
    results = jx.run(pbt.sweep, *problem, stopping=[pbt, *rules], progress=False)
    assert results["own_learning_rate"].dtype == results["learning_rate"].dtype == np.float64
    rates = results["own_learning_rate"].values
    rates = rates[np.isfinite(rates)]
    assert len(np.unique(rates)) == len(np.unique(rates.astype(np.float32)))
    assert (rates[:, None] == results["learning_rate"].values).any(0).all()


@dataclass(frozen=True, kw_only=True)
class Scaled(jx.Trial):
    """Whose model reads what a population changes."""

    power: float = jx.traced(1.0, above=0)


@dataclass(frozen=True)
class Scaling(jx.Task):
    """A linear model times `power`, with recorded predictions of the validation examples."""

    metrics = types.MappingProxyType({"mae": jx.metrics.mean_absolute_error})
    prediction_dims = types.MappingProxyType({"at": ("row",)})

    def init(self, trial, rng, data):
        return jx.Variables({"w": jax.random.normal(rng, (3,))})

    def predict(self, trial, variables, x):
        return trial.power * (x @ variables.params["w"])

    def apply(self, trial, variables, batch, *, rng, mask, train):
        made = self.predict(trial, variables, batch.x)
        return jx.Outputs((made - batch.y) ** 2, prediction=made, target=batch.y)

    def predictions(self, trial, variables, data):
        return {"at": self.predict(trial, variables, data["shown"])}


@pytest.fixture(scope="module", params=[[], [jx.EarlyStopping(patience=3)]], ids=["last", "best"])
def scaled(request):
    """A population whose predictions depend on what it changes, at the last epoch or the best."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    y = (np.tanh(x @ [1, 2, -1]) + 0.3 * rng.normal(size=40)).astype(np.float32)
    data = jx.arrays(x, y, validation=11)
    extra, coords = {"shown": data.validation.x}, {"row": ("row", np.arange(11))}
    data = dataclasses.replace(data, extra=extra, coords=coords)
    base = Scaled(epochs=6, batch_size=7, learning_rate=0.1)
    space = jx.search.Space(base, {"power": jx.search.uniform(0.1, 5)})
    pbt = PBT(space, population=6, quantile=0.4)
    sweep = dataclasses.replace(pbt.sweep, record=("predictions",))
    return jx.run(sweep, Scaling(), data, stopping=[pbt, *request.param], progress=False)


def test_predictions_are_recorded_with_the_values_of_the_epoch_that_is_kept(scaled):
    """Those of a later epoch belong to other parameters."""
    dataset, y = scaled.dataset, scaled.data.validation.y
    ends = jx.select.in_the_end(dataset, "power")
    assert (ends != dataset["power"]).any()
    if "best_epoch" in dataset:
        assert (ends != dataset["own_power"].isel(epoch=-1)).any()
    metric = jx.select.final(dataset, "mae").sel(split="validation")
    np.testing.assert_allclose(np.abs(dataset["at"] - y).mean("row"), metric, rtol=1e-5)


def test_a_member_predicts_with_the_values_that_it_has_in_the_end(scaled):
    """Its parameters were trained with these, and not with those that it began with."""
    ends = jx.select.in_the_end(scaled.dataset, "power").values
    for place, initial in enumerate(scaled.sweep.trials()):
        own = scaled.trial(seed=initial.seed)
        assert own.initial == initial
        assert own.trial == initial.replace(power=ends[place])
        made = scaled.predict(scaled.data.validation.x, own)
        np.testing.assert_allclose(made, own.curves["at"], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halving(factor=1), "factor=1: expected a whole number, at least 2"),
        (lambda: Halving(first=0), "first=0: expected a whole number, at least 1"),
        (lambda: Hyperband(BASE), "expected a jaxexp.search.Space"),
        (lambda: Hyperband(SPACE, first=10), "first=10: the trials have 9 epochs"),
        (lambda: Hyperband(jx.search.Space(BASE, {"epochs": [1, 2]})), "`epochs` is searched"),
        (lambda: PBT(SPACE, population=1), "population=1: expected a whole number, at least 2"),
        (lambda: PBT(SPACE, quantile=0.7), "quantile=0.7: expected a number from 0 to 0.5"),
        (lambda: PBT(SPACE, population=4, quantile=0.1), "of 4 members that is less than one"),
        (lambda: PBT(jx.search.Space(BASE, {"width": [4, 8]})), "width: a trial cannot"),
        (
            lambda: PBT(jx.search.Space(BASE, {
                "optimizer": ["adam", "sgd"],
                "momentum": jx.search.uniform(0, 0.9).when(optimizer="sgd"),
            })),
            "expected a distribution of one, without conditions",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(make, message):
    with pytest.raises(jx.UserError, match=message):
        make()


def test_numbers_of_numpy_are_numbers():
    given = {"population": 8, "interval": 2, "quantile": 0.25, "resample": 0.5, "seed": 3}
    made = PBT(SPACE, **{name: np.array(value)[()] for name, value in given.items()})
    assert repr(made) == repr(PBT(SPACE, **given))
    assert made.sweep.id == PBT(SPACE, **given).sweep.id
    for wrong in (np.bool_(True), np.float64(3), True):
        with pytest.raises(jx.UserError, match="expected a whole number, at least 0"):
            PBT(SPACE, seed=wrong)


def test_a_search_on_another_sweep(problem):
    other = jx.Sweep(BASE, {"learning_rate": [0.5, 0.25]})
    for search in (Hyperband(SPACE), PBT(SPACE)):
        with pytest.raises(jx.UserError, match=r"as in jaxexp.run\(search, task, data\)"):
            jx.run(other, *problem, stopping=search, progress=False)


@dataclass(frozen=True, kw_only=True)
class Scales(jx.Trial):
    scale: float = jx.traced(0.5)


def scheduled(trial):
    return optax.inject_hyperparams(optax.sgd)(lambda step: trial.learning_rate / (1 + step))


KEEPING = {
    "plain": ("learning_rate", lambda t: optax.adam(t.learning_rate), ""),
    "chained": ("learning_rate", lambda t: optax.chain(optax.clip(1.0), optax.sgd(
        t.learning_rate, 0.9)), ""),
    "injected": ("learning_rate", lambda t: optax.inject_hyperparams(optax.sgd)(
        learning_rate=t.learning_rate), r"state\.hyperparams\['learning_rate'\]: a copy would"),
    "computed anew": ("learning_rate", scheduled, ""),
    "computed anew in a branch": (
        "learning_rate", lambda t: optax.apply_if_finite(scheduled(t), 2), ""),
    "injected in a branch": ("learning_rate", lambda t: optax.apply_if_finite(
        optax.inject_hyperparams(optax.sgd)(learning_rate=t.learning_rate), 2), "a copy would"),
    "schedule-free": ("learning_rate", lambda t: contrib.schedule_free_sgd(t.learning_rate), ""),
    "average": ("scale", lambda t: contrib.schedule_free_sgd(
        t.learning_rate, b1=t.scale), r"scale is kept in the optimizer's state\.b1: a copy would"),
    "initial weights": ("scale", lambda t: optax.sgd(t.learning_rate), "scale: .* `init` alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEEPING)
def test_what_a_copy_would_not_change_is_refused(case):
    name, optimizer, refused = KEEPING[case]
    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.ones(2) * trial.scale},
        apply=lambda trial, params, x: x @ params["w"], loss=optax.squared_error,
        optimizer=optimizer,
    )  # fmt: skip
    space = jx.search.Space(Scales(batch_size=4), {name: jx.search.uniform(0.1, 0.9)})
    pbt = PBT(space, population=4)
    planned = jx.plan(pbt.sweep, task, jx.arrays(np.eye(8, 2), np.ones(8), validation=None))
    with pytest.raises(jx.UserError, match=refused) if refused else contextlib.nullcontext():
        api.controlled(planned, pbt)


def test_results_of_a_scan_depend_on_what_its_turns_pass_on():
    def turns(a, b, c, x_N):
        return jax.lax.scan(lambda own, x: ((own[0] + a, own[0], own[2]), x * c), (b, b, c), x_N)

    made = jax.make_jaxpr(turns)(1.0, 2.0, 3.0, jnp.ones(4))
    assert [jaxprs.depending(made, {i}) for i in range(4)] == [{0, 1}, {0, 1}, {2, 3}, {3}]


def test_what_a_model_keeps_in_its_state_is_refused():
    class Scaled(nnx.Module):
        def __init__(self, trial, rngs):
            self.linear, self.scale = nnx.Linear(2, 1, rngs=rngs), trial.scale

        def __call__(self, x):
            return self.linear(x)[:, 0] * self.scale

    task = jx.supervised(
        module=lambda trial, rngs: Scaled(trial, rngs),
        loss=lambda trial, prediction, y: (prediction - y) ** 2 / trial.scale,
    )
    space = jx.search.Space(Scales(batch_size=4), {"scale": jx.search.uniform(0.1, 0.9)})
    pbt = PBT(space, population=4)
    planned = jx.plan(pbt.sweep, task, jx.arrays(np.eye(8, 2), np.ones(8), validation=None))
    with pytest.raises(jx.UserError, match=r"scale is kept in the model's state.*scale.*: a copy"):
        api.controlled(planned, pbt)


def test_a_metric_that_there_is_not(problem):
    for search in (Hyperband(SPACE, metric="f1"), PBT(SPACE, metric="f1")):
        with pytest.raises(jx.UserError, match="metric='f1': expected one of loss, accuracy"):
            jx.run(search, *problem, progress=False)
