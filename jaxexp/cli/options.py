"""The options that commands share."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from jaxexp.base.errors import UserError
from jaxexp.cli.command import QUICK_EPOCHS
from jaxexp.cli.searching import BATCH, SAMPLERS
from jaxexp.spec.values import to_float

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with train.csv, validation.csv and test.csv, with the columns long, lat, "
        "country. Default: the European places that come with jaxexp.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run directory. Default: runs/NAME-DATE-TIME."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of initial weights and shuffles.")]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        min=1,
        help="Train every trial with N consecutive seeds, starting at --seed. Default: 6 in "
        "section 6 and 3 in section 7; 1 with --quick.",
    ),
]
RunSeeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", min=1,
        help="Train every trial with N consecutive seeds, starting at --seed.",
    ),
]  # fmt: skip
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=f"Try it out: at most {QUICK_EPOCHS} epochs per trial, fewer and smaller images.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE[,VALUE...]",
        help="Set a hyperparameter, or with several values make it an axis; width=64-32-16 is one "
        "value, a width for each of three layers. May be repeated.",
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
Space = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=DISTRIBUTION|VALUE",
        help="Search a hyperparameter: uniform(LOW,HIGH), loguniform(LOW,HIGH), "
        "integers(LOW,HIGH), optionally with ,log or ,step=N inside, choice(A,B) or A,B; append, "
        "for example, ' when optimizer=sgd' to search it only there. A single value fixes it. May "
        "be repeated.",
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        metavar="|".join(SAMPLERS),
        help="random and sobol draw points; halving and hyperband end all but the best early; in "
        "a population (pbt), the worst become copies of the best; optuna learns from each batch "
        "where to look next (needs jaxexp\\[optuna]).",
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(metavar="N", help="How many trials; hyperband's brackets decide this themselves."),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="With --sampler optuna: how many trials are suggested, and trained, at once. "
        f"Default: {BATCH}.",
    ),
]
PointSeeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        metavar="N",
        help="Train every point with N seeds of weights and shuffles, and compare points by their "
        "means. Not with pbt.",
    ),
]
SamplerSeed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Decides which points are drawn.")
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="METRIC",
        help="What trials are compared and ranked by, on the validation split: loss, or a metric "
        "of the task.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder with train/, val/ and test/, each with one folder of images for each of two "
        "classes. Default: images made from scikit-learn's photographs.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="imagenet|FILE.pth",
        help="Pretrained weights: those of ImageNet, downloaded once, or a state dict of "
        "torchvision's resnet18 with any last layer.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS", min=16, max=2048,
        help="Side of the square images. Default: 224, or 64 for scikit-learn's photographs.",
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
        help="Section of the report. Default: all, if the libraries for section 7 are installed.",
    ),
]


def seconds(written: str) -> float:
    """A duration in seconds.

    >>> seconds("90s"), seconds("30m"), seconds("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        made = to_float(written[:-1]) * units[written[-1:]]
    except (ValueError, KeyError):
        made = 0.0
    if not 0 < made <= threading.TIMEOUT_MAX:  # of a timer
        raise UserError(
            f"--budget {written!r}: expected a duration as in 90s, 30m or 2h, of at most "
            f"{threading.TIMEOUT_MAX:.0f}s"
        )
    return made


def gigabytes(written: str) -> float:
    """Gigabytes, of memory.

    >>> gigabytes("1.5")
    1.5
    """
    try:
        made = to_float(written)
    except ValueError:
        made = 0.0
    if made <= 0:
        raise UserError(f"--memory {written!r}: expected gigabytes, a number above 0")
    return made


Memory = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        parser=gigabytes,
        help="Memory that a run may use. Default: what is free.",
    ),
]
Every = Annotated[
    float,
    typer.Option(
        "--checkpoint-every", metavar="SECONDS", min=0, help="How often a checkpoint is written."
    ),
]
CheckpointsAt = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="LOCATION",
        help="Where checkpoints are kept: a folder, or a URL such as s3://bucket/run. Default: in "
        "the run directory.",
    ),
]
Devices = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Use N devices. Default: all.")
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Train on every node of a Ray cluster: auto for the cluster of this machine, "
        "HOST:PORT or ray://HOST:PORT (needs jaxexp\\[cluster]).",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="DURATION",
        parser=seconds,
        help="End within this time, such as 90s, 30m or 2h, with everything saved for "
        "`jaxexp resume` and with exit status 124.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the run in --out.")]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="KIND",
        help="Also write each trial's hyperparameters and curves for tensorboard, mlflow or wandb "
        "into the run directory (needs jaxexp\\[log]). May be repeated.",
    ),
]
Drawing = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        metavar="FILE.png|svg",
        help="Draw into a file what more or fewer programs would cost: training, with its padding, "
        "and compiling.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Compile for tpu-v5e-1, tpu-v5e-4, tpu-v6e-1 or tpu-v6e-4 (needs jaxexp\\[tpu]), for "
        "a100, a100-8, h100 or h100-8 (needs jaxexp\\[gpu]), without having one. With --nodes, "
        "nothing is compiled.",
    ),
]
