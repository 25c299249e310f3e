"""Metrics: equal to scikit-learn's, additive, blind to padding, and never wrong without a word."""

import functools
import pickle
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

import jaxexp.training.metrics as metrics
from jaxexp.base.errors import UserError
from jaxexp.training import carry
from jaxexp.training.metric import Direction, Metric

N, C = 1000, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, C)).astype(np.float32)
LABELS = RNG.integers(0, C, N).astype(np.int32)
SCORES = RNG.normal(size=N).astype(np.float32)
BINARY = (RNG.normal(size=N) + SCORES > 0).astype(np.int32)
REAL = RNG.normal(size=(N, 3)).astype(np.float32)
NEAR = (REAL + RNG.normal(size=(N, 3)) / 2).astype(np.float32)
WEIGHTS = RNG.uniform(0, 3, N).astype(np.float32)
ONES = np.ones(N, np.float32)


@functools.partial(jax.jit, static_argnums=0)
def sums_and_value(metric: Metric, prediction: Any, target: Any, weights: Any) -> Any:
    sums = jax.vmap(lambda p, t, w: metric.sums_of(None, p, t, w))(prediction, target, weights)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sums))
    sums = jax.tree.map(lambda leaf: leaf.sum(0), sums)
    return sums, metric.compute(sums)


def measure_with_sums(metric: Metric, prediction: Any, target: Any, weight: Any) -> Any:
    """In batches of 128, the last of which is padded with NaN, as one program."""
    n_padding = -len(target) % 128

    def batches(array: Any) -> jax.Array:
        array = np.asarray(array)
        padding = np.nan if array.dtype.kind == "f" else 99
        width = [(0, n_padding)] + [(0, 0)] * (array.ndim - 1)
        padded = np.pad(array, width, constant_values=padding)
        return jnp.asarray(padded.reshape(-1, 128, *array.shape[1:]))

    weights = jnp.asarray(np.pad(weight, (0, n_padding)).reshape(-1, 128))
    return sums_and_value(metric, batches(prediction), batches(target), weights)


def measure(metric: Metric, prediction: Any, target: Any, weight: Any = ONES) -> float:
    return float(measure_with_sums(metric, prediction, target, weight)[1])


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64))
    return odds / odds.sum(1, keepdims=True)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def brier_of_classes(label_N, probability_NxC, sample_weight):
    """Older ones of scikit-learn's own take two classes only."""
    classes = probability_NxC.shape[1]
    one_hot_NxC = np.eye(classes)[label_N]
    error = sk.mean_squared_error(one_hot_NxC, probability_NxC, sample_weight=sample_weight)
    return classes * error  # which is a mean over the classes, and theirs a sum


