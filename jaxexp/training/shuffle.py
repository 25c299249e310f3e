"""Shuffles by arithmetic: any element of a random permutation, without making the others."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

ROUNDS = 8


def permutation(n: int, *words: Array | int) -> Callable[[Array], Array]:
    """A pseudo-random permutation of 0..n-1 as a function of indices.

    `words` (integers: a seed and an epoch) choose it. The function maps int32 indices of any shape,
    each in a few integer operations where it is needed: nothing is sorted or stored, every device
    and batching gives the same order, and each trial of a batch may have a shuffle of its own at
    hardly any cost.

    A Feistel network with alternating modular rounds on the smallest grid a × b of at least n
    cells (its halves need not be equal: Black and Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002), and cycle walking for the few cells past n. Mitchell et al.,
    "Bandwidth-Optimal Random Shuffling for GPUs" (2021), show that such bijections shuffle well.
    """
    rows = math.isqrt(n - 1) + 1  # a grid of rows × columns: under 2**16 each, as n < 2**31
    columns = -(-n // rows)
    keys = jnp.arange(1, ROUNDS + 1, dtype=jnp.uint32)
    for word in words:
        keys = mix(keys ^ jnp.asarray(word, jnp.uint32))

    def once(cell: Array) -> Array:
        row, column = cell // columns, cell % columns
        for i in range(0, ROUNDS, 2):
            row = _add(row, mix(column ^ keys[i]), rows)
            column = _add(column, mix(row ^ keys[i + 1]), columns)
        return row * columns + column

    def permute(index: Array) -> Array:
        # A bijection of all cells, followed until it lands below n, is one of 0..n-1.
        cell = jax.lax.while_loop(
            lambda cell: jnp.any(cell >= n),
            lambda cell: jnp.where(cell >= n, once(cell), cell),
            once(index.astype(jnp.uint32)),
        )
        return cell.astype(jnp.int32)

    return permute


def mix(value: Array) -> Array:
    """A bijection of uint32 in which every bit moves every other (Wellons' hash prospector)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x21F0AAAD)
    value = (value ^ (value >> 15)) * jnp.uint32(0x735A2D97)
    return value ^ (value >> 15)


def _add(half: Array, word: Array, modulus: int) -> Array:
    """(half + a number below the modulus, from the low 16 bits of a random word) mod modulus."""
    total = half + ((word & 0xFFFF) * jnp.uint32(modulus) >> 16)
    return jnp.where(total >= modulus, total - modulus, total)
