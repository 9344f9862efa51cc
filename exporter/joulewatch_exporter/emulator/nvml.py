"""NVIDIA GPUs of an emulated machine: a ``libnvidia-ml.so.1``, compiled at the start, that follows signals.

A program that loads the library (nvidia-ml-py does, by name) reads the emulated GPUs through NVIDIA's interface. The
library finds its state in its own folder, so it needs no environment variable: set ``collectors.nvml.library``, or add
the folder to ``LD_LIBRARY_PATH``. ``proc/driver/nvidia`` shows the GPUs as the driver does.

The energy counter is the closed form of the signal in steps of ``energy_refresh_s``. The emulator writes the energy at
the last step and the power there. If ``start_monotonic_ns`` is set, the library extrapolates from there with its own
clock, so the counter does not lag when the machine is too busy to call `NvmlLibrary.advance` in time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.faults import GARBAGE, Fault, check_faults
from joulewatch_exporter.emulator.nvml_load import GpuLoadSpec, GpuProcessSpec, pack_loads
from joulewatch_exporter.emulator.signals import Signal
from joulewatch_exporter.errors import ConfigError

SONAME: Final = "libnvidia-ml.so.1"

MAX_GPUS: Final = 32

_NS_PER_S: Final = 1_000_000_000
_STATE_FILE: Final = "nvml.state"
_LOAD_FILE: Final = "nvml.load"
_LOAD_TICK_S: Final = 0.05
"""Time between two updates of ``nvml.load``, which is large and changes slowly."""
_SOURCES: Final = ("nvml.c", "nvml_load.c")
_MAGIC: Final = 0x4C4D564E
# The layout of nvml.c.
_HEAD: Final = struct.Struct("=4q80s")
_GPU: Final = struct.Struct("=96s96s32s19q")
_BUS_ID: Final = re.compile(r"(?:([0-9a-f]{1,4})|([0-9a-f]{8})):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)
_TEXT_BYTES: Final = 95

GPU_FAULTS: Final = ("reset", "absent", "vanish", "hang", "denied", "glitch", "eio", "garbage", "stuck")
_CODES: Final[dict[str, int]] = {"absent": 15, "denied": 4, "glitch": 999, "eio": 999}
"""NVML's return code of every call on a GPU during a fault of this kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """A GPU."""

    uuid: str
    """``GPU-...``: the label of the device."""
    bus_id: str
    """PCI address, ``0000:17:00.0``."""
    signal: Signal
    """Power of the whole GPU."""
    name: str = "NVIDIA H100 PCIe"
    architecture: int = 9
    """NVML's number: 4 Pascal, 5 Volta, 6 Turing, 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell."""
    has_energy_counter: bool = True
    """Volta and newer have one."""
    energy_refresh_s: float = 0.01
    """Time between two steps of the counter; 0: a step at each read."""
    start_joules: float = 5000.0
    """Start of the counter."""
    refresh_s: float = 0.1
    """Time between two values of the power readings."""
    window_s: float = 0.025
    """The instant power is the mean over this time before each refresh; 0: the momentary power."""
    averaging_s: float = 1.0
    """The average power is the mean over this time; 0: the GPU has none (Turing and older, A100, A30)."""
    memory: Signal | None = None
    """Power of the memory, a part of ``signal``; None: not reported."""
    module: Signal | None = None
    """Power of the superchip with the GPU and a CPU, which the counter then counts; None: not part of a superchip."""
    limit_watts: float = 350.0
    """Enforced power limit."""
    max_limit_watts: float | None = None
    """Highest limit that can be set; None: ``limit_watts``."""
    has_power_fields: bool = True
    """False: like a driver before about 525, which has only nvmlDeviceGetPowerUsage."""
    knows_scopes: bool = True
    """False: like a driver that ignores the scope of a field."""
    mig: bool | None = None
    """Whether MIG is enabled; None: not supported."""
    load: GpuLoadSpec = field(default_factory=GpuLoadSpec)
    """Processes, MIG slices, throttling, clocks and other conditions."""
    faults: tuple[Fault, ...] = ()
    """reset: the driver is reloaded and the counter starts at 0; absent: NVML reports that the GPU is lost; vanish: the
    GPU is not listed; hang: calls do not return; denied, glitch, eio: calls end with an error; garbage: power is
    4294967295 mW; stuck: neither energy nor power changes."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        for key in ("uuid", "name"):
            if not 0 < len(getattr(self, key).encode()) <= _TEXT_BYTES:
                raise ValueError(f"{key}: must have 1 to {_TEXT_BYTES} bytes")
        if _BUS_ID.fullmatch(self.bus_id) is None:
            raise ValueError(f"bus_id: {self.bus_id!r} must be like 0000:17:00.0")
        if self.refresh_s <= 0:
            raise ValueError("refresh_s: must be above 0")
        for key in ("energy_refresh_s", "start_joules", "window_s", "averaging_s"):
            check_range(key, getattr(self, key), 0.0)
        if self.limit_watts <= 0:
            raise ValueError("limit_watts: must be above 0")
        if self.max_limit_watts is not None:
            check_range("max_limit_watts", self.max_limit_watts, self.limit_watts)
        if self.load.slices and not self.mig:
            raise ValueError("load.slices: needs mig: true")
        check_faults(self.faults, GPU_FAULTS)

    @property
    def key(self) -> str:
        """Key of the whole GPU in the truth: ``device/domain``."""
        return f"{self.uuid}/total"

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signals by ``device/domain``: of the energy counter, and of the power readings."""
        powers = {
            "instant": self.signal,
            "average": self.signal if self.averaging_s else None,
            "memory": self.memory,
            "module": self.module,
        }
        return {self.key: self.signal} | {f"{self.uuid}/{name}": power for name, power in powers.items() if power}


