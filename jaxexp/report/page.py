"""A report: one self-contained HTML page with a section for each question."""

import base64
import functools
import gzip
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxexp.results import select
from jaxexp.results.select import number, setting
from jaxexp.results.select.fields import plan_of
from jaxexp.spec.sweep import Verdict
from jaxexp.training.data import Attributes


class Picture(NamedTuple):
    """A figure of a page.

    `png` is shown in print and where scripts do not run, `alt` says in words what it shows, and
    `interactive` is its twin as Plotly's JSON, if it has one. `caption` stands below.
    """

    png: bytes
    alt: str
    interactive: Mapping[str, object] | None = None
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and the answer that a run gives.

    `tables` maps captions, which may be empty, to tables. The summary shows the first sentence of
    `answer`, and `lead`, which says how clear it is. `reference` is what somebody else measured;
    `verdict` says whether the results agree with it (None if the question has no way to tell).
    `seconds` is the device time of the sweep behind the section, `shared` says which sections share
    that sweep, and `notes` are what to know before believing it, such as diverged trials. `quick`
    is the number of epochs at which a quick run stopped every trial (0: it was not a quick run).
    `errors` say, one line each, which functions of the question failed.
    """

    row: str
    title: str
    question: str
    answer: str
    lead: str = ""
    figures: Sequence[Picture] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    reference: str = ""
    verdict: Verdict | None = None
    seconds: float = float("nan")
    shared: str = ""
    quick: int = 0
    notes: Sequence[str] = ()
    errors: Sequence[str] = ()

    @property
    def numbered(self) -> bool:
        """Whether `row` says more than the title does."""
        return select.words(self.row) != self.title

    @property
    def judgement(self) -> tuple[str, str, str]:
        """The verdict: a class of the style sheet, a few words, and the reason."""
        if self.verdict is None:
            failed = any(error.startswith("`verdict`") for error in self.errors)
            return "unknown", "the comparison failed" if failed else "not compared", ""
        if self.quick:
            return "unknown", "not compared", "a quick run"
        agrees, reason = self.verdict
        if agrees is None:
            return "unknown", "cannot be compared", reason
        return ("agrees", "agrees", reason) if agrees else ("differs", "differs", reason)

    @property
    def short_answer(self) -> str:
        """The first sentence of the answer, without what explains the "±" in it."""
        ends = r"(?<=[.!?])[ \n]+(?=[A-Z]|[\d,]+ of )"  # "2 of 3 trials tie"
        first = re.split(ends, self.answer.strip(), maxsplit=1)[0]
        return re.sub(r" \(mean ± standard deviation over [^)]*\)", "", first)


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What stands above the sections.

    `facts` are names and values, `plan` is preformatted text, and `missing` gives the reason for
    each sweep that did not run. `quick` is the number of epochs at which a quick run stopped every
    trial (0: it was not a quick run); the sections have it too. `reference` is the heading of what
    somebody else measured.
    """

    title: str
    summary: str
    facts: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    quick: int = 0
    reference: str = "Reference"


def render(sections: Sequence[Section], meta: Meta) -> str:
    """The page as one HTML text that needs no other file and no network.

    Where scripts do not run, it shows the same as still pictures and whole tables.
    """
    loader = PackageLoader("jaxexp.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "image": _image,
        "cells": _cells,
        "duration": duration,
        "count": select.count,
    }
    quick = max([meta.quick, *(section.quick for section in sections)])
    plots: dict[tuple[int, int], int | None] = {}
    twins: list[Mapping[str, object]] = []
    for i, section in enumerate(sections):
        for j, picture in enumerate(section.figures):
            plots[i, j] = len(twins) if picture.interactive else None
            twins += [picture.interactive] if picture.interactive else []
    return environment.get_template("report.html").render(
        sections=sections,
        anchors=_anchors(sections),
        meta=meta,
        quick=quick,
        judged=_judged(sections),
        spread=any("±" in section.short_answer for section in sections),
        plots=plots,
        packed_figures=_packed(json.dumps(twins, separators=(",", ":")).encode()) if twins else "",
        packed_plotly=_plotly() if twins else "",
    )


