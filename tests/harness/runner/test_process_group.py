"""How the processes of a configuration are counted: delegated cgroup, scope of systemd, process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness.runner import process_group
from joulewatch_harness.runner.process_group import ProcessGroup, cgroup_of, user_manager_answers
from joulewatch_harness.runner.processor_time import EXPORTERS, ProcessorClock, used_between
from support.paths import ROOT

# A child that ends, and one that detaches itself: 0.1 s of processor time each.
BURN = "import time\nwhile time.process_time() < 0.1: pass"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-S", "-c", {BURN!r}])
subprocess.run([sys.executable, "-S", "-c", "import os\\nif os.fork(): os._exit(0)\\nos.setsid()\\n" + {BURN!r}])
print("done", flush=True)
input()
"""
MOUNTS = "25 20 0:22 / /sys rw - sysfs sysfs rw\n30 25 0:26 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw\n"


def own_cgroup_is_writable() -> bool:
    own = cgroup_of(os.getpid())
    if own is None or not os.access(own / "cgroup.procs", os.W_OK):
        return False
    try:
        (own / f"probe-{os.getpid()}").mkdir()
        (own / f"probe-{os.getpid()}").rmdir()
    except OSError:
        return False
    return True


needs_cgroup = pytest.mark.skipif(not own_cgroup_is_writable(), reason="this user may not create cgroups here")


@pytest.fixture
def no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "user_manager_answers", lambda: False)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(group: ProcessGroup, started: list[subprocess.Popen[bytes]], code: str = PARENT) -> subprocess.Popen[bytes]:
    """Start a program in a group, and wait until it has printed a line."""
    command = (*group.command_prefix(), sys.executable, "-S", "-c", code)
    started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    group.add(started[-1].pid)
    assert started[-1].stdout is not None
    started[-1].stdout.readline()
    group.started()
    return started[-1]


def wait_for(condition: object, limit_s: float = 10.0) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@needs_cgroup
def test_a_delegated_cgroup_counts_children_that_ended_and_that_detached(
    started: list[subprocess.Popen[bytes]],
) -> None:
    group = ProcessGroup()
    process = start(group, started)
    assert group.kind == "delegated" and group.path.rpartition("/")[2].startswith("joulewatch-")
    folder = cgroup_of(process.pid)
    assert folder is not None and folder.name == group.path.rpartition("/")[2]
    wait_for(lambda: (group.time_s() or 0.0) >= 0.2)
    process.communicate(b"\n")
    group.remove()
    assert not folder.exists() and group.path == ""
    group.remove()


@needs_cgroup
def test_a_child_that_survives_its_parent_is_ended_with_the_cgroup(started: list[subprocess.Popen[bytes]]) -> None:
    group = ProcessGroup()
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], stdout=-3); print(p.pid, flush=True)"
    process = start(group, started, f"{code}\ninput()")
    folder = cgroup_of(process.pid)
    assert folder is not None
    pids = (folder / "cgroup.procs").read_text().split()
    assert len(pids) == 2
    process.communicate(b"\n")
    group.remove()
    assert not folder.exists()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() and cgroup_of(int(pid)) == folder for pid in pids))


@needs_cgroup
def test_the_cgroup_is_removed_after_a_kill_of_the_harness() -> None:
    """The worker ends with the harness, and the shell that waits for that removes the cgroup."""
    code = (
        "import sys, time\n"
        "from joulewatch_harness.records import Configuration\n"
        "from joulewatch_harness.runner.isolate import IsolatedNetwork\n"
        "made = Configuration(name='a', network=sys.argv[1], runtime='python', precision='native')\n"
        "network = IsolatedNetwork(made)\n"
        "network.open()\n"
        "print(network.pid, network.describe()['counted_by'], flush=True)\n"
        "time.sleep(60)\n"
    )
    network = f"{ROOT / 'tests' / 'support' / 'idle_network.py'}:Idle"
    harness = subprocess.Popen([sys.executable, "-c", code, network], stdout=subprocess.PIPE, text=True)
    assert harness.stdout is not None
    pid, kind = harness.stdout.readline().split()
    folder = cgroup_of(int(pid))
    assert kind == "delegated" and folder is not None and folder.exists()
    harness.send_signal(signal.SIGKILL)
    harness.communicate()
    wait_for(lambda: not folder.exists())


