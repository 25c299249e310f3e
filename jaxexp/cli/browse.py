"""The commands that look at what runs have left: show, compare, export, runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxexp.base.errors import UserError
from jaxexp.cli.rundir import RunDirectory

if TYPE_CHECKING:
    import xarray as xr

# pandas and xarray take a second to start: `tables` is imported where it is used.

Run = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="A run directory.")]
By = Annotated[
    str | None,
    typer.Option(
        metavar="METRIC",
        help="Rank by this metric, in its own direction. Default: the metric that the page ranks "
        "by.",
    ),
]


def completed_sweeps(ctx: typer.Context, incomplete: str) -> list[str]:
    """The sweeps of the run named before that have results and begin so."""
    files = Path(ctx.params.get("run") or ".").glob("results/*.nc")
    return sorted(file.stem for file in files if file.stem.startswith(incomplete))


def show(
    run: Run,
    sweep: Annotated[
        str | None,
        typer.Argument(
            show_default=False, help="One of its sweeps.", autocompletion=completed_sweeps
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many. Default: 10.")
    ] = None,
    by: By = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Rank on this split. Default: validation."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only trials with this value. May be repeated."),
    ] = None,
    each_seed: Annotated[
        bool, typer.Option("--each-seed", help="List the trials of each seed separately.")
    ] = False,
) -> None:
    """Show the best trials of a run, as a table.

    Trials that differ only in their seed are one row, with mean and standard deviation. For a run
    of several sweeps, shows the best of each, unless a sweep is named.

    jaxexp show runs/rates --top 5 --by accuracy --where batch_norm=on
    """
    from jaxexp.cli import tables

    results = _results(run, sweep)
    if len(results) == 1:
        [ds] = results.values()
        ds = tables.where(ds, where or [])
        made = tables.best_trials(ds, by=by, split=split, top=top or 10, each_seed=each_seed)
        tables.show(made)
        return
    for option, given in (("--where", where), ("--top", top), ("--each-seed", each_seed)):
        if given:
            there = ", ".join(results)
            raise UserError(f"{option}: this run has several sweeps, name one of {there}")
    tables.show(tables.best_of_each(results, by=by, split=split))


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", show_default=False, help="Two or more.")
    ],
    by: By = None,
) -> None:
    """Compare runs: the best trial of each sweep, and what differs between them.

    Differences are relative to the first run that has the sweep; a mean over seeds and a single
    trial are not compared. Settings, versions, devices, data, and the files and tasks of sweeps are
    listed if they differ.

    jaxexp compare runs/before runs/after
    """
    if len(runs) < 2:
        raise UserError(f"compare {runs[0]}: expected two runs or more")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("compare: expected different runs, one is given twice")
    from jaxexp.cli import comparing, tables

    results = {str(run): _results(run) for run in runs}
    commands = {str(run): RunDirectory(run).command() for run in runs}
    tables.show(*comparing.compared(results, commands, by))


def export(
    run: Run,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write comma-separated values.")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write Parquet (needs jaxexp\\[export]).")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a list of JSON objects.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this sweep. Default: all.")
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="One row per trial, after its last epoch.")
    ] = False,
) -> None:
    """Export results as a table: one row per trial, epoch and split, or one per trial.

    Columns: sweep, trial_id, every hyperparameter; then epoch, split and each metric. With --final:
    epochs_trained, diverged_epoch, diverged_step (0: never), seconds, and each metric by split,
    such as validation_loss. Epochs that a trial did not train have no row, and metrics are empty
    from the epoch in which it diverged. For a population, learning_rate is the value in that epoch,
    or the last one, and initial_learning_rate the first.

    jaxexp export runs/rates --csv rates.csv --final
    """
    files = {"csv": csv, "parquet": parquet, "json": json}
    asked = {kind: file for kind, file in files.items() if file is not None}
    if not asked:
        raise UserError("nothing to do: expected --csv FILE, --parquet FILE or --json FILE")
    if len({file.resolve() for file in asked.values()}) < len(asked):
        kinds = " and ".join(f"--{kind} {file}" for kind, file in asked.items())
        raise UserError(f"{kinds}: expected different files, one is given twice")
    for kind, file in asked.items():
        if RunDirectory(run).writes(file):
            raise UserError(f"--{kind} {file}: a file of the run, expected one of another name")
    from jaxexp.cli import exporting

    rows = exporting.rows(_results(run, sweep, "--sweep"), final=final)
    for kind, file in asked.items():
        exporting.export(rows, file, kind)
        if not exporting.is_standard_output(file):
            print(file)


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", show_default=False, help="Default: runs/.")
    ] = Path("runs"),
) -> None:
    """List the runs of a folder: state, age, trials, best trial.

    A run is complete, interrupted (`jaxexp resume` continues it), running, damaged, or written by
    another version of jaxexp.

    jaxexp runs runs/
    """
    try:
        found = sorted(path for path in folder.iterdir() if (path / "run.json").is_file())
    except OSError as error:
        raise UserError(f"{folder}: not a folder of runs ({error.strerror or error})") from error
    if not found:
        hint = ": it is a run itself, see jaxexp show" if (folder / "run.json").is_file() else ""
        raise UserError(f"{folder}: holds no runs{hint}")
    from jaxexp.cli import tables

    tables.show(tables.listed(map(RunDirectory, found)))


def _results(run: Path, sweep: str | None = None, option: str = "sweep") -> "dict[str, xr.Dataset]":
    """The results of a run, or of one of its sweeps.

    Raises UserError for what is no run directory, a run without results, a damaged file, and an
    unknown sweep.
    """
    results = dict(RunDirectory(run).load())
    if sweep is None:
        return results
    if sweep not in results:
        raise UserError(f"{option} {sweep!r}: this run has results of {', '.join(results)}")
    return {sweep: results[sweep]}


COMMANDS = (show, compare, export, runs)
