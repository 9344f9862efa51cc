"""Waiting for the steps of counters: the times and values of the steps, whatever interrupts the reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.errors import SensorGlitchError
from joulewatch_exporter.model import Reading, SensorInfo
from joulewatch_exporter.sampling.quantity import QuantityState
from joulewatch_exporter.sampling.steps import LARGEST_DOUBT, Intervals, Step, Steps, Watched, await_steps
from joulewatch_exporter.threads import Turn
from support.clock import FakeClock
from support.fake_family import info

REFRESH_NS = 1_000_000
JOULES_PER_REFRESH = 0.2
READ_NS = 3_000


@dataclass
class SteppingSensor:
    """A counter that is refreshed each millisecond; a read samples it between two stalls of its thread."""

    clock: FakeClock
    infos: tuple[SensorInfo, ...] = (info(),)
    stalls_ns: Sequence[tuple[int, int]] = ()
    """By read: the time that passes before and after the value is sampled, in addition to that of the read."""
    reads: int = 0
    error_at: int = -1
    device: str = "socket0"
    first_joules: float = 0.0
    """Position at the scan, which is the start of the total."""

    def read(self) -> Sequence[Reading]:
        before_ns, after_ns = self.stalls_ns[self.reads] if self.reads < len(self.stalls_ns) else (0, 0)
        if self.reads == self.error_at:
            raise SensorGlitchError("EIO")
        self.reads += 1
        self.clock.now_ns += before_ns + READ_NS // 2
        joules = self.clock.now_ns // REFRESH_NS * JOULES_PER_REFRESH
        self.clock.now_ns += after_ns + READ_NS // 2
        return (Reading(self.infos[0].quantity, self.clock.now_ns, joules, None),)


def watch(sensor: SteppingSensor, wait_ns: int = 0, pause_ns: int = 0) -> Watched:
    """Scan the sensor ``wait_ns`` after a step, then await its steps."""
    clock = sensor.clock
    clock.now_ns = 1_000 * REFRESH_NS + wait_ns
    stalls, sensor.stalls_ns = sensor.stalls_ns, ()
    state = QuantityState(sensor.infos[0], min_gap_s=1.0)
    scanned = sensor.read()[0]
    state.take(scanned)
    sensor.first_joules = scanned.energy_joules or 0.0
    sensor.stalls_ns, sensor.reads = stalls, 0

    def pause() -> bool:
        clock.now_ns += pause_ns
        return True

    watched = Watched(0, sensor, state, REFRESH_NS / 1e9, clock.now_ns)
    await_steps([watched], Turn(), clock, pause)
    return watched


def check(watched: Watched, sensor: SteppingSensor) -> None:
    """Check that a refresh was within each error, and that the total is that of the refresh."""
    for step in watched.steps:
        refresh = round(step.at_ns / REFRESH_NS)
        assert abs(step.at_ns - refresh * REFRESH_NS) <= step.error_ns <= LARGEST_DOUBT * REFRESH_NS
        assert step.joules == pytest.approx(refresh * JOULES_PER_REFRESH - sensor.first_joules)
    if watched.steps:
        assert watched.before_joules == pytest.approx(watched.steps[0].joules - JOULES_PER_REFRESH)
    if watched.reading is not None:
        times_ns = (watched.reading.at_ns - watched.reading.error_ns, watched.reading.at_ns + watched.reading.error_ns)
        first, last = (time_ns // REFRESH_NS * JOULES_PER_REFRESH - sensor.first_joules for time_ns in times_ns)
        assert first - 1e-6 <= watched.reading.joules <= last + 1e-6


def test_two_steps_in_a_row_have_the_time_and_the_energy_of_the_refreshes() -> None:
    sensor = SteppingSensor(FakeClock())
    watched = watch(sensor, wait_ns=400_000)
    check(watched, sensor)
    first, last = watched.steps
    assert last.at_ns - first.at_ns == pytest.approx(REFRESH_NS, abs=2 * READ_NS)
    assert first.at_ns == pytest.approx(1_001 * REFRESH_NS, abs=2 * READ_NS)
    assert first.error_ns == READ_NS
    assert watched.reason == ""


@pytest.mark.parametrize("place", [0, 1], ids=["before the value is sampled", "after it"])
def test_a_read_that_is_interrupted_for_a_refresh_is_no_step(place: int) -> None:
    """The time of such a read looks exact, and is off by a whole refresh."""
    stalls = [(0, 0)] * 50 + [(1_050_000, 0) if place == 0 else (0, 1_050_000)]
    sensor = SteppingSensor(FakeClock(), stalls_ns=stalls)
    watched = watch(sensor)
    check(watched, sensor)
    assert "interrupted" in watched.reason
    assert watched.reading is not None


def test_a_step_is_kept_if_the_next_one_is_missed() -> None:
    stalls = [(0, 0)] * 400 + [(1_500_000, 0)]
    sensor = SteppingSensor(FakeClock(), stalls_ns=stalls)
    watched = watch(sensor, wait_ns=100_000)
    check(watched, sensor)
    assert len(watched.steps) == 1


@given(
    st.integers(0, REFRESH_NS - 1),
    st.lists(st.tuples(*[st.one_of(st.just(0), st.integers(0, 3 * REFRESH_NS))] * 2), max_size=600),
)
def test_no_interruption_puts_a_step_at_a_wrong_time(wait_ns: int, stalls_ns: list[tuple[int, int]]) -> None:
    sensor = SteppingSensor(FakeClock(), stalls_ns=stalls_ns)
    watched = watch(sensor, wait_ns=wait_ns)
    check(watched, sensor)


def test_the_wait_ends_after_two_refreshes_of_a_counter_that_stands_still() -> None:
    clock = FakeClock()

    class Frozen(SteppingSensor):
        def read(self) -> Sequence[Reading]:
            return (super().read()[0]._replace(energy_joules=5.0),)

    watched = watch(Frozen(clock))
    assert (watched.steps, watched.reason) == ([], "")
    assert clock.now_ns <= 1_000 * REFRESH_NS + 2.3 * REFRESH_NS


def test_a_read_that_fails_ends_the_wait() -> None:
    watched = watch(SteppingSensor(FakeClock(), error_at=1))
    assert (watched.steps, watched.reason) == ([], "EIO")


def test_a_scrape_in_between_widens_the_error_of_the_step() -> None:
    """A scrape is answered between two reads; a step that happens meanwhile is known to within its duration."""
    sensor = SteppingSensor(FakeClock())
    watched = watch(sensor, wait_ns=100_000, pause_ns=90_000)
    check(watched, sensor)
    assert watched.steps[0].error_ns > 40_000


def bracketed(true_ns: int, width_ns: int, rng: random.Random) -> Step:
    """Return a step that is known to lie in a span of this width."""
    start_ns = true_ns - rng.randrange(width_ns)
    return Step(start_ns + width_ns // 2, (width_ns + 1) // 2, 1.0)


def error_ns(step: Step, true_ns: int) -> int:
    return abs(step.at_ns - true_ns)


@pytest.mark.parametrize(("jitter_ns", "gain"), [(0, 15), (5_000, 8), (50_000, 1.3)])
def test_of_two_steps_the_sharp_one_shows_when_the_other_was(jitter_ns: int, gain: float) -> None:
    """One read in ten is interrupted for up to half of a refresh."""
    rng = random.Random(4)
    intervals = Intervals()
    before = after = 0
    missed = 0
    for number in range(2000):
        true_ns = [0, REFRESH_NS + rng.randint(-jitter_ns, jitter_ns)]
        widths_ns = [rng.randrange(200_000, 500_000) if rng.random() < 0.1 else 2 * READ_NS for _ in true_ns]
        raw = Steps(0.5, *(bracketed(at_ns, width, rng) for at_ns, width in zip(true_ns, widths_ns, strict=True)))
        known = intervals.narrow(raw)
        assert known.before_joules == 0.5
        for old, new, at_ns in zip((raw.first, raw.last), (known.first, known.last), true_ns, strict=True):
            assert new.error_ns <= old.error_ns + 1
            assert new.joules == old.joules
            missed += error_ns(new, at_ns) > new.error_ns + 1
            if number > 100 and old.error_ns > 50_000 and max(widths_ns) > 2 * min(widths_ns):
                before += error_ns(old, at_ns)
                after += error_ns(new, at_ns)
    assert before >= gain * after
    # The next interval may be a little longer or shorter than the last 32.
    assert missed <= 0.01 * 2000


def test_an_unusual_interval_changes_no_step() -> None:
    rng = random.Random(5)
    intervals = Intervals()
    for _ in range(20):
        steps = Steps(0.0, *(bracketed(at_ns, READ_NS, rng) for at_ns in (0, REFRESH_NS)))
        intervals.narrow(steps)
    unusual = Steps(0.0, bracketed(0, READ_NS, rng), bracketed(REFRESH_NS + 300_000, 100_000, rng))
    assert intervals.narrow(unusual) is unusual
    alone = bracketed(0, 400_000, rng)
    assert intervals.narrow(Steps(0.0, alone, alone)).first is alone
