"""What trials cost: the figures that a plan is made from. All of them are estimates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxexp.spec.trial import Trial


@dataclass(frozen=True)
class Cost:
    """What a model costs to train, for plans: of the right size, not measured."""

    multiplications: float  # of a forward pass, per example
    launches: float  # operations that a step calls, each with an overhead of its own
    parameters: int
    activations: int  # floats per example that the forward pass keeps for the backward pass
    layers: int = 1  # whose gradients have a norm of their own
    compilation: float = 1.0  # how long it compiles, in MLPs of a few layers


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of a kind of device: estimates of the right size."""

    flops: float  # floating-point operations per second and device, in small matrix products
    launch_seconds: float  # overhead of one operation of a step, for a batch of trials
    compile_seconds: float  # to compile a program
    cache_bytes: float  # of activations that a device should hold at a time
    state_bytes: float  # of what a program trains: trials beyond it wait for another program


# Of the CPU: measured on one core of an AMD EPYC. Of the others: given, not measured.
MACHINES = {
    "cpu": Machine(45e9, 2e-6, 3.0, 5e6, 1e9),
    "gpu": Machine(5e12, 5e-6, 10.0, 4e9, 8e9),
    "tpu": Machine(5e12, 5e-6, 10.0, 4e9, 8e9),
}


@dataclass(frozen=True)
class Workload:
    """What a plan has to know of a task and its data."""

    examples: int  # of the training split
    cost: Callable[[Trial], Cost]
    evaluated: int = 0  # examples that every epoch evaluates, of all splits
    splits: int = 3  # of which every epoch records the metrics
    metrics: int = 2  # the loss among them
    data_bytes: float = 0.0  # placed on every device
    # Whether a trial of fewer epochs is not the prefix of a longer one (a schedule, say).
    run_length_matters: Callable[[Trial], bool] = field(default=lambda trial: False)
    pads_batches: bool = True  # whether trials of other batch sizes may share a program

    def steps(self, batch_size: int) -> int:
        """The steps of an epoch, the last batch partial."""
        return math.ceil(self.examples / batch_size)

    def epoch_seconds(self, trial: Trial, smallest_batch: int, machine: Machine) -> float:
        """Of one trial, with as many steps as the smallest batch of its program takes."""
        return self.seconds(self.cost(trial), trial.batch_size, smallest_batch, machine)

    def seconds(self, cost: Cost, batch_size: int, smallest_batch: int, machine: Machine) -> float:
        """Of an epoch of one trial that costs this: steps of the smallest batch, of this size.

        The backward pass costs twice the forward pass.
        """
        step = 6 * cost.multiplications * batch_size / machine.flops
        seconds = self.steps(smallest_batch) * (step + cost.launches * machine.launch_seconds)
        return seconds + 2 * cost.multiplications * self.evaluated / machine.flops

    def epoch_floats(self, cost: Cost, smallest_batch: int, record: Sequence[str]) -> int:
        """Numbers that a trial records in an epoch: step losses, metrics, and norms if asked."""
        norms = cost.layers if "gradient_norms" in record else 0
        return self.steps(smallest_batch) + self.metrics * (2 * self.splits + 2) + norms
