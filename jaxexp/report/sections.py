"""Sections of a page: the questions of sweeps and comparisons, answered from results.

An error in a question's own functions never loses the page: the section's notes and `errors` say
which function failed, and where.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from jaxexp.base.errors import UserError, in_one_line
from jaxexp.base.words import capitalised, type_of
from jaxexp.report import figures
from jaxexp.report.importance import importance
from jaxexp.report.page import Picture, Section
from jaxexp.results import seeds, select
from jaxexp.results.select import decimals, metric_words, number, with_unit, words
from jaxexp.spec.sweep import Comparison, Question, ResultsT, Sweep, Verdict

Keep = Callable[[str, bytes], None]  # receives each figure: its name and the PNG
BEST = 20  # trials in a table of the best
ROWS = 2_000  # trials in the table of all
CELLS = 60  # in a row of a map
FIGURED = 6  # hyperparameters with a figure of their own
LINEAGE = (
    "A member's line ends where it gave up its state, and an orange line leads there from the "
    "member that it became a copy of."
)
PartT = TypeVar("PartT")


def of_sweep(sweep: Sweep, dataset: xr.Dataset, keep: Keep, name: str = "") -> list[Section]:
    """A section for each question of a sweep, or `in_general` if it asks none.

    `name` is what the run calls the sweep, if not by its own name.
    """
    name = name or sweep.name
    if not sweep.questions:
        return [in_general(dataset, keep, name)]
    rows = [question.row for question in sweep.questions]
    shared = ""
    if len(rows) > 1:
        shared = f"one sweep that answers rows {', '.join(rows[:-1])} and {rows[-1]}"
    made = [_section(q, dataset, {"": dataset}, keep, shared=shared) for q in sweep.questions]
    if name == sweep.name:
        return made
    return [replace(own, title=f"{words(name)}: {own.title}") for own in made]


def of_comparisons(
    datasets: Mapping[str, xr.Dataset],
    keep: Keep,
    comparisons: Sequence[Comparison],
) -> list[Section]:
    """A section for each question that several sweeps answer; `datasets` are by sweep."""
    sections = []
    for comparison in comparisons:
        own = {name: datasets[name] for name in comparison.sweeps if name in datasets}
        absent = [words(name) for name in comparison.sweeps if name not in own]
        remark = f" Not in this run, and so left out: {', '.join(absent)}." if absent else ""
        if len(own) > 1:
            sections += [_section(q, own, own, keep, remark) for q in comparison.questions]
    return sections


def _section(
    question: Question[ResultsT], results: ResultsT, datasets: Mapping[str, xr.Dataset],
    keep: Keep, remark: str = "", shared: str = "",
) -> Section:  # fmt: skip
    """What a question says about `results`, which are those of the named `datasets`."""
    lost = all((ds["diverged_epoch"] > 0).all() for ds in datasets.values())
    errors: list[str] = []
    answer = "Every trial diverged."
    if not lost:
        answer = _guarded(question, "answer", results, _text, errors) or (
            "There is no answer: the function that makes it failed, as noted below."
        )
    drawn = _guarded(question, "draw", results, _images, errors) or []
    tables = _guarded(question, "table", results, _tables, errors) or {}
    verdict = Verdict(None, "every trial diverged") if lost and question.verdict else None
    if not lost:
        verdict = _guarded(question, "verdict", results, _verdict, errors)
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
        verdict=verdict,
        seconds=_seconds(datasets),
        shared=shared,
        quick=max((int(ds.attrs.get("quick", 0)) for ds in datasets.values()), default=0),
        notes=[*errors, *_notes(datasets)],
        errors=errors,
    )


def _seconds(datasets: Mapping[str, xr.Dataset]) -> float:
    return sum(float(ds["seconds"].sum()) for ds in datasets.values() if "seconds" in ds)


def _keep_all(drawn: Sequence[Picture], alt: str, what: str, row: str, keep: Keep) -> list[Picture]:
    """Hand each figure to `keep`; figures without alt text get some."""
    for i, picture in enumerate(drawn, 1):
        keep(f"{row}-{i}.png", picture.png)
    return [
        picture if picture.alt else picture._replace(alt=f"{alt} {i}: {what}")
        for i, picture in enumerate(drawn, 1)
    ]


def _guarded(
    question: Question[ResultsT], part: str, results: ResultsT, check: Callable[..., PartT],
    errors: list[str],
) -> PartT | None:  # fmt: skip
    """What the question's function `part` makes of the results, or None if it raises."""
    function = getattr(question, part)
    if function is None:
        return None
    try:
        return check(function(results))
    except Exception as error:  # whatever user code may raise
        errors.append(f"`{part}` of question {question.row} failed: {in_one_line(error, function)}")
        return None