def compiler() -> str | None:
    """Return the path of a C compiler, if one is installed."""
    return shutil.which("cc") or shutil.which("gcc")


def available() -> bool:
    """Return whether GPUs can be emulated on this machine."""
    return compiler() is not None


class NvmlLibrary:
    """The library, its state, and the files of the driver in procfs."""

    def __init__(
        self,
        specs: Sequence[GpuSpec],
        directory: Path,
        *,
        driver_version: str = "550.54.15",
        library: Path | None = None,
    ) -> None:
        """Compile the library, unless it exists already, and write the state at the start.

        Args:
            specs: The GPUs, in the order in which NVML lists them; they have different UUIDs and addresses.
            directory: For ``lib/libnvidia-ml.so.1``, its state in the same folder, and ``proc/driver/nvidia``.
            driver_version: The version that NVML reports.
            library: Path of the library, instead of ``lib`` in the directory.

        Raises:
            ConfigError: There is no compiler, the compilation fails, or there are too many GPUs.
        """
        if len(specs) > MAX_GPUS:
            raise ConfigError(f"{len(specs)} GPUs are more than the {MAX_GPUS} that can be emulated")
        self.path = library if library is not None else directory / "lib" / SONAME
        self.start_monotonic_ns: int | None = None
        """Monotonic time of t_s = 0: the energy counters advance between two calls of ``advance``. None: they do not,
        so a test knows them to the millijoule."""
        self.start_unix_s: float | None = None
        """Unix time of t_s = 0, for the samples of utilisation; None: by the clocks of this machine."""
        self.code = 0
        """Return code of NVML from the next ``advance`` on: 9 no driver, 17 blocked, 18 another driver version."""
        self._gpus = tuple(_Gpu(spec) for spec in specs)
        self._driver = driver_version
        self._proc = directory / "proc" / "driver" / "nvidia"
        self._state = self.path.with_name(_STATE_FILE)
        self._load = self.path.with_name(_LOAD_FILE)
        self._written: dict[Path, bytes] = {}
        self._loads = [(spec.uuid, spec.load, spec.max_limit_watts or spec.limit_watts) for spec in specs]
        self._is_closed = self._has_clock = False
        self._lock = threading.Lock()
        _compile(self.path)
        shutil.rmtree(self._proc, ignore_errors=True)
        self._listed: set[str] = set()
        (self._proc / "gpus").mkdir(parents=True)
        version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver_version}  emulated\n"
        (self._proc / "version").write_text(version)
        self.advance(0.0)

    def advance(self, t_s: float) -> None:
        """Move all GPUs to ``t_s`` seconds after the start."""
        with self._lock:
            if self._is_closed:
                return
            start_ns = -1 if self.start_monotonic_ns is None else self.start_monotonic_ns
            head = _HEAD.pack(_MAGIC, len(self._gpus), self.code, start_ns, self._driver.encode())
            state = head + b"".join([gpu.advance(t_s) for gpu in self._gpus])
            load_s = t_s if self.start_monotonic_ns is None else t_s // _LOAD_TICK_S * _LOAD_TICK_S
            self._put(self._load, pack_loads(self._loads, load_s, self._start_unix_s(t_s)))
            self._put(self._state, state)
            self._list_in_procfs(t_s)

    def close(self) -> None:
        """Unload the driver, so every call ends with DRIVER_NOT_LOADED; safe to call twice."""
        with self._lock:
            self._is_closed = True
            self._state.unlink(missing_ok=True)
            self._load.unlink(missing_ok=True)
            shutil.rmtree(self._proc, ignore_errors=True)

    def _start_unix_s(self, t_s: float) -> float:
        if self.start_unix_s is None or (self.start_monotonic_ns is not None and not self._has_clock):
            self._has_clock = self.start_monotonic_ns is not None
            since_s = t_s if self.start_monotonic_ns is None else (time.monotonic_ns() - self.start_monotonic_ns) / 1e9
            self.start_unix_s = time.time() - since_s
        return self.start_unix_s

    def _put(self, path: Path, data: bytes) -> None:
        if data != self._written.get(path):
            _put(path, data)
            self._written[path] = data

    def _list_in_procfs(self, t_s: float) -> None:
        """Show in procfs which GPUs the driver has bound; the driver does so whether NVML is in use or not."""
        for number, gpu in enumerate(self._gpus):
            address = gpu.address
            folder = self._proc / "gpus" / address
            if gpu.is_present(t_s) and address not in self._listed:
                folder.mkdir()
                (folder / "information").write_text(
                    f"Model: \t\t {gpu.spec.name}\nGPU UUID: \t {gpu.spec.uuid}\nBus Type: \t PCIe\n"
                    f"Bus Location: \t {address}\nDevice Minor: \t {number}\n"
                )
                self._listed.add(address)
            elif not gpu.is_present(t_s) and address in self._listed:
                shutil.rmtree(folder)
                self._listed.remove(address)
        for gpu in self._gpus:
            for process in gpu.spec.load.processes:
                if process.cgroup:
                    self._show_process(process, t_s)

    def _show_process(self, process: GpuProcessSpec, t_s: float) -> None:
        """Show in procfs the cgroup of a process while it runs."""
        folder = self._proc.parent.parent / str(process.pid)
        if process.has_context(t_s) == folder.exists():
            return
        if folder.exists():
            shutil.rmtree(folder)
            return
        # The hierarchy itself has no use of processors: only the paths of its cgroups are needed.
        root = self._proc.parent.parent.parent / "sys/fs/cgroup"
        root.mkdir(parents=True, exist_ok=True)
        (root / "cgroup.controllers").touch()
        folder.mkdir()
        (folder / "cgroup").write_text(f"0::/{process.cgroup}\n")


