"""``check``: a line for each family, a fix for each problem, and an exit code that shows if anything is measured."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base.sysfs import read_int
from joulewatch_exporter.commands import check
from joulewatch_exporter.config.calibration import NO_CALIBRATIONS, Calibrations, load_calibrations
from joulewatch_exporter.config.config import Config, FamilySettings
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Collector, Finding, Host, Reading
from support.calibrations import calibration_entry, calibration_file, ratio_entry, ratio_file
from support.fake_family import FakeSensor, Machine, energy_sensor, fake_family, info, power_sensor

PATH = "/sys/class/powercap/intel-rapl:0/energy_uj"


def examine(
    tmp_path: Path,
    *families: type[Collector],
    settings: dict[str, FamilySettings] | None = None,
    primary: dict[str, str] | None = None,
    calibrations: Calibrations = NO_CALIBRATIONS,
) -> check.Report:
    host = Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path)
    return check.examine(
        families,
        host,
        settings or {},
        primary=primary,
        calibrations=calibrations,
        reading_s=0.0,
        counting_s=0.1,
    )


class CountingSensor(FakeSensor):
    """An energy counter that rises with every read."""

    def read(self) -> Sequence[Reading]:
        self.energies_joules = [(joules or 0.0) + 0.1 for joules in self.energies_joules]
        return super().read()


def counting_sensor(device: str = "socket0") -> FakeSensor:
    return CountingSensor((info(device),), energies_joules=[100.0])


def test_what_is_found_is_read(tmp_path: Path) -> None:
    machine = Machine([power_sensor(watts=42.0)])
    report = examine(tmp_path, fake_family("hwmon", machine))
    assert report.measured == 1
    assert [(reading.device, reading.power_watts) for reading in report.readings] == [("board", 42.0)]
    assert machine.closed == 1
    text = check.render(report)
    assert "found    hwmon     fake:board/total" in text
    assert "42.00 W" in text
    assert "Measured quantities: 1; estimated: 0." in text


def test_absent_denied_broken_and_skipped(tmp_path: Path) -> None:
    denied = Machine(error=SensorDeniedError(f"{PATH}: Permission denied; run `chmod a+r {PATH}`"))
    report = examine(
        tmp_path,
        fake_family("rapl", denied),
        fake_family("hwmon", Machine()),
        fake_family("nvml", Machine(error=RuntimeError("library is broken"))),
        fake_family("xrt", Machine([energy_sensor()])),
        settings={"xrt": FamilySettings(enabled=False)},
    )
    assert [finding.status for finding in report.findings] == ["denied", "absent", "broken", "skipped"]
    assert report.findings[0].subject == PATH
    text = check.render(report)
    assert f"chmod a+r {PATH}" in text
    assert "library is broken" in text
    assert "fix: --collector.xrt" in text
    assert "No power sensor of this machine can be read." in text
    assert "apply the fixes above" in text


def test_findings_of_a_family_are_shown_with_their_fixes(tmp_path: Path) -> None:
    findings = [
        Finding(status="found", collector="rapl", subject="/sys/a", text="package-0"),
        Finding(status="denied", collector="rapl", subject="/sys/b", text="Permission denied", cure="chmod a+r /sys/b"),
    ]
    text = check.render(examine(tmp_path, fake_family("rapl", Machine([energy_sensor()], findings=findings))))
    assert "denied   rapl      /sys/b" in text
    assert "fix: chmod a+r /sys/b" in text


def test_an_estimate_is_not_a_measurement(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu hypervisor lm\n")
    family = fake_family("estimate", Machine([energy_sensor(method="estimated")]))
    report = examine(tmp_path, family)
    assert (report.measured, report.estimated, report.virtual_machine) == (0, 1, True)
    text = check.render(report)
    assert "virtual machines have no RAPL" in " ".join(text.split())
    assert check.check([family], Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path), Config(), as_json=False) == 1


def test_a_sensor_that_cannot_be_read_is_not_measured(tmp_path: Path) -> None:
    sensor = energy_sensor()
    sensor.error = SensorGlitchError("EIO")
    report = examine(tmp_path, fake_family("rapl", Machine([sensor])))
    assert report.measured == 0
    assert report.readings[0].error == "glitch"
    assert "glitch" in check.render(report)


def test_a_counter_that_does_not_count_is_not_measured(tmp_path: Path) -> None:
    """By the definition of a frozen sensor; a BMC's counter may stay the same for minutes, and a core may be off."""
    dead = energy_sensor("socket1")
    core = energy_sensor("socket0", domain="core", scope="part")
    families = [
        fake_family("rapl", Machine([counting_sensor(), dead, core])),
        fake_family("redfish", Machine([energy_sensor("bmc", scope="node", component="node", wrap_joules=None)])),
    ]
    report = examine(tmp_path, *families)
    assert [reading.error for reading in report.readings] == ["", "does not count", "", ""]
    assert [reading.power_watts is None for reading in report.readings] == [False, True, True, True]
    assert report.measured == 3
    (finding,) = [finding for finding in report.findings if finding.status == "broken"]
    assert finding.subject == "fake:socket1/package"
    assert finding.text.startswith("socket1 package: does not count: the same value for 0.1 s")
    assert [sensor.reads for sensor in (dead, core)] == [3, 3]
    text = check.render(report)
    assert "0.00 W" not in text
    assert "no value yet" in text


