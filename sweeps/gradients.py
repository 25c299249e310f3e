"""Vanishing gradients (6.2.1.5, 6.2.1.6): how far do they reach into 100 layers of 4 units?

    jaxexp run gradients

About 15 s on 4 cores. Expect none of the three to learn much in 10 epochs: the plain network
stays at the share of the largest country.
"""

import jaxexp as jx

LAYERS = [0, 30, 60, 90, 95, 99]


def plain(results):
    """The network as it is: no batch norm, no shortcuts."""
    return jx.select.where(results, batch_norm=False, residual=False)


def draw(results):
    """Gradient norms by epoch, one panel per network."""
    return [jx.figures.gradient_norms(results, LAYERS)]


def _ends(point):
    """The squared norms in the first and the last hidden layer, averaged over the epochs."""
    norms = jx.select.until_divergence(point, "gradient_norm")
    return (float(norms.sel(layer=layer).mean()) for layer in (LAYERS[0], LAYERS[-1]))


def _reach(name, point):
    """How the gradient changes from the last hidden layer back to the first."""
    first, last = _ends(point)
    if first != first or last != last:
        return f"with {name} no epoch has one"
    how = "falls" if first < last else "grows"
    parts = [_size(norm) for norm in (last, first)]
    return f"with {name}, it {how} from {parts[0]} in layer {LAYERS[-1]} to {parts[1]} in layer 0"


def _size(norm):
    if norm == float("inf"):
        return "more than float32 holds (3e38)"
    return jx.select.number(norm, 1) if norm else "exactly 0"


def _answer(results):
    means = jx.seeds.average(results)
    over = " and the seeds" if jx.seeds.several(results) else ""
    parts = "; ".join(_reach(name, point) for name, point in jx.select.points(means))
    return f"The squared gradient norm (mean over the epochs{over}): {parts}."


def answer_plain(results):
    """Whether they vanish."""
    [(_, point)] = jx.select.points(jx.seeds.average(plain(results)))
    accuracy = jx.select.outcome(point, "accuracy")
    return f"{_answer(plain(results))} The validation accuracy at the end: {accuracy}."


def answer_cure(results):
    """What batch norm and residual connections change."""
    first_axis = jx.select.axes(results)[0]
    return _answer(results.isel({first_axis: slice(1, None)}))


def verdict_plain(results):
    """Whether they vanish: the first layer's are below a thousandth of the last one's."""
    [(_, point)] = jx.select.points(jx.seeds.average(plain(results)))
    first, last = _ends(point)
    vanish = first < last / 1000
    how = "less than a thousandth of" if vanish else f"{jx.select.number(first / last, 2)} times"
    return jx.Verdict(vanish, f"in the first layer they are {how} those in the last.")


def verdict_cure(results):
    """Whether they no longer vanish with batch norm: they grow towards the first layer."""
    normed = jx.select.where(results, batch_norm=True)
    [(_, point)] = jx.select.points(jx.seeds.average(normed))
    first, last = _ends(point)
    how = "grow" if first > last else "fall"
    return jx.Verdict(
        first > last,
        f"with batch norm they {how} from {_size(last)} in the last layer to {_size(first)} in the "
        "first.",
    )


problem = jx.reproduce.places.problem

sweep = jx.Sweep(
    base=jx.MLPTrial(depth=100, width=4, epochs=10),
    axes={("batch_norm", "residual"): [(False, False), (True, False), (False, True)]},
    record=("gradient_norms",),
    questions=(
        jx.Question(
            row="6.2.1.5",
            title="Vanishing gradients",
            question="How large are the weight gradients in the layers of a very deep, very "
            "narrow network?",
            draw=lambda results: draw(plain(results)),
            answer=answer_plain,
            reference="they vanish in the first layers.",
            verdict=verdict_plain,
        ),
        jx.Question(
            row="6.2.1.6",
            title="Batch norm and residual connections",
            question="What do batch norm and, beyond the report, residual connections change?",
            draw=draw,
            answer=answer_cure,
            reference="with batch norm they no longer vanish; they explode.",
            verdict=verdict_cure,
        ),
    ),
)
