"""The plan: which trials share a compiled program, and on which devices each program runs."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxexp.base.errors import UserError
from jaxexp.spec.padding import Shape
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial, text

MODES = ("auto", "exact", "one")


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


STATE_COPIES = 3 * 2  # of parameters: they and Adam's moments; one more while a call runs
RECORD_COPIES = 3  # of records at the peak: as they come, stacked, and in the results
CALL_COPIES = 3  # of what an epoch gathers, while a call runs: given, under way, and returned


@dataclass(frozen=True)
class Program:
    """Trials that are trained as one batch.

    Of trials that differ in their epochs alone only the longest is trained: the others are
    `beginnings`, pairs of a trial and the place in `trials` of the one that it is the beginning of.
    """

    trials: tuple[Trial, ...]
    beginnings: tuple[tuple[Trial, int], ...] = ()
    record: tuple[str, ...] = ()  # what is kept beyond losses and accuracies
    devices: tuple[int, ...] = ()  # the batch is spread over these
    at_once: int = 1  # trials that a device trains side by side; it takes the others in turn

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name what is trained and recorded, on any devices."""
        content = [[trial.id for trial, _ in self.members], self.record]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @cached_property
    def shape(self) -> Shape:
        """What XLA has to know."""
        return Shape.of(self.trials)

    @cached_property
    def epochs(self) -> int:
        """The epochs that the batch trains: those of its longest trial."""
        return max(trial.epochs for trial in self.trials)

    @property
    def members(self) -> list[tuple[Trial, int]]:
        """Every trial that the program answers for, and its place in the batch."""
        return [(trial, i) for i, trial in enumerate(self.trials)] + list(self.beginnings)

    def work(self, examples: int, machine: Machine = MACHINES["cpu"]) -> float:
        """Estimated device-seconds of training, padding included."""
        smallest = min(trial.batch_size for trial in self.trials)
        epoch = _epoch_seconds(self.shape.bound(), examples, smallest, machine)
        return len(self.trials) * self.epochs * epoch

    def filled(self) -> int:
        """The trials of the batch with those that fill it up, so that every turn is full."""
        turn = len(self.devices) * self.at_once
        return turn * math.ceil(len(self.trials) / turn)

    def state_bytes(self) -> float:
        """Estimated bytes of parameters and moments, while a call runs."""
        return 4 * STATE_COPIES * self.shape.bound().cost().parameters * self.filled()

    def memory(self, examples: int) -> float:
        """Estimated bytes of arrays, on the devices and where results are gathered.

        A process takes some 400 MB beside them: Python, JAX, and what a compilation leaves behind.
        """
        return self.device_memory(examples) + self.record_memory(examples)

    def device_memory(self, examples: int) -> float:
        """Estimated bytes on all devices while a call runs.

        Parameters and moments, activations of one turn, and what an epoch gathers. So it is for
        grids in several turns; in one turn, the state is not copied and this is too much.
        """
        bound = self.shape.bound()
        cost = bound.cost()
        smallest = min(trial.batch_size for trial in self.trials)
        gathered = _epoch_floats(bound, examples, smallest, self.record)
        turn = 2 * cost.activations * bound.batch_size * len(self.devices) * self.at_once
        return self.state_bytes() + 4 * (self.filled() * CALL_COPIES * gathered + turn)

    def record_memory(self, examples: int) -> float:
        """Estimated bytes of what all its trials leave behind: records and trained parameters."""
        bound = self.shape.bound()
        smallest = min(trial.batch_size for trial in self.trials)
        epoch = _epoch_floats(bound, examples, smallest, self.record)
        ends = sum(trial.cost().parameters for trial, _ in self.members)
        return 4 * (RECORD_COPIES * len(self.trials) * self.epochs * epoch + ends)

    def padding(self, examples: int, machine: Machine = MACHINES["cpu"]) -> float:
        """The share of that work that no trial needs."""
        needed = sum(
            t.epochs * _epoch_seconds(t, examples, t.batch_size, machine) for t in self.trials
        )
        return max(0.0, 1 - needed / self.work(examples, machine))

    def why(self) -> str:
        """What its trials have in common and what differs, in words."""
        default = type(self.trials[0])()
        own = {n: v for n, v in self.shape.like.static() if v != getattr(default, n)}
        same = [f"{n}={text(v)}" for n, v in own.items() if n in default.fields() and n != "epochs"]
        sizes = [f"{name} {low} to {high}" for name, low, high in self.shape.sizes]
        choices = [f"{n} {' or '.join(map(str, options))}" for n, options in self.shape.choices]
        lengths = sorted({trial.epochs for trial, _ in self.members})
        epochs = [f"epochs {lengths[0]} to {lengths[-1]}"] if len(lengths) > 1 else []
        return ", ".join([*same, *sizes, *choices, *epochs]) or "defaults"


