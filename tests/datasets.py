"""Results that nobody has trained, in the shape that a run gives them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxexp.spec.sweep import Sweep
from jaxexp.spec.values import text

SPLITS = ("train", "validation", "test")
METRICS: dict[str, tuple[str, str]] = {"loss": ("lower", "nats"), "accuracy": ("higher", "")}


def dataset(
    axes: Mapping[str, Any] | None = None,
    metrics: Mapping[str, tuple[str, str]] = METRICS,
    splits: Sequence[str] = SPLITS,
    epochs: int = 6,
    loss: Any = None,
    values: Mapping[str, Any] | None = None,
    diverged: Any = 0,
    trained: Any = None,
    steps: int = 20,
    layers: int = 0,
    **attrs: Any,
) -> xr.Dataset:
    """A sweep over `axes`: the values of a hyperparameter, or of several that move together.

    `loss` and `values[metric]` (by trial) are what the trials' curves fall towards, on the first
    split; each later split is 0.02 worse. `diverged` and `trained` are epochs by trial.
    """
    axes = {"learning_rate": [0.01, 0.001, 1.0]} if axes is None else axes
    zipped = {n: v if isinstance(v, Mapping) else {n: v} for n, v in axes.items()}
    dims = tuple(zipped)
    shape = tuple(len(next(iter(own.values()))) for own in zipped.values())
    count = int(np.prod(shape, dtype=int))

    def per_trial(given: Any) -> np.ndarray:
        given = np.asarray(given)
        return given.ravel() if given.size == count else np.broadcast_to(given, shape).ravel()

    loss_T = per_trial(np.linspace(0.2, 0.8, count) if loss is None else loss).astype(float)
    values = {"loss": loss_T} | dict(values or {})
    diverged_T = per_trial(diverged)
    trained_T = per_trial(epochs if trained is None else trained)
    epoch_E = np.arange(1, epochs + 1)
    end_T = np.where(diverged_T > 0, diverged_T - 1, trained_T)
    seen_TxE = epoch_E <= end_T[:, None]
    variables: dict[str, Any] = {}
    for name, (direction, units) in metrics.items():
        sign = -1 if direction == "higher" else 1
        own = values.get(name, np.exp(-loss_T) if direction == "higher" else loss_T)
        own_T = per_trial(own).astype(float)
        falling = np.exp(-epoch_E)[:, None] * 0.8 + 0.02 * np.arange(len(splits))
        curve = own_T[:, None, None] + sign * falling
        curve = np.where(seen_TxE[..., None], curve, np.nan).astype(np.float32)
        about = {"direction": direction, "units": units}
        variables[name] = (
            (*dims, "epoch", "split"),
            curve.reshape(*shape, *curve.shape[1:]),
            about,
        )
        mean = (curve[..., 0] + sign * 0.05).reshape(*shape, epochs)
        variables[f"running_{name}"] = ((*dims, "epoch"), mean, about)
    step_S = np.arange(1, epochs * steps + 1)
    noisy = loss_T[:, None] + np.exp(-step_S / steps) + 0.1 * np.sin(step_S * 12.9898)
    noisy = np.where(np.repeat(seen_TxE, steps, axis=1), noisy, np.nan).astype(np.float32)
    variables["step_loss"] = ((*dims, "step"), noisy.reshape(*shape, -1))
    by_trial = {
        "steps_per_epoch": np.full(count, steps),
        "epochs_trained": trained_T,
        "diverged_epoch": diverged_T,
        "diverged_step": np.where(diverged_T > 0, (diverged_T - 1) * steps + 1, 0),
        "seconds": np.linspace(1, 2, count),
        "trial_id": np.array([f"{i:016x}" for i in range(count)]),
    }
    variables |= {name: (dims, by_trial[name].reshape(shape)) for name in by_trial}
    if layers:
        norms = 0.5 ** np.arange(layers) / epoch_E[:, None] * (1 + loss_T[:, None, None])
        norms = np.where(seen_TxE[..., None], norms, np.nan).astype(np.float32)
        variables["gradient_norm"] = ((*dims, "epoch", "layer"), norms.reshape(*shape, epochs, -1))
    coords: dict[str, Any] = {
        n: (dim, list(v)) for dim, own in zipped.items() for n, v in own.items()
    }
    base = {"epochs": epochs, "seed": 0, "learning_rate": 1e-3} | dict.fromkeys(coords)
    coords |= {"epoch": epoch_E, "step": step_S, "split": list(splits)}
    if layers:
        coords["layer"] = np.arange(layers)
    return xr.Dataset(
        variables,
        coords,
        {
            "axes": json.dumps(dims), "metrics": json.dumps(list(metrics)), "sweep": "my_sweep",
            "sweep_id": "0" * 16, "base": json.dumps(base), "trials": count,
            "seeds": json.dumps([0]), "data": "arrays", "plan": "1 program", "programs": 1,
            "plan_trials": count, "wall_seconds": 3.0, "compile_seconds": 1.0,
            "train_seconds": 2.0, "device": "cpu", "devices": 1, "jaxexp": "0.1.0",
            "jax": "0.8.0", "started": "2026-01-02T03:04:05+00:00", "notes": "[]",
        }
        | attrs,
    )  # fmt: skip


REGRESSION = {"loss": ("lower", "m²"), "r2": ("higher", ""), "mae": ("lower", "m")}


def grid(trials: int, **options: Any) -> xr.Dataset:
    """A sweep of 4, 18 or 48 trials over one, two or four hyperparameters."""
    rates, widths = [0.1, 0.01, 0.001], [8, 16, 64]
    rng = np.random.default_rng(0)
    options = {"loss": 0.2 + rng.gamma(1.5, 0.3, trials)} | options
    axes = {
        4: {"learning_rate": [1.0, 1e-2, 1e-3, 1e-5]},
        18: {"learning_rate": rates, "width": widths, "seed": [0, 1]},
        48: {"learning_rate": [*rates, 1e-5], "width": widths, "optimizer": ["adam", "sgd"],
             "seed": [0, 1]},
    }[trials]  # fmt: skip
    return dataset(axes, **options)


def of_sweep(sweep: Sweep, diverged: Mapping[int, int], layers: int = 101) -> xr.Dataset:
    """Results of a sweep that ships, on a map of six cells and two classes.

    `diverged` holds an epoch by the place of a trial. The accuracy of a network of NaN is perfect.
    """
    trials = sweep.trials()
    trained = [trial.epochs for trial in trials]
    lost = [diverged.get(place, 0) for place in range(len(trials))]
    axes = {
        dim: {n: _values(v) for n, v in zip(names, zip(*points, strict=True), strict=True)}
        for dim, (names, points) in sweep.dims.items()
    }
    ds = dataset(
        axes, epochs=max(trained), trained=trained, diverged=lost, steps=3, layers=layers,
        sweep=sweep.name, classes=json.dumps(["Here", "There"]), label_entropy=0.69,
    )  # fmt: skip
    seen = ds["epoch"] <= ds["epochs_trained"]
    ds["accuracy"] = ds["accuracy"].fillna(1.0).where(seen).assign_attrs(ds["accuracy"].attrs)
    region = np.broadcast_to(np.array([[0, 0, 1], [1, 1, 0]], np.int16), (*sweep.shape, 2, 3))
    return ds.assign(region=((*axes, "latitude", "longitude"), region)).assign_coords(
        longitude=np.linspace(0, 2, 3), latitude=np.linspace(50, 51, 2),
        test_longitude=("point", [0.0, 1.0]), test_latitude=("point", [50.0, 51.0]),
        test_label=("point", [0, 1]),
    )  # fmt: skip


def _values(values: Sequence[Any]) -> list[Any]:
    tuples = any(isinstance(value, tuple) for value in values)
    return [text(value) for value in values] if tuples else list(values)


def population(members: int = 4, epochs: int = 6, **options: Any) -> xr.Dataset:
    """A population whose last member becomes a copy of the first, after epochs 2 and 4.

    Each time it goes on at half of the learning rate.
    """
    rates = np.geomspace(1e-4, 1e-1, members)
    ds = dataset({"sample": {"learning_rate": rates}}, epochs=epochs, **options)
    parent = np.full((members, epochs), -1)
    parent[-1, [1, 3]] = 0
    own = np.repeat(rates[:, None], epochs, axis=1)
    own[-1, 2:], own[-1, 4:] = rates[0] / 2, rates[0] / 4
    ds["parent"] = (("sample", "epoch"), parent)
    ds["own_learning_rate"] = (("sample", "epoch"), own)
    return ds
