"""Notifications to systemd: the protocol of sd_notify(3), datagrams on a Unix socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """The service manager that started this process, if one did."""

    address: str = ""
    """Of its socket; empty: no service manager waits for notifications."""
    period_s: float | None = None
    """Half of the watchdog's time-out, as sd_watchdog_enabled(3) recommends; None: no watchdog."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        timeout_us = environment.get("WATCHDOG_USEC", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if not (is_for_us and timeout_us.isdecimal() and int(timeout_us) > 0):
            return cls(address)
        return cls(address, int(timeout_us) / 2e6)

    @property
    def is_present(self) -> bool:
        return bool(self.address)

    def send(self, state: str) -> None:
        """Send one notification, such as ``READY=1``; do nothing without a service manager."""
        if not self.address:
            return
        # "@" stands for the null byte of an abstract address.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                # A full queue must not stop the exporter.
                connection.settimeout(1.0)
                connection.sendto(state.encode(), address)
        except OSError as error:
            logger.warning("cannot send %s to the service manager at %s: %s", state, self.address, error)
