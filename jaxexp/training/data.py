"""Examples from a user's own arrays, checked at once for what would train to wrong numbers.

Only NumPy is imported here. Data frames and tensors are recognised by their type's module, so that
neither pandas, polars, torch nor JAX is needed. Rows and columns count from 0 in every message.
"""

import copy
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from jaxexp.base.batches import steps_per_epoch
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int
from jaxexp.base.words import count
from jaxexp.spec.trial import Trial
from jaxexp.training.checks import (
    BLOCK_BYTES,
    check_alike,
    check_attribute,
    check_coordinate,
    check_label_shape,
    check_range,
    check_rows,
    check_weight,
    checked_leaf,
    checked_names,
    checked_notes,
    map_leaves,
    named_leaves,
    refuse_names,
    row_count,
    shape_like,
    some_names,
    structure_of,
)
from jaxexp.training.reading import column_names
from jaxexp.training.trees import PyTree

Coordinate: TypeAlias = tuple[str | Sequence[str], Sequence[object] | np.ndarray]
Attributes: TypeAlias = Mapping[str, Any]  # as xarray has them

SPLITS = ("train", "validation", "test")
HANDED_ON = "(if `dataclasses.replace` hands them on: give columns={}, or those that are there)"


class _Columns(dict[str, tuple[str, ...]]):
    """The names that a `Data` has, to tell names that are handed on from names that are given."""


class Examples(NamedTuple):
    """Inputs, targets and weights of N examples: the first axis of every array.

    >>> Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32)).weight is None
    True
    """

    x: PyTree
    """Inputs, (N, ...)."""
    y: PyTree
    """Targets, (N,) or (N, ...), or None where there are none."""
    weight: PyTree = None
    """(N,), what each example counts in a mean, at least 0; None: all the same."""


