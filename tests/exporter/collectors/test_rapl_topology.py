"""Which CPU speaks for which core, die and package, and what its counters are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.collectors.base.sysfs import one_per_core, online_cpus, parse_cpu_list
from joulewatch_exporter.collectors.rapl.backend import Machine, quantity_of
from support.rapl_tree import topology
from support.sysfs import EPYC, XEON, FakeSysfs


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("0,64", (0, 64)), ("0-1,8-9,15\n", (0, 1, 8, 9, 15)), ("7-7", (7,))],
)
def test_a_list_of_cpus(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "0-", "3-1", "0,,1", "-1", "0-99999999999", "0x1"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    with pytest.raises(ValueError, match="no list of CPUs"):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 4000), min_size=1))
def test_any_list_of_cpus_comes_back(numbers: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(numbers)))) == tuple(sorted(numbers))


def test_threads_of_a_core_share_its_counter(sysfs: FakeSysfs) -> None:
    """Two sockets, two cores each, two threads each, numbered as Linux does: the second threads come last."""
    places = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    cpus = online_cpus(topology(sysfs, *places, *places).sys)
    assert [cpu.number for cpu in cpus] == list(range(8))
    assert [cpu.number for cpu in one_per_core(cpus)] == [0, 1, 2, 3]


def test_a_cpu_that_is_offline_is_not_listed(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (0, 0, 1), (0, 0, 2), online="0,2")
    assert [cpu.number for cpu in online_cpus(sysfs.sys)] == [0, 2]
    # Between the two reads it can go: the kernel takes its topology away.
    sysfs.remove("devices/system/cpu/cpu2/topology")
    assert [cpu.number for cpu in online_cpus(sysfs.sys)] == [0]


def test_a_kernel_that_tells_little(sysfs: FakeSysfs) -> None:
    assert online_cpus(sysfs.sys) == ()
    sysfs.packages(0, 0, 1)
    cpus = online_cpus(sysfs.sys)
    assert [(cpu.package, cpu.die, cpu.core) for cpu in cpus] == [(0, 0, 0), (0, 0, 1), (1, 0, 2)]
    assert len(one_per_core(cpus)) == 3
    sysfs.write("devices/system/cpu/cpu0/topology", die_id=-1, thread_siblings_list="0-1")
    sysfs.write("devices/system/cpu/cpu1/topology", die_id=-1, thread_siblings_list="0-1")
    assert [cpu.number for cpu in one_per_core(online_cpus(sysfs.sys))] == [0, 2]


def machine(sysfs: FakeSysfs) -> Machine:
    return Machine.of(sysfs.host)


def test_the_cpu_is_known_by_its_numbers(sysfs: FakeSysfs) -> None:
    about = machine(sysfs.cpuinfo(**EPYC))
    assert (about.vendor, about.family, about.model, about.name, about.is_one_counter) == (
        "AuthenticAMD",
        25,
        1,
        "AMD EPYC 7763 64-Core Processor",
        True,
    )
    about = machine(sysfs.cpuinfo(vendor_id="GenuineIntel", **{"model name": "x"}))
    assert (about.family, about.model, about.name, about.is_one_counter) == (-1, -1, "x", False)


def test_one_counter_for_each_die_on_intel_and_each_package_on_amd(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3))
    intel = machine(sysfs.cpuinfo(**XEON))
    assert [(cpu.number, intel.die_of(cpu)) for cpu in intel.lead_cpus] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    amd = machine(sysfs.cpuinfo(**EPYC))
    assert [(cpu.number, amd.die_of(cpu)) for cpu in amd.lead_cpus] == [(0, None), (2, None)]


def test_a_single_die_has_no_name(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (1, 1, 0))
    intel = machine(sysfs.cpuinfo(**XEON))
    assert [intel.die_of(cpu) for cpu in intel.lead_cpus] == [None, None]


@pytest.mark.parametrize(
    ("places", "names"),
    [
        ([(0, 0, 0), (0, 0, 8)], ["core0", "core8"]),
        ([(0, 0, 0), (0, 1, 0), (0, 1, 1)], ["die0-core0", "die1-core0", "die1-core1"]),
    ],
)
def test_cores_have_the_kernels_names(sysfs: FakeSysfs, places: list[tuple[int, int, int]], names: list[str]) -> None:
    topology(sysfs, *places, *places)  # two threads each
    assert machine(sysfs).core_names(0) == dict(enumerate(names * 2))


def test_cores_that_repeat_in_one_die_are_named_by_their_cpu(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (0, 0, 0))
    for cpu in (0, 1):
        sysfs.write(f"devices/system/cpu/cpu{cpu}/topology", core_cpus_list=cpu)
    assert machine(sysfs).core_names(0) == {0: "cpu0", 1: "cpu1"}


def test_every_door_names_a_counter_alike() -> None:
    assert (quantity_of("psys", 0, None).device, quantity_of("psys", 1, None).device) == ("platform", "platform1")
    assert quantity_of("package", 1, 3).domain == "die3"
    assert quantity_of("dram", 1, 3).domain == "die3-dram"
    assert quantity_of("dram", 0, None).component == "memory"
    assert quantity_of("core", 0, None).scope == "part"
