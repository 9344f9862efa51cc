"""``joulewatch energy``: energy of any window of time, from any source."""

from __future__ import annotations

import argparse
import csv
import datetime
import fnmatch
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument
from joulewatch_harness.errors import ConfigError, CoverageError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.energy.window_energy import Span, WindowEnergy
    from joulewatch_harness.analysis.sources.history import History
    from joulewatch_harness.analysis.sources.series import SensorId
    from joulewatch_harness.records import SensorRecord

EXIT_FAILED: Final = 1
SCHEMA_VERSION: Final = 1
WHOLE_S: Final = 7200.0
"""Windows longer than this are read at both ends only: a counter needs no more, restarts still show."""
_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_RELATIVE: Final = re.compile(r"(?:now)?-(\d+(?:\.\d+)?)([smhdw])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch energy``."""
    # argparse takes "-10m" for an option unless it looks like a negative number to it.
    parser._negative_number_matcher = re.compile(r"^-\d+(\.\d+)?[smhdw]?$")
    when = "ISO 8601 (2026-11-21T10:00:00Z), Unix seconds, now, or -10m (ten minutes ago; s, m, h, d, w)"
    parser.add_argument("--start", metavar="T", required=True, help=f"start of the window: {when}")
    parser.add_argument(
        "--end", metavar="T", default="now", help="end of the window, in the same formats (default: now)"
    )
    parser.add_argument("--recording", metavar="FILE", type=Path, help="read a recording instead of Prometheus")
    parser.add_argument(
        "--sensor",
        metavar="PATTERN",
        action="append",
        help="only sensors whose instance/collector/device/domain matches; * and ? are wildcards; repeatable",
    )
    parser.add_argument("--scope", choices=("device", "node", "part", "all"), default="all", help="default: all")
    add_format_argument(parser)
    add_prometheus_arguments(parser)


def parse_time(text: str, name: str, now_s: float) -> float:
    """Unix seconds of ISO 8601 (without a zone: local time), Unix seconds, ``now`` or ``-10m``.

    Raises:
        ConfigError: It is none of these.
    """
    text = text.strip()
    if text == "now":
        return now_s
    relative = _RELATIVE.fullmatch(text)
    if relative is not None:
        return now_s - float(relative[1]) * _UNITS_S[relative[2]]
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{name} {text!r}: no time: write it as 2026-11-21T10:00:00Z, as Unix seconds, as now or as -10m"
        ) from None


