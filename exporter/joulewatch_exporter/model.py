"""Types that collectors and the daemon share: host, quantity, reading, sensor, collector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

from joulewatch_exporter.text import label_text

Scope = Literal["node", "device", "part"]
"""node: the whole server; device: devices are disjoint and may be summed; part: inside a device, never added to it."""

Component = Literal["cpu", "memory", "gpu", "fpga", "node", "other"]

Method = Literal["counter", "integrated", "estimated", "emulated"]

ReadMode = Literal["on_request", "polled", "remote"]
"""How the values of a scrape are read. on_request: from the device, after the scrape arrived; polled: in the
background on this machine, by the exporter or by the device's driver, so perhaps before the scrape arrived; remote: in
the background, from a BMC over the network."""

Relation = Literal["inside", "core", "rail", "same", "contains"]
"""How a part relates to its device, and so how the two can be checked. inside: a share of the device; core: the sum of
all such parts is at most the device; rail: their sum is the device; same: a second measurement of the device; contains:
the device is inside the part, so the two are not compared."""

EMULATION_MARKER = "joulewatch-emulated"
"""A file of this name in the sysfs root marks a tree that the emulator wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Name of the machine and folders with its files; tests use other folders."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    dev: Path = Path("/dev")
    nodename: str = field(default_factory=lambda: os.uname().nodename)
    claimed: frozenset[str] = frozenset()
    """Sources (`SensorInfo.source`) that families opened earlier read: each quantity is published once."""

    @property
    def emulated(self) -> bool:
        """Whether the sysfs tree was written by ``joulewatch-exporter emulate``."""
        return (self.sysfs / EMULATION_MARKER).exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What one series measures; the fields are its labels."""

    scope: Scope
    component: Component
    device: str
    """Stable across reboots: ``socket0``, a PCI address, a GPU UUID, the name of a BMC."""
    domain: str
    """Part of the device: ``package``, ``dram``, ``core``, ``total``, ``12v_pex``."""

    def __post_init__(self) -> None:
        """Make the labels safe, whatever a device reports: see `label_text`."""
        object.__setattr__(self, "device", label_text(self.device))
        object.__setattr__(self, "domain", label_text(self.domain))


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorInfo:
    """How one quantity is measured: the metadata behind ``joulewatch_sensor_info`` and the counter's bounds."""

    quantity: Quantity
    method: Method
    """``counter``: the device counts joules; ``integrated``: it reports watts; ``estimated``: a model computes them.
    The exposition shows ``emulated`` instead if ``Host.emulated``."""
    source: str
    """Path or call that is read."""
    model: str = ""
    """Name of the chip, CPU or power model, for people."""
    resolution: str = ""
    """Smallest step of the sensor with its unit, such as ``15.3 uJ`` or ``1 uW``; empty if unknown."""
    accuracy: float | None = None
    """Relative accuracy (half-width, 0.05 = 5 %); None: unknown."""
    accuracy_source: str = ""
    """Where that accuracy is published, or why it is assumed."""
    wrap_joules: float | None = None
    """Energy at which the counter wraps; None: it does not wrap or its range is unknown, so a fall is a restart."""
    counts_since_open: bool = False
    """Whether the position starts at 0 when the sensor is opened, so that a later process cannot continue it."""
    max_power_watts: float = 1000.0
    """A reading above this is physically impossible and is rejected. It is not a power limit."""
    max_gap_s: float = 4.0
    """Power sensors: the longest gap between readings that is interpolated; three periods of the family if that is
    longer."""
    relation: Relation = "inside"
    """Relation of a part to the device of the same name."""
    window_s: float | None = None
    """Published averaging time: a value is the mean over this part of the refresh period; the rest is not observed."""
    limit_watts: float | None = None
    """Power limit that the device enforces now; a long mean above it is implausible."""
    is_remote: bool = False
    """Whether the sensor belongs to another machine, and so not to the sums of this one."""
    read_mode: ReadMode | None = None
    """How it is read; None: ``remote`` if ``is_remote``, else as its family (`Timing.read_mode`)."""
    period_s: float | None = None
    """Expected time between new values of a node sensor, as configured or published; None: unknown."""

    def host(self, nodename: str) -> str:
        """Return the name of the machine that the sensor belongs to.

        Args:
            nodename: Name of this machine.

        Returns:
            ``nodename``; for a remote sensor the label of its device, which is the name of its target.
        """
        return self.quantity.device if self.is_remote else nodename


