"""What the sweeps of section 7 answer: tables, figures and sentences from their results."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure


def table(results: "xr.Dataset") -> "pd.DataFrame":
    """Accuracies and losses after the last epoch by setting, means over its seeds.

    Where there are seeds, `± test` is the standard deviation (n - 1) of the test accuracy over
    them. A setting of which a trial diverged has no numbers.
    """
    import pandas as pd

    from jaxexp.select import final, hyperparameters, points

    means, spread = _summary(results)
    names = [name for name in hyperparameters(results) if name != "seed"]
    rows = []
    for index, (_, point) in enumerate(points(means)):
        row = {name.replace("_", " "): point[name].item() for name in names}
        for quantity, short in (("accuracy", "acc"), ("loss", "loss")):
            last = final(point, quantity)
            row |= {f"{s} {short}": float(last.sel(split=s)) for s in SHORT}
        if spread is not None:
            row["± test acc"] = float(spread.sel(split="test").values.ravel()[index])
        rows.append(row)
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace("validation", "val"))


SHORT = ("train", "validation", "test")


def answer(results: "xr.Dataset") -> str:
    """The best setting by validation accuracy, and how it does."""
    made = table(results)
    if made["val acc"].isna().all():
        return "Every trial diverged."
    order = made.sort_values("val loss").sort_values("val acc", ascending=False, kind="stable")
    row = order.iloc[0]
    names = list(made.columns[: list(made.columns).index("train acc")])
    best = ", ".join(f"{name} {_number(row[name])}" for name in names)
    seeds = results.sizes.get("seed", 1)
    spread = f" ± {row['± test acc']:.4f}" if "± test acc" in row else ""
    told = (
        f"test accuracy is {row['test acc']:.4f}{spread}, its validation accuracy "
        f"{row['val acc']:.4f} and its training accuracy {row['train acc']:.4f}"
    )
    mean = f" (means over {seeds} seeds)" if seeds > 1 else ""
    if not best:
        return f"Its {told}{mean}."
    return f"The best by validation accuracy is {best}: its {told}{mean}."


def draw(results: "xr.Dataset") -> "list[Figure]":
    """Accuracy by learning rate."""
    from jaxexp import figures

    if "learning_rate" not in results.dims:
        return []
    means, _ = _summary(results)
    others = {dim: 0 for dim in means["loss"].dims if dim not in ("learning_rate", *KEPT)}
    if others or means.sizes["learning_rate"] < 2:
        return []
    return [figures.final_by(means, "learning_rate", "accuracy")]


KEPT = ("epoch", "split")


def _summary(results: "xr.Dataset") -> "tuple[xr.Dataset, xr.DataArray | None]":
    """Means over the seeds, diverged if one is, and the spread of the accuracies."""
    if "seed" not in results.dims:
        return results, None
    from jaxexp.select import final

    spread = final(results, "accuracy").std("seed", ddof=1, skipna=False)
    keep = results[["loss", "accuracy", "epochs_trained", "diverged_epoch"]]
    means = keep.mean("seed", skipna=False, keep_attrs=True)
    means["epochs_trained"] = keep["epochs_trained"].max("seed")
    means["diverged_epoch"] = keep["diverged_epoch"].max("seed")
    return means, spread if results.sizes["seed"] > 1 else None


def _number(value: object) -> str:
    from jaxexp.select import number

    return number(value.item() if isinstance(value, np.generic) else value)
