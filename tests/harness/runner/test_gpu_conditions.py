"""Conditions of the GPUs from an exporter's answers: the rise of counters, and settings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import pytest

from joulewatch_harness.clients.conditions import ConditionsClient, DeviceConditions
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.records import ExporterRecord
from joulewatch_harness.runner.conditions import RunConditions
from joulewatch_harness.runner.gpu_conditions import conditions_clients, gpus_between
from support.synthetic import sensor

QUIET = DeviceConditions(
    {"throttled_power_seconds": 1.0, "throttled_hardware_thermal_seconds": 2.0, "hot_seconds": 3.0, "ecc_errors": 4.0},
    {"limit_watts": 350.0, "default_limit_watts": 350.0, "power_smoothing": 0.0, "power_profiles": 0.0},
)


def changed(counters: Mapping[str, float], settings: Mapping[str, float]) -> DeviceConditions:
    return DeviceConditions({**QUIET.counters, **counters}, {**QUIET.settings, **settings})


def between(start: DeviceConditions, end: DeviceConditions, before: DeviceConditions = QUIET) -> dict[str, float]:
    return dict(gpus_between({"G": before}, {"G": start}, {"G": end}))


def test_a_quiet_gpu_has_no_conditions() -> None:
    assert between(QUIET, QUIET) == {}


@pytest.mark.parametrize(
    ("counters", "settings", "conditions"),
    [
        ({"throttled_hardware_thermal_seconds": 2.5, "throttled_thermal_seconds": 9.0}, {}, {"gpu_thermal_s": 0.5}),
        ({"throttled_power_seconds": 5.0}, {}, {"gpu_power_capped_s": 4.0}),
        ({"hot_seconds": 3.5}, {}, {"gpu_hot_s": 0.5}),
        ({"ecc_errors": 6.0}, {}, {"gpu_ecc_errors": 2.0}),
        ({"ecc_errors": 0.0, "throttled_power_seconds": 0.0}, {}, {}),
        (
            {},
            {"power_smoothing": 1.0, "power_floor_watts": 210.0},
            {"gpu_power_smoothing": 1, "gpu_power_floor_watts": 210},
        ),
        ({}, {"power_profiles": 33.0}, {"gpu_power_profiles": 33}),
        ({}, {"limit_watts": 280.0}, {"gpu_limit_ratio": 0.8, "gpu_limit_changed": 1}),
    ],
)
def test_what_occurred(
    counters: Mapping[str, float], settings: Mapping[str, float], conditions: Mapping[str, float]
) -> None:
    assert between(QUIET, changed(counters, settings)) == {f"{name}/G": value for name, value in conditions.items()}


def test_a_setting_counts_at_either_edge_and_a_limit_since_the_window_before() -> None:
    capped = changed({}, {"limit_watts": 280.0, "power_smoothing": 1.0})
    assert between(capped, QUIET) == {"gpu_power_smoothing/G": 1, "gpu_limit_changed/G": 1}
    assert between(QUIET, QUIET, capped) == {"gpu_limit_changed/G": 1}


def test_the_mean_clock_counts_by_utilisation() -> None:
    start = changed({"busy_seconds": 10.0, "busy_mhz_seconds": 17000.0}, {})
    end = changed({"busy_seconds": 12.0, "busy_mhz_seconds": 20000.0}, {})
    assert between(start, end) == {"gpu_sm_mhz/G": 1500.0}
    assert between(end, end) == {}
    assert between(start, changed({"busy_seconds": 12.0, "busy_mhz_seconds": 17000.0}, {})) == {}


def test_a_gpu_without_an_answer_at_one_edge_has_no_conditions() -> None:
    assert dict(gpus_between({}, {}, {"G": QUIET})) == dict(gpus_between({}, {"G": QUIET}, {})) == {}


class Answers(ConditionsClient):
    """Gives one answer after the other."""

    def __init__(self, *answers: Mapping[str, DeviceConditions]) -> None:
        super().__init__(ExporterClient("http://node1:10717"))
        self.answers = list(answers)

    def read(self) -> dict[str, DeviceConditions]:
        return dict(self.answers.pop(0))


def test_the_conditions_of_a_run_have_those_of_its_gpus() -> None:
    """The limit changed while the GPU did not answer."""
    later = changed({}, {"limit_watts": 300.0})
    reader = RunConditions([Answers({"G": QUIET}, {"G": QUIET}, {}, {"G": later}, {"G": later})])
    with contextlib.closing(reader):
        assert reader.provenance == {"gpus": {"G": dict(QUIET.settings)}}
        first = reader.between(reader.read(), reader.read())
        second = reader.between(reader.read(), reader.read())
    assert "gpu_limit_changed/G" not in first
    assert second["gpu_limit_changed/G"] == 1


def test_without_gpus_the_provenance_has_none() -> None:
    with contextlib.closing(RunConditions()) as reader:
        assert reader.provenance == {}


def test_only_exporters_with_nvidia_gpus_are_asked() -> None:
    gpu = dataclasses.replace(sensor("GPU-1", "total", "gpu"), collector="nvml", exporter="b")
    exporters = [ExporterRecord(name=name, url=f"http://{name}:10717/metrics", nodename=name) for name in "ab"]
    clients = conditions_clients(["http://a:10717", "http://b:10717"], exporters, [sensor("s0", "package"), gpu])
    assert [client._exporter.name for client in clients] == ["b"]
