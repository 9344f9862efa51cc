"""Every reason code of the audit through the whole chain: a recorded run, ``joulewatch analyze``, all its outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import responses

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.results.audit.findings import REASONS, Severity
from joulewatch_harness.analysis.results.audit.groups import audit_load
from joulewatch_harness.analysis.results.audit.other_load import LEAST_LOAD_S, other_load
from joulewatch_harness.analysis.results.audit.run import audit_record
from joulewatch_harness.analysis.results.model import Estimate, IdlePower, RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.cli import main
from joulewatch_harness.records import (
    CalibrationRecord,
    Edge,
    EdgeClock,
    EdgeStep,
    ProcessorTime,
    RunEnd,
    SensorRecord,
    Window,
)
from joulewatch_harness.storage.journal import Journal
from support.fake_prometheus import URL, FakePrometheus
from support.runs import window as window_of
from support.synthetic import EXPORTER, RUN, T0, ListSource, World, make_world, sensor, without_edges, write_recording

CPU = sensor("socket0", "package")
Samples = list[RawSeries]
Case = Callable[[], tuple[World, Samples]]
CASES: dict[str, tuple[Severity, Case]] = {}
"""Reason code -> its severity in this run, and the run."""


def case(reason: str, severity: Severity) -> Callable[[Case], Case]:
    def add(make: Case) -> Case:
        CASES[reason] = (severity, make)
        return make

    return add


def run(
    sensors: Sequence[SensorRecord] = (CPU,),
    *,
    power: Callable[[SensorRecord, str, int], float] | None = None,
    rounds: int = 2,
    **settings: float | bool,
) -> World:
    """Return a run of one configuration at one batch size: two idle windows, the rounds, an idle window."""
    more = {"power": power} if power is not None else {}
    names = ("net/onnxruntime/fp32",)
    return make_world(sensors, configurations=names, batch_sizes=(1,), rounds=rounds, **more, **settings)  # type: ignore[arg-type]


def with_windows(world: World, change: Callable[[Window], Window], *kinds: str) -> tuple[World, Samples]:
    """Change the windows of some kinds."""
    assert world.record is not None
    windows = tuple(change(one) if one.kind in kinds else one for one in world.record.windows)
    world.record = dataclasses.replace(world.record, windows=windows)
    return world, world.scrapes()


def with_flag(flag: str) -> tuple[World, Samples]:
    return with_windows(run(), lambda one: dataclasses.replace(one, flags=(flag,)), "measure")


def with_load(kind: str, share: float, sensors: Sequence[SensorRecord] = (CPU,)) -> tuple[World, Samples]:
    """Other work uses a share of four processors in the windows of one kind; the run itself uses one."""

    def used(one: Window) -> Window:
        own_s = one.duration_s
        time = ProcessorTime(busy_s=own_s + 4 * share * one.duration_s, own_s=own_s, processors=4)
        return dataclasses.replace(one, processor_time=time)

    return with_windows(run(sensors), used, kind)


def middle_of(world: World, kind: str = "measure") -> float:
    assert world.record is not None
    one = next(one for one in world.record.windows if one.kind == kind)
    return one.start_s + one.duration_s / 2


def of_cpu(world: World, name: str, change: Callable[[np.ndarray], np.ndarray]) -> RawSeries:
    """Return a metric of the sensor ``CPU`` as a function of time."""
    times_s = world.scrapes()[0].times_s
    labels = {"instance": EXPORTER, "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    return RawSeries(name=name, labels=labels, times_s=times_s, values=change(times_s))


def with_event(name: str, rise: float) -> tuple[World, Samples]:
    world = run()
    at_s = middle_of(world)
    return world, [*world.scrapes(), of_cpu(world, name, lambda times: np.where(times > at_s, rise, 0.0))]


def kept(samples: Samples, keep: Callable[[np.ndarray], np.ndarray]) -> Samples:
    return [
        dataclasses.replace(raw, times_s=raw.times_s[keep(raw.times_s)], values=raw.values[keep(raw.times_s)])
        for raw in samples
    ]


def history_only(world: World) -> World:
    assert world.record is not None
    world.record = without_edges(world.record)
    return world


def hold(world: World, from_s: float, until_s: float = np.inf) -> Samples:
    """Return the scrapes of a machine whose counters are frozen for some time."""
    samples = []
    for raw in world.scrapes():
        values = raw.values
        if raw.name == catalog.DEVICE_ENERGY.name:
            held = (raw.times_s >= from_s) & (raw.times_s <= until_s)
            values = np.where(held, values[np.argmax(held)], values)
        samples.append(dataclasses.replace(raw, values=values))
    return samples


@case("sample_gap", "info")
def _() -> tuple[World, Samples]:
    world = history_only(run(window_s=6.0))
    at_s = middle_of(world)
    return world, kept(world.scrapes(), lambda times: abs(times - at_s) > 1.5)


@case("exporter_restart", "error")
def _() -> tuple[World, Samples]:
    world = run()
    at_s = middle_of(world)
    return world, [
        dataclasses.replace(raw, values=np.where(raw.times_s > at_s, at_s, raw.values))
        if raw.name == catalog.EXPORTER_START.name
        else raw
        for raw in world.scrapes()
    ]


def elsewhere(world: World) -> World:
    """Move the exporter to another machine than the harness."""
    assert world.record is not None
    exporters = tuple(dataclasses.replace(item, nodename="elsewhere") for item in world.record.header.exporters)
    header = dataclasses.replace(world.record.header, exporters=exporters)
    world.record = dataclasses.replace(world.record, header=header)
    return world


@case("clock_stepped", "error")
def _() -> tuple[World, Samples]:
    return with_windows(run(), lambda one: dataclasses.replace(one, clock_step_s=300.0), "measure")


@case("clock_unknown", "warning")
def _() -> tuple[World, Samples]:
    world = history_only(elsewhere(run()))
    return world, world.scrapes()


@case("clock_skew", "warning")
def _() -> tuple[World, Samples]:
    def ahead(edge: Edge | None) -> Edge:
        assert edge is not None
        counters = tuple(dataclasses.replace(item, read_at_s=item.read_at_s + 0.25) for item in edge.counters)
        return dataclasses.replace(edge, counters=counters, clocks=(EdgeClock(EXPORTER, 0.2496, 0.2504),))

    world, _ = with_windows(
        elsewhere(run()),
        lambda one: dataclasses.replace(one, start_edge=ahead(one.start_edge), end_edge=ahead(one.end_edge)),
        "measure",
        "idle",
    )
    return world, []


@case("unbracketed", "error")
def _() -> tuple[World, Samples]:
    world = history_only(run())
    at_s = middle_of(world)
    return world, kept(world.scrapes(), lambda times: times < at_s)


@case("below_refresh", "warning")
def _() -> tuple[World, Samples]:
    world = run([dataclasses.replace(CPU, refresh_s=0.5)])
    return world, world.scrapes()


def with_edge(change: Callable[[Edge], Edge]) -> World:
    def changed(one: Window) -> Window:
        assert one.end_edge is not None
        return dataclasses.replace(one, end_edge=change(one.end_edge))

    return with_windows(run(), changed, "measure")[0]


@case("edge_history_disagreement", "error")
def _() -> tuple[World, Samples]:
    def more(edge: Edge) -> Edge:
        counters = tuple(dataclasses.replace(item, energy_joules=1.2 * item.energy_joules) for item in edge.counters)
        return dataclasses.replace(edge, counters=counters)

    world = with_edge(more)
    return world, world.scrapes()


@case("edge_missing", "error")
def _() -> tuple[World, Samples]:
    lost = with_edge(lambda edge: dataclasses.replace(edge, counters=(), missing={EXPORTER: "connection refused"}))
    return lost, []


@case("refreshes_missed", "info")
def _() -> tuple[World, Samples]:
    """The end of each measured window has no refresh: more than a fifth of all edges."""
    step = EdgeStep(error_s=0.0, before_joules=0.0, first_joules=0.0, span_s=0.0)

    def stepped(edge: Edge | None, reason: str) -> Edge | None:
        if edge is None:
            return None
        counters = tuple(
            dataclasses.replace(
                counter,
                step=None if reason else dataclasses.replace(step, first_joules=counter.energy_joules),
                no_step=reason,
            )
            for counter in edge.counters
        )
        return dataclasses.replace(edge, counters=counters)

    def changed(one: Window) -> Window:
        missed = "the exporter was interrupted for 4 ms"
        return dataclasses.replace(one, start_edge=stepped(one.start_edge, ""), end_edge=stepped(one.end_edge, missed))

    return with_windows(run(), changed, "measure", "idle")[0], []


@case("no_samples", "error")
def _() -> tuple[World, Samples]:
    return history_only(run()), []


@case("sensor_down", "error")
def _() -> tuple[World, Samples]:
    world = history_only(run())
    at_s = middle_of(world)
    gone = kept(world.scrapes(), lambda times: times < at_s)
    return world, [*gone, up_until(world, at_s)]


def up_until(world: World, at_s: float) -> RawSeries:
    up = of_cpu(world, catalog.SENSOR_UP.name, lambda times: np.where(times < at_s, 1.0, 0.0))
    labels = {name: value for name, value in up.labels.items() if name not in ("component", "domain")}
    return dataclasses.replace(up, labels=labels)


@case("sensor_asleep", "error")
def _() -> tuple[World, Samples]:
    world = history_only(run())
    at_s = middle_of(world)
    gone = kept(world.scrapes(), lambda times: times < at_s)
    up = up_until(world, at_s)
    asleep = dataclasses.replace(up, name=catalog.SENSOR_STATE.name, labels={**up.labels, "state": "asleep"})
    (asleep,) = kept([asleep], lambda times: times >= at_s)
    return world, [*gone, up, dataclasses.replace(asleep, values=np.ones_like(asleep.values))]


@case("wraps_seen", "info")
def _() -> tuple[World, Samples]:
    return with_event(catalog.SENSOR_WRAPS.name, 1.0)


@case("rejected_readings", "warning")
def _() -> tuple[World, Samples]:
    return with_event(catalog.SENSOR_REJECTED.name, 2.0)


@case("unmeasured_time", "error")
def _() -> tuple[World, Samples]:
    return with_event(catalog.SENSOR_UNMEASURED.name, 1.0)


@case("core_exceeds_package", "error")
def _() -> tuple[World, Samples]:
    core = sensor("socket0", "core", "cpu", "part")
    world = run([CPU, core], power=lambda item, *_: 60.0 if item is core else 50.0)
    return world, world.scrapes()


@case("devices_exceed_node", "warning")
def _() -> tuple[World, Samples]:
    node = sensor("psys", "total", "node", "node")
    world = run([CPU, node], power=lambda item, *_: 40.0 if item is node else 50.0)
    return world, world.scrapes()


@case("idle_drift", "warning")
def _() -> tuple[World, Samples]:
    world = run(loaded_idle=False)
    signal = world.sensors[CPU]
    world.sensors[CPU] = dataclasses.replace(signal, watts=(*signal.watts[:-1], signal.watts[-1] + 12.0))
    return history_only(world), world.scrapes()


@case("not_steady", "warning")
def _() -> tuple[World, Samples]:
    """The first round is slower by 20 %."""

    def cold(one: Window) -> Window:
        return dataclasses.replace(one, inferences=round(one.inferences * 0.8)) if one.repeat == 0 else one

    return with_windows(run(rounds=5, noise=0.003), cold, "measure")


@case("power_not_steady", "warning")
def _() -> tuple[World, Samples]:
    world = run(window_s=4.0)
    at_s = middle_of(world)
    signal = world.sensors[CPU]
    at = int(np.searchsorted(signal.times_s, at_s))
    world.sensors[CPU] = dataclasses.replace(
        signal,
        times_s=(*signal.times_s[:at], at_s, *signal.times_s[at:]),
        watts=(*signal.watts[:at], signal.watts[at - 1] * 1.5, *signal.watts[at:]),
    )
    return history_only(world), world.scrapes()


@case("repeats_apart", "warning")
def _() -> tuple[World, Samples]:
    world = run(noise=0.3, rounds=4)
    return world, world.scrapes()


@case("dependent_rounds", "warning")
def _() -> tuple[World, Samples]:
    """The machine is slower for some rounds, and faster for others."""

    def slow(one: Window) -> Window:
        return dataclasses.replace(one, inferences=round(one.inferences * (1 + 0.1 * np.sin(0.6 * one.repeat))))

    return with_windows(run(rounds=12), slow, "measure")


@case("single_repeat", "warning")
def _() -> tuple[World, Samples]:
    world = run(rounds=1)
    return world, world.scrapes()


@case("accuracy_unknown", "info")
def _() -> tuple[World, Samples]:
    world = run()
    return world, world.scrapes()


def with_details(**details: str) -> tuple[World, Samples]:
    """Add details to the network, as its description has them once it is loaded."""
    world = run()
    assert world.record is not None
    loaded = dataclasses.replace(world.record.header.configurations[0], details=details)
    world.record = dataclasses.replace(world.record, configurations=(loaded,))
    return world, world.scrapes()


@case("made_up_inputs", "warning")
def _() -> tuple[World, Samples]:
    return with_details(made_up_inputs="n: 0 or 1, because the model does not show which values are valid")


@case("not_finite_outputs", "warning")
def _() -> tuple[World, Samples]:
    return with_details(not_finite_outputs="y: NaN or infinite")


@case("exporter_missing", "warning")
def _() -> tuple[World, Samples]:
    return run(), []


@case("estimated_energy", "warning")
def _() -> tuple[World, Samples]:
    world = run([dataclasses.replace(CPU, method="estimated")])
    return world, world.scrapes()


@case("emulated_energy", "warning")
def _() -> tuple[World, Samples]:
    world = run([dataclasses.replace(CPU, method="emulated")])
    return world, world.scrapes()


@case("unknown_method", "warning")
def _() -> tuple[World, Samples]:
    world = run()
    assert world.record is not None
    world.record = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, sensors=()))
    return world, [raw for raw in world.scrapes() if raw.name != catalog.SENSOR_INFO.name]


@case("interrupted", "warning")
def _() -> tuple[World, Samples]:
    world = run()
    assert world.record is not None
    world.record = dataclasses.replace(world.record, end=RunEnd(T0, "interrupted", "Ctrl-C"))
    return world, world.scrapes()


@case("too_short", "warning")
def _() -> tuple[World, Samples]:
    return with_flag("too_short")


@case("too_uncertain", "warning")
def _() -> tuple[World, Samples]:
    """A process was interrupted: the counter was read 8 s after windows of some seconds."""

    def late(edge: Edge) -> Edge:
        counters = tuple(
            dataclasses.replace(item, read_at_s=item.read_at_s + 8.0, energy_joules=item.energy_joules + 800.0)
            for item in edge.counters
        )
        return dataclasses.replace(edge, counters=counters, answered_at_s=edge.answered_at_s + 8.0)

    return with_edge(late), []


@case("overloaded", "warning")
def _() -> tuple[World, Samples]:
    return with_flag("overloaded")


@case("overlapping", "warning")
def _() -> tuple[World, Samples]:
    return with_flag("overlapping")


@case("no_idle", "info")
def _() -> tuple[World, Samples]:
    return with_windows(run(), lambda one: dataclasses.replace(one, kind="warmup"), "idle")


@case("no_sensors", "error")
def _() -> tuple[World, Samples]:
    return run([]), []


@case("frozen", "error")
def _() -> tuple[World, Samples]:
    world = history_only(run())
    assert world.record is not None
    one = next(one for one in world.record.windows if one.kind == "measure")
    return world, hold(world, one.start_s + 0.5, one.start_s + 1.5)


@case("load_draws_idle", "warning")
def _() -> tuple[World, Samples]:
    world = run(power=lambda *_: 40.0)
    return world, world.scrapes()


@case("idle_busy", "error")
def _() -> tuple[World, Samples]:
    return with_load("idle", 0.06)


@case("other_load", "warning")
def _() -> tuple[World, Samples]:
    return with_load("measure", 0.02)


@case("settle_too_short", "warning")
def _() -> tuple[World, Samples]:
    world = run([dataclasses.replace(CPU, refresh_s=0.1)])
    return with_plan(world, settle_s=0.05), world.scrapes()


def with_conditions(**conditions: float) -> tuple[World, Samples]:
    def changed(one: Window) -> Window:
        return dataclasses.replace(one, conditions={"seconds": 10.0, "processors": 4.0, **conditions})

    return with_windows(run(), changed, "measure")


for reason_, severity_, conditions_ in (
    ("cpu_pressure", "warning", {"cpu_pressure_s": 0.6}),
    ("memory_pressure", "warning", {"memory_pressure_s": 0.06}),
    ("steal", "error", {"steal_s": 3.0}),
    ("swapping", "error", {"swapped_in_pages": 1.0}),
    ("cpu_throttled", "error", {"throttled_s": 0.2}),
    ("governor_changed", "error", {"governor_changed": 4.0}),
    ("turbo_changed", "error", {"turbo_changed": 1.0}),
    ("power_limit_changed", "error", {"power_limit_changed": 1.0}),
    ("gpu_throttled_thermal", "error", {"gpu_thermal_s/GPU-1": 0.2}),
    ("gpu_power_capped", "info", {"gpu_power_capped_s/GPU-1": 9.0}),
    ("power_limit_not_default", "info", {"gpu_limit_ratio/GPU-1": 0.8}),
    ("power_smoothing_on", "warning", {"gpu_power_smoothing/GPU-1": 1.0, "gpu_power_floor_watts/GPU-1": 210.0}),
    ("power_profile_active", "info", {"gpu_power_profiles/GPU-1": 33.0}),
    ("hot", "info", {"gpu_hot_s/GPU-1": 0.2}),
    ("ecc_errors", "warning", {"gpu_ecc_errors/GPU-1": 1.0}),
    ("gpu_shared", "error", {"gpu_others/GPU-1": 1.0, "gpu_others_share/GPU-1": 0.03}),
):
    case(reason_, severity_)(functools.partial(with_conditions, **conditions_))


def with_rounds(name: str, *values: float) -> tuple[World, Samples]:
    """Set a condition of the measure windows, in their order."""
    world, samples = with_conditions()
    assert world.record is not None
    left = list(values)
    windows = [
        dataclasses.replace(one, conditions={**one.conditions, name: left.pop(0)}) if one.kind == "measure" else one
        for one in world.record.windows
    ]
    assert not left
    world.record = dataclasses.replace(world.record, windows=tuple(windows))
    return world, samples


@case("frequency_drift", "warning")
def _() -> tuple[World, Samples]:
    return with_rounds("cpu_mhz", 3400.0, 3290.0)


@case("clocks_differ", "warning")
def _() -> tuple[World, Samples]:
    return with_rounds("gpu_sm_mhz/GPU-1", 1755.0, 1700.0)


@case("governor_not_performance", "info")
def _() -> tuple[World, Samples]:
    world = run()
    assert world.record is not None
    header = world.record.header
    provenance = {**header.provenance, "cpu": {"governor": "powersave"}}
    world.record = dataclasses.replace(world.record, header=dataclasses.replace(header, provenance=provenance))
    return world, world.scrapes()


def with_plan(world: World, **keys: float) -> World:
    assert world.record is not None
    header = dataclasses.replace(world.record.header, plan={**world.record.header.plan, **keys})
    world.record = dataclasses.replace(world.record, header=header)
    return world


@case("identity_conflict", "warning")
def _() -> tuple[World, Samples]:
    """Another machine gets the address of the exporter."""
    world = run()
    (info,) = [raw for raw in world.scrapes() if raw.name == catalog.EXPORTER_INFO.name]
    late = info.times_s > middle_of(world)
    first = dataclasses.replace(info, times_s=info.times_s[~late], values=info.values[~late])
    labels = {**info.labels, "nodename": "node2"}
    other = dataclasses.replace(info, labels=labels, times_s=info.times_s[late], values=info.values[late])
    return world, [*(raw for raw in world.scrapes() if raw.name != info.name), first, other]


@case("targets_merged", "info")
def _() -> tuple[World, Samples]:
    """Two replicas of a Prometheus store the same exporter."""
    world = run()
    return world, [
        dataclasses.replace(raw, labels={**raw.labels, "prometheus_replica": replica})
        for raw in world.scrapes()
        for replica in "01"
    ]


@case("missing_windows", "error")
def _() -> tuple[World, Samples]:
    world = run()
    assert world.record is not None
    windows = tuple(one for one in world.record.windows if one.index != 3)
    world.record = dataclasses.replace(world.record, windows=windows)
    return world, world.scrapes()


FROM_PROMETHEUS = ("identity_conflict", "targets_merged")
"""Reasons that a recording cannot have: it has one target per exporter."""


@contextlib.contextmanager
def stored(world: World, samples: Samples, folder: Path, *, prometheus: bool) -> Iterator[list[str]]:
    """Store a run as its recording, or its journal and its samples in a Prometheus; yield the arguments."""
    if not prometheus:
        write_recording(world, folder / "recording.sqlite", samples)
        yield [str(folder / "recording.sqlite")]
        return
    assert world.record is not None
    with Journal.create(folder, world.record.header) as journal:
        for line in (*world.record.configurations, *world.record.windows, world.record.end):
            assert line is not None
            journal.append(line)
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        FakePrometheus(samples).install(mocked)
        yield [str(folder / RUN), f"--prometheus={URL}"]


WITHOUT_A_RUN = {"too_few_samples", "source_overlap", "recording_damaged"}
"""Reasons that need more than a run: power without a counter (below), series of other exporters
(``commands/test_source.py``), a damaged recording (``storage/test_fuzz.py``)."""


CALIBRATION = CalibrationRecord(
    gain=1.05,
    offset_watts=2.0,
    gain_standard_uncertainty=0.01,
    offset_standard_uncertainty_watts=1.0,
    gain_offset_covariance_watts=-0.008,
    linearity_watts=0.5,
    lowest_watts=30.0,
    highest_watts=200.0,
    reference="WT310",
    reference_accuracy=0.001,
    date="2026-11-28T10:00:00+00:00",
)


def calibrated_run(**changes: float) -> tuple[World, Samples]:
    world = run([dataclasses.replace(CPU, calibration=dataclasses.replace(CALIBRATION, **changes))])
    return world, world.scrapes()


@case("calibrated", "info")
def calibrated() -> tuple[World, Samples]:
    return calibrated_run()


@case("outside_calibration", "warning")
def outside_calibration() -> tuple[World, Samples]:
    return calibrated_run(highest_watts=120.0)


def test_every_reason_has_a_case() -> None:
    assert CASES.keys() == REASONS.keys() - WITHOUT_A_RUN


def test_a_power_sensor_with_one_sample_in_a_window_has_no_energy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = run(scrape_s=4.0)
    watts = of_cpu(world, catalog.DEVICE_POWER.name, lambda times: 100.0 + times % 7)
    write_recording(world, tmp_path / "recording.sqlite", [watts])
    start_s = float(watts.times_s[1]) + 0.5
    recording = f"--recording={tmp_path / 'recording.sqlite'}"
    assert main(["energy", f"--start={start_s}", f"--end={start_s + 5.5}", recording, "--format=json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["sensors"]
    assert (row["missing"], row["energy"]) == ("too_few_samples", None)


@pytest.mark.parametrize("reason", CASES)
def test_every_reason_is_in_every_output(reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON, table, figure (errors) and the exit code of --strict."""
    severity, make = CASES[reason]
    figure = tmp_path / "figure.svg"
    with stored(*make(), tmp_path, prometheus=reason in FROM_PROMETHEUS) as source:
        words = ["analyze", *source, "--strict", "--format=json"]
        code = main([*words, f"--figure={figure}"] if severity == "error" else words)
        captured = capsys.readouterr()
        assert main(["analyze", *source]) == 0
        table = " ".join(capsys.readouterr().out.split())
    findings = json.loads(captured.out)["findings"]
    assert (severity, reason) in {(item["severity"], item["reason"]) for item in findings}
    assert {item["reason"] for item in findings} <= REASONS.keys()
    errors = {item["reason"] for item in findings if item["severity"] == "error"}
    assert code == (3 if errors else 0)
    assert all(error in captured.err for error in errors)
    assert f"{severity} [{reason}]" in table
    if severity == "error":
        assert "Audit errors: " in figure.read_text() and reason in figure.read_text()


