"""Models as a supervised task sees them: linen modules, nnx modules, and plain functions."""

import contextlib
import copy
import functools
import inspect
import operator
import re
import types
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.spec.trial import Trial
from jaxexp.training import jaxprs
from jaxexp.training.task import TRIED, Variables
from jaxexp.training.trees import PyTree

# What modules call the argument that says whether they train, and its value in training.
TRAINING = {"train": True, "training": True, "is_training": True}
TRAINING |= {"deterministic": False, "use_running_average": False}
# Other names for it, in lower case without underscores, consist of nothing but such words.
BESIDE = "(is|in|do|for|not|or|use|only|enabled?|flag|mode|time|phase)*"
MODE = "((train|test)(ing)?|eval(uat(e|ing|ion))?|infer(ence)?|deterministic)"
MODE = rf"{BESIDE}({MODE}{BESIDE})+"
GIVEN = (*TRAINING, "mask", "rng")  # passed by name to what applies a model, if it accepts them
# A function of the user's, called with what its signature accepts.
Function: TypeAlias = Callable[..., PyTree]
State: TypeAlias = "nnx.State[PyTree, PyTree]"
Split: TypeAlias = "tuple[nnx.GraphDef[nnx.Module], State, State, State]"
Path: TypeAlias = Sequence[object]  # of an attribute, or of an array in a tree
ONCE = (None, ())  # nnx lists each of these once, however many attributes hold it
PLAIN = (types.FunctionType, types.MethodType, types.ModuleType, type, jax.Array, np.ndarray)


def model_of(module: object) -> "SupervisedModel":
    """Make a model from the `module` given to `supervised`; UserError if it is invalid."""
    if isinstance(module, linen.Module):
        return LinenModel(_TheSame(module))
    made = "expected a function of the trial that returns a Flax linen module, or of (trial, rngs)"
    made += " that returns an nnx module"
    if isinstance(module, nnx.Module):
        raise UserError(f"module: {type_of(module)} that is made already, {made}")
    if isinstance(module, type):
        raise UserError(f"module: the class {module.__name__} itself, {made}")
    make = checked_function("module", module, ("trial",), ("trial", "rngs"))
    return (NnxModel if arity(make) > 1 else LinenModel)(make)


class _TheSame:
    """Returns the same module for every trial; unlike a lambda, it can be pickled."""

    def __init__(self, module: linen.Module) -> None:
        self.module = module

    def __call__(self, trial: Trial) -> linen.Module:
        return self.module


class SupervisedModel:
    """A model as the task sees it; two models made of the same functions are equal."""

    names = ("module", "module")  # of the parts that initialise it and apply it
    expected = "expected the variables that it is made with"  # of the state

    def __init__(self, *functions: Function) -> None:
        """The functions that make and apply it."""
        self.functions = functions

    def __eq__(self, other: object) -> bool:
        """Whether both are of the same type and made of the same functions."""
        if not isinstance(other, SupervisedModel) or type(self) is not type(other):
            return False
        return self.functions == other.functions

    def __hash__(self) -> int:
        """The hash of the functions."""
        return hash(self.functions)

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        """Parameters and state, drawn with a key; `x` is (1, ...)."""
        raise NotImplementedError

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """The prediction, and the new state."""
        raise NotImplementedError

    def check(self, trial: Trial) -> None:
        """Raise UserError if trials would share one model rather than have one each."""


class Functions(SupervisedModel):
    """A model of plain functions, without state."""

    names = ("init", "apply")

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        """Parameters and state, drawn with a key; `x` is (1, ...)."""
        return Variables(self.functions[0](trial, rng, x))

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """The prediction of a batch (B, ...), and the new state."""
        function = self.functions[1]
        own = call_arguments(function, rng, mask, train=train)
        return function(trial, variables.params, x, **own), variables.state


class LinenModel(SupervisedModel):
    """A function of the trial that returns a linen module."""

    expected = (
        f"{SupervisedModel.expected}; what it sows grows in every call, but in 'intermediates', or "
        "with a reduce_fn and an init_fn: self.sow(…, reduce_fn=…, init_fn=…)"
    )

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
        """Parameters and state, drawn with a key; `x` is (1, ...)."""
        module = self._module(trial)
        rngs = {"params": rng, "dropout": jax.random.fold_in(rng, 1)}
        found = module.init(rngs, x, **call_arguments(module, rng, jnp.ones(1, bool), train=False))
        params = found.get("params", {})
        return Variables(params, {k: v for k, v in found.items() if k != "params"})

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """The prediction of a batch (B, ...), and the new state."""
        module = self._module(trial)
        tree = {"params": variables.params, **variables.state}
        rngs = {"params": rng, "dropout": jax.random.fold_in(rng, 1)}
        arguments = call_arguments(module, rng, mask, train=train)
        if not train:
            return module.apply(tree, x, rngs=rngs, **arguments), variables.state
        collections = list(variables.state)
        prediction, new = module.apply(tree, x, rngs=rngs, mutable=collections, **arguments)
        return prediction, {name: new[name] for name in collections}


