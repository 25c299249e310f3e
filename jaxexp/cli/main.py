"""The command line."""

import contextlib
import dataclasses
import gc
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import typer
from rich.console import Console
from typer.core import TyperGroup

from jaxexp import __version__
from jaxexp.base.errors import InterruptedRunError, UnavailableError, UserError
from jaxexp.base.words import capitalised, count
from jaxexp.cli import browse, drawing, library, pages
from jaxexp.cli.benchmarks import benchmark
from jaxexp.cli.inputs import EMBEDDED_PIXELS, IMAGENET, PIXELS, Inputs, check_read, refuse
from jaxexp.cli.options import (
    Batch,
    Budget,
    CheckpointsAt,
    ClusterAddress,
    Data,
    Devices,
    Drawing,
    Every,
    Force,
    Images,
    ImageSize,
    Log,
    Memory,
    Metric,
    Out,
    PointSeeds,
    Programs,
    Quick,
    RunSeeds,
    Sampler,
    SamplerSeed,
    Sections,
    Seed,
    Seeds,
    Settings,
    SkipBroken,
    Space,
    Target,
    Trials,
    Weights,
)  # fmt: skip
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.searching import Search
from jaxexp.cli.session import Command, Json, Session, plan_stage, stages
from jaxexp.cli.signals import Signals
from jaxexp.reproduce import vision
from jaxexp.reproduce.report import SECTIONS, SOURCE
from jaxexp.spec.sweep import Sweep

if TYPE_CHECKING:
    from jaxexp.report.page import Section

Click: TypeAlias = Any  # a context, command or parameter: typer keeps their types to itself


class _Group(TyperGroup):
    """The commands; their flags take no value, so that help names no type for them."""

    def get_params(self, ctx: Click) -> list[Click]:
        """Its own options."""
        return _flags_without_type(super().get_params(ctx))

    def get_command(self, ctx: Click, cmd_name: str) -> Click:
        """A command by name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _flags_without_type(command.get_params(ctx))
        return command


def _flags_without_type(parameters: list[Click]) -> list[Click]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    cls=_Group,
    help="Train whole grids of small networks at once: vectorized sweeps in JAX and Flax.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True, highlight=False, markup=False)  # names of files may hold [ ]


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
    seeds: Seeds = None,
    quick: Quick = False,
    devices: Devices = None,
    cluster: ClusterAddress = None,
    checkpoint_every: Every = 30.0,
    checkpoints: CheckpointsAt = None,
    budget: Budget = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Reproduce the published report: every row, with several seeds, as one page.

    Section 6 trains learning rates, epochs, batch norm, batch sizes, depths and widths, the
    gradients of a network of 100 layers and sine features as one plan, in a minute or two on 4
    cores. Section 7 classifies images: boosted trees, a ResNet 18 from scratch, linear probing and
    fine-tuning. Writes results, figures and report.html into a run directory.

    jaxexp reproduce --section 6 --quick
    """
    sections = _sections(section)
    command = Command(
        sweeps=tuple(name for one in sections for name in SECTIONS[one].sweeps),
        title=" · ".join(SECTIONS[one].title for one in sections),
        summary=" ".join(SECTIONS[one].summary for one in sections)
        + " Each section asks one question of a published report, answers it from this run, and "
        f"quotes the report's own figure. The report is {SOURCE}.",
        reference="The report",
        settings=_parse(settings or [], seed, seeds),
        devices=devices,
        cluster=cluster,
        seed=seed,
        seeds=_seeds(sections, seeds, quick),
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
        checkpoints=_location(checkpoints),
        log=tuple(dict.fromkeys(log or ())),
    )
    _check_inputs(command.inputs, sections)
    _start(command, "reproduce", out, force=force, budget=budget)


