"""Multi-layer perceptrons in Flax, feature-major, and the task of classifying with them.

Activations are (units, batch) and kernels (out, in), as PyTorch stores them: on a CPU a batch of
such products runs a third faster than the other way round, and weights carry over as they are.

Trials of other shapes may share a program (see `jaxexp.spec.padding`). Units past a trial's width
are not read by any other, so that their weights, zero at first, keep gradients and moments of zero;
layers past its depth pass their input on. Widths that differ between the layers of one trial are
padded in the same way where its program holds other shapes too; in a program of its own nothing is.

Shapes: B examples, C classes, F features, L hidden layers, W units of a layer.
"""

import dataclasses
import itertools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.nn.norm import BatchNorm
from jaxexp.planning.cost import Cost
from jaxexp.spec.padding import Choice, Size, choose, largest, value
from jaxexp.spec.trial import MLPTrial, Trial, with_values
from jaxexp.training.data import Data
from jaxexp.training.labels import check_labels
from jaxexp.training.metrics import Metric
from jaxexp.training.shuffle import mix
from jaxexp.training.task import Arrays, Batch, Inspection, Outputs, PyTree, Task, Variables

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
UNROLLED_LAYERS = 16  # deeper stacks are a loop: 100 layers compile in seconds


class Layer(NamedTuple):
    """What a layer has to know of its trial; stacked along the layers where they are scanned."""

    units: Any  # of the trial: those of the program past it are padding
    inputs: Any
    active: Any  # False past the trial's depth
    word: Array  # random, new in every step


def uniform_rows(key: Array, shape: tuple[int, ...], fan_in: Any, units: Any) -> Array:
    """PyTorch's default for `Linear`: uniform in ±1/sqrt(fan_in), (out, in) or (out,).

    Every unit draws from a key of its own, and the draws of a shorter row begin those of a longer
    one, so that padding (zero past `units` and `fan_in`) changes no weight.
    """
    bound = 1 / jnp.sqrt(jnp.float32(fan_in))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
    rows = jax.vmap(lambda k: jax.random.uniform(k, shape[1:], minval=-bound, maxval=bound))(keys)
    return jnp.where(_inside(shape, units, fan_in), rows, 0)


def _inside(shape: tuple[int, ...], units: Any, inputs: Any) -> Array:
    """Where a kernel (out, in) or a bias (out,) belongs to the trial."""
    inside = jnp.arange(shape[0]) < units
    return inside if len(shape) == 1 else inside[:, None] & (jnp.arange(shape[1]) < inputs)


@jax.custom_vjp
def product(kernel_OxF: Array, x_FxB: Array) -> Array:
    """kernel @ x, (O, B), with a gradient of x that a CPU computes as fast as the product itself.

    XLA folds a transposition into a product and then takes a slower route through it: of a layer
    of 16 units and a batch of 256, 4.9 instead of 2.0 µs. The barrier keeps the two apart.
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
    padded: bool = False  # whether some units or inputs are not the trial's

    @nn.compact
    def __call__(self, x_FxB: Array, units: Any, inputs: Any) -> Array:
        """(F, B) to (units, B), of which the first `units` and `inputs` are the trial's."""
        shape = (self.units, x_FxB.shape[0])
        kernel = self.param("kernel", uniform_rows, shape, inputs, units)
        bias = self.param("bias", uniform_rows, shape[:1], inputs, units)
        if self.padded:  # zero already, but what stands in the padding must never be read
            kernel = jnp.where(_inside(shape, units, inputs), kernel, 0)
            bias = jnp.where(_inside(shape[:1], units, inputs), bias, 0)
        return product(kernel, x_FxB) + bias[:, None]


def dropout(h_WxB: Array, rate: Any, word: Array) -> Array:
    """Zero each activation with probability `rate`, and scale the others by 1 / (1 - rate).

    What is dropped is arithmetic on (word, unit, example): padding changes none of its bits.
    """
    units, examples = (jnp.arange(n, dtype=jnp.uint32) for n in h_WxB.shape)
    words_WxB = mix(mix(units ^ word)[:, None] ^ examples)
    threshold = (jnp.float32(rate) * 2.0**32).astype(jnp.uint32)
    return jnp.where(words_WxB >= threshold, h_WxB / (1 - rate), 0)


