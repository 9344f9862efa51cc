"""The energy of workloads in one window, with the bound of their shares. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.sensor_energies import Joules, joules_of, sum_joules
from joulewatch_harness.analysis.energy.shares import DEFAULT_RATIO, share_bounds
from joulewatch_harness.analysis.energy.window_energy import Span, WindowEnergy
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.series import Floats, Traits, default_max_gap_s
from joulewatch_harness.analysis.sources.workloads import Device, WorkloadId, WorkloadMatcher, WorkloadUse
from joulewatch_harness.errors import CoverageError

IdlePolicy = Literal["own", "equal", "proportional", "reserved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEnergy:
    """The active energy of one workload or of several on one device, with the limits of its share."""

    device: Device
    joules: Joules
    share_lower_joules: float
    """With the bound of the share, without the uncertainty of the energy that is shared."""
    share_upper_joules: float
    active_joules: float
    """All active energy of the device: that of which this is a share."""
    ratio: float
    """Workloads differ by at most this factor per second of use."""
    idle: Joules | None
    """Part of the idle energy, by the policy; None: nothing is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEnergy:
    """One workload on one machine, or the sum of all that match: a number, or why there is none."""

    host: str
    exporter: str
    workload: WorkloadId | None
    """None: the sum."""
    names: dict[str, str]
    parts: tuple[ShareEnergy, ...]
    """One for each component or GPU that it used."""
    measured_s: float
    duration_s: float
    methods: tuple[str, ...]
    reason: str = ""
    text: str = ""

    @property
    def joules(self) -> Joules | None:
        """Its active energy; None: missing."""
        return sum_joules([part.joules for part in self.parts]) if self.parts else None

    @property
    def idle(self) -> Joules | None:
        energies = [part.idle for part in self.parts if part.idle is not None]
        return sum_joules(energies) if energies else None

    @property
    def share_joules(self) -> tuple[float, float]:
        """Lower and upper limit of the active energy by the bound of its shares."""
        return (
            math.fsum(part.share_lower_joules for part in self.parts),
            math.fsum(part.share_upper_joules for part in self.parts),
        )

    @property
    def active_joules(self) -> float:
        return math.fsum(part.active_joules for part in self.parts)

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.device.component for part in self.parts))

    @property
    def complete(self) -> bool:
        return bool(self.parts) and self.duration_s - self.measured_s < 1e-3


def workload_energies(
    use: WorkloadUse, span: Span, matches: WorkloadMatcher, idle: IdlePolicy = "own"
) -> tuple[list[WorkloadEnergy], WorkloadEnergy | None]:
    """Return the energy of each workload of one exporter that matches and ran in a window, and their sum.

    The window is cut to the time that the samples cover. The sum has the bound of the sum of the shares, which is
    narrower than the sum of their bounds: what one of them gains, another may lose.
    """
    chosen = sorted(one for one, names in use.names.items() if matches(names))
    covered = _covered(use, span)
    rows = []
    for one in chosen:
        row = _energy(use, span, covered, [one], idle)
        if row is not None:
            rows.append(row)
    total = _energy(use, span, covered, [row.workload for row in rows if row.workload], idle) if rows else None
    return rows, total


def total_energy(rows: Sequence[WorkloadEnergy], totals: Sequence[WorkloadEnergy]) -> WorkloadEnergy | None:
    """Return the sum over all machines; None if the energy of a workload is missing.

    Args:
        rows: All workloads.
        totals: The sum of each machine.
    """
    if not rows or any(not row.parts for row in rows):
        return None
    return WorkloadEnergy(
        host=" ".join(sorted({row.host for row in totals})),
        exporter="",
        workload=None,
        names={},
        parts=tuple(part for row in totals for part in row.parts),
        measured_s=min(row.measured_s for row in totals),
        duration_s=totals[0].duration_s,
        methods=tuple(sorted({method for row in totals for method in row.methods})),
    )


def coverage_notice(total: WorkloadEnergy) -> Notice | None:
    """Return the warning about a window that the samples of an exporter do not cover."""
    if not total.parts or total.complete:
        return None
    return Notice(
        severity="warning",
        reason="unbracketed",
        text=f"{total.host}: samples cover {total.measured_s:.3f} s of the {total.duration_s:.3f} s of the window",
        exporter=total.exporter,
    )


