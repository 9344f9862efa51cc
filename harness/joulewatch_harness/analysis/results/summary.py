"""Compute joules per inference from the energies of windows: idle baseline, repeats, mean, uncertainty.

Uncertainty follows the GUM (JCGM 100:2008). Between rounds: type A, the experimental standard deviation of the
mean with n − 1 degrees of freedom. Within windows: type B, from each window's own budget. Components that are the same
in every repeat (the published accuracy of a sensor, the power next to the edges of a window, the idle baseline) are not
divided by the number of repeats. The scatter between rounds contains the random components within them, so the larger
of the two counts. It is expanded to 95 % with Student's factor and then combined with the systematic components in
quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.shares import DEFAULT_RATIO
from joulewatch_harness.analysis.energy.whole_run import measure_whole_run
from joulewatch_harness.analysis.energy.window_energy import WindowEnergy
from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.dependent_rounds import audit_rounds
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.audit.first_round import audit_first_round
from joulewatch_harness.analysis.results.audit.gpu_conditions import smoothed
from joulewatch_harness.analysis.results.audit.groups import audit_idle, audit_load, audit_repeats
from joulewatch_harness.analysis.results.audit.other_load import (
    check_measure_load,
    is_busy,
    is_here,
    measures_this_machine,
)
from joulewatch_harness.analysis.results.audit.run import audit_record, audit_run
from joulewatch_harness.analysis.results.audit.windows import audit_windows
from joulewatch_harness.analysis.results.averages import Rounds, covers_of, latency_summary, mean_rate, per_inference
from joulewatch_harness.analysis.results.idle import mean_idle_power
from joulewatch_harness.analysis.results.interference import interferences
from joulewatch_harness.analysis.results.model import (
    COMPONENTS,
    TOTAL,
    CountResult,
    EnergyResult,
    Estimate,
    ExcludedWindow,
    GroupResult,
    IdleBasis,
    IdlePower,
    RunResult,
    SetupEnergy,
    SetupResult,
    WindowShares,
)
from joulewatch_harness.analysis.results.phase_energies import with_energies
from joulewatch_harness.analysis.results.phases import phase_shares
from joulewatch_harness.analysis.results.uncertainty import Combined, combine, combine_mean
from joulewatch_harness.analysis.results.whose import joined, share_window
from joulewatch_harness.analysis.sources.history import History, SampleSource
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.errors import RecordError
from joulewatch_harness.gum import mean
from joulewatch_harness.plan.runtimes import is_server
from joulewatch_harness.plan.target import MAX_UNCERTAINTY, ROUNDS_ENDED, repeats_coverage
from joulewatch_harness.records import Configuration, RunRecord, Window

MEASURED_KINDS: Final = ("idle", "setup", "measure")
"""Windows that have an energy."""
GroupKey = tuple[str, int]
"""Configuration and batch size."""


def analyze_run(
    record: RunRecord,
    source: SampleSource | None,
    *,
    progress: Callable[[str], None] | None = None,
) -> RunResult:
    """Turn a run into joules per inference.

    Args:
        record: The run, from any source.
        source: The samples of its counters; None: use only the edges in the record.
        progress: Called with each step, for people.

    Returns:
        One result per configuration and batch size, and the findings of the audit.

    Raises:
        QueryError: The source cannot be queried.
    """
    report = progress or (lambda _: None)
    history = History(source="")
    damaged: list[Finding] = []
    if source is not None:
        report(f"reading samples from {source.describe()}")
        # The exporters of the run; if a foreign record names none, all exporters of the source.
        try:
            exporters = record.header.exporters or None
            history = source.history(run_spans(record), exporters, power=record.header.is_imported)
            record = _with_nodenames(record, history)
        except RecordError as error:
            text = f"{error}; only the readings of the counters at the edges of the windows are used"
            damaged = [Finding(severity="warning", reason="recording_damaged", text=text)]
            source = None
    report("integrating")
    findings = [*damaged, *audit_record(record)]
    record = replace(record, windows=_first_of_each(record.windows))
    windows = tuple(window for window in record.windows if window.kind in MEASURED_KINDS)
    run = measure_whole_run(replace(record, windows=windows), history)
    analysis = _Analysis(record, run)
    # Setups are reported but not audited: a problem with a setup is not a problem with a result.
    audited = replace(run, windows=tuple(measured for measured in run.windows if measured.window.kind != "setup"))
    findings += audit_run(audited, with_history=source is not None)
    groups = [analysis.group(key, windows) for key, windows in analysis.measure_windows().items()]
    findings += (finding for group in groups for finding in analysis.audit_group(group))
    findings += audit_rounds(list(filter(None, map(_values_by_round, groups))), _measured_s(record))
    idle = analysis.idle_by_component()
    findings += analysis.audit_idle(idle)
    if analysis.devices and TOTAL not in idle and groups:
        text = "no idle window has the energy of all devices, so there is no net energy"
        findings.append(Finding(severity="info", reason="no_idle", text=text))
    findings += audit_windows(audited)
    findings += analysis.audit_load_of_others(groups)
    return RunResult(
        record=record,
        source=source.describe() if source is not None else "",
        sensors=tuple(run.sensors.values()),
        groups=tuple(groups),
        idle=idle,
        findings=tuple(findings),
        setups=analysis.setups(),
        powers=analysis.powers(),
        interference=tuple(interferences(groups)),
    )


def run_spans(record: RunRecord) -> list[tuple[float, float]]:
    """Return the spans of a run that need samples: those of all windows that have an energy."""
    return [
        (window.start_s, window.start_s + window.duration_s)
        for window in record.windows
        if window.kind in MEASURED_KINDS and window.duration_s > 0
    ]


def _values_by_round(group: GroupResult) -> Mapping[int, float]:
    """Return the energies per inference of the rounds, or their rates if there is no energy."""
    estimate = group.total.gross or group.throughput
    return {} if estimate is None else estimate.rounds


def _measured_s(record: RunRecord) -> float:
    """Return the time from the start of the first measure window to the end of the last."""
    windows = [window for window in record.windows if window.kind == "measure"]
    return max((one.end_s for one in windows), default=0.0) - min((one.start_s for one in windows), default=0.0)


def _with_nodenames(record: RunRecord, history: History) -> RunRecord:
    """Return the record with the machines of its exporters, which a run from Prometheus has in its samples only."""
    exporters = tuple(
        replace(exporter, nodename=exporter.nodename or history.nodenames.get(exporter.name, ""))
        for exporter in record.header.exporters
    )
    return replace(record, header=replace(record.header, exporters=exporters))


def _first_of_each(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return the windows without those whose number an earlier one has; the audit reports them."""
    first: dict[int, Window] = {}
    for window in windows:
        first.setdefault(window.index, window)
    return tuple(first.values())


