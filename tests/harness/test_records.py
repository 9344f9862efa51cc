"""Facts of a run that its records state together."""

from __future__ import annotations

import pytest

from joulewatch_harness.errors import RecordError
from joulewatch_harness.records import ExporterRecord, SensorRecord, decode_line
from support.runs import header

OWN = {"host": "laptop", "cpu": {"model": "Intel Core i7", "sockets": 1}}
EPYC = "AMD EPYC 7763"


def exporter(name: str, nodename: str) -> ExporterRecord:
    return ExporterRecord(name=name, url=f"http://{name}", nodename=nodename)


def sensor(exporter: str, device: str, model: str, collector: str = "rapl", **more: str) -> SensorRecord:
    values = {"scope": "device", "component": "cpu", "domain": "package", "method": "counter", **more}
    return SensorRecord(exporter=exporter, device=device, model=model, collector=collector, **values)  # type: ignore[arg-type]


SERVER = (
    sensor("a:1", "socket0", EPYC),
    sensor("a:1", "socket1", EPYC),
    sensor("a:1", "socket0", EPYC, domain="dram"),
    sensor("a:1", "psys", "PowerEdge", "redfish", scope="node"),
    sensor("a:1", "gpu0", "NVIDIA A100", "nvml"),
)


GPUS = tuple(
    sensor("a:1", f"gpu{n}", f"NVIDIA A100 @ 0000:{n}1:00.0, driver 550.54.15", "nvml", component="gpu") for n in (0, 4)
)


@pytest.mark.parametrize(
    ("exporters", "sensors", "hardware"),
    [
        ((), (), "Intel Core i7"),
        ((exporter("a:1", "laptop"),), SERVER, "Intel Core i7"),
        ((exporter("a:1", ""),), SERVER, "Intel Core i7"),
        ((exporter("a:1", "node1"),), SERVER, f"node1 (2x {EPYC}, NVIDIA A100)"),
        ((exporter("a:1", "node1"),), (sensor("a:1", "chip", "ina226", "hwmon"),), "node1"),
        ((exporter("a:1", "node1"),), GPUS, "node1 (2x NVIDIA A100)"),
        (
            (exporter("l:1", "laptop"), exporter("a:1", "node1"), exporter("b:1", "node2")),
            (*SERVER[:1], sensor("b:1", "socket0", EPYC)),
            f"Intel Core i7, node1 ({EPYC}), node2 ({EPYC})",
        ),
    ],
)
def test_the_hardware_is_that_of_the_machines_that_are_measured(
    exporters: tuple[ExporterRecord, ...], sensors: tuple[SensorRecord, ...], hardware: str
) -> None:
    assert header(exporters=exporters, sensors=sensors, provenance=OWN).hardware == hardware


def test_the_text_of_a_rebuilt_run_stays() -> None:
    rebuilt = header(exporters=(exporter("a:1", "node1"),), sensors=SERVER, provenance={"hardware": "2x AMD", **OWN})
    assert rebuilt.hardware == "2x AMD"
    unknown = header(exporters=(exporter("a:1", "node1"),), sensors=SERVER, provenance={})
    assert unknown.hardware == "", "without a host, nothing is known about the exporter's machine"


@pytest.mark.parametrize(
    "line",
    [
        {"type": "x" * 5_000_000},
        {"type": ["x"] * 1_000_000},
        {"type": "\x1b[2J"},
        {"type": "configuration", "x" * 5_000_000: 1},
        {"type": "end", "finished_at_s": "x" * 5_000_000},
        {"type": "window", "flags": {"\x1b[2J" * 1_000_000: 1}},
    ],
    ids=["type", "list", "escape", "field", "value", "mapping"],
)
def test_an_error_of_a_line_is_short_and_printable(line: dict[str, object]) -> None:
    with pytest.raises(RecordError) as caught:
        decode_line(line, "journal.jsonl:2")
    assert str(caught.value).startswith("journal.jsonl:2: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