@pytest.mark.parametrize("weight", [ONES, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize(
    ("metric", "prediction", "target", "theirs", "change"),
    [
        ("accuracy", LOGITS, LABELS, sk.accuracy_score, lambda z: z.argmax(1)),
        ("accuracy", SCORES, BINARY, sk.accuracy_score, lambda z: z > 0),
        ("accuracy", SCORES, BINARY == 1, sk.accuracy_score, lambda z: z > 0),
        ("top_k", LOGITS, LABELS, sk.top_k_accuracy_score, np.copy),  # its k is 2, too
        ("log_loss", LOGITS, LABELS, sk.log_loss, softmax),
        ("log_loss", SCORES, BINARY, sk.log_loss, sigmoid),
        ("brier", LOGITS, LABELS, brier_of_classes, softmax),
        ("brier", SCORES, BINARY, sk.brier_score_loss, sigmoid),
        ("mean_squared_error", NEAR, REAL, sk.mean_squared_error, np.copy),
        ("mean_squared_error", NEAR[:, 0], REAL[:, 0], sk.mean_squared_error, np.copy),
        ("mean_absolute_error", NEAR, REAL, sk.mean_absolute_error, np.copy),
        ("r2", NEAR, REAL, sk.r2_score, np.copy),
        ("r2", NEAR[:, 0], REAL[:, 0], sk.r2_score, np.copy),
        ("r2", NEAR[:, :1] * 0, REAL[:, :1], sk.r2_score, np.copy),
    ],
)
def test_equal_to_scikit_learn(metric, prediction, target, theirs, change, weight):
    metric = metrics.top_k(2) if metric == "top_k" else getattr(metrics, metric)
    expected = theirs(target, change(prediction), sample_weight=weight)
    ours = measure(metric, prediction, target, weight)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_directions_units_and_documentation():
    higher = {"accuracy", "r2", "auc"}
    lower = {"log_loss", "brier", "mean_squared_error", "mean_absolute_error"}
    for name in higher | lower:
        metric = getattr(metrics, name)
        assert (metric.direction == "higher") == (name in higher)
        assert metric.unit == ("nats" if name == "log_loss" else "")
        assert "Σ" in metric.__doc__
        assert pickle.loads(pickle.dumps(metric)) == metric
    assert metrics.top_k(3) == metrics.top_k(3)
    assert hash(metrics.top_k(3)) == hash(metrics.top_k(3))
    assert metrics.r2_around(3) == metrics.r2_around([3.0]) != metrics.r2
    assert isinstance(Metric("lower").direction, Direction)


# Classification


def test_nan_is_never_right_and_the_first_of_equal_logits_counts():
    logits = jnp.array([[jnp.nan, 0, 1], [0, jnp.nan, 1], [jnp.nan] * 3, [1, 1, 0], [1, 1, 0]])
    labels = jnp.array([0, 2, 0, 0, 1])
    for metric in (metrics.accuracy, metrics.top_k(1)):
        assert metric.example(logits, labels).tolist() == [0, 0, 0, 1, 0]
    assert metrics.top_k(2).example(logits, labels).tolist() == [0, 0, 0, 1, 1]
    binary = jnp.array([jnp.nan, jnp.nan, 0.0, 1e-9, jnp.inf, 1])
    assert metrics.accuracy.example(binary, jnp.array([0, 1, 0, 1, 1, 2])).tolist() == [
        False, False, True, True, True, False
    ]  # fmt: skip


def test_labels_that_are_no_class():
    labels, ones = jnp.array([-1, C, 2]), jnp.ones(3)
    logits = jnp.zeros((3, C)).at[:, [0, -1]].set(9.0)
    assert not metrics.accuracy.example(logits, labels).any()
    assert not metrics.top_k(2).example(logits, labels).any()
    for metric in (metrics.log_loss, metrics.brier):
        assert jnp.isnan(metric.example(logits, labels)).tolist() == [True, True, False]
        assert jnp.isnan(metric.example(jnp.zeros(3), labels)).all()
    assert np.isnan(metrics.auc.compute(metrics.auc.sums_of(None, ones, labels, ones)))


def test_brier_of_two_logits_is_twice_that_of_one():
    two = np.stack([0 * SCORES, SCORES], axis=1)
    one = measure(metrics.brier, SCORES, BINARY)
    np.testing.assert_allclose(measure(metrics.brier, two, BINARY), 2 * one, rtol=1e-5)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "2", None])
def test_refused_k(k):
    with pytest.raises(UserError, match=r"^k: .*, expected a whole number, at least 1"):
        metrics.top_k(k)


# R²


@pytest.mark.parametrize("mean", [0.0, 1000.0, -1e5])
def test_r2_of_targets_far_from_0(mean: float):
    target = (REAL + mean * np.array([1, -1, 2])).astype(np.float32)
    prediction = (NEAR + mean * np.array([1, -1, 2])).astype(np.float32)
    expected = sk.r2_score(target.astype(np.float64), prediction.astype(np.float64))
    train = target[:300] + np.float32(0.3)
    metric = metrics.r2.for_target(train)
    np.testing.assert_allclose(measure(metric, prediction, target), expected, atol=1e-5)
    assert metric.for_target(train) == metric
    assert metrics.r2.for_target(None) is metrics.r2
    with pytest.raises(UserError, match=r"^R²: targets are a dict, expected an array \(N, ...\)"):
        metrics.r2.for_target({"a": train})
    if mean:  # float32 cannot tell: NaN rather than a wrong number
        assert np.isnan(measure(metrics.r2, prediction, target))


