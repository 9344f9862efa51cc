"""Time of each kernel: TVM's virtual machine calls an instrument before and after every call, which reads the clock.

Kernels are fused, and their names contain their operators: ``fused_conv1d1_add1_relu1``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tvm
from tvm.runtime.vm import VMInstrumentReturnKind

from joulewatch_harness.traces import Operator, Trace, write_trace

TRACE_S: Final = 1.0
WARMUP: Final = 3
BLOCKS: Final = 4
MOST_BATCHES: Final = 2000

_BUILTIN: Final = "vm.builtin."
_NUMBERED: Final = re.compile(r"^(int8|[a-z]+[123]d|[a-z]+)\d*$")


class Instrument:
    """The instrument that the virtual machine calls before and after each call, and its times."""

    def __init__(self) -> None:
        self.times_ns: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._start_ns = 0

    def __call__(self, _function: Any, symbol: str, before: bool, *_: Any) -> int:
        now_ns = time.perf_counter_ns()
        if before:
            # Read the clock again, to exclude the time of this call.
            self._start_ns = time.perf_counter_ns()
        else:
            self.times_ns[symbol] = self.times_ns.get(symbol, 0) + now_ns - self._start_ns
            self.calls[symbol] = self.calls.get(symbol, 0) + 1
        return int(VMInstrumentReturnKind.NO_OP)

    def clear(self) -> None:
        self.times_ns.clear()
        self.calls.clear()


def write(
    path: Path,
    plain: Any,
    traced: Any,
    inputs: tuple[Any, ...],
    batch: int,
    macs: Mapping[str, int],
    total_macs: int | None,
) -> None:
    """Alternate batches with and without the instrument, and write the times.

    Args:
        path: The file of the trace.
        plain: A ``relax.VirtualMachine``.
        traced: Another one of the same executable, for the instrument.
        inputs: The inputs of one batch.
        batch: The batch size.
        macs: Kernel -> multiply-accumulates of one call.
        total_macs: Multiply-accumulates of one batch, from the model's graph.

    Raises:
        RecordError: the file cannot be written.
    """
    instrument = Instrument()
    traced.set_instrument(instrument)
    shortest_ns = min(_timed(machine["main"], inputs, 1) for machine in (plain, traced) for _ in range(WARMUP))
    instrument.clear()
    count = max(1, min(MOST_BATCHES, int(TRACE_S * 1e9 / shortest_ns)) // BLOCKS)
    plain_ns = traced_ns = 0
    # Alternate, so that a change of the machine's speed affects both.
    for _ in range(BLOCKS):
        plain_ns += _timed(plain["main"], inputs, count)
        traced_ns += _timed(traced["main"], inputs, count)
    trace = Trace(
        runtime="tvm",
        source=f"instrument of TVM {tvm.__version__}'s virtual machine",
        batch_size=batch,
        batches=count * BLOCKS,
        time_ns=traced_ns,
        operators=tuple(
            Operator(name=name, op=kind(name), time_ns=time_ns, calls=instrument.calls[name], macs=macs.get(name, 0))
            for name, time_ns in instrument.times_ns.items()
        ),
        plain_time_ns=plain_ns,
        macs=total_macs,
    )
    write_trace(trace, path)


def _timed(main: Any, inputs: tuple[Any, ...], count: int) -> int:
    """Return the nanoseconds of a number of batches."""
    start_ns = time.perf_counter_ns()
    for _ in range(count):
        main(*inputs)
    return time.perf_counter_ns() - start_ns


def kind(name: str) -> str:
    """Return the kind of a kernel, its name without numbers: ``conv1d_add_relu``; ``vm`` for calls of the machine."""
    if name.startswith(_BUILTIN):
        return "vm"
    # TVM numbers kernels of one name: conv1d, conv1d1, conv1d2.
    return "_".join(_NUMBERED.sub(r"\1", word) for word in name.removeprefix("fused_").split("_"))
