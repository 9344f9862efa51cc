"""Analysis of a run with known energies from a real Prometheus, with only the URL and the run's ID."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.analysis.sources.recording import RecordingSource
from joulewatch_harness.cli import main
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from support.servers import PrometheusServer
from support.synthetic import (
    TWO_SOCKETS,
    World,
    make_world,
    send_world,
    without_edges,
    write_recording,
)

pytestmark = pytest.mark.integration

Start = Callable[..., PrometheusServer]


def run_id(start_s: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + "-0a1b2c"


def recent_world(seconds_ago: float = 600, **settings: Any) -> World:
    start_s = float(int(time.time() - seconds_ago))
    return make_world(TWO_SOCKETS, start_s=start_s, run=run_id(start_s), **settings)


def values(result: RunResult) -> list[tuple[str, int, float, float, float]]:
    rows = []
    for group in result.groups:
        assert group.total.gross is not None and group.total.net is not None
        gross, net = group.total.gross, group.total.net
        rows.append((group.configuration.name, group.batch_size, gross.value, gross.expanded, net.value))
    return rows


def assert_true(world: World, result: RunResult) -> None:
    """Check that every energy differs from the truth by less than its stated uncertainty, and by less than 0.5 %."""
    assert world.record is not None
    windows = {window.index: window for window in world.record.windows}
    for group in result.groups:
        assert group.total.gross is not None
        truths = [
            sum(world.truth_joules(sensor, windows[index]) for sensor in world.sensors if sensor.scope == "device")
            / windows[index].inferences
            for index in group.windows
        ]
        assert abs(group.total.gross.value - float(np.mean(truths))) <= group.total.gross.expanded
        assert group.total.gross.value == pytest.approx(float(np.mean(truths)), rel=0.005)


@pytest.mark.parametrize("edges", [True, False])
def test_a_run_is_analyzed_with_only_the_url_and_the_id(prometheus_server: Start, tmp_path: Path, edges: bool) -> None:
    """The result is that from a recording of the same samples, up to rounding, and agrees with the truth."""
    server = prometheus_server(out_of_order=True)
    world = recent_world(noise=0.01, edges=edges)
    assert world.record is not None
    send_world(server.url, world)
    write_recording(world, tmp_path / "recording.sqlite")
    prometheus = PrometheusSource(PrometheusClient(PrometheusOptions(server.url)))
    recording = RecordingSource(tmp_path / "recording.sqlite")
    try:
        delivered = analyze_run(prometheus.run(world.record.header.run), prometheus)
        recorded = analyze_run(recording.run(""), recording)
    finally:
        prometheus.close()
        recording.close()
    assert len(delivered.groups) == 6
    for expected, actual in zip(values(recorded), values(delivered), strict=True):
        assert expected[:2] == actual[:2]
        assert actual[2:] == pytest.approx(expected[2:], rel=1e-6)
    assert [finding.reason for finding in recorded.findings] == [finding.reason for finding in delivered.findings]
    assert_true(world, delivered)


def test_a_server_with_a_low_sample_limit_is_queried_in_small_pieces(prometheus_server: Start) -> None:
    server = prometheus_server(out_of_order=True, extra_args=["--query.max-samples=4000"])
    world = recent_world()
    assert world.record is not None
    send_world(server.url, world)
    source = PrometheusSource(PrometheusClient(PrometheusOptions(server.url)), samples_per_query=3000)
    try:
        result = analyze_run(without_edges(world.record), source)
    finally:
        source.close()
    assert_true(world, result)


def test_analyze_and_energy_read_a_real_prometheus(
    prometheus_server: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = prometheus_server(out_of_order=True)
    world = recent_world()
    assert world.record is not None
    send_world(server.url, world)
    run = world.record.header.run
    figure = tmp_path / "figure.png"
    words = ["analyze", run, f"--output={tmp_path}", f"--prometheus={server.url}", "--format=csv"]
    assert main([*words, f"--figure={figure}", "--publish", "--strict"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert len(rows) == 6 and figure.is_file() and "published" in captured.err
    with PrometheusClient(PrometheusOptions(server.url)) as client:
        query = f'joulewatch_result_energy_per_inference_joules{{run="{run}", component="total", basis="net"}}'
        published = {
            (series["metric"]["configuration"], series["metric"]["batch_size"]): float(series["value"][1])
            for series in client.query(query)
        }
    for row in rows:
        assert published[row["configuration"], row["batch_size"]] == pytest.approx(
            float(row["total_net_joules_per_inference"])
        )
    window = next(window for window in world.record.windows if window.kind == "measure")
    span = [f"--start={window.start_s}", f"--end={window.end_s}"]
    assert main(["energy", *span, f"--prometheus={server.url}", "--scope=device"]) == 0
    assert "total over devices" in capsys.readouterr().out
    assert main(["analyze", "20260101T000000Z-ffffff", f"--prometheus={server.url}"]) == 2
    assert run in capsys.readouterr().err
