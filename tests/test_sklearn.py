"""The estimators behave as scikit-learn's, and a search trains what its candidates would alone."""

import pickle
import re
import warnings
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import polars as pl
import pytest
import sklearn
from flax import linen as nn
from nights import at_night
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.metrics import f1_score, log_loss, make_scorer, r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    PredefinedSplit,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_score,
    train_test_split,
)
from sklearn.neural_network import MLPClassifier as SklearnClassifier
from sklearn.neural_network import MLPRegressor as SklearnRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import jaxexp as jx
from jaxexp.sklearn import Classifier, MLPClassifier, MLPRegressor, Regressor, VectorizedSearchCV
from jaxexp.sklearn.stopping import NoImprovement

X, Y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
OPTIONS = {"max_iter": 12, "batch_size": 25, "random_state": 0, "tol": None}


@dataclass(frozen=True, kw_only=True)
class NetTrial(jx.Trial):
    width: int = 4


class Net(nn.Module):
    width: int
    outputs: int | None  # None: one number for each example, (B,)

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.outputs or 1)(nn.tanh(nn.Dense(self.width)(x.reshape(len(x), -1))))
        return x if self.outputs else x[:, 0]


def three_classes(trial: NetTrial) -> Net:
    return Net(trial.width, 3)


class Scaled(nn.Module):
    """Inputs times long constants, of which its text says nothing."""

    factor_F: np.ndarray

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tile(x, len(self.factor_F) // x.shape[1]) * self.factor_F)


class Times:
    """The cross entropy times a number, of which its text says nothing."""

    def __init__(self, factor):
        self.factor = factor

    def __repr__(self):
        return "Times()"

    def __call__(self, logits, label_B):
        return self.factor * optax.softmax_cross_entropy_with_integer_labels(logits, label_B)


# scikit-learn's own checks

FAILING = {
    "check_sample_weight_equivalence_on_dense_data": (
        "examples are shuffled: an example of weight 2 is one of a batch, two copies of it may be "
        "in two, and float32 rounds a sum of two otherwise than a product"
    ),
    "check_methods_subset_invariance": "in float32, batches of other sizes round otherwise",
}
FAILING_MODULES = {
    "check_regressor_multioutput": "the module says how many outputs there are: one, here",
    "check_estimators_overwrite_params": "a Flax module and its copy have other hashes, unused too",
}


@pytest.mark.nightly
@parametrize_with_checks(
    [
        MLPClassifier((16,), max_iter=100, learning_rate_init=0.02),
        MLPRegressor((16,), max_iter=100, learning_rate_init=0.02),
        Regressor(Net(8, None), jx.Trial(epochs=100, learning_rate=0.03)),
    ],
    expected_failed_checks=lambda estimator: (
        FAILING | (FAILING_MODULES if isinstance(estimator, Regressor) else {})
    ),
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence; checks look for others themselves
        check(estimator)


# Estimators


def test_a_classifier_of_names_in_a_pipeline_with_a_frame():
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = make_pipeline(StandardScaler(), MLPClassifier((8,), learning_rate_init=0.1, **OPTIONS))
    model.set_output(transform="pandas")
    model.fit(frame, NAMES)
    assert model.score(frame, NAMES) > 0.9
    own = model[-1]
    assert own.classes_.tolist() == sorted(set(NAMES))
    assert own.feature_names_in_.tolist() == list("abcd")
    probability = model.predict_proba(frame)
    np.testing.assert_allclose(probability.sum(1), 1)
    np.testing.assert_array_equal(own.classes_[probability.argmax(1)], model.predict(frame))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(frame), probability)
    assert own.n_iter_ == len(own.loss_curve_) == 12
    assert [w.shape for w in own.coefs_] == [(4, 8), (8, 3)]
    assert [b.shape for b in own.intercepts_] == [(8,), (3,)]
    h = np.maximum(own.coefs_[0].T @ X.T + own.intercepts_[0][:, None], 0)
    logits = (own.coefs_[1].T @ h).T + own.intercepts_[1]
    np.testing.assert_allclose(
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True), probability, atol=1e-5
    )


def test_polars_frames_and_wrong_columns():
    frame = pl.DataFrame(X, schema=list("abcd"))
    model = MLPClassifier((8,), **OPTIONS).fit(frame, NAMES)
    assert model.predict(frame).shape == (150,)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename({"a": "z"}))


