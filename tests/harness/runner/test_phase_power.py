"""The fit of the powers of phases to the refreshes of a counter."""

from __future__ import annotations

import random

import pytest

from joulewatch_harness.network import TimedPhases
from joulewatch_harness.records import PhasePowers, PhaseTime
from joulewatch_harness.runner.latency import phase_times
from joulewatch_harness.runner.phase_power import CounterTrace, _Point, phase_powers
from support.clock import NS_PER_S

KEY = ("a:1", "device", "rapl", "cpu", "socket0", "package")
WATTS = {"pack": 120.0, "execute": 60.0, "other": 90.0}
START_NS = 5 * NS_PER_S
START_S = 1_700_000_000.0
STEP_NS = 1_700_000


def run(pack_ns: int, execute_ns: int, rest_ns: int, *, jitter: float = 0.3) -> tuple[TimedPhases, list[_Point], int]:
    """Return the phases of batches for a second, and the true energy each 1.7 ms."""
    rng = random.Random(4)
    phases = TimedPhases()
    edges: list[tuple[int, float]] = []  # time at which a power begins
    now_ns = START_NS
    while now_ns < START_NS + NS_PER_S:
        for name, mean_ns in (("pack", pack_ns), ("execute", execute_ns), ("other", rest_ns)):
            took_ns = round(mean_ns * rng.uniform(1 - jitter, 1 + jitter))
            edges.append((now_ns, WATTS[name]))
            if name != "other":
                phases.add(name, now_ns, now_ns + took_ns)
            now_ns += took_ns
        phases.batch()
    points, joules, number = [], 0.0, 0
    at_ns = START_NS
    for (begin_ns, watts), (end_ns, _) in zip(edges, [*edges[1:], (now_ns, 0.0)], strict=True):
        while at_ns < end_ns:
            inside = joules + watts * (at_ns - begin_ns) * 1e-9
            points.append(_Point(START_S + (at_ns - START_NS) * 1e-9, inside, 1e-6))
            number += 1
            at_ns = START_NS + number * STEP_NS
        joules += watts * (end_ns - begin_ns) * 1e-9
    return phases, points, now_ns


def fit(phases: TimedPhases, points: list[_Point], end_ns: int) -> tuple[PhasePowers, ...]:
    times = phase_times(phases, end_ns - START_NS, len(phases.batch_ends_ns))
    return phase_powers({KEY: points}, phases, times, start_ns=START_NS, end_ns=end_ns, start_s=START_S)


@pytest.mark.parametrize(
    ("pack_ns", "execute_ns", "rest_ns"),
    [(30_000_000, 25_000_000, 2_000_000), (300_000, 200_000, 50_000), (20_000, 10_000, 5_000)],
    ids=["many refreshes", "below a refresh", "far below a refresh"],
)
def test_powers_of_long_and_short_phases(pack_ns: int, execute_ns: int, rest_ns: int) -> None:
    (powers,) = fit(*run(pack_ns, execute_ns, rest_ns))
    for name, watts in WATTS.items():
        assert abs(powers.watts[name] - watts) <= 3 * powers.standard_watts[name] + 0.01 * watts
    assert (powers.exporter, powers.device) == ("a:1", "socket0")


def test_batches_in_step_with_the_refreshes_do_not_show_the_powers() -> None:
    """Each interval has the same shares, so any powers with the same mean fit."""
    fitted = fit(*run(850_000, 510_000, 340_000, jitter=0.0))
    assert fitted == () or fitted[0].standard_watts["pack"] > 10


def test_too_few_refreshes_have_no_fit() -> None:
    phases, points, end_ns = run(300_000, 200_000, 50_000)
    assert fit(phases, points[:20], end_ns) == ()


def test_spans_of_which_only_totals_are_known_have_no_fit() -> None:
    phases, points, end_ns = run(300_000, 200_000, 50_000)
    phases.spans["execute"][1] += 10_000_000
    assert fit(phases, points, end_ns) == ()


def test_batches_that_overlap_have_no_fit() -> None:
    phases, points, end_ns = run(300_000, 200_000, 50_000)
    times = {"pack": PhaseTime(1, 0.8), "execute": PhaseTime(1, 0.9)}
    assert phase_powers({KEY: points}, phases, times, start_ns=START_NS, end_ns=end_ns, start_s=START_S) == ()


def test_launches_in_a_row_are_spans_of_the_execution() -> None:
    phases = TimedPhases()
    assert phases.repeat(3, lambda: "output") == "output"
    assert len(phases.times_ns["execute"]) == 6
    assert phases.spans["execute"][0] == len(phases.batch_ends_ns) == 3


def test_a_trace_of_counters_without_steps_is_empty() -> None:
    class Edges:
        fetched = 0

        def fetch(self) -> Edges:
            self.fetched += 1
            return self

        def parse(self) -> object:
            from joulewatch_harness.records import Edge

            return Edge(requested_at_s=0.0, answered_at_s=0.1, counters=())

    edges = Edges()
    with CounterTrace(edges) as trace:  # type: ignore[arg-type]
        pass
    assert trace.steps() == {}
    assert edges.fetched == 1
