"""Logs of other meters: plain CSV with a column of times and one of power or energy; see ``log_formats`` for others.

A log has no metadata: its unit is given, its resolution follows from the digits of its values, and its time between
updates from its rows. What is not known is not guessed: a time without a zone, a value that is not a number, or
times that do not increase are errors, each with its line.
"""

from __future__ import annotations

import csv
import datetime
import io
import math
import re
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness import files
from joulewatch_harness.analysis.sources.series import Floats, Series, Traits
from joulewatch_harness.errors import ConfigError, shown
from joulewatch_harness.names import unknown

POWER_UNITS: Final = {"W": 1.0, "mW": 1e-3, "kW": 1e3, "uW": 1e-6}
ENERGY_UNITS: Final = {"J": 1.0, "Wh": 3600.0, "kWh": 3.6e6, "mJ": 1e-3, "uJ": 1e-6}
UNITS: Final = (*POWER_UNITS, *ENERGY_UNITS)
DEFAULT_TIME: Final = "time"
_MISSING: Final = frozenset({"", "-", "--", "n/a", "nan", "null", "none"})
"""Cells without a value: the meter was not read; the row is skipped."""
_POINT: Final = "decimals need a point, not a comma"
_ROWS_FOR_DIGITS: Final = 1000
_LATEST_S: Final = 1e11
"""Larger numbers are not Unix seconds, but milliseconds or less."""
_EPOCH: Final = datetime.datetime(1970, 1, 1)
_OFFSET: Final = re.compile(r"([+-])(\d{2}):?(\d{2})")
Row = tuple[int, str, str, str]
"""Line, time, value and device of a log, as written; the device is empty if the log is of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFormat:
    """How to read a log."""

    time: str = DEFAULT_TIME
    """Column of the times: Unix seconds or ISO 8601."""
    power: str = ""
    """Column of the power; or ``energy``."""
    energy: str = ""
    """Column of the energy since any time: a counter that never falls."""
    unit: str = ""
    """Empty: W, or J."""
    timezone: str = ""
    """Zone of times that name none: ``Europe/Zurich``, ``UTC``, ``+01:00``; empty: such times are an error."""

    def __post_init__(self) -> None:
        """Check the combination.

        Raises:
            ConfigError: It is not valid.
        """
        if bool(self.power) == bool(self.energy):
            raise ConfigError("give the column of the log: --power COLUMN or --energy COLUMN")
        if self.unit and self.unit not in UNITS:
            raise ConfigError(f"--unit: {unknown('unit', self.unit, UNITS)}")
        units = POWER_UNITS if self.power else ENERGY_UNITS
        if self.unit and self.unit not in units:
            kind, option = ("a power", "--energy") if self.power else ("an energy", "--power")
            raise ConfigError(f"--unit {self.unit}: is not the unit of {kind}; use {option}, or {', '.join(units)}")
        zone_of(self.timezone)

    @property
    def factor(self) -> float:
        """Watts or joules per unit."""
        return (POWER_UNITS if self.power else ENERGY_UNITS).get(self.unit, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PowerLog:
    """A log: power or energy over time, and the limits of the meter that the log shows."""

    path: Path
    is_energy: bool
    series: Series
    """Watts, or joules of a counter, on the clock of the log."""
    traits: Traits
    device: str = ""
    """Of a log of several devices."""

    @property
    def span(self) -> tuple[float, float]:
        """First and last time."""
        return float(self.series.times_s[0]), float(self.series.times_s[-1])


def zone_of(text: str) -> datetime.tzinfo | None:
    """Return a time zone by its name or offset; None for an empty text.

    Raises:
        ConfigError: The time zone does not exist.
    """
    if not text:
        return None
    try:
        if match := _OFFSET.fullmatch(text):
            minutes = (int(match[2]) * 60 + int(match[3])) * (-1 if match[1] == "-" else 1)
            return datetime.timezone(datetime.timedelta(minutes=minutes))
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"--timezone {text!r}: no such time zone; use a name such as Europe/Zurich or UTC, or +01:00"
        ) from None


def accuracy_of(text: str) -> float:
    """Return the relative half-width of ``1%`` or ``0.01``.

    Raises:
        ConfigError: The text is neither.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if rest or not 0 <= share < 1:
        raise ConfigError(f"--accuracy {text!r}: must be a share of the value, such as 1% or 0.01")
    return share


