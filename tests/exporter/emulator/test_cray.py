"""Tests of the emulated controller of a Cray node, read by the exporter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.cray import collector as cray
from joulewatch_exporter.collectors.cray.collector import CrayCollector, CrayOptions
from joulewatch_exporter.emulator.cray import PmCounters, PmCountersSpec
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.signals import Constant, Signal
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import Host, Sensor
from support.sysfs import public_folder, unprivileged

PARTS: dict[str, Signal] = {"cpu": Constant(150.0), "memory": Constant(30.0), "accel0": Constant(400.0)}


class Machine:
    """A node, and how the exporter reads it."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        scratch = folder / ".scratch"
        scratch.mkdir()
        defaults: dict[str, Any] = {"node": Constant(650.0), "parts": PARTS}
        self.spec = PmCountersSpec(**(defaults | fields))
        self.host = Host(sysfs=folder / "sys", procfs=folder / "proc", dev=folder)
        self.host.sysfs.mkdir()
        self.node = PmCounters(self.spec, self.host.sysfs, Writer(scratch), scratch)
        self.node.advance(0.0)

    def open(self) -> Sensor:
        (sensor,) = CrayCollector.open(self.host, CrayOptions()).sensors
        return sensor


def fault(kind: str) -> Fault:
    return Fault(kind=kind, at_s=1.0, for_s=1.0)


def test_the_exporter_reads_the_truth(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    sensor = machine.open()
    start = {reading.quantity.domain: reading.energy_joules or 0.0 for reading in sensor.read()}
    assert set(start) == {"total", "cpu", "memory", "accel0"}
    assert set(machine.spec.truth) == {f"node/{domain}" for domain in start}
    machine.node.advance(10.0)
    for reading in sensor.read():
        truth = machine.spec.truth[f"node/{reading.quantity.domain}"]
        assert reading.power_watts == truth.power_watts(10.0)
        assert reading.energy_joules == start[reading.quantity.domain] + truth.energy_joules(0.0, 10.0)
        assert 0 <= time.monotonic_ns() - reading.read_at_ns < 5_000_000_000


def test_a_new_set_is_written_once_per_period(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    sensor = machine.open()
    first = sensor.read()
    machine.node.advance(0.09)
    assert sensor.read() == first
    machine.node.advance(0.1)
    assert sensor.read()[0].energy_joules == 1_000_065.0


@pytest.mark.parametrize("kind", ["garbage", "eio", "glitch", "absent", "vanish"])
def test_faults_begin_and_end(tmp_path: Path, kind: str) -> None:
    machine = Machine(tmp_path, faults=(fault(kind),))
    sensor = machine.open()
    for t_s in (1.0, 1.1, 1.2):
        machine.node.advance(t_s)
        with pytest.raises(SensorAbsentError if kind in ("absent", "vanish") else SensorGlitchError):
            sensor.read()
    for t_s in (2.0, 2.1):
        machine.node.advance(t_s)
    assert sensor.read()[0].energy_joules == 1_000_000.0 + int(650.0 * 2.1)
    machine.node.close()
    machine.node.close()


def test_denied_files() -> None:
    with public_folder() as folder:
        machine = Machine(folder, faults=(fault("denied"),))
        sensor = machine.open()
        machine.node.advance(1.0)
        with unprivileged(), pytest.raises(SensorDeniedError, match="pm_counters/energy"):
            sensor.read()


def test_a_restart_counts_from_zero_with_a_new_startup_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path, faults=(Fault(kind="reset", at_s=1.0),))
    sensor = machine.open()
    startup = machine.host.sysfs / "cray/pm_counters/startup"
    before = startup.read_text()
    machine.node.advance(1.0)
    assert startup.read_text() != before
    assert sensor.read()[0].energy_joules == 0.0
    machine.node.advance(2.0)
    assert sensor.read()[0].energy_joules == 650.0


def test_a_stuck_controller_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, faults=(fault("stuck"),))
    sensor = machine.open()
    machine.node.advance(0.9)
    first = sensor.read()
    machine.node.advance(1.5)
    assert sensor.read() == first
    real = time.monotonic_ns
    monkeypatch.setattr(cray, "monotonic_ns", lambda: real() + 6_000_000_000)
    with pytest.raises(SensorGlitchError, match="has stopped updating"):
        sensor.read()
    machine.node.advance(2.5)
    assert sensor.read()[0].energy_joules == 1_000_000.0 + 650.0 * 2.5


def test_readers_are_released_when_a_hang_ends(tmp_path: Path) -> None:
    machine = Machine(tmp_path, faults=(fault("hang"),))
    sensor = machine.open()
    for t_s in (1.0, 1.1):
        machine.node.advance(t_s)
    assert (machine.host.sysfs / "cray/pm_counters/energy").is_fifo()
    for t_s in (2.0, 2.1, 2.2):
        machine.node.advance(t_s)
    assert sensor.read()[0].energy_joules == 1_000_000.0 + 650.0 * 2.2
