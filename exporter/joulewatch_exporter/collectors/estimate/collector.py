"""An estimate for machines without sensors: CPU utilisation times a published power model.

A virtual machine has no RAPL. This family estimates the order of magnitude of the CPU's power: the idle and full-load
watts per logical CPU of its microarchitecture, which Cloud Carbon Footprint derives from SPECpower results, and a
straight line over utilisation between them. It estimates what such servers draw at the wall per thread; it does not
measure this machine. The declared accuracy of 0.5 covers the spread of servers within one microarchitecture (more than
a factor of two in the SPECpower table), not the curvature of the true relation.

The energy is the exact integral of the model: E = n_cpus * min_watts * elapsed + (max_watts - min_watts) *
busy_seconds. The kernel counts the busy seconds in /proc/stat (all CPUs, in steps of 10 ms), so the result does not
depend on when or how often it is read. Container limits (cgroups) are ignored: /proc/stat covers the whole machine.
Time that the hypervisor gave to other machines (steal) does not count as busy.

Sources: /proc/stat in proc(5); coefficients: see `_COEFFICIENTS_SOURCE`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, ClassVar, Final, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.proc_stat import read_busy
from joulewatch_exporter.collectors.base.sysfs import read_text_or
from joulewatch_exporter.config.strict import nearest
from joulewatch_exporter.errors import SensorAbsentError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host, Quantity, Reading, SensorInfo, Timing

_COEFFICIENTS_SOURCE: Final = "Cloud Carbon Footprint"
"""github cloud-carbon-footprint/ccf-coefficients (Apache-2.0), output/coefficients-aws-use.csv of March 2026,
rounded to 1 mW; from SPECpower_ssj2008 results, watts of the server per hardware thread."""

# Microarchitecture -> watts of one logical CPU at 0 % and at 100 % utilisation. The published figure for EPYC 5th Gen
# (3.7 W idle, which is 1.4 kW for a server with 384 threads) cannot be right and is not included.
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
    "Graviton": (0.474, 1.693),  # as published: equal to EPYC 2nd Gen
}
_AVERAGE: Final = (0.74, 3.5)  # the published average, for an unknown CPU

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
_INTEL_SKYLAKE_SERVER: Final = 85  # Cascade Lake since stepping 5

_ACCURACY: Final = 0.5
_POLL_S: Final = 1.0
_NANOSECONDS: Final = 1e9


@dataclass(frozen=True, slots=True)
class EstimateOptions:
    """Settings under ``collectors.estimate``."""

    min_watts: float | None = None
    """Watts of one logical CPU at 0 % utilisation; None: take it from the table."""
    max_watts: float | None = None
    """Watts of one logical CPU at 100 % utilisation; None: take it from the table."""
    model: str | None = None
    """A microarchitecture of the table; None: detect it from /proc/cpuinfo."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of range; the text begins with the key.
        """
        for key, watts in (("min_watts", self.min_watts), ("max_watts", self.max_watts)):
            if watts is not None and not 0 <= watts <= 1000:
                raise ValueError(f"{key}: {watts:g} is not between 0 and 1000 watts per logical CPU")
        if self.min_watts is not None and self.max_watts is not None and self.min_watts > self.max_watts:
            raise ValueError(f"min_watts: {self.min_watts:g} is above max_watts {self.max_watts:g}")
        if self.model is not None and self.model not in _COEFFICIENTS:
            raise ValueError(f"model: {self.model!r} is unknown; {nearest(self.model, sorted(_COEFFICIENTS))}")


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Watts of one logical CPU, linear in its utilisation."""

    min_watts: float
    max_watts: float
    text: str
    """The two numbers and their source, for display."""


