"""Keys of random numbers, of the generator with which a trial draws the same in a batch as alone.

JAX's other generators are faster on some devices, but with them `jax.vmap` draws the numbers of a
whole batch from the key of its first trial.
"""

import jax
from jax import Array
from jax.typing import ArrayLike

from jaxexp.base.errors import UserError
from jaxexp.training import jaxprs

THREEFRY = "threefry2x32"
DTYPE = "key<fry>"  # of its keys
# These draw without a key of `jax.random`, from whatever generator the device has.
OF_DEVICES = {"rng_bit_generator", "rng_uniform"}


def key(seed: ArrayLike) -> Array:
    """The key of a seed, whatever `jax_default_prng_impl` says."""
    made: Array = jax.random.key(seed, impl=THREEFRY)
    return made


def like() -> jax.ShapeDtypeStruct:
    """The shape and type of a key."""
    made: jax.ShapeDtypeStruct = jax.eval_shape(lambda: key(0))
    return made


def check(program: jaxprs.Program, name: str) -> None:
    """Raise UserError for random numbers that would differ between a batch and a trial alone.

    `name` says what the program was traced from.
    """
    found = others(program)
    if found is not None:
        raise UserError(
            f"{name}: random numbers of {found}, which jax.vmap draws for all trials of a batch "
            "from one key, so that they are others than those of the trial alone; expected keys of "
            f'threefry, as the rng that is given, jax.random.key(seed, impl="{THREEFRY}"), or all '
            f'keys after jax.config.update("jax_default_prng_impl", "{THREEFRY}")'
        )


def others(program: jaxprs.Program) -> str | None:
    """Which other generator a program draws random numbers from; None if there is none."""
    for eqn in jaxprs.equations(program):
        if eqn.primitive.name in OF_DEVICES:
            return f"jax.lax.{eqn.primitive.name}"
        for value in (*eqn.invars, *eqn.outvars):
            dtype = getattr(value.aval, "dtype", None)
            if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
                continue
            if str(dtype) != DTYPE:
                return f"a key of the type {dtype}"
    return None
