"""Sections of a page: the questions of sweeps and comparisons, answered from results.

What a question's own functions raise never loses the page: the section says which failed, and
where, and so does its `errors`.
"""

import itertools
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from jaxexp.base.errors import UserError
from jaxexp.report import figures
from jaxexp.report.page import Section
from jaxexp.results import select
from jaxexp.results.select import count, decimals, metric_words, number, with_unit, words
from jaxexp.spec.sweep import Comparison, Question, Sweep

Keep = Callable[[str, bytes], None]  # is given each figure: its name, and the PNG
BEST = 20  # trials in the table of a sweep without questions
PACKAGE = Path(__file__).parents[1]


def of_sweep(sweep: Sweep, dataset: xr.Dataset, keep: Keep) -> list[Section]:
    """Each question of a sweep, or `in_general` where it asks none."""
    if not sweep.questions:
        return [in_general(dataset, keep, sweep.name)]
    rows = [question.row for question in sweep.questions]
    shared = ""
    if len(rows) > 1:
        shared = f"one sweep that answers rows {', '.join(rows[:-1])} and {rows[-1]}"
    return [_section(q, dataset, {"": dataset}, keep, shared=shared) for q in sweep.questions]


def of_comparisons(
    datasets: Mapping[str, xr.Dataset],
    keep: Keep,
    comparisons: Sequence[Comparison],
) -> list[Section]:
    """Each question that several sweeps answer, given the results of a run by sweep."""
    sections = []
    for comparison in comparisons:
        own = {name: datasets[name] for name in comparison.sweeps if name in datasets}
        absent = [words(name) for name in comparison.sweeps if name not in own]
        remark = f" Not in this run, and so left out: {', '.join(absent)}." if absent else ""
        if len(own) > 1:
            sections += [_section(q, own, own, keep, remark) for q in comparison.questions]
    return sections


def _section(
    question: Question, results: Any, datasets: Mapping[str, xr.Dataset], keep: Keep,
    remark: str = "", shared: str = "",
) -> Section:  # fmt: skip
    """What a question says of `results`, which are those of the named `datasets`."""
    lost = all((ds["diverged_epoch"] > 0).all() for ds in datasets.values())
    errors: list[str] = []
    answer = "Every trial diverged."
    if not lost:
        answer = _guarded(question, "answer", results, _text, errors) or (
            "There is no answer: the function that makes it failed, as noted below."
        )
    drawn = _guarded(question, "draw", results, _images, errors) or []
    tables = _guarded(question, "table", results, _tables, errors) or {}
    return Section(
        row=question.row,
        title=question.title,
        question=question.question,
        answer=answer + remark,
        figures=_keep_all(
            drawn, f"{question.title}, figure", question.question, question.row, keep
        ),
        tables=tables,
        reference=question.reference or "",
        seconds=_seconds(datasets),
        shared=shared,
        quick=max((int(ds.attrs.get("quick", 0)) for ds in datasets.values()), default=0),
        notes=[*errors, *_notes(datasets)],
        errors=errors,
    )


def _seconds(datasets: Mapping[str, xr.Dataset]) -> float:
    return sum(float(ds["seconds"].sum()) for ds in datasets.values() if "seconds" in ds)


def _keep_all(
    drawn: Sequence[bytes], alt: str, what: str, row: str, keep: Keep
) -> list[tuple[bytes, str]]:
    """Hand each figure to `keep`, and say in words what it shows."""
    for i, png in enumerate(drawn, 1):
        keep(f"{row}-{i}.png", png)
    return [(png, f"{alt} {i}: {what}") for i, png in enumerate(drawn, 1)]


def _guarded(
    question: Question, part: str, results: Any, check: Callable[[Any], Any], errors: list[str]
) -> Any:
    """What the question's function `part` makes of the results, or None if it raises."""
    function = getattr(question, part)
    if function is None:
        return None
    try:
        return check(function(results))
    except Exception as error:  # whatever the code of a user may raise
        errors.append(f"`{part}` of question {question.row} failed: {_describe(error, function)}")
        return None


def _describe(error: Exception, function: Callable) -> str:
    """The error in one line, with the user's own file and line."""
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    message = " ".join(message.split()).removesuffix(":")
    frames = traceback.extract_tb(error.__traceback__)
    home = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [f for f in frames if f.filename == home] or [f for f in frames if _is_own(f.filename)]
    if not own:
        return message
    return f"{message} ({Path(own[-1].filename).name}, line {own[-1].lineno})"


def _is_own(filename: str) -> bool:
    """Whether a file is neither of this package nor of Python or a library installed in it."""
    return not any(Path(filename).is_relative_to(p) for p in (PACKAGE, sys.prefix, sys.base_prefix))


def _text(answer: Any) -> str:
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"expected a sentence, got {answer!r:.80}")
    return answer


def _images(drawn: Any) -> list[bytes]:
    made = [drawn] if isinstance(drawn, Figure) else list(drawn)
    for figure in made:
        if not isinstance(figure, Figure):
            raise UserError(f"expected matplotlib figures, got a {type(figure).__name__}")
    return [figures.to_png(figure) for figure in made]


def _tables(made: Any) -> dict[str, pd.DataFrame]:
    tables = dict(made) if isinstance(made, Mapping) else {"": made}
    for table in tables.values():
        if not isinstance(table, pd.DataFrame):
            raise UserError(f"expected pandas data frames, got a {type(table).__name__}")
    return tables


