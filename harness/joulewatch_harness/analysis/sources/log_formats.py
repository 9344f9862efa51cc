"""Formats of logs that tools and meters write, as a table; ``power_log`` has plain CSV.

Each format has a mark that identifies it in the first lines. A format with columns names them; any other has a pattern
that matches one reading. Both give rows of the same shape, so all logs have the same checks.
"""

from __future__ import annotations

import datetime
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Final, Literal

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness import files
from joulewatch_harness.analysis.sources.jls import JLS, is_jls, read_jls
from joulewatch_harness.analysis.sources.power_log import (
    LogFormat,
    PowerLog,
    Row,
    column_of,
    csv_lines,
    delimiter_of,
    logs_of_rows,
    no_wider,
    power_log,
    read_power_log,
    read_text,
    time_parser,
)
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown

_HEAD: Final = 8192
"""Characters in which the mark of a format must be."""
_ENERGY_BIN: Final = struct.Struct("<Bf")
_ENERGY_BIN_VERSION: Final = 0xF1
CSV: Final = "csv"
ENERGY_BIN: Final = "energy.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLog:
    """A format that is recognized."""

    name: str
    title: str
    mark: re.Pattern[str]
    value: Literal["power", "energy", "increments"]
    """``increments``: the energy since the row before."""
    unit: str
    component: str
    """Of what the log measures; ``node``: the whole machine."""
    reading: re.Pattern[str] | None = None
    """One reading, with the groups ``time``, ``value`` and perhaps ``device``; None: the log has columns."""
    times: tuple[tuple[str, ...], ...] = ()
    """Columns that are the time together; of each, the first name that is there is used."""
    values: tuple[str, ...] = ()
    """Columns of the value; the first of them that is there is used."""
    per_device: str = ""
    """Two header lines: all columns below this one are devices. They go before ``values``."""
    devices: tuple[str, ...] = ()
    """Columns that distinguish devices; the first of them that is there is used."""
    blanks: bool = False
    """Columns are separated by blanks, and the header may be repeated."""
    iso: tuple[str, str] | None = None
    """Pattern and replacement that make ISO 8601 of a time."""
    dates: tuple[str, ...] = ()
    """Other formats of times, for ``strptime``."""
    hint: str = ""
    """How to write such a log, for a message when a column is missing."""


_US_DATE: Final = (r"(\d\d)-(\d\d)-(\d{4})[ T]", r"\3-\1-\2 ")
KNOWN: Final = (
    KnownLog(
        name="ptdaemon",
        title="SPEC PTDaemon, as in MLPerf Power",
        mark=re.compile(r"^Time,\d\d-\d\d-\d{4} [\d:.]+,Watts,", re.M),
        reading=re.compile(r"^Time,(?P<time>[^,\n]*),Watts,(?P<value>[^,\n]*)", re.M),
        value="power",
        unit="W",
        component="node",
        iso=_US_DATE,
    ),
    KnownLog(
        name="nvidia-smi",
        title="nvidia-smi --query-gpu=timestamp,uuid,power.draw --format=csv",
        mark=re.compile(r"^(?=.*\btimestamp\b).*\bpower\.draw", re.M),
        times=(("timestamp",),),
        values=(
            "power.draw.instant [W]",
            "power.draw [W]",
            "power.draw.average [W]",
            "power.draw.instant",
            "power.draw",
            "power.draw.average",
        ),
        devices=("uuid", "gpu_uuid", "index", "pci.bus_id", "gpu_bus_id"),
        value="power",
        unit="W",
        component="gpu",
        iso=(r"(\d{4})/(\d\d)/(\d\d) ", r"\1-\2-\3 "),
        hint="with --query-gpu=timestamp,uuid,power.draw",
    ),
    KnownLog(
        name="joulescope",
        title="CSV of the Joulescope tools",
        mark=re.compile(r'\A#?"?time[^,\n]*,\s*"?current[^,\n]*,\s*"?voltage[^,\n]*,\s*"?power', re.I),
        times=(("#time", "time", "time (s)"),),
        values=("power", "power (W)"),
        value="power",
        unit="W",
        component="node",
    ),
    KnownLog(
        name="tegrastats",
        title="tegrastats of NVIDIA Jetson (JetPack 5 or later, which write the time)",
        mark=re.compile(r"\bRAM \d+/\d+MB.*\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0|VIN) \d+"),
        reading=re.compile(
            r"^(?P<time>(?:\d\d-\d\d-\d{4} [\d:.]+)?) ?RAM .*?"
            r"\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0|VIN) (?P<value>\d+)",
            re.M,
        ),
        value="power",
        unit="mW",
        component="node",
        iso=_US_DATE,
    ),
    KnownLog(
        name="turbostat",
        title="turbostat --Summary --show Time_Of_Day_Seconds,PkgWatt",
        mark=re.compile(r"^(?:.*\s)?PkgWatt(?:\s|$)", re.M),
        times=(("Time_Of_Day_Seconds",),),
        values=("PkgWatt",),
        blanks=True,
        value="power",
        unit="W",
        component="cpu",
        hint="with --Summary --show Time_Of_Day_Seconds,PkgWatt",
    ),
    KnownLog(
        name="pcm",
        title="Intel PCM: pcm -csv",
        mark=re.compile(r"^Date[,;]Time[,;].*Proc Energy \(Joules\)", re.M),
        times=(("Date",), ("Time",)),
        per_device="Proc Energy (Joules)",
        values=("Proc Energy (Joules)",),
        value="increments",
        unit="J",
        component="cpu",
    ),
    KnownLog(
        name="ipmitool",
        title="ipmitool dcmi power reading, repeated",
        mark=re.compile(r"Instantaneous power reading:"),
        reading=re.compile(
            r"Instantaneous power reading: *(?P<value>[\d.]+) Watts(?:(?!Instantaneous)[\s\S])*?"
            r"IPMI timestamp: *(?P<time>[^\n]*?) *$",
            re.M,
        ),
        value="power",
        unit="W",
        component="node",
        dates=("%a %b %d %H:%M:%S %Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%y %H:%M:%S"),
    ),
)
"""The formats in the order in which they are tried."""
NAMES: Final = (CSV, *(known.name for known in KNOWN), JLS, ENERGY_BIN)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadLog:
    """The logs of one file, and what they measure."""

    format: str
    component: str
    logs: tuple[PowerLog, ...]


