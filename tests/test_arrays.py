"""A user's own arrays: each mistake is refused with its array, row, value and what was expected."""

import pickle
import re
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import xarray as xr

import jaxexp.training.data
from jaxexp.base.errors import UserError
from jaxexp.training.arrays import arrays
from jaxexp.training.data import Data, Examples

N = 20
X = np.random.default_rng(0).normal(size=(N, 3))
Y = np.arange(N) % 4
TEXT = np.array(["ant", "bee", "cat", "dog"])[Y]
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])


def but(array: Any, index: Any, value: Any) -> np.ndarray:
    changed = np.array(array)
    changed[index] = value
    return changed


def refused(said: str, *args: Any, **options: Any) -> None:
    """`said`: parts of the message, in order, between "..."."""
    pattern = ".*".join(re.escape(part) for part in said.split("..."))
    with pytest.raises(UserError, match=f"(?s)^{pattern}"):
        arrays(*args, **options)


def test_imports_neither_jax_nor_frames():
    code = (
        "import sys, jaxexp.training.arrays as d; d.arrays([[1.0], [2.0]], validation=None);"
        "print(*{'jax', 'pandas', 'polars', 'torch', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Splits


def test_splits_are_drawn_by_the_seed_whatever_else_is_asked():
    data = arrays(X, Y, validation=0.25, test=3, seed=1)
    assert data.counts == {"train": 12, "validation": 5, "test": 3}
    order = np.random.default_rng(1).permutation(N)
    for split, rows in {"test": order[:3], "validation": order[-5:], "train": order[3:-5]}.items():
        np.testing.assert_array_equal(data.splits[split].x, X[np.sort(rows)].astype(np.float32))
        np.testing.assert_array_equal(data.splits[split].y, Y[np.sort(rows)])
    others = [
        arrays(X, Y, validation=0.25, test=None, seed=1).validation,
        arrays(FRAME, TEXT, validation=5, test=6, seed=1, weights=np.ones(N)).validation,
        arrays(X, Y, validation=0.25, test=(X, Y), seed=np.int64(1)).validation,
    ]
    for other in others:
        np.testing.assert_array_equal(data.validation.x, other.x)
    np.testing.assert_array_equal(data.test.x, arrays(X, Y, validation=None, test=3, seed=1).test.x)
    assert (data.validation.x[0] != arrays(X, Y, validation=5, seed=2).validation.x[0]).any()


def test_splits_may_be_missing_or_ones_own():
    data = arrays(X, TEXT, validation=None)
    assert list(data.splits) == list(data.arrays()) == ["train"]
    np.testing.assert_array_equal(data.train.x, X.astype(np.float32))
    data = arrays(X, TEXT, validation=(X[:2], ["dog", "bee"]), test=(X[:1], TEXT[:1], [2]))
    assert data.counts == {"train": N, "validation": 2, "test": 1}
    assert data.validation.y.tolist() == [3, 1]
    assert data.train.weight.tolist() == [1] * N
    assert data.validation.weight.tolist() == [1, 1]
    assert data.test.weight.tolist() == [2]
    assert arrays(X, validation=(X, None)).train.y is None
    assert arrays(X, Y, validation=0.001, test=0.074).counts == {
        "train": 18,
        "validation": 1,
        "test": 1,
    }


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("validation: 0.0, expected a fraction between 0 and 1", {"validation": 0.0}),
        ("validation: 1.0, expected a fraction between 0 and 1", {"validation": 1.0}),
        ("test: 1.5, expected a fraction", {"test": 1.5}),
        ("test: nan, expected a fraction", {"test": float("nan")}),
        ("validation: 0, expected at least 1 row", {"validation": 0}),
        ("test: -3, expected at least 1 row", {"test": -3}),
        ("validation: True, expected a fraction", {"validation": True}),
        ("validation: 'all', expected a fraction", {"validation": "all"}),
        ("validation: a list, expected", {"validation": [X, Y]}),
        ("validation, test: 20 and 0 of the 20 rows", {"validation": 20}),
        ("validation, test: 10 and 10 of the 20 rows", {"validation": 0.5, "test": 0.5}),
        ("validation: a tuple of 1, expected (X, y) or", {"validation": (X,)}),
        ("seed: True, expected a whole number", {"seed": True}),
        ("seed: -1, expected", {"seed": -1}),
        ("seed: 0.0, expected", {"seed": 0.0}),
        ("seed: None, expected", {"seed": None}),
        ("name: '', expected a line", {"name": ""}),
        ("name: 'a\\nb', expected a line", {"name": "a\nb"}),
        ("name: 3, expected a line", {"name": 3}),
    ],
)
def test_refused_splits(said: str, options: dict[str, Any]):
    refused(said, X, Y, **options)


