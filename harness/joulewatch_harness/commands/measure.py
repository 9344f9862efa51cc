"""``joulewatch measure``: run a command and show its energy."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import check_folder, shell_words, write_file
from joulewatch_harness.errors import ConfigError, JoulewatchError
from joulewatch_harness.plan.plan import DEFAULT_OUTPUT

if TYPE_CHECKING:
    from joulewatch_harness.metering.child import Outcome
    from joulewatch_harness.metering.report import CommandResult
    from joulewatch_harness.metering.window import Measurement

EXIT_OWN_FAILURE: Final = 125
"""Joulewatch failed; 126 and 127: the command could not be started, as in a shell."""
EXIT_INTERRUPTED: Final = 130
LEAST_INTERVAL_S: Final = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch measure``."""
    parser.usage_exit_code = EXIT_OWN_FAILURE  # type: ignore[attr-defined]
    parser.add_argument("words", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="command with its arguments")
    parser.add_argument("-r", "--repeat", metavar="N", type=int, default=1, help="run it N times and show the mean")
    parser.add_argument("--name", help="name of the windows (default: the program's file name)")
    parser.add_argument(
        "--inferences", metavar="N", type=int, default=1, help="inferences in one execution, for joules per inference"
    )
    parser.add_argument(
        "--idle", action="store_true", help="measure idle power first (2 to 20 s), to show net energy too"
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=number(ge=LEAST_INTERVAL_S),
        help="print the power at this interval while the command runs",
    )
    parser.add_argument(
        "--exporter",
        action="append",
        metavar="URL",
        help="exporter to read; repeatable (default: $JOULEWATCH_EXPORTER, else that of this machine, else one is "
        "started)",
    )
    parser.add_argument(
        "--exporter.flags",
        dest="exporter_flags",
        type=shell_words,
        default=[],
        help="flags for the exporter that is started",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the result to a file (default: stderr)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="output format (default: table)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path(DEFAULT_OUTPUT), help="directory of all runs (default: runs)"
    )
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch measure``; return the exit code of the command, or ``EXIT_OWN_FAILURE``."""
    try:
        return _run(args)
    except JoulewatchError as error:
        _report(f"joulewatch: {error}")
        return EXIT_OWN_FAILURE
    except ModuleNotFoundError as error:
        _report(f"joulewatch: measure needs the package {error.name}: pip install 'joulewatch[analysis]'")
        return EXIT_OWN_FAILURE
    except OSError as error:
        # Such as a full disk under stderr, where this message may be lost too.
        with contextlib.suppress(OSError):
            _report(f"joulewatch: the result cannot be written: {error.strerror}")
        return EXIT_OWN_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    from joulewatch_harness.metering.child import EXIT_SIGNAL, Child, NotStartedError
    from joulewatch_harness.metering.execution import execute
    from joulewatch_harness.metering.meter import Meter

    # This imports numpy now, and not while the command runs.
    from joulewatch_harness.metering.report import CommandResult
    from joulewatch_harness.metering.runs import load

    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    _check(args, command)
    name = args.name or Path(command[0]).name
    child = Child()
    windows: list[Measurement] = []
    outcomes: list[Outcome] = []
    meter = Meter(
        args.exporter or (),
        prometheus=options_from_args(args),
        idle="measured" if args.idle else None,
        output=args.output,
        exporter_flags=args.exporter_flags,
        runtime="command",
    )
    with meter, child.signals_forwarded(), contextlib.ExitStack() as stack:
        if args.interval is not None:
            stack.enter_context(_display(meter.header.plan["exporters"], args.interval))
        for _ in range(args.repeat):
            if child.ended_by is not None:
                break
            try:
                window, outcome = execute(meter, child, command, name=name, inferences=args.inferences)
            except NotStartedError as error:
                _report(f"joulewatch: {error}")
                return error.exit_code
            windows.append(window)
            outcomes.append(outcome)
    if not outcomes:
        return EXIT_SIGNAL + (child.ended_by or 0)
    # From the journal alone: a Prometheus that is down must not hide the result.
    mean = load(meter.folder)[name] if len(windows) > 1 else None
    _write(args, CommandResult(command=command, windows=windows, outcomes=outcomes, mean=mean))
    return outcomes[-1].exit_code


def _check(args: argparse.Namespace, command: Sequence[str]) -> None:
    if not command:
        raise ConfigError("measure: no command; write it at the end: joulewatch measure -- python program.py")
    if args.repeat < 1:
        raise ConfigError(f"--repeat {args.repeat}: must be at least 1")
    if args.out is not None:
        check_folder("--out", args.out)


@contextlib.contextmanager
def _display(urls: Sequence[str], interval_s: float) -> Iterator[None]:
    from joulewatch_harness.metering.interval import PowerDisplay

    with PowerDisplay(urls, interval_s, _report):
        yield


def _write(args: argparse.Namespace, result: CommandResult) -> None:
    from joulewatch_harness.analysis.reports.table import json_text, terminal_width
    from joulewatch_harness.metering.report import document, lines

    if args.format == "json":
        text = json_text(document(result))
    else:
        text = "".join(f"{line}\n" for line in lines(result, terminal_width()))
    if args.out is not None:
        write_file("--out", args.out, text)
    else:
        sys.stderr.write(text)
        sys.stderr.flush()


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
