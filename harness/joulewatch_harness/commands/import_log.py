"""``joulewatch import``: turn the log of another meter into a recording."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_output_argument, check_folder
from joulewatch_harness.errors import ConfigError, cut, one_line

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.log_formats import ReadLog
    from joulewatch_harness.analysis.sources.log_windows import NamedWindow
    from joulewatch_harness.records import RunRecord

_LONGEST_LIST: Final = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch import``."""
    parser.add_argument("log", metavar="LOG", type=Path, help="log of a meter or tool")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="recording to write (.sqlite)")
    parser.add_argument(
        "--windows",
        metavar="SOURCE",
        help="windows to measure: CSV with the columns name, start, end and perhaps inferences, "
        "mlperf_log_detail.txt, or a run",
    )
    log = parser.add_argument_group("log", "Of a plain CSV, give its columns; other formats are recognized.")
    log.add_argument("--time", metavar="COLUMN", help="column of the times (default: time)")
    log.add_argument("--power", metavar="COLUMN", default="", help="column of the power")
    log.add_argument("--energy", metavar="COLUMN", default="", help="or column of a counter of energy")
    log.add_argument(
        "--unit", default="", help="W, mW, uW, kW, or J, mJ, uJ, Wh, kWh (default: that of the format; of CSV, W or J)"
    )
    log.add_argument(
        "--timezone", metavar="ZONE", default="", help="zone of times without one: Europe/Zurich, UTC, +01:00"
    )
    clock = log.add_mutually_exclusive_group()
    clock.add_argument(
        "--clock-offset",
        metavar="SECONDS",
        type=number(),
        default=0.0,
        help="added to the times of the log (default: 0)",
    )
    clock.add_argument(
        "--align-by-load",
        action="store_true",
        help="estimate that offset: the power must be high in the windows of the run or of LoadGen",
    )
    log.add_argument("--accuracy", metavar="SHARE", help="accuracy of the meter, such as 1%% (default: unknown)")
    log.add_argument("--name", metavar="NAME", help="name of the meter in results (default: the name of the log)")
    log.add_argument(
        "--scope",
        choices=("device", "node"),
        help="what the meter measures: one device, or the whole machine (default: that of the format; of CSV, node)",
    )
    add_output_argument(parser)
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch import``.

    Raises:
        ConfigError, QueryError, RecordError: Bad arguments, a log that is not valid, or an unknown run.
    """
    from joulewatch_harness.analysis.sources.log_clock import load_offset
    from joulewatch_harness.analysis.sources.log_formats import moved, read_log
    from joulewatch_harness.analysis.sources.log_import import Import, write_import
    from joulewatch_harness.analysis.sources.log_windows import read_windows
    from joulewatch_harness.analysis.sources.power_log import DEFAULT_TIME, LogFormat, accuracy_of, zone_of

    check_folder("--out", args.out)
    if args.out.exists():
        raise ConfigError(f"--out {args.out}: exists already; choose another name")
    accuracy = accuracy_of(args.accuracy) if args.accuracy is not None else None
    zone_of(args.timezone)
    form = None
    if args.time and not (args.power or args.energy):
        raise ConfigError("--time: needs --power COLUMN or --energy COLUMN; other formats than CSV have their columns")
    if args.power or args.energy:
        form = LogFormat(
            time=args.time or DEFAULT_TIME, power=args.power, energy=args.energy, unit=args.unit, timezone=args.timezone
        )
    read = read_log(args.log, form, unit=args.unit, timezone=args.timezone)
    scope = _scope(args, read)
    path = Path(args.windows) if args.windows else None
    windows: list[NamedWindow] = []
    is_loadgen, record = False, None
    if path is not None and path.suffix.lower() in (".csv", ".txt", ".tsv"):
        windows, is_loadgen = read_windows(path, args.timezone)
    elif path is not None:
        record = _run(args)
    offset_s, clock_error_s = args.clock_offset, 0.0
    if args.align_by_load:
        if not (is_loadgen or record):
            raise ConfigError(
                "--align-by-load: needs the windows of another clock: --windows with a run or LoadGen's log"
            )
        busy = [window for window in record.windows if window.kind != "idle"] if record is not None else windows
        found = load_offset(args.log, read.logs[0], [(window.start_s, window.end_s) for window in busy])
        offset_s, clock_error_s = found.seconds, found.half_width_s
        print(  # noqa: T201
            f"clock offset: {offset_s:.3f} ± {clock_error_s:.3f} s, from {found.edges} starts and ends of the load, "
            f"which explains {100 * found.explained:.0f} % of the variance of the power",
            file=sys.stderr,
        )
    if offset_s:
        read = replace(read, logs=tuple(moved(log, offset_s) for log in read.logs))
    imported = Import(
        path=args.log,
        read=read,
        name=args.name or args.log.stem,
        scope=scope,
        accuracy=accuracy,
        windows=windows,
        same_clock=args.align_by_load or not (is_loadgen or record),
        clock_error_s=clock_error_s,
        run=record,
        command=("joulewatch", *sys.argv[1:]),
    )
    write_import(args.out, imported)
    for log in read.logs:
        sensor = imported.sensor(log)
        first_s, last_s = log.span
        accuracy_text = f"accuracy ±{100 * accuracy:g} %" if accuracy is not None else "accuracy unknown"
        print(  # noqa: T201
            f"{sensor.exporter}/{sensor.collector}/{sensor.device}/{sensor.domain}: {len(log.series)} "
            f"{'energies' if log.is_energy else 'powers'} from {first_s:.3f} to {last_s:.3f}, {read.format}, "
            f"{accuracy_text}"
        )
    next_words = f"analyze {args.out}" if args.windows else f"energy --recording {args.out} --start T --end T"
    print(f"recording: {args.out}; joulewatch {next_words}", file=sys.stderr)  # noqa: T201
    return 0


def _scope(args: argparse.Namespace, read: ReadLog) -> str:
    """Return what each log measures; refuse several devices that would each be the whole machine."""
    scope = args.scope or ("node" if read.component == "node" else "device")
    if scope == "node" and len(read.logs) > 1:
        devices = cut(one_line(", ".join(log.device for log in read.logs)), _LONGEST_LIST)
        default = "" if args.scope else f" (the default of {read.format})"
        raise ConfigError(
            f"--scope node{default}: {args.log} has {len(read.logs)} devices ({devices}), and only one can be the "
            "whole machine; use --scope device"
        )
    return str(scope)


def _run(args: argparse.Namespace) -> RunRecord:
    from joulewatch_harness.analysis.sources.stored import find

    record, source = find(args.windows, args.output, options_from_args(args))
    if source is not None:
        source.close()
    return record
