"""Learning rate (6.1.2.1): which rates train, and which wander or stand still?

    jaxexp run learning_rate

About 10 s on 4 cores. Expect validation accuracies near 0.9 at rates of 1e-2 and 1e-3, and at 1 a
loss that wanders about the entropy of the labels.
"""

import jaxexp as jx
from jaxexp.reproduce.places import problem


def draw(results):
    """Validation loss by epoch, beside the loss of a network that ignores its input."""
    prior = (results.attrs["label_entropy"], "entropy of the labels")
    return [jx.figures.curves(results, "loss", "validation", reference=prior)]


def answer(results):
    """Which rate is best, and where the others end."""
    ranked = jx.select.rank(results, "loss")
    best, *rest = zip(ranked["trial"], ranked["value"], ranked["status"], strict=True)
    others = "; ".join(
        f"{name} at {loss:.2f}" if status == "finished" else f"{name} {status}"
        for name, loss, status in rest
    )
    return (
        f"The lowest validation loss after the last epoch is {best[1]:.2f} nats, with {best[0]}. "
        f"The others end: {others or 'there are none'}. "
        f"A network that ignores its input stands at {results.attrs['label_entropy']:.2f} nats."
    )


__all__ = ["problem", "sweep"]

sweep = jx.Sweep(
    base=jx.MLPTrial(epochs=50),
    axes={"learning_rate": [1, 1e-2, 1e-3, 1e-5]},
    questions=(
        jx.Question(
            row="6.1.2.1",
            title="Learning rate",
            question="How does the learning rate change the course of the validation loss?",
            draw=draw,
            answer=answer,
            reference="at a rate of 1 the loss wanders around 3.3; lower rates are stable.",
        ),
    ),
)