class EstimateSensor:
    """All CPUs of the machine: the energy that the model predicts for their busy time."""

    def __init__(self, stat_path: str, model: PowerModel, clock_ns: Callable[[], int] = monotonic_ns) -> None:
        """Read the counters once; the energy starts at 0.

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
                counts_since_open=True,
                model=model.text,
                resolution="10 ms of one CPU",
                accuracy=_ACCURACY,
                accuracy_source="spread of servers of one microarchitecture in SPECpower results",
                # Twice the full load: with steps of 10 ms, short intervals can look busier than they are.
                max_power_watts=max(100.0, 2 * self._n_cpus * model.max_watts),
            ),
        )

    @property
    def device(self) -> str:
        """All CPUs are published as one package: /proc/stat does not distinguish packages."""
        return "socket0"

    @property
    def infos(self) -> Sequence[SensorInfo]:
        """The only quantity, labelled as an estimate."""
        return self._infos

    def read(self) -> Sequence[Reading]:
        """Integrate the model since the last read.

        Returns:
            One reading: the estimated joules since the sensor was created.

        Raises:
            SensorGlitchError: The busy time fell (a CPU went offline); the next read continues from there.
            SensorError: ``/proc/stat`` cannot be read.
        """
        busy_s, n_cpus = read_busy(self._stat_path)
        now_ns = self._clock_ns()
        elapsed_s = (now_ns - self._read_at_ns) / _NANOSECONDS
        worked_s = busy_s - self._busy_s
        mean_cpus = (n_cpus + self._n_cpus) / 2  # a CPU may have come or gone at any time in between
        self._busy_s, self._n_cpus, self._read_at_ns = busy_s, n_cpus, now_ns
        if worked_s < 0:
            raise SensorGlitchError(f"{self._stat_path}: busy time fell by {-worked_s:g} s")
        model = self._model
        self._energy_joules += mean_cpus * model.min_watts * elapsed_s + (model.max_watts - model.min_watts) * worked_s
        return (
            Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=self._energy_joules, power_watts=None),
        )

    def close(self) -> None:
        """Do nothing: no file stays open."""


class EstimateCollector(OnDemandCollector):
    """One estimate for all CPUs of the host."""

    name: ClassVar[str] = "estimate"
    Options: ClassVar[type] = EstimateOptions

    @property
    def timing(self) -> Timing:
        """Read once per second: the kernel itself counts the busy time."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Detect the microarchitecture and choose its model.

        Args:
            host: Where procfs is.
            options: `EstimateOptions`.

        Raises:
            SensorAbsentError: procfs has no valid ``stat``.
            SensorDeniedError: ``stat`` cannot be read.
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
        cpuinfo: Beginning of ``/proc/cpuinfo``, at least one CPU; may be empty.
        options: Values set by the user.

    Returns:
        The model; its text names the microarchitecture and the source of the figures.
    """
    name = options.model or microarchitecture(cpuinfo)
    min_watts, max_watts = _COEFFICIENTS.get(name or "", _AVERAGE)
    source = f"{name}, {_COEFFICIENTS_SOURCE}" if name else f"unknown CPU, average of {_COEFFICIENTS_SOURCE}"
    if options.min_watts is not None or options.max_watts is not None:
        min_watts = min_watts if options.min_watts is None else options.min_watts
        max_watts = max_watts if options.max_watts is None else options.max_watts
        # If only one number is set, it may lie beyond the table's other one: then make the line flat, not falling.
        if options.min_watts is None:
            min_watts = min(min_watts, max_watts)
        else:
            max_watts = max(min_watts, max_watts)
        source = "set in collectors.estimate"
    text = f"{min_watts:g} to {max_watts:g} W per logical CPU, linear in utilisation ({source})"
    return PowerModel(float(min_watts), float(max_watts), text)


def microarchitecture(cpuinfo: str) -> str | None:
    """Return the microarchitecture of a CPU as named in the table; None if unknown.

    Args:
        cpuinfo: Beginning of ``/proc/cpuinfo``.
    """

    def number(key: str) -> int:
        match = re.search(rf"^{key}\s*:\s*(\d+)\s*$", cpuinfo, re.MULTILINE)
        return int(match[1]) if match else -1

    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    family, model = number("cpu family"), number("model")
    if vendor is None:
        # Neoverse N1, V1 and V2: Graviton 2, 3 and 4, and other CPUs with these cores.
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
            return "EPYC 4th Gen"  # the nearest row, see the comment at the table
    return None
