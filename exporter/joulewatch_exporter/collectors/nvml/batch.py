"""Reads all GPUs on the thread of one of them.

A scan that wakes the thread of each GPU takes three times as long. If a GPU hangs, it gets the thread on which it
hangs, and gives its own, which is idle, to the GPU whose thread it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns

from joulewatch_exporter.collectors.nvml.sensor import Gpu, GpuSensor
from joulewatch_exporter.errors import SensorError, SensorTimeoutError
from joulewatch_exporter.model import Reading


class Batch:
    """The results of reading several GPUs one after the other."""

    def __init__(self) -> None:
        self._results: dict[GpuSensor, Sequence[Reading] | Exception] = {}
        self._current: Gpu | None = None
        self._is_over = False
        self.took_s = 0.0

    def take(self, sensor: GpuSensor) -> Sequence[Reading] | Exception | None:
        """Return the readings of a GPU or the error of its read, once; None: it has not been read."""
        return self._results.pop(sensor, None)

    def read(self, gpus: Sequence[Gpu], timeout_s: float) -> None:
        """Read GPUs whose threads are idle.

        Args:
            gpus: At least one.
            timeout_s: How long all of them together may take. The one that is being read then counts as hanging, and
                those after it have not been read.
        """
        first = gpus[0]
        started_ns = monotonic_ns()
        try:
            first.thread.call(lambda: self._run(gpus), timeout_s)
        except (SensorError, RuntimeError):
            # Or the thread is in use or closed, or cannot be started: then no GPU has been read.
            self._is_over = True
            hanging = self._current
            if hanging is not None:
                first.thread, hanging.thread = hanging.thread, first.thread
                text = f"{hanging.sensor.device}: no answer within {timeout_s:g} s"
                self._results[hanging.sensor] = SensorTimeoutError(text)
        self.took_s = (monotonic_ns() - started_ns) / 1e9

    def _run(self, gpus: Sequence[Gpu]) -> None:
        for gpu in gpus:
            self._current = gpu
            sensor = gpu.sensor  # the read may replace it
            result: Sequence[Reading] | Exception
            try:
                result = sensor.query(gpu.handle)
            except Exception as error:
                result = error
            if self._is_over:
                return  # too late; the others are read on their own threads
            self._results[sensor] = result
