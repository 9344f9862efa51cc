"""All metrics that joulewatch publishes, as data. Standard library only, because the harness imports this module.

The names are a contract: dashboards, rules, analysis and users depend on them. A change affects this file, the golden
expositions, the dashboards and the CHANGELOG together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

DEFAULT_PORT: Final = 10717

SENSOR_LABELS: Final = ("collector", "component", "device", "domain")
DEVICE_LABELS: Final = ("collector", "device")


# -- frozen sensors: one definition for the exporter's check and for the analysis --------------------
#
# A sensor is frozen if its value does not change for `frozen_after_s`, in at least `FROZEN_READS` reads, although
# - time passes, if it counts energy: whatever is switched on uses energy;
# - the load changes, if it reports power: an idle device may show the same watts for hours.

FROZEN_REFRESHES: Final = 20
"""A value that stays the same for fewer refreshes may do so by chance."""
FROZEN_READS: Final = 3
"""Reads with different read timestamps: 20 refreshes of a counter that is refreshed every millisecond are shorter than
the time between two scrapes. The load must have been low in this many reads and high in as many, because a power
sensor may miss a short peak."""
FROZEN_LOAD_WATTS: Final = 10.0
FROZEN_LOAD_SHARE: Final = 0.2
"""The load has changed if it differs by this share of its peak and by `FROZEN_LOAD_WATTS`, which is more than one step
of a BMC's reading."""
ASSUMED_REFRESH_S: Final = {"rapl": 0.001}
"""Refresh of a family until its sensors have measured their own: RAPL's is 1 ms (Intel SDM vol. 3B, 15.10)."""
FROZEN_ASSUMED_REFRESH_S: Final = 5.0
"""Refresh of any other sensor that has not been measured, because a frozen one shows no changes: that of a slow BMC."""
FROZEN_LEAST_WATTS: Final = 5.0
"""A counter with coarse steps is frozen only if it would have made a step at this power. A server uses more."""


def frozen_after_s(refresh_s: float | None, step_joules: float = 0.0, collector: str = "") -> float:
    """Return how long a value must stay the same before its sensor counts as frozen.

    Args:
        refresh_s: Time between changes of the sensor's value; None: unknown.
        step_joules: Step of an energy counter; 0: unknown, or a power sensor.
        collector: The sensor's family, for its refresh if that is unknown.
    """
    if refresh_s is None:
        refresh_s = ASSUMED_REFRESH_S.get(collector, FROZEN_ASSUMED_REFRESH_S)
    refreshes_s = FROZEN_REFRESHES * refresh_s
    return max(refreshes_s, step_joules / FROZEN_LEAST_WATTS)


_PREFIXES: Final = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9}


def resolution_joules(text: str) -> float:
    """Return the joules of a label ``resolution`` such as ``15.3 uJ``; 0 if it is empty or not an energy."""
    return _resolution(text, "J")


def resolution_watts(text: str) -> float:
    """Return the watts of a label ``resolution`` such as ``12 mW``; 0 if it is empty or not a power."""
    return _resolution(text, "W")