def read_log(path: Path, form: LogFormat | None, *, unit: str = "", timezone: str = "") -> ReadLog:
    """Read a log in any format.

    Args:
        path: The file.
        form: The columns of a plain CSV; None: the format is recognized.
        unit: Of the values, if it is not that of the format.
        timezone: Of times that name none.

    Raises:
        ConfigError: The format is not known, or the log is not valid.
    """
    if form is not None:
        return ReadLog(format=CSV, component="node", logs=(read_power_log(path, form),))
    if _is_energy_bin(path):
        return ReadLog(format=ENERGY_BIN, component="node", logs=(_energy_bin(path, unit or "uJ"),))
    if is_jls(path):
        return ReadLog(format=JLS, component="node", logs=tuple(read_jls(path, unit)))
    text = read_text(path)
    known = next((known for known in KNOWN if known.mark.search(text, 0, _HEAD)), None)
    if known is None:
        raise ConfigError(
            f"{path}: the format is not recognized (known: {', '.join(NAMES)}); of CSV, give the columns with --time "
            "and --power or --energy"
        )
    column = known.values[0] if known.values else known.value
    form = LogFormat(
        power=column if known.value == "power" else "",
        energy="" if known.value == "power" else column,
        unit=unit or known.unit,
        timezone=timezone,
    )
    rows = _readings(text, known) if known.reading is not None else _columns(path, text, known)
    logs = logs_of_rows(path, rows, form, _times(known, form), increments=known.value == "increments")
    return ReadLog(format=known.name, component=known.component, logs=tuple(logs))


