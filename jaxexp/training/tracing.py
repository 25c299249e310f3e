"""What a task computes and reads, found out by tracing it: nothing is trained."""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.extend import core as jax_core

from jaxexp.base.errors import UserError, in_one_line
from jaxexp.base.words import type_of
from jaxexp.planning.cost import Cost
from jaxexp.spec.hyperparameters import Hyperparameter, Kind
from jaxexp.spec.trial import ENGINE, Trial, may_be_static, with_values
from jaxexp.training import jaxprs, keys
from jaxexp.training.batching import weighted_mean, weights_of
from jaxexp.training.carry import TrainState
from jaxexp.training.checks import some_names
from jaxexp.training.optimizing import of_kept_types, optimizer_of
from jaxexp.training.step import train_step
from jaxexp.training.task import (
    TRIED,
    Arrays,
    Batch,
    Inspection,
    Outputs,
    Task,
    Variables,
    check_outputs,
    evaluation_variables,
    try_optimizer,
    update,
)
from jaxexp.training.trees import PyTree

P = ParamSpec("P")
T = TypeVar("T")
QUICK: dict[str, Any] = {"xla_llvm_disable_expensive_passes": True}
_TRACING = threading.RLock()


def one_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Let only one thread at a time run a function that traces the user's or Flax's code.

    Flax modifies classes while it traces (a scan is a class, for which it removes fields from the
    classes that it is made of), and no other thread may read them then. Compiling needs no lock.
    """

    @functools.wraps(function)
    def held(*arguments: P.args, **named: P.kwargs) -> T:
        with _TRACING:
            return function(*arguments, **named)

    return held


def compiled_quickly(
    function: Callable[..., PyTree], *given: PyTree, level: int = 0
) -> jax.stages.Compiled:
    """Compile a function that runs only a few times, before anything is trained.

    `level` is XLA's optimisation level: at 0, it optimises nothing.
    """
    traced = jax.jit(function).lower(*given)
    options = QUICK | {"xla_backend_optimization_level": level}
    try:
        return traced.compile(options | {"xla_cpu_use_fusion_emitters": False})
    except jax.errors.JaxRuntimeError:  # jaxlib 0.12 and later do not know the last option
        return traced.compile(options)


def inspection(task: Task, trial: Trial, arrays: Arrays) -> Inspection:
    """What a trial costs and reads: as the task says, or else as `trace` finds out."""
    return task.inspect(trial, arrays) or trace(task, trial, arrays)


@one_at_a_time
def predicted_shapes(task: Task, trial: Trial, arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """The shape of each prediction that a trial records; nothing is computed."""

    def recorded(rng: Array, data: Arrays) -> PyTree:
        return task.predictions(trial, task.init(trial, rng, data), data)

    made = jax.eval_shape(recorded, keys.like(), arrays)
    return {name: tuple(array.shape) for name, array in made.items()}


@one_at_a_time
def trace(task: Task, trial: Trial, arrays: Arrays) -> Inspection:
    """Trace one step of a trial, computing nothing.

    Parameters and multiplications are those of the traced program; activations are what its forward
    pass keeps for the backward pass. Raises UserError if one of the task's methods returns
    something invalid, or if a hyperparameter is traced where Python needs its value.
    """
    leaves = traced_shapes(trial)
    try:
        return _trace(task, trial, arrays, leaves)
    except UserError:
        raise
    except Exception as error:  # such as JAX's TypeError for a traced number in a shape
        names = guilty(lambda some: _trace(task, trial, arrays, some), leaves)
        if not names and not isinstance(error, jax.errors.JAXTypeError):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{type(task).__name__}: {reason} ({because_traced(names)})") from error


def guilty(trace: Callable[[dict[str, T]], object], traced: Mapping[str, T]) -> list[str]:
    """The traced hyperparameters that make tracing fail; [] if it fails with none traced, too."""

    def fails(*names: str) -> bool:
        try:
            trace({name: traced[name] for name in names})
        except Exception:  # the user's functions may raise anything
            return True
        return False

    if fails():
        return []
    return [name for name in traced if fails(name)] or [*traced]


def because_traced(names: Sequence[str]) -> str:
    """Why Python cannot know the values of these hyperparameters, and what to do instead."""
    fixed = [name for name in names if name in ENGINE and not may_be_static(name)]
    said = "compute with jax.numpy"
    if len(fixed) < len(names):
        said += ", or declare it in the trial with jaxexp.static"
    if fixed:
        said += (
            "; what Python has to know is a hyperparameter of your own, declared with jaxexp.static"
        )
    if "epochs" in names:
        said += "; an optimizer is given the number of its steps, as its second argument"
    return (
        f"the value of {' and '.join(names) or 'what is computed'} is not known to Python: in the "
        f"program, where trials share it, it is traced; {said}"
    )


def _is_traced(declared: Hyperparameter, trial: Trial) -> bool:
    if declared.kind is Kind.LENGTH:
        return True
    own = getattr(trial, declared.name)
    return declared.kind is Kind.TRACED and (declared.off is None or own != declared.off)


def traced_shapes(trial: Trial) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the hyperparameters that are traced in a program of such trials, by name."""
    return {
        name: jax.ShapeDtypeStruct((), jnp.float32 if declared.hint is float else jnp.int32)
        for name, declared in trial.fields().items()
        if _is_traced(declared, trial)
    }


