"""What the sweeps of section 7 answer: tables, figures and sentences from their results."""

from typing import TYPE_CHECKING

import numpy as np

import jaxexp as jx

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # as they head a column
SPREAD = "± test acc"


def table(results: "xr.Dataset") -> "pd.DataFrame":
    """Accuracies and losses (nats) after the last epoch by setting: means over an axis of seeds.

    With several seeds, `± test acc` is the standard deviation (n - 1) over them. A setting of which
    a trial diverged has no numbers.
    """
    import pandas as pd

    shorts = {"accuracy": "acc", "loss": "loss"}
    found = {short: jx.select.final(results, name) for name, short in shorts.items()}
    spread = None
    if "seed" in results.dims:
        if results.sizes["seed"] > 1:
            spread = found["acc"].std("seed", ddof=1, skipna=False).sel(split="test")
        found = {name: values.mean("seed", skipna=False) for name, values in found.items()}
    axes = [dim for dim in found["acc"].dims if dim != "split"]
    names = [name for name in jx.select.hyperparameters(results) if name in found["acc"].coords]
    rows = []
    for index in np.ndindex(*(results.sizes[axis] for axis in axes)):
        at = dict(zip(axes, index, strict=True))
        row = {name.replace("_", " "): found["acc"].isel(at)[name].item() for name in names}
        for quantity, values in found.items():
            own = values.isel(at)
            row |= {f"{s} {quantity}": float(own.sel(split=n)) for n, s in SPLITS.items()}
        rows.append(row if spread is None else row | {SPREAD: float(spread.isel(at))})
    return pd.DataFrame(rows)


def answer(results: "xr.Dataset") -> str:
    """The best setting by validation accuracy (ties: by loss), and how it does."""

    made = table(results)
    if made["val acc"].isna().all():
        return "Of every setting, a trial diverged."
    by_loss = made.sort_values("val loss")
    row = by_loss.sort_values("val acc", ascending=False, kind="stable").iloc[0].to_dict()
    names = list(row)[: list(row).index("train acc")]
    best = ", ".join(f"{name} {jx.select.number(row[name])}" for name in names)
    spread = f" ± {row[SPREAD]:.4f}" if SPREAD in row else ""
    described = (
        f"test accuracy is {row['test acc']:.4f}{spread}, its validation accuracy "
        f"{row['val acc']:.4f} and its training accuracy {row['train acc']:.4f}"
    )
    seeds = results.sizes.get("seed", 1)
    means = f" (means over {seeds} seeds)" if seeds > 1 else ""
    start = f"The best by validation accuracy is {best}: its" if best else "Its"
    return f"{start} {described}{means}."


def draw(results: "xr.Dataset") -> "list[Figure]":
    """Accuracy by learning rate, where there are several."""

    if results.sizes.get("learning_rate", 1) < 2:
        return []
    name = str(results.attrs["sweep"]).replace("_", " ")
    return [jx.figures.accuracy_by(jx.compare.runs({name: results}), "learning_rate", {})]
