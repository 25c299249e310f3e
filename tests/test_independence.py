"""Whether examples of a batch have to do with one another: what is proven, and what is tried out.

Every case of a proof is also computed: what is said to be of one example may change with no other.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from nights import at_night

import jaxexp as jx
from jaxexp.training import experiments, independence, masks, tracing
from jaxexp.training.independence import CLEAN, EXAMPLES, MASK, Spread, reaches

B = 8
RNG = np.random.default_rng(0)
X_BxTxF = RNG.normal(size=(B, 3, 5)).astype(np.float32)
W_FxF = RNG.normal(size=(5, 5)).astype(np.float32)
K_B = RNG.integers(3, size=B)


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, ct: (ct / (1 + abs(ct).max()),))


@jax.custom_jvp
def rounded(x):
    return jnp.round(x)


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


def attention(q, k, v):
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2))
    return weights @ v


def recurrent(x):
    """Over time."""

    def turn(h, x_t):
        h = jnp.tanh(x_t @ W_FxF + h)
        return h, h.sum(-1)

    last, sums = lax.scan(turn, jnp.zeros((B, 5)), jnp.swapaxes(x, 0, 1))
    return last, sums


def over_examples(x):
    return lax.scan(lambda h, own: (h + own, h), jnp.zeros((3, 5)), x)[1]


def reduced(x, axis):
    return lax.reduce((x, x), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (axis,))


def pooled(x, size):
    return lax.reduce_window(x, -jnp.inf, lax.max, size, (1, 1, 1), "SAME")


def convolved(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


KERNEL = RNG.normal(size=(3, 5, 4)).astype(np.float32)
PARTS = {  # what is proven, and on which axis the examples of the results lie
    "elementwise": (lambda x, k: jnp.where(k[:, None, None] > 1, x, jnp.sin(x) + W_FxF[0]), [0]),
    "scalar": (lambda x, k: jnp.clip(x, -1, 1) * 2, [0]),
    "broadcast": (lambda x, k: jnp.broadcast_to(x, (2, B, 3, 5)), [1]),
    "reshape": (lambda x, k: (x.reshape(B, 15), x.reshape(B, 5, 3), x[:, None]), [0, 0, 0]),
    "reshape inside": (lambda x, k: jnp.moveaxis(x, 0, 1).reshape(3, 1, B, 5), [2]),
    "transpose": (lambda x, k: (x.T, jnp.swapaxes(x, 0, 1)), [2, 1]),
    "squeeze": (lambda x, k: (x[:, :1].squeeze(1), jnp.expand_dims(x, 0)), [0, 1]),
    "reduce": (lambda x, k: (x.sum(1), x.max((1, 2)), x.T.mean(0), x.argmax(-1)), [0, 0, 1, 0]),
    "reduce several": (lambda x, k: reduced(x, 1), [0, 0]),
    "cumulative": (lambda x, k: (jnp.cumsum(x, 1), lax.cummax(x, 2, reverse=True)), [0, 0]),
    "sort": (lambda x, k: (jnp.sort(x, -1), jnp.argsort(x, 1), lax.top_k(x, 2)), [0] * 4),
    "reverse": (lambda x, k: (x[:, ::-1], jnp.roll(x, 1, 2)), [0, 0]),
    "slice": (lambda x, k: (x[:, 1], x[:, :, 1:4:2], x[:, -1:]), [0, 0, 0]),
    "dynamic slice": (lambda x, k: lax.dynamic_slice_in_dim(x, jnp.int32(1), 2, 1), [0]),
    "dynamic update": (lambda x, k: lax.dynamic_update_slice(x, x[:, :1], (0, 1, 0)), [0]),
    "pad": (lambda x, k: jnp.pad(x, ((0, 0), (1, 0), (0, 2))), [0]),
    "concatenate": (lambda x, k: jnp.concatenate([x, jnp.ones_like(x), x * 2], 1), [0]),
    "stack": (lambda x, k: (jnp.stack([x, x], 1), jnp.stack([x, x], 0), *jnp.unstack(x, axis=1)),
              [0, 1, 0, 0, 0]),
    "split": (lambda x, k: (*jnp.split(x, 3, 1), jnp.tile(x, (1, 2, 1))), [0] * 4),
    "product": (lambda x, k: (x @ W_FxF, W_FxF @ x[:, 0].T, jnp.einsum("btf,fg->gtb", x, W_FxF)),
                [0, 1, 2]),
    "own products": (lambda x, k: (jnp.einsum("btf,bsf->bts", x, x), attention(x, x, x)), [0, 0]),
    "each with each": (lambda x, k: (x[:, 0, 0] * jnp.ones((B, B)) + x[:, 0, :1],
                                     x[:, 0] @ x[:, 1].T), [(0, 1), (0, 1)]),
    "paired with weights": (lambda x, k: jnp.einsum("btf,bf->btf", x, jnp.ones((B, 5))), [0]),
    "convolution": (lambda x, k: convolved(x, KERNEL), [0]),
    "embedding": (lambda x, k: (jnp.asarray(W_FxF)[k], jnp.take(W_FxF, k, axis=1)), [0, 1]),
    "of each its own": (lambda x, k: jnp.take_along_axis(x, k[:, None, None], 1), [0]),
    "some columns": (lambda x, k: x[:, np.array([2, 0])], [0]),
    "one-hot": (lambda x, k: jax.nn.one_hot(k, 3), [0]),
    "pooling": (lambda x, k: pooled(x, (1, 2, 2)), [0]),
    "matrices": (lambda x, k: (jnp.linalg.svd(x, full_matrices=False)[1],
                               jnp.linalg.cholesky(x @ x.mT + 9 * jnp.eye(3))), [0, 0]),
    "spectrum": (lambda x, k: jnp.fft.rfft(x), [0]),
    "random": (lambda x, k: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), [0]),
    "constant": (lambda x, k: (jnp.arange(B), jnp.zeros_like(x)), [None, None]),
    "calls": (lambda x, k: jax.checkpoint(jax.jit(jnp.sin))(jax.nn.gelu(jax.nn.relu(x))), [0]),
    "own derivative": (lambda x, k: rounded(x), [0]),
    "scan": (lambda x, k: recurrent(x), [0, 1]),
    "loop": (lambda x, k: lax.fori_loop(0, 3, lambda i, h: h * x[:, 0] + i, jnp.ones((B, 5))), [0]),
    "while": (lambda x, k: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x), (0, x)), [None, 0]),
    "branches": (lambda x, k: lax.cond(jnp.sum(W_FxF) > 0, jnp.sin, jnp.zeros_like, x), [0]),
    "mapped": (lambda x, k: jax.vmap(lambda a, i: a[i] + a.sum())(x, k), [0]),
    "stopped": (lambda x, k: lax.stop_gradient(lax.optimization_barrier((W_FxF, x))[1]), [0]),
}  # fmt: skip
MIXES = {
    "sum": lambda x, k: x - x.mean(0),
    "sum of all": lambda x, k: x + x.sum(),
    "largest": lambda x, k: (x.argmax(0), x),
    "several": lambda x, k: reduced(x, 0),
    "cumulative": lambda x, k: jnp.cumsum(x, 0),
    "sort": lambda x, k: jnp.sort(x, 0),
    "order": lambda x, k: lax.sort((x, W_FxF[0] * x), dimension=0),
    "top": lambda x, k: lax.top_k(x[:, 0, 0], B),
    "flip": lambda x, k: x[::-1],
    "roll": lambda x, k: jnp.roll(x, 1, 0),
    "shift": lambda x, k: lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 0), (0, 0, 0))),
    "first": lambda x, k: x - x[:1],
    "one of them": lambda x, k: x * lax.dynamic_index_in_dim(x, 1),
    "where another says": lambda x, k: lax.dynamic_slice_in_dim(x, k[0], 1, 1),
    "twice": lambda x, k: jnp.concatenate([x[4:], x[:4]]),
    "to pairs": lambda x, k: x.reshape(B // 2, 2, 15),
    "flat": lambda x, k: x.reshape(-1),
    "over the batch": lambda x, k: attention(x[:, 0], x[:, 0], x[:, 0]),
    "weights of it": lambda x, k: jnp.einsum("btf,b->tf", x, jnp.ones(B)),
    "kernel": lambda x, k: convolved(x, x[:3, 0, :, None] * KERNEL),
    "convolved examples": lambda x, k: convolved(jnp.moveaxis(x, 0, 1), KERNEL),
    "permuted": lambda x, k: x[K_B],
    "looked up": lambda x, k: x[k],
    "neighbours": lambda x, k: pooled(x, (2, 1, 1)),
    "spectrum": lambda x, k: jnp.fft.fft(x, axis=0).real,
    "examples as a matrix": lambda x, k: jnp.linalg.svd(x[:, 0], full_matrices=False)[1],
    "own backward pass": lambda x, k: clipped(x),
    "scan": lambda x, k: over_examples(x),
    "carried": lambda x, k: lax.fori_loop(
        0, 2, lambda i, c: (c[1], c[1].mean(0) + c[0]), (x, x)),
    "until all are done": lambda x, k: lax.while_loop(
        lambda h: jnp.any(h < 3), lambda h: h + 1, x),
    "which branch": lambda x, k: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "host": lambda x, k: jax.pure_callback(np.sin, x, x),
    "scatter": lambda x, k: jnp.zeros((3, 5)).at[k].add(x[:, 0]),
}  # fmt: skip


MIXED = -1


def axes_of(reached):
    """The axis of the examples in each, (axis, axis) of two."""
    return [
        MIXED if own.spread else (tuple(sorted(own.axes)) if len(own.axes) > 1 else
                                  next(iter(own.axes), None))
        for own in reached
    ]  # fmt: skip


def proof(function, differentiated=True):
    """Of each result, the axis of the examples."""
    program = jax.make_jaxpr(function)(X_BxTxF, K_B)
    return axes_of(reaches(program, [EXAMPLES] * 2, differentiated=differentiated))


def check(function, axes):
    """What is said of the results: each other example is another, and only its own part changes."""
    compiled = jax.jit(function)
    before = [np.asarray(a) for a in jax.tree.leaves(compiled(X_BxTxF, K_B))]
    for b in range(B):
        x, k = X_BxTxF.copy(), K_B.copy()
        x[b], k[b] = RNG.normal(size=x[b].shape), (k[b] + 1) % 3
        after = [np.asarray(a) for a in jax.tree.leaves(compiled(x, k))]
        for one, other, axis in zip(before, after, axes, strict=True):
            if axis != MIXED:
                for each in () if axis is None else np.atleast_1d(axis):
                    one, other = (np.delete(a, b, each) for a in (one, other))
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", PARTS)
def test_what_each_operation_makes_of_the_examples(name):
    function, axes = PARTS[name]
    assert proof(function) == axes
    check(function, axes)


@pytest.mark.parametrize("name", MIXES)
def test_examples_that_meet_are_never_said_to_be_apart(name):
    axes = proof(MIXES[name])
    assert MIXED in axes
    check(MIXES[name], axes)


def test_a_backward_pass_of_ones_own_matters_in_training_alone():
    assert proof(lambda x, k: clipped(x), differentiated=False) == [0]


STEPS = [
    lambda x: jnp.sin(x), lambda x: x.T, lambda x: x.sum(0), lambda x: x.max(-1),
    lambda x: x.reshape(-1), lambda x: x.reshape(x.shape[::-1]), lambda x: x[None],
    lambda x: x[..., None] * jnp.ones(2), lambda x: jnp.sort(x, 0), lambda x: jnp.cumsum(x, -1),
    lambda x: x[..., ::-1], lambda x: x[:4], lambda x: jnp.concatenate([x, x], -1),
    lambda x: jnp.roll(x, 1, -1), lambda x: jnp.tensordot(x, jnp.ones((x.shape[-1], 8)), 1),
    lambda x: jnp.tensordot(jnp.ones((2, x.shape[0])), x, 1), lambda x: jnp.stack([x, x], -1),
    lambda x: x + x[..., :1], lambda x: x - x.mean(0), lambda x: jnp.moveaxis(x, 0, -1),
    lambda x: x[np.array([0, -1])], lambda x: jnp.tile(x, 2),
]  # fmt: skip


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(st.sampled_from(range(len(STEPS))), max_size=7))
def test_chains_of_operations(chain):
    def function(x, k):
        for i in chain:
            x = STEPS[i](x) if x.ndim and x.size < 10_000 else x
        return x

    with jax.disable_jit():  # compiles single operations, which recur
        axes = proof(function)
        before = function(X_BxTxF, K_B)
        x = X_BxTxF.copy()
        x[2] += 1
        after = function(x, K_B)
    [axis] = axes
    if axis != MIXED:
        for each in () if axis is None else np.atleast_1d(axis):
            before, after = (np.delete(a, 2, each) for a in (before, after))
        np.testing.assert_array_equal(before, after)


def test_parameters_of_another_version_of_jax_prove_nothing(monkeypatch):
    monkeypatch.setitem(independence.ALIKE, "transpose", lambda op: op.params["another"])
    assert proof(lambda x, k: x.T) == [MIXED]


def filling(function, size=None):
    """How far examples outside of a mask (B,) change what is made of x (B, 3, 5) and k (B,)."""
    program = jax.make_jaxpr(function)(X_BxTxF, K_B, jnp.ones(B, bool))
    mask = MASK if size is None else MASK._replace(axes=EXAMPLES.axes)
    return reaches(program, [EXAMPLES, EXAMPLES, mask], differentiated=True, size=size)


def contrast(x, k, mask):
    """Each example against the others that count."""
    e = x[:, 0] / jnp.linalg.norm(x[:, 0], axis=-1, keepdims=True)
    similar = jnp.where(mask[None] & ~jnp.eye(B, dtype=bool), e @ e.T, -jnp.inf)
    same = (k[None] == k[:, None]) & mask[None]
    return jax.nn.logsumexp(similar, axis=1) - jnp.where(same, e @ e.T, 0).sum(1) / same.sum(1)


MASKED = {
    "mean": lambda x, k, mask: x - x.mean(0, where=mask[:, None, None]),
    "deviation": lambda x, k, mask: x.std(0, where=mask[:, None, None]),
    "weighted": lambda x, k, mask: x - jnp.einsum("b,btf->tf", mask * 1.0, x) / mask.sum(),
    "times": lambda x, k, mask: (x[:, 0, 0] * mask.astype(jnp.float32)).sum(),
    "largest": lambda x, k, mask: x / jnp.where(mask[:, None, None], abs(x), 0).max(),
    "ranks": lambda x, k, mask: jnp.sort(jnp.where(mask, x[:, 0, 0], jnp.inf)),
    "any": lambda x, k, mask: jnp.where(((x[:, 0, 0] > 0) & mask).any(), 2.0, 1.0) * x,
    "none": lambda x, k, mask: ((k == 1) | ~mask).all(),
    "counted": lambda x, k, mask: mask.sum() / jnp.maximum(mask.sum(), 1),
    "products": lambda x, k, mask: (x[:, 0] * mask[:, None]).T @ x[:, 1],
    "contrast": contrast,
    "quotient": lambda x, k, mask: jnp.einsum("b,btf->tf", mask / mask.sum(), x),
    "average": lambda x, k, mask: jnp.average(
        x[:, 0, 0], weights=mask / jnp.maximum(mask.sum(), 1)
    ),
    "added": lambda x, k, mask: jax.nn.logsumexp(x[:, 0, 0] + jnp.where(mask, 0, -jnp.inf)),
}
NOT_TOLD = {
    # derivatives that are not finite for others,
    "logarithm": lambda x, k, mask: jax.nn.softmax(x[:, 0, 0] + jnp.log(mask * 1.0)) @ x[:, 0],
    "root": lambda x, k, mask: (jnp.sqrt(mask * 1.0) * x[:, 0, 0]).sum(),
    # and values that are not followed
    "large": lambda x, k, mask: jax.nn.logsumexp(x[:, 0, 0] + jnp.where(mask, 0, -1e9)),
    "power": lambda x, k, mask: (mask**2 * x[:, 0, 0]).sum(),
    "otherwise": lambda x, k, mask: jnp.where(mask[:, None, None], 0, x).sum(),
    "not there": lambda x, k, mask: (x[:, 0, 0] * ~mask).sum(),
    "diagonal": lambda x, k, mask: jnp.diagonal(x[:, 0] @ x[:, 0].T),
    "its own": lambda x, k, mask: x[jnp.arange(B), k],
    "cumulative": lambda x, k, mask: jnp.cumsum(x, 0),  # others, which come last, change none
    "made of its count": lambda x, k, mask: jnp.where(jnp.arange(B) < mask.sum(), k, 0).sum(),
    "made of its sum so far": lambda x, k, mask: jnp.where(jnp.cumsum(mask) > 0, k, 0).sum(),
    "sorted": lambda x, k, mask: jnp.where(jnp.sort(~mask), 0, k).sum(),
}
UNMASKED = {
    "cumulative": lambda x, k, mask: lax.cumsum(x, 0, reverse=True),
    "guard": lambda x, k, mask: jnp.where(x.max() > 200, 0.1 * x, x),
    "guard of a mean": lambda x, k, mask: jnp.where((x / mask.sum()).max() > 200, 0.1 * x, x),
    "any": lambda x, k, mask: lax.cond((x > 0).any(), jnp.sin, jnp.cos, x),
    "hardest": lambda x, k, mask: jnp.where(
        x[:, 0, 0] >= lax.top_k(x[:, 0, 0], 4)[0][-1], x[:, 0, 0], 0),
    "clipped": lambda x, k, mask: jnp.minimum(x, x.mean(0) + 3 * x.std(0)),
    "own rows": lambda x, k, mask: jax.nn.softmax(
        jnp.where(mask[:, None], x[:, 0] @ x[:, 0].T, 0.0), axis=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_what_heeds_the_mask_is_proven(name):
    found = filling(MASKED[name])
    assert all(own.axes <= {0} and not own.spread for own in found)
    mask, function = np.arange(B) % 3 > 0, jax.jit(MASKED[name])
    others = np.where(mask[:, None, None], X_BxTxF, 9 * RNG.normal(size=X_BxTxF.shape))
    one, other = function(X_BxTxF, K_B, mask), function(others, np.where(mask, K_B, 1), mask)
    if found[0].axes:
        one, other = one[mask], other[mask]
    np.testing.assert_array_equal(one, other)


def masked(x, mask, axis, how):
    """Along an axis, if it is as long as the mask."""
    if x.ndim == 0 or x.shape[axis % x.ndim] != B:
        return x
    mask = jnp.expand_dims(mask, [i for i in range(x.ndim) if i != axis % x.ndim])
    return [x * mask, jnp.where(mask, x, 0), jnp.where(mask, x, -1), jnp.where(mask, 2, x)][how]


STEPS_OF_A_BATCH = [
    *(functools.partial(masked, axis=axis, how=how) for axis in (0, -1, 1) for how in range(4)),
    *(lambda x, mask, step=step: step(x) if x.ndim else x for step in STEPS),
    lambda x, mask: x @ x.T if x.ndim == 2 else x,
    lambda x, mask: x + mask.sum(),
    lambda x, mask: jnp.where(x > 0, x, mask.any()),
]


@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.lists(st.sampled_from(range(len(STEPS_OF_A_BATCH))), max_size=9), st.integers(0, 2**B - 1)
)
def test_chains_of_operations_beside_a_mask(chain, bits):
    """Whoever is not among those that count changes no more than is said."""

    def function(x, k, mask):
        for i in chain:
            x = STEPS_OF_A_BATCH[i](x, mask) if x.size < 10_000 else x
        return x

    mask = (bits >> np.arange(B)) % 2 == 0
    others = np.where(mask[:, None, None], X_BxTxF, 3 + X_BxTxF)
    with jax.disable_jit():  # compiles single operations, which recur
        [found] = filling(function)
        one, other = function(X_BxTxF, K_B, mask), function(others, K_B, mask)
    if not found.spread:
        for axis in found.axes:
            one, other = (np.compress(mask, a, axis) for a in (one, other))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NOT_TOLD)
def test_what_may_be_each_examples_own_is_not_known_to_mix(name):
    assert filling(NOT_TOLD[name])[0].spread is Spread.UNKNOWN


@pytest.mark.parametrize("name", UNMASKED)
def test_what_joins_examples_without_a_mask_is_known_to(name):
    assert filling(UNMASKED[name])[0].spread is Spread.YES


INTEGERS = {  # of which values are not those of real numbers, or of bools
    "division": lambda x, k, mask: jnp.where(lax.div(jnp.where(mask, 2, 1), 2) == 0, k, 0).sum(),
    "overflow": lambda x, k, mask: jnp.where(
        jnp.where(mask, 0, jnp.int32(2**31 - 1)) + jnp.int32(1) < 0, k, 0).sum(),
    "bits": lambda x, k, mask: lax.reduce(
        jnp.where(mask, 3, 7) | k, jnp.int32(-1), lax.bitwise_and, (0,)),
    "one of bits": lambda x, k, mask: lax.reduce(
        jnp.where(mask, k + 6, 1), jnp.int32(-1), lax.bitwise_and, (0,)),
    "rounded": lambda x, k, mask: jnp.where(
        jnp.where(mask, 1.0, 2.6).astype(int) == 2, k, 0).sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", INTEGERS)
def test_values_that_are_known_are_those_that_are_computed(name):
    [found] = filling(INTEGERS[name])
    mask = np.arange(B) % 3 > 0
    others = [INTEGERS[name](X_BxTxF, np.where(mask, K_B, k), mask) for k in (1, 2, 4)]
    assert found.spread or len({int(own) for own in others}) == 1


def test_a_mask_counts_whatever_the_size():
    for name in ("mean", "weighted", "times", "any", "counted", "products", "quotient", "added"):
        assert not filling(MASKED[name], size=B)[0].spread, name
    assert filling(lambda x, k, mask: jnp.ones_like(x).sum(), size=B)[0].spread is Spread.YES


def folded(a, start, join):
    """A reduction of one's own."""
    return lax.reduce(a, jnp.asarray(start, a.dtype), join, (0,))


