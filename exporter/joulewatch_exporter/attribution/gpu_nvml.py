"""Use of NVIDIA GPUs by workload, through the collector ``nvml``.

Of these sources the first that a GPU has is used:

- **Accounting statistics**, version 2: the driver's own integral of each process, which outlives the process. Root must
  switch accounting mode on (``nvidia-smi -am 1``), and the driver must be recent.
- **Utilisation samples**: NVML returns, for each process that was active, the mean since a given time. Only samples
  after the last one seen count, so no time counts twice. What the driver returns besides (stale, unset and absurd
  samples; github Syllo/nvtop, issue 110) is dropped.
- **Slices** (MIG) have neither: a slice with a process counts with its share of the multiprocessors, busy or not.
- **The only user** of a GPU without samples has the utilisation of the whole GPU.

If none of them is there, only who holds the GPU is known.

A call takes up to milliseconds of driver time, so the GPUs are asked twice a second at most, each on a thread of its
own, next to the reads of energy. Between, the last rates go on (`gpu.Rates`).

Sources: NVIDIA ``nvml.h`` (CUDA 13.3); github NVIDIA/go-nvml, issue 51.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self

from joulewatch_exporter.attribution.gpu import GpuOptions, Processes, Rates, UsageTree
from joulewatch_exporter.attribution.model import Usage, UsageScan, Weight, Workload
from joulewatch_exporter.clock import NS_PER_S, Clock, SystemClock
from joulewatch_exporter.collectors.nvml.library import (
    FUNCTION_NOT_FOUND,
    NOT_FOUND,
    Nvml,
    find_evidence,
    find_library,
)
from joulewatch_exporter.collectors.nvml.shared import SharedNvml, shared_nvml
from joulewatch_exporter.errors import SensorError
from joulewatch_exporter.model import Component, Finding, Host

_ASK_NS: Final = NS_PER_S // 2
_LIST_NS: Final = 2 * NS_PER_S
"""How often processes, slices and modes are listed. A new process is seen earlier, by its samples."""
_TIMEOUT_S: Final = 0.2
_US_PER_S: Final = 1_000_000
_LATEST_US: Final = _US_PER_S
"""The driver samples once a second or more often, so no sample is older when it first appears."""
_MOST_PERCENT: Final = 100
_ACCOUNTING_UNIT: Final = 10_000
"""``sumGpuUtil`` is in percent x 100."""

_LISTS: Final = ("ComputeRunningProcesses", "GraphicsRunningProcesses", "MPSComputeRunningProcesses")

Mode = Literal["accounting", "samples", "slices", "whole", "holders"]

_TEXTS: Final[Mapping[Mode, str]] = {
    "accounting": "shared by accounting statistics",
    "samples": "shared by utilisation samples",
    "slices": "MIG: shared by the multiprocessors of the slices that have a process, busy or not",
    "whole": "no utilisation of processes: only a sole user has its energy",
    "holders": "no utilisation: only a sole user has its energy",
}
_ACCOUNTING_OFF: Final = (
    "accounting mode is off: what a process used after its last sample is missing. Root must switch it on after each "
    "load of the driver, before the processes start"
)
_ACCOUNTING_CURE: Final = "sudo nvidia-smi -am 1"
_NOT_IN_PROCFS: Final = "processes that are not in procfs: {}; their workload is not known, so they count as system"
_PROCFS_CURE: Final = (
    "run the container in the host's PID namespace: `docker run --pid=host`, Kubernetes `hostPID: true`"
)


class _Sample(NamedTuple):
    pid: int
    time_us: int
    percent: int


class _Account(NamedTuple):
    """The accounting statistics of one process."""

    pid: int
    start_us: int
    seconds: float
    is_running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Modes:
    """What a GPU supports now."""

    mode: Mode
    slices: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Multiprocessors and processes of each slice."""
    is_accounting_off: bool = False
    """Whether accounting mode could be switched on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a GPU answered."""

    pids: tuple[int, ...] | None = None
    """All processes that hold it; None: not asked."""
    modes: _Modes
    samples: Sequence[_Sample] = ()
    accounts: Sequence[_Account] = ()
    percent: float = 0.0
    """Utilisation of the whole GPU."""


