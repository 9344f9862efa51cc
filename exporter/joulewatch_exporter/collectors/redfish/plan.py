"""The plan of what to read from a Redfish service: fields of its resources, and the series made of them."""

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

_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)

ROOT: Final = "/redfish/v1/"
"""The only fixed path."""


class MissingError(SensorAbsentError):
    """The service answers, but does not have this resource."""


class ForbiddenError(SensorDeniedError):
    """The login is valid, but must not read this resource."""


class BusyError(SensorGlitchError):
    """The service answers that it is starting or overloaded."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a list, identified independently of the order of the list."""

    key: str
    """``MemberId`` or ``Name``; empty: the member has neither, use the index."""
    value: str
    index: int
    occurrence: int = 0
    """Number of members with the same value before it: feeds of one server may have the same name and no id."""

    @property
    def name(self) -> str:
        """The name for people: the index, or the sensor of a metric, whose index changes."""
        return self.value.rpartition("/")[2] if self.key == "MetricProperty" else str(self.index)


@dataclass(frozen=True, slots=True)
class Field:
    """The place of a value: a resource and the path within it."""

    uri: str
    path: tuple[str | Member, ...]
    scale: float = 1.0
    """Factor to watts or joules."""
    rating_watts: float = math.inf
    """A power of this size or more is the rating of a power supply, not a reading."""

    @property
    def pointer(self) -> str:
        """The address of the value in Redfish notation: the resource, ``#`` and the path."""
        return f"{self.uri}#/" + "/".join(step if isinstance(step, str) else step.name for step in self.path)

    def value(self, resource: Json) -> Any:
        """Return the value, or None if it is missing."""
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
        """Return the value in watts or joules; None if it is not a number."""
        value = number(self.value(resource))
        return None if value is None else value * self.scale

    def watts(self, resource: Json) -> float | None:
        """Return the power; None also for 0, which services return without data."""
        return self.addend(resource) or None

    def addend(self, resource: Json) -> float | None:
        """Return the power as an addend of a sum; 0 is valid, because a redundant supply may be idle."""
        value = self.number(resource)
        return value if value is not None and 0.0 <= value < self.rating_watts else None

    def joules(self, resource: Json) -> float | None:
        """Return the position of the counter."""
        value = self.number(resource)
        return value if value is not None and value >= 0.0 else None


