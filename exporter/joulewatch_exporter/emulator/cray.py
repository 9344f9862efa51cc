"""The controller of a Cray EX node in ``sysfs/cray/pm_counters``: counters with a time, replaced as a whole set."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.faults import FILE_FAULTS, Fault, check_faults
from joulewatch_exporter.emulator.files import MovingFile, Writer
from joulewatch_exporter.emulator.signals import Signal

_FAULTS: Final = ("reset", *FILE_FAULTS, "vanish")


@dataclass(frozen=True, slots=True, kw_only=True)
class PmCountersSpec:
    """A node."""

    node: Signal
    """Power of the whole node."""
    parts: Mapping[str, Signal]
    """Power of its parts, by the prefix of their files: ``cpu``, ``memory``, ``accel0``, ``cpu1``."""
    period_s: float = 0.1
    """How often the controller makes a new set of values."""
    start_joules: float = 1_000_000.0
    """Start of the counters."""
    faults: tuple[Fault, ...] = ()
    """reset: the controller restarts and counts from 0; stuck: it makes no new sets; vanish: the directory is gone; the
    other kinds affect all files at once."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        check_range("period_s", self.period_s, 0.001)
        check_range("start_joules", self.start_joules, 0.0)
        check_faults(self.faults, _FAULTS)

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signals behind the series of the exporter, by ``device/domain``."""
        return {"node/total": self.node, **{f"node/{name}": signal for name, signal in self.parts.items()}}


class PmCounters:
    """The files of a node.

    A set is written into one of two directories, and then the link to it is replaced, so readers never see half a set.
    """

    def __init__(self, spec: PmCountersSpec, sysfs: Path, writer: Writer, scratch: Path) -> None:
        """Write the files that never change; `advance` writes the others.

        Args:
            spec: The node.
            sysfs: Root of an existing tree.
            writer: The writer of the thread that calls `advance`.
            scratch: An existing directory outside the tree, on the same file system.

        Raises:
            OSError: A file cannot be written.
        """
        self._spec = spec
        self._writer = writer
        self._next_link = scratch / "pm_counters"
        self._link = sysfs / "cray" / "pm_counters"
        self._link.parent.mkdir(parents=True)
        self._signals: dict[str, Signal] = {"": spec.node}
        self._signals |= {f"{name}_": signal for name, signal in spec.parts.items()}
        self._next = 0
        self._set = 0
        self._freshness = 1
        self._startup_us = time.time_ns() // 1000
        self._resets_at_s = sorted((fault.at_s for fault in spec.faults if fault.kind == "reset"), reverse=True)
        self._offsets_joules = dict.fromkeys(self._signals, spec.start_joules)
        # "stuck" is a fault of the controller, which then does not count its sets either.
        faults = [fault for fault in spec.faults if fault.kind != "stuck"]
        self._directories = [sysfs / f"devices/virtual/cray/set{index}" for index in (0, 1)]
        self._files: list[dict[str, MovingFile]] = []
        for directory in self._directories:
            for name, text in (("raw_scan_hz", f"{1 / spec.period_s:.0f}"), ("generation", "1"), ("version", "2")):
                writer.put_line(directory / name, text)
            for stem in self._signals:
                writer.put_line(directory / f"{stem}power_cap", "0 W")
            names = [f"{stem}{kind}" for stem in self._signals for kind in ("power", "energy")]
            self._files.append({name: MovingFile(writer, str(directory / name), faults) for name in names})

    def advance(self, t_s: float) -> None:
        """Move the counters to ``t_s`` seconds after the start, if a new set is due."""
        spec = self._spec
        if t_s < self._next * spec.period_s:
            return
        self._next = int(t_s / spec.period_s) + 1
        while self._resets_at_s and t_s >= self._resets_at_s[-1]:
            self._resets_at_s.pop()
            self._startup_us = time.time_ns() // 1000
            self._offsets_joules = {stem: -signal.energy_joules(0.0, t_s) for stem, signal in self._signals.items()}
        kinds = {fault.kind for fault in spec.faults if fault.is_on(t_s)}
        if "vanish" in kinds:
            with contextlib.suppress(FileNotFoundError):
                self._link.unlink()
        elif "stuck" not in kinds:
            self._write_set(t_s)

    def close(self) -> None:
        """Release the readers of files that hang; safe to call twice."""
        for files in self._files:
            for file in files.values():
                file.close()

    def _write_set(self, t_s: float) -> None:
        self._set = 1 - self._set
        self._freshness += 1
        directory, files = self._directories[self._set], self._files[self._set]
        time_us = time.time_ns() // 1000
        for stem, signal in self._signals.items():
            watts = round(signal.power_watts(t_s))
            joules = int(self._offsets_joules[stem] + signal.energy_joules(0.0, t_s))
            files[f"{stem}power"].show(b"%d W %d us\n" % (watts, time_us), t_s)
            files[f"{stem}energy"].show(b"%d J %d us\n" % (joules, time_us), t_s)
        self._writer.put(str(directory / "freshness"), b"%d\n" % self._freshness)
        self._writer.put(str(directory / "startup"), b"%d\n" % self._startup_us)
        self._next_link.symlink_to(os.path.relpath(directory, self._link.parent))
        self._next_link.rename(self._link)
