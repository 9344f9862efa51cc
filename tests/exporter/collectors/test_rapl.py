"""The powercap backend: every kind of zone, duplicates, denied and broken files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base import probe
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError, SensorTimeoutError
from support.collectors import findings, infos, joules
from support.sysfs import EPYC, XEON, FakeSysfs, public_folder, unprivileged
from support.waiting import wait_until


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path).cpuinfo(**XEON)


def collect(sysfs: FakeSysfs, options: RaplOptions | None = None) -> RaplCollector:
    return RaplCollector.open(sysfs.host, options or RaplOptions())


def skipped(collector: RaplCollector) -> list[str]:
    return [finding.text for finding in collector.findings if finding.status == "skipped"]


def test_two_epyc_sockets(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(**EPYC).packages(0, 0, 1, 1)
    for socket in (0, 1):
        sysfs.rapl_zone(f"{socket}", name=f"package-{socket}", energy_uj=1_234_567 + socket)
        sysfs.rapl_zone(f"{socket}:0", name="core")
    collector = collect(sysfs)
    published = infos(collector)
    assert list(published) == ["socket0/package", "socket1/package"]
    info = published["socket0/package"]
    assert (info.quantity.scope, info.quantity.component, info.method) == ("device", "cpu", "counter")
    assert info.wrap_joules == pytest.approx(65_532.610987)
    assert (info.resolution, info.max_power_watts) == ("15.3 uJ", 1000.0)
    assert info.model == "AMD EPYC 7763 64-Core Processor"
    assert info.source.endswith("sys/class/powercap/intel-rapl:0/energy_uj")
    assert len(skipped(collector)) == 2
    assert all("one core" in text for text in skipped(collector))
    (reading,) = collector.sensors[1].read()
    assert reading.energy_joules == pytest.approx(1.234568)
    assert reading.power_watts is None
    assert reading.quantity.device == "socket1"


def test_core_zone_of_hygon_is_skipped_as_on_amd(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(vendor_id="HygonGenuine").rapl_zone("0", name="package-0").rapl_zone("0:0", name="core")
    assert list(infos(collect(sysfs))) == ["socket0/package"]


def test_intel_zones_have_their_scopes(sysfs: FakeSysfs) -> None:
    """core and uncore are inside the package, dram is next to it, psys contains everything."""
    sysfs.rapl_zone("0", name="package-0").rapl_zone("0:0", name="core").rapl_zone("0:1", name="uncore")
    sysfs.rapl_zone("0:2", name="dram", range_uj=65_712_999_613)
    sysfs.rapl_zone("1", name="psys", range_uj=4_294_967_295_000_000)
    published = infos(collect(sysfs))
    scopes = {key: (info.quantity.scope, info.quantity.component) for key, info in published.items()}
    assert scopes == {
        "socket0/package": ("device", "cpu"),
        "socket0/core": ("part", "cpu"),
        "socket0/uncore": ("part", "cpu"),
        "socket0/dram": ("device", "memory"),
        "platform/psys": ("node", "node"),
    }
    assert published["socket0/dram"].max_power_watts == 500
    assert published["platform/psys"].max_power_watts == 20_000
    assert published["platform/psys"].resolution == "1 J"


def test_zones_are_identified_by_name_not_by_index(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-1").rapl_zone("1", name="psys").rapl_zone("2", name="psys-1")
    sysfs.rapl_zone("2f", name="package-0", energy_uj=7_000_000)
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket1/package", "platform/psys", "platform1/psys"}
    by_device = {sensor.device: sensor for sensor in collector.sensors}
    assert by_device["socket0"].read()[0].energy_joules == 7.0


def test_indices_are_hexadecimal(sysfs: FakeSysfs) -> None:
    """Zone intel-rapl:a is number 10, so it and its child come after zone 9."""
    sysfs.rapl_zone("9", name="package-9").rapl_zone("a", name="package-10").rapl_zone("a:0", name="dram")
    assert list(infos(collect(sysfs))) == ["socket9/package", "socket10/package", "socket10/dram"]


def test_dies_are_devices(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0-die-0").rapl_zone("1", name="package-0-die-1")
    sysfs.rapl_zone("1:0", name="dram").rapl_zone("1:1", name="core")
    published = infos(collect(sysfs))
    assert set(published) == {"socket0/die0", "socket0/die1", "socket0/die1-dram", "socket0/die1-core"}
    assert published["socket0/die1"].quantity.scope == "device"
    assert published["socket0/die1-dram"].quantity.component == "memory"


def test_amd_ccds_listed_as_dies_are_one_package(sysfs: FakeSysfs) -> None:
    """Kernels 6.9 to 6.11.0: 2 x 8 zones; all zones of a socket read the socket's counter."""
    sysfs.cpuinfo(**EPYC).packages(0, 1)
    for index in range(16):
        sysfs.rapl_zone(f"{index:x}", name=f"package-{index // 8}-die-{index % 8}", energy_uj=index)
    collector = collect(sysfs)
    assert list(infos(collector)) == ["socket0/package", "socket1/package"]
    assert len(skipped(collector)) == 14
    assert [sensor.read()[0].energy_joules for sensor in collector.sensors] == [0.0, 8e-6]


