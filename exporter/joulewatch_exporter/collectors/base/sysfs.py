"""Reads one small file of sysfs or procfs and turns what can go wrong into the error tree.

A sysfs file is produced by the driver whenever it is read from its beginning. `HeldInt` is the hot path of a scan: it
keeps the file open, which makes a read three times cheaper, and notices when the file has been replaced or its device
has gone. `read_int` and `read_text` are for what is read once; they take plain strings (no `Path`).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.ENXIO})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_NUMBER_BYTES: Final = 64
_TEXT_BYTES: Final = 4096  # a sysfs attribute is at most one page

_CPU_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_CPUS: Final = 65_536
"""More than any kernel has: a longer range is garbage, and must not fill the memory."""

# The names are bound once: an attribute look-up less for each call of a read.
_open = os.open
_read = os.read
_pread = os.pread
_fstat = os.fstat
_close = os.close


def denied_cure(path: str) -> str:
    """Return the line that lets this exporter read ``path`` until the next boot."""
    return f"sudo chmod a+r {path}"


def sensor_error(path: str, error: OSError) -> SensorError:
    """Turn the kernel's answer into the error tree.

    Args:
        path: The file that was read.
        error: What the kernel said.

    Returns:
        `SensorAbsentError` where the file or its device is gone, `SensorDeniedError` (with the cure) where the
        rights are missing, `SensorGlitchError` for the rest: EIO, ENODATA, EAGAIN and whatever else a driver
        answers for this one read.
    """
    if error.errno in _ABSENT:
        return SensorAbsentError(f"{path}: {error.strerror}")
    if error.errno in _DENIED:
        return SensorDeniedError(
            f"{path}: {error.strerror}; run `{denied_cure(path)}` (until the next boot), or for good run the exporter "
            "as root or with AmbientCapabilities=CAP_DAC_READ_SEARCH in its systemd unit"
        )
    return SensorGlitchError(f"{path}: {error.strerror or error}")


def read_int(path: str) -> int:
    """Read a file that holds one whole number.

    Raises:
        SensorAbsentError: The file or its device is gone.
        SensorDeniedError: The rights are missing; the text holds the path and the cure.
        SensorGlitchError: The driver refused this read, or the text is empty or no whole number.
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
        raise SensorGlitchError(f"{path}: {shown!r} is no whole number") from error


class HeldInt:
    """A file that holds one whole number, kept open between reads.

    A file that was replaced (by a rename, as programs that write whole files do) has no link any more: then it is
    opened anew, so that an old value is never read. A device that has gone answers ENODEV to the held file.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1

    def read(self) -> int:
        """Read the number as it is now; errors as those of `read_int`."""
        try:
            if self._descriptor < 0:
                self._descriptor = _open(self.path, _FLAGS)
            elif not _fstat(self._descriptor).st_nlink:
                self.close()
                self._descriptor = _open(self.path, _FLAGS)
            text = _pread(self._descriptor, _NUMBER_BYTES, 0)
        except OSError as error:
            self.close()
            raise sensor_error(self.path, error) from error
        return _whole_number(self.path, text)

    def close(self) -> None:
        """Let go of the file; the next read opens it again. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _close(descriptor)

    def __del__(self) -> None:
        self.close()


def read_text(path: str, max_bytes: int = _TEXT_BYTES) -> str:
    """Read a short text file, without the white space around it.

    Args:
        path: The file.
        max_bytes: What is beyond this is not read; procfs files can be longer than a sysfs page.

    Raises:
        SensorAbsentError: The file or its device is gone.
        SensorDeniedError: The rights are missing; the text holds the path and the cure.
        SensorGlitchError: The driver refused this read, or the text is empty.
    """
    try:
        descriptor = _open(path, _FLAGS)
        try:
            # Long procfs files come in pieces: read until the end or the limit.
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
    """Read a text file that need not be there: ``default`` if it is absent, denied or empty."""
    try:
        return read_text(path)
    except SensorError:
        return default


def read_int_or_none(path: str) -> int | None:
    """Read a number that need not be there: None if it is absent, denied or no number."""
    try:
        return read_int(path)
    except SensorError:
        return None


def list_names(path: str) -> list[str]:
    """List the names in a directory, sorted.

    Raises:
        SensorAbsentError: The directory is not there.
        SensorDeniedError: It may not be listed.
    """
    try:
        return sorted(entry.name for entry in Path(path).iterdir())
    except OSError as error:
        raise sensor_error(path, error) from error


def physical_packages(sysfs: Path) -> frozenset[int]:
    """Return the ids of the CPU packages under a sysfs root; empty where the kernel does not tell them."""
    root = f"{sysfs}/devices/system/cpu"
    try:
        cpus = [name for name in list_names(root) if re.fullmatch(r"cpu\d+", name)]
    except SensorError:
        return frozenset()
    ids = (read_int_or_none(f"{root}/{cpu}/topology/physical_package_id") for cpu in cpus)
    return frozenset(number for number in ids if number is not None and number >= 0)


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU that is online, and where it sits."""

    number: int
    package: int
    """Physical package id: the N of ``package-N`` and ``socketN``."""
    die: int
    """Die within the package; 0 where the kernel tells none."""
    core: int
    """Core id as the kernel gives it, which may repeat in another die; the CPU's own number where it gives none."""
    siblings: str
    """The same text for all CPUs of one core; empty where the kernel does not tell."""

    @property
    def core_key(self) -> str | tuple[int, int, int]:
        """The same for all CPUs of one core, and for no other."""
        return self.siblings or (self.package, self.die, self.core)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse a kernel's list of CPUs, such as ``0-3,64``.

    Raises:
        ValueError: It is none.
    """
    numbers: list[int] = []
    for piece in text.split(","):
        if (match := _CPU_RANGE.fullmatch(piece.strip())) is None:
            raise ValueError(f"{text[:40]!r} is no list of CPUs")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first or last - first > _MOST_CPUS:
            raise ValueError(f"{text[:40]!r} is no list of CPUs")
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


def online_cpus(sysfs: Path) -> tuple[Cpu, ...]:
    """List the logical CPUs that are online, in the order of their numbers; empty where the kernel does not tell."""
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
            continue  # gone offline just now, or a kernel that does not know
        core = read_int_or_none(f"{topology}/core_id")
        cpus.append(
            Cpu(
                number,
                package,
                max(read_int_or_none(f"{topology}/die_id") or 0, 0),
                number if core is None or core < 0 else core,
                read_text_or(f"{topology}/core_cpus_list", "") or read_text_or(f"{topology}/thread_siblings_list", ""),
            )
        )
    return tuple(cpus)


def one_per_core(cpus: Sequence[Cpu]) -> tuple[Cpu, ...]:
    """Take the first CPU of each core: what a core counts is the same for all its threads."""
    firsts: dict[str | tuple[int, int, int], Cpu] = {}
    for cpu in cpus:
        firsts.setdefault(cpu.core_key, cpu)
    return tuple(firsts.values())


def cpuinfo(host: Host) -> str:
    """Read the beginning of ``cpuinfo``: the first CPU's entry, which speaks for all.

    Returns:
        The text, or nothing where it cannot be read or does not belong to the sysfs tree: this machine's /proc says
        nothing about a copied tree (a live one, mounted elsewhere for a container, names its CPU in ``modalias``).
    """
    is_this_machine = str(host.sysfs) == "/sys" or Path(f"{host.sysfs}/devices/system/cpu/modalias").exists()
    if str(host.procfs) == "/proc" and not is_this_machine:
        return ""
    return read_text_or(f"{host.procfs}/cpuinfo", "")
