"""What fewer programs cost and save: more padding to train, but fewer compilations.

Merging goes through many groupings of the trials; this is how long each of them should take.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxexp.planning.merging import Group, Way


@dataclass(frozen=True)
class Grouping:
    """A number of programs, and how long they are expected to take on one device."""

    programs: int
    train_seconds: float  # padding included
    compile_seconds: float
    padding: float  # the share of the arithmetic that no trial needs


def combined(ways: Sequence[Way], needed: float) -> tuple[list[Grouping], int]:
    """Groupings of all trials, combined from the ways of several kinds; and which is chosen.

    Groups of different ways are never merged. Every way goes first to its own choice and then to
    its end, always taking the step that costs the least of all ways. `needed` is how many seconds
    the trials would train without any padding.
    """
    at = [0] * len(ways)
    each = [[_of(groups) for groups in way.groupings] for way in ways]
    groupings, chosen = [_sum([own[0] for own in each], needed)], 0
    for ends in ([way.chosen for way in ways], [len(own) - 1 for own in each]):
        chosen = len(groupings) - 1
        while ahead := [k for k, end in enumerate(ends) if at[k] < end]:
            nearest = min(ahead, key=lambda k: _more(each[k][at[k]], each[k][at[k] + 1]))
            at[nearest] += 1
            now = [own[i] for own, i in zip(each, at, strict=True)]
            groupings.append(_sum(now, needed))
    return groupings, chosen


def _of(groups: Sequence[Group]) -> Grouping:
    compiling = sum(group.compile_seconds for group in groups)
    seconds = sum(group.seconds for group in groups)
    return Grouping(len(groups), seconds - compiling, compiling, 0.0)


def _more(before: Grouping, after: Grouping) -> float:
    """How many seconds longer `after` takes than `before`."""
    training = after.train_seconds - before.train_seconds
    return training + after.compile_seconds - before.compile_seconds


def _sum(groupings: Sequence[Grouping], needed: float) -> Grouping:
    training = sum(own.train_seconds for own in groupings)
    return Grouping(
        programs=sum(own.programs for own in groupings),
        train_seconds=training,
        compile_seconds=sum(own.compile_seconds for own in groupings),
        padding=max(0.0, 1 - needed / training) if training else 0.0,
    )
