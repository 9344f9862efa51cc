"""Which CPU reads the counters of each core, die and package, and how the counters are named."""

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
def test_parse_cpu_list(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "0-", "3-1", "0,,1", "-1", "0-99999999999", "0x1"])
def test_invalid_cpu_lists(text: str) -> None:
    with pytest.raises(ValueError, match="list of CPUs"):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 4000), min_size=1))
def test_parse_cpu_list_reads_any_list(numbers: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(numbers)))) == tuple(sorted(numbers))


def test_threads_of_a_core_share_its_counter(sysfs: FakeSysfs) -> None:
    """Two sockets of two cores with two threads each, numbered as Linux does: second threads come last."""
    places = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    cpus = online_cpus(topology(sysfs, *places, *places).sys)
    assert [cpu.number for cpu in cpus] == list(range(8))
    assert [cpu.number for cpu in one_per_core(cpus)] == [0, 1, 2, 3]


def test_a_cpu_that_is_offline_is_not_listed(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (0, 0, 1), (0, 0, 2), online="0,2")
    assert [cpu.number for cpu in online_cpus(sysfs.sys)] == [0, 2]
    # A CPU can go offline between the two reads: then the kernel removes its topology.
    sysfs.remove("devices/system/cpu/cpu2/topology")
    assert [cpu.number for cpu in online_cpus(sysfs.sys)] == [0]


def test_missing_topology_files(sysfs: FakeSysfs) -> None:
    assert online_cpus(sysfs.sys) == ()
    sysfs.packages(0, 0, 1)
    cpus = online_cpus(sysfs.sys)
    assert [(cpu.package, cpu.die, cpu.core) for cpu in cpus] == [(0, 0, 0), (0, 0, 1), (1, 0, 2)]
    assert len(one_per_core(cpus)) == 3
    sysfs.write("devices/system/cpu/cpu0/topology", die_id=-1, thread_siblings_list="0-1")
    sysfs.write("devices/system/cpu/cpu1/topology", die_id=-1, thread_siblings_list="0-1")
    assert [cpu.number for cpu in one_per_core(online_cpus(sysfs.sys))] == [0, 2]


def machine(sysfs: FakeSysfs) -> Machine:
    return Machine.of(sysfs.host, has_zones=True)


def test_the_cpu_is_identified_by_vendor_family_and_model(sysfs: FakeSysfs) -> None:
    epyc = machine(sysfs.cpuinfo(**EPYC))
    assert (epyc.vendor, epyc.family, epyc.model, epyc.name, epyc.is_one_counter) == (
        "AuthenticAMD",
        25,
        1,
        "AMD EPYC 7763 64-Core Processor",
        True,
    )
    unknown = machine(sysfs.cpuinfo(vendor_id="GenuineIntel", **{"model name": "x"}))
    assert (unknown.family, unknown.model, unknown.name, unknown.is_one_counter) == (-1, -1, "x", False)


def test_intel_has_one_counter_per_die_and_amd_one_per_package(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3))
    intel = machine(sysfs.cpuinfo(**XEON))
    assert [(cpu.number, intel.die_of(cpu)) for cpu in intel.lead_cpus] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    amd = machine(sysfs.cpuinfo(**EPYC))
    assert [(cpu.number, amd.die_of(cpu)) for cpu in amd.lead_cpus] == [(0, None), (2, None)]


def test_a_single_die_is_not_in_the_name(sysfs: FakeSysfs) -> None:
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
def test_cores_are_named_by_the_kernels_ids(
    sysfs: FakeSysfs, places: list[tuple[int, int, int]], names: list[str]
) -> None:
    topology(sysfs, *places, *places)  # two threads each
    assert machine(sysfs).core_names(0) == dict(enumerate(names * 2))


def test_cores_with_repeated_ids_in_one_die_are_named_by_their_cpu(sysfs: FakeSysfs) -> None:
    topology(sysfs, (0, 0, 0), (0, 0, 0))
    for cpu in (0, 1):
        sysfs.write(f"devices/system/cpu/cpu{cpu}/topology", core_cpus_list=cpu)
    assert machine(sysfs).core_names(0) == {0: "cpu0", 1: "cpu1"}


def test_names_of_counters() -> None:
    assert (quantity_of("psys", 0, None).device, quantity_of("psys", 1, None).device) == ("platform", "platform1")
    assert quantity_of("package", 1, 3).domain == "die3"
    assert quantity_of("dram", 1, 3).domain == "die3-dram"
    assert quantity_of("dram", 0, None).component == "memory"
    assert quantity_of("core", 0, None).scope == "part"
