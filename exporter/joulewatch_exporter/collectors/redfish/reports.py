"""Metric reports: one resource with the sensors of a whole HGX baseboard, instead of one request for each GPU.

Source: DMTF DSP0268, schema MetricReport; NVIDIA's report ``HGX_PlatformEnvironmentMetrics_0``.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from joulewatch_exporter.collectors.redfish.plan import (
    ROOT,
    Field,
    ForbiddenError,
    Json,
    Member,
    MissingError,
    as_list,
    as_mapping,
    as_text,
    linked_uri,
)
from joulewatch_exporter.collectors.redfish.sources import Explorer, Source

_REPORT: Final = "PlatformEnvironmentMetrics"
_MAX_REPORTS: Final = 64


class MetricReport:
    """The report of a service, if it has one."""

    def __init__(self, explorer: Explorer, *, reading_time: bool) -> None:
        """Get the report.

        Args:
            explorer: Gets the resources.
            reading_time: Whether to use the timestamps of the values.
        """
        self._explorer = explorer
        self._reading_time = reading_time
        self._uri = self._find()
        self._report: Json = explorer.optional(self._uri) or {}
        properties = [as_text(as_mapping(v).get("MetricProperty")) for v in as_list(self._report.get("MetricValues"))]
        self._index = {uri: index for index, uri in enumerate(properties) if uri}

    def _find(self) -> str | None:
        explorer = self._explorer
        service = explorer.optional(linked_uri(explorer.get(ROOT), "TelemetryService"))
        reports = None if service is None else linked_uri(service, "MetricReports")
        if reports is None:
            return None
        try:
            return next((uri for uri in explorer.members(reports, _MAX_REPORTS) if _REPORT in uri), None)
        except (MissingError, ForbiddenError):
            return None

    def source(self, source: Source) -> Source:
        """Return a source that reads the report; the same source if the report lacks a value of it."""
        power = tuple(self._field(field) for field in source.power)
        energy = None if source.energy is None else self._field(source.energy)
        fields = [field for field in (energy, *power) if field is not None]
        if not fields or len(fields) != len(source.power) + (source.energy is not None):
            return source
        sampled = Field(fields[0].uri, (*fields[0].path[:-1], "Timestamp")) if self._reading_time else None
        return dataclasses.replace(
            source, power=tuple(field for field in power if field is not None), energy=energy, sampled=sampled
        )

    def _field(self, field: Field) -> Field | None:
        """Return the field of the report with the same sensor, if it has a number now."""
        resource = self._explorer.optional(field.uri)
        if resource is None or self._uri is None:
            return None
        sensor = field.uri
        if len(field.path) > 1:
            excerpt = Field(field.uri, field.path[:-1]).value(resource)
            sensor = as_text(as_mapping(excerpt).get("DataSourceUri"))
        if sensor not in self._index:
            return None
        member = Member("MetricProperty", sensor, self._index[sensor])
        reported = Field(self._uri, ("MetricValues", member, "MetricValue"), field.scale)
        return reported if reported.number(self._report) is not None else None
