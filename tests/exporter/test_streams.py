"""Closed, full and ASCII-only streams: one line, an exit code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_exporter import streams

MODULES = {
    "joulewatch": ["joulewatch_harness", "networks"],
    "joulewatch-help": ["joulewatch_harness", "profile", "--help"],
    "joulewatch-exporter": ["joulewatch_exporter", "emulate", "--list"],
    "joulewatch-exporter-help": ["joulewatch_exporter", "--help"],
}


def shell(words: list[str], redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m "$@" {redirection}', sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("name", sorted(MODULES))
@pytest.mark.parametrize(
    ("redirection", "text"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_stdout_that_cannot_be_written_is_one_line_and_exit_code_1(name: str, redirection: str, text: str) -> None:
    done = shell(MODULES[name], redirection)
    assert done.returncode == 1
    assert done.stderr == f"{name.removesuffix('-help')}: the output cannot be written: {text}\n"


def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path: Path) -> None:
    program = (
        "from joulewatch_exporter.streams import guard; import os, sys\n"
        f"def command():\n open({str(tmp_path / 'file')!r}, 'w').close()\n os.write(1, b'x')\n return 0\n"
        "sys.exit(guard('p', command))"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "p: the output cannot be written: Bad file descriptor\n")
    assert (tmp_path / "file").read_bytes() == b""


def test_without_stderr_the_command_still_works() -> None:
    done = shell(MODULES["joulewatch"], "2>&-")
    assert done.returncode == 0
    assert "radioml" in done.stdout


def test_text_for_an_ascii_terminal_is_replaced() -> None:
    program = "from joulewatch_exporter.streams import guard\nguard('p', lambda: print('3 ± 1 µJ \u65e5') or 0)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert done.stdout == b"3 +/- 1 uJ \\u65e5\n"
    assert done.stderr == b""


def test_an_unexpected_error_of_a_file_names_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert streams.guard("p", lambda: int((tmp_path / "none").read_text())) == 1
    assert capsys.readouterr().err == f"p: {tmp_path / 'none'}: No such file or directory\n"


def test_control_characters_of_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        sys.stdout.write("n\x1b[2J\x07\x9b\u202e\x00ame héé\t5 \r\r\n")
        sys.stdout.writelines(["\x1b", "\n"])
        return 0

    assert streams.guard("p", command) == 0
    assert capsys.readouterr().out == "n\\u001b[2J\\u0007\\u009b\\u202e\\u0000ame héé\t5 \\u000d\r\n\\u001b\n"
