"""The exporter as a child: found listening, its words kept, its end told."""

from __future__ import annotations

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


def test_it_is_found_listening_and_its_log_is_kept(tmp_path: Path) -> None:
    with local(tmp_path, GOOD, "--path.sysfs=/x") as exporter:
        assert exporter.url == "http://127.0.0.1:4711/metrics"
        assert exporter.pid
    assert exporter.pid is None
    exporter.stop()
    log = (tmp_path / "exporter.log").read_text()
    assert "'--web.listen-address=127.0.0.1:0', '--exit-on-stdin-close', '--path.sysfs=/x'" in log
    assert "listening on" in log


def test_one_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ExporterUnreachableError, match=r"ended at once: error: no sensor: try --collector\.estimate"):
        local(tmp_path, BAD).start()
    assert "no sensor" in (tmp_path / "exporter.log").read_text()


def test_one_that_never_listens_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ExporterUnreachableError, match=r"does not listen after 0\.01 s: it said nothing"):
        local(tmp_path, MUTE, timeout_s=0.01).start()


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExporterUnreachableError, match=r"exporter\.log: cannot be written to"):
        local(tmp_path / "none", GOOD).start()
