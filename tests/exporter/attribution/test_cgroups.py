"""The usage source of cgroups: on real cgroups where they can be made, and on trees of plain files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_exporter.attribution import cgroup_tree
from joulewatch_exporter.attribution.cgroup_mounts import Hierarchy, Version, current, find_hierarchies
from joulewatch_exporter.attribution.cgroup_tree import WALK_NS, CgroupTree
from joulewatch_exporter.attribution.cgroups import CgroupsOptions, CgroupsSource
from joulewatch_exporter.attribution.inotify import Watcher
from joulewatch_exporter.attribution.model import ROOT, UsageScan
from joulewatch_exporter.attribution.names import Names
from joulewatch_exporter.attribution.reservations import WEIGHT_FILES, Reserving
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import Host
from support.cgroups import FakeTree, RealTree, real_tree

ID = "f94ab0b4a59a1c7d9e0d2a8b6c5f4e3d2c1b0a9f8e7d6c5b4a39281706f5e4d3"
POD = "kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice"
NGINX, CRON = "system.slice/nginx.service", "system.slice/cron.service"


PLAIN = CgroupsOptions(workload_names="plain")


def seconds(scan: UsageScan) -> dict[str, float]:
    return {usage.key: usage.seconds for usage in scan.usages[""]}


def order(scan: UsageScan) -> list[str]:
    return [usage.key for usage in scan.usages[""]]


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> Version:
    return "v1" if request.param == "v1" else "v2"


@pytest.fixture
def real(version: Version) -> Iterator[RealTree]:
    with real_tree(version) as tree:
        yield tree


@pytest.fixture
def source(real: RealTree) -> Iterator[CgroupsSource]:
    source = CgroupsSource(Host(), [real.hierarchy], PLAIN)
    yield source
    source.close()


@pytest.fixture
def fake(tmp_path: Path, version: Version) -> FakeTree:
    return FakeTree(tmp_path, version)


# Real cgroups


def test_the_kernels_counters_are_read(real: RealTree, source: CgroupsSource) -> None:
    real.make(NGINX)
    real.burn(NGINX, 0.05)
    scan = source.read([NGINX])
    assert order(scan) == [NGINX, "system.slice", ROOT]
    assert scan.weights == {"": "cpu_time"}
    assert seconds(scan)[NGINX] == pytest.approx(real.seconds(NGINX), abs=1e-6)
    assert 0.05 <= seconds(scan)[NGINX] <= seconds(scan)["system.slice"] <= seconds(scan)[ROOT] + 1e-6


def test_a_removed_cgroup_is_left_out_and_its_use_stays_in_its_parent(real: RealTree, source: CgroupsSource) -> None:
    real.make(NGINX, CRON)
    before = seconds(source.read([NGINX, CRON]))
    real.burn(NGINX, 0.05)
    real.remove(NGINX)
    after = seconds(source.read([NGINX, CRON]))
    assert NGINX not in after
    assert after["system.slice"] - before["system.slice"] >= 0.05


def test_a_cgroup_that_was_made_again_is_gone_for_one_read(real: RealTree, source: CgroupsSource) -> None:
    real.make(NGINX)
    assert NGINX in seconds(source.read([NGINX]))
    real.remove(NGINX)
    real.make(NGINX)
    assert NGINX not in seconds(source.read([NGINX]))
    assert seconds(source.read([NGINX]))[NGINX] == pytest.approx(0, abs=1e-3)


def test_new_cgroups_are_seen_without_a_walk(real: RealTree, source: CgroupsSource) -> None:
    source.survey()
    real.make(NGINX, f"{POD}/cri-containerd-{ID}.scope", "other/inner")
    found = seconds(source.survey())
    assert {NGINX, POD, "other", "other/inner", "kubepods.slice"} <= found.keys()
    assert f"{POD}/cri-containerd-{ID}.scope" not in found
    real.remove(NGINX)
    assert NGINX not in seconds(source.survey())


def test_cgroups_below_the_root_are_always_read(real: RealTree, source: CgroupsSource) -> None:
    assert order(source.read([])) == [ROOT]
    real.make(NGINX, "docker")
    assert order(source.read([])) == ["docker", "system.slice", ROOT]
    real.remove("docker")
    assert order(source.read([])) == ["system.slice", ROOT]


def test_files_are_open_for_shown_cgroups_only(real: RealTree, source: CgroupsSource) -> None:
    real.make(*(f"system.slice/u{number}.service" for number in range(20)))

    def n_open() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(str(real.root) in str(link.readlink()) for link in links if link.is_symlink())

    source.survey()
    assert n_open() == 1  # the root's
    source.read([f"system.slice/u{number}.service" for number in range(5)])
    assert n_open() == 7
    source.read(["system.slice/u1.service"])
    assert n_open() == 3
    source.close()
    assert n_open() == 0


def test_the_number_of_open_files_is_bounded(real: RealTree, source: CgroupsSource) -> None:
    source._most_open = 2
    keys = [f"system.slice/u{number}.service" for number in range(5)]
    real.make(*keys)
    real.burn(keys[4], 0.02)
    found = seconds(source.read(keys))
    assert found.keys() == {*keys, "system.slice", ROOT}
    assert found[keys[4]] >= 0.02
    assert len(source._open) == 2


def test_the_whole_machine_can_be_read(version: Version) -> None:
    with real_tree(version) as tree:  # so that there is at least one cgroup
        source = CgroupsSource.open(Host(), CgroupsOptions(workload_names="plain", hierarchy=version))
        scan = source.survey()
        source.close()
    assert tree.root.name in seconds(scan)
    assert max(seconds(scan), key=lambda key: seconds(scan)[key]) == ROOT


# Trees of plain files


def test_mountinfo_has_the_hierarchy(fake: FakeTree) -> None:
    fake.use(NGINX, 1.5)
    (hierarchy,) = find_hierarchies(fake.host, "auto")
    assert (hierarchy.version, hierarchy.root, hierarchy.is_whole) == (fake.version, str(fake.top), True)


def test_a_hierarchy_at_the_usual_place_needs_no_mountinfo(tmp_path: Path, version: Version) -> None:
    fake = FakeTree(tmp_path, version, listed=False)
    assert current(find_hierarchies(fake.host, "auto")).root == str(fake.top)


def test_usage_of_plain_files(fake: FakeTree) -> None:
    fake.use("", 10)
    fake.use("system.slice", 4)
    fake.use(NGINX, 1.5)
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.read([NGINX])) == {NGINX: 1.5, "system.slice": 4, ROOT: 10}
    fake.use(NGINX, 2.5)
    assert seconds(source.read([NGINX]))[NGINX] == 2.5
    (fake.top / NGINX).rename(fake.root / "removed")
    assert seconds(source.read([NGINX])) == {"system.slice": 4, ROOT: 10}


def test_a_counter_that_fell_belongs_to_another_cgroup(fake: FakeTree) -> None:
    fake.use(NGINX, 5)
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.survey())[NGINX] == 5
    fake.use(NGINX, 1)
    assert NGINX not in seconds(source.survey())
    assert seconds(source.survey())[NGINX] == 1


def test_the_total_has_no_stolen_time(tmp_path: Path) -> None:
    fake = FakeTree(tmp_path)
    fake.write("sys/fs/cgroup/cpu.stat", "usage_usec 9000000\nuser_usec 5000000\nsystem_usec 1000000\n")
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.read([]))[ROOT] == 6


def test_an_old_kernel_has_no_total_of_its_own(tmp_path: Path) -> None:
    fake = FakeTree(tmp_path)
    (fake.top / "cpu.stat").unlink()
    fake.stat(7.25)
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.read([]))[ROOT] == 7.25


def test_a_damaged_total_is_an_error_and_a_damaged_cgroup_is_left_out(fake: FakeTree) -> None:
    fake.use(NGINX, 1)
    file = fake.top / NGINX / ("cpu.stat" if fake.version == "v2" else "cpuacct.usage")
    source = CgroupsSource.open(fake.host, PLAIN)
    file.write_text("nonsense\n")
    assert NGINX not in seconds(source.read([NGINX]))
    (fake.top / file.name).write_text("nonsense\n")
    with pytest.raises(SensorGlitchError, match="has no processor time"):
        CgroupsSource.open(fake.host, PLAIN)


def hybrid(tmp_path: Path) -> tuple[FakeTree, Path]:
    """A machine with version 1 and, at ``unified``, version 2."""
    fake = FakeTree(tmp_path, "v1")
    unified = fake.root / "sys/fs/cgroup/unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("")
    (unified / "cpu.stat").write_text("usage_usec 9000000\nuser_usec 8000000\nsystem_usec 1000000\n")
    return fake, unified


def test_version_1_is_read_on_a_hybrid_machine(tmp_path: Path) -> None:
    fake, unified = hybrid(tmp_path)
    fake.use("docker", 1)
    (unified / "system.slice").mkdir()
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.read([])).keys() == {"docker", ROOT}
    assert f"not read: cgroup v2 at {unified}" in source.findings[0].text
    chosen = CgroupsSource.open(fake.host, CgroupsOptions(workload_names="plain", hierarchy="v2"))
    assert chosen.findings[0].subject == str(unified)


def test_a_hybrid_machine_without_version_1_cgroups_goes_over_to_version_2(tmp_path: Path) -> None:
    fake, unified = hybrid(tmp_path)
    fake.use("", 20)
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.read([])) == {ROOT: 20}
    (unified / "run.scope").mkdir()
    (unified / "run.scope/cpu.stat").write_text("usage_usec 2000000\n")
    assert seconds(source.read([])) == {"run.scope": 2, ROOT: 20}  # the total continues
    (unified / "cpu.stat").write_text("usage_usec 9500000\nuser_usec 8500000\nsystem_usec 1000000\n")
    assert seconds(source.survey()) == {"run.scope": 2, ROOT: 20.5}


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    host = Host(sysfs=tmp_path / "sys", procfs=tmp_path / "proc")
    with pytest.raises(SensorAbsentError, match="mount -t cgroup2 none"):
        CgroupsSource.open(host, PLAIN)


def test_a_container_that_sees_only_itself_is_denied_with_the_fix(tmp_path: Path) -> None:
    fake = FakeTree(tmp_path)
    (fake.top / "cgroup.events").write_text("populated 1\n")
    with pytest.raises(SensorDeniedError, match="-v /sys:/host/sys:ro"):
        CgroupsSource.open(fake.host, PLAIN)


def test_a_container_with_cgroups_of_its_own_shares_by_the_time_of_the_machine(tmp_path: Path) -> None:
    fake = FakeTree(tmp_path)
    fake.write("sys/fs/cgroup/cgroup.events", "populated 1\n")
    fake.use("", 3)
    fake.use(NGINX, 2)
    fake.stat(50)
    source = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(source.read([NGINX]))[ROOT] == 50
    assert "counts as system" in source.findings[0].text


def test_parts_are_read_if_wanted(tmp_path: Path) -> None:
    fake = FakeTree(tmp_path)
    part = f"{POD}/cri-containerd-{ID}.scope"
    fake.use(part, 1)
    fake.use(f"{POD}/unknown", 1)
    fake.use(f"{NGINX}/inner", 1)
    for folder in ("system.slice", NGINX, "kubepods.slice", POD):
        fake.use(folder, 2)
    usual = CgroupsSource.open(fake.host, PLAIN)
    assert seconds(usual.survey()).keys() == {ROOT, POD, NGINX, "kubepods.slice", "system.slice"}
    deep = CgroupsSource.open(fake.host, CgroupsOptions(workload_names="plain", depth="container"))
    assert seconds(deep.survey()).keys() - seconds(usual.survey()).keys() == {part}


# The tree


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def refusing(number: int) -> Watcher:
    raise OSError(number, os.strerror(number))


def test_without_inotify_the_tree_is_walked(fake: FakeTree) -> None:
    names = Names(fake.host)
    tree = CgroupTree(str(fake.top), names, open_watcher=lambda: refusing(errno.EMFILE))
    assert tree.refused == os.strerror(errno.EMFILE)
    fake.use(NGINX, 1)
    tree.take_changes()  # the cheap one sees what is directly below the root
    assert tree.tops == ("system.slice",)
    fake.use(CRON, 1)
    assert CRON not in tree.nodes
    tree.refresh()
    assert CRON in tree.nodes


def test_inotify_that_is_refused_is_a_finding(fake: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_tree, "MOST_WATCHES", 1)
    fake.use(NGINX, 1)
    source = CgroupsSource.open(fake.host, PLAIN)
    (finding,) = [finding for finding in source.findings if finding.subject == "inotify"]
    assert finding.status == "skipped"
    assert "fs.inotify.max_user_watches" in finding.cure
    fake.use(CRON, 1)
    assert CRON in seconds(source.survey())  # by a walk


def test_a_walk_finds_what_inotify_missed(fake: FakeTree) -> None:
    fake.use(NGINX, 1)
    clock = Clock()
    tree = CgroupTree(str(fake.top), Names(fake.host), clock_ns=clock)
    (fake.top / CRON).mkdir()
    (fake.top / NGINX).rename(fake.root / "moved")
    assert tree._watcher is not None
    assert tree._watcher.changes()  # lost
    tree.refresh()
    assert tree.nodes == {"system.slice", NGINX}
    clock.now_ns = WALK_NS
    tree.refresh()
    assert tree.nodes == {"system.slice", CRON}


def test_a_folder_that_came_with_folders_in_it_is_read_whole(fake: FakeTree) -> None:
    tree = CgroupTree(str(fake.top), Names(fake.host))
    staged = fake.root / "staged"
    (staged / "b.slice/c.service").mkdir(parents=True)
    staged.rename(fake.top / "a.slice")
    tree.take_changes()
    assert tree.nodes == {"a.slice", "a.slice/b.slice", "a.slice/b.slice/c.service"}
    (fake.top / "a.slice/b.slice/d.service").mkdir()
    tree.take_changes()
    assert "a.slice/b.slice/d.service" in tree.nodes
    (fake.top / "a.slice").rename(fake.root / "gone")
    tree.take_changes()
    assert tree.nodes == set()


def test_pods_inside_a_node_of_kind_are_workloads(fake: FakeTree) -> None:
    node = f"system.slice/docker-{ID}.scope"
    pod = f"{node}/kubelet.slice/kubelet-kubepods.slice/kubelet-{POD.rpartition('/')[2]}"
    (fake.top / pod).mkdir(parents=True)
    (fake.top / node / "init.scope").mkdir()
    tree = CgroupTree(str(fake.top), Names(fake.host))
    assert {node, pod} < tree.nodes
    assert f"{node}/init.scope" not in tree.nodes


def test_the_number_of_cgroups_is_bounded(fake: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_tree, "MOST_NODES", 5)
    fake.use("system.slice", 20)
    for number in range(10):
        fake.use(f"system.slice/u{number}.service", 1)
    source = CgroupsSource.open(fake.host, PLAIN)
    assert len(source.survey().usages[""]) == 6  # and the root
    assert any("count as part of their parents" in finding.text for finding in source.findings)


def test_the_processes_of_a_cgroup_are_those_below_it_too(fake: FakeTree) -> None:
    job = "system.slice/slurmstepd.scope/job_17"
    fake.write(f"{fake.top.relative_to(fake.root)}/{job}/cgroup.procs", "")
    fake.write(f"{fake.top.relative_to(fake.root)}/{job}/step_0/slurm/cgroup.procs", "70\n0\n")
    fake.write(f"{fake.top.relative_to(fake.root)}/{job}/step_0/user/cgroup.procs", "71\n72\n")
    tree = CgroupTree(str(fake.top), Names(fake.host))
    assert sorted(tree.members(job)) == [
        (f"{job}/step_0/slurm", 70),
        (f"{job}/step_0/user", 71),
        (f"{job}/step_0/user", 72),
    ]


# Findings


def test_findings_name_the_managers(fake: FakeTree) -> None:
    for key in (NGINX, CRON, POD, "system.slice/slurmstepd.scope/job_1"):
        fake.use(key, 1)
    source = CgroupsSource.open(fake.host, PLAIN)
    found = {finding.subject: finding.text for finding in source.findings if finding.status == "found"}
    assert found == {
        str(fake.top): f"cgroup {fake.version}, 7 cgroups",
        "kubernetes": "workloads: 1",
        "slurm": "workloads: 1",
        "systemd": "workloads: 2",
    }


def test_files_of_managers_that_may_not_be_read_are_a_finding(fake: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(fake.write(f"var/lib/docker/containers/{ID}/config.v2.json", "{}"))
    fake.use(f"docker/{ID}", 1)
    source = CgroupsSource.open(fake.host, PLAIN)
    kernel_open = os.open

    def denying(path: str, flags: int) -> int:
        if path == config:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return kernel_open(path, flags)

    monkeypatch.setattr("os.open", denying)
    denied = [finding for finding in source.findings if finding.status == "denied"]
    assert [(finding.subject, "CAP_DAC_READ_SEARCH" in finding.cure) for finding in denied] == [(config, True)]
    assert source.workload(f"docker/{ID}").workload == ID[:12]


# Weights


def test_weights_of_cgroups_give_their_shares_of_the_processors(fake: FakeTree) -> None:
    """A cgroup without the controller has the default: here system.slice has a quarter."""
    file, slices = ("cpu.shares", "3072") if fake.version == "v1" else ("cpu.weight", "300")
    for key in (NGINX, CRON, POD):
        fake.use(key, 0.0)
    folder = fake.top.relative_to(fake.root)
    fake.write(f"{folder}/kubepods.slice/{file}", f"{slices}\n")
    fake.write(f"{folder}/{CRON}/{file}", f"{slices}\n")
    source = CgroupsSource.open(fake.host, PLAIN)
    assert source.reserved() == {
        ROOT: 1.0,
        "kubepods.slice": 0.75,
        POD: 0.75,
        "system.slice": 0.25,
        CRON: 0.1875,
        NGINX: 0.0625,
    }
    source.close()


def test_the_kernels_weights_are_read(real: RealTree, source: CgroupsSource) -> None:
    real.make(NGINX, CRON)
    source.survey()
    reserved = source.reserved()
    if (real.root / NGINX / WEIGHT_FILES[real.version]).exists():
        assert (reserved[NGINX], reserved[CRON], reserved["system.slice"]) == (0.5, 0.5, 1.0)
    else:
        assert reserved == {}, "the controller is not used"
    assert isinstance(source, Reserving)


def test_a_container_does_not_know_what_the_machine_reserves(fake: FakeTree) -> None:
    fake.use(NGINX, 0.0)
    source = CgroupsSource(fake.host, [Hierarchy(version=fake.version, root=str(fake.top), is_whole=False)], PLAIN)
    assert source.reserved() == {}
    source.close()
