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
ELSEWHERE = "keep those of this one elsewhere, or delete them"


@contextlib.contextmanager
def held(
    store: "Store", identity: Mapping[str, str], free: Collection[str] = (),
    remedy: str = ELSEWHERE,
) -> Iterator[None]:  # fmt: skip
    """Hold a place where nothing is, or checkpoints of this run.

    Raises UserError for those of a run whose identity differs, but for what is `free` to, with the
    remedy, and for a place that another process holds or that cannot be written.
    """
    check(store, identity, free, remedy)  # first: nothing is written where something else lies
    with contextlib.ExitStack() as stack:
        with _keeping(store):
            stack.enter_context(store.held())
        check(store, identity, free, remedy)
        yield


def check_begins(store: "Store", identity: Mapping[str, str], free: Collection[str] = ()) -> None:
    """Raise what `held` raises, as far as that can be told, and write nothing."""
    check(store, identity, free)
    with _keeping(store):
        store.check_free()


def check(
    store: "Store", identity: Mapping[str, str], free: Collection[str] = (),
    remedy: str = ELSEWHERE,
) -> None:  # fmt: skip
    """Raise what `held` raises of what lies there, and write nothing."""
    before = {name: own for name, own in _written(store).items() if name != PROCESS}
    if not before:
        with _keeping(store):
            if not store.is_empty():
                raise UserError(
                    f"{store.location}: expected an empty folder, or one of checkpoints with their "
                    f"{FILE}, which is missing or empty"
                )
        return
    fixed = {name: own for name, own in identity.items() if name not in free}
    if differs := differences({n: own for n, own in before.items() if n not in free}, fixed):
        raise UserError(
            f"{store.location}: checkpoints of another run: {'; '.join(differs)}; {remedy}"
        )


def claim(store: "Store", identity: Mapping[str, str]) -> str:
    """Write down whose the checkpoints of a held place are; returns a name for this process."""
    process = uuid.uuid4().hex
    with _keeping(store):
        store.put(FILE, json.dumps({**identity, PROCESS: process}, indent=1).encode())
    return process


def is_last(store: "Store", process: str | None) -> bool:
    """Whether nobody has claimed a place since the process of this name."""
    return process is not None and _written(store).get(PROCESS) == process


def written(store: "Store") -> set[str]:
    """The names of what is written of the run whose checkpoints lie there."""
    return {*_written(store)}


def clear(store: "Store") -> None:
    """Delete the checkpoints there, but not whose they are."""
    with _keeping(store):
        store.remove()


def remove(store: "Store", process: str | None) -> None:
    """Delete what the run keeps, unless another process has claimed it: objects have no locks."""
    if is_last(store, process):
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
        raise UserError(
            f"{store.location}/{FILE}: not readable ({error}): whose the checkpoints there are is "
            f"not known; {ELSEWHERE}"
        ) from error


@contextlib.contextmanager
def _keeping(store: "Store") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{store.location}: checkpoints cannot be kept here ({error})") from error
