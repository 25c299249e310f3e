"""Snapshots of the programs of a run, in a folder of Orbax checkpoints or another store.

A checkpoint is written beside the training, appears whole or not at all, and holds a digest of its
arrays and of its description: where one is damaged, the one before it is used.

All arrays are one blob of bytes inside an Orbax checkpoint. Orbax's own storage, an array each, has
no digest of what is read back, and takes many times longer for the many small arrays of a grid.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypedDict, cast

import jax
import numpy as np

from jaxexp.base import memory
from jaxexp.execution.claims import differences
from jaxexp.execution.records import End, Snapshot
from jaxexp.execution.rules import Change
from jaxexp.execution.stores import Json, store
from jaxexp.planning.programs import Program
from jaxexp.training.trees import PyTree

EVERY_SECONDS = 30.0
SHARE = 0.02  # of the time, at most, training waits for snapshots that are due
FIELDS = ("epoch", "step", "batch", "chunk", "seconds", "compile_seconds", "settled", "lanes")
PLAIN = ("places", "stopped", "best_epoch")  # arrays of whole numbers
Like: TypeAlias = tuple[PyTree, PyTree, PyTree]  # as `program.state_like` returns
Table: TypeAlias = dict[str, tuple[str, list[int]]]  # the type and shape of each array


class Counts(TypedDict):
    """What a snapshot holds beside its arrays: how far it is, and what that took."""

    epoch: int
    step: int
    batch: int
    chunk: int
    seconds: float
    compile_seconds: float
    settled: int
    lanes: int


class _OthersError(Exception):
    """A snapshot of the same trials, of another task or other data."""


class Checkpoints:
    """Keeps the snapshots of a run in a folder; see `jaxexp.execution.driver.Checkpointer`.

    Orbax numbers its operations for the whole process, so that saves from several threads disturb
    each other: all its work is done by one thread, one piece after another.
    """

    def __init__(
        self, location: Path | str, note: Callable[[str], None], every: float = EVERY_SECONDS,
        of: Mapping[str, str] = {},
    ) -> None:  # fmt: skip
        """`note` is called with a sentence about checkpoints that cannot be read or written.

        `location` is the path of a folder, or a URL; raises UserError if it cannot be opened. `of`
        is what is trained, beside the trials: digests of the task, the data and the stopping rule.
        Snapshots of another are not used.
        """
        self.store, self.every, self.of = store(location), every, dict(of)
        self._note, self._noted = note, set[str]()
        self._saving: dict[str, Future[None]] = {}
        self._next: dict[str, float] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoints")

    def due(self, program: Program) -> bool:
        """Whether the last save, or the start, is long enough ago."""
        return time.monotonic() >= self._next.setdefault(program.id, time.monotonic() + self.every)

    def save(self, program: Program, snapshot: Snapshot, taken: float = 0.0) -> None:
        """Begin to write a snapshot; where that fails, the run keeps the one before it.

        `taken` is how many seconds it took to make.
        """
        if not self._saving:  # what the first one imports takes no time later
            self._thread.submit(self.store.prepare).exception()
        started = time.monotonic() - taken
        if program.id in self._saving:
            self._saving[program.id].result()  # no more than one in memory
        meta: Json = {name: getattr(snapshot, name) for name in FIELDS}
        arrays = _flatten(snapshot)
        self._saving[program.id] = self._thread.submit(self._try_to_save, program, meta, arrays)
        taken = time.monotonic() - started
        self._next[program.id] = time.monotonic() + max(self.every, taken / SHARE)

    def load(self, program: Program, like: Callable[[], Like]) -> Snapshot | None:
        """The newest intact snapshot of this program, if there is one."""
        try:
            if not self.store.has(program.id):
                return None
        except OSError as error:
            self._tell(f"{self.store.location}: not used ({_reason(error)})")
            return None
        return self._thread.submit(self._find, program, like()).result()

    def wait(self) -> None:
        """Until everything is written."""
        for saving in list(self._saving.values()):
            saving.result()

    def close(self) -> None:
        """Wait until everything is written, and be done."""
        self._thread.shutdown()
        self.store.close()

    def _try_to_save(self, program: Program, meta: Json, arrays: dict[str, np.ndarray]) -> None:
        # Whatever Orbax and the libraries under it raise: training is worth more than a checkpoint.
        try:
            self._save(program, meta, arrays)
            memory.give_back()
        except Exception as error:
            self.store.drop(program.id)  # what is open cannot be relied on any more
            self._tell(
                f"{self.store.location}: a checkpoint could not be written ({_reason(error)}); "
                "the run continues; what was saved before, if anything, is left as it is"
            )

    def _save(self, program: Program, meta: Json, arrays: dict[str, np.ndarray]) -> None:
        packed, table = _pack(arrays)
        meta |= {"program": program.id, "of": self.of, "arrays": table, "turns": _turns(program)}
        meta["packed"] = _digest(packed.data)
        meta["digest"] = _digest(json.dumps(meta, sort_keys=True).encode())
        step = max(self.store.steps(program.id), default=0) + 1
        self.store.save(program.id, step, meta, packed)

    def _find(self, program: Program, like: Like) -> Snapshot | None:
        at = f"{self.store.location}/{program.id}"
        # Whatever a damaged file makes Orbax and the libraries under it raise.
        try:
            steps = sorted(self.store.steps(program.id), reverse=True)
        except Exception as error:
            self._tell(f"{at}: not used ({_reason(error)})")
            return None
        for step in steps:
            try:
                return self._load(program, step, like)
            except _OthersError as error:
                self._tell(f"{at}: checkpoints of another run ({error}); its trials start afresh")
                return None
            except Exception as error:
                self._tell(
                    f"{at}/{step}: not used, damaged or of another program ({_reason(error)})"
                )
        return None

    def _load(self, program: Program, step: int, like: Like) -> Snapshot:
        meta = self.store.meta(program.id, step)
        digest = meta.pop("digest")
        if digest != _digest(json.dumps(meta, sort_keys=True).encode()):
            raise ValueError("its description is not what was saved")
        if meta["program"] != program.id:
            raise ValueError("it is of another program")
        if differs := differences(meta.get("of", {}), self.of):
            raise _OthersError("; ".join(differs))
        if meta["step"] and meta.get("turns") != _turns(program):
            raise ValueError("within an epoch, computed in other parts")
        packed = self.store.packed(program.id, step)
        if meta["packed"] != _digest(packed.data):
            raise ValueError("its arrays are not what was saved")
        arrays = _unpack(packed, meta["arrays"])
        counts = cast(Counts, {name: meta[name] for name in FIELDS})
        return _unflatten(arrays, counts, like)

    def _tell(self, text: str) -> None:
        """Tell it, once."""
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)


def _turns(program: Program) -> list[int | bool | None]:
    """What the steps of an epoch are counted in."""
    return [program.microbatch, program.one_by_one]


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _pack(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, Table]:
    """All arrays as one of bytes, and the type and shape of each: Orbax takes long for many.

    Takes them out of the dictionary one by one, so that they are in memory once, not twice.
    """
    table = {name: (str(array.dtype), list(array.shape)) for name, array in arrays.items()}
    packed = np.empty(sum(array.nbytes for array in arrays.values()), np.uint8)
    start = 0
    for name in table:
        array = arrays.pop(name)
        own = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        packed[start : start + array.nbytes] = own
        start += array.nbytes
    return packed, table


def _unpack(packed: np.ndarray, table: Table) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for name, (dtype, shape) in table.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = packed[start : start + size].view(dtype).reshape(shape)
        start += size
    return arrays


def _flatten(snapshot: Snapshot) -> dict[str, np.ndarray]:
    trees = {name: getattr(snapshot, name) for name in ("state", "record", "best", "history")}
    trees |= {name: getattr(snapshot, name) for name in PLAIN}
    trees |= {f"values.{name}": value for name, value in snapshot.values.items()}
    for epoch, end in snapshot.ends.items():
        trees |= {f"end.{epoch}.{name}": tree for name, tree in vars(end).items()}
    for epoch, change in snapshot.changes.items():
        trees[f"change.{epoch}.source"] = change.source
        trees |= {f"change.{epoch}.values.{n}": value for n, value in change.values.items()}
    return {
        f"{name}.{i}": leaf
        for name, tree in trees.items()
        for i, leaf in enumerate(jax.tree.leaves(tree))
    }


def _unflatten(arrays: dict[str, np.ndarray], meta: Counts, like: Like) -> Snapshot:
    """Raises ValueError if the arrays are not those of a program like that."""

    def tree(name: str, like: PyTree, lead: int) -> PyTree:
        """Arrays with so many leading axes before those that `like` has after its first."""
        leaves, structure = jax.tree.flatten(like)
        own = [arrays.get(f"{name}.{i}") for i in range(len(leaves))]
        if f"{name}.{len(leaves)}" in arrays:
            raise ValueError(f"{name} is of another program")
        for array, leaf in zip(own, leaves, strict=True):
            if array is None or (array.shape[lead:], array.dtype) != (leaf.shape[1:], leaf.dtype):
                raise ValueError(f"{name} is of another program")
        return jax.tree.unflatten(structure, own)

    def named(prefix: str) -> dict[str, np.ndarray]:
        """Single arrays, by what follows in their names."""
        return {
            name.removeprefix(prefix).removesuffix(".0"): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }

    def epochs(kind: str) -> list[int]:
        return sorted({int(name.split(".")[1]) for name in arrays if name.startswith(f"{kind}.")})

    state, record, predictions = like
    if len(arrays["stopped.0"]) != len(jax.tree.leaves(record)[0]):
        raise ValueError("it is of another number of trials")
    return Snapshot(
        **meta,
        **{name: arrays[f"{name}.0"] for name in PLAIN},
        state=tree("state", state, 1) if "record.0" in arrays else None,
        record=tree("record", record, 1) if "record.0" in arrays else None,
        best=tree("best", state.variables, 1) if "best.0" in arrays else None,
        history=tree("history", record, 2) if meta["epoch"] else None,
        ends={
            epoch: End(
                arrays[f"end.{epoch}.places.0"],
                tree(f"end.{epoch}.predictions", predictions, 1),
                tree(f"end.{epoch}.variables", state.variables, 1),
                arrays[f"end.{epoch}.best_epoch.0"],
            )
            for epoch in epochs("end")
        },
        values=named("values."),
        changes={
            epoch: Change(arrays[f"change.{epoch}.source.0"], named(f"change.{epoch}.values."))
            for epoch in epochs("change")
        },
    )
