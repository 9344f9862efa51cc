"""The exporter above the drivers of a real kernel, in a virtual machine: what README.md beside this file says.

Switched on by JOULEWATCH_QEMU=1. It is skipped otherwise, and where something is missing, even if nothing else may be
skipped: it takes minutes, and a kernel that most machines have no use for.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qemu.guest import PACKAGES, POWERCAP, TRUTH, Guest, exporter_command, missing
from support.ipmi.simulator import IpmiSim
from support.servers import free_port

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

WATTS = {"socket0/package": 150.0, "socket1/package": 80.0}
MILLIWATTS = "150000,80000"
ENERGY = "joulewatch_device_energy_joules_total"
PMU = "/sys/bus/event_source/devices/power"
PARANOID = "/proc/sys/kernel/perf_event_paranoid"
DEBIANS_PARANOID = "3"
ENERGY_FILES = " ".join(f"{POWERCAP}/intel-rapl:{zone}/energy_uj" for zone in ("0", "0:0", "1"))
CHANGE_LIMIT_S = 60.0
"""Within this a daemon has seen what has changed: it looks every second."""


@pytest.fixture(scope="module")
def bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[IpmiSim, int]]:
    """OpenIPMI's simulator, and the port where a virtual machine's interface may speak with it."""
    _skip_unless_possible()
    simulator = IpmiSim(tmp_path_factory.mktemp("bmc") / "sim")
    port = free_port()
    settings = simulator.folder / "lan.conf"
    settings.write_text(
        settings.read_text().replace("  endlan\n", f"  endlan\n  serial 15 127.0.0.1 {port} codec VM\n")
    )
    simulator.start()
    yield simulator, port
    simulator.stop()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, bmc: tuple[IpmiSim, int]) -> Iterator[Guest]:
    """The guest, booted once."""
    guest = Guest(tmp_path_factory.mktemp("qemu"), bmc_port=bmc[1])
    yield guest
    guest.stop()


@pytest.fixture
def guest(machine: Guest) -> Guest:
    """The guest with both sockets at their power and the rights of a fresh boot."""
    machine.sh(
        f"""
        test -d {TRUTH} || insmod {machine.module}
        echo {MILLIWATTS} > {TRUTH}/milliwatts
        echo {DEBIANS_PARANOID} > {PARANOID}
        chmod 400 {ENERGY_FILES}
        """
    )
    return machine


def _skip_unless_possible() -> None:
    if os.environ.get("JOULEWATCH_QEMU") != "1":
        pytest.skip(
            "JOULEWATCH_QEMU=1 switches it on: boots a virtual machine, takes some minutes; tests/qemu/README.md"
        )
    if lacks := missing():
        pytest.skip(f"without {', '.join(lacks)}: {PACKAGES}")


# -- the daemon in the guest -----------------------------------------------------------------------------------


@dataclass
class Scrape:
    """What the daemon told, and the true energy of both sockets just before and just after."""

    text: str
    joules_before: Mapping[str, float]
    joules_after: Mapping[str, float]

    def samples(self, metric: str, label: str = "") -> dict[str, Any]:
        """``device/domain`` (or the device where there is no domain) to the value, or to one of the labels."""
        found = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                if sample.name == metric:
                    labels = sample.labels
                    key = "/".join(labels[name] for name in ("device", "domain") if name in labels)
                    found[key] = labels[label] if label else sample.value
        return found


class Daemon:
    """A ``joulewatch-exporter`` that runs in the guest."""

    URL = "http://127.0.0.1:10717"

    def __init__(self, guest: Guest, *flags: str, as_root: bool, settings: str = "") -> None:
        self._guest = guest
        guest.write("/run/exporter.yaml", f"exporter: {{listen: 127.0.0.1:10717, rediscover_seconds: 1}}\n{settings}")
        guest.call(("start", "exporter", exporter_command("--config.file=/run/exporter.yaml", *flags), as_root))
        end_s = time.monotonic() + CHANGE_LIMIT_S
        while True:
            try:
                guest.call(("sleep", 0.2), ("get", f"{self.URL}/-/healthy"))
                return
            except RuntimeError as error:
                if "refused" not in str(error) or time.monotonic() > end_s:
                    raise RuntimeError(f"{error}; its log: {guest.read('/run/exporter.log')}") from error

    def scrape(self, *, has_truth: bool = True) -> Scrape:
        if not has_truth:
            return Scrape(self._guest.call(("get", f"{self.URL}/metrics"))[0], {}, {})
        before, text, after = self._guest.call(
            ("read", f"{TRUTH}/energy_uj"), ("get", f"{self.URL}/metrics"), ("read", f"{TRUTH}/energy_uj")
        )
        return Scrape(text, _joules(before), _joules(after))

    def scrape_until(self, what: str, is_so: Callable[[Scrape], bool]) -> Scrape:
        """Scrape twice a second until something is so."""
        end_s = time.monotonic() + CHANGE_LIMIT_S
        while not is_so(scrape := self.scrape()):
            assert time.monotonic() < end_s, f"{what}: not seen; {scrape.text}\n{self._guest.read('/run/exporter.log')}"
            self._guest.call(("sleep", 0.5))
        return scrape

    def stop(self) -> None:
        assert self._guest.call(("stop", "exporter")) == [0]


def _joules(text: str) -> Mapping[str, float]:
    return dict(zip(WATTS, (int(number) / 1e6 for number in text.split()), strict=True))


@pytest.fixture
def daemon(guest: Guest) -> Iterator[Callable[..., Daemon]]:
    """Call it with flags and settings to get a daemon; stopped when the test ends."""
    started: list[Daemon] = []

    def start(*flags: str, as_root: bool = True, settings: str = "") -> Daemon:
        started.append(Daemon(guest, *flags, as_root=as_root, settings=settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()


# -- RAPL: powercap and perf -----------------------------------------------------------------------------------


def rapl_powers(report: Mapping[str, Any]) -> dict[str, float]:
    return {f"{r['device']}/{r['domain']}": r["power_watts"] for r in report["readings"] if r["collector"] == "rapl"}


def rapl_sources(report: Mapping[str, Any]) -> Sequence[str]:
    return [reading["source"] for reading in report["readings"] if reading["collector"] == "rapl"]


def finding(report: Mapping[str, Any], status: str, *words: str) -> Mapping[str, str]:
    """The only finding of this status in which all the words are."""
    (found,) = [
        one
        for one in report["findings"]
        if one["status"] == status and all(word in f"{one['subject']}: {one['text']}" for word in words)
    ]
    return dict(found)


def test_root_reads_the_zones_of_the_kernel(guest: Guest) -> None:
    """Both sockets by powercap; the zone `core` of an AMD CPU is one core and is told, not shown."""
    report = guest.check()
    assert rapl_powers(report) == pytest.approx(WATTS, rel=0.05)
    assert rapl_sources(report) == [f"{POWERCAP}/intel-rapl:{socket}/energy_uj" for socket in (0, 1)]
    assert "one core" in finding(report, "skipped", "intel-rapl:0:0")["text"]
    assert "same counters" in finding(report, "skipped", f"{PMU}: perf")["text"]


def test_one_scrape_tells_the_power(guest: Guest) -> None:
    """`--once`: two reads 0.15 s apart. On a busy machine one of them may be late, so it has three tries."""
    told = []
    for _ in range(3):
        code, output, errors = guest.exporter("--once")
        assert code == 0, errors
        told.append(Scrape(output, {}, {}).samples("joulewatch_device_power_watts"))
        print(f"--once: {told[-1]}")  # noqa: T201
        if told[-1] == pytest.approx(WATTS, rel=0.005):
            return
    pytest.fail(f"{told} instead of {WATTS}")


@pytest.mark.parametrize("door", ["powercap", "perf"])
def test_energy_is_the_truth(guest: Guest, daemon: Callable[..., Daemon], door: str) -> None:
    """Root through a wrap of each zone; nobody by perf events, which `perf_event_paranoid` 0 allows."""
    is_powercap = door == "powercap"
    if not is_powercap:
        guest.write(PARANOID, "0")
    # Next to no power until the daemon runs: then the zones go round within 13 s.
    guest.write(f"{TRUTH}/milliwatts", "100,100")
    guest.write(f"{TRUTH}/headroom_uj", "1000000000")
    exporter = daemon(as_root=is_powercap)
    guest.write(f"{TRUTH}/milliwatts", MILLIWATTS)
    first = exporter.scrape()
    guest.call(("sleep", 10.0))
    if is_powercap:
        last = exporter.scrape_until(
            "a wrap of each zone", lambda scrape: set(scrape.samples("joulewatch_sensor_wraps_total").values()) == {1.0}
        )
    else:
        last = exporter.scrape()
    sources = last.samples("joulewatch_sensor_info", "source")
    for number, (key, watts) in enumerate(WATTS.items()):
        wanted = f"{POWERCAP}/intel-rapl:{number}/energy_uj" if is_powercap else f"perf:power/energy-pkg/@cpu{number}"
        assert sources[key] == wanted
        told = risen(first, last, ENERGY, key)
        least = last.joules_before[key] - first.joules_after[key]
        most = last.joules_after[key] - first.joules_before[key]
        # A millijoule: the counter goes round some microjoules later than its published range says.
        assert least - 1e-3 <= told <= most + 1e-3
        seconds = risen(first, last, "joulewatch_read_timestamp_seconds", key.partition("/")[0])
        print(f"{door} {key}: {told:.3f} J in {seconds:.3f} s, {told / seconds:.3f} W of {watts} W")  # noqa: T201
        assert told == pytest.approx(watts * seconds, rel=0.005)
    for metric in ("resets", "rejected_readings", "unmeasured_seconds"):
        assert set(last.samples(f"joulewatch_sensor_{metric}_total").values()) == {0.0}, metric


def risen(first: Scrape, last: Scrape, metric: str, key: str) -> float:
    return float(last.samples(metric)[key] - first.samples(metric)[key])


def test_an_ordinary_user_is_told_the_cures_and_they_cure(guest: Guest) -> None:
    """Nobody, as on a fresh Debian: zones of mode 0400, perf_event_paranoid 3. Each cure is then carried out."""
    code, _, _ = guest.exporter("check", as_root=False)
    report = guest.check(as_root=False)
    assert rapl_powers(report) == {}
    assert code == (0 if report["measured"] else 1)
    denied = [one for one in report["findings"] if one["collector"] == "rapl" and one["status"] == "denied"]
    (text,) = [one["text"] for one in denied]
    assert "Permission denied" in text
    assert f"sudo chmod a+r {POWERCAP}/intel-rapl:0/energy_uj" in text
    assert "kernel.perf_event_paranoid is 3" in text
    assert "CAP_SYS_ADMIN" in text
    assert "at level 2 CAP_PERFMON is enough" in text
    cures = dict.fromkeys(re.findall(r"`sudo ([^`]+)`", text))
    assert list(cures) == [f"chmod a+r {POWERCAP}/intel-rapl:0/energy_uj", "sysctl kernel.perf_event_paranoid=0"]
    guest.sh("sysctl kernel.perf_event_paranoid=0")
    report = guest.check(as_root=False)
    assert rapl_powers(report) == pytest.approx(WATTS, rel=0.05)
    assert rapl_sources(report) == [f"perf:power/energy-pkg/@cpu{cpu}" for cpu in (0, 1)]
    told = [one for one in report["findings"] if one["status"] == "skipped" and "read by perf instead" in one["text"]]
    for one in told:
        guest.sh(one["cure"].removeprefix("sudo "))
    assert len(told) == 2
    guest.write(PARANOID, DEBIANS_PARANOID)
    report = guest.check(as_root=False)
    assert rapl_powers(report) == pytest.approx(WATTS, rel=0.05)
    assert all(source.startswith(POWERCAP) for source in rapl_sources(report))


@pytest.mark.parametrize(
    ("paranoid", "capability", "is_read"), [("3", "perfmon", False), ("3", "sys_admin", True), ("2", "perfmon", True)]
)
def test_what_a_refusal_says_of_capabilities(guest: Guest, paranoid: str, capability: str, is_read: bool) -> None:
    """At Debian's own level 3 CAP_PERFMON is not enough, CAP_SYS_ADMIN is."""
    guest.write(PARANOID, paranoid)
    report = guest.check(prefix=nobody_with(capability))
    assert rapl_powers(report) == (pytest.approx(WATTS, rel=0.05) if is_read else {})


