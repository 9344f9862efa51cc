"""The door of perf events: what is opened, what a count is worth, refusals, and events that stop counting."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.rapl import perf
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import EMULATION_MARKER, SensorInfo
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


def infos(collector: RaplCollector) -> dict[str, SensorInfo]:
    found = [info for sensor in collector.sensors for info in sensor.infos]
    return {f"{info.quantity.device}/{info.quantity.domain}": info for info in found}


def joules(collector: RaplCollector) -> dict[str, float]:
    readings = [reading for sensor in collector.sensors for reading in sensor.read()]
    return {f"{r.quantity.device}/{r.quantity.domain}": r.energy_joules or 0.0 for r in readings}


def paranoid(sysfs: FakeSysfs, level: int) -> None:
    folder = sysfs.proc / "sys" / "kernel"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "perf_event_paranoid").write_text(f"{level}\n")


def test_intel_domains_have_powercaps_names(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, *TWO_BY_TWO)
    pmu(sysfs, "energy-pkg", "energy-cores", "energy-gpu", "energy-ram", cpumask="0,2")
    found = infos(collect(sysfs))
    assert {key: (i.quantity.scope, i.quantity.component, i.relation) for key, i in found.items()} == {
        "socket0/package": ("device", "cpu", "inside"),
        "socket1/package": ("device", "cpu", "inside"),
        "socket0/core": ("part", "cpu", "core"),
        "socket1/core": ("part", "cpu", "core"),
        "socket0/uncore": ("part", "cpu", "inside"),
        "socket1/uncore": ("part", "cpu", "inside"),
        "socket0/dram": ("device", "memory", "inside"),
        "socket1/dram": ("device", "memory", "inside"),
    }
    info = found["socket1/package"]
    assert info.source == "perf:power/energy-pkg/@cpu2"
    assert (info.method, info.wrap_joules, info.max_power_watts) == ("counter", None, 1000.0)
    assert found["socket0/dram"].max_power_watts == 500
    assert (POWER_TYPE, 2, 2) in kernel.opened


def test_a_count_is_worth_what_scale_says(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    kernel.package(70_000.0)
    collector = collect(sysfs)
    assert joules(collector) == {"socket0/package": 0.0}  # from the opening on
    kernel.package(70_000.0 + 123_456.75)  # further than the register's 65 kJ: the kernel has added the wraps up
    assert joules(collector) == {"socket0/package": 123_456.75}
    assert collector.timing.poll_s == 10.0


def test_parts_can_be_left_out(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
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
        f"CPU 1: counts the same as {sysfs.sys}/bus/event_source/devices/power/events/energy-pkg, which is published"
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
    # A sensor for each package's cores, not for each core.
    assert len(collector.sensors) == 4
    assert any("socket1: 2 cores" in finding.text for finding in collector.findings if finding.status == "found")


def test_cores_are_named_alike_whichever_thread_the_kernel_lists(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs.cpuinfo(**EPYC), (0, 0, 4), (0, 0, 5), (0, 0, 4), (0, 0, 5))
    power_core(pmu(sysfs, "energy-pkg"), "2-3")
    assert set(infos(collect(sysfs))) == {"socket0/package", "socket0/core4", "socket0/core5"}
    assert (POWER_CORE_TYPE, 1, 2) in kernel.opened


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("level", "words", "cure"),
    [
        (1, "AmbientCapabilities=CAP_PERFMON ", "sudo sysctl kernel.perf_event_paranoid=0"),
        (2, "sudo setcap cap_perfmon=ep ", "sudo sysctl kernel.perf_event_paranoid=0"),
        (3, "AmbientCapabilities=CAP_SYS_ADMIN .*at level 2 CAP_PERFMON is enough", "sudo sysctl"),
        (0, "something else refuses: a container's seccomp profile", ""),
    ],
)
def test_a_refusal_names_what_would_allow_it(
    sysfs: FakeSysfs, kernel: FakeKernel, code: int, level: int, words: str, cure: str
) -> None:
    topology(sysfs, *TWO_BY_TWO)
    pmu(sysfs, "energy-pkg", "energy-ram", cpumask="0,2")
    paranoid(sysfs, level)
    kernel.refusal = code
    with pytest.raises(SensorDeniedError, match=f"perf_event_paranoid is {level}.*{words}.* 3 more counters") as caught:
        collect(sysfs)
    assert f"`{cure}" in str(caught.value) if cure else "`" not in str(caught.value)


def test_what_the_kernel_does_not_have_is_absent(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
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
    ("files", "words"),
    [
        ({"energy-pkg": "event=0x02,umask=1"}, "is not understood"),
        ({"energy-pkg.scale": "much"}, "which are no joules"),
        ({"energy-pkg.scale": "-1"}, "which are no joules"),
        ({"energy-pkg.unit": "Watts"}, "which are no joules"),
    ],
)
def test_an_event_that_is_not_understood_is_not_opened(
    sysfs: FakeSysfs, kernel: FakeKernel, files: dict[str, str], words: str
) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg").write("bus/event_source/devices/power/events", **files)
    with pytest.raises(SensorAbsentError, match=words):
        collect(sysfs)
    assert kernel.opened == []


@pytest.mark.parametrize("cpumask", ["", "7", "x"])
def test_a_cpumask_without_a_cpu_is_told(sysfs: FakeSysfs, kernel: FakeKernel, cpumask: str) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg", cpumask=cpumask)
    with pytest.raises(SensorAbsentError, match="cpumask"):
        collect(sysfs)


def test_an_emulated_machine_has_no_kernel(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """Its type numbers are somebody else's on this machine."""
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg").write("", **{EMULATION_MARKER: ""})
    with pytest.raises(SensorAbsentError, match="emulated"):
        collect(sysfs)
    assert kernel.opened == []


