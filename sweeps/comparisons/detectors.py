"""Detectors of generated images (7.6, 7.7): which baseline is best, and what does it see?

The sweeps of rows 7.1 to 7.5 side by side. Runs are ranked by test accuracy, as in the report,
which flatters a baseline of many runs.
"""

import json

import jaxexp as jx

NAMES = {
    "boosted_trees": "XGBoost",
    "scratch": "From scratch",
    "probing": "Linear probing",
    "probing_sklearn": "Linear probing, scikit-learn",
    "fine_tuning": "Fine-tuning",
}
# The report's test accuracies, and the learning rates of the trained ones.
REPORT = {
    "XGBoost": 0.735,
    "From scratch": 0.5225,
    "Linear probing": 0.7250,
    "Linear probing, scikit-learn": 0.7300,
    "Fine-tuning": 0.7750,
}
REPORT_RATES = {"From scratch": 1e-2, "Linear probing": 1e-2, "Fine-tuning": 1e-3}
HEADS = {
    "train": "train acc",
    "validation": "val acc",
    "test": "test acc",
    "± test": "± test acc",
    "loss": "loss (nats)",
}


def named(results):
    """The results by the name of the baseline."""
    return {NAMES[sweep]: dataset for sweep, dataset in results.items()}


def chance(results):
    """The share of the larger class among the test images."""
    ones = float(next(iter(results.values()))["test_label"].mean())
    return max(ones, 1 - ones)


def draw_ranking(results):
    """The best of each baseline, and accuracies by learning rate."""
    level = chance(results)
    figures = [jx.figures.ranking(jx.compare.baselines(named(results)), REPORT, level)]
    runs = jx.compare.runs(named(results))
    if "learning_rate" in runs:
        report = {name: (rate, REPORT[name]) for name, rate in REPORT_RATES.items()}
        figures.append(jx.figures.accuracy_by(runs, "learning_rate", report, level))
    return figures


def tables(results):
    """The best setting of each baseline, and all runs, beside the report's test accuracies.

    A diverged run has no rank.
    """
    best = jx.compare.baselines(named(results))
    best.insert(list(best).index("test") + 1, "report", best["baseline"].map(REPORT))
    best = best.rename(columns={"spread": "± test"})
    best.insert(list(best).index("test") + 1, "± test", best.pop("± test"))
    if (best["seeds"] <= 1).all():
        best = best.drop(columns=["seeds", "± test"])
    runs = jx.compare.runs(named(results))
    report = [_report(row) for row in runs.to_dict("records")]
    runs.insert(list(runs).index("test") + 1, "report", report)
    runs.insert(0, "rank", runs.index.where(runs["status"] == "finished").astype("Int64"))
    diverged = runs["status"].str.removeprefix("diverged ").replace("finished", "")
    if diverged.any():
        runs.insert(list(runs).index("train"), "diverged", diverged)
    runs = runs.drop(columns=["run", "place", "status"]).reset_index(drop=True)
    return {
        "The best setting of each baseline by test accuracy, its means over the seeds": _heads(
            best
        ),
        "All runs, best first; accuracies and test loss after the epoch": _heads(runs),
    }


def _report(run):
    """What the report measured with the same baseline at the same rate."""
    rate = REPORT_RATES.get(run["baseline"])
    same = rate is None or abs(run.get("learning_rate", rate) / rate - 1) < 1e-6
    return REPORT[run["baseline"]] if same else float("nan")


def _heads(table):
    return table.rename(columns=lambda name: HEADS.get(name, name.replace("_", " ")))


def answer_ranking(results):
    """The baselines, best first, and what chance gives."""
    best = jx.compare.baselines(named(results))
    best = best[best["test"].notna()]
    parts = [_with_spread(row) for row in best.to_dict("records")]
    if len(parts) < 2:
        return f"The baselines of which a setting finished: {'; '.join(parts) or 'none'}."
    images = next(iter(results.values())).sizes["image"]
    return (
        f"By the mean test accuracy of its best setting, the best baseline is {parts[0]}, then "
        f"{'; then '.join(parts[1:])}. Always naming the larger class gives "
        f"{chance(results):.4f}, and one of the {images} test images counts {1 / images:.4f}. "
        "Settings are chosen by test accuracy, as in the report, which flatters a baseline of many."
    )


