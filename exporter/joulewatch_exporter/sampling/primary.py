"""Which node sensor of each host is primary: its joules count as those of the server.

A server may be measured by several node sensors: a BMC by IPMI and by Redfish, an ACPI meter, a counter of its node
controller. Their sum has no meaning, so each host has exactly one primary node sensor.

Unless the configuration names a collector, energy counters come before power sensors, sensors in band before those over
the network, then the shorter period; names decide between equal sensors.

The choice depends on metadata only, never on health: meters of one server differ by several percent, so a choice that
followed failures would show steps that the server did not make. While the primary sensor is down, its host has no
primary value. The choice changes only if the configuration does, or if a better sensor answers for the first time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.sampling.scan import Layout

logger = logging.getLogger(__name__)

Key = tuple[str, Quantity]
"""Collector and quantity."""


class PrimarySensors:
    """Remembers the node sensors of all hosts, and chooses the primary ones."""

    def __init__(self, nodename: str, wanted: Mapping[str, str] | None = None) -> None:
        """Start without sensors.

        Args:
            nodename: Host of the sensors that are not remote.
            wanted: ``primary_node_sensor`` of the configuration: pattern of hosts -> collector.
        """
        self._nodename = nodename
        self._wanted = dict(wanted or {})
        self._nodes: dict[Key, SensorInfo] = {}
        self._chosen: dict[str, Key] = {}
        """By host."""

    def choose(self, families: Iterable[tuple[str, Layout]]) -> frozenset[Key]:
        """Return the primary node sensor of each host.

        Args:
            families: Name and current layout of all open families. A node sensor whose device is down is remembered,
                until its device is missing from the layout: it was removed from the configuration.
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
        chosen = {host: min(keys, key=lambda key: self._rank(key, host)) for host, keys in hosts.items()}
        for host, (collector, quantity) in chosen.items():
            if self._chosen.get(host, (collector, quantity)) != (collector, quantity):
                logger.info("%s: the primary node sensor is now %s %s", host, collector, quantity.device)
        self._chosen = chosen
        return frozenset(chosen.values())

    @property
    def unmet(self) -> dict[str, str]:
        """Those entries of ``wanted`` that no primary sensor follows."""
        met = {self._pattern(host) for host, (collector, _) in self._chosen.items() if collector == self._named(host)}
        return {pattern: collector for pattern, collector in self._wanted.items() if pattern not in met}

    def _pattern(self, host: str) -> str | None:
        return next((pattern for pattern in self._wanted if fnmatchcase(host, pattern)), None)

    def _named(self, host: str) -> str | None:
        """Return the collector that the configuration names for this host."""
        pattern = self._pattern(host)
        return None if pattern is None else self._wanted[pattern]

    def _rank(self, key: Key, host: str) -> tuple[bool, bool, bool, float, str, str, str]:
        """Return the rank of a sensor; the lowest is primary."""
        info = self._nodes[key]
        period_s = math.inf if info.period_s is None else info.period_s
        collector, quantity = key
        return (
            collector != self._named(host),
            info.method != "counter",
            info.read_mode == "remote",
            period_s,
            collector,
            quantity.device,
            quantity.domain,
        )
