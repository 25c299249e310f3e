"""The benchmarks: beside the package in a source checkout, inside it when installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType


def benchmark(name: str) -> ModuleType:
    """A module of the folder `benchmarks`."""
    package = Path(__file__).parents[1]
    parent = package if (package / "benchmarks").is_dir() else package.parent
    if str(parent) not in sys.path:
        sys.path.append(str(parent))  # last: processes that it starts find it too
    return importlib.import_module(f"benchmarks.{name}")
