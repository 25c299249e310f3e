"""Implicit representation (6.2.1.7): do sines of the coordinates help?

    jaxexp run sines

About 10 s on 4 cores. Expect validation accuracies of about 0.9 from the raw coordinates and
0.97 from their sines.
"""

import jaxexp as jx

statements = jx.reproduce.statements


def draw(results):
    """Losses and accuracies, and the decision regions of both."""
    return [
        jx.figures.splits(results, ["loss", "accuracy"], mark_best=False),
        jx.figures.regions(results),
    ]


def answer(results):
    """Both ends, side by side."""
    parts = []
    for name, point in jx.select.points(jx.seeds.average(results)):
        if jx.select.status(point) != "finished":
            parts.append(name)  # which says so
            continue
        loss, accuracy = (jx.select.outcome(point, own, "test") for own in ("loss", "accuracy"))
        parts.append(f"{name}: test loss {loss}, test accuracy {accuracy}")
    lead = jx.seeds.lead(results, "accuracy", "test")
    clear = ""
    if lead is not None:
        won = f"{lead.best} has the higher test accuracy with {lead.wins} of {lead.seeds} seeds"
        clear = f" {won[0].upper()}{won[1:]}, by {lead.interval}."
    return f"At the end{statements.over_seeds(results)}: {'; '.join(parts)}.{clear}"


def verdict(results):
    """Whether sines bring the loss towards 0 and the accuracy towards 1: half way at least."""
    means = jx.seeds.average(results)
    if not {"raw", "sines"} <= set(jx.select.distinct(results, "features")):
        return jx.Verdict(None, "this run has not both features.")
    loss, accuracy = (
        jx.select.final(means, own).sel(split="validation") for own in ("loss", "accuracy")
    )
    left = float(loss.sel(features="sines") / loss.sel(features="raw"))
    wrong = float((1 - accuracy.sel(features="sines")) / (1 - accuracy.sel(features="raw")))
    return jx.Verdict(
        left < 0.5 and wrong < 0.5,
        f"sines leave {100 * left:.0f} % of the validation loss and {100 * wrong:.0f} % of the "
        "errors.",
    )


problem = jx.reproduce.places.problem

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
            verdict=verdict,
        ),
    ),
)
