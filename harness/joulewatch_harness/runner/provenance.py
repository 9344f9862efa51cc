"""Facts about the machine of a run: host, processor, memory, accelerators, kernel, versions.

They are read from procfs and sysfs. A fact that cannot be read is omitted, without an error. No fact identifies a
person: there is no user name, no path, no environment variable.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

PACKAGES: Final = ("joulewatch", "numpy", "onnxruntime", "onnx")

_PCI_CLASSES: Final[Mapping[str, str]] = {
    "0x0300": "display controller",
    "0x0302": "3D controller",
    "0x0380": "display controller",
    "0x1200": "processing accelerator",
}
_PCI_VENDORS: Final[Mapping[str, str]] = {
    "0x10de": "NVIDIA",
    "0x1002": "AMD",
    "0x10ee": "AMD Xilinx",
    "0x8086": "Intel",
    "0x1da3": "Habana",
    "0x1d0f": "Amazon",
}


def collect(sysfs: Path = Path("/sys"), procfs: Path = Path("/proc")) -> dict[str, Any]:
    """Return the facts of this machine as JSON values.

    Args:
        sysfs: Mount point of sysfs; for tests.
        procfs: Mount point of procfs; for tests.
    """
    facts: dict[str, Any] = {
        "host": platform.node(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "os": _os_name(),
        "python": platform.python_version(),
        "cpu": _cpu(sysfs, procfs),
        "memory_bytes": _memory_bytes(procfs),
        "accelerators": _accelerators(sysfs, procfs),
        "virtualisation": _virtualisation(sysfs, procfs),
        "load_average": _load_average(procfs),
        "versions": _versions(),
        "implementation": sys.implementation.name,
    }
    return {key: value for key, value in facts.items() if value not in ("", None, [], {})}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _cpu(sysfs: Path, procfs: Path) -> dict[str, Any]:
    sockets: set[str] = set()
    cores: set[tuple[str, str]] = set()
    threads = 0
    models: dict[str, None] = {}
    socket = ""
    for line in _text(procfs / "cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            threads += 1
        elif key == "physical id":
            socket = value
            sockets.add(value)
        elif key == "core id":
            cores.add((socket, value))
        elif key in ("model name", "Model", "cpu model"):
            models[value] = None
    cpus = sysfs / "devices/system/cpu"
    governors = {_text(cpu / "cpufreq/scaling_governor") for cpu in cpus.glob("cpu[0-9]*")} - {""}
    frequencies = [_text(cpu / "cpufreq/cpuinfo_max_freq") for cpu in cpus.glob("cpu[0-9]*")]
    highest = max((int(text) for text in frequencies if text.isdecimal()), default=0)
    facts: dict[str, Any] = {
        "model": ", ".join(models),
        "sockets": len(sockets) or None,
        "cores": len(cores) or None,
        "threads": threads or os.cpu_count(),
        "threads_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": ", ".join(sorted(governors)),
        "driver": _text(cpus / "cpu0/cpufreq/scaling_driver"),
        "max_hertz": highest * 1000 or None,
        "smt": _text(cpus / "smt/control"),
        "turbo": _turbo(cpus),
        "power_limits_watts": _power_limits_watts(sysfs),
    }
    return {key: value for key, value in facts.items() if value not in ("", None, {})}


def _power_limits_watts(sysfs: Path) -> dict[str, float]:
    """Return zone and constraint -> power limit of the processors, such as ``intel-rapl:0 long_term``."""
    limits = {}
    for path in sorted(sysfs.glob("class/powercap/*/constraint_*_power_limit_uw")):
        constraint = path.name.removesuffix("_power_limit_uw")
        if (text := _text(path)).isdecimal():
            name = _text(path.with_name(f"{constraint}_name")) or constraint
            limits[f"{path.parent.name} {name}"] = int(text) * 1e-6
    return limits


def _turbo(cpus: Path) -> str:
    off = _text(cpus / "intel_pstate/no_turbo")
    if off:
        return "off" if off == "1" else "on"
    boost = _text(cpus / "cpufreq/boost")
    return {"1": "on", "0": "off"}.get(boost, "")


def _memory_bytes(procfs: Path) -> int | None:
    for line in _text(procfs / "meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _accelerators(sysfs: Path, procfs: Path) -> list[str]:
    """Describe NVIDIA cards by the driver's name, other PCI accelerators by vendor, class and address."""
    accelerators: list[str] = []
    named: set[str] = set()
    for card in _listing(procfs / "driver/nvidia/gpus"):
        for line in _text(card / "information").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                accelerators.append(f"{value.strip()} at {card.name}")
                named.add(card.name.lower())
    for device in _listing(sysfs / "bus/pci/devices"):
        kind = _PCI_CLASSES.get(_text(device / "class")[:6])
        vendor = _PCI_VENDORS.get(_text(device / "vendor"))
        if kind is None or vendor is None or device.name.lower() in named:
            continue
        accelerators.append(f"{vendor} {kind} {_text(device / 'device')} at {device.name}")
    return accelerators


def _virtualisation(sysfs: Path, procfs: Path) -> str:
    """Return the hypervisor's name if the machine reveals it; empty on bare metal."""
    product = " ".join(
        part for part in (_text(sysfs / "class/dmi/id" / name) for name in ("sys_vendor", "product_name")) if part
    )
    flags = next((line for line in _text(procfs / "cpuinfo").splitlines() if line.startswith("flags")), "")
    if "hypervisor" in flags.split():
        return _text(sysfs / "hypervisor/type") or product or "virtual machine"
    known = ("kvm", "qemu", "vmware", "virtualbox", "xen", "virtual machine", "amazon ec2", "google compute")
    return product if any(word in product.lower() for word in known) else ""


def _load_average(procfs: Path) -> list[float]:
    try:
        return [float(word) for word in _text(procfs / "loadavg").split()[:3]]
    except ValueError:
        return []


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