class Hidden(nn.Module):
    """A hidden layer: affine, batch norm where asked, activation, dropout, and a shortcut."""

    width: int  # of the program
    activation: Any
    batch_norm: Any
    residual: Any
    dropout: Any
    padded: bool  # whether units or inputs past the trial's are to be kept at zero
    skipped: bool  # whether the layer may lie past the trial's depth
    train: bool

    @nn.compact
    def __call__(self, x_FxB: Array, mask_B: Array, layer: Layer) -> tuple[Array, None]:
        """(F, B) to (W, B); the None is what `nn.scan` wants."""
        affine = Affine(self.width, self.padded, name="affine")
        h_WxB = affine(x_FxB, layer.units, layer.inputs)
        if isinstance(self.batch_norm, Choice) or self.batch_norm:
            norm = BatchNorm(channel_axis=0, padded=self.padded, name="norm")
            normed_WxB = norm(h_WxB, mask_B, layer.units, train=self.train)
            plain_WxB = h_WxB
            h_WxB = choose(self.batch_norm, lambda on: normed_WxB if on else plain_WxB)
        h_WxB = choose(self.activation, lambda name: ACTIVATIONS[name](h_WxB))
        if self.train and not _is_zero(self.dropout):
            h_WxB = dropout(h_WxB, self.dropout, layer.word)
        h_WxB = choose(self.residual, lambda on: x_FxB + h_WxB if on else h_WxB)
        return (jnp.where(layer.active, h_WxB, x_FxB) if self.skipped else h_WxB), None


def _is_zero(rate: Any) -> bool:
    return isinstance(rate, float) and rate == 0


class MLP(nn.Module):
    """Hidden layers, then a linear layer to the classes.

    The second to the last hidden layer are stacked as "hidden", their parameters with a leading
    layer axis. Where `trial.width` is a tuple each is a module of its own size: "hidden_1" and so
    on. `trial` may have padded sizes and choices.
    """

    trial: MLPTrial
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    train: bool = False

    @nn.compact
    def __call__(self, x_BxF: Array, mask_B: Array, word: Any = 0) -> Array:
        """Inputs (B, F), the mask of the examples and a random word to logits (C, B)."""
        trial = self.trial
        h_FxB, inputs = self._features(x_BxF.T)
        depth, count = value(trial.depth), largest(trial.depth)
        widths_L = _for_each_layer(value(trial.width), count)
        words_L = mix(jnp.arange(count, dtype=jnp.uint32) ^ jnp.asarray(word, jnp.uint32))
        options: dict[str, Any] = {
            "activation": trial.activation,
            "batch_norm": trial.batch_norm,
            "dropout": trial.dropout,
            "train": self.train,
        }
        padded = isinstance(trial.width, Size)
        units = trial.width[0] if isinstance(trial.width, tuple) else largest(trial.width)
        first = Hidden(
            **options, width=units, residual=False, skipped=False, name="first",
            padded=padded or isinstance(trial.features, Choice),
        )  # fmt: skip
        h_WxB, _ = first(h_FxB, mask_B, Layer(widths_L[0], inputs, True, words_L[0]))
        if isinstance(trial.width, tuple):
            h_WxB = self._ragged(h_WxB, mask_B, words_L, options)
        elif count > 1:
            h_WxB = self._stacked(h_WxB, mask_B, widths_L, words_L, options)
        return Affine(self.classes, padded, name="last")(h_WxB, self.classes, widths_L[depth - 1])

    def _ragged(self, h_WxB: Array, mask_B: Array, words_L: Array, options: dict) -> Array:
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
        self, h_WxB: Array, mask_B: Array, widths_L: Array, words_L: Array, options: dict
    ) -> Array:
        """Hidden layers past the first one, all of one size."""
        trial, count = self.trial, len(widths_L)
        unrolled = count - 1 <= UNROLLED_LAYERS and not self.is_initializing()
        stack = nn.scan(
            Hidden,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=count - 1,
            unroll=count - 1 if unrolled else 1,
        )
        active_L = jnp.arange(1, count) < value(trial.depth)
        skipped = isinstance(trial.depth, Size)
        units_L = jnp.where(active_L, widths_L[1:], 0) if skipped else widths_L[1:]
        hidden = stack(
            **options, width=len(h_WxB), residual=trial.residual, skipped=skipped, name="hidden",
            padded=skipped or isinstance(trial.width, Size),
        )  # fmt: skip
        layer = Layer(units_L, widths_L[:-1], active_L, words_L[1:])
        h_WxB, _ = hidden(h_WxB, mask_B, layer)
        return h_WxB

    def _features(self, x_FxB: Array) -> tuple[Array, Any]:
        """The inputs as the trial wants them, and how many they are of the program's."""
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


def _for_each_layer(widths: Any, count: int) -> Array:
    """Units of `count` layers, from one number, or from one for each of the first of them."""
    widths_L = jnp.atleast_1d(jnp.asarray(widths))
    return jnp.pad(widths_L, (0, count - len(widths_L)), mode="edge")


