"""Progress of anything that can be counted, for work that takes a while."""

import contextlib
import time
from collections.abc import Callable, Iterator

WORTH_A_LINE = 1.0  # seconds


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the number done and the total; shown if it takes a while.

    On a terminal it is a bar, elsewhere one line at the end.

    >>> with counting("images") as progress:
    ...     for i in range(3):
    ...         progress(i + 1, 3)
    """
    from rich.console import Console  # only when needed, as describing a sweep must start at once
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not (console.is_terminal or console.is_jupyter),
    )  # fmt: skip
    task = bar.add_task(what, total=None)
    started, last = time.monotonic(), 0

    def moved(done: int, total: int) -> None:
        nonlocal last
        last = total
        bar.update(task, completed=done, total=total)

    with bar:
        yield moved
    seconds = time.monotonic() - started
    if last and seconds > WORTH_A_LINE and not console.is_terminal:
        console.print(f"{what}: {last:,} in {seconds:.0f} s", markup=False)
