"""Trials that differ in their seed alone: means, spreads, and which differences exceed them.

A *setting* is what such trials have in common. The folds of cross-validation repeat a setting as
seeds do: what is said of seeds below also holds for folds, and for pairs of a seed and a fold if
both vary. The seed may be an axis of its own or zipped with other hyperparameters, as for random
points that are each trained with several seeds; settings may then have different numbers of seeds.
If no two trials differ in their seed alone, there is nothing to average, and results are returned
as they are.

>>> import jaxexp as jx
>>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, ["a", "a", "b", "b"] * 8, validation=0.25)
>>> axes = {"learning_rate": [1e-1, 1e-5], "seed": range(3)}
>>> results = jx.run(
...     jx.Sweep(jx.MLPTrial(epochs=3, depth=1, batch_size=8), axes), data=data, progress=False
... )
>>> average(results.dataset)["loss_std"].dims
('learning_rate', 'epoch', 'split')
>>> lead(results.dataset).wins
3
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.results import select
from jaxexp.results.select import count, count_replicates, number
from jaxexp.results.select.ranks import mean_difference
from jaxexp.results.settings import Settings, flat
from jaxexp.spec.values import text

LEVEL = 95  # per cent, of an interval
ROUNDING = 1e-6  # of float32, relative to the numbers: differences that vary by less are equal


def several(ds: xr.Dataset) -> bool:
    """Whether any two trials differ only in their seed, their fold, or both."""
    settings = _settings(ds)
    return settings is not None and int(settings.counts.max()) > 1


def _settings(ds: xr.Dataset) -> Settings | None:
    return Settings.of(flat(ds[["loss"]] if len(select.replicates(ds)) > 1 else ds))


def in_words(ds: xr.Dataset) -> str:
    """How many seeds the settings of results, or of their means, have: "2 to 5 seeds".

    For folds it is "5 folds", and for both "2 seeds × 5 folds". If some means are over fewer seeds
    because a metric is undefined for the others, the text says so.

    >>> import xarray as xr
    >>> loss = xr.DataArray([[[0.1]], [[0.2]], [[0.3]]], dims=("seed", "epoch", "split"))
    >>> in_words(xr.Dataset({"loss": loss}, {"seed": [0, 1, 2]}))
    '3 seeds'
    """
    counts, settings = select.seed_counts(ds), _settings(ds)
    if counts is None:
        counts = np.ones(1, int) if settings is None else settings.counts
    fewest, most = int(counts.min()), int(counts.max())
    said = f"{fewest} to {count(most, select.replicate(ds))}"
    if fewest == most:
        said = count_replicates(ds, most)
    some = any(f"{metric}_undefined" in ds for metric in select.metrics(ds))
    return f"{said} (fewer where undefined)" if some else said


def average(ds: xr.Dataset) -> xr.Dataset:
    """The means over the seeds of each setting, with their spreads: `loss` and `loss_std`.

    The result has the layout of a sweep without seeds, so `select` and the figures accept it: an
    axis of seeds is gone, and an axis that zips seeds with other hyperparameters has one point for
    each setting. Results without seeds to average are returned as they are.

    - Means and standard deviations (with n - 1; NaN for one seed) are over the seeds that finished.
      `seeds` counts these, and `diverged_seeds` the others. If no seed of a setting finished, each
      epoch is averaged over the seeds that have not diverged by then.
    - If a metric is NaN for a seed that finished, such as the AUC of a fold without positives, its
      mean is over the others. `auc_undefined` then counts the missing seeds, by epoch and split;
      without that variable, none is missing. `select.rank` places means that miss more seeds behind
      those that miss fewer.
    - A seed that trained for fewer epochs than others of its setting keeps its last values in
      metrics and running means. `step_loss` and `gradient_norm` are means over the seeds that were
      still training.
    - If seeds keep the parameters of their best epochs, `final_loss` and the like are the means of
      those epochs; `select.final` uses them.
    - `epochs_trained` and `steps_per_epoch` are the largest of any seed or fold.
    - Integers that cannot be averaged, such as predicted classes, are left out.
    """
    together = flat(ds)
    settings = Settings.of(together)
    if settings is None:
        return ds
    ds = _same_length(together, settings)
    finished = ds["diverged_epoch"] == 0
    found = settings.sum(finished)
    lost = found == 0  # settings without a seed that finished
    kept = finished | settings.of_each(lost)
    made: dict[str, xr.DataArray] = {}
    for key, values in ds.data_vars.items():
        name = str(key)
        if settings.dim not in values.dims:
            made[name] = values
        elif name in ("epochs_trained", "steps_per_epoch"):
            made[name] = settings.max(values)
        elif values.dtype.kind == "f":
            if "epoch" in values.dims:
                values = values.where(kept & (finished | (ds["epoch"] < ds["diverged_epoch"])))
            else:
                values = values.where(kept)
            if name in select.metrics(ds):
                there = finished & (ds["epoch"] <= ds["epochs_trained"])
                missing = settings.sum(values.isnull() & there)
                if missing.any():
                    made[f"{name}_undefined"] = missing
            mean, std = _mean_and_std(settings, values)
            made[name] = mean.assign_attrs(ds[key].attrs)
            if name != "seconds":  # shares of what was measured for all seeds at once
                made[f"{name}_std"] = std.assign_attrs(units=values.attrs.get("units", ""))
    best = together["best_epoch"] if "best_epoch" in together else xr.DataArray(0)
    for metric in select.metrics(together) if bool((best > 0).any()) else ():
        end = select.final(together, metric)
        if "split" not in together.dims:
            end = end.isel(split=0, drop=True)
        missing = settings.sum(end.isnull() & finished)
        if missing.any():
            made[f"final_{metric}_undefined"] = missing
        made[f"final_{metric}"], made[f"final_{metric}_std"] = _mean_and_std(settings, end)
    latest = settings.places(ds["diverged_epoch"], 1.0)  # of a setting without one that finished
    for name in ("diverged_epoch", "diverged_step"):
        if name in ds:
            own = settings.take(ds[name], latest).drop_vars(settings.replicates)
            made[name] = own.where(lost, 0).astype(int)
    made["seeds"] = found
    made["diverged_seeds"] = settings.sum(~finished)
    outer = settings.first(ds)
    axes = settings.axes(ds)
    return xr.Dataset(
        made,
        {name: own for name, own in outer.coords.items() if name not in settings.replicates},
        {
            **ds.attrs,
            "axes": json.dumps(axes),
            **{
                f"averaged_{name}s": json.dumps(np.unique(ds[name].values).tolist())
                for name in settings.replicates
            },
            "settings": int(np.prod([outer.sizes[axis] for axis in axes], dtype=int)),
        },
    )


def _same_length(ds: xr.Dataset, settings: Settings) -> xr.Dataset:
    """Curves of equal length over the seeds of each setting; a single epoch stays as it is."""
    if "epoch" not in ds.dims:
        return ds
    last = ds["epochs_trained"]
    longest = settings.of_each(settings.max(last))
    alike = bool((last == longest).all())
    return ds if alike and "best_epoch" not in ds else select.carried_on(ds, longest)


def _mean_and_std(settings: Settings, values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Over the seeds that are not NaN; NaN if there is none, and as the deviation of one."""
    n = settings.sum(values.notnull())
    with np.errstate(invalid="ignore"):  # infinity less infinity
        mean = settings.sum(values.fillna(0).astype(float)) / n.where(n > 0)
        off = (values.astype(float) - settings.of_each(mean)).where(values.notnull(), 0.0)
        variance = settings.sum(off**2) / (n - 1).where(n > 1)
    return mean.astype(values.dtype), (variance**0.5).astype(values.dtype)