def _trace(
    task: Task, trial: Trial, arrays: Arrays, leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> Inspection:
    """Trace with these hyperparameters as numbers inside the program, the others as they are."""
    read: set[str] = set()
    watched = watch(trial, read)
    batch, mask = batch_of(arrays, TRIED)
    name = type(task).__name__

    def init(leaves: PyTree, rng: Array, data: Arrays) -> Variables:
        try:
            made = task.init(with_values(watched, **leaves), rng, data)
        except KeyError as error:
            raise UserError(
                f"{name}.init: {in_one_line(error)}; its `data` has {some_names([*data])}, and "
                "further arrays if they are given as jaxexp.Data(extra={name: …})"
            ) from error
        _check_variables(task, made)
        return made

    variables = _shapes_of(init, leaves, keys.like(), arrays, name=f"{name}.init")
    seen: list[Outputs] = []  # shapes

    def applied(
        params: PyTree, leaves: PyTree, state: PyTree, batch: Batch, rng: Array, mask: Array,
        *, train: bool,
    ) -> Outputs:  # fmt: skip
        own, trial = Variables(params, state), with_values(watched, **leaves)
        try:
            outputs = task.apply(trial, own, batch, rng=rng, mask=mask, train=train)
        except (UserError, jax.errors.JAXTypeError, LookupError, AttributeError, NameError):
            raise  # not a matter of shapes
        except Exception as error:
            error.add_note(
                f"{name} was traced with a batch of {TRIED} examples: any number has to work"
            )
            raise
        check_outputs(task, outputs, TRIED, variables.state if train else None)
        weights_of(task, batch, mask)
        return outputs

    def with_state(*given: PyTree) -> PyTree:
        outputs = applied(*given, train=True)
        seen.append(outputs._replace(prediction=_shapes(outputs.prediction),
                                     target=_shapes(outputs.target)))  # fmt: skip
        return tuple(outputs)

    def evaluated(*given: PyTree) -> PyTree:
        return tuple(applied(*given, train=False))

    def updated(params: PyTree, leaves: PyTree) -> PyTree:
        """Update the optimizer: a schedule may read the trial only then."""
        trial = with_values(watched, **leaves)
        optimizer = task.optimizer(trial, 1000)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise UserError(
                f"{type(task).__name__}.optimizer returned {type(optimizer).__name__}, expected an "
                "optax.GradientTransformation"
            )
        optimizer = of_kept_types(optimizer)
        try_optimizer(f"{type(task).__name__}.optimizer", optimizer, params)
        state = optimizer.init(params)
        made = evaluation_variables(task, trial, Variables(params), state).params
        return made, update(optimizer, params, state, params)

    def recorded(params: PyTree, leaves: PyTree, state: PyTree, data: Arrays) -> PyTree:
        own, trial = Variables(params, state), with_values(watched, **leaves)
        return task.predictions(trial, own, data)

    given = (variables.params, leaves, variables.state, batch, keys.like(), mask)
    jaxpr = jax.make_jaxpr(with_state)(*given).jaxpr

    def kept(params: PyTree, *rest: PyTree) -> PyTree:
        try:
            loss, back = jax.vjp(lambda params: with_state(params, *rest)[0].sum(), params)
            back(jnp.ones_like(loss))  # only now does JAX refuse loops of unknown length
        except ValueError as error:
            raise UserError(
                f"{type(task).__name__}.apply: the loss has no gradient. JAX says: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error
        return back

    _shapes_of(evaluated, *given, name=f"{name}.apply")
    _shapes_of(updated, *given[:2], name=f"{name}.optimizer")
    with contextlib.suppress(Exception):  # the data may lack what only recording needs
        jax.eval_shape(recorded, *given[:3], arrays)
    _check_sums(task, seen[0])
    found = _count(jaxpr)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.params)]
    back = _shapes_of(kept, *given, name=f"{name}.apply")
    floats = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(back))
    norms = jax.eval_shape(task.gradient_norms, variables.params)
    if len(getattr(norms, "shape", ())) != 1:
        raise UserError(
            f"{type(task).__name__}.gradient_norms returned {norms}, expected (layers,)"
        )
    cost = Cost(
        multiplications=max(1.0, found.multiplications / TRIED),
        launches=max(1, found.products),
        parameters=sum(sizes),
        activations=max(1, floats - sum(sizes)) // TRIED,  # parameters are kept, too
        layers=norms.shape[0],
        compilation=max(1.0, found.products / 20),
    )
    return Inspection(cost, frozenset(read))


