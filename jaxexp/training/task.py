"""What a researcher writes: a model, its loss, and how its results are measured.

Shapes: B examples of a batch, N of a split.
"""

import abc
import contextlib
import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.planning.cost import Cost
from jaxexp.spec.trial import Kind, Trial, with_values
from jaxexp.training import jaxprs, optimizers
from jaxexp.training.data import Data
from jaxexp.training.metrics import Metric

PyTree = Any
Batch = PyTree  # arrays whose first axis is the example: (B, ...)
Arrays = Mapping[str, PyTree]  # what `Data.arrays` returns: splits, and extras


class Variables(NamedTuple):
    """What a model consists of: parameters, and state that is not trained.

    The state may be any pytree: the batch statistics of a network, or nothing.

    >>> Variables({"slope": 1.0}).state
    ()
    """

    params: PyTree
    state: PyTree = ()


class Outputs(NamedTuple):
    """What a task makes of a batch.

    Attributes:
        loss: (B,), whose mean over the batch training minimises.
        prediction: (B, ...), for the metrics that compare it with the target.
        target: (B, ...), likewise.
        metrics: (B,) each, by name: for metrics that are means of what the task itself computes.
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
    evaluation_batch_size: int = 1024  # examples at once, where nothing is trained
    # The dimensions of each of `predictions`, the first of all examples; sizes as in `Data.coords`.
    prediction_dims: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})

    @abc.abstractmethod
    def init(self, trial: Trial, rng: Array, data: Arrays) -> Variables:
        """The model before the first step, drawn with the key `rng`.

        `data` holds the splits ("train" and others) and `Data.extra`, such as weights to start
        from.
        """

    @abc.abstractmethod
    def apply(
        self, trial: Trial, variables: Variables, batch: Batch, *, rng: Array, mask: Array,
        train: bool,
    ) -> Outputs:  # fmt: skip
        """The loss of each example of a batch, what its metrics need, and the new state.

        `rng` is a key, new in every step, for whatever is random in training. `mask` (B,) is True
        for examples and False for what fills up the last batch: statistics over the batch must
        leave the latter out; losses and metrics of theirs are left out by jaxexp.
        """

    def optimizer(self, trial: Trial, steps: int) -> optax.GradientTransformation:
        """The optimizer of a trial that will take so many steps: built in, by name.

        Where it is overridden, `steps` is a plain int also in programs of trials of several
        lengths; hyperparameters that are traced are arrays.
        """
        return optimizers.built_in(trial)

    def optimizer_uses_steps(self, trial: Trial) -> bool:
        """Whether `optimizer` depends on `steps`: if overridden it is taken to."""
        return type(self).optimizer is not Task.optimizer

    def bind(self, data: Data) -> "Task":
        """This task for these data, whose number of classes it may take over, for example.

        Raises UserError for data that it cannot be trained on.
        """
        return self

    def check(self, trial: Trial, data: Data) -> None:
        """Raise UserError for a trial that cannot be trained on the data."""
        if type(self).optimizer is Task.optimizer:
            optimizers.check(trial)

    def uses_mask(self, trial: Trial, data: Data) -> bool:
        """Whether `apply` heeds its mask; where it does not, no batch may be partial."""
        return True

    def predict(self, trial: Trial, variables: Variables, x: PyTree) -> PyTree:
        """What the trained model predicts of inputs (B, ...): (B, ...).

        Raises UserError unless it is overridden.
        """
        raise UserError(f"{type(self).__name__} defines no `predict`")

    def probabilities(self, prediction: PyTree) -> Array | None:
        """Of each class, (B, C), given a prediction; None where nothing is classified."""
        return None

    def predictions(self, trial: Trial, variables: Variables, data: Arrays) -> dict[str, Array]:
        """What to keep of the trained model's output, where a sweep records "predictions"."""
        return {}

    def gradient_norms(self, grads: PyTree) -> Array:
        """The squared L2 norm of each layer's weight gradient, (layers,).

        The default takes each array of two axes or more for a layer, in the order of the tree.
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

    def inspect(self, trial: Trial, arrays: Arrays) -> "Inspection":
        """What a trial costs and reads, found out by tracing it; `arrays` may be shapes."""
        return trace(self, trial, arrays)

    def fingerprint(
        self, trial: Callable[[PyTree], Trial], leaves: PyTree, steps: tuple[int, ...],
        arrays: Arrays, *, predictions: bool = False, processes: bool = False,
    ) -> str:  # fmt: skip
        """Of what it computes, found out by tracing it: a digest that tells two tasks apart.

        Neither a task's attributes nor what its functions close over escape it. `trial(leaves)` is
        a trial, as a program has it, that takes one of the `steps`; `processes` is for a digest
        that is the same in any process.
        """
        return _fingerprint(self, trial, leaves, steps, arrays, predictions, processes)

    def weights(self, batch: Batch) -> Array | None:
        """The weight of each example in losses and metrics, (B,), or None where all count alike."""
        return getattr(batch, "weight", None)


@dataclass(frozen=True)
class Inspection:
    """What planning has to know of a task and a trial."""

    cost: Cost
    reads: frozenset[str]  # the hyperparameters that the task reads
    predicted: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # size of each prediction


def trace(task: Task, trial: Trial, arrays: Arrays) -> Inspection:
    """Trace one step of a trial, computing nothing.

    Parameters and multiplications are those of the traced program, activations what its forward
    pass keeps for the backward pass. Raises UserError for what the task's methods may not return,
    and for a hyperparameter that is traced where Python needs its value.
    """
    read: set[str] = set()
    try:
        return _trace(task, _watch(trial, read), read, arrays)
    except jax.errors.JAXTypeError as error:
        traced = [n for n, field in trial.fields().items() if _is_traced(field, trial)]
        names = " and ".join(name for name in traced if name in read) or "what is computed"
        raise UserError(
            f"{type(task).__name__}: {str(error).partition(chr(10))[0]} (the value of {names} is "
            "not known to Python: in the program, where trials share it, it is traced; compute "
            "with jax.numpy, or declare it in the trial with jaxexp.static; an optimizer is given "
            "the number of its steps)"
        ) from error


def _is_traced(declared: Any, trial: Trial) -> bool:
    if declared.kind is Kind.LENGTH:
        return True
    own = getattr(trial, declared.name)
    return declared.kind is Kind.TRACED and (declared.off is None or own != declared.off)


def _trace(task: Task, watched: Trial, read: set[str], arrays: Arrays) -> Inspection:
    examples = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), arrays["train"])
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), examples)
    key = jax.eval_shape(lambda: jax.random.key(0))
    mask = jax.ShapeDtypeStruct((2,), jnp.bool_)
    leaves = {
        name: jax.ShapeDtypeStruct((), jnp.float32 if declared.hint is float else jnp.int32)
        for name, declared in type(watched).__mro__[1].fields().items()
        if _is_traced(declared, watched)
    }
    read.clear()  # of the looks that were taken here

    def init(leaves: PyTree, rng: Array, data: Arrays) -> Variables:
        made = task.init(with_values(watched, **leaves), rng, data)
        _check_variables(task, made)
        return made

    variables = jax.eval_shape(init, leaves, key, arrays)
    seen: list[Outputs] = []  # shapes of a batch of two
    predicted: dict[str, int] = {}

    def with_state(
        params: PyTree, leaves: PyTree, state: PyTree, batch: Batch, rng: Array, mask: Array
    ) -> PyTree:
        own, trial = Variables(params, state), with_values(watched, **leaves)
        outputs = task.apply(trial, own, batch, rng=rng, mask=mask, train=True)
        check_outputs(task, outputs, 2, variables.state)
        seen.append(outputs._replace(prediction=_shapes(outputs.prediction),
                                     target=_shapes(outputs.target)))  # fmt: skip
        return tuple(outputs)

    def rest(
        params: PyTree, leaves: PyTree, state: PyTree, batch: Batch, rng: Array, mask: Array,
        data: Arrays,
    ) -> None:  # fmt: skip
        """All else that may read the trial; a schedule may do so in the update alone."""
        own, trial = Variables(params, state), with_values(watched, **leaves)
        outputs = task.apply(trial, own, batch, rng=rng, mask=mask, train=False)
        check_outputs(task, outputs, 2)
        optimizer = task.optimizer(trial, 1000)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise UserError(
                f"{type(task).__name__}.optimizer returned {type(optimizer).__name__}, expected an "
                "optax.GradientTransformation"
            )
        update(optimizer, params, optimizer.init(params), params)
        with contextlib.suppress(Exception):  # the data may lack what only those that record need
            made = task.predictions(trial, own, data)
            predicted.update({name: math.prod(array.shape) for name, array in made.items()})

    given = (variables.params, leaves, variables.state, batch, key, mask)
    jaxpr = jax.make_jaxpr(with_state)(*given).jaxpr

    def kept(params: PyTree, *rest: PyTree) -> PyTree:
        return jax.vjp(lambda params: with_state(params, *rest)[0].sum(), params)[1]

    jax.eval_shape(rest, *given, arrays)
    _check_sums(task, seen[0])
    found = _count(jaxpr)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.params)]
    floats = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(kept, *given)))
    norms = jax.eval_shape(task.gradient_norms, variables.params)
    if len(getattr(norms, "shape", ())) != 1:
        raise UserError(
            f"{type(task).__name__}.gradient_norms returned {norms}, expected (layers,)"
        )
    cost = Cost(
        multiplications=max(1.0, found.multiplications / 2),
        launches=max(1, found.products),
        parameters=sum(sizes),
        activations=max(1, floats - sum(sizes)) // 2,  # of a batch of two; parameters are kept too
        layers=norms.shape[0],
        compilation=max(1.0, found.products / 20),
    )
    return Inspection(cost, frozenset(read), predicted)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.asarray(a).dtype), tree)


def _check_variables(task: Task, made: Any) -> None:
    name = f"{type(task).__name__}.init"
    if not isinstance(made, Variables):
        raise UserError(
            f"{name} returned {type(made).__name__}, expected jaxexp.Variables(params, state)"
        )
    for what, tree in (("params", made.params), ("state", made.state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            where = f"{name}: {what}{jax.tree_util.keystr(path)}"
            if not isinstance(leaf, bool | int | float | complex) and not hasattr(leaf, "dtype"):
                raise UserError(f"{where} is a {type(leaf).__name__}, expected an array")
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jax.dtypes.prng_key):
                raise UserError(f"{where} is a key, expected jax.random.key_data of it")
            if what == "params" and not jnp.issubdtype(dtype, jnp.floating):
                raise UserError(
                    f"{where} is {dtype}, expected floats, of which there are gradients"
                )


def _check_sums(task: Task, outputs: Outputs) -> None:
    """Raise UserError for sums that are none: those of four examples add up from two and two."""
    for name, metric in task.metrics.items():
        if metric.sums is None or str(metric.sums.__module__).startswith("jaxexp."):
            continue
        rng = np.random.default_rng(0)

        def four(shape: Any) -> Any:
            size = (4, *shape.shape[1:])
            if jnp.issubdtype(shape.dtype, jnp.floating):
                return jnp.asarray(rng.uniform(0.1, 0.9, size), shape.dtype)  # noqa: B023
            return jnp.asarray(np.arange(math.prod(size)).reshape(size) % 2, shape.dtype)

        given = jax.tree.map(four, (outputs.prediction, outputs.target))
        weights = np.array([[1, 2, 0, 0], [0, 0, 3, 1], [1, 2, 3, 1]], np.float32)
        first, last, all_of_them = (
            jax.tree.map(np.asarray, metric.sums_of(None, *given, w, name=name)) for w in weights
        )
        added = jax.tree.map(lambda a, b: a + b, first, last)
        same = jax.tree.map(
            lambda a, b: a.shape == b.shape and np.allclose(a, b, 1e-3, 1e-4, equal_nan=True),
            added, all_of_them,
        )  # fmt: skip
        if not all(jax.tree.leaves(same)):
            raise UserError(
                f"metrics[{name!r}]: `sums` of two examples and of two others do not add up to "
                "those of all four: expected sums over the examples, each times its weight"
            )


def _fingerprint(
    task: Task, trial: Callable[[PyTree], Trial], leaves: PyTree, steps: tuple[int, ...],
    arrays: Arrays, predictions: bool, processes: bool,
) -> str:  # fmt: skip
    if is_plain_value(task):
        return repr(task)

    def everything(leaves: PyTree, data: Arrays) -> PyTree:
        own, rng, mask = trial(leaves), jax.random.key(0), jnp.ones(2, bool)
        variables = jax.tree.map(jnp.asarray, task.init(own, rng, data))
        batch = jax.tree.map(lambda a: jnp.asarray(a)[:2], data["train"])
        made: list[PyTree] = [variables, task.gradient_norms(variables.params), task.weights(batch)]
        for train in (True, False):
            outputs = task.apply(own, variables, batch, rng=rng, mask=mask, train=train)
            for name, metric in task.metrics.items():
                value_B = outputs.metrics.get(name)
                sums = metric.sums_of(value_B, outputs.prediction, outputs.target, jnp.ones(2))
                made.append((sums, metric.compute(sums)))
            made.append(tuple(outputs))
        for length in steps:
            optimizer = task.optimizer(own, length)
            state = optimizer.init(variables.params)
            made.append(update(optimizer, variables.params, state, variables.params))
        if predictions:
            made.append(task.predictions(own, variables, data))
        return made

    return jaxprs.digest(jax.make_jaxpr(everything)(leaves, arrays), processes=processes)


def is_plain_value(task: Task) -> bool:
    """Whether a task computes what its type and its fields say: one of jaxexp's dataclasses."""
    return dataclasses.is_dataclass(task) and type(task).__module__.startswith("jaxexp.")


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree,
    value: Any = 0.0, value_fn: Callable[[PyTree], Any] | None = None,
) -> tuple[PyTree, PyTree]:  # fmt: skip
    """One update, with the loss and its function for optimizers that want them.

    Without them it is for shapes and types alone.
    """
    value_fn = value_fn or (lambda params: sum(a.sum() for a in jax.tree.leaves(params)))
    extra = {"value": jnp.asarray(value), "grad": grads, "value_fn": value_fn}
    return optax.with_extra_args_support(optimizer).update(grads, state, params, **extra)