def _resolution(text: str, unit: str) -> float:
    match = re.fullmatch(rf"\s*([0-9.eE+-]+)\s*(\S?){unit}\s*", text)
    if match is None or match[2] not in _PREFIXES:
        return 0.0
    try:
        return float(match[1]) * _PREFIXES[match[2]]
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric family, under its full name in the exposition."""

    name: str
    unit: str
    labels: tuple[str, ...]
    help: str
    publisher: Literal["exporter", "harness", "analysis"]

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        return "counter" if self.name.endswith("_total") else "gauge"


def _exporter(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name=name, unit=unit, labels=labels, help=text, publisher="exporter")


_ENERGY_TEXT: Final = (
    "since the exporter first read it, with wraps removed. For power-only sensors, a background thread integrates the "
    "readings (trapezoidal rule). Starts at 0 when the exporter restarts."
)
_POWER_TEXT: Final = "over the last interval between readings (energy counters), or as the sensor reports it."

DEVICE_ENERGY: Final = _exporter(
    "joulewatch_device_energy_joules_total",
    "joules",
    SENSOR_LABELS,
    f"Energy of one device {_ENERGY_TEXT} Devices are disjoint, so they can be summed.",
)
NODE_ENERGY: Final = _exporter(
    "joulewatch_node_energy_joules_total",
    "joules",
    SENSOR_LABELS,
    f"Energy of the whole server {_ENERGY_TEXT} It includes the devices.",
)
PART_ENERGY: Final = _exporter(
    "joulewatch_part_energy_joules_total",
    "joules",
    SENSOR_LABELS,
    f"Energy of a part inside a device {_ENERGY_TEXT} It is included in its device: do not add the two.",
)
DEVICE_POWER: Final = _exporter(
    "joulewatch_device_power_watts", "watts", SENSOR_LABELS, f"Power of one device {_POWER_TEXT}"
)
NODE_POWER: Final = _exporter(
    "joulewatch_node_power_watts", "watts", SENSOR_LABELS, f"Power of the whole server {_POWER_TEXT}"
)
PART_POWER: Final = _exporter(
    "joulewatch_part_power_watts", "watts", SENSOR_LABELS, f"Power of a part inside a device {_POWER_TEXT}"
)
ENERGY_BY_SCOPE: Final = {"device": DEVICE_ENERGY, "node": NODE_ENERGY, "part": PART_ENERGY}
POWER_BY_SCOPE: Final = {"device": DEVICE_POWER, "node": NODE_POWER, "part": PART_POWER}

READ_TIMESTAMP: Final = _exporter(
    "joulewatch_read_timestamp_seconds",
    "seconds",
    DEVICE_LABELS,
    "Unix time at which the values of this scrape were read from the device. Use it instead of the scrape time.",
)
SENSOR_INFO: Final = _exporter(
    "joulewatch_sensor_info",
    "info",
    (
        "scope", *SENSOR_LABELS, "method", "reads", "read_mode", "primary", "host", "model", "source", "resolution",
        "accuracy", "accuracy_source",
    ),
    "How a quantity is measured. method: counter, integrated, estimated or emulated; reads: energy or power, as the "
    "sensor reports it; read_mode: on_request (for each scrape), polled (in the background on this machine) or remote "
    "(from a BMC over the network); primary: 1 for the one node sensor that counts for its host, 0 for other node "
    "sensors, else empty; host: nodename, or the target's name for a remote BMC; accuracy: relative half-width, or "
    "empty if unknown; accuracy_source: where it is published, or why it is assumed.",
)  # fmt: skip
SENSOR_UP: Final = _exporter(
    "joulewatch_sensor_up",
    "boolean",
    DEVICE_LABELS,
    "1 if the last read of the device succeeded completely. While it is 0, values that could not be read are absent; "
    "old values are never repeated.",
)
SENSOR_STATE: Final = _exporter(
    "joulewatch_sensor_state",
    "boolean",
    (*DEVICE_LABELS, "state"),
    "1 for the current state of the device. state: ok; asleep (in runtime suspend: it has no values, is not woken, and "
    "this is not a failure); or why it cannot be read: denied, absent, timeout, glitch or error.",
)
SENSOR_REFRESH: Final = _exporter(
    "joulewatch_sensor_refresh_seconds",
    "seconds",
    SENSOR_LABELS,
    "Measured time between changes of the sensor's value; absent until it has been measured.",
)
SENSOR_WRAPS: Final = _exporter(
    "joulewatch_sensor_wraps_total",
    "wraps",
    SENSOR_LABELS,
    "Number of wraps of the hardware counter, which the energy counter includes; absent for power sensors.",
)
SENSOR_RESETS: Final = _exporter(
    "joulewatch_sensor_resets_total",
    "resets",
    SENSOR_LABELS,
    "Number of restarts of the hardware counter, other than wraps; the time around each counts as unmeasured.",
)
SENSOR_REJECTED: Final = _exporter(
    "joulewatch_sensor_rejected_readings_total",
    "readings",
    SENSOR_LABELS,
    "Number of readings that were rejected because they are physically impossible.",
)
SENSOR_UNMEASURED: Final = _exporter(
    "joulewatch_sensor_unmeasured_seconds_total",
    "seconds",
    SENSOR_LABELS,
    "Time whose energy is missing from the energy counter, because reads failed or were late.",
)
SENSOR_WINDOW: Final = _exporter(
    "joulewatch_sensor_window_seconds",
    "seconds",
    SENSOR_LABELS,
    "Part of each refresh period over which the sensor averages, as published; the rest is not observed. Absent if the "
    "sensor observes the whole period, or if nothing is published.",
)
SENSOR_CALIBRATION: Final = _exporter(
    "joulewatch_sensor_calibration",
    "parameter",
    (*SENSOR_LABELS, "parameter"),
    "Calibration of a sensor against a reference: true power = gain * power + offset_watts. The exporter's energy and "
    "power are not corrected: the analysis and the recording rules apply the calibration. parameter: gain, "
    "offset_watts, gain_standard_uncertainty, offset_standard_uncertainty_watts, gain_offset_covariance_watts, "
    "linearity_watts (standard deviation from the line), lowest_watts and highest_watts (calibrated range of the "
    "power that the sensor reports).",
)
SENSOR_CALIBRATION_INFO: Final = _exporter(
    "joulewatch_sensor_calibration_info",
    "info",
    (*SENSOR_LABELS, "reference", "reference_accuracy", "date"),
    "Where the calibration of a sensor comes from. reference: the meter that it was compared with; "
    "reference_accuracy: its relative half-width, or empty if unknown; date: time of the calibration, which identifies "
    "it.",
)
CALIBRATION_PARAMETERS: Final = (
    "gain",
    "offset_watts",
    "gain_standard_uncertainty",
    "offset_standard_uncertainty_watts",
    "gain_offset_covariance_watts",
    "linearity_watts",
    "lowest_watts",
    "highest_watts",
)
"""Values of the label ``parameter``: fields of a calibration in the exporter and in the harness."""
DEVICE_LIMIT: Final = _exporter(
    "joulewatch_device_power_limit_watts",
    "watts",
    SENSOR_LABELS,
    "Power limit that the device enforces; absent if the device reports none.",
)
DEVICE_THROTTLED: Final = _exporter(
    "joulewatch_device_throttled_seconds_total",
    "seconds",
    ("device", "reason"),
    "Time in which the clocks of the device were reduced, since the exporter first read it. "
    "reason: power (power limit), thermal, reliability (voltage), board_limit, sync_boost, low_utilisation, "
    "hardware_thermal or power_brake. Reasons overlap, so do not add them. Absent if the device does not count it.",
)
PLAUSIBILITY_RATIO: Final = _exporter(
    "joulewatch_plausibility_ratio",
    "ratio",
    ("check", *DEVICE_LABELS, "domain"),
    "Ratio of two mean powers over at least 30 s. check: cores_to_package, rails_to_card, power_to_energy (integrated "
    "power of a GPU to its energy counter), devices_to_node, power_to_limit.",
)
SENSOR_IMPLAUSIBLE: Final = _exporter(
    "joulewatch_sensor_implausible",
    "boolean",
    ("check", *DEVICE_LABELS, "domain"),
    "1 if the ratio of this check was outside its bounds twice in a row, 10 s apart. For check stuck: 1 if the value "
    f"has not changed for {FROZEN_REFRESHES} refreshes while time passed (energy counters) or the load changed "
    "(power).",
)
WORKLOAD_ENERGY: Final = _exporter(
    "joulewatch_workload_energy_joules_total",
    "joules",
    ("component", "device", "kind", "workload"),
    "Active energy of one workload since it got its series: its share of what the devices used above their idle power. "
    "Workloads are disjoint, so they can be summed. device: empty for processors and memory. kind: unit, session, "
    "container, pod, slurm_job, vm or other.",
)
UNATTRIBUTED_ENERGY: Final = _exporter(
    "joulewatch_unattributed_energy_joules_total",
    "joules",
    ("component", "device", "reason"),
    "Energy of devices that belongs to no workload with series. reason: idle (drawn without work), rest (workloads "
    "without series), system (kernel threads, interrupts and the root cgroup) or gap (usage could not be read). In "
    "each interval, this and the energy of the workloads add up to the energy of the devices.",
)
WORKLOAD_CPU: Final = _exporter(
    "joulewatch_workload_cpu_seconds_total",
    "seconds",
    ("kind", "workload"),
    "Processor time of one workload since it got its series, without that of workloads inside it.",
)
WORKLOAD_GPU: Final = _exporter(
    "joulewatch_workload_gpu_seconds_total",
    "seconds",
    ("device", "kind", "workload"),
    "Time of a GPU that one workload used: its utilisation times time.",
)
WORKLOAD_RESERVED: Final = _exporter(
    "joulewatch_workload_reserved_ratio",
    "ratio",
    ("kind", "workload"),
    "Share of the processors that a living workload has by the weights of cgroups (cpu.weight, cpu.shares) if all of "
    "them want processors, without that of workloads inside it, from 0 to 1. Read at most every 30 s.",
)
WORKLOAD_INFO: Final = _exporter(
    "joulewatch_workload_info",
    "info",
    ("kind", "workload", "namespace", "pod", "container", "unit", "job", "step", "user", "server"),
    "Names of a workload; empty if unknown. server: the inference server that runs in it.",
)
ATTRIBUTION_INFO: Final = _exporter(
    "joulewatch_attribution_info",
    "info",
    ("component", "weight", "idle_source", "method"),
    "How the energy of a component is shared. weight: cpu_time, instructions, gpu_utilisation, mig_slice or sole_user; "
    "idle_source: measured, configured or none (all energy counts as active); method: that of the device's energy.",
)
WORKLOAD_RATIO: Final = _exporter(
    "joulewatch_workload_ratio",
    "ratio",
    ("component",),
    "The energies per processor second of two workloads differ at most by this factor, as joulewatch calibrate "
    "--workloads measured it on this machine. It limits the error of shares by processor time. Absent: not measured; "
    "the analysis and the recording rules use 2.",
)
WORKLOADS: Final = _exporter(
    "joulewatch_workloads",
    "workloads",
    ("state",),
    "Number of workloads. state: shown (living, with series), rest (living, without series) or gone (ended; their "
    "series are kept for a while).",
)
GPU_HELD: Final = _exporter(
    "joulewatch_gpu_held",
    "boolean",
    ("device", "kind", "workload"),
    "1 while a workload holds a GPU, whether it uses it or not.",
)
READ_ERRORS: Final = _exporter(
    "joulewatch_read_errors_total",
    "errors",
    (*DEVICE_LABELS, "reason"),
    "Number of reads of a device that failed. reason: absent, denied, glitch, timeout or error.",
)
READ_DURATION: Final = _exporter(
    "joulewatch_read_duration_seconds",
    "seconds",
    ("collector",),
    "Duration of the last scan of all devices of a collector.",
)
EXPORTER_INFO: Final = _exporter(
    "joulewatch_exporter_info",
    "info",
    ("version", "pythonversion", "nodename", "emulated"),
    "The exporter and the machine that it runs on. emulated: 1 if the sensors are emulated.",
)
EXPORTER_START: Final = _exporter(
    "joulewatch_exporter_start_timestamp_seconds",
    "seconds",
    (),
    "Unix time at which the exporter started; when it changes, all energy counters have restarted.",
)
EXPORTER_REFUSED: Final = _exporter(
    "joulewatch_exporter_refused_total",
    "refusals",
    ("limit",),
    "Number of connections and requests that a limit of the exporter refused. limit: connections (closed because too "
    "many were open), scrapes (too many at a time, HTTP 503), passwords (too many were being checked, HTTP 429), rate "
    "(rate_limit of the web configuration, HTTP 429).",
)

RUN_LABELS: Final = ("run", "configuration", "network", "runtime", "precision")
WINDOW_LABELS: Final = ("run", "configuration", "kind", "phase")


def _harness(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name=name, unit=unit, labels=labels, help=text, publisher="harness")


RUN_INFO: Final = _harness(
    "joulewatch_run_info",
    "info",
    (
        *RUN_LABELS, "actual_precision", "provider", "runtime_version", "scenario", "server_rate_per_second",
        "hardware", "nodename", "kernel", "governor", "model_sha256", "plan_sha256", "max_relative_uncertainty",
        "settle_seconds", "exporters", "exporter_nodenames", "schema", "version",
    ),
    "One configuration of a run, as observed after loading. scenario: offline, single_stream or server. "
    "max_relative_uncertainty: the target at which the rounds ended; without it their number was fixed. "
    "settle_seconds: how long the load ran before each window. exporter_nodenames: a regular expression that matches "
    "the nodename of each exporter of the run.",
)  # fmt: skip
RUN_STATUS: Final = _harness(
    "joulewatch_run_start_timestamp_seconds",
    "seconds",
    ("run", "status"),
    "Unix time at which a run started; one sample at each change of status (running, complete, interrupted, failed).",
)
WINDOW_START: Final = _harness(
    "joulewatch_window_start_timestamp_seconds",
    "seconds",
    WINDOW_LABELS,
    "Unix time at which a window started; one sample per window, at its end. kind: idle, setup (phase: load or "
    "prepare), warmup, measure or phase.",
)
WINDOW_DURATION: Final = _harness(
    "joulewatch_window_duration_seconds",
    "seconds",
    WINDOW_LABELS,
    "Length of the window on the monotonic clock; one sample per window, at its end.",
)
WINDOW_CLOCK_ERROR: Final = _harness(
    "joulewatch_window_clock_error_seconds",
    "seconds",
    WINDOW_LABELS,
    "Largest error of the mapping from monotonic clock to wall clock; one sample per window, at its end.",
)
WINDOW_CLOCK_STEP: Final = _harness(
    "joulewatch_window_clock_step_seconds",
    "seconds",
    WINDOW_LABELS,
    "Change of the harness's wall clock relative to its monotonic clock during the window; one sample per window, at "
    "its end.",
)
WINDOW_PROCESSOR_SECONDS: Final = _harness(
    "joulewatch_window_processor_seconds",
    "seconds",
    (*WINDOW_LABELS, "usage"),
    "Processor time used on the harness's machine during the window, summed over all processors. usage: busy (by "
    "everything), own (by the run itself), network (by the measured network, part of own), services (by an exporter "
    "and a Prometheus that the run uses), system (by the kernel) or concurrent (by networks measured "
    "at the same time); one sample per window, at its end.",
)
WINDOW_PROCESSORS: Final = _harness(
    "joulewatch_window_processors",
    "processors",
    WINDOW_LABELS,
    "Number of processors of the harness's machine; one sample per window, at its end.",
)
WINDOW_INFERENCES: Final = _harness(
    "joulewatch_window_inferences",
    "inferences",
    WINDOW_LABELS,
    "Number of inferences (elements, not batches) in the window; one sample per window, at its end.",
)
WINDOW_UNITS: Final = _harness(
    "joulewatch_window_units",
    "units",
    (*WINDOW_LABELS, "unit"),
    "Amount of work in the window, in a unit other than inferences (unit: output_tokens, ...); one sample per window, "
    "at its end.",
)
WINDOW_BATCHES: Final = _harness(
    "joulewatch_window_batches",
    "batches",
    WINDOW_LABELS,
    "Number of batches in the window; one sample per window, at its end.",
)
WINDOW_BATCH_SIZE: Final = _harness(
    "joulewatch_window_batch_size",
    "inferences",
    WINDOW_LABELS,
    "Batch size of the window; one sample per window, at its end.",
)
WINDOW_REPEAT: Final = _harness(
    "joulewatch_window_repeat",
    "rounds",
    WINDOW_LABELS,
    "Number of the measurement round, from 0; one sample per window, at its end.",
)
WINDOW_LATENCY: Final = _harness(
    "joulewatch_window_latency_seconds",
    "seconds",
    (*WINDOW_LABELS, "quantile"),
    "Latency of a batch in the window: quantile 0, 0.5, 0.9, 0.99, 1; one sample per window, at its end.",
)
WINDOW_PHASE_SECONDS: Final = _harness(
    "joulewatch_window_phase_seconds",
    "seconds",
    WINDOW_LABELS,
    "Time spent in one phase (copy_in, execute, copy_out, ...) of the window; one sample per window, at its end.",
)
WINDOW_PHASE_SPANS: Final = _harness(
    "joulewatch_window_phase_spans",
    "spans",
    WINDOW_LABELS,
    "Number of times that the phase was entered in the window; one sample per window, at its end.",
)
WINDOW_END: Final = _harness(
    "joulewatch_window_end_timestamp_seconds",
    "seconds",
    (*WINDOW_LABELS, "window"),
    "End of a window that was delivered through a Pushgateway. Then samples have the time of a scrape, and all series "
    "of a window have its number in the label window.",
)
WINDOW_FLAG: Final = _harness(
    "joulewatch_window_flag",
    "flags",
    (*WINDOW_LABELS, "flag"),
    "1 at the end of a window with this flag (interrupted, loaded, not_steady, overloaded, too_short).",
)
WINDOW_CONDITIONS: Final = _harness(
    "joulewatch_window_conditions",
    "conditions",
    (*WINDOW_LABELS, "condition", "device"),
    "Run conditions around the window, at its end. condition: seconds (between the readings), processors, "
    "cpu_pressure_s, steal_s, ...; conditions of a GPU have its device, and are absent if they did not occur.",
)
WINDOW_EDGE_JOULES: Final = _harness(
    "joulewatch_window_edge_joules",
    "joules",
    ("run", "configuration", "kind", "phase", "exporter", "edge", "scope", *SENSOR_LABELS),
    "Energy counter as read directly from the exporter at an edge (start, end) of a window; one sample per window, at "
    "its end.",
)
WINDOW_EDGE_TIMESTAMP: Final = _harness(
    "joulewatch_window_edge_timestamp_seconds",
    "seconds",
    ("run", "configuration", "kind", "phase", "exporter", "edge", *DEVICE_LABELS),
    "Unix time on the exporter's clock at which the counters of an edge were read; one sample per window, at its end.",
)
WINDOW_EDGE_CLOCK: Final = _harness(
    "joulewatch_window_edge_clock_offset_seconds",
    "seconds",
    ("run", "configuration", "kind", "phase", "exporter", "edge", "bound"),
    "Bounds (lower, upper) of the exporter's clock minus the harness's clock, from the round trip of the request.",
)
WINDOW_ACTIVE: Final = _harness(
    "joulewatch_window_active",
    "boolean",
    ("run", "configuration", "kind", "batch_size"),
    "1 while a window is open, then stale; dashboards show it as regions.",
)
RUN_BATCH_SIZE: Final = _harness(
    "joulewatch_run_batch_size",
    "inferences",
    RUN_LABELS,
    "Current batch size of the running experiment.",
)
RUN_INFERENCES: Final = _harness(
    "joulewatch_run_inferences_total",
    "inferences",
    RUN_LABELS,
    "Number of inferences in the measure windows of the running experiment so far.",
)

RESULT_LABELS: Final = (*RUN_LABELS, "batch_size")


def _analysis(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name=name, unit=unit, labels=labels, help=text, publisher="analysis")


RESULT_ENERGY: Final = _analysis(
    "joulewatch_result_energy_per_inference_joules",
    "joules",
    (*RESULT_LABELS, "component", "basis", "method"),
    "Mean energy per inference. component: one component, or total over device sensors; basis: gross, or net of idle.",
)
RESULT_UNCERTAINTY: Final = _analysis(
    "joulewatch_result_energy_per_inference_uncertainty_joules",
    "joules",
    (*RESULT_LABELS, "component", "basis", "method", "covers"),
    "Expanded uncertainty (95 % coverage) of the energy per inference. covers: what it includes (sampling, repeats, "
    "and accuracy if every sensor has a published one). Absent with a single usable round.",
)
RESULT_THROUGHPUT: Final = _analysis(
    "joulewatch_result_throughput_inferences_per_second",
    "inferences per second",
    RESULT_LABELS,
    "Mean throughput over the measure windows.",
)
RESULT_THROUGHPUT_UNCERTAINTY: Final = _analysis(
    "joulewatch_result_throughput_uncertainty_inferences_per_second",
    "inferences per second",
    RESULT_LABELS,
    "Expanded uncertainty (95 % coverage) of the throughput.",
)
RESULT_FINDINGS: Final = _analysis(
    "joulewatch_result_findings",
    "findings",
    ("run", "reason", "severity"),
    "Number of the findings of the audit, by reason code and severity (error, warning, info).",
)

PREDICTION_LABELS: Final = (
    "network", "device", "runtime", "precision", "scope", "batch_size", "method", "fitted_to", "quantile",
)  # fmt: skip
PREDICTION_ENERGY: Final = _analysis(
    "joulewatch_prediction_energy_per_inference_joules",
    "joules",
    PREDICTION_LABELS,
    "Energy per inference that a model predicts; nothing was measured. method: predicted; fitted_to: methods of the "
    "energies behind the model; quantile: 0.5, or 0.05 and 0.95, the ends of the 90 % interval.",
)
PREDICTION_THROUGHPUT: Final = _analysis(
    "joulewatch_prediction_throughput_inferences_per_second",
    "inferences per second",
    PREDICTION_LABELS,
    "Throughput that a model predicts.",
)

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All metrics, in the order of this file."""
