"""The third door: the registers themselves, by ``/dev/cpu/N/msr``.

It needs the kernel module ``msr``, the right to open the file (0600) and CAP_SYS_RAWIO as well. On AMD it is the only
door to single cores before Linux 6.14. A register is 8 bytes at the offset of its number; one that the CPU does not
have is EIO. What a count is worth is in another register (the energy status unit, ESU), but for some Intel models it
is fixed, or means something else:

* 2^-ESU J; but 2^ESU microjoules on Silvermont and Airmont;
* memory: 15.3 uJ on the servers from Haswell to Ice Lake and on Xeon Phi. Linux' powercap takes the same, its perf
  events take 2^-16 J, 0.27 % less;
* platform: 1 J on Sapphire and Emerald Rapids.

The counters have 32 bits, but for some AMD models 64. A register that holds 0 is not there: virtual machines answer
so, and the kernel's own drivers judge by the same rule.

Sources: Linux ``arch/x86/kernel/msr.c``, ``arch/x86/events/rapl.c``, ``drivers/powercap/intel_rapl_common.c``;
github amd/amd_energy (which models count in 64 bits); Intel SDM vol. 3B, 15.10; AMD PPRs of family 17h to 1Ah.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import Cpu
from joulewatch_exporter.collectors.rapl.backend import (
    CORES,
    MAX_CORE_WATTS,
    MAX_POWER_WATTS,
    CoresSensor,
    Kind,
    Machine,
    Offer,
    RaplSensor,
    Source,
    View,
    quantity_of,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host, Quantity, SensorInfo

_AMD_UNIT: Final = 0xC0010299
_AMD_CORE: Final = 0xC001029A
_AMD_PACKAGE: Final = 0xC001029B
_INTEL_UNIT: Final = 0x606
_INTEL_REGISTERS: Final[dict[Kind, int]] = {
    "package": 0x611,
    "core": 0x639,
    "uncore": 0x641,
    "dram": 0x619,
    "psys": 0x64D,
}

_AMD_FAMILIES: Final = range(0x17, 0x100)
"""The first with these registers is 17h, and Hygon's 18h; none since has given them up."""
_AMD_64_BIT_FAMILIES: Final = frozenset({0x1A})
_AMD_64_BIT_MODELS: Final = frozenset({(0x19, 0x10), (0x19, 0x11), (0x19, 0x90), (0x19, 0xA0)})

# Of Intel's family 6, by model.
_UNIT_IN_MICROJOULES: Final = frozenset({0x37, 0x4A, 0x4C, 0x5A})
"""Silvermont, Airmont and their mobile kin."""
_INTEL_NOT_KNOWN: Final = frozenset({(6, 0x4D), (-1, -1)})
"""Avoton: the kernel has no RAPL for it, and its kin differ by a factor of a hundred. And what tells no model."""
_FIXED_MEMORY_UNIT: Final = frozenset({0x3F, 0x4F, 0x55, 0x56, 0x57, 0x6A, 0x6C, 0x85})
"""Haswell-X, Broadwell-X, Skylake-X (and Cascade and Cooper Lake), Broadwell-D, Xeon Phi, Ice Lake-X and -D."""
_FIXED_PLATFORM_UNIT: Final = frozenset({0x8F, 0xCF})
"""Sapphire and Emerald Rapids. Their memory follows the ESU."""

_FIXED_MEMORY_UNIT_UJ: Final = 15.3

_32_BITS: Final = 2**32 - 1
_64_BITS: Final = 2**64 - 1
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR})

_open_file = os.open
_pread = os.pread
_from_bytes = int.from_bytes


