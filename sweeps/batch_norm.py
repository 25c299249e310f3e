"""Batch norm (6.1.2.3): what does it change in a network of ordinary depth?

    jaxexp run batch_norm

About 8 s on 4 cores. Expect validation accuracies of about 0.91, and 0.95 with batch norm.
"""

import jaxexp as jx

statements = jx.reproduce.statements


def draw(results):
    """Losses and accuracies by epoch, without and with batch norm."""
    return [jx.figures.splits(results, ["loss", "accuracy"], mark_best=False)]


def _described(results):
    """Of either network, by seed: the accuracy after the first epoch, and its change an epoch."""
    accuracy = jx.select.until_divergence(results, "accuracy").sel(split="validation")
    return accuracy.isel(epoch=0), abs(accuracy.diff("epoch")).mean("epoch")


def answer(results):
    """First and last epoch, and how much the accuracy jumps from epoch to epoch."""
    means = jx.seeds.average(results)
    ends = "; ".join(
        f"with {name}, {jx.select.outcome(point, 'accuracy')}"
        if jx.select.status(point) == "finished"
        else name
        for name, point in jx.select.points(means)
    )
    first, jumps = (_averaged(values) for values in _described(results))  # means and spreads
    parts = []
    for name, point in jx.select.points(means):
        if jx.select.status(point) != "finished":
            parts.append(f"the network with {name} has no accuracies to compare")
            continue
        at = {"batch_norm": point["batch_norm"]}
        start, jump = (
            jx.select.plus_minus(float(mean.sel(at)), float(std.sel(at)), digits)
            for (mean, std), digits in ((first, 3), (jumps, 4))
        )
        parts.append(
            f"with {name}, it is {start} after the first epoch, and changes by {jump} an epoch"
        )
    return (
        f"The validation accuracy at the end{statements.over_seeds(results)}: {ends}. "
        f"{'; '.join(parts).capitalize()}."
    )


def _averaged(values):
    over = [dim for dim in values.dims if dim != "batch_norm"]
    return values.mean(over), values.std(over, ddof=1) if over else values * float("nan")


def verdict(results):
    """Whether batch norm starts higher and is steadier, with how many of the seeds."""
    if sorted(jx.select.distinct(results, "batch_norm")) != [False, True]:
        return jx.Verdict(None, "this run has no network without, or none with batch norm.")
    first, jumps = _described(results)
    higher = first.sel(batch_norm=True) > first.sel(batch_norm=False)
    steadier = jumps.sel(batch_norm=True) < jumps.sel(batch_norm=False)
    counted = [f"{int(found.sum())} of {found.size}" for found in (higher, steadier)]
    return jx.Verdict(
        bool(higher.mean() > 0.5 and steadier.mean() > 0.5),
        f"with batch norm the accuracy starts higher with {counted[0]} seeds, and changes less "
        f"from epoch to epoch with {counted[1]}.",
    )


problem = jx.reproduce.places.problem

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
            verdict=verdict,
        ),
    ),
)