def test_a_counter_of_a_virtual_machine_has_more_time(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu hypervisor lm\n")
    report = examine(tmp_path, fake_family("rapl", Machine([energy_sensor()])))
    assert "the same value for 0.3 s" in report.findings[-1].text


def test_the_power_that_a_driver_reports_is_shown_although_its_counter_stands_still(tmp_path: Path) -> None:
    sensor = energy_sensor("board", domain="SYS", scope="part", component="other")
    sensor.powers_watts = [5.0]
    report = examine(tmp_path, fake_family("hwmon", Machine([sensor])))
    assert [(reading.power_watts, reading.error) for reading in report.readings] == [(5.0, "")]


def test_a_machine_whose_counters_all_stand_still_is_not_measured(tmp_path: Path) -> None:
    """Also if a virtual machine shows constants of the cores, which could be off on another machine."""
    core = energy_sensor(domain="core", scope="part")
    family = fake_family("rapl", Machine([energy_sensor(), core]))
    report = examine(tmp_path, family)
    assert [reading.error for reading in report.readings] == ["does not count"] * 2
    assert [finding.subject for finding in report.findings if finding.status == "broken"] == ["fake:socket0/package"]
    assert examine(tmp_path, family).measured == 0
    assert examine(tmp_path, fake_family("rapl", Machine([counting_sensor()]))).measured == 1


def test_a_device_that_is_asleep_is_listed_and_needs_no_fix(tmp_path: Path) -> None:
    sensor = power_sensor("gpu")
    sensor.error = SensorAsleepError("/sys/gpu/power/runtime_status: suspended")
    family = fake_family("hwmon", Machine([sensor]))
    report = examine(tmp_path, family)
    assert (report.measured, report.asleep, report.readings[0].error) == (0, 1, "asleep")
    assert "Measured quantities: 0; estimated: 0. Quantities of devices that are asleep: 1" in check.render(
        report, width=120
    )
    assert check.check([family], Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path), Config(), as_json=False) == 0


def test_a_family_whose_devices_have_not_answered_is_listed(tmp_path: Path) -> None:
    """The deadline of a BMC is longer than the check."""
    machine = Machine([power_sensor()])
    family = fake_family("redfish", machine)
    machine.sensors.clear()
    silent = type("Silent", (family,), {"open": classmethod(lambda cls, host, options: cls())})
    (finding,) = examine(tmp_path, silent).findings
    assert (finding.status, finding.text) == (
        "broken",
        "no device has answered within 10 s; the exporter waits longer",
    )
    machine.findings.append(Finding(status="denied", collector="redfish", subject="https://x", text="node17: HTTP 401"))
    assert [finding.status for finding in examine(tmp_path, silent).findings] == ["denied"]