def check_outputs(task: Task, outputs: Any, size: int, state: PyTree = None) -> None:
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
            raise UserError(
                f"metrics[{metric!r}] is a {type(declared).__name__}, expected a jaxexp.Metric"
            )
        own = declared.example is None and declared.sums is None
        if own and metric not in outputs.metrics:
            raise UserError(
                f"{name}: metric {metric!r} computes nothing itself and is not in Outputs.metrics"
            )
    if state is not None:
        _check_state(name, state, outputs.state)


def _check_state(name: str, state: PyTree, new: PyTree) -> None:
    before, after = str(jax.tree.structure(state)), str(jax.tree.structure(new))
    if before != after:
        raise UserError(
            f"{name}: the new state has another structure than that of init ({after} instead of "
            f"{before}); return it as Outputs(state=…)"
        )
    flat = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), leaf in zip(flat, jax.tree.leaves(new), strict=True):
        was, now = ((jnp.shape(a), jnp.result_type(a)) for a in (old, leaf))
        if was != now:
            raise UserError(
                f"{name}: the new state{jax.tree_util.keystr(path)} is {now[1]} of the shape "
                f"{now[0]}, expected {was[1]} of {was[0]}, as init returns it"
            )


def _watch(trial: Trial, read: set[str]) -> Trial:
    """The same trial, which writes down what is read of it."""
    names, cls = frozenset(type(trial).fields()), type(trial)

    def get(self: Any, name: str) -> Any:
        if name in names:
            read.add(name)
        return object.__getattribute__(self, name)

    own = {"__getattribute__": get, "__dataclass_params__": vars(cls)["__dataclass_params__"]}
    made: Trial = object.__new__(type(cls.__name__, (cls,), own))
    made.__dict__.update(trial.__dict__)
    return made


@dataclass
class _Counted:
    multiplications: float = 0.0
    products: float = 0.0  # matrix products and convolutions


def _count(jaxpr: Any) -> _Counted:
    """Multiplications and products of a traced function, loops counted in full."""
    made = _Counted()
    for eqn in jaxpr.eqns:
        shapes = [getattr(v.aval, "shape", ()) for v in eqn.outvars]
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            made.multiplications += math.prod(shapes[0]) * math.prod(left[i] for i in contract)
            made.products += 1
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
            made.multiplications += math.prod(shapes[0]) * per_output
            made.products += 1
        inner = [_count(getattr(j, "jaxpr", j)) for j in jaxprs.inner(eqn.params)]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for counted in inner:
            made.multiplications += times * counted.multiplications
            made.products += times * counted.products
    return made


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
