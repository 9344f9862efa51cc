"""What each device draws without work: configured, measured here, or not known. Pure: no I/O, no clock.

The measured value is the lowest mean over 30 s in which the device was busy for less than 2 %. It is kept over
restarts, because an exporter that starts under load cannot measure it. After 30 days it is replaced by the next such
mean, also by a higher one: hardware and firmware change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.attribution.ledger import DeviceKey
from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.model import Component, Quantity

IdleSource = Literal["measured", "configured", "none"]

MEAN_S: Final = 30.0
POINT_S: Final = 5.0
"""The mean ends at any read that is this long after the last one."""
MOST_BUSY: Final = 0.02
KEPT_S: Final = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredIdle:
    """The idle power of one device, as it is kept over restarts."""

    collector: str
    component: Component
    device: str
    domain: str
    watts: float
    measured_at_s: float
    """Unix time."""

    @property
    def key(self) -> DeviceKey:
        quantity = Quantity(scope="device", component=self.component, device=self.device, domain=self.domain)
        return self.collector, quantity


class IdlePower:
    """The idle power of all devices."""

    def __init__(self, configured: Mapping[str, float], measured: Iterable[MeasuredIdle] = ()) -> None:
        """Start with what is known.

        Args:
            configured: Watts by device, or by device and domain (``socket0/dram``). Without a domain, it is not that
                of the device's memory.
            measured: Entries of an earlier process.
        """
        self._configured = dict(configured)
        self._measured = {entry.key: entry for entry in measured}
        self._points: dict[DeviceKey, deque[tuple[int, float, float]]] = {}
        self.watts: dict[DeviceKey, float] = {key: entry.watts for key, entry in self._measured.items()}
        """By device; absent: not known."""
        self.version = 0
        """Changes whenever a new value was measured."""

    @property
    def measured(self) -> tuple[MeasuredIdle, ...]:
        """What a later process needs."""
        return tuple(self._measured.values())

    def source(self, key: DeviceKey) -> IdleSource:
        """Return where the idle power of a device comes from."""
        if self._configured_watts(key) is not None:
            return "configured"
        return "measured" if key in self._measured else "none"

    def _configured_watts(self, key: DeviceKey) -> float | None:
        quantity = key[1]
        watts = self._configured.get(f"{quantity.device}/{quantity.domain}")
        if watts is None and quantity.component != "memory":
            watts = self._configured.get(quantity.device)
        return watts

    def update(self, key: DeviceKey, joules: float, read_at_ns: int, busy_seconds: float | None, now_s: float) -> None:
        """Process one reading.

        Args:
            key: The device.
            joules: Its counter.
            read_at_ns: Monotonic time of the read.
            busy_seconds: How long it was busy so far; of several processors, their mean. None: not known.
            now_s: Unix time.
        """
        points = self._points.get(key)
        if points is None:
            points = self._points[key] = deque()
            if (watts := self._configured_watts(key)) is not None:
                self.watts[key] = watts
        if busy_seconds is None:
            points.clear()
            return
        if points:
            last_ns, last_joules, last_busy = points[-1]
            if joules < last_joules or busy_seconds < last_busy:
                points.clear()
            elif read_at_ns - last_ns < POINT_S * NS_PER_S:
                return
            elif joules == last_joules:
                points.clear()  # the counter stands still
        points.append((read_at_ns, joules, busy_seconds))
        first_ns, first_joules, first_busy = points[0]
        seconds = (read_at_ns - first_ns) / NS_PER_S
        if seconds < MEAN_S:
            return
        points.popleft()
        watts = (joules - first_joules) / seconds
        if busy_seconds - first_busy < MOST_BUSY * seconds:
            self._found(key, watts, now_s)

    def _found(self, key: DeviceKey, watts: float, now_s: float) -> None:
        known = self._measured.get(key)
        if known is not None and watts >= known.watts and now_s - known.measured_at_s < KEPT_S:
            return
        collector, quantity = key
        self._measured[key] = MeasuredIdle(
            collector=collector,
            component=quantity.component,
            device=quantity.device,
            domain=quantity.domain,
            watts=watts,
            measured_at_s=now_s,
        )
        if self._configured_watts(key) is None:
            self.watts[key] = watts
        self.version += 1
