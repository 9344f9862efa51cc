"""A machine with perf events and registers simulated by ``rapl_shim.c``, which is loaded with LD_PRELOAD."""

from __future__ import annotations

import math
import mmap
import os
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from support.rapl_tree import EVENTS, POWER_CORE_TYPE, POWER_TYPE
from support.require import require_program
from support.sysfs import FakeSysfs

_FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")


def build_shim(folder: Path) -> Path:
    """Compile the shim; skip the test if there is no compiler."""
    return build_library("rapl_shim", folder)


def build_library(name: str, folder: Path) -> Path:
    """Compile ``NAME.c`` of this folder to a shared library; skip the test if there is no compiler."""
    library, source = folder / f"lib{name}.so", Path(__file__).with_name(f"{name}.c")
    gcc = require_program("gcc", "gcc libc6-dev linux-libc-dev")
    subprocess.run([gcc, *_FLAGS, "-o", str(library), str(source), "-ldl", "-lm"], check=True, timeout=60)
    return library


@dataclass(frozen=True, slots=True)
class Square:
    """Power that alternates between two shares of a counter's watts, on the monotonic clock of the machine."""

    period_ns: int
    low: float
    high: float

    def full_power_s(self, monotonic_ns: int) -> float:
        """Return the time at full power that would use the same energy since the start of the clock."""
        rounds, rest_ns = divmod(monotonic_ns, self.period_ns)
        half_ns = self.period_ns // 2
        in_round = self.low * min(rest_ns, half_ns) + self.high * max(rest_ns - half_ns, 0)
        return (rounds * (self.low * half_ns + self.high * (self.period_ns - half_ns)) + in_round) * 1e-9


@dataclass(frozen=True, slots=True)
class Ripple:
    """Power that varies between two shares of a counter's watts as a sine, on the monotonic clock of the machine."""

    period_ns: int
    low: float
    high: float

    def full_power_s(self, monotonic_ns: int) -> float:
        """Return the time at full power that would use the same energy since the start of the clock."""
        turn = 2 * math.pi / self.period_ns
        wave = (1 - math.cos(turn * (monotonic_ns % self.period_ns))) / turn
        return ((self.low + self.high) / 2 * monotonic_ns + (self.high - self.low) / 2 * wave) * 1e-9


class PowerTrack:
    """A power that this process sets while it works, and that a simulated counter of another process follows."""

    _CHANGES = 65536

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(16 + 24 * self._CHANGES))
        self.path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._changes = 0
        self._joules = self._watts = 0.0
        self._at_ns = 0

    def set(self, watts: float, at_ns: int) -> None:
        """Set the power from a monotonic time on that is not before the last one."""
        self._joules = self.joules(at_ns)
        self._watts, self._at_ns = watts, at_ns
        place = 16 + 24 * (self._changes % self._CHANGES)
        struct.pack_into("=Qdd", self._memory, place, at_ns, self._joules, watts)
        self._changes += 1
        struct.pack_into("=Q", self._memory, 8, self._changes)

    def change(self, watts: float) -> int:
        """Set the power from now on, and return the time; the counter is not read between the two."""
        struct.pack_into("=Q", self._memory, 0, 1)
        at_ns = time.monotonic_ns()
        self.set(watts, at_ns)
        struct.pack_into("=Q", self._memory, 0, 0)
        return at_ns

    def joules(self, at_ns: int) -> float:
        """Return the true energy up to a time that is not before the last change."""
        return self._joules + self._watts * (at_ns - self._at_ns) * 1e-9


@dataclass(kw_only=True)
class ShimMachine:
    """Counters simulated by the shim; the true energy of a span is power times time, unless the power is ``square``."""

    sysfs: FakeSysfs
    library: Path
    lines: list[str] = field(default_factory=list)
    start_ns: int = field(default_factory=time.monotonic_ns)

    def event(self, name: str, cpu: int, watts: float) -> Self:
        """Add an event of the PMU ``power``, or a core of ``power_core``."""
        is_core = name == "energy-core"
        number, config = (POWER_CORE_TYPE, 1) if is_core else (POWER_TYPE, EVENTS[name])
        self.lines.append(f"event {number} {config} {cpu} {watts}")
        return self

    def fixed(self, cpu: int, register: int, value: int) -> Self:
        self._device(cpu)
        self.lines.append(f"fixed {cpu} {register:x} {value:x}")
        return self

    def count(self, cpu: int, register: int, watts: float, per_joule: float, start: int) -> Self:
        self._device(cpu)
        self.lines.append(f"count {cpu} {register:x} {watts} {per_joule!r} {start:x}")
        return self

    def square(self, square: Square) -> Self:
        self.lines.append(f"square {square.period_ns} {square.low!r} {square.high!r}")
        return self

    def ripple(self, ripple: Ripple) -> Self:
        self.lines.append(f"ripple {ripple.period_ns} {ripple.low!r} {ripple.high!r}")
        return self

    def refresh(self, period_ns: int) -> Self:
        """Refresh all counters at whole multiples of this time only."""
        self.lines.append(f"refresh {period_ns}")
        return self

    def follow(self, track: PowerTrack) -> Self:
        """Let the perf counters also count the energy of a track."""
        self.lines.append(f"follow {track.path}")
        return self

    def deny(self, code: int) -> Self:
        self.lines.append(f"deny {code}")
        return self

    def _device(self, cpu: int) -> None:
        path = self.sysfs.host.dev / "cpu" / str(cpu) / "msr"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    @property
    def environment(self) -> dict[str, str]:
        """Environment for a child process; writes the shim's table."""
        table = self.sysfs.root / "table"
        table.write_text("\n".join((f"start {self.start_ns}", *self.lines, "")))
        return {**os.environ, "LD_PRELOAD": str(self.library), "FAKE_RAPL": str(table)}

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags with which the exporter reads this machine."""
        host = self.sysfs.host
        return (f"--path.sysfs={host.sysfs}", f"--path.procfs={host.procfs}", f"--path.dev={host.dev}")
