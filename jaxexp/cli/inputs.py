"""What a command is given to train on: files and folders, not yet read."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxexp.base.errors import UserError

IMAGENET = "imagenet"
PIXELS = 224  # per side of the images, as the weights expect them,
EMBEDDED_PIXELS = 64  # as those that come with jaxexp are; and as those of a quick run
NOT_GIVEN = {
    "data": (None,), "images": (None,), "weights": (IMAGENET,),
    "image_size": (PIXELS, EMBEDDED_PIXELS), "skip_broken": (False,),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the examples and the weights are; sweeps build their problems from these.

    `data`: a folder of CSV files, or the places that come with jaxexp. `images`: a folder of
    images, or the embedded ones. `weights`: "imagenet", or a .pth file.

    >>> Inputs(data=Path("places"), quick=True).image_size
    224
    """

    data: Path | None = None
    images: Path | None = None
    weights: str = IMAGENET
    image_size: int = PIXELS  # pixels, of the side of a square
    skip_broken: bool = False  # leave out images that cannot be read
    quick: bool = False  # some of the images, to try things out

    if not TYPE_CHECKING:  # to which this would be an attribute of any name

        def __post_init__(self) -> None:
            """Nothing has been read."""
            object.__setattr__(self, "_read", set())

        def __getattribute__(self, name: str) -> object:
            """An attribute; what a sweep never asks for was given in vain."""
            if name in NOT_GIVEN:
                vars(self)["_read"].add(name)
            return object.__getattribute__(self, name)


def check_read(inputs: Inputs, by: str) -> None:
    """Raise UserError for what is given, and has not been read by the sweep of this name."""
    refuse(inputs, NOT_GIVEN.keys() - vars(inputs)["_read"], by)


def refuse(inputs: Inputs, names: Set[str], by: str) -> None:
    """Raise UserError where one of these is given; `by` is what does not read them."""
    for name, unlike in NOT_GIVEN.items():
        value = vars(inputs)[name]
        if name in names and value not in unlike:
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise UserError(f"{option}: expected none, as {by} does not read it")
