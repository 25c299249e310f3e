"""Search: spaces of hyperparameters, and ways to choose their points.

Imports everything up to `api`. Modules are imported when they are first used: describing a space
needs no JAX.

>>> import jaxexp as jx
>>> space = jx.search.Space(
...     jx.MLPTrial(epochs=10),
...     {
...         "learning_rate": jx.search.loguniform(1e-4, 1e-1),
...         "width": jx.search.integers(8, 128),
...         "optimizer": ["adam", "sgd"],
...         "momentum": jx.search.uniform(0, 0.99).when(optimizer="sgd"),
...     },
... )
>>> sweep = jx.search.random(space, trials=20, seeds=3)
>>> list(sweep.dims), sweep.shape
(['sample', 'seed'], (20, 3))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxexp.search.halving import Halving, Hyperband
    from jaxexp.search.population import PBT
    from jaxexp.search.studies import optuna
    from jaxexp.spec.distributions import (
        Distribution,
        choice,
        distribution,
        integers,
        loguniform,
        uniform,
    )
    from jaxexp.spec.parse import parse
    from jaxexp.spec.samplers import grid, random, sobol
    from jaxexp.spec.spaces import Space

__all__ = [
    "PBT",
    "Distribution",
    "Halving",
    "Hyperband",
    "Space",
    "choice",
    "distribution",
    "grid",
    "integers",
    "loguniform",
    "optuna",
    "parse",
    "random",
    "sobol",
    "uniform",
]
_LAZY = {
    "PBT": "jaxexp.search.population",
    "Halving": "jaxexp.search.halving",
    "Hyperband": "jaxexp.search.halving",
    "Distribution": "jaxexp.spec.distributions",
    "Space": "jaxexp.spec.spaces",
    "choice": "jaxexp.spec.distributions",
    "distribution": "jaxexp.spec.distributions",
    "grid": "jaxexp.spec.samplers",
    "integers": "jaxexp.spec.distributions",
    "loguniform": "jaxexp.spec.distributions",
    "optuna": "jaxexp.search.studies",
    "parse": "jaxexp.spec.parse",
    "random": "jaxexp.spec.samplers",
    "sobol": "jaxexp.spec.samplers",
    "uniform": "jaxexp.spec.distributions",
}


def __getattr__(name: str) -> object:
    """Import what is used, when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxexp.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__]
