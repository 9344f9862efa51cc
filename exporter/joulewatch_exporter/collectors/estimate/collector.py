"""No sensor: CPU utilisation times a published power model, and labelled so wherever it is shown.

A virtual machine has no RAPL. This family then gives the order of magnitude of the CPU's power: per logical CPU the
idle and the full-load watts of its microarchitecture, as Cloud Carbon Footprint derives them from SPECpower results,
and between them a straight line over utilisation. It is an estimate of what such servers draw at the wall for one
thread, not a measurement of this one: the declared accuracy of 0.5 covers the spread of servers within one
microarchitecture (more than a factor of two in the SPECpower table), not the bend of the true curve.

The energy is the model's exact integral: E = n_cpus * min_watts * elapsed + (max_watts - min_watts) * busy_seconds,
where the busy seconds are counted by the kernel in /proc/stat (all CPUs, in steps of 10 ms each). No sampling of the
utilisation is involved, so it does not matter when or how often it is read. Limits of a container (cgroups) are not
considered: /proc/stat is the whole machine's. Time that a hypervisor gave to others (steal) is not busy: this
machine's CPU did not spend it.

Sources: /proc/stat in proc(5); coefficients: see `_COEFFICIENTS_SOURCE`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, ClassVar, Final, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import read_text, read_text_or
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host, Quantity, Reading, SensorInfo, Timing

_COEFFICIENTS_SOURCE: Final = "Cloud Carbon Footprint"
"""github cloud-carbon-footprint/ccf-coefficients (Apache-2.0), output/coefficients-aws-use.csv of March 2026,
rounded to 1 mW; from SPECpower_ssj2008 results, watts of the server per hardware thread."""

# Microarchitecture -> watts of one logical CPU at 0 % and at 100 % utilisation. Their figure for EPYC 5th Gen
# (3.7 W idle, 1.4 kW for a server of 384 threads) cannot be one thread's and is not taken over.
_COEFFICIENTS: Final[dict[str, tuple[float, float]]] = {
    "Sandy Bridge": (2.212, 8.631),
    "Ivy Bridge": (1.707, 5.557),
    "Haswell": (1.857, 5.595),
    "Broadwell": (0.713, 3.685),
    "Skylake": (0.613, 4.104),
    "Cascade Lake": (0.690, 4.063),
    "Coffee Lake": (1.138, 5.422),
    "Ice Lake": (0.767, 3.758),
    "Sapphire Rapids": (1.036, 4.160),
    "Emerald Rapids": (0.814, 4.482),
    "Granite Rapids": (0.582, 2.527),
    "EPYC 1st Gen": (0.847, 2.604),
    "EPYC 2nd Gen": (0.474, 1.693),
    "EPYC 3rd Gen": (0.456, 1.957),
    "EPYC 4th Gen": (0.739, 2.282),
    "Graviton": (0.474, 1.693),  # their assumption: as EPYC 2nd Gen
}
_AVERAGE: Final = (0.74, 3.5)  # their published average, for a CPU of no known microarchitecture

# CPU family 6 of Intel by model number (arch/x86/include/asm/intel-family.h).
_INTEL_MODELS: Final[dict[int, str]] = {
    **dict.fromkeys((42, 45), "Sandy Bridge"),
    **dict.fromkeys((58, 62), "Ivy Bridge"),
    **dict.fromkeys((60, 63, 69, 70), "Haswell"),
    **dict.fromkeys((61, 71, 79, 86), "Broadwell"),
    **dict.fromkeys((78, 94), "Skylake"),
    **dict.fromkeys((142, 158, 165, 166), "Coffee Lake"),
    **dict.fromkeys((106, 108, 125, 126), "Ice Lake"),
    143: "Sapphire Rapids",
    207: "Emerald Rapids",
    **dict.fromkeys((173, 174), "Granite Rapids"),
}
_INTEL_SKYLAKE_SERVER: Final = 85  # from stepping 5 on it is Cascade Lake

_ACCURACY: Final = 0.5
_POLL_S: Final = 1.0
_STAT_BYTES: Final = 1 << 20
_NANOSECONDS: Final = 1e9


@dataclass(frozen=True, slots=True)
class EstimateOptions:
    """Settings under ``collectors.estimate``."""

    min_watts: float | None = None
    """Watts of one logical CPU at 0 % utilisation; None: from the table."""
    max_watts: float | None = None
    """Watts of one logical CPU at 100 % utilisation; None: from the table."""
    model: str | None = None
    """Name of a microarchitecture of the table; None: found from /proc/cpuinfo."""

    def __post_init__(self) -> None:
        """Check what came from a file.

        Raises:
            ConfigError: A value is out of its range; the text names the key and what is possible.
        """
        where = "collectors.estimate"
        for key, watts in (("min_watts", self.min_watts), ("max_watts", self.max_watts)):
            if watts is None:
                continue
            if isinstance(watts, bool) or not isinstance(watts, int | float) or not 0 <= watts <= 1000:
                raise ConfigError(f"{where}.{key}: {watts!r} is not between 0 and 1000 watts per logical CPU")
        if self.min_watts is not None and self.max_watts is not None and self.min_watts > self.max_watts:
            raise ConfigError(f"{where}.min_watts: {self.min_watts:g} is above max_watts {self.max_watts:g}")
        if self.model is not None and self.model not in _COEFFICIENTS:
            raise ConfigError(f"{where}.model: {self.model!r} is none of {', '.join(sorted(_COEFFICIENTS))}")


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Watts of one logical CPU as a straight line over its utilisation."""

    min_watts: float
    max_watts: float
    text: str
    """Where the two numbers come from, for people."""


