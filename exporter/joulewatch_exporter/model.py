"""The words that collectors and the daemon share: host, quantity, reading, sensor, collector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

Scope = Literal["node", "device", "part"]
"""node: the whole server; device: disjoint, may be added up; part: inside a device, never added to it."""

Component = Literal["cpu", "memory", "gpu", "fpga", "node", "other"]

Method = Literal["counter", "integrated", "estimated", "emulated"]

Relation = Literal["inside", "core", "rail", "same"]
"""What a part is to its device, which says how the two can be checked against each other. inside: some share of it;
core: all parts of this kind together are at most the device; rail: all together are the device; same: the device's own
power once more, by another measurement."""

EMULATION_MARKER = "joulewatch-emulated"
"""A file of this name in the sysfs root says: this tree is made by the emulator, label it so."""


@dataclass(frozen=True, slots=True)
class Host:
    """What differs between the machine and a test: where its files are."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    dev: Path = Path("/dev")
    claimed: frozenset[str] = frozenset()
    """Sources (`SensorInfo.source`) that families opened earlier read already: one series per physical quantity."""

    @property
    def emulated(self) -> bool:
        """Whether the sysfs tree was written by ``joulewatch-exporter emulate``."""
        return (self.sysfs / EMULATION_MARKER).exists()


@dataclass(frozen=True, slots=True)
class Quantity:
    """What one series measures; its fields are the labels."""

    scope: Scope
    component: Component
    device: str
    """Stable over reboots: ``socket0``, a PCI address, a GPU UUID, a BMC's name."""
    domain: str
    """What of the device: ``package``, ``dram``, ``core``, ``total``, ``12v_pex``."""


@dataclass(frozen=True, slots=True)
class SensorInfo:
    """How one quantity is measured: the metadata behind ``joulewatch_sensor_info`` and the counter's bounds."""

    quantity: Quantity
    method: Method
    """``counter``: the device counts joules; ``integrated``: it gives watts; ``estimated``: a model does.
    The exporter replaces it with ``emulated`` where ``Host.emulated``."""
    source: str
    """The path or call that is read."""
    model: str = ""
    """Chip, CPU or power model, for people."""
    resolution: str = ""
    """Smallest step of the sensor with its unit, such as ``15.3 uJ`` or ``1 uW``; empty if unknown."""
    accuracy: float | None = None
    """Published relative accuracy (half-width, 0.05 = 5 %), None where the maker publishes none."""
    wrap_joules: float | None = None
    """The counter goes round here; None: it does not, or its range is unknown, and a fall is a restart."""
    max_power_watts: float = 1000.0
    """Above this a reading is impossible and is rejected. A bound of physics, not a power limit."""
    max_gap_s: float = 4.0
    """Power sensors: the longest spacing over which a straight line between readings is still believed; three of the
    family's periods if that is longer."""
    relation: Relation = "inside"
    """Of a part to the device of the same name; without meaning in other scopes."""
    window_s: float | None = None
    """Published: a value is the mean over so much of each refresh period, and the rest of the period is unseen."""
    limit_watts: float | None = None
    """The limit that the device enforces on itself just now; a mean above it for long is implausible."""
    is_remote: bool = False
    """A sensor of another machine than the exporter's: it has no part in this machine's sums."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of one quantity, taken from the device just now."""

    quantity: Quantity
    read_at_ns: int
    """``time.monotonic_ns()`` taken next to the read itself."""
    energy_joules: float | None
    """The counter's position, its wraps still in it; None: the sensor gives power only."""
    power_watts: float | None
    """The sensor's own momentary value, where it has one."""


class Sensor(Protocol):
    """One device that can fail on its own: a RAPL zone, a hwmon channel, a GPU, a card, a BMC.

    Its infos never change: a device that turns out to have other quantities becomes another sensor.
    """

    @property
    def device(self) -> str: ...

    @property
    def infos(self) -> Sequence[SensorInfo]:
        """One for each quantity that ``read`` can return."""
        ...

    def read(self) -> Sequence[Reading]:
        """Read the device once.

        Returns:
            The values read now. A device that is read in the background (`workers.Poller`) gives all since the last
            call, oldest first, or the newest one again with its own time: an old value never gets a new time.

        Raises:
            SensorGlitchError: this read failed; never return an old value instead.
            SensorTimeoutError: no answer in time.
            SensorAbsentError: the device is gone.
            SensorDeniedError: the rights are gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was found, missing or denied, why, and the cure."""

    status: Literal["found", "absent", "denied", "skipped", "broken"]
    collector: str
    subject: str
    """The path, device or call."""
    text: str
    cure: str = ""
    """The very line a person can type, or empty."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How a family wants to be read."""

    poll_s: float
    """Longest time between two reads, scraped or not: at most a quarter of the shortest wrap."""
    read_on_scrape: bool
    """True: cheap, so every scrape carries values read for it. False: a scrape shows the last scan. Devices that are
    read in the background are True: taking what has been read is cheap."""
    looks_after_itself: bool = False
    """True: ``sensors`` may change between two scans (a new tuple), and lost devices are looked for by the family
    itself. False: the family is opened anew when a device is gone or ``outdated`` says so."""


class Collector(Protocol):
    """One sensor family on this host: opened once, read by one thread, closed once."""

    name: ClassVar[str]
    Options: ClassVar[type]
    """Frozen dataclass behind ``collectors.<name>`` of the configuration."""

    @property
    def sensors(self) -> Sequence[Sensor]:
        """The devices; the very same object as long as they are the same."""
        ...

    @property
    def timing(self) -> Timing: ...

    @property
    def findings(self) -> Sequence[Finding]:
        """What the doctor shows: one for every sensor found, skipped or denied while opening."""
        ...

    @property
    def outdated(self) -> bool:
        """Whether devices have come since ``open``, so that opening the family anew makes sense; looked at every
        ``rediscover_seconds``, must be cheap."""
        ...

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the devices.

        Raises:
            SensorAbsentError: the family is not on this machine (says where it looked).
            SensorDeniedError: nothing of it can be read (path and cure in the text).
        """
        ...

    def settle(self, timeout_s: float) -> None:
        """Wait until each device has answered or failed once; returns at once where reading is on demand."""
        ...

    def close(self) -> None:
        """Let go of files and libraries; safe to call twice."""
        ...
