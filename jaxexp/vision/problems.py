"""The problems of section 7: images of two classes, as each baseline wants them."""

import dataclasses
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxexp.conv import default_route
from jaxexp.data.decode import Transform
from jaxexp.data.images import Images, ImageSplit, load_images
from jaxexp.devices import devices
from jaxexp.engine import Problem
from jaxexp.errors import UnavailableError, UserError
from jaxexp.inputs import IMAGENET, Inputs
from jaxexp.places import label_entropy
from jaxexp.progress import counting
from jaxexp.train import Examples, PyTree
from jaxexp.vision.features import extract
from jaxexp.vision.tasks import ImageTask, LinearTask
from jaxexp.vision.trials import FEATURES

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue: of torchvision's weights
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
PIXELS = 64  # of a side, as the report's boosted trees see them, whatever --image-size says
QUICK_IMAGES = 320  # at most, of each split

SPLITS = ("train", "validation", "test")


def scratch(inputs: Inputs) -> Problem:
    """Images resized to a square, scaled to [0, 1], for a ResNet 18."""
    images = load(inputs, stretched(inputs.image_size))
    return _on_images(inputs, images, stretched(inputs.image_size), ImageTask(route=_route()))


def fine_tuning(inputs: Inputs) -> Problem:
    """Images as the weights expect them, and the weights, for a pretrained ResNet 18.

    Raises UnavailableError if the weights cannot be had.
    """
    weights = backbone(inputs)
    transform = cropped(inputs.image_size)
    task = ImageTask(mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION, route=_route())
    problem = _on_images(inputs, load(inputs, transform), transform, task, weights.digest)
    return dataclasses.replace(problem, data={**problem.data, "weights": weights.tree})


def probing(inputs: Inputs) -> Problem:
    """The features that the frozen network makes of the images, for a linear unit.

    They are computed once: a second call in one process finds them. Raises UnavailableError if
    the weights cannot be had.
    """
    weights = backbone(inputs)
    transform = cropped(inputs.image_size)
    images = load(inputs, transform)
    found = features(inputs, images, weights)
    task = ImageTask(mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION)
    attrs = _attributes(inputs, images, transform, task, weights.digest)
    return _problem(LinearTask(), images, found.splits, attrs | {"feature_seconds": found.seconds})


def pixels(inputs: Inputs) -> Problem:
    """The pixels of the middle of the images, in a row, float32 from 0 to 255."""
    transform = middle()
    images = load(inputs, transform)
    splits = {name: _flat(getattr(images, name)) for name in SPLITS}
    attrs = _attributes(inputs, images, transform, ImageTask())
    return _problem(LinearTask(), images, splits, attrs)


def check_pretrained(inputs: Inputs) -> None:
    """Read images and weights; raises UserError for any that cannot be used.

    ImageNet's weights are left for later: where they cannot be had, the sweeps that need them are
    missing, and the others run.
    """
    load(inputs, cropped(inputs.image_size))
    if inputs.weights != IMAGENET:
        backbone(inputs)


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

    Raises UserError unless they are of two classes.
    """
    with counting("decoding images") as progress:
        images = load_images(
            inputs.images, transform, skip_broken=inputs.skip_broken, progress=progress
        )
    if len(images.classes) != 2:
        raise UserError(
            f"{images.source}: {len(images.classes)} classes ({', '.join(images.classes[:10])}), "
            "expected two: section 7 tells two classes apart"
        )
    return _thin(images, QUICK_IMAGES) if inputs.quick else images


def _thin(images: Images, most: int) -> Images:
    """Every k-th image: they are in the order of their classes, so that each keeps its share."""

    def thin(split: ImageSplit) -> ImageSplit:
        some = slice(None, None, -(-len(split.y_N) // most))
        return ImageSplit(split.x_NxHxWx3[some], split.y_N[some], split.files[some])

    return dataclasses.replace(
        images,
        train=thin(images.train),
        validation=thin(images.validation),
        test=thin(images.test),
        fingerprint=_digest(images.fingerprint, f"at most {most}"),
    )


@dataclass(frozen=True, eq=False)
class Backbone:
    """Weights of a ResNet 18: parameters and batch statistics, and a digest of them."""

    tree: tuple[PyTree, PyTree]
    digest: str


def backbone(inputs: Inputs) -> Backbone:
    """The weights of a run, without a last layer that anybody would read.

    Raises UnavailableError if ImageNet's cannot be had, UserError if a file cannot be used.
    """
    if not inputs.trains:
        return Backbone(({}, {}), "")
    return _backbone(inputs.weights)


@functools.lru_cache(maxsize=1)
def _backbone(source: str) -> Backbone:
    from jaxexp import weights

    try:
        found = weights.load(source)
    except UserError as error:
        raise (UnavailableError(str(error)) if source == IMAGENET else error) from None
    if weights.depth_of(found) != 18:
        raise UserError(f"{source}: the weights of a ResNet 34, expected those of a ResNet 18")
    content = b"".join(name.encode() + found[name].tobytes() for name in sorted(found))
    params, stats = weights.to_flax(found)
    return Backbone((params, stats), _digest(content))


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features and labels by split, and the seconds that they took."""

    splits: dict[str, Examples]
    seconds: float