@app.command()
def run(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help="A sweep (see `jaxexp list`) or a file.",
            autocompletion=library.completed,
        ),
    ],
    settings: Settings = None,
    programs: Programs = "auto",
    memory: Memory = None,
    devices: Devices = None,
    cluster: ClusterAddress = None,
    data: Data = None,
    images: Images = None,
    weights: Weights = IMAGENET,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    out: Out = None,
    seed: Seed = None,
    seeds: RunSeeds = None,
    quick: Quick = False,
    checkpoint_every: Every = 30.0,
    checkpoints: CheckpointsAt = None,
    budget: Budget = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Run one sweep, by its name or from a Python file of yours.

    jaxexp run learning_rate --set epochs=20 --set learning_rate=0.01,0.003
    """
    if sweep == "reproduce":
        raise UserError("reproduce is a command, not a sweep: use `jaxexp reproduce`")
    name = Path(sweep).stem
    command = Command(
        sweeps=(str(Path(sweep).resolve()) if sweep.endswith(".py") else sweep,),
        title=_title(sweep),
        settings=_parse(settings or [], seed, seeds),
        programs=programs,
        memory=memory,
        devices=devices,
        cluster=cluster,
        seed=seed,
        seeds={} if seeds is None else {name: seeds},
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
        checkpoints=_location(checkpoints),
        log=tuple(dict.fromkeys(log or ())),
    )
    _start(command, name, out, force=force, budget=budget)


@app.command()
def search(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help="A sweep (see `jaxexp list`) or a file: its base trial, and what it is run on.",
            autocompletion=library.completed,
        ),
    ],
    space: Space = None,
    sampler: Sampler = "random",
    trials: Trials = None,
    metric: Metric = "loss",
    batch: Batch = None,
    seed: SamplerSeed = 0,
    seeds: PointSeeds = 1,
    programs: Programs = "auto",
    memory: Memory = None,
    devices: Devices = None,
    cluster: ClusterAddress = None,
    data: Data = None,
    images: Images = None,
    weights: Weights = IMAGENET,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    out: Out = None,
    quick: Quick = False,
    checkpoint_every: Every = 30.0,
    checkpoints: CheckpointsAt = None,
    budget: Budget = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Search a space of hyperparameters, in place of the axes of a sweep.

    The trials train as those of a grid do, and their run directory is one like any other.

    jaxexp search learning_rate --trials 32 --set learning_rate='loguniform(1e-4,1)' --set depth=4
    """
    if sweep == "reproduce":
        raise UserError("reproduce is a command, not a sweep: expected one of `jaxexp list`")
    name = Path(sweep).stem
    settings = {key: [written] for key, written in _pairs(space or []).items()}
    command = Command(
        sweeps=(str(Path(sweep).resolve()) if sweep.endswith(".py") else sweep,),
        title=f"{_title(sweep)}: search",
        summary=f"Trials by {sampler} (seed {seed}) of a space: "
        + ", ".join(f"{key}={written}" for key, [written] in settings.items())
        + (f"; each point with {seeds} seeds" if seeds > 1 else ""),
        settings=settings,
        programs=programs,
        memory=memory,
        devices=devices,
        cluster=cluster,
        search=Search(
            sampler=sampler, trials=trials, seed=seed, metric=metric, batch=batch, seeds=seeds
        ),
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
        checkpoints=_location(checkpoints),
        log=tuple(dict.fromkeys(log or ())),
    )
    _start(command, name, out, force=force, budget=budget)


