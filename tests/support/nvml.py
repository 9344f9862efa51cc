"""Emulated NVIDIA GPUs in the process of the test, read by the real nvidia-ml-py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from joulewatch_exporter.collectors.nvml.collector import NvmlCollector, NvmlOptions
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.nvml import SONAME, GpuSpec, NvmlLibrary
from joulewatch_exporter.emulator.signals import Constant
from joulewatch_exporter.model import Host, Reading, Sensor
from support.require import require_program

FIRST = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
SECOND = "GPU-bbbbbbbb-0000-0000-0000-000000000002"

H100 = GpuSpec(uuid=FIRST, bus_id="0000:17:00.0", signal=Constant(300.0), memory=Constant(60.0))
A100 = GpuSpec(
    uuid=SECOND,
    bus_id="0000:65:00.0",
    signal=Constant(200.0),
    name="NVIDIA A100-SXM4-80GB",
    architecture=7,
    averaging_s=0.0,
    limit_watts=400.0,
)
P100 = replace(
    A100, name="Tesla P100-PCIE-16GB", architecture=4, has_energy_counter=False, refresh_s=0.02, window_s=0.01,
    limit_watts=250.0,
)  # fmt: skip


def fault(kind: Any, at_s: float, for_s: float = 0.0) -> Fault:
    return Fault(kind=kind, at_s=at_s, for_s=for_s)


class GpuMachine:
    """A machine with GPUs, and the collectors that a test opens on it.

    A process can load only one libnvidia-ml.so.1, so the machines of all tests share the file, one after the other.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.host = Host(sysfs=folder / "sys", procfs=folder / "proc", dev=folder / "dev")
        for path in (self.host.sysfs, self.host.procfs, self.host.dev):
            path.mkdir(parents=True)
        self._path = library
        self._libraries: list[NvmlLibrary] = []
        self._collectors: list[NvmlCollector] = []

    def gpus(self, *specs: GpuSpec, **settings: Any) -> NvmlLibrary:
        """Emulate GPUs; replaces the present ones, like a reboot."""
        require_program("gcc", "gcc")
        library = NvmlLibrary(specs, self.folder, library=self._path, **settings)
        self._libraries.append(library)
        return library

    def options(self, **settings: Any) -> NvmlOptions:
        return NvmlOptions(library=self._path, **settings)

    def collect(self, **settings: Any) -> NvmlCollector:
        collector = NvmlCollector.open(self.host, self.options(**settings))
        self._collectors.append(collector)
        return collector

    def close(self) -> None:
        for collector in self._collectors:
            collector.close()
        for library in self._libraries:
            library.close()


def shared_library(make_folder: Callable[[str], Path]) -> Path:
    """Return the path of the only library of a test process."""
    return make_folder("nvml") / SONAME


def sensor_of(collector: NvmlCollector, uuid: str) -> Sensor:
    return next(sensor for sensor in collector.sensors if sensor.device == uuid)


def values(readings: Any) -> dict[str, float | None]:
    """Return the joules of counters and the watts of other quantities, by domain."""
    pairs: list[Reading] = list(readings)
    return {
        reading.quantity.domain: reading.power_watts if reading.energy_joules is None else reading.energy_joules
        for reading in pairs
    }
