"""Where snapshots are kept: in a folder as Orbax checkpoints, or as objects of any store.

Nothing that is read is unpickled: a snapshot is JSON and an array of bytes.
"""

import contextlib
import errno
import json
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from jaxexp.base.errors import UserError
from jaxexp.base.files import write_whole
from jaxexp.base.locks import HOLDER, LOCK, held, in_use, is_held
from jaxexp.execution.claims import FILE

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

PROGRAM = re.compile(r"[0-9a-f]{16}")  # the folder of its snapshots, named by `Program.id`
BATCH = re.compile(r"batch-\d{4,}")  # the folder of the programs of a batch of a study
SHARED = ".shared"  # a file by which the nodes of a cluster find out whether they see a folder
KEPT = 2  # snapshots of each program: the last ones
LENGTH_BYTES = 8  # of the number at the start of an object: how long its description is
Json: TypeAlias = dict[str, Any]


class Store(Protocol):
    """Snapshots by the id of their program and a number, each a description and bytes."""

    location: str  # for other processes, and people

    @property
    def path(self) -> Path | None:
        """Of the folder, if it is one of this machine."""
        ...

    def check_free(self) -> None:
        """Raise UserError if it is in use, OSError if it cannot be written; writes nothing."""
        ...

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Held by this process, where a store can tell; raises UserError if it is in use."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file of its own, None if there is none; raises OSError."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a file of its own; raises OSError."""
        ...

    def is_empty(self) -> bool:
        """Whether nothing is there yet."""
        ...

    def has(self, program: str) -> bool:
        """Whether there may be snapshots of a program."""
        ...

    def steps(self, program: str) -> list[int]:
        """The numbers of a program's snapshots."""
        ...

    def prepare(self) -> None:
        """Import what saving needs."""
        ...

    def save(self, program: str, step: int, meta: Json, packed: np.ndarray) -> None:
        """Keep a snapshot, and no more than the last ones."""
        ...

    def meta(self, program: str, step: int) -> Json:
        """The description of a snapshot."""
        ...

    def packed(self, program: str, step: int) -> np.ndarray:
        """The bytes of a snapshot."""
        ...

    def drop(self, program: str) -> None:
        """Forget what is open of a program; nothing is deleted."""
        ...

    def close(self) -> None:
        """Forget all that is open."""
        ...

    def remove(self, *files: str) -> None:
        """Delete the snapshots, then these files: all that a run writes, and nothing else."""
        ...


def store(location: str | Path) -> Store:
    """The store at a path, or at a URL such as s3://bucket/run.

    Raises UserError for a URL that fsspec cannot open, and a path that holds `**`.

    >>> store("memory://run").is_empty()
    True
    """
    if isinstance(location, str) and "://" in location:
        return Objects(location)
    return Folder(Path(location))


def within(location: str | Path, name: str) -> str:
    """The path or the URL of what has this name in a folder or at a URL.

    >>> within("s3://bucket/run", "batch-0001")
    's3://bucket/run/batch-0001'
    """
    return posixpath.join(str(location), name)


def _remove(folder: Path, files: Collection[str]) -> None:
    """Delete what runs write into a folder, and the folder if nothing else is there."""
    there = list(folder.iterdir()) if folder.is_dir() else []
    for path in there:
        if BATCH.fullmatch(path.name):
            _remove(path, [SHARED])
        elif PROGRAM.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        for path in there:  # last: they say whose the snapshots are
            if path.name in files:
                path.unlink()
        folder.rmdir()


def _orbax() -> ModuleType:
    """Imported when it is first needed: a command starts a tenth of a second sooner without."""
    import orbax.checkpoint

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # those who ask say what failed
    made: ModuleType = orbax.checkpoint
    return made


