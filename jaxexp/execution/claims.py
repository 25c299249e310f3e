"""Whose the checkpoints at a place are: those of one run, of which one process is under way.

What decides the numbers of the run is written there, with a name for the process that began last.
"""

import contextlib
import json
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from jaxexp.base.errors import UserError

if TYPE_CHECKING:
    from jaxexp.execution.stores import Store

FILE, PROCESS = "identity.json", "process"


@contextlib.contextmanager
def held(store: "Store", identity: Mapping[str, str], free: Collection[str] = ()) -> Iterator[None]:
    """Hold a place where nothing is, or checkpoints of this run.

    Raises UserError for those of a run whose identity differs, but for what is `free` to, and for a
    place that another process holds or that cannot be written.
    """
    check(store, identity, free)  # first: nothing is written where something else lies
    with contextlib.ExitStack() as stack:
        with _keeping(store):
            stack.enter_context(store.held())
        check(store, identity, free)
        yield


def check(store: "Store", identity: Mapping[str, str], free: Collection[str] = ()) -> None:
    """Raise what `held` raises of what lies there, and write nothing."""
    before = {name: own for name, own in _written(store).items() if name != PROCESS}
    if not before:
        with _keeping(store):
            if not store.is_empty():
                raise UserError(
                    f"{store.location}: expected an empty folder, or one of checkpoints"
                )
        return
    fixed = {name: own for name, own in identity.items() if name not in free}
    if differs := differences({n: own for n, own in before.items() if n not in free}, fixed):
        raise UserError(
            f"{store.location}: checkpoints of another run: {'; '.join(differs)}; keep those of "
            "this one elsewhere, or delete them"
        )


def claim(store: "Store", identity: Mapping[str, str]) -> str:
    """Write down whose the checkpoints of a held place are; returns a name for this process."""
    process = uuid.uuid4().hex
    with _keeping(store):
        store.put(FILE, json.dumps({**identity, PROCESS: process}, indent=1).encode())
    return process


def remove(store: "Store", process: str) -> None:
    """Delete what the run has kept, unless another process has claimed it since: objects have no locks."""
    if _written(store).get(PROCESS) == process:
        store.remove(FILE)


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """In words, what is not as it was."""
    return [
        f"{name} was {before.get(name, 'missing')}, is {now.get(name, 'missing')}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]


def _written(store: "Store") -> dict[str, str]:
    with _keeping(store):
        written = store.read(FILE)
    try:
        return dict(json.loads(written)) if written else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{store.location}/{FILE}: not readable ({error})") from error


@contextlib.contextmanager
def _keeping(store: "Store") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{store.location}: checkpoints cannot be kept here ({error})") from error
