"""How long the programs of a plan need yet: as estimated, corrected by what has been seen."""

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxexp.planning.nodes import seconds_of
from jaxexp.planning.programs import Plan, Program

ENOUGH = 0.2  # seconds of training, before the speed that they show is believed
WINDOW = 10.0  # seconds whose speed is believed to last


@dataclass
class _Watched:
    """What has been seen of one program."""

    compiling: float | None = None  # since when
    compile_seconds: float | None = None  # that it took
    # When how many epochs were done: of the last WINDOW seconds of training, at least two.
    marks: collections.deque[tuple[float, float]] = field(default_factory=collections.deque)
    done: float = 0.0  # epochs
    seen: float = 0.0  # epochs whose training has been seen,
    taken: float = 0.0  # and the seconds that they would have taken alone on its devices


class Pace:
    """What has been seen of each program, by a clock in seconds."""

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        """Nothing has been seen."""
        self.plan, self._now = plan, clock
        self._watched = {id(p): _Watched() for p in plan.programs}

    def compiling(self, program: Program) -> None:
        """It is being compiled from now on."""
        self._watched[id(program)].compiling = self._now()

    def moved(self, program: Program, epochs: float) -> None:
        """It has trained so many epochs."""
        own, now = self._watched[id(program)], self._now()
        if own.compiling is not None:
            own.compile_seconds, own.compiling = now - own.compiling, None
            own.marks.clear()  # a first call is slower than all others: it starts the clock
        elif epochs < own.done:
            own.marks.clear()  # it goes on elsewhere, from where it was saved
        elif own.marks:
            before, done = own.marks[-1]
            own.seen += epochs - done
            own.taken += (now - before) / self._crowd(program)
        if own.compile_seconds is not None:
            own.marks.append((now, epochs))
        while len(own.marks) > 2 and now - own.marks[1][0] >= WINDOW:
            own.marks.popleft()
        own.done = epochs

    def ended(self, program: Program) -> None:
        """Nothing of it is left to train."""
        self._watched[id(program)].done = program.epochs

    def done(self, program: Program) -> float:
        """The epochs that it has trained."""
        return self._watched[id(program)].done

    def compiles(self, program: Program) -> bool:
        """Whether it is being compiled."""
        return self._watched[id(program)].compiling is not None

    def trains(self, program: Program) -> bool:
        """Whether it has been seen to train, and does."""
        own = self._watched[id(program)]
        return bool(own.marks) and own.done < program.epochs

    def remaining(self) -> tuple[float, bool]:
        """Seconds to go, and whether they rest on a speed that has been seen."""
        slower = self._slower()
        compile_slower = self._compile_slower()
        if slower is None and not any(own.done for own in self._watched.values()):
            passed = max(
                (self._now() - own.compiling for own in self._watched.values()
                 if own.compiling is not None), default=0.0,
            )  # fmt: skip
            return max(0.0, self.plan.seconds - passed), False

        def of(programs: Sequence[Program]) -> float:
            return sum(self._left(p, slower or 1.0, compile_slower) for p in programs)

        if self.plan.nodes > 1:
            each = [of([p]) for p in self.plan.programs]
            work = sum(s * len(p.devices) for s, p in zip(each, self.plan.programs, strict=True))
            devices_of_all = self.plan.devices * self.plan.nodes
            return max(work / devices_of_all, *each), slower is not None
        # Where streams share a device, each is faster once another has ended.
        left = [(stream, of(stream)) for stream in self.plan.streams]
        devices = {d for stream, _ in left for d in stream[0].devices}
        busy = [sum(own for s, own in left if d in s[0].devices) for d in devices]
        longest = max([*busy, *(own for _, own in left)], default=0.0)
        return longest + of(self.plan.alone), slower is not None

    def _crowd(self, program: Program) -> int:
        """How many programs train on its busiest device now; a node's devices train one each."""
        if self.plan.nodes > 1:
            return 1
        training = [p for p in self.plan.programs if self.trains(p) or p is program]
        return max(
            (sum(device in p.devices for p in training) for device in program.devices), default=1
        )

    def _left(self, program: Program, slower: float, compile_slower: float) -> float:
        """Seconds that one program needs yet, alone on its devices."""
        own = self._watched[id(program)]
        if own.done >= program.epochs:
            return 0.0
        seconds = seconds_of(program) * (program.epochs - own.done) / program.epochs * slower
        if own.marks:
            (since, start), (until, done) = own.marks[0], own.marks[-1]
            if until - since >= ENOUGH and done > start:
                seconds = (program.epochs - done) * (until - since) / (done - start)
                seconds = max(0.0, seconds - (self._now() - until)) / self._crowd(program)
        if own.compile_seconds is None:
            passed = self._now() - own.compiling if own.compiling is not None else 0.0
            compiling = program.estimate.compile_seconds * compile_slower
            seconds += max(0.0, compiling - passed)
        return seconds

    def _slower(self) -> float | None:
        """How many times as long as estimated training has taken; None if nothing was seen."""
        taken = expected = 0.0
        for program in self.plan.programs:
            own = self._watched[id(program)]
            taken += own.taken
            expected += seconds_of(program) * own.seen / program.epochs
        return taken / expected if taken >= ENOUGH and expected > 0 else None

    def _compile_slower(self) -> float:
        """The same of compilation; 1 if nothing was seen."""
        seen = [(p, self._watched[id(p)].compile_seconds) for p in self.plan.programs]
        expected = sum(p.estimate.compile_seconds for p, own in seen if own is not None)
        taken = sum(own for _, own in seen if own is not None)
        return taken / expected if expected > 0 else 1.0
