"""How many steps an epoch has, for plain numbers or for arrays inside a program."""

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from jax import Array


@overload
def steps_per_epoch(n: int, batch_size: int) -> int: ...
@overload
def steps_per_epoch(n: "int | Array", batch_size: "Array") -> "Array": ...
@overload
def steps_per_epoch(n: "int | Array", batch_size: "int | Array") -> "int | Array": ...
def steps_per_epoch(n: "int | Array", batch_size: "int | Array") -> "int | Array":
    """The number of batches in n examples, counting a partial last one: ceil(n / batch_size).

    >>> steps_per_epoch(100, 32)
    4
    """
    return (n - 1) // batch_size + 1  # n + batch_size might overflow int32


@overload
def turns_per_epoch(n: int, batch_size: int, microbatch: int | None) -> int: ...
@overload
def turns_per_epoch(
    n: "int | Array", batch_size: "int | Array", microbatch: int | None
) -> "int | Array": ...
def turns_per_epoch(
    n: "int | Array", batch_size: "int | Array", microbatch: int | None
) -> "int | Array":
    """The number of microbatches in an epoch of n examples, or of steps if there are none.

    >>> turns_per_epoch(100, 32, 10)  # three batches of 4 microbatches, and one of 1
    13
    """
    steps = steps_per_epoch(n, batch_size)
    if microbatch is None:
        return steps
    rest = n - (steps - 1) * batch_size
    each = steps_per_epoch(batch_size, microbatch)
    return (steps - 1) * each + steps_per_epoch(rest, microbatch)