# Details of single checks


def analyse(make: Case | tuple[World, Samples]) -> RunResult:
    world, samples = make() if callable(make) else make
    assert world.record is not None
    return analyze_run(world.record, ListSource(samples))


def severities(result: RunResult, reason: str) -> set[Severity]:
    return {finding.severity for finding in result.findings if finding.reason == reason}


@pytest.mark.parametrize(
    ("kind", "share", "reason", "severity"),
    [
        ("idle", 0.019, "idle_busy", None),
        ("idle", 0.021, "idle_busy", "warning"),
        ("idle", 0.049, "idle_busy", "warning"),
        ("idle", 0.051, "idle_busy", "error"),
        ("measure", 0.02, "other_load", "warning"),
        ("measure", 0.9, "other_load", "error"),
    ],
)
def test_other_work_is_a_finding_from_two_percent_on(
    kind: str, share: float, reason: str, severity: Severity | None
) -> None:
    result = analyse(with_load(kind, share))
    assert severities(result, reason) == ({severity} if severity else set())
    (group,) = result.groups
    assert group.total.gross is not None
    assert (group.total.net is None) == ((reason, severity) == ("idle_busy", "error"))
    assert ("idle_busy" in group.total.net_missing) == (group.total.net is None)
    assert result.idle, "the idle power as measured is still shown"


