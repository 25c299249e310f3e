"""Implicit representation (6.2.1.7): do sines of the coordinates help?

    jaxexp run sines

About 10 s on 4 cores. Expect validation accuracies of about 0.9 from the raw coordinates and
0.97 from their sines.
"""

import jaxexp as jx
from jaxexp.reproduce.places import problem


def draw(results):
    """Losses and accuracies, and the decision regions of both."""
    return [
        jx.figures.splits(results, ["loss", "accuracy"], mark_best=False),
        jx.figures.regions(results),
    ]


def answer(results):
    """Both ends, side by side."""
    parts = []
    for name, trial in jx.select.points(results):
        if jx.select.status(trial) != "finished":
            parts.append(name)  # which says so
            continue
        loss, accuracy = (
            float(jx.select.final(trial, quantity).sel(split="test"))
            for quantity in ("loss", "accuracy")
        )
        parts.append(f"{name}: test loss {loss:.2f} nats, test accuracy {accuracy:.3f}")
    return "After the last epoch, " + "; ".join(parts) + "."


__all__ = ["problem", "sweep"]

sweep = jx.Sweep(
    base=jx.MLPTrial(epochs=50),
    axes={"features": ["raw", "sines"]},
    record=("predictions",),
    questions=(
        jx.Question(
            row="6.2.1.7",
            title="Implicit representation",
            question="What changes if each coordinate enters through sin(a·x), a = 0.1, 0.2 … 1.0?",
            draw=draw,
            answer=answer,
            reference="the loss goes towards 0 and the accuracy towards 1.",
        ),
    ),
)
