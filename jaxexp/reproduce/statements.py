"""Sentences and verdicts that several rows of the report share."""

from typing import TYPE_CHECKING

import jaxexp as jx

if TYPE_CHECKING:
    import xarray as xr


def over_seeds(results: "xr.Dataset") -> str:
    """How the numbers of an answer were averaged; "" for one seed."""
    if not jx.seeds.several(results):
        return ""
    return jx.select.mean_over(jx.seeds.in_words(results))


def listed(results: "xr.Dataset", metric: str, split: str | None = None) -> str:
    """Every setting and its outcome: "width 8 at 0.901 ± 0.004, width 16 at …"."""
    return ", ".join(
        f"{name} at {jx.select.outcome(point, metric, split)}"
        if jx.select.status(point) == "finished"
        else name  # the name says how it ended
        for name, point in jx.select.points(jx.seeds.average(results))
    )


def final_and_spread(point: "xr.Dataset", metric: str, split: str) -> tuple[float, float]:
    """A setting's final metric, and its standard deviation over the seeds (0 for one seed)."""
    final = float(jx.select.final(point, metric).sel(split=split))
    std = jx.select.spread(point, metric)
    return final, 0.0 if std is None else float(std.sel(split=split).fillna(0))


def near(point: "xr.Dataset", expected: float, within: float) -> jx.Verdict:
    """Whether the validation loss of a setting agrees with the one that the report gives.

    `within` is how precisely the report can be read; two standard deviations are added to it.
    """
    if jx.select.status(point) != "finished":
        return jx.Verdict(False, "every trial diverged.")
    loss, spread = final_and_spread(point, "loss", "validation")
    agrees = abs(loss - expected) <= within + 2 * spread
    ours = jx.select.outcome(point, digits=2)
    return jx.Verdict(agrees, f"a validation loss of {ours}, against about {expected:g}.")


def best_at(
    results: "xr.Dataset", metric: str, name: str, expected: float, said: str
) -> jx.Verdict:
    """Whether the setting with the best `name` is the report's, or not clearly another one."""
    if not any(jx.select.same(own, expected) for own in jx.select.distinct(results, name)):
        return jx.Verdict(None, f"this run has no trial with {name} {expected:g}.")
    _, best = jx.select.best(jx.seeds.average(results), metric)
    if jx.select.status(best) != "finished":
        return jx.Verdict(None, "every trial diverged.")
    value = best[name].item()
    if jx.select.same(value, expected):
        return jx.Verdict(True, f"both are best at {said}.")
    lead = jx.seeds.lead(results, metric, over={name: expected})
    ours = f"ours is best at {name} {jx.select.number(value)}"
    if lead is None or not jx.seeds.several(results):
        return jx.Verdict(None, f"{ours}; one seed cannot tell whether that is more than chance.")
    if not lead.clear:
        return jx.Verdict(None, f"{ours}, but its lead over {said} is within the spread.")
    return jx.Verdict(False, f"{ours}, clearly ahead of {said}.")
