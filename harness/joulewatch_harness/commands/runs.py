"""``joulewatch runs``: list the stored runs, or deliver a run to Prometheus."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from joulewatch_exporter import catalog
from joulewatch_exporter.arguments import number
from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.reports.table import Column, Table, json_text, terminal_width
from joulewatch_harness.clients.options import (
    PrometheusOptions,
    add_prometheus_arguments,
    load_options,
    options_from_args,
)
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.commands.options import add_format_argument, add_output_argument
from joulewatch_harness.errors import ConfigError, QueryTooLargeError

if TYPE_CHECKING:
    from joulewatch_harness.delivery.courier import DeliveryReport

UNFINISHED: Final = "unfinished"
"""Status of a run without an end: it is still running, or was killed."""
DEFAULT_SINCE: Final = "90d"
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_DURATION: Final = re.compile(r"(\d+)(ms|[smhdwy])")
_SHORTEST_RANGE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One row of the list."""

    run: str
    started_at_s: float
    status: str
    configurations: tuple[str, ...]
    windows: int
    delivered: int | None
    """Windows that were read back from Prometheus; None if the list is from there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch runs``."""
    parser.add_argument("action", nargs="?", choices=("list", "push"), default="list", help="default: list")
    parser.add_argument("run", nargs="?", metavar="RUN", help="push: run id or a prefix of it, or run directory")
    add_output_argument(parser)
    add_format_argument(parser)
    parser.add_argument(
        "--since",
        metavar="DURATION",
        help=f"list from Prometheus: age of the oldest run, such as 30d (default: {DEFAULT_SINCE})",
    )
    parser.add_argument(
        "--pushgateway", metavar="URL", help="push: use this Pushgateway, which the Prometheus server scrapes"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=number(gt=0), default=120.0, help="push: time limit (default: 120)"
    )
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch runs``."""
    options = options_from_args(args)
    if args.action == "push":
        return _push(args, options)
    if args.run is not None:
        raise ConfigError(f"'joulewatch runs list' takes no run; did you mean 'joulewatch runs push {args.run}'?")
    if options is None and args.since is not None:
        raise ConfigError("--since needs --prometheus URL: a directory of runs is always listed whole")
    since = args.since or DEFAULT_SINCE
    rows = local_runs(args.output) if options is None else prometheus_runs(options, since)
    _print_rows(rows, args.format)
    if not rows:
        where = args.output if options is None else f"{options.url} of the last {since}"
        print(f"no runs in {where}", file=sys.stderr)  # noqa: T201
    return 0


def local_runs(output: Path) -> list[RunRow]:
    """Return the runs in a directory, oldest first."""
    from joulewatch_harness.delivery.courier import delivered_windows
    from joulewatch_harness.storage.journal import list_runs

    return [
        RunRow(
            run=record.header.run,
            started_at_s=record.header.started_at_s,
            status=record.end.status if record.end is not None else UNFINISHED,
            configurations=tuple(
                configuration.name for configuration in (record.configurations or record.header.configurations)
            ),
            windows=len(record.windows),
            delivered=len(delivered_windows(folder)),
        )
        for folder, record in list_runs(output).items()
    ]


def prometheus_runs(options: PrometheusOptions, since: str) -> list[RunRow]:
    """Return the runs in Prometheus, oldest first.

    Raises:
        QueryError: The server cannot be queried, or ``since`` is not a valid duration.
    """
    from joulewatch_harness.analysis.sources.prometheus import run_matchers, selector

    start = catalog.WINDOW_START.name
    match = run_matchers(options.match)
    # Replicas of Prometheus store the same windows, so those that differ in target labels only count once.
    window = ", ".join(catalog.WINDOW_LABELS)
    stored, pushed = (start + selector(f'window{sign}""', match) for sign in ("=", "!="))
    with PrometheusClient(options) as client:
        client.ping()
        statuses = _over(client, f"last_over_time({catalog.RUN_STATUS.name}{selector(match)}[{{range}}])", since)
        # A window from remote write is one sample; one from a Pushgateway is a series, scraped many times.
        counts = _over(client, f"sum by (run) (max by ({window}) (count_over_time({stored}[{{range}}])))", since)
        groups = _over(client, f"group by ({window}, window) (last_over_time({pushed}[{{range}}]))", since)
        infos = _over(
            client,
            f"group by (run, configuration) (last_over_time({catalog.RUN_INFO.name}{selector(match)}[{{range}}]))",
            since,
        )
    windows: dict[str, int] = {}
    for series in counts:
        name = series["metric"].get("run", "")
        windows[name] = windows.get(name, 0) + int(float(series["value"][1]))
    for labels in {tuple(sorted(series["metric"].items())) for series in groups}:
        name = dict(labels).get("run", "")
        windows[name] = windows.get(name, 0) + 1
    configurations: dict[str, set[str]] = {}
    for series in infos:
        metric = series["metric"]
        configurations.setdefault(metric.get("run", ""), set()).add(metric.get("configuration", ""))
    known: dict[str, tuple[float, str]] = {}
    for series in statuses:
        name, word = series["metric"].get("run", ""), series["metric"].get("status", "")
        if name not in known or word != "running":
            known[name] = (float(series["value"][1]), UNFINISHED if word == "running" else word)
    rows = [
        RunRow(
            run=name,
            started_at_s=started_at_s,
            status=word,
            configurations=tuple(sorted(configurations.get(name, ()))),
            windows=windows.get(name, 0),
            delivered=None,
        )
        for name, (started_at_s, word) in known.items()
    ]
    return sorted(rows, key=lambda row: (row.started_at_s, row.run))


def _over(client: PrometheusClient, query: str, since: str) -> list[dict[str, Any]]:
    """Return the results of a query over the time since ``since``, in parts if the server rejects so long a range."""
    try:
        return client.query(query.replace("{range}", since))
    except QueryTooLargeError:
        parts = _DURATION.findall(since)
        if "".join(f"{number}{unit}" for number, unit in parts) != since:
            raise
    now_s = time.time()
    return _between(client, query, now_s - sum(int(number) * _UNIT_S[unit] for number, unit in parts), now_s)


def _between(client: PrometheusClient, query: str, start_s: float, end_s: float) -> list[dict[str, Any]]:
    middle_s = (start_s + end_s) / 2
    results = []
    for first_s, last_s in ((start_s, middle_s), (middle_s, end_s)):
        try:
            results += client.query(query.replace("{range}", f"{round((last_s - first_s) * 1000)}ms"), last_s)
        except QueryTooLargeError:
            if last_s - first_s < _SHORTEST_RANGE_S:
                raise
            results += _between(client, query, first_s, last_s)
    return results


def _push(args: argparse.Namespace, options: PrometheusOptions | None) -> int:
    from joulewatch_harness.delivery.delivery import push_run
    from joulewatch_harness.storage.journal import find_run, read_run

    if args.run is None:
        raise ConfigError("'joulewatch runs push' needs a run; 'joulewatch runs' lists them")
    folder = find_run(args.run, args.output)
    header = read_run(folder).header
    plan = header.plan
    if options is None:
        config = _text(plan, "prometheus_config")
        options = load_options(_text(plan, "prometheus"), Path(config) if config else None)
    if options is None:
        raise ConfigError("'joulewatch runs push' needs --prometheus URL")
    gateway = args.pushgateway or (None if args.prometheus else _text(plan, "pushgateway"))
    report = push_run(folder, options, pushgateway_url=gateway, timeout_s=args.timeout)
    _print_report(header.run, options.url, report, args.format)
    return 0 if report.complete else 1


def _text(plan: Any, key: str) -> str | None:
    value = plan.get(key)
    return value if isinstance(value, str) and value else None


def _print_report(name: str, url: str, report: DeliveryReport, form: str) -> None:
    if form == "json":
        answer = {"run": name, "prometheus": url, **asdict(report), "complete": report.complete}
        text = json_text(answer)
    elif form == "csv":
        columns: list[Column[DeliveryReport]] = [
            Column("run", lambda _: name),
            Column("prometheus", lambda _: url),
            Column("windows", lambda report: report.windows),
            Column("delivered", lambda report: report.delivered),
            Column("pending", lambda report: report.pending),
            Column("parked", lambda report: len(report.parked)),
        ]
        text = Table(columns, [report]).csv()
    else:
        verb = "is" if report.delivered == 1 else "are"
        text = f"{name}: {report.delivered} of {count_of(report.windows, 'window')} {verb} in {url}\n"
    sys.stdout.write(text)
    for what, reason in report.refusals():
        print(f"{what} refused: {reason}", file=sys.stderr)  # noqa: T201
    if report.trouble:
        print(f"incomplete: {report.trouble}", file=sys.stderr)  # noqa: T201


_RECORD_COLUMNS: Final[tuple[Column[RunRow], ...]] = (
    Column("run", lambda row: row.run),
    Column("started_at_s", lambda row: row.started_at_s),
    Column("status", lambda row: row.status),
    Column("configurations", lambda row: row.configurations),
    Column("windows", lambda row: row.windows),
    Column("delivered", lambda row: row.delivered),
)
_TEXT_COLUMNS: Final[tuple[Column[RunRow], ...]] = (
    Column("run", lambda row: row.run, text=True, least=24),
    # The run's id shows the time as well.
    Column("started (UTC)", lambda row: _utc(row.started_at_s), text=True, least=19, priority=1),
    Column("status", lambda row: row.status, text=True),
    Column("windows", lambda row: row.windows),
    Column("delivered", lambda row: row.delivered),
    Column("configurations", lambda row: ", ".join(row.configurations), text=True),
)


def _utc(unix_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%M:%S}"


def _print_rows(rows: Sequence[RunRow], form: str) -> None:
    if form == "json":
        text = json_text(Table(_RECORD_COLUMNS, rows).records())
    elif form == "csv":
        text = Table(_RECORD_COLUMNS, rows).csv()
    else:
        text = "".join(f"{line}\n" for line in Table(_TEXT_COLUMNS, rows).lines(terminal_width()))
    sys.stdout.write(text)
