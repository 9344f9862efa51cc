"""Idle power: configured, or the lowest mean over 30 s without work, or not known."""

from __future__ import annotations

import pytest

from joulewatch_exporter.attribution.idle import IdlePower, MeasuredIdle
from joulewatch_exporter.model import Component, Quantity
from support.clock import NS_PER_S

DAY_S = 86400.0


def key(domain: str = "package", component: Component = "cpu") -> tuple[str, Quantity]:
    return "rapl", Quantity(scope="device", component=component, device="socket0", domain=domain)


CPU = key()
DRAM = key("dram", "memory")


class Machine:
    """A processor whose power and load a test sets."""

    def __init__(self, idle: IdlePower) -> None:
        self.idle = idle
        self.now_s = 1000.0
        self.joules = 0.0
        self.busy_s = 0.0

    def run(self, seconds: float, watts: float, busy: float = 0.0, *, days: float = 0.0) -> None:
        for _ in range(round(seconds)):
            self.now_s += 1.0
            self.joules += watts
            self.busy_s += busy
            self.update(self.busy_s, days)

    def update(self, busy_s: float | None, days: float = 0.0) -> None:
        self.idle.update(CPU, self.joules, round(self.now_s * NS_PER_S), busy_s, self.now_s + days * DAY_S)


@pytest.fixture
def machine() -> Machine:
    return Machine(IdlePower({}))


def test_it_takes_30_seconds_without_work(machine: Machine) -> None:
    machine.run(29, 20.0)
    assert machine.idle.source(CPU) == "none"
    assert machine.idle.watts == {}
    machine.run(7, 20.0)
    assert machine.idle.source(CPU) == "measured"
    assert machine.idle.watts == {CPU: pytest.approx(20.0)}
    (entry,) = machine.idle.measured
    assert 1030.0 <= entry.measured_at_s <= 1036.0


def test_a_busy_machine_is_not_idle(machine: Machine) -> None:
    machine.run(100, 20.0, busy=0.03)
    assert machine.idle.watts == {}
    machine.run(60, 15.0, busy=0.01)
    assert machine.idle.watts[CPU] == pytest.approx(15.0)


def test_the_lowest_mean_counts(machine: Machine) -> None:
    for watts in (20.0, 18.0, 25.0):
        machine.run(60, watts)
    assert machine.idle.watts[CPU] == pytest.approx(18.0)


def test_after_a_month_a_higher_mean_counts_too(machine: Machine) -> None:
    machine.run(60, 18.0)
    machine.run(60, 25.0, days=29.0)
    assert machine.idle.watts[CPU] == pytest.approx(18.0)
    machine.run(60, 25.0, days=31.0)
    assert machine.idle.watts[CPU] == pytest.approx(25.0)


def test_a_counter_that_stands_still_or_restarts_is_no_measurement(machine: Machine) -> None:
    machine.run(60, 0.0)
    assert machine.idle.watts == {}
    machine.run(25, 20.0)
    machine.joules = 0.0
    machine.run(25, 20.0)
    assert machine.idle.watts == {}


def test_time_without_usage_is_no_measurement(machine: Machine) -> None:
    machine.run(25, 20.0)
    machine.update(None)
    machine.run(25, 20.0)
    assert machine.idle.watts == {}


def test_configured_power_is_used_instead() -> None:
    machine = Machine(IdlePower({"socket0": 31.5, "socket0/dram": 2.0}))
    machine.run(60, 20.0)
    assert machine.idle.source(CPU) == machine.idle.source(DRAM) == "configured"
    assert machine.idle.watts == {CPU: 31.5}
    machine.idle.update(DRAM, 0.0, 0, 0.0, 0.0)
    assert machine.idle.watts == {CPU: 31.5, DRAM: 2.0}


def test_the_power_of_a_socket_is_not_that_of_its_memory() -> None:
    assert IdlePower({"socket0": 31.5}).source(DRAM) == "none"


def test_a_restart_under_load_keeps_what_was_measured(machine: Machine) -> None:
    machine.run(60, 20.0)
    again = IdlePower({}, machine.idle.measured)
    assert again.watts == machine.idle.watts
    assert again.source(CPU) == "measured"
    assert isinstance(again.measured[0], MeasuredIdle)
