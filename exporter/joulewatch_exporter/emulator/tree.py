"""Write the sysfs, procfs and dev trees of a scenario and update them.

Directories, links and files are laid out as by real kernels. Values are replaced by rename, except energy counters and
the registers of a processor, which are written in place. The hot path is `advance`: it computes the exact energy of
each device at one instant, and writes only files that have changed.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import MovingFile, Vanishing, Writer, link
from joulewatch_exporter.emulator.scenario import ChannelSpec, ChipSpec, MachineSpec, Scenario, ZoneSpec
from joulewatch_exporter.emulator.workloads import WorkloadLoad
from joulewatch_exporter.model import EMULATION_MARKER

EXPORTER_FILE: Final = "exporter.yaml"

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PACKAGE: Final = re.compile(r"package-(\d+)")

_MSR_POWER_UNIT: Final = 0x606
_MSR_PACKAGE: Final = 0x611
_MSR_COUNTERS: Final = {"dram": 0x619, "core": 0x639}
"""Intel's counters within a package, by the name of their zone. Their addresses differ by at least eight, so a plain
file can hold them; AMD's addresses are adjacent, and in a file their reads of eight bytes would overlap."""


class _Counter:
    """A hardware counter with a start, a step, a number of bits, and resets."""

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


class _Registers:
    """The registers of a processor in ``dev/cpu/N/msr``: eight bytes each, at the offset of their address."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def put(self, register: int, value: int) -> None:
        # In place, not by rename: readers keep the file open, and a read of eight bytes is never a part.
        os.pwrite(self._descriptor, value.to_bytes(8, "little"), register)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Zone:
    """A counter of RAPL: a powercap zone and the register of the processor behind it."""

    def __init__(self, spec: ZoneSpec, value: MovingFile, registers: _Registers | None, register: int) -> None:
        self._signal = spec.signal
        self._unit_nj = spec.shown_unit_nj
        self._value = value
        self._registers = registers
        self._register = register
        self._put = -1
        start = int(spec.start_joules / spec.unit_joules)
        if spec.wrap_at_s is not None:
            start = (1 << spec.counter_bits) - int(spec.signal.energy_joules(0.0, spec.wrap_at_s) / spec.unit_joules)
        self._counter = _Counter(start, spec.unit_joules, spec.counter_bits, spec.faults)

    def advance(self, t_s: float) -> None:
        count = self._counter.count(self._signal.energy_joules(0.0, t_s), t_s)
        self._value.show(count * self._unit_nj // 1000, t_s)
        if self._registers is not None and count != self._put:
            self._registers.put(self._register, count)
            self._put = count

    def close(self) -> None:
        self._value.close()
        if self._registers is not None:
            self._registers.close()


@dataclass(frozen=True, slots=True)
class _PowerFile:
    """A file that shows the power, or the current at a constant voltage, or that voltage."""

    value: MovingFile
    per_watt: float
    constant: float = 0.0

    def show(self, watts: float, t_s: float) -> None:
        self.value.show(round(watts * self.per_watt + self.constant), t_s)


class _Channel:
    """A channel of a chip: a counter of microjoules, a momentary power, or a mean over the interval of the meter."""

    _START_UJ = 1_000_000

    def __init__(
        self, spec: ChannelSpec, update_s: float, energy: MovingFile | None, powers: Sequence[_PowerFile]
    ) -> None:
        self._signal = spec.signal
        self._is_average = spec.average
        self._update_s = update_s
        self._energy = energy
        self._powers = powers
        self._counter = _Counter(self._START_UJ, 1e-6, 64, spec.faults)
        self._next = 0
        self._count = 0
        self._watts = 0.0
        self._averaged_to_s = 0.0
        self._averaged_joules = 0.0

    def advance(self, t_s: float) -> None:
        if t_s >= self._next * self._update_s:
            if self._energy is not None:
                self._count = self._counter.count(self._signal.energy_joules(0.0, t_s), t_s)
            if self._powers:
                self._watts = self._measure(t_s)
            self._next = int(t_s / self._update_s) + 1
        if self._energy is not None:
            self._energy.show(self._count, t_s)
        for power in self._powers:
            power.show(self._watts, t_s)

    def _measure(self, t_s: float) -> float:
        span_s = t_s - self._averaged_to_s
        if not self._is_average or span_s <= 0:
            return self._signal.power_watts(t_s)
        energy_joules = self._signal.energy_joules(0.0, t_s)
        watts = (energy_joules - self._averaged_joules) / span_s
        self._averaged_to_s, self._averaged_joules = t_s, energy_joules
        return watts

    def close(self) -> None:
        for value in (self._energy, *(power.value for power in self._powers)):
            if value is not None:
                value.close()


class _RuntimeStatus:
    """The state of a device's runtime power management."""

    def __init__(self, suspends: Sequence[Fault], value: MovingFile) -> None:
        self._suspends = suspends
        self._value = value

    def advance(self, t_s: float) -> None:
        is_suspended = any(fault.is_on(t_s) for fault in self._suspends)
        self._value.show(b"suspended\n" if is_suspended else b"active\n", t_s)

    def close(self) -> None:
        self._value.close()