@dataclass(frozen=True, eq=False)
class Data:
    """What a task trains on: a training split, optionally others, and what the arrays mean.

    A split is an `Examples`, or any tree of tuples, named tuples, lists, dicts and None whose
    leaves are arrays with one row per example: (N, ...). All splits have the same structure, the
    same dtypes and, except for N, the same shapes. `jx.arrays` makes a `Data` from X and y, and
    copies them. `Data` itself does not copy arrays, which may be mapped from disk: changing them
    later changes the data.

    Args:
        train: the split to train on.
        validation: another one, or None.
        test: another one, or None.
        classes: the names of the classes 0 to C - 1, or None if the targets are not classes.
        features: the names of the columns of `x`, such as those of a frame, or None.
        extra: named trees of arrays of any shape, placed on devices next to the examples.
        folds: None; or by split, (F, M) int32, rows of `train` for each of F folds, -1 at the end
            of shorter ones: "train", those that a trial of `Trial.fold` trains on, and
            "validation" or "test", those it is evaluated on. `jaxexp.folds` makes them.
        train_sample: how many of the training examples, always the same, are evaluated after every
            epoch; if None, all if there are at most 512, otherwise 30 %, but at least 512 and at
            most 10,000.
        coords: name -> (dimensions, array), coordinates of the dataset of results.
        attrs: attributes of the dataset of results, by names that it does not use itself: text,
            numbers, or lists of either (a list of length 1 is loaded from a file as its element).
            `attrs["data"]` says in one line where the data are from.
        columns: path -> the names of the columns of any other array of `train` ("x.table" in a
            dict), such as those of frames. `dataclasses.replace` keeps those of arrays that are
            still there, as it keeps `features`.
        notes: what readers should know before they believe the results; pages show it.

    Raises:
        UserError: something is empty, unequal, not finite, not a number or out of range; the
            message names the array ("validation.x"), the row, the value and what was expected.

    >>> x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 1], np.int32)
    >>> data = Data(Examples(x, y), validation=Examples(x[:2], y[:2]), classes=("no", "yes"))
    >>> data.counts, data.nbytes
    ({'train': 3, 'validation': 2}, 60)
    """

    train: PyTree
    validation: PyTree = None
    test: PyTree = None
    classes: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    extra: Mapping[str, PyTree] = field(default_factory=dict)
    folds: PyTree = None
    train_sample: int | None = None
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    attrs: Attributes = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    notes: Sequence[str] = ()
    # The size of evaluation batches, each of one split; 0 if a batch may hold several splits.
    evaluated_apart: int = field(default=0, init=False, repr=False)
    # The fingerprint, if whoever made the data knows it; a copy with other arrays does not keep it.
    _known: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything; leaves become read-only NumPy arrays."""
        put = functools.partial(object.__setattr__, self)
        handed_on = isinstance(self.columns, _Columns)
        for name in ("extra", "coords", "attrs", "columns"):
            mapping = getattr(self, name)
            if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
                raise UserError(f"{name}: {mapping!r}, expected a dict whose keys are strings")
            put(name, dict(mapping))
        for name, least in (("classes", 2), ("features", 1)):
            if getattr(self, name) is not None:
                put(name, checked_names(name, getattr(self, name), least))
        for name in set(self.extra) & {*SPLITS, "folds", "evaluation"}:
            raise UserError(f"extra: {name!r} stands for something else, expected another name")
        for name, coordinate in self.coords.items():
            check_coordinate(name, coordinate)
        for name, attribute in self.attrs.items():
            check_attribute(name, attribute)
        put("notes", checked_notes(self.notes))

        if self.train is None:
            raise UserError("train: None, expected examples to train on")
        if "x" in self.columns:
            raise UserError(f"columns: 'x' is {self.columns['x']!r}, expected it as `features`")
        named = {at: checked_names(f"columns[{at!r}]", own, 1) for at, own in self.columns.items()}
        put("columns", named)
        for name in SPLITS:
            if (split := getattr(self, name)) is not None:
                put(name, map_leaves(functools.partial(self._checked_leaf, name), split, name))
                check_rows(name, getattr(self, name))
                if name != "train":
                    check_alike(name, getattr(self, name), self.train)
                if isinstance(split, Examples):
                    self._check_examples(name, getattr(self, name))
        paths = [path.removeprefix(".") for path, _ in named_leaves(self.train)]
        for path in () if handed_on else self.columns.keys() - set(paths):
            raise UserError(f"columns: {path!r}, expected one of {some_names(paths)}")
        put("columns", _Columns({at: own for at, own in self.columns.items() if at in paths}))
        sample = self.train_sample
        if sample is not None and not (is_int(sample) and sample >= 1):
            raise UserError(f"train_sample={sample!r}: expected a whole number above 0, or None")
        if self.folds is not None:
            put("folds", self._checked_folds())
        put(
            "extra",
            {
                name: map_leaves(functools.partial(checked_leaf, rows=False), tree, name)
                for name, tree in self.extra.items()
            },
        )

    def _checked_leaf(self, split: str, where: str, value: object) -> np.ndarray:
        """The array of a leaf; a frame must have the columns of the training one, in that order."""
        array = checked_leaf(where, value, rows=True)
        path = where.removeprefix(split).removeprefix(".")
        names, known = column_names(where, value), self.names_of(path)
        if names and known:
            own = "`features`" if path == "x" else f"the names in `columns` {HANDED_ON}"
            like = f"the columns of {where.replace(split, 'train', 1)}"
            refuse_names(where, names, known, own if split == "train" else like)
        if split != "train" or not (known := known or names):
            return array
        if array.shape[1:] != (len(known),) and (array.ndim == 2 or path != "x"):
            given, hint = ("features", "") if path == "x" else (f"columns[{path!r}]", HANDED_ON)
            raise UserError(
                f"{given}: {len(known)} names, expected one for each column of {where}, of shape "
                f"{shape_like(array.shape)} {hint}".rstrip()
            )
        if path == "x":
            object.__setattr__(self, "features", known)
        else:
            object.__setattr__(self, "columns", {**self.columns, path: known})
        return array

    def names_of(self, path: str) -> tuple[str, ...] | None:
        """The column names of a leaf of the training split, such as "x"; None without names."""
        return self.features if path == "x" else self.columns.get(path)

    def folded(self, folds: Mapping[str, np.ndarray]) -> Self:
        """The same data, with folds."""
        made = copy.copy(self)
        object.__setattr__(made, "folds", folds)
        object.__setattr__(made, "folds", made._checked_folds())
        object.__setattr__(made, "_known", None)
        return made

    def _checked_folds(self) -> dict[str, np.ndarray]:
        """The folds as read-only int32; refuses a row that occurs twice in a fold, in any split."""
        given, n = self.folds, row_count(self.train)
        if not isinstance(given, Mapping) or "train" not in given or not set(given) <= set(SPLITS):
            raise UserError(
                'folds: expected a dict of "train", and of "validation" or "test", with the rows '
                "of each fold"
            )
        made: dict[str, np.ndarray] = {}
        for name in (name for name in SPLITS if name in given):
            if name != "train" and getattr(self, name) is not None:
                raise UserError(f"folds: {name!r} is a split of its own already")
            rows = np.asarray(given[name])
            if rows.ndim != 2 or rows.dtype.kind not in "iu" or 0 in rows.shape:
                raise UserError(
                    f"folds[{name!r}]: {rows.dtype} of the shape {rows.shape}, expected whole "
                    "numbers (folds, rows)"
                )
            if (rows >= n).any() or (rows < -1).any():
                raise UserError(f"folds[{name!r}]: expected rows of train, 0 to {n - 1}, or -1")
            made[name] = rows.astype(np.int32)
            made[name].setflags(write=False)
        if len({len(rows) for rows in made.values()}) > 1:
            raise UserError("folds: expected as many folds of each split")
        for fold, own in enumerate(zip(*made.values(), strict=True)):
            for name, row in zip(made, own, strict=True):
                if (np.diff((row < 0).astype(int)) < 0).any() or row[0] < 0:
                    raise UserError(
                        f"folds[{name!r}], fold {fold}: expected a row at least, and -1 at the end"
                    )
            rows = np.concatenate([row[row >= 0] for row in own])
            if (twice := np.flatnonzero(np.bincount(rows) > 1)).size:
                parts = [name for name, row in zip(made, own, strict=True) if twice[0] in row]
                raise UserError(
                    f"folds, fold {fold}: row {twice[0]} twice, in {' and in '.join(parts)}, "
                    "expected once at most"
                )
            self._check_fold_weights(fold, dict(zip(made, own, strict=True)))
        return made

    def _check_fold_weights(self, fold: int, rows: Mapping[str, np.ndarray]) -> None:
        """Refuse a part of a fold whose weights are all 0: its means would be 0 / 0."""
        weight_N = self.train.weight if isinstance(self.train, Examples) else None
        if weight_N is None:
            return
        for name, row in rows.items():
            own = row[row >= 0]
            if not weight_N[own].any():
                raise UserError(
                    f"folds[{name!r}], fold {fold}: the weights of all {len(own)} rows are 0 (row "
                    f"{own[0]} is the first), expected one above 0: leave out rows of weight 0, or "
                    "make other folds"
                )

    @property
    def counted(self) -> np.ndarray | slice:
        """The rows of `train` that are used: of weight above 0 and, with folds, in a fold."""
        weight_N = self.train.weight if isinstance(self.train, Examples) else None
        if weight_N is None and self.folds is None:
            return slice(None)
        counts_N = np.ones(row_count(self.train), bool) if weight_N is None else weight_N > 0
        if self.folds is not None:
            rows = np.concatenate([rows.ravel() for rows in self.folds.values()])
            counts_N &= np.isin(np.arange(len(counts_N)), rows)
        return np.flatnonzero(counts_N)

    @property
    def n_folds(self) -> int:
        """The number of folds; 0 if there are none."""
        return 0 if self.folds is None else len(self.folds["train"])

    def __repr__(self) -> str:
        """One line about the data, without their numbers."""
        parts = [f"{name}: {count(n, 'example')}" for name, n in self.counts.items()]
        parts += [count(self.n_folds, "fold")] if self.folds is not None else []
        parts += [count(len(self.features), "feature")] if self.features else []
        parts += [count(len(self.classes), "class", "classes")] if self.classes else []
        return f"Data({', '.join(parts + list(self.extra))})"

    def _check_examples(self, name: str, examples: Examples) -> None:
        _, y, weight = examples
        if self.classes and isinstance(y, np.ndarray) and y.dtype.kind in "iu":
            check_label_shape(f"{name}.y", y)
            check_range(f"{name}.y", y, len(self.classes))
        if weight is not None:
            check_weight(f"{name}.weight", weight, row_count(examples))

    @property
    def splits(self) -> dict[str, PyTree]:
        """The splits that exist, of train, validation and test, in this order."""
        return {name: split for name in SPLITS if (split := getattr(self, name)) is not None}

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples N of each split; with folds, the most that any fold has."""
        counts = {name: row_count(split) for name, split in self.splits.items()}
        counts |= {name: rows.shape[1] for name, rows in (self.folds or {}).items()}
        return {name: counts[name] for name in SPLITS if name in counts}

    def counts_of(self, fold: int) -> dict[str, int]:
        """The number of examples N of each split of a fold; without folds, of the data."""
        return self.counts if self.folds is None else self._counts_by_fold[fold]

    def steps_of(self, trial: Trial) -> int:
        """How many steps a trial takes in all its epochs, on its fold if there are folds."""
        n = self.counts_of(trial.fold)["train"]
        return trial.epochs * steps_per_epoch(n, trial.batch_size)

    @functools.cached_property
    def _counts_by_fold(self) -> list[dict[str, int]]:
        own = {name: (rows >= 0).sum(1).tolist() for name, rows in (self.folds or {}).items()}
        return [
            self.counts | {name: counts[fold] for name, counts in own.items()}
            for fold in range(self.n_folds)
        ]

    def arrays(self) -> dict[str, PyTree]:
        """The splits that exist, extras and folds, by name: what devices hold, and tasks get."""
        folds = {} if self.folds is None else {"folds": dict(self.folds)}
        return self.splits | dict(self.extra) | folds

    def apart(self, size: int) -> Self:
        """The same data, evaluated in batches of `size` examples, each of one split."""
        made = copy.copy(self)
        object.__setattr__(made, "evaluated_apart", size)
        return made

    def known_by(self, fingerprint: str) -> Self:
        """The same data with a known fingerprint, which saves reading all of them."""
        made = copy.copy(self)
        object.__setattr__(made, "_known", fingerprint)
        return made

    @property
    def nbytes(self) -> int:
        """The size of all splits, extras and folds, in bytes."""
        return sum(leaf.nbytes for _, leaf in named_leaves(self.arrays()))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any number, dtype, shape or class name."""
        if self._known is not None:
            return self._known
        parts: tuple[object, ...] = self.classes, structure_of(self.arrays())
        parts += () if self.train_sample is None else (self.train_sample,)
        sha256 = hashlib.sha256(repr(parts).encode())
        for path, leaf in named_leaves(self.arrays()):
            sha256.update(repr((path, leaf.dtype.name, leaf.shape)).encode())
            rows = np.atleast_1d(leaf)
            step = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
            for start in range(0, len(rows), step):
                part = np.ascontiguousarray(rows[start : start + step])
                sha256.update(part.reshape(-1).view(np.uint8).data)
        return sha256.hexdigest()[:16]
