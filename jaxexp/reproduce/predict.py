"""What a trained model of a run predicts for new images."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxexp as jx
from jaxexp.reproduce.images.decode import BrokenImageError, Transform, read_image
from jaxexp.reproduce.tasks import ImageTask, in_batches
from jaxexp.reproduce.trials import ImageTrial


def predict(model: jx.Model, files: Sequence[Path]) -> list[jx.Prediction]:
    """The predictions of a model for image files, prepared as its training images were.

    Raises UserError for a file that cannot be read, and for a model of anything but images.
    """
    task, transform, classes = _prepare(model)
    x_NxHxWx3 = np.stack([_read(file, transform) for file in files])
    variables = model.variables()

    def probability(x_BxHxWx3: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(task.predict(ImageTrial(), variables, x_BxHxWx3))

    size = task.evaluation_batch_size
    of_class_1 = in_batches(probability, jnp.asarray(x_NxHxWx3), size).tolist()
    return [
        jx.Prediction(str(file), classes[int(p > 0.5)], max(p, 1 - p))
        for file, p in zip(files, of_class_1, strict=True)
    ]


def export(model: jx.Model, path: Path) -> None:
    """Write the weights as a state dict that torchvision's `resnet18(num_classes=1)` loads.

    Raises UserError if the model is not one of images, or the file cannot be written.
    """
    _prepare(model)
    params, state = model.variables()
    jx.nn.weights.save_pth(path, params, state["batch_stats"])


def _prepare(model: jx.Model) -> tuple[ImageTask, Transform, list[str]]:
    about = model.about["attrs"]
    try:
        geometry = json.loads(about["transform"])
        classes = list(about["classes"])
    except KeyError as error:
        raise jx.UserError(
            f"{model.path}: a model of sweep {model.about['sweep']!r}, expected one of images"
        ) from error
    resize = geometry["resize"]
    transform = Transform(tuple(resize) if isinstance(resize, list) else resize, geometry["crop"])
    return ImageTask(), transform, classes


def _read(file: Path, transform: Transform) -> np.ndarray:
    if not file.is_file():
        raise jx.UserError(f"{file}: no such file, expected an image")
    try:
        return transform(read_image(file))
    except BrokenImageError as error:
        raise jx.UserError(f"{file}: {error}") from error