def _shapes_of(function: Callable[..., PyTree], *given: PyTree, name: str) -> PyTree:
    """Shapes of a function's results; UserError for random numbers that a batch would change."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*given)
    keys.check(closed, name)
    return shapes


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.asarray(a).dtype), tree)


def _check_variables(task: Task, made: object) -> None:
    name = f"{type(task).__name__}.init"
    if not isinstance(made, Variables):
        raise UserError(
            f"{name} returned {type(made).__name__}, expected jaxexp.Variables(params, state)"
        )
    for what, tree in (("params", made.params), ("state", made.state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            where = f"{name}: {what}{jax.tree_util.keystr(path)}"
            if not isinstance(leaf, bool | int | float | complex) and not hasattr(leaf, "dtype"):
                raise UserError(f"{where} is {type_of(leaf)}, expected an array")
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jax.dtypes.prng_key):
                raise UserError(f"{where} is a key, expected jax.random.key_data of it")
            if what == "params" and not jnp.issubdtype(dtype, jnp.floating):
                raise UserError(
                    f"{where} is {dtype}, expected floats, of which there are gradients"
                )


def _check_sums(task: Task, outputs: Outputs) -> None:
    """Raise UserError for `sums` that do not add up, or that examples of weight 0 change.

    The sums of two examples and of two others must add up to those of all four, both alone and with
    two examples of weight 0 beside each pair.
    """
    for name, metric in task.metrics.items():
        if metric.sums is None or str(metric.sums.__module__).startswith("jaxexp."):
            continue
        rng = np.random.default_rng(0)

        def six(shape: jax.ShapeDtypeStruct) -> Array:
            size = (6, *shape.shape[1:])
            if jnp.issubdtype(shape.dtype, jnp.floating):
                return jnp.asarray(rng.uniform(0.1, 0.9, size), shape.dtype)  # noqa: B023
            return jnp.asarray(np.arange(math.prod(size)).reshape(size) % 2, shape.dtype)

        given = jax.tree.map(six, (outputs.prediction, outputs.target))

        def sums(rows: Sequence[int], *weights: float) -> PyTree:
            prediction, target = jax.tree.map(lambda a: a[np.array(rows)], given)  # noqa: B023
            weight_B = jnp.asarray(weights, jnp.float32)
            own = metric.sums_of(None, prediction, target, weight_B, name=name)  # noqa: B023
            return jax.tree.map(np.asarray, own)

        all_of_them = sums([0, 1, 2, 3], 1, 2, 3, 1)
        alone = sums([0, 1], 1, 2), sums([2, 3], 3, 1)
        filled = sums([0, 1, 4, 5], 1, 2, 0, 0), sums([2, 3, 5, 5], 3, 1, 0, 0)
        for parts in (alone, filled):
            same = jax.tree.map(
                lambda a, b, c: (
                    a.shape == b.shape == c.shape
                    and np.allclose(a + b, c, 1e-3, 1e-4, equal_nan=True)
                ),
                *parts, all_of_them,
            )  # fmt: skip
            if not all(jax.tree.leaves(same)):
                raise UserError(
                    f"metrics[{name!r}]: `sums` of two examples and of two others do not add up to "
                    "those of all four: expected sums over the examples (`.sum()`, no `.mean()`), "
                    "each times its weight, whatever stands beside them with a weight of 0"
                )


@one_at_a_time
def fingerprint(
    task: Task, trial: Callable[[PyTree], Trial], leaves: PyTree, steps: tuple[int, ...],
    arrays: Arrays, *, sizes: tuple[int, int], predictions: bool = False, processes: bool = False,
) -> str:  # fmt: skip
    """A digest that distinguishes tasks by what they compute, found out by tracing them.

    It covers the task's attributes, what its functions close over, and the gradients, which may
    have rules of their own. `trial(leaves)` is a trial as a program has it, which takes one of the
    numbers of `steps`; `sizes` are the numbers of examples computed at once in training and in
    evaluation, as a task may compute something else for other numbers. With `processes`, the digest
    is the same in any process.

    Raises UserError for random numbers that would differ between a batch of trials and one alone.
    """
    if is_plain_value(task):
        return repr(task)

    def everything(leaves: PyTree, rng: Array, batches: Sequence[PyTree], data: Arrays) -> PyTree:
        own = trial(leaves)
        optimizers = [optimizer_of(task, own, length) for length in steps]
        started = task.init(own, rng, data)
        states = [optimizer.init(started.params) for optimizer in optimizers]
        variables, states = _apart((started, states))
        made: list[PyTree] = [variables]

        def loss(params: PyTree, *, train: bool = True) -> tuple[Array, Outputs]:
            batch, mask = batches[0 if train else 1]
            given = variables._replace(params=params)
            outputs = task.apply(own, given, batch, rng=rng, mask=mask, train=train)
            return weighted_mean(outputs.loss, weights_of(task, batch, mask)), outputs

        (mean, trained), grads = jax.value_and_grad(loss, has_aux=True)(variables.params)
        mean, grads = _apart((mean, grads))
        made.append(task.gradient_norms(grads))
        both = trained, loss(variables.params, train=False)[1]
        for (batch, mask), outputs in zip(batches, both, strict=True):
            for name, metric in task.metrics.items():
                value_B = outputs.metrics.get(name)
                sums = metric.sums_of(value_B, outputs.prediction, outputs.target, mask * 1.0)
                sums = _apart(sums)
                made.append({name: (sums, metric.compute(sums))})
            made += [tuple(outputs), task.weights(batch)]
        for optimizer, state in zip(optimizers, states, strict=True):
            made += [
                update(optimizer, grads, state, variables.params, mean, lambda p: loss(p)[0]),
                evaluation_variables(task, own, variables, state),
            ]
        if predictions:
            made.append(task.predictions(own, variables, data))
        return made

    batches = [batch_of(arrays, size) for size in sizes]
    given = leaves, keys.like(), batches, arrays
    closed, shapes = jax.make_jaxpr(everything, return_shape=True)(*given)
    keys.check(closed, type(task).__name__)
    # A jaxpr does not know what parameters and metrics are called.
    names = list(task.metrics) if processes else jax.tree.structure(shapes)
    return f"{jaxprs.digest(closed, processes=processes)} {names}"


@one_at_a_time
def check_changed(
    task: Task, trial: Callable[[PyTree], Trial], leaves: PyTree, names: Sequence[str], steps: int,
    arrays: Arrays, size: int,
) -> None:  # fmt: skip
    """Raise UserError for hyperparameters that a trial cannot change when it takes over a state.

    The state of its model or its optimizer may keep them, or nothing may read them after `init`.
    `trial(leaves)` is a trial as a program has it, which takes `steps` steps with batches of `size`
    examples.
    """

    def init(leaves: PyTree, rng: Array, data: Arrays) -> Variables:
        return task.init(trial(leaves), rng, data)

    def begun(leaves: PyTree, params: PyTree) -> PyTree:
        return optimizer_of(task, trial(leaves), steps).init(params)

    def step(
        leaves: PyTree, states: tuple[PyTree, PyTree], params: PyTree, batch: Batch, mask: Array,
        rng: Array,
    ) -> tuple[PyTree, PyTree]:  # fmt: skip
        own, before = trial(leaves), TrainState(Variables(params, states[0]), states[1])
        after, outputs, *_ = train_step(task, own, steps, before, batch, mask, rng)
        evaluated = evaluation_variables(task, own, after.variables, after.optimizer)
        seen = task.apply(own, evaluated, batch, rng=rng, mask=mask, train=False)
        results = tuple(outputs._replace(state=())), tuple(seen._replace(state=()))
        trained = after.variables.params, evaluated.params
        return (after.variables.state, after.optimizer), (*results, *trained)

    made, variables = jax.make_jaxpr(init, return_shape=True)(leaves, keys.like(), arrays)
    opened, state = jax.make_jaxpr(begun, return_shape=True)(leaves, variables.params)
    batch, mask = batch_of(arrays, size)
    states = variables.state, state
    stepped = jax.make_jaxpr(step)(leaves, states, variables.params, batch, mask, keys.like())
    parts = jax.tree_util.tree_leaves_with_path(states)
    behind, of_model = (len(jax.tree.leaves(part)) for part in variables)
    for name in names:
        place = sorted(leaves).index(name)
        kept = {i - behind for i in jaxprs.depending(made, {place}) if i >= behind}
        now = kept = kept | {of_model + i for i in jaxprs.depending(opened, {place})}
        while True:  # one part of a state may pass it on to another
            reached = jaxprs.depending(stepped, {len(leaves) + i for i in now})
            if now >= (more := {i for i in reached if i < len(parts)}):
                break
            now = now | more
        if len(reached) > len(more):
            place, whose, way = min(kept), "model", "a model that is given it in each call"
            if place >= of_model:
                whose = "optimizer"
                way = "one that is given it in each step, as optax.sgd(trial.learning_rate) is"
            path = jax.tree_util.keystr(parts[place][0][1:])
            raise UserError(
                f"{name} is kept in the {whose}'s state{path}: a copy would go on with its "
                f"parent's; expected {way}"
            )
        if not jaxprs.depending(stepped, {place}):
            raise UserError(
                f"{name}: {type(task).__name__} reads it in `init` alone, and a trial cannot "
                "change it while it trains; expected what a step or an evaluation reads"
            )


def _apart(tree: PyTree) -> PyTree:
    """The same arrays, as if one function of a program had passed them to another.

    Nothing is computed from their values in advance, and no two of them are the same object.
    """
    plain = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), tree)
    return jax.lax.optimization_barrier(plain)


def batch_of(arrays: Arrays, size: int) -> tuple[Batch, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `size` examples, and of its mask."""
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), arrays["train"]
    )
    return batch, jax.ShapeDtypeStruct((size,), jnp.bool_)


