"""Classification with a multi-layer perceptron.

Shapes: B examples, C classes, F features, L affine layers.
"""

import dataclasses
import itertools
import types
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int, is_number
from jaxexp.nn.mlp import MLP, SINE_FREQUENCIES, UNROLLED_LAYERS, is_zero, own_part, stacks
from jaxexp.planning.cost import Cost
from jaxexp.spec.padding import Size, Traced
from jaxexp.spec.trial import MLPTrial, Trial, with_values
from jaxexp.training.data import Data
from jaxexp.training.labels import check_labels
from jaxexp.training.metric import Metric
from jaxexp.training.task import Arrays, Batch, Inspection, Outputs, Task, Variables
from jaxexp.training.trees import PyTree


@dataclass(frozen=True)
class MLPClassification(Task):
    """Classification with a multi-layer perceptron.

    Examples are `jaxexp.Examples`: inputs (N, F) float32 and labels (N,) int32. If `classes` and
    the statistics are not given, `bind` takes them from the data. `mean` and `std` are those of
    each input over the training examples with a weight above 0; features="standardised" subtracts
    the mean and divides by the standard deviation.

    >>> from jaxexp.training.arrays import arrays
    >>> data = arrays([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.1, 0.9]], list("abab"), validation=1)
    >>> MLPClassification().bind(data).classes
    2
    """

    classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    evaluation_batch_size: int = 1024  # keeps activations in a core's cache
    loss_unit = "nats"
    saved_fields = ("classes", "mean", "std")
    metrics = types.MappingProxyType({"accuracy": Metric("higher")})

    def bind(self, data: Data) -> "MLPClassification":
        """A copy with the classes and statistics of the data; constant inputs get a std of 1.

        Raises UserError unless the data are vectors with labels 0 to C - 1.
        """
        self._check_fields()
        classes = check_labels(data, self.classes)
        x_NxF = np.asarray(data.train.x)
        if x_NxF.ndim != 2:
            raise UserError(
                f"train.x: the shape is {x_NxF.shape}, expected (examples, inputs) for an MLP"
            )
        for name, own in (("mean", self.mean), ("std", self.std)):
            if own and len(own) != x_NxF.shape[1]:
                raise UserError(
                    f"{name}={own}: {len(own)} numbers, expected one for each of the "
                    f"{x_NxF.shape[1]} inputs"
                )
        x_NxF = x_NxF[data.counted]
        mean_F = x_NxF.mean(0, dtype=np.float64)
        std_F = x_NxF.std(0, dtype=np.float64)
        std_F = np.where(x_NxF.min(0) == x_NxF.max(0), 1.0, std_F)
        return dataclasses.replace(
            self,
            classes=classes,
            mean=self.mean or tuple(mean_F.tolist()),
            std=self.std or tuple(std_F.tolist()),
        )

    def _check_fields(self) -> None:
        classes = self.classes
        if classes is not None and not (is_int(classes) and classes >= 2):
            raise UserError(f"classes={classes!r}: expected a whole number, at least 2, or None")
        for name, own in (("mean", self.mean), ("std", self.std)):
            floats = isinstance(own, tuple) and all(map(is_number, own))
            if (
                not floats
                or not np.isfinite(own).all()
                or (name == "std" and min(own, default=1) <= 0)
            ):
                least = " above 0" if name == "std" else ""
                raise UserError(f"{name}={own!r}: expected a tuple of finite numbers{least}")

    def check(self, trial: Trial, data: Data) -> None:
        """Raise UserError unless the trial is an MLPTrial that can be trained on the data."""
        super().check(trial, data)
        if not isinstance(trial, MLPTrial):
            raise UserError(
                f"{type(self).__name__} trains MLPTrial, not {type(trial).__name__}: give a task "
                "that trains your trials"
            )
        if data.folds is not None and trial.features == "standardised":
            raise UserError(
                "features='standardised': mean and standard deviation would be those of all "
                "folds, the ones to validate on among them; expected 'raw' where there are folds"
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
            width = Size("width", jnp.array(trial.width), min(trial.width), max(trial.width))
            program = with_values(trial, width=width)
        variables = self.module(program).init(rng, inputs, jnp.ones(1))
        params, state = variables["params"], variables.get("batch_stats", {})
        if program is trial:
            return Variables(params, state)
        return Variables(own_part(trial, params, None), state and own_part(trial, state, None))

    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """Cross entropy (nats) and correctness (0 or 1) of each example, and new statistics.

        Label smoothing is part of the loss only in training.
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
        logits_CxB: PyTree = self.module(trial).apply(tree, x, jnp.ones(len(x)))
        logits_BxC: Array = logits_CxB.T
        return logits_BxC

    def probabilities(self, prediction: Array) -> Array:
        """The softmax of logits (B, C)."""
        return jax.nn.softmax(prediction)

    def takes_fractions(self) -> bool:
        """True for an MLP; False for a subclass that predicts differently, as nothing is known."""
        own, cls = type(self), MLPClassification
        return own.predict is cls.predict and own.module is cls.module

    def gradient_norms(self, grads: PyTree) -> Array:
        """Squared L2 norm of the kernel's gradient in each affine layer of the program."""
        kernels = [stack["affine"]["kernel"] for stack in stacks(grads)]
        kernels.append(grads["last"]["kernel"][None])
        return jnp.concatenate([jnp.square(kernel).sum((1, 2)) for kernel in kernels])

    def crop(
        self, trial: Trial, variables: Variables, norms_ExL: np.ndarray | None
    ) -> tuple[Variables, np.ndarray | None]:
        """The trial's own part of what its program trained, as if it had been trained alone."""
        assert isinstance(trial, MLPTrial)
        inputs = _inputs(trial, len(self.mean))
        if norms_ExL is not None:
            norms_ExL = np.concatenate([norms_ExL[:, : trial.depth], norms_ExL[:, -1:]], axis=1)
        state = own_part(trial, variables.state, inputs) if trial.batch_norm else {}
        return Variables(own_part(trial, variables.params, inputs), state), norms_ExL

    def inspect(self, trial: Trial, arrays: Arrays) -> Inspection | None:
        """A formula, which is quicker than tracing and agrees with it; subclasses are traced."""
        own, cls, names = type(self), MLPClassification, ("apply", "init", "optimizer", "module")
        changed = any(getattr(own, name) is not getattr(cls, name) for name in names)
        if changed or type(trial) is not MLPTrial:
            return None
        assert isinstance(trial, MLPTrial)
        assert self.classes is not None, "bind the task to data"
        made = cost(trial, len(self.mean), self.classes)
        # Which units are dropped depends on the position of an example in its batch.
        apart = not trial.batch_norm and trial.dropout == 0
        return Inspection(
            dataclasses.replace(made, microbatches=apart),
            frozenset(trial.fields()) - {"epochs", "batch_size", "fold"},
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
    """The number of inputs of the first layer."""
    return inputs * len(SINE_FREQUENCIES) if trial.features == "sines" else inputs


def cross_entropy(logits_CxB: Array, y_B: Array, smoothing: Traced = 0.0) -> tuple[Array, Array]:
    """Softmax cross entropy in nats, and whether the first of the largest logits is right.

    `smoothing` is the share of each label that is spread equally over all classes (Szegedy et al.,
    2016). If a logit is NaN, no label counts as right.
    """
    classes_Cx1 = jnp.arange(logits_CxB.shape[0])[:, None]
    shifted_CxB = logits_CxB - jax.lax.stop_gradient(logits_CxB.max(0))
    # Picking the label's logit by comparison keeps scatters out of the gradient. As a minimum over
    # indices, argmax is a plain reduction, which XLA vectorizes on every backend. The indices are
    # floats because XLA's CPU backend is slow at reducing integers over more than 32 classes.
    picked_B = jnp.where(classes_Cx1 == y_B, shifted_CxB, 0).sum(0)
    places_Cx1 = classes_Cx1.astype(jnp.float32)
    predicted_B = jnp.where(shifted_CxB == 0, places_Cx1, float(len(places_Cx1))).min(0)
    if not is_zero(smoothing):
        picked_B = (1 - smoothing) * picked_B + smoothing * shifted_CxB.mean(0)
    loss_B = jnp.log(jnp.exp(shifted_CxB).sum(0)) - picked_B
    return loss_B, (predicted_B == y_B).astype(jnp.float32)
