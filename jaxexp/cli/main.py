"""The command line."""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from jaxexp import __version__
from jaxexp.base.errors import InterruptedRunError, UnavailableError, UserError
from jaxexp.cli import library
from jaxexp.cli.inputs import IMAGENET, Inputs
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.session import QUICK_EPOCHS, Command, Session, preview, stages
from jaxexp.cli.signals import Signals
from jaxexp.reproduce import vision

REPORT_SWEEPS = {
    "6": (
        "learning_rate", "epochs", "batch_norm", "batch_size", "depth_width", "gradients", "sines",
    ),
    "7": ("boosted_trees", "scratch", "probing", "probing_sklearn", "fine_tuning"),
}  # fmt: skip
SECTIONS = {
    "6": "Multi-layer perceptrons on European places",
    "7": "ResNet 18 on real and generated images",
}
SUMMARIES = {
    "6": "Small networks learn the country of a place from its longitude and latitude.",
    "7": "Boosted trees, a ResNet 18 from scratch, its frozen features and fine-tuning tell two "
    "classes of images apart.",
}

EMBEDDED_PIXELS = 64  # of a side, as those images are; and of those of a quick run

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
    bool,
    typer.Option(
        "--quick",
        help=f"At most {QUICK_EPOCHS} epochs a trial, and some images, small ones, to try it out.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE[,VALUE...]",
        help="Another value of a hyperparameter, or several, which make it an axis; width=64-32-16 "
        "is one value, a width for each of three layers. May be given more than once.",
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
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder with train/, val/ and test/, each with a folder of images for either of two "
        "classes. The images that come with scikit-learn, if not given.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="imagenet|FILE.pth",
        help="Pretrained weights: ImageNet's, fetched once, or a state dict of torchvision's "
        "resnet18 with any last layer.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS", min=16, max=2048,
        help="Side of the square images; 224 if not given, 64 for the images that come along.",
    ),
]  # fmt: skip
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.")
]
Sections = Annotated[
    str | None,
    typer.Option(
        "--section",
        metavar="6|7|all",
        help="Of the report; all of it, if the libraries of section 7 are installed.",
    ),
]
Every = Annotated[
    float,
    typer.Option(
        "--checkpoint-every", metavar="SECONDS", min=0, help="How often a run saves where it is."
    ),
]
Devices = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Use N devices; all, if not given.")
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
    section: Sections = None,
    settings: Settings = None,
    data: Data = None,
    images: Images = None,
    weights: Weights = IMAGENET,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    out: Out = None,
    seed: Seed = None,
    quick: Quick = False,
    devices: Devices = None,
    checkpoint_every: Every = 30.0,
    force: Force = False,
) -> None:
    """Redo the report: every row, vectorized, as one page.

    Section 6 trains learning rates, epochs, batch norm, batch sizes, depths and widths, the
    gradients of a network of 100 layers and the sine features as one plan, in a minute or two on 4
    cores. Section 7 tells two classes of images apart: boosted trees, a ResNet 18 from scratch,
    linear probing and fine-tuning. Writes results, figures and report.html into a run directory.

    --quick trains two epochs at most, on small images and some of them alone.
    """
    sections = _sections(section)
    command = Command(
        sweeps=tuple(name for one in sections for name in REPORT_SWEEPS[one]),
        title=" · ".join(SECTIONS[one] for one in sections),
        summary=" ".join(SUMMARIES[one] for one in sections) + " Each section asks one question of "
        "the published report, answers it from this run, and quotes the report's own figure.",
        settings=_parse(settings or []),
        devices=devices,
        seed=seed,
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
    )
    _start(command, "reproduce", out, force=force)