def _is_energy_bin(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return head == bytes([_ENERGY_BIN_VERSION]) or path.name.endswith(ENERGY_BIN)


def _energy_bin(path: Path, unit: str) -> PowerLog:
    """Read a trace of the EEMBC and MLPerf Tiny framework.

    One byte 0xF1, the samples per second, and the energy of each sample; all numbers are little-endian 32-bit floats.
    Times begin at 0: the file has none.
    """
    try:
        content = files.read_bytes(path, files.MOST_LOG_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not content or content[0] != _ENERGY_BIN_VERSION:
        raise ConfigError(f"{path}: is not an energy.bin: the first byte is not 0x{_ENERGY_BIN_VERSION:X}")
    if (len(content) - _ENERGY_BIN.size) % 4 or len(content) < _ENERGY_BIN.size + 4:
        raise ConfigError(f"{path}: is not complete: {len(content)} bytes are not a header and whole samples")
    _, rate_hz = _ENERGY_BIN.unpack_from(content)
    samples = np.frombuffer(content, dtype="<f4", offset=_ENERGY_BIN.size).astype(np.float64)
    if not (np.isfinite(rate_hz) and rate_hz > 0):
        raise ConfigError(f"{path}: the rate of {rate_hz:g} samples per second is not valid")
    if not (np.isfinite(samples).all() and float(samples.min()) >= 0):
        at = int(np.flatnonzero(~(samples >= 0) | ~np.isfinite(samples))[0])
        raise ConfigError(f"{path}: sample {at}: {samples[at]:g} is not an energy")
    times_s = np.arange(samples.size + 1) / rate_hz
    form = LogFormat(energy="energy", unit=unit)
    return power_log(path, times_s, np.concatenate(([0.0], samples)), form, step=0.0, increments=True)


def _readings(text: str, known: KnownLog) -> Iterator[Row]:
    """Yield the matches of a pattern."""
    assert known.reading is not None
    line, counted = 1, 0
    for match in known.reading.finditer(text):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        yield line, match["time"].strip(), match["value"].strip(), ""


def _columns(path: Path, text: str, known: KnownLog) -> Iterator[Row]:
    """Yield the rows of a log with columns."""
    lines: Iterator[tuple[int, list[str]]]
    if known.blanks:
        lines = enumerate((line.split() for line in text.splitlines()), start=1)
    else:
        head = text[:_HEAD].splitlines()
        lines = csv_lines(path, text, delimiter_of(head[1] if known.per_device else head[0]))
    groups: list[str] = []
    header: list[str] = []
    values: list[tuple[int, str]] = []
    times: list[int] = []
    device_at: int | None = None
    last = 0
    for line, cells in lines:
        if not header:
            names = [cell.strip() for cell in cells]
            if known.per_device and names[:1] != [*known.times[0]]:
                # A group is named at its first column only.
                groups = [*accumulate(names, _filled)]
                continue
            if known.blanks and not set(known.values) & set(names):
                continue
            header = names
            times = _time_columns(path, known, header)
            values = _value_columns(path, known, groups, header)
            device_at = next((header.index(name) for name in known.devices if name in header), None)
            last = max(*times, *(at for at, _ in values), device_at or 0)
            continue
        if len(cells) <= last:
            if not known.blanks and any(cells):
                raise ConfigError(f"{path}: line {line}: has only {count_of(len(cells), 'column')}")
            continue
        if known.blanks and cells == header:
            continue
        if not known.blanks:
            no_wider(path, line, cells, header)
        time_text = " ".join(cells[at].strip() for at in times)
        for at, name in values:
            # nvidia-smi writes the unit behind each value, unless it is asked not to, and [why it has none] instead.
            number = cells[at].strip().removesuffix(f" {known.unit}")
            number = "" if number.startswith("[") else number
            yield line, time_text, number, name or ("" if device_at is None else cells[device_at].strip())


def _filled(group: str, name: str) -> str:
    return name or group


def _time_columns(path: Path, known: KnownLog, header: Sequence[str]) -> list[int]:
    places = []
    for names in known.times:
        name = next((name for name in names if name in header), None)
        if name is None:
            hint = f"; write the log {known.hint}" if known.hint else ""
            raise ConfigError(f"{path}: {unknown('column', names[0], header)}{hint}")
        places.append(header.index(name))
    return places


def _value_columns(path: Path, known: KnownLog, groups: Sequence[str], header: Sequence[str]) -> list[tuple[int, str]]:
    """Return the columns of values, each with its device."""
    if known.per_device:
        pairs = enumerate(zip(groups, header, strict=False))
        under = [(at, name) for at, (group, name) in pairs if group == known.per_device and name]
        if under:
            return under
    name = next((name for name in known.values if name in header), known.values[0])
    return [(column_of(path, name, header), "")]


def _times(known: KnownLog, form: LogFormat) -> Callable[[str], float]:
    """Return the parser of the times of a format."""
    parse = time_parser(form)
    if known.iso is not None:
        pattern, replacement = re.compile(known.iso[0]), known.iso[1]
        return lambda text: parse(pattern.sub(replacement, text, count=1) if text else _no_time())
    if not known.dates:
        return parse

    def parse_date(text: str) -> float:
        # A name of the zone behind the time is that of the BMC.
        bare, utc = (text[:-4], "Z") if text.endswith((" UTC", " GMT")) else (text, "")
        for form_of_date in known.dates:
            try:
                when = datetime.datetime.strptime(bare, form_of_date)
            except ValueError:
                continue
            return parse(when.isoformat() + utc)
        return parse(text)

    return parse_date


def _no_time() -> str:
    raise ValueError("the reading has no time; tegrastats writes it since JetPack 5")


def moved(log: PowerLog, seconds: float) -> PowerLog:
    """Return a log whose times are later by some seconds.

    Raises:
        ConfigError: So many seconds leave too few digits for the time between two rows.
    """
    times_s = log.series.times_s + seconds
    if not bool((np.diff(times_s) > 0).all()):
        raise ConfigError(f"{log.path}: an offset of {seconds:g} s is too large for the time between its rows")
    series = replace(log.series, times_s=times_s)
    return replace(log, series=series)
