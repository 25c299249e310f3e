"""What a researcher writes: a model, its loss, and how its results are measured.

Shapes: B examples of a batch, N of a split.
"""

import abc
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxexp.base.errors import UserError, in_one_line
from jaxexp.base.words import type_of
from jaxexp.planning.cost import Cost
from jaxexp.spec.trial import Trial
from jaxexp.training import optimizers
from jaxexp.training.checks import check_weight, row_count
from jaxexp.training.data import Data, Examples
from jaxexp.training.metric import Metric
from jaxexp.training.trees import PyTree as PyTree

# Of the batch that a task is tried with: seldom the length of another axis, which it would be taken
# for, and enough for a rule that ranks a few.
TRIED = 7
Batch: TypeAlias = PyTree  # arrays whose first axis is the example: (B, ...)
Arrays: TypeAlias = Mapping[str, PyTree]  # what `Data.arrays` returns: splits, and extras


class Variables(NamedTuple):
    """What a model consists of: parameters, and state that the optimizer does not train.

    The state may be any pytree: the batch statistics of a network, or nothing.

    >>> Variables({"slope": 1.0}).state
    ()
    """

    params: PyTree
    state: PyTree = ()


class Outputs(NamedTuple):
    """What a task computes for a batch.

    Attributes:
        loss: (B,), whose mean over the batch training minimises.
        prediction: (B, ...), for the metrics that compare it with the target.
        target: (B, ...), likewise.
        metrics: (B,) each, by name: for metrics that are means of what the task itself computes.
            A number for the whole batch, repeated B times, becomes the mean over the evaluated
            batches: see `Task.evaluation_batch_size`.
        state: the new state of the model.

    >>> Outputs(loss=jnp.zeros(4)).loss.shape
    (4,)
    """

    loss: Array
    prediction: PyTree = None
    target: PyTree = None
    metrics: Mapping[str, Array] = {}
    state: PyTree = ()


class Task(abc.ABC):
    """A model and its loss: two methods to write, and others that may be overridden.

    A task is a value: make it a frozen dataclass, or at least do not change it while it is used.

    >>> class Line(Task):
    ...     def init(self, trial, rng, data):
    ...         return Variables({"slope": jnp.zeros(())})
    ...
    ...     def apply(self, trial, variables, batch, *, rng, mask, train):
    ...         return Outputs(loss=(batch.x[:, 0] * variables.params["slope"] - batch.y) ** 2)
    """

    metrics: Mapping[str, Metric] = types.MappingProxyType({})  # beside the loss
    loss_unit: str = ""
    evaluation_batch_size: int = 1024
    """How many examples are evaluated at once. What compares the examples of a batch, and noise
    drawn in evaluation, depend on it where a split has more of them."""
    # The dimensions of each of `predictions`, the first of all examples; sizes as in `Data.coords`.
    prediction_dims: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
    saved_fields: tuple[str, ...] = ()
    """The fields of a dataclass, numbers, text and tuples of them, that `bind` takes from the data
    and that predictions need: they are saved with every model, for data that change later."""

    @abc.abstractmethod
    def init(self, trial: Trial, rng: Array, data: Arrays) -> Variables:
        """The model before the first step, initialised with the key `rng`.

        `data` contains the splits ("train" and others) and `Data.extra`, such as weights to start
        from.
        """

    @abc.abstractmethod
    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """The loss of each example of a batch, what its metrics need, and the new state.

        `rng` is a key, new in every step, for whatever is random in training; in evaluation it is
        the same for all batches. `mask` (B,) is True for examples and False for rows that fill up
        the last batch: statistics over the batch must leave these rows out; jaxexp itself leaves
        out their losses and metrics.
        """

    def optimizer(self, trial: Trial, steps: int) -> optax.GradientTransformation:
        """The optimizer of a trial that takes `steps` steps; by default built in, by name.

        If it is overridden, `steps` is a plain int even in programs with trials of several
        lengths; traced hyperparameters are arrays.
        """
        return optimizers.built_in(trial)

    def optimizer_uses_steps(self, trial: Trial) -> bool:
        """Whether `optimizer` depends on `steps`: if overridden it is taken to."""
        return type(self).optimizer is not Task.optimizer

    def evaluation_params(self, trial: Trial, params: PyTree, optimizer_state: PyTree) -> PyTree:
        """The parameters at which a trial is evaluated, ranked and returned.

        By default those that are trained, or the average of a schedule-free optimizer of
        `optax.contrib`. If your own optimizer keeps an average, it is in the optimizer's state.
        """
        return optimizers.evaluated(trial, params, optimizer_state, optimizers.schedule_free)

    def bind(self, data: Data) -> "Task":
        """This task for these data, from which it may take, for example, the number of classes.

        Raises UserError for data that it cannot be trained on.
        """
        return self

    def check(self, trial: Trial, data: Data) -> None:
        """Raise UserError for a trial that cannot be trained on the data."""
        if type(self).optimizer is Task.optimizer:
            optimizers.check(trial)

    def predict(self, trial: Trial, variables: Variables, x: PyTree) -> PyTree:
        """What the trained model predicts for inputs (B, ...), of shape (B, ...).

        Raises UserError unless it is overridden.
        """
        raise UserError(f"{type(self).__name__} defines no `predict`")

    def probabilities(self, prediction: PyTree) -> Array | None:
        """The probability of each class, (B, C), given a prediction; None without classes."""
        return None

    def takes_fractions(self) -> bool:
        """Whether a model trained on whole numbers or bools computes with them as with floats.

        If so, it predicts for any numbers; other models, which may look numbers up in a table,
        only for the type that they were trained on.
        """
        return False

    def predictions(self, trial: Trial, variables: Variables, data: Arrays) -> dict[str, Array]:
        """What to keep of the trained model's output, if a sweep records "predictions".

        Arrays by name, in the shape given by `prediction_dims`, or flat with the last axis fastest.
        """
        return {}

    def gradient_norms(self, grads: PyTree) -> Array:
        """The squared L2 norm of each layer's weight gradient, (layers,).

        By default each array with two or more axes counts as a layer, in the order of the tree.
        """
        kernels = [leaf for leaf in jax.tree.leaves(grads) if leaf.ndim >= 2]
        norms = [jnp.square(kernel).sum() for kernel in kernels]
        return jnp.stack(norms) if norms else jnp.zeros(0)

    def crop(
        self, trial: Trial, variables: Variables, norms_ExL: np.ndarray | None
    ) -> tuple[Variables, np.ndarray | None]:
        """The trial's own part of a padded model and its norms, as if it had trained alone.

        Called where hyperparameters of the model are padded (see `jaxexp.spec.padding`).
        """
        raise UserError(f"{type(self).__name__} pads a model, but defines no `crop`")

    def inspect(self, trial: Trial, arrays: Arrays) -> "Inspection | None":
        """What a trial costs and reads, if the task knows; None to have it traced instead."""
        return None

    def weights(self, batch: Batch) -> Array | None:
        """The weight of each example in losses and metrics, (B,), or None if all weigh the same.

        By default that of `Examples`; examples of any other structure weigh the same.
        """
        return batch.weight if isinstance(batch, Examples) else None


