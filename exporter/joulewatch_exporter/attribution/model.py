"""Types that usage sources and the ledger share: workload, usage, scan, source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

from joulewatch_exporter.model import Component, Finding, Host

Kind = Literal["unit", "session", "container", "pod", "slurm_job", "vm", "other"]

Reason = Literal["idle", "rest", "system", "gap"]
"""Why energy belongs to no workload. idle: the device draws it without work; rest: workloads that have no series of
their own; system: kernel threads, interrupts and processes in the root cgroup; gap: usage could not be read."""

Weight = Literal["cpu_time", "instructions", "gpu_utilisation", "mig_slice", "sole_user"]
"""What the active energy of a device is shared by."""

ROOT = ""
"""Key of the whole machine: the cgroup at the root, or all time of all processors that was not idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A consumer of energy; the fields are the labels of ``joulewatch_workload_info``."""

    kind: Kind
    workload: str
    """Unique among the living workloads of its kind, and safe as a label."""
    namespace: str = ""
    pod: str = ""
    container: str = ""
    unit: str = ""
    job: str = ""
    step: str = ""
    user: str = ""
    server: str = ""
    """Inference server that runs in it, such as ``vllm``; empty if unknown."""


class Usage(NamedTuple):
    """How much of a device one node of the tree of cgroups has used, with all nodes below it."""

    key: str
    """Path of the node relative to the root, without a slash at either end; `ROOT` is the machine. Its parent is the
    nearest node of the same scan whose key is a prefix that ends at a slash, and at last the root."""
    seconds: float
    """Busy seconds (of one processor, or of the device) since an arbitrary start. It never falls while the node lives,
    and a parent's contains those of its children, also of dead ones."""
    read_at_ns: int
    """``time.monotonic_ns()``, taken next to the read itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageScan:
    """One look at the usage of all devices that a source knows."""

    usages: Mapping[str, Sequence[Usage]]
    """Device -> the root (always the last) and the nodes that were read. The device is ``""`` if all devices of the
    component share one usage (processors), else the label of the device (a GPU)."""
    weights: Mapping[str, Weight]
    """Device -> what its seconds are."""
    holders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Device -> keys of the nodes that hold it open, busy or not. Processors have none."""


class UsageSource(Protocol):
    """One way to read usage on this host, shaped like `joulewatch_exporter.model.Collector`: opened once, read by one
    thread, closed once."""

    name: ClassVar[str]
    components: ClassVar[tuple[Component, ...]]
    """Components whose energy it shares: processors share that of ``cpu`` and ``memory``."""
    Options: ClassVar[type]
    """Frozen dataclass behind ``attribution.sources.<name>`` of the configuration."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What ``check`` shows."""
        ...

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find what can be read.

        Raises:
            SensorAbsentError: This machine does not have it; the text names the places that were probed.
            SensorDeniedError: It may not be read; the text has the fix.
        """
        ...

    def read(self, keys: Collection[str]) -> UsageScan:
        """Read the root, its children and the given nodes: cheap, because it runs once a second and in each scrape.

        A child is read before its parent. A node that is gone is left out: its last use is in its parent.
        """
        ...

    def survey(self) -> UsageScan:
        """Read every living workload as well, to find those that need a series; the ledger calls it rarely."""
        ...

    def workload(self, key: str) -> Workload:
        """Return the names of a node that a scan returned; cached, because it may read files."""
        ...

    def close(self) -> None:
        """Close files; safe to call twice."""
        ...
