"""The benchmarks: beside the package in a source checkout, inside it when installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType


def benchmark(name: str) -> ModuleType:
    """A module of the folder `benchmarks`, never of another one of that name."""
    package = Path(__file__).parents[1]
    if (package / "benchmarks").is_dir():
        return importlib.import_module(f"jaxexp.benchmarks.{name}")
    if sys.path[0] != str(package.parent):
        sys.path.insert(0, str(package.parent))  # processes that it starts find it too
    return importlib.import_module(f"benchmarks.{name}")