@app.command()
def run(
    sweep: Annotated[
        str, typer.Argument(metavar="NAME_OR_FILE", help="A sweep (see `jaxexp list`) or a file.")
    ],
    settings: Settings = None,
    programs: Programs = "auto",
    memory: Memory = None,
    devices: Devices = None,
    data: Data = None,
    images: Images = None,
    weights: Weights = IMAGENET,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    out: Out = None,
    seed: Seed = None,
    quick: Quick = False,
    checkpoint_every: Every = 30.0,
    force: Force = False,
) -> None:
    """Run one sweep, by its name or from a Python file of yours.

    jaxexp run learning_rate --set epochs=20 --set learning_rate=0.01,0.003
    """
    name = Path(sweep).stem
    command = Command(
        sweeps=(str(Path(sweep).resolve()) if sweep.endswith(".py") else sweep,),
        title=name.replace("_", " ").capitalize(),
        settings=_parse(settings or []),
        programs=programs,
        memory=memory,
        devices=devices,
        seed=seed,
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
    )
    _start(command, name, out, force=force)


@app.command()
def plan(
    sweep: Annotated[
        str,
        typer.Argument(metavar="NAME_OR_FILE", help="A sweep, a file, or `reproduce` for all."),
    ],
    settings: Settings = None,
    programs: Programs = "auto",
    memory: Memory = None,
    section: Sections = None,
    devices: Devices = None,
    data: Data = None,
    images: Images = None,
    weights: Weights = IMAGENET,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    seed: Seed = None,
    quick: Quick = False,
) -> None:
    """Show how a sweep would run, training nothing.

    Which trials share which compiled program and why, the share of arithmetic that is padding,
    where each program runs, and about how long it all takes.
    """
    sweeps: tuple[str, ...] = (sweep,)
    if sweep == "reproduce":
        sweeps = tuple(name for one in _sections(section) for name in REPORT_SWEEPS[one])
    command = Command(
        sweeps=sweeps,
        title="",
        settings=_parse(settings or []),
        programs=programs,
        memory=memory,
        devices=devices,
        seed=seed,
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
    )
    for stage in stages(command.sources()):
        if stage[0].estimate is None:
            print(preview(stage, command))


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
) -> None:
    """Draw the figures and the page of a run again, from its saved results."""
    directory = RunDirectory(run_directory)
    found = directory.load()
    sections = [section for pair in found for section in directory.draw(*pair)]
    sections += directory.compare({sweep.name: dataset for sweep, dataset in found})
    print(directory.write_page(sections, [dataset for _, dataset in found]))


@app.command()
def resume(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on though code, data, sweep or a library has changed."),
    ] = False,
    checkpoint_every: Annotated[
        float | None,
        typer.Option("--checkpoint-every", metavar="SECONDS", min=0, help="As it was before."),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use N devices; as before, if not given.")
    ] = None,
) -> None:
    """Go on with a run that was interrupted, from its last checkpoints.

    The results are those of an uninterrupted run: bit for bit on as many of the same devices.
    """
    found = RunDirectory(run_directory).command()
    if found.get("finished", True) and not found.get("missing"):
        raise UserError(f"{run_directory}: this run is complete: `jaxexp report` draws it again")
    command = Command.from_json(found, run_directory / "run.json")
    changed: dict[str, Any] = {"checkpoint_every": checkpoint_every, "devices": devices}
    given = {name: value for name, value in changed.items() if value is not None}
    command = dataclasses.replace(command, **given)
    held = RunDirectory.reopen(run_directory)
    _run(command, run_directory, held, begun=True, force=force)


