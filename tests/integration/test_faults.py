"""Faulty devices next to healthy ones: energies are correct, and the missing ones are reported."""

from __future__ import annotations

import pytest

from benchmarks import faulty_node
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
