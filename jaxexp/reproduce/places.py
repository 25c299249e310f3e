"""Section 6 of the report: tell the country of a European place from its coordinates."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxexp as jx
from jaxexp.reproduce.tables import Places, load_places

if TYPE_CHECKING:
    from jax import Array

    from jaxexp.reproduce.tasks import Arrays

MAP_CELLS = 90_000  # at most: over Europe, cells of about 0.15 degrees


def problem(inputs: jx.Inputs | None = None) -> jx.Problem:
    """The embedded places, or those of the CSV files in the folder `inputs.data`.

    Raises UserError for files that cannot be read.
    """
    return of(load_places(inputs.data if inputs else None))


def of(places: Places) -> jx.Problem:
    """The problem for a set of places, with a grid over their map for decision regions."""
    longitude, latitude = map_grid(places.train.x_Nx2)
    cells = np.stack(np.meshgrid(longitude, latitude), axis=-1)  # (latitude, longitude, 2)
    splits: dict[str, Any] = {
        name: jx.Examples(split.x_Nx2, split.y_N)
        for name, split in (
            ("train", places.train), ("validation", places.validation), ("test", places.test)
        )
    }  # fmt: skip
    data = jx.Data(
        **splits,
        classes=places.classes,
        features=("long", "lat"),
        extra={"map": cells.reshape(-1, 2)},
        coords={
            "longitude": (("longitude",), longitude),
            "latitude": (("latitude",), latitude),
            "test_longitude": (("point",), places.test.x_Nx2[:, 0]),
            "test_latitude": (("point",), places.test.x_Nx2[:, 1]),
            "test_label": (("point",), places.test.y_N.astype(np.int16)),
        },
        attrs={
            "data": places.source,
            "label_entropy": label_entropy(places.train.y_N),
        },
    ).known_by(places.fingerprint)
    return jx.Problem(_task(), data)


@functools.cache
def _task() -> jx.Task:
    """MLPs whose recorded predictions are the country of every cell of the map."""
    import jax
    import jax.numpy as jnp

    @dataclass(frozen=True)
    class Countries(jx.MLPClassification):
        prediction_dims = {"region": ("latitude", "longitude")}  # noqa: RUF012

        def predictions(
            self, trial: jx.Trial, variables: jx.Variables, data: "Arrays"
        ) -> "dict[str, Array]":
            def country(x_2: "Array") -> "Array":
                return self.predict(trial, variables, x_2[None])[0].argmax()

            size = self.evaluation_batch_size
            country_M = jax.lax.map(country, data["map"], batch_size=size)
            return {"region": country_M.astype(jnp.int16)}

    return Countries()


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