class _Analysis:
    def __init__(self, record: RunRecord, run: MeasuredRun) -> None:
        self.record = record
        self.run = run
        self.smoothed = smoothed(run)
        self.sensors = run.sensors
        self.target: float | None = record.header.plan.get(MAX_UNCERTAINTY)
        self.coverage = repeats_coverage(record.header.plan)
        self.devices = [sensor for sensor in run.sensors if sensor.scope == "device"]
        self.idle_windows = [
            measured
            for measured in run.windows
            if measured.window.kind == "idle" and "interrupted" not in measured.window.flags
        ]
        self.configurations = {
            configuration.name: configuration
            for configuration in (*record.header.configurations, *record.configurations)
        }
        self.order = {name: number for number, name in enumerate(self.configurations)}

    def measure_windows(self) -> dict[GroupKey, list[MeasuredWindow]]:
        """Return the measure windows of each configuration and batch size, in the order of the configurations."""
        groups: dict[GroupKey, list[MeasuredWindow]] = {}
        for measured in self.run.windows:
            if measured.window.kind == "measure":
                groups.setdefault((measured.window.configuration, measured.window.batch_size), []).append(measured)
        return dict(sorted(groups.items(), key=lambda group: (self._place(group[0][0]), group[0])))

    def _place(self, configuration: str) -> int:
        return self.order.get(configuration, len(self.order))

    def gather(
        self, sensors: Sequence[SensorId], windows: Iterable[MeasuredWindow]
    ) -> tuple[list[tuple[MeasuredWindow, list[WindowEnergy]]], list[ExcludedWindow]]:
        """Return the windows in which every one of the sensors has a number, and the other windows.

        Without sensors the result is missing, not 0 J.
        """
        complete, missing = [], []
        for measured in windows if sensors else ():
            energies = []
            for sensor in sensors:
                result = measured.sensors[sensor]
                if result.energy is None:
                    missing.append(ExcludedWindow(measured.window.index, result.reason, result.text))
                    break
                energies.append(result.energy)
            else:
                complete.append((measured, energies))
        return complete, missing

    def combined(
        self, sensors: Sequence[SensorId], windows: Iterable[MeasuredWindow]
    ) -> list[tuple[MeasuredWindow, Combined]]:
        """Return the windows in which every one of the sensors has a number, with their sums."""
        return [(measured, combine(energies)) for measured, energies in self.gather(sensors, windows)[0]]

    def watts(self, sensors: Sequence[SensorId], windows: Iterable[MeasuredWindow]) -> list[tuple[Window, float]]:
        """Return the mean power of the sensors together, in the windows in which every one of them has a number."""
        return [
            (measured.window, math.fsum([energy.joules for energy in energies]) / measured.span.duration_s)
            for measured, energies in self.gather(sensors, windows)[0]
        ]

    # Idle power

    def idle_power(self, sensors: Sequence[SensorId], configuration: str | None) -> IdlePower | None:
        """Return the idle power of some sensors: with the network loaded if that was measured, else without."""
        loaded = [measured for measured in self.idle_windows if "loaded" in measured.window.flags]
        own = [measured for measured in loaded if configuration and measured.window.configuration == configuration]
        candidates: list[tuple[IdleBasis, str, list[MeasuredWindow]]] = [
            ("loaded", "with this network loaded", own),
            ("loaded", "with a network loaded", loaded),
            # No loaded window is complete, so what is complete is unloaded.
            ("unloaded", "without a network loaded", self.idle_windows),
        ]
        for basis, text, windows in candidates:
            complete = self.combined(sensors, windows)
            if complete:
                others = self.combined(sensors, [measured for measured in self.idle_windows if measured not in windows])
                return mean_idle_power(basis, text, complete, others)
        return None

    def idle_problem(self, idle: IdlePower | None, sensors: Sequence[SensorId]) -> str:
        """Return why the power of idle windows is not the idle power of some sensors; empty: nothing is known."""
        devices = self.smoothed.intersection(sensor.device for sensor in sensors)
        if idle is not None and devices:
            return f"power smoothing keeps the idle power of {min(devices)} up [power_smoothing_on]"
        busy = {measured.window.index for measured in self.idle_windows if is_busy(measured.window)}
        here = measures_this_machine(self.run, sensors)
        if idle is None or not here or not busy.intersection(idle.windows):
            return ""
        count = len(busy.intersection(idle.windows))
        return f"the machine was busy in {count} of {count_of(len(idle.windows), 'idle window')} [idle_busy]"

    def idle_by_component(self) -> dict[str, IdlePower]:
        """Return the idle power of every component and of all devices, where it was measured."""
        powers = {name: self.idle_power(self._devices_of(name), None) for name in (*self._components(), TOTAL)}
        return {name: power for name, power in powers.items() if power is not None}

    def audit_idle(self, idle: Mapping[str, IdlePower]) -> Iterator[Finding]:
        for name, power in idle.items():
            windows = [measured for measured in self.idle_windows if measured.window.index in power.windows]
            yield from audit_idle(name, [watts for _, watts in self.watts(self._devices_of(name), windows)])

    def _components(self) -> list[str]:
        """Return the components that have a device sensor, in their usual order."""
        names = {sensor.component for sensor in self.devices}
        return sorted(names, key=lambda name: (COMPONENTS.index(name) if name in COMPONENTS else 99, name))

    def _devices_of(self, name: str) -> list[SensorId]:
        return [sensor for sensor in self.devices if name in (TOTAL, sensor.component)]

    def powers(self) -> dict[int, dict[str, float]]:
        """Return window -> component -> mean power in watts, as far as it is known."""
        powers: dict[int, dict[str, float]] = {}
        for name in self._components():
            for window, watts in self.watts(self._devices_of(name), self.run.windows):
                powers.setdefault(window.index, {})[name] = watts
        return powers

    # Groups

    def group(self, key: GroupKey, windows: Sequence[MeasuredWindow]) -> GroupResult:
        """Return the result of one configuration at one batch size."""
        name, batch_size = key
        excluded = [(measured, why) for measured in windows if (why := _exclusion(measured)) is not None]
        used = [measured for measured in windows if _exclusion(measured) is None]

        def energy(result_name: str, sensors: Sequence[SensorId]) -> EnergyResult:
            result = self.energy(result_name, sensors, used, name)
            if not used and excluded and sensors:
                _, why = excluded[0]
                return replace(result, missing=f"{why.text} [{why.reason}]")
            return result

        _, without_number = self.gather(self.devices, used)
        parts: dict[tuple[str, str, str], list[SensorId]] = {}
        for sensor in self.sensors:
            if sensor.scope == "part":
                parts.setdefault((sensor.component, sensor.collector, sensor.domain), []).append(sensor)
        windows_of_phases = [
            window
            for window in self.record.windows
            if window.kind == "phase" and (window.configuration, window.batch_size) == key
        ]
        components = tuple(energy(component, self._devices_of(component)) for component in self._components())
        total = energy(TOTAL, self.devices)
        throughput = (
            mean_rate([(measured.window, measured.window.inferences) for measured in used], self.coverage)
            if used
            else None
        )
        phases, unresolved_phases = with_energies(
            phase_shares([measured.window for measured in used]) or phase_shares(windows_of_phases),
            windows_of_phases,
            (*components, total),
            0.0 if throughput is None else throughput.value,
        )
        return GroupResult(
            configuration=self.configurations.get(name)
            or Configuration(name=name, network=name, runtime="", precision=""),
            batch_size=batch_size,
            windows=tuple(measured.window.index for measured in used),
            excluded=(*(why for _, why in excluded), *without_number),
            rounds=len({measured.window.repeat for measured in used}),
            measured_rounds=len({measured.window.repeat for measured in windows}),
            rounds_ended=self._rounds_ended(key, [measured.window for measured in windows]),
            inferences=sum(measured.window.inferences for measured in used),
            duration_s=math.fsum(measured.window.duration_s for measured in used),
            throughput=throughput,
            latency=latency_summary(used),
            components=components,
            total=total,
            nodes=tuple(energy(str(sensor), [sensor]) for sensor in self.sensors if sensor.scope == "node"),
            parts=tuple(
                energy(f"{component} {domain} ({collector})", sensors)
                for (component, collector, domain), sensors in parts.items()
            ),
            counts=self.counts(self.devices, used, name),
            phases=phases,
            unresolved_phases=unresolved_phases,
        )

    def _rounds_ended(self, key: GroupKey, windows: Sequence[Window]) -> str:
        """Return why a cell has no more rounds: from the runner's note, or from the plan."""
        plan = self.record.header.plan
        for note in self.record.notes:
            if note.reason == ROUNDS_ENDED and (note.configuration, note.batch_size) == key:
                return note.text
        rounds = plan.get("rounds")
        if self.target is None and isinstance(rounds, int):
            complete = len({window.repeat for window in windows if "interrupted" not in window.flags})
            planned = count_of(rounds, "round")
            return f"{planned} fixed" if complete >= rounds else f"ended early: {complete} of {planned}"
        return ""

    def audit_group(self, group: GroupResult) -> Iterator[Finding]:
        """Check whether the rounds of one group agree."""
        rounds: dict[int, list[float]] = {}
        if group.total.gross is not None:
            used = set(group.windows)
            windows = [measured for measured in self.run.windows if measured.window.index in used]
            for measured, gathered in self.gather(group.total.sensors, windows)[0]:
                joules = math.fsum([energy.joules for energy in gathered])
                rounds.setdefault(measured.window.repeat, []).append(joules / measured.window.inferences)
        name = f"{group.configuration.name}, batch {group.batch_size}"
        means = [mean(values) for values in rounds.values()]
        metered = self.record.header.is_metered
        yield from audit_repeats(name, means, group.measured_rounds, self.target, group.rounds_ended, metered=metered)
        energies = {} if group.total.gross is None else group.total.gross.rounds
        rates = {} if group.throughput is None else group.throughput.rounds
        times_s = {number: 1 / rate for number, rate in rates.items() if rate > 0}
        yield from audit_first_round(name, {"energy per inference": energies, "time per inference": times_s})
        gross, idle = group.total.gross, group.total.idle
        if gross is not None and idle is not None and group.throughput is not None:
            yield from audit_load(name, gross, group.throughput.value, idle)

    def energy(
        self, name: str, sensors: Sequence[SensorId], windows: Sequence[MeasuredWindow], configuration: str
    ) -> EnergyResult:
        """Return the joules per inference of some disjoint sensors over the windows of one group."""
        result = EnergyResult(
            name=name,
            gross=None,
            net=None,
            idle=None,
            missing="no sensor",
            windows=(),
            sensors=tuple(sensors),
            methods=tuple(sorted({self.sensors[sensor].method for sensor in sensors})),
            sources=(),
        )
        if not sensors:
            return result
        gathered, missing = self.gather(sensors, windows)
        if not gathered:
            return replace(result, missing=_missing_text(missing, len(windows)))
        complete = [(measured, combine(energies)) for measured, energies in gathered]
        idle = self.idle_power(sensors, configuration)
        withheld = self.idle_problem(idle, sensors)
        shares = self.shares(sensors, [measured for measured, _ in complete], configuration)
        result = replace(
            result,
            idle=idle,
            attributed=None if isinstance(shares, str) else self.attributed(complete, idle, shares),
            attributed_missing=shares if isinstance(shares, str) else "",
            shares=() if isinstance(shares, str) else shares,
            windows=tuple(measured.window.index for measured, _ in complete),
            sources=tuple(sorted({source for _, energy in complete for source in energy.sources})),
        )
        of_configuration = self.configurations.get(configuration)
        if of_configuration is not None and of_configuration.alone:
            # The energy of the devices is that of all networks, per inference of one of them it would mislead.
            return replace(
                result, missing="other networks ran at the same time, so only its attributed energy is known"
            )
        return replace(
            result,
            gross=per_inference(complete, None, coverage=self.coverage),
            net=per_inference(complete, idle, coverage=self.coverage) if idle is not None and not withheld else None,
            missing="",
            net_missing=withheld,
        )

    def attributed(
        self,
        complete: Sequence[tuple[MeasuredWindow, Combined]],
        idle: IdlePower | None,
        shares: Sequence[WindowShares],
        unit: str = "",
    ) -> Estimate:
        """Return the joules per inference, or per other unit of work, that the processes of the network used."""
        own = {one.window: one.parts["own"] for one in shares}
        ratio = max((one.ratio for one in shares), default=DEFAULT_RATIO)
        return per_inference(complete, idle, unit, self.coverage, own=own, ratio=ratio)

    def shares(
        self, sensors: Sequence[SensorId], windows: Sequence[MeasuredWindow], configuration: str
    ) -> tuple[WindowShares, ...] | str:
        """Return whose the energy of some devices was in each window, or the reason why that is not known."""
        if any(sensor.scope != "device" for sensor in sensors):
            return "the energy of a whole server, or of a part of a device, is not shared"
        away = next((sensor for sensor in sensors if not is_here(self.run, sensor)), None)
        if away is not None:
            return f"{away} does not measure the machine on which the network runs"
        of_configuration = self.configurations.get(configuration)
        if of_configuration is not None and is_server(of_configuration.runtime):
            return "the network runs in a server, whose processes are not known"
        by_window: dict[int, list[WindowShares]] = {}
        for component in dict.fromkeys(sensor.component for sensor in sensors):
            members = [sensor for sensor in sensors if sensor.component == component]
            idle = self.idle_power(members, configuration)
            if idle is None:
                return "idle power is not known: no idle window has the energy of all devices"
            if problem := self.idle_problem(idle, members):
                return problem
            ratio = self.workload_ratio(component, members)
            for measured, energies in self.gather(members, windows)[0]:
                joules = math.fsum([energy.joules for energy in energies])
                idle_joules = idle.watts * measured.span.duration_s
                one = share_window(component, measured.window, joules, idle_joules, ratio)
                if isinstance(one, str):
                    return one
                by_window.setdefault(measured.window.index, []).append(one)
        return tuple(joined(parts) for parts in by_window.values())

    def workload_ratio(self, component: str, sensors: Sequence[SensorId]) -> float:
        """Return how much the watts per processor of two programs differ at most, for devices of this machine."""
        names = {sensor.exporter for sensor in sensors}
        measured = (one.workload_ratios for one in self.run.record.header.exporters if one.name in names)
        return max((ratios[component] for ratios in measured if component in ratios), default=DEFAULT_RATIO)

    def audit_load_of_others(self, groups: Sequence[GroupResult]) -> Iterator[Finding]:
        """Report other work in measure windows, in joules where whose energy it was is known."""
        shares = {one.window: one for group in groups for one in group.total.shares}
        why = {index: group.total.attributed_missing for group in groups for index in group.windows}
        for measured in self.run.windows:
            index = measured.window.index
            yield from check_measure_load(self.run, measured, shares.get(index), why.get(index, ""))

    def counts(
        self, sensors: Sequence[SensorId], windows: Sequence[MeasuredWindow], configuration: str
    ) -> tuple[CountResult, ...]:
        """Return the joules of each unit of work that every window of a group has counted."""
        if not windows or not windows[0].window.counts:
            return ()
        complete = self.combined(sensors, windows)
        idle = self.idle_power(sensors, configuration) if complete else None
        if self.idle_problem(idle, sensors):
            idle = None
        shares = self.shares(sensors, [measured for measured, _ in complete], configuration) if complete else ""
        coverage = self.coverage
        results = []
        for name in windows[0].window.counts:
            if any(measured.window.counts.get(name, 0) <= 0 for measured in windows):
                continue
            count = math.fsum(measured.window.counts[name] for measured in windows)
            results.append(
                CountResult(
                    name=name,
                    count=count,
                    per_inference=count / sum(measured.window.inferences for measured in windows),
                    rate=mean_rate([(measured.window, measured.window.counts[name]) for measured in windows], coverage),
                    gross=per_inference(complete, None, name, coverage) if complete else None,
                    net=per_inference(complete, idle, name, coverage) if idle is not None else None,
                    attributed=None if isinstance(shares, str) else self.attributed(complete, idle, shares, name),
                )
            )
        return tuple(results)

    # Setups

    def setups(self) -> tuple[SetupResult, ...]:
        """Return all setups, by configuration, loading first."""
        results = [self.setup(measured) for measured in self.run.windows if measured.window.kind == "setup"]
        results += [
            SetupResult(
                configuration=setup.configuration,
                phase=setup.phase,
                batch_size=setup.batch_size,
                duration_s=setup.duration_s,
                details=setup.details,
            )
            for setup in self.record.setups
        ]
        return tuple(
            sorted(
                results, key=lambda setup: (self._place(setup.configuration), setup.phase != "load", setup.batch_size)
            )
        )

    def setup(self, measured: MeasuredWindow) -> SetupResult:
        """Return the time and energy of one window of loading or preparing."""
        window = measured.window
        nodes = [sensor for sensor in self.sensors if sensor.scope == "node"]
        return SetupResult(
            configuration=window.configuration,
            phase=window.phase,
            batch_size=window.batch_size,
            duration_s=window.duration_s,
            window=window.index,
            components=tuple(self._setup_energy(name, self._devices_of(name), measured) for name in self._components()),
            total=self._setup_energy(TOTAL, self.devices, measured),
            nodes=tuple(self._setup_energy(str(sensor), [sensor], measured) for sensor in nodes),
            details=window.details,
        )

    def _setup_energy(self, name: str, sensors: Sequence[SensorId], measured: MeasuredWindow) -> SetupEnergy:
        methods = tuple(sorted({self.sensors[sensor].method for sensor in sensors}))
        result = SetupEnergy(name=name, gross=None, missing="no sensor", methods=methods, sources=())
        if not sensors:
            return result
        complete, missing = self.gather(sensors, [measured])
        if not complete:
            return replace(result, missing=f"{missing[0].text} [{missing[0].reason}]")
        energy = combine(complete[0][1])
        rounds: Rounds = {0: [(energy.joules, energy.random)]}
        joules = combine_mean(rounds, energy.systematic, energy.texts, covers=covers_of([energy]), repeatable=False)
        return replace(result, gross=joules, missing="", sources=tuple(sorted(energy.sources)))


def _exclusion(measured: MeasuredWindow) -> ExcludedWindow | None:
    """Return why a measure window is excluded, whatever its energy."""
    window = measured.window
    for flag, text in (
        ("interrupted", "the window was interrupted"),
        ("overloaded", "queries arrived faster than they were served"),
    ):
        if flag in window.flags:
            return ExcludedWindow(window.index, flag, text)
    if window.inferences < 1:
        return ExcludedWindow(window.index, "too_short", "no inference ended in the window")
    return None


def _missing_text(missing: Sequence[ExcludedWindow], total: int) -> str:
    if not missing:
        return "no window"
    return f"{len(missing)} of {count_of(total, 'window')} without a number: {missing[0].text} [{missing[0].reason}]"