def nobody_with(*capabilities: str) -> Sequence[str]:
    """A command that runs another as nobody with some rights of root."""
    rights = ",".join(f"+{name}" for name in capabilities)
    return [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        f"--inh-caps={rights}",
        f"--ambient-caps={rights}",
    ]


def test_a_driver_unloaded_takes_its_series_along(guest: Guest, daemon: Callable[..., Daemon]) -> None:
    """Held files answer ENODEV: nothing is repeated. Loaded again, it is found again, and no joule is made up."""
    exporter = daemon()
    first = exporter.scrape()
    until_then = _joules(guest.sh(f"cat {TRUTH}/energy_uj; rmmod fakepower"))
    gone = exporter.scrape(has_truth=False)
    assert gone.samples(ENERGY) == {}
    assert gone.samples("joulewatch_device_power_watts") == {}
    assert gone.samples("joulewatch_sensor_up") == {"socket0": 0.0, "socket1": 0.0}
    guest.sh(f"insmod {guest.module}")
    back = exporter.scrape_until("its return", lambda scrape: set(scrape.samples(ENERGY)) == set(WATTS))
    for key in WATTS:
        spent = until_then[key] - first.joules_before[key] + back.joules_after[key]
        assert 0.0 <= risen(first, back, ENERGY, key) <= spent


