"""Random numbers are those of the trial alone, and options of JAX are the same in every thread."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from nights import at_night

import jaxexp as jx
from jaxexp.training import flags, keys
from jaxexp.training.tracing import trace

RNG = np.random.default_rng(0)
X_Nx3 = RNG.normal(size=(24, 3)).astype(np.float32)
Y_N = X_Nx3.sum(1)
DATA = jx.arrays(X_Nx3, Y_N, validation=8)
TRIAL = jx.Trial(epochs=1, batch_size=8)
SEEDS = jx.Sweep(TRIAL, {"seed": [0, 1, 2]})


@contextlib.contextmanager
def option(name, value):
    """Of JAX, in all threads."""
    before = flags.values()[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def drawn(trial, rng, x):
    return {"w": jax.random.normal(rng, x.shape[-1:])}


def line(**parts):
    return jx.supervised(**{
        "init": drawn,
        "apply": lambda trial, params, x: x @ params["w"],
        "loss": optax.squared_error,
    } | parts)  # fmt: skip


def run(sweep, task=None, data=DATA, **options):
    return jx.run(sweep, task, data, progress=False, devices=1, **options)


# Keys


def noisy(key):
    """With noise in training."""

    def apply(trial, params, x, train, rng):
        noise = jax.random.normal(key(trial, rng), x.shape[1:]) if train else 0
        return (x + noise) @ params["w"]

    return line(apply=apply)


def of_bits(trial, params, x):
    _, bits = jax.lax.rng_bit_generator(jnp.zeros(4, jnp.uint32), x.shape[:1])
    return x @ params["w"] + bits % 2


class Seeded(nnx.Module):
    """With a key of its own."""

    def __init__(self):
        self.linear = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(x)[:, 0]


@pytest.mark.nightly
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_any_trial_of_a_batch_is_the_trial_alone_whatever_the_default_generator(impl):
    """Of the built-in task, and of keys that a user's task is given."""
    labels = jx.arrays(X_Nx3, (Y_N > 0).astype(int), validation=8)
    mlp = jx.Sweep(jx.MLPTrial(epochs=1, depth=1, batch_size=8, dropout=0.2), {"seed": [0, 1, 2]})
    for sweep, task, data in ((mlp, None, labels), (SEEDS, noisy(lambda trial, rng: rng), DATA)):
        expected = run(sweep, task, data)["step_loss"].values
        with option("jax_default_prng_impl", impl):
            np.testing.assert_array_equal(run(sweep, task, data)["step_loss"].values, expected)
            alone = run(jx.Sweep(sweep.trials()[2]), task, data)["step_loss"].values
        np.testing.assert_allclose(alone, expected[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: noisy(lambda trial, _: jax.random.key(trial.seed, impl="rbg")),
         r'apply: random numbers of a key of the type key<rbg>, .*\(seed, impl="threefry2x32"\)'),
        (lambda: noisy(lambda trial, _: jax.random.key(trial.seed, impl="unsafe_rbg")),
         "apply: random numbers of a key of the type key<urbg>"),
        (lambda: line(init=lambda trial, _, x: drawn(trial, jax.random.key(0, impl="rbg"), x)),
         "init: random numbers of a key of the type key<rbg>"),
        (lambda: line(apply=of_bits), "apply: random numbers of jax.lax.rng_bit_generator"),
    ],
)  # fmt: skip
def test_other_generators_are_refused(task, message):
    with pytest.raises(jx.UserError, match=message):
        jx.plan(SEEDS, task(), DATA)


@pytest.mark.parametrize(
    ("task", "where"),
    [
        (lambda: noisy(lambda trial, _: jax.random.key(trial.seed)), "apply"),
        (lambda: jx.supervised(module=lambda t, rngs: Seeded(), loss=optax.squared_error), "init"),
        (lambda: line(optimizer=lambda trial: optax.noisy_sgd(0.1, key=1)), "optimizer"),
    ],
)
def test_keys_of_another_default_are_refused(task, where):
    jx.plan(SEEDS, task(), DATA)
    with (
        option("jax_default_prng_impl", "rbg"),
        pytest.raises(jx.UserError, match=rf'{where}: .* jax.config.update\("jax_default_prng_im'),
    ):
        jx.plan(SEEDS, task(), DATA)


