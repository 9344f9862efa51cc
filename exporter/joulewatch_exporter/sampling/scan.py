"""What a family's scan hands to a scrape: values beside the layout they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from joulewatch_exporter.model import SensorInfo

Reads = Literal["energy", "power"]


@dataclass(frozen=True, slots=True)
class Health:
    """What changes seldom about one quantity."""

    refresh_s: float | None
    wraps: int
    resets: int
    rejected: int
    unmeasured_s: float


@dataclass(frozen=True, slots=True)
class Layout:
    """What a family can show; a new object whenever sensors come or go."""

    infos: tuple[SensorInfo, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FamilyScan:
    """One family as a scrape shows it. Tuples run beside ``layout.infos`` or ``layout.devices``."""

    collector: str
    layout: Layout
    energies_joules: tuple[float | None, ...]
    """By info. None: not in this scan."""
    powers_watts: tuple[float | None, ...]
    """By info. None: not in this scan, or not known yet."""
    healths: tuple[Health | None, ...]
    """By info; None: the quantity could not be read. The same tuple as before if nothing in it has changed."""
    reads: tuple[Reads, ...]
    """By info: what the sensor itself gives. The same tuple as before if nothing in it has changed."""
    read_at_s: tuple[float | None, ...]
    """By device: Unix time of the read; None: the device could not be read."""
    up: tuple[bool, ...]
    """By device."""
    errors: tuple[tuple[str, str, int], ...]
    """Device, reason, number of reads that failed so."""
    duration_s: float | None
    """Length of the scan; None: there was none, or it hangs."""
