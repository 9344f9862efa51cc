"""Conditions of NVIDIA GPUs: counters and settings, read on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from joulewatch_exporter.collectors.nvml import conditions as nvml_conditions
from joulewatch_exporter.collectors.nvml import throttling as nvml_throttling
from joulewatch_exporter.collectors.nvml.collector import NvmlCollector
from joulewatch_exporter.emulator.nvml_load import GpuConditions, GpuLoadSpec, GpuProcessSpec
from joulewatch_exporter.emulator.signals import Constant, Points
from joulewatch_exporter.server.conditions import render_conditions
from support.nvml import A100, FIRST, H100, SECOND, GpuMachine, fault
from support.waiting import wait_until

BUSY = GpuProcessSpec(pid=11, utilisation=Constant(50.0))


@pytest.fixture
def machine(gpu_machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    monkeypatch.setattr(nvml_throttling, "_SLACK_NS", 10**12)  # the emulated time runs faster than the clock
    return gpu_machine


def counters(collector: NvmlCollector) -> Mapping[str, float]:
    return next(one.counters for one in collector.read_conditions() if one.device == FIRST)


def test_counters(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the driver are exact; clock and temperature are integrals over the times of the reads."""
    conditions = GpuConditions(
        throttled={"power": Constant(25.0), "hardware_thermal": Constant(10.0)},
        sm_clock_mhz=Points(times_s=(0.0, 1.0, 11.0), watts=(1400.0, 1400.0, 1600.0)),
        temperature_celsius=Points(times_s=(0.0, 1.0), watts=(81.0, 82.0)),
        ecc_uncorrected=Points(times_s=(0.0, 11.0), watts=(3.0, 4.0)),
    )
    gpus = machine.gpus(
        replace(H100, load=GpuLoadSpec(conditions=conditions, processes=(BUSY,))), driver_version="570.10"
    )
    gpus.advance(0.5)
    collector = machine.collect()
    now_s = 1000.0
    monkeypatch.setattr(nvml_conditions, "monotonic_ns", lambda: round(now_s * 1e9))
    gpus.advance(1.0)
    before = counters(collector)
    gpus.advance(11.0)
    now_s = 1010.0
    after = counters(collector)
    rises = {name: value - before[name] for name, value in after.items() if value != before[name]}
    assert rises == pytest.approx(
        {
            "throttled_power_seconds": 2.5,
            "throttled_hardware_thermal_seconds": 1.0,
            "ecc_errors": 1.0,
            "busy_seconds": 5.0,
            "busy_mhz_seconds": 7500.0,
            "hot_seconds": 10.0,
        }
    )


def test_settings_are_read_in_the_background(machine: GpuMachine) -> None:
    conditions = GpuConditions(power_smoothing=True, power_floor_watts=210, power_profiles=(0, 5))
    machine.gpus(
        replace(H100, load=GpuLoadSpec(conditions=conditions, default_limit_watts=400.0)), driver_version="595.10"
    )
    collector = machine.collect()
    (gpu,) = collector.read_conditions()
    assert gpu.settings == {
        "limit_watts": 350.0,
        "default_limit_watts": 400.0,
        "power_smoothing": 1.0,
        "power_floor_watts": 210.0,
        "power_profiles": 33.0,
    }
    machine.gpus(replace(H100, limit_watts=300.0))
    assert collector.read_conditions()[0].settings["limit_watts"] == 350.0, "not in a request"
    collector.read_throttling()
    assert collector.read_conditions()[0].settings["limit_watts"] == 300.0


def test_without_requests_only_throttled_time_is_read(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request after a while reads the settings itself, and the integrals have a gap."""
    now_s = 10_000.0
    monkeypatch.setattr(nvml_conditions, "monotonic_ns", lambda: round(now_s * 1e9))
    gpus = machine.gpus(replace(H100, load=GpuLoadSpec(processes=(BUSY,))))
    gpus.advance(1.0)
    collector = machine.collect()
    assert collector.throttled and not collector.gpus[FIRST].conditions.counters
    assert counters(collector)["busy_seconds"] == 0.0
    assert collector.read_conditions()[0].settings["limit_watts"] == 350.0
    now_s += 4.0
    assert counters(collector)["busy_seconds"] == pytest.approx(2.0)
    machine.gpus(replace(H100, limit_watts=300.0, load=GpuLoadSpec(processes=(BUSY,)))).advance(1.0)
    now_s += 1000.0
    assert counters(collector)["busy_seconds"] == pytest.approx(2.0)
    assert collector.read_conditions()[0].settings["limit_watts"] == 300.0


def test_what_a_gpu_does_not_support_is_missing(machine: GpuMachine) -> None:
    unsupported: Any = ("violations", "violation_fields", "clocks", "temperature", "default_limit")
    load = GpuLoadSpec(unsupported=unsupported, conditions=GpuConditions(ecc_uncorrected=None))
    machine.gpus(replace(H100, load=load), driver_version="470.82")
    (gpu,) = machine.collect().read_conditions()
    assert (gpu.counters, gpu.settings) == ({}, {"limit_watts": 350.0})


def test_a_gpu_that_hangs_is_missing_in_the_answer(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(H100, load=GpuLoadSpec(), faults=(fault("hang", 1.0, 2.0),)), A100)
    collector = machine.collect(call_timeout_seconds=0.05)
    gpus.advance(1.0)
    answer = json.loads(render_conditions())
    assert answer["joulewatch_conditions"] == 1
    assert [one["device"] for one in answer["devices"]] == [SECOND]
    gpus.advance(3.0)
    wait_until(lambda: not collector.gpus[FIRST].side.is_hanging)


def test_without_a_gpu_the_answer_has_no_device() -> None:
    assert json.loads(render_conditions()) == {"joulewatch_conditions": 1, "devices": []}
