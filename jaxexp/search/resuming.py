"""What a search over a study keeps in its folder, and what a dead process has left running."""

import contextlib
import json
import os
import pickle
import platform
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock, Timeout

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest, matches, read_sealed, write_whole

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from jaxexp.search.suggestions import Suggest

FILE, SAMPLER, LOCK = "search.json", "sampler.pickle", "lock"
OWNER = "jaxexp:search"  # system attribute of a trial: the search that trains it, see `under_way`
TAKER = "jaxexp:taker"  # of an enqueued trial: who is about to take it, and may die before it is
_under_way: set[str] = set()  # searches of this process


@dataclass
class Folder:
    """The batches of a search in the order in which they were asked, and its sampler's state.

    Attributes:
        path: the folder.
        identity: what must be the same when the search is resumed.
        batches: the numbers of the trials of each batch.
        failed: those of the batches, from 0, whose training has raised an error.
        pruned: the numbers of the trials that were pruned as they were asked.
        suggested: the number of the last trial that the sampler that is kept has suggested for.
        attrs: the study's system attributes by then, where some samplers keep their place.
    """

    path: Path
    identity: Mapping[str, object]
    batches: list[list[int]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    suggested: int = -1
    attrs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def held(cls, path: Path, identity: Mapping[str, object]) -> "Iterator[Folder]":
        """The folder, new or with what a search has left there; one process at a time.

        Raises UserError if it cannot be written, is held by another search, or is another's.
        """
        with contextlib.ExitStack() as stack:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(FileLock(path / LOCK, timeout=0))
                except Timeout:  # an OSError
                    raise UserError(f"{path}: another search is using this folder") from None
                own = cls(path, identity)._read()
            yield own

    def _read(self) -> "Folder":
        file = self.path / FILE
        if not file.exists():
            begun = {LOCK, f"{FILE}.partial"}  # by a process that was killed
            if any(entry.name not in begun for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: expected an empty folder, or one of this search")
            self._write()
            return self
        try:
            content = json.loads(file.read_text())
            before, self.batches = content["identity"], content["batches"]
            self.failed = content["failed"]
            self.pruned = content.get("pruned", [])  # of an earlier jaxexp, none
            if not (isinstance(before, dict) and self._is_whole()):
                raise ValueError("it is not as it was written")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = error if isinstance(error, ValueError) else "it is not as it was written"
            raise UserError(f"{file}: cannot be read ({why})") from error
        differs = [
            f"{name} was {before.get(name)!r}, is {now!r}"
            for name, now in self.identity.items()
            if before.get(name) != now
        ]
        if differs:
            raise UserError(f"{self.path}: checkpoints of another search: {'; '.join(differs)}")
        return self

    def _is_whole(self) -> bool:
        """Whether each trial is in one batch, and what is said of batches is of these."""
        if not all(matches(own, list[int]) for own in (self.failed, self.pruned)):
            return False
        if not matches(self.batches, list[list[int]]):
            return False
        numbers = [number for batch in self.batches for number in batch]
        return (
            all(self.batches)
            and min(numbers, default=0) >= 0
            and len(set(numbers)) == len(numbers)
            and set(self.pruned) <= set(numbers)
            and set(self.failed) <= set(range(len(self.batches)))
        )

    @property
    def failed_trials(self) -> list[int]:
        """The numbers of the trials of the batches that have failed."""
        return [number for batch in sorted(self.failed) for number in self.batches[batch]]

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
        with writing(self.path):
            write_whole(self.path / FILE, json.dumps(content).encode())

    def keep_sampler(self, study: "optuna.Study", number: int) -> None:
        """As it is now, after the trial of this number: with a seed, what it suggests is decided.

        Raises UserError for one that cannot be pickled.
        """
        if number > self.suggested:  # else it was suggested before, and others may have been since
            self.suggested, self.attrs = number, _attrs(study)
        try:
            content = pickle.dumps((self.suggested, study.sampler, self.attrs))
        except Exception as error:  # whatever a sampler of one's own raises
            raise UserError(
                f"study: its sampler {type(study.sampler).__name__} cannot be pickled ({error}), "
                "which checkpoint_dir needs"
            ) from error
        with writing(self.path):
            write_whole(self.path / SAMPLER, content, seal=True)

    def restore_sampler(self, study: "optuna.Study") -> None:
        """As it was when it was kept; of a new search, it is kept as it is.

        Raises UserError where it is damaged, or missing though trials were asked.
        """
        from optuna.samplers import BaseSampler

        file = self.path / SAMPLER
        if not self.batches and not file.exists():
            self.attrs = _attrs(study)
            return self.keep_sampler(study, self.suggested)
        try:
            self.suggested, sampler, self.attrs = pickle.loads(read_sealed(file))
            if not (
                matches(self.suggested, int)
                and isinstance(sampler, BaseSampler)
                and isinstance(self.attrs, dict)
            ):
                raise TypeError("it is not as it was written")
            study.sampler = sampler
        except Exception as error:  # whatever unpickling raises
            why = "it is missing" if isinstance(error, FileNotFoundError) else error
            raise UserError(
                f"{file}: the state of the search's sampler cannot be read ({why}); without it, "
                "the search cannot go on"
            ) from error

    def advance_sampler(
        self, study: "optuna.Study", trial: "FrozenTrial", suggest: "Suggest"
    ) -> None:
        """Draw again what a dead process has drawn for a trial since it last kept the sampler.

        It draws in a copy of the study as it was then. What the storage has of the trial stays, and
        what it lacks is written.
        """
        import optuna
        from optuna.storages import InMemoryStorage
        from optuna.trial import TrialState, create_trial

        storage, there, id_ = InMemoryStorage(), study._storage, study._study_id
        fixed = {k: v for k, v in trial.system_attrs.items() if k == "fixed_params"}  # if enqueued
        attrs = _attrs(study)
        suggested = trial.system_attrs.keys() - {"fixed_params", OWNER, TAKER}
        begun = trial.params or suggested or attrs != self.attrs
        if trial.number <= self.suggested or not begun:
            return
        storage._max_study_id = id_ - 1  # samplers refuse a study of another number
        storage.create_new_study(study.directions, study.study_name)
        for key, value in self.attrs.items():
            storage.set_study_system_attr(id_, key, value)
        for key, value in study.user_attrs.items():  # which the function that suggests may read
            storage.set_study_user_attr(id_, key, value)
        then = optuna.Study(study.study_name, storage, study.sampler, study.pruner)
        own = create_trial(
            state=TrialState.RUNNING, system_attrs=fixed, user_attrs=trial.user_attrs
        )
        for each in study.get_trials(deepcopy=False)[: trial.number + 1]:
            storage._max_trial_id = each._trial_id - 1  # which the study's attributes may name
            then.add_trial(each if each.number < trial.number else own)
        with contextlib.suppress(Exception):  # which the trial itself will raise
            suggest(again(then, trial._trial_id))
        for key, value in storage.get_study_system_attrs(id_).items():
            if attrs.get(key) == self.attrs.get(key) != value:
                there.set_study_system_attr(id_, key, value)
        drawn = storage.get_trial(trial._trial_id)
        for key in drawn.system_attrs.keys() - trial.system_attrs.keys():
            there.set_trial_system_attr(trial._trial_id, key, drawn.system_attrs[key])
        for name, values in drawn.distributions.items():
            if name not in trial.params:
                value = values.to_internal_repr(drawn.params[name])
                there.set_trial_param(trial._trial_id, name, value, values)

    @staticmethod
    def name(batch: int) -> str:
        """That of the checkpoints of a batch, from 0."""
        return f"batch-{batch:04d}"


def _attrs(study: "optuna.Study") -> dict[str, Any]:
    """The system attributes of a study as they are now."""
    return dict(study._storage.get_study_system_attrs(study._study_id))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def this_process() -> str:
    """Names this process on this machine, and no other that has its number later."""
    return f"{platform.node()} {os.getpid()} {_begun(os.getpid())}"


def _begun(process: int) -> str:
    """When it began: where there is /proc, since the machine did, which no clock that is set moves.

    Raises psutil.Error where there is no such process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}-{boot}"
    except OSError:
        return f"{psutil.Process(process).create_time():.2f}"


def is_dead(process: object) -> bool:
    """Whether a process of this machine is over; of others nothing is known.

    >>> is_dead(this_process()), is_dead(f"{platform.node()} 1 0.00"), is_dead("elsewhere 1 0.0")
    (False, True, False)
    """
    node, _, number = str(process).rpartition(" ")[0].rpartition(" ")
    if node != platform.node() or not number.isdigit():
        return False
    try:
        if psutil.Process(int(number)).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return True
        return _begun(int(number)) != str(process).rpartition(" ")[2]
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # it is another user's
        return False


@contextlib.contextmanager
def under_way(study: "optuna.Study", identity: str) -> Iterator[str]:
    """Name a search of this process, while it is; what it has not told then is abandoned.

    `identity` is a digest that searches share which may go on with the trials of one another.
    """
    name = f"{this_process()}/{uuid.uuid4().hex}/{identity}"
    _under_way.add(name)
    try:
        yield name
    finally:
        try:
            _leave(study, name, f"{this_process()}//{identity}")
        finally:
            _under_way.remove(name)


def _leave(study: "optuna.Study", search: str, over: str) -> None:
    """Tell other processes that it is over, as far as the storage can be reached."""
    with contextlib.suppress(Exception):
        for trial in _running(study):
            if _owner(trial) == search:
                with contextlib.suppress(Exception):
                    _give(study, trial._trial_id, trial.number, over)


def _is_over(search: str) -> bool:
    """Whether a search of this machine is no more under way; of others nothing is known."""
    process, _, own = search.partition("/")
    if process == this_process():
        return search not in _under_way
    return is_dead(process) or (_is_here(search) and own.startswith("/"))  # as `_leave` says


def _is_here(search: str) -> bool:
    return search.startswith(f"{platform.node()} ")


@contextlib.contextmanager
def alone(study: "optuna.Study") -> Iterator[None]:
    """Let no other search of this user on this machine look for trials of the study, or take them.

    Studies share 16 locks, whose files stay.
    """
    names = digest(psutil.Process().username())[:8], digest(study.study_name)[:1]
    with contextlib.ExitStack() as stack:
        with writing(path := Path(tempfile.gettempdir()) / f"jaxexp-{'-'.join(names)}.lock"):
            stack.enter_context(FileLock(path))
        yield


def _running(study: "optuna.Study") -> "list[FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def abandoned(study: "optuna.Study", search: str) -> "list[FrozenTrial]":
    """Trials, as they are now, that one like this has asked and not told, which is over."""
    running = _running(study)
    alike = {own for own in map(_owner, running) if own.split("/")[2:] == search.split("/")[2:]}
    over = {owner for owner in alike if _is_over(owner)}
    return [trial for trial in running if _owner(trial) in over]


def _owner(trial: "FrozenTrial") -> str:
    """The search that has it; one that was about to take it says so before it has parameters.

    Of a trial whose attributes are a copy of another's, as of one that is enqueued again: none.
    """
    taker = "" if trial.params else trial.system_attrs.get(TAKER, "")
    owner, _, number = str(trial.system_attrs.get(OWNER, taker)).rpartition("/")
    return owner if number == str(trial.number) else ""


def _give(study: "optuna.Study", trial_id: int, number: int, search: str, key: str = OWNER) -> None:
    study._storage.set_trial_system_attr(trial_id, key, f"{search}/{number}")


def again(study: "optuna.Study", trial_id: int) -> "optuna.Trial":
    """A trial that there is, to be trained under its own number, with what it was suggested."""
    import optuna

    study._thread_local.cached_all_trials = None  # as Study.ask does
    return optuna.Trial(study, trial_id)


def take(study: "optuna.Study", trial: "FrozenTrial", search: str) -> bool:
    """Make one, as it is now, one of this search; False where it has ended.

    Raises UserError where another one of this machine trains it.
    """
    from optuna.exceptions import UpdateFinishedTrialError

    if trial.state.is_finished():
        return False
    owner = _owner(trial)
    if _is_here(owner) and not _is_over(owner):
        own = owner.startswith(f"{this_process()}/")
        by = "another search of this process" if own else f"the process {owner.split()[1]}"
        raise UserError(
            f"study={study.study_name!r}: its trial {trial.number} is trained by {by} now, which "
            "has taken it up: expected to go on once that has ended"
        )
    try:
        _give(study, trial._trial_id, trial.number, search)
    except UpdateFinishedTrialError:
        return False
    return True


def ask(study: "optuna.Study", search: str) -> "optuna.Trial":
    """The next trial; a new one says whose it is from the start, as this process may be killed."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState, create_trial

    trials, storage = study.get_trials(deepcopy=False), study._storage
    waiting = next((each for each in trials if each.state == TrialState.WAITING), None)
    if waiting:  # enqueued
        with contextlib.suppress(UpdateFinishedTrialError):  # of a process that was faster
            _give(study, waiting._trial_id, waiting.number, search, TAKER)
        own = study.ask()
        _give(study, own._trial_id, own.number, search)
        return own
    attrs = {OWNER: f"{search}/{len(trials)}"}
    mine = create_trial(state=TrialState.RUNNING, system_attrs=attrs)
    made = storage.create_new_trial(study._study_id, mine)
    number = storage.get_trial_number_from_id(made)
    if number != len(trials):  # others have asked meanwhile
        _give(study, made, number, search)
    return again(study, made)
