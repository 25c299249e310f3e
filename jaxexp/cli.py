"""The command line."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from jaxexp import __version__, library
from jaxexp.errors import UserError
from jaxexp.sweep import Sweep

if TYPE_CHECKING:
    from jaxexp.engine import Problem
    from jaxexp.plan import Plan

REPORT_SWEEPS = (
    "learning_rate", "epochs", "batch_norm", "batch_size", "depth_width", "gradients", "sines",
)  # fmt: skip
QUICK_EPOCHS = 2

app = typer.Typer(
    help="Train whole grids of small networks at once: vectorized sweeps in JAX and Flax.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True, highlight=False)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with train.csv, validation.csv and test.csv, columns long, lat, country. "
        "The European places that come with jaxexp, if not given.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run directory; runs/NAME-DATE-TIME if not given."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of weights and shuffles: decides the run.")]
Quick = Annotated[
    bool, typer.Option("--quick", help=f"At most {QUICK_EPOCHS} epochs a trial, to try it out.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE[,VALUE...]",
        help="Another value of a hyperparameter, or several, which make it an axis. "
        "May be given more than once.",
    ),
]
Programs = Annotated[
    str,
    typer.Option(
        metavar="auto|exact|one",
        help="Which trials share a compiled program: those of equal shape (exact), all (one), or "
        "those whose padding costs less than compiling another (auto).",
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(metavar="GB", help="Memory that a run may take; what is free, if not given."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the run that --out holds.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"jaxexp {__version__}")
        raise typer.Exit


@app.command()
def reproduce(
    data: Data = None,
    out: Out = None,
    seed: Seed = None,
    quick: Quick = False,
    force: Force = False,
) -> None:
    """Redo section 6 of the report: every row, vectorized, as one page.

    Trains learning rates, epochs, batch norm, batch sizes, depths and widths, the gradients of a
    network of 100 layers and the sine features as one plan. Takes a minute or two on 4 cores
    (--quick: half a minute), and writes results, figures and report.html into a run directory.
    """
    _run(
        list(REPORT_SWEEPS),
        data=data, out=out, seed=seed, quick=quick, force=force, name="reproduce",
        title="Multi-layer perceptrons on European places",
        summary="Small networks learn the country of a place from its longitude and latitude. "
        "Each section asks one question of the published report, answers it from this run, and "
        "quotes the report's own figure.",
    )  # fmt: skip


@app.command()
def run(
    sweep: Annotated[
        str, typer.Argument(metavar="NAME_OR_FILE", help="A sweep (see `jaxexp list`) or a file.")
    ],
    settings: Settings = None,
    programs: Programs = "auto",
    memory: Memory = None,
    data: Data = None,
    out: Out = None,
    seed: Seed = None,
    quick: Quick = False,
    force: Force = False,
) -> None:
    """Run one sweep, by its name or from a Python file of yours.

    jaxexp run learning_rate --set epochs=20 --set learning_rate=0.01,0.003
    """
    name = Path(sweep).stem
    _run(
        [sweep],
        settings=_parse(settings or []), programs=programs, memory=memory,
        data=data, out=out, seed=seed, quick=quick, force=force, name=name,
        title=name.replace("_", " ").capitalize(),
        summary="",
    )  # fmt: skip


@app.command()
def plan(
    sweep: Annotated[
        str,
        typer.Argument(metavar="NAME_OR_FILE", help="A sweep, a file, or `reproduce` for all."),
    ],
    settings: Settings = None,
    programs: Programs = "auto",
    memory: Memory = None,
    data: Data = None,
    seed: Seed = None,
    quick: Quick = False,
) -> None:
    """Show how a sweep would run, training nothing.

    Which trials share which compiled program and why, the share of arithmetic that is padding,
    where each program runs, and about how long it all takes.
    """
    sources = list(REPORT_SWEEPS) if sweep == "reproduce" else [sweep]
    sweeps = [_prepare(library.load(s), _parse(settings or []), seed, quick) for s in sources]
    print(_plan(sweeps, data, programs, memory)[0])


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
) -> None:
    """Draw the figures and the page of a run again, from its saved results."""
    from jaxexp.rundir import RunDirectory

    directory = RunDirectory(run_directory)
    found = directory.load()
    sections = [section for pair in found for section in directory.draw(*pair)]
    print(directory.write_page(sections, [dataset for _, dataset in found]))


@app.command("list")
def list_sweeps() -> None:
    """List the sweeps that come with jaxexp."""
    for name in library.names():
        trials = len(library.load(name).trials())
        print(f"{name:15s} {trials:3d} trials   {library.describe(name)}")


@app.command()
def bench(
    data: Data = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials: learning rates × seeds.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Different seeds among the trials.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Timed epochs of jaxexp.")] = 5,
    width: Annotated[int, typer.Option(min=1, help="Units of each hidden layer.")] = 16,
    peers: Annotated[bool, typer.Option(help="Time PyTorch beside it, if installed.")] = True,
    vision: Annotated[
        bool, typer.Option("--vision", help="Time a ResNet 18 beside torchvision's instead.")
    ] = False,
) -> None:
    """Time a grid of learning rates and seeds beside PyTorch, compilation apart.

    The report's way (a DataLoader, one trial after another) and the best that PyTorch can do:
    resident tensors, torch.func.vmap with and without torch.compile, several processes.
    """
    if vision:
        from jaxexp.bench_vision import compare_resnet

        compare_resnet()
        return
    from jaxexp.bench import compare

    compare(data, trials=trials, seeds=seeds, epochs=epochs, width=width, peers=peers)


def _parse(settings: Sequence[str]) -> dict[str, list[str]]:
    """`["epochs=5", "learning_rate=0.1,0.01"]` as `{"epochs": ["5"], ...}`."""
    parsed: dict[str, list[str]] = {}
    for setting in settings:
        name, equals, values = (part.strip() for part in setting.partition("="))
        if not name or not equals or not all(v.strip() for v in values.split(",")):
            raise UserError(f"--set {setting!r}: expected KEY=VALUE or KEY=VALUE,VALUE...")
        if name in parsed:
            raise UserError(f"--set {name} is given twice: write {name}=VALUE,VALUE... instead")
        parsed[name] = [value.strip() for value in values.split(",")]
    return parsed


def _run(
    sources: list[str], *, name: str, title: str, summary: str, data: Path | None, out: Path | None,
    seed: int | None, quick: bool, force: bool, settings: dict[str, list[str]] | None = None,
    programs: str = "auto", memory: float | None = None,
) -> None:  # fmt: skip
    """Check everything, make the run directory, train, and write results and page."""
    started = time.perf_counter()
    sweeps = [_prepare(library.load(source), settings or {}, seed, quick) for source in sources]

    made, problem = _plan(sweeps, data, programs, memory)

    from jaxexp.progress import TerminalProgress
    from jaxexp.rundir import RunDirectory
    from jaxexp.runner import run_plan

    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    command = {
        "title": title,
        "summary": summary,
        "sweeps": [str(Path(s).resolve()) if s.endswith(".py") else s for s in sources],
        "settings": settings or {},
        "data": str(data) if data else None,
        "seed": seed,
        "quick": quick,
    }
    directory = RunDirectory.create(path, command, force=force)
    sections, datasets = [], []
    try:
        with TerminalProgress(made, problem.examples, console) as progress:
            for sweep, dataset in run_plan(made, sweeps, problem, progress):
                directory.save(sweep, dataset)
                sections += directory.draw(sweep, dataset)  # while the others train
                datasets.append(dataset)
    except KeyboardInterrupt:
        console.print(
            f"interrupted: {len(datasets)} of {len(sweeps)} sweeps are complete and kept in {path}"
            + (f"; their page: jaxexp report {path}" if datasets else ""),
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    page = directory.write_page(sections, datasets)
    console.print(f"done in {time.perf_counter() - started:.0f} s")
    print(page)


def _plan(
    sweeps: list[Sweep], data: Path | None, programs: str, memory: float | None
) -> "tuple[Plan, Problem]":
    """The checked plan of these sweeps, and the problem they run on."""
    from jaxexp.data import load_places

    places = load_places(data)  # before JAX, which takes a second to start
    from jaxexp.places import problem as places_problem
    from jaxexp.runner import make_plan

    problem = places_problem(places)
    limit = None if memory is None else memory * 1e9
    return make_plan(sweeps, problem, programs=programs, memory=limit), problem


def _prepare(sweep: Sweep, settings: dict[str, list[str]], seed: int | None, quick: bool) -> Sweep:
    sweep = sweep.set(settings)
    if seed is not None:
        sweep = sweep.set({"seed": [seed]})
    if quick:
        sweep = sweep.shorten(QUICK_EPOCHS)
    sweep.trials()  # checks every value
    return sweep


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 bad input, 130 interrupted."""
    _guard(lambda: app(arguments, standalone_mode=True))


def _guard(command: Callable[[], Any]) -> NoReturn:
    try:
        command()
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)
