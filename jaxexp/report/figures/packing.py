"""Numbers and texts in the form of Plotly's JSON."""

import base64
import html
import math

import numpy as np
from numpy.typing import ArrayLike

from jaxexp.report.figures.figure import Spec

MOST = 2_000  # points of a curve


def plain(text: str) -> str:
    """Text for Plotly, which reads it as HTML."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def rounded(values: ArrayLike, within: ArrayLike | None = None) -> list[float | None]:
    """Values rounded to what a screen can show, in plain floats; None for those not finite.

    The precision is a ten-thousandth of the range of `within` (of `values`, if not given), and at
    least five significant digits.
    """
    flat = np.asarray(values, dtype=float).ravel()
    known = np.asarray(flat if within is None else within, dtype=float)
    known = known[np.isfinite(known)]
    with np.errstate(over="ignore"):
        extent = float(known.max() - known.min()) if known.size else 0.0
    places = _places(extent) if math.isfinite(extent) else -400
    return [_round(float(v), max(places, _places(v))) if np.isfinite(v) else None for v in flat]


def _round(value: float, places: int) -> float:
    try:
        return round(value, places)
    except OverflowError:  # rounded beyond the largest float
        return value


def _places(size: float) -> int:
    """The decimals that give a number five significant digits; -400 for 0."""
    return 4 - math.floor(math.log10(abs(size))) if size else -400


def packed(values: np.ndarray) -> Spec:
    """Small whole numbers in Plotly's binary form."""
    small = values.astype("<i2" if values.size and values.max() > 127 else "i1")
    kind = f"i{small.dtype.itemsize}"
    data = base64.b64encode(np.ascontiguousarray(small).tobytes()).decode()
    return {"dtype": kind, "bdata": data, "shape": ", ".join(map(str, small.shape))}


def thinned(y: np.ndarray, most: int = MOST) -> np.ndarray:
    """The places of at most `most` values of `y`: the least and largest of each stretch."""
    if y.size <= most:
        return np.arange(y.size)
    parts = np.array_split(np.arange(y.size), most // 2)
    low, high = np.where(np.isfinite(y), y, np.inf), np.where(np.isfinite(y), y, -np.inf)
    ends = [[part[low[part].argmin()], part[high[part].argmax()]] for part in parts]
    return np.unique(ends)
