"""``joulewatch calibrate --workloads``: how much the watts per core of kinds of load differ on this machine."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_harness.clients.options import options_from_args
from joulewatch_harness.commands.options import write_file
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.metering.exporters import Connection
    from joulewatch_harness.records import SensorRecord

SHARED_BY_CPU_TIME: Final = ("cpu", "memory")
"""Components whose energy workloads share by their CPU time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--workloads",
        action="store_true",
        help="instead of RUN: put loads of several kinds on this machine for about three minutes, and write how much "
        "their watts per core differ",
    )
    parser.add_argument(
        "--exporter",
        action="append",
        metavar="URL",
        help="with --workloads: exporter of this machine (default: $JOULEWATCH_EXPORTER, else the one that answers "
        "here, else one is started)",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch calibrate --workloads``.

    Raises:
        ConfigError: Bad arguments, no sensor that can show it, or the machine is busy.
        ExporterUnreachableError: No exporter answers, or it has no energy sensor.
    """
    from joulewatch_harness.analysis.calibration import spread
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.metering import load_windows
    from joulewatch_harness.metering.exporters import connect
    from joulewatch_harness.metering.loads import chosen_cpus
    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.plan.cpus import cpus_text
    from joulewatch_harness.plan.refresh import slowest_refresh_s

    for flag, value in (
        ("RUN", args.run), ("--reference", args.reference), ("--reference-name", args.reference_name),
        ("--sensor", args.sensor), ("--figure", args.figure), ("--accuracy", args.accuracy is not None),
        ("--time", args.time != "time"), ("--power", args.power), ("--energy", args.energy), ("--unit", args.unit),
        ("--timezone", args.timezone),
    ):  # fmt: skip
        if value:
            raise ConfigError(f"--workloads and {flag} exclude each other")
    cpus = chosen_cpus(sorted(os.sched_getaffinity(0)))
    options = options_from_args(args)
    with contextlib.ExitStack() as stack:
        # The sensors are checked before there is a run. An exporter that was started for the check is used for the run.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulewatch-")))
        connection = connect(args.exporter or (), folder, stack)
        sensors = _sensors(connection)
        meter = stack.enter_context(Meter(connection.urls, prometheus=options, output=args.output, name="workloads"))
        refresh_s = slowest_refresh_s(sensors) or 0.0
        print(f"loads on processors {cpus_text(cpus)}", file=sys.stderr)  # noqa: T201
        windows = load_windows.measure_loads(
            meter,
            cpus,
            sorted({one.component for one in sensors}),
            rounds=load_windows.ROUNDS,
            window_s=max(load_windows.WINDOW_S, load_windows.REFRESHES_PER_WINDOW * refresh_s),
            settle_s=max(load_windows.SETTLE_S, refresh_s),
            report=lambda text: print(text, file=sys.stderr, flush=True),  # noqa: T201
        )
        run_id = meter.run
    found = spread.spreads(windows)
    for one in found:
        if one.component == "cpu" and not one.is_resolved:
            raise ConfigError(
                f"calibrate --workloads: the power of {', '.join(one.unresolved)} does not differ from idle power; "
                "repeat this on a machine without other load"
            )
    methods = sorted({one.method for one in sensors})
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = spread.spread_text(found, methods, host=os.uname().nodename, run=run_id, date=date)
    write_file("--out", args.out, text)
    if args.format == "json":
        sys.stdout.write(spread.render_json(found, methods, run_id))
    elif args.format == "csv":
        sys.stdout.write(spread.render_csv(found))
    else:
        sys.stdout.write(spread.render_table(found, methods, terminal_width()))
    print(f"calibration: {args.out}", file=sys.stderr)  # noqa: T201
    return 0


def _sensors(connection: Connection) -> list[SensorRecord]:
    """Return the sensors of this machine whose energy workloads share by CPU time.

    Raises:
        ConfigError: The exporter is on another machine, or no sensor shows how loads differ.
    """
    for exporter in connection.exporters:
        if exporter.nodename != os.uname().nodename:
            raise ConfigError(
                f"calibrate --workloads: exporter {exporter.name} is on {exporter.nodename}, but the loads run on "
                f"{os.uname().nodename}: run the command there"
            )
    sensors = [one for one in connection.sensors if one.scope == "device" and one.component in SHARED_BY_CPU_TIME]
    if not any(one.component == "cpu" for one in sensors):
        raise ConfigError("calibrate --workloads: there is no sensor of the processors")
    if any(one.method == "estimated" for one in sensors):
        raise ConfigError(
            "calibrate --workloads: the power of the processors is estimated from their use, by a model that knows no "
            "instructions; it cannot show how loads differ"
        )
    return sensors
