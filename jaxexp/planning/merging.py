"""Merging: the fewest groups of trials that take hardly longer than the best grouping found.

Initially each group holds trials of equal sizes. The two groups that cost the least to merge are
merged, again and again, weighing the seconds of padding against those of a compilation
(agglomerative clustering). With up to `MOST` groups, every pair is compared. More groups are first
split into about `MOST` cells, by halving them repeatedly so that similar sizes stay together; each
cell becomes one group if that pays.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from jaxexp.planning.cost import Machine, Workload
from jaxexp.planning.loads import Best, Costs, Load, best, stacked
from jaxexp.spec.hyperparameters import Hyperparameter, Kind
from jaxexp.spec.padding import each_layer
from jaxexp.spec.trial import Trial, with_values
from jaxexp.spec.values import Value

MOST = 256  # groups, up to which every pair is compared
SLACK = 0.15  # how much longer than the best grouping fewer groups may take, as a share of it


@dataclass(frozen=True)
class Group:
    """Trials that may share a program: what decides how long they train."""

    members: tuple[int, ...]  # the indices of the given programs that it merges
    load: Load
    sizes: tuple[Value, ...]  # the largest value of every size, and the rates that are on
    seconds: float = 0.0  # of training and compiling, on one device
    compile_seconds: float = 0.0  # included in `seconds`


class Way(NamedTuple):
    """Groupings from the given groups to a single one, each of fewer groups; which is chosen."""

    groupings: list[list[Group]]
    chosen: int


class Merger:
    """Merges groups that agree in everything that cannot be padded."""

    def __init__(self, like: Trial, workload: Workload, machine: Machine):
        """`like` is the `least_of` all trials; it holds what they have in common."""
        self._like, self._workload, self._machine = like, workload, machine
        self._fields = {name: field for name, field in like.fields().items() if _differs(field)}
        self._costs: dict[tuple[Value, ...], Costs] = {}
        self._pairs: dict[tuple[tuple[Value, ...], tuple[Value, ...]], tuple[Value, ...]] = {}

    def groups(self, bounding: Sequence[Trial], loads: Sequence[Load]) -> list[Group]:
        """One group per load, of trials of equal sizes: those of its bounding trial."""
        sizes = [tuple(getattr(bound, name) for name in self._fields) for bound in bounding]
        found = self._best(stacked(loads), Costs.stacked(map(self._cost, sizes)))
        return [
            Group((i,), load, own, float(each.seconds + each.compile_seconds),
                  float(each.compile_seconds))
            for i, (load, own, each) in enumerate(zip(loads, sizes, found.each(), strict=True))
        ]  # fmt: skip

    def way(self, groups: Sequence[Group]) -> Way:
        """Merge step by step; the chosen grouping takes hardly longer than the best one found.

        If there are too many groups to compare all pairs, the first step merges many at once.
        """
        reduced = self._reduced(list(groups))
        way = self._agglomerated(reduced)
        if len(reduced) == len(groups):
            return way
        return Way([list(groups), *way.groupings], way.chosen + 1)

    def _reduced(self, groups: list[Group]) -> list[Group]:
        """At most twice `MOST` groups, or those that remain because merging does not pay."""
        return groups if len(groups) <= MOST else self._cells(groups, len(groups) / MOST)

    def _cells(self, groups: list[Group], most: float) -> list[Group]:
        """Halve the groups into cells of at most `most` groups; merge each cell if that pays."""
        if len(groups) == 1:
            return groups
        if len(groups) <= most:
            cell = self.joined(groups)
            if cell.seconds <= sum(group.seconds for group in groups):
                return [cell]
        return [cell for half in self._halves(groups) for cell in self._cells(half, most)]

    def _halves(self, groups: list[Group]) -> tuple[list[Group], list[Group]]:
        """Two halves, sorted by what differs the most: batch size, epochs, or one of the sizes."""
        fields = self._fields.values()
        places = np.log(
            [
                (
                    int(group.load.smallest),
                    int(group.load.epochs),
                    *(_extent(field, x) for field, x in zip(fields, group.sizes, strict=True)),
                )
                for group in groups
            ]
        )
        order = np.argsort(places[:, np.ptp(places, axis=0).argmax()], kind="stable")
        ordered = [groups[i] for i in order]
        return ordered[: len(groups) // 2], ordered[len(groups) // 2 :]

    def _agglomerated(self, groups: list[Group]) -> Way:
        """Merge down to one group; choose the fewest that are within `SLACK` of the best."""
        if len(groups) > 2 * MOST:
            return Way([groups], 0)
        groupings, steps = self._steps(groups)
        first = sum(group.seconds for group in groups)
        totals = first + np.cumsum([0.0, *steps])
        limit = min(first, (1 + SLACK) * totals.min())
        last = max((i for i, total in enumerate(totals) if total <= limit), default=0)
        return Way(groupings, last)

    def _steps(self, groups: list[Group]) -> tuple[list[list[Group]], list[float]]:
        """Merge until one group is left: all groupings, and the seconds that each step adds."""
        made, count = dict(enumerate(groups)), len(groups)
        extra = np.full((count, count), np.inf)
        for i in range(1, count):
            extra[:i, i] = self._extra(groups[i], groups[:i])
        groupings, steps = [groups], []
        for _ in range(count - 1):
            i, j = divmod(int(extra.argmin()), count)
            steps.append(float(extra[i, j]))
            made[i] = self.joined([made[i], made.pop(j)])
            groupings.append(list(made.values()))
            extra[j, :] = extra[:, j] = np.inf
            others = np.array([k for k in made if k != i], int)
            if len(others):
                more = self._extra(made[i], [made[k] for k in others])
                extra[np.minimum(others, i), np.maximum(others, i)] = more
        return groupings, steps

    def _extra(self, a: Group, others: Sequence[Group]) -> np.ndarray:
        """The extra seconds that `a` and each of the others take in one program, (G,).

        Negative if merging pays.
        """
        load = a.load.joined(stacked([other.load for other in others]))
        costs = (self._cost(self._padded(a.sizes, other.sizes)) for other in others)
        found = self._best(load, Costs.stacked(costs))
        both, apart = found.seconds + found.compile_seconds, [other.seconds for other in others]
        more: np.ndarray = both - a.seconds - np.array(apart)
        return more

    def joined(self, groups: Sequence[Group]) -> Group:
        """One group of all these, padded."""
        members = tuple(member for group in groups for member in group.members)
        load = functools.reduce(Load.joined, [group.load for group in groups])
        sizes = functools.reduce(self._padded, [group.sizes for group in groups])
        found = self._best(load, self._cost(sizes))
        whole = found.seconds + found.compile_seconds
        return Group(members, load, sizes, float(whole), float(found.compile_seconds))

    def _best(self, load: Load, costs: Costs) -> Best:
        return best(load, costs, self._workload.evaluated, self._machine)

    def _cost(self, sizes: tuple[Value, ...]) -> Costs:
        """The costs of these sizes; cached, as for a user's own task each takes a trace to find."""
        if sizes not in self._costs:
            values = dict(zip(self._fields, sizes, strict=True))
            trial = with_values(self._like, **values)
            self._costs[sizes] = Costs.of(self._workload, trial, self._like)
        return self._costs[sizes]

    def _padded(self, a: tuple[Value, ...], b: tuple[Value, ...]) -> tuple[Value, ...]:
        """The sizes to which both are padded; cached."""
        if (a, b) not in self._pairs:
            each = zip(self._fields.values(), a, b, strict=True)
            padded = tuple(x if x == y else _larger(field, x, y) for field, x, y in each)
            self._pairs[a, b] = padded
        return self._pairs[a, b]


def _differs(field: Hyperparameter) -> bool:
    """Whether differing in it costs trials that share a program something; not batch sizes."""
    return field.name != "batch_size" and (field.kind is Kind.SIZE or field.off is not None)


def _extent(field: Hyperparameter, value: Value) -> int:
    """For a size, one more than the largest of all layers; for a rate, 2 if it is on, else 1."""
    if field.kind is not Kind.SIZE:
        return 1 + (value != field.off)
    return 1 + max(each_layer(cast(int, value)))


def _larger(field: Hyperparameter, a: Value, b: Value) -> Value:
    """For a size, the larger one over all layers; for a rate, a value that is on."""
    if field.kind is not Kind.SIZE:
        return a if a != field.off else b
    return max(*each_layer(cast(int, a)), *each_layer(cast(int, b)))