@pytest.mark.nightly
@pytest.mark.integration
def test_initial_weights_and_penalty_are_those_of_scikit_learn():
    """Of the first epoch at a vanishing rate: the same loss, and weights as widely spread."""
    still = {"learning_rate_init": 1e-12, "max_iter": 1, "alpha": 5.0, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for activation in ("relu", "logistic"):
            for sizes in ((300, 300), (300, 200)):
                options = {"hidden_layer_sizes": sizes, "activation": activation, **still}
                own = MLPClassifier(**options).fit(X, Y)
                theirs = SklearnClassifier(**options).fit(X, Y)
                penalty = 5 / (2 * 150) * sum(np.square(w).sum() for w in own.coefs_)
                plain = -np.log(own.predict_proba(X)[np.arange(150), Y]).mean()
                assert own.loss_ == pytest.approx(plain + penalty, rel=1e-5)
                pairs = zip(own.coefs_, theirs.coefs_, strict=True)
                for mine, wanted in [
                    *pairs,
                    *zip(own.intercepts_, theirs.intercepts_, strict=True),
                ]:
                    assert mine.shape == wanted.shape
                    assert np.abs(mine).max() == pytest.approx(np.abs(wanted).max(), rel=0.5)
                for mine, wanted in zip(own.coefs_, theirs.coefs_, strict=True):
                    assert mine.std() == pytest.approx(wanted.std(), rel=0.1)


def test_epochs_without_improvement_are_counted_as_scikit_learn_counts_them():
    rng = np.random.default_rng(0)
    for tol in (0.0, 0.03):
        cost_TxE = np.cumsum(rng.normal(-0.02, 0.1, (20, 60)), axis=1)
        cost_TxE[3, 20:] = np.inf
        rule = NoImprovement("loss", tol, 5)
        waited_T, best_T = rule._count(cost_TxE)
        for cost_E, waited, best_epoch in zip(cost_TxE, waited_T, best_T, strict=True):
            best, count, epoch_of_best = np.inf, 0, 0
            for epoch, cost in enumerate(cost_E, 1):  # as in _update_no_improvement_count
                count = count + 1 if cost > best - tol or not np.isfinite(cost) else 0
                if cost < best:
                    best, epoch_of_best = cost, epoch
            assert (waited, best_epoch) == (count, epoch_of_best)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "sgd", "learning_rate_init": 0.02, "momentum": 0.9},
        pytest.param(
            {"solver": "adam", "learning_rate_init": 0.03, "epsilon": 0.1},
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_several_targets_are_trained_on_as_by_scikit_learn(options):
    """From the same weights, on whole batches: to the same predictions, with the same losses."""
    y = np.stack([3 * X[:, 0], X[:, 1] - 2, X[:, 2] * X[:, 3]], 1)
    options = {"alpha": 2.0, "batch_size": 150, "random_state": 0, **options}
    still = options | {"learning_rate_init": 1e-30}
    start = MLPRegressor((4,), max_iter=1, tol=None, **still).fit(X, y)
    own = MLPRegressor((4,), max_iter=6, tol=None, **options).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = SklearnRegressor(hidden_layer_sizes=(4,), max_iter=1, warm_start=True, **options)
        theirs.fit(X, y)
        del theirs._optimizer  # whose moments are those of a first epoch
        theirs.coefs_ = [kernel.astype(float) for kernel in start.coefs_]
        theirs.intercepts_ = [bias.astype(float) for bias in start.intercepts_]
        theirs.set_params(max_iter=6).fit(X, y)
    np.testing.assert_allclose(own.predict(X), theirs.predict(X), atol=1e-5)
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_[-6:], rtol=1e-5)


def test_parameters_of_scikit_learn_are_taken():
    for own, theirs in (
        (MLPClassifier(), SklearnClassifier()),
        (MLPRegressor(), SklearnRegressor()),
    ):
        params = {name: v for name, v in theirs.get_params().items() if name != "loss"}
        assert own.get_params() == params
    for verbose in (0, 1):
        MLPClassifier(verbose=verbose)._check()


def test_what_scikit_learn_takes_beside_numbers_is_taken():
    options = {**OPTIONS, "max_iter": 2, "tol": 1e9}
    own = MLPClassifier((4,), n_iter_no_change=np.inf, validation_fraction=0.0, **options)
    with pytest.warns(ConvergenceWarning):
        assert own.fit(X, NAMES).n_iter_ == 2


def test_early_stopping_ends_with_the_best_epoch():
    options = {**OPTIONS, "max_iter": 200, "tol": 1e-3, "early_stopping": True}
    model = MLPClassifier((8,), learning_rate_init=0.05, n_iter_no_change=3, **options).fit(X, Y)
    scores = model.validation_scores_
    assert model.n_iter_ == len(scores) < 200
    assert model.best_validation_score_ == max(scores)
    ends = MLPClassifier((8,), learning_rate_init=0.05, **OPTIONS | {"tol": 1e-4, "max_iter": 2})
    with pytest.warns(ConvergenceWarning, match="2 epochs are over"):
        ends.fit(X, Y)


