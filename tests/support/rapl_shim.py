"""A machine with perf events and registers simulated by ``rapl_shim.c``, which is loaded with LD_PRELOAD."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from support.rapl_tree import EVENTS, POWER_CORE_TYPE, POWER_TYPE
from support.require import require_program
from support.sysfs import FakeSysfs

_SOURCE = Path(__file__).with_name("rapl_shim.c")
_FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")


def build_shim(folder: Path) -> Path:
    """Compile the shim; skip the test if there is no compiler."""
    library = folder / "librapl_shim.so"
    gcc = require_program("gcc", "gcc libc6-dev linux-libc-dev")
    subprocess.run([gcc, *_FLAGS, "-o", str(library), str(_SOURCE), "-ldl"], check=True, timeout=60)
    return library


@dataclass(kw_only=True)
class ShimMachine:
    """Counters simulated by the shim; their powers are constant, so the true energy of a span is power times time."""

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
