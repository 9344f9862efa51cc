"""The exporter with the drivers of a real kernel in a virtual machine; see README.md in this folder.

The tests run with JOULEWATCH_QEMU=1 only. They are skipped if a requirement is missing, even with
JOULEWATCH_REQUIRE_ALL=1, because they take minutes and require a kernel that most machines do not use.
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
"""Time limit for a daemon to detect a change; it probes every second."""


@pytest.fixture(scope="module")
def bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[IpmiSim, int]]:
    """Yield OpenIPMI's simulator and the port for the BMC interface of a virtual machine."""
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
    """Yield the guest, which is booted once."""
    guest = Guest(tmp_path_factory.mktemp("qemu"), bmc_port=bmc[1])
    yield guest
    guest.stop()


@pytest.fixture
def guest(machine: Guest) -> Guest:
    """Return the guest with the power of both sockets and the file modes as after a boot."""
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
            "set JOULEWATCH_QEMU=1 to run it: it boots a virtual machine, which takes minutes; see tests/qemu/README.md"
        )
    if unmet := missing():
        pytest.skip(f"missing {', '.join(unmet)}: {PACKAGES}")


# -- the daemon in the guest -----------------------------------------------------------------------------------


@dataclass
class Scrape:
    """A scrape of the daemon, and the true energy of both sockets just before and after it."""

    text: str
    joules_before: Mapping[str, float]
    joules_after: Mapping[str, float]

    def samples(self, metric: str, label: str = "") -> dict[str, Any]:
        """Return values, or a label, by ``device/domain`` (by device if there is no domain)."""
        by_key = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                if sample.name == metric:
                    labels = sample.labels
                    key = "/".join(labels[name] for name in ("device", "domain") if name in labels)
                    by_key[key] = labels[label] if label else sample.value
        return by_key


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

    def scrape_until(self, event: str, condition: Callable[[Scrape], bool]) -> Scrape:
        """Scrape twice per second until ``condition`` is true."""
        end_s = time.monotonic() + CHANGE_LIMIT_S
        while not condition(scrape := self.scrape()):
            assert time.monotonic() < end_s, f"no {event}: {scrape.text}\n{self._guest.read('/run/exporter.log')}"
            self._guest.call(("sleep", 0.5))
        return scrape

    def stop(self) -> None:
        assert self._guest.call(("stop", "exporter")) == [0]


def _joules(text: str) -> Mapping[str, float]:
    return dict(zip(WATTS, (int(number) / 1e6 for number in text.split()), strict=True))


