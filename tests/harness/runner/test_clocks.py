"""The mapping from monotonic time to Unix time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.runner.clocks import MAPPING_TRIES, ClockMapping
from support.clock import NS_PER_S, FakeClock


@given(st.integers(0, 2**62), st.integers(-(2**60), 2**60))
def test_a_mapping_is_exact_to_a_microsecond(monotonic_ns: int, offset_ns: int) -> None:
    clock = FakeClock(now_ns=monotonic_ns, unix_ns=monotonic_ns + offset_ns, reading_ns=100)
    mapping = ClockMapping.read(clock)
    assert mapping.unix_s(clock.now_ns) == pytest.approx((clock.now_ns + offset_ns) / NS_PER_S, abs=1e-6, rel=1e-15)
    assert 0 < mapping.error_s < 1e-6


@dataclass
class InterruptedClock(FakeClock):
    """A clock of a process that loses the processor before some of its readings."""

    delays_ns: list[int] = field(default_factory=list)
    """Before each reading, in order."""
    readings: int = 0

    def _advance_ns(self, step_ns: int) -> None:
        delay_ns = self.delays_ns[self.readings] if self.readings < len(self.delays_ns) else 0
        self.readings += 1
        super()._advance_ns(step_ns + delay_ns)


def test_the_narrowest_of_seven_readings_counts() -> None:
    """The process is interrupted in all readings but the fifth, before or after it has read the wall clock."""
    early, late = [0, 400, 20], [0, 20, 500]
    clock = InterruptedClock(now_ns=0, unix_ns=0, delays_ns=[*early, *late, *early, *late, 0, 10, 30, *early, *late])
    mapping = ClockMapping.read(clock)
    assert clock.readings == 3 * MAPPING_TRIES == 21
    assert mapping.error_s == pytest.approx(20e-9)
    assert mapping.offset_ns == -10, "read 10 ns after the first and 30 ns before the second monotonic time"


def test_of_equally_narrow_readings_the_first_counts() -> None:
    clock = InterruptedClock(now_ns=0, unix_ns=0, delays_ns=[0, 10, 30, *([0, 30, 10] * 6)])
    mapping = ClockMapping.read(clock)
    assert (mapping.offset_ns, mapping.error_s) == (-10, pytest.approx(20e-9))


def test_the_offset_is_wall_clock_minus_monotonic_clock() -> None:
    mapping = ClockMapping.read(FakeClock(now_ns=5 * NS_PER_S, unix_ns=1_700_000_005 * NS_PER_S))
    assert (mapping.offset_ns, mapping.error_s) == (1_700_000_000 * NS_PER_S, 0.0)
    assert mapping.unix_s(7_250_000_000) == 1_700_000_007.25