@dataclass(frozen=True, slots=True)
class Row:
    """One sensor: a number, or why there is none."""

    sensor: SensorId
    record: SensorRecord
    energy: WindowEnergy | None
    reason: str = ""
    text: str = ""

    @property
    def expanded_joules(self) -> float:
        """At 95 % coverage."""
        from joulewatch_harness.analysis.energy.window_energy import ACCURACY
        from joulewatch_harness.gum import coverage_factor

        if self.energy is None:
            return 0.0
        items = [(item.standard_joules, float("inf")) for item in self.energy.budget]
        accuracy = max((item.standard_joules for item in self.energy.budget if item.name == ACCURACY), default=0.0)
        standard = self.energy.standard_joules
        return coverage_factor(items, accuracy) * standard if standard > 0 else 0.0


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch energy``.

    Raises:
        ConfigError: Bad times, no source or two, no sensor that matches.
        QueryError, RecordError: The source cannot be asked.
    """
    from joulewatch_harness.analysis.energy.window_energy import Span
    from joulewatch_harness.analysis.sources.opening import open_source

    now_s = time.time()
    start_s = parse_time(args.start, "--start", now_s)
    end_s = parse_time(args.end, "--end", now_s)
    if end_s <= start_s:
        raise ConfigError(f"--end {args.end} is not after --start {args.start}")
    if end_s > now_s + 1:
        raise ConfigError(f"--end {args.end} lies in the future, by {end_s - now_s:.0f} s: the window has not ended")
    options = options_from_args(args)
    if (options is None) == (args.recording is None):
        raise ConfigError("name one source: --prometheus URL or --recording FILE")
    source = open_source(prometheus=options, recording=args.recording)
    assert source is not None
    span = Span(start_s, end_s)
    try:
        whole = span.duration_s <= WHOLE_S
        spans = [(start_s, end_s)] if whole else [(start_s, start_s), (end_s, end_s)]
        history = source.history(spans, None, power=True)
        where = source.describe()
    finally:
        source.close()
    rows = measure(history, span, args.sensor or [], args.scope)
    if not rows:
        known = sorted(str(sensor) for sensor in history.sensors)
        if not known:
            raise ConfigError(f"{where}: no joulewatch sensor has samples around this window")
        wanted = f"matches --sensor {' '.join(args.sensor)}" if args.sensor else f"has scope {args.scope}"
        raise ConfigError(f"no sensor {wanted}; there are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}")
    render = {"json": render_json, "csv": render_csv, "table": render_table}[args.format]
    sys.stdout.write(render(rows, span, where))
    return 0 if any(row.energy is not None for row in rows) else EXIT_FAILED


def measure(history: History, span: Span, patterns: Sequence[str], scope: str) -> list[Row]:
    """Energy of every sensor that matches, in one window; a reason where there is no number."""
    from joulewatch_harness.analysis.energy.window_energy import energy_from_counter, energy_from_power, with_unseen
    from joulewatch_harness.analysis.energy.windows import LARGEST_UNMEASURED
    from joulewatch_harness.analysis.sources.history import SCOPES, traits_of

    rows = []
    for sensor, record in sorted(history.sensors.items(), key=lambda item: (SCOPES.index(item[0].scope), item[0])):
        if scope not in ("all", sensor.scope):
            continue
        if patterns and not any(fnmatch.fnmatchcase(str(sensor), pattern) for pattern in patterns):
            continue
        counter, power = history.counters.get(sensor), history.powers.get(sensor)
        health = history.health(sensor, span.start_s, span.end_s)
        try:
            if counter is not None:
                energy = energy_from_counter(
                    counter, span, traits_of(record), restarts_s=history.starts.get(sensor.exporter)
                )
            elif power is not None:
                energy = energy_from_power(power, span, traits_of(record))
            else:
                raise CoverageError("no_samples", "no sample in the window")
            energy = with_unseen(energy, span, traits_of(record), history.readings.get(sensor))
            if health.unmeasured_s > LARGEST_UNMEASURED * span.duration_s:
                raise CoverageError("unmeasured_time", f"the counter missed {health.unmeasured_s:.3g} s")
        except CoverageError as error:
            reason = "sensor_down" if health.down else error.reason
            rows.append(Row(sensor, record, None, reason, str(error)))
            continue
        rows.append(Row(sensor, record, energy))
    return rows


@dataclass(frozen=True, slots=True)
class Total:
    """Sum over all device sensors."""

    joules: float
    expanded_joules: float
    lower_joules: float
    upper_joules: float


def total_of(rows: Sequence[Row]) -> Total | None:
    """Sum over device sensors; None where one of them has no number, or there is none."""
    devices = [row for row in rows if row.sensor.scope == "device"]
    energies = [row.energy for row in devices if row.energy is not None]
    if not devices or len(energies) < len(devices):
        return None
    return Total(
        sum(energy.joules for energy in energies),
        # Sensors share the window's edges and often their maker, so their errors are added up, not squared.
        sum(row.expanded_joules for row in devices),
        sum(energy.lower_joules for energy in energies),
        sum(energy.upper_joules for energy in energies),
    )


def _methods(rows: Sequence[Row]) -> set[str]:
    return {row.record.method for row in rows if row.energy is not None}


def render_table(rows: Sequence[Row], span: Span, where: str) -> str:
    """For people: a line for each sensor, the total over devices, what is missing and why."""
    from joulewatch_harness.analysis.results.numbers import align, decimals_for, quantity, warning_line

    def joules(value: float, uncertainty: float) -> str:
        return f"{value:.{min(decimals_for(value, uncertainty), 6)}f}"

    start, end = (datetime.datetime.fromtimestamp(at_s, datetime.UTC) for at_s in (span.start_s, span.end_s))
    lines = [f"{start:%Y-%m-%d %H:%M:%S.%f} to {end:%Y-%m-%d %H:%M:%S.%f} UTC, {span.duration_s:.3f} s, from {where}"]
    loud = warning_line(_methods(rows))
    if loud:
        lines += ["", loud]
    table = [["sensor", "scope", "method", "energy J", "± 95 %", "bounds J", "power"]]
    for row in rows:
        energy = row.energy
        if energy is None:
            table.append([str(row.sensor), row.sensor.scope, row.record.method, "missing", "", f"[{row.reason}]", ""])
            continue
        u = row.expanded_joules
        table.append(
            [
                *(str(row.sensor), row.sensor.scope, row.record.method),
                *(joules(energy.joules, u), joules(u, u)),
                f"{joules(energy.lower_joules, u)} to {joules(energy.upper_joules, u)}",
                quantity(energy.mean_power_watts, "W"),
            ]
        )
    total = total_of(rows)
    if total is not None:
        u = total.expanded_joules
        methods = "+".join(sorted({row.record.method for row in rows if row.sensor.scope == "device"}))
        table.append(
            [
                *("total over devices", "device", methods),
                *(joules(total.joules, u), joules(u, u)),
                f"{joules(total.lower_joules, u)} to {joules(total.upper_joules, u)}",
                quantity(total.joules / span.duration_s, "W"),
            ]
        )
    lines += ["", *align(table, left=3)]
    if total is None and any(row.sensor.scope == "device" for row in rows):
        lines.append("No total: a device is missing.")
    lines += [f"missing: {row.sensor}: {row.text} [{row.reason}]" for row in rows if row.energy is None]
    lines.append(
        "bounds: from the counters' samples alone; ±: with the sensor's refresh, resolution and published accuracy."
    )
    return "\n".join(lines) + "\n"


def render_csv(rows: Sequence[Row], span: Span, where: str) -> str:
    """One line for each sensor, in base units."""
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("start_seconds", "end_seconds", "exporter", "scope", "collector", "component", "device", "domain"),
            *("method", "energy_joules", "uncertainty_joules", "lower_joules", "upper_joules", "mean_power_watts"),
            *("source", "missing"),
        ]
    )
    for row in rows:
        sensor, energy = row.sensor, row.energy
        numbers: list[str] = [""] * 5
        if energy is not None:
            values = (energy.joules, row.expanded_joules, energy.lower_joules, energy.upper_joules)
            numbers = [f"{value:.9g}" for value in (*values, energy.mean_power_watts)]
        writer.writerow(
            [
                *(f"{span.start_s:.6f}", f"{span.end_s:.6f}", sensor.exporter, sensor.scope, sensor.collector),
                *(sensor.component, sensor.device, sensor.domain, row.record.method, *numbers),
                *("" if energy is None else energy.method, row.reason),
            ]
        )
    return out.getvalue()


def render_json(rows: Sequence[Row], span: Span, where: str) -> str:
    """Everything, budgets too, in base units."""
    total = total_of(rows)
    document: Mapping[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": where,
        "start_s": span.start_s,
        "end_s": span.end_s,
        "unit": "J",
        "coverage": 0.95,
        "estimated": "estimated" in _methods(rows),
        "emulated": "emulated" in _methods(rows),
        "sensors": [_row_document(row) for row in rows],
        "total_over_devices": None
        if total is None
        else {
            "joules": total.joules,
            "expanded_uncertainty": total.expanded_joules,
            "lower_joules": total.lower_joules,
            "upper_joules": total.upper_joules,
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row_document(row: Row) -> dict[str, Any]:
    sensor, energy = row.sensor, row.energy
    document: dict[str, Any] = {
        "exporter": sensor.exporter,
        "scope": sensor.scope,
        "collector": sensor.collector,
        "component": sensor.component,
        "device": sensor.device,
        "domain": sensor.domain,
        "method": row.record.method,
        "missing": row.reason,
        "missing_text": row.text,
        "energy": None,
    }
    if energy is not None:
        document["energy"] = {
            "joules": energy.joules,
            "expanded_uncertainty": row.expanded_joules,
            "lower_joules": energy.lower_joules,
            "upper_joules": energy.upper_joules,
            "mean_power_watts": energy.mean_power_watts,
            "source": energy.method,
            "samples": energy.samples,
            "budget": [
                {
                    "name": item.name,
                    "standard_uncertainty": item.standard_joules,
                    "half_width": item.half_width_joules,
                    "distribution": item.distribution,
                    "text": item.text,
                }
                for item in energy.budget
            ],
        }
    return document
