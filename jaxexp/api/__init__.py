"""From a sweep, a task and data to results: what users call, and the command line too.

One run flows from here through `jaxexp.spec` (what is asked), `jaxexp.planning` (which trials share
a program), `jaxexp.execution` (which drives `jaxexp.training`, compiled) to `jaxexp.results`.
Imports all of these.
"""

from jaxexp.api.inspector import Inspector
from jaxexp.api.planned import PlannedRun, Problem, plan, surroundings, versions
from jaxexp.api.running import (
    RunOptions,
    controlled,
    deciding,
    run,
    terminal_progress,
    train,
    write_report,
)

__all__ = [
    "Inspector",
    "PlannedRun",
    "Problem",
    "RunOptions",
    "controlled",
    "deciding",
    "plan",
    "run",
    "surroundings",
    "terminal_progress",
    "train",
    "versions",
    "write_report",
]
