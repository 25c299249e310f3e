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


class Signals:
    """Within the `with` block, a signal ends the process; while `deferred`, the second one does."""

    def __init__(self, say: Callable[[], None]) -> None:
        """Nothing is handled yet. `say` tells the user how things stand, as the process ends."""
        self._say = say
        self._stop = threading.Event()
        self._deferred = False
        self._received: int = signal.SIGINT

    def __enter__(self) -> Self:
        """Handle the signals, where this is the main thread."""
        self._before = {number: signal.signal(number, self._handle) for number in HANDLED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Handle them as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            os._exit(128 + self._received)
        self._received = number
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
        """End the process as the signal would have: 130 for Ctrl-C, 143 for SIGTERM.

        At once: a compilation under way cannot be stopped, and nobody needs it any more.
        """
        with contextlib.suppress(OSError):  # nobody may be listening any more
            self._say()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(128 + self._received)
