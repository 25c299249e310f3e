"""What a trained model of a run says of images that it has not seen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.reproduce.images.decode import BrokenImageError, Transform, read_image
from jaxexp.reproduce.tasks import ImageTask, in_batches
from jaxexp.results.models import Model


@dataclass(frozen=True)
class Prediction:
    """Of one image: the class that is the more probable, and its probability."""

    file: str
    label: str
    probability: float


def predict(model: Model, files: Sequence[Path]) -> list[Prediction]:
    """The predictions of a model for image files, prepared as its training images were.

    Raises UserError for a file that cannot be read, or a model of anything but images.
    """
    task, transform, classes = _prepare(model)
    x_NxHxWx3 = np.stack([_read(file, transform) for file in files])
    params, state = model.load()

    def probability(x_BxHxWx3: jax.Array) -> jax.Array:
        logit_B, _ = task.logits(params, state, x_BxHxWx3, jnp.ones(len(x_BxHxWx3)), train=False)
        return jax.nn.sigmoid(logit_B)

    of_class_1 = in_batches(probability, jnp.asarray(x_NxHxWx3), task.evaluation_batch).tolist()
    return [
        Prediction(str(file), classes[int(p > 0.5)], max(p, 1 - p))
        for file, p in zip(files, of_class_1, strict=True)
    ]


def export(model: Model, path: Path) -> None:
    """Write the weights as a state dict that torchvision's `resnet18(num_classes=1)` loads.

    Raises UserError if the model is not one, or the file cannot be written.
    """
    from jaxexp.nn import weights

    _prepare(model)
    params, state = model.load()
    weights.save_pth(path, params, state["batch_stats"])


def _prepare(model: Model) -> tuple[ImageTask, Transform, list[str]]:
    from jaxexp.nn.conv import default_route

    about = model.about["problem"]
    try:
        geometry = json.loads(about["transform"])
        classes = json.loads(about["classes"])
    except KeyError as error:
        raise UserError(
            f"{model.path}: a model of sweep {model.about['sweep']!r}, expected one of images"
        ) from error
    resize = geometry["resize"]
    transform = Transform(tuple(resize) if isinstance(resize, list) else resize, geometry["crop"])
    return ImageTask(route=default_route()), transform, classes


def _read(file: Path, transform: Transform) -> np.ndarray:
    if not file.is_file():
        raise UserError(f"{file}: no such file, expected an image")
    try:
        return transform(read_image(file))
    except BrokenImageError as error:
        raise UserError(f"{file}: {error}") from error