def turns(ends, mask):
    """Of a loop that ends with its third turn, or before."""
    return lax.while_loop(lambda i: (i < 3) & ~ends(mask), lambda i: i + 1, 0)


# How many rows there are: of h (B,) and a mask (B,), what is masked being neutral to what joins it,
NEUTRAL = {
    "sum": lambda h, mask: jnp.where(mask, h, 0).sum(),
    "count": lambda h, mask: mask.sum(),
    "largest": lambda h, mask: jnp.where(mask, h, -jnp.inf).max(),
    "smallest": lambda h, mask: jnp.where(mask, h, jnp.inf).min(),
    "product": lambda h, mask: jnp.where(mask, h, 1).prod(),
    "or": lambda h, mask: ((h > 1) & mask).any(),
    "and": lambda h, mask: ((h < 1) | ~mask).all(),
    "inner": lambda h, mask: jnp.dot(mask * 1.0, h),
    "condition": lambda h, mask: lax.cond(mask.sum() > 6, jnp.sin, jnp.cos, h),
    "loop": lambda h, mask: turns(lambda mask: mask.sum() > 6, mask),
    "own": lambda h, mask: jnp.where(mask.any(), h, -h),
}
# not neutral,
FILLING = {
    "sum": lambda h, mask: jnp.where(mask, h, 1).sum(),
    "largest": lambda h, mask: jnp.where(mask, h, 9).max(),
    "largest of none": lambda h, mask: (~mask).max(),
    "smallest": lambda h, mask: mask.min(),
    "product": lambda h, mask: (mask * 1.0).prod(),
    "or": lambda h, mask: (~mask).any(),
    "and": lambda h, mask: mask.all(),
    "exclusive or": lambda h, mask: lax.reduce_xor((~mask).astype(int), (0,)),
    "inner": lambda h, mask: jnp.dot(~mask * 1.0, jnp.ones_like(h)),
    "place of the largest": lambda h, mask: jnp.argmax(~mask),
    "place of the smallest": lambda h, mask: jnp.argmin(mask),
    "cumulative product": lambda h, mask: jnp.cumprod(mask * 1)[-1],
    "cumulative sum": lambda h, mask: jnp.cumsum(~mask * 1)[-1],
    "cumulative maximum": lambda h, mask: lax.cummax(~mask * 1)[-1],
    "cumulative minimum": lambda h, mask: lax.cummin(mask * 1)[-1],
    "cumulative logarithm": lambda h, mask: lax.cumlogsumexp(~mask * 1.0)[-1],
    "sort": lambda h, mask: jnp.sort(mask * 1)[0],
    "top": lambda h, mask: lax.top_k(~mask * 1.0, 1)[0],
    "last": lambda h, mask: mask[-1],
    "softmax": lambda h, mask: jax.nn.softmax(jnp.where(mask, h, 0))[0],
    "rounded": lambda h, mask: lax.reduce_precision(~mask * 1.0, 8, 7).sum(),
    "of ones own": lambda h, mask: folded(mask, True, lax.bitwise_and),
    "condition": lambda h, mask: lax.cond(mask.all(), jnp.sin, jnp.cos, h),
    "loop": lambda h, mask: turns(jnp.all, mask),
    "own": lambda h, mask: jnp.where(mask.all(), h, -h),
    "zeros by zeros": lambda h, mask: jnp.count_nonzero(jnp.divide(h * mask, h * mask)),
    "zeros by their root": lambda h, mask: ((h * mask) / jnp.sqrt((h * mask) ** 2)).sum(),
    "zeros times infinities": lambda h, mask: (h**2 * mask * jnp.log(h**2 * mask)).sum(),
    "inner of infinities": lambda h, mask: jnp.dot(mask * 1.0, jnp.log(mask * 1.0)),
    "infinities less infinities": lambda h, mask: jnp.exp(
        jnp.log(mask * 1.0) - jnp.log(mask * 2.0)
    ).sum(),
    "one too many": lambda h, mask: jnp.where(jnp.arange(len(h)) <= mask.sum(), h, 0).sum(),
    "turns": lambda h, mask: lax.scan(lambda c, m: (c & m, None), True, mask)[0],
}
# or neutral in a way that no rule speaks of.
LEFT_OUT = {
    "sort": lambda h, mask: jnp.sort(jnp.where(mask, h, jnp.inf))[0],
    "place": lambda h, mask: jnp.argmax(jnp.where(mask, h, -jnp.inf)),
    "cumulative sum": lambda h, mask: jnp.cumsum(jnp.where(mask, h, 0))[-1],
    "rounded": lambda h, mask: lax.reduce_precision(jnp.where(mask, h, 0), 8, 7).sum(),
    "below the others": lambda h, mask: jnp.where(mask, h**2, 0).max(),
    "of ones own": lambda h, mask: folded(jnp.where(mask, h, 0), 0, lax.add),
    "made of its count": lambda h, mask: jnp.where(jnp.arange(len(h)) < mask.sum(), h, 0).sum(),
}


