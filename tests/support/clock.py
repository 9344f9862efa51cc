"""The clock of all unit tests: it advances only when a test advances it, or by a fixed step with each reading."""

from __future__ import annotations

from dataclasses import dataclass

NS_PER_S = 1_000_000_000


@dataclass
class FakeClock:
    """Monotonic and wall clock of a machine that booted ``unix_ns - now_ns`` after 1970.

    It is a ``Clock`` of the exporter and of the harness.
    """

    now_ns: int = 1_000 * NS_PER_S
    unix_ns: int = 1_700_000_000 * NS_PER_S
    reading_ns: int = 0
    """Duration of a reading of either clock."""

    def monotonic_ns(self) -> int:
        self._advance_ns(self.reading_ns)
        return self.now_ns

    def time_ns(self) -> int:
        self._advance_ns(self.reading_ns)
        return self.unix_ns

    def time(self) -> float:
        return self.time_ns() / NS_PER_S

    def sleep(self, seconds: float, /) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Advance both clocks."""
        self._advance_ns(round(seconds * NS_PER_S))

    def step_wall_clock(self, seconds: float) -> None:
        """Step the wall clock, as NTP or a person does; the monotonic clock continues."""
        self.unix_ns += round(seconds * NS_PER_S)

    def _advance_ns(self, step_ns: int) -> None:
        self.now_ns += step_ns
        self.unix_ns += step_ns
