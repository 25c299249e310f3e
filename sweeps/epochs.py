"""Epochs (6.1.2.2): does a long training overfit?

    jaxexp run epochs

About 8 s on 4 cores. Expect a validation accuracy near 0.9 and three curves that stay together.
"""

import jaxexp as jx
from jaxexp.reproduce.places import problem


def draw(results):
    """The three losses by epoch."""
    return [jx.figures.splits(results, ["loss"])]


def answer(results):
    """Where the validation loss is lowest, and how far it has moved from the training loss."""
    _, trial = jx.select.best(results)
    validation = trial["loss"].sel(split="validation")
    lowest = int(validation.idxmin("epoch"))
    gap = (trial["loss"].sel(split="validation") - trial["loss"].sel(split="train")).sel(
        epoch=[lowest, int(trial["epochs_trained"])]
    )
    at_lowest, at_end = (jx.select.signed(float(each)) for each in gap)
    return (
        f"The validation loss is lowest in epoch {lowest} of {int(trial['epochs_trained'])}, "
        f"{float(validation.min()):.3f} nats. It lies {at_lowest} nats from the training loss "
        f"there, and {at_end} after the last epoch."
    )


__all__ = ["problem", "sweep"]

sweep = jx.Sweep(
    base=jx.MLPTrial(epochs=100),
    questions=(
        jx.Question(
            row="6.1.2.2",
            title="Number of epochs",
            question="When does a longer training stop helping, and does it overfit?",
            draw=draw,
            answer=answer,
            reference="overfitting from about epoch 80.",
        ),
    ),
)