@pytest.mark.parametrize(
    ("function", "proven", "same"),
    [
        *(pytest.param(f, True, True, id=f"neutral: {name}") for name, f in NEUTRAL.items()),
        *(pytest.param(f, False, False, id=f"filling: {name}") for name, f in FILLING.items()),
        *(pytest.param(f, False, True, id=f"left out: {name}") for name, f in LEFT_OUT.items()),
    ],
)
def test_what_is_masked_counts_where_it_is_not_neutral(function, proven, same):
    """Five examples by themselves, and filled up to eight."""
    [found] = filling(lambda x, k, mask: function(x[:, 0, 0], mask), size=B)
    assert (not found.spread and found.axes <= {0}) == proven
    h, mask = X_BxTxF[:, 0, 0], np.arange(B) < 5
    alone, filled = function(h[mask], mask[mask]), function(h, mask)
    if np.ndim(filled) and len(filled) == B:
        filled = filled[mask]
    assert np.allclose(alone, filled) == same


# Tasks

N = 40


class Net(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        h = linen.LayerNorm()(linen.Dense(6)(x))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(linen.relu(h)))


class Images(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.gelu(linen.Conv(4, (3, 3))(x.reshape(-1, 4, 4, 1)))
        h = linen.GroupNorm(2)(linen.max_pool(h, (2, 2), (2, 2)))
        return linen.Dense(3)(linen.avg_pool(h, (2, 2)).reshape(len(x), -1))


class Words(linen.Module):
    recurrent: bool

    @linen.compact
    def __call__(self, x):
        h = linen.Embed(9, 4)(abs(x).astype(int) % 9)
        if self.recurrent:
            return linen.Dense(3)(linen.RNN(linen.LSTMCell(5))(h)[:, -1])
        h = h + linen.MultiHeadDotProductAttention(2)(h, h)
        return linen.Dense(3)(h.mean(1))


class Normed(linen.Module):
    masked: bool = True

    @linen.compact
    def __call__(self, x, train, mask):
        norm = linen.BatchNorm(use_running_average=not train)
        given = {"mask": mask[:, None]} if self.masked else {}
        return linen.Dense(3)(linen.relu(norm(linen.Dense(6)(x), **given)))


class Spectral(linen.Module):
    """Its state moves in every step, and depends on no example."""

    @linen.compact
    def __call__(self, x, train):
        return linen.Dense(3)(linen.SpectralNorm(linen.Dense(6))(x, update_stats=train))


def nnx_net(trial, rngs):
    return nnx.Sequential(nnx.Linear(16, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 3, rngs=rngs))


class Counts(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.steps = nnx.Linear(16, 3, rngs=rngs), nnx.BatchStat(jnp.zeros((), int))

    def __call__(self, x):
        self.steps[...] += 1
        return self.linear(x)


X_NxF = RNG.normal(size=(N, 16)).astype(np.float32)
Y_N = RNG.integers(3, size=N)
CLASSES = jx.arrays(X_NxF, Y_N, validation=8)
NUMBERS = jx.arrays(X_NxF, X_NxF @ RNG.normal(size=(16, 3)).astype(np.float32), validation=8)
TRIAL = jx.Trial(epochs=2, batch_size=8)
entropy = optax.softmax_cross_entropy_with_integer_labels


def mixing(task, data=CLASSES, trials=(TRIAL,)):
    return masks.mixing(task.bind(data), data, trials, lambda trial: ())(trials[0])


def found(*given, **named):
    """Other facts are tested by themselves."""
    return mixing(*given, **named)._replace(whole=True, metric="", evaluated_sized=False)


def meet(mixing):
    """Whether they do, in training and in evaluation."""
    return mixing.filling and mixing.evaluated_filling and mixing.evaluated


@pytest.fixture
def compiled(monkeypatch):
    """What has been compiled."""
    made = []

    def compile_(function, *given):
        made.append(function)
        return real(function, *given)

    real = tracing.compiled_quickly
    monkeypatch.setattr(tracing, "compiled_quickly", compile_)
    masks._found.clear()
    return made


MODULES = {
    "dense": Net(),
    "images": Images(),
    "recurrent": Words(recurrent=True),
    "attention": Words(recurrent=False),
    "spectral": Spectral(),
    "nnx": nnx_net,
    "counts": lambda trial, rngs: Counts(rngs),
}


@pytest.mark.parametrize("name", MODULES)
def test_plain_modules_are_proven(name, compiled):
    metrics = {"accuracy": jx.metrics.accuracy, "top": jx.metrics.top_k(2)}
    task = jx.supervised(module=MODULES[name], loss=entropy, metrics=metrics)
    assert found(task) == masks.APART
    assert not compiled


def triplet(prediction, target, margin=1.0):
    anchor, near, far = jnp.split(prediction.reshape(-1, 3, 1), 3, axis=1)
    return jnp.maximum(0, (anchor - near) ** 2 - (anchor - far) ** 2 + margin)[:, 0, 0]


def hinge(prediction, target):
    """Of the label's score and the best of the others."""
    own = jnp.take_along_axis(prediction, target[:, None], 1)[:, 0]
    others = jnp.where(jax.nn.one_hot(target, 3) > 0, -jnp.inf, prediction)
    return jax.nn.relu(1 + jax.lax.top_k(others, 1)[0][:, 0] - own)


def of_numbers(loss, **named):
    return lambda prediction, target: loss(prediction, target, **named).mean(-1)


LOSSES = {
    "entropy": (CLASSES, entropy),
    "one-hot": (CLASSES, lambda p, y: optax.softmax_cross_entropy(p, jax.nn.one_hot(y, 3))),
    "focal": (CLASSES, lambda p, y: optax.sigmoid_focal_loss(p, jax.nn.one_hot(y, 3)).sum(-1)),
    "hinge": (CLASSES, hinge),
    "ranks": (CLASSES, lambda p, y: (jnp.argsort(jnp.argsort(p)) * p).sum(-1)),
    "general": (NUMBERS, lambda p, y: optax.generalized_kl_divergence(jax.nn.log_softmax(p), y**2)),
    "kl": (NUMBERS, lambda p, y: optax.kl_divergence(jax.nn.log_softmax(p), jax.nn.softmax(y))),
    "squared": (NUMBERS, of_numbers(optax.squared_error)),
    "huber": (NUMBERS, of_numbers(optax.huber_loss)),
    "log cosh": (NUMBERS, of_numbers(optax.log_cosh)),
    "cosine": (NUMBERS, optax.cosine_distance),
    "binary": (NUMBERS, lambda p, y: optax.sigmoid_binary_cross_entropy(p, y > 0).sum(-1)),
    "triplet": (NUMBERS, triplet),
}


@pytest.mark.parametrize("name", at_night(LOSSES, "huber", "log cosh", "binary", "kl"))
def test_plain_losses_are_proven(name, compiled):
    data, loss = LOSSES[name]
    assert found(jx.supervised(module=Net(), loss=loss), data) == masks.APART
    assert not compiled


def test_a_plan_of_a_plain_model_compiles_nothing(compiled):
    jx.plan(jx.Sweep(TRIAL.replace(batch_size=12)), jx.supervised(module=Net(), loss=entropy),
            CLASSES, devices=1)  # fmt: skip
    assert not compiled


def test_batch_norm_that_heeds_the_mask_is_proven(compiled):
    assert found(jx.supervised(module=Normed(), loss=entropy)) == masks.APART
    # Evaluated with the statistics of training, examples are by themselves.
    filled = found(jx.supervised(module=Normed(masked=False), loss=entropy))
    assert filled == masks.APART._replace(filling=True)
    assert not compiled


def compared(prediction, target, mask):
    """A masked loss of pairs."""
    similar = prediction @ prediction.T
    weight = mask[None] & ~jnp.eye(len(mask), dtype=bool)
    return jax.nn.logsumexp(jnp.where(weight, similar, -1e9), axis=1) - prediction[:, 0]


def test_examples_that_are_compared_are_evaluated_apart():
    masked = found(jx.supervised(module=Net(), loss=compared))
    assert masked == masks.APART._replace(evaluated=True)
    assert meet(found(jx.supervised(module=Net(), loss=deaf)))


def deaf(prediction, target):
    return compared(prediction, target, mask=jnp.ones(len(prediction), bool))


def linear(loss=None, apply=None, **named):
    return jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.zeros((x.shape[-1], 3))},
        apply=apply or (lambda trial, params, x: x @ params["w"]),
        loss=loss or of_numbers(optax.squared_error),
        **named,
    )


