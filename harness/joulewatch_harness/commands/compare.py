"""``joulewatch compare``: differences between configurations or runs, and whether they are significant."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_harness.clients.options import PrometheusOptions, add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, add_output_argument, read_json
from joulewatch_harness.errors import ConfigError, QueryError, RecordError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.results.stored_results import Run, Side

RESULT_NAME: Final = "result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch compare``."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="RUN|CONFIGURATION",
        help="a run (id or a prefix of it, directory, recording or result.json), or a configuration of the run before "
        "it (name, part of the name such as int8, or pattern with *). RUN1,RUN2,RUN3: repeated runs of one plan, whose "
        "mean is compared. The first one is the baseline. A single run: compare its configurations; several runs: "
        "compare configurations of the same name",
    )
    add_output_argument(parser)
    add_format_argument(parser)
    parser.add_argument(
        "--mixed", action="store_true", help="compare measured energies with estimated or emulated ones"
    )
    parser.add_argument(
        "--uncorrelated",
        action="store_true",
        help="do not let errors cancel that both sides share (accuracy of a sensor, idle power)",
    )
    add_limit_argument(parser)
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=Path,
        help="write a figure of energy per inference and throughput over batch size, with one line per configuration: "
        ".png, .svg or .pdf",
    )
    parser.add_argument(
        "--main-device",
        action="store_true",
        help="in the figure, count only the CPU, the GPU or the FPGA that runs the network: without memory, and "
        "without the host of an accelerator",
    )
    add_prometheus_arguments(parser)


def add_limit_argument(parser: argparse.ArgumentParser, default: float | None = None) -> None:
    """Add ``--fail-above``, the limit of an increase in percent."""
    parser.add_argument(
        "--fail-above",
        metavar="PERCENT",
        type=percent,
        default=default,
        help="exit code 3 if the energy per inference has risen by significantly more than this, such as 3%%; 4 if "
        "that is undecided" + ("" if default is None else f" (default: {default:g}%%)"),
    )


def percent(text: str) -> float:
    """Return a share in percent; the sign ``%`` may be omitted."""
    try:
        return number(ge=0.0)(text.removesuffix("%"))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be a percentage >= 0, such as 3%, got {text!r}") from error


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch compare``.

    Raises:
        ConfigError, QueryError, RecordError: Bad arguments, an unknown run, or nothing to compare.
    """
    from joulewatch_harness.analysis.reports import compare_report
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results.compare import NOT_COMPARABLE, compare, pairs_of
    from joulewatch_harness.analysis.results.numbers import warning_line

    if args.main_device and args.figure is None:
        raise ConfigError("--main-device is for the figure: add --figure FILE")
    if args.figure is not None:
        check_figure_path(args.figure)
    options = options_from_args(args)
    chosen = choose(args.what, args.output, options)
    pairs = pairs_of(chosen) if args.figure is None else pairs_of_figure(chosen)
    comparison = compare(pairs, mixed=args.mixed, cancel=not args.uncorrelated)
    if args.format == "json":
        sys.stdout.write(compare_report.render_json(comparison))
    elif args.format == "csv":
        sys.stdout.write(compare_report.render_csv(comparison))
    else:
        sys.stdout.write(compare_report.render_table(comparison, width=terminal_width()))
    sys.stdout.flush()
    if args.format != "table":
        notes = [note for pair in comparison.pairs for note in pair.notes if note.startswith(NOT_COMPARABLE)]
        for text in (warning_line(comparison.methods), *notes):
            if text:
                print(text, file=sys.stderr)  # noqa: T201
    if args.figure is not None:
        from joulewatch_harness.analysis.reports.runs_figure import write_runs_figure
        from joulewatch_harness.analysis.results.lines import lines_of
        from joulewatch_harness.analysis.results.stored_results import Side

        sides = {(run.id, name): Side(run, name) for run, names in chosen for name in names or run.configurations}
        lines = lines_of(list(sides.values()), main_device=args.main_device)
        write_runs_figure(lines, args.figure, main_device=args.main_device)
        print(f"figure: {args.figure}", file=sys.stderr)  # noqa: T201
    if args.fail_above is None:
        return 0
    from joulewatch_harness.analysis.results import gate

    checks = gate.check_comparison(comparison, args.fail_above)
    for check in checks:
        print(gate.sentence(check), file=sys.stderr)  # noqa: T201
    return gate.exit_code(checks)