def read_power_log(path: Path, form: LogFormat) -> PowerLog:
    """Read a CSV file.

    Raises:
        ConfigError: The file cannot be read, a column is missing, a value is not valid, or times do not increase; the
            text names file and line.
    """
    text = read_text(path)
    header, rows = csv_table(path, text)
    at = [column_of(path, name, header) for name in (form.time, form.power or form.energy)]
    (log,) = logs_of_rows(path, _csv_rows(path, rows, *at), form, time_parser(form))
    return log


def read_text(path: Path) -> str:
    """Return a log as text.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return files.read_text(path, files.MOST_LOG_BYTES, encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8") from error


def logs_of_rows(
    path: Path,
    rows: Iterable[Row],
    form: LogFormat,
    parse: Callable[[str], float],
    *,
    increments: bool = False,
) -> list[PowerLog]:
    """Return the log of each device.

    Args:
        path: The file, for messages.
        rows: Its rows, in order.
        form: Columns and unit.
        parse: Turns a time into Unix seconds; raises ValueError.
        increments: An energy is that since the row before, not that of a counter.

    Raises:
        ConfigError: A value or time is not valid; the text has the line.
    """
    devices: dict[str, _Rows] = {}
    for line, time_text, text, device in rows:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            if text.lower() in _MISSING:
                continue
            hint = f"; {_POINT}" if "," in text else ""
            raise ConfigError(f"{path}: line {line}: {shown(text)} is not a number{hint}")
        try:
            time_s = parse(time_text)
        except ValueError as error:
            raise ConfigError(f"{path}: line {line}: {error}") from None
        kept = devices.get(device)
        if kept is None:
            kept = devices[device] = _Rows()
        elif time_s <= kept.times_s[-1]:
            hint = "; record fewer rows, or fractions of a second" if time_s == kept.times_s[-1] else ""
            raise ConfigError(
                f"{path}: line {line}: the time {shown(time_text)} is not later than that of the row before{hint}"
            )
        elif form.energy and not increments and value < kept.values[-1]:
            raise ConfigError(f"{path}: line {line}: the energy falls to {text[:20]}: the meter was reset")
        if increments and value < 0:
            raise ConfigError(f"{path}: line {line}: the energy {text[:20]} is negative")
        kept.times_s.append(time_s)
        kept.values.append(value)
        if len(kept.values) <= _ROWS_FOR_DIGITS:
            kept.digits = max(kept.digits, _decimals(text))
    if not devices or min(len(kept.values) for kept in devices.values()) < 2:
        raise ConfigError(f"{path}: fewer than two rows with a value in the column {form.power or form.energy!r}")
    return [
        power_log(
            path,
            np.array(kept.times_s),
            np.array(kept.values),
            form,
            step=10.0**-kept.digits,
            device=device,
            increments=increments,
        )
        for device, kept in devices.items()
    ]


@dataclass(slots=True)
class _Rows:
    """The rows of one device, in the unit of the log."""

    times_s: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    digits: int = 0
    """The largest number of decimals."""


def power_log(
    path: Path,
    times_s: Floats,
    values: Floats,
    form: LogFormat,
    *,
    step: float,
    device: str = "",
    increments: bool = False,
) -> PowerLog:
    """Return a log of one device; values and their step are in the unit of the log."""
    is_energy = bool(form.energy)
    if increments:
        # The first value is of the time before the first row.
        values = np.concatenate(([0.0], np.cumsum(values[1:])))
    series = Series(times_s, values * form.factor, {"__name__": form.power or form.energy})
    traits = _traits(series, step * form.factor, is_energy=is_energy)
    return PowerLog(path=path, is_energy=is_energy, series=series, traits=traits, device=device)


def delimiter_of(text: str) -> str:
    """Return the delimiter of the first line that has the most of it."""
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)


def csv_lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row of a CSV with its line.

    Raises:
        ConfigError: The text is not CSV.
    """
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{path}: line {rows.line_num}: is not CSV: {error}") from error


