"""The node's power over HTTPS, from BMCs and chassis managers that speak Redfish.

Each service is read by a poller of its own, so that a slow one holds up nobody. A service is asked what it has once
(`discover`); from then on a poll is one or two requests over a connection and a session that are kept (`client`,
`device`). The values are those of the whole node: never to be added to what CPUs and GPUs say of themselves.

Sources: DMTF DSP0266 (protocol, sessions), DSP0268 (schemas).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self

from joulewatch_exporter.collectors.base.targeted import TargetedCollector
from joulewatch_exporter.collectors.base.targets import TargetList
from joulewatch_exporter.collectors.base.workers import Poller
from joulewatch_exporter.collectors.redfish.target import RedfishOptions, RedfishTarget
from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Finding, Host

LEAVING_S: Final = 3.0
"""Beyond a round's deadline: for ending the session of a service that does not answer."""
LONGEST_AGE_S: Final = 3600.0
"""The device itself decides, by the sensor's own time stamps, when a sample is too old."""


class RedfishCollector(TargetedCollector):
    """All Redfish services of the configuration and of the target file."""

    name: ClassVar[str] = "redfish"
    Options: ClassVar[type] = RedfishOptions

    def __init__(self, options: RedfishOptions) -> None:
        """Start to read; see `open`."""
        # Here, not above: without the extra the family is absent, and nothing worse.
        from joulewatch_exporter.collectors.redfish.device import Service

        self._services: dict[str, Service] = {}

        def make(target: RedfishTarget) -> Poller:
            interval_s = target.interval_seconds or options.interval_seconds
            service = Service(target, interval_s=interval_s, deadline_s=options.deadline_seconds)
            self._services[target.name] = service
            return Poller(
                target.name,
                service.connect,
                poll_s=interval_s,
                deadline_s=options.deadline_seconds + LEAVING_S,
                max_age_s=LONGEST_AGE_S,
            )

        where = "collectors.redfish"
        super().__init__(TargetList(RedfishTarget, options.targets, options.targets_file, where=where), make)

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Start to read the services; none is waited for.

        Raises:
            SensorAbsentError: There is none to read, or the library is missing.
            ConfigError: The target file is wrong.
        """
        if not options.targets and options.targets_file is None:
            raise SensorAbsentError("no service to read: set collectors.redfish.targets or targets_file")
        try:
            import requests  # noqa: F401
        except ImportError as error:
            raise SensorAbsentError(f"needs {error.name}: pip install 'joulewatch[redfish]'") from error
        return cls(options)

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found on each service, or why nothing was."""
        found = [finding for name in self._pollers for finding in self._services[name].findings]
        return (*super().findings, *found)