@dataclass(frozen=True)
class Inspection:
    """What planning has to know of a task and a trial."""

    cost: Cost
    reads: frozenset[str]  # the hyperparameters that the task reads


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree,
    value: ArrayLike = 0.0, value_fn: Callable[[PyTree], Array] | None = None,
) -> tuple[PyTree, PyTree]:  # fmt: skip
    """One update, with the loss and its function for optimizers that want them.

    Without them it is for shapes and types alone.
    """
    value_fn = value_fn or (lambda params: sum(a.sum() for a in jax.tree.leaves(params)))
    extra = {"value": jnp.asarray(value), "grad": grads, "value_fn": value_fn}
    return extended_update(optimizer, grads, state, params, extra)


def evaluation_variables(
    task: Task, trial: Trial, variables: Variables, optimizer_state: PyTree
) -> Variables:
    """The variables at which a trial is evaluated, ranked and returned.

    Raises UserError for parameters of another structure, or other shapes, than those trained.
    """
    params = variables.params
    made = task.evaluation_params(trial, params, optimizer_state)
    if made is params:
        return variables
    part = f"{type(task).__name__}.evaluation_params"
    for tree in (params, made):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, int | float) and not hasattr(leaf, "dtype"):
                where = f"{part}: params{jax.tree_util.keystr(path)}"
                raise UserError(f"{where} is {type_of(leaf)}, expected an array")
    shapes, wanted = (jax.tree.map(lambda a: str(jnp.shape(a)), tree) for tree in (made, params))
    if jax.tree.flatten(shapes) != jax.tree.flatten(wanted):
        raise UserError(
            f"{part} returned arrays of shapes {shapes}, expected those of the parameters, {wanted}"
        )
    same = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), made, params)
    return variables._replace(params=same)


def try_optimizer(part: str, optimizer: optax.GradientTransformation, params: PyTree) -> None:
    """Trace its first step; UserError, which names the part, where it does not take the parameters.

    What JAX says of hyperparameters that are traced is left to the caller.
    """
    try:
        update(optimizer, params, optimizer.init(params), params)
    except (UserError, jax.errors.JAXTypeError):
        raise
    except Exception as error:
        wanted = "one that takes the parameters of the task, and gradients of them"
        if isinstance(error, AttributeError) and error.name in optax.LookaheadParams._fields:
            wanted += ": parameters would have to be optax.LookaheadParams here"
        raise UserError(f"{part}: {in_one_line(error).rstrip('.')}; expected {wanted}") from error