def _text(answer: object) -> str:
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"expected a sentence, got {answer!r:.80}")
    return answer


def _verdict(judged: object) -> Verdict:
    if not isinstance(judged, Verdict) or not isinstance(judged.reason, str):
        raise UserError(f"expected a jaxexp.Verdict, got {judged!r:.80}")
    agrees = None if judged.agrees is None else bool(judged.agrees)
    return Verdict(agrees, judged.reason.strip())


def _images(drawn: Figure | Iterable[Figure]) -> list[Picture]:
    made = [drawn] if isinstance(drawn, Figure) else list(drawn)
    for figure in made:
        if not isinstance(figure, Figure):
            raise UserError(f"expected matplotlib figures, got {type_of(figure)}")
    return [_picture(figure) for figure in made]


def _picture(figure: Figure) -> Picture:
    """A figure as a picture, with the words and twin that this library's own figures have."""
    png = figures.to_png(figure)
    if not isinstance(figure, figures.ReportFigure):
        return Picture(png, "")
    return Picture(png, figure.alt, figure.interactive)


def _tables(made: pd.DataFrame | Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    tables = dict(made) if isinstance(made, Mapping) else {"": made}
    for table in tables.values():
        if not isinstance(table, pd.DataFrame):
            raise UserError(f"expected pandas data frames, got {type_of(table)}")
    return tables


def _notes(datasets: Mapping[str, xr.Dataset]) -> list[str]:
    """The notes of the datasets, each once, and which trials diverged."""
    own = [json.loads(ds.attrs.get("notes", "[]")) for ds in datasets.values()]
    diverged = select.divergence_note({words(name): ds for name, ds in datasets.items()})
    return [note for note in dict.fromkeys([*itertools.chain(*own), diverged]) if note]


def in_general(ds: xr.Dataset, keep: Keep, name: str = "") -> Section:
    """What can be said about any sweep of any task, of 2 trials or 2,000, by `select.ranked_by`.

    It shows curves, the lineage of a population, a figure for each axis, a map of two axes,
    parallel coordinates of three or more, which hyperparameters matter, and all trials. If the seed
    or the fold is an axis, settings are compared by their means over it. `name` is the sweep's;
    `keep` receives each figure.
    """
    name = name or str(ds.attrs.get("sweep", "sweep"))
    several = seeds.several(ds)
    means = seeds.average(ds) if several else ds
    metrics = select.metrics_by_rank(ds)
    metric = metrics[0]
    answer = _answered(means, metrics)
    alone = select.size(ds) == 1
    copies = select.is_population(ds)  # the lineage shows their hyperparameters
    found = None if alone or copies else importance(ds, metric)
    if alone:
        drawn = [_picture(figures.splits(ds, metrics))]
    else:
        drawn = [_picture(figures.curves(ds, own)) for own in metrics]
        if copies:
            told = f"{LINEAGE} {figures.descent(ds)}"
            drawn.append(_picture(figures.lineage(ds))._replace(caption=told))
        if found is not None and found.trusted:
            bars = _picture(figures.importances(found.table, str(found)))
            drawn.append(bars._replace(caption=str(found)))
        by_importance = [] if found is None or not found.trusted else found.table["name"].tolist()
        of_axes = [] if copies else _of_axes(ds, metrics, by_importance)
        drawn += [_picture(figure) for figure in of_axes]
    return Section(
        row=name,
        title=words(name),
        question=_asked(ds, alone),
        answer=answer,
        lead=_lead(ds, metric, answer),
        figures=_keep_all(
            drawn,
            f"{words(name)}, figure",
            "curves by epoch, and metrics by hyperparameter",
            name,
            keep,
        ),
        tables=_all_tables(ds, means, metric),
        seconds=_seconds({"": ds}),
        quick=int(ds.attrs.get("quick", 0)),
        notes=[
            *_notes({"": ds}),
            *([early] if (early := select.stopping_note(ds)) else []),
            *([str(found)] if found is not None and not found.trusted else []),
        ],
    )


def _asked(ds: xr.Dataset, alone: bool) -> str:
    if alone:
        return "How does the trial end?"
    if select.is_population(ds):
        return f"How do the {number(select.size(ds))} members of this population compare?"
    names = [words(name) for name in _figured(ds)]
    if set(names) <= set(select.REPLICATES):
        return f"How do the {number(select.size(ds))} trials of this sweep compare?"
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    which = "Which values of" if len(names) > 1 else "Which"
    are = "are" if len(names) > 1 else "is"
    return f"{which} {listed} {are} best, of {number(select.size(ds))} trials?"


def _of_axes(ds: xr.Dataset, metrics: Sequence[str], by_importance: Sequence[str]) -> list[Figure]:
    """Figures of what hyperparameters do together, then one for each, most important first."""
    names = _figured(ds)
    names = [
        *(n for n in by_importance if n in names),
        *(n for n in names if n not in by_importance),
    ]
    drawn: list[Figure] = []
    if len(names) >= 3:
        drawn.append(figures.parallel(ds, metrics[0]))
    gridded = [n for n in names if len(select.distinct(ds, n)) <= CELLS]
    pairs = [p for p in itertools.combinations(gridded, 2) if ds[p[0]].dims != ds[p[1]].dims]
    drawn += [figures.heat_map(ds, *pair, metrics[0]) for pair in pairs[:1]]
    return drawn + [figures.final_by(ds, n, metrics) for n in names[:FIGURED]]


def _figured(ds: xr.Dataset) -> list[str]:
    """The hyperparameters with several values; seed and fold only if no others have."""
    several = [
        n for n in select.hyperparameters(ds) if len(select.distinct(select.applying(ds, n), n)) > 1
    ]
    return [name for name in several if name not in select.REPLICATES] or several


def _answered(ds: xr.Dataset, metrics: Sequence[str]) -> str:
    """The best by the first metric, and by the second."""
    first = select.best_in_words(ds, metrics[0])
    if bool((ds["diverged_epoch"] > 0).all()) or len(metrics) < 2:
        return first
    split, best, metric = select.default_split(ds), select.ties(ds, metrics[0]), metrics[1]
    ranked, higher = select.rank(ds, metric)["value"], select.direction(ds, metric) == "higher"
    first_of_all = ranked.iloc[0] == (ranked.max() if higher else ranked.min())
    same = len(best) == 1 and select.ties(ds, metric) == best
    if select.size(ds) > 1 and same and first_of_all:
        extreme = "highest" if higher else "lowest"
        value = with_unit(ds, metric, decimals(float(ranked.iloc[0])))
        value += select.missing_in_words(select.best(ds, metric, split)[1], metric, split)
        measured = metric_words(metric, split)
        return f"{first} The same {select.what(ds)} has the {extreme} {measured}, {value}."
    return f"{first} {select.best_in_words(ds, metric)}"


def _lead(ds: xr.Dataset, metric: str, answer: str) -> str:
    """How clear it is which setting is best by the metric, to follow the `answer`."""
    if bool((ds["diverged_epoch"] > 0).all()) or select.size(ds) < 2:
        return ""
    if select.is_population(ds):
        return "Members copied one another: other populations, with other seeds, may end otherwise."
    if not seeds.several(ds):
        return "There is one seed of each: other seeds may rank them otherwise."
    lead = seeds.lead(ds, metric)
    if lead is None:
        return ""
    return str(lead) if " The same setting has " in answer else lead.told(answer)


def _all_tables(ds: xr.Dataset, means: xr.Dataset, metric: str) -> dict[str, pd.DataFrame]:
    """The best settings if there are several seeds, and all trials, by caption."""
    trials = select.size(ds)
    by = f"by {metric_words(metric, select.default_split(ds))} {select.measured_when(ds)}"
    tables = {}
    if means is not ds and select.size(means) > 1:
        settings = select.size(means)
        every = capitalised(select.all_of(settings, "setting"))
        which = f"The best {BEST} of {number(settings)} settings" if settings > BEST else every
        over = f"mean ± standard deviation over {seeds.in_words(means)}"
        caption = f"{which} {by}, best first: {over}"
        tables[caption] = select.table(means, metric, most=BEST)
    which = capitalised(select.all_of(trials, "trial")) if trials <= ROWS else (
        f"The best {number(ROWS)} of {number(trials)} trials"
    )  # fmt: skip
    tables[f"{which} {by}, best first" if trials > 1 else ""] = select.table(ds, metric, most=ROWS)
    return tables
