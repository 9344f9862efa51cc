"""Time stamps as Prometheus stores them."""

from __future__ import annotations

import math


def to_ms(at_s: float) -> int:
    """Unix seconds to the nearest millisecond."""
    return math.floor(at_s * 1000 + 0.5)