def extended_update(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree,
    extra: Mapping[str, PyTree],
) -> tuple[PyTree, PyTree]:  # fmt: skip
    """One update, with what of `extra` the optimizer takes."""
    function = optax.with_extra_args_support(optimizer).update
    taken = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in taken):  # optax.contrib.sam takes none of it
        extra = {p.name: extra[p.name] for p in taken if p.name in extra}
    updated: tuple[PyTree, PyTree] = function(grads, state, params, **extra)
    return updated


def check_outputs(task: Task, outputs: object, size: int, state: PyTree = None) -> None:
    """Raise UserError unless these are the outputs of a batch of so many examples.

    `state` is that of before, where it goes on to the next step.
    """
    name = f"{type(task).__name__}.apply"
    if not isinstance(outputs, Outputs):
        raise UserError(f"{name} returned {type(outputs).__name__}, expected jaxexp.Outputs")
    for what, value in {"loss": outputs.loss, **outputs.metrics}.items():
        if not hasattr(value, "dtype") or jnp.shape(value) != (size,):
            found = f"the shape {jnp.shape(value)}" if hasattr(value, "dtype") else "no shape"
            raise UserError(
                f"{name}: {what} has {found} for a batch of {size} examples, "
                f"expected ({size},): one number for each example"
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{name}: {what} has the type {value.dtype}, expected a float")
        if what != "loss" and what not in task.metrics:
            raise UserError(
                f"{name}: Outputs.metrics has {what!r}, which the task's `metrics` do not declare"
            )
    for metric, declared in task.metrics.items():
        if not isinstance(declared, Metric):
            raise UserError(f"metrics[{metric!r}] is {type_of(declared)}, expected a jaxexp.Metric")
        own = declared.example is None and declared.sums is None
        if own and metric not in outputs.metrics:
            raise UserError(
                f"{name}: metric {metric!r} computes nothing itself and is not in Outputs.metrics"
            )
        both = {"prediction": outputs.prediction, "target": outputs.target}
        for what, tree in both.items() if declared.sums else ():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if jnp.shape(leaf)[:1] != (size,):
                    raise UserError(
                        f"{name}: {what}{jax.tree_util.keystr(path)} has the shape "
                        f"{jnp.shape(leaf)} for a batch of {size} examples, expected ({size}, ...):"
                        f" metrics[{metric!r}] has `sums` over examples; jax.numpy.broadcast_to "
                        "gives each what all share"
                    )
    if state is not None:
        check_state(name, state, outputs.state, "return it as Outputs(state=…)")


def check_weights(task: Task, data: Data) -> None:
    """Raise UserError for weights of a task's own that could be none of `Examples`."""
    if type(task).weights is Task.weights:
        return
    for name, split in data.splits.items():
        # Compiled, so that only arrays that weights depend on are put on a device.
        weight_N = jax.jit(lambda batch: task.weights(batch))(split)
        if weight_N is not None:
            where = f"{type(task).__name__}.weights of {name}"
            check_weight(where, np.asarray(weight_N), row_count(split))


def check_state(name: str, state: PyTree, new: PyTree, expected: str) -> None:
    """Raise UserError unless a new state has the structure, shapes and types of that of before."""
    before, after = str(jax.tree.structure(state)), str(jax.tree.structure(new))
    if before != after:
        had, has = (
            [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
            for tree in (state, new)
        )
        differs = [
            f"{word} {', '.join(paths)}"
            for word, paths in (
                ("with", [path for path in has if path not in had]),
                ("without", [path for path in had if path not in has]),
            )
            if paths
        ]
        raise UserError(
            f"{name}: the new state has another structure than that of init "
            f"({' and '.join(differs) or f'{after} instead of {before}'}); {expected}"
        )
    flat = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), leaf in zip(flat, jax.tree.leaves(new), strict=True):
        was, now = ((jnp.shape(a), jnp.result_type(a)) for a in (old, leaf))
        if was != now:
            raise UserError(
                f"{name}: the new state{jax.tree_util.keystr(path)} is {now[1]} of the shape "
                f"{now[0]}, expected {was[1]} of {was[0]}, as init returns it"
            )


def directions(task: Task) -> dict[str, str]:
    """Of the loss and each metric, whether a "higher" or a "lower" value is better."""
    return {"loss": "lower", **{name: str(m.direction) for name, m in task.metrics.items()}}