class _Gpu:
    """One GPU: what it supports, who holds it, and what each workload has used."""

    def __init__(self, device: str, processes: Processes, now_us: int) -> None:
        self.device = device
        self.tree = UsageTree()
        self.rates = Rates()
        self.pids: tuple[int, ...] = ()
        self.held: frozenset[str] = frozenset()
        self.missing = 0
        """Number of its processes that procfs does not have."""
        self.modes: _Modes | None = None
        self.asked_ns = 0
        self.listed_ns = 0
        self._processes = processes
        self.seen_us = now_us
        self._known: dict[tuple[int, int], float] | None = None
        """Process and start time -> seconds that were accounted; None: not read yet."""
        self._ended: dict[int, _Account] = {}

    # -- on a thread of the GPU --------------------------------------------------------------------

    def ask(self, nvml: Nvml, now_us: int, is_list_due: bool, handle: Any) -> _Answer:
        """Ask for all that is needed.

        Raises:
            SensorError: The GPU is lost.
        """
        gpu = _Caller(nvml, handle, self.device)
        pids, modes = None, self.modes
        if modes is None or is_list_due:
            modes = gpu.modes(self.seen_us)
            in_slices = [pid for _, of_slice in modes.slices for pid in of_slice]
            pids = tuple(dict.fromkeys([*gpu.pids(), *in_slices]))
        if modes.mode == "accounting":
            return _Answer(pids=pids, modes=modes, accounts=gpu.accounts(self._ended, now_us))
        if modes.mode == "samples":
            return _Answer(pids=pids, modes=modes, samples=gpu.samples(self.seen_us) or ())
        if modes.mode == "whole":
            return _Answer(pids=pids, modes=modes, percent=gpu.percent() or 0.0)
        return _Answer(pids=pids, modes=modes)

    # -- arithmetic --------------------------------------------------------------------------------

    def take(self, answer: _Answer, now_us: int, now_ns: int) -> None:
        """Measure what was used since the last answer."""
        since_s = (now_ns - self.asked_ns) / NS_PER_S if self.asked_ns else 0.0
        self.asked_ns = now_ns
        if answer.pids is not None:
            self.listed_ns = now_ns
        if self.modes is not None and answer.modes.mode != self.modes.mode:
            self.rates, self._known, self.seen_us = Rates(), None, now_us
        self.modes = answer.modes
        mode = answer.modes.mode
        if mode == "accounting":
            self._take_accounts(answer.accounts, since_s, now_ns)
        elif mode == "samples":
            self._take_samples(answer.samples, now_us, now_ns)
        elif mode == "slices":
            self._take_rates(self._slice_rates(answer.modes.slices), since_s, now_ns)
        elif mode == "whole":
            self._take_rates(dict.fromkeys(self.held, answer.percent / 100), since_s, now_ns)

    def _take_samples(self, samples: Sequence[_Sample], now_us: int, now_ns: int) -> None:
        fresh = [
            sample
            for sample in samples
            if self.seen_us < sample.time_us <= now_us + _LATEST_US
            and sample.pid > 0
            and 0 < sample.percent <= _MOST_PERCENT
        ]
        if not fresh:
            # Idle, or not sampled yet. A later sample must not count for the time before.
            if now_us - _LATEST_US > self.seen_us:
                self.rates.measure({}, {}, now_ns)
                self.seen_us = now_us - _LATEST_US
            return
        newest_us = max(sample.time_us for sample in fresh)
        # A driver may return several samples of a process: the one with most of them was always active.
        most = max(Counter(sample.pid for sample in fresh).values())
        since_s = (newest_us - self.seen_us) / _US_PER_S
        rates: dict[str, float] = {}
        for sample in fresh:
            key = self._processes.key(sample.pid)
            rates[key] = rates.get(key, 0.0) + sample.percent / 100 / most
        seconds = {key: rate * since_s for key, rate in rates.items()}
        self.rates.measure(seconds, rates, now_ns - (now_us - newest_us) * 1000)
        self.seen_us = newest_us

    def _take_accounts(self, accounts: Sequence[_Account], since_s: float, now_ns: int) -> None:
        known, is_first = self._known or {}, self._known is None
        seconds: dict[str, float] = {}
        self._known = {}
        for account in accounts:
            identity = (account.pid, account.start_us)
            before = known.get(identity, account.seconds if is_first else 0.0)
            total = self._known[identity] = max(account.seconds, before)
            if account.is_running or total > before:
                key = self._processes.key(account.pid)  # also of one that has used nothing yet: it may end soon
                seconds[key] = seconds.get(key, 0.0) + total - before
        # A process that holds the GPU may have the number of one that has ended.
        self._ended = {one.pid: one for one in accounts if not one.is_running and one.pid not in self.pids}
        rates = {key: value / since_s for key, value in seconds.items()} if since_s > 0 else {}
        self.rates.measure(seconds, rates, now_ns)

    def _take_rates(self, rates: dict[str, float], since_s: float, now_ns: int) -> None:
        self.rates.measure({key: rate * since_s for key, rate in rates.items()}, rates, now_ns)

    def _slice_rates(self, slices: Sequence[tuple[int, Sequence[int]]]) -> dict[str, float]:
        total = sum(multiprocessors for multiprocessors, _ in slices) or 1
        rates: dict[str, float] = {}
        for multiprocessors, pids in slices:
            for pid in pids:
                key = self._processes.key(pid)
                rates[key] = rates.get(key, 0.0) + multiprocessors / total / len(pids)
        return rates

    def hold(self) -> None:
        """Find out which workloads hold the GPU now."""
        keys = [self._processes.living_key(pid) for pid in self.pids]
        self.missing = keys.count(None)
        self.held = frozenset(key for key in keys if key)

    def usages(self, now_ns: int) -> list[Usage] | None:
        """Return what each cgroup has used; None: not known."""
        mode = self.modes.mode if self.modes is not None else "holders"
        if mode == "holders" or (mode == "whole" and len(self.held) > 1):
            return None
        self.rates.advance(self.tree, self.held, now_ns)
        return self.tree.usages(self.held, now_ns)

    @property
    def weight(self) -> Weight:
        """What the seconds are."""
        if self.modes is not None and self.modes.mode == "slices":
            return "mig_slice"
        return "sole_user" if len(self.held) == 1 and not self.missing else "gpu_utilisation"


