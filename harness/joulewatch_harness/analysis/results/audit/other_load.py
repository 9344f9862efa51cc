"""Audit of the machine: whether it was idle in idle windows, and what ran while a network was measured.

In idle windows, other work is the processor time that was not the run's own. In measure windows it is the active energy
of programs that have nothing to do with the run (``whose``), as a share of all active energy: what measures, and the
kernel, are not other work. Where whose energy it was is not known, the share is that of the processor time in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import Finding, Severity
from joulewatch_harness.analysis.results.model import WindowShares
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.plan.runtimes import is_server
from joulewatch_harness.records import RunRecord, Window

QUIET_SHARE: Final = 0.02
"""Largest share of the processor time that other work may use in an idle window."""
BUSY_SHARE: Final = 0.05
"""An idle window with more other work than this is busy: net energy is not reported."""
LEAST_LOAD_S: Final = 0.03
"""Smallest significant processor time: the kernel rounds two counts to 10 ms at either edge."""
SEVERITIES: Final[tuple[tuple[float, Severity], ...]] = ((0.10, "error"), (0.02, "warning"), (0.005, "info"))
"""Share of the active energy of a measure window above which other work is a finding, with its severity."""


def check_idle_load(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    """Report that the harness's machine was busy in an idle window, if one of its sensors measured the run."""
    window = measured.window
    share = other_load(window)
    if window.kind != "idle" or share <= QUIET_SHARE or not measures_this_machine(run, run.sensors):
        return
    yield Finding(
        severity="error" if share > BUSY_SHARE else "warning",
        reason="idle_busy",
        text=f"other work used {100 * share:.3g} % of the processor time during the window; stop it, or wait until it "
        "ends, and run again",
        evidence={"share": share},
        window=window.index,
    )


def check_measure_load(
    run: MeasuredRun, measured: MeasuredWindow, shares: WindowShares | None = None, why_not: str = ""
) -> Iterator[Finding]:
    """Report other work on the harness's machine in a measure window, if one of its sensors measured the run.

    Args:
        run: The run.
        measured: The window.
        shares: Whose the energy of all devices was; None: not known.
        why_not: Why it is not known.
    """
    window, used = measured.window, measured.window.processor_time
    if window.kind != "measure" or used is None or used.others_s <= LEAST_LOAD_S:
        return
    if not measures_this_machine(run, run.sensors):
        return
    if _is_server(run.record, window.configuration):
        return  # its load is the run's own, in processes that the harness does not know
    evidence: dict[str, str | float | int] = {"seconds": used.others_s}
    if shares is not None and shares.active_joules > 0:
        part = shares.parts["others"]
        share = part.joules / shares.active_joules
        evidence |= {"joules": part.joules, "low_joules": part.low_joules, "high_joules": part.high_joules}
        text = (
            f"other work used {part.joules:.3g} J ({part.low_joules:.3g} to {part.high_joules:.3g} J), "
            f"{100 * share:.3g} % of the energy above idle power"
        )
        advice = "stop it and run again: gross and net energy include it, attributed energy does not"
    else:
        share = used.others_s / max(used.busy_s, used.own_s + used.others_s)
        text = f"other work used {100 * share:.3g} % of the processor time in use"
        text += f" (its energy is not known, because {why_not})" if why_not else ""
        advice = "stop it and run again: the results include its energy"
    if window.other_workloads:
        names = [f"{name} ({seconds:.3g} s of a processor)" for name, seconds in window.other_workloads.items()]
        text += f". Largest: {', '.join(names)}"
        evidence |= {f"workload_{number}": name for number, name in enumerate(window.other_workloads, 1)}
    severity = next((name for limit, name in SEVERITIES if share > limit), None)
    if severity is not None:
        yield Finding(
            severity=severity,
            reason="other_load",
            text=f"{text}; {advice}",
            evidence={"share": share, **evidence},
            window=window.index,
        )


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
    return any(is_here(run, sensor) for sensor in sensors)


def is_here(run: MeasuredRun, sensor: SensorId) -> bool:
    """Return whether a sensor measures the harness's machine; an emulated one measures none."""
    header = run.record.header
    here = header.provenance.get("host")
    machine = header.machine_of(run.sensors[sensor])
    is_same = machine == here if machine and here else sensor.exporter in run.clocks.shared
    return is_same and run.sensors[sensor].method != "emulated"


def is_busy(window: Window) -> bool:
    """Return whether so much else ran in an idle window that its power is not the idle power."""
    return other_load(window) > BUSY_SHARE


def _is_server(record: RunRecord, configuration: str) -> bool:
    return any(item.name == configuration and is_server(item.runtime) for item in record.header.configurations)
