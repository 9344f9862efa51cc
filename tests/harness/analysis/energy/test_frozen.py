"""Frozen counters and gauges, in runs and in any window, and steady machines that are not frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.frozen import longest_pause_s, withhold_frozen
from joulewatch_harness.analysis.energy.sensor_energies import SensorEnergy, measure
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.energy.windows import MeasuredRun, measure_run
from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.history import History, RawSeries, build_history
from joulewatch_harness.analysis.sources.series import SensorId, Series
from joulewatch_harness.records import ProcessorTime, SensorRecord
from support.synthetic import ListSource, World, make_world, sensor, without_edges

CPU = sensor("socket0", "package")
NAMES = ("net/onnxruntime/fp32",)


# Counters


@pytest.mark.parametrize(
    ("values", "pause_s"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0.0),
        ([0, 1, 2, 3, 3, 4, 5, 6, 7, 8], 0.0),  # two equal samples may be one reading
        ([0, 1, 2, 3, 3, 3, 4, 5, 6, 7], 2.0),
        ([0, 0, 0, 0, 1, 2, 3, 3, 3, 3], 2.5),  # from the start of the span, not from the first sample
        ([5, 5, 5, 5, 5, 5, 5, 5, 5, 5], 8.0),
    ],
)
def test_the_longest_pause_of_a_counter(values: list[float], pause_s: float) -> None:
    counter = Series(np.arange(10.0), np.array(values, dtype=np.float64))
    assert longest_pause_s(counter, 0.5, 8.5) == pytest.approx(pause_s)


def world_of(*sensors: SensorRecord, power: Callable[[SensorRecord, str, int], float], **settings: float) -> World:
    return make_world(sensors, configurations=NAMES, batch_sizes=(1,), rounds=2, power=power, **settings)  # type: ignore[arg-type]


def alive_of(world: World, *, edges: bool = True, history: bool = True) -> MeasuredRun:
    assert world.record is not None
    record = world.record if edges else without_edges(world.record)
    samples = build_history("memory", world.scrapes()) if history else History(source="")
    return withhold_frozen(measure_run(record, samples))


def reasons_of(run: MeasuredRun, record: SensorRecord = CPU) -> set[str]:
    results = [measured.sensors[SensorId.of(record)] for measured in run.windows]
    assert all((result.energy is None) == bool(result.reason) for result in results)
    return {result.reason for result in results}


@pytest.mark.parametrize(("edges", "history"), [(True, True), (True, False), (False, True)])
def test_a_counter_that_never_moves_has_no_energy(edges: bool, history: bool) -> None:
    """Before: 0 J ± 1.8e-7 J, and no finding."""
    world = world_of(CPU, power=lambda *_: 0.0)
    assert reasons_of(alive_of(world, edges=edges, history=history)) == {"frozen"}
    moving = world_of(CPU, power=lambda *_: 0.001)
    assert reasons_of(alive_of(moving, edges=edges, history=history)) == {""}


@pytest.mark.parametrize(
    ("refresh_s", "reason"),
    [(0.1, {"frozen"}), (0.11, {"below_refresh", "frozen"})],
    ids=["20 refreshes", "18 in a window of 2 s"],
)
def test_a_counter_that_rests_for_fewer_than_20_refreshes_needs_a_longer_window(
    refresh_s: float, reason: set[str]
) -> None:
    """The idle windows are 3 s long, the others 2 s."""
    slow = dataclasses.replace(CPU, refresh_s=refresh_s)
    world = world_of(slow, power=lambda *_: 0.0)
    assert reasons_of(alive_of(world, history=False), slow) == reason


def test_a_counter_with_coarse_steps_may_rest() -> None:
    """A step of 10 J takes 2 s at 5 W."""
    for step, expected in (("10 J", {"frozen"}), ("16 J", {""})):
        coarse = dataclasses.replace(CPU, resolution=step)
        run = alive_of(world_of(coarse, power=lambda *_: 0.0, idle_s=2.0), history=False)
        assert reasons_of(run, coarse) == expected, step


def held(world: World, start_s: float, end_s: float) -> list[RawSeries]:
    """Return the scrapes with counters that stand still for some time and then go on from there."""
    samples = []
    for raw in world.scrapes():
        values = raw.values
        if raw.name in {metric.name for metric in catalog.ENERGY_BY_SCOPE.values()}:
            kept = np.interp(start_s, raw.times_s, values)
            missed = np.interp(end_s, raw.times_s, values) - kept
            values = np.where(raw.times_s > start_s, np.maximum(kept, values - missed), values)
        samples.append(dataclasses.replace(raw, values=values))
    return samples


def analyzed(world: World, samples: list[RawSeries]) -> RunResult:
    assert world.record is not None
    return analyze_run(without_edges(world.record), ListSource(samples))


@pytest.mark.parametrize(
    ("pause_s", "severity"), [(0.15, None), (0.7, "warning"), (1.5, "error")], ids=["one scrape", "under 1 %", "above"]
)
def test_a_counter_that_stands_still_for_part_of_a_window(pause_s: float, severity: str | None) -> None:
    """Up to 1 % of the window the energy is kept, as for time that is not measured."""
    world = world_of(CPU, power=lambda *_: 50.0, window_s=100.0)
    assert world.record is not None
    first = next(one for one in world.record.windows if one.kind == "measure")
    result = analyzed(world, held(world, first.start_s + 50.05, first.start_s + 50.05 + pause_s))
    frozen = [item for item in result.findings if item.reason == "frozen"]
    assert [(item.severity, item.window) for item in frozen] == ([(severity, first.index)] if severity else [])
    assert (first.index in result.groups[0].total.windows) == (severity != "error")


def test_a_part_may_rest_but_not_for_whole_windows_without_a_warning() -> None:
    """Cores sleep; what draws nothing at all in a window cannot be distinguished from a frozen sensor."""
    core = sensor("socket0", "core", "cpu", "part")
    world = world_of(CPU, core, power=lambda item, *_: 0.0 if item is core else 50.0)
    result = analyzed(world, world.scrapes())
    assert {item.severity for item in result.findings if item.reason == "frozen"} == {"warning"}
    assert result.groups[0].total.gross is not None and result.groups[0].parts[0].gross is None
    world = world_of(CPU, core, power=lambda *_: 50.0)
    assert world.record is not None
    first = next(one for one in world.record.windows if one.kind == "measure")
    samples = held(world, first.start_s + 0.5, first.start_s + 1.5)
    rests = [
        raw if raw.name == catalog.PART_ENERGY.name else before
        for raw, before in zip(samples, world.scrapes(), strict=True)
    ]
    assert not [item for item in analyzed(world, rests).findings if item.reason == "frozen"]


# Gauges in a run: the exporter integrates them, so that their counters rise evenly

GPU = sensor("gpu0", "board", "gpu", collector="nvml", method="integrated", reads="power", refresh_s=None)
NODE = sensor("psu", "total", "node", "node", collector="ipmi", method="integrated", reads="power", refresh_s=None)


def gauge_power(
    gauge: SensorRecord, watts: float, *, load_watts: float = 150.0
) -> Callable[[SensorRecord, str, int], float]:
    """Return constant power for a gauge, and idle power of 40 W and a load for the processor."""

    def power(item: SensorRecord, configuration: str, batch_size: int) -> float:
        if item is gauge:
            return watts
        return 40.0 if configuration == "idle" else load_watts

    return power


@pytest.mark.parametrize(
    ("gauge", "watts", "load_watts", "frozen"),
    [
        (GPU, 46.19, 150.0, True),
        (GPU, 46.19, 40.0, True),  # idle and measured windows alone are a change of load
        (GPU, 250.0, 150.0, False),  # whole watts: a GPU at its limit, or an idle one next to busy processors
        (dataclasses.replace(GPU, resolution="1 W"), 46.5, 150.0, False),
        (NODE, 180.0, 150.0, True),  # its devices went from 40 W to 150 W
        (NODE, 180.0, 45.0, False),  # a power supply in whole watts on a steady machine
        (NODE, 180.4, 45.0, True),
        (dataclasses.replace(NODE, read_mode="remote"), 180.4, 150.0, False),  # another machine
    ],
)
def test_a_gauge_that_shows_the_same_power_idle_and_loaded(
    gauge: SensorRecord, watts: float, load_watts: float, frozen: bool
) -> None:
    world = world_of(CPU, gauge, power=gauge_power(gauge, watts, load_watts=load_watts), idle_s=25.0, window_s=20.0)
    for edges, history in ((True, False), (False, True)):
        run = alive_of(world, edges=edges, history=history)
        assert reasons_of(run, gauge) == ({"frozen"} if frozen else {""})
        assert reasons_of(run, CPU) == {""}


@pytest.mark.parametrize(("busy", "frozen"), [(0.5, True), (0.19, False)])
@pytest.mark.parametrize("here", [True, False])
def test_processors_at_work_are_a_load_of_their_machine(busy: float, frozen: bool, here: bool) -> None:
    """A server whose only sensor is its BMC, in whole watts."""
    world = world_of(NODE, power=lambda *_: 180.0, idle_s=25.0, window_s=20.0)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(
            one,
            processor_time=ProcessorTime(
                busy_s=4 * one.duration_s * (busy if one.kind == "measure" else 0.0), own_s=0.0, processors=4
            ),
        )
        for one in world.record.windows
    )
    exporters = tuple(
        dataclasses.replace(item, nodename="node1" if here else "elsewhere") for item in world.record.header.exporters
    )
    header = dataclasses.replace(world.record.header, exporters=exporters)
    world.record = dataclasses.replace(world.record, header=header, windows=windows)
    assert reasons_of(alive_of(world), NODE) == ({"frozen"} if frozen and here else {""})


def test_a_gauge_that_moves_by_its_last_digit_is_not_frozen() -> None:
    world = world_of(
        CPU,
        GPU,
        power=lambda item, name, _: 46.19 if name == "idle" or item is CPU else 46.20,
        idle_s=25.0,
        window_s=20.0,
    )
    assert reasons_of(alive_of(world), GPU) == {""}


def test_without_idle_windows_nothing_shows_that_the_load_changed() -> None:
    world = world_of(CPU, GPU, power=gauge_power(GPU, 46.19), window_s=60.0)
    assert world.record is not None
    windows = tuple(one for one in world.record.windows if one.kind == "measure")
    world.record = dataclasses.replace(world.record, windows=windows)
    assert reasons_of(alive_of(world), GPU) == {""}


# Any window of history

TIMES_S = np.arange(0.0, 701.0, 1.0)
WINDOW = Span(1.0, 699.0)
STEADY = np.full(TIMES_S.shape, 50.0) + 0.3 * np.sin(TIMES_S)
BUSY = np.where((TIMES_S > 200) & (TIMES_S < 400), 150.0, 50.0)


def raw(name: str, values: np.ndarray, *, collector: str, device: str, component: str = "gpu") -> RawSeries:
    labels = {"instance": "a:1", "collector": collector, "component": component, "device": device, "domain": "total"}
    return RawSeries(name=name, labels=labels, times_s=TIMES_S, values=values)


def described(series: RawSeries, scope: str, **labels: str) -> RawSeries:
    info = {**series.labels, "scope": scope, **labels}
    return dataclasses.replace(series, name=catalog.SENSOR_INFO.name, labels=info, values=np.ones(TIMES_S.shape))


def energies(
    watts: np.ndarray, load_watts: np.ndarray | None, *, scope: str = "device", integrated: bool = False, **labels: str
) -> SensorEnergy:
    """Measure a gauge, or its integral, next to the energy counter of a processor."""
    joules = np.concatenate(([0.0], np.cumsum((watts[1:] + watts[:-1]) / 2)))
    metrics = catalog.ENERGY_BY_SCOPE if integrated else catalog.POWER_BY_SCOPE
    gauge = raw(metrics[scope].name, 1e6 + joules if integrated else watts, collector="x", device="x0")
    samples = [gauge, described(gauge, scope, reads="power", method="integrated", **labels)]
    if load_watts is not None:
        counter = raw(
            catalog.DEVICE_ENERGY.name, np.cumsum(load_watts), collector="rapl", device="socket0", component="cpu"
        )
        samples += [counter, described(counter, "device", reads="energy", method="counter")]
    rows = measure(build_history("memory", samples), WINDOW, [], "all")
    return next(row for row in rows if row.sensor.collector == "x")


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize(
    ("watts", "load_watts", "scope", "outcome"),
    [
        (46.19, None, "device", "warning"),  # a log of a GPU alone
        (46.19, STEADY, "device", "warning"),
        (46.19, BUSY, "device", "frozen"),
        (250.0, BUSY, "device", ""),  # a GPU at its limit, in whole watts, next to processors that work
        (180.0, STEADY, "node", ""),  # a power supply in whole watts on an idle server
        (180.0, BUSY, "node", "frozen"),
        (180.4, STEADY, "node", "warning"),
        (0.0, BUSY, "device", ""),  # a rail that is not connected
    ],
)
def test_a_gauge_that_does_not_change(
    watts: float, load_watts: np.ndarray | None, scope: str, outcome: str, integrated: bool
) -> None:
    row = energies(np.full(TIMES_S.shape, watts), load_watts, scope=scope, integrated=integrated)
    assert row.reason == ("frozen" if outcome == "frozen" else "")
    assert (row.energy is None) == (outcome == "frozen")
    assert bool(row.warning) == (outcome == "warning")
    assert f"exactly {watts:.6g} W for 698 s" in (row.text or row.warning or f"exactly {watts:.6g} W for 698 s")


@pytest.mark.parametrize("integrated", [False, True])
def test_a_gauge_that_changes_once_is_not_frozen(integrated: bool) -> None:
    watts = np.where(TIMES_S > 300, 46.19, 46.20)
    row = energies(watts, BUSY, integrated=integrated)
    assert (row.reason, row.warning) == ("", "")


def test_a_gauge_of_another_machine_is_not_compared_with_this_one() -> None:
    row = energies(np.full(TIMES_S.shape, 180.0), BUSY, scope="node", read_mode="remote")
    assert (row.reason, row.warning) == ("", "")


def test_a_window_of_fewer_than_20_refreshes_does_not_show_whether_a_gauge_is_frozen() -> None:
    """Without a published refresh, a gauge may be 5 s old: 20 refreshes are 100 s."""
    gauge = raw(catalog.DEVICE_POWER.name, np.full(TIMES_S.shape, 46.19), collector="x", device="x0")
    counter = raw(catalog.DEVICE_ENERGY.name, np.cumsum(BUSY), collector="rapl", device="socket0", component="cpu")
    history = build_history("memory", [gauge, counter])
    (row,) = measure(history, Span(170.0, 260.0), ["a:1/x/*"], "all")
    assert row.reason == ""
    (row,) = measure(history, Span(150.0, 260.0), ["a:1/x/*"], "all")
    assert row.reason == "frozen"


def test_a_frozen_counter_in_any_window() -> None:
    for watts, reason in ((np.zeros(TIMES_S.shape), "frozen"), (STEADY, "")):
        counter = raw(catalog.DEVICE_ENERGY.name, np.cumsum(watts), collector="rapl", device="socket0")
        (row,) = measure(build_history("memory", [counter]), WINDOW, [], "all")
        assert row.reason == reason
    values = np.cumsum(STEADY)
    for pause_s, outcome in ((5, "warning"), (50, "frozen")):
        stands = np.where(
            TIMES_S >= 300, np.maximum(values[300], values - (values[300 + pause_s] - values[300])), values
        )
        counter = raw(catalog.DEVICE_ENERGY.name, stands, collector="rapl", device="socket0")
        (row,) = measure(build_history("memory", [counter]), WINDOW, [], "all")
        assert (row.reason, "did not change" in row.warning) == (
            "frozen" if outcome == "frozen" else "",
            outcome == "warning",
        )
