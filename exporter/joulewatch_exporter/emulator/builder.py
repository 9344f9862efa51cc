"""Build the signals of a scenario: a number, the name of a signal, or a mapping with a ``kind``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from joulewatch_exporter.arguments import suggestion
from joulewatch_exporter.config.strict import Converters, build, mapping
from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.signals import Constant, CpuLoad, Phases, Points, Signal, Sine, Square, Sum, ramp
from joulewatch_exporter.emulator.workloads import WorkloadLoad, WorkloadPower
from joulewatch_exporter.errors import ConfigError

_SHORTEST_S: Final = 1e-6
"""Shortest duration of a ramp or a phase."""


class SignalBuilder:
    """Builds signals and remembers those that have a name."""

    def __init__(self) -> None:
        """Start without named signals."""
        self.named: dict[str, Signal] = {}
        self.loads: list[CpuLoad] = []
        """The signals that follow the load of this machine."""
        self.workload_loads: list[WorkloadLoad] = []
        """The signals that follow its workloads."""
        self.converters: Converters = {Signal: self.build}
        """Converters for the binder: they build the signals in the description of a device."""

    def build(self, value: Any, source: str, where: str) -> Signal:
        """Build one signal.

        Args:
            value: Constant power in watts, the name of a signal, or a mapping with ``kind``.
            source: The scenario's file, for messages.
            where: The key that contains ``value``, for messages.

        Raises:
            ConfigError: The value is not a valid signal.
        """
        if isinstance(value, str):
            if value not in self.named:
                hint = suggestion(value, self.named)
                raise ConfigError(f"{source}: {where}: no signal {value!r} is defined above{hint}")
            return self.named[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"kind": "constant", "watts": value}
        keys = dict(mapping(value, source, where))
        kind = keys.pop("kind", None)
        if not isinstance(kind, str) or kind not in _KINDS:
            hint = suggestion(str(kind), _KINDS)
            raise ConfigError(f"{source}: {where}.kind: {kind!r} is not one of {', '.join(_KINDS)}{hint}")
        built = build(_KINDS[kind], keys, source, where, self.converters)
        try:
            signal: Signal = built.make() if isinstance(built, _Description) else built
        except ValueError as error:
            raise ConfigError(f"{source}: {where}.{error}") from error
        if isinstance(signal, CpuLoad):
            self.loads.append(signal)
        if isinstance(signal, WorkloadLoad):
            self.workload_loads.append(signal)
        return signal


class _Description(ABC):
    """The keys of a kind of signal, where they are not the fields of the signal itself."""

    __slots__ = ()

    @abstractmethod
    def make(self) -> Signal:
        """Return the signal, or raise `ValueError` with a key in front."""


@dataclass(frozen=True, slots=True)
class _Step(_Description):
    points: tuple[tuple[float, float], ...]
    """Seconds and watts."""
    repeat: bool = False

    def make(self) -> Signal:
        return _points(self.points, is_linear=False, repeats=self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay(_Description):
    points: tuple[tuple[float, float], ...] = ()
    """Seconds and watts."""
    file: str = ""
    """A CSV file instead of points; `replay.with_points` has replaced it."""
    interpolate: Literal["hold", "linear"] = "linear"
    repeat: bool = False

    def make(self) -> Signal:
        if self.file:
            raise ValueError("file: give either file or points")
        return _points(self.points, is_linear=self.interpolate == "linear", repeats=self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ramp(_Description):
    from_watts: float
    to_watts: float
    duration_s: float
    start_s: float = 0.0
    repeat: bool = False

    def make(self) -> Signal:
        for key in ("from_watts", "to_watts", "start_s"):
            check_range(key, getattr(self, key), 0.0)
        check_range("duration_s", self.duration_s, _SHORTEST_S)
        return ramp(self.from_watts, self.to_watts, self.duration_s, start_s=self.start_s, repeats=self.repeat)


@dataclass(frozen=True, slots=True)
class _Sum(_Description):
    of: tuple[Signal, ...]

    def make(self) -> Signal:
        return Sum(self.of, (1.0,) * len(self.of))


@dataclass(frozen=True, slots=True)
class _Scale(_Description):
    signal: Signal
    factor: float

    def make(self) -> Signal:
        check_range("factor", self.factor, 0.0)
        return Sum((self.signal,), (self.factor,))


@dataclass(frozen=True, slots=True)
class _Phase:
    signal: Signal
    duration_s: float

    def __post_init__(self) -> None:
        if not self.signal.is_deterministic:
            raise ValueError("signal: a signal that follows the load cannot be a phase")
        check_range("duration_s", self.duration_s, _SHORTEST_S)


@dataclass(frozen=True, slots=True)
class _Phases(_Description):
    of: tuple[_Phase, ...]

    def make(self) -> Signal:
        if not self.of:
            raise ValueError("of: needs at least one phase")
        return Phases(tuple(phase.signal for phase in self.of), tuple(phase.duration_s for phase in self.of))


@dataclass(frozen=True, slots=True)
class _CpuLoad(_Description):
    idle_watts: float
    full_watts: float

    def make(self) -> Signal:
        check_range("idle_watts", self.idle_watts, 0.0)
        check_range("full_watts", self.full_watts, 0.0)
        return CpuLoad(self.idle_watts, self.full_watts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkloadLoad(_Description):
    idle_watts: float
    workloads: Mapping[str, WorkloadPower] = field(default_factory=dict)
    """By path below ``cgroup``."""
    other_watts_per_core: float = 0.0
    cgroup: str = ""
    """Folder of the cgroup that is the whole machine; empty: that of this machine's hierarchy."""

    def make(self) -> Signal:
        check_range("idle_watts", self.idle_watts, 0.0)
        check_range("other_watts_per_core", self.other_watts_per_core, 0.0)
        for path in self.workloads:
            if not path or any(part in ("", ".", "..") for part in path.split("/")):
                raise ValueError(f"workloads: {path!r} must be a path below the cgroup, like system.slice/a.service")
        return WorkloadLoad(
            idle_watts=self.idle_watts,
            workloads=self.workloads,
            other_watts_per_core=self.other_watts_per_core,
            cgroup=self.cgroup,
        )


def _points(points: tuple[tuple[float, float], ...], *, is_linear: bool, repeats: bool) -> Points:
    times_s, watts = tuple(point[0] for point in points), tuple(point[1] for point in points)
    try:
        return Points(times_s=times_s, watts=watts, is_linear=is_linear, repeats=repeats)
    except ValueError as error:
        raise ValueError(f"points: {error}") from error


_KINDS: Final[Mapping[str, type[Any]]] = {
    "constant": Constant,
    "step": _Step,
    "square": Square,
    "ramp": _Ramp,
    "sine": Sine,
    "sum": _Sum,
    "scale": _Scale,
    "phases": _Phases,
    "replay": _Replay,
    "cpu_load": _CpuLoad,
    "workload_load": _WorkloadLoad,
}