class Reading(NamedTuple):
    """One value of one quantity, as read from the device.

    A named tuple, because a scan builds one for each quantity: by keyword that takes 0.38 µs, and 0.63 µs for a frozen
    dataclass.
    """

    quantity: Quantity
    read_at_ns: int
    """``time.monotonic_ns()``, taken next to the read itself."""
    energy_joules: float | None
    """Position of the counter, before wraps are removed; None: the sensor reports power only."""
    power_watts: float | None
    """The power that the sensor itself reports, if it does."""


class Throttled(NamedTuple):
    """For how long a device ran slower than it could, for one reason; reasons may overlap."""

    device: str
    reason: str
    """``power``, ``thermal``, ``reliability``, ..."""
    seconds: float
    """Since the exporter first read it."""


class Sensor(Protocol):
    """One device that can fail independently: a RAPL zone, a hwmon channel, a GPU, a card, a BMC.

    `infos` is fixed for the sensor's lifetime; if a device's quantities change, create a new sensor.
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
            The values read now. A device that is read in the background (`workers.Poller`) returns all values since
            the last call, oldest first. If there are none, it returns the newest value with its original time.

        Raises:
            SensorGlitchError: This read failed; never return an old value instead.
            SensorTimeoutError: The device did not answer in time.
            SensorAbsentError: The device is gone.
            SensorDeniedError: Permission was withdrawn.
            SensorAsleepError: The device is in runtime suspend. Never wake it to read it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of ``check``: a sensor that was found, is missing or denied, why, and how to fix it."""

    status: Literal["found", "absent", "denied", "skipped", "broken"]
    collector: str
    subject: str
    """Path, device or call."""
    text: str
    cure: str = ""
    """The command or setting that fixes it, ready to copy; empty if there is none."""
    device: str = ""
    """Label of the device that is missing or denied, so that its state is published, or that is skipped, so that it is
    not taken for lost; empty if it is not known."""

    def __post_init__(self) -> None:
        """Make the label that of the device's quantities."""
        object.__setattr__(self, "device", label_text(self.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a family is read."""

    poll_s: float
    """Longest time between two reads, scraped or not; at most a quarter of the shortest wrap."""
    read_on_scrape: bool
    """True: reads are cheap, so every scrape reads the devices. False: a scrape shows the last scan. Also True for
    devices that are read in the background, because taking their values is cheap."""
    manages_devices: bool = False
    """True: the family itself probes for lost and new devices, and ``sensors`` may be a new tuple in each scan.
    False: the sampler reopens the family when a device is gone or the family is ``outdated``."""
    has_steps: bool = False
    """True: the energy counters are refreshed every few milliseconds at most and are cheap to read, so that an edge can
    wait for the next refresh of each."""
    reads_in_background: bool = False
    """True: a scan only takes what the family's own threads have read, perhaps before the scan."""

    @property
    def read_mode(self) -> ReadMode:
        """How a sensor is read whose ``SensorInfo`` does not state it."""
        return "on_request" if self.read_on_scrape and not self.reads_in_background else "polled"


class Collector(Protocol):
    """One sensor family on this host: opened once, read by one thread, closed once.

    A family that counts throttled time also has the property ``throttled``: a sequence of `Throttled`, the same object
    until it changes. It is read in every scan, so it must not read a device.

    A family whose devices are better read together also has the method ``prepare``, without arguments. It is called
    when a scan begins, before the sensors are read, must not raise, and must return within a second although a device
    hangs.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    """Frozen dataclass behind ``collectors.<name>`` of the configuration."""

    @property
    def sensors(self) -> Sequence[Sensor]:
        """The devices; the same object for as long as the devices are the same."""
        ...

    @property
    def timing(self) -> Timing: ...

    @property
    def findings(self) -> Sequence[Finding]:
        """What ``check`` shows: one for each sensor that was found, skipped or denied while opening."""
        ...

    @property
    def outdated(self) -> bool:
        """Whether there are new devices since ``open``, so that the family is to be reopened. Read every
        ``rediscover_seconds``, so it must be cheap."""
        ...

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the devices.

        Raises:
            SensorAbsentError: This machine does not have the family; the text names the places that were probed.
            SensorDeniedError: None of its devices may be read; the text holds the path and the fix.
        """
        ...

    def settle(self, timeout_s: float) -> None:
        """Wait until each device has answered or failed once; return at once if devices are read on demand."""
        ...

    def close(self) -> None:
        """Close files and libraries; safe to call twice."""
        ...
