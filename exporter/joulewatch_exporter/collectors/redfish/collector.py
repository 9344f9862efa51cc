"""Redfish: the power of whole servers over HTTPS, from BMCs and chassis managers.

Each service has its own poller, so a slow service does not delay the others. `discover` finds once what a service
reports; after that a poll is one or two requests over a persistent connection and session (`client`, `device`). The
values are those of the whole node and must not be added to those of CPUs and GPUs.

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
"""Added to the deadline of a poll, to end the session of a service that does not answer."""
LONGEST_AGE_S: Final = 3600.0
"""The device itself detects samples that are too old, by the sensor's timestamps."""


class RedfishCollector(TargetedCollector):
    """All Redfish services of the configuration and of the target file."""

    name: ClassVar[str] = "redfish"
    experimental: ClassVar[str] = "has not been run with the BMC of a server"
    Options: ClassVar[type] = RedfishOptions

    def __init__(self, options: RedfishOptions) -> None:
        """Start the pollers; see `open`."""
        # Imported here, because without the extra the family must be absent and nothing else.
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
        """Start the pollers of the services, without waiting for answers.

        Raises:
            SensorAbsentError: There are no targets, or the library is missing.
            ConfigError: The target file is invalid.
        """
        if not options.targets and options.targets_file is None:
            raise SensorAbsentError("no targets: set collectors.redfish.targets or targets_file")
        try:
            import requests  # noqa: F401
        except ImportError as error:
            raise SensorAbsentError(f"{error.name} is not installed: pip install 'joulewatch[redfish]'") from error
        return cls(options)

    @property
    def findings(self) -> Sequence[Finding]:
        """Findings about each service, and an invalid target file."""
        findings = [finding for name in self._pollers for finding in self._services[name].findings]
        return (*super().findings, *findings)