def csv_table(path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the header of a CSV, and its rows that are not empty, each with its line; these raise ConfigError."""
    rows = csv_lines(path, text, delimiter_of(text))
    _, names = next(rows, (0, []))
    header = [name.strip() for name in names]
    return header, ((line, no_wider(path, line, row, header)) for line, row in rows if row)


def no_wider(path: Path, line: int, row: list[str], header: Sequence[str]) -> list[str]:
    """Return a row of a CSV.

    Raises:
        ConfigError: It has more cells than the header, so that it is not known which is which; empty ones may be there.
    """
    if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
        raise ConfigError(
            f"{path}: line {line}: has {count_of(len(row), 'column')}, the header has {len(header)}; {_POINT}"
        )
    return row


def column_of(path: Path, name: str, header: Sequence[str]) -> int:
    """Return the place of a column.

    Raises:
        ConfigError: It is missing, or there twice.
    """
    if header.count(name) != 1:
        problem = unknown("column", name, header) if name not in header else f"the column {name!r} is there twice"
        raise ConfigError(f"{path}: {problem}")
    return header.index(name)


def _csv_rows(path: Path, rows: Iterator[tuple[int, list[str]]], time_at: int, value_at: int) -> Iterator[Row]:
    for line, row in rows:
        try:
            yield line, row[time_at].strip(), row[value_at].strip(), ""
        except IndexError:
            raise ConfigError(f"{path}: line {line}: has only {count_of(len(row), 'column')}") from None


def _decimals(text: str) -> int:
    mantissa, _, exponent = text.lower().partition("e")
    return max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0)


def time_parser(form: LogFormat) -> Callable[[str], float]:
    """Return a function that turns a time of a log into Unix seconds; it raises ValueError."""
    zone = zone_of(form.timezone)

    @lru_cache(maxsize=1)  # a log may have a million rows, and most are in the minute of the row before
    def offset_of(minute: float) -> float | None:
        """Return the offset of the zone in seconds; None: in this minute the clocks are changed."""
        when = (_EPOCH + datetime.timedelta(minutes=minute)).replace(tzinfo=zone)
        offset = when.utcoffset()
        return offset.total_seconds() if offset is not None and offset == when.replace(fold=1).utcoffset() else None

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            pass
        else:
            if not 0 <= number < _LATEST_S:
                raise ValueError(f"the time {shown(text)} is not in Unix seconds (are they milliseconds?)")
            return number
        try:
            when = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{shown(text)} is not a time; use Unix seconds or ISO 8601, such as 2026-11-28T10:00:00Z"
            ) from None
        if when.tzinfo is None:
            if zone is None:
                raise ValueError(f"the time {shown(text)} has no time zone; give the log's with --timezone")
            local_s = (when - _EPOCH).total_seconds()
            offset_s = offset_of(local_s // 60)
            if offset_s is None:
                raise ValueError(
                    f"the time {shown(text)} exists twice, or not at all, in the zone {form.timezone}, because the "
                    "clocks change; give its offset with --timezone, such as +01:00"
                )
            return local_s - offset_s
        return when.timestamp()

    return parse


def _traits(series: Series, step: float, *, is_energy: bool) -> Traits:
    """Return the limits of the meter that a log shows.

    Power may stay the same because the load does, so its updates are taken for the rows. Energy rises with every update
    of the meter: if it does not rise with every row, updates are rarer, or steps are larger than the last digit.
    """
    if not is_energy:
        return Traits(refresh_s=series.spacing_s, resolution_watts=step)
    rises = np.diff(series.values)
    refresh_s = series.spacing_s
    changed_s = series.times_s[1:][rises > 0]
    if 1 < changed_s.size < rises.size:
        refresh_s = max(refresh_s, float(np.diff(changed_s).min()))
        step = max(step, float(rises[rises > 0].min()))
    return Traits(refresh_s=refresh_s, resolution_joules=step)