def test_a_busy_idle_window_withholds_only_results_that_use_it() -> None:
    """The first idle window has no network loaded; the results use the loaded one."""
    world, samples = with_load("idle", 0.5)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(one, processor_time=None) if "loaded" in one.flags else one for one in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)
    result = analyse((world, samples))
    assert severities(result, "idle_busy") == {"error"}
    assert result.groups[0].total.net is not None and result.groups[0].total.net_missing == ""


def test_other_work_on_the_harness_s_machine_does_not_concern_sensors_of_another() -> None:
    world, samples = with_load("idle", 0.5)
    result = analyse((elsewhere(world), samples))
    assert severities(result, "idle_busy") == set()
    assert result.groups[0].total.net is not None


def test_other_work_does_not_concern_the_bmc_of_another_machine() -> None:
    """The exporter runs next to the harness, and reads a BMC over the network."""
    bmc = dataclasses.replace(CPU, scope="node", component="node", collector="redfish", host="node7")
    world, samples = with_load("idle", 0.5, [bmc])
    result = analyse((world, samples))
    assert severities(result, "idle_busy") == set()
    assert result.groups[0].nodes[0].net is not None
    here = analyse(with_load("idle", 0.5, [dataclasses.replace(bmc, host="node1")]))
    assert severities(here, "idle_busy") == {"error"}
    assert here.groups[0].nodes[0].net is None