def test_a_backward_pass_that_mixes_is_found():
    """It divides by the largest of the gradients of a batch, those that count nothing included."""
    task = linear(apply=lambda trial, params, x: clipped_by_count(x @ params["w"]))
    assert found(task, NUMBERS) == masks.APART._replace(filling=True)


@jax.custom_vjp
def clipped_by_count(x):
    return x


clipped_by_count.defvjp(lambda x: (x, x), lambda x, ct: (ct / (1 + abs(x).max()),))


@jax.custom_jvp
def scaled(x):
    return x


scaled.defjvp(lambda primals, tangents: (primals[0], tangents[0] / (1 + abs(primals[0]).max())))


@jax.custom_jvp
def passed(x):
    return jnp.round(x)


passed.defjvp(lambda primals, tangents: (passed(*primals), tangents[0]))


def test_derivatives_of_ones_own(compiled):
    task = linear(apply=lambda trial, params, x: passed(x @ params["w"]))
    assert found(task, NUMBERS) == masks.APART
    assert not compiled
    task = linear(apply=lambda trial, params, x: scaled(x @ params["w"]))
    assert found(task, NUMBERS) == masks.APART._replace(filling=True)


def test_a_backward_pass_that_is_each_examples_own_is_accepted():
    task = linear(apply=lambda trial, params, x: doubled(x @ params["w"]))
    assert found(task, NUMBERS) == masks.APART


