"""NVIDIA GPUs: what each generation reports, failures of one GPU, and that they do not affect the others.

A C library, loaded by the real nvidia-ml-py, emulates the GPUs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import threading
import time
import types
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.nvml import collector as nvml
from joulewatch_exporter.collectors.nvml import sensor as nvml_sensor
from joulewatch_exporter.collectors.nvml import throttling as nvml_throttling
from joulewatch_exporter.collectors.nvml.collector import NvmlCollector, NvmlOptions
from joulewatch_exporter.config.config import FamilySettings
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.emulator.nvml import GpuSpec, NvmlLibrary, available
from joulewatch_exporter.emulator.nvml_load import GpuConditions, GpuLoadSpec
from joulewatch_exporter.emulator.signals import Constant, CpuLoad, Points, Sine, Square
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import EMULATION_MARKER, Reading
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.sampler import Sampler
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.server.exposition import Exposition
from support import golden
from support.clock import FakeClock
from support.collectors import findings, infos, texts
from support.nvml import A100, FIRST, H100, P100, SECOND, GpuMachine, fault, sensor_of, values
from support.paths import ROOT
from support.waiting import wait_until

GOLDEN = ROOT / "tests" / "exporter" / "golden"

pynvml = importlib.import_module("pynvml")


@pytest.fixture
def machine(gpu_machine: GpuMachine) -> GpuMachine:
    return gpu_machine


@pytest.fixture
def immediate_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML is restarted for lost GPUs without a pause."""
    monkeypatch.setattr(nvml, "FIRST_RESTART_S", 0.0)


# -- what a GPU reports --------------------------------------------------------------------------------


def test_a_gpu_with_a_counter(machine: GpuMachine) -> None:
    """The counter is the device; other measurements of its power, and the memory's power, are parts."""
    gpus = machine.gpus(H100)
    collector = machine.collect()
    assert values(sensor_of(collector, FIRST).read()) == {"total": 5000, "instant": 300, "average": 300, "memory": 60}
    gpus.advance(2.5)
    assert values(sensor_of(collector, FIRST).read())["total"] == 5750
    published = infos(collector)
    assert list(published) == [f"{FIRST}/{domain}" for domain in ("total", "instant", "average", "memory")]
    total, instant, average, memory = published.values()
    assert (total.quantity.scope, total.quantity.component) == ("device", "gpu")
    assert {info.quantity.scope for info in (instant, average, memory)} == {"part"}
    assert [info.relation for info in (instant, average, memory)] == ["same", "same", "inside"]
    assert [info.method for info in published.values()] == ["counter", "integrated", "integrated", "integrated"]
    assert [info.window_s for info in published.values()] == [None, 0.025, None, None]
    assert [info.resolution for info in published.values()] == ["1 mJ", "1 mW", "1 mW", "1 mW"]
    assert [info.accuracy for info in published.values()] == [0.1, 0.1, 0.1, None]
    assert {info.model for info in published.values()} == {"NVIDIA H100 PCIe @ 0000:17:00.0, driver 550.54.15"}
    assert {(info.limit_watts, info.max_power_watts) for info in published.values()} == {(350.0, 800.0)}
    assert "energy counter, instant power, average power, memory power; limit 350 W" in texts(collector, "found")
    assert (collector.timing.poll_s, collector.timing.manages_devices) == (1.0, True)


def test_readings_have_the_quantities_of_the_infos_and_the_time_of_the_read(machine: GpuMachine) -> None:
    machine.gpus(H100)
    (sensor,) = machine.collect().sensors
    before_ns = time.monotonic_ns()
    readings = sensor.read()
    after_ns = time.monotonic_ns()
    assert [reading.quantity for reading in readings] == [info.quantity for info in sensor.infos]
    assert all(
        reading.quantity is info.quantity and before_ns <= reading.read_at_ns <= after_ns
        for reading, info in zip(readings, sensor.infos, strict=True)
    )


def test_without_a_counter_momentary_power_is_integrated(machine: GpuMachine) -> None:
    machine.gpus(P100)
    collector = machine.collect()
    assert values(sensor_of(collector, SECOND).read()) == {"total": 200}
    (total,) = infos(collector).values()
    assert (total.method, total.quantity.scope, total.window_s) == ("integrated", "device", 0.010)
    assert "POWER_INSTANT" in total.source
    assert collector.timing.poll_s == 0.1


def test_a_chip_without_an_average(machine: GpuMachine) -> None:
    machine.gpus(A100)
    collector = machine.collect()
    assert values(sensor_of(collector, SECOND).read()) == {"total": 5000, "instant": 200}
    assert infos(collector)[f"{SECOND}/instant"].window_s == 0.025


@pytest.mark.parametrize(
    ("name", "architecture", "window_s"),
    [
        ("Tesla P100-PCIE-16GB", 4, 0.010),
        ("Tesla V100-SXM2-32GB", 5, 0.010),
        ("Quadro RTX 8000", 6, 0.020),
        ("NVIDIA GeForce RTX 2080 Ti", 6, None),
        ("NVIDIA A100X", 7, 0.025),
        ("NVIDIA A30", 7, 0.025),
        ("NVIDIA RTX A3000 Laptop GPU", 7, None),
        ("NVIDIA GeForce RTX 3090", 7, None),
        ("NVIDIA GeForce RTX 4090", 8, None),
        ("NVIDIA H100 80GB HBM3", 9, 0.025),
        ("NVIDIA H200", 9, None),
        ("NVIDIA B200", 10, None),
    ],
)
def test_window_of_momentary_power(machine: GpuMachine, name: str, architecture: int, window_s: float | None) -> None:
    """Only measured windows are published."""
    machine.gpus(replace(A100, name=name, architecture=architecture))
    assert infos(machine.collect())[f"{SECOND}/instant"].window_s == window_s


@pytest.mark.parametrize(
    ("name", "accuracy", "error"),
    [
        ("NVIDIA A100-PCIE-40GB", 0.055, "error -5.5 % at steady load"),
        ("NVIDIA GeForce RTX 3090", 0.048, "error -4.8 to -0.1 %"),
        ("GeForce RTX 3090", 0.048, "error -4.8 to -0.1 %"),
        ("NVIDIA GeForce RTX 3070 Ti", 0.027, "error -2.7 to -2.1 %"),
        ("NVIDIA GeForce RTX 2060 SUPER", 0.114, "error +10.4 to +11.4 %"),
        ("Quadro K620", 0.411, "error -41.1 to -40.9 %"),
        ("Tesla P100-PCIE-16GB", 0.007, "error +0.4 to +0.7 %"),
        ("NVIDIA TITAN X (Pascal)", 0.007, "error +0.7 %"),
    ],
)
def test_accuracy_of_a_studied_gpu(machine: GpuMachine, name: str, accuracy: float, error: str) -> None:
    """The half-width is the largest absolute error, of the counter and of the power."""
    machine.gpus(replace(A100, name=name))
    published = infos(machine.collect())
    assert [info.accuracy for info in published.values()] == pytest.approx([accuracy, accuracy])
    assert {info.accuracy_source.partition(" (")[0].startswith(error) for info in published.values()} == {True}
    assert all("arXiv 2312.02741" in info.accuracy_source for info in published.values())


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3070",
        "NVIDIA GeForce RTX 2060",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla M40 24GB",
        "Tesla P100-SXM2-16GB",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H200",
        "NVIDIA GH200 480GB",
    ],
)
def test_accuracy_of_a_gpu_that_was_not_studied(machine: GpuMachine, name: str) -> None:
    """Similar names are other models."""
    machine.gpus(replace(A100, name=name))
    published = infos(machine.collect())
    assert [info.accuracy for info in published.values()] == [0.1, 0.1]
    assert all(info.accuracy_source.startswith("not studied") for info in published.values())


