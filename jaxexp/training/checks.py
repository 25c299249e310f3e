"""Checks of arrays and trees of arrays: every refusal names the array, the row and the value."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.training.trees import PyTree

INT32 = np.iinfo(np.int32)


FLOAT32 = np.finfo(np.float32)


# What results say themselves, beside the versions of libraries: no names for attributes of data.
OWN_ATTRIBUTES = frozenset({
    "averaged_folds", "averaged_seeds", "axes", "base", "best_epochs", "classes", "compile_seconds",
    "conditions", "data_fingerprint", "device", "devices", "examples", "failed_trials", "features",
    "flax", "identity", "jax", "jaxexp", "jaxlib", "machine", "metrics", "nodes", "notes", "numpy",
    "optax", "plan", "plan_id", "plan_trials", "precision", "programs", "python", "quick",
    "ranked_by", "resumed", "seeds", "settings", "started", "stopping", "sweep", "sweep_id",
    "traced", "train_evaluation", "train_seconds", "trials", "wall_seconds",
})  # fmt: skip


# What HDF5 and, where a file is opened, xarray take for their own.
FORMAT_ATTRIBUTES = frozenset({"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "coordinates"})


BLOCK_BYTES = 16 << 20  # at a time, so that large arrays are never copied whole


def is_laid_out(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether an array has the shape that is wanted, or is flat, the last axis fastest.

    No other shape will do, even of as many numbers: a transposed array would be scrambled.
    """
    return tuple(shape) in (tuple(wanted), (math.prod(wanted),))


def check_whole(where: str, y: np.ndarray) -> None:
    """Raise UserError for floats that are no whole numbers."""
    if dtype_kind(y.dtype) == "f":
        bad = ~np.isfinite(y)
        refuse_where(where, bad | (y != np.floor(y)), y, "a whole number, the label of a class")


def check_label_shape(where: str, y: np.ndarray, *, one_hot: bool = True) -> None:
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


def check_range(where: str, y: np.ndarray, n_classes: int) -> None:
    """Raise UserError for labels that are not 0 to C - 1."""
    hint = ""
    if y.min() == 1 and y.max() == n_classes:
        hint = f'; labels from 1 to {n_classes}: subtract 1, or let classes="infer" number them'
    expected = f"0 to {n_classes - 1} for {n_classes} classes{hint}"
    refuse_where(where, (y < 0) | (y >= n_classes), y, expected)


def check_weight(where: str, weight: object, n: int) -> None:
    """Of a split: (N,), none negative, not all 0."""
    if not isinstance(weight, np.ndarray) or weight.shape != (n,):
        shape = getattr(weight, "shape", None)
        raise UserError(f"{where}: shape {shape}, expected numbers of shape ({n},)")
    if weight.dtype.kind not in "fiu":
        raise UserError(f"{where}: of dtype {weight.dtype}, expected .astype(np.float32)")
    refuse_where(where, ~(weight >= 0), weight, "at least 0")
    # Below it XLA takes them for 0.
    lost_N = (weight > 0) & (weight < FLOAT32.tiny)
    refuse_where(where, lost_N, weight, f"0, or at least {FLOAT32.tiny:.2g}, as float32 holds")
    if not weight.any():
        raise UserError(f"{where}: all {n} are 0, expected one above 0")
    total = weight.sum(dtype=np.float64)
    if total > 1e-3 * FLOAT32.max:  # losses are multiplied by them
        raise UserError(
            f"{where}: {total:.3g} in all, expected sums that float32 holds: divide by "
            f"{total / n:.3g}"
        )


def dtype_kind(dtype: np.dtype) -> str:
    """As NumPy's, where the small floats of JAX are floats, too."""
    small = dtype.kind == "V" and dtype.name.startswith(("bfloat", "float"))
    return "f" if small else dtype.kind


