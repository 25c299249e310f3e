"""The plan: which trials share a compiled program, and on which devices each program runs."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from jaxexp.sweep import Sweep
from jaxexp.trial import Trial


@dataclass(frozen=True)
class Program:
    """Trials of equal static hyperparameters, trained as one batch."""

    trials: tuple[Trial, ...]
    record: tuple[str, ...]  # what is kept beyond losses and accuracies
    devices: tuple[int, ...]  # the batch is spread over these

    @property
    def epochs(self) -> int:
        """The epochs that each trial trains."""
        return self.trials[0].epochs

    def work(self, examples: int) -> float:
        """Estimated core-seconds: only their ratios matter, to order programs and show progress."""
        return len(self.trials) * self.trials[0].work(examples)


@dataclass(frozen=True)
class Plan:
    """Programs in the order in which they start."""

    programs: tuple[Program, ...]
    devices: int

    @property
    def trials(self) -> int:
        """The number of trials, each of which trains once."""
        return sum(len(program.trials) for program in self.programs)

    @property
    def spread(self) -> list[Program]:
        """Programs with a trial for every device: they run one after another, on all of them."""
        return [p for p in self.programs if len(p.devices) == self.devices]

    @property
    def lanes(self) -> list[list[Program]]:
        """The other programs, by the device on which they run, side by side."""
        lanes: dict[tuple[int, ...], list[Program]] = {}
        for program in self.programs:
            if len(program.devices) < self.devices:
                lanes.setdefault(program.devices, []).append(program)
        return list(lanes.values())

    def __str__(self) -> str:
        """One line per program."""
        lines = [f"{self.trials} trials in {len(self.programs)} programs on {self.devices} devices"]
        for program in self.programs:
            static = dict(program.trials[0].static())
            default = dict(type(program.trials[0])().static())
            differs = ", ".join(f"{k}={v}" for k, v in static.items() if v != default[k])
            where = (
                "all devices"
                if len(program.devices) == self.devices
                else f"device {program.devices[0]}"
            )
            lines.append(
                f"  {len(program.trials):3d} trials × {program.epochs:3d} epochs on {where}: "
                + (differs or "defaults")
            )
        return "\n".join(lines)


def plan(sweeps: Iterable[Sweep], devices: int, examples: int) -> Plan:
    """Group the trials of all sweeps into programs, and the programs onto devices.

    A trial that stands in several sweeps trains once. A program with at least as many trials as
    there are devices is spread over all of them; the others run side by side, one per device, the
    longest first on the device that is free soonest (Graham's rule).
    """
    records = _records(sweeps)
    programs = [
        Program(tuple(trials), tuple(sorted(set().union(*(records[t] for t in trials)))), ())
        for trials in _groups(records)
    ]
    programs.sort(key=lambda program: -program.work(examples))
    spread = [p for p in programs if len(p.trials) >= devices]
    placed = [dataclasses.replace(p, devices=tuple(range(devices))) for p in spread]
    busy = [0.0] * devices
    for program in programs:
        if program not in spread:
            device = busy.index(min(busy))
            busy[device] += program.work(examples)
            placed.append(dataclasses.replace(program, devices=(device,)))
    return Plan(tuple(placed), devices)


def _records(sweeps: Iterable[Sweep]) -> dict[Trial, set[str]]:
    """Every trial once, with all that some sweep wants recorded of it."""
    records: dict[Trial, set[str]] = {}
    for sweep in sweeps:
        for trial in sweep.trials():
            records.setdefault(trial, set()).update(sweep.record)
    return records


def _groups(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials that can share a compiled program."""
    groups: dict[tuple, list[Trial]] = {}
    for trial in trials:
        groups.setdefault((type(trial), trial.static()), []).append(trial)
    return list(groups.values())