def test_refused_explicit_splits():
    refused("validation.x: shape (5, 2), expected (N, 3)", X, Y, validation=(X[:5, :2], Y[:5]))
    refused("validation.y: 4 rows, expected 5", X, Y, validation=(X[:5], Y[:4]))
    refused("test.y: None, expected targets", X, Y, test=(X, None))
    refused("test.y: targets, expected None", X, test=(X, Y))
    refused("test.weight: shape (3,), expected (20,)", X, Y, test=(X, Y, [1, 2, 3]))
    refused(
        "test.x: row 2, column 1 is nan, expected a finite", X, Y, test=(but(X, (2, 1), np.nan), Y)
    )
    refused("test.x: shape (0, 3), expected at least one row", X, Y, test=(X[:0], Y[:0]))
    unknown = but(TEXT, 3, "eel")
    refused("test.y: row 3 is 'eel', expected one of 'ant', 'bee'", X, TEXT, test=(X, unknown))
    refused(
        "test.y: row 1 is 9, expected 0 to 3 for 4",
        X,
        Y,
        classes="infer",
        test=(X, but(Y, 1, 9)),
    )
    refused("test.y: row 0 is 0, expected class labels, as in y", X, TEXT, test=(X, Y))
    refused("test.y: row 0 is 'ant', expected numbers", X, Y, test=(X, TEXT))
    refused("test.y: row 0 is 'ant', expected numbers", X, X[:, 0], test=(X, TEXT))
    refused("test.y: row 0 is 'ant', expected numbers", X, Y, classes="infer", test=(X, TEXT))
    refused("test.y: row 4 is 0.5, expected a whole", X, Y, test=(X, but(Y.astype(float), 4, 0.5)))
    refused("test.y: shape (20, 3), expected (N, 2)", X, X[:, :2], test=(X, X))
    images = np.zeros((N, 4, 4), np.uint8)
    refused(
        "test.x: uint8 numbers, expected float32 as in train: give all splits one type, such as",
        images / 255,
        Y,
        test=(images, Y),
    )


def test_columns_of_explicit_splits():
    def given(frame: Any) -> dict[str, Any]:
        return {"validation": (frame, Y)}

    assert arrays(FRAME, Y, **given(FRAME)).features == ("a", "b", "c")
    assert arrays(FRAME, Y, **given(X)).counts["validation"] == N  # no names, but as many
    refused(
        "validation.x: not the columns of X: the order is another, expected 'a', 'b', 'c'",
        FRAME,
        Y,
        **given(FRAME[["b", "a", "c"]]),
    )
    refused(
        "validation.x: not the columns of X: 'c' missing; 'd' too many",
        FRAME,
        Y,
        **given(FRAME.rename(columns={"c": "d"})),
    )
    refused("validation.x: not the columns of X: 'c' missing", FRAME, Y, **given(FRAME[["a", "b"]]))


# Inputs


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (X, "float32"),
        (X.astype(np.float16), "float32"),
        (X.astype(">f8"), "float32"),
        (X.tolist(), "float32"),
        (X > 0, "float32"),
        ((X * 9).astype(np.int64), "int32"),
        ((X * 9).astype(np.int8), "int32"),
        ((X * 9).astype(np.uint8), "uint8"),
        (np.zeros((N, 2, 3, 4), np.uint16), "int32"),
        (FRAME, "float32"),
        (pd.DataFrame({"a": [1] * N, "b": [True] * N}), "float32"),
        (pd.DataFrame({"a": [1] * N, "b": [2.5] * N}), "float32"),
        (pd.DataFrame({"a": [1] * N, "b": [3] * N}), "int32"),
        (pd.DataFrame({"a": pd.array([1] * N, "Int64"), "b": [3] * N}), "int32"),
        (pl.DataFrame({"a": [1] * N, "b": [2.5] * N}), "float32"),
        (pl.DataFrame({"a": [1] * N, "b": [True] * N}), "float32"),
        (pl.DataFrame({"a": [1] * N}), "int32"),
    ],
)
def test_inputs(given: Any, dtype: str):
    data = arrays(given, Y, validation=None)
    assert data.train.x.dtype == dtype
    np.testing.assert_allclose(data.train.x, np.asarray(given).astype(float), rtol=1e-6)
    assert data.features == (tuple(given.columns) if hasattr(given, "columns") else None)
    assert data.train.x.flags.c_contiguous


def test_tensors():
    import jax.numpy as jnp
    import torch

    for given in (torch.tensor(X), jnp.asarray(X), jnp.asarray(X, jnp.bfloat16)):
        data = arrays(given, torch.tensor(Y), validation=None)
        np.testing.assert_allclose(data.train.x, X, rtol=1e-2)
        np.testing.assert_array_equal(data.train.y, Y)
    refused("X: a Tensor that does not convert", torch.tensor(X, requires_grad=True), Y)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_and_series(frame: Any):
    series = pd.Series if frame is pd.DataFrame else pl.Series
    data = arrays(frame(dict(FRAME.items())), series(TEXT.tolist()), weights=series(np.ones(N)))
    same = arrays(X, TEXT, weights=np.ones(N))
    assert data.fingerprint == same.fingerprint
    assert data.features == ("a", "b", "c")
    assert data.classes == ("ant", "bee", "cat", "dog")


