"""The energy per unit of counters in one window: the whole, by a label, and by least squares. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.costs import Costs, fit_costs, sub_windows
from joulewatch_harness.analysis.energy.per_counter import (
    Increase,
    Quotient,
    check_units,
    increase,
    joules_per_unit,
    share_of,
)
from joulewatch_harness.analysis.energy.sensor_energies import Joules, SensorEnergy, measure, sum_of
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.sources.counters import Counter, groups_by
from joulewatch_harness.analysis.sources.history import History
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.llm_servers import llm_servers
from joulewatch_harness.analysis.sources.series import SensorId, is_loopback
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95

_REFRESHES: Final = 4.0
"""A sub-window is at least so many refresh periods of a sensor long, times the samples of a sub-window."""
_HOST_LABELS: Final = ("host", "nodename", "node", "hostname")
_LISTED: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterRow:
    """One counter, or its part with one value of a label."""

    counter: str
    """As it was asked for."""
    group: str | None = None
    """Value of the label; None: the whole counter."""
    targets: int = 0
    units: Increase | None = None
    energy: Joules | None = None
    """Of a group: its share in proportion to the counter."""
    per_unit: Quotient | None = None
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerCounter:
    """The result."""

    energy: Joules | None
    sensors: tuple[SensorEnergy, ...]
    """Those that the energy is the sum of."""
    rows: tuple[CounterRow, ...]
    label: str = ""
    """Of the groups; empty: no groups."""
    costs: Costs | None = None
    costs_of: tuple[str, ...] = ()
    """The counters of the fit; empty: none was asked for."""
    costs_reason: str = ""
    costs_text: str = ""
    notices: tuple[Notice, ...] = field(default=())

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines whose energy it is."""
        return tuple(sorted({row.record.host or row.sensor.exporter for row in self.sensors}))


def summed(rows: Sequence[SensorEnergy], scope: str) -> list[SensorEnergy]:
    """Return the sensors that may be added: the devices, or with the scope ``node`` one sensor for each server."""
    if scope != "node":
        return [row for row in rows if row.sensor.scope == "device"]
    servers: dict[str, SensorEnergy] = {}
    for row in rows:
        host = row.record.host or row.sensor.exporter
        if row.sensor.scope == "node" and (
            host not in servers or (row.record.primary and not servers[host].record.primary)
        ):
            servers[host] = row
    return list(servers.values())


def per_counter(
    history: History,
    span: Span,
    counters: Mapping[str, Sequence[Counter]],
    *,
    patterns: Sequence[str] = (),
    scope: str = "device",
    label: str = "",
    fit: Sequence[str] = (),
) -> PerCounter:
    """Return the energy of a window per unit of each counter.

    Args:
        history: Of the sensors.
        span: The window.
        counters: Counter, as it was asked for -> its series.
        patterns: Wildcards for sensors; none: all.
        scope: ``device`` or ``node``.
        label: Label; each of its values has a row.
        fit: Counters whose costs are separated by least squares; none: no fit.
    """
    sensors = summed(measure(history, span, patterns, scope), scope)
    energy = sum_of(sensors)
    rows: list[CounterRow] = []
    for name, series in counters.items():
        rows.append(_row(name, None, series, energy, span))
        if label:
            groups = groups_by(series, label)
            rows += [_group(name, value, groups, energy, span) for value in groups]
    result = PerCounter(
        energy=energy,
        sensors=tuple(sensors),
        rows=tuple(rows),
        label=label,
        notices=tuple(_notices(history, sensors, counters)),
    )
    if not fit:
        return result
    return _with_costs(result, history, span, {name: counters[name] for name in fit})


def _row(name: str, group: str | None, series: Sequence[Counter], energy: Joules | None, span: Span) -> CounterRow:
    targets = len({counter.target for counter in series})
    try:
        units = increase(series, span)
    except CoverageError as error:
        return CounterRow(counter=name, group=group, targets=targets, reason=error.reason, text=str(error))
    try:
        quotient = None if energy is None else joules_per_unit(energy, units)
    except CoverageError as error:
        return CounterRow(
            counter=name, group=group, targets=targets, units=units, energy=energy, reason=error.reason, text=str(error)
        )
    reason, text = ("no_energy", "the energy of a sensor is missing") if energy is None else ("", "")
    return CounterRow(
        counter=name,
        group=group,
        targets=targets,
        units=units,
        energy=energy,
        per_unit=quotient,
        reason=reason,
        text=text,
    )


def _group(
    name: str, value: str, groups: Mapping[str, Sequence[Counter]], energy: Joules | None, span: Span
) -> CounterRow:
    """Return the row of one value of a label: its energy is the share in proportion to the counter."""
    own = groups[value]
    row = _row(name, value, own, energy, span)
    if row.units is None or energy is None:
        return row
    others = [counter for key, series in groups.items() if key != value for counter in series]
    try:
        rest = increase(others, span) if others else Increase(value=0.0, expanded=0.0, lower=0.0, upper=0.0)
    except CoverageError as error:
        return CounterRow(
            counter=name, group=value, targets=row.targets, units=row.units, reason=error.reason, text=str(error)
        )
    if row.units.value + rest.value <= 0:
        return row
    share = share_of(energy, row.units, rest)
    try:
        check_units(row.units)
        quotient = joules_per_unit(energy, _sum(row.units, rest))
    except CoverageError as error:
        return CounterRow(
            counter=name,
            group=value,
            targets=row.targets,
            units=row.units,
            energy=share,
            reason=error.reason,
            text=str(error),
        )
    return CounterRow(counter=name, group=value, targets=row.targets, units=row.units, energy=share, per_unit=quotient)


