"""A run directory: the results of one command, its figures and its page.

run.json        the command: which sweeps, with which settings, on which data
results/*.nc    one file per sweep, written as soon as the sweep is complete
figures/*.png   the figures of the page
report.html     the page, self-contained
models/         the trained parameters of every trial
study.journal   the study of Optuna that has chosen the trials, if one has
logs/           for TensorBoard, MLflow or Weights & Biases, if asked for
checkpoints/    what an unfinished run resumes from; gone when it is complete
"""

import contextlib
import json
import os
import reprlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, get_type_hints

from jaxexp.base.errors import UserError
from jaxexp.base.files import matches, write_whole
from jaxexp.base.locks import HOLDER, LOCK, held, holder, is_held
from jaxexp.execution.claims import differences
from jaxexp.spec.sweep import Sweep

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 3  # of the directory: another one is refused
LEFTOVERS = (LOCK, HOLDER, "run.json.partial")  # all that a run killed as it began may leave


class RunFile(TypedDict, total=False):
    """`run.json`: the command, and how far it is; of types that have been checked, no more."""

    format: int
    sweeps: list[str]
    title: str
    summary: str
    reference: str
    settings: dict[str, list[str]]
    programs: str
    memory: float | None
    devices: int | None
    cluster: str | None
    nodes: int | None
    seed: int | None
    seeds: dict[str, int]
    quick: bool
    search: dict[str, str | int | None] | None
    inputs: dict[str, str | int | bool | None]
    checkpoint_every: float
    checkpoints: str | None
    log: list[str]
    finished: bool
    made_with: dict[str, str]
    claimed: str
    missing: dict[str, str]


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path, command: Mapping[str, object], *, force: bool) -> Iterator[Self]:
        """Make a new run directory, before any work starts, and hold it meanwhile.

        Raises UserError if it cannot be written, is held by another process, or holds a run (or
        anything else) already; `force` replaces a run that is there, and nothing else.
        """
        run = cls(path)
        with run._writing():
            run._check_own()
        with run._held():
            run._check_replaceable(command, force)
            with run._writing():
                run._clear()  # first: no file must ever pass for one of another command
                run._write({"format": FORMAT, "finished": False, "made_with": {}, **command})
                run.results.mkdir()
            yield run

    @classmethod
    @contextlib.contextmanager
    def reopen(cls, path: Path) -> Iterator[Self]:
        """Hold a run directory, to resume its run; raises UserError if that cannot be."""
        run = cls(path)
        run.command()
        with run._held():
            with run._writing():
                run.results.mkdir(exist_ok=True)
            yield run

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """One process at a time."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                stack.enter_context(held(self.path))
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write a run here ({error.strerror or error})"
            ) from error

    def _check_own(self) -> None:
        """Nothing is there, or a run, perhaps one that was killed as it began."""
        if self.path.is_symlink() and not self.path.exists():
            raise UserError(
                f"{self.path}: a link to {os.readlink(self.path)}, which is not there; make that "
                "folder, or choose another --out"
            )
        if not self.path.exists() or self.exists():
            return
        if not self.path.is_dir() or {p.name for p in self.path.iterdir()} - set(LEFTOVERS):
            raise UserError(f"{self.path}: exists, and is not an earlier run; choose another --out")

    def _check_replaceable(self, command: Mapping[str, object], force: bool) -> None:
        if force or not self.exists():
            return
        try:
            found = self.command()
        except UserError:
            found = {}
        asked = json.loads(json.dumps(dict(command)))
        if found.get("finished") is False and asked.items() <= found.items():
            raise UserError(
                f"{self.path}: holds this run, unfinished; {self._resume} resumes it, --force "
                "starts it anew"
            )
        raise UserError(
            f"{self.path}: already holds a run; choose another --out, or --force to replace it"
        )

    def _clear(self) -> None:
        for folder in self._folders:
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.page, self.study):
            file.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Undo `create`, where the run could not begin."""
        with contextlib.suppress(OSError):
            self._command.unlink()
            self.results.rmdir()
            for name in LEFTOVERS:
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def check_kept(self, place: Path) -> None:
        """Raise UserError for a folder for checkpoints that has, or will have, the run's files."""
        folder, kept = place.resolve(), self.checkpoints.resolve()
        inside = self.writes(folder) and not folder.is_relative_to(kept)
        if inside or self.path.resolve().is_relative_to(folder):
            raise UserError(
                f"--checkpoints {place}: files of the run itself lie there; expected a folder "
                f"outside {self.path}, or one of its own in it, such as {self.checkpoints}"
            )

    def writes(self, file: Path) -> bool:
        """Whether a file is one that the run writes, or lies in a folder of it."""
        files = (self.page, self.study, self._command)
        place = file.resolve()
        return any(own.resolve() in (place, *place.parents) for own in (*self._folders, *files))

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.results, self.figures, self.checkpoints, self.models, self.logs

    @property
    def results(self) -> Path:
        """The folder of the results files."""
        return self.path / "results"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def models(self) -> Path:
        """The folder of the trained models."""
        return self.path / "models"

    @property
    def logs(self) -> Path:
        """The folder of what is written for other programs."""
        return self.path / "logs"

    @property
    def study(self) -> Path:
        """The file of the study of Optuna."""
        return self.path / "study.journal"

    @property
    def page(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def _command(self) -> Path:
        return self.path / "run.json"

    @property
    def _resume(self) -> str:
        return f"`jaxexp resume {shlex.quote(str(self.path))}`"

    def _write(self, content: Mapping[str, object]) -> None:
        """`run.json`, whole or not at all; a place in the directory is written as one there."""
        here, kept = self.path.resolve(), content.get("checkpoints")
        if isinstance(kept, str) and Path(kept).is_relative_to(here):
            content = {**content, "checkpoints": str(Path(kept).relative_to(here))}
        write_whole(self._command, (json.dumps(content, indent=1) + "\n").encode())

    def command(self) -> RunFile:
        """What `run.json` says.

        Raises UserError if this is not a run directory, or one of a newer jaxexp.
        """
        try:
            command: RunFile = json.loads(self._command.read_text())
            if not isinstance(command, dict):
                raise TypeError("it is no object of JSON")
            found: Mapping[str, object] = command
            hints = get_type_hints(RunFile)
            if found.get("format") != FORMAT:  # in another, the rest may be anything
                hints = {"format": int}
            for name, hint in hints.items():
                if name not in found and name in ("format", "sweeps"):
                    raise ValueError(f"{name} is missing")
                if name in found and not matches(found[name], hint):
                    raise TypeError(f"{name} is {reprlib.repr(found[name])}")
            if "sweeps" in hints and not command["sweeps"]:
                raise ValueError("it names no sweep")
        except OSError as error:
            raise UserError(f"{self.path}: not a run directory (it has no run.json)") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self._command}: not the run.json of a run ({error})") from error
        if (version := command["format"]) != FORMAT:
            made = command.get("made_with")
            by = (
                f", by jaxexp {made['jaxexp']}"
                if isinstance(made, dict) and "jaxexp" in made
                else ""
            )
            raise UserError(
                f"{self._command}: written in format {version}{by}; this jaxexp reads format "
                f"{FORMAT}, so run it with the jaxexp that wrote it, or train anew"
            )
        if (kept := command.get("checkpoints")) and "://" not in kept:
            command["checkpoints"] = str(self.path.resolve() / kept)
        return command

    def exists(self) -> bool:
        """Whether a run is there, intact or not."""
        return self._command.is_file()

    def state(self) -> str:
        """In words: "complete", "interrupted", "running", "damaged" and the like."""
        if is_held(self.path):
            return f"running ({holder(self.path)})"
        try:
            command = self.command()
        except UserError as error:
            return "written by another version" if "written in format" in str(error) else "damaged"
        if not command.get("finished", True):
            return "interrupted"
        missing = command.get("missing")
        return f"complete but for {', '.join(missing)}" if missing else "complete"

    def differences(self, made_with: Mapping[str, str]) -> list[str]:
        """In words, what is not as it is written down; what is not written down is left out."""
        before = self.command().get("made_with", {})
        return [
            f"{name} was {before[name]}, is {now}"
            for name, now in made_with.items()
            if before.get(name, now) != now
        ]

    def check_resumes(self, made_with: Mapping[str, str], *, force: bool) -> None:
        """Raise UserError for what is not as it is written down, unless `force`."""
        differs = self.differences(made_with)
        if differs and not force:
            raise UserError(
                f"{self.path}: not the run that was started: {'; '.join(differs)}; --force resumes "
                "it all the same, with the sweeps and checkpoints that still fit"
            )

    def check_same(self, made_with: Mapping[str, str], *, force: bool) -> None:
        """Write down what the numbers depend on, or compare it with what is written down.

        Raises UserError for what differs, unless `force`.
        """
        self.check_resumes(made_with, force=force)
        command = self.command()
        with self._writing():
            self._write({**command, "made_with": {**command.get("made_with", {}), **made_with}})

    @property
    def claimed(self) -> str | None:
        """The name under which this run has last claimed its place for checkpoints."""
        return self.command().get("claimed")

    def has_results(self, sweep: Sweep) -> bool:
        """Whether there is a results file of a sweep, intact or not."""
        return (self.results / f"{sweep.name}.nc").is_file()

    def say_claimed(self, process: str) -> None:
        """Write down the name under which the run has claimed its place for checkpoints."""
        with self._writing():
            self._write({**self.command(), "claimed": process})

    def say_missing(self, missing: Mapping[str, str]) -> None:
        """Write down the sweeps that are missing, each with the reason."""
        with self._writing():
            self._write({**self.command(), "missing": dict(missing)})

    def finish(self) -> None:
        """The run is complete, but for the sweeps that are missing."""
        with self._writing():
            self._write({**self.command(), "finished": True})
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def save(self, sweep: Sweep, dataset: "xr.Dataset", identity: Mapping[str, str] = {}) -> None:
        """Save the results of one sweep, and what decides whether a resumed run takes them over.

        Raises UserError if they cannot be written.
        """
        from jaxexp.results import dataset as results

        with self._writing():
            made = dataset.assign_attrs(identity=json.dumps(dict(identity)))
            results.save(made, self.results / f"{sweep.name}.nc")

    def finished(
        self, sweep: Sweep, identity: Mapping[str, str], note: Callable[[str], None]
    ) -> "xr.Dataset | None":
        """The results of a sweep that is complete already, if they are of this identity.

        Others are deleted, with their models: nothing must put these through another task. `note`
        says what cannot be used. Raises UserError if it cannot be deleted.
        """
        file, models = self.results / f"{sweep.name}.nc", self.models / sweep.name
        if not file.is_file():
            return None
        from jaxexp.results import dataset as results

        try:
            dataset = results.load(file)
        except UserError as error:
            note(f"{error}; the sweep runs again")
            return None
        if differs := _differing(json.loads(dataset.attrs.get("identity", "{}")), identity):
            with self._writing():
                file.unlink()
                if models.exists():
                    shutil.rmtree(models)
            note(f"{file}: results of another run ({'; '.join(differs)}); the sweep runs again")
            return None
        return dataset

    def forget_study(self, identity: Mapping[str, str], note: Callable[[str], None]) -> None:
        """Delete a study whose trials are not of this identity, with its checkpoints here.

        Raises UserError if it cannot be deleted.
        """
        differs = _differing(self.command().get("made_with", {}), identity)
        if self.study.exists() and differs:
            with self._writing():
                if self.checkpoints.exists():
                    shutil.rmtree(self.checkpoints)
                self.study.unlink()
            note(f"{self.study}: a study of another run ({'; '.join(differs)}); it begins anew")

    def load(self) -> "list[tuple[str, xr.Dataset]]":
        """The results of every sweep of the run that has some, by name, in the command's order.

        Raises UserError if there are none, or a file is damaged.
        """
        from jaxexp.results import dataset

        files = [(name, file) for name, file in self._files() if file.is_file()]
        try:
            found = [(name, dataset.load(file)) for name, file in files]
        except UserError as error:
            raise UserError(f"{error}; {self._resume} trains the sweep again") from error
        if not found:
            raise UserError(f"{self.results}: no results to report on{self._why_none()}")
        return found

    def lost(self) -> list[str]:
        """The sweeps whose results are damaged, or not there."""
        from jaxexp.results import dataset

        names = []
        for name, file in self._files():
            try:
                dataset.load(file)
            except UserError:
                names.append(name)
        return names

    def _files(self) -> list[tuple[str, Path]]:
        """The results file of each sweep, by name, in the command's order."""
        names = [Path(source).stem for source in self.command()["sweeps"]]
        return [(name, self.results / f"{name}.nc") for name in names]

    def _why_none(self) -> str:
        state = self.state()
        if state == "interrupted":
            return f": the run is interrupted; {self._resume} goes on"
        if state == "complete":
            return f": they are gone; {self._resume} trains them again"
        return f" yet: the run is {state}" if state.startswith("running") else ""

    def keep_figure(self, name: str, png: bytes) -> None:
        """Write a figure; raises UserError if it cannot be written."""
        with self._writing():
            self.figures.mkdir(exist_ok=True)
            write_whole(self.figures / name, png)

    def keep_page(self, html: str) -> Path:
        """Write the page and return its path; raises UserError if it cannot be written."""
        with self._writing():
            write_whole(self.page, html.encode())
        return self.page


def _differing(made: Mapping[str, str], identity: Mapping[str, str]) -> list[str]:
    """In words, what is not as it was made; what else is written down of it decides nothing."""
    return differences({name: made[name] for name in identity.keys() & made.keys()}, identity)
