"""NVIDIA GPUs by NVML: energy counters, and momentary, averaged and memory power, of physical GPUs only.

One device per GPU, known by its UUID. Its domain ``total`` is the energy counter where the GPU has one (Volta and
newer), else its power, integrated. Parts of it: ``instant`` (beside a counter) and ``average``, the same power measured
otherwise, and ``memory``, which is inside. MIG slices have neither power nor energy of their own and never appear. The
power of a superchip's module (scope 1) holds the GPU and a CPU that has a meter of its own, so it is no part of
anything that is published here: it is left out.

**A GPU that hangs holds up itself only.** Each GPU has a thread of its own for all its calls and a deadline for each;
after one that was missed it fails at once until the call has come back.

**This family looks after its devices itself.** NVML is one per process and lists its devices when the first reference
is taken. To find a GPU again that was lost, or plugged in, NVML has to be shut down and started anew with no other
reference left; handles from before may then mean other GPUs, and doing so under a call that hangs is not safe. So one
collector holds one reference for good, and a watching thread of its own does this with all reads shut out, never while
a call hangs, and for a GPU that stays lost ever more seldom: each start costs the other GPUs a read, and without
persistence mode the driver may power them down for a moment.

**Once a second** is enough: the counter misses nothing between two reads, nor does the 1 s average, and a call takes
from less than a millisecond to tens of them, in the driver, beside the load that is measured. Only where momentary
power is all there is (Pascal and older) it is read ten times a second, as the load between two reads is lost.

What a GPU can tell, and how well: `gpu`. What NVML's codes mean: `library`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.sysfs import list_names
from joulewatch_exporter.collectors.nvml.gpu import (
    Description,
    believable_limit,
    describe,
)
from joulewatch_exporter.collectors.nvml.library import (
    DEVICES_CURE,
    Nvml,
    find_library,
    find_trace,
    import_nvml,
    load_library,
)
from joulewatch_exporter.collectors.nvml.sensor import Gate, Gpu, GpuSensor
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Finding, Host, Sensor, Timing
from joulewatch_exporter.threads import DeadlineThread

logger = logging.getLogger(__name__)

Status = Literal["found", "absent", "denied", "skipped", "broken"]

LOOK_S: Final = 10.0
"""How often to look for GPUs that were lost, were silent, or are new."""
FIRST_RESTART_S: Final = 30.0
LONGEST_RESTART_S: Final = 600.0
"""A lost GPU is looked for with a new start of NVML after so long, then twice that, and so on."""

_POLL_S: Final = 1.0
_MOMENTARY_POLL_S: Final = 0.1
_OPEN_S: Final = 8.0
"""Without persistence mode the driver wakes every GPU for NVML's start, a second or two for each."""
_DESCRIBE_S: Final = 5.0
_CLOSE_S: Final = 1.0

_HANG_CURE: Final = "sudo dmesg | grep -e NVRM -e Xid"

_NOT_YET: Final = SensorGlitchError("NVML was started anew and this GPU is not taken up yet")
_NOT_LISTED: Final = SensorAbsentError("NVML does not give this GPU any more: it is lost, or unplugged")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlOptions:
    """Settings under ``collectors.nvml``."""

    library: Path | None = None
    """Load this libnvidia-ml.so.1 and no other: for containers, NixOS and emulated GPUs."""
    call_timeout_seconds: float = 0.5
    """A GPU that has not answered by then is down until its call comes back."""
    average: bool = True
    """Publish the 1 s average where the GPU gives one."""
    memory: bool = True
    """Publish the power of the memory where the GPU gives it."""

    def __post_init__(self) -> None:
        """Check what came from a file.

        Raises:
            ValueError: A value is out of its range; the text names the key.
        """
        if not 0 < self.call_timeout_seconds <= 60:
            raise ValueError(f"call_timeout_seconds: {self.call_timeout_seconds:g} is not above 0 and at most 60")


