"""Tests of power that follows workloads: counters of real cgroups, energy of each, and its truth."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.attribution.cgroup_mounts import Hierarchy, Version, find_hierarchies
from joulewatch_exporter.collectors.base.proc_stat import read_busy
from joulewatch_exporter.emulator.main import run
from joulewatch_exporter.emulator.scenario import Scenario, load, parse
from joulewatch_exporter.emulator.tree import Tree
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_exporter.emulator.workloads import (
    TOP,
    WorkloadLoad,
    WorkloadMeter,
    WorkloadPower,
    find_top,
    link_top,
    workload_joules,
)
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Host
from support.cgroups import RealTree, real_tree


def signal(cgroup: str = "", **workloads: float) -> WorkloadLoad:
    powers = {path: WorkloadPower(watts) for path, watts in workloads.items()}
    return WorkloadLoad(idle_watts=10.0, workloads=powers, other_watts_per_core=1.0, cgroup=cgroup)


def document(**keys: Any) -> dict[str, Any]:
    load_keys = {"kind": "workload_load", "idle_watts": 10, "workloads": {"a.service": {"watts_per_core": 4}}, **keys}
    zones = [
        {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": "socket0"},
        {"zone": "intel-rapl:0:0", "name": "dram", "key": "socket0/dram", "signal": "memory"},
    ]
    memory = {"kind": "sum", "of": [2, {"kind": "scale", "signal": "socket0", "factor": 0.5}]}
    return {"name": "mine", "signals": {"socket0": load_keys, "memory": memory}, "zones": zones}


def scenario(**keys: Any) -> Scenario:
    return parse(document(**keys), where="test", folder=None)


@pytest.fixture(params=["v1", "v2"])
def real(request: pytest.FixtureRequest) -> Iterator[RealTree]:
    with real_tree(request.param) as tree:
        yield tree


# -- the signal ------------------------------------------------------------------------------------------------


def test_energy_is_idle_power_and_what_each_workload_used() -> None:
    power = signal(a=4.0, b=8.0)
    assert not power.is_deterministic
    power.follow(1.0, {"a": 0.5, "b": 0.25, TOP: 0.0})
    power.follow(2.0, {"a": 1.5, "b": 0.25, TOP: 2.0})
    assert power.joules == {"a": 6.0, "b": 2.0, TOP: 2.0}
    assert power.busy_s == 3.75
    assert power.energy_joules(0.0, 2.0) == pytest.approx(20.0 + 10.0)
    assert power.energy_joules(1.0, 1.5) == pytest.approx(5.0 + 3.0)  # straight between two updates
    assert power.power_watts(0.5) == pytest.approx(10.0 + 4.0)
    assert power.power_watts(1.5) == pytest.approx(10.0 + 6.0)


def test_what_is_used_after_the_last_update_is_not_known_yet() -> None:
    power = signal(a=4.0)
    power.follow(1.0, {"a": 1.0, TOP: 0.0})
    before = power.energy_joules(0.0, 1.5)
    assert before == pytest.approx(15.0 + 4.0)
    power.follow(2.0, {"a": 1.0, TOP: 0.0})
    assert power.energy_joules(0.0, 1.5) == before


def test_energy_never_falls() -> None:
    """Counters of a parent and its children are not read at the same instant."""
    power = signal(a=4.0)
    power.follow(1.0, {"a": 1.0, TOP: 0.000002})
    power.follow(2.0, {"a": 1.0, TOP: -0.000001})
    assert power.joules == {"a": 4.0, TOP: 0.000002}


def test_only_the_last_minute_is_remembered() -> None:
    power = signal(a=4.0)
    for tick in range(1, 6010):
        power.follow(tick / 100, {"a": tick / 100, TOP: 0.0})
    assert power.energy_joules(59.0, 60.0) == pytest.approx(14.0)
    with pytest.raises(ValueError, match="remembers only the last 6000 updates"):
        power.power_watts(0.01)


def test_a_sum_has_the_workloads_of_its_terms() -> None:
    spec = scenario()
    (power,) = spec.workload_loads
    power.follow(1.0, {"a.service": 0.5, TOP: 0.25})
    assert workload_joules(spec.signals_by_key["socket0/dram"]) == {"a.service": 1.0, TOP: 0.0}
    assert workload_joules(load("epyc-7763-node").signals_by_key["socket0/package"]) == {}


# -- the counters ----------------------------------------------------------------------------------------------


def test_each_cgroup_counts_without_the_listed_ones_below_it(real: RealTree) -> None:
    real.make("a.slice/b.service", "a.slice/unlisted.service")
    real.burn("a.slice/b.service", 0.02)  # before the start
    meter = WorkloadMeter(real.hierarchy, ["a.slice", "a.slice/b.service"])
    at_start = {path: real.seconds(path) for path in ("", "a.slice", "a.slice/b.service")}
    real.burn("a.slice/b.service", 0.03)
    real.burn("a.slice/unlisted.service", 0.02)
    real.burn("", 0.02)
    used = meter.read()
    total, above, below = (real.seconds(path) - seconds for path, seconds in at_start.items())
    assert used == pytest.approx({"a.slice/b.service": below, "a.slice": above - below, TOP: total - above}, abs=5e-6)
    assert min(used.values()) > 0.01
    meter.close()
    meter.close()


def test_what_a_removed_cgroup_used_last_is_its_parents(real: RealTree) -> None:
    """The next one of the same name starts at 0, and nothing is counted twice."""
    real.make("a.slice")
    meter = WorkloadMeter(real.hierarchy, ["a.slice", "a.slice/b.service"])
    real.make("a.slice/b.service")
    real.burn("a.slice/b.service", 0.02)
    seen = meter.read()["a.slice/b.service"]
    assert seen > 0.01
    real.burn("a.slice/b.service", 0.03)
    real.remove("a.slice/b.service")
    used = meter.read()
    assert used["a.slice/b.service"] == seen
    assert used["a.slice"] == pytest.approx(real.seconds("a.slice") - seen, abs=5e-6)
    assert used["a.slice"] > 0.02
    real.make("a.slice/b.service")
    real.burn("a.slice/b.service", 0.02)
    again = meter.read()
    assert again["a.slice/b.service"] > seen + 0.01
    assert again["a.slice"] == pytest.approx(used["a.slice"], abs=5e-6)
    assert sum(again.values()) == pytest.approx(real.seconds(""), abs=5e-6)


# -- the machine -----------------------------------------------------------------------------------------------


def test_the_exporter_sees_the_cgroup_as_its_machine(real: RealTree, tmp_path: Path) -> None:
    top = find_top([signal(str(real.root))])
    assert top == real.hierarchy
    link_top(tmp_path / "sys", top)
    (seen,) = find_hierarchies(Host(sysfs=tmp_path / "sys", procfs=tmp_path / "proc"), "auto")
    assert (seen.version, Path(seen.root).resolve()) == (real.version, real.root)
    # So the busy time of the machine is that of the emulated /proc/stat.
    assert not seen.is_whole


def test_proc_stat_shows_the_time_of_the_workloads(tmp_path: Path) -> None:
    spec = scenario()
    (power,) = spec.workload_loads
    (tmp_path / "scratch").mkdir()
    tree = Tree(spec, tmp_path, tmp_path / "scratch", boot_unix_s=1_700_000_000)
    power.follow(1.0, {"a.service": 0.5, TOP: 0.27})
    tree.advance(1.0)
    assert read_busy(str(tmp_path / "proc/stat")) == (0.77, 4)


def test_the_cgroup_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cgroup: /nowhere: is not a cgroup with cpuacct\.usage or cpu\.stat; give"):
        find_top([signal("/nowhere")])
    with pytest.raises(ConfigError, match="must have the same cgroup"):
        find_top([signal("/a"), signal("/b")])
    (tmp_path / "mine.yaml").write_text(json.dumps(document(cgroup="/nowhere")))
    with pytest.raises(ConfigError, match="nowhere: is not a cgroup"):
        run(str(tmp_path / "mine.yaml"), tmp_path / "machine", 0.01)


@pytest.mark.parametrize(
    ("version", "file", "text"),
    [("v1", "cpuacct.usage", ""), ("v1", "cpuacct.usage", "x"), ("v2", "cpu.stat", "nr_periods 0\n")]
    + [("v2", "cpu.stat", text) for text in ("usage_usec x\n", "usage_usec 1\nuser_usec 1\n", "usage_usec\n")],
)
def test_a_file_of_something_else_is_one_error(tmp_path: Path, version: Version, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=f"{file}: is not a processor time of the kernel: .*; set cgroup to"):
        WorkloadMeter(Hierarchy(version=version, root=str(tmp_path)), [TOP])


def test_a_cgroup_that_must_not_be_read_does_not_count_as_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.service").mkdir()
    for folder in (tmp_path, tmp_path / "a.service"):
        (folder / "cpuacct.usage").write_text("0\n")
    real_open = os.open

    def denied(path: Path, flags: int) -> int:
        if path.parent.name == "a.service":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ConfigError, match=r"a\.service/cpuacct\.usage: Permission denied: run the emulator as a user"):
        WorkloadMeter(Hierarchy(version="v1", root=str(tmp_path)), ["a.service", TOP])


@pytest.mark.parametrize(("version", "file"), [("v1", "cpuacct.usage"), ("v2", "cpu.stat")])
def test_a_run_writes_the_truth_of_each_workload(tmp_path: Path, version: Version, file: str) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / file).write_text("0\n" if version == "v1" else "usage_usec 0\nuser_usec 0\nsystem_usec 0\n")
    assert find_top([signal(str(cgroup))]) == Hierarchy(version=version, root=str(cgroup))
    (tmp_path / "mine.yaml").write_text(json.dumps(document(cgroup=str(cgroup))))
    machine = tmp_path / "machine"
    assert run(str(tmp_path / "mine.yaml"), machine, 0.05) == 0
    lines = [json.loads(line) for line in (machine / "truth.jsonl").read_text().splitlines()]
    zero = {"a.service": 0.0, TOP: 0.0}
    assert lines[-1]["workloads"] == {"socket0/package": zero, "socket0/dram": zero}
    # As if the workload had used 2 s between the first and the last update.
    lines[-1]["workloads"]["socket0/package"]["a.service"] = 8.0
    (machine / "truth.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[-1])))
    truth = Truth.load(machine)
    assert truth.workloads("socket0/dram") == ("a.service", TOP)
    start_s = lines[0]["unix_s"]
    middle_s = (start_s + lines[-1]["unix_s"]) / 2
    assert truth.workload_joules("socket0/package", "a.service", start_s, middle_s) == pytest.approx(4.0, rel=1e-3)
    assert truth.workload_joules("socket0/dram", TOP, start_s, middle_s) == 0.0
    for key, path, message in (
        ("socket0/package", "b.service", "'b.service' is not a workload of socket0/package: 'a.service', ''"),
        ("socket9/package", "a.service", "is not one of socket0/package, socket0/dram"),
    ):
        with pytest.raises(ValueError, match=message):
            truth.workload_joules(key, path, start_s, middle_s)
