"""What trials that share a program have to do in an epoch, and the fastest way to do it.

A batch of trials is trained side by side, or one after another. Side by side, every trial does what
the largest of them does: as many steps, with batches and products as large. One after another, each
trial ends with its own last step, and the model skips what lies past those of the trial's sizes
that are declared as `skipped`; but every operation is called once per trial. Either way, batches of
several sizes may be computed in microbatches, whose gradients are summed.

The last axis of arrays with the suffix _W is the W ways to compute a batch: with each of
`MICROBATCHES`, and finally whole.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxexp.base.batches import turns_per_epoch
from jaxexp.planning.cost import Cost, Machine, OneByOne, Workload
from jaxexp.spec.hyperparameters import Hyperparameter, Kind
from jaxexp.spec.padding import each_layer
from jaxexp.spec.trial import Trial, with_values

MICROBATCHES = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
WAYS: tuple[int | None, ...] = (*MICROBATCHES, None)
W = len(WAYS)
MAXIMA, MINIMA = slice(3 + 4 * W, 6 + 5 * W), slice(6 + 5 * W, None)  # of `Load.numbers`


@dataclass(frozen=True)
class Load:
    """What some trials, or many groups of them (the leading axes), have to do in an epoch.

    All numbers are in one array, (..., fields). When loads are joined, the first fields are summed,
    the next ones take the maximum, and the last ones the minimum. Multiplications, activations and
    operations are counted as if each size whose padding is computed were the smallest of the
    program's.
    """

    numbers: np.ndarray

    @classmethod
    def of(cls, workload: Workload, trials: int, epochs: int, trial: Trial, least: Trial) -> "Load":
        """The load of `trials` trials like `trial`; `least` is `least_of` all in their program."""
        batch, cost = trial.batch_size, workload.cost(_with_least(trial, least, skipped=False))
        turns_W, each = _turns(workload.examples, batch), cost.multiplications
        all_W = trials * turns_W
        scalars = ((trials, trials * each, all_W[-1]), (epochs, batch, each),
                   (batch, each, cost.microbatches))  # fmt: skip
        return cls(
            np.concatenate(
                [scalars[0], all_W, all_W * each, all_W * cost.launches, all_W * cost.activations,
                 scalars[1], turns_W, scalars[2]]
            )
        )  # fmt: skip

    def joined(self, other: "Load") -> "Load":
        """The load of the trials of both."""
        made = self.numbers + other.numbers
        np.maximum(self.numbers[..., MAXIMA], other.numbers[..., MAXIMA], out=made[..., MAXIMA])
        np.minimum(self.numbers[..., MINIMA], other.numbers[..., MINIMA], out=made[..., MINIMA])
        return Load(made)

    trials = property(lambda self: self.numbers[..., 0])
    products = property(lambda self: self.numbers[..., 1])  # multiplications per example, of all
    steps = property(lambda self: self.numbers[..., 2])  # of an epoch, over all trials
    # Of an epoch, over all trials: turns; turns times multiplications per example; operations; and
    # turns times activations per example.
    turns_W = property(lambda self: self.numbers[..., 3 : 3 + W])
    products_W = property(lambda self: self.numbers[..., 3 + W : 3 + 2 * W])
    launches_W = property(lambda self: self.numbers[..., 3 + 2 * W : 3 + 3 * W])
    activations_W = property(lambda self: self.numbers[..., 3 + 3 * W : 3 + 4 * W])

    epochs = property(lambda self: self.numbers[..., 3 + 4 * W])  # of the longest trial
    largest = property(lambda self: self.numbers[..., 4 + 4 * W])  # batch size
    greatest = property(lambda self: self.numbers[..., 5 + 4 * W])  # multiplications per example
    most_W = property(lambda self: self.numbers[..., 6 + 4 * W : 6 + 5 * W])  # turns of one trial

    smallest = property(lambda self: self.numbers[..., -3])  # batch size
    least = property(lambda self: self.numbers[..., -2])  # multiplications per example
    # Whether batches may be computed in parts.
    apart = property(lambda self: self.numbers[..., -1] > 0)

    @property
    def differs(self) -> np.ndarray:
        """Whether its trials differ in a way that makes training one after another cheaper."""
        different: np.ndarray = (self.smallest < self.largest) | (self.least < self.greatest)
        return different


@functools.lru_cache(maxsize=4096)
def _turns(examples: int, batch_size: int) -> np.ndarray:
    """The turns (steps or microbatches) of one trial in an epoch, (W,)."""
    return np.array([turns_per_epoch(examples, batch_size, way) for way in WAYS], float)


def model_sizes(trial: Trial) -> list[Hyperparameter]:
    """The sizes that belong to the model; the batch size belongs to every trial."""
    return [f for f in trial.fields().values() if f.kind is Kind.SIZE and f.name != "batch_size"]


def least_of(trials: Sequence[Trial]) -> Trial:
    """A trial with the smallest value of each model size among these trials."""
    names = [size.name for size in model_sizes(trials[0])]
    smallest = {n: min(min(each_layer(getattr(t, n))) for t in trials) for n in names}
    return with_values(trials[0], **smallest)


def _with_least(trial: Trial, least: Trial, *, skipped: bool) -> Trial:
    """The trial with the least values of the sizes whose padding is skipped, or is computed.

    With the least values of those whose padding is computed anyway, the loads of trials can be
    added up before it is known which of them share a program.
    """
    names = [size.name for size in model_sizes(trial) if size.skipped is skipped]
    return with_values(trial, **{name: getattr(least, name) for name in names})


class Costs(NamedTuple):
    """What trials of a program's largest sizes cost, as in `Cost`; arrays of groups, (...)."""

    multiplications: np.ndarray
    launches: np.ndarray
    activations: np.ndarray
    parameters: np.ndarray
    compilation: np.ndarray
    # The cost of a trial that skips what it can, as a linear function of what its `Load` counts.
    multiplications_slope: np.ndarray
    multiplications_intercept: np.ndarray
    activations_slope: np.ndarray
    activations_intercept: np.ndarray

    @classmethod
    def of(cls, workload: Workload, trial: Trial, least: Trial) -> "Costs":
        """The costs of programs of the trial's sizes; `least` as for their loads.

        The lines lead from the least values of the sizes that can be skipped to those of the trial:
        they are exact if all layers cost the same.
        """
        ends = _with_least(trial, least, skipped=True), trial
        low, cost = (workload.cost(end) for end in ends)
        low_counted, counted = (
            workload.cost(_with_least(end, least, skipped=False)) for end in ends
        )
        numbers = (
            cost.multiplications,
            cost.launches,
            cost.activations,
            cost.parameters,
            cost.compilation,
            *_line(
                (low_counted.multiplications, low.multiplications),
                (counted.multiplications, cost.multiplications),
            ),
            *_line(
                (low_counted.activations, low.activations), (counted.activations, cost.activations)
            ),
        )
        return cls(*map(np.asarray, numbers))

    @classmethod
    def stacked(cls, costs: Iterable["Costs"]) -> "Costs":
        """The costs of many groups in one object."""
        return cls(*np.array(list(costs)).T)


