"""Scrape an exporter on an emulated machine, keep every scrape, and compare it with the truth and the rules.

Users rely on these rules: a total never falls, a value has the timestamp of its own reading, a device that is down
has no series, and a fault of one device does not change the series of another.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from joulewatch_exporter import catalog
from joulewatch_exporter.emulator.truth import Truth

Device = tuple[str, str]
"""Collector, device."""
Series = tuple[str, str, str]
"""Collector, device, domain."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One quantity in one scrape."""

    read_at_s: float
    joules: float
    watts: float | None


@dataclass(slots=True)
class Watched:
    """All scrapes."""

    samples: dict[Series, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    up: dict[Device, list[tuple[float, bool]]] = field(default_factory=lambda: defaultdict(list))
    unmeasured_s: dict[Series, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[tuple[str, Series], float] = field(default_factory=dict)
    """Latest value of the wraps, resets and rejected readings."""
    errors: dict[tuple[str, str, str], float] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def scrape(self, url: str) -> None:
        """Scrape once and record the result."""
        start = time.perf_counter()
        with urllib.request.urlopen(f"{url}/metrics", timeout=15) as response:
            text = response.read().decode()
        self.record(text, time.perf_counter() - start)

    def record(self, text: str, latency_s: float) -> None:
        """Record a scrape and each rule that it breaks."""
        self.latencies_s.append(latency_s)
        at_s = time.time()
        joules: dict[Series, float] = {}
        watts: dict[Series, float] = {}
        read_at_s: dict[Device, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels, name, value = sample.labels, sample.name, sample.value
                if "collector" not in labels or "device" not in labels:
                    continue
                device = (labels["collector"], labels["device"])
                series = (*device, labels.get("domain", ""))
                if name in _ENERGY:
                    joules[series] = value
                elif name in _POWER:
                    watts[series] = value
                elif name == catalog.READ_TIMESTAMP.name:
                    read_at_s[device] = value
                elif name == catalog.SENSOR_UP.name:
                    self.up[device].append((at_s, value == 1.0))
                elif name == catalog.SENSOR_UNMEASURED.name:
                    self.unmeasured_s[series].append((at_s, value))
                elif name in _COUNTS:
                    self.counts[name, series] = value
                elif name == catalog.READ_ERRORS.name:
                    self.errors[(*device, labels["reason"])] = value
        for series, total in joules.items():
            self._take(series, Sample(read_at_s[series[:2]], total, watts.get(series)))

    def _take(self, series: Series, sample: Sample) -> None:
        before = self.samples[series][-1] if self.samples[series] else None
        name = "/".join(series)
        if sample.joules < 0 or (sample.watts is not None and sample.watts < 0):
            self.complaints.append(f"{name}: negative: {sample}")
        if before is not None:
            if sample.joules < before.joules:
                self.complaints.append(f"{name}: the total fell from {before.joules} to {sample.joules}")
            if sample.read_at_s == before.read_at_s and sample.joules != before.joules:
                self.complaints.append(f"{name}: two totals for one read timestamp")
        self.samples[series].append(sample)

    def watch(self, url: str, duration_s: float, interval_s: float = 1.0) -> None:
        """Scrape every ``interval_s`` for ``duration_s``."""
        start = time.monotonic()
        tick = 0
        while tick * interval_s < duration_s:
            self.scrape(url)
            tick += 1
            time.sleep(max(0.0, start + tick * interval_s - time.monotonic()))

    # -- compared with the truth -------------------------------------------------------------------------

    def deviation(self, series: Series, truth: Truth, *, spans: Iterable[tuple[float, float]] | None = None) -> float:
        """Return the relative error of the energy, over the whole series or over spans of Unix seconds."""
        samples = self.samples[series]
        key = f"{series[1]}/{series[2]}"
        measured = true = 0.0
        for start_s, end_s in spans or ((samples[0].read_at_s, samples[-1].read_at_s),):
            inside = [sample for sample in samples if start_s <= sample.read_at_s <= end_s]
            if len(inside) < 2:
                continue
            measured += inside[-1].joules - inside[0].joules
            true += truth.energy_joules(key, inside[0].read_at_s, inside[-1].read_at_s)
        if true == 0.0:
            raise ValueError(f"{key}: nothing was measured in these spans")
        return measured / true - 1.0

    def was_always_up(self, device: Device) -> bool:
        """Return whether the device was up in every scrape."""
        return all(is_up for _, is_up in self.up[device])

    def last_unmeasured_s(self, series: Series) -> float:
        """Return the time that the exporter reports as not measured."""
        values = self.unmeasured_s[series]
        return values[-1][1] if values else 0.0

    def count(self, metric: catalog.Metric, series: Series) -> float:
        """Return the latest value of a counter such as the resets."""
        return self.counts.get((metric.name, series), 0.0)


_ENERGY = {metric.name for metric in catalog.ENERGY_BY_SCOPE.values()}
_POWER = {metric.name for metric in catalog.POWER_BY_SCOPE.values()}
_COUNTS = {metric.name for metric in (catalog.SENSOR_WRAPS, catalog.SENSOR_RESETS, catalog.SENSOR_REJECTED)}


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a process."""

    rss_mebibytes: float
    threads: int
    descriptors: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Resources:
        """Read procfs."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            rss_mebibytes=int(status["VmRSS"].split()[0]) / 1024,
            threads=int(status["Threads"]),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - links that may vanish while listed
            cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        )