def children_of(tree: PyTree, path: str) -> list[tuple[str, PyTree]] | None:
    """The paths and values below a node; None for a leaf. Dicts count in the order of their keys.

    >>> from jaxexp.training.data import Examples
    >>> children_of(Examples(1, 2), "train")
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


def named_leaves(tree: PyTree, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The leaves of a tree, each with its path."""
    children = children_of(tree, path)
    if children is None:
        yield path, tree
    for below, child in children or []:
        yield from named_leaves(child, below)


def map_leaves(change: Callable[[str, object], np.ndarray], tree: PyTree, path: str) -> PyTree:
    """The same tree of changed leaves."""
    children = children_of(tree, path)
    if children is None:
        return change(path, tree)
    if tree is None:
        return None
    changed = [map_leaves(change, child, below) for below, child in children]
    if isinstance(tree, Mapping):
        return dict(zip(sorted(tree), changed, strict=True))
    return type(tree)(*changed) if hasattr(tree, "_fields") else type(tree)(changed)


def structure_of(tree: PyTree) -> str:
    """In words: Examples(x=*, y=*, weight=None)."""
    children = children_of(tree, "")
    if children is None or tree is None:
        return "None" if tree is None else "*"
    below = [structure_of(child) for _, child in children]
    if isinstance(tree, Mapping):
        parts = [f"{key}: {child}" for key, child in zip(sorted(tree), below, strict=True)]
        return "{" + ", ".join(parts) + "}"
    if hasattr(tree, "_fields"):
        parts = [f"{key}={child}" for key, child in zip(tree._fields, below, strict=True)]
        return f"{type(tree).__name__}({', '.join(parts)})"
    return f"{type(tree).__name__}({', '.join(below)})"


def checked_leaf(where: str, value: object, *, rows: bool) -> np.ndarray:
    """A read-only view of an array; `rows`: of examples, which are finite and have a first axis."""
    number = isinstance(value, (bool, int, float, np.generic))
    if isinstance(value, np.ma.MaskedArray) or (number and rows):
        raise UserError(f"{where}: {type_of(value)}, expected a plain array (N, ...)")
    if not number and not hasattr(value, "__array__"):
        raise UserError(
            f"{where}: {type_of(value)}, expected an array, or tuples, named tuples, lists "
            "or dicts of arrays"
        )
    array = convert(where, value)
    kind = dtype_kind(array.dtype)
    if kind not in "biufc":
        refuse_dtype(where, array, None)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if rows and array.ndim == 0:
        raise UserError(f"{where}: shape (), expected (N, ...)")
    if kind in "fc" and rows:
        refuse_where(where, ~np.isfinite(array), array, "a finite number")
    if kind in "iu" and array.dtype.itemsize >= 4 and array.dtype != np.int32:
        top = INT32.max if kind == "i" else np.iinfo(np.uint32).max
        beyond = (array > top) | (array < INT32.min)
        refuse_where(where, beyond, array, f"at most {top}: JAX computes with 32 bits")
    if kind == "f" and array.dtype.itemsize >= 8:
        beyond = np.isfinite(array) & (np.abs(array) > FLOAT32.max)
        refuse_where(where, beyond, array, f"at most {FLOAT32.max:.2g}, as float32 holds")
    view = array.view(np.ndarray)
    view.setflags(write=False)
    return view


def row_count(split: PyTree) -> int:
    """The number of rows of a split's first array."""
    return len(next(leaf for _, leaf in named_leaves(split)))


def check_rows(name: str, split: PyTree) -> None:
    """The same number of rows in every leaf, at least one."""
    first = None
    for path, leaf in named_leaves(split, name):
        if len(leaf) == 0:
            raise UserError(f"{path}: shape {leaf.shape}, expected at least one example")
        first = first or (path, len(leaf))
        if len(leaf) != first[1]:
            raise UserError(f"{path}: {len(leaf)} rows, expected {first[1]}, as in {first[0]}")
    if first is None:
        raise UserError(f"{name}: no array in it, expected examples")


