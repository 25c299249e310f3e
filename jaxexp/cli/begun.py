"""Commands on a run that was begun: its page, the rest of it, and predictions by its models."""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxexp.base.errors import UserError
from jaxexp.cli import library, pages
from jaxexp.cli.command import Command, Json
from jaxexp.cli.exits import console
from jaxexp.cli.options import Budget
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.starting import finish, run_in
from jaxexp.spec.sweep import Sweep

if TYPE_CHECKING:
    from jaxexp.report.page import Section


def report(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
) -> None:
    """Redraw the figures and the page of a run from its saved results.

    Also writes logs that the run was asked for and that are missing.

    jaxexp report runs/rates
    """
    directory = RunDirectory(run_directory)
    with contextlib.redirect_stdout(sys.stderr):  # what the sweep's file prints is no path
        page, errors = _drawn_again(directory)
    finish(page, errors)


def _drawn_again(directory: RunDirectory) -> tuple[Path, list[str]]:
    """The page, and what could not be drawn or written."""
    from jaxexp.report import sections

    found, command = dict(directory.load()), directory.command()
    sweeps = {Path(name).stem: name for name in command["sweeps"]}
    drawn: list[Section] = []
    failed: list[str] = []
    for name, dataset in found.items():
        failed += pages.log(directory, command.get("log", ()), dataset)
        try:
            drawn += pages.draw(directory, _drawn(directory, sweeps[name]), dataset)
        except UserError as error:  # the results are there, whatever has become of the sweep's file
            console.print(f"{error}; its results are drawn as those of any sweep", soft_wrap=True)
            drawn.append(sections.in_general(dataset, directory.keep_figure, name))
    drawn += pages.compare(directory, found)
    page = pages.write(directory, drawn, list(found.values()))
    return page, [*(error for section in drawn for error in section.errors), *failed]


def resume(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    force: Annotated[
        bool,
        typer.Option("--force", help="Resume although code, data, sweep or a library has changed."),
    ] = False,
    checkpoint_every: Annotated[
        float | None,
        typer.Option("--checkpoint-every", metavar="SECONDS", min=0, help="Default: as before."),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Use N devices. Default: as many as before."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Continue on this Ray cluster; 'none' for this machine alone. Default: as before.",
        ),
    ] = None,
    budget: Budget = None,
) -> None:
    """Resume an interrupted run from its last checkpoints.

    The results are those of an uninterrupted run, bit for bit on the same number of the same
    devices.

    jaxexp resume runs/rates
    """
    directory = RunDirectory(run_directory)
    found = directory.command()
    if found.get("finished", True) and not found.get("missing"):
        _check_lost(directory)
    command = Command.from_json(found, run_directory / "run.json")
    changed: dict[str, Json] = {
        "checkpoint_every": checkpoint_every,
        "devices": devices,
        "cluster": cluster,
    }
    given = {name: value for name, value in changed.items() if value is not None}
    given |= {"cluster": None} if cluster == "none" else {}
    command = dataclasses.replace(command, **given)
    held = RunDirectory.reopen(run_directory)
    run_in(command, run_directory, held, begun=True, force=force, budget=budget)


def _check_lost(directory: RunDirectory) -> None:
    """Refuse to resume a complete run, unless results are lost and their sweeps can run again."""
    lost = directory.lost()
    if not lost:
        raise UserError(f"{directory.path}: this run is complete; `jaxexp report` draws it again")
    search = directory.command().get("search")
    if search and search["sampler"] == "optuna":  # whose study has been told of all trials
        raise UserError(
            f"{directory.path}: the results of {', '.join(lost)} are damaged or gone: `jaxexp "
            f"search … --out {shlex.quote(str(directory.path))} --force` searches anew"
        )


def predict(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", show_default=False)
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only models of this sweep. Default: all sweeps."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pth", help="Write its weights for torchvision's resnet18(num_classes=1)."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Predict although the file of the sweep, or a name of a class or feature, has "
            "changed.",
        ),
    ] = False,
) -> None:
    """Predict images, or the rows of CSV files, with the best model of a run.

    The best model is the one that the page names; with several seeds, the one with the median loss
    of the setting with the best mean. Prints, separated by tabs: the image, or the file and line;
    the predicted class or value; and the probability of that class.

    The first row of a CSV file is a header with the names of the columns. If the training data had
    column names, columns are found by name, otherwise by their order. Scale the rows as the sweep's
    file scales its data. Images can be predicted by sweeps whose file defines `predict(model,
    files)`, which `probing` does not.

    jaxexp predict runs/places new_places.csv
    """
    if not files and not export:
        raise UserError("nothing to do: expected images or CSV files, or --export FILE.pth")
    directory = RunDirectory(run_directory)
    command = Command.from_json(directory.command(), run_directory / "run.json")
    from jaxexp.cli.prediction import predict_files  # JAX takes a second to start

    def note(text: str) -> None:
        console.print(text, style="yellow", soft_wrap=True)

    with contextlib.redirect_stdout(sys.stderr):  # what the sweep's file prints is no prediction
        predicted, model = predict_files(
            directory, command, files or [], sweep, export, note, force=force
        )
    for found in predicted:
        probability = "" if found.probability is None else f"\t{found.probability:.4f}"
        print(f"{found.example}\t{found.label}{probability}")
    console.print(model, soft_wrap=True)


def _drawn(directory: RunDirectory, name: str) -> Sweep:
    """The sweep whose questions a page answers; those of a grid are none of a search."""
    sweep = library.load(name)
    searched = directory.command().get("search") is not None
    return dataclasses.replace(sweep, questions=()) if searched else sweep


COMMANDS = (report, resume, predict)
