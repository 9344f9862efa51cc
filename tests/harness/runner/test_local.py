"""The exporter as a child process: its start, its log, its end."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.runner.local import LocalExporter

GOOD = """
import sys
print("level=info starting", sys.argv[1:], file=sys.stderr, flush=True)
print("level=info listening on http://127.0.0.1:4711/metrics", file=sys.stderr, flush=True)
sys.stdin.read()
print("level=info ends", file=sys.stderr, flush=True)
"""
BAD = "import sys; print('error: no sensor: try --collector.estimate', file=sys.stderr); sys.exit(2)"
MUTE = "import sys; sys.stdin.read()"


def local(folder: Path, script: str, *flags: str, timeout_s: float = 10.0) -> LocalExporter:
    return LocalExporter(folder, flags, timeout_s=timeout_s, command=(sys.executable, "-S", "-c", script))


def test_the_url_is_read_from_its_output_and_the_log_is_stored(tmp_path: Path) -> None:
    with local(tmp_path, GOOD, "--path.sysfs=/x") as exporter:
        assert exporter.url == "http://127.0.0.1:4711/metrics"
        assert exporter.pid
    assert exporter.pid is None
    exporter.stop()
    log = (tmp_path / "exporter.log").read_text()
    flags = (
        r"'--web\.listen-address=127\.0\.0\.1:0', '--exit-on-stdin-close', "
        r"'--web\.edge-socket=(\S+)', '--path\.sysfs=/x'"
    )
    match = re.search(flags, log)
    assert match is not None
    assert not Path(match[1]).parent.exists()  # removed with the exporter
    assert "listening on" in log


def test_the_error_quotes_an_exporter_that_ends_during_its_start(tmp_path: Path) -> None:
    text = r"the local exporter ended during its start: error: no sensor: try --collector\.estimate"
    with pytest.raises(ExporterUnreachableError, match=text):
        local(tmp_path, BAD).start()
    assert "no sensor" in (tmp_path / "exporter.log").read_text()


def test_an_exporter_that_does_not_listen_in_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExporterUnreachableError, match=r"did not listen within 0\.01 s; it printed nothing"):
        local(tmp_path, MUTE, timeout_s=0.01).start()


def test_a_log_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExporterUnreachableError, match=r"exporter\.log: cannot be written to"):
        local(tmp_path / "none", GOOD).start()


def test_a_full_disk_costs_the_log_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "exporter.log").symlink_to("/dev/full")
    talkative = GOOD.replace("sys.stdin.read()", "print('x' * 300_000, file=sys.stderr, flush=True)\nsys.stdin.read()")
    with local(tmp_path, talkative) as exporter:
        assert exporter.url == "http://127.0.0.1:4711/metrics"
