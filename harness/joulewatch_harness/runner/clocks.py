"""The machine's clocks, and the mapping from monotonic to wall-clock time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Protocol

MAPPING_TRIES: Final = 7


class Clock(Protocol):
    """The machine's clocks; a test has its own."""

    def monotonic_ns(self) -> int: ...

    def wall_ns(self) -> int: ...

    def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The real ones."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)


@dataclass(frozen=True, slots=True)
class ClockMapping:
    """Wall clock minus monotonic clock at one moment."""

    offset_ns: int
    error_s: float

    def unix_s(self, monotonic_ns: int) -> float:
        """Unix seconds of a monotonic time."""
        seconds, rest = divmod(monotonic_ns + self.offset_ns, 1_000_000_000)
        return seconds + rest * 1e-9


class WallClock:
    """Maps the monotonic clock to Unix time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def mapping(self) -> ClockMapping:
        """Read monotonic, wall, monotonic a few times and keep the tightest; half its width is the error."""
        best: tuple[int, int] | None = None
        for _ in range(MAPPING_TRIES):
            before = self._clock.monotonic_ns()
            wall = self._clock.wall_ns()
            after = self._clock.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, wall - (before + after) // 2)
        assert best is not None
        return ClockMapping(best[1], best[0] * 0.5e-9)
