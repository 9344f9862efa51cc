"""Traces of all runtimes: alternate plain and traced batches, add up operators, count their work.

A runtime's ``trace(path)`` gives ``in_turns`` two functions that run batches, one of them traced, and writes a
``traces.Trace`` of what it collected meanwhile. No runtime is imported in this module.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks.cost import cost_of
from joulewatch_harness.networks.graphs import Sizes, read_model
from joulewatch_harness.traces import Operator

AIM_S: Final = 1.0
"""Total duration of the traced batches."""
WARMUP: Final = 3
BLOCKS: Final = 4
PAUSE_S: Final = 0.02
MOST_EVENTS: Final = 12_000
"""Limit of the events in a profile that is written to a file; an event takes 1 kB."""
FEWEST_BATCHES: Final = 10
SHORTEST_S: Final = 1e-4
"""Shortest batch duration in the computation of the number of batches."""

Block = Callable[[int], int]
"""Runs a number of batches back to back, waits for the device, and returns the duration in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Durations of plain and traced batches."""

    batches: int
    """Number of traced batches, and of plain ones, without the warm-up."""
    plain_ns: int
    traced_ns: int


def in_turns(
    plain: Block, traced: Block, *, begin: Callable[[], object] | None = None, events_per_batch: int = 1
) -> Turns:
    """Alternate plain and traced batches, so that a change of the machine's speed affects both.

    Args:
        plain: Runs batches as in a measured window.
        traced: Runs batches with tracing.
        begin: Called once after the warm-up, to discard what was collected or to note its position.
        events_per_batch: Number of events that each traced batch adds to the profile.
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
        # The pause lets the threads of the previous block stop spinning.
        time.sleep(PAUSE_S)
        plain_ns += plain(size)
        time.sleep(PAUSE_S)
        traced_ns += traced(size)
    return Turns(count, plain_ns, traced_ns)


def timed(run: Callable[[int], object]) -> Block:
    """Return a block that times ``run``, which runs a number of batches and waits for the device."""

    def block(batches: int) -> int:
        start_ns = time.monotonic_ns()
        run(batches)
        return time.monotonic_ns() - start_ns

    return block


def batches_for(batch_s: float, events_per_batch: int) -> int:
    """Return how many batches to trace: for ``AIM_S`` seconds, within the limits of batches and events."""
    by_time = math.ceil(AIM_S / max(batch_s, SHORTEST_S))
    return max(FEWEST_BATCHES, min(by_time, MOST_EVENTS // max(events_per_batch, 1)))


@dataclass(slots=True)
class Tally:
    """Operators, added up over batches, in the order in which they first ran."""

    _found: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, name: str, op: str, time_ns: int, calls: int = 1) -> None:
        """Add one or more calls of an operator; name and kind appear in the trace."""
        item = self._found.setdefault((name, op), [0, 0])
        item[0] += time_ns
        item[1] += calls

    def clear(self) -> None:
        """Discard everything, after the warm-up."""
        self._found.clear()

    def names(self) -> tuple[tuple[str, str], ...]:
        """Return name and kind of each operator."""
        return tuple(self._found)

    def operators(self, macs: Mapping[str, int | None]) -> tuple[Operator, ...]:
        """Return the operators; ``macs`` maps names to multiply-accumulates of one batch, if they are known."""
        return tuple(
            Operator(name=name, op=op, time_ns=time_ns, calls=calls, macs=macs.get(name))
            for (name, op), (time_ns, calls) in self._found.items()
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates of a model's operators for one batch, counted from its .onnx file."""

    macs: Mapping[str, int] = field(default_factory=dict)
    """Name of a node -> its multiply-accumulates; a node without a name is called ``Conv_3``."""
    total: int | None = None
    """Sum over the graph; None: some operators could not be counted."""

    @classmethod
    def of(cls, model: Any, batch: int, sizes: Sizes | None = None) -> Work:
        """Count the work of a model.

        Args:
            model: The result of ``read_model``.
            batch: Batch size.
            sizes: The sizes of its inputs; None: as in the file.
        """
        try:
            cost = cost_of(model, sizes)
        except ConfigError:
            return cls()  # the sizes of some dimensions are unknown, and so is the work
        return cls(
            {node.name: node.macs * batch for node in cost.nodes if node.macs},
            None if cost.not_counted else cost.macs * batch,
        )


def name_nodes(model: Path, folder: Path) -> Path:
    """Return the model, or a copy in ``folder`` whose nodes all have unique names, so that events can be distinguished.

    A model whose weights are in other files is returned unchanged.
    """
    content = read_model(model)
    names = [node.name for node in content.graph.node]
    if all(names) and len(set(names)) == len(names):
        return model
    if any(item.external_data for item in content.graph.initializer):
        return model
    used = set(names)
    for number, node in enumerate(content.graph.node):
        if not node.name or names.count(node.name) > 1:
            name = f"{node.name or node.op_type}_{number}"
            while name in used:
                name += "_"
            node.name = name
            used.add(name)
    copy = folder / "named.onnx"
    copy.write_bytes(content.SerializeToString())
    return copy
