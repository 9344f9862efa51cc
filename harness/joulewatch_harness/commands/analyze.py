"""``joulewatch analyze``: turn a run into joules per inference."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_harness.clients.options import PrometheusOptions, add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, add_output_argument
from joulewatch_harness.errors import ConfigError, QueryError, RecordError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.history import SampleSource
    from joulewatch_harness.records import RunRecord

logger = logging.getLogger(__name__)

EXIT_AUDIT: Final = 3
_SQLITE: Final = b"SQLite format 3\x00"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch analyze``."""
    parser.add_argument("run", metavar="RUN", help="run id or a prefix of it, run directory, journal, or recording")
    add_output_argument(parser)
    add_format_argument(parser)
    parser.add_argument("--figure", metavar="FILE", type=Path, help="write the figure: .png, .svg or .pdf")
    parser.add_argument("--net", action="store_true", help="show energy net of idle power in the figure too")
    parser.add_argument("--budget", action="store_true", help="show the uncertainty budgets under the table")
    parser.add_argument(
        "--strict", action="store_true", help=f"exit with code {EXIT_AUDIT} if the audit has findings of severity error"
    )
    parser.add_argument("--publish", action="store_true", help="write the results to Prometheus by remote write")
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch analyze``.

    Raises:
        ConfigError, QueryError, RecordError: Bad arguments, or an unknown run.
        DeliveryError: ``--publish`` failed; the results are printed before.
    """
    from joulewatch_harness.analysis.reports import to_csv, to_json, to_text
    from joulewatch_harness.analysis.reports.figure import write_figure
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results import numbers
    from joulewatch_harness.analysis.results.audit.findings import worst
    from joulewatch_harness.analysis.results.summary import analyze_run

    options = options_from_args(args)
    if args.publish and options is None:
        raise ConfigError("--publish needs --prometheus URL, the server that gets the results")
    if args.figure is not None:
        check_figure_path(args.figure)
    record, source = find(args.run, args.output, options)
    with contextlib.ExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        result = analyze_run(record, source, progress=lambda text: logger.info("%s", text))
    if args.format == "json":
        sys.stdout.write(to_json.render_json(result))
    elif args.format == "csv":
        sys.stdout.write(to_csv.render_csv(result))
    else:
        sys.stdout.write(to_text.render_table(result, width=terminal_width(), budget=args.budget))
    sys.stdout.flush()
    if args.format != "table" and (warning := numbers.warning_line(result.methods)):
        print(warning, file=sys.stderr)  # noqa: T201
    if args.figure is not None:
        write_figure(result, args.figure, net=args.net)
        print(f"figure: {args.figure}", file=sys.stderr)  # noqa: T201
    if args.publish and options is not None:
        from joulewatch_harness.clients.prometheus import PrometheusClient
        from joulewatch_harness.delivery.results import publish

        with PrometheusClient(options) as client:
            count = publish(result, client)
        print(f"published {count} samples to {options.url}", file=sys.stderr)  # noqa: T201
    if args.strict and worst(result.findings) == "error":
        errors = sorted({finding.reason for finding in result.findings if finding.severity == "error"})
        print(f"joulewatch: the audit failed: {', '.join(errors)}", file=sys.stderr)  # noqa: T201
        return EXIT_AUDIT
    return 0


def find(run: str, output: Path, options: PrometheusOptions | None) -> tuple[RunRecord, SampleSource | None]:
    """Return a run and the source of its samples.

    The record comes from the journal or recording on this machine, else from Prometheus. Samples come from the
    recording if there is one, else from Prometheus; without both, the source is None and the edges in the journal are
    used. A line on stderr reports a Prometheus that is not read.

    Raises:
        QueryError: The run is neither on this machine nor in Prometheus.
        RecordError: The journal or recording cannot be read.
    """
    from joulewatch_harness.analysis.sources.opening import open_source
    from joulewatch_harness.storage.journal import find_run, read_run
    from joulewatch_harness.storage.recording import RECORDING_NAME

    given = Path(run)
    if _is_recording(given):
        recording = _open_recording(given, options)
        return recording.run(""), recording
    try:
        folder = find_run(run, output)
    except RecordError as error:
        if given.exists():
            raise
        if options is None:
            raise QueryError(f"{error}; use --prometheus URL if it is stored there") from error
        source = open_source(prometheus=options)
        assert source is not None
        try:
            return source.run(run), source
        except BaseException:
            source.close()
            raise
    record = read_run(folder)
    recording_path = folder / RECORDING_NAME
    if recording_path.is_file():
        return record, _open_recording(recording_path, options)
    return record, open_source(prometheus=options)


def _open_recording(path: Path, options: PrometheusOptions | None) -> SampleSource:
    from joulewatch_harness.analysis.sources.opening import open_source

    if options is not None:
        text = f"samples are read from {path}, not from {options.url}; move this file away to use Prometheus"
        print(text, file=sys.stderr)  # noqa: T201
    source = open_source(recording=path)
    assert source is not None
    return source


def _is_recording(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
