"""What ``/metrics`` shows of the names of workloads: all, digests, or nothing.

A digest is keyed, so that nobody without the key can try out names, and the same name has the same digest after a
restart. The key is a file of 32 random bytes in the state folder of the service, which only the exporter may read.
Without such a folder it is derived from the machine's identifier, which the users of the machine can read: then a user
who knows a name can compute its digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from joulewatch_exporter.attribution.model import Workload
from joulewatch_exporter.attribution.names import user_of
from joulewatch_exporter.attribution.state_folder import state_path
from joulewatch_exporter.model import Host

logger = logging.getLogger(__name__)

KEY_NAME: Final = "workload-names.key"
_KEY_BYTES: Final = 32
_DIGITS: Final = 12
_PURPOSE: Final = b"joulewatch names of workloads"
_FIRST_USER: Final = 1000
_NOBODY: Final = 65534
_HASHED: Final = ("workload", "namespace", "pod", "container", "unit", "job", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class NameOptions:
    """Settings of the section ``attribution`` that all sources with cgroups have."""

    depth: Literal["workload", "container"] = "workload"
    """Whether containers of pods and steps of jobs are workloads as well."""
    workload_names: Literal["plain", "hash", "auto"] = "auto"
    """hash: all names are digests; auto: those of users' sessions and units are, from when the machine has had the
    slices of two users."""
    allow: tuple[str, ...] = ()
    """Patterns of the names or paths that may be shown; none: all."""
    deny: tuple[str, ...] = ()
    """Patterns of those that may not."""


class Privacy:
    """Decides for each workload whether it is shown, and with which names."""

    def __init__(self, options: NameOptions, load_key: Callable[[], tuple[bytes, str]]) -> None:
        """Use these settings.

        Args:
            options: What may be shown.
            load_key: Returns the key of the digests and the folder that is missing for a secret one, as `digest_key`.
                Called before the first digest.
        """
        self._names = options.workload_names
        self._allow = options.allow
        self._deny = options.deny
        self._load_key = cache(load_key)
        self._users: set[str] = set()

    @property
    def has_patterns(self) -> bool:
        """Whether some workloads may not be shown."""
        return bool(self._allow or self._deny)

    @property
    def hashes(self) -> bool:
        """Whether there are digests now."""
        return self._names == "hash" or (self._names == "auto" and len(self._users) > 1)

    @property
    def missing_folder(self) -> str:
        """The folder that is missing for a secret key of the digests; empty if the key is secret or not needed."""
        return self._load_key()[1] if self.hashes else ""

    def note(self, keys: Iterable[str]) -> None:
        """Take note of the users on the machine.

        Args:
            keys: Paths of the living cgroups.
        """
        if self._names == "auto" and len(self._users) < 2:
            users = {user_of(key) for key in keys} - {""}
            self._users |= {user for user in users if int(user) >= _FIRST_USER and int(user) != _NOBODY}

    def may_show(self, key: str, workload: Workload) -> bool:
        """Return whether a workload may have series; if not, its use counts as that of its parent.

        Args:
            key: Its path.
            workload: Its plain names.
        """
        texts = (workload.workload, key)
        if any(fnmatchcase(text, pattern) for pattern in self._deny for text in texts):
            return False
        return not self._allow or any(fnmatchcase(text, pattern) for pattern in self._allow for text in texts)

    def shown(self, key: str, workload: Workload) -> Workload:
        """Return the names to show.

        Args:
            key: The path of the workload.
            workload: Its plain names.
        """
        if not self.hashes:
            return workload
        # The name of a job does not contain its user.
        names = _HASHED if self._names == "hash" or user_of(key) else ("user",)
        hidden: dict[str, Any] = {name: self._digest(text) for name in names if (text := getattr(workload, name))}
        return dataclasses.replace(workload, **hidden)

    def _digest(self, text: str) -> str:
        digest = hmac.new(self._load_key()[0], text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"anon-{digest.hexdigest()[:_DIGITS]}"


def digest_key(environment: Mapping[str, str], host: Host) -> tuple[bytes, str]:
    """Return the key of the digests, and the folder that is missing for a secret one (empty: there is one).

    Args:
        environment: ``STATE_DIRECTORY`` is the state folder that systemd made.
        host: The machine; its ``etc`` is next to its procfs.
    """
    folder = state_path(environment)
    path = folder / KEY_NAME
    try:
        if not path.exists():
            _create(path)
        key = bytes.fromhex(path.read_text("ascii"))
        if len(key) == _KEY_BYTES:
            return key, ""
        logger.warning("%s: not a key of %d bytes; remove it, and a new one is made", path, _KEY_BYTES)
    except (OSError, ValueError) as error:
        logger.debug("%s: %s", path, error)
    machine = b""
    with contextlib.suppress(OSError):
        machine = Path(host.procfs.parent, "etc/machine-id").read_bytes().strip()
    return hmac.new(machine or _process_key(), _PURPOSE, hashlib.sha256).digest(), str(folder)


@cache
def _process_key() -> bytes:
    """Return a key that all sources of this process share, and no other process has."""
    return secrets.token_bytes(_KEY_BYTES)


def _create(path: Path) -> None:
    """Make a key in one step: of two exporters that start at once, the first one's stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(_KEY_BYTES)}\n")
        with contextlib.suppress(PermissionError):
            # `check` may be run by root before the service, which must be able to read it.
            owner = path.parent.stat()
            os.chown(temporary, owner.st_uid, owner.st_gid)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
