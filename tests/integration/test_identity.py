"""Whose series is it? Real exporters under misleading addresses and labels, in a real Prometheus."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from joulewatch_exporter import catalog
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from support.commands import Outcome, joulewatch
from support.synthetic import EXPORTER, RUN, TWO_SOCKETS, World, make_world, send_world

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def machine_of(tmp_path: Path, name: str, watts: float) -> Path:
    """Write a machine of two sockets with constant power; it differs per socket."""
    zones = [
        {"zone": f"intel-rapl:{n}", "name": f"package-{n}", "key": f"socket{n}/package", "signal": (1 + n) * watts}
        for n in range(2)
    ]
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "refresh_s": 0.01, "machine": {"sockets": 2}, "zones": zones}))
    return path


def wait_for_scrapes(url: str, *, since_s: float, targets: int) -> None:
    """Wait until Prometheus has stored two scrapes of each target since a time."""
    limit_s = time.monotonic() + 20
    with PrometheusClient(PrometheusOptions(url)) as client:
        while time.monotonic() < limit_s:
            samples = client.query(f"{catalog.READ_TIMESTAMP.name}[20s]")
            later = [sum(float(value) > since_s for _, value in series["values"]) for series in samples]
            if len(later) == 2 * targets and min(later) >= 2:
                return
            time.sleep(0.2)
    raise AssertionError(f"{url} did not scrape {targets} targets")


def test_the_identity_decides_whose_energy_it_is(
    tmp_path: Path, emulator: StartEmulator, exporter_server: StartExporter, prometheus_server: StartPrometheus
) -> None:
    """Two clusters with one address; target labels with the names of ours; one exporter under two addresses."""
    first, second = (emulator(machine_of(tmp_path, name, watts)) for name, watts in (("first", 50.0), ("second", 90.0)))
    one, two = (exporter_server(*machine.flags) for machine in (first, second))
    address = {"case": "clusters", "instance": "10.0.0.5:10717"}
    rack = {"case": "labels", "instance": "nodeB", "component": "server", "device": "rack7", "collector": "agent"}
    prometheus = prometheus_server(
        scrape_jobs={
            "clusters": [(one.address, {**address, "cluster": "x"}), (two.address, {**address, "cluster": "y"})],
            "labels": [(one.address, rack)],
            "address1": [(one.address, {"case": "addresses"})],
            "address2": [(one.address.replace("127.0.0.1", "localhost"), {"case": "addresses"})],
        },
    )
    wait_for_scrapes(prometheus.url, since_s=0.0, targets=5)
    start_s = time.time()
    time.sleep(4)
    end_s = time.time()
    wait_for_scrapes(prometheus.url, since_s=end_s, targets=5)
    span = [f"--start={start_s}", f"--end={end_s}", "--prometheus", prometheus.url]

    def energy(*words: str) -> Outcome:
        return joulewatch("energy", *span, *words, folder=tmp_path)

    def result(*words: str) -> dict[str, Any]:
        outcome = energy("--format=json", *words)
        assert outcome.code == 0, outcome.err
        document: dict[str, Any] = json.loads(outcome.out)
        return document

    def check(document: dict[str, Any], truth: Truth, name: str) -> None:
        joules = sum(truth.energy_joules(key, start_s, end_s) for key in truth.keys)
        assert document["total_over_devices"]["joules"] == pytest.approx(joules, rel=0.05)
        assert [(item["exporter"], item["device"]) for item in document["sensors"]] == [
            (name, "socket0"),
            (name, "socket1"),
        ]

    truths = [Truth.load(machine.folder) for machine in (first, second)]
    conflict = energy("--match=case=clusters")
    assert conflict.code == 2 and conflict.out == ""
    assert "10.0.0.5:10717: 2 different exporters have this address (cluster=x: nodename " in conflict.err
    assert conflict.err.endswith("; select one with --match cluster=x\n")
    for cluster, truth in zip("xy", truths, strict=True):
        alone = result("--match=case=clusters", f"--match=cluster={cluster}")
        check(alone, truth, "10.0.0.5:10717")
        assert alone["findings"] == []
    labels = result("--match=case=labels")
    check(labels, truths[0], "nodeB")
    assert {item["method"] for item in labels["sensors"]} == {"emulated"}
    addresses = result("--match=case=addresses")
    check(addresses, truths[0], one.address)
    assert [finding["reason"] for finding in addresses["findings"]] == ["targets_merged"]
    everything = energy()
    assert everything.code == 2 and "2 different exporters" in everything.err, "the second one has this address only"


class _Half(World):
    """A world of which a server has stored only the samples of a span of time."""

    stored: tuple[float, float]

    def scrapes(self, *, instance: str = EXPORTER) -> list[RawSeries]:
        kept = []
        for raw in super().scrapes(instance=instance):
            inside = (raw.times_s >= self.stored[0]) & (raw.times_s < self.stored[1])
            kept.append(dataclasses.replace(raw, times_s=raw.times_s[inside], values=raw.values[inside]))
        return kept


def test_halves_of_a_run_that_two_servers_stored_are_joined(tmp_path: Path, prometheus_server: StartPrometheus) -> None:
    prometheus = prometheus_server(out_of_order=True)
    start_s = float(int(time.time()) - 300)
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + RUN[-7:]
    whole = make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2, start_s=start_s, run=run, edges=False)
    assert whole.record is not None
    middle_s = (start_s + whole.end_s) / 2
    for replica, stored in (("0", (0.0, middle_s)), ("1", (middle_s, 4e9))):
        half = _Half(**{item.name: getattr(whole, item.name) for item in dataclasses.fields(World)})
        half.stored = stored
        send_world(prometheus.url, half, prometheus_replica=replica)
    outcome = joulewatch("analyze", run, "--prometheus", prometheus.url, "--format=json", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    windows = {window.index: window for window in whole.record.windows}
    assert len(document["results"]) == 2
    for cell in document["results"]:
        assert len(cell["windows"]) == 2, "both windows, of which one is in each half"
        truth = sum(
            whole.truth_joules(item, windows[index]) / windows[index].inferences / 2
            for item in whole.sensors
            if item.scope == "device"
            for index in cell["windows"]
        )
        assert cell["energy"]["total"]["gross"]["value"] == pytest.approx(truth, rel=0.005)
    assert "targets_merged" in {finding["reason"] for finding in document["findings"]}
    for match, count in (("prometheus_replica=1", 1), ("run=other", 0)):
        listed = joulewatch("runs", "--prometheus", prometheus.url, "--match", match, "--format=json", folder=tmp_path)
        assert listed.code == 0, listed.err
        rows = json.loads(listed.out)
        assert [row["windows"] for row in rows] == count * [len(whole.record.windows)]
