"""What differs between runs: their best trials, and what they were made with."""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import xarray as xr
from rich.table import Table

from jaxexp.cli.tables import best_setting, check_metric, signed, titled
from jaxexp.results import seeds, select
from jaxexp.results.select.ranks import mean_difference

if TYPE_CHECKING:
    from jaxexp.cli.rundir import RunFile
MADE_WITH = (
    "jaxexp", "jax", "jaxlib", "flax", "optax", "numpy", "python", "machine", "device", "devices",
    "data", "data_fingerprint", "examples", "quick", "train_evaluation",
)  # fmt: skip  # attributes of results, that runs are compared by


def compared(
    runs: Mapping[str, Mapping[str, xr.Dataset]], commands: "Mapping[str, RunFile]",
    by: str | None = None,
) -> list[Table | str]:  # fmt: skip
    """Results of several runs by run and sweep: best trials, settings and versions that differ."""
    return [
        *_best_by_run(runs, by),
        *_apart(runs),
        *_differing("settings that differ", _settings(runs, commands)),
        *_differing("versions, devices, files and data that differ", _made_with(runs, commands)),
    ]


def _apart(runs: Mapping[str, Mapping[str, xr.Dataset]]) -> list[str]:
    """Says so where no two runs have a sweep in common."""
    sweeps = [name for own in runs.values() for name in own]
    alone = "no sweep is in two of these runs: only options of the commands are compared below"
    return [alone] if len({*sweeps}) == len(sweeps) else []


def _best_by_run(runs: Mapping[str, Mapping[str, xr.Dataset]], by: str | None) -> list[Table]:
    sweeps = list(dict.fromkeys(name for own in runs.values() for name in own))
    have = [ds for own in runs.values() for ds in own.values()]
    if not any(by in select.metrics(ds) for ds in have):
        check_metric(have[0], by, None)
    made = titled("the best of each sweep, in the end; where seeds vary, by their mean")
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
            label, outcome, value = best_setting(found[run], metric, split)
            mean = seeds.several(found[run])
            difference = ""
            if first is not None:  # a mean is no better than one lucky trial is
                minus = mean_difference if mean else operator.sub
                difference = signed(minus(value, first[1])) if mean == first[0] else "–"
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
        values: dict[str, dict[str, list[object]]] = {}
        zipped: dict[tuple[str, ...], dict[str, list[object]]] = {}
        for run, ds in held.items():
            base = json.loads(ds.attrs.get("base", "{}"))
            axes = {name: ds[name].values.tolist() for name in select.hyperparameters(ds)}
            said = {
                name: ("initial " if select.changed(ds, name) else "") + select.words(name)
                for name in {**base, **axes}
            }
            for name, own in {**{name: [value] for name, value in base.items()}, **axes}.items():
                values.setdefault(said[name], {})[run] = own
            for dim in select.axes(ds):
                if len(names := sorted(name for name in axes if ds[name].dims == (dim,))) > 1:
                    points: list[object] = [*zip(*(axes[name] for name in names), strict=True)]
                    zipped.setdefault(tuple(said[name] for name in names), {})[run] = points
        differing = _unequal(_in_words(values), list(held))  # where the sweep is not, none does
        pairs = {" with ".join(n): own for n, own in zipped.items() if not differing.keys() & {*n}}
        differing |= _unequal(_in_words(pairs), list(held))
        of_sweeps |= {f"{sweep}: {name}": own for name, own in differing.items()}
    return {**facts, **of_sweeps}


def _in_words(values: Mapping[str, Mapping[str, Sequence[object]]]) -> Facts:
    """Each value once, in words; in full where rounded ones would not say which runs differ."""
    made: dict[str, dict[str, str]] = {}
    for name, by_run in values.items():
        short, full = (_joined(by_run, say) for say in (_short, str))
        made[name] = short if len({*short.values()}) == len({*full.values()}) else full
    return made


def _joined(by_run: Mapping[str, Sequence[object]], say: Callable[[object], str]) -> dict[str, str]:
    """The values of each run, each once; the same values are one text, whatever their order."""
    texts: dict[frozenset[str], str] = {}
    said = {run: dict.fromkeys(map(say, own)) for run, own in by_run.items()}
    return {run: texts.setdefault(frozenset(own), ", ".join(own)) for run, own in said.items()}


def _short(value: object) -> str:
    each = value if isinstance(value, tuple) else (value,)
    return " with ".join(map(select.setting, each))


def _unequal(facts: Facts, runs: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Those in which some of these runs differ."""
    return {
        name: own for name, own in facts.items() if len({own.get(run, "–") for run in runs}) > 1
    }


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={','.join(map(str, own))}" for name, own in value.items())
    return select.number(value)


def _made_with(
    runs: Mapping[str, Mapping[str, xr.Dataset]], commands: "Mapping[str, RunFile]"
) -> Facts:
    facts: dict[str, dict[str, str]] = {}
    for run, own in runs.items():
        for name in MADE_WITH:
            found = dict.fromkeys(str(d.attrs[name]) for d in own.values() if name in d.attrs)
            facts.setdefault(name, {})[run] = ", ".join(found) or "–"
    of_sweeps: dict[str, dict[str, str]] = {}  # where the sweep is not, nothing differs
    for run, command in commands.items():
        for name, digest in command.get("made_with", {}).items():
            if name.startswith(("file of sweep ", "task of ")):
                of_sweeps.setdefault(name, {})[run] = digest
    return facts | {name: own for name, own in of_sweeps.items() if len({*own.values()}) > 1}


def _differing(title: str, facts: Facts) -> list[Table | str]:
    runs = list(dict.fromkeys(run for own in facts.values() for run in own))
    differ = _unequal(facts, runs)
    if not differ:
        return [f"{title}: none"]
    made = titled(title)
    made.add_column("")
    for run in runs:
        made.add_column(run)
    for name, own in differ.items():
        made.add_row(select.words(name), *(own.get(run, "–") for run in runs))
    return [made]
