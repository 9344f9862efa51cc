"""Check how often the printed ± contains the truth: simulated windows and runs with a known energy.

Every case goes through the functions that the analysis uses: ``energy_from_edges``, ``energy_from_counter``,
``energy_from_power`` and ``with_unseen`` for a window, ``combine`` and ``combine_mean`` for the rounds of a run,
``analyze_run`` for net energies. The power is constant between steps, so its integral is exact. Fixed seeds.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.analysis.energy.from_edges import energy_from_edges
from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.from_power import energy_from_power
from joulewatch_harness.analysis.energy.sensor_energies import SensorEnergy
from joulewatch_harness.analysis.energy.unseen import with_unseen
from joulewatch_harness.analysis.energy.window_energy import UNKNOWN_CLOCK, ClockOffset, EdgeReading, Span, WindowEnergy
from joulewatch_harness.analysis.results.model import Estimate
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.uncertainty import combine, combine_mean
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, Traits
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import Configuration, Edge, EdgeCounter, RunHeader, RunRecord, Window
from support.synthetic import TWO_SOCKETS, ListSource, default_power, make_world, sensor

LEAST_COVERAGE: Final = 94.0
"""Percent, in every stratum that prints a ±."""
WIDE_COVERAGE: Final = 98.5
"""A stratum above it is listed with its reason."""
LEAST_RATIO: Final = 0.05
"""Least median of |error| / ± where power is steady: below it the ± is needlessly wide."""
IDLE_WATTS: Final = 40.0
STEADY: Final = ("constant", "drift")
SINGLE: Final = ("edges", "history", "power")
SIGNALS: Final = ("constant", "run", "drift", "ramp", "sine", "square", "telegraph", "inference")
INTEGRATED: Final = "integrated from 1 W"
CLOCK_UNKNOWN: Final = "clock unknown"
REFRESHES_S: Final = (0.001, 0.1, 1.0)
INTRODUCTION: Final = """\
Simulated windows and runs with a known energy, through the functions of the analysis; seeds are fixed.

- *run* as a signal: a load that starts before the window and ends after it; *drift*: a steady load that changes by up
  to 10 %; *inference*: batches with gaps. Steady loads (constant, run, drift) change by some percent.
- *rounds*: the mean of two sensors by edges, with that scatter between rounds; *net*: less idle power, from windows
  before (B) and after (A) the rounds and with the network loaded (L); *run*: a whole run.
