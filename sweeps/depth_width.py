"""Depth and width (6.2.1.1 to 6.2.1.4): which shape of network is best, and which is worst?

    jaxexp run depth_width

About 20 s on 4 cores. Expect test accuracies from about 0.72 (one layer) to 0.93 (width 64).
"""

import jaxexp as jx
from jaxexp.reproduce.places import problem


def draw_best(results):
    """Losses by epoch and decision regions of the best shape."""
    return _losses_and_regions(results, jx.select.best(results)[1])


def table(results):
    """All shapes, the best first."""
    ranked = jx.select.rank(results).drop(columns="trial")
    return ranked.rename(columns={"value": "validation loss (nats)"})


def draw_worst(results):
    """Losses by epoch and decision regions of the worst shape."""
    return _losses_and_regions(results, jx.select.worst(results)[1])


def _losses_and_regions(results, trial):
    colours = jx.figures.class_colours(results)  # the same on both maps
    return [jx.figures.splits(trial, ["loss"]), jx.figures.regions(trial, colours)]


def answer_best(results):
    """The best shape by validation loss."""
    return _describe("best", *jx.select.best(results))


def answer_worst(results):
    """The worst shape by validation loss."""
    return _describe("worst", *jx.select.worst(results))


def _describe(place, name, trial):
    if jx.select.status(trial) != "finished":
        return f"The {place} of the grid is {name}."
    loss, accuracy = (jx.select.final(trial, quantity) for quantity in ("loss", "accuracy"))
    return (
        f"The {place} by validation loss after the last epoch is {name}, at "
        f"{float(loss.sel(split='validation')):.2f} nats. Its test loss is "
        f"{float(loss.sel(split='test')):.2f} and its test accuracy "
        f"{float(accuracy.sel(split='test')):.3f}."
    )


def by_depth(results):
    """The trials of width 16."""
    return jx.select.where(results, width=16).sortby("depth")


def by_width(results):
    """The trials of depth 6."""
    return jx.select.where(results, depth=6).sortby("width")


def _answer_along(results, axis):
    _, trial = jx.select.best(results, "accuracy")
    parts = ", ".join(
        f"{jx.select.outcome(point, 'accuracy')} at {int(point[axis])}"
        for _, point in jx.select.points(results)
    )
    if jx.select.status(trial) != "finished":
        return f"By {axis}: {parts}."
    return f"Best by validation accuracy is {axis} {int(trial[axis])}. By {axis}: {parts}."


SHAPES = [(1, 16), (2, 16), (6, 16), (10, 16), (6, 8), (6, 32), (6, 64)]

__all__ = ["problem", "sweep"]

sweep = jx.Sweep(
    base=jx.MLPTrial(epochs=50),
    axes={("depth", "width"): SHAPES},
    record=("predictions",),
    questions=(
        jx.Question(
            row="6.2.1.1",
            title="The best shape",
            question="Which of the seven shapes has the lowest validation loss, and how does it "
            "divide the map?",
            draw=draw_best,
            answer=answer_best,
            table=table,
            reference="a loss of about 0.25.",
        ),
        jx.Question(
            row="6.2.1.2",
            title="The worst shape",
            question="Which has the highest validation loss, and how does it divide the map?",
            draw=draw_worst,
            answer=answer_worst,
            reference="a loss of about 1.0.",
        ),
        jx.Question(
            row="6.2.1.3",
            title="Depth",
            question="How does the accuracy depend on the number of hidden layers of 16 units?",
            draw=lambda results: [jx.figures.final_by(by_depth(results), "depth", "accuracy")],
            answer=lambda results: _answer_along(by_depth(results), "depth"),
            reference="best at 2 hidden layers.",
        ),
        jx.Question(
            row="6.2.1.4",
            title="Width",
            question="How does the accuracy depend on the width of 6 hidden layers?",
            draw=lambda results: [jx.figures.final_by(by_width(results), "width", "accuracy")],
            answer=lambda results: _answer_along(by_width(results), "width"),
            reference="best at about 30 units.",
        ),
    ),
)