def test_r2_without_a_center_where_it_says_that_it_holds():
    for mean, tolerance in ((3, 1e-5), (30, 1e-3), (90, 1e-2)):
        target, prediction = REAL[:, 0] + np.float32(mean), NEAR[:, 0] + np.float32(mean)
        expected = sk.r2_score(target.astype(np.float64), prediction.astype(np.float64))
        np.testing.assert_allclose(
            measure(metrics.r2, prediction, target), expected, atol=tolerance
        )


def test_r2_of_equal_targets_is_undefined():
    for value in (0.0, 0.1, 7.3):
        target = np.full(N, value, np.float32)
        for metric in (metrics.r2, metrics.r2.for_target(target), metrics.r2_around(value)):
            assert np.isnan(measure(metric, SCORES, target))


def test_r2_that_is_forced_to_be_finite_is_scikit_learns():
    weight_N = np.where(np.arange(N) < 9, 0, RNG.uniform(0.1, 2, N)).astype(np.float32)
    target = REAL.copy()
    target[9:, 0], target[9:, 1] = 0.5, -8
    prediction = NEAR.copy()
    prediction[9:, 1] = -8
    metric = metrics.r2_around(0.0, force_finite=True).for_target(REAL)
    mean, median = (own(REAL.astype(float), axis=0) for own in (np.mean, np.median))
    assert metric == metrics.r2_around(mean, median, force_finite=True)
    for made in (prediction, target):
        expected = sk.r2_score(target.astype(float), made.astype(float), sample_weight=weight_N)
        np.testing.assert_allclose(measure(metric, made, target, weight_N), expected, atol=1e-5)
    prediction[20] = np.nan
    assert np.isnan(measure(metric, prediction, target, weight_N))
    assert np.isnan(measure(metric, NEAR, target, 0 * weight_N))


def test_r2_where_an_outlier_moves_the_mean():
    target, train = REAL[:, 0] / 1000, np.append(REAL[:, 0] / 1000, np.float32(1e5))
    expected = sk.r2_score(target, NEAR[:, 0])
    for metric in (metrics.r2, metrics.r2_around(0.0, force_finite=True)):
        found = measure(metric.for_target(train), NEAR[:, 0], target)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # From 100 to 300 standard deviations, float32 tells equal targets from others, but no more.
    far = metrics.r2_around(target.mean() + 200 * target.std(), force_finite=True)
    assert np.isnan(measure(far, NEAR[:, 0], target))


@pytest.mark.parametrize("center", [np.nan, np.inf, [], [1.0, np.nan]])
def test_refused_centers(center):
    with pytest.raises(UserError, match=r"^center: .*, expected a finite number"):
        metrics.r2_around(center)


def test_a_center_for_another_number_of_outputs():
    with pytest.raises(UserError, match=r"center: 2 numbers for targets of shape .*, expected one"):
        measure(metrics.r2_around([1, 2]), NEAR, REAL)


# Area under the ROC curve


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z,
        lambda z: 100 * z,
        lambda z: z / 50,
        lambda z: z - 5,
        lambda z: z / 5 - 5,
        sigmoid,
        lambda z: sigmoid(z) / 100,
        np.exp,
        np.round,
        lambda z: 0 * z,
        lambda z: -z,
        lambda z: np.where(np.abs(z) > 1, np.sign(z) * np.inf, z),
    ],
)
@pytest.mark.parametrize("weight", [ONES, WEIGHTS], ids=["equal", "weighted"])
def test_auc_is_that_of_scikit_learn(change, weight):
    score = np.asarray(change(SCORES), np.float32)
    ranked = np.clip(score, -1e9, 1e9)  # scikit-learn refuses infinite ones
    expected = sk.roc_auc_score(BINARY, ranked, sample_weight=weight)
    sums, ours = measure_with_sums(metrics.auc, score, BINARY, weight)
    assert abs(ours - expected) < 1e-3
    positive, negative = (sums[name] / sums[name].sum() for name in ("positive", "negative"))
    assert abs(ours - expected) <= float(positive @ negative) / 2 + 1e-6