def is_plain_value(task: Task) -> bool:
    """Whether type and fields determine what a task computes: it is a dataclass of jaxexp's."""
    return dataclasses.is_dataclass(task) and type(task).__module__.startswith("jaxexp.")


def watch(trial: Trial, read: set[str]) -> Trial:
    """The same trial, which adds the name of each hyperparameter that is read to `read`."""
    names, cls = frozenset(type(trial).fields()), type(trial)

    def get(self: Trial, name: str) -> object:
        if name in names:
            read.add(name)
        return object.__getattribute__(self, name)

    own = {"__getattribute__": get, "__dataclass_params__": vars(cls)["__dataclass_params__"]}
    made: Trial = object.__new__(type(cls.__name__, (cls,), own))
    made.__dict__.update(trial.__dict__)
    return made


def multiplications(jaxpr: jax_core.Jaxpr) -> float:
    """Multiplications in a traced function's products; loops of fixed length count in full."""
    return _count(jaxpr).multiplications


@dataclass
class _Counted:
    multiplications: float = 0.0
    products: float = 0.0  # matrix products and convolutions


def _count(jaxpr: jax_core.Jaxpr) -> _Counted:
    """Count what the results of a traced function need; loops of fixed length count in full."""
    made = _Counted()
    for eqn in jaxprs.needed(jaxpr.eqns, jaxpr.outvars):
        shapes = [jaxprs.shape(v) for v in eqn.outvars]
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            left = jaxprs.shape(eqn.invars[0])
            made.multiplications += math.prod(shapes[0]) * math.prod(left[i] for i in contract)
            made.products += 1
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = jaxprs.shape(eqn.invars[1]), eqn.params["dimension_numbers"]
            per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
            made.multiplications += math.prod(shapes[0]) * per_output
            made.products += 1
        inner = [
            _count(each.jaxpr if isinstance(each, jax_core.ClosedJaxpr) else each)
            for each in jaxprs.inner(eqn.params)
        ]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for counted in inner:
            made.multiplications += times * counted.multiplications
            made.products += times * counted.products
    return made
