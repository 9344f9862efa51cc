"""The recording and the local exporter with real processes: killed, restarted, and measured."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.runner.local import LocalExporter
from joulewatch_harness.runner.recorder import Recorder
from joulewatch_harness.storage.recording import Recording, RecordingWriter
from support.runs import header, window
from support.servers import Emulator, ExporterServer

pytestmark = pytest.mark.integration

WRITER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from joulewatch_harness.clients.exporter import ExporterClient, Scrape
from joulewatch_harness.storage.recording import RecordingWriter
from support.runs import header, window
client = ExporterClient("http://node1:10717")
writer = RecordingWriter.create(Path({file!r}), header())
number = 0
while True:
    samples = [('joulewatch_x{{n="%d"}}' % n, number + n / 7) for n in range(50)]
    writer.add_scrape(client, Scrape(1e9 + number / 100, 1e9 + number / 100 + 0.001, samples))
    if number % 20 == 0:
        writer.add_line(window(number // 20, 1e9 + number))
    number += 1
    sys.stdout.write("%d\\n" % number)
    sys.stdout.flush()
"""


@pytest.mark.parametrize("attempt", range(4))
def test_kill_9_at_any_time_loses_no_committed_scrape(tmp_path: Path, attempt: int) -> None:
    file = tmp_path / "recording.sqlite"
    script = WRITER.format(path=[path for path in sys.path if path], file=str(file))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05 + 0.17 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        committed = 1 + len(child.stdout.read().split())
    assert committed > 10
    with Recording.open(file) as recording:
        all_series = recording.series("joulewatch_x")
        count = len(all_series[0].values)
        # One more may have been committed but not printed.
        assert committed <= count <= committed + 1
        assert len(all_series) == 50
        for series in all_series:
            offset = int(series.labels["n"]) / 7
            assert series.values == [number + offset for number in range(count)]
        windows = recording.run().windows
        assert [entry.index for entry in windows] == list(range(len(windows)))
        assert len(windows) >= committed // 20
        assert windows[0] == window(0, 1e9)
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_the_local_exporter_is_recorded_and_an_edge_takes_little_time(
    emulator: Callable[[str], Emulator], tmp_path: Path
) -> None:
    machine = emulator("epyc-7763-node")
    with LocalExporter(tmp_path, machine.flags) as exporter:
        with EdgeReader([ExporterClient(exporter.url)]) as reader:
            record, sensors = reader.clients[0].describe()
            assert record.emulated
            assert {sensor.device for sensor in sensors} >= {"socket0", "socket1"}
            assert {sensor.method for sensor in sensors} == {"emulated"}
            times_s = []
            edges = []
            for _ in range(100):
                began_s = time.perf_counter()
                raw = reader.fetch()
                times_s.append(time.perf_counter() - began_s)
                edges.append(raw.parse())
                time.sleep(0.003)
            median_s = statistics.median(times_s)
            # It waits for two refreshes of 10 ms; the limit leaves room for a busy machine.
            assert median_s < 0.035, f"an edge takes {median_s * 1e3:.2f} ms"
            for edge, took_s in zip(edges, times_s, strict=True):
                assert not edge.missing
                (clock,) = edge.clocks
                # Both processes have the same clock, so the true offset is 0.
                assert clock.lower_s <= 0.0005
                assert clock.upper_s >= -0.0005
                # The bounds are as narrow as the request was short; a single request may be slow on a busy machine.
                assert clock.upper_s - clock.lower_s <= took_s + 0.0005
            energies = [sum(counter.energy_joules for counter in edge.counters) for edge in edges]
            assert energies == sorted(energies)
        path = tmp_path / "recording.sqlite"
        with RecordingWriter.create(path, header()) as writer:
            cpu_s = time.process_time()
            with Recorder([ExporterClient(exporter.url, name="local")], writer, rate_hz=10):
                time.sleep(3.0)
            cpu_s = time.process_time() - cpu_s
            assert cpu_s / 3.0 < 0.05, f"the recorder takes {cpu_s / 3.0:.2%} of one core at 10 Hz"
        with Recording.open(path) as recording:
            scrapes = recording.scrapes("local")
            assert 28 <= len(scrapes) <= 34
            assert not any(scrape.error for scrape in scrapes)
            gaps_s = [b.started_at_s - a.started_at_s for a, b in itertools.pairwise(scrapes)]
            assert statistics.median(gaps_s) == pytest.approx(0.1, abs=0.01)
            energy = recording.series("joulewatch_device_energy_joules_total")
            assert {series.labels["instance"] for series in energy} == {"local"}
            assert all(series.values == sorted(series.values) for series in energy)
            assert len(recording.series("joulewatch_exporter_info")[0].values) == 1
    log = (tmp_path / "exporter.log").read_text()
    assert "listening on http://127.0.0.1:" in log
    assert exporter.pid is None


def test_the_local_exporter_dies_with_a_killed_harness(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from joulewatch_harness.runner.local import LocalExporter
        with LocalExporter(Path({str(tmp_path)!r}), ["--collector.estimate"]) as exporter:
            print(exporter.pid, flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        os.kill(pid, 0)
        child.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline_s, "the exporter outlives the harness"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie counts as ended, because no parent may be left to wait for it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_exporter_restart_is_a_gap_with_a_reason_and_the_edge_names_the_missing_exporter(
    exporter_server: Callable[..., ExporterServer], emulator: Callable[[str], Emulator], tmp_path: Path
) -> None:
    machine = emulator("epyc-7763-node")
    server = exporter_server(*machine.flags)
    path = tmp_path / "recording.sqlite"
    with (
        RecordingWriter.create(path, header()) as writer,
        EdgeReader([ExporterClient(server.url)]) as reader,
        Recorder([ExporterClient(server.url)], writer, rate_hz=20),
    ):
        before = reader.fetch().parse()
        time.sleep(0.3)
        server.stop(signal.SIGKILL)
        during = reader.fetch().parse()
        time.sleep(0.3)
        server.start()
        after = reader.fetch().parse()
        time.sleep(0.3)
    assert before.counters
    assert after.counters
    assert during.counters == ()
    assert "refused" in during.missing[server.address]
    with Recording.open(path) as recording:
        errors = [scrape.error for scrape in recording.scrapes(server.address)]
        assert errors[0] == errors[-1] == ""
        assert any("refused" in error for error in errors)
        (starts,) = recording.series("joulewatch_exporter_start_timestamp_seconds")
        assert len(set(starts.values)) == 2
        # The info is stored again after the gap.
        assert len(recording.series("joulewatch_exporter_info")[0].values) == 2