@pytest.mark.parametrize(
    ("spec", "domain", "kind"),
    [
        (replace(H100, memory=None), "average", "mean over 1 s"),
        (A100, "instant", "of the moment"),
        (replace(A100, name="Tesla V100-SXM2-32GB", architecture=5), "instant", "of the moment"),
    ],
    ids=["Hopper", "GA100", "Volta"],
)
def test_power_of_an_old_driver(machine: GpuMachine, spec: GpuSpec, domain: str, kind: str) -> None:
    """Drivers without fields 185 and 186 report one power, whose meaning depends on the chip."""
    machine.gpus(replace(spec, has_power_fields=False))
    collector = machine.collect()
    assert set(values(collector.sensors[0].read())) == {"total", domain}
    info = infos(collector)[f"{spec.uuid}/{domain}"]
    assert info.source == f"nvmlDeviceGetPowerUsage ({kind})"
    assert (info.window_s is None) == (domain == "average")


def test_a_driver_without_fields(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each quantity then has its own call, and missing functions are tolerated."""
    machine.gpus(H100)

    def missing(*_: object) -> None:
        raise pynvml.NVMLError(13)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", missing)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetMigMode")
    collector = machine.collect()
    assert values(collector.sensors[0].read()) == {"total": 5000, "average": 300}
    assert infos(collector)[f"{FIRST}/total"].source == "nvmlDeviceGetTotalEnergyConsumption"


def test_an_old_driver_without_a_counter(machine: GpuMachine) -> None:
    """An averaged power needs only one read per second."""
    machine.gpus(replace(H100, has_power_fields=False, has_energy_counter=False))
    collector = machine.collect()
    assert values(collector.sensors[0].read()) == {"total": 300}
    assert infos(collector)[f"{FIRST}/total"].method == "integrated"
    assert collector.timing.poll_s == 1.0
    machine.gpus(replace(P100, has_power_fields=False))
    collector.close()
    assert machine.collect().timing.poll_s == 0.1


def test_parts_can_be_excluded(machine: GpuMachine) -> None:
    machine.gpus(H100)
    collector = machine.collect(average=False, memory=False)
    assert list(infos(collector)) == [f"{FIRST}/total", f"{FIRST}/instant"]


@pytest.mark.parametrize("watts", [0.0, 300.0, 900.0])
def test_implausible_memory_power_is_not_published(machine: GpuMachine, watts: float) -> None:
    """Headers disagree about the meaning of scope 2: its power must be below the GPU's power."""
    machine.gpus(replace(H100, memory=Constant(watts)))
    assert f"{FIRST}/memory" not in infos(machine.collect())


def test_memory_power_that_becomes_implausible_is_skipped(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(H100, memory=Points(times_s=(0.0, 5.0), watts=(60.0, 400.0))))
    (sensor,) = machine.collect().sensors
    assert "memory" in values(sensor.read())
    gpus.advance(7.0)
    assert set(values(sensor.read())) == {"total", "instant", "average"}


def test_a_driver_that_ignores_scopes_has_no_memory_power(machine: GpuMachine) -> None:
    """Its average, read a moment later, may be slightly lower and look like memory power."""
    machine.gpus(replace(H100, knows_scopes=False))
    collector = machine.collect()
    assert f"{FIRST}/memory" not in infos(collector)
    assert "for any scope" in texts(collector, "skipped")


GH200 = replace(H100, name="NVIDIA GH200 480GB", module=Constant(520.0), limit_watts=900.0)


def test_the_module_of_a_superchip_is_a_part_that_contains_the_gpu(machine: GpuMachine) -> None:
    """Its counter counts the module, so the GPU is its own power, averaged and integrated."""
    gpus = machine.gpus(GH200)
    collector = machine.collect()
    (sensor,) = collector.sensors
    assert values(sensor.read()) == {"total": 300, "instant": 300, "memory": 60, "module": 520}
    published = infos(collector)
    total, module = published[f"{FIRST}/total"], published[f"{FIRST}/module"]
    assert (total.quantity.scope, total.method, total.limit_watts) == ("device", "integrated", 900.0)
    assert total.source == "nvmlDeviceGetFieldValues: POWER_AVERAGE"
    assert (module.quantity.scope, module.relation, module.limit_watts) == ("part", "contains", None)
    assert module.source == "nvmlDeviceGetFieldValues: POWER_AVERAGE, scope module"
    assert "energy counter excluded: on a superchip it counts the module" in texts(collector, "skipped")
    assert collector.timing.poll_s == 1.0
    gpus.advance(10.0)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 5_000_000 + 5_200_000


def test_the_module_is_read_by_hwmon_if_it_has_a_meter(machine: GpuMachine) -> None:
    meter = machine.host.sysfs / "class/hwmon/hwmon3/device"
    meter.mkdir(parents=True)
    (meter / "power1_oem_info").write_text("Module Power Socket 0\n")
    machine.gpus(GH200)
    collector = machine.collect()
    assert f"{FIRST}/module" not in infos(collector)
    assert infos(collector)[f"{FIRST}/total"].method == "integrated"
    assert "hwmon reads the meter of the module" in texts(collector, "skipped")


@pytest.mark.parametrize(
    "spec",
    [replace(GH200, knows_scopes=False), replace(GH200, module=Constant(300.0)), replace(GH200, module=Constant(0.0))],
    ids=["ignored scope", "power of the GPU", "0 W"],
)
def test_a_module_that_is_not_more_than_the_gpu_is_not_a_superchip(machine: GpuMachine, spec: GpuSpec) -> None:
    machine.gpus(spec)
    published = infos(machine.collect())
    assert f"{FIRST}/module" not in published
    assert published[f"{FIRST}/total"].method == "counter"


def test_a_new_power_limit_is_not_one_of_the_module(machine: GpuMachine) -> None:
    machine.gpus(GH200)
    collector = machine.collect()
    collector.update_limit(sensor_of(collector, FIRST), 700_000)
    published = infos(collector)
    assert (published[f"{FIRST}/total"].limit_watts, published[f"{FIRST}/module"].limit_watts) == (700.0, None)


def test_a_gpu_with_mig_is_published_once(machine: GpuMachine) -> None:
    machine.gpus(replace(H100, mig=True), replace(A100, mig=False))
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [FIRST, SECOND]
    assert "MIG is enabled" in texts(collector, "skipped")


def test_a_mig_slice_is_skipped(machine: GpuMachine) -> None:
    """A container may see only a slice."""
    machine.gpus(H100, replace(A100, uuid="MIG-cccccccc-0000-0000-0000-000000000003"))
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [FIRST]
    assert "a MIG slice" in texts(collector, "skipped")


def test_a_counter_at_0_is_not_used(machine: GpuMachine) -> None:
    machine.gpus(replace(H100, start_joules=0.0, energy_refresh_s=9.0)).advance(1.0)
    collector = machine.collect()
    assert infos(collector)[f"{FIRST}/total"].method == "integrated"
    assert "energy counter is 0" in texts(collector, "skipped")


def test_a_gpu_without_power_and_energy_is_skipped(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100, replace(P100, has_power_fields=False))

    def refuse(handle: object) -> int:
        raise pynvml.NVMLError(3)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse)
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [FIRST]
    assert "reports neither energy nor power" in texts(collector, "skipped")


