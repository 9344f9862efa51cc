"""Energy of the whole nodes of a job: names of nodes, several nodes, what is not measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.jobs import DEVICES, NODE, host_of, job_energies, totals
from joulewatch_harness.analysis.reports import job_report
from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.clients.slurm import Allocation
from joulewatch_harness.records import SensorRecord
from support.synthetic import T0, ListSource, Signal, World, sensor

START_S, END_S = T0 + 100, T0 + 400
CPU = tuple(sensor(f"socket{number}", "package") for number in range(2))
GPU = sensor("GPU-0", "total", component="gpu", collector="nvml")
SERVER = sensor("psys", "total", "node", "node", primary=True)


def machine(name: str, watts: float, *sensors: SensorRecord, end_s: float = T0 + 600) -> list[RawSeries]:
    """Return the samples of a machine whose sensors have ``watts`` each."""
    sensors = tuple(dataclasses.replace(one, host=name if one.scope == "node" else "") for one in sensors)
    signal = Signal((T0 - 10,), (watts,))
    world = World(sensors=dict.fromkeys(sensors, signal), scrape_s=5.0, start_s=T0, end_s=end_s)
    return [
        dataclasses.replace(raw, labels={**raw.labels, "nodename": name})
        if raw.name == catalog.EXPORTER_INFO.name
        else raw
        for raw in world.scrapes(instance=f"{name}:10717")
    ]


ONE = machine("n1", 100.0, *CPU, GPU, SERVER)
TWO = machine("n2.example.org", 50.0, *CPU)
SPANS = {"n1": ((START_S, END_S),), "n2": ((START_S, END_S),)}


def energies_of(
    samples: Sequence[RawSeries], nodes: Sequence[str] = ("n1", "n2")
) -> dict[tuple[str, str], float | None]:
    rows, _ = job_energies(ListSource(samples), dict.fromkeys(nodes, SPANS["n1"]))
    return {(row.node, row.component): row.joules for row in rows}


def test_each_node_has_its_components_their_sum_and_its_server() -> None:
    """The second node has one component, and the exporter names it with its domain."""
    assert energies_of([*ONE, *TWO]) == {
        ("n1", "cpu"): pytest.approx(2 * 100 * 300),
        ("n1", "gpu"): pytest.approx(100 * 300),
        ("n1", DEVICES): pytest.approx(3 * 100 * 300),
        ("n1", NODE): pytest.approx(100 * 300),
        ("n2", "cpu"): pytest.approx(2 * 50 * 300),
    }


def test_the_sum_over_the_nodes_is_complete_or_missing() -> None:
    rows, _ = job_energies(ListSource([*ONE, *TWO]), SPANS)
    sums = totals(rows)
    devices = sums[DEVICES]
    assert devices is not None and devices.joules == pytest.approx(3 * 100 * 300 + 2 * 50 * 300)
    assert devices.duration_s == devices.measured_s == 600
    assert sums[NODE] is None, "one of the nodes has no sensor of the whole server"


def test_a_node_without_an_exporter_has_no_number_and_there_is_no_sum() -> None:
    rows, _ = job_energies(ListSource(ONE), {**SPANS, "n3": ((START_S, END_S),)})
    by_node = {row.node: row for row in rows if row.component == DEVICES}
    assert by_node["n3"].joules is None and by_node["n3"].reasons == ("no_samples",)
    assert totals(rows) == {DEVICES: None, NODE: None}
    text = job_report.render_table("9", [], rows, "memory")
    assert "n3: no exporter with this nodename" in " ".join(text.split())
    assert "No sum over the devices: the energy of a node is missing or not complete." in " ".join(text.split())


def test_unmeasured_time_is_reported_and_never_counted_as_zero() -> None:
    """The exporter of the second node stops in the middle of the job."""
    rows, _ = job_energies(ListSource([*ONE, *machine("n2", 50.0, *CPU, end_s=T0 + 250)]), SPANS)
    (cpu,) = (row for row in rows if row.node == "n2")
    assert cpu.joules is not None and not cpu.complete
    assert cpu.joules == pytest.approx(2 * 50 * cpu.measured_s)
    assert 60 <= cpu.measured_s < 160 and cpu.reasons
    assert totals(rows)[DEVICES] is None


def test_the_uncertainty_includes_the_rounding_of_the_times_to_seconds() -> None:
    """A job of 2 s that drew 100 W may have lasted 1 or 3 s."""
    rows, _ = job_energies(ListSource(ONE), {"n1": ((START_S, START_S + 2),)})
    (server,) = (row for row in rows if row.component == NODE)
    assert server.joules == pytest.approx(200)
    assert server.expanded_joules >= 0.78 * 100
    two, _ = job_energies(ListSource(ONE), {"n1": ((START_S, START_S + 2), (START_S + 10, START_S + 12))})
    (both,) = (row for row in two if row.component == NODE)
    assert both.joules == pytest.approx(400) and both.expanded_joules >= 2 * 0.78 * 100


@pytest.mark.parametrize(
    ("node", "hosts", "host"),
    [
        ("n1", {"n1", "n10"}, "n1"),
        ("n1", {"n1.example.org", "n10"}, "n1.example.org"),
        ("n1.cluster", {"N1"}, "N1"),
        ("n1", {"n1:10717"}, "n1:10717"),
        ("n1", {"n1.a", "n1.b"}, ""),
        ("n1", {"n10", "xn1"}, ""),
        ("n1", set(), ""),
    ],
)
def test_the_host_of_a_node(node: str, hosts: set[str], host: str) -> None:
    assert host_of(node, hosts) == host


def test_the_formats_agree_and_say_whole_nodes() -> None:
    rows, notices = job_energies(ListSource([*ONE, *TWO]), SPANS)
    allocation = Allocation(
        job="9", cluster="test", state="RUNNING", start_s=START_S, end_s=None, nodes=("n1", "n2"), number="9"
    )
    document = json.loads(job_report.render_json("9", [allocation], rows, "memory", notices))
    assert document["basis"] == "whole_nodes" and "other jobs on these nodes" in document["basis_text"]
    assert document["allocations"][0]["end_s"] is None
    lines = list(csv.DictReader(io.StringIO(job_report.render_csv("9", rows))))
    assert {line["basis"] for line in lines} == {"whole_nodes"}
    assert [float(line["energy_joules"]) for line in lines] == pytest.approx(
        [one["joules"] for one in document["nodes"]]
    )
    assert float(lines[0]["energy_kwh"]) == pytest.approx(float(lines[0]["energy_joules"]) / 3.6e6)
    text = job_report.render_table("9", [allocation], rows, "memory", notices, width=100)
    assert all(len(line) <= 100 for line in text.splitlines())
    for word in ("RUNNING", "running", "all nodes", "120000", "Energy of whole nodes", "upper limit"):
        assert word in text, text