def test_auc_of_two_logits_is_that_of_their_difference():
    two = np.stack([-SCORES / 2, SCORES / 2], axis=1)
    assert measure(metrics.auc, two, BINARY) == measure(metrics.auc, SCORES, BINARY)


def test_bins_rise_with_the_score():
    size = np.concatenate([[0.0], np.geomspace(1e-38, 3e38, 100_001), [np.inf]])
    score = np.concatenate([-size[::-1], size]).astype(np.float32)
    bins = np.asarray(metrics._bin(jnp.asarray(score)))
    assert (np.diff(bins) >= 0).all()
    assert (bins[0], bins[-1]) == (0, metrics._BINS - 1)
    assert len(np.unique(bins)) == metrics._BINS
    middle = np.geomspace(1.0, 1000, 10_000).astype(np.float32)
    bins = np.asarray(metrics._bin(jnp.asarray(middle)))
    widths = [np.ptp(middle[bins == b]) / middle[bins == b].min() for b in np.unique(bins)]
    assert max(widths) < 0.004


def test_auc_that_is_undefined():
    for target in (0 * BINARY, 0 * BINARY + 1, BINARY * 2):
        assert np.isnan(measure(metrics.auc, SCORES, target))
    broken = SCORES.copy()
    broken[7] = np.nan
    assert np.isnan(measure(metrics.auc, broken, BINARY))
    weight = ONES.copy()
    weight[7] = 0  # as padding is
    assert measure(metrics.auc, broken, BINARY, weight) == measure(
        metrics.auc, SCORES, BINARY, weight
    )


# Metrics of one's own


def test_a_value_of_the_task_itself():
    metric = Metric("lower", unit="m")
    value_B, weight_B = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 3.0, 0.0])
    sums = metric.sums_of(value_B, None, None, weight_B)
    assert {name: float(value) for name, value in sums.items()} == {"total": 10, "weight": 4}
    assert float(metric.compute(sums)) == 2.5
    assert np.isnan(metric.compute(metric.sums_of(value_B, None, None, 0 * weight_B)))
    assert np.isnan(metric.compute(metric.sums_of(value_B, None, None, weight_B + 1)))


def test_functions_of_sums():
    metric = Metric(
        "lower",
        sums=lambda p, t, w: {"squares": jnp.where(w > 0, w * (p - t) ** 2, 0).sum(), "n": w.sum()},
        value=lambda sums: jnp.sqrt(sums["squares"] / sums["n"]),
    )
    expected = sk.root_mean_squared_error(REAL[:, 0], NEAR[:, 0], sample_weight=WEIGHTS)
    assert abs(measure(metric, NEAR[:, 0], REAL[:, 0], WEIGHTS) - expected) < 1e-5
    counts = Metric("lower", sums=lambda p, t, w: (w > 0).sum(), value=lambda n: n)
    assert counts.sums_of(None, None, None, jnp.ones(3)).dtype == jnp.float32


def test_trials_side_by_side_have_what_each_has_alone():
    predictions = jnp.asarray(np.stack([LOGITS, LOGITS[::-1], LOGITS * 2]))
    for metric in (metrics.accuracy, metrics.top_k(2), metrics.log_loss):

        def one(prediction: Any, metric: Metric = metric) -> Any:
            return metric.compute(metric.sums_of(None, prediction, LABELS, ONES))

        np.testing.assert_array_equal(
            jax.jit(jax.vmap(one))(predictions), [jax.jit(one)(each) for each in predictions]
        )


