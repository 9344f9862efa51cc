"""Energy counters of AMD Instinct cards (MI200, MI300, MI350), and the power of the NPU of Ryzen AI processors.

Both are in ``gpu_metrics`` of the kernel driver amdgpu (see `metrics`). Other AMD GPUs have a power file, which hwmon
reads. A card that is read here is not read by hwmon, which finds its ``gpu_metrics`` among the claimed sources.

**One series per card.** A partition of an MI300 (CPX, DPX) is a separate DRM device, but not a separate PCI device, and
has no ``gpu_metrics``. The two dies of an MI250 are two PCI devices; the counter of the second one is always zero,
because the first one counts the card. Like NVML, this family publishes the counter as ``total`` and the driver's power,
which comes from the same snapshot, as a part.

**MI300A is a processor.** Its counter includes the CPU, which RAPL may count, too. So it is a part, like every GPU in a
processor.

**A suspended GPU is not woken.** Reading ``gpu_metrics`` may resume it, so ``power/runtime_status`` is read first. The
number of the PCI device shows whether a GPU that is suspended at the start is an Instinct card. The NPU of another one
is found when it is awake.

The counter of some cards stands still or runs backwards (github ROCm/amdsmi, issues 22, 38 and 115; ROCm/rocm_smi_lib,
issue 180). The sampler detects both: it rejects a fall or counts it as a restart, marks a counter that does not move as
stuck, and compares the counter with the integrated power. The cards with the most reports (MI100) are not read here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.amdgpu.metrics import Metrics, MetricsError, parse, size_of
from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import denied_cure, list_names, read_text_or, sensor_error
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
)
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, Scope, SensorInfo, Timing

NAME: Final = "amdgpu"

Status = Literal["found", "denied", "skipped", "broken"]

_FILE: Final = "gpu_metrics"
_NPU: Final = "npu"

_POLL_S: Final = 1.0
"""The power is integrated here. The counters alone would need a read every few days."""
_MOST_BYTES: Final = 65_535
"""The size in the header has 16 bits."""

_MAX_CARD_WATTS: Final = 3000.0
_MAX_NPU_WATTS: Final = 100.0

# Numbers of PCI devices. Of the revisions that MI200 shares with other GPUs, only its counter has a known unit.
_MI200: Final = {"0x7408": "Instinct MI250X", "0x740c": "Instinct MI250X/MI250", "0x740f": "Instinct MI210"}
_MI300A: Final = "0x74a0"
_CARDS: Final = {
    **_MI200,
    _MI300A: "Instinct MI300A",
    "0x74a1": "Instinct MI300X",
    "0x74a2": "Instinct MI308X",
    "0x74a5": "Instinct MI325X",
    "0x75a0": "Instinct MI350X",
    "0x75a3": "Instinct MI355X",
}
"""Newer cards are known by their revision, once they are awake."""

_CLASSES: Final = {"drm": re.compile(r"(?:card|renderD)\d+"), "hwmon": re.compile(r"hwmon\d+")}
_SUSPENDED: Final = frozenset({"suspended", "suspending"})


@dataclass(frozen=True, slots=True)
class AmdgpuOptions:
    """Settings under ``collectors.amdgpu``: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdgpuSensor:
    """A card, or the NPU of a processor."""

    device: str
    infos: tuple[SensorInfo, ...]
    _directory: str
    """Real path of the PCI device."""

    def read(self) -> Sequence[Reading]:
        """Take one snapshot.

        Returns:
            The quantities of `infos` that the driver knows now, which always include the first one.

        Raises:
            SensorAsleepError: The device is suspended.
            SensorAbsentError: The device or its driver is gone.
            SensorDeniedError: Permission was lost.
            SensorGlitchError: The driver has no value now, or the device is in reset.
        """
        metrics = read_metrics(self._directory)
        now_ns = monotonic_ns()
        readings = []
        for info in self.infos:
            joules = watts = None
            if info.method == "counter":
                joules = metrics.energy_joules
            else:
                watts = metrics.npu_watts if info.quantity.domain == _NPU else metrics.power_watts
            if joules is not None or watts is not None:
                readings.append(
                    Reading(quantity=info.quantity, read_at_ns=now_ns, energy_joules=joules, power_watts=watts)
                )
            elif info is self.infos[0]:
                if metrics.power_watts == 0:
                    raise SensorAbsentError(f"{self._directory}/{_FILE}: no energy and 0 W: the second die of a card")
                raise SensorGlitchError(
                    f"{self._directory}/{_FILE}: {info.quantity.domain}: the driver has no value now"
                )
        return readings

    def close(self) -> None:
        """Do nothing: no file stays open."""


