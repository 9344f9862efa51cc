"""What families have in common whose devices answer when they are asked: files, registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from joulewatch_exporter.model import Finding, Sensor


class ClosableSensor(Sensor, Protocol):
    """A sensor that holds files open between reads."""

    def close(self) -> None:
        """Let go of them; safe to call twice."""
        ...


class OnDemandCollector:
    """A sensor family that is opened with what is there, and opened anew when that has changed.

    A family adds its name, its options, ``timing`` and ``open``, and ``outdated`` where devices can come.
    """

    def __init__(self, sensors: Sequence[ClosableSensor], findings: Sequence[Finding]) -> None:
        """Take what ``open`` has found."""
        self._sensors = tuple(sensors)
        self._findings = tuple(findings)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """The devices found."""
        return self._sensors

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found, skipped or denied, and why."""
        return self._findings

    @property
    def outdated(self) -> bool:
        """Never, where devices do not come while the machine runs."""
        return False

    def settle(self, timeout_s: float) -> None:
        """Return at once: nothing is read in the background."""

    def close(self) -> None:
        """Let go of all files; safe to call twice."""
        for sensor in self._sensors:
            sensor.close()
