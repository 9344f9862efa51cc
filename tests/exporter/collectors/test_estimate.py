"""The estimate: model, table of microarchitectures, exact integral."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base.proc_stat import read_busy
from joulewatch_exporter.collectors.estimate.collector import (
    EstimateCollector,
    EstimateOptions,
    EstimateSensor,
    PowerModel,
    microarchitecture,
    power_model,
)
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorGlitchError
from support.sysfs import EPYC, XEON, FakeSysfs

MODEL = PowerModel(1.0, 3.0, "test")
SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5 * SECOND

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def cpuinfo(vendor: str, family: int, model: int, stepping: int = 0) -> str:
    return (
        f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: x\nstepping\t: {stepping}\n"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (cpuinfo("AuthenticAMD", 25, 1), "EPYC 3rd Gen"),
        (cpuinfo("AuthenticAMD", 25, 0x11), "EPYC 4th Gen"),
        (cpuinfo("AuthenticAMD", 25, 0xA0), "EPYC 4th Gen"),
        (cpuinfo("AuthenticAMD", 23, 1), "EPYC 1st Gen"),
        (cpuinfo("AuthenticAMD", 23, 49), "EPYC 2nd Gen"),
        (cpuinfo("AuthenticAMD", 26, 2), "EPYC 4th Gen"),
        (cpuinfo("AuthenticAMD", 21, 2), None),
        (cpuinfo("HygonGenuine", 24, 0), "EPYC 1st Gen"),
        (cpuinfo("GenuineIntel", 6, 85, 4), "Skylake"),
        (cpuinfo("GenuineIntel", 6, 85, 7), "Cascade Lake"),
        (cpuinfo("GenuineIntel", 6, 106), "Ice Lake"),
        (cpuinfo("GenuineIntel", 6, 143), "Sapphire Rapids"),
        (cpuinfo("GenuineIntel", 6, 1), None),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "Graviton"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", None),
        ("", None),
    ],
)
def test_microarchitecture(text: str, name: str | None) -> None:
    assert microarchitecture(text) == name


def test_the_source_of_the_model_is_named() -> None:
    model = power_model(cpuinfo("AuthenticAMD", 25, 1), EstimateOptions())
    assert (model.min_watts, model.max_watts) == (0.456, 1.957)
    assert "EPYC 3rd Gen, Cloud Carbon Footprint" in model.text
    unknown = power_model("", EstimateOptions())
    assert (unknown.min_watts, unknown.max_watts) == (0.74, 3.5)
    assert "average" in unknown.text


def test_options_override_the_table() -> None:
    named = power_model("", EstimateOptions(model="Haswell"))
    assert named.max_watts == 5.595
    fixed = power_model("", EstimateOptions(min_watts=0.5, max_watts=2))
    assert (fixed.min_watts, fixed.max_watts) == (0.5, 2.0)
    assert "collectors.estimate" in fixed.text
    assert power_model("", EstimateOptions(max_watts=0.1)).min_watts == 0.1
    assert power_model("", EstimateOptions(min_watts=9)).max_watts == 9.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_watts": -1}, "min_watts: -1 is not between"),
        ({"max_watts": "3"}, "max_watts: must be a number"),
        ({"max_watts": True}, "max_watts: must be a number"),
        ({"min_watts": 3.0, "max_watts": 2.0}, "above max_watts"),
        ({"model": "Zen 9"}, "'Zen 9' is unknown; valid: "),
    ],
)
def test_invalid_options_name_their_key(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EstimateOptions, arguments, "file", "collectors.estimate")


def test_busy_time_excludes_idle_iowait_and_steal(sysfs: FakeSysfs) -> None:
    sysfs.stat("100 20 30 9000 400 5 6 7000", "1 0 0 0 0 0 0 0")
    assert read_busy(f"{sysfs.proc}/stat") == (1.62, 2)


def test_energy_is_the_exact_integral_of_the_model(sysfs: FakeSysfs) -> None:
    """4 CPUs, 10 s, 12 busy CPU seconds: 4 x 1 W x 10 s idle, plus 2 W for each busy second."""
    clock = Clock()
    sysfs.stat(*["0 0 0 0 0 0 0 0"] * 4)
    sensor = EstimateSensor(f"{sysfs.proc}/stat", MODEL, clock)
    sysfs.stat("1000 0 0 0 0 0 0 0", "100 50 50 800 0 0 0 0", *["0 0 0 1000 0 0 0 0"] * 2)
    clock.now_ns += 10 * SECOND
    (reading,) = sensor.read()
    assert reading.energy_joules == pytest.approx(4 * 1.0 * 10 + 2.0 * 12)
    assert (reading.power_watts, reading.read_at_ns) == (None, clock.now_ns)


def test_energy_does_not_depend_on_how_often_it_is_read(sysfs: FakeSysfs) -> None:
    """Ticks of 10 ms in short intervals are neither lost nor clipped."""
    clock = Clock()
    sysfs.stat("0 0 0 0 0 0 0 0")
    sensor = EstimateSensor(f"{sysfs.proc}/stat", MODEL, clock)
    energies = [0.0]
    for step in range(1, 101):
        clock.now_ns += SECOND // 1000
        sysfs.stat(f"{step // 10} 0 0 0 0 0 0 0")
        energies.append(sensor.read()[0].energy_joules or 0.0)
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(1.0 * 0.1 + 2.0 * 0.1)


def test_a_new_cpu_counts_for_half_the_interval(sysfs: FakeSysfs) -> None:
    clock = Clock()
    sysfs.stat("0 0 0 0 0 0 0 0")
    sensor = EstimateSensor(f"{sysfs.proc}/stat", MODEL, clock)
    sysfs.stat("0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0")
    clock.now_ns += 2 * SECOND
    assert sensor.read()[0].energy_joules == pytest.approx(3.0)


def test_falling_busy_time_is_a_glitch_once(sysfs: FakeSysfs) -> None:
    clock = Clock()
    sysfs.stat("500 0 0 0 0 0 0 0")
    sensor = EstimateSensor(f"{sysfs.proc}/stat", MODEL, clock)
    sysfs.stat("400 0 0 0 0 0 0 0")
    clock.now_ns += SECOND
    with pytest.raises(SensorGlitchError, match="busy time fell"):
        sensor.read()
    clock.now_ns += SECOND
    assert sensor.read()[0].energy_joules == pytest.approx(1.0)


def test_it_is_labelled_as_an_estimate(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(**EPYC).stat("0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0")
    collector = EstimateCollector.open(sysfs.host, EstimateOptions())
    ((info,),) = [sensor.infos for sensor in collector.sensors]
    assert (info.method, info.accuracy, info.wrap_joules) == ("estimated", 0.5, None)
    assert (info.quantity.scope, info.quantity.component) == ("device", "cpu")
    assert (info.quantity.device, info.quantity.domain) == ("socket0", "package")
    assert info.source == f"{sysfs.proc}/stat"
    assert "EPYC 3rd Gen" in info.model
    assert "not a measurement" in collector.findings[0].text
    assert collector.timing.read_on_scrape
    assert collector.sensors[0].device == "socket0"
    collector.close()
    collector.close()


def test_power_bound_is_twice_the_full_load(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(**XEON).stat(*["0 0 0 0 0 0 0 0"] * 100)
    collector = EstimateCollector.open(sysfs.host, EstimateOptions())
    assert collector.sensors[0].infos[0].max_power_watts == pytest.approx(2 * 100 * 3.758)


@pytest.mark.parametrize("text", [None, "cpu\n", "intr 1\n", "cpu  1 2 3 4 5 6 7 8\n", "cpu  a b c d e f g\ncpu0 1\n"])
def test_invalid_stat_is_absent(sysfs: FakeSysfs, text: str | None) -> None:
    if text is not None:
        (sysfs.proc / "stat").write_text(text)
    with pytest.raises(SensorAbsentError, match="stat"):
        EstimateCollector.open(sysfs.host, EstimateOptions())
