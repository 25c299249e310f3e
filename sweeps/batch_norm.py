"""Batch norm (6.1.2.3): what does it change in a network of ordinary depth?

    jaxexp run batch_norm

About 8 s on 4 cores. Expect validation accuracies of about 0.91, and 0.95 with batch norm.
"""

import jaxexp as jx
from jaxexp.reproduce.places import problem


def draw(results):
    """Losses and accuracies by epoch, without and with batch norm."""
    return [jx.figures.splits(results, ["loss", "accuracy"], mark_best=False)]


def answer(results):
    """First and last epoch, and how much the validation loss jumps from epoch to epoch."""
    parts = []
    for name, trial in jx.select.points(results):
        if jx.select.status(trial) != "finished":
            parts.append(f"the network with {name} has no losses to compare")
            continue
        loss = trial["loss"].sel(split="validation").values
        accuracy = trial["accuracy"].sel(split="validation").values
        jump = abs(loss[1:] - loss[:-1]).mean() if len(loss) > 1 else 0
        parts.append(
            f"with {name}, the validation accuracy goes from {accuracy[0]:.3f} after the first "
            f"epoch to {accuracy[-1]:.3f}, and the loss changes by {jump:.3f} nats an epoch"
        )
    return "; ".join(parts).capitalize() + "."


__all__ = ["problem", "sweep"]

sweep = jx.Sweep(
    base=jx.MLPTrial(epochs=50),
    axes={"batch_norm": [False, True]},
    questions=(
        jx.Question(
            row="6.1.2.3",
            title="Batch norm",
            question="How does batch norm change losses and accuracies?",
            draw=draw,
            answer=answer,
            reference="with batch norm the accuracy starts higher, then is steadier.",
        ),
    ),
)
