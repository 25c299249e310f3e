"""Tables on the terminal: the best trials of a run, of each of its sweeps, and of a folder."""

import contextlib
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

import numpy as np
import pandas as pd
import xarray as xr
from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Column, Table

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.results import seeds, select
from jaxexp.results.select.fields import plan_of
from jaxexp.results.select.ranks import matching_texts, numbers, with_places
from jaxexp.spec.values import convert

if TYPE_CHECKING:
    from jaxexp.cli.rundir import RunDirectory

LONGEST = 20  # letters of a number, with signs beside it
# Control characters, ends of lines, changes of the direction of writing, and surrogates.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")  # 12,345.5


def show(*parts: Table | str, file: TextIO | None = None) -> None:
    """Print tables and lines on standard output, or on another file, and cut nothing.

    Where output is no terminal, tables are as wide as they need. Where a terminal is too narrow,
    headings and texts are wrapped; if numbers would not fit even so, each row is a block of lines.
    Control characters in cells are escaped.
    """
    file = file or sys.stdout
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True)
            continue
        for column in part.columns:
            column._cells[:] = (CONTROL.sub(_escaped, str(cell)) for cell in column.cells)
        least, most = zip(*map(_widths, part.columns), strict=True)
        full = console.options.update(max_width=sys.maxsize)
        beside = console.measure(part, options=full).maximum - sum(most)
        spare = console.width - beside - sum(least)
        if not file.isatty():
            console.width = max(console.width, beside + sum(most))
        elif spare < 0:
            console.print(_blocks(part), soft_wrap=True)
            continue
        elif spare < sum(most) - sum(least):  # what needs little more gets all of it
            for column in sorted(part.columns, key=lambda own: np.diff(_widths(own)).item()):
                low, high = _widths(column)
                column.width, column.overflow = min(high, low + spare), "fold"
                spare -= column.width - low
        console.print(part)


def _escaped(control: re.Match[str]) -> str:
    return control[0].encode("unicode_escape").decode()


def _widths(column: Column) -> tuple[int, int]:
    """The fewest letters in which a column can stand, and those of its longest line.

    Cells that are aligned on the right, as numbers are, stand in one line; others are wrapped, also
    within words that are longer than any number.
    """
    cells, head = [str(cell) for cell in column.cells], str(column.header)
    words = [word[:LONGEST] for word in " ".join(cells).split()]
    whole = cells if column.justify == "right" else words
    least = max(map(cell_len, [*head.split(), *whole]), default=0)
    return least, max(map(cell_len, [head, *cells]))


def _blocks(table: Table) -> str:
    """A table as text: of each row, what stands in the first column and "name = value" below."""
    names = [str(column.header) for column in table.columns]
    blocks = [str(table.title or "")]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        told = [(name, str(cell)) for name, cell in zip(names, row, strict=True) if cell]
        blocks.append("\n  ".join(f"{n} = {cell}" if n else cell for n, cell in told))
    return "\n\n".join(filter(None, blocks)) + "\n"


def best_trials(
    ds: xr.Dataset, *, by: str | None = None, split: str | None = None, top: int = 10,
    each_seed: bool = False,
) -> Table:  # fmt: skip
    """The best trials of a sweep by a metric, which knows its direction.

    Where trials differ in their seed alone: the best means over the seeds, with their standard
    deviations, unless `each_seed`.
    Raises UserError for an unknown metric or split.
    """
    check_metric(ds, by, split)
    if seeds.several(ds) and not each_seed:
        return _best(seeds.average(ds), by, split, top)
    return _best(ds, by, split, top)


def _best(ds: xr.Dataset, by: str | None, split: str | None, top: int) -> Table:
    by, split = by or select.ranked_by(ds), split or select.default_split(ds)
    ranked = with_places(ds, by, split)
    shown, names = ranked.iloc[:top], select.hyperparameters(ds)
    measured = [(by, s) for s in sorted(select.splits(ds), key=lambda s: s != split)]
    measured += [(metric, split) for metric in select.metrics(ds) if metric != by]
    final = {key: _finals(ds, *key) for key in measured}
    applies = {name: select.applies(ds, name) for name in names}
    counts = select.seed_counts(ds)
    which = "higher" if select.direction(ds, by) == "higher" else "lower"
    made = titled(
        f"{ds.attrs.get('sweep', 'sweep')}: {_of(len(shown), ds)} by "
        f"{select.metric_words(by, split)} {select.measured_when(ds)} ({which} is better)"
    )
    made.add_column("", justify="right")
    for name in names:
        justify: JustifyMethod = "right" if ds[name].dtype.kind in "iuf" else "left"
        made.add_column(select.named(ds, name), justify=justify)
    uneven = counts is not None and counts.min() < counts.max()
    if uneven:
        made.add_column("seeds", justify="right")
    for metric, s in measured:
        made.add_column(select.metric_words(metric, s), justify="right")
    ended = _endings(ds)
    told = any(ended[place] != "finished" for place in shown.index)
    if told:
        made.add_column("status")
    for place, row in shown.iterrows():
        at = int(str(place))
        rank = "–" if pd.isna(row["place"]) else select.number(row["place"])
        given = [select.setting(row[name]) if applies[name][at] else "–" for name in names]
        own = [str(counts[at])] if counts is not None and uneven else []
        values = [final[key][at] for key in measured]
        made.add_row(rank, *given, *own, *values, *([ended[at]] if told else []))
    return made


