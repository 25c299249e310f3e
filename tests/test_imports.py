"""Which module may import which, what importing costs, and that documented examples run."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxexp

PACKAGE = Path(jaxexp.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
# Each may import those before it, and nothing else of this package.
LAYERS = [
    "errors",
    "memory",
    "files",
    "trial",
    "lift",
    "sweep",
    "plan",
    "shuffle",
    "train",
    "records",
    "checkpoints",
    "compiled",
    "engine",
    "results",
]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, but not those for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above(layer):
    own = {name for name in imports(PACKAGE / f"{layer}.py") if name.startswith("jaxexp.")}
    assert {name.split(".")[1] for name in own} <= set(LAYERS[: LAYERS.index(layer)])


def test_torch_is_for_peers_and_weights_alone():
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] in ("torch", "torchvision") for name in imports(path))
    }
    assert users <= {
        "benchmarks.peers",
        "jaxexp.nn.torchvision",
        "benchmarks.resnet",
        "benchmarks.decoding",
    }


def test_networks_import_nothing_above_them():
    allowed = {"conv": set(), "resnet": {"conv", "errors", "mlp"}, "_torchvision": {"errors"}}
    allowed["weights"] = {"_torchvision", "errors", "resnet", "train"}
    for module, below in allowed.items():
        own = {n.split(".")[1] for n in imports(PACKAGE / f"{module}.py") if "jaxexp." in n}
        assert own <= below, module


@pytest.mark.parametrize(
    "module", ["", ".conv", ".resnet", ".weights", ".vision.problems", ".models"]
)
def test_what_is_optional_is_imported_where_it_is_used(module):
    code = f"import sys, jaxexp{module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "jaxexp" in loaded
    assert not loaded & {"torch", "torchvision", "xgboost", "sklearn", "PIL"}


@pytest.mark.parametrize(
    "module",
    [
        "",
        ".trial",
        ".lift",
        ".sweep",
        ".plan",
        ".data",
        ".data.images",
        ".data.pictures",
        ".machine",
        ".cli",
        ".vision",
        ".vision.answers",
    ],
)
def test_describing_and_planning_start_at_once(module):
    code = f"import sys, jaxexp{module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "jaxexp" in loaded
    assert not loaded & {
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "torch",
        "torchvision",
        "PIL",
        "sklearn",
        "xgboost",
        "matplotlib",
        "xarray",
        "pandas",
    }


DOCUMENTED = [m for m, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", sorted(DOCUMENTED))
def test_documented_examples(module):
    if any(name.startswith("torch") for name in imports(MODULES[module])):
        pytest.importorskip("torch")
    done = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert done.attempted > 0
    assert done.failed == 0


def test_the_example_of_a_sweep_is_among_those_that_run():
    assert "jaxexp.spec.sweep" in DOCUMENTED
