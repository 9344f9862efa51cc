"""Windows of an imported log: from a CSV, from MLPerf LoadGen, or from a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.sources.power_log import LogFormat, column_of, csv_table, read_text, time_parser
from joulewatch_harness.errors import ConfigError, shown

LOADGEN_NAME: Final = "mlperf_log_detail.txt"
_LOADGEN_MARK: Final = ":::MLLOG"
_LOADGEN_DATE: Final = re.compile(r"(\d\d)-(\d\d)-(\d{4}) ")
_INFERENCES: Final = "inferences"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedWindow:
    """A window that a person or LoadGen names."""

    name: str
    start_s: float
    end_s: float
    inferences: int = 1


def read_windows(path: Path, timezone: str) -> tuple[list[NamedWindow], bool]:
    """Return the windows of a file, and whether they are those of LoadGen, on the clock of its machine.

    Raises:
        ConfigError: The file is neither a CSV of windows nor a log of LoadGen, or is not valid.
    """
    text = read_text(path)
    parse = time_parser(LogFormat(power="-", timezone=timezone))
    is_loadgen = path.name == LOADGEN_NAME or text.startswith(_LOADGEN_MARK)
    windows = list(_loadgen(path, text, parse) if is_loadgen else _csv(path, text, parse))
    if not windows:
        raise ConfigError(f"{path}: has no window")
    for window in windows:
        if window.end_s <= window.start_s:
            raise ConfigError(f"{path}: the window {shown(window.name)} does not end after its start")
    return windows, is_loadgen


def _csv(path: Path, text: str, parse: Callable[[str], float]) -> Iterator[NamedWindow]:
    header, rows = csv_table(path, text)
    name_at, start_at, end_at = (column_of(path, name, header) for name in ("name", "start", "end"))
    inferences_at = header.index(_INFERENCES) if _INFERENCES in header else None
    for line, row in rows:
        if len(row) < len(header):
            raise ConfigError(f"{path}: line {line}: has only {count_of(len(row), 'column')}")
        try:
            start_s, end_s = parse(row[start_at].strip()), parse(row[end_at].strip())
        except ValueError as error:
            raise ConfigError(f"{path}: line {line}: {error}") from None
        count = row[inferences_at].strip() if inferences_at is not None else "1"
        if not count.isdecimal() or not int(count):
            raise ConfigError(f"{path}: line {line}: {shown(count)} is not a number of inferences")
        name = row[name_at].strip()
        if not name:
            raise ConfigError(f"{path}: line {line}: the window has no name")
        yield NamedWindow(name=name, start_s=start_s, end_s=end_s, inferences=int(count))


def _loadgen(path: Path, text: str, parse: Callable[[str], float]) -> Iterator[NamedWindow]:
    """Yield the spans between ``power_begin`` and ``power_end``."""
    begin_s = math.nan
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.startswith(_LOADGEN_MARK):
            continue
        try:
            entry = json.loads(content.removeprefix(_LOADGEN_MARK))
            key, value = entry["key"], str(entry["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: line {line}: is not a line of LoadGen") from error
        if key not in ("power_begin", "power_end"):
            continue
        try:
            at_s = parse(_LOADGEN_DATE.sub(r"\3-\1-\2 ", value, count=1))
        except ValueError as error:
            raise ConfigError(f"{path}: line {line}: {error}") from None
        if key == "power_begin":
            begin_s = at_s
        elif math.isnan(begin_s):
            raise ConfigError(f"{path}: line {line}: power_end without power_begin")
        else:
            yield NamedWindow(name="loadgen", start_s=begin_s, end_s=at_s)
            begin_s = math.nan
