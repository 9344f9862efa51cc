"""Rounds of a run that depend on each other, with known correlations."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def rounds_of(source: random.Random, lengths: Sequence[int], rho: float, shared: float) -> list[dict[int, float]]:
    """Return the rounds of a run: each is ``rho`` of the one before, ``shared`` of the variance is that of all results.

    The results have different sizes and scatters.
    """

    def series(count: int) -> list[float]:
        values = [source.gauss(0, 1)]
        while len(values) < count:
            values.append(rho * values[-1] + math.sqrt(1 - rho * rho) * source.gauss(0, 1))
        return values

    common = series(max(lengths))
    return [
        {
            number: (1 + place) * (1 + 0.01 * (1 + place) * (math.sqrt(shared) * a + math.sqrt(1 - shared) * b))
            for number, (a, b) in enumerate(zip(common, series(length), strict=False))
        }
        for place, length in enumerate(lengths)
    ]
