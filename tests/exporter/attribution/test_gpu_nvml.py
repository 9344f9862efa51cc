"""Use of NVIDIA GPUs by workload, compared with the emulator's truth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.attribution.cgroup_mounts import current, usable_hierarchies
from joulewatch_exporter.attribution.gpu import GpuOptions
from joulewatch_exporter.attribution.gpu_nvml import NvmlUsageSource
from joulewatch_exporter.attribution.model import ROOT, UsageScan
from joulewatch_exporter.collectors.nvml.collector import NvmlCollector
from joulewatch_exporter.emulator.nvml import GpuSpec
from joulewatch_exporter.emulator.nvml_load import GpuLoadSpec, GpuProcessSpec
from joulewatch_exporter.emulator.signals import Constant, Points, Square
from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Host
from support.cgroups import make_cgroup2, real_tree
from support.clock import FakeClock
from support.nvml import A100, FIRST, H100, SECOND, GpuMachine, fault

TRAIN, SERVE = "system.slice/train.service", "system.slice/serve.service"
POD = "kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice"
CONTAINER = f"{POD}/cri-containerd-{'f94ab0b4a59a1c7d' * 4}.scope"

A = GpuProcessSpec(pid=11, utilisation=Constant(30.0))
B = GpuProcessSpec(pid=12, utilisation=Constant(60.0))


class Node:
    """A machine with GPUs, its processes, and the source that reads them on a simulated clock."""

    def __init__(self, machine: GpuMachine) -> None:
        self.machine = machine
        self.clock = FakeClock()
        self.source: NvmlUsageSource
        self.collector: NvmlCollector
        self.scan: UsageScan
        self._t_s = 0.0
        make_cgroup2(machine.host)

    def process(self, pid: int, key: str) -> None:
        folder = self.machine.host.procfs / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup").write_text(f"0::/{key}\n")

    def ends(self, pid: int) -> None:
        (self.machine.host.procfs / str(pid) / "cgroup").unlink()

    def start(
        self, *specs: GpuSpec, driver_version: str = "550.54.15", depth: str = "workload", host: Host | None = None
    ) -> None:
        self.library = self.machine.gpus(*specs, driver_version=driver_version)
        self.library.start_unix_s = self.clock.unix_ns / 1e9
        self.library.advance(0.0)
        self.collector = self.machine.collect(call_timeout_seconds=0.1)
        options = GpuOptions(depth="container" if depth == "container" else "workload")
        self.source = NvmlUsageSource(host or self.machine.host, options, self.clock)

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        for _ in range(round(seconds / step_s)):
            self._t_s += step_s
            self.clock.advance(step_s)
            self.library.advance(self._t_s)
            self.scan = self.source.read(())

    def seconds(self, device: str = FIRST) -> dict[str, float]:
        usages = self.scan.usages[device]
        assert usages[-1].key == ROOT
        return {usage.key: usage.seconds for usage in usages}


@pytest.fixture
def node(gpu_machine: GpuMachine) -> Node:
    node = Node(gpu_machine)
    node.process(11, TRAIN)
    node.process(12, SERVE)
    return node


def h100(*processes: GpuProcessSpec, mig: bool | None = None, **load: Any) -> GpuSpec:
    return replace(H100, mig=mig, load=GpuLoadSpec(processes=processes, **load))


# -- utilisation samples -------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [0.1, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("sample_s", [0.2, 1.0])
def test_two_users_share_by_their_samples(node: Node, step_s: float, sample_s: float) -> None:
    """However often it is read: no sample counts twice, and between samples the last rates go on."""
    node.start(h100(A, B, sample_s=sample_s))
    node.run(30.0, step_s)
    used = node.seconds()
    assert used[TRAIN] == pytest.approx(9.0, abs=0.35)
    assert used[SERVE] == pytest.approx(18.0, abs=0.65)
    assert used[SERVE] / used[TRAIN] == pytest.approx(2.0, abs=0.01)
    assert used["system.slice"] == used[ROOT] == pytest.approx(used[TRAIN] + used[SERVE])
    assert node.scan.weights == {FIRST: "gpu_utilisation"}
    assert node.scan.holders == {FIRST: (SERVE, TRAIN)}


def test_each_interval_has_its_usage(node: Node) -> None:
    """Also if the driver has no new sample yet: energy of that time must find its user."""
    node.start(h100(A, B, sample_s=1.0))
    node.run(3.0)
    for _ in range(40):
        before = node.seconds()
        node.run(0.1, 0.1)
        after = node.seconds()
        rises = {key: after[key] - before[key] for key in (TRAIN, SERVE, ROOT)}
        assert rises[ROOT] == pytest.approx(0.09, abs=0.02)
        assert rises[TRAIN] / rises[ROOT] == pytest.approx(1 / 3, abs=0.01)


def test_a_load_that_changes_is_followed(node: Node) -> None:
    burst = replace(B, utilisation=Square(low_watts=0.0, high_watts=90.0, period_s=7.0, duty=0.4))
    node.start(h100(A, burst))
    node.run(70.0)
    used = node.seconds()
    assert used[TRAIN] == pytest.approx(A.gpu_seconds(0.0, 70.0), rel=0.02)
    assert used[SERVE] == pytest.approx(burst.gpu_seconds(0.0, 70.0), rel=0.03)


def test_stale_unset_and_absurd_samples_do_not_count(node: Node) -> None:
    node.start(h100(A, B, has_garbage_samples=True))
    node.run(30.0, 0.5)
    assert node.seconds()[TRAIN] == pytest.approx(9.0, abs=0.35)
    assert node.seconds()[ROOT] == pytest.approx(27.0, abs=0.9)


def test_idle_time_counts_for_nobody(node: Node) -> None:
    """After an idle hour, the first sample does not count for the hour."""
    late = replace(A, utilisation=Points(times_s=(0.0, 3600.0), watts=(0.0, 50.0)))
    node.start(h100(late, replace(B, utilisation=Constant(0.0))))
    node.run(3600.0, 60.0)
    assert node.seconds()[ROOT] == 0.0
    assert node.scan.holders == {FIRST: (SERVE, TRAIN)}, "held, but idle"
    node.run(10.0)
    used = pytest.approx(5.0, abs=0.5)
    assert node.seconds() == {TRAIN: used, SERVE: 0.0, "system.slice": used, ROOT: used}


def test_a_wall_clock_that_is_set_back_costs_little(node: Node) -> None:
    node.start(h100(A, B))
    node.run(10.0)
    before = node.seconds()[ROOT]
    node.clock.step_wall_clock(-3600.0)
    assert node.library.start_unix_s is not None
    node.library.start_unix_s -= 3600.0
    node.run(20.0)
    assert node.seconds()[ROOT] - before == pytest.approx(18.0, abs=1.5)


def test_a_sole_user_has_everything(node: Node) -> None:
    node.start(h100(A))
    node.run(10.0)
    assert node.seconds()[TRAIN] == node.seconds()[ROOT] == pytest.approx(3.0, abs=0.2)
    assert node.scan.weights == {FIRST: "sole_user"}


def test_processes_of_one_workload_are_one_user(node: Node) -> None:
    node.process(12, TRAIN)
    node.start(h100(A, B))
    node.run(10.0)
    assert node.seconds()[TRAIN] == pytest.approx(9.0, abs=0.7)
    assert node.scan.weights == {FIRST: "sole_user"}
    assert node.scan.holders == {FIRST: (TRAIN,)}


def test_what_an_ended_process_used_stays_with_its_parents(node: Node) -> None:
    short = replace(B, start_s=5.0, end_s=8.0)
    node.start(h100(A, short))
    node.run(7.0)
    assert node.scan.weights == {FIRST: "gpu_utilisation"}
    node.run(1.0)
    node.ends(12)
    node.run(12.0)
    used = node.seconds()
    assert SERVE not in used, "it holds the GPU no longer"
    assert used["system.slice"] == used[ROOT] == pytest.approx(6.0 + 1.8, abs=0.3)
    assert used[TRAIN] == pytest.approx(6.0, abs=0.2)
    assert node.scan.holders == {FIRST: (TRAIN,)}


def test_a_process_that_is_not_in_procfs_counts_as_system(node: Node) -> None:
    node.start(h100(A, replace(B, pid=99)))
    node.run(10.0)
    used = node.seconds()
    assert used[TRAIN] == used["system.slice"] == pytest.approx(3.0, abs=0.2)
    assert used[ROOT] == pytest.approx(9.0, abs=0.7)
    assert node.scan.weights == {FIRST: "gpu_utilisation"}
    (finding,) = [finding for finding in node.source.findings if "procfs" in finding.text]
    assert finding.text.startswith("processes that are not in procfs: 1; their workload is not known")
    assert "--pid=host" in finding.cure


@pytest.mark.parametrize(("depth", "key"), [("workload", POD), ("container", CONTAINER)])
def test_a_container_belongs_to_its_pod(node: Node, depth: str, key: str) -> None:
    node.process(11, CONTAINER)
    node.start(h100(A, B), depth=depth)
    node.run(5.0)
    assert node.scan.holders == {FIRST: (key, SERVE)}
    assert node.seconds()[key] == node.seconds()[POD] > 1.0
    workload = node.source.workload(key)
    assert (workload.kind, workload.pod) == ("pod" if depth == "workload" else "container", "")


def test_a_workload_that_may_not_be_shown_counts_for_its_parent(node: Node) -> None:
    node.start(h100(A, B))
    node.source = NvmlUsageSource(node.machine.host, GpuOptions(deny=("train.service",)), node.clock)
    node.run(10.0)
    assert node.scan.holders == {FIRST: ("system.slice", SERVE)}
    assert set(node.seconds()) == {"system.slice", SERVE, ROOT}


# -- accounting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [0.1, 1.0, 5.0])
def test_accounting_statistics_are_exact(node: Node, step_s: float) -> None:
    """They outlive the process: what it used after the last read is not lost."""
    short = replace(B, start_s=5.3, end_s=8.9)
    node.start(h100(A, short, accounting=True), driver_version="595.10")
    node.run(5.0, step_s)
    node.run(5.0, step_s)
    node.ends(12)
    node.run(20.0, step_s)
    used = node.seconds()
    assert used[TRAIN] == pytest.approx(9.0, rel=0.03)
    assert used["system.slice"] == pytest.approx(9.0 + 0.6 * 3.6, rel=0.03)
    assert used[ROOT] == used["system.slice"]
    (finding,) = node.source.findings
    assert finding.text == "shared by accounting statistics; processes: 1"


def test_what_was_used_before_the_start_does_not_count(node: Node) -> None:
    ended = replace(B, end_s=50.0)
    node.start(h100(A, ended, accounting=True), driver_version="595.10")
    node.library.advance(100.0)
    node.clock.advance(100.0)
    node.source = NvmlUsageSource(node.machine.host, GpuOptions(), node.clock)
    node._t_s = 100.0
    node.run(10.0)
    assert node.seconds()[ROOT] == pytest.approx(3.0, abs=0.1)


def test_accounting_that_is_off_has_a_finding_with_the_command(node: Node) -> None:
    node.start(h100(A, B, accounting=False), driver_version="595.10")
    shared, off = node.source.findings
    assert (shared.status, shared.subject) == ("found", FIRST)
    assert shared.text == "shared by utilisation samples; processes: 2"
    assert (off.status, off.cure) == ("skipped", "sudo nvidia-smi -am 1")
    assert off.text.startswith("accounting mode is off")


def test_a_driver_without_accounting_statistics_v2_needs_no_command(node: Node) -> None:
    node.start(h100(A, B, accounting=False), driver_version="550.54")
    assert [finding.status for finding in node.source.findings] == ["found"]


def test_a_process_identifier_that_is_used_again(node: Node) -> None:
    first = replace(B, end_s=4.0)
    again = replace(B, start_s=6.0, pid=12)
    node.start(h100(first, accounting=True), driver_version="595.10")
    node.run(5.0)
    assert node.seconds()[ROOT] == pytest.approx(2.4, rel=0.05)
    node.library.close()
    node.library = node.machine.gpus(h100(again, accounting=True), driver_version="595.10")
    node.library.start_unix_s = node.clock.unix_ns / 1e9 - node._t_s
    node.process(12, TRAIN)
    node.run(10.0)
    assert node.seconds()[TRAIN] == pytest.approx(0.6 * 9.0, rel=0.07)


# -- MIG, old drivers, failures ------------------------------------------------------------------------


def test_slices_share_by_their_multiprocessors(node: Node) -> None:
    """A slice without a process does not count, and two processes of a slice have half of it each."""
    node.process(13, "system.slice/other.service")
    users = (replace(A, slice=0), replace(B, slice=1), replace(A, pid=13, slice=1))
    node.start(h100(*users, mig=True, slices=(42, 28, 14)))
    node.run(12.0)
    used = node.seconds()
    assert used[TRAIN] == pytest.approx(12.0 * 42 / 84)
    assert used[SERVE] == used["system.slice/other.service"] == pytest.approx(12.0 * 14 / 84)
    assert node.scan.weights == {FIRST: "mig_slice"}
    (finding,) = node.source.findings
    assert finding.text.startswith("MIG: shared by the multiprocessors of the slices that have a process")


def test_an_old_driver_lists_processes_by_an_older_call(node: Node) -> None:
    node.start(h100(A, B), driver_version="470.82")
    node.run(10.0)
    assert node.scan.holders == {FIRST: (SERVE, TRAIN)}
    assert node.seconds()[SERVE] == pytest.approx(6.0, abs=0.4)


def test_without_samples_a_sole_user_has_the_utilisation_of_the_gpu(node: Node) -> None:
    node.start(h100(A, unsupported=("process_utilisation",)))
    node.run(10.0)
    assert node.seconds()[TRAIN] == pytest.approx(3.0, abs=0.4)
    assert node.scan.weights == {FIRST: "sole_user"}


def test_without_samples_two_users_are_only_holders(node: Node) -> None:
    """No number is better than a wrong one: the ledger calls the energy a gap."""
    node.start(h100(A, B, unsupported=("process_utilisation",)))
    node.run(10.0)
    assert node.scan.usages == {}
    assert node.scan.holders == {FIRST: (SERVE, TRAIN)}


def test_a_gpu_that_hangs_or_is_lost_fails_alone(node: Node) -> None:
    hanging = replace(h100(A), faults=(fault("hang", 5.0, 3.0), fault("absent", 20.0, 1000.0)))
    node.start(hanging, replace(A100, load=GpuLoadSpec(processes=(B,))))
    node.run(4.0)
    assert set(node.scan.usages) == {FIRST, SECOND}
    node.run(2.0)
    assert set(node.scan.usages) == {SECOND}
    node.run(2.0)
    node.collector.gpus[FIRST].side._worker.join(1.0)
    node.run(4.0)
    assert set(node.scan.usages) == {FIRST, SECOND}
    before = node.seconds(SECOND)[SERVE]
    node.run(10.0)
    assert set(node.scan.usages) == {SECOND}
    assert node.seconds(SECOND)[SERVE] - before == pytest.approx(6.0, abs=0.2)


def test_a_collector_that_is_not_open(gpu_machine: GpuMachine) -> None:
    with pytest.raises(SensorAbsentError, match="no NVIDIA GPU"):
        NvmlUsageSource.open(gpu_machine.host, GpuOptions())
    (gpu_machine.host.procfs / "driver/nvidia").mkdir(parents=True)
    source = NvmlUsageSource.open(gpu_machine.host, GpuOptions())
    assert source.read(()) == source.survey() == UsageScan(usages={}, weights={})
    (finding,) = source.findings
    assert finding.text == "the collector nvml is not open, so the GPUs have no energy to share"
    gpu_machine.gpus(h100(A))
    gpu_machine.collect()
    assert source.read(()).weights == {FIRST: "gpu_utilisation"}, "the collector may come later"
    source.close()


def test_series_are_bounded(node: Node) -> None:
    """Of 200 short jobs, only the living ones are listed, and those above them."""
    jobs = [f"slurm/uid_1000/job_{number}" for number in range(200)]
    node.start(h100(A, B))
    for job in jobs:
        node.process(12, job)
        node.run(4.0)
        assert node.seconds()[job] > 0.0
    assert len(node.seconds()) < 12
    assert node.seconds()["slurm"] == pytest.approx(0.6 * 800, rel=0.02)
    assert len(node.source._gpus[FIRST].tree._nodes) < 170, "forgotten after ten minutes"


# -- real processes in real cgroups --------------------------------------------------------------------


@pytest.fixture
def sleepers() -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    processes = [
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        for _ in range(2)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_real_processes_in_real_cgroups(gpu_machine: GpuMachine, sleepers: Sequence[subprocess.Popen[bytes]]) -> None:
    with real_tree(current(usable_hierarchies(Host(), "auto")).version) as tree:
        keys = [f"unit-{number}.service" for number in range(2)]
        tree.make(*keys)
        for key, process in zip(keys, sleepers, strict=True):
            (tree.root / key / "cgroup.procs").write_text(f"{process.pid}\n")
        node = Node(gpu_machine)
        users = [replace(spec, pid=process.pid) for spec, process in zip((A, B), sleepers, strict=True)]
        node.start(h100(*users), host=Host())
        node.run(10.0)
        used = node.seconds()
        parent = os.path.relpath(tree.root, Path(tree.root).parent)
        assert used[f"{parent}/unit-0.service"] == pytest.approx(3.0, abs=0.3)
        assert used[f"{parent}/unit-1.service"] == pytest.approx(6.0, abs=0.6)
        assert node.scan.holders == {FIRST: tuple(f"{parent}/{key}" for key in keys)}
        for process in sleepers:
            process.kill()
            process.wait()
