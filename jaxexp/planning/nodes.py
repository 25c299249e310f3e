"""What a plan for several nodes is expected to take: the order of its programs, played through."""

import heapq
from dataclasses import dataclass

from jaxexp.base.words import duration
from jaxexp.planning.programs import Plan, Program

SNAPSHOT_SECONDS = 30.0  # between two of them
NOTICE_SECONDS = 15.0  # until a node that has died is known to have


@dataclass(frozen=True)
class Forecast:
    """Estimates, in seconds, of a plan on its nodes."""

    makespan: float  # until the last program has ended
    lower_bound: float  # no order of these programs could be faster
    compile_seconds: float  # of all nodes, in this
    death_seconds: float  # of one node, that its death costs: work lost, notice, compiling again

    @property
    def excess(self) -> float:
        """The share by which the makespan is above its lower bound."""
        return self.makespan / self.lower_bound - 1 if self.lower_bound else 0.0

    def text(self, nodes: int) -> str:
        """In words, on two lines."""
        share = self.lost(1.0, nodes)
        return (
            f"{duration(self.makespan)} until the last program has ended, {self.excess:.1%} above "
            f"what no order of them could beat; {duration(self.compile_seconds / nodes)} of "
            f"compiling on each node\n"
            f"if a node died every hour: {share:.1%} of the run lost, {self.death_seconds:.0f} s "
            f"each time (half of the {SNAPSHOT_SECONDS:.0f} s between snapshots, "
            f"{NOTICE_SECONDS:.0f} s to notice, compiling again); all of this is estimated"
        )

    def lost(self, deaths_per_hour: float, nodes: int) -> float:
        """The share of the run that deaths of nodes cost, with a node that replaces each."""
        deaths = deaths_per_hour * self.makespan / 3600
        return deaths * self.death_seconds / (self.makespan * nodes) if self.makespan else 0.0


def forecast(plan: Plan) -> Forecast:
    """Play a plan through as the driver does: whichever devices are free take the longest program.

    Every node compiles the programs that it trains, those that share their functions once.
    """
    order = sorted(plan.programs, key=_seconds)
    queues: dict[int, list[Program]] = {}  # by the devices that they need, the longest at the end
    for program in order:
        needed = plan.devices if program.alone else len(program.devices)
        queues.setdefault(needed, []).append(program)
    compiled = [set[object]() for _ in range(plan.nodes)]
    free = [plan.devices] * plan.nodes
    ends: list[tuple[float, int, int]] = []  # when, on which node, how many devices are free again
    idle = [*range(plan.nodes)]
    now = compiling = 0.0
    while True:
        for node in idle:
            while (fits := _longest(queues, free[node])) is not None:
                program = queues[fits].pop()
                free[node] -= fits
                seconds = _seconds(program)
                if (key := _functions(program)) not in compiled[node]:
                    compiled[node].add(key)
                    compiling += program.estimate.compile_seconds
                    seconds += program.estimate.compile_seconds
                heapq.heappush(ends, (now + seconds, node, fits))
        if not ends:
            break
        now, node, needed = heapq.heappop(ends)
        free[node] += needed
        idle = [node]
    work = sum(_seconds(p) * len(p.devices) for p in order)
    # Each kind of program is compiled once at least.
    kinds = {_functions(p): p.estimate.compile_seconds for p in order}
    every = plan.nodes * plan.devices
    longest = max((_seconds(p) + p.estimate.compile_seconds for p in order), default=0.0)
    bound = max(longest, work / every + sum(kinds.values()) / plan.nodes)
    compile_most = max(kinds.values(), default=0.0)
    death = SNAPSHOT_SECONDS / 2 + NOTICE_SECONDS + compile_most
    return Forecast(now, bound, compiling, death)


def _longest(queues: dict[int, list[Program]], free: int) -> int | None:
    """Of what fits on so many devices, which queue has the longest program next."""
    fits = [needed for needed, queue in queues.items() if queue and needed <= free]
    return max(fits, key=lambda needed: _seconds(queues[needed][-1]), default=None)


def _seconds(program: Program) -> float:
    return program.estimate.seconds / max(1, len(program.devices))


def _functions(program: Program) -> object:
    """Equal for programs that share what is compiled."""
    return program.spec, program.record, program.filled(), len(program.devices)
