"""Snapshots of the programs of a run, kept as Orbax checkpoints: one folder for each program.

A checkpoint is written beside the training, appears whole or not at all, and says the checksum of
every array: one that is damaged is not used, but the one before it.
"""

import logging
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxexp.plan import Program
from jaxexp.records import End, Snapshot
from jaxexp.train import PyTree

EVERY_SECONDS = 30.0
KEPT = 2  # the last ones of each program
SHARE = 0.02  # of the time, at most, may be spent waiting for a save to begin
FIELDS = ("epoch", "step", "batch", "at_once", "seconds", "compile_seconds")


class Checkpoints:
    """Keeps the snapshots of a run in a folder; see `jaxexp.engine.Keeper`."""

    def __init__(
        self, folder: Path, note: Callable[[str], None], every: float = EVERY_SECONDS
    ) -> None:
        """`note` is told, in words, of checkpoints that cannot be read or written."""
        self.folder, self.note, self.every = folder.absolute(), note, every
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()
        logging.getLogger("absl").setLevel(logging.ERROR)  # failures are told by `note`

    def due(self, program: Program) -> bool:
        """Whether the last save, or the start, is long enough ago."""
        return time.monotonic() >= self._next.setdefault(program.id, time.monotonic() + self.every)

    def save(self, program: Program, snapshot: Snapshot) -> None:
        """Begin to write a snapshot; where that fails, the run goes on with the one before it."""
        started = time.monotonic()
        try:
            self._save(program, snapshot)
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
        taken = time.monotonic() - started
        self._next[program.id] = time.monotonic() + max(self.every, taken / SHARE)

    def _save(self, program: Program, snapshot: Snapshot) -> None:
        arrays = _flatten(snapshot)
        meta = {name: getattr(snapshot, name) for name in FIELDS}
        meta["arrays"] = {name: _describe(array) for name, array in arrays.items()}
        meta["trials"] = [trial.id for trial, _ in program.members]
        manager = self._manager(program)
        step = max(manager.all_steps(), default=0) + 1
        manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
            ),
        )

    def load(self, program: Program, like: tuple[PyTree, PyTree, PyTree]) -> Snapshot | None:
        """The newest sound snapshot of this program, if there is one."""
        if not (self.folder / program.id).is_dir():
            return None
        manager = self._manager(program)
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                return self._load(manager, step, like)
            # Whatever a damaged file makes Orbax and the libraries under it raise.
            except Exception as error:
                reason = str(error).partition("\n")[0]
                path = self.folder / program.id / str(step)
                self.note(f"{path}: not used, since it is damaged or of another program ({reason})")
        return None

    def _load(
        self, manager: ocp.CheckpointManager, step: int, like: tuple[PyTree, PyTree, PyTree]
    ) -> Snapshot:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(arrays=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()),
        )
        meta = restored["meta"]
        arrays = {name: np.asarray(array) for name, array in restored["arrays"].items()}
        found = {name: _describe(array) for name, array in arrays.items()}
        for name in found.keys() | meta["arrays"].keys():
            if found.get(name) != meta["arrays"].get(name):
                raise ValueError(f"array {name} is not what was saved")
        return _unflatten(arrays, {name: meta[name] for name in FIELDS}, like)

    def close(self) -> None:
        """Wait until everything is written."""
        for manager in self._managers.values():
            try:
                manager.wait_until_finished()
                manager.close()
            except (OSError, ValueError, RuntimeError) as error:
                self._failed(error)
        self._managers.clear()

    def discard(self) -> None:
        """Remove all checkpoints: the run is complete."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _manager(self, program: Program) -> ocp.CheckpointManager:
        with self._lock:
            if program.id not in self._managers:
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=KEPT, enable_async_checkpointing=True
                )
                folder = self.folder / program.id
                self._managers[program.id] = ocp.CheckpointManager(folder, options=options)
            return self._managers[program.id]

    def _failed(self, error: Exception) -> None:
        reason = str(error).partition("\n")[0]
        self.note(
            f"{self.folder}: a checkpoint could not be written ({reason}); the run goes on, and "
            "the one before it is kept"
        )


def _describe(array: np.ndarray) -> list[Any]:
    """Type, shape and checksum, as JSON."""
    checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return [str(array.dtype), list(array.shape), checksum]


def _flatten(snapshot: Snapshot) -> dict[str, np.ndarray]:
    trees = {"state": snapshot.state, "gathered": snapshot.gathered, "history": snapshot.history}
    for epoch, end in snapshot.ends.items():
        trees |= {f"end.{epoch}.{name}": tree for name, tree in vars(end).items()}
    return {
        f"{name}.{i}": leaf
        for name, tree in trees.items()
        for i, leaf in enumerate(jax.tree.leaves(tree))
    }


def _unflatten(
    arrays: dict[str, np.ndarray], meta: dict[str, Any], like: tuple[PyTree, PyTree, PyTree]
) -> Snapshot:
    """Raises ValueError if the arrays are not those of a program like that."""

    def tree(name: str, like: PyTree, lead: int) -> PyTree:
        """Arrays with so many leading axes before those that `like` has after its first."""
        leaves, structure = jax.tree.flatten(like)
        own = [arrays.get(f"{name}.{i}") for i in range(len(leaves))]
        for array, leaf in zip(own, leaves, strict=True):
            if array is None or (array.shape[lead:], array.dtype) != (leaf.shape[1:], leaf.dtype):
                raise ValueError(f"{name} is of another program")
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
