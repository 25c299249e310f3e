"""Models of other libraries, fitted on the host: their results in the layout of any other's."""

import dataclasses
import json
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from jaxexp.base import memory
from jaxexp.base.errors import UserError
from jaxexp.cli.inputs import Inputs
from jaxexp.execution.records import TrialRecord
from jaxexp.reproduce import problems
from jaxexp.reproduce.images import SPLITS
from jaxexp.reproduce.vision import INSTALL
from jaxexp.results.dataset import host_facts, to_dataset
from jaxexp.spec.sweep import Sweep

if TYPE_CHECKING:
    from jaxexp.execution.driver import Problem


def boosted_trees(sweep: Sweep, inputs: Inputs) -> xr.Dataset:
    """`XGBClassifier()` on the pixels of the middle of the images.

    Raises UserError if XGBoost is missing.
    """
    try:
        import xgboost
    except ImportError as error:
        raise UserError(f"XGBoost cannot be imported ({error}): {INSTALL}") from error
    versions = {"xgboost": xgboost.__version__}
    return _results(sweep, problems.pixels(inputs), xgboost.XGBClassifier(), versions)


def logistic_regression(sweep: Sweep, inputs: Inputs) -> xr.Dataset:
    """`LogisticRegression()` on the features that the frozen network makes of the images.

    Raises UserError if scikit-learn is missing, UnavailableError if the weights cannot be had.
    """
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError(f"scikit-learn cannot be imported ({error}): {INSTALL}") from error
    versions = {"sklearn": sklearn.__version__}
    return _results(sweep, problems.probing(inputs), LogisticRegression(), versions)


def _results(sweep: Sweep, problem: "Problem", model: Any, versions: dict[str, str]) -> xr.Dataset:
    """Fit once, and say of every trial what came out: nothing is drawn, so that seeds agree."""
    started = time.perf_counter()
    warned = _fit(model, *problem.data["train"])
    metrics, probability = _evaluate(model, problem)
    memory.give_back()
    seconds = time.perf_counter() - started
    trials = sweep.trials()
    records = {
        trial: TrialRecord(
            trial=trial, metrics=metrics, step_loss=metrics["train"]["loss"], gradient_norms=None,
            predictions={"probability": probability}, params={}, state={},
            seconds=seconds / len(trials), compile_seconds=0.0,
        )
        for trial in trials
    }  # fmt: skip
    notes = [*json.loads(problem.attrs["notes"]), *warned]
    problem = dataclasses.replace(problem, attrs={**problem.attrs, "notes": json.dumps(notes)})
    plan = f"1 fit of {type(model).__name__}() on the host"
    facts = {**host_facts(plan, len(trials)), **versions, "wall_seconds": seconds}
    return to_dataset(sweep, records, problem, facts)


def _fit(model: Any, x_NxF: np.ndarray, y_N: np.ndarray) -> list[str]:
    """Fit, and return in words what the library warned of: its defaults are the protocol."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x_NxF, y_N)
    first_lines = [str(warning.message).strip().partition("\n")[0] for warning in caught]
    return [f"{type(model).__name__} says: {line}" for line in dict.fromkeys(first_lines)]


def _evaluate(
    model: Any, problem: "Problem"
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Loss (nats) and accuracy by split, of one epoch, and the test images' probabilities."""
    from sklearn.metrics import log_loss

    metrics = {}
    for split in SPLITS:
        x_NxF, y_N = problem.data[split]
        probability_N = model.predict_proba(x_NxF)[:, 1]
        loss = log_loss(y_N, probability_N, labels=[0, 1])
        accuracy = np.mean((probability_N > 0.5) == (y_N == 1))
        metrics[split] = {
            "loss": np.array([loss], np.float32),
            "accuracy": np.array([accuracy], np.float32),
        }
    return metrics, probability_N.astype(np.float32)  # the last split is the test's
