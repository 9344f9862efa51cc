"""Families and their threads: failures, deadlines, shared reads, hangs, lost devices, the estimate."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.config.config import FamilySettings
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorGlitchError,
)
from joulewatch_exporter.model import Collector, Finding, Host, Reading, Timing
from joulewatch_exporter.sampling import sampler as sampler_module
from joulewatch_exporter.sampling.family import BURST_TRIES, Family
from joulewatch_exporter.sampling.sampler import Sampler
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.threads import AbandonedError, Turn
from support.clock import NS_PER_S, FakeClock
from support.fake_family import FakeOptions, FakeSensor, Machine, energy_sensor, fake_family, info, power_sensor
from support.waiting import wait_until


def family_of(clock: FakeClock, *sensors: FakeSensor) -> Family:
    for sensor in sensors:
        sensor.now_ns = clock.monotonic_ns
    machine = Machine(list(sensors))
    return Family(fake_family("fake", machine).open(Host(), None), clock=clock)


def up(scan: FamilyScan) -> dict[str, bool]:
    return dict(zip(scan.layout.devices, scan.up, strict=True))


def states(scan: FamilyScan) -> dict[str, str]:
    return dict(zip(scan.layout.devices, scan.states, strict=True))


def energies(scan: FamilyScan) -> dict[str, float | None]:
    names = [item.quantity.device for item in scan.layout.infos]
    return dict(zip(names, scan.energies_joules, strict=True))


# -- one family, no threads ------------------------------------------------------------------------


def test_first_scan_has_energy_and_the_second_power() -> None:
    clock = FakeClock()
    sensor = energy_sensor(joules=500.0)
    family = family_of(clock, sensor)
    first = family.scan()
    assert (first.energies_joules, first.powers_watts) == ((0.0,), (None,))
    clock.advance(2.0)
    sensor.energies_joules = [700.0]
    second = family.scan()
    assert second.energies_joules == (200.0,)
    assert second.powers_watts[0] == pytest.approx(100.0)
    assert second.read_at_s[0] == pytest.approx(clock.unix_ns / 1e9)


def test_power_only_sensors_are_integrated() -> None:
    clock = FakeClock()
    sensor = power_sensor(watts=50.0)
    family = family_of(clock, sensor)
    family.scan()
    clock.advance(3.0)
    scan = family.scan()
    assert (scan.energies_joules, scan.powers_watts, scan.reads) == ((150.0,), (50.0,), ("power",))


def test_a_failing_device_is_down_and_the_others_are_read() -> None:
    clock = FakeClock()
    dead, alive = energy_sensor("socket0"), energy_sensor("socket1")
    family = family_of(clock, dead, alive)
    family.scan()
    dead.error = SensorGlitchError("/sys/x: Input/output error")
    clock.advance(1.0)
    scan = family.scan()
    assert up(scan) == {"socket0": False, "socket1": True}
    assert scan.energies_joules == (None, 0.0)
    assert scan.healths[0] is None
    assert scan.healths[1] is not None
    assert scan.read_at_s[0] is None
    assert scan.errors == (("socket0", "glitch", 1),)


def test_a_counter_continues_when_its_device_returns() -> None:
    """The hardware counter includes the energy of the time without reads, so nothing is lost."""
    clock = FakeClock()
    sensor = energy_sensor(joules=0.0)
    family = family_of(clock, sensor)
    family.scan()
    sensor.error = SensorAbsentError("/sys/x: No such device")
    clock.advance(5.0)
    family.scan()
    assert family.vanished
    sensor.error, sensor.energies_joules = None, [800.0]
    clock.advance(5.0)
    scan = family.scan()
    assert scan.energies_joules == (800.0,)
    assert scan.errors == (("socket0", "absent", 1),)
    assert not family.vanished


def test_one_line_per_change_of_state(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    sensor = energy_sensor()
    family = family_of(clock, sensor)
    caplog.set_level(logging.INFO)
    sensor.error = SensorDeniedError("/sys/energy_uj: Permission denied; run: chmod a+r /sys/energy_uj")
    for _ in range(5):
        family.scan()
    sensor.error = None
    for _ in range(5):
        family.scan()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "chmod a+r /sys/energy_uj" in lines[0]
    assert "read again" in lines[1]


def test_one_line_when_the_last_failing_sensor_of_a_device_can_be_read_again(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the reason of each failure: denied, asleep."""
    clock = FakeClock()
    channels = [power_sensor("chip", domain=f"channel{number}") for number in range(8)]
    other = power_sensor("other")
    family = family_of(clock, *channels, other)
    for channel in channels:
        channel.error = SensorDeniedError("/sys/power1_average: Permission denied")
    other.error = SensorGlitchError("/sys/power1_average: Input/output error")
    channels[0].error = SensorAsleepError("suspended")
    family.scan()
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        caplog.clear()
        family.scan()
        return [record.getMessage() for record in caplog.records]

    for channel in channels[:7]:
        channel.error = None
    assert lines() == []
    other.error = None
    assert lines() == ["fake other: can be read again"]
    channels[7].error = None
    assert lines() == ["fake chip: can be read again"]
    assert lines() == []
    for channel in channels:
        channel.error = SensorGlitchError("/sys/power1_average: Input/output error")
    family.scan()
    for channel in channels:
        channel.error = None
    assert lines() == ["fake chip: can be read again"]


def test_a_device_in_runtime_suspend_is_asleep_without_failing(caplog: pytest.LogCaptureFixture) -> None:
    """It has no values and no errors, is logged once, and is read again in each scan."""
    clock = FakeClock()
    gpu, alive = power_sensor("gpu"), power_sensor("board")
    memory = power_sensor("gpu", domain="hbm", scope="part")
    family = family_of(clock, gpu, alive, memory)
    caplog.set_level(logging.INFO)
    gpu.error = memory.error = SensorAsleepError("/sys/gpu/power/runtime_status: suspended")
    for _ in range(3):
        scan = family.scan()
        clock.advance(1.0)
    assert states(scan) == {"gpu": "asleep", "board": "ok"}
    assert up(scan) == {"gpu": False, "board": True}
    assert (scan.powers_watts, scan.energies_joules) == ((None, 50.0, None), (None, 100.0, None))
    assert scan.healths[0] is None
    assert (scan.errors, family.vanished, gpu.reads) == ((), False, 3)
    gpu.error = memory.error = None
    assert states(family.scan()) == {"gpu": "ok", "board": "ok"}
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "fake gpu: asleep: /sys/gpu/power/runtime_status: suspended"),
        ("INFO", "fake gpu: can be read again"),
    ]


def test_the_energy_of_the_time_asleep_is_unmeasured() -> None:
    """A sleeping device uses some power, but nobody knows how much."""
    clock = FakeClock()
    gpu = power_sensor("gpu", watts=50.0)
    family = family_of(clock, gpu)
    family.scan()
    gpu.error = SensorAsleepError("suspended")
    clock.advance(3600.0)
    family.scan()
    gpu.error = None
    scan = family.scan()
    health = scan.healths[0]
    assert scan.energies_joules == (0.0,)
    assert health is not None
    assert health.unmeasured_s == 3600.0


