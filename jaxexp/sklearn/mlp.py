"""Multi-layer perceptrons with the parameters of scikit-learn's.

Shapes: B examples, F features, K outputs, W units of a layer, L layers.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.utils.validation import check_is_fitted

from jaxexp.base.numbers import is_int, is_number
from jaxexp.nn.classification import MLPClassification, cost
from jaxexp.nn.mlp import for_each_layer, own_part, stacks
from jaxexp.sklearn.base import Network, NetworkClassifier, NetworkRegressor, Prepared, is_any_of
from jaxexp.spec.hyperparameters import static, traced
from jaxexp.spec.padding import Choice, choose, largest, value
from jaxexp.spec.trial import MLPTrial, Trial
from jaxexp.training.batching import weights_of
from jaxexp.training.data import Data
from jaxexp.training.labels import check_labels
from jaxexp.training.metric import Metric
from jaxexp.training.metrics import centers_of, r2_around
from jaxexp.training.optimizers import one_of
from jaxexp.training.task import Arrays, Batch, Inspection, Outputs, Task, Variables
from jaxexp.training.trees import PyTree

UNREAD = {"weight_decay", "label_smoothing"}  # of the hyperparameters of an MLP
ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}


@dataclass(frozen=True, kw_only=True)
class SklearnTrial(MLPTrial):
    """What scikit-learn's perceptrons have beside: their penalty, and all of their optimizers."""

    alpha: float = traced(0.0, at_least=0)
    beta_1: float = traced(0.9, at_least=0, below=1)
    beta_2: float = traced(0.999, at_least=0, below=1)
    epsilon: float = traced(1e-8, above=0)
    nesterovs: bool = static(False)