class NvmlCollector:
    """All physical NVIDIA GPUs of this machine."""

    name: ClassVar[str] = "nvml"
    Options: ClassVar[type] = NvmlOptions

    def __init__(self, host: Host, options: NvmlOptions, library: Path | None, module: Any) -> None:
        self.nvml = Nvml(module, host.dev)
        self.gate = Gate(SensorGlitchError("NVML is being started"))
        self.gpus: dict[str, Gpu] = {}
        """By UUID, in the order in which they were found; a GPU that is lost stays."""
        self.call_timeout_s = options.call_timeout_seconds
        self._options = options
        self._library = library
        self._procfs_gpus = f"{host.procfs}/driver/nvidia/gpus"
        self._sensors: tuple[GpuSensor, ...] = ()
        self._sensors_lock = threading.Lock()
        self._silent: list[tuple[int, DeadlineThread]] = []
        """GPUs, by NVML's index, that did not answer when they were to be taken up, and the threads that wait."""
        self._refused: dict[int, SensorError] = {}
        """GPUs, by NVML's index, that could not be taken up, and why."""
        self._found: dict[int, tuple[Finding, ...]] = {}
        self._driver = "unknown"
        self._listed: object = None
        """Which GPUs there were when NVML was started."""
        self._is_started = False
        self._next_restart_s = 0.0
        self._restart_pause_s = FIRST_RESTART_S
        self._first_error: Exception | None = None
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="nvml-watch", daemon=True)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """One for each GPU that has ever answered; lost ones stay, as down."""
        return self._sensors

    @property
    def timing(self) -> Timing:
        """Once a second, or ten times where the power of the moment is all that a GPU gives."""
        is_momentary = any(sensor.is_momentary for sensor in self._sensors)
        poll_s = _MOMENTARY_POLL_S if is_momentary else _POLL_S
        return Timing(poll_s=poll_s, read_on_scrape=True, looks_after_itself=True)

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found, what of it is left out and why, and what does not answer."""
        found = [finding for _, findings in sorted(self._found.items()) for finding in findings]
        if not self._ready.is_set():
            text = f"no answer within {_OPEN_S:g} s; what does not answer is shown when it does"
            found.append(_finding("broken", "nvmlInit", text, _HANG_CURE))
        return tuple(found)

    @property
    def outdated(self) -> bool:
        """Never: it looks after its devices itself."""
        return False

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Start NVML and take up the GPUs.

        Args:
            host: Where sysfs, procfs and the device files are.
            options: `NvmlOptions`.

        Raises:
            SensorAbsentError: No NVIDIA GPU, no driver, or nvidia-ml-py is missing.
            SensorDeniedError: There are GPUs, and none may be used.
        """
        assert isinstance(options, NvmlOptions)
        library = find_library(host, options.library)
        trace = str(library) if library is not None else find_trace(host)
        collector = cls(host, options, library, import_nvml(trace))
        collector._watcher.start()
        if collector._ready.wait(_OPEN_S) and (error := collector._first_error) is not None:
            collector.close()
            if isinstance(error, SensorError) and not isinstance(error, SensorAbsentError | SensorDeniedError):
                raise SensorAbsentError(str(error)) from error
            raise error
        return collector

    def settle(self, timeout_s: float) -> None:
        """Return at once: it is read on demand."""

    def close(self) -> None:
        """Give NVML's reference back, unless a call hangs in it, and let the threads end."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._watcher.join(_CLOSE_S)
        for thread in self._threads():
            thread.close()

    def see_limit(self, sensor: GpuSensor, limit_mw: int | None) -> None:
        """Take note of the limit that a GPU enforces now; another one makes another sensor of it."""
        gpu = self.gpus[sensor.device]
        limit_mw = believable_limit(limit_mw)
        if limit_mw is None or limit_mw == sensor.description.limit_mw or gpu.sensor is not sensor:
            return
        channels = tuple(
            [
                replace(channel, info=replace(channel.info, limit_watts=limit_mw / 1000))
                for channel in sensor.description.channels
            ]
        )
        gpu.sensor = GpuSensor(self, replace(sensor.description, limit_mw=limit_mw, channels=channels))
        self._publish()

    def look_again(self) -> None:
        """Look for GPUs that were lost, silent or not there; done by the watching thread every ``LOOK_S``."""
        if not self._is_started:
            self._restart_if_due()
            return
        silent, self._silent = self._silent, []
        for index, thread in silent:
            if thread.is_hanging:
                self._silent.append((index, thread))
            else:
                self._take_up(index, thread)
        for index in tuple(self._refused):
            self._take_up(index, DeadlineThread(f"nvml-{index}"))
        for uuid, gpu in self.gpus.items():
            if gpu.lost is not None and not gpu.thread.is_hanging:
                self._take_up_again(uuid, gpu)
        failures = [gpu.lost for gpu in self.gpus.values() if gpu.lost is not None] + list(self._refused.values())
        if self.nvml.is_uninitialised or self._list() != self._listed:
            self._restart()
        elif any(not isinstance(failure, SensorDeniedError) for failure in failures):
            self._restart_if_due()
        else:
            self._next_restart_s, self._restart_pause_s = 0.0, FIRST_RESTART_S

    # -- the watching thread -----------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._start()
            if not self.gpus and not self._silent:
                raise _nothing_found(self.findings)
        except Exception as error:
            self._first_error = error
        finally:
            self._ready.set()
        while not self._stop.wait(LOOK_S):
            try:
                self.look_again()
            except Exception as error:
                if not isinstance(error, SensorError):
                    logger.exception("looking for GPUs again failed")
        self.gate.shut(SensorGlitchError("NVML is closed"), self.call_timeout_s)
        if self._is_started and not any(thread.is_hanging for thread in self._threads()):
            self._shut_down()

    def _start(self) -> None:
        """Start NVML, and let the GPUs be read one after the other as they are taken up.

        Raises:
            SensorError: It does not start; nothing is read until it does.
        """
        nvml = self.nvml
        try:
            if self._library is not None:
                load_library(self._library, nvml)
            nvml.call("nvmlInit", subject="NVML")
            self._is_started = True
            nvml.is_uninitialised = False
            self._listed = self._list()
            count = int(nvml.call("nvmlDeviceGetCount", subject="NVML"))
        except SensorError as error:
            self.gate.shut(error, self.call_timeout_s)
            if self._is_started:
                self._shut_down()
            raise
        driver, _ = nvml.attempt("nvmlSystemGetDriverVersion", subject="NVML")
        self._driver = str(driver or "unknown")
        for gpu in self.gpus.values():
            gpu.lost = _NOT_YET
        for _, thread in self._silent:
            thread.close()
        self._silent.clear()
        self._refused.clear()
        self._found.clear()
        self.gate.open()
        for index in range(count):
            self._take_up(index, DeadlineThread(f"nvml-{index}"))
        for gpu in self.gpus.values():
            if gpu.lost is _NOT_YET:
                gpu.lost = _NOT_LISTED

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
        """Start NVML anew, so that it lists its devices again; not while a call hangs in it."""
        if not self._is_quiet():
            return
        reason = SensorGlitchError("NVML is being started anew to look for GPUs")
        if not self.gate.shut(reason, self.call_timeout_s + 1.0) or not self._is_quiet():
            self.gate.open()
            return
        logger.info("nvml: starting NVML anew to look for GPUs")
        if self._is_started:
            self._shut_down()
        self._start()

    def _is_quiet(self) -> bool:
        """Whether no call hangs: there is a moment, within a call's deadline, in which none is under way."""
        end_s = time.monotonic() + self.call_timeout_s
        while any(thread.is_hanging for thread in self._threads()):
            if time.monotonic() >= end_s or self._stop.wait(0.001):
                return False
        return True

    def _list(self) -> object:
        """Which GPUs the driver has now; NVML's own count where procfs does not say, as in some containers."""
        try:
            return tuple(list_names(self._procfs_gpus))
        except SensorError:
            return self.nvml.call("nvmlDeviceGetCount", subject="NVML")

    def _threads(self) -> list[DeadlineThread]:
        return [gpu.thread for gpu in list(self.gpus.values())] + [thread for _, thread in self._silent]

    # -- taking up GPUs ----------------------------------------------------------------------------

    def _take_up(self, index: int, thread: DeadlineThread) -> None:
        """Find out what the GPU at one of NVML's indices is, and let it be read."""
        subject = f"GPU {index}"
        self._refused.pop(index, None)
        try:
            handle, description = thread.call(lambda: self._describe_index(index), _DESCRIBE_S)
        except SensorTimeoutError:
            self._silent.append((index, thread))
            text = f"no answer within {_DESCRIBE_S:g} s; it is shown when it answers"
            self._found[index] = (_finding("broken", subject, text, _HANG_CURE),)
            return
        except Exception as error:
            thread.close()
            if isinstance(error, SensorDeniedError):
                self._refused[index] = error
                self._found[index] = (_finding("denied", subject, str(error), DEVICES_CURE),)
            else:
                # Whatever it is, it is one GPU's: the others are read.
                text = str(error) if isinstance(error, SensorError) else f"{type(error).__name__}: {error}"
                self._refused[index] = SensorGlitchError(text)
                self._found[index] = (_finding("broken", subject, text),)
            return
        uuid = description.uuid
        problem = ""
        if uuid.startswith("MIG-"):
            problem = "a slice of a GPU: it has neither power nor energy of its own"
        elif not description.channels:
            problem = f"{description.what}: gives neither energy nor power"
        elif uuid in self.gpus and self.gpus[uuid].lost is None:
            problem = f"{description.what}: listed twice; it is read once"
        if problem:
            thread.close()
            self._found[index] = (_finding("skipped", uuid, problem),)
            return
        self._found[index] = _findings(description)
        known = self.gpus.get(uuid)
        if known is None:
            self.gpus[uuid] = Gpu(thread, handle, GpuSensor(self, description))
        else:
            thread.close()
            self._rebind(known, handle, description)
        self._publish()

    def _take_up_again(self, uuid: str, gpu: Gpu) -> None:
        """Look whether a lost GPU answers again, without a new start of NVML."""
        try:
            handle, description = gpu.thread.call(lambda: self._describe_uuid(uuid), _DESCRIBE_S)
        except SensorError:
            return
        if description.channels:
            self._rebind(gpu, handle, description)
            self._publish()

    def _rebind(self, gpu: Gpu, handle: Any, description: Description) -> None:
        """Go on with a GPU that is known; its sensor stays the same unless its infos change."""
        gpu.handle = handle
        if description != gpu.sensor.description:
            gpu.sensor = GpuSensor(self, description)
        gpu.lost = None

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
        return describe(self.nvml, handle, driver=self._driver, average=options.average, memory=options.memory)


# -- findings ----------------------------------------------------------------------------------------


def _finding(status: Status, subject: str, text: str, cure: str = "") -> Finding:
    return Finding(status=status, collector="nvml", subject=subject, text=text, cure=cure)


def _findings(description: Description) -> tuple[Finding, ...]:
    what = ["energy counter" if c.is_energy else f"{c.info.quantity.domain} power" for c in description.channels]
    limit = f"; limit {description.limit_mw / 1000:g} W" if description.limit_mw else ""
    found = _finding("found", description.uuid, f"{description.what}: {', '.join(what)}{limit}")
    return (found, *[_finding("skipped", description.uuid, note) for note in description.notes])


def _nothing_found(findings: Sequence[Finding]) -> SensorError:
    for finding in findings:
        if finding.status == "denied":
            return SensorDeniedError(finding.text)
    reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
    return SensorAbsentError(f"NVML gives no GPU{reasons}")
