"""Optuna by ask and tell: what a study knows after a search is what it would know of Optuna's."""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

import jax
import numpy as np
import optax
import psutil
import pytest
from flax import linen as nn
from nights import at_night

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.base.files import write_whole
from jaxexp.execution.control import Control
from jaxexp.results.joining import join, sweep_over
from jaxexp.search import Space, choice, integers, loguniform, resuming, uniform
from jaxexp.search.reports import Asked, Reports, Together, of_study, tell
from jaxexp.search.resuming import (
    OWNER,
    TAKER,
    Folder,
    _begun,
    abandoned,
    ask,
    is_dead,
    take,
    this_process,
    under_way,
)
from jaxexp.search.studies import prepared
from jaxexp.search.suggestions import suggestions

op = pytest.importorskip("optuna")
from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState  # noqa: E402

op.logging.set_verbosity(op.logging.WARNING)
COMPLETE, PRUNED, FAIL, RUNNING = (
    TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING,
)  # fmt: skip
RATES = FloatDistribution(1e-4, 1.0, log=True)
BASE = jx.MLPTrial(epochs=3, depth=1, width=4, batch_size=16)
SPACE = (BASE, {"learning_rate": RATES})
DEAD = f"{os.uname().nodename} 1 0.00"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x_Nx2 = rng.normal(size=(96, 2)).astype(np.float32)
    return jx.arrays(x_Nx2, (x_Nx2.prod(1) > 0).astype(int))


def study(seed=0, direction="maximize", **options):
    sampler = options.pop("sampler", None) or op.samplers.RandomSampler(seed=seed)
    pruner = options.pop("pruner", op.pruners.NopPruner())
    return op.create_study(direction=direction, sampler=sampler, pruner=pruner, **options)


def run(own, data, space=SPACE, trials=6, **options):
    options = {"batch": 3, "metric": "accuracy", "progress": False} | options
    return jx.search.optuna(own, space, data=data, trials=trials, **options)


def give(own, data, numbers, process=DEAD):
    """Make trials those of a search like `run`, in a process."""
    for number in numbers:
        id_, owner = own.trials[number]._trial_id, f"{process}/0/{search(own, data).alike}/{number}"
        own._storage.set_trial_system_attr(id_, OWNER, owner)


def search(own, data, space=SPACE, batch=3):
    training = {"devices": None, "programs": "auto", "memory": None, "cluster": None, "nodes": None}
    return prepared(own, space, None, data, None, training, batch=batch, metric="accuracy")


def states(own):
    return [trial.state for trial in own.trials]


def test_a_study_knows_what_the_results_hold(data):
    own = study()
    results = run(own, data)
    assert states(own) == [COMPLETE] * 6
    assert results["accuracy"].dims == ("sample", "epoch", "split")
    curves = results["accuracy"].sel(split="validation")
    for trial, curve in zip(own.trials, curves.values, strict=True):
        assert trial.value == curve[-1]
        assert trial.intermediate_values == dict(enumerate(curve.tolist(), 1))
    rates = [trial.params["learning_rate"] for trial in own.trials]
    assert results["learning_rate"].values.tolist() == rates
    assert [t.user_attrs["trial_id"] for t in own.trials] == results["trial_id"].values.tolist()
    assert [t.user_attrs["batch"] for t in own.trials] == [1, 1, 1, 2, 2, 2]
    assert all(t.user_attrs["program"] == 1 and t.user_attrs["seconds"] > 0 for t in own.trials)
    assert own.metric_names == ["validation accuracy"]
    assert results.best("accuracy", "validation").curves["accuracy"][-1, 1] == own.best_value
    assert results.predict(data.train.x[:5]).shape == (5,)
    assert results.dataset.attrs["trials"] == 6


def test_a_batch_is_a_sweep_of_its_points(data):
    """Bit for bit: a batch is an ordinary run of as many trials."""
    results = run(study(), data)
    for part in (slice(0, 3), slice(3, 6)):
        rates = results["learning_rate"].values.tolist()[part]
        sweep = jx.Sweep(
            BASE, {("learning_rate",): rates}, dim_names={("learning_rate",): "sample"}
        )
        once = jx.run(sweep, data=data, progress=False)
        for name in ("loss", "accuracy", "step_loss", "diverged_epoch", "trial_id"):
            assert once[name].identical(results[name][part]), name
        again, expected = (
            results.params(learning_rate=rates[0]),
            once.params(learning_rate=rates[0]),
        )
        np.testing.assert_array_equal(
            again["first"]["affine"]["kernel"], expected["first"]["affine"]["kernel"]
        )
    assert set(once.dataset.attrs) | {"stopping", "ranked_by"} == set(results.dataset.attrs)
    assert once.dataset.attrs["base"] == results.dataset.attrs["base"]


SAMPLERS = {
    "tpe": lambda: op.samplers.TPESampler(seed=0, n_startup_trials=3),
    "qmc": lambda: op.samplers.QMCSampler(seed=0),
    "cmaes": lambda: op.samplers.CmaEsSampler(seed=0, n_startup_trials=2),
    "gp": lambda: op.samplers.GPSampler(seed=0, n_startup_trials=3),
    "nsga2": lambda: op.samplers.NSGAIISampler(seed=0, population_size=3),
}
NEEDS = {"cmaes": "cmaes", "gp": "torch"}


@pytest.mark.parametrize("name", at_night(SAMPLERS, "tpe", "qmc"))  # they are killed below
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_any_sampler(name, data):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"Optuna's sampler {name} needs {NEEDS[name]}")
    space = (BASE, {"learning_rate": RATES, "label_smoothing": FloatDistribution(0.1, 0.5)})
    own = study(sampler=SAMPLERS[name]())
    results = run(own, data, space)
    assert states(own) == [COMPLETE] * 6
    assert results["label_smoothing"].dims == ("sample",)
    assert len({tuple(trial.params.values()) for trial in own.trials}) > 3


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("every", [False, True])
def test_a_finite_sampler_ends_when_all_is_suggested(every, data):
    grid = {"learning_rate": [1e-3, 1e-2, 1e-1, 1.0]}
    sampler = op.samplers.GridSampler(grid, seed=0)
    space = SPACE
    if every:
        sampler = op.samplers.BruteForceSampler(seed=0)
        space = (BASE, {"learning_rate": CategoricalDistribution(grid["learning_rate"])})
    own = study(sampler=sampler)
    results = run(own, data, space, trials=50)
    rates = [trial.params["learning_rate"] for trial in own.trials]
    assert sorted(results["learning_rate"].values.tolist()) == grid["learning_rate"]
    assert set(states(own)) == {COMPLETE}
    assert len(rates) == 4
    with pytest.raises(UserError, match="nothing is left to train"):
        run(own, data, space)
    own.enqueue_trial({"learning_rate": 1e-2})
    assert run(own, data, space)["learning_rate"].values.tolist() == [1e-2]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_finite_search_called_again_asks_no_more(data, tmp_path):
    space = (BASE, {"learning_rate": CategoricalDistribution([1e-3, 1e-2, 1e-1])})
    own = study(sampler=op.samplers.BruteForceSampler(seed=0))
    for _ in range(2):
        results = run(own, data, space, trials=9, checkpoint_dir=tmp_path)
        assert states(own) == [COMPLETE] * 3
    assert results["loss"].sizes["sample"] == 3