def typical(ds: xr.Dataset) -> xr.Dataset:
    """For each setting, the trial with the median loss of its seeds: for what has no mean.

    The loss is that on `select.default_split` after the last epoch; for an even number of seeds, it
    is the better of the two in the middle. Diverged seeds are left out if any seed finished.
    Settings are in the order of `average`. Results without seeds to average are returned as they
    are.
    """
    together = flat(ds)
    settings = Settings.of(together)
    if settings is None:
        return ds
    ds = together
    loss = select.final(ds, "loss").sel(split=select.default_split(ds), drop=True)
    middle = settings.take(ds, settings.places(loss, 0.5))
    return middle.assign_attrs(axes=json.dumps(settings.axes(ds)))


def best(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """The setting with the best mean of `metric`: its means, and its `typical` trial.

    Raises UserError for an unknown metric or split.
    """
    means = average(ds)
    place = int(select.rank(means, metric, split).index[0])
    return select.point(means, place)[1], select.point(typical(ds), place)[1]


@dataclass(frozen=True)
class Lead:
    """By how much the best setting leads the next, and how certain that is.

    Attributes:
        best: the setting with the best mean, in words.
        second: the next setting, in words.
        settings: the number of settings.
        seeds: for how many seeds the metric is known for both settings, if they are `paired`.
        wins: with how many of these seeds the best setting is better than every other.
        difference: by how much the mean of the best setting is better, in the unit of the metric;
            over the same seeds if they are `paired`. It is 0 if float32 cannot tell the means
            apart, and negative if the second setting ranks behind only because it misses seeds.
        low: the lower end of the 95 % interval of the difference. If the seeds are `paired`, this
            is Student's t interval of the mean difference, seed by seed ("The Probable Error of a
            Mean", Biometrika 1908); otherwise it is Welch's interval of the difference of two means
            with different variances ("The generalization of 'Student's' problem", Biometrika
            1947). They cover 95 % for any number of seeds from 2 if differences are normal, and
            about 88 % if they are as skewed as an exponential distribution. With two seeds, an
            interval extends 13 standard errors to each side. NaN for one seed, and if all
            differences are equal, which says nothing about their spread.
        high: the upper end.
        paired: whether the two have at least half of their seeds in common, and more than one.
        replicate: "seed", "fold" or "seed-fold pair": what is called a seed above.
            Pairs that share a seed or a fold are not independent. The squared errors of the means
            of each seed, and of each fold, are added, with the degrees of freedom of Satterthwaite
            ("An Approximate Distribution of Estimates of Variance Components", 1946).
            Folds share most of their training examples, so their intervals are too narrow: Nadeau
            and Bengio, "Inference for the Generalization Error" (2003).
    """

    best: str
    second: str
    settings: int
    seeds: int
    wins: int
    difference: float
    low: float
    high: float
    paired: bool = True
    replicate: str = "seed"

    @property
    def clear(self) -> bool:
        """Whether the difference is larger than the spread: its interval is above 0."""
        return self.low > 0

    @property
    def interval(self) -> str:
        """The difference and its interval, in words."""
        how = f"Student's t, {self.replicate} by {self.replicate}"
        if self.replicate not in select.REPLICATES:
            how = "Student's t, by seeds and by folds"
        if not self.paired:
            how = f"Welch's t, over the {self.replicate}s of each"
        return (
            f"{number(self.difference, 3)} ({LEVEL} % interval {number(self.low, 2)} to "
            f"{number(self.high, 2)}, {how})"
        )

    def __str__(self) -> str:
        """One or two sentences about "It", the best setting."""
        return self.told()

    def told(self, after: str | None = None) -> str:
        """The same, to follow the sentences `after`; names the setting unless they end with it."""
        named = after is not None and not after.endswith(f"{self.best}.")
        of = f"{number(self.wins) if self.wins else 'none'} of {count(self.seeds, self.replicate)}"
        said = ""
        if self.paired and self.seeds:
            said = f"It is the best with {of}. "
            if named:
                said = f"With {of}, {self.best} is the best. "
                said = said if self.wins else f"With {of} is {self.best} the best. "
                named = False
        if self.difference == 0:
            over = f" over the {self.replicate}s known for both" if self.paired else ""
            how = f": the difference is {self.interval}" if np.isfinite(self.low) else ""
            return f"{said}{self.best if named else 'It'} ties with {self.second}{over}{how}."
        if not np.isfinite(self.low):
            return f"{said}The next {f'after {self.best} ' if named else ''}is {self.second}."
        if self.difference < 0:
            turned = replace(self, difference=-self.difference, low=-self.high, high=-self.low)
            over = f"the {self.replicate}s known for both" if self.paired else "those it has"
            return (
                f"{said}The next {f'after {self.best} ' if named else ''}is {self.second}, which "
                f"is better over {over}, by {turned.interval}"
                f"{'' if turned.clear else ', which is within their spread'}."
            )
        lead = f"The lead of {self.best}" if named else "Its lead"
        if not self.clear:
            within = f"within the spread of the {self.replicate}s"
            return f"{said}{lead} over {self.second} is {within}: {self.interval}."
        if named:
            return f"{said}{lead} over {self.second} is {self.interval}."
        return f"{said}It leads {self.second} by {self.interval}."


def lead(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, over: Mapping[str, object] = {}
) -> Lead | None:
    """The `Lead` of the best setting, by the mean of `metric` after the last epoch.

    The lead is over the next setting, or over the best one with the values of `over`, such as
    `{"width": 32}`. None if there are no seeds to average, or if fewer than two settings have a
    finite mean.
    Raises UserError for an unknown metric or split, and for values of `over` that no setting has,
    or only the best one.
    """
    return _lead(ds, average(ds), metric, split or select.default_split(ds), over)


def _lead(
    ds: xr.Dataset, means: xr.Dataset, metric: str, split: str, over: Mapping[str, object] = {}
) -> Lead | None:
    ranked = select.rank(means, metric, split)
    ds = flat(ds)
    settings = Settings.of(ds)
    if settings is None:
        return None
    ranked = ranked[np.isfinite(ranked["value"])]
    if over:
        axes = select.axes(means)
        place = np.arange(select.size(means)).reshape([means.sizes[axis] for axis in axes])
        there = select.where(means.assign(_place=(axes, place)), **over)["_place"].values.ravel()
        best = ranked.index[:1]
        if set(there) == set(best):
            asked = ", ".join(f"{name}={text(value)}" for name, value in over.items())
            own = ranked["trial"].iloc[0]
            raise UserError(f"over: {asked} is the best setting itself, expected another: {own}")
        ranked = ranked[ranked.index.isin([*best, *there])]
    if len(ranked) < 2:
        return None
    sign = 1 if select.direction(ds, metric) == "higher" else -1
    values = sign * select.by_trial(ds, select.final(ds, metric).sel(split=split)).astype(float)
    given, repeated = select.values_by_trial(ds), list(settings.replicates)
    own = {name: given[name] for name in repeated}
    trials = pd.DataFrame({"setting": settings.by_trial(ds), **own, "value": values})
    trials = trials[np.isfinite(trials["value"])].set_index(repeated)
    first, second = (trials.loc[trials["setting"] == place, "value"] for place in ranked.index[:2])
    gain_K = (first - second).dropna()
    others = trials.loc[trials["setting"] != ranked.index[0], "value"].groupby(level=repeated).max()
    fewer = min(len(first), len(second))
    paired = 2 * len(gain_K) >= fewer and len(gain_K) >= min(fewer, 2)
    shared = (first[gain_K.index], second[gain_K.index]) if paired else (first, second)
    difference = mean_difference(*(float(own.mean()) for own in shared))
    largest = float(pd.concat([first, second]).abs().max())
    half = _half_width([gain_K] if paired else [first, second], largest)
    return Lead(
        best=str(ranked["trial"].iloc[0]),
        second=str(ranked["trial"].iloc[1]),
        settings=select.size(means),
        seeds=len(gain_K),
        wins=int((first[gain_K.index] > others[gain_K.index]).sum()),
        difference=difference,
        low=difference - half,
        high=difference + half,
        paired=paired,
        replicate=select.replicate(ds),
    )


def _half_width(samples: Sequence[pd.Series], largest: float = 0.0) -> float:
    """Half the width of the interval of a mean, or of the difference of two independent means.

    By Student's t; for several means, whose squared errors add up, with the degrees of freedom of
    Welch and Satterthwaite.

    NaN for single values, and for values that are equal up to the rounding of the `largest` number
    from which they are differences: a coarse metric, such as the accuracy on few examples, gives
    equal ones by chance. A bootstrap would be too narrow: the percentiles of two values are the
    values themselves, which cover half of what they should.
    """
    from scipy.special import stdtrit  # it takes half a second to start

    parts = [part for sample in samples for part in _independent(sample)]
    if min(map(len, parts)) < 2:
        return float("nan")
    squared_errors = [float(part.var(ddof=1)) / len(part) for part in parts]
    total = sum(squared_errors)
    if math.sqrt(total) <= ROUNDING * largest:
        return float("nan")
    freedom = total**2 / sum(
        own**2 / (len(part) - 1) for own, part in zip(squared_errors, parts, strict=True)
    )
    return float(stdtrit(freedom, (100 + LEVEL) / 200)) * math.sqrt(total)


def _independent(sample: pd.Series) -> list[pd.Series]:
    """Samples of independent values whose squared errors add up to that of the mean, or to more.

    For seeds crossed with folds, these are the means of each seed and the means of each fold: pairs
    that share a seed or a fold are not independent. The variation of single pairs counts twice.
    """
    levels = map(sample.index.get_level_values, range(sample.index.nlevels))
    shared = [level for level in levels if 1 < level.nunique() < len(sample)]
    return [sample.groupby(level).mean() for level in shared] or [sample]


def best_in_words(
    ds: xr.Dataset, metric: str = "loss", split: str | None = None, digits: int = 3
) -> str:
    """The setting with the best mean, and how clearly it leads: one to three sentences.

    `select.best_in_words` does the same for single trials.
    """
    means = average(ds)
    leading = _lead(ds, means, metric, split or select.default_split(ds))
    sentence = select.best_in_words(means, metric, split, digits)
    return sentence if leading is None else f"{sentence} {leading.told(sentence)}"
