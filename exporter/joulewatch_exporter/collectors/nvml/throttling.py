"""For how long the clocks of a GPU were lower, by reason: the driver counts nanoseconds, so nothing is missed.

Reasons overlap and must not be added: a GPU may be limited by power and by heat at the same time. Current drivers have
the counters as fields, all of which one call reads. Older drivers have ``nvmlDeviceGetViolationStatus``, which NVIDIA
has announced to remove.

A counter that falls has restarted with the driver. A rise above the time between two reads is impossible: it is not
counted.

Source: NVIDIA ``nvml.h`` (CUDA 13.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic_ns
from typing import Any, Final

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.collectors.nvml.library import LOST, Nvml

_FIELDS: Final[Mapping[int, str]] = {
    74: "power",
    75: "thermal",
    76: "sync_boost",
    77: "board_limit",
    78: "low_utilisation",
    79: "reliability",
    270: "hardware_thermal",
    271: "power_brake",
}
"""NVML_FI_DEV_PERF_POLICY_* and NVML_FI_DEV_CLOCKS_EVENT_REASON_*."""
_POLICIES: Final[Mapping[int, str]] = {
    0: "power",
    1: "thermal",
    2: "sync_boost",
    3: "board_limit",
    4: "low_utilisation",
    5: "reliability",
}
"""NVML_PERF_POLICY_*, for drivers without the fields."""
_SLACK_NS: Final = NS_PER_S
"""The driver may refresh the counters late."""


class Throttling:
    """The counters of one GPU."""

    def __init__(self) -> None:
        """Start without reasons: the first read finds those that the GPU counts."""
        self.seconds: Mapping[str, float] = {}
        """Time since the first read, by reason; replaced by each read."""
        self._last_ns: dict[str, int] = {}
        self._read_at_ns = 0

    def read(self, nvml: Nvml, uuid: str, handle: Any) -> None:
        """Read the counters; runs on a thread of the GPU.

        Raises:
            SensorError: The GPU is lost.
        """
        now_ns = monotonic_ns()
        counters = _fields(nvml, handle, uuid) or _violations(nvml, handle, uuid)
        most_ns = now_ns - self._read_at_ns + _SLACK_NS
        seconds = dict(self.seconds)
        for reason, counter_ns in counters.items():
            last_ns = self._last_ns.get(reason, counter_ns)
            rise_ns = counter_ns - last_ns if counter_ns >= last_ns else counter_ns
            seconds[reason] = seconds.get(reason, 0.0) + (rise_ns / NS_PER_S if rise_ns <= most_ns else 0.0)
        self._last_ns.update(counters)
        self._read_at_ns = now_ns
        self.seconds = seconds


def _fields(nvml: Nvml, handle: Any, uuid: str) -> dict[str, int]:
    answers, code = nvml.attempt("nvmlDeviceGetFieldValues", handle, list(_FIELDS), subject=uuid)
    if code:
        return {}
    counters = {}
    for reason, answer in zip(_FIELDS.values(), answers, strict=True):
        if answer.nvmlReturn in LOST:
            raise nvml.sensor_error(answer.nvmlReturn, uuid)
        if answer.nvmlReturn == 0:
            counters[reason] = int(answer.value.ullVal)
    return counters


def _violations(nvml: Nvml, handle: Any, uuid: str) -> dict[str, int]:
    counters = {}
    for policy, reason in _POLICIES.items():
        status, code = nvml.attempt("nvmlDeviceGetViolationStatus", handle, policy, subject=uuid)
        if not code:
            counters[reason] = int(status.violationTime)
    return counters
