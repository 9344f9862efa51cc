"""The node controller of Cray systems: consistent values with the controller's timestamps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base import probe
from joulewatch_exporter.collectors.cray import collector as cray
from joulewatch_exporter.collectors.cray.collector import CrayCollector, CrayOptions, CraySensor
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError, SensorTimeoutError
from joulewatch_exporter.sampling.family import Family
from support.collectors import findings
from support.sysfs import FakeSysfs, public_folder, unprivileged
from support.waiting import wait_until

FOLDER = "cray/pm_counters"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return node(FakeSysfs(tmp_path))


def node(sysfs: FakeSysfs, freshness: int = 7, **files: str) -> FakeSysfs:
    """Write a node with two accelerators; ``files`` replace whole lines."""
    timestamp_us = time.time_ns() // 1000 - 50_000
    joules = {"": 5_000_000, "cpu_": 1_000_000, "memory_": 200_000, "accel0_": 1_500_000, "accel1_": 1_400_000}
    lines: dict[str, object] = {"freshness": freshness, "startup": 1_700_000_000_000_000, "raw_scan_hz": 10}
    for stem, energy in joules.items():
        lines[f"{stem}energy"] = f"{energy} J {timestamp_us} us"
        lines[f"{stem}power"] = f"{energy // 10_000} W {timestamp_us} us"
        lines[f"{stem}power_cap"] = f"0 W {timestamp_us} us"
    return sysfs.write(FOLDER, **(lines | files))


def collect(sysfs: FakeSysfs, *, parts: bool = True) -> CrayCollector:
    return CrayCollector.open(sysfs.host, CrayOptions(parts=parts))


def only(collector: CrayCollector) -> CraySensor:
    (sensor,) = collector.sensors
    assert isinstance(sensor, CraySensor)
    return sensor


def values(sensor: CraySensor) -> dict[str, tuple[float | None, float | None]]:
    return {reading.quantity.domain: (reading.energy_joules, reading.power_watts) for reading in sensor.read()}


def test_energy_and_power_of_node_and_parts(sysfs: FakeSysfs) -> None:
    sensor = only(collect(sysfs))
    assert values(sensor) == {
        "total": (5e6, 500.0),
        "accel0": (1.5e6, 150.0),
        "accel1": (1.4e6, 140.0),
        "cpu": (1e6, 100.0),
        "memory": (2e5, 20.0),
    }
    infos = {info.quantity.domain: info for info in sensor.infos}
    total = infos["total"]
    assert (total.quantity.scope, total.quantity.component, total.method) == ("node", "node", "counter")
    assert (total.wrap_joules, total.resolution) == (None, "1 J")
    assert total.source == f"{sysfs.sys}/{FOLDER}/energy"


def test_parts_of_the_node_are_never_devices(sysfs: FakeSysfs) -> None:
    """RAPL and NVML count the same joules, and on Grace Hopper an accelerator includes its CPU."""
    sysfs.write(FOLDER, cpu0_energy="9 J 1 us", cpu0_power="9 W 1 us")
    infos = only(collect(sysfs)).infos[1:]
    assert {info.quantity.scope for info in infos} == {"part"}
    assert {info.relation for info in infos} == {"inside"}
    assert {info.quantity.device for info in infos} == {"node"}
    assert {(info.quantity.domain, info.quantity.component) for info in infos} == {
        ("accel0", "gpu"), ("accel1", "gpu"), ("cpu", "cpu"), ("cpu0", "cpu"), ("memory", "memory"),
    }  # fmt: skip


def test_parts_can_be_excluded(sysfs: FakeSysfs) -> None:
    assert list(values(only(collect(sysfs, parts=False)))) == ["total"]


def test_readings_have_the_controllers_time(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = only(collect(sysfs))
    read_at_ns = sensor.read()[0].read_at_ns
    assert 50_000_000 <= time.monotonic_ns() - read_at_ns < 5_000_000_000
    real = time.monotonic_ns
    monkeypatch.setattr(cray, "monotonic_ns", lambda: real() + 100_000_000)
    assert {reading.read_at_ns for reading in sensor.read()} == {read_at_ns}  # same values, same time


@pytest.mark.parametrize("offset_s", [-3600, -6, 1, 3600])
def test_a_timestamp_far_from_our_clock_is_not_used(sysfs: FakeSysfs, offset_s: int) -> None:
    """No reading is in the future or an hour old."""
    timestamp_us = time.time_ns() // 1000 + offset_s * 1_000_000
    sysfs.write(FOLDER, energy=f"5000000 J {timestamp_us} us")
    before_ns = time.monotonic_ns()
    sensor = only(collect(sysfs))
    assert before_ns <= sensor.read()[0].read_at_ns <= time.monotonic_ns()


def test_time_never_goes_back(sysfs: FakeSysfs) -> None:
    sensor = only(collect(sysfs))
    first_ns = sensor.read()[0].read_at_ns
    sysfs.write(FOLDER, energy=f"5000000 J {time.time_ns() // 1000 - 4_000_000} us")
    assert sensor.read()[0].read_at_ns == first_ns


def test_a_line_without_a_timestamp_has_the_time_of_the_read(sysfs: FakeSysfs) -> None:
    sysfs.write(FOLDER, energy="5000000 J", power="500 W")
    before_ns = time.monotonic_ns()
    assert only(collect(sysfs)).read()[0].read_at_ns >= before_ns


# -- consistent values ----------------------------------------------------------------------------------------


def while_reading(sensor: CraySensor, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> list[int]:
    """Call ``change`` in the middle of each pass over the files; the returned list holds the number of passes."""
    original = sensor._value
    count = [0]

    def value(channel: cray._Channel, kind: str) -> cray._Value:
        if not channel.part and kind == "power":
            count[0] += 1
            change(count[0])
        return original(channel, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(sensor, "_value", value)
    return count


@pytest.mark.parametrize("name", ["freshness", "startup"])
def test_values_that_change_during_a_read_are_read_again(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sensor = only(collect(sysfs))

    def update_twice(count: int) -> None:
        if count <= 2:
            node(sysfs, energy=f"{5_000_000 + count} J 1 us").write(FOLDER, **{name: 100 + count})

    count = while_reading(sensor, monkeypatch, update_twice)
    assert values(sensor)["total"] == (5_000_002.0, 500.0)
    assert count == [3]


def test_values_that_always_change_are_a_glitch(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = only(collect(sysfs))
    count = while_reading(sensor, monkeypatch, lambda count: (node(sysfs, 100 + count), None)[1])
    with pytest.raises(SensorGlitchError, match="changed during each"):
        sensor.read()
    assert count == [5]


def test_a_stopped_controller_is_a_glitch(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = only(collect(sysfs))
    sensor.read()
    real = time.monotonic_ns
    monkeypatch.setattr(cray, "monotonic_ns", lambda: real() + 6_000_000_000)
    with pytest.raises(SensorGlitchError, match="has stopped updating"):
        sensor.read()
    node(sysfs, 8)
    assert values(sensor)["total"] == (5e6, 500.0)


def test_a_restart_of_the_controller_is_a_counter_reset(sysfs: FakeSysfs) -> None:
    """The counter falls to nearly 0: the published energy continues from there and never falls."""
    family = Family(collect(sysfs))
    node(sysfs, 8, energy=f"5000100 J {time.time_ns() // 1000} us")
    family.scan()
    for freshness, joules in ((9, 3), (10, 4), (11, 5)):
        node(sysfs, freshness, startup="1700000001000000", energy=f"{joules} J {time.time_ns() // 1000} us")
        scan = family.scan()
    health = scan.healths[0]
    assert health is not None
    assert (health.resets, health.wraps) == (1, 0)
    energy_joules = scan.energies_joules[0]
    assert energy_joules is not None
    assert 0.0 <= energy_joules <= 102.0


# -- no number is better than a wrong one ----------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["4294967295 J 1 us", "-1 J 1 us", "5 W 1 us", "garbage", "", "4294967295", "5 J 1 us 3", "5.5 J 1 us"],
)
def test_invalid_lines_are_glitches(sysfs: FakeSysfs, line: str) -> None:
    sensor = only(collect(sysfs))
    sysfs.write(FOLDER, energy=line)
    with pytest.raises(SensorGlitchError, match="/energy"):
        sensor.read()
    sysfs.write(FOLDER, energy="5000000 J 1 us", accel0_energy=line)
    assert set(values(sensor)) == {"total", "accel1", "cpu", "memory"}


def test_zero_watts_mean_no_data(sysfs: FakeSysfs) -> None:
    sensor = only(collect(sysfs))
    sysfs.write(FOLDER, power="0 W 1 us", cpu_power="0 W 1 us")
    assert values(sensor)["total"] == (5e6, None)
    assert values(sensor)["cpu"] == (1e6, None)
    sysfs.remove(f"{FOLDER}/energy").remove(f"{FOLDER}/cpu_energy")
    collector = collect(sysfs)
    (broken,) = findings(collector, "broken")
    assert "no data now" in broken.text
    sysfs.write(FOLDER, power="500 W 1 us")
    readings = values(only(collector))
    assert readings["total"] == (None, 500.0)
    assert "cpu" not in readings
    assert only(collector).infos[0].method == "integrated"


def test_a_failing_part_does_not_affect_the_node(sysfs: FakeSysfs) -> None:
    sensor = only(collect(sysfs))
    sysfs.refuse(f"{FOLDER}/accel1_energy")
    assert set(values(sensor)) == {"total", "accel0", "cpu", "memory"}
    sysfs.refuse(f"{FOLDER}/energy")
    with pytest.raises(SensorGlitchError, match="pm_counters/energy"):
        sensor.read()


def test_missing_files_are_absent(sysfs: FakeSysfs) -> None:
    collector = collect(sysfs)
    sysfs.remove(FOLDER)
    with pytest.raises(SensorAbsentError):
        only(collector).read()
    with pytest.raises(SensorAbsentError, match="not a Cray EX or XC node"):
        collect(sysfs)


@pytest.mark.parametrize("missing", ["freshness", "energy power"])
def test_without_energy_or_freshness_nothing_is_opened(sysfs: FakeSysfs, missing: str) -> None:
    for name in missing.split():
        sysfs.remove(f"{FOLDER}/{name}")
    with pytest.raises(SensorAbsentError, match=missing.partition(" ")[0]):
        collect(sysfs)


def test_denied_files() -> None:
    with public_folder() as folder:
        sysfs = node(FakeSysfs(folder))
        unreadable = 0o400 if os.geteuid() == 0 else 0
        (sysfs.sys / FOLDER / "accel0_power").chmod(unreadable)
        with unprivileged():
            collector = collect(sysfs)
            assert "accel0" not in values(only(collector))
        (denied,) = findings(collector, "denied")
        assert denied.cure == f"sudo chmod a+r {sysfs.sys}/{FOLDER}/accel0_power"
        (sysfs.sys / FOLDER / "energy").chmod(unreadable)
        with unprivileged(), pytest.raises(SensorDeniedError, match="chmod a") as caught:
            collect(sysfs)
        assert caught.value.devices == ("node",)


@pytest.mark.parametrize("name", ["energy", "accel0_power"])
def test_a_file_that_hangs_is_named_and_the_node_is_down(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    path = sysfs.sys / FOLDER / name
    text = path.read_bytes()
    hanging = Writer(sysfs.root).put_hanging(str(path))
    for _ in range(2):
        with pytest.raises(SensorTimeoutError, match=f"{path}: the read hangs") as caught:
            collect(sysfs)
        assert caught.value.devices == ("node",)
    path.unlink()
    path.write_bytes(text)
    hanging.release()
    hanging.close()
    wait_until(lambda: not probe._HANGING["cray", str(path.parent)][0].is_hanging)
    assert values(only(collect(sysfs)))


def test_timing_and_closing(sysfs: FakeSysfs) -> None:
    collector = collect(sysfs)
    assert (collector.timing.poll_s, collector.timing.read_on_scrape) == (1.0, True)
    assert not collector.outdated
    collector.settle(1.0)
    collector.close()
    collector.close()
