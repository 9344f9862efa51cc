"""Analyzed runs for the tests of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joulewatch_harness.analysis.reports.html_parts import ReportedRun
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.timeline import power_lines
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.records import Note, PhaseTime, RunRecord, Window
from support.synthetic import RUN, TWO_SOCKETS, ListSource, make_world, sensor

HOSTILE: Final = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\u202e"
_KEPT: Final = frozenset({"kind", "severity", "reason", "scope", "status", "method", "started_at_s", "component"})
"""Fields that decide what is shown."""


def reported(
    *,
    run: str = RUN,
    configurations: Sequence[str] = ("net/onnxruntime/fp32", "net/onnxruntime/int8"),
    batch_sizes: Sequence[int] = (1, 8, 64),
    rounds: int = 3,
    cpu: str = "AMD EPYC 7763",
    history: bool = True,
) -> ReportedRun:
    """Return a run with two sockets, memory, a GPU, a whole server, phases, a note and findings of each severity."""
    extra = (
        sensor("GPU-0", "board", "gpu", collector="nvml", method="integrated", accuracy=0.05, refresh_s=0.1),
        sensor("psys", "total", "node", "node", primary=True, host="node1"),
    )
    sizes = {"configurations": configurations, "batch_sizes": batch_sizes, "rounds": rounds}
    world = make_world((*TWO_SOCKETS, *extra), noise=0.01, run=run, **sizes)  # type: ignore[arg-type]
    assert world.record is not None
    header = world.record.header
    provenance = {**header.provenance, "cpu": {"model": cpu, "sockets": 2}, "versions": {"joulewatch": "0.1.0"}}
    record = dataclasses.replace(
        world.record,
        header=dataclasses.replace(header, provenance=provenance),
        windows=tuple(map(_with_phases, world.record.windows)),
        notes=(Note(at_s=header.started_at_s + 1, reason="batch_failed", text="batch 128 failed: no memory"),),
    )
    result, lines = _analyzed(record, ListSource(world.scrapes()) if history else None)
    findings = [
        Finding(severity="error", reason="frozen", text="a value did not change", window=3),
        *(Finding(severity="warning", reason="other_load", text="other work ran", window=n) for n in range(5)),
        Finding(severity="info", reason="wraps_seen", text="a counter wrapped"),
    ]
    return ReportedRun(dataclasses.replace(result, findings=(*result.findings, *findings)), lines)


def _analyzed(record: RunRecord, source: ListSource | None) -> tuple[Any, Any]:
    return analyze_run(record, source), power_lines(record, source)


def _with_phases(window: Window) -> Window:
    if window.kind != "measure":
        return window
    shares = {"copy_in": 0.2, "execute": 0.7, "other": 0.1}
    phases = {name: PhaseTime(window.batches, share * window.duration_s) for name, share in shares.items()}
    return dataclasses.replace(window, phases=phases)


def poisoned(value: Any, name: str = "") -> Any:
    """Return a value in which every text, also every key of a mapping, ends with hostile HTML."""
    if isinstance(value, str):
        return value if name in _KEPT else value + HOSTILE
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: poisoned(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, Mapping):
        return {poisoned(key, name): poisoned(item, name) for key, item in value.items()}
    if isinstance(value, SensorId):
        return SensorId(**{field: poisoned(text, field) for field, text in value._asdict().items()})
    if isinstance(value, (list, tuple)):
        return type(value)(poisoned(item, name) for item in value)
    return value
