"""The options that commands share."""

import math
import threading
from pathlib import Path
from typing import Annotated

import typer

from jaxexp.base.errors import UserError
from jaxexp.cli.command import QUICK_EPOCHS
from jaxexp.cli.searching import BATCH, SAMPLERS

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with train.csv, validation.csv and test.csv, columns long, lat, country. "
        "The embedded European places, if not given.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run directory; runs/NAME-DATE-TIME if not given."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of initial weights and shuffles.")]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        min=1,
        help="Train every trial with N seeds, from --seed on: 6 in section 6 and 3 in section 7, "
        "if not given; 1 with --quick.",
    ),
]
RunSeeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", min=1, help="Train every trial with N seeds, from --seed on."
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=f"At most {QUICK_EPOCHS} epochs per trial, fewer and smaller images: to try it out.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE[,VALUE...]",
        help="Set a hyperparameter, or make it an axis by several values; width=64-32-16 is one "
        "value, a width for each of three layers. May be given more than once.",
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
        "integers(LOW,HIGH), with ,log or ,step=N inside, choice(A,B) or A,B; with "
        "' when optimizer=sgd' after it, only there. One value fixes it. May be given more than "
        "once.",
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        metavar="|".join(SAMPLERS),
        help="Points at random or of a Sobol sequence; halving and hyperband end all but the best "
        "early; of a population (pbt), the worst become copies of the best; optuna learns from "
        "each batch where to look next (needs jaxexp\\[optuna]).",
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="How many trials; the brackets of hyperband decide it themselves."
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"With --sampler optuna: how many trials are suggested, and trained, at once; {BATCH} "
        "if not given.",
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
        help="By which trials are compared and ranked: loss, or one of the task's, on the "
        "validation split.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder with train/, val/ and test/, each with a folder of images for each of two "
        "classes. Images made from scikit-learn's photographs, if not given.",
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
        help="Side of the square images; 224 if not given, 64 for scikit-learn's.",
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
        help="Section of the report; all of it, if the libraries of section 7 are installed.",
    ),
]


def seconds(written: str) -> float:
    """A duration in seconds.

    >>> seconds("90s"), seconds("30m"), seconds("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        made = float(written[:-1]) * units[written[-1:]]
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
        made = float(written)
    except ValueError:
        made = 0.0
    if not 0 < made < math.inf:
        raise UserError(f"--memory {written!r}: expected gigabytes, a number above 0")
    return made


Memory = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        parser=gigabytes,
        help="Memory that a run may take; what is free, if not given.",
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
        help="Where checkpoints are kept: a folder, or a URL such as s3://bucket/run; in the run "
        "directory, if not given.",
    ),
]
Devices = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Use N devices; all, if not given.")
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Train on every node of a Ray cluster: auto for the one of this machine, HOST:PORT "
        "or ray://HOST:PORT (needs jaxexp\\[cluster]).",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="DURATION",
        parser=seconds,
        help="End after 90s, 30m or 2h with everything saved, for `jaxexp resume`; the exit status "
        "is then 124.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the run that --out holds.")]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="KIND",
        help="Write each trial's hyperparameters and curves for tensorboard, mlflow or wandb, too, "
        "into the run directory (needs jaxexp\\[log]). May be given more than once.",
    ),
]
Drawing = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        metavar="FILE.png|svg",
        help="Draw into a file what more or fewer programs would take: training with its padding, "
        "and compiling.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Compile for tpu-v5e-1, tpu-v5e-4, tpu-v6e-1 or tpu-v6e-4 (needs jaxexp\\[tpu]), for "
        "a100, a100-8, h100 or h100-8 (needs jaxexp\\[gpu]), without having one; with --nodes, "
        "nothing is compiled.",
    ),
]