@app.command()
def plan(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help="A sweep, a file, or `reproduce` for all.",
            autocompletion=library.completed,
        ),
    ],
    settings: Settings = None,
    programs: Programs = "auto",
    memory: Memory = None,
    section: Sections = None,
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            "--devices-per-node",
            metavar="N",
            min=1,
            help="Use N devices, of each node; all, if not given.",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Plan for N machines; with --target, of that hardware, and nothing is compiled.",
        ),
    ] = None,
    cluster: ClusterAddress = None,
    data: Data = None,
    images: Images = None,
    weights: Weights = IMAGENET,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    seed: Seed = None,
    seeds: Seeds = None,
    quick: Quick = False,
    target: Target = None,
    figure: Drawing = None,
) -> None:
    """Show how a sweep would run, training nothing.

    Which trials share which compiled program and why, the share of arithmetic that is padding,
    where each program runs, and about how long it all takes. With --target, each program is
    compiled for hardware that is not here, and its compiler says what it takes there.

    jaxexp plan depth_width --set seed=0,1,2,3

    jaxexp plan depth_width --target tpu-v5e-4

    jaxexp plan depth_width --nodes 64 --devices-per-node 8 --target h100

    jaxexp plan depth_width --figure programs.png
    """
    sweeps: tuple[str, ...] = (sweep,)
    several = {} if seeds is None else {Path(sweep).stem: seeds}
    if sweep == "reproduce":
        sections = _sections(section)
        sweeps = tuple(name for one in sections for name in SECTIONS[one].sweeps)
        several = _seeds(sections, seeds, quick)
    elif section is not None:
        raise UserError(f"--section {section}: expected with `jaxexp plan reproduce` alone")
    command = Command(
        sweeps=sweeps,
        title="",
        settings=_parse(settings or [], seed, seeds),
        programs=programs,
        memory=memory,
        devices=devices,
        nodes=nodes,
        cluster=cluster,
        seed=seed,
        seeds=several,
        quick=quick,
        inputs=_inputs(data, images, weights, image_size, skip_broken, quick),
    )
    planned_stages = [s for s in stages(command.sources()) if s[0].estimate is None]
    if figure is not None:
        drawing.check(figure, len(planned_stages))
    if sweep == "reproduce":
        _check_inputs(command.inputs, sections)
    for stage in planned_stages:
        planned = plan_stage(stage, command, target)
        if sweep != "reproduce":
            check_read(command.inputs, stage[0].sweep.name)
        if figure is not None:
            drawing.draw(planned, figure)
        print(planned)
        if target is not None and nodes is None:
            print(planned.compiled())


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
) -> None:
    """Draw the figures and the page of a run again, from its saved results.

    jaxexp report runs/rates
    """
    from jaxexp.report import sections

    directory = RunDirectory(run_directory)
    found = dict(directory.load())
    sweeps = {Path(name).stem: name for name in directory.command()["sweeps"]}
    drawn: list[Section] = []
    for name, dataset in found.items():
        try:
            drawn += pages.draw(directory, _drawn(directory, sweeps[name]), dataset)
        except UserError as error:  # the results are there, whatever has become of the sweep's file
            console.print(f"{error}; its results are drawn as those of any sweep", soft_wrap=True)
            drawn.append(sections.in_general(dataset, directory.keep_figure, name))
    drawn += pages.compare(directory, found)
    page = pages.write(directory, drawn, list(found.values()))
    _finish(page, [error for section in drawn for error in section.errors])


@app.command()
def resume(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    force: Annotated[
        bool,
        typer.Option("--force", help="Resume although code, data, sweep or a library has changed."),
    ] = False,
    checkpoint_every: Annotated[
        float | None,
        typer.Option(
            "--checkpoint-every", metavar="SECONDS", min=0, help="As before, if not given."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Use N devices; as many as before, if not given."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Go on on this Ray cluster, or on this machine alone with none; as before, if not "
            "given.",
        ),
    ] = None,
    budget: Budget = None,
) -> None:
    """Resume an interrupted run from its last checkpoints.

    The results are those of an uninterrupted run: bit for bit on as many of the same devices.

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
    _run(command, run_directory, held, begun=True, force=force, budget=budget)


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


@app.command()
def predict(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", show_default=False)
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only models of this sweep; of all, if not given."),
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

    The best is the one that the page calls so; of several seeds, the best setting by their mean,
    and the one with the median loss. Prints the image, or the file and line; the predicted class or
    value; and the probability of that class, separated by tabs.

    The first row of a CSV file is a header: the names of the columns. Of data that had names, the
    columns are found by them; of others, they are taken in their order. Rows are to be scaled as
    the sweep's file scales its data. Images are predicted by sweeps whose file defines
    `predict(model, files)`, as `probing` does not.

    jaxexp predict runs/places new_places.csv
    """
    if not files and not export:
        raise UserError("nothing to do: expected images or CSV files, or --export FILE.pth")
    directory = RunDirectory(run_directory)
    command = Command.from_json(directory.command(), run_directory / "run.json")
    from jaxexp.cli.prediction import predict_files  # JAX takes a second to start

    def note(text: str) -> None:
        console.print(text, style="yellow", soft_wrap=True)

    predicted, model = predict_files(
        directory, command, files or [], sweep, export, note, force=force
    )
    for found in predicted:
        probability = "" if found.probability is None else f"\t{found.probability:.4f}"
        print(f"{found.example}\t{found.label}{probability}")
    console.print(model, soft_wrap=True)