@pytest.mark.parametrize("kind", at_night(["sqlite", "journal"], "sqlite"))
def test_any_storage(kind, data, tmp_path):
    if kind == "sqlite":
        storage = f"sqlite:///{tmp_path}/study.db"
    else:
        backend = op.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
        storage = op.storages.JournalStorage(backend)
    own = study(storage=storage, study_name="mine", pruner=op.pruners.PercentilePruner(50.0))
    run(own, data, trials=3)
    loaded = op.load_study(study_name="mine", storage=storage)
    memory = study()
    run(memory, data, trials=3)
    assert [(t.state, t.value, t.intermediate_values) for t in loaded.trials] == [
        (t.state, t.value, t.intermediate_values) for t in memory.trials
    ]
    more = op.create_study(
        study_name="mine", storage=storage, load_if_exists=True, direction="maximize",
        sampler=op.samplers.RandomSampler(seed=1), pruner=op.pruners.NopPruner(),
    )  # fmt: skip
    run(more, data, trials=3)
    assert states(op.load_study(study_name="mine", storage=storage)) == [COMPLETE] * 6


PRUNERS = {
    "median": lambda: op.pruners.MedianPruner(n_startup_trials=3),
    "halving": lambda: op.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: op.pruners.HyperbandPruner(1, 3, reduction_factor=2),
    "threshold": lambda: op.pruners.ThresholdPruner(lower=0.5),
    "patient": lambda: op.pruners.PatientPruner(op.pruners.NopPruner(), patience=1),
}


@pytest.mark.parametrize("name", at_night(PRUNERS, "threshold"))
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_pruned_trial_is_the_start_of_the_whole_one(name, data):
    own, whole = study(pruner=PRUNERS[name]()), study()
    pruned, complete = run(own, data, trials=12, batch=6), run(whole, data, trials=12, batch=6)
    assert {COMPLETE, PRUNED} >= set(states(own))
    if name != "patient":
        assert PRUNED in states(own)
    trained = pruned["epochs_trained"].values.tolist()
    for trial, other, epochs in zip(own.trials, whole.trials, trained, strict=True):
        assert trial.params == other.params
        assert trial.last_step == epochs
        assert (trial.state == PRUNED) == (epochs < 3)
        assert trial.value == trial.intermediate_values[epochs]
        same = {e: v for e, v in other.intermediate_values.items() if e <= epochs}
        assert trial.intermediate_values == same
    ends = pruned["epoch"] <= pruned["epochs_trained"]
    np.testing.assert_array_equal(
        pruned["loss"].values, complete["loss"].where(ends).transpose(*pruned["loss"].dims).values
    )


def test_a_threshold_prunes_what_is_below_it(data):
    own = study(pruner=op.pruners.ThresholdPruner(lower=0.5))
    run(own, data)
    for trial in own.trials:
        low = [epoch for epoch, value in trial.intermediate_values.items() if value < 0.5]
        first = min(low, default=3)
        assert trial.state == (PRUNED if first < 3 else COMPLETE)
        assert trial.last_step == first if first < 3 else trial.last_step == 3


def test_no_pruning_when_it_is_not_wanted_and_fewer_reports(data):
    own = study(pruner=op.pruners.ThresholdPruner(lower=2.0))
    run(own, data, prune=False, report_every=2)
    assert states(own) == [COMPLETE] * 6
    assert all(list(trial.intermediate_values) == [2] for trial in own.trials)
    own = study(pruner=op.pruners.ThresholdPruner(lower=2.0))
    run(own, data, report_every=2)
    assert states(own) == [PRUNED] * 6
    assert all(trial.last_step == 2 for trial in own.trials)


@pytest.mark.nightly
def test_a_diverged_trial_fails(data):
    own = study()
    rates = CategoricalDistribution([1e-3, 1e30])
    own.enqueue_trial({"learning_rate": 1e30})
    own.enqueue_trial({"learning_rate": 1e-3})
    results = run(own, data, (BASE.replace(optimizer="sgd"), {"learning_rate": rates}), trials=2)
    assert states(own) == [FAIL, COMPLETE]
    failed = own.trials[0]
    assert failed.value is None
    epoch = failed.user_attrs["diverged_epoch"]
    assert epoch == results["diverged_epoch"].values[0] > 0
    assert np.isnan(failed.intermediate_values[epoch])
    assert "diverged_epoch" not in own.trials[1].user_attrs


LINEAR = jx.supervised(
    module=lambda trial: nn.Dense(1),
    loss=lambda prediction, y: ((prediction - y) ** 2).sum(-1),
    metrics={"r2": jx.metrics.r2},
    optimizer=lambda trial, steps: optax.sgd(trial.learning_rate),
)


@pytest.fixture(scope="module")
def constant():
    """Targets that are one on the validation split, of which there is no R²."""
    x_Nx2 = np.random.default_rng(0).uniform(-2, 2, (90, 2)).astype(np.float32)
    y_Nx1 = np.ones((90, 1), np.float32)
    return jx.arrays(x_Nx2, x_Nx2 @ [[1.0], [2.0]], validation=(x_Nx2, y_Nx1))


def test_a_metric_that_is_not_finite_fails_a_trial_whose_loss_is(constant):
    own = study()
    space = (jx.Trial(epochs=8, batch_size=8), {"learning_rate": FloatDistribution(1e-3, 1e-2)})
    results = run(own, constant, space, trials=2, task=LINEAR, metric="r2")
    assert states(own) == [FAIL] * 2
    assert np.isfinite(results["loss"].values).all()
    assert "diverged_epoch" not in own.trials[0].user_attrs


def test_a_diverged_trial_diverges_again_where_its_checkpoints_are_gone(constant, tmp_path):
    own = study(direction="minimize", pruner=op.pruners.MedianPruner(n_startup_trials=9))
    space = (jx.Trial(epochs=8, batch_size=8), {"learning_rate": CategoricalDistribution([2.0])})
    options = {"task": LINEAR, "metric": "loss", "trials": 1, "checkpoint_dir": tmp_path}
    before = run(own, constant, space, report_every=2, **options)
    assert own.trials[0].last_step < before["diverged_epoch"].item()
    shutil.rmtree(tmp_path / Folder.name(0))
    after = run(own, constant, space, report_every=2, **options)
    assert after["diverged_epoch"].identical(before["diverged_epoch"])


def test_an_error_in_training_fails_the_batch_and_is_raised(data, monkeypatch):
    own = study()

    def broken(*args, **options):
        raise ZeroDivisionError("a mistake of the user's")

    monkeypatch.setattr("jaxexp.search.studies.run", broken)
    with pytest.raises(ZeroDivisionError):
        run(own, data)
    assert states(own) == [FAIL] * 3


def test_an_error_of_the_space_fails_what_was_asked(data):
    own = study()
    with pytest.raises(UserError, match="expected a trial"):
        run(own, data, lambda trial: trial.suggest_float("learning_rate", 0.1, 0.2))
    with pytest.raises(UserError, match="batch_size=500: larger than"):
        run(own, data, lambda trial: BASE.replace(batch_size=trial.suggest_int("b", 500, 500)))
    assert set(states(own)) == {FAIL}


def test_a_search_goes_on_after_a_suggestion_that_cannot_be(data, tmp_path):
    """The sampler of a new process begins anew, and would suggest it again."""
    space = {"width": FloatDistribution(2, 6)}  # of a whole number: most cannot be
    own = study()
    for _ in range(3):
        own.sampler = op.samplers.RandomSampler(seed=0)
        with pytest.raises(UserError, match="expected a whole number"):
            run(own, data, (BASE, space), checkpoint_dir=tmp_path)
    assert states(own) == [FAIL] * 3
    assert len({trial.params["width"] for trial in own.trials}) == 3


