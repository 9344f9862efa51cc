"""From the links of a Redfish service to the numbers worth reading. Knows no network: it is given a way to get.

Ids and paths differ between makers (``1``, ``Self``, ``System.Embedded.1``), so only links are followed. A chassis may
tell its power up to three times: ``EnvironmentMetrics`` (with counters of energy, where the service has them), the
older ``Power``, and single ``Sensors``. One of them is read, in this order, and the finding names the others. Chassis
contain chassis (a GPU module in a server): what is inside another one that has power is a part of it, never an addend.

Sources: DMTF DSP0268 (schemas Chassis, EnvironmentMetrics, Power, Sensor), DSP2046.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

from joulewatch_exporter.collectors.redfish.names import SHARE, WHOLE, component_of, rank_of, slug, supply_name
from joulewatch_exporter.collectors.redfish.plan import (
    ROOT,
    BusyError,
    Field,
    ForbiddenError,
    Json,
    Member,
    MissingError,
    Plan,
    Series,
    as_list,
    as_mapping,
    as_text,
    best_counter,
    find_member,
    link_target,
    linked_uri,
    member_of,
    number,
    seconds,
    step_of,
)
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorGlitchError
from joulewatch_exporter.model import Component, Finding, Quantity, SensorInfo

Get: TypeAlias = Callable[[str], Json]

JOULES_PER_KWH: Final = 3.6e6
MAX_NODE_WATTS: Final = 50_000.0
MAX_PART_WATTS: Final = 20_000.0
GAP_PERIODS: Final = 3.0
"""A power reading may be missing twice before the time counts as unmeasured."""

_MAX_CHASSIS: Final = 256
_MAX_PAGES: Final = 32
_MAX_SENSORS: Final = 24
"""Each costs a request, and a BMC takes up to seconds for it."""

_INNER_TYPES: Final = frozenset({"Card", "Cartridge", "Component", "IPBasedDrive", "Module", "Zone"})
"""Kinds of chassis that are no server of their own."""

_POWER_SENSOR: Final = re.compile(r"power|pwr|watt|energy|consum", re.IGNORECASE)
_WATTS: Final[Mapping[str, float]] = {"W": 1.0, "kW": 1e3, "mW": 1e-3}
_JOULES: Final[Mapping[str, float]] = {"J": 1.0, "kJ": 1e3, "kW.h": JOULES_PER_KWH, "kWh": JOULES_PER_KWH, "W.h": 3.6e3}


def discover(get: Get, target: RedfishTarget, *, interval_s: float, previous: Plan | None = None) -> Plan:
    """Find what to read of a service.

    Args:
        get: Gives a resource by its path; raises `MissingError` where there is none.
        target: What is wanted of this service.
        interval_s: From one poll to the next.
        previous: What was found the last time: chassis and counters that worked then do so still, whatever they show
            at this moment.

    Raises:
        SensorAbsentError: No chassis has power, or none has a value just now.
        SensorDeniedError: Nothing may be read with this login.
        SensorError: What ``get`` raised.
    """
    return _Discovery(get, target, interval_s, previous).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One of the places where a chassis tells its power."""

    kind: str
    power: Field | None
    energy: Field | None
    sampled: Field | None
    sensing_s: float | None
    step: str
    accuracy: float | None
    is_live: bool
    """It shows a number at this moment."""
    note: str = ""

    @property
    def pointer(self) -> str:
        source = self.energy or self.power
        assert source is not None
        return source.pointer


@dataclass(slots=True, kw_only=True)
class _Chassis:
    uri: str
    id: str
    type: str
    model: str
    container: str
    contains: tuple[str, ...]
    resource: Json
    source: _Source | None = None
    others: list[str] = field(default_factory=list)
    """Sources that are there too and are not read."""
    power: Json | None = None
    """The resource ``Power``, where its parts are wanted."""
    power_uri: str = ""

    @property
    def is_inner(self) -> bool:
        return self.type in _INNER_TYPES


