"""Settings of the Redfish family: its services, logins and trusted certificates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Auth = Literal["session", "basic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishTarget:
    """A Redfish service: a BMC or the manager of a chassis."""

    name: str
    """Label ``device`` of its series; no white space, no slashes."""
    url: str
    """``https://host`` or ``https://host:port``."""
    user: str = ""
    """The role ReadOnly is enough. Empty: no login."""
    password_file: Path | None = None
    """File that contains only the password; read at each login."""
    auth: Auth = "session"
    """How to log in. Services without sessions always use ``basic``."""
    ca_file: Path | None = None
    """File with the certificates that verify the service's certificate."""
    fingerprint: str = ""
    """SHA-256 of the service's certificate in hexadecimal; only this certificate is trusted."""
    insecure: bool = False
    """True: accept any certificate and ``http://``. Attackers can then read the password and change values."""
    chassis: str = ""
    """Id of the chassis to read; empty: all chassis that report their power."""
    power_control: str = ""
    """MemberId or Name of the member of ``PowerControl`` that is the node, or Id or Name of the sensor if there is no
    ``Power``; empty: detect the node, its feeds, and the servers of an enclosure (`controls`)."""
    energy: bool = True
    """False: ignore energy counters and integrate the power; useful for counters with steps of 0.1 kWh."""
    parts: bool = True
    """Whether to publish power supplies, sub-totals and inner chassis; costs a request for each of their resources."""
    this_machine: bool = False
    """Whether this is the BMC of the exporter's machine: then its power is compared with the machine's CPUs and
    GPUs."""
    reading_time: bool = True
    """Whether to use the sensors' timestamps, if they cost no extra request; set to False if they are wrong."""
    interval_seconds: float | None = None
    """Overrides the family's ``interval_seconds``."""

    def __post_init__(self) -> None:
        """Check the values; errors never show a password in the URL.

        Raises:
            ValueError: A value is invalid; the text begins with the key.
        """
        if not re.fullmatch(r"[^\s/\x00-\x1f]+", self.name):
            raise ValueError(f"name: {self.name!r} must not be empty or contain white space or slashes")
        self._check_url()
        if self.user and self.password_file is None:
            raise ValueError(f"password_file: required for user {self.user}")
        if not self.user and self.password_file is not None:
            raise ValueError("user: required with password_file")
        trusts = [bool(self.ca_file), bool(self.fingerprint), self.insecure]
        if sum(trusts) > 1:
            raise ValueError("ca_file, fingerprint and insecure: set only one of them")
        if self.fingerprint and not re.fullmatch(r"[0-9a-f]{64}", self.pin):
            raise ValueError("fingerprint: must be a SHA-256, 64 hexadecimal digits with or without colons")
        _check_interval(self.interval_seconds)

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host, parts = None, urlsplit("")
        if parts.scheme not in ("https", "http") or not host:
            raise ValueError("url: must be https://HOST or https://HOST:PORT")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url: must not contain a user or password; set user and password_file")
        if parts.path.rstrip("/") not in ("", "/redfish", "/redfish/v1") or parts.query or parts.fragment:
            raise ValueError("url: must end after host and port; paths are found by following links")
        if parts.scheme == "http" and not self.insecure:
            raise ValueError(
                "url: http:// sends the password unencrypted; use https://, or set insecure: true to allow it"
            )

    @property
    def pin(self) -> str:
        """The fingerprint as hexadecimal digits only; empty: no pinned certificate."""
        return re.sub(r"[:\s]", "", self.fingerprint).lower().removeprefix("sha256")

    @property
    def base(self) -> str:
        """The URL up to the port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishOptions:
    """Settings under ``collectors.redfish``."""

    targets: Sequence[RedfishTarget] = ()
    """The services to read."""
    targets_file: Path | None = None
    """File with more services, which may change while the exporter runs."""
    interval_seconds: float = 10.0
    """Time between two reads of a service. BMCs are slow and update their values every 1 to 10 s."""
    deadline_seconds: float = 10.0
    """Deadline of all requests of one poll."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of range; the text begins with the key.
        """
        _check_interval(self.interval_seconds)
        if not 1.0 <= self.deadline_seconds <= 600.0:
            raise ValueError(f"deadline_seconds: {self.deadline_seconds:g} is not between 1 and 600")


def _check_interval(interval_s: float | None) -> None:
    if interval_s is not None and not 1.0 <= interval_s <= 3600.0:
        raise ValueError(f"interval_seconds: {interval_s:g} is not between 1 and 3600")
