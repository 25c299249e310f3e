"""What a user writes, and two mistakes, as `mypy` is to find them.

`mypy` reads this file as it reads the package, and `test_types` as `mypy --strict` alone does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax  # type: ignore[import-untyped,unused-ignore]
import pandas as pd
import xarray as xr
from flax import linen as nn

import jaxexp as jx


@dataclass(frozen=True, kw_only=True)
class NetTrial(jx.Trial):
    """Hyperparameters of its own."""

    units: int = jx.static(8, at_least=1)
    l2: float = jx.traced(0.0, at_least=0)
    pooling: str = jx.choice("max", ("max", "mean"))


class Net(nn.Module):
    """A Flax module."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, F) to (B, 2)."""
        h = nn.relu(nn.Dense(self.units)(x))
        h = nn.Dropout(0.5, deterministic=not train)(h)
        return nn.Dense(2)(h)


def module(trial: NetTrial) -> Net:
    """Of a trial."""
    return Net(trial.units)


def optimizer(trial: NetTrial, steps: int) -> optax.GradientTransformation:
    """Of a trial."""
    decay = optax.cosine_decay_schedule(1.0, steps)
    return optax.chain(
        optax.add_decayed_weights(trial.l2),
        optax.adam(trial.learning_rate),
        optax.scale_by_schedule(decay),
    )


@dataclass(frozen=True)
class Line(jx.Task):
    """A task of its own."""

    scale: float = 1.0

    def init(self, trial: jx.Trial, rng: jax.Array, data: Any) -> jx.Variables:
        """A slope."""
        return jx.Variables({"slope": jax.random.normal(rng) * self.scale})

    def apply(
        self,
        trial: jx.Trial,
        variables: jx.Variables,
        batch: jx.Examples,
        *,
        rng: jax.Array,
        mask: jax.Array,
        train: bool,
    ) -> jx.Outputs:
        """Squared error."""
        assert isinstance(trial, NetTrial)
        slope = variables.params["slope"]
        return jx.Outputs(loss=jnp.square(batch.x[:, 0] * slope - batch.y) + trial.l2 * slope**2)

    def predict(self, trial: jx.Trial, variables: jx.Variables, x: Any) -> jax.Array:
        """A line."""
        prediction: jax.Array = x[:, 0] * variables.params["slope"]
        return prediction


def absolute(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """A metric of its own."""
    return jnp.abs(prediction - target)


def main(folder: Path) -> pd.DataFrame:
    """Arrays, plan, run, results, page."""
    X = np.linspace(0, 1, 32)[:, None]
    data: jx.Data = jx.arrays(X, (X[:, 0] > 0.5).astype(int), validation=0.25, classes="infer")
    task = jx.supervised(
        module=module,
        loss=optax.softmax_cross_entropy_with_integer_labels,
        metrics={
            "accuracy": jx.metrics.accuracy,
            "top_1": jx.metrics.top_k(1),
        },
        optimizer=optimizer,
    )
    base = NetTrial(epochs=2, batch_size=8)
    sweep = jx.Sweep(base, {("l2", "learning_rate"): [(0, 0.1), (0.1, 0.01)], "seed": range(2)})
    planned: jx.PlannedRun = jx.plan(sweep, task, data, devices=1, programs="exact")
    print(planned, planned.plan.seconds)
    results: jx.Results = jx.run(planned, progress=False, checkpoint_dir=folder / "checkpoints")
    dataset: xr.Dataset = results.dataset
    accuracy: xr.DataArray = results["accuracy"].sel(split="validation")
    best: jx.TrialResult = results.best("accuracy")
    classes: npt.NDArray[Any] = results.predict(X, best)
    print(best.trial.learning_rate, best.params, accuracy.max(), classes[:3], dataset.attrs["plan"])

    line = jx.run(jx.Sweep(base, {"seed": range(2)}), Line(scale=0.1), data, progress=False)
    print(line.trial(seed=1).curves["loss"])

    both: dict[str, jx.Results] = jx.run(
        [sweep], task, data, devices=1, programs="exact", progress=False
    )
    page: Path = jx.write_report(both, folder / "report.html")
    png: bytes = jx.figures.to_png(jx.figures.curves(dataset.isel(seed=0), "loss"))
    print(page, len(png), jx.compare.runs({name: own.dataset for name, own in both.items()}))
    metric = jx.Metric("lower", unit="m", example=absolute)
    print(metric.direction)
    try:
        results.trial(units=1000)
    except jx.UserError as error:
        print(error)
    table: pd.DataFrame = jx.select.rank(dataset, "accuracy")
    return table


def mistakes() -> None:
    """What types do not allow; an ignored line without a mistake is an error, too."""
    jx.run(jx.Sweep(jx.Trial()), data=jx.arrays([[0.0]], [0])).best(3)  # type: ignore[arg-type]
    jx.Trial(epoch="5")  # type: ignore[call-arg]
