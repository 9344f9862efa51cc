"""Names of workloads, from the paths of their cgroups and the files of their managers.

Nothing is asked over the network. Where the managers' files cannot be read, a workload keeps the identifier that its
path contains. `managers` has the forms of paths, `manager_files` reads the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from joulewatch_exporter.attribution.manager_files import Container, Files, Pod
from joulewatch_exporter.attribution.managers import OTHER, RULES, SERVERS, Rule
from joulewatch_exporter.attribution.model import Workload
from joulewatch_exporter.model import Finding, Host
from joulewatch_exporter.text import label_text

SHORT_ID: Final = 12
"""Digits of a container's identifier that are shown, as by the engines."""
_DIGEST: Final = 6
_MOST_CACHED: Final = 50_000
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")
_USER_SLICE: Final = re.compile(r"(?:^|/)user\.slice/user-(\d+)\.slice(?:/|$)")
_WITH_FILES: Final = ("kubernetes", "docker", "podman", "cri-o", "slurm")
_CURES: Final = {
    "numbers of Slurm's jobs": (
        "ProtectProc=default or AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH in the exporter's systemd unit, "
        "or CgroupJobIdPaths=yes in Slurm's cgroup.conf"
    )
}
_CURE: Final = "run the exporter as root or with AmbientCapabilities=CAP_DAC_READ_SEARCH in its systemd unit"


class Match(NamedTuple):
    """What a path contains."""

    rule: Rule
    groups: Mapping[str, str]
    """Those groups of the rule that are not empty."""


def classify(key: str) -> Match:
    """Return the first rule that matches the path of a cgroup; `OTHER` if there is none."""
    for rule in RULES:
        if (match := rule.pattern.fullmatch(key)) is not None:
            return Match(rule, {name: text for name, text in match.groupdict().items() if text})
    return Match(OTHER, {})


def unescape(text: str) -> str:
    """Undo the escaping of a name in a systemd unit: ``-`` is a slash, and ``\\x2d`` a hyphen."""
    data = os.fsencode(text.replace("-", "/"))
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), data).decode("utf-8", "replace")


def user_of(key: str) -> str:
    """Return the number of the user whose slice a path is in; empty if it is in none."""
    match = _USER_SLICE.search(key)
    return "" if match is None else match[1]


