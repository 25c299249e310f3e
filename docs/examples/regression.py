"""Regression with a custom loss: how robust should it be to patients who are far off?

The Huber loss is quadratic up to an error of `delta` and linear beyond. Losses with different
deltas cannot be compared, but R² can.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import jaxexp as jx


@dataclass(frozen=True, kw_only=True)
class HuberTrial(jx.Trial):
    delta: float = jx.traced(1.0, above=0)  # in standard deviations of the target


def huber(trial, prediction, target):
    error = jnp.abs(prediction - target)
    small = jnp.minimum(error, trial.delta)
    return small * (error - small / 2)  # (B,)


X, y = load_diabetes(return_X_y=True)
data = jx.arrays(scale(X), scale(y), validation=0.2, test=0.2, name="diabetes, scikit-learn")
task = jx.supervised(
    module=lambda trial: nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(1), jnp.ravel]),
    loss=huber,
    metrics={"r2": jx.metrics.r2, "mae": jx.metrics.mean_absolute_error},
)
axes = {"delta": [0.1, 0.3, 1, 3], "learning_rate": [1e-2, 1e-3], "seed": range(4)}
results = jx.run(jx.Sweep(HuberTrial(epochs=20, batch_size=32), axes, name="huber"), task, data)

print(results.best("r2"))
at_end = jx.select.final(results.dataset, "r2").sel(split="validation")
print(at_end.mean("seed").to_pandas())  # delta against learning rate
print(jx.write_report(results, "huber.html"))
