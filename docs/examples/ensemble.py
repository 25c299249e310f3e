"""An ensemble of 64 networks that differ only in their seed: its mean prediction, calibrated.

One temperature is fitted to the validation split; the test split, never used before, is the judge.
"""

import numpy as np
from sklearn.datasets import load_digits

import jaxexp as jx

X, y = load_digits(return_X_y=True)
data = jx.arrays(X / 16, y, validation=0.3, test=0.3)
network = jx.MLPTrial(
    depth=2, width=32, activation="gelu", epochs=20, batch_size=64, learning_rate=3e-3
)
results = jx.run(jx.Sweep(network, {"seed": range(64)}), data=data)


def members(x):
    """What each network predicts: probabilities (64, N, classes)."""
    return np.stack([results.predict_proba(x, results.trial(seed=seed)) for seed in range(64)])


def sharpened(probability, temperature):
    """Probabilities as if logits had been divided by the temperature."""
    power = probability ** (1 / temperature)
    return power / power.sum(-1, keepdims=True)


def log_loss(probability, label):
    """Mean negative log-likelihood, in nats."""
    return -np.log(probability[np.arange(len(label)), label]).mean()


def calibration_error(probability, label, bins=10):
    """Expected calibration error: by how much confidence and accuracy differ, bin by bin."""
    confidence, right = probability.max(1), probability.argmax(1) == label
    bin_of = np.minimum(confidence * bins, bins - 1).astype(int)
    return np.abs(np.bincount(bin_of, weights=confidence - right)).sum() / len(label)


valid, test = data.validation, data.test
mean = members(valid.x).mean(0)
temperature = min(np.geomspace(0.1, 10, 401), key=lambda t: log_loss(sharpened(mean, t), valid.y))
single = members(test.x)
ensemble = single.mean(0)
calibrated = sharpened(ensemble, temperature)

for score in (log_loss, calibration_error):
    of_single = np.mean([score(probability, test.y) for probability in single])
    print(f"{score.__name__}: single {of_single:.4f} on average, ensemble ", end="")
    print(f"{score(ensemble, test.y):.4f}, calibrated {score(calibrated, test.y):.4f}")