@pytest.fixture
def daemon(guest: Guest) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon with flags and settings; it is stopped at the end of the test."""
    started: list[Daemon] = []

    def start(*flags: str, as_root: bool = True, settings: str = "") -> Daemon:
        started.append(Daemon(guest, *flags, as_root=as_root, settings=settings))
        return started[-1]

    yield start
    for running in started:
        running.stop()


# -- RAPL: powercap and perf -----------------------------------------------------------------------------------


def rapl_powers(report: Mapping[str, Any]) -> dict[str, float]:
    return {f"{r['device']}/{r['domain']}": r["power_watts"] for r in report["readings"] if r["collector"] == "rapl"}


def rapl_sources(report: Mapping[str, Any]) -> Sequence[str]:
    return [reading["source"] for reading in report["readings"] if reading["collector"] == "rapl"]


def finding(report: Mapping[str, Any], status: str, *words: str) -> Mapping[str, str]:
    """Return the only finding with this status and all the words."""
    (match,) = [
        entry
        for entry in report["findings"]
        if entry["status"] == status and all(word in f"{entry['subject']}: {entry['text']}" for word in words)
    ]
    return dict(match)


def test_root_reads_the_zones_of_the_kernel(guest: Guest) -> None:
    """Both sockets are read by powercap; the zone `core` of an AMD CPU is one core, skipped with a finding."""
    report = guest.check()
    assert rapl_powers(report) == pytest.approx(WATTS, rel=0.05)
    assert rapl_sources(report) == [f"{POWERCAP}/intel-rapl:{socket}/energy_uj" for socket in (0, 1)]
    assert "one core" in finding(report, "skipped", "intel-rapl:0:0")["text"]
    assert "same counters" in finding(report, "skipped", f"{PMU}: perf")["text"]


def test_one_scrape_has_the_power(guest: Guest) -> None:
    """`--once` reads twice, 0.15 s apart. On a busy machine a read may be late, so there are three attempts."""
    powers = []
    for _ in range(3):
        code, output, errors = guest.exporter("--once")
        assert code == 0, errors
        powers.append(Scrape(output, {}, {}).samples("joulewatch_device_power_watts"))
        print(f"--once: {powers[-1]}")  # noqa: T201
        if powers[-1] == pytest.approx(WATTS, rel=0.005):
            return
    pytest.fail(f"{powers} instead of {WATTS}")


@pytest.mark.parametrize("backend", ["powercap", "perf"])
def test_energy_is_the_true_energy(guest: Guest, daemon: Callable[..., Daemon], backend: str) -> None:
    """Root reads powercap over a wrap of each zone; nobody reads perf events, as `perf_event_paranoid` 0 permits."""
    is_powercap = backend == "powercap"
    if not is_powercap:
        guest.write(PARANOID, "0")
    # Almost no power until the daemon runs, so that the zones wrap within 13 s after its start.
    guest.write(f"{TRUTH}/milliwatts", "100,100")
    guest.write(f"{TRUTH}/headroom_uj", "1000000000")
    exporter = daemon(as_root=is_powercap)
    guest.write(f"{TRUTH}/milliwatts", MILLIWATTS)
    first = exporter.scrape()
    guest.call(("sleep", 10.0))
    if is_powercap:
        last = exporter.scrape_until(
            "wrap of each zone", lambda scrape: set(scrape.samples("joulewatch_sensor_wraps_total").values()) == {1.0}
        )
    else:
        last = exporter.scrape()
    sources = last.samples("joulewatch_sensor_info", "source")
    for number, (key, watts) in enumerate(WATTS.items()):
        expected = f"{POWERCAP}/intel-rapl:{number}/energy_uj" if is_powercap else f"perf:power/energy-pkg/@cpu{number}"
        assert sources[key] == expected
        joules = risen(first, last, ENERGY, key)
        least = last.joules_before[key] - first.joules_after[key]
        most = last.joules_after[key] - first.joules_before[key]
        # A tolerance of 1 mJ, because the counter wraps some microjoules later than its published range.
        assert least - 1e-3 <= joules <= most + 1e-3
        seconds = risen(first, last, "joulewatch_read_timestamp_seconds", key.partition("/")[0])
        print(f"{backend} {key}: {joules:.3f} J in {seconds:.3f} s, {joules / seconds:.3f} W of {watts} W")  # noqa: T201
        assert joules == pytest.approx(watts * seconds, rel=0.005)
    for metric in ("resets", "rejected_readings", "unmeasured_seconds"):
        assert set(last.samples(f"joulewatch_sensor_{metric}_total").values()) == {0.0}, metric


def risen(first: Scrape, last: Scrape, metric: str, key: str) -> float:
    return float(last.samples(metric)[key] - first.samples(metric)[key])


def test_an_ordinary_user_gets_the_fixes_and_they_work(guest: Guest) -> None:
    """As on a new Debian, zones have mode 0400 and perf_event_paranoid is 3; the test then applies each fix as root."""
    code, _, _ = guest.exporter("check", as_root=False)
    report = guest.check(as_root=False)
    assert rapl_powers(report) == {}
    assert code == (0 if report["measured"] else 1)
    denied = [entry for entry in report["findings"] if entry["collector"] == "rapl" and entry["status"] == "denied"]
    (text,) = [entry["text"] for entry in denied]
    assert "Permission denied" in text
    assert f"sudo chmod a+r {POWERCAP}/intel-rapl:0/energy_uj" in text
    assert "kernel.perf_event_paranoid is 3" in text
    assert "CAP_SYS_ADMIN" in text
    assert "at level 2 CAP_PERFMON is enough" in text
    fixes = dict.fromkeys(re.findall(r"`sudo ([^`]+)`", text))
    assert list(fixes) == [f"chmod a+r {POWERCAP}/intel-rapl:0/energy_uj", "sysctl kernel.perf_event_paranoid=0"]
    guest.sh("sysctl kernel.perf_event_paranoid=0")
    report = guest.check(as_root=False)
    assert rapl_powers(report) == pytest.approx(WATTS, rel=0.05)
    assert rapl_sources(report) == [f"perf:power/energy-pkg/@cpu{cpu}" for cpu in (0, 1)]
    skipped = [
        entry
        for entry in report["findings"]
        if entry["status"] == "skipped" and "read by perf instead" in entry["text"]
    ]
    for entry in skipped:
        guest.sh(entry["cure"].removeprefix("sudo "))
    assert len(skipped) == 2
    guest.write(PARANOID, DEBIANS_PARANOID)
    report = guest.check(as_root=False)
    assert rapl_powers(report) == pytest.approx(WATTS, rel=0.05)
    assert all(source.startswith(POWERCAP) for source in rapl_sources(report))


@pytest.mark.parametrize(
    ("paranoid", "capability", "is_read"), [("3", "perfmon", False), ("3", "sys_admin", True), ("2", "perfmon", True)]
)
def test_the_capabilities_in_the_finding_are_sufficient(
    guest: Guest, paranoid: str, capability: str, is_read: bool
) -> None:
    """At level 3, Debian's default, CAP_PERFMON is not sufficient, but CAP_SYS_ADMIN is."""
    guest.write(PARANOID, paranoid)
    report = guest.check(prefix=nobody_with(capability))
    assert rapl_powers(report) == (pytest.approx(WATTS, rel=0.05) if is_read else {})


