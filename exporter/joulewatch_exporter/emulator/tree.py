"""Writes the sysfs and procfs trees of a scenario and moves them.

The directories, links and files lie as real kernels lay them out. Every value is written to a file beside the tree
and renamed into it, so a reader sees the old value or the new one and never a part. The hot path is `advance`: it
works out each device's exact energy at one instant, and renames only what has changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from joulewatch_exporter.emulator.scenario import ChannelSpec, ChipSpec, Fault, MachineSpec, Scenario, ZoneSpec
from joulewatch_exporter.model import EMULATION_MARKER

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Writer:
    """Puts values into a tree by write and rename."""

    def __init__(self, scratch: Path) -> None:
        """Take a directory on the tree's file system for what is not yet renamed.

        Args:
            scratch: An existing, empty directory.
        """
        self._scratch = str(scratch / "value")

    def put(self, path: str, text: bytes, mode: int = 0o444) -> None:
        """Replace the file at ``path``; its directory must exist, else `FileNotFoundError`."""
        descriptor = os.open(self._scratch, _FILE_FLAGS, mode)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
        try:
            os.rename(self._scratch, path)  # noqa: PTH104 - a Path for each of a thousand values a second costs more
        except FileNotFoundError:
            os.unlink(self._scratch)  # noqa: PTH108
            raise


class _Value:
    """One file that moves, with the faults that can befall it."""

    def __init__(self, writer: Writer, path: str, faults: Sequence[Fault], mode: int) -> None:
        self._writer = writer
        self._path = path
        self._faults = tuple(fault for fault in faults if fault.kind in ("glitch", "denied", "stuck"))
        self._mode = mode
        self._written: tuple[bytes, int] | None = None

    def show(self, value: int, t_s: float) -> None:
        """Write the value, or what a fault makes of it."""
        text = b"%d\n" % value
        mode = self._mode
        for fault in self._faults:
            if fault.is_on(t_s):
                if fault.kind == "stuck":
                    return
                if fault.kind == "glitch":
                    text = fault.text.encode() + b"\n"
                else:
                    mode = 0  # keeps out whoever is not root: root reads on
        if (text, mode) == self._written:
            return
        try:
            self._writer.put(self._path, text, mode)
        except FileNotFoundError:
            return  # its directory has vanished for a while: a fault too
        self._written = (text, mode)


class _Counter:
    """A hardware counter of so many bits: a start, the true energy in its steps, and its resets."""

    def __init__(self, start: int, unit_joules: float, bits: int, faults: Sequence[Fault]) -> None:
        self._offset = start
        self._unit_joules = unit_joules
        self._mask = (1 << bits) - 1
        self._resets_at_s = sorted((fault.at_s for fault in faults if fault.kind == "reset"), reverse=True)

    def count(self, energy_joules: float, t_s: float) -> int:
        steps = int(energy_joules / self._unit_joules)
        while self._resets_at_s and t_s >= self._resets_at_s[-1]:
            self._resets_at_s.pop()
            self._offset = -steps
        return (self._offset + steps) & self._mask


class _Vanishing:
    """A device's directory and links that go and come back."""

    def __init__(self, directory: Path, links: Sequence[Path], hidden: Path, faults: Sequence[Fault]) -> None:
        self._directory = directory
        self._links = {link: os.readlink(link) for link in links}  # noqa: PTH115 - the text of the link as it is
        self._hidden = hidden
        self._faults = tuple(fault for fault in faults if fault.kind == "vanish")
        self._is_gone = False

    def advance(self, t_s: float) -> None:
        gone = any(fault.is_on(t_s) for fault in self._faults)
        if gone and not self._is_gone:
            for link in self._links:
                link.unlink(missing_ok=True)
            self._directory.rename(self._hidden)
        elif self._is_gone and not gone:
            self._hidden.rename(self._directory)
            for link, target in self._links.items():
                link.symlink_to(target)
        self._is_gone = gone


