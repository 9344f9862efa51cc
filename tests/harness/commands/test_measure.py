"""``joulewatch measure``: the command's exit code and output pass through, and its energy is shown."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from joulewatch_harness import cli
from joulewatch_harness.metering.child import Child
from joulewatch_harness.storage.journal import list_runs
from support.counting_exporter import Counter, CountingExporter
from support.servers import free_port

WORK = "import time; end = time.perf_counter() + 0.02\nwhile time.perf_counter() < end: pass"


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingExporter]:
    """An exporter that the environment names; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    with CountingExporter() as server:
        monkeypatch.setenv("JOULEWATCH_EXPORTER", server.url)
        yield server


def measure(*words: str) -> int:
    return cli.main(["measure", *words])


def test_the_result_is_on_stderr_and_stdout_is_the_commands(
    exporter: CountingExporter, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measure("--", sys.executable, "-S", "-c", f"{WORK}\nprint('mine')") == 0
    out, err = capfd.readouterr()
    assert out == "mine\n"
    for text in ("Energy of", "cpu", "total", " W\n", "s elapsed", "s user", "exit code 0", "covers sampling"):
        assert text in err
    (run,) = list_runs(Path("runs")).values()
    (window,) = run.windows
    assert (window.configuration, window.details["exit_code"]) == (Path(sys.executable).name, "0")
    assert float(window.details["user_seconds"]) > 0
    assert run.configurations[0].runtime == "command"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["false"], 1),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/does/not/exist"], 127),
        (["does-not-exist"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
    ids=["1", "42", "signal", "no path", "no program", "no permission", "folder"],
)
def test_exit_codes(exporter: CountingExporter, command: list[str], code: int) -> None:
    assert measure("--", *command) == code


def test_own_failures_have_code_125(
    exporter: CountingExporter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, text in (
        ([], "no command"),
        (["-r", "0", "--", "true"], "--repeat 0"),
        (["--inferences", "0", "--", "true"], "inferences is 0"),
        (["--out", "no/such/file", "--", "true"], "--out"),
        (["--exporter", f"http://127.0.0.1:{free_port()}", "--", "true"], "is joulewatch-exporter running there"),
        (["--exporter", "ftp://x", "--", "true"], "not a valid URL"),
        (["--exporter", "my node", "--", "true"], "not a valid URL"),
    ):
        assert measure(*words) == 125
        assert text in capsys.readouterr().err
    for flag, text in (("--repat", "did you mean --repeat"), ("--interval", "must be a number >= 0.01")):
        with pytest.raises(SystemExit) as ended:
            measure(flag, "0", "--", "true")
        assert ended.value.code == 125
        assert text in capsys.readouterr().err
    exporter.counters.clear()
    assert measure("--", "true") == 125
    assert "measures no energy" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "joulewatch_harness.metering.report", None)
    assert measure("--", "true") == 125
    assert "pip install 'joulewatch[analysis]'" in capsys.readouterr().err


def test_the_dashes_may_be_omitted_and_the_commands_flags_are_its_own(
    exporter: CountingExporter, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measure("sh", "-c", 'echo "$0" "$@"', "--repeat", "--", "-r") == 0
    assert capfd.readouterr().out == "--repeat -- -r\n"


def test_repeats_have_a_mean_in_json(exporter: CountingExporter, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-r", "3", "--name", "loop", "--inferences", "5", "--out", "out.json", "--format", "json"]
    assert measure(*words, "--", sys.executable, "-S", "-c", WORK) == 0
    assert capfd.readouterr() == ("", "")
    document = json.loads(Path("out.json").read_text())
    assert [window["details"]["exit_code"] for window in document["windows"]] == ["0"] * 3
    joules = [window["energy"]["joules"] for window in document["windows"]]
    assert document["mean"]["repeats"] == 3
    assert document["mean"]["joules_per_inference"] == pytest.approx(sum(joules) / 15)
    assert document["mean"]["covers"] == ["sampling", "repeats"]
    for window in document["windows"]:
        (energy,) = window["per_device"].values()
        assert energy["joules"] == pytest.approx(100 * window["seconds"], abs=energy["uncertainty_joules"])


def test_repeats_for_people(exporter: CountingExporter, capfd: pytest.CaptureFixture[str]) -> None:
    exporter.counters.append(Counter(component="node", device="psu", domain="input", scope="node", watts=200))
    assert measure("-r", "2", "--inferences", "4", "--", sys.executable, "-S", "-c", WORK) == 0
    err = " ".join(capfd.readouterr().err.split())
    assert "mean of 2 of 2 executions" in err
    assert "per inference" in err
    assert "node/psu/input" in err
    assert "covers sampling, repeats" in err


def test_a_window_without_a_number_says_why(exporter: CountingExporter, capfd: pytest.CaptureFixture[str]) -> None:
    exporter.counters[0].refresh_s = 60.0
    assert measure("--", "true") == 0
    err = capfd.readouterr().err
    assert "no number [below_refresh]" in err
    assert "60 s" in err
    assert "between two updates" in " ".join(err.split())
    assert measure("-r", "2", "--", "true") == 0
    err = capfd.readouterr().err
    assert err.count("no number [below_refresh]") == 2
    assert "no number\n" not in err


def test_the_power_is_shown_while_the_command_runs(
    exporter: CountingExporter, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measure("--interval", "0.05", "--", sys.executable, "-S", "-c", WORK.replace("0.02", "0.4")) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "(cpu " in line]
    assert lines
    assert all("100.0 W  (cpu 100.0 W)" in line for line in lines)


def test_a_file_that_cannot_be_written(exporter: CountingExporter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert measure("--output", str(tmp_path / "file"), "--", "true") == 125
    assert measure("--out", str(tmp_path), "--", "true") == 125


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1], ids=lambda one: one.name
)
def test_signals_are_forwarded(exporter: CountingExporter, tmp_path: Path, number: signal.Signals) -> None:
    """The command decides what it does with a signal; a further repeat is not started."""
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(7))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-m", "joulewatch_harness", "measure", "-r", "2", "--", sys.executable, "-c", program]
    # Its own session has no terminal, whose signals all processes get.
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        (tmp_path / "ready").unlink()
        process.send_signal(number)
        if number == signal.SIGUSR1:  # does not end the repeats
            while not (tmp_path / "ready").exists():
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
        assert process.wait(60) == 7
    finally:
        process.kill()
        process.wait()
    (run,) = list_runs(tmp_path / "runs").values()
    expected = [()] * 2 if number == signal.SIGUSR1 else [("interrupted",)]
    assert [window.flags for window in run.windows] == expected


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Child().signals_forwarded():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_resources_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until ``exec``, Linux counts the size of the parent as the child's: a smaller peak is not known."""
    for parent_kb, is_known in ((0, True), (10**9, False)):
        monkeypatch.setattr(resource, "getrusage", lambda _, kb=parent_kb: SimpleNamespace(ru_maxrss=kb))
        outcome = Child().run([sys.executable, "-S", "-c", WORK])
        assert outcome.exit_code == 0
        assert outcome.user_s + outcome.system_s > 0.0
        assert (outcome.peak_memory_bytes is not None) == is_known
        assert ("peak_memory_bytes" in outcome.details()) == is_known


@pytest.mark.parametrize(("redirection", "code"), [("2>&-", 1), ("2>/dev/full", 125)], ids=["closed", "full"])
def test_a_stderr_that_cannot_be_written(exporter: CountingExporter, redirection: str, code: int) -> None:
    command = f'exec "$0" -m joulewatch_harness measure -- false {redirection}'
    assert subprocess.run(["sh", "-c", command, sys.executable], check=False).returncode == code