def test_a_function_that_suggests_the_seed_is_refused_with_several_seeds(data):
    own = study()
    with pytest.raises(UserError, match="seeds=2: the seed is suggested already, by the space"):
        run(own, data, lambda trial: BASE.replace(seed=5 * trial.number), seeds=2)
    assert states(own) == [FAIL] * 2


@dataclass(frozen=True, kw_only=True)
class LabelTrial(jx.MLPTrial):
    label: int | str = 8
    depth_width: int = 1


class Labelled(jx.MLPClassification):
    def init(self, trial, rng, data):
        assert trial.label in (8, "8")
        return super().init(trial, rng, data)


@pytest.mark.nightly
def test_suggestions_that_are_written_alike_are_refused(data):
    """Before the second one trains, though it comes in another batch."""
    base = LabelTrial(**BASE.values())
    own = study()

    def suggest(trial):
        return base.replace(label=[8, "8"][trial.number])

    with pytest.raises(UserError, match="label: 8 and '8' are both written '8'"):
        run(own, data, suggest, trials=2, batch=1, task=Labelled())
    assert states(own) == [COMPLETE, FAIL]
    labels = {"label": CategoricalDistribution([8, "8"])}
    with pytest.raises(UserError, match="are both written '8'"):
        run(own := study(), data, (base, labels), task=Labelled())
    assert not own.trials


def test_the_same_suggestion_is_trained_once_and_told_to_each(data):
    rates = {"learning_rate": CategoricalDistribution([1e-3, 1e-2])}
    own = study()
    results = run(own, data, (BASE, rates), trials=12)
    assert results["loss"].sizes["sample"] == 2
    assert states(own) == [COMPLETE] * 12
    for rate in (1e-3, 1e-2):
        alike = [t for t in own.trials if t.params["learning_rate"] == rate]
        assert len({t.value for t in alike}) == 1
        assert len({tuple(t.intermediate_values.items()) for t in alike}) == 1
        assert alike[0].value == results.trial(learning_rate=rate).curves["accuracy"][-1, 1]


def test_a_known_suggestion_is_judged_anew(data):
    """Trained whole in the first batch, it is pruned in the second, and its curve kept."""
    rates = {"learning_rate": CategoricalDistribution([1e-3])}
    own = study(pruner=op.pruners.NopPruner())
    results = run(own, data, (BASE, rates), trials=2, batch=1)
    assert states(own) == [COMPLETE] * 2
    own.pruner = op.pruners.ThresholdPruner(lower=2.0)
    results = run(own, data, (BASE, rates), trials=2, batch=1)
    assert states(own)[2:] == [PRUNED] * 2
    assert results["epochs_trained"].values.tolist() == [1]


class PrunesOne(op.pruners.BasePruner):
    """The first trial, after an epoch."""

    def prune(self, study, trial):
        return trial.number == 0


def test_a_suggestion_that_was_pruned_is_trained_again(data, tmp_path):
    own, rates = study(pruner=PrunesOne()), {"learning_rate": CategoricalDistribution([1e-3])}
    for _ in range(2):  # resumed, it is as it was
        results = run(own, data, (BASE, rates), 2, batch=1, checkpoint_dir=tmp_path)
        assert [(t.state, t.last_step) for t in own.trials] == [(PRUNED, 1), (COMPLETE, 3)]
        assert own.trials[1].value == results.best("accuracy").curves["accuracy"][-1, 1]
        assert results["epochs_trained"].values.tolist() == [3]


class PrunesLong(op.pruners.BasePruner):
    """What has more than two epochs, after its first."""

    def prune(self, study, trial):
        return trial.params["epochs"] > 2


def test_suggestions_that_differ_in_their_epochs_alone_are_each_reported_and_judged(data):
    """The shorter one is no part of the longer one, with which it would end."""
    own = study(pruner=PrunesLong())
    for epochs in (2, 3):
        own.enqueue_trial({"epochs": epochs})
    results = run(own, data, (BASE, {"epochs": IntDistribution(2, 3)}), trials=2)
    assert states(own) == [COMPLETE, PRUNED]
    assert [list(trial.intermediate_values) for trial in own.trials] == [[1, 2], [1]]
    assert results["epochs_trained"].values.tolist() == [2, 1]
    assert Control(Together(None, [1])).of_every_trial  # where a cluster trains


def test_of_a_point_trained_twice_the_results_are_those_of_the_longer(data):
    def trained(epochs):
        sweep = sweep_over(BASE, ["learning_rate"], [BASE], [0, 1], "mine")
        rule = jx.Budget(steps=epochs * data.steps_of(BASE) // BASE.epochs)
        return jx.run(sweep, data=data, progress=False, stopping=rule)

    runs = trained(2), trained(1)
    made = join(runs, "mine", [0, 1])
    assert (made["epochs_trained"] == 2).all()
    jax.tree.map(np.testing.assert_array_equal, dict(made.kept()), dict(runs[0].kept()))


@pytest.mark.nightly
def test_each_suggestion_with_several_seeds(data):
    own = study()
    results = run(own, data, trials=4, batch=2, seeds=2)
    assert results["accuracy"].sizes == {"sample": 4, "seed": 2, "epoch": 3, "split": 2}
    assert results["seed"].values.tolist() == [0, 1]
    mean = results["accuracy"].sel(split="validation").astype(float).mean("seed")
    for trial, curve in zip(own.trials, mean.values, strict=True):
        np.testing.assert_allclose(list(trial.intermediate_values.values()), curve, rtol=1e-12)
        np.testing.assert_allclose(trial.value, curve[-1], rtol=1e-12)
    assert jx.seeds.average(results.dataset)["accuracy"].dims == ("sample", "epoch", "split")


def test_several_objectives(data):
    own = op.create_study(directions=["maximize", "minimize"], sampler=op.samplers.RandomSampler(0))
    results = run(own, data, trials=3, metric=["accuracy", "loss"])
    assert own.metric_names == ["validation accuracy", "validation loss"]
    for trial, accuracy, loss in zip(
        own.trials, results["accuracy"][:, -1, 1], results["loss"][:, -1, 1], strict=True
    ):
        assert trial.values == [float(accuracy), float(loss)]
        assert not trial.intermediate_values
    assert own.best_trials


CONDITIONAL = Space(
    BASE,
    {
        "learning_rate": loguniform(1e-3, 1e-1),
        "momentum": uniform(0.1, 0.9).when(optimizer="sgd"),
        "optimizer": choice(["adam", "sgd"]),
    },
)


def test_a_conditional_parameter_is_suggested_where_it_holds(data):
    own = study()
    results = run(own, data, CONDITIONAL)
    for trial, momentum in zip(own.trials, results["momentum"].values, strict=True):
        sgd = trial.params["optimizer"] == "sgd"
        assert ("momentum" in trial.params) == sgd
        assert momentum == (trial.params["momentum"] if sgd else 0.0)
    assert {trial.params["optimizer"] for trial in own.trials} == {"adam", "sgd"}


def test_spaces_become_the_distributions_of_optuna():
    space = Space(
        BASE,
        {
            "batch_size": integers(8, 16, step=8),
            ("depth", "width"): [(1, 8), (2, 4)],
            "learning_rate": loguniform(1e-3, 1e-1),
            "dropout": uniform(0, 0.5),
        },
    )
    made = suggestions(space)
    assert made.distributions == {
        "batch_size": IntDistribution(8, 16, step=8),
        "depth_width": CategoricalDistribution(["1-8", "2-4"]),
        "learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
        "dropout": FloatDistribution(0, 0.5),
    }
    fixed = {"batch_size": 8, "depth_width": "2-4", "learning_rate": 0.01, "dropout": 0.25}
    trial = made.suggest(op.trial.FixedTrial(fixed))
    assert (trial.batch_size, trial.depth, trial.width, trial.dropout) == (8, 2, 4, 0.25)


def test_a_function_of_the_trial_as_optuna_has_it(data):
    def suggest(trial):
        rate = trial.suggest_float("log10_rate", -4, 0)
        return BASE.replace(learning_rate=10**rate)

    own = study()
    results = run(own, data, suggest)
    made = [10 ** trial.params["log10_rate"] for trial in own.trials]
    assert results["learning_rate"].values.tolist() == made


def prunes_some(trial):
    """The second and the third batch begin with a trial that is not to be trained."""
    rate = trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)
    if trial.number in (3, 6):
        raise op.TrialPruned
    return BASE.replace(learning_rate=rate)


