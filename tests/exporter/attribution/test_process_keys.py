"""The cgroup of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.cgroup_mounts import Version, find_hierarchies
from joulewatch_exporter.attribution.cgroups import CgroupsOptions, CgroupsSource
from joulewatch_exporter.attribution.model import ROOT
from joulewatch_exporter.attribution.privacy import NameOptions
from joulewatch_exporter.attribution.process_keys import ProcessKeys
from joulewatch_exporter.model import Host
from support.cgroups import FakeTree, real_tree
from support.require import require_program

PLAIN = NameOptions(workload_names="plain")
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
    assert ProcessKeys(machine.host, PLAIN).key(70) == expected


def test_parts_of_workloads_if_wanted(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path)
    machine.write("proc/70/cgroup", f"0::/{CONTAINER}/init\n")
    assert ProcessKeys(machine.host, NameOptions(workload_names="plain", depth="container")).key(70) == CONTAINER


def test_version_1_has_a_path_for_each_controller(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path, "v1")
    machine.write("proc/70/cgroup", "9:memory:/a\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/b\n0::/c\n")
    assert ProcessKeys(machine.host, PLAIN).key(70) == "docker/x"


OWN = f"kubepods.slice/{POD.partition('/')[2]}/cri-containerd-{ID}.scope"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/../../../system.slice/a.service", "system.slice/a.service"),
        ("/../../kubepods-burstable.slice", "kubepods.slice/kubepods-burstable.slice"),
        ("/inner", POD),
        ("/", POD),
    ],
)
def test_a_namespace_of_cgroups_shows_paths_relative_to_its_own(tmp_path: Path, path: str, key: str) -> None:
    machine = FakeTree(tmp_path)
    mountinfo = machine.root / "proc/self/mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(" / /sys/fs", " /../../.. /sys/fs"))
    machine.write("proc/self/cgroup", "0::/main\n")
    machine.write(f"sys/fs/cgroup/{OWN}/main/cgroup.procs", f"{os.getpid()}\n")
    machine.write("proc/70/cgroup", f"0::{path}\n")
    assert ProcessKeys(machine.host, PLAIN).key(70) == key


def test_a_namespace_whose_own_cgroup_is_not_found_has_no_keys(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path)
    mountinfo = machine.root / "proc/self/mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(" / /sys/fs", " /../.. /sys/fs"))
    machine.write("proc/70/cgroup", "0::/../../system.slice/a.service\n")
    assert ProcessKeys(machine.host, PLAIN).key(70) == ROOT


@pytest.mark.parametrize(("path", "key"), [("/docker/x/b", "b"), ("/docker/xy", ROOT), ("/docker/x", ROOT)])
def test_a_part_of_the_tree_that_is_mounted_shows_whole_paths(tmp_path: Path, path: str, key: str) -> None:
    machine = FakeTree(tmp_path)
    mountinfo = machine.root / "proc/self/mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(" / /sys/fs", " /docker/x /sys/fs"))
    machine.write("proc/70/cgroup", f"0::{path}\n")
    assert ProcessKeys(machine.host, PLAIN).key(70) == key


def test_a_process_that_has_ended_has_no_key(tmp_path: Path) -> None:
    assert ProcessKeys(FakeTree(tmp_path).host, PLAIN).key(70) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("0::/system.slice/nginx.service\n", "system.slice/nginx.service"),
        ("4:cpu,cpuacct:/docker/x\n0::/\n", "docker/x"),
        ("0::/../other\n", ROOT),
        ("0::/\n", ROOT),
    ],
)
def test_without_readable_cgroups_procfs_has_the_path(tmp_path: Path, text: str, key: str) -> None:
    host = Host(sysfs=tmp_path, procfs=tmp_path / "proc")
    (tmp_path / "proc/70").mkdir(parents=True)
    (tmp_path / "proc/70/cgroup").write_text(text)
    assert ProcessKeys(host, PLAIN).key(70) == key


def test_a_denied_workload_counts_as_its_parent(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path)
    machine.write("proc/70/cgroup", "0::/system.slice/nginx.service\n")
    assert ProcessKeys(machine.host, NameOptions(deny=("nginx*",))).key(70) == "system.slice"
    assert ProcessKeys(machine.host, NameOptions(deny=("*",))).key(70) == ROOT


def test_users_are_hidden_as_by_the_source_of_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "missing"))
    machine = FakeTree(tmp_path)
    session = "user.slice/user-1000.slice/session-3.scope"
    machine.use(session, 1)
    assert ProcessKeys(machine.host, NameOptions()).workload(session).workload == "session-3.scope"
    machine.use("user.slice/user-1001.slice", 1)
    hidden = ProcessKeys(machine.host, NameOptions()).workload(session)
    assert hidden.workload.startswith("anon-")
    assert hidden == CgroupsSource.open(machine.host, CgroupsOptions()).workload(session)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_real_process_belongs_to_its_cgroup(version: Version) -> None:
    with real_tree(version) as tree:
        tree.make("a.slice/b.service/inner")
        keys = ProcessKeys(Host(), PLAIN)
        keys._hierarchies = find_hierarchies(Host(), version)
        with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
            (tree.root / "a.slice/b.service/inner/cgroup.procs").write_text(str(process.pid))
            assert keys.key(process.pid) == f"{tree.root.name}/a.slice/b.service"
            process.communicate(b"\n")


IN_NAMESPACE = """
import sys
from joulewatch_exporter.attribution.cgroup_mounts import find_hierarchies
from joulewatch_exporter.attribution.privacy import NameOptions
from joulewatch_exporter.attribution.process_keys import ProcessKeys
from joulewatch_exporter.model import Host
keys = ProcessKeys(Host(), NameOptions(workload_names="plain"))
keys._hierarchies = find_hierarchies(Host(), "v2")
print(keys._hierarchies[0].view, keys.key(int(sys.argv[1])))
"""


def test_a_real_namespace_of_cgroups() -> None:
    """The kernel's own relative paths, as in a container whose runtime mounts the host's cgroups."""
    unshare = require_program("unshare", "util-linux")
    with real_tree("v2") as tree:
        tree.make("a/b", "other.service")
        enter = f'echo $$ >"{tree.root}/a/b/cgroup.procs" && exec "$0" -mC "$@"'
        with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
            (tree.root / "other.service/cgroup.procs").write_text(str(process.pid))
            command = ["/bin/sh", "-c", enter, unshare, sys.executable, "-c", IN_NAMESPACE, str(process.pid)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            process.communicate(b"\n")
    if "Operation not permitted" in done.stderr:
        pytest.skip("namespaces need root")
    assert done.stdout.split() == ["/../../..", f"{tree.root.name}/other.service"], done.stderr
