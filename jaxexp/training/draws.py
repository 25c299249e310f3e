"""Joins the draws of a function that draws its random numbers one array after another.

Initialising a model draws each of its arrays from a key of its own. The generator is a long piece
of integer arithmetic, which XLA would compile for every array, and compiling is most of what a
start costs. Drawn together, the numbers are the same: with `jax_threefry_partitionable`, which is
JAX's default, each depends only on its key and its place. Draws from keys of other generators are
left as they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core as jax_core

from jaxexp.training import jaxprs, keys
from jaxexp.training.jaxprs import Atom

P = ParamSpec("P")
T = TypeVar("T")
Values: TypeAlias = dict[jax_core.Var, Any]

FOLD, BITS = "random_fold_in", "random_bits"
# A group of draws may draw at most this many numbers in vain, or as many as it needs, if more.
SPARE = 4096


def together(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with its draws from keys of `jax.random` joined into as few as possible.

    >>> def two(key):
    ...     one, other = jax.random.split(key)
    ...     return jax.random.uniform(one, (2,)), jax.random.uniform(other, (3,))
    >>> key = jax.random.key(0)
    >>> [bool((a == b).all()) for a, b in zip(two(key), together(two)(key), strict=True)]
    [True, True]
    """

    def drawn_together(*arguments: P.args, **named: P.kwargs) -> T:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments, **named)
        made: T = jax.tree.unflatten(
            jax.tree.structure(shape), _evaluate(traced, jax.tree.leaves((arguments, named)))
        )
        return made

    return drawn_together


