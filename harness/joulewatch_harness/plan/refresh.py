"""Refresh periods of sensors: the same assumptions for the length of windows and for their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from joulewatch_exporter.catalog import ASSUMED_REFRESH_S, FROZEN_ASSUMED_REFRESH_S
from joulewatch_harness.records import SensorRecord

_ASSUMED_REFRESH_COUNTER_S: Final = 0.1
_ASSUMED_REFRESH_SLOW_S: Final = FROZEN_ASSUMED_REFRESH_S
"""Assumed refresh period of a counter that is read on request, and of every other sensor."""


def assumed_refresh_s(record: SensorRecord) -> float:
    """Return the assumed refresh period of a sensor, from its metadata.

    Power that is read from a management controller or a hardware monitor may be seconds old. A power model computes its
    value when it is read.
    """
    if record.collector in ASSUMED_REFRESH_S:
        return ASSUMED_REFRESH_S[record.collector]
    read_when_asked = record.reads != "power" and record.read_mode not in ("polled", "remote")
    if record.method == "estimated" or (read_when_asked and record.method in ("counter", "emulated")):
        return _ASSUMED_REFRESH_COUNTER_S
    return _ASSUMED_REFRESH_SLOW_S


def has_refresh(record: SensorRecord) -> bool:
    """Return whether a sensor has a refresh period; a power model computes its value when it is read."""
    return record.refresh_s is not None or record.method != "estimated"


def expected_refresh_s(record: SensorRecord) -> float | None:
    """Return the refresh period of a sensor: published, else assumed. None: a power model has none."""
    if not has_refresh(record):
        return None
    return assumed_refresh_s(record) if record.refresh_s is None else record.refresh_s


def slowest_refresh_s(sensors: Sequence[SensorRecord]) -> float | None:
    """Return the longest refresh period of the summed sensors: devices, or nodes if there are no devices.

    None: no sensor has a refresh period.
    """
    for scope in ("device", "node"):
        summed = [record for record in sensors if record.scope == scope]
        if summed:
            periods_s = map(expected_refresh_s, summed)
            return max((period_s for period_s in periods_s if period_s is not None), default=None)
    return None
