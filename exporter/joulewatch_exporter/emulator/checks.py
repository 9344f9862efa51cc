"""The check of a number in a scenario."""

from __future__ import annotations

import math


def check_range(key: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `ValueError`, with the key in front, if a value is out of its range."""
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise ValueError(f"{key}: must be {limits}, not {value:g}")