def test_a_function_may_prune_what_it_suggests(data):
    own = study()
    results = run(own, data, prunes_some, trials=9)
    rates = [t.params["learning_rate"] for t in own.trials]
    assert [t.number for t in own.trials if t.state == PRUNED] == [3, 6]
    assert set(states(own)) == {COMPLETE, PRUNED}
    trained = [rate for at, rate in enumerate(rates) if at not in (3, 6)]
    assert results["learning_rate"].values.tolist() == trained
    assert own.trials[3].value is None


def test_a_function_that_prunes_everything_ends(data):
    def suggest(trial):
        raise op.TrialPruned

    own = study()
    with pytest.raises(UserError, match=r"nothing is left .* suggests has pruned 6 trials"):
        run(own, data, suggest)
    assert states(own) == [PRUNED] * 6


def test_an_error_of_the_function_leaves_what_it_has_pruned(data):
    def suggest(trial):
        if trial.number == 1:
            raise op.TrialPruned
        return BASE if trial.number == 0 else 1 / 0

    own = study()
    with pytest.raises(ZeroDivisionError):
        run(own, data, suggest)
    assert states(own) == [FAIL, PRUNED, FAIL]


def test_a_function_cannot_stop_the_study(data):
    own = study()

    def suggest(trial):
        own.stop()
        return BASE

    with pytest.raises(UserError, match=r"called study\.stop\(\), .* expected optuna\.TrialPruned"):
        run(own, data, suggest)


def test_what_was_enqueued_comes_first(data):
    own = study()
    own.enqueue_trial({"learning_rate": 0.5})
    run(own, data, trials=2)
    assert own.trials[0].params == {"learning_rate": 0.5}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_plots_of_optuna_take_the_study(data):
    own = study(pruner=op.pruners.MedianPruner(n_startup_trials=3))
    run(own, data, CONDITIONAL, trials=8, batch=4)
    plots = op.visualization
    for plot in (
        plots.plot_optimization_history, plots.plot_intermediate_values, plots.plot_edf,
        plots.plot_parallel_coordinate, plots.plot_slice, plots.plot_timeline,
        plots.plot_contour, plots.plot_rank,
    ):  # fmt: skip
        assert plot(own).data, plot.__name__
    assert len(plots.plot_intermediate_values(own).data) == 8
    assert own.trials_dataframe()["user_attrs_trial_id"].nunique() == 8


# Interruption: what was asked and not told is trained under its own number.


def test_trials_of_a_dead_process_are_trained_again(data):
    own, whole = study(), study()
    alive = own.ask()
    alive.suggest_float("learning_rate", 1e-4, 1.0, log=True)
    dead = own.ask()
    dead.suggest_float("learning_rate", 1e-4, 1.0, log=True)
    dead.report(0.0, 1)
    give(own, data, [1])
    results = run(own, data, trials=3)
    run(whole, data, trials=4)
    assert states(own) == [RUNNING, COMPLETE, COMPLETE, COMPLETE]
    assert results["loss"].sizes["sample"] == 3
    assert [t.params for t in own.trials] == [t.params for t in whole.trials]
    assert own.trials[1].value == whole.trials[1].value


def test_a_living_process_is_none_that_is_dead_when_the_clock_is_set(monkeypatch):
    own, created = this_process(), psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 2)
    assert not is_dead(own)
    assert is_dead(own + "0")


def test_a_process_that_is_killed_and_not_waited_for_is_dead(monkeypatch):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        name = f"{os.uname().nodename} {process.pid} {_begun(process.pid)}"
        assert not is_dead(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert is_dead(name)

    def hidden(*args):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "status", hidden)
    monkeypatch.setattr("jaxexp.search.resuming._begun", hidden)
    assert not is_dead(DEAD)


def test_an_abandoned_trial_that_another_has_taken_up_or_ended_is_left_alone(data):
    class Others:
        def note(self, text): ...
        def moved(self, program, epochs): ...
        def compiling(self, program):
            if own.trials[1].state == RUNNING:
                own.tell(1, state=FAIL)
                run(own, data, trials=1, progress=Another())

    class Another(Others):
        def compiling(self, program):
            run(own, data, trials=1)
            taken.append(states(own))

    own, taken = study(), []
    give(own, data, [own.ask().number for _ in range(3)])
    run(own, data, trials=2, batch=1, progress=Others())
    # The second search trains the third trial, while a third one trains a new one.
    assert taken == [[RUNNING, FAIL, RUNNING, COMPLETE]]
    assert states(own) == [COMPLETE, FAIL, COMPLETE, COMPLETE, COMPLETE]


def test_trials_of_a_search_that_is_over_are_those_of_others_like_it(monkeypatch):
    own, like = study(), f"{this_process()}/0/like"
    with under_way(own, "like") as first:
        ask(own, first)
        assert not abandoned(own, like)
        with pytest.raises(UserError, match="trial 0 is trained by another search of this process"):
            take(own, own.trials[0], like)
    own.add_trial(own.trials[0])  # whose attributes are those of the first
    monkeypatch.setattr(resuming, "this_process", lambda: f"{os.uname().nodename} 1 1.0")
    assert [trial.number for trial in abandoned(own, like)] == [0]
    assert not abandoned(own, f"{this_process()}/0/unlike")


def test_a_new_trial_is_of_the_search_that_asks_it_though_another_asks_meanwhile(monkeypatch):
    def slower(*args):
        create(own._study_id)
        return create(*args)

    own = study()
    create = own._storage.create_new_trial
    monkeypatch.setattr(own._storage, "create_new_trial", slower)
    with under_way(own, "like") as first:
        assert ask(own, first).number == 1
    assert [trial.number for trial in abandoned(own, first)] == [1]


def test_no_two_searches_have_one_name_though_the_module_is_imported_anew():
    spec, names, own = importlib.util.find_spec(resuming.__name__), set(), study()
    for _ in range(2):
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        with module.under_way(own, "like") as name:
            names.add(name)
    assert len(names) == 2


