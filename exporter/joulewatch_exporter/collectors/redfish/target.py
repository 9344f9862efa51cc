"""What can be set for the Redfish family: the services that are read, and how each is logged in to and trusted."""

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
    """One Redfish service: a BMC, or the manager of a chassis."""

    name: str
    """The label ``device`` of its series; anything without white space and slashes."""
    url: str
    """``https://host`` or ``https://host:port``."""
    user: str = ""
    """Needs no more than the role ReadOnly. Empty: no login."""
    password_file: Path | None = None
    """File that holds the password and nothing else; read at each login."""
    auth: Auth = "session"
    """How to log in. A service that offers no sessions gets ``basic``."""
    ca_file: Path | None = None
    """Certificate, or certificates, that the service's own is checked with."""
    fingerprint: str = ""
    """SHA-256 of the service's certificate in hexadecimal: this very one is trusted and no other."""
    insecure: bool = False
    """True: any certificate, and ``http://``, are taken: anybody in between can read the password and change values."""
    chassis: str = ""
    """Id of the chassis that is the node; empty: all that have a power of their own."""
    power_control: str = ""
    """MemberId or Name of the member of ``PowerControl`` that is the node, or Id or Name of the sensor where there is
    no ``Power``; empty: the first whose name speaks of the system, else the first."""
    energy: bool = True
    """False: counters of energy are left alone and the power is integrated (counters with steps of 0.1 kWh)."""
    parts: bool = True
    """Also power supplies and sub-totals; costs at most one request more."""
    this_machine: bool = False
    """True: it is the BMC of the very machine that the exporter runs on, so that its power is compared with that of
    this machine's CPUs and GPUs."""
    reading_time: bool = True
    """Use the sensors' own time stamps where they come at no cost; False where a service's are wrong."""
    interval_seconds: float | None = None
    """Instead of the family's ``interval_seconds``."""

    def __post_init__(self) -> None:
        """Check the values; nothing of the URL is shown that could be a password.

        Raises:
            ValueError: One is wrong; the text begins with its key.
        """
        if not re.fullmatch(r"[^\s/\x00-\x1f]+", self.name):
            raise ValueError(f"name: {self.name!r} must be a word without white space and slashes")
        self._check_url()
        if self.user and self.password_file is None:
            raise ValueError(f"password_file: is needed for user {self.user}")
        if not self.user and self.password_file is not None:
            raise ValueError("user: is needed beside password_file")
        trusts = [bool(self.ca_file), bool(self.fingerprint), self.insecure]
        if sum(trusts) > 1:
            raise ValueError("ca_file, fingerprint and insecure: only one of them")
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
            raise ValueError("url: must not hold a user or password; set user and password_file")
        if parts.path.rstrip("/") not in ("", "/redfish", "/redfish/v1") or parts.query or parts.fragment:
            raise ValueError("url: must end after host and port; all paths are found by links")
        if parts.scheme == "http" and not self.insecure:
            raise ValueError(
                "url: http:// sends the password in the clear; use https://, or allow it by insecure: true"
            )

    @property
    def pin(self) -> str:
        """The fingerprint as bare hexadecimal digits; empty: none is pinned."""
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
    """Further services, in a file that may change while we run."""
    interval_seconds: float = 10.0
    """From one read of a service to the next. BMCs are slow and refresh their values every 1 to 10 s."""
    deadline_seconds: float = 10.0
    """A service that needs longer for one round of requests has timed out."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One is out of its range; the text begins with its key.
        """
        _check_interval(self.interval_seconds)
        if not 1.0 <= self.deadline_seconds <= 600.0:
            raise ValueError(f"deadline_seconds: {self.deadline_seconds:g} is not between 1 and 600")


def _check_interval(interval_s: float | None) -> None:
    if interval_s is not None and not 1.0 <= interval_s <= 3600.0:
        raise ValueError(f"interval_seconds: {interval_s:g} is not between 1 and 3600")
