"""Audit of the machine: whether it was idle in idle windows, and ran nothing else while a network was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.plan.runtimes import is_server
from joulewatch_harness.records import RunRecord, Window

QUIET_SHARE: Final = 0.02
"""Largest share of the processor time that other work may use in a window."""
BUSY_SHARE: Final = 0.05
"""An idle window with more other work than this is busy: net energy is not reported."""
LEAST_LOAD_S: Final = 0.03
"""Smallest significant processor time: the kernel rounds two counts to 10 ms at either edge."""


def check_other_load(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    """Report what else the harness's machine did, if one of its sensors measured the run."""
    window = measured.window
    name, largest, advice = _LOADS.get(window.kind, ("", math.inf, ""))
    share = other_load(window)
    if share <= QUIET_SHARE or not measures_this_machine(run, run.sensors):
        return
    if window.kind == "measure" and _is_server(run.record, window.configuration):
        return  # its load is the run's own, in processes that the harness does not know
    yield Finding(
        severity="error" if share > largest else "warning",
        reason=name,
        text=f"other work used {100 * share:.3g} % of the processor time during the window; {advice}",
        evidence={"share": share},
        window=window.index,
    )


_LOADS: Final[Mapping[str, tuple[str, float, str]]] = {
    "idle": ("idle_busy", BUSY_SHARE, "stop it, or wait until it ends, and run again"),
    "measure": ("other_load", math.inf, "stop it and run again: the results include its energy"),
}
"""Kind of window -> reason, largest share that is a warning, advice."""


def other_load(window: Window) -> float:
    """Return the share of the machine's processor time in a window that was not the run's own; 0 if not known.

    The kernel rounds its counts, so less than ``LEAST_LOAD_S`` of processor time is not significant. On one processor
    that is 3 % of a window of 1 s; on two, or in windows of 1.5 s, it is less than ``QUIET_SHARE``.
    """
    used = window.processor_time
    if used is None or window.duration_s <= 0 or used.processors < 1:
        return 0.0
    other_s = used.busy_s - used.own_s
    return other_s / (used.processors * window.duration_s) if other_s > LEAST_LOAD_S else 0.0


def measures_this_machine(run: MeasuredRun, sensors: Iterable[SensorId]) -> bool:
    """Return whether one of some sensors measures the harness's machine; an emulated one measures none."""
    header = run.record.header
    here = header.provenance.get("host")
    for sensor in sensors:
        machine = header.machine_of(run.sensors[sensor])
        is_here = machine == here if machine and here else sensor.exporter in run.clocks.shared
        if is_here and run.sensors[sensor].method != "emulated":
            return True
    return False


def is_busy(window: Window) -> bool:
    """Return whether so much else ran in an idle window that its power is not the idle power."""
    return other_load(window) > BUSY_SHARE


def _is_server(record: RunRecord, configuration: str) -> bool:
    return any(item.name == configuration and is_server(item.runtime) for item in record.header.configurations)