def check_metric(ds: xr.Dataset, by: str | None, split: str | None) -> None:
    """Raise UserError, which names the option, for a metric or split that there is not."""
    for option, given, there in (
        ("--by", by, select.metrics(ds)),
        ("--split", split, select.splits(ds)),
    ):
        if given is not None and given not in there:
            raise UserError(f"{option} {given!r}: these results have {', '.join(there)}")


def _finals(ds: xr.Dataset, metric: str, split: str) -> list[str]:
    """A metric of each trial in the end, with the spread of means over seeds.

    And of how many seeds it is the mean, where it is undefined for some.
    """
    values = select.by_trial(ds, select.final(ds, metric).sel(split=split))
    wide = select.spread(ds, metric)
    if wide is None:
        return [_measured(value) for value in values]
    spread = select.by_trial(ds, wide.sel(split=split))
    finished = select.by_trial(ds, ds["seeds"])
    missing = select.by_trial(ds, select.undefined(ds, metric).sel(split=split))
    over = [f" ({n - m} of {n})" if m else "" for n, m in zip(finished, missing, strict=True)]
    return [
        select.plus_minus(float(value), std) + n if math.isfinite(value) else "–"
        for value, std, n in zip(values, spread, over, strict=True)
    ]


def _endings(ds: xr.Dataset) -> list[str]:
    """How each trial ended; of means over seeds, how many of them diverged."""
    ended = [str(how) for how in select.rank(ds).sort_index()["status"]]
    counts = select.seed_counts(ds)
    if counts is None:
        return ended
    lost, repeated = select.by_trial(ds, ds["diverged_seeds"]), select.replicate(ds)
    return [
        f"{n} of {count(int(of), repeated)} diverged" if n and how == "finished" else how
        for how, n, of in zip(ended, lost, counts, strict=True)
    ]


def _of(shown: int, ds: xr.Dataset) -> str:
    trials = select.size(ds)
    means = bool(select.averaged_over(ds))
    what = select.what(ds)
    over = f", mean ± standard deviation over {seeds.in_words(ds)}," if means else ""
    if trials == 1:
        return f"the one {what}{over}"
    if shown == trials:
        return f"{select.all_of(trials, what)}{over}"
    if shown > 1:
        return f"the best {shown} of {count(trials, what)}{over}"
    return f"best of {count(trials, what)}{over}"


def best_of_each(
    results: Mapping[str, xr.Dataset], *, by: str | None = None, split: str | None = None
) -> Table:
    """The best trial of each of several sweeps; where seeds vary, the best mean over them.

    Raises UserError for a metric or a split that none of them has.
    """
    have = {name: ds for name, ds in results.items() if by is None or by in select.metrics(ds)}
    have = {n: ds for n, ds in have.items() if split is None or split in select.splits(ds)}
    if not have:
        check_metric(next(iter(results.values())), by, split)
    made = titled("the best of each sweep, in the end; where seeds vary, by their mean")
    for name in ("sweep", "best", "ranked by"):
        made.add_column(name)
    made.add_column("value", justify="right")
    made.add_column("trials", justify="right")
    made.add_column("diverged", justify="right")
    for name, ds in have.items():
        metric, own = by or select.ranked_by(ds), split or select.default_split(ds)
        label, value, _ = best_setting(ds, metric, own)
        diverged = int((ds["diverged_epoch"] > 0).sum())
        words = select.metric_words(metric, own)
        made.add_row(name, label, words, value, f"{select.size(ds):,}", f"{diverged:,}")
    return made


def best_setting(ds: xr.Dataset, metric: str, split: str) -> tuple[str, str, float]:
    """The best trial, or the best mean over the seeds: in words, its value in words, its value."""
    means = seeds.average(ds)
    label, point = select.best(means, metric, split)
    if means is not ds and not select.axes(means):
        label = f"mean of {seeds.in_words(means)}"
    value = float(select.final(point, metric).sel(split=split))
    return label, select.outcome(point, metric, split, digits=4), value


