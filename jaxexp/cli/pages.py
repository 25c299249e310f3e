"""What a run directory shows of its results: the page with its figures, and logs."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxexp.base.errors import UserError
from jaxexp.cli import library
from jaxexp.cli.rundir import RunDirectory
from jaxexp.spec.sweep import Sweep

if TYPE_CHECKING:
    import xarray as xr

    from jaxexp.report.page import Section


def draw(directory: RunDirectory, sweep: Sweep, dataset: "xr.Dataset") -> "list[Section]":
    """Answer each question of a sweep, drawing its figures into the run directory."""
    from jaxexp.report import sections

    return sections.of_sweep(sweep, dataset, directory.keep_figure)


def compare(directory: RunDirectory, datasets: "Mapping[str, xr.Dataset]") -> "list[Section]":
    """Answer each question about several sweeps, given the results of the run by sweep."""
    from jaxexp.report import sections

    return sections.of_comparisons(datasets, directory.keep_figure, library.comparisons())


def log(directory: RunDirectory, kinds: Sequence[str], dataset: "xr.Dataset") -> list[str]:
    """Write the trials into logs of these kinds that have not been written; returns what failed."""
    from jaxexp.results import logs

    errors = []
    for kind in kinds:
        try:
            logs.write(kind, dataset, directory.logs / kind)
        except UserError as error:  # the results are there
            path = shlex.quote(str(directory.path))
            errors.append(f"{error}; `jaxexp report {path}` writes what is missing")
    return errors


def write(
    directory: RunDirectory, sections: "Sequence[Section]", datasets: "Sequence[xr.Dataset]"
) -> Path:
    """Write the page of these sections and results; returns its path."""
    from jaxexp.report import page

    command = directory.command()
    meta = page.Meta(
        title=str(command.get("title", "Results")),
        summary=str(command.get("summary", "")),
        facts=page.run_facts(datasets),
        plan="\n\n".join(dict.fromkeys(ds.attrs["plan"] for ds in datasets)),
        missing=command.get("missing", {}),
        quick=max((int(ds.attrs.get("quick", 0)) for ds in datasets), default=0),
        reference=str(command.get("reference") or "Reference"),
    )
    ordered = sorted(sections, key=lambda section: _row_key(section.row))
    return directory.keep_page(page.render(ordered, meta))


def _row_key(row: str) -> tuple[tuple[int, str], ...]:
    """Sorts 6.1.2 before 6.1.10."""
    return tuple((int(part), "") if part.isdecimal() else (0, part) for part in row.split("."))