def test_an_emulated_machine_is_not_disturbed() -> None:
    world, samples = with_load("idle", 0.5, [dataclasses.replace(CPU, method="emulated")])
    result = analyse((world, samples))
    assert severities(result, "idle_busy") == set()
    assert result.groups[0].total.net is not None


def test_a_server_on_this_machine_is_not_other_work() -> None:
    world, samples = with_load("measure", 0.5)
    assert world.record is not None
    server = tuple(dataclasses.replace(item, runtime="openai") for item in world.record.header.configurations)
    header = dataclasses.replace(world.record.header, configurations=server)
    world.record = dataclasses.replace(world.record, header=header)
    assert severities(analyse((world, samples)), "other_load") == set()


def test_the_flag_of_an_old_run_states_that_its_effect_is_not_known() -> None:
    """Version 0.1.0 flagged windows after a warm-up with a trend, which does not contradict the test of the rounds."""
    findings = [item for item in analyse(with_flag("not_steady")).findings if item.reason == "not_steady"]
    assert findings and all("not known whether that changes the result" in item.text for item in findings)


def test_what_the_kernel_rounds_is_no_load() -> None:
    def used(other_s: float, duration_s: float = 1.0, processors: int = 1) -> float:
        time = ProcessorTime(busy_s=0.5 + other_s, own_s=0.5, processors=processors)
        return other_load(window_of(0, T0, duration_s, processor_time=time))

    assert used(LEAST_LOAD_S - 1e-9) == 0.0
    assert used(0.04) == pytest.approx(0.04)
    assert used(0.04, duration_s=2.0, processors=4) == pytest.approx(0.005)
    assert used(-0.4) == 0.0, "the run's own time is exact, the machine's is rounded"
    assert other_load(window_of(0, T0)) == 0.0, "not known"


