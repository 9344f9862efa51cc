"""What runs on an emulated NVIDIA GPU, and under which conditions: processes, MIG slices, throttling, clocks, ECC.

A signal of a scenario is a function of time, so it serves here, too: its "watts" are percent of the multiprocessors, of
the time, megahertz or degrees. The integral of a utilisation in percent, divided by 100, is the true use of the GPU in
seconds.

The driver samples utilisation at multiples of ``sample_s``: a sample is the mean since the one before, rounded to a
percent. The library returns them as nvml_load.c describes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.signals import Constant, Signal

MAX_PROCESSES: Final = 16
MAX_SLICES: Final = 8

_NS_PER_S: Final = 1_000_000_000
_US_PER_S: Final = 1_000_000

# The layout of nvml_load.c.
_MAX_SAMPLES: Final = 64
_COUNTERS: Final = 15
_HEAD: Final = struct.Struct("=2q")
_MAGIC: Final = 0x444F4C4E
_LOAD: Final = struct.Struct(f"=96s7q{2 * _COUNTERS}q17q{1 + MAX_SLICES}q1q")
_PROCESS: Final = struct.Struct(f"={9 + _MAX_SAMPLES}q")
_NO_PROCESS: Final = bytes(_PROCESS.size)

_SM_CLOCK: Final = Constant(1755.0)
_MEMORY_CLOCK: Final = Constant(2619.0)
_TEMPERATURE: Final = Constant(45.0)
_NO_ERRORS: Final = Constant(0.0)

_BUFFER_S: Final = 10.0
"""How long the driver keeps its samples."""

_KINDS: Final = {"compute": 1, "graphics": 2, "mps": 4}
_COMPUTE_MODES: Final = ("default", "exclusive_thread", "prohibited", "exclusive_process")

UNSUPPORTED: Final = (
    "processes",
    "process_utilisation",
    "violations",
    "violation_fields",
    "event_reasons",
    "clocks",
    "temperature",
    "compute_mode",
    "pcie",
    "default_limit",
)
"""What a GPU may not support; the order is that of the bits in nvml_load.c."""

_REASONS: Final[Mapping[str, tuple[int, int]]] = {
    # Number of the counter, bit of the current clocks event reasons.
    "power": (0, 0x4),
    "thermal": (1, 0x20),
    "sync_boost": (2, 0x10),
    "board_limit": (3, 0x200),
    "low_utilisation": (4, 0x1),
    "reliability": (5, 0x400),
    "app_clocks": (10, 0x2),
    "base_clocks": (11, 0x0),
    "software_thermal": (12, 0x20),
    "hardware_thermal": (13, 0x40),
    "power_brake": (14, 0x80),
}
"""Reasons for lower clocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcessSpec:
    """A process that uses the GPU."""

    pid: int
    """As the driver reports it; it need not exist."""
    cgroup: str = ""
    """Path of its cgroup, which the emulated procfs shows while it runs; empty: procfs does not show the process."""
    utilisation: Signal
    """Percent of the time in which its kernels run."""
    kind: Literal["compute", "graphics", "mps"] = "compute"
    memory_mib: float = 512.0
    slice: int | None = None
    """Index of its MIG slice."""
    start_s: float = 0.0
    """When it opens the GPU."""
    end_s: float | None = None
    """When it exits; None: never."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        check_range("pid", self.pid, 1, 2**22)
        if self.cgroup and (self.cgroup.startswith("/") or ".." in self.cgroup.split("/")):
            raise ValueError(f"cgroup: {self.cgroup!r} must be like system.slice/train.service")
        check_range("memory_mib", self.memory_mib, 0.0)
        check_range("start_s", self.start_s, 0.0)
        if self.end_s is not None:
            check_range("end_s", self.end_s, self.start_s)
        if self.slice is not None:
            check_range("slice", self.slice, 0, MAX_SLICES - 1)
        if not self.utilisation.is_deterministic:
            raise ValueError("utilisation: cannot follow the load of this machine")

    def has_context(self, t_s: float) -> bool:
        """Return whether the process has the GPU open."""
        return self.start_s <= t_s and (self.end_s is None or t_s < self.end_s)

    def gpu_seconds(self, start_s: float, end_s: float) -> float:
        """Return the true use of the GPU between two times."""
        start_s = max(start_s, self.start_s)
        end_s = end_s if self.end_s is None else min(end_s, self.end_s)
        return self.utilisation.energy_joules(start_s, end_s) / 100 if end_s > start_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuConditions:
    """Conditions under which the GPU runs."""

    throttled: Mapping[str, Signal] = field(default_factory=dict)
    """Percent of the time in which the clocks are lower, by reason; a reason without a signal is never one."""
    sm_clock_mhz: Signal = _SM_CLOCK
    memory_clock_mhz: Signal = _MEMORY_CLOCK
    max_sm_clock_mhz: int = 1980
    max_memory_clock_mhz: int = 2619
    temperature_celsius: Signal = _TEMPERATURE
    slowdown_celsius: int = 87
    ecc_uncorrected: Signal | None = _NO_ERRORS
    """Number of uncorrected errors since the driver was loaded; None: no ECC."""
    power_smoothing: bool | None = None
    """Whether power smoothing is enabled; None: not supported."""
    power_floor_watts: int = 0
    """Power that power smoothing maintains when the GPU is idle."""
    power_profiles: tuple[int, ...] | None = None
    """Workload power profiles that are enforced, by NVML's number; None: not supported."""
    compute_mode: Literal["default", "exclusive_thread", "prohibited", "exclusive_process"] = "default"
    pcie_generation: int = 5
    max_pcie_generation: int = 5
    pcie_width: int = 16
    max_pcie_width: int = 16

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        for name in self.throttled:
            if name not in _REASONS:
                raise ValueError(f"throttled.{name}: is not one of {', '.join(_REASONS)}")
        for number in self.power_profiles or ():
            check_range("power_profiles", number, 0, 31)
        check_range("power_floor_watts", self.power_floor_watts, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoadSpec:
    """What runs on the GPU, and under which conditions."""

    processes: tuple[GpuProcessSpec, ...] = ()
    slices: tuple[int, ...] = ()
    """Multiprocessors of each MIG slice; needs ``mig: true``."""
    sample_s: float = 0.2
    """Time between two samples of the utilisation."""
    has_garbage_samples: bool = False
    """Whether the driver also returns stale, unset and absurd samples."""
    accounting: bool | None = None
    """Whether accounting mode is on; None: not supported."""
    default_limit_watts: float | None = None
    """None: the highest limit."""
    conditions: GpuConditions = field(default_factory=GpuConditions)
    unsupported: tuple[str, ...] = ()
    """Calls that end with "not supported"."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if len(self.processes) > MAX_PROCESSES:
            raise ValueError(f"processes: at most {MAX_PROCESSES} can be emulated")
        if len(self.slices) > MAX_SLICES:
            raise ValueError(f"slices: at most {MAX_SLICES} can be emulated")
        check_range("sample_s", self.sample_s, 0.05, 1.0)
        if self.default_limit_watts is not None:
            check_range("default_limit_watts", self.default_limit_watts, 0.0)
        for name in self.unsupported:
            if name not in UNSUPPORTED:
                raise ValueError(f"unsupported: {name!r} is not one of {', '.join(UNSUPPORTED)}")
        for process in self.processes:
            if process.slice is not None and process.slice >= len(self.slices):
                raise ValueError(f"processes: there is no slice {process.slice}")


def pack_loads(gpus: Sequence[tuple[str, GpuLoadSpec, float]], t_s: float, start_unix_s: float) -> bytes:
    """Return the contents of ``nvml.load``.

    Args:
        gpus: UUID, load, and highest power limit of each GPU.
        t_s: Time since the start.
        start_unix_s: Unix time of the start.
    """
    loads = [_pack(uuid, spec, limit_watts, t_s, start_unix_s) for uuid, spec, limit_watts in gpus]
    return _HEAD.pack(_MAGIC, len(loads)) + b"".join(loads)


def _pack(uuid: str, spec: GpuLoadSpec, limit_watts: float, t_s: float, start_unix_s: float) -> bytes:
    conditions = spec.conditions
    counters_ns, rates_ppm, event_reasons = [0] * _COUNTERS, [0] * _COUNTERS, 0
    for name, signal in conditions.throttled.items():
        number, bit = _REASONS[name]
        counters_ns[number] = round(signal.energy_joules(0.0, t_s) / 100 * _NS_PER_S)
        percent = signal.power_watts(t_s)
        rates_ppm[number] = round(percent * 10_000)
        event_reasons |= bit if percent > 0 else 0
    newest = int(t_s / spec.sample_s + 1e-9)
    kept = min(newest, _MAX_SAMPLES, int(_BUFFER_S / spec.sample_s))
    smoothing, profiles = conditions.power_smoothing, conditions.power_profiles
    ecc = conditions.ecc_uncorrected
    head = _LOAD.pack(
        uuid.encode(),
        sum([1 << UNSUPPORTED.index(name) for name in set(spec.unsupported)]),
        -1 if spec.accounting is None else int(spec.accounting),
        round(t_s * _NS_PER_S),
        round((start_unix_s + newest * spec.sample_s) * _US_PER_S),
        round(spec.sample_s * _US_PER_S),
        kept,
        spec.has_garbage_samples,
        *counters_ns,
        *rates_ppm,
        event_reasons,
        round(conditions.sm_clock_mhz.power_watts(t_s)),
        round(conditions.memory_clock_mhz.power_watts(t_s)),
        conditions.max_sm_clock_mhz,
        conditions.max_memory_clock_mhz,
        round(conditions.temperature_celsius.power_watts(t_s)),
        conditions.slowdown_celsius,
        -1 if ecc is None else int(ecc.power_watts(t_s)),
        -1 if smoothing is None else int(smoothing),
        conditions.power_floor_watts,
        -1 if profiles is None else sum([1 << number for number in set(profiles)]),
        round(1000 * (limit_watts if spec.default_limit_watts is None else spec.default_limit_watts)),
        _COMPUTE_MODES.index(conditions.compute_mode),
        conditions.pcie_generation,
        conditions.max_pcie_generation,
        conditions.pcie_width,
        conditions.max_pcie_width,
        len(spec.slices),
        *spec.slices,
        *[0] * (MAX_SLICES - len(spec.slices)),
        len(spec.processes),
    )
    processes = [_pack_process(process, spec.sample_s, newest, kept, t_s, start_unix_s) for process in spec.processes]
    return b"".join([head, *processes, _NO_PROCESS * (MAX_PROCESSES - len(processes))])


def _pack_process(
    process: GpuProcessSpec, sample_s: float, newest: int, kept: int, t_s: float, start_unix_s: float
) -> bytes:
    grid_s = newest * sample_s
    has_started = process.start_s <= t_s
    end_s = t_s if process.end_s is None else min(t_s, process.end_s)
    samples = [
        round(100 * process.gpu_seconds((number - 1) * sample_s, number * sample_s) / sample_s)
        for number in range(newest - kept + 1, newest + 1)
    ]
    return _PROCESS.pack(
        process.pid,
        _KINDS[process.kind],
        -1 if process.slice is None else process.slice,
        round(process.memory_mib * 2**20),
        process.has_context(t_s),
        round((start_unix_s + process.start_s) * _US_PER_S) if has_started else 0,
        round(1000 * max(end_s - process.start_s, 0.0)),
        max(int((min(grid_s, end_s) - process.start_s) / sample_s + 1e-9), 0),
        round(100 * 100 * process.gpu_seconds(0.0, grid_s) / sample_s),
        *samples,
        *[0] * (_MAX_SAMPLES - kept),
    )
