"""The mapping from monotonic time to Unix time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from joulewatch_harness.clocktime import Clock

MAPPING_TRIES: Final = 7
NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ClockMapping:
    """Wall clock minus monotonic clock at one moment."""

    offset_ns: int
    error_s: float
    """Largest error of the offset."""

    @classmethod
    def read(cls, clock: Clock) -> Self:
        """Read monotonic, wall and monotonic clock several times; keep the narrowest reading.

        The wall clock was read somewhere between the two monotonic times: its offset is taken from their middle, and
        half the time between them is the error.
        """
        narrowest_ns: int | None = None
        offset_ns = 0
        for _ in range(MAPPING_TRIES):
            before_ns = clock.monotonic_ns()
            wall_ns = clock.time_ns()
            after_ns = clock.monotonic_ns()
            if narrowest_ns is None or after_ns - before_ns < narrowest_ns:
                narrowest_ns = after_ns - before_ns
                offset_ns = wall_ns - (before_ns + after_ns) // 2
        assert narrowest_ns is not None
        return cls(offset_ns, narrowest_ns * 0.5e-9)

    def unix_s(self, monotonic_ns: int) -> float:
        """Convert a monotonic time to Unix seconds."""
        seconds, rest_ns = divmod(monotonic_ns + self.offset_ns, NS_PER_S)
        return seconds + rest_ns * 1e-9
