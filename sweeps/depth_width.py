"""Depth and width (6.2.1.1 to 6.2.1.4): which shape of network is best, and which is worst?

    jaxexp run depth_width

About 20 s on 4 cores. Expect test accuracies from about 0.72 (one layer) to 0.93 (width 64).
"""

import jaxexp as jx

statements = jx.reproduce.statements


def best(results):
    """The best shape by its mean validation loss, and its place among the shapes."""
    ranked = jx.select.rank(jx.seeds.average(results))
    return int(ranked.index[0])


def worst(results):
    """The place of the worst shape, a diverged one if there is any."""
    return int(jx.select.rank(jx.seeds.average(results)).index[-1])


def _losses_and_regions(results, place):
    _, mean = jx.select.point(jx.seeds.average(results), place)
    _, trial = jx.select.point(jx.seeds.typical(results), place)
    colours = jx.figures.class_colours(results)  # the same on both maps
    return [jx.figures.splits(mean, ["loss"]), jx.figures.regions(trial, colours)]


def table(results):
    """All shapes, the best first."""
    return jx.select.table(jx.seeds.average(results))


def answer_best(results):
    """The best shape by validation loss, and how clearly it leads."""
    _, point = jx.select.point(jx.seeds.average(results), best(results))
    return f"{jx.seeds.best_in_words(results)} {_test(point)}"


def answer_worst(results):
    """The worst shape by validation loss."""
    name, point = jx.select.point(jx.seeds.average(results), worst(results))
    if jx.select.status(point) != "finished":
        return f"The worst of the grid is {name}."
    return (
        f"The worst by validation loss after the last epoch is {name}, at "
        f"{jx.select.outcome(point)}{statements.over_seeds(results)}. {_test(point)}"
    )


def _test(point):
    if jx.select.status(point) != "finished":
        return ""
    loss, accuracy = (jx.select.outcome(point, own, "test") for own in ("loss", "accuracy"))
    return f"Its test loss is {loss} and its test accuracy {accuracy}."


def verdict_best(results):
    """Whether the best validation loss is about 0.25."""
    _, point = jx.select.point(jx.seeds.average(results), best(results))
    return statements.near(point, 0.25, within=0.05)


def verdict_worst(results):
    """Whether the worst validation loss is about 1.0."""
    _, point = jx.select.point(jx.seeds.average(results), worst(results))
    return statements.near(point, 1.0, within=0.1)


def by_depth(results):
    """The trials of width 16."""
    return jx.select.where(results, width=16).sortby("depth")


def by_width(results):
    """The trials of depth 6."""
    return jx.select.where(results, depth=6).sortby("width")


def _answer_along(results):
    return (
        f"{jx.seeds.best_in_words(results, 'accuracy')} "
        f"Validation accuracies after the last epoch: {statements.listed(results, 'accuracy')}."
    )


SHAPES = [(1, 16), (2, 16), (6, 16), (10, 16), (6, 8), (6, 32), (6, 64)]

problem = jx.reproduce.places.problem

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
            draw=lambda results: _losses_and_regions(results, best(results)),
            answer=answer_best,
            table=table,
            reference="a loss of about 0.25.",
            verdict=verdict_best,
        ),
        jx.Question(
            row="6.2.1.2",
            title="The worst shape",
            question="Which has the highest validation loss, and how does it divide the map?",
            draw=lambda results: _losses_and_regions(results, worst(results)),
            answer=answer_worst,
            reference="a loss of about 1.0.",
            verdict=verdict_worst,
        ),
        jx.Question(
            row="6.2.1.3",
            title="Depth",
            question="How does the accuracy depend on the number of hidden layers of 16 units?",
            draw=lambda results: [jx.figures.final_by(by_depth(results), "depth", "accuracy")],
            answer=lambda results: _answer_along(by_depth(results)),
            reference="best at 2 hidden layers.",
            verdict=lambda results: statements.best_at(
                by_depth(results), "accuracy", "depth", 2, "2 hidden layers"
            ),
        ),
        jx.Question(
            row="6.2.1.4",
            title="Width",
            question="How does the accuracy depend on the width of 6 hidden layers?",
            draw=lambda results: [jx.figures.final_by(by_width(results), "width", "accuracy")],
            answer=lambda results: _answer_along(by_width(results)),
            reference="best at about 30 units.",
            verdict=lambda results: statements.best_at(
                by_width(results), "accuracy", "width", 32, "about 30 units"
            ),
        ),
    ),
)
