"""The records of a run: the contract between runner, journal, delivery, recording and analysis.

Every record is a frozen dataclass; ``encode_line`` turns one into a journal line, ``{"type": ..., ...}``, and
``decode_line`` reads it. Unknown fields of a line are ignored, because a newer joulewatch may have written them; a
missing field is a RecordError.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Self

from joulewatch_exporter import catalog
from joulewatch_harness.binder import Limits, bind_record
from joulewatch_harness.errors import RecordError
from joulewatch_harness.names import unknown

SCHEMA_VERSION: Final = 2
"""Version 2 added windows of kind ``setup`` and lines of type ``setup``; version 1 is still read."""

WindowKind = Literal["idle", "warmup", "measure", "phase", "setup"]
METER: Final = "meter"
"""Key of the plan in the runs of ``joulewatch.Meter``: ``library`` or ``command``; of an imported log: ``import``."""
IMPORT: Final = "import"
"""Collector of the sensors of an imported log."""
RunStatus = Literal["running", "complete", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """Calibration of a sensor, as its exporter published it: true power = gain * power + offset_watts.

    The values of the sensor are never calibrated in a record, only in the analysis.
    """

    gain: float
    offset_watts: float
    gain_standard_uncertainty: float
    offset_standard_uncertainty_watts: float
    gain_offset_covariance_watts: float
    linearity_watts: float
    """Standard deviation of the true power from the line."""
    lowest_watts: float
    """Calibrated range of the power that the sensor reads."""
    highest_watts: float
    reference: str = ""
    """The meter that the sensor was compared with."""
    reference_accuracy: float | None = None
    """Relative half-width; None: unknown. The uncertainties above do not include it."""
    date: str = ""
    """Time of the calibration, which identifies it: sensors that were calibrated as a sum have the same."""

    @classmethod
    def of_metrics(cls, values: Mapping[str, float], labels: Mapping[str, str]) -> Self | None:
        """Return the calibration that an exporter publishes; None if a parameter is missing or is not valid.

        Args:
            values: ``parameter`` -> value of ``joulewatch_sensor_calibration``.
            labels: Labels of ``joulewatch_sensor_calibration_info``.
        """
        parameters = {name: values.get(name, math.nan) for name in catalog.CALIBRATION_PARAMETERS}
        if not all(map(math.isfinite, parameters.values())) or parameters["gain"] <= 0:
            return None
        try:
            accuracy = float(labels.get("reference_accuracy", ""))
        except ValueError:
            accuracy = None
        texts = {name: labels.get(name, "") for name in ("reference", "date")}
        return cls(reference_accuracy=accuracy, **texts, **parameters)  # type: ignore[arg-type]

    @property
    def centre_watts(self) -> float:
        """The power at which errors of gain and value are independent."""
        variance = self.gain_standard_uncertainty**2
        return -self.gain_offset_covariance_watts / variance if variance > 0 else 0.0

    @property
    def level_standard_watts(self) -> float:
        """Standard uncertainty of the calibrated power at the centre."""
        gain = self.gain_standard_uncertainty * self.centre_watts
        return math.sqrt(max(self.offset_standard_uncertainty_watts**2 - gain**2, 0.0))

    def outside_watts(self, watts: float) -> float:
        """Return how far a power is above (positive) or below the calibrated range; 0: it is inside."""
        return watts - min(max(watts, self.lowest_watts), self.highest_watts)

    @property
    def margin_watts(self) -> float:
        """Distance from the calibrated range that is not worth a warning."""
        return _MARGIN * (self.highest_watts - self.lowest_watts)

    @property
    def text(self) -> str:
        """The calibration for people."""
        accuracy = "unknown" if self.reference_accuracy is None else f"±{100 * self.reference_accuracy:g} %"
        return f"calibrated {self.date} with {self.reference}, accuracy {accuracy}"


_MARGIN: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorRecord:
    """One energy series of one exporter, as it was when the run started."""

    exporter: str
    """``host:port``, the same as its ``instance`` in Prometheus unless the plan gives another name."""
    scope: str
    collector: str
    component: str
    device: str
    domain: str
    method: str
    reads: str = ""
    model: str = ""
    source: str = ""
    resolution: str = ""
    accuracy: float | None = None
    accuracy_source: str = ""
    """Where the accuracy is published, or why it is assumed."""
    refresh_s: float | None = None
    window_s: float | None = None
    """Part of each refresh period that the sensor averages over; the rest is not observed. None: all is observed."""
    read_mode: str = ""
    """``on_request``, ``polled`` or ``remote``; empty: unknown, as from an exporter of 0.1.0."""
    primary: bool | None = None
    """Of a node sensor: whether it is the one of its host that counts; None: unknown, or not a node sensor."""
    host: str = ""
    """The machine of a node sensor: the nodename, or the target's name for a remote BMC."""
    calibration: CalibrationRecord | None = None
    """None: the values are used as the sensor reads them."""

    @property
    def known_accuracy(self) -> float | None:
        """Relative half-width of its energies: of the reference if it is calibrated, else as published."""
        return self.accuracy if self.calibration is None else self.calibration.reference_accuracy

    @classmethod
    def of_labels(cls, exporter: str, labels: Mapping[str, str]) -> Self:
        """Return what the labels of ``joulewatch_sensor_info`` state; a label that is missing is unknown."""
        try:
            accuracy = float(labels.get("accuracy", ""))
        except ValueError:
            accuracy = None
        names = ("scope", *catalog.SENSOR_LABELS, "method", "reads", "model", "source", "resolution")
        texts = {name: labels.get(name, "") for name in (*names, "accuracy_source", "read_mode", "host")}
        primary = {"1": True, "0": False}.get(labels.get("primary", ""))
        return cls(exporter=exporter, accuracy=accuracy, primary=primary, **texts)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterRecord:
    """An exporter whose counters are read at the edges of windows."""

    name: str
    url: str
    nodename: str = ""
    version: str = ""
    emulated: bool = False
    started_at_s: float | None = None
    """Its start in Unix seconds on its own clock, which identifies it together with ``nodename``; None: unknown."""
    workload_ratios: Mapping[str, Annotated[float, Limits(ge=1)]] = field(default_factory=dict)
    """Component -> how much the watts per processor of two programs differ on its machine, where that was measured."""


