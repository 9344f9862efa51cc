"""Pollers of slow devices: deadlines, pauses after failures, hung calls, and the readings that a scan takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import pytest

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.collectors.base.workers import (
    ABANDON_AFTER,
    LONGEST_BACKOFF_S,
    Device,
    PolledCollector,
    Poller,
)
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Quantity, Reading, SensorInfo
from joulewatch_exporter.threads import Turn
from support.waiting import wait_until

WAIT_S = 10.0
"""Limit for steps that take microseconds; only a failing test waits so long."""

TOTAL = Quantity(scope="node", component="node", device="n1", domain="total")
PART = Quantity(scope="part", component="other", device="n1", domain="psu1")


def info(quantity: Quantity) -> SensorInfo:
    return SensorInfo(quantity=quantity, method="integrated", source="fake")


class FakeDevice:
    """A connected device whose reads succeed, fail or hang."""

    def __init__(self, quantity: Quantity = TOTAL) -> None:
        self.quantity = quantity
        self.infos: Sequence[SensorInfo] = (info(quantity),)
        self.error: Exception | None = None
        self.hang: threading.Event | None = None
        self.reads = 0
        self.closes = 0

    def read(self) -> Sequence[Reading]:
        self.reads += 1
        if self.hang is not None:
            self.hang.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return (
            Reading(
                quantity=self.quantity,
                read_at_ns=time.monotonic_ns(),
                energy_joules=None,
                power_watts=float(self.reads),
            ),
        )

    def close(self) -> None:
        self.closes += 1


class Connections:
    """Connects to a device or fails, and counts."""

    def __init__(self, *devices: FakeDevice) -> None:
        self.device = devices[0] if devices else FakeDevice()
        self.error: Exception | None = None
        self.count = 0

    def connect(self) -> Device:
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.device


def poller(connections: Connections, *, poll_s: float = 5.0, deadline_s: float = 5.0, **settings: float) -> Poller:
    return Poller("n1", connections.connect, poll_s=poll_s, deadline_s=deadline_s, **settings)


@pytest.fixture
def running() -> Iterator[list[Poller | PolledCollector]]:
    """Pollers and families to stop when the test ends."""
    things: list[Poller | PolledCollector] = []
    yield things
    for thing in things:
        if isinstance(thing, Poller):
            thing.stop()
            thing.join(WAIT_S)
        else:
            thing.close()


# -- a poller's steps, without its thread ---------------------------------------------------------------


def test_a_good_read_keeps_the_period_and_the_connection() -> None:
    connections = Connections()
    worker = poller(connections)
    device, pause_s = worker._step(Turn(), None)
    assert device is connections.device
    assert pause_s == 5.0
    device, _ = worker._step(Turn(), device)
    assert connections.count == 1
    assert [reading.power_watts for reading in worker.take()] == [1.0, 2.0]
    assert worker.error is None


def test_the_newest_reading_is_returned_again_with_its_own_time() -> None:
    """An old value never gets a new time."""
    worker = poller(Connections())
    worker._step(Turn(), None)
    (first,) = worker.take()
    assert worker.take() == (first,)


@pytest.mark.parametrize("error", [SensorGlitchError("n1: busy"), SensorAsleepError("n1: suspended")])
def test_a_glitch_and_sleep_keep_the_connection_and_the_period(error: SensorError) -> None:
    connections = Connections()
    worker = poller(connections)
    device, _ = worker._step(Turn(), None)
    connections.device.error = error
    device, pause_s = worker._step(Turn(), device)
    assert device is connections.device
    assert (pause_s, connections.device.closes) == (5.0, 0)
    with pytest.raises(type(error), match=str(error)):
        worker.take()


@pytest.mark.parametrize("error", [SensorTimeoutError("n1: silent"), SensorAbsentError("n1: gone"), ValueError("bug")])
def test_other_failures_end_the_connection_and_the_pauses_grow(error: Exception) -> None:
    connections = Connections()
    worker = poller(connections)
    device, _ = worker._step(Turn(), None)
    connections.device.error = error
    pauses_s = []
    for _ in range(6):
        device, pause_s = worker._step(Turn(), device)
        assert device is None
        pauses_s.append(pause_s)
    assert pauses_s == [10.0, 20.0, 40.0, LONGEST_BACKOFF_S, LONGEST_BACKOFF_S, LONGEST_BACKOFF_S]
    assert connections.device.closes == 6
    connections.device.error = None
    device, pause_s = worker._step(Turn(), None)
    assert pause_s == 5.0
    connections.device.error = error
    assert worker._step(Turn(), device)[1] == 10.0, "the first answer restored the period"


def test_a_period_longer_than_the_longest_pause_is_kept() -> None:
    connections = Connections()
    connections.error = SensorTimeoutError("n1: silent")
    assert poller(connections, poll_s=300.0)._step(Turn(), None) == (None, 300.0)


def test_a_refused_login_is_retried_after_a_long_pause() -> None:
    """A BMC locks an account after a few wrong passwords."""
    connections = Connections()
    connections.error = SensorDeniedError("n1: wrong password")
    worker = poller(connections)
    assert worker._step(Turn(), None) == (None, 300.0)
    with pytest.raises(SensorDeniedError, match="wrong password"):
        worker.take()


def test_a_failure_is_counted_once_however_often_it_is_raised() -> None:
    connections = Connections()
    connections.error = SensorTimeoutError("n1: silent")
    worker = poller(connections)
    worker._step(Turn(), None)
    repeated = []
    for _ in range(3):
        with pytest.raises(SensorTimeoutError) as raised:
            worker.take()
        repeated.append(raised.value.is_repeated)
    worker._step(Turn(), None)
    with pytest.raises(SensorTimeoutError) as raised:
        worker.take()
    assert [*repeated, raised.value.is_repeated] == [False, True, True, False]


def test_a_device_that_returns_with_other_quantities_is_another_sensor() -> None:
    first, second = FakeDevice(TOTAL), FakeDevice(PART)
    connections = Connections(first)
    worker = poller(connections)
    worker._step(Turn(), None)
    before = worker.sensor
    assert before is not None
    worker._step(Turn(), None)
    assert worker.sensor is before, "the same quantities: the same sensor"
    connections.device = second
    worker._step(Turn(), None)
    assert worker.sensor is not before
    assert worker.sensor is not None
    assert worker.sensor.infos == second.infos
    assert [reading.quantity for reading in worker.take()] == [PART], "readings of the former quantities are dropped"


def test_a_bug_in_the_device_class_is_logged_and_the_poller_continues(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections()
    connections.device.error = KeyError("voltage")
    worker = poller(connections)
    worker._step(Turn(), None)
    with pytest.raises(SensorError, match="KeyError: 'voltage'"):
        worker.take()
    worker._step(Turn(), None)
    assert caplog.text.count("reading failed") == 1
    connections.device.error = KeyError("current")
    worker._step(Turn(), None)
    assert caplog.text.count("reading failed") == 2


def test_a_close_that_fails_is_ignored() -> None:
    connections = Connections()
    connections.device.error = SensorTimeoutError("n1: silent")
    connections.device.close = lambda: 1 // 0  # type: ignore[assignment,method-assign]
    assert poller(connections)._step(Turn(), None)[0] is None


# -- hung calls and old values, at times that the test makes up -------------------------------------------


def watch(worker: Poller, after_s: float, busy_since_ns: int | None) -> None:
    with worker._condition:
        turn = worker._worker.turn = Turn(worker._worker)
        turn.busy_since_ns = busy_since_ns or 0
        worker._watch((busy_since_ns or worker._newest_ns) + round(after_s * NS_PER_S))


def test_a_call_beyond_the_deadline_is_a_timeout_before_it_returns() -> None:
    worker = poller(Connections(), deadline_s=5.0)
    worker._step(Turn(), None)
    watch(worker, 4.9, time.monotonic_ns())
    assert worker.error is None
    watch(worker, 5.1, time.monotonic_ns())
    assert isinstance(worker.error, SensorTimeoutError)
    assert str(worker.error) == "n1: no answer within 5 s"


def test_a_value_that_is_older_than_period_and_deadline_is_not_shown() -> None:
    worker = poller(Connections(), poll_s=5.0, deadline_s=2.0)
    worker._step(Turn(), None)
    watch(worker, 7.9, None)
    assert worker.error is None
    watch(worker, 8.1, None)
    assert "the newest value is 8 s old" in str(worker.error)


def test_a_device_with_its_own_timestamps_may_be_slower() -> None:
    worker = poller(Connections(), max_age_s=600.0)
    worker._step(Turn(), None)
    watch(worker, 599.0, None)
    assert worker.error is None
    watch(worker, 601.0, None)
    assert isinstance(worker.error, SensorTimeoutError)


def test_a_hung_call_is_replaced_by_one_thread_and_never_more(running: list[object]) -> None:
    sick, well = FakeDevice(), FakeDevice()
    sick.hang = threading.Event()
    connections = Connections(sick)
    worker = poller(connections)
    running.append(worker)
    worker.start()
    wait_until(lambda: sick.reads)
    connections.device = well
    with worker._condition:
        worker._watch(time.monotonic_ns() + round((ABANDON_AFTER * 5.0 + 1) * NS_PER_S))
    assert worker._worker.hung == {"n1"}
    worker.settle(WAIT_S)
    wait_until(lambda: well.reads)
    wait_until(lambda: worker.error is None)
    assert [reading.power_watts for reading in worker.take()] == [1.0]
    sick.hang.set()
    wait_until(lambda: not worker._worker.hung, "it has returned, so another thread may hang")
    wait_until(lambda: sick.closes == 1, "and its connection is closed by its own thread")
    assert [reading.power_watts for reading in worker.take()] == [1.0], "its late reading is not used"


# -- a poller with its thread ------------------------------------------------------------------------------


def test_a_poller_reads_by_itself_and_logs_out_when_stopped() -> None:
    connections = Connections()
    worker = poller(connections, poll_s=0.005)
    assert not worker.is_settled
    worker.start()
    worker.settle(WAIT_S)
    assert worker.is_settled
    wait_until(lambda: connections.device.reads >= 3)
    worker.stop()
    worker.join(WAIT_S)
    assert connections.device.closes == 1
    assert connections.count == 1


def test_stopping_does_not_wait_for_the_period() -> None:
    connections = Connections()
    worker = poller(connections, poll_s=3600.0)
    worker.start()
    worker.settle(WAIT_S)
    started_s = time.monotonic()
    worker.stop()
    worker.join(WAIT_S)
    assert time.monotonic() - started_s < WAIT_S / 2


# -- a family of pollers --------------------------------------------------------------------------------------


class Family(PolledCollector):
    """Devices by name."""

    def __init__(self, devices: Mapping[str, FakeDevice]) -> None:
        super().__init__(wanted(devices))


def wanted(devices: Mapping[str, FakeDevice], key: str = "a") -> Mapping[str, tuple[Hashable, Callable[[], Poller]]]:
    def make(name: str, device: FakeDevice) -> Callable[[], Poller]:
        return lambda: Poller(name, lambda: device, poll_s=3600.0, deadline_s=5.0)

    return {name: ((name, key), make(name, device)) for name, device in devices.items()}


def test_devices_are_shown_once_they_have_answered_or_failed(running: list[object]) -> None:
    slow = FakeDevice()
    slow.hang = threading.Event()
    dead = FakeDevice()
    dead.error = SensorAbsentError("dead: gone")
    family = Family({"well": FakeDevice(), "slow": slow, "dead": dead})
    running.append(family)
    wait_until(lambda: len(family.sensors) == 2)
    assert [sensor.device for sensor in family.sensors] == ["well", "dead"]
    before = family.sensors
    assert family.sensors is before, "the same object for as long as the devices are the same"
    slow.hang.set()
    wait_until(lambda: len(family.sensors) == 3)
    assert family.sensors is not before


def test_a_device_whose_first_connection_hangs_is_shown_after_its_deadline(running: list[object]) -> None:
    hang = threading.Event()
    silent = Poller("silent", lambda: hang.wait(WAIT_S) and FakeDevice(), poll_s=1.0, deadline_s=0.05)  # type: ignore
    family = PolledCollector({"silent": ("a", lambda: silent)})
    running.append(family)
    assert not family.sensors
    wait_until(lambda: family.sensors)
    with pytest.raises(SensorTimeoutError, match=r"silent: no answer within 0\.05 s"):
        family.sensors[0].read()
    hang.set()


def test_only_changed_targets_are_reconnected(running: list[object]) -> None:
    devices = {name: FakeDevice() for name in ("a", "b", "c")}
    family = Family(devices)
    running.append(family)
    family.settle(WAIT_S)
    before = {sensor.device: sensor for sensor in family.sensors}
    family.follow({**wanted({"a": devices["a"]}), **wanted({"b": devices["b"]}, key="other")})
    family.settle(WAIT_S)
    after = {sensor.device: sensor for sensor in family.sensors}
    assert sorted(after) == ["a", "b"]
    assert after["a"] is before["a"]
    assert after["b"] is not before["b"]
    wait_until(lambda: devices["b"].closes == 1)
    wait_until(lambda: devices["c"].closes == 1)
    assert devices["a"].closes == 0


def test_closing_twice_is_safe_and_does_not_wait_for_a_hung_device() -> None:
    hung = FakeDevice()
    hung.hang = threading.Event()
    family = Family({"well": FakeDevice(), "hung": hung})
    family.settle(0.05)
    started_s = time.monotonic()
    family.close()
    family.close()
    assert time.monotonic() - started_s < WAIT_S / 2
    hung.hang.set()


def test_the_timing_of_a_family_of_pollers(running: list[object]) -> None:
    family = Family({})
    running.append(family)
    assert family.timing.manages_devices
    assert family.timing.read_on_scrape
    assert not family.outdated
    assert tuple(family.findings) == ()
