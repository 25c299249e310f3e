"""A run directory: the results of one command, its figures and its page.

run.json        the command: which sweeps, with which settings, on which data
results/*.nc    one file per sweep, written as soon as the sweep is complete
figures/*.png   the figures of the page
report.html     the page, self-contained
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jaxexp import library
from jaxexp.errors import UserError
from jaxexp.sweep import Question, Sweep

if TYPE_CHECKING:
    import xarray as xr

    from jaxexp.report import Section

FORMAT = 1  # of the directory; a newer one is refused


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, command: Mapping[str, Any], *, force: bool) -> Self:
        """Make a new run directory, before any work starts.

        Raises UserError if it cannot be written, or holds a run (or anything else) already;
        `force` replaces a run that is there, and nothing else.
        """
        run = cls(path)
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                run._make_room(force)
            run.results.mkdir(parents=True, exist_ok=True)
            run.figures.mkdir(exist_ok=True)
            run._command.write_text(json.dumps({"format": FORMAT, **command}, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot write a run here ({error.strerror})") from error
        return run

    def _make_room(self, force: bool) -> None:
        if not self._command.is_file():
            raise UserError(f"{self.path}: exists, and is not an earlier run; choose another --out")
        if not force:
            raise UserError(
                f"{self.path}: already holds a run; choose another --out, or --force to replace it"
            )
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.rmtree(self.figures, ignore_errors=True)
        self.page.unlink(missing_ok=True)

    @property
    def results(self) -> Path:
        """The folder of the results files."""
        return self.path / "results"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def page(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def _command(self) -> Path:
        return self.path / "run.json"

    def command(self) -> dict[str, Any]:
        """What `run.json` says.

        Raises UserError if this is not a run directory, or one of a newer jaxexp.
        """
        try:
            command = json.loads(self._command.read_text())
            version, sweeps = command["format"], command["sweeps"]
            if not isinstance(version, int) or not all(isinstance(s, str) for s in sweeps):
                raise TypeError
        except OSError as error:
            raise UserError(f"{self.path}: not a run directory (it has no run.json)") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._command}: not the run.json of a run") from error
        if version > FORMAT:
            raise UserError(
                f"{self._command}: format {version} is newer than this jaxexp reads ({FORMAT})"
            )
        return command

    def save(self, sweep: Sweep, dataset: "xr.Dataset") -> None:
        """Save the results of one sweep.

        Raises UserError if they cannot be written.
        """
        from jaxexp import results

        try:
            results.save(dataset, self.results / f"{sweep.name}.nc")
        except OSError as error:
            raise UserError(f"{self.results}: cannot write results ({error})") from error

    def load(self) -> list[tuple[Sweep, "xr.Dataset"]]:
        """Every sweep of the run that has results, with them, in the order of the command."""
        from jaxexp import results

        sweeps = [library.load(source) for source in self.command()["sweeps"]]
        files = [(sweep, self.results / f"{sweep.name}.nc") for sweep in sweeps]
        found = [(sweep, results.load(file)) for sweep, file in files if file.is_file()]
        if not found:
            raise UserError(f"{self.results}: no results to report on")
        return found

    def draw(self, sweep: Sweep, dataset: "xr.Dataset") -> "list[Section]":
        """Answer each question of a sweep, drawing its figures into the run directory."""
        questions = sweep.questions or (_in_general(sweep),)
        return [self._section(question, dataset) for question in questions]

    def write_page(self, sections: "list[Section]", datasets: "Sequence[xr.Dataset]") -> Path:
        """Write the page of these sections and results; returns its path."""
        from jaxexp import report

        sections = sorted(sections, key=lambda section: _row_key(section.row))
        meta = report.Meta(
            title=str(self.command().get("title", "Results")),
            summary=str(self.command().get("summary", "")),
            facts=report.run_facts(datasets),
            plan=datasets[0].attrs["plan"],
        )
        self.page.write_text(report.render(sections, meta))
        return self.page

    def _section(self, question: Question, dataset: "xr.Dataset") -> "Section":
        from jaxexp import figures, report, select

        drawn = []
        for i, figure in enumerate(question.draw(dataset)):
            png = figures.to_png(figure)
            (self.figures / f"{question.row}-{i + 1}.png").write_bytes(png)
            drawn.append((png, f"{question.title}, figure {i + 1}: {question.question}"))
        return report.Section(
            row=question.row,
            title=question.title,
            question=question.question,
            answer=question.answer(dataset),
            figures=drawn,
            table=question.table(dataset) if question.table else None,
            reference=question.reference,
            seconds=float(dataset["seconds"].sum()),
            notes=select.divergences(dataset),
        )


def _row_key(row: str) -> tuple[tuple[int, str], ...]:
    """Sorts 6.1.2 before 6.1.10."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in row.split("."))


def _in_general(sweep: Sweep) -> Question:
    """What can be said of any sweep that asks no question of its own."""
    from jaxexp import figures, select

    def answer(dataset: "xr.Dataset") -> str:
        name, trial = select.best(dataset)
        loss = float(select.final(trial, "loss").sel(split="validation"))
        return f"The lowest validation loss after the last epoch is {loss:.3f} nats: {name}."

    return Question(
        row=sweep.name,
        title=sweep.name.replace("_", " "),
        question="How do the trials of this sweep compare?",
        draw=lambda ds: [figures.curves(ds, "loss"), figures.curves(ds, "accuracy")],
        answer=answer,
        table=select.rank,
        reference="",
    )
