"""The state of one quantity from one read to the next: its counter, its power, its health."""

from __future__ import annotations

import dataclasses

from joulewatch_exporter.model import Reading, SensorInfo
from joulewatch_exporter.sampling.counter import (
    EnergyCounter,
    PowerFromEnergy,
    PowerIntegrator,
    RefreshEstimator,
)
from joulewatch_exporter.sampling.saved import SavedQuantity
from joulewatch_exporter.sampling.scan import Health, Reads


class QuantityState:
    """The state of one quantity, kept while its device is gone."""

    __slots__ = (
        "_events",
        "_is_measured",
        "_min_gap_s",
        "_power",
        "_refresh_s",
        "_rejected_power",
        "_saved",
        "burst_done",
        "counter",
        "device_index",
        "energy_joules",
        "health",
        "info",
        "integrator",
        "power_watts",
        "quantity",
        "reads",
        "refresh",
        "scan",
    )

    def __init__(self, info: SensorInfo, min_gap_s: float, saved: SavedQuantity | None = None) -> None:
        """Start before the first reading, or continue from the state of an earlier process."""
        self.info = info
        self._saved = saved
        self._min_gap_s = min_gap_s
        self.quantity = info.quantity
        self.device_index = 0
        """Index of its device in the layout."""
        self.reads: Reads = "energy"
        # The energy of a model changes with each read of the clock, so it has no refresh period.
        self._is_measured = info.method != "estimated"
        self.counter: EnergyCounter | None = None
        self.integrator: PowerIntegrator | None = None
        self.refresh = RefreshEstimator(is_counter=True)
        self.health = Health(refresh_s=None, wraps=0, resets=0, rejected=0, unmeasured_s=0.0)
        self.energy_joules: float | None = None
        self.power_watts: float | None = None
        self.scan = 0
        """Number of the last scan in which this quantity was read; negative if its value is a suspect."""
        self.burst_done = not self._is_measured
        """Whether it has been read in a burst, or must not be."""
        self._power = PowerFromEnergy()
        self._events = 0
        self._refresh_s: float | None = None
        self._rejected_power = 0

    def adopt(self, info: SensorInfo) -> None:
        """Switch to new metadata: the sensor was reopened, perhaps through another backend."""
        old, self.info = self.info, info
        self.quantity = info.quantity  # the same object as in the sensor's readings
        if self.counter is not None and (old.wrap_joules != info.wrap_joules or _backend(old) != _backend(info)):
            self.counter.change_source(wrap_joules=info.wrap_joules, max_power_watts=info.max_power_watts)
            self.refresh = RefreshEstimator(is_counter=True)
            self._power.clear()
            self.burst_done = not self._is_measured

    def take(self, reading: Reading) -> bool:
        """Process one reading; return False if it is a suspect, and the energy still that of the last good reading."""
        _, read_at_ns, energy_joules, power_watts = reading
        if energy_joules is not None:
            return self._take_energy(read_at_ns, energy_joules, power_watts)
        return power_watts is not None and self._take_power(read_at_ns, power_watts)

    def _take_energy(self, read_at_ns: int, position_joules: float, power_watts: float | None) -> bool:
        counter = self.counter
        if counter is None:
            counter = self.counter = EnergyCounter(
                wrap_joules=self.info.wrap_joules, max_power_watts=self.info.max_power_watts
            )
            self.reads = "energy"
            if self._saved is not None:
                self._restore_counter(counter, self._saved)
        unmeasured_s = counter.unmeasured_s
        if not counter.update(read_at_ns, position_joules):
            self.power_watts = None
            self._renew_health(counter)
            return False
        if self._is_measured:
            self.refresh.update(read_at_ns, position_joules)
        total_joules = self.energy_joules = counter.total_joules
        if counter.unmeasured_s != unmeasured_s:
            self._power.clear()
        if power_watts is None:
            power_watts = self._power.update(read_at_ns, total_joules, self.refresh.resolved_s)
        elif not 0.0 <= power_watts <= self.info.max_power_watts:
            self._rejected_power += 1
            power_watts = None
            self._renew_health(counter)
        self.power_watts = power_watts
        if counter.events != self._events or self.refresh.refresh_s != self._refresh_s:
            self._renew_health(counter)
        return True

    def _take_power(self, read_at_ns: int, power_watts: float) -> bool:
        if self.counter is not None:
            # The sensor has a counter that is missing from this reading; its power still counts.
            self.energy_joules = None
            self.power_watts = power_watts if 0.0 <= power_watts <= self.info.max_power_watts else None
            return self.power_watts is not None
        integrator = self.integrator
        if integrator is None:
            integrator = self.integrator = PowerIntegrator(
                max_power_watts=self.info.max_power_watts, max_gap_s=max(self.info.max_gap_s, self._min_gap_s)
            )
            self.reads = "power"
            if self._saved is not None:
                self._restore_integrator(integrator, self._saved)
            self.refresh = RefreshEstimator(is_counter=False)
        if not integrator.update(read_at_ns, power_watts):
            self.power_watts = None
            self._renew_health(integrator)
            return False
        if self._is_measured:
            self.refresh.update(read_at_ns, power_watts)
        self.energy_joules = integrator.total_joules
        self.power_watts = power_watts
        if integrator.events != self._events or self.refresh.refresh_s != self._refresh_s:
            self._renew_health(integrator)
        return True

    @property
    def last_good_ns(self) -> int | None:
        source = self.counter or self.integrator
        return None if source is None else source.read_at_ns

    # -- from one process to the next --------------------------------------------------------------

    def _restore_counter(self, counter: EnergyCounter, saved: SavedQuantity) -> None:
        # Another source has an unrelated position.
        info = self.info
        is_same = (saved.reads, saved.source, saved.wrap_joules) == ("energy", info.source, info.wrap_joules)
        continues = is_same and saved.read_at_ns is not None and not info.counts_since_open
        counter.restore(
            total_joules=saved.total_joules,
            wraps=saved.wraps,
            resets=saved.resets,
            rejected=saved.rejected,
            unmeasured_s=saved.unmeasured_s,
            position=(saved.read_at_ns or 0, saved.value, saved.before_change_ns) if continues else None,
            suspect=None if saved.suspect_at_ns is None else (saved.suspect_at_ns, saved.suspect_joules),
            unmeasured_since_ns=saved.read_at_ns,
        )
        self._renew_health(counter)

    def _restore_integrator(self, integrator: PowerIntegrator, saved: SavedQuantity) -> None:
        integrator.restore(
            total_joules=saved.total_joules,
            rejected=saved.rejected,
            unmeasured_s=saved.unmeasured_s,
            read_at_ns=saved.read_at_ns,
            power_watts=saved.value if saved.reads == "power" else 0.0,
        )
        self._renew_health(integrator)

    def save(self, collector: str) -> SavedQuantity | None:
        """Return the state for a later process; None: there was no reading."""
        source = self.counter or self.integrator
        if source is None:
            return None
        quantity = self.quantity
        saved = SavedQuantity(
            collector=collector,
            scope=quantity.scope,
            component=quantity.component,
            device=quantity.device,
            domain=quantity.domain,
            source=self.info.source,
            wrap_joules=self.info.wrap_joules,
            reads=self.reads,
            total_joules=source.total_joules,
            read_at_ns=source.read_at_ns,
            rejected=source.rejected + self._rejected_power,
            unmeasured_s=source.unmeasured_s,
        )
        if isinstance(source, PowerIntegrator):
            return dataclasses.replace(saved, value=source.power_watts)
        _, position_joules, before_change_ns = source.position or (0, 0.0, 0)
        suspect_at_ns, suspect_joules = source.suspect or (None, 0.0)
        return dataclasses.replace(
            saved,
            value=position_joules,
            before_change_ns=before_change_ns,
            suspect_at_ns=suspect_at_ns,
            suspect_joules=suspect_joules,
            wraps=source.wraps,
            resets=source.resets,
        )

    def _renew_health(self, source: EnergyCounter | PowerIntegrator) -> None:
        self._events = source.events
        self._refresh_s = self.refresh.refresh_s
        self.health = Health(
            refresh_s=self._refresh_s,
            wraps=source.wraps if isinstance(source, EnergyCounter) else 0,
            resets=source.resets if isinstance(source, EnergyCounter) else 0,
            rejected=source.rejected + self._rejected_power,
            unmeasured_s=source.unmeasured_s,
        )


def _backend(info: SensorInfo) -> str:
    """Return how a quantity is read: files, or the word before the colon, as in ``perf:power/energy-pkg``."""
    return "file" if info.source.startswith("/") else info.source.partition(":")[0]
