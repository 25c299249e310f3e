"""How exactly products are computed: the factors that are rounded, and that nothing else is."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from nights import at_night

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.nn.conv import conv, lax_conv
from jaxexp.training import jaxprs
from jaxexp.training.precision import PRODUCTS, asked, rounded
from jaxexp.training.task import Outputs, Task, Variables

ROUNDED = ("tf32", "bfloat16")
draws = np.random.default_rng(3)


def round_by_hand(x: np.ndarray, precision: str) -> np.ndarray:
    """To the nearest, ties to even, as float64."""
    if precision == "float32":
        return np.float64(x)
    if precision == "bfloat16":
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    bits = np.asarray(x, np.float32).view(np.uint32)
    dropped = 13  # of the 23 bits of the mantissa
    even = (bits >> dropped) & 1
    kept = (bits + (1 << (dropped - 1)) - 1 + even) >> dropped << dropped
    return kept.view(np.float32).astype(np.float64)


def assert_factors_rounded(jaxpr) -> int:
    """That each product's factors have just been rounded; how many products there are."""
    made_by = {v: eqn.primitive.name for eqn in jaxpr.eqns for v in eqn.outvars}
    products = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in PRODUCTS:
            assert {made_by[v] for v in eqn.invars} == {"reduce_precision"}
            products += 1
        for each in jaxprs.inner(eqn.params):
            products += assert_factors_rounded(getattr(each, "jaxpr", each))
    return products


@pytest.mark.parametrize("precision", ROUNDED)
def test_factors_are_rounded_to_the_nearest(precision):
    x, y = (draws.normal(size=shape).astype(np.float32) for shape in ((5, 40), (40, 3)))
    made = rounded(jnp.matmul, precision)(x, y)
    by_hand = round_by_hand(x, precision) @ round_by_hand(y, precision)
    np.testing.assert_allclose(made, by_hand, rtol=1e-5, atol=1e-6)
    assert np.abs(made - x @ y).max() > 1e-4
    ties = np.float32([[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-8]])
    made = rounded(lambda x: x.T @ jnp.ones((1, 1)), precision)(ties)[:, 0]
    np.testing.assert_array_equal(made, round_by_hand(ties, precision)[0])


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ROUNDED)
def test_products_are_found_wherever_they_are(precision):
    """In loops, branches, functions with gradients of their own, and their gradients."""

    @jax.custom_jvp
    def square(w):
        return w @ w

    square.defjvp(lambda w, dw: (w[0] @ w[0], dw[0] @ w[0] + w[0] @ dw[0]))

    def loss(w_FxF, x_BxF):
        h, total = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w_FxF), h.sum()), x_BxF, length=3)
        h = jax.lax.cond(total[0] > 0, lambda h: h @ w_FxF, lambda h: h @ w_FxF.T, h)
        h = jax.checkpoint(lambda h: jnp.sin(h @ w_FxF))(h)
        h = jax.lax.fori_loop(0, 2, lambda _, h: h @ w_FxF, h)
        h = jax.jit(lambda h: h @ square(w_FxF))(h)
        image = (h.reshape(1, *h.shape, 1), w_FxF[:2, :2, None, None])
        return jnp.square(lax_conv(*image, 1)).sum()

    given = (draws.normal(size=(4, 4)) / 2, draws.normal(size=(6, 4)))
    given = tuple(np.float32(each) for each in given)
    for function in (loss, jax.value_and_grad(loss)):
        own = jax.make_jaxpr(rounded(function, precision))(*given)
        assert assert_factors_rounded(own.jaxpr) >= 7
        jax.jit(rounded(function, precision))(*given)
    alone = [rounded(jax.grad(loss), precision)(given[0], x[None]) for x in given[1]]
    both = jax.vmap(rounded(jax.grad(loss), precision), (None, 0))(given[0], given[1][:, None])
    np.testing.assert_allclose(both, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ROUNDED)
def test_factors_in_float64_are_rounded_alike(precision):
    x = np.array([[1 + 2**-9 + 2**-30], [-3.1], [1e-20]])
    with jax.enable_x64(True):
        made = rounded(jnp.matmul, precision)(x, np.ones((1, 1)))
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, round_by_hand(x, precision))


def test_what_is_no_product_of_floats_is_left_alone():
    counts = jnp.arange(600)
    assert rounded(jnp.dot, "bfloat16")(counts, counts) == int(counts @ counts)
    x = jnp.float32(1 + 2**-9)
    assert rounded(lambda x: (x * x).sum(), "bfloat16")(x) == x * x
    assert rounded(jnp.dot, "float32") is jnp.dot


