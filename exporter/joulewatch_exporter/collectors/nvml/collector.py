"""NVIDIA GPUs through NVML: energy counters, and momentary, averaged and memory power, of physical GPUs only.

One device per GPU, identified by its UUID. Its domain ``total`` is the energy counter if the GPU has one (Volta and
newer), else its integrated power. Its parts are ``instant`` (in addition to a counter) and ``average``, two other
measurements of the same power, and ``memory``, which is inside. MIG slices have neither power nor energy and are never
published. On a superchip the part ``module`` contains the GPU and a CPU, and the counter is not used (see `gpu`).

**A hanging GPU delays only itself.** Each GPU has its own thread for all its calls, and each call has a deadline. After
a missed deadline, reads of this GPU fail at once until the call returns.

**The family finds lost and new devices itself.** NVML exists once per process and lists its devices when it is
initialised. To find a GPU that was lost or plugged in, NVML must be shut down and initialised again with no other
reference left; earlier handles may then refer to other GPUs, and this is not safe while a call hangs. So the collector
keeps one reference, and its watcher thread restarts NVML while all reads are blocked, never while a call hangs. The
pauses between restarts get longer as long as a GPU stays lost: reads of the other GPUs wait for a restart, but not
longer than half of a call's deadline, and without persistence mode the driver may power them down for a moment.

**One read per second is enough.** Neither the counter nor the 1 s average misses anything between two reads, and a call
takes between less than a millisecond and tens of milliseconds of driver time on the measured machine. If a GPU reports
only momentary power (Pascal and older), it is read ten times per second, because changes between two reads are missed.

`gpu` detects what a GPU can report and how accurate it is; `library` interprets NVML's error codes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

from joulewatch_exporter.collectors.base.sysfs import list_names
from joulewatch_exporter.collectors.nvml.batch import Batch
from joulewatch_exporter.collectors.nvml.conditions import ASKED_NS
from joulewatch_exporter.collectors.nvml.gpu import Description, describe, plausible_limit
from joulewatch_exporter.collectors.nvml.library import (
    Nvml,
    find_evidence,
    find_library,
    import_nvml,
    load_library,
)
from joulewatch_exporter.collectors.nvml.sensor import NOT_YET, Gate, Gpu, GpuSensor
from joulewatch_exporter.collectors.nvml.shared import GpuConditions, share, withdraw
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Finding, Host, Reading, Sensor, Throttled, Timing
from joulewatch_exporter.threads import DeadlineThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

Status = Literal["found", "absent", "denied", "skipped", "broken"]

PROBE_S: Final = 10.0
"""How often to probe for lost, unresponsive and new GPUs."""
THROTTLING_S: Final = 2.0
"""How often throttled time is read, and the other conditions. Not in scrapes: more calls would delay them."""
FIRST_RESTART_S: Final = 30.0
LONGEST_RESTART_S: Final = 600.0
"""Pause before NVML is restarted to find a lost GPU; doubled after each restart, up to the longest one."""

LONGEST_BATCH_S: Final = 0.5
"""If one GPU may take longer, each is read on its own, because nobody can abandon ``prepare``."""

_POLL_S: Final = 1.0
_MOMENTARY_POLL_S: Final = 0.1
_OPEN_S: Final = 8.0
"""Without persistence mode the driver wakes up every GPU when NVML starts, one or two seconds each."""
_DESCRIBE_S: Final = 5.0
_CLOSE_S: Final = 1.0

_HANG_FIX: Final = "sudo dmesg | grep -e NVRM -e Xid"

_NOT_LISTED: Final = SensorAbsentError("NVML has removed this GPU from its list: it is lost or unplugged")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlOptions:
    """Settings under ``collectors.nvml``."""

    library: Path | None = None
    """Load only this libnvidia-ml.so.1; for containers, NixOS and emulated GPUs."""
    call_timeout_seconds: float = 0.5
    """A GPU that does not answer within this time is down until its call returns."""
    average: bool = True
    """Publish the 1 s average if the GPU reports one."""
    memory: bool = True
    """Publish the power of the memory if the GPU reports it."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of range; the text begins with the key.
        """
        if not 0 < self.call_timeout_seconds <= 60:
            raise ValueError(f"call_timeout_seconds: {self.call_timeout_seconds:g} is not above 0 and at most 60")


class NvmlCollector:
    """All physical NVIDIA GPUs of this machine."""

    name: ClassVar[str] = "nvml"
    experimental: ClassVar[str] = "has not been run on an NVIDIA GPU"
    Options: ClassVar[type] = NvmlOptions

    def __init__(self, host: Host, options: NvmlOptions, library: Path | None, module: Any) -> None:
        self.nvml = Nvml(module, host.dev)
        self.gate = Gate(SensorGlitchError("NVML is being started"))
        self.gpus: dict[str, Gpu] = {}
        """UUID -> GPU, in the order of detection; lost GPUs stay."""
        self.call_timeout_s = options.call_timeout_seconds
        self._options = options
        self._library = library
        self._sysfs = host.sysfs
        self._procfs_gpus = f"{host.procfs}/driver/nvidia/gpus"
        self._sensors: tuple[GpuSensor, ...] = ()
        self._sensors_lock = threading.Lock()
        self._unresponsive: list[tuple[int, DeadlineThread]] = []
        """GPUs, by NVML's index, that did not answer when they were added, and the threads that still wait."""
        self._failed: dict[int, SensorError] = {}
        """GPUs, by NVML's index, that could not be added, and why."""
        self._findings_by_index: dict[int, tuple[Finding, ...]] = {}
        self._throttled: tuple[Throttled, ...] = ()
        self._batch = Batch()
        """What the present scan has read."""
        self._asked_until_ns = 0
        """Until when the conditions are read in the background."""
        self._driver = "unknown"
        self._list_at_start: object = None
        """The driver's list of GPUs when NVML was started."""
        self._is_started = False
        self._next_restart_s = 0.0
        self._restart_pause_s = FIRST_RESTART_S
        self._first_error: Exception | None = None
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="nvml-watch", daemon=True)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """One sensor per GPU that has ever answered; lost GPUs stay, as down."""
        return self._sensors

    @property
    def timing(self) -> Timing:
        """One read per second, or ten if a GPU reports only momentary power."""
        is_momentary = any(sensor.is_momentary for sensor in self._sensors)
        poll_s = _MOMENTARY_POLL_S if is_momentary else _POLL_S
        return Timing(poll_s=poll_s, read_on_scrape=True, manages_devices=True)

    @property
    def findings(self) -> Sequence[Finding]:
        """Detected GPUs, excluded quantities, and GPUs that do not answer."""
        findings = [finding for _, of_gpu in sorted(self._findings_by_index.items()) for finding in of_gpu]
        if not self._ready.is_set():
            text = f"no answer within {_OPEN_S:g} s; GPUs are published once they answer"
            findings.append(_finding("broken", "nvmlInit", text, _HANG_FIX))
        return tuple(findings)

    @property
    def throttled(self) -> Sequence[Throttled]:
        """How long the clocks of each GPU were lower, by reason; the same object until the next read."""
        return self._throttled

    @property
    def devices(self) -> Sequence[str]:
        """UUIDs of the GPUs that answer."""
        return [uuid for uuid, gpu in list(self.gpus.items()) if gpu.lost is None]

    @property
    def outdated(self) -> bool:
        """Return False: the family finds new devices itself."""
        return False

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Start NVML and add the GPUs.

        Args:
            host: Where sysfs, procfs and the device files are.
            options: `NvmlOptions`.

        Raises:
            SensorAbsentError: There is no NVIDIA GPU or no driver, or nvidia-ml-py is missing.
            SensorDeniedError: There are GPUs, but none can be used.
        """
        assert isinstance(options, NvmlOptions)
        library = find_library(host, options.library)
        evidence = str(library) if library is not None else find_evidence(host)
        collector = cls(host, options, library, import_nvml(evidence))
        collector._watcher.start()
        if collector._ready.wait(_OPEN_S) and (error := collector._first_error) is not None:
            collector.close()
            if isinstance(error, SensorError) and not isinstance(error, SensorAbsentError | SensorDeniedError):
                raise SensorAbsentError(str(error)) from error
            raise error
        share(collector)
        return collector

    def prepare(self) -> None:
        """Read together all GPUs that are neither lost nor hanging, for the scan that begins now."""
        before, self._batch = self._batch, Batch()
        # If they take long together, the deadline of one is too short for all.
        is_slow = self.call_timeout_s > LONGEST_BATCH_S or before.took_s > self.call_timeout_s / 4
        if is_slow or self.gate.enter() is not None:
            return
        try:
            gpus = [gpu for gpu in list(self.gpus.values()) if gpu.lost is None and not gpu.thread.is_hanging]
            if gpus:
                self._batch.read(gpus, self.call_timeout_s)
        finally:
            self.gate.leave()

    def prepared(self, sensor: GpuSensor) -> Sequence[Reading] | Exception | None:
        """Return what ``prepare`` has read: see `sensor.Owner`."""
        return self._batch.take(sensor)

    def settle(self, timeout_s: float) -> None:
        """Return at once: GPUs are read on demand."""

    def close(self) -> None:
        """Shut NVML down, unless a call hangs in it, and end the threads."""
        if self._stop.is_set():
            return
        withdraw(self)
        self._stop.set()
        self._watcher.join(_CLOSE_S)
        for thread in self._threads():
            thread.close()

    def ask(self, device: str, function: Callable[[Any], T], timeout_s: float) -> T:
        """Return the result of a function of NVML's handle of a GPU: see `shared.SharedNvml`."""
        reason = self.gate.enter()
        if reason is not None:
            raise type(reason)(str(reason))
        try:
            gpu = self.gpus.get(device)
            if gpu is None:
                raise _NOT_LISTED
            if gpu.lost is not None:
                raise type(gpu.lost)(str(gpu.lost))
            with gpu.side_lock:
                return gpu.side.call(lambda: function(gpu.handle), timeout_s)
        finally:
            self.gate.leave()

    def read_throttling(self) -> None:
        """Read throttled time, and the other conditions if somebody asks for them.

        The watcher thread calls this every ``THROTTLING_S``.
        """
        if time.monotonic_ns() < self._asked_until_ns:
            self._read_conditions(settings=True)
        else:
            for uuid in self.devices:
                read = functools.partial(self.gpus[uuid].throttling.read, self.nvml, uuid)
                with contextlib.suppress(SensorError):  # the sensor of this GPU reports it
                    self.ask(uuid, read, self.call_timeout_s)
        throttled = tuple(
            [
                Throttled(device, reason, seconds)
                for device in self.devices
                for reason, seconds in self.gpus[device].throttling.seconds.items()
            ]
        )
        if throttled != self._throttled:
            self._throttled = throttled

    def read_conditions(self) -> Sequence[GpuConditions]:
        """Read the conditions of all GPUs now: see `shared.SharedNvml`."""
        self._asked_until_ns = time.monotonic_ns() + ASKED_NS
        return self._read_conditions()

    def _read_conditions(self, *, settings: bool = False) -> Sequence[GpuConditions]:
        answers = []
        for uuid in self.devices:
            gpu = self.gpus[uuid]
            conditions = gpu.conditions
            reads = [functools.partial(conditions.read, self.nvml, uuid, gpu.throttling)]
            if settings or conditions.has_outdated_settings:
                reads.append(functools.partial(conditions.read_settings, self.nvml, uuid))
            with contextlib.suppress(SensorError):  # the sensor of this GPU reports it
                for read in reads:
                    self.ask(uuid, read, self.call_timeout_s)
                answers.append(GpuConditions(uuid, conditions.counters, conditions.settings))
        return answers

    def update_limit(self, sensor: GpuSensor, limit_mw: int | None) -> None:
        """Publish the power limit that a GPU enforces now; a new limit requires a new sensor."""
        gpu = self.gpus[sensor.device]
        limit_mw = plausible_limit(limit_mw)
        if limit_mw is None or limit_mw == sensor.description.limit_mw or gpu.sensor is not sensor:
            return
        channels = tuple(
            [
                replace(channel, info=replace(channel.info, limit_watts=limit_mw / 1000))
                if channel.info.relation != "contains"
                else channel
                for channel in sensor.description.channels
            ]
        )
        gpu.sensor = GpuSensor(self, replace(sensor.description, limit_mw=limit_mw, channels=channels))
        self._publish()

    def probe_again(self) -> None:
        """Probe for lost, unresponsive and new GPUs; the watcher thread calls this every ``PROBE_S``."""
        if not self._is_started:
            self._restart_if_due()
            return
        unresponsive, self._unresponsive = self._unresponsive, []
        for index, thread in unresponsive:
            if thread.is_hanging:
                self._unresponsive.append((index, thread))
            else:
                self._add(index, thread)
        for index in tuple(self._failed):
            self._add(index, DeadlineThread("nvml-gpu"))
        for uuid, gpu in self.gpus.items():
            if gpu.lost is not None and not gpu.thread.is_hanging:
                self._recover(uuid, gpu)
        failures = [gpu.lost for gpu in self.gpus.values() if gpu.lost is not None] + list(self._failed.values())
        if self.nvml.is_uninitialised or self._list() != self._list_at_start:
            self._restart()
        elif any(not isinstance(failure, SensorDeniedError) for failure in failures):
            self._restart_if_due()
        else:
            self._next_restart_s, self._restart_pause_s = 0.0, FIRST_RESTART_S

    # -- the watcher thread -----------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._start()
            if not self.gpus and not self._unresponsive:
                raise _no_gpu_error(self.findings)
            self.read_throttling()
        except Exception as error:
            self._first_error = error
        finally:
            self._ready.set()
        probe_due_s = time.monotonic() + PROBE_S
        while not self._stop.wait(min(THROTTLING_S, PROBE_S)):
            try:
                self.read_throttling()
                if time.monotonic() < probe_due_s:
                    continue
                probe_due_s = time.monotonic() + PROBE_S
                self.probe_again()
            except Exception as error:
                if not isinstance(error, SensorError):
                    logger.exception("nvml: probing for GPUs failed")
        self.gate.block(SensorGlitchError("NVML is closed"), self.call_timeout_s)
        if self._is_started and not any(thread.is_hanging for thread in self._threads()):
            self._shut_down()

    def _start(self) -> None:
        """Start NVML and add the GPUs, each of which can be read as soon as it is added.

        Raises:
            SensorError: NVML does not start; no GPU is read until it does.
        """
        nvml = self.nvml
        try:
            if self._library is not None:
                load_library(self._library, nvml)
            nvml.call("nvmlInit", subject="NVML")
            self._is_started = True
            nvml.is_uninitialised = False
            self._list_at_start = self._list()
            count = int(nvml.call("nvmlDeviceGetCount", subject="NVML"))
        except SensorError as error:
            self.gate.block(error, self.call_timeout_s)
            if self._is_started:
                self._shut_down()
            raise
        driver, _ = nvml.attempt("nvmlSystemGetDriverVersion", subject="NVML")
        self._driver = str(driver or "unknown")
        for gpu in self.gpus.values():
            gpu.lost = NOT_YET
        for _, thread in self._unresponsive:
            thread.close()
        self._unresponsive.clear()
        self._failed.clear()
        self._findings_by_index.clear()
        self.gate.open()
        for index in range(count):
            self._add(index, DeadlineThread("nvml-gpu"))
        for gpu in self.gpus.values():
            if gpu.lost is NOT_YET:
                gpu.lost = _NOT_LISTED
        self.gate.notify()

    def _shut_down(self) -> None:
        with contextlib.suppress(SensorError):
            self.nvml.call("nvmlShutdown", subject="NVML")
        self._is_started = False

    def _restart_if_due(self) -> None:
        if time.monotonic() >= self._next_restart_s and self._is_quiet():
            self._next_restart_s = time.monotonic() + self._restart_pause_s
            self._restart_pause_s = min(2 * self._restart_pause_s, LONGEST_RESTART_S)
            self._restart()

    def _restart(self) -> None:
        """Restart NVML, so that it lists its devices again; does nothing while a call hangs."""
        if not self._is_quiet():
            return
        reason = SensorGlitchError("NVML is being restarted to find GPUs")
        if not self.gate.block(reason, self.call_timeout_s + 1.0, is_brief=True) or not self._is_quiet():
            self.gate.open()
            return
        logger.info("nvml: restarting NVML to find GPUs")
        if self._is_started:
            self._shut_down()
        self._start()

    def _is_quiet(self) -> bool:
        """Return whether no call hangs: whether, within the deadline of a call, all calls have returned."""
        end_s = time.monotonic() + self.call_timeout_s
        while any(thread.is_hanging for thread in self._threads()):
            if time.monotonic() >= end_s or self._stop.wait(0.001):
                return False
        return True

    def _list(self) -> object:
        """Return the driver's list of GPUs; without procfs, as in some containers, NVML's count."""
        try:
            return tuple(list_names(self._procfs_gpus))
        except SensorError:
            return self.nvml.call("nvmlDeviceGetCount", subject="NVML")

    def _threads(self) -> list[DeadlineThread]:
        gpus = list(self.gpus.values())
        own = [thread for gpu in gpus for thread in (gpu.thread, gpu.side)]
        return own + [thread for _, thread in self._unresponsive]

    # -- adding GPUs ----------------------------------------------------------------------------

    def _add(self, index: int, thread: DeadlineThread) -> None:
        """Detect what the GPU at one of NVML's indices can report, and publish it."""
        subject = f"GPU {index}"
        self._failed.pop(index, None)
        try:
            handle, description = thread.call(lambda: self._describe_index(index), _DESCRIBE_S)
        except SensorTimeoutError:
            self._unresponsive.append((index, thread))
            text = f"no answer within {_DESCRIBE_S:g} s; published once it answers"
            self._findings_by_index[index] = (_finding("broken", subject, text, _HANG_FIX),)
            return
        except Exception as error:
            thread.close()
            if isinstance(error, SensorDeniedError):
                self._failed[index] = error
                self._findings_by_index[index] = (_finding("denied", subject, str(error), self.nvml.devices_fix),)
            else:
                # Any other error concerns only this GPU.
                text = str(error) if isinstance(error, SensorError) else f"{type(error).__name__}: {error}"
                self._failed[index] = SensorGlitchError(text)
                self._findings_by_index[index] = (_finding("broken", subject, text),)
            return
        uuid = description.uuid
        problem = ""
        if uuid.startswith("MIG-"):
            problem = "a MIG slice: it has neither power nor energy"
        elif not description.channels:
            problem = f"{description.label}: reports neither energy nor power"
        elif uuid in self.gpus and self.gpus[uuid].lost is None:
            problem = f"{description.label}: listed twice, read once"
        if problem:
            thread.close()
            self._findings_by_index[index] = (_finding("skipped", uuid, problem),)
            return
        self._findings_by_index[index] = _findings(description)
        known = self.gpus.get(uuid)
        if known is None:
            self.gpus[uuid] = Gpu(thread, handle, GpuSensor(self, description))
        else:
            thread.close()
            self._rebind(known, handle, description)
        self._publish()

    def _recover(self, uuid: str, gpu: Gpu) -> None:
        """Check whether a lost GPU answers again, without restarting NVML."""
        try:
            handle, description = gpu.thread.call(lambda: self._describe_uuid(uuid), _DESCRIBE_S)
        except SensorError:
            return
        if description.channels:
            self._rebind(gpu, handle, description)
            self._publish()

    def _rebind(self, gpu: Gpu, handle: Any, description: Description) -> None:
        """Continue with a known GPU; it keeps its sensor unless the description changed."""
        gpu.handle = handle
        if description != gpu.sensor.description:
            gpu.sensor = GpuSensor(self, description)
        gpu.lost = None
        self.gate.notify()

    def _publish(self) -> None:
        with self._sensors_lock:
            sensors = tuple([gpu.sensor for gpu in list(self.gpus.values())])
            if sensors != self._sensors:
                self._sensors = sensors

    def _describe_index(self, index: int) -> tuple[Any, Description]:
        handle = self.nvml.call("nvmlDeviceGetHandleByIndex", index, subject=f"GPU {index}")
        return handle, self._describe(handle)

    def _describe_uuid(self, uuid: str) -> tuple[Any, Description]:
        handle = self.nvml.call("nvmlDeviceGetHandleByUUID", uuid, subject=uuid)
        return handle, self._describe(handle)

    def _describe(self, handle: Any) -> Description:
        options = self._options
        return describe(
            self.nvml,
            handle,
            driver=self._driver,
            average=options.average,
            memory=options.memory,
            sysfs=self._sysfs,
        )


# -- findings ----------------------------------------------------------------------------------------


def _finding(status: Status, subject: str, text: str, fix: str = "") -> Finding:
    return Finding(status=status, collector="nvml", subject=subject, text=text, cure=fix)


def _findings(description: Description) -> tuple[Finding, ...]:
    quantities = [
        "energy counter" if channel.is_energy else f"{channel.info.quantity.domain} power"
        for channel in description.channels
    ]
    limit = f"; limit {description.limit_mw / 1000:g} W" if description.limit_mw else ""
    finding = _finding("found", description.uuid, f"{description.label}: {', '.join(quantities)}{limit}")
    return (finding, *[_finding("skipped", description.uuid, note) for note in description.notes])


def _no_gpu_error(findings: Sequence[Finding]) -> SensorError:
    for finding in findings:
        if finding.status == "denied":
            return SensorDeniedError(finding.text)
    reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
    return SensorAbsentError(f"NVML lists no GPU{reasons}")
