"""Labels as class numbers."""

import math
import unicodedata
from collections.abc import Sequence
from typing import cast

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.training.checks import (
    check_label_shape,
    check_range,
    check_whole,
    checked_names,
    dtype_kind,
    is_missing,
    refuse,
    refuse_dtype,
    refuse_where,
    some_names,
)
from jaxexp.training.numbers import to_float32, to_int32
from jaxexp.training.reading import ONE_KIND, Raw, read

_LABEL = "a label: drop the row, or name the class"


class Encoder:
    """Turns the targets of every split into numbers, as y and `classes` say."""

    def __init__(self, y: object, classes: object) -> None:
        """Take the names of the classes from `classes`, or else from y."""
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
        raw = read("y", y)
        if raw.array.ndim == 0:
            raise UserError(f"y: {type_of(y)}, expected an array of shape (N,) or (N, ...)")
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
            composed = [unicodedata.normalize("NFC", name) for name in self.names]
            bare = [name.strip() for name in composed]
            for i, name in enumerate(self.names):
                if (first := bare.index(bare[i])) != i:
                    other = self.names[first]
                    spaces = composed[i] != composed[first]
                    form = not spaces or name.strip() != other.strip()
                    how = ["spaces"] * spaces + ["how characters are written"] * form
                    ways = ["strip"] * spaces + ["normalize"] * form
                    raise UserError(
                        f"y: the labels {other!r} and {name!r} differ in {' and '.join(how)} alone,"
                        f" expected one class: {' and '.join(ways)} them, or give `classes`"
                    )
        else:
            keys = list(self.names) if self.kind == "names" else _numbers_of(classes)
        self._codes = {key: code for code, key in enumerate(keys)}

    def __call__(self, where: str, y: object, n: int) -> np.ndarray | None:
        """The targets as int32 or float32, n rows of them."""
        if (y is None) != (self.kind == "none"):
            expected = "targets, as y has" if y is None else "None, as y is"
            raise UserError(f"{where}: {'None' if y is None else 'targets'}, expected {expected}")
        if y is None:
            return None
        raw = read(where, y)
        if raw.array.ndim == 0 or len(raw.array) != n:
            rows = f"{len(raw.array)} rows" if raw.array.ndim else type_of(y)
            raise UserError(f"{where}: {rows}, expected {n}, as many as X has")
        if 0 in raw.array.shape:
            raise UserError(f"{where}: shape {raw.array.shape}, expected at least one column")
        if self.kind in ("names", "numbers"):
            return self._encode(where, self._labels(where, raw))
        if raw.categorical or dtype_kind(raw.array.dtype) not in "iuf":
            refuse_dtype(where, raw.array, raw.features)
        if self.kind == "real":
            return to_float32(where, raw.array, raw.features, raw.columns)
        check_label_shape(where, raw.array, one_hot=False)
        check_whole(where, raw.array)
        return to_int32(where, raw.array)

    def _key(self, label: str | int | float) -> str | int:
        return str(label) if self.kind == "names" else int(label)

    def _labels(self, where: str, raw: Raw) -> np.ndarray:
        """The labels in an array that can be sorted; refuses missing ones."""
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
            several = labels.ndim == 2 and labels.shape[1] > 1
            hint = (
                "for several labels of each example give y.astype('float32')"
                if several
                else ("give y.ravel(), or the one column of a frame that holds the classes")
            )
            raise UserError(
                f"{where}: labels of shape {labels.shape}, expected ({len(labels)},): {hint}"
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
                    refuse(where, (row,), label, ONE_KIND)
            texts = {label for label in labels if isinstance(label, str)}
            for row, label in enumerate(labels):
                if not isinstance(label, str) and str(label) in texts:
                    refuse(where, (row,), label, f"text, as {str(label)!r} is in other rows")
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


def _number_of(name: str) -> float:
    """The number that a name spells; NaN if it does not spell one."""
    try:
        return float({"true": "1", "false": "0"}.get(name.strip().lower(), name))
    except ValueError:
        return math.nan


def _numbers_of(classes: object) -> list[str | int]:
    """The numbers that label the classes, in order: names that are numbers, or places of text."""
    names = list(cast("Sequence[object]", classes))
    places = list[str | int](range(len(names)))
    if any(isinstance(name, str) for name in names):
        texts = list(map(str, names))
        numbers = list(map(_number_of, texts))
        if set(numbers) == set(places) and numbers != places:
            raise UserError(
                f"classes: {texts}, of labels that are whole numbers, may be their names or the "
                "names of classes 0, 1 …, expected numbers: give `classes` as numbers"
            )
        return places
    return [int(cast(int, name)) for name in names]
