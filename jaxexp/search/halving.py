"""Successive halving and Hyperband: many trials begin, and the better ones of them go on."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int
from jaxexp.base.words import count
from jaxexp.execution.rules import Curves
from jaxexp.spec.samplers import random
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial, with_values

MOST_EPOCHS = 10**6  # beyond which no rung is thought of


@dataclass(frozen=True)
class Halving:
    """Successive halving: at each rung, one in `factor` settings goes on.

    Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization" (2016). The rungs lie after `first`, `first * factor`, `first * factor**2` …
    epochs, and `factor` is called η there. All programs of a run wait for each other at a rung.
    Trials that differ only in their seed or fold are one setting, compared by its mean. If another
    rule, such as `StopDiverged`, has ended one of them, the setting does not go on.

    Args:
        metric: what settings are compared by: "loss" or a metric of the task.
        factor: one in this many settings goes on.
        first: the epochs before the first rung.
        split: by default the validation split if there is one, otherwise the training split.

    Raises:
        UserError: for invalid numbers and, before a run, for an unknown metric.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> rates = {"learning_rate": [10.0 ** -(n / 2) for n in range(9)]}
    >>> sweep = jx.Sweep(jx.MLPTrial(epochs=4, depth=1, batch_size=8), rates)
    >>> results = jx.run(sweep, data=data, stopping=Halving(), progress=False)
    >>> sorted(results["epochs_trained"].values.tolist())
    [1, 1, 1, 1, 1, 1, 3, 3, 4]
    """

    metric: str = "loss"
    factor: int = 3
    first: int = 1
    split: str | None = None
    of_every_trial: ClassVar[bool] = True
    _begun: Counter[Trial] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError for numbers that cannot be."""
        checked_int("factor", self.factor, least=2)
        checked_int("first", self.first, least=1)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which settings are compared."""
        rungs = [self.first]
        while rungs[-1] * self.factor <= MOST_EPOCHS:
            rungs.append(rungs[-1] * self.factor)
        return tuple(rungs)

    def check(self, trials: Sequence[Trial], curves: Curves, steps: np.ndarray) -> None:
        """Raise UserError for a metric or a split that there is not."""
        curves.check(self.metric, self.split)
        _begin(self._begun, trials)

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """All but the trials of the best settings, one of `factor`."""
        cost_T = curves.costs(self.metric, self.split)[:, -1]
        return ~_best(trials, cost_T, self._begun, lambda n: n // self.factor)


@dataclass(frozen=True)
class Hyperband:
    """Hyperband: several successive halvings, from many short trials to a few long ones.

    Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar, "Hyperband: a novel bandit-based approach to
    hyperparameter optimization" (2018), algorithm 1, with R the epochs of the space's base trial
    over `first`, and η the `factor`. The points of all brackets are drawn at random, and all
    brackets run as one plan: `jaxexp.run(Hyperband(…), task, data)`.

    Args:
        space: what is searched; the epochs of its base trial are the longest.
        metric: as for `Halving`, and so are `factor`, `first` and `split`.
        factor: see there.
        first: see there; the brackets' shortest trials.
        split: see there.
        seed: decides the points.
        seeds: the number of seeds that each point is trained with.

    Raises:
        UserError: for invalid numbers, and for a space that has fewer points.

    >>> import jaxexp as jx
    >>> space = jx.search.Space(
    ...     jx.MLPTrial(epochs=9), {"learning_rate": jx.search.loguniform(1e-4, 1)}
    ... )
    >>> search = Hyperband(space)
    >>> search.brackets, search.rungs
    (((9, (1, 3)), (5, (3,)), (3, ())), (1, 3))
    """

    space: Space
    metric: str = "loss"
    factor: int = 3
    first: int = 1
    split: str | None = None
    seed: int = 0
    seeds: int = 1
    of_every_trial: ClassVar[bool] = True
    sweep: Sweep = field(init=False, repr=False, compare=False)
    _bracket: dict[Trial, int] = field(init=False, repr=False, compare=False)
    _begun: Counter[Trial] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Draw the points, and raise UserError for numbers that cannot be."""
        checked_int("factor", self.factor, least=2)
        checked_int("first", self.first, least=1)
        if not isinstance(self.space, Space):
            raise UserError(f"space={self.space!r}: expected a jaxexp.search.Space")
        if "epochs" in self.space.names:
            raise UserError("Hyperband: `epochs` is searched, but decided by the brackets")
        if self.first > self.space.base.epochs:
            raise UserError(f"first={self.first}: the trials have {self.space.base.epochs} epochs")
        sizes = [size for size, _ in self.brackets]
        sweep = random(self.space, sum(sizes), seed=self.seed, seeds=self.seeds)
        of = np.repeat(np.arange(len(sizes)), np.array(sizes) * self.seeds)
        object.__setattr__(self, "sweep", sweep)
        object.__setattr__(self, "_bracket", dict(zip(sweep.trials(), of.tolist(), strict=True)))

    @property
    def brackets(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Of each bracket its settings, and the epochs after which most of them end."""
        longest, factor = self.space.base.epochs, self.factor
        most = 0  # s_max, without the rounding of a logarithm
        while self.first * factor ** (most + 1) <= longest:
            most += 1
        return tuple(
            (
                -(-(most + 1) * factor**s // (s + 1)),
                tuple(max(1, longest // factor**step) for step in range(s, 0, -1)),
            )
            for s in range(most, -1, -1)
        )

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which settings are compared, in any of the brackets."""
        return tuple(sorted({rung for _, rungs in self.brackets for rung in rungs}))

    def check(self, trials: Sequence[Trial], curves: Curves, steps: np.ndarray) -> None:
        """Raise UserError for a metric or split that there is not, and for other trials."""
        curves.check(self.metric, self.split)
        if others := [trial for trial in trials if trial not in self._bracket]:
            raise UserError(
                f"{count(len(others), 'trial')} of the sweep are in none of the brackets: expected "
                "the sweep of this search, as in jaxexp.run(search, task, data)"
            )
        _begin(self._begun, trials)

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """Of each bracket that has a rung here, all but the best settings."""
        cost_T = curves.costs(self.metric, self.split)[:, -1]
        stopped = np.zeros(len(trials), bool)
        of_T = np.array([self._bracket[trial] for trial in trials])
        for bracket, (size, rungs) in enumerate(self.brackets):
            own = np.flatnonzero(of_T == bracket).tolist()
            if epoch in rungs and own:
                kept = size // self.factor ** (rungs.index(epoch) + 1)
                asked = [trials[i] for i in own]
                stopped[own] = ~_best(asked, cost_T[own], self._begun, lambda n: kept)  # noqa: B023
        return stopped


def _begin(begun: Counter[Trial], trials: Sequence[Trial]) -> None:
    """Note how many trials each setting of a run begins with."""
    begun.clear()
    begun.update(map(_setting, trials))


def _best(
    trials: Sequence[Trial], cost_T: np.ndarray, begun: Counter[Trial], kept: Callable[[int], int]
) -> np.ndarray:
    """Which trials, (T,) bool, are of the `kept(settings)` best settings; one at least.

    A setting costs the mean over its seeds and folds. One that diverged, or has fewer trials left
    than it has `begun` with, goes on only if all have.
    """
    costs: dict[Trial, list[float]] = {}
    for trial, cost in zip(trials, cost_T.tolist(), strict=True):
        costs.setdefault(_setting(trial), []).append(cost)
    mean = {  # of some alone, only among their like
        setting: (len(own) < begun[setting], float(np.mean(own))) for setting, own in costs.items()
    }
    whole = sum(not fewer and math.isfinite(cost) for fewer, cost in mean.values())
    most = max(1, min(kept(len(mean)), whole))
    # Ties by content, so that the order of the trials decides nothing.
    best = set(sorted(mean, key=lambda setting: (*mean[setting], setting.id))[:most])
    return np.array([_setting(trial) in best for trial in trials])


def _setting(trial: Trial) -> Trial:
    return with_values(trial, seed=0, fold=0)
