"""The usual task: a model, a loss between prediction and target, metrics, an optimizer."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.spec.trial import Trial
from jaxexp.training import optimizers
from jaxexp.training.data import Data, Examples
from jaxexp.training.labels import check_labels
from jaxexp.training.metrics import Metric
from jaxexp.training.task import Arrays, Batch, Outputs, PyTree, Task, Variables, accepts

# How modules call what says whether they train, and its value in training.
TRAINING = {"train": True, "training": True, "is_training": True}
TRAINING |= {"deterministic": False, "use_running_average": False}


def supervised(
    *,
    module: Callable[..., Any] | linen.Module | None = None,
    init: Callable[..., PyTree] | None = None,
    apply: Callable[..., Array] | None = None,
    loss: Callable[[Any, Any], Array],
    metrics: Mapping[str, Metric] | None = None,
    optimizer: Callable[..., optax.GradientTransformation] | None = None,
    loss_unit: str = "",
    evaluation_batch_size: int = 1024,
) -> "Supervised":
    """The task of predicting targets y from inputs x, of examples made by `jaxexp.arrays`.

    Args:
        module: a function of the trial that returns a Flax linen module; or of the trial and
            `rngs` (`flax.nnx.Rngs`) that returns an nnx module; or a linen module. It is called
            with inputs (B, ...), and with those of `train`, `deterministic`, `mask` (B,) and `rng`
            that it takes.
        init: instead of a module, a function of (trial, rng, x) that returns parameters, x being
            one example, (1, ...).
        apply: with `init`, a function of (trial, params, x) that returns a prediction, (B, ...);
            it is given `train`, `mask` and `rng` too, where it takes them.
        loss: a function of a batch's prediction and target that returns (B,).
        metrics: of `jaxexp.metrics`, or your own `jaxexp.Metric`, by name.
        optimizer: a function of (trial), or of (trial, steps), the number of steps that the trial
            will take; the built-in one that `trial.optimizer` names, if not given.
        loss_unit: of the loss, for figures and tables.
        evaluation_batch_size: how many examples are evaluated at once.

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
    model: _Model
    if init is not None and apply is not None:
        model = _Functions(_function("init", init), _function("apply", apply))
    elif isinstance(module, linen.Module):
        model = _Linen(lambda trial: module)
    else:
        made_by = _function("module", module)
        model = (_Nnx if _arity(made_by) > 1 else _Linen)(made_by)
    made = {} if metrics is None else dict(metrics)
    for name, metric in made.items():
        if not isinstance(metric, Metric):
            raise UserError(
                f"metrics[{name!r}] is {metric!r}, expected one of jaxexp.metrics, or "
                "jaxexp.Metric('higher' or 'lower', example=function)"
            )
        if name == "loss" or not name.isidentifier():
            raise UserError(f"metrics[{name!r}]: expected a name like 'accuracy', but not 'loss'")
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        _function("optimizer", optimizer)
    return Supervised(
        model, _function("loss", loss), made, optimizer, loss_unit, evaluation_batch_size
    )


