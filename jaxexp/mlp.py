"""Multi-layer perceptrons in Flax, feature-major, and the trial that describes one.

Activations are (units, batch) and kernels (out, in), as PyTorch stores them: on a CPU a batch of
such products runs a third faster than the other way round, and weights carry over as they are.
Shapes: B examples, C classes, F features, L hidden layers, W units of a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxexp.train import EVALUATION_BATCH, Data, Examples, Metrics, PyTree
from jaxexp.trial import MLPTrial, Trial

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
}
SINE_FREQUENCIES = np.arange(1, 11, dtype=np.float32) / 10  # 0.1, 0.2 … 1.0, radians per degree
FEATURES: dict[str, Callable[[Array], Array]] = {
    "raw": lambda x: x,
    "sines": lambda x: jnp.sin(jnp.concatenate([a * x for a in SINE_FREQUENCIES])),
}
UNROLLED_LAYERS = 16  # deeper stacks are a loop: 100 layers compile in seconds


def uniform_rows(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    """PyTorch's default for `Linear`: uniform in ±1/sqrt(fan_in), (out, in) or (out,).

    Every unit draws from a key of its own, so that its weights do not depend on its neighbours.
    """
    bound = 1 / np.sqrt(fan_in)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
    return jax.vmap(lambda k: jax.random.uniform(k, shape[1:], minval=-bound, maxval=bound))(keys)


class Affine(nn.Module):
    """kernel @ x + bias, with PyTorch's default initialisation."""

    units: int

    @nn.compact
    def __call__(self, x_FxB: Array) -> Array:
        """(F, B) to (units, B)."""
        fan_in = x_FxB.shape[0]
        kernel = self.param("kernel", uniform_rows, (self.units, fan_in), fan_in)
        bias = self.param("bias", uniform_rows, (self.units,), fan_in)
        return kernel @ x_FxB + bias[:, None]


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` over the examples of weight 1.

    The biased variance normalises and the unbiased one enters the running average (Ioffe and
    Szegedy, 2015, and PyTorch's documentation).
    """

    epsilon: float = 1e-5
    update: float = 0.1  # the share of a new batch in the running statistics

    @nn.compact
    def __call__(self, x_WxB: Array, weight_B: Array, *, train: bool) -> Array:
        """(W, B) to (W, B)."""
        units = x_WxB.shape[0]
        scale_W = self.param("scale", nn.initializers.ones, (units,))
        bias_W = self.param("bias", nn.initializers.zeros, (units,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (units,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (units,))
        mean_W, var_W = running_mean.value, running_var.value
        if train:
            n = weight_B.sum()
            mean_W = (x_WxB * weight_B).sum(1) / n
            var_W = (jnp.square(x_WxB - mean_W[:, None]) * weight_B).sum(1) / n
            if not self.is_initializing():
                unbiased_W = var_W * n / jnp.maximum(n - 1, 1)  # a single example has variance 0
                running_mean.value += self.update * (mean_W - running_mean.value)
                running_var.value += self.update * (unbiased_W - running_var.value)
        factor_W = scale_W * jax.lax.rsqrt(var_W + self.epsilon)
        return (x_WxB - mean_W[:, None]) * factor_W[:, None] + bias_W[:, None]


class Hidden(nn.Module):
    """A hidden layer: affine, batch norm where asked, activation, and a shortcut where it fits."""

    width: int
    activation: str
    batch_norm: bool
    residual: bool
    train: bool

    @nn.compact
    def __call__(self, x_FxB: Array, weight_B: Array) -> tuple[Array, None]:
        """(F, B) to (W, B); the None is what `nn.scan` wants."""
        h_WxB = Affine(self.width, name="affine")(x_FxB)
        if self.batch_norm:
            h_WxB = BatchNorm(name="norm")(h_WxB, weight_B, train=self.train)
        h_WxB = ACTIVATIONS[self.activation](h_WxB)
        return (x_FxB + h_WxB if self.residual else h_WxB), None


class MLP(nn.Module):
    """`depth` hidden layers of equal width, then a linear layer to the classes.

    The second to the last hidden layer are stacked: their parameters have a leading layer axis.
    """

    classes: int
    depth: int = 6
    width: int = 16
    activation: str = "relu"
    batch_norm: bool = False
    residual: bool = False
    features: str = "raw"
    train: bool = False

    @nn.compact
    def __call__(self, x_BxF: Array, weight_B: Array) -> Array:
        """Inputs (B, F) and the weight of each example to logits (C, B)."""
        options: dict[str, Any] = {
            "width": self.width,
            "activation": self.activation,
            "batch_norm": self.batch_norm,
            "train": self.train,
        }
        h_WxB = FEATURES[self.features](x_BxF.T)
        h_WxB, _ = Hidden(**options, residual=False, name="first")(h_WxB, weight_B)
        if (layers := self.depth - 1) > 0:
            stack = nn.scan(
                Hidden,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=layers,
                unroll=1 if self.is_initializing() or layers > UNROLLED_LAYERS else layers,
            )
            h_WxB, _ = stack(**options, residual=self.residual, name="hidden")(h_WxB, weight_B)
        return Affine(self.classes, name="last")(h_WxB)


@dataclass(frozen=True)
class Classification:
    """The task of telling `classes` classes apart with an MLP.

    Examples are pairs: inputs (N, F) float32 and labels (N,) int32. The trained model's class for
    each of the inputs `data["map"]`, (M, F), is its prediction "region", (M,) int16.
    """

    classes: int

    def module(self, trial: Trial, *, train: bool = False) -> MLP:
        """The Flax module of a trial."""
        assert isinstance(trial, MLPTrial)
        names = ("depth", "width", "activation", "batch_norm", "residual", "features")
        return MLP(self.classes, **{name: getattr(trial, name) for name in names}, train=train)

    def init(self, trial: Trial, key: Array) -> tuple[PyTree, PyTree]:
        """Parameters and batch statistics (empty without batch norm), at two inputs (F = 2)."""
        variables = self.module(trial).init(key, jnp.zeros((1, 2)), jnp.ones(1))
        return variables["params"], variables.get("batch_stats", {})

    def apply(
        self, trial: Trial, params: PyTree, state: PyTree, batch: Examples, weight_B: Array,
        *, train: bool,
    ) -> tuple[Metrics, PyTree]:  # fmt: skip
        """Cross entropy (nats) and correctness (0 or 1) of each example, and new statistics."""
        x_BxF, y_B = batch
        logits_CxB, new = self.module(trial, train=train).apply(
            {"params": params, "batch_stats": state}, x_BxF, weight_B, mutable=["batch_stats"]
        )
        return cross_entropy(logits_CxB, y_B), new.get("batch_stats", {})

    def predictions(self, trial: Trial, params: PyTree, state: PyTree, data: Data) -> Metrics:
        """The predicted class of each input of `data["map"]`."""
        x_MxF = data["map"]
        module = self.module(trial)

        def predict(x_F: Array) -> Array:
            variables = {"params": params, "batch_stats": state}
            logits_Cx1: Any = module.apply(variables, x_F[None], jnp.ones(1))
            return logits_Cx1.argmax(0)[0]

        classes_M = jax.lax.map(predict, x_MxF, batch_size=EVALUATION_BATCH)
        return {"region": classes_M.astype(jnp.int16)}

    def gradient_norms(self, grads: PyTree) -> Array:
        """Squared L2 norm of the kernel's gradient in each of the depth + 1 affine layers."""
        kernels = [grads["first"]["affine"]["kernel"][None], grads["last"]["kernel"][None]]
        if "hidden" in grads:
            kernels.insert(1, grads["hidden"]["affine"]["kernel"])
        return jnp.concatenate([jnp.square(kernel).sum((1, 2)) for kernel in kernels])


def cross_entropy(logits_CxB: Array, y_B: Array) -> Metrics:
    """Softmax cross entropy in nats, and whether the first of the largest logits is right."""
    classes_Cx1 = jnp.arange(logits_CxB.shape[0])[:, None]
    shifted_CxB = logits_CxB - jax.lax.stop_gradient(logits_CxB.max(0))
    # Picking the label's logit by comparison keeps scatters out of the gradient, and argmax as a
    # minimum over indices is a plain reduction, which XLA vectorizes on every backend.
    picked_B = jnp.where(classes_Cx1 == y_B, shifted_CxB, 0).sum(0)
    predicted_B = jnp.where(shifted_CxB == 0, classes_Cx1, len(classes_Cx1)).min(0)
    loss_B = jnp.log(jnp.exp(shifted_CxB).sum(0)) - picked_B
    return {"loss": loss_B, "accuracy": (predicted_B == y_B).astype(jnp.float32)}
