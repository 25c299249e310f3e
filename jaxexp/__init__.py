"""Vectorized hyperparameter sweeps in JAX and Flax: train the whole grid at once.

>>> import jaxexp as jx
>>> sweep = jx.Sweep(base=jx.MLPTrial(epochs=5), axes={"learning_rate": [1e-2, 1e-3]})
>>> results = jx.run(sweep)  # doctest: +SKIP

Modules are imported when they are first used: describing and planning a sweep need no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxexp.errors import UserError
from jaxexp.sweep import Comparison, Question, Sweep
from jaxexp.trial import MLPTrial, Trial, hyperparameter

if TYPE_CHECKING:
    from jaxexp import compare, figures, select
    from jaxexp.data import load_places
    from jaxexp.engine import Problem
    from jaxexp.places import problem
    from jaxexp.runner import make_plan, run

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
    "Problem": "jaxexp.engine",
    "load_places": "jaxexp.data",
    "make_plan": "jaxexp.runner",
    "problem": "jaxexp.places",
    "run": "jaxexp.runner",
}


def __getattr__(name: str) -> Any:
    """Import what is used, when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ("compare", "figures", "select"):
        return importlib.import_module(f"jaxexp.{name}")
    raise AttributeError(f"module 'jaxexp' has no attribute {name!r}")
