"""A custom optimizer: warm-up, cosine decay and clipping as axes of one program.

`steps` is the number of steps that a trial really takes: trials of 5 epochs decay to
zero at their end, as trials of 20 do.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

import jaxexp as jx


@dataclass(frozen=True, kw_only=True)
class ScheduledTrial(jx.Trial):
    warmup: float = jx.traced(0.1, above=0, at_most=1)  # share of the steps
    clip: float = jx.traced(1.0, above=0)  # largest norm of a gradient


def optimizer(trial, steps):
    def rate(step):
        rise = jnp.minimum(1, (step + 1) / (trial.warmup * steps))
        return trial.learning_rate * rise * (1 + jnp.cos(jnp.pi * step / steps)) / 2

    return optax.chain(optax.clip_by_global_norm(trial.clip), optax.adam(rate))


X, y = load_breast_cancer(return_X_y=True)
data = jx.arrays(scale(X), y, validation=0.3)
task = jx.supervised(
    module=lambda trial: nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(2)]),
    loss=optax.softmax_cross_entropy_with_integer_labels,
    metrics={"auc": jx.metrics.auc},
    optimizer=optimizer,
)
axes = {"warmup": [0.01, 0.3], "clip": [0.1, 1], "epochs": [5, 20], "learning_rate": [3e-3, 3e-2]}
results = jx.run(jx.Sweep(ScheduledTrial(batch_size=64), axes), task, data)

print(results)
at_end = jx.select.final(results.dataset, "loss").sel(split="validation")
print(at_end.mean(["clip", "learning_rate"]).to_pandas())  # warm-up against length
