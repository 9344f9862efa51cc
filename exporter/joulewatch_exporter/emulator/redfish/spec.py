"""The description of an emulated Redfish service in a scenario."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.faults import Fault, check_faults
from joulewatch_exporter.emulator.signals import Signal, Sum

Flavour = Literal["modern", "classic", "both"]
EnergyUnit = Literal["joules", "kwh", "both", "none"]

REDFISH_FAULTS: Final = (
    "hang",
    "vanish",
    "reset",
    "glitch",
    "busy",
    "broken",
    "zero",
    "garbage",
    "denied",
    "expired",
    "stuck",
)
"""hang: connections are accepted and not answered; vanish: the port is closed; reset: energy restarts at 0 and the
sessions are lost; glitch: readings are null; busy: HTTP 503; broken: answers are not JSON; zero: 0 W; garbage: readings
are 4294967295; denied: every login is rejected; expired: the sessions are lost; stuck: values do not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishSpec:
    """A Redfish service."""

    name: str
    """Name of the node; ``NAME/total`` is its key in the truth."""
    signal: Signal
    """Power of the whole node."""
    user: str = "monitor"
    """The user who may log in."""
    password: str = field(default="emulated", repr=False)
    """Password of the user; it is not a secret."""
    address: str = "127.0.0.1"
    """IP address to listen on, for which the certificate is valid."""
    port: int = 0
    """TCP port; 0: any free one."""
    flavour: Flavour = "both"
    """Resources: ``classic`` has Power; ``modern`` has EnvironmentMetrics and Sensors; ``both`` has all."""
    chassis: tuple[str, ...] = ("1",)
    """Ids of its chassis. Several share the power of the node equally, and each is a device ``NAME/ID``."""
    energy: EnergyUnit = "both"
    """Units of the energy counters in EnvironmentMetrics."""
    energy_start_joules: float = 4.4e9
    """Start of the counters."""
    energy_digits: int = 3
    """Decimals of kilowatt hours: 3 is a step of 3600 J. Joules are whole numbers."""
    has_lifetime: bool = False
    """Whether there is a second counter that is not reset."""
    power_digits: int = 0
    """Decimals of watts."""
    supplies: tuple[float, ...] = (0.5, 0.5)
    """Share of the power of each power supply."""
    supply_efficiency: float = 0.94
    """Output power of a power supply divided by its input power."""
    feeds: tuple[float, ...] = ()
    """Share of the power of each feed of the server, which is a member of PowerControl; empty: one member."""
    cpu_share: float = 0.0
    """Above 0: a second member of PowerControl, with this share of the power."""
    refresh_s: float = 2.0
    """Time between two values."""
    max_sessions: int = 4
    """Further logins are rejected."""
    session_timeout_s: float = 300.0
    """A session without requests for this long is removed."""
    faults: tuple[Fault, ...] = ()
    """Faults of the kinds in `REDFISH_FAULTS`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name: {self.name!r} must consist of letters, digits, '.', '_' and '-'")
        if not self.user or ":" in self.user:
            raise ValueError(f"user: {self.user!r} must be a word without a colon")
        if not self.password:
            raise ValueError("password: must not be empty")
        try:
            ip_address(self.address)
        except ValueError:
            raise ValueError(f"address: {self.address!r} is not a valid IP address") from None
        check_range("port", self.port, 0, 65535)
        if not self.chassis or len(set(self.chassis)) < len(self.chassis):
            raise ValueError("chassis: needs at least one id, and all different")
        for identity in self.chassis:
            if not re.fullmatch(r"[\w.-]+", identity):
                raise ValueError(f"chassis: {identity!r} must consist of letters, digits, '.', '_' and '-'")
        if not self.refresh_s > 0:
            raise ValueError(f"refresh_s: must be above 0, not {self.refresh_s:g}")
        check_range("energy_digits", self.energy_digits, 0, 6)
        check_range("power_digits", self.power_digits, 0, 6)
        check_range("energy_start_joules", self.energy_start_joules, 0.0)
        if self.feeds and (min(self.feeds) < 0 or abs(sum(self.feeds) - 1.0) > 1e-9):
            raise ValueError("feeds: shares must not be negative, and their sum must be 1")
        if any(share < 0 for share in self.supplies):
            raise ValueError("supplies: shares must not be negative")
        if not 0 < self.supply_efficiency <= 1:
            raise ValueError(f"supply_efficiency: must be above 0 and at most 1, not {self.supply_efficiency:g}")
        check_range("max_sessions", self.max_sessions, 1)
        if not self.session_timeout_s > 0:
            raise ValueError(f"session_timeout_s: must be above 0, not {self.session_timeout_s:g}")
        check_faults(self.faults, REDFISH_FAULTS)

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signals by ``device/domain``: each chassis, and in the resource Power its supplies and sub-totals."""
        count = len(self.chassis)
        truth: dict[str, Signal] = {}
        for device in [self.name] if count == 1 else [f"{self.name}/{chassis}" for chassis in self.chassis]:
            truth[f"{device}/total"] = self.signal if count == 1 else Sum((self.signal,), (1 / count,))
            if self.flavour == "modern":
                continue
            for index, share in enumerate(self.supplies):
                truth[f"{device}/psu{index}_input"] = Sum((self.signal,), (share / count,))
                truth[f"{device}/psu{index}_output"] = Sum((self.signal,), (share / count * self.supply_efficiency,))
            if self.cpu_share > 0:
                truth[f"{device}/cpu_sub_system_power"] = Sum((self.signal,), (self.cpu_share / count,))
        return truth
