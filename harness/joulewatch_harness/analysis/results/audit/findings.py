"""The findings of the audit: each has a severity, a stable reason code, a sentence with the fix, and evidence.

Severity ``error``: a result is contradicted or missing, and ``--strict`` fails. ``warning``: a person should check the
result. ``info``: worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["info", "warning", "error"]
Evidence = Mapping[str, str | float | int]

REASONS: Final[Mapping[str, str]] = {
    "sample_gap": "samples are missing",
    "exporter_restart": "the exporter restarted inside a window",
    "clock_skew": "the clocks of exporter and harness differ",
    "clock_stepped": "a clock was set during the run, or a reading has a time after the answer that contains it",
    "clock_unknown": "the clock of an exporter was never compared with the harness's",
    "unbracketed": "no sample before the start or after the end of a window",
    "below_refresh": "a window is short compared with the sensor's refresh period",
    "edge_history_disagreement": "the edges and the history of a counter contradict each other",
    "edge_missing": "an exporter was not read at an edge",
    "no_samples": "a sensor has no samples",
    "too_few_samples": "a window has fewer than two samples of power",
    "sensor_asleep": "a device was asleep (runtime suspend)",
    "sensor_down": "the exporter could not read a device",
    "wraps_seen": "a hardware counter wrapped; the wraps were corrected",
    "recording_damaged": "the recording cannot be read; energies come from the edges in the journal",
    "refreshes_missed": "many edges are without a refresh of the counter, for which the exporter waits",
    "rejected_readings": "readings outside physical bounds were rejected",
    "unmeasured_time": "a counter did not cover part of a window",
    "core_exceeds_package": "a part used more energy than its device",
    "devices_exceed_node": "the devices used more energy than the whole server",
    "idle_drift": "idle power changed over the run",
    "not_steady": "the network was not steady after the warm-up",
    "power_not_steady": "power changed inside a window",
    "repeats_apart": "the rounds differ too much, or the target was not reached",
    "dependent_rounds": "neighbouring rounds are alike, so the uncertainty holds for the time of the run only",
    "single_repeat": "only one usable round, so the repeatability is unknown and ± is omitted",
    "accuracy_unknown": "the accuracy of a sensor is not published, so the uncertainty does not include it",
    "calibrated": "energies of a sensor are calibrated against a reference",
    "outside_calibration": "a power is outside of the range in which its sensor was calibrated",
    "identity_conflict": "samples may be of another exporter",
    "source_overlap": "exporters of several sources read the same device; it counts once",
    "targets_merged": "one exporter is stored under several targets; it counts once",
    "exporter_missing": "an exporter of the run has no samples in the source",
    "estimated_energy": "energies are estimated, not measured",
    "emulated_energy": "energies come from an emulated machine",
    "unknown_method": "the measurement method of a sensor is not known",
    "interrupted": "the run or a window was interrupted",
    "too_short": "a window is shorter than planned",
    "too_uncertain": "the uncertainty of a sensor's energy in a window is larger than the energy",
    "overlapping": "windows of several threads or tasks were open at the same time",
    "overloaded": "a server could not keep up with its queries",
    "no_idle": "no idle window: no net energy",
    "no_sensors": "the run has no energy sensor",
    "frozen": "a sensor's value did not change while time passed or the load changed",
    "load_draws_idle": "a network draws no more than the idle machine",
    "idle_busy": "the machine was busy in an idle window",
    "other_load": "other work ran while a network was measured",
    "cpu_pressure": "programs waited for a processor during a window",
    "memory_pressure": "programs waited for memory during a window",
    "steal": "the hypervisor ran other guests during a window",
    "swapping": "pages were read from swap during a window",
    "cpu_throttled": "heat reduced the clock of the processor during a window",
    "governor_changed": "the frequency governor changed during the run",
    "turbo_changed": "turbo (boost) was switched during the run",
    "power_limit_changed": "a power limit of a processor or GPU changed during the run",
    "governor_not_performance": "the frequency governor lets the clock depend on the load",
    "frequency_drift": "the processors ran at another frequency in the last rounds than in the first",
    "gpu_throttled_thermal": "heat reduced the clocks of a GPU during a window",
    "gpu_power_capped": "the power limit reduced the clocks of a GPU",
    "power_limit_not_default": "the power limit of a GPU is not its default",
    "power_smoothing_on": "power smoothing of a GPU is on: its idle power is not known",
    "power_profile_active": "a workload power profile of a GPU is active",
    "clocks_differ": "the mean clock of a GPU differs between the rounds",
    "hot": "a GPU was close to the temperature at which its clocks are reduced",
    "ecc_errors": "the memory of a GPU had uncorrected errors during a window",
    "gpu_shared": "other workloads held a GPU while a network was measured",
    "settle_too_short": "the load before a window was shorter than a sensor's refresh period",
    "missing_windows": "windows of the run are missing or stored twice",
    "made_up_inputs": "inputs of a network are made up, and may change its work",
    "not_finite_outputs": "outputs of a network are NaN or infinite",
}
"""Every reason code with its meaning."""

FIXES: Final[Mapping[str, str]] = {
    "sample_gap": "check why the source has no samples; the edges of the journal do not need them",
    "exporter_restart": "repeat the run; `journalctl` shows why the exporter restarted",
    "clock_skew": "synchronize the clocks (NTP)",
    "clock_stepped": "let the time service (NTP) slew the clocks, and repeat the run",
    "clock_unknown": "synchronize the clocks (NTP); name a joulewatch-exporter with `--exporter` and update 0.1.0",
    "unbracketed": "wait for the next scrape before you analyze; read the exporter at edges",
    "below_refresh": "use longer windows; `profile`: `--window`, `max_window_s`",
    "edge_history_disagreement": "check that journal and source hold the same exporter; scrape it directly",
    "edge_missing": "check that the exporter runs and answers within the time limit",
    "no_samples": "name the exporter in the plan, or scrape it",
    "too_few_samples": "scrape power sensors without a counter more often, or use longer windows",
    "sensor_asleep": "if it takes part in the work, keep it awake: write `on` to its `power/control` in sysfs",
    "sensor_down": "`joulewatch-exporter check` and the exporter's log show why",
    "wraps_seen": "none needed",
    "recording_damaged": "restore the file from a copy, and check the disk",
    "refreshes_missed": "stop other load, or use longer windows",
    "rejected_readings": "check the sensor's driver and firmware",
    "unmeasured_time": "scrape more often than the counter wraps",
    "core_exceeds_package": "check the sensor with `joulewatch-exporter check`; disable it if it is wrong",
    "devices_exceed_node": "check which sensor is wrong; its accuracy may be worse than published",
    "idle_drift": "use longer idle windows; let the machine reach its temperature first",
    "not_steady": "raise `warmup_s`",
    "power_not_steady": "use a longer warm-up or longer windows",
    "repeats_apart": "use more or longer windows, stop other load; `profile`: raise `max_run_s`",
    "dependent_rounds": "stop other load; on a shared host, compare repeated runs",
    "single_repeat": "use at least three rounds; the other findings show why rounds were lost",
    "accuracy_unknown": "calibrate the sensor against a meter, or compare only results of the same sensor",
    "calibrated": "none needed",
    "outside_calibration": "calibrate the sensor again, with loads on both sides of that power",
    "identity_conflict": "give each exporter its own address and nodename, or select one with `--match LABEL=VALUE`",
    "source_overlap": "give one `--source` that reads the device",
    "targets_merged": "none needed; one target is enough",
    "exporter_missing": "add the exporter to the scrape configuration, with the name that the plan gives it",
    "estimated_energy": "run on a machine with a power sensor; see `joulewatch-exporter check`",
    "emulated_energy": "use the results for tests only",
    "unknown_method": "store `joulewatch_sensor_info`: scrape all metrics of the exporter",
    "interrupted": "repeat the run if the rounds that are left are too few",
    "too_short": "raise `max_window_s`",
    "too_uncertain": "use longer windows, scrape more often, or stop other load",
    "overlapping": "measure one thread or task at a time, or all of them in one window",
    "overloaded": "lower `server_rate_per_s`",
    "no_idle": 'set `idle_s` above 0; for your own code or a command, `Meter(idle="measured")` or `--idle`',
    "no_sensors": "`joulewatch-exporter check` lists what each sensor needs",
    "frozen": "restart the driver or the machine, or disable the sensor in the exporter",
    "load_draws_idle": "check that the network runs on a measured device, and that its sensor works",
    "idle_busy": "stop other work, also timers and updates, and repeat the run",
    "other_load": "stop other work and repeat the run, or use `attributed` energy; gross and net energy contain it",
    "cpu_pressure": "stop other work, or use fewer threads than processors",
    "memory_pressure": "stop other work, or use smaller networks or batches",
    "steal": "use a dedicated machine, or repeat the run when the host is quiet",
    "swapping": "free memory, or switch swap off, and repeat the run",
    "cpu_throttled": "improve the cooling, or set a lower power limit",
    "governor_changed": "stop the service that changes it, and repeat the run",
    "turbo_changed": "stop the service that switches it, and repeat the run",
    "power_limit_changed": "stop the service that changes it, and repeat the run",
    "governor_not_performance": "set it with `cpupower frequency-set -g performance`",
    "frequency_drift": "fix the frequency (`cpupower frequency-set`), improve the cooling, or use a longer warm-up",
    "gpu_throttled_thermal": "improve the cooling, or set a lower power limit (`nvidia-smi -pl`)",
    "gpu_power_capped": "compare only results with the same limit, or lock lower clocks (`nvidia-smi -lgc`)",
    "power_limit_not_default": "compare only results with the same limit, or restore it with `nvidia-smi -pl`",
    "power_smoothing_on": "switch it off, or compare gross energy only",
    "power_profile_active": "compare only results with the same profile",
    "clocks_differ": "lock the clocks (`nvidia-smi -lgc`), or use a longer warm-up",
    "hot": "improve the cooling",
    "ecc_errors": "reset or replace the GPU; `nvidia-smi -q -d ECC` shows the errors",
    "gpu_shared": "stop the other work and repeat the run; gross and net energy contain it",
    "settle_too_short": "set `settle_s` to at least the refresh period",
    "missing_windows": "deliver the rest with `joulewatch runs push`, or repeat the run",
    "made_up_inputs": "give real ones with `--option inputs=FILE.npz`, or fixed ones with `values`; see Model files",
    "not_finite_outputs": "if random inputs are the reason, give real ones with `--option inputs=FILE.npz`",
}
"""Every reason code with its fix, in the words of the README; `names` of flags, keys and commands are in backticks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of the audit."""

    severity: Severity
    reason: str
    text: str
    evidence: Evidence = field(default_factory=dict)
    window: int | None = None
    """Index of the window; None: the finding is about the run."""


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the highest severity among findings."""
    order: tuple[Severity, ...] = ("info", "warning", "error")
    return max((finding.severity for finding in findings), key=order.index, default=None)
