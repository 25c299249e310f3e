"""Metrics: what a model is judged by besides its loss, as means or as functions of sums.

A metric is measured batch by batch, and the sums of the batches are added. It is therefore either a
mean of one value per example, or a function of sums over examples, like R² and the area under a ROC
curve. Everything works under `jit` and `vmap`, and padding counts for nothing, even if it is NaN.
Numbers are float32, like the predictions: sums of weights are exact up to 2²⁴ examples of weight 1.

`prediction` is that of the task's `Outputs`, (B,) or (B, ...) for B examples; classifiers predict
logits: (B, C) for C classes, or (B,) for two, where the logit is that of class 1.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.typing import ArrayLike

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.training.metric import Direction, Metric, as_float, weighted
from jaxexp.training.trees import PyTree

_FINE, _OCTAVES, _BIN_BITS = 2.0**-10, 20, 8  # of the bins of `auc`: 2⁸ for each octave
_BINS = 2 * _OCTAVES * 2**_BIN_BITS
# The share of the second moment that must be variance for `r2` to be computed in float32, and the
# one below which the variance may be nothing but rounding.
_LEAST_SHARE, _ROUNDING_SHARE = 1e-4, 1e-5


# Checks of shapes, while tracing


def _labels(prediction: PyTree, target: PyTree) -> tuple[Array, Array]:
    """Logits (B, C) or (B,), and whole labels (B,)."""
    prediction, target = _both(prediction, target)
    if not (jnp.issubdtype(target.dtype, jnp.integer) or target.dtype == bool):
        raise UserError(f"targets of {target.dtype}, expected whole numbers, the labels of classes")
    if target.ndim != 1:
        raise UserError(f"targets of shape {target.shape}, expected labels (B,)")
    fits = prediction.ndim in (1, 2) and prediction.shape[0] == target.shape[0]
    if not fits or prediction.shape[1:] in ((0,), (1,)):
        raise UserError(
            f"predictions of shape {prediction.shape} for targets of shape {target.shape}, "
            "expected logits (B, C) with C at least 2, or (B,) for two classes"
        )
    return as_float(prediction), target.astype(jnp.int32)


def _alike(prediction: PyTree, target: PyTree) -> tuple[Array, Array]:
    """Numbers of the same shape: (B,) beside (B, 1) would be compared each with each."""
    prediction, target = _both(prediction, target)
    if prediction.shape != target.shape or prediction.ndim == 0:
        raise UserError(
            f"predictions of shape {prediction.shape} for targets of shape {target.shape}, "
            "expected the same, (B,) or (B, ...)"
        )
    return as_float(prediction), as_float(target)


def _both(prediction: PyTree, target: PyTree) -> tuple[Array, Array]:
    for name, value in (("prediction", prediction), ("target", target)):
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            given = "None" if value is None else type_of(value)
            raise UserError(f"{name}: {given}, expected an array (B, ...) in the task's Outputs")
    return jnp.asarray(prediction), jnp.asarray(target)


# Classification


def _of_label(value_BxC: Array, target_B: Array) -> Array:
    """The value of the true class; NaN for labels beyond C, which indexing would clip."""
    n_classes = value_BxC.shape[-1]
    index_B = jnp.clip(target_B, 0, n_classes - 1)
    value_B = jnp.take_along_axis(value_BxC, index_B[:, None], axis=1)[:, 0]
    return jnp.where(index_B == target_B, value_B, jnp.nan)


def _correct(prediction: Array, target: Array) -> Array:
    """Accuracy: the share of examples whose class is predicted, between 0 and 1.

    1/N · Σ [argmax_c z_c = y] for logits (B, C), where the first of equal logits counts; for logits
    (B,), class 1 is predicted if z > 0. An example with a NaN among its logits is never right.
    """
    prediction, target = _labels(prediction, target)
    if prediction.ndim == 1:
        return ((prediction > 0) == target) & ~jnp.isnan(prediction)
    return (prediction.argmax(1) == target) & ~jnp.isnan(prediction).any(1)


@dataclass(frozen=True)
class _InTop:
    k: int

    def __call__(self, prediction: Array, target: Array) -> Array:
        prediction, target = _labels(prediction, target)
        if prediction.ndim != 2 or self.k >= prediction.shape[1]:
            raise UserError(
                f"k = {self.k} for predictions of shape {prediction.shape}, expected logits (B, C) "
                "with C above k"
            )
        true_B = _of_label(prediction, target)[:, None]
        before_BxC = jnp.arange(prediction.shape[1]) < target[:, None]
        above_BxC = (prediction > true_B) | ((prediction == true_B) & before_BxC)
        known_B = ~(jnp.isnan(prediction).any(1) | jnp.isnan(true_B[:, 0]))
        return (above_BxC.sum(1) < self.k) & known_B


def top_k(k: int) -> Metric:
    """The share of examples whose class is among the k largest logits (B, C).

    1/N · Σ [rank of z_y ≤ k], where the first of equal logits ranks higher, so that k = 1 gives the
    accuracy. As there, NaN is never right. C must be above k, or else every model would score 1.

    Args:
        k: at least 1.

    Raises:
        UserError: k is not a whole number of at least 1.

    >>> metric = top_k(2)
    >>> logits = jnp.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    >>> float(metric.compute(metric.sums_of(None, logits, jnp.array([0, 1]), jnp.ones(2))))
    0.5
    """
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise UserError(f"k: {k!r}, expected a whole number, at least 1")
    return Metric(Direction.HIGHER, example=_InTop(int(k)))


def _negative_log_likelihood(prediction: Array, target: Array) -> Array:
    """Logarithmic loss, the mean negative log-likelihood, in nats.

    1/N · Σ -ln softmax(z)_y for logits (B, C), and -ln sigmoid(±z) for logits (B,); Good 1952.
    NaN for labels that are not a class.
    """
    prediction, target = _labels(prediction, target)
    if prediction.ndim == 2:
        return -_of_label(jax.nn.log_softmax(prediction, axis=1), target)
    loss_B = jnp.where(target == 1, jax.nn.softplus(-prediction), jax.nn.softplus(prediction))
    return jnp.where((target == 0) | (target == 1), loss_B, jnp.nan)


def _brier(prediction: Array, target: Array) -> Array:
    """Brier score, the mean squared error of probabilities.

    1/N · Σ_i Σ_c (softmax(z)_c - [y = c])² for logits (B, C), between 0 and 2, as in Brier 1950;
    (sigmoid(z) - y)² for logits (B,), between 0 and 1: half the score of logits (B, 2).
    NaN for labels that are not a class.
    """
    prediction, target = _labels(prediction, target)
    if prediction.ndim == 1:
        error_B = jnp.square(jax.nn.sigmoid(prediction) - target)
        return jnp.where((target == 0) | (target == 1), error_B, jnp.nan)
    n_classes = prediction.shape[1]
    truth_BxC = jax.nn.one_hot(target, n_classes)
    error_B = jnp.square(jax.nn.softmax(prediction, axis=1) - truth_BxC).sum(1)
    return jnp.where((target >= 0) & (target < n_classes), error_B, jnp.nan)


# Regression


def _squared_error(prediction: Array, target: Array) -> Array:
    """Mean squared error, in the square of the target's unit.

    1/N · Σ (ŷ - y)²; for several outputs, the mean over them.
    """
    prediction, target = _alike(prediction, target)
    return jnp.square(prediction - target).reshape(len(target), -1).mean(1)


def _absolute_error(prediction: Array, target: Array) -> Array:
    """Mean absolute error, in the target's unit.

    1/N · Σ |ŷ - y|; for several outputs, the mean over them.
    """
    prediction, target = _alike(prediction, target)
    return jnp.abs(prediction - target).reshape(len(target), -1).mean(1)


@dataclass(frozen=True)
class _R2Sums:
    centers: tuple[tuple[float, ...], ...]  # each has one number for all outputs, or one for each

    def __call__(self, prediction: Array, target: Array, weight_B: Array) -> dict[str, Array]:
        prediction, target = _alike(prediction, target)
        weight_B = as_float(weight_B)
        error_BxK = (prediction - target).reshape(len(target), -1)
        target_BxK = target.reshape(len(target), -1)
        outputs = target_BxK.shape[1]
        for center in self.centers:
            if len(center) not in (1, outputs):
                raise UserError(
                    f"center: {len(center)} numbers for targets of shape {target.shape}, "
                    "expected one, or one for each output"
                )
        center_CxK = np.stack([np.broadcast_to(own, outputs) for own in self.centers])
        offset_BxCxK = target_BxK[:, None] - jnp.array(center_CxK, target.dtype)
        return {
            "residual": weighted(jnp.square(error_BxK), weight_B).sum(0),
            "first": weighted(offset_BxCxK, weight_B).sum(0),
            "second": weighted(jnp.square(offset_BxCxK), weight_B).sum(0),
            "weight": weight_B.sum(),
        }


def _r2_value(sums: dict[str, Array], *, force_finite: bool = False) -> Array:
    """R², averaged over outputs, each about the center that is nearest to its targets."""
    second_CxK, weight = sums["second"], sums["weight"]
    variance_CxK = second_CxK - sums["first"] * (sums["first"] / weight)
    nearest_1xK = second_CxK.argmin(0, keepdims=True)
    second_K, variance_K = (
        jnp.take_along_axis(own_CxK, nearest_1xK, 0)[0] for own_CxK in (second_CxK, variance_CxK)
    )
    told_K = variance_K > _LEAST_SHARE * second_K
    untold_K: ArrayLike = jnp.nan
    if force_finite:
        equal_K = variance_K <= _ROUNDING_SHARE * second_K
        known_K = equal_K & jnp.isfinite(sums["residual"]) & (weight > 0)
        untold_K = jnp.where(known_K, jnp.where(sums["residual"] == 0, 1.0, 0.0), jnp.nan)
    return jnp.where(told_K, 1 - sums["residual"] / variance_K, untold_K).mean()


def _finite_r2_value(sums: dict[str, Array]) -> Array:
    return _r2_value(sums, force_finite=True)


def r2_around(*center: npt.ArrayLike, force_finite: bool = False) -> Metric:
    """R², the coefficient of determination, with its sums taken about a center.

    1 - Σ (ŷ - y)² / Σ (y - ȳ)², with the mean ȳ of the examples that are scored; for several
    outputs, the mean over them (scikit-learn's "uniform_average"). At most 1; 0 for predicting ȳ.

    The value does not depend on the center, but its precision does: batches add Σ (y - c) and
    Σ (y - c)² in float32, so that the relative error of Σ (y - ȳ)² is about
    10⁻⁷ · (1 + ((ȳ - c) / std)²), which is negligible with c near ȳ. If ȳ is more than 100 standard
    deviations from c, or if all targets are equal, R² is NaN rather than a number made of rounding.

    Args:
        center: a number, or one for each output, such as the mean of the training targets. If
            several are given, the one nearest to the targets counts: their median, say, is not
            moved by outliers.
        force_finite: as in scikit-learn's `r2_score` by default, an output whose targets are all
            equal counts 0, or 1 if it is predicted exactly. So does one that is more than 300
            standard deviations from every center, which float32 cannot tell from the former.

    Raises:
        UserError: the center is not finite.

    >>> metric = r2_around(1000.0)
    >>> target = jnp.array([999.0, 1000.0, 1001.0])
    >>> round(float(metric.compute(metric.sums_of(None, target + 0.1, target, jnp.ones(3)))), 3)
    0.985
    """
    centers = [np.asarray(own, np.float64).ravel() for own in center]
    if not centers or not all(own_K.size and np.isfinite(own_K).all() for own_K in centers):
        said = repr(center[0]) if len(center) == 1 else repr(center)
        raise UserError(f"center: {said}, expected a finite number, or one for each output")
    return Metric(
        Direction.HIGHER,
        sums=_R2Sums(tuple(tuple(own_K.tolist()) for own_K in centers)),
        value=_finite_r2_value if force_finite else _r2_value,
        centered=_finite_r2_for if force_finite else _r2_for,
    )


def _r2_for(target: PyTree, *, force_finite: bool = False) -> Metric:
    """R² about the mean and the median of the training targets."""
    if not hasattr(target, "dtype"):
        raise UserError(
            f"R²: targets are {type_of(target)}, expected an array (N, ...); a jaxexp.Metric of "
            "your own takes others apart"
        )
    return r2_around(*centers_of(target), force_finite=force_finite)


def centers_of(target_NxK: npt.ArrayLike) -> list[list[float]]:
    """The mean and the median of each output, which may have several axes."""
    target_NxK = np.asarray(target_NxK, np.float64)
    return [own(target_NxK, axis=0).ravel().tolist() for own in (np.mean, np.median)]


def _finite_r2_for(target: PyTree) -> Metric:
    return _r2_for(target, force_finite=True)


# Ranking


def _bin(score_B: Array) -> Array:
    """The number of each score's bin, which rises with the score; exact, as it reads the bits.

    Floats in rising order have bits in rising order, and the first bits number the bins. Far from 0
    the bins have equal relative widths; around 0, because `_FINE` is added, equal absolute ones.
    """
    size_B = (jnp.abs(score_B) + _FINE).astype(jnp.float32)
    smallest = int(np.float32(_FINE).view(np.int32))
    above_B = (jax.lax.bitcast_convert_type(size_B, jnp.int32) - smallest) >> (23 - _BIN_BITS)
    above_B = jnp.minimum(above_B, _BINS // 2 - 1)
    return jnp.where(score_B < 0, _BINS // 2 - 1 - above_B, _BINS // 2 + above_B)


def _auc_sums(prediction: Array, target: Array, weight_B: Array) -> dict[str, Array]:
    """Area under the ROC curve for two classes: how well the scores rank, between 0 and 1.

    The share of pairs of a positive (label 1) and a negative example (label 0) in which the
    positive one has the larger score, ties counting half (Hanley and McNeil 1982); 0.5 is chance.
    Scores are logits (B,), or for logits (B, 2) their difference.

    Scores are counted in 10,240 bins in rising order: at most 0.4 % of the score wide above 2⁻¹⁰,
    and equally wide below; scores beyond ±1,024 are in the last bins. Scores in one bin tie. With
    p_b and n_b the shares of the positives and the negatives in bin b, the value is off by at most
    ½ Σ p_b n_b; for scores whose standard deviation is ten bins or more (4 % of their mean will
    do), by less than 0.001. The sums take 80 kB for each trial. NaN if one of the classes is
    missing, a score is NaN, or a label is neither 0 nor 1.
    """
    prediction, target = _labels(prediction, target)
    if prediction.ndim == 2:
        if prediction.shape[1] != 2:
            raise UserError(
                f"predictions of shape {prediction.shape}, expected scores (B,) or logits (B, 2): "
                "an area under the ROC curve is of two classes"
            )
        prediction = prediction[:, 1] - prediction[:, 0]
    weight_B = as_float(weight_B)
    known_B = ~jnp.isnan(prediction) & ((target == 0) | (target == 1))
    counted_B = weighted(jnp.where(known_B, 1.0, jnp.nan), weight_B)
    bin_B = jnp.where(known_B, _bin(prediction), 0)
    empty = jnp.zeros(_BINS, counted_B.dtype)
    return {
        "positive": empty.at[bin_B].add(jnp.where(target == 0, 0, counted_B)),
        "negative": empty.at[bin_B].add(jnp.where(target == 1, 0, counted_B)),
    }


def _auc_value(sums: dict[str, Array]) -> Array:
    positive, negative = (sums[name] / sums[name].sum() for name in ("positive", "negative"))
    below = jnp.cumsum(negative) - negative
    return (positive * (below + negative / 2)).sum()


accuracy = Metric(Direction.HIGHER, example=_correct)
log_loss = Metric(Direction.LOWER, unit="nats", example=_negative_log_likelihood)
brier = Metric(Direction.LOWER, example=_brier)
mean_squared_error = Metric(Direction.LOWER, example=_squared_error)
mean_absolute_error = Metric(Direction.LOWER, example=_absolute_error)
r2 = Metric(Direction.HIGHER, sums=_R2Sums(((0.0,),)), value=_r2_value, centered=_r2_for)
object.__setattr__(r2, "__doc__", r2_around.__doc__)
auc = Metric(Direction.HIGHER, sums=_auc_sums, value=_auc_value)
