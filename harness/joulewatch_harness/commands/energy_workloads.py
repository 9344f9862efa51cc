"""``joulewatch energy --workload PATTERN``: energy of units, pods, containers, jobs and VMs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from joulewatch_exporter import catalog
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.energy.window_energy import Span
    from joulewatch_harness.analysis.sources.history import SampleSource

EXIT_FAILED: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--workload",
        metavar="PATTERN",
        action="append",
        help="energy of the workloads whose name matches, such as 'nginx*', 'pod/prod/*', 'namespace=prod,pod=web-*', "
        "'job=123'; * and ? are wildcards; repeatable; needs --prometheus",
    )
    parser.add_argument(
        "--idle",
        choices=("own", "equal", "proportional", "reserved"),
        default="own",
        help="with --workload: idle energy that is added: none, equal parts, by active energy, or by the share of the "
        "processors that the weights of cgroups give (default: own)",
    )


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError if ``--workload`` is not valid, or it and ``--idle`` do not go with the other arguments."""
    from joulewatch_harness.analysis.sources.workloads import matcher

    if args.workload is None:
        if args.idle != "own":
            raise ConfigError("--idle needs --workload")
        return
    for flag, value in (
        ("--slurm-job", args.slurm_job), ("--every", args.every), ("--recording", args.recording), ("--per", args.per),
        ("--sensor", args.sensor), ("--source", args.source), ("--scope", args.scope != "all"),
    ):  # fmt: skip
        if value:
            raise ConfigError(f"--workload and {flag} exclude each other")
    matcher(args.workload)


def run(args: argparse.Namespace, source: SampleSource, span: Span) -> int:
    """Run ``joulewatch energy --workload``; the source is closed.

    Raises:
        ConfigError: A pattern is not valid, or no workload matches.
        QueryError: Prometheus cannot be queried.
    """
    from joulewatch_harness.analysis.energy.workloads import coverage_notice, total_energy, workload_energies
    from joulewatch_harness.analysis.reports import workload_report
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
    from joulewatch_harness.analysis.sources.workloads import lost_notice, matcher, workload_uses

    assert isinstance(source, PrometheusSource)
    try:
        matches = matcher(args.workload)
        uses, known = workload_uses(source, (span.start_s, span.end_s), matches)
        where = source.describe()
    finally:
        source.close()
    results = [(use, *workload_energies(use, span, matches, args.idle)) for use in uses]
    rows = [row for _, each, _ in results for row in each]
    if not rows:
        if not known and not uses:
            raise ConfigError(f"{where}: no joulewatch exporter has published workloads in this window")
        known = known or sorted({f"{one.kind}/{one.workload}" for use in uses for one in use.names})
        more = ", ..." if len(known) > 8 else ""
        raise ConfigError(
            f"no workload matches --workload {' '.join(args.workload)}; the workloads are {', '.join(known[:8])}{more}"
        )
    if args.idle == "reserved":
        without = sorted(use.host for use in uses if not use.reserved)
        if without:
            raise ConfigError(
                f"--idle reserved: {', '.join(without)}: the exporter has published no {catalog.WORKLOAD_RESERVED.name}"
            )
    totals = [total for _, _, total in results if total is not None]
    notices = [
        notice
        for use, _, total in results
        for notice in (lost_notice(use, span.start_s, span.end_s), total and coverage_notice(total))
        if notice
    ]
    total = total_energy(rows, totals)
    if args.format == "json":
        text = workload_report.render_json(rows, total, span, where, notices, idle=args.idle)
    elif args.format == "csv":
        text = workload_report.render_csv(rows, span, args.idle)
    else:
        width = terminal_width()
        text = workload_report.render_table(rows, total, span, where, notices, idle=args.idle, width=width)
    sys.stdout.write(text)
    return 0 if any(row.parts for row in rows) else EXIT_FAILED
