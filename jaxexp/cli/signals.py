"""Ctrl-C and SIGTERM: asked once, a run saves what it has; asked twice, it leaves at once.

While nothing trains there is nothing to save. It leaves at once then too, from within the handler:
an exception, raised wherever the program happens to be, would go astray now and then.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn, Self

from jaxexp.base.errors import InterruptedRunError

HANDLED = (signal.SIGINT, signal.SIGTERM)
BUDGET_STATUS = 124  # as that of `timeout`
SAVING_SECONDS, SAVING_SHARE = 15.0, 0.05  # of a budget, whichever is less: the last snapshots


class Signals:
    """Within the `with` block, a signal ends the process; while `deferred`, the second one does.

    So does the end of a budget, as a first signal.
    """

    def __init__(self, say: Callable[[], None], budget: float | None = None) -> None:
        """Nothing is handled yet. `say` tells the user how things stand, as the process ends.

        Of a `budget` in seconds, the last part is left for saving.
        """
        self._say, self._timer = say, None
        if budget is not None:
            saving = min(SAVING_SECONDS, SAVING_SHARE * budget)
            self._timer = threading.Timer(budget - saving, self._over)
            self._timer.daemon = True
        self._stop = threading.Event()
        self._deferred = False
        self._status = 128 + signal.SIGINT

    def __enter__(self) -> Self:
        """Handle the signals, where this is the main thread."""
        if self._timer:
            self._timer.start()
        self._before = {number: signal.signal(number, self._handle) for number in HANDLED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Handle them as before."""
        if self._timer:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def over(self) -> bool:
        """Whether the budget has ended the run, and no signal."""
        return self._status == BUDGET_STATUS

    def end_budget(self) -> None:
        """From now on the end of the budget ends nothing, nor does one that has just ended.

        Once all is trained and saved, there is no time to save.
        """
        if self._timer:
            self._timer.cancel()
        if self.over:
            self._status = 128 + signal.SIGINT
            self._stop.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            os._exit(self._status)
        self._first(128 + number)

    def _over(self) -> None:
        if not self._stop.is_set():
            self._first(BUDGET_STATUS)

    def _first(self, status: int) -> None:
        self._status = status
        self._stop.set()
        if not self._deferred:
            self.leave()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[threading.Event]:
        """Meanwhile, the first signal only sets the event; it is raised at the end, if not before.

        As InterruptedRunError.
        """
        self._deferred = True
        try:
            yield self._stop
        finally:
            self._deferred = False
        if self._stop.is_set():
            raise InterruptedRunError

    def leave(self) -> NoReturn:
        """End the process as the signal would have: 130 for Ctrl-C, 143 for SIGTERM, 124 in time.

        At once: a compilation under way cannot be stopped, and nobody needs it any more.
        """
        with contextlib.suppress(OSError):  # nobody may be listening any more
            self._say()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self._status)
