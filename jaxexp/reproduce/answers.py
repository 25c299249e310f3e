"""What the sweeps of section 7 answer: tables, figures and sentences from their results."""

from typing import TYPE_CHECKING

import jaxexp as jx
from jaxexp.reproduce.statements import final_and_spread, over_seeds

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # as in column headings
EMBEDDED = ""  # the attribute `images` if no folder was given


def table(results: "xr.Dataset") -> "pd.DataFrame":
    """Accuracies and losses (nats) after the last epoch, by setting: means over the seeds.

    With several seeds, "± test acc" is the standard deviation (n - 1) over those that finished, and
    `diverged` counts the others, if any.
    """
    import pandas as pd

    means = jx.seeds.average(results)
    spread = jx.select.spread(means, "accuracy")
    rows = []
    for _, point in jx.select.points(means):
        names = jx.select.hyperparameters(means)
        row = {name.replace("_", " "): point[name].item() for name in names}
        for quantity, short in (("accuracy", "acc"), ("loss", "loss")):
            values = jx.select.final(point, quantity)
            row |= {f"{s} {short}": float(values.sel(split=n)) for n, s in SPLITS.items()}
        rows.append(row)
    made = pd.DataFrame(rows)
    if spread is not None:
        at = list(made).index("test acc") + 1
        made.insert(at, "± test acc", jx.select.by_trial(means, spread.sel(split="test")))
        if means["diverged_seeds"].any():
            made["diverged"] = jx.select.by_trial(means, means["diverged_seeds"])
    return made


def answer(results: "xr.Dataset") -> str:
    """The best setting by validation accuracy (then loss), its accuracies, and its lead."""
    means = jx.seeds.average(results)
    name, best = jx.select.best(means, "accuracy")
    if jx.select.status(best) != "finished":
        return "Every trial diverged."
    test, validation, train = (
        jx.select.outcome(best, "accuracy", split, 4) for split in ("test", "validation", "train")
    )
    described = (
        f"test accuracy is {test}, its validation accuracy {validation} and its training accuracy "
        f"{train}{over_seeds(results)}"
    )
    lead = jx.seeds.lead(results, "accuracy")
    several = jx.select.size(means) > 1
    start = f"The best by validation accuracy is {name}: its" if several else "Its"
    return f"{start} {described}." + ("" if lead is None else f" {lead}")


def verdict(expected: float) -> "Callable[[xr.Dataset], jx.Verdict]":
    """Whether the best setting's test accuracy is the report's, within what chance explains.

    The tolerance combines twice the standard error of a share of that many test images with twice
    the spread over the seeds. The embedded images are not the report's, so they are not compared.
    """

    def judge(results: "xr.Dataset") -> jx.Verdict:
        _, best = jx.select.best(jx.seeds.average(results), "accuracy")
        if jx.select.status(best) != "finished":
            return jx.Verdict(False, "every trial diverged.")
        ours = f"a test accuracy of {jx.select.outcome(best, 'accuracy', 'test')}"
        if results.attrs["images"] == EMBEDDED:
            return jx.Verdict(None, f"{ours}, on other images than the report's {expected:g}.")
        accuracy, spread = final_and_spread(best, "accuracy", "test")
        error = (expected * (1 - expected) / results.sizes["image"]) ** 0.5
        agrees = abs(accuracy - expected) <= 2 * (error**2 + spread**2) ** 0.5
        return jx.Verdict(agrees, f"{ours}, against {expected:g}; the images may be others.")

    return judge


def draw(results: "xr.Dataset") -> "list[Figure]":
    """Accuracy by learning rate, if there are several."""

    if results.sizes.get("learning_rate", 1) < 2:
        return []
    name = str(results.attrs["sweep"]).replace("_", " ")
    return [jx.figures.accuracy_by(jx.compare.runs({name: results}), "learning_rate", {})]
