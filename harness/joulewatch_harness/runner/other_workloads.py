"""The other programs that ran while a network was measured, from an exporter on this machine.

The exporter publishes the processor time of the workloads (units, containers, jobs) that it attributes energy to. It is
read before the load of a window begins and after it has ended, never inside, and the names are those of the largest
differences. They are an explanation: the amount of other work is that of ``processor_time``.

For GPUs, which the kernel does not count, the amount is that of the exporter as well. It needs to know which workload
is the run's own: where the exporter publishes hashed names, nothing is known.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_harness.clients.exporter import ExporterClient, parse_key
from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.records import ProcessorTime, condition_key
from joulewatch_harness.runner.process_group import cgroup_of, path_of
from joulewatch_harness.runner.processor_time import ProcessorSource

logger = logging.getLogger(__name__)

METRIC: Final = catalog.WORKLOAD_CPU.name
LARGEST: Final = 3
NOTABLE_SHARE: Final = 0.005
"""Share of the busy time from which other work needs names."""
_OWN: Final = "joulewatch-"
"""Beginning of the names of the run's cgroups and of the exporter's unit."""
_EXPORTER: Final = "joulewatch-exporter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the workloads have used so far."""

    at_s: float
    """Monotonic time."""
    workloads_s: Mapping[str, float]
    own_s: float
    gpus_s: Mapping[tuple[str, str], float]
    """GPU and workload -> time of the GPU."""
    held: frozenset[tuple[str, str]]
    """GPUs and the workloads that hold them."""
    has_gpus: bool


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
        """Return what every workload has used; None if the exporter does not publish it."""
        if self._client is None:
            return None
        reading = self._processors.read()
        try:
            samples = self._client.scrape().samples
        except ExporterUnreachableError as error:
            logger.info("the names of other workloads are not known: %s", error)
            return None
        workloads_s = {}
        gpus_s = {}
        held = set()
        has_gpus = False
        for key, value in samples:
            has_gpus = has_gpus or 'component="gpu"' in key
            if not key.startswith((METRIC, catalog.WORKLOAD_GPU.name, catalog.GPU_HELD.name)):
                continue
            name, labels = parse_key(key)
            workload, device = labels.get("workload", ""), labels.get("device", "")
            if name == METRIC:
                workloads_s[workload] = value
            elif name == catalog.WORKLOAD_GPU.name:
                gpus_s[device, workload] = value
            elif value:
                held.add((device, workload))
        if not workloads_s and not gpus_s:
            self._client = None
        return Usage(
            at_s=time.monotonic(),
            workloads_s=workloads_s,
            own_s=0.0 if reading is None else reading.own_s,
            gpus_s=gpus_s,
            held=frozenset(held),
            has_gpus=has_gpus,
        )

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

    def gpus(self, before: Usage | None) -> dict[str, float]:
        """Return conditions of the GPUs that others held since ``before``: their number, and their use."""
        if before is None or not before.has_gpus or (after := self.read()) is None or after.at_s <= before.at_s:
            return {}
        names = {workload for _, workload in after.gpus_s.keys() | after.held} | after.workloads_s.keys()
        if not any(map(self._is_own, names)):
            return {}
        others: Counter[str] = Counter(device for device, _ in self._of_others(before.held | after.held))
        used_s: defaultdict[str, float] = defaultdict(float)
        for device, workload in self._of_others(after.gpus_s):
            seconds, first_s = after.gpus_s[device, workload], before.gpus_s.get((device, workload), 0.0)
            # A counter that fell has begun at 0 again, with its exporter.
            used_s[device] += seconds - first_s if seconds >= first_s else seconds
        conditions: dict[str, float] = {}
        for device in others.keys() | {device for device, seconds in used_s.items() if seconds > 0}:
            conditions[condition_key("gpu_others", device)] = max(others[device], 1)
            conditions[condition_key("gpu_others_share", device)] = used_s[device] / (after.at_s - before.at_s)
        return conditions

    def _of_others(self, uses: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [use for use in uses if not self._is_own(use[1])]

    def _is_own(self, workload: str) -> bool:
        """Return whether a workload is that of the run; not the exporter's, whose name is never hashed."""
        return workload in self._own_names or (workload.startswith(_OWN) and not workload.startswith(_EXPORTER))
