"""The msr backend: units, widths, missing registers, permissions, CPUs that go offline."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.rapl import msr
from joulewatch_exporter.collectors.rapl.backend import Kind, Machine
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import EMULATION_MARKER, Host
from support.collectors import infos, joules
from support.rapl_tree import (
    AMD_CORE,
    AMD_PACKAGE,
    AMD_UNIT,
    INTEL_CORES,
    INTEL_DRAM,
    INTEL_GPU,
    INTEL_PACKAGE,
    INTEL_PSYS,
    INTEL_UNIT,
    UNITS_2_14,
    UNITS_2_16,
    Registers,
    topology,
)
from support.sysfs import EPYC, XEON, FakeSysfs, public_folder, unprivileged

GENOA = {**EPYC, "model": 0x11, "model name": "AMD EPYC 9654 96-Core Processor"}
SAPPHIRE = {**XEON, "model": 0x8F, "model name": "Intel(R) Xeon(R) Platinum 8480+"}


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return topology(FakeSysfs(tmp_path).cpuinfo(**EPYC), (0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1))


@pytest.fixture
def registers(monkeypatch: pytest.MonkeyPatch, sysfs: FakeSysfs) -> Registers:
    return Registers.install(monkeypatch, sysfs.host.dev)


def collect(sysfs: FakeSysfs, options: RaplOptions | None = None) -> RaplCollector:
    return RaplCollector.open(sysfs.host, options or RaplOptions(door="msr"))


def epyc(registers: Registers, units: int = UNITS_2_16) -> None:
    """Two sockets of two cores: 1000 J and 2000 J, cores of 1, 2, 3 and 4 J."""
    for cpu in range(4):
        package = 1000 << 16 if cpu < 2 else 2000 << 16
        registers.cpu(cpu, {AMD_UNIT: units, AMD_PACKAGE: package, AMD_CORE: cpu + 1 << 16})


def cpu_of(vendor: str, family: int, model: int) -> Machine:
    return Machine(host=Host(), vendor=vendor, family=family, model=model, name="", cpus=())


@pytest.mark.parametrize(
    ("vendor", "family", "model", "kind", "units", "unit_joules"),
    [
        ("AuthenticAMD", 0x19, 0x01, "package", 0xA1003, 2**-16),  # Milan
        ("AuthenticAMD", 0x19, 0x01, "core", 0xA1003, 2**-16),
        ("AuthenticAMD", 0x1A, 0x02, "package", 0xA1000, 2**-16),  # Turin
        ("HygonGenuine", 0x18, 0x00, "package", 0xA1003, 2**-16),
        ("GenuineIntel", 6, 0x2D, "package", 0xA1003, 2**-16),  # Sandy Bridge-EP
        ("GenuineIntel", 6, 0x6A, "package", 0xA0E03, 2**-14),  # Ice Lake-SP
        ("GenuineIntel", 6, 0x6A, "core", 0xA0E03, 2**-14),
        ("GenuineIntel", 6, 0x6A, "dram", 0xA0E03, 15.3e-6),
        ("GenuineIntel", 6, 0x3F, "dram", 0xA0E03, 15.3e-6),  # Haswell-EP
        ("GenuineIntel", 6, 0x57, "dram", 0xA0E03, 15.3e-6),  # Xeon Phi
        ("GenuineIntel", 6, 0x3E, "dram", 0xA1003, 2**-16),  # Ivy Bridge-EP: the unit is not fixed
        ("GenuineIntel", 6, 0x8F, "dram", 0xA0E03, 2**-14),  # Sapphire Rapids: no longer fixed
        ("GenuineIntel", 6, 0x8F, "psys", 0xA0E03, 1.0),
        ("GenuineIntel", 6, 0xCF, "psys", 0xA0E03, 1.0),  # Emerald Rapids
        ("GenuineIntel", 6, 0x9E, "psys", 0xA0E03, 2**-14),  # Kaby Lake
        ("GenuineIntel", 6, 0x37, "package", 0x00505, 32e-6),  # Silvermont: 2^5 uJ
        ("GenuineIntel", 6, 0x4C, "package", 0x00505, 32e-6),  # Airmont
        ("GenuineIntel", 6, 0x5C, "package", 0xA0E08, 2**-14),  # Goldmont: the usual unit again
        ("AuthenticAMD", 0x19, 0x37, "package", 0xA1003, 2**-16),  # not Silvermont, although its model is 37h
        ("GenuineIntel", 6, 0x6A, "package", 0xA0003, 1.0),  # ESU 0 is one joule
        ("GenuineIntel", 6, 0x6A, "package", 0xA1F03, 2**-31),
    ],
)
def test_unit_of_a_count(vendor: str, family: int, model: int, kind: Kind, units: int, unit_joules: float) -> None:
    counts = msr.counts_per_joule(cpu_of(vendor, family, model), kind, units)
    assert 1 / counts == pytest.approx(unit_joules, rel=1e-12)


def test_packages_and_cores_of_amd(sysfs: FakeSysfs, registers: Registers) -> None:
    epyc(registers)
    collector = collect(sysfs)
    assert joules(collector) == {
        "socket0/package": 1000.0,
        "socket1/package": 2000.0,
        "socket0/core0": 1.0,
        "socket0/core1": 2.0,
        "socket1/core0": 3.0,
        "socket1/core1": 4.0,
    }
    assert len(collector.sensors) == 4
    package, core = infos(collector)["socket1/package"], infos(collector)["socket1/core1"]
    assert package.source == f"msr:{sysfs.host.dev}/cpu/2/msr@0xC001029B"
    assert core.source == f"msr:{sysfs.host.dev}/cpu/3/msr@0xC001029A"
    assert (package.resolution, package.wrap_joules, package.relation) == ("15.3 uJ", 65536.0, "inside")
    assert (core.quantity.scope, core.relation, core.wrap_joules) == ("part", "core", 65536.0)
    assert package.model == "AMD EPYC 7763 64-Core Processor"
    assert collector.timing.poll_s == 10.0


def test_a_32_bit_counter_is_masked_and_a_64_bit_one_is_not(sysfs: FakeSysfs, registers: Registers) -> None:
    epyc(registers)
    registers.cpu(0, {AMD_PACKAGE: 7 << 32 | 5 << 16})
    collector = collect(sysfs)
    assert joules(collector)["socket0/package"] == 5.0
    collector = collect(sysfs.cpuinfo(**GENOA))
    assert joules(collector)["socket0/package"] == (7 << 16) + 5.0
    assert infos(collector)["socket0/package"].wrap_joules is None


@pytest.mark.parametrize(
    ("family", "model", "is_wide"),
    [(0x17, 0x31, False), (0x19, 0x01, False), (0x19, 0x30, False), (0x19, 0xA0, True), (0x1A, 0x02, True)],
)
def test_which_counters_have_64_bits(
    sysfs: FakeSysfs, registers: Registers, family: int, model: int, is_wide: bool
) -> None:
    epyc(registers)
    collector = collect(sysfs.cpuinfo(**{**EPYC, "cpu family": family, "model": model}))
    assert (infos(collector)["socket0/package"].wrap_joules is None) is is_wide


def test_domains_of_intel(sysfs: FakeSysfs, registers: Registers) -> None:
    """Memory in units of 15.3 uJ, a platform register on one socket only, no register for graphics (EIO)."""
    sysfs.cpuinfo(**XEON)
    values = {INTEL_UNIT: UNITS_2_14, INTEL_PACKAGE: 100 << 14, INTEL_CORES: 60 << 14, INTEL_DRAM: 1_000_000}
    registers.cpu(0, {**values, INTEL_PSYS: 300 << 14})
    registers.cpu(2, {**values, INTEL_PSYS: 0})
    collector = collect(sysfs)
    assert joules(collector) == {
        "socket0/package": 100.0,
        "socket1/package": 100.0,
        "socket0/core": 60.0,
        "socket1/core": 60.0,
        "socket0/dram": pytest.approx(15.3),
        "socket1/dram": pytest.approx(15.3),
        "platform/psys": 300.0,
    }
    published = infos(collector)
    assert published["socket0/core"].relation == "core"
    assert published["socket0/dram"].resolution == "15.3 uJ"
    assert published["socket0/dram"].wrap_joules == pytest.approx(2**32 * 15.3e-6)
    assert published["platform/psys"].quantity.scope == "node"
    assert published["socket0/package"].resolution == "61 uJ"
    # Registers that the CPU does not have are not reported.
    assert [finding.status for finding in collector.findings] == ["found"] * 7


def test_platform_of_sapphire_rapids_counts_joules(sysfs: FakeSysfs, registers: Registers) -> None:
    sysfs.cpuinfo(**SAPPHIRE)
    registers.cpu(0, {INTEL_UNIT: UNITS_2_14, INTEL_PACKAGE: 1, INTEL_PSYS: 123_456})
    registers.cpu(2, {INTEL_UNIT: UNITS_2_14, INTEL_PACKAGE: 1})
    collector = collect(sysfs)
    assert joules(collector)["platform/psys"] == 123_456.0
    assert infos(collector)["platform/psys"].resolution == "1 J"


def test_parts_can_be_excluded(sysfs: FakeSysfs, registers: Registers) -> None:
    sysfs.cpuinfo(**XEON)
    for cpu in (0, 2):
        registers.cpu(cpu, dict.fromkeys((INTEL_UNIT, INTEL_PACKAGE, INTEL_CORES, INTEL_GPU), UNITS_2_14))
    assert set(infos(collect(sysfs, RaplOptions(door="msr", parts=False)))) == {"socket0/package", "socket1/package"}


def test_a_virtual_machine_holds_zeros(sysfs: FakeSysfs, registers: Registers) -> None:
    for cpu in range(4):
        registers.cpu(cpu, {AMD_UNIT: 0, AMD_PACKAGE: 0, AMD_CORE: 0})
    with pytest.raises(SensorAbsentError, match=r"cpu/0/msr: register 0xC0010299 holds no units.*virtual machine"):
        collect(sysfs)
    for cpu in range(4):
        registers.cpu(cpu, {AMD_UNIT: UNITS_2_16})
    with pytest.raises(SensorAbsentError, match="register 0xC001029B holds 0: missing"):
        collect(sysfs)


def test_a_unit_without_a_counter_and_a_counter_without_a_unit(sysfs: FakeSysfs, registers: Registers) -> None:
    """A counter of unknown unit is not published."""
    epyc(registers, units=0)
    with pytest.raises(SensorAbsentError, match="holds no units"):
        collect(sysfs)
    epyc(registers)
    for cpu in range(4):
        registers.cpu(cpu, {AMD_CORE: 0})
    assert set(infos(collect(sysfs))) == {"socket0/package", "socket1/package"}


def test_a_core_without_a_counter_is_skipped(sysfs: FakeSysfs, registers: Registers) -> None:
    epyc(registers)
    registers.cpu(1, {AMD_CORE: 0})
    collector = collect(sysfs)
    assert "socket0/core0" in infos(collector)
    assert "socket0/core1" not in infos(collector)
    assert any("1 could not be read" in finding.text for finding in collector.findings)


@pytest.mark.parametrize(
    "cpu",
    [
        {"vendor_id": "GenuineIntel", "cpu family": 6, "model": 0x4D},
        {"vendor_id": "AuthenticAMD", "cpu family": 0x15, "model": 2},
        {"vendor_id": "CentaurHauls", "cpu family": 6, "model": 0x6A},
        {"vendor_id": "GenuineIntel"},
        {},
    ],
)
def test_registers_of_an_unknown_cpu_are_not_read(
    sysfs: FakeSysfs, registers: Registers, cpu: dict[str, object]
) -> None:
    epyc(registers)
    with pytest.raises(SensorAbsentError, match="are unknown"):
        collect(sysfs.cpuinfo(**cpu))
    assert registers.reads == 0


def test_without_the_module_it_is_absent(sysfs: FakeSysfs, registers: Registers) -> None:
    with pytest.raises(SensorAbsentError, match=r"cpu/0/msr: missing.*sudo modprobe msr"):
        collect(sysfs)


def test_without_a_topology_it_is_absent(tmp_path: Path, registers: Registers) -> None:
    epyc(registers)
    with pytest.raises(SensorAbsentError, match="no CPU topology"):
        collect(FakeSysfs(tmp_path / "other").cpuinfo(**EPYC))


def test_registers_of_this_machine_are_not_read_for_an_emulated_one(sysfs: FakeSysfs) -> None:
    sysfs.write("", **{EMULATION_MARKER: ""})
    with pytest.raises(SensorAbsentError, match="to an emulated machine"):
        RaplCollector.open(Host(sysfs=sysfs.sys, procfs=sysfs.proc), RaplOptions(door="msr"))


def test_a_cpu_that_goes_offline_and_comes_back(sysfs: FakeSysfs, registers: Registers) -> None:
    epyc(registers)
    collector = collect(sysfs)
    package, cores, _, _ = collector.sensors
    registers.errors[0] = errno.ENXIO
    with pytest.raises(SensorAbsentError, match=r"cpu/0/msr: .*offline"):
        package.read()
    # Only its own core is missing.
    assert [reading.quantity.domain for reading in cores.read()] == ["core1"]
    registers.errors[1] = errno.ENXIO
    with pytest.raises(SensorAbsentError, match="cpu/0/msr"):
        cores.read()
    registers.errors.clear()
    assert package.read()[0].energy_joules == 1000.0
    assert len(cores.read()) == 2
    assert not collector.outdated
    sysfs.write("devices/system/cpu", online="0,2-3")
    assert collector.outdated


def test_another_cpu_reads_the_package_if_the_first_is_offline(sysfs: FakeSysfs, registers: Registers) -> None:
    epyc(registers)
    registers.errors[0] = errno.ENXIO
    sysfs.write("devices/system/cpu", online="1-3")
    published = infos(collect(sysfs))
    assert published["socket0/package"].source.endswith("cpu/1/msr@0xC001029B")
    assert set(published) == {"socket0/package", "socket1/package", "socket0/core1", "socket1/core0", "socket1/core1"}


def test_a_failed_read_is_a_glitch(sysfs: FakeSysfs, registers: Registers, monkeypatch: pytest.MonkeyPatch) -> None:
    epyc(registers)
    package = collect(sysfs).sensors[0]
    registers.errors[0] = errno.EIO
    with pytest.raises(SensorGlitchError, match="register 0xC001029B: Input/output"):
        package.read()
    monkeypatch.setattr(msr, "_pread", lambda *_: b"\1\2\3")
    with pytest.raises(SensorGlitchError, match="3 bytes instead of 8"):
        package.read()


def test_registers_in_a_plain_file(sysfs: FakeSysfs) -> None:
    """Intel's register numbers are at least 8 apart, so a sparse file can hold them for the real pread."""
    sysfs.cpuinfo(**XEON)
    for cpu in (0, 2):
        path = sysfs.host.dev / "cpu" / str(cpu) / "msr"
        path.parent.mkdir(parents=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        for register, value in ((INTEL_UNIT, UNITS_2_14), (INTEL_PACKAGE, 2000 << 14 | 3 << 32), (INTEL_PSYS, 0)):
            os.pwrite(descriptor, value.to_bytes(8, "little"), register)
        os.close(descriptor)
    assert joules(collect(sysfs)) == {"socket0/package": 2000.0, "socket1/package": 2000.0}


def test_a_denied_file_names_both_permissions() -> None:
    with public_folder() as folder:
        sysfs = topology(FakeSysfs(folder).cpuinfo(**XEON), (0, 0, 0), (1, 0, 0))
        for cpu in (0, 1):
            path = sysfs.host.dev / "cpu" / str(cpu) / "msr"
            path.parent.mkdir(parents=True)
            path.touch()
            path.chmod(0o600 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(SensorDeniedError, match=r"cpu/0/msr: Permission denied.*CAP_SYS_RAWIO"):
            collect(sysfs)


def test_the_missing_capability_is_denied(sysfs: FakeSysfs, registers: Registers) -> None:
    """Mode 0644 is not enough: opening the file requires CAP_SYS_RAWIO."""
    epyc(registers)

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msr, "_open_file", refuse)
        patch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(
            SensorDeniedError, match=r"not permitted.*`sudo setcap cap_sys_rawio,cap_dac_read_search=ep /"
        ):
            collect(sysfs)
        patch.setattr(os, "geteuid", lambda: 0)
        with pytest.raises(SensorDeniedError, match="except in a container: start it with --cap-add SYS_RAWIO"):
            collect(sysfs)


def test_closing_twice_is_safe(sysfs: FakeSysfs, registers: Registers) -> None:
    epyc(registers)
    collector = collect(sysfs)
    joules(collector)
    collector.close()
    collector.close()