RAGGED = [[1.0, 2.0]] * (N - 1) + [[1.0]]
LAST = np.random.default_rng(0).permutation(N)[-1]  # in validation, always
SECONDS = np.array([0, 1.7e9, 0])  # since 1970, in column 1
DECIMALS = pl.DataFrame({"d": pl.Series([1] * N, dtype=pl.Decimal(4, 0)), "a": Y})
DATES = np.array(["2024-01-01"] * N, "datetime64[D]")


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("X: row 3, column 1 is nan, expected a finite number", but(X, (3, 1), np.nan)),
        ("X: row 3, column 1 is inf, expected a finite number", but(X, (3, 1), np.inf)),
        ("X: row 0, column 2 is 1e+39, expected at most 3.4e+38", but(X, (0, 2), 1e39)),
        ("X: row 3, column 'b' is nan, expected", FRAME.mask(FRAME.iloc[3, 1] == FRAME)),
        ("X: row 3, position [1, 2] is nan", but(np.zeros((N, 2, 3)), (3, 1, 2), np.nan)),
        ("X: row 4, column 0 is 3000000000, expected -2147483648 to", but(Y, 4, 3e9)[:, None]),
        ("X: row 0, column 0 is 18446744073709551615", np.full((N, 1), 2**64 - 1, np.uint64)),
        ("X: row 0, column 'd' is 'ant', expected numbers", FRAME.assign(d=TEXT)),
        ("X: row 0, column 'd' is 'ant'", pl.DataFrame({"a": Y, "d": TEXT.tolist()})),
        ("X: row 0, column 'd' is 'ant'", pd.DataFrame({"d": TEXT})),
        ("X: row 0, column 'd' is 0, expected", FRAME.assign(d=pd.Categorical(Y))),
        ("X: row 0, column 'd' is 0, expected", pd.DataFrame({"d": pd.Categorical(Y)})),
        (
            "X: row 1, column 'd' is None",
            FRAME.assign(d=pd.Series([1.0, None] + [2.0] * 18, dtype=object)),
        ),
        (
            "X: row 1, column 'd' is nan",
            FRAME.assign(d=pd.array([1, None] + [2] * 18, dtype="Int64")),
        ),
        (
            "X: row 1, column 'd' is nan",
            pl.DataFrame({"a": Y, "d": [1, None] + [2] * 18}),
        ),
        ("X: row 0, column 'd' is ...numbers: days since a date", FRAME.assign(d=DATES)),
        ("X: row 0, column 0 is ...numbers: days since a date", DATES[:, None]),
        ("X: row 0, column 0 is ...numbers", DATES[:, None] - DATES[0]),
        ("X: row 0, column 0 is 0j, expected numbers, not complex", np.zeros((N, 1), complex)),
        ("X: row 0, column 0 is '1', expected numbers", [["1", "2"]] * N),
        ("X: row 0, column 1 is 2, expected text", [["a", 2]] * N),
        ("X: row 0, column 0 is b'1', expected text: .astype(str)", np.array([[b"1"]] * N)),
        ("X: row 2, column 0 is None, expected", but(X.astype(object), (2, 0), None)),
        ("X: row 0, column 0 is 0.12...not object", X.astype(object)),
        ("X: a list that does not convert...rows of different lengths", RAGGED),
        ("X: shape (20,), ...give np.reshape(X, (-1, 1)); if it is one example, [X]", X[:, 0]),
        ("X: shape (20,), ...X.to_frame(); if it is one example, a frame of one", FRAME["a"]),
        ("X: row 0 is {'a': 1}, expected numbers only", [{"a": 1}] * N),
        ("X: a Table with names of columns, expected...X.to_pandas()", pa.table({"a": Y})),
        ("X: a DataArray with names of columns, expected", xr.DataArray(FRAME)),
        ("X: row 0, column 'd' is Decimal('1')...not object (.astype(float), or .cast(", DECIMALS),
        ("X: shape (0, 3), expected at least one row", X[:0]),
        ("X: shape (20, 0), expected at least one row and one column", X[:, :0]),
        ("X: shape (20, 0), expected at least one row and one column", FRAME[[]]),
        ("X: an int, expected an array of shape (N, F) or (N, ...); for several inputs, jx.D", 3),
        ("X: a dict, expected an array...jx.Data", {"a": X}),
        ("X: a NoneType, expected an array", None),
        ("X: a sparse csr_matrix, expected X.toarray()", scipy.sparse.csr_matrix(X)),
        ("X: a sparse coo_array, expected X.toarray()", scipy.sparse.coo_array(X)),
        ("X: a masked array, expected a plain one", np.ma.masked_array(X, X > 0)),
        ("X: a structured array of the fields 'u', 'v'", np.zeros(N, [("u", "f8"), ("v", "f8")])),
        ("X: a LazyFrame, expected X.collect()", pl.LazyFrame({"a": Y})),
        (
            "X: column 'a' holds arrays of shape (2,), expected",
            pl.DataFrame({"a": pl.Series([[1, 2]] * N, dtype=pl.Array(pl.Int64, 2)), "b": Y}),
        ),
        ("X: two columns 'a', expected", FRAME.set_axis(["a", "b", "a"], axis=1)),
        ("X: column 1: values up to", X + SECONDS),
        ("X: column 'b': values up to", FRAME + SECONDS),
        ("X: column 2: values up to 1...e-60", X * [1, 1, 1e-60]),
        ("X: column 1: values up to 1.70000001e+09", (X * 9 + SECONDS).astype(np.int64)),
        ("X: column 'b': values up to 1.70000001e+09", (FRAME * 9 + SECONDS).astype(int)),
        ("X: position [0, 1]: values up to", (X + SECONDS)[:, None]),
        ("X: position [1, 0]: values up to", (X * 9 + SECONDS).astype(int)[:, :, None]),
        ("X: column 0: values up to", -Y[:, None] - 2**27),
        ("X: column 'd': values up to 1e+18...by only 1.12", FRAME.assign(d=Y + 10**18)),
        ("X: column 'd': values up to 1e+15...by only 1.12", FRAME.assign(d=Y + 1e15)),
        ("X: column 'd': values up to 9.22337204e+18", FRAME.assign(d=Y.astype(np.uint64) + 2**63)),
        ("X: column 'd': values up to 1e+13", pl.DataFrame({"a": X[:, 0], "d": Y + 10**13})),
    ],
)
def test_refused_inputs(said: str, given: Any):
    refused(said, given, Y)


