"""The usage source of processes: groups by session, short-lived children, no process identifiers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.model import ROOT
from joulewatch_exporter.attribution.processes import ProcessesOptions, ProcessesSource
from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Host
from support.cgroups import BURN, FakeTree

KTHREAD = 0x0020_0040


class Machine:
    """A procfs with processes."""

    def __init__(self, root: Path) -> None:
        self.tree = FakeTree(root)
        self.run(1, "systemd", parent=0, session=1)
        self._source: ProcessesSource | None = None

    def run(
        self, pid: int, command: str, *, parent: int = 1, session: int | None = None, own: int = 0, children: int = 0,
        started: int = 0, flags: int = 0x40_0000,
    ) -> None:  # fmt: skip
        """Write one process; times in hundredths of a second."""
        leader = pid if session is None else session
        text = f"{pid} ({command}) S {parent} {leader} {leader} 0 -1 {flags} 9 9 9 9 {own} 0 {children} 0 20 0 1 0"
        self.tree.write(f"proc/{pid}/stat", f"{text} {started or pid} 1000 10 0 0\n")

    def end(self, pid: int) -> None:
        folder = self.tree.root / f"proc/{pid}"
        (folder / "stat").unlink()
        folder.rmdir()

    def groups(self) -> dict[str, float]:
        """Read the use of each group in seconds, but for the machine."""
        if self._source is None:
            self._source = ProcessesSource(self.tree.host)
        scan = self._source.read([])
        assert scan.usages[""][-1].key == ROOT
        return {usage.key: round(usage.seconds, 6) for usage in scan.usages[""][:-1]}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_processes_of_a_session_are_one_group(machine: Machine) -> None:
    machine.run(50, "bash", own=100)
    machine.run(51, "python3", parent=50, session=50, own=300)
    machine.run(2, "kthreadd", parent=0, session=0, own=700, flags=KTHREAD)
    machine.tree.stat(42.5)
    assert machine.groups() == {"bash": 4, "systemd": 0}
    source = ProcessesSource(machine.tree.host)
    assert source.survey().usages[""][-1].seconds == 42.5
    workload = source.workload("bash")
    assert (workload.kind, workload.workload) == ("other", "bash")


def test_groups_of_one_name_are_one_group(machine: Machine) -> None:
    machine.run(50, "worker", own=100)
    machine.run(60, "worker", own=200)
    assert machine.groups()["worker"] == 3


def test_children_that_have_ended_count_in_the_group_of_their_parent(machine: Machine) -> None:
    machine.run(50, "make", own=100)
    machine.run(51, "cc", parent=50, session=50, own=200)
    assert machine.groups()["make"] == 3
    machine.end(51)
    machine.run(50, "make", own=110, children=250)  # cc used 0.5 s more, and make 0.1 s
    assert machine.groups()["make"] == pytest.approx(3.6)
    machine.run(50, "make", own=110, children=900)  # children that no scan saw
    assert machine.groups()["make"] == pytest.approx(10.1)


def test_grandchildren_are_not_counted_twice(machine: Machine) -> None:
    machine.run(50, "make")
    machine.run(51, "sh", parent=50, session=50, own=10)
    machine.run(52, "cc", parent=51, session=50, own=200)
    assert machine.groups()["make"] == 2.1
    machine.end(51)
    machine.end(52)
    machine.run(50, "make", children=220)
    assert machine.groups()["make"] == pytest.approx(2.2)


def test_an_orphan_does_not_add_to_init_what_was_counted(machine: Machine) -> None:
    machine.run(50, "daemon", own=10)
    machine.run(51, "task", parent=50, session=50, own=500)
    assert machine.groups() == {"daemon": 5.1, "systemd": 0}
    machine.run(51, "task", parent=1, session=50, own=500)
    machine.end(50)
    machine.run(1, "systemd", parent=0, session=1, children=10)
    assert machine.groups() == {"daemon": 5.1, "systemd": 0}
    machine.end(51)
    machine.run(1, "systemd", parent=0, session=1, children=530)
    assert machine.groups() == {"systemd": 0.2}


def test_a_process_identifier_that_is_used_again_is_another_process(machine: Machine) -> None:
    machine.run(50, "first", own=500, started=10)
    assert machine.groups()["first"] == 5
    machine.run(50, "second", own=30, started=99)
    machine.run(1, "systemd", parent=0, session=1, children=500)
    assert machine.groups() == {"second": 0.3, "systemd": 0}


def test_use_never_falls(machine: Machine) -> None:
    machine.run(50, "odd", own=500, children=500)
    assert machine.groups()["odd"] == 10
    machine.run(50, "odd", own=400, children=400)
    assert machine.groups()["odd"] == 10


@pytest.mark.parametrize(
    ("command", "group"),
    [("a b) S 1", "a b) S 1"), ("kube/x", "kube_x"), ("((sd-pam))", "((sd-pam))"), (" ", "unknown")],
)
def test_any_command_can_name_a_group(machine: Machine, command: str, group: str) -> None:
    machine.run(50, command, own=100)
    assert machine.groups()[group] == 1


def test_files_that_are_damaged_or_hidden_are_skipped(machine: Machine) -> None:
    machine.tree.write("proc/60/stat", "60 (x) S")
    (machine.tree.root / "proc/61").mkdir()
    assert machine.groups() == {"systemd": 0}


def test_processes_are_read_only_where_cgroups_cannot_be(machine: Machine) -> None:
    with pytest.raises(SensorAbsentError, match="cgroups are read instead"):
        ProcessesSource.open(machine.tree.host, ProcessesOptions())
    (machine.tree.top / "cgroup.events").write_text("populated 1\n")  # a container
    source = ProcessesSource.open(machine.tree.host, ProcessesOptions())
    assert source.findings[0].text.startswith("processes: 1, groups: 1;")


def test_a_machine_without_procfs(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsentError, match=str(tmp_path / "proc")):
        ProcessesSource.open(Host(sysfs=tmp_path, procfs=tmp_path / "proc"), ProcessesOptions())


def test_real_short_lived_processes_count_in_the_session_that_started_them() -> None:
    source = ProcessesSource(Host())

    def used() -> float:
        return next((usage.seconds for usage in source.read([]).usages[""] if usage.key == "sh"), 0.0)

    before = used()
    script = '"$0" -S -c "$1" 0.2; echo done; read _'
    command = ["/bin/sh", "-c", script, sys.executable, BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"done\n"
        assert used() - before >= 0.19
        leader.communicate(b"\n")