class _Zone:
    """One powercap zone's counter."""

    def __init__(self, spec: ZoneSpec, value: _Value) -> None:
        self._signal = spec.signal
        self._unit_nj = spec.unit_nj
        self._value = value
        start = int(spec.start_joules / spec.unit_joules)
        if spec.wrap_at_s is not None:
            start = (1 << spec.counter_bits) - int(spec.signal.energy_joules(0.0, spec.wrap_at_s) / spec.unit_joules)
        self._counter = _Counter(start, spec.unit_joules, spec.counter_bits, spec.faults)

    def advance(self, t_s: float) -> None:
        count = self._counter.count(self._signal.energy_joules(0.0, t_s), t_s)
        self._value.show(count * self._unit_nj // 1000, t_s)


class _Channel:
    """One hwmon channel: a counter of microjoules, a momentary power, or a mean over the meter's interval."""

    _START_UJ = 1_000_000

    def __init__(self, spec: ChannelSpec, value: _Value) -> None:
        self._signal = spec.signal
        self._is_energy = spec.kind == "energy"
        self._is_average = spec.is_average
        self._update_s = spec.update_s
        self._value = value
        self._counter = _Counter(self._START_UJ, 1e-6, 64, spec.faults)
        self._next = 0
        self._shown = 0
        self._averaged_to_s = 0.0
        self._averaged_joules = 0.0

    def advance(self, t_s: float) -> None:
        if t_s >= self._next * self._update_s:
            self._shown = self._measure(t_s)
            self._next = int(t_s / self._update_s) + 1
        self._value.show(self._shown, t_s)

    def _measure(self, t_s: float) -> int:
        if self._is_energy:
            return self._counter.count(self._signal.energy_joules(0.0, t_s), t_s)
        span_s = t_s - self._averaged_to_s
        if not self._is_average or span_s <= 0:
            return round(self._signal.power_watts(t_s) * 1e6)
        energy_joules = self._signal.energy_joules(0.0, t_s)
        watts = (energy_joules - self._averaged_joules) / span_s
        self._averaged_to_s, self._averaged_joules = t_s, energy_joules
        return round(watts * 1e6)


class _Stat:
    """procfs/stat: the CPUs are as busy as the scenario's load says."""

    _MIN_UPDATE_S = 1.0 / _TICKS_PER_SECOND

    def __init__(self, machine: MachineSpec, path: str, writer: Writer) -> None:
        self._machine = machine
        self._path = path
        self._writer = writer
        self._next_s = 0.0
        self._boot_s = 0

    def advance(self, t_s: float, boot_unix_s: int) -> None:
        if t_s < self._next_s:
            return
        self._next_s = t_s + self._MIN_UPDATE_S
        machine = self._machine
        per_socket = machine.cpus_per_socket
        total_ticks = int(t_s * _TICKS_PER_SECOND)
        lines = []
        all_busy = 0
        for socket in range(machine.sockets):
            busy = min(total_ticks, self._busy_ticks(socket, t_s))
            all_busy += busy * per_socket
            times = f" {busy} 0 0 {total_ticks - busy} 0 0 0 0 0 0"
            first = socket * per_socket
            lines += [f"cpu{cpu}{times}" for cpu in range(first, first + per_socket)]
        all_idle = total_ticks * per_socket * machine.sockets - all_busy
        head = f"cpu  {all_busy} 0 0 {all_idle} 0 0 0 0 0 0\n"
        tail = f"\nintr 0\nctxt 0\nbtime {boot_unix_s}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n"
        self._writer.put(self._path, (head + "\n".join(lines) + tail).encode())

    def _busy_ticks(self, socket: int, t_s: float) -> int:
        if not self._machine.load:
            return 0
        load = self._machine.load[socket]
        above_idle_joules = load.signal.energy_joules(0.0, t_s) - load.idle_watts * t_s
        busy_s = above_idle_joules / (load.full_watts - load.idle_watts)
        return max(0, int(busy_s * _TICKS_PER_SECOND))


class Tree:
    """The two trees of a scenario in one directory."""

    def __init__(self, scenario: Scenario, directory: Path, scratch: Path, boot_unix_s: int) -> None:
        """Write everything that does not move; `advance` then writes the rest.

        Args:
            scenario: The machine.
            directory: Gets ``sys`` and ``proc``, which must not be there.
            scratch: An existing directory on the same file system, outside the two trees.
            boot_unix_s: What ``/proc/stat`` says of the machine's start.

        Raises:
            OSError: The file system refuses.
        """
        self._sysfs = directory / "sys"
        self._procfs = directory / "proc"
        self._scratch = scratch
        self._writer = Writer(scratch)
        self._boot_unix_s = boot_unix_s
        self._moving: list[_Zone | _Channel] = []
        self._vanishing: list[_Vanishing] = []
        self._sysfs.mkdir(parents=True)
        self._procfs.mkdir(parents=True)
        self._write(self._sysfs / EMULATION_MARKER, scenario.name)
        self._write_machine(scenario.machine)
        for zone in sorted(scenario.zones, key=lambda spec: spec.zone.count(":")):
            self._write_zone(zone)
        for number, chip in enumerate(scenario.chips):
            self._write_chip(number, chip)
        # Only now are all links there that a vanishing parent takes along.
        for spec in scenario.zones:
            self._add_vanishing(self._zone_directory(spec.zone), "powercap", f"{spec.zone}", spec.faults)
        for number, chip in enumerate(scenario.chips):
            self._add_vanishing(self._sysfs / chip.path, "hwmon", f"hwmon{number}", chip.faults)
        self._stat = _Stat(scenario.machine, str(self._procfs / "stat"), self._writer)

    def advance(self, t_s: float) -> None:
        """Bring every file to ``t_s`` seconds after the start."""
        for vanishing in self._vanishing:
            vanishing.advance(t_s)
        for moving in self._moving:
            moving.advance(t_s)
        self._stat.advance(t_s, self._boot_unix_s)

    def _write(self, path: Path, value: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer.put(str(path), f"{value}\n".encode())

    def _link(self, link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))

    def _write_machine(self, machine: MachineSpec) -> None:
        lines = []
        for cpu in range(machine.sockets * machine.cpus_per_socket):
            socket = cpu // machine.cpus_per_socket
            entry = (
                ("processor", cpu),
                ("vendor_id", machine.vendor),
                ("cpu family", machine.family),
                ("model", machine.model),
                ("model name", machine.cpu_name),
                ("stepping", machine.stepping),
                ("physical id", socket),
            )
            lines += [f"{key:<16}: {value}" for key, value in entry] + [""]
            topology = self._sysfs / "devices/system/cpu" / f"cpu{cpu}" / "topology"
            self._write(topology / "physical_package_id", socket)
        self._write(self._procfs / "cpuinfo", "\n".join(lines))
        self._write(self._procfs / "meminfo", f"MemTotal: {int(machine.memory_gib * 2**20):>14} kB")

    def _zone_directory(self, zone: str) -> Path:
        control, *indices = zone.split(":")
        directory = self._sysfs / "devices/virtual/powercap" / control
        for depth in range(len(indices)):
            directory /= ":".join((control, *indices[: depth + 1]))
        return directory

    def _write_zone(self, spec: ZoneSpec) -> None:
        control = spec.zone.partition(":")[0]
        directory = self._zone_directory(spec.zone)
        classes = self._sysfs / "class/powercap"
        if not (classes / control).is_symlink():
            self._write(directory.parents[spec.zone.count(":") - 1] / "enabled", 1)
            self._link(classes / control, self._sysfs / "devices/virtual/powercap" / control)
        self._write(directory / "name", spec.name)
        self._write(directory / "enabled", int(spec.is_enabled))
        if spec.has_range:
            self._write(directory / "max_energy_range_uj", ((1 << spec.counter_bits) - 1) * spec.unit_nj // 1000)
        if spec.power_limit_watts:
            self._write(directory / "constraint_0_name", "long_term")
            self._write(directory / "constraint_0_power_limit_uw", round(spec.power_limit_watts * 1e6))
        self._link(classes / spec.zone, directory)
        # 0400 in the kernel; here whoever tries the emulator need not be root.
        value = _Value(self._writer, str(directory / "energy_uj"), spec.faults, 0o444)
        self._moving.append(_Zone(spec, value))

    def _write_chip(self, number: int, spec: ChipSpec) -> None:
        device = self._sysfs / spec.path
        hwmon = device / "hwmon" / f"hwmon{number}"
        hwmon.mkdir(parents=True)
        self._link(hwmon / "device", device)
        self._link(self._sysfs / "class/hwmon" / f"hwmon{number}", hwmon)
        folder = device if spec.files_at_device else hwmon
        self._write(folder / "name", spec.chip)
        for name, text in spec.files.items():
            self._write(folder / name, text)
        for channel in spec.channels:
            stem = f"{channel.kind}{channel.number}"
            if channel.label:
                self._write(folder / f"{stem}_label", channel.label)
            if channel.is_average:
                self._write(folder / f"{stem}_average_interval", round(channel.update_s * 1000))
            path = folder / f"{stem}_{'average' if channel.is_average else 'input'}"
            self._moving.append(_Channel(channel, _Value(self._writer, str(path), channel.faults, 0o444)))

    def _add_vanishing(self, directory: Path, kind: str, name: str, faults: Sequence[Fault]) -> None:
        if not any(fault.kind == "vanish" for fault in faults):
            return
        links = [
            link
            for link in sorted((self._sysfs / "class" / kind).iterdir())
            if link.name == name or link.name.startswith(f"{name}:")
        ]
        hidden = self._scratch / f"gone-{len(self._vanishing)}"
        self._vanishing.append(_Vanishing(directory, links, hidden, faults))


def remove(directory: Path) -> None:
    """Remove what an earlier emulator left in ``directory``."""
    for name in ("sys", "proc", ".scratch"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in ("scenario.json", "truth.jsonl"):
        (directory / name).unlink(missing_ok=True)
