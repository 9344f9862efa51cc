r"""The table of the managers: what the path of a cgroup shows about the workload in it.

The first rule that matches a path below the root (without a slash at either end) decides. A new manager is a few lines
here and its sample paths in ``tests/exporter/attribution/test_names.py``.

Sources: systemd.special(7), user@.service(5), systemd-machined.service(8); Slurm cgroup_v2.html, its plug-in
``cgroup/v1`` and the release notes of 26.05; Kubernetes ``pkg/kubelet/cm``; kubernetes-sigs/kind#3947; containers/crun
and podman ``--cgroups=split``; libvirt.org/cgroups.html; lxc.container.conf(5); Proxmox ``PVE::QemuServer``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.attribution.model import Kind

Level = Literal["folder", "workload", "part"]
"""folder: workloads are below it; workload: a consumer with a name; part: a piece of a workload, such as a
container of a pod or a step of a job, which only ``depth: container`` shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One form of path."""

    manager: str
    pattern: re.Pattern[str]
    """Matches the whole path. Its groups: ``unit``, ``uid``, ``job``, ``step``, ``sluid``, ``pod_uid``, ``vm``, and of
    a container ``id`` or ``name``."""
    kind: Kind
    level: Level


_ID = r"(?P<id>[0-9a-f]{64})"
_POD_UID = r"(?P<pod_uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
"""With hyphens, with underscores (systemd), or the digest of a static pod's manifest."""
_KUBEPODS = r"(?:[^/]+-)?kubepods"
"""A kubelet with a ``--cgroup-root`` puts that before it: ``kubelet-kubepods.slice``."""
_POD = rf"(?:{_KUBEPODS}[\w-]*-)?pod{_POD_UID}(?:\.slice)?"
_SLURM_V1 = r"slurm(?:_[^/]+)?"
_SLURM_V2 = r"(?:[^/]+_)?slurmstepd\.scope"
_SLURM_JOB = rf"(?:{_SLURM_V1}/uid_(?P<uid>\d+)|{_SLURM_V2})/(?:job_(?P<job>\d+)|(?P<sluid>s[0-9A-Z]{{13}}))"
_UNIT = r"(?P<unit>[^/]+\.(?:service|scope|socket|mount|swap|automount))"
_USER = r"user\.slice/user-(?P<uid>\d+)\.slice"

_TABLE: Final[tuple[tuple[str, str, Kind, Level], ...]] = (
    ("kubernetes", rf"{_POD}/(?:(?:cri-containerd|crio|docker|containerd)-)?{_ID}(?:\.scope)?", "container", "part"),
    ("kubernetes", _POD, "pod", "workload"),
    # containerd that was given a path of systemd but uses the driver cgroupfs
    ("kubernetes", rf"{_KUBEPODS}[\w-]*-pod{_POD_UID}\.slice:[\w-]+:{_ID}", "container", "workload"),
    ("kubernetes", rf"{_KUBEPODS}(?:[-/](?:besteffort|burstable|guaranteed))?(?:\.slice)?", "other", "folder"),
    ("kubernetes", r"kubelet(?:\.slice)?", "other", "folder"),
    ("slurm", rf"{_SLURM_JOB}/step_(?P<step>[^/]+)", "slurm_job", "part"),
    ("slurm", _SLURM_JOB, "slurm_job", "workload"),
    ("slurm", rf"{_SLURM_V2}|{_SLURM_V1}(?:/uid_(?P<uid>\d+))?", "other", "folder"),
    ("docker", rf"docker[-/]{_ID}(?:\.scope)?", "container", "workload"),
    ("podman", rf"libpod-(?:payload-)?{_ID}(?:\.scope)?", "container", "workload"),
    ("podman", r"[^/]*libpod_pod_[0-9a-f]{64}(?:\.slice)?", "other", "folder"),
    ("cri-o", rf"crio-{_ID}(?:\.scope)?", "container", "workload"),
    ("containerd", rf"(?:(?:cri-containerd|nerdctl)-)?{_ID}(?:\.scope)?", "container", "workload"),
    ("containerd", r"default/(?P<name>[^/]+)", "container", "workload"),
    ("lxc", r"(?:lxc(?:\.payload)?/|lxc\.payload[.-])(?P<name>[^/]+)", "container", "workload"),
    ("lxc", r"lxc(?:\.payload)?", "other", "folder"),
    ("libvirt", r"machine-qemu\\x2d(?:\d+\\x2d)?(?P<vm>[^/]+)\.scope", "vm", "workload"),
    ("libvirt", r"(?:qemu-\d+-)?(?P<vm>[^/]+)\.libvirt-qemu", "vm", "workload"),
    ("libvirt", r"libvirt/qemu/(?P<vm>[^/]+)", "vm", "workload"),
    ("libvirt", r"machine-lxc\\x2d(?:\d+\\x2d)?(?P<name>[^/]+)\.scope", "container", "workload"),
    ("libvirt", r"(?:lxc-\d+-)?(?P<name>[^/]+)\.libvirt-lxc", "container", "workload"),
    ("libvirt", r"libvirt(?:/qemu)?", "other", "folder"),
    ("proxmox", r"qemu\.slice/(?P<vm>\d+)\.scope", "vm", "workload"),
    ("systemd", r"machine-(?P<name>[^/]+)\.scope", "container", "workload"),
    ("systemd", r"systemd-nspawn@(?P<name>[^/]+)\.service", "container", "workload"),
    ("systemd", rf"{_USER}/user@(?P=uid)\.service/(?:.*/)?{_UNIT}", "unit", "workload"),
    ("systemd", rf"{_USER}/(?P<unit>user@(?P=uid)\.service)", "session", "folder"),
    ("systemd", rf"{_USER}/(?P<unit>session-[^/]+\.scope)", "session", "workload"),
    ("systemd", rf"{_USER}/{_UNIT}", "unit", "workload"),
    ("systemd", rf"{_USER}(?:/.*)?", "other", "folder"),
    ("systemd", r"[^/]+\.slice", "other", "folder"),
    ("systemd", _UNIT, "unit", "workload"),
)

RULES: Final = tuple(
    Rule(manager=manager, pattern=re.compile(rf"(?:.*/)?(?:{pattern})"), kind=kind, level=level)
    for manager, pattern, kind, level in _TABLE
)
OTHER: Final = Rule(manager="", pattern=re.compile(r".*"), kind="other", level="folder")
"""A path that no manager is known to make."""

SERVERS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (server, re.compile(pattern, re.IGNORECASE))
    for server, pattern in (
        ("vllm", r"\bvllm\b"),
        ("sglang", r"\bsglang\b"),
        ("tgi", r"\btgi\b|text-generation-inference"),
        ("tensorrt-llm", r"\btrt-?llm\b|tensorrt-?llm"),
        ("dynamo", r"\bdynamo\b"),
        ("triton", r"\btriton(?:server)?\b"),
        ("llama.cpp", r"\bllama[._-]?(?:cpp|server)\b"),
        ("ollama", r"\bollama\b"),
    )
)
"""Inference server -> what its unit, pod, container or image is called."""
