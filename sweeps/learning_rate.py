"""Learning rate (6.1.2.1): which rates train, and which wander or stand still?

    jaxexp run learning_rate

About 10 s on 4 cores. Expect validation accuracies near 0.9 at rates of 1e-2 and 1e-3, and at 1 a
loss that wanders about the entropy of the labels.
"""

import jaxexp as jx

statements = jx.reproduce.statements


def draw(results):
    """Validation loss by epoch, beside the loss of a network that ignores its input."""
    prior = (results.attrs["label_entropy"], "entropy of the labels")
    return [jx.figures.curves(results, "loss", "validation", reference=prior)]


def answer(results):
    """Which rate is best and how clearly, and where the others end."""
    entropy = results.attrs["label_entropy"]
    return (
        f"{jx.seeds.best_in_words(results)} "
        f"After the last epoch: {statements.listed(results, 'loss')}. "
        f"A network that ignores its input stands at {entropy:.2f} nats."
    )


def verdict(results):
    """Whether a rate of 1 learns nothing, and every lower one does."""
    rates = jx.select.distinct(results, "learning_rate")
    if 1.0 not in rates or len(rates) < 2:
        return jx.Verdict(None, "this run has no rate of 1, or nothing beside it.")
    entropy = results.attrs["label_entropy"]
    loss = jx.select.until_divergence(results).sel(split="validation")
    late = loss.isel(epoch=slice(results.sizes["epoch"] // 2, None))
    level = late.mean([dim for dim in late.dims if dim != "learning_rate"])
    at_one = float(level.sel(learning_rate=1.0))
    learned = [rate for rate in rates if float(level.sel(learning_rate=rate)) < 0.9 * entropy]
    lower = [rate for rate in rates if rate < 1]
    return jx.Verdict(
        at_one >= 0.9 * entropy and learned == lower,
        f"at a rate of 1 the loss of the second half is {at_one:.2f} on average, where a network "
        f"that ignores its input stands ({entropy:.2f}; in the report, on its own places, it is "
        f"3.3); {len(learned)} of {len(lower)} lower rates fall below.",
    )


problem = jx.reproduce.places.problem

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
            verdict=verdict,
        ),
    ),
)