def test_a_device_that_fails_while_others_are_read_is_listed(tmp_path: Path) -> None:
    machine = Machine()
    late = Finding(status="broken", collector="redfish", subject="https://x", text="node17: no answer within 10 s")

    class Late(FakeSensor):
        def read(self) -> Sequence[Reading]:
            machine.findings[:] = [late]
            return super().read()

    machine.sensors = [Late((info(),), energies_joules=[1.0])]
    assert [finding for finding in examine(tmp_path, fake_family("redfish", machine)).findings if finding == late]


def test_the_table_fits_80_columns(tmp_path: Path) -> None:
    words = "a sentence that goes on and on about what was found and what was not " * 5
    finding = Finding(status="found", collector="hwmon", subject="/sys/x", text=words)
    family = fake_family("hwmon", Machine([power_sensor()], findings=[finding]))
    assert all(len(line) <= 80 for line in check.render(examine(tmp_path, family)).splitlines()[2:])


def meters() -> tuple[type[Collector], type[Collector]]:
    """Two meters of the whole server; the first is primary by the rules."""
    return (
        fake_family("hwmon", Machine([power_sensor("acpi", 410.0, scope="node", component="node")])),
        fake_family("ipmi", Machine([power_sensor("bmc", 420.0, scope="node", component="node")])),
    )


@pytest.mark.parametrize(("named", "primary"), [({}, "hwmon"), ({os.uname().nodename: "ipmi"}, "ipmi")])
def test_the_primary_node_sensor_is_marked(tmp_path: Path, named: dict[str, str], primary: str) -> None:
    report = examine(tmp_path, *meters(), primary=named)
    assert [reading.collector for reading in report.readings if reading.primary] == [primary]
    assert {reading.host for reading in report.readings} == {os.uname().nodename}
    (row,) = (line for line in check.render(report).splitlines() if "node (primary)" in line)
    assert row.startswith(primary)
    assert not [finding for finding in report.findings if "primary" in finding.subject]


def test_a_named_collector_without_a_node_sensor_is_reported(tmp_path: Path) -> None:
    report = examine(tmp_path, *meters(), primary={"*": "redfish"})
    assert [reading.collector for reading in report.readings if reading.primary] == ["hwmon"]
    assert report.findings[-1].status == "absent"
    text = " ".join(check.render(report).split())
    assert "exporter.primary_node_sensor.* redfish has no node sensor of this host" in text


def test_calibrations_are_listed_with_their_sensors(tmp_path: Path) -> None:
    """Calibrated, exchanged, gone; a calibration of another machine is not listed."""
    nodename = os.uname().nodename
    sensors = [
        {"host": nodename, "device": "acpi"},
        {"host": nodename, "device": "bmc", "collector": "ipmi", "model": "old"},
        {"host": nodename, "device": "gone"},
        {"host": "another", "device": "acpi"},
    ]
    paths = [
        calibration_file(tmp_path, *(calibration_entry(sensor=sensor) for sensor in sensors)),
        ratio_file(tmp_path, ratio_entry(host=nodename), ratio_entry(host="another")),
    ]
    report = examine(tmp_path, *meters(), calibrations=load_calibrations(paths, nodename))
    calibrated = "2026-11-28T10:00:00+00:00, WT310: gain 1.04, offset +6 W"
    shown = [(finding.status, finding.text) for finding in report.findings if "calibrat" in finding.text]
    assert [finding.text for finding in report.findings if finding.subject == "workload_ratios"] == [
        "cpu: workloads differ by a factor of up to 1.6 per processor second, 2026-11-28T11:00:00+00:00"
    ]
    assert shown == [
        ("found", f"acpi total: calibrated: {calibrated}"),
        (
            "broken",
            "ipmi bmc total: not calibrated: the calibration of 2026-11-28T10:00:00+00:00 is of the model 'old', "
            "not ''; calibrate this one",
        ),
        ("absent", f"no such sensor; calibrated: {calibrated}"),
    ]