@jax.custom_vjp
def doubled(x):
    return x


doubled.defvjp(lambda x: (x, None), lambda _, ct: (2 * ct,))


@dataclass(frozen=True, kw_only=True)
class Weighted(jx.Trial):
    lam: float = jx.traced(0.0, at_least=0)


def beside(h):
    """Of each example, another's: of which no proof speaks."""
    return h[::-1]


def coupled(trial, prediction, target):
    own = jnp.square(prediction - target).sum(-1)
    return own + trial.lam * jnp.square(beside(prediction).sum(-1) - 1)


@pytest.mark.parametrize(
    ("values", "mixes"),
    [([0.0], False), ([0.0, 1.0], True), ([1.0, 0.0], True), ([0.0] * 30 + [0.1, 0.0], True)],
)
def test_every_value_of_a_traced_hyperparameter_counts(values, mixes):
    trials = [Weighted(lam=lam, learning_rate=0.1 + i) for i, lam in enumerate(values)]
    expected = masks.Mixing(mixes, mixes, evaluated=True, sized=mixes)
    assert found(linear(coupled), NUMBERS, trials) == expected


def test_a_sweep_over_what_couples_the_examples_is_refused():
    sweep = jx.Sweep(Weighted(epochs=1, batch_size=12), {"lam": [0.0, 1.0]})
    with pytest.raises(jx.UserError, match="heed the `mask`"):
        jx.plan(sweep, linear(coupled), NUMBERS, devices=1)


@dataclass(frozen=True)
class Counting(jx.Task):
    """Couples its examples from a step on, which the state counts."""

    dtype: type
    begins: int = 2

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.zeros(16)}, {"n": jnp.zeros((), self.dtype)})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        h, n = batch.x @ variables.params["w"] - batch.y, variables.state["n"]
        pairs = jnp.where(n >= self.begins, jnp.square(beside(h)), 0)
        return jx.Outputs(loss=jnp.square(h) + pairs, state={"n": n + 1})


@pytest.mark.parametrize("dtype", [int, pytest.param(float, marks=pytest.mark.nightly)])
def test_what_begins_after_some_steps_counts(dtype):
    assert meet(found(Counting(dtype)))
    # No trial takes so many.
    assert found(Counting(dtype, begins=100_000)) == masks.APART._replace(evaluated=True)


class Cox(jx.Task):
    """The partial likelihood: each example is compared with those that lived longer."""

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.zeros(3)})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        risk_B, time_B = batch["x"] @ variables.params["w"], batch["time"]
        longer_BxB = time_B[None] >= time_B[:, None]
        among = jax.nn.logsumexp(jnp.where(longer_BxB, risk_B[None], -1e9), axis=1)
        return jx.Outputs(loss=among - risk_B)


class Grouped(Cox):
    """The mean of the group."""

    def apply(self, trial, variables, batch, *, rng, mask, train):
        h_B, group_B = batch["x"] @ variables.params["w"], batch["group"]
        same_BxB = group_B[None] == group_B[:, None]
        return jx.Outputs(loss=jnp.square(h_B - (same_BxB * h_B).sum(1) / same_BxB.sum(1)))


