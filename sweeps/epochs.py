"""Epochs (6.1.2.2): does a long training overfit?

    jaxexp run epochs

About 8 s on 4 cores. Expect a validation accuracy near 0.9 and three curves that stay together.
"""

import jaxexp as jx

statements = jx.reproduce.statements


def draw(results):
    """The three losses by epoch."""
    return [jx.figures.splits(results, ["loss"])]


def answer(results):
    """Where the validation loss is lowest, and how far it has moved from the training loss."""
    loss = jx.select.until_divergence(results)
    validation = loss.sel(split="validation")
    over = [dim for dim in validation.dims if dim != "epoch"]
    lowest = int(validation.mean(over).idxmin("epoch"))
    last = int(results["epoch"].max())
    gap = validation - loss.sel(split="train")
    at_lowest, at_end = (_signed(gap.sel(epoch=epoch)) for epoch in (lowest, last))
    mean, std = _mean_and_std(validation.sel(epoch=lowest))
    value = jx.select.plus_minus(mean, std, 3)
    turn = verdict(results).reason
    return (
        f"The validation loss is lowest in epoch {lowest} of {last}, {value} nats"
        f"{statements.over_seeds(results)}. Its difference from the training loss is {at_lowest} "
        f"nats there{'' if lowest == last else f', and {at_end} after the last epoch'}. "
        f"{turn[0].upper()}{turn[1:]}"
    )


def _mean_and_std(values):
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else None


def _signed(values):
    mean, std = _mean_and_std(values)
    return jx.select.signed(mean) + ("" if std is None else f" ± {std:.3f}")


def verdict(results):
    """Whether the validation loss rises again by more than chance, from epoch 80 or so.

    By means over tenths of the training, so that no lucky epoch is taken for the turn.
    """
    validation = jx.select.until_divergence(results).sel(split="validation")
    if validation.size == validation.sizes["epoch"] or validation.sizes["epoch"] < 20:
        return jx.Verdict(None, "it takes several seeds and 20 epochs to tell a rise from noise.")
    tenth = validation.sizes["epoch"] // 10
    tenths = validation.coarsen(epoch=tenth, boundary="trim").mean()
    lowest = tenths.mean([dim for dim in tenths.dims if dim != "epoch"]).argmin("epoch")
    rise = tenths.isel(epoch=-1) - tenths.isel(epoch=int(lowest))
    mean, std = _mean_and_std(rise)
    start = int(lowest) * tenth + 1
    where = f"from epochs {start} to {start + tenth - 1} to the last {tenth}"
    if mean <= 2 * (std or 0) / rise.size**0.5:  # two standard errors
        how = "is lowest in the last tenth of the epochs" if mean == 0 else (
            f"changes by {_signed(rise)} nats {where}, within the spread"
        )  # fmt: skip
        return jx.Verdict(False, f"no overfitting is seen: the validation loss {how}.")
    return jx.Verdict(
        70 <= start + tenth / 2 <= 90,
        f"the validation loss rises by {_signed(rise)} nats {where}.",
    )


problem = jx.reproduce.places.problem

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
            verdict=verdict,
        ),
    ),
)
