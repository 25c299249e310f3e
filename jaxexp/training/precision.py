"""How exactly products are computed: `Trial.matmul_precision`.

Products are matrix products and convolutions, whatever computes them: the network, its gradients,
an optimizer, a metric. Their sums are always in float32, or in float64 if factors are float64,
which JAX's option `jax_enable_x64` allows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jax.extend import core as jax_core

from jaxexp.training import jaxprs

P = ParamSpec("P")
T = TypeVar("T")
Rounded = TypeVar("Rounded", jax_core.ClosedJaxpr, jax_core.Jaxpr)


class _Rounding(NamedTuple):
    """How factors of products are rounded, and JAX's name for the least precision of hardware."""

    exponent_bits: int
    mantissa_bits: int
    asked: str


FLOAT32 = "float32"
PRODUCTS = ("dot_general", "conv_general_dilated")
ROUNDINGS = {
    "tf32": _Rounding(8, 10, "tensorfloat32"),
    "bfloat16": _Rounding(8, 7, "bfloat16"),
}


def asked(precision: str = FLOAT32) -> AbstractContextManager[None]:
    """A context to trace functions in, which sets the precision JAX asks of hardware for products.

    TPUs and recent GPUs otherwise round the factors to bfloat16 or TensorFloat-32, and a trial
    would differ from the same trial on a CPU, or in PyTorch. CPUs always compute in float32,
    whatever they are asked for: hence `rounded`.
    """
    name = FLOAT32 if precision == FLOAT32 else ROUNDINGS[precision].asked
    context: AbstractContextManager[None] = jax.default_matmul_precision(name)
    return context


def rounds() -> bool:
    """Whether the factors of products are rounded in the function being traced."""
    asked_for: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return asked_for in {each.asked for each in ROUNDINGS.values()}


def rounded(function: Callable[P, T], precision: str) -> Callable[P, T]:
    """The function with both factors of all its products rounded, including gradients within it.

    The rounding is part of the program, so that a precision means the same on every device: what
    hardware would round by itself is rounded already. Gradients of the function that this returns
    are not rounded: apply it to the function that computes them.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([1 + 2**-9])
    >>> print(f"{jnp.dot(x, x):.5f} {rounded(jnp.dot, 'bfloat16')(x, x):.5f}")
    1.00391 1.00000
    """
    if precision == FLOAT32:
        return function

    def with_rounded(*arguments: P.args, **named: P.kwargs) -> T:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments, **named)
        program = jax_core.jaxpr_as_fun(_with_rounding(traced, ROUNDINGS[precision]))
        result: T = jax.tree.unflatten(
            jax.tree.structure(shape), program(*jax.tree.leaves((arguments, named)))
        )
        return result

    return with_rounded


def _with_rounding(program: Rounded, rounding: _Rounding) -> Rounded:
    """The program, and those within it, with an operation that rounds each factor of a product."""
    if isinstance(program, jax_core.ClosedJaxpr):
        closed: Rounded = program.replace(jaxpr=_with_rounding(program.jaxpr, rounding))
        return closed
    eqns = []
    for eqn in program.eqns:
        if eqn.primitive.name in PRODUCTS:
            factors: list[jax_core.Var | jax_core.Literal] = []
            for factor in eqn.invars:
                # Integers are exact, and half precision is no finer.
                if getattr(factor.aval, "dtype", None) in (np.float32, np.float64):
                    eqns.append(_round(eqn, factor, rounding))
                    factors.append(eqns[-1].outvars[0])
                else:
                    factors.append(factor)
            eqns.append(eqn.replace(invars=factors))
        elif jaxprs.inner(eqn.params):
            params = {name: _in_parameter(value, rounding) for name, value in eqn.params.items()}
            eqns.append(eqn.replace(params=params))
        else:
            eqns.append(eqn)
    made: Rounded = program.replace(eqns=eqns)
    return made


def _round(
    product: jax_core.JaxprEqn, factor: jax_core.Var | jax_core.Literal, rounding: _Rounding
) -> jax_core.JaxprEqn:
    """The operation that rounds a factor of a product."""
    made: jax_core.JaxprEqn = product.replace(
        primitive=jax_core.primitives.reduce_precision_p,
        invars=[factor],
        outvars=[jax_core.Var(factor.aval)],
        params={"exponent_bits": rounding.exponent_bits, "mantissa_bits": rounding.mantissa_bits},
    )
    return made


def _in_parameter(value: object, rounding: _Rounding) -> object:
    """A parameter of an operation, with programs in it, such as the body of a loop, rounded."""
    if isinstance(value, tuple | list) and jaxprs.inner({"": value}):
        return type(value)(_in_parameter(each, rounding) for each in value)
    if isinstance(value, jax_core.ClosedJaxpr):
        return _with_rounding(value, rounding)
    if isinstance(value, jax_core.Jaxpr):
        return _with_rounding(value, rounding)
    return value
