"""Energy per hour, day and month: calendar limits, gaps, restarts."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import itertools
import time
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.intervals import (
    Every,
    IntervalEnergy,
    calendar_spans,
    interval_energies,
)
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.reports.energy_report import render_intervals
from joulewatch_harness.analysis.sources.history import RawSeries
from support.synthetic import T0, ListSource, Signal, World, sensor

START_S = T0 - T0 % 3600
HOURS = 4
WATTS = 100.0
CPU = tuple(sensor(f"socket{number}", "package", host="node1") for number in range(2))
NODES = (
    sensor("bmc", "total", "node", "node", collector="ipmi", primary=True, host="node1"),
    sensor("psys", "total", "node", "node", primary=False, host="node1"),
)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set the local time zone."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("name", "every", "start", "end", "limits"),
    [
        (
            "UTC",
            "1mo",
            "2026-01-31T12:00:00+00:00",
            "2026-04-02T00:00:00+00:00",
            ["2026-02-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00", "2026-04-01T00:00:00+00:00"],
        ),
        # A day of 23 hours, and one of 25.
        (
            "Europe/Berlin",
            "1d",
            "2026-03-28T00:00:00+01:00",
            "2026-03-31T00:00:00+02:00",
            ["2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"],
        ),
        ("Europe/Berlin", "1d", "2026-10-24T22:00:00+00:00", "2026-10-25T23:00:00+00:00", []),
        (
            "Europe/Berlin",
            "1h",
            "2026-10-25T00:30:00+00:00",
            "2026-10-25T02:30:00+00:00",
            ["2026-10-25T01:00:00+00:00", "2026-10-25T02:00:00+00:00"],
        ),
        ("Asia/Kolkata", "1h", "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00", ["2026-01-01T00:30:00+00:00"]),
    ],
)
def test_intervals_end_at_the_local_hours_days_and_months(
    zone: Callable[[str], None], name: str, every: Every, start: str, end: str, limits: list[str]
) -> None:
    zone(name)
    spans = calendar_spans(at(start), at(end), every)
    assert [span.end_s for span in spans[:-1]] == [at(limit) for limit in limits]
    assert spans[0].start_s == at(start) and spans[-1].end_s == at(end)


@pytest.mark.parametrize("every", get_args(Every))
def test_intervals_cover_a_year_without_gaps(zone: Callable[[str], None], every: Every) -> None:
    zone("America/New_York")
    start_s, end_s = at("2026-01-01T05:00:00+00:00"), at("2027-01-01T05:00:00+00:00")
    spans = calendar_spans(start_s, end_s, every)
    assert len(spans) == {"1h": 365 * 24, "1d": 365, "1mo": 12}[every]
    assert all(first.end_s == second.start_s for first, second in itertools.pairwise(spans))


def world() -> World:
    """Return four hours of two processors at 100 W, and of a server with two sensors of 300 W."""
    watts = {**dict.fromkeys(CPU, WATTS), **dict.fromkeys(NODES, 3 * WATTS)}
    signals = {one: Signal((START_S - 600,), (power,)) for one, power in watts.items()}
    return World(signals, scrape_s=15.0, start_s=START_S - 600, end_s=START_S + HOURS * 3600 + 600, base_joules=50.0)


Keep = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def source(keep: Keep | None = None, restart_s: float | None = None) -> ListSource:
    """Return the samples that are kept, of an exporter that restarts at a time."""
    samples = []
    counters = {catalog.ENERGY_BY_SCOPE[scope].name for scope in ("device", "node")}
    for raw in world().scrapes():
        values = raw.values.copy()
        if restart_s is not None and raw.times_s[-1] > restart_s:
            first = int(raw.times_s.searchsorted(restart_s))
            if raw.name in counters:
                values[first:] -= values[first]
            elif raw.name == catalog.EXPORTER_START.name:
                values[first:] = restart_s
        kept = np.ones(raw.times_s.shape, dtype=bool) if keep is None else keep(raw.times_s)
        samples.append(dataclasses.replace(raw, times_s=raw.times_s[kept], values=values[kept]))
    return ListSource([raw for raw in samples if raw.times_s.size])


def hourly(samples: ListSource, scope: str = "device", patterns: tuple[str, ...] = ()) -> list[IntervalEnergy]:
    spans = [Span(START_S + 3600 * hour, START_S + 3600 * (hour + 1)) for hour in range(HOURS)]
    return interval_energies(samples, spans, patterns, scope)[0]


def test_every_hour_has_the_sum_of_its_sensors() -> None:
    rows = hourly(source(), "all")
    assert [(row.host, row.component) for row in rows] == HOURS * [("node1", "cpu"), ("node1", "node")]
    for row in rows:
        # One of the two sensors of the server.
        true = (2 if row.component == "cpu" else 3) * WATTS * 3600
        assert row.joules is not None and abs(row.joules - true) <= row.expanded_joules < 0.01 * true
        assert row.measured_s == 3600 and row.unmeasured_s == 0 and row.reasons == () and not row.accuracy_known


def test_scopes_and_patterns() -> None:
    assert {row.component for row in hourly(source(), "node")} == {"node"}
    rows = hourly(source(), "all", ("*/socket1/*",))
    assert [row.joules for row in rows] == pytest.approx(HOURS * [WATTS * 3600], rel=1e-4)


def test_a_counter_covers_a_gap_of_the_samples() -> None:
    """From minute 70 to 90 nothing was scraped, and the exporter went on."""
    rows = hourly(source(lambda times_s: (times_s < START_S + 4200) | (times_s > START_S + 5400)))
    assert [row.joules for row in rows] == pytest.approx(HOURS * [2 * WATTS * 3600], rel=1e-3)


def test_a_restart_costs_minutes_not_hours() -> None:
    rows = hourly(source(restart_s=START_S + 5000))
    assert [row.unmeasured_s > 0 for row in rows] == [False, True, False, False]
    restarted = rows[1]
    assert restarted.unmeasured_s <= 120 and "exporter_restart" in restarted.reasons
    assert restarted.joules == pytest.approx(2 * WATTS * restarted.measured_s, rel=1e-3)


def test_an_outage_is_unmeasured_and_never_zero() -> None:
    """Off from minute 50 to 190, with a restart: one hour has nothing at all."""
    off_s = (START_S + 3000, START_S + 11400)
    rows = hourly(source(lambda times_s: (times_s < off_s[0]) | (times_s > off_s[1]), restart_s=off_s[0] + 600))
    assert [row.component for row in rows] == HOURS * ["cpu"]
    assert rows[1].joules is None and rows[1].unmeasured_s == 3600 and rows[1].reasons
    assert rows[2].joules is None and rows[2].measured_s == 0
    for row, off_s_in_hour in ((rows[0], 600.0), (rows[3], 600.0)):
        assert row.joules == pytest.approx(2 * WATTS * row.measured_s, rel=1e-3)
        assert off_s_in_hour - 30 <= row.unmeasured_s <= off_s_in_hour + 120
    assert rows[3].span.duration_s == pytest.approx(rows[3].measured_s + rows[3].unmeasured_s)


def test_a_host_has_a_row_in_every_interval() -> None:
    """Also before its first sample."""
    rows = hourly(source(lambda times_s: times_s > START_S + 9000))
    assert [row.joules is None for row in rows] == [True, True, False, False]
    assert rows[0].reasons and rows[0].host == "node1"


def test_a_sensor_that_disappears_takes_its_component_with_it() -> None:
    """The other socket alone would be a wrong number for the processors."""

    def without(raw: RawSeries) -> RawSeries:
        kept = raw.times_s < START_S + 5400 if raw.labels.get("device") == "socket1" else raw.times_s > 0
        return dataclasses.replace(raw, times_s=raw.times_s[kept], values=raw.values[kept])

    rows = interval_energies(
        ListSource(list(map(without, source().samples))), [Span(START_S, START_S + 3600 * HOURS)], (), "device"
    )[0]
    (row,) = rows
    assert row.measured_s == pytest.approx(5400, abs=120)
    assert row.joules == pytest.approx(2 * WATTS * row.measured_s, rel=1e-3)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_csv_has_costs_only_with_a_price(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    known, unknown = hourly(source())[0], dataclasses.replace(hourly(source())[1], joules=None, measured_s=0.0)
    assert "cost" not in table(render_intervals([known]))[0]
    first, second = table(render_intervals([known, unknown], 0.5))
    assert first["start"].endswith("+02:00") and first["time_zone"] == "CEST"
    assert float(first["energy_kwh"]) == pytest.approx(0.2, rel=1e-3)
    assert float(first["cost"]) == pytest.approx(0.1, rel=1e-3)
    assert float(first["energy_joules"]) == known.joules and first["uncertainty_covers"] == "sampling"
    assert [second[name] for name in ("energy_joules", "energy_kwh", "cost", "uncertainty_joules")] == 4 * [""]
    assert second["unmeasured_seconds"] == "3600.000"