def test_amd_ccds_listed_as_packages_are_skipped(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(**EPYC).packages(0, 0, 0)
    for index in range(3):
        sysfs.rapl_zone(f"{index}", name=f"package-{index}")
    collector = collect(sysfs)
    assert list(infos(collector)) == ["socket0/package"]
    assert all("no physical CPU package" in text for text in skipped(collector))


def test_a_counter_in_msr_and_mmio_is_published_once(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("intel-rapl-mmio:0", name="package-0", energy_uj=5).rapl_zone("0", name="package-0", energy_uj=9)
    collector = collect(sysfs)
    (sensor,) = collector.sensors
    assert sensor.read()[0].energy_joules == 9e-6
    assert "intel-rapl:0, which is published" in skipped(collector)[0]


def test_mmio_alone_is_read(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("intel-rapl-mmio:0", name="package-0")
    assert list(infos(collect(sysfs))) == ["socket0/package"]


def test_duplicate_zones_are_published_once(sysfs: FakeSysfs) -> None:
    """A zone repeated under itself, a second top-level package-0, dram both at top level and in the package."""
    sysfs.rapl_zone("0", name="package-0", energy_uj=1).rapl_zone("0:0", name="package-0", energy_uj=2)
    sysfs.rapl_zone("1", name="package-0", energy_uj=3).rapl_zone("2", name="dram", energy_uj=4)
    sysfs.rapl_zone("0:1", name="dram", energy_uj=5)
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket0/dram"}
    assert len(skipped(collector)) == 3
    package = next(s for s in collector.sensors if s.infos[0].quantity.domain == "package")
    assert package.read()[0].energy_joules == 1e-6


def test_memory_at_top_level_belongs_to_the_only_package(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0").rapl_zone("1", name="dram")
    assert set(infos(collect(sysfs))) == {"socket0/package", "socket0/dram"}


def test_memory_at_top_level_of_two_packages_is_the_platforms(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0").rapl_zone("1", name="package-1").rapl_zone("2", name="dram")
    assert "platform/dram" in infos(collect(sysfs))
    sysfs.rapl_zone("0:0", name="dram").rapl_zone("1:0", name="dram")
    collector = collect(sysfs)
    assert "platform/dram" not in infos(collector)
    assert any("repeats the dram zones" in text for text in skipped(collector))


def test_unknown_types_and_names_are_reported(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("dtpm:0", name="package-7").rapl_zone("0", name="package-0").rapl_zone("1", name="mystery")
    sysfs.write("class/powercap/intel-rapl", enabled=1)
    collector = collect(sysfs)
    assert list(infos(collector)) == ["socket0/package"]
    assert any("other than RAPL" in text for text in skipped(collector))
    assert any("'mystery'" in text for text in skipped(collector))


def test_a_zone_without_range_is_reported(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0", range_uj=None)
    collector = collect(sysfs)
    assert infos(collector)["socket0/package"].wrap_joules is None
    assert "no max_energy_range_uj" in collector.findings[0].text
    assert collector.timing.poll_s == 10.0


def test_a_zone_with_capping_disabled_is_read(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0", enabled=0)
    assert len(collect(sysfs).sensors) == 1


@pytest.mark.parametrize(
    ("limits", "watts"),
    [
        ({}, 1000.0),
        ({"constraint_0_power_limit_uw": 0}, 1000.0),  # as AMD's zones show it
        ({"constraint_0_power_limit_uw": 28_000_000}, 1000.0),
        ({"constraint_0_power_limit_uw": 700_000_000, "constraint_1_max_power_uw": 900_000_000}, 1800.0),
        ({"constraint_0_max_power_uw": 2**62}, 1000.0),  # "no limit" as all ones
    ],
)
def test_power_bound_is_twice_the_limit_but_at_least_the_floor(
    sysfs: FakeSysfs, limits: dict[str, int], watts: float
) -> None:
    sysfs.rapl_zone("0", name="package-0", **limits)
    assert infos(collect(sysfs))["socket0/package"].max_power_watts == watts


@pytest.mark.parametrize(("range_uj", "poll_s"), [(262_143_328_850, 10.0), (20_000_000_000, 5.0), (1_000_000, 0.005)])
def test_counters_are_read_four_times_per_wrap(sysfs: FakeSysfs, range_uj: int, poll_s: float) -> None:
    sysfs.rapl_zone("0", name="package-0", range_uj=range_uj)
    timing = collect(sysfs).timing
    assert (timing.poll_s, timing.read_on_scrape) == (poll_s, True)


def test_parts_can_be_excluded(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0").rapl_zone("0:0", name="core").rapl_zone("0:1", name="dram")
    assert set(infos(collect(sysfs, RaplOptions(parts=False)))) == {"socket0/package", "socket0/dram"}


def test_missing_class_and_missing_zones_are_absent(sysfs: FakeSysfs) -> None:
    with pytest.raises(SensorAbsentError, match="class/powercap"):
        collect(sysfs)
    sysfs.write("class/powercap")
    with pytest.raises(SensorAbsentError, match="no RAPL zone"):
        collect(sysfs)


def xeon_zones(sysfs: FakeSysfs) -> FakeSysfs:
    for socket in (0, 1):
        sysfs.rapl_zone(f"{socket}", name=f"package-{socket}").rapl_zone(f"{socket}:0", name="dram")
    return sysfs.rapl_zone("intel-rapl-mmio:0", name="package-0").packages(0, 1)


def all_but_links(sysfs: FakeSysfs) -> None:
    shutil.rmtree(sysfs.sys / "class" / "powercap")


def control_type_only(sysfs: FakeSysfs) -> None:
    """A bind mount of ``class/powercap/intel-rapl`` into another tree."""
    all_but_links(sysfs)
    sysfs.link("class/powercap/intel-rapl", "devices/virtual/powercap/intel-rapl")


def copied(sysfs: FakeSysfs) -> None:
    """A copy in which links are folders, without the links of nested zones."""
    all_but_links(sysfs)
    shutil.copytree(sysfs.sys / "devices/virtual/powercap/intel-rapl", sysfs.sys / "class/powercap/intel-rapl")
    shutil.rmtree(sysfs.sys / "devices/virtual/powercap")


def packages_only(sysfs: FakeSysfs) -> None:
    """Bind mounts of single packages: their memory is only inside them."""
    sysfs.remove("class/powercap/intel-rapl:0:0").remove("class/powercap/intel-rapl:1:0")


@pytest.mark.parametrize("change", [all_but_links, control_type_only, copied, packages_only])
def test_zones_are_found_inside_each_other_without_the_links_of_the_class(
    sysfs: FakeSysfs, change: Callable[[FakeSysfs], None]
) -> None:
    xeon_zones(sysfs)
    change(sysfs)
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket0/dram", "socket1/package", "socket1/dram"}
    assert set(joules(collector).values()) == {1.0}
    assert not collector.outdated
    shutil.rmtree(next(sysfs.sys.rglob("intel-rapl:1")).resolve())
    assert collector.outdated


def test_zones_that_a_container_hides_are_denied_with_the_fix(sysfs: FakeSysfs) -> None:
    xeon_zones(sysfs)
    shutil.rmtree(sysfs.sys / "devices/virtual/powercap")
    (sysfs.sys / "devices/virtual/powercap").mkdir()
    with pytest.raises(
        SensorDeniedError, match=r"5 zones are links into .*, which is hidden.*`docker run -v"
    ) as caught:
        collect(sysfs)
    assert caught.value.devices == ("socket0", "socket1")


def test_a_denied_zone_does_not_stop_the_others() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder).cpuinfo(**XEON)
        sysfs.rapl_zone("0", name="package-0").rapl_zone("1", name="package-1")
        denied = sysfs.sys / sysfs.zone_path("intel-rapl:0") / "energy_uj"
        denied.chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            collector = collect(sysfs)
            assert list(infos(collector)) == ["socket1/package"]
            (finding,) = findings(collector, "denied")
            assert finding.cure == f"sudo chmod a+r {sysfs.sys}/class/powercap/intel-rapl:0/energy_uj"
            assert finding.device == "socket0"
            (sysfs.sys / sysfs.zone_path("intel-rapl:1") / "energy_uj").stat()
        (sysfs.sys / sysfs.zone_path("intel-rapl:1") / "energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(SensorDeniedError, match=r"intel-rapl:0/energy_uj.*1 more zone"):
            collect(sysfs)


def test_mmio_is_read_if_access_to_msr_is_denied() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder).cpuinfo(**XEON)
        sysfs.rapl_zone("0", name="package-0").rapl_zone("intel-rapl-mmio:0", name="package-0", energy_uj=3)
        (sysfs.sys / sysfs.zone_path("intel-rapl:0") / "energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            (sensor,) = collect(sysfs).sensors
            assert sensor.read()[0].energy_joules == 3e-6


def test_a_missing_zone_does_not_stop_the_others(sysfs: FakeSysfs) -> None:
    """When the zone comes back, the same sensor continues."""
    sysfs.rapl_zone("0", name="package-0").rapl_zone("1", name="package-1", energy_uj=8_000_000)
    first, second = collect(sysfs).sensors
    sysfs.remove(sysfs.zone_path("intel-rapl:0"))
    with pytest.raises(SensorAbsentError):
        first.read()
    assert second.read()[0].energy_joules == 8.0
    sysfs.rapl_zone("0", name="package-0", energy_uj=4_000_000)
    assert first.read()[0].energy_joules == 4.0


def test_a_failed_read_is_a_glitch(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0")
    collector = collect(sysfs)
    sysfs.rapl_zone("0", name="package-0", energy_uj="")
    with pytest.raises(SensorGlitchError):
        collector.sensors[0].read()
    sysfs.refuse(f"{sysfs.zone_path('intel-rapl:0')}/energy_uj")
    with pytest.raises(SensorGlitchError, match="Input/output"):
        collector.sensors[0].read()
    # A zone whose read fails when the exporter starts is kept: the next read may succeed.
    assert len(collect(sysfs).sensors) == 1


def test_a_zone_without_name_is_reported_as_broken(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0").rapl_zone("1", name="package-1")
    sysfs.remove(f"{sysfs.zone_path('intel-rapl:1')}/name")
    collector = collect(sysfs)
    assert list(infos(collector)) == ["socket0/package"]
    assert [f.subject.endswith("intel-rapl:1") for f in collector.findings if f.status == "broken"] == [True]


def test_a_zone_without_counter_is_broken_and_absent(sysfs: FakeSysfs) -> None:
    sysfs.rapl_zone("0", name="package-0")
    sysfs.remove(f"{sysfs.zone_path('intel-rapl:0')}/energy_uj")
    with pytest.raises(SensorAbsentError, match="zone without a counter"):
        collect(sysfs)


def test_closing_twice_is_safe(sysfs: FakeSysfs) -> None:
    collector = collect(sysfs.rapl_zone("0", name="package-0"))
    collector.close()
    collector.close()


@pytest.mark.parametrize("name", ["name", "energy_uj", "max_energy_range_uj", "constraint_0_max_power_uw"])
def test_a_zone_that_hangs_costs_no_other(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    sysfs.rapl_zone("0", name="package-0").rapl_zone("1", name="package-1").rapl_zone("1:0", name="dram")
    path = sysfs.sys / "class/powercap/intel-rapl:0" / name
    path = path.parent.resolve() / name
    text = path.read_bytes() if path.exists() else b"1000000"
    path.touch()
    hanging = Writer(sysfs.root).put_hanging(str(path))
    for _ in range(2):
        collector = collect(sysfs)
        assert set(infos(collector)) == {"socket1/package", "socket1/dram"}
        (finding,) = findings(collector, "broken")
        assert f"intel-rapl:0/{name}: the read hangs" in finding.text
        assert finding.device == ("" if name == "name" else "socket0")
        assert not collector.outdated
    path.unlink()
    path.write_bytes(text)
    hanging.release()
    hanging.close()
    wait_until(lambda: len(infos(collect(sysfs))) == 3)


def test_if_the_only_zone_hangs_the_family_times_out_with_the_path(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    sysfs.rapl_zone("0", name="package-0")
    path = (sysfs.sys / "class/powercap/intel-rapl:0").resolve() / "energy_uj"
    hanging = Writer(sysfs.root).put_hanging(str(path))
    with pytest.raises(SensorTimeoutError, match="energy_uj: the read hangs") as caught:
        collect(sysfs)
    assert caught.value.devices == ("socket0",)
    path.unlink()
    hanging.release()
    hanging.close()
