"""What a collector publishes, by ``device/domain`` or as text."""

from __future__ import annotations

from joulewatch_exporter.model import Collector, Finding, SensorInfo


def infos(collector: Collector) -> dict[str, SensorInfo]:
    """Return the infos of all sensors by ``device/domain``."""
    published = [info for sensor in collector.sensors for info in sensor.infos]
    return {f"{info.quantity.device}/{info.quantity.domain}": info for info in published}


def joules(collector: Collector) -> dict[str, float]:
    """Read all sensors once; return the energies by ``device/domain``."""
    readings = [reading for sensor in collector.sensors for reading in sensor.read()]
    return {f"{r.quantity.device}/{r.quantity.domain}": r.energy_joules or 0.0 for r in readings}


def findings(collector: Collector, status: str) -> list[Finding]:
    """Return the findings with this status."""
    return [finding for finding in collector.findings if finding.status == status]


def texts(collector: Collector, status: str) -> str:
    """Return the texts of the findings with this status, one per line."""
    return "\n".join(finding.text for finding in findings(collector, status))
