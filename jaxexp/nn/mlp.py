"""Multi-layer perceptrons in Flax, feature-major.

Activations are (units, batch) and kernels (out, in), as PyTorch stores them: on a CPU a batch of
such products runs a third faster than the other way round, and weights carry over unchanged.

Trials of different shapes may share a program (see `jaxexp.spec.padding`). No other unit reads the
units past a trial's width, so their weights, which start at zero, keep gradients and moments of
zero; layers past its depth pass on their input. A trial whose layers differ in width is padded in
the same way if its program holds other shapes too; in a program of its own nothing is padded.

Shapes: B examples, C classes, F features, L hidden layers, W units of a layer.
"""

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxexp.nn.loops import Layers, first_layers
from jaxexp.nn.norm import BatchNorm
from jaxexp.nn.parameters import parameter
from jaxexp.spec.padding import Choice, Size, Traced, choose, largest, value
from jaxexp.spec.trial import MLPTrial
from jaxexp.training.shuffle import mix
from jaxexp.training.trees import PyTree

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
    "identity": lambda x: x,
}
SINE_FREQUENCIES = np.arange(1, 11, dtype=np.float32) / 10  # 0.1, 0.2 … 1.0, radians per degree
UNROLLED_LAYERS = 16  # deeper stacks are a loop: 100 layers compile in seconds


class Layer(NamedTuple):
    """What a layer has to know about its trial; stacked along the layers if they are scanned."""

    units: Traced  # of the trial; the program's units past these are padding
    inputs: Traced
    active: Traced  # False past the trial's depth
    word: Array  # random, new at every step


def uniform_rows(key: Array, shape: tuple[int, ...], fan_in: Traced, units: Traced) -> Array:
    """PyTorch's default for `Linear`: uniform in ±1/sqrt(fan_in), (out, in) or (out,).

    Every unit draws from a key of its own, and a longer row begins with the draws of a shorter one,
    so that padding (zero past `units` and `fan_in`) changes no weight.
    """
    bound = 1 / jnp.sqrt(jnp.float32(fan_in))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
    rows = jax.vmap(lambda k: jax.random.uniform(k, shape[1:], minval=-bound, maxval=bound))(keys)
    return jnp.where(_inside(shape, units, fan_in), rows, 0)


def _inside(shape: tuple[int, ...], units: Traced, inputs: Traced) -> Array:
    """Which elements of a kernel (out, in) or a bias (out,) belong to the trial."""
    inside = jnp.arange(shape[0]) < units
    return inside if len(shape) == 1 else inside[:, None] & (jnp.arange(shape[1]) < inputs)


@jax.custom_vjp
def product(kernel_OxF: Array, x_FxB: Array) -> Array:
    """kernel @ x, (O, B), with a gradient of x that a CPU computes as fast as the product itself.

    XLA would fold the transposition into the product, and then compute it by a slower route: for a
    layer of 16 units and a batch of 256, in 4.9 instead of 2.0 µs. The barrier keeps them apart.
    """
    return kernel_OxF @ x_FxB


def _product_forward(kernel_OxF: Array, x_FxB: Array) -> tuple[Array, tuple[Array, Array]]:
    return kernel_OxF @ x_FxB, (kernel_OxF, x_FxB)


def _product_backward(saved: tuple[Array, Array], dy_OxB: Array) -> tuple[Array, Array]:
    kernel_OxF, x_FxB = saved
    transposed_FxO = jax.lax.optimization_barrier(kernel_OxF.T)
    return dy_OxB @ x_FxB.T, transposed_FxO @ dy_OxB


product.defvjp(_product_forward, _product_backward)


class Affine(nn.Module):
    """kernel @ x + bias, with PyTorch's default initialisation."""

    units: int
    padded: bool = False  # whether some units or inputs are not part of the trial

    @nn.compact
    def __call__(self, x_FxB: Array, units: Traced, inputs: Traced) -> Array:
        """(F, B) to (units, B), where only the first `inputs` and `units` belong to the trial."""
        shape = (self.units, x_FxB.shape[0])
        kernel = parameter(self, "kernel", uniform_rows, shape, inputs, units)
        bias = parameter(self, "bias", uniform_rows, shape[:1], inputs, units)
        if self.padded:  # zero already, but padding must never be read
            kernel = jnp.where(_inside(shape, units, inputs), kernel, 0)
            bias = jnp.where(_inside(shape[:1], units, inputs), bias, 0)
        return product(kernel, x_FxB) + bias[:, None]


def dropout(h_WxB: Array, rate: Traced, word: Array) -> Array:
    """Zero each activation with probability `rate`, and scale the others by 1 / (1 - rate).

    What is dropped is computed from (word, unit, example) alone, so padding does not change it.
    """
    units, examples = (jnp.arange(n, dtype=jnp.uint32) for n in h_WxB.shape)
    words_WxB = mix(mix(units ^ word)[:, None] ^ examples)
    threshold = (jnp.float32(rate) * 2.0**32).astype(jnp.uint32)
    return jnp.where(words_WxB >= threshold, h_WxB / (1 - rate), 0)


