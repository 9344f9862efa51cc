"""``analyze --source`` and ``energy --source``: energies of a run by the series of other exporters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import responses

from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.cli import main
from joulewatch_harness.records import (
    Configuration,
    Edge,
    EdgeCounter,
    ExporterRecord,
    RunEnd,
    Window,
)
from joulewatch_harness.storage.journal import Journal
from support.fake_prometheus import URL, FakePrometheus
from support.runs import header as run_header

T0 = 1795860000.0
RUN = "20261128T100000Z-abcdef"


def edge(at_s: float) -> Edge:
    counter = EdgeCounter(
        exporter="node1:10717",
        scope="device",
        collector="rapl",
        component="cpu",
        device="socket0",
        domain="package",
        energy_joules=150.0 * (at_s - T0),
        read_at_s=at_s,
    )
    return Edge(requested_at_s=at_s, answered_at_s=at_s, counters=(counter,))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Write a run of node1, whose socket uses 150 W, and return the directory of all runs."""
    network = Configuration(name="net/python/fp32", network="net", runtime="python", precision="fp32")
    header = run_header(
        RUN,
        T0,
        configurations=(network,),
        exporters=(ExporterRecord(name="node1:10717", url="http://node1:10717", nodename="node1"),),
        provenance={"host": "node1"},
    )
    with Journal.create(tmp_path / "runs", header) as journal:
        journal.append(network)
        for index in range(3):
            start_s = T0 + 100 + 100 * index
            window = Window(
                run=RUN,
                index=index,
                kind="measure",
                start_s=start_s,
                end_s=start_s + 90,
                duration_s=90.0,
                clock_error_s=0.0,
                configuration=network.name,
                batch_size=1,
                repeat=index,
                batches=900,
                inferences=900,
                start_edge=edge(start_s),
                end_edge=edge(start_s + 90),
            )
            journal.append(window)
        journal.append(RunEnd(ended_at_s=T0 + 400, status="complete"))
    return tmp_path / "runs"


def analyze(capsys: pytest.CaptureFixture[str], runs: Path, *words: str) -> Any:
    times_s = np.arange(T0 - 100, T0 + 600, 15)

    def series(name: str, values: Any, instance: str, **labels: str) -> RawSeries:
        values = np.broadcast_to(np.asarray(values, dtype=np.float64), times_s.shape).copy()
        return RawSeries(name=name, labels={"instance": instance, **labels}, times_s=times_s, values=values)

    samples = [
        series("node_rapl_package_joules_total", (150 * (times_s - T0) + 40e3) % 65532.610987, "node1:9100", index="0"),
        series("node_rapl_package_joules_total", 99 * (times_s - T0) + 40e3, "node2:9100", index="0"),
        series("DCGM_FI_DEV_POWER_USAGE", 300.0, "node1:9400", UUID="GPU-1", Hostname="node1"),
    ]
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        FakePrometheus(samples).install(mocked)
        capsys.readouterr()
        code = main(["analyze", RUN, f"--output={runs}", f"--prometheus={URL}", "--format=json", *words])
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)


def test_a_run_by_other_exporters(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The wrapping counter and the power of the run's machine are the total; the run's own energies are not used."""
    result = analyze(capsys, runs, "--source=node_exporter", "--source=dcgm")
    energy = result["results"][0]["energy"]
    assert energy["total"]["gross"]["value"] == pytest.approx((150 + 300) * 90 / 900)
    assert sorted(part["name"] for part in energy["components"]) == ["cpu", "gpu"]
    assert "accuracy_unknown" in {finding["reason"] for finding in result["findings"]}


def test_a_run_by_its_own_exporter_and_others(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Edges of the journal for the processor, and another exporter for the GPU."""
    energy = analyze(capsys, runs, "--source=joulewatch", "--source=dcgm")["results"][0]["energy"]
    assert energy["total"]["gross"]["value"] == pytest.approx((150 + 300) * 90 / 900)


def test_a_device_that_the_run_reads_itself_is_not_added(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if its own exporter is not scraped, and only the edges of the journal have its energy."""
    result = analyze(capsys, runs, "--source=joulewatch", "--source=node_exporter")
    energy = result["results"][0]["energy"]
    assert energy["total"]["gross"]["value"] == pytest.approx(150 * 90 / 900)
    assert energy["parts"][0]["gross"]["value"] == pytest.approx(150 * 90 / 900)
    assert "source_overlap" in {finding["reason"] for finding in result["findings"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--source=dcgn",), "unknown source 'dcgn'; did you mean dcgm?"),
        (("--source=dcgm", "--source=dcgm"), "--source dcgm: is given twice"),
    ],
)
def test_wrong_sources_are_one_line_and_code_2(
    words: tuple[str, ...], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", RUN, f"--output={runs}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_two_mapping_files_of_one_name_are_one_line_and_code_2(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "rack.yaml"
        path.parent.mkdir()
        path.write_text("sensors: [{metric: a, type: gauge, unit: W, scope: node, component: node, device: a}]\n")
        words.append(f"--source={path}")
    assert main(["analyze", RUN, f"--output={runs}", *words]) == 2
    error = capsys.readouterr().err
    assert "both mappings have the name rack" in error and error.count("\n") == 1
