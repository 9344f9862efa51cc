"""Find what to read from a Redfish service, by following its links; without I/O.

Ids and paths differ between vendors (``1``, ``Self``, ``System.Embedded.1``), so only links are followed. A chassis may
report its power in several places: ``EnvironmentMetrics`` (with energy counters, if the service has them), the older
``Power``, a vendor's block in it, and single ``Sensors``. One of them is read, in this order, and the finding names the
others. If no chassis has any of them, the sum of the inputs of the power supplies is the node. Chassis contain chassis
(a GPU module in a server): a chassis inside another one with power is a part of it, never an addend. Only the servers
of an enclosure are nodes, and the enclosure is a part.

NVIDIA's HGX baseboard is a separate chassis that contains GPUs. It is never a node, because it is not the server, and
its GPUs are parts, because NVML on the server publishes them as devices.

Sources: DMTF DSP0268 (schemas Chassis, EnvironmentMetrics, Power, PowerSubsystem, Sensor), DSP2046; NVIDIA's
publications about HGX (names of chassis and sensors).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.collectors.redfish.names import component_of, hgx_component, is_hgx, slug
from joulewatch_exporter.collectors.redfish.plan import (
    ROOT,
    Json,
    Plan,
    Series,
    as_mapping,
    as_text,
    linked_uri,
    uris_of,
)
from joulewatch_exporter.collectors.redfish.reports import MetricReport
from joulewatch_exporter.collectors.redfish.sources import (
    ChassisPower,
    Explorer,
    Get,
    Part,
    Source,
    SourceFinder,
)
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.text import count_of

MAX_NODE_WATTS: Final = 50_000.0
MAX_PART_WATTS: Final = 20_000.0
GAP_PERIODS: Final = 3.0
"""Two missing power readings in a row still do not count as unmeasured time."""

_MAX_CHASSIS: Final = 256
_MAX_SEEN: Final = 6

_INNER_TYPES: Final = frozenset(
    {"Card", "Cartridge", "Component", "IPBasedDrive", "Module", "StorageEnclosure", "Zone"}
)
"""Types of chassis that are not servers."""
_ENCLOSURE_TYPES: Final = frozenset({"Enclosure", "Rack", "Shelf"})


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
    systems: tuple[str, ...]
    reported: ChassisPower

    @property
    def is_inner(self) -> bool:
        """Whether it is not a server."""
        return self.type in _INNER_TYPES or is_hgx(self.id)

    @property
    def is_server(self) -> bool:
        """Whether it is one of perhaps several servers in an enclosure."""
        return not self.is_inner and (self.type in ("Blade", "Sled") or bool(self.systems))

    @property
    def has_live_part(self) -> bool:
        """Whether a power supply or a sub-total has a value now."""
        return any(part.is_live for part in self.reported.parts)


class _Discovery:
    def __init__(self, get: Get, target: RedfishTarget, interval_s: float, previous: Plan | None) -> None:
        self._explorer = Explorer(get, target.base)
        self._target = target
        self._interval_s = interval_s
        self._known_chassis = frozenset() if previous is None else previous.chassis
        # The better sources of the previous plan have never had a value.
        self._known_nodes = frozenset() if previous is None or previous.better else previous.chassis
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
        powered = [chassis for chassis in all_chassis if chassis.reported.nodes]
        live = [chassis for chassis in powered if chassis.reported.is_live or chassis.uri in self._known_nodes]
        better = () if live else tuple(source.power for c in powered for source in c.reported.nodes.values())
        if not live:
            live = self._by_supplies(all_chassis)
        if live:
            self._add_all(live, all_chassis)
        else:
            self._add_parts_only(all_chassis)
        if not self._series:
            raise self._failure(link, all_chassis)
        findings = tuple(self._explorer.findings)
        return Plan(tuple(self._series), findings, frozenset(chassis.uri for chassis in live), better)

    def _by_supplies(self, all_chassis: Sequence[_Chassis]) -> list[_Chassis]:
        """Return the chassis whose power supplies report their inputs; nothing else reports the power of a node."""
        live = []
        for chassis in all_chassis:
            supplies = chassis.reported.supplies
            if supplies is not None and (supplies.is_live or chassis.uri in self._known_chassis):
                chassis.reported.nodes = {"": supplies}
                chassis.reported.note = ""
                live.append(chassis)
        return live

    def _add_all(self, live: Sequence[_Chassis], all_chassis: Sequence[_Chassis]) -> None:
        """Add the nodes and their parts."""
        selected = bool(self._target.chassis)
        containers = {} if selected else _containers(all_chassis, live)
        enclosures = _enclosures(live, containers)
        for chassis in live:
            if chassis.is_server and containers.get(chassis.uri) in enclosures:
                del containers[chassis.uri]
        outside = [chassis for chassis in live if chassis.uri not in enclosures]
        nodes, containers = _nodes(outside, containers, selected=selected)
        is_single = sum(len(node.reported.nodes) for node in nodes) == 1
        devices = dict.fromkeys(enclosures, self._target.name)
        for node in nodes:
            whole = self._target.name if is_single else f"{self._target.name}/{node.id}"
            named = {server: f"{self._target.name}/{server}" if server else whole for server in node.reported.nodes}
            devices[node.uri] = named.get("", self._target.name)
            for server, device in named.items():
                self._add_node(node, server, device)
            self._add_parts(node, named, devices[node.uri])
        if not self._target.parts:
            return
        inner = [chassis for chassis in live if chassis.uri in containers or chassis.uri in enclosures]
        self._prepare_hgx([chassis for chassis in inner if is_hgx(chassis.id)], has_node=bool(nodes))
        for chassis in inner:
            outermost = _outermost(chassis.uri, containers)
            self._add_inner(chassis, devices.get(outermost, "") if nodes else self._target.name)
            if chassis.uri in enclosures:
                self._add_parts(chassis, {}, self._target.name)
        for chassis in all_chassis:
            if chassis not in live and chassis.has_live_part:
                device = next(iter(devices.values())) if len(devices) == 1 else self._target.name
                self._add_parts(chassis, {}, device)

    def _prepare_hgx(self, modules: Sequence[_Chassis], *, has_node: bool) -> None:
        """Read the chassis of an HGX baseboard from a metric report, if there is one."""
        if not modules:
            return
        board = "chassis of an HGX baseboard"
        parts = count_of(len(modules), f"{board} is a part", f"{board} are parts")
        text = f"{self._target.name}: {parts}"
        if not has_node:
            text += "; the baseboard is not the server, set chassis to make it the node"
        text += "; experimental: never run on an HGX baseboard"
        self._explorer.report("found", modules[0].uri, text)
        if len(modules) > 1:
            # A baseboard has a dozen chassis, each of which would cost a request.
            report = MetricReport(self._explorer, reading_time=self._target.reading_time)
            for chassis in modules:
                nodes = chassis.reported.nodes
                chassis.reported.nodes = {server: report.source(source) for server, source in nodes.items()}

    def _add_parts_only(self, all_chassis: Sequence[_Chassis]) -> None:
        """Add the parts of chassis whose own power is unknown."""
        chassis_with_parts = [chassis for chassis in all_chassis if chassis.has_live_part and self._target.parts]
        for chassis in chassis_with_parts:
            is_single = len(chassis_with_parts) == 1
            device = self._target.name if is_single else f"{self._target.name}/{chassis.id}"
            self._add_parts(chassis, {}, device)
            text = f"{device}: the power of the server is unknown, only parts are published; {self._seen([chassis])}"
            self._explorer.report("skipped", chassis.uri, text)

    def _chassis(self, uri: str, resource: Json) -> _Chassis:
        links = as_mapping(resource.get("Links"))
        return _Chassis(
            uri=uri.rstrip("/"),
            id=_id_of(uri, resource),
            type=as_text(resource.get("ChassisType")),
            model=" ".join(filter(None, (as_text(resource.get("Manufacturer")), as_text(resource.get("Model"))))),
            container="".join(uris_of([links.get("ContainedBy")])),
            contains=uris_of(links.get("Contains")),
            systems=uris_of(links.get("ComputerSystems")),
            reported=self._finder.find(resource, uri),
        )

    def _failure(self, link: str, all_chassis: Sequence[_Chassis]) -> SensorError:
        where = f"{self._target.base}{link}"
        sources = [source for chassis in all_chassis for source in chassis.reported.nodes.values()]
        if sources:
            pointers = ", ".join(source.pointer for source in sources)
            return SensorAbsentError(f"{where}: no value now (null or 0): {pointers}")
        if self._explorer.denials:
            return SensorDeniedError(self._explorer.denials[0])
        return SensorAbsentError(
            f"{where}: no chassis reports its power, neither in EnvironmentMetrics nor in Power or Sensors; "
            f"{self._seen(all_chassis)}"
        )

    def _seen(self, all_chassis: Sequence[_Chassis]) -> str:
        """Return which properties in watts exist, and how to choose one of them."""
        seen = [text for chassis in all_chassis for text in chassis.reported.seen]
        if not seen:
            return "no property in watts was seen"
        more = f" and {len(seen) - _MAX_SEEN} more" if len(seen) > _MAX_SEEN else ""
        texts = [f"seen: {', '.join(seen[:_MAX_SEEN])}{more}"]
        texts += [text for chassis in all_chassis for text in chassis.reported.ratings]
        if any("#/PowerControl/" in entry for entry in seen):
            texts.append("set power_control to use a member of PowerControl")
        elif any("/Sensors/" in entry.partition("#")[0] for entry in seen):
            texts.append("set power_control to the Id of a sensor to use it as the node")
        return "; ".join(texts)

    # -- series ------------------------------------------------------------------------------------

    def _add(self, quantity: Quantity, source: Source, model: str, *, is_supply: bool = False) -> None:
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
                info=info,
                power=source.power,
                energy=source.energy,
                is_supply=is_supply,
                sampled=source.sampled,
                sensing_s=source.sensing_s,
            )
        )

    def _add_node(self, node: _Chassis, server: str, device: str) -> None:
        reported = node.reported
        source = reported.nodes[server]
        domain = "total" if source is not reported.supplies else "supply_inputs"
        self._add(Quantity(scope="node", component="node", device=device, domain=domain), source, node.model)
        if source.energy is None:
            text = "power, integrated"
        else:
            text = f"energy counter with steps of {source.step}" + (", and power" if source.power else "")
        text = f"{device} {domain}: {text}"
        if source is reported.supplies:
            text += f"; {source.kind} ({len(source.power)}), because nothing else reports the power of the node"
        notes = (source.note, reported.note)
        text += "".join(f"; {note}" for note in notes if note)
        if reported.others:
            text += f"; other sources, not read: {', '.join(reported.others)}"
        self._explorer.report("found", source.pointer, text)

    def _add_parts(self, chassis: _Chassis, named: Mapping[str, str], device: str) -> None:
        """Add power supplies and sub-totals."""
        if not self._target.parts:
            return
        for text in chassis.reported.ratings:
            self._explorer.report("skipped", chassis.uri, f"{device}: {text}")
        nodes = [source.power for source in chassis.reported.nodes.values()]
        for part in chassis.reported.parts:
            if (part.power,) not in nodes:
                self._add_part(part, named.get(part.server, device), chassis)

    def _add_part(self, part: Part, device: str, chassis: _Chassis) -> None:
        source = Source(kind="Power", power=(part.power,), step=part.step, is_live=True)
        quantity = Quantity(scope="part", component=part.component, device=device, domain=part.domain)
        self._add(quantity, source, part.model, is_supply=part.is_supply)

    def _add_inner(self, chassis: _Chassis, device: str) -> None:
        source = next(iter(chassis.reported.nodes.values()))
        if not device:
            text = f"{chassis.id} ({chassis.type or 'a chassis'}): there are several servers, and no link shows which"
            self._explorer.report("skipped", source.pointer, f"{text} of them contains it")
            return
        component = hgx_component(chassis.id) if is_hgx(chassis.id) else component_of(chassis.id)
        quantity = Quantity(scope="part", component=component, device=device, domain=slug(chassis.id))
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


def _enclosures(live: Sequence[_Chassis], containers: Mapping[str, str]) -> set[str]:
    """Return the enclosures of servers (by their type, or with several servers), and those around them."""
    inside = Counter(containers[chassis.uri] for chassis in live if chassis.is_server and chassis.uri in containers)
    types = {chassis.uri: chassis.type for chassis in live}
    enclosures = {uri for uri, count in inside.items() if count > 1 or types[uri] in _ENCLOSURE_TYPES}
    if any(chassis.is_server for chassis in live):
        # Perhaps no link states what is inside.
        enclosures |= {chassis.uri for chassis in live if chassis.type in _ENCLOSURE_TYPES and not chassis.systems}
    for uri in tuple(enclosures):
        while (uri := containers.get(uri, "")) and uri not in enclosures:
            enclosures.add(uri)
    return enclosures


def _nodes(
    live: Sequence[_Chassis], containers: dict[str, str], *, selected: bool
) -> tuple[list[_Chassis], dict[str, str]]:
    """Return the chassis that are nodes, and the containers of the others; an empty container is unknown."""
    nodes = [chassis for chassis in live if chassis.uri not in containers]
    if selected:
        return nodes, containers
    servers = [chassis for chassis in nodes if not chassis.is_inner]
    if any(chassis.is_server for chassis in servers):
        # A service that links servers to their systems links all of them: another chassis is a baseboard or a shelf.
        servers = [chassis for chassis in servers if chassis.is_server]
    if not servers:
        # A module may be the whole service, but the baseboard is not the server.
        servers = [chassis for chassis in nodes if not is_hgx(chassis.id)]
    # Modules without a link to a container belong to the server, if there is only one.
    server = servers[0].uri if len(servers) == 1 else ""
    return servers, containers | {chassis.uri: server for chassis in nodes if chassis not in servers}


def _outermost(uri: str, containers: Mapping[str, str]) -> str:
    visited: set[str] = set()
    while uri in containers and uri not in visited:
        visited.add(uri)
        uri = containers[uri]
    return uri