def _sum(one: Increase, other: Increase) -> Increase:
    return Increase(
        value=one.value + other.value,
        expanded=math.hypot(one.expanded, other.expanded),
        lower=one.lower + other.lower,
        upper=one.upper + other.upper,
    )


def _with_costs(
    result: PerCounter, history: History, span: Span, counters: Mapping[str, Sequence[Counter]]
) -> PerCounter:
    try:
        costs = _costs(result, history, span, counters)
    except CoverageError as error:
        return replace(result, costs_of=tuple(counters), costs_reason=error.reason, costs_text=str(error))
    return replace(result, costs_of=tuple(counters), costs=costs)


def _costs(result: PerCounter, history: History, span: Span, counters: Mapping[str, Sequence[Counter]]) -> Costs:
    if result.energy is None:
        raise CoverageError("no_energy", "the energy of a sensor is missing")
    wanted = {row.sensor for row in result.sensors}
    sampled = [
        series for known in (history.counters, history.powers) for sensor, series in known.items() if sensor in wanted
    ]
    spacings_s = [series.spacing_s for series in sampled]
    spacings_s += [counter.series.spacing_s for series in counters.values() for counter in series]
    refreshes_s = [row.record.refresh_s or 0.0 for row in result.sensors]
    spacing_s = max([spacing for spacing in spacings_s if math.isfinite(spacing)], default=0.0)
    count = sub_windows(
        span.duration_s, max(spacing_s, *(_REFRESHES * refresh for refresh in refreshes_s)), len(counters) + 1
    )
    edges_s = np.linspace(span.start_s, span.end_s, count + 1).tolist()
    only = _only(history, wanted)
    joules, standard = np.zeros(count), np.zeros(count)
    units, units_standard = np.zeros((count, len(counters))), np.zeros((count, len(counters)))
    for at in range(count):
        part = Span(edges_s[at], edges_s[at + 1])
        for row in measure(only, part, (), "all"):
            if row.energy is None:
                raise CoverageError(row.reason, f"{row.sensor}: {row.text}")
            joules[at] += row.energy.joules
            standard[at] += row.energy.sampling_joules
        for column, series in enumerate(counters.values()):
            one = increase(series, part)
            units[at, column], units_standard[at, column] = one.value, one.expanded / NORMAL_95
    return fit_costs(
        tuple(counters),
        joules,
        standard,
        units,
        units_standard,
        span.duration_s / count,
        _accuracy(result.sensors) / result.energy.joules if result.energy.joules else 0.0,
    )


def _accuracy(sensors: Sequence[SensorEnergy]) -> float:
    """Return the expanded uncertainty in joules that is the same in all sub-windows: the accuracy of the sensors."""
    total = 0.0
    for row in sensors:
        if row.energy is not None:
            total += NORMAL_95 * math.sqrt(max(row.energy.standard_joules**2 - row.energy.sampling_joules**2, 0.0))
    return total


def _only(history: History, wanted: set[SensorId]) -> History:
    return replace(history, sensors={sensor: record for sensor, record in history.sensors.items() if sensor in wanted})


def _notices(
    history: History, sensors: Sequence[SensorEnergy], counters: Mapping[str, Sequence[Counter]]
) -> Iterator[Notice]:
    """Yield what a reader should know about the quotient's two parts."""
    machines = {row.sensor.exporter: _names(history, row) for row in sensors}
    series = [counter for parts in counters.values() for counter in parts]
    places = {counter.target: _places(counter) for counter in series}
    used = {exporter for exporter, names in machines.items() if any(names & place for place in places.values())}
    lost = sorted(
        target[1] for target, place in places.items() if not any(names & place for names in machines.values())
    )
    other = sorted(machines.keys() - used)
    if other and used:
        yield Notice(
            severity="warning",
            reason="other_machines",
            exporter=other[0],
            text=f"the energy includes {_listed(other)}, where the counter has no target: select the machines with "
            "--sensor 'INSTANCE/*'",
        )
    if lost and (used or len(machines) > 1):
        yield Notice(
            severity="warning",
            reason="unmatched_targets",
            exporter="",
            text=f"{_listed(lost)}: no machine of the energy has this name; if the target runs on another one, its "
            "units count and its energy does not. A target label host with the machine's name shows it",
        )
    ended = sorted({counter.labels.get("instance", "") for counter in series if counter.ended})
    if ended:
        yield Notice(
            severity="info",
            reason="target_ended",
            exporter="",
            text=f"{_listed(ended)} ended in the window: what it counted after its last scrape is missing, and in ±",
        )
    by_request = sorted({counter.name for counter in series} & _counted_by_request())
    if by_request:
        yield Notice(
            severity="info",
            reason="counted_at_end",
            exporter="",
            text=f"{_listed(by_request)}: counted when a request ends, so use a window that is long compared with one",
        )


def _counted_by_request() -> set[str]:
    return {
        name
        for server in llm_servers().values()
        if server.counted == "request"
        for name in (*server.output, *server.input, *server.cached)
    }


def _names(history: History, row: SensorEnergy) -> set[str]:
    """Return the names of a sensor's machine."""
    exporter = row.sensor.exporter
    names = {row.record.host, history.nodenames.get(exporter, ""), _host(exporter)}
    return {_short(name) for name in names if name}


def _places(counter: Counter) -> set[str]:
    """Return the names of the machine of a counter's target, as far as its labels show them."""
    given = [counter.labels[label] for label in _HOST_LABELS if counter.labels.get(label)]
    return {_short(name) for name in given or [_host(counter.labels.get("instance", ""))] if name}


def _host(instance: str) -> str:
    return "localhost" if is_loopback(instance) else re.sub(r":\d+$", "", instance)


def _short(host: str) -> str:
    """Return the first label of a host's name; an address stays."""
    return host if re.fullmatch(r"[\d.:\[\]a-f]+", host) else host.partition(".")[0].lower()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
