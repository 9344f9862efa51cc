"""Use of AMD and Intel GPUs by workload, from files of the kernel: no library is needed.

**Engine time.** ``/proc/PID/fdinfo/FD`` of an open DRM device has ``drm-engine-*`` in nanoseconds (amdgpu, i915), or
``drm-cycles-*`` and ``drm-total-cycles-*`` (xe), since the client was opened. A client that several descriptors or
processes share counts once, for the process in which it was found first. What a client used between the last read and
its end is lost to the others.

**Compute queues of ROCm** bypass the DRM scheduler, so fdinfo does not have their time. The driver amdkfd has the
number of compute units that a process occupies at the moment; the mean over a few seconds is its weight.

AMD's library amdsmi reads the same files, but only the last client of a process and only two of the engines, so it is
not used.

**Cost.** To find open devices, the descriptors of all processes are read: two milliseconds of this round in each
read. The files of known clients are read each time.

Reading the descriptors of other users' processes needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. Without them the source
is not opened: the use of processes that it cannot see would be charged to those that it can.

Sources: Linux ``Documentation/gpu/drm-usage-stats.rst``, ``amdkfd/kfd_process.c`` and ``kfd_topology.c``; github
ROCm/amdsmi, ``fdinfo.cc`` and ``rocm_smi_kfd.cc``.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, Self

from joulewatch_exporter.attribution.gpu import GpuOptions, Processes, Rates, UsageTree
from joulewatch_exporter.attribution.model import Usage, UsageScan, Weight, Workload
from joulewatch_exporter.clock import NS_PER_S, Clock, SystemClock
from joulewatch_exporter.collectors.base.sysfs import list_names, read_text_or
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Component, Finding, Host
from joulewatch_exporter.text import count_of

DRIVERS: Final = frozenset({"amdgpu", "i915", "xe"})
"""Kernel drivers whose fdinfo has the time of the engines."""

WALK_NS: Final = 2_000_000
"""How long a read looks for open devices."""
_FDINFO_BYTES: Final = 8192
_DEVICES: Final = "/dev/dri/"
_CLOSED_NS: Final = 600 * NS_PER_S
_QUEUES_NS: Final = NS_PER_S // 2
_SMOOTHED_S: Final = 5.0
"""Time constant of the mean of occupied compute units, each reading of which is a moment."""
_LEAST_OCCUPANCY: Final = 0.001

_DENIED_CURE: Final = (
    "run the exporter as root or with AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH in its systemd unit"
)


class Client(NamedTuple):
    """What an fdinfo file shows about one client of a GPU."""

    device: str
    """PCI address."""
    number: str
    engines_ns: Mapping[str, float]
    """Busy time by engine, divided by the number of such engines."""
    cycles: Mapping[str, tuple[int, int]]
    """Busy cycles, divided likewise, and all cycles, by engine."""


def parse_fdinfo(text: str) -> Client | None:
    """Return the client of an fdinfo file; None: it is not that of a GPU with engine counters."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator and key.startswith("drm-"):
            values[key[4:]] = value.strip()
    device, number = values.get("pdev", ""), values.get("client-id", "")
    if values.get("driver") not in DRIVERS or not device or not number:
        return None
    engines_ns: dict[str, float] = {}
    cycles: dict[str, tuple[int, int]] = {}
    for key in values:
        kind, _, name = key.partition("-")
        if kind == "engine" and not name.startswith("capacity-"):
            engines_ns[name] = _int(values[key], " ns") / _capacity(values, name)
        elif kind == "cycles":
            cycles[name] = (_int(values[key]) // _capacity(values, name), _int(values.get(f"total-cycles-{name}", "")))
    return Client(device, number, engines_ns, cycles)


def _capacity(values: Mapping[str, str], engine: str) -> int:
    return max(_int(values.get(f"engine-capacity-{engine}", "1")), 1)


def _int(text: str, unit: str = "") -> int:
    text = text.removesuffix(unit)
    return int(text) if text.isdecimal() else 0


@dataclass(slots=True)
class _Known:
    """A client at its last read."""

    pid: int
    client: Client
    read_at_ns: int


@dataclass(slots=True)
class _Card:
    """One GPU."""

    tree: UsageTree = field(default_factory=UsageTree)
    clients: dict[str, _Known] = field(default_factory=dict)
    closed: dict[str, _Known] = field(default_factory=dict)
    """Clients that no known process has open; one that is found again elsewhere must not count from its start."""
    queues: Rates = field(default_factory=Rates)
    occupied: dict[int, float] = field(default_factory=dict)
    """Process with compute queues -> mean share of the compute units."""
    is_unknown: bool = False
    """Whether a process has compute queues whose use the driver does not count."""


class DrmUsageSource:
    """All GPUs whose driver counts the time of the engines."""

    name: ClassVar[str] = "drm"
    components: ClassVar[tuple[Component, ...]] = ("gpu",)
    Options: ClassVar[type] = GpuOptions

    def __init__(self, host: Host, options: GpuOptions, clock: Clock | None = None) -> None:
        """Look at all processes once: what they used before does not count.

        Args:
            host: Where procfs, sysfs and the cgroups are.
            options: The settings.
            clock: Replaces the machine's clock in tests.

        Raises:
            SensorAbsentError: There is no such GPU.
            SensorDeniedError: The descriptors of some processes cannot be read.
        """
        self._clock: Clock = SystemClock() if clock is None else clock
        self._procfs = str(host.procfs)
        self._devices = f"{host.sysfs}/class/drm"
        drivers = _drivers(self._devices)
        if not drivers:
            raise SensorAbsentError(f"{self._devices}: no GPU with one of the drivers {', '.join(sorted(DRIVERS))}")
        self._drivers = drivers
        self._queues = _Queues(host)
        self._processes = Processes(host, options)
        self._cards = {device: _Card() for device in drivers}
        self._waiting: deque[int] = deque()
        """Processes whose descriptors are to be read, the next one first."""
        self._open: dict[int, tuple[str, ...]] = {}
        """Process -> its descriptors of DRM devices."""
        self._denied: set[int] = set()
        self._asked_ns = 0
        self._list_processes()
        self._walk(None)
        if self._denied:
            of = count_of(len(self._waiting), "process", "processes")
            raise SensorDeniedError(
                f"{self._procfs}/PID/fdinfo: permission denied for {len(self._denied)} of {of}; {_DENIED_CURE}"
            )
        self._read_clients(is_first=True)
        self._read_queues()

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Look at all processes once.

        Args:
            host: Where procfs, sysfs and the cgroups are.
            options: `GpuOptions`.

        Raises:
            SensorAbsentError: There is no GPU with such a driver.
            SensorDeniedError: The descriptors of some processes cannot be read.
        """
        assert isinstance(options, GpuOptions)
        return cls(host, options)

    @property
    def findings(self) -> Sequence[Finding]:
        """Return how each GPU is shared."""
        findings = []
        for device, card in self._cards.items():
            text = f"{self._drivers[device]}: shared by the time of the engines"
            if device in self._queues.units:
                text += ", and of ROCm by the compute units that a process occupies"
            users = {known.pid for known in card.clients.values()} | card.occupied.keys()
            text += f"; processes: {len(users)}" if users else ""
            text += "; experimental: never run on such a GPU"
            findings.append(Finding(status="found", collector=self.name, subject=device, text=text))
            if card.is_unknown:
                text = (
                    "the driver does not count the use of compute queues on this GPU: only a sole user has its energy"
                )
                findings.append(Finding(status="skipped", collector=self.name, subject=device, text=text))
        return tuple(findings)

    def read(self, keys: Collection[str]) -> UsageScan:
        """Read all workloads: few processes use GPUs."""
        self._list_processes()
        self._walk(WALK_NS)
        self._read_clients()
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._asked_ns >= _QUEUES_NS:
            self._read_queues()
        usages: dict[str, Sequence[Usage]] = {}
        weights: dict[str, Weight] = {}
        holders: dict[str, Sequence[str]] = {}
        for device, card in self._cards.items():
            pids = {known.pid for known in card.clients.values()} | card.occupied.keys()
            held = {key for pid in pids if (key := self._processes.key(pid))}
            card.queues.advance(card.tree, held, now_ns)
            holders[device] = tuple(sorted(held))
            if not card.is_unknown:
                usages[device] = card.tree.usages(held, now_ns)
                weights[device] = "sole_user" if len(held) == 1 else "gpu_utilisation"
        self._processes.keep({pid for card in self._cards.values() for pid in card.occupied} | self._open.keys())
        return UsageScan(usages=usages, weights=weights, holders=holders)

    def survey(self) -> UsageScan:
        """Read all workloads."""
        return self.read(())

    def workload(self, key: str) -> Workload:
        """Return the names of a workload."""
        return self._processes.workload(key)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    # -- finding open devices ----------------------------------------------------------------------

    def _list_processes(self) -> None:
        """Take over which processes there are; new ones are next in the round."""
        living = {int(name) for name in os.listdir(self._procfs) if name.isdecimal()}  # noqa: PTH208
        known = set(self._waiting)
        if living != known:
            self._waiting = deque([*(living - known), *(pid for pid in self._waiting if pid in living)])
            for pid in self._open.keys() - living:
                del self._open[pid]

    def _walk(self, budget_ns: int | None) -> None:
        """Read the descriptors of processes, the longest unread first; None: of all."""
        end_ns = None if budget_ns is None else time.monotonic_ns() + budget_ns
        for _ in range(len(self._waiting)):
            pid = self._waiting.popleft()
            self._waiting.append(pid)
            descriptors = self._descriptors(pid)
            if descriptors:
                self._open[pid] = descriptors
            else:
                self._open.pop(pid, None)
            if end_ns is not None and time.monotonic_ns() >= end_ns:
                return

    def _descriptors(self, pid: int) -> tuple[str, ...]:
        folder = f"{self._procfs}/{pid}/fd"
        try:
            names = os.listdir(folder)  # noqa: PTH208
            found = [name for name in names if self._is_device(f"{folder}/{name}")]
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                self._denied.add(pid)
            return ()
        return tuple(found)

    @staticmethod
    def _is_device(link: str) -> bool:
        try:
            return os.readlink(link).startswith(_DEVICES)  # noqa: PTH115
        except FileNotFoundError:
            return False  # closed meanwhile

    # -- engine time -------------------------------------------------------------------------------

    def _read_clients(self, *, is_first: bool = False) -> None:
        found: dict[tuple[str, str], dict[int, Client]] = {}
        for pid, descriptors in self._open.items():
            for descriptor in descriptors:
                client = self._client(pid, descriptor)
                if client is not None and client.device in self._cards:
                    found.setdefault((client.device, client.number), {})[pid] = client
        for (device, number), by_pid in found.items():
            card = self._cards[device]
            known = card.clients.get(number) or card.closed.get(number)
            pid = known.pid if known is not None and known.pid in by_pid else min(by_pid)
            self._take(card, pid, by_pid[pid], known, is_first=is_first)
        now_ns = self._clock.monotonic_ns()
        for device, card in self._cards.items():
            for number in [number for number in card.clients if (device, number) not in found]:
                card.closed[number] = card.clients.pop(number)
            for number in [number for number, known in card.closed.items() if now_ns - known.read_at_ns > _CLOSED_NS]:
                del card.closed[number]

    def _client(self, pid: int, descriptor: str) -> Client | None:
        try:
            with open(f"{self._procfs}/{pid}/fdinfo/{descriptor}", "rb") as file:
                return parse_fdinfo(file.read(_FDINFO_BYTES).decode("utf-8", "replace"))
        except OSError:
            return None

    def _take(self, card: _Card, pid: int, client: Client, known: _Known | None, *, is_first: bool) -> None:
        """Add what a client has used since its last read; a new one counts from its start, if it has nanoseconds."""
        now_ns = self._clock.monotonic_ns()
        card.clients[client.number] = _Known(pid, client, now_ns)
        card.closed.pop(client.number, None)
        if is_first:
            return
        before = known.client if known is not None else None
        seconds = 0.0
        for engine, value in client.engines_ns.items():
            start = before.engines_ns.get(engine, 0.0) if before is not None else 0.0
            seconds += max(value - start, 0.0) / NS_PER_S
        if known is not None:
            for engine, (busy, total) in client.cycles.items():
                busy_before, total_before = known.client.cycles.get(engine, (busy, total))
                if busy > busy_before and total > total_before:
                    share = min((busy - busy_before) / (total - total_before), 1.0)
                    seconds += share * (now_ns - known.read_at_ns) / NS_PER_S
        key = self._processes.key(pid)
        if seconds > 0.0:
            card.tree.add(key, seconds, now_ns)

    # -- compute queues ----------------------------------------------------------------------------

    def _read_queues(self) -> None:
        now_ns = self._clock.monotonic_ns()
        since_s = (now_ns - self._asked_ns) / NS_PER_S if self._asked_ns else 0.0
        self._asked_ns = now_ns
        found = self._queues.read()
        for device, card in self._cards.items():
            shares = found.get(device, {})
            card.is_unknown = None in shares.values()
            part = 1 - math.exp(-since_s / _SMOOTHED_S)
            occupied = {}
            for pid, share in shares.items():
                mean = card.occupied.get(pid, 0.0)
                mean += ((share or 0.0) - mean) * part
                occupied[pid] = mean if mean >= _LEAST_OCCUPANCY else 0.0
            card.occupied = occupied
            rates: dict[str, float] = {}
            for pid, mean in occupied.items():
                key = self._processes.key(pid)
                rates[key] = rates.get(key, 0.0) + mean
            card.queues.measure({key: rate * since_s for key, rate in rates.items()}, rates, now_ns)


class _Queues:
    """Compute queues of processes, as the driver amdkfd shows them."""

    def __init__(self, host: Host) -> None:
        root = f"{host.sysfs}/class/kfd/kfd"
        self._processes = f"{root}/proc"
        self._gpus: dict[str, str] = {}
        """Number of a GPU of the driver -> PCI address."""
        self.units: dict[str, int] = {}
        """PCI address -> number of compute units."""
        nodes = f"{root}/topology/nodes"
        with contextlib.suppress(SensorError):
            for node in list_names(nodes):
                gpu = read_text_or(f"{nodes}/{node}/gpu_id", "0")
                properties = _properties(read_text_or(f"{nodes}/{node}/properties", ""))
                units = properties.get("simd_count", 0) // max(properties.get("simd_per_cu", 1), 1)
                if gpu != "0" and units:
                    address = _address(properties.get("domain", 0), properties.get("location_id", 0))
                    self._gpus[gpu] = address
                    # Each partition of a card has a node; all have the card's address.
                    self.units[address] = self.units.get(address, 0) + units

    def read(self) -> dict[str, dict[int, float | None]]:
        """Return, by PCI address, the share of the compute units that each process with queues occupies now.

        None: the driver does not count it.
        """
        found: dict[str, dict[int, float | None]] = {}
        for name in _names(self._processes) if self._gpus else ():
            folder = f"{self._processes}/{name}"
            queues = _names(f"{folder}/queues")
            for gpu in {read_text_or(f"{folder}/queues/{queue}/gpuid", "") for queue in queues} & self._gpus.keys():
                address = self._gpus[gpu]
                text = read_text_or(f"{folder}/stats_{gpu}/cu_occupancy", "")
                of_gpu = found.setdefault(address, {})
                before = of_gpu.get(int(name), 0.0)
                share = min(int(text) / self.units[address], 1.0) if text.isdecimal() else None
                of_gpu[int(name)] = None if share is None or before is None else before + share
        return found


def _drivers(root: str) -> dict[str, str]:
    """Return the driver of each GPU that has the counters, by PCI address."""
    drivers: dict[str, str] = {}
    for name in _names(root):
        device = os.path.realpath(f"{root}/{name}/device")
        driver = os.path.basename(os.path.realpath(f"{device}/driver"))  # noqa: PTH119
        if driver in DRIVERS:
            drivers[os.path.basename(device)] = driver  # noqa: PTH119
    return drivers


def _names(path: str) -> list[str]:
    try:
        return list_names(path)
    except SensorError:
        return []


def _properties(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _address(domain: int, location: int) -> str:
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
