"""What all estimators have in common: from X and y to a trained trial, and to predictions.

Shapes: N examples, F features, C classes, K outputs.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeAlias

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from jaxexp.api import run
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int, is_number
from jaxexp.results.results import Predict, apply
from jaxexp.sklearn.stopping import NoImprovement
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.training.arrays import arrays, checked_inputs
from jaxexp.training.checks import plain_value
from jaxexp.training.data import Data
from jaxexp.training.folds import table
from jaxexp.training.metrics import centers_of
from jaxexp.training.numbers import to_float32, to_weights
from jaxexp.training.task import Task, Variables
from jaxexp.training.tracing import is_plain_value

NOT_FINITE = (
    "the loss is not finite any more, or the weights: expected a lower learning rate, or inputs "
    "at unit scale (StandardScaler)"
)
Held: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # rows to train on, and those held out
FAR = 10.0  # standard deviations from a center: R² has a relative error of 1e-5 there
LEAST = 1  # of the training examples, whose curves nobody sees, that are evaluated


@dataclass(frozen=True)
class Prepared:
    """X and y, checked, as numbers to train on."""

    X_NxF: np.ndarray
    y: np.ndarray  # labels (N,) 0 to C - 1, or targets (N, K)
    weight_N: np.ndarray | None
    attributes: Mapping[str, Any]  # of the fitted estimator


@dataclass(frozen=True)
class Curve:
    """How a trial went: (E,) each."""

    loss_E: np.ndarray  # the mean over the epoch's steps
    score_E: np.ndarray | None  # of the validation examples, where there are any
    diverged: bool


@dataclass(frozen=True)
class Fitted:
    """What training has left."""

    attributes: Mapping[str, Any]  # of the data
    task: Task
    trial: Trial
    variables: Variables | None
    curve: Curve
    compiled: dict[Trial, Predict]  # to predict, for all of a run

    @property
    def finite(self) -> bool:
        """Whether there is something to predict with.

        With early stopping it is the best epoch's, whatever has become of the loss since then.
        """
        score_E = self.curve.score_E
        lost = self.curve.diverged if score_E is None else not np.isfinite(score_E).any()
        if self.variables is None or lost:
            return False
        # The loss in the end is that of some of the examples.
        return all(np.isfinite(a).all() for a in jax.tree.leaves(self.variables.params))


class Network(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator whose `fit` trains one trial; subclasses say which trial and which task.

    What a subclass is constructed from, it keeps in attributes of the same names, as scikit-learn
    wants it. `tol`, `n_iter_no_change`, `early_stopping`, `validation_fraction`, `random_state` and
    `verbose` are those of scikit-learn's networks.
    """

    tol: float | None
    n_iter_no_change: float
    early_stopping: bool
    validation_fraction: float
    random_state: Any
    verbose: bool | int
    # Parameters that are no hyperparameters of a trial: candidates that differ in them train apart.
    apart: tuple[str, ...] = (
        "tol", "n_iter_no_change", "early_stopping", "validation_fraction", "random_state",
        "verbose",
    )  # fmt: skip
    score_metric: str
    allow_nd = False  # whether examples may have more axes than one

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on X, (N, F), and y, (N,); examples may have weights, (N,).

        Raises ValueError for parameters and data that cannot be, before anything is trained, and
        for a loss or weights that leave the finite numbers (with `early_stopping`, those of the
        best epoch).
        """
        self._check()
        prepared = self._prepare(X, y, sample_weight)
        (seed,) = self._seeds(1)
        fitted = self._train(prepared, seed, seed)
        if not fitted.finite:
            raise ValueError(NOT_FINITE)
        self._adopt(fitted)
        rule, epochs = self._rule(), fitted.trial.epochs
        if rule is not None and self.n_iter_ == epochs and not self._converged(rule):
            warnings.warn(
                f"{epochs} epochs are over, and the optimization has not converged yet",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _train(self, prepared: Prepared, seed: int, split_seed: int) -> Fitted:
        """One trial, on all of the data but what is held out."""
        prepared = self._shaped(prepared)
        task, rule = self._make_task(prepared), self._rule()
        trials: list[Trial] = []
        try:
            held = self._held_out(prepared, np.arange(len(prepared.y)), split_seed)
            data = self._data(prepared, [held] if self.early_stopping else [])
            trials.append(self._make_trial(len(held[0]), seed))
            sweep = Sweep(trials[0])
            results = run(sweep, task, data, stopping=rule, progress=bool(self.verbose))
        except UserError as error:
            raise ValueError(self._reason(error, prepared, trials)) from error
        found = results.trial()
        score = found.curves[self.score_metric].values if self.early_stopping else None
        curve = curve_of(
            found.curves["running_loss"].values,
            None if score is None else score[:, 1],
            int(found.curves["epochs_trained"]),
            bool(found.curves["diverged_epoch"]),
        )
        attributes = prepared.attributes
        return Fitted(attributes, results.task, found.trial, found.variables, curve, {})

    # What a subclass says

    def _check(self) -> None:
        """Raise ValueError for parameters that cannot be."""
        if self.tol is not None and not (is_number(self.tol) and self.tol >= 0):
            self._refuse("tol", "a number at least 0, or None")
        patience = self.n_iter_no_change
        if not (is_int(patience) or is_any_of(patience, np.inf)) or patience < 1:
            self._refuse("n_iter_no_change", "a whole number above 0, or infinity")
        if not isinstance(self.early_stopping, bool | np.bool_):
            self._refuse("early_stopping", "True or False")
        whole = is_int(self.verbose) and self.verbose >= 0
        if not (whole or isinstance(self.verbose, bool | np.bool_)):
            self._refuse("verbose", "True or False, or a whole number at least 0")
        fraction = self.validation_fraction
        unread = not self.early_stopping and is_number(fraction) and fraction == 0
        if not unread and not (is_number(fraction) and 0 < fraction < 1):
            self._refuse("validation_fraction", "a number between 0 and 1")

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise ValueError(f"{name}={plain_value(getattr(self, name))!r}: expected {expected}")

    def _make_trial(self, n: int, seed: int) -> Trial:
        """The trial of these parameters, to be trained on n examples."""
        raise NotImplementedError

    def _make_task(self, prepared: Prepared) -> Task:
        """What is trained."""
        raise NotImplementedError

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> Prepared:
        """X, y and weights, checked; raises ValueError for what is not finite, dense numbers."""
        raise NotImplementedError

    def _shaped(self, prepared: Prepared) -> Prepared:
        """With targets as these parameters want them."""
        return prepared

    @property
    def _kind(self) -> object:
        """What decides their shape, beside the parameters of `apart`."""
        return None

    def _reason(self, error: UserError, prepared: Prepared, trials: Sequence[Trial]) -> str:
        """In words of these parameters, why trials cannot be trained."""
        return str(error)

    # What the search needs, too

    def _seeds(self, n: int) -> list[int]:
        """Seeds of trials, as `random_state` says."""
        drawn: list[int] = check_random_state(self.random_state).randint(2**31 - 1, size=n).tolist()
        return drawn

    def _rule(self) -> NoImprovement | None:
        """When a trial ends before its last epoch."""
        if self.early_stopping:
            return NoImprovement(
                self.score_metric, float(self.tol or 0), float(self.n_iter_no_change), True
            )
        if self.tol is None:
            return None
        return NoImprovement("running_loss", float(self.tol), float(self.n_iter_no_change))

    def _held_out(self, prepared: Prepared, rows: np.ndarray, seed: int) -> Held:
        """Of these rows, those to train on, and those by which early stopping decides.

        They are drawn by their places, so that the numbers of the rows do not matter; and from a
        seed, since a generator would draw others for every fold.
        """
        parts = {"trained on": rows}
        if self.early_stopping:
            labels = prepared.y[rows] if prepared.y.dtype.kind in "iu" else None
            train, validation = train_test_split(
                np.arange(len(rows)), test_size=self.validation_fraction, stratify=labels,
                random_state=seed,
            )  # fmt: skip
            parts = {"trained on": rows[np.sort(train)], "held out": rows[np.sort(validation)]}
        for name, part in parts.items():
            if prepared.weight_N is not None and not prepared.weight_N[part].any():
                raise ValueError(
                    f"sample_weight: 0 for all {len(part)} examples {name}, expected one above 0"
                )
        held = parts.get("held out")
        if held is not None and prepared.y.dtype.kind == "f":
            weight_N = prepared.weight_N
            counted = len(held) if weight_N is None else np.count_nonzero(weight_N[held])
            if counted < 2:
                raise ValueError(
                    f"validation_fraction={plain_value(self.validation_fraction)!r}: 1 of "
                    f"{len(rows)} examples counts among those held out, of which R² is undefined, "
                    "expected 2 at least"
                )
        return parts["trained on"], parts.get("held out")

    def _fits_plan(self, prepared: Prepared, rows: np.ndarray) -> bool:
        """Whether to train on these rows of the data is what it would be without the others."""
        return True

    def _data(self, prepared: Prepared, held: Sequence[Held]) -> Data:
        """All examples, so that every class has an output, in these folds or in none."""
        data = arrays(prepared.X_NxF, prepared.y, validation=None, weights=prepared.weight_N)
        tables = {"train": table([rows for rows, _ in held])} if held else None
        if tables and (held_out := [rows for _, rows in held if rows is not None]):
            tables["validation"] = table(held_out)
        return dataclasses.replace(data, folds=tables, train_sample=LEAST)

    def _adopt(self, fitted: Fitted) -> None:
        """Become the estimator of this trial."""
        assert fitted.variables is not None
        for name, value in fitted.attributes.items():
            setattr(self, name, value)
        self.task_, self.trial_, self.variables_ = fitted.task, fitted.trial, fitted.variables
        # What functions of the user's own close over may change: nobody else is to use these.
        plain, curve = is_plain_value(fitted.task), fitted.curve
        self._compiled = _predictors(fitted.task) if plain else fitted.compiled
        self.n_iter_ = len(curve.loss_E)
        self.loss_curve_ = curve.loss_E.astype(float).tolist()
        self.loss_, self.best_loss_ = self.loss_curve_[-1], np.fmin.reduce(self.loss_curve_)
        self.validation_scores_ = self.best_validation_score_ = None
        if curve.score_E is not None:
            self.validation_scores_ = curve.score_E.astype(float).tolist()
            self.best_validation_score_ = np.fmax.reduce(self.validation_scores_)
            self.best_loss_ = None

    def _converged(self, rule: NoImprovement) -> bool:
        values = self.validation_scores_ if self.early_stopping else self.loss_curve_
        return rule.converged(np.array(values) * (-1 if self.early_stopping else 1))

    def _outputs(self, X: Any) -> np.ndarray:
        """The network's outputs, (N, C) or (N, K), float64."""
        check_is_fitted(self, "variables_")
        X = validate_data(self, X, reset=False, dtype=np.float32, allow_nd=self.allow_nd)
        prediction, _ = apply(self.task_, self.trial_, self.variables_, X, self._compiled)
        return np.asarray(prediction, np.float64)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled, which is no matter for other processes."""
        state: dict[str, Any] = super().__getstate__()
        return {name: {} if name == "_compiled" else value for name, value in state.items()}

    def _inputs(self, X: Any, y: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        made = validate_data(
            self, X, y, dtype=[np.float64, np.float32], allow_nd=self.allow_nd, **options
        )
        x, y = made
        return x, y

    def _prepared(
        self, X: np.ndarray, y: np.ndarray, sample_weight: Any, attributes: dict[str, Any]
    ) -> Prepared:
        """In float32, with what `validate_data` has found out.

        What float32 does not hold is refused here, by the user's own rows: training has some alone.
        """
        weight_N = None
        try:
            x, _ = checked_inputs("X", X)
            if sample_weight is not None:
                checked_N = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
                weight_N = to_weights("sample_weight", checked_N, len(X))
            if y.dtype.kind == "f":
                y = to_float32("y", y)
        except UserError as error:
            raise ValueError(str(error)) from error
        names = ("n_features_in_", "feature_names_in_")
        found = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return Prepared(x, y, weight_N, attributes | found)


class NetworkClassifier(ClassifierMixin, Network):  # type: ignore[misc]
    """Classes as scikit-learn has them: any labels, `classes_`, `predict_proba`."""

    score_metric = "accuracy"

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> Prepared:
        """With labels as numbers."""
        x_NxF, y = self._inputs(X, y)
        check_classification_targets(y)
        classes = unique_labels(y)
        if len(classes) < 2:
            only = plain_value(classes[0])
            raise ValueError(f"y: 1 class ({only!r}), expected 2 classes at least")
        label_N = np.searchsorted(classes, y).astype(np.int32)
        made = self._prepared(x_NxF, label_N, sample_weight, {"classes_": classes})
        if made.weight_N is not None:
            of_classes = np.bincount(label_N, made.weight_N, minlength=len(classes))
            if np.count_nonzero(of_classes) < 2:
                raise ValueError("sample_weight: 1 class has a weight above 0, expected 2 classes")
        return made

    def _fits_plan(self, prepared: Prepared, rows: np.ndarray) -> bool:
        """Not where a class is missing, of which there would be no output."""
        label_N, weight_N = prepared.y[rows], prepared.weight_N
        counted_N = label_N if weight_N is None else label_N[weight_N[rows] > 0]
        classes = len(prepared.attributes["classes_"])
        return len(np.unique(label_N)) == classes and len(np.unique(counted_N)) > 1

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each example, (N,)."""
        logits_NxC = self._logits(X)
        predicted: np.ndarray = self.classes_[logits_NxC.argmax(1)]
        return predicted

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (N, C), in the order of `classes_`."""
        probability_NxC: np.ndarray = np.exp(self.predict_log_proba(X))
        return probability_NxC

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of the probabilities, (N, C)."""
        logits_NxC = self._logits(X)
        shifted_NxC = logits_NxC - logits_NxC.max(1, keepdims=True)
        logs: np.ndarray = shifted_NxC - np.log(np.exp(shifted_NxC).sum(1, keepdims=True))
        return logs

    def _logits(self, X: Any) -> np.ndarray:
        """(N, C); of a network with one output, that of class 0 is 0.

        Raises ValueError where there is no most probable class.
        """
        logits = self._outputs(X)
        if logits.ndim == 1 or logits.shape[1] == 1:
            logits_N = logits.reshape(-1)
            logits = np.stack([np.zeros_like(logits_N), logits_N], axis=1)
        _check_finite(np.isfinite(logits.max(1)))  # -inf is a probability of 0
        return logits