class _Gpu:
    """A GPU at a given time."""

    def __init__(self, spec: GpuSpec) -> None:
        self.spec = spec
        match = _BUS_ID.fullmatch(spec.bus_id)
        assert match is not None
        domain, bus, device, function = int(match[1] or match[2], 16), match[3], match[4], match[5]
        self.address = f"{domain:04x}:{bus}:{device}.{function}".lower()
        self._bus_id = f"{domain:08X}:{bus}:{device}.{function}".upper().encode()
        self._refresh_ns = round(spec.refresh_s * _NS_PER_S)
        self._energy_refresh_ns = round(spec.energy_refresh_s * _NS_PER_S)
        self._resets_at_s = sorted((fault.at_s for fault in spec.faults if fault.kind == "reset"), reverse=True)
        self._offset_joules = spec.start_joules
        self._generation = 0
        self._period = -1
        self._means = _Mean(spec.signal), _Mean(spec.memory), _Mean(spec.module)
        self._energy: tuple[int, int, int] = (0, round(spec.start_joules * 1e6), 0)
        """Time in nanoseconds, energy in microjoules, power in microwatts."""
        self._powers_mw: tuple[int, int, int, int] = (0, -1, -1, -1)

    def is_present(self, t_s: float) -> bool:
        """Return whether the driver has bound the GPU."""
        return not any(fault.kind == "vanish" and fault.is_on(t_s) for fault in self.spec.faults)

    def advance(self, t_s: float) -> bytes:
        """Return the state of the GPU in the layout of nvml.c."""
        spec = self.spec
        faults = {fault.kind for fault in spec.faults if fault.is_on(t_s)}
        if "stuck" in faults:
            at_ns, energy_uj, _ = self._energy
            self._energy = at_ns, energy_uj, 0
        else:
            self._advance_energy(t_s)
            self._advance_power(t_s)
        powers_mw = (GARBAGE,) * 4 if "garbage" in faults else self._powers_mw
        code = next((_CODES[kind] for kind in faults if kind in _CODES), 0)
        at_ns, energy_uj, rate_uw = self._energy
        limit_watts = spec.limit_watts
        return _GPU.pack(
            spec.uuid.encode(),
            spec.name.encode(),
            self._bus_id,
            spec.architecture,
            "vanish" not in faults,
            code,
            "hang" in faults,
            self._generation,
            at_ns,
            energy_uj,
            rate_uw,
            self._energy_refresh_ns,
            spec.has_energy_counter,
            *powers_mw,
            spec.has_power_fields,
            spec.knows_scopes,
            round(limit_watts * 1000),
            round((spec.max_limit_watts or limit_watts) * 1000),
            -1 if spec.mig is None else int(spec.mig),
        )

    def _advance_energy(self, t_s: float) -> None:
        signal = self.spec.module or self.spec.signal
        at_ns = round(t_s * _NS_PER_S)
        if signal.is_deterministic and self._energy_refresh_ns:
            at_ns -= at_ns % self._energy_refresh_ns  # the past of a signal that follows the load is unknown
        else:
            at_ns = max(at_ns, 0)
        at_s = at_ns / _NS_PER_S if signal.is_deterministic else t_s
        while self._resets_at_s and t_s >= self._resets_at_s[-1]:
            reset_s = self._resets_at_s.pop()
            self._offset_joules = -signal.energy_joules(0.0, reset_s if signal.is_deterministic else t_s)
            self._generation += 1
        joules = max(self._offset_joules + signal.energy_joules(0.0, at_s), 0.0)
        self._energy = at_ns, round(joules * 1e6), round(signal.power_watts(at_s) * 1e6)

    def _advance_power(self, t_s: float) -> None:
        period = round(t_s * _NS_PER_S) // self._refresh_ns
        if period == self._period:
            return
        self._period = period
        grid_s = period * self._refresh_ns / _NS_PER_S
        spec = self.spec
        whole, memory, module = self._means
        averaging_s = spec.averaging_s or 1.0
        self._powers_mw = (
            whole.milliwatts(grid_s, t_s, spec.window_s),
            whole.milliwatts(grid_s, t_s, averaging_s) if spec.averaging_s else -1,
            memory.milliwatts(grid_s, t_s, averaging_s),
            module.milliwatts(grid_s, t_s, averaging_s),
        )


