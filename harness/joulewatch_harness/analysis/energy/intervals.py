"""Energy per hour, day or month, host and component, from the same integration as that of one window.

An interval is integrated in pieces of an hour. A piece with a restart or a gap is tried again in pieces of a minute, so
that they cost minutes only. What remains is unmeasured time: it is reported, and never counted as 0 J.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

from joulewatch_harness.analysis.energy.sensor_energies import (
    SensorEnergy,
    calibration_notices,
    frozen_notices,
    matches,
    measure,
)
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.sources.history import History, SampleSource
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.series import SensorId

Every = Literal["1h", "1d", "1mo"]
_PIECE_S: Final = 3600.0
_SHORT_PIECE_S: Final = 60.0
_PIECES_AT_ONCE: Final = 24
"""Pieces of one query: a month of samples does not fit in memory for many machines."""
_INTERRUPTIONS: Final = frozenset(
    ("exporter_restart", "no_samples", "sample_gap", "sensor_asleep", "sensor_down", "too_few_samples", "unbracketed",
     "unmeasured_time")
)  # fmt: skip
"""Reasons that may concern a part of a piece only. A frozen sensor is not seen as such in a minute."""
Group = tuple[str, str]
"""Host and component; the component of a whole server is ``node``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalEnergy:
    """The energy of one component of one host in one interval, as far as it is measured."""

    span: Span
    host: str
    component: str
    joules: float | None
    """Over the measured time; None: nothing is measured."""
    expanded_joules: float
    """At 95 % coverage: the sum over pieces and sensors, whose errors may be the same, so it is an upper limit."""
    accuracy_known: bool
    measured_s: float
    reasons: tuple[str, ...]
    """Reason codes of the unmeasured time."""
    methods: tuple[str, ...]

    @property
    def unmeasured_s(self) -> float:
        return max(self.span.duration_s - self.measured_s, 0.0)


@dataclass(slots=True)
class _Sum:
    joules: list[float] = field(default_factory=list)
    expanded: list[float] = field(default_factory=list)
    measured_s: list[float] = field(default_factory=list)
    accuracy_known: bool = True
    reasons: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)
    doubts: dict[tuple[SensorId, str], Notice] = field(default_factory=dict)
    """Sensor and reason -> the first notice about it."""

    def add(self, span: Span, rows: Sequence[SensorEnergy]) -> None:
        """Add a piece of time in which every sensor has a number."""
        energies = [row.joules for row in rows if row.joules is not None]
        self.joules += [energy.joules for energy in energies]
        self.expanded += [energy.expanded_joules for energy in energies]
        self.measured_s.append(span.duration_s)
        self.accuracy_known &= all(energy.accuracy_known for energy in energies)
        self.methods |= {row.record.method for row in rows}
        for row in rows:
            for notice in (*frozen_notices([row]), *calibration_notices([row])):
                self.doubts.setdefault((row.sensor, notice.reason), notice)


def calendar_spans(start_s: float, end_s: float, every: Every) -> list[Span]:
    """Divide a span at the full hours, days or months of the local time zone; the first and last may be shorter."""
    limits = [start_s]
    while limits[-1] < end_s:
        limits.append(min(_next_limit(limits[-1], every), end_s))
    return [Span(first, last) for first, last in pairwise(limits)]


def _next_limit(at_s: float, every: Every) -> float:
    local = datetime.datetime.fromtimestamp(at_s)
    if every == "1h":
        return round(at_s - local.minute * 60 - local.second - local.microsecond / 1e6) + 3600.0
    day = datetime.datetime(local.year, local.month, local.day)
    if every == "1d":
        return (day + datetime.timedelta(days=1)).timestamp()
    return (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1).timestamp()


def interval_energies(
    source: SampleSource, spans: Sequence[Span], patterns: Sequence[str], scope: str
) -> tuple[list[IntervalEnergy], list[Notice]]:
    """Return the energy of every host and component in every span, and warnings: one per sensor, and the source's.

    A host or component that has samples in any span has a row in each of them.

    Args:
        source: The samples.
        spans: As from ``calendar_spans``.
        patterns: Wildcards for sensors; none: all.
        scope: ``device``, ``node`` or ``all``, for both.

    Raises:
        QueryError: The source cannot be queried.
    """
    notices: dict[tuple[str, str], Notice] = {}
    sums = [_interval(source, span, patterns, scope, notices) for span in spans]
    groups = sorted({group for by_group in sums for group in by_group})
    rows = []
    for span, by_group in zip(spans, sums, strict=True):
        for host, component in groups:
            total = by_group.get((host, component), _Sum())
            measured_s = math.fsum(total.measured_s)
            if not total.reasons and measured_s < span.duration_s - 1e-6:
                # The component appeared later, or in another interval only.
                total.reasons.add("no_samples")
            row = IntervalEnergy(
                span=span,
                host=host,
                component=component,
                joules=math.fsum(total.joules) if total.measured_s else None,
                expanded_joules=math.fsum(total.expanded),
                accuracy_known=total.accuracy_known,
                measured_s=measured_s,
                reasons=tuple(sorted(total.reasons)),
                methods=tuple(sorted(total.methods)),
            )
            rows.append(row)
    doubts = {key: notice for by_group in sums for total in by_group.values() for key, notice in total.doubts.items()}
    return rows, [*notices.values(), *doubts.values()]


