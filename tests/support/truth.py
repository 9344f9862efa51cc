"""The true energy of a run on an emulated machine, to compare with the measured one."""

from __future__ import annotations

from collections.abc import Collection
from statistics import fmean

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.records import RunRecord


def true_joules_per_inference(
    record: RunRecord, truth: Truth, keys: Collection[str] | None = None
) -> dict[tuple[str, int], float]:
    """Return (configuration, batch size) -> mean over its measure windows of the true joules per inference.

    Args:
        record: The run.
        truth: The truth of the machine that was measured.
        keys: The devices to add up; None: all devices of the machine.
    """
    result: dict[tuple[str, int], list[float]] = {}
    for window in record.windows:
        if window.kind == "measure" and window.inferences:
            end_s = window.start_s + window.duration_s
            joules = sum(truth.energy_joules(key, window.start_s, end_s) for key in keys or truth.keys)
            result.setdefault((window.configuration, window.batch_size), []).append(joules / window.inferences)
    return {cell: fmean(values) for cell, values in result.items()}
