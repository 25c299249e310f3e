"""The images of a run, as each baseline wants them: two classes, decoded to one size."""

import dataclasses
import hashlib

from jaxexp.base.errors import UserError
from jaxexp.cli.inputs import Inputs
from jaxexp.execution.progress import counting
from jaxexp.reproduce.decode import Transform
from jaxexp.reproduce.folder import scan
from jaxexp.reproduce.imagefolder import Images, ImageSplit, load_images
from jaxexp.reproduce.photos import photographs

SPLITS = ("train", "validation", "test")
PIXELS = 64  # of a side, as the report's boosted trees see them, whatever --image-size says
QUICK_IMAGES = 320  # at most, of each split


def middle() -> Transform:
    """What the boosted trees see of an image."""
    return Transform(224, crop=PIXELS)


def stretched(size: int) -> Transform:
    """Resize to a square, whatever the shape was."""
    return Transform((size, size))


def cropped(size: int) -> Transform:
    """torchvision's for its weights, 256 and 224 pixels, at another size."""
    return Transform(round(size * 256 / 224), crop=size)


def load(inputs: Inputs, transform: Transform) -> Images:
    """The images of a run, fewer of them where it is to be quick.

    Raises UserError for images that cannot be read, or unless they are of two classes.
    """
    with counting("decoding images") as progress:
        images = load_images(
            inputs.images, transform, skip_broken=inputs.skip_broken, progress=progress
        )
    _check_classes(images.source, images.classes)
    return _thin(images) if inputs.quick else images


def count(inputs: Inputs) -> int:
    """The number of training images, broken ones included, without reading any.

    Raises UserError unless there is a folder of two classes.
    """
    source = photographs() if inputs.images is None else scan(inputs.images)
    _check_classes(source.name, source.classes)
    n = sum(item.split == 0 for item in source.items)
    return -(-n // _step(n)) if inputs.quick else n


def _check_classes(source: str, classes: tuple[str, ...]) -> None:
    if len(classes) != 2:
        raise UserError(
            f"{source}: {len(classes)} classes ({', '.join(classes[:10])}), expected two: section "
            "7 tells two classes apart"
        )


def _step(n: int) -> int:
    return -(-n // QUICK_IMAGES)


def _thin(images: Images) -> Images:
    """Every k-th image: they are in the order of their classes, so that each keeps its share."""

    def thin(split: ImageSplit) -> ImageSplit:
        some = slice(None, None, _step(len(split.y_N)))
        return ImageSplit(split.x_NxHxWx3[some], split.y_N[some], split.files[some])

    return dataclasses.replace(
        images,
        train=thin(images.train),
        validation=thin(images.validation),
        test=thin(images.test),
        fingerprint=digest(images.fingerprint, f"at most {QUICK_IMAGES}"),
    )


def digest(*content: str | bytes) -> str:
    """Sixteen hexadecimal digits that tell contents apart."""
    parts = [part if isinstance(part, bytes) else part.encode() for part in content]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
