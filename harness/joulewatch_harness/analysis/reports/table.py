"""One table for every report: text that fits the terminal, CSV and flat JSON records.

``rich.table`` was tried and rejected, although rich is installed with the analysis: if columns do not fit, it cuts
numbers with an ellipsis; it cannot drop columns by priority; it breaks words anywhere (``estima/ted``) and pads lines
with blanks; and importing it takes as long as all of ``joulewatch runs``.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Generic, TypeVar

R = TypeVar("R")

DEFAULT_WIDTH: Final = 80
_GAP: Final = "  "
_LEAST_TEXT: Final = 18
_PIECES: Final = re.compile(r"\s+|[^\s/_,-]*[/_,-]+|[^\s/_,-]+")
"""Names break at blanks, and after a slash, underscore, comma or hyphen."""


# Without slots: Column[int](...) fails on a frozen generic dataclass that has them.
@dataclass(frozen=True)
class Column(Generic[R]):
    """One column: its name, and its value in a row."""

    name: str
    """The heading in text, the header in CSV, the key in JSON."""
    value: Callable[[R], Any]
    _: KW_ONLY
    text: bool = False
    """Flush left, and wrapped if the table is too wide. Numbers are flush right and never wrapped or cut."""
    priority: int = 0
    """0: always shown. If the table is too wide, the columns with the highest number are dropped first, together."""
    least: int = _LEAST_TEXT
    """Smallest width of a column of text."""


@dataclass(frozen=True)
class Table(Generic[R]):
    """Columns, and the rows that provide their values."""

    columns: Sequence[Column[R]]
    rows: Sequence[R]
    title: Callable[[R], str] | None = None
    """Successive rows with the same title form a group below it, with its own heading."""

    def lines(self, width: int = DEFAULT_WIDTH) -> list[str]:
        """Return the table as text: every line fits ``width``, unless the numbers alone are wider.

        A last line names the columns that were dropped.
        """
        cells = [[_cell(column.value(row)) for column in self.columns] for row in self.rows]
        shown = list(range(len(self.columns)))
        while (widths := self._widths(shown, cells, width)) is None:
            priority = max(self.columns[i].priority for i in shown)
            shown = [i for i in shown if self.columns[i].priority < priority]
        lines: list[str] = []
        heading = self._heading(shown, widths)
        for number, (row, line) in enumerate(zip(self.rows, cells, strict=True)):
            if self.title is None:
                lines += heading if number == 0 else []
            elif number == 0 or self.title(self.rows[number - 1]) != self.title(row):
                lines += [*([""] if lines else []), *wrap(self.title(row), width), *heading]
            lines += self._row(shown, widths, line)
        omitted = [column.name for i, column in enumerate(self.columns) if i not in shown]
        if omitted and self.rows:
            note = f"Omitted to fit {width} columns: {', '.join(omitted)}"
            lines += paragraph(f"{note}. A wider terminal or --format json shows them.", width)
        return lines

    def csv(self) -> str:
        """Return the table as CSV: ``None`` is an empty cell, a sequence is joined by blanks."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            values = [column.value(row) for column in self.columns]
            writer.writerow([" ".join(value) if isinstance(value, (list, tuple)) else value for value in values])
        return out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as JSON objects."""
        return [{column.name: column.value(row) for column in self.columns} for row in self.rows]

    def _widths(self, shown: Sequence[int], cells: Sequence[Sequence[str]], width: int) -> list[int] | None:
        """Return the width of each shown column; ``None`` if they do not fit and a column can be dropped."""
        widths, least = [], []
        for i in shown:
            column, contents = self.columns[i], [len(line[i]) for line in cells]
            widths.append(max([len(column.name), *contents]))
            # The heading of a column of numbers may take two lines, its numbers may not.
            least.append(min(widths[-1], column.least) if column.text else max([_halved(column.name), *contents]))
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        spare = [wide - narrow for wide, narrow in zip(widths, least, strict=True)]
        if excess > sum(spare) and any(self.columns[i].priority for i in shown):
            return None
        # Text columns are narrowed before headings of numbers, starting with the column that has most to spare.
        texts = [place for place, i in enumerate(shown) if self.columns[i].text]
        for places in (texts, range(len(shown))):
            while excess > 0 and places and spare[roomiest := max(places, key=spare.__getitem__)] > 0:
                widths[roomiest] -= 1
                spare[roomiest] -= 1
                excess -= 1
        return widths

    def _heading(self, shown: Sequence[int], widths: Sequence[int]) -> list[str]:
        names = [wrap(self.columns[i].name, width) for i, width in zip(shown, widths, strict=True)]
        height = max(map(len, names), default=0)
        return self._lines(shown, widths, [[""] * (height - len(name)) + name for name in names])

    def _row(self, shown: Sequence[int], widths: Sequence[int], cells: Sequence[str]) -> list[str]:
        wrapped = [
            wrap(cells[i], width) if self.columns[i].text else [cells[i]]
            for i, width in zip(shown, widths, strict=True)
        ]
        height = max(map(len, wrapped), default=0)
        return self._lines(shown, widths, [part + [""] * (height - len(part)) for part in wrapped])

    def _lines(self, shown: Sequence[int], widths: Sequence[int], parts: Sequence[Sequence[str]]) -> list[str]:
        places = [str.ljust if self.columns[i].text else str.rjust for i in shown]
        return [
            _GAP.join(place(cell, width) for place, cell, width in zip(places, line, widths, strict=True)).rstrip()
            for line in zip(*parts, strict=True)
        ]


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _halved(heading: str) -> int:
    """Return the width of a heading in at most two lines."""
    words = heading.split(" ")
    return min(max(len(" ".join(words[:at])), len(" ".join(words[at:]))) for at in range(len(words)))


def wrap(text: str, width: float, measure: Callable[[str], float] = len) -> list[str]:
    """Break a name into lines of at most ``width``: after a blank or separator, else anywhere.

    Args:
        text: The name.
        width: Width of a line, in the unit of ``measure``.
        measure: Returns the width of a text; by default its characters.
    """
    lines = [""]
    for piece in _PIECES.findall(text):
        if piece.isspace():
            lines[-1] += piece if lines[-1] else ""
            continue
        if lines[-1] and measure(lines[-1] + piece) > width:
            lines.append("")
        while measure(piece) > width and len(piece) > 1:
            fitting = max((count for count in range(1, len(piece)) if measure(piece[:count]) <= width), default=1)
            lines[-1:] = [piece[:fitting], ""]
            piece = piece[fitting:]
        lines[-1] += piece
    return [line.rstrip() for line in lines if line.strip()] or [""]


def paragraph(text: str, width: int) -> list[str]:
    """Return prose as lines of at most ``width``, indented by two after the first; long words stay whole."""
    if len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def paragraphs(texts: Iterable[str], width: int) -> list[str]:
    """Return the lines of several paragraphs."""
    return [line for text in texts for line in paragraph(text, width)]


def terminal_width() -> int:
    """Return the width of the terminal (or ``$COLUMNS``); 80 without one."""
    return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns


def json_text(document: Any) -> str:
    """Return a document as JSON text."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
