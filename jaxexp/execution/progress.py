"""Progress on the terminal: trials and epochs done, and the time to go."""

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxexp.planning.programs import Plan, Program

LINES = 10  # where there is no terminal, progress is this many lines


class TerminalProgress:
    """A progress bar over the estimated work of a plan; plain lines where output is no terminal."""

    def __init__(self, plan: Plan, console: Console) -> None:
        """Show nothing yet: that starts with the `with` block."""
        self.plan, self.console = plan, console
        self.work = {id(program): program.estimate.seconds for program in plan.programs}
        self.epochs = sum(len(p.trials) * p.epochs for p in plan.programs)
        self.done = {id(program): 0.0 for program in plan.programs}  # epochs
        self.lines = 0
        self.lock = threading.Lock()
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self.task = self.bar.add_task(self._description(), total=sum(self.work.values()))

    def __enter__(self) -> Self:
        """Start showing."""
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""
        self.bar.stop()

    def _description(self) -> str:
        done = sum(int(self.done[id(p)]) * len(p.trials) for p in self.plan.programs)
        return f"{self.plan.trials} trials, {done:,} of {self.epochs:,} epochs"

    def compiling(self, program: Program) -> None:
        """Nothing to show: the spinner moves."""

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def moved(self, program: Program, epochs: float) -> None:
        """A program has trained so many epochs."""
        with self.lock:
            advance = (epochs - self.done[id(program)]) * self.work[id(program)] / program.epochs
            self.done[id(program)] = epochs
            self.bar.update(self.task, advance=advance, description=self._description())
            task = self.bar.tasks[0]
            if not self.console.is_terminal and task.percentage >= 100 * (self.lines + 1) / LINES:
                self.lines = int(task.percentage * LINES / 100)
                self.console.print(f"{self._description()} ({task.percentage:.0f} %)")
