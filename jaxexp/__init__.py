"""Vectorized hyperparameter sweeps in JAX and Flax: train the whole grid at once.

>>> import jaxexp as jx
>>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, ["a", "a", "b", "b"] * 8)
>>> base = jx.MLPTrial(epochs=5, depth=1, batch_size=8)
>>> sweep = jx.Sweep(base, {"learning_rate": [1e-2, 1e-3], "seed": range(2)})
>>> results = jx.run(sweep, data=data, progress=False)
>>> results["accuracy"].sizes["seed"]
2

Modules are imported when they are first used: describing a sweep needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING

from jaxexp.base.errors import UnavailableError, UserError
from jaxexp.spec.hyperparameters import choice, size, static, traced
from jaxexp.spec.sweep import Comparison, Question, Sweep, Verdict
from jaxexp.spec.trial import MLPTrial, Trial

if TYPE_CHECKING:
    from jaxexp import nn, reproduce, search
    from jaxexp.api import PlannedRun, Problem, plan, run, write_report
    from jaxexp.base.counting import counting
    from jaxexp.base.files import digest
    from jaxexp.cli.inputs import Inputs
    from jaxexp.execution.devices import devices
    from jaxexp.execution.rules import Budget, Curves, EarlyStopping, StopDiverged, StoppingRule
    from jaxexp.nn.classification import MLPClassification
    from jaxexp.report import figures
    from jaxexp.results import compare, seeds, select
    from jaxexp.results.external import external_results
    from jaxexp.results.models import Model, Prediction
    from jaxexp.results.results import Results, TrialResult
    from jaxexp.training import metrics
    from jaxexp.training.arrays import arrays
    from jaxexp.training.data import Data, Examples
    from jaxexp.training.folds import folds
    from jaxexp.training.metric import Metric
    from jaxexp.training.supervised import supervised
    from jaxexp.training.task import Outputs, Task, Variables

__version__ = "0.2.0"
__all__ = [
    "Budget",
    "Comparison",
    "Curves",
    "Data",
    "EarlyStopping",
    "Examples",
    "Inputs",
    "MLPClassification",
    "MLPTrial",
    "Metric",
    "Model",
    "Outputs",
    "PlannedRun",
    "Prediction",
    "Problem",
    "Question",
    "Results",
    "StopDiverged",
    "StoppingRule",
    "Sweep",
    "Task",
    "Trial",
    "TrialResult",
    "UnavailableError",
    "UserError",
    "Variables",
    "Verdict",
    "arrays",
    "choice",
    "compare",
    "counting",
    "devices",
    "digest",
    "external_results",
    "figures",
    "folds",
    "metrics",
    "nn",
    "plan",
    "reproduce",
    "run",
    "search",
    "seeds",
    "select",
    "size",
    "sklearn",
    "static",
    "supervised",
    "traced",
    "write_report",
]
_LAZY = {
    "Budget": "jaxexp.execution.rules",
    "Curves": "jaxexp.execution.rules",
    "EarlyStopping": "jaxexp.execution.rules",
    "StopDiverged": "jaxexp.execution.rules",
    "StoppingRule": "jaxexp.execution.rules",
    "Inputs": "jaxexp.cli.inputs",
    "Model": "jaxexp.results.models",
    "Prediction": "jaxexp.results.models",
    "counting": "jaxexp.base.counting",
    "devices": "jaxexp.execution.devices",
    "digest": "jaxexp.base.files",
    "external_results": "jaxexp.results.external",
    "Data": "jaxexp.training.data",
    "Examples": "jaxexp.training.data",
    "MLPClassification": "jaxexp.nn.classification",
    "Metric": "jaxexp.training.metric",
    "Outputs": "jaxexp.training.task",
    "PlannedRun": "jaxexp.api",
    "Problem": "jaxexp.api",
    "Results": "jaxexp.results.results",
    "Task": "jaxexp.training.task",
    "TrialResult": "jaxexp.results.results",
    "Variables": "jaxexp.training.task",
    "arrays": "jaxexp.training.arrays",
    "folds": "jaxexp.training.folds",
    "plan": "jaxexp.api",
    "run": "jaxexp.api",
    "supervised": "jaxexp.training.supervised",
    "write_report": "jaxexp.api",
}
_MODULES = {
    "compare": "jaxexp.results.compare",
    "figures": "jaxexp.report.figures",
    "metrics": "jaxexp.training.metrics",
    "nn": "jaxexp.nn",
    "reproduce": "jaxexp.reproduce",
    "seeds": "jaxexp.results.seeds",
    "search": "jaxexp.search",
    "select": "jaxexp.results.select",
    "sklearn": "jaxexp.sklearn",
}


if not TYPE_CHECKING:  # which would take any name for one

    def __getattr__(name: str) -> object:
        """Import what is used, when it is first used."""
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        if name in _MODULES:
            return importlib.import_module(_MODULES[name])
        raise AttributeError(f"module 'jaxexp' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