- n: cases with a number. ± %: median of the half-width, in percent of the truth.
"""
REASONS: Final = {
    "interpolation": "the power between the two samples around an edge is not known",
    "sampling": "the power between few samples is not known",
    "unseen": "the unobserved part of the power, from few values",
    "refresh": "the age of the readings: any power up to twice the mean is allowed for",
    "lag": "the age of the values: the largest step of power may be at an edge",
    "accuracy": "the published accuracy is a bound",
    "clock": "the clock is a bound",
    "steps": "the steps of the gauge are a bound",
    "resolution": "the steps of the counter are a bound",
    "edge slack": "the machine may idle or run between reading and window",
    "repeats": "Student's factor for few rounds",
    "idle baseline": "the idle power, from few windows",
}


@dataclass(frozen=True, slots=True)
class Power:
    """Power that is constant between steps."""

    times_s: Floats
    """Start of each step; the first and last steps have no end."""
    watts: Floats
    sums: Floats
    batch_s: float
    """Period of a repeating load; inf: none."""

    @classmethod
    def of(cls, times_s: Floats, watts: Floats, batch_s: float = math.inf) -> Power:
        sums = np.concatenate(([0.0], np.cumsum(np.diff(times_s) * watts[:-1])))
        return cls(times_s, watts, sums, batch_s)

    def joules(self, at_s: Floats) -> Floats:
        index = np.clip(self.times_s.searchsorted(at_s, side="right") - 1, 0, self.times_s.size - 1)
        return np.asarray(self.sums[index] + (at_s - self.times_s[index]) * self.watts[index])

    def at(self, at_s: Floats) -> Floats:
        return self.watts[np.clip(self.times_s.searchsorted(at_s, side="right") - 1, 0, self.times_s.size - 1)]

    def between(self, start_s: float, end_s: float) -> float:
        start, end = self.joules(np.array([start_s, end_s]))
        return float(end - start)


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** random.random())


def make_power(random: np.random.Generator, signal: str, window: Span, margin_s: float, settle_s: float) -> Power:
    """Return a power around a window; the load of a ``run`` starts ``settle_s`` before the window or earlier."""
    first_s, last_s = window.start_s - margin_s, window.end_s + margin_s
    length_s = last_s - first_s
    low, high = random.uniform(20, 80), random.uniform(100, 300)
    # From batches of milliseconds to jobs of a minute.
    period_s = log_uniform(random, max(0.005, length_s / 2e4), 60.0)
    phase_s = first_s - random.random() * period_s
    if signal in ("constant", "drift", "run"):
        # A steady load; its power changes by 4 % (standard deviation) every 50 ms, and again every 0.1 to 30 s.
        grid_s = max(0.05, length_s / 5e3)
        times = np.arange(first_s, last_s, grid_s)
        steps = ((times - first_s) / max(grid_s, log_uniform(random, 0.1, 30.0))).astype(int)
        noise = random.standard_normal(steps[-1] + 1)[steps] + random.standard_normal(times.size)
        watts = high * (1 + 0.04 * noise)
        if signal == "drift":
            watts *= 1 + random.uniform(-0.1, 0.1) * np.clip((times - window.start_s) / window.duration_s, 0, 1)
        if signal == "run":
            begin_s, end_s = window.start_s - settle_s * random.uniform(1, 2), window.end_s + random.uniform(0.0, 0.2)
            watts = np.where((times >= begin_s) & (times < end_s), watts, low)
        return Power.of(times, watts, 0.01)
    if signal == "ramp":
        times = np.linspace(window.start_s, window.end_s, 2000)
        low = high * random.uniform(0.3, 0.9)
        ends = (low, high) if random.random() < 0.5 else (high, low)
        return Power.of(times, np.linspace(*ends, 2000))
    if signal == "sine":
        period_s = max(period_s, length_s / 2000)
        times = np.arange(phase_s, last_s, period_s / 16)
        return Power.of(times, low + (high - low) * (1 + np.sin(2 * np.pi * times / period_s)) / 2, period_s)
    if signal == "square":
        duty = random.uniform(0.2, 0.8)
        starts = np.arange(phase_s, last_s, period_s)
        times = np.stack([starts, starts + duty * period_s], axis=1).ravel()
        return Power.of(times, np.tile([high, low], starts.size), period_s)
    # Telegraph: both times are random. Inference with gaps: batches of one length, gaps at random.
    count = int(3 * length_s / period_s) + 20
    lengths = random.exponential(period_s / 2, (count, 2))
    if signal == "inference":
        lengths[:, 0] = period_s / 2
    times = phase_s + np.concatenate(([0.0], np.cumsum(lengths.ravel())[:-1]))
    return Power.of(times, np.tile([high, low], count), period_s)


# Sensors


def actual_refresh(random: np.random.Generator, refresh_s: float) -> float:
    """Return a period that is up to 5 % shorter than published, so that scrapes meet it at different ages."""
    return float(refresh_s * random.uniform(0.95, 1.0))


def updated(at_s: Floats, refresh_s: float, phase_s: float) -> Floats:
    """Return the times of the last update of a sensor."""
    return np.asarray(np.floor((at_s - phase_s) / refresh_s) * refresh_s + phase_s)


def make_counter(power: Power, refresh_s: float, phase_s: float, step: float) -> Callable[[Floats], Floats]:
    """Return a counter of joules in steps."""
    origin = float(power.joules(np.array([phase_s - 1e3 * refresh_s]))[0])

    def read(at_s: Floats) -> Floats:
        joules = power.joules(updated(at_s, refresh_s, phase_s)) - origin
        return np.asarray(np.floor(joules / step) * step)

    return read


def make_integrated(
    power: Power, refresh_s: float, phase_s: float, watts_step: float, span: tuple[float, float]
) -> Callable[[Floats], Floats]:
    """Return a counter that an exporter integrates from a gauge, by the trapezoid of one value per refresh."""
    ticks = np.arange(phase_s - refresh_s * math.ceil((phase_s - span[0]) / refresh_s), span[1], refresh_s)
    means = np.diff(power.joules(ticks), prepend=float(power.joules(ticks[:1] - refresh_s)[0])) / refresh_s
    watts = np.round(means / watts_step) * watts_step
    sums = np.concatenate(([0.0], np.cumsum((watts[1:] + watts[:-1]) / 2 * refresh_s)))
    return lambda at_s: sums[np.clip(ticks.searchsorted(at_s, side="right") - 1, 0, ticks.size - 1)]


def scrape_times(random: np.random.Generator, window: Span, scrape_s: float, margin_s: float) -> Floats:
    times = np.arange(window.start_s - margin_s, window.end_s + margin_s, scrape_s) + random.random() * scrape_s
    return np.asarray(times + random.uniform(-0.02, 0.02, times.size) * scrape_s)


# Cases


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """Cases of one kind."""

    method: str
    signal: str
    refresh_s: float
    scrape_s: float = 0.0
    rounds: int = 0
    accuracy: bool = False
    detail: str = ""

    @property
    def name(self) -> str:
        parts = [self.method, self.signal, f"refresh {self.refresh_s:g} s"]
        parts += [f"scrapes {self.scrape_s:g} s"] if self.scrape_s else []
        parts += [f"{self.rounds} rounds"] if self.rounds else []
        parts += ["accuracy known"] if self.accuracy else []
        parts += [self.detail] if self.detail else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Case:
    """A printed number and its truth, in joules."""

    value: float
    expanded: float
    truth: float
    budget: Mapping[str, float]
    """Component -> standard uncertainty."""


@dataclass(slots=True)
class Outcome:
    """What became of the cases of a stratum."""

    cases: list[Case] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def coverage(self) -> float:
        return 100 * float(np.mean([abs(case.value - case.truth) <= case.expanded for case in self.cases]))

    def ratio(self) -> float:
        return float(
            np.median([abs(case.value - case.truth) / case.expanded if case.expanded else 0 for case in self.cases])
        )

    def width(self) -> float:
        return 100 * float(np.median([case.expanded / abs(case.truth) for case in self.cases]))

    def dominant(self) -> str:
        """Return the component that is the largest in most cases."""
        names = [max(case.budget, key=lambda name: case.budget[name]) for case in self.cases if case.budget]
        name = Counter(names).most_common(1)[0][0] if names else ""
        return name.partition(" (")[0]


CaseMaker = Callable[[np.random.Generator, Stratum], Case]


def printed(energy: WindowEnergy, truth: float) -> Case:
    """Return a window as ``joulewatch energy`` prints it."""
    sensor = SensorId(exporter="e", scope="device", collector="c", component="cpu", device="d", domain="d")
    row = SensorEnergy(sensor=sensor, record=None, energy=energy)  # type: ignore[arg-type]
    return Case(
        energy.joules,
        row.expanded_joules,
        truth,
        {component.name: component.standard_joules for component in energy.budget},
    )


def edges_case(random: np.random.Generator, stratum: Stratum) -> Case:
    """A window of a run: its load settles before it; the machine idles or goes on while its counters are read."""
    refresh_s = stratum.refresh_s
    window = Span(1000.0, 1000.0 + log_uniform(random, max(0.3, 5 * refresh_s), max(10.0, 30 * refresh_s)))
    slack_s = random.uniform(0.0005, 0.003, 2)
    margin_s = 5.0 + 3 * refresh_s
    power = make_power(random, stratum.signal, window, margin_s, max(0.2, refresh_s))
    power = with_pauses(power, window, slack_s, random.random(2) < 0.5)
    phase_s = window.start_s - random.random() * refresh_s
    traits = Traits(refresh_s=refresh_s, resolution_joules=1e-3)
    refresh_s = actual_refresh(random, refresh_s)
    read = make_counter(power, refresh_s, phase_s, 1e-3)
    if stratum.detail:
        traits = Traits(refresh_s=stratum.refresh_s, resolution_watts=1.0)
        read = make_integrated(power, refresh_s, phase_s, 1.0, (window.start_s - margin_s, window.end_s + margin_s))
    error_s = 0.0004
    clock_s = random.uniform(-error_s, error_s)
    times = np.array([window.start_s - slack_s[0], window.end_s + slack_s[1]])
    offset = ClockOffset(-error_s, error_s)
    if stratum.detail.endswith(CLOCK_UNKNOWN):
        clock_s, offset = random.uniform(-0.25, 0.25), UNKNOWN_CLOCK
    start, end = (
        EdgeReading(float(at_s) + clock_s, float(joules), offset)
        for at_s, joules in zip(times, read(times), strict=True)
    )
    energy = energy_from_edges(start, end, window, traits, power_floor_watts=IDLE_WATTS / 2, batch_s=power.batch_s)
    return printed(energy, power.between(window.start_s, window.end_s))


def with_pauses(power: Power, window: Span, slack_s: Floats, idle: Sequence[bool]) -> Power:
    """Return a power that is idle while the counters are read, at either edge or not."""
    times, watts = power.times_s, power.watts
    for start_s, end_s, pause in (
        (window.start_s - slack_s[0] - 0.001, window.start_s, idle[0]),
        (window.end_s, window.end_s + slack_s[1] + 0.001, idle[1]),
    ):
        if not pause:
            continue
        after = float(Power.of(times, watts).at(np.array([end_s]))[0])
        keep = (times < start_s) | (times > end_s)
        first = int(np.count_nonzero(times < start_s))
        times = np.insert(times[keep], first, [start_s, end_s])
        watts = np.insert(watts[keep], first, [IDLE_WATTS / 2, after])
    return Power.of(times, watts, power.batch_s)


def history_case(random: np.random.Generator, stratum: Stratum) -> Case:
    window, times, margin_s = scraped_window(random, stratum)
    power = make_power(random, stratum.signal, window, margin_s, max(0.2, stratum.refresh_s))
    phase_s = window.start_s - random.random() * stratum.refresh_s
    read = make_counter(power, actual_refresh(random, stratum.refresh_s), phase_s, 1e-3)
    traits = Traits(refresh_s=stratum.refresh_s, resolution_joules=1e-3)
    clock_s, offset = 0.0, ClockOffset()
    if stratum.detail:
        clock_s, offset = random.uniform(-0.25, 0.25), UNKNOWN_CLOCK
    counter = Series(times + clock_s, read(times))
    slopes = np.diff(counter.values) / np.diff(times)
    energy = energy_from_counter(
        counter,
        window,
        traits,
        offset=offset,
        power_floor_watts=float(slopes.min()),
        power_cap_watts=float(slopes.max()),
        # A run knows its batches; a window of history does not.
        batch_s=power.batch_s if random.random() < 0.5 else math.inf,
    )
    return printed(energy, power.between(window.start_s, window.end_s))


def scraped_window(random: np.random.Generator, stratum: Stratum) -> tuple[Span, Floats, float]:
    """Return a window of 1 to 100 scrapes, the times of the scrapes, and the margin of samples around it."""
    scrape_s = stratum.scrape_s
    shortest_s = max(scrape_s, 2 * stratum.refresh_s)
    window = Span(1000.0, 1000.0 + log_uniform(random, shortest_s, 100 * shortest_s))
    margin_s = 12 * scrape_s + 2 * stratum.refresh_s
    return window, scrape_times(random, window, scrape_s, margin_s), margin_s


def power_case(random: np.random.Generator, stratum: Stratum) -> Case:
    window, times, margin_s = scraped_window(random, stratum)
    power = make_power(random, stratum.signal, window, margin_s, max(0.2, stratum.refresh_s))
    ticks = updated(
        times, actual_refresh(random, stratum.refresh_s), window.start_s - random.random() * stratum.refresh_s
    )
    if random.random() < 0.5:
        watts = power.at(ticks)
    else:
        watts = (power.joules(ticks) - power.joules(ticks - stratum.refresh_s)) / stratum.refresh_s
    step = float(random.choice([0.001, 1.0]))
    watts = np.round(watts / step) * step
    # Half of the exporters publish the steps; the rest are derived from the values.
    traits = Traits(refresh_s=stratum.refresh_s, resolution_watts=step if random.random() < 0.5 else 0.0)
    energy = energy_from_power(Series(times, watts), window, traits)
    return printed(energy, power.between(window.start_s, window.end_s))


def unseen_case(random: np.random.Generator, stratum: Stratum) -> Case:
    """A counter integrated from a sensor that averages 25 of every 100 ms, by edges; its gauge is scraped."""
    refresh_s, seen_s = 0.1, 0.025
    window = Span(
        1000.0, 1000.0 + log_uniform(random, max(2.0, 4 * stratum.scrape_s), max(30.0, 20 * stratum.scrape_s))
    )
    power = make_power(random, stratum.signal, window, 5.0, 0.2)
    ticks = np.arange(window.start_s - 3.0 - random.random() * refresh_s, window.end_s + 3.0, refresh_s)
    watts = (power.joules(ticks) - power.joules(ticks - seen_s)) / seen_s
    sums = np.concatenate(([0.0], np.cumsum((watts[1:] + watts[:-1]) / 2 * refresh_s)))
    times = np.array([window.start_s - 0.001, window.end_s + 0.001])
    values = sums[ticks.searchsorted(times, side="right") - 1]
    traits = Traits(refresh_s=refresh_s, window_s=seen_s)
    start, end = (EdgeReading(float(at_s), float(joules)) for at_s, joules in zip(times, values, strict=True))
    energy = energy_from_edges(start, end, window, traits, power_floor_watts=IDLE_WATTS / 2, batch_s=power.batch_s)
    scrapes = scrape_times(random, window, stratum.scrape_s, 0.0)
    readings = Series(scrapes, watts[np.clip(ticks.searchsorted(scrapes, side="right") - 1, 0, ticks.size - 1)])
    energy = with_unseen(energy, window, traits, readings, power_floor_watts=IDLE_WATTS / 2)
    return printed(energy, power.between(window.start_s, window.end_s))


def rounds_case(random: np.random.Generator, stratum: Stratum) -> Case:
    """The mean over rounds of two sensors by edges; the truth is the energy that the rounds scatter about."""
    scatter = 0.01 if "1 %" in stratum.detail else 0.05 if "5 %" in stratum.detail else 0.0
    gain = 1 + random.uniform(-0.05, 0.05) if stratum.accuracy else 1.0
    refresh_s = stratum.refresh_s
    window = Span(1000.0, 1000.0 + max(0.5, 20 * refresh_s) * random.uniform(1.0, 1.1))
    traits = Traits(
        refresh_s=refresh_s,
        resolution_joules=6e-5,
        accuracy=0.05 if stratum.accuracy else None,
        family="rapl",
    )
    rounds = {}
    systematic: dict[str, float] = {}
    watts = (150.0, 90.0)
    for number in range(stratum.rounds):
        drawn = 1 + scatter * random.standard_normal()
        energies = []
        for mean_watts in watts:
            actual = mean_watts * drawn * gain
            phase_s = window.start_s - random.random() * refresh_s
            times = np.array([window.start_s - 0.001, window.end_s + 0.001])
            values = actual * (updated(times, refresh_s, phase_s) - 900.0)
            start, end = (EdgeReading(float(at_s), float(joules)) for at_s, joules in zip(times, values, strict=True))
            energies.append(
                energy_from_edges(start, end, window, traits, power_floor_watts=0.2 * mean_watts, batch_s=0.01)
            )
        combined = combine(energies)
        rounds[number] = [(combined.joules, combined.random)]
        for name, joules in combined.systematic.items():
            systematic[name] = systematic.get(name, 0.0) + joules / stratum.rounds
    return printed_mean(combine_mean(rounds, systematic, {}), sum(watts) * window.duration_s)


def printed_mean(estimate: Estimate | None, truth: float) -> Case:
    """Return the mean of a run as its table prints it."""
    if estimate is None or estimate.expanded is None:
        raise CoverageError("single_repeat", "repeatability unknown")
    budget = {line.name: line.standard for line in estimate.budget if line.counted}
    return Case(estimate.value, estimate.expanded, truth, budget)


def net_case(random: np.random.Generator, stratum: Stratum) -> Case:
    """The net energy of a run read at edges: its idle power drifts, and every idle window scatters by 0.5 %.

    ``detail`` has the idle windows: ``B`` before and ``A`` after the rounds, ``L`` with the network loaded.
    """
    kinds, _, drifting = stratum.detail.partition(", ")
    drift = random.uniform(-0.05, 0.05) if drifting else 0.0
    load_watts = random.choice([60.0, 150.0])
    before = [("idle", flag) for flag in kinds if flag != "A"]
    plan = [*before, *[("measure", "")] * stratum.rounds, *[("idle", flag) for flag in kinds if flag == "A"]]
    windows, truths = [], []
    for index, (kind, flag) in enumerate(plan):
        idle_watts = IDLE_WATTS * (1 + drift * index / (len(plan) - 1))
        watts = idle_watts * (1 + 0.005 * random.standard_normal())
        if kind == "measure":
            truths.append(load_watts - idle_watts)
            watts = load_watts * (1 + 0.003 * random.standard_normal())
        windows.append(run_window(index, kind, flag, watts))
    record = RunRecord(header=RUN_HEADER, configurations=(), windows=tuple(windows))
    (group,) = analyze_run(record, None).groups
    return printed_mean(group.total.net, float(np.mean(truths)) * WINDOW_S / INFERENCES)


WINDOW_S: Final = 2.0
INFERENCES: Final = 100
CPU: Final = sensor("socket0", "package")
RUN_HEADER: Final = RunHeader(
    run="r",
    started_at_s=0.0,
    schema=2,
    command=(),
    plan={},
    plan_sha256="",
    configurations=(Configuration(name="n", network="n", runtime="r", precision="p"),),
    exporters=(),
    sensors=(CPU,),
    provenance={},
)


def run_window(index: int, kind: str, flag: str, watts: float) -> Window:
    """Return a window with exact counters at its edges."""
    start_s = 1000.0 + 5 * index
    edges = []
    for at_s, joules in ((start_s, 0.0), (start_s + WINDOW_S, watts * WINDOW_S)):
        counter = EdgeCounter(
            **{
                name: getattr(CPU, name) for name in ("exporter", "scope", "collector", "component", "device", "domain")
            },
            energy_joules=1e6 * index + joules,
            read_at_s=at_s,
        )
        edges.append(Edge(requested_at_s=at_s, answered_at_s=at_s, counters=(counter,)))
    return Window(
        run="r",
        index=index,
        kind=kind,  # type: ignore[arg-type]
        start_s=start_s,
        end_s=start_s + WINDOW_S,
        duration_s=WINDOW_S,
        clock_error_s=0.0,
        configuration="n" if kind == "measure" or flag == "L" else "",
        batch_size=1 if kind == "measure" else 0,
        repeat=index,
        batches=INFERENCES if kind == "measure" else 0,
        inferences=INFERENCES if kind == "measure" else 0,
        start_edge=edges[0],
        end_edge=edges[1],
        flags=("loaded",) if flag == "L" else (),
    )


def run_case(random: np.random.Generator, stratum: Stratum) -> Case:
    """The gross energy of a whole run of two sockets that scatters by 1 %, with edges or with scrapes every 0.2 s."""
    world = make_world(
        SOCKETS,
        configurations=("net/onnxruntime/fp32",),
        batch_sizes=(1,),
        rounds=stratum.rounds,
        edges=stratum.detail == "edges",
        noise=0.01,
        seed=int(random.integers(2**31)),
        loaded_idle=False,
    )
    assert world.record is not None
    source = ListSource(world.scrapes()) if stratum.detail == "history" else None
    (group,) = analyze_run(world.record, source).groups
    watts = sum(default_power(item, group.configuration.name, 1) for item in SOCKETS)
    return printed_mean(group.total.gross, watts * group.duration_s / group.inferences)


SOCKETS: Final = tuple(item for item in TWO_SOCKETS if item.scope == "device" and item.component == "cpu")

MAKERS: Final[Mapping[str, tuple[CaseMaker, int]]] = {
    "edges": (edges_case, 800),
    "history": (history_case, 400),
    "power": (power_case, 800),
    "unseen": (unseen_case, 400),
    "rounds": (rounds_case, 2400),
    "net": (net_case, 400),
    "run": (run_case, 1000),
}
"""Method of a stratum -> how a case is made, and how many."""


def strata() -> Iterator[Stratum]:
    """Yield every stratum."""
    for signal in SIGNALS:
        for refresh_s in REFRESHES_S:
            yield Stratum(method="edges", signal=signal, refresh_s=refresh_s)
            for scrape_s in (0.2, 1.0, 15.0):
                for method in ("history", "power"):
                    yield Stratum(method=method, signal=signal, refresh_s=refresh_s, scrape_s=scrape_s)
        for refresh_s, detail in ((0.1, INTEGRATED), (1.0, f"{INTEGRATED}, {CLOCK_UNKNOWN}")):
            yield Stratum(method="edges", signal=signal, refresh_s=refresh_s, detail=detail)
        for scrape_s in (0.2, 1.0):
            yield Stratum(method="unseen", signal=signal, refresh_s=0.1, scrape_s=scrape_s)
            yield Stratum(method="history", signal=signal, refresh_s=0.1, scrape_s=scrape_s, detail=CLOCK_UNKNOWN)
    for rounds, detail, accuracy, refresh_s in itertools.product(
        (1, 2, 3, 5, 10), ("steady", "scatter 1 %", "scatter 5 %"), (False, True), (0.001, 1.0)
    ):
        yield Stratum(
            method="rounds", signal="constant", refresh_s=refresh_s, rounds=rounds, accuracy=accuracy, detail=detail
        )
    for kinds, drift, rounds in itertools.product(
        ("B", "L", "BA", "BL", "BLA", "BBAA"), ("", ", drift 5 %"), (2, 3, 10)
    ):
        yield Stratum(method="net", signal="constant", refresh_s=0.001, rounds=rounds, detail=kinds + drift)
    for detail, rounds in itertools.product(("edges", "history"), (1, 2, 3, 5)):
        yield Stratum(method="run", signal="constant", refresh_s=0.001, rounds=rounds, detail=detail)


def simulate(stratum: Stratum, share: float = 1.0, seed: int = 1) -> Outcome:
    """Make the cases of a stratum, or a share of them; its seed depends only on its name."""
    maker, count = MAKERS[stratum.method]
    random = np.random.default_rng([seed, zlib.crc32(stratum.name.encode())])
    outcome = Outcome()
    for _ in range(round(count * share)):
        try:
            outcome.cases.append(maker(random, stratum))
        except CoverageError as error:
            outcome.refused[error.reason] += 1
    return outcome


def row_of(stratum: Stratum, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"stratum": stratum.name, "n": len(outcome.cases), "refused": dict(outcome.refused)}
    if outcome.cases:
        row |= {
            "coverage_percent": outcome.coverage(),
            "median_ratio": outcome.ratio(),
            "width_percent": outcome.width(),
            "dominant": outcome.dominant(),
            "steady": stratum.signal in STEADY and stratum.method in SINGLE and not stratum.detail,
        }
    return row


def verdicts_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return whether the figures of the promise are reached, and the strata that are not."""
    with_number = [row for row in rows if row["n"]]
    low = [row for row in with_number if row["coverage_percent"] < LEAST_COVERAGE]
    idle = [row for row in with_number if row["steady"] and row["median_ratio"] < LEAST_RATIO]
    lines = [
        f"coverage of at least {LEAST_COVERAGE:g} % in every stratum with a ±: {len(with_number) - len(low)} of "
        f"{len(with_number)}, {'MISSED' if low else 'met'}",
        f"median |error| / ± of at least {LEAST_RATIO:g} in steady strata: {'MISSED' if idle else 'met'}",
    ]
    lines += [f"below: {row['stratum']}: {row['coverage_percent']:.1f} %" for row in low]
    lines += [f"needlessly wide: {row['stratum']}: {row['median_ratio']:.3f}" for row in idle]
    return lines


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of the table."""
    refused = ", ".join(f"{count} {reason}" for reason, count in row["refused"].items()) or "0"
    cells = [row["stratum"], str(row["n"]), refused]
    if not row["n"]:
        return [*cells, "no ±", "", "", "", ""]
    return [
        *cells,
        f"{row['coverage_percent']:.1f}",
        f"{row['median_ratio']:.2f}",
        f"{row['width_percent']:.3g}",
        row["dominant"],
        REASONS[row["dominant"]] if row["coverage_percent"] > WIDE_COVERAGE else "",
    ]


def summary_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return for each method: its strata, cases, and its lowest and mean coverage."""
    lines = []
    for method in MAKERS:
        found = [row for row in rows if row["n"] and row["stratum"].startswith(f"{method},")]
        cases = sum(row["n"] for row in found)
        mean = sum(row["coverage_percent"] * row["n"] for row in found) / cases
        lowest = min(row["coverage_percent"] for row in found)
        lines.append([method, str(len(found)), str(cases), f"{lowest:.1f}", f"{mean:.1f}"])
    return lines


def run(quick: bool = False, seed: int = 1) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    rows = [row_of(stratum, simulate(stratum, 0.05 if quick else 1.0, seed)) for stratum in strata()]
    verdicts = verdicts_of(rows)
    table = f"# Coverage of the printed ±\n\n{host_line(machine)}\n{INTRODUCTION}\n"
    table += "".join(f"- {verdict}\n" for verdict in verdicts) + "\n"
    table += markdown_table(["method", "strata with a ±", "cases", "lowest coverage %", "mean %"], summary_of(rows))
    head = ["stratum", "n", "refused", "coverage %", "median error / ±", "± %", "largest component"]
    table += "\n" + markdown_table([*head, f"reason above {WIDE_COVERAGE:g} %"], [cells_of(row) for row in rows])
    result = {"machine": machine, "seed": seed, "rows": rows, "verdicts": verdicts}
    write_result("coverage", result, table)
    return result
