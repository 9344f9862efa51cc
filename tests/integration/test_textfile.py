"""Debian's node_exporter shows the energy that deploy/textfile writes, and continues it from call to call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from support.paths import ROOT
from support.require import require_program
from support.servers import Server, free_port

SCRIPT = ROOT / "deploy" / "textfile" / "joulewatch-textfile"


@pytest.fixture
def node_exporter(tmp_path: Path, servers: list[Server]) -> Callable[[], str]:
    """Start node_exporter with its textfile collector; return a function that scrapes it."""
    program = require_program("prometheus-node-exporter", "prometheus-node-exporter")
    (tmp_path / "textfiles").mkdir()
    address = f"127.0.0.1:{free_port()}"
    flags = ["--collector.disable-defaults", "--collector.textfile"]
    flags += [f"--collector.textfile.directory={tmp_path / 'textfiles'}", f"--web.listen-address={address}"]
    server = Server([program, *flags], tmp_path, f"http://{address}/")
    servers.append(server)
    server.start()

    def scrape() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    return scrape


def call(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "exporter").write_text(f'#!/bin/sh\nexec {sys.executable} -m joulewatch_exporter "$@"\n')
    (tmp_path / "exporter").chmod(0o755)
    environment = {
        **os.environ,
        "TEXTFILE_DIRECTORY": str(tmp_path / "textfiles"),
        "STATE_DIRECTORY": str(tmp_path),
        "JOULEWATCH_EXPORTER": str(tmp_path / "exporter"),
    }
    flags = [f"--path.sysfs={tmp_path / 'sys'}", f"--path.procfs={tmp_path}", f"--path.dev={tmp_path}"]
    return subprocess.run([SCRIPT, *flags], env=environment, capture_output=True, text=True, timeout=60)


def test_node_exporter_shows_a_counter_that_continues(tmp_path: Path, node_exporter: Callable[[], str]) -> None:
    zone = tmp_path / "sys" / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("65532610987\n")
    shown = []
    for joules in (65530.0, 2.389013, 7.389013):
        (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        done = call(tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        text = node_exporter()
        assert re.search(r"^node_textfile_scrape_error 0$", text, re.MULTILINE), text
        match = re.search(r'^joulewatch_device_energy_joules_total\{.*device="socket0".*\} (\S+)$', text, re.MULTILINE)
        assert match is not None
        shown.append(float(match[1]))
    assert shown == pytest.approx([0.0, 5.0, 10.0])
    assert len(re.findall(r"^process_resident_memory_bytes ", text, re.MULTILINE)) == 1, "node_exporter's own"
    (zone / "energy_uj").unlink()
    done = call(tmp_path)
    assert done.returncode == 1
    assert "no sensor found" in done.stderr
    assert "joulewatch_device_energy" not in node_exporter(), "old values are not repeated"
    assert [path.name for path in (tmp_path / "textfiles").iterdir()] == []


def test_calls_at_the_same_time_lose_no_energy(tmp_path: Path, node_exporter: Callable[[], str]) -> None:
    zone = tmp_path / "sys" / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("1000000\n")
    assert call(tmp_path).returncode == 0
    (zone / "energy_uj").write_text("4000000\n")
    command = [sys.executable, "-m", "joulewatch_exporter", "--once", f"--state={tmp_path / 'state.json'}"]
    command += [f"--path.sysfs={tmp_path / 'sys'}", f"--path.procfs={tmp_path}", f"--path.dev={tmp_path}"]
    calls = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    texts = [process.communicate(timeout=60)[0] for process in calls]
    assert [process.returncode for process in calls] == [0, 0, 0]
    assert all(re.search(r"^joulewatch_device_energy_joules_total\{.*\} 3\.0$", text, re.MULTILINE) for text in texts)
