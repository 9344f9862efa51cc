"""The layer view: time per operator from a trace, energy per operator as an ESTIMATE.

No sensor resolves an operator of a few microseconds. The estimate gives each operator the share of a measured
window's energy that it has of the time: time share x mean power x time per inference. It holds as far as power is the
same in all operators, which nobody has measured: a memory-bound operator may draw less than a compute-bound one. The
sum over all operators is the measured energy of an inference, by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.numbers import (
    quantity,
)
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.traces import Trace

BETWEEN: Final = "between operators"
_OVERHEAD: Final = 0.25
"""Above this, tracing itself is a good part of what short operators seem to take."""
_EXPLAINED: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Measured windows of one configuration at one batch size: where the energy comes from."""

    run: str
    configuration: str
    windows: tuple[int, ...]
    seconds_per_inference: float
    joules_per_inference: float
    """Gross, over all device sensors."""
    expanded_joules: float
    """Its uncertainty, 95 % coverage."""
    methods: tuple[str, ...]
    """Of the sensors: counter, integrated, estimated, emulated or unknown."""

    @property
    def mean_power_watts(self) -> float:
        return self.joules_per_inference / self.seconds_per_inference


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An operator, or several that are shown as one; per inference."""

    name: str
    op: str
    seconds: float
    share: float
    """Of the time of a batch, by the trace."""
    macs: int | None
    macs_share: float | None
    joules: float | None
    """ESTIMATED; None: there is no basis."""
    operators: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """A network's operators with their time, work and estimated energy."""

    about: Mapping[str, str]
    """network, runtime, runtime_version, precision, provider, device."""
    trace: Trace
    rows: tuple[Row, ...]
    """In the order in which they ran."""
    between: Row
    """Time of the batch that no operator covers."""
    basis: Basis | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def batch_size(self) -> int:
        return self.trace.batch_size

    @property
    def seconds(self) -> float:
        """Of one inference, by the trace."""
        return sum(row.seconds for row in (*self.rows, self.between))

    @property
    def macs(self) -> int | None:
        """Of one inference: the graph's, else the sum over the operators if all are known."""
        if self.trace.macs is not None:
            return self.trace.macs // self.batch_size
        known = [row.macs for row in self.rows if row.macs is not None]
        return sum(known) if len(known) == len(self.rows) else None

    @property
    def methods(self) -> tuple[str, ...]:
        return self.basis.methods if self.basis is not None else ()


def basis_of(result: RunResult, configuration: str, batch_size: int) -> Basis:
    """The windows of a run that the energy is taken from.

    Raises:
        CoverageError: the run has no such windows, or no energy for them.
    """
    for group in result.groups:
        if group.configuration.name != configuration or group.batch_size != batch_size:
            continue
        run = result.record.header.run
        gross, throughput = group.total.gross, group.throughput
        if gross is None or throughput is None or gross.value <= 0:
            why = group.total.missing or "its energy is zero"
            raise CoverageError(
                "no_energy", f"run {run}: {configuration} at batch size {batch_size} has no energy: {why}"
            )
        return Basis(
            run=run,
            configuration=configuration,
            windows=group.windows,
            seconds_per_inference=1 / throughput.value,
            joules_per_inference=gross.value,
            expanded_joules=gross.expanded,
            methods=group.total.methods,
        )
    raise CoverageError(
        "no_windows",
        f"run {result.record.header.run} has no measured window of {configuration} at batch size {batch_size}",
    )


def layer_view(
    trace: Trace, about: Mapping[str, str], basis: Basis | None = None, notes: Sequence[str] = ()
) -> LayerView:
    """Put a trace and the energy of measured windows together.

    Args:
        trace: The traced pass.
        about: What was traced, for titles.
        basis: Measured windows of the same network at the same batch size, never those of the traced pass.
        notes: What a reader must know besides.
    """
    inferences = trace.batches * trace.batch_size
    covered_ns = sum(item.time_ns for item in trace.operators)
    # Side by side, operators take more than the batch: then their sum is the whole.
    whole_ns = max(trace.time_ns, covered_ns)
    # One number for the work: where an operator appears under several kernels, the graph's own sum decides.
    known = sum(item.macs or 0 for item in trace.operators)
    total_macs = trace.macs if trace.macs is not None else known

    def joules(share: float) -> float | None:
        return None if basis is None else share * basis.mean_power_watts * basis.seconds_per_inference

    rows = []
    for item in trace.operators:
        share = item.time_ns / whole_ns
        macs = None if item.macs is None else item.macs // trace.batch_size
        macs_share = item.macs / total_macs if item.macs is not None and total_macs else None
        rows.append(
            Row(
                name=item.name,
                op=item.op,
                seconds=item.time_ns * 1e-9 / inferences,
                share=share,
                macs=macs,
                macs_share=macs_share,
                joules=joules(share),
            )
        )
    rest_ns = whole_ns - covered_ns
    share = rest_ns / whole_ns
    between = Row(
        name=BETWEEN,
        op="",
        seconds=rest_ns * 1e-9 / inferences,
        share=share,
        macs=0,
        macs_share=0.0,
        joules=joules(share),
        operators=0,
    )
    return LayerView(
        about=about,
        trace=trace,
        rows=tuple(rows),
        between=between,
        basis=basis,
        notes=(*notes, *_notes(trace, known, covered_ns / whole_ns, basis)),
    )


def _notes(trace: Trace, known_macs: int, covered: float, basis: Basis | None) -> list[str]:
    notes = list(trace.notes)
    if trace.overlapping:
        notes.append("Operators ran side by side: shares are of the sum of their times.")
    if trace.plain_time_ns:
        slower = trace.time_ns / trace.plain_time_ns - 1
        if slower > _OVERHEAD:
            notes.append(
                f"Traced batches took {slower:.0%} longer than untraced ones: shares of short operators are too large."
            )
    if covered < _EXPLAINED and not trace.overlapping:
        notes.append(
            f"Only {covered:.0%} of the time lies in operators: they are too short for the profile's resolution, or "
            "the runtime does much besides; a larger batch size shows more."
        )
    if trace.macs is not None and known_macs != trace.macs:
        notes.append(
            f"The operators' MACs add up to {known_macs:,} of the graph's {trace.macs:,} for a batch: "
            "some operators could not be traced back to the model."
        )
    if basis is not None:
        traced = trace.time_ns * 1e-9 / (trace.batches * trace.batch_size)
        ratio = traced / basis.seconds_per_inference
        if not 1 / (1 + _OVERHEAD) <= ratio <= 1 + _OVERHEAD:
            notes.append(
                f"In the measured windows an inference took {quantity(basis.seconds_per_inference, 's')}, in the trace "
                f"{quantity(traced, 's')}: the shares may differ too."
            )
    return notes
