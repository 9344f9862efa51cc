"""Which node sensor of each host is primary: its joules count as those of the server.

A server may be measured by several node sensors: a BMC by IPMI and by Redfish, an ACPI meter, a counter of its node
controller. Their sum has no meaning, so each host has exactly one primary node sensor.

The choice depends on metadata only, never on health: meters of one server differ by several percent, so a choice that
followed failures would show steps that the server did not make. While the primary sensor is down, its host has no
primary value. The choice changes only if the configuration does, or if a better sensor answers for the first time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.sampling.scan import Layout

Key = tuple[str, Quantity]
"""Collector and quantity."""


class PrimarySensors:
    """Remembers the node sensors of all hosts, and chooses the primary ones."""

    def __init__(self, nodename: str) -> None:
        """Start without sensors.

        Args:
            nodename: Host of the sensors that are not remote.
        """
        self._nodename = nodename
        self._nodes: dict[Key, SensorInfo] = {}

    def choose(self, families: Iterable[tuple[str, Layout]]) -> frozenset[Key]:
        """Return the primary node sensor of each host.

        Args:
            families: Name and current layout of all open families. A node sensor whose device is down is remembered,
                until its device is no longer in the layout: it was removed from the configuration.
        """
        families = tuple(families)
        devices = {(name, device) for name, layout in families for device in layout.devices}
        for name, layout in families:
            for info in layout.infos:
                if info.quantity.scope == "node":
                    self._nodes[name, info.quantity] = info
        self._nodes = {key: info for key, info in self._nodes.items() if (key[0], key[1].device) in devices}
        hosts: dict[str, list[Key]] = {}
        for key, info in self._nodes.items():
            hosts.setdefault(info.host(self._nodename), []).append(key)
        return frozenset(min(keys, key=self._rank) for keys in hosts.values())

    def _rank(self, key: Key) -> tuple[bool, bool, float, str, str, str]:
        """Counters first, then sensors in band, then faster ones; ties by name."""
        info = self._nodes[key]
        period_s = math.inf if info.period_s is None else info.period_s
        collector, quantity = key
        return (
            info.method != "counter",
            info.read_mode == "remote",
            period_s,
            collector,
            quantity.device,
            quantity.domain,
        )
