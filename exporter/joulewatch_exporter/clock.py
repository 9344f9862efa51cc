"""The clock protocol of the package: code takes a `Clock`, and a test passes a fake one."""

from __future__ import annotations

import time
from typing import Final, Protocol

NS_PER_S: Final = 1_000_000_000


class Clock(Protocol):
    """The two clocks of a machine."""

    def monotonic_ns(self) -> int:
        """Return the time that never steps; intervals are measured on it."""
        ...

    def time_ns(self) -> int:
        """Return Unix time, which may step."""
        ...


class SystemClock:
    """The clocks of this machine."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    time_ns = staticmethod(time.time_ns)


def wall_offset_ns(clock: Clock) -> int:
    """Return Unix time minus monotonic time, from the fastest of some readings of both clocks."""
    readings = [(clock.monotonic_ns(), clock.time_ns(), clock.monotonic_ns()) for _ in range(5)]
    before_ns, wall_ns, after_ns = min(readings, key=lambda reading: reading[2] - reading[0])
    return wall_ns - (before_ns + after_ns) // 2