@pytest.mark.parametrize(
    ("model", "grid"),
    [
        (MLPClassifier((4,), max_iter=2, batch_size=5), {"alpha": [1e-4]}),
        (Classifier(Net(4, 3), jx.Trial(epochs=2, batch_size=5)), {"trial__seed": [0]}),
    ],
    ids=["MLPClassifier", "Classifier"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_class_may_be_held_out_as_a_whole(model, grid):
    y = np.where(np.arange(150) < 148, 2 * (Y % 2), 1)  # class 1 has two members
    model = clone(model).set_params(early_stopping=True, validation_fraction=0.96, random_state=0)
    assert model.fit(X, y).predict_proba(X).shape == (150, 3)
    cv = [(np.arange(150), TEST)]
    search = VectorizedSearchCV(model, grid, cv=cv, scoring="neg_log_loss").fit(X, y)
    wanted = -log_loss(y[TEST], model.predict_proba(X[TEST]), labels=range(3))
    assert search.best_score_ == pytest.approx(wanted, rel=1e-5)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_folds_far_from_one_another_are_scored_by_their_own_targets():
    target_N = X[:, 0] + 300.0 * (np.arange(len(X)) >= 75)
    model = MLPRegressor((4,), max_iter=3, batch_size=25, early_stopping=True, random_state=0)
    searches = [
        search(model, {"alpha": [1e-4]}, cv=KFold(2), refit=False).fit(X, target_N)
        for search in (VectorizedSearchCV, GridSearchCV)
    ]
    found, expected = (own.cv_results_["mean_test_score"] for own in searches)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.nightly
def test_the_best_epoch_is_kept_where_the_loss_leaves_the_finite_numbers_later():
    model = MLPRegressor(
        (4,), solver="sgd", learning_rate_init=1.0, early_stopping=True, n_iter_no_change=20,
        max_iter=30, random_state=0,
    ).fit(3 * X, 3 * X[:, 0])  # fmt: skip
    assert not np.isfinite(model.loss_)
    best = np.nanmax(model.validation_scores_)
    assert model.best_validation_score_ == best
    assert model.n_iter_ > 1 + model.validation_scores_.index(best)
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            MLPRegressor((4,), early_stopping=True, **OPTIONS | {"tol": 0}),
            marks=pytest.mark.nightly,
        ),
        Regressor(Net(4, 2), jx.Trial(epochs=12, batch_size=25), early_stopping=True),
    ],
    ids=["MLPRegressor", "Regressor"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_of_held_out_examples_are_scikit_learns(model):
    """Where one output is constant, and targets of weight 0 are outliers."""
    y, weight = np.stack([X[:, 0], np.full(150, 0.5)], 1), 1 + np.arange(150) % 3
    y[::5], weight[::5] = -9999, 0
    model = clone(model).set_params(random_state=0).fit(X, y, sample_weight=weight)
    _, held = train_test_split(np.arange(150), test_size=0.1, random_state=model._seeds(1)[0])
    score = r2_score(y[held], model.predict(X[held]), sample_weight=weight[held])
    np.testing.assert_allclose(model.best_validation_score_, score, rtol=1e-4)


@pytest.mark.integration
def test_regressors_of_one_and_of_several_targets():
    x, y = load_diabetes(return_X_y=True)
    x, y = 10 * x, (y - 150) / 80
    model = MLPRegressor((8,), learning_rate_init=0.02, **OPTIONS).fit(x, y)
    assert model.score(x, y) > 0.3
    assert model.predict(x).shape == (442,)
    both = MLPRegressor((8,), learning_rate_init=0.02, **OPTIONS).fit(x, np.stack([y, -y], 1))
    assert both.predict(x).shape == (442, 2)
    assert both.score(x, np.stack([y, -y], 1)) > 0.3
    for outputs in (None, 1):
        trial = jx.Trial(epochs=12, batch_size=50, learning_rate=0.02)
        own = Regressor(Net(8, outputs), trial, random_state=0).fit(x, y)
        assert own.predict(x).shape == (442,)
        assert own.score(x, y) > 0.3


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_differs_from_scikit_learn_is_what_the_documentation_says():
    """The loss with weights, and of one column of targets; without a step that moves anything."""
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:40], y[:40, None] / 100
    weight = np.where(np.arange(40) < 20, 1.0, 9.0)
    still = {"max_iter": 1, "batch_size": 8, "random_state": 0, "solver": "sgd", "alpha": 0}
    still["learning_rate_init"] = 1e-20
    ours = MLPRegressor((4,), **still).fit(x, y, weight)
    assert ours.predict(x).shape == (40, 1)
    loss = np.average((ours.predict(x) - y)[:, 0] ** 2 / 2, weights=weight)
    np.testing.assert_allclose(ours.loss_curve_, [loss], rtol=1e-5)
    theirs = SklearnRegressor(hidden_layer_sizes=(4,), **still).fit(x, y[:, 0], weight)
    assert theirs.predict(x).shape == (40,)
    loss = np.average((theirs.predict(x) - y[:, 0]) ** 2 / 2, weights=weight)
    assert abs(theirs.loss_curve_[0] / loss - 1) > 1e-3


def test_weights_count():
    weight = np.where(Y == 2, 0.0, 1.0)
    model = MLPClassifier((8,), learning_rate_init=0.1, **OPTIONS).fit(X, Y, sample_weight=weight)
    assert 2 not in model.predict(X)
    with pytest.raises(ValueError, match="1 class has a weight above 0"):
        model.fit(X, Y, sample_weight=np.where(Y == 2, 1.0, 0.0))


@pytest.mark.integration
def test_a_module_on_images():
    images = X.reshape(-1, 2, 2, 1)
    model = Classifier(three_classes, NetTrial(epochs=20, batch_size=25, learning_rate=0.05))
    model.set_params(random_state=0, trial__width=6)
    assert model.trial.width == model.get_params()["trial__width"] == 6
    model.fit(images, NAMES)
    assert model.score(images, NAMES) > 0.9
    assert model.variables_.params["Dense_1"]["kernel"].shape == (4, 6)
    with pytest.raises(ValueError, match="width='wide': expected a whole number"):
        clone(model).set_params(trial__width="wide")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"solver": "lbfgs"}, "solver='lbfgs': expected 'adam' or 'sgd'"),
        ({"activation": "gelu"}, "activation='gelu': expected 'identity' or"),
        ({"learning_rate": "adaptive"}, "learning_rate='adaptive': expected 'constant'"),
        ({"hidden_layer_sizes": ()}, "hidden_layer_sizes=.*: expected whole numbers above 0"),
        ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes=.*: expected whole numbers above 0"),
        ({"alpha": -1}, "alpha=-1: expected a number at least 0"),
        ({"learning_rate_init": 0}, "learning_rate_init=0: expected a number above 0"),
        ({"batch_size": 0}, "batch_size=0: expected 'auto' or a whole number"),
        ({"max_iter": 0}, "max_iter=0: expected a whole number above 0"),
        ({"momentum": 1}, "momentum=1: expected a number from 0 to 1"),
        ({"tol": -1}, "tol=-1: expected a number at least 0, or None"),
        ({"n_iter_no_change": 0}, "n_iter_no_change=0: expected a whole number above 0"),
        ({"n_iter_no_change": np.nan}, "n_iter_no_change=nan: expected a whole number above 0"),
        ({"early_stopping": "yes"}, "early_stopping='yes': expected True or False"),
        ({"verbose": -1}, "verbose=-1: expected True or False, or a whole number at least 0"),
        ({"verbose": 0.5}, "verbose=0.5: expected True or False, or a whole number at least 0"),
        ({"power_t": 0.3}, "power_t=0.3: expected 0.5"),
        ({"max_fun": 10}, "max_fun=10: expected 15000"),
        ({"validation_fraction": 1}, "validation_fraction=1: expected a number between"),
        ({"validation_fraction": 0.0, "early_stopping": True}, "validation_fraction=0.0: expected"),
        ({"shuffle": False}, "shuffle=False: expected True"),
        ({"warm_start": True}, "warm_start=True: expected False"),
        ({"shuffle": 1}, "shuffle=1: expected True"),
        ({"nesterovs_momentum": 1}, "nesterovs_momentum=1: expected True or False"),
        ({"activation": np.array(["relu", "tanh"])}, "activation=array.*: expected 'identity' or"),
        ({"batch_size": np.array([2, 3])}, "batch_size=array.*: expected 'auto' or a whole"),
        ({"alpha": np.float64(-1)}, "alpha=-1.0: expected a number at least 0"),
    ],
)
def test_parameters_that_cannot_be_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        MLPClassifier(**bad).fit(X, Y)


