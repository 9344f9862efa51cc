"""Find what to read from a Redfish service, by following its links; without I/O.

Ids and paths differ between vendors (``1``, ``Self``, ``System.Embedded.1``), so only links are followed. A chassis may
report its power in up to three places: ``EnvironmentMetrics`` (with energy counters, if the service has them), the
older ``Power``, and single ``Sensors``. One of them is read, in this order, and the finding names the others. Chassis
contain chassis (a GPU module in a server): a chassis inside another one with power is a part of it, never an addend.

Sources: DMTF DSP0268 (schemas Chassis, EnvironmentMetrics, Power, Sensor), DSP2046.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.collectors.redfish.names import component_of, slug, supply_name
from joulewatch_exporter.collectors.redfish.plan import (
    ROOT,
    Field,
    Json,
    Plan,
    Series,
    as_list,
    as_mapping,
    as_text,
    link_target,
    linked_uri,
    member_of,
    step_of,
)
from joulewatch_exporter.collectors.redfish.sources import (
    ChassisPower,
    Explorer,
    Get,
    Source,
    SourceFinder,
    control_text,
    node_control,
)
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Component, Quantity, SensorInfo

MAX_NODE_WATTS: Final = 50_000.0
MAX_PART_WATTS: Final = 20_000.0
GAP_PERIODS: Final = 3.0
"""Two missing power readings in a row still do not count as unmeasured time."""

_MAX_CHASSIS: Final = 256

_INNER_TYPES: Final = frozenset({"Card", "Cartridge", "Component", "IPBasedDrive", "Module", "Zone"})
"""Types of chassis that are not servers."""


def discover(get: Get, target: RedfishTarget, *, interval_s: float, previous: Plan | None = None) -> Plan:
    """Find what to read from a service.

    Args:
        get: Returns a resource by its path.
        target: The settings of the service.
        interval_s: Time between two polls.
        previous: The previous plan: its chassis and counters are used even if they have no value now.

    Raises:
        SensorAbsentError: No chassis reports its power, or none has a value now.
        SensorDeniedError: The login can read nothing.
        SensorError: Raised by ``get``.
    """
    return _Discovery(get, target, interval_s, previous).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chassis:
    uri: str
    id: str
    type: str
    model: str
    container: str
    contains: tuple[str, ...]
    reported: ChassisPower

    @property
    def is_inner(self) -> bool:
        """Whether it is not a server."""
        return self.type in _INNER_TYPES

    @property
    def source(self) -> Source:
        """The source that is read; only of a chassis that reports its power."""
        assert self.reported.source is not None
        return self.reported.source


class _Discovery:
    def __init__(self, get: Get, target: RedfishTarget, interval_s: float, previous: Plan | None) -> None:
        self._explorer = Explorer(get, target.base)
        self._target = target
        self._interval_s = interval_s
        self._known_chassis = frozenset() if previous is None else previous.chassis
        known_series = () if previous is None else previous.series
        known_counters = frozenset(series.energy for series in known_series if series.energy is not None)
        self._finder = SourceFinder(self._explorer, target, known_counters)
        self._series: list[Series] = []
        self._labels: set[tuple[str, str]] = set()

    def run(self) -> Plan:
        base = self._target.base
        link = linked_uri(self._explorer.get(ROOT), "Chassis")
        if link is None:
            raise SensorAbsentError(f"{base}{ROOT}: no link to Chassis")
        uris = list(self._explorer.members(link, _MAX_CHASSIS))
        resources = {uri: resource for uri in uris if (resource := self._explorer.optional(uri)) is not None}
        if self._target.chassis:
            ids = {uri: _id_of(uri, resource) for uri, resource in resources.items()}
            resources = {uri: resource for uri, resource in resources.items() if ids[uri] == self._target.chassis}
            if not resources:
                available = ", ".join(ids.values()) or "none"
                raise SensorAbsentError(f"{base}{link}: no chassis {self._target.chassis}; available: {available}")
        all_chassis = [self._chassis(uri, resource) for uri, resource in resources.items()]
        powered = [chassis for chassis in all_chassis if chassis.reported.source is not None]
        live = [chassis for chassis in powered if chassis.source.is_live or chassis.uri in self._known_chassis]
        if not live:
            raise self._failure(link, powered)
        nodes, containers = _nodes(live, {} if self._target.chassis else _containers(all_chassis, live))
        devices = {
            node.uri: self._target.name if len(nodes) == 1 else f"{self._target.name}/{node.id}" for node in nodes
        }
        for node in nodes:
            self._add_node(node, devices[node.uri])
        if self._target.parts:
            for chassis in live:
                if chassis.uri in containers:
                    self._add_inner(chassis, devices.get(_outermost(chassis.uri, containers), ""))
        findings = tuple(self._explorer.findings)
        return Plan(tuple(self._series), findings, frozenset(chassis.uri for chassis in live))

    def _chassis(self, uri: str, resource: Json) -> _Chassis:
        links = as_mapping(resource.get("Links"))
        return _Chassis(
            uri=uri,
            id=_id_of(uri, resource),
            type=as_text(resource.get("ChassisType")),
            model=" ".join(filter(None, (as_text(resource.get("Manufacturer")), as_text(resource.get("Model"))))),
            container=link_target(links.get("ContainedBy")) or "",
            contains=tuple(filter(None, map(link_target, as_list(links.get("Contains"))))),
            reported=self._finder.find(resource),
        )

    def _failure(self, link: str, powered: Sequence[_Chassis]) -> SensorError:
        where = f"{self._target.base}{link}"
        if powered:
            sources = ", ".join(chassis.source.pointer for chassis in powered)
            return SensorAbsentError(f"{where}: no value now (null or 0): {sources}")
        if self._explorer.denials:
            return SensorDeniedError(self._explorer.denials[0])
        return SensorAbsentError(
            f"{where}: no chassis reports its power: none has EnvironmentMetrics, Power or Sensors in watts or joules"
        )

    # -- series ------------------------------------------------------------------------------------

    def _add(self, quantity: Quantity, source: Source, model: str) -> None:
        domain, count = quantity.domain, 1
        while (quantity.device, domain) in self._labels:
            count += 1
            domain = f"{quantity.domain}_{count}"
        self._labels.add((quantity.device, domain))
        quantity = Quantity(scope=quantity.scope, component=quantity.component, device=quantity.device, domain=domain)
        is_node = quantity.scope == "node"
        info = SensorInfo(
            quantity=quantity,
            method="integrated" if source.energy is None else "counter",
            source=f"{self._target.base}{source.pointer}",
            model=model,
            resolution=source.step,
            accuracy=source.accuracy,
            accuracy_source="Accuracy of the Redfish sensor",
            max_power_watts=MAX_NODE_WATTS if is_node else MAX_PART_WATTS,
            max_gap_s=GAP_PERIODS * max(self._interval_s, source.sensing_s or 0.0),
            relation="inside",
            is_remote=not self._target.this_machine,
            read_mode="remote",
            period_s=max(self._interval_s, source.sensing_s or 0.0),
        )
        self._series.append(
            Series(
                info=info, power=source.power, energy=source.energy, sampled=source.sampled, sensing_s=source.sensing_s
            )
        )

    def _add_node(self, node: _Chassis, device: str) -> None:
        source, power = node.source, node.reported.power
        self._add(Quantity(scope="node", component="node", device=device, domain="total"), source, node.model)
        if source.energy is None:
            text = "power, integrated"
        else:
            text = f"energy counter with steps of {source.step}" + (", and power" if source.power is not None else "")
        text = f"{device} total: {text}"
        if source.note:
            text += f"; {source.note}"
        if source.kind == "Power" and power is not None:
            text += control_text(source, power)
        if node.reported.others:
            text += f"; other sources, not read: {', '.join(node.reported.others)}"
        self._explorer.report("found", source.pointer, text)
        if self._target.parts and power is not None:
            self._add_parts(node, power, device)

    def _add_parts(self, node: _Chassis, resource: Json, device: str) -> None:
        """Add power supplies and sub-totals of the resource ``Power``."""
        uri = node.reported.power_uri
        controls = [as_mapping(control) for control in as_list(resource.get("PowerControl"))]
        main = node_control(controls, self._target.power_control)
        for index, control in enumerate(controls):
            power = Field(uri, ("PowerControl", member_of(control, index), "PowerConsumedWatts"))
            if index != main and power != node.source.power and power.watts(resource) is not None:
                name = as_text(control.get("Name")) or f"power control {index}"
                self._add_part(device, component_of(name), slug(name), power, resource, "")
        for index, entry in enumerate(as_list(resource.get("PowerSupplies"))):
            supply = as_mapping(entry)
            name = supply_name(supply, index)
            for key, side in (("PowerInputWatts", "input"), ("PowerOutputWatts", "output")):
                power = Field(uri, ("PowerSupplies", member_of(supply, index), key))
                # A key that is null belongs to a supply that may come back.
                if key in supply:
                    model = as_text(supply.get("Model"))
                    self._add_part(device, "node", f"{name}_{side}", power, resource, model)

    def _add_part(
        self, device: str, component: Component, domain: str, power: Field, resource: Json, model: str
    ) -> None:
        source = Source(kind="Power", power=power, step=step_of(resource, power, "W"), is_live=True)
        self._add(Quantity(scope="part", component=component, device=device, domain=domain), source, model)

    def _add_inner(self, chassis: _Chassis, device: str) -> None:
        source = chassis.source
        if not device:
            text = f"{chassis.id} ({chassis.type or 'a chassis'}): there are several servers, and no link shows which"
            self._explorer.report("skipped", source.pointer, f"{text} of them contains it")
            return
        quantity = Quantity(scope="part", component=component_of(chassis.id), device=device, domain=slug(chassis.id))
        self._add(quantity, source, chassis.model)


def _id_of(uri: str, resource: Json) -> str:
    return as_text(resource.get("Id")) or uri.rstrip("/").rpartition("/")[2]


def _containers(all_chassis: Sequence[_Chassis], live: Sequence[_Chassis]) -> dict[str, str]:
    """Return the nearest live container of each live chassis that has one; by URI."""
    parents = {chassis.uri: chassis.container for chassis in all_chassis if chassis.container}
    for chassis in all_chassis:
        for uri in chassis.contains:
            parents.setdefault(uri, chassis.uri)
    live_uris = {chassis.uri for chassis in live}
    containers: dict[str, str] = {}
    for uri in live_uris:
        parent, visited = parents.get(uri, ""), {uri}
        while parent and parent not in visited:
            if parent in live_uris:
                containers[uri] = parent
                break
            visited.add(parent)
            parent = parents.get(parent, "")
    return containers


def _nodes(live: Sequence[_Chassis], containers: dict[str, str]) -> tuple[list[_Chassis], dict[str, str]]:
    """Return the chassis that are nodes, and the containers of the others; an empty container is unknown."""
    nodes = [chassis for chassis in live if chassis.uri not in containers]
    servers = [chassis for chassis in nodes if not chassis.is_inner]
    if not servers or len(servers) == len(nodes):
        return nodes, containers
    # Modules without a link to a container belong to the server, if there is only one.
    server = servers[0].uri if len(servers) == 1 else ""
    return servers, containers | {chassis.uri: server for chassis in nodes if chassis.is_inner}


def _outermost(uri: str, containers: Mapping[str, str]) -> str:
    visited: set[str] = set()
    while uri in containers and uri not in visited:
        visited.add(uri)
        uri = containers[uri]
    return uri
