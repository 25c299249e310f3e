"""Tasks with two classes and one logit: a ResNet 18 on images, and a linear unit on vectors.

Examples are `jx.Examples`: inputs, and labels (N,) int32 of 0 or 1. The prediction "probability" of
a trained model is the probability of class 1 of each of the inputs `data["shown"]`.

Shapes: N examples, B examples of a batch, H x W pixels, F features.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

import jaxexp as jx
from jaxexp.reproduce.trials import ImageTrial

PyTree: TypeAlias = Any  # of arrays: parameters, state, examples; Python has no type for it
Arrays: TypeAlias = Mapping[str, PyTree]  # the splits' examples, and extra arrays


@dataclass(frozen=True)
class BinaryTask(jx.Task):
    """What the tasks share: a subclass adds `init` and `logits`."""

    evaluation_batch_size: int = 32
    loss_unit = "nats"
    metrics = types.MappingProxyType({"accuracy": jx.Metric("higher")})
    prediction_dims = types.MappingProxyType({"probability": ("image",)})

    def logits(
        self, variables: jx.Variables, x_B: Array, mask_B: Array, *, train: bool
    ) -> tuple[Array, PyTree]:
        """The logit of class 1 of each example, (B,), and the new state."""
        raise NotImplementedError

    def apply(
        self, trial: jx.Trial, variables: jx.Variables, batch: jx.Examples, *, rng: Array,
        mask: Array, train: bool,
    ) -> jx.Outputs:  # fmt: skip
        """Cross entropy (nats) and correctness (0 or 1) of each example, and the new state."""
        logit_B, new = self.logits(variables, batch.x, mask, train=train)
        loss_B, right_B = binary_cross_entropy(logit_B, batch.y)
        return jx.Outputs(loss_B, metrics={"accuracy": right_B}, state=new)

    def predict(self, trial: jx.Trial, variables: jx.Variables, x: Array) -> Array:
        """The logit of class 1, (B,)."""
        return self.logits(variables, x, jnp.ones(len(x), bool), train=False)[0]

    def probabilities(self, prediction: Array) -> Array:
        """The probabilities of both classes, (B, 2)."""
        of_one_B = jax.nn.sigmoid(prediction)
        return jnp.stack([1 - of_one_B, of_one_B], axis=1)

    def predictions(
        self, trial: jx.Trial, variables: jx.Variables, data: Arrays
    ) -> dict[str, Array]:
        """The probability of class 1 of each of `data["shown"]`."""

        def probability(x_B: Array) -> Array:
            return jax.nn.sigmoid(self.predict(trial, variables, x_B))

        return {"probability": in_batches(probability, data["shown"], self.evaluation_batch_size)}

    def gradient_norms(self, grads: PyTree) -> Array:
        """Squared L2 norm of the gradient of each kernel, (layers,), the head's last."""
        paths, _ = jax.tree_util.tree_flatten_with_path(grads)
        kernels = [(path[0].key == "fc", leaf) for path, leaf in paths if path[-1].key == "kernel"]
        ordered = sorted(kernels, key=lambda kernel: kernel[0])
        return jnp.stack([jnp.square(leaf).sum() for _, leaf in ordered])


