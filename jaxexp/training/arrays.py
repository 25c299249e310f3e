"""Data from a user's own arrays: NumPy, pandas, polars, lists, anything with `__array__`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int
from jaxexp.training.checks import (
    BLOCK_BYTES,
    FLOAT32,
    INT32,
    check_label_shape,
    check_range,
    check_weight,
    check_whole,
    checked_names,
    convert,
    dtype_kind,
    first_twice,
    is_missing,
    named_leaves,
    plain_value,
    refuse,
    refuse_dtype,
    refuse_where,
    shape_like,
    some_names,
)
from jaxexp.training.data import Data, Examples
from jaxexp.training.trees import PyTree

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

WHOLE = 2**24  # up to it, float32 holds every whole number
_LABEL = "a label: drop the row, or name the class"


_ONE_KIND = "text; or labels of one kind, not objects: .astype(str), .astype(int)"


def arrays(
    X: object,
    y: object = None,
    *,
    validation: float | int | tuple[object, ...] | None = 0.2,
    test: float | int | tuple[object, ...] | None = None,
    seed: int = 0,
    weights: object = None,
    classes: Sequence[object] | str | None = None,
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
            names or, where names are text, whole numbers 0 to C - 1.
        name: where the data are from, in one line, for reports.

    Raises:
        UserError: what cannot be trained on or would give wrong numbers without a word: unequal
            lengths, values that are missing, not finite or beyond float32 or int32, columns that
            float32 all but makes constant (seconds since 1970, as whole numbers too), text in X,
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
    if not is_int(seed) or seed < 0:
        raise UserError(f"seed: {seed!r}, expected a whole number, at least 0")
    _check_same_index("y", y, X)
    _check_same_index("weights", weights, X)
    _check_same_index("weights", weights, y, like="y")

    x, features = checked_inputs("X", X)
    n = len(x)
    encoder = _Encoder(y, classes)
    target = encoder("y", y, n)
    weight = None if weights is None else _weight("weights", weights, n)

    asked = {"validation": validation, "test": test}
    sizes = {
        split: 0 if value is None or isinstance(value, tuple) else _size(split, value, n)
        for split, value in asked.items()
    }
    splits: dict[str, Examples] = {}
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
    for _, leaf in named_leaves(splits):
        leaf.setflags(write=False)
    return Data(
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        classes=encoder.names,
        features=features,
        attrs={"data": name},
    )


def _size(split: str, value: object, n: int) -> int:
    expected = "a fraction between 0 and 1, a number of rows, a tuple (X, y) or None"
    if isinstance(value, (float, np.floating)):
        if not 0 < value < 1:
            raise UserError(f"{split}: {plain_value(value)!r}, expected {expected}")
        return max(1, math.floor(float(value) * n + 0.5))
    if not is_int(value):
        text = repr(value) if np.isscalar(value) else f"a {type(value).__name__}"
        raise UserError(f"{split}: {text}, expected {expected}")
    if value < 1:
        raise UserError(
            f"{split}: {plain_value(value)!r}, expected at least 1 row, or None for none"
        )
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
    given: tuple[object, ...],
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
    _check_same_index(f"{split}.weight", weights, y, like="y")
    x, names = checked_inputs(f"{split}.x", X)
    if names is not None and features is not None and names != features:
        _refuse_columns(f"{split}.x", "X", names, features)
    if x.shape[1:] != train.x.shape[1:]:
        raise UserError(
            f"{split}.x: shape {x.shape}, expected {shape_like(train.x.shape)}, as in X"
        )  # before values are cast
    if x.dtype == np.int32 and train.x.dtype == np.float32:  # whole numbers by chance
        x = x.astype(np.float32)
    target = encoder(f"{split}.y", y, len(x))
    return Examples(
        x, target, None if weights is None else _weight(f"{split}.weight", weights, len(x))
    )


def inputs(X: object, features: tuple[str, ...] | None) -> np.ndarray:
    """Inputs to predict of, as `arrays` makes them of X; `features` are those trained on.

    Raises UserError for what `arrays` refuses, and columns that are others, or in another order.
    """
    x, names = checked_inputs("X", X, rounding=False)
    if names is not None and features is not None and names != features:
        _refuse_columns("X", "those trained on", names, features)
    return x


def _refuse_columns(
    where: str, like: str, names: tuple[str, ...], features: tuple[str, ...]
) -> None:
    missing = [name for name in features if name not in names]
    more = [name for name in names if name not in features]
    said = [f"{some_names(missing)} missing"] if missing else []
    said += [f"{some_names(more)} too many"] if more else []
    said = said or ["the order is another"]
    expected = f"the columns of {like}" if like == "X" else like
    raise UserError(f"{where}: not {expected}: {'; '.join(said)}, expected {some_names(features)}")


class _Raw(NamedTuple):
    """An array as it was given, with what a frame knew of it."""

    array: np.ndarray
    features: tuple[str, ...] | None = None
    categorical: bool = False


def checked_inputs(
    where: str, value: object, *, rounding: bool = True
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
    kind = dtype_kind(array.dtype)
    if kind not in "biuf" or categorical:
        refuse_dtype(where, array, features)
    if kind == "f":
        return _float32(where, array, features, rounding=rounding)
    if kind == "b":
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array.copy()
    return _int32(where, array, features, rounding=rounding)


def _float32(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None = None,
    *,
    rounding: bool = True,
) -> np.ndarray:
    refuse_where(where, ~np.isfinite(array), array, "a finite number", features)
    with np.errstate(over="ignore", under="ignore"):
        small = array.astype(np.float32)
    refuse_where(
        where, ~np.isfinite(small), array, f"at most {FLOAT32.max:.2g}, as float32 holds", features
    )
    wide = array.dtype.kind in "iuf" and array.dtype.itemsize >= 8
    if rounding and wide and array.ndim <= 2:
        _check_rounding(where, array, small, features)
    return small


def _int32(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None = None,
    *,
    rounding: bool = True,
) -> np.ndarray:
    beyond = (array > INT32.max) | (array < INT32.min)
    refuse_where(where, beyond, array, f"{INT32.min} to {INT32.max}, as int32 holds", features)
    small = array.astype(np.int32)
    # They stay whole, but nearly every model and loss computes with them as float32.
    if rounding and array.ndim <= 2 and (array.max() > WHOLE or array.min() < -WHOLE):
        _check_rounding(where, small, small.astype(np.float32), features)
    return small


def _check_rounding(
    where: str, array: np.ndarray, small: np.ndarray, features: tuple[str, ...] | None
) -> None:
    """Refuse columns whose differences float32 rounds away: times in seconds since 1970."""
    wide_NxF, small_NxF = array.reshape(len(array), -1), small.reshape(len(array), -1)
    step = max(1, BLOCK_BYTES // (8 * len(array)))
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


def _weight(where: str, value: object, n: int) -> np.ndarray:
    array, _, categorical = _raw(where, value)
    if categorical or dtype_kind(array.dtype) not in "biuf":
        refuse_dtype(where, array, None)
    if array.shape != (n,):
        raise UserError(f"{where}: shape {array.shape}, expected ({n},), one for each row of X")
    refuse_where(where, ~(np.isfinite(array) & (array >= 0)), array, "a finite number, at least 0")
    with np.errstate(over="ignore", under="ignore"):
        weight_N = array.astype(np.float32)
    lost_N = ~np.isfinite(weight_N) | ((weight_N == 0) & (array > 0))
    refuse_where(where, lost_N, array, "a number that float32 holds")
    check_weight(where, weight_N, n)
    return weight_N


class _Encoder:
    """Turns targets into numbers, in every split as y and `classes` say."""

    def __init__(self, y: object, classes: object) -> None:
        if isinstance(classes, str) and classes != "infer":
            raise UserError(f'classes: {classes!r}, expected "infer", names in order, or None')
        infer = isinstance(classes, str)
        self.names = (
            None if classes is None or infer else checked_names("classes", classes, least=2)
        )
        self.kind = "none"
        if y is None:
            if classes is not None:
                raise UserError(f"classes: {classes!r} without y, expected labels, or None")
            return
        raw = _raw("y", y)
        if raw.array.ndim == 0:
            raise UserError(f"y: a {type(y).__name__}, expected an array of shape (N,) or (N, ...)")
        kind = dtype_kind(raw.array.dtype)
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
            keys = list(self.names) if self.kind == "names" else _numbers_of(classes)
        self._codes = {key: code for code, key in enumerate(keys)}

    def __call__(self, where: str, y: object, n: int) -> np.ndarray | None:
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
        if raw.categorical or dtype_kind(raw.array.dtype) not in "iuf":
            refuse_dtype(where, raw.array, raw.features)
        if self.kind == "real":
            return _float32(where, raw.array, raw.features)
        check_label_shape(where, raw.array, one_hot=False)
        check_whole(where, raw.array)
        return _int32(where, raw.array)

    def _key(self, label: str | int | float) -> str | int:
        return str(label) if self.kind == "names" else int(label)

    def _labels(self, where: str, raw: _Raw) -> np.ndarray:
        """What the labels are, none missing, in an array that can be sorted."""
        labels, kind = raw.array, dtype_kind(raw.array.dtype)
        if self.kind == "numbers":
            if raw.categorical or kind not in "iuf":
                refuse_dtype(where, labels, raw.features)
            check_label_shape(where, labels)
            check_whole(where, labels)
            return labels
        if kind not in ("OUTbiuf" if raw.categorical else "OUTb"):
            refuse_dtype(where, labels, raw.features, expected="class labels, as in y")
        if labels.ndim != 1:
            raise UserError(
                f"{where}: labels of shape {labels.shape}, expected ({len(labels)},): "
                "give y.ravel(), or the one column of a frame that holds the classes"
            )
        if kind == "f":
            refuse_where(where, ~np.isfinite(labels), labels, "a label")
        if kind == "T":
            labels = labels.astype(object)
        if kind in "OT":
            allowed = (str, bool, int, float) if raw.categorical else str
            for row, label in enumerate(labels):
                if is_missing(label):
                    refuse(where, (row,), label, _LABEL)
            for row, label in enumerate(labels):
                if not isinstance(label, allowed):
                    refuse(where, (row,), label, _ONE_KIND)
            labels = np.array([str(label) for label in labels], object)
        elif kind == "U":
            refuse_where(where, labels == "", labels, _LABEL)
        return labels

    def _encode(self, where: str, labels: np.ndarray) -> np.ndarray:
        values, inverse = np.unique(labels, return_inverse=True)
        codes = np.array([self._codes.get(self._key(v), -1) for v in values.tolist()], np.int32)
        y = codes[inverse].reshape(labels.shape)
        if (y < 0).any():
            assert self.names is not None
            if self.kind == "numbers" and self._codes == {i: i for i in range(len(self.names))}:
                check_range(where, labels, len(self.names))
            hint = ""
            if self.kind == "numbers" and labels.min() >= 0 and labels.max() < len(self.names):
                hint = "; if labels are positions, give `classes` as text"
            refuse_where(where, y < 0, labels, f"one of {some_names(self.names)}{hint}")
        return y

    def check_all_occur(self, y: np.ndarray) -> None:
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


def _numbers_of(classes: object) -> list[str | int]:
    """The labels, as numbers, of classes in order: names that are numbers, or positions of text."""
    names = list(cast("Sequence[object]", classes))
    if any(isinstance(name, str) for name in names):
        return list(range(len(names)))
    return [int(cast(int, name)) for name in names]


def _raw(where: str, value: object) -> _Raw:
    """What a user gave, as NumPy arrays: perhaps of text or objects, and perhaps their memory."""
    roots = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if "scipy" in roots and hasattr(value, "toarray"):
        raise UserError(f"{where}: a sparse {type(value).__name__}, expected {where}.toarray()")
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(
            f"{where}: a masked array, expected a plain one: drop what is masked, or fill it "
            f"with {where}.filled(...)"
        )
    if isinstance(value, (list, tuple)):
        _check_unmasked(where, value)
    if roots & {"pandas", "polars"}:
        if type(value).__name__ == "LazyFrame":
            raise UserError(f"{where}: a LazyFrame, expected {where}.collect()")
        if hasattr(value, "columns"):
            return _frame(where, cast("pd.DataFrame | pl.DataFrame", value))
        if hasattr(value, "to_numpy"):
            return _Raw(convert(where, value), None, _is_categorical(value))
    array = convert(where, value)
    if array.dtype.names is not None:
        raise UserError(
            f"{where}: a structured array of the fields {some_names(array.dtype.names)}, expected "
            "one number a column; a pandas or polars frame of it will do"
        )
    if array.dtype.kind in "US" and isinstance(value, (list, tuple)):
        _check_all_text(where, value, array.ndim)
    return _Raw(array)


def _check_unmasked(where: str, value: Sequence[object]) -> None:
    """Refuse a list with masked arrays: NumPy would take what is under their masks."""
    if not _has_masked(value):
        return
    for row, item in enumerate(value):
        if _has_masked([item]):
            raise UserError(
                f"{where}: row {row} is masked, or a masked array, expected a plain one: "
                "drop what is masked, or fill it with .filled(...)"
            )


def _has_masked(values: Sequence[object]) -> bool:
    """Whether a masked array is among them, at any depth."""
    kinds = set(map(type, values))  # few, of however many values
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        return True
    below = any(issubclass(kind, (list, tuple)) for kind in kinds)
    return below and any(_has_masked(each) for each in values if isinstance(each, (list, tuple)))


def _check_all_text(where: str, value: object, ndim: int) -> None:
    """NumPy makes text of the numbers beside text in a list."""
    for index in np.ndindex(*np.shape(np.asarray(value, object))[:ndim]):
        item: PyTree = value
        for i in index:
            item = item[i]
        if not isinstance(item, (str, bytes)):
            refuse(where, index, item, "text, as beside it, or numbers only")


def _frame(where: str, frame: "pd.DataFrame | pl.DataFrame") -> _Raw:
    """A data frame, column by column, so that each has its own dtype."""
    names = tuple(str(name) for name in frame.columns)
    if (twice := first_twice(names)) is not None:
        raise UserError(f"{where}: two columns {twice!r}, expected names that differ")
    series = [
        frame.iloc[:, i] if hasattr(frame, "iloc") else frame.to_series(i)
        for i in range(len(names))
    ]
    columns = [convert(where, each) for each in series]
    for name, column in zip(names, columns, strict=True):
        if column.ndim != 1:
            raise UserError(
                f"{where}: column {name!r} holds arrays of shape {column.shape[1:]}, expected one "
                "number a row"
            )
    if len(columns) == 1:  # of labels, perhaps
        return _Raw(columns[0][:, None], names, _is_categorical(series[0]))
    for i, column in enumerate(columns):
        if dtype_kind(column.dtype) not in "biuf" or _is_categorical(series[i]):
            refuse_dtype(where, column[:, None], (names[i],))
        if column.dtype == bool:
            columns[i] = column.astype(np.float32)
    if not columns:
        return _Raw(np.empty((len(frame), 0)), names)
    return _Raw(np.stack(columns, axis=1), names)


def _is_categorical(series: object) -> bool:
    return str(getattr(series, "dtype", "")) == "category"


def _check_same_index(where: str, value: object, other: object, *, like: str = "X") -> None:
    """Rows are matched by position: pandas indexes that say otherwise are a mistake."""
    index = getattr(value, "index", None)
    expected = getattr(other, "index", None)
    if index is None or expected is None:
        return
    if not (hasattr(index, "equals") and hasattr(expected, "equals")):
        return
    if len(index) == len(expected) and not index.equals(expected):
        differ = (i for i, (a, b) in enumerate(zip(index, expected, strict=True)) if a != b)
        row = next(differ, 0)
        raise UserError(
            f"{where}: row {row} has the index {plain_value(index[row])!r}, expected "
            f"{plain_value(expected[row])!r} as in {like}: align them with .loc[{like}.index], or "
            ".reset_index(drop=True) on both"
        )