def test_a_window_is_compared_with_an_assumed_refresh_period_too() -> None:
    """A gauge without a published refresh period: 5 s are assumed, and 20 of them are longer than the windows."""
    gauge = dataclasses.replace(CPU, collector="hwmon", method="integrated", reads="power", refresh_s=None)
    world = history_only(run([gauge], window_s=6.0))
    findings = [item for item in analyse((world, world.scrapes())).findings if item.reason == "below_refresh"]
    # The idle windows are shorter than one refresh period, and have no energy.
    finding = next(item for item in findings if item.severity == "warning")
    assert finding.evidence["refresh_s"] == 5.0
    assert "20 refresh periods of 5 s (not published; from the samples, or assumed); use longer" in finding.text


def test_a_power_model_has_no_refresh_period_to_compare_with() -> None:
    world = run([dataclasses.replace(CPU, collector="estimate", method="estimated", refresh_s=None)])
    assert severities(analyse((world, world.scrapes())), "below_refresh") == set()


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ([0, 1, 2], []),
        ([], []),
        ([1, 2], [("error", 1, 0)]),
        ([0, 1, 4, 6], [("error", 3, 2)]),
        ([0, 1, 1, 2, 2], [("warning", 2, 1)]),
        ([0, 2, 2], [("error", 1, 1), ("warning", 1, 2)]),
    ],
)
def test_gaps_and_doubles_in_the_numbers_of_windows(indexes: list[int], expected: list[tuple[str, int, int]]) -> None:
    world = run()
    assert world.record is not None
    record = dataclasses.replace(world.record, windows=tuple(window_of(index, T0 + index) for index in indexes))
    findings = list(audit_record(record))
    assert [(item.severity, item.evidence["windows"], item.evidence["first"]) for item in findings] == expected
    assert {item.reason for item in findings} <= {"missing_windows"}