@dataclass(frozen=True)
class SklearnMLP(MLPClassification):
    """A perceptron with scikit-learn's loss, penalty, initial weights and optimizers."""

    regression: bool = False
    centers: tuple[tuple[float, ...], ...] = ((0.0,),)  # of the targets

    @property
    def metrics(self) -> Mapping[str, Metric]:  # type: ignore[override]
        """Accuracy, or R²."""
        if self.regression:
            return {"r2": r2_around(*self.centers, force_finite=True)}
        return {"accuracy": Metric("higher")}

    def bind(self, data: Data) -> "SklearnMLP":
        """For the outputs of these data."""
        if self.regression:
            y_NxK = data.train.y
            centers = tuple(map(tuple, centers_of(y_NxK[data.counted])))
            return dataclasses.replace(self, classes=y_NxK.shape[1], centers=centers)
        # Of the inputs nothing is needed: equal tasks predict with what is compiled once.
        return dataclasses.replace(self, classes=check_labels(data, self.classes))

    def init(self, trial: Trial, rng: Array, data: Arrays) -> Variables:
        """Uniform weights and biases of Glorot and Bengio (2010), as scikit-learn draws them."""
        assert isinstance(trial, MLPTrial)
        assert self.classes is not None
        params, state = super().init(trial, rng, data)
        factor = choose(trial.activation, lambda name: 2.0 if name == "sigmoid" else 6.0)
        out_L = for_each_layer(value(trial.width), largest(trial.depth))
        in_L = jnp.concatenate([jnp.array([data["train"].x.shape[1]]), out_L[:-1]])
        last = out_L[value(trial.depth) - 1]
        # From ±1/sqrt(in), as they are drawn, to ±sqrt(factor / (in + out)).
        scale_L = jnp.sqrt(factor * in_L / (in_L + out_L))

        def scaled(layer: PyTree, own: Array) -> PyTree:
            return jax.tree.map(lambda a: a * own.reshape(own.shape + (1,) * (a.ndim - 1)), layer)

        made = {"first": scaled(params["first"], scale_L[0])}
        if "hidden" in params:
            made["hidden"] = scaled(params["hidden"], scale_L[1:])
        for i in range(1, len(params)):
            if (name := f"hidden_{i}") in params:
                made[name] = scaled(params[name], scale_L[i])
        made["last"] = scaled(params["last"], jnp.sqrt(factor * last / (last + self.classes)))
        return Variables(made, state)

    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """Cross entropy, or half the squared error; in training with alpha / 2n · Σ w²."""
        assert isinstance(trial, SklearnTrial)
        if self.regression:
            prediction_BxK = self.predict(trial, variables, batch.x)
            squares_BxK = jnp.square(prediction_BxK - batch.y) / 2
            loss_B = squares_BxK.mean(1)
            if train and self.classes != 1:  # as there: the gradient is that of the sum
                sum_B = squares_BxK.sum(1)
                loss_B = jax.lax.stop_gradient(loss_B) + (sum_B - jax.lax.stop_gradient(sum_B))
            outputs = Outputs(loss_B, prediction_BxK, batch.y, state=variables.state)
        else:
            outputs = super().apply(trial, variables, batch, rng=rng, mask=mask, train=train)
        if not train:
            return outputs
        n = weights_of(self, batch, mask).sum()
        kernels = [stack["affine"]["kernel"] for stack in stacks(variables.params)]
        squares = sum(jnp.square(w).sum() for w in (*kernels, variables.params["last"]["kernel"]))
        penalty = trial.alpha * squares / (2 * jnp.where(n > 0, n, 1))
        return outputs._replace(loss=outputs.loss + penalty)

    def crop(
        self, trial: Trial, variables: Variables, norms_ExL: np.ndarray | None
    ) -> tuple[Variables, np.ndarray | None]:
        """The trial's own part of what its program has trained, as if it had trained alone."""
        assert isinstance(trial, MLPTrial)
        return Variables(own_part(trial, variables.params, None), variables.state), norms_ExL

    def inspect(self, trial: Trial, arrays: Arrays) -> Inspection | None:
        """By formula, which is quicker than tracing."""
        assert isinstance(trial, SklearnTrial)
        assert self.classes is not None
        reads = frozenset(trial.fields()) - {"epochs", "batch_size", "fold", *UNREAD}
        return Inspection(cost(trial, arrays["train"].x.shape[1], self.classes), reads)

    def optimizer(self, trial: Trial, steps: int) -> optax.GradientTransformation:
        """Adam, or stochastic gradient descent."""
        if isinstance(trial.optimizer, Choice):
            return one_of(trial.optimizer, lambda name: self._named(name, trial))
        return self._named(trial.optimizer, trial)

    def _named(self, name: str, trial: Trial) -> optax.GradientTransformation:
        assert isinstance(trial, SklearnTrial)
        rate = trial.learning_rate
        if name == "adam":
            scaled = scale_by_adam(trial.beta_1, trial.beta_2, trial.epsilon)
            return optax.chain(scaled, optax.scale_by_learning_rate(rate))
        return optax.sgd(rate, momentum=trial.momentum, nesterov=trial.nesterovs)