def test_exactly_0_w_is_a_glitch(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(P100, signal=Points(times_s=(0.0, 1.0), watts=(150.0, 0.0))))
    (sensor,) = machine.collect().sensors
    gpus.advance(2.0)
    with pytest.raises(SensorGlitchError, match="exactly 0"):
        sensor.read()


def test_implausible_power_is_passed_to_the_sampler_which_counts_it(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault("garbage", 1.0, 1.0),)))
    collector = machine.collect()
    gpus.advance(1.5)
    readings = values(collector.sensors[0].read())
    assert "memory" not in readings
    limits = {info.max_power_watts for info in infos(collector).values()}
    assert readings["instant"] == readings["average"] == 4294967.295 > max(limits)
    assert readings["total"] == 5450


def test_a_new_power_limit_creates_a_new_sensor(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The infos of a sensor are fixed, but readings must be checked against the present limit."""
    monkeypatch.setattr(nvml_sensor, "_LIMIT_PERIOD_NS", 0)
    machine.gpus(replace(H100, max_limit_watts=700.0))
    collector = machine.collect()
    (sensor,) = collector.sensors
    sensor.read()
    assert collector.sensors == (sensor,)
    machine.gpus(replace(H100, limit_watts=500.0, max_limit_watts=700.0))
    sensor.read()
    (other,) = collector.sensors
    assert {(info.limit_watts, info.max_power_watts) for info in other.infos} == {(500.0, 1500.0)}
    assert [info.quantity for info in other.infos] == [info.quantity for info in sensor.infos]
    assert len(values(other.read())) == 4


# -- failures of one GPU ---------------------------------------------------------------


def test_a_lost_gpu_is_down_until_it_is_found_again(machine: GpuMachine, immediate_restarts: None) -> None:
    """NVML lists it again only after a restart."""
    gpus = machine.gpus(replace(H100, faults=(fault("absent", 1.0, 2.0),)), A100)
    collector = machine.collect()
    lost, alive = collector.sensors
    gpus.advance(1.5)
    with pytest.raises(SensorAbsentError, match="GPU is lost") as first:
        lost.read()
    assert not first.value.is_repeated
    with pytest.raises(SensorAbsentError, match="GPU is lost") as second:
        lost.read()
    assert second.value.is_repeated
    assert values(alive.read())["total"] == 5300
    collector.probe_again()  # still lost
    with pytest.raises(SensorAbsentError, match="lost or unplugged"):
        lost.read()
    assert values(alive.read())["total"] == 5300
    gpus.advance(4.0)
    with pytest.raises(SensorAbsentError):
        lost.read()
    collector.probe_again()
    assert collector.sensors == (lost, alive)
    assert values(lost.read())["total"] == 6200
    assert values(alive.read())["total"] == 5800


@pytest.mark.parametrize("step", ["_shut_down", "_add"])
def test_reads_of_other_gpus_wait_for_a_restart(
    machine: GpuMachine, immediate_restarts: None, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before NVML is shut down, and before the GPU is added again."""
    gpus = machine.gpus(replace(H100, faults=(fault("absent", 1.0, 2.0),)), A100)
    collector = machine.collect(call_timeout_seconds=10.0)
    lost, alive = collector.sensors
    gpus.advance(1.5)
    with pytest.raises(SensorAbsentError, match="GPU is lost"):
        lost.read()
    enter, restart_step = collector.gate.enter, getattr(collector, step)
    entered = threading.Event()
    reads: list[Future[Sequence[Reading]]] = []

    def enter_and_note(patience_s: float = 0.0) -> SensorError | None:
        entered.set()
        return enter(patience_s)

    def read_during(*args: Any) -> None:
        if not reads:
            reads.append(pool.submit(alive.read))
            assert entered.wait(10)
        restart_step(*args)

    monkeypatch.setattr(collector.gate, "enter", enter_and_note)
    monkeypatch.setattr(collector, step, read_during)
    with ThreadPoolExecutor(1) as pool:
        collector.probe_again()
        assert values(reads[0].result(10))["total"] == 5300


def test_pauses_between_restarts_for_a_lost_gpu_get_longer(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart of NVML affects all GPUs."""
    gpus = machine.gpus(replace(H100, faults=(fault("absent", 1.0, 99.0),)), A100)
    collector = machine.collect()
    starts = 0
    start = collector._start

    def count() -> None:
        nonlocal starts
        starts += 1
        start()

    monkeypatch.setattr(collector, "_start", count)
    gpus.advance(2.0)
    with pytest.raises(SensorAbsentError):
        collector.sensors[0].read()
    for _ in range(3):
        collector.probe_again()
    assert starts == 1
    assert collector._restart_pause_s == 2 * nvml.FIRST_RESTART_S


def test_a_reused_handle_is_not_mistaken_for_the_same_gpu(machine: GpuMachine, immediate_restarts: None) -> None:
    """When the first GPU disappears, the second GPU gets its handle."""
    gpus = machine.gpus(replace(H100, faults=(fault("vanish", 1.0, 1.0),)), A100)
    collector = machine.collect()
    first, second = collector.sensors
    gpus.advance(1.5)
    collector.probe_again()
    with pytest.raises(SensorAbsentError):
        first.read()
    assert values(second.read())["total"] == 5300
    gpus.advance(3.0)
    collector.probe_again()
    assert values(first.read())["total"] == 5900
    assert values(second.read())["total"] == 5600


def test_a_gpu_added_later_is_found(machine: GpuMachine) -> None:
    """The driver's list in procfs shows it; NVML's own list is fixed after initialisation."""
    gpus = machine.gpus(H100, replace(A100, faults=(fault("vanish", 0.0, 1.0),)))
    collector = machine.collect()
    (first,) = collector.sensors
    gpus.advance(2.0)
    collector.probe_again()
    assert collector.sensors[0] is first
    assert [sensor.device for sensor in collector.sensors] == [FIRST, SECOND]
    assert values(collector.sensors[1].read())["total"] == 5400
    assert collector.outdated is False


def test_a_hanging_gpu_costs_its_deadline_once(machine: GpuMachine, immediate_restarts: None) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault("hang", 1.0, 1.0),)), A100)
    collector = machine.collect()
    hung, alive = collector.sensors
    gpus.advance(1.5)
    collector.call_timeout_s = 0.02
    with pytest.raises(SensorTimeoutError, match="no answer within") as first:
        hung.read()
    with pytest.raises(SensorTimeoutError, match="has not returned") as second:
        hung.read()
    collector.call_timeout_s = 5.0
    assert (first.value.is_repeated, second.value.is_repeated) == (False, True)
    assert values(alive.read())["total"] == 5300
    threads = threading.active_count()
    collector.call_timeout_s = 0.02
    collector._restart()  # does nothing while a call hangs
    collector.call_timeout_s = 5.0
    assert values(alive.read())["total"] == 5300
    assert threading.active_count() == threads
    gpus.advance(2.5)

    def has_recovered() -> bool:
        with contextlib.suppress(SensorTimeoutError):
            return values(hung.read())["total"] == 5750
        return False

    wait_until(has_recovered)


# -- all GPUs of a scan, on one thread ------------------------------------------------------------------

THIRD = "GPU-cccccccc-0000-0000-0000-000000000003"
OTHER = replace(H100, uuid=THIRD, bus_id="0000:ca:00.0")


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each call that reads the quantities of a GPU."""
    threads: list[int] = []
    read = pynvml.nvmlDeviceGetFieldValues

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return read(*args)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", noted)
    return threads


def test_a_scan_reads_all_gpus_on_one_thread(machine: GpuMachine, readers: list[int]) -> None:
    gpus = machine.gpus(H100, A100, OTHER)
    family = Family(machine.collect())
    family.scan()
    gpus.advance(2.0)
    readers.clear()
    before_s = time.time()
    scan = family.scan()
    assert len(readers) == 3
    assert len(set(readers) - {threading.get_ident()}) == 1
    assert [totals(scan)[uuid, "total"] for uuid in (FIRST, SECOND, THIRD)] == [600.0, 400.0, 600.0]
    assert all(read_at_s is not None and read_at_s >= before_s - 0.001 for read_at_s in scan.read_at_s)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_gpu_that_hangs_in_a_scan_delays_the_others_once(
    machine: GpuMachine, readers: list[int], immediate_restarts: None, place: int
) -> None:
    """It keeps the thread on which it hangs; those after it are read on their own threads."""
    specs = [H100, A100, OTHER]
    specs[place] = replace(specs[place], faults=(fault("hang", 1.0, 1.0),))
    gpus = machine.gpus(*specs)
    collector = machine.collect()
    family = Family(collector)
    family.scan()
    threads = threading.active_count()
    uuids = [FIRST, SECOND, THIRD]
    gpus.advance(1.5)
    collector.call_timeout_s = 0.5
    for _ in range(2):  # the second scan is the one after a slow batch, without one
        scan = family.scan()
        assert scan.up == tuple(uuid != uuids[place] for uuid in uuids)
        assert scan.errors == ((uuids[place], "timeout", 1),)
    readers.clear()
    scan = family.scan()
    assert scan.up == tuple(uuid != uuids[place] for uuid in uuids)
    assert len(set(readers)) == 1, "the two others together"
    assert [gpu.thread.is_hanging for gpu in collector.gpus.values()] == [uuid == uuids[place] for uuid in uuids]
    gpus.advance(2.5)
    wait_until(lambda: all(family.scan().up))
    assert family.scan().errors == ((uuids[place], "timeout", 1),)
    assert threading.active_count() <= threads + 1, "the thread that hung may not have ended yet"


def test_the_message_names_the_gpu_that_hangs(
    machine: GpuMachine, immediate_restarts: None, caplog: pytest.LogCaptureFixture
) -> None:
    gpus = machine.gpus(H100, replace(A100, faults=(fault("hang", 1.0, 1.0),)))
    collector = machine.collect(call_timeout_seconds=0.2)
    family = Family(collector)
    family.scan()
    gpus.advance(1.5)
    assert family.scan().up == (True, False)
    assert f"nvml {SECOND}: timeout: {SECOND}: no answer within 0.2 s" in caplog.text
    gpus.advance(2.5)
    wait_until(lambda: all(family.scan().up))


def test_an_error_of_one_gpu_is_that_of_its_own_read(machine: GpuMachine, readers: list[int]) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault("glitch", 1.0, 1.0),)), A100)
    family = Family(machine.collect())
    family.scan()
    gpus.advance(1.5)
    readers.clear()
    scan = family.scan()
    assert (scan.up, scan.errors) == ((False, True), ((FIRST, "glitch", 1),))
    assert len(readers) == 2, "it is not read twice"


