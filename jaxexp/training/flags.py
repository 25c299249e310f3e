"""JAX's own options: those that numbers depend on, and whether all threads have the same.

Compiled programs and checkpoints are valid for certain values of the former.
"""

import threading
from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

import jax

from jaxexp.base.errors import UserError

Value: TypeAlias = bool | int | str | Enum | None

NUMBERS = (
    "jax_allow_f16_reductions",
    "jax_default_matmul_precision",  # of metrics; trials have a precision of their own
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_explicit_x64_dtypes",
    "jax_high_dynamic_range_gumbel",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
)
# The values that jaxexp's own programs need, and why.
NEEDED: dict[str, tuple[tuple[Value, ...], str]] = {
    "jax_threefry_partitionable": ((True,), "numbers drawn for padded sizes would be others"),
    "jax_numpy_dtype_promotion": (("standard",), "programs mix types as NumPy does"),
    "jax_numpy_rank_promotion": (("allow", "warn"), "programs broadcast as NumPy does"),
    "jax_debug_key_reuse": ((False,), "programs fold numbers into the key of a trial"),
    **dict.fromkeys(
        ("jax_transfer_guard", "jax_transfer_guard_host_to_device",
         "jax_transfer_guard_device_to_host"),
        ((None, "allow", "log", "log_explicit"), "data go to devices, and metrics come back"),
    ),
}  # fmt: skip
CHECKS = ("jax_debug_infs", "jax_debug_nans")  # whether JAX checks what is computed


def of_numbers() -> dict[str, str]:
    """The value, as text, of each option that numbers depend on and that this JAX has."""
    return {name: str(value) for name, value in values().items() if name in NUMBERS}


def values() -> dict[str, Value]:
    """The value of each option in this thread."""
    found = {n: getattr(jax.config, n) for n in (*NUMBERS, *CHECKS) if hasattr(jax.config, n)}
    return {name: _plain(own) for name, own in found.items()}


def _plain(own: Value) -> Value:
    """A member of an enumeration as text, if JAX accepts that, too; any other value as it is."""
    return own.value if isinstance(own, Enum) and isinstance(own.value, str) else own


def take_over(given: Mapping[str, Value]) -> None:
    """Set the options of this process to those of another."""
    own = values()
    for name, value in given.items():
        if own[name] != value:
            jax.config.update(name, value)


def check() -> None:
    """Raise UserError for an option with which programs cannot be trained.

    Also if options in this thread differ from those in the threads in which trials train, as they
    do within contexts of JAX such as `with jax.enable_x64():`.
    """
    for name, (allowed, why) in NEEDED.items():
        value = _plain(getattr(jax.config, name, allowed[0]))
        if value not in allowed:
            expected = " or ".join(str(own) for own in allowed if own is not None)
            raise UserError(f"{name} is {value}: expected {expected}, as {why}")
    here, there = values(), dict[str, Value]()
    thread = threading.Thread(target=lambda: there.update(values()))
    thread.start()
    thread.join()
    for name, value in here.items():
        if value != there[name]:
            raise UserError(
                f"{name} is {value} in this thread alone, as in a context of JAX (`with`), and "
                f"{there[name]} in those in which trials train; expected the same in all: "
                f"{_instead(name, value)}"
            )


def _instead(name: str, value: Value) -> str:
    if name == "jax_default_matmul_precision":
        return "trials have a hyperparameter of their own, matmul_precision"
    return f"jax.config.update({name!r}, {value!r}) sets it everywhere"
