"""The trace of a network: time per operator, as a runtime's own profiler tells it. What ``trace(path)`` writes.

A network under test may have a method ``trace(path)``: one instrumented pass over the batch that is prepared,
written as JSON by ``write_trace``. It is called outside every measured window. ``joulewatch layers`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from joulewatch_harness.errors import RecordError
from joulewatch_harness.records import decode, encode

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the graph that really ran, over all traced batches."""

    name: str
    op: str
    """Its kind, as the runtime calls it: ``FusedConv``."""
    time_ns: int
    calls: int
    macs: int | None = None
    """Multiply-accumulates of one batch; 0: none by convention; None: not known."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced pass."""

    runtime: str
    source: str
    """Whose profile it is: ``profile of ONNX Runtime 1.23.0``."""
    batch_size: int
    batches: int
    """How many were traced, those of the warm-up left out."""
    time_ns: int
    """Of all traced batches together, by the wall clock of the runtime; more than the sum over the operators by what
    lies between them."""
    operators: tuple[Operator, ...]
    """In the order in which they ran."""
    plain_time_ns: int | None = None
    """Of as many batches without tracing, run in between: what tracing costs; None: not measured."""
    macs: int | None = None
    """Of one batch, counted from the model's graph."""
    overlapping: bool = False
    """Operators ran side by side: their times add up to more than the batch's."""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batches < 1 or self.time_ns <= 0 or not self.operators:
            raise RecordError(f"a trace of {self.batches} batches and {len(self.operators)} operators is empty")
        if any(item.time_ns < 0 or item.calls < 1 for item in self.operators):
            raise RecordError("a trace has an operator of negative time or without a call")


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace as JSON.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(encode(trace), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"trace {path}: {error.strerror or error}") from error


def read_trace(path: Path) -> Trace:
    """Read what ``write_trace`` wrote.

    Raises:
        RecordError: no such file, no JSON, a field is missing or of another kind, a newer form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"trace {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RecordError(f"trace {path} is no JSON: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("schema"), int) and data["schema"] > SCHEMA_VERSION:
        raise RecordError(f"trace {path} has form {data['schema']}; this joulewatch reads forms up to {SCHEMA_VERSION}")
    return decode(Trace, data, f"trace {path}")