class Hidden(nn.Module):
    """A hidden layer: affine, optional batch norm, activation, dropout, optional shortcut."""

    width: int  # of the program
    activation: str | Choice[str]
    batch_norm: bool | Choice[bool]
    residual: bool | Choice[bool]
    dropout: Traced
    padded: bool  # whether units or inputs past those of the trial must be kept at zero
    skipped: bool  # whether the layer may lie past the trial's depth
    train: bool

    @nn.compact
    def __call__(self, x_FxB: Array, mask_B: Array, layer: Layer) -> tuple[Array, None]:
        """(F, B) to (W, B); `nn.scan` expects the None."""
        h_WxB = Affine(self.width, self.padded, name="affine")(x_FxB, layer.units, layer.inputs)
        optional = isinstance(self.batch_norm, Choice)
        if optional or self.batch_norm:
            norm = BatchNorm(channel_axis=0, padded=self.padded or optional, name="norm")
            normed = choose(self.batch_norm, lambda on: layer.units if on else 0)
            normed_WxB = norm(h_WxB, mask_B, normed, train=self.train)
            plain_WxB = h_WxB
            h_WxB = choose(self.batch_norm, lambda on: normed_WxB if on else plain_WxB)
        h_WxB = choose(self.activation, lambda name: ACTIVATIONS[name](h_WxB))
        if self.train and not is_zero(self.dropout):
            h_WxB = dropout(h_WxB, self.dropout, layer.word)
        h_WxB = choose(self.residual, lambda on: x_FxB + h_WxB if on else h_WxB)
        return (jnp.where(layer.active, h_WxB, x_FxB) if self.skipped else h_WxB), None


def is_zero(rate: Traced) -> bool:
    """Whether a rate is known to be 0 when tracing, so that nothing need be computed for it."""
    return isinstance(rate, float) and rate == 0


class _Options(TypedDict):
    """What all hidden layers have in common."""

    activation: str
    batch_norm: bool
    dropout: float
    train: bool


class MLP(nn.Module):
    """Hidden layers, then a linear layer to the classes.

    The hidden layers from the second to the last are stacked as "hidden": their parameters have a
    leading layer axis. If `trial.width` is a tuple, each of them is a module of its own size:
    "hidden_1" and so on. `trial` may have padded sizes and choices.
    """

    trial: MLPTrial
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    train: bool = False

    @nn.compact
    def __call__(self, x_BxF: Array, mask_B: Array, word: Traced = 0) -> Array:
        """The logits (C, B) of inputs (B, F), given the mask of the examples and a random word."""
        trial = self.trial
        h_FxB, inputs = self._features(x_BxF.T)
        depth, count = value(trial.depth), largest(trial.depth)
        widths_L = for_each_layer(value(trial.width), count)
        words_L = mix(jnp.arange(count, dtype=jnp.uint32) ^ jnp.asarray(word, jnp.uint32))
        options: _Options = {
            "activation": trial.activation,
            "batch_norm": trial.batch_norm,
            "dropout": trial.dropout,
            "train": self.train,
        }
        padded = isinstance(trial.width, Size)
        units = trial.width[0] if isinstance(trial.width, tuple) else largest(trial.width)
        first = Hidden(
            **options, width=units, residual=False, skipped=False,
            padded=padded or isinstance(trial.features, Choice), name="first",
        )  # fmt: skip
        h_WxB, _ = first(h_FxB, mask_B, Layer(widths_L[0], inputs, True, words_L[0]))
        if isinstance(trial.width, tuple):
            h_WxB = self._ragged(h_WxB, mask_B, words_L, options)
        elif count > 1:
            h_WxB = self._stacked(h_WxB, mask_B, widths_L, words_L, options)
        last = Affine(self.classes, padded, name="last")
        return last(h_WxB, self.classes, widths_L[depth - 1])

    def _ragged(self, h_WxB: Array, mask_B: Array, words_L: Array, options: _Options) -> Array:
        """Hidden layers past the first one, each of its own size."""
        widths = self.trial.widths
        for i in range(1, len(widths)):
            hidden = Hidden(
                **options, width=widths[i], residual=False, padded=False, skipped=False,
                name=f"hidden_{i}",
            )  # fmt: skip
            h_WxB, _ = hidden(h_WxB, mask_B, Layer(widths[i], widths[i - 1], True, words_L[i]))
        return h_WxB

    def _stacked(
        self, h_WxB: Array, mask_B: Array, widths_L: Array, words_L: Array, options: _Options
    ) -> Array:
        """Hidden layers past the first one, all of one size."""
        trial, count = self.trial, len(widths_L)
        depth, width, padded = trial.depth, len(h_WxB), isinstance(trial.width, Size)
        skipped = isinstance(depth, Size)
        active_L = jnp.arange(1, count) < value(depth)
        units_L = jnp.where(active_L, widths_L[1:], 0) if skipped else widths_L[1:]
        layer_L = Layer(units_L, widths_L[:-1], active_L, words_L[1:])
        if isinstance(depth, Size) and depth.branches and not self.is_initializing():
            hidden = Hidden(
                **options, width=width, residual=trial.residual, skipped=False, padded=padded,
                parent=None,
            )  # fmt: skip
            return self._as_deep(hidden, h_WxB, mask_B, layer_L, depth.value - 1)
        unrolled = count - 1 <= UNROLLED_LAYERS and not self.is_initializing()
        stack = nn.scan(
            Hidden,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=count - 1,
            unroll=count - 1 if unrolled else 1,
        )
        layers = stack(
            **options, width=width, residual=trial.residual, skipped=skipped,
            padded=skipped or padded, name="hidden",
        )  # fmt: skip
        h_WxB, _ = layers(h_WxB, mask_B, layer_L)
        return h_WxB

    def _as_deep(
        self, hidden: Hidden, h_WxB: Array, mask_B: Array, layer_L: Layer, count: Array
    ) -> Array:
        """Apply only the first `count` of the stacked layers.

        This is for trials that train one after another; side by side, it would save no time.
        """

        def apply(mask_B: Array, h_WxB: Array, params: PyTree, own: PyTree) -> tuple[Array, PyTree]:
            layer, stats = own
            variables = {"params": params, "batch_stats": stats}
            (h_WxB, _), new = hidden.apply(variables, h_WxB, mask_B, layer, mutable=["batch_stats"])
            return h_WxB, new.get("batch_stats", {})

        params_L: PyTree = self.get_variable("params", "hidden")
        stats_L: PyTree = self.get_variable("batch_stats", "hidden", {})
        layers = Layers(mask_B, params_L, (layer_L, stats_L), stats_L)
        h_WxB, stats_L = first_layers(apply, count, h_WxB, layers)
        if self.train and stats_L:
            self.put_variable("batch_stats", "hidden", stats_L)
        return h_WxB

    def _features(self, x_FxB: Array) -> tuple[Array, int | Array]:
        """The features the trial asks for, padded to the program's, and how many are its own."""
        made = {
            "raw": lambda: x_FxB,
            "standardised": lambda: (
                (x_FxB - jnp.array(self.mean)[:, None]) / jnp.array(self.std)[:, None]
            ),
            "sines": lambda: jnp.sin(jnp.concatenate([a * x_FxB for a in SINE_FREQUENCIES])),
        }
        features = self.trial.features
        if not isinstance(features, Choice):
            h_FxB = made[features]()
            return h_FxB, h_FxB.shape[0]
        options = {name: made[name]() for name in features.options}
        most = max(h_FxB.shape[0] for h_FxB in options.values())
        padded = {n: jnp.pad(h, ((0, most - h.shape[0]), (0, 0))) for n, h in options.items()}
        return choose(features, lambda n: padded[n]), choose(
            features, lambda n: options[n].shape[0]
        )


