"""What trials cost: the figures on which a plan is based. All of them are estimates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxexp.base.batches import steps_per_epoch
from jaxexp.spec.trial import Trial


@dataclass(frozen=True)
class Cost:
    """What a model costs to train, for plans: rough estimates, not measurements."""

    multiplications: float  # of a forward pass, per example
    launches: float  # operations that a step calls, each with some overhead
    parameters: int
    activations: int  # floats per example that the forward pass keeps for the backward pass
    layers: int = 1  # with a gradient norm each
    compilation: float = 1.0  # its time, relative to an MLP of a few layers
    microbatches: bool = False  # whether an example's loss is independent of its batch


@dataclass(frozen=True)
class OneByOne:
    """What is different if a device trains one trial after another."""

    turn_seconds: float  # overhead of each batch or microbatch
    launch_seconds: float  # overhead of one operation of a step
    activation_seconds: float  # as in `Machine`, and so is
    gather_seconds: float
    compilation: float  # how many times as long it takes


@dataclass(frozen=True)
class Machine:
    """What the cost model knows about a kind of device: rough estimates."""

    flops: float  # floating-point operations per second and device, in small matrix products
    launch_seconds: float  # overhead of one operation of a step, for a batch of trials
    activation_seconds: float  # of each activation of a step, for all but products
    update_seconds: float  # of each parameter and step
    gather_seconds: float  # of each parameter and microbatch, to sum its gradient
    compile_seconds: float  # that a core takes to trace and compile a program
    cache_bytes: float  # for what a device should touch in a step
    state_bytes: float  # of training state in a program; trials beyond it go into another
    one_by_one: OneByOne | None = None  # None if trials must not train one after another


# The CPU's were measured on one core of an AMD EPYC, except for those for training one by one: on a
# core of an Intel Xeon, where steps of trials side by side took 1.3 times as long. The others are
# assumed, not measured.
ONE_BY_ONE = OneByOne(12e-6, 2.4e-6, 7e-10, 6e-10, 1.1)
MACHINES = {
    "cpu": Machine(90e9, 0.7e-6, 4e-10, 1.4e-9, 3e-10, 5.0, 5e6, 1e9, ONE_BY_ONE),
    "gpu": Machine(5e12, 5e-6, 0.0, 0.0, 1e-11, 10.0, 4e9, 8e9),
    "tpu": Machine(5e12, 5e-6, 0.0, 0.0, 1e-11, 10.0, 4e9, 8e9),
}


@dataclass(frozen=True)
class Workload:
    """What a plan has to know about a task and its data."""

    examples: int  # of the training split
    cost: Callable[[Trial], Cost]
    evaluated: int = 0  # examples evaluated in every epoch, over all splits
    splits: int = 3  # whose metrics are recorded in every epoch
    metrics: int = 2  # including the loss
    data_bytes: float = 0.0  # placed on every device
    # Whether a shorter trial is not just the start of a longer one (for example, with a schedule).
    run_length_matters: Callable[[Trial], bool] = field(default=lambda trial: False)
    pads_batches: bool = True  # whether trials of different batch sizes may share a program
    # Whether these trials, which differ in the sizes of their models, may share a program.
    pads_sizes: Callable[[Sequence[Trial]], bool] = field(default=lambda trials: True)

    def steps(self, batch_size: int) -> int:
        """The number of steps in an epoch, counting a partial last batch."""
        return steps_per_epoch(self.examples, batch_size)

    def epoch_floats(self, cost: Cost, smallest_batch: int, record: Sequence[str]) -> int:
        """How many numbers a trial records per epoch: step losses, metrics, and norms if asked."""
        norms = cost.layers if "gradient_norms" in record else 0
        return self.steps(smallest_batch) + self.metrics * (2 * self.splits + 2) + norms