def test_a_socket_without_platform_register_has_no_platform_series(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """Its event is there, and would count 0 for ever."""
    topology(sysfs, (0, 0, 0), (1, 0, 0))
    pmu(sysfs, "energy-pkg", "energy-psys", cpumask="0-1")
    read = kernel.read

    def moving(descriptor: int, size: int) -> bytes:
        kernel.package(kernel.joules.get((POWER_TYPE, 5, 0), 0.0) + 1.0, cpu=0, event="energy-psys")
        return read(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perf, "_read", moving)
        patch.setattr(perf, "_FIRST_COUNT_S", 0.01)
        collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket1/package", "platform/psys"}
    assert [f.text for f in collector.findings if f.status == "absent"] == [
        "perf:power/energy-psys/@cpu1: counts nothing: this socket has no such register"
    ]
    assert infos(collector)["platform/psys"].quantity.scope == "node"


def test_an_event_that_stands_still_is_absent(
    sysfs: FakeSysfs, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last CPU of a package went offline: the kernel goes on giving the last count."""
    topology(sysfs, (0, 0, 0), (1, 0, 0))
    pmu(sysfs, "energy-pkg", cpumask="0-1")
    now_ns = 0
    monkeypatch.setattr(perf, "monotonic_ns", lambda: now_ns)
    first, second = collect(sysfs).sensors
    kernel.standing.add((POWER_TYPE, 2, 1))
    second.read()
    now_ns = 10_000_000
    second.read()  # the kernel's own clock may tick no faster
    now_ns = 40_000_000
    with pytest.raises(SensorAbsentError, match="its CPU is offline"):
        second.read()
    first.read()
    # Back online, its event stays dead: the family that is opened anew opens a new one.
    kernel.standing.clear()
    kernel.opened.clear()
    third, fourth = collect(sysfs).sensors
    assert kernel.opened == [(POWER_TYPE, 2, 1)]
    third.read()
    fourth.read()


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENXIO])
def test_a_driver_that_is_gone_is_absent(sysfs: FakeSysfs, kernel: FakeKernel, code: int) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    (sensor,) = collect(sysfs).sensors
    kernel.read_error = code
    with pytest.raises(SensorAbsentError, match="perf:power/energy-pkg/@cpu0"):
        sensor.read()


def test_reads_that_fail(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs, (0, 0, 0))
    pmu(sysfs, "energy-pkg")
    (sensor,) = collect(sysfs).sensors
    kernel.read_error = errno.EINTR
    with pytest.raises(SensorGlitchError, match="Interrupted"):
        sensor.read()
    kernel.read_error, kernel.is_at_end = 0, True
    with pytest.raises(SensorAbsentError, match="stopped the event"):
        sensor.read()


def test_a_core_that_is_offline_does_not_stop_the_others(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    topology(sysfs.cpuinfo(**EPYC), (0, 0, 0), (0, 0, 1))
    power_core(pmu(sysfs, "energy-pkg"), "0-1")
    kernel.refused[POWER_CORE_TYPE, 1, 1] = errno.ENODEV
    collector = collect(sysfs)
    assert set(infos(collector)) == {"socket0/package", "socket0/core0"}
    assert any("1 could not be opened" in finding.text for finding in collector.findings)


def test_a_family_opened_anew_goes_on_with_its_events(sysfs: FakeSysfs, kernel: FakeKernel) -> None:
    """A count starts at its event's opening: with another event, the joules in between would be lost."""
    topology(sysfs, (0, 0, 0), (0, 0, 1))
    pmu(sysfs, "energy-pkg")
    old = collect(sysfs)
    kernel.package(5.0)
    pmu(sysfs, "energy-pkg", cpumask="1")  # CPU 0 went offline: the kernel has moved its event to CPU 1
    assert old.outdated
    new = collect(sysfs)
    old.close()
    old.close()
    assert joules(new) == {"socket0/package": 5.0}
    assert infos(new)["socket0/package"].source == "perf:power/energy-pkg/@cpu0"
    assert len(kernel.opened) == 1
    with pytest.raises(SensorAbsentError, match="closed"):
        old.sensors[0].read()
    gc.collect()  # what earlier tests left
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    new.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 1
    assert joules(collect(sysfs)) == {"socket0/package": 0.0}


def test_the_real_call_is_refused_for_a_type_that_nobody_has() -> None:
    """Against this machine's kernel: the numbers and the structure are such that it answers in its own words."""
    with pytest.raises(OSError) as caught:
        perf.perf_event_open(0x7FFF_FFF0, 2, 0)
    assert caught.value.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENODEV)


def test_the_real_call_counts() -> None:
    """The kernel's own CPU clock (PERF_TYPE_SOFTWARE), where this machine lets us: count, running time, closing."""
    try:
        descriptor = perf.perf_event_open(1, 0, 0)
    except OSError as error:
        pytest.skip(f"perf_event_open: {error.strerror}")
    assert not os.get_inheritable(descriptor)
    event = perf.PerfEvent("perf:software/cpu-clock/@cpu0", descriptor)
    first = event.read()
    assert event.read() >= first >= 0
    del event
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)