class _Stat:
    """procfs/stat: the utilisation of the CPUs follows the load of the scenario, or its workloads."""

    _MIN_UPDATE_S = 1.0 / _TICKS_PER_SECOND

    def __init__(self, machine: MachineSpec, workload_loads: Sequence[WorkloadLoad], path: str, writer: Writer) -> None:
        self._machine = machine
        self._workload_loads = workload_loads
        self._path = path
        self._writer = writer
        self._next_s = 0.0

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
        if self._workload_loads:
            # In single ticks, not in one for each CPU: an exporter shares energy by this line.
            all_busy = int(self._workload_loads[0].busy_s * _TICKS_PER_SECOND)
        all_idle = max(0, total_ticks * per_socket * machine.sockets - all_busy)
        head = f"cpu  {all_busy} 0 0 {all_idle} 0 0 0 0 0 0\n"
        tail = f"\nintr 0\nctxt 0\nbtime {boot_unix_s}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n"
        self._writer.put(self._path, (head + "\n".join(lines) + tail).encode())

    def _busy_ticks(self, socket: int, t_s: float) -> int:
        if self._workload_loads:
            n_cpus = self._machine.sockets * self._machine.cpus_per_socket
            return int(self._workload_loads[0].busy_s / n_cpus * _TICKS_PER_SECOND)
        if not self._machine.load:
            return 0
        load = self._machine.load[socket]
        above_idle_joules = load.signal.energy_joules(0.0, t_s) - load.idle_watts * t_s
        busy_s = above_idle_joules / (load.full_watts - load.idle_watts)
        return max(0, int(busy_s * _TICKS_PER_SECOND))