class EstimateSensor:
    """All CPUs of the machine: the energy that the model gives for the time they were busy."""

    def __init__(self, stat_path: str, model: PowerModel, clock_ns: Callable[[], int] = monotonic_ns) -> None:
        """Read the counters once, as the zero of the energy.

        Args:
            stat_path: ``/proc/stat``.
            model: Watts of one logical CPU.
            clock_ns: Monotonic clock; replaced in tests.

        Raises:
            SensorError: ``stat_path`` cannot be read.
        """
        self._stat_path = stat_path
        self._model = model
        self._clock_ns = clock_ns
        self._energy_joules = 0.0
        self._busy_s, self._n_cpus = read_busy(stat_path)
        self._read_at_ns = clock_ns()
        self._quantity = Quantity(scope="device", component="cpu", device="socket0", domain="package")
        self._infos = (
            SensorInfo(
                quantity=self._quantity,
                method="estimated",
                source=stat_path,
                model=model.text,
                resolution="10 ms of one CPU",
                accuracy=_ACCURACY,
                # Twice the model's full load: counting in steps of 10 ms makes short intervals seem fuller.
                max_power_watts=max(100.0, 2 * self._n_cpus * model.max_watts),
            ),
        )

    @property
    def device(self) -> str:
        """The whole machine's CPUs are shown as one package: /proc/stat does not tell packages apart."""
        return "socket0"

    @property
    def infos(self) -> Sequence[SensorInfo]:
        """The one quantity, labelled as an estimate."""
        return self._infos

    def read(self) -> Sequence[Reading]:
        """Integrate the model from the last read to now.

        Returns:
            One reading: the model's energy in joules since the sensor was made.

        Raises:
            SensorGlitchError: The busy time ran backwards (a CPU went offline); the next read goes on from there.
            SensorError: ``/proc/stat`` cannot be read.
        """
        busy_s, n_cpus = read_busy(self._stat_path)
        now_ns = self._clock_ns()
        elapsed_s = (now_ns - self._read_at_ns) / _NANOSECONDS
        worked_s = busy_s - self._busy_s
        idle_cpus = (n_cpus + self._n_cpus) / 2  # a CPU that came or went did so somewhere in between
        self._busy_s, self._n_cpus, self._read_at_ns = busy_s, n_cpus, now_ns
        if worked_s < 0:
            raise SensorGlitchError(f"{self._stat_path}: busy time ran backwards by {-worked_s:g} s")
        model = self._model
        self._energy_joules += idle_cpus * model.min_watts * elapsed_s + (model.max_watts - model.min_watts) * worked_s
        return (
            Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=self._energy_joules, power_watts=None),
        )

    def close(self) -> None:
        """Nothing is held open between reads."""


