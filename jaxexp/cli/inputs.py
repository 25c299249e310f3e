"""What a command is given to train on: files and folders, not yet read."""

from dataclasses import dataclass
from pathlib import Path

IMAGENET = "imagenet"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the examples and the weights are; sweeps make their problems of these.

    `data`: a folder of CSV files, or the places that come with jaxexp. `images`: a folder of
    images, or the embedded ones. `weights`: "imagenet", or a .pth file.

    >>> Inputs(data=Path("places"), quick=True).image_size
    224
    """

    data: Path | None = None
    images: Path | None = None
    weights: str = IMAGENET
    image_size: int = 224  # pixels, of the side of a square
    skip_broken: bool = False  # leave out images that cannot be read
    quick: bool = False  # some of the images, to try things out
