"""A run's annotations reach a real Prometheus exactly once, through restarts and outages of each server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.cli import main
from joulewatch_harness.clients.exporter import Scrape
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import window_samples
from joulewatch_harness.delivery.courier import delivered_windows
from joulewatch_harness.delivery.delivery import Delivery, open_delivery, push_run
from joulewatch_harness.delivery.openmetrics import export_openmetrics
from joulewatch_harness.delivery.sinks import read_back
from joulewatch_harness.errors import ConfigError, QueryError
from joulewatch_harness.records import RunEnd, RunHeader, Window
from joulewatch_harness.storage.journal import Journal, read_run
from joulewatch_harness.storage.recording import Recording, RecordingWriter
from support.require import require_program
from support.runs import NETWORK, header, window
from support.servers import PrometheusServer, PushgatewayServer
from support.waiting import wait_until

pytestmark = pytest.mark.integration


class Run:
    """A run that writes its journal and passes its lines to the delivery, as the runner does."""

    def __init__(self, output: Path, run: str = "20261121T013005Z-1f9c3a") -> None:
        self.now_s = time.time()
        self.header: RunHeader = header(run, self.now_s - 0.5)
        self.journal = Journal.create(output, self.header)
        self.folder = self.journal.folder
        self.windows: list[Window] = []
        self.delivery: Delivery | None = None

    def begin(self, delivery: Delivery | None) -> None:
        self.delivery = delivery
        self.journal.append(NETWORK)
        if delivery is not None:
            delivery.start(self.header)
            delivery.configuration(NETWORK)

    def deliver_to(self, server: PrometheusServer, pushgateway_url: str = "") -> Delivery:
        """Begin the run and deliver it to ``server``."""
        delivery = open_delivery(options(server), pushgateway_url=pushgateway_url, folder=self.folder)
        self.begin(delivery)
        return delivery

    def window(self, duration_s: float = 0.011) -> Window:
        # The end must be in the past, as that of a real window.
        time.sleep(duration_s + 0.005)
        finished = window(len(self.windows), time.time() - duration_s - 0.002, duration_s, run=self.header.run)
        self.windows.append(finished)
        if self.delivery is not None:
            self.delivery.window_opened(finished.kind, finished.configuration, finished.batch_size, finished.start_s)
        self.journal.append(finished)
        if self.delivery is not None:
            self.delivery.window(finished)
        return finished

    def end(self) -> None:
        ended = RunEnd(time.time(), "complete")
        self.journal.append(ended)
        self.journal.close()
        if self.delivery is not None:
            self.delivery.end(ended)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path / "runs")
    yield started
    started.journal.close()


def options(server: PrometheusServer) -> PrometheusOptions:
    return PrometheusOptions(server.url, timeout_s=3.0)


def stored(server: PrometheusServer, run: Run, name: str) -> dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]:
    """Return all raw samples of a metric of the run."""
    with PrometheusClient(options(server)) as client:
        now_ms = to_ms(time.time()) + 5000
        start_ms = to_ms(run.now_s) - 3_600_000
        samples = read_back(client, run.header.run, [name], start_ms=start_ms, end_ms=now_ms)
        return {labels: values for (_, labels), values in samples.items()}


def check_exact(server: PrometheusServer, run: Run) -> None:
    """Check that each window is stored once: exact start, end to the millisecond, and edges."""
    (starts,) = stored(server, run, catalog.WINDOW_START.name).values()
    assert starts == [(to_ms(sent.end_s), sent.start_s) for sent in run.windows]
    edges = stored(server, run, catalog.WINDOW_EDGE_JOULES.name)
    for sent in run.windows:
        for sample in window_samples(sent):
            if sample.name == catalog.WINDOW_EDGE_JOULES.name:
                assert (sample.at_ms, sample.value) in edges[sample.labels]
    assert delivered_windows(run.folder) == {sent.index for sent in run.windows}
    rows = [json.loads(row) for row in (run.folder / "delivered.jsonl").read_text().splitlines()]
    assert sorted(row["window"] for row in rows) == [sent.index for sent in run.windows]


def test_remote_write_delivers_windows_exactly(prometheus_server: Callable[..., PrometheusServer], run: Run) -> None:
    server = prometheus_server()
    delivery = run.deliver_to(server)
    for _ in range(30):
        run.window()
    run.end()
    report = delivery.close()
    assert (report.delivered, report.pending, report.parked, report.trouble) == (30, 0, (), "")
    assert report.complete
    check_exact(server, run)
    statuses = stored(server, run, catalog.RUN_STATUS.name)
    assert {dict(labels)["status"] for labels in statuses} == {"running", "complete"}
    (info,) = stored(server, run, catalog.RUN_INFO.name).items()
    assert dict(info[0])["actual_precision"] == "fp32"
    assert info[1][0][0] == to_ms(run.windows[0].end_s)
    # The live view has samples, is stale after the end, and did not disturb the delivery of windows.
    active = stored(server, run, catalog.WINDOW_ACTIVE.name)
    assert active
    with PrometheusClient(options(server)) as client:
        assert client.query(catalog.WINDOW_ACTIVE.name) == []
        assert client.query(f"max_over_time({catalog.RUN_INFERENCES.name}[1h])")[0]["value"][1] == str(30 * 800)


def test_a_receiver_outage_during_a_run_loses_nothing(
    prometheus_server: Callable[..., PrometheusServer], run: Run
) -> None:
    server = prometheus_server()
    delivery = run.deliver_to(server)
    run.window()
    wait_until(lambda: delivered_windows(run.folder) == {0})
    server.stop()
    began_s = time.monotonic()
    for _ in range(5):
        run.window()
    assert time.monotonic() - began_s < 1, "delivery delayed the measurement"
    time.sleep(0.5)
    server.start()
    run.window()
    run.end()
    report = delivery.close(20)
    assert report.complete, report
    check_exact(server, run)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_prometheus_restart_during_a_run_loses_nothing(
    prometheus_server: Callable[..., PrometheusServer], run: Run, how: signal.Signals
) -> None:
    server = prometheus_server()
    delivery = run.deliver_to(server)
    for number in range(12):
        run.window()
        if number in (3, 8):
            server.stop(how)
            server.start()
    run.end()
    assert delivery.close(20).complete
    check_exact(server, run)


def test_a_run_that_ends_while_the_server_is_down_is_pushed_later(
    prometheus_server: Callable[..., PrometheusServer], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    server = prometheus_server()
    delivery = run.deliver_to(server)
    run.window()
    wait_until(lambda: delivered_windows(run.folder) == {0})
    server.stop()
    run.window()
    run.window()
    run.end()
    report = delivery.close(0.2)
    assert (report.delivered, report.pending) == (1, 2)
    assert "cannot be reached" in report.trouble
    assert not report.complete
    push = ["runs", "push", run.header.run, f"--output={run.folder.parent}", f"--prometheus={server.url}"]
    assert main(push) == 2
    assert "cannot be reached" in capsys.readouterr().err
    server.start()
    assert main(push) == 0
    assert f"3 of 3 windows are in {server.url}" in capsys.readouterr().out
    check_exact(server, run)
    assert main([*push, "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["delivered"] == 3
    check_exact(server, run)
    assert main(["runs", f"--output={run.folder.parent}", "--format=json"]) == 0
    (local,) = json.loads(capsys.readouterr().out)
    assert main(["runs", "list", f"--prometheus={server.url}", "--format=json"]) == 0
    (remote,) = json.loads(capsys.readouterr().out)
    assert local["delivered"] == 3
    assert {**local, "delivered": None} == remote
    assert remote["status"] == "complete"


def test_push_completes_the_run_of_a_killed_harness(
    prometheus_server: Callable[..., PrometheusServer], tmp_path: Path
) -> None:
    server = prometheus_server()
    script = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[path for path in sys.path if path]!r}
        from pathlib import Path
        from integration.test_delivery import Run
        from joulewatch_harness.delivery.delivery import open_delivery
        from joulewatch_harness.clients.prometheus import PrometheusOptions
        run = Run(Path({str(tmp_path / "runs")!r}))
        run.begin(open_delivery(PrometheusOptions({server.url!r}), folder=run.folder))
        while True:
            run.window()
            print(len(run.windows), flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(25):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_run(folder)
    assert len(record.windows) >= 25
    assert record.end is None
    report = push_run(folder, options(server))
    assert report.complete
    assert report.delivered == len(record.windows)
    pushed = Run(tmp_path / "other")
    pushed.journal.close()
    pushed.header, pushed.windows, pushed.folder = record.header, list(record.windows), folder
    pushed.now_s = record.header.started_at_s
    check_exact(server, pushed)


def test_a_disabled_receiver_is_an_error_with_the_fix(
    prometheus_server: Callable[..., PrometheusServer], tmp_path: Path
) -> None:
    server = prometheus_server(receiver=False)
    with pytest.raises(ConfigError, match=r"--web\.enable-remote-write-receiver, or use --pushgateway"):
        open_delivery(options(server), folder=tmp_path)


def test_a_url_without_a_server_or_of_another_server_is_an_error(
    prometheus_server: Callable[..., PrometheusServer], tmp_path: Path
) -> None:
    server = prometheus_server()
    with pytest.raises(QueryError, match="does not answer like a Prometheus"):
        open_delivery(PrometheusOptions(f"{server.url}/graph"), folder=tmp_path)
    with pytest.raises(ConfigError, match="does not answer like a Pushgateway"):
        open_delivery(options(server), pushgateway_url=server.url, folder=tmp_path)
    server.stop()
    with pytest.raises(QueryError, match="cannot be reached: Connection refused"):
        open_delivery(options(server), folder=tmp_path)


def old_run(server: PrometheusServer, folder: Path) -> Run:
    """Return a run without windows, for a server that has samples of now."""
    fresh = Run(folder / "fresh", "20261121T013005Z-ffffff")
    fresh.begin(None)
    fresh.window()
    fresh.end()
    assert push_run(fresh.folder, options(server)).complete
    old = Run(folder / "old")
    old.begin(None)
    return old


def test_windows_that_are_too_old_are_parked_with_the_fix(
    prometheus_server: Callable[..., PrometheusServer], tmp_path: Path
) -> None:
    server = prometheus_server()
    old = old_run(server, tmp_path)
    day_s = 86_400.0
    for index in range(3):
        old.journal.append(window(index, old.now_s - day_s + index * 5))
    old.journal.append(RunEnd(old.now_s - day_s + 60, "complete"))
    old.journal.close()
    report = push_run(old.folder, options(server))
    assert (report.delivered, report.pending) == (0, 0)
    assert {parked.what for parked in report.parked} >= {"window 0", "window 1", "window 2"}
    assert "out_of_order_time_window" in report.parked[1].reason
    assert not delivered_windows(old.folder)


def test_an_out_of_order_time_window_accepts_old_runs(
    prometheus_server: Callable[..., PrometheusServer], tmp_path: Path
) -> None:
    server = prometheus_server(out_of_order=True)
    old = old_run(server, tmp_path)
    for age_s in (86_400.0, 30 * 86_400.0):
        old.journal.append(window(int(age_s), old.now_s - age_s))
    old.journal.close()
    report = push_run(old.folder, options(server))
    # The run of 30 days ago is beyond the 7 days of the window; its refusal does not affect the other.
    assert delivered_windows(old.folder) == {86_400}
    assert [parked.what for parked in report.parked] == ["window 2592000"]


def groups(gateway: PushgatewayServer) -> list[dict[str, str]]:
    with urllib.request.urlopen(f"{gateway.url}/api/v1/metrics") as answer:
        return [group["labels"] for group in json.load(answer)["data"]]


def check_gateway(server: PrometheusServer, run: Run) -> None:
    """Check that each window has separate series with its values, its end and its edges."""
    for name, value in ((catalog.WINDOW_START.name, "start_s"), (catalog.WINDOW_END.name, "end_s")):
        by_labels = stored(server, run, name)
        values = {dict(labels)["window"]: {sample for _, sample in samples} for labels, samples in by_labels.items()}
        assert values == {str(sent.index): {getattr(sent, value)} for sent in run.windows}
    edges = stored(server, run, catalog.WINDOW_EDGE_JOULES.name)
    assert len(edges) == 4 * len(run.windows)
    assert delivered_windows(run.folder) == {sent.index for sent in run.windows}


def test_groups_stay_in_the_pushgateway_until_they_are_read_back(
    prometheus_server: Callable[..., PrometheusServer], pushgateway_server: PushgatewayServer, run: Run
) -> None:
    server = prometheus_server(pushgateway=pushgateway_server.address, scrape_interval="500ms", receiver=False)
    delivery = run.deliver_to(server, pushgateway_server.url)
    for _ in range(10):
        run.window()
    assert len(groups(pushgateway_server)) > 1
    run.end()
    report = delivery.close(20)
    assert report.complete, report
    check_gateway(server, run)
    assert groups(pushgateway_server) == []
    statuses = {dict(labels)["status"] for labels in stored(server, run, catalog.RUN_STATUS.name)}
    assert "complete" in statuses
    assert stored(server, run, catalog.RUN_INFO.name)


def test_a_pushgateway_outage_during_a_run_loses_nothing(
    prometheus_server: Callable[..., PrometheusServer], pushgateway_server: PushgatewayServer, run: Run
) -> None:
    server = prometheus_server(pushgateway=pushgateway_server.address, scrape_interval="200ms", receiver=False)
    delivery = run.deliver_to(server, pushgateway_server.url)
    run.window()
    wait_until(lambda: delivered_windows(run.folder) == {0})
    pushgateway_server.stop(signal.SIGKILL)
    for _ in range(3):
        run.window()
    time.sleep(0.3)
    pushgateway_server.start()
    run.window()
    run.end()
    assert delivery.close(20).complete
    check_gateway(server, run)
    assert groups(pushgateway_server) == []


def test_push_repairs_lost_and_remaining_groups(
    prometheus_server: Callable[..., PrometheusServer], pushgateway_server: PushgatewayServer, run: Run
) -> None:
    server = prometheus_server(pushgateway=pushgateway_server.address, scrape_interval="200ms", receiver=False)
    server.stop()
    server.start()
    delivery = run.deliver_to(server, pushgateway_server.url)
    server.stop()
    run.window()
    run.window()
    run.end()
    report = delivery.close(0.3)
    assert report.pending == 2
    assert len(groups(pushgateway_server)) == 3  # not deleted yet
    pushgateway_server.stop()
    pushgateway_server.start()  # it loses all groups
    server.start()
    assert push_run(run.folder, options(server), pushgateway_url=pushgateway_server.url).complete
    check_gateway(server, run)
    assert groups(pushgateway_server) == []


class _Exporter:
    name = "node1:10717"
    url = "http://node1:10717/metrics"


def test_prometheus_reads_the_blocks_of_an_exported_recording(
    prometheus_server: Callable[..., PrometheusServer], tmp_path: Path
) -> None:
    promtool = require_program("promtool", "prometheus")
    folder = tmp_path / "data"
    # Older than the head block, so that only the blocks have it; not on a whole millisecond, and across two blocks.
    start_s = (time.time() - 4 * 3600) // 7200 * 7200 - 30 + 0.0004567
    run_header = header(started_at_s=start_s)
    path = tmp_path / "recording.sqlite"
    client = _Exporter()
    device = '{collector="rapl",component="cpu",device="socket0",domain="package"}'
    with RecordingWriter.create(path, run_header) as writer:
        writer.add_line(NETWORK)
        for number in range(600):
            at_s = start_s + number * 0.1
            samples = [
                (f"joulewatch_device_energy_joules_total{device}", 1000.1 + number / 3),
                ('joulewatch_read_timestamp_seconds{collector="rapl",device="socket0"}', at_s + 0.0011),
                ('joulewatch_exporter_info{version="0.1.0",nodename="a \\"b\\" \\\\ c"}', 1.0),
                ('python_info{x="y"}', 1.0),
            ]
            writer.add_scrape(client, Scrape(at_s, at_s + 0.002, samples))  # type: ignore[arg-type]
        windows = [window(index, start_s + 1 + index * 2, 1.0) for index in range(20)]
        for recorded in windows:
            writer.add_line(recorded)
        writer.add_line(RunEnd(start_s + 60, "complete"))
    text = tmp_path / "recording.om"
    with Recording.open(path) as recording, text.open("w") as file:
        count = export_openmetrics(recording, file.write)
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert count > 1200
    server = prometheus_server()
    server.stop()
    shutil.rmtree(server.folder / "data")
    folder.rename(server.folder / "data")
    server.start()
    with PrometheusClient(options(server)) as client_:
        (energy,) = client_.query("joulewatch_device_energy_joules_total[2m]", start_s + 60)
        assert energy["metric"]["instance"] == "node1:10717"
        assert energy["metric"]["job"] == "joulewatch"
        assert [float(value) for _, value in energy["values"]] == [1000.1 + number / 3 for number in range(600)]
        assert [to_ms(at_s) for at_s, _ in energy["values"]] == [to_ms(start_s + n * 0.1) for n in range(600)]
        (info,) = client_.query("joulewatch_exporter_info[2m]", start_s + 60)
        assert info["metric"]["nodename"] == 'a "b" \\ c'
        (starts,) = client_.query(f"{catalog.WINDOW_START.name}[2m]", start_s + 60)
        assert [(to_ms(at_s), float(value)) for at_s, value in starts["values"]] == [
            (to_ms(recorded.end_s), recorded.start_s) for recorded in windows
        ]
