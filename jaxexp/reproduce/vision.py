"""What section 7, two classes of images, needs beyond jaxexp itself."""

import importlib.util

INSTALL = "pip install 'jaxexp[vision]'"
LIBRARIES = {
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "xgboost": "XGBoost",
}


def missing_libraries() -> list[str]:
    """The libraries of section 7 that are not installed, by name."""
    return [name for module, name in LIBRARIES.items() if not importlib.util.find_spec(module)]
