"""Audit of the run conditions of GPUs: what slowed them down, and settings that change their energy.

The conditions are those of ``runner.gpu_conditions``, and of ``runner.other_workloads``. They concern the run
wherever its GPUs are. Experimental: has not been run on an NVIDIA GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import Finding, Severity
from joulewatch_harness.plan.runtimes import is_server
from joulewatch_harness.records import Window

SHARES: Final[Mapping[str, tuple[str, str, Severity]]] = {
    "gpu_thermal_s": ("gpu_throttled_thermal", "heat reduced its clocks", "error"),
    "gpu_hot_s": ("hot", "it was within 5 °C of the temperature at which its clocks are reduced", "info"),
}
"""Key of ``Window.conditions`` -> reason, sentence and severity of more than ``LARGEST_SHARE`` of a window."""
LARGEST_SHARE: Final = 0.01
LARGEST_CAPPED: Final = 0.05
"""Share of a window for which the power limit may reduce the clocks, and by which the rounds may differ."""
LARGEST_SPREAD: Final = 0.03
"""Largest relative difference of the mean clocks of the rounds."""
LARGEST_OTHER_USE: Final = 0.02
"""Largest use of a GPU by others."""
SMOOTHING: Final = "gpu_power_smoothing"


def check_gpu_conditions(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    """Report what disturbed the GPUs in a measure window, and power limits that changed."""
    window = measured.window
    seconds = window.conditions.get("seconds", 0.0)
    if window.kind != "measure" or seconds <= 0 or not window.has_device_conditions:
        return

    def finding(severity: Severity, reason: str, device: str, text: str, **evidence: float) -> Finding:
        return Finding(
            severity=severity,
            reason=reason,
            text=f"{device}: {text}",
            evidence={"device": device, **evidence},
            window=window.index,
        )

    for key, (reason, sentence, severity) in SHARES.items():
        for device, used_s in window.device_conditions(key).items():
            share = min(used_s / seconds, 1.0)
            if share > LARGEST_SHARE:
                text = f"{sentence} for {100 * share:.3g} % of the window"
                yield finding(severity, reason, device, text, share=share, seconds=used_s)
    for device, errors in window.device_conditions("gpu_ecc_errors").items():
        text = f"{count_of(round(errors), 'uncorrected memory error')} (ECC) in the window"
        yield finding("warning", "ecc_errors", device, text, errors=errors)
    for device in window.device_conditions("gpu_limit_changed"):
        text = "its power limit changed in the window or since the one before"
        yield finding("error", "power_limit_changed", device, text)
    if any(item.name == window.configuration and is_server(item.runtime) for item in run.record.header.configurations):
        return  # the processes of a server belong to the run
    shares = window.device_conditions("gpu_others_share")
    for device, others in window.device_conditions("gpu_others").items():
        share = shares.get(device, 0.0)
        count = count_of(round(others), "other workload")
        text = f"{count} held the GPU and used {100 * share:.3g} % of its time"
        severity = "error" if share > LARGEST_OTHER_USE else "warning"
        yield finding(severity, "gpu_shared", device, text, workloads=others, share=share)


def check_gpu_settings(run: MeasuredRun) -> Iterator[Finding]:
    """Report settings of the GPUs that change their energy, once per run."""
    windows = [
        measured.window
        for measured in run.windows
        if measured.window.kind in ("measure", "idle") and measured.window.has_device_conditions
    ]
    for device, values in _by_device(windows, "gpu_limit_ratio").items():
        ratio = values[-1]
        text = f"{device}: its power limit is {100 * ratio:.4g} % of the default"
        yield _of_run("info", "power_limit_not_default", device, text, ratio=ratio)
    floors = _by_device(windows, "gpu_power_floor_watts")
    for device in _by_device(windows, SMOOTHING):
        floor_watts = max(floors.get(device, (0.0,)))
        floor = f", at {floor_watts:.4g} W at least" if floor_watts else ""
        text = (
            f"{device}: power smoothing keeps its power up when the work ends{floor}; that energy is not the "
            "network's, and idle power is not known"
        )
        yield _of_run("warning", "power_smoothing_on", device, text, floor_watts=floor_watts)
    for device, values in _by_device(windows, "gpu_power_profiles").items():
        mask = int(max(values))
        numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
        text = f"{device}: workload power profile {', '.join(map(str, numbers))} is active"
        yield _of_run("info", "power_profile_active", device, text, mask=mask)


def check_gpu_rounds(run: MeasuredRun) -> Iterator[Finding]:
    """Report GPUs that were at their power limit, and clocks that differ between the rounds of a network."""
    for name, windows in rounds_of(run).items():
        if not any(window.has_device_conditions for window in windows):
            continue
        capped: dict[str, list[float]] = {}
        for window in windows:
            for device, used_s in window.device_conditions("gpu_power_capped_s").items():
                capped.setdefault(device, []).append(min(used_s / window.conditions["seconds"], 1.0))
        for device, shares in capped.items():
            most, least = max(shares), min(shares) if len(shares) == len(windows) else 0.0
            if most <= LARGEST_CAPPED:
                continue
            is_alike = len(windows) > 1 and most - least <= LARGEST_CAPPED
            text = (
                f"{name}: the power limit reduced the clocks of {device} for {100 * least:.3g} to {100 * most:.3g} % "
            )
            yield _of_run(
                "info" if is_alike else "warning",
                "gpu_power_capped",
                device,
                f"{text}of the windows",
                largest_share=most,
                smallest_share=least,
            )
        for device, clocks in _by_device(windows, "gpu_sm_mhz").items():
            mean = sum(clocks) / len(clocks)
            spread = (max(clocks) - min(clocks)) / mean if mean > 0 else 0.0
            if spread > LARGEST_SPREAD:
                text = (
                    f"{name}: the mean clock of {device} differs by {100 * spread:.3g} % between the rounds, "
                    f"{min(clocks):.4g} to {max(clocks):.4g} MHz"
                )
                yield _of_run("warning", "clocks_differ", device, text, spread=spread)


def rounds_of(run: MeasuredRun) -> dict[str, list[Window]]:
    """Return network and batch size -> its measure windows with known conditions, without interrupted ones."""
    rounds: dict[str, list[Window]] = {}
    for measured in run.windows:
        window = measured.window
        is_usable = window.kind == "measure" and "interrupted" not in window.flags
        if is_usable and window.conditions.get("seconds", 0.0) > 0:
            rounds.setdefault(f"{window.configuration} batch {window.batch_size}", []).append(window)
    return rounds


def smoothed(run: MeasuredRun) -> frozenset[str]:
    """Return the devices whose idle power is not known, because power smoothing raises it."""
    return frozenset(device for measured in run.windows for device in measured.window.device_conditions(SMOOTHING))


def _by_device(windows: Iterable[Window], name: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for window in windows:
        for device, value in window.device_conditions(name).items():
            values.setdefault(device, []).append(value)
    return values


def _of_run(severity: Severity, reason: str, device: str, text: str, **evidence: float) -> Finding:
    return Finding(severity=severity, reason=reason, text=text, evidence={"device": device, **evidence})