_TOGETHER: Final = re.compile(r"(.+?) \(with .+\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A network with its runtime and precision: one line of the figure."""

    name: str
    """Unique within the run, such as ``radioml-vgg10/onnxruntime/fp32``."""
    network: str
    """Short name: of a model file the stem, with a folder only if names clash in the run."""
    runtime: str
    precision: str
    """Requested precision."""
    actual_precision: str = ""
    """Precision read back after loading."""
    provider: str = ""
    device: str = ""
    runtime_version: str = ""
    model_sha256: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    """Other facts from ``describe``: inputs, outputs, threads, parameters."""
    scenario: str = ""
    """``single_stream`` or ``server``; empty: ``offline``. The name contains it too, so that results never mix."""
    server_rate_per_s: float = 0.0
    """Requested queries per second of the scenario ``server``."""
    path: str = ""
    """What the plan names, if it is not ``network``: a model file with its folder, or ``file.py:object``."""

    @property
    def alone(self) -> str:
        """The name of the same network on its own; empty unless this one ran at the same time as others."""
        match = _TOGETHER.fullmatch(self.name)
        return "" if match is None else match[1]

    def with_others(self, others: Iterable[str]) -> Self:
        """Return the same network at the same time as others: its results never mix with those on its own."""
        return dataclasses.replace(self, name=f"{self.name} (with {' and '.join(others)})")

    @property
    def target(self) -> str:
        """What the runtime opens: the path, or a name that has none."""
        return self.path or self.network


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """The first line of a journal."""

    run: str
    started_at_s: float
    schema: int
    command: tuple[str, ...]
    plan: Mapping[str, Any]
    plan_sha256: str
    configurations: tuple[Configuration, ...]
    """Configurations as requested; ``configuration`` lines contain them as loaded."""
    exporters: tuple[ExporterRecord, ...]
    sensors: tuple[SensorRecord, ...]
    provenance: Mapping[str, Any]
    """host, cpu, accelerators, kernel, governor, versions, ..."""

    @property
    def is_metered(self) -> bool:
        """Whether the user's own code was measured (``joulewatch.Meter``): its load before a window is not known."""
        return self.plan.get(METER) is not None

    @property
    def is_imported(self) -> bool:
        """Whether the energy is that of a log of another meter (``joulewatch import``)."""
        return any(sensor.collector == IMPORT for sensor in self.sensors)

    def provenance_text(self, *keys: str) -> str:
        """Return one string of the provenance, such as that of the keys ``cpu`` and ``model``; empty if unknown."""
        value: Any = self.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else ""

    def machine_of(self, sensor: SensorRecord) -> str:
        """Return the machine that a sensor measures, which for a BMC is not always its exporter's; empty: unknown."""
        nodename = next((exporter.nodename for exporter in self.exporters if exporter.name == sensor.exporter), "")
        return sensor.host or nodename

    @property
    def hardware(self) -> str:
        """The machines whose energy is measured; empty if unknown.

        The harness's machine is its processor, with the number of sockets if there are several: ``2x AMD EPYC 7763``.
        Another machine is its nodename, with the devices that its sensors name: ``node1 (2x AMD EPYC 7763)``. A run
        rebuilt from Prometheus has only this text; a journal has the parts.
        """
        host = self.provenance_text("host")
        texts: dict[str, None] = {}
        for exporter in self.exporters:
            sensors = [sensor for sensor in self.sensors if sensor.exporter == exporter.name]
            if host and exporter.nodename not in ("", host):
                devices = _devices(sensors)
                texts[f"{exporter.nodename} ({devices})" if devices else exporter.nodename] = None
            else:
                texts[self._own_hardware] = None
        return self.provenance_text("hardware") or ", ".join(filter(None, texts)) or self._own_hardware

    @property
    def _own_hardware(self) -> str:
        model = self.provenance_text("cpu", "model")
        cpu = self.provenance.get("cpu")
        sockets = cpu.get("sockets") if isinstance(cpu, Mapping) else None
        return f"{sockets}x {model}" if model and isinstance(sockets, int) and sockets > 1 else model


_NOT_PRODUCTS: Final = frozenset({"cray", "estimate", "hwmon", "iio", "ipmi"})
"""Collectors whose ``model`` is that of the sensor, not of the measured device."""


def _devices(sensors: Iterable[SensorRecord]) -> str:
    """Return the devices that sensors measure: ``2x AMD EPYC 7763, NVIDIA A100``."""
    devices = {
        # NVML's models end with the address and the driver: NVIDIA A100 @ 0000:01:00.0, driver 550.54.15.
        (sensor.model.partition(" @ ")[0], sensor.device)
        for sensor in sensors
        if sensor.scope == "device" and sensor.model and sensor.collector not in _NOT_PRODUCTS
    }
    models = Counter(model for model, _ in sorted(devices))
    return ", ".join(f"{count}x {model}" if count > 1 else model for model, count in models.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStep:
    """One or two refreshes of a counter in a row, for which the exporter waited at an edge."""

    error_s: float
    """Largest error of the time of a refresh."""
    before_joules: float
    """Before the first refresh."""
    first_joules: float
    """After the first refresh."""
    span_s: float
    """From the first refresh to the last; 0: only one was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCounter:
    """One energy counter, read directly from an exporter at an edge of a window."""

    exporter: str
    scope: str
    collector: str
    component: str
    device: str
    domain: str
    energy_joules: float
    read_at_s: float
    """Unix seconds on the exporter's clock; with ``step`` the time of the last refresh."""
    step: EdgeStep | None = None
    """None: the value is that of some refresh before ``read_at_s``."""
    no_step: str = ""
    """Why the exporter's socket for edges has no step."""

    @property
    def first(self) -> tuple[float, float]:
        """Time and energy of the first refresh: at the end of a window the reading that is nearest to it."""
        if self.step is None:
            return self.read_at_s, self.energy_joules
        return self.read_at_s - self.step.span_s, self.step.first_joules


@dataclass(frozen=True, slots=True)
class EdgeClock:
    """Bounds of the exporter's clock minus the harness's clock, from the round trip of one request."""

    exporter: str
    lower_s: float
    upper_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Everything read at one edge of a window."""

    requested_at_s: float
    """Unix seconds on the harness's clock, before the first request was sent."""
    answered_at_s: float
    """Unix seconds on the harness's clock, after the last response arrived."""
    counters: tuple[EdgeCounter, ...]
    clocks: tuple[EdgeClock, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Exporter -> why nothing was read from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of the batches of a window."""

    count: int
    mean_s: float
    min_s: float
    max_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Time spent in one phase (``copy_in``, ``execute``, ..., ``other``) of a measure window."""

    count: int
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePowers:
    """The power of one sensor in each phase, fitted to its refreshes in a phase window."""

    exporter: str
    scope: str
    collector: str
    component: str
    device: str
    domain: str
    watts: Mapping[str, float]
    """Phase -> mean power while it lasts; a phase that took almost no time is missing."""
    standard_watts: Mapping[str, float]
    """Phase -> standard uncertainty."""
    intervals: int
    """Number of intervals between refreshes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorTime:
    """Processor time that was used during a window, on the harness's machine."""

    busy_s: float
    """By everything, summed over all processors."""
    own_s: float
    """By the run itself: the harness, the networks' processes and an exporter that it started."""
    processors: int
    networks_s: Mapping[str, float] = field(default_factory=dict)
    """Configuration -> by its processes, of the configurations that were measured in the window; part of ``own_s``.
    Missing: not known, as in a run of an earlier version."""
    services_s: float = 0.0
    """By exporters and Prometheus servers on this machine that the run uses and did not start."""
    system_s: float = 0.0
    """By no program: kernel threads, interrupts, steal."""

    @property
    def measuring_s(self) -> float:
        """By what measures: the harness, networks that wait for their turn, exporters, Prometheus."""
        return max(self.own_s - sum(self.networks_s.values()), 0.0) + self.services_s

    @property
    def others_s(self) -> float:
        """By programs that have nothing to do with the run; the rest, so it has the rounding errors."""
        return max(self.busy_s - self.own_s - self.services_s - self.system_s, 0.0)


DEVICE_SEPARATOR: Final = "/"


def condition_key(name: str, device: str) -> str:
    """Return the key in ``Window.conditions`` of the condition of a device."""
    return f"{name}{DEVICE_SEPARATOR}{device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A span of time [start, end) with a single activity."""

    run: str
    index: int
    """Number within the run, from 0; together with ``run`` it identifies the window in deliveries."""
    kind: WindowKind
    start_s: float
    """Unix seconds on the harness's clock."""
    end_s: float
    duration_s: float
    """On the monotonic clock."""
    clock_error_s: float
    """Largest error of the mapping from the monotonic to the wall clock during the window."""
    clock_step_s: float = 0.0
    """Change of the harness's wall clock relative to its monotonic clock between the two edges."""
    processor_time: ProcessorTime | None = None
    """None: not known, as in a run of 0.1.0."""
    other_workloads: Mapping[str, float] = field(default_factory=dict)
    """Largest workloads on the machine that have nothing to do with the run -> processor seconds around the window."""
    conditions: Mapping[str, float] = field(default_factory=dict)
    """Run conditions: counters of the harness's machine -> their rise around the window, and settings that changed;
    those of a device have a key of ``condition_key``. See ``runner.conditions`` and ``runner.gpu_conditions``. Empty:
    not known, as in a run of an earlier version."""
    configuration: str = ""
    phase: str = ""
    """``load`` or ``prepare`` of a ``setup`` window."""
    batch_size: int = 0
    repeat: int = 0
    batches: int = 0
    inferences: int = 0
    latency: Latency | None = None
    phases: Mapping[str, PhaseTime] = field(default_factory=dict)
    start_edge: Edge | None = None
    end_edge: Edge | None = None
    flags: tuple[str, ...] = ()
    """``interrupted``, ``too_short``, ``overloaded``; warm-ups: ``not_steady``; idle windows: ``loaded``."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Units of work other than inferences -> their number, such as ``output_tokens``."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Facts from ``describe`` in a ``prepare`` window that changed since loading, such as the state of the tuning."""
    phase_powers: tuple[PhasePowers, ...] = ()
    """Of a phase window."""

    @property
    def has_device_conditions(self) -> bool:
        """Whether any run condition is that of a device."""
        return DEVICE_SEPARATOR in "".join(self.conditions)

    def device_conditions(self, name: str) -> dict[str, float]:
        """Return the value of a run condition of each device that has it."""
        prefix = condition_key(name, "")
        return {key.removeprefix(prefix): value for key, value in self.conditions.items() if key.startswith(prefix)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The duration of a load, or of the first ``prepare`` of a batch size, that was too short for a window."""

    configuration: str
    phase: str
    """``load`` or ``prepare``."""
    duration_s: float
    batch_size: int = 0
    """0 for ``load``."""
    details: Mapping[str, str] = field(default_factory=dict)
    """See ``Window.details``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An event of the run: a batch size failed, an exporter disappeared."""

    at_s: float
    reason: str
    text: str
    configuration: str = ""
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The last line of a journal; missing after a kill."""

    ended_at_s: float
    status: RunStatus
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A whole run, read from a journal, a recording or Prometheus."""

    header: RunHeader
    configurations: tuple[Configuration, ...]
    windows: tuple[Window, ...]
    notes: tuple[Note, ...] = ()
    end: RunEnd | None = None
    setups: tuple[Setup, ...] = ()
    """The setups that were too short for a window."""

    @property
    def without_exporters(self) -> RunRecord:
        """The same run without its own energies: those of other exporters take their place."""
        header = dataclasses.replace(self.header, exporters=(), sensors=())
        windows = (dataclasses.replace(window, start_edge=None, end_edge=None) for window in self.windows)
        return dataclasses.replace(self, header=header, windows=tuple(windows))


Line = RunHeader | Configuration | Window | Setup | Note | RunEnd
LINE_TYPES: Final[Mapping[str, type[Any]]] = {
    "run": RunHeader,
    "configuration": Configuration,
    "window": Window,
    "setup": Setup,
    "note": Note,
    "end": RunEnd,
}
_TYPE_NAMES: Final = {cls: name for name, cls in LINE_TYPES.items()}


def encode(record: Any) -> Any:
    """Turn a record into a value for ``json.dumps``; fields that are None are kept."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {item.name: encode(getattr(record, item.name)) for item in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): encode(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [encode(value) for value in record]
    return record


def encode_line(line: Line) -> dict[str, Any]:
    """Return a journal line: the ``type``, then the fields of the record."""
    return {"type": _TYPE_NAMES[type(line)], **encode(line)}


def dump_line(line: Line) -> str:
    """Return ``encode_line`` as JSON text, in a third of the time: the end of a window waits for it.

    Raises:
        TypeError, ValueError: A value has no JSON.
    """
    return json.dumps(
        {"type": _TYPE_NAMES[type(line)], **_fields(line)},
        ensure_ascii=False,
        separators=(",", ":"),
        allow_nan=False,
        default=_fields,
    )


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a record, or the items of a mapping that is not a dict."""
    if isinstance(value, Mapping):
        return dict(value)
    return {name: getattr(value, name) for name in _names(typing.cast(Hashable, type(value)))}


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(kind))


def decode_line(data: Any, where: str = "journal line") -> Line:
    """Turn one parsed journal line into its record.

    Raises:
        RecordError: the ``type`` is missing or unknown, or a field is missing or has a bad value.
    """
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in LINE_TYPES:
        raise RecordError(f"{where}: {unknown('type', str(kind), LINE_TYPES)}")
    return typing.cast(Line, bind_record(LINE_TYPES[kind], data, where))
