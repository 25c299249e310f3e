"""Shuffles by arithmetic: any element of a random permutation, without making the others."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxexp.training.platform import platform

ROUNDS = 8


class Grid(NamedTuple):
    """The cells, in rows and columns, on which 0..n-1 are shuffled."""

    n: int | Array
    rows: int | Array
    columns: int | Array
    past: int  # cells left past n; in a program that shuffles several n, the most of any


def permutation(n: int | Grid, *words: Array | int) -> Callable[[Array], Array]:
    """A pseudo-random permutation of 0..n-1 as a function of indices.

    `words` (integers: a seed and an epoch) choose it. The function maps int32 indices of any shape,
    each in a few integer operations where it is needed: nothing is sorted or stored, every device
    and batching gives the same order, and each trial of a batch may have a shuffle of its own at
    hardly any cost.

    A Feistel network with alternating modular rounds on a grid a × b of at least n cells (its
    halves need not be equal: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    If it leads to one of the few cells past n, it is applied again until it leads below n (cycle
    walking); that is done only for those cells, once for all indices, so that every index takes the
    same operations. Mitchell et al., "Bandwidth-Optimal Random Shuffling for GPUs" (2021), show
    that such bijections shuffle well.

    Orders of few indices are not all equally likely: for 5 indices, their probabilities are off by
    13 % (root mean square), for 7 by 60 %, and those of an index at a place by up to 4 %.
    """
    own = n if isinstance(n, Grid) else grid(n)
    end, (rows, columns, past) = jnp.uint32(own.n), own[1:]
    keys = jnp.arange(1, ROUNDS + 1, dtype=jnp.uint32)
    for word in words:
        keys = mix(keys ^ jnp.asarray(word, jnp.uint32))

    def once(cell: Array) -> Array:
        def two_rounds(i: Array, halves: tuple[Array, Array]) -> tuple[Array, Array]:
            row, column = halves
            row = _add(row, mix(column ^ keys[2 * i]), rows)
            return row, _add(column, mix(row ^ keys[2 * i + 1]), columns)

        # XLA fuses unrolled rounds into the gathering of examples, element by element. That takes
        # a CPU four times as long, but saves an accelerator from starting kernels for them.
        halves = cell // columns, cell % columns
        unroll = platform() != "cpu"
        row, column = jax.lax.fori_loop(0, ROUNDS // 2, two_rounds, halves, unroll=unroll)
        mixed: Array = row * columns + column
        return mixed

    # No index leads to cells past this grid, which a program has if another n leaves more cells.
    end_P = past_P = end + jnp.arange(past, dtype=jnp.uint32)
    for _ in range(past):  # a walk passes each of them at most once
        end_P = jnp.where(end_P >= end, once(end_P), end_P)

    def permute(index: Array) -> Array:
        cell = once(index.astype(jnp.uint32))
        for i in range(past):
            cell = jnp.where(cell == past_P[i], end_P[i], cell)
        return cell.astype(jnp.int32)

    return permute


def one_of(sizes: Sequence[int], place: int | Array) -> Grid:
    """The grid for one of several n: the one at this place, which may be traced."""
    if len(set(sizes)) == 1 or isinstance(place, int):
        return grid(sizes[place] if isinstance(place, int) else sizes[0])
    every = [grid(n) for n in sizes]
    n, rows, columns = (jnp.array(own)[place] for own in list(zip(*every, strict=True))[:3])
    unsigned = rows.astype(jnp.uint32), columns.astype(jnp.uint32)
    return Grid(n, *unsigned, max(own.past for own in every))


@functools.cache
def grid(n: int) -> Grid:
    """The grid with the fewest cells past n: one on average.

    Both sides are below 2**16, as n < 2**31. Neither is shorter than a quarter of the other, or
    than eight if a square grid would have eight: shorter halves would need more rounds.
    """
    root = math.isqrt(n - 1) + 1
    shapes = ((rows, -(-n // rows)) for rows in range(root, max(root // 2, min(root, 8)) - 1, -1))
    rows, columns = min((s for s in shapes if s[1] < 2**16), key=lambda s: s[0] * s[1])
    return Grid(n, rows, columns, rows * columns - n)


def mix(value: Array) -> Array:
    """A bijection of uint32 in which every bit moves every other (Wellons' hash prospector)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x21F0AAAD)
    value = (value ^ (value >> 15)) * jnp.uint32(0x735A2D97)
    return value ^ (value >> 15)


def _add(half: Array, word: Array, modulus: int | Array) -> Array:
    """(half + a number below the modulus, from the low 16 bits of a random word) mod modulus."""
    total = half + ((word & 0xFFFF) * jnp.uint32(modulus) >> 16)
    return jnp.where(total >= modulus, total - modulus, total)
