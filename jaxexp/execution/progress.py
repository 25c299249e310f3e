"""Progress on the terminal: what compiles or trains, how far it is, the best so far, time to go."""

import collections
import contextlib
import dataclasses
import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jaxexp.base.words import count, duration
from jaxexp.planning.nodes import seconds_of
from jaxexp.planning.programs import Plan, Program
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import text

LINES = 10  # where there is no terminal, progress is this many lines: fewer of a short run,
SHORTEST_SILENCE, LONGEST_SILENCE = 1.0, 60.0  # seconds between them; more of a long one
SHOWN_EVERY = 0.5  # seconds: how often a program's metrics are looked at
MOST_NAMES = 3  # sweeps that are named; of more, their number is told
ENOUGH = 0.2  # seconds of training, before the speed that they show is believed
STILL_EVERY = 20.0  # seconds between lines on what cannot tell how far it is
WINDOW = 10.0  # seconds whose speed is believed to last


@dataclass(frozen=True)
class Ranking:
    """By what the best trial so far is found, as the results will rank them."""

    metric: str
    split: str
    higher: bool = False
    unit: str = ""


class _Measured(NamedTuple):
    """What was measured last of a trial."""

    value: float
    loss: float  # which decides among equal values
    epoch: int  # after which,
    changed: Mapping[str, object]  # and hyperparameters that are not those it began with


@dataclass
class _Watched:
    """What has been seen of one program."""

    compiling: float | None = None  # since when
    compile_seconds: float | None = None  # that it took
    # When how many epochs were done: of the last WINDOW seconds of training, at least two.
    marks: collections.deque[tuple[float, float]] = field(default_factory=collections.deque)
    done: float = 0.0  # epochs
    trials: int = 0  # that still train,
    before: float = 0.0  # and epochs of trials before the last of them that ended,
    since: float = 0.0  # with so many epochs of each done
    seen: float = 0.0  # epochs whose training has been seen,
    taken: float = 0.0  # and the seconds that they would have taken alone on its devices
    looked: float = -math.inf  # when its metrics were looked at


