"""The usual task: a model, a loss between prediction and target, metrics, an optimizer."""

import functools
from collections.abc import Callable, Mapping
from itertools import product
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jax import Array
from jax.tree_util import keystr

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int
from jaxexp.base.words import type_of
from jaxexp.planning.kinds import static_key
from jaxexp.spec.arguments import refuses_unknown_arguments
from jaxexp.spec.padding import Choice, Size, value
from jaxexp.spec.trial import Trial, with_values
from jaxexp.training import keys, optimizers, tracing
from jaxexp.training import metrics as metrics_
from jaxexp.training.data import Data, Examples
from jaxexp.training.labels import check_labels
from jaxexp.training.metric import Metric
from jaxexp.training.models import (
    GIVEN,
    Function,
    Functions,
    SupervisedModel,
    arity,
    check_params,
    checked_function,
    model_of,
    naming,
    parameters,
)
from jaxexp.training.optimizing import of_kept_types
from jaxexp.training.task import (
    TRIED,
    Arrays,
    Batch,
    Outputs,
    Task,
    Variables,
    check_state,
    evaluation_variables,
    try_optimizer,
)
from jaxexp.training.trees import PyTree

Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[..., optax.GradientTransformation]  # of the trial
)
OF_LABELS = {metrics_.accuracy, metrics_.auc, metrics_.log_loss, metrics_.brier}
OF_LOGITS = optax.sigmoid_binary_cross_entropy, optax.sigmoid_focal_loss


@refuses_unknown_arguments
def supervised(
    *,
    module: Function | linen.Module | None = None,
    init: Function | None = None,
    apply: Function | None = None,
    loss: Callable[..., Array],
    metrics: Mapping[str, Metric] | None = None,
    optimizer: Optimizer | None = None,
    evaluation_params: Callable[..., PyTree] | None = None,
    loss_unit: str = "",
    evaluation_batch_size: int = 1024,
) -> "Supervised":
    """The task of predicting targets y from inputs x, for examples made by `jaxexp.arrays`.

    Args:
        module: a function of the trial that returns a Flax linen module; or of the trial and
            `rngs` (`flax.nnx.Rngs`) that returns an nnx module; or a linen module. It is called
            with inputs (B, ...), and with whichever of `train`, `deterministic`, `mask` (B,) and
            `rng` it accepts.
        init: instead of a module, a function of (trial, rng, x) that returns parameters, x being
            one example, (1, ...).
        apply: with `init`, a function of (trial, params, x) that returns a prediction, (B, ...);
            it is also given `train`, `deterministic`, `mask` and `rng`, if it accepts them.
        loss: a function of a batch's prediction and target that returns (B,); or of (trial,
            prediction, target), if it depends on hyperparameters. A loss that compares the examples
            of a batch also takes `mask` (B,), which is False for rows that only fill it up. With
            predictions (B, K), targets (B,) of whole numbers are labels; pass counts, or the groups
            of a contrastive loss, as floats. Predictions (B,) are logits if the data name two
            classes, or if targets are 0 or 1 and either a metric is one of labels (accuracy, AUC,
            log loss, Brier score) or the loss is `optax.sigmoid_binary_cross_entropy` or
            `sigmoid_focal_loss` itself; otherwise they are numbers.
        metrics: those of `jaxexp.metrics`, or your own `jaxexp.Metric`, by name.
        optimizer: a function of (trial), or of (trial, steps) with the number of steps that the
            trial will take; by default the built-in one that `trial.optimizer` names. Traced
            hyperparameters are arrays in it, which some optax schedules do not accept: give those
            a peak of 1, and append `optax.scale(trial.learning_rate)`.
        evaluation_params: a function of (params, optimizer_state), or of (trial, params,
            optimizer_state), that returns the parameters at which trials are evaluated, ranked and
            returned, such as an average that the optimizer keeps. By default those that are
            trained, or the average of a schedule-free optimizer of `optax.contrib`.
        loss_unit: the unit of the loss, for figures and tables.
        evaluation_batch_size: how many examples are evaluated at once. If a split has more, a loss
            that compares the examples of a batch, and noise drawn in evaluation, depend on it.

    Raises:
        UserError: neither a module nor both functions, or something that is not what it should be.

    >>> import optax
    >>> task = supervised(
    ...     init=lambda trial, rng, x: {"w": jnp.zeros(x.shape[-1])},
    ...     apply=lambda trial, params, x: x @ params["w"],
    ...     loss=optax.squared_error,
    ... )
    """
    if (module is None) == (init is None and apply is None) or (init is None) != (apply is None):
        raise UserError("expected either `module`, or both `init` and `apply`")
    model: SupervisedModel
    if init is not None and apply is not None:
        model = Functions(
            checked_function("init", init, ("trial", "rng", "x")),
            checked_function("apply", apply, ("trial", "params", "x"), by_name=GIVEN),
        )
    else:
        model = model_of(module)
    if metrics is not None and not isinstance(metrics, Mapping):
        raise UserError(
            f"metrics is {type_of(metrics)}, expected a dict of names and metrics: "
            "{'accuracy': jaxexp.metrics.accuracy}"
        )
    made = {} if metrics is None else dict(metrics)
    for name, metric in made.items():
        if not isinstance(metric, Metric):
            raise UserError(
                f"metrics[{name!r}] is {metric!r}, expected one of jaxexp.metrics, or "
                "jaxexp.Metric('higher' or 'lower', example=function)"
            )
        if name == "loss" or not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"metrics[{name!r}]: expected a name like 'accuracy', but not 'loss'")
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        checked_function("optimizer", optimizer, ("trial",), ("trial", "steps"))
        if (getattr(optimizer, "__module__", None) or "").partition(".")[0] == "optax":
            raise UserError(
                f"optimizer: {optimizer.__name__} of optax itself, expected a function of the "
                f"trial: lambda trial: optax.{optimizer.__name__}(trial.learning_rate)"
            )
    checked_function(
        "loss", loss, ("prediction", "target"), ("trial", "prediction", "target"), by_name=("mask",)
    )
    if evaluation_params is not None:
        given = ("params", "optimizer_state")
        checked_function("evaluation_params", evaluation_params, given, ("trial", *given))
    if not isinstance(loss_unit, str):
        raise UserError(f"loss_unit={loss_unit!r}: expected text, such as 'nats'")
    size = checked_int("evaluation_batch_size", evaluation_batch_size)
    return Supervised(model, loss, made, optimizer, evaluation_params, loss_unit, size)


