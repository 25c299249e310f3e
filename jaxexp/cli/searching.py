"""A search that the command line asks for: its space, its sampler, and the sweep they make."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jaxexp.base.errors import UserError
from jaxexp.base.words import did_you_mean
from jaxexp.spec.parse import parse
from jaxexp.spec.samplers import random, sobol
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Axis, Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Written

if TYPE_CHECKING:
    from jaxexp.execution.rules import StoppingRule

EXAMPLE = "--set learning_rate='loguniform(1e-4,1)'"
BATCH = 64  # suggestions of a study that train at once, if not given
FEWEST = {"pbt": 4, "halving": 2}  # trials; a quarter of a population copies another quarter
MOST = 1_000_000  # trials, all seeds counted
MOST_SEEDS = 1000  # of a point


class Made(NamedTuple):
    """The trials, and what becomes of them as they train.

    Where a study suggests the trials as it goes, they are examples: the ends of what it may
    suggest from its `space`.
    """

    sweep: Sweep
    stopping: "StoppingRule | None" = None
    space: Space | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the points of a space are chosen; `trials` is None where the sampler decides it.

    `batch` is how many suggestions of a study train at once, and `seeds` with how many seeds each
    point trains: that of the base trial and those that follow. Points are compared by their means.

    >>> import jaxexp as jx
    >>> search = Search(sampler="random", trials=4)
    >>> made = search.sweep(
    ...     jx.Sweep(jx.MLPTrial()), {"depth": ["2"], "learning_rate": ["loguniform(1e-4,1)"]}
    ... )
    >>> made.sweep.shape, made.sweep.base.depth, made.stopping
    ((4,), 2, None)
    """

    sampler: str
    trials: int | None = None
    seed: int = 0
    metric: str = "loss"
    batch: int | None = None
    seeds: int = 1

    def sweep(self, given: Sweep, settings: Mapping[str, list[str]]) -> Made:
        """The sweep of the points, named and recording as the one given, and what is to become.

        Raises UserError for a sampler that is unknown, a number of trials that it cannot have, and
        settings that are no space.
        """
        self._check()
        space = _space(Sweep(given.base), settings)
        if self.seeds > 1 and "seed" in space.names:
            raise UserError(f"--seeds {self.seeds}: expected without --set seed, which is searched")
        made = _SAMPLERS[self.sampler](self, space)
        found = len(made.sweep.trials()) // self.seeds
        if made.space is None and self.trials not in (None, found):
            raise UserError(
                f"--trials {self.trials}: the brackets of {self.sampler} decide how many: expected "
                f"{found} for epochs={space.base.epochs}, or none given"
            )
        named = dataclasses.replace(made.sweep, name=given.name, record=given.record)
        return made._replace(sweep=named)

    def check_metric(self, metrics: Mapping[str, object]) -> None:
        """Raise UserError where the task has no such metric."""
        there = ["loss", *metrics]
        if self.metric not in there:
            meant = did_you_mean(self.metric, there)
            raise UserError(f"--metric {self.metric!r}: {meant}expected one of {', '.join(there)}")

    def _check(self) -> None:
        if self.sampler not in _SAMPLERS:
            meant = did_you_mean(self.sampler, _SAMPLERS)
            raise UserError(
                f"--sampler {self.sampler!r}: {meant}expected one of {', '.join(_SAMPLERS)}"
            )
        least = FEWEST.get(self.sampler, 1)
        if self.trials is None and self.sampler != "hyperband":
            raise UserError(f"--trials: {self.sampler} has to be told how many, at least {least}")
        if self.trials is not None and not least <= self.trials <= MOST:
            raise UserError(
                f"--trials {self.trials}: expected {least} to {MOST:,} for --sampler {self.sampler}"
            )
        if self.batch is not None and self.sampler != "optuna":
            raise UserError(f"--batch {self.batch}: expected with --sampler optuna alone")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch {self.batch}: expected a whole number, at least 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: expected a whole number, at least 0")
        self._check_seeds()

    def _check_seeds(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(f"--seeds {self.seeds}: expected 1 to {MOST_SEEDS:,}")
        if self.seeds > 1 and self.sampler == "pbt":
            raise UserError(
                f"--seeds {self.seeds}: the members of a population have a seed each, and copy one "
                "another: expected none with --sampler pbt; run the search again with another "
                "--seed, and compare the runs"
            )
        if (self.trials or 1) * self.seeds > MOST:
            raise UserError(
                f"--seeds {self.seeds}: {self.trials:,} points with so many seeds are more than "
                f"{MOST:,} trials"
            )


def _random(search: Search, space: Space) -> Made:
    return Made(random(space, search.trials or 0, seed=search.seed, seeds=search.seeds))


def _sobol(search: Search, space: Space) -> Made:
    return Made(sobol(space, search.trials or 0, seed=search.seed, seeds=search.seeds))


def _halving(search: Search, space: Space) -> Made:
    from jaxexp.search.halving import Halving  # JAX takes a second to start

    return _random(search, space)._replace(stopping=Halving(search.metric))


def _hyperband(search: Search, space: Space) -> Made:
    from jaxexp.search.halving import Hyperband

    made = Hyperband(space, search.metric, seed=search.seed, seeds=search.seeds)
    return Made(made.sweep, made)


def _pbt(search: Search, space: Space) -> Made:
    from jaxexp.search.population import PBT

    made = PBT(space, population=search.trials or 0, metric=search.metric, seed=search.seed)
    return Made(made.sweep, made)


def _optuna(search: Search, space: Space) -> Made:
    from jaxexp.results.joining import sweep_over
    from jaxexp.search.suggestions import import_optuna, suggestions

    import_optuna()
    made = suggestions(space)
    first = space.base.seed
    seeds = range(first, first + search.seeds) if search.seeds > 1 else ()
    return Made(sweep_over(space.base, made.names, made.examples(), seeds, "ends"), None, space)


_SAMPLERS: dict[str, Callable[[Search, Space], Made]] = {
    "random": _random, "sobol": _sobol, "halving": _halving, "hyperband": _hyperband, "pbt": _pbt,
    "optuna": _optuna,
}  # fmt: skip
SAMPLERS = tuple(_SAMPLERS)


def _space(fixed: Sweep, settings: Mapping[str, list[str]]) -> Space:
    """One value fixes a hyperparameter, anything else is searched."""
    searched: dict[str | Axis, object] = {}
    for name, [written] in settings.items():
        fixed.base.check_name(name)
        if written != "()" and any(mark in f"{written} " for mark in ("(", ")", ",", " when ")):
            try:
                searched[name] = parse(written)
            except UserError as error:
                raise UserError(f"--set {name}: {error}") from None
        else:
            fixed = fixed.set({name: [Written(written)]})
    if not searched:
        raise UserError(f"--set: nothing is searched: expected a distribution, such as {EXAMPLE}")
    base: Trial = fixed.base
    try:
        return Space(base, searched)
    except UserError as error:
        raise UserError(f"--set {error}") from None
