"""``joulewatch export``: write a recording as OpenMetrics text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from joulewatch_exporter.text import count_of
from joulewatch_harness import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch export``."""
    parser.epilog = (
        "Import: promtool tsdb create-blocks-from openmetrics FILE DATA, where DATA is Prometheus' "
        "--storage.tsdb.path; keep its retention above the age of the recording."
    )
    parser.add_argument("recording", metavar="RECORDING", type=Path, help="recording.sqlite, or the directory of a run")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--openmetrics", action="store_true", help="OpenMetrics text, for promtool")
    parser.add_argument("--output", metavar="FILE", type=Path, help="output file, written atomically (default: stdout)")


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch export``."""
    from joulewatch_harness.delivery.openmetrics import export_openmetrics
    from joulewatch_harness.storage.recording import Recording

    with Recording.open(args.recording) as recording:
        if args.output is None:
            export_openmetrics(recording, sys.stdout.write)
            return 0
        part: Path = args.output.with_name(args.output.name + ".part")
        try:
            try:
                with part.open("w", encoding="utf-8", newline="\n") as file:
                    count = export_openmetrics(recording, file.write)
                part.replace(args.output)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except OSError as error:
            text = f"{args.output}: cannot be written: {error.strerror or error}"
            raise files.write_error(text, error) from error
    print(f"wrote {count_of(count, 'sample')} to {args.output}", file=sys.stderr)  # noqa: T201
    return 0