class Supervised(Task):
    """What `supervised` returns; two of the same parts are equal."""

    def __init__(
        self, model: "_Model", loss: Callable[[Any, Any], Array], metrics: Mapping[str, Metric],
        optimizer: Any, loss_unit: str, evaluation_batch_size: int, classification: bool = False,
    ) -> None:  # fmt: skip
        """See `supervised`; `classification` says whether targets are labels."""
        self._parts = (
            model, loss, tuple(metrics.items()), optimizer, loss_unit, evaluation_batch_size,
            classification,
        )  # fmt: skip
        self.model, self.loss, self.metrics = model, loss, dict(metrics)
        self._optimizer, self.loss_unit = optimizer, loss_unit
        self.evaluation_batch_size, self.classification = evaluation_batch_size, classification

    def __eq__(self, other: object) -> bool:
        """Equal parts."""
        return isinstance(other, Supervised) and self._parts == other._parts

    def __hash__(self) -> int:
        """Of the parts."""
        return hash(self._parts)

    def bind(self, data: Data) -> "Supervised":
        """For these data: some metrics take a constant from the targets to train on.

        Raises UserError for data that are no `Examples`, or have no targets.
        """
        if not isinstance(data.train, Examples) or data.train.y is None:
            raise UserError(
                "a supervised task needs jaxexp.Examples with inputs x and targets y, as "
                "jaxexp.arrays makes them; other examples need a Task of their own"
            )
        y = data.train.y
        metrics = {name: metric.for_target(y) for name, metric in self.metrics.items()}
        labels = getattr(y, "dtype", None) is not None and y.dtype.kind in "iu" and y.ndim == 1
        return Supervised(
            self.model, self.loss, metrics, self._optimizer, self.loss_unit,
            self.evaluation_batch_size, labels,
        )  # fmt: skip

    def check(self, trial: Trial, data: Data) -> None:
        """Raise UserError unless the model's prediction fits the targets, and labels its classes.

        Checked is what no gradient would complain of: labels past the classes, and a prediction
        (B, 1) of a target (B,), which broadcasts to (B, B).
        """
        if self._optimizer is None:
            optimizers.check(trial)
        prediction, target = self._shapes(trial, data)
        shape, wanted = getattr(prediction, "shape", None), getattr(target, "shape", None)
        if shape is None or wanted is None:
            return
        if shape[1:] != wanted[1:] and (shape == (*wanted, 1) or wanted == (*shape, 1)):
            raise UserError(
                f"the prediction of a batch of {wanted[0]} has the shape {shape}, its target "
                f"{wanted}: they would be compared each with each; expected equal shapes"
            )
        if self.classification and len(shape) == 2 and shape[1] > 1:
            check_labels(data, shape[1])
        elif self.classification and shape == wanted and "accuracy" in self.metrics:
            check_labels(data, 2)

    def _shapes(self, trial: Trial, data: Data) -> tuple[Any, Any]:
        """Of the prediction and the target of two examples."""
        x, y = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype), (data.train.x, data.train.y)
        )

        def predict(rng: Array, x: PyTree) -> Any:
            variables = self.model.init(trial, rng, x)
            mask = jnp.ones(2, bool)
            return self.model.apply(trial, variables, x, rng=rng, mask=mask, train=False)[0]

        return jax.eval_shape(predict, jax.eval_shape(lambda: jax.random.key(0)), x), y

    def uses_mask(self, trial: Trial, data: Data) -> bool:
        """Whether batch statistics, if there are any, leave padding out."""
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), data.train.x)
        return self.model.uses_mask(trial, x)

    def init(self, trial: Trial, rng: Array, data: Arrays) -> Variables:
        """The model's."""
        x = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), data["train"].x)
        return self.model.init(trial, rng, x)

    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """Loss, prediction and target of a batch."""
        prediction, state = self.model.apply(
            trial, variables, batch.x, rng=rng, mask=mask, train=train
        )
        loss_B = self.loss(prediction, batch.y)
        return Outputs(loss_B, prediction, batch.y, state=state)

    def optimizer(self, trial: Trial, steps: int) -> optax.GradientTransformation:
        """The one given, or the one that the trial names."""
        if self._optimizer is None:
            return optimizers.built_in(trial)
        if isinstance(self._optimizer, optax.GradientTransformation):
            return self._optimizer
        arguments = (trial, steps)[: 2 if self.optimizer_uses_steps(trial) else 1]
        made = self._optimizer(*arguments)
        if not isinstance(made, optax.GradientTransformation):
            raise UserError(
                f"optimizer: the function returned {type(made).__name__}, expected an "
                "optax.GradientTransformation"
            )
        return made

    def optimizer_uses_steps(self, trial: Trial) -> bool:
        """Whether the function given takes `steps`."""
        return callable(self._optimizer) and _arity(self._optimizer) > 1

    def predict(self, trial: Trial, variables: Variables, x: PyTree) -> PyTree:
        """The model's prediction (B, ...) of inputs (B, ...), in evaluation mode."""
        mask = jnp.ones(len(jax.tree.leaves(x)[0]), bool)
        rng = jax.random.key(0)
        return self.model.apply(trial, variables, x, rng=rng, mask=mask, train=False)[0]

    def probabilities(self, prediction: Array) -> Array | None:
        """Of classes, (B, C): the softmax of logits, or the sigmoid of one; None for numbers."""
        if not self.classification:
            return None
        if prediction.ndim == 1:
            of_one = jax.nn.sigmoid(prediction)
            return jnp.stack([1 - of_one, of_one], axis=1)
        return jax.nn.softmax(prediction)