def _notes(datasets: Mapping[str, xr.Dataset]) -> list[str]:
    """What the datasets say of themselves, each once, and which trials diverged."""
    own = [json.loads(ds.attrs.get("notes", "[]")) for ds in datasets.values()]
    diverged = select.divergence_note({words(name): ds for name, ds in datasets.items()})
    return [note for note in dict.fromkeys([*itertools.chain(*own), diverged]) if note]


def in_general(ds: xr.Dataset, keep: Keep, name: str = "") -> Section:
    """What can be said of any sweep of any task: curves, best trials, a figure for each axis.

    `name` is the sweep's; `keep` is given each figure.
    """
    name = name or str(ds.attrs.get("sweep", "sweep"))
    drawn = [figures.curves(ds, metric) for metric in select.metrics(ds)]
    alone = select.size(ds) == 1
    if alone:
        drawn = [figures.splits(ds, list(select.metrics(ds)))]
    else:
        drawn += [figures.final_by(ds, axis, select.metrics(ds)) for axis in _figured(ds)]
        drawn += [figures.heat_map(ds, *pair) for pair in _pairs(ds)]
    return Section(
        row=name,
        title=words(name),
        question="How does the trial end?" if alone else "How do the trials of this sweep compare?",
        answer=_in_general(ds),
        figures=_keep_all(
            [figures.to_png(figure) for figure in drawn], f"{words(name)}, figure",
            "curves by epoch, and metrics by hyperparameter", name, keep,
        ),
        tables=_best_tables(ds),
        seconds=_seconds({"": ds}),
        quick=int(ds.attrs.get("quick", 0)),
        notes=_notes({"": ds}),
    )  # fmt: skip


def _figured(ds: xr.Dataset) -> list[str]:
    """The hyperparameters with several values; the seed only where nothing else has."""
    several = [n for n in select.hyperparameters(ds) if len(select.distinct(ds, n)) > 1]
    return [name for name in several if name != "seed"] or several


def _pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Pairs of hyperparameters for a map of the loss: of a grid along two or three of them."""
    names = [name for name in _figured(ds) if len(select.distinct(ds, name)) <= 30]
    pairs = [p for p in itertools.combinations(names, 2) if ds[p[0]].dims != ds[p[1]].dims]
    return pairs if len(pairs) <= 3 else []


def _in_general(ds: xr.Dataset) -> str:
    """The best by each metric, and the mean over the seeds."""
    sentences = [select.best_in_words(ds)]
    if bool((ds["diverged_epoch"] > 0).all()):
        return sentences[0]
    split, best = select.default_split(ds), select.ties(ds)
    also, others = [], []
    for metric in select.metrics(ds)[1:]:
        if select.size(ds) > 1 and len(best) == 1 and select.ties(ds, metric) == best:
            extreme = "highest" if select.direction(ds, metric) == "higher" else "lowest"
            value = with_unit(ds, metric, decimals(float(select.rank(ds, metric)["value"].iloc[0])))
            also.append(f"the {extreme} {metric_words(metric, split)}, {value}")
        else:
            others.append(select.best_in_words(ds, metric))
    if also:
        sentences.append(f"The same trial has {'; '.join(also)}.")
    return " ".join([*sentences, *others, *_of_seeds(ds)])


def _settings(ds: xr.Dataset) -> bool:
    """Whether there are several settings, and several seeds of some."""
    names = select.hyperparameters(ds)
    if "seed" not in names or len(names) < 2:
        return False
    settings = select.over_seeds(ds)
    return 1 < len(settings) < select.size(ds)


def _of_seeds(ds: xr.Dataset) -> list[str]:
    """A sentence on the best setting by its mean over the seeds, if there are several seeds."""
    if not _settings(ds):
        return []
    first = select.over_seeds(ds).iloc[0]
    if not pd.notna(first["mean"]) or first["seeds"] < 2:
        return []
    names = [name for name in select.hyperparameters(ds) if name != "seed"]
    where = ", ".join(f"{words(name)} {number(first[name])}" for name in names)
    spread = f"{decimals(first['mean'])} ± {decimals(first['std'])}"
    measured = metric_words("loss", select.default_split(ds))
    return [
        f"Averaged over {count(first['seeds'], 'seed')}, the lowest {measured} is "
        f"{with_unit(ds, 'loss', spread)} (mean ± standard deviation): {where}."
    ]


def _best_tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The best trials, and the best settings where there are several seeds, by caption."""
    trials = select.size(ds)
    by = f"by {metric_words('loss', select.default_split(ds))} after the last epoch"
    which = f"The best {BEST} of {number(trials)} trials" if trials > BEST else (
        f"All {number(trials)} trials" if trials > 1 else ""
    )  # fmt: skip
    tables = {f"{which} {by}, best first" if which else "": select.table(ds, most=BEST)}
    if _settings(ds):
        made = select.over_seeds(ds)
        which = f"The best {BEST} of {len(made)}" if len(made) > BEST else f"All {len(made)}"
        if not made["diverged"].any():
            made = made.drop(columns="diverged")
        measured = figures.axis_label(ds, "loss", select.default_split(ds))
        made = made.rename(columns=words).rename(
            columns={"mean": f"mean {measured}", "std": "standard deviation"}
        )
        tables[f"{which} settings by the mean over their seeds, best first"] = made.iloc[:BEST]
    return tables
