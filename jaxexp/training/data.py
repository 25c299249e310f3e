"""Examples from a user's own arrays, checked at once: nothing that would train to a wrong number.

Only NumPy is imported here. Data frames and tensors are known by their type's module, so that
neither pandas, polars, torch nor JAX is needed. Rows and columns count from 0 in every message.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxexp.base.errors import UserError

SPLITS = ("train", "validation", "test")
_INT32, _FLOAT32 = np.iinfo(np.int32), np.finfo(np.float32)
_BLOCK_BYTES = 16 << 20  # at a time, so that large arrays are never copied whole

_LABEL = "a label: drop the row, or name the class"
_ONE_KIND = "text; or labels of one kind, not objects: .astype(str), .astype(int)"


class Examples(NamedTuple):
    """Inputs, targets and weights of N examples: the first axis of every array.

    >>> Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32)).weight is None
    True
    """

    x: Any
    """Inputs, (N, ...)."""
    y: Any
    """Targets, (N,) or (N, ...), or None where there are none."""
    weight: Any = None
    """(N,), what each example counts in a mean, at least 0; None: all the same."""


@dataclass(frozen=True, eq=False)
class Data:
    """What a task trains on: a training split, perhaps others, and what the arrays mean.

    A split is an `Examples`, or any tree of tuples, named tuples, lists, dicts and None whose
    leaves are arrays with one row per example: (N, ...). All splits have the same structure, the
    same dtypes and, but for N, the same shapes. `jx.arrays` makes one from X and y, and copies
    them; by hand, arrays are not copied, since they may be mapped from disk: what changes them
    later changes the data.

    Args:
        train: the split to train on.
        validation: another one, or None.
        test: another one, or None.
        classes: the names of the classes 0 to C - 1, or None if the targets are no classes.
        features: the names of the columns of `x`, or None.
        extra: named trees of arrays of any shape, placed on devices beside the examples.
        coords: name -> (dimensions, array), coordinates of the dataset of results.
        attrs: attributes of the dataset of results; `attrs["data"]` says in one line where the
            data are from.

    Raises:
        UserError: something is empty, unequal, not finite, not a number or out of range; the
            message names the array ("validation.x"), the row, the value and what was expected.

    >>> x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 1], np.int32)
    >>> data = Data(Examples(x, y), validation=Examples(x[:2], y[:2]), classes=("no", "yes"))
    >>> data.counts, data.nbytes
    ({'train': 3, 'validation': 2}, 60)
    """

    train: Any
    validation: Any = None
    test: Any = None
    classes: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    coords: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything; leaves become read-only NumPy arrays."""
        put = functools.partial(object.__setattr__, self)
        for name in ("extra", "coords", "attrs"):
            mapping = getattr(self, name)
            if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
                raise UserError(f"{name}: {mapping!r}, expected a dict whose keys are strings")
            put(name, dict(mapping))
        for name, least in (("classes", 2), ("features", 1)):
            if getattr(self, name) is not None:
                put(name, _names(name, getattr(self, name), least))
        for name in set(self.extra) & set(SPLITS):
            raise UserError(f"extra: {name!r} is the name of a split, expected another name")
        for name, coordinate in self.coords.items():
            _check_coordinate(name, coordinate)

        if self.train is None:
            raise UserError("train: None, expected examples to train on")
        for name in SPLITS:
            if (split := getattr(self, name)) is not None:
                put(name, _map(functools.partial(_leaf, rows=True), split, name))
                _check_rows(name, getattr(self, name))
                if name != "train":
                    _check_alike(name, getattr(self, name), self.train)
                if isinstance(split, Examples):
                    self._check_examples(name, getattr(self, name))
        put(
            "extra",
            {
                name: _map(functools.partial(_leaf, rows=False), tree, name)
                for name, tree in self.extra.items()
            },
        )

    def __repr__(self) -> str:
        """In one line, without the numbers."""
        parts = [f"{name}: {_count(n, 'example')}" for name, n in self.counts.items()]
        parts += [_count(len(self.features), "feature")] if self.features else []
        parts += [_count(len(self.classes), "class", "classes")] if self.classes else []
        return f"Data({', '.join(parts + list(self.extra))})"

    def _check_examples(self, name: str, examples: Examples) -> None:
        x, y, weight = examples
        columns = x.shape[1] if isinstance(x, np.ndarray) and x.ndim == 2 else None
        if self.features and columns not in (None, len(self.features)):
            raise UserError(
                f"features: {len(self.features)} names, expected {columns}, one for each column of "
                f"{name}.x"
            )
        if self.classes and isinstance(y, np.ndarray) and y.dtype.kind in "iu":
            _check_label_shape(f"{name}.y", y)
            _check_range(f"{name}.y", y, len(self.classes))
        if weight is not None:
            _check_weight(f"{name}.weight", weight, _length(examples))

    @property
    def splits(self) -> dict[str, Any]:
        """The splits that exist, of train, validation and test, in this order."""
        return {name: split for name in SPLITS if (split := getattr(self, name)) is not None}

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples N of each split."""
        return {name: _length(split) for name, split in self.splits.items()}

    def arrays(self) -> dict[str, Any]:
        """The splits that exist and the extras, by name: what devices hold and tasks are given."""
        return self.splits | dict(self.extra)

    @property
    def nbytes(self) -> int:
        """Of all splits and extras, in bytes."""
        return sum(leaf.nbytes for _, leaf in _leaves(self.arrays()))

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that are others where any number, dtype, shape or class name is another."""
        sha256 = hashlib.sha256(repr((self.classes, _structure(self.arrays()))).encode())
        for path, leaf in _leaves(self.arrays()):
            sha256.update(repr((path, leaf.dtype.name, leaf.shape)).encode())
            rows = np.atleast_1d(leaf)
            step = max(1, _BLOCK_BYTES // max(1, rows[:1].nbytes))
            for start in range(0, len(rows), step):
                part = np.ascontiguousarray(rows[start : start + step])
                sha256.update(part.reshape(-1).view(np.uint8).data)
        return sha256.hexdigest()[:16]


def arrays(
    X: Any,
    y: Any = None,
    *,
    validation: float | int | tuple[Any, ...] | None = 0.2,
    test: float | int | tuple[Any, ...] | None = None,
    seed: int = 0,
    weights: Any = None,
    classes: Sequence[Any] | str | None = None,
    name: str = "arrays",
) -> Data:
    """Data from a user's own arrays, checked and copied; what is returned is read-only.

    X, y and weights are NumPy arrays, lists, pandas or polars frames and series, or anything that
    converts to a NumPy array (tensors of torch, JAX arrays).

    *Splits.* `validation` and `test` are a fraction of all N rows (rounded to the nearest, at
    least one), a whole number of rows, a split of its own as (X, y) or (X, y, weights), or None.
    They are drawn without stratification from `numpy.random.default_rng(seed).permutation(N)`:
    test takes its first rows, validation its last, and each split keeps the order of X. So the
    test rows are the same whatever validation is, the other way round, and whatever else is given.

    *Targets.* Text, bools and pandas categoricals are classes: int32 from 0 to C - 1 in the sorted
    order of the names, which `classes` of the result holds. Categories without an example are left
    out, and the order of an ordered categorical is not kept: give `classes` for another order.
    Whole numbers stay as they are, as int32 and without classes; with `classes="infer"` their
    distinct values are numbered in rising order. Other numbers become float32.
    Splits of one's own use the classes of y. Every class needs an example in the training split.

    *Inputs* may have any rank from 2. Floats and bools become float32, uint8 stays uint8, and
    other whole numbers become int32; the names of a frame's columns become `features`.

    Args:
        X: inputs, (N, F) or (N, ...).
        y: targets, (N,) or (N, ...), or None.
        validation: which examples to choose hyperparameters by.
        test: which examples to judge the choice by.
        seed: of the drawn splits, at least 0.
        weights: (N,), what each row counts in means, at least 0. Where one split has weights,
            rows of the others count 1 each.
        classes: None; "infer"; or the names of the classes in order, for labels that are these
            names or whole numbers 0 to C - 1.
        name: where the data are from, in one line, for reports.

    Raises:
        UserError: what cannot be trained on or would give wrong numbers without a word: unequal
            lengths, values that are missing, not finite or beyond float32 or int32, text in X,
            labels that are out of range or of shape (N, 1), fewer than 2 classes, columns that
            differ between splits, sparse or masked arrays, empty splits. The message names
            the argument, the row and column, the value and what was expected.

    >>> data = arrays([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], ["b", "a", "b", "a"],
    ...               validation=1, name="four corners")
    >>> data
    Data(train: 3 examples, validation: 1 example, 2 classes)
    >>> data.classes, data.train.x.dtype.name, data.train.y.dtype.name
    (('a', 'b'), 'float32', 'int32')
    """
    if not isinstance(name, str) or not name.strip() or len(name.splitlines()) > 1:
        raise UserError(
            f"name: {name!r}, expected a line of text that says where the data are from"
        )
    if not _is_int(seed) or seed < 0:
        raise UserError(f"seed: {seed!r}, expected a whole number, at least 0")
    _check_same_index("y", y, X)
    _check_same_index("weights", weights, X)

    x, features = _inputs("X", X)
    n = len(x)
    encoder = _Encoder(y, classes)
    target = encoder("y", y, n)
    weight = None if weights is None else _weight("weights", weights, n)

    asked = {"validation": validation, "test": test}
    sizes = {
        split: 0 if value is None or isinstance(value, tuple) else _size(split, value, n)
        for split, value in asked.items()
    }
    splits: dict[str, Any] = {}
    for split, rows in _draw(n, sizes, seed).items():
        splits[split] = Examples(*(None if a is None else a[rows] for a in (x, target, weight)))
    for split, value in asked.items():
        if isinstance(value, tuple):
            splits[split] = _explicit(split, value, splits["train"], features, encoder)
    if any(examples.weight is not None for examples in splits.values()):
        for split, examples in splits.items():
            if examples.weight is None:
                ones = np.ones(len(examples.x), np.float32)
                splits[split] = examples._replace(weight=ones)
    encoder.check_all_occur(splits["train"].y)
    for _, leaf in _leaves(splits):
        leaf.setflags(write=False)
    return Data(
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        classes=encoder.names,
        features=features,
        attrs={"data": name},
    )


# Splits


def _size(split: str, value: Any, n: int) -> int:
    expected = "a fraction between 0 and 1, a number of rows, a tuple (X, y) or None"
    if isinstance(value, (float, np.floating)):
        if not 0 < value < 1:
            raise UserError(f"{split}: {_plain(value)!r}, expected {expected}")
        return max(1, math.floor(float(value) * n + 0.5))
    if not _is_int(value):
        text = repr(value) if np.isscalar(value) else f"a {type(value).__name__}"
        raise UserError(f"{split}: {text}, expected {expected}")
    if value < 1:
        raise UserError(f"{split}: {_plain(value)!r}, expected at least 1 row, or None for none")
    return int(value)


def _draw(n: int, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Which rows are in which split, rising; splits of size 0 are left out."""
    n_validation, n_test = sizes["validation"], sizes["test"]
    if n_validation + n_test >= n:
        raise UserError(
            f"validation, test: {n_validation} and {n_test} of the {n} rows of X, "
            "expected some that are left to train on"
        )
    order_N = np.random.default_rng(seed).permutation(n)
    drawn = {
        "train": order_N[n_test : n - n_validation],
        "validation": order_N[n - n_validation :],
        "test": order_N[:n_test],
    }
    return {split: np.sort(rows) for split, rows in drawn.items() if len(rows)}


def _explicit(
    split: str,
    given: tuple[Any, ...],
    train: Examples,
    features: tuple[str, ...] | None,
    encoder: "_Encoder",
) -> Examples:
    """A split of the user's own, as the training set is."""
    if len(given) not in (2, 3):
        raise UserError(f"{split}: a tuple of {len(given)}, expected (X, y) or (X, y, weights)")
    X, y, weights = (*given, None)[:3]
    _check_same_index(f"{split}.y", y, X)
    _check_same_index(f"{split}.weight", weights, X)
    x, names = _inputs(f"{split}.x", X)
    if names is not None and features is not None and names != features:
        _refuse_columns(f"{split}.x", "X", names, features)
    if x.shape[1:] != train.x.shape[1:]:
        raise UserError(
            f"{split}.x: shape {x.shape}, expected {_like(train.x.shape)}, as in X"
        )  # before values are cast
    if x.dtype == np.int32 and train.x.dtype == np.float32:  # whole numbers by chance
        x = x.astype(np.float32)
    target = encoder(f"{split}.y", y, len(x))
    return Examples(
        x, target, None if weights is None else _weight(f"{split}.weight", weights, len(x))
    )


def inputs(X: Any, features: tuple[str, ...] | None) -> np.ndarray:
    """Inputs to predict of, as `arrays` makes them of X; `features` are those trained on.

    Raises UserError for what `arrays` refuses, and columns that are others, or in another order.
    """
    x, names = _inputs("X", X, rounding=False)
    if names is not None and features is not None and names != features:
        _refuse_columns("X", "those trained on", names, features)
    return x


def _refuse_columns(
    where: str, like: str, names: tuple[str, ...], features: tuple[str, ...]
) -> None:
    missing = [name for name in features if name not in names]
    more = [name for name in names if name not in features]
    said = [f"{_some(missing)} missing"] if missing else []
    said += [f"{_some(more)} too many"] if more else []
    said = said or ["the order is another"]
    expected = f"the columns of {like}" if like == "X" else like
    raise UserError(f"{where}: not {expected}: {'; '.join(said)}, expected {_some(features)}")


# Inputs


class _Raw(NamedTuple):
    """An array as it was given, with what a frame knew of it."""

    array: np.ndarray
    features: tuple[str, ...] | None = None
    categorical: bool = False


def _inputs(
    where: str, value: Any, *, rounding: bool = True
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """X as float32, int32 or uint8, never the user's own memory, and the names of its columns."""
    array, features, categorical = _raw(where, value)
    if array.ndim == 0:
        raise UserError(
            f"{where}: a {type(value).__name__}, expected an array of shape (N, F) or (N, ...); "
            "for several inputs, jx.Data(train=...) takes trees of arrays"
        )
    if array.ndim == 1:
        way = "X.to_frame()" if hasattr(value, "to_frame") else "X[:, None]"
        raise UserError(
            f"{where}: shape {array.shape}, expected (N, F) or (N, ...); "
            f"if each row is one number, give {way}"
        )
    if len(array) == 0 or 0 in array.shape:
        raise UserError(f"{where}: shape {array.shape}, expected at least one row and one column")
    numbers = _numbers(where, array, features, categorical=categorical, rounding=rounding)
    return numbers, features


def _numbers(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None = None,
    *,
    categorical: bool = False,
    rounding: bool = True,
) -> np.ndarray:
    """As float32, int32 or uint8, copied; refuses what these do not hold."""
    kind = _kind(array.dtype)
    if kind not in "biuf" or categorical:
        _refuse_dtype(where, array, features)
    if kind == "f":
        return _float32(where, array, features, rounding=rounding)
    if kind == "b":
        return array.astype(np.float32)
    return array.copy() if array.dtype == np.uint8 else _int32(where, array, features)


def _float32(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None = None,
    *,
    rounding: bool = True,
) -> np.ndarray:
    _refuse_where(where, ~np.isfinite(array), array, "a finite number", features)
    with np.errstate(over="ignore", under="ignore"):
        small = array.astype(np.float32)
    _refuse_where(
        where, ~np.isfinite(small), array, f"at most {_FLOAT32.max:.2g}, as float32 holds", features
    )
    wide = array.dtype.kind in "iuf" and array.dtype.itemsize >= 8
    if rounding and wide and array.ndim <= 2:
        _check_rounding(where, array, small, features)
    return small


def _int32(where: str, array: np.ndarray, features: tuple[str, ...] | None = None) -> np.ndarray:
    beyond = (array > _INT32.max) | (array < _INT32.min)
    _refuse_where(where, beyond, array, f"{_INT32.min} to {_INT32.max}, as int32 holds", features)
    return array.astype(np.int32)


def _check_rounding(
    where: str, array: np.ndarray, small: np.ndarray, features: tuple[str, ...] | None
) -> None:
    """Refuse columns whose differences float32 rounds away: times in seconds since 1970."""
    wide_NxF, small_NxF = array.reshape(len(array), -1), small.reshape(len(array), -1)
    step = max(1, _BLOCK_BYTES // (8 * len(array)))
    for start in range(0, wide_NxF.shape[1], step):
        wide = wide_NxF[:, start : start + step].astype(np.float64)
        spread_F, size_F = wide.std(0), np.abs(wide).max(0)
        lost_F = np.abs(wide - small_NxF[:, start : start + step]).max(0)
        # What varies by the rounding of float64 is a constant, and harmless.
        for i in np.flatnonzero((spread_F > 1e-12 * size_F) & (lost_F > 0.01 * spread_F)):
            place = ""
            if array.ndim == 2:
                place = f" column {features[start + i]!r}:" if features else f" column {start + i}:"
            raise UserError(
                f"{where}:{place} values up to {size_F[i]:.9g} that vary by only "
                f"{spread_F[i]:.3g} are all but the same in float32, expected values that it "
                "distinguishes: subtract their mean and divide by their standard deviation first"
            )


def _weight(where: str, value: Any, n: int) -> np.ndarray:
    array, _, categorical = _raw(where, value)
    if categorical or _kind(array.dtype) not in "biuf":
        _refuse_dtype(where, array, None)
    if array.shape != (n,):
        raise UserError(f"{where}: shape {array.shape}, expected ({n},), one for each row of X")
    _refuse_where(where, ~(np.isfinite(array) & (array >= 0)), array, "a finite number, at least 0")
    with np.errstate(over="ignore", under="ignore"):
        weight_N = array.astype(np.float32)
    lost_N = ~np.isfinite(weight_N) | ((weight_N < _FLOAT32.tiny) & (array > 0))
    _refuse_where(where, lost_N, array, "a number that float32 holds")
    if weight_N.sum(dtype=np.float64) > 1e-3 * _FLOAT32.max:  # losses are multiplied by them
        raise UserError(
            f"{where}: {weight_N.sum(dtype=np.float64):.3g} in all, expected sums that float32 "
            f"holds: divide by {weight_N.mean(dtype=np.float64):.3g}"
        )
    _check_weight(where, weight_N, n)
    return weight_N


# Targets


class _Encoder:
    """Turns targets into numbers, in every split as y and `classes` say."""

    def __init__(self, y: Any, classes: Any) -> None:
        if isinstance(classes, str) and classes != "infer":
            raise UserError(f'classes: {classes!r}, expected "infer", names in order, or None')
        infer = isinstance(classes, str)
        self.names = None if classes is None or infer else _names("classes", classes, least=2)
        self.kind = "none"
        if y is None:
            if classes is not None:
                raise UserError(f"classes: {classes!r} without y, expected labels, or None")
            return
        raw = _raw("y", y)
        if raw.array.ndim == 0:
            raise UserError(f"y: a {type(y).__name__}, expected an array of shape (N,) or (N, ...)")
        kind = _kind(raw.array.dtype)
        if raw.categorical or kind in "OUTb":
            self.kind = "names"
        elif classes is not None:
            self.kind = "numbers"
        else:  # numbers stay numbers
            self.kind = "whole" if kind in "iu" else "real"
            return
        labels = self._labels("y", raw)
        if self.names is None:
            keys = [self._key(value) for value in np.unique(labels).tolist()]
            if len(keys) == 1:
                raise UserError(f"y: every label is {keys[0]!r}, expected at least 2 classes")
            self.names = tuple(str(key) for key in keys)
            bare = [name.strip() for name in self.names]
            for i, name in enumerate(self.names):
                if bare.index(bare[i]) != i:
                    other = self.names[bare.index(bare[i])]
                    raise UserError(
                        f"y: the labels {other!r} and {name!r} differ in spaces alone, expected "
                        "one class: strip them, or give `classes`"
                    )
        else:
            keys = list(self.names) if self.kind == "names" else list(range(len(self.names)))
        self._codes = {key: code for code, key in enumerate(keys)}

    def __call__(self, where: str, y: Any, n: int) -> np.ndarray | None:
        """int32 or float32, one row for each of n."""
        if (y is None) != (self.kind == "none"):
            expected = "targets, as y has" if y is None else "None, as y is"
            raise UserError(f"{where}: {'None' if y is None else 'targets'}, expected {expected}")
        if y is None:
            return None
        raw = _raw(where, y)
        if raw.array.ndim == 0 or len(raw.array) != n:
            rows = f"{len(raw.array)} rows" if raw.array.ndim else f"a {type(y).__name__}"
            raise UserError(f"{where}: {rows}, expected {n}, as many as X has")
        if 0 in raw.array.shape:
            raise UserError(f"{where}: shape {raw.array.shape}, expected at least one column")
        if self.kind in ("names", "numbers"):
            return self._encode(where, self._labels(where, raw))
        if raw.categorical or _kind(raw.array.dtype) not in "iuf":
            _refuse_dtype(where, raw.array, raw.features)
        if self.kind == "real":
            return _float32(where, raw.array, raw.features)
        _check_label_shape(where, raw.array, one_hot=False)
        _check_whole(where, raw.array)
        return _int32(where, raw.array)

    def _key(self, label: Any) -> Any:
        return str(label) if self.kind == "names" else int(label)

    def _labels(self, where: str, raw: _Raw) -> np.ndarray:
        """What the labels are, none missing, in an array that can be sorted."""
        labels, kind = raw.array, _kind(raw.array.dtype)
        if self.kind == "numbers":
            if raw.categorical or kind not in "iuf":
                _refuse_dtype(where, labels, raw.features)
            _check_label_shape(where, labels)
            _check_whole(where, labels)
            return labels
        if kind not in ("OUTbiuf" if raw.categorical else "OUTb"):
            _refuse_dtype(where, labels, raw.features, expected="class labels, as in y")
        if labels.ndim != 1:
            raise UserError(
                f"{where}: labels of shape {labels.shape}, expected ({len(labels)},): "
                "give y.ravel(), or the one column of a frame that holds the classes"
            )
        if kind == "f":
            _refuse_where(where, ~np.isfinite(labels), labels, "a label")
        if kind == "T":
            labels = labels.astype(object)
        if kind in "OT":
            allowed = (str, bool, int, float) if raw.categorical else str
            for row, label in enumerate(labels):
                if _is_missing(label):
                    _refuse(where, (row,), label, _LABEL)
            for row, label in enumerate(labels):
                if not isinstance(label, allowed):
                    _refuse(where, (row,), label, _ONE_KIND)
            labels = np.array([str(label) for label in labels], object)
        elif kind == "U":
            _refuse_where(where, labels == "", labels, _LABEL)
        return labels

    def _encode(self, where: str, labels: np.ndarray) -> np.ndarray:
        values, inverse = np.unique(labels, return_inverse=True)
        codes = np.array([self._codes.get(self._key(v), -1) for v in values.tolist()], np.int32)
        y = codes[inverse].reshape(labels.shape)
        if (y < 0).any():
            assert self.names is not None
            if self.kind == "numbers" and self._codes == {i: i for i in range(len(self.names))}:
                _check_range(where, labels, len(self.names))
            _refuse_where(where, y < 0, labels, f"one of {_some(self.names)}")
        return y

    def check_all_occur(self, y: Any) -> None:
        """Refuse a training set that lacks a class: no model would learn it."""
        if self.kind not in ("names", "numbers"):
            return
        assert self.names is not None
        counts = np.bincount(y.ravel(), minlength=len(self.names))
        for name, count in zip(self.names, counts, strict=True):
            if count == 0:
                raise UserError(
                    f"y: class {name!r} has none of the {len(y)} examples of the training split, "
                    "expected every class there: take another seed, smaller splits, or give "
                    "splits of your own"
                )


def _check_whole(where: str, y: np.ndarray) -> None:
    if _kind(y.dtype) == "f":
        bad = ~np.isfinite(y)
        _refuse_where(where, bad | (y != np.floor(y)), y, "a whole number, the label of a class")


def _check_label_shape(where: str, y: np.ndarray, *, one_hot: bool = True) -> None:
    """Against (B,) predictions, (N, 1) broadcasts to all pairs; one column a class is no label."""
    if y.ndim == 2 and y.shape[1] == 1:
        raise UserError(
            f"{where}: whole numbers of shape {y.shape}, expected ({len(y)},): give y.ravel(), "
            "or y.astype(float) if they are amounts to predict"
        )
    if one_hot and y.ndim == 2 and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        raise UserError(
            f"{where}: one column for each class, shape {y.shape}, expected labels of shape "
            f"({len(y)},): give y.argmax(1)"
        )


def _check_range(where: str, y: np.ndarray, n_classes: int) -> None:
    hint = ""
    if y.min() == 1 and y.max() == n_classes:
        hint = f'; labels from 1 to {n_classes}: subtract 1, or let classes="infer" number them'
    expected = f"0 to {n_classes - 1} for {n_classes} classes{hint}"
    _refuse_where(where, (y < 0) | (y >= n_classes), y, expected)


def _check_weight(where: str, weight: Any, n: int) -> None:
    """Of a split: (N,), none negative, not all 0."""
    if not isinstance(weight, np.ndarray) or weight.shape != (n,) or weight.dtype.kind not in "fiu":
        shape = getattr(weight, "shape", None)
        raise UserError(f"{where}: shape {shape}, expected numbers of shape ({n},)")
    _refuse_where(where, ~(weight >= 0), weight, "at least 0")
    if not weight.any():
        raise UserError(f"{where}: all {n} are 0, expected one above 0")


# Arrays, as users have them


def _raw(where: str, value: Any) -> _Raw:
    """What a user gave, as NumPy arrays: perhaps of text or objects, and perhaps their memory."""
    roots = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if "scipy" in roots and hasattr(value, "toarray"):
        raise UserError(f"{where}: a sparse {type(value).__name__}, expected {where}.toarray()")
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(
            f"{where}: a masked array, expected a plain one: drop what is masked, or fill it "
            f"with {where}.filled(...)"
        )
    if roots & {"pandas", "polars"}:
        if type(value).__name__ == "LazyFrame":
            raise UserError(f"{where}: a LazyFrame, expected {where}.collect()")
        if hasattr(value, "columns"):
            return _frame(where, value)
        if hasattr(value, "to_numpy"):
            return _Raw(_convert(where, value), None, _is_categorical(value))
    array = _convert(where, value)
    if array.dtype.names is not None:
        raise UserError(
            f"{where}: a structured array with the fields {_some(array.dtype.names)}, expected "
            "one number a column; a pandas or polars frame of it will do"
        )
    if array.dtype.kind in "US" and isinstance(value, (list, tuple)):
        _check_all_text(where, value, array.ndim)
    return _Raw(array)


def _check_all_text(where: str, value: Any, ndim: int) -> None:
    """NumPy makes text of the numbers beside text in a list."""
    for index in np.ndindex(*np.shape(np.asarray(value, object))[:ndim]):
        item = value
        for i in index:
            item = item[i]
        if not isinstance(item, (str, bytes)):
            _refuse(where, index, item, "text, as beside it, or numbers only")


def _frame(where: str, frame: Any) -> _Raw:
    """A data frame, column by column, so that each has its own dtype."""
    names = tuple(str(name) for name in frame.columns)
    if (twice := _first_twice(names)) is not None:
        raise UserError(f"{where}: two columns {twice!r}, expected names that differ")
    pandas = hasattr(frame, "iloc")
    series = [frame.iloc[:, i] if pandas else frame.to_series(i) for i in range(len(names))]
    columns = [_convert(where, each) for each in series]
    for name, column in zip(names, columns, strict=True):
        if column.ndim != 1:
            raise UserError(
                f"{where}: column {name!r} holds arrays of shape {column.shape[1:]}, expected one "
                "number a row"
            )
    if len(columns) == 1:  # of labels, perhaps
        return _Raw(columns[0][:, None], names, _is_categorical(series[0]))
    for i, column in enumerate(columns):
        if _kind(column.dtype) not in "biuf" or _is_categorical(series[i]):
            _refuse_dtype(where, column[:, None], (names[i],))
        if column.dtype == bool:
            columns[i] = column.astype(np.float32)
    if not columns:
        return _Raw(np.empty((len(frame), 0)), names)
    return _Raw(np.stack(columns, axis=1), names)


def _is_categorical(series: Any) -> bool:
    return str(getattr(series, "dtype", "")) == "category"


def _convert(where: str, value: Any) -> np.ndarray:
    """To a NumPy array, by whatever way it has."""
    try:
        return value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
    except Exception as error:  # of any library
        reason = str(error).strip().splitlines()[0:1] or [type(error).__name__]
        if isinstance(value, (list, tuple)):
            reason = ["rows of different lengths, or of different kinds"]
        raise UserError(
            f"{where}: a {type(value).__name__} that does not convert to a NumPy array "
            f"({reason[0]}), expected numbers in rows of the same shape"
        ) from error


def _kind(dtype: np.dtype) -> str:
    """As NumPy's, where the small floats of JAX are floats, too."""
    small = dtype.kind == "V" and dtype.name.startswith(("bfloat", "float"))
    return "f" if small else dtype.kind


def _check_same_index(where: str, value: Any, X: Any) -> None:
    """Rows are matched by position: pandas indexes that say otherwise are a mistake."""
    index: Any = getattr(value, "index", None)
    expected: Any = getattr(X, "index", None)
    if not (hasattr(index, "equals") and hasattr(expected, "equals")):
        return
    if len(index) == len(expected) and not index.equals(expected):
        differ = (i for i, (a, b) in enumerate(zip(index, expected, strict=True)) if a != b)
        row = next(differ, 0)
        raise UserError(
            f"{where}: row {row} has the index {_plain(index[row])!r}, expected "
            f"{_plain(expected[row])!r} as in X: align them with .loc[X.index], or "
            ".reset_index(drop=True) on both"
        )


# Trees of arrays, without JAX


def _children(tree: Any, path: str) -> list[tuple[str, Any]] | None:
    """The paths and values below a node; None for a leaf. Dicts count in the order of their keys.

    >>> _children(Examples(1, 2), "train")
    [('train.x', 1), ('train.y', 2), ('train.weight', None)]
    """
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise UserError(f"{path}: a dict with the keys {list(tree)}, expected strings")
        return [(f"{path}.{key}", tree[key]) for key in sorted(tree)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return [(f"{path}.{key}", child) for key, child in zip(tree._fields, tree, strict=True)]
    if isinstance(tree, (tuple, list)):
        return [(f"{path}[{i}]", child) for i, child in enumerate(tree)]
    return None


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    children = _children(tree, path)
    if children is None:
        yield path, tree
    for below, child in children or []:
        yield from _leaves(child, below)


def _map(change: Callable[[str, Any], Any], tree: Any, path: str) -> Any:
    """The same tree of changed leaves."""
    children = _children(tree, path)
    if children is None:
        return change(path, tree)
    if tree is None:
        return None
    changed = [_map(change, child, below) for below, child in children]
    if isinstance(tree, Mapping):
        return dict(zip(sorted(tree), changed, strict=True))
    return type(tree)(*changed) if hasattr(tree, "_fields") else type(tree)(changed)


def _structure(tree: Any) -> str:
    """In words: Examples(x=*, y=*, weight=None)."""
    children = _children(tree, "")
    if children is None or tree is None:
        return "None" if tree is None else "*"
    below = [_structure(child) for _, child in children]
    if isinstance(tree, Mapping):
        parts = [f"{key}: {child}" for key, child in zip(sorted(tree), below, strict=True)]
        return "{" + ", ".join(parts) + "}"
    if hasattr(tree, "_fields"):
        parts = [f"{key}={child}" for key, child in zip(tree._fields, below, strict=True)]
        return f"{type(tree).__name__}({', '.join(parts)})"
    return f"{type(tree).__name__}({', '.join(below)})"


def _leaf(where: str, value: Any, *, rows: bool) -> np.ndarray:
    """A read-only view of an array; `rows`: of examples, which are finite and have a first axis."""
    number = isinstance(value, (bool, int, float, np.generic))
    if isinstance(value, np.ma.MaskedArray) or (number and rows):
        raise UserError(f"{where}: a {type(value).__name__}, expected a plain array (N, ...)")
    if not number and not hasattr(value, "__array__"):
        raise UserError(
            f"{where}: a {type(value).__name__}, expected an array, or tuples, named tuples, lists "
            "or dicts of arrays"
        )
    array = _convert(where, value)
    kind = _kind(array.dtype)
    if kind not in "biufc":
        _refuse_dtype(where, array, None)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if rows and array.ndim == 0:
        raise UserError(f"{where}: shape (), expected (N, ...)")
    if kind in "fc" and rows:
        _refuse_where(where, ~np.isfinite(array), array, "a finite number")
    if kind in "iu" and array.dtype.itemsize >= 4 and array.dtype != np.int32:
        top = _INT32.max if kind == "i" else np.iinfo(np.uint32).max
        beyond = (array > top) | (array < _INT32.min)
        _refuse_where(where, beyond, array, f"at most {top}: JAX computes with 32 bits")
    if kind == "f" and array.dtype.itemsize >= 8:
        beyond = np.isfinite(array) & (np.abs(array) > _FLOAT32.max)
        _refuse_where(where, beyond, array, f"at most {_FLOAT32.max:.2g}, as float32 holds")
    view = array.view(np.ndarray)
    view.setflags(write=False)
    return view


def _length(split: Any) -> int:
    return len(next(leaf for _, leaf in _leaves(split)))


def _check_rows(name: str, split: Any) -> None:
    """The same number of rows in every leaf, at least one."""
    first = None
    for path, leaf in _leaves(split, name):
        if len(leaf) == 0:
            raise UserError(f"{path}: shape {leaf.shape}, expected at least one example")
        first = first or (path, len(leaf))
        if len(leaf) != first[1]:
            raise UserError(f"{path}: {len(leaf)} rows, expected {first[1]}, as in {first[0]}")
    if first is None:
        raise UserError(f"{name}: no array in it, expected examples")


def _check_alike(name: str, split: Any, train: Any) -> None:
    """The structure, shapes and dtypes of the training split."""
    if _structure(split) != _structure(train):
        raise UserError(f"{name}: {_structure(split)}, expected {_structure(train)}, as in train")
    for (path, leaf), (_, like) in zip(_leaves(split, name), _leaves(train), strict=True):
        if leaf.shape[1:] != like.shape[1:]:
            raise UserError(f"{path}: shape {leaf.shape}, expected {_like(like.shape)} as in train")
        if leaf.dtype != like.dtype:
            raise UserError(f"{path}: {leaf.dtype} numbers, expected {like.dtype} as in train")


def _check_coordinate(name: str, coordinate: Any) -> None:
    expected = "(dimensions, array), one dimension for each axis"
    if not isinstance(coordinate, tuple) or len(coordinate) != 2:
        raise UserError(f"coords: {name!r} is {coordinate!r}, expected {expected}")
    dims = (coordinate[0],) if isinstance(coordinate[0], str) else tuple(coordinate[0])
    if len(dims) != np.ndim(coordinate[1]):
        shape = np.shape(coordinate[1])
        raise UserError(f"coords: {name!r} has {dims} for shape {shape}, expected {expected}")


# Words for messages


def _names(where: str, value: Any, least: int) -> tuple[str, ...]:
    """Names of classes or columns, as strings that differ."""
    value = value.to_numpy() if hasattr(value, "to_numpy") else value
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        raise UserError(f"{where}: {value!r}, expected a list of names")
    names = tuple(str(name) for name in value)
    for i, name in enumerate(names):
        if not isinstance(value[i], (str, int, np.integer)) or not name:
            raise UserError(f"{where}: {_plain(value[i])!r}, expected a name")
    if (twice := _first_twice(names)) is not None:
        raise UserError(f"{where}: {twice!r} twice, expected names that differ")
    if len(names) < least:
        raise UserError(f"{where}: {list(names)}, expected at least {least} names")
    return names


def _count(n: int, one: str, many: str = "") -> str:
    """A number of things.

    >>> _count(1, "feature"), _count(2, "class", "classes")
    ('1 feature', '2 classes')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _first_twice(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _some(names: Sequence[str]) -> str:
    """The first few names.

    >>> _some(["a", "b"]), _some([str(n) for n in range(100)])
    ("'a', 'b'", "'0', '1', '2', '3', '4', '5', … (100)")
    """
    few = ", ".join(repr(name) for name in names[:6])
    return few if len(names) <= 6 else f"{few}, … ({len(names)})"


def _like(shape: tuple[int, ...]) -> str:
    """A shape with any number of rows.

    >>> _like((5, 2)), _like((5,))
    ('(N, 2)', '(N,)')
    """
    return f"(N, {', '.join(map(str, shape[1:]))})" if len(shape) > 1 else "(N,)"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_missing(value: Any) -> bool:
    """None, NaN, pandas' NA and NaT, or text that is empty."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (str, float)) and (value == "" or value != value)


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _refuse(
    where: str,
    index: tuple[int, ...],
    value: Any,
    expected: str,
    features: tuple[str, ...] | None = None,
) -> None:
    place = f"row {index[0]}"
    if len(index) == 2:
        place += f", column {features[index[1]]!r}" if features else f", column {index[1]}"
    elif len(index) > 2:
        place += f", position {[int(i) for i in index[1:]]}"
    raise UserError(f"{where}: {place} is {_plain(value)!r}, expected {expected}")


def _refuse_where(
    where: str,
    bad: np.ndarray,
    array: np.ndarray,
    expected: str,
    features: tuple[str, ...] | None = None,
) -> None:
    """Name the first value that is bad, if one is."""
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        _refuse(where, index, array[index], expected, features)


def _refuse_dtype(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None,
    expected: str = "numbers",
) -> None:
    """Text, dates, complex numbers, objects, categories: name the column and a value."""
    ways = {"S": "text: .astype(str)", "M": "numbers: days since a date", "O": "numbers only"}
    expected = ways.get(array.dtype.kind, expected) if expected == "numbers" else expected
    if array.dtype.kind == "O":  # the first that is no number
        for index in np.ndindex(array.shape):
            if not isinstance(array[index], (bool, int, float, np.number)):
                _refuse(where, index, array[index], expected, features)
    if array.size == 0 or array.ndim == 0:
        raise UserError(f"{where}: of dtype {array.dtype}, expected {expected}")
    index = (0,) * array.ndim
    hint = " (a category: give one column of 0 and 1 for each)" if array.dtype.kind in "iuf" else ""
    if array.dtype.kind in "OUT":
        hint = " (.astype(float) if they are numbers; otherwise encode them as such)"
    _refuse(where, index, array[index], f"{expected}, not {array.dtype}{hint}", features)
