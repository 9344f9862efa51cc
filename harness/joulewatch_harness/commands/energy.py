"""``joulewatch energy``: energy of any time window, from any source."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands import energy_per, energy_workloads
from joulewatch_harness.commands.options import add_format_argument, add_source_argument
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.energy.window_energy import Span
    from joulewatch_harness.analysis.sources.history import SampleSource
    from joulewatch_harness.clients.options import PrometheusOptions

EXIT_FAILED: Final = 1
WHOLE_S: Final = 7200.0
"""Longer windows are read at both ends only: that is enough for a counter, and restarts are still detected."""
MOST_INTERVALS: Final = 100_000
"""Each interval is at least one query: these are the hours of 11 years."""
_EVERY_S: Final = {"1h": 3600.0, "1d": 86400.0, "1mo": 28 * 86400.0}
_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_RELATIVE: Final = re.compile(r"(?:now)?-(\d+(?:\.\d+)?)([smhdw])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch energy``."""
    # argparse takes "-10m" for an option unless it looks like a negative number to it.
    parser._negative_number_matcher = re.compile(r"^-\d+(\.\d+)?[smhdw]?$")
    when = "ISO 8601 (2026-11-21T10:00:00Z), Unix seconds, now, or -10m (ten minutes ago; s, m, h, d, w)"
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--start", metavar="T", help=f"start of the window: {when}")
    what.add_argument(
        "--slurm-job",
        metavar="ID",
        help="energy of the whole nodes of a Slurm job while it had them, and of the job alone where exporters share "
        "energy between workloads; needs sacct (123, 123_4 or 123+1)",
    )
    parser.add_argument(
        "--end", metavar="T", default="now", help="end of the window, in the same formats (default: now)"
    )
    parser.add_argument(
        "--recording",
        metavar="FILE",
        type=Path,
        help="recording.sqlite or the directory of a run, to read instead of Prometheus",
    )
    parser.add_argument(
        "--sensor",
        metavar="PATTERN",
        action="append",
        help="only sensors whose instance/collector/device/domain matches; * and ? are wildcards; repeatable",
    )
    parser.add_argument("--scope", choices=("device", "node", "part", "all"), default="all", help="default: all")
    parser.add_argument(
        "--every",
        choices=("1h", "1d", "1mo"),
        help="write CSV: energy per hour, day or calendar month of the local time zone, host and component",
    )
    parser.add_argument(
        "--price", metavar="PRICE", type=number(ge=0), help="with --every: price of a kWh, for a column with the cost"
    )
    energy_per.add_arguments(parser)
    energy_workloads.add_arguments(parser)
    add_format_argument(parser)
    add_source_argument(parser)
    add_prometheus_arguments(parser)


def parse_time(text: str, name: str, now_s: float) -> float:
    """Return the Unix seconds of ISO 8601 (without a zone: local time), Unix seconds, ``now`` or ``-10m``.

    Raises:
        ConfigError: The text has another format, or the time is before 1970.
    """
    time_s = _parse_time(text.strip(), name, now_s)
    if time_s < 0:
        raise ConfigError(f"{name} {text}: is before 1970")
    return time_s


def _parse_time(text: str, name: str, now_s: float) -> float:
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
            f"{name} {text!r}: not a valid time; use 2026-11-21T10:00:00Z, Unix seconds, now or -10m"
        ) from None


def _check_every(args: argparse.Namespace, span: Span) -> None:
    """Raise ConfigError if ``--every`` is missing, has too many intervals, or does not go with other arguments."""
    if args.every is None:
        if args.price is not None:
            raise ConfigError("--price needs --every: only then costs are written")
        return
    if args.format == "json":
        raise ConfigError("--every writes CSV; omit --format json")
    if args.scope == "part":
        raise ConfigError("--every writes devices and whole servers: use --scope device, node or all")
    count = span.duration_s / _EVERY_S[args.every]
    if count > MOST_INTERVALS:
        raise ConfigError(
            f"--every {args.every}: about {count:.0f} intervals since --start {args.start}, and at most "
            f"{MOST_INTERVALS} are read: use a later --start or longer intervals"
        )


def _run_every(args: argparse.Namespace, source: SampleSource, span: Span) -> int:
    from joulewatch_harness.analysis.energy.intervals import calendar_spans, interval_energies
    from joulewatch_harness.analysis.reports.energy_report import notice_lines, render_intervals
    from joulewatch_harness.analysis.results.numbers import warning_line

    try:
        spans = calendar_spans(span.start_s, span.end_s, args.every)
        rows, notices = interval_energies(source, spans, args.sensor or [], args.scope)
        where = source.describe()
    finally:
        source.close()
    if not rows:
        raise ConfigError(f"{where}: no sensor that matches has samples in these intervals")
    sys.stdout.write(render_intervals(rows, args.price))
    sys.stdout.flush()
    for text in (warning_line({method for row in rows for method in row.methods}), *notice_lines(notices)):
        if text:
            print(text, file=sys.stderr)  # noqa: T201
    return 0 if any(row.joules is not None for row in rows) else EXIT_FAILED