@app.command()
def predict(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE...", show_default=False)
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the models of this sweep; of all, if not given."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pth", help="Write its weights for torchvision's resnet18(num_classes=1)."
        ),
    ] = None,
) -> None:
    """Tell the class of images with the best model of a run, by validation accuracy.

    Prints each file, its class and the probability of that class, split by tabs.
    """
    if not images and not export:
        raise UserError("nothing to do: expected images, or --export FILE.pth")
    directory = RunDirectory(run_directory)
    directory.command()
    from jaxexp import models  # JAX takes a second to start
    from jaxexp.reproduce.predict import export as export_weights
    from jaxexp.reproduce.predict import predict as classes_of

    best = models.best(directory.models, sweep)
    if export:
        export_weights(best, export)
    for found in classes_of(best, images) if images else []:
        print(f"{found.file}\t{found.label}\t{found.probability:.4f}")
    trial = best.about["trial"]
    console.print(
        f"model: {best.about['sweep']}, learning rate {trial['learning_rate']:g}, seed "
        f"{trial['seed']}, validation accuracy {best.about['accuracy']['validation']:.4f}",
        soft_wrap=True,
    )


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
        bool,
        typer.Option("--vision", help="Time a ResNet 18 and decoding beside torchvision instead."),
    ] = False,
) -> None:
    """Time a grid of learning rates and seeds beside PyTorch, compilation apart.

    The report's way (a DataLoader, one trial after another) and the best that PyTorch can do:
    resident tensors, torch.func.vmap with and without torch.compile, several processes.
    """
    if vision:
        from benchmarks.decoding import compare_decoding
        from benchmarks.resnet import compare_resnet

        compare_resnet()
        compare_decoding()
        return
    from benchmarks.grid import compare

    compare(data, trials=trials, seeds=seeds, epochs=epochs, width=width, peers=peers)


def _sections(asked: str | None) -> tuple[str, ...]:
    """The sections of the report that are meant, and can be done here."""
    if asked not in (None, "all", *SECTIONS):
        raise UserError(f"--section {asked!r}: expected one of {', '.join((*SECTIONS, 'all'))}")
    if asked == "6":
        return ("6",)
    missing = vision.missing_libraries()
    if missing and asked:
        raise UserError(f"--section {asked}: needs {', '.join(missing)}: {vision.INSTALL}")
    if missing:
        console.print(f"section 6 alone; section 7 needs: {vision.INSTALL}", markup=False)
        return ("6",)
    return ("7",) if asked == "7" else ("6", "7")


def _inputs(
    data: Path | None, images: Path | None, weights: str, image_size: int | None,
    skip_broken: bool, quick: bool,
) -> Inputs:  # fmt: skip
    size = image_size or (EMBEDDED_PIXELS if images is None or quick else 224)
    return Inputs(
        data=data,
        images=images,
        weights=weights if weights == IMAGENET else str(Path(weights).resolve()),
        image_size=size,
        skip_broken=skip_broken,
        quick=quick,
    )


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


def _start(command: Command, name: str, out: Path | None, *, force: bool) -> None:
    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    command = Command.from_json(command.as_json(), path)  # as a resumed run will have it
    _run(command, path, RunDirectory.create(path, command.as_json(), force=force))


def _run(
    command: Command, path: Path, held: AbstractContextManager[RunDirectory],
    *, begun: bool = False, force: bool = False,
) -> None:  # fmt: skip
    """Run a command in its directory, begun before or not; a signal leaves a run to resume."""
    started = time.perf_counter()
    with Signals(lambda: _say_interrupted(path, len(command.sweeps), begun)) as signals:
        try:
            session = Session(command, console, signals)
            with held as directory:
                begun = True
                page = session.run(directory, force=force)
        except InterruptedRunError:
            signals.leave()
    console.print(f"done in {time.perf_counter() - started:.0f} s")
    print(page)
    if session.missing:
        raise typer.Exit(3)


def _say_interrupted(path: Path, sweeps: int, begun: bool) -> None:
    if not begun:
        console.print("interrupted before anything was trained")
        return
    complete = len(list((path / "results").glob("*.nc")))
    name = shlex.quote(str(path))
    page = f"; their page: jaxexp report {name}" if complete else ""
    console.print(
        f"interrupted; go on with: jaxexp resume {name}\n"
        f"{complete} of {sweeps} sweeps are complete and kept{page}",
        soft_wrap=True,
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    0: done; 2: bad input; 3: a part of the run could not be had; 130, 143: interrupted.
    """
    _guard(lambda: app(arguments, standalone_mode=True))


def _guard(command: Callable[[], Any]) -> NoReturn:
    try:
        command()
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(3 if isinstance(error, UnavailableError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)