def test_an_event_of_a_cpu_that_went_offline_is_not_repeated(guest: Guest, daemon: Callable[..., Daemon]) -> None:
    """The kernel keeps its last count for ever: one read takes what it counted until then, the next sees it stand."""
    guest.write(PARANOID, "0")
    exporter = daemon(as_root=False)
    assert set(exporter.scrape().samples(ENERGY)) == set(WATTS)
    guest.write("/sys/devices/system/cpu/cpu1/online", "0")
    try:
        exporter.scrape()
        guest.call(("sleep", 0.1))
        assert set(exporter.scrape().samples(ENERGY)) == {"socket0/package"}
    finally:
        guest.write("/sys/devices/system/cpu/cpu1/online", "1")
    exporter.scrape_until("its return", lambda scrape: set(scrape.samples(ENERGY)) == set(WATTS))


# -- the CPUs' registers ---------------------------------------------------------------------------------------

MSR_ONLY = "collectors: {rapl: {door: msr}}\n"


def test_registers_that_are_not_there_are_not_published(guest: Guest) -> None:
    """The kernel answers 0 for them in a virtual machine, without an error."""
    guest.sh("modprobe msr")
    guest.write("/run/msr.yaml", MSR_ONLY)
    report = guest.check("--config.file=/run/msr.yaml")
    assert rapl_powers(report) == {}
    text = finding(report, "absent", "/dev/cpu/0/msr")["text"]
    assert "register 0xC0010299 holds no units (typical of a virtual machine)" in text
    assert all(source.startswith(POWERCAP) for source in rapl_sources(guest.check()))


