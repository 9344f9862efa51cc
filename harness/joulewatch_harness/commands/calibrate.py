"""``joulewatch calibrate``: compare a sensor with a reference, or kinds of load with each other."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from pathlib import Path

from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands import calibrate_workloads
from joulewatch_harness.commands.options import add_format_argument, add_output_argument, check_folder, write_file
from joulewatch_harness.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch calibrate``."""
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="run whose windows are compared: id or a prefix of it, directory, or recording",
    )
    parser.add_argument(
        "--reference", metavar="LOG.csv", type=Path, help="log of the meter during the run (CSV); needed with RUN"
    )
    calibrate_workloads.add_arguments(parser)
    add_log_arguments(parser)
    parser.add_argument(
        "--reference-name", metavar="NAME", help="name of the meter in results (default: the name of the log)"
    )
    parser.add_argument(
        "--sensor",
        metavar="PATTERN",
        action="append",
        help="sensor whose instance/collector/device/domain matches; * and ? are wildcards; repeatable; several: their "
        "sum (default: the primary node sensor)",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="write the calibration (YAML)")
    parser.add_argument("--figure", metavar="FILE", type=Path, help="write a figure of the errors: .png, .svg or .pdf")
    add_output_argument(parser)
    add_format_argument(parser)
    add_prometheus_arguments(parser)


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a log of another meter."""
    log = parser.add_argument_group("log")
    log.add_argument(
        "--time", metavar="COLUMN", default="time", help="column of the times: Unix seconds or ISO 8601 (default: time)"
    )
    log.add_argument("--power", metavar="COLUMN", default="", help="column of the power")
    log.add_argument("--energy", metavar="COLUMN", default="", help="or column of a counter of energy")
    log.add_argument("--unit", default="", help="W, mW, uW, kW, or J, mJ, uJ, Wh, kWh (default: W, or J)")
    log.add_argument(
        "--timezone", metavar="ZONE", default="", help="zone of times without one: Europe/Zurich, UTC, +01:00"
    )
    log.add_argument("--accuracy", metavar="SHARE", help="accuracy of the meter, such as 1%% (default: unknown)")


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch calibrate``.

    Raises:
        ConfigError, QueryError, RecordError: Bad arguments, an unknown run, or a comparison that gives no calibration.
    """
    check_folder("--out", args.out)
    if args.out.exists():
        raise ConfigError(f"--out {args.out}: exists already; a calibration is never overwritten")
    if args.workloads:
        return calibrate_workloads.run(args)
    if args.run is None or args.reference is None:
        raise ConfigError("give RUN and --reference LOG.csv, or --workloads")
    if args.exporter:
        raise ConfigError("--exporter needs --workloads")
    from joulewatch_harness.analysis.calibration import report
    from joulewatch_harness.analysis.calibration.calibration_file import calibration_text
    from joulewatch_harness.analysis.calibration.comparison import compare_run
    from joulewatch_harness.analysis.calibration.fit import fit_calibration
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results.summary import run_spans
    from joulewatch_harness.analysis.sources.history import History
    from joulewatch_harness.analysis.sources.power_log import LogFormat, accuracy_of, read_power_log
    from joulewatch_harness.analysis.sources.stored import find

    if args.figure is not None:
        check_figure_path(args.figure)
    form = LogFormat(time=args.time, power=args.power, energy=args.energy, unit=args.unit, timezone=args.timezone)
    accuracy = accuracy_of(args.accuracy) if args.accuracy is not None else None
    log = read_power_log(args.reference, form)
    record, source = find(args.run, args.output, options_from_args(args))
    history = History(source="")
    with contextlib.ExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
            history = source.history(run_spans(record), record.header.exporters or None)
    fit = fit_calibration(
        record.header.run,
        compare_run(record, history, args.sensor or (), log),
        reference=args.reference_name or args.reference.stem,
        accuracy=accuracy,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_file("--out", args.out, calibration_text(fit))
    if args.format == "json":
        sys.stdout.write(report.render_json(fit))
    elif args.format == "csv":
        sys.stdout.write(report.render_csv(fit))
    else:
        sys.stdout.write(report.render_table(fit, terminal_width()))
    print(f"calibration: {args.out}", file=sys.stderr)  # noqa: T201
    if args.figure is not None:
        from joulewatch_harness.analysis.calibration.figure import write_figure

        write_figure(fit, args.figure)
        print(f"figure: {args.figure}", file=sys.stderr)  # noqa: T201
    return 0
