"""`plan`, `run` and what they return, as users call them."""

import pickle
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxexp as jx
from jaxexp.base.errors import InterruptedRunError
from jaxexp.base.locks import held
from jaxexp.execution.listeners import Silent
from jaxexp.results.results import apply
from jaxexp.training.task import TRIED


@pytest.fixture(scope="module")
def data():
    """Two inputs, three named classes; 90 examples fill no batch size here evenly."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 2))
    y = np.array(["inner", "middle", "outer"])[np.digitize(np.abs(X).sum(1), [1.0, 2.0])]
    return jx.arrays(X, y, validation=0.2, test=0.1, seed=1)


@pytest.fixture(scope="module")
def sweep():
    return jx.Sweep(
        jx.MLPTrial(epochs=3, depth=1, width=4, batch_size=16),
        {"learning_rate": [1e-2, 1e-3], "seed": [0, 3]},
    )


@pytest.fixture(scope="module")
def results(sweep, data):
    return jx.run(sweep, data=data, progress=False)


def test_results_hold_what_was_asked(results):
    assert results["loss"].dims == ("learning_rate", "seed", "epoch", "split")
    assert list(results["split"].values) == ["train", "validation", "test"]
    assert np.isfinite(results["loss"]).all()
    assert results["accuracy"].attrs["direction"] == "higher"
    with pytest.raises(KeyError, match=r"'los'.*loss"):
        results["los"]


def test_the_best_trial_knows_the_direction_of_its_metric(results):
    for metric, better in (("loss", min), ("accuracy", max)):
        last = results[metric].sel(split="validation").isel(epoch=-1)
        best = results.best(metric)
        assert float(best.curves[metric].sel(split="validation")[-1]) == better(last.values.ravel())
        assert best.trial.learning_rate == float(best.curves["learning_rate"])


def test_the_best_setting_is_that_of_the_best_mean(results):
    """Of its two seeds the one in the middle, which is the better one."""
    last = results["loss"].sel(split="validation").isel(epoch=-1)
    rate = float(last.mean("seed").idxmin())
    own = results.best_setting()
    assert (own.trial.learning_rate, own.trial.seed) == (
        rate, int(last.sel(learning_rate=rate).idxmin()),
    )  # fmt: skip
    assert own.params is results.trial(learning_rate=rate, seed=own.trial.seed).params


def test_parameters_of_any_trial(results):
    kernel = results.params(learning_rate=1e-3, seed="3")["first"]["affine"]["kernel"]
    assert kernel.shape == (4, 2)
    other = results.trial(learning_rate=1e-3, seed=0).params["first"]["affine"]["kernel"]
    assert not np.array_equal(kernel, other)
    with pytest.raises(jx.UserError, match=r"2 of 4 trials have seed=3.*learning_rate, seed"):
        results.trial(seed=3)
    with pytest.raises(jx.UserError, match=r"unknown hyperparameter 'lr'.*learning_rate"):
        results.trial(lr=3)


def test_predictions_are_those_that_were_measured(results, data):
    best = results.best("accuracy")
    predicted = results.predict(data.test.x, best)
    names = np.array(data.classes)
    right = np.mean(predicted == names[data.test.y])
    assert right == pytest.approx(float(best.curves["accuracy"].sel(split="test")[-1]), abs=1e-6)
    probability = results.predict_proba(data.test.x, best)
    assert probability.shape == (len(data.test.y), 3)
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-6)
    loss = -np.log(probability[np.arange(len(data.test.y)), data.test.y]).mean()
    assert loss == pytest.approx(float(best.curves["loss"].sel(split="test")[-1]), rel=1e-5)


def test_inputs_of_no_most_probable_class_are_refused(results):
    lost = jax.tree.map(lambda leaf: leaf * np.float32("nan"), dict(results.kept()))
    made = jx.Results(results.dataset, results.sweep, results.task, results.data, lost)
    assert np.isnan(made.predict_proba(np.zeros((2, 2)))).all()
    with pytest.raises(jx.UserError, match=r"X: row 0: the probabilities of .* NaN \(2 of 2"):
        made.predict(np.zeros((2, 2)))


@pytest.mark.parametrize("wrong", [np.zeros((3, 5)), np.full((2, 2), np.nan), [["a", "b"]]])
def test_inputs_unlike_those_trained_on_are_refused(results, wrong):
    with pytest.raises(jx.UserError, match="X"):
        results.predict(wrong)


class Linear(jx.Task):
    """Of inputs of any type."""

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.ones(data["train"].x[0].size)})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        predicted = self.predict(trial, variables, batch.x)
        return jx.Outputs(jnp.square(predicted - batch.y), predicted, batch.y)

    def predict(self, trial, variables, x):
        return x.reshape(len(x), -1).astype(jnp.float32) @ variables.params["w"]


def by_hand(x):
    data = jx.Data(jx.Examples(x, np.zeros(len(x), np.float32)))
    sweep = jx.Sweep(jx.Trial(epochs=1, batch_size=4))
    return jx.run(sweep, Linear(), data, progress=False, devices=1)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *((dtype, (8, 3)) for dtype in ("float64", "float16", jnp.bfloat16, "int64", "int8")),
        *((dtype, (8,)) for dtype in ("float32", "uint8", "uint32", "bool")),
    ],
)
def test_what_was_trained_on_can_be_predicted_of(dtype, shape):
    x = (np.random.default_rng(0).random(shape) * 3).astype(dtype)
    results = by_hand(x)
    w = results.best().params["w"]
    expected = x.reshape(8, -1).astype(np.float32) @ w
    np.testing.assert_allclose(results.predict(x), expected, rtol=1e-5)
    np.testing.assert_allclose(results.predict(jnp.asarray(x)), expected, rtol=1e-5)


def test_an_mlp_that_was_trained_on_whole_numbers_predicts_of_fractions_too():
    x = np.arange(24).reshape(8, 3)
    sweep = jx.Sweep(jx.MLPTrial(epochs=1, depth=1, width=4, batch_size=4, activation="identity"))
    results = jx.run(sweep, data=jx.arrays(x, list("ab" * 4)), progress=False)
    assert results.data.train.x.dtype == np.int32
    low, middle, high = np.log(results.predict_proba([[0, 0, 4], [0, 0, 4.5], [0, 0, 5]]))
    np.testing.assert_allclose(middle[0] - middle[1], ((low + high) / 2) @ [1, -1], rtol=1e-4)
    np.testing.assert_array_equal(results.predict_proba(x), results.predict_proba(x * 1.0))

    class Own(jx.MLPClassification):
        def predict(self, trial, variables, x):
            return super().predict(trial, variables, x % 2)

    assert not Own().takes_fractions()


def test_other_types_than_those_trained_on_are_converted_or_refused_in_true_words():
    whole = by_hand(np.arange(24).reshape(8, 3))
    given = [[1, 0, 1]]
    assert whole.predict(given) == whole.predict(np.array(given, np.uint8))
    with pytest.raises(jx.UserError, match=r"floats or bools, expected whole numbers \(int64\)"):
        whole.predict(np.ones((2, 3)))
    for dtype, bad in ((np.int8, 300), (bool, 0.5), (np.float16, 1e6)):
        results = by_hand(np.ones((8, 3), dtype))
        assert results.predict(given) == results.predict(np.array(given, dtype))
        match = f"X: row 0, column 0 is {bad}.*expected a number that {np.dtype(dtype)} holds"
        with pytest.raises(jx.UserError, match=match):
            results.predict([[bad, 1, 1]])
    with pytest.raises(jx.UserError, match="expected at least one example"):
        whole.predict(np.zeros((0, 3), int))


V_Nx3, I_N = np.ones((8, 3), np.float32), np.arange(8, dtype=np.int32) % 4


@pytest.fixture(scope="module")
def of_trees():
    """Inputs and predictions that are dicts, beside labels."""
    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.ones(3), "e": jnp.ones(4)},
        apply=lambda trial, params, x: {"of v": x["v"] @ params["w"], "of i": params["e"][x["i"]]},
        loss=lambda prediction, y: (prediction["of v"] * prediction["of i"] - y) ** 2,
    )
    data = jx.Data(jx.Examples({"v": V_Nx3, "i": I_N}, I_N % 2))
    return jx.run(jx.Sweep(jx.Trial(epochs=1, batch_size=4)), task, data, progress=False)


def test_trees_are_predicted_of_trees(of_trees):
    params = of_trees.params()
    wanted = {"of v": V_Nx3 @ params["w"], "of i": params["e"][I_N]}
    for given in (
        {"i": I_N, "v": V_Nx3},
        {"i": I_N.astype(np.int64), "v": V_Nx3.astype(np.float64)},
        {"i": I_N.tolist(), "v": V_Nx3.tolist()},
    ):
        made = of_trees.predict(given)
        assert sorted(made) == ["of i", "of v"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), made, wanted)
    with pytest.raises(jx.UserError, match="no probabilities"):
        of_trees.predict_proba(given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (V_Nx3, r"X: an ndarray, expected \{i: \*, v: \*\}"),
        ({"v": V_Nx3, "i": 3}, r"X.i: an int, expected an array of shape \(N, F\) or \(N, ...\)$"),
        ({"v": V_Nx3}, "X: not those trained on: 'X.i' missing"),
        ({"v": V_Nx3, "i": I_N, "z": I_N}, "'X.z' too many, expected 'X.i', 'X.v'"),
        ({"v": V_Nx3, "i": I_N[:3]}, "X.v: 8 rows, expected 3, as in X.i"),
        ({"v": V_Nx3[:, :2], "i": I_N}, r"X.v: the shape is \(8, 2\), expected \(N, 3\)"),
        ({"v": V_Nx3 * np.nan, "i": I_N}, "X.v: row 0, column 0 is nan, expected a finite"),
        ({"v": V_Nx3, "i": I_N + 0.5}, "X.i: floats or bools, expected whole numbers"),
    ],
)
def test_each_part_of_a_tree_of_inputs_is_like_that_trained_on(of_trees, wrong, message):
    with pytest.raises(jx.UserError, match=message):
        of_trees.predict(wrong)


@pytest.mark.parametrize("length", [4, TRIED])
def test_predictions_that_are_not_one_for_each_input_are_refused_of_any_number(length):
    class Spread(Linear):
        def predict(self, trial, variables, x):
            return {"mean": x[:, 0], "spread": jnp.ones(length)}

    with pytest.raises(jx.UserError, match=rf"'spread'\], tried .* shape \({length},\), expected"):
        apply(Spread(), jx.Trial(), jx.Variables({}), np.ones((4, 3), np.float32))


def test_weights_of_another_type_are_named():
    with pytest.raises(jx.UserError, match=r"train.weight: of dtype bool, expected .astype"):
        jx.Data(jx.Examples(np.ones((4, 1)), None, np.ones(4, bool)))


@pytest.mark.nightly
def test_a_plan_is_a_value(sweep, data, results):
    planned = jx.plan(sweep, data=data, devices=1)
    assert str(planned).startswith("4 trials in 1 program on 1 cpu device")
    again = jx.run(planned, progress=False)
    np.testing.assert_allclose(again["loss"], results["loss"], rtol=1e-5)
    with pytest.raises(jx.UserError, match="a plan has its task, data, devices"):
        jx.run(planned, data=data)


def test_several_sweeps_are_one_plan(sweep, data):
    rates = jx.Sweep(sweep.base, {"learning_rate": [1e-2, 1e-3]}, name="rates")
    planned = jx.plan([sweep, rates], data=data)
    assert planned.plan.trials == 4
    both = jx.run(planned, progress=False)
    assert list(both) == ["sweep", "rates"]
    np.testing.assert_array_equal(both["rates"]["loss"], both["sweep"]["loss"].sel(seed=0))


def test_parameters_need_not_be_kept(sweep, data):
    results = jx.run(sweep, data=data, progress=False, keep_params=False)
    with pytest.raises(jx.UserError, match="keep_params=True"):
        results.params(learning_rate=1e-2, seed=0)


class StopAfter(Silent):
    """Interrupts a run when a program has trained so far, as a signal would."""

    def __init__(self, epochs):
        self.epochs = epochs

    def moved(self, program, epochs):
        if epochs >= self.epochs:
            raise KeyboardInterrupt


def test_the_same_call_resumes_an_interrupted_run(sweep, data, results, tmp_path):
    folder = tmp_path / "checkpoints"
    options = {"checkpoint_dir": folder, "checkpoint_every": np.float32(1e-6)}
    with pytest.raises(KeyboardInterrupt):
        jx.run(sweep, data=data, progress=StopAfter(2), **options)
    moved = []

    class Watch(Silent):
        def moved(self, program, epochs):
            moved.append(epochs)

    resumed = jx.run(sweep, data=data, progress=Watch(), **options)
    assert resumed.dataset.attrs["resumed"]
    assert "resumed" not in results.dataset.attrs
    assert moved[0] == int(moved[0]), "no snapshot was restored: the first call is part of an epoch"
    for name in ("loss", "accuracy", "step_loss"):
        np.testing.assert_array_equal(resumed[name], results[name])
    for key, leaf in enumerate(jax.tree.leaves(resumed.params(learning_rate=1e-2, seed=3))):
        own = jax.tree.leaves(results.params(learning_rate=1e-2, seed=3))[key]
        np.testing.assert_array_equal(leaf, own)


def test_checkpoints_of_another_run_are_refused(sweep, data, tmp_path):
    jx.run(sweep, data=data, progress=False, checkpoint_dir=tmp_path / "a")
    other = jx.Sweep(sweep.base, {"learning_rate": [1e-2]})
    with pytest.raises(jx.UserError, match="checkpoints of another run: sweep sweep was"):
        jx.run(other, data=data, progress=False, checkpoint_dir=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("not a checkpoint")
    with pytest.raises(jx.UserError, match="expected an empty folder"):
        jx.run(sweep, data=data, progress=False, checkpoint_dir=tmp_path / "b")


def test_a_folder_of_checkpoints_in_use_is_refused(sweep, data, tmp_path):
    with held(tmp_path), pytest.raises(jx.UserError, match=f"{tmp_path}: in use by process"):
        jx.run(sweep, data=data, progress=False, checkpoint_dir=tmp_path)


def test_a_stopped_run_leaves_no_thread_behind(sweep, data):
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        jx.run(sweep, data=data, progress=StopAfter(1))
    assert threading.active_count() == before
    assert issubclass(InterruptedRunError, BaseException)


@pytest.mark.nightly
def test_a_page_of_any_sweep(results, sweep, data, tmp_path):
    page = jx.write_report(results, tmp_path / "report.html")
    html = page.read_text()
    assert "validation accuracy" in html
    assert "latitude" not in html
    alone = jx.run(jx.Sweep(sweep.base), data=data, progress=False)  # has fewer figures
    named = {"CIFAR-10 ResNet18": alone, "again": alone}
    html = jx.write_report(named, tmp_path / "named.html").read_text()
    assert "<h1>CIFAR-10 ResNet18 · again</h1>" in html
    assert '<section id="row-CIFAR-10_ResNet18"' in html
    assert re.findall("<h2>(.*)</h2>", html) == ["CIFAR-10 ResNet18", "again"]
    with pytest.raises(jx.UserError, match="cannot be written"):
        jx.write_report(alone, tmp_path / "missing" / "report.html")


class Linen(linen.Module):
    """A network with batch statistics and dropout."""

    units: int

    @linen.compact
    def __call__(self, x, mask, train):
        x = linen.Dense(self.units)(x)
        x = linen.BatchNorm(use_running_average=not train)(x, mask=mask[:, None])
        x = linen.Dropout(0.1, deterministic=not train)(linen.relu(x))
        return linen.Dense(3)(x)


class Nnx(nnx.Module):
    """The same in nnx."""

    def __init__(self, units, rngs):
        self.first = nnx.Linear(2, units, rngs=rngs)
        self.norm = nnx.BatchNorm(units, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(units, 3, rngs=rngs)

    def __call__(self, x, mask):
        x = nnx.relu(self.norm(self.first(x), mask=mask[:, None]))
        return self.last(self.dropout(x))


MODULES = {"linen": lambda trial: Linen(4), "nnx": lambda trial, rngs: Nnx(4, rngs)}


@pytest.mark.parametrize("kind", MODULES)
def test_flax_modules_with_state_and_dropout(kind, data):
    task = jx.supervised(
        module=MODULES[kind],
        loss=optax.softmax_cross_entropy_with_integer_labels,
        metrics={"accuracy": jx.metrics.accuracy},
        loss_unit="nats",
    )
    # SGD: a bias before a batch norm has a gradient of rounding noise, which Adam would scale up.
    base = jx.Trial(epochs=4, batch_size=16, optimizer="sgd")
    sweep = jx.Sweep(base, {"learning_rate": [1e-1, 1e-2]})
    results = jx.run(sweep, task, data, progress=False)
    loss = results["loss"].sel(split="train")
    assert (loss.isel(epoch=-1) < loss.isel(epoch=0)).all()
    statistics = jax.tree.leaves(results.best().variables.state)
    assert any(np.abs(leaf).max() > 0.01 for leaf in statistics)
    alone = jx.run(jx.Sweep(sweep.base.replace(learning_rate=1e-2)), task, data, progress=False)
    np.testing.assert_allclose(
        alone["loss"], results["loss"].sel(learning_rate=1e-2), rtol=1e-4, atol=1e-5
    )
    assert set(results.predict(data.test.x)) <= set(data.classes)


class Sowing(Nnx):
    def __call__(self, x, mask):
        self.sow(nnx.Intermediate, "inputs", x)
        return super().__call__(x, mask)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_what_an_nnx_module_sows_is_no_state(data):
    def train(make):
        loss = optax.softmax_cross_entropy_with_integer_labels
        task = jx.supervised(module=lambda trial, rngs: make(4, rngs), loss=loss)
        sweep = jx.Sweep(jx.Trial(epochs=2, batch_size=16, optimizer="sgd"), {"seed": [0, 1]})
        return jx.run(sweep, task, data, progress=False)

    plain, sowing = train(Nnx), train(Sowing)
    np.testing.assert_allclose(sowing["loss"], plain["loss"], rtol=1e-5)
    states = (jax.tree.structure(each.best().variables.state) for each in (sowing, plain))
    assert next(states) == next(states)


@pytest.mark.nightly
def test_a_regression_without_other_splits():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(70, 3))
    data = jx.arrays(X, 5 + X @ [1.0, 2.0, 3.0], validation=None)
    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.zeros(x.shape[-1]), "b": jnp.zeros(())},
        apply=lambda trial, params, x: x @ params["w"] + params["b"],
        loss=optax.squared_error,
        metrics={"r2": jx.metrics.r2},
    )
    sweep = jx.Sweep(jx.Trial(epochs=60, batch_size=16), {"learning_rate": [1e-1, 1e-4]})
    results = jx.run(sweep, task, data, progress=False)
    assert list(results["split"].values) == ["train"]
    best = results.best("r2")
    assert best.trial.learning_rate == 1e-1
    assert float(best.curves["r2"][-1].item()) > 0.99
    np.testing.assert_allclose(results.predict(X, best), 5 + X @ [1, 2, 3], atol=0.5)
    with pytest.raises(jx.UserError, match="no probabilities"):
        results.predict_proba(X)


def test_what_costs_are_made_of_is_the_task_itself(data):
    """The formula of an MLP agrees with its traced program."""
    from jaxexp.training.tracing import inspection, trace

    task = jx.MLPClassification().bind(data)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), data.arrays())
    for values in ({}, {"batch_norm": True}, {"features": "sines"}, {"width": (8, 4), "depth": 2}):
        trial = jx.MLPTrial(**values)
        traced, formula = trace(task, trial, shapes).cost, inspection(task, trial, shapes).cost
        assert traced.parameters == formula.parameters
        slack = 1.5 if trial.batch_norm else 1.0  # counted for the norm's own arithmetic
        assert traced.multiplications * slack == formula.multiplications
        assert 0.5 < traced.activations / formula.activations < 2


def test_data_count_in_the_memory_of_a_plan():
    rng = np.random.default_rng(0)
    wide = jx.arrays(rng.normal(size=(50, 20_000)), rng.integers(0, 2, 50))
    planned = jx.plan(jx.Sweep(jx.MLPTrial(depth=1, batch_size=16)), data=wide)
    assert planned.plan.data_bytes >= 50 * 20_000 * 4
    assert planned.plan.memory > planned.plan.data_bytes + 4 * 16 * 20_000
    with pytest.raises(jx.UserError, match="of memory for their arrays"):
        jx.plan(jx.Sweep(jx.MLPTrial(depth=1, batch_size=16)), data=wide, memory=np.int64(10**6))


def test_every_public_name_is_documented_with_an_example():
    modules = {"compare", "figures", "metrics", "nn", "select"}
    for name in jx.__all__:
        documented = getattr(jx, name).__doc__ or ""
        assert documented, name
        assert name in modules or ">>> " in documented, name


def test_results_are_pickled_after_they_have_predicted():
    X, y = np.eye(4, dtype=np.float32).repeat(2, 0), [0, 1, 1, 0, 0, 1, 1, 0]
    base = jx.MLPTrial(epochs=1, depth=1, width=2, batch_size=8)
    results = jx.run(jx.Sweep(base), data=jx.arrays(X, y, validation=None), progress=False)
    before = results.predict_proba(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(results)).predict_proba(X), before)
