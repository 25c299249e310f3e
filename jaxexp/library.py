"""Sweeps by name: the files in `sweeps/`, and files of your own."""

import difflib
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from jaxexp.errors import UserError
from jaxexp.sweep import Sweep


def folder() -> Path:
    """Where the sweeps are: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    installed = package / "sweeps"
    return installed if installed.is_dir() else package.parent / "sweeps"


def names() -> list[str]:
    """The names of the sweeps that come with jaxexp."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def load(name_or_file: str) -> Sweep:
    """The sweep of this name, or the one that a Python file defines as `sweep`.

    Raises UserError for an unknown name (with the near matches), a file that is missing or cannot
    be run, or one without a `sweep`.
    """
    path = Path(name_or_file)
    if path.suffix != ".py":
        if name_or_file not in names():
            near = difflib.get_close_matches(name_or_file, names(), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(
                f"unknown sweep {name_or_file!r}: {hint}(there are: {', '.join(names())}; "
                "a file of your own ends in .py)"
            )
        path = folder() / f"{name_or_file}.py"
    return replace(_execute(path).sweep, name=path.stem)


def describe(name: str) -> str:
    """The first line of a sweep's docstring."""
    return (load_module(name).__doc__ or "").partition("\n")[0]


def load_module(name: str) -> ModuleType:
    """The module of a sweep that comes with jaxexp."""
    return _execute(folder() / f"{name}.py")


def _execute(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{path}: no such sweep file")
    spec = importlib.util.spec_from_file_location(f"jaxexp_sweep_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    if not isinstance(getattr(module, "sweep", None), Sweep):
        raise UserError(f"{path}: expected it to define `sweep`, a jaxexp.Sweep")
    return module
