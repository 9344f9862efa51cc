"""What ``--once --state FILE`` keeps from one call to the next, so that counters continue. Pure: no file, no clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.model import Component, Quantity, Scope
from joulewatch_exporter.sampling.scan import Reads

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedQuantity:
    """The state of one quantity after its last reading."""

    collector: str
    scope: Scope
    component: Component
    device: str
    domain: str
    source: str
    """What was read; another source has an unrelated position."""
    wrap_joules: float | None = None
    reads: Reads
    total_joules: float
    read_at_ns: int | None = None
    """Monotonic time of the last good reading; None: on another clock, and ``unmeasured_s`` contains the time since."""
    value: float = 0.0
    """The last good reading: position of the counter in joules, or power in watts."""
    before_change_ns: int = 0
    suspect_at_ns: int | None = None
    """Monotonic time of a reading that the next one has to confirm; None: no reading has to be confirmed."""
    suspect_joules: float = 0.0
    wraps: int = 0
    resets: int = 0
    rejected: int = 0
    unmeasured_s: float = 0.0

    @property
    def key(self) -> tuple[str, Quantity]:
        quantity = Quantity(scope=self.scope, component=self.component, device=self.device, domain=self.domain)
        return self.collector, quantity

    def after_reboot(self, gap_s: float) -> Self:
        """Return the state after a reboot: the total is kept, and the time since the last reading is unmeasured."""
        return dataclasses.replace(
            self,
            read_at_ns=None,
            suspect_at_ns=None,
            resets=self.resets + (1 if self.reads == "energy" else 0),
            unmeasured_s=self.unmeasured_s + max(gap_s, 0.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedErrors:
    """Number of failed reads of a device for one reason."""

    collector: str
    device: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The contents of a state file; its fields are the keys of the JSON."""

    joulewatch_state: int = FORMAT
    """Format of the file."""
    boot_id: str
    saved_at_s: float
    """Unix time of ``saved_at_ns``: the time that passed over a reboot is known on this clock only."""
    saved_at_ns: int
    start_s: float
    """Unix time at which the counters started."""
    quantities: tuple[SavedQuantity, ...] = ()
    errors: tuple[SavedErrors, ...] = ()

    def at(self, *, boot_id: str, now_s: float, now_ns: int) -> Self:
        """Return the state as it continues now.

        Args:
            boot_id: Of this boot; empty: unknown, so the machine may have been rebooted.
            now_s: Unix time.
            now_ns: Monotonic time; if it is before that of the file, it is another clock.
        """
        if boot_id and boot_id == self.boot_id and now_ns >= self.saved_at_ns:
            return self
        quantities = []
        for item in self.quantities:
            since_s = self.saved_at_s
            if item.read_at_ns is not None:
                since_s -= (self.saved_at_ns - item.read_at_ns) / NS_PER_S
            quantities.append(item.after_reboot(now_s - since_s))
        return dataclasses.replace(self, quantities=tuple(quantities))

    def merged(self, quantities: Sequence[SavedQuantity], errors: Mapping[tuple[str, str, str], int]) -> Self:
        """Return the state with new quantities and errors; those that were not read now are kept."""
        kept = {item.key: item for item in self.quantities} | {item.key: item for item in quantities}
        counts = {(item.collector, item.device, item.reason): item.count for item in self.errors} | dict(errors)
        return dataclasses.replace(
            self,
            quantities=tuple(kept.values()),
            errors=tuple(
                SavedErrors(collector=collector, device=device, reason=reason, count=count)
                for (collector, device, reason), count in counts.items()
            ),
        )
