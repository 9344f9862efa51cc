"""The whole chain compared with known energies: emulated node, real exporter, real Prometheus, real commands."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.records import RunRecord
from joulewatch_harness.storage.journal import list_runs
from support.commands import SLEEPER, joulewatch, start_joulewatch
from support.scrapes import Scrape
from support.truth import true_joules_per_inference

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus
    from support.servers import PushgatewayServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SWEEP = (
    "--network",
    SLEEPER,
    "--batch-sizes",
    "1,16",
    "--window",
    "1",
    "--rounds",
    "3",
    "--preset",
    "quick",
    "--idle",
    "1",
)


def two_sockets(tmp_path: Path, **first_zone: Any) -> Path:
    """Write a machine of two sockets, one steady and one with a ripple; ``first_zone`` extends the zone of socket 0."""
    ripple = {"kind": "square", "low_watts": 80, "high_watts": 120, "period_s": 0.037}
    zones = [
        {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": 150, **first_zone},
        {"zone": "intel-rapl:1", "name": "package-1", "key": "socket1/package", "signal": ripple},
    ]
    path = tmp_path / "two_sockets.yaml"
    path.write_text(
        yaml.safe_dump({"name": "two-sockets", "refresh_s": 0.002, "machine": {"sockets": 2}, "zones": zones})
    )
    return path


def only_run(folder: Path) -> RunRecord:
    (record,) = list_runs(folder / "runs").values()
    return record


@pytest.mark.parametrize("interval", ["1s", "200ms"])
def test_a_run_analyzed_from_prometheus_alone_has_the_true_energy(
    interval: str,
    tmp_path: Path,
    emulator: StartEmulator,
    exporter_server: StartExporter,
    prometheus_server: StartPrometheus,
) -> None:
    """The analysis has only the URL and the run's ID, and runs in an empty folder."""
    machine = emulator(two_sockets(tmp_path))
    exporter = exporter_server(*machine.flags)
    prometheus = prometheus_server(scrape_targets=[exporter.address], scrape_interval=interval)
    time.sleep(1.5)
    done = joulewatch("profile", *SWEEP, "--prometheus", prometheus.url, "--exporter", exporter.url, folder=tmp_path)
    assert done.code == 0, done.err
    record = only_run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    time.sleep(1.2)
    answer = joulewatch(
        "analyze", record.header.run, "--prometheus", prometheus.url, "--format", "json", folder=elsewhere
    )
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    truth = true_joules_per_inference(record, Truth.load(machine.folder))
    assert result["emulated"] is True
    assert len(result["results"]) == len(truth) == 2
    for cell in result["results"]:
        true = truth[cell["configuration"]["name"], cell["batch_size"]]
        energy = cell["energy"]["total"]["gross"]
        assert energy["value"] == pytest.approx(true, abs=energy["expanded_uncertainty"])
        assert energy["value"] == pytest.approx(true, rel=0.02)
        assert len(cell["windows"]) == 3
    listing = joulewatch("runs", "--prometheus", prometheus.url, "--format", "json", folder=elsewhere)
    assert record.header.run in listing.out


def test_a_run_delivered_through_a_pushgateway_is_analyzed_from_prometheus_alone(
    tmp_path: Path,
    emulator: StartEmulator,
    exporter_server: StartExporter,
    pushgateway_server: PushgatewayServer,
    prometheus_server: StartPrometheus,
) -> None:
    """Without the remote-write receiver, a Pushgateway gives the same numbers."""
    machine = emulator(two_sockets(tmp_path))
    exporter = exporter_server(*machine.flags)
    prometheus = prometheus_server(
        scrape_targets=[exporter.address],
        scrape_interval="500ms",
        pushgateway=pushgateway_server.address,
        receiver=False,
    )
    servers = ("--prometheus", prometheus.url, "--pushgateway", pushgateway_server.url, "--exporter", exporter.url)
    done = joulewatch("profile", *SWEEP, *servers, folder=tmp_path)
    assert done.code == 0, done.err
    record = only_run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ("--prometheus", prometheus.url, "--format", "json")
    answer = joulewatch("analyze", record.header.run, *words, folder=elsewhere)
    assert answer.code == 0, answer.err
    truth = true_joules_per_inference(record, Truth.load(machine.folder))
    cells = json.loads(answer.out)["results"]
    assert len(cells) == len(truth)
    for cell in cells:
        assert len(cell["windows"]) == 3
        energy = cell["energy"]["total"]["gross"]
        assert energy["value"] == pytest.approx(truth[cell["configuration"]["name"], cell["batch_size"]], rel=0.02)
    assert "joulewatch_window_start" not in Scrape(pushgateway_server.url).text  # no group remains