class NnxModel(SupervisedModel):
    """A function of the trial and rngs that returns an nnx module.

    Its parameters and its other variables are trees of plain arrays, like those of linen; its
    random streams are reseeded in every call.
    """

    def _made(self, trial: Trial, rng: Array | int) -> "Split":
        model = self.functions[0](trial, nnx.Rngs(rng))
        if not isinstance(model, nnx.Module):
            raise UserError(
                f"module: the function of (trial, rngs) returned {type(model).__name__}, expected "
                "a Flax nnx module"
            )
        # While tracing, nnx treats arrays in plain attributes as static.
        for node in [own for _, own in nnx.iter_graph(model) if isinstance(own, nnx.Module)]:
            for name, own in [*vars(node).items()]:
                if isinstance(own, jax.Array):
                    setattr(node, name, nnx.data(own))
        graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
        params, streams, state = states
        return graph, params, streams, state

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        """Parameters and state, drawn with a key; `x` is (1, ...)."""
        _, params, _, state = self._made(trial, rng)
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """The prediction of a batch (B, ...), and the new state."""
        graphs: list[nnx.GraphDef[nnx.Module]] = []  # not a result: static parts may hold tracers

        def shapes_of() -> list[State]:
            graph, *states = self._made(trial, 0)
            graphs.append(graph)
            return states

        shapes = jax.eval_shape(shapes_of)
        leaves, structure = jax.tree.flatten(shapes[1])
        seeded = [stream_seed(leaf, rng, i) for i, leaf in enumerate(leaves)]
        made_with = {path for path, _ in nnx.to_flat_state(shapes[2])}
        # What a module sows is meant for inspection and is not state: linen's is left out, too.
        sown = nnx.All(nnx.Intermediate, lambda path, _: path not in made_with)

        def call(own: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            params, state = map(_filled, shapes[::2], (own, variables.state))
            streams = jax.tree.unflatten(structure, seeded)
            model = nnx.merge(graphs[0], params, streams, state)
            model.train() if train else model.eval()
            fixed = _fixed(model, params, streams, state)
            prediction = model(x, **call_arguments(model, rng, mask, train=train))
            _, *states = nnx.split(model, nnx.Param, nnx.RngState, sown, ...)
            others = {path for path, _ in nnx.to_flat_state(states[2])}
            now = _fixed(model, *states)
            _check_fixed(fixed, {path: own for path, own in now.items() if path not in others})
            return prediction, nnx.to_pure_dict(states[0]), nnx.to_pure_dict(states[3])

        prediction, params, state = call(variables.params)
        if any(map(operator.is_not, *map(jax.tree.leaves, (params, variables.params)))):
            program = jax.make_jaxpr(lambda own: call(own)[1])(variables.params)
            same = zip(jax.tree.leaves_with_path(params), jaxprs.passed_on(program), strict=True)
            written = [[key.key for key in path] for i, ((path, _), j) in enumerate(same) if i != j]
            if written:
                raise UserError(
                    f"module: a call writes to the nnx.Param {_names(written)}, which only the "
                    "optimizer may change: expected what a call writes in another nnx.Variable"
                )
        return prediction, state if train else variables.state

    def check(self, trial: Trial) -> None:
        """Raise UserError if trials would share one model rather than have one each."""
        made = [self.functions[0](trial, nnx.Rngs(0)) for _ in range(2)]
        if made[0] is made[1]:
            raise UserError(
                "module: the function returns the same module in every call, so that all trials "
                "would begin alike: expected a new one, made with the rngs given"
            )


def _filled(shapes: State, values: PyTree) -> State:
    """A copy of a state, with these values."""
    # Variables remember the trace in which they were made; for copies, it is the current one.
    state = nnx.map_state(lambda _, v: v.copy() if isinstance(v, nnx.Variable) else v, shapes)
    nnx.replace_by_pure_dict(state, values)
    return state


def _fixed(model: nnx.Module, *states: State) -> dict[Path, object]:
    """The frozen value of every attribute; for arrays in the states, only that they exist."""
    held = {path for state in states for path, _ in nnx.to_flat_state(state)}
    return {
        path: jax.Array if path in held else _frozen(value)
        for path, value in _attributes(model, set())
        if path[-1] not in ("deterministic", "use_running_average")  # set by train() and eval()
        and not any(value is each for each in ONCE)
    }


def _attributes(node: object, seen: set[int]) -> Iterator[tuple[Path, object]]:
    """What nnx finds in a module or any tree, and the attributes of other objects in it."""
    for path, value in nnx.iter_graph(node):
        if not path or str(path[-1]).startswith("_pytree__"):  # nnx's own bookkeeping
            continue
        yield path, value
        if hasattr(value, "__dict__") and not (_is_node(value) or isinstance(value, PLAIN)):
            within = {} if id(value) in seen else vars(value)
            seen.add(id(value))
            yield from (((*path, *names), own) for names, own in _attributes(within, seen))


def _is_node(value: object) -> bool:
    return isinstance(value, nnx.Variable) or nnx.graph.is_node(value)


def _frozen(value: object) -> object:
    """Something that compares equal until the value changes.

    For nodes, it is their type, as their parts are listed separately.
    """
    if _is_node(value):
        return type(value)
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, jax.Array):
        return jaxprs.Same(value)
    if isinstance(value, set | dict | deque | bytearray):
        return copy.copy(value)
    return value


