"""The power during a warm-up, from readings of the energy counters between its spans.

Only sensors with a short refresh period can show the power of a span of some hundredths of a second. The others show a
warm-up that was too short by their first round, in the analysis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from joulewatch_harness.plan.refresh import expected_refresh_s
from joulewatch_harness.records import EdgeCounter, SensorRecord
from joulewatch_harness.runner.bracket import EdgeSource

LARGEST_READING_SHARE: Final = 0.1
"""If a reading takes a larger share of a span, it would disturb the load more than it helps."""
_Key = tuple[str, str, str, str, str, str]


class PowerMeter:
    """Measures the mean power of the fast device sensors between two readings.

    Args:
        edges: Reads the counters.
        sensors: The sensors of the run.
        span_s: Expected time between two readings.
        largest_refresh_s: Sensors with a longer refresh period are not used. Only energy counters are used: power that
            is integrated from some readings is too coarse, and the power of a model or an emulation does not warm up.
    """

    def __init__(
        self, edges: EdgeSource, sensors: Sequence[SensorRecord], *, span_s: float, largest_refresh_s: float
    ) -> None:
        self._edges = edges
        self._span_s = span_s
        self._used = {
            _key(record)
            for record in sensors
            if (record.scope, record.method) == ("device", "counter")
            and (refresh_s := expected_refresh_s(record)) is not None
            and refresh_s <= largest_refresh_s
        }
        self._last: dict[_Key, tuple[float, float]] = {}

    def read(self) -> float | None:
        """Read the counters; return the mean power since the last reading in watts.

        Returns:
            None at the first reading and if no sensor is fast enough. Also None, and no further reading, once a counter
            is missing or was reset, or a reading took long.
        """
        if not self._used:
            return None
        edge = self._edges.fetch().parse()
        took_long = edge.answered_at_s - edge.requested_at_s > LARGEST_READING_SHARE * self._span_s
        readings = {_key(counter): (counter.read_at_s, counter.energy_joules) for counter in edge.counters}
        last, self._last = self._last, {key: readings[key] for key in self._used & readings.keys()}
        complete = self._last.keys() == self._used
        watts = _watts(last, self._last) if last and complete else None
        if took_long or not complete or (last and watts is None):
            self._used = set()
            return None
        return watts


def _key(record: SensorRecord | EdgeCounter) -> _Key:
    return record.exporter, record.scope, record.collector, record.component, record.device, record.domain


def _watts(start: Mapping[_Key, tuple[float, float]], end: Mapping[_Key, tuple[float, float]]) -> float | None:
    """Return the total power between two readings of the same counters; None: one of them was reset."""
    total = 0.0
    for key, (start_s, start_joules) in start.items():
        end_s, end_joules = end[key]
        if end_s <= start_s or end_joules < start_joules:
            return None
        total += (end_joules - start_joules) / (end_s - start_s)
    return total
