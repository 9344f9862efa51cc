"""The cgroup of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.cgroup_mounts import Version
from joulewatch_exporter.attribution.model import ROOT
from joulewatch_exporter.attribution.process_keys import ProcessKeys
from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Host
from support.cgroups import FakeTree, real_tree

ID = "f94ab0b4a59a1c7d9e0d2a8b6c5f4e3d2c1b0a9f8e7d6c5b4a39281706f5e4d3"
POD = "kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice"
CONTAINER = f"{POD}/cri-containerd-{ID}.scope"
NODE = f"system.slice/docker-{ID}.scope"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/", ROOT),
        ("/system.slice/nginx.service", "system.slice/nginx.service"),
        ("/system.slice/nginx.service/worker", "system.slice/nginx.service"),
        ("/system.slice/nginx.service (deleted)", "system.slice/nginx.service"),
        ("/slurm/uid_1/job_5/step_0/task_0", "slurm/uid_1/job_5"),
        (f"/{CONTAINER}/init", POD),
        (f"/{NODE}/kubelet.slice/kubelet-{CONTAINER.partition('/')[2]}", None),
        (f"/{NODE}/init.scope", NODE),
        ("/a/b", "a/b"),
    ],
)
def test_a_process_belongs_to_a_workload(tmp_path: Path, path: str, key: str | None) -> None:
    machine = FakeTree(tmp_path)
    machine.write("proc/70/cgroup", f"0::{path}\n")
    expected = f"{NODE}/kubelet.slice/kubelet-{POD.partition('/')[2]}" if key is None else key
    assert ProcessKeys(machine.host).key(70) == expected


def test_parts_of_workloads_if_wanted(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path)
    machine.write("proc/70/cgroup", f"0::/{CONTAINER}/init\n")
    assert ProcessKeys(machine.host, depth="container").key(70) == CONTAINER


def test_version_1_has_a_path_for_each_controller(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path, "v1")
    machine.write("proc/70/cgroup", "9:memory:/a\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/b\n0::/c\n")
    assert ProcessKeys(machine.host).key(70) == "docker/x"


@pytest.mark.parametrize(
    ("view", "path", "key"),
    [("/../..", "/../../system.slice/a.service", "system.slice/a.service"), ("/../..", "/inner", ROOT),
     ("/docker/x", "/docker/x/b", "b"), ("/docker/x", "/docker/xy", ROOT)],
)  # fmt: skip
def test_a_container_sees_paths_relative_to_its_own(tmp_path: Path, view: str, path: str, key: str) -> None:
    machine = FakeTree(tmp_path)
    mountinfo = machine.root / "proc/self/mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(" / /sys/fs", f" {view} /sys/fs"))
    machine.write("proc/70/cgroup", f"0::{path}\n")
    assert ProcessKeys(machine.host).key(70) == key


def test_a_process_that_has_ended_belongs_to_none(tmp_path: Path) -> None:
    assert ProcessKeys(FakeTree(tmp_path).host).key(70) == ROOT


def test_a_machine_without_cgroups_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsentError):
        ProcessKeys(Host(sysfs=tmp_path, procfs=tmp_path))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_real_process_belongs_to_its_cgroup(version: Version) -> None:
    with real_tree(version) as tree:
        tree.make("a.slice/b.service/inner")
        with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
            (tree.root / "a.slice/b.service/inner/cgroup.procs").write_text(str(process.pid))
            assert ProcessKeys(Host(), version).key(process.pid) == f"{tree.root.name}/a.slice/b.service"
            process.communicate(b"\n")
