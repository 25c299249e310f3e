"""CSV files as cells of text, each identified by its file, line and column."""

import codecs
import csv
import io
import reprlib
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import jaxexp as jx

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # names of a header in a message


def normal(name: str) -> str:
    """A name in the form that is compared: programs write an ö as one character or as two.

    >>> normal(" o\\u0308 ") == normal("\\u00f6")
    True
    """
    return unicodedata.normalize("NFC", name.strip())


@dataclass(frozen=True, eq=False)
class Cells:
    """The rows of a CSV file (UTF-8) that are not blank; the first one is a header.

    Attributes:
        path: the file.
        wanted: what it should hold, for messages: "the columns long and lat".
    """

    path: Path
    wanted: str

    @cached_property
    def names(self) -> list[str]:
        """The names in the header, in the Unicode normal form of `normal`."""
        names: list[str] = self._rows.iloc[0].map(normal).tolist()
        return names

    def table(self, columns: list[str]) -> "pd.DataFrame":
        """The columns of these names, as text, with rows numbered from 1.

        Raises UserError if one is missing or repeated, or if there are no rows.
        """
        for column in columns:
            if self.names.count(column) != 1:
                fault = "repeated" if column in self.names else "missing"
                there = ", ".join(map(reprlib.repr, self.names[:SHOWN]))
                self.refuse(0, f"column {column} is {fault} in {there}", self.wanted)
        if len(self._rows) == 1:
            raise jx.UserError(f"{self.path}: no rows after the header, expected one or more")
        return self._rows.set_axis(self.names, axis=1).loc[1:, columns]

    def check(self, cells: "pd.Series", valid: "pd.Series", expected: str) -> None:
        """Raise UserError for the first cell of a column that is not valid."""
        if not valid.all():
            row = cells.index[~valid][0]
            self.refuse(row, f"{cells.name} is {reprlib.repr(cells[row])}", expected)

    def refuse(self, row: int, found: str, expected: str) -> None:
        """Raise UserError for a row."""
        line = self.lines[row]
        if row == 0:
            self._check_split(line, self.names)
        raise jx.UserError(f"{self.path}, line {line}: {found}, expected {expected}")

    def _check_split(self, line: int, header: list[str]) -> None:
        """Refuse a header that is split by anything but commas."""
        if len(header) == 1 and {";", "\t"} & {*header[0]}:
            raise jx.UserError(
                f"{self.path}, line {line}: the header is {header[0]!r}, expected names split by "
                "commas"
            )

    @cached_property
    def lines(self) -> list[int]:
        """The line on which each row begins, which pandas does not report.

        Raises UserError for a row that is not CSV, or is longer or shorter than the first.
        """
        lines = io.StringIO(self._text).readlines()
        reader = csv.reader(lines, strict=True, skipinitialspace=True)
        start, header, found = 0, list[str](), list[int]()
        try:
            for fields in reader:
                if lines[start].strip(" \t\n"):
                    found.append(start + 1)
                    header = header or fields
                    if len(fields) != len(header):
                        self._check_split(found[0], header)
                        raise jx.UserError(
                            f"{self.path}, line {start + 1}: fields in the row, split by "
                            f"commas: {len(fields)}, expected {len(header)} as in the header"
                        )
                start = reader.line_num
        except csv.Error as error:
            raise jx.UserError(
                f"{self.path}, line {start + 1}: the row is not CSV ({error}), expected fields "
                "split by commas"
            ) from None
        return found

    @cached_property
    def _rows(self) -> "pd.DataFrame":
        import pandas as pd

        try:
            cells = pd.read_csv(
                io.StringIO(self._text),
                header=None,
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
            )
        except pd.errors.EmptyDataError:
            expected = f"expected a header with {self.wanted}"
            raise jx.UserError(f"{self.path}: the file is empty, {expected}") from None
        except pd.errors.ParserError as error:
            _ = self.lines  # raises with the line at fault
            found = f"the file is not CSV ({str(error).strip()})"
            raise jx.UserError(f"{self.path}: {found}, expected fields split by commas") from None
        if '"' in self._text or (cells.iloc[:, -1] == "").any():
            _ = self.lines  # pandas pads short rows, and reads "a"b as ab
        return cells

    @cached_property
    def _text(self) -> str:
        try:
            content = self.path.read_bytes().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            found = "no such file" if missing else f"cannot be read ({error.strerror})"
            expected = f"expected a CSV file with {self.wanted}"
            raise jx.UserError(f"{self.path}: {found}, {expected}") from None
        try:
            text = content.decode()
            fault = content.find(0)  # where pandas 2 would end the cell
        except UnicodeDecodeError as error:
            fault = error.start
        if fault >= 0:
            line = len((content[:fault] + b"?").splitlines())
            found = f"byte 0x{content[fault]:02x} is not text"
            raise jx.UserError(f"{self.path}, line {line}: {found}, expected a CSV file in UTF-8")
        # pandas loses an empty field after a blank line that ends with \r.
        return text.replace("\r\n", "\n").replace("\r", "\n")
