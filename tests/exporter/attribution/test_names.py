"""Names of workloads from paths and from the files of their managers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.model import Workload
from joulewatch_exporter.attribution.names import Names, classify, unescape, user_of
from support.cgroups import FakeTree

ID = "f94ab0b4a59a1c7d9e0d2a8b6c5f4e3d2c1b0a9f8e7d6c5b4a39281706f5e4d3"
SHORT = ID[:12]
UID = "2c48913c-b29f-11e7-9350-020968147796"
UID_ = UID.replace("-", "_")
STATIC = "4d3c2b1a0f9e8d7c6b5a49382716f5e4"
USER = "user.slice/user-1000.slice"
KIND = f"system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice"

# path, manager, kind, name
WORKLOADS = [
    # systemd
    ("system.slice/nginx.service", "systemd", "unit", "nginx.service"),
    ("system.slice/system-getty.slice/getty@tty1.service", "systemd", "unit", "getty@tty1.service"),
    ("init.scope", "systemd", "unit", "init.scope"),
    ("system.slice/dev-disk-by\\x2duuid-1234.swap", "systemd", "unit", "dev-disk-by\\x2duuid-1234.swap"),
    (f"{USER}/session-3.scope", "systemd", "session", "session-3.scope"),
    (f"{USER}/session-c2.scope", "systemd", "session", "session-c2.scope"),
    (f"{USER}/user@1000.service/app.slice/mpd.service", "systemd", "unit", "user-1000/mpd.service"),
    (f"{USER}/user@1000.service/app.slice/run-r1f.scope", "systemd", "unit", "user-1000/run-r1f.scope"),
    (f"{USER}/user@1000.service/init.scope", "systemd", "unit", "user-1000/init.scope"),
    ("machine.slice/machine-deb\\x2d12.scope", "systemd", "container", "deb-12"),
    ("machine.slice/systemd-nspawn@build.service", "systemd", "container", "build"),
    # Slurm
    ("slurm/uid_1001/job_4242", "slurm", "slurm_job", "4242"),
    ("slurm_node07/uid_1001/job_4242", "slurm", "slurm_job", "4242"),
    ("system.slice/slurmstepd.scope/job_17", "slurm", "slurm_job", "17"),
    ("system.slice/cn1_slurmstepd.scope/job_17", "slurm", "slurm_job", "17"),
    ("system.slice/slurmstepd.scope/s5K1KKYAYG5D00", "slurm", "slurm_job", "s5K1KKYAYG5D00"),
    # Kubernetes, driver systemd
    (f"kubepods.slice/kubepods-pod{UID_}.slice", "kubernetes", "pod", UID),
    (f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice", "kubernetes", "pod", UID),
    (f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice", "kubernetes", "pod", UID),
    (f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice", "kubernetes", "pod", STATIC),
    # driver cgroupfs
    (f"kubepods/pod{UID}", "kubernetes", "pod", UID),
    (f"kubepods/burstable/pod{UID}", "kubernetes", "pod", UID),
    (f"kubepods/besteffort/pod{UID}", "kubernetes", "pod", UID),
    (f"system.slice/k3s.service/kubepods/burstable/pod{UID}", "kubernetes", "pod", UID),
    # a kubelet with a root of its own, and kind
    (f"{KIND}/kubelet-kubepods-pod{UID_}.slice", "kubernetes", "pod", UID),
    (
        f"{KIND}/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UID_}.slice",
        "kubernetes",
        "pod",
        UID,
    ),
    (f"docker/{ID}/kubelet/kubepods/besteffort/pod{UID}", "kubernetes", "pod", UID),
    # containerd that was given a path of systemd
    (
        f"system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
        "kubernetes",
        "container",
        f"{UID}/{SHORT}",
    ),
    # container engines
    (f"system.slice/docker-{ID}.scope", "docker", "container", SHORT),
    (f"docker/{ID}", "docker", "container", SHORT),
    (f"batch.slice/docker-{ID}.scope", "docker", "container", SHORT),
    (f"{USER}/user@1000.service/app.slice/docker-{ID}.scope", "docker", "container", SHORT),
    (f"machine.slice/libpod-{ID}.scope", "podman", "container", SHORT),
    (f"machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope", "podman", "container", SHORT),
    (f"{USER}/user@1000.service/user.slice/libpod-{ID}.scope", "podman", "container", SHORT),
    (f"libpod_parent/libpod-{ID}", "podman", "container", SHORT),
    (f"system.slice/crio-{ID}.scope", "cri-o", "container", SHORT),
    ("default/redis", "containerd", "container", "redis"),
    (f"system.slice/nerdctl-{ID}.scope", "containerd", "container", SHORT),
    (f"ecs/7d9f/{ID}", "containerd", "container", SHORT),
    ("lxc.payload.web01", "lxc", "container", "web01"),
    ("lxc/web01", "lxc", "container", "web01"),
    ("lxc/101", "lxc", "container", "101"),  # Proxmox
    # virtual machines
    ("machine.slice/machine-qemu\\x2d1\\x2ddb\\x2dmain.scope", "libvirt", "vm", "db-main"),
    ("machine.slice/machine-qemu\\x2d2\\x2dinstance\\x2d00000001.scope", "libvirt", "vm", "instance-00000001"),
    ("machine.slice/machine-qemu\\x2dwin10.scope", "libvirt", "vm", "win10"),  # before libvirt 1.3
    ("machine/qemu-1-instance-00000001.libvirt-qemu", "libvirt", "vm", "instance-00000001"),
    ("machine/test6.libvirt-qemu", "libvirt", "vm", "test6"),
    ("libvirt/qemu/old", "libvirt", "vm", "old"),
    ("machine.slice/machine-lxc\\x2d3\\x2dbox.scope", "libvirt", "container", "box"),
    ("qemu.slice/100.scope", "proxmox", "vm", "100"),
]

FOLDERS = [
    "system.slice",
    "user.slice",
    USER,
    f"{USER}/user@1000.service",
    f"{USER}/user@1000.service/app.slice",
    "machine.slice",
    "qemu.slice",
    "kubepods.slice",
    "kubepods.slice/kubepods-burstable.slice",
    "kubepods",
    "kubepods/besteffort",
    f"{KIND.rpartition('/')[0]}",
    KIND,
    f"{KIND}/kubelet-kubepods-besteffort.slice",
    "slurm",
    "slurm_node07/uid_1001",
    "system.slice/slurmstepd.scope",
    "system.slice/cn1_slurmstepd.scope",
    "docker",
    "lxc",
    f"machine.slice/machine-libpod_pod_{ID}.slice",
    "libvirt/qemu",
    "batch",
]

PARTS = [
    (f"kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope", "container", f"{UID}/{SHORT}"),
    (f"kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope", "container", f"{UID}/{SHORT}"),
    (f"kubepods.slice/kubepods-pod{UID_}.slice/docker-{ID}.scope", "container", f"{UID}/{SHORT}"),
    (f"kubepods/burstable/pod{UID}/{ID}", "container", f"{UID}/{SHORT}"),
    ("slurm/uid_1001/job_4242/step_batch", "slurm_job", "4242.batch"),
    ("system.slice/slurmstepd.scope/job_17/step_0", "slurm_job", "17.0"),
    ("system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_extern", "slurm_job", "s5K1KKYAYG5D00.extern"),
]


# Paths of processes on other people's machines, as they published them in issues, logs and test data. The rules were
# written before these were collected, and none had to change.
RECORDED = [
    ("system.slice/slurmstepd.scope/job_1392969/step_0/user/task_0", "slurm_job", "1392969"),
    ("system.slice/slurmstepd.scope/job_42/step_extern/user", "slurm_job", "42"),
    ("slurm/uid_2101171/job_280678/step_interactive/task_0", "slurm_job", "280678"),
    ("slurm/uid_961166/job_62238108/step_0/task_0", "slurm_job", "62238108"),
    ("system.slice/slurmstepd.scope/system", "other", "system.slice/slurmstepd.scope/system"),
    (
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod98005c3b_b650_4efe_8b91_2164d784397f.slice/"
        "cri-containerd-e8ac3efec3322d7f13cfa0cdee4344754d01bd4e50fea44e0753e83fdb74cab3.scope",
        "pod",
        "98005c3b-b650-4efe-8b91-2164d784397f",
    ),
    (
        "kubepods/besteffort/pod7fccb20b4bbb99e737878eab4bb685c1/"
        "cbc5a5ce0e59be70efd95106d567442196c5a55e2e9656eb63dc412f93903f3f",
        "pod",
        "7fccb20b4bbb99e737878eab4bb685c1",
    ),
    (
        "kubepods/test/pod3d274242-8ee0-11e9-a8a6-1e68d864ef1a/"
        "3e74d3fd9db4c9dd921ae05c2502fb984d0cde1b36e581b13f79c639da4518a1",
        "pod",
        "3d274242-8ee0-11e9-a8a6-1e68d864ef1a",
    ),
    (
        "system.slice/containerd.service/kubepods-besteffort-podb41662f7_b03a_4c65_8ef9_6e4e55c3cf27.slice:"
        "cri-containerd:1753b7cbbf62734d812936961224d5bc0cf8f45214e0d5cdd1a781a053e7c48f",
        "container",
        "b41662f7-b03a-4c65-8ef9-6e4e55c3cf27/1753b7cbbf62",
    ),
    ("docker/ba3398f7201b5ececf439dcadea00569d5213ae83f94135b89c3bcc7dadb2136", "container", "ba3398f7201b"),
    ("containers/f142db3a4219409af324d5481e297545aa33425fb7dc837e68cee93c36062ca8", "container", "f142db3a4219"),
    (f"machine.slice/libpod-{ID}.scope/container", "container", SHORT),
    (f"libpod/{ID}", "container", SHORT),
    ("lxc/100/ns/init.scope", "container", "100"),
    ("lxc.payload.devbox/system.slice/cron.service", "container", "devbox"),
    ("lxc.payload.snapcraft_some-container", "container", "snapcraft_some-container"),
    ("machine.slice/machine-demo.scope", "container", "demo"),
    ("machine.slice/machine-qemu\\x2d3\\x2dvirthub\\x2d42.scope/libvirt/vcpu0", "vm", "virthub-42"),
    ("machine/instance-000065d3.libvirt-qemu/vcpu0", "vm", "instance-000065d3"),
    ("system.slice/snap.docker.dockerd.service", "unit", "snap.docker.dockerd.service"),
    (
        "user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/"
        "vte-spawn-2c4a7f5e-3b1d-4e8a-9f6c-0d1e2f3a4b5c.scope",
        "unit",
        "user-1000/vte-spawn-2c4a7f5e-3b1d-4e8a-9f6c-0d1e2f3a4b5c.scope",
    ),
    ("user.slice/user-0.slice/session-246.scope", "session", "session-246.scope"),
    ("user.slice", "other", "user.slice"),
]


@pytest.fixture
def machine(tmp_path: Path) -> FakeTree:
    return FakeTree(tmp_path)


@pytest.mark.parametrize(("path", "manager", "kind", "name"), WORKLOADS, ids=[row[0][-60:] for row in WORKLOADS])
def test_a_path_is_a_workload(machine: FakeTree, path: str, manager: str, kind: str, name: str) -> None:
    rule = classify(path).rule
    assert (rule.manager, rule.kind, rule.level) == (manager, kind, "workload")
    workload = Names(machine.host).workload(path)
    assert (workload.kind, workload.workload) == (kind, name)


@pytest.mark.parametrize("path", FOLDERS)
def test_a_path_is_a_folder_of_workloads(path: str) -> None:
    assert classify(path).rule.level == "folder"


@pytest.mark.parametrize(("path", "kind", "name"), PARTS, ids=[row[0][-60:] for row in PARTS])
def test_a_path_is_a_part_of_a_workload(machine: FakeTree, path: str, kind: str, name: str) -> None:
    assert classify(path).rule.level == "part"
    workload = Names(machine.host).workload(path)
    assert (workload.kind, workload.workload) == (kind, name)


@pytest.mark.parametrize(("path", "kind", "name"), RECORDED, ids=[row[0][-60:] for row in RECORDED])
def test_the_workload_of_a_recorded_process(machine: FakeTree, path: str, kind: str, name: str) -> None:
    names = Names(machine.host)
    workload = names.workload(names.owner(path, parts=False))
    assert (workload.kind, workload.workload) == (kind, name)


def test_the_monitor_of_a_podman_container_is_not_the_container() -> None:
    match = classify(f"machine.slice/libpod-conmon-{ID}.scope")
    assert (match.rule.manager, match.rule.kind) == ("systemd", "unit")


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [("qemu\\x2d1", "qemu-1"), ("srv-data", "srv/data"), ("caf\\xc3\\xa9", "café"), ("\\x2e\\x5c", ".\\"), ("a", "a")],
)
def test_unescape_as_systemd_does(escaped: str, plain: str) -> None:
    assert unescape(escaped) == plain


def test_a_users_slice_is_recognised_anywhere() -> None:
    assert user_of(f"{USER}/session-3.scope") == "1000"
    assert user_of(USER) == "1000"
    assert user_of("user.slice") == user_of("system.slice/user-1000.service") == ""


def test_the_kubelets_folders_name_pods(machine: FakeTree) -> None:
    machine.write(f"var/log/pods/shop_web-0_{UID}/nginx/0.log", "")
    machine.write(f"var/log/pods/kube-system_etcd-node1_{STATIC}/etcd/0.log", "")
    names = Names(machine.host)
    assert names.workload(f"kubepods.slice/kubepods-pod{UID_}.slice") == Workload(
        kind="pod", workload="shop/web-0", namespace="shop", pod="web-0"
    )
    assert names.workload(f"kubepods/pod{STATIC}").workload == "kube-system/etcd-node1"


def test_a_pod_that_came_later_is_found(machine: FakeTree) -> None:
    names = Names(machine.host)
    first = f"kubepods/pod{STATIC}"
    assert names.workload(first).workload == STATIC
    machine.write(f"var/log/pods/shop_web-0_{UID}/nginx/0.log", "")
    assert names.workload(f"kubepods/pod{UID}").workload == "shop/web-0"


def test_links_of_logs_name_pods_and_containers(machine: FakeTree) -> None:
    folder = machine.root / "var/log/containers"
    folder.mkdir(parents=True)
    (folder / f"web-0_shop_nginx-{ID}.log").symlink_to(f"/var/log/pods/shop_web-0_{UID}/nginx/0.log")
    names = Names(machine.host)
    pod = f"kubepods/burstable/pod{UID}"
    assert names.workload(pod) == Workload(kind="pod", workload="shop/web-0", namespace="shop", pod="web-0")
    assert names.workload(f"{pod}/{ID}") == Workload(
        kind="container", workload="shop/web-0/nginx", namespace="shop", pod="web-0", container="nginx"
    )


def docker_config(name: str, image: str = "nginx:1.27") -> str:
    return json.dumps({"ID": ID, "Name": f"/{name}", "Config": {"Image": image, "Env": ["SECRET=x"]}})


@pytest.mark.parametrize("data_root", ["/var/lib/docker", "/srv/docker"])
def test_docker_names_containers(machine: FakeTree, data_root: str) -> None:
    if data_root != "/var/lib/docker":
        machine.write("etc/docker/daemon.json", json.dumps({"data-root": data_root}))
    machine.write(f"{data_root.lstrip('/')}/containers/{ID}/config.v2.json", docker_config("web"))
    workload = Names(machine.host).workload(f"docker/{ID}")
    assert workload == Workload(kind="container", workload="web", container="web")


def test_podman_names_containers_of_root_and_of_users(machine: FakeTree) -> None:
    row = {"id": ID, "names": ["db"], "metadata": json.dumps({"image-name": "docker.io/library/postgres:17"})}
    machine.write("var/lib/containers/storage/overlay-containers/containers.json", json.dumps([row]))
    machine.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n")
    row["names"] = ["mine"]
    storage = "home/anna/.local/share/containers/storage/overlay-containers"
    machine.write(f"{storage}/volatile-containers.json", json.dumps([row]))
    names = Names(machine.host)
    assert names.workload(f"machine.slice/libpod-{ID}.scope").workload == "db"
    assert names.workload(f"{USER}/user@1000.service/user.slice/libpod-{ID}.scope") == Workload(
        kind="container", workload="mine", container="mine", user="anna"
    )


def test_a_pipe_instead_of_a_file_gives_no_name(machine: FakeTree) -> None:
    folder = machine.root / "home/anna/.local/share/containers/storage/overlay-containers"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "containers.json")
    machine.write("etc/passwd", "anna:x:1000:1000::/home/anna:/bin/sh\n")
    assert Names(machine.host).workload(f"{USER}/user@1000.service/user.slice/libpod-{ID}.scope").workload == SHORT


def test_an_inference_server_is_recognised_by_its_image(machine: FakeTree) -> None:
    config = docker_config("llm-a", "vllm/vllm-openai:v0.12.0")
    machine.write(f"var/lib/docker/containers/{ID}/config.v2.json", config)
    names = Names(machine.host)
    assert names.workload(f"docker/{ID}").server == "vllm"
    assert names.workload("system.slice/ollama.service").server == "ollama"
    assert names.workload("system.slice/llama-server@7b.service").server == "llama.cpp"
    assert names.workload("system.slice/nginx.service").server == ""


def test_users_have_the_names_of_passwd_only(machine: FakeTree) -> None:
    machine.write("etc/passwd", "anna:x:1000:1000::/home/anna:/bin/sh\nbroken\n")
    names = Names(machine.host)
    assert names.workload(f"{USER}/session-3.scope").user == "anna"
    assert names.workload("slurm/uid_1000/job_4242").user == "anna"
    assert names.workload("slurm/uid_1001/job_4243").user == ""


def slurm_names(machine: FakeTree, members: list[tuple[str, int]]) -> Names:
    return Names(machine.host, lambda key: [(f"{key}/{folder}", pid) for folder, pid in members])


SLUID = "system.slice/slurmstepd.scope/s5K1KKYAYG5D00"


def test_the_title_of_slurmstepd_has_the_job(machine: FakeTree) -> None:
    machine.write("proc/70/cmdline", "slurmstepd: [99.0]\0")  # anybody can write this
    machine.write("proc/71/cmdline", "slurmstepd: [4242.batch]\0")
    names = slurm_names(machine, [("step_batch/user/task_0", 70), ("step_batch/slurm", 71)])
    assert names.workload(SLUID) == Workload(kind="slurm_job", workload="4242", job="4242")


def test_the_environment_of_a_task_has_the_job(machine: FakeTree) -> None:
    machine.write("proc/70/environ", "HOME=/\0OLD_SLURM_JOB_ID=1\0SLURM_JOB_ID=4242\0X=1")
    names = slurm_names(machine, [("step_batch/slurm", 69), ("step_batch/user/task_0", 70)])
    assert names.workload(f"{SLUID}/step_batch").workload == "4242.batch"


def test_a_job_whose_processes_are_hidden_is_a_finding(machine: FakeTree) -> None:
    names = slurm_names(machine, [("step_batch/slurm", 71)])
    assert names.workload(SLUID).workload == "s5K1KKYAYG5D00"
    (finding,) = [finding for finding in names.findings("cgroups", [SLUID]) if finding.status == "denied"]
    assert "numbers of Slurm's jobs" in finding.text
    assert "ProtectProc=default" in finding.cure


@pytest.mark.parametrize(
    ("key", "folder", "purpose"),
    [
        (f"docker/{ID}", "var/lib/docker", "Docker's containers"),
        (f"machine.slice/libpod-{ID}.scope", "var/lib/containers/storage", "Podman's"),
        (f"kubepods/pod{UID}", "var/log/pods", "pods"),
    ],
)
def test_files_of_managers_that_are_not_there_are_a_finding(
    machine: FakeTree, key: str, folder: str, purpose: str
) -> None:
    (finding,) = [row for row in Names(machine.host).findings("cgroups", [key]) if row.status == "absent"]
    assert finding.subject == str(machine.root / folder)
    assert purpose in finding.text
    assert "InaccessiblePaths=" in finding.cure


def test_two_living_cgroups_of_one_name_stay_apart(machine: FakeTree) -> None:
    living = {"lxc/web", "default/web"}
    names = Names(machine.host, is_living=living.__contains__)
    assert names.workload("lxc/web").workload == "web"
    assert names.workload("default/web").workload.startswith("web~")
    assert names.workload("lxc/web").workload == "web"
    living.remove("lxc/web")
    assert names.workload("lxc.payload.web").workload == "web"  # the first one was replaced
    names.keep(["default/web"])
    assert names.workload("default/web").workload.startswith("web~")


def test_one_job_of_two_slurmds_is_one_workload(machine: FakeTree) -> None:
    names = Names(machine.host)
    assert names.workload("slurm_a/uid_1/job_5") == names.workload("slurm_b/uid_1/job_5")


def test_labels_are_printable_and_short(machine: FakeTree) -> None:
    names = Names(machine.host)
    assert names.workload("bad\x1b[2Jname").workload == "bad\\x1b[2Jname"
    assert len(names.workload("system.slice/" + "a" * 240 + ".service").workload) == 128


@pytest.mark.parametrize("text", ["", "[", "[1]", '[{"id": 1}]', '[{"id": "x", "names": [1], "metadata": "["}]', "{}"])
def test_damaged_files_of_managers_give_no_name(machine: FakeTree, text: str) -> None:
    machine.write("var/lib/containers/storage/overlay-containers/containers.json", text)
    machine.write(f"var/lib/docker/containers/{ID}/config.v2.json", text)
    machine.write("etc/docker/daemon.json", text)
    assert Names(machine.host).workload(f"docker/{ID}").workload == SHORT


def test_names_ask_nobody_over_a_socket(machine: FakeTree) -> None:
    events: list[str] = []
    is_on = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if is_on and event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn")):
            events.append(event)

    sys.addaudithook(hook)  # cannot be removed
    names = Names(machine.host, lambda key: [(key, 1)])
    for path in (*(row[0] for row in WORKLOADS), *FOLDERS, *(row[0] for row in PARTS)):
        names.workload(path)
    is_on = False
    assert events == []
