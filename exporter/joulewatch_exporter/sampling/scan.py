"""The result of scanning a family, as a scrape shows it: values and the layout that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.model import SensorInfo, Throttled

Reads = Literal["energy", "power"]

OK: Final = "ok"
"""State of a device whose last read succeeded; all other states are reasons of a `SensorError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Facts about one quantity that rarely change between scans."""

    refresh_s: float | None
    wraps: int
    resets: int
    rejected: int
    unmeasured_s: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The quantities and devices of a family; a new object whenever sensors come or go."""

    infos: tuple[SensorInfo, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyScan:
    """One family as a scrape shows it. Each tuple is parallel to ``layout.infos`` or ``layout.devices``."""

    collector: str
    layout: Layout
    energies_joules: tuple[float | None, ...]
    """Energy of each of ``layout.infos``; None: not in this scan."""
    powers_watts: tuple[float | None, ...]
    """Power of each of ``layout.infos``; None: not in this scan, or not known yet."""
    healths: tuple[Health | None, ...]
    """Health of each of ``layout.infos``; None: it could not be read. The previous tuple if unchanged."""
    reads: tuple[Reads, ...]
    """Whether the sensor reports energy or power, for each of ``layout.infos``; the previous tuple if unchanged."""
    read_at_s: tuple[float | None, ...]
    """Unix time of the read of each of ``layout.devices``; None: the device could not be read."""
    states: tuple[str, ...]
    """``ok`` or the reason why it could not be read, for each of ``layout.devices``."""
    errors: tuple[tuple[str, str, int], ...]
    """Device, reason, and number of reads that failed for this reason."""
    duration_s: float | None
    """Length of the scan; None: it has not finished."""
    throttled: Sequence[Throttled] = ()
    """Throttled time of the devices that count it; the previous sequence if unchanged."""
    offset_ns: int = 0
    """Wall clock minus monotonic clock at the end of the scan."""

    @property
    def up(self) -> tuple[bool, ...]:
        """Whether each of ``layout.devices`` could be read."""
        return tuple([state == OK for state in self.states])


def unreadable(collector: str, devices: tuple[str, ...], state: str) -> FamilyScan:
    """Return the scan of a family that cannot be opened: its devices, all in this state, without quantities."""
    return FamilyScan(
        collector=collector,
        layout=Layout((), devices),
        energies_joules=(),
        powers_watts=(),
        healths=(),
        reads=(),
        read_at_s=(None,) * len(devices),
        states=(state,) * len(devices),
        errors=(),
        duration_s=None,
    )
