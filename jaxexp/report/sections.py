"""Sections of a page: the questions of sweeps and comparisons, answered from results."""

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from jaxexp.cli import library
from jaxexp.report import figures
from jaxexp.report.page import Section
from jaxexp.results import select
from jaxexp.spec.sweep import Question, Sweep

Keep = Callable[[str, bytes], None]  # is given each figure: its name, and the PNG


def of_sweep(sweep: Sweep, dataset: xr.Dataset, keep: Keep) -> list[Section]:
    """Each question of a sweep, or one in general where it asks none."""
    questions = sweep.questions or (_in_general(sweep),)
    return [_section(question, dataset, {"": dataset}, keep) for question in questions]


def of_comparisons(datasets: Mapping[str, xr.Dataset], keep: Keep) -> list[Section]:
    """Each question that several sweeps answer, given the results of a run by sweep."""
    sections = []
    for comparison in library.comparisons():
        own = {name: datasets[name] for name in comparison.sweeps if name in datasets}
        absent = [_words(name) for name in comparison.sweeps if name not in own]
        remark = f" Left out, not being in this run: {', '.join(absent)}." if absent else ""
        if len(own) > 1:
            sections += [_section(q, own, own, keep, remark) for q in comparison.questions]
    return sections


def _section(
    question: Question, results: Any, datasets: Mapping[str, xr.Dataset], keep: Keep,
    remark: str = "",
) -> Section:  # fmt: skip
    """What a question says of `results`, which are those of the named `datasets`."""
    lost = all((ds["diverged_epoch"] > 0).all() for ds in datasets.values())
    tables = question.table(results) if question.table else {}
    return Section(
        row=question.row,
        title=question.title,
        question=question.question,
        answer=("Every trial diverged." if lost else question.answer(results)) + remark,
        figures=_draw(question, results, keep),
        tables=tables if isinstance(tables, Mapping) else {"": tables},
        reference=question.reference,
        seconds=sum(float(ds["seconds"].sum()) for ds in datasets.values()),
        notes=_notes(datasets),
    )


def _notes(datasets: Mapping[str, xr.Dataset]) -> list[str]:
    """What the datasets say of themselves, each once, and which trials diverged."""
    own = [json.loads(ds.attrs.get("notes", "[]")) for ds in datasets.values()]
    diverged = select.divergence_note({_words(name): ds for name, ds in datasets.items()})
    return [note for note in dict.fromkeys([*itertools.chain(*own), diverged]) if note]


def _draw(question: Question, results: Any, keep: Keep) -> list[tuple[bytes, str]]:
    drawn = []
    for i, figure in enumerate(question.draw(results), 1):
        png = figures.to_png(figure)
        keep(f"{question.row}-{i}.png", png)
        drawn.append((png, f"{question.title}, figure {i}: {question.question}"))
    return drawn


def _words(name: str) -> str:
    return name.replace("_", " ")


def _in_general(sweep: Sweep) -> Question:
    """What can be said of any sweep that asks no question of its own."""

    def answer(dataset: xr.Dataset) -> str:
        name, trial = select.best(dataset)
        loss = select.outcome(trial, "loss")
        return f"The lowest validation loss after the last epoch is {loss}: {name}."

    return Question(
        row=sweep.name,
        title=_words(sweep.name),
        question="How do the trials of this sweep compare?",
        draw=lambda ds: [figures.curves(ds, "loss"), figures.curves(ds, "accuracy")],
        answer=answer,
        table=select.rank,
        reference="",
    )
