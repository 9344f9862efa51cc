"""Faulty devices next to healthy ones, and devices that disappear and return: energies are correct, nothing grows."""

from __future__ import annotations

import pytest

from benchmarks import faulty_node, soak
from benchmarks.faulty_node import COUNTER_TARGET, POWER_TARGET, Row
from support.require import require_program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PEAK_WATTS = {"rapl": 240.0, "nvml": 370.0, "fpga": 62.0, "hwmon": 11.0, "ipmi": 1400.0, "redfish": 1400.0}
"""Limits above the power of the faulty devices' signals."""
STUCK_S = 8.0
"""For such a short time, the exporter cannot detect that a power sensor repeats an old value."""
SWING_WATTS = {"fpga": 28.0, "hwmon": 4.0, "ipmi": 560.0}


def check_healthy(row: Row) -> None:
    where = f"{row.kind}: {row}"
    target = COUNTER_TARGET if row.is_counter else POWER_TARGET
    assert abs(row.deviation) <= target, where
    assert (row.errors, row.unmeasured_s, row.resets, row.rejected, row.was_always_up) == ({}, 0.0, 0, 0, True), where


def check_faulty(row: Row) -> None:
    """Check that the missing energy is at most what the device can have used in the time reported as not measured."""
    where = f"{row.kind}: {row}"
    family = row.series[0]
    missing_joules = row.true_joules - row.measured_joules
    unknowable_joules = STUCK_S * SWING_WATTS.get(family, 0.0) + POWER_TARGET * row.true_joules
    assert -unknowable_joules <= missing_joules <= row.unmeasured_s * PEAK_WATTS[family] + unknowable_joules, where
    assert row.errors and not row.was_always_up, where
    assert row.resets == row.is_counter, where


def test_faults_are_reported_and_do_not_affect_other_devices() -> None:
    require_program("gcc", "gcc libc6-dev")
    watched, rows = faulty_node.watch()
    assert watched.complaints == []
    for row in rows:
        (check_faulty if row.is_sick else check_healthy)(row)


def test_sensors_that_disappear_and_return_leak_no_resources() -> None:
    """Half a minute of the soak benchmark, which takes half an hour."""
    require_program("gcc", "gcc libc6-dev")
    soaked = soak.soak(35.0)
    assert soaked.watched.complaints == []
    assert soaked.growth("threads") <= soak.MAX_THREAD_GROWTH
    assert soaked.growth("descriptors") <= soak.MAX_DESCRIPTOR_GROWTH
    assert soaked.growth("rss_mebibytes") <= soak.MAX_RSS_GROWTH_MEBIBYTES
    for collector, device, _ in soak.HEALTHY:
        assert soaked.watched.was_always_up((collector, device)), device
    lost = [device for device in soaked.watched.up if not soaked.watched.was_always_up(device)]
    assert len(lost) == len(soak.HEALTHY), lost