def _interval(
    source: SampleSource, span: Span, patterns: Sequence[str], scope: str, notices: dict[tuple[str, str], Notice]
) -> dict[Group, _Sum]:
    sums: dict[Group, _Sum] = {}
    groups: dict[Group, list[SensorId]] = {}
    pieces = list(_pieces(span, _PIECE_S))
    for first in range(0, len(pieces), _PIECES_AT_ONCE):
        part = pieces[first : first + _PIECES_AT_ONCE]
        limits = [part[0].start_s, *(piece.end_s for piece in part)]
        history = source.history([(at_s, at_s) for at_s in limits], None, power=True)
        notices.update({(notice.reason, notice.text): notice for notice in history.notices})
        for group, sensors in _groups(history, patterns, scope).items():
            # A sensor that disappears within the interval is missing from then on.
            groups[group] = sorted({*groups.get(group, ()), *sensors}) if group[1] != "node" else sensors
            sums.setdefault(group, _Sum())
        for piece in part:
            failed = _add_piece(history, groups, piece, sums)
            again = {group: groups[group] for group, reasons in failed.items() if reasons <= _INTERRUPTIONS}
            for group in failed.keys() - again:
                sums[group].reasons |= failed[group]
            if again:
                _add_short_pieces(source, again, piece, sums)
    return sums


def _add_short_pieces(
    source: SampleSource, groups: Mapping[Group, Sequence[SensorId]], piece: Span, sums: Mapping[Group, _Sum]
) -> None:
    """Add what can be measured of a piece that has no number as a whole."""
    history = source.history([(piece.start_s, piece.end_s)], None, power=True)
    for short in _pieces(piece, _SHORT_PIECE_S):
        for group, reasons in _add_piece(history, groups, short, sums).items():
            sums[group].reasons |= reasons


def _add_piece(
    history: History, groups: Mapping[Group, Sequence[SensorId]], piece: Span, sums: Mapping[Group, _Sum]
) -> dict[Group, set[str]]:
    """Add a piece to the sums; return the groups that have no number, each with the reasons."""
    measured = {row.sensor: row for row in measure(history, piece, (), "all")}
    failed = {}
    for group, sensors in groups.items():
        rows = [measured[sensor] for sensor in sensors if sensor in measured]
        reasons = {row.reason for row in rows if row.energy is None}
        if len(rows) < len(sensors):
            reasons.add("no_samples")
        if reasons:
            failed[group] = reasons
        else:
            sums[group].add(piece, rows)
    return failed


def _groups(history: History, patterns: Sequence[str], scope: str) -> dict[Group, list[SensorId]]:
    """Return the sensors of each host and component that may be summed."""
    groups: dict[Group, list[SensorId]] = {}
    nodes: dict[str, list[SensorId]] = {}
    for sensor, record in sorted(history.sensors.items()):
        host = record.host or history.nodenames.get(sensor.exporter, sensor.exporter)
        if not matches(sensor, patterns):
            continue
        if sensor.scope == "device" and scope != "node":
            groups.setdefault((host, sensor.component), []).append(sensor)
        elif sensor.scope == "node" and scope != "device":
            nodes.setdefault(host, []).append(sensor)
    for host, sensors in nodes.items():
        # Several sensors of one server measure the same energy.
        primary = [sensor for sensor in sensors if history.sensors[sensor].primary]
        groups[host, "node"] = (primary or sensors)[:1]
    return groups


def _pieces(span: Span, length_s: float) -> Iterator[Span]:
    """Divide a span at the multiples of a length of Unix time."""
    limits = [span.start_s]
    while limits[-1] < span.end_s:
        limits.append(min((math.floor(limits[-1] / length_s) + 1) * length_s, span.end_s))
    for first, last in pairwise(limits):
        yield Span(first, last)