def for_each_layer(widths: int | tuple[int, ...] | Array, count: int) -> Array:
    """The units of `count` layers, given one number, or numbers of which the last is repeated."""
    widths_L = jnp.atleast_1d(jnp.asarray(widths))
    return jnp.pad(widths_L, (0, count - len(widths_L)), mode="edge")


def stacks(tree: PyTree) -> list[PyTree]:
    """The hidden layers in parameters, statistics or gradients, each with a leading layer axis."""
    names = ["first", *(name for i in range(len(tree)) if (name := f"hidden_{i}") in tree)]
    stacks = [jax.tree.map(lambda a: a[None], tree[name]) for name in names]
    return [*stacks, tree["hidden"]] if "hidden" in tree else stacks


def own_part(trial: MLPTrial, tree: PyTree, inputs: int | None) -> PyTree:
    """A trial's own part of parameters or statistics: its layers, and their units and inputs.

    `inputs` is the number of inputs of the first layer, or None to keep all of them.
    """
    layers = [
        {k: jax.tree.map(lambda a, i=i: a[i], v) for k, v in stack.items()}
        for stack in stacks(tree)
        for i in range(len(jax.tree.leaves(stack)[0]))
    ]

    normed = isinstance(trial.batch_norm, Choice) or trial.batch_norm

    def cut(layer: PyTree, units: int, inputs: int | None) -> PyTree:
        parts = {k: v for k, v in layer.items() if k == "affine" or normed}
        return jax.tree.map(lambda a: a[:units] if a.ndim == 1 else a[:units, :inputs], parts)

    widths = trial.widths
    own = zip(layers[: trial.depth], widths, (inputs, *widths[:-1]), strict=True)
    first, *hidden = (cut(*layer) for layer in own)
    made = {"first": first}
    if isinstance(trial.width, tuple):
        made |= {f"hidden_{i}": layer for i, layer in enumerate(hidden, 1)}
    elif hidden:
        made["hidden"] = jax.tree.map(lambda *arrays: np.stack(arrays), *hidden)
    if "last" in tree:
        last = tree["last"]
        made["last"] = last | {"kernel": last["kernel"][:, : widths[-1]]}
    return made
