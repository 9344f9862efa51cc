"""Checks of a machine's sensors against each other: sums, ratios, and values that do not change with the load."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.sampling.plausibility import Plausibility, Verdict
from joulewatch_exporter.sampling.scan import FamilyScan, Health, Layout, Reads
from support.fake_family import info

Watts = dict[tuple[str, str], float]

PACKAGE = info("socket0", "package")
CORES = tuple(replace(info("socket0", f"core{number}", scope="part"), relation="core") for number in (0, 1))
GPU = replace(info("GPU-1", "total", component="gpu"), limit_watts=400.0)
GPU_POWER = replace(info("GPU-1", "instant", component="gpu", scope="part"), relation="same")
CARD = info("0000:d8:00", "total", component="fpga")
RAILS = tuple(
    replace(info("0000:d8:00", rail, component="fpga", scope="part"), relation="rail")
    for rail in ("12v_pex", "3v3_pex")
)
NODE = info("platform", "psys", scope="node", component="node")


class Machine:
    """Families whose quantities draw given watts; ten seconds pass before each check."""

    def __init__(self, **families: tuple[SensorInfo, ...]) -> None:
        self.families = families
        self.at_s = 1_700_000_000.0
        self.joules: dict[Quantity, float] = {}
        self.unmeasured_s: dict[Quantity, float] = {}
        self.gone: set[Quantity] = set()
        self.refresh_s: float | None = 0.001
        self.is_read = True
        """False: the scans show values that were read before."""
        self.read_at_s = self.at_s
        self.plausibility = Plausibility()

    def check(self, watts: dict[SensorInfo, float], times: int = 1) -> tuple[Verdict, ...]:
        verdicts: tuple[Verdict, ...] = ()
        for _ in range(times):
            self.at_s += 10.0
            self.read_at_s = self.at_s if self.is_read else self.read_at_s
            for sensor, power in watts.items():
                self.joules[sensor.quantity] = self.joules.get(sensor.quantity, 0.0) + 10.0 * power
            verdicts = self.plausibility.check([self.scan(name, infos, watts) for name, infos in self.families.items()])
        return verdicts

    def scan(self, name: str, infos: tuple[SensorInfo, ...], watts: dict[SensorInfo, float]) -> FamilyScan:
        devices = tuple(dict.fromkeys(sensor.quantity.device for sensor in infos))
        here = [sensor.quantity not in self.gone for sensor in infos]
        reads: tuple[Reads, ...] = tuple("energy" if sensor.wrap_joules else "power" for sensor in infos)
        return FamilyScan(
            collector=name,
            layout=Layout(infos, devices),
            energies_joules=tuple(
                self.joules.get(sensor.quantity, 0.0) if is_here else None
                for sensor, is_here in zip(infos, here, strict=True)
            ),
            powers_watts=tuple(watts.get(sensor) for sensor in infos),
            healths=tuple(
                Health(
                    refresh_s=self.refresh_s,
                    wraps=0,
                    resets=0,
                    rejected=0,
                    unmeasured_s=self.unmeasured_s.get(sensor.quantity, 0.0),
                )
                if is_here
                else None
                for sensor, is_here in zip(infos, here, strict=True)
            ),
            reads=reads,
            read_at_s=(self.read_at_s,) * len(devices),
            states=("ok",) * len(devices),
            errors=(),
            duration_s=0.001,
        )


def only(verdicts: tuple[Verdict, ...], check: str) -> Verdict:
    (verdict,) = (verdict for verdict in verdicts if verdict.check == check)
    return verdict


def test_cores_that_fit_into_their_package_are_plausible() -> None:
    machine = Machine(rapl=(PACKAGE, *CORES))
    verdict = only(machine.check({PACKAGE: 100.0, CORES[0]: 40.0, CORES[1]: 30.0}, times=6), "cores_to_package")
    assert verdict == Verdict(
        check="cores_to_package",
        collector="rapl",
        device="socket0",
        domain="package",
        ratio=pytest.approx(0.7),
        is_implausible=False,
    )


def test_cores_above_their_package_are_implausible_from_the_second_check(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(rapl=(PACKAGE, *CORES))
    watts = {PACKAGE: 100.0, CORES[0]: 80.0, CORES[1]: 40.0}
    assert not only(machine.check(watts, times=4), "cores_to_package").is_implausible
    with caplog.at_level(logging.INFO):
        verdict = only(machine.check(watts), "cores_to_package")
        machine.check(watts, times=3)
    assert (verdict.is_implausible, verdict.ratio) == (True, pytest.approx(1.2))
    assert [record.getMessage() for record in caplog.records] == [
        "rapl socket0 package: its cores draw 1.200 times the power of the package"
    ], "one line per change of state"
    machine.check({PACKAGE: 100.0, CORES[0]: 20.0, CORES[1]: 20.0}, times=4)
    assert not only(machine.check({PACKAGE: 100.0, CORES[0]: 20.0, CORES[1]: 20.0}), "cores_to_package").is_implausible


def test_a_core_that_cannot_be_read_ends_the_check_of_its_package() -> None:
    """A sum with a part missing would always be plausible."""
    machine = Machine(rapl=(PACKAGE, *CORES))
    watts = {PACKAGE: 100.0, CORES[0]: 80.0, CORES[1]: 40.0}
    machine.check(watts, times=6)
    machine.gone.add(CORES[1].quantity)
    assert [verdict.check for verdict in machine.check(watts) if verdict.check != "stuck"] == []


def test_time_that_was_not_measured_ends_the_check() -> None:
    machine = Machine(rapl=(PACKAGE, *CORES))
    watts = {PACKAGE: 100.0, CORES[0]: 80.0, CORES[1]: 40.0}
    machine.check(watts, times=6)
    machine.unmeasured_s[PACKAGE.quantity] = 5.0
    assert [verdict.check for verdict in machine.check(watts) if verdict.check != "stuck"] == []


@pytest.mark.parametrize(
    ("watts", "is_implausible"), [((60.0, 38.0), False), ((60.0, 20.0), True), ((80.0, 40.0), True)]
)
def test_rails_must_make_up_their_card(watts: tuple[float, float], is_implausible: bool) -> None:
    machine = Machine(fpga=(CARD, *RAILS))
    verdict = only(machine.check({CARD: 100.0, RAILS[0]: watts[0], RAILS[1]: watts[1]}, times=6), "rails_to_card")
    assert (verdict.ratio, verdict.is_implausible) == (pytest.approx(sum(watts) / 100), is_implausible)


def test_integrated_power_is_compared_with_the_energy_counter() -> None:
    machine = Machine(nvml=(GPU, GPU_POWER))
    verdict = only(machine.check({GPU: 300.0, GPU_POWER: 210.0}, times=6), "power_to_energy")
    assert (verdict.domain, verdict.ratio, verdict.is_implausible) == ("instant", pytest.approx(0.7), True)


def test_power_above_the_enforced_limit_is_implausible() -> None:
    machine = Machine(nvml=(GPU, GPU_POWER))
    verdict = only(machine.check({GPU: 480.0, GPU_POWER: 480.0}, times=6), "power_to_limit")
    assert (verdict.ratio, verdict.is_implausible) == (pytest.approx(1.2), True)


def test_devices_of_all_families_must_fit_into_the_node() -> None:
    machine = Machine(rapl=(PACKAGE, NODE), nvml=(GPU,), fpga=(CARD,))
    verdict = only(machine.check({PACKAGE: 200.0, GPU: 300.0, CARD: 60.0, NODE: 500.0}, times=6), "devices_to_node")
    assert (verdict.collector, verdict.device) == ("rapl", "platform")
    assert (verdict.ratio, verdict.is_implausible) == (pytest.approx(1.12), True)


def test_another_machines_node_is_not_compared_with_our_devices() -> None:
    machine = Machine(rapl=(PACKAGE,), ipmi=(replace(NODE, is_remote=True),))
    verdicts = machine.check({PACKAGE: 200.0, replace(NODE, is_remote=True): 100.0}, times=6)
    assert [verdict.check for verdict in verdicts if verdict.check != "stuck"] == []


def test_an_estimate_is_not_checked() -> None:
    machine = Machine(estimate=(PACKAGE,), hwmon=(NODE,))
    verdicts = machine.check({PACKAGE: 200.0, NODE: 100.0}, times=6)
    assert [verdict.check for verdict in verdicts if verdict.check != "stuck"] == []


METER = info("ACPI000D:00", "power1", scope="node", component="node", wrap_joules=None)
BOARD = info("board", "total", component="other", wrap_joules=None)


def stuck(verdicts: tuple[Verdict, ...]) -> dict[str, bool]:
    return {verdict.device: verdict.is_implausible for verdict in verdicts if verdict.check == "stuck"}


def test_a_node_that_does_not_change_with_its_devices_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(rapl=(PACKAGE,), hwmon=(METER,))
    for step in range(12):
        verdicts = machine.check({PACKAGE: 100.0 if step % 2 else 250.0, METER: 420.0})
    assert stuck(verdicts) == {"socket0": False, "ACPI000D:00": True}
    assert "ACPI000D:00 power1: its power has not changed for 60 s, while the load changed by 150 W" in caplog.text
    assert stuck(machine.check({PACKAGE: 100.0, METER: 430.0}))["ACPI000D:00"] is False


OTHER_PACKAGE = info("socket1", "package")


def checks_until_stuck(machine: Machine, sensor: SensorInfo, watts: dict[SensorInfo, float]) -> int:
    """Return the number of checks, ten seconds apart, until the sensor is stuck; 0: it is not after 100."""
    for count in range(1, 101):
        if stuck(machine.check(watts)).get(sensor.quantity.device):
            return count
    return 0


def test_a_counter_that_does_not_move_while_time_passes_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    """On a steady machine too. Three reads are the least, and two checks must agree."""
    machine = Machine(rapl=(PACKAGE, OTHER_PACKAGE))
    assert checks_until_stuck(machine, OTHER_PACKAGE, {PACKAGE: 100.0, OTHER_PACKAGE: 0.0}) == 4
    assert "rapl socket1 package: its energy counter has not moved for 30 s" in caplog.text
    assert stuck(machine.check({PACKAGE: 100.0, OTHER_PACKAGE: 1.0})) == {"socket0": False, "socket1": False}


@pytest.mark.parametrize(("refresh_s", "checks"), [(0.001, 4), (1.0, 4), (5.0, 12), (None, 12), (10.0, 22)])
def test_a_counter_is_stuck_after_20_refreshes(refresh_s: float | None, checks: int) -> None:
    """An unknown refresh is that of a slow BMC, except that of RAPL, which is 1 ms."""
    machine = Machine(hwmon=(PACKAGE,))
    machine.refresh_s = refresh_s
    assert checks_until_stuck(machine, PACKAGE, {PACKAGE: 0.0}) == checks
    machine = Machine(rapl=(PACKAGE,))
    machine.refresh_s = None
    checks = 4
    assert checks_until_stuck(machine, PACKAGE, {PACKAGE: 0.0}) == checks


def test_a_counter_with_coarse_steps_is_stuck_when_5_w_would_have_made_a_step() -> None:
    """Its refresh was measured under load; when the server is idle, a step of 3600 J takes minutes."""
    coarse = replace(NODE, resolution="3600 J", is_remote=True)
    machine = Machine(redfish=(coarse,))
    machine.refresh_s = 7.2
    assert checks_until_stuck(machine, coarse, {coarse: 0.0}) == 1 + 72 + 1


def test_values_that_were_not_read_again_are_not_stuck() -> None:
    """A scan may show a reading twice, as for a BMC that is slower than the scans."""
    machine = Machine(rapl=(PACKAGE,))
    machine.check({PACKAGE: 0.0}, times=2)
    machine.is_read = False
    assert checks_until_stuck(machine, PACKAGE, {PACKAGE: 0.0}) == 0


def test_the_counter_of_a_part_may_rest() -> None:
    """A graphics unit without work, a sleeping core."""
    machine = Machine(rapl=(PACKAGE, *CORES))
    assert stuck(machine.check({PACKAGE: 100.0, CORES[0]: 0.0, CORES[1]: 40.0}, times=30)) == {"socket0": False}


def test_the_power_of_another_machine_follows_no_load_of_this_one() -> None:
    remote = replace(METER, is_remote=True)
    machine = Machine(rapl=(PACKAGE,), ipmi=(remote,))
    for step in range(30):
        verdicts = machine.check({PACKAGE: 100.0 if step % 2 else 250.0, remote: 142.0})
    assert stuck(verdicts) == {"socket0": False}


@pytest.mark.parametrize(("peaks", "is_stuck"), [(2, False), (3, True)])
def test_a_meter_may_miss_short_peaks(peaks: int, is_stuck: bool) -> None:
    machine = Machine(rapl=(PACKAGE,), hwmon=(METER,))
    for step in range(30):
        verdicts = machine.check({PACKAGE: 250.0 if step in (8, 14, 20)[:peaks] else 100.0, METER: 142.0})
    assert stuck(verdicts)["ACPI000D:00"] is is_stuck


def test_a_device_that_cannot_be_read_is_no_change_of_the_load() -> None:
    machine = Machine(rapl=(PACKAGE,), nvml=(GPU,), hwmon=(METER,))
    watts = {PACKAGE: 100.0, GPU: 300.0, METER: 542.0}
    machine.check(watts, times=10)
    machine.gone.add(GPU.quantity)
    del watts[GPU]
    assert stuck(machine.check(watts, times=20))["ACPI000D:00"] is False


def test_a_slow_meter_has_time_to_follow() -> None:
    """It has shown the idle power for an hour, the load starts, and the meter is renewed once a minute."""
    machine = Machine(rapl=(PACKAGE,), hwmon=(METER,))
    machine.refresh_s = 60.0
    machine.check({PACKAGE: 100.0, METER: 142.0}, times=360)
    after_s = 10 * checks_until_stuck(machine, METER, {PACKAGE: 250.0, METER: 142.0})
    assert 120 < after_s <= 200


def test_a_frozen_meter_stays_frozen_while_the_load_stays_high() -> None:
    """The loads before the change are forgotten after some minutes, the change is not."""
    machine = Machine(rapl=(PACKAGE,), hwmon=(METER,))
    machine.check({PACKAGE: 100.0, METER: 142.0}, times=10)
    verdicts = machine.check({PACKAGE: 250.0, METER: 142.0}, times=200)
    assert stuck(verdicts)["ACPI000D:00"] is True


def test_a_load_that_changes_by_less_than_a_coarse_step_need_not_show() -> None:
    machine = Machine(rapl=(PACKAGE,), hwmon=(METER,))
    for step in range(40):
        verdicts = machine.check({PACKAGE: 20.0 + 9.0 * (step % 2), METER: 142.0})
    assert stuck(verdicts)["ACPI000D:00"] is False


def test_a_card_that_does_not_change_with_its_rails_is_stuck() -> None:
    card = replace(CARD, wrap_joules=None)
    rails = tuple(replace(rail, wrap_joules=None) for rail in RAILS)
    machine = Machine(rapl=(PACKAGE,), fpga=(card, *rails))
    for step in range(12):
        verdicts = machine.check({PACKAGE: 90.0 + step, card: 42.0, rails[0]: 30.0 + 12 * (step % 2), rails[1]: 5.0})
    assert stuck(verdicts)["0000:d8:00"] is True


def test_an_idle_device_is_not_stuck_because_others_work() -> None:
    """A configured card without work, or a board of the network, draws the same power for hours."""
    card = replace(CARD, wrap_joules=None)
    machine = Machine(rapl=(PACKAGE,), fpga=(card, *RAILS), hwmon=(BOARD,))
    for step in range(12):
        watts = {PACKAGE: 100.0 if step % 2 else 250.0, card: 26.73, RAILS[0]: 20.0, RAILS[1]: 6.73, BOARD: 12.0}
        verdicts = machine.check(watts)
    assert stuck(verdicts) == {"socket0": False, "0000:d8:00": False}


def test_an_idle_gpu_is_not_stuck_because_its_superchip_works() -> None:
    """The module contains a CPU, whose load the GPU need not follow."""
    names = ("total", "instant", "module")
    gpu, power, module = (
        replace(info("GPU-1", name, component="gpu", scope="device" if name == "total" else "part"), wrap_joules=None)
        for name in names
    )
    module = replace(module, relation="contains")
    machine = Machine(nvml=(gpu, power, module))
    for step in range(12):
        verdicts = machine.check({gpu: 90.0, power: 90.0, module: 500.0 if step % 2 else 200.0})
    assert stuck(verdicts) == {"GPU-1": False}


def test_a_value_that_does_not_change_on_a_steady_machine_is_not_stuck() -> None:
    machine = Machine(rapl=(PACKAGE,), hwmon=(METER,))
    verdicts = machine.check({PACKAGE: 100.0, METER: 142.0}, times=20)
    assert not any(verdict.is_implausible for verdict in verdicts)


def test_the_state_of_lost_quantities_is_dropped() -> None:
    machine = Machine(rapl=(PACKAGE, *CORES))
    machine.check({PACKAGE: 100.0, CORES[0]: 80.0, CORES[1]: 40.0}, times=6)
    machine.families = {}
    for _ in range(5):
        assert machine.check({}) == ()
    assert not machine.plausibility._unchanged
    assert not machine.plausibility._failures
