"""Free memory that the C library keeps."""

import contextlib
import ctypes


def give_back() -> None:
    """Return free memory to the system, if the C library is glibc, which may keep it.

    A compilation, or a fit of boosted trees, leaves hundreds of MB that are no longer used.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
