"""Planning: which trials share a compiled program, and on which devices each program runs."""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxexp.base.errors import UserError
from jaxexp.base.words import count
from jaxexp.planning.cost import MACHINES, Machine, Workload
from jaxexp.planning.kinds import static_key, static_values, unpadded, without_epochs
from jaxexp.planning.loads import (
    WAYS,
    Best,
    Costs,
    Load,
    alone,
    best,
    enough_at_once,
    least_of,
    model_sizes,
)
from jaxexp.planning.merging import Merger, Way
from jaxexp.planning.nodes import functions_of
from jaxexp.planning.programs import Estimate, Plan, Program, size_text
from jaxexp.planning.tradeoff import Grouping, combined
from jaxexp.spec.padding import bounds
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial, with_values

MODES = ("auto", "exact", "one")
STATE_COPIES = 3 * 2  # of parameters: themselves and Adam's two moments; twice while a call runs
TOUCHED = 4  # copies of parameters in a step: themselves, Adam's moments, and gradients
RECORD_COPIES = 3  # of records at the peak: as they arrive, stacked, and in the results
PARTS = 32  # programs into which the work of each of several nodes is cut,
LEAST_SECONDS = 20.0  # if each takes this long: handing one out costs a fraction of a second
CALL_COPIES = 3  # of an epoch's records while a call runs: passed in, in use, and returned


def plan(
    sweeps: Iterable[Sweep],
    devices: int,
    workload: Workload,
    *,
    mode: str = "auto",
    backend: str = "cpu",
    host_memory: float = math.inf,
    device_memory: Sequence[float] = (),
    nodes: int = 1,
) -> Plan:
    """Group the trials of all sweeps into programs, and the programs onto devices.

    A trial that is in several sweeps trains once, and one that is the prefix of another is not
    trained at all. `mode` says which trials share a program: "exact" those of equal sizes and
    choices, "one" all of them, "auto" those whose padding costs less than another program.

    A program with at least as many trials as there are devices is spread over all of them. The
    others are placed longest first, each on one device or spread over as many as it has trials,
    wherever it would end soonest (Graham's rule). Trials of a timed sweep that differ in more than
    their seed have a program each, which runs alone.

    With several `nodes`, which are machines with `devices` devices each, a program trains on
    whichever node is free. Long programs are cut, so that all nodes have work until the end.

    `host_memory` is how many bytes may be used on the host (which include those of CPU devices),
    and `device_memory` how many on each device, if devices have memory of their own.

    Raises UserError for an unknown mode, trials that cannot share one program, two sweeps of one
    name, or a grid that needs more memory than there is.
    """
    check_mode(mode)
    memory = min(device_memory, default=math.inf) - workload.data_bytes
    planner = _Planner(list(sweeps), devices, workload, mode, MACHINES[backend], nodes, memory)
    made = Plan(tuple(planner.programs()), devices, backend, workload.data_bytes, nodes, mode)
    for program in made.programs if device_memory else ():
        needed = workload.data_bytes + sum(planner.trial_bytes(program))
        device = min(program.devices, key=lambda device: device_memory[device])
        if needed > device_memory[device]:
            raise UserError(
                f"a single trial ({program.why()}) needs about {size_text(needed)} on device "
                f"{device}, {size_text(workload.data_bytes)} of it for the data, and "
                f"{size_text(device_memory[device])} may be used there: a smaller model or batch "
                "would fit"
            )
    _check_memory(made, host_memory, device_memory)
    return made


def check_mode(mode: str) -> None:
    """Raise UserError for an unknown mode."""
    if mode not in MODES:
        raise UserError(f"programs={mode!r}: expected one of {', '.join(MODES)}")


def tradeoff(
    sweeps: Iterable[Sweep], workload: Workload, *, mode: str = "auto", backend: str = "cpu"
) -> tuple[list[Grouping], int | None]:
    """The groupings from which `plan` chooses, one program per size first; and which it chooses.

    Programs that are cut into parts count as one. None is chosen if `mode` is "one" and the trials
    differ in something that is never merged.
    """
    planner = _Planner(list(sweeps), 1, workload, "auto", MACHINES[backend])
    groupings, chosen = planner.groupings()
    if mode == "auto":
        return groupings, chosen
    if mode == "exact":
        return groupings, 0
    return groupings, len(groupings) - 1 if groupings[-1].programs == 1 else None


