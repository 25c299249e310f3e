"""Names of trials, and how each of them ended."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import xarray as xr

from jaxexp.results.select.fields import (
    INDEXES,
    applies,
    averaged_over,
    axes,
    by_trial,
    changed,
    count_replicates,
    hyperparameters,
    in_the_end,
    kept_best,
    last_epoch,
    replicate,
    size,
    undefined,
    units,
    values_by_trial,
)
from jaxexp.results.select.wording import count, words
from jaxexp.spec.written import number, setting


def named(ds: xr.Dataset, name: str) -> str:
    """Hyperparameter `name` in words: "width", or "final learning rate" for one that changed."""
    return f"final {words(name)}" if changed(ds, name) else words(name)


def with_unit(ds: xr.Dataset, metric: str, value: str) -> str:
    """A `value` as text with the unit of `metric`: "0.243 nats"."""
    return f"{value} {_unended(units(ds, metric))}".rstrip()


def _unended(text: str) -> str:
    """With no-break spaces where sentences would end: "deg. C" is one unit, "Dr. Who" one value."""
    return re.sub(r"(?<=[.!?]) ", "\N{NO-BREAK SPACE}", text)


def label(point: xr.Dataset, names: Iterable[str] = ()) -> str:
    """One trial in words: "learning rate 0.001", "depth 2, width 16".

    It has the hyperparameters `names`, or by default all that were chosen by selection. Those that
    changed during training have their final values: "final learning rate 0.02".
    """
    chosen = tuple(names)
    if not chosen:
        scalar = [str(n) for n, c in point.coords.items() if not c.dims and n not in INDEXES]
        declared = json.loads(point.attrs.get("base", "{}"))
        chosen = tuple(name for name in scalar if name in declared or not declared)
    applying = (name for name in chosen if applies(point, name).all())
    return trial_in_words({named(point, name): in_the_end(point, name).item() for name in applying})


def trial_in_words(values: Mapping[str, object]) -> str:
    """The label of a trial with these values, by names in words."""
    each = (f"{name} {_unended(setting(value))}" for name, value in values.items())
    return ", ".join(each) or "single trial"


def status(point: xr.Dataset) -> str:
    """How one trial ended: "finished" or "diverged in epoch 3, step 712" (of the whole run)."""
    step = int(point["diverged_step"]) if "diverged_step" in point else 0
    return _status(int(point["diverged_epoch"]), step)


def _status(epoch: int, step: int) -> str:
    if not epoch:
        return "finished"
    # Files of an earlier jaxexp do not hold the step.
    return f"diverged in epoch {epoch}" + (f", step {number(step)}" if step else "")


def full_label(point: xr.Dataset, names: Iterable[str] = ()) -> str:
    """The `label` of one trial, with its `status` in brackets if it diverged.

    For a mean over seeds, the brackets say how many of them diverged, if any.
    """
    how = "" if status(point) == "finished" else status(point)
    if not how and "diverged_seeds" in point and (lost := int(point["diverged_seeds"])):
        how = f"{lost} of {count(lost + int(point['seeds']), replicate(point))} diverged"
    return label(point, names) + (f" ({how})" if how else "")


def points(ds: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Each trial of `ds`, last axis fastest, as its `full_label` and its own dataset."""
    for place in range(size(ds)):
        yield point(ds, place)


def point(ds: xr.Dataset, place: int) -> tuple[str, xr.Dataset]:
    """The trial at `place` of `points(ds)`, as its `full_label` and its own dataset."""
    index = np.unravel_index(place, [ds.sizes[axis] for axis in axes(ds)]) if axes(ds) else ()
    own = ds.isel({axis: int(i) for axis, i in zip(axes(ds), index, strict=True)})
    return full_label(own, hyperparameters(ds)), own


def measured_when(ds: xr.Dataset) -> str:
    """When `final` was measured: "after the last epoch", "at each trial's best epoch"."""
    kept = kept_best(ds)
    if not kept.any():
        cut = bool((last_epoch(ds) < ds["epochs_trained"]).all())
        return f"after epoch {np.max(ds['epoch'].values)}" if cut else "after the last epoch"
    alone = size(ds) == 1 and not averaged_over(ds)
    which = "at its best epoch" if alone else "at each trial's best epoch"
    return which if kept.all() else f"{which}, up to epoch {np.max(ds['epoch'].values)}"


def averaged_in_words(setting: xr.Dataset, metric: str, split: str) -> str:
    """Over what the mean of a setting is taken: "5 folds", "3 of 5 folds, undefined in 2"."""
    n, missing = int(setting["seeds"]), int(undefined(setting, metric).sel(split=split))
    if not missing:
        return count_replicates(setting, n)
    of = count(n, replicate(setting))
    return f"{number(n - missing)} of {of}, undefined in {number(missing)}"


def missing_in_words(point: xr.Dataset, metric: str, split: str) -> str:
    """Of a mean that misses seeds " (over 3 of 5 folds, undefined in 2)", and else ""."""
    if not int(undefined(point, metric).sel(split=split)):
        return ""
    return f" (over {averaged_in_words(point, metric, split)})"


def statuses(ds: xr.Dataset) -> list[str]:
    """The `status` of each trial, in the order of `points`."""
    epochs = by_trial(ds, ds["diverged_epoch"])
    steps = by_trial(ds, ds["diverged_step"]) if "diverged_step" in ds else np.zeros(len(epochs))
    return [_status(int(epoch), int(step)) for epoch, step in zip(epochs, steps, strict=True)]


def applying_by_trial(ds: xr.Dataset) -> list[dict[str, object]]:
    """The hyperparameters of each trial that do something there, by their names in words."""
    columns = [
        (named(ds, name), values, applies(ds, name)) for name, values in values_by_trial(ds).items()
    ]
    return [{name: v[i] for name, v, there in columns if there[i]} for i in range(size(ds))]
