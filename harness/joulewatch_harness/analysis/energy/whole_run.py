"""The energies of a run as results use them: without frozen sensors, settled and calibrated, in this order."""

from __future__ import annotations

from joulewatch_harness.analysis.energy.calibrated import with_calibrations
from joulewatch_harness.analysis.energy.frozen import withhold_frozen
from joulewatch_harness.analysis.energy.settling import with_settling
from joulewatch_harness.analysis.energy.windows import MeasuredRun, measure_run
from joulewatch_harness.analysis.sources.history import History
from joulewatch_harness.records import RunRecord


def measure_whole_run(record: RunRecord, history: History) -> MeasuredRun:
    """Return the energies of all windows of a run."""
    return with_calibrations(with_settling(withhold_frozen(measure_run(record, history))))
