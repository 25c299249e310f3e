"""The plan: which trials share a compiled program, and on which devices each program runs."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest
from jaxexp.planning.cost import MACHINES, Cost, Machine, Workload
from jaxexp.spec.padding import ProgramSpec, bounds
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Kind, Trial, text

MODES = ("auto", "exact", "one")
STATE_COPIES = 3 * 2  # of parameters: they and Adam's moments; one more while a call runs
RECORD_COPIES = 3  # of records at the peak: as they come, stacked, and in the results
CALL_COPIES = 3  # of what an epoch records, while a call runs: given, under way, and returned


@dataclass(frozen=True)
class Estimate:
    """What one program is expected to cost."""

    seconds: float = 0.0  # device-seconds of training, padding included
    compile_seconds: float = 0.0
    padding: float = 0.0  # the share of the arithmetic that no trial needs
    shares: tuple[float, ...] = ()  # of each member in the work
    state_bytes: float = 0.0  # parameters and moments, on all its devices, while a call runs
    device_bytes: float = 0.0  # on all its devices, while a call runs, without the data
    record_bytes: float = 0.0  # what its trials leave behind, on the host


@dataclass(frozen=True)
class Program:
    """Trials that are trained as one batch.

    Of trials that differ in their epochs alone, only the longest is trained: the others are its
    `prefixes`, pairs of a trial and the place in `trials` of the one that it is a prefix of.
    """

    trials: tuple[Trial, ...]
    prefixes: tuple[tuple[Trial, int], ...] = ()
    record: tuple[str, ...] = ()  # what is kept beyond losses and metrics
    devices: tuple[int, ...] = ()  # the batch is spread over these
    chunk: int = 1  # trials that a device trains side by side, one chunk after another
    alone: bool = False  # whether nothing else may run beside it
    estimate: Estimate = Estimate()

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name what is trained and recorded, on any devices."""
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
    def smallest_batch(self) -> int:
        """The smallest batch size, which takes the most steps."""
        return min(trial.batch_size for trial in self.trials)

    @property
    def members(self) -> list[tuple[Trial, int]]:
        """Every trial that the program answers for, and its place in the batch."""
        return [(trial, i) for i, trial in enumerate(self.trials)] + list(self.prefixes)

    def filled(self) -> int:
        """The trials of the batch with those that fill it up, so that every chunk is full."""
        full = len(self.devices) * self.chunk
        return full * math.ceil(len(self.trials) / full)

    def why(self) -> str:
        """What its trials have in common and what differs, in words."""
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

    @property
    def trials(self) -> int:
        """The number of trials."""
        return sum(len(program.members) for program in self.programs)

    @cached_property
    def streams(self) -> list[list[Program]]:
        """The programs that may run side by side, by the devices on which they run.

        Streams run at the same time, the programs of a stream one after another. A large program
        waits for those before it that share a device with it: their states would fill the memory,
        while one alone keeps the device busy.
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
        """The programs that run one after another, when all streams have ended."""
        return [program for program in self.programs if program.alone]

    @property
    def seconds(self) -> float:
        """Estimated seconds of training and compilation, the devices equally busy."""

        def work(program: Program) -> float:
            return program.estimate.seconds + program.estimate.compile_seconds

        side_by_side = [p for p in self.programs if not p.alone]
        longest = max((work(p) / len(p.devices) for p in side_by_side), default=0.0)
        shared = max(longest, sum(map(work, side_by_side)) / self.devices)
        return shared + sum(work(p) / len(p.devices) for p in self.alone)

    def device_bytes(self, device: int) -> float:
        """Estimated bytes on one device: the data, and of each stream its largest program."""

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

        A process takes some 400 MB beside them: Python, JAX, and what a compilation leaves behind.
        """
        used = {device for program in self.programs for device in program.devices}
        return self.record_bytes + sum(self.device_bytes(device) for device in used)

    def __str__(self) -> str:
        """One line per program."""
        work = [program.estimate.seconds for program in self.programs]
        lost = [program.estimate.padding for program in self.programs]
        share = sum(w * p for w, p in zip(work, lost, strict=True)) / (sum(work) or 1)
        lines = [
            f"{count(self.trials, 'trial')} in {count(len(self.programs), 'program')} on "
            f"{count(self.devices, f'{self.backend} device')}, about {self.seconds:.0f} s, "
            f"{_bytes(self.memory)} of arrays, {_bytes(self.data_bytes)} of it data on each device;"
            f" {share:.0%} of the arithmetic is padding (estimates)",
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
        chunks = f", {program.chunk} at a time on each"
        where += chunks if program.filled() > len(program.devices) * program.chunk else ""
        where += ", nothing beside it" if program.alone else ""
        padding = program.estimate.padding
        return (
            f"{len(program.trials):5d} × {count(program.epochs, 'epoch')}{prefixes} on {where}: "
            f"{program.why()}" + (f"; padding {padding:.0%}" if padding > 0.005 else "")
        )


def count(n: int, noun: str) -> str:
    """A number of things in words.

    >>> count(1, "program"), count(2, "program")
    ('1 program', '2 programs')
    """
    return f"{n:,} {noun}" + ("s" if n != 1 else "")


def _bytes(size: float) -> str:
    """Bytes as a person says them: 20 kB, 300 MB, 1.2 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def plan(
    sweeps: Iterable[Sweep],
    devices: int,
    workload: Workload,
    *,
    mode: str = "auto",
    backend: str = "cpu",
    host_memory: float = math.inf,
    device_memory: Sequence[float] = (),
) -> Plan:
    """Group the trials of all sweeps into programs, and the programs onto devices.

    A trial that stands in several sweeps trains once, and one that is the prefix of another does
    not train at all. `mode` says which trials share a program: "exact" those of equal sizes and
    choices, "one" all of them, "auto" those whose padding costs less than another program.

    A program with at least as many trials as there are devices is spread over all of them. The
    others are placed the longest first, each on one device or spread over as many as it has
    trials, wherever it would end soonest (after Graham's rule). Trials of a timed sweep have a
    program each, which runs alone.

    `host_memory` is how many bytes may be taken on the host (of which the devices of a CPU are a
    part), `device_memory` how many on each device, if it has memory of its own.

    Raises UserError for an unknown mode, trials that cannot share one program, two sweeps of one
    name, or a grid that needs more memory than there is.
    """
    if mode not in MODES:
        raise UserError(f"programs={mode!r}: expected one of {', '.join(MODES)}")
    planner = _Planner(list(sweeps), devices, workload, mode, MACHINES[backend])
    made = Plan(tuple(planner.programs()), devices, backend, workload.data_bytes)
    _check_memory(made, host_memory, device_memory)
    return made


def _check_memory(made: Plan, host_memory: float, device_memory: Sequence[float]) -> None:
    cure = "fewer trials, epochs or records would fit"
    for device, limit in enumerate(device_memory):
        needed = made.device_bytes(device)
        if needed > limit:
            raise UserError(
                f"{count(made.trials, 'trial')} need about {_bytes(needed)} on device {device}, "
                f"and {_bytes(limit)} may be used there: {cure}"
            )
    needed = made.record_bytes if device_memory else made.memory
    if needed > host_memory:
        raise UserError(
            f"{count(made.trials, 'trial')} need about {_bytes(needed)} of memory for their "
            f"arrays, and {_bytes(host_memory)} may be used: {cure}"
        )


@dataclass(frozen=True)
class _Planner:
    sweeps: list[Sweep]
    devices: int
    workload: Workload
    mode: str
    machine: Machine

    def programs(self) -> list[Program]:
        names = [sweep.name for sweep in self.sweeps]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two sweeps are named {twice[0]!r}: give each a name of its own")
        programs = [self._program(group) for group in self._groups()]
        if self.mode == "auto":
            programs = self._merge(programs)
        if self.mode != "one":
            programs = [part for program in programs for part in self._parts(program)]
        placed = self._place(self._by_work(programs)[::-1])
        return [self._estimated(self._in_chunks(program)) for program in placed]

    @cached_property
    def _records(self) -> dict[Trial, set[str]]:
        """Every trial once, with all that some sweep wants recorded of it."""
        records: dict[Trial, set[str]] = {}
        for sweep in self.sweeps:
            for trial in sweep.trials():
                records.setdefault(trial, set()).update(sweep.record)
        return records

    @cached_property
    def _timed(self) -> set[Trial]:
        return {trial for sweep in self.sweeps if sweep.timed for trial in sweep.trials()}

    def _groups(self) -> list[list[Trial]]:
        """Trials that share a program whatever it costs: those of equal sizes, or all of them."""
        trials = list(self._records)
        shared = [trial for trial in trials if trial not in self._timed]
        groups: dict[object, list[Trial]] = {
            trial: [trial] for trial in trials if trial not in shared
        }
        if self.mode == "one" and len({type(trial) for trial in shared}) > 1:
            raise UserError("programs=one: the trials are of different classes")
        longest: dict[Trial, int] = {}
        for trial in shared:
            rest = dataclasses.replace(trial, epochs=1)
            longest[rest] = max(longest.get(rest, 0), trial.epochs)
        for trial in shared:
            epochs = trial.epochs
            if not self.workload.run_length_matters(trial):
                epochs = longest[dataclasses.replace(trial, epochs=1)]
            key = (type(trial), _static(trial), epochs)
            groups.setdefault(None if self.mode == "one" else key, []).append(trial)
        return list(groups.values())

    def _program(self, trials: Sequence[Trial]) -> Program:
        """One program for these trials, prefixes found."""
        longest: dict[object, Trial] = {}

        def key(trial: Trial) -> object:
            matters = self.workload.run_length_matters(trial)
            return trial if matters else dataclasses.replace(trial, epochs=1)

        for trial in trials:
            rest = key(trial)
            if rest not in longest or trial.epochs > longest[rest].epochs:
                longest[rest] = trial
        place = {rest: i for i, rest in enumerate(longest)}
        trained = set(longest.values())
        return Program(
            trials=tuple(longest.values()),
            prefixes=tuple((t, place[key(t)]) for t in trials if t not in trained),
            record=tuple(sorted(set().union(*(self._records[trial] for trial in trials)))),
            alone=trials[0] in self._timed,
        )

    def _merge(self, programs: list[Program]) -> list[Program]:
        """Merge programs while their common padding costs less than compiling one more.

        Options are never merged: computing all of them costs more than it saves.
        """
        merged: list[Program] = []
        for program in self._by_work(programs):
            options = []
            for i, other in enumerate(merged):
                both = self._both(program, other)
                if both is not None:
                    apart = self._work(program) + self._work(other)
                    options.append((self._work(both) - apart, i, both))
            extra, i, both = min(options, default=(math.inf, 0, program), key=lambda o: o[:2])
            if extra < self.machine.compile_seconds:
                merged[i] = both
            else:
                merged.append(program)
        return merged

    def _both(self, a: Program, b: Program) -> Program | None:
        """One program for the trials of both, if they differ in sizes and epochs alone."""
        if type(a.trials[0]) is not type(b.trials[0]) or a.record != b.record or a.alone or b.alone:
            return None
        if not self.workload.pads_batches and a.smallest_batch != b.smallest_batch:
            return None
        both = self._program([trial for trial, _ in itertools.chain(a.members, b.members)])
        try:
            return None if both.spec.choices else both
        except UserError:  # they differ in a static hyperparameter
            return None

    def _by_work(self, programs: Sequence[Program]) -> list[Program]:
        """The least work first; ties by content, so that the order of the axes decides nothing."""
        return sorted(programs, key=lambda p: (self._work(p), min(trial.id for trial in p.trials)))

    def _bound(self, program: Program) -> Trial:
        """A trial that costs at least as much as any of the program."""
        return max(bounds(program.spec), key=lambda t: self.workload.cost(t).multiplications)

    def _work(self, program: Program) -> float:
        """Device-seconds of training, padding included."""
        bound, smallest = self._bound(program), program.smallest_batch
        epoch = self.workload.epoch_seconds(bound, smallest, self.machine)
        return len(program.trials) * program.epochs * epoch

    def _parts(self, program: Program) -> list[Program]:
        """The program, or several of fewer trials where its state would be too large.

        They run one after another, spread over all devices, and share the compiled functions. A
        rest of fewer trials than there are devices would keep some of them busy with copies: it is
        compiled for fewer devices where that costs less.
        """
        cost, devices = self.workload.cost(self._bound(program)), self.devices
        state = 4 * STATE_COPIES * max(1, cost.parameters)
        most = max(1, int(self.machine.state_bytes / state / devices)) * devices
        if len(program.trials) <= most:
            return [program]
        rest = len(program.trials) % devices
        copies = (devices - rest) / devices * self._work(program) / len(program.trials)
        apart = rest and copies > self.machine.compile_seconds * cost.compilation
        return [
            dataclasses.replace(
                program,
                devices=()
                if apart and start + most > len(program.trials)
                else tuple(range(devices)),
                trials=program.trials[start : start + most],
                prefixes=tuple(
                    (trial, place - start)
                    for trial, place in program.prefixes
                    if start <= place < start + most
                ),
            )
            for start in range(0, len(program.trials), most)
        ]

    def _place(self, programs: Sequence[Program]) -> list[Program]:
        everywhere = tuple(range(self.devices))
        alone = [dataclasses.replace(p, devices=(0,)) for p in programs if p.alone]
        spread = [
            p for p in programs if not p.alone and (len(p.trials) >= self.devices or p.devices)
        ]
        placed = [dataclasses.replace(p, devices=everywhere) for p in spread]
        busy = [0.0] * self.devices
        for program in programs:
            if program in spread or program.alone:
                continue
            work = self._work(program) + self.machine.compile_seconds
            free = sorted(range(self.devices), key=lambda device: busy[device])
            n = min({1, len(program.trials)}, key=lambda n: (busy[free[n - 1]] + work / n, n))
            for device in free[:n]:
                busy[device] = busy[free[n - 1]] + work / n
            placed.append(dataclasses.replace(program, devices=tuple(sorted(free[:n]))))
        return placed + alone

    def _in_chunks(self, program: Program) -> Program:
        """Trials at a time such that their activations stay in the cache, in equal chunks."""
        bound = self._bound(program)
        own = math.ceil(len(program.trials) / len(program.devices))
        activations = 4 * self.workload.cost(bound).activations * bound.batch_size
        chunks = math.ceil(own / max(1, self.machine.cache_bytes / max(1, activations)))
        return dataclasses.replace(program, chunk=math.ceil(own / chunks))

    def _estimated(self, program: Program) -> Program:
        cost, bound = self.workload.cost(self._bound(program)), self._bound(program)
        floats = self.workload.epoch_floats(cost, program.smallest_batch, program.record)
        state = 4 * STATE_COPIES * cost.parameters * program.filled()
        running = 2 * cost.activations * bound.batch_size * len(program.devices) * program.chunk
        parameters = sum(self.workload.cost(trial).parameters for trial, _ in program.members)
        work = self._work(program)
        own = [
            t.epochs * self.workload.epoch_seconds(t, t.batch_size, self.machine)
            for t, _ in program.members
        ]
        needed = sum(own[: len(program.trials)])
        estimate = Estimate(
            seconds=work,
            compile_seconds=self.machine.compile_seconds * cost.compilation,
            padding=max(0.0, 1 - needed / work) if work else 0.0,
            shares=tuple(seconds / (sum(own) or 1) for seconds in own),
            state_bytes=state,
            device_bytes=state + 4 * (program.filled() * CALL_COPIES * floats + running),
            record_bytes=4
            * (RECORD_COPIES * len(program.trials) * program.epochs * floats + parameters),
        )
        return dataclasses.replace(program, estimate=estimate)


def _static(trial: Trial) -> tuple[tuple[str, object], ...]:
    """The values that XLA would have to know: trials that agree here share a program as it is.

    Of a traced value that can be off, whether it is on.
    """
    static: list[tuple[str, object]] = []
    for name, declared in trial.fields().items():
        value = getattr(trial, name)
        if declared.kind is Kind.TRACED:
            if declared.off is not None:
                static.append((name, value != declared.off))
        elif declared.kind is not Kind.LENGTH:
            static.append((name, value))
    return tuple(static)


def static_key(trial: Trial) -> tuple[object, ...]:
    """Equal for trials that cost the same to train for a step, and read the same."""
    return (type(trial), *_static(trial))


__all__ = [
    "MODES",
    "Cost",
    "Estimate",
    "Plan",
    "Program",
    "Workload",
    "count",
    "plan",
    "static_key",
]
