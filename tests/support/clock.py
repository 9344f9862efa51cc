"""A clock that stands still until a test moves it."""

from __future__ import annotations

from dataclasses import dataclass

NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class FakeClock:
    """Monotonic and wall clock of a machine that booted ``unix_ns - now_ns`` after 1970."""

    now_ns: int = 1_000 * NS_PER_S
    unix_ns: int = 1_700_000_000 * NS_PER_S

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time_ns(self) -> int:
        return self.unix_ns

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        step_ns = round(seconds * NS_PER_S)
        self.now_ns += step_ns
        self.unix_ns += step_ns

    def step_wall_clock(self, seconds: float) -> None:
        """Set the wall clock, as NTP or a person does; the monotonic one goes on."""
        self.unix_ns += round(seconds * NS_PER_S)