@pytest.mark.parametrize(("task", "order"), [(Cox(), 1), (Cox(), -1), (Grouped(), 1)])
@pytest.mark.parametrize("n", [40, 4000])
def test_data_whose_first_rows_show_nothing(task, order, n):
    """Whatever the rows are sorted by, and however few are compared."""
    x = RNG.normal(size=(n, 3)).astype(np.float32)
    train = {"x": x, "time": np.sort(RNG.random(n).astype(np.float32))[::order]}
    data = jx.Data(train | {"group": np.arange(n) % (n // 2)})
    assert meet(found(task, data))


def test_an_answer_is_of_the_data_that_it_was_found_with():
    """Of one group each, examples have nothing to do with one another."""
    x = RNG.normal(size=(16, 3)).astype(np.float32)

    def loss(prediction, target):
        same = (target == beside(target)) & (target > 0)
        return jnp.square(prediction[:, 0] - same * beside(prediction)[:, 0])

    for targets, mixes in ((np.zeros(16), False), (np.ones(16), True), (np.zeros(16), False)):
        data = jx.arrays(x, targets.astype(np.float32), validation=None)
        assert found(linear(loss), data).filling == mixes


class OnHost(jx.Task):
    def __init__(self, function):
        self.function = function

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.zeros(16)})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        h = batch.x @ variables.params["w"]
        shift = jax.pure_callback(self.function, h, lax.stop_gradient(h))
        return jx.Outputs(loss=jnp.square(h - batch.y) + shift)


def fails(h):
    raise ValueError("of the user's")


def test_functions_on_the_host(caplog):
    """What cannot be computed is not known, and no error from here."""
    assert found(OnHost(lambda h: np.sin(h))) == masks.APART._replace(evaluated=True)
    assert meet(found(OnHost(lambda h: h - h.mean())))
    assert meet(found(OnHost(fails)))


def test_losses_that_are_not_finite_say_nothing():
    assert meet(found(linear(lambda p, y: jnp.square(p).sum(-1) / 0 + p.sum()), NUMBERS))


@pytest.mark.parametrize("n", [experiments.HALF, 1000])
def test_no_row_is_tried_twice_before_all_are(n):
    for i in range(4):
        counts = np.bincount(experiments._drawn(i, n), minlength=n)
        assert counts.max() - counts.min() == (n == 1000)
    assert np.bincount(experiments._distinct(0, 10, 25)).tolist().count(3) == 5


def test_of_many_values_the_extremes_are_tried():
    values = [(float(i), float(-i % 7)) for i in range(100)]
    chosen = experiments._spread(values)
    assert len(chosen) <= experiments.DRAWS + experiments.HALF
    assert {0.0, 99.0} <= {a for a, _ in chosen}
    assert {0.0, 6.0} <= {b for _, b in chosen}
    assert experiments._spread([(2.0,), (1.0,), (2.0,)]) == [(1.0,), (2.0,)]


class Weighing(Cox):
    def weights(self, batch):
        return batch["time"] / batch["time"].max()

    def apply(self, trial, variables, batch, *, rng, mask, train):
        return jx.Outputs(loss=jnp.square(batch["x"] @ variables.params["w"]))


def test_weights_of_ones_own_count_too():
    x = RNG.normal(size=(N, 3)).astype(np.float32)
    assert meet(found(Weighing(), jx.Data({"x": x, "time": abs(x[:, 0])})))


class Started(Counting):
    """From weights that are brought along, and a state that says whether examples meet."""

    def __init__(self):
        super().__init__(float, 1)

    def init(self, trial, rng, data):
        return jx.Variables({"w": data["own"]["w"]}, {"n": data["own"]["n"]})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        made = super().apply(trial, variables, batch, rng=rng, mask=mask, train=train)
        return made._replace(state=variables.state)


def test_an_answer_is_of_the_arrays_that_init_takes_up():
    """At -1e6, no trial's state gets to where its examples meet."""
    y = X_NxF[:, 0]
    for start, meets in ((-1e6, False), (5.0, True), (-1e6, False)):
        own = {"w": np.ones(16, np.float32), "n": np.float32(start)}
        data = jx.Data(jx.Examples(X_NxF, y), extra={"own": own})
        assert found(Started(), data).filling == meets


def test_metrics_of_ones_own_count_too():
    centred = jx.Metric("lower", example=lambda p, y: jnp.square(p - p.mean(0)).sum(-1))
    task = linear(metrics={"spread": centred})
    assert meet(found(task, NUMBERS))


# How many examples a batch has


SIZES = (TRIAL, TRIAL.replace(batch_size=12))


def of_batch(loss):
    """A task whose loss is of a batch, a key and a mask."""

    class OfBatch(jx.Task):
        def init(self, trial, rng, data):
            return jx.Variables({"w": 0.1 * jnp.arange(1.0, 17)})

        def apply(self, trial, variables, batch, *, rng, mask, train):
            return jx.Outputs(loss=loss(batch.x @ variables.params["w"], batch.x, rng, mask))

    return OfBatch()


def by_length(h, x, rng, mask):
    return h**2 + 1 / len(h)


def by_ones(h, x, rng, mask):
    return h**2 + jnp.ones_like(h).sum()


def stratified(h, x, rng, mask):
    return (h + (jax.random.uniform(rng) + jnp.arange(len(h)) / len(h)) % 1) ** 2


def reversed_places(h, x, rng, mask):
    return h * jnp.arange(len(h))[::-1]


def across(h, x, rng, mask):
    return h + jax.random.normal(rng, x.shape[::-1]).sum(0)


def antithetic(h, x, rng, mask):  # no odd size can be traced
    noise = jax.random.normal(rng, (len(h) // 2,))
    return h + jnp.concatenate([noise, -noise])


def normalised(h, x, rng, mask):  # 0 divided by 0, where it is masked
    x = x * mask[:, None]
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return h**2 + (x @ x.T).sum(1) / mask.sum()


def one_too_many(h, x, rng, mask):
    return h**2 + FILLING["one too many"](h, mask)


def by_mask(h, x, rng, mask):
    return h**2 + 1 / mask.sum()


def along(h, x, rng, mask):
    return h + jax.random.normal(rng, x.shape).sum(1)


def by_keys(h, x, rng, mask):
    keys = jax.random.split(rng, len(h))
    return h + jax.vmap(lambda key: jax.random.normal(key, (3,)).sum())(keys)


def by_place(h, x, rng, mask):
    return h * jnp.arange(len(h)) + np.arange(5000)[: len(h)]


@pytest.mark.parametrize(
    ("loss", "sized", "filling"),
    [
        *((loss, True, True) for loss in (by_length, by_ones, stratified, reversed_places)),
        *((loss, True, False) for loss in (across,)),
        (antithetic, True, True),  # as half of the pairs in a partial batch would be
        *((loss, True, True) for loss in (normalised, one_too_many)),
        *((loss, False, False) for loss in (by_mask, along, by_keys, by_place)),
    ],
)
def test_what_depends_on_how_many_examples_there_are(loss, sized, filling):
    # In evaluation, how many there are of other splits, or the place behind them, would count too.
    expected = masks.Mixing(filling, evaluated_filling=filling, evaluated=True, sized=sized)
    assert found(of_batch(loss), trials=SIZES) == expected


def root(x):
    return jnp.sqrt((x**2).sum(1))


def nearest(x, mask, rest):
    return jnp.where(mask, x[:, 0], rest) - jnp.where(mask, x[:, 0], 0).sum()


def inverse(h, mask):
    return ((h + 0.1) * mask) ** -1 / (h * mask).sum()


@pytest.mark.parametrize(
    ("of", "finite"),
    [
        (lambda x, mask: root(x * mask[:, None]), False),
        (lambda x, mask: jnp.where(mask, (root(x * mask[:, None]) - 1) ** 2, 0), False),
        (lambda x, mask: root(x * (mask / mask.sum())[:, None]), False),
        (lambda x, mask: jnp.where(mask, inverse(x[:, 0] ** 2, mask), 0), False),
        (lambda x, mask: root(jnp.where(mask[:, None], x, 0)), True),
        (lambda x, mask: jnp.sqrt((x[:, 0] * mask) ** 2 + 0.1), True),
        (lambda x, mask: jnp.exp(x[:, 0] + jnp.log(mask * 1.0)), True),
        (lambda x, mask: jnp.square(nearest(x, mask, jnp.inf)).min(), False),
        (lambda x, mask: jnp.exp(nearest(x, mask, jnp.inf)).min(), False),
        (lambda x, mask: jnp.where(mask, nearest(x, mask, jnp.inf) / x[:1, 0] ** 2, 0), False),
        (lambda x, mask: jnp.exp(nearest(x, mask, -jnp.inf) / 2).sum(), True),
    ],
)
def test_gradients_of_what_fills_a_batch_are_finite(of, finite):
    """0 times the derivative of a root of 0, or by what meets an infinity, is no number."""
    task = of_batch(lambda h, x, rng, mask: h**2 + of(h[:, None] * x, mask))
    made = found(task, trials=SIZES)
    assert (made.filling, made.evaluated_filling) == (not finite, False)


@pytest.mark.parametrize(
    ("draw", "proven"),
    [
        (jax.random.gamma, True),
        (lambda key, h: jax.random.gamma(key, h, (3, B)).T, False),
        (
            lambda key, h: jax.vmap(lambda own: jax.random.bits(own, (B,)))(
                jax.random.split(key, B)
            ),
            False,
        ),
    ],
)
def test_numbers_are_drawn_by_their_places(draw, proven):
    program = jax.make_jaxpr(draw)(jax.random.key(0), jnp.ones(B))
    for anywhere in (False, True):
        [own] = reaches(program, [CLEAN, EXAMPLES], differentiated=True, size=B, anywhere=anywhere)
        assert (not own.spread and own.axes <= {0}) == (proven and not anywhere)


def noisy(loss):
    """With noise that is drawn otherwise for a batch of another size."""
    return lambda h, x, rng, mask: loss(h, x, rng, mask) + across(h, x, rng, mask)


def if_full(h, x, rng, mask):
    return h**2 * jnp.where(mask.all(), 1.0, 0.5)


def by_smallest(h, x, rng, mask):
    return h**2 * (0.5 + 0.5 * mask.min())


def by_sum_of_noise(h, x, rng, mask):
    return h + jax.random.normal(rng, h.shape).sum()


@pytest.mark.parametrize(
    "loss", [if_full, by_smallest, by_sum_of_noise, noisy(if_full), noisy(by_ones)]
)
def test_noise_excuses_nothing_else_that_fills_a_batch(loss):
    made = found(of_batch(loss), trials=SIZES)
    assert made == masks.Mixing(filling=True, evaluated_filling=True, evaluated=True, sized=True)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_tried_out(name):
    """And found to change nothing; in evaluation, other splits would stand beside it."""
    task = of_batch(lambda h, x, rng, mask: h**2 + LEFT_OUT[name](lax.stop_gradient(h), mask))
    assert found(task, trials=SIZES) == masks.APART._replace(evaluated=True)


def test_a_loss_by_whether_its_batch_is_full_is_refused():
    sweep = jx.Sweep(TRIAL.replace(batch_size=20))  # of 32: the last of 12
    with pytest.raises(jx.UserError, match=r"batch_size=20: the last .* or how many they are"):
        jx.plan(sweep, of_batch(if_full), CLASSES, devices=1)


def beyond_ten(h, x, rng, mask):
    return h**2 * (2.0 if len(h) > 10 else 1.0)


def of_four(h, x, rng, mask):
    return h**2 if len(h) == 4 else abs(h)


def test_what_is_computed_of_parts_alone_counts():
    trials = [TRIAL.replace(batch_size=size) for size in (5, 10)]
    assert mixing(of_batch(of_four), trials=trials).whole
    assert not mixing(of_batch(lambda h, x, rng, mask: h**2), trials=trials).whole


def at_most_ten(h, x, rng, mask):
    return h**2 / min(len(h), 10)


def in_parts(h, x, rng, mask):  # another program for each size, of the same numbers
    return lax.map(lambda h: h**2, h, batch_size=5)


def to_the_power(h, x, rng, mask):
    return h**2 * (1 - jnp.float32(0.9) ** len(h))


def counting_loop(h, x, rng, mask):
    return h**2 * lax.fori_loop(0, len(h), lambda i, c: c * 0.9, 1.0)


def counting_scan(h, x, rng, mask):
    return h**2 * lax.scan(lambda c, _: (c * 0.9, None), 1.0, length=len(h))[0]


@jax.custom_jvp
def by_rows(h):
    return h * 1.0


by_rows.defjvp(lambda h, dh: (h[0] * 1.0, dh[0] * 4 / jnp.ones_like(dh[0]).sum()))


@jax.custom_vjp
def by_rows_backwards(h):
    return h * 1.0


by_rows_backwards.defvjp(lambda h: (h * 1.0, None), lambda _, g: (g * 4 / jnp.ones_like(g).sum(),))


@jax.custom_vjp
def as_many(h):
    return h * 1.0


as_many.defvjp(lambda h: (h * 1.0, None), lambda _, g: (g * g.shape[0] / 10,))


@jax.custom_jvp
def as_many_forward(h):
    return h * 1.0


as_many_forward.defjvp(lambda h, dh: (h[0] * 1.0, dh[0] * len(dh[0]) / 10))


@pytest.mark.parametrize(
    ("loss", "sized"),
    [
        *((loss, True) for loss in (beyond_ten, at_most_ten)),
        (lambda h, *_: as_many(h) ** 2, True),
        (lambda h, *_: as_many_forward(h) ** 2, True),
        *((loss, True) for loss in (to_the_power, counting_loop, counting_scan)),
        (lambda h, *_: by_rows(h) ** 2, True),
        (lambda h, *_: by_rows_backwards(h) ** 2, True),
        *((loss, False) for loss in (in_parts, lambda h, *_: jax.nn.relu(h))),
    ],
)
def test_sizes_that_trials_have_count(loss, sized):
    """Also where any larger ones are alike, and in a backward pass of one's own."""
    made = found(of_batch(loss), trials=SIZES)
    assert (made.sized, made.filling) == (sized, sized)


class Contrastive(jx.Task):
    """With parameters of 0 all examples are alike, and the terms of the gradient cancel out."""

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.zeros((16, 2))})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        e = jnp.tanh(batch.x @ variables.params["w"] + jnp.array([0.3, 0.7]))
        similar = jnp.where(mask, 10 * e @ e.T, -1e9)
        return jx.Outputs(loss=-jnp.diagonal(jax.nn.log_softmax(similar)))


@pytest.mark.nightly
def test_what_is_left_of_gradients_that_cancel_out_is_rounding():
    assert not found(Contrastive(), NUMBERS, [TRIAL.replace(batch_size=29)]).filling


class OfPrices(jx.Task):
    """Predicts large numbers, beside whose rounding its loss is small."""

    metrics = {"r2": jx.metrics.r2}  # noqa: RUF012

    def init(self, trial, rng, data):
        return jx.Variables({"w": 0.1 * jnp.ones((16, 3))})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        h = batch.x @ variables.params["w"]
        penalty = jnp.where(mask[:, None], h**2, 0).mean()  # by rows of the array
        loss = ((h - batch.y) ** 2).sum(1) + lax.stop_gradient(penalty)
        return jx.Outputs(loss=loss, prediction=1e6 * h, target=1e6 * batch.y)


def test_a_loss_is_measured_by_itself_beside_large_predictions():
    assert found(OfPrices(), NUMBERS, [TRIAL.replace(batch_size=29)]).filling


def test_what_counts_by_the_mask_is_evaluated_by_splits():
    """Whatever stands beside a split, its loss is divided by the number of its own examples."""
    task = of_batch(lambda h, x, rng, mask: h**2 / mask.sum())
    found = [
        jx.run(
            jx.Sweep(TRIAL.replace(learning_rate=1e-20, epochs=1)), task,
            jx.Data(jx.Examples(X_NxF[:n], Y_N[:n]), jx.Examples(X_NxF[32:], Y_N[32:])),
            progress=False,
        )["loss"].sel(split="validation").values
        for n in (16, 32)
    ]  # fmt: skip
    np.testing.assert_allclose(*found, rtol=1e-6)
    h = X_NxF[32:] @ (0.1 * np.arange(1, 17, dtype=np.float32))
    np.testing.assert_allclose(found[0].ravel(), [np.mean(h**2) / len(h)], rtol=1e-5)


@pytest.mark.parametrize("loss", [along, by_keys, by_place])
def test_what_is_proven_of_any_size_compiles_nothing(loss, compiled):
    found(of_batch(loss), trials=SIZES)
    assert not compiled


def spike_guard(h, x, rng, mask):
    loss = (h - 1) ** 2
    return jnp.where(lax.stop_gradient(loss).max() > 200, 0.1 * loss, loss)


def hardest(h, x, rng, mask):
    return jnp.where(h >= lax.top_k(h, min(16, len(h)))[0][-1], h**2, 0)


def trimmed(h, x, rng, mask):
    """None of fewer than ten examples."""
    return h**2 * (jnp.argsort(jnp.argsort(h)) < len(h) - len(h) // 10)


@pytest.mark.parametrize("loss", [spike_guard, hardest, trimmed])
def test_what_joins_examples_rarely_or_in_large_batches_alone(loss, compiled):
    assert meet(found(of_batch(loss), trials=SIZES))
    assert not compiled


def test_a_metric_that_is_of_a_batch_is_named():
    centred = jx.Metric("lower", example=lambda p, y: jnp.square(p - p.mean(0)).sum(-1))
    task = linear(metrics={"spread": centred})
    with pytest.raises(jx.UserError, match=r"metrics\['spread'\].* expected a jaxexp.Metric with"):
        jx.plan(jx.Sweep(TRIAL.replace(batch_size=12)), task, NUMBERS)
    shifted = jx.Metric(
        "lower", value=lambda sums: sums["total"] / sums["weight"],
        sums=lambda p, y, w: {"total": (jnp.square(p).sum(-1) * w).sum(), "weight": w.sum()},
    )  # fmt: skip
    beside = linear(apply=lambda trial, params, x: x @ params["w"], metrics={"squared": shifted})
    assert found(beside, NUMBERS) == masks.APART


def test_a_metric_by_sums_counts_what_it_is_given():
    """The prediction of an example is the metric's alone, and has to do with others."""

    class Centred(jx.Task):
        metrics = {"largest": jx.metrics.mean_squared_error}  # noqa: RUF012

        def init(self, trial, rng, data):
            return jx.Variables({"w": jnp.zeros(16)})

        def apply(self, trial, variables, batch, *, rng, mask, train):
            h = batch.x @ variables.params["w"]
            return jx.Outputs(loss=h**2, prediction=h - h.mean(), target=batch.y * 1.0)

    assert meet(found(Centred()))
    assert mixing(Centred()).metric == "largest"


# Batches in parts


WHOLE = {
    "drawn": lambda h, x, rng, mask: h + jax.random.normal(rng, h.shape),
    "drawn by another key": lambda h, x, rng, mask: h + jax.random.normal(
        jax.random.key(1), h.shape),
    "place": lambda h, x, rng, mask: h * jnp.arange(len(h)),
    "listed": lambda h, x, rng, mask: h * np.arange(5000, dtype=np.float32)[: len(h)],
    "first": lambda h, x, rng, mask: h.at[0].set(5.0) ** 2,
    "updated": lambda h, x, rng, mask: lax.dynamic_update_slice(h, jnp.ones(1), (1,)) ** 2,
    "mixed": lambda h, x, rng, mask: h - h.mean(where=mask),
    "one key": lambda h, x, rng, mask: h * jax.random.normal(rng),
}  # fmt: skip
IN_PARTS = {
    "plain": lambda h, x, rng, mask: h**2,
    "masked": lambda h, x, rng, mask: jnp.where(mask, h**2, 0),
    "looked up": lambda h, x, rng, mask: jnp.stack([h, h**2], 1)[
        jnp.arange(len(h)), (x[:, 0] > 0).astype(int)
    ],
    "classes": lambda h, x, rng, mask: (
        (jax.nn.one_hot(h.astype(int), 2) * jnp.arange(2.0)).sum(1) + h**2
    ),
    "ones": lambda h, x, rng, mask: jnp.ones_like(h) + jax.nn.relu(h) + rng.size,
}


@pytest.mark.parametrize("name", [*WHOLE, *IN_PARTS])
def test_which_batches_may_be_computed_in_parts(name):
    loss = WHOLE.get(name) or IN_PARTS[name]
    assert mixing(of_batch(loss), trials=SIZES).whole == (name in WHOLE)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, True),
        ({"optimizer": lambda trial: optax.chain(optax.clip(1.0), optax.adam(1e-2))}, True),
        ({"optimizer": lambda trial: optax.lbfgs(1e-2)}, False),
        ({"module": Normed()}, False),
        ({"module": Net()}, False),  # drops units
        ({"module": Spectral()}, False),  # has a state
        ({"module": Images()}, True),
        ({"module": linen.Dense(3, param_dtype=jnp.bfloat16)}, False),  # rounded in each part
        ({"module": linen.Dense(3, dtype=jnp.float16)}, False),
        ({"module": linen.Dense(3), "loss": lambda p, y: entropy(doubled(p), y)}, False),
    ],
)
def test_which_models_may_be_trained_in_parts(changes, parts):
    task = jx.supervised(**{"module": Words(recurrent=False), "loss": entropy} | changes)
    assert mixing(task, trials=SIZES).whole != parts


