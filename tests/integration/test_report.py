"""``joulewatch report`` and ``energy --every`` from a real Prometheus alone."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from joulewatch_harness.cli import main
from support.servers import PrometheusServer
from support.synthetic import Signal, World, make_world, send_world, sensor

pytestmark = pytest.mark.integration

Start = Callable[..., PrometheusServer]

SOCKETS = [sensor(f"socket{number}", "package", host="node1") for number in range(2)]


def test_a_report_from_prometheus_alone(prometheus_server: Start, tmp_path: Path) -> None:
    server = prometheus_server(out_of_order=True)
    start_s = float(int(time.time()) - 300)
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + "-0a1b2c"
    world = make_world(SOCKETS, batch_sizes=(1, 8), rounds=2, start_s=start_s, run=run)
    send_world(server.url, world)
    page = tmp_path / "report.html"
    assert main(["report", run, f"--output={tmp_path}", f"--prometheus={server.url}", f"--out={page}"]) == 0
    text = page.read_text(encoding="utf-8")
    assert world.record is not None
    assert text.count('class="band ') == len(world.record.windows)
    assert 'class="mean ' in text and 'class="samples"' in text and "mJ per inference" in text


def test_energy_per_hour_and_day(prometheus_server: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """26 hours of two processors at 100 W."""
    server = prometheus_server(out_of_order=True)
    end_s = float(int(time.time()) // 3600 * 3600 - 3600)
    start_s = end_s - 26 * 3600
    signals = {one: Signal((start_s - 600,), (100.0,)) for one in SOCKETS}
    world = World(signals, scrape_s=15.0, start_s=start_s - 120, end_s=end_s + 120)
    world.record = make_world(SOCKETS, configurations=("a/b/c",), batch_sizes=(1,), rounds=1, start_s=start_s).record
    send_world(server.url, world)
    words = ["energy", f"--start={start_s}", f"--end={end_s}", f"--prometheus={server.url}"]
    for every, most in (("1h", 26), ("1d", 3)):
        assert main([*words, f"--every={every}"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert {(row["host"], row["component"]) for row in rows} == {("node1", "cpu")} and len(rows) <= most
        assert sum(float(row["unmeasured_seconds"]) for row in rows) == 0
        assert sum(float(row["energy_kwh"]) for row in rows) == pytest.approx(0.2 * 26, rel=1e-4)