class EstimateCollector(OnDemandCollector):
    """One estimate for the CPUs of the host."""

    name: ClassVar[str] = "estimate"
    Options: ClassVar[type] = EstimateOptions

    @property
    def timing(self) -> Timing:
        """The kernel counts by itself: reading often is cheap and adds nothing."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the CPU's microarchitecture and its model.

        Args:
            host: Where procfs is.
            options: `EstimateOptions`.

        Raises:
            SensorAbsentError: There is no usable ``stat`` in procfs.
            SensorDeniedError: It may not be read.
        """
        assert isinstance(options, EstimateOptions)
        stat_path = f"{host.procfs}/stat"
        model = power_model(read_text_or(f"{host.procfs}/cpuinfo", ""), options)
        try:
            sensor = EstimateSensor(stat_path, model)
        except SensorGlitchError as error:
            raise SensorAbsentError(str(error)) from error
        text = f"an estimate, not a measurement: {model.text}"
        return cls([sensor], [Finding(status="found", collector="estimate", subject=stat_path, text=text)])


def power_model(cpuinfo: str, options: EstimateOptions) -> PowerModel:
    """Choose the watts of one logical CPU.

    Args:
        cpuinfo: Beginning of ``/proc/cpuinfo``, one CPU at least; may be empty.
        options: What the user fixed.

    Returns:
        The model; its text names the microarchitecture and the source of the figures.
    """
    found = options.model or microarchitecture(cpuinfo)
    min_watts, max_watts = _COEFFICIENTS.get(found or "", _AVERAGE)
    source = f"{found}, {_COEFFICIENTS_SOURCE}" if found else f"unknown CPU, average of {_COEFFICIENTS_SOURCE}"
    if options.min_watts is not None or options.max_watts is not None:
        min_watts = min_watts if options.min_watts is None else options.min_watts
        max_watts = max_watts if options.max_watts is None else options.max_watts
        # One number given alone may lie beyond the table's other one: the line then is flat, never falling.
        if options.min_watts is None:
            min_watts = min(min_watts, max_watts)
        else:
            max_watts = max(min_watts, max_watts)
        source = "set in collectors.estimate"
    text = f"{min_watts:g} to {max_watts:g} W per logical CPU, linear in utilisation ({source})"
    return PowerModel(float(min_watts), float(max_watts), text)


def microarchitecture(cpuinfo: str) -> str | None:
    """Name the row of the table for a CPU; None if it has none.

    Args:
        cpuinfo: Beginning of ``/proc/cpuinfo``.
    """

    def number(key: str) -> int:
        match = re.search(rf"^{key}\s*:\s*(\d+)\s*$", cpuinfo, re.MULTILINE)
        return int(match[1]) if match else -1

    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    family, model = number("cpu family"), number("model")
    if vendor is None:
        # Neoverse N1, V1 and V2: Graviton 2, 3 and 4, and their relatives.
        part = re.search(r"^CPU part\s*:\s*(0x[0-9a-f]+)", cpuinfo, re.MULTILINE)
        return "Graviton" if part is not None and part[1] in ("0xd0c", "0xd40", "0xd4f") else None
    if vendor[1] == "GenuineIntel" and family == 6:
        if model == _INTEL_SKYLAKE_SERVER:
            return "Cascade Lake" if number("stepping") >= 5 else "Skylake"
        return _INTEL_MODELS.get(model)
    if vendor[1] == "HygonGenuine":
        return "EPYC 1st Gen"  # Dhyana is a licensed Zen
    if vendor[1] == "AuthenticAMD":
        if family == 0x17:
            return "EPYC 1st Gen" if model < 0x30 else "EPYC 2nd Gen"
        if family == 0x19:
            is_zen4 = 0x10 <= model <= 0x1F or model >= 0x60
            return "EPYC 4th Gen" if is_zen4 else "EPYC 3rd Gen"
        if family == 0x1A:
            return "EPYC 4th Gen"  # nearest row: see the note at the table
    return None


_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


def read_busy(stat_path: str) -> tuple[float, int]:
    """Read the busy time of all CPUs together.

    Args:
        stat_path: ``/proc/stat``.

    Returns:
        Seconds in which a CPU ran something (user, nice, system, irq, softirq; guests are within user), summed over
        all CPUs since the machine started; and the number of CPUs online.

    Raises:
        SensorGlitchError: The text is not /proc/stat's.
        SensorError: It cannot be read.
    """
    text = read_text(stat_path, _STAT_BYTES)
    head, _, _ = text.partition("\n")
    fields = head.split()
    n_cpus = text.count("\ncpu")
    try:
        if fields[0] != "cpu" or n_cpus == 0:
            raise ValueError(head)
        user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[1:8])
    except (IndexError, ValueError) as error:
        raise SensorGlitchError(f"{stat_path}: does not begin with the CPUs' times") from error
    return (user + nice + system + irq + softirq) / _TICKS_PER_SECOND, n_cpus
