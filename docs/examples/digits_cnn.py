"""A 1-D convolutional network on handwritten digits: eight trials, two compiled programs.

A digit is read as a sequence of eight rows, with eight pixels each.
"""

from dataclasses import dataclass

import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import jaxexp as jx


@dataclass(frozen=True, kw_only=True)
class ConvTrial(jx.Trial):
    channels: int = jx.static(16)  # each value is compiled on its own


class ConvNet(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):  # (B, 8 rows, 8 pixels)
        x = nn.gelu(nn.Conv(self.channels, kernel_size=(3,))(x))
        x = nn.gelu(nn.Conv(self.channels, kernel_size=(3,))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


X, y = load_digits(return_X_y=True)
data = jx.arrays(X.reshape(-1, 8, 8) / 16, y, validation=0.2, test=0.2)
task = jx.supervised(
    module=lambda trial: ConvNet(trial.channels),
    loss=optax.softmax_cross_entropy_with_integer_labels,
    metrics={"accuracy": jx.metrics.accuracy},
)
axes = {"channels": [8, 16], "learning_rate": [1e-2, 3e-3], "seed": range(2)}
results = jx.run(jx.Sweep(ConvTrial(epochs=5, batch_size=64), axes), task, data)

best = results.best("accuracy")
print(results)
print(best.trial)
print(f"test accuracy: {best.curves['accuracy'].sel(split='test').values[-1]:.3f}")
print(results.predict(data.test.x[:10], best), data.test.y[:10])
