"""The energies of one window, for ``Measurement``: imported when its first result is read, because numpy is slow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from joulewatch_harness.analysis.energy.whole_run import measure_whole_run
from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.audit.gpu_conditions import smoothed
from joulewatch_harness.analysis.results.audit.other_load import check_measure_load, is_busy, measures_this_machine
from joulewatch_harness.analysis.results.audit.run import audit_run
from joulewatch_harness.analysis.results.audit.windows import audit_windows
from joulewatch_harness.analysis.results.averages import covers_of, per_inference
from joulewatch_harness.analysis.results.idle import mean_idle_power
from joulewatch_harness.analysis.results.model import COMPONENTS, TOTAL, Estimate, IdlePower
from joulewatch_harness.analysis.results.uncertainty import Combined, combine, combine_mean
from joulewatch_harness.analysis.sources.history import History, is_gauge
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.metering.values import Energy
from joulewatch_harness.records import RunHeader, RunRecord, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEnergies:
    """The energies of one window, and what the audit found."""

    total: Energy
    net: Energy | None
    """``total`` less idle power; None: idle power is not known."""
    per_component: dict[str, Energy]
    per_device: dict[str, Energy]
    per_node: dict[str, Energy]
    per_part: dict[str, Energy]
    findings: tuple[Finding, ...]


def energies_of(header: RunHeader, windows: Sequence[Window]) -> WindowEnergies:
    """Return the energies of the last of some windows of a run; the others show the machine's other powers."""
    index = windows[-1].index
    record = RunRecord(header=header, configurations=(), windows=_needed(header, windows))
    run = measure_whole_run(record, History(source=""))
    (measured,) = (one for one in run.windows if one.window.index == index)
    return _Reader(run, measured).read()


def _needed(header: RunHeader, windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return the last window, the idle ones, and those with the smallest and largest power of each sensor.

    That of a gauge may be frozen, which the others show.
    """
    *others, last = windows
    if any(map(is_gauge, header.sensors)):
        return tuple(windows)
    extremes: dict[SensorId, tuple[tuple[float, int], tuple[float, int]]] = {}
    for position, window in enumerate(others):
        for sensor, watts in _powers(window):
            power = (watts, position)
            least, most = extremes.get(sensor, (power, power))
            extremes[sensor] = min(least, power), max(most, power)
    positions = {position for both in extremes.values() for _, position in both}
    return (*(one for at, one in enumerate(others) if one.kind == "idle" or at in positions), last)


def _powers(window: Window) -> Iterator[tuple[SensorId, float]]:
    """Yield the mean power of each sensor between the readings of a window."""
    if window.start_edge is None or window.end_edge is None:
        return
    before = {SensorId.of(counter): counter for counter in window.start_edge.counters}
    for end in window.end_edge.counters:
        sensor = SensorId.of(end)
        start = before.get(sensor)
        if start is not None and end.read_at_s > start.read_at_s:
            yield sensor, (end.energy_joules - start.energy_joules) / (end.read_at_s - start.read_at_s)


class _Reader:
    def __init__(self, run: MeasuredRun, measured: MeasuredWindow) -> None:
        self.run = run
        self.measured = measured
        self.several = len(run.record.header.exporters) > 1

    def read(self) -> WindowEnergies:
        scopes: dict[str, list[SensorId]] = {"device": [], "node": [], "part": []}
        for sensor in self.run.sensors:
            scopes[sensor.scope].append(sensor)
        devices = scopes["device"]
        components = {name: [one for one in devices if one.component == name] for name in _names(devices)}
        # Without device sensors, the whole servers: of each server the sensor that counts.
        summed = devices or [one for one in scopes["node"] if self.run.sensors[one].primary is not False]
        return WindowEnergies(
            total=self.energy(TOTAL, summed),
            net=self.net(summed),
            per_component={name: self.energy(name, sensors) for name, sensors in components.items()},
            per_device=self.each(devices),
            per_node=self.each(scopes["node"]),
            per_part=self.each(scopes["part"]),
            findings=tuple(self.findings()),
        )

    def each(self, sensors: Iterable[SensorId]) -> dict[str, Energy]:
        return {self.key(sensor): self.energy(self.key(sensor), [sensor]) for sensor in sensors}

    def key(self, sensor: SensorId) -> str:
        key = f"{sensor.component}/{sensor.device}/{sensor.domain}"
        return f"{sensor.exporter}/{key}" if self.several else key

    def energy(self, name: str, sensors: Sequence[SensorId]) -> Energy:
        """Return the energy of some disjoint sensors."""
        methods = tuple(sorted({self.run.sensors[sensor].method for sensor in sensors}))
        combined, missing, reason = self.combined(sensors)
        if combined is None:
            return Energy(name=name, seconds=self.measured.window.duration_s, missing=missing, reason=reason)
        covers = covers_of([combined])
        rounds = {0: [(combined.joules, combined.random)]}
        estimate = combine_mean(rounds, combined.systematic, combined.texts, covers=covers, repeatable=False)
        return self.known(name, estimate, methods)

    def known(self, name: str, estimate: Estimate, methods: tuple[str, ...]) -> Energy:
        return Energy(
            name=name,
            seconds=self.measured.window.duration_s,
            estimate=estimate,
            methods=methods,
        )

    def combined(self, sensors: Sequence[SensorId]) -> tuple[Combined | None, str, str]:
        """Return the sum of some sensors, or the text and the reason why there is none."""
        energies = []
        for sensor in sensors:
            result = self.measured.sensors[sensor]
            if result.energy is None:
                return None, result.text, result.reason
            energies.append(result.energy)
        return (combine(energies), "", "") if energies else (None, "no sensor", "no_sensors")

    def net(self, sensors: Sequence[SensorId]) -> Energy | None:
        """Return the energy net of idle power; None: no idle window is complete, or the machine was busy in one."""
        gross, _, _ = self.combined(sensors)
        power = self.idle_power(sensors)
        if gross is None or power is None:
            return None
        methods = tuple(sorted({self.run.sensors[sensor].method for sensor in sensors}))
        whole = replace(self.measured, window=replace(self.measured.window, inferences=1))
        return self.known("net", per_inference([(whole, gross)], power, repeatable=False), methods)

    def idle_power(self, sensors: Sequence[SensorId]) -> IdlePower | None:
        if smoothed(self.run).intersection(sensor.device for sensor in sensors):
            return None
        complete = []
        for measured in self.run.windows:
            if measured.window.kind != "idle":
                continue
            if is_busy(measured.window) and measures_this_machine(self.run, sensors):
                return None
            combined, _, _ = _Reader(self.run, measured).combined(sensors)
            if combined is not None:
                complete.append((measured, combined))
        return mean_idle_power("unloaded", "before the first window", complete) if complete else None

    def findings(self) -> Iterator[Finding]:
        windows = tuple(one for one in self.run.windows if one.window.kind == "idle" or one is self.measured)
        run = replace(self.run, windows=windows)
        # The run is still open when its windows are read.
        yield from (finding for finding in audit_run(run, with_history=False) if finding.reason != "interrupted")
        yield from audit_windows(run)
        yield from check_measure_load(run, self.measured)


def _names(sensors: Iterable[SensorId]) -> list[str]:
    """Return the components of some sensors, in their usual order."""
    names = {sensor.component for sensor in sensors}
    return sorted(names, key=lambda name: (COMPONENTS.index(name) if name in COMPONENTS else len(COMPONENTS), name))
