"""The command: flags, exit codes, signals. Tests start real daemons on free ports of loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joulewatch_exporter import __version__, cli
from joulewatch_exporter.errors import SensorDeniedError
from support.fake_family import Machine, energy_sensor, fake_family

Daemon = subprocess.Popen[bytes]
Start = Callable[..., tuple[Daemon, str]]


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    """Return flags for a machine without sensors."""
    flags = []
    for name in ("sysfs", "procfs", "dev"):
        (tmp_path / name).mkdir()
        flags += [f"--path.{name}", str(tmp_path / name)]
    return flags


def rapl_zone(sysfs: Path, joules: float = 12.5) -> Path:
    zone = sysfs / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("65532610987\n")
    (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    return zone


@pytest.fixture
def start(roots: list[str]) -> Iterator[Start]:
    """Return a function that starts a daemon and waits until it listens."""
    daemons: list[Daemon] = []

    def begin(*flags: str, stdin: int = subprocess.DEVNULL) -> tuple[Daemon, str]:
        command = [sys.executable, "-m", "joulewatch_exporter", "--web.listen-address=127.0.0.1:0", *roots, *flags]
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        daemon = subprocess.Popen(command, stdin=stdin, stderr=subprocess.PIPE, env=environment)
        daemons.append(daemon)
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if match := re.search(rb"listening on (https?://[^\s\"]+)", line):
                return daemon, match[1].decode()
        raise AssertionError(f"the daemon ended with {daemon.wait()} before it listened")

    yield begin
    for daemon in daemons:
        daemon.kill()
        daemon.wait()
        for stream in (daemon.stdin, daemon.stderr):
            if stream is not None:
                stream.close()


def get(url: str, accept: str = "text/plain") -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=5) as response:
        body: bytes = response.read()
        return body.decode()


# -- the daemon ------------------------------------------------------------------------------------


def test_the_daemon_serves_a_sensor(start: Start, tmp_path: Path) -> None:
    zone = rapl_zone(tmp_path / "sysfs")
    _, url = start()
    assert url.startswith("http://127.0.0.1:")
    text = get(url)
    assert re.search(r"^joulewatch_device_energy_joules_total\{.*device=\"socket0\".*\} 0\.0$", text, re.MULTILINE)
    assert "process_cpu_seconds_total" in text
    time.sleep(0.06)
    (zone / "energy_uj").write_text("15500000\n")
    text = get(url, "application/openmetrics-text;version=1.0.0")
    assert re.search(r"^joulewatch_device_energy_joules_total\{.*\} 3\.0$", text, re.MULTILINE)
    assert re.search(r"^joulewatch_device_power_watts\{.*\} \d", text, re.MULTILINE)
    assert text.endswith("# EOF\n")
    assert "joulewatch" in get(url.replace("/metrics", "/"))
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        get(f"{url}?collect[]=raple")
    assert b"did you mean rapl?" in caught.value.read()
    caught.value.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_daemon_in_under_a_second(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    rapl_zone(tmp_path / "sysfs")
    daemon, url = start()
    get(url)
    host, port = url.removeprefix("http://").partition("/")[0].split(":")
    with socket.create_connection((host, int(port))):
        began = time.monotonic()
        daemon.send_signal(number)
        assert daemon.wait(5) == 0
        assert time.monotonic() - began < 1.0


def test_the_daemon_ends_with_its_parent(start: Start) -> None:
    daemon, url = start("--exit-on-stdin-close", stdin=subprocess.PIPE)
    get(url)
    assert daemon.stdin is not None
    daemon.stdin.close()
    assert daemon.wait(5) == 0


def test_the_log_can_be_json(start: Start) -> None:
    daemon, _ = start("--log.format=json")
    daemon.terminate()
    assert daemon.stderr is not None
    (line,) = daemon.stderr.read().splitlines()
    assert json.loads(line)["msg"] == "ended"


def test_a_port_in_use_exits_with_2(capfd: pytest.CaptureFixture[str], roots: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main([*roots, f"--web.listen-address={address}"]) == 2
    assert f"cannot listen on {address}: Address already in use" in capfd.readouterr().err


# -- one scrape ------------------------------------------------------------------------------------


def test_once_prints_energy_and_power(capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path) -> None:
    rapl_zone(tmp_path / "sysfs")
    assert cli.main([*roots, "--once"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^joulewatch_device_energy_joules_total\{.*\} 0\.0$", out, re.MULTILINE)
    assert re.search(r"^joulewatch_device_power_watts\{.*\} 0\.0$", out, re.MULTILINE)


def test_the_name_of_the_machine_is_its_hostname_or_that_of_the_flag_or_the_file(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path
) -> None:
    """In a container the hostname is that of the container, and changes with each start."""
    rapl_zone(tmp_path / "sysfs")
    config = tmp_path / "exporter.yaml"
    config.write_text("exporter: {nodename: node7}\n")
    for flags, name in (
        ([], os.uname().nodename),
        ([f"--config.file={config}"], "node7"),
        ([f"--config.file={config}", "--nodename=node8"], "node8"),
    ):
        assert cli.main([*roots, "--once", *flags]) == 0
        out = capfd.readouterr().out
        assert set(re.findall(r'^joulewatch_sensor_info\{.*,host="([^"]*)"', out, re.MULTILINE)) == {name}
        assert re.findall(r'^joulewatch_exporter_info\{.*nodename="([^"]*)"', out, re.MULTILINE) == [name]
        cli.main([*roots, "check", "--format=json", *flags])
        report = json.loads(capfd.readouterr().out)
        assert report["nodename"] == name
        assert {reading["host"] for reading in report["readings"]} == {name}


def test_once_without_a_sensor_fails_and_prints_the_exporters_own_metrics(
    capfd: pytest.CaptureFixture[str], roots: list[str]
) -> None:
    """As ``check`` does."""
    assert cli.main([*roots, "--once", "--no-collector.estimate"]) == 1
    out, err = capfd.readouterr()
    assert "no sensor found" in err
    assert "joulewatch_exporter_info{" in out
    assert "joulewatch_device" not in out


def test_once_fails_if_no_sensor_can_be_read(capfd: pytest.CaptureFixture[str], roots: list[str]) -> None:
    error = SensorDeniedError("/sys/a: Permission denied", devices=["socket0"])
    assert cli.main([*roots, "--once"], [fake_family("rapl", Machine(error=error))]) == 1
    out, err = capfd.readouterr()
    assert "no sensor can be read; run 'joulewatch-exporter check' for the reasons" in err
    assert 'joulewatch_sensor_state{collector="rapl",device="socket0",state="denied"} 1.0' in out


def test_once_can_omit_the_exporters_own_metrics(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path
) -> None:
    rapl_zone(tmp_path / "sysfs")
    assert cli.main([*roots, "--once", "--web.disable-exporter-metrics"]) == 0
    assert "process_" not in capfd.readouterr().out


def joules_of(text: str) -> float:
    match = re.search(r"^joulewatch_device_energy_joules_total\{.*\} (\S+)$", text, re.MULTILINE)
    assert match is not None
    return float(match[1])


def test_counters_continue_from_call_to_call_with_a_state_file(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path
) -> None:
    """Through a wrap; the time of the start stays, and the textfile collector's process metrics are not repeated."""
    zone = rapl_zone(tmp_path / "sysfs", joules=65532.0)
    words = [*roots, "--once", f"--state={tmp_path / 'state.json'}"]
    texts = []
    for joules in (65532.0, 1.389013, 3.389013):
        (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        assert cli.main(words) == 0
        texts.append(capfd.readouterr().out)
    assert [joules_of(text) for text in texts] == pytest.approx([0.0, 2.0, 4.0])
    assert re.search(r"^joulewatch_sensor_wraps_total\{.*\} 1\.0$", texts[2], re.MULTILINE)
    start = r"^joulewatch_exporter_start_timestamp_seconds (\S+)$"
    assert len({re.search(start, text, re.MULTILINE)[1] for text in texts}) == 1  # type: ignore[index]
    assert "process_" not in texts[0]
    assert cli.main([*roots, "--once"]) == 0
    assert joules_of(capfd.readouterr().out) == 0.0


def test_a_device_that_is_gone_for_a_call_continues_afterwards(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path
) -> None:
    zone = rapl_zone(tmp_path / "sysfs", joules=10.0)
    words = [*roots, "--once", "--no-collector.estimate", f"--state={tmp_path / 'state.json'}"]
    assert cli.main(words) == 0
    (zone / "energy_uj").rename(tmp_path / "hidden")
    assert cli.main(words) == 1
    (zone / "energy_uj").write_text("13000000\n")
    capfd.readouterr()
    assert cli.main(words) == 0
    assert joules_of(capfd.readouterr().out) == pytest.approx(3.0)


def test_a_foreign_state_file_is_not_touched(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    machine = Machine([energy_sensor()])
    assert cli.main([*roots, "--once", f"--state={path}"], [fake_family("rapl", machine)]) == 2
    out, err = capfd.readouterr()
    assert (out, path.read_text(), machine.opened) == ("", "mine", 0)
    assert err == (
        f"joulewatch-exporter: --state {path}: not a state file of joulewatch-exporter; choose another path, or remove "
        "the file\n"
    )


def test_a_state_file_is_for_one_scrape_only(capfd: pytest.CaptureFixture[str], roots: list[str]) -> None:
    assert cli.main([*roots, "--state=x"]) == 2
    assert "--state needs --once" in capfd.readouterr().err


# -- arguments -------------------------------------------------------------------------------------


def test_version_prints_the_versions_of_the_exporter_and_python(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capfd.readouterr().out.startswith(f"joulewatch-exporter {__version__} (Python 3.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-such-flag"], "unknown flag --no-such-flag"),
        (["--collector.nope"], "unknown flag --collector.nope"),
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["--web.max-requests=many"], "invalid int value: 'many'"),
        (["emulate"], "SCENARIO and DIR are required"),
        (["emulate", "x", "y", "--duration", "0"], "must be a number > 0, got '0'"),
    ],
)
def test_bad_flags_exit_with_2(capfd: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(flags)
    assert caught.value.code == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--path.sysfs=/nope"], "--path.sysfs (exporter.path.sysfs): /nope is not a folder"),
        (["--config.file=/nope.yaml"], "/nope.yaml: cannot be read: No such file or directory"),
        (["--web.listen-address=here"], "--web.listen-address: 'here' is not a valid address"),
        (["--web.max-requests=-1"], "--web.max-requests: -1 is below 0"),
        (["--web.telemetry-path=x"], "--web.telemetry-path: 'x' must be a path"),
        (["--web.config.file=/nope.yaml", "--web.listen-address=127.0.0.1:0"], "/nope.yaml: cannot be read"),
    ],
)
def test_bad_settings_exit_with_2(capfd: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert cli.main(flags) == 2
    assert message in capfd.readouterr().err


def test_a_required_family_that_is_absent_exits_with_2(capfd: pytest.CaptureFixture[str], roots: list[str]) -> None:
    assert cli.main([*roots, "--once", "--collector.rapl"]) == 2
    assert "collector rapl is enabled but absent" in capfd.readouterr().err


def test_a_flag_overrides_the_file_and_the_file_the_default(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path
) -> None:
    machine = Machine([energy_sensor()])
    config = tmp_path / "exporter.yaml"
    config.write_text("collectors: {rapl: {enabled: false}}\n")
    families = [fake_family("rapl", machine)]
    assert cli.main([*roots, "--once", f"--config.file={config}"], families) == 1
    assert machine.opened == 0
    assert cli.main([*roots, "--once", f"--config.file={config}", "--collector.rapl"], families) == 0
    assert machine.opened == 1


def test_an_unreadable_file_is_reported_once_with_its_path_and_fix(
    capfd: pytest.CaptureFixture[str], roots: list[str]
) -> None:
    sensor = energy_sensor()
    path = "/sys/class/powercap/intel-rapl:0/energy_uj"
    sensor.error = SensorDeniedError(f"{path}: Permission denied; run: chmod a+r {path}")
    assert cli.main([*roots, "--once"], [fake_family("rapl", Machine([sensor]))]) == 0
    out, err = capfd.readouterr()
    assert err.count(f"chmod a+r {path}") == 1
    assert 'joulewatch_sensor_up{collector="rapl",device="socket0"} 0.0' in out


@pytest.mark.parametrize("order", ["before", "after"])
def test_check_accepts_the_shared_flags_before_and_after_its_name(
    capfd: pytest.CaptureFixture[str], roots: list[str], tmp_path: Path, order: str
) -> None:
    chip = tmp_path / "sysfs" / "class" / "hwmon" / "hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina226\n")
    (chip / "power1_input").write_text("12000000\n")
    words = [*roots, "check"] if order == "before" else ["check", *roots]
    assert cli.main(words) == 0
    assert "Measured quantities: 1" in capfd.readouterr().out


def test_emulate_lists_its_scenarios(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["emulate", "--list"]) == 0
    assert "epyc-7763-node" in capfd.readouterr().out.splitlines()


def test_the_help_marks_families_that_have_not_met_their_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "require nvml (experimental)" in text
    assert "require estimate" in text and "require estimate (" not in text