class AmdgpuCollector(OnDemandCollector):
    """All Instinct cards and NPUs of this machine."""

    name: ClassVar[str] = NAME
    experimental: ClassVar[str] = "has not been run on an AMD Instinct card or a Ryzen AI processor"
    Options: ClassVar[type] = AmdgpuOptions

    def __init__(
        self, host: Host, sensors: Sequence[AmdgpuSensor], findings: Sequence[Finding], asleep: Sequence[str]
    ) -> None:
        super().__init__(sensors, findings)
        self._host = host
        self._directories = _directories(host)
        self._asleep = tuple(asleep)
        """Devices without known revision, which were suspended in ``open``."""

    @property
    def timing(self) -> Timing:
        """Read once per second, because power is integrated here."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Whether a GPU was added or removed, or an NPU is awake for the first time."""
        return _directories(self._host) != self._directories or any(map(_has_npu, self._asleep))

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the GPUs and read each of them once.

        Args:
            host: Where sysfs is.
            options: `AmdgpuOptions`.

        Raises:
            SensorAbsentError: No GPU has an energy counter or an NPU.
            SensorDeniedError: There is one, but it cannot be read.
            SensorTimeoutError: There is one, but its read hangs.
        """
        assert isinstance(options, AmdgpuOptions)
        directories = _directories(host)
        if not directories:
            raise SensorAbsentError(f"{host.sysfs}/class/drm, {host.sysfs}/class/hwmon: no GPU with {_FILE}")
        findings: list[Finding] = []
        sensors: list[AmdgpuSensor] = []
        asleep: list[str] = []
        with contextlib.closing(Prober(NAME, findings)) as prober:
            for directory in directories:
                path = f"{directory}/{_FILE}"
                try:
                    metrics = prober.call(path, _label(directory), partial(read_metrics, directory))
                except SensorAsleepError:
                    if (number := _number(directory)) in _CARDS:
                        sensors.append(_card(directory, number, is_mean_power=number in _MI200, findings=findings))
                    else:
                        asleep.append(directory)
                        findings.append(_finding("skipped", path, "suspended: an NPU is found when it is awake"))
                    continue
                except SensorDeniedError as error:
                    findings.append(_finding("denied", path, str(error), denied_cure(path), device=_label(directory)))
                    continue
                except SensorError as error:
                    findings.append(_finding("broken", path, str(error), device=_label(directory)))
                    continue
                if metrics is not None and (sensor := _sensor(directory, metrics, findings)) is not None:
                    sensors.append(sensor)
        if not sensors:
            denied = [finding for finding in findings if finding.status == "denied"]
            if denied:
                raise SensorDeniedError(denied[0].text, devices=[finding.device for finding in denied])
            prober.check()
            reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
            raise SensorAbsentError(f"no AMD GPU with an energy counter or an NPU{reasons}")
        return cls(host, sensors, findings, asleep)


def read_metrics(directory: str) -> Metrics:
    """Take one snapshot of a GPU.

    Args:
        directory: Its PCI device.

    Raises:
        SensorError: See `AmdgpuSensor.read`.
    """
    path = f"{directory}/{_FILE}"
    if is_asleep(directory):
        raise SensorAsleepError(f"{path}: the GPU is suspended")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise sensor_error(path, error) from error
    try:
        data = os.read(descriptor, _MOST_BYTES)
        while data and len(data) < size_of(data) and (more := os.read(descriptor, _MOST_BYTES)):
            data += more  # newer drivers return a page at a time
        return parse(data)
    except OSError as error:
        if error.errno == errno.EPERM:
            # The file could be opened, so no permission is missing.
            if is_asleep(directory):
                raise SensorAsleepError(f"{path}: the GPU is suspended") from error
            raise SensorGlitchError(f"{path}: {error.strerror}: the GPU is in reset or suspended") from error
        raise sensor_error(path, error) from error
    except MetricsError as error:
        raise SensorGlitchError(f"{path}: {error}") from error
    finally:
        os.close(descriptor)


def is_asleep(directory: str) -> bool:
    """Return whether a device is in runtime suspend; reading this does not wake it."""
    return read_text_or(f"{directory}/power/runtime_status", "") in _SUSPENDED


def _directories(host: Host) -> tuple[str, ...]:
    """Return the real paths of the devices with ``gpu_metrics``, each once, of all DRM devices and hwmon chips."""
    devices: set[str] = set()
    for name, pattern in _CLASSES.items():
        root = f"{host.sysfs}/class/{name}"
        with contextlib.suppress(SensorError):
            entries = [entry for entry in list_names(root) if pattern.fullmatch(entry)]
            devices.update(os.path.realpath(f"{root}/{entry}/device") for entry in entries)
    return tuple(sorted(device for device in devices if os.path.exists(f"{device}/{_FILE}")))  # noqa: PTH110


def _number(directory: str) -> str:
    """Return the number of the PCI device."""
    return read_text_or(f"{directory}/device", "")


def _has_npu(directory: str) -> bool:
    """Return whether a GPU that was suspended is awake and has an NPU."""
    try:
        return read_metrics(directory).npu_watts is not None
    except SensorError:
        return False


def _sensor(directory: str, metrics: Metrics, findings: list[Finding]) -> AmdgpuSensor | None:
    """Return the sensor of a GPU whose revision is known, or None with the reason as a finding."""
    path = f"{directory}/{_FILE}"
    device = _label(directory)
    number = _number(directory)
    if metrics.npu_watts is not None:
        info = _info(device, _NPU, f"{path}: average_ipu_power", scope="part", component="other", model="Ryzen AI")
        findings.append(_finding("found", path, f"{device} {_NPU}: power of the NPU (part)"))
        return AmdgpuSensor(device=device, infos=(info,), _directory=directory)
    if number in _MI200 or metrics.is_mi300:
        if metrics.energy_joules is not None:
            return _card(directory, number, is_mean_power=metrics.is_mean_power, findings=findings)
        is_second = number in _MI200 and not metrics.power_watts
        text = "second die of a card: the first one counts the card"
        findings.append(_finding("skipped", path, text if is_second else "the driver has no energy counter"))
    elif metrics.energy_joules is not None or metrics.power_watts is not None:
        text = f"revision {metrics.text}: the unit of its energy counter is not known; hwmon reads its power"
        findings.append(_finding("skipped", path, text))
    return None


def _card(directory: str, number: str, *, is_mean_power: bool, findings: list[Finding]) -> AmdgpuSensor:
    path = f"{directory}/{_FILE}"
    device = _label(directory)
    scope: Scope = "part" if number == _MI300A else "device"
    total = _info(device, "total", path, scope=scope, model=_CARDS.get(number, "Instinct"))
    domain, field = ("average", "average_socket_power") if is_mean_power else ("instant", "curr_socket_power")
    power = _info(device, domain, f"{path}: {field}", scope="part", model=total.model)
    note = "; includes the CPU, so it is a part" if scope == "part" else ""
    findings.append(_finding("found", path, f"{device} total: energy of {total.model} ({scope}){note}"))
    return AmdgpuSensor(device=device, infos=(total, power), _directory=directory)


def _info(
    device: str, domain: str, source: str, *, scope: Scope, model: str, component: Component = "gpu"
) -> SensorInfo:
    is_counter = domain == "total"
    return SensorInfo(
        quantity=Quantity(scope=scope, component=component, device=device, domain=domain),
        method="counter" if is_counter else "integrated",
        source=source,
        model=model,
        resolution="15.3 uJ" if is_counter else "1 mW" if domain == _NPU else "1 W",
        max_power_watts=_MAX_NPU_WATTS if domain == _NPU else _MAX_CARD_WATTS,
        relation="inside" if is_counter or domain == _NPU else "same",
    )


def _label(directory: str) -> str:
    """Return the PCI address of a device."""
    return directory.rpartition("/")[2]


def _finding(status: Status, subject: str, text: str, fix: str = "", *, device: str = "") -> Finding:
    return Finding(status=status, collector=NAME, subject=subject, text=text, cure=fix, device=device)