def check_alike(name: str, split: PyTree, train: PyTree) -> None:
    """The structure, shapes and dtypes of the training split."""
    if structure_of(split) != structure_of(train):
        found, expected = structure_of(split), structure_of(train)
        raise UserError(f"{name}: {found}, expected {expected}, as in train")
    for (path, leaf), (_, like) in zip(named_leaves(split, name), named_leaves(train), strict=True):
        if leaf.shape[1:] != like.shape[1:]:
            expected = shape_like(like.shape)
            raise UserError(f"{path}: shape {leaf.shape}, expected {expected} as in train")
        if leaf.dtype != like.dtype:
            raise UserError(
                f"{path}: {leaf.dtype} numbers, expected {like.dtype} as in train: give all splits "
                "one type, such as x.astype('float32')"
            )


def check_coordinate(name: str, coordinate: object) -> None:
    """Raise UserError unless it is a coordinate as xarray has it."""
    expected = "(dimensions, array), one dimension for each axis"
    if not isinstance(coordinate, tuple) or len(coordinate) != 2:
        raise UserError(f"coords: {name!r} is {coordinate!r}, expected {expected}")
    dims = (coordinate[0],) if isinstance(coordinate[0], str) else tuple(coordinate[0])
    if len(dims) != np.ndim(coordinate[1]):
        shape = np.shape(coordinate[1])
        raise UserError(f"coords: {name!r} has {dims} for shape {shape}, expected {expected}")


def check_attribute(name: str, value: object) -> None:
    """Raise UserError unless a results file can hold it, by a name that is not its own."""
    if name in OWN_ATTRIBUTES:
        way = f"jx.Data({name}=…)" if name in ("classes", "features", "notes") else "another name"
        raise UserError(f"attrs: {name!r} is what results say themselves, expected {way}")
    if not name.isprintable() or name.startswith("_") or name in FORMAT_ATTRIBUTES | {""}:
        raise UserError(f"attrs: {name!r}, expected a name that a netCDF file can hold")
    texts: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if texts and all(isinstance(text, str) for text in texts):
        kept = all(_is_kept_text(text) for text in texts)
    else:
        number = isinstance(value, (int, float, np.number, np.ndarray, list, tuple))
        number &= not isinstance(value, np.ma.MaskedArray)
        kept = number and convert(f"attrs[{name!r}]", value).dtype.kind in "iuf"
        each = np.asarray(value, object).flat if kept else ()
        kept &= not any(isinstance(v, (bool, np.bool_)) for v in each)
    if not kept:
        raise UserError(
            f"attrs: {name!r} is {value!r}, expected text, a number, or a list of either: nothing "
            "else is kept in a netCDF file"
        )


def _is_kept_text(text: str) -> bool:
    """Not one of NumPy's, with a zero byte, or half a character."""
    return type(text) is str and _is_whole(text) and "\0" not in text


def _is_whole(text: str) -> bool:
    """Without half a character (a lone surrogate), which no file can hold."""
    return text.encode(errors="ignore").decode() == text


def checked_names(where: str, value: object, least: int) -> tuple[str, ...]:
    """Names of classes or columns, as strings that differ."""
    value = value.to_numpy() if hasattr(value, "to_numpy") else value
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        raise UserError(f"{where}: {value!r}, expected a list of names")
    names = tuple(str(name) for name in value)
    for each in value:
        if not isinstance(each, (str, int, np.integer)):
            raise UserError(f"{where}: {plain_value(each)!r}, expected a name")
        if not _is_whole(str(each)):
            raise UserError(f"{where}: {each!r}, expected a name of whole characters")
    if (twice := first_twice(names)) is not None:
        raise UserError(f"{where}: {twice!r} twice, expected names that differ")
    if len(names) < least:
        raise UserError(f"{where}: {list(names)}, expected at least {least} names")
    return names


