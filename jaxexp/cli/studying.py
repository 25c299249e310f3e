"""A search of the command line whose trials are suggested by a study, in the run directory."""

import contextlib
from pathlib import Path
from typing import Any

import optuna as op
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from jaxexp.api import PlannedRun
from jaxexp.cli.library import Source
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.searching import BATCH, Search
from jaxexp.results.results import Results
from jaxexp.search.batches import Train, Training
from jaxexp.search.reports import no_experimental_warnings
from jaxexp.search.resuming import Folder, writing
from jaxexp.search.studies import prepared
from jaxexp.training.task import directions


def run(
    search: Search, source: Source, planned: PlannedRun, directory: RunDirectory, train: Train,
    training: Training,
) -> Results:  # fmt: skip
    """Ask, train and tell until all trials are trained, going on where an earlier process ended.

    Raises UserError for a study that is not the one that was begun.
    """
    assert source.space is not None
    assert search.trials is not None
    # The curves are in the results; a journal takes milliseconds for each value.
    longest = max(trial.epochs for trial in source.sweep.trials())
    made = prepared(
        _study(directory.study, search, planned, source.sweep.name), source.space, planned.task,
        planned.data, train, training, batch=search.batch or BATCH, metric=search.metric,
        seeds=search.seeds, report_every=longest,
    )  # fmt: skip
    made.name, made.record, made.retried = source.sweep.name, source.sweep.record, True
    with Folder.held(directory.checkpoints, made.identity) as made.folder:
        return made.run(search.trials)


def _study(file: Path, search: Search, planned: PlannedRun, name: str) -> op.Study:
    """The study in a file, new or as a process has left it that may have been killed."""
    op.logging.set_verbosity(op.logging.WARNING)
    higher = directions(planned.task)[search.metric] == "higher"
    with writing(file):
        _mend(file)
        with no_experimental_warnings():
            return op.create_study(
                study_name=name,
                storage=JournalStorage(_Journal(str(file.absolute()))),
                load_if_exists=True,
                direction="maximize" if higher else "minimize",
                sampler=op.samplers.TPESampler(seed=search.seed, constant_liar=True),
                pruner=op.pruners.NopPruner(),
            )


class _Journal(JournalFileBackend):
    """Which says where it cannot be written, as on a full disk."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises UserError."""
        with writing(Path(self._file_path)):
            super().append_logs(logs)


def _mend(file: Path) -> None:
    """Take away what a killed process leaves: its lock, and half a line. Nobody else writes."""
    with contextlib.suppress(FileNotFoundError):
        file.with_name(f"{file.name}.lock").unlink()
    if file.exists():
        content = file.read_bytes()
        if whole := len(content) - len(content.rpartition(b"\n")[2]) if content else 0:
            with file.open("r+b") as opened:
                opened.truncate(whole)
