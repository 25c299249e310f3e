"""Snapshots of the programs of a run, kept as files: one folder for each program.

A checkpoint is one file of NumPy arrays that appears whole or not at all, and ends with its digest:
one that is damaged is not used, but the one before it.
"""

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxexp.files import read_sealed, whole_file
from jaxexp.plan import Program
from jaxexp.records import End, Snapshot
from jaxexp.train import PyTree

EVERY_SECONDS = 30.0
KEPT = 2  # the last ones of each program
SHARE = 0.02  # of the time, at most, goes into saving
FIELDS = ("epoch", "step", "batch", "at_once", "seconds", "compile_seconds")
Like = tuple[PyTree, PyTree, PyTree]  # what `jaxexp.compiled.state_like` returns


class Checkpoints:
    """Keeps the snapshots of a run in a folder; see `jaxexp.engine.Keeper`."""

    def __init__(
        self, folder: Path, note: Callable[[str], None], every: float = EVERY_SECONDS
    ) -> None:
        """`note` is told, in words, of checkpoints that cannot be read or written."""
        self.folder, self.every = folder, every
        self._note, self._noted = note, set[str]()
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def due(self, program: Program) -> bool:
        """Whether the last save, or the start, is long enough ago."""
        return time.monotonic() >= self._next.setdefault(program.id, time.monotonic() + self.every)

    def save(self, program: Program, snapshot: Snapshot) -> None:
        """Write a snapshot; where that fails, the run goes on, and the one before it is kept."""
        started = time.monotonic()
        try:
            self._save(program, snapshot)
        except OSError as error:
            self._tell(
                f"{self.folder}: a checkpoint could not be written ({error.strerror or error}); "
                "the run goes on, and what was saved before is kept"
            )
        taken = time.monotonic() - started
        self._next[program.id] = time.monotonic() + max(self.every, taken / SHARE)

    def _save(self, program: Program, snapshot: Snapshot) -> None:
        meta = {name: getattr(snapshot, name) for name in FIELDS} | {"program": program.id}
        files = self._files(program)
        number = int(files[-1].stem) + 1 if files else 1
        path = self.folder / program.id / f"{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, seal=True) as file:
            np.savez(file, allow_pickle=False, meta=json.dumps(meta), **_flatten(snapshot))
        for old in files[: 1 - KEPT]:
            old.unlink(missing_ok=True)

    def load(self, program: Program, like: Callable[[], Like]) -> Snapshot | None:
        """The newest sound snapshot of this program, if there is one."""
        for path in reversed(self._files(program)):
            try:
                return _load(path, program, like())
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._tell(f"{path}: not used ({error})")
        return None

    def _files(self, program: Program) -> list[Path]:
        """The oldest first."""
        found = (self.folder / program.id).glob("*.npz")
        return sorted((path for path in found if path.stem.isdecimal()), key=lambda p: int(p.stem))

    def _tell(self, text: str) -> None:
        """Tell it, once."""
        with self._lock:
            new = text not in self._noted
            self._noted.add(text)
        if new:
            self._note(text)


def _load(path: Path, program: Program, like: Like) -> Snapshot:
    """Raises what `load` expects if it is damaged, or of another program or jaxexp."""
    with np.load(io.BytesIO(read_sealed(path)), allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    if meta.pop("program") != program.id:
        raise ValueError("it is of another program")
    return _unflatten(arrays, meta, like)


def _flatten(snapshot: Snapshot) -> dict[str, np.ndarray]:
    trees = {"state": snapshot.state, "gathered": snapshot.gathered, "history": snapshot.history}
    for epoch, end in snapshot.ends.items():
        trees |= {f"end.{epoch}.{name}": tree for name, tree in vars(end).items()}
    return {
        f"{name}.{i}": leaf
        for name, tree in trees.items()
        for i, leaf in enumerate(jax.tree.leaves(tree))
    }


def _unflatten(arrays: dict[str, np.ndarray], meta: dict[str, Any], like: Like) -> Snapshot:
    """Raises ValueError if the arrays are not those of a program like that."""

    def tree(name: str, like: PyTree, lead: int) -> PyTree:
        """Arrays with so many leading axes before those that `like` has after its first."""
        leaves, structure = jax.tree.flatten(like)
        own = []
        for i, leaf in enumerate(leaves):
            array = arrays.get(f"{name}.{i}")
            # NumPy's files know bfloat16 and the like as bytes alone.
            types = (leaf.dtype, np.dtype(f"V{leaf.dtype.itemsize}"))
            if array is None or array.shape[lead:] != leaf.shape[1:] or array.dtype not in types:
                raise ValueError(f"its {name} is of another program")
            own.append(array.view(leaf.dtype))
        return jax.tree.unflatten(structure, own)

    state, gathered, predictions = like
    epochs = sorted({int(name.split(".")[1]) for name in arrays if name.startswith("end.")})
    return Snapshot(
        **meta,
        state=tree("state", state, 1),
        gathered=tree("gathered", gathered, 1),
        history=tree("history", gathered, 2) if meta["epoch"] else None,
        ends={
            epoch: End(
                tree(f"end.{epoch}.predictions", predictions, 1),
                tree(f"end.{epoch}.params", state.params, 1),
                tree(f"end.{epoch}.state", state.state, 1),
            )
            for epoch in epochs
        },
    )