def _evaluate(program: jax_core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """The results of a program, with its draws joined."""
    inner = program.jaxpr
    renamed: dict[jax_core.Var, Atom] = {}
    eqns = _needed(list(_flat(inner, renamed)), [_renamed(renamed, a) for a in inner.outvars])
    values = dict(
        zip([*inner.constvars, *inner.invars], [*program.consts, *arguments], strict=True)
    )
    while eqns:
        ready, draws, eqns = _ready(eqns, values)
        _compute(inner, ready, values)
        folds = [eqn for eqn in draws if eqn.primitive.name == FOLD]
        for group in _groups(folds or draws):  # keys first: more can be drawn from them together
            _draw(group, values)
        if folds:
            eqns = [eqn for eqn in draws if eqn.primitive.name != FOLD] + eqns
    return [_value(values, _renamed(renamed, a)) for a in inner.outvars]


def _flat(
    program: jax_core.Jaxpr, renamed: dict[jax_core.Var, Atom]
) -> Iterator[jax_core.JaxprEqn]:
    """The operations of a program, with each call replaced by the operations of its function.

    `renamed` maps a function's own names of its arguments and results to the names used here.
    """
    for eqn in program.eqns:
        given = [_renamed(renamed, atom) for atom in eqn.invars]
        if eqn.primitive.name not in ("jit", "pjit"):  # its name before JAX 0.7
            yield eqn.replace(invars=given, outvars=[_new(renamed, var) for var in eqn.outvars])
            continue
        called: jax_core.ClosedJaxpr = eqn.params["jaxpr"]
        own: dict[jax_core.Var, Atom] = dict(zip(called.jaxpr.invars, given, strict=True))
        own |= _constants(called)
        yield from _flat(called.jaxpr, own)
        for var, result in zip(eqn.outvars, called.jaxpr.outvars, strict=True):
            renamed[var] = _renamed(own, result)


def _constants(program: jax_core.ClosedJaxpr) -> dict[jax_core.Var, Atom]:
    """What a program closes over."""
    given = zip(program.jaxpr.constvars, program.consts, strict=True)
    return {var: jax_core.Literal(value, var.aval) for var, value in given}


def _renamed(renamed: Mapping[jax_core.Var, Atom], atom: Atom) -> Atom:
    return atom if isinstance(atom, jax_core.Literal) else renamed.get(atom, atom)


def _new(renamed: dict[jax_core.Var, Atom], var: jax_core.Var) -> jax_core.Var:
    """A new name, since a function that is called twice has the same names both times."""
    made = jax_core.Var(var.aval)
    renamed[var] = made
    return made


def _needed(eqns: list[jax_core.JaxprEqn], results: Sequence[Atom]) -> list[jax_core.JaxprEqn]:
    """The operations that results depend on: initialising a model computes its output, too."""
    wanted = jaxprs.variables(results)
    found, left = [], list(eqns)
    while left:
        eqn = left.pop()
        if not eqn.effects and wanted.isdisjoint(eqn.outvars):
            continue
        if eqn.primitive.name == "scan" and (turns := _turns_at_once(eqn, wanted)):
            left += turns
            continue
        wanted |= jaxprs.variables(eqn.invars)
        found.append(eqn)
    return found[::-1]


def _turns_at_once(
    scan: jax_core.JaxprEqn, wanted: set[jax_core.Var]
) -> list[jax_core.JaxprEqn] | None:
    """The operations of all turns of a loop at once; None if a turn needs another's results.

    Parameters of stacked layers are made by such a loop, once the activations that pass through the
    layers are not needed.
    """
    needed = ("jaxpr", "num_consts", "num_carry", "length")
    if not {*needed} <= scan.params.keys():  # JAX may change them
        return None
    program, constants, carried, length = (scan.params[n] for n in needed)
    if not wanted.isdisjoint(scan.outvars[:carried]) or keys.others(program):
        return None
    inner = program.jaxpr
    several = [i for i, var in enumerate(scan.outvars) if i >= carried and var in wanted]
    renamed: dict[jax_core.Var, Atom] = {}
    eqns = list(_flat(inner, renamed))
    results = [_renamed(renamed, inner.outvars[i]) for i in several]
    eqns = _needed(eqns, results)
    used = jaxprs.variables([*results, *(atom for eqn in eqns for atom in eqn.invars)])
    if not used.isdisjoint(inner.invars[constants : constants + carried]):
        return None
    own = [*inner.invars[:constants], *inner.invars[constants + carried :]]
    turn = jax_core.jaxpr_as_fun(
        jax_core.ClosedJaxpr(inner.replace(invars=own, outvars=results, eqns=eqns), program.consts)
    )
    axes = [None] * constants + [0] * (len(own) - constants)
    given = [*scan.invars[:constants], *scan.invars[constants + carried :]]
    made = jax.make_jaxpr(jax.vmap(turn, axes, axis_size=length))(
        *(jax.ShapeDtypeStruct(_aval(a).shape, _aval(a).dtype) for a in given)
    )
    names = _constants(made) | dict(zip(made.jaxpr.invars, given, strict=True))
    turns = list(_flat(made.jaxpr, names))
    own_results = [_renamed(names, atom) for atom in made.jaxpr.outvars]
    computed = {var for eqn in turns for var in eqn.outvars}
    if len(jaxprs.variables(own_results) & computed) < len(several):
        return None  # some results are inputs, or coincide
    to_results: dict[Atom, jax_core.Var] = dict(
        zip(own_results, (scan.outvars[i] for i in several), strict=True)
    )
    return [
        eqn.replace(
            invars=[
                a if isinstance(a, jax_core.Literal) else to_results.get(a, a) for a in eqn.invars
            ],
            outvars=[to_results.get(var, var) for var in eqn.outvars],
        )
        for eqn in turns
    ]


def _ready(
    eqns: Sequence[jax_core.JaxprEqn], values: Values
) -> tuple[list[jax_core.JaxprEqn], ...]:
    """Operations that need nothing but the values, the draws that come next, and the rest."""
    known = set(values)
    ready, draws, left = list[jax_core.JaxprEqn](), [], []
    for eqn in eqns:
        if not all(isinstance(atom, jax_core.Literal) or atom in known for atom in eqn.invars):
            left.append(eqn)
        elif _draws(eqn):
            draws.append(eqn)
        else:
            if eqn.primitive.name == "scan":
                eqn = eqn.replace(params={**eqn.params, "jaxpr": _program(eqn.params["jaxpr"])})
            ready.append(eqn)
            known.update(eqn.outvars)
    return ready, draws, left


def _compute(program: jax_core.Jaxpr, eqns: Sequence[jax_core.JaxprEqn], values: Values) -> None:
    """Compute some operations of a program."""
    made = [var for eqn in eqns for var in eqn.outvars]
    used = jaxprs.variables([atom for eqn in eqns for atom in eqn.invars])
    given = [var for var in values if var in used]
    part = program.replace(constvars=[], invars=given, outvars=made, eqns=list(eqns))
    results = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(part, ()))(*(values[v] for v in given))
    values.update(zip(made, results, strict=True))


