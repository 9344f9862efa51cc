"""Results for other programs: MLCommons' proposed energy schema, and codecarbon's emissions.csv."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import Any

import jsonschema
import pytest

from joulewatch_harness.analysis.reports import to_codecarbon, to_mlperf
from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.records import RunRecord, SensorRecord
from support.synthetic import TWO_SOCKETS, ListSource, make_world, sensor

GPUS = tuple(
    sensor(
        f"GPU-{number}",
        "total",
        component="gpu",
        collector="nvml",
        model="NVIDIA A100",
        method="emulated",
        refresh_s=0.1,
    )
    for number in range(2)
)
ESTIMATED = (sensor("socket0", "package", collector="estimate", method="estimated", accuracy=0.5),)


def result_of(*sensors: SensorRecord, **settings: Any) -> RunResult:
    world = make_world(sensors, batch_sizes=(8,), **settings)
    assert world.record is not None
    return analyze_run(world.record, ListSource(world.scrapes()))


def records_of(result: RunResult) -> list[dict[str, Any]]:
    text, missing = to_mlperf.render_mlperf(result)
    assert not missing
    records: list[dict[str, Any]] = json.loads(text)
    for record in records:
        jsonschema.validate(record, to_mlperf.schema(), jsonschema.Draft202012Validator)
    return records


def rows_of(result: RunResult, grams_per_kwh: float | None = None) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_codecarbon.render_codecarbon(result, grams_per_kwh))))


@pytest.fixture(scope="module")
def on_processors() -> RunResult:
    return result_of(*TWO_SOCKETS, noise=0.01)


@pytest.fixture(scope="module")
def on_gpus() -> RunResult:
    return result_of(*TWO_SOCKETS, *GPUS)


# MLCommons


def test_a_record_has_the_energy_of_the_result(on_processors: RunResult) -> None:
    records = records_of(on_processors)
    assert len(records) == len(on_processors.groups) == 2
    for record, group in zip(records, on_processors.groups, strict=True):
        assert group.total.gross is not None and group.total.idle is not None
        assert (record["measurement_method"], record["accelerator_count"]) == ("rapl", 2)
        assert (record["scenario"], record["batch_size"]) == ("offline", 8)
        per_query = record["energy_per_query_joules"]
        assert per_query["mean"] == pytest.approx(group.total.gross.value)
        assert 0 < per_query["std"] < 0.1 * per_query["mean"]
        assert record["total_energy_joules"] == pytest.approx(per_query["mean"] * group.inferences)
        watts = record["inference_active_power_watts"]["mean"]
        assert watts * group.duration_s == pytest.approx(record["total_energy_joules"])
        assert record["static_power_baseline_watts"] == pytest.approx(group.total.idle.watts)
        assert group.total.idle.watts < watts
        details = record["joulewatch"]
        assert (details["estimated"], details["emulated"], details["methods"]) == (False, False, ["counter"])
        assert {"accuracy_unknown"} <= set(details["findings"])


def test_a_record_of_gpus_excludes_the_processors_and_is_marked_as_emulated(on_gpus: RunResult) -> None:
    for record, group in zip(records_of(on_gpus), on_gpus.groups, strict=True):
        (gpu,) = (energy for energy in group.components if energy.name == "gpu")
        assert gpu.gross is not None
        assert (record["measurement_method"], record["accelerator_count"]) == ("nvml", 2)
        assert record["energy_per_query_joules"]["mean"] == pytest.approx(gpu.gross.value)
        assert record["sampling_rate_hz"] == pytest.approx(10)
        assert record["joulewatch"]["emulated"] and record["joulewatch"]["methods"] == ["emulated"]
        assert {one["device"] for one in record["joulewatch"]["sensors"]} == {"GPU-0", "GPU-1"}


def test_the_warm_up_is_that_of_the_batch_size(on_processors: RunResult) -> None:
    record = on_processors.record
    first = record.configurations[0].name
    (at, *_) = (i for i, window in enumerate(record.windows) if window.kind == "idle")
    warm = [
        dataclasses.replace(
            record.windows[at], index=-1, kind="warmup", configuration=name, batch_size=8, duration_s=1.5
        )
        for name in (first, first, record.configurations[1].name)
    ]
    changed = dataclasses.replace(on_processors, record=dataclasses.replace(record, windows=(*warm, *record.windows)))
    assert [one["thermal_stabilization_seconds"] for one in records_of(changed)] == [3.0, 1.5]


def without_idle(result: RunResult) -> RunResult:
    groups = tuple(
        dataclasses.replace(
            group, components=tuple(dataclasses.replace(energy, idle=None) for energy in group.components)
        )
        for group in result.groups
    )
    return dataclasses.replace(result, groups=groups)


def with_busy_idle(result: RunResult) -> RunResult:
    groups = []
    for group in result.groups:
        components = []
        for energy in group.components:
            assert energy.idle is not None
            components.append(dataclasses.replace(energy, idle=dataclasses.replace(energy.idle, watts=1e4)))
        groups.append(dataclasses.replace(group, components=tuple(components)))
    return dataclasses.replace(result, groups=tuple(groups))


def with_slow_sensors(result: RunResult) -> RunResult:
    slow = tuple(dataclasses.replace(record, refresh_s=2.0) for record in result.sensors)
    return dataclasses.replace(result, sensors=slow)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_idle, "the idle power was not measured"),
        (with_busy_idle, "its power is not above the idle power"),
        (with_slow_sensors, "a sensor has less than one new value per second"),
    ],
)
def test_a_required_value_is_never_made_up(on_processors: RunResult, change: Any, reason: str) -> None:
    text, missing = to_mlperf.render_mlperf(change(on_processors))
    assert json.loads(text) == []
    assert [line.partition(": ")[2] for line in missing] == [reason] * 2


def test_an_estimated_energy_has_no_measurement_method() -> None:
    text, missing = to_mlperf.render_mlperf(result_of(*ESTIMATED))
    assert json.loads(text) == []
    assert missing[0].endswith("batch size 8: the schema has no measurement method for estimate")


# codecarbon


def test_the_columns_are_those_of_codecarbon_and_own_ones(on_processors: RunResult) -> None:
    header = to_codecarbon.render_codecarbon(on_processors).splitlines()[0].split(",")
    assert header[:14] == [
        "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
        "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed",
    ]  # fmt: skip
    assert header[37:] == ["wue", *to_codecarbon.OWN_COLUMNS]


def test_energies_are_in_kwh_and_add_up(on_processors: RunResult) -> None:
    for row, group in zip(rows_of(on_processors), on_processors.groups, strict=True):
        assert group.total.gross is not None and group.total.gross.expanded is not None
        joules = group.total.gross.value * group.inferences
        assert float(row["energy_consumed"]) * 3.6e6 == pytest.approx(joules)
        parts = [float(row[f"{part}_energy"]) for part in ("cpu", "ram")]
        assert math.fsum(parts) == pytest.approx(float(row["energy_consumed"]))
        assert float(row["cpu_power"]) * float(row["duration"]) == pytest.approx(parts[0] * 3.6e6)
        relative = float(row["joulewatch_energy_uncertainty"]) / float(row["energy_consumed"])
        assert relative == pytest.approx(group.total.gross.expanded / group.total.gross.value)
        assert (row["joulewatch_method"], row["joulewatch_batch_size"]) == ("counter", "8")
        assert row["project_name"] == group.configuration.name and row["timestamp"].startswith("2026-09-21T14:")


def test_what_is_not_known_is_empty_and_never_zero(on_processors: RunResult) -> None:
    names = ("emissions", "emissions_rate", "gpu_energy", "gpu_power", "gpu_count", "water_consumed", "pue")
    names += ("country_name", "longitude", "on_cloud", "codecarbon_version", "cpu_utilization_percent")
    for row in rows_of(on_processors):
        assert {row[name] for name in names} == {""}


def test_emissions_need_a_carbon_intensity(on_gpus: RunResult) -> None:
    for row in rows_of(on_gpus, 250.0):
        assert float(row["emissions"]) == pytest.approx(0.25 * float(row["energy_consumed"]))
        assert float(row["emissions_rate"]) * float(row["duration"]) == pytest.approx(float(row["emissions"]))
        assert (row["gpu_count"], row["gpu_model"]) == ("2", "NVIDIA A100")
        assert row["joulewatch_method"] == "counter+emulated" and "emulated_energy" in row["joulewatch_findings"]
    assert {row["emissions"] for row in rows_of(on_gpus, 0.0)} == {"0"}


def test_the_machine_is_that_of_the_run(on_processors: RunResult) -> None:
    provenance = {"os": "Debian", "python": "3.12.1", "cpu": {"model": "EPYC", "threads": 128}, "memory_bytes": 2**35}
    header = dataclasses.replace(on_processors.record.header, provenance=provenance)
    record: RunRecord = dataclasses.replace(on_processors.record, header=header)
    row = rows_of(dataclasses.replace(on_processors, record=record))[0]
    names = ("os", "python_version", "cpu_model", "cpu_count", "ram_total_size")
    assert [row[name] for name in names] == ["Debian", "3.12.1", "EPYC", "128", "32"]


def test_a_missing_energy_is_an_empty_cell(on_processors: RunResult) -> None:
    group = on_processors.groups[0]
    nothing = dataclasses.replace(group.total, gross=None, net=None, missing="no sensor", windows=())
    changed = dataclasses.replace(group, total=nothing, components=())
    row = rows_of(dataclasses.replace(on_processors, groups=(changed,)), 100.0)[0]
    assert {row[name] for name in ("timestamp", "duration", "energy_consumed", "emissions", "cpu_energy")} == {""}