def test_gpus_that_may_take_long_are_read_one_by_one(machine: GpuMachine, readers: list[int]) -> None:
    """The other families and the watchdog would wait for all of them."""
    machine.gpus(H100, A100)
    family = Family(machine.collect(call_timeout_seconds=0.6))
    readers.clear()
    assert all(family.scan().up)
    assert len(set(readers)) == 2


def test_gpus_that_take_long_together_are_read_one_by_one(
    machine: GpuMachine, readers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one that does not hang would exceed its deadline."""
    machine.gpus(H100, A100)
    collector = machine.collect()
    family = Family(collector)
    family.scan()
    monkeypatch.setattr(nvml, "LONGEST_BATCH_S", 10.0)
    collector.call_timeout_s = 10.0
    collector._batch.took_s = 2.6
    readers.clear()
    assert all(family.scan().up)
    assert len(set(readers)) == 2
    readers.clear()
    assert all(family.scan().up)
    assert len(set(readers)) == 1


def test_no_gpu_is_read_together_while_nvml_is_restarted_or_after_the_end(
    machine: GpuMachine, readers: list[int]
) -> None:
    machine.gpus(H100)
    collector = machine.collect()
    collector.gate.block(SensorGlitchError("restarting"), 1.0)
    readers.clear()
    collector.prepare()
    collector.gate.open()
    collector.gpus[FIRST].thread.close()
    collector.prepare()
    assert readers == []


def test_a_gpu_that_hangs_from_the_start_is_published_once_it_answers(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "_DESCRIBE_S", 0.02)
    gpus = machine.gpus(replace(H100, faults=(fault("hang", 0.0, 1.0),)), A100)
    collector = machine.collect()
    assert "no answer within" in texts(collector, "broken")
    monkeypatch.setattr(nvml, "_DESCRIBE_S", 5.0)

    def has_sensors(*uuids: str) -> bool:
        collector.probe_again()
        return {sensor.device for sensor in collector.sensors} == set(uuids)

    wait_until(lambda: has_sensors(SECOND))
    gpus.advance(2.0)
    wait_until(lambda: has_sensors(FIRST, SECOND))
    assert texts(collector, "broken") == ""
    assert values(sensor_of(collector, FIRST).read())["total"] == 5600


@pytest.mark.parametrize(("kind", "status"), [("absent", "broken"), ("denied", "denied")])
def test_a_gpu_that_cannot_be_used_at_the_start_is_retried(
    machine: GpuMachine, immediate_restarts: None, kind: str, status: str
) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault(kind, 0.0, 1.0),)), A100)
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [SECOND]
    assert "NVML error" in texts(collector, status)
    gpus.advance(2.0)
    collector.probe_again()
    assert {sensor.device for sensor in collector.sensors} == {FIRST, SECOND}
    assert texts(collector, status) == ""
    assert values(sensor_of(collector, FIRST).read())["total"] == 5600
    assert values(sensor_of(collector, SECOND).read())["total"] == 5400


def test_a_gpu_with_invalid_answers_is_skipped(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100, A100)
    name = pynvml.nvmlDeviceGetName

    def garbled(handle: object) -> str:
        if pynvml.nvmlDeviceGetIndex(handle) == 0:
            return b"\xff".decode()
        return str(name(handle))

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", garbled)
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [SECOND]
    assert "UnicodeDecodeError" in texts(collector, "broken")


def test_a_hanging_start_does_not_delay_the_caller(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100)
    may_start = threading.Event()
    monkeypatch.setattr(nvml, "_OPEN_S", 0.02)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: (may_start.wait(10), pynvml.nvmlInitWithFlags(0)))
    collector = machine.collect()
    assert not collector.sensors
    assert "no answer within" in texts(collector, "broken")
    may_start.set()
    wait_until(lambda: len(collector.sensors) == 1)
    wait_until(lambda: texts(collector, "broken") == "")
    assert len(values(collector.sensors[0].read())) == 4


def test_a_reset_restarts_the_counter(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault("reset", 2.0),)))
    (sensor,) = machine.collect().sensors
    gpus.advance(1.99)
    assert values(sensor.read())["total"] == 5597
    gpus.advance(2.5)
    assert values(sensor.read())["total"] == 150


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [("denied", SensorDeniedError, "nvidiactl.*sudo chmod"), ("glitch", SensorGlitchError, "NVML error 999")],
)
def test_a_failed_call(machine: GpuMachine, kind: str, error: type[SensorError], text: str) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault(kind, 1.0, 1.0),)), A100)
    collector = machine.collect()
    failing, alive = collector.sensors
    gpus.advance(1.5)
    with pytest.raises(error, match=text):
        failing.read()
    assert values(alive.read())["total"] == 5300
    gpus.advance(2.0)
    assert values(failing.read())["total"] == 5600


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [
        (83, 999, SensorGlitchError),
        (83, 15, SensorAbsentError),
        (186, 16, SensorAbsentError),
        (186, 999, None),
        (186, 3, None),
    ],
)
def test_a_failed_field(
    machine: GpuMachine,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    error: type[SensorError] | None,
) -> None:
    """A failed total fails the read; another failed field is skipped; a lost GPU is reported by any field."""
    machine.gpus(H100)
    (sensor,) = machine.collect().sensors
    original = pynvml.nvmlDeviceGetFieldValues

    def spoil(handle: object, fields: list[tuple[int, int]]) -> Sequence[Any]:
        answers: Sequence[Any] = original(handle, fields)
        for answer in answers:
            if answer.fieldId == number:
                answer.nvmlReturn = code
        return answers

    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", spoil)
    if error is None:
        assert set(values(sensor.read())) == {"total", "average", "memory"}
    else:
        with pytest.raises(error, match=f"NVML error {code}"):
            sensor.read()


def test_a_gpu_that_recovers_needs_no_restart(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = machine.gpus(H100, A100)
    collector = machine.collect()
    gpus.code = 15
    gpus.advance(0.1)
    with pytest.raises(SensorAbsentError):
        collector.sensors[0].read()
    gpus.code = 0
    gpus.advance(1.0)
    monkeypatch.setattr(collector, "_restart", lambda: pytest.fail("restarted"))
    collector.probe_again()
    assert values(collector.sensors[0].read())["total"] == 5300


def test_without_procfs_a_new_count_of_gpus_triggers_a_restart(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers often do not see the driver's files."""
    gpus = machine.gpus(H100)
    shutil.rmtree(machine.host.procfs)
    collector = machine.collect()
    restarts: list[None] = []
    monkeypatch.setattr(collector, "_restart", lambda: restarts.append(None))
    collector.probe_again()
    assert not restarts
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    collector.probe_again()
    assert len(restarts) == 1
    assert gpus.code == 0


def test_a_gpu_listed_twice_is_read_once(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100, A100)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: FIRST)
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [FIRST]
    assert "listed twice" in texts(collector, "skipped")


