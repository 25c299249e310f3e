"""European places and their countries: the embedded GeoNames set, or three CSV files."""

import csv
import hashlib
import io
import os
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxexp.base.errors import UserError

_EMBEDDED = Path(__file__).with_name("places.npz")
_DEGREES_LIMIT = {"long": 180, "lat": 90}
_COLUMNS = (*_DEGREES_LIMIT, "country")
_COLUMNS_TEXT = "the columns long, lat and country, each once"
# 18 digits fit 64 bits and keep int() quick; 7.0 is how pandas writes a 7 beside an empty cell.
_INTEGER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?", re.ASCII)

Label = int | str


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
        """16 hex digits that tell data apart: equal arrays and class names give equal digits."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(len(split.y_N).to_bytes(8, "little"))
            digest.update(split.x_Nx2.astype("<f4").tobytes())
            digest.update(split.y_N.astype("<i4").tobytes())
        return digest.hexdigest()[:16]


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


@dataclass(frozen=True)
class _Table:
    """The rows of one CSV file; `lines` are their line numbers in it."""

    path: Path
    x_Nx2: np.ndarray
    labels: list[Label]
    lines: list[int]


def _load_folder(folder: str | Path) -> Places:
    if not os.path.isdir(folder):
        found = "not a folder" if os.path.exists(folder) else "no such folder"
        raise UserError(f"{folder}: {found}, expected one with train.csv, validation.csv, test.csv")
    tables = [_read_table(Path(folder) / f"{name}.csv") for name in ("train", "validation", "test")]
    labels = sorted(set(tables[0].labels), key=lambda label: (isinstance(label, str), label))
    if len(labels) == 1:
        raise UserError(
            f"{tables[0].path}: country is {_show(labels[0])} in every row, "
            "expected two or more countries"
        )
    classes = tuple(map(str, labels))
    index = {label: i for i, label in enumerate(labels)}
    train, validation, test = (_to_split(table, index) for table in tables)
    return Places(train, validation, test, classes, str(folder))


def _to_split(table: _Table, index: dict[Label, int]) -> Split:
    for line, label in zip(table.lines, table.labels, strict=True):
        if label not in index:
            raise UserError(
                f"{table.path}, line {line}: country is {_show(label)}, "
                f"expected one of the {len(index)} countries in train.csv"
            )
    return Split(table.x_Nx2, np.array([index[label] for label in table.labels], np.int32))


def _read_table(path: Path) -> _Table:
    rows = _read_rows(path)
    line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}: the file is empty, expected a header with {_COLUMNS_TEXT}")
    places: list[tuple[float, float]] = []
    labels: list[Label] = []
    lines: list[int] = []
    try:
        columns = _find_columns(header)
        for line, row in rows:
            long, lat, label = _parse_row(row, len(header), columns)
            places.append((long, lat))
            labels.append(label)
            lines.append(line)
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {error}") from None
    if not places:
        raise UserError(f"{path}: no rows after the header, expected one or more places")
    return _Table(path, np.array(places, np.float32), labels, lines)


def _read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the number of its first line."""
    text = io.StringIO(_read_text(path), newline="")
    reader = csv.reader(text, strict=True, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: the row is not CSV ({error}), expected fields split by commas"
        ) from None


def _read_text(path: Path) -> str:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file, expected a CSV file with {_COLUMNS_TEXT}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a CSV file") from None
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        line = len((before + b"?").splitlines())
        raise UserError(
            f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8, expected a CSV file in UTF-8"
        ) from None


def _find_columns(header: list[str]) -> tuple[int, int, int]:
    """Positions of long, lat and country; ValueError where one is missing or there twice."""
    names = [name.strip() for name in header]
    for column in _COLUMNS:
        if names.count(column) != 1:
            fault = "repeated" if column in names else "missing"
            found = ", ".join(map(_show, names[:20]))
            raise ValueError(f"column {column} is {fault} in {found}, expected {_COLUMNS_TEXT}")
    long, lat, country = map(names.index, _COLUMNS)
    return long, lat, country


def _parse_row(
    row: list[str], n_columns: int, columns: tuple[int, int, int]
) -> tuple[float, float, Label]:
    """Longitude, latitude and country of a row; ValueError says what is wrong with it."""
    if len(row) != n_columns:
        raise ValueError(f"the row has {len(row)} fields, expected {n_columns} as in the header")
    long, lat, country = (row[column] for column in columns)
    return _parse_degrees("long", long), _parse_degrees("lat", lat), _parse_label(country)


def _parse_degrees(column: str, cell: str) -> float:
    limit = _DEGREES_LIMIT[column]
    try:
        degrees = float(cell)
    except ValueError:
        degrees = float("nan")
    # float() takes 1_0 for 10; the comparison is false for NaN too.
    if "_" in cell or not -limit <= degrees <= limit:
        raise ValueError(
            f"{column} is {_show(cell)}, expected a number of degrees from -{limit} to {limit}"
        )
    return degrees


def _parse_label(cell: str) -> Label:
    """The country as an int where it reads as one, so that 7, 07 and 7.0 are one class."""
    cell = cell.strip()
    if integer := _INTEGER.fullmatch(cell):
        return int(integer[1])
    if not cell or not cell.isprintable():
        raise ValueError(f"country is {_show(cell)}, expected an integer or printable text")
    return cell


def _show(value: Label) -> str:
    """The value in quotes on one line, its middle left out where it is long."""
    return reprlib.repr(str(value))
