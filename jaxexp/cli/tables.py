"""Tables on the terminal: the best trials of a run, runs side by side, and rows to export."""

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import pandas as pd
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.results import seeds, select
from jaxexp.spec.values import text

if TYPE_CHECKING:
    from jaxexp.cli.rundir import RunDirectory, RunFile

WIDE = 200  # columns where output is no terminal: nothing is cut
MADE_WITH = (
    "jaxexp", "jax", "jaxlib", "flax", "optax", "numpy", "python", "machine", "device", "devices",
    "data", "data_fingerprint", "examples", "quick", "train_evaluation",
)  # fmt: skip  # attributes of results, that runs are compared by


def wide(file: TextIO | None = None) -> Console:
    """A console for tables, on standard output unless another file is given."""
    file = file or sys.stdout
    width = None if file.isatty() else WIDE
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def best_trials(
    ds: xr.Dataset, *, by: str | None = None, split: str | None = None, top: int = 10,
    each_seed: bool = False,
) -> Table:  # fmt: skip
    """The best trials of a sweep by a metric, which knows its direction.

    Where trials differ in their seed alone: the best means over the seeds, with their standard
    deviations, unless `each_seed`.
    Raises UserError for an unknown metric or split.
    """
    _check(ds, by, split)
    if seeds.several(ds) and not each_seed:
        return _best(seeds.average(ds), by, split, top)
    return _best(ds, by, split, top)


def _best(ds: xr.Dataset, by: str | None, split: str | None, top: int) -> Table:
    by, split = by or select.ranked_by(ds), split or select.default_split(ds)
    ranked = select.rank(ds, by, split)
    shown, names = ranked.iloc[:top], select.hyperparameters(ds)
    measured = [(by, s) for s in sorted(select.splits(ds), key=lambda s: s != split)]
    measured += [(metric, split) for metric in select.metrics(ds) if metric != by]
    final = {key: _finals(ds, *key) for key in measured}
    applies = {name: select.applies(ds, name) for name in names}
    counts = select.seed_counts(ds)
    which = "higher" if select.direction(ds, by) == "higher" else "lower"
    made = _table(
        f"{ds.attrs.get('sweep', 'sweep')}: {_of(len(shown), ds)} by "
        f"{select.metric_words(by, split)} {select.measured_when(ds)} ({which} is better)"
    )
    made.add_column("", justify="right")
    for name in names:
        made.add_column(select.named(ds, name), justify="right")
    uneven = counts is not None and counts.min() < counts.max()
    if uneven:
        made.add_column("seeds", justify="right")
    for metric, s in measured:
        made.add_column(select.metric_words(metric, s), justify="right")
    ended = _endings(ds)
    told = any(ended[place] != "finished" for place in shown.index)
    if told:
        made.add_column("status")
    for number, (place, row) in enumerate(shown.iterrows(), 1):
        at = int(str(place))
        given = [select.number(row[name]) if applies[name][at] else "–" for name in names]
        own = [str(counts[at])] if counts is not None and uneven else []
        values = [final[key][at] for key in measured]
        made.add_row(str(number), *given, *own, *values, *([ended[at]] if told else []))
    return made


def _check(ds: xr.Dataset, by: str | None, split: str | None) -> None:
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
        return f"all {count(trials, what)}{over}"
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
        _check(next(iter(results.values())), by, split)
    made = _table("the best of each sweep, in the end; where seeds vary, by their mean")
    for name in ("sweep", "best", "ranked by"):
        made.add_column(name)
    made.add_column("value", justify="right")
    made.add_column("trials", justify="right")
    made.add_column("diverged", justify="right")
    for name, ds in have.items():
        metric, own = by or select.ranked_by(ds), split or select.default_split(ds)
        label, value, _ = _best_setting(ds, metric, own)
        diverged = int((ds["diverged_epoch"] > 0).sum())
        words = select.metric_words(metric, own)
        made.add_row(name, label, words, value, f"{select.size(ds):,}", f"{diverged:,}")
    return made


