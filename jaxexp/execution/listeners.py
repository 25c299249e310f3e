"""What a program in training tells, keeps and shares: the interfaces of those around it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from jaxexp.execution.records import Snapshot
from jaxexp.planning.programs import Program
from jaxexp.training.task import Arrays, Task
from jaxexp.training.trees import PyTree


class Progress(Protocol):
    """Shows how a run proceeds; called from several threads."""

    def compiling(self, program: Program) -> None:
        """A program is being compiled."""

    def moved(self, program: Program, epochs: float) -> None:
        """A program has trained so many epochs, from 0, the last perhaps in part."""

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """A program has finished this epoch, from 1.

        `value(metric, split)` computes what was measured of its trials then, (T,). Objects without
        this method will do.
        """

    def changed(self, program: Program, values: Mapping[str, np.ndarray]) -> None:
        """Which hyperparameters, (T,) each, trials that copied others have had until now.

        Told before what was measured with them. Objects without this method will do.
        """

    def stopped(self, program: Program, epoch: int, places: np.ndarray) -> None:
        """The trials of a program at these places end after this epoch, before their last one.

        Objects without this method will do, too.
        """

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """No progress shown."""

    def compiling(self, program: Program) -> None:
        """Say nothing."""

    def moved(self, program: Program, epochs: float) -> None:
        """Say nothing."""

    def measured(
        self, program: Program, epoch: int, value: Callable[[str, str], np.ndarray]
    ) -> None:
        """Say nothing."""

    def changed(self, program: Program, values: Mapping[str, np.ndarray]) -> None:
        """Say nothing."""

    def stopped(self, program: Program, epoch: int, places: np.ndarray) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class Checkpointer(Protocol):
    """Keeps snapshots, so that an interrupted run can resume; called from several threads."""

    def due(self, program: Program) -> bool:
        """Whether it is time for a snapshot of this program."""
        ...

    def save(self, program: Program, snapshot: Snapshot, taken: float = 0.0) -> None:
        """Keep a snapshot, which took so many seconds to make; it raises nothing."""
        ...

    def load(
        self, program: Program, like: Callable[[], tuple[PyTree, PyTree, PyTree]]
    ) -> Snapshot | None:
        """The newest intact snapshot of this program, if there is one.

        `like` makes, if needed, state, record and predictions, as `state_like` does.
        """
        ...


class Shared(Protocol):
    """What the programs of a run share."""

    task: Task
    splits: tuple[str, ...]

    @property
    def arrays(self) -> Arrays:
        """The data on the host."""
        ...

    def mesh(self, program: Program) -> Mesh:
        """The devices of a program."""
        ...

    def on(self, mesh: Mesh) -> Arrays:
        """The data, on each device of a mesh."""
        ...

    def compiling(self) -> AbstractContextManager[None]:
        """While this thread compiles."""
        ...
