"""A report: one self-contained HTML page with a section for each question."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pandas as pd
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxexp.results.select import number


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and what the run at hand answers.

    `figures` are PNG files and what they show, in words, for those who cannot see them; `tables`
    are by caption, which may be empty. The first
    sentence of `answer` stands in the summary. `reference` is what the report measured, `seconds`
    the wall-clock of the sweep behind the section, `notes` what to know before believing it, such
    as diverged trials.
    """

    row: str
    title: str
    question: str
    answer: str
    figures: Sequence[tuple[bytes, str]] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    reference: str = ""
    seconds: float = float("nan")
    notes: Sequence[str] = ()

    @property
    def short_answer(self) -> str:
        """The first sentence of the answer."""
        return re.split(r"(?<=[.!?])\s+(?=[A-Z])", self.answer.strip(), maxsplit=1)[0]


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What stands above the sections.

    `facts` are names and values, `plan` is preformatted text, and `missing` says of sweeps that
    did not run why.
    """

    title: str
    summary: str
    facts: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


def render(sections: Sequence[Section], meta: Meta) -> str:
    """The page as one HTML text that needs no other file, no script and no network."""
    loader = PackageLoader("jaxexp.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"image": _image, "cells": _cells, "duration": duration}
    return environment.get_template("report.html").render(sections=sections, meta=meta)


def run_facts(runs: Sequence[xr.Dataset]) -> dict[str, str]:
    """The facts, for `Meta`, of one or more sweeps, some of which may have run as one plan."""
    trials, programs, wall = (
        _over_plans(runs, key) for key in ("plan_trials", "programs", "wall_seconds")
    )
    started = [datetime.fromisoformat(ds.attrs["started"]) for ds in runs]
    data = [f"{ds.attrs['data']} ({ds.attrs['data_fingerprint']})" for ds in runs]
    return {
        "Trials": number(trials),
        "Programs compiled": number(programs),
        "Wall-clock": f"{duration(wall)}, compilation included",
        "Device": _distinct([f"{ds.attrs['devices']} × {ds.attrs['device']}" for ds in runs]),
        "Data (fingerprint)": _distinct(data),
        "Seed": _distinct([str(ds.attrs["seed"]) for ds in runs]),
        "Versions": _distinct([f"jaxexp {d.attrs['jaxexp']}, JAX {d.attrs['jax']}" for d in runs]),
        "Started": f"{min(started):%Y-%m-%d %H:%M %Z}",
    }


def _over_plans(runs: Sequence[xr.Dataset], key: str) -> float:
    """The sum, over the plans, of what the sweeps of a plan say of it: the most, of a duration."""
    plans: dict[str, float] = {}
    for ds in runs:
        plan = ds.attrs["plan"]
        plans[plan] = max(plans.get(plan, 0), ds.attrs[key])
    return sum(plans.values())


def duration(seconds: float) -> str:
    """`seconds` as a person says it: 0.8 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if not np.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _distinct(texts: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _image(png: bytes) -> dict[str, str | int]:
    """A PNG as a data URI, with its size in CSS pixels (at 1.5 dots each) from its header."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"src": uri, "width": round(width / 1.5), "height": round(height / 1.5)}


def _cells(table: pd.DataFrame) -> dict[str, list]:
    """A table as text: its `head`, its `body` by row, and which columns are `numeric`."""
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    columns = [table.iloc[:, k] for k in range(table.shape[1])]
    body = zip(*(_column(column) for column in columns), strict=True)
    return {
        "head": [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in table.columns],
        "body": list(body),
        "numeric": [pd.api.types.is_numeric_dtype(column) for column in columns],
    }


def _column(column: pd.Series) -> list[str]:
    """The values as text: fractions to four digits of the largest, so that points line up."""
    values = column.to_numpy()
    if values.dtype.kind != "f":
        return ["–" if pd.isna(value) else number(value) for value in values]
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not sizes.size or sizes.max() >= 1_000 * sizes.min():  # no common number of decimals
        return [number(value) for value in values]
    needed = max(len(number(value).partition(".")[2]) for value in values)
    decimals = min(needed, max(0, 3 - int(np.floor(np.log10(sizes.max())))))
    return ["–" if np.isnan(value) else f"{value:,.{decimals}f}" for value in values]
