"""Run sweeps: plan, train, and hand over labelled results as each sweep is complete."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from jaxexp.execution.devices import devices
from jaxexp.execution.driver import Keeper, Problem, Progress, stream
from jaxexp.execution.machine import plan_here
from jaxexp.execution.records import TrialRecord
from jaxexp.planning.plan import Plan
from jaxexp.reproduce.places import problem as places_problem
from jaxexp.reproduce.tables import load_places
from jaxexp.results.dataset import facts, to_dataset
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial

if TYPE_CHECKING:
    import xarray as xr


def run(sweep: Sweep, problem: Problem | None = None) -> "xr.Dataset":
    """Train every trial of a sweep, vectorized over all devices, and return its results.

    The problem is the embedded one (the country of European places) if none is given. See
    `jaxexp.results.dataset.to_dataset` for what the dataset holds.

    Raises UserError, before anything is trained, for trials that cannot be run.
    """
    problem = problem or places_problem(load_places())
    [(_, results)] = run_plan(make_plan([sweep], problem), [sweep], problem)
    return results


def make_plan(
    sweeps: Sequence[Sweep],
    problem: Problem,
    *,
    programs: str = "auto",
    memory: float | None = None,
    devices: int | None = None,
) -> Plan:
    """One plan for several sweeps on the devices of this machine, checked against the data.

    `programs` ("auto", "exact", "one") says which trials share a program: see `planning.plan`.
    `memory` is how many bytes the run may take: what is free now, if not given. `devices` is how
    many to use: all, if not given.

    Raises UserError for trials that cannot be run, or need more memory or devices than there are.
    """
    for sweep in sweeps:
        for trial in sweep.trials():
            problem.check(trial)
    return plan_here(sweeps, problem.examples, programs=programs, memory=memory, devices=devices)


def run_plan(
    made: Plan, sweeps: Sequence[Sweep], problem: Problem, progress: Progress | None = None,
    *, keeper: Keeper | None = None, stop: threading.Event | None = None,
    finished: Callable[[TrialRecord], None] | None = None,
) -> "Generator[tuple[Sweep, xr.Dataset]]":  # fmt: skip
    """Run the plan of several sweeps: a trial that stands in several of them trains once.

    Yields each sweep with its results as soon as the last of its trials has finished. Programs of
    the plan that none of the sweeps needs do not run. See `driver.stream` for `keeper` and
    `stop`. `finished` is given each trial's record, in which alone its parameters are.
    """
    used = devices()[: made.devices]
    environment = facts(made, used)
    waiting = {sweep.name: set(sweep.trials()) for sweep in sweeps}
    needed = set().union(*waiting.values())
    programs = [p for p in made.programs if any(trial in needed for trial, _ in p.members)]
    todo = dataclasses.replace(made, programs=tuple(programs))
    records: dict[Trial, TrialRecord] = {}
    started = time.perf_counter()
    batches = stream(todo, problem, used, progress, keeper=keeper, stop=stop)
    with contextlib.closing(batches):  # the lanes stop before whoever stops listening goes on
        for batch in batches:
            for record in batch:
                if finished:
                    finished(record)
                # Trained weights of large models would fill the memory.
                records[record.trial] = dataclasses.replace(record, params={}, state={})
            del batch, record
            for sweep in sweeps:
                if sweep.name in waiting and records.keys() >= waiting[sweep.name]:
                    del waiting[sweep.name]
                    seconds = {"wall_seconds": time.perf_counter() - started}
                    yield sweep, to_dataset(sweep, records, problem, environment | seconds)
