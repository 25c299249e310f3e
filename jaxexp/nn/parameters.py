"""Parameters of Flax modules."""

from collections.abc import Callable

from flax import errors
from flax import linen as nn
from jax import Array


def parameter(
    module: nn.Module, name: str, draw: Callable[..., Array], shape: tuple[int, ...],
    *given: object,
) -> Array:  # fmt: skip
    """`module.param(name, draw, shape, *given)`, but traces `draw` only for new parameters.

    Flax traces it whenever the module is applied, to compare shapes: random numbers that are never
    drawn took a fifth of the time needed to trace a network.

    Raises flax.errors.ScopeParamShapeError if the parameter has another shape.
    """
    if not module.has_variable("params", name):
        drawn: Array = module.param(name, draw, shape, *given)
        return drawn
    found: Array = module.get_variable("params", name)
    if found.shape != shape:
        raise errors.ScopeParamShapeError(name, "/".join(module.path), found.shape, shape)
    return found