def _program(program: jax_core.ClosedJaxpr) -> jax_core.ClosedJaxpr:
    """The same program, with its draws joined."""
    made: jax_core.ClosedJaxpr = jax.make_jaxpr(lambda *own: _evaluate(program, own))(
        *(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in program.in_avals)
    )
    return made


def _value(values: Values, atom: Atom) -> Any:
    return atom.val if isinstance(atom, jax_core.Literal) else values[atom]


def _draws(eqn: jax_core.JaxprEqn) -> bool:
    """Whether an operation is a draw that can be joined with others."""
    if eqn.primitive.name not in (FOLD, BITS):
        return False
    threefry = str(_aval(eqn.invars[0]).dtype) == "key<fry>"
    partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return threefry and partitionable and eqn.params.get("bit_width", 32) == 32


def _groups(draws: Sequence[jax_core.JaxprEqn]) -> Iterator[list[jax_core.JaxprEqn]]:
    """Draws of one kind and of similar sizes, so that not too much is drawn in vain."""
    group: list[jax_core.JaxprEqn] = []
    keys = needed = 0  # of the group
    for eqn in sorted(draws, key=_length, reverse=True):
        own_keys = math.prod(_keys(eqn))
        own = own_keys * _length(eqn)
        if group:
            spare = (keys + own_keys) * _length(group[0]) - needed - own
            if spare > max(SPARE, needed):
                yield group
                group, keys, needed = [], 0, 0
        group.append(eqn)
        keys, needed = keys + own_keys, needed + own
    if group:
        yield group


def _length(eqn: jax_core.JaxprEqn) -> int:
    """How many numbers are drawn from each key."""
    return math.prod(eqn.params.get("shape", ()))


def _draw(group: Sequence[jax_core.JaxprEqn], values: Values) -> None:
    """Do draws of one kind, sorted with the longest first, as one draw."""

    def joined(place: int) -> Array:
        """Their arguments at this place, one after another."""
        given = [_value(values, eqn.invars[place]) for eqn in group]
        shapes = map(_keys, group)
        return jnp.concatenate(
            [jnp.broadcast_to(a, shape).reshape(-1) for a, shape in zip(given, shapes, strict=True)]
        )

    folds = group[0].primitive.name == FOLD
    if folds:
        drawn: Array = jax.vmap(jax.random.fold_in)(joined(0), joined(1))
    else:
        length = _length(group[0])
        drawn = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(joined(0))
    start = 0
    for eqn in group:
        keys = math.prod(_keys(eqn))
        own = drawn[start : start + keys]
        start += keys
        own = own if folds else own[:, : _length(eqn)]
        values[eqn.outvars[0]] = own.reshape(_aval(eqn.outvars[0]).shape)


def _keys(eqn: jax_core.JaxprEqn) -> tuple[int, ...]:
    """The shape of the keys of a draw."""
    shape: tuple[int, ...] = _aval(eqn.outvars[0]).shape
    return shape[: len(shape) - len(eqn.params.get("shape", ()))]


def _aval(atom: Atom) -> jax.core.ShapedArray:
    return cast(jax.core.ShapedArray, atom.aval)
