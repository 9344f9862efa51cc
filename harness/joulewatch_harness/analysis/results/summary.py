"""From the energies of windows to joules per inference: idle baseline, repeats, mean and uncertainty.

Uncertainty follows the GUM (JCGM 100:2008). Between rounds: type A, the experimental standard deviation of the
mean with n − 1 degrees of freedom. Within windows: type B, from each window's own budget. Items that are the same
in every repeat (the published accuracy of a sensor, what power does beside the edges of a window, the idle
baseline) are not divided by the number of repeats.
All are combined in quadrature, expanded to 95 % with Student's factor for the effective degrees of freedom
(Welch–Satterthwaite).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from joulewatch_harness.analysis.energy.window_energy import ACCURACY
from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow, measure_run
from joulewatch_harness.analysis.results import audit
from joulewatch_harness.analysis.results.audit import Finding
from joulewatch_harness.analysis.results.model import (
    COMPONENTS,
    OTHER_PHASE,
    TOTAL,
    BudgetLine,
    CountResult,
    EnergyResult,
    Estimate,
    GroupResult,
    IdleBasis,
    IdlePower,
    LatencySummary,
    LeftOut,
    PhaseShare,
    RunResult,
    SetupEnergy,
    SetupResult,
)
from joulewatch_harness.analysis.results.uncertainty import Combined, combine, combine_mean
from joulewatch_harness.analysis.sources.history import History, SampleSource
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.gum import effective_dof, mean, standard_error
from joulewatch_harness.network import RESERVED_PHASES
from joulewatch_harness.plan.scenario import IDLE_PHASE
from joulewatch_harness.records import Configuration, Latency, RunRecord, Window

MEASURED_KINDS: Final = ("idle", "setup", "measure")
"""Windows that are told in joules."""


def _missing_text(missing: Sequence[LeftOut], total: int) -> str:
    if not missing:
        return "no window"
    return f"{len(missing)} of {total} windows without a number: {missing[0].text} [{missing[0].reason}]"


class _Analysis:
    def __init__(self, run: MeasuredRun) -> None:
        self.run = run
        self.sensors = run.sensors
        self.idle_windows = [
            item for item in run.windows if item.window.kind == "idle" and "interrupted" not in item.window.flags
        ]

    def gather(
        self, sensors: Sequence[SensorId], windows: Sequence[MeasuredWindow]
    ) -> tuple[list[tuple[MeasuredWindow, Combined]], list[LeftOut]]:
        """The windows in which every one of the sensors has a number, and the others."""
        found, missing = [], []
        for item in windows:
            energies = []
            for sensor in sensors:
                measured = item.sensors[sensor]
                if measured.energy is None:
                    missing.append(LeftOut(item.window.index, measured.reason, measured.text))
                    break
                energies.append(measured.energy)
            else:
                found.append((item, combine(energies)))
        return found, missing

    def idle_power(self, sensors: Sequence[SensorId], configuration: str | None) -> IdlePower | None:
        """Idle power of some sensors: with the network loaded where that was measured, else without."""
        loaded = [item for item in self.idle_windows if "loaded" in item.window.flags]
        own = [item for item in loaded if configuration and item.window.configuration == configuration]
        unloaded = [item for item in self.idle_windows if "loaded" not in item.window.flags]
        candidates: list[tuple[IdleBasis, str, list[MeasuredWindow]]] = [
            ("loaded", "with this network loaded", own),
            ("loaded", "with a network loaded", loaded),
            ("unloaded", "without a network loaded", unloaded),
        ]
        for basis, text, windows in candidates:
            found, _ = self.gather(sensors, windows)
            if found:
                return self._idle(basis, text, found)
        return None

    @staticmethod
    def _idle(basis: IdleBasis, text: str, found: Sequence[tuple[MeasuredWindow, Combined]]) -> IdlePower:
        watts = [energy.joules / item.span.duration_s for item, energy in found]
        within = math.sqrt(
            math.fsum(
                math.fsum(u * u for u in energy.random.values()) / item.span.duration_s**2 for item, energy in found
            )
        ) / len(found)
        shared = math.fsum(
            math.hypot(*(u for name, u in energy.systematic.items() if not name.startswith(ACCURACY)))
            / item.span.duration_s
            for item, energy in found
        ) / len(found)
        within = math.hypot(within, shared)
        dof = math.inf
        if len(watts) == 2:
            # Two windows, before and after: a drift, not a sample. All between and as far beyond (GUM 4.3.7).
            between = abs(watts[0] - watts[1]) / math.sqrt(3)
        else:
            between = standard_error(watts)
        standard = math.hypot(within, between)
        if len(watts) > 2 and between > 0:
            dof = effective_dof([(between, len(watts) - 1), (within, math.inf)])
        plural = "s" if len(found) > 1 else ""
        return IdlePower(
            watts=mean(watts),
            standard_watts=standard,
            dof=dof,
            basis=basis,
            windows=tuple(item.window.index for item, _ in found),
            text=f"{len(found)} idle window{plural} {text}",
        )

    def energy(
        self, name: str, sensors: Sequence[SensorId], windows: Sequence[MeasuredWindow], configuration: str
    ) -> EnergyResult:
        """Joules per inference of some disjoint sensors over the windows of one group."""
        methods = tuple(sorted({self.sensors[sensor].method for sensor in sensors}))
        if not sensors:
            return EnergyResult(
                name=name,
                gross=None,
                net=None,
                idle=None,
                missing="no sensor",
                windows=(),
                sensors=(),
                methods=(),
                sources=(),
            )
        found, missing = self.gather(sensors, windows)
        if not found:
            return EnergyResult(
                name=name,
                gross=None,
                net=None,
                idle=None,
                missing=_missing_text(missing, len(windows)),
                windows=(),
                sensors=tuple(sensors),
                methods=methods,
                sources=(),
            )
        idle = self.idle_power(sensors, configuration)
        gross = self._per_inference(found, None)
        net = self._per_inference(found, idle) if idle is not None else None
        return EnergyResult(
            name=name,
            gross=gross,
            net=net,
            idle=idle,
            missing="",
            windows=tuple(item.window.index for item, _ in found),
            sensors=tuple(sensors),
            methods=methods,
            sources=tuple(sorted({source for _, energy in found for source in energy.sources})),
        )

    def counts(
        self, sensors: Sequence[SensorId], windows: Sequence[MeasuredWindow], configuration: str
    ) -> tuple[CountResult, ...]:
        """Joules for each unit of work that every window of a group has counted."""
        names = [name for name in (windows[0].window.counts if windows else ()) if _counted(windows, name)]
        found, _ = self.gather(sensors, windows) if sensors else ([], [])
        idle = self.idle_power(sensors, configuration) if found else None
        results = []
        for name in names:
            rates: dict[int, list[tuple[float, Mapping[str, float]]]] = {}
            for item in windows:
                rate = item.window.counts[name] / item.window.duration_s
                rates.setdefault(item.window.repeat, []).append((rate, {}))
            count = math.fsum(item.window.counts[name] for item in windows)
            results.append(
                CountResult(
                    name=name,
                    count=count,
                    per_inference=count / sum(item.window.inferences for item in windows),
                    rate=combine_mean(rates, {}, {}),
                    gross=self._per_inference(found, None, name) if found else None,
                    net=self._per_inference(found, idle, name) if found and idle is not None else None,
                )
            )
        return tuple(results)

    @staticmethod
    def _per_inference(
        found: Sequence[tuple[MeasuredWindow, Combined]], idle: IdlePower | None, unit: str = ""
    ) -> Estimate:
        """Mean over rounds of joules per inference, or per ``unit`` of ``Window.counts``."""
        rounds: dict[int, list[tuple[float, Mapping[str, float]]]] = {}
        systematic: dict[str, list[float]] = {}
        texts: dict[str, str] = {}
        seconds = []
        for item, energy in found:
            count = item.window.counts[unit] if unit else item.window.inferences
            joules = energy.joules - (idle.watts * item.span.duration_s if idle is not None else 0.0)
            # A sensor that reads 5 % high does so while idle too: its error of the net is 5 % of the net.
            share = abs(joules / energy.joules) if idle is not None and energy.joules else 1.0
            rounds.setdefault(item.window.repeat, []).append(
                (joules / count, {name: u / count for name, u in energy.random.items()})
            )
            for name, u in energy.systematic.items():
                factor = share if name.startswith(ACCURACY) else 1.0
                systematic.setdefault(name, []).append(factor * u / count)
            for name, text in energy.texts.items():
                texts.setdefault(name, text)
            seconds.append(item.span.duration_s / count)
        extra = []
        if idle is not None:
            extra.append(
                BudgetLine(
                    name="idle baseline",
                    kind="B" if math.isinf(idle.dof) else "A",
                    standard=idle.standard_watts * mean(seconds),
                    dof=idle.dof,
                    systematic=True,
                    text=f"{idle.watts:.4g} W ± {idle.standard_watts:.2g} W (standard), {idle.text}",
                )
            )
        return combine_mean(
            rounds, {name: math.fsum(values) / len(found) for name, values in systematic.items()}, texts, extra
        )

    def setup(self, measured: MeasuredWindow) -> SetupResult:
        """One span of loading or preparing, in joules."""
        devices = [sensor for sensor in self.sensors if sensor.scope == "device"]

        def energy(name: str, sensors: Sequence[SensorId]) -> SetupEnergy:
            methods = tuple(sorted({self.sensors[sensor].method for sensor in sensors}))
            if not sensors:
                return SetupEnergy(name=name, gross=None, missing="no sensor", methods=(), sources=())
            found, missing = self.gather(sensors, [measured])
            if not found:
                return SetupEnergy(
                    name=name,
                    gross=None,
                    missing=f"{missing[0].text} [{missing[0].reason}]",
                    methods=methods,
                    sources=(),
                )
            ((_, one),) = found
            joules = combine_mean({0: [(one.joules, one.random)]}, one.systematic, one.texts)
            return SetupEnergy(name=name, gross=joules, missing="", methods=methods, sources=tuple(sorted(one.sources)))

        window = measured.window
        return SetupResult(
            configuration=window.configuration,
            phase=window.phase,
            batch_size=window.batch_size,
            duration_s=window.duration_s,
            window=window.index,
            components=tuple(
                energy(component, [sensor for sensor in devices if sensor.component == component])
                for component in _ordered({sensor.component for sensor in devices})
            ),
            total=energy(TOTAL, devices),
            nodes=tuple(energy(str(sensor), [sensor]) for sensor in self.sensors if sensor.scope == "node"),
            details=window.details,
        )

    def group(
        self,
        configuration: Configuration,
        batch_size: int,
        windows: Sequence[MeasuredWindow],
        passes: Sequence[Window] = (),
    ) -> tuple[GroupResult, list[Finding]]:
        """One configuration at one batch size; ``passes``: windows that were there for phases only."""
        left_out = []
        used = []
        for item in windows:
            if "interrupted" in item.window.flags:
                left_out.append(LeftOut(item.window.index, "interrupted", "the window was cut off"))
            elif "overloaded" in item.window.flags:
                text = "queries arrived faster than they were served"
                left_out.append(LeftOut(item.window.index, "overloaded", text))
            elif item.window.inferences < 1:
                left_out.append(LeftOut(item.window.index, "too_short", "no inference ended in the window"))
            else:
                used.append(item)
        devices = [sensor for sensor in self.sensors if sensor.scope == "device"]

        def result(name: str, sensors: Sequence[SensorId]) -> EnergyResult:
            found = self.energy(name, sensors, used, configuration.name)
            if not used and left_out and found.missing and sensors:
                return replace(found, missing=f"{left_out[0].text} [{left_out[0].reason}]")
            return found

        components = tuple(
            result(component, own)
            for component in _ordered({sensor.component for sensor in devices})
            if (own := [sensor for sensor in devices if sensor.component == component])
        )
        total = result(TOTAL, devices)
        _, missing = self.gather(devices, used)
        left_out += missing
        nodes = tuple(result(str(sensor), [sensor]) for sensor in self.sensors if sensor.scope == "node")
        kinds: dict[tuple[str, str, str], list[SensorId]] = {}
        for sensor in self.sensors:
            if sensor.scope == "part":
                kinds.setdefault((sensor.component, sensor.collector, sensor.domain), []).append(sensor)
        parts = tuple(
            result(f"{component} {domain} ({collector})", own) for (component, collector, domain), own in kinds.items()
        )
        throughput = None
        if used:
            rates: dict[int, list[tuple[float, Mapping[str, float]]]] = {}
            for item in used:
                rates.setdefault(item.window.repeat, []).append((item.window.inferences / item.window.duration_s, {}))
            throughput = combine_mean(rates, {}, {})
        name = f"{configuration.name}, batch {batch_size}"
        findings = list(audit.audit_repeats(name, self._round_means(total, used)))
        return (
            GroupResult(
                configuration=configuration,
                batch_size=batch_size,
                windows=tuple(item.window.index for item in used),
                left_out=tuple(left_out),
                rounds=len({item.window.repeat for item in used}),
                inferences=sum(item.window.inferences for item in used),
                duration_s=math.fsum(item.window.duration_s for item in used),
                throughput=throughput,
                latency=_latency(used),
                components=components,
                total=total,
                nodes=nodes,
                parts=parts,
                counts=self.counts(devices, used, configuration.name),
                phases=phase_shares([item.window for item in used]) or phase_shares(passes),
            ),
            findings,
        )

    def _round_means(self, total: EnergyResult, used: Sequence[MeasuredWindow]) -> list[float]:
        if total.gross is None:
            return []
        rounds: dict[int, list[float]] = {}
        for item, energy in self.gather(total.sensors, used)[0]:
            rounds.setdefault(item.window.repeat, []).append(energy.joules / item.window.inferences)
        return [mean(values) for values in rounds.values()]


def _counted(windows: Iterable[MeasuredWindow], name: str) -> bool:
    return all(item.window.counts.get(name, 0) > 0 for item in windows)


def _ordered(components: Iterable[str]) -> list[str]:
    return sorted(components, key=lambda name: (COMPONENTS.index(name) if name in COMPONENTS else 99, name))


def phase_shares(windows: Sequence[Window]) -> tuple[PhaseShare, ...]:
    """Shares of the time per phase, in the order in which a batch goes through them; none without phases."""
    told = [window for window in windows if window.phases and window.batches]
    names = {name for window in told for name in window.phases}
    found = []
    for name in sorted(names, key=_phase_place):
        rounds: dict[int, list[tuple[float, Mapping[str, float]]]] = {}
        for window in told:
            spent = window.phases.get(name)
            whole_s = math.fsum(one.total_s for one in window.phases.values())
            share = spent.total_s / whole_s if spent is not None and whole_s > 0 else 0.0
            rounds.setdefault(window.repeat, []).append((share, {}))
        total_s = math.fsum(window.phases[name].total_s for window in told if name in window.phases)
        share_of_all = combine_mean(rounds, {}, {})
        found.append(PhaseShare(name, share_of_all, total_s / sum(window.batches for window in told)))
    return tuple(found)


def _phase_place(name: str) -> tuple[int, str]:
    if name in (IDLE_PHASE, OTHER_PHASE):
        return len(RESERVED_PHASES) + 1 + (name == OTHER_PHASE), name
    return RESERVED_PHASES.index(name) if name in RESERVED_PHASES else len(RESERVED_PHASES), name


def _latency(windows: Sequence[MeasuredWindow]) -> LatencySummary | None:
    found = [item.window.latency for item in windows if item.window.latency is not None]
    if not found:
        return None
    rounds: dict[int, list[Latency]] = {}
    for item in windows:
        if item.window.latency is not None:
            rounds.setdefault(item.window.repeat, []).append(item.window.latency)
    rounds_s = {
        name: {number: mean([getattr(one, f"{name}_s") for one in part]) for number, part in rounds.items()}
        for name in ("p50", "p90", "p99")
    }
    standard_s = {name: standard_error(list(values.values())) for name, values in rounds_s.items()}
    return LatencySummary(
        p50_s=mean([item.p50_s for item in found]),
        p90_s=mean([item.p90_s for item in found]),
        p99_s=mean([item.p99_s for item in found]),
        max_s=max(item.max_s for item in found),
        standard_s=standard_s if len(rounds) > 1 else {},
        rounds_s=rounds_s,
    )


def run_spans(record: RunRecord) -> list[tuple[float, float]]:
    """The spans of a run for which samples are wanted: all that are told in joules."""
    return [
        (window.start_s, window.start_s + window.duration_s)
        for window in record.windows
        if window.kind in MEASURED_KINDS and window.duration_s > 0
    ]


def analyze_run(
    record: RunRecord,
    source: SampleSource | None,
    *,
    progress: Callable[[str], None] | None = None,
) -> RunResult:
    """Turn a run into joules per inference.

    Args:
        record: The run, from wherever.
        source: Where samples of its counters are; None: the edges in the record are all there is.
        progress: Called with what is being done, for people.

    Returns:
        One result for each configuration and batch size, and the findings of the audit.

    Raises:
        QueryError: The source cannot be asked.
    """
    say = progress or (lambda _: None)
    # The exporters of the run; of a foreign record that names none, all that the source has.
    exporters = record.header.exporters or None
    history = History(source="")
    if source is not None:
        say(f"reading samples from {source.describe()}")
        history = source.history(run_spans(record), exporters)
    say("integrating")
    kept = RunRecord(
        header=record.header,
        configurations=record.configurations,
        windows=tuple(window for window in record.windows if window.kind in MEASURED_KINDS),
        notes=record.notes,
        end=record.end,
    )
    run = measure_run(kept, history)
    analysis = _Analysis(run)
    known = {item.name: item for item in (*record.header.configurations, *record.configurations)}
    order = list(known)
    groups: dict[tuple[str, int], list[MeasuredWindow]] = {}
    for item in run.windows:
        if item.window.kind == "measure":
            groups.setdefault((item.window.configuration, item.window.batch_size), []).append(item)
    passes: dict[tuple[str, int], list[Window]] = {}
    for window in record.windows:
        if window.kind == "phase":
            passes.setdefault((window.configuration, window.batch_size), []).append(window)
    # What setting up cost is told and not judged: a doubt about it is no doubt about a result.
    audited = replace(run, windows=tuple(item for item in run.windows if item.window.kind != "setup"))
    results = []
    findings = list(audit.audit_run(audited, with_history=source is not None))
    for name, batch_size in sorted(
        groups, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key)
    ):
        configuration = known.get(name) or Configuration(name=name, network=name, runtime="", precision="")
        result, found = analysis.group(
            configuration, batch_size, groups[name, batch_size], passes.get((name, batch_size), ())
        )
        results.append(result)
        findings += found
    idle: dict[str, IdlePower] = {}
    devices = [sensor for sensor in run.sensors if sensor.scope == "device"]
    for name in (*_ordered({sensor.component for sensor in devices}), TOTAL):
        own = [sensor for sensor in devices if name in (TOTAL, sensor.component)]
        power = analysis.idle_power(own, None) if own else None
        if power is None:
            continue
        idle[name] = power
        counted, _ = analysis.gather(own, [w for w in analysis.idle_windows if w.window.index in power.windows])
        findings += audit.audit_idle(name, [energy.joules / item.span.duration_s for item, energy in counted])
    if devices and TOTAL not in idle and results:
        findings.append(
            Finding(
                severity="info",
                reason="no_idle",
                text="no idle window has a number for all devices: there is no net energy",
            )
        )
    findings += audit.audit_windows(audited)
    setups = [analysis.setup(item) for item in run.windows if item.window.kind == "setup"]
    setups += [
        SetupResult(
            configuration=one.configuration,
            phase=one.phase,
            batch_size=one.batch_size,
            duration_s=one.duration_s,
            details=one.details,
        )
        for one in record.setups
    ]
    setups.sort(
        key=lambda one: (
            order.index(one.configuration) if one.configuration in order else len(order),
            one.phase != "load",
            one.batch_size,
        )
    )
    return RunResult(
        record=record,
        source=source.describe() if source is not None else "",
        sensors=tuple(run.sensors.values()),
        groups=tuple(results),
        idle=idle,
        findings=tuple(findings),
        setups=tuple(setups),
    )
