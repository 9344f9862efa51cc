"""The layer view: time per operator from a trace, energy per operator as an ESTIMATE.

No sensor resolves an operator of a few microseconds. The estimate gives each operator the share of a measured
window's energy that it has of the time: time share x mean power x time per inference. It holds as far as power is the
same in all operators, which nobody has measured: a memory-bound operator may draw less than a compute-bound one. The
sum over all operators is the measured energy of an inference, by construction.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from joulewatch_harness.analysis.report import align, decimals_for, plain, prefix_for, quantity, warning_line
from joulewatch_harness.analysis.summary import RunResult
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.traces import Trace

SCHEMA_VERSION: Final = 1
METHOD: Final = "time share x mean power of the measured windows"
ESTIMATE_LINE: Final = (
    f"!!! Energy per operator is an ESTIMATE: {METHOD}; no sensor resolves single operators !!!"
)  # fmt: skip
SMALLEST_SHARE: Final = 0.01
MOST_ROWS: Final = 24
OTHER: Final = "other"
BETWEEN: Final = "between operators"
_OVERHEAD: Final = 0.25
"""Above this, tracing itself is a good part of what short operators seem to take."""
_EXPLAINED: Final = 0.8


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
            Row(item.name, item.op, item.time_ns * 1e-9 / inferences, share, macs, macs_share, joules(share))
        )  # fmt: skip
    rest_ns = whole_ns - covered_ns
    share = rest_ns / whole_ns
    between = Row(BETWEEN, "", rest_ns * 1e-9 / inferences, share, 0, 0.0, joules(share), 0)
    return LayerView(
        about, trace, tuple(rows), between, basis, (*notes, *_notes(trace, known, covered_ns / whole_ns, basis))
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


def group_small(view: LayerView, smallest: float = SMALLEST_SHARE, most: int = MOST_ROWS) -> tuple[Row, ...]:
    """The rows to show: those below ``smallest`` of the time, and the shortest above ``most``, become one."""
    largest = sorted(view.rows, key=lambda row: -row.share)[:most]
    kept = {id(row) for row in largest if row.share >= smallest}
    small = [row for row in view.rows if id(row) not in kept]
    shown = [row for row in view.rows if id(row) in kept]
    if len(small) == 1:
        return view.rows
    if not small:
        return tuple(shown)
    all_known = all(row.macs is not None for row in small)
    shares = [row.macs_share for row in small if row.macs_share is not None]
    joules = [row.joules for row in small if row.joules is not None]
    return (
        *shown,
        Row(
            name=f"{OTHER} ({len(small)} operators)",
            op="",
            seconds=sum(row.seconds for row in small),
            share=sum(row.share for row in small),
            macs=sum(row.macs or 0 for row in small) if all_known else None,
            macs_share=sum(shares) if shares and all_known else None,
            joules=sum(joules) if len(joules) == len(small) else None,
            operators=len(small),
        ),
    )


def loud_lines(view: LayerView) -> list[str]:
    """What stands over every energy here: that it is an estimate, and whether its basis is one as well."""
    if view.basis is None:
        return []
    loud = warning_line(view.methods)
    return [ESTIMATE_LINE, *([loud] if loud else [])]


def title(view: LayerView) -> str:
    """``radioml-vgg10, onnxruntime 1.23.0, int8, batch size 64``."""
    about = view.about
    runtime = " ".join(filter(None, (about.get("runtime"), about.get("runtime_version"))))
    parts = (about.get("network"), runtime, about.get("precision"), f"batch size {view.batch_size}")
    return ", ".join(part for part in parts if part)


def basis_lines(view: LayerView) -> list[str]:
    """Where time and energy come from."""
    trace, basis = view.trace, view.basis
    time = f"time: {trace.source}, {trace.batches} batches traced in a pass of their own"
    if trace.plain_time_ns:
        time += f" ({trace.time_ns / trace.plain_time_ns - 1:+.1%} against untraced ones)"
    if basis is None:
        return [time, "energy: none"]
    exponent, letter = prefix_for([basis.joules_per_inference])
    joules, error = basis.joules_per_inference / 10**exponent, basis.expanded_joules / 10**exponent
    energy = f"{joules:.{decimals_for(joules, error)}f}"
    if error > 0:
        energy = f"({energy} ± {error:.{decimals_for(joules, error)}f})"
    count = len(basis.windows)
    return [
        time,
        f"energy: run {basis.run}, {count} {'window' if count == 1 else 'windows'}, {energy} {letter}J per inference "
        f"at {quantity(basis.mean_power_watts, 'W')}",
    ]


def render_table(view: LayerView, smallest: float = SMALLEST_SHARE) -> str:
    """For people: an operator a line, in the order in which they ran, small ones together."""
    rows = [*group_small(view, smallest), view.between]
    time_exponent, time_letter = prefix_for(row.seconds for row in rows)
    energy_exponent, energy_letter = prefix_for(row.joules or 0.0 for row in rows)
    with_energy = view.basis is not None
    table = [["operator", "kind", f"time {time_letter}s", "time %", "MACs", "MACs %", "GMAC/s"]]
    if with_energy:
        table[0].append(f"est. energy {energy_letter}J")
    total = Row("total", "", view.seconds, 1.0, view.macs, 1.0 if view.macs else None, _energy(view), 0)
    for row in (*rows, total):
        cells = [
            row.name,
            row.op,
            plain(row.seconds / 10**time_exponent),
            f"{row.share:.1%}",
            "?" if row.macs is None else f"{row.macs:,}" if row.macs else "-",
            "-" if not row.macs_share else f"{row.macs_share:.1%}",
            plain(row.macs / row.seconds * 1e-9) if row.macs and row.seconds else "-",
        ]
        if with_energy:
            cells.append("-" if row.joules is None else plain(row.joules / 10**energy_exponent))
        table.append(cells)
    lines = [title(view), *basis_lines(view), *loud_lines(view), "", *align(table, left=2)]
    lines.append("Times, MACs and energies are per inference.")
    lines += [f"note: {note}" for note in view.notes]
    return "\n".join(lines) + "\n"


def _energy(view: LayerView) -> float | None:
    return None if view.basis is None else view.basis.joules_per_inference


def render_csv(view: LayerView) -> str:
    """Every operator, in base units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("network", "runtime", "precision", "batch_size", "operator", "kind", "seconds_per_inference"),
            *("time_share", "macs_per_inference", "macs_share", "estimated_joules_per_inference"),
        ]
    )
    about = view.about
    for row in (*view.rows, view.between):
        writer.writerow(
            [
                *(about.get("network", ""), about.get("runtime", ""), about.get("precision", ""), view.batch_size),
                *(row.name, row.op, f"{row.seconds:.6g}", f"{row.share:.6g}", "" if row.macs is None else row.macs),
                "" if row.macs_share is None else f"{row.macs_share:.6g}",
                "" if row.joules is None else f"{row.joules:.6g}",
            ]
        )
    return out.getvalue()


