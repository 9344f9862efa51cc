"""The open collector, for other users of NVML in this process.

NVML exists once per process. Only the collector starts and restarts it, and this is safe only if nobody else keeps a
reference or a handle. So other users ask the collector for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from joulewatch_exporter.collectors.nvml.library import Nvml

T = TypeVar("T")


class GpuConditions(NamedTuple):
    """Conditions under which a GPU runs."""

    device: str
    counters: Mapping[str, float]
    settings: Mapping[str, float]


class SharedNvml(Protocol):
    """What the collector offers to other users of NVML."""

    @property
    def nvml(self) -> Nvml: ...

    @property
    def devices(self) -> Sequence[str]:
        """UUIDs of the GPUs that answer."""
        ...

    def ask(self, device: str, function: Callable[[Any], T], timeout_s: float) -> T:
        """Return the result of a function of NVML's handle of a GPU, called next to the reads of its sensor.

        Args:
            device: UUID of the GPU.
            function: Runs on a thread of the GPU; it must not keep the handle.
            timeout_s: How long to wait.

        Raises:
            SensorError: The GPU is lost or does not answer in time, or NVML is being restarted.
        """
        ...

    def read_conditions(self) -> Sequence[GpuConditions]:
        """Read the conditions of all GPUs now; one that does not answer is not in the result."""
        ...


_opened: Final[list[SharedNvml]] = []
"""Collectors in the order of ``open``; outside of tests there is one at most."""


def share(collector: SharedNvml) -> None:
    """Offer a collector that was opened."""
    _opened.append(collector)


def withdraw(collector: SharedNvml) -> None:
    """Withdraw a collector that closes; safe to call twice."""
    if collector in _opened:
        _opened.remove(collector)


def shared_nvml() -> SharedNvml | None:
    """Return the open collector; None: there is none."""
    return _opened[-1] if _opened else None
