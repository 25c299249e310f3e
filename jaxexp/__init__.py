"""Vectorized hyperparameter sweeps in JAX and Flax: train the whole grid at once.

>>> import jaxexp as jx
>>> sweep = jx.Sweep(base=jx.MLPTrial(epochs=5), axes={"learning_rate": [1e-2, 1e-3]})
>>> results = jx.run(sweep)  # doctest: +SKIP

Modules are imported when they are first used: describing and planning a sweep need no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxexp.base.errors import UserError
from jaxexp.spec.sweep import Comparison, Question, Sweep
from jaxexp.spec.trial import MLPTrial, Trial, hyperparameter

if TYPE_CHECKING:
    from jaxexp.api import make_plan, run
    from jaxexp.execution.driver import Problem
    from jaxexp.report import figures
    from jaxexp.reproduce.places import problem
    from jaxexp.reproduce.tables import load_places
    from jaxexp.results import compare, select

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "MLPTrial",
    "Problem",
    "Question",
    "Sweep",
    "Trial",
    "UserError",
    "compare",
    "figures",
    "hyperparameter",
    "load_places",
    "make_plan",
    "problem",
    "run",
    "select",
]
_LAZY = {
    "Problem": "jaxexp.execution.driver",
    "load_places": "jaxexp.reproduce.tables",
    "make_plan": "jaxexp.api",
    "problem": "jaxexp.reproduce.places",
    "run": "jaxexp.api",
}

_MODULES = {
    "compare": "jaxexp.results.compare",
    "figures": "jaxexp.report.figures",
    "select": "jaxexp.results.select",
}


def __getattr__(name: str) -> Any:
    """Import what is used, when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'jaxexp' has no attribute {name!r}")
