"""Traces: time per operator of a network, from a runtime's own profiler.

A network under test may have a method ``trace(path)``: one instrumented pass over the prepared batch, written as JSON
by ``write_trace``. It is called outside all measured windows. ``joulewatch layers`` reads the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness import files
from joulewatch_harness.binder import bind_record
from joulewatch_harness.errors import RecordError
from joulewatch_harness.records import encode

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of the graph that was executed, summed over all traced batches."""

    name: str
    op: str
    """Operator type, as the runtime names it: ``FusedConv``."""
    time_ns: int
    calls: int
    macs: int | None = None
    """Multiply-accumulates per batch; 0: none by convention; None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One traced pass."""

    runtime: str
    source: str
    """The profiler: ``profile of ONNX Runtime 1.23.0``."""
    batch_size: int
    batches: int
    """Number of traced batches, without the warm-up."""
    time_ns: int
    """Wall time of all traced batches on the runtime's clock; it exceeds the sum over the operators by the time between
    them."""
    operators: tuple[Operator, ...]
    """Operators in the order of execution."""
    plain_time_ns: int | None = None
    """The same number of batches without tracing, run in between, to show the cost of tracing; None: not measured."""
    macs: int | None = None
    """Per batch, counted from the model's graph."""
    overlapping: bool = False
    """Operators ran in parallel: the sum of their times exceeds the time of the batch."""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batches < 1 or self.time_ns <= 0 or not self.operators:
            batches, operators = count_of(self.batches, "batch", "batches"), count_of(len(self.operators), "operator")
            raise RecordError(f"a trace of {batches} and {operators} is empty")
        if any(operator.time_ns < 0 or operator.calls < 1 for operator in self.operators):
            raise RecordError("a trace has an operator with a negative time or without calls")


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace as JSON.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(encode(trace), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise files.write_error(f"trace {path}: {error.strerror or error}", error, RecordError) from error


def read_trace(path: Path) -> Trace:
    """Read a file of ``write_trace``.

    Raises:
        RecordError: the file is missing, is not valid JSON, has a missing or bad field, or a newer schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"trace {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"trace {path}: is not valid JSON: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise RecordError(
            f"trace {path}: was written by a newer joulewatch (schema {schema}, supported up to {SCHEMA_VERSION})"
        )
    return bind_record(Trace, data, f"trace {path}")
