"""What a run leaves behind, as data: the contract between runner, journal, delivery, recording and analysis.

Every record is a frozen dataclass, turned into JSON and back by ``encode`` and ``decode``; a journal line is
``{"type": ..., ...}``. Unknown keys in a line are ignored (a newer joulewatch wrote them), a missing
one is a RecordError that names it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from joulewatch_harness.errors import RecordError

SCHEMA_VERSION: Final = 2
"""2: windows of kind ``setup`` and lines of type ``setup``, which a reader of 1 does not know; 1 is read too."""

WindowKind = Literal["idle", "warmup", "measure", "phase", "setup"]
EdgeName = Literal["start", "end"]
RunStatus = Literal["running", "complete", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class SensorRecord:
    """One energy series of one exporter, as found when the run began."""

    exporter: str
    """``host:port``, equal to Prometheus' ``instance`` of it unless the plan names another."""
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
    refresh_s: float | None = None
    window_s: float | None = None
    """A value is the mean over so much of each refresh period, the rest is unseen; None: nothing is unseen."""


@dataclass(frozen=True, slots=True)
class ExporterRecord:
    """An exporter whose counters are read at the edges of windows."""

    name: str
    url: str
    nodename: str = ""
    version: str = ""
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """A network, its runtime and its precision: one line of the figure."""

    name: str
    """Unique in the run, such as ``radioml-vgg10/onnxruntime/fp32``."""
    network: str
    runtime: str
    precision: str
    """What was asked for."""
    actual_precision: str = ""
    """Read back after loading."""
    provider: str = ""
    device: str = ""
    runtime_version: str = ""
    model_sha256: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    """Anything else ``describe`` said: inputs, outputs, threads, parameters."""
    scenario: str = ""
    """``single_stream`` or ``server``; empty: ``offline``. It is in the name too, so that results never mix."""
    server_rate_per_s: float = 0.0
    """Queries per second that ``server`` was asked for."""


@dataclass(frozen=True, slots=True)
class RunHeader:
    """First line of a journal."""

    run: str
    started_at_s: float
    schema: int
    command: tuple[str, ...]
    plan: Mapping[str, Any]
    plan_sha256: str
    configurations: tuple[Configuration, ...]
    """As asked; ``configuration`` lines hold them as loaded."""
    exporters: tuple[ExporterRecord, ...]
    sensors: tuple[SensorRecord, ...]
    provenance: Mapping[str, Any]
    """host, cpu, accelerators, kernel, governor, versions, ..."""

    def told(self, *keys: str) -> str:
        """A text of the provenance, such as ``told("cpu", "model")``; empty where it is not known."""
        value: Any = self.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else ""

    @property
    def hardware(self) -> str:
        """The processor, with the number of sockets where there are several: ``2x AMD EPYC 7763``; empty if unknown.

        A run rebuilt from Prometheus has this one text; a journal has the parts.
        """
        model = self.told("cpu", "model")
        cpu = self.provenance.get("cpu")
        sockets = cpu.get("sockets") if isinstance(cpu, Mapping) else None
        several = f"{sockets}x {model}" if model and isinstance(sockets, int) and sockets > 1 else model
        return self.told("hardware") or several


@dataclass(frozen=True, slots=True)
class EdgeCounter:
    """One energy counter, read straight from an exporter at an edge."""

    exporter: str
    scope: str
    collector: str
    component: str
    device: str
    domain: str
    energy_joules: float
    read_at_s: float
    """Unix seconds on the exporter's clock."""


@dataclass(frozen=True, slots=True)
class EdgeClock:
    """Bounds of the exporter's clock minus the harness's clock, from one request's round trip."""

    exporter: str
    lower_s: float
    upper_s: float