@app.command("list")
def list_sweeps() -> None:
    """List the sweeps that ship with jaxexp.

    jaxexp list
    """
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
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --vision: decode those of this folder, laid out as for `run`; photographs "
            "made for it, if not given.",
        ),
    ] = None,
    study: Annotated[
        bool,
        typer.Option(
            "--optuna",
            help="Time a study of Optuna instead, beside its own loop with PyTorch and "
            "scikit-learn.",
        ),
    ] = False,
    cross_validation: Annotated[
        bool,
        typer.Option(
            "--sklearn",
            help="Time a cross-validated search instead, beside scikit-learn's GridSearchCV.",
        ),
    ] = False,
    searches: Annotated[
        bool,
        typer.Option(
            "--searches",
            help="Compare halving, Hyperband and population-based training with random search "
            "instead: on digits, and with --data on those places.",
        ),
    ] = False,
    profiled: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME_OR_FILE",
            help="Trace the training step of a sweep instead, and print what it is made of.",
        ),
    ] = None,
    settings: Settings = None,
    on_cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Time a grid on a cluster of two nodes of this machine instead, beside Ray Tune.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Little of a comparison, to see that it runs."),
    ] = False,
) -> None:
    """Time a grid of learning rates and seeds beside PyTorch, compilation apart.

    The report's way (a DataLoader, one trial after another) and the best that PyTorch can do:
    resident tensors, torch.func.vmap with and without torch.compile, several processes.

    jaxexp bench --trials 16 --epochs 2
    """
    if images is not None and not vision:
        raise UserError(f"--images {images}: expected together with --vision")
    kinds = {
        "--vision": vision, "--optuna": study, "--sklearn": cross_validation,
        "--searches": searches, "--cluster": on_cluster,
        "--profile": profiled is not None,
    }  # fmt: skip
    asked = [name for name, given in kinds.items() if given]
    if len(asked) > 1:
        raise UserError(f"{asked[1]}: expected without {asked[0]}")
    if settings and profiled is None:
        raise UserError("--set: expected together with --profile")
    if profiled is not None:
        if quick:
            raise UserError("--quick: expected without --profile")
        _bench_profile(profiled, settings or [], data)
        return
    if quick and (vision or not asked):
        raise UserError("--quick: expected with --optuna, --sklearn, --searches or --cluster")
    if cross_validation:
        benchmark("crossvalidation").compare(data, quick=quick)
        return
    if study:
        _bench("studies", "--optuna", "optuna,torch", quick=quick)
        return
    if on_cluster:
        _bench("cluster", "--cluster", "cluster", quick=quick)
        return
    if searches:
        benchmark("searches").compare(data, quick=quick)
        return
    if vision:
        decoding = benchmark("decoding")
        if images is not None:
            decoding.scan(images)  # a folder that cannot be used is told at once
        benchmark("resnet").compare_resnet()
        decoding.compare_decoding(own=images)
        return
    benchmark("grid").compare(
        data, trials=trials, seeds=seeds, epochs=epochs, width=width, peers=peers
    )


def _bench_profile(sweep: str, settings: list[str], data: Path | None) -> None:
    """Profile a step of a sweep."""
    command = Command(
        sweeps=(sweep,), title="", settings=_parse(settings), devices=1, inputs=Inputs(data=data)
    )
    [[source]] = stages(command.sources())
    if source.estimate is not None:
        raise UserError(f"{source.sweep.name}: another library fits its models; it has no steps")
    planned = plan_stage([source], command)
    check_read(command.inputs, source.sweep.name)
    benchmark("profile").profile(planned)


def _bench(name: str, option: str, extras: str, *, quick: bool) -> None:
    """Run a benchmark whose peers are in extras."""
    try:
        found = benchmark(name)
    except ImportError as error:
        raise UserError(
            f"{option}: {error.name} is missing: pip install 'jaxexp[{extras}]'"
        ) from error
    found.compare(quick=quick)