def _stacks(tree: PyTree) -> list[PyTree]:
    """The hidden layers of parameters, statistics or gradients, each with a leading layer axis."""
    names = ["first", *(name for i in range(len(tree)) if (name := f"hidden_{i}") in tree)]
    stacks = [jax.tree.map(lambda a: a[None], tree[name]) for name in names]
    return [*stacks, tree["hidden"]] if "hidden" in tree else stacks


def _own(trial: MLPTrial, tree: PyTree, inputs: int | None) -> PyTree:
    """A trial's own part of parameters or statistics: its layers, and their units and inputs.

    `inputs` are those of the first layer; None for all there are.
    """
    layers = [
        {k: jax.tree.map(lambda a, i=i: a[i], v) for k, v in stack.items()}
        for stack in _stacks(tree)
        for i in range(len(jax.tree.leaves(stack)[0]))
    ]

    def cut(layer: PyTree, units: int, inputs: int | None) -> PyTree:
        parts = {k: v for k, v in layer.items() if k == "affine" or trial.batch_norm}
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


@dataclass(frozen=True)
class MLPClassification(Task):
    """Classification with a multi-layer perceptron.

    Examples are `jaxexp.Examples`: inputs (N, F) float32 and labels (N,) int32. Where `classes` and
    the statistics are not given, `bind` takes them from the data: `mean` and `std` of each input
    over the training examples are those that features="standardised" subtracts and divides by.

    >>> from jaxexp.training.data import arrays
    >>> data = arrays([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.1, 0.9]], list("abab"), validation=1)
    >>> MLPClassification().bind(data).classes
    2
    """

    classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    evaluation_batch_size: int = 1024  # activations stay in a core's cache
    loss_unit = "nats"
    metrics = types.MappingProxyType({"accuracy": Metric("higher")})

    def bind(self, data: Data) -> "MLPClassification":
        """With the classes and the statistics of these data; constant inputs have a std of 1.

        Raises UserError for data that are not vectors with labels 0 to C - 1.
        """
        classes = check_labels(data, self.classes)
        x_NxF = np.asarray(data.train.x)
        if x_NxF.ndim != 2:
            raise UserError(
                f"train.x: the shape is {x_NxF.shape}, expected (examples, inputs) for an MLP"
            )
        mean_F = x_NxF.mean(0, dtype=np.float64)
        std_F = x_NxF.std(0, dtype=np.float64)
        std_F = np.where(x_NxF.min(0) == x_NxF.max(0), 1.0, std_F)
        return dataclasses.replace(
            self,
            classes=classes,
            mean=self.mean or tuple(mean_F.tolist()),
            std=self.std or tuple(std_F.tolist()),
        )

    def check(self, trial: Trial, data: Data) -> None:
        """Raise UserError unless it is an MLP's trial, with an optimizer that is built in."""
        super().check(trial, data)
        if not isinstance(trial, MLPTrial):
            raise UserError(
                f"{type(self).__name__} trains MLPTrial, not {type(trial).__name__}: give a task "
                "that trains your trials"
            )

    def module(self, trial: Trial, *, train: bool = False) -> MLP:
        """The Flax module of a trial."""
        assert isinstance(trial, MLPTrial)
        assert self.classes is not None, "bind the task to data"
        return MLP(trial, self.classes, self.mean, self.std, train)

    def init(self, trial: Trial, rng: Array, data: Arrays) -> Variables:
        """Parameters and batch statistics (empty without batch norm)."""
        assert isinstance(trial, MLPTrial)
        program, inputs = trial, jnp.zeros((1, data["train"].x.shape[1]))
        if isinstance(trial.width, tuple):  # drawn as in a shared program, then cut out of it
            width = Size(jnp.array(trial.width), min(trial.width), max(trial.width))
            program = with_values(trial, width=width)
        variables = self.module(program).init(rng, inputs, jnp.ones(1))
        params, state = variables["params"], variables.get("batch_stats", {})
        if program is trial:
            return Variables(params, state)
        return Variables(_own(trial, params, None), state and _own(trial, state, None))

    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """Cross entropy (nats) and correctness (0 or 1) of each example, and new statistics.

        Label smoothing is part of the loss in training alone.
        """
        assert isinstance(trial, MLPTrial)
        logits_CxB, new = self.module(trial, train=train).apply(
            {"params": variables.params, "batch_stats": variables.state},
            batch.x,
            mask,
            jax.random.key_data(rng)[0],
            mutable=["batch_stats"],
        )
        smoothing = trial.label_smoothing if train else 0.0
        loss_B, right_B = cross_entropy(logits_CxB, batch.y, smoothing)
        return Outputs(loss_B, metrics={"accuracy": right_B}, state=new.get("batch_stats", {}))

    def predict(self, trial: Trial, variables: Variables, x: PyTree) -> Array:
        """Logits (B, C) of inputs (B, F)."""
        tree = {"params": variables.params, "batch_stats": variables.state}
        logits_CxB: Any = self.module(trial).apply(tree, x, jnp.ones(len(x)))
        return logits_CxB.T

    def probabilities(self, prediction: Array) -> Array:
        """Of logits (B, C): their softmax."""
        return jax.nn.softmax(prediction)

    def gradient_norms(self, grads: PyTree) -> Array:
        """Squared L2 norm of the kernel's gradient in each affine layer of the program."""
        kernels = [stack["affine"]["kernel"] for stack in _stacks(grads)]
        kernels.append(grads["last"]["kernel"][None])
        return jnp.concatenate([jnp.square(kernel).sum((1, 2)) for kernel in kernels])

    def crop(
        self, trial: Trial, variables: Variables, norms_ExL: np.ndarray | None
    ) -> tuple[Variables, np.ndarray | None]:
        """The trial's own part of what its program has trained, as if it had trained alone."""
        assert isinstance(trial, MLPTrial)
        inputs = _inputs(trial, len(self.mean))
        if norms_ExL is not None:
            norms_ExL = np.concatenate([norms_ExL[:, : trial.depth], norms_ExL[:, -1:]], axis=1)
        state = _own(trial, variables.state, inputs) if trial.batch_norm else {}
        return Variables(_own(trial, variables.params, inputs), state), norms_ExL

    def inspect(self, trial: Trial, arrays: Arrays) -> Inspection:
        """By formula, which is quicker than tracing and agrees with it; subclasses are traced."""
        own, cls, names = type(self), MLPClassification, ("apply", "init", "optimizer", "module")
        changed = any(getattr(own, name) is not getattr(cls, name) for name in names)
        if changed or type(trial) is not MLPTrial:
            return super().inspect(trial, arrays)
        assert isinstance(trial, MLPTrial)
        assert self.classes is not None, "bind the task to data"
        return Inspection(
            cost(trial, len(self.mean), self.classes),
            frozenset(trial.fields()) - {"epochs", "batch_size"},
        )


