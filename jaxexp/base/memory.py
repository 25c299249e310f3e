"""Memory that is free, and that the C library keeps."""

import contextlib
import ctypes


def give_back() -> None:
    """Return free memory to the system, where that is glibc's choice.

    A compilation, or a fit of boosted trees, leaves hundreds of MB that nobody uses any more.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