class Supervised(Task):
    """What `supervised` returns; two made of the same parts are equal."""

    def __init__(
        self, model: "SupervisedModel", loss: Callable[..., Array], metrics: Mapping[str, Metric],
        optimizer: Optimizer | None, evaluation_params: Callable[..., PyTree] | None,
        loss_unit: str, evaluation_batch_size: int,
        classification: bool = False, binary: bool = False,
    ) -> None:  # fmt: skip
        """See `supervised`.

        `classification` says whether targets may be labels, `binary` whether predictions (B,) are
        logits.
        """
        self._parts = (
            model, loss, tuple(metrics.items()), optimizer, evaluation_params, loss_unit,
            evaluation_batch_size, classification, binary,
        )  # fmt: skip
        self.binary = binary
        self.model, self.loss, self.metrics = model, loss, dict(metrics)
        self._optimizer, self.loss_unit = optimizer, loss_unit
        self._evaluation_params = evaluation_params
        self.evaluation_batch_size, self.classification = evaluation_batch_size, classification
        self._checked: set[object] = set()

    def __eq__(self, other: object) -> bool:
        """Whether both are made of equal parts."""
        return isinstance(other, Supervised) and self._parts == other._parts

    def __hash__(self) -> int:
        """The hash of the parts."""
        return hash(self._parts)

    def bind(self, data: Data) -> "Supervised":
        """The task for these data: some metrics take a constant from the training targets.

        Raises UserError if the data are not `Examples`, or have no targets.
        """
        if not isinstance(data.train, Examples) or data.train.y is None:
            raise UserError(
                "a supervised task needs jaxexp.Examples with inputs x and targets y, as "
                "jaxexp.arrays makes them; other examples need a Task of their own"
            )
        y = jax.tree.map(lambda a: a[data.counted], data.train.y)
        metrics = {name: metric.for_target(y) for name, metric in self.metrics.items()}
        labels = isinstance(y, np.ndarray) and y.dtype.kind in "iu" and y.ndim == 1
        told = self.loss in OF_LOGITS or not OF_LABELS.isdisjoint(self.metrics.values())
        two = len(data.classes) == 2 if data.classes else told and {*np.unique(y)} <= {0, 1}
        return Supervised(
            self.model, self.loss, metrics, self._optimizer, self._evaluation_params,
            self.loss_unit, self.evaluation_batch_size, labels,
            labels and two,
        )  # fmt: skip

    def check(self, trial: Trial, data: Data) -> None:
        """Raise UserError unless the parts fit the trial, the data and each other.

        Every function is traced once for all trials whose static values agree. Mistakes that no
        gradient would complain of are refused, too: labels beyond the classes, and predictions
        (B, 1) for targets (B,), which broadcast to (B, B).
        """
        if self._optimizer is None:
            optimizers.check(trial)
        key = (static_key(trial), data)
        if key not in self._checked:
            self._check(trial, data)
            self._checked.add(key)
        if self.optimizer_uses_steps(trial):
            steps = data.steps_of(trial)
            if (key, steps) not in self._checked:
                with naming(f"optimizer of {steps:,} steps"):
                    self.optimizer(trial, steps)
                self._checked.add((key, steps))

    def _check(self, trial: Trial, data: Data) -> None:
        traced = tracing.traced_shapes(trial)
        try:
            prediction, target = self._trace(trial, data, traced)
        except UserError as error:
            names = tracing.guilty(functools.partial(self._trace, trial, data), traced)
            if not names:  # it has nothing to do with tracing
                raise
            raise UserError(f"{error} ({tracing.because_traced(names)})") from error
        if not (hasattr(prediction, "shape") and hasattr(target, "shape")):
            return
        shape, wanted = prediction.shape, target.shape
        if shape[:1] != wanted[:1]:
            raise UserError(
                f"the prediction of a batch of {wanted[0]} has the shape {shape}, expected "
                f"({wanted[0]}, ...): one for each example"
            )
        if self.classification and len(shape) == 2 and shape[1] > 1:
            try:
                check_labels(data, shape[1])
            except UserError as error:
                counts = "; whole numbers are labels there: give counts as y.astype('float32')"
                raise UserError(
                    f"predictions are (B, {shape[1]}): {error}{'' if data.classes else counts}"
                ) from error
        elif self.classification and shape == wanted and OF_LABELS & set(self.metrics.values()):
            check_labels(data, 2)

    def _trace(
        self, trial: Trial, data: Data, traced: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[PyTree, PyTree]:
        """Trace a step of training and of evaluation; return the shapes of prediction and target.

        The `traced` hyperparameters are numbers inside the program. Raises a UserError that names
        the part that fails.
        """
        (x, y, *_), _ = tracing.batch_of({"train": data.train}, TRIED)

        def step(rng: Array, x: PyTree, y: PyTree, traced: Mapping[str, Array]) -> PyTree:
            own, mask = with_values(trial, **traced), jnp.ones(TRIED, bool)
            with naming(self.model.names[0]):
                self.model.check(own)
                variables = self.model.init(own, rng, jax.tree.map(lambda a: a[:1], x))
            check_params(self.model.names[0], variables.params)
            for train in (True, False):
                with naming(self.model.names[1], inputs=x):
                    prediction, state = self.model.apply(
                        own, variables, x, rng=rng, mask=mask, train=train
                    )
                check_state(self.model.names[1], variables.state, state, self.model.expected)
            _check_broadcast(prediction, y)
            part = "loss"
            if self._loss_begins_with_trial() and parameters(self.loss)[0] != "trial":
                part += ", called as (trial, prediction, target) since it takes three arguments"
            with naming(part, prediction=prediction, target=y):
                loss_B = self._loss(own, prediction, y, mask)
            if jnp.shape(loss_B) == (TRIED,):  # otherwise `inspect` reports it
                for name, metric in self.metrics.items():
                    with naming(f"metrics[{name!r}]", prediction=prediction, target=y):
                        sums = metric.sums_of(None, prediction, y, jnp.ones(TRIED), name=name)
                        metric.compute(sums, name=name)
            with naming("optimizer"):
                optimizer = of_kept_types(self.optimizer(own, 1000))
                try_optimizer("optimizer", optimizer, variables.params)
            with naming("evaluation_params"):
                evaluation_variables(self, own, variables, optimizer.init(variables.params))
            return prediction

        return jax.eval_shape(step, keys.like(), x, y, dict(traced)), y

    def init(self, trial: Trial, rng: Array, data: Arrays) -> Variables:
        """The model's parameters and state."""
        trial = _plain(trial)
        x = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), data["train"].x)
        return self.model.init(trial, rng, x)

    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """Loss, prediction and target of a batch."""
        prediction, state = self.model.apply(
            _plain(trial), variables, batch.x, rng=rng, mask=mask, train=train
        )
        return Outputs(
            self._loss(trial, prediction, batch.y, mask), prediction, batch.y, state=state
        )

    def _loss(self, trial: Trial, prediction: PyTree, target: PyTree, mask: Array) -> Array:
        names = parameters(self.loss)
        named: dict[str, PyTree] = {"mask": mask} if "mask" in names else {}
        if "trial" in names[1:]:
            return self.loss(prediction, target, trial=_plain(trial), **named)
        own = (_plain(trial),) if self._loss_begins_with_trial() else ()
        return self.loss(*own, prediction, target, **named)

    def _loss_begins_with_trial(self) -> bool:
        """Whether the loss has three required arguments, not counting the mask."""
        return "trial" not in parameters(self.loss)[1:] and arity(self.loss, but=("mask",)) > 2

    def optimizer(self, trial: Trial, steps: int) -> optax.GradientTransformation:
        """The optimizer given to `supervised`, or else the one that the trial names."""
        if self._optimizer is None:
            return optimizers.built_in(trial)
        if isinstance(self._optimizer, optax.GradientTransformation):
            return self._optimizer
        if isinstance(trial.optimizer, Choice):  # the function is called for each
            return optimizers.one_of(
                trial.optimizer,
                lambda name: self.optimizer(with_values(trial, optimizer=name), steps),
            )
        arguments = (_plain(trial), steps)[: 2 if self.optimizer_uses_steps(trial) else 1]
        made = self._optimizer(*arguments)
        if not isinstance(made, optax.GradientTransformation):
            hint = ": its .gradient_transformation()" if isinstance(made, optax.MultiSteps) else ""
            raise UserError(
                f"optimizer: the function returned {type(made).__name__}, expected an "
                f"optax.GradientTransformation{hint}"
            )
        return made

    def optimizer_uses_steps(self, trial: Trial) -> bool:
        """Whether the optimizer is a function that takes `steps`."""
        made = self._optimizer
        return callable(made) and (arity(made) > 1 or parameters(made)[1:2] == ("steps",))

    def evaluation_params(self, trial: Trial, params: PyTree, optimizer_state: PyTree) -> PyTree:
        """What the given function returns; without one, what any task returns."""
        own = self._evaluation_params
        if own is None:
            return super().evaluation_params(trial, params, optimizer_state)
        with_trial = arity(own) > 2 or parameters(own)[:1] == ("trial",)

        def of(trial: Trial, params: PyTree, state: PyTree) -> PyTree:
            return own(*((_plain(trial),) if with_trial else ()), params, state)

        return optimizers.evaluated(trial, params, optimizer_state, of)

    def predict(self, trial: Trial, variables: Variables, x: PyTree) -> PyTree:
        """The model's prediction (B, ...) of inputs (B, ...), in evaluation mode."""
        mask = jnp.ones(len(jax.tree.leaves(x)[0]), bool)
        rng = keys.key(0)
        return self.model.apply(trial, variables, x, rng=rng, mask=mask, train=False)[0]

    def probabilities(self, prediction: PyTree) -> Array | None:
        """Class probabilities, (B, C): softmax of logits, or sigmoid of one; None for numbers.

        `supervised` says when predictions (B,) are logits and when they are numbers. Trees of
        arrays, and arrays with more axes, have no probabilities.
        """
        if not self.classification or not isinstance(prediction, Array):
            return None
        if prediction.ndim == 1 and self.binary:
            of_one = jax.nn.sigmoid(prediction)
            return jnp.stack([1 - of_one, of_one], axis=1)
        return jax.nn.softmax(prediction) if prediction.ndim == 2 else None


