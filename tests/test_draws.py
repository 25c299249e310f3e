"""Numbers drawn together are those drawn one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend import core as jax_core
from nights import at_night

import jaxexp as jx
from jaxexp.execution.compiling import FAST_TO_COMPILE, compile_with
from jaxexp.nn.mlp import MLP
from jaxexp.training import draws, jaxprs

SEEDS = jnp.arange(3)


class Mixed(nn.Module):
    """Layers of several kinds, each with another initializer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), kernel_init=nn.initializers.truncated_normal())(x)
        x = nn.BatchNorm(use_running_average=False)(nn.relu(x))
        x = nn.Dense(33, kernel_init=nn.initializers.orthogonal())(x.reshape(len(x), -1))
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(5)(x))


def of_module(module, *inputs):
    def init(seed):
        key = jax.random.key(seed)
        return module.init({"params": key, "dropout": jax.random.fold_in(key, 1)}, *inputs)

    return init


def of_mlp(**values):
    return of_module(MLP(jx.MLPTrial(**values), 36), jnp.zeros((4, 20)), jnp.ones(4, bool))


def walk(seed):
    """Each turn of a loop draws from a key that the one before it has left."""

    def turn(key, _):
        key, own = jax.random.split(key)
        return key, jax.random.normal(own, (3,))

    return jax.lax.scan(turn, jax.random.key(seed), length=4)[1]


def of_many_kinds(seed):
    key = jax.random.key(seed)
    twice = jax.jit(lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (2, 2)))
    condition = jax.lax.cond(seed > 1, lambda: jax.random.bits(key), lambda: jnp.uint32(0))
    return (
        twice(key, 0), twice(key, 1), key, condition, seed,
        jax.random.permutation(key, 10), jax.random.randint(key, (3,), 0, 9),
        jax.random.categorical(key, jnp.zeros(4)), jax.random.bits(key, (3,), jnp.uint8),
    )  # fmt: skip


def of_another_generator(seed):
    keys = jax.random.split(jax.random.key(seed, impl="rbg"))
    return [jax.random.uniform(key, (4,)) for key in keys]


def loop_of_another_generator(seed):
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 3)
    return jax.lax.scan(lambda turn, key: (turn + 1, jax.random.normal(key, (2,))), 0, keys)[1]


def loop_without_inputs(seed):
    key = jax.random.key(seed)

    def turn(i, _):
        return i + 1, (jnp.ones(2), jax.random.normal(key, (2,)))

    return jax.lax.scan(turn, 0, length=3)[1]


def shuffled(seed):
    return jax.random.permutation(jax.random.key(seed), 8)


FUNCTIONS = {
    "a Flax module": of_module(Mixed(), jnp.zeros((2, 4, 4, 3))),
    "layers stacked": of_mlp(depth=6, width=16),
    "deep, with batch norm": of_mlp(depth=30, width=8, batch_norm=True),
    "layers of other sizes": of_mlp(depth=3, width=(8, 16, 4)),
    "a walk": walk,
    "many kinds": of_many_kinds,
    "another generator": of_another_generator,
    "a loop of another generator": loop_of_another_generator,
    "a loop without inputs": loop_without_inputs,
}


def plain(tree):
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(tree)
    ]


STACKED = "layers stacked", "deep, with batch norm"  # drawn by the same as other layers


@pytest.mark.parametrize(
    ("name", "partitionable"),
    [
        *((name, True) for name in FUNCTIONS if name not in STACKED),
        ("layers stacked", True),
        ("many kinds", False),
        pytest.param("deep, with batch norm", True, marks=pytest.mark.nightly),
        *(
            pytest.param(name, False, marks=pytest.mark.nightly)
            for name in FUNCTIONS
            if name not in (*STACKED, "many kinds")
        ),
    ],
)
def test_the_numbers_are_the_same(name, partitionable):
    function = FUNCTIONS[name]
    with jax.threefry_partitionable(partitionable):
        expected, own = (
            jax.jit(jax.vmap(each))(SEEDS) for each in (function, draws.together(function))
        )
    assert jax.tree.structure(expected) == jax.tree.structure(own)
    for a, b in zip(plain(expected), plain(own), strict=True):
        assert a.dtype == b.dtype
        if a.dtype == np.float32:  # scaled to a range, which is rounded once or twice
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", at_night(["a Flax module", *STACKED], *STACKED))
def test_the_bits_are_the_same_as_users_compile_it(name, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    results = [
        compile_with(FAST_TO_COMPILE, jax.jit(jax.vmap(each)).lower(SEEDS))(SEEDS)
        for each in (FUNCTIONS[name], draws.together(FUNCTIONS[name]))
    ]
    for a, b in zip(*map(plain, results), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_numbers_are_the_same_in_double_precision():
    with jax.enable_x64(True):
        for function in (of_module(nn.Dense(3), jnp.zeros((2, 4), jnp.float32)), shuffled):
            both = (function, draws.together(function))
            expected, own = (plain(jax.jit(each)(0)) for each in both)
            for a, b in zip(expected, own, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a, b, rtol=1e-6)


def drawn(function) -> list[tuple[int, ...]]:
    """The shapes of all that one seed's program draws."""

    def within(program) -> list[tuple[int, ...]]:
        inner = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
        return [
            shape
            for eqn in inner.eqns
            for shape in (
                [eqn.outvars[0].aval.shape]
                if eqn.primitive.name == draws.BITS
                else [one for each in jaxprs.inner(eqn.params) for one in within(each)]
            )
        ]

    return within(jax.make_jaxpr(function)(0))


def test_a_model_is_drawn_in_one_piece():
    init = FUNCTIONS["layers stacked"]
    assert len(drawn(init)) == 6  # more, for what a loop draws in each of its turns
    assert len(drawn(draws.together(init))) == 1


def test_little_is_drawn_in_vain():
    def init(seed):
        key = jax.random.key(seed)
        kernel = jax.random.normal(jax.random.fold_in(key, 0), (100_000,))
        many = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(jnp.arange(5000))
        return kernel, many, jax.random.normal(jax.random.fold_in(key, 1), (60_000,))

    shapes = drawn(draws.together(init))
    assert sorted(map(np.prod, shapes)) == [5000, 200_000]
