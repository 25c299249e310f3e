"""A user's numbers as float32 and int32, refused if these types would change them."""

from collections.abc import Sequence

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.training.checks import (
    BLOCK_BYTES,
    FLOAT32,
    INT32,
    check_weight,
    dtype_kind,
    refuse_dtype,
    refuse_where,
)
from jaxexp.training.reading import Raw, read

WHOLE = 2**24  # up to it, float32 holds every whole number


def to_numbers(where: str, raw: Raw, *, rounding: bool = True) -> np.ndarray:
    """Copy numbers to float32, int32 or uint8; refuses what these do not hold."""
    array, features, categorical, columns = raw
    kind = dtype_kind(array.dtype)
    if kind not in "biuf" or categorical:
        refuse_dtype(where, array, features)
    if kind == "f":
        return to_float32(where, array, features, columns, rounding=rounding)
    if kind == "b":
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array.copy()
    return to_int32(where, array, features, rounding=rounding)


def to_float32(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None = None,
    columns: Sequence[np.ndarray] = (),
    *,
    rounding: bool = True,
) -> np.ndarray:
    """Finite numbers that float32 holds; raises UserError for others. `columns`: as in `Raw`."""
    refuse_where(where, ~np.isfinite(array), array, "a finite number", features)
    with np.errstate(over="ignore", under="ignore"):
        small = array.astype(np.float32)
    refuse_where(
        where, ~np.isfinite(small), array, f"at most {FLOAT32.max:.2g}, as float32 holds", features
    )
    wide = array.dtype.kind in "iuf" and array.dtype.itemsize >= 8
    if rounding and wide and columns:  # whole numbers that float64 may have rounded
        for i, column in enumerate(columns):
            names = features and features[i : i + 1]
            _check_rounding(where, column[:, None], small[:, i : i + 1], names)
    elif rounding and wide:
        _check_rounding(where, array, small, features)
    return small


def to_int32(
    where: str,
    array: np.ndarray,
    features: tuple[str, ...] | None = None,
    *,
    rounding: bool = True,
) -> np.ndarray:
    """Whole numbers that int32 holds; raises UserError for others."""
    beyond = (array > INT32.max) | (array < INT32.min)
    refuse_where(where, beyond, array, f"{INT32.min} to {INT32.max}, as int32 holds", features)
    small = array.astype(np.int32)
    # They stay whole, but nearly every model and loss computes with them as float32.
    if rounding and (array.max() > WHOLE or array.min() < -WHOLE):
        _check_rounding(where, small, small.astype(np.float32), features)
    return small


def _check_rounding(
    where: str, array: np.ndarray, small: np.ndarray, features: tuple[str, ...] | None
) -> None:
    """Refuse columns whose differences float32 rounds away, such as seconds since 1970."""
    wide_NxF, small_NxF = array.reshape(len(array), -1), small.reshape(len(array), -1)
    whole = array.dtype.kind in "iu"
    step = max(1, BLOCK_BYTES // (8 * len(array)))
    for start in range(0, wide_NxF.shape[1], step):
        wide, small = (a[:, start : start + step] for a in (wide_NxF, small_NxF))
        size_F = np.abs(wide.astype(np.float64)).max(0)
        # Differences from the lowest; for whole numbers modulo 2^64, without any rounding.
        exact = np.dtype(np.uint64 if whole else np.float64)
        above = (wide.astype(exact) - wide.min(0).astype(exact)).astype(np.float64)
        spread_F = above.std(0)
        lost_F = np.abs(above - (small.astype(np.float64) - small.min(0))).max(0)
        # What varies only by float64's rounding is a harmless constant; whole numbers never do.
        exact_F = whole | ((size_F <= 2**53) & (wide == np.rint(wide)).all(0))
        least_F = np.where(exact_F, 0, 1e-12 * size_F)
        for i in np.flatnonzero((spread_F > least_F) & (lost_F > 0.01 * spread_F)):
            place = ""
            if array.ndim == 2:
                place = f" column {features[start + i]!r}:" if features else f" column {start + i}:"
            elif array.ndim > 2:
                at = np.unravel_index(start + i, array.shape[1:])
                place = f" position {[int(k) for k in at]}:"
            raise UserError(
                f"{where}:{place} values up to {size_F[i]:.9g} that vary by only "
                f"{spread_F[i]:.3g} are all but the same in float32, expected values that it "
                "distinguishes: subtract their mean and divide by their standard deviation first"
            )


def to_weights(where: str, value: object, n: int) -> np.ndarray:
    """One weight for each of n examples, at least 0; raises UserError for others."""
    array, _, categorical, _ = read(where, value)
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
