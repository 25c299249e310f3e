"""Lookups in each example's own row are seen in programs, and others are not taken for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxexp.training import lookups
from jaxexp.training.independence import EXAMPLES, Spread, reaches

B, T, C = 7, 5, 3
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(B, C)).astype(np.float32)
TOKENS = RNG.normal(size=(B, T, C)).astype(np.float32)
LABEL, LABELS = RNG.integers(0, C, B), RNG.integers(0, C, (B, T))
OWN = {
    "labels": (lambda p, y: p[jnp.arange(len(p)), y], TABLE, LABEL),
    "by NumPy": (lambda p, y: p[np.arange(len(p)), y], TABLE, LABEL),
    "small integers": (lambda p, y: p[jnp.arange(B, dtype=jnp.int8), y], TABLE, LABEL),
    "one class": (lambda p, y: p[jnp.arange(len(p)), 1], TABLE, LABEL),
    "a row of a row": (lambda p, y: p[jnp.arange(len(p)), y], TOKENS, LABEL),
    "labels of tokens": (
        lambda p, y: p[jnp.arange(B)[:, None], jnp.arange(T)[None], y], TOKENS, LABELS),
    "two indices": (lambda p, y: p[jnp.arange(len(p)), y, (y + 1) % C], TOKENS, LABEL),
    "in a function": (
        jax.jit(lambda p, y: jax.nn.log_softmax(p)[jnp.arange(len(p)), y]), TABLE, LABEL),
}  # fmt: skip
OTHERS = {
    "reversed": (lambda p, y: p[jnp.arange(len(p))[::-1], y], TABLE, LABEL),
    "the next": (lambda p, y: p[(jnp.arange(len(p)) + 1) % B, y], TABLE, LABEL),
    "one before": (lambda p, y: p[jnp.arange(len(p)) - 1, y], TABLE, LABEL),
    "as many others": (lambda p, y: p[1:][jnp.arange(B - 1), y[1:]], TABLE, LABEL),
    "by label": (lambda p, y: p[y, jnp.arange(T)[None, :1]], TOKENS, LABELS),
    "all of each": (lambda p, y: p[jnp.arange(B)[None], y[:, None]], TABLE, LABEL),
    "listed": (lambda p, y: p[np.array([0, 1, 2, 3, 4, 6, 5]), y], TABLE, LABEL),
    "too small integers": (
        lambda p, y: jnp.tile(p, (40, 1))[jnp.arange(280).astype(jnp.uint8), jnp.tile(y, 40)],
        TABLE, LABEL),
}  # fmt: skip


@pytest.mark.parametrize("name", [*OWN, *OTHERS])
def test_own_rows(name):
    function, table, index = (OWN | OTHERS)[name]
    traced = jax.make_jaxpr(function)(table, index)
    paired = lookups.in_own_rows(traced)
    for compiled in (lambda f: f, jax.jit):
        [made] = compiled(core.jaxpr_as_fun(paired))(table, index)
        np.testing.assert_array_equal(made, function(table, index))
    for anywhere in (False, True):
        [reach] = reaches(
            paired, [EXAMPLES, EXAMPLES], differentiated=True, size=B, anywhere=anywhere
        )
        assert (reach == EXAMPLES) == (name in OWN)
    [before] = reaches(traced, [EXAMPLES, EXAMPLES], differentiated=True)
    assert before.spread is not Spread.NO
