"""Estimators for scikit-learn, and a search that trains all candidates and folds at once.

Imports everything up to `search`.

>>> from jaxexp.sklearn import MLPClassifier, VectorizedSearchCV
>>> model = MLPClassifier(hidden_layer_sizes=(16,), max_iter=20, random_state=0)
>>> search = VectorizedSearchCV(model, {"learning_rate_init": [0.03, 0.01]}, cv=3, refit=False)
>>> search.estimator.get_params()["max_iter"]
20
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxexp.sklearn.mlp import MLPClassifier, MLPRegressor
    from jaxexp.sklearn.modules import Classifier, Regressor
    from jaxexp.sklearn.search import VectorizedSearchCV

__all__ = ["Classifier", "MLPClassifier", "MLPRegressor", "Regressor", "VectorizedSearchCV"]
_LAZY = {
    "Classifier": "jaxexp.sklearn.modules",
    "MLPClassifier": "jaxexp.sklearn.mlp",
    "MLPRegressor": "jaxexp.sklearn.mlp",
    "Regressor": "jaxexp.sklearn.modules",
    "VectorizedSearchCV": "jaxexp.sklearn.search",
}


def __getattr__(name: str) -> object:
    """Import what is used, when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxexp.sklearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__]
