"""Three backends for the same counters: each quantity is published once, by the first backend that can read it."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulewatch_exporter.collectors.base.sysfs import HeldInt
from joulewatch_exporter.collectors.rapl import backend
from joulewatch_exporter.collectors.rapl import collector as collector_module
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.config.config import load_config
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorDeniedError
from joulewatch_exporter.sampling.counter import EnergyCounter
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.server.exposition import Exposition
from support import golden
from support.clock import FakeClock
from support.collectors import findings, infos
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
    """An EPYC machine of two sockets with two cores each, in a folder that other users can enter."""
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


def backends(collector: RaplCollector) -> dict[str, str]:
    """The backend that reads each quantity."""
    return {
        key: info.source.partition(":")[0] if ":power" in info.source or info.source.startswith("msr:") else "powercap"
        for key, info in infos(collector).items()
    }


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


def deny(sysfs: FakeSysfs, zone: str) -> None:
    path = sysfs.sys / sysfs.zone_path(f"intel-rapl:{zone}") / "energy_uj"
    path.chmod(0o400 if os.geteuid() == 0 else 0)


def test_powercap_is_preferred_and_perf_adds_single_cores(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    powercap(sysfs)
    perf(sysfs, cores=True)
    msr(registers)
    collector = collect(sysfs)
    assert backends(collector) == {
        "socket0/package": "powercap",
        "socket1/package": "powercap",
        "socket0/core0": "perf",
        "socket0/core1": "perf",
        "socket1/core0": "perf",
        "socket1/core1": "perf",
    }
    assert registers.reads == 0
    assert findings(collector, "skipped")[-1].text == "msr: same counters, read by perf and powercap"
    assert findings(collector, "denied") == []


def test_cores_are_read_from_registers_if_the_kernel_has_no_pmu_for_them(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    """Before Linux 6.14."""
    powercap(sysfs)
    perf(sysfs)
    msr(registers)
    collector = collect(sysfs)
    assert backends(collector)["socket1/core1"] == "msr"
    assert backends(collector)["socket1/package"] == "powercap"
    assert kernel.opened == []
    assert "perf: same counters, read by msr and powercap" in [f.text for f in collector.findings]


def test_each_quantity_has_its_own_backend(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """The file of socket 0 cannot be read, the file of socket 1 can."""
    powercap(sysfs)
    perf(sysfs)
    deny(sysfs, "0")
    with unprivileged():
        collector = collect(sysfs)
        assert backends(collector) == {"socket0/package": "perf", "socket1/package": "powercap"}
        # The quantity is read, so the finding is a note with the fix, not `denied`, which would be retried.
        assert findings(collector, "denied") == []
        note = next(finding for finding in findings(collector, "skipped") if finding.cure)
        assert note.subject.endswith("class/powercap/intel-rapl:0/energy_uj")
        assert "Permission denied" in note.text
        assert "read by perf instead" in note.text
        assert note.cure == f"sudo chmod a+r {sysfs.sys}/class/powercap/intel-rapl:0/energy_uj"
        assert not collector.outdated


def test_registers_are_read_if_both_other_backends_are_denied(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    powercap(sysfs)
    perf(sysfs)
    msr(registers)
    for zone in ("0", "1"):
        deny(sysfs, zone)
    kernel.refusal = errno.EACCES
    with unprivileged():
        collector = collect(sysfs)
    assert set(backends(collector).values()) == {"msr"}
    assert len(collector.sensors) == 4
    assert sum("perf_event_open: Permission denied" in finding.text for finding in collector.findings) == 1


def test_all_backends_denied(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    powercap(sysfs)
    perf(sysfs)
    for zone in ("0", "1"):
        deny(sysfs, zone)
    kernel.refusal = errno.EACCES
    path = sysfs.host.dev / "cpu" / "0" / "msr"
    path.parent.mkdir(parents=True)
    path.touch()
    path.chmod(0o400 if os.geteuid() == 0 else 0)
    with unprivileged(), pytest.raises(SensorDeniedError) as caught:
        collect(sysfs)
    assert caught.value.devices == ("socket0", "socket1")
    text = str(caught.value)
    assert re.search(r"intel-rapl:0/energy_uj: .*1 more zone", text)
    assert re.search(r"with another backend: .*perf_event_open: Permission denied", text)
    assert re.search(r"with another backend: .*cpu/0/msr: Permission denied", text)


def test_rights_are_not_offered_on_a_virtual_machine_without_counters(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PMU and registers exist, but hold 0 or a constant: no sysctl, module or capability changes that."""
    sysfs.cpuinfo(**EPYC, flags="fpu hypervisor lm")
    kernel.refusal = errno.EACCES
    with pytest.raises(SensorAbsentError) as caught:
        collect(sysfs)
    assert "is not loaded; this is a virtual machine, and its kernel has found no RAPL counter" in str(caught.value)
    perf(sysfs, cores=True)
    path = sysfs.host.dev / "cpu" / "0" / "msr"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o400 if os.geteuid() == 0 else 0)
    with unprivileged(), pytest.raises(SensorAbsentError) as caught:
        collect(sysfs)
    text = str(caught.value)
    assert text.count("its kernel has found no RAPL counter") >= 2
    assert not re.search("sysctl|modprobe msr|setcap|chmod", text)
    # With a zone, the hypervisor passes RAPL on.
    monkeypatch.setattr(collector_module, "VIRTUAL_COUNTING_S", 0.0)
    powercap(sysfs)
    for zone in ("0", "1"):
        deny(sysfs, zone)
    with unprivileged(), pytest.raises(SensorDeniedError, match="perf_event_paranoid"):
        collect(sysfs)


