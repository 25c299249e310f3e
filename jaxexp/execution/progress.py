"""Progress on the terminal: what compiles or trains, how far it is, the best now, time to go."""

import contextlib
import dataclasses
import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from jaxexp.execution.pace import Pace
from jaxexp.planning.programs import Plan, Program
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.written import setting

LINES = 10  # where there is no terminal, progress is this many lines: fewer of a short run,
SHORTEST_SILENCE, LONGEST_SILENCE = 1.0, 60.0  # seconds between them; more of a long one
SHOWN_EVERY = 0.5  # seconds: how often a program's metrics are looked at
MOST_NAMES = 3  # sweeps that are named; of more, their number is told
STILL_EVERY = 20.0  # seconds between lines on what cannot tell how far it is


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
class _Trained:
    """How far the trials of one program are."""

    last_T: np.ndarray  # the epoch after which each ends
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
        self._trained = {id(p): _Trained(_planned(p)) for p in needed}
        self._pace = Pace(self.plan, clock)
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
            if id(program) in self._trained:
                self._pace.compiling(program)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def moved(self, program: Program, epochs: float) -> None:
        """A program has trained so many epochs."""
        with self._lock:
            if own := self._trained.get(id(program)):
                # Where it trains once more what was lost, trials have not ended yet.
                own.last_T = np.where(own.last_T > epochs, _planned(program), own.last_T)
                self._pace.moved(program, epochs)
                self._tell()

    def stopped(self, program: Program, epoch: int, places: np.ndarray) -> None:
        """These trials end after this epoch: what they will not train is not counted any more."""
        with self._lock:
            if own := self._trained.get(id(program)):
                own.last_T[places] = epoch
                if (own.last_T <= epoch).all():
                    self._pace.ended(program)

    def changed(self, program: Program, values: Mapping[str, np.ndarray]) -> None:
        """Trials that copied others have these hyperparameters, (T,) each."""
        with self._lock:
            for place, trial in enumerate(program.trials):
                self._changed[trial] = {name: own[place].item() for name, own in values.items()}

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """A program has finished an epoch; `value` computes a metric of a split, (T,)."""
        own, now, asked = self._trained.get(id(program)), self._now(), self.ranking
        ends = any(trial.epochs == epoch for trial in program.trials)
        if own is None or asked is None or not (ends or now - own.looked >= SHOWN_EVERY):
            return
        values, losses = value(asked.metric, asked.split), value("loss", asked.split)
        with self._lock:
            own.looked = now
            rows = zip(program.trials, values, losses, own.last_T.tolist(), strict=True)
            for trial, number, loss, last in rows:
                if epoch <= trial.epochs:
                    changed, at = self._changed.get(trial, {}), min(epoch, last)
                    self._latest[trial] = _Measured(float(number), float(loss), at, changed)

    @property
    def epochs(self) -> int:
        """Of all trials, without those that they will not train."""
        return sum(int(own.last_T.sum()) for own in self._trained.values())

    def what(self) -> str:
        """What goes on: "compiling epochs", "training epochs, compiling 2 programs"."""
        with self._lock:
            programs, pace = self.plan.programs, self._pace
            training = [p for p in programs if pace.trains(p)]
            compiling = [p for p in programs if pace.compiles(p)]
            if training:
                also = f", compiling {count(len(compiling), 'program')}" if compiling else ""
                return f"training{self._named(training)}{also}"
            todo = [p for p in programs if pace.done(p) < p.epochs]
            if not todo:
                return f"trained{self._named(programs)}"
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
            every = [(self._trained[id(p)], self._pace.done(p)) for p in self.plan.programs]
            done = sum(float(np.minimum(own.last_T, now).sum()) for own, now in every)
        digits = 0 if self.epochs >= 1000 else 1 if self.epochs >= 100 else 2
        scale = 10**digits
        shown = math.floor(done * scale + 1e-6)  # never more than there is
        written = f"{shown / scale:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{shown:,}"
        percent = shown * 100 // (self.epochs * scale) if self.epochs else 100
        return f"{written} of {count(self.epochs, 'epoch')}", percent

    def best(self) -> str:
        """The trial that is best now, and its metric as measured last; "" before there is one."""
        found = self._best(1)
        if not found or self.ranking is None:
            return ""
        trial, own = found[0]
        value = f"{own.value:.4g} {self.ranking.unit}".rstrip()
        return f"best now: {self._measure} {value}{self._label(trial)}"

    def table(self) -> Table | None:
        """The trials that are best now, with their values along the axes; None before there are."""
        found = self._best(self._shown)
        if not found or self.ranking is None:
            return None
        names = list(dict.fromkeys(
            name for trial, _ in found for sweep in self._sweeps.get(trial, ())
            for axis in sweep.axes for name in axis
        ))  # fmt: skip
        unit = f", {self.ranking.unit}" if self.ranking.unit else ""
        made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("best now", f"{self._measure}{unit}", "epoch", *names):
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
        return setting(self._latest[trial].changed.get(name, getattr(trial, name)))

    def to_go(self) -> str:
        """The time to go in words, which say whether it is an estimate or has been seen."""
        seconds, seen = self.remaining()
        return f"about {duration(seconds)} to go" if seen else f"estimated {duration(seconds)}"

    def remaining(self) -> tuple[float, bool]:
        """Seconds to go, and whether they rest on a speed that has been seen."""
        with self._lock:
            return self._pace.remaining()

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


def _planned(program: Program) -> np.ndarray:
    """The epochs of each trial, (T,), if none ends early."""
    return np.array([trial.epochs for trial in program.trials])


def _of(program: Program) -> list[Trial]:
    return [trial for trial, _ in program.members]
