"""Names of workloads come from files: no system call of the network is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.cgroups import FakeTree
from support.require import require_program

pytestmark = pytest.mark.integration

ID = "f94ab0b4a59a1c7d9e0d2a8b6c5f4e3d2c1b0a9f8e7d6c5b4a39281706f5e4d3"
KEYS = (
    "system.slice/nginx.service",
    "user.slice/user-1000.slice/session-3.scope",
    "kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice",
    f"system.slice/docker-{ID}.scope",
    f"machine.slice/libpod-{ID}.scope",
    "system.slice/slurmstepd.scope/s5K1KKYAYG5D00",
)
PROGRAM = """
import sys
from pathlib import Path
from joulewatch_exporter.attribution.cgroups import CgroupsOptions, CgroupsSource
from joulewatch_exporter.model import Host
root = Path(sys.argv[1])
options = CgroupsOptions(workload_names="plain", depth="container")
source = CgroupsSource.open(Host(sysfs=root / "sys", procfs=root / "proc"), options)
for usage in source.survey().usages[""]:
    print(source.workload(usage.key).workload if usage.key else "machine")
source.findings
"""


def test_names_need_no_network(tmp_path: Path) -> None:
    strace = require_program("strace", "strace")
    machine = FakeTree(tmp_path)
    for key in KEYS:
        machine.use(key, 1)
    machine.write("etc/passwd", "anna:x:1000:1000::/home/anna:/bin/sh\n")
    trace = tmp_path / "trace"
    command = [strace, "-f", "-qq", "-e", "trace=%network,execve", "-o", str(trace), sys.executable, "-c", PROGRAM]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert {"nginx.service", "session-3.scope", ID[:12], "s5K1KKYAYG5D00", "machine"} <= set(done.stdout.split())
    calls = [line for line in trace.read_text().splitlines() if "exited" not in line]
    assert len(calls) == 1, calls
    assert "execve(" in calls[0]