def test_masked_arrays_in_lists_are_refused():
    rows = list(np.ma.masked_array(X, X > 0))
    refused("X: row 0 is masked, or a masked array, expected a plain one", rows, Y)
    refused("X: row 3 is masked", [*X[:3], *rows[3:]], Y)
    pairs = [(row, row) for row in [*X[:4], *rows]]
    refused("X: row 4 is masked", pairs, Y)
    refused("y: row 0 is masked", X, rows)
    refused("y: row 1 is masked", X, list(np.ma.masked_array(Y, Y == 1)))
    refused("weights: row 1 is masked", X, Y, weights=list(np.ma.masked_array(Y + 1, Y == 1)))
    assert arrays([*X], [*Y]).counts["train"] == 16


def test_columns_that_are_all_but_constant_are_fine():
    given = np.c_[X, np.full(N, 1e9), np.where(Y == 0, 0.1 + 0.2, 0.3)]
    assert arrays(given, Y).train.x.shape[1] == 5
    given = FRAME.assign(d=2**62, e=np.linspace(-(2**63), 2**63 - 2**10, N).astype(np.int64))
    assert arrays(given, Y).train.x.shape[1] == 5


def test_whole_numbers_that_float32_distinguishes_stay_as_they_are():
    ids = np.random.default_rng(0).integers(0, 2**24 + 1, (N, 3))
    hashes = np.random.default_rng(0).integers(-(2**31), 2**31, (N, 3))
    for given in (ids, 2**24 - np.arange(N)[:, None], hashes, np.full((N, 1), 2**30)):
        data = arrays(given, given[:, 0], validation=None)
        np.testing.assert_array_equal(data.train.x, given)
        np.testing.assert_array_equal(data.train.y, given[:, 0])


def test_indexes_that_are_not_aligned():
    y = pd.Series(TEXT)
    shuffled = FRAME.sample(frac=1, random_state=0)
    refused("y: row 0 has the index 0, expected 18...X.index", shuffled, y)
    refused("weights: row 0 has the index 0, expected 18", shuffled, TEXT, weights=pd.Series(Y + 1))
    refused("test.y: row 0 has the index 0", FRAME, y, test=(shuffled, y))
    mixed, w = y.loc[shuffled.index], pd.Series(Y + 1)
    refused("weights: row 0 has the index 0, expected 18 as in y...y.index", X, mixed, weights=w)
    refused("test.weight: row 0 has the index 0, expected 18 as in y", X, y, test=(X, mixed, w))
    assert arrays(X, mixed, weights=w.loc[mixed.index]).counts["train"] == 16
    data = arrays(shuffled, y.loc[shuffled.index])
    assert data.counts["train"] == 16


# Targets