class Names:
    """Names of the workloads of one machine. They are cached, and stay as they are while a cgroup lives."""

    def __init__(
        self,
        host: Host,
        members: Callable[[str], Iterable[tuple[str, int]]] = lambda key: (),
        is_living: Callable[[str], bool] = lambda key: True,
    ) -> None:
        """Read nothing yet.

        Args:
            host: The machine. Files of its managers are next to ``host.procfs``: below ``/host`` for ``/host/proc``.
            members: Returns the processes in a cgroup and those below it: path of the cgroup, process identifier.
            is_living: Whether a cgroup exists.
        """
        self._files = Files(str(host.procfs.parent).rstrip("/"), str(host.procfs))
        self._members = members
        self._is_living = is_living
        self._matches: dict[str, Match] = {}
        self._workloads: dict[str, Workload] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def match(self, key: str) -> Match:
        """Return what a path contains; cached."""
        match = self._matches.get(key)
        if match is None:
            if len(self._matches) >= _MOST_CACHED:
                self._matches.clear()
            match = self._matches[key] = classify(key)
        return match

    def workload(self, key: str) -> Workload:
        """Return the names of a cgroup.

        If another living cgroup has the same name, it ends with a digest of its path; but two cgroups of one job are
        one workload: ``slurmd`` may run more than once on a machine.
        """
        workload = self._workloads.get(key)
        if workload is None:
            workload = self._named(key)
            other = self._keys.get((workload.kind, workload.workload), key)
            if other != key and workload.kind != "slurm_job" and self._is_living(other):
                digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:_DIGEST]
                workload = dataclasses.replace(workload, workload=label_text(f"{workload.workload}~{digest}"))
            self._keys[workload.kind, workload.workload] = key
            self._workloads[key] = workload
        return workload

    def is_shown(self, child: str, *, parts: bool) -> bool:
        """Return whether a cgroup directly below a workload is read.

        Args:
            child: Its path. A node of kind or minikube is a container with a kubelet in it: its pods are workloads.
            parts: Whether containers of pods and steps of jobs are wanted.
        """
        rule = self.match(child).rule
        return parts if rule.level == "part" else rule.manager == "kubernetes"

    def owner(self, path: str, *, parts: bool) -> str:
        """Return the path of the innermost cgroup that is read and contains another one.

        Args:
            path: Of any cgroup, such as that of a process.
            parts: See `is_shown`.
        """
        owner = ""
        names = path.split("/")
        for depth in range(1, len(names) + 1):
            key = "/".join(names[:depth])
            if owner and self.match(owner).rule.level != "folder" and not self.is_shown(key, parts=parts):
                break
            owner = key
        return owner

    def keep(self, keys: Collection[str]) -> None:
        """Forget all other cgroups."""
        living = set(keys)
        self._matches = {key: match for key, match in self._matches.items() if key in living}
        self._workloads = {key: workload for key, workload in self._workloads.items() if key in living}
        self._keys = {name: key for name, key in self._keys.items() if key in living}

    def findings(self, source: str, keys: Iterable[str]) -> list[Finding]:
        """Return which managers' workloads there are, and which of their files cannot be read."""
        workloads = [key for key in keys if self.match(key).rule.level == "workload"]
        counts = Counter(self.match(key).rule.manager for key in workloads)
        findings = [
            Finding(status="found", collector=source, subject=manager, text=f"workloads: {count}")
            for manager, count in sorted(counts.items())
        ]
        for key in workloads:
            if self.match(key).rule.manager in _WITH_FILES:
                self.workload(key)
        for purpose, path in sorted(self._files.denied.items()):
            text = f"{purpose}: permission denied; the identifiers are shown instead"
            cure = _CURES.get(purpose, _CURE)
            findings.append(Finding(status="denied", collector=source, subject=path, text=text, cure=cure))
        for purpose, path in sorted(self._files.missing.items()):
            if purpose not in self._files.denied:
                text = f"{purpose}: not there; the identifiers are shown instead"
                cure = f"in a container: mount {path} read-only; in a systemd unit: InaccessiblePaths= without it"
                findings.append(Finding(status="absent", collector=source, subject=path, text=text, cure=cure))
        return findings

    def _named(self, key: str) -> Workload:
        rule, groups = self.match(key)
        uid = groups.get("uid") or user_of(key)
        name, fields, image = _NAMERS[rule.kind](self, key, groups, uid)
        if user := self._files.user(uid) if uid else "":
            fields["user"] = user
        server = _server((name, image, *fields.values()))
        labels: dict[str, Any] = {label: label_text(text) for label, text in fields.items()}
        return Workload(kind=rule.kind, workload=label_text(name), server=server, **labels)

    def _pod(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        pod_uid = groups["pod_uid"].replace("_", "-")
        pod = self._files.pod(pod_uid)
        if pod is None:
            return pod_uid, {}, ""
        return f"{pod.namespace}/{pod.pod}", {"namespace": pod.namespace, "pod": pod.pod}, ""

    def _container(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        manager = self.match(key).rule.manager
        if "id" not in groups:
            name = unescape(groups["name"]) if manager in ("systemd", "libvirt") else groups["name"]
            return name, {"container": name}, ""
        identifier = groups["id"]
        short = identifier[:SHORT_ID]
        if "pod_uid" in groups:
            pod_uid = groups["pod_uid"].replace("_", "-")
            pod = self._files.pod_container(identifier) or self._files.pod(pod_uid) or Pod("", "")
            container = pod.container or short
            owner = f"{pod.namespace}/{pod.pod}" if pod.pod else pod_uid
            fields = {"namespace": pod.namespace, "pod": pod.pod, "container": container}
            return f"{owner}/{container}", fields, ""
        found = self._files.container(manager, identifier, uid) or Container(short)
        return found.name, {"container": found.name}, found.image

    def _slurm_job(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        job = groups.get("job") or self._files.slurm_job(self._members(key)) or groups["sluid"]
        if step := groups.get("step"):
            return f"{job}.{step}", {"job": job, "step": step}, ""
        return job, {"job": job}, ""

    def _vm(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        # Only the name that machined gets is escaped.
        return unescape(groups["vm"]) if key.endswith(".scope") else groups["vm"], {}, ""

    def _unit(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        unit = groups["unit"]
        # Several users may have units of one name.
        return f"user-{uid}/{unit}" if "/user@" in f"/{key}" else unit, {"unit": unit}, ""

    def _session(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        return groups["unit"], {"unit": groups["unit"]}, ""

    def _other(self, key: str, groups: Mapping[str, str], uid: str) -> _Named:
        return key, {}, ""


_Named = tuple[str, dict[str, str], str]
"""The name, the other labels, and the image."""

_NAMERS: Final[Mapping[str, Callable[[Names, str, Mapping[str, str], str], _Named]]] = {
    "pod": Names._pod,
    "container": Names._container,
    "slurm_job": Names._slurm_job,
    "vm": Names._vm,
    "unit": Names._unit,
    "session": Names._session,
    "other": Names._other,
}


def _server(texts: Iterable[str]) -> str:
    """Return the inference server that one of the names contains; empty if none does."""
    text = "\n".join(texts).replace("_", "-")
    return next((server for server, pattern in SERVERS if pattern.search(text)), "")
