"""Fake machines: sysfs and procfs trees on disk in the kernel's layout, for tests of collectors."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from joulewatch_exporter.model import Host

NOBODY = 65534

EPYC = {"vendor_id": "AuthenticAMD", "cpu family": 25, "model": 1, "model name": "AMD EPYC 7763 64-Core Processor"}
XEON = {"vendor_id": "GenuineIntel", "cpu family": 6, "model": 106, "model name": "Intel(R) Xeon(R) Platinum 8380"}


class FakeSysfs:
    """A tree on disk; ``open`` is not patched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys"
        self.proc = root / "proc"
        self.sys.mkdir(parents=True)
        self.proc.mkdir()

    @property
    def host(self) -> Host:
        return Host(sysfs=self.sys, procfs=self.proc, dev=self.root)

    def write(self, folder: str, **files: object) -> Self:
        """Write files below the sysfs root, atomically."""
        directory = self.sys / folder
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            path = directory / name
            temporary = path.with_name(f".{name}")
            temporary.write_text(f"{value}\n")
            temporary.replace(path)
        return self

    def link(self, link: str, target: str) -> Self:
        path = self.sys / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(self.sys / target, path.parent))
        return self

    def cpuinfo(self, **fields: object) -> Self:
        """Write the first CPU's entry; keys as the kernel prints them (pass ``**EPYC``)."""
        text = "processor\t: 0\n" + "".join(f"{key}\t: {value}\n" for key, value in fields.items())
        (self.proc / "cpuinfo").write_text(text)
        return self

    def stat(self, *cpus: str) -> Self:
        """Write procfs/stat; each CPU is a text ``user nice system idle iowait irq softirq steal``."""
        rows = [[int(field) for field in cpu.split()] for cpu in cpus]
        total = " ".join(str(sum(column)) for column in zip(*rows, strict=True))
        lines = [f"cpu  {total} 0 0"] + [f"cpu{i} {cpu} 0 0" for i, cpu in enumerate(cpus)]
        (self.proc / "stat").write_text("\n".join(lines) + "\nintr 1 2\nctxt 3\nbtime 4\n")
        return self

    def packages(self, *ids: int) -> Self:
        """Write a CPU topology: one CPU per entry, with its physical package."""
        for cpu, package in enumerate(ids):
            self.write(f"devices/system/cpu/cpu{cpu}/topology", physical_package_id=package)
        return self

    def zone_path(self, zone: str) -> str:
        control, *indices = zone.split(":")
        names = [":".join((control, *indices[: depth + 1])) for depth in range(len(indices))]
        return "/".join((f"devices/virtual/powercap/{control}", *names))

    def rapl_zone(
        self,
        zone: str,
        *,
        name: str,
        energy_uj: object = 1_000_000,
        range_uj: int | None = 65_532_610_987,
        **files: object,
    ) -> Self:
        """Write a powercap zone such as ``intel-rapl:0:1`` (or ``0:1``), linked into the class as by the kernel."""
        zone = zone if zone.startswith(("intel-", "arm-", "dtpm")) else f"intel-rapl:{zone}"
        path = self.zone_path(zone)
        self.write(path, name=name, energy_uj=energy_uj, enabled=1)
        if range_uj is not None:
            self.write(path, max_energy_range_uj=range_uj)
        self.write(path, **files)
        link = f"class/powercap/{zone}"
        return self if (self.sys / link).is_symlink() else self.link(link, path)

    def hwmon(self, index: int, chip: str, *, device: str, at_device: bool = False, **files: object) -> Self:
        """Write a hwmon chip of a device (a path below ``devices``); files go into the hwmon or device directory."""
        path = f"devices/{device}"
        hwmon = f"{path}/hwmon/hwmon{index}"
        self.write(hwmon)
        if not (self.sys / hwmon / "device").is_symlink():
            self.link(f"{hwmon}/device", path)
            self.link(f"class/hwmon/hwmon{index}", hwmon)
        return self.write(path if at_device else hwmon, name=chip, **files)

    def iio(self, index: int, chip: str, *, device: str, **files: object) -> Self:
        """Write a chip of the IIO subsystem, on a device (a path below ``devices``)."""
        name = f"iio:device{index}"
        self.write(f"devices/{device}/{name}", name=chip, **files)
        link = f"bus/iio/devices/{name}"
        return self if (self.sys / link).is_symlink() else self.link(link, f"devices/{device}/{name}")

    def remove(self, path: str) -> Self:
        """Remove a link, a file or a whole directory."""
        target = self.sys / path
        if target.is_symlink() or target.is_file():
            target.unlink()
        else:
            shutil.rmtree(target)
        return self

    def refuse(self, path: str) -> Self:
        """Make reads of a file fail with EIO: link it to unmapped memory of this process."""
        target = self.sys / path
        target.unlink()
        target.symlink_to("/proc/self/mem")
        return self


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """Yield a temporary folder that every user can enter; pytest's own are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="joulewatch-test-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Drop root's permissions, so that the kernel denies access; does nothing for other users."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
