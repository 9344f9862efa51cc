"""``joulewatch energy --per COUNTER``: energy per unit of any counter of any target in Prometheus."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Final

from joulewatch_harness.clients.options import options_from_args
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.energy.window_energy import Span
    from joulewatch_harness.analysis.sources.counters import Counter
    from joulewatch_harness.analysis.sources.history import SampleSource
    from joulewatch_harness.analysis.sources.prometheus import PrometheusSource

EXIT_FAILED: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--per",
        metavar="COUNTER",
        action="append",
        help="energy per unit of a counter of any target, such as 'vllm:generation_tokens_total' or "
        "'http_requests_total{job=\"web\"}', or per token and request of an LLM server: vllm, sglang, tgi, "
        "tensorrt-llm, dynamo, triton, llama.cpp; repeatable: several counters are also separated by least squares",
    )
    parser.add_argument(
        "--by", metavar="LABEL", help="with --per: also for each value of a label, in proportion to the counter"
    )


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError if ``--per`` is not a counter, or ``--per`` and ``--by`` do not go with the other arguments."""
    from joulewatch_harness.analysis.sources.counters import parse_selector
    from joulewatch_harness.analysis.sources.llm_servers import llm_servers

    if not args.per:
        if args.by is not None:
            raise ConfigError("--by needs --per COUNTER")
        return
    for flag, value in (("--slurm-job", args.slurm_job), ("--every", args.every), ("--recording", args.recording)):
        if value is not None:
            raise ConfigError(f"--per and {flag} exclude each other")
    for text in args.per:
        if text not in llm_servers():
            parse_selector(text)
    if args.scope == "part":
        raise ConfigError("--per adds devices or whole servers: use --scope device or node")


def run(args: argparse.Namespace, source: SampleSource, span: Span) -> int:
    """Run ``joulewatch energy --per``; the source is closed.

    Raises:
        ConfigError: A counter is not valid or has no samples, or no sensor matches.
        QueryError: Prometheus cannot be queried.
    """
    from joulewatch_harness.analysis.energy.sensor_energies import calibration_notices, frozen_notices
    from joulewatch_harness.analysis.reports import per_report
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results.per_counter import per_counter
    from joulewatch_harness.analysis.sources.opening import open_source
    from joulewatch_harness.analysis.sources.prometheus import PrometheusSource

    where = source.describe()
    try:
        counters_from = open_source(prometheus=options_from_args(args))
        assert isinstance(counters_from, PrometheusSource)
        try:
            counters, fit = _counters(args.per, counters_from, span)
        finally:
            counters_from.close()
        history = source.history([(span.start_s, span.end_s)], None, power=True)
    finally:
        source.close()
    scope = "node" if args.scope == "node" else "device"
    result = per_counter(history, span, counters, patterns=args.sensor or [], scope=scope, label=args.by or "", fit=fit)
    if not result.sensors:
        known = ", ".join(sorted(str(sensor) for sensor in history.sensors)[:8])
        raise ConfigError(f"no {scope} sensor matches; the sensors are {known or 'none in this window'}")
    notices = [*history.notices, *frozen_notices(result.sensors), *calibration_notices(result.sensors)]
    if args.format == "json":
        sys.stdout.write(per_report.render_json(result, span, where, notices))
    elif args.format == "csv":
        sys.stdout.write(per_report.render_csv(result, span))
    else:
        sys.stdout.write(per_report.render_table(result, span, where, notices, width=terminal_width()))
    return 0 if any(row.per_unit is not None for row in result.rows) else EXIT_FAILED


def _counters(wanted: list[str], source: PrometheusSource, span: Span) -> tuple[dict[str, list[Counter]], list[str]]:
    """Return the series of each counter, and the counters whose costs are separated."""
    from joulewatch_harness.analysis.sources.counters import read_counters, similar
    from joulewatch_harness.analysis.sources.llm_servers import llm_servers

    counters: dict[str, list[Counter]] = {}
    fit: list[str] = []
    for text in wanted:
        server = llm_servers().get(text)
        if server is None:
            counters[text] = read_counters(source, text, span.start_s, span.end_s, time.time)
            if not counters[text]:
                raise ConfigError(
                    f"--per {text}: no samples around this window{similar(source, text, span.start_s, span.end_s)}"
                )
            fit.append(text)
            continue
        of_server = {
            name: found
            for kind in ("input", "output", "requests")
            for name in getattr(server, kind)
            if (found := read_counters(source, name, span.start_s, span.end_s, time.time))
        }
        if not of_server:
            raise ConfigError(f"--per {text}: no counter of this server has samples around this window")
        counters |= of_server
        fit += [name for name in of_server if name in (*server.input, *server.output)]
    return counters, fit if len(fit) > 1 else []