def test_a_failure_of_a_device_matters_more_than_its_sleep() -> None:
    clock = FakeClock()
    first, second = power_sensor("gpu", domain="total"), power_sensor("gpu", domain="hbm", scope="part")
    family = family_of(clock, first, second)
    for error, other in (
        (SensorAsleepError(""), SensorGlitchError("")),
        (SensorGlitchError(""), SensorAsleepError("")),
    ):
        first.error, second.error = error, other
        assert states(family.scan()) == {"gpu": "glitch"}


def test_devices_without_a_sensor_have_the_state_of_their_finding() -> None:
    findings = [
        Finding(status=status, collector="fake", subject=device, text="", device=device)  # type: ignore[arg-type]
        for device, status in {"a": "denied", "b": "absent", "c": "broken", "d": "skipped", "gpu": "denied"}.items()
    ]
    machine = Machine(
        [power_sensor("gpu")],
        findings=[*findings, Finding(status="denied", collector="fake", subject="/sys/x", text="")],
    )
    family = Family(fake_family("fake", machine).open(Host(), None), clock=FakeClock())
    assert states(family.scan()) == {"gpu": "ok", "a": "denied", "b": "absent", "c": "error"}
    assert states(family.down()) == dict.fromkeys(("gpu", "a", "b", "c"), "timeout")


