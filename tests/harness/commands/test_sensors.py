"""``joulewatch sensors``: what an exporter can measure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest

from joulewatch_harness import cli
from joulewatch_harness.metering import sensors_report
from joulewatch_harness.metering.sensors import Cost, SensorRow, _tested, shortest_window_s
from support.counting_exporter import Counter, CountingExporter
from support.servers import free_port
from support.synthetic import sensor


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingExporter]:
    monkeypatch.setattr("joulewatch_harness.metering.sensors.POWER_S", 0.02)
    counters = [
        Counter(refresh_s=0.001, accuracy="0.05"),
        Counter(component="gpu", device="GPU-1", domain="total", watts=50.0, refresh_s=0.1),
        Counter(component="gpu", device="GPU-2", domain="total", refresh_s=0.1, still=True),
    ]
    with CountingExporter(counters) as server:
        yield server


def test_the_table(
    exporter: CountingExporter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main(["sensors", exporter.url]) == 0
    out = capsys.readouterr().out
    assert "on node1" in out
    (row,) = [line for line in out.splitlines() if line.startswith("cpu/socket0/package")]
    for text in ("device", "counter", "on request", "1 ms", "1 uJ", "±5 %", "100"):
        assert text in row
    (still,) = [line for line in out.splitlines() if line.startswith("gpu/GPU-2/total")]
    assert still.split()[-2:] == ["?", "?"]


def test_the_test_measures_refresh_and_cost(exporter: CountingExporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sensors", "--test", "--seconds", "0.5", "--format", "json", exporter.url]) == 0
    document = json.loads(capsys.readouterr().out)
    cpu, gpu, still = document["sensors"]
    assert cpu["changed_each_time"]
    assert 0 < cpu["measured_refresh_s"] < 0.1
    assert gpu["shortest_window_s"] > cpu["shortest_window_s"]
    assert still["measured_refresh_s"] is None
    (cost,) = document["costs"]
    assert cost["median_s"] <= cost["p99_s"]
    # The fake exporter counts 1 ms for each request.
    assert cost["processor_s"] == pytest.approx(0.001, rel=0.3)
    assert cli.main(["sensors", "--test", "--seconds", "0.5", exporter.url]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Cost of reading" in out
    assert " ms (99 %), and " in out
    assert "<= " in out


@pytest.mark.parametrize(
    ("published_s", "readings", "shown_s"),
    [(0.001, 5, 0.05), (0.5, 5, 0.05), (0.001, 1, 0.001), (0.5, 1, 0.01)],
    ids=["slower", "faster", "changed at each reading", "changed at each reading, and faster"],
)
def test_the_shortest_window_is_that_of_the_tested_refresh(published_s: float, readings: int, shown_s: float) -> None:
    """Readings are 10 ms apart; a value that changed at each of them may be refreshed more often."""
    record = sensor("socket0", "package", refresh_s=published_s, read_mode="on_request")
    row = SensorRow(record=record, watts=100.0, shortest_window_s=9.0, round_trip_s=0.002)
    values = [(number * 0.01, float(number // readings)) for number in range(200)]
    shown = sensor("socket0", "package", refresh_s=shown_s, read_mode="on_request")
    tested = _tested(row, values).shortest_window_s
    assert tested == pytest.approx(shortest_window_s(shown, 100.0, 0.002), rel=0.03)


def test_times_and_costs_have_no_exponent() -> None:
    """A BMC refreshes about every second, and needs a quarter of an hour for 1 %."""
    row = SensorRow(record=sensor("bmc", "total", refresh_s=0.99996), watts=100.0, shortest_window_s=1234.5)
    cost = Cost(exporter="node1", median_s=0.1234, p99_s=1.5, requests=9, processor_s=0.1, quiet_share=1.004)
    text = "\n".join(sensors_report.lines([], [row], [cost], width=200))
    assert "  1 s" in text and "1234 s" in text
    assert "takes 123 ms (median of 9), 1500 ms (99 %), and 100 ms of" in text and "uses 100 % of" in text


def test_csv(exporter: CountingExporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sensors", "--format", "csv", exporter.url]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("sensor,scope,method")
    assert len(rows) == 3


def test_bad_arguments(exporter: CountingExporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sensors", f"http://127.0.0.1:{free_port()}"]) == 2
    assert "is joulewatch-exporter running there" in capsys.readouterr().err
    assert cli.main(["sensors", "--seconds", "3", exporter.url]) == 2


def test_the_shortest_window_grows_with_the_refresh_and_the_round_trip() -> None:
    fast = sensor("socket0", "package", refresh_s=0.001, read_mode="on_request")
    slow = sensor("socket0", "package", refresh_s=0.1, read_mode="on_request")
    shortest_s = [
        shortest_window_s(record, 100.0, round_trip_s)
        for record, round_trip_s in ((fast, 0.0), (fast, 0.001), (fast, 0.01), (slow, 0.001))
    ]
    assert shortest_s == sorted(shortest_s, key=lambda value: value or math.inf)
    # 1.96 x 0.91 refresh periods, if the power next to the window may be anything up to twice that of the window.
    assert shortest_s[0] == pytest.approx(100 * 1.96 * 0.001 * math.sqrt(1 / 6 + 2 / 3), rel=0.05)
    assert shortest_window_s(fast, 0.0, 0.001) is None
    coarse = sensor("socket0", "package", refresh_s=0.001, resolution="50 W", read_mode="on_request")
    assert shortest_window_s(coarse, 100.0, 0.001) is None
