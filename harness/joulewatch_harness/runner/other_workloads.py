"""Names of the other programs that ran while a network was measured, from an exporter on this machine.

The exporter publishes the processor time of the workloads (units, containers, jobs) that it attributes energy to. It is
read before the load of a window begins and after it has ended, never inside, and the names are those of the largest
differences. They are an explanation: the amount of other work is that of ``processor_time``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.clients.exporter import ExporterClient, parse_key
from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.records import ProcessorTime
from joulewatch_harness.runner.process_group import cgroup_of, path_of
from joulewatch_harness.runner.processor_time import ProcessorSource

logger = logging.getLogger(__name__)

METRIC: Final = "joulewatch_workload_cpu_seconds_total"
LARGEST: Final = 3
NOTABLE_SHARE: Final = 0.005
"""Share of the busy time from which other work needs names."""
_OWN: Final = "joulewatch-"
"""Beginning of the names of the run's cgroups and of the exporter's unit."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time so far."""

    workloads_s: Mapping[str, float]
    own_s: float


class OtherWorkloads:
    """Reads the workloads of one exporter; without attribution there, it stops reading.

    Args:
        client: The exporter; no other thread uses it.
        processors: Reads the run's own time.
        own_path: Path of the harness's cgroup, whose workload contains the run; None: read it.
    """

    def __init__(self, client: ExporterClient, processors: ProcessorSource, own_path: str | None = None) -> None:
        self._client: ExporterClient | None = client
        self._processors = processors
        if own_path is None:
            folder = cgroup_of(os.getpid())
            own_path = "" if folder is None else path_of(folder)
        path = own_path.strip("/")
        self._own_names = {path, *path.split("/")} - {""}

    def read(self) -> Usage | None:
        """Return the processor time of every workload; None if the exporter does not publish it."""
        if self._client is None:
            return None
        reading = self._processors.read()
        try:
            samples = self._client.scrape().samples
        except ExporterUnreachableError as error:
            logger.info("the names of other workloads are not known: %s", error)
            return None
        workloads_s = {}
        for key, seconds in samples:
            if key.startswith(METRIC):
                _, labels = parse_key(key)
                workloads_s[labels.get("workload", "")] = seconds
        if not workloads_s:
            self._client = None
        return Usage(workloads_s, 0.0 if reading is None else reading.own_s)

    def largest(self, before: Usage | None, used: ProcessorTime | None) -> dict[str, float]:
        """Return the workloads that used most since ``before``, without the run; none if there was no other work."""
        if before is None or used is None or used.others_s <= NOTABLE_SHARE * used.busy_s:
            return {}
        after = self.read()
        if after is None:
            return {}
        differences = {}
        for name, seconds in after.workloads_s.items():
            used_s = seconds - before.workloads_s.get(name, 0.0)
            if name in self._own_names:
                used_s -= after.own_s - before.own_s
            if used_s > 0 and not name.startswith(_OWN):
                differences[name] = used_s
        return dict(sorted(differences.items(), key=lambda item: -item[1])[:LARGEST])
