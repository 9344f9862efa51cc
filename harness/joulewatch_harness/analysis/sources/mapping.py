"""Mappings: which series of another exporter are which sensors, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from joulewatch_harness.analysis.sources.power_log import ENERGY_UNITS, POWER_UNITS
from joulewatch_harness.binder import Choice, Limits, Text, bind, read_yaml
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown

FOLDER: Final = Path(__file__).parent / "mappings"
OWN: Final = "joulewatch"
_LABELS: Final = re.compile(r"\{([a-zA-Z0-9_,]+)\}")
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class MappedSensor:
    """Series of one metric; texts may contain labels: ``socket{index}``, or the first label of ``{uuid,index}``."""

    metric: str
    type: Literal["counter", "gauge"]
    unit: Annotated[str, Choice((*ENERGY_UNITS, *POWER_UNITS))]
    factor: Annotated[float, Limits(gt=0)] = 1.0
    """Multiplies the values, in addition to the unit."""
    match: Mapping[str, Text] = field(default_factory=dict)
    """Label -> regular expression that its whole value must match."""
    scope: Literal["device", "node", "part"] = "device"
    component: Literal["cpu", "memory", "gpu", "fpga", "node", "other"]
    device: Text
    domain: Text = "total"
    host: Text = ""
    """Name of the machine; default: the host of the label ``instance``."""
    wrap: tuple[Annotated[float, Limits(gt=0, unit="joules")], ...] = ()
    """Values in joules at which a counter may wrap; empty: it does not wrap."""
    accuracy: Annotated[float, Limits(ge=0, le=1)] | None = None
    """Relative half-width; default: unknown."""
    refresh_s: Annotated[float, Limits(gt=0, unit="seconds")] | None = None
    """Time between updates of the value; default: observed."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.metric):
            raise ConfigError(f"metric: {self.metric!r} is not a name of a metric")
        units = ENERGY_UNITS if self.type == "counter" else POWER_UNITS
        if self.unit not in units:
            raise ConfigError(f"unit: {self.unit} is not the unit of a {self.type} (known: {', '.join(units)})")
        if self.wrap and self.type == "gauge":
            raise ConfigError("wrap: a gauge does not wrap")
        for key in ("device", "domain", "host"):
            if set("{}") & set(_LABELS.sub("", getattr(self, key))):
                raise ConfigError(f"{key}: {getattr(self, key)!r} has braces around something else than labels")
        for label, pattern in self.match.items():
            if not _LABEL.fullmatch(label):
                raise ConfigError(f"match: {label!r} is not a name of a label")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"match.{label}: {pattern!r} is not a regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """Joules or watts per unit of the series."""
        return self.factor * (ENERGY_UNITS | POWER_UNITS)[self.unit]

    def text(self, template: str, labels: Mapping[str, str]) -> str:
        """Return a text with the values of its labels; a label that is missing is empty."""
        return _LABELS.sub(
            lambda match: next((labels[name] for name in match[1].split(",") if labels.get(name)), ""), template
        )


@dataclass(frozen=True, kw_only=True)
class SourceMapping:
    """One exporter."""

    sensors: tuple[MappedSensor, ...]
    scrape_interval_s: Annotated[float, Limits(gt=0, unit="seconds")] = 15.0
    """Expected; samples are read so far around a window that it is bracketed with one scrape missing."""
    name: str = ""
    """Collector of the sensors; default: the name of the file."""

    def __post_init__(self) -> None:
        if not self.sensors:
            raise ConfigError("sensors: at least one is needed")

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics."""
        return tuple(dict.fromkeys(sensor.metric for sensor in self.sensors))


def shipped() -> dict[str, Path]:
    """Return the mappings that come with joulewatch."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_mapping(source: str) -> SourceMapping:
    """Return the mapping of an exporter, or of a file.

    Raises:
        ConfigError: The mapping does not exist or is not valid.
    """
    path = shipped().get(source)
    if path is None:
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"--source: {unknown('source', source, (OWN, *shipped()))}; or give a FILE.yaml")
    mapping = bind(SourceMapping, read_yaml(path), str(path))
    return mapping if mapping.name else replace(mapping, name=path.stem)