def _plain(trial: Trial) -> Trial:
    """The trial with its own batch size as a number, if the program pads batches."""
    batch_size = vars(trial)["batch_size"]  # not as an attribute: `watch` would count it as read
    if isinstance(batch_size, Size):
        return with_values(trial, batch_size=value(batch_size))
    return trial


def _check_broadcast(prediction: PyTree, target: PyTree, where: str = "") -> None:
    """Refuse (B, 1) beside (B,), which most losses would broadcast to (B, B).

    Dicts are compared by their common keys, and trees of equal structure leaf by leaf. Other trees
    are refused if every leaf of one clashes like this with every leaf of the other.
    """
    if isinstance(prediction, Mapping) and isinstance(target, Mapping):
        for key in sorted(prediction.keys() & target.keys()):
            _check_broadcast(prediction[key], target[key], f"{where}[{key!r}]")
        return
    leaves, targets = map(jax.tree.leaves_with_path, (prediction, target))
    alike = str(jax.tree.structure(prediction)) == str(jax.tree.structure(target))
    pairs = list(zip(leaves, targets, strict=True) if alike else product(leaves, targets))
    unlike = []
    for (path, made_B), (below, wanted_B) in pairs:
        shape, wanted = jnp.shape(made_B), jnp.shape(wanted_B)
        if shape and wanted and (shape == (*wanted, 1) or wanted == (*shape, 1)):
            unlike.append((shape, wanted, keystr(path), keystr(below)))
    if unlike and (alike or len(unlike) == len(pairs)):
        shape, wanted, *paths = unlike[0]
        names = f"prediction{where}{paths[0]}", f"target{where}{paths[1]}"
        raise UserError(
            f"the {names[0]} of a batch of {wanted[0]} has the shape {shape}, its {names[1]} "
            f"{wanted}: most losses and metrics would compare each with each; expected equal "
            f"shapes, as of {names[len(shape) < len(wanted)]}[..., 0]"
        )