@dataclass(frozen=True, slots=True)
class Edge:
    """Everything read at one edge of a window."""

    requested_at_s: float
    """Unix seconds, harness clock, before the first request left."""
    answered_at_s: float
    """Unix seconds, harness clock, after the last answer came."""
    counters: tuple[EdgeCounter, ...]
    clocks: tuple[EdgeClock, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """exporter -> why nothing was read from it."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of a batch, seconds, over the window."""

    count: int
    mean_s: float
    min_s: float
    max_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Time spent in one phase (``copy_in``, ``execute``, ..., ``other``) inside a measure window."""

    count: int
    total_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """A span [start, end) in which one thing happened."""

    run: str
    index: int
    """Number in the run, from 0: with ``run`` the identity under which it is delivered once."""
    kind: WindowKind
    start_s: float
    """Unix seconds on the harness's clock."""
    end_s: float
    duration_s: float
    """On the monotonic clock."""
    clock_error_s: float
    """Largest error of the mapping from monotonic to wall clock over the window."""
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
    """``not_steady``, ``interrupted``, ``too_short``, ``overloaded``; idle: ``loaded`` with a network in memory."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Other units of work than inferences -> how many: ``output_tokens``."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Of preparing: what the network then said otherwise than after loading, such as the state of its tuning."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How long a load, or the first preparing of a batch size, took where that was too short for a window."""

    configuration: str
    phase: str
    """``load`` or ``prepare``."""
    duration_s: float
    batch_size: int = 0
    """0 for ``load``."""
    details: Mapping[str, str] = field(default_factory=dict)
    """As of a window."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something the run wants remembered: a batch size that failed, an exporter that went away."""

    at_s: float
    reason: str
    text: str
    configuration: str = ""
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Last line of a journal; missing after a kill."""

    ended_at_s: float
    status: RunStatus
    text: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A whole run, wherever it was read from: journal, recording or Prometheus."""

    header: RunHeader
    configurations: tuple[Configuration, ...]
    windows: tuple[Window, ...]
    notes: tuple[Note, ...] = ()
    end: RunEnd | None = None
    setups: tuple[Setup, ...] = ()
    """The short ones; the others are windows."""


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

T = TypeVar("T")


def encode(record: Any) -> Any:
    """Turn a record into what ``json.dumps`` takes; None fields are kept."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {item.name: encode(getattr(record, item.name)) for item in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): encode(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [encode(value) for value in record]
    return record


def encode_line(line: Line) -> dict[str, Any]:
    """A journal line: the record with its ``type`` in front."""
    return {"type": _TYPE_NAMES[type(line)], **encode(line)}


def decode(cls: type[T], data: Any, where: str = "record") -> T:
    """Turn JSON data back into the dataclass ``cls``.

    Raises:
        RecordError: a field is missing or of another kind; the text names it and ``where`` it was.
    """
    return typing.cast(T, _decode(cls, data, where))


def decode_line(data: Any, where: str = "journal line") -> Line:
    """Turn one parsed journal line into its record.

    Raises:
        RecordError: no or unknown ``type``, or fields missing.
    """
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in LINE_TYPES:
        raise RecordError(f"{where}: type {kind!r} is none of {', '.join(LINE_TYPES)}")
    return typing.cast(Line, decode(LINE_TYPES[kind], data, where))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return _decode(next(item for item in typing.get_args(kind) if item is not type(None)), data, where)
    if origin is Literal:
        if data not in typing.get_args(kind):
            raise RecordError(f"{where}: {data!r} is none of {', '.join(map(str, typing.get_args(kind)))}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise RecordError(f"{where}: a list is wanted, not {data!r}")
        return tuple(_decode(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise RecordError(f"{where}: an object is wanted, not {data!r}")
        return {key: _decode(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise RecordError(f"{where}: an object is wanted, not {data!r}")
        hints = typing.get_type_hints(kind)
        values = {}
        for item in dataclasses.fields(kind):
            if item.name in data:
                values[item.name] = _decode(hints[item.name], data[item.name], f"{where}.{item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise RecordError(f"{where}: field {item.name!r} is missing")
        return typing.cast(Any, kind)(**values)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise RecordError(f"{where}: {kind.__name__} is wanted, not {data!r}")
    return data
