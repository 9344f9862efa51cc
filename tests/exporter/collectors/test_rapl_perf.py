"""The perf backend: opened events, units, denied access, and events that stop counting."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.rapl import perf, perf_event
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import EMULATION_MARKER
from support.collectors import infos, joules
from support.rapl_tree import POWER_CORE_TYPE, POWER_TYPE, FakeKernel, pmu, power_core, topology
from support.sysfs import EPYC, XEON, FakeSysfs

TWO_BY_TWO = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
"""Two sockets of two cores, one thread each."""


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path).cpuinfo(**XEON)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel.install(monkeypatch)


def collect(sysfs: FakeSysfs, options: RaplOptions | None = None) -> RaplCollector:
    return RaplCollector.open(sysfs.host, options or RaplOptions(door="perf"))


def paranoid(sysfs: FakeSysfs, level: int) -> None:
    folder = sysfs.proc / "sys" / "kernel"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "perf_event_paranoid").write_text(f"{level}\n")


def test_intel_domains_have_the_same_names_as_in_powercap(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, *TWO_BY_TWO)
    pmu(sysfs, "energy-pkg", "energy-cores", "energy-gpu", "energy-ram", cpumask="0,2")
    published = infos(collect(sysfs))
    assert {key: (i.quantity.scope, i.quantity.component, i.relation) for key, i in published.items()} == {
        "socket0/package": ("device", "cpu", "inside"),
        "socket1/package": ("device", "cpu", "inside"),
        "socket0/core": ("part", "cpu", "core"),
        "socket1/core": ("part", "cpu", "core"),
        "socket0/uncore": ("part", "cpu", "inside"),
        "socket1/uncore": ("part", "cpu", "inside"),
        "socket0/dram": ("device", "memory", "inside"),
        "socket1/dram": ("device", "memory", "inside"),
    }
    info = published["socket1/package"]
    assert info.source == "perf:power/energy-pkg/@cpu2"
    assert (info.method, info.wrap_joules, info.max_power_watts) == ("counter", None, 1000.0)
    assert published["socket0/dram"].max_power_watts == 500
    assert (POWER_TYPE, 2, 2) in kernel.opened


def test_the_scale_file_is_the_unit_of_a_count(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    kernel.package(70_000.0)
    collector = collect(sysfs)
    assert joules(collector) == {"socket0/package": 0.0}  # counts from its opening
    kernel.package(70_000.0 + 123_456.75)  # beyond the register's 65 kJ: the kernel accumulates wraps
    assert joules(collector) == {"socket0/package": 123_456.75}
    assert collector.timing.poll_s == 10.0


def test_parts_can_be_excluded(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg", "energy-cores", "energy-ram")
    assert set(infos(collect(sysfs, RaplOptions(door="perf", parts=False)))) == {"socket0/package", "socket0/dram"}


def test_dies_of_intel_are_devices_and_ccds_of_amd_are_not(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, (0, 0, 0), (0, 1, 1))
    pmu(sysfs, "energy-pkg", cpumask="0-1")
    assert set(infos(collect(sysfs))) == {"socket0/die0", "socket0/die1"}
    sysfs.cpuinfo(**EPYC)
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package"}
    assert [f.text for f in collector.findings if f.status == "skipped"] == [
        f"CPU 1: same counter as {sysfs.sys}/bus/event_source/devices/power/events/energy-pkg, which is published"
    ]


def test_single_cores_of_amd(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs.cpuinfo(**EPYC), *TWO_BY_TWO, *TWO_BY_TWO)
    power_core(pmu(sysfs, "energy-pkg", cpumask="0,2"), "0-3")
    collector = collect(sysfs)
    for cpu in range(4):
        kernel.core(1.5 + cpu, cpu=cpu)
    kernel.package(10.0, cpu=0)
    assert joules(collector) == {
        "socket0/package": 10.0,
        "socket1/package": 0.0,
        "socket0/core0": 1.5,
        "socket0/core1": 2.5,
        "socket1/core0": 3.5,
        "socket1/core1": 4.5,
    }
    info = infos(collector)["socket1/core1"]
    assert (info.quantity.scope, info.relation, info.max_power_watts) == ("part", "core", 150.0)
    assert info.source == "perf:power_core/energy-core/@cpu3"
    # One sensor for all cores of a package, not one per core.
    assert len(collector.sensors) == 4
    assert any("socket1: 2 cores" in finding.text for finding in collector.findings if finding.status == "found")


def test_the_name_of_a_core_does_not_depend_on_which_thread_is_listed(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs.cpuinfo(**EPYC), (0, 0, 4), (0, 0, 5), (0, 0, 4), (0, 0, 5))
    power_core(pmu(sysfs, "energy-pkg"), "2-3")
    assert set(infos(collect(sysfs))) == {"socket0/package", "socket0/core4", "socket0/core5"}
    assert (POWER_CORE_TYPE, 1, 2) in kernel.opened


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("level", "message", "fix"),
    [
        (1, "AmbientCapabilities=CAP_PERFMON ", "sudo sysctl kernel.perf_event_paranoid=0"),
        (2, "sudo setcap cap_perfmon=ep ", "sudo sysctl kernel.perf_event_paranoid=0"),
        (3, "AmbientCapabilities=CAP_SYS_ADMIN .*at level 2 CAP_PERFMON is enough", "sudo sysctl"),
        (0, "something else denies it: a container's seccomp profile", ""),
    ],
)
def test_a_denied_event_names_the_fix(
    sysfs: FakeSysfs, kernel: FakeKernel, code: int, level: int, message: str, fix: str
) -> None:
    topology(sysfs, *TWO_BY_TWO)
    pmu(sysfs, "energy-pkg", "energy-ram", cpumask="0,2")
    paranoid(sysfs, level)
    kernel.refusal = code
    with pytest.raises(
        SensorDeniedError, match=f"perf_event_paranoid is {level}.*{message}.* 3 more counters"
    ) as caught:
        collect(sysfs)
    assert f"`{fix}" in str(caught.value) if fix else "`" not in str(caught.value)


def test_an_event_that_the_kernel_does_not_have_is_absent(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    with pytest.raises(SensorAbsentError, match=r"devices/power: this kernel has no such PMU.*door is perf"):
        collect(sysfs)
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    for code in (errno.ENODEV, errno.ENOSYS, errno.EINVAL, errno.ENOENT):
        kernel.refusal = code
        with pytest.raises(SensorAbsentError, match=f"perf:power/energy-pkg/@cpu0.*{os.strerror(code)}"):
            collect(sysfs)
    kernel.refusal = errno.EMFILE
    with pytest.raises(SensorAbsentError, match="LimitNOFILE"):
        collect(sysfs)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"energy-pkg": "event=0x02,umask=1"}, "unknown description"),
        ({"energy-pkg.scale": "much"}, "not in joules"),
        ({"energy-pkg.scale": "-1"}, "not in joules"),
        ({"energy-pkg.unit": "Watts"}, "not in joules"),
    ],
)
def test_an_event_of_unknown_format_is_not_opened(
    sysfs: FakeSysfs, kernel: FakeKernel, files: dict[str, str], message: str
) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg").write("bus/event_source/devices/power/events", **files)
    with pytest.raises(SensorAbsentError, match=message):
        collect(sysfs)
    assert kernel.opened == []


@pytest.mark.parametrize("cpumask", ["", "7", "x"])
def test_a_cpumask_without_a_cpu_is_reported(sysfs: FakeSysfs, kernel: FakeKernel, cpumask: str) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg", cpumask=cpumask)
    with pytest.raises(SensorAbsentError, match="cpumask"):
        collect(sysfs)


def test_no_events_are_opened_for_an_emulated_machine(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """Its PMU type numbers belong to other PMUs on this machine."""
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg").write("", **{EMULATION_MARKER: ""})
    with pytest.raises(SensorAbsentError, match="emulated"):
        collect(sysfs)
    assert kernel.opened == []


def test_a_socket_without_platform_register_has_no_platform_series(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """Its event exists but stays at 0."""
    topology(sysfs, (0, 0, 0), (1, 0, 0))
    pmu(sysfs, "energy-pkg", "energy-psys", cpumask="0-1")
    read = kernel.read

    def moving(descriptor: int, size: int) -> bytes:
        kernel.package(kernel.joules.get((POWER_TYPE, 5, 0), 0.0) + 1.0, cpu=0, event="energy-psys")
        return read(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perf_event, "_read", moving)
        patch.setattr(perf, "_FIRST_COUNT_S", 0.01)
        collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket1/package", "platform/psys"}
    assert [f.text for f in collector.findings if f.status == "absent"] == [
        "perf:power/energy-psys/@cpu1: counts nothing: this socket has no such register"
    ]
    assert infos(collector)["platform/psys"].quantity.scope == "node"


def test_an_event_that_stopped_counting_is_absent(
    sysfs: FakeSysfs, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last CPU of a package went offline: the kernel still returns the last count."""
    topology(sysfs, (0, 0, 0), (1, 0, 0))
    pmu(sysfs, "energy-pkg", cpumask="0-1")
    now_ns = 0
    monkeypatch.setattr(perf_event, "monotonic_ns", lambda: now_ns)
    first, second = collect(sysfs).sensors
    kernel.standing.add((POWER_TYPE, 2, 1))
    second.read()
    now_ns = 10_000_000
    second.read()  # the kernel's own clock may stand still between two ticks
    now_ns = 40_000_000
    with pytest.raises(SensorAbsentError, match="its CPU is offline"):
        second.read()
    first.read()
    # Its event stays dead when the CPU is online again; the reopened collector opens a new event.
    kernel.standing.clear()
    kernel.opened.clear()
    third, fourth = collect(sysfs).sensors
    assert kernel.opened == [(POWER_TYPE, 2, 1)]
    third.read()
    fourth.read()


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENXIO])
def test_an_unloaded_driver_is_absent(sysfs: FakeSysfs, kernel: FakeKernel, code: int) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    (sensor,) = collect(sysfs).sensors
    kernel.read_error = code
    with pytest.raises(SensorAbsentError, match="perf:power/energy-pkg/@cpu0"):
        sensor.read()