def _with_spread(row):
    """A baseline and its mean test accuracy: "fine-tuning (0.7330 ± 0.0260, 3 seeds)"."""
    value = jx.select.plus_minus(row["test"], row["spread"])
    seeds = f", {row['seeds']} seeds" if row["seeds"] > 1 else ""
    return f"{row['baseline']} ({value}{seeds})"


def verdict_ranking(results):
    """Whether fine-tuning is best and training from scratch worst, as in the report."""
    best = jx.compare.baselines(named(results))
    order = best.loc[best["test"].notna(), "baseline"].tolist()
    if {"Fine-tuning", "From scratch"} - set(order):
        return jx.Verdict(None, "this run has not both fine-tuning and training from scratch.")
    agrees = (order[0], order[-1]) == ("Fine-tuning", "From scratch")
    return jx.Verdict(agrees, f"best is {order[0]}, worst {order[-1]}.")


def extremes(results):
    """The best and the worst run that finished, each as its words and its dataset."""
    runs = jx.compare.finished(jx.compare.runs(named(results)))
    found = []
    for run in (runs.iloc[0], runs.iloc[-1]):
        trials = list(jx.select.points(named(results)[run["baseline"]]))
        found.append((run["run"], trials[run["place"]][1]))
    return found


def samples(results):
    """What the best run gets right and the worst wrong, or None if fewer than two finished."""
    if len(jx.compare.finished(jx.compare.runs(named(results)))) < 2:
        return None
    (_, best), (_, worst) = extremes(results)
    return jx.compare.disagreements(best, worst)


def draw_samples(results):
    """The images in a row, each with its class and the probabilities that it is given."""
    found = samples(results)
    if found is None or found.images.empty:
        return []
    dataset = next(iter(results.values()))
    classes = json.loads(dataset.attrs["classes"])
    images = found.images
    return [
        jx.figures.pictures(
            [jx.reproduce.images.picture(dataset.attrs["images"], file) for file in images.index],
            [classes[label] for label in images["label"]],
            [
                f"best: {right:.3f}\nworst: {wrong:.3f}"
                for right, wrong in zip(images["right"], images["wrong"], strict=True)
            ],
            "above: the true class; below: the probability that either run gives to it",
        )
    ]


def table_samples(results):
    """The same in numbers."""
    found = samples(results)
    if found is None:
        return {}
    classes = json.loads(next(iter(results.values())).attrs["classes"])
    shown = found.images.round(3).assign(label=[classes[label] for label in found.images["label"]])
    heads = {"label": "class", "right": "its probability by the best", "wrong": "by the worst"}
    return shown.rename(columns=heads)


def answer_samples(results):
    """Which two runs these are, and how many such images there are."""
    found = samples(results)
    if found is None:
        return "Fewer than two runs finished."
    (best, _), (worst, _) = extremes(results)
    shown = len(found.images)
    which = (
        f"The {shown} shown are those whose true class gains most probability."
        if shown < found.found
        else f"Fewer than five: {'all are shown' if shown else 'none can be shown'}."
    )
    return (
        f"Of {found.total} test images, the best run ({best}) gets {found.found} right that the "
        f"worst of those that finished ({worst}) gets wrong. {which}"
    )


comparison = jx.Comparison(
    sweeps=tuple(NAMES),
    questions=(
        jx.Question(
            row="7.6",
            title="Ranking",
            question="Which of all runs are best, which is worst, by test accuracy?",
            draw=draw_ranking,
            answer=answer_ranking,
            table=tables,
            reference="fine-tuning is best (0.775), then XGBoost (0.735), scikit-learn on the "
            "features (0.730) and linear probing (0.725); training from scratch is worst (0.5225).",
            verdict=verdict_ranking,
        ),
        jx.Question(
            row="7.7",
            title="Samples that the best gets right and the worst gets wrong",
            question="Which test images does the best run get right and the worst get wrong?",
            draw=draw_samples,
            answer=answer_samples,
            table=table_samples,
            reference="five such images.",
        ),
    ),
)