@dataclass(frozen=True)
class ImageTask(BinaryTask):
    """Images (N, H, W, 3) uint8 and a ResNet 18.

    `mean` and `std`, of red, green and blue in [0, 1], are those that the network expects. They are
    part of the state, like the batch statistics, so that a saved model contains them, and networks
    that expect other values run the same compiled code. A pretrained network starts from
    `data["weights"]`, its parameters and batch statistics.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    route: str | None = None  # how to convolve; by default, as suits the devices

    @property
    def model(self) -> "jx.nn.ResNet":
        """The Flax module."""
        return jx.nn.resnet(18, outputs=1, route=self.route or jx.nn.default_route())

    def init(self, trial: jx.Trial, rng: Array, data: Arrays) -> jx.Variables:
        """Parameters; as state, the batch statistics and the scale of the inputs."""
        assert isinstance(trial, ImageTrial)
        assert trial.image_size  # `check` has compared it with the images
        fresh = self.model.init(rng, jnp.zeros((1, 32, 32, 3)), jnp.ones(1))
        scale = {"mean": jnp.array(self.mean), "std": jnp.array(self.std)}
        if not trial.pretrained:
            state = {"batch_stats": fresh["batch_stats"], "scale": scale}
            return jx.Variables(fresh["params"], state)
        params, stats = data["weights"]
        head = {"fc": fresh["params"]["fc"]}
        return jx.Variables({**params, **head}, {"batch_stats": stats, "scale": scale})

    def check(self, trial: jx.Trial, data: jx.Data) -> None:
        """Raise UserError if the images are not those of the trial, or the weights are missing."""
        super().check(trial, data)
        assert isinstance(trial, ImageTrial)
        size = data.train.x.shape[1]
        if trial.image_size != size:
            raise jx.UserError(
                f"image_size={trial.image_size}: the images have {size} pixels a side"
            )
        if trial.pretrained and "weights" not in data.extra:
            raise jx.UserError("pretrained=on: this problem has no weights to start from")

    def logits(
        self, variables: jx.Variables, x_B: Array, mask_B: Array, *, train: bool
    ) -> tuple[Array, PyTree]:
        """The logits of images (B, H, W, 3) uint8, and the new state."""
        state = variables.state
        logit_Bx1, new = self.model.apply(
            {"params": variables.params, "batch_stats": state["batch_stats"]},
            normalise(x_B, **state["scale"]),
            mask_B,
            train=train,
            mutable=["batch_stats"],
        )
        return logit_Bx1[:, 0], {**state, **new}


@dataclass(frozen=True)
class LinearTask(BinaryTask):
    """Vectors (N, F) float32 and one linear unit, initialised like `torch.nn.Linear`."""

    evaluation_batch_size: int = 1024

    def init(self, trial: jx.Trial, rng: Array, data: Arrays) -> jx.Variables:
        """A kernel (1, F) and a bias (1,)."""
        features = data["train"].x.shape[-1]
        kernel, bias = (
            jx.nn.uniform_rows(k, shape, features, 1)
            for k, shape in zip(jax.random.split(rng), ((1, features), (1,)), strict=True)
        )
        return jx.Variables({"fc": {"kernel": kernel, "bias": bias}})

    def logits(
        self, variables: jx.Variables, x_B: Array, mask_B: Array, *, train: bool
    ) -> tuple[Array, PyTree]:
        """The logits of vectors (B, F), and the unchanged state."""
        head = variables.params["fc"]
        return x_B @ head["kernel"][0] + head["bias"][0], variables.state


def binary_cross_entropy(logit_B: Array, y_B: Array) -> tuple[Array, Array]:
    """-log sigmoid(±logit) in nats without overflow, and whether the logit's sign is right.

    A NaN logit counts as wrong.
    """
    of_label_B = jnp.where(y_B == 1, logit_B, -logit_B)
    right_B = jnp.where(y_B == 1, logit_B > 0, logit_B <= 0)
    return jax.nn.softplus(-of_label_B), right_B.astype(jnp.float32)


def normalise(
    x_BxHxWx3: Array, mean: Sequence[float] | Array, std: Sequence[float] | Array
) -> Array:
    """Scale uint8 to float32 in [0, 1], subtract the mean (3,), divide by the deviation (3,)."""
    return (x_BxHxWx3.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def in_batches(function: Callable[[Array], Array], x_N: Array, size: int) -> Array:
    """`function`, from (B, ...) to (B,), applied to all of (N, ...) in batches of `size`."""
    n = len(x_N)
    size = min(size, n)
    batches = -(-n // size)
    index_KxB = jnp.minimum(jnp.arange(batches * size), n - 1).reshape(batches, size)
    made_KxB: Array = jax.lax.map(lambda index_B: function(jnp.asarray(x_N)[index_B]), index_KxB)
    return made_KxB.ravel()[:n]
