"""What a node says of itself before it is asked to train. Nodes need nothing of ours for it."""

import importlib.metadata
import platform
import socket


def describe(libraries: list[str]) -> dict[str, object]:
    """Versions of the libraries, and why this one cannot be imported."""
    found: dict[str, str] = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    error = ""
    try:
        import jaxexp  # noqa: F401
    except Exception as raised:  # whatever a broken installation raises
        error = f"{type(raised).__name__}: {raised}"
    return {
        "host": socket.gethostname(),
        "processor": platform.machine(),
        "versions": found,
        "error": error,
    }
