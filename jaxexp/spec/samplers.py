"""Samplers: sweeps whose trials are points of a search space, drawn at random or on a grid.

For each hyperparameter of a point, a number in [0, 1) is drawn, which the distribution turns into a
value. The numbers depend only on the seed, not on the process, the machine, or the order of the
hyperparameters in the space.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest
from jaxexp.base.numbers import checked_int
from jaxexp.base.words import count
from jaxexp.spec.distributions import Choice, Conditional
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Axis, Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Value

DIM = "sample"  # the dimension of the results along which the points lie
IN_VAIN = 10_000  # points drawn one after another that were there before
MOST_OF_A_GRID = 1_000_000


def random(space: Space, trials: int, *, seed: int = 0, seeds: int = 1) -> Sweep:
    """A sweep of points drawn independently (random search).

    Args:
        space: the search space.
        trials: the number of points, all of them different.
        seed: of the random numbers. Each hyperparameter has its own stream, so adding one leaves
            the values of the others unchanged.
        seeds: with how many consecutive seeds each point is trained, starting at that of the base
            trial.

    Returns:
        A `jaxexp.Sweep` with the dimension "sample", and with "seed" if there are several.

    Raises:
        UserError: if the space has fewer points, or the values of a point do not fit together.

    >>> import jaxexp as jx
    >>> space = jx.search.Space(jx.MLPTrial(), {"learning_rate": jx.search.loguniform(1e-4, 1)})
    >>> [trial.learning_rate for trial in random(space, 3).trials()]
    [0.5098574, 0.00018805946, 0.002795665]
    """
    trials, seed, seeds = _checked(space, trials, seed, seeds)
    return _sweep(space, _distinct(space, _drawn(space, seed), trials), seeds, "random")


def members(space: Space, size: int, *, seed: int) -> list[dict[str, Value]]:
    """The members of a population: the points of `random`, repeated in turn if there are fewer."""
    points = list(_found(space, _drawn(space, seed), size).values())
    return [points[member % len(points)] for member in range(size)]


def _drawn(space: Space, seed: int) -> Iterator[dict[str, float]]:
    """Quantiles; each hyperparameter has its own stream."""
    streams = {
        axis[0]: np.random.default_rng([seed, int(digest(*axis), 16)])
        for axis in space.distributions
    }
    while True:
        yield {name: float(stream.random()) for name, stream in streams.items()}


def sobol(space: Space, trials: int, *, seed: int = 0, seeds: int = 1) -> Sweep:
    """A sweep of the first points of a scrambled Sobol sequence (quasi-random search).

    These cover a space more evenly than random points. If `trials` is a power of two, the sequence
    is balanced: every half, quarter … of each hyperparameter's range has the same number of points.
    For other numbers, some parts have one more than others.

    Args:
        space: the search space.
        trials: the number of points, all of them different.
        seed: of the scrambling (Owen, 1995), which makes each single point uniform.
        seeds: as for `random`.

    Returns:
        As for `random`.

    Raises:
        UserError: as for `random`.

    >>> import jaxexp as jx
    >>> space = jx.search.Space(jx.MLPTrial(), {"width": jx.search.integers(1, 4)})
    >>> sorted(trial.width for trial in sobol(space, 4).trials())
    [1, 2, 3, 4]
    """
    trials, seed, seeds = _checked(space, trials, seed, seeds)
    from scipy.stats import qmc  # it takes a second to start

    names = [axis[0] for axis in space.distributions]
    sequence = qmc.Sobol(len(names), scramble=True, rng=np.random.default_rng([seed, len(names)]))

    def drawn() -> Iterator[dict[str, float]]:
        size = (trials - 1).bit_length()
        while True:
            for row in sequence.random_base2(size):
                yield dict(zip(names, map(float, row), strict=True))
            size = (int(sequence.num_generated)).bit_length() - 1  # as much as there was: doubled

    return _sweep(space, _distinct(space, drawn(), trials), seeds, "sobol")


def grid(space: Space, points: int | Mapping[str, int], *, seeds: int = 1) -> Sweep:
    """A sweep of a grid over the space: every value of one hyperparameter with all of the others.

    Args:
        space: the search space.
        points: the number of values of each hyperparameter, or by name. They are equally spaced in
            probability and include both ends. Choices, and ranges with fewer whole numbers than
            that, have all their values; SciPy's distributions, which may have no ends, have the
            medians of so many parts. Where a condition does not hold, there is one value: that of
            the base trial.
        seeds: as for `random`.

    Returns:
        As for `random`.

    Raises:
        UserError: for names that are not in the space, and values that do not fit together.

    >>> import jaxexp as jx
    >>> space = jx.search.Space(
    ...     jx.MLPTrial(),
    ...     {"learning_rate": jx.search.loguniform(1e-4, 1), "optimizer": ["adam", "sgd"]},
    ... )
    >>> grid(space, 3).shape
    (6,)
    """
    _, _, seeds = _checked(space, 1, 0, seeds)
    each = _points_of(space, points)
    values = [own.grid(each[axis]) for axis, own in space.distributions.items()]
    size = float(np.prod([float(len(own)) for own in values]))
    if size > MOST_OF_A_GRID:
        raise UserError(f"points={points!r}: a grid of {size:,.0f} points, expected fewer")
    found: dict[Trial, dict[str, Value]] = {}
    for taken in itertools.product(*values):
        point = space.resolve(dict(zip(space.distributions, taken, strict=True)))
        found.setdefault(space.trial(point), point)
    return _sweep(space, list(found.values()), seeds, "grid")


def _points_of(space: Space, points: int | Mapping[str, int]) -> dict[Axis, int]:
    axes = space.distributions
    if not isinstance(points, Mapping):
        return dict.fromkeys(axes, checked_int("points", points))
    if unknown := points.keys() - set(space.names):
        raise UserError(f"points: {min(unknown)!r}: expected some of {', '.join(space.names)}")
    made: dict[Axis, int] = {}
    for axis, own in axes.items():
        given = [points[name] for name in axis if name in points]
        inner = own.distribution if isinstance(own, Conditional) else own
        if not given and not isinstance(inner, Choice):
            raise UserError(f"points: {axis[0]} is missing: expected a number for it")
        made[axis] = checked_int(f"points[{axis[0]!r}]", given[0]) if given else 1
    return made


def _checked(space: Space, trials: int, seed: int, seeds: int) -> tuple[int, int, int]:
    if not isinstance(space, Space):
        raise UserError(f"space={space!r}: expected a jaxexp.search.Space")
    trials, seeds = checked_int("trials", trials), checked_int("seeds", seeds)
    seed = checked_int("seed", seed, least=0)
    if seeds > 1 and "seed" in space.names:
        raise UserError(f"seeds={seeds}: `seed` is searched already")
    if space.count < trials:
        raise UserError(
            f"trials={trials}: the space has {count(int(space.count), 'point')} at most"
        )
    return trials, seed, seeds


def _distinct(
    space: Space, drawn: Iterator[dict[str, float]], trials: int
) -> list[dict[str, Value]]:
    """The first different points, as trials."""
    found = _found(space, drawn, trials)
    if len(found) < trials:
        raise UserError(
            f"trials={trials}: the last {IN_VAIN:,} points drawn were among the "
            f"{count(len(found), 'point')} before them: expected fewer trials, or a larger space"
        )
    return list(found.values())


def _found(
    space: Space, drawn: Iterator[dict[str, float]], most: int
) -> dict[Trial, dict[str, Value]]:
    """The first different points; fewer if there are no more, or no more are found."""
    found: dict[Trial, dict[str, Value]] = {}
    in_vain = 0
    while len(found) < min(most, space.count) and in_vain <= IN_VAIN:
        point = space.point(next(drawn))
        trial = space.trial(point)
        in_vain = in_vain + 1 if trial in found else 0
        found.setdefault(trial, point)
    return found


def _sweep(space: Space, points: list[dict[str, Value]], seeds: int, name: str) -> Sweep:
    names = space.names
    axes: dict[str | Axis, list[Value | tuple[Value, ...]]] = {
        names: [tuple(point[n] for n in names) for point in points]
    }
    if seeds > 1:
        axes["seed"] = list(range(space.base.seed, space.base.seed + seeds))
    return Sweep(space.base, axes, name=name, dim_names={names: DIM}, conditions=space.conditions)
