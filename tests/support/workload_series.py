"""Series of workloads as exporters publish them, from known powers: a ledger without hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.history import RawSeries

T0 = 1795860000.0
TARGET: Mapping[str, str] = {"job": "joulewatch", "instance": "node1:10717"}


@dataclass(frozen=True, kw_only=True)
class Life:
    """One series from its first to its last moment, with the joules since an arbitrary time."""

    joules: Callable[[float], float]
    component: str = "cpu"
    device: str = ""
    kind: str = ""
    workload: str = ""
    reason: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    reserved: float | None = None
    """Share of the processors by weight."""
    begin_s: float = -np.inf
    end_s: float = np.inf


def steady(watts: float, **life: object) -> Life:
    return Life(joules=lambda at_s: watts * at_s, **life)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Machine:
    """An exporter with its workloads, which is scraped at some times."""

    lives: Sequence[Life]
    scrapes_s: Sequence[float]
    """Relative to T0, as all times."""
    starts_s: Sequence[float] = (-1e6,)
    """When the exporter started, and started again."""
    nodename: str = "node1"
    target: Mapping[str, str] = field(default_factory=lambda: dict(TARGET))
    accuracy: str = "0.02"
    method: str = "counter"
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Component -> measured ratio."""

    def start_of(self, at_s: float) -> float:
        return max(start_s for start_s in self.starts_s if start_s <= at_s)

    def samples(self) -> list[RawSeries]:
        """Return all series as stored, with the labels that Prometheus renames."""
        found: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, float]]] = {}

        def add(name: str, labels: Mapping[str, str], at_s: float, value: float) -> None:
            stored = {key if key not in self.target else f"exported_{key}": text for key, text in labels.items()}
            stored = {key: text for key, text in stored.items() if text} | dict(self.target)
            found.setdefault((name, tuple(sorted(stored.items()))), []).append((T0 + at_s, value))

        sensor = {"collector": "rapl", "device": "socket0", "domain": "package"}
        for at_s in self.scrapes_s:
            start_s = self.start_of(at_s)
            add(catalog.EXPORTER_START.name, {}, at_s, T0 + start_s)
            add(catalog.EXPORTER_INFO.name, {"nodename": self.nodename, "version": "1"}, at_s, 1.0)
            for component, ratio in self.ratios.items():
                add(catalog.WORKLOAD_RATIO.name, {"component": component}, at_s, ratio)
            components = sorted({life.component for life in self.lives})
            for component in components:
                labels = {"component": component, **sensor, "scope": "device", "method": self.method}
                add(catalog.SENSOR_INFO.name, {**labels, "accuracy": self.accuracy}, at_s, 1.0)
                add(catalog.ATTRIBUTION_INFO.name, {"component": component, "method": self.method}, at_s, 1.0)
            for life in self.lives:
                if not life.begin_s <= at_s <= life.end_s:
                    continue
                begin_s = max(start_s, life.begin_s, -1e6)
                joules = life.joules(at_s) - life.joules(begin_s)
                labels = {"component": life.component, "device": life.device}
                if life.reason:
                    add(catalog.UNATTRIBUTED_ENERGY.name, labels | {"reason": life.reason}, at_s, joules)
                    continue
                own = {"kind": life.kind, "workload": life.workload}
                add(catalog.WORKLOAD_ENERGY.name, labels | own, at_s, joules)
                if life.reserved is not None:
                    add(catalog.WORKLOAD_RESERVED.name, own, at_s, life.reserved)
                add(catalog.WORKLOAD_INFO.name, {**life.names, **own}, at_s, 1.0)
        return [
            RawSeries(
                name=name,
                labels=dict(labels),
                times_s=np.array([at_s for at_s, _ in sorted(dict(pairs).items())]),
                values=np.array([value for _, value in sorted(dict(pairs).items())]),
            )
            for (name, labels), pairs in found.items()
        ]
