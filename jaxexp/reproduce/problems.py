"""The problems of section 7, and what their results say about the images."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxexp as jx
from jaxexp.reproduce import backbone
from jaxexp.reproduce.backbone import MEAN, STD, Backbone, Splits
from jaxexp.reproduce.images import SPLITS, cropped, load, middle, stretched
from jaxexp.reproduce.images.decode import Transform
from jaxexp.reproduce.images.loading import Images, ImageSplit
from jaxexp.reproduce.places import label_entropy
from jaxexp.reproduce.tasks import ImageTask, LinearTask


def scratch(inputs: jx.Inputs) -> jx.Problem:
    """Images resized to a square, scaled to [0, 1], for a ResNet 18."""
    transform = stretched(inputs.image_size)
    return _on_images(inputs, transform, ImageTask())


def fine_tuning(inputs: jx.Inputs) -> jx.Problem:
    """Images as the weights expect them, and the weights, for a pretrained ResNet 18.

    Raises UnavailableError if the weights cannot be had.
    """
    weights = backbone.load(inputs.weights)
    task = ImageTask(mean=MEAN, std=STD)
    return _on_images(inputs, cropped(inputs.image_size), task, weights)


def probing(inputs: jx.Inputs) -> jx.Problem:
    """The features that the frozen network makes of the images, for a linear unit.

    They are computed once: a second call in the same process reuses them. Raises UnavailableError
    if the weights cannot be had.
    """
    weights = backbone.load(inputs.weights)
    transform = cropped(inputs.image_size)
    images = load(inputs, transform)
    x_by_split, seconds = _features(images, weights)
    splits = {
        name: jx.Examples(x_NxF, getattr(images, name).y_N) for name, x_NxF in x_by_split.items()
    }
    seen = ImageTask(mean=MEAN, std=STD)
    attrs = _attributes(inputs, images, transform, seen, weights)
    attrs |= {"feature_seconds": seconds}
    return _problem(inputs, LinearTask(), images, splits, attrs, weights=weights)


def pixels(inputs: jx.Inputs) -> jx.Problem:
    """The pixels in the middle of each image as one vector, float32 from 0 to 255."""

    def flat(split: ImageSplit) -> jx.Examples:
        x_NxF = split.x_NxHxWx3.reshape(len(split.y_N), -1).astype(np.float32)
        return jx.Examples(x_NxF, split.y_N)

    images = load(inputs, middle())
    splits = {name: flat(getattr(images, name)) for name in SPLITS}
    attrs = _attributes(inputs, images, middle(), ImageTask())
    return _problem(inputs, LinearTask(), images, splits, attrs)


def check_pretrained(inputs: jx.Inputs) -> None:
    """Read the images and weights; raises UserError for any that cannot be used.

    Raises UnavailableError if ImageNet's weights cannot be had: the sweeps that need them are then
    left out, and the others run.
    """
    load(inputs, cropped(inputs.image_size))
    backbone.load(inputs.weights)


_made: dict[tuple[str, str], tuple[Splits, float]] = {}


def _features(images: Images, weights: Backbone) -> tuple[Splits, float]:
    """Features by split, and the seconds that they took; the latest are kept for reuse."""
    key = (images.fingerprint, weights.digest)
    if key not in _made:
        x_by_split = {name: getattr(images, name).x_NxHxWx3 for name in SPLITS}
        made = backbone.features(weights, x_by_split, _route())
        _made.clear()
        _made[key] = made
    return _made[key]


def _route() -> str:
    jx.devices()  # sets up JAX before anything asks for its backend
    return jx.nn.default_route()


def _on_images(
    inputs: jx.Inputs, transform: Transform, task: ImageTask, weights: Backbone | None = None
) -> jx.Problem:
    images = load(inputs, transform)
    splits = {
        name: jx.Examples((split := getattr(images, name)).x_NxHxWx3, split.y_N) for name in SPLITS
    }
    extra = {"weights": weights.tree} if weights else {}
    attrs = _attributes(inputs, images, transform, task, weights)
    return _problem(inputs, task, images, splits, attrs, extra, weights)


def _problem(
    inputs: jx.Inputs, task: ImageTask | LinearTask, images: Images, splits: dict[str, Any],
    attrs: Mapping[str, object], extra: Mapping[str, object] | None = None,
    weights: Backbone | None = None,
) -> jx.Problem:  # fmt: skip
    data = jx.Data(
        **splits,
        classes=images.classes,
        extra={"shown": splits["test"].x, **(extra or {})},
        coords={
            "image": (("image",), np.arange(len(images.test.y_N))),
            "test_file": (("image",), np.array(images.test.files)),
            "test_label": (("image",), images.test.y_N.astype(np.int16)),
        },
        attrs=attrs,
        notes=_notes(inputs, images),
    )
    fingerprint = jx.digest(images.fingerprint, weights.digest if weights else "")
    return jx.Problem(task, data.known_by(fingerprint))


def _attributes(
    inputs: jx.Inputs, images: Images, transform: Transform, task: ImageTask,
    weights: Backbone | None = None,
) -> dict[str, object]:  # fmt: skip
    seen = {**vars(transform), "mean": task.mean, "std": task.std}
    return {
        "data": images.source,
        "label_entropy": label_entropy(images.train.y_N),
        "images": "" if inputs.images is None else os.path.abspath(inputs.images),
        "image_size": transform.shape[0],
        "transform": json.dumps(seen),
        "weights": f"{inputs.weights} ({weights.digest})" if weights else "",
    }


def _notes(inputs: jx.Inputs, images: Images) -> list[str]:
    """What to know before believing the results."""
    notes = []
    if inputs.quick:
        described = ", ".join(f"{len(getattr(images, name).y_N)} {name}" for name in SPLITS)
        notes.append(f"a quick run, on some of the images alone ({described})")
    if images.skipped:
        shown = ", ".join(images.skipped[:5]) + (" …" if len(images.skipped) > 5 else "")
        shown = shown.encode(errors="replace").decode()  # file names can be any bytes
        notes.append(f"{len(images.skipped)} broken images are left out: {shown}")
    return notes