def _check_fixed(before: Mapping[Path, object], now: Mapping[Path, object]) -> None:
    """Raise UserError for attributes that a call adds or changes."""
    added = [path for path in now if path not in before]
    first = [path for path in added if not any(path[:i] in added for i in range(len(path)))]
    if first:
        raise UserError(
            f"module: a call adds {_names(first)}, which every step would begin without: expected "
            "what a call keeps in variables and submodules that are made in __init__"
        )
    changed = [path for path in before if path not in now or (before[path],) != (now[path],)]
    if changed:
        raise UserError(
            f"module: a call changes {_names(changed)}, which every step would begin with anew, as "
            "it is no variable: expected an nnx.Variable, or none that changes"
        )


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(".".join(map(str, path)) for path in paths)


def stream_seed(leaf: jax.ShapeDtypeStruct, rng: Array, i: int) -> Array:
    """What a random stream starts with: a key of its own, or a count of 0."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(rng, i)
    return jnp.zeros(leaf.shape, leaf.dtype)


def call_arguments(
    applied: linen.Module | nnx.Module | Function, rng: Array, mask: Array, *, train: bool
) -> dict[str, PyTree]:
    """The arguments that a module or function accepts besides its inputs."""
    given: dict[str, PyTree] = {"rng": rng, "mask": mask}
    given |= {name: train == in_training for name, in_training in TRAINING.items()}
    call, part = applied, "apply: it"
    if isinstance(applied, linen.Module | nnx.Module):
        call, part = type(applied).__call__, f"module: {type(applied).__name__}.__call__"
    names = parameters(call)
    for name in names:
        default = inspect.signature(call).parameters[name].default
        mode = re.fullmatch(MODE, name.replace("_", "").lower())
        if mode and isinstance(default, bool) and name not in given:
            raise UserError(
                f"{part} has the parameter {name}={default}, which would never change: to say "
                f"whether it trains, expected one of {', '.join(TRAINING)}"
            )
    return {name: value for name, value in given.items() if name in names}


ANY_NUMBER = f"tried with 1 or {TRIED} examples, as any number has to work"


@contextlib.contextmanager
def naming(part: str, **given: PyTree) -> Iterator[None]:
    """Turn an error in a user's function into a UserError that names it and what it was given."""
    try:
        yield
    except UserError as error:
        named = str(error).startswith((part, "metric "))
        raise error if named else UserError(f"{part}: {error}") from error
    except Exception as error:
        said = " and ".join(f"{name} {_shapes(tree)}" for name, tree in given.items())
        tried = f" for {said} ({ANY_NUMBER})" if said else ""
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{part}: {type(error).__name__}{tried}: {reason}") from error


def _shapes(tree: PyTree) -> str:
    found = [f"{a.dtype} {a.shape}" for a in jax.tree.leaves(tree) if hasattr(a, "dtype")]
    return ", ".join(found) or type(tree).__name__


def check_params(part: str, params: PyTree) -> None:
    """Raise UserError if parameters are not floats, or if there are none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise UserError(f"{part}: no parameters, expected some to train")
    for path, leaf in leaves:
        if not isinstance(leaf, bool | int | float | complex) and not hasattr(leaf, "dtype"):
            raise UserError(f"{part}: a parameter is {type_of(leaf)}, expected an array")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            raise UserError(f"{part}: params{name} is {dtype}, expected floats")


def checked_function(
    name: str, function: object, *arguments: tuple[str, ...], by_name: Sequence[str] = ()
) -> Function:
    """Return the function if it accepts one of these lists of arguments; else raise UserError.

    If it has parameters named in `by_name`, it is given these, too.
    """
    if not callable(function):
        raise UserError(f"{name}: {function!r}, expected a function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return function
    named = {each: each for each in by_name if each in signature.parameters}
    for given in arguments:
        with contextlib.suppress(TypeError):
            signature.bind(*given, **named)
            return function
    expected = " or ".join(f"({', '.join(given)})" for given in arguments)
    if by_name:
        expected += f", and of {', '.join(by_name)} where it wants them"
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    raise UserError(f"{name}: a function of {inspect.Signature(bare)}, expected one of {expected}")


def parameters(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of the parameters that no partial has bound; () if Python cannot tell."""
    bound = function.keywords if isinstance(function, functools.partial) else {}
    try:
        return tuple(name for name in inspect.signature(function).parameters if name not in bound)
    except (TypeError, ValueError):  # written in C
        return ()


def arity(function: Callable[..., object], but: Container[str] = ()) -> int:
    """How many positional parameters without a default a function has, except those in `but`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        p.kind in positional and p.default is p.empty and p.name not in but for p in parameters
    )
