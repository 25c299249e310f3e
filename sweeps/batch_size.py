"""Batch size (6.1.2.4): what do small and large batches buy, and what do they cost?

    jaxexp run batch_size

About 20 s, one program after another, since time is part of the question. Expect test accuracies
of about 0.8 after one epoch at batch 1, 0.9 at 16 and 128, and 0.65 at 1024.
"""

import pandas as pd

import jaxexp as jx
from jaxexp.reproduce.places import problem

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
    accuracy = jx.select.final(results, "accuracy")
    ours = pd.DataFrame(
        {
            "batch": results["batch_size"].values,
            "epochs": results["epochs"].values,
            "train acc": accuracy.sel(split="train").values,
            "val acc": accuracy.sel(split="validation").values,
            "test acc": accuracy.sel(split="test").values,
            "seconds": results["seconds"].values,
        }
    )
    both = ours.merge(REPORT, how="left", on=["batch", "epochs"], suffixes=("", " (report)"))
    measured = [f"{name}{whose}" for name in ours.columns[2:] for whose in ("", " (report)")]
    narrow = ["report" if name.endswith("(report)") else name for name in measured]
    return both[["batch", "epochs", *measured]].set_axis(["batch", "epochs", *narrow], axis=1)


def answer(results):
    """The best and the noisiest batch size, and the time."""
    best, trial = jx.select.best(results, "accuracy")
    noise = [
        (jx.figures.noise(t["step_loss"].dropna("step").values), name)
        for name, t in jx.select.points(results)
        if jx.select.status(t) == "finished"
    ]
    noisiest, calmest = max(noise), min(noise)
    return (
        f"The highest validation accuracy after the last epoch is "
        f"{jx.select.outcome(trial, 'accuracy')}, with {best}. "
        f"The training loss is noisiest with {noisiest[1]} (±{noisiest[0]:.2f} nats about its "
        f"running mean) and calmest with {calmest[1]} (±{calmest[0]:.2f}). Together the trials "
        f"took {float(results['seconds'].sum()):.1f} s of training, one after another. The report "
        "does not say which learning rate, width or batch norm its rows used; ours use the "
        "defaults (learning rate 0.001, width 16, no batch norm), so the accuracies are not the "
        "same experiment."
    )


__all__ = ["problem", "sweep"]

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
        ),
    ),
)