def _anchors(sections: Sequence[Section]) -> list[str]:
    """An id for each section: "row-6.1"; repeated rows are numbered from the second on."""
    found: Counter[str] = Counter()
    made = []
    for section in sections:
        anchor = "row-" + re.sub(r"\s", "_", section.row)
        found[anchor] += 1
        made.append(anchor if found[anchor] == 1 else f"{anchor}~{found[anchor]}")
    return made


def _judged(sections: Sequence[Section]) -> str:
    """How many of the sections with a reference agree with it: "6 agree, 1 differs."."""
    found = [section.judgement[1] for section in sections if section.reference]
    if set(found) <= {"not compared"}:
        return ""
    words = {
        "agrees": ("agrees", "agree"),
        "differs": ("differs", "differ"),
        "cannot be compared": ("cannot be compared",) * 2,
        "not compared": ("not compared",) * 2,
        "the comparison failed": ("where the comparison failed",) * 2,
    }
    parts = [
        f"{number(found.count(key))} {one if found.count(key) == 1 else many}"
        for key, (one, many) in words.items()
        if key in found
    ]
    return f"of {select.count(len(found), 'answer')}, {', '.join(parts)}." if parts else ""


def _packed(content: bytes) -> str:
    """`content` compressed, as text; the same content gives the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


@functools.cache
def _plotly() -> str:
    """Plotly's script, compressed, read from its package without importing it."""
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("plotly, which jaxexp needs, is not installed")
    folder = Path(spec.submodule_search_locations[0])
    return _packed((folder / "package_data" / "plotly.min.js").read_bytes())


def run_facts(runs: Sequence[xr.Dataset]) -> dict[str, str]:
    """The facts for `Meta` about one or more sweeps, some of which may have run as one plan.

    What the results do not say is left out.
    """
    known = [ds.attrs for ds in runs]
    seeds = sorted({seed for attrs in known for seed in _seeds(attrs)})
    folds = sorted({
        int(fold) for ds in runs if "fold" in ds.coords for fold in np.atleast_1d(ds["fold"].values)
    })  # fmt: skip
    started = [datetime.fromisoformat(a["started"]) for a in known if a.get("started")]
    wall = _over_plans(runs, "wall_seconds")
    resumed = any(attrs.get("resumed") for attrs in known)
    part = "; of what was resumed, since then alone" if resumed else ""
    quick = max((int(attrs.get("quick", 0)) for attrs in known), default=0)
    nats = any(v.attrs.get("units") == "nats" for ds in runs for v in ds.data_vars.values())
    facts = {
        "Quick run": f"stopped at {select.count(quick, 'epoch')} a trial" if quick else "",
        "Trials": _whole(_over_plans(runs, "plan_trials") or _over_plans(runs, "trials")),
        "Programs compiled": _whole(_over_plans(runs, "programs")),
        "Wall-clock": f"{duration(wall)}, compilation included{part}" if wall else "",
        "Device": _distinct([_device(attrs) for attrs in known]),
        "Data": _distinct([_data(attrs) for attrs in known]),
        "Training metrics": _distinct([str(a.get("train_evaluation", "")) for a in known]),
        "Seeds" if len(seeds) > 1 else "Seed": _ranges(seeds),
        "Folds" if len(folds) > 1 else "Fold": _ranges(folds),
        "Versions": _distinct([_versions(attrs) for attrs in known]),
        "Started": f"{min(started):%Y-%m-%d %H:%M %Z}" if started else "",
        "Units": "nats: cross-entropy in natural logarithms; guessing evenly among K classes "
        "costs ln K" if nats else "",
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value}


def _whole(total: float) -> str:
    return number(int(total)) if total else ""


def _seeds(attrs: Attributes) -> list[int]:
    if "seeds" in attrs:
        return [int(seed) for seed in json.loads(attrs["seeds"])]
    return [int(attrs["seed"])] if "seed" in attrs else []