def test_a_task_that_says_itself_what_it_costs_is_refused_when_it_is_compiled():
    class Own(jx.Task):
        def init(self, trial, rng, data):
            key = jax.random.key(trial.seed, impl="rbg")
            return jx.Variables(drawn(trial, key, data["train"].x))

        def apply(self, trial, variables, batch, *, rng, mask, train):
            return jx.Outputs((batch.x @ variables.params["w"] - batch.y) ** 2)

    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), DATA.arrays())
    found = trace(line().bind(DATA), TRIAL, arrays)
    Own.inspect = lambda self, trial, arrays: found
    with pytest.raises(jx.UserError, match="Own: random numbers of a key of the type key<rbg>"):
        run(SEEDS, Own())


def test_random_numbers_are_found_wherever_they_are():
    key = jax.random.key(0, impl="rbg")

    @jax.custom_jvp
    def scaled(x):
        return x * jax.random.uniform(key)

    scaled.defjvp(lambda x, dx: (scaled(*x), dx[0]))
    for function in (
        lambda x: jax.lax.fori_loop(0, 2, lambda i, x: scaled(x), x),
        lambda x: jax.lax.cond(x > 0, jnp.sin, scaled, x),
        jax.jit(scaled),
        jax.checkpoint(scaled),
        lambda x: jax.lax.map(scaled, x[None])[0],
    ):
        with pytest.raises(jx.UserError, match=r"^it: random numbers of a key of the type key<r"):
            keys.check(jax.make_jaxpr(function)(1.0), "it")
    keys.check(jax.make_jaxpr(lambda key: jax.random.normal(key))(keys.key(0)), "it")


# Options of JAX


OPTIONS = {"jax_random_seed_offset": 7, "jax_enable_x64": True}


@pytest.mark.parametrize("name", at_night(OPTIONS, "jax_random_seed_offset"))
def test_with_another_option_nothing_old_is_used(name, tmp_path):
    def init(trial, rng, x):
        return {"w": jax.random.normal(jax.random.key(trial.seed), (3,), jnp.result_type(float))}

    def go(**options):
        return run(SEEDS, line(init=init), **options)["step_loss"].values

    before = go(checkpoint_dir=tmp_path)
    with option(name, OPTIONS[name]):
        assert not np.array_equal(go(), before)
        with pytest.raises(jx.UserError, match=rf"checkpoints of another run: .*{name} was"):
            go(checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(go(checkpoint_dir=tmp_path), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_threefry_partitionable", False), ("jax_numpy_dtype_promotion", "strict"),
     ("jax_numpy_rank_promotion", "raise"), ("jax_debug_key_reuse", True),
     ("jax_transfer_guard", "disallow"), ("jax_transfer_guard_device_to_host", "disallow")],
)  # fmt: skip
def test_options_with_which_programs_cannot_be_trained_are_refused(name, value):
    planned = jx.plan(SEEDS, line(), DATA, devices=1)
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        for call in (
            lambda: jx.plan(SEEDS, line(), DATA),
            lambda: jx.run(planned, progress=False),
        ):
            with pytest.raises(jx.UserError, match=f"^{name} is {value}: expected "):
                call()
    finally:
        jax.config.update(name, before)


CONTEXTS = {
    "jax_default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    "jax_debug_nans": lambda: jax.debug_nans(True),
    "jax_default_matmul_precision": lambda: jax.default_matmul_precision("bfloat16"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_option_of_one_thread_is_refused(name):
    planned = jx.plan(SEEDS, line(), DATA, devices=1)
    instead = "matmul_precision$" if "matmul" in name else r"jax.config.update\("
    for call in (
        lambda: jx.plan(SEEDS, line(), DATA),
        lambda: run(SEEDS, line()),
        lambda: jx.run(planned, progress=False),
    ):
        with CONTEXTS[name](), pytest.raises(jx.UserError, match=f"^{name} is .*{instead}"):
            call()


def test_options_are_taken_over_from_another_process():
    given = flags.values() | {"jax_random_seed_offset": 3}
    with option("jax_random_seed_offset", 0):
        flags.take_over(given)
        assert flags.values() == given
        there = []
        thread = threading.Thread(target=lambda: there.append(flags.values()))
        thread.start()
        thread.join()
        assert there == [given]