@pytest.mark.parametrize(
    ("given", "options", "y", "classes"),
    [
        (["b", "a", "b", "c"], {}, [1, 0, 1, 2], ("a", "b", "c")),
        (["b", "a", "b", "c"], {"classes": ["c", "b", "a"]}, [1, 2, 1, 0], ("c", "b", "a")),
        (["b", "a", "b", "c"], {"classes": "infer"}, [1, 0, 1, 2], ("a", "b", "c")),
        (np.array(["b", "a", "b", "c"], object), {}, [1, 0, 1, 2], ("a", "b", "c")),
        (np.array(["b", "a"] * 2, np.dtypes.StringDType()), {}, [1, 0, 1, 0], ("a", "b")),
        (pd.Series(["b", "a", "b", "c"]), {}, [1, 0, 1, 2], ("a", "b", "c")),
        (pl.Series(["b", "a", "b", "c"]), {}, [1, 0, 1, 2], ("a", "b", "c")),
        (pl.Series(["b", "a"] * 2, dtype=pl.Categorical), {}, [1, 0, 1, 0], ("a", "b")),
        (pd.Categorical(["b", "a"] * 2, ["a", "b", "x"]), {}, [1, 0, 1, 0], ("a", "b")),
        (pd.Series(pd.Categorical([10, 9, 10, 9])), {}, [1, 0, 1, 0], ("9", "10")),
        (pd.Series(pd.Categorical([1.5, 0.5] * 2)), {}, [1, 0, 1, 0], ("0.5", "1.5")),
        (pd.Series(pd.Categorical([10, 9] * 2)), {"classes": [10, 9]}, [0, 1] * 2, ("10", "9")),
        ([True, False] * 2, {}, [1, 0, 1, 0], ("False", "True")),
        (pl.Series([True, False] * 2), {}, [1, 0, 1, 0], ("False", "True")),
        (pa.array(["b", "a"] * 2), {}, [1, 0, 1, 0], ("a", "b")),
        (xr.DataArray([10, 9, 10, 2]), {}, [10, 9, 10, 2], None),
        (pd.array([True, False] * 2, "boolean"), {}, [1, 0, 1, 0], ("False", "True")),
        ([10, 9, 10, 2], {}, [10, 9, 10, 2], None),
        ([10, 9, 10, 2], {"classes": "infer"}, [2, 1, 2, 0], ("2", "9", "10")),
        ([10.0, 9, 10, 2], {"classes": "infer"}, [2, 1, 2, 0], ("2", "9", "10")),
        ([0, 1, 1, 2], {"classes": ["x", "y", "z"]}, [0, 1, 1, 2], ("x", "y", "z")),
        ([0, 1, 1, 2], {"classes": np.arange(3)}, [0, 1, 1, 2], ("0", "1", "2")),
        ([0, 1, 1, 2], {"classes": [2, 1, 0]}, [2, 1, 1, 0], ("2", "1", "0")),
        ([0.0, 1, 1, 0], {"classes": pd.Series([1, 0])}, [1, 0, 0, 1], ("1", "0")),
        ([1, 2, 1, 2], {"classes": [1, 2]}, [0, 1, 0, 1], ("1", "2")),
        ([1, 0, 1, 0], {"classes": ["0", "1"]}, [1, 0, 1, 0], ("0", "1")),
        ([1, 0, 1, 0], {"classes": ["7", "1"]}, [1, 0, 1, 0], ("7", "1")),
        ([1, 0, 1, 0], {"classes": ["0.0", "True"]}, [1, 0, 1, 0], ("0.0", "True")),
        (pd.Categorical([1, "a"] * 2, [1, "a"]), {}, [0, 1, 0, 1], ("1", "a")),
        (np.uint8([0, 1, 1, 2]), {}, [0, 1, 1, 2], None),
        ([0.5, 1, 1, 2], {}, [0.5, 1, 1, 2], None),
        ([[0, 1], [1, 1], [1, 0], [0, 0]], {}, [[0, 1], [1, 1], [1, 0], [0, 0]], None),
        ([[0.5], [1], [1], [2]], {}, [[0.5], [1], [1], [2]], None),
    ],
)
def test_targets(given: Any, options: dict[str, Any], y: list[Any], classes: Any):
    data = arrays(X[:4], given, validation=None, **options)
    assert data.train.y.tolist() == y
    assert data.classes == classes
    whole = classes is not None or np.asarray(given).dtype.kind in "iu"
    assert data.train.y.dtype == (np.int32 if whole else np.float32)


