"""How long a plan for several nodes should take, found by playing through its programs."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from jaxexp.base.words import duration
from jaxexp.planning.programs import Plan, Program

SNAPSHOT_SECONDS = 30.0  # between two snapshots
NOTICE_SECONDS = 15.0  # until the death of a node is noticed


@dataclass(frozen=True)
class Forecast:
    """Estimates, in seconds, for a plan on its nodes."""

    makespan: float  # until the last program has ended
    lower_bound: float  # no order of these programs could be faster
    compile_seconds: float  # of all nodes, included in the makespan
    death_seconds: float  # of one node, lost if it dies: work, time to notice, compiling again

    @property
    def excess(self) -> float:
        """How far the makespan is above its lower bound, as a share of it."""
        return max(0.0, self.makespan / self.lower_bound - 1) if self.lower_bound else 0.0

    def text(self, nodes: int) -> str:
        """The forecast in words, on two lines."""
        share = self.lost(1.0, nodes)
        return (
            f"{duration(self.makespan)} until the last program has ended, {self.excess:.1%} above "
            f"what no order of them could beat; {duration(self.compile_seconds)} of compiling, on "
            f"all nodes together\n"
            f"if a node died every hour: {share:.1%} of the run lost, {self.death_seconds:.0f} s "
            f"each time (half of the {SNAPSHOT_SECONDS:.0f} s between snapshots, "
            f"{NOTICE_SECONDS:.0f} s to notice, compiling again); all of this is estimated"
        )

    def lost(self, deaths_per_hour: float, nodes: int) -> float:
        """The share of the run that deaths of nodes cost, if each dead node is replaced."""
        deaths = deaths_per_hour * self.makespan / 3600
        return deaths * self.death_seconds / (self.makespan * nodes) if self.makespan else 0.0


class Queue:
    """Programs that wait for a node; it decides which of them a node with free devices takes.

    A node goes on with the kinds of programs that it has compiled, the longest programs first. When
    none of these are left, it turns to the kind that will keep its nodes busy for the longest time,
    unless they would finish sooner without it, since it has to compile first.
    """

    def __init__(self, programs: Iterable[Program] = ()) -> None:
        """The programs may be given in any order."""
        self._waiting: dict[object, list[Program]] = {}  # by what is compiled, longest last
        self._left: dict[object, float] = {}  # seconds of those, by kind
        self._running: dict[object, float] = {}  # seconds of those that nodes have taken
        self._nodes: dict[object, set[object]] = {}  # those that have compiled the kind
        for program in sorted(programs, key=seconds_of):
            self.put(program)

    def __len__(self) -> int:
        """The number of programs that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def devices(self) -> int:
        """The most devices that any waiting program is trained on; 0 if none waits."""
        return max((len(own[-1].devices) for own in self._waiting.values()), default=0)

    def put(self, program: Program) -> None:
        """Add a program, as the next one of its kind."""
        kind = functions_of(program)
        self._waiting.setdefault(kind, []).append(program)
        self._left[kind] = self._left.get(kind, 0.0) + seconds_of(program)

    def take(self, node: object, free: int, devices: int) -> Program | None:
        """The program that a node starts on `free` of its `devices`, if any is worth it."""
        fits = [k for k, own in self._waiting.items() if needed(own[-1], devices) <= free]
        compiled = [kind for kind in fits if node in self._nodes.get(kind, ())]
        kind = max(compiled or fits, key=self._busy, default=None)
        if kind is None or not (compiled or self._gains(kind)):
            return None
        program = self._waiting[kind].pop()
        if not self._waiting[kind]:
            del self._waiting[kind]
        self._left[kind] -= seconds_of(program)
        self._running[kind] = self._running.get(kind, 0.0) + _whole(program)
        self._nodes.setdefault(kind, set()).add(node)
        return program

    def end(self, program: Program) -> None:
        """Note that a program that was taken has ended, or is about to be put back."""
        self._running[functions_of(program)] -= _whole(program)

    def lose(self, node: object) -> None:
        """Forget what a node had compiled."""
        for nodes in self._nodes.values():
            nodes.discard(node)

    def _busy(self, kind: object) -> float:
        """How many seconds a kind keeps its nodes busy if one more node joins them."""
        return self._left[kind] / (len(self._nodes.get(kind, ())) + 1)

    def _gains(self, kind: object) -> bool:
        """Whether one more node finishes a kind sooner."""
        nodes = len(self._nodes.get(kind, ()))
        without = self._left[kind] + self._running.get(kind, 0.0)
        return not nodes or _whole(self._waiting[kind][-1]) < without / nodes


def forecast(plan: Plan) -> Forecast:
    """Play a plan through as a cluster does: nodes with free devices take from one queue.

    The lower bound is the work spread over all devices plus the least that each node has to
    compile, or the longest program if that takes longer.
    """
    queue = Queue(plan.programs)
    compiled = [set[object]() for _ in range(plan.nodes)]
    free = [plan.devices] * plan.nodes
    ends: list[tuple[float, int, int, Program]] = []  # end time, serial number, node, program
    idle = [*range(plan.nodes)]
    now, compiling, begun = 0.0, 0.0, 0
    while idle:
        for node in idle:
            while (program := queue.take(node, free[node], plan.devices)) is not None:
                free[node] -= needed(program, plan.devices)
                seconds = seconds_of(program)
                if (kind := functions_of(program)) not in compiled[node]:
                    compiled[node].add(kind)
                    compiling += program.estimate.compile_seconds
                    seconds += program.estimate.compile_seconds
                begun += 1
                heapq.heappush(ends, (now + seconds, begun, node, program))
        idle = []
        if ends:
            now, _, node, program = heapq.heappop(ends)
            queue.end(program)
            free[node] += needed(program, plan.devices)
            idle = [n for n in range(plan.nodes) if free[n]] if len(queue) else [node]
    kinds = {functions_of(p): p.estimate.compile_seconds for p in plan.programs}
    longest = max((seconds_of(p) + p.estimate.compile_seconds for p in plan.programs), default=0.0)
    work = sum(seconds_of(p) * needed(p, plan.devices) for p in plan.programs)
    least = max(min(kinds.values(), default=0.0), sum(kinds.values()) / plan.nodes)
    return Forecast(
        makespan=now,
        lower_bound=max(longest, work / plan.nodes / plan.devices + least),
        compile_seconds=compiling,
        death_seconds=SNAPSHOT_SECONDS / 2 + NOTICE_SECONDS + max(kinds.values(), default=0.0),
    )


def needed(program: Program, devices: int) -> int:
    """How many of the `devices` of a node a program takes: all of them if it runs alone."""
    return max(devices if program.alone else 0, len(program.devices))


def seconds_of(program: Program) -> float:
    """Estimated seconds of training on the program's own devices."""
    return program.estimate.seconds / max(1, len(program.devices))


def _whole(program: Program) -> float:
    """Seconds on a node that has to compile the program first."""
    return program.estimate.compile_seconds + seconds_of(program)


def functions_of(program: Program) -> object:
    """A key that is equal for programs that share compiled functions."""
    return (
        program.spec, program.record, program.microbatch, program.one_by_one, program.filled(),
        len(program.devices),
    )  # fmt: skip