@pytest.mark.parametrize(
    ("outputs", "y", "said"),
    [
        (2, NAMES, "module: 2 outputs, expected one for each of the 3 classes of y"),
        (5, NAMES, "module: 5 outputs, expected one for each of the 3 classes of y"),
        (None, NAMES, "module: 1 output, expected one for each of the 3 classes of y"),
        (3, NAMES == "setosa", "module: 3 outputs, expected one for each of the 2 classes of y"),
        (1, NAMES == "setosa", "expected outputs (B,) or (B, 2) for two classes, not (B, 1)"),
        (2, X[:, 0], "module: 2 outputs, expected 1, for y of shape (N,)"),
        (2, X[:, :1], "module: 2 outputs, expected 1, for y of shape (N, 1)"),
        (1, X[:, :2], "module: 1 output, expected 2, for y of shape (N, 2)"),
        (None, X[:, :2], "module: 1 output, expected 2, for y of shape (N, 2)"),
    ],
)
def test_modules_whose_outputs_are_not_those_of_y_are_refused(outputs, y, said):
    kind = Regressor if y.dtype.kind == "f" else Classifier
    with pytest.raises(ValueError, match=re.escape(said)):
        kind(Net(2, outputs), random_state=0).fit(X, y)


def test_a_search_refuses_outputs_that_are_not_those_of_the_classes():
    """As of the trial's own hyperparameters: of the second candidate's, here."""
    model = Classifier(lambda trial: Net(2, trial.width), NetTrial(epochs=1), random_state=0)
    with pytest.raises(ValueError, match="module: 4 outputs, expected one for each of the 3"):
        VectorizedSearchCV(model, {"trial__width": [3, 4]}, cv=2).fit(X, NAMES)


def test_data_that_cannot_be_are_refused():
    model = MLPClassifier((8,), **OPTIONS)
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        model.fit(sparse.csr_array(X), Y)
    with pytest.raises(ValueError, match=r"y: 1 class \(0\.0\), expected 2"):
        model.fit(X, np.zeros(150))
    with pytest.raises(ValueError, match="y should be a 1d array"):
        model.fit(X, np.eye(3, dtype=int)[Y])
    with pytest.raises(ValueError, match=r"y: of dtype <U\d+, expected numbers"):
        MLPRegressor((8,), **OPTIONS).fit(X, Y.astype(str))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(X > 1, np.nan, X), Y)
    with pytest.raises(ValueError, match="loss is not finite any more"):
        MLPClassifier((8,), solver="sgd", learning_rate_init=1e30, **OPTIONS).fit(X, Y)
    with pytest.warns(UserWarning, match="batch_size=200: clipped to the 150 examples"):
        MLPClassifier((8,), **OPTIONS | {"batch_size": 200, "max_iter": 1}).fit(X, Y)


@pytest.mark.nightly
def test_what_an_optimizer_leaves_out_is_no_divergence():
    y = np.where(np.arange(8) == 3, 9.0, 1.0)
    model = Regressor(
        nn.Sequential([nn.Dense(1), lambda x: x[:, 0]]), jx.Trial(epochs=2, batch_size=2),
        loss=lambda p, y: jnp.where(y > 5, jnp.nan, (p - y) ** 2),
        optimizer=lambda trial: optax.apply_if_finite(optax.sgd(0.1), 9),
    )  # fmt: skip
    model.fit(X[:8], y)
    assert np.isnan(model.loss_)
    assert np.isfinite(model.predict(X)).all()


def test_what_float32_does_not_hold_is_refused_by_its_row_where_examples_are_held_out():
    large, small = np.ones(150), np.ones(150)
    large[40], small[40] = 1e300, 1e-50
    model = MLPRegressor((4,), early_stopping=True, **OPTIONS)
    for x, y, weight, said in (
        (X * large[:, None], Y, None, r"X: row 40, column 0 is .*e\+300, expected at most"),
        (X, large, None, r"y: row 40 is 1e\+300, expected at most"),
        (X, Y, small, "sample_weight: row 40 is 1e-50, expected a number that float32 holds"),
        (X, Y, np.arange(150) == 40, r"sample_weight: 0 for all 15 examples held out, expected"),
        (X[:9], Y[:9], None, r"validation_fraction=0.1: 1 of 9 .* held out, of which R² is undef"),
    ):
        with pytest.raises(ValueError, match=said):
            model.fit(x, y, sample_weight=weight)


# The search


@pytest.mark.nightly
def test_a_search_scores_what_its_candidates_alone_would():
    """Folds of equal size, in one plan; the candidates' own fits have the same seed."""
    both = {"hidden_layer_sizes": [(4, 6)], "alpha": [0.5]}  # the penalty is of whole batches
    grid = [
        {"learning_rate_init": [rate], "batch_size": [size], **both}
        for rate, size in ((0.1, 25), (0.01, 10))
    ]
    cv = KFold(2, shuffle=True, random_state=0)
    search = VectorizedSearchCV(MLPClassifier(**OPTIONS), grid, cv=cv, return_train_score=True)
    search.fit(X, NAMES)
    for i, candidate in enumerate(search.cv_results_["params"]):
        alone = cross_val_score(MLPClassifier(**OPTIONS | candidate), X, NAMES, cv=cv)
        found = [search.cv_results_[f"split{k}_test_score"][i] for k in range(2)]
        np.testing.assert_allclose(found, alone, atol=0.014)  # one of 75 examples by rounding
    results = pd.DataFrame(search.cv_results_)
    assert {"mean_test_score", "std_test_score", "rank_test_score", "mean_train_score"} <= {
        *results
    }
    assert search.best_score_ == results["mean_test_score"].max()
    assert search.best_estimator_.get_params()["learning_rate_init"] == 0.1
    assert search.predict(X).shape == (150,)
    assert search.classes_.tolist() == sorted(set(NAMES))


