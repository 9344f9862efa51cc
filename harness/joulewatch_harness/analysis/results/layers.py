"""The layer view: time per operator from a trace, energy per operator as an ESTIMATE.

No sensor resolves an operator of a few microseconds. The estimate splits the energy of measured windows in proportion
to the time of the operators: time share x mean power x time per inference. It assumes that the power is the same in all
operators, which has not been measured: a memory-bound operator may use less power than a compute-bound one. The sum
over all operators is the measured energy of an inference, by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.numbers import quantity
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.traces import Trace

BETWEEN: Final = "between operators"
_OVERHEAD: Final = 0.25
"""Above this relative cost, tracing is a considerable part of the time of short operators."""
_EXPLAINED: Final = 0.8
"""Smallest share of the time that operators should cover."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Measured windows of one configuration at one batch size, the basis of the estimate."""

    run: str
    configuration: str
    windows: tuple[int, ...]
    seconds_per_inference: float
    joules_per_inference: float
    """Gross energy over all device sensors."""
    expanded_joules: float | None
    """Expanded uncertainty of the energy at 95 % coverage."""
    methods: tuple[str, ...]
    """Methods of the sensors: counter, integrated, estimated, emulated or unknown."""

    @property
    def mean_power_watts(self) -> float:
        return self.joules_per_inference / self.seconds_per_inference


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An operator, or several combined into one row; per inference."""

    name: str
    op: str
    seconds: float
    share: float
    """Share of the time of a batch in the trace."""
    macs: int | None
    macs_share: float | None
    joules: float | None
    """ESTIMATED; None: no measured windows."""
    operators: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """The operators of a network with their time, multiply-accumulates and estimated energy."""

    about: Mapping[str, str]
    """network, runtime, runtime_version, precision, provider, device."""
    trace: Trace
    rows: tuple[Row, ...]
    """Operators in the order of execution."""
    between: Row
    """The time of a batch that no operator covers."""
    basis: Basis | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def batch_size(self) -> int:
        return self.trace.batch_size

    @property
    def seconds(self) -> float:
        """Time of one inference in the trace."""
        return sum(row.seconds for row in (*self.rows, self.between))

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one inference: of the graph, else the sum over the operators if all are known."""
        if self.trace.macs is not None:
            return self.trace.macs // self.batch_size
        known = [row.macs for row in self.rows if row.macs is not None]
        return sum(known) if len(known) == len(self.rows) else None

    @property
    def methods(self) -> tuple[str, ...]:
        return self.basis.methods if self.basis is not None else ()


def basis_of(result: RunResult, configuration: str, batch_size: int) -> Basis:
    """Return the measured windows of a run at one configuration and batch size.

    Raises:
        CoverageError: The run has no such windows, or they have no energy.
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
    """Combine a trace with the energy of measured windows.

    Args:
        trace: The traced pass.
        about: The traced configuration, for titles.
        basis: Measured windows of the same network at the same batch size, never those of the traced pass.
        notes: Further notes for the reader.
    """
    inferences = trace.batches * trace.batch_size
    covered_ns = sum(operator.time_ns for operator in trace.operators)
    # Operators that ran in parallel take more time than the batch; then their sum is the whole.
    whole_ns = max(trace.time_ns, covered_ns)
    # If an operator consists of several kernels, the sum of the graph is the right one.
    known = sum(operator.macs or 0 for operator in trace.operators)
    total_macs = trace.macs if trace.macs is not None else known

    def joules(share: float) -> float | None:
        return None if basis is None else share * basis.mean_power_watts * basis.seconds_per_inference

    rows = []
    for operator in trace.operators:
        share = operator.time_ns / whole_ns
        macs = None if operator.macs is None else operator.macs // trace.batch_size
        macs_share = operator.macs / total_macs if operator.macs is not None and total_macs else None
        rows.append(
            Row(
                name=operator.name,
                op=operator.op,
                seconds=operator.time_ns * 1e-9 / inferences,
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
        notes.append("Operators ran in parallel: shares refer to the sum of their times.")
    if trace.plain_time_ns:
        slower = trace.time_ns / trace.plain_time_ns - 1
        if slower > _OVERHEAD:
            notes.append(
                f"Traced batches took {slower:.0%} longer than untraced ones: the shares of short operators are too "
                "large."
            )
    if covered < _EXPLAINED and not trace.overlapping:
        notes.append(
            f"Operators cover only {covered:.0%} of the time: they are too short for the resolution of the profile, or "
            "the runtime does other work; use a larger batch size."
        )
    if trace.macs is not None and known_macs != trace.macs:
        notes.append(
            f"The operators have {known_macs:,} of the {trace.macs:,} MACs of the graph per batch: some operators "
            "could not be matched with the model."
        )
    if basis is not None:
        traced = trace.time_ns * 1e-9 / (trace.batches * trace.batch_size)
        ratio = traced / basis.seconds_per_inference
        if not 1 / (1 + _OVERHEAD) <= ratio <= 1 + _OVERHEAD:
            notes.append(
                f"An inference took {quantity(basis.seconds_per_inference, 's')} in the measured windows, but "
                f"{quantity(traced, 's')} in the trace: the shares may differ too."
            )
    return notes