def test_registers_need_two_rights(guest: Guest) -> None:
    """The mode of the file alone is not enough, nor is the capability; with both nobody gets as far as root."""
    guest.sh("modprobe msr; chmod 600 /dev/cpu/*/msr")
    guest.write("/run/msr.yaml", MSR_ONLY)
    flag = "--config.file=/run/msr.yaml"
    python = os.path.realpath(sys.executable)
    for prefix, mode, reason in (
        ((), "600", "Permission denied"),
        ((), "644", "Operation not permitted"),
        (nobody_with("sys_rawio"), "600", "Permission denied"),
        (nobody_with("sys_rawio", "dac_read_search"), "600", ""),
        (nobody_with("sys_rawio"), "644", ""),
    ):
        guest.sh(f"chmod {mode} /dev/cpu/*/msr")
        report = guest.check(flag, as_root=bool(prefix), prefix=prefix)
        if reason:
            told = finding(report, "denied", "/dev/cpu/0/msr", reason, "CAP_SYS_RAWIO")
            assert told["cure"] == f"sudo setcap cap_sys_rawio,cap_dac_read_search=ep {python}"
        else:
            finding(report, "absent", "/dev/cpu/0/msr", "holds no units")


# -- hwmon -----------------------------------------------------------------------------------------------------


def test_acpi_power_meter(guest: Guest) -> None:
    """The kernel's driver above a table of ours: the node, with the accuracy that the meter states."""
    guest.sh("modprobe acpi_power_meter")
    code, output, errors = guest.exporter("--once")
    assert code == 0, errors
    scrape = Scrape(output, {}, {})
    assert scrape.samples("joulewatch_node_power_watts") == {"ACPI000D:00/power1": 313.0}
    assert scrape.samples("joulewatch_sensor_info", "accuracy")["ACPI000D:00/power1"] == "0.05"
    assert scrape.samples("joulewatch_sensor_info", "model")["ACPI000D:00/power1"] == "power_meter"