class Tree:
    """The three trees of a scenario in one directory."""

    def __init__(self, scenario: Scenario, directory: Path, scratch: Path, boot_unix_s: int) -> None:
        """Write the files that never change; `advance` writes the others.

        Args:
            scenario: The machine.
            directory: For ``sys``, ``proc`` and ``dev``, which must not exist.
            scratch: An existing directory outside the three trees, on the same file system.
            boot_unix_s: Boot time in ``/proc/stat``.

        Raises:
            OSError: A file cannot be written.
        """
        self._sysfs = directory / "sys"
        self._procfs = directory / "proc"
        self._dev = directory / "dev"
        self._scratch = scratch
        self._writer = Writer(scratch)
        self._boot_unix_s = boot_unix_s
        self._moving: list[_Zone | _Channel | _RuntimeStatus] = []
        self._vanishing: list[Vanishing] = []
        self._registers: dict[int, _Registers] = {}
        for root in (self._sysfs, self._procfs, self._dev):
            root.mkdir(parents=True)
        self._writer.put_line(self._sysfs / EMULATION_MARKER, scenario.name)
        self._write_machine(scenario.machine)
        sockets: dict[str, int] = {}
        for zone in sorted(scenario.zones, key=lambda spec: spec.zone.count(":")):
            self._write_zone(zone)
            path = str(self._zone_directory(zone.zone) / "energy_uj")
            value = MovingFile(self._writer, path, zone.faults, in_place=True)
            self._moving.append(_Zone(zone, value, *self._register_of(zone, scenario.machine, sockets)))
        for number, chip in enumerate(scenario.chips):
            self._write_chip(number, chip, scenario.refresh_s)
        # Only now do all links exist that vanish with a parent zone.
        for spec in scenario.zones:
            self._add_vanishing(self._zone_directory(spec.zone), Path("class/powercap", spec.zone), spec.faults)
        for number, chip in enumerate(scenario.chips):
            self._add_vanishing(self._sysfs / chip.path, _chip_link(number, chip), chip.faults)
        self._stat = _Stat(scenario.machine, scenario.workload_loads, str(self._procfs / "stat"), self._writer)

    def advance(self, t_s: float) -> None:
        """Update every file to ``t_s`` seconds after the start."""
        for vanishing in self._vanishing:
            vanishing.advance(t_s)
        for moving in self._moving:
            moving.advance(t_s)
        self._stat.advance(t_s, self._boot_unix_s)

    def close(self) -> None:
        """Close all files and release blocked readers; the trees remain. Safe to call twice."""
        for moving in self._moving:
            moving.close()

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
            self._write_topology(machine, cpu, socket)
        cpus = machine.sockets * machine.cpus_per_socket
        for name in ("online", "present", "possible"):
            self._writer.put_line(self._sysfs / "devices/system/cpu" / name, f"0-{cpus - 1}" if cpus > 1 else "0")
        self._writer.put_line(self._procfs / "cpuinfo", "\n".join(lines))
        self._writer.put_line(self._procfs / "meminfo", f"MemTotal: {int(machine.memory_gib * 2**20):>14} kB")

    def _write_topology(self, machine: MachineSpec, cpu: int, socket: int) -> None:
        """Write the topology of a CPU: the threads of a core differ by the number of cores of the socket."""
        topology = self._sysfs / "devices/system/cpu" / f"cpu{cpu}" / "topology"
        core = (cpu - socket * machine.cpus_per_socket) % machine.cores
        first = socket * machine.cpus_per_socket + core
        threads = range(first, (socket + 1) * machine.cpus_per_socket, machine.cores)
        topology.mkdir(parents=True)
        for name, value in (
            ("physical_package_id", socket),
            ("die_id", 0),
            ("core_id", core),
            ("core_cpus_list", ",".join(str(thread) for thread in threads)),
        ):
            # Not by rename, which is slow for four files of each of 256 CPUs; they are not read yet.
            (topology / name).write_text(f"{value}\n", "ascii")

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
            self._writer.put_line(directory.parents[spec.zone.count(":") - 1] / "enabled", 1)
            root = self._sysfs / "devices/virtual/powercap" / control
            link(classes / control, root)
            link(root / "subsystem", classes)
        self._writer.put_line(directory / "name", spec.name)
        self._writer.put_line(directory / "enabled", int(spec.enabled))
        if spec.range_file:
            self._writer.put_line(
                directory / "max_energy_range_uj", ((1 << spec.counter_bits) - 1) * spec.shown_unit_nj // 1000
            )
        if spec.power_limit_watts:
            self._writer.put_line(directory / "constraint_0_name", "long_term")
            self._writer.put_line(directory / "constraint_0_power_limit_uw", round(spec.power_limit_watts * 1e6))
        link(classes / spec.zone, directory)

    def _register_of(
        self, spec: ZoneSpec, machine: MachineSpec, sockets: dict[str, int]
    ) -> tuple[_Registers | None, int]:
        """Return the register behind a zone, if a file can show it; ``sockets`` are those of earlier packages."""
        mantissa, exponent = math.frexp(spec.unit_joules)
        if not machine.has_msr or spec.counter_bits != 32 or not spec.zone.startswith("intel-rapl:"):
            return None, 0
        if (match := _PACKAGE.fullmatch(spec.name)) is not None:
            socket = int(match[1])
            if mantissa != 0.5 or socket >= machine.sockets or socket in self._registers:
                return None, 0
            path = self._dev / "cpu" / str(socket * machine.cpus_per_socket) / "msr"
            path.parent.mkdir(parents=True)
            registers = self._registers[socket] = _Registers(path)
            # Bits 12:8: the step is 2^-n J. The units of power and time are those of servers since Haswell.
            registers.put(_MSR_POWER_UNIT, 0xA0003 | (1 - exponent) << 8)
            sockets[spec.zone] = socket
            return registers, _MSR_PACKAGE
        parent = sockets.get(spec.zone.rpartition(":")[0])
        if parent is None or spec.name not in _MSR_COUNTERS:
            return None, 0
        return self._registers[parent], _MSR_COUNTERS[spec.name]

    def _write_chip(self, number: int, spec: ChipSpec, refresh_s: float) -> None:
        device = self._sysfs / spec.path
        name = _chip_link(number, spec)
        if spec.subsystem == "iio":
            folder = device / name.name
            folder.mkdir(parents=True)
            link(self._sysfs / name, folder)
        else:
            hwmon = device / "hwmon" / name.name
            hwmon.mkdir(parents=True)
            link(hwmon / "device", device)
            link(self._sysfs / name, hwmon)
            folder = device if spec.files_at_device else hwmon
        self._writer.put_line(folder / "name", spec.chip)
        for file, text in spec.files.items():
            self._writer.put_line(folder / file, text)
        if spec.suspends:
            path = device / "power" / "runtime_status"
            path.parent.mkdir(exist_ok=True)
            self._moving.append(_RuntimeStatus(spec.suspends, MovingFile(self._writer, str(path), ())))
        for channel in spec.channels:
            self._write_channel(folder, spec, channel, max(channel.update_s, refresh_s))

    def _write_channel(self, folder: Path, chip: ChipSpec, channel: ChannelSpec, update_s: float) -> None:
        faults = (*channel.faults, *(replace(fault, kind="eio") for fault in chip.suspends))
        is_iio = chip.subsystem == "iio"
        suffix = "average" if channel.average else "input"
        number = channel.number
        stems = {
            "energy": f"energy{number}",
            "power": f"in_power{number}" if is_iio else f"power{number}",
            "volts": f"in_voltage{number}" if is_iio else f"in{channel.in_number or number}",
            "amperes": f"in_current{number}" if is_iio else f"curr{number}",
        }

        def file(kind: str) -> MovingFile:
            path = str(folder / f"{stems[kind]}_{suffix}")
            return MovingFile(self._writer, path, faults, in_place=kind == "energy")

        labelled = stems["volts" if channel.kind == "volts_amperes" else channel.kind]
        if channel.label:
            self._writer.put_line(folder / (f"rail_name_{number}" if is_iio else f"{labelled}_label"), channel.label)
        if channel.average:
            self._writer.put_line(folder / f"{labelled}_average_interval", round(update_s * 1000))
        powers: list[_PowerFile] = []
        if channel.kind == "volts_amperes":
            powers = [
                _PowerFile(file("volts"), 0.0, channel.volts * 1e3),
                _PowerFile(file("amperes"), 1e3 / channel.volts),
            ]
        elif channel.kind == "power" or channel.with_power:
            powers = [_PowerFile(file("power"), 1e3 if is_iio else 1e6)]
        energy = file("energy") if channel.kind == "energy" else None
        self._moving.append(_Channel(channel, update_s, energy, powers))

    def _add_vanishing(self, directory: Path, name: Path, faults: Sequence[Fault]) -> None:
        """Let a directory vanish, with its link and those that add to its name: nested zones."""
        if not any(fault.kind == "vanish" for fault in faults):
            return
        names = sorted((self._sysfs / name.parent).iterdir())
        links = [path for path in names if path.name == name.name or path.name.startswith(f"{name.name}:")]
        hidden = self._scratch / f"gone-{len(self._vanishing)}"
        self._vanishing.append(Vanishing(self._writer, directory, links, hidden, faults))


def _chip_link(number: int, spec: ChipSpec) -> Path:
    """Return the link to a chip, relative to the root of sysfs."""
    return Path(f"bus/iio/devices/iio:device{number}" if spec.subsystem == "iio" else f"class/hwmon/hwmon{number}")


def remove(directory: Path) -> None:
    """Remove the files of an earlier emulator from ``directory``."""
    for name in ("sys", "proc", "dev", "ipmi", "redfish", ".scratch"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in ("scenario.json", "truth.jsonl", EXPORTER_FILE, "lib/nvml.state"):
        (directory / name).unlink(missing_ok=True)