def checked_notes(value: object) -> tuple[str, ...]:
    """A list of text."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(note, str) for note in value):
        raise UserError(f"notes={value!r}: expected a list of text")
    if not all(map(_is_whole, value)):
        raise UserError(f"notes={value!r}: expected text of whole characters")
    return tuple(value)


def first_twice(names: Sequence[str]) -> str | None:
    """The first name that stands twice, if there is one."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def refuse_names(
    where: str, names: tuple[str, ...], features: tuple[str, ...], like: str = "those trained on"
) -> None:
    """Raise UserError for names that are not `features`, or in another order."""
    if names == features:
        return
    missing = [name for name in features if name not in names]
    more = [name for name in names if name not in features]
    said = [f"{some_names(missing)} missing"] if missing else []
    said += [f"{some_names(more)} too many"] if more else []
    said = said or ["the order is another"]
    raise UserError(f"{where}: not {like}: {'; '.join(said)}, expected {some_names(features)}")


def some_names(names: Sequence[str]) -> str:
    """The first few names.

    >>> some_names(["a", "b"]), some_names([str(n) for n in range(100)])
    ("'a', 'b'", "'0', '1', '2', '3', '4', '5', … (100)")
    """
    few = ", ".join(repr(name) for name in names[:6])
    return few if len(names) <= 6 else f"{few}, … ({len(names)})"


def shape_like(shape: tuple[int, ...]) -> str:
    """A shape with any number of rows.

    >>> shape_like((5, 2)), shape_like((5,))
    ('(N, 2)', '(N,)')
    """
    return f"(N, {', '.join(map(str, shape[1:]))})" if len(shape) > 1 else "(N,)"


def plain_value(value: object) -> object:
    """A NumPy scalar as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def is_missing(value: object) -> bool:
    """None, NaN, pandas' NA and NaT, or text that is empty."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (str, float)) and (value == "" or value != value)


def refuse(
    where: str,
    index: tuple[int, ...],
    value: object,
    expected: str,
    features: tuple[str, ...] | None = None,
) -> None:
    """Raise UserError for one value of an array."""
    place = f"row {index[0]}"
    if len(index) == 2:
        place += f", column {features[index[1]]!r}" if features else f", column {index[1]}"
    elif len(index) > 2:
        place += f", position {[int(i) for i in index[1:]]}"
    raise UserError(f"{where}: {place} is {plain_value(value)!r}, expected {expected}")


def refuse_where(
    where: str,
    bad: np.ndarray,
    array: np.ndarray,
    expected: str,
    features: tuple[str, ...] | None = None,
) -> None:
    """Name the first value that is bad, if one is."""
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        refuse(where, index, array[index], expected, features)


def refuse_dtype(
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
            if not isinstance(array[index], (bool, int, float, np.number, Decimal)):
                refuse(where, index, array[index], expected, features)
    if array.size == 0 or array.ndim == 0:
        raise UserError(f"{where}: of dtype {array.dtype}, expected {expected}")
    index = (0,) * array.ndim
    hint = " (a category: give one column of 0 and 1 for each)" if array.dtype.kind in "iuf" else ""
    if array.dtype.kind in "OUT":
        way = ".astype(float), or .cast(pl.Float64) of polars,"
        hint = f" ({way} if they are numbers; otherwise encode them as such)"
    refuse(where, index, array[index], f"{expected}, not {array.dtype}{hint}", features)


def convert(where: str, value: object) -> np.ndarray:
    """To a NumPy array, by whatever way it has."""
    try:
        # That of pyarrow's arrays refuses what it would have to copy.
        if hasattr(value, "to_numpy") and not type(value).__module__.startswith("pyarrow"):
            array: np.ndarray = value.to_numpy()
            return array
        return np.asarray(value)
    except Exception as error:  # of any library
        reason = str(error).strip().splitlines()[0:1] or [type(error).__name__]
        if isinstance(value, (list, tuple)):
            reason = ["rows of different lengths, or of different kinds"]
        raise UserError(
            f"{where}: {type_of(value)} that does not convert to a NumPy array "
            f"({reason[0]}), expected numbers in rows of the same shape"
        ) from error