def test_a_window_that_is_stored_twice_counts_once() -> None:
    world, samples = with_load("measure", 0.0)
    assert world.record is not None
    once = analyse((world, samples))
    windows = world.record.windows
    other = dataclasses.replace(windows[3], inferences=7 * windows[3].inferences)
    twice = dataclasses.replace(world, record=dataclasses.replace(world.record, windows=(*windows, other)))
    result = analyse((twice, samples))
    assert severities(result, "missing_windows") == {"warning"}
    assert result.groups == once.groups


def test_a_load_within_the_uncertainty_of_the_idle_power_is_a_finding() -> None:
    gross = Estimate(value=0.5, standard=0.1, expanded=0.2, dof=2.0, budget=())
    idle = IdlePower(watts=40.0, standard_watts=1.0, dof=2.0, basis="loaded", windows=(0,), text="")
    assert [item.reason for item in audit_load("a", gross, 80.0, idle)] == ["load_draws_idle"]
    assert [item.reason for item in audit_load("a", gross, 83.8, idle)] == ["load_draws_idle"]
    assert list(audit_load("a", gross, 84.0, idle)) == []
    exact = dataclasses.replace(idle, standard_watts=0.0)
    assert [item.reason for item in audit_load("a", gross, 80.0, exact)] == ["load_draws_idle"]