browse.add_to(app)


def _drawn(directory: RunDirectory, name: str) -> Sweep:
    """The sweep whose questions a page answers; those of a grid are none of a search."""
    sweep = library.load(name)
    searched = directory.command().get("search") is not None
    return dataclasses.replace(sweep, questions=()) if searched else sweep


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
        console.print(f"only section 6: section 7 needs {vision.INSTALL}")
        return ("6",)
    return ("7",) if asked == "7" else ("6", "7")


def _seeds(sections: Sequence[str], asked: int | None, quick: bool) -> dict[str, int]:
    """How many seeds each sweep of the report is trained with."""
    return {
        name: asked or (1 if quick else SECTIONS[one].seeds)
        for one in sections
        for name in SECTIONS[one].sweeps
    }


def _inputs(
    data: Path | None, images: Path | None, weights: str, image_size: int | None,
    skip_broken: bool, quick: bool,
) -> Inputs:  # fmt: skip
    size = image_size or (EMBEDDED_PIXELS if images is None or quick else PIXELS)
    return Inputs(
        data=data,
        images=images,
        weights=weights if weights == IMAGENET else str(Path(weights).resolve()),
        image_size=size,
        skip_broken=skip_broken,
        quick=quick,
    )


def _check_inputs(inputs: Inputs, sections: Sequence[str]) -> None:
    """Refuse what the sections of the report do not read."""
    reads = {"6": {"data"}, "7": {"images", "weights", "image_size", "skip_broken"}}
    for section in reads.keys() - sections:
        refuse(inputs, reads[section], f"section {' '.join(sections)}")


def _title(sweep: str) -> str:
    """Of a page: the name of one that ships as a title, that of a user's file as it is."""
    title = Path(sweep).stem.replace("_", " ")
    return title if sweep.endswith(".py") else capitalised(title)


def _parse(
    settings: Sequence[str], seed: int | None = None, seeds: int | None = None
) -> dict[str, list[str]]:
    """`["epochs=5", "learning_rate=0.1,0.01"]` as `{"epochs": ["5"], ...}`.

    Raises UserError where `--seed` or `--seeds` is given beside a setting of the seed.
    """
    made = {
        name: [value.strip() for value in values.split(",")]
        for name, values in _pairs(settings).items()
    }
    for option, given in (("--seed", seed), ("--seeds", seeds)):
        if given is not None and "seed" in made:
            raise UserError(f"{option} {given}: expected without --set seed, which decides it")
    return made


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    """`["epochs=5", "learning_rate=0.1,0.01"]` as `{"epochs": "5", ...}`."""
    pairs: dict[str, str] = {}
    for setting in settings:
        name, equals, values = (part.strip() for part in setting.partition("="))
        if not name or not equals or not all(v.strip() for v in values.split(",")):
            raise UserError(f"--set {setting!r}: expected KEY=VALUE or KEY=VALUE,VALUE...")
        if name in pairs:
            raise UserError(f"--set {name} is given twice: write {name}=VALUE,VALUE... instead")
        pairs[name] = values
    return pairs


def _location(written: str | None) -> str | None:
    """A path as it is in any directory; a URL as it is."""
    return written if written is None or "://" in written else str(Path(written).resolve())


def _start(
    command: Command, name: str, out: Path | None, *, force: bool, budget: float | None
) -> None:
    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    command = command.with_nodes()
    command = Command.from_json(command.as_json(), path)  # as a resumed run will have it
    held = RunDirectory.create(path, command.as_json(), force=force)
    _run(command, path, held, budget=budget)


def _run(
    command: Command, path: Path, held: AbstractContextManager[RunDirectory],
    *, begun: bool = False, force: bool = False, budget: float | None = None,
) -> None:  # fmt: skip
    """Run a command in its directory, begun before or not.

    A signal, or the end of a budget in seconds, leaves a run to resume.
    """
    started = time.perf_counter()

    def say() -> None:
        _say_interrupted(path, len(command.sweeps), begun, over=signals.over)

    with Signals(say, budget) as signals:
        try:
            session = Session(command, console, signals)
            if not begun:
                session.check_begins(RunDirectory(path))
            with (
                held as directory,
                session.held(directory, begun=begun, force=force),
                _resumable(path),
            ):
                begun = True
                page = session.run(directory, force=force)
        except InterruptedRunError:
            signals.leave()
    _show_best(session)
    _say_logs(session, path)
    console.print(f"done in {time.perf_counter() - started:.0f} s")
    _finish(page, session.errors)
    if session.missing:
        raise typer.Exit(3)


