"""Which folder may import which, what importing costs, and that documented examples run."""

import ast
import doctest
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from nights import at_night

import jaxexp

PACKAGE = Path(jaxexp.__file__).parent
ROOT = PACKAGE.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
}
# Each may import those before it, and nothing else of this package.
FOLDERS = [
    "base",
    "spec",
    "planning",
    "training",
    "nn",
    "execution",
    "cluster",
    "results",
    "report",
    "api",
    "search",
    "sklearn",
    "cli",
]
CLIENTS = [*(PACKAGE / "reproduce").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")]


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, but not those for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in [*ast.walk(tree)]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_are_absolute():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.ImportFrom) or not node.level, module


def of_folder(folder: str) -> dict[str, Path]:
    start = f"jaxexp.{folder}"
    return {m: path for m, path in MODULES.items() if m == start or m.startswith(f"{start}.")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_those_before_it(folder):
    allowed = {*FOLDERS[: FOLDERS.index(folder) + 1]}
    if folder == "cli":
        allowed |= {"reproduce", "__version__"}
    assert of_folder(folder)
    for module, path in of_folder(folder).items():
        own = {name.split(".")[1] for name in imports(path) if name.startswith("jaxexp.")}
        assert own <= allowed, module


def test_every_module_has_its_folder():
    known = {*FOLDERS, "reproduce", "__init__", "__main__"}
    assert {module.split(".")[1] for module in MODULES} == known


def test_nobody_but_the_command_line_imports_the_report_that_is_reproduced():
    for folder in FOLDERS[:-1]:
        for module, path in of_folder(folder).items():
            assert not any("jaxexp.reproduce" in name for name in imports(path)), module


@pytest.mark.parametrize("folder", ["base", "spec", "planning"])
def test_describing_and_planning_know_no_jax(folder):
    """But for what `choose` computes inside a program."""
    for module, path in of_folder(folder).items():
        found = {name for name in imports(path) if name.split(".")[0] in ("jax", "flax", "optax")}
        assert not found or module == "jaxexp.spec.padding", module


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_lives_there(folder):
    [doc] = [
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        for path in [PACKAGE / folder / "__init__.py"]
    ]
    assert doc
    assert "mports" in doc  # what it may import, too


def test_no_module_imports_itself_by_a_detour():
    """Packages count as the modules whose names are imported from them."""
    edges = {
        module: {
            found
            for name in imports(path)
            for found in (name, name.rpartition(".")[0])
            if found in MODULES and found != module
        }
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in edges[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_the_reproduction_uses_public_names_alone():
    assert len(CLIENTS) > 10
    assert not [wrong for path in CLIENTS for wrong in not_public(path)]


def test_sweeps_import_nothing_inside_jaxexp():
    sweeps = [path for path in CLIENTS if path.is_relative_to(ROOT / "sweeps")]
    assert len(sweeps) > 10
    for path in sweeps:
        ours = {name for name in imports(path) if name.partition(".")[0] == "jaxexp"}
        assert ours <= {"jaxexp"}, path


def not_public(path: Path) -> list[str]:
    """What a file imports of jaxexp, or takes from `jx`, that is not public."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        wrong: list[str] = []
        if isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name.partition(".")[0] == "jaxexp"]
            wrong = [
                alias.name
                for alias in ours
                if (alias.name, alias.asname) != ("jaxexp", "jx")
                and not f"{alias.name}.".startswith("jaxexp.reproduce.")
            ]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jaxexp":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            wrong = [name for name in names if not f"{name}.".startswith("jaxexp.reproduce.")]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jx":
            wrong = [] if node.attr in jaxexp.__all__ else [f"jx.{node.attr}"]
        found += [f"{path.relative_to(ROOT)}, line {node.lineno}: {name}" for name in wrong]
    return found


def test_only_public_names_are_seen():
    assert dir(jaxexp) == sorted([*jaxexp.__all__, "__version__"])
    assert sorted(jaxexp.__all__) == jaxexp.__all__


def test_every_public_name_is_there_and_documented():
    for name in jaxexp.__all__:
        assert getattr(jaxexp, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'jaxexp' has no attribute 'nothing'"):
        _ = jaxexp.nothing


TORCH = {"jaxexp.nn.torchvision"} | {
    f"benchmarks.{name}" for name in ("peers", "resnet", "decoding", "studies")
}


def test_torch_is_for_measuring_and_weights_alone():
    outside = {f"benchmarks.{path.stem}": path for path in (ROOT / "benchmarks").glob("*.py")}
    users = {
        module
        for module, path in (MODULES | outside).items()
        if any(name.split(".")[0] in ("torch", "torchvision") for name in imports(path))
    }
    assert users <= TORCH


# In this order, in a process of its own.
GROUPS = {
    "data": ["jaxexp.training.data"],
    "described": [*of_folder("base"), *of_folder("spec"), *of_folder("planning"), "jaxexp"],
    "command line": ["jaxexp.cli.main"],
    "training": [f"jaxexp.{name}" for name in ("api", "cli.session", "cli.rundir", "cli.inputs")],
    "results": [
        *of_folder("nn"), *of_folder("api"), *of_folder("results"), "jaxexp.report.figures",
        "jaxexp.search.studies",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """All that the process has loaded once it has imported each group of modules, and before."""
    groups = [[name.removesuffix(".__init__") for name in own] for own in GROUPS.values()]
    told = "print(*{n.split('.')[0] for n in sys.modules})"
    code = "\n".join(["import sys", *(f"import {', '.join(own)}; {told}" for own in groups)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert all("jaxexp" in own for own in found)
    return dict(zip(GROUPS, found, strict=True))


OPTIONAL = {"optuna", "torch", "torchvision", "xgboost", "sklearn", "PIL"}
SLOW = {"jax", "jaxlib", "flax", "optax", "matplotlib", "xarray", "pandas", "rich", "orbax"}


def test_training_does_not_wait_for_what_only_results_need_nor_these_for_what_is_optional(loaded):
    """What is optional is imported where it is used. Pillow comes with Matplotlib."""
    assert not loaded["training"] & {"pandas", "xarray"}
    assert not loaded["results"] & OPTIONAL - {"PIL"}


def test_describing_and_the_command_line_start_at_once(loaded):
    assert not (loaded["data"] | loaded["described"]) & (OPTIONAL | SLOW)
    assert not loaded["command line"] & (OPTIONAL | SLOW - {"rich"})


DOCUMENTED = [m for m, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]
LONG = [  # which train, as those of `run`, of `jaxexp` itself and of `MLPClassifier` do every day
    "jaxexp.execution.rules", "jaxexp.results.seeds", "jaxexp.search.halving",
    "jaxexp.search.population", "jaxexp.search.studies", "jaxexp.sklearn.modules",
    "jaxexp.sklearn.search", "jaxexp.training.draws", "jaxexp.training.folds",
]  # fmt: skip


@pytest.mark.parametrize("module", at_night(sorted(DOCUMENTED), *LONG))
def test_documented_examples(module):
    if any(name.startswith("torch") for name in imports(MODULES[module])):
        pytest.importorskip("torch")
    done = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert done.attempted > 0
    assert done.failed == 0


def test_the_example_of_a_sweep_is_among_those_that_run():
    assert {"jaxexp.spec.sweep", "jaxexp.api.running", "jaxexp.__init__"} <= set(DOCUMENTED)