@pytest.mark.nightly
def test_folds_that_differ_by_a_row_are_scored_as_those_of_candidates_alone():
    """Where a batch is all of a fold."""
    x, y = load_diabetes(return_X_y=True)
    x, y, cv = 10 * x[:75], y[:75] / 80, KFold(2, shuffle=True, random_state=0)
    grid = {"batch_size": ["auto"]}
    search = VectorizedSearchCV(MLPRegressor((8,), **OPTIONS), grid, cv=cv, refit=False).fit(x, y)
    for i, candidate in enumerate(search.cv_results_["params"]):
        alone = cross_val_score(MLPRegressor((8,), **OPTIONS | candidate), x, y, cv=cv)
        found = [search.cv_results_[f"split{k}_test_score"][i] for k in range(2)]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
def test_splits_may_be_masks_or_count_from_the_end():
    rows = [(np.arange(100), np.arange(100, 150)), (np.arange(50, 150), np.arange(50))]
    masks = [tuple(np.isin(np.arange(150), part) for part in split) for split in rows]
    from_the_end = [tuple(part - 150 for part in split) for split in rows]
    grid = {"learning_rate_init": [0.1, 0.01]}
    order = np.random.default_rng(0).permutation(150)

    def scores(cv):
        search = VectorizedSearchCV(MLPClassifier((4,), **OPTIONS), grid, cv=cv, refit=False)
        return search.fit(X[order], Y[order]).cv_results_["mean_test_score"]

    expected = scores(rows)
    np.testing.assert_array_equal(scores(masks), expected)
    np.testing.assert_array_equal(scores(from_the_end), expected)
    for wrong in (np.arange(151), ["a"], np.zeros(3, bool), [0.5]):
        with pytest.raises(ValueError, match="cv, split 0: expected rows to train on"):
            scores([(wrong, np.arange(5))])


@pytest.mark.nightly
def test_a_random_search_of_several_metrics_seeds_and_kinds_of_stopping():
    from scipy.stats import loguniform

    space = {
        "learning_rate_init": loguniform(1e-3, 1e-1),
        "early_stopping": [True, False],
        "activation": ["relu", "tanh"],
    }
    search = VectorizedSearchCV(
        MLPClassifier((8,), **OPTIONS | {"max_iter": 3}), space, n_iter=2, n_seeds=2, cv=2,
        random_state=39,
        scoring=["accuracy", "neg_log_loss"], refit="neg_log_loss",
    )  # fmt: skip
    found = search.fit(X, Y).cv_results_
    assert found["mean_test_accuracy"].shape == found["mean_test_neg_log_loss"].shape == (2,)
    assert {*found["param_early_stopping"]} == {True, False}
    assert {*found["param_activation"]} == {"relu", "tanh"}
    assert np.isfinite(found["mean_test_neg_log_loss"]).all()
    assert search.best_index_ == found["mean_test_neg_log_loss"].argmax()
    again = clone(search).fit(X, Y)
    np.testing.assert_array_equal(
        again.cv_results_["mean_test_neg_log_loss"], found["mean_test_neg_log_loss"]
    )


