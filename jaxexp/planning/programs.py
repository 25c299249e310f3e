"""A plan as a value: programs, where each runs, and what it is expected to cost."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from jaxexp.base.files import digest
from jaxexp.base.words import count
from jaxexp.planning.cost import MACHINES
from jaxexp.spec.hyperparameters import Kind
from jaxexp.spec.padding import ProgramSpec
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import text


@dataclass(frozen=True)
class Estimate:
    """What one program is expected to cost."""

    seconds: float = 0.0  # device-seconds of training, padding included
    compile_seconds: float = 0.0
    sharing: float = 1.0  # programs on a node with the same compiled functions
    padding: float = 0.0  # the share of the arithmetic that no trial needs
    shares: tuple[float, ...] = ()  # each member's share of the work
    state_bytes: float = 0.0  # parameters and moments, over all its devices, while a call runs
    device_bytes: float = 0.0  # over all its devices, while a call runs, without the data
    record_bytes: float = 0.0  # what its trials leave behind, on the host

    @property
    def shared_compile_seconds(self) -> float:
        """This program's share of a compilation that is done once for several programs."""
        return self.compile_seconds / self.sharing


@dataclass(frozen=True)
class Program:
    """Trials that are trained as one batch.

    Of trials that differ only in their epochs, just the longest is trained. The others are in
    `prefixes`: pairs of a trial and the index in `trials` of the one whose prefix it is.
    """

    trials: tuple[Trial, ...]
    prefixes: tuple[tuple[Trial, int], ...] = ()
    record: tuple[str, ...] = ()  # what is kept beyond losses and metrics
    devices: tuple[int, ...] = ()  # the batch is spread over these
    chunk: int = 1  # trials that a device trains side by side, one chunk after another
    # Examples computed at once, if batches of several sizes are computed in parts.
    microbatch: int | None = None
    one_by_one: bool = False  # whether the trials of a device train one after another, each whole
    alone: bool = False  # whether nothing else may run beside it
    estimate: Estimate = Estimate()

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that identify what is trained and recorded, on any devices."""
        content = [[trial.id for trial, _ in self.members], self.record]
        return digest(json.dumps(content))

    @cached_property
    def spec(self) -> ProgramSpec:
        """What XLA has to know."""
        return ProgramSpec.of(self.trials)

    @cached_property
    def epochs(self) -> int:
        """The epochs that the batch trains: those of its longest trial."""
        return max(trial.epochs for trial in self.trials)

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes of its trials, each once, smallest first: that takes the most steps."""
        return tuple(sorted({trial.batch_size for trial in self.trials}))

    @property
    def rows(self) -> int:
        """The number of examples computed at once, including padding."""
        return self.microbatch or self.batch_sizes[-1]

    @property
    def members(self) -> list[tuple[Trial, int]]:
        """Every trial whose results the program gives, and its index in the batch."""
        return [(trial, i) for i, trial in enumerate(self.trials)] + list(self.prefixes)

    def filled(self) -> int:
        """The number of trials in the batch, including copies that fill up every chunk."""
        full = len(self.devices) * self.chunk
        return full * math.ceil(len(self.trials) / full)

    def why(self) -> str:
        """What the program's trials have in common, and how they differ, in words."""
        like, default = self.spec.like, type(self.trials[0])()
        same = [
            f"{name}={text(value)}"
            for name, declared in like.fields().items()
            if declared.kind not in (Kind.TRACED, Kind.LENGTH)
            and (value := getattr(like, name)) != getattr(default, name)
        ]
        sizes = [f"{name} {low} to {high}" for name, low, high in self.spec.sizes]
        choices = [f"{n} {' or '.join(map(text, options))}" for n, options in self.spec.choices]
        lengths = sorted({trial.epochs for trial, _ in self.members})
        epochs = [f"epochs {lengths[0]} to {lengths[-1]}"] if len(lengths) > 1 else []
        return ", ".join([*same, *sizes, *choices, *epochs]) or "defaults"