class _Discovery:
    def __init__(self, get: Get, target: RedfishTarget, interval_s: float, previous: Plan | None) -> None:
        self._get = get
        self._target = target
        self._interval_s = interval_s
        self._known_chassis = frozenset() if previous is None else previous.chassis
        self._known_counters = frozenset(
            series.energy for series in (() if previous is None else previous.series) if series.energy is not None
        )
        self._findings: list[Finding] = []
        self._denied: list[str] = []
        self._series: list[Series] = []
        self._taken: set[tuple[str, str]] = set()

    def run(self) -> Plan:
        base = self._target.base
        link = linked_uri(self._get(ROOT), "Chassis")
        if link is None:
            raise SensorAbsentError(f"{base}{ROOT}: no link to Chassis")
        chassis = [found for uri in self._members(link, _MAX_CHASSIS) if (found := self._look_at(uri)) is not None]
        wanted = self._target.chassis
        if wanted:
            ids = ", ".join(item.id for item in chassis) or "none"
            chassis = [item for item in chassis if item.id == wanted]
            if not chassis:
                raise SensorAbsentError(f"{base}{link}: no chassis {wanted}; there are: {ids}")
        for item in chassis:
            self._find_source(item)
        powered = [item for item in chassis if item.source is not None]
        live = [item for item in powered if self._is_live(item)]
        if not live:
            self._give_up(link, powered)
        inside = _containers(chassis, live)
        if wanted:
            inside = {}
        nodes = [item for item in live if item.uri not in inside]
        servers = [item for item in nodes if not item.is_inner]
        if servers and len(servers) < len(nodes):
            # A module that nobody links to belongs to the server, if there is but one.
            for item in nodes:
                if item.is_inner:
                    inside[item.uri] = servers[0].uri if len(servers) == 1 else ""
            nodes = servers
        names = {item.uri: self._device(item, alone=len(nodes) == 1) for item in nodes}
        for item in nodes:
            self._add_node(item, names[item.uri])
        if self._target.parts:
            for item in live:
                if item.uri in inside:
                    self._add_inner(item, names.get(_outermost(item.uri, inside), ""))
        return Plan(tuple(self._series), tuple(self._findings), frozenset(item.uri for item in live))

    # -- resources ---------------------------------------------------------------------------------

    def _optional(self, uri: str | None) -> Json | None:
        """A resource that need not be there, or not be readable."""
        if uri is None:
            return None
        try:
            return self._get(uri)
        except MissingError:
            return None
        except ForbiddenError as error:
            self._denied.append(str(error))
            return None
        except BusyError:
            raise
        except SensorGlitchError as error:
            self._find("broken", uri, str(error).partition(": ")[2] or str(error))
            return None

    def _members(self, uri: str, limit: int) -> Iterator[str]:
        page: str | None = uri
        count = 0
        for _ in range(_MAX_PAGES):
            if page is None:
                return
            collection = self._get(page)
            for member in as_list(collection.get("Members")):
                if (link := link_target(member)) is not None and count < limit:
                    count += 1
                    yield link
            following = collection.get("Members@odata.nextLink")
            page = following if isinstance(following, str) and following else None

    def _look_at(self, uri: str) -> _Chassis | None:
        chassis = self._optional(uri)
        if chassis is None:
            return None
        links = as_mapping(chassis.get("Links"))
        return _Chassis(
            uri=uri,
            id=as_text(chassis.get("Id")) or uri.rstrip("/").rpartition("/")[2],
            type=as_text(chassis.get("ChassisType")),
            model=" ".join(filter(None, (as_text(chassis.get("Manufacturer")), as_text(chassis.get("Model"))))),
            container=link_target(links.get("ContainedBy")) or "",
            contains=tuple(filter(None, map(link_target, as_list(links.get("Contains"))))),
            resource=chassis,
        )

    def _find(self, status: Any, uri: str, text: str, cure: str = "") -> None:
        self._findings.append(
            Finding(status=status, collector="redfish", subject=f"{self._target.base}{uri}", text=text, cure=cure)
        )

    def _is_live(self, item: _Chassis) -> bool:
        return item.source is not None and (item.source.is_live or item.uri in self._known_chassis)

    def _give_up(self, link: str, powered: Sequence[_Chassis]) -> NoReturn:
        where = f"{self._target.base}{link}"
        if powered:
            sources = ", ".join(item.source.pointer for item in powered if item.source is not None)
            raise SensorAbsentError(f"{where}: no value just now (null or 0): {sources}")
        if self._denied:
            raise SensorDeniedError(self._denied[0])
        raise SensorAbsentError(
            f"{where}: no chassis tells its power: none has EnvironmentMetrics, Power or Sensors with watts or joules"
        )

    # -- where a chassis tells its power -----------------------------------------------------------

    def _find_source(self, item: _Chassis) -> None:
        chassis = item.resource
        sources: list[_Source] = []
        environment_uri = linked_uri(chassis, "EnvironmentMetrics")
        if (environment := self._optional(environment_uri)) is not None and environment_uri is not None:
            sources.append(self._environment(environment, environment_uri))
        if not _any_live(sources) or self._target.parts:
            item.power_uri = linked_uri(chassis, "Power") or ""
            item.power = self._optional(item.power_uri or None)
            if item.power is not None:
                sources.append(self._power(item.power, item.power_uri))
        sources = [source for source in sources if source.power is not None or source.energy is not None]
        if not _any_live(sources):
            sources += self._sensors(linked_uri(chassis, "Sensors"))
        best = next((source for source in sources if source.is_live), sources[0] if sources else None)
        item.source = best
        item.others = [source.kind for source in sources if source is not best]

    def _environment(self, resource: Json, uri: str) -> _Source:
        power = Field(uri, ("PowerWatts", "Reading")) if "PowerWatts" in resource else None
        energy, step, note = self._counter(resource, uri)
        is_live = (power is not None and power.watts(resource) is not None) or energy is not None
        source = _Source(
            kind="EnvironmentMetrics",
            power=power,
            energy=energy,
            sampled=None,
            sensing_s=None,
            step=step or step_of(resource, power, "W"),
            accuracy=None,
            is_live=is_live,
            note=note,
        )
        if is_live and (power is None) != (energy is None):
            # One number only: its full sensor costs no more than the excerpt, and may say when it was sampled.
            key = str((power or energy).path[0])  # type: ignore[union-attr]
            return self._full_sensor(as_text(as_mapping(resource.get(key)).get("DataSourceUri")), source)
        return source

    def _full_sensor(self, uri: str, excerpt: _Source) -> _Source:
        resource = self._optional(uri or None)
        if resource is None:
            return excerpt
        full = self._sensor(resource, uri, excerpt.kind)
        is_same_kind = full is not None and (full.power is None) == (excerpt.power is None)
        return full if full is not None and is_same_kind and full.is_live and full.sampled is not None else excerpt

    def _counter(self, resource: Json, uri: str) -> tuple[Field | None, str, str]:
        """The counter of energy among the excerpts of ``EnvironmentMetrics``, its step, and why there is none."""
        note = ""
        if not self._target.energy:
            return None, "", note
        for key, scale in (("EnergyJoules", 1.0), ("EnergykWh", JOULES_PER_KWH)):
            counter = best_counter(resource, uri, (key,), scale)
            if counter is None:
                continue
            if counter.joules(resource) == 0.0 and counter not in self._known_counters:
                note = f"{key} stands at 0 and is not used"
                continue
            return counter, step_of(resource, counter, "J"), ""
        return None, "", note

    def _power(self, resource: Json, uri: str) -> _Source:
        controls = [as_mapping(control) for control in as_list(resource.get("PowerControl"))]
        index = _node_control(controls, self._target.power_control)
        if index is None:
            if controls and self._target.power_control:
                names = ", ".join(as_text(control.get("Name")) or str(i) for i, control in enumerate(controls))
                self._find("absent", uri, f"no PowerControl {self._target.power_control}; there are: {names}")
            return _Source(
                kind="Power",
                power=None,
                energy=None,
                sampled=None,
                sensing_s=None,
                step="",
                accuracy=None,
                is_live=False,
            )
        power = Field(uri, ("PowerControl", member_of(controls[index], index), "PowerConsumedWatts"))
        has_key = "PowerConsumedWatts" in controls[index]
        return _Source(
            kind="Power",
            power=power if has_key else None,
            energy=None,
            sampled=None,
            sensing_s=None,
            step=step_of(resource, power, "W"),
            accuracy=None,
            is_live=power.watts(resource) is not None,
        )

    def _sensors(self, uri: str | None) -> list[_Source]:
        """The chassis' sensors of the whole: one request each to find them, so only those that look like it."""
        if uri is None:
            return []
        try:
            uris = [member for member in self._members(uri, 2048) if _POWER_SENSOR.search(member.rpartition("/")[2])]
        except (MissingError, ForbiddenError):
            return []
        uris.sort(key=lambda member: (rank_of(member.rpartition("/")[2]), member))
        best: dict[str, tuple[int, _Source]] = {}
        for member in uris[:_MAX_SENSORS]:
            resource = self._optional(member)
            source = None if resource is None else self._sensor(resource, member, "Sensors")
            if resource is None or source is None:
                continue
            rank = self._sensor_rank(resource, member)
            kind = "power" if source.power is not None else "energy"
            if rank is not None and source.is_live and (kind not in best or rank < best[kind][0]):
                best[kind] = (rank, source)
        power = best["power"][1] if "power" in best else None
        energy = best["energy"][1] if "energy" in best else None
        if power is None or energy is None:
            return [source for source in (energy, power) if source is not None]
        return [
            _Source(
                kind="Sensors",
                power=power.power,
                energy=energy.energy,
                sampled=energy.sampled,
                sensing_s=energy.sensing_s,
                step=energy.step,
                accuracy=None,
                is_live=True,
            )
        ]

    def _sensor_rank(self, resource: Json, uri: str) -> int | None:
        """How much a sensor looks like the whole chassis; None: not at all."""
        names = (as_text(resource.get("Id")), as_text(resource.get("Name")))
        if self._target.power_control:
            return 0 if self._target.power_control in names else None
        ranks = [rank_of(name) for name in (*names, uri.rpartition("/")[2]) if name]
        if SHARE in ranks:
            return None
        rank = min(ranks)
        if resource.get("PhysicalContext") in ("Chassis", "SystemBoard", "Room", "Rack"):
            return min(rank, WHOLE)
        return rank if rank <= WHOLE else None

    def _sensor(self, resource: Json, uri: str, kind: str) -> _Source | None:
        """A full Sensor as a source; None where it is neither of power nor a counter of energy."""
        units = as_text(resource.get("ReadingUnits"))
        reading_type = as_text(resource.get("ReadingType"))
        sampled = None
        if self._target.reading_time and as_text(resource.get("ReadingTime")):
            sampled = Field(uri, ("ReadingTime",))
        sensing_s = seconds(resource.get("SensingInterval"))
        percent = number(resource.get("Accuracy"))
        accuracy = percent / 100 if percent is not None and 0.0 < percent < 100.0 else None
        if reading_type.startswith("Energy") and units in _JOULES and self._target.energy:
            counter = best_counter(resource, uri, (), _JOULES[units])
            if counter is None or (counter.joules(resource) == 0.0 and counter not in self._known_counters):
                return None
            return _Source(
                kind=kind,
                power=None,
                energy=counter,
                sampled=sampled,
                sensing_s=sensing_s,
                step=step_of(resource, counter, "J"),
                accuracy=accuracy,
                is_live=True,
            )
        if reading_type in ("Power", "") and units in _WATTS:
            power = Field(uri, ("Reading",), _WATTS[units])
            is_live = power.watts(resource) is not None
            return _Source(
                kind=kind,
                power=power,
                energy=None,
                sampled=sampled,
                sensing_s=sensing_s,
                step=step_of(resource, power, "W"),
                accuracy=accuracy,
                is_live=is_live,
            )
        return None

    # -- series ------------------------------------------------------------------------------------

    def _device(self, item: _Chassis, *, alone: bool) -> str:
        return self._target.name if alone else f"{self._target.name}/{item.id}"

    def _add(self, quantity: Quantity, source: _Source, model: str) -> None:
        domain, count = quantity.domain, 1
        while (quantity.device, domain) in self._taken:
            count += 1
            domain = f"{quantity.domain}_{count}"
        self._taken.add((quantity.device, domain))
        quantity = Quantity(scope=quantity.scope, component=quantity.component, device=quantity.device, domain=domain)
        is_node = quantity.scope == "node"
        info = SensorInfo(
            quantity=quantity,
            method="integrated" if source.energy is None else "counter",
            source=f"{self._target.base}{source.pointer}",
            model=model,
            resolution=source.step,
            accuracy=source.accuracy,
            max_power_watts=MAX_NODE_WATTS if is_node else MAX_PART_WATTS,
            max_gap_s=GAP_PERIODS * max(self._interval_s, source.sensing_s or 0.0),
            relation="inside",
            is_remote=not self._target.this_machine,
        )
        self._series.append(
            Series(
                info=info, power=source.power, energy=source.energy, sampled=source.sampled, sensing_s=source.sensing_s
            )
        )

    def _add_node(self, item: _Chassis, device: str) -> None:
        source = item.source
        assert source is not None
        self._add(Quantity(scope="node", component="node", device=device, domain="total"), source, item.model)
        if source.energy is None:
            text = "power, integrated"
        else:
            text = f"counter of energy in steps of {source.step}" + (", and power" if source.power is not None else "")
        text = f"{device} total: {text}"
        if source.note:
            text += f"; {source.note}"
        if source.kind == "Power" and item.power is not None:
            text += _told_control(source, item.power)
        if item.others:
            text += f"; there too and not read for it: {', '.join(item.others)}"
        self._find("found", source.pointer, text)
        if self._target.parts and item.power is not None:
            self._add_parts(item, device)

    def _add_parts(self, item: _Chassis, device: str) -> None:
        """Power supplies and sub-totals of the resource ``Power``."""
        assert item.power is not None
        node = None if item.source is None or item.source.power is None else item.source.power
        controls = [as_mapping(control) for control in as_list(item.power.get("PowerControl"))]
        main = _node_control(controls, self._target.power_control)
        for index, control in enumerate(controls):
            power = Field(item.power_uri, ("PowerControl", member_of(control, index), "PowerConsumedWatts"))
            if index != main and power != node and power.watts(item.power) is not None:
                name = as_text(control.get("Name")) or f"power control {index}"
                self._add_part(device, component_of(name), slug(name), power, item.power, "")
        for index, entry in enumerate(as_list(item.power.get("PowerSupplies"))):
            supply = as_mapping(entry)
            name = supply_name(supply, index)
            for key, what in (("PowerInputWatts", "input"), ("PowerOutputWatts", "output")):
                power = Field(item.power_uri, ("PowerSupplies", member_of(supply, index), key))
                # A key that is null belongs to a supply that may come back.
                if key in supply:
                    model = as_text(supply.get("Model"))
                    self._add_part(device, "node", f"{name}_{what}", power, item.power, model)

    def _add_part(
        self, device: str, component: Component, domain: str, power: Field, resource: Json, model: str
    ) -> None:
        source = _Source(
            kind="Power",
            power=power,
            energy=None,
            sampled=None,
            sensing_s=None,
            step=step_of(resource, power, "W"),
            accuracy=None,
            is_live=True,
        )
        self._add(Quantity(scope="part", component=component, device=device, domain=domain), source, model)

    def _add_inner(self, item: _Chassis, device: str) -> None:
        source = item.source
        assert source is not None
        if not device:
            self._find(
                "skipped",
                source.pointer,
                f"{item.id} ({item.type or 'a chassis'}) is inside one of several servers, and it is not told of which",
            )
            return
        self._add(
            Quantity(scope="part", component=component_of(item.id), device=device, domain=slug(item.id)),
            source,
            item.model,
        )


