"""The third backend: the registers in ``/dev/cpu/N/msr``.

It needs the kernel module ``msr``, permission to open the file (mode 0600) and CAP_SYS_RAWIO. On AMD it is the only
backend with single cores before Linux 6.14. A register is 8 bytes at the offset of its number; reading a register that
the CPU does not have fails with EIO. The unit of a count is in another register (the energy status unit, ESU), but some
Intel models have fixed units or interpret the ESU differently:

* 2^-ESU J; but 2^ESU microjoules on Silvermont and Airmont;
* memory: 15.3 uJ on servers from Haswell to Ice Lake and on Xeon Phi. Linux' powercap driver uses the same unit, its
  perf events use 2^-16 J, which is 0.27 % less;
* platform: 1 J on Sapphire and Emerald Rapids.

The counters have 32 bits, on some AMD models 64. A register that holds 0 counts as missing: virtual machines return 0
for missing registers, and the kernel's own drivers use the same rule.

Sources: Linux ``arch/x86/kernel/msr.c``, ``arch/x86/events/rapl.c``, ``drivers/powercap/intel_rapl_common.c``;
github amd/amd_energy (models with 64-bit counters); Intel SDM vol. 3B, 15.10; AMD PPRs of family 17h to 1Ah.
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
    NO_COUNTERS,
    CoresSensor,
    Kind,
    Listing,
    Machine,
    Offer,
    RaplSensor,
    Source,
    quantity_of,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host, Quantity, SensorInfo
from joulewatch_exporter.text import count_of

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
"""AMD has these registers since family 17h (Hygon: 18h); no later family has dropped them."""
_AMD_64_BIT_FAMILIES: Final = frozenset({0x1A})
_AMD_64_BIT_MODELS: Final = frozenset({(0x19, 0x10), (0x19, 0x11), (0x19, 0x90), (0x19, 0xA0)})

# Of Intel's family 6, by model.
_UNIT_IN_MICROJOULES: Final = frozenset({0x37, 0x4A, 0x4C, 0x5A})
"""Silvermont, Airmont and their mobile variants."""
_INTEL_UNKNOWN: Final = frozenset({(6, 0x4D), (-1, -1)})
"""Avoton: the kernel does not support its RAPL, and related models differ by a factor of 100. (-1, -1): no model."""
_FIXED_MEMORY_UNIT: Final = frozenset({0x3F, 0x4F, 0x55, 0x56, 0x57, 0x6A, 0x6C, 0x85})
"""Haswell-X, Broadwell-X, Skylake-X (and Cascade and Cooper Lake), Broadwell-D, Xeon Phi, Ice Lake-X and -D."""
_FIXED_PLATFORM_UNIT: Final = frozenset({0x8F, 0xCF})
"""Sapphire and Emerald Rapids. Their memory counters use the ESU."""

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
    """One register of one CPU; its file stays open between reads."""

    __slots__ = ("_descriptor", "_mask", "path", "register")

    def __init__(self, path: str, register: int, mask: int = _64_BITS) -> None:
        """Prepare without opening the file.

        Args:
            path: The CPU's device file.
            register: Number of the register.
            mask: The bits that belong to the counter.
        """
        self.path = path
        self.register = register
        self._mask = mask
        self._descriptor = -1

    def read(self) -> int:
        """Read the register.

        Raises:
            SensorAbsentError: The CPU is offline, or the device file was removed.
            SensorDeniedError: Permissions are missing; the text names them.
            SensorGlitchError: EIO (the register is missing), or a short read.
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
        """Close the file; the next read opens it again. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    @property
    def source(self) -> str:
        """Label value for ``joulewatch_sensor_info``."""
        return f"msr:{self.path}@0x{self.register:X}"

    def _error(self, error: OSError) -> SensorError:
        if error.errno in _DENIED:
            command = capabilities_command()
            how = (
                "run the exporter as root, or with AmbientCapabilities=CAP_SYS_RAWIO CAP_DAC_READ_SEARCH in its "
                f"systemd unit, or run `{command}`"
                if command
                else "root has them, except in a container: start it with --cap-add SYS_RAWIO --device /dev/cpu"
            )
            return SensorDeniedError(f"{self.path}: {error.strerror}; needs read permission and CAP_SYS_RAWIO: {how}")
        if error.errno == errno.ENXIO:
            return SensorAbsentError(f"{self.path}: {error.strerror}: the CPU is offline")
        if error.errno in _ABSENT:
            return SensorAbsentError(f"{self.path}: {error.strerror}")
        return SensorGlitchError(f"{self.path}: register 0x{self.register:X}: {error.strerror}")


def capabilities_command() -> str:
    """Return the command that grants this Python interpreter both capabilities; empty for root, who would have them."""
    if os.geteuid() == 0:
        return ""
    return f"sudo setcap cap_sys_rawio,cap_dac_read_search=ep {os.path.realpath(sys.executable)}"


def counts_per_joule(machine: Machine, kind: Kind, unit_register: int) -> float:
    """Return the number of counts per joule.

    Args:
        machine: The CPU's vendor, family and model.
        kind: The RAPL domain.
        unit_register: Value of the unit register.
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


