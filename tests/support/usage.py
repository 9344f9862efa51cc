"""A scripted usage source: a tree of cgroups that use known seconds, read as the kernel's counters are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from joulewatch_exporter.attribution.model import ROOT, Usage, UsageScan, UsageSource, Weight, Workload
from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Component, Finding, Host
from support.clock import FakeClock


def ancestors(key: str) -> Iterator[str]:
    """Yield the node itself, those above it, and the root."""
    while key:
        yield key
        key = key.rpartition("/")[0]
    yield ROOT


@dataclass
class Cgroups:
    """Counters as the kernel keeps them: a parent's contains those of its children, also of dead ones."""

    now_ns: Callable[[], int]
    used: dict[str, float] = field(default_factory=lambda: {ROOT: 0.0})
    between_reads: Callable[[], None] = lambda: None
    """Called after the read of each node, to let time pass."""

    def make(self, *keys: str) -> None:
        for key in keys:
            for node in ancestors(key):
                self.used.setdefault(node, 0.0)

    def remove(self, key: str) -> None:
        """Remove a node and those below it."""
        for node in [node for node in self.used if node == key or node.startswith(f"{key}/")]:
            del self.used[node]

    def use(self, key: str, seconds: float) -> None:
        for node in ancestors(key):
            self.used[node] += seconds

    def usages(self, keys: Collection[str] | None) -> list[Usage]:
        """Read the root, its children and some other nodes, or all; children before their parents."""
        nodes = [node for node in self.used if node and (keys is None or "/" not in node or node in keys)]
        nodes.sort(key=lambda node: -node.count("/"))
        usages = []
        for node in (*nodes, ROOT):
            if node in self.used:
                usages.append(Usage(node, self.used[node], self.now_ns()))
            self.between_reads()
        return usages


@dataclass
class ScriptedUsage:
    """What a scripted source reads, and how it fails."""

    cgroups: Cgroups
    _: Any = None
    devices: dict[str, Cgroups] = field(default_factory=dict)
    """GPUs: their own trees."""
    holders: dict[str, Sequence[str]] = field(default_factory=dict)
    weight: Weight = "cpu_time"
    names: dict[str, Workload] = field(default_factory=dict)
    error: Exception | None = None
    hang: threading.Event | None = None
    """Reads wait until this is set."""
    is_absent: bool = False
    reserved: dict[str, float] = field(default_factory=dict)
    """Node -> share of the processors."""
    reserved_reads: int = 0
    reads: int = 0
    surveys: int = 0
    closed: int = 0


@dataclass(frozen=True, slots=True)
class ScriptedOptions:
    """Options of a scripted source."""

    depth: str = "workload"
    level: int = 1


def scripted_source(
    script: ScriptedUsage, source_name: str = "scripted", components: tuple[Component, ...] = ("cpu", "memory")
) -> type[UsageSource]:
    """Return a source that reads a script."""

    class ScriptedSource:
        name: ClassVar[str] = source_name
        Options: ClassVar[type] = ScriptedOptions

        def __init__(self) -> None:
            self.findings: Sequence[Finding] = (
                Finding(status="found", collector=source_name, subject="/scripted", text="a scripted tree"),
            )

        @classmethod
        def open(cls, host: Host, options: Any) -> Self:
            if script.is_absent:
                raise SensorAbsentError("no scripted tree")
            return cls()

        def read(self, keys: Collection[str]) -> UsageScan:
            script.reads += 1
            return self._scan(keys)

        def survey(self) -> UsageScan:
            script.surveys += 1
            return self._scan(None)

        def _scan(self, keys: Collection[str] | None) -> UsageScan:
            if script.hang is not None:
                script.hang.wait(30.0)
            if script.error is not None:
                raise script.error
            usages = {"": script.cgroups.usages(keys)} if "cpu" in components else {}
            usages |= {device: tree.usages(keys) for device, tree in script.devices.items()}
            return UsageScan(usages=usages, weights=dict.fromkeys(usages, script.weight), holders=dict(script.holders))

        def reserved(self) -> dict[str, float]:
            script.reserved_reads += 1
            return dict(script.reserved)

        def workload(self, key: str) -> Workload:
            return script.names.get(key) or Workload(kind="other", workload=key)

        def close(self) -> None:
            script.closed += 1

    ScriptedSource.components = components  # type: ignore[attr-defined]
    return ScriptedSource  # type: ignore[return-value]


def scripted(clock: FakeClock) -> ScriptedUsage:
    """Return an empty script on a clock."""
    return ScriptedUsage(Cgroups(clock.monotonic_ns))
