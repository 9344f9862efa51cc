"""One GPU that is read: its sensor, its thread, and the gate that shuts reads out while NVML is started anew."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, Final, Protocol

from joulewatch_exporter.collectors.nvml.gpu import Channel, Description, number_of, to_readings
from joulewatch_exporter.collectors.nvml.library import LOST, Nvml
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError, SensorTimeoutError
from joulewatch_exporter.model import Reading
from joulewatch_exporter.threads import DeadlineThread

_NS_PER_S: Final = 1_000_000_000
_LIMIT_PERIOD_NS: Final = 60 * _NS_PER_S


class Gate:
    """Lets reads pass, or shuts them out with a reason and waits until the last one has come out."""

    def __init__(self, reason: SensorError) -> None:
        self._condition = threading.Condition()
        self._reason: SensorError | None = reason
        self._inside = 0

    def enter(self) -> SensorError | None:
        """Go in, and ``leave`` later; or the reason why not."""
        with self._condition:
            if self._reason is None:
                self._inside += 1
            return self._reason

    def leave(self) -> None:
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def shut(self, reason: SensorError, timeout_s: float) -> bool:
        """Let nobody in any more; whether all have come out in time."""
        with self._condition:
            self._reason = reason
            return self._condition.wait_for(lambda: self._inside == 0, timeout_s)

    def open(self) -> None:
        with self._condition:
            self._reason = None


class Gpu:
    """A physical GPU for as long as the collector is open: its thread, and its handle or why it has none."""

    def __init__(self, thread: DeadlineThread, handle: Any, sensor: GpuSensor) -> None:
        self.thread = thread
        self.handle = handle
        self.sensor = sensor
        self.lost: SensorError | None = None


class Owner(Protocol):
    """What a sensor needs of its collector."""

    nvml: Nvml
    gate: Gate
    gpus: dict[str, Gpu]
    call_timeout_s: float

    def see_limit(self, sensor: GpuSensor, limit_mw: int | None) -> None:
        """Take note of the limit that a GPU enforces now."""
        ...


class GpuSensor:
    """One GPU with the quantities that it gives."""

    def __init__(self, collector: Owner, description: Description) -> None:
        self.device = description.uuid
        self.infos = tuple([channel.info for channel in description.channels])
        self.description = description
        self._collector = collector
        self._fields = [channel.field for channel in description.channels if channel.field is not None]
        self._calls = [(channel, channel.source) for channel in description.channels if isinstance(channel.source, str)]
        self._told: SensorError | None = None
        self._limit_due_ns = monotonic_ns() + _LIMIT_PERIOD_NS

    @property
    def is_momentary(self) -> bool:
        """Whether all that it gives is the power of the moment, so that the load between two reads is lost."""
        total = next(channel for channel in self.description.channels if channel.is_total)
        return not total.is_energy and not total.is_averaged

    def read(self) -> Sequence[Reading]:
        """Ask the GPU once.

        Returns:
            The quantities that it gave, the total always among them.

        Raises:
            SensorTimeoutError: It did not answer in time, or an earlier call still hangs.
            SensorAbsentError: It is lost, needs a reset, or the driver has been replaced.
            SensorDeniedError: Its device files are closed to us.
            SensorGlitchError: This read failed, or NVML is just being started anew.
        """
        collector = self._collector
        reason = collector.gate.enter()
        if reason is not None:
            raise self._once_more(reason)
        try:
            gpu = collector.gpus[self.device]
            if gpu.lost is not None:
                raise self._once_more(gpu.lost)
            if gpu.thread.is_hanging:
                error = SensorTimeoutError(f"{self.device}: an earlier call has not returned")
                error.is_repeated = True
                raise error
            handle = gpu.handle
            try:
                readings = gpu.thread.call(lambda: self._ask(handle), collector.call_timeout_s)
            except SensorAbsentError as error:
                # Until the watching thread finds it again. A copy: the error itself would keep this whole call alive.
                gpu.lost = self._told = SensorAbsentError(str(error))
                raise
        finally:
            collector.gate.leave()
        self._told = None
        return readings

    def _once_more(self, error: SensorError) -> SensorError:
        """A copy to raise, since an exception remembers where it was raised; the same failure counts once."""
        copy = type(error)(str(error))
        copy.is_repeated = self._told is error
        self._told = error
        return copy

    def _ask(self, handle: Any) -> Sequence[Reading]:
        """What the GPU's thread does for a read."""
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
            raise SensorGlitchError(f"{self.device}: reads exactly 0: a GPU that answers draws something")
        if monotonic_ns() >= self._limit_due_ns:
            self._limit_due_ns = monotonic_ns() + _LIMIT_PERIOD_NS
            limit_mw, _ = nvml.attempt("nvmlDeviceGetEnforcedPowerLimit", handle, subject=self.device)
            self._collector.see_limit(self, limit_mw)
        return readings
