"""How exactly products are computed."""

from contextlib import AbstractContextManager

import jax

PRECISION = "float32"


def in_float32() -> AbstractContextManager[None]:
    """While functions are traced: their products and convolutions are computed in full float32.

    TPUs and recent GPUs otherwise round the factors to bfloat16 or TensorFloat-32, and a trial
    would be another one than on the CPU, or than the same in PyTorch. CPUs always compute so.
    """
    context: AbstractContextManager[None] = jax.default_matmul_precision(PRECISION)
    return context