def nobody_with(*capabilities: str) -> Sequence[str]:
    """Return a command that runs another command as nobody with some capabilities."""
    rights = ",".join(f"+{name}" for name in capabilities)
    return [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        f"--inh-caps={rights}",
        f"--ambient-caps={rights}",
    ]


def test_the_series_of_an_unloaded_driver_end_until_it_is_loaded_again(
    guest: Guest, daemon: Callable[..., Daemon]
) -> None:
    """Open files return ENODEV, and no value is repeated. After the return, no energy is invented."""
    exporter = daemon()
    first = exporter.scrape()
    joules_until_unload = _joules(guest.sh(f"cat {TRUTH}/energy_uj; rmmod fakepower"))
    gone = exporter.scrape(has_truth=False)
    assert gone.samples(ENERGY) == {}
    assert gone.samples("joulewatch_device_power_watts") == {}
    assert gone.samples("joulewatch_sensor_up") == {"socket0": 0.0, "socket1": 0.0}
    guest.sh(f"insmod {guest.module}")
    back = exporter.scrape_until("return", lambda scrape: set(scrape.samples(ENERGY)) == set(WATTS))
    for key in WATTS:
        largest = joules_until_unload[key] - first.joules_before[key] + back.joules_after[key]
        assert 0.0 <= risen(first, back, ENERGY, key) <= largest


def test_an_event_of_a_cpu_that_went_offline_is_not_repeated(guest: Guest, daemon: Callable[..., Daemon]) -> None:
    """The kernel keeps its last count forever: one read takes the remaining energy, the next detects the stop."""
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
    exporter.scrape_until("return", lambda scrape: set(scrape.samples(ENERGY)) == set(WATTS))


# -- cgroups ---------------------------------------------------------------------------------------------------

CGROUPS = "/sys/fs/cgroup"
UNITS = {"loop.service": "while :; do :; done", "storm.service": "while :; do /bin/true; done"}