def test_an_experimental_family_is_marked(tmp_path: Path) -> None:
    nvml, ipmi = fake_family("nvml", Machine([power_sensor()])), fake_family("ipmi", Machine())
    for family in (nvml, ipmi):
        family.experimental = "has not been run on its hardware"  # type: ignore[attr-defined]
    report = examine(tmp_path, nvml, ipmi, fake_family("hwmon", Machine([power_sensor("rail")])))
    assert report.experimental == {"nvml": "has not been run on its hardware"}
    assert "\nnote     nvml      experimental: has not been run on its hardware\n" in check.render(report)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = fake_family("hwmon", Machine([power_sensor()]))
    assert check.check([family], Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path), Config(), as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["measured"] == 1
    assert data["readings"][0]["power_watts"] == 50.0
    assert data["findings"][0]["status"] == "found"


def test_the_estimate_is_skipped_next_to_a_cpu_sensor(tmp_path: Path) -> None:
    """As in the daemon, unless it is enabled explicitly."""
    families = [
        fake_family("rapl", Machine([counting_sensor()])),
        fake_family("estimate", Machine([energy_sensor(method="estimated")])),
    ]
    assert [finding.status for finding in examine(tmp_path, *families).findings] == ["found", "skipped"]
    asked_for = {"estimate": FamilySettings(enabled=True)}
    assert examine(tmp_path, *families, settings=asked_for).estimated == 1


def test_a_family_that_hangs_is_reported_and_the_others_are_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "ANSWER_S", 0.1)
    hung = power_sensor("card")
    hung.hang = threading.Event()
    opening = fake_family("ipmi", Machine([power_sensor()]))
    release = threading.Event()

    def never(host: Host, options: object) -> Collector:
        release.wait(5.0)
        raise SensorAbsentError("too late")

    monkeypatch.setattr(opening, "open", never)
    try:
        report = examine(
            tmp_path, opening, fake_family("fpga", Machine([hung])), fake_family("rapl", Machine([power_sensor("b")]))
        )
    finally:
        hung.hang.set()
        release.set()
    assert [(finding.status, finding.collector) for finding in report.findings][:1] == [("broken", "ipmi")]
    assert "no answer within 0.1 s" in report.findings[0].text
    assert [(reading.device, reading.error) for reading in report.readings] == [("card", "timeout"), ("b", "")]


def test_the_file_whose_read_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ANSWER_S", 0.1)
    file = tmp_path / "energy_uj"
    hanging = Writer(tmp_path).put_hanging(str(file))
    opening = fake_family("rapl", Machine([power_sensor()]))
    monkeypatch.setattr(opening, "open", lambda host, options: read_int(str(file)))
    report = examine(tmp_path, opening)
    file.unlink()
    hanging.release()
    hanging.close()
    assert (report.findings[0].status, report.findings[0].subject) == ("broken", str(file))
    assert report.findings[0].text == "no answer within 0.1 s: the read of this file hangs"


def test_files_that_a_family_names_as_hanging_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = fake_family("hwmon", Machine([power_sensor()]))

    def open_(host: Host, options: object) -> Collector:
        raise SensorTimeoutError(f"{PATH}: the read hangs")

    monkeypatch.setattr(opening, "open", open_)
    finding = examine(tmp_path, opening).findings[0]
    assert (finding.status, finding.subject, finding.text) == ("broken", PATH, "the read hangs")


def test_devices_read_in_the_background_are_waited_for(tmp_path: Path) -> None:
    machine = Machine([power_sensor("bmc1")])
    examine(tmp_path, fake_family("ipmi", machine))
    assert machine.settled == 1


def test_a_family_gets_the_sources_that_earlier_families_read(tmp_path: Path) -> None:
    """As in the daemon; otherwise ``check`` would list series that the daemon does not publish."""
    machine = Machine([power_sensor()])
    examine(tmp_path, fake_family("fpga", Machine([power_sensor("card")])), fake_family("hwmon", machine))
    assert machine.hosts[0].claimed == {"fake:card/total"}


def test_an_invalid_configuration_is_an_error_not_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"targets\.yaml"):
        examine(tmp_path, fake_family("ipmi", Machine(error=ConfigError("targets.yaml: unknown key adress"))))