class NetworkRegressor(RegressorMixin, Network):  # type: ignore[misc]
    """One or several numbers for each example."""

    score_metric = "r2"

    def __sklearn_tags__(self) -> Tags:
        """Several outputs, too."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> Prepared:
        """With targets (N, K)."""
        x_NxF, y = self._inputs(X, y, multi_output=True, y_numeric=True)
        one = y.ndim == 1
        if y.dtype.kind not in "biuf":
            raise ValueError(f"y: of dtype {y.dtype}, expected numbers, as y.astype(float) has")
        attributes = {"n_outputs_": 1 if one else y.shape[1], "_one_output": one}
        made = self._prepared(x_NxF, np.asarray(y, np.float64), sample_weight, attributes)
        return dataclasses.replace(made, y=made.y.reshape(len(y), -1))

    def _fits_plan(self, prepared: Prepared, rows: np.ndarray) -> bool:
        """Not if R², which early stopping measures about the centers of all targets, loses digits.

        A fold may lie far from them, as one half of a trend does.
        """
        if not self.early_stopping:
            return True
        target_NxK = prepared.y[rows]
        centers_CxK = np.array(centers_of(prepared.y))
        off_K = abs(target_NxK.mean(0) - centers_CxK).min(0)
        return bool((off_K <= FAR * target_NxK.std(0)).all())

    def predict(self, X: Any) -> np.ndarray:
        """The prediction for each example: (N,), or (N, K) where y was.

        Raises ValueError where it is no finite number.
        """
        outputs_NxK = self._outputs(X)
        outputs_NxK = outputs_NxK.reshape(len(outputs_NxK), -1)
        _check_finite(np.isfinite(outputs_NxK).all(1))
        return outputs_NxK[:, 0] if self._one_output else outputs_NxK


def is_any_of(value: object, *known: object) -> bool:
    """Whether it is one of these, type and all: 1 is not True, and an array is no text."""
    own = plain_value(value)
    return any(isinstance(own, type(each)) and own == each for each in known)


def curve_of(loss_E: np.ndarray, score_E: np.ndarray | None, epochs: int, diverged: bool) -> Curve:
    """Of the epochs that a trial was trained."""
    return Curve(loss_E[:epochs], None if score_E is None else score_E[:epochs], diverged)


def _check_finite(finite_N: np.ndarray) -> None:
    """Refuse outputs past float32: weights may be finite, and what is computed of them not."""
    if not finite_N.all():
        raise ValueError(
            f"the network's outputs are not finite for {np.count_nonzero(~finite_N)} of "
            f"{len(finite_N)} examples: expected a lower learning rate, or inputs at unit scale "
            "(StandardScaler)"
        )


@functools.lru_cache(maxsize=32)
def _predictors(task: Task) -> dict[Trial, Predict]:
    """What is compiled to predict with a task of plain values, for all that have one like it."""
    return {}
