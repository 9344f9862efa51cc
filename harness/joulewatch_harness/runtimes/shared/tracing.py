"""What the traces of all runtimes share: batches with and without tracing in turns, operators added up, their work.

A runtime's ``trace(path)`` gives ``in_turns`` two functions that run batches, one of them traced, and writes a
``traces.Trace`` of what it collected meanwhile. No runtime is imported here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks import cost as graphs
from joulewatch_harness.traces import Operator

AIM_S: Final = 1.0
"""How long the traced batches shall take together."""
WARMUP: Final = 3
BLOCKS: Final = 4
PAUSE_S: Final = 0.02
MOST_EVENTS: Final = 12_000
"""Of a profile that is written out: an event takes a kilobyte."""
FEWEST_BATCHES: Final = 10
SHORTEST_S: Final = 1e-4
"""Batches shorter than this are traced no more often."""

Block = Callable[[int], int]
"""Runs so many batches back to back, the device has finished on return; gives the nanoseconds that they took."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What the batches took."""

    batches: int
    """Traced ones, and as many plain ones; those of the warm-up left out."""
    plain_ns: int
    traced_ns: int


def in_turns(
    plain: Block, traced: Block, *, begin: Callable[[], object] | None = None, events_per_batch: int = 1
) -> Turns:
    """Run plain and traced batches in turns, so that a machine that changes its speed changes it for both.

    Args:
        plain: Runs batches as a measured window has them.
        traced: Runs batches with tracing.
        begin: Called once after the warm-up: forget what was collected, or remember where it stands.
        events_per_batch: How many events each traced batch leaves, to be read one by one afterwards.
    """
    batch_s = math.inf
    for block in (plain, traced):
        for _ in range(WARMUP):
            batch_s = min(batch_s, block(1) * 1e-9)
    if begin is not None:
        begin()
    count = batches_for(batch_s, events_per_batch)
    plain_ns = traced_ns = 0
    for number in range(BLOCKS):
        size = len(range(number, count, BLOCKS))
        # After a pause, for the threads of what ran before spin on for a while.
        time.sleep(PAUSE_S)
        plain_ns += plain(size)
        time.sleep(PAUSE_S)
        traced_ns += traced(size)
    return Turns(count, plain_ns, traced_ns)


def timed(run: Callable[[int], object]) -> Block:
    """A block of a function that runs so many batches and waits for the device."""

    def block(batches: int) -> int:
        start_ns = time.monotonic_ns()
        run(batches)
        return time.monotonic_ns() - start_ns

    return block


def batches_for(batch_s: float, events_per_batch: int) -> int:
    """How many batches to trace: ``AIM_S`` long, ten at least, and no more than can be read quickly."""
    by_time = math.ceil(AIM_S / max(batch_s, SHORTEST_S))
    return max(FEWEST_BATCHES, min(by_time, MOST_EVENTS // max(events_per_batch, 1)))


@dataclass(slots=True)
class Tally:
    """Operators added up over batches, in the order in which they first ran."""

    _found: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, name: str, op: str, time_ns: int, calls: int = 1) -> None:
        """One call of an operator, or several; names and kinds as the trace shall show them."""
        item = self._found.setdefault((name, op), [0, 0])
        item[0] += time_ns
        item[1] += calls

    def clear(self) -> None:
        """Forget everything: the warm-up is over."""
        self._found.clear()

    def names(self) -> tuple[tuple[str, str], ...]:
        """Name and kind of each operator."""
        return tuple(self._found)

    def operators(self, macs: Mapping[str, int | None]) -> tuple[Operator, ...]:
        """Args: macs: Name -> multiply-accumulates of one batch; a name that is missing: not known."""
        return tuple(
            Operator(name=name, op=op, time_ns=time_ns, calls=calls, macs=macs.get(name))
            for (name, op), (time_ns, calls) in self._found.items()
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates of a model's operators for one batch, counted from its .onnx file."""

    macs: Mapping[str, int] = field(default_factory=dict)
    """Name of each node that has any -> its own; a node without a name is called ``Conv_3``."""
    total: int | None = None
    """Of the whole graph; None: something in it could not be counted."""

    @classmethod
    def of(cls, model: Any, batch: int, dims: Mapping[str, int] | None = None) -> Work:
        """Count a model.

        Args:
            model: What ``graph.read_model`` reads.
            batch: Elements of a batch.
            dims: Sizes of symbolic dimensions other than the batch.
        """
        try:
            cost = graphs.cost_of(model, dims)
        except ConfigError:
            return cls()  # the sizes of some dimensions are not known: then neither is the work
        return cls(
            {node.name: node.macs * batch for node in cost.nodes if node.macs},
            None if cost.not_counted else cost.macs * batch,
        )


def name_nodes(model: Path, folder: Path) -> Path:
    """The model, or a copy in ``folder`` whose nodes all have names of their own, so that events can be told apart.

    A model whose weights lie in other files is taken as it is.
    """
    found = graphs.read_model(model)
    names = [node.name for node in found.graph.node]
    if all(names) and len(set(names)) == len(names):
        return model
    if any(item.external_data for item in found.graph.initializer):
        return model
    used = set(names)
    for number, node in enumerate(found.graph.node):
        if not node.name or names.count(node.name) > 1:
            name = f"{node.name or node.op_type}_{number}"
            while name in used:
                name += "_"
            node.name = name
            used.add(name)
    copy = folder / "named.onnx"
    copy.write_bytes(found.SerializeToString())
    return copy