def test_a_bug_in_a_collector_is_an_error_of_its_device_only(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    broken, alive = energy_sensor("socket0"), energy_sensor("socket1")
    family = family_of(clock, broken, alive)
    broken.error = ZeroDivisionError("division by zero")
    scan = family.scan()
    assert up(scan) == {"socket0": False, "socket1": True}
    assert scan.errors == (("socket0", "error", 1),)
    assert "division by zero" in caplog.text


def test_a_suspect_shows_the_last_good_total_with_its_own_timestamp() -> None:
    clock = FakeClock()
    sensor = energy_sensor(joules=1000.0)
    family = family_of(clock, sensor)
    family.scan()
    clock.advance(1.0)
    sensor.energies_joules = [1100.0]
    good = family.scan()
    clock.advance(1.0)
    sensor.energies_joules = [40000.0]
    suspect = family.scan()
    assert suspect.energies_joules == (100.0,)
    assert suspect.read_at_s == good.read_at_s
    assert suspect.powers_watts == (None,)
    assert suspect.healths[0] is not None
    assert suspect.healths[0].rejected == 1


def test_a_suspect_next_to_a_good_reading_of_its_device_is_excluded() -> None:
    """A device has one timestamp, so an old total would be placed at the wrong time."""
    clock = FakeClock()
    both = FakeSensor((info("socket0"), info("socket0", "dram", component="memory")), energies_joules=[10.0, 20.0])
    family = family_of(clock, both)
    family.scan()
    clock.advance(1.0)
    both.energies_joules = [50000.0, 30.0]
    scan = family.scan()
    assert scan.energies_joules == (None, 10.0)
    assert scan.read_at_s[0] == pytest.approx(clock.unix_ns / 1e9)


def test_wall_clock_steps_move_the_timestamp_and_nothing_else() -> None:
    clock = FakeClock()
    sensor = energy_sensor(joules=0.0)
    family = family_of(clock, sensor)
    family.scan()
    clock.advance(1.0)
    clock.step_wall_clock(-3600.0)
    sensor.energies_joules = [100.0]
    scan = family.scan()
    assert scan.powers_watts[0] == pytest.approx(100.0)
    assert scan.read_at_s[0] == pytest.approx(clock.unix_ns / 1e9)


def test_each_device_has_the_time_of_its_own_read_not_of_the_scan() -> None:
    """A scan takes as long as all its reads together; a timestamp from its start or its end would be off by that."""
    clock = FakeClock()
    read_at_s: list[float] = []

    def take_a_while() -> int:
        clock.advance(0.3)
        read_at_s.append(clock.time_ns() / NS_PER_S)
        now_ns = clock.monotonic_ns()
        clock.advance(0.2)
        return now_ns

    family = family_of(clock, energy_sensor("socket0"), energy_sensor("socket1"), power_sensor("board"))
    for entry in family.collector.sensors:
        entry.now_ns = take_a_while  # type: ignore[attr-defined]
    scan = family.scan()
    assert scan.read_at_s == pytest.approx(read_at_s, abs=1e-6)
    assert scan.duration_s == pytest.approx(1.5)


def test_an_interruption_between_the_two_clocks_does_not_move_the_timestamps() -> None:
    class Interrupted(FakeClock):
        """The first read of the wall clock after a scan's reads takes 4 ms."""

        pauses = 0

        def time_ns(self) -> int:
            now_ns = super().time_ns()
            if self.pauses:
                self.pauses -= 1
                self.advance(0.004)
            return now_ns

    clock = Interrupted()
    family = family_of(clock, energy_sensor())
    read_at_s = clock.time_ns() / NS_PER_S
    clock.pauses = 1
    assert family.scan().read_at_s[0] == pytest.approx(read_at_s, abs=1e-6)


def test_a_quantity_offered_twice_is_published_once() -> None:
    family = family_of(FakeClock(), energy_sensor(joules=1.0), energy_sensor(joules=2.0))
    assert len(family.scan().layout.infos) == 1


def test_unchanged_health_keeps_its_identity() -> None:
    """The renderer caches blocks of text by the identity of the health objects."""
    clock = FakeClock()
    family = family_of(clock, energy_sensor())
    first = family.scan()
    clock.advance(1.0)
    assert family.scan().healths is first.healths


def test_devices_lost_when_reopened_are_shown_as_down_and_new_ones_appear() -> None:
    clock = FakeClock()
    old, new = energy_sensor("socket0", joules=100.0), energy_sensor("socket1", joules=5.0)
    family = family_of(clock, old)
    family.scan()
    new.now_ns = clock.monotonic_ns
    replaced = family.collector
    family.replace(fake_family("fake", Machine([new])).open(Host(), None))
    scan = family.scan()
    assert up(scan) == {"socket1": True, "socket0": False}
    assert family.vanished
    clock.advance(1.0)
    old.energies_joules = [150.0]
    family.replace(fake_family("fake", Machine([old, new])).open(Host(), None))
    scan = family.scan()
    assert energies(scan) == {"socket0": 50.0, "socket1": 0.0}
    assert replaced is not family.collector


def test_a_burst_finds_the_refresh_period_of_fast_counters() -> None:
    """A refresh period of one millisecond is found in much less than 50 ms of reads."""
    clock = FakeClock()

    class Fast(FakeSensor):
        def read(self):  # type: ignore[no-untyped-def]
            clock.now_ns += 20_000
            self.energies_joules = [clock.now_ns // 1_000_000 * 0.1]
            return super().read()

    sensor = Fast((info(),))
    family = family_of(clock, sensor)
    family.scan()
    started_ns = clock.now_ns
    family.burst(Turn(), lambda: False)
    assert clock.now_ns - started_ns < 10_000_000
    clock.advance(1.0)
    health = family.scan().healths[0]
    assert health is not None
    assert health.refresh_s == pytest.approx(0.001, abs=1e-4)
    reads = sensor.reads
    family.burst(Turn(), lambda: False)
    assert sensor.reads == reads, "the period is known now"


def test_a_burst_of_constant_values_ends_after_20_ms_and_at_once_for_a_scrape() -> None:
    clock = FakeClock()

    class Slow(FakeSensor):
        def read(self):  # type: ignore[no-untyped-def]
            clock.now_ns += 100_000
            return super().read()

    sensor = Slow((info(),), energies_joules=[1.0])
    family = family_of(clock, sensor)
    family.scan()
    family.burst(Turn(), lambda: True)
    assert sensor.reads == 1
    started_ns = clock.now_ns
    family.burst(Turn(), lambda: False)
    assert 20_000_000 <= clock.now_ns - started_ns < 21_000_000
    reads = sensor.reads
    family.burst(Turn(), lambda: False)
    assert sensor.reads == reads, "a sensor is read in one burst only"


def test_a_burst_ends_after_50_ms_however_many_sensors_there_are() -> None:
    clock = FakeClock()

    class Changing(FakeSensor):
        def read(self):  # type: ignore[no-untyped-def]
            clock.now_ns += 10_000
            self.energies_joules = [clock.now_ns // 15_000_000 * 0.1]
            return super().read()

    family = family_of(clock, *(Changing((info(f"socket{i}"),)) for i in range(40)))
    family.scan()
    started_ns = clock.now_ns
    family.burst(Turn(), lambda: False)
    assert clock.now_ns - started_ns < 51_000_000
    assert family.wants_burst
    while family.wants_burst:
        family.burst(Turn(), lambda: False)


def test_power_sensors_are_not_read_in_a_burst() -> None:
    sensor = power_sensor()
    family = family_of(FakeClock(), sensor)
    family.scan()
    family.burst(Turn(), lambda: False)
    assert sensor.reads == 1


def test_an_estimate_has_no_refresh_period() -> None:
    """An estimate computed from the clock changes at every read."""
    clock = FakeClock()
    sensor = energy_sensor(method="estimated")
    family = family_of(clock, sensor)
    for joules in range(6):
        clock.advance(1.0)
        sensor.energies_joules = [float(joules)]
        scan = family.scan()
    assert scan.healths[0] is not None
    assert scan.healths[0].refresh_s is None


# -- the sampler and its threads -------------------------------------------------------------------

Start = Callable[..., Sampler]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts samplers on an empty host and ends them."""
    samplers: list[Sampler] = []

    def begin(
        *families: type[Collector], settings: dict[str, FamilySettings] | None = None, hang_s: float = 5.0
    ) -> Sampler:
        host = Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path)
        sampler = Sampler(families, host, settings, rediscover_s=0.0, hang_s=hang_s)
        samplers.append(sampler)
        sampler.start()
        return sampler

    yield begin
    for sampler in samplers:
        sampler.stop()


def test_a_scrape_is_served_by_a_read_that_started_after_it(start: Start) -> None:
    sensor = energy_sensor()
    sampler = start(fake_family("rapl", Machine([sensor])))
    for _ in range(3):
        asked = time.time()
        (scan,) = sampler.fresh(2.0)
        assert scan.read_at_s[0] is not None
        assert scan.read_at_s[0] >= asked - 0.0005  # the two clocks are mapped to well within this


def test_the_log_has_the_number_of_sensors_of_each_family(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    start(
        fake_family("one", Machine([energy_sensor("socket0")])),
        fake_family("two", Machine([energy_sensor("socket1"), energy_sensor("socket2")])),
    )
    lines = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert {"one: 1 sensor", "two: 2 sensors"} <= set(lines)


def test_concurrent_scrapes_share_reads(start: Start) -> None:
    """Requests that arrive during a read share the next one."""
    sensor = energy_sensor(method="estimated")
    sampler = start(fake_family("rapl", Machine([sensor])))
    sampler.fresh(2.0)
    sensor.hang = threading.Event()
    before = sensor.reads
    first = threading.Thread(target=sampler.fresh, args=(5.0,))
    first.start()
    wait_until(lambda: sensor.reads == before + 1)
    others = [threading.Thread(target=sampler.fresh, args=(5.0,)) for _ in range(8)]
    for thread in others:
        thread.start()
    waiting = threading.Event()
    waiting.wait(0.1)  # until all have asked
    sensor.hang.set()
    for thread in [first, *others]:
        thread.join(5.0)
    assert sensor.reads == before + 2


def test_a_hung_family_is_down_and_delays_no_other(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    hung = energy_sensor("socket0")
    sampler = start(fake_family("rapl", Machine([hung])), fake_family("hwmon", Machine([power_sensor()])))
    sampler.fresh(2.0)
    hung.hang = release
    try:
        began = time.monotonic()
        impatient, _ = sampler.fresh(0.05, is_impatient=True)
        assert (up(impatient), impatient.errors) == ({"socket0": False}, ())
        rapl, hwmon = sampler.fresh(0.05)
        assert up(rapl) == {"socket0": False}
        assert rapl.energies_joules == (None,)
        assert rapl.duration_s is None
        assert rapl.errors == (("socket0", "timeout", 1),)
        assert up(hwmon) == {"board": True}
        again, _ = sampler.fresh(0.05)
        assert again.errors == (("socket0", "timeout", 1),), "one read hangs, so one error"
        assert time.monotonic() - began < 2.0
        assert caplog.text.count("no answer within") == 1
    finally:
        hung.hang = None
        release.set()
    wait_until(lambda: up(sampler.fresh(2.0)[0]) == {"socket0": True})


def test_slow_families_show_their_last_scan(start: Start) -> None:
    """Reads of a BMC are too slow for a scrape; its values have the time at which they were read."""
    machine = Machine([power_sensor()], timing=Timing(poll_s=30.0, read_on_scrape=False))
    sampler = start(fake_family("ipmi", machine))
    (first,) = sampler.fresh(2.0)
    (second,) = sampler.fresh(2.0)
    assert second is first
    assert machine.sensors[0].reads == 1


def test_background_reads_continue_without_scrapes(start: Start) -> None:
    sensor = energy_sensor(method="estimated")
    start(fake_family("rapl", Machine([sensor], timing=Timing(poll_s=0.01, read_on_scrape=True))))
    wait_until(lambda: sensor.reads >= 4)


def test_a_scrape_postpones_the_background_read(start: Start) -> None:
    sensor = energy_sensor(method="estimated")
    sampler = start(fake_family("rapl", Machine([sensor], timing=Timing(poll_s=0.3, read_on_scrape=True))))
    sampler.fresh(2.0)
    end = time.monotonic() + 0.6
    scrapes = 0
    while time.monotonic() < end:
        sampler.fresh(2.0)
        scrapes += 1
        threading.Event().wait(0.01)
    assert sensor.reads <= scrapes + 2


def test_absent_families_are_skipped_unless_enabled_explicitly(start: Start) -> None:
    nothing = fake_family("hwmon", Machine())
    sampler = start(fake_family("rapl", Machine([energy_sensor()])), nothing)
    assert sampler.families == ("rapl",)
    with pytest.raises(ConfigError, match="collector hwmon is enabled but absent"):
        start(nothing, settings={"hwmon": FamilySettings(enabled=True)})


def test_a_disabled_family_is_not_opened(start: Start) -> None:
    machine = Machine([energy_sensor()])
    start(fake_family("rapl", machine), settings={"rapl": FamilySettings(enabled=False)})
    assert machine.opened == 0


def test_options_reach_the_family(start: Start) -> None:
    machine = Machine([energy_sensor()])
    options = FakeOptions(level=7)
    start(fake_family("rapl", machine), settings={"rapl": FamilySettings(options=options)})
    assert machine.options == [options]


def test_only_the_families_asked_for_are_read(start: Start) -> None:
    sampler = start(fake_family("rapl", Machine([energy_sensor()])), fake_family("hwmon", Machine([power_sensor()])))
    assert [scan.collector for scan in sampler.fresh(2.0, {"hwmon"})] == ["hwmon"]


def test_a_family_appears_when_its_hardware_does(start: Start) -> None:
    machine = Machine()
    sampler = start(fake_family("rapl", machine))
    assert sampler.fresh(2.0) == ()
    machine.sensors.append(energy_sensor())
    sampler.rediscover()
    (scan,) = sampler.fresh(2.0)
    assert up(scan) == {"socket0": True}


def test_a_lost_device_is_probed_again_and_its_total_is_kept(start: Start) -> None:
    machine = Machine([energy_sensor(joules=100.0)])
    sampler = start(fake_family("rapl", machine))
    sampler.fresh(2.0)
    machine.sensors[0].error = SensorAbsentError("gone")
    sampler.fresh(2.0)
    machine.sensors[0] = energy_sensor(joules=130.0)
    sampler.rediscover()
    (scan,) = sampler.fresh(2.0)
    assert scan.energies_joules == (30.0,)
    assert machine.closed == 1, "the collector that lost its device is closed"


def test_the_primary_node_sensor_stays_while_it_is_down(start: Start) -> None:
    """Also when its family is opened again without it: the scans show another meter, but not as primary."""
    acpi = power_sensor("acpi", scope="node", component="node")
    hwmon = Machine([acpi, power_sensor("board")])
    ipmi = Machine([power_sensor("bmc", scope="node", component="node")])
    sampler = start(fake_family("hwmon", hwmon), fake_family("ipmi", ipmi))
    primary = sampler.primary
    assert [(collector, quantity.device) for collector, quantity in primary] == [("hwmon", "acpi")]
    acpi.error = SensorAbsentError("gone")
    sampler.fresh(2.0)
    assert sampler.primary is primary
    hwmon.sensors.remove(acpi)
    sampler.rediscover()
    assert up(sampler.fresh(2.0)[0]) == {"board": True, "acpi": False}
    assert sampler.primary is primary, "so that the exposition need not be rendered again"


def test_a_denied_device_is_probed_again(start: Start) -> None:
    """Permissions can be fixed while the exporter runs."""
    machine = Machine(
        [energy_sensor("socket0")],
        findings=[
            Finding(
                status="denied", collector="rapl", subject="/sys/b", text="Permission denied", cure="chmod a+r /sys/b"
            )
        ],
    )
    sampler = start(fake_family("rapl", machine))
    machine.sensors.append(energy_sensor("socket1"))
    machine.findings.clear()
    sampler.rediscover()
    assert up(sampler.fresh(2.0)[0]) == {"socket0": True, "socket1": True}
    sampler.rediscover()
    assert machine.opened == 2, "nothing is missing, so nothing is probed"


def test_the_devices_of_a_family_that_is_denied_have_a_state(start: Start) -> None:
    machine = Machine(
        error=SensorDeniedError("/sys/a: Permission denied", devices=["socket0", "", "socket1", "socket0"])
    )
    sampler = start(fake_family("rapl", machine), fake_family("hwmon", Machine([power_sensor()])))
    rapl, hwmon = sampler.fresh(2.0)
    assert (rapl.collector, states(rapl)) == ("rapl", {"socket0": "denied", "socket1": "denied"})
    assert up(hwmon) == {"board": True}
    assert sampler.fresh(2.0)[0] is rapl, "the renderer keeps its text"
    assert [scan.collector for scan in sampler.fresh(2.0, {"hwmon"})] == ["hwmon"]
    machine.error, machine.sensors = None, [energy_sensor("socket0"), energy_sensor("socket1")]
    sampler.rediscover()
    assert states(sampler.fresh(2.0)[0]) == {"socket0": "ok", "socket1": "ok"}


def test_a_device_that_wakes_is_read_at_the_next_scrape_and_its_family_is_not_reopened(start: Start) -> None:
    """Also if it was asleep at the start."""
    gpu = power_sensor("gpu", watts=30.0)
    gpu.error = SensorAsleepError("suspended")
    machine = Machine([gpu])
    sampler = start(fake_family("hwmon", machine))
    assert states(sampler.fresh(2.0)[0]) == {"gpu": "asleep"}
    sampler.rediscover()
    gpu.error = None
    (scan,) = sampler.fresh(2.0)
    assert (states(scan), scan.powers_watts, machine.opened) == ({"gpu": "ok"}, (30.0,), 1)


def test_a_device_that_wakes_is_read_without_a_scrape(start: Start) -> None:
    gpu = power_sensor("gpu")
    gpu.error = SensorAsleepError("suspended")
    sampler = start(fake_family("hwmon", Machine([gpu], timing=Timing(poll_s=0.01, read_on_scrape=True))))
    sampler.fresh(2.0)
    gpu.error = None
    thread = sampler._threads["hwmon"]
    wait_until(lambda: thread.latest is not None and states(thread.latest) == {"gpu": "ok"})


def test_a_healthy_family_is_not_reopened(start: Start) -> None:
    machine = Machine([energy_sensor()])
    sampler = start(fake_family("rapl", machine))
    sampler.fresh(2.0)
    sampler.rediscover()
    assert machine.opened == 1


def estimate_family() -> type[Collector]:
    return fake_family("estimate", Machine([energy_sensor(method="estimated", wrap_joules=None)]))


def test_the_estimate_is_used_only_if_no_cpu_is_measured(start: Start) -> None:
    measured = fake_family("rapl", Machine([energy_sensor()]))
    board = fake_family("hwmon", Machine([power_sensor()]))
    assert start(measured, estimate_family()).families == ("rapl",)
    assert start(board, estimate_family()).families == ("hwmon", "estimate")
    asked_for = {"estimate": FamilySettings(enabled=True)}
    assert start(measured, estimate_family(), settings=asked_for).families == ("rapl", "estimate")
    refused = {"estimate": FamilySettings(enabled=False)}
    assert start(board, estimate_family(), settings=refused).families == ("hwmon",)


def test_the_estimate_ends_when_a_cpu_sensor_appears(start: Start) -> None:
    machine = Machine()
    sampler = start(fake_family("rapl", machine), estimate_family())
    assert sampler.families == ("estimate",)
    machine.sensors.append(energy_sensor())
    sampler.rediscover()
    assert sampler.families == ("rapl",)


def test_stopping_closes_the_collectors_and_leaves_a_hung_one_behind(start: Start) -> None:
    hung, fine = Machine([energy_sensor()]), Machine([power_sensor()])
    sampler = start(fake_family("rapl", hung), fake_family("hwmon", fine))
    sampler.fresh(2.0)
    release = hung.sensors[0].hang = threading.Event()
    sampler.fresh(0.02)
    began = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began < 1.0
    assert fine.closed == 1
    release.set()
    wait_until(lambda: hung.closed == 1)


def test_a_family_that_cannot_be_opened_is_logged_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    sampler = start(fake_family("rapl", Machine(error=RuntimeError("no luck"))))
    sampler.rediscover()
    assert caplog.text.count("opening failed") == 1


def test_a_period_longer_than_the_counters_need_is_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start(fake_family("rapl", Machine([energy_sensor()])), settings={"rapl": FamilySettings(poll_s=60.0)})
    assert "longer than the 10 s" in caplog.text


# -- devices that hang, devices read in the background, sources that two families know ---------------


def check_quarantine_and_return(
    sampler: Sampler, sick: FakeSensor, healthy: FakeSensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Check a socket0 that hangs and a healthy socket1 that started at 10 J."""
    assert sick.hang is not None
    healthy.energies_joules = [14.0]
    for _ in range(2):
        (scan,) = sampler.fresh(5.0)
        assert up(scan) == {"socket0": False, "socket1": True}
        assert energies(scan) == {"socket0": None, "socket1": 4.0}
        assert scan.errors == (("socket0", "timeout", 1),)
    assert "socket0: timeout: its read hangs" in caplog.text
    sick.hang.set()
    sick.hang = None
    sick.energies_joules = [105.0]
    wait_until(lambda: up(sampler.fresh(1.0)[0]) == {"socket0": True, "socket1": True})
    assert energies(sampler.fresh(1.0)[0])["socket0"] == 5.0


def test_a_hung_device_is_quarantined_and_the_others_are_read(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Even in the first scrape after the hang; when the read returns, the device is read again."""
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1", joules=10.0)
    machine = Machine([sick, healthy], timing=Timing(poll_s=0.05, read_on_scrape=True))
    sampler = start(fake_family("fake", machine), hang_s=0.5)
    sampler.fresh(5.0)
    sick.hang = threading.Event()
    check_quarantine_and_return(sampler, sick, healthy, caplog)


def test_an_impatient_scrape_shows_only_the_device_that_hangs_as_down(start: Start) -> None:
    """With a time-out of 1 s, Prometheus does not wait for the quarantine of a device."""
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    machine = Machine([sick, healthy], timing=Timing(poll_s=60.0, read_on_scrape=True))
    sampler = start(fake_family("fake", machine), hang_s=100.0)
    sampler.fresh(5.0)
    sick.hang, sick.hangs_after = threading.Event(), 0
    (scan,) = sampler.fresh(0.05, is_impatient=True)
    assert up(scan) == {"socket0": False, "socket1": True}
    assert energies(scan) == {"socket0": None, "socket1": None}
    assert scan.errors == ()
    sick.hang.set()


# -- the thread of a scrape reads quick families itself --


@pytest.fixture
def no_relief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is relieved, however busy the machine is."""
    monkeypatch.setattr(sampler_module, "RELIEF_S", 60.0)


def never() -> None:
    raise AssertionError("this thread does not hang")


def quick(sampler: Sampler, *names: str) -> Sampler:
    """Scrape until all families, or these, are known to be quick."""
    threads = [sampler._threads[name] for name in names or sampler.families]
    for thread in threads:
        for entry in thread.family._entries:
            entry.end_burst()  # on a busy machine, bursts are repeated after the next scans
    wait_until(lambda: sampler.fresh(5.0) and all(thread.is_quick for thread in threads))
    return sampler


def test_the_thread_of_a_scrape_reads_quick_families_and_no_others(start: Start, no_relief: None) -> None:
    fast, slow, cached = energy_sensor("socket0"), power_sensor("i2c"), power_sensor("bmc")
    slow.delay_s = 0.02
    sampler = start(
        fake_family("rapl", Machine([fast])),
        fake_family("hwmon", Machine([slow])),
        fake_family("ipmi", Machine([cached], timing=Timing(poll_s=30.0, read_on_scrape=False))),
    )
    quick(sampler, "rapl")
    fast.energies_joules = [103.0]
    asked = time.time()
    rapl, hwmon, ipmi = sampler.fresh(5.0, take_over=never)
    assert (fast.reader, slow.reader != fast.reader) == (threading.get_ident(), True)
    assert (energies(rapl), up(hwmon), up(ipmi)) == ({"socket0": 3.0}, {"i2c": True}, {"bmc": True})
    assert rapl.read_at_s[0] is not None
    assert rapl.read_at_s[0] >= asked - 0.0005
    reads = fast.reads
    sampler.fresh(5.0)
    assert fast.reads == reads + 1
    assert fast.reader != threading.get_ident(), "nobody can take over"
    sampler.fresh(0.4, take_over=never)
    assert fast.reader != threading.get_ident(), "there would be no time to take over"


def test_a_read_for_a_scrape_replaces_the_next_one_of_the_schedule(start: Start, no_relief: None) -> None:
    sensor = energy_sensor()
    sampler = quick(start(fake_family("rapl", Machine([sensor], timing=Timing(poll_s=0.5, read_on_scrape=True)))))
    asked_s = time.monotonic()
    sampler.fresh(5.0, take_over=never)
    reads, missed = sensor.reads, 0
    for _ in range(20):
        time.sleep(0.05)
        previous_s, asked_s = asked_s, time.monotonic()
        sampler.fresh(5.0, take_over=never)
        missed += int((time.monotonic() - previous_s) / 0.5)  # on a busy machine, a pause may exceed the period
    assert reads + 20 <= sensor.reads <= reads + 20 + missed
    assert sensor.reader == threading.get_ident()
    due_ns = sampler._threads["rapl"]._worker.due_ns
    assert due_ns - asked_s * NS_PER_S >= 1.1 * 0.5 * NS_PER_S, (
        "one scrape per period may be late without a second read"
    )
    wait_until(lambda: sensor.reader != threading.get_ident())


def test_a_scrape_whose_thread_hangs_is_answered_by_another(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """And it reads the other devices; when the read returns, the first thread ends, and the device is read again."""
    sick, healthy, other = energy_sensor("socket0"), energy_sensor("socket1", joules=10.0), power_sensor()
    sampler = quick(
        start(
            fake_family("rapl", Machine([sick, healthy])),
            fake_family("hwmon", Machine([other])),
            hang_s=0.5,
        )
    )
    scans: list[tuple[FamilyScan, ...]] = []
    ends: list[str] = []

    def answer() -> None:
        scans.append(sampler.fresh(5.0))

    def scrape() -> None:
        try:
            sampler.fresh(5.0, take_over=threading.Thread(target=answer).start)
        except AbandonedError:
            ends.append("abandoned")

    sick.hang, sick.hangs_after = threading.Event(), 0
    first = threading.Thread(target=scrape)
    first.start()
    wait_until(lambda: bool(scans))
    rapl, hwmon = scans[0]
    assert up(rapl) == {"socket0": False, "socket1": True}
    assert up(hwmon) == {"board": True}
    assert ends == []
    reads = sick.reads
    again, _ = sampler.fresh(5.0, take_over=never)
    assert (up(again), sick.reads) == ({"socket0": False, "socket1": True}, reads)
    assert caplog.text.count("its read hangs") == 1
    sick.hang.set()
    sick.hang = None
    first.join(10.0)
    assert ends == ["abandoned"]
    wait_until(lambda: all(up(sampler.fresh(1.0, take_over=never)[0]).values()))
    assert sampler._reading_here == {}


def test_a_scrape_whose_read_was_abandoned_before_another_took_over_is_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when all threads stop for a second between the two checks; otherwise nobody would answer."""
    monkeypatch.setattr("joulewatch_exporter.sampling.sampler.RELIEF_S", 100.0)
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    sampler = quick(start(fake_family("rapl", Machine([sick, healthy])), hang_s=0.2))
    sick.hang, sick.hangs_after = threading.Event(), 0
    family = sampler._threads["rapl"]
    release = threading.Thread(target=lambda: (wait_until(lambda: family._worker.hung), sick.hang.set()))
    release.start()
    (scan,) = sampler.fresh(5.0, take_over=never)
    assert up(scan)["socket1"]
    assert sampler._reading_here == {}
    release.join(10.0)


def test_a_scan_that_ends_late_is_used_but_not_by_its_own_scrape(start: Start) -> None:
    """Nothing hung for long enough to be quarantined."""
    sensor = energy_sensor()
    sampler = quick(start(fake_family("rapl", Machine([sensor])), hang_s=100.0))
    taken = threading.Event()
    sensor.hang, sensor.hangs_after = threading.Event(), 0
    ends: list[type[BaseException]] = []

    def scrape() -> None:
        try:
            sampler.fresh(5.0, take_over=taken.set)
        except AbandonedError as error:
            ends.append(type(error))

    first = threading.Thread(target=scrape)
    first.start()
    assert taken.wait(10.0)
    sensor.energies_joules = [101.0]
    sensor.hang.set()
    first.join(10.0)
    assert ends == [AbandonedError]
    (scan,) = sampler.latest()
    assert (up(scan), energies(scan)) == ({"socket0": True}, {"socket0": 1.0})


def test_a_family_that_another_scrape_is_reading_is_waited_for(start: Start) -> None:
    sensor = energy_sensor()
    sampler = quick(start(fake_family("rapl", Machine([sensor])), hang_s=100.0))
    sensor.hang, sensor.hangs_after = threading.Event(), 0
    reads = sensor.reads

    def scrape() -> None:
        with suppress(AbandonedError):
            sampler.fresh(5.0, take_over=lambda: None)

    first = threading.Thread(target=scrape)
    first.start()
    wait_until(lambda: sensor.reads == reads + 1)
    (scan,) = sampler.fresh(0.6, take_over=never)
    assert up(scan) == {"socket0": False}
    sensor.hang.set()
    wait_until(lambda: up(sampler.fresh(1.0)[0]) == {"socket0": True})
    first.join(10.0)


def test_a_family_is_stuck_if_its_scans_have_stopped(start: Start) -> None:
    """The watchdog of systemd then ends the exporter. Here the quarantine would come too late to help."""
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    timing = Timing(poll_s=0.05, read_on_scrape=True)
    sampler = start(
        fake_family("sick", Machine([sick], timing=timing)),
        fake_family("healthy", Machine([healthy], timing=timing)),
        hang_s=100.0,
    )
    sampler.fresh(5.0)
    assert sampler.stuck(time.monotonic_ns()) == ()
    assert set(sampler.stuck(time.monotonic_ns() + 11 * NS_PER_S)) == {"sick", "healthy"}
    sick.hang, sick.hangs_after = threading.Event(), 0
    reads = sick.reads
    wait_until(lambda: sick.reads > reads)
    began_ns, limit_ns = time.monotonic_ns(), round(10.1 * NS_PER_S)
    wait_until(lambda: sampler.stuck(began_ns + limit_ns) == ("sick",))
    sick.hang.set()
    wait_until(lambda: sampler.stuck(began_ns + limit_ns) == ())


def test_a_device_that_hangs_in_a_burst_is_quarantined(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A burst is not part of a scan; a scrape meanwhile gets the other devices."""
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1", joules=10.0)
    sick.hang, sick.hangs_after = threading.Event(), 1
    sampler = start(fake_family("fake", Machine([sick, healthy])), hang_s=0.5)
    wait_until(lambda: sick.reads == 2)
    check_quarantine_and_return(sampler, sick, healthy, caplog)


def test_a_hung_device_costs_one_thread_however_long(start: Start) -> None:
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    sick.hang = threading.Event()
    machine = Machine([sick, healthy], timing=Timing(poll_s=0.01, read_on_scrape=True))
    sampler = start(fake_family("fake", machine), hang_s=0.05)
    wait_until(lambda: up(sampler.fresh(0.2)[0]) == {"socket0": False, "socket1": True})
    threads = threading.active_count()
    reads = sick.reads
    wait_until(lambda: healthy.reads > 20)
    time.sleep(0.6)  # two periods of the watcher
    assert (threading.active_count(), sick.reads) == (threads, reads)
    sick.hang.set()


def test_a_family_that_hangs_while_it_is_opened_delays_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("joulewatch_exporter.sampling.sampler.OPEN_TIMEOUT_S", 0.1)
    hung = threading.Event()

    machine = Machine([energy_sensor()])
    family = fake_family("slow", machine)
    original = family.open

    def slow_open(host: Host, options: object) -> Collector:
        hung.wait(10.0)
        return original(host, options)

    monkeypatch.setattr(family, "open", slow_open)
    sampler = Sampler([family, fake_family("quick", Machine([energy_sensor("socket1")]))], Host(), rediscover_s=0.0)
    sampler.start()
    try:
        assert sampler.families == ("quick",)
        assert "slow" in caplog.text and "no answer within" in caplog.text
        hung.set()
        wait_until(lambda: machine.closed == 1)  # it is too late, and is closed
    finally:
        sampler.stop()


def test_readings_gathered_in_the_background_are_all_integrated_and_the_newest_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    sensor = power_sensor()
    quantity = sensor.infos[0].quantity
    sensor.now_ns = clock.monotonic_ns
    machine = Machine([sensor])
    family = Family(fake_family("fake", machine).open(Host(), None), clock=clock)
    gathered: list[Reading]
    start_ns = clock.monotonic_ns()
    gathered = [
        Reading(quantity=quantity, read_at_ns=start_ns + second * NS_PER_S, energy_joules=None, power_watts=watts)
        for second, watts in enumerate((10, 30, 50))
    ]
    monkeypatch.setattr(FakeSensor, "read", lambda _: gathered)
    clock.advance(2.5)
    scan = family.scan()
    assert scan.energies_joules == (20.0 + 40.0,)
    assert scan.powers_watts == (50.0,)
    (read_at_s,) = scan.read_at_s
    assert read_at_s == pytest.approx(clock.time_ns() / NS_PER_S - 0.5, abs=1e-6)
    gathered = gathered[-1:]  # no new readings: the newest again, with its own time
    clock.advance(1.0)
    again = family.scan()
    assert (again.energies_joules, again.read_at_s) == (scan.energies_joules, (pytest.approx(read_at_s, abs=1e-6),))


def test_a_family_that_manages_its_devices_shows_them_as_they_come_and_go() -> None:
    clock = FakeClock()
    machine = Machine(
        [energy_sensor("bmc1", now_ns=clock.monotonic_ns)],
        timing=Timing(poll_s=1.0, read_on_scrape=True, manages_devices=True),
    )
    collector = fake_family("fake", machine).open(Host(), None)
    family = Family(collector, clock=clock)
    assert up(family.scan()) == {"bmc1": True}
    first, second = machine.sensors[0], energy_sensor("bmc2", now_ns=clock.monotonic_ns)
    collector._sensors = (first, second)  # type: ignore[attr-defined]
    assert up(family.scan()) == {"bmc1": True, "bmc2": True}
    collector._sensors = (second,)  # type: ignore[attr-defined]
    assert up(family.scan()) == {"bmc2": True}, "it was removed from the list, so it is not lost"


def test_a_failure_is_counted_once_until_the_device_is_read_again() -> None:
    clock = FakeClock()
    sensor = energy_sensor()
    family = family_of(clock, sensor)
    for is_repeated in (False, True, True, False):
        sensor.error = SensorGlitchError("no answer")
        sensor.error.is_repeated = is_repeated
        scan = family.scan()
    assert scan.errors == (("socket0", "glitch", 2),)


def test_later_families_get_the_sources_that_earlier_ones_read(start: Start) -> None:
    first, second = Machine([energy_sensor("socket0")]), Machine([energy_sensor("socket1")])
    start(fake_family("first", first), fake_family("second", second))
    assert [host.claimed for host in first.hosts + second.hosts] == [frozenset(), {"fake:socket0/package"}]


def test_later_families_are_reopened_when_an_earlier_one_appears(start: Start) -> None:
    first, second = Machine([]), Machine([energy_sensor("socket1")])
    sampler = start(fake_family("first", first), fake_family("second", second))
    first.sensors = [energy_sensor("socket0")]
    sampler.rediscover()
    sampler.rediscover()
    assert second.hosts[-1].claimed == {"fake:socket0/package"}


def test_later_families_are_reopened_when_an_earlier_one_finds_more(start: Start) -> None:
    """In the same pass, although the earlier one reads its new sensor only at its next read."""
    first, second = Machine([energy_sensor("socket0")]), Machine([energy_sensor("socket1"), power_sensor("gpu")])
    sampler = start(fake_family("first", first), fake_family("second", second))
    first.sensors, first.outdated = [energy_sensor("socket0"), power_sensor("gpu")], True
    second.sensors = [energy_sensor("socket1")]
    second.findings = [Finding(status="skipped", collector="second", subject="x", text="", device="gpu")]
    sampler.rediscover()
    assert second.hosts[-1].claimed == {"fake:socket0/package", "fake:gpu/total"}
    first.outdated = False
    sampler.rediscover()
    assert second.opened == 2, "nothing has changed since"
    scans = sampler.fresh(2.0)
    assert [up(scan) for scan in scans] == [{"socket0": True, "gpu": True}, {"socket1": True}], "it is not lost"


@pytest.mark.parametrize("error", [None, SensorDeniedError("/sys/b: Permission denied", devices=["b"])])
def test_a_family_whose_last_sensor_is_read_by_an_earlier_one_ends(start: Start, error: Exception | None) -> None:
    first, second = Machine([energy_sensor("socket0")]), Machine([power_sensor("gpu")])
    sampler = start(fake_family("first", first), fake_family("second", second))
    sampler.fresh(2.0)
    gpu = power_sensor("gpu")
    first.sensors, first.outdated = [energy_sensor("socket0"), gpu], True
    second.sensors, second.error = [], error
    sampler.rediscover()
    scans = sampler.fresh(2.0)
    assert [states(scan) for scan in scans[:1]] == [{"socket0": "ok", "gpu": "ok"}]
    assert [states(scan) for scan in scans[1:]] == ([] if error is None else [{"b": "denied"}])
    first.sensors.remove(gpu)
    second.sensors, second.error = [power_sensor("gpu")], None
    sampler.rediscover()
    assert up(sampler.fresh(2.0)[1]) == {"gpu": True}, "the earlier one has lost it"


def test_a_family_that_has_lost_its_devices_stays_when_an_earlier_one_finds_more(start: Start) -> None:
    first, second = Machine([energy_sensor("socket0")]), Machine([power_sensor("gpu")])
    sampler = start(fake_family("first", first), fake_family("second", second))
    second.sensors[0].error = SensorAbsentError("gone")
    sampler.fresh(2.0)
    first.sensors, first.outdated, second.sensors = [energy_sensor("socket0"), energy_sensor("socket1")], True, []
    sampler.rediscover()
    assert up(sampler.fresh(2.0)[1]) == {"gpu": False}


def test_an_outdated_family_is_reopened(start: Start) -> None:
    machine = Machine([energy_sensor("socket0")])
    sampler = start(fake_family("fake", machine))
    sampler.rediscover()
    assert machine.opened == 1
    machine.sensors = [*machine.sensors, energy_sensor("socket1")]
    machine.outdated = True
    sampler.rediscover()
    assert set(up(sampler.fresh(1.0)[0])) == {"socket0", "socket1"}


def test_a_quantity_that_returns_through_another_backend_keeps_its_total() -> None:
    clock = FakeClock()
    sensor = energy_sensor(joules=60_000.0, now_ns=clock.monotonic_ns)
    machine = Machine([sensor])
    open_ = fake_family("rapl", machine).open
    family = Family(open_(Host(), None), clock=clock)
    family.scan()
    clock.advance(1.0)
    sensor.energies_joules = [60_100.0]
    assert energies(family.scan()) == {"socket0": 100.0}
    other = energy_sensor(joules=0.0, wrap_joules=None, now_ns=clock.monotonic_ns)
    other.infos = (dataclasses.replace(other.infos[0], source="perf:power/energy-pkg/@cpu0"),)
    machine.sensors = [other]
    family.replace(open_(Host(), None))
    clock.advance(2.0)
    scan = family.scan()
    assert energies(scan) == {"socket0": 100.0}
    assert scan.healths[0] is not None and (scan.healths[0].unmeasured_s, scan.healths[0].resets) == (2.0, 0)
    clock.advance(1.0)
    other.energies_joules = [150.0]
    assert energies(family.scan()) == {"socket0": 250.0}


def test_each_device_of_a_sensor_has_its_own_time_and_health() -> None:
    """One service reports both servers of its enclosure."""
    clock = FakeClock()
    sensor = FakeSensor((info("bmc/n1"), info("bmc/n2")), energies_joules=[1.0, 2.0])
    family = family_of(clock, sensor)
    scan = family.scan()
    assert up(scan) == {"bmc/n1": True, "bmc/n2": True}
    assert None not in scan.read_at_s
    sensor.error = SensorGlitchError("no answer")
    assert up(family.scan()) == {"bmc/n1": False, "bmc/n2": False}


def test_a_gap_in_the_power_is_at_least_three_periods() -> None:
    """A card that is read every five seconds still has energy."""
    for poll_s, energy_joules in ((1.0, 0.0), (5.0, 600.0)):
        clock = FakeClock()
        sensor = power_sensor(watts=50.0, max_gap_s=4.0, now_ns=clock.monotonic_ns)
        family = Family(fake_family("fpga", Machine([sensor])).open(Host(), None), poll_s=poll_s, clock=clock)
        family.scan()
        clock.advance(12.0)
        assert energies(family.scan()) == {"board": energy_joules}


# -- how a sensor is read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timing", "fields", "read_mode"),
    [
        (Timing(poll_s=1.0, read_on_scrape=True), {}, "on_request"),
        (Timing(poll_s=1.0, read_on_scrape=False), {}, "polled"),
        (Timing(poll_s=1.0, read_on_scrape=True, reads_in_background=True), {}, "polled"),
        (Timing(poll_s=1.0, read_on_scrape=True, reads_in_background=True), {"is_remote": True}, "remote"),
        (Timing(poll_s=1.0, read_on_scrape=True), {"read_mode": "polled"}, "polled"),
        (Timing(poll_s=1.0, read_on_scrape=True, reads_in_background=True), {"read_mode": "remote"}, "remote"),
    ],
)
def test_a_sensor_is_read_as_its_family_unless_it_states_otherwise(
    timing: Timing, fields: dict[str, Any], read_mode: str
) -> None:
    """A custom collector states nothing, and its sensors are labelled all the same."""
    sensor = energy_sensor()
    sensor.infos = (dataclasses.replace(sensor.infos[0], **fields),)
    family = Family(fake_family("fake", Machine([sensor], timing=timing)).open(Host(), None))
    assert [info.read_mode for info in family.layout.infos] == [read_mode]


# -- edges -----------------------------------------------------------------------------------------


def test_an_edge_waits_for_counters_with_steps_and_answers_scrapes_meanwhile() -> None:
    """A scrape that arrives during the wait does not wait for it."""

    class Stepping(FakeSensor):
        def read(self) -> Sequence[Reading]:
            self.energies_joules = [time.monotonic_ns() // 1_000_000 * 0.1]
            return super().read()

    machine = Machine(
        [Stepping((info(),), energies_joules=[0.0])], timing=Timing(poll_s=10.0, read_on_scrape=True, has_steps=True)
    )
    sampler = Sampler([fake_family("rapl", machine), fake_family("slow", Machine([energy_sensor("gpu0")]))], Host())
    sampler.start()
    try:
        scans: list[FamilyScan] = []
        scraper = threading.Thread(target=lambda: scans.extend(sampler.fresh(1.0)))
        scraper.start()
        stepped, slow = sampler.edge(1.0)
        scraper.join()
    finally:
        sampler.stop()
    assert len(scans) == 2
    assert stepped.steps or stepped.reasons[0]
    assert (slow.steps, slow.scan.energies_joules) == ({}, (0.0,))


def test_an_edge_in_which_a_device_hangs_begins_again_without_it(start: Start) -> None:
    timing = Timing(poll_s=10.0, read_on_scrape=True, has_steps=True)
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    sampler = quick(start(fake_family("rapl", Machine([sick, healthy], timing=timing)), hang_s=0.2))
    sick.hang, sick.hangs_after = threading.Event(), sick.reads + 1
    (edge,) = sampler.edge(5.0)
    assert up(edge.scan) == {"socket0": False, "socket1": True}
    sick.hang.set()


def test_all_clients_get_their_edges_when_a_device_hangs(start: Start) -> None:
    """A client that asks after the hang must not take away the edge that another one waits for."""
    timing = Timing(poll_s=10.0, read_on_scrape=True, has_steps=True)
    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    sampler = quick(start(fake_family("rapl", Machine([sick, healthy], timing=timing)), hang_s=100.0))
    thread = sampler._threads["rapl"]
    sick.hang, sick.hangs_after = threading.Event(), sick.reads + 1
    first = thread.request_edge()
    wait_until(lambda: thread._edges_started == first)
    second = thread.request_edge()
    thread.watch(0.0)
    third = thread.request_edge()
    deadline_ns = time.monotonic_ns() + 10 * NS_PER_S
    for ticket in (first, second, third):
        assert up(thread.wait_edge(ticket, deadline_ns, 10.0).scan) == {"socket0": False, "socket1": True}
    sick.hang.set()


def test_a_family_that_was_out_of_threads_gets_one_later(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sick, healthy = energy_sensor("socket0"), energy_sensor("socket1")
    sampler = quick(start(fake_family("rapl", Machine([sick, healthy])), hang_s=100.0))
    thread = sampler._threads["rapl"]
    sick.hang, sick.hangs_after = threading.Event(), 0
    thread.request()
    wait_until(lambda: thread._worker.turn is not None and thread._worker.turn.subject == "socket0")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        thread.watch(0.0)
        assert thread._worker.turn is None
    thread.watch(100.0)
    (scan,) = sampler.fresh(10.0)
    assert up(scan) == {"socket0": False, "socket1": True}
    sick.hang.set()


def test_one_slow_read_does_not_end_the_measurement_of_the_refresh() -> None:
    """On a busy machine the thread may lose the processor in the first read of a burst."""
    clock = FakeClock()

    class Stepping(FakeSensor):
        def read(self) -> Sequence[Reading]:
            clock.now_ns += 2_000_000 if self.reads == 1 else 5_000
            self.energies_joules = [clock.now_ns // 1_000_000 * 0.1]
            return super().read()

    family = family_of(clock, Stepping((info(),), energies_joules=[0.0]))
    for _ in range(2):
        family.scan()
        family.burst(Turn(), lambda: False)
    assert family.scan().healths[0].refresh_s == pytest.approx(0.001)


def test_a_burst_that_is_interrupted_is_repeated() -> None:
    """Otherwise the refresh period stays unknown, or is the time between two scans."""
    clock = FakeClock()

    class Interrupted(FakeSensor):
        def read(self) -> Sequence[Reading]:
            clock.now_ns += 30_000_000 if self.reads in (2, 3, 5, 8, 9) else 10_000
            self.energies_joules = [clock.now_ns // 1_000_000 * 0.1]
            return super().read()

    sensor = Interrupted((info(),), energies_joules=[0.0])
    family = family_of(clock, sensor)
    refreshes = []
    for _ in range(8):
        clock.advance(1.0)
        health = family.scan().healths[0]
        assert health is not None
        refreshes.append(health.refresh_s)
        family.burst(Turn(), lambda: False)
    assert refreshes[0] is None
    known = [refresh_s for refresh_s in refreshes if refresh_s is not None]
    assert known
    assert known == pytest.approx([0.001] * len(known))
    reads = sensor.reads
    family.burst(Turn(), lambda: False)
    assert sensor.reads == reads


def test_bursts_end_if_they_never_show_the_refresh_period() -> None:
    """It changes at every read."""
    clock = FakeClock()

    class Changing(FakeSensor):
        def read(self) -> Sequence[Reading]:
            clock.now_ns += 900_000
            self.energies_joules = [clock.now_ns * 1e-9]
            return super().read()

    family = family_of(clock, Changing((info(),), energies_joules=[0.0]))
    family.scan()
    for _ in range(BURST_TRIES):
        assert family.wants_burst
        family.burst(Turn(), lambda: False)
    family.burst(Turn(), lambda: False)
    assert not family.wants_burst


def test_an_edge_of_a_counter_whose_refresh_is_not_known_is_a_scan() -> None:
    machine = Machine([energy_sensor()], timing=Timing(poll_s=10.0, read_on_scrape=True, has_steps=True))
    sampler = Sampler([fake_family("fake", machine)], Host())
    sampler.start()
    try:
        (edge,) = sampler.edge(1.0)
    finally:
        sampler.stop()
    assert edge.scan.energies_joules == (0.0,)
    assert edge.reasons == {0: "its refresh period is not known yet"}
