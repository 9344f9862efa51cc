"""Sick devices beside well ones, and devices that come and go: what a user relies on holds, and nothing grows."""

from __future__ import annotations

import pytest

from benchmarks import faulty_node, soak
from benchmarks.faulty_node import COUNTER_TARGET, POWER_TARGET, Row
from support.require import require_program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PEAK_WATTS = {"rapl": 240.0, "nvml": 370.0, "fpga": 62.0, "hwmon": 11.0, "ipmi": 1400.0, "redfish": 1400.0}
"""Of the sick ones, above what their signals reach."""
STUCK_S = 8.0
"""A sensor of power that shows an old value as if it were new cannot be found out in so short a time."""
SWING_WATTS = {"fpga": 28.0, "hwmon": 4.0, "ipmi": 560.0}


def check_well(row: Row) -> None:
    where = f"{row.kind}: {row}"
    target = COUNTER_TARGET if row.is_counter else POWER_TARGET
    assert abs(row.deviation) <= target, where
    assert (row.errors, row.unmeasured_s, row.resets, row.rejected, row.was_always_up) == ({}, 0.0, 0, 0, True), where


def check_sick(row: Row) -> None:
    """What is missing is at most what the time that is stated as not measured can have held."""
    where = f"{row.kind}: {row}"
    family = row.series[0]
    missing_joules = row.true_joules - row.measured_joules
    unknowable_joules = STUCK_S * SWING_WATTS.get(family, 0.0) + POWER_TARGET * row.true_joules
    assert -unknowable_joules <= missing_joules <= row.unmeasured_s * PEAK_WATTS[family] + unknowable_joules, where
    assert row.errors and not row.was_always_up, where
    assert row.resets == row.is_counter, where


def test_everything_that_can_go_wrong_is_said_and_seen_nowhere_else() -> None:
    require_program("gcc", "gcc libc6-dev")
    watched, rows = faulty_node.watch()
    assert watched.complaints == []
    for row in rows:
        (check_sick if row.is_sick else check_well)(row)


def test_sensors_that_come_and_go_leave_nothing_behind() -> None:
    """Half a minute of what the soak benchmark does for half an hour."""
    require_program("gcc", "gcc libc6-dev")
    soaked = soak.soak(35.0)
    assert soaked.watched.complaints == []
    assert soaked.growth("threads") <= soak.MAX_THREAD_GROWTH
    assert soaked.growth("descriptors") <= soak.MAX_DESCRIPTOR_GROWTH
    assert soaked.growth("rss_mebibytes") <= soak.MAX_RSS_GROWTH_MEBIBYTES
    for collector, device, _ in soak.WELL:
        assert soaked.watched.was_always_up((collector, device)), device
    lost = [device for device in soaked.watched.up if not soaked.watched.was_always_up(device)]
    assert len(lost) == len(soak.WELL), lost