def _best_setting(ds: xr.Dataset, metric: str, split: str) -> tuple[str, str, float]:
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
    """The trials with these values, "width=64" and the like.

    Raises UserError for what cannot be read, or no trial has.
    """
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not name or not equals or not value:
            raise UserError(f"--where {setting!r}: expected KEY=VALUE")
        if name not in select.hyperparameters(ds):
            select.where(ds, **{name: value})  # says which ones vary
        ds = select.where(ds, **{name: _read(name, value, ds[name].dtype.kind)})
    return ds


def _read(name: str, value: str, kind: str) -> object:
    """A value as the results hold it."""
    booleans = {"on": True, "true": True, "off": False, "false": False}
    try:
        if kind == "b":
            return booleans[value.lower()]
        if kind in "iu":
            return int(value)
        return float(value) if kind == "f" else value
    except (ValueError, KeyError):
        expected = {"b": "on or off", "i": "a whole number", "u": "a whole number"}
        wanted = expected.get(kind, "a number")
        raise UserError(f"--where {name}={value}: expected {wanted}") from None


# Runs side by side.


def compared(
    runs: Mapping[str, Mapping[str, xr.Dataset]], commands: "Mapping[str, RunFile]",
    by: str | None = None,
) -> list[Table | str]:  # fmt: skip
    """Results of several runs by run and sweep: best trials, settings and versions that differ."""
    return [
        *_best_by_run(runs, by),
        *_differing("settings that differ", _settings(runs, commands)),
        *_differing("versions, devices and data that differ", _made_with(runs)),
    ]


def _best_by_run(runs: Mapping[str, Mapping[str, xr.Dataset]], by: str | None) -> list[Table]:
    sweeps = list(dict.fromkeys(name for own in runs.values() for name in own))
    have = [ds for own in runs.values() for ds in own.values()]
    if not any(by in select.metrics(ds) for ds in have):
        _check(have[0], by, None)
    made = _table("the best of each sweep, in the end; where seeds vary, by their mean")
    for name in ("sweep", "metric", "run", "best"):
        made.add_column(name)
    for name in ("value", "difference"):
        made.add_column(name, justify="right")
    for sweep in sweeps:
        found = {run: own[sweep] for run, own in runs.items() if sweep in own}
        metric, split = _shared(list(found.values()), by)
        first: tuple[bool, float] | None = None
        for number, run in enumerate(runs):
            words = select.metric_words(metric, split)
            head = (sweep, words) if not number else ("", "")
            if run not in found or metric not in select.metrics(found[run]):
                made.add_row(*head, run, "not in this run", "–", "")
                continue
            label, outcome, value = _best_setting(found[run], metric, split)
            mean = seeds.several(found[run])
            difference = ""
            if first is not None:  # a mean is no better than one lucky trial is
                difference = _signed(value - first[1]) if mean == first[0] else "–"
            first = first or (mean, value)
            made.add_row(*head, run, label, outcome, difference)
        made.add_section()
    return [made]


def _shared(found: Sequence[xr.Dataset], by: str | None) -> tuple[str, str]:
    """A metric and a split that all results of a sweep have, if there are such."""
    metric = by or select.ranked_by(found[0])
    if not all(metric in select.metrics(ds) for ds in found):
        metric = by or "loss"
    splits = [select.default_split(ds) for ds in found]
    return metric, splits[0] if len(set(splits)) == 1 else "train"


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    return f"+{_measured(value)}" if value > 0 else _measured(value)


Facts = Mapping[str, Mapping[str, str]]  # by what is compared, by run


