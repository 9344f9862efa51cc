"""Every metric joulewatch publishes, as data. Standard library only: the harness imports this module.

The names are a contract: dashboards, rules, analysis and users depend on them. A change touches this
file, the golden expositions, the dashboards and the CHANGELOG together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DEFAULT_PORT: Final = 10717

SENSOR_LABELS: Final = ("collector", "component", "device", "domain")
DEVICE_LABELS: Final = ("collector", "device")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family: its full name in the exposition, and what a person must know of it."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    labels: tuple[str, ...]
    help: str
    publisher: Literal["exporter", "harness", "analysis"]


def _exporter(name: str, kind: Literal["counter", "gauge"], unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, kind, unit, labels, text, "exporter")


_ENERGY_TEXT: Final = (
    "since the exporter first saw it: wraps removed; power-only sensors are integrated near the sensor "
    "by a background thread (trapezoid). A restart of the exporter starts again at 0."
)
_POWER_TEXT: Final = "over the last reading interval (energy counters), or the sensor's own value (power sensors)."

DEVICE_ENERGY: Final = _exporter(
    "joulewatch_device_energy_joules_total",
    "counter",
    "joules",
    SENSOR_LABELS,
    f"Energy of one device {_ENERGY_TEXT} Devices are disjoint and may be summed.",
)
NODE_ENERGY: Final = _exporter(
    "joulewatch_node_energy_joules_total",
    "counter",
    "joules",
    SENSOR_LABELS,
    f"Energy of the whole server {_ENERGY_TEXT} It contains the devices.",
)
PART_ENERGY: Final = _exporter(
    "joulewatch_part_energy_joules_total",
    "counter",
    "joules",
    SENSOR_LABELS,
    f"Energy of a part inside a device {_ENERGY_TEXT} Never add it to its device.",
)
DEVICE_POWER: Final = _exporter(
    "joulewatch_device_power_watts", "gauge", "watts", SENSOR_LABELS, f"Power of one device {_POWER_TEXT}"
)
NODE_POWER: Final = _exporter(
    "joulewatch_node_power_watts", "gauge", "watts", SENSOR_LABELS, f"Power of the whole server {_POWER_TEXT}"
)
PART_POWER: Final = _exporter(
    "joulewatch_part_power_watts", "gauge", "watts", SENSOR_LABELS, f"Power of a part inside a device {_POWER_TEXT}"
)
ENERGY_BY_SCOPE: Final = {"device": DEVICE_ENERGY, "node": NODE_ENERGY, "part": PART_ENERGY}
POWER_BY_SCOPE: Final = {"device": DEVICE_POWER, "node": NODE_POWER, "part": PART_POWER}

READ_TIMESTAMP: Final = _exporter(
    "joulewatch_read_timestamp_seconds",
    "gauge",
    "seconds",
    DEVICE_LABELS,
    "Unix time at which this scrape's values were read from the device; use it instead of the scrape time.",
)
SENSOR_INFO: Final = _exporter(
    "joulewatch_sensor_info",
    "gauge",
    "info",
    ("scope", *SENSOR_LABELS, "method", "reads", "model", "source", "resolution", "accuracy"),
    "How a quantity is measured. method: counter, integrated, estimated or emulated; reads: energy or power, what "
    "the sensor itself gives; accuracy: relative half-width as published by the maker, empty if none is.",
)
SENSOR_UP: Final = _exporter(
    "joulewatch_sensor_up",
    "gauge",
    "boolean",
    DEVICE_LABELS,
    "1 if everything of the device could be read last time; while 0, what could not be is absent, never repeated.",
)
SENSOR_REFRESH: Final = _exporter(
    "joulewatch_sensor_refresh_seconds",
    "gauge",
    "seconds",
    SENSOR_LABELS,
    "How often the sensor's value really changes, measured; absent until it has been.",
)
SENSOR_WRAPS: Final = _exporter(
    "joulewatch_sensor_wraps_total",
    "counter",
    "wraps",
    SENSOR_LABELS,
    "Times the hardware counter went round and was carried on; absent where the sensor gives power.",
)
SENSOR_RESETS: Final = _exporter(
    "joulewatch_sensor_resets_total",
    "counter",
    "resets",
    SENSOR_LABELS,
    "Times the hardware counter restarted (not a wrap); the time around it is in the unmeasured seconds.",
)
SENSOR_REJECTED: Final = _exporter(
    "joulewatch_sensor_rejected_readings_total",
    "counter",
    "readings",
    SENSOR_LABELS,
    "Readings outside physical bounds, not used.",
)
SENSOR_UNMEASURED: Final = _exporter(
    "joulewatch_sensor_unmeasured_seconds_total",
    "counter",
    "seconds",
    SENSOR_LABELS,
    "Time whose energy is missing from the energy counter, because readings failed or came too late.",
)
SENSOR_WINDOW: Final = _exporter(
    "joulewatch_sensor_window_seconds",
    "gauge",
    "seconds",
    SENSOR_LABELS,
    "A value is the mean over so much of each refresh period, as published; the rest of the period is unseen. Absent "
    "where the sensor sees all of it, or nothing is published.",
)
DEVICE_LIMIT: Final = _exporter(
    "joulewatch_device_power_limit_watts",
    "gauge",
    "watts",
    SENSOR_LABELS,
    "The limit that a device enforces on its own power; absent where it tells none.",
)
PLAUSIBILITY_RATIO: Final = _exporter(
    "joulewatch_plausibility_ratio",
    "gauge",
    "ratio",
    ("check", *DEVICE_LABELS, "domain"),
    "Mean power of 30 s and more, compared. check: cores_to_package, rails_to_card, power_to_energy (a GPU's power, "
    "integrated, to its energy counter), devices_to_node, power_to_limit.",
)
SENSOR_IMPLAUSIBLE: Final = _exporter(
    "joulewatch_sensor_implausible",
    "gauge",
    "boolean",
    ("check", *DEVICE_LABELS, "domain"),
    "1 if two looks in a row, 10 s apart, found the ratio of this check outside its bounds, or (check stuck) the value "
    "unchanged for 30 refreshes and a minute at least while the load moved.",
)
READ_ERRORS: Final = _exporter(
    "joulewatch_read_errors_total",
    "counter",
    "errors",
    (*DEVICE_LABELS, "reason"),
    "Reads of a device that gave no value. reason: absent, denied, glitch, timeout or error.",
)
READ_DURATION: Final = _exporter(
    "joulewatch_read_duration_seconds",
    "gauge",
    "seconds",
    ("collector",),
    "How long the last scan of all devices of a collector took.",
)
EXPORTER_INFO: Final = _exporter(
    "joulewatch_exporter_info",
    "gauge",
    "info",
    ("version", "pythonversion", "nodename", "emulated"),
    "The exporter and the machine it runs on. emulated: 1 if the sensors are the emulator's.",
)
EXPORTER_START: Final = _exporter(
    "joulewatch_exporter_start_timestamp_seconds",
    "gauge",
    "seconds",
    (),
    "Unix time at which this exporter process started; a change means the energy counters started again.",
)

RUN_LABELS: Final = ("run", "configuration", "network", "runtime", "precision")
WINDOW_LABELS: Final = ("run", "configuration", "kind", "phase")


def _harness(name: str, kind: Literal["counter", "gauge"], unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, kind, unit, labels, text, "harness")


RUN_INFO: Final = _harness(
    "joulewatch_run_info",
    "gauge",
    "info",
    (
        *RUN_LABELS,
        "actual_precision",
        "provider",
        "runtime_version",
        "scenario",
        "server_rate_per_second",
        "hardware",
        "nodename",
        "kernel",
        "governor",
        "model_sha256",
        "plan_sha256",
        "exporters",
        "schema",
        "version",
    ),
    "One configuration of a run, as found after loading. scenario: offline, single_stream or server.",
)
RUN_STATUS: Final = _harness(
    "joulewatch_run_start_timestamp_seconds",
    "gauge",
    "seconds",
    ("run", "status"),
    "Unix start of a run; one sample per change of status (running, complete, interrupted, failed), at its time.",
)
WINDOW_START: Final = _harness(
    "joulewatch_window_start_timestamp_seconds",
    "gauge",
    "seconds",
    WINDOW_LABELS,
    "One sample per window: the sample's time is the window's end, its value the start. kind: idle, setup (phase: load "
    "or prepare), warmup, measure or phase.",
)
WINDOW_DURATION: Final = _harness(
    "joulewatch_window_duration_seconds",
    "gauge",
    "seconds",
    WINDOW_LABELS,
    "Length of the window on the monotonic clock; one sample per window, at its end.",
)
WINDOW_CLOCK_ERROR: Final = _harness(
    "joulewatch_window_clock_error_seconds",
    "gauge",
    "seconds",
    WINDOW_LABELS,
    "Largest error of the mapping from the monotonic clock to wall clock; one sample per window, at its end.",
)
WINDOW_INFERENCES: Final = _harness(
    "joulewatch_window_inferences",
    "gauge",
    "inferences",
    WINDOW_LABELS,
    "Inferences (elements, not batches) in the window; one sample per window, at its end.",
)
WINDOW_UNITS: Final = _harness(
    "joulewatch_window_units",
    "gauge",
    "units",
    (*WINDOW_LABELS, "unit"),
    "Another unit of work than the inference (unit: output_tokens, ...), how many of it the window has; one sample per "
    "window, at its end.",
)
WINDOW_BATCHES: Final = _harness(
    "joulewatch_window_batches",
    "gauge",
    "batches",
    WINDOW_LABELS,
    "Batches in the window; one sample per window, at its end.",
)
WINDOW_BATCH_SIZE: Final = _harness(
    "joulewatch_window_batch_size",
    "gauge",
    "inferences",
    WINDOW_LABELS,
    "Batch size of the window; one sample per window, at its end.",
)
WINDOW_REPEAT: Final = _harness(
    "joulewatch_window_repeat",
    "gauge",
    "rounds",
    WINDOW_LABELS,
    "Number of the round over all configurations, from 0; one sample per window, at its end.",
)
WINDOW_LATENCY: Final = _harness(
    "joulewatch_window_latency_seconds",
    "gauge",
    "seconds",
    (*WINDOW_LABELS, "quantile"),
    "Latency of a batch in the window: quantile 0, 0.5, 0.9, 0.99, 1; one sample per window, at its end.",
)
WINDOW_PHASE_SECONDS: Final = _harness(
    "joulewatch_window_phase_seconds",
    "gauge",
    "seconds",
    WINDOW_LABELS,
    "Time spent in one phase (copy_in, execute, copy_out, ...) inside the window; one sample per window, at its end.",
)
WINDOW_PHASE_SPANS: Final = _harness(
    "joulewatch_window_phase_spans",
    "gauge",
    "spans",
    WINDOW_LABELS,
    "How often the phase was entered inside the window; one sample per window, at its end.",
)
WINDOW_END: Final = _harness(
    "joulewatch_window_end_timestamp_seconds",
    "gauge",
    "seconds",
    (*WINDOW_LABELS, "window"),
    "End of a window that came through a Pushgateway: there all series of a window carry its number in the label "
    "window, and the time of a sample is a scrape's.",
)
WINDOW_FLAG: Final = _harness(
    "joulewatch_window_flag",
    "gauge",
    "flags",
    (*WINDOW_LABELS, "flag"),
    "1 at the end of a window that carries this flag (not_steady, interrupted, too_short, loaded).",
)
WINDOW_EDGE_JOULES: Final = _harness(
    "joulewatch_window_edge_joules",
    "gauge",
    "joules",
    ("run", "configuration", "kind", "phase", "exporter", "edge", "scope", *SENSOR_LABELS),
    "Energy counter read straight from the exporter at an edge (start, end) of a window; "
    "one sample per window, at its end.",
)
WINDOW_EDGE_TIMESTAMP: Final = _harness(
    "joulewatch_window_edge_timestamp_seconds",
    "gauge",
    "seconds",
    ("run", "configuration", "kind", "phase", "exporter", "edge", *DEVICE_LABELS),
    "Unix time, on the exporter's clock, at which the edge's counters were read; one sample per window, at its end.",
)
WINDOW_EDGE_CLOCK: Final = _harness(
    "joulewatch_window_edge_clock_offset_seconds",
    "gauge",
    "seconds",
    ("run", "configuration", "kind", "phase", "exporter", "edge", "bound"),
    "Bounds (lower, upper) of the exporter's clock minus the harness's, from the request's round trip.",
)
WINDOW_ACTIVE: Final = _harness(
    "joulewatch_window_active",
    "gauge",
    "boolean",
    ("run", "configuration", "kind", "batch_size"),
    "1 while a window is open, then stale: the regions of the dashboards.",
)
RUN_BATCH_SIZE: Final = _harness(
    "joulewatch_run_batch_size",
    "gauge",
    "inferences",
    RUN_LABELS,
    "Batch size that the running experiment is at.",
)
RUN_INFERENCES: Final = _harness(
    "joulewatch_run_inferences_total",
    "counter",
    "inferences",
    RUN_LABELS,
    "Inferences of the running experiment in its measure windows so far.",
)

RESULT_LABELS: Final = (*RUN_LABELS, "batch_size")


def _analysis(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "gauge", unit, labels, text, "analysis")


RESULT_ENERGY: Final = _analysis(
    "joulewatch_result_energy_per_inference_joules",
    "joules",
    (*RESULT_LABELS, "component", "basis", "method"),
    "Mean energy per inference. component: one, or total over device sensors; basis: gross, or net of idle.",
)
RESULT_UNCERTAINTY: Final = _analysis(
    "joulewatch_result_energy_per_inference_uncertainty_joules",
    "joules",
    (*RESULT_LABELS, "component", "basis", "method"),
    "Expanded uncertainty (95 % coverage) of the energy per inference.",
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

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order of this file."""
