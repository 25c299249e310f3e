"""Arrays, lists and frames as users give them, read without interpreting them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.training.checks import (
    convert,
    dtype_kind,
    first_twice,
    plain_value,
    refuse,
    refuse_dtype,
    some_names,
)
from jaxexp.training.trees import PyTree

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


ONE_KIND = "text; or labels of one kind, not objects: .astype(str), .astype(int)"


class Raw(NamedTuple):
    """An array as it was given, with what its frame knew about it."""

    array: np.ndarray
    features: tuple[str, ...] | None = None
    categorical: bool = False
    columns: Sequence[np.ndarray] = ()  # of a frame, before they were given a common dtype


def read(where: str, value: object) -> Raw:
    """What a user gave, as NumPy arrays, perhaps of text or objects, and perhaps not copied."""
    roots = _roots(value)
    if "scipy" in roots and hasattr(value, "toarray"):
        raise UserError(f"{where}: a sparse {type(value).__name__}, expected {where}.toarray()")
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(
            f"{where}: a masked array, expected a plain one: drop what is masked, or fill it "
            f"with {where}.filled(...)"
        )
    if isinstance(value, (list, tuple)):
        _check_unmasked(where, value)
    if "polars" in roots and type(value).__name__ == "LazyFrame":
        raise UserError(f"{where}: a LazyFrame, expected {where}.collect()")
    if (names := column_names(where, value)) is not None:
        return _frame(where, cast("pd.DataFrame | pl.DataFrame", value), names)
    array = convert(where, value)
    if array.dtype.names is not None:
        raise UserError(
            f"{where}: a structured array of the fields {some_names(array.dtype.names)}, expected "
            "one number a column; a pandas or polars frame of it will do"
        )
    if array.dtype.kind in "US" and isinstance(value, (list, tuple)):
        _check_all_text(where, value, array.ndim)
    return Raw(array, None, _is_categorical(value))


def _roots(value: object) -> set[str]:
    """The libraries that define its type and the bases of it."""
    return {base.__module__.partition(".")[0] for base in type(value).__mro__}


def column_names(where: str, value: PyTree) -> tuple[str, ...] | None:
    """The column names of a pandas or polars frame; None without names; refuses other frames."""
    roots = _roots(value)
    named = hasattr(value, "columns")
    if "xarray" in roots and getattr(value, "ndim", 0) == 2:
        named = value.dims[1] in getattr(value, "coords", ())
    if not named:
        return None
    if not roots & {"pandas", "polars"}:
        raise UserError(
            f"{where}: {type_of(value)} with names of columns, expected a frame of pandas or "
            f"polars, such as {where}.to_pandas()"
        )
    names = tuple(str(name) for name in value.columns)
    if (twice := first_twice(names)) is not None:
        raise UserError(f"{where}: two columns {twice!r}, expected names that differ")
    return names


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
    """Refuse a list of text and numbers: NumPy would turn the numbers into text."""
    for index in np.ndindex(*np.shape(np.asarray(value, object))[:ndim]):
        item: PyTree = value
        for i in index:
            item = item[i]
        if not isinstance(item, (str, bytes)):
            refuse(where, index, item, "text, as beside it, or numbers only")


def _frame(where: str, frame: "pd.DataFrame | pl.DataFrame", names: tuple[str, ...]) -> Raw:
    """A data frame, column by column, so that each has its own dtype."""
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
    if len(columns) == 1:  # perhaps of labels
        return Raw(columns[0][:, None], names, _is_categorical(series[0]))
    for i, column in enumerate(columns):
        if dtype_kind(column.dtype) not in "biuf" or _is_categorical(series[i]):
            refuse_dtype(where, column[:, None], (names[i],))
        if column.dtype == bool:
            columns[i] = column.astype(np.float32)
    if not columns:
        return Raw(np.empty((len(frame), 0)), names)
    return Raw(np.stack(columns, axis=1), names, columns=columns)


def _is_categorical(series: object) -> bool:
    return str(getattr(series, "dtype", "")) == "category"


def check_same_index(where: str, value: object, other: object, *, like: str = "X") -> None:
    """Refuse pandas indexes that differ: rows are matched by position."""
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