def total_watts(fields: Sequence[Field], resources: Mapping[str, Json]) -> float | None:
    """Return the sum of the fields; None if one of them has no value, because the sum would be too small."""
    if not all(field.uri in resources for field in fields):
        return None
    if len(fields) == 1:
        return fields[0].watts(resources[fields[0].uri])
    watts = [value for field in fields if (value := field.addend(resources[field.uri])) is not None]
    return sum(watts) or None if len(watts) == len(fields) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One quantity and the fields of its values."""

    info: SensorInfo
    power: tuple[Field, ...]
    """The power is the sum of these fields; empty: no power is reported."""
    energy: Field | None
    is_supply: bool = False
    """Whether it is the power of a power supply, which is a rating if it is above the power of its node."""
    sampled: Field | None = None
    """The sensor's timestamp, in the same resource."""
    sensing_s: float | None = None
    """Sampling interval stated by the sensor."""

    @property
    def is_node(self) -> bool:
        """Whether it is the power of a node, not of a part."""
        return self.info.quantity.scope == "node"

    @property
    def uris(self) -> tuple[str, ...]:
        """The resources that are needed for a reading."""
        return tuple(dict.fromkeys(field.uri for field in (self.energy, *self.power) if field is not None))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read from a service in each poll."""

    series: tuple[Series, ...]
    findings: tuple[Finding, ...]
    chassis: frozenset[str]
    """Chassis that have reported a value."""
    better: tuple[tuple[Field, ...], ...] = ()
    """Better sources of nodes, which had no value; the plan is made again when one of them has."""

    @property
    def infos(self) -> tuple[SensorInfo, ...]:
        """Infos of all quantities."""
        return tuple(series.info for series in self.series)

    @property
    def has_node(self) -> bool:
        """Whether there is a node; otherwise all series are parts of an unknown whole."""
        return any(series.is_node for series in self.series)

    @property
    def required_uris(self) -> tuple[str, ...]:
        """The resources that are needed for nodes; without a node, all resources."""
        has_node = self.has_node
        required = (series for series in self.series if series.is_node or not has_node)
        return tuple(dict.fromkeys(uri for series in required for uri in series.uris))

    @property
    def part_uris(self) -> tuple[str, ...]:
        """The other resources, needed only for parts and better sources."""
        uris = dict.fromkeys(uri for series in self.series for uri in series.uris)
        uris |= dict.fromkeys(field.uri for fields in self.better for field in fields)
        return tuple(uri for uri in uris if uri not in self.required_uris)


def number(value: Any) -> float | None:
    """Return a JSON number as a float; None for other types and for numbers outside the range of a float.

    Metric reports have their numbers in strings, and so have some services (Microsoft's rack manager).
    """
    if isinstance(value, str):
        if _NUMBER.fullmatch(value.strip()) is None:
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        result = float(value)
    except (OverflowError, ValueError):
        return None
    return result if math.isfinite(result) else None


def seconds(duration: Any) -> float | None:
    """Return a duration in ISO 8601 (``PT1.5S``) in seconds; None if it is invalid or not above 0."""
    if not isinstance(duration, str):
        return None
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", duration)
    if match is None:
        return None
    parts = [float(part) if part else 0.0 for part in match.groups()]
    return sum(part * unit for part, unit in zip(parts, (86400.0, 3600.0, 60.0, 1.0), strict=True)) or None


# -- values of resources ------------------------------------------------------------------------


def as_mapping(value: Any) -> Json:
    """Return a mapping, or an empty one for other types."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> Sequence[Any]:
    """Return a list, or an empty one for other types."""
    return value if isinstance(value, list) else ()


def as_text(value: Any) -> str:
    """Return a string without surrounding white space, or an empty one for other types."""
    return value.strip() if isinstance(value, str) else ""


def link_target(value: Any) -> str | None:
    """Return the resource that a link refers to; None if it is not a link."""
    uri = as_text(as_mapping(value).get("@odata.id"))
    # A link to a part of a resource (``#/PowerControl/0``): only the whole resource can be read.
    return uri.partition("#")[0] or None


def uris_of(links: Any) -> tuple[str, ...]:
    """Return the resources of a list of links, to be compared: a service may add a slash to some of them."""
    return tuple(uri.rstrip("/") for entry in as_list(links) if (uri := link_target(entry)))


def linked_uri(resource: Json, name: str) -> str | None:
    """Return the resource that a named link refers to."""
    return link_target(resource.get(name))


def find_member(members: Any, member: Member) -> Any:
    """Return a member of a list; None if it is missing."""
    if not isinstance(members, list):
        return None
    if member.key:
        matches = [entry for entry in members if as_text(as_mapping(entry).get(member.key)) == member.value]
        return matches[member.occurrence] if member.occurrence < len(matches) else None
    return members[member.index] if member.index < len(members) else None


def member_of(entries: Sequence[Any], index: int) -> Member:
    """Return the identification of an entry of a list."""
    for key in ("MemberId", "Name"):
        values = [as_text(as_mapping(entry).get(key)) for entry in entries[: index + 1]]
        if value := values[index]:
            return Member(key, value, index, values[:index].count(value))
    return Member("", "", index)


def best_counter(resource: Json, uri: str, path: tuple[str, ...], scale: float) -> Field | None:
    """Return the counter, preferably the one that survives a reset of the metrics; None if it has no value."""
    reading, lifetime = Field(uri, (*path, "Reading"), scale), Field(uri, (*path, "LifetimeReading"), scale)
    joules, lifetime_joules = reading.joules(resource), lifetime.joules(resource)
    if lifetime_joules and lifetime_joules >= (joules or 0.0):
        return lifetime
    return reading if joules is not None else None


def step_of(resource: Json, field: Field | None, unit: str) -> str:
    """Return the step of a value with its unit; empty if the value is missing."""
    step = None if field is None else step_size(resource, field)
    return "" if step is None else f"{step:g} {unit}"


def step_size(resource: Json, field: Field) -> float | None:
    """Return the step of a value, estimated from its digits (JSON may omit trailing zeros)."""
    value = field.value(resource)
    if number(value) is None:
        return None
    if isinstance(value, str):
        value = Decimal(value.strip())
    exponent = value.as_tuple().exponent if isinstance(value, Decimal) else 0
    decimals = min(max(-exponent, 0), 6) if isinstance(exponent, int) else 0
    return field.scale * 10.0**-decimals
