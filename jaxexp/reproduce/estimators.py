"""Models from other libraries, fitted on the host: results in the layout of a sweep's own."""

import time
import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np

import jaxexp as jx
from jaxexp.reproduce import problems
from jaxexp.reproduce.vision import INSTALL

if TYPE_CHECKING:
    import xarray as xr


class Classifier(Protocol):
    """What the libraries' classifiers have in common."""

    def fit(self, x_NxF: np.ndarray, y_N: np.ndarray, /) -> object:
        """Learn from N examples."""

    def predict_proba(self, x_NxF: np.ndarray, /) -> np.ndarray:
        """The probability of each class, (N, C)."""


def boosted_trees(sweep: jx.Sweep, inputs: jx.Inputs) -> "xr.Dataset":
    """`XGBClassifier()` on the pixels in the middle of the images.

    Raises UserError if XGBoost is missing.
    """
    try:
        import xgboost
    except ImportError as error:
        raise jx.UserError(f"XGBoost cannot be imported ({error}): {INSTALL}") from error
    versions = {"xgboost": xgboost.__version__}
    return _results(sweep, problems.pixels(inputs), xgboost.XGBClassifier(), versions)


def logistic_regression(sweep: jx.Sweep, inputs: jx.Inputs) -> "xr.Dataset":
    """`LogisticRegression()` on the features that the frozen network makes of the images.

    Raises UserError if scikit-learn is missing, UnavailableError if the weights cannot be had.
    """
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise jx.UserError(f"scikit-learn cannot be imported ({error}): {INSTALL}") from error
    versions = {"sklearn": sklearn.__version__}
    return _results(sweep, problems.probing(inputs), LogisticRegression(), versions)


def _results(
    sweep: jx.Sweep, problem: jx.Problem, model: Classifier, versions: dict[str, str]
) -> "xr.Dataset":
    """Fit once, and give every trial this result: nothing is random, so all seeds agree."""
    started = time.perf_counter()
    train = problem.data.train
    warned = _fit(model, train.x, train.y)
    metrics, probability_N = _evaluate(model, problem.data)
    return jx.external_results(
        sweep,
        problem,
        model=f"{type(model).__name__}()",
        metrics=metrics,
        predictions={"probability": probability_N},
        seconds=time.perf_counter() - started,
        notes=warned,
        versions=versions,
    )


def _fit(model: Classifier, x_NxF: np.ndarray, y_N: np.ndarray) -> list[str]:
    """Fit, and return the library's warnings: its defaults are the protocol, so they stay."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x_NxF, y_N)
    first_lines = [str(warning.message).strip().partition("\n")[0] for warning in caught]
    return [f"{type(model).__name__} says: {line}" for line in dict.fromkeys(first_lines)]


def _evaluate(model: Classifier, data: jx.Data) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Loss (nats) and accuracy by split, and the probabilities of class 1 of the test images."""
    from sklearn.metrics import log_loss

    metrics = {}
    for split, examples in data.splits.items():
        probability_N = model.predict_proba(examples.x)[:, 1]
        metrics[split] = {
            "loss": float(log_loss(examples.y, probability_N, labels=[0, 1])),
            "accuracy": float(np.mean((probability_N > 0.5) == (examples.y == 1))),
        }
    return metrics, probability_N.astype(np.float32)  # the last split is the test's
