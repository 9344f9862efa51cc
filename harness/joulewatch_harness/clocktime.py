"""Clocks, and time stamps as Prometheus stores them."""

from __future__ import annotations

import math
from typing import Final, Protocol

CLOCK_STEP_S: Final = 0.005
"""A clock whose distance from another one changed by more than this was set, not slewed ..."""
CLOCK_SLEW: Final = 1e-3
"""... unless that took long: NTP slews a clock by at most 500 ppm, and two clocks may be slewed in opposite
directions."""


class Clock(Protocol):
    """The clocks of a machine. The module ``time`` is the real one; unit tests pass a fake.

    Its names are those of ``time``, so that no class wraps the real clock: on the hot path of a scenario each reading
    is a call of a built-in function.
    """

    def monotonic_ns(self) -> int: ...

    def time_ns(self) -> int: ...

    def sleep(self, seconds: float, /) -> None: ...


def is_step(change_s: float, duration_s: float, error_s: float = 0.0) -> bool:
    """Return whether the distance of two clocks changed by a step, and not only because a clock was slewed.

    Args:
        change_s: The change.
        duration_s: Time in which it happened.
        error_s: Largest error of the change.
    """
    return abs(change_s) > CLOCK_STEP_S + CLOCK_SLEW * duration_s + error_s


def to_ms(at_s: float) -> int:
    """Round Unix seconds to the nearest millisecond."""
    return math.floor(at_s * 1000 + 0.5)