def test_energy_is_exact_although_the_counter_wraps_between_two_scrapes(
    tmp_path: Path, emulator: StartEmulator, exporter_server: StartExporter
) -> None:
    """A counter of 128 J at 150 W wraps every 0.85 s: five times between two scrapes 4.4 s apart.

    If a busy machine delays a read by more than 128 ms, the counter may have wrapped unnoticed: the exporter considers
    up to 1000 W possible. It then reports the time as unmeasured. Only whole wraps can be missing, and only as many as
    fit into the time reported: none below 0.85 s. All other energy is exact. Scrapes go on until there is a span
    without unmeasured time, in which nothing may be missing.
    """
    machine = emulator(two_sockets(tmp_path, counter_bits=23, start_joules=1.0))
    exporter = exporter_server(*machine.flags)
    scrapes = [Scrape(exporter.url)]
    unmeasured_s = -1.0
    while unmeasured_s != 0:
        assert len(scrapes) < 20, "the exporter was delayed in every span"
        time.sleep(4.4)
        scrapes.append(Scrape(exporter.url))
        start_s, end_s = (scrape.samples("joulewatch_read_timestamp_seconds")["socket0"] for scrape in scrapes[-2:])
        true_joules = Truth.load(machine.folder).energy_joules("socket0/package", start_s, end_s)
        missing_joules = true_joules - rise(scrapes, "device_energy_joules")
        unmeasured_s = rise(scrapes, "sensor_unmeasured_seconds")
        missing_wraps = round(missing_joules / 128.0)
        # The emulated counter moves every 2 ms or, on a busy machine, a little later: 40 ms of 150 W.
        assert missing_joules == pytest.approx(128.0 * missing_wraps, abs=6.0)
        assert 0.0 <= 128.0 * missing_wraps <= (150.0 * unmeasured_s + 6.0 if unmeasured_s else 0.0)
        assert rise(scrapes, "sensor_wraps") + missing_wraps == pytest.approx(true_joules / 128.0, abs=1.05)


def rise(scrapes: Sequence[Scrape], name: str) -> float:
    """Return by how much a counter of socket 0 rose between the last two scrapes."""
    before, after = (scrape.samples(f"joulewatch_{name}_total")["socket0/package"] for scrape in scrapes[-2:])
    return after - before


def test_an_exporter_restart_during_a_run_excludes_only_the_windows_it_affects(
    tmp_path: Path, emulator: StartEmulator, exporter_server: StartExporter
) -> None:
    """Other windows are kept, the window with the restart is excluded, and a finding gives the reason."""
    machine = emulator(two_sockets(tmp_path))
    exporter = exporter_server(*machine.flags)
    child = start_joulewatch("profile", *SWEEP, "--exporter", exporter.url, folder=tmp_path)
    assert child.stderr is not None
    for line in child.stderr:
        if "round 1" in line:
            break
    exporter.stop(signal.SIGKILL)
    time.sleep(2.5)  # longer than a step, so at least one window loses an edge
    exporter.start()
    log = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 0, log
    record = only_run(tmp_path)
    assert record.end is not None and record.end.status == "complete"
    answer = joulewatch("analyze", record.header.run, "--format", "json", folder=tmp_path)
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    cells = result["results"]
    for cell in cells:
        excluded = {window["window"] for window in cell["left_out"]}
        assert len(excluded | set(cell["windows"])) == 3
    assert sum(len(cell["windows"]) for cell in cells) >= 3
    reasons = {finding["reason"] for finding in result["findings"]}
    assert reasons & {"exporter_restart", "exporter_missing", "edge_missing", "sample_gap"}, reasons


def test_a_recording_contains_the_energy_of_the_windows_of_its_journal(tmp_path: Path, emulator: StartEmulator) -> None:
    """Local mode from end to end: one command, then ``energy`` over the span of a window, then the export."""
    machine = emulator(two_sockets(tmp_path))
    flags = " ".join(machine.flags)
    done = joulewatch("profile", *SWEEP, f"--exporter.flags={flags}", "--format", "json", folder=tmp_path)
    assert done.code == 0, done.err
    record = only_run(tmp_path)
    folder = tmp_path / "runs" / record.header.run
    for name in ("journal.jsonl", "recording.sqlite", "figure.png", "result.json"):
        assert (folder / name).stat().st_size > 0, name
    window = next(window for window in record.windows if window.kind == "measure")
    end_s = window.start_s + window.duration_s
    answer = joulewatch(
        *("energy", "--start", repr(window.start_s), "--end", repr(end_s), "--format", "json"),
        *("--recording", folder / "recording.sqlite", "--sensor", "*/socket0/package"),
        folder=tmp_path,
    )
    assert answer.code == 0, answer.err
    (sensor,) = json.loads(answer.out)["sensors"]
    true = Truth.load(machine.folder).energy_joules("socket0/package", window.start_s, end_s)
    energy = sensor["energy"]
    assert energy["lower_joules"] <= true <= energy["upper_joules"]
    # On a busy machine scrapes may be missing, which the uncertainty includes.
    assert energy["joules"] == pytest.approx(true, abs=max(0.03 * true, energy["expanded_uncertainty"]))
    export = joulewatch("export", folder / "recording.sqlite", "--openmetrics", folder=tmp_path)
    assert export.code == 0, export.err
    assert export.out.endswith("# EOF\n")
