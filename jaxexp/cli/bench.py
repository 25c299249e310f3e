"""The command that times jaxexp beside its peers."""

from pathlib import Path
from typing import Annotated

import typer

from jaxexp.base.errors import UserError
from jaxexp.cli.benchmarks import benchmark
from jaxexp.cli.command import Command, plan_stage, stages
from jaxexp.cli.inputs import Inputs, check_read
from jaxexp.cli.options import (
    Data,
    Settings,
)  # fmt: skip
from jaxexp.cli.starting import parse_settings

OF_GRID = {"data", "trials", "seeds", "epochs", "width", "peers"}
OF_OTHERS = {  # what is timed instead, and the options of it
    "vision": {"images"},
    "study": {"quick"},
    "cross_validation": {"data", "quick"},
    "searches": {"data", "quick"},
    "on_cluster": {"quick"},
    "profiled": {"data", "settings"},
}


def bench(
    ctx: typer.Context,
    data: Data = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials: learning rates × seeds.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Different seeds among the trials.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Timed epochs of jaxexp.")] = 5,
    width: Annotated[int, typer.Option(min=1, help="Units of each hidden layer.")] = 16,
    peers: Annotated[bool, typer.Option(help="Also time PyTorch, if installed.")] = True,
    vision: Annotated[
        bool,
        typer.Option("--vision", help="Time a ResNet 18 and decoding against torchvision instead."),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --vision: decode the images of this folder, laid out as for `run`. Default: "
            "photographs made for this purpose.",
        ),
    ] = None,
    study: Annotated[
        bool,
        typer.Option(
            "--optuna",
            help="Time an Optuna study instead, against Optuna's own loop with PyTorch and "
            "scikit-learn.",
        ),
    ] = False,
    cross_validation: Annotated[
        bool,
        typer.Option(
            "--sklearn",
            help="Time a cross-validated search instead, against scikit-learn's GridSearchCV.",
        ),
    ] = False,
    searches: Annotated[
        bool,
        typer.Option(
            "--searches",
            help="Compare halving, Hyperband and population-based training with random search "
            "instead: on digits, and with --data also on those places.",
        ),
    ] = False,
    profiled: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME_OR_FILE",
            help="Trace the training step of a sweep instead, and list its operations.",
        ),
    ] = None,
    settings: Settings = None,
    on_cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Time a grid on a cluster of two nodes on this machine instead, against Ray Tune.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A small part of a comparison, to see that it runs."),
    ] = False,
) -> None:
    """Time a grid of learning rates and seeds against PyTorch, listing compilation separately.

    The peers are the report's way (a DataLoader, one trial after another) and the fastest ways that
    PyTorch offers: resident tensors, torch.func.vmap with and without torch.compile, several
    processes.

    jaxexp bench --trials 16 --epochs 2
    """
    _check(ctx)
    if profiled is not None:
        _bench_profile(profiled, settings or [], data)
        return
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


def _check(ctx: typer.Context) -> None:
    """Raise UserError for options that what is timed does not have."""
    options = {str(p.name): "/".join([*p.opts, *p.secondary_opts]) for p in ctx.command.params}
    sources = {name: ctx.get_parameter_source(name) for name in options}
    given = [name for name, own in sources.items() if own and own.name == "COMMANDLINE"]
    instead = [name for name in OF_OTHERS if name in given]
    allowed = {instead[0], *OF_OTHERS[instead[0]]} if instead else OF_GRID
    for name in given:
        if name not in allowed:
            having = " or ".join(options[kind] for kind, own in OF_OTHERS.items() if name in own)
            expected = f"without {options[instead[0]]}" if instead else f"with {having}"
            raise UserError(f"{options[name]}: expected {expected}")


def _bench_profile(sweep: str, settings: list[str], data: Path | None) -> None:
    """Profile a step of a sweep."""
    command = Command(
        sweeps=(sweep,),
        title="",
        settings=parse_settings(settings),
        devices=1,
        inputs=Inputs(data=data),
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
