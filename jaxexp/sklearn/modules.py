"""Any Flax module as an estimator of scikit-learn.

Shapes: N examples, C classes, K outputs, B examples of a batch.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.planning.kinds import static_key
from jaxexp.sklearn.base import Network, NetworkClassifier, NetworkRegressor, Prepared
from jaxexp.spec.trial import Trial
from jaxexp.training import keys, metrics
from jaxexp.training.models import model_of, naming
from jaxexp.training.supervised import supervised
from jaxexp.training.task import TRIED, Task

NESTED = "trial__"  # how names of hyperparameters begin, among the estimator's parameters


class _Module(Network):
    """What classifier and regressor have in common."""

    apart = (*Network.apart, "module", "loss", "optimizer")
    allow_nd = True  # images

    def __init__(
        self, module: Any, trial: Trial | None = None, *, loss: Any = None,
        optimizer: Any = None, tol: float | None = None,
        n_iter_no_change: float = 10, early_stopping: bool = False,
        validation_fraction: float = 0.1, random_state: Any = None, verbose: bool | int = False,
    ) -> None:  # fmt: skip
        """See `Classifier`."""
        self.module, self.trial, self.loss, self.optimizer = module, trial, loss, optimizer
        self.tol, self.n_iter_no_change = tol, n_iter_no_change
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.random_state, self.verbose = random_state, verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters; `deep` adds the trial's hyperparameters, as `trial__width`."""
        own: dict[str, Any] = super().get_params(deep=deep)
        if deep and isinstance(self._trial, Trial):
            own |= {f"{NESTED}{name}": value for name, value in self._trial.values().items()}
        return own

    def set_params(self, **params: Any) -> Self:
        """Set parameters, hyperparameters among them; raises ValueError for unknown ones."""
        nested = {n: params.pop(n) for n in [*params] if n.startswith(NESTED)}
        super().set_params(**params)
        if nested:
            self._check_trial()
            values = {name.removeprefix(NESTED): value for name, value in nested.items()}
            try:
                self.trial = self._trial.replace(**values)
            except UserError as error:
                raise ValueError(str(error)) from error
        return self

    def _check(self) -> None:
        """Raise ValueError for parameters that cannot be."""
        super()._check()
        self._check_trial()
        for name, instead in (("seed", "random_state"), ("fold", "VectorizedSearchCV(cv=…)")):
            if own := getattr(self._trial, name):
                raise ValueError(f"trial.{name}={own}: expected 0; there is {instead}")

    def _check_trial(self) -> None:
        if not isinstance(self._trial, Trial):
            self._refuse("trial", "a jaxexp.Trial, or None")

    def _make_trial(self, n: int, seed: int) -> Trial:
        """The trial, with batches no larger than the data."""
        return self._trial.replace(seed=seed, batch_size=min(self._trial.batch_size, n))

    def _reason(self, error: UserError, prepared: Prepared, trials: Sequence[Trial]) -> str:
        """The task takes targets for wrong where the outputs are too few or too many."""
        with contextlib.suppress(UserError):
            for trial in {static_key(trial): trial for trial in trials}.values():
                shape = getattr(self._outputs_of(prepared, trial), "shape", ())
                n = (*shape[1:], 1)[0]
                if len(shape) in (1, 2) and (expected := self._expected(prepared, shape, n)):
                    return f"module: {n} output{'s' * (n > 1)}, expected {expected}"
        return str(error)

    def _expected(self, prepared: Prepared, shape: tuple[int, ...], n: int) -> str:
        """In words; "" where n outputs for each example, (B,) or (B, n), are those of y."""
        raise NotImplementedError

    @property
    def _trial(self) -> Trial:
        return Trial() if self.trial is None else self.trial

    @property
    def _kind(self) -> object:
        return static_key(self._trial)

    @property
    def _own_module(self) -> Any:
        """A copy, since modules keep what they have been called with."""
        return self.module.clone() if isinstance(self.module, linen.Module) else self.module

    def _outputs_of(self, prepared: Prepared, trial: Trial) -> jax.ShapeDtypeStruct:
        """The module's outputs of a few examples; raises UserError if it makes none."""
        like = jax.ShapeDtypeStruct((TRIED, *prepared.X_NxF.shape[1:]), np.float32)

        def outputs(rng: Array, x: Array) -> Array:
            model, mask = model_of(self._own_module), jnp.ones(TRIED, bool)
            variables = model.init(trial, rng, x[:1])
            made: Array = model.apply(trial, variables, x, rng=rng, mask=mask, train=False)[0]
            return made

        with naming("module", inputs=like):
            made: jax.ShapeDtypeStruct = jax.eval_shape(outputs, keys.like(), like)
            return made


