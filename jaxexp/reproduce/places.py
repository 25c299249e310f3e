"""The problem of section 6: tell the country of a European place from its coordinates."""

import json

import numpy as np

from jaxexp.execution.driver import Problem
from jaxexp.nn.mlp import Classification
from jaxexp.reproduce.tables import Places

MAP_CELLS = 90_000  # at most: cells of about 0.15 degrees over Europe


def problem(places: Places) -> Problem:
    """The sweep problem of a set of places, with a grid over their map for decision regions."""
    longitude, latitude = map_grid(places.train.x_Nx2)
    cells = np.stack(np.meshgrid(longitude, latitude), axis=-1)  # (latitude, longitude, 2)
    splits = {"train": places.train, "validation": places.validation, "test": places.test}
    return Problem(
        task=Classification(
            len(places.classes),
            mean=tuple(map(float, places.train.x_Nx2.mean(0, dtype=np.float64))),
            deviation=tuple(map(float, places.train.x_Nx2.std(0, dtype=np.float64))),
        ),
        data={name: (split.x_Nx2, split.y_N) for name, split in splits.items()}
        | {"map": cells.reshape(-1, 2)},
        prediction_dims={"region": ("latitude", "longitude")},
        coords={
            "longitude": (("longitude",), longitude),
            "latitude": (("latitude",), latitude),
            "test_longitude": (("point",), places.test.x_Nx2[:, 0]),
            "test_latitude": (("point",), places.test.x_Nx2[:, 1]),
            "test_label": (("point",), places.test.y_N.astype(np.int16)),
        },
        attrs={
            "data": places.source,
            "data_fingerprint": places.fingerprint,
            "classes": json.dumps(places.classes),
            "examples": json.dumps({name: len(split.y_N) for name, split in splits.items()}),
            "label_entropy": label_entropy(places.train.y_N),
        },
    )


def map_grid(x_Nx2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes (float32 degrees) of square cells over all the places."""
    low, high = x_Nx2.min(0) - 0.5, x_Nx2.max(0) + 0.5
    cell = np.sqrt(np.prod(high - low) / MAP_CELLS)
    longitude, latitude = (
        np.linspace(a, b, max(2, int((b - a) / cell)), dtype=np.float32)
        for a, b in zip(low, high, strict=True)
    )
    return longitude, latitude


def label_entropy(y_N: np.ndarray) -> float:
    """Entropy of the label prior in nats: the loss of a network that ignores its input."""
    share = np.unique_counts(y_N).counts / len(y_N)
    return float(-(share * np.log(share)).sum())