@pytest.mark.nightly
@pytest.mark.integration
def test_groups_weights_and_a_regressor():
    x, y = load_diabetes(return_X_y=True)
    groups = np.arange(442) % 7
    weight = np.random.default_rng(0).uniform(0.5, 2, 442)
    model = MLPRegressor((8,), **OPTIONS)
    search = VectorizedSearchCV(model, {"alpha": [0.1, 1.0]}, cv=GroupKFold(3))
    search.fit(10 * x, y / 80, groups=groups, sample_weight=weight)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    with sklearn.config_context(enable_metadata_routing=True):
        routed = VectorizedSearchCV(
            model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True),
            {"alpha": [0.1, 1.0]}, cv=GroupKFold(3), refit=False,
        )  # fmt: skip
        routed.fit(10 * x, y / 80, groups=groups, sample_weight=weight)
    np.testing.assert_array_equal(
        routed.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


@pytest.mark.nightly
@pytest.mark.integration
def test_a_search_over_the_hyperparameters_of_a_module():
    trial = NetTrial(epochs=12, batch_size=25)
    search = VectorizedSearchCV(
        Classifier(three_classes, trial, random_state=0),
        {"trial__learning_rate": [1e-4, 0.1], "trial__width": [3, 6]},
        cv=3,
    ).fit(X, NAMES)
    assert search.best_params_["trial__learning_rate"] == 0.1
    assert search.best_estimator_.variables_.params["Dense_1"]["kernel"].shape[1] in (3, 6)


@pytest.mark.nightly
@pytest.mark.integration
def test_candidates_that_no_trial_tells_apart_train_apart():
    """Modules, losses, optimizers, random states, and trials of another class."""
    cv = KFold(2, shuffle=True, random_state=0)
    model = Classifier(Net(6, 3), jx.Trial(epochs=10, batch_size=25, learning_rate=0.05))
    model.set_params(random_state=0)
    grid = [
        {"module": [Net(6, 3), Net(1, 3)]},
        {"optimizer": [lambda trial: optax.sgd(1e-6 * trial.learning_rate)]},
        {"random_state": [1]},
        {"module": [three_classes], "trial": [NetTrial(epochs=10, batch_size=25, width=5)]},
    ]
    search = VectorizedSearchCV(model, grid, cv=cv).fit(X, NAMES)
    for i, candidate in enumerate(search.cv_results_["params"]):
        alone = cross_val_score(clone(model).set_params(**candidate), X, NAMES, cv=cv)
        found = [search.cv_results_[f"split{k}_test_score"][i] for k in range(2)]
        np.testing.assert_allclose(found, alone, atol=0.014)
    assert len(set(search.cv_results_["mean_test_score"])) > 2


TEST = np.arange(1, 150, 2)
# By name: the labels, and folds of which some have no training example of a class.
LACKING = {
    "one class in each": (Y, KFold(3)),
    "all but one": (Y, [(np.arange(50), TEST), (np.arange(0, 150, 2), TEST)]),
    "a class of one member": (np.where(np.arange(150) == 120, 2, Y % 2), StratifiedKFold(3)),
}


@pytest.mark.parametrize("case", at_night(LACKING, "all but one", "a class of one member"))
def test_folds_that_lack_a_class_are_scored_as_those_of_candidates_alone(case):
    y, cv = LACKING[case]
    found = {}
    for search in (VectorizedSearchCV, GridSearchCV):
        own = search(
            MLPClassifier((8,), **OPTIONS), {"learning_rate_init": [0.1, 0.01]}, cv=cv,
            scoring=["accuracy", "neg_log_loss"], refit=False, return_train_score=True,
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = own.fit(X, y).cv_results_
        failed = any(issubclass(warned.category, FitFailedWarning) for warned in caught)
        found[search] = failed, {n: v for n, v in results.items() if "time" not in n and "_t" in n}
    (failed, results), (failed_alone, wanted) = found.values()
    assert failed == failed_alone == (case == "all but one")
    assert {*results} == {*wanted}
    for name in wanted:
        np.testing.assert_allclose(results[name], wanted[name], atol=0.02, err_msg=name)


def test_folds_of_one_class_alone_fail_as_fits_on_them_do():
    model, grid = MLPClassifier((8,), **OPTIONS), {"alpha": [0.1, 1.0]}
    one_class = PredefinedSplit(np.where(Y == 0, -1, 0))
    with pytest.raises(ValueError, match=r"4 of 4 fits failed: fold 0: y: 1 class \(0\), expected"):
        VectorizedSearchCV(model, grid, cv=one_class, n_seeds=2).fit(X, Y)
    with pytest.raises(ValueError, match=r"^y: 1 class .*, expected 2"):
        VectorizedSearchCV(model, grid, cv=one_class, error_score="raise").fit(X, Y)


@pytest.mark.nightly
@pytest.mark.integration
def test_folds_on_which_no_fit_can_be_made_lose_their_scores_alone():
    """Of weights that leave a class out, and of classes too small to hold examples out."""
    cv = KFold(2, shuffle=True, random_state=0)
    (train, test), _ = cv.split(X)
    weight, y = np.ones(150), np.where(np.isin(np.arange(150), test[:3]), 2, Y % 2)
    weight[train[Y[train] > 0]] = 0.0
    y[train[0]] = 2
    early = {"early_stopping": [True]}
    for labels, grid, given in ((Y, {"alpha": [0.1]}, weight), (y, early, None)):
        options = {"cv": cv, "refit": False}
        scores = []
        for search in (VectorizedSearchCV, GridSearchCV):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                own = search(MLPClassifier((8,), **OPTIONS), grid, **options)
                results = own.fit(X, labels, sample_weight=given).cv_results_
            scores.append([results[f"split{fold}_test_score"][0] for fold in range(2)])
        np.testing.assert_allclose(*scores, atol=0.014)
        assert np.isnan(scores[0]).tolist() == [True, False]


@pytest.mark.integration
def test_a_fold_whose_held_out_examples_weigh_nothing_loses_its_scores_alone():
    x = np.random.default_rng(0).normal(size=(180, 2))
    cv, weight = KFold(3), np.ones(180)
    model = MLPRegressor((4,), early_stopping=True, **OPTIONS)
    (seed,) = model._seeds(1)
    held = train_test_split(list(cv.split(x))[1][0], test_size=0.1, random_state=seed)[1]
    weight[held] = 0.0
    search = VectorizedSearchCV(model, {"alpha": [0.1]}, cv=cv, refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = search.fit(x, x[:, 0], sample_weight=weight).cv_results_
    scores = [results[f"split{fold}_test_score"][0] for fold in range(3)]
    assert np.isnan(scores).tolist() == [False, True, False]


@pytest.mark.nightly
def test_candidates_of_the_same_text_are_told_apart():
    """Losses whose text leaves a number out, and modules of arrays too long to be printed."""
    constants = np.ones(1200)
    other = constants.copy()
    other[100:1100] = 0.0
    assert repr(Scaled(constants)) == repr(Scaled(other))
    cv = [(TEST - 1, TEST)]
    trial = jx.Trial(epochs=3, batch_size=25, learning_rate=0.05)
    model = Classifier(Net(4, 3), trial, random_state=0)
    grid = [
        {"loss": [Times(1.0), Times(-1.0)]},
        {"module": [Scaled(constants), Scaled(other)], "trial__learning_rate": [1e-4]},
    ]
    found = VectorizedSearchCV(model, grid, cv=cv, scoring="neg_log_loss", refit=False)
    scores = found.fit(X, NAMES).cv_results_["mean_test_score"]
    assert len(set(scores)) == 4
    for i in (1, 3):  # each behind one of the same text
        alone = clone(model).set_params(**found.cv_results_["params"][i])
        wanted = cross_val_score(alone, X, NAMES, cv=cv, scoring="neg_log_loss").mean()
        np.testing.assert_allclose(scores[i], wanted, rtol=1e-3)


@pytest.mark.nightly
def test_candidates_with_the_module_of_the_estimator_train_together(monkeypatch):
    """The copy that each has of it is no reason to train apart."""
    model = Classifier(Scaled(np.ones(4)), jx.Trial(epochs=1, batch_size=25), loss=Times(1.0))
    search = VectorizedSearchCV(model, {"trial__learning_rate": [0.1, 0.01]}, cv=3, refit=False)
    plans, run = [], VectorizedSearchCV._run
    monkeypatch.setattr(
        VectorizedSearchCV, "_run", lambda *given: plans.append(given[-1]) or run(*given)
    )
    search.fit(X, NAMES)
    assert [len(trials) for trials in plans] == [6]


EARLY = MLPClassifier((4,), early_stopping=True, **OPTIONS | {"max_iter": 2})
ALPHA = {"alpha": [0.0, 5.0]}
HALVES = KFold(2, shuffle=True, random_state=0)
RNG = np.random.RandomState(3)
EVEN = [(TEST - 1, TEST)]
BOOTSTRAP = [(np.random.default_rng(k).integers(0, 150, 100), TEST) for k in range(2)]
SHAPES = Regressor(Net(4, None), NetTrial(epochs=2, batch_size=25), random_state=0)
BY_TRIAL = clone(SHAPES).set_params(module=lambda trial: Net(4, trial.width or None))
# By name: estimator, candidates, splits and labels or targets.
LIKE_GRID_SEARCH = {
    "rows in any order": (EARLY, ALPHA, ShuffleSplit(2, test_size=0.3, random_state=0), Y),
    "rows that repeat": (EARLY, ALPHA, BOOTSTRAP, Y),
    "a generator": (clone(EARLY).set_params(random_state=RNG), ALPHA, HALVES, Y),
    "one and two axes": (SHAPES, {"module": [Net(4, None), Net(4, 1)]}, EVEN, X[:, 0]),
    "as trials say": (BY_TRIAL, {"trial__width": [0, 1]}, EVEN, X[:, 0]),
}


@pytest.mark.parametrize(
    "case",
    at_night(
        LIKE_GRID_SEARCH, "one and two axes", "rows in any order", "as trials say", "a generator"
    ),
)
def test_a_search_scores_as_grid_search_around_the_same_estimator(case):
    estimator, grid, cv, y = LIKE_GRID_SEARCH[case]
    options = {"cv": cv, "refit": False, "scoring": "neg_log_loss" if y is Y else "r2"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found, wanted = (
            search(estimator, grid, **options).fit(X, y).cv_results_
            for search in (VectorizedSearchCV, GridSearchCV)
        )
    np.testing.assert_allclose(found["mean_test_score"], wanted["mean_test_score"], rtol=1e-5)


@pytest.mark.nightly
def test_a_generator_among_the_parameters_is_not_drawn_from():
    rng = np.random.RandomState(3)
    grid = {"random_state": [rng]}
    alone = clone(EARLY).set_params(random_state=np.random.RandomState(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = [VectorizedSearchCV(EARLY, grid, cv=2).fit(X, Y) for _ in range(2)]
        alone.fit(X, Y)
    assert rng.randint(1000) == np.random.RandomState(3).randint(1000)
    for search in found:
        np.testing.assert_array_equal(search.predict_proba(X), alone.predict_proba(X))
    assert found[0].best_score_ == found[1].best_score_


def test_scorers_return_numbers():
    several = make_scorer(f1_score, average=None)
    for wrong in (several, {"several": several}, *(lambda *_, r=r: r for r in ([0.1], None, "1"))):
        search = VectorizedSearchCV(EARLY, {"alpha": [0.1]}, cv=2, scoring=wrong, refit=False)
        with pytest.raises(ValueError, match="scoring must return a number, got"):
            search.fit(X, Y)


def test_scorers_may_keep_the_estimators_that_they_score():
    kept = []

    def score(model, x, y):
        kept.append((model, x, model.predict_proba(x)))
        return 0.0

    VectorizedSearchCV(EARLY, {"alpha": [0.1]}, cv=2, n_seeds=2, scoring=score, refit=False).fit(
        X, Y
    )
    assert len(kept) == len({id(model) for model, *_ in kept}) == 4
    for model, x, predicted in kept:
        np.testing.assert_array_equal(model.predict_proba(x), predicted)


@pytest.mark.nightly
def test_test_scores_are_asked_before_train_scores():
    sizes = []

    def score(model, x, y):
        sizes.append(len(x))
        return float(len(x))

    search = VectorizedSearchCV(
        EARLY, {"alpha": [0.1]}, cv=3, scoring=score, refit=False, return_train_score=True
    )
    found = search.fit(X, Y).cv_results_
    assert sizes == [len(X) // 3, len(X) * 2 // 3] * 3
    assert found["mean_train_score"] == 2 * found["mean_test_score"] == len(X) * 2 // 3


def test_several_scores_of_a_function_that_fails_for_some_candidates():
    def scores(model, x, y):
        if model.alpha == 5.0:
            raise ValueError("of no use")
        return {"one": 1.0, "two": 2.0}

    search = VectorizedSearchCV(EARLY, ALPHA, cv=2, scoring=scores, refit=False, error_score=-1)
    with pytest.warns(UserWarning, match="of no use"):
        results = search.fit(X, Y).cv_results_
    assert results["mean_test_one"].tolist() == [1, -1]
    assert results["mean_test_two"].tolist() == [2, -1]


@pytest.mark.nightly
def test_weights_or_predictions_that_overflow_in_the_last_update_are_no_success():
    once = OPTIONS | {"max_iter": 1, "batch_size": "auto"}
    for solver in ("sgd", "adam"):  # whose weights are finite, and predictions are not
        model = MLPRegressor((4,), solver=solver, learning_rate_init=1e38, **once)
        with pytest.raises(ValueError, match="not finite any more, or the weights"):
            model.fit(X, 1000 * X[:, 0])
    model = MLPRegressor((4,), learning_rate_init=1e9, **once).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=r"outputs are not finite for .* of 150 examples"):
        model.predict(1e30 * X)
    model = MLPClassifier((4,), solver="sgd", momentum=0.0, **once)
    search = VectorizedSearchCV(model, {"learning_rate_init": [1e30, 1e-9]}, cv=2, error_score=-1)
    with pytest.warns(FitFailedWarning, match="not finite any more, or the weights"):
        search.fit(X, Y)
    assert search.cv_results_["mean_test_score"][0] == -1
    assert search.best_params_ == {"learning_rate_init": 1e-9}


@pytest.mark.nightly
def test_a_class_may_be_impossible():
    class Never(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x).at[:, 2].set(-jnp.inf)

    model = Classifier(Never(), jx.Trial(epochs=1, batch_size=25), random_state=0)
    weight = np.where(Y == 2, 0.0, 1.0)
    model = model.fit(X, Y, sample_weight=weight)
    assert (model.predict_proba(X)[:, 2] == 0).all()


def test_a_candidate_that_diverges():
    grid = {"learning_rate_init": [0.01, 1e30]}
    model = MLPClassifier((8,), solver="sgd", **OPTIONS)
    with pytest.warns(FitFailedWarning, match="3 of 6 fits failed"):
        search = VectorizedSearchCV(model, grid, cv=3, error_score=np.float32(-1)).fit(X, Y)
    assert search.cv_results_["mean_test_score"][1] == -1
    assert search.best_params_ == {"learning_rate_init": 0.01}
    with pytest.raises(ValueError, match="loss is not finite any more"):
        VectorizedSearchCV(model, grid, cv=3, error_score="raise").fit(X, Y)


def test_searches_that_cannot_be_are_refused():
    model = MLPClassifier((8,), **OPTIONS)
    with pytest.raises(TypeError, match=r"expected one of jaxexp\.sklearn"):
        VectorizedSearchCV(make_pipeline(StandardScaler(), model), {"alpha": [1]}).fit(X, Y)
    for wrong in (0, True):
        with pytest.raises(ValueError, match=f"n_seeds={wrong}: expected a whole number above 0"):
            VectorizedSearchCV(model, {"alpha": [1]}, n_seeds=wrong).fit(X, Y)
    for wrong in (0, True, 2.5, "3"):
        with pytest.raises(ValueError, match=f"n_iter={wrong!r}: expected a whole number above 0"):
            VectorizedSearchCV(model, {"alpha": [1]}, n_iter=wrong).fit(X, Y)
    for wrong, hint in (([], "$"), (iter([]), ": give a list")):  # a generator that a fit has used
        with pytest.raises(ValueError, match=rf"cv=.*: no splits, expected one at least{hint}"):
            VectorizedSearchCV(model, {"alpha": [1]}, cv=wrong).fit(X, Y)
    for wrong in (3, jx.Trial):
        search = VectorizedSearchCV(Classifier(Net(4, 3), wrong), {"trial__epochs": [1]})
        with pytest.raises(ValueError, match=r"trial=.*: expected a jaxexp.Trial, or None"):
            search.fit(X, Y)
    for wrong in (True, "mean", np.zeros(2)):
        with pytest.raises(ValueError, match=r"error_score=.*: expected 'raise' or a number"):
            VectorizedSearchCV(model, {"alpha": [1]}, error_score=wrong).fit(X, Y)
    with pytest.raises(ValueError, match=r"[Ii]nvalid parameter"):
        VectorizedSearchCV(model, {"alfa": [1]}).fit(X, Y)
    with pytest.raises(ValueError, match="alpha=-1: expected"):
        VectorizedSearchCV(model, {"alpha": [1, -1]}).fit(X, Y)
    with pytest.raises(
        ValueError, match="n_splits=60 cannot be greater than the number of members"
    ):
        VectorizedSearchCV(model, {"alpha": [1]}, cv=60).fit(X, Y)
    with pytest.raises(ValueError, match="refit must be set to a scorer key"):
        VectorizedSearchCV(model, {"alpha": [1]}, scoring=["accuracy", "f1_macro"]).fit(X, Y)


class Balanced(MLPClassifier):
    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y, np.where(y == 1, 30.0, 1.0))


class Prepares(Classifier):
    def _prepare(self, X, y, sample_weight):
        return super()._prepare(X - X.mean(0), y, sample_weight)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Balanced((4,), **OPTIONS), r"Balanced\.fit is not called on the folds.*GridSearchCV"),
        (Prepares(three_classes, NetTrial()), r"Prepares\._prepare is not called on the folds"),
    ],
)
def test_a_search_refuses_an_estimator_that_trains_in_a_way_of_its_own(model, said):
    with pytest.raises(TypeError, match=said):
        VectorizedSearchCV(model, {"random_state": [0]}, cv=2).fit(X, Y)


class Contrary(MLPClassifier):
    """Predicting and scored in a way of its own, with fewer parameters."""

    def __init__(self, hidden_layer_sizes=(4,), random_state=0):
        super().__init__(hidden_layer_sizes, **OPTIONS | {"random_state": random_state})

    def predict(self, X):
        return (super().predict(X) + 1) % 3

    def score(self, X, y):
        return -super().score(X, y)


@pytest.mark.nightly
def test_a_subclass_that_trains_as_ours_is_searched_as_by_grid_search():
    grid = {"random_state": [0, 1]}
    scores = [
        kind(Contrary(), grid, cv=2, refit=False).fit(X, Y).cv_results_["split1_test_score"]
        for kind in (VectorizedSearchCV, GridSearchCV)
    ]
    np.testing.assert_allclose(*scores)
    assert (scores[0] <= 0).all()