def summary(results: Mapping[str, xr.Dataset]) -> Table | None:
    """The table that ends a run: of one sweep its best trials, of several the best of each."""
    if not results:
        return None
    if len(results) == 1:
        return best_trials(next(iter(results.values())), top=5)
    return best_of_each(results)


def where(ds: xr.Dataset, settings: Sequence[str]) -> xr.Dataset:
    """The trials with these values, "width=64" and the like, which the name of the sweep then says.

    Raises UserError for what cannot be read, or no trial has.
    """
    values: dict[str, object] = {}
    said = ds.attrs.get("sweep", "sweep")
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not name or not equals or not value:
            raise UserError(f"--where {setting!r}: expected KEY=VALUE")
        if name not in select.hyperparameters(ds):
            select.where(ds, **{name: value})  # says which ones vary
        if name in values:
            raise UserError(f"--where {setting!r}: {name} is given twice, expected one value")
        values[name] = _read(name, value, ds[name].values)
        said += f", {name}={value}"
    return select.where(ds, **values).assign_attrs(sweep=said)


def _read(name: str, value: str, there: np.ndarray) -> object:
    """A value as the results hold it."""
    kind = there.dtype.kind
    if kind not in "biuf":
        return value if value in there else _read_text(value, there)
    shown = _as_typed(value)
    try:
        if kind == "b":
            return convert(bool, value)
        return convert(float if kind == "f" else int, shown)
    except (ValueError, KeyError):
        expected = {"b": "on or off", "i": "one whole number", "u": "one whole number"}
        wanted = expected.get(kind, "one number")
        raise UserError(f"--where {name}={value}: expected {wanted}") from None


def _as_typed(value: str) -> str:
    """A number that may be as tables show it, "−12,345"."""
    value = value.replace("−", "-")
    return value.replace(",", "") if THOUSANDS.fullmatch(value) else value


def _read_text(value: str, there: np.ndarray) -> object:
    """None, a boolean where all are, a number or tuple where one is equal; otherwise text."""
    if value.lower() == "none":
        return None
    others = [own for own in there.tolist() if own not in ("None", "()")]
    if all(own in ("True", "False") for own in others):
        with contextlib.suppress(KeyError):
            return convert(bool, value)
    else:
        wanted = numbers(_as_typed(value))
        if any(matching_texts(others, wanted)):
            return wanted
    return value


def signed(value: float) -> str:
    """A difference of metrics with its sign, where it has one."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    return f"+{_measured(value)}" if value > 0 else _measured(value)


# The runs of a folder.


def listed(directories: Iterable["RunDirectory"]) -> Table:
    """Runs with their state, age, trials and best trial, the newest first."""
    made = titled("")
    for name in ("run", "state", "age"):
        made.add_column(name)
    made.add_column("trials", justify="right")
    made.add_column("best")
    dated = [(d, (d.path / "run.json").stat().st_mtime) for d in directories]
    for directory, changed in sorted(dated, key=lambda each: -each[1]):
        state, best, trials = directory.state(), "", "–"
        try:
            results = dict(directory.load())
        except UserError as error:
            if state == "complete":
                state = "damaged" if "not a results file" in str(error) else "without results"
        else:
            trials = f"{_trained(results):,}"
            best = _best_of_run(results)
        made.add_row(directory.path.name, state, age(time.time() - changed), trials, best)
    return made


def _trained(results: Mapping[str, xr.Dataset]) -> int:
    """The number of trials: one that sweeps of a plan share is trained once."""
    return len({
        (plan_of(ds), ds.attrs.get("data_fingerprint"), trial)
        for ds in results.values()
        for trial in select.by_trial(ds, ds["trial_id"]).tolist()
    })  # fmt: skip


def _best_of_run(results: Mapping[str, xr.Dataset]) -> str:
    """The best trial of a run's first sweep, and how many others there are."""
    name, ds = next(iter(results.items()))
    metric, split = select.ranked_by(ds), select.default_split(ds)
    label, outcome, _ = best_setting(ds, metric, split)
    words = select.metric_words(metric, split)
    more = f" (and {count(len(results) - 1, 'more sweep')})" if len(results) > 1 else ""
    return f"{name}, {label}: {words} {outcome}{more}"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits.

    >>> age(5), age(180), age(3600), age(200_000)
    ('5 s', '3 min', '1 h', '2 days')
    """
    if seconds < 60:
        return f"{max(0, int(seconds))} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h"
    return count(int(seconds // 86400), "day")


def _measured(value: float) -> str:
    return select.decimals(float(value), 4) if math.isfinite(value) else "–"


def titled(title: str) -> Table:
    """An empty table of the terminal, under a title."""
    return Table(title=title or None, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
