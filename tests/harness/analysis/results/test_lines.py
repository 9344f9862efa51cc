"""Lines of a figure over several runs: which energies, which hardware, which labels."""

from __future__ import annotations

from typing import Any, Final

import pytest

from joulewatch_harness.analysis.reports.to_json import result_document
from joulewatch_harness.analysis.results.lines import Line, lines_of
from joulewatch_harness.analysis.results.stored_results import Run, Side, read_document
from joulewatch_harness.errors import ConfigError
from support.reports import reported

OTHER_RUN: Final = "20260922T141320Z-1b2c3d"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return result_document(reported(configurations=("net/tensorrt/fp16",), batch_sizes=(1, 8)).result)


def changed(document: dict[str, Any], *, device: str, hardware: str = "", run: str = "") -> Run:
    """Return the run with another device of its configuration, another machine, and another id."""
    results = [
        {**group, "configuration": {**group["configuration"], "runtime": "double", "device": device, "provider": ""}}
        for group in document["results"]
    ]
    header = dict(document["run"])
    header |= {"hardware": hardware or header["hardware"], "id": run or header["id"]}
    return read_document({**document, "run": header, "results": results}, "test")


def only_line(run: Run, **options: bool) -> Line:
    (line,) = lines_of([Side(run, name) for name in run.configurations], **options)
    return line


def test_the_total_is_the_sum_over_all_device_sensors(document: dict[str, Any]) -> None:
    line = only_line(changed(document, device="cuda:0"))
    total = document["results"][0]["energy"]["total"]["gross"]
    assert line.points[0].energy is not None
    assert line.points[0].energy.value == total["value"]
    assert line.points[0].energy.high == pytest.approx(total["value"] + total["expanded_uncertainty"])


@pytest.mark.parametrize(("device", "component"), [("cuda:0", "gpu"), ("cpu", "cpu"), ("NVIDIA A100", "gpu")])
def test_the_main_device_excludes_memory_and_the_host(document: dict[str, Any], device: str, component: str) -> None:
    line = only_line(changed(document, device=device), main_device=True)
    energies = {energy["name"]: energy["gross"]["value"] for energy in document["results"][0]["energy"]["components"]}
    assert set(energies) == {"cpu", "memory", "gpu"}
    assert line.points[0].energy is not None
    assert line.points[0].energy.value == energies[component]


@pytest.mark.parametrize(
    ("settings", "component"),
    [
        ({"runtime": "tensorrt"}, "gpu"),
        ({"runtime": "onnxruntime", "provider": "CUDAExecutionProvider"}, "gpu"),
        ({"runtime": "onnxruntime", "provider": "CPUExecutionProvider"}, "cpu"),
    ],
)
def test_a_run_from_prometheus_alone_shows_its_main_device_by_provider_or_runtime(
    document: dict[str, Any], settings: dict[str, str], component: str
) -> None:
    results = [
        {**group, "configuration": {**group["configuration"], "device": "", "provider": "", **settings}}
        for group in document["results"]
    ]
    line = only_line(read_document({**document, "results": results}, "test"), main_device=True)
    energies = {energy["name"]: energy["gross"]["value"] for energy in document["results"][0]["energy"]["components"]}
    assert line.points[0].energy is not None
    assert line.points[0].energy.value == energies[component]


def test_a_configuration_without_a_device_has_no_main_device_if_there_is_an_accelerator(
    document: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match="does not show which device net/tensorrt/fp16 ran on, and measured cpu, gpu"):
        only_line(changed(document, device=""), main_device=True)


def test_labels_name_the_hardware_if_it_differs_and_the_run_if_all_else_is_equal(document: dict[str, Any]) -> None:
    first, second = changed(document, device="cpu"), changed(document, device="cpu", run=OTHER_RUN)
    third = changed(document, device="cpu", hardware="EPYC 7742")
    name = "net/tensorrt/fp16"
    assert only_line(first).label == name
    labels = [line.label for line in lines_of([Side(first, name), Side(second, name)])]
    assert labels == [f"{name}, run {first.id}", f"{name}, run {OTHER_RUN}"]
    labels = [line.label for line in lines_of([Side(first, name), Side(third, name)])]
    assert labels == [f"{name} on 2x AMD EPYC 7763", f"{name} on EPYC 7742"]


def test_the_hardware_of_the_main_device_is_that_of_its_sensors(document: dict[str, Any]) -> None:
    models = {"gpu": "NVIDIA A100 @ 0000:01:00.0, driver 550.54.15", "cpu": "AMD EPYC 7763"}
    sensors = [{**sensor, "model": models.get(sensor["component"], "")} for sensor in document["sensors"]]
    run = {**document, "sensors": sensors}
    assert only_line(changed(run, device="cuda:0"), main_device=True).hardware == "NVIDIA A100"
    assert only_line(changed(run, device="cpu"), main_device=True).hardware == "2x AMD EPYC 7763"
    assert only_line(changed(run, device="cpu", hardware="node1")).hardware == "node1"
    power_model = {**document, "sensors": [{**sensor, "method": "estimated"} for sensor in sensors]}
    assert only_line(changed(power_model, device="cpu", hardware="node1"), main_device=True).hardware == "node1"


def test_a_method_that_is_not_a_measurement_is_in_the_label(document: dict[str, Any]) -> None:
    total = document["results"][0]["energy"]["total"]
    energy = {**document["results"][0]["energy"], "total": {**total, "methods": ["counter", "emulated"]}}
    run = changed({**document, "results": [{**document["results"][0], "energy": energy}]}, device="cpu")
    assert only_line(run).label == "net/tensorrt/fp16 (emulated)"


def test_the_share_of_the_driver_is_all_but_the_execution(document: dict[str, Any]) -> None:
    line = only_line(changed(document, device="cpu"))
    assert [point.driver_share for point in line.points] == [pytest.approx(0.3)] * 2
    groups = [
        {**group, "phases": [phase for phase in group["phases"] if phase["name"] != "copy_in"]}
        for group in document["results"]
    ]
    line = only_line(changed({**document, "results": groups}, device="cpu"))
    assert [point.driver_share for point in line.points] == [None, None]


def test_a_missing_energy_leaves_a_gap(document: dict[str, Any]) -> None:
    first, second = document["results"]
    total = {**first["energy"]["total"], "gross": None, "missing": "a counter restarted"}
    broken = {**first, "energy": {**first["energy"], "total": total}}
    line = only_line(changed({**document, "results": [broken, second]}, device="cpu"))
    assert [point.energy is None for point in line.points] == [True, False]
    assert all(point.throughput is not None for point in line.points)