def _check_memory(made: Plan, host_memory: float, device_memory: Sequence[float]) -> None:
    cure = "fewer trials, epochs or records would fit"
    for device, limit in enumerate(device_memory):
        needed = made.device_bytes(device)
        if needed > limit:
            raise UserError(
                f"{count(made.trials, 'trial')} need about {size_text(needed)} on device {device}, "
                f"and {size_text(limit)} may be used there: {cure}"
            )
    needed = made.record_bytes if device_memory else made.memory
    if needed > host_memory:
        raise UserError(
            f"{count(made.trials, 'trial')} need about {size_text(needed)} of memory for their "
            f"arrays, and {size_text(host_memory)} may be used: {cure}"
        )


@dataclass(frozen=True)
class _Planner:
    sweeps: list[Sweep]
    devices: int
    workload: Workload
    mode: str
    machine: Machine
    nodes: int = 1
    memory: float = math.inf  # bytes that programs may use on each device
    # By the identity of a program's trials, which are slow to compare.
    _found: dict[int, tuple[object, Best]] = dataclasses.field(default_factory=dict)

    def programs(self) -> list[Program]:
        names = [sweep.name for sweep in self.sweeps]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two sweeps are named {twice[0]!r}: give each a name of its own")
        programs = [self._program(group) for group in self._groups()]
        if self.mode == "auto":
            programs = self._merge(programs)
        if self.mode != "one":
            programs = [part for program in programs for part in self._parts(program)]
        if self.nodes > 1:
            programs = self._for_nodes(programs)
        placed = self._place(self._by_work(programs)[::-1])
        return self._sharing([self._estimated(self._in_chunks(program)) for program in placed])

    def groupings(self) -> tuple[list[Grouping], int]:
        """The groupings that merging goes through, and which of them is chosen."""
        programs = [self._program(group) for group in self._groups()]
        needed = sum(self._needed(trial) for program in programs for trial in program.trials)
        return combined([self._way(alike) for alike in self._kinds(programs)], needed)

    @functools.cached_property
    def _records(self) -> dict[Trial, set[str]]:
        """Every trial once, with everything that any sweep wants recorded of it."""
        records: dict[Trial, set[str]] = {}
        for sweep in self.sweeps:
            for trial in sweep.trials():
                records.setdefault(trial, set()).update(sweep.record)
        return records

    @functools.cached_property
    def _timed(self) -> set[Trial]:
        return {trial for sweep in self.sweeps if sweep.timed for trial in sweep.trials()}

    def _groups(self) -> list[list[Trial]]:
        """Trials that share a program in any case: those of equal sizes, or with mode "one" all."""
        trials = list(self._records)
        shared = [trial for trial in trials if trial not in self._timed]
        groups: dict[object, list[Trial]] = {}
        for trial in trials:
            if trial in self._timed:  # seeds cost the same and may be timed side by side
                alike = static_values(trial), with_values(trial, seed=0)
                groups.setdefault(alike, []).append(trial)
        if self.mode == "one" and len({type(trial) for trial in shared}) > 1:
            raise UserError("programs=one: the trials are of different classes")
        longest: dict[Trial, int] = {}
        rest = without_epochs(shared)
        for trial in shared:
            longest[rest(trial)] = max(longest.get(rest(trial), 0), trial.epochs)
        for trial in shared:
            epochs = trial.epochs
            if not self.workload.run_length_matters(trial):
                epochs = longest[rest(trial)]
            key = (type(trial), static_values(trial), epochs)
            groups.setdefault(None if self.mode == "one" else key, []).append(trial)
        return list(groups.values())

    def _program(self, trials: Sequence[Trial]) -> Program:
        """One program for these trials, without training those that are prefixes of others."""
        longest: dict[Trial, Trial] = {}
        rest = without_epochs(trials)

        def key(trial: Trial) -> Trial:
            return trial if self.workload.run_length_matters(trial) else rest(trial)

        for trial in trials:
            own = key(trial)
            if own not in longest or trial.epochs > longest[own].epochs:
                longest[own] = trial
        place = {own: i for i, own in enumerate(longest)}
        trained = set(longest.values())
        program = Program(
            trials=tuple(longest.values()),
            prefixes=tuple((t, place[key(t)]) for t in trials if t not in trained),
            record=tuple(sorted(set().union(*(self._records[trial] for trial in trials)))),
            alone=trials[0] in self._timed,
        )
        found = self._best(program)
        way, one_by_one = WAYS[int(found.way)], bool(found.one_by_one)
        if one_by_one:
            program = _in_turns(program, sorted(program.trials, key=self._needed, reverse=True))
        return dataclasses.replace(program, microbatch=way, one_by_one=one_by_one)

    def _best(self, program: Program) -> Best:
        """The fastest way to train these trials in one program."""
        key = id(program.trials)
        if key not in self._found:
            self._found[key] = program.trials, self._search(program)  # kept: its id stays its own
        return self._found[key][1]

    def _search(self, program: Program) -> Best:
        least = least_of(program.trials)
        costs = Costs.of(self.workload, self._bound(program), least)
        return best(self._load(program, least), costs, self.workload.evaluated, self.machine)

    def _load(self, program: Program, least: Trial) -> Load:
        """What the program's trials have to do; trials that cost the same are counted together."""
        counts, alike = collections.Counter[Trial](), dict[object, Trial]()
        for trial in program.trials:
            counts[alike.setdefault(static_key(trial), trial)] += 1
        epochs = program.epochs
        loads = (Load.of(self.workload, n, epochs, trial, least) for trial, n in counts.items())
        return functools.reduce(Load.joined, loads)

    def _merge(self, programs: list[Program]) -> list[Program]:
        """Merge programs while their common padding costs less than compiling one more.

        Programs with different options are never merged: computing every option costs more than
        that saves.
        """
        return [merged for alike in self._kinds(programs) for merged in self._merge_alike(alike)]

    def _kinds(self, programs: list[Program]) -> list[list[Program]]:
        """The programs in lists, each of programs that may be merged with one another."""
        kinds: dict[object, list[Program]] = {}
        for program in self._by_work(programs):
            kinds.setdefault(id(program) if program.alone else self._kind(program), []).append(
                program
            )
        return [paddable for own in kinds.values() for paddable in self._paddable(own)]

    def _kind(self, program: Program) -> object:
        """A key that is equal for programs that may be merged."""
        trial = program.trials[0]
        batch = None if self.workload.pads_batches else trial.batch_size
        return program.record, batch, unpadded(trial)

    def _paddable(self, programs: list[Program]) -> list[list[Program]]:
        """These programs in one list, or in one list per size if their models cannot be padded."""
        trials = [trial for program in programs for trial in program.trials]
        if len(programs) == 1 or self.workload.pads_sizes(trials):
            return [programs]
        sizes: dict[object, list[Program]] = {}
        for program in programs:
            trial = program.trials[0]
            own = tuple(getattr(trial, size.name) for size in model_sizes(trial))
            sizes.setdefault(own, []).append(program)
        return list(sizes.values())

    def _merge_alike(self, programs: list[Program]) -> list[Program]:
        if len(programs) == 1:
            return programs
        way = self._way(programs)
        return [
            self._program(
                [trial for i in sorted(group.members) for trial, _ in programs[i].members]
            )
            for group in way.groupings[way.chosen]
        ]

    def _way(self, programs: list[Program]) -> Way:
        """The merging of these programs, which may all be merged into one."""
        bounding = [self._bound(program) for program in programs]
        least = least_of([trial for program in programs for trial in program.trials])
        merger = Merger(least, self.workload, self.machine)
        loads = [self._load(program, least) for program in programs]
        return merger.way(merger.groups(bounding, loads))

    def _by_work(self, programs: Sequence[Program]) -> list[Program]:
        """Least work first; ties are sorted by content, so that the order of axes has no effect."""
        alike: dict[float, list[Program]] = {}
        for program in programs:
            alike.setdefault(self._work(program), []).append(program)
        return [
            program
            for _, own in sorted(alike.items())
            for program in (sorted(own, key=_first_id) if len(own) > 1 else own)
        ]

    def _bound(self, program: Program) -> Trial:
        """A trial that costs at least as much as any in the program."""
        return max(bounds(program.spec), key=lambda t: self.workload.cost(t).multiplications)

    def _work(self, program: Program) -> float:
        """Device-seconds of training, including padding."""
        return float(self._best(program).seconds)

    def _needed(self, trial: Trial) -> float:
        """Device-seconds of training a trial without any padding."""
        cost, steps = self.workload.cost(trial), self.workload.steps(trial.batch_size)
        evaluated = self.workload.evaluated
        return trial.epochs * alone(cost, steps, trial.batch_size, evaluated, self.machine)

    def _parts(self, program: Program) -> list[Program]:
        """The program, or several programs of fewer trials if its state would be too large.

        These run one after another, spread over all devices, and share their compiled functions. A
        last part with trials left over would keep some devices busy with copies: it is compiled for
        fewer devices if that costs less and device memory is not limited, as it may then run beside
        the other parts.
        """
        cost, devices = self.workload.cost(self._bound(program)), self.devices
        state = 4 * STATE_COPIES * max(1, cost.parameters)
        rows = min(self.machine.state_bytes / state / devices, self._most_rows(program))
        most = max(1, int(rows)) * devices
        if len(program.trials) <= most:
            return [program]
        rest = len(program.trials) % devices
        copies = (devices - rest) / devices * self._work(program) / len(program.trials)
        apart = (
            rest
            and math.isinf(self.memory)
            and copies > self.machine.compile_seconds * cost.compilation
        )
        return [
            dataclasses.replace(
                part,
                devices=() if apart and len(part.trials) < most else tuple(range(devices)),
            )
            for part in _cut(program, most)
        ]

    def _for_nodes(self, programs: Sequence[Program]) -> list[Program]:
        """Cut long programs into parts, of which each node trains several, one after another.

        On a node, parts of the same size share their compiled functions.
        """
        every = sum(self._work(program) for program in programs if not program.alone)
        share = max(every / self.devices / self.nodes / PARTS, LEAST_SECONDS)
        made = []
        for program in programs:
            trials, parts = len(program.trials), self._work(program) / self.devices / share
            if program.alone or parts <= 1 or self.mode == "one" or trials < 2 * self.devices:
                made.append(program)
                continue
            rows = math.ceil(trials / self.devices / math.ceil(parts))
            made += _cut(program, rows * self.devices)
        return made

    def _place(self, programs: Sequence[Program]) -> list[Program]:
        everywhere = tuple(range(self.devices))
        alone = [
            dataclasses.replace(p, devices=everywhere if len(p.trials) >= self.devices else (0,))
            for p in programs
            if p.alone
        ]
        spread = [
            p for p in programs if not p.alone and (len(p.trials) >= self.devices or p.devices)
        ]
        placed = [dataclasses.replace(p, devices=everywhere) for p in spread]
        busy = [0.0] * self.devices * self.nodes
        of_all = {id(program) for program in spread}  # equal programs are slow to compare
        for program in programs:
            if id(program) in of_all or program.alone:
                continue
            work = self._work(program) + self.machine.compile_seconds
            free = sorted(range(len(busy)), key=lambda device: busy[device])
            ways = {len(program.trials)}
            if len(program.trials) <= self._most_rows(program):
                ways |= {1}
            n = min(ways, key=lambda n: (busy[free[n - 1]] + work / n, n))
            for device in free[:n]:
                busy[device] = busy[free[n - 1]] + work / n
            on = tuple(sorted(free[:n])) if self.nodes == 1 else tuple(range(n))
            placed.append(dataclasses.replace(program, devices=on))
        return placed + alone

    def _in_chunks(self, program: Program) -> Program:
        """Set the chunk: as few trials at a time as are fast, in equal chunks that fit the cache.

        Chunks are smaller if a device has not enough memory for them.
        """
        if program.one_by_one:
            return dataclasses.replace(program, chunk=1)
        cost = self.workload.cost(self._bound(program))
        own = math.ceil(len(program.trials) / len(program.devices))
        touched = 4 * (cost.activations * program.rows + TOUCHED * cost.parameters)
        most = max(1, self.machine.cache_bytes / max(1, touched))
        enough = enough_at_once(cost, program.rows, self.machine)
        fewest, several = (math.ceil(own / min(most, n * enough)) for n in (2, 1))
        held, running = self.trial_bytes(program)

        def fits(chunk: int) -> bool:
            return math.ceil(own / chunk) * chunk * held + chunk * running <= self.memory

        chunks = [math.ceil(own / n) for n in range(fewest, several + 1)]
        if not any(map(fits, chunks)):
            fewer = (math.ceil(own / n) for n in range(several + 1, own + 1))
            chunks = [next(filter(fits, fewer), 1)]
        # As few empty places as possible; then the smallest chunks.
        return dataclasses.replace(
            program,
            chunk=min(chunks, key=lambda c: (not fits(c), math.ceil(own / c) * c, c)),
        )

    def _sharing(self, programs: list[Program]) -> list[Program]:
        """Set for each program how many on a node share its compiled functions.

        Functions for the smaller batches that remain when trials have ended are shared as well.
        """
        compiled = [self._compiled(program) for program in programs]
        counts = collections.Counter(compiled)
        return [
            dataclasses.replace(
                program,
                estimate=dataclasses.replace(
                    program.estimate, sharing=max(1.0, counts[own] / self.nodes)
                ),
            )
            for program, own in zip(programs, compiled, strict=True)
        ]

    def _compiled(self, program: Program) -> object:
        """A key that is equal for programs that share their compiled functions."""
        lengths = frozenset[object]()
        if any(map(self.workload.run_length_matters, program.trials)):
            lengths |= {(t.epochs, self.workload.steps(t.batch_size)) for t in program.trials}
        return functions_of(program), program.devices, lengths

    def trial_bytes(self, program: Program) -> tuple[float, float]:
        """Bytes that each trial takes of a device in a call, and further bytes while it trains."""
        cost = self.workload.cost(self._bound(program))
        floats = self.workload.epoch_floats(cost, program.batch_sizes[0], program.record)
        held = _copies(program) * cost.parameters + CALL_COPIES * floats
        return 4 * held, 4 * 2 * cost.activations * program.rows

    def _most_rows(self, program: Program) -> float:
        """How many of the program's trials fit on a device if it trains one at a time."""
        held, running = self.trial_bytes(program)
        return (self.memory - running) / max(1, held)

    def _estimated(self, program: Program) -> Program:
        cost = self.workload.cost(self._bound(program))
        floats = self.workload.epoch_floats(cost, program.batch_sizes[0], program.record)
        state = 4 * _copies(program) * cost.parameters * program.filled()
        held, running = self.trial_bytes(program)
        at_once = len(program.devices) * program.chunk
        parameters = sum(self.workload.cost(trial).parameters for trial, _ in program.members)
        work = self._work(program)
        own = [self._needed(trial) for trial, _ in program.members]
        needed = sum(own[: len(program.trials)])
        estimate = Estimate(
            seconds=work,
            compile_seconds=float(self._best(program).compile_seconds),
            padding=max(0.0, 1 - needed / work) if work else 0.0,
            shares=tuple(seconds / (sum(own) or 1) for seconds in own),
            state_bytes=state,
            device_bytes=program.filled() * held + at_once * running,
            record_bytes=4
            * (RECORD_COPIES * len(program.trials) * program.epochs * floats + parameters),
        )
        return dataclasses.replace(program, estimate=estimate)