def _covered(use: WorkloadUse, span: Span) -> Span | None:
    start_s = max(span.start_s, float(use.times_s[0]))
    end_s = min(span.end_s, float(use.times_s[-1]))
    return Span(start_s, end_s, span.clock_error_s) if end_s > start_s else None


def _energy(
    use: WorkloadUse, span: Span, covered: Span | None, chosen: Sequence[WorkloadId], idle: IdlePolicy
) -> WorkloadEnergy | None:
    """Return the energy of some workloads; None if none of them was there in the window."""
    parts, reason, text = [], "", ""
    devices = [device for device in use.devices if any((one, device) in use.workloads for one in chosen)]
    if covered is None:
        reason, text = "no_samples", "no sample in the window"
    else:
        if not any(_present(use, device, one, covered) for one in chosen for device in devices):
            return None
        try:
            parts = [_share(use, device, covered, chosen, idle) for device in devices]
        except CoverageError as error:
            reason, text = error.reason, str(error)
    names = dict(use.names[chosen[0]]) if len(chosen) == 1 else {}
    return WorkloadEnergy(
        host=use.host,
        exporter=use.exporter,
        workload=chosen[0] if len(chosen) == 1 else None,
        names=names,
        parts=tuple(parts),
        measured_s=covered.duration_s if covered is not None and parts else 0.0,
        duration_s=span.duration_s,
        methods=tuple(sorted({use.methods.get(device.component, "unknown") for device in devices})),
        reason=reason,
        text=text,
    )


def _present(use: WorkloadUse, device: Device, one: WorkloadId, span: Span) -> bool:
    """Return whether a workload has a series in a window, or at one of the samples around it."""
    if (one, device) not in use.present:
        return False
    first = max(int(use.times_s.searchsorted(span.start_s, side="right")) - 1, 0)
    last = int(use.times_s.searchsorted(span.end_s, side="left")) + 1
    return bool(use.present[one, device][first:last].any())


def _share(use: WorkloadUse, device: Device, span: Span, chosen: Sequence[WorkloadId], idle: IdlePolicy) -> ShareEnergy:
    """Return the energy of some workloads on one device.

    Raises:
        CoverageError: As of ``energy_from_counter``.
    """
    own = use.of(device, chosen)
    energy = joules_of(_integrated(use, device, own, span))
    active_joules = max(_integrated(use, device, use.active(device), span).joules, energy.joules)
    share = min(energy.joules / active_joules, 1.0) if active_joules > 0 else 0.0
    ratio = use.ratios.get(device.component, DEFAULT_RATIO)
    low, high = share_bounds(share, ratio)
    extra = None
    if idle != "own":
        added = idle_joules(use, device, chosen, idle)
        extra = joules_of(_integrated(use, device, added, span))
    return ShareEnergy(
        device=device,
        joules=energy,
        share_lower_joules=low * active_joules,
        share_upper_joules=high * active_joules,
        active_joules=active_joules,
        ratio=ratio,
        idle=extra,
    )


def _integrated(use: WorkloadUse, device: Device, joules: Floats, span: Span) -> WindowEnergy:
    traits = use.traits.get(device, use.traits.get(Device(device.component, ""), Traits()))
    return energy_from_counter(use.series(joules), span, traits, max_gap_s=default_max_gap_s(use.spacing_s))


def idle_joules(use: WorkloadUse, device: Device, chosen: Collection[WorkloadId], policy: IdlePolicy) -> Floats:
    """Return the part of the idle energy of a device that some workloads have, since the first sample.

    Each step between two scrapes is shared by itself: ``equal`` among the workloads that have a series at its end,
    ``proportional`` by their parts of the active energy of the step, ``reserved`` by the shares of the processors that
    they have by weight at its end. Nobody reserves a GPU.
    """
    idle = np.diff(use.idle(device))
    if policy == "equal":
        living = sum((here for (_, on), here in use.present.items() if on == device), use.zero)
        mine = sum((use.present[one, device] for one in chosen if (one, device) in use.present), use.zero)
        part, whole = mine[1:], living[1:]
    elif policy == "reserved":
        part = sum((use.reserved[one][1:] for one in chosen if one in use.reserved), np.zeros_like(idle))
        whole = np.ones_like(idle) if not device.device else np.zeros_like(idle)
    else:
        part, whole = np.diff(use.of(device, chosen)), np.diff(use.active(device))
    shares = np.divide(part, whole, out=np.zeros_like(idle), where=whole > 0)
    return np.concatenate(([0.0], np.cumsum(idle * shares)))
