"""What a scenario says of an emulated Redfish service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal

from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.signals import Signal

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
"""hang: accepts connections and answers nothing; vanish: its port is closed; reset: its energy starts again at 0 and it
forgets its sessions; glitch: readings are null; busy: HTTP 503; broken: answers are no JSON; zero: 0 W; garbage:
readings are 4294967295; denied: no login is good; expired: it forgets its sessions once; stuck: values stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishSpec:
    """One Redfish service."""

    name: str
    """The node's name: ``NAME/total`` is the key of the truth."""
    signal: Signal
    """Power of the whole node."""
    user: str = "monitor"
    """Who may log in."""
    password: str = field(default="emulated", repr=False)
    """It is no secret: everybody may read an emulated service."""
    address: str = "127.0.0.1"
    """IP address to listen on; the certificate is made for it."""
    port: int = 0
    """TCP port; 0: any free one."""
    flavour: Flavour = "both"
    """``classic``: Power; ``modern``: EnvironmentMetrics and Sensors."""
    chassis: tuple[str, ...] = ("1",)
    """Ids of its chassis. Several share the node's power equally, and each is a device ``NAME/ID`` then."""
    energy: EnergyUnit = "both"
    """Counters of energy in EnvironmentMetrics."""
    energy_start_joules: float = 4.4e9
    """Where the counters are at the start."""
    energy_digits: int = 3
    """Decimals of kilowatt hours: 3 is a step of 3600 J. Joules are whole ones."""
    has_lifetime: bool = False
    """Whether there is a second count that a reset leaves alone."""
    power_digits: int = 0
    """Decimals of watts."""
    supplies: tuple[float, ...] = (0.5, 0.5)
    """Power supplies, each with its share of the power."""
    supply_efficiency: float = 0.94
    """Output of a power supply for each watt of its input."""
    cpu_share: float = 0.0
    """Above 0: a second member of PowerControl, the CPUs' share of the power."""
    refresh_s: float = 2.0
    """How often it makes new values."""
    max_sessions: int = 4
    """More logins are refused."""
    session_timeout_s: float = 300.0
    """A session that is not used for so long is forgotten."""
    faults: tuple[Fault, ...] = ()
    """Of the kinds in `REDFISH_FAULTS`."""

    def __post_init__(self) -> None:
        """Check what must hold.

        Raises:
            ValueError: A value is out of its range or unknown.
        """
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name: {self.name!r} must be a word")
        if not self.user or ":" in self.user:
            raise ValueError(f"user: {self.user!r} must be a word without a colon")
        if not self.password:
            raise ValueError("password: must not be empty")
        try:
            ip_address(self.address)
        except ValueError:
            raise ValueError(f"address: {self.address!r} is no IP address") from None
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: must be 0 to 65535, not {self.port}")
        if not self.chassis or len(set(self.chassis)) < len(self.chassis):
            raise ValueError("chassis: needs ids that differ")
        for identity in self.chassis:
            if not re.fullmatch(r"[\w.-]+", identity):
                raise ValueError(f"chassis: {identity!r} must be a word")
        if not self.refresh_s > 0:
            raise ValueError(f"refresh_s: must be above 0, not {self.refresh_s:g}")
        for what, digits in (("energy_digits", self.energy_digits), ("power_digits", self.power_digits)):
            if not 0 <= digits <= 6:
                raise ValueError(f"{what}: must be 0 to 6, not {digits}")
        if self.energy_start_joules < 0:
            raise ValueError("energy_start_joules: must not be below 0")
        if any(share < 0 for share in self.supplies) or not 0 < self.supply_efficiency <= 1:
            raise ValueError("supplies: shares must not be below 0, and the efficiency in (0, 1]")
        if self.max_sessions < 1:
            raise ValueError(f"max_sessions: must be at least 1, not {self.max_sessions}")
        if not self.session_timeout_s > 0:
            raise ValueError(f"session_timeout_s: must be above 0, not {self.session_timeout_s:g}")
        for fault in self.faults:
            if fault.kind not in REDFISH_FAULTS:
                raise ValueError(f"faults: {fault.kind} is none of {', '.join(REDFISH_FAULTS)}")

    @property
    def key(self) -> str:
        """``device/domain`` in the truth."""
        return f"{self.name}/total"