def _line(low: tuple[float, float], high: tuple[float, float]) -> tuple[float, float]:
    """Slope and intercept of the line through two points; flat if their first coordinates agree."""
    slope = (high[1] - low[1]) / (high[0] - low[0]) if high[0] != low[0] else 0.0
    return slope, low[1] - slope * low[0]


class Best(NamedTuple):
    """How trials train, and the seconds for all of them and all epochs, on one device."""

    seconds: np.ndarray
    compile_seconds: np.ndarray
    way: np.ndarray  # which of `WAYS`
    one_by_one: np.ndarray  # whether one after another

    def each(self) -> Iterable["Best"]:
        """One result per group, given one axis of groups."""
        return map(Best._make, zip(*self, strict=True))


def best(load: Load, costs: Costs, evaluated: int, machine: Machine) -> Best:
    """The fastest way of each group."""
    rows_W = np.array([way or 0 for way in WAYS]) + 0 * load.most_W
    rows_W[..., -1] = load.largest
    allowed_W = (load.apart & (load.smallest < load.largest))[..., None] & (
        rows_W < load.largest[..., None]
    )
    allowed_W[..., -1] = True
    compiling = machine.compile_seconds * costs.compilation
    costs = Costs(*(own[..., None] for own in costs))  # a last axis, for the ways
    forward = 2 * evaluated / machine.flops  # seconds of a multiplication
    side_by_side_W = np.where(allowed_W, _side_by_side(load, costs, rows_W, machine), np.inf)
    padded = load.trials[..., None] * costs.multiplications
    side_by_side_W += padded * forward
    one_by_one_W, more = np.full_like(side_by_side_W, np.inf), np.asarray(0.0)
    if machine.one_by_one is not None:
        own_W = _one_by_one(load, costs, rows_W, machine, machine.one_by_one)
        own = costs.multiplications_slope * load.products[..., None]
        own_W += (own + costs.multiplications_intercept * load.trials[..., None]) * forward
        more = compiling * (machine.one_by_one.compilation - 1)  # seconds of compiling
        own_W += (more / load.epochs)[..., None]
        one_by_one_W = np.where(allowed_W & load.differs[..., None], own_W, np.inf)
    seconds_W = np.minimum(side_by_side_W, one_by_one_W)
    way = seconds_W.argmin(-1)

    def taken(values_W: np.ndarray) -> np.ndarray:
        made: np.ndarray = np.take_along_axis(values_W, way[..., None], -1)[..., 0]
        return made

    one_by_one = taken(one_by_one_W) < taken(side_by_side_W)
    more = np.where(one_by_one, more, 0.0)
    return Best(load.epochs * taken(seconds_W) - more, compiling + more, way, one_by_one)


