"""Scenarios on a clock that only work and sleep advance: single stream, random arrivals, overload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.plan.scenario import Scenario, is_overloaded
from joulewatch_harness.runner.drivers import OfflineDriver, driver_of, local_driver
from support.clock import NS_PER_S, FakeClock

MS = 1_000_000


class FakeNetwork:
    """A batch takes ``batch_ns``; with ``marks`` "early", its end is marked too early."""

    def __init__(self, clock: FakeClock, batch_ns: int = MS, marks: str = "early") -> None:
        self.clock, self.batch_ns, self.marks = clock, batch_ns, marks
        self.calls: list[int] = []

    def describe(self) -> Mapping[str, Any]:
        return {}

    def load(self) -> None: ...

    def prepare(self, batch: int) -> None: ...

    def run(self, batches: int, phases: Phases) -> None:
        self.calls.append(batches)
        for _ in range(batches):
            if self.marks == "early":  # before the device has finished
                phases.batch_ends_ns.append(self.clock.now_ns)
            start_ns = self.clock.now_ns
            self.clock.now_ns += self.batch_ns
            phases.add("execute", start_ns, self.clock.now_ns)

    def close(self) -> None: ...


def server(batch_ns: int, rate_per_s: float, queries: int, seed: str = "a") -> tuple[Phases, FakeNetwork, Any]:
    clock = FakeClock(now_ns=NS_PER_S)
    network = FakeNetwork(clock, batch_ns)
    driver = local_driver(network, Scenario("server", rate_per_s), clock)
    driver.begin(seed)
    phases = Phases()
    driver.run(queries, phases)
    return phases, network, driver


def test_the_offline_driver_runs_the_network_unchanged() -> None:
    clock = FakeClock(now_ns=NS_PER_S)
    network = FakeNetwork(clock)
    driver = driver_of(network, Scenario(), clock)
    assert isinstance(driver, OfflineDriver)
    driver.run(7, Phases())
    assert network.calls == [7]


@pytest.mark.parametrize("marks", ["early", "none"])
def test_single_stream_runs_one_batch_at_a_time_and_marks_its_end(marks: str) -> None:
    clock = FakeClock(now_ns=NS_PER_S)
    network = FakeNetwork(clock, 3 * MS, marks)
    phases = Phases()
    driver = driver_of(network, Scenario("single_stream"), clock)
    driver.begin("x")
    driver.run(5, phases)
    assert network.calls == [1] * 5
    assert list(phases.latencies_ns) == [3 * MS] * 5
    assert list(phases.batch_ends_ns) == [10**9 + 3 * MS * (n + 1) for n in range(5)]


def test_arrivals_are_poisson_and_the_same_for_the_same_seed() -> None:
    """Gaps are exponential: mean and standard deviation are 1/rate. Another seed gives other arrivals."""
    phases, _, _ = server(1000, 100.0, 4000)
    ends = np.array(phases.batch_ends_ns)
    gaps_s = np.diff(ends) * 1e-9
    assert np.mean(gaps_s) == pytest.approx(0.01, rel=0.05)
    assert np.std(gaps_s) == pytest.approx(0.01, rel=0.08)
    assert np.mean(gaps_s > 0.01) == pytest.approx(np.exp(-1), abs=0.03)
    assert list(ends) == list(server(1000, 100.0, 4000)[0].batch_ends_ns)
    assert list(ends) != list(server(1000, 100.0, 4000, "b")[0].batch_ends_ns)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waiting_times_are_those_of_an_m_d_1_queue(load: float) -> None:
    """Pollaczek-Khinchine for constant service: mean wait = load / (2 (1 - load)) service times."""
    phases, _, _ = server(MS, load * 1000, 60_000)
    waits = np.array(phases.latencies_ns) / MS - 1.0
    assert waits.min() >= 0
    assert np.mean(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.12)
    covered = sum(total for _, total in phases.spans.values())
    assert phases.spans["idle"][1] / covered == pytest.approx(1 - load, abs=0.02)


def test_a_schedule_continues_over_calls_and_restarts_with_each_window() -> None:
    in_one_call, _, _ = server(MS, 200.0, 50)
    clock = FakeClock(now_ns=NS_PER_S)
    driver = local_driver(FakeNetwork(clock), Scenario("server", 200.0), clock)
    driver.begin("a")
    phases = Phases()
    for _ in range(5):
        driver.run(10, phases)
    assert list(phases.batch_ends_ns) == list(in_one_call.batch_ends_ns)
    clock.now_ns += 10**10  # the counters are read here; no query may queue up meanwhile
    driver.begin("a")
    driver.run(1, phases)
    assert driver.waited_ns == 0


def test_a_growing_queue_is_an_overload_but_a_busy_server_is_not() -> None:
    for load, overloaded in ((0.5, False), (0.9, False), (1.3, True)):
        phases, _, driver = server(MS, load * 1000, 3000)
        duration_s = (phases.batch_ends_ns[-1] - 10**9) * 1e-9
        # Judged by the queue alone, without the duration of a query back to back.
        assert is_overloaded(load * 1000, 1e-9, driver.waited_ns * 1e-9, duration_s) is overloaded
        assert is_overloaded(load * 1000, 0.001, driver.waited_ns * 1e-9, duration_s) is overloaded
    assert not is_overloaded(10, 0.05, 0.2, 1.0)


def test_without_phases_only_the_ends_of_batches_are_recorded() -> None:
    clock = FakeClock(now_ns=NS_PER_S)
    phases = MarksOnly()
    local_driver(FakeNetwork(clock), Scenario("server", 100.0), clock).run(9, phases)
    with phases("execute"):
        pass
    assert phases.spans == {}
    assert len(phases.batch_ends_ns) == len(phases.latencies_ns) == 9