def test_searches_are_alike_where_they_train_the_same(data):
    own = study()
    alike = {
        search(own, own_data, (base, SPACE[1]), batch).alike
        for own_data, base, batch in [
            (data, BASE, 3), (data, BASE, 2), (data, BASE.replace(width=64), 3),
            (jx.arrays(data.train.x, data.train.y), BASE, 3),
        ]
    }  # fmt: skip
    assert len(alike) == 3
    functions = [search(own, own_data, prunes_some).alike for own_data in (data, data)]
    assert len({*functions, *alike}) == 4


def test_searches_look_for_trials_one_after_the_other(data, monkeypatch):
    def taking(*args):
        if not asked:
            asked.append(None)
            other.start()
            other.join(0.2)  # it waits
        return take(*args)

    own, asked = study(), []
    give(own, data, [own.ask().number for _ in range(2)])
    first, second = search(own, data), search(own, data)
    other = threading.Thread(target=lambda: asked.append(second._next()))
    monkeypatch.setattr("jaxexp.search.batches.take", taking)
    with under_way(own, first.alike) as first.owner, under_way(own, first.alike) as second.owner:
        asked.append(first._next())
        other.join()
    assert {each.number for each in asked[1:]} == {0, 1}


def test_a_trial_that_another_ends_while_its_batch_is_asked_ends_no_search(data, tmp_path):
    def suggest(trial):
        if trial.number == last and states(own)[last - 1] == RUNNING:
            own.tell(last - 1, state=FAIL)
            if last == 1:
                raise KeyboardInterrupt
        return BASE.replace(seed=trial.number)

    own, last = study(), 1
    with pytest.raises(KeyboardInterrupt):
        run(own, data, suggest, trials=2, checkpoint_dir=tmp_path)
    last = 2
    run(own, data, suggest, trials=2, checkpoint_dir=tmp_path)
    assert states(own) == [FAIL, FAIL, COMPLETE]


class KillAt:
    """A progress that ends its process at an epoch of a batch."""

    def __init__(self, epoch, batch):
        self.epoch, self.batch, self.begun = epoch, batch, 0

    def compiling(self, program):
        self.begun += 1

    def moved(self, program, epochs):
        if self.begun == self.batch and epochs >= self.epoch:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, text):
        pass


def long_search(folder, data, progress):
    storage = op.storages.JournalStorage(
        op.storages.journal.JournalFileBackend(str(folder / "study.log"))
    )
    own = op.create_study(
        study_name="killed", storage=storage, load_if_exists=True, direction="maximize",
        sampler=op.samplers.TPESampler(seed=0, n_startup_trials=3),
        pruner=op.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )  # fmt: skip
    # One device: the process that is killed has as many as the machine.
    options = {"checkpoint_dir": folder / "search", "progress": progress, "devices": 1}
    results = run(own, data, trials=9, **options)
    return own, results


@pytest.mark.integration
@pytest.mark.parametrize(
    ("batch", "epoch"), [(1, 3), pytest.param(3, 1, marks=pytest.mark.nightly)]
)
def test_killed_and_resumed_is_as_never_killed(batch, epoch, data, tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=long_search, args=(tmp_path, data, KillAt(epoch, batch))
    )
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    own, results = long_search(tmp_path, data, False)
    (tmp_path / "whole").mkdir()
    whole, expected = long_search(tmp_path / "whole", data, False)
    told = [(t.number, t.params, t.state, t.value, t.intermediate_values) for t in own.trials]
    assert told == [
        (t.number, t.params, t.state, t.value, t.intermediate_values) for t in whole.trials
    ]
    for name in ("loss", "accuracy", "step_loss", "trial_id"):
        assert results[name].identical(expected[name])


def test_the_same_call_resumes_a_search_and_more_trials_extend_it(data, tmp_path):
    own, whole = study(), study()
    first = run(own, data, trials=3, checkpoint_dir=tmp_path)
    own.sampler = op.samplers.RandomSampler(seed=0)  # as a new process makes it
    results = run(own, data, trials=6, checkpoint_dir=tmp_path)
    expected = run(whole, data, trials=6)
    assert len(own.trials) == 6
    assert results["accuracy"].identical(expected["accuracy"])
    assert first["accuracy"].identical(results["accuracy"][:3])
    own.sampler = op.samplers.RandomSampler(seed=0)
    of_numpy = {"trials": np.int64(6), "batch": np.int64(3), "seeds": np.int64(1)}
    again = run(own, data, checkpoint_dir=tmp_path, **of_numpy)
    assert again["loss"].identical(results["loss"])
    assert len(own.trials) == 6


class Killed(BaseException):
    """Ends a process without a trace."""


