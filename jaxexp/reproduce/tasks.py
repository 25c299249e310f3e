"""Tasks with two classes and one logit: a ResNet 18 on images, and a linear unit on vectors.

Examples are pairs: inputs, and labels (N,) int32 of 0 or 1. The probability of class 1 of each of
the inputs `data["shown"]` is a trained model's prediction "probability".

Shapes: N examples, B examples of a batch, H x W pixels, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.nn.mlp import uniform_rows
from jaxexp.nn.resnet import ResNet, resnet
from jaxexp.reproduce.trials import ImageTrial
from jaxexp.spec.padding import choose
from jaxexp.spec.trial import Trial
from jaxexp.training.step import Data, Examples, Metrics, PyTree


@dataclass(frozen=True)
class BinaryTask:
    """What the tasks share: a subclass adds `init` and `logits`."""

    evaluation_batch: int = 32

    def logits(
        self, params: PyTree, state: PyTree, x_B: Array, weight_B: Array, *, train: bool
    ) -> tuple[Array, PyTree]:
        """The logit of class 1 of each example, (B,), and the new state."""
        raise NotImplementedError

    def apply(
        self, trial: Trial, params: PyTree, state: PyTree, batch: Examples, weight_B: Array,
        *, train: bool, noise: Any = 0,
    ) -> tuple[Metrics, PyTree]:  # fmt: skip
        """Cross entropy (nats) and correctness (0 or 1) of each example, and the new state."""
        x_B, y_B = batch
        logit_B, new = self.logits(params, state, x_B, weight_B, train=train)
        return binary_cross_entropy(logit_B, y_B), new

    def predictions(self, trial: Trial, params: PyTree, state: PyTree, data: Data) -> Metrics:
        """The probability of class 1 of each of `data["shown"]`."""

        def probability(x_B: Array) -> Array:
            logit_B, _ = self.logits(params, state, x_B, jnp.ones(len(x_B)), train=False)
            return jax.nn.sigmoid(logit_B)

        return {"probability": in_batches(probability, data["shown"], self.evaluation_batch)}

    def gradient_norms(self, grads: PyTree) -> Array:
        """Squared L2 norm of the gradient of each kernel, (layers,), the head's last."""
        paths, _ = jax.tree_util.tree_flatten_with_path(grads)
        kernels = [(path[0].key == "fc", leaf) for path, leaf in paths if path[-1].key == "kernel"]
        ordered = sorted(kernels, key=lambda kernel: kernel[0])
        return jnp.stack([jnp.square(leaf).sum() for _, leaf in ordered])

    def crop(
        self, trial: Trial, params: PyTree, state: PyTree, norms_ExL: np.ndarray | None
    ) -> tuple[PyTree, PyTree, np.ndarray | None]:
        """Everything: no hyperparameter pads these models."""
        return params, state, norms_ExL


@dataclass(frozen=True)
class ImageTask(BinaryTask):
    """Images (N, H, W, 3) uint8 and a ResNet 18.

    `mean` and `deviation`, of red, green and blue in [0, 1], are those that the network expects.
    They become part of the state, beside the batch statistics: a saved model has them with it, and
    networks that expect others run the same compiled code. `data["weights"]`, parameters and batch
    statistics, are where a pretrained one starts.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    route: str = "lax"  # see `jaxexp.nn.conv`

    @property
    def model(self) -> ResNet:
        """The Flax module."""
        return resnet(18, outputs=1, route=self.route)

    def init(self, trial: Trial, key: Array, data: Data) -> tuple[PyTree, PyTree]:
        """Parameters and batch statistics; raises what `check` raises."""
        assert isinstance(trial, ImageTrial)
        self.check(trial, data)
        fresh = self.model.init(key, jnp.zeros((1, 32, 32, 3)), jnp.ones(1))
        scale = {"mean": jnp.array(self.mean), "deviation": jnp.array(self.deviation)}

        def start(pretrained: bool) -> tuple[PyTree, PyTree]:
            if not pretrained:
                return fresh["params"], {"batch_stats": fresh["batch_stats"], "scale": scale}
            params, stats = data["weights"]
            head = {"fc": fresh["params"]["fc"]}
            return {**params, **head}, {"batch_stats": stats, "scale": scale}

        return choose(trial.pretrained, start)

    def check(self, trial: ImageTrial, data: Data) -> None:
        """Raise UserError if the images are not those of the trial, or the weights are missing."""
        size = data["shown"].shape[1]
        if trial.image_size != size:
            raise UserError(f"image_size={trial.image_size}: the images have {size} pixels a side")
        if "weights" not in data and trial.pretrained is not False:
            raise UserError("pretrained=on: this problem has no weights to start from")

    def logits(
        self, params: PyTree, state: PyTree, x_B: Array, weight_B: Array, *, train: bool
    ) -> tuple[Array, PyTree]:
        """Of images (B, H, W, 3) uint8."""
        logit_Bx1, new = self.model.apply(
            {"params": params, "batch_stats": state["batch_stats"]},
            normalise(x_B, **state["scale"]),
            weight_B,
            train=train,
            mutable=["batch_stats"],
        )
        return logit_Bx1[:, 0], {**state, **new}


@dataclass(frozen=True)
class LinearTask(BinaryTask):
    """Vectors (N, F) float32 and one linear unit, initialised as `torch.nn.Linear`."""

    evaluation_batch: int = 1024

    def init(self, trial: Trial, key: Array, data: Data) -> tuple[PyTree, PyTree]:
        """A kernel (F,) and a bias; nothing else has a state."""
        features = data["shown"].shape[-1]
        kernel, bias = (
            uniform_rows(k, shape, features, 1)
            for k, shape in zip(jax.random.split(key), ((1, features), (1,)), strict=True)
        )
        return {"fc": {"kernel": kernel, "bias": bias}}, {}

    def logits(
        self, params: PyTree, state: PyTree, x_B: Array, weight_B: Array, *, train: bool
    ) -> tuple[Array, PyTree]:
        """Of vectors (B, F)."""
        return x_B @ params["fc"]["kernel"][0] + params["fc"]["bias"][0], state


def binary_cross_entropy(logit_B: Array, y_B: Array) -> Metrics:
    """-log sigmoid(±logit) in nats without overflow, and whether the logit's sign is right.

    A logit that is no number is wrong.
    """
    of_label_B = jnp.where(y_B == 1, logit_B, -logit_B)
    right_B = jnp.where(y_B == 1, logit_B > 0, logit_B <= 0)
    return {"loss": jax.nn.softplus(-of_label_B), "accuracy": right_B.astype(jnp.float32)}


def normalise(x_BxHxWx3: Array, mean: Any, deviation: Any) -> Array:
    """uint8 to float32 in [0, 1], less the mean (3,), by the deviation (3,)."""
    return (x_BxHxWx3.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(deviation)


def in_batches(function: Callable[[Array], Array], x_N: Array, size: int) -> Array:
    """`function` of (B, ...) to (B,), applied to all of (N, ...), so many at a time."""
    n = len(x_N)
    size = min(size, n)
    batches = -(-n // size)
    index_KxB = jnp.minimum(jnp.arange(batches * size), n - 1).reshape(batches, size)
    return jax.lax.map(lambda index_B: function(jnp.asarray(x_N)[index_B]), index_KxB).ravel()[:n]