def scale_by_adam(beta_1: float, beta_2: float, epsilon: float) -> optax.GradientTransformation:
    """As optax has it, but for epsilon: here it is added before the bias is corrected."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByAdamState)
        corrected = epsilon / jnp.sqrt(1 - beta_2 ** (state.count + 1))
        own = optax.scale_by_adam(beta_1, beta_2, corrected)
        made: tuple[optax.Updates, optax.OptState] = own.update(updates, state, params)
        return made

    return optax.GradientTransformation(optax.scale_by_adam(beta_1, beta_2).init, update)


class _MLP(Network):
    """What classifier and regressor have in common."""

    def __init__(
        self, hidden_layer_sizes: Any = (100,), activation: str = "relu", *,
        solver: str = "adam", alpha: float = 1e-4, batch_size: int | str = "auto",
        learning_rate: str = "constant", learning_rate_init: float = 1e-3, power_t: float = 0.5,
        max_iter: int = 200, shuffle: bool = True, random_state: Any = None,
        tol: float | None = 1e-4, verbose: bool | int = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-8, n_iter_no_change: float = 10, max_fun: int = 15000,
    ) -> None:  # fmt: skip
        """See `MLPClassifier`."""
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun

    def _check(self) -> None:
        """Raise ValueError for parameters that cannot be, and those of scikit-learn left out."""
        super()._check()
        options: dict[str, Sequence[object]] = {
            "activation": list(ACTIVATIONS),
            "solver": ["adam", "sgd"],
            "learning_rate": ["constant"],
            "power_t": [0.5],
            "max_fun": [15000],
            "shuffle": [True],
            "warm_start": [False],
            "nesterovs_momentum": [True, False],
        }
        for name, known in options.items():
            if not is_any_of(getattr(self, name), *known):
                self._refuse(name, " or ".join(map(repr, known)))
        if not is_int(self.max_iter) or self.max_iter < 1:
            self._refuse("max_iter", "a whole number above 0")
        whole = is_int(self.batch_size) and self.batch_size >= 1
        if not whole and not is_any_of(self.batch_size, "auto"):
            self._refuse("batch_size", "'auto' or a whole number above 0")
        least = {"alpha": 0.0, "learning_rate_init": None, "epsilon": None}
        for name, bound in least.items():
            own = getattr(self, name)
            if not is_number(own) or not (own > 0 or own == bound) or not np.isfinite(own):
                self._refuse(name, f"a number {'at least' if bound == 0 else 'above'} 0")
        for name in ("momentum", "beta_1", "beta_2"):
            own = getattr(self, name)
            if not is_number(own) or not 0 <= own < 1:
                self._refuse(name, "a number from 0 to 1, without 1")
        self._sizes()

    def _sizes(self) -> tuple[int, ...]:
        given = self.hidden_layer_sizes
        sizes = tuple(given) if isinstance(given, Iterable) else (given,)
        if not sizes or not all(is_int(size) and size > 0 for size in sizes):
            self._refuse(
                "hidden_layer_sizes",
                "whole numbers above 0, one for each hidden layer, such as (64, 32)",
            )
        return tuple(map(int, sizes))

    def _make_trial(self, n: int, seed: int) -> SklearnTrial:
        """The trial of these parameters."""
        sizes, sgd = self._sizes(), self.solver == "sgd"
        size = 200 if self.batch_size == "auto" else int(self.batch_size)
        if size > n and self.batch_size != "auto":
            warnings.warn(f"batch_size={size}: clipped to the {n} examples", stacklevel=4)
        own: dict[str, Any] = (
            {"momentum": float(self.momentum), "nesterovs": bool(self.nesterovs_momentum)}
            if sgd
            else {n: float(getattr(self, n)) for n in ("beta_1", "beta_2", "epsilon")}
        )
        return SklearnTrial(
            depth=len(sizes),
            width=sizes if len(set(sizes)) > 1 else sizes[0],
            activation=ACTIVATIONS[self.activation],
            optimizer=self.solver,
            alpha=float(self.alpha),
            learning_rate=float(self.learning_rate_init),
            batch_size=min(size, n),
            epochs=int(self.max_iter),
            seed=seed,
            **own,
        )

    def _make_task(self, prepared: Prepared) -> Task:
        """The perceptron."""
        return SklearnMLP(regression=prepared.y.dtype.kind == "f")

    def _layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        check_is_fitted(self, "variables_")
        params = self.variables_.params
        found = [
            (stack["affine"]["kernel"][i], stack["affine"]["bias"][i])
            for stack in stacks(params)
            for i in range(len(stack["affine"]["bias"]))
        ]
        found.append((params["last"]["kernel"], params["last"]["bias"]))
        return [(np.asarray(kernel).T, np.asarray(bias)) for kernel, bias in found]

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights of each layer, (in, out)."""
        return [kernel for kernel, _ in self._layers()]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases of each layer, (out,)."""
        return [bias for _, bias in self._layers()]

    @property
    def n_layers_(self) -> int:
        """The number of layers, input and output among them."""
        return len(self._layers()) + 1


class MLPClassifier(NetworkClassifier, _MLP):
    """A multi-layer perceptron, with the parameters of `sklearn.neural_network.MLPClassifier`.

    It trains in float32 (unless JAX's option `jax_enable_x64` is set; the data are float32 in any
    case), with one seed from `random_state` for everything, and converges as scikit-learn's does:
    the same loss with the same penalty, initial weights from the same distribution, Adam or
    stochastic gradient descent, the same counting of epochs without improvement. With two classes,
    there are two outputs and a softmax.

    Not supported, and refused by name, are `solver="lbfgs"` (so `max_fun` accepts only its
    default), learning rates that vary ("invscaling", "adaptive"; so `power_t` accepts only its
    default), `shuffle=False`, `warm_start=True`, networks without a hidden layer, `momentum=1`, and
    multilabel targets. There is no `partial_fit`: each call would start with fresh optimizer
    moments.

    Args:
        hidden_layer_sizes: the units of each hidden layer.
        activation: "relu", "tanh", "logistic" or "identity".
        solver: "adam" or "sgd".
        alpha: the factor of the penalty alpha / 2n · Σ w², where n is the number of examples in a
            batch.
        batch_size: the number of examples in a batch; "auto" for 200, or all if there are fewer.
        learning_rate: "constant".
        learning_rate_init: the learning rate.
        max_iter: the maximum number of epochs.
        shuffle: True.
        random_state: a number, or as scikit-learn has it.
        tol: an epoch counts as an improvement only if it is better than the best by at least this.
            With None, training never stops early; with `early_stopping`, None means 0.
        verbose: whether progress is shown, as a bool or as a number above 0.
        warm_start: False.
        momentum: of "sgd".
        nesterovs_momentum: of "sgd".
        early_stopping: whether the accuracy on held-out examples decides, instead of the loss.
        validation_fraction: the share of examples to hold out.
        beta_1: of "adam", and so are `beta_2` and `epsilon`.
        beta_2: see there.
        epsilon: see there.
        n_iter_no_change: training ends after more than this many epochs without improvement.
        power_t: 0.5; not used.
        max_fun: 15000; not used.

    Attributes:
        classes_: the classes, (C,).
        loss_curve_: the mean loss of each epoch's steps, penalty included; the last is `loss_`.
            Weighted, each step counts by the weight of its examples (scikit-learn: by their
            number).
        validation_scores_: with `early_stopping`, the accuracy after each epoch.
        n_iter_: the number of epochs trained.
        coefs_: the weights of each layer, (in, out); `intercepts_` the biases.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((16,), learning_rate_init=0.03, max_iter=60, random_state=0, tol=None)
    >>> model.fit(X, y).score(X, y) > 0.9, model.predict_proba(X).shape
    (True, (150, 3))
    """


class MLPRegressor(NetworkRegressor, _MLP):
    """A multi-layer perceptron, with the parameters of `sklearn.neural_network.MLPRegressor`.

    See `MLPClassifier` for them, and for what is not supported. `loss`, the first parameter in
    scikit-learn 1.7 and later, is not supported either: pass `hidden_layer_sizes` by name in code
    for both. If y is (N, 1), so are predictions, which scikit-learn ravels. The loss is half the
    squared error: over several targets the gradient is that of their sum, and `loss_curve_` has
    their mean, as in scikit-learn. With `early_stopping`, R² on held-out examples decides.

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MLPRegressor((16,), learning_rate_init=0.1, max_iter=60, random_state=0, tol=None)
    >>> model.fit(10 * X, y / 100).score(10 * X, y / 100) > 0.4
    True
    """