@dataclass(frozen=True)
class Plan:
    """Programs in the order in which they start, and what they are expected to cost."""

    programs: tuple[Program, ...]
    devices: int
    backend: str = "cpu"
    data_bytes: float = 0.0  # on every device
    nodes: int = 1  # machines with `devices` devices each; a program runs on one
    mode: str = "auto"  # how it was decided which trials share a program

    @property
    def trials(self) -> int:
        """The number of trials."""
        return sum(len(program.members) for program in self.programs)

    @cached_property
    def streams(self) -> list[list[Program]]:
        """The programs that may run side by side, by the devices on which they run.

        Streams run at the same time, and the programs of a stream one after another. A large
        program waits for those before it that share a device with it: together, their states would
        fill the memory, and one alone keeps the device busy.
        """
        large = MACHINES[self.backend].state_bytes / 4
        streams: list[list[Program]] = []
        for program in self.programs:
            if program.alone:
                continue
            for stream in streams:
                shared = {*program.devices} & {*stream[0].devices}
                waits = program.estimate.state_bytes > large and shared
                if waits or program.devices == stream[0].devices:
                    stream.append(program)
                    break
            else:
                streams.append([program])
        return streams

    @property
    def alone(self) -> list[Program]:
        """The programs that run one after another, once all streams have ended."""
        return [program for program in self.programs if program.alone]

    @cached_property
    def seconds(self) -> float:
        """Estimated seconds of compilation and then of training, with devices equally busy.

        More devices train a program faster, but do not speed up a compilation; as many compilations
        run side by side as there are devices. For several nodes, `nodes.forecast` is more precise.
        """
        estimates, devices = [program.estimate for program in self.programs], self.devices
        compiling = max(
            max((one.compile_seconds for one in estimates), default=0.0),
            sum(one.shared_compile_seconds for one in estimates) / devices / self.nodes,
        )
        side_by_side = [p for p in self.programs if not p.alone]
        longest = max((p.estimate.seconds / len(p.devices) for p in side_by_side), default=0.0)
        shared = sum(p.estimate.seconds for p in side_by_side) / devices / self.nodes
        alone = sum(p.estimate.seconds / len(p.devices) for p in self.alone) / self.nodes
        return compiling + max(longest, shared) + alone

    def device_bytes(self, device: int) -> float:
        """Estimated bytes on one device: the data, and the largest program of each stream."""

        def own(programs: Iterable[Program]) -> float:
            parts = (
                p.estimate.device_bytes / len(p.devices) for p in programs if device in p.devices
            )
            return max(parts, default=0.0)

        streams = sum(own(stream) for stream in self.streams)
        return self.data_bytes + max(streams, own(self.alone))

    @property
    def record_bytes(self) -> float:
        """Estimated bytes of what all trials leave behind, on the host."""
        return sum(program.estimate.record_bytes for program in self.programs)

    @property
    def memory(self) -> float:
        """Estimated bytes of arrays, on all devices and on the host.

        A process takes some 400 MB in addition: Python, JAX, and what a compilation leaves behind.
        """
        used = {device for program in self.programs for device in program.devices}
        return self.record_bytes + sum(self.device_bytes(device) for device in used)

    def __str__(self) -> str:
        """One line per program."""
        work = [program.estimate.seconds for program in self.programs]
        lost = [program.estimate.padding for program in self.programs]
        share = sum(w * p for w, p in zip(work, lost, strict=True)) / (sum(work) or 1)
        nodes = f"{count(self.nodes, 'node')} of " if self.nodes > 1 else ""
        seconds = "" if nodes else f"about {self.seconds:.0f} s, "  # else a forecast follows
        lines = [
            f"{count(self.trials, 'trial')} in {count(len(self.programs), 'program')} on "
            f"{nodes}{count(self.devices, f'{self.backend} device')}, {seconds}"
            f"{size_text(self.memory)} of arrays, {size_text(self.data_bytes)} of it data on each "
            f"device; {share:.0%} of the arithmetic is padding (estimates)",
        ]
        return "\n".join([*lines, *map(self._line, self.programs)])

    def _line(self, program: Program) -> str:
        if len(program.devices) == self.devices:
            where = "all devices" if self.devices > 1 else "the device"
        else:
            where = f"{'devices' if len(program.devices) > 1 else 'device'} " + ", ".join(
                map(str, program.devices)
            )
        prefixes = f" (and {len(program.prefixes)} of fewer)" if program.prefixes else ""
        chunks = f", {program.chunk} at a time" + (" on each" if len(program.devices) > 1 else "")
        if program.one_by_one:
            where += ", one after another"
        elif program.filled() > len(program.devices) * program.chunk:
            where += chunks
        where += ", nothing beside it" if program.alone else ""
        if program.microbatch:
            where += f", {count(program.microbatch, 'example')} at a time"
        padding = program.estimate.padding
        return (
            f"{len(program.trials):5d} × {count(program.epochs, 'epoch')}{prefixes} on {where}: "
            f"{program.why()}" + (f"; padding {padding:.0%}" if padding > 0.005 else "")
        )


def size_text(size: float) -> str:
    """Bytes as people write them: 20 kB, 300 MB, 1.2 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
