"""The bound of a share of energy. Pure.

Energy that several consumers use is shared by a weight, such as CPU time. A share of the weight is not a share of the
energy: one core that multiplies vectors draws more than one that waits for memory. If the watts per unit of weight of
any two consumers differ by at most a ratio r, the share of the energy lies between the two values of ``share_bounds``.
Both can be reached: the rest of the machine draws r times as much per unit of weight, or a r-th.

The bound may be taken at the mean share of a span instead of at each moment of it. The upper limit is concave in the
share and the lower one convex, so the bound at the mean contains the mean of the bounds (Jensen).
"""

from __future__ import annotations

from typing import Final

DEFAULT_RATIO: Final = 2.0
"""Assumed largest ratio of the watts per unit of weight of two workloads; Kepler's documentation mentions 2 to 3.
``joulewatch calibrate --workloads`` measures that of a machine."""
_ROUNDING: Final = 1e-9


def share_bounds(share: float, ratio: float = DEFAULT_RATIO) -> tuple[float, float]:
    """Return the smallest and the largest share of the energy that a share of the weight can be.

    Args:
        share: Part of the weight, from 0 to 1; rounding errors above 1 or below 0 are removed.
        ratio: Largest ratio of the energies per unit of weight of two consumers, at least 1.

    Raises:
        ValueError: An argument is out of range.
    """
    if not -_ROUNDING <= share <= 1 + _ROUNDING:
        raise ValueError(f"share {share:g} is not between 0 and 1")
    if not ratio >= 1:
        raise ValueError(f"ratio {ratio:g} is not at least 1")
    share = min(max(share, 0.0), 1.0)
    rest = 1.0 - share
    # Divided by the ratio rather than multiplied: a ratio of infinity then gives 0 and 1.
    low = share / ratio / (share / ratio + rest) if rest else 1.0
    high = share / (share + rest / ratio) if share else 0.0
    return min(low, share), max(high, share)