def _ranges(seeds: Sequence[int]) -> str:
    """Sorted numbers as a person writes them: "0 to 7, 12"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    parts = [f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return ", ".join(parts if len(parts) <= 8 else [*parts[:8], f"… ({len(seeds)} in all)"])


def _device(attrs: Attributes) -> str:
    return f"{attrs.get('devices', 1)} × {attrs['device']}" if "device" in attrs else ""


def _data(attrs: Attributes) -> str:
    fingerprint = attrs.get("data_fingerprint")
    data = str(attrs.get("data", ""))
    return f"{data} (fingerprint {fingerprint})".strip() if fingerprint else data


def _versions(attrs: Attributes) -> str:
    names = {"jaxexp": "jaxexp", "jax": "JAX"}
    return ", ".join(f"{names[key]} {attrs[key]}" for key in names if key in attrs)


def _over_plans(runs: Sequence[xr.Dataset], key: str) -> float:
    """An attribute summed over plans; where sweeps of a plan differ, the largest value counts.

    Equal plans count separately if their data differ, or if a sweep occurs more than once.
    """
    plans: dict[tuple[object, ...], float] = {}
    found: Counter[tuple[object, ...]] = Counter()
    for ds in runs:
        sweep = ds.attrs.get("sweep", "")
        plan = (plan_of(ds), ds.attrs.get("data_fingerprint"))
        found[*plan, sweep] += 1
        own = (*plan, found[*plan, sweep])
        plans[own] = max(plans.get(own, 0), ds.attrs.get(key, 0))
    return sum(plans.values())


def duration(seconds: float) -> str:
    """`seconds` as a person writes it: 0.8 s, 12 s, 3 min 20 s, 2 h 5 min."""
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
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _image(png: bytes) -> dict[str, str | int]:
    """A PNG as a data URI, with its size in CSS pixels (at 1.5 dots each) from its header."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"src": uri, "width": round(width / 1.5), "height": round(height / 1.5)}


def _cells(table: pd.DataFrame) -> dict[str, Sequence[object]]:
    """A table as text: its `head`, its `body` by row, and which columns are `numeric`."""
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    head = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in table.columns]
    columns = [table.iloc[:, k] for k in range(table.shape[1])]
    made: list[tuple[str, list[str], bool]] = []
    for name, column in zip(head, columns, strict=True):
        numeric = bool(pd.api.types.is_numeric_dtype(column))
        if made and name == f"± {made[-1][0]}" and numeric:
            before, texts, _ = made.pop()
            spreads = column.to_numpy(dtype=float)
            both = [_with_spread(t, float(s)) for t, s in zip(texts, spreads, strict=True)]
            made.append((before, both, True))
        else:
            given = name in table.attrs.get("hyperparameters", ())
            made.append((name, _column(column, given=given), numeric))
    return {
        "head": [name for name, _, _ in made],
        "body": list(zip(*(texts for _, texts, _ in made), strict=True)),
        "numeric": [numeric for _, _, numeric in made],
    }


def _with_spread(text: str, spread: float) -> str:
    """A value (as text) and its standard deviation with as many decimals: "0.243 ± 0.004"."""
    if not np.isfinite(spread):
        return text
    if "e" in text or spread >= 1e7:
        return f"{text} ± {number(spread, 2)}"
    places = len(text.partition(".")[2])
    fixed = f"{spread:.{places}f}"
    return f"{text} ± {fixed if float(fixed) or not spread else number(spread, 1)}"


def _column(column: pd.Series, *, given: bool = False) -> list[str]:
    """The values as text: fractions to four digits of the largest, so that points line up.

    Values in a narrow range get up to seven digits, to tell them apart. Where the range is so wide
    that small values would be hidden, each is written by `number`; the values of a hyperparameter,
    which are `given`, are written by `setting`.
    """
    values = column.to_numpy()
    if values.dtype.kind != "f" or given:
        return ["–" if _missing(value) else setting(value) for value in values]
    each, sizes = [number(value) for value in values], np.abs(values[np.isfinite(values)])
    sizes = sizes[sizes > 0]
    if not sizes.size or sizes.max() >= 99 * sizes.min() or "e" in "".join(each):
        return each  # they have no common number of decimals
    needed = max(len(text.partition(".")[2]) for text in each)
    size = int(np.floor(np.log10(sizes.max())))
    places = min(needed, max(0, 3 - size))
    known = values[np.isfinite(values)]
    if (extent := float(known.max() - known.min())) > 0:
        apart = int(np.ceil(-np.log10(extent / 20)))  # as in `within`
        there = max(len(f"{value:.7g}".partition(".")[2]) for value in known)
        places = max(places, min(apart, there)) if apart <= 6 - size else places
    fixed = [f"{value:,.{places}f}".replace("-", "−") for value in values]
    return ["–" if np.isnan(v) else text for v, text in zip(values, fixed, strict=True)]


def _missing(value: str | float | None) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
