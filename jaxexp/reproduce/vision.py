"""Two classes of images: residual networks, a linear unit on frozen features, and estimators.

The trials need no JAX; everything else is imported when a sweep is run.
"""

import importlib.util

from jaxexp.reproduce.trials import EstimatorTrial, ImageTrial, ProbeTrial

__all__ = ["EstimatorTrial", "ImageTrial", "ProbeTrial", "missing_libraries"]

INSTALL = "pip install 'jaxexp[vision]'"
LIBRARIES = {
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "xgboost": "XGBoost",
}


def missing_libraries() -> list[str]:
    """The libraries of section 7 that are not installed, by their usual names."""
    return [name for module, name in LIBRARIES.items() if not importlib.util.find_spec(module)]
