"""Estimators for scikit-learn, and a search that trains all candidates and folds at once.

Imports everything up to `search`.

>>> from sklearn.datasets import load_iris
>>> from jaxexp.sklearn import MLPClassifier, VectorizedSearchCV
>>> X, y = load_iris(return_X_y=True)
>>> search = VectorizedSearchCV(
...     MLPClassifier(hidden_layer_sizes=(16,), max_iter=20, tol=None, random_state=0),
...     {"learning_rate_init": [0.03, 0.01], "alpha": [1e-4, 1e-2]},
...     cv=3,
... )
>>> search.fit(X, y).cv_results_["mean_test_score"].shape
(4,)
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
