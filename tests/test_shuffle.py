"""The shuffles: bijections always, and random enough that no test tells them from random."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxexp.training.platform import traced_for
from jaxexp.training.shuffle import one_of, permutation

WORDS = st.integers(0, 2**31 - 1)


def orders(n: int, seed_K: np.ndarray, epoch_K: np.ndarray) -> np.ndarray:
    """K permutations at once, (K, N)."""
    one = jax.vmap(lambda seed, epoch: permutation(n, seed, epoch)(jnp.arange(n)))
    return np.asarray(jax.jit(one)(seed_K, epoch_K))


def p_value(cells: np.ndarray, count: int) -> float:
    """Of the hypothesis that the cells, numbered below `count`, were drawn uniformly."""
    return scipy.stats.chisquare(np.bincount(cells.ravel(), minlength=count)).pvalue


@settings(max_examples=settings.default.max_examples // 5)
@given(st.integers(1, 5000), WORDS, WORDS)
@example(1, 0, 0)
@example(2, 0, 0)
@example(3, 1, 2)
@example(4, 1, 2)
@example(7919, 2**31 - 1, 2**31 - 1)  # a prime
@example(316**2, 5, 6)
@example(316**2 + 1, 5, 6)
@example(106_897, 0, 49)
def test_bijection(n, seed, epoch):
    order_N = np.asarray(jax.jit(lambda s, e: permutation(n, s, e)(jnp.arange(n)))(seed, epoch))
    assert order_N.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order_N), np.arange(n))


def test_seeds_and_epochs_differ():
    words = list(itertools.product(range(8), range(8)))
    order_KxN = orders(50, *np.array(words, np.int32).T)
    assert len({tuple(order_N) for order_N in order_KxN}) == len(words)


def test_an_index_goes_to_the_same_place_alone_and_in_company():
    indices = jnp.arange(30).reshape(5, 6)
    shuffle = permutation(30, 3, 4)
    whole_5x6 = np.asarray(jax.jit(shuffle)(indices))
    np.testing.assert_array_equal(whole_5x6, jax.jit(jax.vmap(jax.vmap(shuffle)))(indices))
    np.testing.assert_array_equal(whole_5x6.ravel(), orders(30, np.array([7, 3]), np.full(2, 4))[1])
    assert shuffle(jnp.int32(17)) == whole_5x6[2, 5]


@pytest.mark.nightly
def test_a_shuffle_of_one_of_several_sizes_is_that_of_this_size():
    sizes = (1, 2, 3, 5, 8, 30, 31, 997, 1000, 1000, 316**2 + 1)
    index = jnp.arange(max(sizes))

    @jax.jit
    @jax.vmap
    def all_of(place, seed):
        grid = one_of(sizes, place)
        return grid.n, permutation(grid, seed, 4)(jnp.minimum(index, grid.n - 1))

    seeds = np.arange(len(sizes))
    for n, seed, own, order in zip(sizes, seeds, *all_of(seeds, seeds), strict=True):
        assert own == n
        np.testing.assert_array_equal(order[:n], permutation(n, seed, 4)(jnp.arange(n)))
    assert one_of(sizes, 3) == one_of((5, 5), jnp.int32(1)) == one_of((5,), 0)


# The seeds are fixed, so that none of the following is a lottery: an even p between 1e-4 and
# 1 - 1e-4 says neither that the counts are too uneven nor that they are too even for chance.


@pytest.mark.parametrize("n", [pytest.param(10, marks=pytest.mark.nightly), 50])
@pytest.mark.parametrize("varying", ["seed", "epoch"])
def test_every_element_comes_to_every_position_equally_often(n, varying):
    K = 20_000
    words = (np.arange(K), np.full(K, 3))
    order_KxN = orders(n, *(words if varying == "seed" else words[::-1]))
    counts_NxN = [np.bincount(order_K, minlength=n) for order_K in order_KxN.T]
    statistic = np.square(np.array(counts_NxN) - K / n).sum() / (K / n) * (n - 1) / n
    # Rows and columns of the table both sum to K.
    assert 1e-4 < scipy.stats.chi2.sf(statistic, (n - 1) ** 2) < 1 - 1e-4


def test_all_permutations_of_four_are_equally_likely():
    order_Kx4 = orders(4, np.arange(24_000), np.zeros(24_000, np.int32))
    names, counts = np.unique(order_Kx4, axis=0, return_counts=True)
    assert len(names) == 24
    assert 1e-4 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-4


def test_neighbours_are_not_related():
    n, K = 10, 20_000
    order_KxN = orders(n, np.arange(K), np.zeros(K, np.int32))
    for i in (0, 4, 8):  # ordered pairs of different elements
        a_K, b_K = order_KxN[:, i], order_KxN[:, i + 1]
        assert 1e-4 < p_value(a_K * (n - 1) + b_K - (b_K > a_K), n * (n - 1)) < 1 - 1e-4


@pytest.mark.parametrize("varying", ["seed", "epoch"])
def test_successive_seeds_and_epochs_are_not_related(varying):
    n, K = 10, 20_000
    words = (np.arange(K), np.full(K, 3))
    order_KxN = orders(n, *(words if varying == "seed" else words[::-1]))
    for i in (0, 5):
        a_K, b_K = order_KxN[0::2, i], order_KxN[1::2, i]
        assert 1e-4 < p_value(a_K * n + b_K, n * n) < 1 - 1e-4


def test_accelerators_shuffle_alike():
    """With rounds that are written out."""
    index = jnp.arange(1000)
    expected = permutation(1000, 3, 5)(index)
    with traced_for("gpu"):
        lowered = jax.jit(lambda index: permutation(1000, 3, 5)(index)).lower(index)
    assert "while" not in lowered.as_text()
    np.testing.assert_array_equal(lowered.compile()(index), expected)