class TerminalProgress:
    """Lines that move, over the epochs of a plan; plain lines where output is no terminal.

    The percentage is that of the epochs which are shown beside it. The time to go is what the plan
    estimates, corrected by how long compiling and training have been seen to take.
    """

    def __init__(
        self, plan: Plan, console: Console, sweeps: Sequence[Sweep] = (),
        ranking: Ranking | None = None, clock: Callable[[], float] = time.monotonic,
        best: int = 1,
    ) -> None:  # fmt: skip
        """Show nothing yet: that starts with the `with` block.

        Of a plan, only the programs that `sweeps` need are counted, if they are given. Of the best
        trials so far, a terminal shows one in words, or so many as a table.
        """
        self._sweeps: dict[Trial, list[Sweep]] = {}
        for sweep in sweeps:
            for trial in sweep.trials():
                self._sweeps.setdefault(trial, []).append(sweep)
        needed = [p for p in plan.programs if not sweeps or any(t in self._sweeps for t in _of(p))]
        self.plan = dataclasses.replace(plan, programs=tuple(needed))
        self.console, self.ranking, self._now = console, ranking, clock
        self.names = list(dict.fromkeys(sweep.name for sweep in sweeps))
        self.epochs = sum(len(p.trials) * p.epochs for p in needed)
        self._watched = {id(p): _Watched(trials=len(p.trials)) for p in needed}
        self._latest: dict[Trial, _Measured] = {}
        self._changed: dict[Trial, Mapping[str, object]] = {}
        self._shown = best
        self._lock = threading.RLock()
        self._lines, self._told = 0, -math.inf
        self._started = clock()
        self._spinner = Spinner("dots")
        self._live = (
            Live(self, console=console, refresh_per_second=8)
            if console.is_terminal or console.is_jupyter
            else None
        )

    def __enter__(self) -> Self:
        """Start showing."""
        self._started = self._now()
        if self._live:
            self._live.start()
        else:
            programs = count(len(self.plan.programs), "program")
            trials = count(self.plan.trials, "trial")
            self._line(f"{self.what()}: {trials} in {programs}, {self.to_go()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""
        if self._live:
            self._live.stop()

    def __rich__(self) -> RenderableType:
        """The lines, as things stand."""
        shown, percent = self.done()
        first = Table.grid(padding=(0, 1))
        # Names give way where the terminal is narrow, figures do not.
        first.add_column()
        first.add_column(overflow="ellipsis", no_wrap=True)
        first.add_column()
        first.add_column(no_wrap=True)
        bar = ProgressBar(total=100, completed=percent, width=min(30, self.console.width // 4))
        first.add_row(self._spinner, Text(self.what()), bar, Text(f"{shown} ({percent} %)"))
        passed = f"{duration(self._now() - self._started)} so far"
        when = passed if percent == 100 else f"{passed} · {self.to_go()}"
        best = self.table() if self._shown > 1 else Text(self.best())
        below = [Text(when), best] if best else [Text(when)]
        return Group(first, *(Padding(each, (0, 0, 0, 2), expand=False) for each in below))

    def compiling(self, program: Program) -> None:
        """A program is being compiled."""
        with self._lock:
            if own := self._watched.get(id(program)):
                own.compiling = self._now()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def moved(self, program: Program, epochs: float) -> None:
        """A program has trained so many epochs."""
        with self._lock:
            own, now = self._watched.get(id(program)), self._now()
            if own is None:
                return
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
            self._tell()

    def stopped(self, program: Program, epoch: int, trials: int) -> None:
        """So many trials end after this epoch: what they will not train is not counted any more."""
        with self._lock:
            if own := self._watched.get(id(program)):
                own.before += own.trials * (epoch - own.since)
                own.since, own.trials = epoch, own.trials - trials
                self.epochs -= trials * (program.epochs - epoch)
                if not own.trials:
                    own.done = program.epochs

    def changed(self, program: Program, values: Mapping[str, np.ndarray]) -> None:
        """Trials that copied others have these hyperparameters, (T,) each."""
        with self._lock:
            for place, trial in enumerate(program.trials):
                self._changed[trial] = {name: own[place].item() for name, own in values.items()}

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """A program has finished an epoch; `value` computes a metric of a split, (T,)."""
        own, now, asked = self._watched.get(id(program)), self._now(), self.ranking
        ends = any(trial.epochs == epoch for trial in program.trials)
        if own is None or asked is None or not (ends or now - own.looked >= SHOWN_EVERY):
            return
        values, losses = value(asked.metric, asked.split), value("loss", asked.split)
        with self._lock:
            own.looked = now
            for trial, number, loss in zip(program.trials, values, losses, strict=True):
                if epoch <= trial.epochs:
                    changed = self._changed.get(trial, {})
                    self._latest[trial] = _Measured(float(number), float(loss), epoch, changed)

    def what(self) -> str:
        """What goes on: "compiling epochs", "training epochs, compiling 2 programs"."""
        with self._lock:
            watched = [(p, self._watched[id(p)]) for p in self.plan.programs]
            training = [p for p, _ in watched if self._trains(p)]
            compiling = [p for p, own in watched if own.compiling is not None]
            if training:
                also = f", compiling {count(len(compiling), 'program')}" if compiling else ""
                return f"training{self._named(training)}{also}"
            if all(own.done >= p.epochs for p, own in watched):
                return f"trained{self._named(self.plan.programs)}"
            todo = [p for p, own in watched if own.done < p.epochs]
            return f"compiling{self._named(compiling or todo)}"

    def _named(self, programs: Sequence[Program]) -> str:
        own = {s.name for p in programs for t in _of(p) for s in self._sweeps.get(t, ())}
        names = [name for name in self.names if name in own]
        if not names or self.names == ["sweep"]:  # which nobody has named
            return ""
        said = ", ".join(names) if len(names) <= MOST_NAMES else count(len(names), "sweep")
        return f" {said}"

    def done(self) -> tuple[str, int]:
        """The epochs done of all, in words, and as a percentage of what is said, rounded down."""
        with self._lock:
            every = [self._watched[id(p)] for p in self.plan.programs]
            done = sum(own.before + own.trials * (own.done - own.since) for own in every)
        digits = 0 if self.epochs >= 1000 else 1 if self.epochs >= 100 else 2
        scale = 10**digits
        shown = math.floor(done * scale + 1e-6)  # never more than there is
        written = f"{shown / scale:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{shown:,}"
        percent = shown * 100 // (self.epochs * scale) if self.epochs else 100
        return f"{written} of {count(self.epochs, 'epoch')}", percent

    def best(self) -> str:
        """The best trial so far, and its metric as measured last; "" before there is one."""
        found = self._best(1)
        if not found or self.ranking is None:
            return ""
        trial, own = found[0]
        value = f"{own.value:.4g} {self.ranking.unit}".rstrip()
        return f"best so far: {self._measure} {value}{self._label(trial)}"

    def table(self) -> Table | None:
        """The best trials so far, with their values along the axes; None before there is one."""
        found = self._best(self._shown)
        if not found or self.ranking is None:
            return None
        names = list(dict.fromkeys(
            name for trial, _ in found for sweep in self._sweeps.get(trial, ())
            for axis in sweep.axes for name in axis
        ))  # fmt: skip
        unit = f", {self.ranking.unit}" if self.ranking.unit else ""
        made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("best so far", f"{self._measure}{unit}", "epoch", *names):
            made.add_column(title.replace("_", " "), justify="right", no_wrap=True)
        for rank, (trial, own) in enumerate(found, 1):
            values = (self._value(trial, name) for name in names)
            made.add_row(str(rank), f"{own.value:.4g}", str(own.epoch), *values)
        return made

    @property
    def _measure(self) -> str:
        """By what trials are ranked, in words."""
        assert self.ranking is not None
        split = "training" if self.ranking.split == "train" else self.ranking.split
        return f"{split} {self.ranking.metric.replace('_', ' ')}"

    def _best(self, most: int) -> list[tuple[Trial, _Measured]]:
        """The best trials and what was measured last, the best first, as results rank them."""
        sign = -1 if self.ranking is not None and self.ranking.higher else 1

        def key(found: tuple[Trial, _Measured]) -> tuple[float, float]:
            _, own = found
            return sign * own.value, own.loss if math.isfinite(own.loss) else math.inf

        with self._lock:
            finite = [(t, own) for t, own in self._latest.items() if math.isfinite(own.value)]
        return heapq.nsmallest(most, finite, key=key)

    def _label(self, trial: Trial) -> str:
        """Its values along the axes of its sweep, if it has any."""
        sweep = next(iter(self._sweeps.get(trial, ())), None)
        if sweep is None:
            return ""
        axes = [name for axis in sweep.axes for name in axis]
        words = [f"{name.replace('_', ' ')} {self._value(trial, name)}" for name in axes]
        named = [sweep.name] if len(self.names) > 1 else []
        return f" ({', '.join([*named, *words])})" if named or words else ""

    def _value(self, trial: Trial, name: str) -> str:
        """A hyperparameter as the trial had it when it was measured last."""
        return _written(self._latest[trial].changed.get(name, getattr(trial, name)))

    def to_go(self) -> str:
        """The time to go in words, which say whether it is an estimate or has been seen."""
        seconds, seen = self.remaining()
        return f"about {duration(seconds)} to go" if seen else f"estimated {duration(seconds)}"

    def remaining(self) -> tuple[float, bool]:
        """Seconds to go, and whether they rest on a speed that has been seen."""
        with self._lock:
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
                work = sum(
                    s * len(p.devices) for s, p in zip(each, self.plan.programs, strict=True)
                )
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
        training = [p for p in self.plan.programs if self._trains(p) or p is program]
        return max(
            (sum(device in p.devices for p in training) for device in program.devices), default=1
        )

    def _trains(self, program: Program) -> bool:
        own = self._watched[id(program)]
        return bool(own.marks) and own.done < program.epochs

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

    def _tell(self) -> None:
        """Where there is no terminal, a line for each tenth, or after a long silence."""
        if self._live:
            return
        shown, percent = self.done()
        tenth, silence = percent * LINES // 100, self._now() - self._told
        next_one = tenth > self._lines and (silence >= SHORTEST_SILENCE or percent == 100)
        if next_one or silence >= LONGEST_SILENCE:
            self._lines = max(tenth, self._lines)
            rest = [*([] if percent == 100 else [self.to_go()]), self.best()]
            parts = [f"{self.what()}: {count(self.plan.trials, 'trial')}, {shown} ({percent} %)"]
            self._line("; ".join([*parts, *(part for part in rest if part)]))

    def _line(self, line: str) -> None:
        self._told = self._now()
        self.console.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def going_on(text: str, console: Console, every: float = STILL_EVERY) -> Iterator[None]:
    """Say what goes on, that it still does, and how long it took, where nobody tells how far it is.

    In lines: what goes on may show a bar of its own.
    """
    over, started = threading.Event(), time.monotonic()

    def passed() -> str:
        return duration(time.monotonic() - started)

    def tell() -> None:
        while not over.wait(every):
            console.print(f"still {text}: {passed()} so far", markup=False, soft_wrap=True)

    console.print(f"{text} …", markup=False, soft_wrap=True)
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
    console.print(f"done {text}: {passed()}", markup=False, soft_wrap=True)


def _of(program: Program) -> list[Trial]:
    return [trial for trial, _ in program.members]


def _written(value: object) -> str:
    """A value as it is typed: 1e-5, 0.001, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, float):
        return text(value)
    mantissa, exponential, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponential else mantissa
