"""Base of families whose devices are read on demand: files and registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from joulewatch_exporter.model import Finding, Sensor


class ClosableSensor(Sensor, Protocol):
    """A sensor that holds files open between reads."""

    def close(self) -> None:
        """Close the files; safe to call twice."""
        ...


class OnDemandCollector:
    """A sensor family with a fixed list of devices; it is reopened when the devices change.

    A family adds its name, its options, ``timing`` and ``open``, and ``outdated`` if devices can be added.
    """

    def __init__(self, sensors: Sequence[ClosableSensor], findings: Sequence[Finding]) -> None:
        """Take over the sensors and findings of ``open``."""
        self._sensors = tuple(sensors)
        self._findings = tuple(findings)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """The devices."""
        return self._sensors

    @property
    def findings(self) -> Sequence[Finding]:
        """Sensors that were found, skipped or denied, with reasons."""
        return self._findings

    @property
    def outdated(self) -> bool:
        """Return False, for families whose devices do not change while the machine runs."""
        return False

    def settle(self, timeout_s: float) -> None:
        """Return at once, because nothing is read in the background."""

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for sensor in self._sensors:
            sensor.close()
