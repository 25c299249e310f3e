"""One trial trained by a plain loop over optax, to compare `jaxexp.run` with."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxexp as jx
from jaxexp.training.shuffle import permutation


class TaskFunctions(NamedTuple):
    """A task without state and random numbers, as anybody would write it down."""

    predict: Callable[..., Any]  # (trial, params, x_B) -> prediction of a batch
    loss: Callable[..., Any]  # (trial, prediction, y_B) -> (B,)
    optimizer: Callable[..., optax.GradientTransformation]  # (trial, steps)
    # (params, the optimizer's state) -> the parameters to evaluate
    evaluated: Callable[..., Any] = lambda params, state: params


def train_alone(
    own: TaskFunctions, trial: jx.Trial, data: jx.Data, params: Any
) -> tuple[Any, dict[str, float]]:
    """The parameters to evaluate, and the loss of each split, after the last epoch.

    `params` are the initial ones; each epoch takes the examples in the order of `permutation`, and
    its last batch is what is left of them.
    """
    n = data.counts["train"]
    optimizer = own.optimizer(trial, trial.epochs * math.ceil(n / trial.batch_size))

    def mean_loss(params: Any, x_B: Any, y_B: Any) -> jax.Array:
        return own.loss(trial, own.predict(trial, params, x_B), y_B).mean()

    @jax.jit
    def step(params: Any, state: Any, x_B: Any, y_B: Any) -> tuple[Any, Any]:
        grads = jax.grad(mean_loss)(params, x_B, y_B)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for epoch in range(trial.epochs):
        order_N = np.asarray(_shuffled(n, trial.seed, epoch))
        for start in range(0, n, trial.batch_size):
            rows_B = order_N[start : start + trial.batch_size]
            params, state = step(params, state, data.train.x[rows_B], data.train.y[rows_B])
    params = own.evaluated(params, state)
    losses = {
        split: float(mean_loss(params, *evaluated(split, examples)))
        for split, examples in data.splits.items()
    }
    return params, losses


def evaluated(split: str, examples: jx.Examples) -> tuple[Any, Any]:
    """What the losses of results are means over: of many training examples, a fixed sample."""
    n = len(examples.y)
    rows = np.arange(n)
    if split == "train":
        size = min(n, max(512, int(0.3 * n)))
        rows = np.sort(np.random.default_rng(0).permutation(n)[:size])
    return examples.x[rows], examples.y[rows]


@functools.partial(jax.jit, static_argnums=0)
def _shuffled(n: int, seed: Any, epoch: Any) -> jax.Array:
    return permutation(n, seed, epoch)(jnp.arange(n))