def _run_job(args: argparse.Namespace) -> int:
    from joulewatch_harness.analysis.energy.job_shares import job_shares
    from joulewatch_harness.analysis.energy.jobs import job_energies
    from joulewatch_harness.analysis.reports import job_report
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
    from joulewatch_harness.clients.slurm import job_allocations, spans_by_node

    for flag, value, default in (
        ("--end", args.end, "now"), ("--every", args.every, None), ("--price", args.price, None),
        ("--sensor", args.sensor, None), ("--scope", args.scope, "all"),
    ):  # fmt: skip
        if value != default:
            raise ConfigError(f"--slurm-job and {flag} exclude each other")
    if args.recording is not None:
        raise ConfigError("--slurm-job reads all nodes from Prometheus: give --prometheus URL")
    options = _source_options(args)
    # The job's id and sacct are checked before Prometheus is asked.
    allocations = job_allocations(args.slurm_job)
    source = _open_source(args, options)
    try:
        now_s = time.time()
        spans = spans_by_node(allocations, now_s)
        if not spans:
            raise ConfigError(f"job {args.slurm_job} has had its nodes for less than a minute: try again later")
        energies, notices = job_energies(source, spans)
        numbers = dict.fromkeys(one.number for one in allocations)
        shares = job_shares(source, numbers, spans, now_s) if isinstance(source, PrometheusSource) else None
        where = source.describe()
    finally:
        source.close()
    if args.format == "json":
        text = job_report.render_json(args.slurm_job, allocations, energies, where, notices, shares)
    elif args.format == "csv":
        text = job_report.render_csv(args.slurm_job, energies, shares)
    else:
        width = terminal_width()
        text = job_report.render_table(args.slurm_job, allocations, energies, where, notices, shares, width=width)
    sys.stdout.write(text)
    return 0 if any(one.joules is not None for one in energies) else EXIT_FAILED


def _source_options(args: argparse.Namespace) -> PrometheusOptions | None:
    """Return the Prometheus to read; None: the recording."""
    options = options_from_args(args)
    if (options is None) == (args.recording is None):
        raise ConfigError("give one source: --prometheus URL or --recording FILE")
    return options


def _open_source(args: argparse.Namespace, options: PrometheusOptions | None) -> SampleSource:
    from joulewatch_harness.analysis.sources.opening import open_source, open_sources

    if args.source:
        return open_sources(args.source, options)
    source = open_source(prometheus=options, recording=args.recording)
    assert source is not None
    return source


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch energy``.

    Raises:
        ConfigError: Bad times, no source or two, or no sensor matches.
        QueryError, RecordError: The source cannot be read.
    """
    from joulewatch_harness.analysis.energy.sensor_energies import calibration_notices, frozen_notices, measure
    from joulewatch_harness.analysis.energy.window_energy import Span
    from joulewatch_harness.analysis.reports import energy_report
    from joulewatch_harness.analysis.reports.table import terminal_width

    energy_per.check(args)
    energy_workloads.check(args)
    if args.slurm_job is not None:
        return _run_job(args)
    now_s = time.time()
    start_s = parse_time(args.start, "--start", now_s)
    end_s = parse_time(args.end, "--end", now_s)
    if end_s <= start_s:
        raise ConfigError(f"--end {args.end} is not after --start {args.start}")
    if end_s > now_s + 1:
        raise ConfigError(f"--end {args.end} is {end_s - now_s:.0f} s in the future: the window has not ended")
    span = Span(start_s, end_s)
    _check_every(args, span)
    source = _open_source(args, _source_options(args))
    if args.workload is not None:
        return energy_workloads.run(args, source, span)
    if args.every is not None:
        return _run_every(args, source, span)
    if args.per:
        return energy_per.run(args, source, span)
    try:
        whole = span.duration_s <= WHOLE_S
        spans = [(start_s, end_s)] if whole else [(start_s, start_s), (end_s, end_s)]
        history = source.history(spans, None, power=True)
        if history.powers and not whole:
            # Power without a counter is integrated over all samples.
            history = source.history([(start_s, end_s)], None, power=True)
        where = source.describe()
    finally:
        source.close()
    rows = measure(history, span, args.sensor or [], args.scope)
    if not rows:
        known = sorted(str(sensor) for sensor in history.sensors)
        if not known:
            raise ConfigError(f"{where}: no sensor has samples around this window")
        wanted = f"matches --sensor {' '.join(args.sensor)}" if args.sensor else f"has scope {args.scope}"
        raise ConfigError(
            f"no sensor {wanted}; the sensors are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        )
    notices = [*history.notices, *frozen_notices(rows), *calibration_notices(rows)]
    if args.format == "json":
        sys.stdout.write(energy_report.render_json(rows, span, where, notices))
    elif args.format == "csv":
        sys.stdout.write(energy_report.render_csv(rows, span))
    else:
        sys.stdout.write(energy_report.render_table(rows, span, where, notices, width=terminal_width()))
    return 0 if any(row.energy is not None for row in rows) else EXIT_FAILED