def test_a_chip_on_a_bus_unplugged_and_plugged_in(guest: Guest, daemon: Callable[..., Daemon]) -> None:
    """An LTC4215 on the kernel's stub of an I2C bus: its voltage times its current, gone with ENODEV, and back."""
    bus = guest.sh(
        """
        modprobe i2c-dev; modprobe i2c-stub chip_addr=0x44; modprobe ltc4215
        basename $(dirname $(grep -l 'SMBus stub driver' /sys/bus/i2c/devices/i2c-*/name))
        """
    ).strip()
    number = bus.removeprefix("i2c-")

    def plug_in(sense: int) -> None:
        guest.sh(
            f"""
            i2cset -f -y {number} 0x44 4 {sense}
            i2cset -f -y {number} 0x44 6 200
            echo ltc4215 0x44 > /sys/bus/i2c/devices/{bus}/new_device
            """
        )

    plug_in(100)
    exporter = daemon()
    chip = f"{bus}-{number}-0044"
    power, up = "joulewatch_part_power_watts", "joulewatch_sensor_up"
    told = exporter.scrape_until("the chip", lambda scrape: f"{chip}/power1" in scrape.samples(power))
    assert told.samples(power)[f"{chip}/power1"] == 45.48875
    guest.sh(f"echo 0x44 > /sys/bus/i2c/devices/{bus}/delete_device")
    gone = exporter.scrape()
    assert f"{chip}/power1" not in gone.samples(power)
    assert gone.samples(up).get(chip, 0.0) == 0.0
    plug_in(200)
    told = exporter.scrape_until("its return", lambda scrape: scrape.samples(up).get(chip) == 1.0)
    assert told.samples(power)[f"{chip}/power1"] == 90.9775
    guest.sh(f"echo 0x44 > /sys/bus/i2c/devices/{bus}/delete_device")


# -- the BMC ---------------------------------------------------------------------------------------------------


def test_the_bmc_in_band(guest: Guest, bmc: tuple[IpmiSim, int], daemon: Callable[..., Daemon]) -> None:
    """The kernel's ipmi_si and ipmi_devintf, a KCS interface, and behind it OpenIPMI's simulator."""
    if importlib.util.find_spec("pyghmi") is None:
        pytest.skip("pyghmi is not installed: pip install 'joulewatch[ipmi]'")
    simulator, _ = bmc
    simulator.set_power(312)
    guest.sh(
        "modprobe ipmi_si; modprobe ipmi_devintf; for i in $(seq 100); do test -e /dev/ipmi0 && break; sleep 0.1; done"
    )
    told = finding(guest.check(as_root=False), "denied", "/dev/ipmi0", "Permission denied")
    assert told["cure"] == "sudo chmod a+rw /dev/ipmi0"
    power = "joulewatch_node_power_watts"

    def watts(scrape: Scrape) -> float | None:
        value: float | None = scrape.samples(power).get("bmc/total")
        return value

    exporter = daemon(settings="collectors: {ipmi: {enabled: true, interval_seconds: 1, deadline_seconds: 2}}\n")
    told_power = exporter.scrape_until("312 W", lambda scrape: watts(scrape) is not None)
    assert watts(told_power) == 312.0
    assert told_power.samples("joulewatch_sensor_info", "source")["bmc/total"] == "/dev/ipmi0 DCMI power reading"
    simulator.set_power(400)
    exporter.scrape_until("400 W", lambda scrape: watts(scrape) == 400.0)
    simulator.lose_power_reading()
    exporter.scrape_until("that DCMI has no value", lambda scrape: watts(scrape) is None)
    simulator.set_power(312)
    exporter.scrape_until("312 W again", lambda scrape: watts(scrape) == 312.0)
    simulator.hang()
    try:
        hung = exporter.scrape_until("that the BMC hangs", lambda scrape: watts(scrape) is None)
    finally:
        simulator.wake()
    assert hung.samples("joulewatch_sensor_up")["bmc"] == 0.0
    exporter.scrape_until("that it is back", lambda scrape: watts(scrape) == 312.0)