def test_nvml_is_restarted_if_other_code_shut_it_down(machine: GpuMachine) -> None:
    machine.gpus(H100)
    collector = machine.collect()
    (sensor,) = collector.sensors
    pynvml.nvmlShutdown()
    with pytest.raises(SensorGlitchError, match="Uninitialized"):
        sensor.read()
    collector.probe_again()
    assert values(sensor.read())["total"] == 5000


def test_after_a_driver_update_the_fix_is_to_restart_the_exporter(
    machine: GpuMachine, immediate_restarts: None
) -> None:
    """The process keeps the old library, so restarting NVML does not help."""
    gpus = machine.gpus(H100)
    collector = machine.collect()
    (sensor,) = collector.sensors
    gpus.code = 18
    gpus.advance(1.0)
    with pytest.raises(SensorAbsentError, match="restart joulewatch-exporter"):
        sensor.read()
    with pytest.raises(SensorAbsentError):
        collector.probe_again()
    with pytest.raises(SensorAbsentError, match="restart joulewatch-exporter"):
        sensor.read()
    with pytest.raises(SensorAbsentError, match="restart joulewatch-exporter") as again:
        sensor.read()
    assert again.value.is_repeated
    gpus.code = 0
    gpus.advance(1.0)
    collector.probe_again()
    assert values(sensor.read())["total"] == 5300


# -- no GPU ---------------------------------------------------------------------------------


def test_nvml_is_not_loaded_on_machines_without_nvidia_gpu(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    amd = machine.host.sysfs / "bus/pci/devices/0000:c1:00.0"
    amd.mkdir(parents=True)
    (amd / "class").write_text("0x030000\n")
    (amd / "vendor").write_text("0x1002\n")
    with pytest.raises(SensorAbsentError, match="no NVIDIA GPU: none in"):
        NvmlCollector.open(machine.host, NvmlOptions())


@pytest.mark.parametrize("evidence", ["sys/bus/pci/devices/0000:17:00.0", "proc/driver/nvidia", "dev/nvidiactl"])
def test_without_the_package_the_install_command_is_named(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch, evidence: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    path = machine.folder / evidence
    path.mkdir(parents=True)
    (path / "class").write_text("0x030200\n")
    (path / "vendor").write_text("0x10de\n")
    with pytest.raises(SensorAbsentError, match=rf"{evidence}: exists.*pip install 'joulewatch\[nvml\]'"):
        NvmlCollector.open(machine.host, NvmlOptions())


def test_the_old_pynvml_is_rejected(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100)
    old = types.ModuleType("pynvml")
    old.__path__ = ["/site-packages/pynvml"]
    old.__file__ = "/site-packages/pynvml/__init__.py"
    monkeypatch.setitem(sys.modules, "pynvml", old)
    with pytest.raises(
        SensorAbsentError, match=r"/site-packages/pynvml/__init__.py: the old .* pip uninstall -y pynvml"
    ):
        machine.collect()
    del old.__path__
    with pytest.raises(SensorAbsentError, match="too old"):
        machine.collect()


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (9, SensorAbsentError, "kernel driver is not loaded"),
        (17, SensorDeniedError, "nvidiactl.*DeviceAllow"),
        (4, SensorDeniedError, "sudo chmod a[+]rw /dev/nvidiactl"),
        (18, SensorAbsentError, "restart joulewatch-exporter"),
        (999, SensorAbsentError, "NVML error 999"),
    ],
)
def test_errors_of_nvmls_start(machine: GpuMachine, code: int, error: type[SensorError], text: str) -> None:
    gpus = machine.gpus(H100)
    gpus.code = code
    gpus.advance(0.0)
    threads = threading.active_count()
    with pytest.raises(error, match=text):
        machine.collect()
    assert threading.active_count() == threads