@pytest.mark.parametrize(
    ("said", "given", "options"),
    [
        ("y: 19 rows, expected 20, as many as X", Y[:-1], {}),
        ("y: an int, expected an array of shape (N,)", 3, {}),
        ("y: a str, expected an array of shape (N,)", "abc", {}),
        ("y: a dict, expected an array of shape (N,)", {"a": Y}, {}),
        ("y: row 2 is nan, expected a finite number", but(X[:, 0], 2, np.nan), {}),
        ("y: row 2 is 1e+39, expected at most", but(X[:, 0], 2, 1e39), {}),
        ("y: row 2, column 1 is -inf, expected a finite", but(X, (2, 1), -np.inf), {}),
        ("y: row 2 is 2147483648, expected -2147483648 to", but(Y, 2, 2**31), {}),
        ("y: row 2 is nan, expected a whole", but(Y * 1.0, 2, np.nan), {"classes": "infer"}),
        ("y: row 2 is 0.5, expected a whole", but(Y * 1.0, 2, 0.5), {"classes": "infer"}),
        ("y: row 1 is None, expected a label", but(TEXT.astype(object), 1, None), {}),
        ("y: row 1 is nan, expected a label", pd.Series(TEXT).where(Y != 1), {}),
        ("y: row 1 is None, expected a label", pl.Series([*"ab"] * 10).replace("b", None), {}),
        ("y: row 1 is nan, expected a label", pd.Series(TEXT).where(Y != 1).astype("category"), {}),
        ("y: row 1 is nan, expected a label", pd.Series(Y).where(Y != 1).astype("category"), {}),
        ("y: row 1 is '', expected a label", but(TEXT, 1, ""), {}),
        ("y: row 1 is 5, expected text; or labels of one kind", but(TEXT.astype(object), 1, 5), {}),
        ("y: row 0 is 0, expected text; or labels of one kind", Y.astype(object), {}),
        ("y: row 1 is <NA>, expected a label", pd.array([True, None] * 10, "boolean"), {}),
        ("y: row 1 is 5, expected text", ["a", 5] * 10, {}),
        ("y: row 0 is b'ant', expected text: .astype(str)", TEXT.astype("S"), {}),
        ("y: row 0 is ...numbers: days", DATES, {}),
        ("y: row 0 is 0j, expected numbers", Y * 0j, {}),
        ("y: every label is 'ant', expected at least 2", np.full(N, "ant"), {}),
        ("y: every label is 'True', expected at least 2", np.full(N, True), {}),
        ("y: every label is 3, expected at least 2", np.full(N, 3), {"classes": "infer"}),
        ("y: whole numbers of shape (20, 1), expected (20,): give y.ravel()", Y[:, None], {}),
        ("y: whole numbers of shape (20, 1)", pd.DataFrame({"y": Y}), {}),
        ("y: labels of shape (20, 1), expected (20,)", TEXT[:, None], {}),
        ("y: labels of shape (20, 1), expected (20,)", pd.DataFrame({"y": TEXT}), {}),
        ("y: labels of shape (20, 3), expected (20,)", X > 0, {}),
        (
            "y: one column for each class, shape (20, 4)",
            np.eye(4, dtype=int)[Y],
            {"classes": "abcd"},
        ),
        ("y: shape (20, 0), expected at least one column", X[:, :0], {}),
        ("y: row 0, column 'b' is 'ant'", pd.DataFrame({"a": Y, "b": TEXT}), {}),
        ("y: a sparse csr_matrix", scipy.sparse.csr_matrix(X), {}),
        ("y: a masked array", np.ma.masked_array(Y, Y > 2), {}),
        ("y: column 0: values up to", X[:, :1] + 1e10, {}),
        ("y: values up to", X[:, 0] + 1e10, {}),
        ("y: values up to 1.7e+09", Y + 1_700_000_000, {}),
        ("y: column 1: values up to", np.c_[Y, Y + 1_700_000_000], {}),
        ("y: column 'd': values up to 1e+18", FRAME.assign(d=Y + 10**18), {}),
        ("classes: ['a'], expected at least 2", Y, {"classes": ["a"]}),
        ("classes: 'a' twice", Y, {"classes": ["a", "b", "a", "c"]}),
        ("classes: ['1', '0', '2', '3']...as numbers", Y, {"classes": [*"1023"]}),
        ("classes: ['1.0', '00 ']...as numbers", Y % 2, {"classes": ["1.0", "00 "]}),
        ("classes: ['True', 'False']...as numbers", Y % 2, {"classes": ["True", "False"]}),
        ("y: row 0 is 1, expected text, as '1'", pd.Categorical([1, "1"] * 10, [1, "1"]), {}),
        ("y: the labels 'o\u0308' and '\xf6' differ in how", ["\xf6", "o\u0308"] * 10, {}),
        ("y: ...spaces and how...: strip and normalize them", ["\xf6", "o\u0308 "] * 10, {}),
        ("classes: 'auto', expected \"infer\"", Y, {"classes": "auto"}),
        ("classes: 4, expected a list", Y, {"classes": 4}),
        ("classes: None, expected a name", Y, {"classes": ["a", None]}),
        ("classes: 'infer' without y", None, {"classes": "infer"}),
        ("y: row 4 is 4, expected 0 to 3 for 4 classes", but(Y, 4, 4), {"classes": [*"abcd"]}),
        ("y: row 4 is -1, expected 0 to 3 for 4 classes", but(Y, 4, -1), {"classes": [*"abcd"]}),
        ("y: row 3 is 4, expected...subtract 1, or", Y + 1, {"classes": [*"abcd"]}),
        ("y: row 0 is 0, expected one of '1', '2', '3', '4'", Y, {"classes": [1, 2, 3, 4]}),
        ("y: row 0 is 0, expected...`classes` as text", Y, {"classes": [*range(5, 9)]}),
        ("y: row 1 is 'bee', expected one of 'ant', 'x'", TEXT, {"classes": ["ant", "x"]}),
        ("y: class 'd' has none of the 16 examples", Y % 3, {"classes": [*"abcd"]}),
        ("y: class 'eel' has none of the 19 examples", but(TEXT, LAST, "eel"), {"validation": 1}),
        ("y: row 0 is True, expected one of 'no', 'yes'", Y < 2, {"classes": ["no", "yes"]}),
    ],
)
def test_refused_targets(said: str, given: Any, options: dict[str, Any]):
    if options.get("classes") == "abcd":
        options = {"classes": [*"abcd"]}
    refused(said, X, given, **options)


def test_labels_of_every_pixel():
    y = np.random.default_rng(0).integers(0, 3, (N, 4, 4))
    data = arrays(np.zeros((N, 4, 4)), y, classes=["sky", "land", "sea"])
    assert data.train.y.shape == (16, 4, 4)
    refused(
        "y: row 2, position [1, 1] is 3, expected 0 to 2", y, but(y, (2, 1, 1), 3), classes=[*"abc"]
    )


# Weights