def _settings(
    runs: Mapping[str, Mapping[str, xr.Dataset]], commands: "Mapping[str, RunFile]"
) -> Facts:
    facts: dict[str, dict[str, str]] = {}
    for run, command in commands.items():
        named: dict[str, object] = dict(command.get("inputs") or {})
        named |= {name: command.get(name) for name in ("programs", "memory", "devices", "seed")}
        named |= {name: command.get(name) for name in ("quick", "settings")}
        named |= dict(command.get("search") or {})  # whose seed is the one that is given
        for name, value in named.items():
            given = value not in (None, {}, [])
            facts.setdefault(name, {})[run] = _plain(value) if given else "–"
    of_sweeps: dict[str, Mapping[str, str]] = {}
    sweeps = list(dict.fromkeys(name for own in runs.values() for name in own))
    for sweep in sweeps:
        held = {run: own[sweep] for run, own in runs.items() if sweep in own}
        own_facts: dict[str, dict[str, str]] = {}
        for run, ds in held.items():
            base = json.loads(ds.attrs.get("base", "{}"))
            axes = {name: ds[name].values for name in select.hyperparameters(ds)}
            for name in {**base, **axes}:
                values = axes.get(name)
                said = (
                    select.number(base[name])
                    if values is None
                    else ", ".join(dict.fromkeys(map(select.number, values)))
                )
                when = "initial " if select.changed(ds, name) else ""
                own_facts.setdefault(f"{sweep}: {when}{select.words(name)}", {})[run] = said
        of_sweeps |= _unequal(own_facts, list(held))  # where the sweep is not, nothing differs
    return {**facts, **of_sweeps}


