"""The result of scanning a family, as a scrape shows it: values and the layout that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from joulewatch_exporter.model import SensorInfo

Reads = Literal["energy", "power"]


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
    up: tuple[bool, ...]
    """Whether each of ``layout.devices`` could be read."""
    errors: tuple[tuple[str, str, int], ...]
    """Device, reason, and number of reads that failed for this reason."""
    duration_s: float | None
    """Length of the scan; None: it has not finished."""