def usage_s(guest: Guest, unit: str) -> float:
    return int(guest.read(f"{CGROUPS}/{unit}/cpu.stat").split()[1]) / 1e6


def shares(scrape: Scrape) -> dict[str, float]:
    """Return joules by workload or reason."""
    names = {
        "joulewatch_workload_energy_joules_total": "workload",
        "joulewatch_unattributed_energy_joules_total": "reason",
    }
    return {
        sample.labels[names[sample.name]]: sample.value
        for family in text_string_to_metric_families(scrape.text)
        for sample in family.samples
        if sample.name in names
    }


def test_energy_is_shared_by_the_cgroups_of_the_kernel(guest: Guest, daemon: Callable[..., Daemon]) -> None:
    """A loop and a storm of processes that live for milliseconds, in cgroups of version 2 with all controllers."""
    assert {"cpu", "memory"} <= set(guest.read(f"{CGROUPS}/cgroup.controllers").split())
    exporter = daemon()
    try:
        for unit, script in UNITS.items():
            guest.sh(
                f"mkdir {CGROUPS}/{unit}\n"
                f"sh -c 'echo $$ > {CGROUPS}/{unit}/cgroup.procs; {script}' </dev/null >/dev/null 2>&1 &"
            )
        first = exporter.scrape_until("series of both units", lambda scrape: UNITS.keys() <= shares(scrape).keys())
        used_s = {unit: -usage_s(guest, unit) for unit in UNITS}
        guest.call(("sleep", 10.0))
        last = exporter.scrape()
        used_s = {unit: seconds + usage_s(guest, unit) for unit, seconds in used_s.items()}
    finally:
        for unit in UNITS:
            guest.sh(f"echo 1 > {CGROUPS}/{unit}/cgroup.kill; until rmdir {CGROUPS}/{unit}; do sleep 0.1; done")
    joules = {name: value - shares(first).get(name, 0.0) for name, value in shares(last).items()}
    print(f"cgroups: {joules} J for {used_s} s")  # noqa: T201
    assert min(used_s.values()) > 1.0
    assert sum(joules.values()) == pytest.approx(sum(risen(first, last, ENERGY, key) for key in WATTS), rel=1e-9)
    per_second = {unit: joules[unit] / used_s[unit] for unit in UNITS}
    assert per_second["storm.service"] == pytest.approx(per_second["loop.service"], rel=0.05)
    assert joules["gap"] == 0.0


# -- the CPUs' registers ---------------------------------------------------------------------------------------

MSR_ONLY = "collectors: {rapl: {door: msr}}\n"


def test_registers_that_do_not_exist_are_not_published(guest: Guest) -> None:
    """In a virtual machine, the kernel returns 0 for them without an error."""
    guest.sh("modprobe msr")
    guest.write("/run/msr.yaml", MSR_ONLY)
    report = guest.check("--config.file=/run/msr.yaml")
    assert rapl_powers(report) == {}
    text = finding(report, "absent", "/dev/cpu/0/msr")["text"]
    assert "register 0xC0010299 holds no units (typical of a virtual machine)" in text
    assert all(source.startswith(POWERCAP) for source in rapl_sources(guest.check()))


def test_registers_require_the_file_mode_and_a_capability(guest: Guest) -> None:
    """Neither the file mode nor the capability is sufficient; with both, nobody has the same result as root."""
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
            denied = finding(report, "denied", "/dev/cpu/0/msr", reason, "CAP_SYS_RAWIO")
            assert denied["cure"] == f"sudo setcap cap_sys_rawio,cap_dac_read_search=ep {python}"
        else:
            finding(report, "absent", "/dev/cpu/0/msr", "holds no units")


# -- hwmon -----------------------------------------------------------------------------------------------------


