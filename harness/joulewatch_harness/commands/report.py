"""``joulewatch report``: one or several runs as a self-contained HTML page, or as PDF."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_harness.clients.options import PrometheusOptions, add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_output_argument, check_folder, read_json, write_file
from joulewatch_harness.errors import ConfigError, JoulewatchError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.reports.html_parts import ReportedRun

BROWSERS: Final = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
)  # fmt: skip
_PDF_TIMEOUT_S: Final = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch report``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run id or a prefix of it, run directory, journal, or recording"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("report.html"), help="the page (default: report.html)"
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="predictions to draw dashed next to the runs, from 'joulewatch predict --format json'; repeatable",
    )
    parser.add_argument("--pdf", metavar="FILE", type=Path, help="write a PDF, too; needs Chromium or Chrome")
    add_output_argument(parser)
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch report``.

    Raises:
        ConfigError, QueryError, RecordError: Bad arguments, an unknown run, or no browser for ``--pdf``.
        JoulewatchError: The browser failed.
    """
    from joulewatch_harness.analysis.reports.html_report import render_html
    from joulewatch_harness.analysis.results.lines import predicted_lines

    browser = _browser() if args.pdf is not None else ""
    for flag, path in (("--out", args.out), ("--pdf", args.pdf)):
        if path is not None:
            check_folder(flag, path)
    if args.out.suffix == ".pdf":
        raise ConfigError(f"--out {args.out}: the page is HTML; write --pdf {args.out} for a PDF")
    if args.pdf is not None and args.pdf.suffix != ".pdf":
        raise ConfigError(f"--pdf {args.pdf}: the name must end in .pdf")
    options = options_from_args(args)
    runs: dict[str, ReportedRun] = {}
    for word in args.runs:
        reported = _read(word, args.output, options)
        if reported.id in runs:
            raise ConfigError(f"run {reported.id} is given twice")
        runs[reported.id] = reported
    predictions = [line for path in args.predictions for line in predicted_lines(read_json(path), str(path))]
    write_file("--out", args.out, render_html(list(runs.values()), predictions=predictions))
    print(f"report: {args.out}", file=sys.stderr)  # noqa: T201
    if args.pdf is not None:
        write_file(
            "--pdf", args.pdf, _pdf(browser, render_html(list(runs.values()), predictions=predictions, expanded=True))
        )
        print(f"report: {args.pdf}", file=sys.stderr)  # noqa: T201
    return 0


def _read(word: str, output: Path, options: PrometheusOptions | None) -> ReportedRun:
    from joulewatch_harness.analysis.reports.html_parts import ReportedRun
    from joulewatch_harness.analysis.results.summary import analyze_run
    from joulewatch_harness.analysis.results.timeline import power_lines
    from joulewatch_harness.analysis.sources.stored import find

    record, source = find(word, output, options)
    try:
        return ReportedRun(analyze_run(record, source), power_lines(record, source))
    finally:
        if source is not None:
            source.close()


def _browser() -> str:
    """Return the path of a browser that prints.

    Raises:
        ConfigError: None is installed.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise ConfigError(
        f"--pdf needs Chromium or Chrome on the PATH ({', '.join(BROWSERS[:2])}, ...); "
        "or open the page in any browser and print it"
    )


def _pdf(browser: str, page: str) -> bytes:
    """Return the page as PDF.

    Raises:
        JoulewatchError: The browser failed.
    """
    with tempfile.TemporaryDirectory(prefix="joulewatch-report-") as name:
        folder = Path(name)
        (folder / "report.html").write_text(page, encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={folder / 'profile'}",
            f"--print-to-pdf={folder / 'report.pdf'}",
            # Chromium has no sandbox for root, in containers, and without the package chromium-sandbox. None is needed:
            # this program has written the page, which has no script, and its policy forbids every request.
            "--no-sandbox",
            (folder / "report.html").as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PDF_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise JoulewatchError(f"--pdf: {browser} did not finish within {_PDF_TIMEOUT_S} s") from error
        except OSError as error:
            raise JoulewatchError(f"--pdf: {browser} does not start: {error.strerror}") from error
        pdf = folder / "report.pdf"
        if not pdf.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no error message"]
            raise JoulewatchError(f"--pdf: {browser} wrote no PDF: {lines[-1]}")
        return pdf.read_bytes()
