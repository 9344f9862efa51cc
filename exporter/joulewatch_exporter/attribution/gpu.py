"""What the sources of GPU usage share: the workload of a process, and a tree of busy seconds for each GPU.

Drivers report the use of a GPU by process. Here a process adds to the cgroup of its workload and to all cgroups above
it, so the use of a process that has ended stays where it was, as with processor time. A process whose cgroup is not
known adds to the root only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.attribution.model import ROOT, Usage, Workload
from joulewatch_exporter.attribution.privacy import NameOptions
from joulewatch_exporter.attribution.process_keys import ProcessKeys
from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.model import Host

_FORGOTTEN_NS: Final = 600 * NS_PER_S
"""A cgroup that has not held the GPU for this long is forgotten."""
_LISTED_NS: Final = 3 * NS_PER_S
"""A workload that neither held nor used the GPU for this long is gone from it."""
LONGEST_GUESS_S: Final = 1.0
"""For how long a rate is continued after the last measurement: drivers sample once a second or more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions(NameOptions):
    """Settings under ``attribution.sources`` of a source of GPU usage: those of names only."""


class Processes:
    """The workloads of processes, also of those that have just ended."""

    def __init__(self, host: Host, options: NameOptions) -> None:
        """Find the hierarchies of cgroups.

        Args:
            host: Where sysfs and procfs are.
            options: Which workloads are shown, and how.
        """
        self._process_keys = ProcessKeys(host, options)
        self._keys: dict[int, str] = {}

    def living_key(self, pid: int) -> str | None:
        """Return the key of a process; None: procfs does not have it.

        Args:
            pid: As the driver reports it, so in the namespace of the machine.
        """
        key = self._process_keys.key(pid)
        if key is not None:
            self._keys[pid] = key
        return key

    def key(self, pid: int) -> str:
        """Return the key that a process has, or had when it was last alive; the root if that is not known."""
        key = self.living_key(pid)
        return self._keys.get(pid, ROOT) if key is None else key

    def workload(self, key: str) -> Workload:
        """Return the names of a workload, or digests of them."""
        return self._process_keys.workload(key)

    def keep(self, pids: Collection[int]) -> None:
        """Forget all other processes."""
        self._keys = {pid: key for pid, key in self._keys.items() if pid in pids}


@dataclass(slots=True)
class _Node:
    seconds: float = 0.0
    used_ns: int = 0
    """When a process of it last held or used the GPU."""
    is_workload: bool = False


class UsageTree:
    """Busy seconds of one GPU, by cgroup."""

    def __init__(self) -> None:
        """Start with the root."""
        self._nodes: dict[str, _Node] = {ROOT: _Node()}

    def add(self, key: str, seconds: float, now_ns: int) -> None:
        """Add to a cgroup and to all above it."""
        while key:
            node = self._nodes.setdefault(key, _Node())
            node.seconds += seconds
            node.used_ns = now_ns
            key = key.rpartition("/")[0]
        self._nodes[ROOT].seconds += seconds

    def usages(self, held: Iterable[str], now_ns: int) -> list[Usage]:
        """Return all cgroups, but for workloads that no longer hold the GPU; the root is the last.

        Args:
            held: Keys of the workloads that hold the GPU.
            now_ns: Monotonic time.
        """
        for key in held:
            self.add(key, 0.0, now_ns)
            self._nodes[key].is_workload = True
        gone = [key for key, node in self._nodes.items() if key and now_ns - node.used_ns > _FORGOTTEN_NS]
        for key in gone:
            del self._nodes[key]
        return [
            *(
                Usage(key, node.seconds, now_ns)
                for key, node in self._nodes.items()
                if key and (not node.is_workload or now_ns - node.used_ns <= _LISTED_NS)
            ),
            Usage(ROOT, self._nodes[ROOT].seconds, now_ns),
        ]


class Rates:
    """Makes a counter without gaps from measurements that come now and then.

    Between two measurements the last rate goes on, so that energy used meanwhile finds its user. What was guessed too
    high is taken back by standing still, because a counter never falls.
    """

    def __init__(self) -> None:
        """Start without a measurement."""
        self._measured: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._measured_ns = 0

    def measure(self, seconds: dict[str, float], rates: dict[str, float], at_ns: int) -> None:
        """Take a measurement.

        Args:
            seconds: What each key has used since the measurement before.
            rates: Seconds per second from now on.
            at_ns: When the measurement ended.
        """
        for key, value in seconds.items():
            self._measured[key] = self._measured.get(key, 0.0) + value
        self._rates = rates
        self._measured_ns = at_ns

    def advance(self, tree: UsageTree, held: Collection[str], now_ns: int) -> None:
        """Add what was measured or is guessed to a tree; a key that does not hold the GPU has no rate."""
        guess_s = min(max((now_ns - self._measured_ns) / NS_PER_S, 0.0), LONGEST_GUESS_S)
        for key, measured in list(self._measured.items()):
            rate = self._rates.get(key, 0.0) if key in held else 0.0
            wanted, shown = measured + rate * guess_s, self._shown.get(key, 0.0)
            if wanted > shown:
                tree.add(key, wanted - shown, now_ns)
                self._shown[key] = wanted
            if key not in held and key not in self._rates:
                del self._measured[key]
                self._shown.pop(key, None)
