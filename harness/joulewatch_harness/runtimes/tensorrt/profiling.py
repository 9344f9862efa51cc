"""Times of layers from TensorRT's profiler, and their work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from joulewatch_harness.runtimes.shared.tracing import Work
from joulewatch_harness.runtimes.tensorrt.inspector import Layer


def make_profiler(trt: Any, add: Callable[[str, int], None]) -> Any:
    """Return a ``tensorrt.IProfiler`` that calls ``add`` with name and nanoseconds of each layer."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            add(layer_name, round(ms * 1e6))

    return Profiler()


def layer_macs(layer: Layer, work: Work) -> int | None:
    """Return the multiply-accumulates of the operators that became one layer; None: unknown."""
    if not layer.origins:
        return 0 if layer.is_copy else None
    counted = [work.macs[name] for name in layer.origins if name in work.macs]
    # If the whole graph was counted, operators without an entry have none.
    return sum(counted) if counted or work.total is not None else None
