"""Data from a user's own arrays: NumPy, pandas, polars, lists, anything with `__array__`."""

import math
from collections.abc import Sequence

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import is_int
from jaxexp.base.words import type_of
from jaxexp.spec.arguments import refuses_unknown_arguments
from jaxexp.training.checks import (
    dtype_kind,
    named_leaves,
    plain_value,
    refuse_names,
    shape_like,
)
from jaxexp.training.data import Data, Examples
from jaxexp.training.encoding import Encoder
from jaxexp.training.numbers import to_numbers, to_weights
from jaxexp.training.reading import check_same_index, read


@refuses_unknown_arguments
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
    converts to a NumPy array (PyTorch tensors, JAX arrays). Other tables with named columns, such
    as pyarrow's, are refused: convert them with `.to_pandas()`.

    *Splits.* `validation` and `test` are each a fraction of all N rows (rounded to the nearest, at
    least one), a whole number of rows, a split of your own as (X, y) or (X, y, weights), or None.
    They are drawn without stratification from `numpy.random.default_rng(seed).permutation(N)`: test
    takes its first rows, validation its last, and each split keeps the order of X. So the test rows
    do not depend on `validation`, nor the validation rows on `test`: each depends only on `seed`, N
    and its own number of rows.

    *Targets.* Text, bools and pandas categoricals are classes: int32 from 0 to C - 1 in the sorted
    order of their names, which are kept in `classes` of the result. Categories without an example
    are left out, and the order of an ordered categorical is not kept: give `classes` for another
    order. Whole numbers stay as they are, as int32 and without classes; with `classes="infer"`
    their distinct values are numbered in ascending order. Other numbers become float32. Splits of
    your own use the classes of y. Every class needs an example in the training split.

    *Inputs* may have rank 2 or higher. Floats and bools become float32, uint8 stays uint8, and
    other whole numbers become int32; the column names of a frame become `features`.

    Args:
        X: inputs, (N, F) or (N, ...).
        y: targets, (N,) or (N, ...), or None.
        validation: the examples for choosing hyperparameters.
        test: the examples for judging the choice.
        seed: decides the drawn splits; at least 0.
        weights: (N,), the weight of each row in means, at least 0. If only some splits have
            weights, rows of the others have weight 1.
        classes: None; "infer"; or the names of the classes in order, for labels that are these
            names or, if the names are text, whole numbers 0 to C - 1.
        name: where the data are from, in one line, for reports.

    Raises:
        UserError: data that cannot be trained on or would silently give wrong numbers: unequal
            lengths, values that are missing, not finite or beyond float32 or int32, columns that
            become nearly constant in float32 (such as seconds since 1970, even as whole numbers),
            text in X, labels that are out of range or of shape (N, 1), fewer than 2 classes,
            columns that differ between splits, sparse or masked arrays, empty splits. The message
            names the argument, the row and column, the value and what was expected.

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
    check_same_index("y", y, X)
    check_same_index("weights", weights, X)
    check_same_index("weights", weights, y, like="y")

    trees = "; for several inputs, jx.Data(train=...) takes trees of arrays"
    x, features = checked_inputs("X", X, hint=trees)
    n = len(x)
    encoder = Encoder(y, classes)
    target = encoder("y", y, n)
    weight = None if weights is None else to_weights("weights", weights, n)

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
        text = repr(value) if np.isscalar(value) else type_of(value)
        raise UserError(f"{split}: {text}, expected {expected}")
    if value < 1:
        raise UserError(
            f"{split}: {plain_value(value)!r}, expected at least 1 row, or None for none"
        )
    return int(value)


def _draw(n: int, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """The rows of each split, in rising order; splits of size 0 are left out."""
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
    encoder: "Encoder",
) -> Examples:
    """A split that the user gives, converted as the training split is."""
    if len(given) not in (2, 3):
        raise UserError(f"{split}: a tuple of {len(given)}, expected (X, y) or (X, y, weights)")
    X, y, weights = (*given, None)[:3]
    check_same_index(f"{split}.y", y, X)
    check_same_index(f"{split}.weight", weights, X)
    check_same_index(f"{split}.weight", weights, y, like="y")
    x, names = checked_inputs(f"{split}.x", X)
    if names is not None and features is not None:
        refuse_names(f"{split}.x", names, features, like="the columns of X")
    if x.shape[1:] != train.x.shape[1:]:
        raise UserError(
            f"{split}.x: shape {x.shape}, expected {shape_like(train.x.shape)}, as in X"
        )  # before values are cast
    if x.dtype == np.int32 and train.x.dtype == np.float32:  # whole numbers by chance
        x = x.astype(np.float32)
    target = encoder(f"{split}.y", y, len(x))
    return Examples(
        x, target, None if weights is None else to_weights(f"{split}.weight", weights, len(x))
    )


def inputs(
    where: str, X: object, features: tuple[str, ...] | None, *, flat: bool = False
) -> np.ndarray:
    """Inputs for predictions, made from X as `arrays` makes them; `features` are those trained on.

    Raises UserError for what `arrays` refuses, except columns that float32 makes nearly constant
    and, if `flat`, the shape (N,); and for columns that differ from `features`, or in their order.
    """
    x, names = checked_inputs(where, X, rounding=False, flat=flat)
    if names is not None and features is not None:
        refuse_names(where, names, features)
    return x


def checked_inputs(
    where: str, value: object, *, rounding: bool = True, flat: bool = False, hint: str = ""
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """X as float32, int32 or uint8, never the user's own memory, and the names of its columns."""
    raw = read(where, value)
    array = raw.array
    if array.ndim == 0:
        raise UserError(
            f"{where}: {type_of(value)}, expected an array of shape (N, F) or (N, ...){hint}"
        )
    if array.ndim == 1 and not flat and dtype_kind(array.dtype) in "biuf":
        column, row = "np.reshape(X, (-1, 1))", "[X]"
        if hasattr(value, "to_frame"):
            column, row = "X.to_frame()", "a frame of one row, such as .iloc[[0]]"
        raise UserError(
            f"{where}: shape {array.shape}, expected (N, F) or (N, ...); "
            f"if each row is one number, give {column}; if it is one example, {row}"
        )
    if len(array) == 0 or 0 in array.shape:
        raise UserError(f"{where}: shape {array.shape}, expected at least one row and one column")
    return to_numbers(where, raw, rounding=rounding), raw.features