# -- small helpers ---------------------------------------------------------------------------------


def _any_live(sources: Sequence[_Source]) -> bool:
    return any(source.is_live for source in sources)


def _node_control(controls: Sequence[Json], wanted: str) -> int | None:
    """Which member of ``PowerControl`` is the node; the others are sub-totals of it, not addends."""
    if wanted:
        for key in ("MemberId", "Name"):
            for index, control in enumerate(controls):
                if as_text(control.get(key)) == wanted:
                    return index
        return None
    names = [as_text(control.get("Name")) for control in controls]
    wholes = [i for i, name in enumerate(names) if rank_of(name) != SHARE]
    for index in wholes:
        if "system" in names[index].lower():
            return index
    return wholes[0] if wholes else (0 if controls else None)


def _told_control(source: _Source, power: Json) -> str:
    controls = as_list(power.get("PowerControl"))
    step = next((step for step in (source.power.path if source.power else ()) if isinstance(step, Member)), None)
    if step is None or len(controls) < 2:
        return ""
    name = as_text(as_mapping(find_member(controls, step)).get("Name")) or step.value or str(step.index)
    return f"; of {len(controls)} members of PowerControl, {name!r} is the node (power_control chooses another)"


def _containers(chassis: Sequence[_Chassis], live: Sequence[_Chassis]) -> dict[str, str]:
    """Of each live chassis that is inside another live one: which; chassis without power are looked through."""
    parent = {item.uri: item.container for item in chassis if item.container}
    for item in chassis:
        for uri in item.contains:
            parent.setdefault(uri, item.uri)
    uris = {item.uri for item in live}
    inside: dict[str, str] = {}
    for item in live:
        above, seen = parent.get(item.uri, ""), {item.uri}
        while above and above not in seen:
            if above in uris:
                inside[item.uri] = above
                break
            seen.add(above)
            above = parent.get(above, "")
    return inside


def _outermost(uri: str, inside: Mapping[str, str]) -> str:
    seen: set[str] = set()
    while uri in inside and uri not in seen:
        seen.add(uri)
        uri = inside[uri]
    return uri
