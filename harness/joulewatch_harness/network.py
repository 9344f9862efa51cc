"""The protocol of a network under test, and the recording of its phases.

A custom network is a class of about 20 lines with these five methods, given on the command line as
``module:object`` or ``file.py:object``. It needs no base class and no registration. Only ``run`` is called inside the
measured windows.
"""

from __future__ import annotations

import inspect
import time
from array import array
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

Outputs = TypeVar("Outputs")

RESERVED_PHASES: Final = ("prepare", "pack", "copy_in", "execute", "copy_out", "unpack", "wait", "driver", "other")


class Phases:
    """Records what happens during ``run``, on the monotonic clock; a call costs about 0.3 µs.

    * ``with phases("copy_in"): ...`` or ``phases.add("copy_in", t0_ns, t1_ns)`` records a phase.
    * ``phases.batch()`` marks the end of a batch; latency percentiles are computed from the marks. Without marks, the
      latency is the mean over each call of ``run``.
    * ``phases.repeat(batches, launch)`` launches batches and does both for each of them.
    * ``phases.count("output_tokens", 128)`` counts other units of work than inferences; the results then contain the
      energy of each unit too.
    """

    __slots__ = ("_name", "_start_ns", "batch_ends_ns", "call_ns", "counts", "latencies_ns", "spans")

    def __init__(self) -> None:
        self.spans: dict[str, list[int]] = {}
        """phase -> [count, total_ns]"""
        self.batch_ends_ns: array[int] = array("q")
        self.latencies_ns: array[int] = array("q")
        """Latency of each query, from its arrival and including its waiting time, in scenarios that measure it."""
        self.call_ns: tuple[int, int] | None = None
        """Start and end of the last call of ``run`` if it ran in another process: without the messages."""
        self.counts: dict[str, float] = {}
        """unit of work -> number"""
        self._name = ""
        self._start_ns = 0

    def __call__(self, name: str) -> Phases:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start_ns = time.monotonic_ns()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.add(self._name, self._start_ns, time.monotonic_ns())

    def add(self, name: str, t0_ns: int, t1_ns: int) -> None:
        """Record one span of a phase, from ``time.monotonic_ns()`` values; spans of one batch must not overlap."""
        span = self.spans.get(name)
        if span is None:
            self.spans[name] = [1, t1_ns - t0_ns]
        else:
            span[0] += 1
            span[1] += t1_ns - t0_ns

    def count(self, name: str, number: float) -> None:
        """Add to the number of a unit of work, such as ``output_tokens``; its name is a plural."""
        self.counts[name] = self.counts.get(name, 0) + number

    def batch(self) -> None:
        """Mark the end of one batch."""
        self.batch_ends_ns.append(time.monotonic_ns())

    def repeat(self, batches: int, launch: Callable[[], Outputs]) -> Outputs | None:
        """Launch batches in the phase ``execute``; a batch ends when ``launch`` returns.

        The same as ``with phases("execute")`` and ``phases.batch()`` for each batch, at a third of the cost: a large
        network evicts the code between two batches from the processor's caches, so there is as little as possible.

        Returns:
            The result of the last launch; None if there was no launch.
        """
        clock, mark = time.monotonic_ns, self.batch_ends_ns.append
        outputs, busy_ns = None, 0
        for _ in range(batches):
            start_ns = clock()
            outputs = launch()
            end_ns = clock()
            busy_ns += end_ns - start_ns
            mark(end_ns)
        span = self.spans.setdefault("execute", [0, 0])
        span[0] += batches
        span[1] += busy_ns
        return outputs


class MarksOnly(Phases):
    """Records the ends of batches but no phases: for energy windows, and to measure what recording phases costs."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...

    def add(self, name: str, t0_ns: int, t1_ns: int) -> None:
        """Do nothing."""

    def repeat(self, batches: int, launch: Callable[[], Outputs]) -> Outputs | None:
        """Launch batches and mark their ends."""
        clock, mark = time.monotonic_ns, self.batch_ends_ns.append
        outputs = None
        for _ in range(batches):
            outputs = launch()
            mark(clock())
        return outputs


class TimedPhases(Phases):
    """Also records when each phase began and ended, to assign energy to the phases."""

    __slots__ = ("times_ns",)

    def __init__(self) -> None:
        super().__init__()
        self.times_ns: dict[str, array[int]] = {}
        """phase -> start and end of each span, one after the other"""

    def add(self, name: str, t0_ns: int, t1_ns: int) -> None:
        """Record one span of a phase."""
        super().add(name, t0_ns, t1_ns)
        times_ns = self.times_ns.setdefault(name, array("q"))
        times_ns.append(t0_ns)
        times_ns.append(t1_ns)

    def repeat(self, batches: int, launch: Callable[[], Outputs]) -> Outputs | None:
        """Launch batches, and record each of them."""
        outputs = None
        for _ in range(batches):
            start_ns = time.monotonic_ns()
            outputs = launch()
            self.add("execute", start_ns, time.monotonic_ns())
            self.batch()
        return outputs


@runtime_checkable
class Network(Protocol):
    """A network under test, loaded once, prepared for each batch size, run many times."""

    def describe(self) -> Mapping[str, Any]:
        """Return facts about the network; called again after ``load`` and after preparing a batch size.

        Keys used by joulewatch (all optional): ``runtime``, ``runtime_version``, ``precision`` (actual),
        ``provider``, ``device``, ``model_sha256``; any other key with a short value is stored as a detail.
        """
        ...

    def load(self) -> None:
        """Read the model, open the device, compile."""
        ...

    def prepare(self, batch: int) -> None:
        """Allocate and fill the inputs of one batch of ``batch`` elements.

        Raises:
            UnsupportedBatchError: this batch size cannot be run; the other ones still are.
        """
        ...

    def run(self, batches: int, phases: Phases) -> None:
        """Run exactly ``batches`` batches; the device has finished when this returns."""
        ...

    def close(self) -> None:
        """Release everything; safe to call twice."""
        ...


def run_check(network: Any, batch: int) -> bool:
    """Return the result of a network's own check; True if it has none.

    Args:
        network: The network, loaded.
        batch: Batch size, for a method ``check(batch)``; a method ``check()`` chooses its own.
    """
    check = getattr(network, "check", None)
    if not callable(check):
        return True
    arguments = {"batch": batch} if "batch" in inspect.signature(check).parameters else {}
    return check(**arguments) is not False