def test_a_constant_register_of_a_virtual_machine_is_no_counter(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is absent, so that the CPU's energy is estimated; a counter that moves is read."""
    monkeypatch.setattr(collector_module, "VIRTUAL_COUNTING_S", 0.05)
    sysfs.cpuinfo(**EPYC, flags="fpu hypervisor lm")
    powercap(sysfs)
    with pytest.raises(SensorAbsentError, match=r"energy_uj: does not count: the same value for 0\.05 s"):
        collect(sysfs)
    monkeypatch.setattr(collector_module, "VIRTUAL_COUNTING_S", 30.0)
    counts = itertools.count()
    monkeypatch.setattr(HeldInt, "read", lambda source: next(counts) // 5)
    assert set(infos(collect(sysfs))) == {"socket0/package", "socket1/package"}


def test_no_backend_is_available(sysfs: FakeSysfs) -> None:
    with pytest.raises(SensorAbsentError, match=r"^/.*class/powercap: .*devices/power: .*cpu/0/msr: "):
        collect(sysfs)


@pytest.mark.parametrize("forced", ["powercap", "perf", "msr"])
def test_a_forced_backend_is_the_only_one(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers, forced: str
) -> None:
    powercap(sysfs)
    perf(sysfs, cores=True)
    msr(registers)
    options = load_config_of(sysfs, f"door: {forced}")
    collector = collect(sysfs, options)
    assert set(backends(collector).values()) == {forced}
    assert len(infos(collector)) == (2 if forced == "powercap" else 6)
    assert bool(kernel.opened) is (forced == "perf")
    assert bool(registers.reads) is (forced == "msr")


def test_a_forced_backend_without_access_is_an_error(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    powercap(sysfs)
    perf(sysfs)
    kernel.refusal = errno.EACCES
    with pytest.raises(SensorDeniedError, match="perf_event_open: Permission denied"):
        collect(sysfs, RaplOptions(door="perf"))
    with pytest.raises(SensorAbsentError, match=r"door is msr: no other backend is tried"):
        collect(sysfs, RaplOptions(door="msr"))


def test_the_first_backend_decides_which_counters_exist(
    sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers
) -> None:
    """A counter that powercap does not list does not exist: the kernel has probed it. Powercap's names are used."""
    sysfs.cpuinfo(**XEON)
    topology(sysfs, (0, 0, 0), (0, 1, 1))  # this kernel lists two dies
    sysfs.rapl_zone("0", name="package-0").rapl_zone("0:0", name="dram")
    pmu(sysfs, "energy-pkg", "energy-cores", "energy-psys", cpumask="0-1")
    registers.cpu(0, dict.fromkeys((INTEL_UNIT, INTEL_PACKAGE, INTEL_DRAM, 0x64D), UNITS_2_14))
    assert set(backends(collect(sysfs))) == {"socket0/package", "socket0/dram"}
    assert (kernel.opened, registers.reads) == ([], 0)


def test_a_socket_that_powercap_does_not_list_is_read_by_perf(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    sysfs.rapl_zone("0", name="package-0")
    perf(sysfs)
    assert backends(collect(sysfs)) == {"socket0/package": "powercap", "socket1/package": "perf"}


def test_powercap_alone_reports_how_to_get_single_cores(sysfs: FakeSysfs) -> None:
    powercap(sysfs)
    collector = collect(sysfs)
    (finding,) = findings(collector, "absent")
    assert "PMU power_core" in finding.text
    assert finding.cure == "sudo modprobe msr"


def test_denied_cores_are_a_note_unless_requested(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    powercap(sysfs)
    perf(sysfs, cores=True)
    kernel.refusal = errno.EACCES
    collector = collect(sysfs)
    assert set(backends(collector)) == {"socket0/package", "socket1/package"}
    assert findings(collector, "denied") == []
    assert any(finding.text.startswith("single cores: ") and finding.cure for finding in findings(collector, "skipped"))
    (finding,) = findings(collect(sysfs, RaplOptions(per_core=True)), "denied")
    assert finding.cure == "sudo sysctl kernel.perf_event_paranoid=0"


def test_cores_of_a_large_machine_are_read_only_on_request(sysfs: FakeSysfs, registers: Registers) -> None:
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


def test_cores_can_be_disabled(sysfs: FakeSysfs, registers: Registers) -> None:
    msr(registers)
    for options in (RaplOptions(per_core=False), RaplOptions(parts=False)):
        assert set(infos(collect(sysfs, options))) == {"socket0/package", "socket1/package"}


def test_intel_does_not_count_single_cores(sysfs: FakeSysfs) -> None:
    sysfs.cpuinfo(**XEON).rapl_zone("0", name="package-0").rapl_zone("0:0", name="core")
    collector = collect(sysfs)
    assert infos(collector)["socket0/core"].relation == "core"
    assert infos(collector)["socket0/package"].relation == "inside"
    assert findings(collector, "absent") == []
    (finding,) = findings(collect(sysfs, RaplOptions(per_core=True)), "absent")
    assert "counts only all cores together" in finding.text


def test_changes_that_make_the_collector_outdated(sysfs: FakeSysfs, kernel: FakeKernel, registers: Registers) -> None:
    """CPUs, zones, PMUs, and a kernel module that is loaded later."""
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


def test_options_from_a_file(sysfs: FakeSysfs) -> None:
    assert load_config_of(sysfs, "") == RaplOptions("auto", True, "auto")
    assert load_config_of(sysfs, "door: msr, per_core: true") == RaplOptions("msr", True, True)
    assert load_config_of(sysfs, "parts: false, per_core: auto") == RaplOptions("auto", False, "auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("door: window", r"collectors\.rapl\.door"),
        ("per_core: 3", r"collectors\.rapl\.per_core"),
        ("per_core: true, parts: false", r"collectors\.rapl\.per_core: cores are parts"),
    ],
)
def test_invalid_options(sysfs: FakeSysfs, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config_of(sysfs, text)


def test_golden_machine_with_cores(
    sysfs: FakeSysfs, registers: Registers, monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    """Packages read from powercap, cores from registers; reviewed as text."""
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
    # Other golden files have the metrics of the exporter itself.
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
def test_all_cores_together_use_at_most_the_energy_of_their_package(
    sysfs: FakeSysfs,
    core_watts: list[float],
    uncore_watts: float,
    steps_s: list[float],
    start: int,
) -> None:
    """For any load and any start of the counters, across wraps, within one count per core."""
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