def cost(trial: MLPTrial, inputs: int, outputs: int) -> Cost:
    """What an MLP costs to train."""
    inputs = _inputs(trial, inputs)
    units = sum(trial.widths)
    shapes = sum(a * b for a, b in itertools.pairwise((inputs, *trial.widths, outputs)))
    norm = 2 if trial.batch_norm else 1
    looped = trial.depth > UNROLLED_LAYERS and isinstance(trial.width, int)
    return Cost(
        multiplications=shapes * (1.5 if trial.batch_norm else 1),
        launches=(trial.depth + 1) * norm * (4 if looped else 1),
        parameters=shapes + units * (2 * norm - 1) + outputs,
        activations=inputs + norm * 2 * units + 2 * outputs,
        layers=trial.depth + 1,
    )


def _inputs(trial: MLPTrial, inputs: int) -> int:
    """Of the first layer."""
    return inputs * len(SINE_FREQUENCIES) if trial.features == "sines" else inputs


def cross_entropy(logits_CxB: Array, y_B: Array, smoothing: Any = 0.0) -> tuple[Array, Array]:
    """Softmax cross entropy in nats, and whether the first of the largest logits is right.

    `smoothing` moves that share of each label to all classes equally (Szegedy et al., 2016). No
    label is right where a logit is no number.
    """
    classes_Cx1 = jnp.arange(logits_CxB.shape[0])[:, None]
    shifted_CxB = logits_CxB - jax.lax.stop_gradient(logits_CxB.max(0))
    # Picking the label's logit by comparison keeps scatters out of the gradient, and argmax as a
    # minimum over indices is a plain reduction, which XLA vectorizes on every backend.
    picked_B = jnp.where(classes_Cx1 == y_B, shifted_CxB, 0).sum(0)
    predicted_B = jnp.where(shifted_CxB == 0, classes_Cx1, len(classes_Cx1)).min(0)
    if not _is_zero(smoothing):
        picked_B = (1 - smoothing) * picked_B + smoothing * shifted_CxB.mean(0)
    loss_B = jnp.log(jnp.exp(shifted_CxB).sum(0)) - picked_B
    return loss_B, (predicted_B == y_B).astype(jnp.float32)