class _Model:
    """A model as the task sees it; equal where the functions it is made of are the same."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.functions = functions

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.functions == other.functions

    def __hash__(self) -> int:
        return hash(self.functions)

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        raise NotImplementedError

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[Any, PyTree]:
        """The prediction, and the new state."""
        raise NotImplementedError

    def uses_mask(self, trial: Trial, x: PyTree) -> bool:
        raise NotImplementedError


class _Functions(_Model):
    """Plain functions: no state."""

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        return Variables(self.functions[0](trial, rng, x))

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[Any, PyTree]:
        given = {"rng": rng, "mask": mask, "train": train}
        own = {name: value for name, value in given.items() if accepts(self.functions[1], name)}
        return self.functions[1](trial, variables.params, x, **own), variables.state

    def uses_mask(self, trial: Trial, x: PyTree) -> bool:
        return True


class _Linen(_Model):
    """A function of the trial that returns a linen module."""

    def _module(self, trial: Trial) -> linen.Module:
        module = self.functions[0](trial)
        if not isinstance(module, linen.Module):
            hint = "; an nnx module is made by a function of (trial, rngs)"
            raise UserError(
                f"module: the function returned {type(module).__name__}, expected a Flax linen "
                f"module{hint if isinstance(module, nnx.Module) else ''}"
            )
        return module

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        module = self._module(trial)
        rngs = {"params": rng, "dropout": jax.random.fold_in(rng, 1)}
        found = module.init(rngs, x, **_call_arguments(module, rng, jnp.ones(1, bool), train=False))
        params = found.get("params", {})
        return Variables(params, {k: v for k, v in found.items() if k != "params"})

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[Any, PyTree]:
        module = self._module(trial)
        tree = {"params": variables.params, **variables.state}
        rngs = {"params": rng, "dropout": jax.random.fold_in(rng, 1)}
        arguments = _call_arguments(module, rng, mask, train=train)
        if not train:
            return module.apply(tree, x, rngs=rngs, **arguments), variables.state
        collections = list(variables.state)
        prediction, new = module.apply(tree, x, rngs=rngs, mutable=collections, **arguments)
        return prediction, {name: new[name] for name in collections}

    def uses_mask(self, trial: Trial, x: PyTree) -> bool:
        module = self._module(trial)
        if accepts(type(module).__call__, "mask"):
            return True
        key = jax.eval_shape(lambda: jax.random.key(0))
        return not jax.eval_shape(lambda rng, x: self.init(trial, rng, x), key, x).state


class _Nnx(_Model):
    """A function of the trial and rngs that returns an nnx module.

    Its parameters and its other variables are trees of plain arrays, as those of linen; its random
    streams are seeded anew in every call.
    """

    def _split(self, model: Any) -> tuple[Any, Any, Any, Any]:
        if not isinstance(model, nnx.Module):
            raise UserError(
                f"module: the function of (trial, rngs) returned {type(model).__name__}, expected "
                "a Flax nnx module"
            )
        parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
        return parts

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        _, params, _, state = self._split(self.functions[0](trial, nnx.Rngs(rng)))
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[Any, PyTree]:
        shapes = nnx.eval_shape(lambda: self.functions[0](trial, nnx.Rngs(0)))
        graph, params, streams, state = self._split(shapes)
        nnx.replace_by_pure_dict(params, variables.params)
        nnx.replace_by_pure_dict(state, variables.state)
        leaves, structure = jax.tree.flatten(streams)
        seeded = [_stream(leaf, rng, i) for i, leaf in enumerate(leaves)]
        model = nnx.merge(graph, params, jax.tree.unflatten(structure, seeded), state)
        model.train() if train else model.eval()
        prediction = model(x, **_call_arguments(model, rng, mask, train=train))
        return prediction, nnx.to_pure_dict(self._split(model)[3]) if train else variables.state

    def uses_mask(self, trial: Trial, x: PyTree) -> bool:
        model = nnx.eval_shape(lambda: self.functions[0](trial, nnx.Rngs(0)))
        return accepts(type(model).__call__, "mask") or not nnx.to_pure_dict(self._split(model)[3])


def _stream(leaf: Any, rng: Array, i: int) -> Array:
    """A random stream's key, or its count."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(rng, i)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _call_arguments(module: Any, rng: Array, mask: Array, *, train: bool) -> dict[str, Any]:
    """What a module wants to be called with beside its inputs."""
    given: dict[str, Any] = {"rng": rng, "mask": mask}
    given |= {name: train == in_training for name, in_training in TRAINING.items()}
    call = type(module).__call__
    return {name: value for name, value in given.items() if accepts(call, name)}


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise UserError(f"{name}: {value!r}, expected a function")
    return value


@functools.cache
def _arity(function: Callable[..., Any]) -> int:
    """How many positional arguments a function takes that have no default."""
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)