@pytest.mark.parametrize(
    ("settle_s", "severity"), [(0.05, {"warning"}), (0.1, set()), (None, set())], ids=["shorter", "as long", "unknown"]
)
def test_settle_time_and_refresh(settle_s: float | None, severity: set[str]) -> None:
    world = run([dataclasses.replace(CPU, refresh_s=0.1), sensor("socket0", "core", "cpu", "part", refresh_s=0.2)])
    if settle_s is not None:
        with_plan(world, settle_s=settle_s)
    result = analyse((world, world.scrapes()))
    assert severities(result, "settle_too_short") == severity
    gross = result.groups[0].total.gross
    assert gross is not None
    assert ("settle" in {line.name for line in gross.budget}) == bool(severity)


@pytest.mark.parametrize(
    ("key", "value", "reason", "severity"),
    [
        ("cpu_pressure_s", 0.49, "cpu_pressure", None),
        ("cpu_pressure_s", 0.5, "cpu_pressure", None),
        ("cpu_pressure_s", 0.51, "cpu_pressure", "warning"),
        ("memory_pressure_s", 0.049, "memory_pressure", None),
        ("memory_pressure_s", 0.05, "memory_pressure", None),
        ("memory_pressure_s", 0.051, "memory_pressure", "warning"),
        ("steal_s", 0.39, "steal", None),
        ("steal_s", 0.4, "steal", None),
        ("steal_s", 0.41, "steal", "warning"),
        ("steal_s", 2.0, "steal", "warning"),
        ("steal_s", 2.1, "steal", "error"),
        ("swapped_in_pages", 0.0, "swapping", None),
        ("swapped_in_pages", 1.0, "swapping", "error"),
        ("throttled_s", 0.1, "cpu_throttled", None),
        ("throttled_s", 0.11, "cpu_throttled", "error"),
        ("throttle_count", 0.0, "cpu_throttled", None),
        ("throttle_count", 1.0, "cpu_throttled", "warning"),
        ("gpu_thermal_s/GPU-1", 0.1, "gpu_throttled_thermal", None),
        ("gpu_thermal_s/GPU-1", 0.11, "gpu_throttled_thermal", "error"),
        ("gpu_hot_s/GPU-1", 0.1, "hot", None),
        ("gpu_hot_s/GPU-1", 0.11, "hot", "info"),
        ("gpu_power_capped_s/GPU-1", 0.5, "gpu_power_capped", None),
        ("gpu_power_capped_s/GPU-1", 0.51, "gpu_power_capped", "info"),
        ("gpu_others/GPU-1", 1.0, "gpu_shared", "warning"),
        ("gpu_limit_changed/GPU-1", 1.0, "power_limit_changed", "error"),
    ],
)
def test_a_condition_is_a_finding_above_its_limit(
    key: str, value: float, reason: str, severity: Severity | None
) -> None:
    """The windows are 10 s long, on four processors."""
    assert severities(analyse(with_conditions(**{key: value})), reason) == ({severity} if severity else set())