def probe(machine: Machine, *, parts: bool, cores: bool) -> Listing:
    """List the counters of this backend.

    Args:
        machine: The CPUs.
        parts: Whether to include ``core`` and ``uncore``.
        cores: Whether to include single cores.

    Raises:
        SensorAbsentError: The CPU's registers are unknown, the module ``msr`` is missing, or the files belong to
            another machine.
    """
    folder = f"{machine.host.dev}/cpu"
    if not machine.cpus:
        raise SensorAbsentError(f"{folder}: not read: the kernel reports no CPU topology")
    is_amd = machine.is_one_counter and machine.family in _AMD_FAMILIES
    is_intel = machine.vendor == "GenuineIntel" and (machine.family, machine.model) not in _INTEL_UNKNOWN
    if not (is_amd or is_intel):
        cpu_model = f"{machine.vendor or 'a CPU of unknown vendor'} family {machine.family} model {machine.model}"
        raise SensorAbsentError(f"{folder}: not read: the RAPL registers of {cpu_model} are unknown")
    if machine.host.emulated and str(machine.host.dev) == "/dev":
        raise SensorAbsentError(f"{folder}: not read: it belongs to this machine, but sysfs to an emulated machine")
    if not any(Path(_path(machine, cpu)).exists() for cpu in machine.lead_cpus):
        hint = f"; {NO_COUNTERS}" if machine.lacks_counters else " (sudo modprobe msr)"
        raise SensorAbsentError(
            f"{_path(machine, machine.cpus[0])}: missing: the kernel module msr is not loaded{hint}"
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
                    backend="msr",
                    device=quantity.device,
                    key=f"{quantity.device}/{quantity.domain}",
                    path=path,
                    subject=path,
                    label=f"register 0x{registers[kind]:X}",
                    fix=capabilities_command(),
                    open=partial(_open, machine, quantity, kind, Msr(path, registers[kind], _mask(machine))),
                    if_absent="absent" if kind == "package" else "",
                )
            )
    if cores and is_amd:
        names = {cpu.package: machine.core_names(cpu.package) for cpu in machine.lead_cpus}
        for package in names:
            package_cores = [core for core in machine.cores if core.package == package]
            offers.append(
                Offer(
                    backend="msr",
                    device=f"socket{package}",
                    key=f"socket{package}/{CORES}",
                    path=_path(machine, package_cores[0]),
                    subject=_path(machine, package_cores[0]),
                    label=f"register 0x{_AMD_CORE:X}",
                    fix=capabilities_command(),
                    open=partial(_open_cores, machine, package, package_cores, names[package]),
                    if_absent="absent",
                )
            )
    return Listing(folder, tuple(offers))


def is_loaded(host: Host) -> bool:
    """Return whether the module ``msr`` is loaded; a change means that this backend appeared or disappeared."""
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
    _check_counter(msr)
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
    first_error: SensorError | None = None
    for core in cores:
        path = _path(machine, core)
        quantity = Quantity(scope="part", component="cpu", device=device, domain=names[core.number])
        msr = Msr(path, _AMD_CORE, _mask(machine))
        try:
            if unit is None:
                unit = counts_per_joule(machine, "core", _read_units(machine, path))
            _check_counter(msr)
        except SensorDeniedError:
            raise  # the same permission opens all cores
        except SensorError as error:
            first_error = first_error or error
            continue
        opened.append((quantity, msr))
        infos.append(_info(machine, quantity, msr, unit, MAX_CORE_WATTS, is_core=True))
    if unit is None or not opened:
        raise first_error or SensorAbsentError(f"{device}: no core is online")
    text = f"{device}: {count_of(len(opened), 'core')}, register 0x{_AMD_CORE:X} of each"
    if first_error is not None:
        text += f"; {len(cores) - len(opened)} could not be read: {first_error}"
    return CoresSensor(device=device, infos=tuple(infos), _cores=tuple(opened), _counts_per_joule=unit), text


def _read_units(machine: Machine, path: str) -> int:
    """Read the unit register; raises the errors of `_first_read`."""
    msr = Msr(path, _AMD_UNIT if machine.is_one_counter else _INTEL_UNIT)
    try:
        units = _first_read(msr)
    except SensorDeniedError as error:
        if machine.lacks_counters:
            raise SensorAbsentError(f"{path}: {NO_COUNTERS}") from error
        raise
    msr.close()
    if units == 0:
        raise SensorAbsentError(f"{path}: register 0x{msr.register:X} holds no units (typical of a virtual machine)")
    return units


def _first_read(msr: Msr) -> int:
    """Read a register for the first time.

    Raises:
        SensorAbsentError: The CPU does not have the register, or is offline.
        SensorDeniedError: Permissions are missing.
    """
    try:
        return msr.read()
    except SensorGlitchError as error:
        raise SensorAbsentError(f"{error}: this CPU, or this virtual machine, does not have the register") from error


def _check_counter(msr: Msr) -> None:
    """Raise the errors of `_first_read`, or `SensorAbsentError` if the counter is 0."""
    if _first_read(msr) == 0:
        msr.close()
        raise SensorAbsentError(
            f"{msr.path}: register 0x{msr.register:X} holds 0: missing (or a virtual machine, where it never changes)"
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
