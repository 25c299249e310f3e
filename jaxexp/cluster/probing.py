"""What a node says of itself before it is asked to train. Nodes need nothing of ours for it."""

import importlib.metadata
import platform


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
        "processor": _processor(),
        "versions": found,
        "error": error,
    }


def _processor() -> str:
    """The model, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            found = [line.partition(":")[2] for line in file if line.startswith("model name")]
    except OSError:
        found = []
    return found[0].strip() if found else platform.processor() or platform.machine()