class Folder:
    """A folder, with a folder of Orbax checkpoints for each program."""

    def __init__(self, path: Path) -> None:
        """Nothing is written yet; raises UserError for a path that Orbax cannot write to."""
        self.path = path.absolute()
        if "**" in str(self.path):  # Orbax takes the path for a pattern, and allows none of these
            raise UserError(
                f"{self.path}: expected a folder for checkpoints without ** in its path"
            )
        self.location = str(self.path)
        self._managers: dict[str, ocp.CheckpointManager] = {}

    def check_free(self) -> None:
        """See `Store`, as for all methods."""
        if is_held(self.path):
            raise in_use(self.path)
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        fault = errno.EACCES if there.is_dir() else errno.ENOTDIR
        if fault == errno.ENOTDIR or not os.access(there, os.W_OK | os.X_OK):
            raise OSError(fault, os.strerror(fault), str(there))

    def held(self) -> contextlib.AbstractContextManager[None]:
        """See `Store`."""
        return held(self.path)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        file = self.path / name
        return file.read_bytes() if file.is_file() else None

    def put(self, name: str, content: bytes) -> None:
        """See `Store`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / name, content)

    def is_empty(self) -> bool:
        """See `Store`."""
        begun = {LOCK, HOLDER, f"{FILE}.partial"}  # where a process has ended as it began
        return not self.path.exists() or {p.name for p in self.path.iterdir()} <= begun

    def has(self, program: str) -> bool:
        """See `Store`."""
        return (self.path / program).is_dir()

    def steps(self, program: str) -> list[int]:
        """See `Store`."""
        return [*self._manager(program).all_steps()]

    def prepare(self) -> None:
        """See `Store`."""
        _orbax()

    def save(self, program: str, step: int, meta: Json, packed: np.ndarray) -> None:
        """See `Store`."""
        ocp = _orbax()
        self._manager(program).save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave({"packed": packed}), meta=ocp.args.JsonSave(meta)
            ),
        )

    def meta(self, program: str, step: int) -> Json:
        """See `Store`."""
        ocp = _orbax()
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        made: Json = self._manager(program).restore(step, args=args)["meta"]
        return made

    def packed(self, program: str, step: int) -> np.ndarray:
        """See `Store`."""
        ocp = _orbax()
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore())
        return np.asarray(self._manager(program).restore(step, args=args)["arrays"]["packed"])

    def drop(self, program: str) -> None:
        """See `Store`."""
        manager = self._managers.pop(program, None)
        if manager:
            with contextlib.suppress(Exception):
                manager.close()

    def close(self) -> None:
        """See `Store`."""
        for program in list(self._managers):
            self.drop(program)

    def remove(self, *files: str) -> None:
        """See `Store`; the folder goes, too, if it is empty then."""
        partial = (f"{name}.partial" for name in files)
        _remove(self.path, (*files, *partial, LOCK, HOLDER, SHARED))

    def _manager(self, program: str) -> "ocp.CheckpointManager":
        if program not in self._managers:
            ocp = _orbax()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
            )
            # Without OCDBT, which is for arrays of many processes: what these have written is found
            # by a glob, in which the [ ] of a path would be a pattern, and the files lost.
            handlers = {
                "arrays": ocp.StandardCheckpointHandler(use_ocdbt=False),
                "meta": ocp.JsonCheckpointHandler(),
            }
            self._managers[program] = ocp.CheckpointManager(
                self.path / program, options=options, item_handlers=handlers
            )
        return self._managers[program]


class Objects:
    """Objects of a store that fsspec knows, one for each snapshot.

    An object is the length of its description (8 bytes, the lowest first), this, as JSON, and the
    arrays. Where one is written in part, the digest in its description says so.
    """

    def __init__(self, url: str) -> None:
        """Nothing is written yet; raises UserError for a URL that fsspec cannot open."""
        self.location = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise UserError(f"{url}: cannot be opened ({error})") from error

    @property
    def path(self) -> Path | None:
        """See `Store`, as for all methods."""
        return Path(self._root) if isinstance(self._files, LocalFileSystem) else None

    def check_free(self) -> None:
        """See `Store`: what can be written, only writing tells."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """See `Store`: objects have no locks."""
        return contextlib.nullcontext()

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            content: bytes = self._files.cat_file(self._at(name))
        except FileNotFoundError:
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """See `Store`."""
        path = self._at(name)
        self._files.makedirs(posixpath.dirname(path), exist_ok=True)
        self._files.pipe_file(path, content)

    def is_empty(self) -> bool:
        """See `Store`."""
        return not self._listed(self._root)

    def has(self, program: str) -> bool:
        """See `Store`."""
        return bool(self.steps(program))

    def steps(self, program: str) -> list[int]:
        """See `Store`."""
        names = (posixpath.basename(path) for path in self._listed(self._at(program)))
        return [int(name) for name in names if name.isdecimal()]

    def prepare(self) -> None:
        """See `Store`."""

    def save(self, program: str, step: int, meta: Json, packed: np.ndarray) -> None:
        """See `Store`."""
        described = json.dumps(meta).encode()
        length = len(described).to_bytes(LENGTH_BYTES, "little")
        self.put(f"{program}/{step}", b"".join([length, described, packed.data]))
        for old in sorted(self.steps(program))[:-KEPT]:
            self._files.rm_file(self._at(f"{program}/{old}"))

    def meta(self, program: str, step: int) -> Json:
        """See `Store`."""
        path, start = self._at(f"{program}/{step}"), self._start(program, step)
        made: Json = json.loads(self._files.cat_file(path, start=LENGTH_BYTES, end=start))
        return made

    def packed(self, program: str, step: int) -> np.ndarray:
        """See `Store`."""
        path = self._at(f"{program}/{step}")
        content = self._files.cat_file(path, start=self._start(program, step))
        return np.frombuffer(content, np.uint8)

    def drop(self, program: str) -> None:
        """See `Store`."""

    def close(self) -> None:
        """See `Store`."""

    def remove(self, *files: str) -> None:
        """See `Store`."""
        self._remove(self._root, files)

    def _remove(self, folder: str, files: Collection[str]) -> None:
        listed = {posixpath.basename(path): path for path in self._listed(folder)}
        for name, path in listed.items():
            if BATCH.fullmatch(name):
                self._remove(path, ())
            elif PROGRAM.fullmatch(name):
                self._files.rm(path, recursive=True)
        for name in listed.keys() & files:  # last: they say whose the snapshots are
            self._files.rm_file(listed[name])
        if "/" in folder.strip("/"):  # else it may be a bucket, of which a run has made none
            with contextlib.suppress(OSError, NotImplementedError):
                self._files.rmdir(folder)  # which fails where anything else lies

    def _start(self, program: str, step: int) -> int:
        """Where the arrays begin."""
        length = self._files.cat_file(self._at(f"{program}/{step}"), start=0, end=LENGTH_BYTES)
        return LENGTH_BYTES + int.from_bytes(length, "little")

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _listed(self, path: str) -> list[str]:
        self._files.invalidate_cache(path)  # other processes write there, too
        try:
            found: list[str] = self._files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return found