def test_weights():
    data = arrays(X, Y, weights=np.arange(N), test=2)
    assert data.train.weight.dtype == np.float32
    for split in data.splits.values():
        rows = [np.abs(X.astype(np.float32) - x).sum(1).argmin() for x in split.x]
        np.testing.assert_array_equal(split.weight, rows)


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("weights: shape (19,), expected (20,)", np.ones(N - 1)),
        ("weights: shape (20, 1), expected (20,)", np.ones((N, 1))),
        ("weights: shape (), expected (20,)", 1.0),
        ("weights: row 3 is -1.0, expected a finite number, at least 0", but(np.ones(N), 3, -1)),
        ("weights: row 3 is nan, expected a finite number", but(np.ones(N), 3, np.nan)),
        ("weights: row 3 is inf, expected a finite number", but(np.ones(N), 3, np.inf)),
        ("weights: row 3 is 1e+39, expected a number that float32", but(np.ones(N), 3, 1e39)),
        ("weights: row 3 is 1e-60, expected a number that float32", but(np.ones(N), 3, 1e-60)),
        ("weights: all 20 are 0", np.zeros(N)),
        ("weights: row 0 is 'ant', expected numbers", TEXT),
        ("train.weight: all 16 are 0, expected one above 0", "validation only"),
    ],
)
def test_refused_weights(said: str, given: Any):
    if isinstance(given, str):
        given = np.zeros(N)
        given[np.random.default_rng(0).permutation(N)[-4:]] = 1
    refused(said, X, Y, weights=given)


# Data


def test_arrays_are_copied_and_read_only():
    x, y, w = X.astype(np.float32), Y.astype(np.int32), np.ones(N, np.float32)
    pixels = np.zeros((N, 2), np.uint8)
    for given in (x, pixels):
        for validation in (None, 0.2, (given, y, w)):
            data = arrays(given, y, weights=w, validation=validation)
            for split in data.splits.values():
                for array, theirs in zip(split, (given, y, w), strict=True):
                    assert not np.shares_memory(array, theirs)
                    with pytest.raises(ValueError, match="read-only"):
                        array[0] = 0


def test_fingerprint():
    def of(x: Any = X, y: Any = TEXT, **options: Any) -> str:
        return arrays(x, y, **options).fingerprint

    first = of()
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first == of(X.tolist(), TEXT.tolist()) == of(FRAME, name="elsewhere")
    others = {
        of(but(X, (3, 1), 0.5)),
        of(X[:, ::-1]),
        of(seed=1),
        of(test=1),
        of(y=np.char.upper(TEXT)),
        of(y=Y),
        of(weights=np.ones(N)),
        of((X * 9).astype(int)),
        of((X * 9).astype(int).astype(float)),
    }
    assert len(others | {first}) == 10
    train = Examples(np.zeros((2, 3)), np.zeros(2))
    assert Data(train).fingerprint != Data(train, extra={"map": np.zeros(3)}).fingerprint
    assert Data({"a": train.y, "b": train.y + 1}).fingerprint == (
        Data({"b": train.y + 1, "a": train.y}).fingerprint
    )
    data = Data(train)
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint


def test_fingerprint_of_large_arrays_goes_in_parts(monkeypatch):
    train = Examples(np.arange(3000.0).reshape(50, 60)[:, ::2], np.arange(50))
    whole = Data(train).fingerprint
    monkeypatch.setattr(jaxexp.training.data, "BLOCK_BYTES", 1000)
    assert Data(train).fingerprint == whole


class Pair(NamedTuple):
    left: Any
    right: Any


def test_trees():
    def split(n: int) -> Any:
        return {"pair": Pair(np.zeros((n, 2)), [np.zeros(n), None]), "y": (np.zeros(n, bool),)}

    data = Data(split(3), test=split(2), extra={"scale": 2.0, "maps": {"a": np.zeros((5, 7))}})
    assert data.counts == {"train": 3, "test": 2}
    assert list(data.arrays()) == ["train", "test", "scale", "maps"]
    assert data.nbytes == 3 * 25 + 2 * 25 + 8 + 280
    assert isinstance(data.train["pair"], Pair)
    assert data.train["pair"].right[1] is None
    assert not data.train["pair"].left.flags.writeable
    assert repr(data) == "Data(train: 3 examples, test: 2 examples, scale, maps)"


