"""Processor times of the machine and of the run, from a tree of files and from this kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from joulewatch_harness.runner.processor_time import ProcessorClock, ProcessorReading, process_time_s, used_between

TICKS = os.sysconf("SC_CLK_TCK")
START = ProcessorReading(at_ns=0, idle_s=100.0, counted_s=300.0, own_s=7.0, processors=2)
END = ProcessorReading(at_ns=1_000_000_000, idle_s=100.5, counted_s=302.0, own_s=8.2, processors=2)


def machine(root: Path, stat: str) -> ProcessorClock:
    """A /proc with the process 10, its child 11 and its grandchild 12; process 13 is not of the family."""
    (root / "stat").write_text(stat)
    for pid, children in ((10, "11 "), (11, "12 "), (12, ""), (13, "")):
        folder = root / str(pid) / "task" / str(pid)
        folder.mkdir(parents=True)
        (folder / "children").write_text(children)
        ended = f"{3 * TICKS} {1 * TICKS}"
        (root / str(pid) / "stat").write_text(f"{pid} (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 999 999 {ended} 20 0\n")
    return ProcessorClock(root, 10)


def test_idle_and_waiting_for_a_disk_are_idle_and_guests_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks: list[int] = []

    def clock_gettime(clock: int) -> float:
        clocks.append(clock)
        return 0.25

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    columns = [number * TICKS for number in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
    line = " ".join(map(str, columns))
    reading = machine(tmp_path, f"cpu  {line}\ncpu0 {line}\ncpu1 {line}\ncpu7 {line}\nintr 5 0\n").read()
    assert reading is not None
    assert (reading.idle_s, reading.counted_s, reading.processors) == (24.0, 255.0, 3)
    assert reading.own_s == pytest.approx(3 * (0.25 + 4.0)), "three processes, each with children that have ended"
    assert clocks == [(~pid << 3) | 2 for pid in (10, 11, 12)]


@pytest.mark.parametrize("stat", ["", "cpu  1 2 3\n", "cpu  a b c d e f g h\ncpu0\n", "intr 5\n"])
def test_without_processor_times_there_is_no_reading(tmp_path: Path, stat: str) -> None:
    assert machine(tmp_path, stat).read() is None
    assert ProcessorClock(tmp_path / "nothing", 10).read() is None


def test_a_kernel_that_lists_no_children_gives_no_reading(tmp_path: Path) -> None:
    """The networks' processes would count as other load."""
    machine(tmp_path, "cpu  1 2 3 4 5 6 7 8\ncpu0\n")
    (tmp_path / "10" / "task" / "10" / "children").unlink()
    assert ProcessorClock(tmp_path, 10).read() is None


def test_a_window_gets_what_was_used_between_the_readings() -> None:
    used = used_between(START, END, 1.0)
    assert used is not None
    assert (used.busy_s, used.own_s, used.processors) == (pytest.approx(1.5), pytest.approx(1.2), 2)
    half = used_between(START, END, 0.5)
    assert half is not None, "the readings are twice as far apart as the window is long"
    assert (half.busy_s, half.own_s) == (pytest.approx(0.75), pytest.approx(0.6))
    longer = used_between(START, END, 1.1)
    assert longer == used, "a window is not longer than the time between its readings"


def test_what_is_rounded_below_zero_is_zero() -> None:
    used = used_between(START, replace(END, idle_s=102.02, own_s=6.99), 1.0)
    assert used is not None and (used.busy_s, used.own_s) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, END),
        (START, None),
        (START, replace(END, processors=1)),
        (START, replace(END, counted_s=300.0)),
        (START, replace(END, counted_s=300.9 - 16 / TICKS)),
        (START, replace(END, at_ns=0)),
    ],
    ids=["no start", "no end", "a processor was switched off", "zeros", "half is not counted", "at once"],
)
def test_what_is_not_known_stays_unknown(start: ProcessorReading | None, end: ProcessorReading | None) -> None:
    assert used_between(start, end, 1.0) is None


def test_this_kernel_counts_the_time_of_a_child() -> None:
    """A child's time is own time while it runs and after it has ended, and no more than the machine was busy."""
    clock = ProcessorClock()
    start = clock.read()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    running = clock.read()
    child.communicate(b"\n")
    ended = clock.read()
    assert start is not None and running is not None and ended is not None
    assert running.own_s - start.own_s >= 0.3
    assert ended.own_s - start.own_s >= 0.3 - 2 / TICKS, "the kernel rounds the time of a child that has ended"
    used = used_between(start, running, (running.at_ns - start.at_ns) * 1e-9)
    assert used is not None and used.own_s >= 0.3
    assert used.own_s <= used.busy_s + 2 / TICKS + 0.02


def test_the_processor_time_of_one_process_until_it_has_ended() -> None:
    before_s, own_s = time.process_time(), process_time_s(os.getpid())
    assert own_s is not None and before_s <= own_s <= time.process_time()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_time_s(child.pid) is not None
    child.communicate(b"\n")
    assert process_time_s(child.pid) is None