@contextlib.contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """Say how to go on where files cannot be written or read, as on a full disk."""
    try:
        yield
    except UserError as error:
        if isinstance(error, UnavailableError) or not isinstance(error.__cause__, OSError):
            raise
        raise UserError(
            f"{error}; what its checkpoints hold is kept, and once there is a remedy, `jaxexp "
            f"resume {shlex.quote(str(path))}` goes on"
        ) from error


def _show_best(session: Session) -> None:
    """The table of the best trials."""
    from jaxexp.cli import tables

    if table := tables.summary(session.results):
        tables.wide(sys.stderr).print(table)


def _say_logs(session: Session, path: Path) -> None:
    """How to open what was written for other programs."""
    if session.command.log:
        from jaxexp.results import logs

        for kind in session.command.log:
            opened = logs.how_to_open(kind, RunDirectory(path).logs / kind)
            console.print(f"{kind}: {opened}", soft_wrap=True)


def _finish(page: Path, errors: Sequence[str]) -> None:
    """Say where the page is, and what on it could not be drawn or answered."""
    print(page)
    for error in errors:
        _say_error(error)
    if errors:
        raise typer.Exit(4)


def _say_interrupted(path: Path, sweeps: int, begun: bool, *, over: bool = False) -> None:
    """`over`: by the end of a budget."""
    what = "the budget is over" if over else "interrupted"
    if not begun:
        console.print(f"{what} before anything was trained")
        return
    complete = len(list((path / "results").glob("*.nc")))
    name = shlex.quote(str(path))
    page = f"; to see them: jaxexp report {name}" if complete else ""
    console.print(
        f"{what}; resume with: jaxexp resume {name}\n"
        f"{complete} of {count(sweeps, 'sweep')} complete and saved{page}",
        soft_wrap=True,
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    0: done; 1: standard output cannot be written; 2: bad input; 3: a part of the run is not
    available here; 4: a question of a sweep file could not be answered; 124: the budget is over;
    130, 143: interrupted.
    """
    # Imports and tracing make many objects and few cycles: looking for these would take a tenth of
    # the time until the first step.
    gc.set_threshold(200_000, 20, 50)
    _guard(lambda: app(arguments, standalone_mode=True))


def _flushed(command: Callable[[], object]) -> None:
    """Run a command, and write all that it has printed."""
    try:
        command()
    except SystemExit:
        _flush()
        raise
    _flush()


def _flush() -> None:
    if sys.stdout:  # which may be closed
        sys.stdout.flush()


def _is_full() -> bool:
    """Whether it is standard output that cannot be written, not even an empty line."""
    try:
        print(flush=True)  # what has failed may have left the buffer
    except OSError:
        return True
    return False


def _say_error(error: str) -> None:
    console.print(f"error: {error}", style="red", soft_wrap=True)


def _leave(reason: str = "") -> NoReturn:
    """Exit where standard output cannot be written, so that Python does not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if reason:
        _say_error(f"standard output cannot be written ({reason})")
    sys.exit(1)


def _guard(command: Callable[[], object]) -> NoReturn:
    try:
        _flushed(command)
    except UserError as error:
        _say_error(str(error))
        sys.exit(3 if isinstance(error, UnavailableError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        _leave()
    except OSError as error:
        if not _is_full():
            raise
        _leave(error.strerror or str(error))
    except UnicodeEncodeError as error:
        if not sys.stdout or error.encoding != sys.stdout.encoding:
            raise
        lacking = error.object[error.start : error.end].encode("ascii", "backslashreplace").decode()
        _leave(f"{error.encoding} lacks {lacking}; PYTHONIOENCODING=utf-8 has it")
    sys.exit(0)