class _Mean:
    """Mean power of a signal over the time before a refresh."""

    _KEPT: Final = 64

    def __init__(self, signal: Signal | None) -> None:
        self._signal = signal
        self._trail: deque[tuple[float, float]] = deque([(0.0, 0.0)], maxlen=self._KEPT)
        """Times and energies since the start, for signals whose past is unknown."""

    def milliwatts(self, grid_s: float, t_s: float, span_s: float) -> int:
        """Return the mean over ``span_s`` before ``grid_s``; -1 without a signal.

        A signal that follows the load is known at ``t_s``, now, but not at ``grid_s``: its mean ends at ``t_s``.
        """
        signal = self._signal
        if signal is None:
            return -1
        if signal.is_deterministic:
            start_s = max(grid_s - span_s, 0.0)
            if start_s == grid_s:
                return round(signal.power_watts(grid_s) * 1000)
            return round(signal.energy_joules(start_s, grid_s) / (grid_s - start_s) * 1000)
        joules = signal.energy_joules(0.0, t_s)
        last_s, _ = self._trail[-1]
        start_s, start_joules = self._trail[0]
        for point in self._trail:
            if point[0] <= t_s - span_s + 1e-9:
                start_s, start_joules = point
        if t_s > last_s:
            self._trail.append((t_s, joules))
        if start_s >= t_s or t_s - last_s > span_s:
            return round(signal.power_watts(t_s) * 1000)
        return round((joules - start_joules) / (t_s - start_s) * 1000)


def _put(path: Path, data: bytes) -> None:
    temporary = f"{path}.new"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)  # noqa: PTH105 - a hundred times a second


def _compile(library: Path) -> None:
    """Compile the library, unless it was compiled from the same source before."""
    folder = resources.files("joulewatch_exporter.emulator")
    source = b"".join([(folder / name).read_bytes() for name in _SOURCES])
    digest = hashlib.sha256(source).hexdigest()
    stamp = library.with_name("nvml.sha256")
    if library.is_file() and stamp.is_file() and stamp.read_text() == digest:
        return
    program = compiler()
    if program is None:
        raise ConfigError("emulating NVIDIA GPUs needs a C compiler: apt-get install gcc")
    library.parent.mkdir(parents=True, exist_ok=True)
    temporary = library.with_name(f"{SONAME}.new")
    command = [
        program,
        "-x",
        "c",
        "-std=gnu11",
        "-O2",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{SONAME}",
        "-o",
        str(temporary),
        "-",
    ]
    process = subprocess.run([*command, "-ldl", "-lpthread"], input=source, capture_output=True, check=False)
    if process.returncode:
        stderr = process.stderr.decode(errors="replace")
        raise ConfigError(f"{program}: cannot compile the NVML library: {stderr[-1000:]}")
    temporary.replace(library)
    stamp.write_text(digest)
