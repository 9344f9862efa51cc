"""What networks cost each other: the energy and rate of each at the same time as others, and on its own. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from joulewatch_harness.analysis.results.model import Estimate, GroupResult, Interference


def interferences(groups: Sequence[GroupResult]) -> Iterator[Interference]:
    """Yield each network that was measured at the same time as others, where it was also measured on its own."""
    by_key = {(group.configuration.name, group.batch_size): group for group in groups}
    for group in groups:
        alone = by_key.get((group.configuration.alone, group.batch_size))
        if alone is not None:
            yield Interference(
                configuration=group.configuration.name,
                alone=alone.configuration.name,
                batch_size=group.batch_size,
                energy_alone=alone.total.attributed,
                energy_together=group.total.attributed,
                energy_percent=change_percent(alone.total.attributed, group.total.attributed),
                rate_alone=alone.throughput,
                rate_together=group.throughput,
                rate_percent=change_percent(alone.throughput, group.throughput),
            )


def change_percent(before: Estimate | None, after: Estimate | None) -> Estimate | None:
    """Return the change in percent of ``before``; the uncertainties of both are taken as independent."""
    if before is None or after is None or before.value <= 0.0:
        return None
    ratio = after.value / before.value

    def combined(of_before: float, of_after: float) -> float:
        return 100.0 * math.hypot(of_after / before.value, ratio * of_before / before.value)

    expanded = None
    if before.expanded is not None and after.expanded is not None:
        expanded = combined(before.expanded, after.expanded)
    return Estimate(
        value=100.0 * (ratio - 1.0),
        standard=combined(before.standard, after.standard),
        expanded=expanded,
        dof=math.inf,
        budget=(),
    )
