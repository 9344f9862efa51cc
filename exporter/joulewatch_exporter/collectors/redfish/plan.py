"""Where the values of a Redfish service are: fields of its resources, and the plan of those that are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypeAlias

from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import Finding, SensorInfo

Json: TypeAlias = Mapping[str, Any]

ROOT: Final = "/redfish/v1/"
"""The only path that is known beforehand."""


class MissingError(SensorAbsentError):
    """The service answers, and has no such resource."""


class ForbiddenError(SensorDeniedError):
    """The login is good and has no right to this resource."""


class BusyError(SensorGlitchError):
    """The service answers that it cannot: it starts, or has too much to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a list, known by what stays when the list is sorted anew."""

    key: str
    """``MemberId`` or ``Name``; empty: it has neither."""
    value: str
    index: int


@dataclass(frozen=True, slots=True)
class Field:
    """Where one value is: a resource and the way within it."""

    uri: str
    path: tuple[str | Member, ...]
    scale: float = 1.0
    """To watts or joules."""

    @property
    def pointer(self) -> str:
        """The value's address, as Redfish writes it: the resource, ``#`` and the way."""
        return f"{self.uri}#/" + "/".join(str(step.index) if isinstance(step, Member) else step for step in self.path)

    def value(self, resource: Json) -> Any:
        """What is there; None where nothing is."""
        value: Any = resource
        for step in self.path:
            if isinstance(step, Member):
                value = find_member(value, step)
            elif isinstance(value, Mapping):
                value = value.get(step)
            else:
                return None
        return value

    def number(self, resource: Json) -> float | None:
        """The number there in watts or joules; None: null, empty, or no number."""
        value = number(self.value(resource))
        return None if value is None else value * self.scale

    def watts(self, resource: Json) -> float | None:
        """The power there; None also for 0, which is what a service without data says."""
        value = self.number(resource)
        return value if value is not None and value > 0.0 else None

    def joules(self, resource: Json) -> float | None:
        """The counter's position there."""
        value = self.number(resource)
        return value if value is not None and value >= 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One quantity and where its values are."""

    info: SensorInfo
    power: Field | None
    energy: Field | None
    sampled: Field | None = None
    """The sensor's own time stamp, in the same resource."""
    sensing_s: float | None = None
    """How often the sensor samples, by its own account."""

    @property
    def is_node(self) -> bool:
        """Whether it is what the service is read for, not a part that comes along."""
        return self.info.quantity.scope == "node"

    @property
    def uris(self) -> tuple[str, ...]:
        """The resources that a reading needs."""
        return tuple(dict.fromkeys(field.uri for field in (self.energy, self.power) if field is not None))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read of one service at each poll."""

    series: tuple[Series, ...]
    findings: tuple[Finding, ...]
    chassis: frozenset[str]
    """Chassis that have shown a number."""

    @property
    def infos(self) -> tuple[SensorInfo, ...]:
        """Of all its quantities."""
        return tuple(series.info for series in self.series)

    @property
    def node_uris(self) -> tuple[str, ...]:
        """The resources that must be read."""
        return tuple(dict.fromkeys(uri for series in self.series if series.is_node for uri in series.uris))

    @property
    def part_uris(self) -> tuple[str, ...]:
        """Further resources, that only parts need."""
        uris = dict.fromkeys(uri for series in self.series for uri in series.uris)
        return tuple(uri for uri in uris if uri not in self.node_uris)


def number(value: Any) -> float | None:
    """A JSON number as a float; None for everything else: null, "", true, and what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        result = float(value)
    except (OverflowError, ValueError):
        return None
    return result if math.isfinite(result) else None


def seconds(duration: Any) -> float | None:
    """A time span of ISO 8601 (``PT1.5S``) in seconds; None: it is none, or not above 0."""
    if not isinstance(duration, str):
        return None
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", duration)
    if match is None:
        return None
    parts = [float(part) if part else 0.0 for part in match.groups()]
    return sum(part * unit for part, unit in zip(parts, (86400.0, 3600.0, 60.0, 1.0), strict=True)) or None


# -- values of resources ------------------------------------------------------------------------


def as_mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def as_text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def link_target(value: Any) -> str | None:
    uri = as_text(as_mapping(value).get("@odata.id"))
    # Part of a resource (``#/PowerControl/0``): the resource is what can be read.
    return uri.partition("#")[0] or None


def linked_uri(resource: Json, name: str) -> str | None:
    return link_target(resource.get(name))


def find_member(members: Any, wanted: Member) -> Any:
    if not isinstance(members, list):
        return None
    if wanted.key:
        return next((item for item in members if as_text(as_mapping(item).get(wanted.key)) == wanted.value), None)
    return members[wanted.index] if wanted.index < len(members) else None


def member_of(member: Json, index: int) -> Member:
    for key in ("MemberId", "Name"):
        if value := as_text(member.get(key)):
            return Member(key, value, index)
    return Member("", "", index)


def best_counter(resource: Json, uri: str, path: tuple[str, ...], scale: float) -> Field | None:
    """The counter that survives a reset of the metrics, where there is one; None: no number at all."""
    reading, lifetime = Field(uri, (*path, "Reading"), scale), Field(uri, (*path, "LifetimeReading"), scale)
    joules, lifetime_joules = reading.joules(resource), lifetime.joules(resource)
    if lifetime_joules and lifetime_joules >= (joules or 0.0):
        return lifetime
    return reading if joules is not None else None


def step_of(resource: Json, place: Field | None, unit: str) -> str:
    """The step of a value, by its digits; a trailing zero may hide one."""
    value = None if place is None else place.value(resource)
    if place is None or number(value) is None:
        return ""
    exponent = value.as_tuple().exponent if isinstance(value, Decimal) else 0
    decimals = min(max(-exponent, 0), 6) if isinstance(exponent, int) else 0
    return f"{place.scale * 10.0**-decimals:g} {unit}"
