"""Beginning a run in its directory, going on with it, and what is said when it ends."""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import typer

from jaxexp.base.errors import InterruptedRunError, UnavailableError, UserError
from jaxexp.base.words import count
from jaxexp.cli.command import Command
from jaxexp.cli.exits import console, say_error
from jaxexp.cli.rundir import RunDirectory
from jaxexp.cli.session import Session
from jaxexp.cli.signals import Signals


def parse_settings(
    settings: Sequence[str], seed: int | None = None, seeds: int | None = None
) -> dict[str, list[str]]:
    """`["epochs=5", "learning_rate=0.1,0.01"]` as `{"epochs": ["5"], ...}`.

    Raises UserError where `--seed` or `--seeds` is given beside a setting of the seed.
    """
    made = {
        name: [value.strip() for value in values.split(",")]
        for name, values in pairs_of(settings).items()
    }
    for option, given in (("--seed", seed), ("--seeds", seeds)):
        if given is not None and "seed" in made:
            raise UserError(f"{option} {given}: expected without --set seed, which decides it")
    return made


def pairs_of(settings: Sequence[str]) -> dict[str, str]:
    """`["epochs=5", "learning_rate=0.1,0.01"]` as `{"epochs": "5", ...}`."""
    pairs: dict[str, str] = {}
    for setting in settings:
        name, equals, values = (part.strip() for part in setting.partition("="))
        if not name or not equals or not all(v.strip() for v in values.split(",")):
            raise UserError(f"--set {setting!r}: expected KEY=VALUE or KEY=VALUE,VALUE...")
        if name in pairs:
            raise UserError(f"--set {name} is given twice, expected once: {name}=VALUE,VALUE...")
        pairs[name] = values
    return pairs


def location(written: str | None) -> str | None:
    """A path as it is in any directory; a URL as it is."""
    return written if written is None or "://" in written else str(Path(written).resolve())


def start(
    command: Command, name: str, out: Path | None, *, force: bool, budget: float | None
) -> None:
    """Begin a run in a directory of its own."""
    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    command.check()
    command = command.with_nodes()
    # As a resumed run will have it.
    command = Command.from_json(json.loads(json.dumps(command.as_json())), path)
    held = RunDirectory.create(path, command.as_json(), force=force)
    run_in(command, path, held, replace=force, budget=budget)


def run_in(
    command: Command, path: Path, held: AbstractContextManager[RunDirectory],
    *, begun: bool = False, force: bool = False, replace: bool = False, budget: float | None = None,
) -> None:  # fmt: skip
    """Run a command in its directory, begun before or not, or to `replace` another run's.

    A signal, or the end of a budget in seconds, leaves a run to resume.
    """
    started = time.perf_counter()

    def say() -> None:
        _say_interrupted(path, len(command.sweeps), begun, over=signals.over)

    # What others print meanwhile, as Ray of a dead node, is not the page's path.
    with Signals(say, budget) as signals, contextlib.redirect_stdout(sys.stderr):
        try:
            session = Session(command, console, signals)
            if not begun:
                session.check_begins(RunDirectory(path), replace=replace)
            with (
                held as directory,
                session.held(directory, begun=begun, force=force),
                _resumable(path),
            ):
                begun = True
                page = session.run(directory, force=force)
        except InterruptedRunError:
            signals.leave()
    _show_best(session)
    _say_logs(session, path)
    console.print(f"done in {time.perf_counter() - started:.0f} s")
    finish(page, session.errors)
    if session.missing:
        raise typer.Exit(3)


@contextlib.contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """Say how to go on where files cannot be written or read, as on a full disk."""
    try:
        yield
    except UserError as error:
        if isinstance(error, UnavailableError) or not isinstance(error.__cause__, OSError):
            raise
        if not RunDirectory(path).exists():
            raise UserError(
                f"{path}: deleted or moved while the run was under way: its run.json is gone; if "
                "it was moved, `jaxexp resume` goes on in its new place, from its last checkpoints"
            ) from error
        raise UserError(
            f"{error}; what its checkpoints hold is kept, and once there is a remedy, `jaxexp "
            f"resume {shlex.quote(str(path))}` goes on"
        ) from error


def _show_best(session: Session) -> None:
    """The table of the best trials."""
    from jaxexp.cli import tables

    if table := tables.summary(session.results):
        tables.show(table, file=sys.stderr)


def _say_logs(session: Session, path: Path) -> None:
    """How to open what was written for other programs."""
    if session.command.log:
        from jaxexp.results import logs

        for kind in session.command.log:
            opened = logs.how_to_open(kind, RunDirectory(path).logs / kind)
            console.print(f"{kind}: {opened}", soft_wrap=True)


def finish(page: Path, errors: Sequence[str]) -> None:
    """Say where the page is, and what on it could not be drawn or answered."""
    print(page)
    for error in errors:
        say_error(error)
    if errors:
        raise typer.Exit(4)


def _say_interrupted(path: Path, sweeps: int, begun: bool, *, over: bool = False) -> None:
    """`over`: by the end of a budget."""
    what = "the budget is over" if over else "interrupted"
    if not begun:
        console.print(f"{what} before anything was trained")
        return
    complete = len(list((path / "results").glob("*.nc")))
    name = shlex.quote(str(path))
    page = f"; to see them: jaxexp report {name}" if complete else ""
    console.print(
        f"{what}; resume with: jaxexp resume {name}\n"
        f"{complete} of {count(sweeps, 'sweep')} complete and saved{page}",
        soft_wrap=True,
    )
