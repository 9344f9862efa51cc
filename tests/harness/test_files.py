"""Files without end, such as /dev/zero, are one line and exit code 2; a full disk is one line and exit code 1."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from joulewatch_harness import files
from joulewatch_harness.cli import main
from joulewatch_harness.commands.options import read_json
from joulewatch_harness.errors import ConfigError, RecordError, StorageError
from joulewatch_harness.traces import Operator, Trace, write_trace

_WINDOWS = "time,power\n2026-11-28T10:00:00Z,5\n2026-11-28T10:00:01Z,5\n"


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits of long files, so that a test reads 1 MiB of a device."""
    monkeypatch.setattr(files, "MOST_DATA_BYTES", 1 << 20)
    monkeypatch.setattr(files, "MOST_LOG_BYTES", 1 << 20)


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("profile zero.yaml", "16"),
        ("device zero.yaml", "16"),
        ("energy --start -1h --prometheus.config zero.yaml", "16"),
        ("energy --start -1h --prometheus http://127.0.0.1:9 --source zero.yaml", "16"),
        ("profile --runtime openai --model m --option url=http://127.0.0.1:9 --option bearer_token_file=zero", "16"),
        ("profile --runtime openai --model m --option url=http://127.0.0.1:9 --option headers_file=zero", "16"),
        ("profile --runtime openai --model m --option url=http://127.0.0.1:9 --option prompt_file=zero", "16"),
        ("import zero --out a.sqlite", "1"),
        ("import zero --out a.sqlite --power power", "1"),
        ("import zero.energy.bin --out a.sqlite", "1"),
        ("import log.csv --out a.sqlite --power power --windows zero.csv", "1"),
        ("fit zero.csv --out a.json", "1"),
        ("predict small_mlp --device cpu --fit zero.json", "1"),
        ("recommend small_mlp --rate 1/s --max-latency 1 --fit zero.json", "1"),
    ],
)
def test_a_file_without_end_is_one_line(
    endless: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, limit: str
) -> None:
    monkeypatch.chdir(endless)
    (endless / "log.csv").write_text(_WINDOWS)
    for word in command.replace("=", " ").split():
        if word.startswith("zero"):
            (endless / word).unlink(missing_ok=True)
            (endless / word).symlink_to("/dev/zero")
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "zero" in captured.err
    assert captured.err.endswith(f"longer than {limit} MiB\n")


@pytest.mark.usefixtures("short_files")
def test_a_result_without_end_is_refused(endless: Path) -> None:
    (endless / "result.json").symlink_to("/dev/zero")
    with pytest.raises(RecordError, match=r"result\.json: cannot be read: longer than 1 MiB$"):
        read_json(endless / "result.json")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_a_full_disk_is_a_failure_and_other_errors_are_those_of_the_caller(code: int) -> None:
    assert type(files.write_error("full", OSError(code, "full"))) is StorageError
    assert type(files.write_error("denied", OSError(errno.EACCES, "denied"))) is ConfigError
    assert type(files.write_error("denied", OSError(errno.EACCES, "denied"), RecordError)) is RecordError
    assert (StorageError.exit_code, ConfigError.exit_code) == (1, 2)


def test_a_trace_on_a_full_disk_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "trace.json").symlink_to("/dev/full")
    operators = (Operator(name="a", op="Conv", time_ns=1, calls=1),)
    trace = Trace(runtime="r", source="s", batch_size=1, batches=1, time_ns=1, operators=operators)
    with pytest.raises(StorageError, match=r"trace\.json: No space left"):
        write_trace(trace, tmp_path / "trace.json")