def function(*_: Any) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("direction: 'up', expected one of higher, lower", {"direction": "up"}),
        ("direction: None, expected one of higher, lower", {"direction": None}),
        ("unit: None, expected a string", {"unit": None}),
        ("example: 3, expected a function", {"example": 3}),
        ("Metric: sums given, expected either", {"sums": function}),
        ("Metric: value given, expected either", {"value": function}),
        ("Metric: example and value given", {"example": function, "value": function}),
        (
            "Metric: example and sums and value given",
            {"example": function, "sums": function, "value": function},
        ),
    ],
)
def test_refused_metrics(said: str, options: dict[str, Any]):
    with pytest.raises(UserError, match=f"^{said}"):
        Metric(**({"direction": "lower"} | options))


def of(example: Any) -> Metric:
    return Metric("lower", example=example)


@pytest.mark.parametrize(
    ("said", "metric", "prediction", "target"),
    [
        ("predictions of shape (1000,) for", "mean_squared_error", SCORES, REAL[:, :1]),
        ("predictions of shape (1000, 1) for", "mean_absolute_error", REAL[:, :1], SCORES),
        ("predictions of shape (1000,) for", "r2", SCORES, REAL),
        ("predictions of shape (1000, 1) for", "accuracy", LOGITS[:, :1], LABELS),
        ("predictions of shape (999, 5) for", "accuracy", LOGITS[:-1], LABELS),
        ("targets of shape (1000, 1), expected labels (B,)", "accuracy", LOGITS, LABELS[:, None]),
        ("targets of float32, expected whole", "accuracy", LOGITS, SCORES),
        ("targets of float32, expected whole", "log_loss", LOGITS, SCORES),
        ("prediction: None, expected an array", "brier", None, LABELS),
        ("target: None, expected an array", "mean_squared_error", REAL, None),
        ("prediction: a dict, expected an array", "r2", {"a": REAL}, REAL),
        ("predictions of shape (1000, 5), expected scores (B,)", "auc", LOGITS, LABELS),
        ("k = 5 for predictions of shape (1000, 5)", metrics.top_k(5), LOGITS, LABELS),
        ("k = 1 for predictions of shape (1000,)", metrics.top_k(1), SCORES, BINARY),
        ("a value of shape (1000, 3), expected (1000,)", of(lambda p, t: p - t), REAL, REAL),
        ("a value of shape (), expected (1000,)", of(lambda p, t: p.mean()), REAL, REAL),
        ("no value, expected one of shape (B,)", Metric("lower"), REAL, REAL),
        ("no value, expected one of shape (B,)", of(lambda p, t: None), REAL, REAL),
    ],
)
def test_refused_while_tracing(said: str, metric: Any, prediction: Any, target: Any):
    metric = getattr(metrics, metric) if isinstance(metric, str) else metric

    def run(prediction: Any, target: Any) -> Any:
        return metric.sums_of(None, prediction, target, ONES, name="m")

    with pytest.raises(UserError) as caught:
        jax.jit(run)(prediction, target)
    assert str(caught.value).startswith(f"metric 'm': {said}")


def test_other_refusals():
    with pytest.raises(UserError, match=r"^metric 'm': the task reports a value of its own, and"):
        metrics.accuracy.sums_of(ONES, LOGITS, LABELS, ONES, name="m")
    with pytest.raises(UserError, match=r"^metric: a value of shape \(999,\), expected \(1000,\)"):
        Metric("lower").sums_of(ONES[:-1], None, None, ONES)
    metric = Metric("lower", sums=lambda p, t, w: w, value=lambda w: w)
    with pytest.raises(UserError, match=r"^metric 'm': a value of shape \(2,\), expected one numb"):
        metric.compute(jnp.ones(2), name="m")


def test_what_the_value_of_a_metric_reads_is_read_in_every_run():
    class Scaled:
        __hash__ = None
        scale = 1.0

        def __call__(self, sums):
            return self.scale * sums["a"]

    value = Scaled()
    metric = Metric("lower", sums=lambda *_: {"a": jnp.ones(())}, value=value)
    task = types.SimpleNamespace(metrics={"m": metric})
    for scale in (1.0, 100.0):
        value.scale = scale
        found = carry.values(task, {"m": {"a": np.ones((2, 3), np.float32)}})
        np.testing.assert_array_equal(found["m"], np.full((2, 3), scale))