def _copies(program: Program) -> int:
    """How many copies of its parameters a program holds, with gradients gathered and passed in."""
    return STATE_COPIES + (2 if program.microbatch else 0)


def _cut(program: Program, most: int) -> list[Program]:
    """Programs of at most `most` trials, each with the prefixes of its own trials."""
    return [
        dataclasses.replace(
            program,
            trials=program.trials[start : start + most],
            prefixes=tuple(
                (trial, place - start)
                for trial, place in program.prefixes
                if start <= place < start + most
            ),
        )
        for start in range(0, len(program.trials), most)
    ]


def _in_turns(program: Program, ordered: Sequence[Trial]) -> Program:
    """The program with its trials arranged so that all parts have equally many of the first ones.

    This holds for any number of devices, which take equal parts: trials are sorted by the reversed
    bits of their index.
    """
    bits = (len(ordered) - 1).bit_length()
    places = sorted(range(len(ordered)), key=lambda i: f"{i:0{bits}b}"[::-1])
    trials = tuple(ordered[i] for i in places)
    place = {trial: i for i, trial in enumerate(trials)}
    prefixes = tuple((short, place[program.trials[own]]) for short, own in program.prefixes)
    return dataclasses.replace(program, trials=trials, prefixes=prefixes)


def _first_id(program: Program) -> str:
    return min(trial.id for trial in program.trials)