def _epoch_floats(bound: Trial, examples: int, smallest_batch: int, record: Sequence[str]) -> int:
    """Numbers that a trial gathers in an epoch: losses and accuracies, and norms if asked for."""
    steps = math.ceil(examples / smallest_batch)
    norms = getattr(bound, "depth", 0) + 1 if "gradient_norms" in record else 0
    return 2 * steps + 4 + norms


def _epoch_seconds(trial: Trial, examples: int, smallest_batch: int, machine: Machine) -> float:
    """Of one trial, with as many steps as the smallest batch of its program takes.

    The backward pass costs twice the forward pass.
    """
    cost = trial.cost()
    step = 6 * cost.multiplications * trial.batch_size / machine.flops
    steps = math.ceil(examples / smallest_batch)
    return steps * (step + cost.launches * machine.launch_seconds)


@dataclass(frozen=True)
class Plan:
    """Programs in the order in which they start."""

    programs: tuple[Program, ...]
    devices: int
    examples: int
    backend: str = "cpu"

    @property
    def trials(self) -> int:
        """The number of trials."""
        return sum(len(program.members) for program in self.programs)

    @property
    def lanes(self) -> list[list[Program]]:
        """The programs by the devices on which they run: lanes run side by side.

        A large program waits for those before it that share a device with it: their states would
        fill the memory, while one alone keeps the device busy.
        """
        large = MACHINES[self.backend].state_bytes / 4
        lanes: list[list[Program]] = []
        for program in self.programs:
            for lane in lanes:
                waits = program.state_bytes() > large and {*program.devices} & {*lane[0].devices}
                if waits or program.devices == lane[0].devices:
                    lane.append(program)
                    break
            else:
                lanes.append([program])
        return lanes

    @property
    def seconds(self) -> float:
        """Estimated seconds of training and compilation, the devices equally busy."""
        machine = MACHINES[self.backend]
        work = [p.work(self.examples, machine) + machine.compile_seconds for p in self.programs]
        longest = max(w / len(p.devices) for w, p in zip(work, self.programs, strict=True))
        return max(longest, sum(work) / self.devices)

    @property
    def memory(self) -> float:
        """Estimated bytes: the records of all programs, and of each lane its largest program."""
        records = sum(program.record_memory(self.examples) for program in self.programs)
        return records + sum(
            max(p.device_memory(self.examples) for p in lane) for lane in self.lanes
        )

    def __str__(self) -> str:
        """One line per program."""
        machine = MACHINES[self.backend]
        work = [program.work(self.examples, machine) for program in self.programs]
        lost = [program.padding(self.examples, machine) for program in self.programs]
        share = sum(w * p for w, p in zip(work, lost, strict=True)) / sum(work)
        lines = [
            f"{self.trials} trials in {len(self.programs)} programs on {self.devices} "
            f"{self.backend} devices, about {self.seconds:.0f} s, {_size(self.memory)} of arrays; "
            f"{share:.0%} of the arithmetic is padding",
        ]
        for program, padding in zip(self.programs, lost, strict=True):
            where = "all devices" if len(program.devices) == self.devices else "device"
            if where == "device":
                where += f"{'s' * (len(program.devices) > 1)} " + ", ".join(
                    map(str, program.devices)
                )
            begin = f" (and {len(program.beginnings)} of fewer)" if program.beginnings else ""
            turns = f", {program.at_once} at a time on each"
            where += turns if program.filled() > len(program.devices) * program.at_once else ""
            lines.append(
                f"{len(program.trials):5d} × {program.epochs} epochs{begin} on {where}: "
                f"{program.why()}" + (f"; padding {padding:.0%}" if padding > 0.005 else "")
            )
        return "\n".join(lines)


