"""Energies of windows whose processes are interrupted anywhere: the uncertainty contains the truth.

The exporter's reads, its answer, the client's parser, the bracket and the analysis are the real ones. A clock makes any
of their operations last long: the read of the counter before and after its value is sampled, each reading of a clock,
and the messages.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from joulewatch_exporter.model import Collector, Reading, SensorInfo, Timing
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.server.edge import render_edge
from joulewatch_exporter.threads import Turn
from joulewatch_harness.analysis.energy.from_edges import energy_from_edges
from joulewatch_harness.analysis.energy.window_energy import EdgeReading, Span, WindowEnergy
from joulewatch_harness.analysis.sources.series import Traits
from joulewatch_harness.clients.edge_socket import EdgeAnswer
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import Edge
from joulewatch_harness.runner.bracket import Bracket
from support.clock import FakeClock
from support.fake_family import info

REFRESH_NS = 1_000_000
STEP_NS = 6_000
LOW_WATTS, HIGH_WATTS = 60.0, 260.0
SQUARE_NS = 170_000_000
"""Time at each power."""
WINDOW_S = 0.02
WINDOWS = 500


@dataclass
class StallingClock(FakeClock):
    """Each operation takes ``STEP_NS``, and some of them, by number, longer: before or after what they return."""

    stalls_ns: Mapping[int, int] = field(default_factory=dict)
    operations: int = 0

    def operate(self) -> None:
        self._advance_ns(STEP_NS + self.stalls_ns.get(self.operations, 0))
        self.operations += 1

    def monotonic_ns(self) -> int:
        now_ns = self.now_ns
        self.operate()
        return now_ns

    def time_ns(self) -> int:
        unix_ns = self.unix_ns
        self.operate()
        return unix_ns


class Power:
    """A power with sudden changes."""

    def __init__(self, watts: float, at_ns: int) -> None:
        self._changes = [(at_ns, watts, 0.0)]

    def set(self, watts: float, at_ns: int) -> None:
        self._changes.append((at_ns, watts, self.joules(at_ns)))

    def joules(self, at_ns: int) -> float:
        since_ns, watts, joules = next(change for change in reversed(self._changes) if change[0] <= at_ns)
        return joules + watts * (at_ns - since_ns) * 1e-9


@dataclass
class RefreshedCounter:
    """A counter with the energy of its last refresh."""

    clock: StallingClock
    power: Power
    infos: tuple[SensorInfo, ...] = (info(),)
    device: str = "socket0"

    def read(self) -> Sequence[Reading]:
        self.clock.operate()
        joules = self.power.joules(self.clock.now_ns // REFRESH_NS * REFRESH_NS)
        self.clock.operate()
        return (Reading(self.infos[0].quantity, self.clock.monotonic_ns(), joules, None),)


class Edges:
    """Asks the family as the exporter's socket does; its answers are parsed as the client does."""

    def __init__(self, family: Family, clock: StallingClock) -> None:
        self._family = family
        self._clock = clock

    def fetch(self) -> Any:
        clock = self._clock
        requested_at_s = clock.time()
        turn = Turn()
        edge = self._family.edge(self._family.scan(turn), turn, lambda: True)
        clock.operate()
        answer = EdgeAnswer.parse(render_edge([edge], start_s=1.0, nodename="node"), "exporter")
        fetched = Edge(requested_at_s=requested_at_s, answered_at_s=clock.time(), counters=answer.counters)
        return SimpleNamespace(parse=lambda: fetched)


def measure(load: str, phase_ns: int, stalls_ns: Mapping[int, int]) -> tuple[WindowEnergy, float, int]:
    """Return the energy of a window, the truth, and the number of operations."""
    clock = StallingClock()
    start_ns = clock.now_ns // REFRESH_NS * REFRESH_NS
    power = Power(LOW_WATTS, start_ns - SQUARE_NS)
    if load == "square":
        for number in range(40):
            power.set(LOW_WATTS if number % 2 else HIGH_WATTS, start_ns + phase_ns + number * SQUARE_NS)
    collector = SimpleNamespace(
        name="fake",
        sensors=(RefreshedCounter(clock, power),),
        timing=Timing(poll_s=1.0, read_on_scrape=True, has_steps=True),
        findings=(),
        close=lambda: None,
    )
    family = Family(cast("Collector", collector), clock=clock)
    family.scan()
    family.burst(Turn(), lambda: False)
    clock.stalls_ns, clock.operations = stalls_ns, 0
    clock.advance(0.0007)
    with Bracket(clock, Edges(family, clock)) as bracket:
        if load == "rectangle":
            power.set(HIGH_WATTS, bracket.start_ns)
        clock.sleep(WINDOW_S + phase_ns % REFRESH_NS * 1e-9)
        if load == "rectangle":
            power.set(LOW_WATTS, clock.now_ns)
    truth = power.joules(bracket.end_ns) - power.joules(bracket.start_ns)
    window = bracket.window(run="x", index=0, kind="measure")
    assert window.start_edge is not None
    assert window.end_edge is not None
    start, end = (
        EdgeReading(edge.counters[0].read_at_s, edge.counters[0].energy_joules, step=edge.counters[0].step)
        for edge in (window.start_edge, window.end_edge)
    )
    span = Span(window.start_s, window.start_s + window.duration_s, window.clock_error_s)
    traits = Traits(refresh_s=REFRESH_NS * 1e-9)
    energy = energy_from_edges(start, end, span, traits, power_floor_watts=LOW_WATTS, power_cap_watts=HIGH_WATTS)
    return energy, truth, clock.operations


@pytest.mark.parametrize("load", ["steady", "rectangle", "square"])
def test_the_uncertainty_holds_wherever_a_process_is_interrupted(load: str) -> None:
    rng = random.Random(1)
    operations = measure(load, 0, {})[2]
    held = 0
    for _ in range(WINDOWS):
        phase_ns = rng.randrange(2 * SQUARE_NS)
        count = rng.choice([1, 1, 1, 2, 8])
        stalls_ns = {rng.randrange(operations): round(10 ** rng.uniform(5, 8.6)) for _ in range(count)}
        energy, truth, _ = measure(load, phase_ns, stalls_ns)
        expanded = NORMAL_95 * energy.standard_joules
        held += abs(energy.joules - truth) <= expanded
        # A change of power in the last refresh before an edge is not seen if that edge has no refreshes.
        assert abs(energy.joules - truth) <= expanded + (HIGH_WATTS - LOW_WATTS) * REFRESH_NS * 1e-9, (
            phase_ns,
            stalls_ns,
        )
        assert energy.lower_joules <= truth <= energy.upper_joules, (phase_ns, stalls_ns)
    assert held >= 0.99 * WINDOWS


@pytest.mark.parametrize("load", ["steady", "rectangle", "square"])
def test_a_window_without_interruptions_is_exact(load: str) -> None:
    for phase_ns in range(0, 2 * SQUARE_NS, 3_700_000):
        energy, truth, _ = measure(load, phase_ns, {})
        assert energy.joules == pytest.approx(truth, rel=0.01)
        assert abs(energy.joules - truth) <= NORMAL_95 * energy.standard_joules <= 0.04 * truth


def test_the_power_during_a_long_interruption_is_not_that_at_its_end() -> None:
    """At 60 W, the client is interrupted after the end for 0.18 s, in which the power rises to 260 W."""
    operations = measure("square", 0, {})[2]
    for number in range(operations):
        energy, truth, _ = measure("square", 2 * SQUARE_NS - 20_000_000, {number: 180_000_000})
        assert abs(energy.joules - truth) <= NORMAL_95 * energy.standard_joules