def test_failed_reads(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    (sensor,) = collect(sysfs).sensors
    kernel.read_error = errno.EINTR
    with pytest.raises(SensorGlitchError, match="Interrupted"):
        sensor.read()
    kernel.read_error, kernel.is_at_end = 0, True
    with pytest.raises(SensorAbsentError, match="stopped the event"):
        sensor.read()


def test_an_offline_core_does_not_stop_the_others(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs.cpuinfo(**EPYC), (0, 0, 0), (0, 0, 1))
    power_core(pmu(sysfs, "energy-pkg"), "0-1")
    kernel.refused[POWER_CORE_TYPE, 1, 1] = errno.ENODEV
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket0/core0"}
    assert any("1 could not be opened" in finding.text for finding in collector.findings)


def test_a_reopened_collector_continues_with_its_events(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """A count starts when its event is opened: with a new event, the joules in between would be lost."""
    topology(sysfs, (0, 0, 0), (0, 0, 1))
    pmu(sysfs, "energy-pkg")
    old = collect(sysfs)
    kernel.package(5.0)
    pmu(sysfs, "energy-pkg", cpumask="1")  # CPU 0 went offline: the kernel moved its event to CPU 1
    assert old.outdated
    new = collect(sysfs)
    old.close()
    old.close()
    assert joules(new) == {"socket0/package": 5.0}
    assert infos(new)["socket0/package"].source == "perf:power/energy-pkg/@cpu0"
    assert len(kernel.opened) == 1
    with pytest.raises(SensorAbsentError, match="closed"):
        old.sensors[0].read()
    gc.collect()  # close events left by earlier tests
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    new.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 1
    assert joules(collect(sysfs)) == {"socket0/package": 0.0}


def test_the_real_call_fails_for_an_unknown_pmu_type() -> None:
    """On this machine's kernel: it accepts the call number and the structure, and rejects the type."""
    with pytest.raises(OSError) as caught:
        perf_event.perf_event_open(0x7FFF_FFF0, 2, 0)
    assert caught.value.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENODEV)


def test_the_real_call_counts() -> None:
    """The kernel's own CPU clock (PERF_TYPE_SOFTWARE), if this machine permits it: count, running time, closing."""
    try:
        descriptor = perf_event.perf_event_open(1, 0, 0)
    except OSError as error:
        pytest.skip(f"perf_event_open: {error.strerror}")
    assert not os.get_inheritable(descriptor)
    event = perf_event.PerfEvent("perf:software/cpu-clock/@cpu0", descriptor)
    first = event.read()
    assert event.read() >= first >= 0
    del event
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)
