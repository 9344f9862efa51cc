"""The shares as a scrape shows them: counters, and the layout that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from joulewatch_exporter.attribution.model import Reason, Workload
from joulewatch_exporter.model import Component


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesLayout:
    """The series of the shares; a new object whenever a workload or a device comes or goes."""

    workloads: tuple[Workload, ...] = ()
    energy: tuple[tuple[Component, str, Workload], ...] = ()
    """Component, device (empty for processors and memory), and whose."""
    unattributed: tuple[tuple[Component, str, Reason], ...] = ()
    cpu: tuple[Workload, ...] = ()
    gpu: tuple[tuple[str, Workload], ...] = ()
    reserved: tuple[Workload, ...] = ()
    held: tuple[tuple[str, Workload], ...] = ()
    """Device and a workload that holds it open."""
    how: tuple[tuple[str, ...], ...] = ()
    """Component, weight, source of the idle power, and method of the energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """All counters after one look; each tuple is parallel to the one of the same name in ``layout``."""

    layout: SharesLayout
    energy_joules: tuple[float, ...] = ()
    unattributed_joules: tuple[float, ...] = ()
    cpu_seconds: tuple[float, ...] = ()
    gpu_seconds: tuple[float, ...] = ()
    reserved: tuple[float, ...] = ()
    shown: int
    rest: int
    gone: int