def _unequal(facts: Facts, runs: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Those in which some of these runs differ."""
    return {
        name: own for name, own in facts.items() if len({own.get(run, "–") for run in runs}) > 1
    }


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={','.join(map(str, own))}" for name, own in value.items())
    return select.number(value)


def _made_with(runs: Mapping[str, Mapping[str, xr.Dataset]]) -> Facts:
    facts: dict[str, dict[str, str]] = {}
    for run, own in runs.items():
        for name in MADE_WITH:
            found = dict.fromkeys(str(d.attrs[name]) for d in own.values() if name in d.attrs)
            facts.setdefault(name, {})[run] = ", ".join(found) or "–"
    return facts


def _differing(title: str, facts: Facts) -> list[Table | str]:
    runs = list(dict.fromkeys(run for own in facts.values() for run in own))
    differ = _unequal(facts, runs)
    if not differ:
        return [f"{title}: none"]
    made = _table(title)
    made.add_column("")
    for run in runs:
        made.add_column(run, overflow="fold")
    for name, own in differ.items():
        made.add_row(select.words(name), *(own.get(run, "–") for run in runs))
    return [made]


# Rows to export.


def rows(results: Mapping[str, xr.Dataset], *, final: bool) -> pd.DataFrame:
    """The results as rows: of each trial, epoch and split; or of each trial, if `final`.

    Both begin with `sweep`, `trial_id` and every hyperparameter: one that a population changed as
    it was in that epoch, or in the end, and as `initial_learning_rate` what the trial began with.
    Then come `epoch`, `split` and each metric; or `epochs_trained`, `diverged_epoch` and
    `diverged_step` (0: never), `seconds` and each metric after the last epoch, as
    `validation_loss`. Epochs that a trial did not train have no row; a metric is missing from the
    epoch on in which its trial diverged.
    """
    parts = [_final_rows(ds) if final else _rows(ds) for ds in results.values()]
    return pd.concat(parts, ignore_index=True)


def _trials(ds: xr.Dataset) -> pd.DataFrame:
    own = select.values_by_trial(ds)
    began = select.initial_by_trial(ds)
    base = json.loads(ds.attrs.get("base", "{}"))
    ids = select.by_trial(ds, ds["trial_id"]).astype(str)
    columns: dict[str, object] = {"sweep": ds.attrs.get("sweep", "sweep"), "trial_id": ids}
    taken = {"sweep", "epoch", "split", *select.metrics(ds), *began} & {*base, *own}
    if taken:
        raise UserError(f"hyperparameter {min(taken)!r}: an exported column has this name already")
    for name, value in {**base, **own, **began}.items():
        columns[name] = value
    return pd.DataFrame(columns, index=pd.RangeIndex(select.size(ds)))


def _rows(ds: xr.Dataset) -> pd.DataFrame:
    trials, epochs = _trials(ds), select.by_trial(ds, ds["epochs_trained"]).astype(int)
    order, splits = select.axes(ds), select.splits(ds)
    repeat = epochs * len(splits)
    made = trials.loc[np.repeat(trials.index, repeat)].reset_index(drop=True)
    made["epoch"] = np.concatenate([np.repeat(np.arange(1, e + 1), len(splits)) for e in epochs])
    made["split"] = np.concatenate([np.tile(np.array(splits, object), e) for e in epochs])

    def by_row(values: xr.DataArray) -> np.ndarray:
        laid = values.broadcast_like(ds["loss"]).transpose(*order, "epoch", "split").values
        by_trial = laid.reshape(len(trials), ds.sizes["epoch"], len(splits))
        return np.concatenate([v[:e].reshape(-1) for v, e in zip(by_trial, epochs, strict=True)])

    for name in select.hyperparameters(ds):
        if select.changed(ds, name):
            made[name] = by_row(ds[f"own_{name}"])
    for metric in select.metrics(ds):
        made[metric] = by_row(select.until_divergence(ds, metric)).astype(float)
    return made


def _final_rows(ds: xr.Dataset) -> pd.DataFrame:
    made = _trials(ds)
    for name in ("epochs_trained", "diverged_epoch", "diverged_step"):
        if name in ds:
            made[name] = select.by_trial(ds, ds[name]).astype(int)
    made["seconds"] = select.by_trial(ds, ds["seconds"]).astype(float)
    for metric in select.metrics(ds):
        values = select.final(ds, metric)
        for split in select.splits(ds):
            own = select.by_trial(ds, values.sel(split=split))
            made[f"{split}_{metric}"] = own.astype(float)
    return made


def export(table: pd.DataFrame, file: Path, kind: str) -> None:
    """Write rows as "csv", "parquet" or "json" (a list of objects).

    Raises UserError if the file cannot be written, or for Parquet if pyarrow is not installed.
    """
    try:
        if kind == "csv":
            table.to_csv(file, index=False)
        elif kind == "json":
            table.to_json(file, orient="records", indent=1, double_precision=15)
        else:
            _uniform(table).to_parquet(file, index=False, engine="pyarrow")
    except ImportError as error:
        raise UserError(
            "--parquet: needs pyarrow, which is not installed: pip install 'jaxexp[export]'"
        ) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error


def _uniform(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each: widths of one sweep may be numbers, of another text."""
    made = table.copy()
    for name in made.columns:
        types = {type(value) for value in made[name].dropna()} if made[name].dtype == "O" else set()
        if len(types) > 1:
            made[name] = [None if pd.isna(v) else text(v) for v in made[name]]
    return made


# The runs of a folder.


def listed(directories: Iterable["RunDirectory"]) -> Table:
    """Runs with their state, age, trials and best trial, the newest first."""
    made = _table("")
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
        (ds.attrs.get("plan", name), trial)
        for name, ds in results.items()
        for trial in select.by_trial(ds, ds["trial_id"]).tolist()
    })  # fmt: skip


def _best_of_run(results: Mapping[str, xr.Dataset]) -> str:
    """The best trial of a run's first sweep, and how many others there are."""
    name, ds = next(iter(results.items()))
    metric, split = select.ranked_by(ds), select.default_split(ds)
    label, outcome, _ = _best_setting(ds, metric, split)
    words = select.metric_words(metric, split)
    more = f" (and {count(len(results) - 1, 'sweep')} more)" if len(results) > 1 else ""
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


def _table(title: str) -> Table:
    return Table(title=title or None, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