class Classifier(NetworkClassifier, _Module):
    """A Flax module that classifies.

    Args:
        module: as for `jaxexp.supervised`; its outputs are logits (B, C), or (B,) for two classes.
        trial: its hyperparameters, the optimizer's, the epochs and the batch size; `jaxexp.Trial()`
            if None. A search varies them by names like `trial__learning_rate`.
        loss: a function of logits and labels (B,) that returns (B,); by default the cross entropy.
        optimizer: as for `jaxexp.supervised`; by default the one that the trial names.
        tol: an epoch counts as an improvement only if it is better than the best by at least this.
            With None, training never stops early; with `early_stopping`, None means 0.
        n_iter_no_change: training ends after more than this many epochs in a row without
            improvement.
        early_stopping: whether the accuracy on held-out examples decides, instead of the loss.
        validation_fraction: the share of examples to hold out.
        random_state: decides everything that is random, the trial's seed too.
        verbose: whether progress is shown.

    `fit` keeps `classes_`, `trial_`, `variables_` (parameters and state), `n_iter_` and
    `loss_curve_`. Inputs may have rank 2 or higher.

    >>> from flax import linen as nn
    >>> import jaxexp as jx
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> trial = jx.Trial(epochs=30, batch_size=32, learning_rate=0.05)
    >>> module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    >>> model = Classifier(module, trial, random_state=0)
    >>> model.fit(X, y).score(X, y) > 0.9
    True
    """

    def _expected(self, prepared: Prepared, shape: tuple[int, ...], n: int) -> str:
        n_classes = len(prepared.attributes["classes_"])
        if (n, n_classes) == (1, 2):
            return "outputs (B,) or (B, 2) for two classes, not (B, 1)" if len(shape) == 2 else ""
        return "" if n == n_classes else f"one for each of the {n_classes} classes of y"

    def _make_task(self, prepared: Prepared) -> Task:
        """The module with its loss, and the accuracy as a metric."""
        return supervised(
            module=self._own_module,
            loss=self.loss or cross_entropy,
            metrics={"accuracy": metrics.accuracy},
            optimizer=self.optimizer,
        )


class Regressor(NetworkRegressor, _Module):
    """A Flax module that predicts numbers.

    Parameters are those of `Classifier`; the loss is by default the squared error, and with
    `early_stopping` R² decides. The module's outputs are (B, K), or (B,) or (B, 1) if `y` is (N,).

    >>> from flax import linen as nn
    >>> import jaxexp as jx
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> trial = jx.Trial(epochs=60, batch_size=20, learning_rate=0.03)
    >>> module = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(1)])
    >>> y = np.sin(3 * X[:, 0])
    >>> Regressor(module, trial, random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    def _shaped(self, prepared: Prepared) -> Prepared:
        """With targets of as many axes as the module's outputs have."""
        if prepared.y.shape[1] > 1:
            return prepared
        try:
            outputs = self._outputs_of(prepared, self._trial)
        except UserError as error:
            raise ValueError(str(error)) from error
        return prepared if outputs.ndim > 1 else dataclasses.replace(prepared, y=prepared.y[:, 0])

    def _expected(self, prepared: Prepared, shape: tuple[int, ...], n: int) -> str:
        k, one = (prepared.attributes[name] for name in ("n_outputs_", "_one_output"))
        return "" if n == k else f"{k}, for y of shape {'(N,)' if one else f'(N, {k})'}"

    def _make_task(self, prepared: Prepared) -> Task:
        """The module with its loss, and R² as a metric."""
        return supervised(
            module=self._own_module,
            loss=self.loss or squared_error,
            metrics={"r2": metrics.r2_around(0.0, force_finite=True)},
            optimizer=self.optimizer,
        )


def cross_entropy(logits: Array, label_B: Array) -> Array:
    """Of logits (B, C), or (B,) of two classes: (B,), in nats."""
    if logits.ndim == 1:
        loss_B: Array = optax.sigmoid_binary_cross_entropy(logits, label_B)
    else:
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits, label_B)
    return loss_B


def squared_error(prediction: Array, target: Array) -> Array:
    """Of predictions and targets of one shape, (B,) or (B, K): (B,), the mean over outputs."""
    return jnp.square(prediction - target).reshape(len(target), -1).mean(1)
