"""Reads small files of sysfs and procfs, and turns failures into `SensorError`.

A driver produces the contents of a sysfs file each time the file is read from its beginning. `HeldInt` is for the hot
path of a scan: it keeps the file open, so that a read takes a third of the time, and detects when the file was
replaced or its device is gone. `read_int` and `read_text` are for files that are read once; they take plain strings
instead of `Path`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.ENXIO})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_NUMBER_BYTES: Final = 64
_TEXT_BYTES: Final = 4096  # a sysfs attribute is at most one page

_MOUNTINFO_BYTES: Final = 1 << 20
_DEVICE: Final = re.compile(r"(\d+):(\d+)")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_CPU_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_CPUS: Final = 65_536
"""No kernel has more; a longer range is invalid, and must not fill the memory."""

# Bound here to save an attribute look-up in each read.
_open = os.open
_read = os.read
_pread = os.pread
_fstat = os.fstat
_close = os.close


def denied_cure(path: str, rights: Literal["r", "rw"] = "r") -> str:
    """Return the command that lets this exporter access ``path`` until the next boot; empty if it would not help.

    A file whose mode grants access already, which for root is every file, is denied by something else: its driver, a
    security module, kernel lockdown, or the settings of a container.
    """
    for folder in reversed(Path(path).parents):
        if folder.is_dir() and not os.access(folder, os.X_OK, effective_ids=True):
            return f"sudo chmod a+x {folder}"
    wanted = os.R_OK | (os.W_OK if "w" in rights else 0)
    return "" if os.access(path, wanted, effective_ids=True) else f"sudo chmod a+{rights} {path}"


def sensor_error(path: str, error: OSError) -> SensorError:
    """Return the `SensorError` for an error of the kernel.

    Args:
        path: The file that was read.
        error: The error of the kernel.

    Returns:
        `SensorAbsentError` if the file or its device is missing; `SensorDeniedError`, with the fix if there is one, if
        access is denied; otherwise `SensorGlitchError`: EIO, ENODATA, EAGAIN and other errors of a single read.
    """
    if error.errno in _ABSENT:
        return SensorAbsentError(f"{path}: {error.strerror}")
    if error.errno in _DENIED:
        cure = denied_cure(path)
        if not cure:
            return SensorDeniedError(
                f"{path}: {error.strerror}; its file mode allows the read, so something else denies it: its driver, a "
                "security module, kernel lockdown, or a container's settings"
            )
        return SensorDeniedError(
            f"{path}: {error.strerror}; run `{cure}` (until the next boot), or permanently: run the "
            "exporter as root or with AmbientCapabilities=CAP_DAC_READ_SEARCH in its systemd unit"
        )
    return SensorGlitchError(f"{path}: {error.strerror or error}")


def read_int(path: str) -> int:
    """Read a file that contains one whole number.

    Raises:
        SensorAbsentError: The file or its device is missing.
        SensorDeniedError: Permissions are missing; the text holds the path and the fix.
        SensorGlitchError: The driver failed this read, or the text is not a whole number.
    """
    try:
        descriptor = _open(path, _FLAGS)
        try:
            text = _read(descriptor, _NUMBER_BYTES)
        finally:
            _close(descriptor)
    except OSError as error:
        raise sensor_error(path, error) from error
    return _whole_number(path, text)


def _whole_number(path: str, text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        shown = text[:40].decode("utf-8", "replace")
        raise SensorGlitchError(f"{path}: {shown!r} is not a whole number") from error


class Mount(NamedTuple):
    """A file system that this process sees."""

    device: int
    """``st_dev`` of its files."""
    view: str
    """Path of its top within the file system."""
    point: str
    kind: str
    """Such as ``sysfs``."""
    options: tuple[str, ...]
    """Of the file system."""


def mounts(procfs: Path | str) -> tuple[Mount, ...]:
    """Return the mounts of this process, as in proc_pid_mountinfo(5); empty if they cannot be read."""
    try:
        text = Path(f"{procfs}/self/mountinfo").read_bytes()[:_MOUNTINFO_BYTES].decode("utf-8", "surrogateescape")
    except OSError:
        return ()
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or not (number := _DEVICE.fullmatch(fields[2])):
            continue
        view, point = (_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) for field in fields[3:5])
        device = os.makedev(int(number[1]), int(number[2]))
        found.append(Mount(device, view, point, kinds[0], tuple(kinds[2].split(","))))
    return tuple(found)


@lru_cache(1)
def _sysfs_devices() -> frozenset[int]:
    """Return the device number of each mounted sysfs."""
    return frozenset(mount.device for mount in mounts("/proc") if mount.kind == "sysfs")


class HeldFile:
    """A short file that is kept open between reads.

    If the file was replaced (by a rename, as programs that write whole files do), the open file has no links left, and
    is reopened, so that an old value is never read. In sysfs no file is replaced, so this is not checked: if the device
    is gone, the read fails with ENODEV.
    """

    __slots__ = ("_can_be_replaced", "_descriptor", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        self._can_be_replaced = True

    def read_bytes(self) -> bytes:
        """Return the current text; raises the same errors as `read_int`."""
        try:
            if self._descriptor >= 0 and self._can_be_replaced and not _fstat(self._descriptor).st_nlink:
                self.close()
            if self._descriptor < 0:
                self._descriptor = _open(self.path, _FLAGS)
                self._can_be_replaced = _fstat(self._descriptor).st_dev not in _sysfs_devices()
            return _pread(self._descriptor, _NUMBER_BYTES, 0)
        except OSError as error:
            self.close()
            raise sensor_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; the next read reopens it. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _close(descriptor)

    def __del__(self) -> None:
        self.close()


class HeldInt(HeldFile):
    """A file that contains one whole number, kept open between reads."""

    __slots__ = ()

    def read(self) -> int:
        """Return the current number; raises the same errors as `read_int`."""
        return _whole_number(self.path, self.read_bytes())


def read_text(path: str, max_bytes: int = _TEXT_BYTES) -> str:
    """Read a short text file, without leading and trailing white space.

    Args:
        path: The file.
        max_bytes: Read at most this much; procfs files can be longer than a sysfs page.

    Raises:
        SensorAbsentError: The file or its device is missing.
        SensorDeniedError: Permissions are missing; the text holds the path and the fix.
        SensorGlitchError: The driver failed this read, or the text is empty.
    """
    try:
        descriptor = _open(path, _FLAGS)
        try:
            # A long procfs file takes several reads, until its end or the limit.
            pieces = [_read(descriptor, max_bytes)]
            size = len(pieces[0])
            while pieces[-1] and size < max_bytes:
                pieces.append(_read(descriptor, max_bytes - size))
                size += len(pieces[-1])
        finally:
            _close(descriptor)
    except OSError as error:
        raise sensor_error(path, error) from error
    text = b"".join(pieces).decode("utf-8", "replace").strip()
    if not text:
        raise SensorGlitchError(f"{path}: empty")
    return text


def read_text_or(path: str, default: str) -> str:
    """Read an optional text file; return ``default`` if it is missing, denied or empty."""
    try:
        return read_text(path)
    except SensorError:
        return default


def read_int_or_none(path: str) -> int | None:
    """Read an optional number; return None if it is missing, denied or not a number."""
    try:
        return read_int(path)
    except SensorError:
        return None


def path_read_by(thread: int | None) -> str:
    """Return the file that another thread is reading with this module; empty if it reads none.

    Noting the path before each read would slow down all reads for the sake of the few that hang.
    """
    frame = None if thread is None else sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename == __file__:
            held = frame.f_locals.get("self")
            path = held.path if isinstance(held, HeldFile) else frame.f_locals.get("path")
            if isinstance(path, str):
                return path
        frame = frame.f_back
    return ""


def list_names(path: str) -> list[str]:
    """List the names in a directory, sorted.

    Raises:
        SensorAbsentError: The directory is missing.
        SensorDeniedError: The directory may not be listed.
    """
    try:
        return sorted(entry.name for entry in Path(path).iterdir())
    except OSError as error:
        raise sensor_error(path, error) from error


def physical_packages(sysfs: Path) -> frozenset[int]:
    """Return the ids of the CPU packages under a sysfs root; empty if the kernel does not report them."""
    root = f"{sysfs}/devices/system/cpu"
    try:
        cpus = [name for name in list_names(root) if re.fullmatch(r"cpu\d+", name)]
    except SensorError:
        return frozenset()
    ids = (read_int_or_none(f"{root}/{cpu}/topology/physical_package_id") for cpu in cpus)
    return frozenset(number for number in ids if number is not None and number >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One logical CPU that is online, and its place in the topology."""

    number: int
    package: int
    """Physical package id: the N of ``package-N`` and ``socketN``."""
    die: int
    """Die within the package; 0 if the kernel reports none."""
    core: int
    """Core id as the kernel reports it, which may be the same in another die; the CPU's number if it reports none."""
    siblings: str
    """The same text for all CPUs of one core; empty if the kernel reports none."""

    @property
    def core_key(self) -> str | tuple[int, int, int]:
        """A key that all CPUs of one core share, and no other CPU has."""
        return self.siblings or (self.package, self.die, self.core)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse a kernel's list of CPUs, such as ``0-3,64``.

    Raises:
        ValueError: The text is not such a list.
    """
    numbers: list[int] = []
    for piece in text.split(","):
        if (match := _CPU_RANGE.fullmatch(piece.strip())) is None:
            raise ValueError(f"{text[:40]!r} is not a list of CPUs")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first or last - first > _MOST_CPUS:
            raise ValueError(f"{text[:40]!r} is not a list of CPUs")
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


def online_cpus(sysfs: Path) -> tuple[Cpu, ...]:
    """List the logical CPUs that are online, by number; empty if the kernel does not report them."""
    root = f"{sysfs}/devices/system/cpu"
    try:
        numbers = parse_cpu_list(read_text(f"{root}/online"))
    except (SensorError, ValueError):
        try:
            names = list_names(root)
        except SensorError:
            return ()
        numbers = tuple(sorted(int(name[3:]) for name in names if re.fullmatch(r"cpu\d+", name)))
    cpus = []
    for number in numbers:
        topology = f"{root}/cpu{number}/topology"
        package = read_int_or_none(f"{topology}/physical_package_id")
        if package is None or package < 0:
            continue  # it has just gone offline, or the kernel does not report packages
        core = read_int_or_none(f"{topology}/core_id")
        cpus.append(
            Cpu(
                number=number,
                package=package,
                die=max(read_int_or_none(f"{topology}/die_id") or 0, 0),
                core=number if core is None or core < 0 else core,
                siblings=read_text_or(f"{topology}/core_cpus_list", "")
                or read_text_or(f"{topology}/thread_siblings_list", ""),
            )
        )
    return tuple(cpus)


def one_per_core(cpus: Sequence[Cpu]) -> tuple[Cpu, ...]:
    """Return the first CPU of each core, because the counters of a core are the same for all its threads."""
    firsts: dict[str | tuple[int, int, int], Cpu] = {}
    for cpu in cpus:
        firsts.setdefault(cpu.core_key, cpu)
    return tuple(firsts.values())


def is_virtual_machine(host: Host) -> bool:
    """Return whether the CPU reports a hypervisor (x86 flag ``hypervisor``)."""
    flags = re.search(r"^flags\s*:(.*)$", read_text_or(f"{host.procfs}/cpuinfo", ""), re.MULTILINE)
    return flags is not None and "hypervisor" in flags[1].split()


def cpuinfo(host: Host) -> str:
    """Read the beginning of ``cpuinfo``: the entry of the first CPU, which represents all.

    Returns:
        The text; empty if it cannot be read or does not belong to the sysfs tree. This machine's /proc does not
        describe a copied tree. (A live tree, mounted elsewhere for a container, has its CPU in ``modalias``.)
    """
    is_this_machine = str(host.sysfs) == "/sys" or Path(f"{host.sysfs}/devices/system/cpu/modalias").exists()
    if str(host.procfs) == "/proc" and not is_this_machine:
        return ""
    return read_text_or(f"{host.procfs}/cpuinfo", "")