def test_a_missing_library_names_the_package_to_install(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100)

    def fail() -> None:
        raise pynvml.NVMLError(12)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    with pytest.raises(SensorAbsentError, match="apt-get install libnvidia-ml1"):
        machine.collect()


def test_a_driver_that_looks_unloaded_because_access_is_denied(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = machine.gpus(H100)
    gpus.code = 9
    gpus.advance(0.0)
    (machine.host.dev / "nvidiactl").write_text("")
    monkeypatch.setattr(os, "access", lambda path, *_, **__: not str(path).endswith("nvidiactl"))
    with pytest.raises(SensorDeniedError, match="sudo chmod"):
        machine.collect()


def test_nvml_is_shut_down_if_it_fails_after_its_start(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(H100)

    def fail() -> None:
        raise pynvml.NVMLError(999)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", fail)
    with pytest.raises(SensorAbsentError, match="NVML error 999"):
        machine.collect()
    monkeypatch.undo()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


def test_all_gpus_denied(machine: GpuMachine) -> None:
    spec = replace(H100, faults=(fault("denied", 0.0, 1.0),))
    machine.gpus(spec)
    with pytest.raises(SensorDeniedError, match="nvidiactl"):
        machine.collect()
    machine.gpus(spec, A100)
    collector = machine.collect()
    (finding,) = findings(collector, "denied")
    assert (finding.subject, finding.cure) == ("GPU 0", "sudo chmod a+rw /dev/nvidiactl /dev/nvidia[0-9]*")


def test_no_gpu_bound_to_the_driver(machine: GpuMachine) -> None:
    machine.gpus()
    with pytest.raises(SensorAbsentError, match="NVML lists no GPU"):
        machine.collect()


def test_a_missing_or_invalid_library(machine: GpuMachine, tmp_path: Path) -> None:
    with pytest.raises(SensorAbsentError, match=r"no such file, set in collectors\.nvml\.library"):
        NvmlCollector.open(machine.host, NvmlOptions(library=tmp_path / "none.so"))
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(SensorAbsentError, match=r"text.so: cannot be loaded"):
        NvmlCollector.open(machine.host, NvmlOptions(library=tmp_path / "text.so"))


def test_a_second_library_is_rejected(machine: GpuMachine, tmp_path: Path) -> None:
    machine.gpus(H100)
    machine.collect()
    other = NvmlLibrary((A100,), tmp_path / "other")
    with pytest.raises(SensorAbsentError, match="this process uses another libnvidia-ml"):
        NvmlCollector.open(machine.host, NvmlOptions(library=other.path))
    other.close()


def test_an_emulated_machine_never_reads_the_real_gpus(machine: GpuMachine, nvml_library: Path) -> None:
    """Its own library is next to its sysfs and needs no configuration."""
    (machine.host.sysfs / EMULATION_MARKER).write_text("test\n")
    (machine.host.dev / "nvidiactl").write_text("")
    with pytest.raises(SensorAbsentError, match="this emulated machine has no NVIDIA GPU"):
        NvmlCollector.open(machine.host, NvmlOptions())
    machine.gpus(H100)
    (machine.folder / "lib").symlink_to(nvml_library.parent)
    collector = NvmlCollector.open(machine.host, NvmlOptions())
    assert [sensor.device for sensor in collector.sensors] == [FIRST]
    collector.close()


def test_options(tmp_path: Path) -> None:
    options = build(NvmlOptions, {"library": str(tmp_path), "call_timeout_seconds": 1, "average": False}, "x.yaml", "")
    assert options == NvmlOptions(library=tmp_path, call_timeout_seconds=1.0, average=False)
    with pytest.raises(ConfigError, match="call_timeout_seconds: 0 is not above 0"):
        build(NvmlOptions, {"call_timeout_seconds": 0}, "x.yaml", "collectors.nvml")


# -- over time ---------------------------------------------------------------------------------------


class Minutes:
    """GPUs and the family that reads them, on a clock that the test advances."""

    def __init__(self, machine: GpuMachine, monkeypatch: pytest.MonkeyPatch, *specs: GpuSpec) -> None:
        self.clock = FakeClock()
        monkeypatch.setattr(nvml_sensor, "monotonic_ns", self.clock.monotonic_ns)
        self._start_ns = self.clock.now_ns
        self._gpus = machine.gpus(*specs)
        self.family = Family(machine.collect(), clock=self.clock)

    @property
    def t_s(self) -> float:
        return (self.clock.now_ns - self._start_ns) / 1e9

    def scan(self, *, until_s: float, step_s: float) -> FamilyScan:
        scan = self.family.scan()
        while self.t_s < until_s - 1e-6:
            self.clock.advance(step_s)
            self._gpus.advance(self.t_s)
            scan = self.family.scan()
        return scan


def totals(scan: FamilyScan) -> dict[tuple[str, str], float | None]:
    quantities = [info.quantity for info in scan.layout.infos]
    return {
        (quantity.device, quantity.domain): energy
        for quantity, energy in zip(quantities, scan.energies_joules, strict=True)
    }


def test_energy_over_minutes_with_faults(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy is exact within 0.1 %, except for one second lost in a reset; the other GPU is not affected."""
    signal = Square(low_watts=80.0, high_watts=320.0, period_s=7.0)
    faults = (fault("garbage", 20.5, 2.0), fault("reset", 40.5), fault("glitch", 60.5, 3.0), fault("stuck", 80.5, 2.0))
    spec = replace(H100, signal=signal, energy_refresh_s=0.0, faults=faults)
    other = replace(A100, signal=signal, energy_refresh_s=0.0)
    minutes = Minutes(machine, monkeypatch, spec, other)
    scan = minutes.scan(until_s=120.0, step_s=1.0)
    truth = signal.energy_joules(0.0, 120.0)
    gap_joules = signal.energy_joules(40.0, 41.0)
    assert totals(scan)[FIRST, "total"] == pytest.approx(truth - gap_joules, rel=1e-3)
    assert totals(scan)[SECOND, "total"] == pytest.approx(truth, rel=1e-6)
    healths = dict(zip(totals(scan), scan.healths, strict=True))
    health, untouched = healths[FIRST, "total"], healths[SECOND, "total"]
    assert health is not None and untouched is not None
    assert (health.resets, health.wraps) == (1, 0)
    assert health.unmeasured_s == pytest.approx(1.0)
    assert (untouched.resets, untouched.rejected, untouched.unmeasured_s) == (0, 0, 0.0)
    average = healths[FIRST, "average"]
    assert average is not None
    assert average.rejected == 2
    assert scan.errors == ((FIRST, "glitch", 3),)


def test_sampled_power_over_minutes(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1 %: momentary power read ten times per second, the 1 s average once per second."""
    signal = Sine(mean_watts=220.0, amplitude_watts=90.0, period_s=6.4)
    minutes = Minutes(machine, monkeypatch, replace(P100, signal=signal))
    energy = totals(minutes.scan(until_s=60.0, step_s=0.1))[SECOND, "total"]
    assert energy == pytest.approx(signal.energy_joules(0.0, 60.0), rel=0.01)
    minutes.family.close()
    fast = Square(low_watts=80.0, high_watts=320.0, period_s=0.37)
    minutes = Minutes(machine, monkeypatch, replace(H100, signal=fast))
    energy = totals(minutes.scan(until_s=60.0, step_s=1.0))[FIRST, "average"]
    assert energy == pytest.approx(fast.energy_joules(0.0, 60.0), rel=0.01)


def test_energy_of_a_superchip_over_minutes(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's energy excludes the CPU, although the counter counts both."""
    job = Square(low_watts=100.0, high_watts=600.0, period_s=8.0)
    module = Square(low_watts=250.0, high_watts=900.0, period_s=8.0)
    scan = Minutes(machine, monkeypatch, replace(GH200, signal=job, module=module)).scan(until_s=120.0, step_s=1.0)
    energies = totals(scan)
    assert energies[FIRST, "total"] == pytest.approx(job.energy_joules(0.0, 120.0), rel=0.02)
    assert energies[FIRST, "module"] == pytest.approx(module.energy_joules(0.0, 120.0), rel=0.02)
    devices = [info.quantity.domain for info in scan.layout.infos if info.quantity.scope == "device"]
    assert devices == ["total"]


def test_golden(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch, update_golden: bool) -> None:
    """The exposition of two generations; reviewed as text."""
    counted = replace(H100, signal=Sine(mean_watts=300.0, amplitude_watts=40.0, period_s=1.0), energy_refresh_s=0.05)
    minutes = Minutes(machine, monkeypatch, counted, replace(P100, signal=Constant(180.0)))
    scan = minutes.scan(until_s=2.0, step_s=0.025)
    exposition = Exposition(emulated=False, start_s=1.0, nodename="node17", self_metrics=False)
    text = exposition.render([scan], "text").decode()
    lines = [line for line in text.splitlines() if 'device="GPU-' in line]
    golden.check("\n".join(lines) + "\n", GOLDEN / "nvml.prom", update=update_golden)


# -- in the sampler ----------------------------------------------------------------------------------


def test_a_gpu_disappears_and_returns_in_the_sampler(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is down meanwhile and continues counting afterwards; the other GPU's series are not affected."""
    monkeypatch.setattr(nvml, "PROBE_S", 0.01)
    monkeypatch.setattr(nvml, "FIRST_RESTART_S", 0.0)
    # Steps so short that their energy is plausible for any elapsed time.
    gpus = machine.gpus(
        replace(H100, energy_refresh_s=0.0, faults=(fault("vanish", 0.003, 0.003),)),
        replace(A100, energy_refresh_s=0.0),
    )
    sampler = Sampler((NvmlCollector,), machine.host, {"nvml": FamilySettings(True, None, machine.options())})
    sampler.start()
    try:
        (scan,) = sampler.fresh(5.0)
        assert (scan.layout.devices, scan.up) == ((FIRST, SECOND), (True, True))
        gpus.advance(0.004)
        wait_until(lambda: sampler.fresh(5.0)[0].up == (False, True))
        gpus.advance(0.007)
        wait_until(lambda: sampler.fresh(5.0)[0].up == (True, True))
        (scan,) = sampler.fresh(5.0)
        totals = {
            info.quantity.device: energy
            for info, energy in zip(scan.layout.infos, scan.energies_joules, strict=True)
            if info.quantity.domain == "total"
        }
        assert totals == {FIRST: pytest.approx(2.1), SECOND: pytest.approx(1.4)}
        assert {reason for _, reason, _ in scan.errors} <= {"absent", "glitch"}
    finally:
        sampler.stop()


def test_closing_shuts_nvml_down_and_ends_the_threads(machine: GpuMachine) -> None:
    machine.gpus(H100, A100)
    threads = threading.active_count()
    collector = machine.collect()
    sensor = collector.sensors[0]
    sensor.read()
    collector.close()
    collector.close()
    wait_until(lambda: threading.active_count() == threads)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    with pytest.raises(SensorGlitchError, match="NVML is closed"):
        sensor.read()


# -- the emulated library ---------------------------------------------------------------------


def test_functions_used_by_other_programs(machine: GpuMachine) -> None:
    machine.gpus(replace(H100, mig=False), A100)
    pynvml.nvmlInit()
    try:
        assert pynvml.nvmlDeviceGetCount() == 2
        handle = pynvml.nvmlDeviceGetHandleByPciBusId("0000:65:00.0")
        assert pynvml.nvmlDeviceGetUUID(handle) == SECOND
        assert pynvml.nvmlDeviceGetIndex(handle) == 1
        handle = pynvml.nvmlDeviceGetHandleByUUID(FIRST)
        assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA H100 PCIe"
        assert pynvml.nvmlDeviceGetPciInfo(handle).busId == "00000000:17:00.0"
        assert pynvml.nvmlDeviceGetPciInfo(handle).bus == 0x17
        assert pynvml.nvmlDeviceGetMigMode(handle) == [0, 0]
        assert pynvml.nvmlDeviceGetPowerUsage(handle) == 300_000
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 5_000_000
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == 350_000
        assert pynvml.nvmlSystemGetDriverVersion() == "550.54.15"
        assert pynvml.nvmlErrorString(15) == "GPU is lost"
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByUUID("GPU-none")
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            pynvml.nvmlDeviceGetFanSpeed(handle)
    finally:
        pynvml.nvmlShutdown()


@pytest.mark.parametrize(
    "signal",
    [
        Square(low_watts=80.0, high_watts=320.0, period_s=0.7),
        Sine(mean_watts=250.0, amplitude_watts=90.0, period_s=0.31),
        Points(times_s=(0.0, 1.0, 2.0), watts=(50.0, 300.0, 120.0), is_linear=True, repeats=True),
    ],
    ids=["square", "sine", "ramps"],
)
def test_the_counter_is_the_integral_of_the_signal(machine: GpuMachine, signal: Square | Sine | Points) -> None:
    gpus = machine.gpus(replace(H100, signal=signal))
    (sensor,) = machine.collect().sensors
    for step in range(1, 40):
        t_s = 0.37 * step
        gpus.advance(t_s)
        readings = values(sensor.read())
        at_s = int(t_s / 0.01 + 1e-9) * 0.01
        assert readings["total"] == pytest.approx(5000 + signal.energy_joules(0.0, at_s), abs=0.002)
        end_s = int(t_s / 0.1 + 1e-9) * 0.1
        assert readings["instant"] == pytest.approx(signal.energy_joules(end_s - 0.025, end_s) / 0.025, abs=0.001)
        start_s = max(end_s - 1.0, 0.0)
        assert readings["average"] == pytest.approx(signal.energy_joules(start_s, end_s) / (end_s - start_s), abs=0.001)


def test_the_counter_advances_between_two_steps_of_the_emulator(machine: GpuMachine) -> None:
    """The library uses its own clock, so the counter does not lag on a busy machine; it never falls."""
    gpus = machine.gpus(replace(H100, energy_refresh_s=0.0))
    (sensor,) = machine.collect().sensors
    gpus.start_monotonic_ns = time.monotonic_ns()
    gpus.advance(0.0)
    last = 0.0
    for _ in range(20):
        before_ns = time.monotonic_ns()
        joules = values(sensor.read())["total"]
        after_ns = time.monotonic_ns()
        assert joules is not None
        assert joules >= last
        last = joules
        low, high = [5000 + 300 * (ns - gpus.start_monotonic_ns) / 1e9 for ns in (before_ns, after_ns)]
        assert low - 0.002 <= joules <= high + 0.002


def test_the_counter_never_falls(machine: GpuMachine) -> None:
    """The library advances with the old power, although the power falls before the emulator's next step."""
    gpus = machine.gpus(replace(H100, signal=Points(times_s=(0.0, 0.1), watts=(300.0, 10.0)), energy_refresh_s=0.0))
    (sensor,) = machine.collect().sensors
    gpus.start_monotonic_ns = time.monotonic_ns() - 500_000_000
    gpus.advance(0.0)
    before = values(sensor.read())["total"]
    assert before is not None
    assert before >= 5150
    gpus.advance(0.5)
    assert values(sensor.read())["total"] == before


def test_a_signal_that_follows_the_load(machine: GpuMachine) -> None:
    load = CpuLoad(50.0, 250.0)
    gpus = machine.gpus(replace(H100, signal=load, memory=None))
    (sensor,) = machine.collect().sensors
    gpus.advance(0.5)
    gpus.advance(1.0)
    load.follow(1.0, 0.5)
    gpus.advance(1.5)
    readings = values(sensor.read())
    assert readings == {"total": 5000 + 50 + 75, "instant": 150, "average": (25 + 75) / 1.0}


def test_a_stuck_gpu(machine: GpuMachine) -> None:
    gpus = machine.gpus(
        replace(
            H100, signal=Sine(mean_watts=200.0, amplitude_watts=50.0, period_s=3.0), faults=(fault("stuck", 1.0, 1.0),)
        )
    )
    (sensor,) = machine.collect().sensors
    gpus.advance(0.99)
    moved = values(sensor.read())
    gpus.advance(1.9)
    assert values(sensor.read()) == moved
    gpus.advance(2.1)
    assert values(sensor.read()) != moved


def test_procfs_has_the_drivers_files(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(H100, faults=(fault("vanish", 1.0, 1.0),)))
    folder = machine.host.procfs / "driver/nvidia/gpus"
    assert f"GPU UUID: \t {FIRST}" in (folder / "0000:17:00.0/information").read_text()
    gpus.advance(1.5)
    assert list(folder.iterdir()) == []
    gpus.advance(2.5)
    assert [path.name for path in folder.iterdir()] == ["0000:17:00.0"]
    gpus.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bus_id": "17:00"}, "bus_id: '17:00' must be like"),
        ({"uuid": "x" * 96}, "uuid: must have 1 to 95 bytes"),
        ({"refresh_s": 0}, "refresh_s"),
        ({"averaging_s": -1}, "averaging_s"),
        ({"max_limit_watts": 10}, "limit_watts"),
    ],
)
def test_invalid_specs(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(H100, **settings)  # type: ignore[arg-type]


def test_too_many_gpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than the 32"):
        NvmlLibrary([replace(H100, uuid=f"GPU-{i}", bus_id=f"0000:{i:02x}:00.0") for i in range(33)], tmp_path)


def test_emulated_gpus_need_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not available()
    with pytest.raises(ConfigError, match="apt-get install gcc"):
        NvmlLibrary((H100,), tmp_path / "machine")


def test_compiler_errors_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cc"
    program.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ConfigError, match="cannot compile the NVML library: no room"):
        NvmlLibrary((H100,), tmp_path / "machine")


# -- throttled time ------------------------------------------------------------------------------------

THROTTLED = GpuLoadSpec(
    conditions=GpuConditions(throttled={"power": Constant(25.0), "hardware_thermal": Constant(10.0)})
)


def throttled(collector: NvmlCollector) -> dict[tuple[str, str], float]:
    collector.read_throttling()
    return {(device, reason): seconds for device, reason, seconds in collector.throttled if seconds}


@pytest.mark.parametrize(
    ("driver_version", "unsupported", "reasons"),
    [
        ("570.10", (), {"power", "hardware_thermal"}),
        ("550.54", (), {"power"}),
        ("470.82", ("violation_fields",), {"power"}),
        ("570.10", ("violation_fields", "violations"), set()),
    ],
)
def test_throttled_time(
    machine: GpuMachine,
    monkeypatch: pytest.MonkeyPatch,
    driver_version: str,
    unsupported: tuple[str, ...],
    reasons: set[str],
) -> None:
    """It is read from the driver's counters, so a scan does not wait for it, and it starts at 0."""
    monkeypatch.setattr(nvml_throttling, "_SLACK_NS", 10**12)  # the emulated time runs faster than the clock
    load = replace(THROTTLED, unsupported=unsupported)
    gpus = machine.gpus(replace(H100, load=load), replace(A100, load=load), driver_version=driver_version)
    gpus.advance(100.0)
    collector = machine.collect()
    assert throttled(collector) == {}
    assert len(collector.throttled) == (0 if not reasons else 2 * (8 if driver_version == "570.10" else 6))
    gpus.advance(140.0)
    expected = {"power": 10.0, "hardware_thermal": 4.0}
    assert throttled(collector) == pytest.approx(
        {(device, reason): expected[reason] for device in (FIRST, SECOND) for reason in reasons}
    )


def test_throttled_time_survives_a_restart_of_the_driver_and_impossible_rises(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(H100, load=THROTTLED)
    gpus = machine.gpus(spec)
    collector = machine.collect()
    gpus.advance(2.0)
    assert throttled(collector) == {(FIRST, "power"): pytest.approx(0.5)}
    gpus.advance(1.0)  # the driver was reloaded: its counter is 0.25 s
    assert throttled(collector) == {(FIRST, "power"): pytest.approx(0.75)}
    gpus.advance(1000.0)
    assert throttled(collector) == {(FIRST, "power"): pytest.approx(0.75)}, "250 s cannot have passed"
    monkeypatch.setattr(nvml_throttling, "_SLACK_NS", 10**12)
    gpus.advance(1004.0)
    assert throttled(collector) == {(FIRST, "power"): pytest.approx(1.75)}


def test_throttled_time_of_a_hanging_gpu_delays_no_other(machine: GpuMachine) -> None:
    hanging = replace(H100, load=THROTTLED, faults=(fault("hang", 1.0, 2.0),))
    gpus = machine.gpus(hanging, replace(A100, load=THROTTLED))
    collector = machine.collect(call_timeout_seconds=0.05)
    gpus.advance(1.0)
    assert throttled(collector) == {(SECOND, "power"): pytest.approx(0.25)}
    assert values(sensor_of(collector, SECOND).read())["total"] == pytest.approx(5200)
    gpus.advance(3.0)
    wait_until(lambda: not collector.gpus[FIRST].side.is_hanging)
    assert throttled(collector)[FIRST, "power"] == pytest.approx(0.75)


def test_a_scrape_shows_throttled_time(machine: GpuMachine) -> None:
    gpus = machine.gpus(replace(H100, load=THROTTLED))
    collector = machine.collect()
    gpus.advance(2.0)
    collector.read_throttling()
    text = Exposition(emulated=False, start_s=0.0, self_metrics=False).render([Family(collector).scan()], "text")
    name = "joulewatch_device_throttled_seconds_total"
    assert f'{name}{{device="{FIRST}",reason="power"}} 0.5\n'.encode() in text
    assert f"# TYPE {name} counter\n".encode() in text
