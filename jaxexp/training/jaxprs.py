"""What a traced function computes, as a digest: equal for functions that give the same numbers."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
from jax.extend import core as jax_core
from jax.typing import ArrayLike

Program: TypeAlias = jax_core.ClosedJaxpr | jax_core.Jaxpr

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest(closed: jax_core.ClosedJaxpr, *, processes: bool = False) -> str:
    """Of a `ClosedJaxpr`: its text, and the values of the arrays that it closes over.

    Functions that a program calls back on the host are told apart by their addresses, and so only
    within this process; with `processes`, in which the digest is to be the same, they are not.
    """
    written = str(closed)
    if processes or "callback" not in written:
        written = _ADDRESS.sub("", written)
    sha256 = hashlib.sha256(written.encode())
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
    import jax

    if hasattr(constant, "dtype") and jax.numpy.issubdtype(constant.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(constant)
    return constant
