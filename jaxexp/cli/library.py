"""Sweeps by name: the files in `sweeps/`, and files of your own."""

import ast
import contextlib
import glob
import importlib.machinery
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from jaxexp.base.errors import UserError, in_one_line
from jaxexp.base.files import digest
from jaxexp.base.words import did_you_mean
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Comparison, Sweep

if TYPE_CHECKING:
    import xarray as xr

    from jaxexp.api import Problem
    from jaxexp.cli.inputs import Inputs
    from jaxexp.execution.rules import StoppingRule
    from jaxexp.results.models import Model, Prediction

OPTIONAL = ("problem", "estimate", "check", "predict", "export")  # of a sweep file


def folder() -> Path:
    """Where the sweeps are: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).parents[1]
    installed = package / "sweeps"
    return installed if installed.is_dir() else package.parent / "sweeps"


def names() -> list[str]:
    """The names of the sweeps that come with jaxexp."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def completed(incomplete: str) -> list[str]:
    """The names and the Python files that begin so, for the shell to complete."""
    files = sorted(glob.glob(f"{glob.escape(incomplete)}*.py"))
    return [name for name in names() if name.startswith(incomplete)] + files


@dataclass(frozen=True)
class Source:
    """A sweep and the file that defines it.

    Beside `sweep`, the file defines `problem(inputs)`, which returns the `jaxexp.Problem` that the
    sweep is run on; or `estimate(sweep, inputs)`, which returns the results themselves, of models
    that JAX does not train. It may also define `check(inputs)`, which reads what they will read,
    and raises UserError before anything is trained; `predict(model, files)`, which returns
    predictions of files that are not CSV; and `export(model, path)`.

    `stopping` is the rule of the search that has chosen the trials, where it has one. `space` is
    that of a study, which suggests trials as it goes: those of `sweep` are examples.
    """

    sweep: Sweep
    digest: str  # of that file, and of the modules beside it that it imports
    problem: "Callable[[Inputs], Problem] | None" = None
    estimate: "Callable[[Sweep, Inputs], xr.Dataset] | None" = None
    check: "Callable[[Inputs], None] | None" = None
    predict: "Callable[[Model, Sequence[Path]], Iterable[Prediction]] | None" = None
    export: "Callable[[Model, Path], None] | None" = None
    stopping: "StoppingRule | None" = None
    space: Space | None = None


def load(name_or_file: str) -> Sweep:
    """The sweep of this name, or the one that a Python file defines as `sweep`.

    Raises UserError for an unknown name (with the near matches), a file that is missing or cannot
    be run, or one without a `sweep`.
    """
    return load_source(name_or_file).sweep


def load_source(name_or_file: str) -> Source:
    """The sweep of this name or file, with its problem; raises what `load` raises."""
    path = Path(name_or_file)
    if path.suffix != ".py":
        if name_or_file not in names():
            hint = did_you_mean(name_or_file, names())
            raise UserError(
                f"unknown sweep {name_or_file!r}: {hint}expected one of {', '.join(names())}, or "
                "a Python file of your own, FILE.py"
            )
        path = folder() / f"{name_or_file}.py"
    # As `python FILE` does; for good, as its functions may import, too.
    elif os.path.isfile(path) and (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, beside)
    module = _execute(path)
    optional = {name: getattr(module, name, None) for name in OPTIONAL}
    if not (optional["problem"] or optional["estimate"]):
        raise UserError(
            f"{path}: expected it to define `problem(inputs)`, which returns "
            "jaxexp.Problem(task, data); that of the European places is imported by `from "
            "jaxexp.reproduce.places import problem`"
        )
    for name, function in optional.items():
        if function is not None and not callable(function):
            raise UserError(f"{path}: {name} is {function!r}, expected a function")
    sweep = replace(module.sweep, name=path.stem)
    return Source(sweep, digest(*_contents(path.resolve())), **optional)


def _contents(path: Path) -> list[bytes]:
    """Of a file, and of the modules beside it that it imports, or that these import."""
    found: dict[Path, bytes] = {}
    left = [path]
    while left:
        file = left.pop()
        if file in found:
            continue
        found[file] = file.read_bytes()
        for name in _imports(found[file]) - {"jaxexp"}:
            beside = [path.parent / f"{name}.py", *(path.parent / name).glob("**/*.py")]
            left += [own for own in beside if own.is_file()]
    return [found.pop(path), *(found[file] for file in sorted(found))]


def _imports(content: bytes) -> set[str]:
    """The modules that a file imports, inside functions too, by the first part of their names."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the import has said them
            tree = ast.parse(content)
    except (SyntaxError, ValueError):  # of a module that has not been imported by now
        return set()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return {name.partition(".")[0] for name in names}


@contextlib.contextmanager
def calling(sweep: Sweep, called: str, function: Callable[..., object]) -> Iterator[None]:
    """While a function of a sweep's file is called: what it raises is a UserError, with the line.

    `called` is what the message calls it, "problem(inputs)".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the code of a user may raise
        raise UserError(f"{sweep.name}: {called} failed: {in_one_line(error, function)}") from error


def comparisons() -> list[Comparison]:
    """The comparisons that come with jaxexp: the files in `sweeps/comparisons/`."""
    files = sorted((folder() / "comparisons").glob("*.py"))
    return [_execute(file, "comparison", Comparison).comparison for file in files]


def describe(name: str) -> str:
    """The first line of a sweep's docstring."""
    return (load_module(name).__doc__ or "").partition("\n")[0]


def load_module(name: str) -> ModuleType:
    """The module of a sweep that comes with jaxexp."""
    return _execute(folder() / f"{name}.py")


class _Loader(importlib.machinery.SourceFileLoader):
    """Writes nothing beside a file that it runs, as `python FILE` does not."""

    def set_data(self, path: str, data: object, *, _mode: int = 0o666) -> None:
        """Not the bytecode either."""


def _execute(path: Path, defines: str = "sweep", kind: type = Sweep) -> ModuleType:
    if not os.path.isfile(path):  # of any text, a name too long for a file as well
        raise UserError(f"{path}: no such sweep file")
    name = f"jaxexp_sweep_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        if flag := re.search('Invalid value "(.*)" for JAX flag ([a-z0-9_]+)', str(error)):
            raise UserError(
                f"{flag[2].upper()}={flag[1]!r}: expected a value that JAX takes ({error})"
            ) from error
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    if not isinstance(getattr(module, defines, None), kind):
        raise UserError(f"{path}: expected it to define `{defines}`, a jaxexp.{kind.__name__}")
    return module
