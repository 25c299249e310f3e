"""What a search over a study keeps in its folder, and what a dead process has left running."""

import contextlib
import json
import os
import pickle
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from jaxexp.base.errors import UserError
from jaxexp.base.files import write_whole

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

FILE, SAMPLER, LOCK = "search.json", "sampler.pickle", "lock"
PROCESS = "process"  # user attribute of a trial: who trains it


@dataclass
class Folder:
    """The batches of a search in the order in which they were asked, and its sampler's state.

    Attributes:
        path: the folder.
        identity: what must be the same when the search is resumed.
        batches: the numbers of the trials of each batch.
        failed: those of the batches, from 0, whose training has raised an error.
        pruned: the numbers of the trials that were pruned as they were asked.
    """

    path: Path
    identity: Mapping[str, object]
    batches: list[list[int]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def held(cls, path: Path, identity: Mapping[str, object]) -> "Iterator[Folder]":
        """The folder, new or with what a search has left there; one process at a time.

        Raises UserError if it cannot be written, is held by another process, or is another's.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / LOCK, timeout=0)
            with lock:
                yield cls(path, identity)._read()
        except Timeout:
            raise UserError(f"{path}: another process is using it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

    def _read(self) -> "Folder":
        file = self.path / FILE
        if not file.exists():
            if any(entry.name != LOCK for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: expected an empty folder, or one of this search")
            return self
        try:
            content = json.loads(file.read_text())
            before, self.batches = content["identity"], content["batches"]
            self.failed = content["failed"]
            self.pruned = content.get("pruned", [])  # of an earlier jaxexp, none
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
        differs = [
            f"{name} was {before.get(name)!r}, is {now!r}"
            for name, now in self.identity.items()
            if before.get(name) != now
        ]
        if differs:
            raise UserError(f"{self.path}: checkpoints of another search: {'; '.join(differs)}")
        return self

    def add(self, batch: Sequence[int], pruned: Sequence[int]) -> None:
        """Another batch was asked, some of whose trials were pruned as they were."""
        self.batches.append(list(batch))
        self.pruned += pruned
        self._write()

    def fail(self, batch: int) -> None:
        """Its training has raised an error, and would raise it again."""
        self.failed.append(batch)
        self._write()

    def _write(self) -> None:
        content = {
            "identity": self.identity, "batches": self.batches, "failed": self.failed,
            "pruned": self.pruned,
        }  # fmt: skip
        write_whole(self.path / FILE, json.dumps(content).encode())

    def keep_sampler(self, study: "optuna.Study") -> None:
        """As it is now: with a seed, what it suggests next is decided.

        Raises UserError for one that cannot be pickled.
        """
        try:
            content = pickle.dumps(study.sampler)
        except Exception as error:  # whatever a sampler of one's own raises
            raise UserError(
                f"study: its sampler {type(study.sampler).__name__} cannot be pickled ({error}), "
                "which checkpoint_dir needs"
            ) from error
        write_whole(self.path / SAMPLER, content)

    def restore_sampler(self, study: "optuna.Study") -> None:
        """As it was when it was kept."""
        file = self.path / SAMPLER
        if file.exists():
            study.sampler = pickle.loads(file.read_bytes())

    @staticmethod
    def name(batch: int) -> str:
        """That of the checkpoints of a batch, from 0."""
        return f"batch-{batch:04d}"


def this_process() -> str:
    """Names this process on this machine, and no other that has its number later."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_dead(process: object) -> bool:
    """Whether a process of this machine is over; of others nothing is known.

    >>> is_dead(this_process()), is_dead(f"{platform.node()} 1 0.00"), is_dead("elsewhere 1 0.0")
    (False, True, False)
    """
    node, _, rest = str(process).rpartition(" ")[0].rpartition(" ")
    if node != platform.node() or not rest.isdigit():
        return False
    try:
        created = psutil.Process(int(rest)).create_time()
    except psutil.Error:
        return True
    return f"{created:.2f}" != str(process).rpartition(" ")[2]


def abandoned(study: "optuna.Study") -> "list[FrozenTrial]":
    """Trials that a search of a process which is over has asked and not told."""
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if is_dead(trial.user_attrs.get(PROCESS, ""))]


def again(study: "optuna.Study", trial: "FrozenTrial") -> "optuna.Trial":
    """The same trial, to be trained under its own number, with what it was suggested."""
    import optuna

    return optuna.Trial(study, trial._trial_id)
