"""Counters that continue in another process are those of one process; a reboot loses the time, never the total."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.config import strict
from joulewatch_exporter.model import Reading, SensorInfo
from joulewatch_exporter.sampling.quantity import QuantityState
from joulewatch_exporter.sampling.saved import SavedErrors, SavedQuantity, SavedState
from support.fake_family import info

WRAP_JOULES = 1000.0
COUNTER = info(wrap_joules=WRAP_JOULES, max_power_watts=100.0)
POWER = info("board", wrap_joules=None, method="integrated", max_gap_s=4.0)


def take(state: QuantityState, at_s: float, *, joules: float | None = None, watts: float | None = None) -> bool:
    reading = Reading(
        quantity=state.quantity, read_at_ns=round(at_s * NS_PER_S), energy_joules=joules, power_watts=watts
    )
    return state.take(reading)


def stored(state: QuantityState) -> SavedQuantity:
    """Return the saved state as it is read back from the file."""
    saved = state.save("rapl")
    assert saved is not None
    whole = SavedState(boot_id="b", saved_at_s=0.0, saved_at_ns=0, start_s=0.0, quantities=(saved,))
    text = json.dumps(dataclasses.asdict(whole))
    return strict.build(SavedState, json.loads(text), "state").quantities[0]


def continued(state: QuantityState, sensor: SensorInfo | None = None) -> QuantityState:
    return QuantityState(sensor or state.info, 0.0, stored(state))


def counts(state: QuantityState) -> tuple[float | None, object]:
    return state.energy_joules, dataclasses.replace(state.health, refresh_s=None)


@given(
    steps=st.lists(st.tuples(st.floats(0.1, 30.0), st.floats(-50.0, 1500.0)), min_size=2, max_size=12),
    split=st.integers(1, 11),
)
def test_a_counter_in_two_processes_is_that_of_one(steps: list[tuple[float, float]], split: int) -> None:
    """With wraps, restarts, glitches and gaps, wherever the first process ends; refresh and power start anew."""
    one, two = QuantityState(COUNTER, 0.0), QuantityState(COUNTER, 0.0)
    at_s, position = 0.0, 500.0
    for index, (after_s, rise) in enumerate(steps):
        at_s, position = at_s + after_s, (position + rise) % WRAP_JOULES
        take(one, at_s, joules=position)
        if index == split and two.counter is not None:
            two = continued(two)
        take(two, at_s, joules=position)
        assert counts(two)[1] == counts(one)[1]
        assert (two.energy_joules is None) or two.energy_joules == pytest.approx(one.energy_joules, rel=1e-9, abs=1e-6)


def test_a_wrap_between_two_calls_counts() -> None:
    state = QuantityState(COUNTER, 0.0)
    take(state, 0.0, joules=990.0)
    later = continued(state)
    assert take(later, 5.0, joules=40.0)
    assert later.energy_joules == pytest.approx(50.0)
    assert (later.health.wraps, later.health.unmeasured_s) == (1, 0.0)


def test_so_long_a_gap_that_wraps_are_unknown_is_unmeasured() -> None:
    """The shortest time to a wrap is 10 s."""
    state = QuantityState(COUNTER, 0.0)
    take(state, 0.0, joules=10.0)
    later = continued(state)
    assert take(later, 60.0, joules=15.0)
    assert (later.energy_joules, later.health.unmeasured_s) == (5.0, 60.0)


def test_a_restart_between_two_calls_is_found_by_the_two_reads_of_a_call() -> None:
    state = QuantityState(COUNTER, 0.0)
    take(state, 0.0, joules=10.0)
    take(state, 1.0, joules=60.0)
    later = continued(state)
    assert not take(later, 3.0, joules=1.0)
    assert take(later, 3.5, joules=2.0)
    assert later.energy_joules == pytest.approx(51.0)
    assert (later.health.resets, later.health.unmeasured_s) == (1, 2.0)


def test_a_suspect_is_confirmed_in_the_next_call_if_the_counter_is_slow() -> None:
    state = QuantityState(dataclasses.replace(COUNTER, wrap_joules=None), 0.0)
    take(state, 0.0, joules=500.0)
    assert not take(state, 1.0, joules=3.0)
    later = continued(state)
    assert take(later, 2.0, joules=8.0)
    assert later.energy_joules == pytest.approx(5.0)
    assert later.health.resets == 1


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(COUNTER, source="perf:power/energy-pkg/"),
        dataclasses.replace(COUNTER, wrap_joules=None),
        dataclasses.replace(COUNTER, counts_since_open=True),
    ],
)
def test_another_source_continues_the_total_and_the_time_between_is_unmeasured(other: SensorInfo) -> None:
    state = QuantityState(COUNTER, 0.0)
    take(state, 0.0, joules=10.0)
    take(state, 1.0, joules=60.0)
    later = continued(state, other)
    take(later, 5.0, joules=61.0)
    assert (later.energy_joules, later.health.unmeasured_s) == (50.0, 4.0)
    take(later, 6.0, joules=71.0)
    assert later.energy_joules == 60.0


def test_power_is_not_credited_over_the_time_between_calls() -> None:
    state = QuantityState(POWER, 0.0)
    take(state, 0.0, watts=100.0)
    take(state, 0.5, watts=100.0)
    later = continued(state)
    take(later, 30.5, watts=100.0)
    assert (later.energy_joules, later.health.unmeasured_s) == (50.0, 30.0)
    take(later, 31.0, watts=100.0)
    assert later.energy_joules == 100.0
    soon = continued(later)
    take(soon, 32.0, watts=200.0)
    assert soon.energy_joules == 250.0, "a gap that the daemon interpolates"


def state_of(*quantities: SavedQuantity) -> SavedState:
    return SavedState(
        boot_id="first", saved_at_s=1000.0, saved_at_ns=50 * NS_PER_S, start_s=900.0, quantities=quantities
    )


def test_a_reboot_keeps_the_total_and_counts_the_time_as_unmeasured() -> None:
    state = QuantityState(COUNTER, 0.0)
    take(state, 40.0, joules=10.0)
    take(state, 49.0, joules=60.0)
    saved = state_of(stored(state))
    assert saved.at(boot_id="first", now_s=1100.0, now_ns=150 * NS_PER_S) is saved
    for boot, now_ns in (("second", 20), ("second", 150), ("", 150), ("first", 20)):
        again = saved.at(boot_id=boot, now_s=1100.0, now_ns=now_ns * NS_PER_S)
        later = QuantityState(COUNTER, 0.0, again.quantities[0])
        take(later, 21.0, joules=2.0)
        take(later, 22.0, joules=12.0)
        assert later.energy_joules == 60.0
        assert (later.health.resets, later.health.unmeasured_s) == (1, 101.0)
    clock_was_set_back = saved.at(boot_id="second", now_s=500.0, now_ns=0)
    assert clock_was_set_back.quantities[0].unmeasured_s == 0.0


def test_a_reboot_of_a_power_sensor() -> None:
    state = QuantityState(POWER, 0.0)
    take(state, 49.0, watts=100.0)
    take(state, 50.0, watts=100.0)
    again = state_of(stored(state)).at(boot_id="second", now_s=1100.0, now_ns=0)
    later = QuantityState(POWER, 0.0, again.quantities[0])
    take(later, 21.0, watts=100.0)
    assert (later.energy_joules, later.health.unmeasured_s, later.health.resets) == (100.0, 100.0, 0)


def test_what_was_not_read_now_is_kept() -> None:
    state = QuantityState(COUNTER, 0.0)
    take(state, 0.0, joules=10.0)
    old = stored(state)
    absent = dataclasses.replace(old, device="socket1", total_joules=7.0)
    before = dataclasses.replace(
        state_of(old, absent), errors=(SavedErrors(collector="rapl", device="socket1", reason="absent", count=2),)
    )
    newer = dataclasses.replace(old, total_joules=9.0)
    after = before.merged([newer], {("rapl", "socket1", "absent"): 3, ("rapl", "socket0", "glitch"): 1})
    assert [(item.device, item.total_joules) for item in after.quantities] == [("socket0", 9.0), ("socket1", 7.0)]
    assert [(item.device, item.count) for item in after.errors] == [("socket1", 3), ("socket0", 1)]


def test_a_quantity_without_a_reading_is_not_saved() -> None:
    assert QuantityState(COUNTER, 0.0).save("rapl") is None
