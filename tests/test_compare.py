"""Several sweeps side by side: ranking, means over seeds, telling images, figures and page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from jaxexp import compare, figures, library, rundir, select

RATES = [0.1, 0.01, 0.001]
CLASSES = ["cat", "dog"]
IMAGES = 8
FILES = [f"test/{CLASSES[i % 2]}/{i:03d}.png" for i in range(IMAGES)]
LABELS = np.arange(IMAGES) % 2


def baseline(
    test: Any,
    axes: dict[str, Sequence[Any]] | None = None,
    diverged: Any = 0,
    probability: Any = 0.5,
    **attrs: object,
) -> xr.Dataset:
    """One epoch of runs over `axes` whose test accuracies are `test`.

    Accuracies on train and validation lie 0.2 and 0.1 above; losses are 1 minus the accuracy. A
    diverged run has no loss, but the finite accuracy that a network of NaN has.
    """
    axes = {} if axes is None else axes
    shape = tuple(len(values) for values in axes.values())
    test, diverged = np.broadcast_to(test, shape), np.broadcast_to(diverged, shape)
    accuracy = test[..., None, None] + np.array([0.2, 0.1, 0.0])
    loss = np.where(diverged[..., None, None] > 0, np.nan, 1 - accuracy)
    probability = np.broadcast_to(probability, (*shape, IMAGES))
    return xr.Dataset(
        {
            "loss": ((*axes, "epoch", "split"), loss),
            "accuracy": ((*axes, "epoch", "split"), accuracy),
            "probability": ((*axes, "image"), probability.astype(np.float32)),
            "seconds": (tuple(axes), np.full(shape, 2.0)),
            "epochs_trained": (tuple(axes), np.ones(shape, int)),
            "diverged_epoch": (tuple(axes), diverged),
            "diverged_step": (tuple(axes), diverged * 7),
        },
        coords={
            **axes, "epoch": [1], "split": ["train", "validation", "test"],
            "test_file": ("image", FILES), "test_label": ("image", LABELS),
        },
        attrs={"classes": json.dumps(CLASSES), "images": "", "image_size": 16} | attrs,
    )  # fmt: skip


def rated(test: Any, **options: Any) -> xr.Dataset:
    return baseline(test, {"learning_rate": RATES}, **options)


def seeded(test: Any, **options: Any) -> xr.Dataset:
    return baseline(test, {"learning_rate": RATES, "seed": [0, 1]}, **options)