_features: dict[tuple[str, str], Features] = {}


def features(inputs: Inputs, images: Images, weights: Backbone) -> Features:
    """What the frozen network makes of all images, in evaluation mode, kept for this process."""
    splits = {name: getattr(images, name) for name in SPLITS}
    if not inputs.trains:
        zeros = {n: np.zeros((len(s.y_N), FEATURES), np.float32) for n, s in splits.items()}
        return Features({name: (zeros[name], split.y_N) for name, split in splits.items()}, 0.0)
    key = (images.fingerprint, weights.digest)
    if key not in _features:
        made, seconds = extract(
            weights.tree,
            {name: split.x_NxHxWx3 for name, split in splits.items()},
            (IMAGENET_MEAN, IMAGENET_DEVIATION),
            _route(),
        )
        _features.clear()  # one set is enough, and they may be large
        _features[key] = Features(
            {name: (made[name], split.y_N) for name, split in splits.items()}, seconds
        )
    return _features[key]


def _route() -> str:
    devices()  # sets JAX up, before anything asks it for its backend
    return default_route()


def _on_images(
    inputs: Inputs, images: Images, transform: Transform, task: ImageTask, digest: str = ""
) -> Problem:
    splits = {name: getattr(images, name) for name in SPLITS}
    data = {name: (split.x_NxHxWx3, split.y_N) for name, split in splits.items()}
    return _problem(task, images, data, _attributes(inputs, images, transform, task, digest))


def _problem(
    task: ImageTask | LinearTask, images: Images, splits: dict[str, Examples], attrs: dict[str, Any]
) -> Problem:
    return Problem(
        task=task,
        data={**splits, "shown": splits["test"][0]},
        prediction_dims={"probability": ("image",)},
        coords={
            "image": (("image",), np.arange(len(images.test.y_N))),
            "test_file": (("image",), np.array(images.test.files)),
            "test_label": (("image",), images.test.y_N.astype(np.int16)),
        },
        attrs=attrs,
    )


def _attributes(
    inputs: Inputs, images: Images, transform: Transform, task: ImageTask, digest: str = ""
) -> dict[str, Any]:
    counts = {name: len(getattr(images, name).y_N) for name in SPLITS}
    geometry = {**vars(transform), "mean": task.mean, "deviation": task.deviation}
    return {
        "data": images.source,
        "data_fingerprint": _digest(images.fingerprint, digest),
        "classes": json.dumps(images.classes),
        "examples": json.dumps(counts),
        "label_entropy": label_entropy(images.train.y_N),
        "images": "" if inputs.images is None else os.path.abspath(inputs.images),
        "image_size": transform.shape[0],
        "transform": json.dumps(geometry),
        "weights": digest,
        "notes": json.dumps(_notes(inputs, images, counts)),
    }


def _notes(inputs: Inputs, images: Images, counts: dict[str, int]) -> list[str]:
    """What to know before believing the results."""
    notes = []
    if inputs.quick:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        notes.append(f"a quick run, on some of the images alone ({told})")
    if images.skipped:
        shown = ", ".join(images.skipped[:5]) + (" …" if len(images.skipped) > 5 else "")
        notes.append(f"{len(images.skipped)} broken images are left out: {shown}")
    return notes


def _flat(split: ImageSplit) -> Examples:
    return split.x_NxHxWx3.reshape(len(split.y_N), -1).astype(np.float32), split.y_N


def _digest(*content: str | bytes) -> str:
    parts = [part if isinstance(part, bytes) else part.encode() for part in content]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
