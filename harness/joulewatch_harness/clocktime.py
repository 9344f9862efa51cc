"""Clocks, and time stamps as Prometheus stores them."""

from __future__ import annotations

import math
from typing import Protocol


class Clock(Protocol):
    """The clocks of a machine. The module ``time`` is the real one; unit tests pass a fake.

    Its names are those of ``time``, so that no class wraps the real clock: on the hot path of a scenario each reading
    is a call of a built-in function.
    """

    def monotonic_ns(self) -> int: ...

    def time_ns(self) -> int: ...

    def sleep(self, seconds: float, /) -> None: ...


def to_ms(at_s: float) -> int:
    """Round Unix seconds to the nearest millisecond."""
    return math.floor(at_s * 1000 + 0.5)
