"""Tables of measured energies: the columns that ``joulewatch fit`` reads, and their checks."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from joulewatch_harness import files
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.prediction.features import FEATURES, Features, canonical, family_of

SCOPES: Final = ("wall", "devices", "rails", "net")
"""What an energy covers: the whole machine, all device sensors, supply rails of a board, devices less idle power."""
TEXTS: Final = ("network", "device", "runtime", "precision", "scope")
COLUMNS: Final = (
    "network", "family", "device", "platform", "runtime", "precision", "batch_size", "scope", "joules_per_inference",
    "seconds_per_inference", *FEATURES, "operators", "idle_watts",
)  # fmt: skip
UNIT_FACTOR: Final = 100.0
"""Rows of one device whose mean power differs from the median by more than this factor have mixed units."""
LARGEST_BATCH: Final = 10**9
LARGEST: Final = 1e30
"""Numbers in a table are smaller, and larger than its inverse."""
SAME_FEATURES: Final = 0.01
"""Two rows of one network may differ by this much in a feature."""
_MAY_BE_ZERO: Final = ("macs_dense", "macs_depthwise", "weight_elements")
_MOST_ROWS_NAMED: Final = 6
_UNIT: Final = re.compile(r"(^|_)units?($|_)", re.I)
_QUANTITY: Final = re.compile(r"joule|energy|latency|second|(^|_)(unit|units|mj|uj|ms|us|wh|watts?|power)($|_)", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured energy."""

    network: str
    family: str
    device: str
    platform: str
    runtime: str
    precision: str
    batch_size: int
    scope: str
    joules: float
    """Per inference."""
    seconds: float | None
    """Per inference; None: not measured."""
    features: Features | None
    """None: the source has none; such a row cannot be fitted."""
    method: str = "imported"
    where: str
    """File and row, for errors."""
    idle_watts: float | None = None
    """Power at rest of all that the energy covers; None: not measured."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What one model is fitted for."""
        return self.scope, self.device, self.runtime, self.precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network to predict."""

    name: str
    family: str
    """Empty: not given."""
    features: Features
    seconds: float | None = None
    """Measured, per inference; None: not known."""
    batch_size: int | None = None
    """None: not given."""


def networks_of(lines: Mapping[int, Mapping[str, str]], source: str) -> list[Network]:
    """Return the networks of a table, at least one.

    Raises:
        ConfigError: A column or a cell is missing or not valid.
    """
    _check_header(next(iter(lines.values())), source, ("network", *FEATURES))
    networks = []
    for number, line in lines.items():
        where = f"{source} row {number}"
        features = _features(line, where)
        if features is None:
            raise ConfigError(f"{where}: {', '.join(FEATURES)} are empty")
        networks.append(
            Network(
                name=line["network"],
                family=line.get("family", ""),
                features=features,
                seconds=_positive(line, "seconds_per_inference", where) if line.get("seconds_per_inference") else None,
                batch_size=_batch_size(line["batch_size"], where) if line.get("batch_size") else None,
            )
        )
    return networks


def read_csv(path: Path) -> dict[int, dict[str, str]]:
    """Return the rows of a CSV file, at least one, by their number; the header is row 1 unless rows above are empty.

    Empty rows and columns without a name are ignored.

    Raises:
        ConfigError: It cannot be read, has no rows, or a row has more or fewer cells than the header.
    """
    try:
        text = files.read_bytes(path, files.MOST_DATA_BYTES).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""))
        every = {number: [cell.strip() for cell in cells] for number, cells in enumerate(lines, 1)}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: byte {error.object[error.start]:#x} at {error.start}") from error
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    rows = {number: cells for number, cells in every.items() if any(cells)}
    header = rows.pop(min(rows, default=0), [])
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise ConfigError(f"{path}: columns that are there twice: {', '.join(twice)}")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise ConfigError(f"{path}: cells must be separated by commas, and numbers have decimal points")
    if not rows:
        raise ConfigError(f"{path}: no rows")
    for number, cells in rows.items():
        if len(cells) != len(header):
            raise ConfigError(f"{path} row {number}: has not as many cells as the header")
        odd = next((cell for cell in cells if not cell.isprintable()), None)
        if odd is not None:
            raise ConfigError(f"{path} row {number}: a cell has characters that cannot be printed: {odd[:20]!r}")
    return {
        number: {name: cell for name, cell in zip(header, cells, strict=True) if name} for number, cells in rows.items()
    }


def rows_of(lines: Mapping[int, Mapping[str, str]], source: str, required: Iterable[str]) -> list[Row]:
    """Return the rows of a table with the documented columns, at least one.

    Raises:
        ConfigError: A column or a cell is missing or not valid.
    """
    _check_header(next(iter(lines.values())), source, required)
    rows = []
    for number, line in lines.items():
        where = f"{source} row {number}"
        for column in TEXTS:
            if not line[column]:
                raise ConfigError(f"{where}: {column} is empty")
        if line["scope"] not in SCOPES:
            raise ConfigError(f"{where}: {unknown('scope', line['scope'], SCOPES)}")
        rows.append(
            Row(
                **{column: line[column] for column in TEXTS},
                family=line.get("family") or family_of(line["network"]),
                platform=line.get("platform", ""),
                batch_size=_batch_size(line.get("batch_size") or "1", where),
                joules=_positive(line, "joules_per_inference", where),
                seconds=_positive(line, "seconds_per_inference", where) if line.get("seconds_per_inference") else None,
                features=_features(line, where),
                idle_watts=_positive(line, "idle_watts", where) if line.get("idle_watts") else None,
                where=where,
            )
        )
    return rows


def check_rows(rows: Sequence[Row]) -> None:
    """Check what only several rows show: duplicate keys, mixed scopes, contradicting features, mixed units.

    Raises:
        ConfigError: The text names the rows.
    """
    keys: dict[tuple[object, ...], list[Row]] = {}
    scopes: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    networks: dict[tuple[str, str], Row] = {}
    powers: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        keys.setdefault((*row.key, row.network, row.batch_size), []).append(row)
        scopes.setdefault(row.key[1:], {}).setdefault(row.scope, []).append(row)
        if row.seconds is not None:
            powers.setdefault(row.key, []).append(row)
        if row.features is None:
            continue
        other = networks.setdefault((row.network, row.precision), row)
        assert other.features is not None
        for name, a, b in zip(FEATURES, row.features.vector(), other.features.vector(), strict=True):
            if abs(a - b) > SAME_FEATURES * max(a, b):
                raise ConfigError(
                    f"{row.where} and {other.where}: {name} of network {row.network} is {a:g} and {b:g}; different "
                    "networks need different names"
                )
    for same in keys.values():
        if len(same) > 1:
            first = same[0]
            raise ConfigError(
                f"{listed(same)}: the same network, device, runtime, precision, batch size and scope "
                f"({first.network}, {first.device}, {first.runtime}, {first.precision}, {first.batch_size}, "
                f"{first.scope}); a name must contain all that differs, such as the resolution"
            )
    for (device, runtime, precision), by_scope in scopes.items():
        if len(by_scope) > 1:
            parts = "; ".join(f"{scope}: {listed(some)}" for scope, some in by_scope.items())
            raise ConfigError(
                f"{device}, {runtime}, {precision}: mixed scopes ({parts}); fit one scope at a time, because their "
                "energies cannot be compared"
            )
    for some in powers.values():
        centre = median(row.joules / (row.seconds or 1.0) for row in some)
        off = [
            row for row in some if not centre / UNIT_FACTOR < row.joules / (row.seconds or 1.0) < centre * UNIT_FACTOR
        ]
        if off:
            raise ConfigError(
                f"{listed(off)}: mixed units? Energy / time is more than {UNIT_FACTOR:g} times above or below the "
                f"{centre:.3g} W of other rows of the device; joules_per_inference is in J, seconds_per_inference in s"
            )


def _check_header(header: Iterable[str], source: str, required: Iterable[str]) -> None:
    names = set(header)
    odd = sorted(name for name in names - set(COLUMNS) if _QUANTITY.search(name))
    missing = [name for name in required if name not in names]
    if missing:
        hint = f"; {', '.join(odd)}: convert to joules_per_inference and seconds_per_inference" if odd else ""
        raise ConfigError(f"{source}: missing columns: {', '.join(missing)}{hint}")
    # Next to energy and time in base units, others cannot be mistaken for them; a unit would contradict them.
    if "seconds_per_inference" in names:
        odd = [name for name in odd if _UNIT.search(name)]
    if odd:
        raise ConfigError(
            f"{source}: {', '.join(odd)}: energies belong in joules_per_inference (J), times in seconds_per_inference "
            "(s); remove other columns of quantities and units"
        )


def _positive(line: Mapping[str, str], column: str, where: str) -> float:
    text = line[column]
    value = _number(text)
    if not 1 / LARGEST <= value <= LARGEST:
        problem = "is empty" if not text else f"must be a positive number without a unit, got {text[:20]!r}"
        raise ConfigError(f"{where}: {column} {problem}")
    return value


def _number(text: str) -> float:
    """Return a number as spreadsheets and other programs write it; nan if it is not one."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _batch_size(text: str, where: str) -> int:
    size = _number(text)
    if not (1 <= size <= LARGEST_BATCH and size.is_integer()):
        raise ConfigError(f"{where}: batch_size must be an integer from 1 to {LARGEST_BATCH}, got {text[:20]!r}")
    return int(size)


def _features(line: Mapping[str, str], where: str) -> Features | None:
    if not any(line.get(name) for name in FEATURES):
        return None
    numbers: dict[str, Any] = {name: _feature(line.get(name, ""), name, where) for name in FEATURES}
    return Features(**numbers, operators=canonical(line.get("operators", "").split()))


def _feature(text: str, name: str, where: str) -> float:
    if name in _MAY_BE_ZERO and _number(text) == 0:
        return 0.0
    return _positive({name: text}, name, where)


def listed(rows: Sequence[Row]) -> str:
    """Return the places of rows, for errors."""
    names = [row.where for row in rows[:_MOST_ROWS_NAMED]]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
