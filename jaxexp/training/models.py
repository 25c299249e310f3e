"""Models as a supervised task sees them: linen modules, nnx modules, and plain functions."""

import contextlib
import inspect
import re
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.spec.trial import Trial
from jaxexp.training.task import TRIED, Variables, accepts
from jaxexp.training.trees import PyTree

# How modules call what says whether they train, and its value in training.
TRAINING = {"train": True, "training": True, "is_training": True}
TRAINING |= {"deterministic": False, "use_running_average": False}
MODE = re.compile("train|eval|infer|determin|test")
GIVEN = ("train", "mask", "rng")  # by name, to what applies a model and takes them
# A part of the user's own; by its signature it is called with what it takes.
Function: TypeAlias = Callable[..., PyTree]
State: TypeAlias = "nnx.State[PyTree, PyTree]"


def model_of(module: object) -> "SupervisedModel":
    """The model of what `supervised` is given as a module; UserError for what is none."""
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
    """Makes the same module of every trial; unlike a lambda, it can be pickled."""

    def __init__(self, module: linen.Module) -> None:
        self.module = module

    def __call__(self, trial: Trial) -> linen.Module:
        return self.module


class SupervisedModel:
    """A model as the task sees it; equal where the functions it is made of are the same."""

    names = ("module", "module")  # of what initialises it, and of what applies it
    expected = "expected the variables that it is made with"  # of the state

    def __init__(self, *functions: Function) -> None:
        """The functions that make and apply it."""
        self.functions = functions

    def __eq__(self, other: object) -> bool:
        """Of the same functions."""
        if not isinstance(other, SupervisedModel) or type(self) is not type(other):
            return False
        return self.functions == other.functions

    def __hash__(self) -> int:
        """Of the functions."""
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
        """Raise UserError for a model that is not one of its own for each trial."""


class Functions(SupervisedModel):
    """Plain functions: no state."""

    names = ("init", "apply")

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        """Parameters and state, drawn with a key; `x` is (1, ...)."""
        return Variables(self.functions[0](trial, rng, x))

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """The prediction of a batch (B, ...), and the new state."""
        given = {"rng": rng, "mask": mask, "train": train}
        own = {name: value for name, value in given.items() if accepts(self.functions[1], name)}
        return self.functions[1](trial, variables.params, x, **own), variables.state


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

    Its parameters and its other variables are trees of plain arrays, as those of linen; its random
    streams are seeded anew in every call.
    """

    def _split(self, model: object) -> "tuple[nnx.GraphDef[nnx.Module], State, State, State]":
        if not isinstance(model, nnx.Module):
            raise UserError(
                f"module: the function of (trial, rngs) returned {type(model).__name__}, expected "
                "a Flax nnx module"
            )
        graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
        params, streams, state = states
        return graph, params, streams, state

    def init(self, trial: Trial, rng: Array, x: PyTree) -> Variables:
        """Parameters and state, drawn with a key; `x` is (1, ...)."""
        _, params, _, state = self._split(self.functions[0](trial, nnx.Rngs(rng)))
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

    def apply(
        self, trial: Trial, variables: Variables, x: PyTree, *, rng: Array, mask: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """The prediction of a batch (B, ...), and the new state."""
        shapes = nnx.eval_shape(lambda: self.functions[0](trial, nnx.Rngs(0)))
        graph, params, streams, state = self._split(shapes)
        nnx.replace_by_pure_dict(params, variables.params)
        nnx.replace_by_pure_dict(state, variables.state)
        leaves, structure = jax.tree.flatten(streams)
        seeded = [stream_seed(leaf, rng, i) for i, leaf in enumerate(leaves)]
        model = nnx.merge(graph, params, jax.tree.unflatten(structure, seeded), state)
        model.train() if train else model.eval()
        fixed = _fixed(nnx.split(model)[0])
        prediction = model(x, **call_arguments(model, rng, mask, train=train))
        # What a module sows is for those who look into it, and no state: linen's is left out, too.
        made_with = {path for path, _ in nnx.to_flat_state(state)}
        sown = nnx.All(nnx.Intermediate, lambda path, _: path not in made_with)
        graph, *states = nnx.split(model, nnx.Param, nnx.RngState, sown, ...)
        if (now := _fixed(graph)) != fixed:
            differ = (own for own in now + fixed if own not in now or own not in fixed)
            raise UserError(
                f"module: a call changes {', '.join(dict.fromkeys(str(own[0]) for own in differ))},"
                " which every step would begin with anew, as it is no variable: expected an "
                "nnx.Variable, or none that changes"
            )
        return prediction, nnx.to_pure_dict(states[-1]) if train else variables.state

    def check(self, trial: Trial) -> None:
        """Raise UserError for a model that is not one of its own for each trial."""

        def make() -> nnx.Module:
            made: nnx.Module = self.functions[0](trial, nnx.Rngs(0))
            if made is self.functions[0](trial, nnx.Rngs(0)):
                raise UserError(
                    "module: the function returns the same module in every call, so that all "
                    "trials would begin alike: expected a new one, made with the rngs given"
                )
            return made

        nnx.eval_shape(make)


def _fixed(graph: "nnx.GraphDef[nnx.Module]") -> list[tuple[object, object]]:
    """The attributes that hold no arrays, and their values; not what nnx notes of them itself."""
    own = ((name, attr.value) for name, attr in graph.attributes if hasattr(attr, "value"))
    return [(name, value) for name, value in own if not str(name).startswith("_pytree__")]


def stream_seed(leaf: jax.ShapeDtypeStruct, rng: Array, i: int) -> Array:
    """A random stream's key, or its count."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(rng, i)
    return jnp.zeros(leaf.shape, leaf.dtype)


def call_arguments(
    module: linen.Module | nnx.Module, rng: Array, mask: Array, *, train: bool
) -> dict[str, PyTree]:
    """What a module wants to be called with beside its inputs."""
    given: dict[str, PyTree] = {"rng": rng, "mask": mask}
    given |= {name: train == in_training for name, in_training in TRAINING.items()}
    call = type(module).__call__
    for name in parameters(call)[2:]:
        default = inspect.signature(call).parameters[name].default
        if isinstance(default, bool) and name not in given and MODE.search(name):
            raise UserError(
                f"module: {type(module).__name__}.__call__ has the parameter {name}={default}, "
                "which would never change: to say whether it trains, expected one of "
                f"{', '.join(TRAINING)}"
            )
    return {name: value for name, value in given.items() if accepts(call, name)}


ANY_NUMBER = f"tried with 1 or {TRIED} examples, as any number has to work"


@contextlib.contextmanager
def naming(part: str, **given: PyTree) -> Iterator[None]:
    """Whatever a part of the user's own raises says which part it is, and what it was given."""
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
    """Raise UserError for parameters that are no floats, or none at all."""
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
    """The function, if it takes one of these lists of arguments.

    Where it has parameters of the names `by_name`, it is given them, too.
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
    """The names of a function's parameters; () where Python cannot tell."""
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return ()


def arity(function: Callable[..., object], but: Container[str] = ()) -> int:
    """How many positional arguments a function takes that have no default, `but` some by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        p.kind in positional and p.default is p.empty and p.name not in but for p in parameters
    )