def examples(n: int = 4, **changed: Any) -> Examples:
    given = {"x": np.zeros((n, 2), np.float32), "y": np.arange(n) % 2} | changed
    return Examples(**given)


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("train: None, expected examples", {"train": None}),
        ("train: no array in it", {"train": Examples(None, None)}),
        ("train: no array in it", {"train": ()}),
        ("train.x: shape (0, 2), expected at least one", {"train": examples(0)}),
        ("train.y: 3 rows, expected 4, as in train.x", {"train": examples(y=np.zeros(3))}),
        ("train.x: shape (), expected (N, ...)", {"train": examples(x=np.zeros(()))}),
        ("train.x: a str, expected an array", {"train": examples(x="x")}),
        ("train.x[0]: a float, expected a plain array", {"train": examples(x=[1.0, 2.0])}),
        (
            "train.x: row 1 is 'b', expected",
            {"train": examples(x=np.array([1, "b", 2, 3], object))},
        ),
        (
            "train.x: row 1 is nan, expected a finite",
            {"train": examples(x=np.array([0, np.nan, 0, 0]))},
        ),
        ("train.y: row 3 is 2147483648", {"train": examples(y=np.array([0, 1, 2, 2**31]))}),
        (
            "train.y: row 1 is 1e+39, expected at most 3.4e+38",
            {"train": examples(y=np.array([0, 1e39, 0, 0]))},
        ),
        ("train: a dict with the keys [1]", {"train": {1: np.zeros(3)}}),
        (
            "train.x: a MaskedArray, expected a plain",
            {"train": examples(x=np.ma.array([1, 2, 3, 4]))},
        ),
        (
            "validation.x: shape (4, 3), expected (N, 2) as in train",
            {"validation": examples(x=np.zeros((4, 3), np.float32))},
        ),
        (
            "validation.x: float64 numbers, expected float32",
            {"validation": examples(x=np.zeros((4, 2)))},
        ),
        (
            "validation.x: row 2, column 1 is inf",
            {"validation": examples(x=but(np.zeros((4, 2), np.float32), (2, 1), np.inf))},
        ),
        (
            "validation: tuple(*, *), expected Examples(x=*, y=*, weight=None)",
            {"validation": (np.zeros((4, 2)), np.zeros(4))},
        ),
        ("test: Examples(x=*, y=*, weight=*), expected", {"test": examples(weight=np.ones(4))}),
        ("extra: 'test' stands for something else", {"extra": {"test": np.zeros(3)}}),
        ("extra: [1], expected a dict", {"extra": [1]}),
        ("words: a str, expected an array", {"extra": {"words": "text"}}),
        ("attrs: {1: 2}, expected a dict whose keys are strings", {"attrs": {1: 2}}),
        ("attrs: 'notes' is what...expected jx.Data(notes=…)", {"attrs": {"notes": "by hand"}}),
        ("attrs: 'coordinates', expected a name", {"attrs": {"coordinates": "EPSG:4326"}}),
        ("attrs: '', expected a name", {"attrs": {"": 1}}),
        ("attrs: 'NAME', expected a name", {"attrs": {"NAME": 1}}),
        ("attrs: 'ok' is True, expected text, a number, or a list", {"attrs": {"ok": True}}),
        ("attrs: 'of' is {'a': 1}, expected text", {"attrs": {"of": {"a": 1}}}),
        ("attrs: 'of' is [1, 'a'], expected text", {"attrs": {"of": [1, "a"]}}),
        ("attrs: 'of' is [1, True], expected text", {"attrs": {"of": [1, True]}}),
        ("attrs: 'of' is masked_array(", {"attrs": {"of": np.ma.array([1, 2], mask=[0, 1])}}),
        ("attrs: 'of' is 'a\\x00', expected text", {"attrs": {"of": "a\0"}}),
        ("attrs: 'of' is np.str_('a'), expected text", {"attrs": {"of": np.str_("a")}}),
        ("notes='by hand': expected a list of text", {"notes": "by hand"}),
        ("notes=['\\ud800']: expected text of whole", {"notes": ["\ud800"]}),
        ("classes: '\\ud800', expected a name of whole", {"classes": ["a", "\ud800"]}),
        ("coords: 'a' has ('a',) for shape (2, 2)", {"coords": {"a": ("a", np.zeros((2, 2)))}}),
        ("coords: 'a' is ", {"coords": {"a": np.zeros(2)}}),
        ("classes: ['a'], expected at least 2", {"classes": ("a",)}),
        ("classes: 'ab', expected a list", {"classes": "ab"}),
        ("features: 'a' twice", {"features": ("a", "a")}),
        (
            "features: 3 names, expected one for each column of train.x, of shape (N, 2)",
            {"features": ("a", "b", "c")},
        ),
        (
            "test.y: row 2 is 2, expected 0 to 1",
            {"test": examples(y=np.arange(4)), "classes": ("a", "b")},
        ),
        (
            "train.y: whole numbers of shape (4, 1)",
            {"train": examples(y=np.ones((4, 1), int)), "classes": ("a", "b")},
        ),
        ("train.weight: shape (4, 1), expected", {"train": examples(weight=np.ones((4, 1)))}),
        ("train.weight: row 1 is -1.0", {"train": examples(weight=np.array([1.0, -1, 1, 1]))}),
        ("train.weight: all 4 are 0", {"train": examples(weight=np.zeros(4))}),
    ],
)
def test_refused_data(said: str, given: dict[str, Any]):
    pattern = ".*".join(re.escape(part) for part in said.split("..."))
    with pytest.raises(UserError, match=f"^{pattern}"):
        Data(**({"train": examples()} | given))


def test_byte_order_and_mapped_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(8, dtype=">f4").reshape(4, 2))
    data = Data(examples(x=np.load(tmp_path / "x.npy", mmap_mode="r")))
    assert data.train.x.dtype.isnative
    assert data.train.x.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
