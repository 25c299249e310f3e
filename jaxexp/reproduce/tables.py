"""European places and their countries: the embedded GeoNames set, or three CSV files."""

import os
import re
import reprlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import jaxexp as jx
from jaxexp.reproduce.cells import Cells, normal

if TYPE_CHECKING:
    import pandas as pd

_EMBEDDED = Path(__file__).with_name("places.npz")
_SPLITS = ("train", "validation", "test")
_DEGREES_LIMIT = {"long": 180, "lat": 90}
_COLUMNS = (*_DEGREES_LIMIT, "country")
_LONGEST = 200  # characters in the name of a country
_COLUMNS_TEXT = "the columns long, lat and country, each once"
# 18 digits fit 64 bits and keep int() quick; 7.0 is how pandas writes a 7 beside an empty cell.
_INTEGER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Split:
    """N places and their countries.

    Attributes:
        x_Nx2: float32 [N, 2], longitude and latitude, degrees.
        y_N: int32 [N], class index, 0..C-1.
    """

    x_Nx2: np.ndarray
    y_N: np.ndarray


@dataclass(frozen=True, eq=False)
class Places:
    """Places of C countries in three splits.

    Attributes:
        train: the places to fit.
        validation: the places to compare settings on.
        test: the places to report on.
        classes: name of each of the C countries; the index is the label.
        source: where the places are from, for display.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the data: equal arrays and class names give equal digits."""
        parts = [repr(self.classes).encode()]
        for split in (self.train, self.validation, self.test):
            parts.append(len(split.y_N).to_bytes(8, "little"))
            parts += [split.x_Nx2.astype("<f4").tobytes(), split.y_N.astype("<i4").tobytes()]
        return jx.digest(b"".join(parts))


def load_places(folder: str | Path | None = None) -> Places:
    """Load places in three splits, from the package or from CSV files.

    The CSV files are `train.csv`, `validation.csv` and `test.csv` (UTF-8) with the columns `long`
    and `lat` (degrees) and `country`; other columns and blank lines are ignored. Countries are
    integers or text: the classes are those of `train.csv`, integers first in numeric order, then
    text in alphabetic order.

    Args:
        folder: the folder with the CSV files; None for the embedded GeoNames places.

    Returns:
        The places: float32 coordinates [N, 2] in degrees and int32 labels [N] for each split.

    Raises:
        UserError: the folder or a file is missing or unreadable, or a row is not a place; the
            message names the file, the line, the column, its value and what was expected.
    """
    return _load_embedded() if folder is None else _load_folder(folder)


def _load_embedded() -> Places:
    with np.load(_EMBEDDED) as arrays:
        cuts = np.cumsum(arrays["split_sizes"])[:-1]
        x_splits = np.split(arrays["x_Nx2"], cuts)
        y_splits = np.split(arrays["y_N"].astype(np.int32), cuts)
        classes = tuple(arrays["classes"].tolist())
    train, validation, test = map(Split, x_splits, y_splits)
    return Places(train, validation, test, classes, "embedded GeoNames places")


def _load_folder(folder: str | Path) -> Places:
    if not os.path.isdir(folder):
        found = "not a folder" if os.path.exists(folder) else "no such folder"
        raise jx.UserError(
            f"{folder}: {found}, expected one with train.csv, validation.csv, test.csv"
        )
    files = [Cells(Path(folder, f"{name}.csv"), _COLUMNS_TEXT) for name in _SPLITS]
    tables = [_read_table(file) for file in files]
    classes = sorted(tables[0]["country"].unique(), key=_order)
    if len(classes) == 1:
        found = f"country is {reprlib.repr(classes[0])} in every row"
        raise jx.UserError(f"{files[0].path}: {found}, expected two or more countries")
    expected = f"one of the {len(classes)} countries in train.csv"
    for file, table in zip(files, tables, strict=True):
        file.check(table["country"], table["country"].isin(classes), expected)
    index = {name: i for i, name in enumerate(classes)}
    train, validation, test = (
        Split(
            table[["long", "lat"]].to_numpy(np.float32),
            table["country"].map(index).to_numpy(np.int32),
        )
        for table in tables
    )
    return Places(train, validation, test, tuple(classes), str(folder))


def _read_table(cells: Cells) -> "pd.DataFrame":
    """The columns long, lat (degrees) and country (class names), by row; the header is row 0."""
    import pandas as pd

    table = cells.table(list(_COLUMNS))
    for column, limit in _DEGREES_LIMIT.items():
        degrees = pd.to_numeric(table[column], errors="coerce").astype(np.float64)
        inside = degrees.abs() <= limit  # false for NaN, which anything but a number becomes
        cells.check(table[column], inside, f"a number of degrees from -{limit} to {limit}")
        table[column] = degrees
    country = table["country"].map(normal)
    name_of = {cell: _class_name(cell) for cell in country.unique()}
    valid = [cell for cell in name_of if 0 < len(cell) <= _LONGEST and cell.isprintable()]
    expected = f"an integer or printable text of at most {_LONGEST} characters"
    cells.check(country, country.isin(valid), expected)
    return table.assign(country=country.map(name_of))


def _class_name(cell: str) -> str:
    """One name for all ways to write an integer: 7, 07 and 7.0 are one class."""
    integer = _INTEGER.fullmatch(cell)
    return str(int(integer[1])) if integer else cell


def _order(name: str) -> tuple[bool, int, str]:
    """Integers first in numeric order, then text in alphabetic order."""
    integer = _INTEGER.fullmatch(name)
    return integer is None, int(integer[1]) if integer else 0, name
