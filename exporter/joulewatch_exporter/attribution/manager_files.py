"""Files in which the managers of workloads keep their names: kubelet, Docker, Podman, CRI-O, Slurm, passwd.

Only files of this machine are read, and only when a name is needed. No API server, no socket of an engine and no
directory service is asked. A file that may not be read is noted in `Files.denied`.

Sources: Kubernetes ``pkg/kubelet/kuberuntime`` (``/var/log/pods/NAMESPACE_POD_UID/CONTAINER`` and the links
``/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`` to it); Docker ``config.v2.json`` and ``daemon.json``;
containers/storage ``containers.json`` and ``volatile-containers.json``; passwd(5); proc(5).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

_STORED: Final = "names of Podman's and CRI-O's containers"
_PLACES: Final = {
    "kubernetes": ("names of pods", "/var/log/pods"),
    "docker": ("names of Docker's containers", "/var/lib/docker"),
    "podman": (_STORED, "/var/lib/containers/storage"),
    "cri-o": (_STORED, "/var/lib/containers/storage"),
}
"""Manager -> what is read, and where it is on most machines."""
_JOBS: Final = "numbers of Slurm's jobs"
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_FILE_BYTES: Final = 4 << 20
_MOST_MEMBERS: Final = 256
"""Processes of one job that are searched for its number."""
_STEPD: Final = re.compile(rb"slurmstepd: \[(\d+)\.")
_JOB: Final = re.compile(rb"(?:^|\0)SLURM_JOB_ID=(\d+)(?:\0|$)")
_POD_FOLDER: Final = re.compile(r"(?P<namespace>[^_/]+)_(?P<pod>[^_/]+)_(?P<uid>[0-9a-f-]+)")
_LOG_LINK: Final = re.compile(r"[^_]+_[^_]+_(?P<container>.+)-(?P<id>[0-9a-f]{64})\.log")


class Pod(NamedTuple):
    """Names of a pod, and of one of its containers."""

    namespace: str
    pod: str
    container: str = ""


class Container(NamedTuple):
    """Names of a container, and of the image that it was made from."""

    name: str
    image: str = ""


class Files:
    """The files of one machine."""

    def __init__(self, root: str, procfs: str) -> None:
        """Read nothing yet.

        Args:
            root: Folder that has the machine's ``var`` and ``etc``; empty for ``/``.
            procfs: Where procfs is.
        """
        self._root = root
        self._procfs = procfs
        self.denied: dict[str, str] = {}
        """What could not be learned -> one of the files that may not be read."""
        self.missing: dict[str, str] = {}
        """What could not be learned -> where it was looked up: hidden from a service, or not mounted in a container."""
        self._changed_ns: dict[str, int] = {}
        self._pods: dict[str, Pod] = {}
        self._links: dict[str, tuple[str, Pod]] = {}
        self._stored: dict[str, dict[str, Container]] = {}
        self._passwd: dict[str, tuple[str, str]] | None = None

    # Kubernetes

    def pod(self, uid: str) -> Pod | None:
        """Return the names of a pod; None if the kubelet's folders do not have it."""
        if uid not in self._pods:
            self._list_pods()
        if uid in self._pods:
            return self._pods[uid]
        self._list_links()
        pod = next((pod._replace(container="") for pod_uid, pod in self._links.values() if pod_uid == uid), None)
        if pod is None:
            self._miss("kubernetes")
        return pod

    def pod_container(self, identifier: str) -> Pod | None:
        """Return the names of a container of a pod, by the container's identifier."""
        if identifier not in self._links:
            self._list_links()
        found = self._links.get(identifier)
        return None if found is None else found[1]

    def _list_pods(self) -> None:
        folder = f"{self._root}/var/log/pods"
        if (names := self._changed_names(folder, "names of pods")) is not None:
            matches = (match for name in names if (match := _POD_FOLDER.fullmatch(name)) is not None)
            self._pods = {match["uid"]: Pod(match["namespace"], match["pod"]) for match in matches}

    def _list_links(self) -> None:
        folder = f"{self._root}/var/log/containers"
        if (names := self._changed_names(folder, "names of the containers of pods")) is None:
            return
        self._links = {}
        for name in names:
            link = _LOG_LINK.fullmatch(name)
            with contextlib.suppress(OSError):
                pod = None if link is None else _POD_FOLDER.search(os.readlink(f"{folder}/{name}"))  # noqa: PTH115
                if link is not None and pod is not None:
                    names_of_pod = Pod(pod["namespace"], pod["pod"], link["container"])
                    self._links[link["id"]] = (pod["uid"], names_of_pod)

    # Container engines

    def container(self, manager: str, identifier: str, uid: str = "") -> Container | None:
        """Return the names of a container; None if no engine's file has it.

        Args:
            manager: Whose it is; another one than Docker, Podman and CRI-O: it may be any engine's.
            identifier: All 64 digits.
            uid: The user that runs it without root; empty: root.
        """
        container = None if manager == "docker" else self._stored_name(identifier, uid)
        if container is None and manager not in ("podman", "cri-o"):
            container = self._docker(identifier, uid)
        if container is None and manager in _PLACES:
            self._miss(manager)
        return container

    def _miss(self, manager: str) -> None:
        purpose, folder = _PLACES[manager]
        self.missing.setdefault(purpose, f"{self._root}{folder}")

    def _docker(self, identifier: str, uid: str) -> Container | None:
        for folder in self._docker_folders(uid):
            data = self._json(f"{folder}/containers/{identifier}/config.v2.json", "names of Docker's containers")
            if isinstance(data, dict) and isinstance(data.get("Name"), str):
                config = data.get("Config")
                image = config.get("Image") if isinstance(config, dict) else ""
                return Container(data["Name"].lstrip("/"), image if isinstance(image, str) else "")
        return None

    def _docker_folders(self, uid: str) -> Iterator[str]:
        if uid:
            yield f"{self._home(uid)}/.local/share/docker"
            return
        data = self._json(f"{self._root}/etc/docker/daemon.json", "")
        other = data.get("data-root") if isinstance(data, dict) else None
        if isinstance(other, str) and other.startswith("/"):
            yield f"{self._root}{other}"
        yield f"{self._root}/var/lib/docker"

    def _stored_name(self, identifier: str, uid: str) -> Container | None:
        storage = f"{self._home(uid)}/.local/share/containers/storage" if uid else "/var/lib/containers/storage"
        folder = f"{storage if uid else self._root + storage}/overlay-containers"
        for name in ("containers.json", "volatile-containers.json"):
            path = f"{folder}/{name}"
            known = self._stored.setdefault(path, {})
            if identifier not in known and self._has_changed(path):
                data = self._json(path, _STORED)
                known = self._stored[path] = dict(_stored(data if isinstance(data, list) else ()))
            if identifier in known:
                return known[identifier]
        return None

    # Slurm

    def slurm_job(self, members: Iterable[tuple[str, int]]) -> str:
        """Return the number of a job from its processes; empty if none of them may be read.

        Args:
            members: Folder and identifier of each process. The title of ``slurmstepd``, which is in a folder ``slurm``,
                may be read by everybody. The environment of others may be read by the same user and with
                CAP_SYS_PTRACE; a user can change it.
        """
        rows = list(islice(members, _MOST_MEMBERS))
        if rows and not any(os.path.exists(f"{self._procfs}/{pid}") for _, pid in rows):  # noqa: PTH110
            # procfs hides the processes of others, as ProtectProc=invisible does.
            self.denied.setdefault(_JOBS, f"{self._procfs}/{rows[0][1]}")
        for folder, pid in rows:
            if folder.endswith("/slurm") and (match := _STEPD.match(self._process(pid, "cmdline"))) is not None:
                return match[1].decode()
        for _, pid in rows:
            if (match := _JOB.search(self._process(pid, "environ"))) is not None:
                return match[1].decode()
        return ""

    def _process(self, pid: int, name: str) -> bytes:
        return self._bytes(f"{self._procfs}/{pid}/{name}", _JOBS)

    # Users

    def user(self, uid: str) -> str:
        """Return the name of a user; empty if ``/etc/passwd`` does not have it."""
        return self._user(uid)[0]

    def _home(self, uid: str) -> str:
        return self._root + (self._user(uid)[1] or f"/home/{uid}")

    def _user(self, uid: str) -> tuple[str, str]:
        if self._passwd is None:
            text = self._bytes(f"{self._root}/etc/passwd", "").decode("utf-8", "replace")
            rows = (line.split(":") for line in text.splitlines())
            self._passwd = {row[2]: (row[0], row[5]) for row in rows if len(row) > 5}
        return self._passwd.get(uid, ("", ""))

    # Reading

    def _changed_names(self, folder: str, purpose: str) -> Collection[str] | None:
        """Return the names in a folder; None if it is as it was at the last call, or cannot be read."""
        if not self._has_changed(folder):
            return None
        try:
            return os.listdir(folder)  # noqa: PTH208
        except OSError as error:
            self._note(folder, purpose, error)
            return None

    def _has_changed(self, path: str) -> bool:
        try:
            changed_ns = os.stat(path).st_mtime_ns  # noqa: PTH116
        except OSError:
            changed_ns = -1  # missing; if it is denied, the read that follows notes it
        was, self._changed_ns[path] = self._changed_ns.get(path), changed_ns
        return changed_ns != was

    def _json(self, path: str, purpose: str) -> Any:
        data = self._bytes(path, purpose)
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(data)
        return None

    def _bytes(self, path: str, purpose: str) -> bytes:
        try:
            with open(os.open(path, _FLAGS), "rb") as file:
                # A user chooses what is in the home folder: a pipe must not stop the reader.
                return file.read(_FILE_BYTES) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
        except OSError as error:
            self._note(path, purpose, error)
            return b""

    def _note(self, path: str, purpose: str, error: OSError) -> None:
        if purpose and error.errno in (errno.EACCES, errno.EPERM):
            self.denied.setdefault(purpose, path)


def _stored(rows: Iterable[Any]) -> Iterator[tuple[str, Container]]:
    """Yield identifier and names of each container in a file of containers/storage."""
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            names = row.get("names")
            name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
            image = ""
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                metadata = json.loads(row.get("metadata") or "{}")
                image = metadata.get("image-name", "") if isinstance(metadata, dict) else ""
            if name:
                yield row["id"], Container(name, image if isinstance(image, str) else "")
