"""Planning a run: which trials of which sweeps share a program, where, and at what cost."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import jax

from jaxexp.api.checks import (
    check_filling,
    check_pads,
    check_read,
    check_records,
    check_saved,
    check_task,
    check_updates,
    checked_task,
    short,
)
from jaxexp.api.inspector import Inspector
from jaxexp.base.errors import UserError
from jaxexp.base.files import digest
from jaxexp.base.numbers import checked_int, is_number
from jaxexp.base.versions import version
from jaxexp.base.words import type_of
from jaxexp.execution import driver, targets
from jaxexp.execution.control import Control, Stopping
from jaxexp.execution.devices import check_compiles, chosen, device_memory, host_memory
from jaxexp.execution.devices import devices as all_devices
from jaxexp.execution.targets import Compilations, Target
from jaxexp.planning import kinds
from jaxexp.planning import plan as planning
from jaxexp.planning.nodes import forecast
from jaxexp.planning.programs import Plan
from jaxexp.spec.arguments import refuses_unknown_arguments
from jaxexp.spec.names import check_names
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial, with_values
from jaxexp.training import evaluation, flags
from jaxexp.training.data import Data
from jaxexp.training.task import Task, check_weights
from jaxexp.training.tracing import fingerprint, is_plain_value, traced_shapes

if TYPE_CHECKING:
    import pandas as pd

    from jaxexp.cluster.nodes import Cluster

LIBRARIES = ("jaxexp", "jax", "jaxlib", "flax", "optax", "numpy")  # which decide numbers
MOST_TRACED = 32  # trials, each with a size that is new, to tell a task from another


class Problem(NamedTuple):
    """What a sweep is run on: what a sweep file's `problem(inputs)` returns.

    >>> import jaxexp as jx
    >>> def problem(inputs):
    ...     return Problem(jx.MLPClassification(), jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4))
    >>> problem(None).data.counts
    {'train': 6, 'validation': 2}
    """

    task: Task
    data: Data


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """Sweeps, the task and the data that they are run on, and how: `print` it to see.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
    >>> planned = plan(jx.Sweep(jx.MLPTrial(batch_size=2), {"seed": range(3)}), data=data)
    >>> print(str(planned).partition(" on ")[0])
    3 trials in 1 program
    """

    sweeps: tuple[Sweep, ...]
    task: Task
    data: Data
    plan: Plan
    devices: tuple[jax.Device, ...]
    target: Target | None = None  # hardware that is not here
    cluster: "Cluster | None" = None  # whose nodes train, in place of devices of this machine
    prefixes: bool = True  # whether trials may be trained as the first epochs of longer ones

    def compiled(self) -> Compilations:
        """Compile every program for the target, and return what its compiler says: `print` it.

        Compiling takes seconds for each program. Nothing runs.

        Raises UserError for a plan for the devices of this machine.

        >>> import jaxexp as jx
        >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
        >>> try:
        ...     plan(jx.Sweep(jx.MLPTrial(batch_size=2)), data=data).compiled()
        ... except jx.UserError as error:
        ...     print(error)
        this plan has no target: expected one of jaxexp.plan(…, target="tpu-v5e-4")
        """
        if self.target is None:
            raise UserError(
                'this plan has no target: expected one of jaxexp.plan(…, target="tpu-v5e-4")'
            )
        if not self.devices:
            raise UserError(f"a plan for nodes of {self.target.name} is not compiled: plan without")
        arrays = evaluation.with_evaluation(self.data)
        return targets.compile_plan(self.plan, self.task, arrays, self.target)

    def tradeoff(self) -> "pd.DataFrame":
        """What more or fewer programs would cost, estimated: padding against compilation.

        Starting from one program per size, programs are merged pair by pair until no two can be
        merged; each row is a grouping along the way, with its number of `programs`.
        `train_seconds` (including padding), `compile_seconds` and their sum `seconds` are for one
        device. `padding` is the share of the arithmetic that no trial needs. `chosen` is True for
        the grouping of this plan: for each kind of trials that may share a program, the fewest
        programs that take at most 15 % more than the best. Programs that are cut into parts,
        because of memory or for several nodes, count once. `jaxexp.figures.tradeoff` draws it.

        >>> import jaxexp as jx
        >>> data = jx.arrays([[0.0], [1.0]] * 4, [0, 1] * 4)
        >>> planned = plan(jx.Sweep(jx.MLPTrial(batch_size=2), {"width": [4, 8]}), data=data)
        >>> planned.tradeoff()[["programs", "chosen"]].values.tolist()
        [[2, False], [1, True]]
        """
        import pandas as pd

        trials = [trial for sweep in self.sweeps for trial in sweep.trials()]
        groupings, chosen = planning.tradeoff(
            self.sweeps,
            Inspector(self.task, self.data, trials).workload(trials, prefixes=self.prefixes),
            mode=self.plan.mode,
            backend=self.plan.backend,
        )
        made = pd.DataFrame([vars(grouping) for grouping in groupings])
        made.insert(3, "seconds", made["train_seconds"] + made["compile_seconds"])
        made["chosen"] = [i == chosen for i in range(len(made))]
        return made

    def __str__(self) -> str:
        """Programs, padding, devices, memory and time, as estimated; of nodes, a forecast."""
        if self.plan.nodes == 1:
            return str(self.plan)
        return f"{self.plan}\n{forecast(self.plan).text(self.plan.nodes)}"

    @property
    def identity(self) -> dict[str, str]:
        """What decides the numbers, in words and digests."""
        named = {f"sweep {sweep.name}": sweep.id for sweep in self.sweeps}
        return {**surroundings(), **named, **self.trained}

    @property
    def trained(self) -> dict[str, str]:
        """What is trained, whatever the trials: digests of the task and of the data."""
        task = task_fingerprint(self.task, self.data, self.sweeps)
        return {"task": task, "data": self.data.fingerprint}


def surroundings() -> dict[str, str]:
    """What decides the numbers beside sweep, task and data: versions, and options of JAX."""
    return {**versions(), **flags.of_numbers()}


def versions() -> dict[str, str]:
    """Of the libraries on which numbers depend."""
    return {name: version(name) for name in LIBRARIES}


def task_fingerprint(task: Task, data: Data, sweeps: Sequence[Sweep]) -> str:
    """Of what the task computes, in any process.

    Traced is a trial of every kind that never shares a program with another, and one of each of
    their sizes, or some of very many; with the first of each kind, the optimizers of all numbers of
    steps that trials of the kind take. What a program would trace is no number of Python here,
    either: 0 times what a task closes over would be 0.
    """

    def steps_of(trial: Trial) -> int:
        return data.steps_of(trial) if task.optimizer_uses_steps(trial) else 1

    distinct = {
        (kinds.static_key(trial), steps_of(trial)): trial
        for sweep in sweeps
        for trial in sweep.trials()
    }
    first, lengths = dict[object, Trial](), dict[object, set[int]]()
    showing, seen = list[Trial](), set[object]()
    for (_, steps), trial in distinct.items():
        kind = (kinds.unpadded(trial), *traced_shapes(trial))
        first.setdefault(kind, trial)
        lengths.setdefault(kind, set()).add(steps)
        new = {(type(trial), *own) for own in kinds.static_values(trial)} - seen
        showing += [trial] if new else []
        seen |= new
    asked = {trial: tuple(sorted(lengths[kind])) for kind, trial in first.items()}
    for trial in showing[:: -(-len(showing) // MOST_TRACED) or 1]:
        asked.setdefault(trial, (steps_of(trial),))
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), data.arrays())
    evaluated = evaluation.evaluated_at_once(task, data)
    predictions = any("predictions" in sweep.record for sweep in sweeps)

    def found(trial: Trial, lengths: tuple[int, ...]) -> str:
        return fingerprint(
            task, lambda leaves: with_values(trial, **leaves), traced_shapes(trial),
            lengths, arrays,
            sizes=(trial.batch_size, evaluated), predictions=predictions, processes=True,
        )  # fmt: skip

    every = itertools.starmap(found, list(asked.items())[: 1 if is_plain_value(task) else None])
    return digest(json.dumps([type(task).__name__, task.evaluation_batch_size, *every]))


@refuses_unknown_arguments
def plan(
    sweep: Sweep | Sequence[Sweep],
    task: Task | None = None,
    data: Data | None = None,
    *,
    devices: int | Sequence[jax.Device] | None = None,
    programs: str = "auto",
    memory: float | None = None,
    target: str | None = None,
    cluster: str | None = None,
    nodes: int | None = None,
    stopping: Stopping = None,
) -> PlannedRun:
    """How one or several sweeps would run: which trials share a program, where, at what cost.

    Args:
        sweep: a sweep, or several that run as one plan; a trial of more than one trains once.
        task: what is trained; by default, `MLPClassification()` for sweeps of `MLPTrial`.
        data: what it is trained on, made by `jaxexp.arrays` or by hand.
        devices: how many to use, or which; by default all.
        programs: "auto" pads trials of different sizes into one program if that costs less than
            compiling another, "exact" pads nothing, "one" forces one program.
        memory: how many bytes the run may use on the host; by default what is free now.
        target: hardware to plan for, which need not be present (such as `tpu-v5e-4`): see
            `PlannedRun.compiled`.
        cluster: a Ray cluster whose nodes train: "auto" for the one that this machine belongs to,
            HOST:PORT, or ray://HOST:PORT. `devices` is then a number per node.
        nodes: how many machines with these devices to plan for; by default those of the cluster.
            With a `target`, `devices` is then the number of chips of each, and nothing can be
            compiled.
        stopping: what `jaxexp.run` will be given. A rule of your own, or one that compares trials,
            such as `jaxexp.search.Halving`, is asked about every trial, so no trial is then trained
            as the beginning of a longer one.

    Raises:
        UnavailableError: the compiler for the target, or Ray, is not installed.
        UserError: trials that cannot be trained on the data, a hyperparameter that varies but that
            the task never reads, or too little memory.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1], validation=None)
    >>> planned = jx.plan(jx.Sweep(jx.MLPTrial(epochs=2, batch_size=4)), data=data)
    >>> planned.plan.trials
    1
    """
    check_compiles()
    flags.check()
    sweeps = tuple(sweep) if isinstance(sweep, list | tuple) else (sweep,)
    for each in sweeps:
        if not isinstance(each, Sweep):
            hint = ", as jaxexp.Sweep(trial) is for one trial" if isinstance(each, Trial) else ""
            raise UserError(f"sweep={each!r}: expected a jaxexp.Sweep{hint}")
    if not sweeps:
        raise UserError("expected at least one sweep")
    if not isinstance(data, Data):
        raise UserError(
            f"data={short(data)}: expected jaxexp.Data; jaxexp.arrays(X, y) makes them of arrays"
        )
    if memory is not None and not (is_number(memory) and memory >= 0):
        raise UserError(f"memory={memory!r}: expected a number of bytes")
    trials = [trial for each in sweeps for trial in each.trials()]
    all_devices()  # sets JAX up, before anything that is traced asks it for its backend
    task = checked_task(task, trials)
    check_task(task)
    check_names(sweeps, task.metrics, (*task.prediction_dims, *data.coords), data.counts)
    if programs != "exact":
        check_pads(task, trials)
    bound = task.bind(data)
    if not isinstance(bound, Task):
        what = f"{type(task).__name__}.bind returned {type_of(bound)}"
        raise UserError(f"{what}, expected a task: itself, or one for these data")
    check_task(bound)
    check_saved(bound)
    check_weights(bound, data)
    driver.check(trials, bound, data)
    inspector = Inspector(bound, data, trials)
    for each in sweeps:
        check_read(each, inspector)
        check_records(each, bound, inspector)
    check_filling(inspector, trials, programs)
    if programs == "one":
        check_updates(inspector, [t for each in sweeps if not each.timed for t in each.trials()])
    mixing = list(map(inspector.mixes, trials))
    if any(own.evaluated for own in mixing):
        at_once = bound.evaluation_batch_size
        if not any(own.evaluated_sized for own in mixing):  # noise may be drawn by their number
            at_once = min(at_once, max(evaluation.evaluated_counts(data).values()))
        data = data.apart(at_once)
    hardware = _hardware(devices, target, cluster, nodes)
    prefixes = not Control(stopping).of_every_trial
    made = planning.plan(
        sweeps,
        hardware.devices,
        inspector.workload(trials, prefixes=prefixes),
        mode=programs,
        backend=hardware.backend,
        host_memory=host_memory() if memory is None else memory,
        device_memory=hardware.limits,
        nodes=hardware.nodes,
    )
    used, absent, joined = hardware.used, hardware.target, hardware.cluster
    return PlannedRun(sweeps, bound, data, made, used, absent, joined, prefixes)


class _Hardware(NamedTuple):
    """What a plan is made for."""

    backend: str
    devices: int  # of a node
    limits: tuple[float, ...]  # bytes that may be used on each of them; () if they share the host's
    nodes: int = 1
    used: tuple[jax.Device, ...] = ()
    target: Target | None = None
    cluster: "Cluster | None" = None


def _hardware(
    devices: int | Sequence[jax.Device] | None, target: str | None, cluster: str | None,
    nodes: int | None,
) -> _Hardware:  # fmt: skip
    if nodes is not None:
        checked_int("nodes", nodes, least=1)
    if cluster is not None:
        if target is not None:
            raise UserError(f"target={target!r}: expected only one of target and cluster")
        from jaxexp.cluster import nodes as cluster_nodes

        own = cluster_nodes.joined(cluster)
        limits = own.memory_of(devices)
        return _Hardware(own.platform, len(limits), limits, int(nodes or own.size), cluster=own)
    if target is None:
        used = chosen(devices)
        return _Hardware(used[0].platform, len(used), device_memory(used), int(nodes or 1), used)
    absent = targets.find(target)
    memory = targets.MAY_BE_USED * absent.memory
    if nodes is not None:  # nothing is compiled
        each = absent.chips if devices is None else devices
        checked_int("devices", each, least=1)
        number = int(cast(int, each))
        return _Hardware(absent.backend, number, (memory,) * number, int(nodes), target=absent)
    if devices is not None:
        raise UserError(
            f"devices={devices!r}: expected none beside target={target!r}, which has its own, "
            "unless nodes are given, too"
        )
    used = targets.devices(absent)
    return _Hardware(absent.backend, len(used), (memory,) * len(used), 1, used, absent)
