"""The images of a run: two classes, decoded to the size that each baseline needs.

`loading` reads all images of a folder (`folder`) or of the package (`photos`), decodes each
(`decode`) and keeps them on disk (`cache`). Nothing here imports JAX; Pillow and scikit-learn are
imported when images are read.
"""

import dataclasses
from pathlib import Path

import numpy as np

import jaxexp as jx
from jaxexp.reproduce.images.decode import BrokenImageError, Transform, read_image
from jaxexp.reproduce.images.loading import Images, ImageSplit, load_images
from jaxexp.reproduce.images.photos import draw

SPLITS = ("train", "validation", "test")
PIXELS = 64  # per side: what the report's boosted trees see, whatever --image-size says
QUICK_IMAGES = 320  # at most, in each split of a quick run


def middle() -> Transform:
    """The middle of an image, which the boosted trees see."""
    return Transform(224, crop=PIXELS)


def stretched(size: int) -> Transform:
    """Resize to a square, whatever the aspect ratio."""
    return Transform((size, size))


def cropped(size: int) -> Transform:
    """torchvision's preprocessing for its weights, scaled from 224 (and 256) pixels to `size`."""
    return Transform(round(size * 256 / 224), crop=size)


def load(inputs: jx.Inputs, transform: Transform) -> Images:
    """The images of a run; a quick run gets a sample of them.

    Raises UserError if images cannot be read, or are not of exactly two classes.
    """
    with jx.counting("decoding images") as progress:
        images = load_images(
            inputs.images, transform, skip_broken=inputs.skip_broken, progress=progress
        )
    _check_classes(images.source, images.classes)
    return _thin(images) if inputs.quick else images


def picture(folder: str, name: str, side: int = 320) -> np.ndarray | None:
    """One image to show: uint8 [H, W, 3], at most `side` pixels each way; None if it is gone.

    `folder` and `name` come from a run's results: the attribute `images` ("" for the embedded
    images) and the coordinate `test_file`.
    """
    try:
        image = read_image(Path(folder, name)) if folder else draw(name)
    except (BrokenImageError, ImportError, ValueError):  # or a missing library, an unknown name
        return None
    image.thumbnail((side, side))
    return np.asarray(image)


def _check_classes(source: str, classes: tuple[str, ...]) -> None:
    if len(classes) != 2:
        raise jx.UserError(
            f"{source}: {len(classes)} classes ({', '.join(classes[:10])}), expected two: section "
            "7 is binary classification"
        )


def _step(n: int) -> int:
    return -(-n // QUICK_IMAGES)


def _thin(images: Images) -> Images:
    """Every k-th image: images are sorted by class, so each class keeps its share."""

    def thin(split: ImageSplit) -> ImageSplit:
        some = slice(None, None, _step(len(split.y_N)))
        return ImageSplit(split.x_NxHxWx3[some], split.y_N[some], split.files[some])

    return dataclasses.replace(
        images,
        train=thin(images.train),
        validation=thin(images.validation),
        test=thin(images.test),
        fingerprint=jx.digest(images.fingerprint, f"at most {QUICK_IMAGES}"),
    )
