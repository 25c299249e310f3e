"""Loops over the first of some layers, held against `jax.lax.scan` over those alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxexp.nn.loops import Layers, first_layers

L, W, B = 5, 4, 3


def layer(shared, x_WxB, params, own):
    """What all may have: something shared, numbers of its own, and something new."""
    h_WxB = params["kernel"] @ x_WxB + params["bias"][:, None]
    made = {"mean": (h_WxB * shared).mean(1), "count": own["count"] + 1}
    return jnp.tanh(h_WxB) * own["scale"] + x_WxB, made


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    params_L = {"kernel": rng.normal(size=(L, W, W)), "bias": rng.normal(size=(L, W))}
    own_L = {"scale": rng.normal(size=L), "count": np.arange(L)}
    made_L = {"mean": np.full((L, W), 7.0), "count": np.zeros(L, int)}
    layers = Layers(rng.normal(size=B), params_L, own_L, made_L)
    return jax.tree.map(jnp.asarray, (rng.normal(size=(W, B)), layers))


def scanned(count, x, layers):
    def step(x, each):
        return layer(layers.shared, x, *each)

    first = jax.tree.map(lambda a_L: a_L[:count], (layers.params_L, layers.own_L))
    x, made = jax.lax.scan(step, x, first)
    return x, jax.tree.map(lambda a_L, new: a_L.at[:count].set(new), layers.made_L, made)


def weighed(function, count):
    """A number that depends on everything the layers return, and on what is made only by value."""

    def of(x, params_L, layers):
        x, made_L = function(count, x, layers._replace(params_L=params_L))
        return jnp.sin(x).sum(), made_L

    return jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))


@pytest.mark.parametrize("count", [0, 1, 3, L])
def test_outputs_and_gradients_are_those_of_a_scan_over_the_first_layers(given, count):
    x, layers = given
    traced = jnp.int32(count)  # an argument below: not known when the function is compiled
    own = jax.jit(lambda n, x, layers: first_layers(layer, n, x, layers))(traced, x, layers)
    jax.tree.map(near, own, scanned(count, x, layers))

    def of_count(n):
        return weighed(lambda count, *rest: first_layers(layer, count, *rest), n)

    found = jax.jit(lambda n: of_count(n)(x, layers.params_L, layers))(traced)
    jax.tree.map(near, found, weighed(scanned, count)(x, layers.params_L, layers))
    for grad_L in jax.tree.leaves(found[1][1]):
        np.testing.assert_array_equal(grad_L[count:], 0)


def test_layers_past_the_count_are_not_read(given):
    x, layers = given
    spoilt = layers._replace(
        params_L=jax.tree.map(lambda a_L: a_L.at[2:].set(jnp.nan), layers.params_L)
    )
    found = weighed(lambda n, *rest: first_layers(layer, jnp.int32(n), *rest), 2)
    clean, own = (found(x, each.params_L, each) for each in (layers, spoilt))
    jax.tree.map(np.testing.assert_array_equal, clean, own)


def near(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
