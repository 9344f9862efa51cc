"""Interpret the names of sensors and chassis: the whole server or a share of it, and which component."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from joulewatch_exporter.collectors.redfish.plan import Json, as_text
from joulewatch_exporter.model import Component

_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SHARE_WORDS: Final = re.compile(
    r"(?:sub|subsystem|cpus?|processors?|mem|memory|dimms?|dram|gpus?|accelerators?|fpgas?|pcie|fans?|drives?|disks?|hdds?|"
    r"ssds?|storage|nics?|vr|psus?|ps|supply|supplies)"
)
"""A name with one of these words refers to a share, not to the whole."""
_WHOLE_WORDS: Final = re.compile(r"(?:sys|system|chassis|server|node|platform|consum\w*)")
_COMPONENTS: Final[Sequence[tuple[str, Component]]] = (
    (r"gpus?|accelerators?", "gpu"),
    (r"fpgas?", "fpga"),
    (r"cpus?|processors?", "cpu"),
    (r"mem|memory|dimms?|dram", "memory"),
)
NUMBERED: Final = re.compile(r"(node|server|blade|sled|system)[ _-]?(\d+|[a-h])(?![a-z0-9])", re.IGNORECASE)
"""The server in a name such as ``Node 2 Power``."""
_STATISTICS: Final = re.compile(r"(?:max|min|peak|avg|average|limit|cap|rated)")
_SUPPLY_WORDS: Final = re.compile(r"(?:psus?|ps|supply|supplies)")


def supply_name(supply: Json, index: int) -> str:
    """Return the label of a power supply."""
    member = as_text(supply.get("MemberId")) or as_text(supply.get("Id"))
    if member.isdigit() or not member:
        return f"psu{member or index}"
    return slug(member)


def slug(name: str) -> str:
    """Return a name as a label value: lower case, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "part"


def component_of(name: str) -> Component:
    """Return the component to which a name refers."""
    words = _words(name)
    for pattern, component in _COMPONENTS:
        if any(re.fullmatch(pattern, word) for word in words):
            return component
    return "node"


def is_hgx(chassis_id: str) -> bool:
    """Return whether a chassis belongs to NVIDIA's HGX baseboard: ``HGX_Chassis_0``, ``HGX_GPU_SXM_1``."""
    return chassis_id.startswith("HGX_")


def hgx_component(chassis_id: str) -> Component:
    """Return the component of a chassis of an HGX baseboard; a processor module holds a CPU and GPUs."""
    match = re.match(r"HGX_(GPU|CPU)_", chassis_id)
    return "other" if match is None else ("gpu" if match[1] == "GPU" else "cpu")


def is_supply(name: str) -> bool:
    """Return whether a name refers to a power supply."""
    return any(_SUPPLY_WORDS.fullmatch(word) for word in _words(name))


def server_in(name: str) -> str:
    """Return the server of an enclosure that a name refers to (``node2``); empty: it names none, or a share of one."""
    match = NUMBERED.search(name)
    return "" if match is None or rank_of(name) == SHARE else f"{match[1]}{match[2]}".lower()


def supply_side(name: str) -> str:
    """Return which side of a power supply a name refers to, ``input`` or ``output``; empty: neither."""
    words = _words(name)
    if not is_supply(name):
        return ""
    if any(word in ("in", "input", "pin") for word in words):
        return "input"
    return "output" if any(word in ("out", "output", "pout") for word in words) else ""


def input_sensor(name: str) -> str:
    """Return the power supply whose input a sensor measures; empty: it is another sensor."""
    if supply_side(name) != "input" or any(_STATISTICS.fullmatch(word) for word in _words(name)):
        return ""
    match = re.search(r"(psu|ps|supply)[ _]?(\d+)", name, re.IGNORECASE)
    return slug(name) if match is None else f"{match[1]}{match[2]}".lower()


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


TOTAL, WHOLE, UNCLEAR, SHARE = range(4)


def rank_of(name: str) -> int:
    """Return how likely a name refers to the whole machine; smaller is better."""
    words = _words(name)
    if any(_SHARE_WORDS.fullmatch(word) for word in words):
        return SHARE
    if "total" in name.lower():
        return TOTAL
    return WHOLE if any(_WHOLE_WORDS.fullmatch(word) for word in words) else UNCLEAR
