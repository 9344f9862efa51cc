"""The protocol of a network under test, and how it tells its phases.

A network of one's own is a class of ~20 lines with these five methods, named on the command line as
``module:object`` or ``file.py:object``; no base class, nothing to register. Every method but ``run`` is
called outside the measured windows.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

Outputs = TypeVar("Outputs")

RESERVED_PHASES: Final = ("prepare", "pack", "copy_in", "execute", "copy_out", "unpack", "wait", "driver", "other")


class Phases:
    """Takes the phases of each batch, on the monotonic clock; about 0.3 µs a call.

    ``with phases("copy_in"): ...`` or ``phases.add("copy_in", t0_ns, t1_ns)`` tells a phase;
    ``phases.batch()`` marks the end of a batch, from which latency percentiles are made; ``phases.repeat(batches,
    launch)`` does both around each of so many launches. A network that
    marks none has its latency taken as the mean over each call of ``run``. ``phases.count("output_tokens", 128)``
    tells other units of work than inferences: results then have joules for each of them too.
    """

    __slots__ = ("_name", "_start_ns", "batch_ends_ns", "call_ns", "counts", "latencies_ns", "spans")

    def __init__(self) -> None:
        self.spans: dict[str, list[int]] = {}
        """phase -> [count, total_ns]"""
        self.batch_ends_ns: array[int] = array("q")
        self.latencies_ns: array[int] = array("q")
        """Of each query, where a scenario knows better than the marks: from its arrival, waiting included."""
        self.call_ns: tuple[int, int] | None = None
        """Start and end of the last call of ``run``, where it went on in another process: without the message."""
        self.counts: dict[str, float] = {}
        """unit of work -> how many"""
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
        """One span of one phase, ``time.monotonic_ns()`` at both ends; spans of one batch do not overlap."""
        span = self.spans.get(name)
        if span is None:
            self.spans[name] = [1, t1_ns - t0_ns]
        else:
            span[0] += 1
            span[1] += t1_ns - t0_ns

    def count(self, name: str, number: float) -> None:
        """So many more of a unit of work, such as ``output_tokens``; a plural, as it is to be read."""
        self.counts[name] = self.counts.get(name, 0) + number

    def batch(self) -> None:
        """Mark the end of one batch."""
        self.batch_ends_ns.append(time.monotonic_ns())

    def repeat(self, batches: int, launch: Callable[[], Outputs]) -> Outputs | None:
        """Launch so many batches of one phase, ``execute``; each is over when ``launch`` returns.

        The same as ``with phases("execute")`` and ``phases.batch()`` around each, at a third of the cost: between two
        batches there is hardly any code, which each batch of a large network throws out of the processor's caches.

        Returns:
            What the last launch returned; None: there was none.
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
    """Takes the ends of batches and no phases: what their recording costs can then be told."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...

    def add(self, name: str, t0_ns: int, t1_ns: int) -> None:
        """Nothing is kept."""

    def repeat(self, batches: int, launch: Callable[[], Outputs]) -> Outputs | None:
        """Launch so many batches and mark their ends."""
        clock, mark = time.monotonic_ns, self.batch_ends_ns.append
        outputs = None
        for _ in range(batches):
            outputs = launch()
            mark(clock())
        return outputs


@runtime_checkable
class Network(Protocol):
    """A network under test, loaded once, prepared for each batch size, run many times."""

    def describe(self) -> Mapping[str, Any]:
        """What this is, re-read after ``load``.

        Keys used by joulewatch (all optional): ``runtime``, ``runtime_version``, ``precision`` (actual),
        ``provider``, ``device``, ``model_sha256``; any other key with a short value is kept as a detail.
        """
        ...

    def load(self) -> None:
        """Read the model, open the device, compile."""
        ...

    def prepare(self, batch: int) -> None:
        """Allocate and fill the inputs of one batch of ``batch`` elements.

        Raises:
            UnsupportedBatchError: this batch size cannot be run; the sweep goes on without it.
        """
        ...

    def run(self, batches: int, phases: Phases) -> None:
        """Run exactly ``batches`` batches; the device has finished when this returns."""
        ...

    def close(self) -> None:
        """Free everything; safe to call twice."""
        ...
