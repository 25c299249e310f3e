"""The command line."""

import gc
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias

import typer
from typer.core import TyperGroup

from jaxexp import __version__
from jaxexp.base.errors import UserError
from jaxexp.base.words import capitalised
from jaxexp.cli import begun, browse, drawing, library
from jaxexp.cli.bench import bench
from jaxexp.cli.command import Command, plan_stage, stages
from jaxexp.cli.exits import guarded
from jaxexp.cli.inputs import IMAGENET, check_read
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
from jaxexp.cli.searching import Search
from jaxexp.cli.sections import asked_sections, check_inputs, inputs_of, seeds_of
from jaxexp.cli.starting import location, pairs_of, parse_settings, start
from jaxexp.reproduce.report import SECTIONS, SOURCE

Click: TypeAlias = Any  # a context, command or parameter: typer keeps their types to itself


class _Group(TyperGroup):
    """The commands; help names no type for flags, and fills its lines."""

    def get_params(self, ctx: Click) -> list[Click]:
        """Its own options."""
        return _flags_without_type(super().get_params(ctx))

    def get_command(self, ctx: Click, cmd_name: str) -> Click:
        """A command by name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _flags_without_type(command.get_params(ctx))
            paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
            command.help = "\n\n".join(part.replace("\n", " ") for part in paragraphs)
        return command


def _flags_without_type(parameters: list[Click]) -> list[Click]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


NAMES = {"list_sweeps": "list"}  # of commands whose functions are called otherwise
app = typer.Typer(
    cls=_Group,
    help="Train whole grids of small networks at once: vectorized sweeps in JAX and Flax.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    sections = asked_sections(section)
    command = Command(
        sweeps=tuple(name for one in sections for name in SECTIONS[one].sweeps),
        title=" · ".join(SECTIONS[one].title for one in sections),
        summary=" ".join(SECTIONS[one].summary for one in sections)
        + " Each section asks one question of a published report, answers it from this run, and "
        f"quotes the report's own figure. The report is {SOURCE}.",
        reference="The report",
        settings=parse_settings(settings or [], seed, seeds),
        devices=devices,
        cluster=cluster,
        seed=seed,
        seeds=seeds_of(sections, seeds, quick),
        quick=quick,
        inputs=inputs_of(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
        checkpoints=location(checkpoints),
        log=tuple(dict.fromkeys(log or ())),
    )
    check_inputs(command.inputs, sections)
    start(command, "reproduce", out, force=force, budget=budget)


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
    """Run one sweep, by name or from your own Python file.

    jaxexp run learning_rate --set epochs=20 --set learning_rate=0.01,0.003
    """
    if sweep == "reproduce":
        raise UserError("reproduce is a command, not a sweep: use `jaxexp reproduce`")
    name = Path(sweep).stem
    command = Command(
        sweeps=(str(Path(sweep).resolve()) if sweep.endswith(".py") else sweep,),
        title=_title(sweep),
        settings=parse_settings(settings or [], seed, seeds),
        programs=programs,
        memory=memory,
        devices=devices,
        cluster=cluster,
        seed=seed,
        seeds={} if seeds is None else {name: seeds},
        quick=quick,
        inputs=inputs_of(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
        checkpoints=location(checkpoints),
        log=tuple(dict.fromkeys(log or ())),
    )
    start(command, name, out, force=force, budget=budget)


@app.command()
def search(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help="A sweep (see `jaxexp list`) or a file, for its base trial, task and data.",
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
    """Search a space of hyperparameters instead of the axes of a sweep.

    The trials train like those of a grid, and their run directory is like any other.

    jaxexp search learning_rate --trials 32 --set learning_rate='loguniform(1e-4,1)' --set depth=4
    """
    if sweep == "reproduce":
        raise UserError("reproduce is a command, not a sweep: expected one of `jaxexp list`")
    name = Path(sweep).stem
    settings = {key: [written] for key, written in pairs_of(space or []).items()}
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
        inputs=inputs_of(data, images, weights, image_size, skip_broken, quick),
        checkpoint_every=checkpoint_every,
        checkpoints=location(checkpoints),
        log=tuple(dict.fromkeys(log or ())),
    )
    start(command, name, out, force=force, budget=budget)


@app.command()
def plan(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help="A sweep, a file, or `reproduce` for the whole report.",
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
            help="Use N devices, per node. Default: all.",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Plan for N machines; with --target, for that hardware, compiling nothing.",
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
    """Show how a sweep would run, without training anything.

    Shows which trials share a compiled program and why, the share of arithmetic that is padding,
    where each program runs, and about how long everything takes. With --target, compiles each
    program for hardware that need not be present, and shows what it would need there.

    jaxexp plan depth_width --set seed=0,1,2,3

    jaxexp plan depth_width --target tpu-v5e-4

    jaxexp plan depth_width --nodes 64 --devices-per-node 8 --target h100

    jaxexp plan depth_width --figure programs.png
    """
    sweeps: tuple[str, ...] = (sweep,)
    several = {} if seeds is None else {Path(sweep).stem: seeds}
    if sweep == "reproduce":
        sections = asked_sections(section)
        sweeps = tuple(name for one in sections for name in SECTIONS[one].sweeps)
        several = seeds_of(sections, seeds, quick)
    elif section is not None:
        raise UserError(f"--section {section}: expected with `jaxexp plan reproduce` alone")
    command = Command(
        sweeps=sweeps,
        title="",
        settings=parse_settings(settings or [], seed, seeds),
        programs=programs,
        memory=memory,
        devices=devices,
        nodes=nodes,
        cluster=cluster,
        seed=seed,
        seeds=several,
        quick=quick,
        inputs=inputs_of(data, images, weights, image_size, skip_broken, quick),
    )
    every = stages(command.sources())
    planned_stages = [s for s in every if s[0].estimate is None]
    if not planned_stages:
        name = every[0][0].sweep.name
        raise UserError(f"{name}: another library fits its models; there is nothing to plan")
    if figure is not None:
        drawing.check(figure, len(planned_stages))
    if sweep == "reproduce":
        check_inputs(command.inputs, sections)
    for stage in planned_stages:
        planned = plan_stage(stage, command, target)
        if sweep != "reproduce":
            check_read(command.inputs, stage[0].sweep.name)
        if figure is not None:
            drawing.draw(planned, figure)
        print(planned)
        if target is not None and nodes is None:
            print(planned.compiled())


def list_sweeps() -> None:
    """List the sweeps that ship with jaxexp.

    jaxexp list
    """
    for name in library.names():
        trials = len(library.load(name).trials())
        words = "trial " if trials == 1 else "trials"
        print(f"{name:15s} {trials:3d} {words}   {library.describe(name)}")


for function in (*begun.COMMANDS, list_sweeps, bench, *browse.COMMANDS):
    app.command(NAMES.get(function.__name__))(function)


def _title(sweep: str) -> str:
    """Of a page: the name of one that ships as a title, that of a user's file as it is."""
    title = Path(sweep).stem.replace("_", " ")
    return title if sweep.endswith(".py") else capitalised(title)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    0: done; 1: standard output cannot be written; 2: bad input; 3: a part of the run is not
    available here; 4: a question of a sweep file could not be answered; 124: the budget is over;
    130, 143: interrupted.
    """
    # Imports and tracing make many objects and few cycles: looking for these would take a tenth of
    # the time until the first step.
    gc.set_threshold(200_000, 20, 50)
    guarded(lambda: app(arguments, standalone_mode=True))