def _size(size: float) -> str:
    """Bytes as a person says them: 20 kB, 300 MB, 1.2 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def plan(
    sweeps: Iterable[Sweep],
    devices: int,
    examples: int,
    *,
    mode: str = "auto",
    backend: str = "cpu",
    memory: float = math.inf,
) -> Plan:
    """Group the trials of all sweeps into programs, and the programs onto devices.

    A trial that stands in several sweeps trains once, and one that is the beginning of another
    does not train at all. `mode` says which trials share a program: "exact" those of equal shape,
    "one" all of them, "auto" those whose padding costs less than another program.

    A program with at least as many trials as there are devices is spread over all of them. The
    others are placed the longest first, each on one device or spread over as many as it has
    trials, wherever it would end soonest (after Graham's rule).

    Raises UserError for an unknown mode, trials of different classes in one program, or a grid
    that needs more than `memory` bytes.
    """
    if mode not in MODES:
        raise UserError(f"programs={mode!r}: expected one of {', '.join(MODES)}")
    records = _records(sweeps)
    machine = MACHINES[backend]
    groups = _groups(records, mode)
    programs = [_program(group, records) for group in groups]
    if mode == "auto":
        programs = _merge(programs, records, examples, machine)
    if mode != "one":
        programs = [part for p in programs for part in _parts(p, devices, examples, machine)]
    programs = _by_work(programs, examples, machine)[::-1]
    placed = _place(programs, devices, examples, machine)
    made = Plan(tuple(_in_turns(p, machine) for p in placed), devices, examples, backend)
    if made.memory > memory:
        raise UserError(
            f"{made.trials} trials need about {_size(made.memory)} of memory for their arrays, and "
            f"{_size(memory)} may be used: fewer trials, epochs or records would fit"
        )
    return made


def _parts(program: Program, devices: int, examples: int, machine: Machine) -> list[Program]:
    """The program, or several of fewer trials where its state would be too large.

    They run one after another, spread over all devices, and share the compiled functions. A rest
    of fewer trials than there are devices would keep some of them busy with copies: it is compiled
    for fewer devices where that costs less.
    """
    cost = program.shape.bound().cost()
    state = 4 * STATE_COPIES * cost.parameters
    most = max(1, int(machine.state_bytes / state / devices)) * devices
    if len(program.trials) <= most:
        return [program]
    rest = len(program.trials) % devices
    copies = (devices - rest) / devices * program.work(examples, machine) / len(program.trials)
    alone = rest and copies > machine.compile_seconds * cost.compilation
    return [
        dataclasses.replace(
            program,
            devices=() if alone and start + most > len(program.trials) else tuple(range(devices)),
            trials=program.trials[start : start + most],
            beginnings=tuple(
                (trial, place - start)
                for trial, place in program.beginnings
                if start <= place < start + most
            ),
        )
        for start in range(0, len(program.trials), most)
    ]


def check(trials: Iterable[Trial], examples: int) -> None:
    """Raise UserError for trials that so many training examples cannot serve."""
    for trial in trials:
        if trial.batch_size > examples:
            raise UserError(
                f"batch_size={trial.batch_size}: larger than the {examples} training examples"
            )


def _in_turns(program: Program, machine: Machine) -> Program:
    """Trials at a time such that their activations stay in the cache, in turns of equal length."""
    bound = program.shape.bound()
    own = math.ceil(len(program.trials) / len(program.devices))
    fits = machine.cache_bytes / (4 * bound.cost().activations * bound.batch_size)
    turns = math.ceil(own / max(1, fits))
    return dataclasses.replace(program, at_once=math.ceil(own / turns))


def _records(sweeps: Iterable[Sweep]) -> dict[Trial, set[str]]:
    """Every trial once, with all that some sweep wants recorded of it."""
    records: dict[Trial, set[str]] = {}
    for sweep in sweeps:
        for trial in sweep.trials():
            records.setdefault(trial, set()).update(sweep.record)
    return records


def _groups(trials: Iterable[Trial], mode: str) -> list[list[Trial]]:
    """Trials that share a program whatever it costs: those of equal shape, or all of them."""
    groups: dict[object, list[Trial]] = {}
    longest: dict[Trial, int] = {}
    trials = list(trials)
    for trial in trials:
        rest = dataclasses.replace(trial, epochs=1)
        longest[rest] = max(longest.get(rest, 0), trial.epochs)
    for trial in trials:
        rest = dataclasses.replace(trial, epochs=1)
        key = (type(trial), rest.static(), longest[rest])
        groups.setdefault(None if mode == "one" else key, []).append(trial)
    if mode == "one" and len({type(trial) for trial in trials}) > 1:
        raise UserError("programs=one: the trials are of different classes")
    return list(groups.values())


def _program(trials: Sequence[Trial], records: dict[Trial, set[str]]) -> Program:
    """One program for these trials, beginnings found."""
    longest: dict[Trial, Trial] = {}
    for trial in trials:
        rest = dataclasses.replace(trial, epochs=1)
        if rest not in longest or trial.epochs > longest[rest].epochs:
            longest[rest] = trial
    place = {rest: i for i, rest in enumerate(longest)}
    trained = set(longest.values())
    return Program(
        trials=tuple(longest.values()),
        beginnings=tuple(
            (t, place[dataclasses.replace(t, epochs=1)]) for t in trials if t not in trained
        ),
        record=tuple(sorted(set().union(*(records[trial] for trial in trials)))),
    )


def _merge(
    programs: list[Program], records: dict[Trial, set[str]], examples: int, machine: Machine
) -> list[Program]:
    """Merge programs while their common padding costs less than compiling one more.

    Options are never merged: computing all of them costs more than it saves.
    """
    merged: list[Program] = []
    for program in _by_work(programs, examples, machine):
        options = []
        for i, other in enumerate(merged):
            both = _both(program, other, records)
            if both is not None:
                apart = program.work(examples, machine) + other.work(examples, machine)
                options.append((both.work(examples, machine) - apart, i, both))
        extra, i, both = min(options, default=(math.inf, 0, program), key=lambda o: o[:2])
        if extra < machine.compile_seconds:
            merged[i] = both
        else:
            merged.append(program)
    return merged


def _by_work(programs: Sequence[Program], examples: int, machine: Machine) -> list[Program]:
    """The least work first; ties by content, so that the order of the axes decides nothing."""
    return sorted(
        programs, key=lambda p: (p.work(examples, machine), min(trial.id for trial in p.trials))
    )


def _both(a: Program, b: Program, records: dict[Trial, set[str]]) -> Program | None:
    """One program for the trials of both, if they differ in sizes and epochs alone."""
    if type(a.trials[0]) is not type(b.trials[0]) or a.record != b.record:
        return None
    both = _program([trial for trial, _ in itertools.chain(a.members, b.members)], records)
    return None if both.shape.choices else both


def _place(
    programs: Sequence[Program], devices: int, examples: int, machine: Machine
) -> tuple[Program, ...]:
    spread = [p for p in programs if len(p.trials) >= devices or p.devices]
    placed = [dataclasses.replace(p, devices=tuple(range(devices))) for p in spread]
    busy = [0.0] * devices
    for program in programs:
        if program in spread:
            continue
        work = program.work(examples, machine) + machine.compile_seconds
        free = sorted(range(devices), key=lambda device: busy[device])
        count = min({1, len(program.trials)}, key=lambda n: (busy[free[n - 1]] + work / n, n))
        for device in free[:count]:
            busy[device] = busy[free[count - 1]] + work / count
        placed.append(dataclasses.replace(program, devices=tuple(sorted(free[:count]))))
    return tuple(placed)
