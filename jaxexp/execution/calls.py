"""How much of a program one call trains."""

import time

from jaxexp.execution.program import Call

CALL_SECONDS = 1.0  # of one call: a run can stop, and save, between two of them
FIRST_CALL = 4  # steps, or batches, when nobody knows yet how long they take


class CallLength:
    """How much to do in one call, so that it takes about CALL_SECONDS."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.seconds = {True: 0.0, False: 0.0}  # of a training step; of a batch evaluated
        self.last = time.perf_counter()

    @property
    def slow(self) -> bool:
        """Whether calls take so long that none should wait while another runs."""
        return max(self.seconds.values()) > CALL_SECONDS / 2

    def most(self, training: bool) -> int:
        """So many steps, or batches: few at first, to measure."""
        seconds = self.seconds[training]
        return max(1, int(CALL_SECONDS / seconds)) if seconds else FIRST_CALL

    def arrived(self, call: Call) -> None:
        """Learn from a call that has just finished."""
        now = time.perf_counter()
        self.seconds[call.training] = (now - self.last) / call.amount
        self.last = now
