"""Traced functions: their digests, equal for the same numbers, and what depends on what in them."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend import core as jax_core
from jax.typing import ArrayLike

Program: TypeAlias = jax_core.ClosedJaxpr | jax_core.Jaxpr
Atom: TypeAlias = jax_core.Var | jax_core.Literal
Shape: TypeAlias = tuple[int, ...]
Params: TypeAlias = Mapping[str, Any]  # of an operation, as JAX has them

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")  # whose rules are made anew by every trace
CALLS = {
    "call", "checkpoint", "closed_call", "core_call", "custom_jvp_call", "jit", "pjit", "remat",
    "remat2",
}  # fmt: skip
PASSED_ON = ("device_put", "optimization_barrier")  # results are the arguments, one for one
_SIZE = re.compile(r"(?<![\w.])\d+(?![\w.:])")  # a whole number; one to compute with has a colon
_numbers: dict[object, int] = {}  # of functions on the host, kept so that none is reused


def digest(closed: jax_core.ClosedJaxpr, *, processes: bool = False) -> str:
    """A digest of a program's text and of the values of the arrays that it closes over.

    Functions that a program calls back on the host are told apart by identity, and so only within
    this process; they are not told apart with `processes`, which makes the digest the same in every
    process. Derivative rules count if they have been traced: as part of a gradient.
    """
    sha256 = hashlib.sha256(_ADDRESS.sub("", str(closed)).encode())
    if not processes:
        sha256.update(repr([_number(function) for function in _functions(closed)]).encode())
    for constant in _constants(closed):
        array = np.ascontiguousarray(constant)
        sha256.update(repr((array.dtype.name, array.shape)).encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()[:16]


def inner(params: Mapping[str, object]) -> list[Program]:
    """The programs within the parameters of an operation."""
    found = []
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, jax_core.ClosedJaxpr | jax_core.Jaxpr):
                found.append(each)
    return found


def same_but_for_size(program: Program, n: int, large: Program, prime: int) -> bool:
    """Whether a program traced for n examples is that traced for a prime number, except in size.

    Where a size in one is a multiple of its number of examples, so is the size in the other. Any
    number that they compute with is the same, and of the arrays that they hold, the shorter one is
    how the longer one begins.
    """

    def sized(found: re.Match[str]) -> str:
        size = int(found[0])
        return found[0] if size % prime or not size else str(size // prime * n)

    if [*_lines(program)] != [_SIZE.sub(sized, line) for line in _lines(large)]:
        return False
    constants = (map(np.asarray, _constants(each)) for each in (program, large))
    for a, b in zip(*constants, strict=True):
        both = tuple(map(slice, np.minimum(a.shape, b.shape)))
        if not np.array_equal(a[both], b[both], equal_nan=a.dtype.kind in "fc"):
            return False
    return True


def _lines(program: Program) -> Iterator[str]:
    """A program as text, in full: JAX shortens what is long, and shares what is called twice."""
    jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
    names: dict[object, str] = {}

    def name(value: Atom) -> str:
        if not isinstance(value, jax_core.Literal):
            return names.setdefault(value, f"v{len(names)}")
        number = np.asarray(value.val)
        return f"{number.tolist()}:" if number.ndim == 0 else f"literal{number.ndim}"

    yield " ".join(f"{name(v)} {v.aval}" for v in (*jaxpr.constvars, *jaxpr.invars))
    for eqn in jaxpr.eqns:
        called = inner(eqn.params)
        params = {
            key: _ADDRESS.sub("", str(value))
            for key, value in eqn.params.items()
            if not callable(value) and not inner({key: value})
        }
        if eqn.primitive.name == "integer_pow":
            params["y"] += ":"
        made = [f"{name(v)} {v.aval}" for v in eqn.outvars]
        yield f"{made} = {eqn.primitive.name} {params} {list(map(name, eqn.invars))}"
        for each in called:
            yield from _lines(each)
    yield " ".join(map(name, jaxpr.outvars))


def shape(value: Atom) -> Shape:
    """The shape of an array; () for anything else."""
    own: Shape = getattr(value.aval, "shape", ())
    return own


def variables(atoms: Iterable[Atom]) -> set[jax_core.Var]:
    """The variables among them, without the literals."""
    return {atom for atom in atoms if isinstance(atom, jax_core.Var)}


def needed(eqns: Sequence[jax_core.JaxprEqn], results: Iterable[Atom]) -> list[jax_core.JaxprEqn]:
    """Equations that results depend on, or that have effects; compilers drop the others, too."""
    wanted, found = variables(results), []
    for eqn in reversed(eqns):
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            wanted |= variables(eqn.invars)
            found.append(eqn)
    return found[::-1]


def equations(program: Program) -> Iterator[jax_core.JaxprEqn]:
    """All equations of a program, and of the programs within it."""
    jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
    for eqn in jaxpr.eqns:
        yield eqn
        for each in inner(eqn.params):
            yield from equations(each)


def depending(program: Program, given: Collection[int]) -> set[int]:
    """The places of the results that may depend on the inputs at the given places."""
    jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
    found = {jaxpr.invars[i] for i in given}

    def places(atoms: Sequence[Atom]) -> set[int]:
        return {i for i, a in enumerate(atoms) if isinstance(a, jax_core.Var) and a in found}

    for eqn in jaxpr.eqns:
        own, name = places(eqn.invars), eqn.primitive.name
        made = set(range(len(eqn.outvars))) if own else own
        if own and name in CALLS:
            [called] = inner(eqn.params)
            made = depending(called, own)
        elif own and name == "cond" and 0 not in own:  # the first decides which branch it is
            made = set().union(*(depending(c, {i - 1 for i in own}) for c in inner(eqn.params)))
        elif own and name == "scan":
            [body], before = inner(eqn.params), eqn.params["num_consts"]
            carried = range(eqn.params["num_carry"])
            made = depending(body, own)
            while not own >= (taken := {before + i for i in made if i in carried}):
                own |= taken  # a turn passes its carry on to the next
                made = depending(body, own)
        found |= {eqn.outvars[i] for i in made}
    return places(jaxpr.outvars)


def passed_on(program: Program) -> list[int | None]:
    """For each result, the place of the input that it is, unchanged; None if not certain."""
    jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
    places: dict[Atom, int] = {variable: i for i, variable in enumerate(jaxpr.invars)}

    def place(atom: Atom) -> int | None:
        return places.get(atom) if isinstance(atom, jax_core.Var) else None

    for eqn in jaxpr.eqns:
        name, given = eqn.primitive.name, eqn.invars
        called: list[list[int | None]] = [passed_on(each) for each in inner(eqn.params)]
        if name in PASSED_ON:
            called = [[*range(len(given))]]
        elif name == "cond":
            given = given[1:]
        elif name == "scan":  # a carry must be the same one; a stacked result, slices of an input
            carried, of_carry = eqn.params["num_carry"], eqn.params["num_consts"]
            slices = range(of_carry + carried, len(given))
            called = [
                [
                    j if j in ((i + of_carry,) if i < carried else slices) else None
                    for i, j in enumerate(own)
                ]
                for own in called
            ]
        elif name not in CALLS and name != "custom_vjp_call":
            continue
        for out, *each in zip(eqn.outvars, *called, strict=True):
            found = {None if j is None else place(given[j]) for j in each}
            if len(found) == 1 and (own := found.pop()) is not None:
                places[out] = own
    return [place(atom) for atom in jaxpr.outvars]


def operations(program: Program) -> set[str]:
    """The names of all operations."""
    return {eqn.primitive.name for eqn in equations(program)}


def dtypes(program: Program) -> set[np.dtype]:
    """The types of all that operations take and return."""
    values = (v for eqn in equations(program) for v in (*eqn.invars, *eqn.outvars))
    return {v.aval.dtype for v in values if hasattr(v.aval, "dtype")}


def _functions(program: Program) -> Iterator[Callable[..., object]]:
    """The Python functions among the parameters of operations."""
    jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
    for eqn in jaxpr.eqns:
        if not eqn.primitive.name.startswith(DERIVATIVES):
            for value in eqn.params.values():
                for each in value if isinstance(value, tuple | list) else (value,):
                    if callable(each):
                        yield each
        for each in inner(eqn.params):
            yield from _functions(each)


def _number(function: Callable[..., object]) -> int:
    """A function's number, always the same; the function is kept alive so that it stays its own."""
    try:
        return _numbers.setdefault(function, len(_numbers))
    except TypeError:  # not hashable
        return _numbers.setdefault(Same(function), len(_numbers))


class Same:
    """A key that is equal only for one and the same object."""

    def __init__(self, own: object) -> None:
        """Make a key of an object."""
        self.own = own

    def __eq__(self, other: object) -> bool:
        """Whether both are keys of the same object."""
        return isinstance(other, Same) and other.own is self.own

    def __hash__(self) -> int:
        """The hash of the object's identity."""
        return id(self.own)


def _constants(program: Program) -> Iterator[ArrayLike]:
    if isinstance(program, jax_core.ClosedJaxpr):
        yield from map(_plain, program.consts)
        program = program.jaxpr
    for eqn in program.eqns:
        for variable in eqn.invars:
            if isinstance(variable, jax_core.Literal) and np.ndim(variable.val):
                yield _plain(variable.val)
        for each in inner(eqn.params):
            yield from _constants(each)


def _plain(constant: ArrayLike) -> ArrayLike:
    if hasattr(constant, "dtype") and jax.numpy.issubdtype(constant.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(constant)
    return constant