def _side_by_side(load: Load, costs: Costs, rows_W: np.ndarray, machine: Machine) -> np.ndarray:
    """Seconds of an epoch of training, (..., W), with an update of some trial in every turn."""
    turn_W = _step(costs, rows_W, machine)
    turn_W[..., :-1] += costs.parameters * machine.gather_seconds
    made: np.ndarray = load.trials[..., None] * load.most_W * turn_W
    return made


def _one_by_one(
    load: Load, costs: Costs, rows_W: np.ndarray, machine: Machine, own: OneByOne
) -> np.ndarray:
    """Seconds of an epoch of training, (..., W), with one update per step."""
    products_W = costs.multiplications_slope * load.products_W
    products_W += costs.multiplications_intercept * load.turns_W
    activations_W = costs.activations_slope * load.activations_W
    activations_W += costs.activations_intercept * load.turns_W
    example_W = 6 * products_W / machine.flops + activations_W * own.activation_seconds
    seconds_W = rows_W * example_W
    seconds_W += load.turns_W * own.turn_seconds + load.launches_W * own.launch_seconds
    gathers_W = load.turns_W[..., :-1] * own.gather_seconds
    seconds_W[..., :-1] += costs.parameters * gathers_W
    made: np.ndarray = seconds_W + load.steps[..., None] * costs.parameters * machine.update_seconds
    return made


def _step(cost: Cost | Costs, rows: Any, machine: Machine) -> Any:
    """Seconds that one trial takes for `rows` examples: numbers, or arrays that broadcast.

    A forward pass takes two operations per multiplication, the backward pass twice as many.
    """
    example = 6 * cost.multiplications / machine.flops
    example += cost.activations * machine.activation_seconds
    update = cost.parameters * machine.update_seconds
    return rows * example + cost.launches * machine.launch_seconds + update


def enough_at_once(cost: Cost, rows: int, machine: Machine) -> float:
    """How many trials a device has to train side by side to be as fast as with more of them.

    Fewer trials take less of the cache, and if some end early, the rest fill fewer chunks. Measured
    on a CPU: 8 if a step is nearly all arithmetic, 32 if it is nearly all overhead of calling
    operations. For accelerators there is no limit.
    """
    if machine.one_by_one is None:
        return math.inf
    overhead, step = cost.launches * machine.launch_seconds, _step(cost, rows, machine)
    return max(8.0, 32 * overhead / step if step else 0.0)


def stacked(loads: Sequence[Load]) -> Load:
    """The loads of many groups in one object."""
    return Load(np.stack([load.numbers for load in loads]))


def alone(cost: Cost, steps: int, batch_size: int, evaluated: int, machine: Machine) -> float:
    """Seconds of an epoch of one trial without any padding, computed as in `best`."""
    step: float = _step(cost, batch_size, machine)
    return steps * step + 2 * cost.multiplications * evaluated / machine.flops
