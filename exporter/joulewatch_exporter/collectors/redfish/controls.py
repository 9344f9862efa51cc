"""What the members of ``PowerControl`` measure: a node, one of its feeds, one server of an enclosure, or a sub-total.

Public layouts differ. Dell and Lenovo list the server and sub-totals of its CPUs and memory. A sub-total is recognized
by its ``Name``, or by ``PhysicalContext``: Cisco's members have no name. SONiC lists one member for each power supply:
same ``Name``, same ``RelatedItem``; together they are the server. Enclosures list one member for each server, whose
``RelatedItem`` is that server.

Source: DMTF DSP0268, schema Power.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.collectors.redfish.names import NUMBERED, SHARE, component_of, is_supply, rank_of, supply_side
from joulewatch_exporter.collectors.redfish.plan import Json, as_text, uris_of
from joulewatch_exporter.model import Component

_WHOLE_CONTEXTS: Final = ("Chassis", "PowerSubsystem", "PowerSupply", "SystemBoard", "Motherboard", "Room", "Rack")
"""``PhysicalContext`` of members that may be the whole; Cisco states ``PowerSupply``. Others are a share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The members of ``PowerControl``, by index."""

    nodes: Mapping[str, tuple[int, ...]]
    """Name of the server -> its feeds, which are summed. The name is empty if the chassis is the server."""
    parts: Mapping[int, str]
    """The other members -> the name of their server; empty: the chassis."""


def sort_controls(controls: Sequence[Json], chassis_uri: str, selected: str) -> Controls:
    """Return what each member measures.

    Args:
        controls: The members.
        chassis_uri: The chassis that they belong to.
        selected: MemberId or Name of the member that is the node; empty: detect it.
    """
    indices = range(len(controls))
    nodes: dict[str, tuple[int, ...]] = {}
    servers = _servers(controls, chassis_uri)
    names = dict.fromkeys(servers.values())
    if selected:
        feeds = _selected(controls, selected)
        nodes = {"": feeds} if feeds else {}
    elif len(names) > 1:
        for name in names:
            nodes[name] = _feeds(controls, [index for index in indices if servers.get(index) == name])
    else:
        feeds = _feeds(controls, [index for index in indices if _is_whole(controls[index])])
        if not feeds and len(controls) == 1 and _component(controls[0]) == "node":
            feeds = (0,)
        if not feeds and all(is_supply(_name(control)) for control in controls):
            feeds = _supply_inputs(controls)
        nodes = {"": feeds} if feeds else {}
    used = {index for feeds in nodes.values() for index in feeds}
    parts = {index: _server_of(controls[index], nodes) for index in indices if index not in used}
    return Controls(nodes=nodes, parts=parts)


def control_name(control: Json, index: int) -> str:
    """Return the name of a member, for people."""
    return _name(control) or as_text(control.get("MemberId")) or str(index)


def part_of(control: Json, index: int) -> tuple[str, Component]:
    """Return the name and the component of a member that is not a node."""
    context = _context(control)
    name = _name(control) or (f"{context} power" if context else f"power control {index}")
    return name, _component(control)


def _name(control: Json) -> str:
    return as_text(control.get("Name"))


def _is_whole(control: Json) -> bool:
    return rank_of(_name(control)) != SHARE and _context(control) in ("", *_WHOLE_CONTEXTS)


def _context(control: Json) -> str:
    return as_text(control.get("PhysicalContext"))


def _component(control: Json) -> Component:
    return component_of(f"{_name(control)} {_context(control)}")


def _supply_inputs(controls: Sequence[Json]) -> tuple[int, ...]:
    """Return the inputs of power supplies; members that state no side count as inputs if none states it."""
    sides = [supply_side(_name(control)) for control in controls]
    wanted = "input" if "input" in sides else ""
    return tuple(index for index, side in enumerate(sides) if side == wanted)


def _selected(controls: Sequence[Json], selected: str) -> tuple[int, ...]:
    for key in ("MemberId", "Name"):
        matches = [index for index, control in enumerate(controls) if as_text(control.get(key)) == selected]
        if matches:
            return _feeds(controls, matches) if key == "Name" else tuple(matches[:1])
    return ()


def _feeds(controls: Sequence[Json], candidates: Sequence[int]) -> tuple[int, ...]:
    """Return the member that is the whole, and the members that measure further feeds of it."""
    readable = [index for index in candidates if "PowerConsumedWatts" in controls[index]] or list(candidates)
    if not readable:
        return ()
    main = next((index for index in readable if "system" in _name(controls[index]).lower()), readable[0])
    name, related = _name(controls[main]), _related(controls[main])
    if not name or not related:
        return (main,)
    context = _context(controls[main])
    return tuple(
        index
        for index in candidates
        if (_name(controls[index]), _related(controls[index]), _context(controls[index])) == (name, related, context)
    )


def _related(control: Json) -> frozenset[str]:
    return frozenset(uris_of(control.get("RelatedItem")))


def _servers(controls: Sequence[Json], chassis_uri: str) -> dict[int, str]:
    """Return the server of each member that measures a whole server; without those that name none."""
    for kind in ("Systems", "Chassis"):
        # An enclosure that contains systems is not a server itself.
        named: dict[int, str] = {}
        for index, control in enumerate(controls):
            uris = [uri for uri in _related(control) if uri != chassis_uri.rstrip("/")]
            ids = {match[1] for uri in uris if (match := re.search(rf"/{kind}/([^/]+)/?$", uri)) is not None}
            if len(ids) == 1 and _is_whole(control):
                named[index] = _label(ids.pop())
        if len(set(named.values())) > 1:
            return named
        if named and kind == "Systems":
            return {}
    numbered = {
        index: match for index, control in enumerate(controls) if (match := NUMBERED.search(_name(control))) is not None
    }
    groups: dict[tuple[str, str, str], dict[int, str]] = defaultdict(dict)
    for index, match in numbered.items():
        if _is_whole(controls[index]):
            key = (match.string[: match.start()], match[1].lower(), match.string[match.end() :])
            groups[key][index] = f"{match[1]}{match[2]}".lower()
    largest = max(groups.values(), key=lambda group: len(set(group.values())), default={})
    return largest if len(set(largest.values())) > 1 else {}


def _label(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _server_of(control: Json, nodes: Mapping[str, tuple[int, ...]]) -> str:
    """Return which of the servers a sub-total belongs to; empty if it is unknown, or if there is only one."""
    names = {_label(segment) for uri in _related(control) for segment in uri.split("/")}
    match = NUMBERED.search(_name(control))
    if match is not None:
        names.add(f"{match[1]}{match[2]}".lower())
    owners = [name for name in nodes if name in names]
    return owners[0] if len(owners) == 1 else ""
