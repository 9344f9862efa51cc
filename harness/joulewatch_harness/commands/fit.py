"""``joulewatch fit``: fit models of the energy per inference to runs and tables."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulewatch_harness.clients.options import PrometheusOptions, add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, add_output_argument, check_folder, write_file

if TYPE_CHECKING:
    from joulewatch_harness.prediction.table import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch fit``."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUN|TABLE.csv",
        help="a run (id or a prefix of it, directory, recording or result.json), or a table of measured energies "
        "(columns: harness/PREDICTION.md)",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="write the models: model.json")
    add_output_argument(parser)
    add_format_argument(parser)
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch fit``.

    Raises:
        ConfigError, QueryError, RecordError: A source cannot be read, its rows are not valid, or the output cannot be
            written.
    """
    use_one_thread()
    from joulewatch_harness.analysis.reports.table import json_text, terminal_width
    from joulewatch_harness.prediction import model_file, report
    from joulewatch_harness.prediction.evaluate import evaluated
    from joulewatch_harness.prediction.fit import fit_all

    check_folder("--out", args.out)
    rows, sources = [], []
    for word in args.sources:
        source_rows, source = read_source(word, args.output, options_from_args(args))
        rows += source_rows
        sources.append(source)
    fit = evaluated(fit_all(rows, sources))
    write_file("--out", args.out, json_text(model_file.document_of(fit)))
    if args.format == "json":
        sys.stdout.write(report.fit_json(fit))
    elif args.format == "csv":
        sys.stdout.write(report.fit_csv(fit))
    else:
        sys.stdout.write("\n".join(report.fit_lines(fit, terminal_width())) + "\n")
    print(f"models: {args.out}", file=sys.stderr)  # noqa: T201
    return 0


def use_one_thread() -> None:
    """Keep numpy's linear algebra on one thread, if numpy is not loaded yet.

    The matrices are small, so more threads mostly wait for each other: on two busy cores, a fit of 100,000 rows took
    181 s instead of 39 s.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def read_source(word: str, output: Path, options: PrometheusOptions | None) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a table or a run, with its name and hash.

    Raises:
        ConfigError, QueryError, RecordError: It cannot be read, or a row is not valid.
    """
    from joulewatch_harness.analysis.reports.table import json_text
    from joulewatch_harness.commands.compare import read
    from joulewatch_harness.prediction.converters import read_table, rows_of_run

    path = Path(word)
    if path.suffix.lower() == ".csv":
        rows = read_table(path)
        name, content = path.name, path.read_bytes()
    else:
        stored = read(word, output, options)
        rows = rows_of_run(stored)
        name, content = f"run {stored.id}", json_text(stored.document["results"]).encode()
    return rows, {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "rows": len(rows)}
