"""Fakes for the RAPL backends perf and msr: CPU topology, PMUs, perf_event_open and registers."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from joulewatch_exporter.collectors.rapl import msr, perf_event
from support.sysfs import FakeSysfs

AMD_UNIT, AMD_CORE, AMD_PACKAGE = 0xC0010299, 0xC001029A, 0xC001029B
INTEL_UNIT, INTEL_PACKAGE, INTEL_DRAM, INTEL_CORES, INTEL_GPU, INTEL_PSYS = 0x606, 0x611, 0x619, 0x639, 0x641, 0x64D
UNITS_2_16 = 0xA1003
"""Unit register with ESU 16, as on EPYC."""
UNITS_2_14 = 0xA0E03

POWER_TYPE, POWER_CORE_TYPE = 12, 13
EVENTS = {"energy-cores": 1, "energy-pkg": 2, "energy-ram": 3, "energy-gpu": 4, "energy-psys": 5}


def topology(sysfs: FakeSysfs, *cpus: tuple[int, int, int], online: str | None = None) -> FakeSysfs:
    """Write one CPU per (package, die, core id); equal entries are threads of one core."""
    for number, (package, die, core) in enumerate(cpus):
        siblings = ",".join(str(other) for other, place in enumerate(cpus) if place == (package, die, core))
        sysfs.write(
            f"devices/system/cpu/cpu{number}/topology",
            physical_package_id=package,
            die_id=die,
            core_id=core,
            core_cpus_list=siblings,
        )
    return sysfs.write("devices/system/cpu", online=f"0-{len(cpus) - 1}" if online is None else online)


def pmu(
    sysfs: FakeSysfs, *events: str, name: str = "power", number: int = POWER_TYPE, cpumask: str = "0", **files: object
) -> FakeSysfs:
    """Write a PMU with the named events, in the kernel's format."""
    folder = f"bus/event_source/devices/{name}"
    sysfs.write(folder, type=number, cpumask=cpumask).write(f"{folder}/format", event="config:0-7")
    for event in events:
        files_of_event = {
            event: f"event=0x{EVENTS.get(event, 1):02x}",
            f"{event}.unit": "Joules",
            f"{event}.scale": "2.3283064365386962890625e-10",
        }
        sysfs.write(f"{folder}/events", **files_of_event)
    return sysfs.write(f"{folder}/events", **files) if files else sysfs


def power_core(sysfs: FakeSysfs, cpumask: str) -> FakeSysfs:
    """Write AMD's PMU of single cores."""
    return pmu(sysfs, "energy-core", name="power_core", number=POWER_CORE_TYPE, cpumask=cpumask)


@dataclass(kw_only=True)
class FakeKernel:
    """Replaces perf_event_open and the reads of its descriptors; a test sets the joules of each counter."""

    joules: dict[tuple[int, int, int], float] = field(default_factory=dict)
    """By type, config and CPU."""
    refusal: int = 0
    """errno of every perf_event_open; 0: success."""
    refused: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """errno by type, config and CPU."""
    standing: set[tuple[int, int, int]] = field(default_factory=set)
    """Events whose CPU is offline: count and running time do not change."""
    read_error: int = 0
    is_at_end: bool = False
    """Reads return nothing, like those of an event in error state."""
    opened: list[tuple[int, int, int]] = field(default_factory=list)
    _events: dict[int, tuple[tuple[int, int, int], float]] = field(default_factory=dict)
    _running_ns: int = 0

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Replace the kernel's calls; no event is open yet."""
        fake = cls()
        monkeypatch.setattr(perf_event, "perf_event_open", fake.open)
        monkeypatch.setattr(perf_event, "_read", fake.read)
        monkeypatch.setattr(perf_event, "_events", perf_event._Events())
        return fake

    def open(self, pmu_type: int, config: int, cpu: int) -> int:
        key = (pmu_type, config, cpu)
        if code := self.refusal or self.refused.get(key, 0):
            raise OSError(code, os.strerror(code))
        self.opened.append(key)
        descriptor = os.eventfd(0)
        self._events[descriptor] = (key, self.joules.get(key, 0.0))
        return descriptor

    def read(self, descriptor: int, size: int) -> bytes:
        assert size == 16
        if self.read_error:
            raise OSError(self.read_error, os.strerror(self.read_error))
        if self.is_at_end:
            return b""
        key, start_joules = self._events[descriptor]
        self._running_ns += 1_000_000
        running_ns = 5 if key in self.standing else self._running_ns
        return struct.pack("=qQ", round((self.joules.get(key, 0.0) - start_joules) * 2**32), running_ns)

    def package(self, joules: float, *, cpu: int = 0, event: str = "energy-pkg") -> None:
        self.joules[POWER_TYPE, EVENTS[event], cpu] = joules

    def core(self, joules: float, *, cpu: int) -> None:
        self.joules[POWER_CORE_TYPE, 1, cpu] = joules


@dataclass(kw_only=True)
class Registers:
    """Registers of ``/dev/cpu/N/msr``; a plain file cannot hold AMD's registers, because their offsets overlap."""

    dev: Path
    values: dict[tuple[int, int], int] = field(default_factory=dict)
    """By CPU and register."""
    errors: dict[int, int] = field(default_factory=dict)
    """errno of reads, by CPU."""
    reads: int = 0

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch, dev: Path) -> Self:
        """Replace the reads of the device files."""
        fake = cls(dev=dev)
        monkeypatch.setattr(msr, "_pread", fake.pread)
        return fake

    def cpu(self, cpu: int, values: Mapping[int, int]) -> None:
        path = self.dev / "cpu" / str(cpu) / "msr"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.values.update({(cpu, register): value for register, value in values.items()})

    def pread(self, descriptor: int, size: int, register: int) -> bytes:
        assert size == 8
        self.reads += 1
        cpu = int(Path(f"/proc/self/fd/{descriptor}").readlink().parent.name)
        if code := self.errors.get(cpu) or (0 if (cpu, register) in self.values else 5):
            raise OSError(code, os.strerror(code))
        return self.values[cpu, register].to_bytes(8, "little")
