"""Devices in runtime suspend are not woken, not failed, and measured as soon as they wake."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base.sysfs import HeldFile, sensor_error
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorAsleepError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.sampling.family import Family
from support.collectors import findings, infos, texts
from support.sysfs import FakeSysfs

GPU = "pci0000:00/0000:03:00.0"
HWMON = f"devices/{GPU}/hwmon/hwmon0"
POWER = f"{HWMON}/power1_average"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path)
    return status(sysfs.hwmon(0, "amdgpu", device=GPU, power1_average=31_000_000, power1_label="PPT"), "active")


def status(sysfs: FakeSysfs, text: str) -> FakeSysfs:
    return sysfs.write(f"devices/{GPU}/power", runtime_status=text, control="auto")


def collect(sysfs: FakeSysfs) -> HwmonCollector:
    return HwmonCollector.open(sysfs.host, HwmonOptions())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    read_bytes = HeldFile.read_bytes

    def record(file: HeldFile) -> bytes:
        names.append(file.path.rpartition("/")[2])
        return read_bytes(file)

    monkeypatch.setattr(HeldFile, "read_bytes", record)
    return names


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the driver refuse reads of files that could be opened."""

    def refuse(number: int) -> None:
        read_bytes = HeldFile.read_bytes

        def read(file: HeldFile) -> bytes:
            if not file.path.endswith("runtime_status"):
                error = OSError(number, os.strerror(number))
                raise sensor_error(file.path, error) from error
            return read_bytes(file)

        monkeypatch.setattr(HeldFile, "read_bytes", read)

    return refuse


@pytest.mark.parametrize("state", ["suspended", "suspending"])
def test_a_device_in_runtime_suspend_is_not_read(sysfs: FakeSysfs, reads: list[str], state: str) -> None:
    (sensor,) = collect(sysfs).sensors
    assert sensor.read()[0].power_watts == 31.0
    status(sysfs, state)
    reads.clear()
    with pytest.raises(SensorAsleepError, match=f"runtime_status: {state}"):
        sensor.read()
    assert reads == ["runtime_status"]
    status(sysfs, "active")
    assert sensor.read()[0].power_watts == 31.0


def test_a_device_that_sleeps_at_the_start_is_listed_and_not_woken(sysfs: FakeSysfs, reads: list[str]) -> None:
    status(sysfs, "suspended")
    collector = collect(sysfs)
    assert set(reads) == {"runtime_status"}
    assert list(infos(collector)) == ["0000:03:00.0/PPT"]
    assert texts(collector, "found") == "0000:03:00.0 PPT: power of amdgpu (device); asleep, and read when it wakes"
    status(sysfs, "active")
    assert collector.sensors[0].read()[0].power_watts == 31.0


def test_states_of_a_family_with_a_sleeping_device(sysfs: FakeSysfs) -> None:
    family = Family(collect(sysfs))
    assert family.scan().states == ("ok",)
    status(sysfs, "suspended")
    scan = family.scan()
    assert (scan.states, scan.powers_watts, scan.errors) == (("asleep",), (None,), ())
    assert not family.vanished
    status(sysfs, "active")
    assert family.scan().powers_watts == (31.0,)


@pytest.mark.parametrize("chip", ["xe", "i915", "any"])
def test_energy_counters_of_devices_that_can_sleep_are_read_every_4_s(
    tmp_path: Path, reads: list[str], chip: str
) -> None:
    """Within 5 s of waking a device is measured. A read of xe or i915 would resume the device."""
    sysfs = FakeSysfs(tmp_path)
    status(sysfs.hwmon(0, chip, device=GPU, energy1_input=5_000_000), "suspended")
    collector = collect(sysfs)
    assert collector.timing.poll_s == 4.0
    with pytest.raises(SensorAsleepError):
        collector.sensors[0].read()
    assert set(reads) == {"runtime_status"}
    status(sysfs, "active")
    assert collector.sensors[0].read()[0].energy_joules == 5.0


@pytest.mark.parametrize("text", ["unsupported", None])
def test_devices_without_runtime_power_management_have_no_state(
    sysfs: FakeSysfs, reads: list[str], text: str | None
) -> None:
    sysfs.remove(f"devices/{GPU}/power")
    if text is not None:
        status(sysfs, text)
    (sensor,) = collect(sysfs).sensors
    sensor.read()
    assert set(reads) == {"power1_average"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY])
def test_a_device_that_falls_asleep_before_its_read(
    sysfs: FakeSysfs, refuse: Callable[[int], None], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """amdgpu refuses reads of a sleeping device (EPERM) instead of waking it."""
    (sensor,) = collect(sysfs).sensors
    refuse(number)
    texts = [b"active\n", b"suspended\n"]
    refused = HeldFile.read_bytes
    monkeypatch.setattr(
        HeldFile,
        "read_bytes",
        lambda file: texts.pop(0) if file.path.endswith("runtime_status") else refused(file),
    )
    with pytest.raises(SensorAsleepError, match="suspended"):
        sensor.read()
    assert not texts


def test_a_device_in_a_reset_is_a_glitch_and_no_question_of_rights(
    sysfs: FakeSysfs, refuse: Callable[[int], None]
) -> None:
    """amdgpu refuses reads during a reset, too, and the file was opened."""
    refuse(errno.EPERM)
    collector = collect(sysfs)
    assert not findings(collector, "denied")
    with pytest.raises(SensorGlitchError, match="the driver refuses reads"):
        collector.sensors[0].read()


def test_missing_rights_stay_missing_rights(sysfs: FakeSysfs, refuse: Callable[[int], None]) -> None:
    refuse(errno.EACCES)
    with pytest.raises(SensorDeniedError, match="power1_average"):
        collect(sysfs)


def test_a_device_that_is_unplugged_is_absent(sysfs: FakeSysfs) -> None:
    """Without the file of its state, the value decides."""
    (sensor,) = collect(sysfs).sensors
    sysfs.remove(f"devices/{GPU}/power").remove(POWER)
    with pytest.raises(SensorAbsentError, match="power1_average"):
        sensor.read()
    sysfs.write(HWMON, power1_average=9_000_000)
    assert sensor.read()[0].power_watts == 9.0
