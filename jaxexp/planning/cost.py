"""What trials cost: the figures that a plan is made from. All of them are estimates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxexp.base.batches import steps_per_epoch
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
    microbatches: bool = False  # whether the loss of an example depends on no other of its batch


@dataclass(frozen=True)
class OneByOne:
    """What is different where a device trains one trial after another."""

    turn_seconds: float  # overhead of each batch or microbatch
    launch_seconds: float  # overhead of one operation of a step
    activation_seconds: float  # as of `Machine`, and so is
    gather_seconds: float
    compilation: float  # how much longer it compiles


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of a kind of device: estimates of the right size."""

    flops: float  # floating-point operations per second and device, in small matrix products
    launch_seconds: float  # overhead of one operation of a step, for a batch of trials
    activation_seconds: float  # of each activation of a step: what is done to it beside products
    update_seconds: float  # of each parameter and step
    gather_seconds: float  # of each parameter and microbatch: its gradient is summed
    compile_seconds: float  # of a core, to trace and compile a program
    cache_bytes: float  # of activations that a device should hold at a time
    state_bytes: float  # of what a program trains: trials beyond it wait for another program
    one_by_one: OneByOne | None = None  # None where trials are not to train one after another


# Of the CPU: measured on one core of an AMD EPYC, and of what is different one by one, on one of an
# Intel Xeon, where steps of trials side by side took 1.3 times as long. Of the others: given, not
# measured.
ONE_BY_ONE = OneByOne(12e-6, 2.4e-6, 7e-10, 6e-10, 1.1)
MACHINES = {
    "cpu": Machine(90e9, 0.7e-6, 4e-10, 1.4e-9, 3e-10, 5.0, 5e6, 1e9, ONE_BY_ONE),
    "gpu": Machine(5e12, 5e-6, 0.0, 0.0, 1e-11, 10.0, 4e9, 8e9),
    "tpu": Machine(5e12, 5e-6, 0.0, 0.0, 1e-11, 10.0, 4e9, 8e9),
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
    # Whether these trials may share one, that differ in the sizes of their models.
    pads_sizes: Callable[[Sequence[Trial]], bool] = field(default=lambda trials: True)

    def steps(self, batch_size: int) -> int:
        """The steps of an epoch, the last batch partial."""
        return steps_per_epoch(self.examples, batch_size)

    def epoch_floats(self, cost: Cost, smallest_batch: int, record: Sequence[str]) -> int:
        """Numbers that a trial records in an epoch: step losses, metrics, and norms if asked."""
        norms = cost.layers if "gradient_norms" in record else 0
        return self.steps(smallest_batch) + self.metrics * (2 * self.splits + 2) + norms
