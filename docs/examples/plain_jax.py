"""Plain JAX, without Flax or Optax: two functions and a loss, on two moons."""

import jax
import jax.numpy as jnp
from sklearn.datasets import make_moons

import jaxexp as jx


def init(trial, rng, x):
    first, second = jax.random.split(rng)
    w1 = jax.random.normal(first, (x.shape[1], 16))
    w2 = jax.random.normal(second, (16,)) / 4
    return {"w1": w1, "b1": jnp.zeros(16), "w2": w2, "b2": 0.0}


def apply(trial, params, x):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]  # (B,): the logit of class 1


def loss(logit, label):
    return jax.nn.softplus(jnp.where(label == 1, -logit, logit))  # (B,)


data = jx.arrays(*make_moons(500, noise=0.2, random_state=0), validation=0.4)
task = jx.supervised(
    init=init, apply=apply, loss=loss, loss_unit="nats", metrics={"accuracy": jx.metrics.accuracy}
)
axes = {"optimizer": ["adam", "sgd"], "learning_rate": [0.1, 0.01], "seed": range(8)}
results = jx.run(jx.Sweep(jx.Trial(epochs=20, batch_size=50), axes), task, data)

print(results.table("accuracy").head())
