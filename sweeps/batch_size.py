"""Batch size (6.1.2.4): what do small and large batches buy, and what do they cost?

    jaxexp run batch_size

About 20 s, one program after another, since time is part of the question. Expect test accuracies
of about 0.8 after one epoch at batch 1, 0.9 at 16 and 128, and 0.65 at 1024.
"""

import numpy as np
import pandas as pd

import jaxexp as jx

REPORT = pd.DataFrame(
    {
        "batch": [1, 16, 128, 1024],
        "epochs": [1, 10, 50, 50],
        "train acc": [0.622, 0.915, 0.955, 0.967],
        "val acc": [0.686, 0.934, 0.950, 0.969],
        "test acc": [0.678, 0.928, 0.948, 0.967],
        "seconds": [152.70, 165.87, 179.67, 111.76],
    }
)


def draw(results):
    """Validation accuracy by epoch; the noise of the steps; steps per epoch and seconds."""
    figures = jx.figures
    return [
        figures.curves(results, "accuracy", "validation"),
        figures.step_noise(results),
        figures.bars(results, ["steps_per_epoch", "seconds"]),
    ]


def table(results):
    """The report's table, ours beside it."""
    means = jx.seeds.average(results)
    accuracy, spread = jx.select.final(means, "accuracy"), jx.select.spread(means, "accuracy")
    ours = pd.DataFrame(
        {"batch": means["batch_size"].values, "epochs": means["epochs"].values}
        | {
            f"{head} acc": accuracy.sel(split=split).values
            for head, split in (("train", "train"), ("val", "validation"), ("test", "test"))
        }
        | {"seconds": means["seconds"].values}
    )
    both = ours.merge(REPORT, how="left", on=["batch", "epochs"], suffixes=("", " (report)"))
    measured = [f"{name}{whose}" for name in ours.columns[2:] for whose in ("", " (report)")]
    made = both[["batch", "epochs", *measured]]
    if spread is not None:
        at = list(made).index("test acc") + 1
        made.insert(at, "± test acc", spread.sel(split="test").values)
    return made.rename(columns=lambda name: "report" if name.endswith("(report)") else name)


def answer(results):
    """The best and the noisiest batch size, and the time."""
    noise = [
        (float(np.mean(found)), name)
        for name, setting in jx.select.points(jx.seeds.average(results))
        if (found := _noise(results, setting))
    ]
    noisiest, calmest = max(noise), min(noise)
    seconds = results["seconds"].sum()
    return (
        f"{jx.seeds.best_in_words(results, 'accuracy')} The training loss is noisiest with "
        f"{noisiest[1]} (±{noisiest[0]:.3f} nats, from one step to the next) and calmest with "
        f"{calmest[1]} (±{calmest[0]:.3f}). All trials together took {float(seconds):.1f} s of "
        "device time, one batch size after another. The report does not say which learning rate, "
        "width or batch norm its rows used; ours use the defaults (learning rate 0.001, width 16, "
        "no batch norm), so the accuracies are not the same experiment."
    )


def _noise(results, setting):
    """Of each seed of a setting that finished."""
    own = jx.select.where(results, batch_size=setting["batch_size"].item())
    return [
        jx.figures.noise(trial["step_loss"].dropna("step").values)
        for _, trial in jx.select.points(own)
        if jx.select.status(trial) == "finished"
    ]


def verdict(results):
    """Whether larger batches end with higher accuracies, as in the report's table."""
    means = jx.seeds.average(results)
    accuracy = jx.select.final(means, "accuracy").sel(split="validation")
    by_size = accuracy.values[means["batch_size"].values.argsort()]
    best = jx.select.number(means["batch_size"].values[int(np.nanargmax(accuracy.values))].item())
    rises = bool((np.diff(by_size) > 0).all())
    return jx.Verdict(
        rises,
        "the accuracy rises with the batch size, as in the report."
        if rises
        else f"the report's accuracy rises with the batch size; ours is highest at {best}, in what "
        "may not be the same experiment.",
    )


problem = jx.reproduce.places.problem

sweep = jx.Sweep(
    base=jx.MLPTrial(),
    axes={("batch_size", "epochs"): [(1, 1), (16, 10), (128, 50), (1024, 50)]},
    timed=True,  # the report's table compares seconds: one after another, nothing beside
    questions=(
        jx.Question(
            row="6.1.2.4",
            title="Batch size",
            question="What does the batch size do to accuracy, to the noise of the training "
            "loss, and to the time?",
            draw=draw,
            answer=answer,
            table=table,
            reference="validation accuracies of 0.686, 0.934, 0.950 and 0.969 in 153, 166, 180 "
            "and 112 s, one run after another in PyTorch.",
            verdict=verdict,
        ),
    ),
)