@needs_cgroup
def test_the_scope_of_a_user_manager_is_used_if_no_cgroup_is_delegated(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script in place of systemd-run creates the scope, as the user's systemd does."""
    own = cgroup_of(os.getpid())
    scope = tmp_path / "systemd-run"
    scope.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >>{tmp_path}/calls\n'
        'for word; do case "$word" in --unit=*) unit="${word#--unit=}";; esac; done\n'
        f'[ -z "$unit" ] || {{ mkdir {own}/"$unit".scope && echo $$ >{own}/"$unit".scope/cgroup.procs; }}\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
    )
    scope.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ProcessGroup, "_delegate", lambda _: False)
    user_manager_answers.cache_clear()
    group = ProcessGroup()
    process = start(group, started)
    user_manager_answers.cache_clear()
    assert group.kind == "scope" and group.path.endswith(".scope")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "--user --scope --quiet --collect -- true"
    assert calls[1].startswith(f"--user --scope --quiet --collect --unit=joulewatch-{os.getpid()}-")
    wait_for(lambda: (group.time_s() or 0.0) >= 0.2)
    folder = cgroup_of(process.pid)
    process.communicate(b"\n")
    group.remove()
    assert folder is not None and folder.exists(), "systemd removes a scope itself"
    wait_for(lambda: process_group._removed(folder))


@pytest.mark.usefixtures("no_manager")
def test_without_rights_the_process_tree_is_counted(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessGroup, "_delegate", lambda _: False)
    group = ProcessGroup()
    assert group.time_s() is None
    process = start(group, started)
    assert (group.kind, group.path) == ("process_tree", "")
    used_s = group.time_s()
    assert used_s is not None and used_s >= 0.1 - 0.02, "the child that has ended, rounded by the kernel"
    process.communicate(b"\n")
    group.remove()


@pytest.mark.parametrize(
    ("cgroup", "root", "mount", "expected"),
    [
        ("0::/user.slice/a.scope\n", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/a.scope"),
        ("4:memory:/x\n0::/\n", "/", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
        ("0::/docker/1234/app\n", "/docker/1234", "/sys/fs/cgroup", "/sys/fs/cgroup/app"),
        ("0::/docker/12345\n", "/docker/1234", "/sys/fs/cgroup", None),
        ("0::/../other\n", "/", "/sys/fs/cgroup", None),
        ("4:memory:/x\n", "/", "/sys/fs/cgroup", None),
    ],
    ids=["service", "hybrid", "part of the tree", "other part", "outside of the namespace", "version 1"],
)
def test_the_folder_of_a_cgroup(tmp_path: Path, cgroup: str, root: str, mount: str, expected: str | None) -> None:
    for name in ("7", "self"):
        (tmp_path / name).mkdir()
    (tmp_path / "7" / "cgroup").write_text(cgroup)
    assert cgroup_of(7, tmp_path) is None, "no list of mounts"
    (tmp_path / "self" / "mountinfo").write_text(MOUNTS.format(root=root, mount=mount))
    assert cgroup_of(7, tmp_path) == (None if expected is None else Path(expected))
    assert cgroup_of(8, tmp_path) is None, "no such process"


def test_the_clock_counts_each_network_the_harness_and_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A /proc with a harness, its worker and its exporter, a service, and two kernel threads."""
    children = {1: "10 ", 2: "3 4 ", 3: "", 4: "", 10: "11 12 ", 11: "13 ", 12: "", 13: "", 20: ""}
    for pid, text in children.items():
        folder = tmp_path / str(pid) / "task" / str(pid)
        folder.mkdir(parents=True)
        (folder / "children").write_text(text)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0\n")
    (tmp_path / "2" / "comm").write_text("kthreadd\n")
    (tmp_path / "20" / "cmdline").write_text("/usr/bin/python3\0/opt/bin/joulewatch-exporter\0--flag\0")
    (tmp_path / "12" / "cmdline").write_text("python\0-m\0joulewatch_exporter\0")
    (tmp_path / "stat").write_text("cpu  100 0 0 1000 0 200 300 400 0 0\ncpu0 1\n")
    seconds = {10: 1.0, 11: 2.0, 12: 4.0, 13: 8.0, 20: 16.0, 3: 32.0, 4: 64.0}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: seconds[~clock >> 3])

    class Worker:
        pid = 11

        def cpu_time_s(self) -> float:
            return 100.0

    clock = ProcessorClock(tmp_path, 10, networks={"a": Worker()}, services=EXPORTERS)
    reading = clock.read()
    assert reading is not None
    assert (dict(reading.networks_s), reading.own_s, reading.services_s) == ({"a": 100.0}, 105.0, 16.0)
    assert reading.system_s == pytest.approx(32.0 + 64.0 + 9.0)
    alone = ProcessorClock(tmp_path, 10, in_process=("a", "b"), exporter=12).read()
    assert alone is not None
    assert (dict(alone.networks_s), alone.own_s) == ({"a": 11.0, "b": 11.0}, 15.0), "all but the exporter"
    (tmp_path / "2" / "comm").write_text("bash\n")
    in_container = ProcessorClock(tmp_path, 10).read()
    assert in_container is not None and in_container.system_s == pytest.approx(9.0)
    assert used_between(reading, reading, 1.0, ["a"]) is None, "at once"