def pairs_of_figure(chosen: Sequence[tuple[Run, tuple[str, ...]]]) -> list[tuple[Side, Side]]:
    """Return the pairs to compare next to a figure; runs without a common configuration have one baseline, the first.

    Raises:
        ConfigError: There is nothing to compare.
    """
    from joulewatch_harness.analysis.results.compare import pairs_of

    try:
        return pairs_of(chosen)
    except ConfigError:
        if len(chosen) < 2:
            raise
        return pairs_of([(run, names or run.configurations) for run, names in chosen])


def choose(words: Sequence[str], output: Path, options: PrometheusOptions | None) -> list[tuple[Run, tuple[str, ...]]]:
    """Return the runs, each with the configurations that were named after it.

    Raises:
        ConfigError: A word is neither a run nor a configuration of the run before it.
        QueryError, RecordError: The first word is not a run, or a run cannot be read.
    """
    from joulewatch_harness.analysis.results.compare import pick

    known: dict[str, Run] = {}
    chosen: list[tuple[Run, tuple[str, ...]]] = []
    for word in words:
        if chosen and word in chosen[-1][0].configurations:
            chosen[-1] = (chosen[-1][0], (*chosen[-1][1], word))
            continue
        try:
            run = read_repeats(word, output, options)
        except (QueryError, RecordError) as error:
            if not chosen or Path(word).exists():
                raise
            try:
                names = pick(chosen[-1][0], word)
            except ConfigError as second:
                raise ConfigError(f"{second}; it is not a run either: {error}") from error
            chosen[-1] = (chosen[-1][0], (*chosen[-1][1], *names))
            continue
        # A run that is named twice is one object, so that the errors of its idle windows cancel.
        chosen.append((known.setdefault(run.id, run), ()))
    return chosen


def read_repeats(word: str, output: Path, options: PrometheusOptions | None) -> Run:
    """Return one run, or several with a comma between them as repeats of one plan.

    Raises:
        ConfigError: The runs are not repeats.
        QueryError, RecordError: A run is unknown or cannot be read.
    """
    from joulewatch_harness.analysis.results.stored_results import repeated

    words = [word] if Path(word).exists() else word.split(",")
    if not all(words):
        raise ConfigError(f"{word!r}: a run is missing next to a comma; write RUN1,RUN2,RUN3 without spaces")
    runs = [read(part, output, options) for part in words]
    return repeated(runs) if len(runs) > 1 else runs[0]


def read(word: str, output: Path, options: PrometheusOptions | None) -> Run:
    """Return an analyzed run: its stored result, or the analysis of its journal, recording or series in Prometheus.

    Raises:
        QueryError, RecordError: The run is unknown or cannot be read.
    """
    from joulewatch_harness.analysis.reports.to_json import result_document
    from joulewatch_harness.analysis.results.stored_results import read_document
    from joulewatch_harness.analysis.results.summary import analyze_run
    from joulewatch_harness.analysis.sources.stored import find
    from joulewatch_harness.storage.journal import JOURNAL_NAME

    path = Path(word)
    if path.is_dir() and not (path / JOURNAL_NAME).is_file() and (path / RESULT_NAME).is_file():
        path /= RESULT_NAME
    if path.is_file() and path.suffix == ".json":
        return read_document(read_json(path), str(path))
    record, source = find(word, output, options)
    with contextlib.ExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        result = analyze_run(record, source)
    return read_document(result_document(result), word)
