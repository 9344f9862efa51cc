"""``joulewatch analyze``: turn a run into joules per inference."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import sys
from pathlib import Path
from typing import Final

from joulewatch_exporter.arguments import number
from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.sources.stored import find
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, add_output_argument, add_source_argument
from joulewatch_harness.errors import ConfigError

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_AUDIT: Final = 3
MLPERF: Final = "mlperf-energy"
CODECARBON: Final = "codecarbon"
AIPERF: Final = "aiperf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch analyze``."""
    parser.add_argument("run", metavar="RUN", help="run id or a prefix of it, run directory, journal, or recording")
    add_output_argument(parser)
    add_format_argument(parser, MLPERF, CODECARBON, AIPERF)
    parser.add_argument(
        "--carbon",
        metavar="g/kWh",
        type=number(ge=0),
        help=f"carbon intensity of the electricity, for the emissions of --format {CODECARBON}",
    )
    parser.add_argument("--figure", metavar="FILE", type=Path, help="write the figure: .png, .svg or .pdf")
    parser.add_argument("--net", action="store_true", help="show net and attributed energy in the figure too")
    parser.add_argument("--budget", action="store_true", help="show the uncertainty budgets under the table")
    parser.add_argument(
        "--strict", action="store_true", help=f"exit with code {EXIT_AUDIT} if the audit has findings of severity error"
    )
    add_source_argument(parser)
    parser.add_argument("--publish", action="store_true", help="write the results to Prometheus by remote write")
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch analyze``.

    Raises:
        ConfigError, QueryError, RecordError: Bad arguments, or an unknown run.
        DeliveryError: ``--publish`` failed; the results are printed before.
    """
    from joulewatch_harness.analysis.reports import to_aiperf, to_codecarbon, to_csv, to_json, to_mlperf, to_text
    from joulewatch_harness.analysis.reports.figure import write_figure
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results import numbers
    from joulewatch_harness.analysis.results.audit.findings import worst
    from joulewatch_harness.analysis.results.summary import analyze_run

    options = options_from_args(args)
    if args.publish and options is None:
        raise ConfigError("--publish needs --prometheus URL, the server that gets the results")
    if args.carbon is not None and args.format != CODECARBON:
        raise ConfigError(f"--carbon needs --format {CODECARBON}")
    if args.figure is not None:
        check_figure_path(args.figure)
    with contextlib.ExitStack() as stack:
        if gc.isenabled():
            # A long run is millions of objects without cycles, and traversing them takes a quarter of the time.
            gc.disable()
            stack.callback(gc.enable)
        record, source = find(args.run, args.output, options, args.source or ())
        if source is not None:
            stack.callback(source.close)
        result = analyze_run(record, source, progress=lambda text: logger.info("%s", text))
    if args.figure is not None:
        write_figure(result, args.figure, net=args.net)
        print(f"figure: {args.figure}", file=sys.stderr)  # noqa: T201
    missing: list[str] = []
    if args.format == "json":
        sys.stdout.write(to_json.render_json(result))
    elif args.format == "csv":
        sys.stdout.write(to_csv.render_csv(result))
    elif args.format == CODECARBON:
        sys.stdout.write(to_codecarbon.render_codecarbon(result, args.carbon))
    elif args.format == AIPERF:
        sys.stdout.write(to_aiperf.render_aiperf(result))
    elif args.format == MLPERF:
        text, missing = to_mlperf.render_mlperf(result)
        sys.stdout.write(text)
    else:
        sys.stdout.write(to_text.render_table(result, width=terminal_width(), budget=args.budget))
    sys.stdout.flush()
    if args.format != "table" and (warning := numbers.warning_line(result.methods)):
        print(warning, file=sys.stderr)  # noqa: T201
    for text in missing:
        print(f"no record: {text}", file=sys.stderr)  # noqa: T201
    if args.publish and options is not None:
        from joulewatch_harness.clients.prometheus import PrometheusClient
        from joulewatch_harness.delivery.results import publish

        with PrometheusClient(options) as client:
            count = publish(result, client)
        print(f"published {count_of(count, 'sample')} to {options.url}", file=sys.stderr)  # noqa: T201
    if args.strict and worst(result.findings) == "error":
        errors = sorted({finding.reason for finding in result.findings if finding.severity == "error"})
        print(f"joulewatch: the audit failed: {', '.join(errors)}", file=sys.stderr)  # noqa: T201
        return EXIT_AUDIT
    return EXIT_FAILED if missing and len(missing) == len(result.groups) else 0