def test_the_acpi_power_meter_is_read_with_its_accuracy(guest: Guest) -> None:
    """The kernel's driver with the table of these tests: the power of the node, and the accuracy of the meter."""
    guest.sh("modprobe acpi_power_meter")
    code, output, errors = guest.exporter("--once")
    assert code == 0, errors
    scrape = Scrape(output, {}, {})
    assert scrape.samples("joulewatch_node_power_watts") == {"ACPI000D:00/power1": 313.0}
    assert scrape.samples("joulewatch_sensor_info", "accuracy")["ACPI000D:00/power1"] == "0.05"
    assert scrape.samples("joulewatch_sensor_info", "model")["ACPI000D:00/power1"] == "power_meter"


def test_an_unplugged_chip_is_down_until_it_is_plugged_in_again(guest: Guest, daemon: Callable[..., Daemon]) -> None:
    """An LTC4215 on the kernel's simulated I2C bus reports voltage times current; unplugged, it returns ENODEV."""
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
    scrape_with_chip = exporter.scrape_until(
        "reading of the chip", lambda scrape: f"{chip}/power1" in scrape.samples(power)
    )
    assert scrape_with_chip.samples(power)[f"{chip}/power1"] == 45.48875
    guest.sh(f"echo 0x44 > /sys/bus/i2c/devices/{bus}/delete_device")
    gone = exporter.scrape()
    assert f"{chip}/power1" not in gone.samples(power)
    assert gone.samples(up).get(chip, 0.0) == 0.0
    plug_in(200)
    scrape_with_chip = exporter.scrape_until("return", lambda scrape: scrape.samples(up).get(chip) == 1.0)
    assert scrape_with_chip.samples(power)[f"{chip}/power1"] == 90.9775
    guest.sh(f"echo 0x44 > /sys/bus/i2c/devices/{bus}/delete_device")


# -- the BMC ---------------------------------------------------------------------------------------------------


def test_the_bmc_is_read_in_band_through_changes_and_a_hang(
    guest: Guest, bmc: tuple[IpmiSim, int], daemon: Callable[..., Daemon]
) -> None:
    """The kernel's ipmi_si and ipmi_devintf with a KCS interface to OpenIPMI's simulator."""
    if importlib.util.find_spec("pyghmi") is None:
        pytest.skip("pyghmi is not installed: pip install 'joulewatch[ipmi]'")
    simulator, _ = bmc
    simulator.set_power(312)
    guest.sh(
        "modprobe ipmi_si; modprobe ipmi_devintf; for i in $(seq 100); do test -e /dev/ipmi0 && break; sleep 0.1; done"
    )
    denied = finding(guest.check(as_root=False), "denied", "/dev/ipmi0", "Permission denied")
    assert denied["cure"] == "sudo chmod a+rw /dev/ipmi0"
    power = "joulewatch_node_power_watts"

    def watts(scrape: Scrape) -> float | None:
        value: float | None = scrape.samples(power).get("bmc/total")
        return value

    exporter = daemon(settings="collectors: {ipmi: {enabled: true, interval_seconds: 1, deadline_seconds: 2}}\n")
    first = exporter.scrape_until("312 W", lambda scrape: watts(scrape) is not None)
    assert watts(first) == 312.0
    assert first.samples("joulewatch_sensor_info", "source")["bmc/total"] == "/dev/ipmi0 DCMI power reading"
    simulator.set_power(400)
    exporter.scrape_until("400 W", lambda scrape: watts(scrape) == 400.0)
    simulator.lose_power_reading()
    exporter.scrape_until("scrape without a DCMI value", lambda scrape: watts(scrape) is None)
    simulator.set_power(312)
    exporter.scrape_until("312 W again", lambda scrape: watts(scrape) == 312.0)
    simulator.hang()
    try:
        hung = exporter.scrape_until("scrape with a hung BMC", lambda scrape: watts(scrape) is None)
    finally:
        simulator.wake()
    assert hung.samples("joulewatch_sensor_up")["bmc"] == 0.0
    exporter.scrape_until("return of the BMC", lambda scrape: watts(scrape) == 312.0)