@pytest.mark.parametrize(
    ("name", "values", "reason", "severity"),
    [
        ("gpu_power_capped_s/GPU-1", (9.0, 9.4), "gpu_power_capped", "info"),
        ("gpu_power_capped_s/GPU-1", (9.0, 9.6), "gpu_power_capped", "warning"),
        ("gpu_power_capped_s/GPU-1", (0.0, 0.6), "gpu_power_capped", "warning"),
        ("cpu_mhz", (3400.0, 3310.0), "frequency_drift", None),
        ("cpu_mhz", (3290.0, 3400.0), "frequency_drift", "warning"),
        ("gpu_sm_mhz/GPU-1", (0.0, 0.0), "clocks_differ", None),
        ("gpu_sm_mhz/GPU-1", (1755.0, 1710.0), "clocks_differ", None),
        ("gpu_sm_mhz/GPU-1", (1755.0, 1700.0), "clocks_differ", "warning"),
    ],
)
def test_conditions_that_compare_the_rounds(
    name: str, values: tuple[float, ...], reason: str, severity: Severity | None
) -> None:
    assert severities(analyse(with_rounds(name, *values)), reason) == ({severity} if severity else set())


def test_with_power_smoothing_net_energy_is_withheld_for_the_devices_that_have_it() -> None:
    """Also if it was on in a measure window only: the idle windows may have been before."""
    gpu = sensor("GPU-1", "total", "gpu")
    plain = analyse((world := run([CPU, gpu]), world.scrapes()))
    assert all(energy.net is not None for energy in (plain.groups[0].total, *plain.groups[0].components))

    def smoothed(one: Window) -> Window:
        return dataclasses.replace(one, conditions={"seconds": 10.0, "gpu_power_smoothing/GPU-1": 1.0})

    group = analyse(with_windows(run([CPU, gpu]), smoothed, "measure")).groups[0]
    components = {energy.name: energy for energy in group.components}
    assert components["cpu"].net is not None
    assert components["gpu"].net is None and group.total.net is None
    assert group.total.gross is not None
    assert "[power_smoothing_on]" in group.total.net_missing
