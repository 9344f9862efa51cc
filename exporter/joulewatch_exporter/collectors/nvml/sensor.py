"""The sensor of one GPU, its thread, and the gate that blocks reads while NVML is restarted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, Final, Protocol

from joulewatch_exporter.collectors.nvml.conditions import Conditions
from joulewatch_exporter.collectors.nvml.gpu import Channel, Description, number_of, to_readings
from joulewatch_exporter.collectors.nvml.library import LOST, Nvml
from joulewatch_exporter.collectors.nvml.throttling import Throttling
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError, SensorTimeoutError
from joulewatch_exporter.model import Reading
from joulewatch_exporter.threads import DeadlineThread

_NS_PER_S: Final = 1_000_000_000
_LIMIT_PERIOD_NS: Final = 60 * _NS_PER_S


NOT_YET: Final = SensorGlitchError("NVML was restarted and this GPU has not been added again yet")


class Gate:
    """Admits reads, or blocks them with a reason and waits until the reads in progress have ended."""

    def __init__(self, reason: SensorError) -> None:
        self._condition = threading.Condition()
        self._reason: SensorError | None = reason
        self._is_brief = False
        self._reads = 0

    def enter(self, patience_s: float = 0.0) -> SensorError | None:
        """Begin a read, to be ended with ``leave``; return the reason if reads are blocked, else None.

        Args:
            patience_s: How long to wait for the end of a block that is brief.
        """
        with self._condition:
            if self._is_brief:
                self._condition.wait_for(lambda: self._reason is None, patience_s)
            if self._reason is None:
                self._reads += 1
            return self._reason

    def wait_until_added(self, gpu: Gpu, patience_s: float) -> None:
        """Wait until a GPU has been added again after a restart of NVML, ``patience_s`` at most."""
        with self._condition:
            self._condition.wait_for(lambda: gpu.lost is not NOT_YET, patience_s)

    def notify(self) -> None:
        """Wake the reads that wait for a GPU."""
        with self._condition:
            self._condition.notify_all()

    def leave(self) -> None:
        """End a read."""
        with self._condition:
            self._reads -= 1
            self._condition.notify_all()

    def block(self, reason: SensorError, timeout_s: float, *, is_brief: bool = False) -> bool:
        """Block reads; return whether all reads in progress ended in time.

        Args:
            reason: Why.
            timeout_s: How long to wait for the reads in progress.
            is_brief: Whether reads may wait for the end of the block.
        """
        with self._condition:
            self._reason, self._is_brief = reason, is_brief
            return self._condition.wait_for(lambda: self._reads == 0, timeout_s)

    def open(self) -> None:
        """Admit reads."""
        with self._condition:
            self._reason, self._is_brief = None, False
            self._condition.notify_all()


class Gpu:
    """A physical GPU as long as the collector is open: its thread, its handle, or the error why it has no handle."""

    def __init__(self, thread: DeadlineThread, handle: Any, sensor: GpuSensor) -> None:
        self.thread = thread
        self.handle = handle
        self.sensor = sensor
        self.side = DeadlineThread(f"nvml-side-{sensor.device[-12:]}")
        """For calls that must not delay the sensor."""
        self.side_lock = threading.Lock()
        self.throttling = Throttling()
        self.conditions = Conditions()
        self.lost: SensorError | None = None


class Owner(Protocol):
    """The part of the collector that a sensor uses."""

    nvml: Nvml
    gate: Gate
    gpus: dict[str, Gpu]
    call_timeout_s: float

    def prepared(self, sensor: GpuSensor) -> Sequence[Reading] | Exception | None:
        """Return what a read for the present scan has returned or raised, once; None: there was none."""
        ...

    def update_limit(self, sensor: GpuSensor, limit_mw: int | None) -> None:
        """Publish the power limit that a GPU enforces now."""
        ...


class GpuSensor:
    """One GPU with the quantities that it reports."""

    def __init__(self, collector: Owner, description: Description) -> None:
        self.device = description.uuid
        self.infos = tuple([channel.info for channel in description.channels])
        self.description = description
        self._collector = collector
        self._fields = [channel.field for channel in description.channels if channel.field is not None]
        self._calls = [(channel, channel.source) for channel in description.channels if isinstance(channel.source, str)]
        self._reported: SensorError | None = None
        self._limit_due_ns = monotonic_ns() + _LIMIT_PERIOD_NS

    @property
    def is_momentary(self) -> bool:
        """Whether the total is momentary power, so that changes of the load between two reads are missed."""
        total = next(channel for channel in self.description.channels if channel.is_total)
        return not total.is_energy and not total.is_averaged

    def read(self) -> Sequence[Reading]:
        """Read the GPU once.

        Returns:
            The quantities that the GPU returned, which always include the total.

        Raises:
            SensorTimeoutError: The GPU did not answer in time, or an earlier call still hangs.
            SensorAbsentError: The GPU is lost or needs a reset, or the driver was replaced.
            SensorDeniedError: The device files cannot be opened.
            SensorGlitchError: This read failed, or NVML is being restarted.
        """
        collector = self._collector
        patience_s = collector.call_timeout_s / 4
        reason = collector.gate.enter(patience_s)
        if reason is not None:
            raise self._copy(reason)
        try:
            gpu = collector.gpus[self.device]
            if gpu.lost is NOT_YET:
                collector.gate.wait_until_added(gpu, patience_s)
            if gpu.lost is not None:
                raise self._copy(gpu.lost)
            result = collector.prepared(self)
            if result is None and gpu.thread.is_hanging:
                error = SensorTimeoutError(f"{self.device}: an earlier call has not returned")
                error.is_repeated = True
                raise error
            handle = gpu.handle
            try:
                if isinstance(result, Exception):
                    raise result
                readings = result or gpu.thread.call(lambda: self.query(handle), collector.call_timeout_s)
            except SensorAbsentError as error:
                # Until the watcher finds it again. A copy, because the error would keep the stack of this call alive.
                gpu.lost = self._reported = SensorAbsentError(str(error))
                raise
        finally:
            collector.gate.leave()
        self._reported = None
        return readings

    def _copy(self, error: SensorError) -> SensorError:
        """Return a copy to raise, because an exception keeps its traceback; a failure counts only once."""
        copy = type(error)(str(error))
        copy.is_repeated = self._reported is error
        self._reported = error
        return copy

    def query(self, handle: Any) -> Sequence[Reading]:
        """Read all quantities; runs on a thread that may hang."""
        nvml = self._collector.nvml
        values: list[tuple[Channel, float, int]] = []  # milliwatts or millijoules, and the time of the read
        failures: dict[Channel, int] = {}
        if self._fields:
            before_ns = monotonic_ns()
            answers = nvml.call("nvmlDeviceGetFieldValues", handle, self._fields, subject=self.device)
            at_ns = (before_ns + monotonic_ns()) // 2
            for channel, answer in zip(self.description.channels, answers, strict=False):
                if answer.nvmlReturn:
                    failures[channel] = answer.nvmlReturn
                else:
                    values.append((channel, number_of(answer), at_ns))
        for channel, function in self._calls:
            before_ns = monotonic_ns()
            value = nvml.call(function, handle, subject=self.device)
            values.append((channel, float(value), (before_ns + monotonic_ns()) // 2))
        for channel, code in failures.items():
            if channel.is_total or code in LOST:
                raise nvml.sensor_error(code, self.device)
        readings = to_readings(values)
        if not any(reading.quantity.scope == "device" for reading in readings):
            raise SensorGlitchError(f"{self.device}: exactly 0 W: the GPU has no data now")
        if monotonic_ns() >= self._limit_due_ns:
            self._limit_due_ns = monotonic_ns() + _LIMIT_PERIOD_NS
            limit_mw, _ = nvml.attempt("nvmlDeviceGetEnforcedPowerLimit", handle, subject=self.device)
            self._collector.update_limit(self, limit_mw)
        return readings