def document(view: LayerView) -> dict[str, Any]:
    """Everything as plain data, in base units."""
    basis, trace = view.basis, view.trace
    return {
        "schema_version": SCHEMA_VERSION,
        **view.about,
        "batch_size": view.batch_size,
        "energy_is_estimated": True,
        "energy_method": METHOD,
        "trace": {
            "source": trace.source,
            "batches": trace.batches,
            "seconds_per_inference": _digits(trace.time_ns * 1e-9 / (trace.batches * trace.batch_size)),
            "untraced_seconds_per_inference": None
            if trace.plain_time_ns is None
            else _digits(trace.plain_time_ns * 1e-9 / (trace.batches * trace.batch_size)),
            "overlapping": trace.overlapping,
        },
        "basis": None
        if basis is None
        else {
            **{key: value for key, value in dataclasses.asdict(basis).items() if key not in ("windows", "methods")},
            "windows": list(basis.windows),
            "methods": list(basis.methods),
            "mean_power_watts": _digits(basis.mean_power_watts),
        },
        "macs_per_inference": view.macs,
        "operators": [_row_document(row) for row in view.rows],
        "between_operators": _row_document(view.between),
        "notes": list(view.notes),
    }


def render_json(view: LayerView) -> str:
    """``document`` as JSON."""
    return json.dumps(document(view), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row_document(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "op": row.op,
        "seconds_per_inference": _digits(row.seconds),
        "time_share": _digits(row.share),
        "macs_per_inference": row.macs,
        "macs_share": None if row.macs_share is None else _digits(row.macs_share),
        "estimated_joules_per_inference": None if row.joules is None else _digits(row.joules),
    }


def _digits(value: float) -> float:
    """Nine digits: more than any clock has, and none of floating point's noise."""
    return float(f"{value:.9g}") if math.isfinite(value) else 0.0
