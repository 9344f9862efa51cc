"""Audit of the run conditions: what disturbed the machine in the measure windows.

The conditions are the differences of the kernel's counters between the edges of a window (``runner.conditions``). They
concern a run only if one of its sensors measures the harness's machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import Finding, Severity
from joulewatch_harness.analysis.results.audit.gpu_conditions import rounds_of
from joulewatch_harness.analysis.results.audit.other_load import measures_this_machine
from joulewatch_harness.gum import mean

LEAST_STEAL_S: Final = 0.015
"""Smallest significant steal: the kernel counts in steps of 10 ms."""
LARGEST_DRIFT: Final = 0.03
"""Largest relative change of the frequency of the processors between the rounds."""
LEAST_PRESSURE_S: Final = 0.02
"""Smallest significant time for which tasks waited; matters in windows below a second."""
LARGEST_THROTTLED: Final = 0.01
"""Share of a window for which a core or package may be throttled."""


class Limit(NamedTuple):
    """Shares of the window above which a condition is a finding."""

    reason: str
    sentence: str
    limits: tuple[tuple[float, Severity], ...]


SHARES: Final[Mapping[str, Limit]] = {
    "cpu_pressure_s": Limit("cpu_pressure", "tasks waited for a processor", ((0.05, "warning"),)),
    "memory_pressure_s": Limit("memory_pressure", "tasks waited for memory", ((0.005, "warning"),)),
    "steal_s": Limit("steal", "the hypervisor ran other guests", ((0.05, "error"), (0.01, "warning"))),
}
"""Key of ``Window.conditions`` -> its limits, the highest first."""
CHANGES: Final[Mapping[str, str]] = {
    "governor_changed": "the governor of {} frequency policies changed",
    "turbo_changed": "turbo (boost) was switched",
    "power_limit_changed": "{} power limits of the processor changed",
}
"""Key of ``Window.conditions``, which is the reason code -> sentence."""


def check_conditions(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    """Report what disturbed a measure window, and settings that changed in it or since the window before."""
    window = measured.window
    conditions = window.conditions
    seconds = conditions.get("seconds", 0.0)
    if window.kind != "measure" or seconds <= 0 or not measures_this_machine(run, run.sensors):
        return

    def finding(severity: Severity, reason: str, text: str, **evidence: float) -> Finding:
        return Finding(severity=severity, reason=reason, text=text, evidence=evidence, window=window.index)

    for key, limit in SHARES.items():
        used_s = conditions.get(key, 0.0)
        share = used_s / seconds
        if key == "steal_s":
            share = share / max(conditions.get("processors", 1.0), 1.0) if used_s > LEAST_STEAL_S else 0.0
        elif used_s < LEAST_PRESSURE_S:
            continue
        if severity := next((name for least, name in limit.limits if share > least), None):
            text = f"{limit.sentence} for {100 * share:.3g} % of the window"
            yield finding(severity, limit.reason, text, share=share, seconds=used_s)
    if pages := conditions.get("swapped_in_pages", 0.0):
        text = f"{count_of(round(pages), 'page was', 'pages were')} read from swap during the window"
        yield finding("error", "swapping", text, pages=pages)
    throttled_s, count = conditions.get("throttled_s"), conditions.get("throttle_count", 0.0)
    if throttled_s is not None and throttled_s > LARGEST_THROTTLED * seconds:
        share = throttled_s / seconds
        text = f"heat reduced the clock of a core or package for {100 * share:.3g} % of the window"
        yield finding("error", "cpu_throttled", text, share=share, seconds=throttled_s)
    elif throttled_s is None and count > 0:
        text = (
            f"heat reduced the clock of a core or package {count_of(round(count), 'time')}; for how long is not known"
        )
        yield finding("warning", "cpu_throttled", text, count=count)
    for reason, sentence in CHANGES.items():
        if changes := conditions.get(reason, 0.0):
            text = f"{sentence.format(f'{changes:.0f}')} in the window or since the one before"
            yield finding("error", reason, text, changes=changes)


def check_frequency(run: MeasuredRun) -> Iterator[Finding]:
    """Report that the processors ran at another frequency in the first rounds of a network than in the last ones."""
    if not measures_this_machine(run, run.sensors):
        return
    for name, windows in rounds_of(run).items():
        clocks = [window.conditions["cpu_mhz"] for window in windows if "cpu_mhz" in window.conditions]
        half = len(clocks) // 2
        if not half:
            continue
        first, last = mean(clocks[:half]), mean(clocks[-half:])
        if abs(last - first) > LARGEST_DRIFT * first:
            yield Finding(
                severity="warning",
                reason="frequency_drift",
                text=f"{name}: the mean frequency of the busy processors was {first:.4g} MHz in the first half of the "
                f"rounds and {last:.4g} MHz in the second",
                evidence={"first_mhz": first, "last_mhz": last},
            )


def check_governor(run: MeasuredRun) -> Iterator[Finding]:
    """Report once per run that the frequency governor is not ``performance``."""
    governor = run.record.header.provenance_text("cpu", "governor")
    if governor not in ("", "performance") and measures_this_machine(run, run.sensors):
        yield Finding(
            severity="info",
            reason="governor_not_performance",
            text=f"the frequency governor is {governor}, so the clock depends on the load",
            evidence={"governor": governor},
        )