def test_a_backward_pass_of_ones_own_for_parameters_is_of_the_whole_batch():
    """It need not be linear, as one that clips is not."""
    task = linear(apply=lambda trial, params, x: x @ clipped_by_count(params["w"]))
    assert mixing(task, NUMBERS, SIZES).whole
    assert not mixing(linear(), NUMBERS, SIZES).whole


def test_trials_in_parts_are_those_alone():
    """By an optimizer that minds the scale of a gradient, and how often it is told of it."""
    sgd = TRIAL.replace(optimizer="sgd", momentum=0.9, learning_rate=0.05)
    sweep = jx.Sweep(sgd, {"batch_size": [4, 12]})
    accuracy = {"accuracy": jx.metrics.accuracy}
    net = linen.Sequential([linen.Dense(6), linen.tanh, linen.Dense(3)])
    task = jx.supervised(module=net, loss=entropy, metrics=accuracy)
    planned = jx.plan(sweep, task, CLASSES, devices=1)
    assert [program.microbatch for program in planned.plan.programs] == [4]
    together = jx.run(planned, progress=False)
    for size in (4, 12):
        base = sweep.base.replace(batch_size=size)
        own = jx.plan(jx.Sweep(base), task, CLASSES, devices=1)
        assert not own.plan.programs[0].microbatch
        alone = jx.run(own, progress=False)
        for name in ("loss", "running_loss", "accuracy"):
            np.testing.assert_allclose(
                together[name].sel(batch_size=size), alone[name], rtol=2e-5, atol=2e-6
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
            together.params(batch_size=size), alone.params(),
        )  # fmt: skip


