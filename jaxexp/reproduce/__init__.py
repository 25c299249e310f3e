"""The published report: its data, its networks' inputs, its questions and tables.

This package is a client of the library: of jaxexp, it imports only the public names and its own
modules. The modules that sweeps use are imported on first use, as in `jx.reproduce.places`.

>>> import jaxexp as jx
>>> problem = jx.reproduce.places.problem()
>>> problem.data.features, len(problem.data.classes)
(('long', 'lat'), 36)
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxexp.reproduce import (
        answers,
        estimators,
        images,
        places,
        predict,
        problems,
        statements,
        trials,
    )

__all__ = [
    "answers",
    "estimators",
    "images",
    "places",
    "predict",
    "problems",
    "statements",
    "trials",
]


def __getattr__(name: str) -> ModuleType:
    """Import a module when it is first used."""
    if name in __all__:
        return importlib.import_module(f"jaxexp.reproduce.{name}")
    raise AttributeError(f"module 'jaxexp.reproduce' has no attribute {name!r}")