class Msr:
    """One register of one CPU, its file kept open between reads."""

    __slots__ = ("_descriptor", "_mask", "path", "register")

    def __init__(self, path: str, register: int, mask: int = _64_BITS) -> None:
        """Prepare; nothing is opened yet.

        Args:
            path: The CPU's device file.
            register: Number of the register.
            mask: The bits that count.
        """
        self.path = path
        self.register = register
        self._mask = mask
        self._descriptor = -1

    def read(self) -> int:
        """Read the register.

        Raises:
            SensorAbsentError: The CPU is offline, or the device file gone.
            SensorDeniedError: The rights are missing; the text says which.
            SensorGlitchError: EIO, which is what a missing register answers, or a short read.
        """
        try:
            if self._descriptor < 0:
                self._descriptor = _open_file(self.path, _FLAGS)
            data = _pread(self._descriptor, 8, self.register)
        except OSError as error:
            self.close()
            raise self._error(error) from error
        if len(data) != 8:
            raise SensorGlitchError(f"{self.path}: register 0x{self.register:X}: {len(data)} bytes instead of 8")
        return _from_bytes(data, "little") & self._mask

    def close(self) -> None:
        """Let go of the file; the next read opens it again. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    @property
    def source(self) -> str:
        """For ``joulewatch_sensor_info``."""
        return f"msr:{self.path}@0x{self.register:X}"

    def _error(self, error: OSError) -> SensorError:
        if error.errno in _DENIED:
            return SensorDeniedError(
                f"{self.path}: {error.strerror}; it takes the right to read the file, and CAP_SYS_RAWIO: run the "
                "exporter as root, with AmbientCapabilities=CAP_SYS_RAWIO CAP_DAC_READ_SEARCH in its systemd unit, or "
                f"`{denied_cure()}`"
            )
        if error.errno == errno.ENXIO:
            return SensorAbsentError(f"{self.path}: {error.strerror}: the CPU is offline")
        if error.errno in _ABSENT:
            return SensorAbsentError(f"{self.path}: {error.strerror}")
        return SensorGlitchError(f"{self.path}: register 0x{self.register:X}: {error.strerror}")


def denied_cure() -> str:
    """Return the line that gives this Python both rights."""
    return f"sudo setcap cap_sys_rawio,cap_dac_read_search=ep {os.path.realpath(sys.executable)}"


def counts_per_joule(machine: Machine, kind: Kind, unit_register: int) -> float:
    """Say how many counts make a joule.

    Args:
        machine: The CPU's vendor, family and model.
        kind: What is counted.
        unit_register: What the register of units holds.
    """
    esu = unit_register >> 8 & 0x1F
    if machine.vendor == "GenuineIntel" and machine.family == 6:
        if kind == "psys" and machine.model in _FIXED_PLATFORM_UNIT:
            return 1.0
        if kind == "dram" and machine.model in _FIXED_MEMORY_UNIT:
            return 1e6 / _FIXED_MEMORY_UNIT_UJ
        if machine.model in _UNIT_IN_MICROJOULES:
            return 1e6 / (1 << esu)
    return float(1 << esu)


def look(machine: Machine, *, parts: bool, cores: bool) -> View:
    """List the counters behind this door.

    Args:
        machine: The CPUs.
        parts: Whether ``core`` and ``uncore`` are wanted.
        cores: Whether single cores are wanted.

    Raises:
        SensorAbsentError: A CPU whose registers are not known, no module ``msr``, or files that are not this machine's.
    """
    folder = f"{machine.host.dev}/cpu"
    if not machine.cpus:
        raise SensorAbsentError(f"{folder}: not read: the kernel tells no topology of the CPUs")
    is_amd = machine.is_one_counter and machine.family in _AMD_FAMILIES
    is_intel = machine.vendor == "GenuineIntel" and (machine.family, machine.model) not in _INTEL_NOT_KNOWN
    if not (is_amd or is_intel):
        which = f"{machine.vendor or 'a CPU of unknown vendor'} family {machine.family} model {machine.model}"
        raise SensorAbsentError(f"{folder}: not read: the RAPL registers of {which} are not known")
    if machine.host.emulated and str(machine.host.dev) == "/dev":
        raise SensorAbsentError(f"{folder}: not read: these are this machine's, and sysfs is an emulated one's")
    if not any(Path(_path(machine, cpu)).exists() for cpu in machine.lead_cpus):
        raise SensorAbsentError(
            f"{_path(machine, machine.cpus[0])}: not there: the kernel module msr is not loaded (sudo modprobe msr)"
        )
    offers = []
    for cpu in machine.lead_cpus:
        registers = {"package": _AMD_PACKAGE} if is_amd else _INTEL_REGISTERS
        for kind in _INTEL_REGISTERS:
            if kind not in registers or (kind in ("core", "uncore") and not parts):
                continue
            quantity = quantity_of(kind, cpu.package, None if kind == "psys" else machine.die_of(cpu))
            path = _path(machine, cpu)
            offers.append(
                Offer(
                    door="msr",
                    device=quantity.device,
                    key=f"{quantity.device}/{quantity.domain}",
                    path=path,
                    subject=path,
                    label=f"register 0x{registers[kind]:X}",
                    cure=denied_cure(),
                    open=partial(_open, machine, quantity, kind, Msr(path, registers[kind], _mask(machine))),
                    if_absent="absent" if kind == "package" else "",
                )
            )
    if cores and is_amd:
        names = {cpu.package: machine.core_names(cpu.package) for cpu in machine.lead_cpus}
        for package in names:
            firsts = [core for core in machine.cores if core.package == package]
            offers.append(
                Offer(
                    door="msr",
                    device=f"socket{package}",
                    key=f"socket{package}/{CORES}",
                    path=_path(machine, firsts[0]),
                    subject=_path(machine, firsts[0]),
                    label=f"register 0x{_AMD_CORE:X}",
                    cure=denied_cure(),
                    open=partial(_open_cores, machine, package, firsts, names[package]),
                    if_absent="absent",
                )
            )
    return View(folder, tuple(offers))


def is_loaded(host: Host) -> bool:
    """Whether the module ``msr`` is there: another answer than before means that a door has opened or closed."""
    return Path(f"{host.dev}/cpu/0/msr").exists()


def _path(machine: Machine, cpu: Cpu) -> str:
    return f"{machine.host.dev}/cpu/{cpu.number}/msr"


def _mask(machine: Machine) -> int:
    is_wide = machine.is_one_counter and (
        machine.family in _AMD_64_BIT_FAMILIES or (machine.family, machine.model) in _AMD_64_BIT_MODELS
    )
    return _64_BITS if is_wide else _32_BITS


def _open(machine: Machine, quantity: Quantity, kind: Kind, msr: Msr) -> tuple[RaplSensor | CoresSensor, str]:
    unit = counts_per_joule(machine, kind, _read_units(machine, msr.path))
    _try_counter(msr)
    info = _info(machine, quantity, msr, unit, MAX_POWER_WATTS[kind], is_core=kind == "core")
    text = f"{quantity.device} {quantity.domain}: register 0x{msr.register:X}"
    return RaplSensor(
        device=quantity.device, infos=(info,), _quantity=quantity, _source=msr, _counts_per_joule=unit
    ), text


def _open_cores(
    machine: Machine, package: int, cores: Sequence[Cpu], names: dict[int, str]
) -> tuple[RaplSensor | CoresSensor, str]:
    device = f"socket{package}"
    opened: list[tuple[Quantity, Source]] = []
    infos = []
    unit: float | None = None
    failure: SensorError | None = None
    for core in cores:
        path = _path(machine, core)
        quantity = Quantity(scope="part", component="cpu", device=device, domain=names[core.number])
        msr = Msr(path, _AMD_CORE, _mask(machine))
        try:
            if unit is None:
                unit = counts_per_joule(machine, "core", _read_units(machine, path))
            _try_counter(msr)
        except SensorDeniedError:
            raise  # one right opens all
        except SensorError as error:
            failure = failure or error
            continue
        opened.append((quantity, msr))
        infos.append(_info(machine, quantity, msr, unit, MAX_CORE_WATTS, is_core=True))
    if unit is None or not opened:
        raise failure or SensorAbsentError(f"{device}: no core is online")
    text = f"{device}: {len(opened)} cores, each by its register 0x{_AMD_CORE:X}"
    if failure is not None:
        text += f"; {len(cores) - len(opened)} could not be read: {failure}"
    return CoresSensor(device=device, infos=tuple(infos), _cores=tuple(opened), _counts_per_joule=unit), text


def _read_units(machine: Machine, path: str) -> int:
    """Read the register of units; errors as those of `_try`."""
    msr = Msr(path, _AMD_UNIT if machine.is_one_counter else _INTEL_UNIT)
    units = _try(msr)
    msr.close()
    if units == 0:
        raise SensorAbsentError(f"{path}: register 0x{msr.register:X} holds no units (a virtual machine answers so)")
    return units


def _try(msr: Msr) -> int:
    """Read a register for the first time.

    Raises:
        SensorAbsentError: The CPU does not have it, or is offline.
        SensorDeniedError: The rights are missing.
    """
    try:
        return msr.read()
    except SensorGlitchError as error:
        raise SensorAbsentError(f"{error}: this CPU, or this virtual machine, does not have it") from error


def _try_counter(msr: Msr) -> None:
    """Read a counter for the first time; errors as those of `_try`."""
    if _try(msr) == 0:
        msr.close()
        raise SensorAbsentError(
            f"{msr.path}: register 0x{msr.register:X} holds 0: not present (or a virtual machine, where it never moves)"
        )


def _info(
    machine: Machine, quantity: Quantity, msr: Msr, unit: float, max_power_watts: float, *, is_core: bool
) -> SensorInfo:
    return SensorInfo(
        quantity=quantity,
        method="counter",
        source=msr.source,
        model=machine.name,
        resolution=f"{1e6 / unit:.3g} uJ" if unit > 1 else f"{1 / unit:g} J",
        wrap_joules=2**32 / unit if _mask(machine) == _32_BITS else None,
        max_power_watts=max_power_watts,
        relation="core" if is_core else "inside",
    )