@pytest.mark.parametrize("loss", [along, pytest.param(by_mask, marks=pytest.mark.nightly)])
def test_trials_of_other_batch_sizes_change_no_numbers(loss):
    sweep = jx.Sweep(TRIAL, {"batch_size": [8, 16]})  # of 48 examples
    planned = jx.plan(sweep, of_batch(loss), CLASSES, devices=1)
    assert len(planned.plan.programs) == 1
    together = jx.run(planned, progress=False)
    alone = jx.run(jx.Sweep(TRIAL), of_batch(loss), CLASSES, progress=False, devices=1)
    np.testing.assert_allclose(together["loss"].sel(batch_size=8), alone["loss"], rtol=1e-6)


def test_trials_of_other_batch_sizes_that_would_change_numbers_are_kept_apart():
    sweep = jx.Sweep(TRIAL, {"batch_size": [8, 16]})
    assert len(jx.plan(sweep, of_batch(across), CLASSES, devices=1).plan.programs) == 2
    with pytest.raises(jx.UserError, match="programs='one': a batch of 8 would be padded to 16"):
        jx.plan(sweep, of_batch(across), CLASSES, programs="one")
    with pytest.raises(jx.UserError, match=r"batch_size=20: the last .* or how many they are"):
        jx.plan(jx.Sweep(TRIAL.replace(batch_size=20)), of_batch(by_length), CLASSES)


@pytest.mark.nightly
def test_supervised_trials_of_other_batch_sizes_share_a_program():
    sweep = jx.Sweep(TRIAL, {"batch_size": [8, 12, 20]})
    task = jx.supervised(module=Net(), loss=entropy)
    assert len(jx.plan(sweep, task, CLASSES).plan.programs) == 1
    reads = jx.supervised(
        module=linen.Dense(3), loss=lambda trial, p, y: entropy(p, y) / trial.batch_size
    )
    assert len(jx.plan(sweep, reads, CLASSES).plan.programs) == 3
