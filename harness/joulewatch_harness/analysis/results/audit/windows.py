"""Audit of single windows: of each of its sensors, and of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from joulewatch_harness.analysis.energy.calibrated import calibration_joules
from joulewatch_harness.analysis.energy.clock_offsets import HARNESS
from joulewatch_harness.analysis.energy.windows import Measured, MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.conditions import check_conditions
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.audit.gpu_conditions import check_gpu_conditions
from joulewatch_harness.analysis.results.audit.other_load import check_idle_load
from joulewatch_harness.analysis.results.audit.sensors import SENSOR_CHECKS
from joulewatch_harness.analysis.sources.series import SensorId

CLOCK_TOLERANCE_S: Final = 0.005
"""Clocks synchronised by NTP on one network agree to within this."""


def audit_windows(run: MeasuredRun) -> Iterator[Finding]:
    """Yield the findings about single windows: those of every check, in the order of the tables."""
    of_sensors: dict[int | None, list[Finding]] = {}
    for sensor in run.sensors:
        results = [(measured, measured.sensors[sensor]) for measured in run.windows]
        for sensor_check in SENSOR_CHECKS:
            for finding in sensor_check(run, sensor, results):
                of_sensors.setdefault(finding.window, []).append(finding)
    for measured in run.windows:
        yield from of_sensors.get(measured.window.index, ())
        for window_check in WINDOW_CHECKS:
            yield from window_check(run, measured)


def _parts(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    devices: dict[tuple[str, str, str, str], tuple[SensorId, Measured]] = {}
    for sensor, result in measured.sensors.items():
        if sensor.scope == "device" and result.energy is not None:
            devices[sensor.exporter, sensor.collector, sensor.component, sensor.device] = (sensor, result)
    for sensor, result in measured.sensors.items():
        whole = devices.get((sensor.exporter, sensor.collector, sensor.component, sensor.device))
        if sensor.scope != "part" or result.energy is None or whole is None or whole[1].energy is None:
            continue
        # As read: a calibration of the device is not one of its parts.
        if result.energy.as_read(result.energy.lower_joules) > whole[1].energy.as_read(whole[1].energy.upper_joules):
            yield Finding(
                severity="error",
                reason="core_exceeds_package",
                text=f"{sensor}: at least {result.energy.lower_joules:.6g} J, more than the "
                f"{whole[1].energy.upper_joules:.6g} J that {whole[0].domain} can have used at most",
                evidence={
                    "sensor": str(sensor),
                    "part_joules": result.energy.joules,
                    "device_joules": whole[1].energy.joules,
                },
                window=measured.window.index,
            )


def _node(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    machine_of = run.record.header.machine_of
    for sensor, result in measured.sensors.items():
        metadata = run.sensors[sensor]
        if sensor.scope != "node" or result.energy is None or metadata.primary is False:
            continue
        machine = machine_of(metadata)
        # The exporter may read the BMC of another machine: its devices are not in that one.
        devices = [
            (other, device.energy)
            for other, device in measured.sensors.items()
            if other.scope == "device" and other.exporter == sensor.exporter and device.energy is not None
            if not machine or machine_of(run.sensors[other]) in (machine, "")
        ]
        if not devices:
            continue
        slack = 1 + (run.sensors[sensor].known_accuracy or 0.0)
        lower = sum(
            energy.lower_joules * (1 - min(run.sensors[other].known_accuracy or 0.0, 1.0)) - calibration_joules(energy)
            for other, energy in devices
        )
        if lower > result.energy.upper_joules * slack + calibration_joules(result.energy):
            yield Finding(
                severity="warning",
                reason="devices_exceed_node",
                text=f"{sensor}: {result.energy.joules:.6g} J, less than the {lower:.6g} J of the devices in it",
                evidence={"sensor": str(sensor), "node_joules": result.energy.joules, "devices_lower_joules": lower},
                window=measured.window.index,
            )


def _clocks(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    for exporter, text in measured.clock_steps.items():
        if exporter in run.clocks.shared:
            fix = "If they are two machines, give them different host names"
        else:
            fix = "Let the time service (NTP) slew clocks, not set them, and repeat the run"
        yield Finding(
            severity="error",
            reason="clock_stepped",
            text=f"{text}; the window is excluded. {fix}",
            evidence={"exporter": exporter} if exporter != HARNESS else {"step_s": measured.window.clock_step_s},
            window=measured.window.index,
        )
    for exporter, offsets in measured.offsets.items():
        offset = offsets.window
        distance_s = max(offset.lower_s, -offset.upper_s)
        if distance_s <= CLOCK_TOLERANCE_S or exporter in run.clocks.shared or exporter in measured.clock_steps:
            continue
        yield Finding(
            severity="warning",
            reason="clock_skew",
            text=f"{exporter}: its clock differs from the harness's by {offset.lower_s:.4g} to {offset.upper_s:.4g} s; "
            "the results are corrected for it",
            evidence={"exporter": exporter, "lower_s": offset.lower_s, "upper_s": offset.upper_s},
            window=measured.window.index,
        )


_FLAG_TEXTS: Final[Mapping[str, str]] = {
    # Only joulewatch 0.1.0 wrote this flag. Whether the warm-up changes the result follows from the first round.
    "not_steady": "the rates had a trend at the end of the warm-up; it is not known whether that changes the result",
    "overlapping": "other windows were open at the same time, in another thread or task: the energy of all of them is "
    "in each of their results",
    "interrupted": "the window was interrupted and is excluded",
    "too_short": "the window is shorter than planned",
    "overloaded": "queries arrived faster than they were served; the window is excluded. Use a lower rate",
}


def _flags(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    for flag in measured.window.flags:
        if flag in _FLAG_TEXTS:
            yield Finding(
                severity="warning", reason=flag, text=_FLAG_TEXTS[flag], evidence={}, window=measured.window.index
            )


WindowCheck = Callable[[MeasuredRun, MeasuredWindow], Iterator[Finding]]
WINDOW_CHECKS: Final[tuple[WindowCheck, ...]] = (
    _parts,
    _node,
    _clocks,
    _flags,
    check_idle_load,
    check_conditions,
    check_gpu_conditions,
)