@pytest.mark.parametrize("precision", at_night(ROUNDED, "tf32"))
def test_convolutions_round_the_images_and_the_kernels(precision):
    """Whatever the route: those of Winograd would round what they make of them."""
    x, kernel = draws.normal(size=(2, 8, 8, 3)), draws.normal(size=(3, 3, 3, 4))
    x, kernel = np.float32(x), np.float32(kernel)
    hand = [np.float32(round_by_hand(each, precision)) for each in (x, kernel)]

    def gradients(route):
        def loss(x, kernel):
            return (conv(x, kernel, 1, route) * np.cos(np.arange(4))).sum()

        with asked(precision):
            return rounded(jax.grad(loss, (0, 1)), precision)(x, kernel)

    with asked(precision):
        made = rounded(lambda *given: conv(*given, 1, "matmul"), precision)(x, kernel)
    np.testing.assert_allclose(made, lax_conv(*hand, 1), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients("matmul"), gradients("lax"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


class Line(Task):
    """A linear map, (F,) to (), with half the square of the output less the target as its loss."""

    def init(self, trial, rng, data):
        return Variables({"w": jnp.asarray([0.3, -0.7, 1.1])})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        made_B = batch.x @ variables.params["w"]
        return Outputs(jnp.square(made_B - batch.y) / 2, prediction=made_B, target=batch.y)

    def optimizer(self, trial, steps):
        return optax.sgd(trial.learning_rate)

    def predict(self, trial, variables, x):
        return x @ variables.params["w"]


@pytest.mark.parametrize("precision", ["float32", *ROUNDED])
def test_a_step_rounds_the_factors_of_its_gradient_too(precision):
    x, y = draws.normal(size=(8, 3)).astype(np.float32), draws.normal(size=8).astype(np.float32)
    trial = jx.Trial(epochs=1, batch_size=8, learning_rate=0.1, matmul_precision=precision)
    data = jx.Data(jx.Examples(x, y))
    results = jx.run(jx.Sweep(trial), Line(), data, progress=False, keep_params=True)

    w = np.array([0.3, -0.7, 1.1])
    error = round_by_hand(x, precision) @ round_by_hand(w, precision) - y
    gradient = round_by_hand(x, precision).T @ round_by_hand(error / 8, precision)
    w -= 0.1 * gradient
    own = results.trial()
    np.testing.assert_allclose(own.variables.params["w"], w, rtol=2e-6)
    made, _ = jx.results.results.apply(Line(), own.trial, own.variables, x)
    by_hand = round_by_hand(x, precision) @ round_by_hand(w, precision)
    np.testing.assert_allclose(made, by_hand, rtol=1e-5, atol=1e-6)


def test_a_precision_is_a_program_and_each_trial_as_alone(problem):
    base = jx.MLPTrial(epochs=2, depth=1, width=8, batch_size=64)
    axes = {"matmul_precision": ["float32", *ROUNDED], "learning_rate": [0.01, 0.003]}
    sweep = jx.Sweep(base, axes)
    assert len(jx.plan(sweep, *problem, devices=1).plan.programs) == 3
    results = jx.run(sweep, *problem, progress=False)
    assert results.dataset.attrs["precision"] == "bfloat16, float32, tf32"
    coarse = base.replace(matmul_precision="bfloat16", learning_rate=0.003)
    alone = jx.run(jx.Sweep(coarse), *problem, progress=False)
    assert alone.dataset.attrs["precision"] == "bfloat16"
    own = results.dataset.sel(matmul_precision="bfloat16", learning_rate=0.003)
    np.testing.assert_allclose(own["loss"], alone.dataset["loss"], rtol=1e-5, atol=1e-6)
    first = results.dataset["step_loss"].isel(step=0).transpose("matmul_precision", ...)
    full, tf32, bfloat16 = np.abs(first.values - first.values[0]).max(axis=-1)
    assert full < tf32 < bfloat16 < 0.01  # they begin alike, and the coarser the further apart


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("precision", "name"),
    [("float32", "float32"), ("tf32", "tensorfloat32")],
)
def test_hardware_is_asked_for_no_more_than_the_trial(precision, name, problem):
    """TPUs and recent GPUs would round what is to be float32; CPUs do as they are told."""
    asked_for = []

    class Watched(type(problem.task)):
        def apply(self, *arguments, **options):
            asked_for.append(jax.config.jax_default_matmul_precision)
            return super().apply(*arguments, **options)

    trial = jx.MLPTrial(epochs=1, depth=1, width=4, batch_size=64, matmul_precision=precision)
    jx.run(jx.Sweep(trial), Watched(), problem.data, progress=False)
    assert asked_for[-1] == name


def test_ids_of_trials_in_float32_are_those_from_before_there_was_a_choice():
    assert jx.Trial().id == "ec0928813d73017d"
    assert len({jx.Trial(matmul_precision=each).id for each in ("float32", *ROUNDED)}) == 3

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Trial(jx.Trial):
        matmul_precision: str = "bfloat16"

    assert Trial().id != Trial(matmul_precision="float32").id


def test_other_precisions_are_refused():
    with pytest.raises(UserError, match=r"matmul_precision='fp8'.*float32.*tf32.*bfloat16"):
        jx.Trial(matmul_precision="fp8").check()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Trial(jx.Trial):
        matmul_precision: str = jx.static("fp8", choices=("fp8",))

    with pytest.raises(UserError, match=r"Trial\.matmul_precision: 'fp8', expected one of float32"):
        Trial().check()