class _Caller:
    """Calls of NVML on one GPU."""

    def __init__(self, nvml: Nvml, handle: Any, device: str) -> None:
        self._nvml = nvml
        self._handle = handle
        self._device = device

    def _call(self, name: str, *arguments: Any, handle: Any = None) -> Any:
        """Return the result of a call; None: not supported, or no result."""
        handle = self._handle if handle is None else handle
        return self._nvml.attempt(f"nvmlDeviceGet{name}", handle, *arguments, subject=self._device)[0]

    def pids(self, handle: Any = None, lists: Sequence[str] = _LISTS) -> tuple[int, ...]:
        """Return the processes that hold the GPU, or a slice of it."""
        found: dict[int, None] = {}
        for name in lists:
            processes = self._call(f"{name}_v3", handle=handle)
            if processes is None:
                processes = self._call(f"{name}_v2", handle=handle) or ()
            found.update(dict.fromkeys(int(process.pid) for process in processes))
        return tuple(found)

    def modes(self, seen_us: int) -> _Modes:
        """Find out what the GPU supports now."""
        mig = self._call("MigMode")
        if mig and mig[0]:
            return _Modes(mode="slices", slices=self._slices())
        # With accounting mode off, the function ends with another error.
        _, code = self._nvml.attempt("nvmlDeviceGetAccountingStats_v2", self._handle, 0, subject=self._device)
        accounting = None if code == FUNCTION_NOT_FOUND else self._call("AccountingMode")
        if accounting:
            return _Modes(mode="accounting")
        is_off = accounting == 0
        if self.samples(seen_us) is not None:
            return _Modes(mode="samples", is_accounting_off=is_off)
        mode: Mode = "holders" if self.percent() is None else "whole"
        return _Modes(mode=mode, is_accounting_off=is_off)

    def _slices(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        slices = []
        for index in range(self._call("MaxMigDeviceCount") or 0):
            handle = self._call("MigDeviceHandleByIndex", index)
            if handle is None:
                continue
            attributes = self._call("Attributes", handle=handle)
            multiprocessors = int(attributes.multiprocessorCount) if attributes is not None else 0
            slices.append((multiprocessors, self.pids(handle, _LISTS[:1])))
        return tuple(slices)

    def samples(self, seen_us: int) -> list[_Sample] | None:
        """Return the samples after a time; None: not supported."""
        samples, code = self._nvml.attempt(
            "nvmlDeviceGetProcessUtilization", self._handle, seen_us, subject=self._device
        )
        if samples is None:
            return [] if code in (0, NOT_FOUND) else None
        return [_Sample(int(one.pid), int(one.timeStamp), int(one.smUtil)) for one in samples]

    def percent(self) -> float | None:
        """Return the utilisation of the whole GPU; None: not supported."""
        rates = self._call("UtilizationRates")
        return None if rates is None else float(rates.gpu)

    def accounts(self, ended: Mapping[int, _Account], now_us: int) -> list[_Account]:
        """Return the statistics of all processes that the driver remembers.

        Args:
            ended: Processes that had ended before; their statistics are final.
            now_us: Unix time.
        """
        accounts = []
        for pid in self._call("AccountingPids") or ():
            account = ended.get(pid)
            if account is None:
                stats = self._call("AccountingStats_v2", pid)
                if stats is None:
                    continue
                is_running, samples = bool(stats.isRunning), int(stats.sampleCount)
                elapsed_s = max(now_us - stats.startTime, 0) / _US_PER_S if is_running else stats.time / 1000
                busy = min(stats.sumGpuUtil / _ACCOUNTING_UNIT / samples, 1.0) if samples else 0.0
                account = _Account(pid, int(stats.startTime), busy * elapsed_s, is_running)
            accounts.append(account)
        return accounts


class NvmlUsageSource:
    """All GPUs of the collector ``nvml``."""

    name: ClassVar[str] = "nvml"
    components: ClassVar[tuple[Component, ...]] = ("gpu",)
    Options: ClassVar[type] = GpuOptions

    def __init__(self, host: Host, options: GpuOptions, clock: Clock | None = None) -> None:
        """Look at the GPUs once, if the collector is open.

        Args:
            host: Where procfs and the cgroups are.
            options: The settings.
            clock: Replaces the machine's clock in tests.
        """
        self._processes = Processes(host, options)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._gpus: dict[str, _Gpu] = {}
        self._kept: frozenset[int] = frozenset()
        self._keep_due_ns = 0
        self.read(())

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Look at the GPUs once, if the collector is open; they may come later.

        Args:
            host: Where procfs, sysfs and the device files are.
            options: `GpuOptions`.

        Raises:
            SensorAbsentError: There is no NVIDIA GPU.
        """
        assert isinstance(options, GpuOptions)
        if shared_nvml() is None and find_library(host, None) is None:
            find_evidence(host)
        return cls(host, options)

    @property
    def findings(self) -> Sequence[Finding]:
        """Return how each GPU is shared, and what would make it better."""
        if shared_nvml() is None:
            text = "the collector nvml is not open, so the GPUs have no energy to share"
            return (Finding(status="skipped", collector=self.name, subject="NVML", text=text),)
        findings = []
        for device, gpu in self._gpus.items():
            modes = gpu.modes
            if modes is None:
                continue
            users = f"; processes: {len(gpu.pids)}" if gpu.pids else ""
            findings.append(self._finding("found", device, f"{_TEXTS[modes.mode]}{users}"))
            if modes.is_accounting_off:
                findings.append(self._finding("skipped", device, _ACCOUNTING_OFF, _ACCOUNTING_CURE))
            if gpu.missing:
                findings.append(self._finding("skipped", device, _NOT_IN_PROCFS.format(gpu.missing), _PROCFS_CURE))
        return tuple(findings)

    def read(self, keys: Collection[str]) -> UsageScan:
        """Read all workloads: few processes use GPUs."""
        nvml = shared_nvml()
        usages: dict[str, Sequence[Usage]] = {}
        weights: dict[str, Weight] = {}
        holders: dict[str, Sequence[str]] = {}
        for device in nvml.devices if nvml is not None else ():
            assert nvml is not None
            gpu = self._gpus.get(device)
            if gpu is None:
                gpu = self._gpus[device] = _Gpu(device, self._processes, self._clock.time_ns() // 1000)
            try:
                self._ask(nvml, gpu)
            except SensorError:
                continue  # the sensor of this GPU reports it
            now_ns = self._clock.monotonic_ns()
            holders[device] = tuple(sorted(gpu.held))
            of_gpu = gpu.usages(now_ns)
            if of_gpu is not None:
                usages[device] = of_gpu
                weights[device] = gpu.weight
        self._keep()
        return UsageScan(usages=usages, weights=weights, holders=holders)

    def survey(self) -> UsageScan:
        """Read all workloads."""
        return self.read(())

    def workload(self, key: str) -> Workload:
        """Return the names of a workload."""
        return self._processes.workload(key)

    def close(self) -> None:
        """Do nothing: the collector has the library."""

    def _ask(self, nvml: SharedNvml, gpu: _Gpu) -> None:
        now_ns = self._clock.monotonic_ns()
        if now_ns - gpu.asked_ns >= _ASK_NS or not gpu.asked_ns:
            now_us = self._clock.time_ns() // 1000
            is_list_due = now_ns - gpu.listed_ns >= _LIST_NS
            gpu.seen_us = min(gpu.seen_us, now_us)  # the wall clock may be set back
            answer = nvml.ask(gpu.device, partial(gpu.ask, nvml.nvml, now_us, is_list_due), _TIMEOUT_S)
            if answer.pids is not None:
                gpu.pids = answer.pids
            gpu.hold()
            gpu.take(answer, now_us, now_ns)
        else:
            gpu.hold()

    def _keep(self) -> None:
        """Forget processes that have held no GPU for a while: the last sample of one comes after its end."""
        now_ns = self._clock.monotonic_ns()
        if now_ns >= self._keep_due_ns:
            self._keep_due_ns = now_ns + 2 * _LIST_NS
            pids = frozenset(pid for gpu in self._gpus.values() for pid in gpu.pids)
            self._processes.keep(pids | self._kept)
            self._kept = pids

    def _finding(self, status: Literal["found", "skipped"], device: str, text: str, cure: str = "") -> Finding:
        return Finding(status=status, collector=self.name, subject=device, text=text, cure=cure)