@pytest.mark.parametrize(
    ("window", "name", "nth"),  # in the first batch, before anything is listed, or later
    [
        *(("create_new_trial", "tpe", nth) for nth in (1, 4)),
        pytest.param("set_trial_param", "tpe", 1, marks=pytest.mark.nightly),
        ("set_trial_param", "tpe", 4),
        *(("keep_sampler", "tpe", nth) for nth in (1, 4)),
        *(("set_study_system_attr", "qmc", nth) for nth in (1, 4)),
        *(pytest.param("set_trial_param", "qmc", n, marks=pytest.mark.nightly) for n in (1, 4)),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_interrupted_while_it_asks_a_search_goes_on_as_never_interrupted(
    window, name, nth, data, tmp_path, monkeypatch
):
    sampler = SAMPLERS[name]
    own, whole = study(sampler=sampler()), study(sampler=sampler())
    for each in (own, whole):
        each.set_user_attr("most", 0.5)

    def space(trial):
        rate = trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)
        dropout = trial.suggest_float("dropout", 0, trial.study.user_attrs["most"])
        return BASE.replace(learning_rate=rate, dropout=dropout)

    expected = run(whole, data, space)
    place = Folder if window == "keep_sampler" else own._storage
    method, calls = getattr(place, window), []
    # Before the first trial, the sampler is kept, and the names of metrics are set.
    last = {"create_new_trial": nth, "set_trial_param": 2 * nth - 1}.get(window, nth + 1)

    def killing(*args, **options):
        calls.append(args)
        keeps = window == "keep_sampler" and len(calls) == last
        made = None if keeps else method(*args, **options)
        if len(calls) == last:
            raise Killed
        return made

    with monkeypatch.context() as patch:
        patch.setattr(place, window, killing)
        with contextlib.suppress(Killed):
            run(own, data, space, checkpoint_dir=tmp_path)
    if len(calls) < last:
        pytest.skip(f"Optuna {op.__version__} calls {window} {len(calls)} times")
    assert states(own)[-1] == RUNNING
    own.sampler = sampler()
    results = run(own, data, space, checkpoint_dir=tmp_path)
    assert states(own) == [COMPLETE] * 6
    assert [trial.params for trial in own.trials] == [trial.params for trial in whole.trials]
    assert results["loss"].identical(expected["loss"])


def test_a_function_has_the_number_of_a_trial_again_when_it_is_resumed(data, tmp_path):
    own = study()

    def suggest(trial):
        return BASE.replace(seed=trial.number)

    for trials in (3, 6):
        own.sampler = op.samplers.RandomSampler(seed=0)
        results = run(own, data, suggest, trials=trials, checkpoint_dir=tmp_path)
    assert results["seed"].values.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.nightly
def test_a_function_has_the_attributes_of_a_trial_and_its_study_again(data, tmp_path):
    own = study()
    own.set_user_attr("least", 1e-3)
    own.enqueue_trial({"learning_rate": 0.5}, user_attrs={"width": 8})

    def suggest(trial):
        rate = trial.suggest_float("learning_rate", trial.study.user_attrs["least"], 1.0)
        return BASE.replace(learning_rate=rate, width=trial.user_attrs.get("width", 4))

    options = {"trials": 2, "checkpoint_dir": tmp_path}
    for _ in range(2):
        assert run(own, data, suggest, **options)["width"].values.tolist() == [8, 4]
    with pytest.raises(UserError, match=r"trial 1 cannot be suggested again \(KeyError: 'width'"):
        run(own, data, lambda trial: BASE.replace(width=trial.user_attrs["width"]), **options)


def test_an_enqueued_trial_outlives_the_process_that_takes_it(data, monkeypatch):
    def taking(*args, **options):
        take(*args, **options)
        raise Killed

    own = study()
    own.enqueue_trial({"learning_rate": 0.5})
    take = own._storage.set_trial_state_values
    with monkeypatch.context() as patched:
        patched.setattr(own._storage, "set_trial_state_values", taking)
        with pytest.raises(Killed):
            run(own, data)
    assert states(own) == [RUNNING]
    run(own, data, trials=1)
    assert [(t.state, t.params) for t in own.trials] == [(COMPLETE, {"learning_rate": 0.5})]


def test_an_enqueued_trial_is_of_whoever_has_given_it_parameters(data):
    own = study()
    own.enqueue_trial({"learning_rate": 0.5})
    give(own, data, [0])
    attrs = own._storage.get_trial_system_attrs(own.trials[0]._trial_id)
    attrs[TAKER] = attrs.pop(OWNER)
    own.ask(SPACE[1])  # as a worker of Optuna's does
    run(own, data, trials=1)
    assert states(own) == [RUNNING, COMPLETE]


@pytest.mark.parametrize("kept", [True, False])
def test_a_database_lost_while_a_batch_is_asked_fails_no_trial(kept, data, tmp_path, monkeypatch):
    def lost(*args, **options):
        raise op.exceptions.StorageInternalError("the database is gone")

    def losing(*args):
        if args[0] == 1:
            for name in ("set_trial_param", "set_trial_user_attr", "set_trial_state_values"):
                patched.setattr(own._storage, name, lost)
            lost()
        write(*args)

    own, whole = study(), study()
    write = own._storage.set_trial_param
    options = {"trials": 3, "checkpoint_dir": tmp_path if kept else None}
    with monkeypatch.context() as patched:
        patched.setattr(own._storage, "set_trial_param", losing)
        with pytest.raises(UserError, match="asked or told: StorageInternalError: the database is"):
            run(own, data, **options)
    assert states(own) == [RUNNING] * 2
    run(own, data, **options)
    run(whole, data, trials=3)
    assert states(own) == [COMPLETE] * 3
    if kept:
        told = [[(t.params, t.value) for t in each.trials] for each in (own, whole)]
        assert told[0] == told[1]


def test_a_folder_of_another_search_is_refused(data, tmp_path):
    own = study(study_name="one")
    run(own, data, trials=3, checkpoint_dir=tmp_path)
    with pytest.raises(UserError, match="of another search: metric was \\['accuracy'\\]"):
        run(study(study_name="one", direction="minimize"), data, metric="loss",
            checkpoint_dir=tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="study='one': it has no trial 2, expected the study"):
        run(study(study_name="one"), data, checkpoint_dir=tmp_path)
    kept = json.loads((tmp_path / "search.json").read_text())
    damages = [
        {"batches": None}, {"batches": [[0, 1, "2"]]}, {"batches": [[0], []]},
        {"batches": [[0, 1], [1, 2]]}, {"failed": [1]}, {"pruned": [3]},
    ]  # fmt: skip
    for broken in ("null", "[" * 100_000, *(json.dumps(kept | damage) for damage in damages)):
        (tmp_path / "search.json").write_text(broken)
        with pytest.raises(UserError, match=r"search\.json: cannot be read \(it is not as it was"):
            run(own, data, checkpoint_dir=tmp_path)
    (tmp_path / "search.json").write_text(json.dumps(kept))
    sampler = (tmp_path / "sampler.pickle").read_bytes()
    write_whole(tmp_path / "others", pickle.dumps(("x", own.sampler, {})), seal=True)
    others = (tmp_path / "others").read_bytes()
    for broken in (b"", sampler[: len(sampler) // 2], others):
        (tmp_path / "sampler.pickle").write_bytes(broken)
        with pytest.raises(UserError, match=r"sampler\.pickle: .* \(it is not as it was written\)"):
            run(own, data, checkpoint_dir=tmp_path)
    with (
        Folder.held(tmp_path / "empty", {}),
        pytest.raises(UserError, match="empty: another search is using this folder"),
        Folder.held(tmp_path / "empty", {}),
    ):
        pass
    (tmp_path / "sampler.pickle").unlink()
    with pytest.raises(UserError, match=r"sampler\.pickle: .* \(it is missing\)"):
        run(own, data, checkpoint_dir=tmp_path)
    (tmp_path / "sampler.pickle").write_bytes(sampler)
    (tmp_path / "search.json").unlink()
    with pytest.raises(UserError, match="expected an empty folder"):
        run(own, data, checkpoint_dir=tmp_path)


def test_an_interrupted_batch_fails_unless_it_can_be_resumed(data, tmp_path):
    class Interrupting:
        def compiling(self, program): ...
        def note(self, text): ...
        def moved(self, program, epochs):
            if epochs == 2:
                raise KeyboardInterrupt

    own = study()
    with pytest.raises(KeyboardInterrupt):
        run(own, data, progress=Interrupting())
    assert states(own) == [FAIL] * 3
    own, whole = study(), study()
    with pytest.raises(KeyboardInterrupt):
        run(own, data, progress=Interrupting(), checkpoint_dir=tmp_path)
    assert states(own) == [RUNNING] * 3
    run(own, data, checkpoint_dir=tmp_path)
    run(whole, data)
    assert [(t.params, t.value) for t in own.trials] == [(t.params, t.value) for t in whole.trials]


def test_a_batch_is_taken_up_unless_another_process_trains_its_trials(data, tmp_path, monkeypatch):
    class Interrupting:
        def compiling(self, program): ...
        def note(self, text): ...
        def moved(self, program, epochs):
            raise KeyboardInterrupt

    class Telling(Interrupting):
        def moved(self, program, epochs):
            owners.update(trial.system_attrs[OWNER] for trial in own.trials)
            if own.trials[2].state == RUNNING:
                own.tell(2, state=FAIL)

    own, owners = study(), set()
    options = {"trials": 3, "checkpoint_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        run(own, data, progress=Interrupting(), **options)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", os.getppid)
        give(own, data, range(3), this_process())
    with pytest.raises(UserError, match=f"trial 0 is trained by the process {os.getppid()} now"):
        run(own, data, **options)
    give(own, data, range(3))
    results = run(own, data, progress=Telling(), **options)
    assert {owner.partition("/")[0] for owner in owners} == {this_process()}
    assert states(own) == [COMPLETE, COMPLETE, FAIL]  # by whoever told it
    assert results["epochs_trained"].values.tolist() == [3] * 3


def test_a_call_that_is_refused_loses_nothing(data, tmp_path):
    own, options = study(), {"trials": 3, "checkpoint_dir": tmp_path}
    results = run(own, data, **options)
    other = jx.arrays(data.train.x, 1 - data.train.y)
    with pytest.raises(UserError, match="checkpoints of another run: "):
        run(own, other, **options)
    assert run(own, data, **options)["loss"].identical(results["loss"])


ERRORS = [
    (UserError("checkpoints of another run"), RUNNING),
    (OSError(28, "No space left on device"), RUNNING),
    (ZeroDivisionError("a mistake of the user's"), FAIL),
]


@pytest.mark.parametrize(("error", "state"), ERRORS, ids=lambda own: type(own).__name__)
def test_a_batch_has_failed_where_its_training_has(error, state, data, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise error

    own, options = study(), {"checkpoint_dir": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr("jaxexp.search.studies.run", broken)
        with pytest.raises(type(error)):
            run(own, data, trials=3, **options)
    assert states(own) == [state] * 3
    if state == FAIL:
        with pytest.raises(UserError, match="to train; the training of 3 trials has raised an err"):
            run(own, data, trials=3, **options)
        assert run(own, data, **options).dataset.attrs["failed_trials"] == [0, 1, 2]


def test_a_study_that_is_lost_for_a_moment_fails_no_batch(data, tmp_path, monkeypatch):
    """Whatever its storage raises: those of Redis and of gRPC raise what is no error of Optuna."""

    def lost(*args):
        raise EOFError("the database is gone")

    own, options = study(), {"trials": 3, "checkpoint_dir": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr(own._storage, "set_trial_intermediate_value", lost)
        with pytest.raises(
            UserError, match=r"asked or told: EOFError: the database is gone \(test_"
        ):
            run(own, data, **options)
    assert states(own) == [RUNNING] * 3
    run(own, data, **options)
    assert states(own) == [COMPLETE] * 3
    with pytest.raises(UserError, match=r"^a journal: cannot be written$"), of_study(own):
        raise UserError("a journal: cannot be written")  # which says so itself


def test_interrupted_while_it_tells_a_search_without_a_folder_fails_the_rest(data, monkeypatch):
    own = study()
    tell = own._storage.set_trial_state_values

    def interrupted(trial_id, state, values=None):
        if (trial_id, state) == (own.trials[1]._trial_id, COMPLETE):
            raise KeyboardInterrupt
        return tell(trial_id, state, values)

    monkeypatch.setattr(own._storage, "set_trial_state_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(own, data, trials=3)
    assert states(own) == [COMPLETE, FAIL, FAIL]


def test_a_batch_that_cannot_be_written_down_is_taken_up(data, tmp_path, monkeypatch):
    def full(path, content, **options):
        if path.name == "search.json" and own.trials:
            raise OSError(28, "No space left on device")
        write_whole(path, content, **options)

    own, options = study(), {"trials": 3, "checkpoint_dir": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr("jaxexp.search.resuming.write_whole", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            run(own, data, **options)
    run(own, data, **options)
    assert states(own) == [COMPLETE] * 3


def test_a_trial_that_the_storage_has_lost_while_it_is_asked_is_taken_up(
    data, tmp_path, monkeypatch
):
    def lost(*args, **options):
        create(*args, **options)
        raise EOFError("the database is gone")

    own, options = study(), {"trials": 3, "checkpoint_dir": tmp_path}
    create = own._storage.create_new_trial
    with monkeypatch.context() as patched:
        patched.setattr(own._storage, "create_new_trial", lost)
        with pytest.raises(UserError, match="asked or told: EOFError: the database is gone"):
            run(own, data, **options)
    assert states(own) == [RUNNING]
    run(own, data, **options)
    assert states(own) == [COMPLETE] * 3


def test_a_file_that_a_function_misses_is_none_of_the_search(data, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(
            study(), data, lambda trial: (tmp_path / "none").open(), checkpoint_dir=tmp_path / "own"
        )


def test_a_search_whose_function_prunes_is_resumed(data, tmp_path):
    class Interrupting:
        def compiling(self, program): ...
        def note(self, text): ...
        def moved(self, program, epochs):
            if len(own.trials) > 3:
                raise KeyboardInterrupt

    def noting(trial):
        owners.append(own.trials[-1].system_attrs[OWNER])
        return prunes_some(trial)

    own, whole = study(), study()
    run(own, data, prunes_some, trials=3, checkpoint_dir=tmp_path)
    own.sampler = op.samplers.RandomSampler(seed=0)  # as a new process makes it
    options = {"space": noting, "trials": 9, "checkpoint_dir": tmp_path}
    owners = []
    with pytest.raises(KeyboardInterrupt):
        run(own, data, progress=Interrupting(), **options)
    assert states(own) == [COMPLETE] * 3 + [PRUNED] + [RUNNING] * 2
    left, owners = own.trials[-1].system_attrs[OWNER], []
    results, expected = run(own, data, **options), run(whole, data, prunes_some, trials=9)
    assert left not in owners  # taken up before the first batch is listed
    told = [[(t.params, t.state, t.value) for t in each.trials] for each in (own, whole)]
    assert told[0] == told[1]
    assert results["accuracy"].identical(expected["accuracy"])
    assert run(own, data, **options)["loss"].identical(results["loss"])  # there is nothing left
    assert len(own.trials) == 9

    def prunes_all(trial):
        raise op.TrialPruned

    with pytest.raises(UserError, match="trial 0 is pruned by the function that suggests, and was"):
        run(own, data, **options | {"space": prunes_all})
    with pytest.raises(UserError, match=r"trial 0 cannot be suggested again .*'lr' is not found"):
        run(own, data, **options | {"space": lambda trial: trial.suggest_float("lr", 0, 1)})


# Reports, without training.


class Curves:
    """Whatever the values are, of three trials."""

    splits = ("validation",)

    def __init__(self, accuracy, loss=(1.0, 1.0, 1.0)):
        self.own = {"accuracy": accuracy, "loss": loss}

    def __call__(self, metric, split=None):
        return np.array(self.own[metric], np.float32)[:, None]


def test_reports_wait_for_all_seeds_and_end_them_together():
    own = study(pruner=op.pruners.ThresholdPruner(lower=0.5))
    trials = [BASE.replace(seed=seed) for seed in range(4)]
    asked = [Asked(t.number, t, pair) for t, pair in zip(
        [own.ask(), own.ask()], [(trials[0], trials[1]), (trials[2], trials[3])], strict=True
    )]  # fmt: skip
    reports = Reports(own, asked, "accuracy", "validation")
    # The seeds of the first are in two programs: judged when both are known.
    assert reports.stop(1, trials[1:], Curves((0.1, 0.9, 0.7))).tolist() == [False] * 3
    assert own.trials[1].intermediate_values == {1: pytest.approx(0.8)}
    assert not own.trials[0].intermediate_values
    assert reports.stop(1, trials[:1], Curves((0.3,), (1.0,))).tolist() == [True]
    assert own.trials[0].intermediate_values == {1: pytest.approx(0.2)}
    assert states(own) == [PRUNED, RUNNING]
    # The other seed hears of it after its next epoch; a loss that is no number ends a trial.
    stopped = reports.stop(2, trials[1:], Curves((0.1, 0.9, 0.7), (1.0, np.nan, 1.0)))
    assert stopped.tolist() == [True, True, True]
    assert states(own) == [PRUNED, RUNNING]
    # Where nobody prunes, a trial ends as by StopDiverged, which is the rule on a cluster.
    reports = Reports(own, asked, "accuracy", "validation", prune=False)
    stopped = reports.stop(1, trials[1:], Curves((0.1, 0.9, 0.7), (1.0, np.nan, 1.0)))
    assert stopped.tolist() == [False, True, False]
    assert Control(reports).identity == Control([jx.StopDiverged()]).identity


def test_one_configuration_of_two_trials_goes_on_until_both_are_pruned():
    own = study(pruner=op.pruners.HyperbandPruner(1, 9, reduction_factor=3))
    asked = [Asked(t.number, t, (BASE,)) for t in (own.ask() for _ in range(3))]
    asked[0].own.set_user_attr("x", 1)
    reports = Reports(own, asked, "accuracy", "validation")
    for each in asked[:2]:
        own.tell(each.number, state=PRUNED)
        each.ended = True
    assert reports.stop(1, [BASE], Curves((0.5,), (1.0,))).tolist() == [False]
    own.tell(asked[2].number, state=PRUNED)
    asked[2].ended = True
    assert reports.stop(2, [BASE], Curves((0.5,), (1.0,))).tolist() == [True]
    assert repr(reports) == repr(Reports(own, [], "accuracy", "validation"))


class Ending(op.pruners.BasePruner, op.samplers.RandomSampler):
    """Ends a trial as another process may do meanwhile."""

    def prune(self, study, trial):
        study._storage.set_trial_state_values(trial._trial_id, FAIL)
        study._storage.set_trial_system_attr(trial._trial_id, "rung", 1)  # as ASHA does

    def after_trial(self, study, trial, state, values):
        study._storage.set_trial_state_values(trial._trial_id, FAIL)


def test_a_trial_that_another_ends_while_it_is_judged_or_told_ends_no_search():
    own = study(pruner=Ending(), sampler=Ending())
    asked = [Asked(t.number, t, (BASE,)) for t in (own.ask(), own.ask())]
    reports = Reports(own, asked[:1], "accuracy", "validation")
    assert reports.stop(1, [BASE], Curves((0.5,), (1.0,))).tolist() == [True]
    assert tell(own, asked[1], "COMPLETE", [0.5])  # there may be others
    assert states(own) == [FAIL, FAIL]
    assert all(each.ended for each in asked)


# What is refused, before anything is asked.

REFUSED = [
    ({"trials": 0}, "trials=0: expected a whole number, at least 1"),
    ({"batch": 0}, "batch=0"),
    ({"seeds": True}, "seeds=True"),
    ({"report_every": 1.5}, r"report_every=1\.5"),
    ({"prune": "yes"}, "prune='yes'"),
    ({"checkpoint_dir": 3}, "checkpoint_dir=3"),
    ({"checkpoint_dir": "memory://run"}, "checkpoint_dir='memory://run': expected a folder"),
    ({"metric": "f1"}, "metric='f1': expected one of loss, accuracy"),
    ({"metric": ["accuracy", "loss"]}, "expected 1, as many as the study"),
    ({"metric": "loss"}, "its direction is maximize, and of loss lower is better: expected mini"),
    ({"split": "test"}, "split='test': expected one of train, validation"),
    ({"space": "rates"}, "space='rates': expected a jaxexp.search.Space"),
    ({"space": (BASE, {})}, "no hyperparameter"),
    ({"space": (None, {"learning_rate": RATES})}, "the base is None"),
    ({"space": (BASE, {"lr": RATES})}, "did you mean learning_rate"),
    ({"space": (BASE, {"learning_rate": [1, 2]})}, r"learning_rate=\[1, 2\], expected one of opt"),
    ({"space": (BASE, {"learning_rate": FloatDistribution(-1, 1)})}, "above 0"),
    ({"space": (BASE, {"width": FloatDistribution(1.5, 4)})}, "width=1.5"),
    ({"space": (BASE, {"momentum": FloatDistribution(0, 0.9)})}, "needs optimizer=sgd"),
    ({"space": (BASE, {"batch_size": IntDistribution(8, 512)})}, "larger than the 77 training"),
    ({"space": (BASE, {"seed": IntDistribution(0, 5)}), "seeds": 2}, "seed is suggested already"),
    ({"space": Space(BASE, {"depth": [2, 1], "width": [8, (8, 4)]})}, "2 widths for depth=1"),
    (
        {"space": Space(LabelTrial(), {("depth", "width"): [(1, 8)], "depth_width": [1]})},
        "more than one parameter of a study would be named 'depth_width'",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused(options, message, data):
    own = study()
    with pytest.raises(UserError, match=message):
        run(own, data, **options)
    assert not own.trials


def test_scipy_has_distributions_that_optuna_has_not(data):
    scipy = pytest.importorskip("scipy.stats")
    with pytest.raises(UserError, match=r"dropout: scipy\.stats\.beta\(2, 50\).*expected uniform"):
        run(study(), data, Space(BASE, {"dropout": scipy.beta(2, 50)}))


def test_other_studies_are_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"study=None: expected an optuna\.Study"):
        run(None, data)
    own = study()
    own.ask({"width": IntDistribution(2, 8)})
    with pytest.raises(UserError, match="its trial 0 has the parameter 'width', expected those"):
        run(own, data)
    own = study()
    own.ask({"learning_rate": CategoricalDistribution([0.1, 0.2])})
    with pytest.raises(UserError, match="learning_rate of its trial 0 is from Categorical"):
        run(own, data)
    with pytest.raises(UserError, match="expected 2, as many as"):
        run(op.create_study(directions=["maximize", "minimize"]), data)
    several = op.create_study(
        directions=["maximize", "minimize"], pruner=op.pruners.SuccessiveHalvingPruner()
    )
    with pytest.raises(UserError, match="its pruner is SuccessiveHalvingPruner: Optuna prunes no"):
        run(several, data, metric=["accuracy", "loss"])
    several.pruner = op.pruners.MedianPruner()
    with pytest.raises(UserError, match="prune=True: Optuna prunes no study of 2 objectives"):
        run(several, data, metric=["accuracy", "loss"], prune=True)
    own = study(storage=f"sqlite:///{tmp_path}/study.db")
    own._storage._backend.engine.dispose()
    (tmp_path / "study.db").write_bytes(b"no database" * 99)
    with pytest.raises(UserError, match="its storage fails"):
        run(own, data)


def test_without_optuna_it_is_said_how_to_install_it(data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'jaxexp\[optuna\]'"):
        run(None, data)


def test_the_folder_is_readable(data, tmp_path):
    run(study(study_name="one"), data, checkpoint_dir=tmp_path)
    content = json.loads((tmp_path / "search.json").read_text())
    assert content["batches"] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.nightly
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_the_peers_of_the_benchmark_train():
    pytest.importorskip("torch")
    from sklearn.datasets import load_digits

    from jaxexp.cli.benchmarks import benchmark

    studies = benchmark("studies")
    digits = load_digits()
    data = jx.arrays(digits.data / 16, digits.target, validation=0.2)
    fits = [studies.pytorch(data, 3)[0], studies.sklearn(data, 3)[0]]
    assert all(fit(1e-2, 16) > 0.7 > 0.4 > fit(1e-6, 16) for fit in fits)
    timing = studies.ours(data, 1, 4, 1)
    assert len(timing.rounds) == 1
    rows = studies.table(
        {"ours": timing, "theirs": studies.theirs(studies.sklearn(data, 1), 1, 2, 1)}
    )
    assert rows.row_count == 2
