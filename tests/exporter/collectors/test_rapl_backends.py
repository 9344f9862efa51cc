"""Three doors to the same counters: each quantity once, by the first that lets us in, and what is said of it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulewatch_exporter.collectors.rapl import backend
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.config.config import load_config
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorDeniedError
from joulewatch_exporter.model import Finding, SensorInfo
from joulewatch_exporter.sampling.counter import EnergyCounter
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.server.exposition import Exposition
from support import golden
from support.clock import FakeClock
from support.paths import ROOT
from support.rapl_tree import (
    AMD_CORE,
    AMD_PACKAGE,
    AMD_UNIT,
    INTEL_DRAM,
    INTEL_PACKAGE,
    INTEL_UNIT,
    UNITS_2_14,
    UNITS_2_16,
    FakeKernel,
    Registers,
    pmu,
    power_core,
    topology,
)
from support.sysfs import EPYC, XEON, FakeSysfs, public_folder, unprivileged

GOLDEN = ROOT / "tests" / "exporter" / "golden"
TWO_BY_TWO = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]


@pytest.fixture
def sysfs() -> Iterator[FakeSysfs]:
    """An EPYC machine of two sockets with two cores each, in a folder that others may enter."""
    with public_folder() as folder:
        yield topology(FakeSysfs(folder).cpuinfo(**EPYC), *TWO_BY_TWO)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel.install(monkeypatch)


@pytest.fixture
def registers(monkeypatch: pytest.MonkeyPatch, sysfs: FakeSysfs) -> Registers:
    return Registers.install(monkeypatch, sysfs.host.dev)


def collect(sysfs: FakeSysfs, options: RaplOptions | None = None) -> RaplCollector:
    return RaplCollector.open(sysfs.host, options or RaplOptions())


def infos(collector: RaplCollector) -> dict[str, SensorInfo]:
    found = [info for sensor in collector.sensors for info in sensor.infos]
    return {f"{info.quantity.device}/{info.quantity.domain}": info for info in found}


def doors(collector: RaplCollector) -> dict[str, str]:
    """Which door each quantity is read by."""
    return {
        key: info.source.partition(":")[0] if ":power" in info.source or info.source.startswith("msr:") else "powercap"
        for key, info in infos(collector).items()
    }


def said(collector: RaplCollector, status: str) -> list[Finding]:
    return [finding for finding in collector.findings if finding.status == status]


def powercap(sysfs: FakeSysfs) -> None:
    for socket in (0, 1):
        sysfs.rapl_zone(f"{socket}", name=f"package-{socket}", energy_uj=1000_000_000 * (socket + 1))
        sysfs.rapl_zone(f"{socket}:0", name="core")


def perf(sysfs: FakeSysfs, *, cores: bool = False) -> None:
    pmu(sysfs, "energy-pkg", cpumask="0,2")
    if cores:
        power_core(sysfs, "0-3")


def msr(registers: Registers) -> None:
    for cpu in range(4):
        package = 1000 << 16 if cpu < 2 else 2000 << 16
        registers.cpu(cpu, {AMD_UNIT: UNITS_2_16, AMD_PACKAGE: package, AMD_CORE: cpu + 1 << 16})


def lock(sysfs: FakeSysfs, zone: str) -> None:
    path = sysfs.sys / sysfs.zone_path(f"intel-rapl:{zone}") / "energy_uj"
    path.chmod(0o400 if os.geteuid() == 0 else 0)


def test_powercap_comes_first_and_cores_by_the_door_that_has_them(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    powercap(sysfs)
    perf(sysfs, cores=True)
    msr(registers)
    collector = collect(sysfs)
    assert doors(collector) == {
        "socket0/package": "powercap",
        "socket1/package": "powercap",
        "socket0/core0": "perf",
        "socket0/core1": "perf",
        "socket1/core0": "perf",
        "socket1/core1": "perf",
    }
    assert registers.reads == 0
    assert said(collector, "skipped")[-1].text == "msr: the same counters, which are read by perf and powercap"
    assert said(collector, "denied") == []


def test_cores_by_registers_where_the_kernel_has_no_pmu_of_them(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    """Before Linux 6.14."""
    powercap(sysfs)
    perf(sysfs)
    msr(registers)
    collector = collect(sysfs)
    assert doors(collector)["socket1/core1"] == "msr"
    assert doors(collector)["socket1/package"] == "powercap"
    assert kernel.opened == []
    assert "perf: the same counters, which are read by msr and powercap" in [f.text for f in collector.findings]


def test_each_quantity_has_its_own_door(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """Socket 0's file is locked, socket 1's is not."""
    powercap(sysfs)
    perf(sysfs)
    lock(sysfs, "0")
    with unprivileged():
        collector = collect(sysfs)
        assert doors(collector) == {"socket0/package": "perf", "socket1/package": "powercap"}
        # It is read, so nothing is broken that would have to be tried again: a note, with the cure.
        assert said(collector, "denied") == []
        note = next(finding for finding in said(collector, "skipped") if finding.cure)
        assert note.subject.endswith("class/powercap/intel-rapl:0/energy_uj")
        assert "Permission denied" in note.text
        assert "meanwhile it is read by perf" in note.text
        assert note.cure == f"sudo chmod a+r {sysfs.sys}/class/powercap/intel-rapl:0/energy_uj"
        assert not collector.outdated


def test_registers_where_the_kernel_refuses_both_others(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    powercap(sysfs)
    perf(sysfs)
    msr(registers)
    for zone in ("0", "1"):
        lock(sysfs, zone)
    kernel.refusal = errno.EACCES
    with unprivileged():
        collector = collect(sysfs)
    assert set(doors(collector).values()) == {"msr"}
    assert len(collector.sensors) == 4
    assert sum("perf_event_open: Permission denied" in finding.text for finding in collector.findings) == 1


def test_all_doors_locked(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    powercap(sysfs)
    perf(sysfs)
    for zone in ("0", "1"):
        lock(sysfs, zone)
    kernel.refusal = errno.EACCES
    path = sysfs.host.dev / "cpu" / "0" / "msr"
    path.parent.mkdir(parents=True)
    path.touch()
    path.chmod(0o400 if os.geteuid() == 0 else 0)
    with unprivileged(), pytest.raises(SensorDeniedError) as caught:
        collect(sysfs)
    text = str(caught.value)
    assert re.search(r"intel-rapl:0/energy_uj: .*1 more zone", text)
    assert re.search(r"by another door: .*perf_event_open: Permission denied", text)
    assert re.search(r"by another door: .*cpu/0/msr: Permission denied", text)


def test_no_door_at_all(sysfs: FakeSysfs) -> None:
    with pytest.raises(SensorAbsentError, match=r"^/.*class/powercap: .*devices/power: .*cpu/0/msr: "):
        collect(sysfs)


@pytest.mark.parametrize("forced", ["powercap", "perf", "msr"])
def test_a_forced_door_is_the_only_one(sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers, forced: str) -> None:
    powercap(sysfs)
    perf(sysfs, cores=True)
    msr(registers)
    options = load_config_of(sysfs, f"door: {forced}")
    collector = collect(sysfs, options)
    assert set(doors(collector).values()) == {forced}
    assert len(infos(collector)) == (2 if forced == "powercap" else 6)
    assert bool(kernel.opened) is (forced == "perf")
    assert bool(registers.reads) is (forced == "msr")


def test_a_forced_door_that_is_locked_is_an_error(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    powercap(sysfs)
    perf(sysfs)
    kernel.refusal = errno.EACCES
    with pytest.raises(SensorDeniedError, match="perf_event_open: Permission denied"):
        collect(sysfs, RaplOptions(door="perf"))
    with pytest.raises(SensorAbsentError, match=r"door is msr: no other is tried"):
        collect(sysfs, RaplOptions(door="msr"))


def test_the_first_door_says_which_counters_there_are(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    """What powercap does not list is not there: the kernel has looked. Its names are the names."""
    sysfs.cpuinfo(**XEON)
    topology(sysfs, (0, 0, 0), (0, 1, 1))  # this kernel sees two dies
    sysfs.rapl_zone("0", name="package-0").rapl_zone("0:0", name="dram")
    pmu(sysfs, "energy-pkg", "energy-cores", "energy-psys", cpumask="0-1")
    registers.cpu(0, dict.fromkeys((INTEL_UNIT, INTEL_PACKAGE, INTEL_DRAM, 0x64D), UNITS_2_14))
    assert set(doors(collect(sysfs))) == {"socket0/package", "socket0/dram"}
    assert (kernel.opened, registers.reads) == ([], 0)


def test_a_socket_that_powercap_does_not_list_comes_by_perf(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    sysfs.rapl_zone("0", name="package-0")
    perf(sysfs)
    assert doors(collect(sysfs)) == {"socket0/package": "powercap", "socket1/package": "perf"}


def test_powercap_alone_says_how_cores_could_be_had(sysfs: FakeSysfs) -> None:
    powercap(sysfs)
    collector = collect(sysfs)
    (finding,) = said(collector, "absent")
    assert "PMU power_core" in finding.text
    assert finding.cure == "sudo modprobe msr"


def test_locked_cores_are_a_note_unless_asked_for(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    powercap(sysfs)
    perf(sysfs, cores=True)
    kernel.refusal = errno.EACCES
    collector = collect(sysfs)
    assert set(doors(collector)) == {"socket0/package", "socket1/package"}
    assert said(collector, "denied") == []
    assert any(finding.text.startswith("single cores: ") and finding.cure for finding in said(collector, "skipped"))
    (finding,) = said(collect(sysfs, RaplOptions(per_core=True)), "denied")
    assert finding.cure == "sudo sysctl kernel.perf_event_paranoid=0"


def test_cores_of_a_large_machine_only_if_asked_for(sysfs: FakeSysfs, registers: Registers) -> None:
    topology(sysfs, *((socket, 0, core) for socket in (0, 1) for core in range(33)))
    for cpu in range(66):
        registers.cpu(cpu, {AMD_UNIT: UNITS_2_16, AMD_PACKAGE: 1, AMD_CORE: 1})
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket1/package"}
    assert any("66 cores" in finding.text and "per_core: true" in finding.text for finding in collector.findings)
    collector = collect(sysfs, RaplOptions(per_core=True))
    assert len(infos(collector)) == 68
    assert len(collector.sensors) == 4
    topology(sysfs, *((0, 0, core) for core in range(64)))
    assert len(infos(collect(sysfs))) == 65


def test_no_cores_if_not_wanted(sysfs: FakeSysfs, registers: Registers) -> None:
    msr(registers)
    for options in (RaplOptions(per_core=False), RaplOptions(parts=False)):
        assert set(infos(collect(sysfs, options))) == {"socket0/package", "socket1/package"}


def test_intel_counts_no_single_core(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(**XEON).rapl_zone("0", name="package-0").rapl_zone("0:0", name="core")
    collector = collect(sysfs)
    assert infos(collector)["socket0/core"].relation == "core"
    assert infos(collector)["socket0/package"].relation == "inside"
    assert said(collector, "absent") == []
    (finding,) = said(collect(sysfs, RaplOptions(per_core=True)), "absent")
    assert "counts only all of them together" in finding.text


def test_what_makes_it_outdated(sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers) -> None:
    """CPUs, zones, PMUs, and a module that is loaded later."""
    powercap(sysfs)
    perf(sysfs)
    collector = collect(sysfs)
    assert not collector.outdated
    sysfs.rapl_zone("0", name="package-0", energy_uj=5)
    assert not collector.outdated
    for change in (
        lambda: sysfs.write("devices/system/cpu", online="0-2"),
        lambda: pmu(sysfs, "energy-pkg", cpumask="0"),
        lambda: power_core(sysfs, "0-2"),
        lambda: sysfs.rapl_zone("2", name="psys"),
        lambda: registers.cpu(0, {}),
    ):
        collector = collect(sysfs)
        change()
        assert collector.outdated


def load_config_of(sysfs: FakeSysfs, text: str) -> RaplOptions:
    path = sysfs.root / "config.yaml"
    path.write_text(f"collectors: {{rapl: {{{text}}}}}\n")
    options: RaplOptions = load_config(path, [RaplCollector]).collectors["rapl"].options
    return options


def test_options_of_a_file(sysfs: FakeSysfs) -> None:
    assert load_config_of(sysfs, "") == RaplOptions("auto", True, "auto")
    assert load_config_of(sysfs, "door: msr, per_core: true") == RaplOptions("msr", True, True)
    assert load_config_of(sysfs, "parts: false, per_core: auto") == RaplOptions("auto", False, "auto")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("door: window", r"collectors\.rapl\.door"),
        ("per_core: 3", r"collectors\.rapl\.per_core"),
        ("per_core: true, parts: false", r"collectors\.rapl\.per_core: cores are parts"),
    ],
)
def test_options_that_cannot_be(sysfs: FakeSysfs, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config_of(sysfs, text)


def test_golden_machine_with_cores(
    sysfs: FakeSysfs, registers: Registers, monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    """Packages by powercap, cores by registers; reviewed as text."""
    powercap(sysfs)
    msr(registers)
    clock = FakeClock()
    monkeypatch.setattr(backend, "monotonic_ns", clock.monotonic_ns)
    family = Family(collect(sysfs), clock=clock)
    for step in range(81):
        for socket in (0, 1):
            sysfs.rapl_zone(f"{socket}", name=f"package-{socket}", energy_uj=10**9 + (step // 2) * 5_000_000)
        for cpu in range(4):
            registers.cpu(cpu, {AMD_CORE: (1000 << 16) + step // 2 * (cpu + 1) * (1 << 14)})
        scan = family.scan()
        clock.advance(0.025)
    shown = Exposition(emulated=False, start_s=1_699_999_000.25, nodename="node17", self_metrics=False)
    text = shown.render([scan], "text").decode().replace(str(sysfs.host.dev), "/dev").replace("/dev/sys", "/sys")
    # Metrics of the exporter itself are in other golden files.
    lines = [line for line in text.splitlines() if line.startswith("joulewatch_") and "exporter" not in line]
    lines = [line for line in lines if "read_duration" not in line]
    golden.check("\n".join(lines) + "\n", GOLDEN / "rapl_epyc_cores.prom", update=update_golden)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    core_watts=st.lists(st.floats(0.05, 20.0), min_size=4, max_size=4),
    uncore_watts=st.floats(0.0, 120.0),
    steps_s=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=12),
    start=st.integers(0, 2**32 - 1),
)
def test_cores_together_take_no_more_than_their_package(
    sysfs: FakeSysfs,
    core_watts: list[float],
    uncore_watts: float,
    steps_s: list[float],
    start: int,
) -> None:
    """Whatever the load, and wherever the counters start: through wraps, within a count for each core."""
    true_joules = [0.0] * 4
    package_joules = [0.0] * 2

    def count(joules: float) -> int:
        return (max(start, 1) + int(joules * 65536)) & (2**32 - 1)

    with pytest.MonkeyPatch.context() as patch:
        registers = Registers.install(patch, sysfs.host.dev)
        collector: RaplCollector | None = None
        counters: dict[str, EnergyCounter] = {}
        now_ns = 0
        for step_s in (0.0, *steps_s):
            now_ns += round(step_s * 1e9)
            for cpu, watts in enumerate(core_watts):
                true_joules[cpu] += watts * step_s
            for socket in (0, 1):
                package_joules[socket] += (sum(core_watts[2 * socket : 2 * socket + 2]) + uncore_watts) * step_s
            for cpu in range(4):
                registers.cpu(
                    cpu,
                    {
                        AMD_UNIT: UNITS_2_16,
                        AMD_CORE: count(true_joules[cpu]),
                        AMD_PACKAGE: count(package_joules[cpu // 2]),
                    },
                )
            if collector is None:
                collector = collect(sysfs)
                for key, info in infos(collector).items():
                    counters[key] = EnergyCounter(wrap_joules=info.wrap_joules, max_power_watts=info.max_power_watts)
            for reading in (reading for sensor in collector.sensors for reading in sensor.read()):
                assert reading.energy_joules is not None
                key = f"{reading.quantity.device}/{reading.quantity.domain}"
                assert counters[key].update(now_ns, reading.energy_joules)
        assert collector is not None
        collector.close()
    count_joules = 2**-16
    for socket in (0, 1):
        package = counters[f"socket{socket}/package"].total_joules
        cores = sum(counters[f"socket{socket}/core{core}"].total_joules for core in (0, 1))
        assert package == pytest.approx(package_joules[socket], abs=2 * count_joules)
        assert cores <= package + 3 * count_joules
