"""Where a chassis reports its power: EnvironmentMetrics, Power, Sensors.

Source: DMTF DSP0268, schemas EnvironmentMetrics, Power and Sensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from joulewatch_exporter.collectors.redfish.controls import Controls, control_name, part_of, sort_controls
from joulewatch_exporter.collectors.redfish.names import (
    SHARE,
    WHOLE,
    input_sensor,
    rank_of,
    server_in,
    slug,
)
from joulewatch_exporter.collectors.redfish.plan import (
    BusyError,
    Field,
    ForbiddenError,
    Json,
    MissingError,
    as_list,
    as_mapping,
    as_text,
    best_counter,
    link_target,
    linked_uri,
    member_of,
    number,
    seconds,
    step_of,
    step_size,
    total_watts,
)
from joulewatch_exporter.collectors.redfish.supplies import (
    Supply,
    is_absent,
    oem_total,
    subsystem_supply,
    supplies_of,
    without_ratings,
)
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorGlitchError
from joulewatch_exporter.model import Component, Finding

Get: TypeAlias = Callable[[str], Json]
"""Returns a resource by its path; raises `MissingError` if there is none."""

JOULES_PER_KWH: Final = 3.6e6
COARSE_JOULES: Final = 0.05 * JOULES_PER_KWH
"""A counter with larger steps is not used next to a power: a step of 0.1 kWh takes 20 minutes at 300 W. A last digit of
0, which JSON may omit, makes the step of 0.001 kWh seem to be 0.01 kWh, which is still used."""

_MAX_PAGES: Final = 32
_MAX_SENSORS: Final = 24
"""Each sensor costs a request, which takes up to seconds on a BMC."""
_MAX_SUPPLIES: Final = 16
_SEEN_DEPTH: Final = 8

_POWER_SENSOR: Final = re.compile(r"power|pwr|watt|energy|consum|(?<![a-z])p(?:in|out)(?![a-z])", re.IGNORECASE)
_WATTS: Final[Mapping[str, float]] = {"W": 1.0, "kW": 1e3, "mW": 1e-3}
_JOULES: Final[Mapping[str, float]] = {"J": 1.0, "kJ": 1e3, "kW.h": JOULES_PER_KWH, "kWh": JOULES_PER_KWH, "W.h": 3.6e3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place where a chassis reports its power."""

    kind: str
    power: tuple[Field, ...] = ()
    """The power is the sum of these fields."""
    energy: Field | None = None
    sampled: Field | None = None
    sensing_s: float | None = None
    step: str = ""
    accuracy: float | None = None
    is_live: bool = False
    """Whether it has a value now."""
    note: str = ""

    @property
    def pointer(self) -> str:
        """The address of the value, for the label ``source``; of a sum, the addresses of its addends."""
        first, *others = (self.energy,) if self.energy is not None else self.power
        same = f"{first.uri}#"
        return " + ".join([first.pointer, *(other.pointer.replace(same, "#", 1) for other in others)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The power of a power supply or a sub-total."""

    domain: str
    component: Component
    power: Field
    step: str
    model: str = ""
    server: str = ""
    """The server of the chassis that it belongs to; empty: the chassis."""
    is_supply: bool = False
    is_live: bool = False
    """Whether it has a value now."""


class Explorer:
    """Gets the resources of one service; collects the findings."""

    def __init__(self, get: Get, base: str) -> None:
        self.get = get
        self.findings: list[Finding] = []
        self.denials: list[str] = []
        """Messages about resources that the login cannot read."""
        self._base = base

    def optional(self, uri: str | None) -> Json | None:
        """Return a resource, or None if it is missing or cannot be read."""
        if uri is None:
            return None
        try:
            return self.get(uri)
        except MissingError:
            return None
        except ForbiddenError as error:
            self.denials.append(str(error))
            return None
        except BusyError:
            raise
        except SensorGlitchError as error:
            self.report("broken", uri, str(error).partition(": ")[2] or str(error))
            return None

    def members(self, uri: str, limit: int) -> Iterator[str]:
        """Yield the members of a collection, across its pages."""
        page: str | None = uri
        count = 0
        for _ in range(_MAX_PAGES):
            if page is None:
                return
            collection = self.get(page)
            for member in as_list(collection.get("Members")):
                if (link := link_target(member)) is not None and count < limit:
                    count += 1
                    yield link
            next_page = collection.get("Members@odata.nextLink")
            page = next_page if isinstance(next_page, str) and next_page else None

    def watts(self, fields: Sequence[Field]) -> float | None:
        """Return the power in fields of resources that have been fetched before."""
        resources = {uri: resource for uri in {f.uri for f in fields} if (resource := self.optional(uri)) is not None}
        return total_watts(fields, resources) if fields else None

    def report(self, status: Any, uri: str, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(status=status, collector="redfish", subject=f"{self._base}{uri}", text=text))


@dataclass(slots=True, kw_only=True)
class ChassisPower:
    """How a chassis reports its power."""

    nodes: dict[str, Source] = field(default_factory=dict)
    """Name of a server -> the source that is read. The name is empty if the chassis is the server."""
    others: tuple[str, ...] = ()
    """Kinds of sources that exist but are not read."""
    note: str = ""
    """Which member of ``PowerControl`` is read, for the finding."""
    supplies: Source | None = None
    """The sum of the inputs of all power supplies; it is the node if nothing else is."""
    parts: list[Part] = field(default_factory=list)
    input_sensors: list[Supply] = field(default_factory=list)
    """Sensors of the inputs of power supplies, if no sensor measures the whole chassis."""
    ratings: tuple[str, ...] = ()
    """Texts about values of power supplies that are ratings."""
    seen: list[str] = field(default_factory=list)
    """Properties in watts and their values, for the finding if nothing can be used."""

    @property
    def is_live(self) -> bool:
        """Whether a node has a value now."""
        return any(source.is_live for source in self.nodes.values())


class SourceFinder:
    """Finds the sources of the chassis of one service."""

    def __init__(self, explorer: Explorer, target: RedfishTarget, known_counters: Collection[Field]) -> None:
        """Prepare.

        Args:
            explorer: Gets the resources.
            target: The settings of the service.
            known_counters: Counters that have worked before; they are used even if they are at 0 now.
        """
        self._explorer = explorer
        self._target = target
        self._known_counters = known_counters

    def find(self, chassis: Json, uri: str) -> ChassisPower:
        """Choose the source of a chassis: the first kind that has a value now, else the first kind."""
        explorer = self._explorer
        chosen = ChassisPower()
        sources: list[Source] = []
        environment_uri = linked_uri(chassis, "EnvironmentMetrics")
        if (environment := explorer.optional(environment_uri)) is not None and environment_uri is not None:
            sources.append(self._environment(environment, environment_uri))
            chosen.seen += seen_watts(environment, environment_uri)
        power_uri = linked_uri(chassis, "Power") or ""
        power = explorer.optional(power_uri or None)
        if power is not None:
            controls = self._controls(power, power_uri, uri)
            chosen.seen += seen_watts(power, power_uri)
            chosen.parts += _sub_totals(controls, power, power_uri)
            chosen.note = _control_text(controls, power)
            of_servers = {name: _control_source(feeds, power, power_uri) for name, feeds in controls.nodes.items()}
            of_servers = {name: source for name, source in of_servers.items() if source.power}
            resources = {power_uri: power}
            if len(controls.nodes) > 1:
                chosen.nodes, chosen.others = of_servers, tuple(source.kind for source in sources if source.is_live)
            else:
                sources += of_servers.values()
                if (total := oem_total(power, power_uri)) is not None:
                    kind = "Power" if len(total.path) == 1 else f"Power Oem {total.path[1]}"
                    sources.append(_source(kind, (total,), resources))
        if not chosen.nodes:
            self._choose(chosen, sources, chassis, uri)
        if chosen.nodes or not self._target.power_control:
            self._add_supplies(chosen, chassis, power, power_uri)
        return chosen

    def _choose(self, found: ChassisPower, sources: list[Source], chassis: Json, uri: str) -> None:
        sources = [source for source in sources if source.power or source.energy is not None]
        if not _any_live(sources):
            sources += self._sensors(linked_uri(chassis, "Sensors"), uri.rstrip("/").rpartition("/")[2], found)
        best = next((source for source in sources if source.is_live), sources[0] if sources else None)
        if best is not None:
            found.nodes = {"": best}
            found.others = tuple(source.kind for source in sources if source is not best)
            if best.kind != "Power":
                found.note = ""

    def _add_supplies(self, found: ChassisPower, chassis: Json, power: Json | None, power_uri: str) -> None:
        """Add the parts of power supplies and the sum of their inputs."""
        resources = {} if power is None else {power_uri: power}
        supplies = [] if power is None else supplies_of(power, power_uri)
        if not _any_reads(supplies, resources) and (self._target.parts or not found.is_live):
            others = self._subsystem(linked_uri(chassis, "PowerSubsystem"), resources, found)
            supplies = others if _any_reads(others, resources) or not supplies else supplies
        names = [supply.name for supply in found.input_sensors]
        if not supplies and not found.is_live and len(set(names)) == len(names):
            supplies = found.input_sensors
            uris = [supply.input.uri for supply in supplies if supply.input is not None]
            resources |= {uri: self._explorer.get(uri) for uri in uris}
        # The supplies of an enclosure feed more than its servers.
        node = found.nodes.get("")
        node_watts = None if node is None else self._explorer.watts(node.power)
        checked = without_ratings(supplies, resources, node_watts)
        found.ratings = checked.ratings
        for supply in checked.supplies:
            for side, power_field in supply.fields:
                resource = resources[power_field.uri]
                found.parts.append(
                    Part(
                        domain=f"{supply.name}_{side}",
                        component="node",
                        power=power_field,
                        step=step_of(resource, power_field, "W"),
                        model=supply.model,
                        is_supply=True,
                        is_live=power_field.watts(resource) is not None,
                    )
                )
        inputs = tuple(supply.input for supply in checked.supplies if supply.input is not None)
        if inputs and len(inputs) == len(checked.supplies):
            found.supplies = _source("sum of the inputs of the power supplies", inputs, resources)

    def _subsystem(self, uri: str | None, resources: dict[str, Json], found: ChassisPower) -> list[Supply]:
        """Return the supplies of ``PowerSubsystem``; each costs a request for its power."""
        explorer = self._explorer
        subsystem = explorer.optional(uri)
        collection = None if subsystem is None else linked_uri(subsystem, "PowerSupplies")
        if collection is None:
            return []
        try:
            members = list(explorer.members(collection, _MAX_SUPPLIES))
        except (MissingError, ForbiddenError):
            return []
        supplies: list[Supply] = []
        for index, member in enumerate(members):
            supply = explorer.optional(member)
            if supply is None or is_absent(supply):
                continue
            metrics_uri = linked_uri(supply, "Metrics") or ""
            metrics = explorer.optional(metrics_uri or None)
            if metrics is not None:
                resources[metrics_uri] = metrics
                found.seen += seen_watts(metrics, metrics_uri)
            supplies.append(subsystem_supply(supply, metrics or {}, metrics_uri, index))
        return supplies

    def _environment(self, resource: Json, uri: str) -> Source:
        power = Field(uri, ("PowerWatts", "Reading")) if "PowerWatts" in resource else None
        has_watts = power is not None and power.watts(resource) is not None
        energy, step, note = self._counter(resource, uri, has_watts=has_watts)
        is_live = has_watts or energy is not None
        source = Source(
            kind="EnvironmentMetrics",
            power=() if power is None else (power,),
            energy=energy,
            step=step or step_of(resource, power, "W"),
            is_live=is_live,
            note=note,
        )
        if is_live and (power is None) != (energy is None):
            # With a single value, the full sensor costs no more than the excerpt and may have a timestamp.
            key = str((power or energy).path[0])  # type: ignore[union-attr]
            return self._full_sensor(as_text(as_mapping(resource.get(key)).get("DataSourceUri")), source)
        return source

    def _full_sensor(self, uri: str, excerpt: Source) -> Source:
        resource = self._explorer.optional(uri or None)
        if resource is None:
            return excerpt
        full = self._sensor(resource, uri, excerpt.kind)
        is_same_kind = full is not None and bool(full.power) == bool(excerpt.power)
        return full if full is not None and is_same_kind and full.is_live and full.sampled is not None else excerpt

    def _counter(self, resource: Json, uri: str, *, has_watts: bool) -> tuple[Field | None, str, str]:
        """Return the energy counter of ``EnvironmentMetrics`` and its step, or a note why there is none."""
        note = ""
        if not self._target.energy:
            return None, "", note
        for key, scale in (("EnergyJoules", 1.0), ("EnergykWh", JOULES_PER_KWH)):
            counter = best_counter(resource, uri, (key,), scale)
            if counter is None:
                continue
            if counter not in self._known_counters:
                if counter.joules(resource) == 0.0:
                    note = f"{key} is 0 and not used"
                    continue
                if has_watts and _is_coarse(resource, counter):
                    note = f"{key} has steps of {step_of(resource, counter, 'J')}, so the power is integrated instead"
                    continue
            return counter, step_of(resource, counter, "J"), ""
        return None, "", note

    def _controls(self, power: Json, power_uri: str, chassis_uri: str) -> Controls:
        members = [as_mapping(control) for control in as_list(power.get("PowerControl"))]
        controls = sort_controls(members, chassis_uri, self._target.power_control)
        if members and self._target.power_control and not controls.nodes:
            names = ", ".join(control_name(control, index) for index, control in enumerate(members))
            text = f"no PowerControl {self._target.power_control}; available: {names}"
            self._explorer.report("absent", power_uri, text)
            return Controls(nodes={}, parts={})
        return controls

    def _sensors(self, uri: str | None, chassis_id: str, found: ChassisPower) -> list[Source]:
        """Return the sensors of the whole chassis, and note those of power supplies.

        Each costs a request, so only those with likely names are read.
        """
        if uri is None:
            return []
        try:
            members = self._explorer.members(uri, 2048)
            uris = [member for member in members if _POWER_SENSOR.search(member.rpartition("/")[2])]
        except (MissingError, ForbiddenError):
            return []
        uris.sort(key=lambda member: (_rank(member.rpartition("/")[2], chassis_id), member))
        best: dict[str, tuple[int, Source]] = {}
        # Sensors of several servers: none of them measures the whole chassis.
        servers = {server_in(member.rpartition("/")[2]) for member in uris} - {""}
        is_whole = len(servers) < 2 or bool(self._target.power_control)
        for member in uris[:_MAX_SENSORS]:
            resource = self._explorer.optional(member)
            source = None if resource is None else self._sensor(resource, member, "Sensors")
            if resource is None or source is None:
                continue
            if source.power:
                found.seen.append(f"{source.pointer} = {_shown(resource.get('Reading'))}")
            rank = self._sensor_rank(resource, member, chassis_id)
            if not is_whole and server_in(member.rpartition("/")[2]):
                rank = None
            kind = "power" if source.power else "energy"
            if rank is not None and source.is_live and (kind not in best or rank < best[kind][0]):
                best[kind] = (rank, source)
            elif source.power and not is_absent(resource) and (name := input_sensor(_id_of(resource, member))):
                found.input_sensors.append(Supply(name=name, input=source.power[0]))
        power = best["power"][1] if "power" in best else None
        energy = best["energy"][1] if "energy" in best else None
        if power is not None and energy is not None and energy.energy is not None:
            field = energy.energy
            if field not in self._known_counters and _is_coarse(self._explorer.get(field.uri), field):
                energy = None
        if power is None or energy is None:
            return [source for source in (energy, power) if source is not None]
        return [
            Source(
                kind="Sensors",
                power=power.power,
                energy=energy.energy,
                sampled=energy.sampled,
                sensing_s=energy.sensing_s,
                step=energy.step,
                is_live=True,
            )
        ]

    def _sensor_rank(self, resource: Json, uri: str, chassis_id: str) -> int | None:
        """Return how likely a sensor measures the whole chassis (smaller is better); None: it does not."""
        names = (as_text(resource.get("Id")), as_text(resource.get("Name")))
        if self._target.power_control:
            return 0 if self._target.power_control in names else None
        ranks = [_rank(name, chassis_id) for name in (*names, uri.rpartition("/")[2]) if name]
        if SHARE in ranks:
            return None
        rank = min(ranks)
        if resource.get("PhysicalContext") in ("Chassis", "SystemBoard", "Room", "Rack"):
            return min(rank, WHOLE)
        return rank if rank <= WHOLE else None

    def _sensor(self, resource: Json, uri: str, kind: str) -> Source | None:
        """Return a full Sensor as a source; None if it measures neither power nor energy."""
        units = as_text(resource.get("ReadingUnits"))
        reading_type = as_text(resource.get("ReadingType"))
        percent = number(resource.get("Accuracy"))
        common: dict[str, Any] = {
            "kind": kind,
            "sensing_s": seconds(resource.get("SensingInterval")),
            "accuracy": percent / 100 if percent is not None and 0.0 < percent < 100.0 else None,
        }
        if self._target.reading_time and as_text(resource.get("ReadingTime")):
            common["sampled"] = Field(uri, ("ReadingTime",))
        if reading_type.startswith("Energy") and units in _JOULES and self._target.energy:
            counter = best_counter(resource, uri, (), _JOULES[units])
            if counter is None or (counter.joules(resource) == 0.0 and counter not in self._known_counters):
                return None
            return Source(energy=counter, step=step_of(resource, counter, "J"), is_live=True, **common)
        if reading_type in ("Power", "") and units in _WATTS:
            power = Field(uri, ("Reading",), _WATTS[units])
            is_live = power.watts(resource) is not None
            return Source(power=(power,), step=step_of(resource, power, "W"), is_live=is_live, **common)
        return None


def _is_coarse(resource: Json, counter: Field) -> bool:
    return (step_size(resource, counter) or 0.0) > COARSE_JOULES


def _id_of(resource: Json, uri: str) -> str:
    return as_text(resource.get("Id")) or uri.rpartition("/")[2]


def _any_reads(supplies: Sequence[Supply], resources: Mapping[str, Json]) -> bool:
    return any(field.watts(resources[field.uri]) is not None for supply in supplies for _, field in supply.fields)


def _any_live(sources: Sequence[Source]) -> bool:
    return any(source.is_live for source in sources)


def _rank(name: str, chassis_id: str) -> int:
    """Return the rank of a sensor. One that is named after its chassis measures all of it."""
    is_named_after = re.fullmatch(rf"{slug(chassis_id)}_(?:power|energy)(?:_0)?", slug(name))
    return WHOLE if is_named_after else rank_of(name)


def _source(kind: str, fields: tuple[Field, ...], resources: Mapping[str, Json]) -> Source:
    """Return the sum of fields as a source."""
    return Source(
        kind=kind,
        power=fields,
        step=step_of(resources[fields[0].uri], fields[0], "W"),
        is_live=total_watts(fields, resources) is not None,
    )


def _control_field(controls: Sequence[Any], index: int, uri: str) -> Field:
    return Field(uri, ("PowerControl", member_of(controls, index), "PowerConsumedWatts"))


def _control_source(feeds: Sequence[int], power: Json, uri: str) -> Source:
    controls = as_list(power.get("PowerControl"))
    if not all("PowerConsumedWatts" in as_mapping(controls[index]) for index in feeds):
        return Source(kind="Power")
    return _source("Power", tuple(_control_field(controls, index, uri) for index in feeds), {uri: power})


def _sub_totals(controls: Controls, power: Json, uri: str) -> Iterator[Part]:
    """Yield the members of ``PowerControl`` that are not nodes and have a value."""
    members = as_list(power.get("PowerControl"))
    for index, server in controls.parts.items():
        control = as_mapping(members[index])
        watts = _control_field(members, index, uri)
        name, component = part_of(control, index)
        if watts.watts(power) is not None:
            yield Part(
                domain=slug(name),
                component=component,
                power=watts,
                step=step_of(power, watts, "W"),
                server=server,
                is_live=True,
            )


def _control_text(controls: Controls, power: Json) -> str:
    """Return which members of ``PowerControl`` are read, for the finding; empty if there is only one."""
    members = [as_mapping(control) for control in as_list(power.get("PowerControl"))]
    feeds = controls.nodes.get("", ())
    if len(members) < 2 or not feeds:
        return ""
    name = control_name(members[feeds[0]], feeds[0])
    if len(feeds) > 1:
        text = f"{len(feeds)} are feeds of this server and summed ({name!r})"
    else:
        text = f"{name!r} is the node"
    return f"of {len(members)} members of PowerControl, {text}; set power_control to use another"


_WATTS_KEY: Final = re.compile(r"^(?!.*(?:Limit|Capacity|Allocated|Requested|Available)).*(?:Watts|[a-z]W)$")
"""Names of properties in watts, such as ``PowerInputWatts`` or ``CurrentPowerConsumptionW``."""


def seen_watts(resource: Json, uri: str) -> list[str]:
    """Return the properties in watts of a resource, with their values."""
    return list(_seen_watts(resource, f"{uri}#", _SEEN_DEPTH))


def _seen_watts(value: Any, path: str, depth: int) -> Iterator[str]:
    if not depth:
        return
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if _WATTS_KEY.search(key) and isinstance(entry, Mapping):
                yield f"{path}/{key}/Reading = {_shown(entry.get('Reading'))}"
            elif _WATTS_KEY.search(key) and not isinstance(entry, list):
                yield f"{path}/{key} = {_shown(entry)}"
            else:
                yield from _seen_watts(entry, f"{path}/{key}", depth - 1)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _seen_watts(entry, f"{path}/{index}", depth - 1)


def _shown(value: Any) -> str:
    watts = number(value)
    return "null" if watts is None else f"{watts:g} W"
